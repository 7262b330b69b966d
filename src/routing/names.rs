//! Which names users, channels and groups may have.

use longwire_protocol::names::is_name;
use longwire_protocol::reason::Reason;

use super::draft::No;
use super::limits::{CHANNEL_NAME_BYTES_MAX, LABEL_BYTES_MAX, USER_NAME_BYTES_MAX};

/// Checks a user's name.
///
/// # Errors
/// When it is empty, too long, or holds a character that is not seen.
pub(super) fn valid_user_name(name: &str) -> Result<(), No> {
    if !is_name(name, USER_NAME_BYTES_MAX) {
        return Err(No(Reason::InvalidArgument, "a user's name has 1 to 64 bytes and no character that is not seen"));
    }
    Ok(())
}

pub(super) fn valid_label(label: &str) -> Result<(), No> {
    if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(No(Reason::InvalidArgument, "a label has at most 256 bytes and no control characters"));
    }
    Ok(())
}

pub(super) fn valid_channel_name(name: &str) -> Result<(), No> {
    if !is_name(name, CHANNEL_NAME_BYTES_MAX) || name.contains('*') || name.split('/').any(str::is_empty) {
        const RULE: &str = "a channel's name has 1 to 256 bytes: segments split by /, none empty, no * and all seen";
        return Err(No(Reason::InvalidArgument, RULE));
    }
    Ok(())
}
