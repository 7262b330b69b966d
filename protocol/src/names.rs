//! What a name may be: of a user, a device or a channel, in a token as in a packet (SPEC R5.5-9). Names are compared byte
//! by byte; what looks alike and is spelled otherwise is another name.

/// Whether this can be a name of at most `bytes_max` bytes: not empty, and each character seen.
#[must_use]
pub fn is_name(name: &str, bytes_max: usize) -> bool {
    !name.is_empty() && name.len() <= bytes_max && !name.chars().any(is_unseen)
}

/// Whether a character shows nothing, or changes how others are shown: controls, joiners, marks and overrides of
/// direction, separators of lines, tags. With them two names could look the same in any typeface.
#[must_use]
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_seen() {
        for name in ["a", "Zoë’s phone", "алиса", "愛", "a b", &"x".repeat(64)] {
            assert!(is_name(name, 64), "{name:?}");
        }
        for name in ["", "a\0", "a\nb", "\u{7f}", "\u{85}", "a\u{200b}", "\u{202e}ecila", "a\u{200d}", "\u{feff}a"] {
            assert!(!is_name(name, 64), "{name:?}");
        }
        assert!(!is_name(&"x".repeat(65), 64) && !is_name(&"é".repeat(33), 64));
    }
}
