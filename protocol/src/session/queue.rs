//! A queue that takes one word while nothing is in it, as is so with all queues of a session at rest.

use std::collections::VecDeque;

/// See the module. What it allocated stays until [`Self::shrink`].
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "an empty deque takes four words, and a session has six of them")]
pub(super) struct Queue<T>(Option<Box<VecDeque<T>>>);

impl<T> Queue<T> {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn front(&self) -> Option<&T> {
        self.0.as_ref()?.front()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    pub(super) fn push_back(&mut self, item: T) {
        self.get_mut().push_back(item);
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        self.0.as_mut()?.pop_front()
    }

    /// The queue itself, for whatever else there is to do with it.
    pub(super) fn get_mut(&mut self) -> &mut VecDeque<T> {
        self.0.get_or_insert_default()
    }

    /// Gives back memory that nothing uses.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
