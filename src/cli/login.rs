//! Who comes with `--user`: the password is asked for once, and the token that the broker makes for the device is kept
//! beside what else the device keeps.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};

use longwire_client::Login;

use super::Fail;
use super::token::write_secret;

/// Where a password comes from when there is no terminal to ask at.
pub(super) const PASSWORD: &str = "LONGWIRE_PASSWORD";

/// The file with the token of a device.
pub(super) fn token_path(directory: &Path, device: &str) -> PathBuf {
    let name: String =
        device.chars().map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' }).collect();
    let number = xxhash_rust::xxh3::xxh3_64(device.as_bytes());
    directory.join(format!("{name}-{number:016x}.token"))
}

/// How `user` is let in as this device: by the token that was kept, or by the password, which is asked for only then.
pub(super) fn login(user: &str, password_file: Option<&Path>, directory: &Path, device: &str) -> Result<Login, Fail> {
    let path = token_path(directory, device);
    let kept = fs::read_to_string(&path).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    let password = match (&kept, password_file) {
        (_, Some(file)) => read_password(file)?,
        (Some(_), None) => String::new(),
        (None, None) => password(&format!("Password of {user}: "))?,
    };
    let login = Login::new(user, password).keeping(move |token| {
        // Without it the password is asked for again.
        if let Err(error) = write_secret(&path, token) {
            eprintln!("longwire: the token cannot be kept: {error}");
        }
    });
    Ok(match kept {
        Some(token) => login.with_token(token),
        None => login,
    })
}

/// The token of this device is good no more: the password is asked for the next time.
pub(super) fn forget(directory: &Path, device: &str) {
    // Where there is none, nothing is to be forgotten.
    let _gone = fs::remove_file(token_path(directory, device));
}

/// A password out of the environment, or from whoever sits at the terminal, without an echo.
pub(super) fn password(prompt: &str) -> Result<String, Fail> {
    if let Some(password) = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty()) {
        return Ok(password);
    }
    if !io::stdin().is_terminal() {
        return Err(Fail::usage(format!("no terminal to ask for a password at: name a file, or set {PASSWORD}")));
    }
    rpassword::prompt_password(prompt).map_err(|error| Fail::failed(format!("no password: {error}")))
}

/// A new password, asked for twice at a terminal.
pub(super) fn new_password(file: Option<&Path>, user: &str) -> Result<String, Fail> {
    if let Some(file) = file {
        return read_password(file);
    }
    let first = password(&format!("New password of {user}: "))?;
    if io::stdin().is_terminal() && std::env::var_os(PASSWORD).is_none() {
        let second = password("The same again: ")?;
        if first != second {
            return Err(Fail::usage("these are two different passwords"));
        }
    }
    Ok(first)
}

/// The first line of a file.
pub(super) fn read_password(path: &Path) -> Result<String, Fail> {
    let text = fs::read_to_string(path).map_err(|e| Fail::usage(format!("{}: {e}", path.display())))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(Fail::usage(format!("{}: no password in it", path.display()))),
    }
}
