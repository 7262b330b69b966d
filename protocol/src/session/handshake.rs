//! What a `Connect` must be before anyone looks at who sent it (SPEC R4-2).

use crate::{
    limits::{
        AGENT_BYTES_MAX, CURSOR_BYTES_MAX, DEVICE_NAME_BYTES_MAX, FEATURE_BYTES_MAX, PASSWORD_BYTES_MAX,
        USER_NAME_BYTES_MAX, VERSION,
    },
    names::is_name,
    packet,
    reason::{Reason, Refusal},
};

/// Why a `Connect` is refused unseen.
pub(super) fn check(connect: &packet::Connect) -> Result<(), Refusal> {
    if connect.version != VERSION {
        return Err(Refusal::connection(Reason::VersionUnsupported).because("this broker speaks version 1"));
    }
    check_arguments(connect).map_err(|what| Refusal::connection(Reason::InvalidArgument).because(what))
}

fn check_arguments(connect: &packet::Connect) -> Result<(), &'static str> {
    if !is_name(&connect.device, DEVICE_NAME_BYTES_MAX) {
        return Err("device: 1 to 64 bytes, and no character that is not seen");
    }
    if connect.cursor.len() > CURSOR_BYTES_MAX {
        return Err("cursor: at most 1024 bytes");
    }
    if connect.agent.len() > AGENT_BYTES_MAX {
        return Err("agent: at most 64 bytes");
    }
    if connect.features.iter().any(|feature| feature.len() > FEATURE_BYTES_MAX) {
        return Err("features: at most 64 bytes each");
    }
    if let Some(login) = &connect.login {
        if !connect.token.is_empty() {
            return Err("login: in place of a token, not beside one");
        }
        if !is_name(&login.user, USER_NAME_BYTES_MAX) {
            return Err("login.user: 1 to 64 bytes, and no character that is not seen");
        }
        if login.password.len() > PASSWORD_BYTES_MAX || login.new_password.len() > PASSWORD_BYTES_MAX {
            return Err("login: a password has at most 256 bytes");
        }
        if login.register && !login.new_password.is_empty() {
            return Err("login: who makes an account has no password yet");
        }
    }
    packet::StartKind::try_from(connect.start).map_err(|_| "start: no such kind")?;
    packet::CatchUpMode::try_from(connect.catch_up).map_err(|_| "catch_up: no such mode")?;
    Ok(())
}
