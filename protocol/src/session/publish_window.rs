//! What a client has published and has no answer to yet. Both ends keep one: the client so as not to exceed the window,
//! the broker to see that it does not. The broker's frees an id when the answer *leaves*, so it never holds more than
//! the client's, and a client that does not read its answers runs into its own window.

use super::{Room, queue::Queue};
use crate::packet::Window;

/// Publishes without an answer, oldest first.
#[derive(Debug)]
pub(super) struct PublishWindow {
    window: Window,
    bytes: u32,
    open: Queue<Open>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    message_id: u64,
    conversation: u64,
    bytes: u32,
    /// The answer waits to leave.
    answered: bool,
}

impl PublishWindow {
    pub(super) const fn new(window: Window) -> Self {
        Self { window, bytes: 0, open: Queue::new() }
    }

    pub(super) const fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    pub(super) fn room(&self) -> Room {
        Room::new(self.window, self.open.len() as u32, self.bytes)
    }

    /// Whether this id is published and not answered.
    pub(super) fn contains(&self, message_id: u64) -> bool {
        self.open.iter().any(|open| open.message_id == message_id)
    }

    pub(super) fn push(&mut self, message_id: u64, conversation: u64, bytes: usize) {
        let bytes = bytes as u32;
        self.bytes += bytes;
        self.open.push_back(Open { message_id, conversation, bytes, answered: false });
    }

    /// Notes that the answer waits to leave; gives the conversation, or `None` if the id has no answer to wait for.
    pub(super) fn answer(&mut self, message_id: u64) -> Option<u64> {
        let open = self.open.get_mut().iter_mut().find(|open| open.message_id == message_id && !open.answered)?;
        open.answered = true;
        Some(open.conversation)
    }

    /// Frees the room of an id.
    pub(super) fn free(&mut self, message_id: u64) -> bool {
        let Some(at) = self.open.iter().position(|open| open.message_id == message_id) else { return false };
        if let Some(open) = self.open.get_mut().remove(at) {
            self.bytes -= open.bytes;
        }
        true
    }

    pub(super) fn len(&self) -> u32 {
        self.open.len() as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Gives back memory that nothing uses.
    pub(super) fn shrink(&mut self) {
        self.open.shrink();
    }
}
