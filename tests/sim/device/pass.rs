//! The token of a device: what it lets the device do with channels, and how long.

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Pass {
    pub(crate) token: String,
    /// Its own id, by which it is revoked.
    pub(crate) id: String,
    /// When it ends, in seconds since 1970.
    pub(crate) expires: u64,
    pub(crate) read: &'static [&'static str],
    pub(crate) publish: &'static [&'static str],
    /// It lets the device erase users, say how long channels keep their entries, and recall what others said there.
    pub(crate) is_admin: bool,
}

/// Patterns that match every channel of a world.
pub(crate) const ALL: &[&str] = &["**"];

impl Pass {
    pub(crate) fn reads(&self, channel: &str) -> bool {
        self.read == ALL || self.read.contains(&channel)
    }

    pub(crate) fn publishes(&self, channel: &str) -> bool {
        self.publish == ALL || self.publish.contains(&channel)
    }
}
