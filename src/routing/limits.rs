//! The quotas of routing, one table.

/// Devices of one user.
pub const DEVICES_MAX: u32 = 20;
/// Conversations of one user, the inbox not counted.
pub const CONVERSATIONS_MAX: u32 = 20_000;
/// Members of one group.
pub const MEMBERS_MAX: u32 = 100_000;
/// Users named in one creation of a group: each is one entry of the same frame.
pub const GROUP_CREATE_USERS_MAX: usize = 200;
/// Stretches of seqs kept for a member that came and went; older ones are no longer theirs.
pub const INTERVALS_MAX: usize = 16;
/// Bytes of a user's name, a channel's name, a group's label.
pub const NAME_BYTES_MAX: usize = 128;
/// The span from the first unanswered to the newest message id of a device.
pub const ID_SPAN_MAX: u64 = 256;
/// Takeovers of one device within [`TAKEOVER_WINDOW_MS`] before newcomers are told to wait.
pub const TAKEOVERS_MAX: u32 = 4;
/// See [`TAKEOVERS_MAX`].
pub const TAKEOVER_WINDOW_MS: u64 = 60_000;
/// Conversations with news beyond which a catch-up in mode *all* is refused and one in mode *skip* is a reset.
pub const NEWS_MAX: usize = 500;
/// Entries missed in one conversation beyond which mode *skip* sends one head.
pub const SKIP_ENTRIES_MAX: u64 = 200;
/// Items of one catch-up in mode *skip*; the rest comes as heads.
pub const SKIP_ITEMS_MAX: usize = 2_000;
/// Bytes of one catch-up in mode *skip*; the rest comes as heads.
pub const SKIP_BYTES_MAX: usize = 1 << 20;
/// Items ready in a lane that its connection has not taken yet; beyond, the lane is behind and reads from the log.
pub const LANE_QUEUE_ITEMS_MAX: usize = 256;
/// Bytes ready in a lane, likewise.
pub const LANE_QUEUE_BYTES_MAX: usize = 256 << 10;
/// Positions without anything for a device after which it is told so.
pub const PROGRESS_POSITIONS: u64 = 100_000;
