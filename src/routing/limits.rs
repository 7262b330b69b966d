//! The quotas of routing: those that the wire names, and those that only this broker knows.

pub use longwire_protocol::limits::{
    ATTACHMENTS_BYTES_MAX, BANNED_MAX, BLOCKED_MAX, CATCH_UP_BYTES_MAX, CATCH_UP_CONVERSATIONS_MAX,
    CATCH_UP_ENTRIES_MAX, CATCH_UP_ITEMS_MAX, CHANNEL_NAME_BYTES_MAX, CONTACT_DATA_BYTES_MAX, CONTACTS_MAX,
    CONVERSATIONS_MAX, DEVICE_UNSEEN_MS, DEVICES_MAX, DISPLAY_NAME_BYTES_MAX, EDITS_MAX, EXPIRES_MS_MAX, EXPIRING_MAX,
    GROUP_USERS_MAX, HIDDEN_MAX, ID_SPAN_MAX, LABEL_BYTES_MAX, LEVELS_MAX, MEMBERS_MAX, MENTIONS_MAX, NICK_BYTES_MAX,
    PAGE_BYTES_MAX, PAGE_ITEMS_MAX, PICTURE_BYTES_MAX, PRESENCES_MAX, PROFILE_DATA_BYTES_MAX,
    PROFILE_PICTURE_BYTES_MAX, PROFILES_MAX, REACTION_BYTES_MAX, REACTIONS_MAX, RECEIPTS_MEMBERS_MAX,
    SIGNAL_READERS_MAX, USER_NAME_BYTES_MAX, USERS_MAX, WATCHES_MAX, WITHHELD_BACKGROUND_MS, WITHHELD_MS,
};

/// How much of what grows with its users a broker lets them have, as its operator set it: at most what the wire's limits
/// say (SPEC R11-1). What is there already when one is lowered stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Conversations of one user, the inbox not counted.
    pub conversations: u32,
    /// Devices of one user.
    pub devices: usize,
    /// Contacts of one user.
    pub contacts: u32,
    /// Members of one group.
    pub members: u32,
    /// Users who are banned from one group.
    pub bans: u32,
    /// Channels that one session watches.
    pub watches: usize,
    /// Users whose presence one session is told.
    pub presences: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            conversations: CONVERSATIONS_MAX,
            devices: DEVICES_MAX,
            contacts: CONTACTS_MAX,
            members: MEMBERS_MAX,
            bans: BANNED_MAX,
            watches: WATCHES_MAX,
            presences: PRESENCES_MAX,
        }
    }
}

impl Quotas {
    /// Of the conversations of a user, what others can fill by opening direct ones and adding the user to groups: the rest,
    /// a fifth, is left to what the user does itself.
    #[must_use]
    pub fn conversations_by_others(self) -> u32 {
        self.conversations - self.conversations / 5
    }
}

/// Conversations that a user makes and users that it names in doing so, at once: ten groups of a thousand, some 0.1 s of
/// the commit thread.
pub const MAKES_MAX: u32 = 10_000;
/// The same a second, from then on: 0.1 % of the commit thread for each user that does nothing else.
pub const MAKES_PER_SECOND: u32 = 100;
/// Publishes at once, where an operator bounds them: as many as in so many seconds.
pub const RATE_AHEAD_SECONDS: u32 = 10;
/// Looks at once that the requests of a user take: as many as in so many seconds.
pub const READS_AHEAD_SECONDS: u32 = 2;
/// How long a device may be seen without a record of it: it is online all the while, or comes and goes.
pub const SEEN_EVERY_MS: u64 = 3_600_000;
/// Partitions that one page of accounts goes through: an administrator's look, which others shall not notice.
pub const ACCOUNTS_PARTITIONS: u64 = 256;
/// Stretches of seqs kept for a member that came and went; older ones are no longer theirs.
pub const INTERVALS_MAX: usize = 16;
/// Messages that mention a user, kept for each conversation; older ones are no longer counted.
pub const MENTIONS_KEPT_MAX: usize = 256;
/// Takeovers of one device within [`TAKEOVER_WINDOW_MS`] before newcomers are told to wait.
pub const TAKEOVERS_MAX: u32 = 4;
/// See [`TAKEOVERS_MAX`].
pub const TAKEOVER_WINDOW_MS: u64 = 60_000;
/// Items ready in a lane that its connection has not taken yet; beyond, the lane is behind and reads from the log.
pub const LANE_QUEUE_ITEMS_MAX: usize = 256;
/// Bytes ready in a lane, likewise.
pub const LANE_QUEUE_BYTES_MAX: usize = 256 << 10;
/// Subscriptions to presence of all sessions: some 150 MB at the most.
pub const PRESENCES_IN_ALL_MAX: usize = 1_000_000;
/// Users of whose deliveries sessions are told, in all: some 80 MB at the most.
pub const FOLLOWED_IN_ALL_MAX: usize = 1_000_000;
/// Conversations of which one device was told something that it has not acked, and that were not gone through since; it
/// is told of no other meanwhile.
pub const PUSH_TOLD_MAX: usize = 64;
/// Positions without anything for a device after which it is told so.
pub const PROGRESS_POSITIONS: u64 = 100_000;
/// Conversations that let entries go after a time, some 80 bytes of memory each.
pub const TIMED_MAX: usize = 500_000;
/// Places at which what a conversation keeps may be divided: each lets go of a sixteenth of its time at the most.
pub const PLACES_MAX: usize = 48;
/// Erasures under way.
pub const ERASURES_MAX: usize = 100;
/// Contacts of an erased user that go in one step.
pub const ERASED_CONTACTS_MAX: u32 = 500;
/// Conversations that an erased user leaves in one step.
pub const ERASED_CONVERSATIONS_MAX: usize = 32;
/// Members among whom one is looked for who takes over the group of an erased owner.
pub const HEIRS_MAX: usize = 1_000;
