//! What a notification says, in JSON: the same for the webhook and for Web Push.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use crate::Notification;

/// See the module.
#[derive(Debug, Serialize)]
pub struct Payload<'a> {
    conversation: u64,
    seq: u64,
    badge: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    /// In base64: content is bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl<'a> Payload<'a> {
    /// Of a notification.
    #[must_use]
    pub fn of(notification: &'a Notification) -> Self {
        let names = notification.names.as_ref();
        Self {
            conversation: notification.conversation,
            seq: notification.seq,
            badge: notification.badge,
            sender: names.map(|(sender, _)| sender.as_str()),
            label: names.map(|(_, label)| label.as_str()),
            content: notification.content.as_ref().map(|content| BASE64_STANDARD.encode(content)),
        }
    }
}

/// An id as it stands in headers: 32 hexadecimal digits.
#[must_use]
pub fn hex(id: u128) -> String {
    format!("{id:032x}")
}
