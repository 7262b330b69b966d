//! What a token lets its user do with channels: patterns over their names. And with which token a device left something.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Patterns over channel names, as in SPEC: segments split by `/`; `*` stands for exactly one segment, `**` at the
/// end for any rest, at least one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(Vec<Box<str>>);

/// What a session may do with channels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Channels it may publish to.
    pub publish: Patterns,
    /// Channels it may read.
    pub read: Patterns,
    /// Channels it moderates.
    pub moderate: Patterns,
    /// Whether it may administer accounts.
    pub is_admin: bool,
}

/// The token with which a device came last, or was refreshed, of those that left something to be done while it is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bearer {
    /// The token's own id; empty where it has none.
    pub token: Box<str>,
    /// When it was made, in seconds since 1970; 0 where that is not known.
    pub issued: u64,
}

/// Says of a user's name and a token of it whether the operator took that back.
type Judge = dyn Fn(&str, &Bearer) -> bool + Send + Sync;

/// What the operator took back, as far as it concerns what devices left: nothing, unless someone says what.
#[derive(Clone, Default)]
pub struct TakenBack(Option<Arc<Judge>>);

impl TakenBack {
    /// What this says.
    pub fn by(judge: impl Fn(&str, &Bearer) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(judge)))
    }

    /// Whether this token of a user was.
    #[must_use]
    pub fn has(&self, user: &str, bearer: &Bearer) -> bool {
        self.0.as_ref().is_some_and(|judge| judge(user, bearer))
    }
}

impl std::fmt::Debug for TakenBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TakenBack")
    }
}

impl Grants {
    /// Whether it takes from a channel what anybody said there (SPEC R12-4).
    #[must_use]
    pub fn moderates(&self, channel: &str) -> bool {
        self.is_admin || self.moderate.admit(channel)
    }
}

impl Patterns {
    /// Patterns from their text.
    pub fn new(patterns: impl IntoIterator<Item = impl Into<Box<str>>>) -> Self {
        Self(patterns.into_iter().map(Into::into).collect())
    }

    /// Whether one of them matches the name. Costs one walk over the name for each pattern.
    #[must_use]
    pub fn admit(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, name))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let (mut parts, mut segments) = (Some(pattern), Some(name));
    loop {
        match (parts, segments) {
            (Some("**"), Some(_)) | (None, None) => return true,
            (Some(rest_of_pattern), Some(rest_of_name)) => {
                let ((part, parts_behind), (segment, segments_behind)) = (cut(rest_of_pattern), cut(rest_of_name));
                if part != "*" && part != segment {
                    return false;
                }
                (parts, segments) = (parts_behind, segments_behind);
            }
            _ => return false,
        }
    }
}

/// The first segment, and what stands behind its slash, if there is one. Asked for each recipient of each message.
fn cut(path: &str) -> (&str, Option<&str>) {
    match path.bytes().position(|byte| byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPEC R12-1.
    #[test]
    fn patterns_match_whole_segments() {
        for (pattern, name, expected) in [
            ("news", "news", true),
            ("news", "newsletter", false),
            ("*", "news", true),
            ("*", "news/today", false),
            ("**", "news/today", true),
            ("sensors/*/temperature", "sensors/4/temperature", true),
            ("sensors/*/temperature", "sensors/4/5/temperature", false),
            ("sensors/**", "sensors/4/5", true),
            ("sensors/**", "sensors", false),
            ("**/x", "a/x", false),
            ("a*", "ab", false),
            ("sensors/*", "sensors", false),
            ("sensors", "sensors/4", false),
        ] {
            assert_eq!(Patterns::new([pattern]).admit(name), expected, "{pattern} on {name}");
        }
    }
}
