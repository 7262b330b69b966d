//! Looking around: which conversation is open, how far it is scrolled, how far it was read.

use super::{Model, Wish};

impl Model {
    /// Opens a conversation in the window.
    pub(in crate::cli::chat) fn show(&mut self, id: u64) {
        self.open = Some(id);
        self.scroll = 0;
        self.load_newest_if_behind(id);
        self.look_around(id);
        self.mark_read();
        self.wish(Wish::Company(id));
    }

    /// The next conversation in the list, or the one before.
    pub(in crate::cli::chat) fn step(&mut self, down: bool) {
        let at = self.talks.iter().position(|talk| Some(talk.id) == self.open);
        let next = match (at, down) {
            (None, _) => 0,
            (Some(at), true) => (at + 1).min(self.talks.len().saturating_sub(1)),
            (Some(at), false) => at.saturating_sub(1),
        };
        if let Some(id) = self.talks.get(next).map(|talk| talk.id)
            && Some(id) != self.open
        {
            self.show(id);
        }
    }

    /// Scrolls; `rows` and `height` are those of the history as it was drawn last.
    pub(in crate::cli::chat) fn scroll_by(&mut self, up: bool, by: usize, rows: usize, height: usize) {
        let highest = rows.saturating_sub(height);
        self.scroll = if up { (self.scroll + by).min(highest) } else { self.scroll.saturating_sub(by) };
        if up && self.scroll + height >= rows {
            self.load_older();
        }
    }

    pub(super) fn load_older(&mut self) {
        let Some(id) = self.open else { return };
        let Some(talk) = self.talk_mut(id) else { return };
        if !talk.loading && !talk.complete && talk.loaded_from > 1 {
            talk.loading = true;
            let before = talk.loaded_from;
            self.wish(Wish::Older { conversation: id, before });
        }
    }

    pub(super) fn load_newest_if_behind(&mut self, id: u64) {
        let Some(talk) = self.talk_mut(id) else { return };
        let has_newest = talk.loaded_to >= talk.head_seq;
        let has_screen = talk.complete || talk.lines.len() >= 50;
        let is_whole = has_newest && has_screen;
        if !talk.loading && !is_whole {
            talk.loading = true;
            self.wish(Wish::Older { conversation: id, before: 0 });
        }
    }

    pub(super) fn mark_read(&mut self) {
        let Some(id) = self.open else { return };
        let Some(talk) = self.talk_mut(id) else { return };
        (talk.unread, talk.mentions) = (0, 0);
        // A mark, be it the same, ends that it is shown as unread.
        if talk.head_seq > talk.mark || talk.settings.marked_unread {
            talk.settings.marked_unread = false;
            talk.mark = talk.head_seq;
            let seq = talk.head_seq;
            self.wishes.retain(|wish| !matches!(wish, Wish::Mark { conversation, .. } if *conversation == id));
            self.wish(Wish::Mark { conversation: id, seq });
        }
    }

    pub(super) fn sort(&mut self) {
        self.talks.sort_by_key(|talk| {
            (talk.settings.archived, !talk.settings.pinned, std::cmp::Reverse(talk.head_time), talk.id)
        });
    }

    /// Unread messages in all.
    pub(in crate::cli::chat) fn unread(&self) -> u64 {
        self.talks.iter().map(|talk| talk.unread).sum()
    }
}
