//! The line that is being typed.

/// A line of text and a caret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Input {
    text: String,
    /// A byte offset, always between two characters.
    caret: usize,
}

impl Input {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// What stands before the caret.
    pub(super) fn before(&self) -> &str {
        &self.text[..self.caret]
    }

    pub(super) fn take(&mut self) -> String {
        self.caret = 0;
        std::mem::take(&mut self.text)
    }

    pub(super) fn insert(&mut self, c: char) {
        self.text.insert(self.caret, c);
        self.caret += c.len_utf8();
    }

    pub(super) fn insert_text(&mut self, text: &str) {
        for c in text.chars().filter(|c| *c == '\n' || !c.is_control()) {
            self.insert(c);
        }
    }

    pub(super) fn left(&mut self) {
        self.caret -= self.before().chars().next_back().map_or(0, char::len_utf8);
    }

    pub(super) fn right(&mut self) {
        self.caret += self.text[self.caret..].chars().next().map_or(0, char::len_utf8);
    }

    pub(super) fn home(&mut self) {
        self.caret = 0;
    }

    pub(super) fn end(&mut self) {
        self.caret = self.text.len();
    }

    pub(super) fn backspace(&mut self) {
        let end = self.caret;
        self.left();
        self.text.replace_range(self.caret..end, "");
    }

    pub(super) fn delete(&mut self) {
        let begin = self.caret;
        self.right();
        self.text.replace_range(begin..self.caret, "");
        self.caret = begin;
    }

    /// Takes away the word before the caret.
    pub(super) fn delete_word(&mut self) {
        let end = self.caret;
        while self.before().ends_with(' ') {
            self.left();
        }
        while !self.before().is_empty() && !self.before().ends_with(' ') {
            self.left();
        }
        self.text.replace_range(self.caret..end, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_by_characters_and_words() {
        let mut input = Input::default();
        input.insert_text("grüße an alle\u{7}");
        assert_eq!(input.text(), "grüße an alle");
        input.delete_word();
        input.backspace();
        assert_eq!(input.text(), "grüße an");
        input.home();
        for _ in 0..3 {
            input.right();
        }
        input.delete();
        input.backspace();
        assert_eq!((input.text(), input.before()), ("gre an", "gr"));
        input.left();
        input.left();
        input.left();
        input.backspace();
        assert_eq!(input.take(), "gre an");
        assert_eq!(input, Input::default());
        input.delete();
        input.delete_word();
        assert_eq!(input, Input::default());
    }
}
