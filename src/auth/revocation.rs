//! What the operator took back: a file of lines, read at start and on SIGHUP.

use std::collections::{HashMap, HashSet};

use super::Identity;

/// Tokens and users that are no longer believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    tokens: HashSet<Box<str>>,
    /// Of these users, tokens made before the time (seconds since 1970).
    users: HashMap<Box<str>, u64>,
}

/// A line that is no revocation.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {text:?} is neither \"token ID\" nor \"user NAME BEFORE\" (seconds since 1970)")]
pub struct RevocationError {
    /// Its number, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
}

impl Revocations {
    /// Reads a file's text: a line each, `token ID` or `user NAME BEFORE`; empty lines and `#` comments are skipped.
    ///
    /// # Errors
    /// The first line that is neither: a file that is not understood is not applied at all.
    pub fn parse(text: &str) -> Result<Self, RevocationError> {
        let mut revocations = Self::default();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
            match words[..] {
                [] => {}
                ["token", id] => drop(revocations.tokens.insert(id.into())),
                ["user", name, before] if before.parse::<u64>().is_ok() => {
                    let before = before.parse().unwrap_or(u64::MAX);
                    let entry = revocations.users.entry(name.into()).or_default();
                    *entry = before.max(*entry);
                }
                _ => return Err(RevocationError { line: number + 1, text: line.into() }),
            }
        }
        Ok(revocations)
    }

    /// Whether this identity is taken back.
    #[must_use]
    pub fn revokes(&self, identity: &Identity) -> bool {
        self.revokes_token(&identity.user, &identity.id, identity.issued)
    }

    /// Whether this token of a user is taken back, by its id or by when it was made (seconds since 1970).
    #[must_use]
    pub fn revokes_token(&self, user: &str, id: &str, issued: u64) -> bool {
        (!id.is_empty() && self.tokens.contains(id)) || self.users.get(user).is_some_and(|before| issued < *before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, id: &str, issued: u64) -> Identity {
        Identity {
            user: user.into(),
            device: None,
            publish: vec![],
            read: vec![],
            moderate: vec![],
            expires: u64::MAX,
            issued,
            id: id.into(),
            is_admin: false,
            generation: None,
        }
    }

    #[test]
    fn tokens_and_earlier_tokens_of_users_are_revoked() {
        let list = Revocations::parse("# lost phone\ntoken abc\n\nuser bob 100 # left\n").expect("a list");
        assert!(list.revokes(&identity("alice", "abc", 500)));
        assert!(!list.revokes(&identity("alice", "", 500)));
        assert!(list.revokes(&identity("bob", "x", 99)));
        assert!(!list.revokes(&identity("bob", "x", 100)));
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        let error = Revocations::parse("token a\nuser bob soon").expect_err("no time");
        assert_eq!((error.line, error.text.as_str()), (2, "user bob soon"));
    }
}
