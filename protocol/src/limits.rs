//! Every bound of the wire, once, with its arithmetic. SPEC chapter "Limits" is held to this file by a test.

use crate::packet::Window;

const KIB: u32 = 1024;
const SECOND_MS: u32 = 1000;

/// The version this crate speaks.
pub const VERSION: u32 = 1;
/// The ALPN name of the wire.
pub const ALPN: &[u8] = b"longwire/1";
/// The port where a broker listens unless told otherwise.
pub const PORT: u16 = 14000;

/// The largest frame before `Connected`: a token of 3 KiB, a cursor of at most 1 KiB less what stands around them.
/// What a stranger can make the broker hold is this much and no more.
pub const PRE_AUTH_FRAME_BYTES_MAX: u32 = 4 * KIB;
/// The largest content of an entry.
pub const PAYLOAD_BYTES_MAX: u32 = 192 * KIB;
/// The largest frame after `Connected`: the largest content, and 4 KiB for what stands around it.
pub const FRAME_BYTES_MAX: u32 = PAYLOAD_BYTES_MAX + 4 * KIB;
/// The largest frame a client lets a broker announce.
pub const FRAME_BYTES_CEILING: u32 = 1024 * KIB;
/// How deep messages nest: `Packet`, `Response`, `HistoryPage`, `Item`, `Own`, `Entry`, `Joined` are seven; one to spare.
pub const NESTING_MAX: usize = 8;

/// The most features in `Connect` or `Connected`.
pub const FEATURES_MAX: usize = 32;
/// The longest name of a feature.
pub const FEATURE_BYTES_MAX: usize = 64;
/// The longest name of a device.
pub const DEVICE_NAME_BYTES_MAX: usize = 64;
/// The longest name of a user.
pub const USER_NAME_BYTES_MAX: usize = 64;
/// The longest name of a channel.
pub const CHANNEL_NAME_BYTES_MAX: usize = 256;
/// The longest label of a group.
pub const LABEL_BYTES_MAX: usize = 256;
/// The longest reference to a group's picture.
pub const PICTURE_BYTES_MAX: usize = 1024;
/// The longest description of a group.
pub const DESCRIPTION_BYTES_MAX: usize = 1024;
/// The shortest key with which a group is joined: 128 bits, if they are chosen by chance.
pub const JOIN_KEY_BYTES_MIN: usize = 16;
/// The longest key with which a group is joined.
pub const JOIN_KEY_BYTES_MAX: usize = 64;
/// The longest `agent`, which is for people who read logs.
pub const AGENT_BYTES_MAX: usize = 64;
/// The longest cursor.
pub const CURSOR_BYTES_MAX: usize = 1024;
/// The most users that `CreateGroup` may name: their names of 64 bytes fit a frame twice over.
pub const GROUP_USERS_MAX: usize = 1000;
/// The most users that `UsersRequest` may name.
pub const USERS_MAX: usize = 200;
/// The most users that one message mentions: each gets an entry of its own in its inbox.
pub const MENTIONS_MAX: usize = 50;
/// The most attachments of one message.
pub const ATTACHMENTS_MAX: usize = 16;
/// The most bytes of a message's attachments, encoded: with fifty mentions they fit what stands around a content.
pub const ATTACHMENTS_BYTES_MAX: usize = 2 * KIB as usize;
/// The longest reaction.
pub const REACTION_BYTES_MAX: usize = 32;
/// The most different reactions to one message.
pub const REACTIONS_MAX: usize = 64;
/// The most edits of one message.
pub const EDITS_MAX: usize = 100;
/// The longest time that a message with an expiry is shown: a year.
pub const EXPIRES_MS_MAX: u64 = 366 * 86_400_000;
/// The most messages of one conversation that are yet to expire.
pub const EXPIRING_MAX: usize = 1_000;
/// The most messages of one conversation that a user hides.
pub const HIDDEN_MAX: usize = 1_000;
/// The most members of a conversation whose marks reach the others by themselves.
pub const RECEIPTS_MEMBERS_MAX: u32 = 200;
/// The most items in one `Deliver`: the largest window.
pub const DELIVER_ITEMS_MAX: usize = WINDOW_ITEMS_MAX as usize;

/// The most entries, conversations or members in a page.
pub const PAGE_ITEMS_MAX: usize = 200;
/// The most bytes of items in a page of history, unless its first item alone is larger.
pub const PAGE_BYTES_MAX: usize = 128 * KIB as usize;

/// How much of the newest message's content a list of conversations has.
pub const PREVIEW_BYTES_MAX: usize = 512;

/// The most ids from the oldest unanswered to the newest, both included.
pub const ID_SPAN_MAX: u64 = 256;
/// How much a client may have published and unanswered, unless the broker is set otherwise.
pub const PUBLISH_WINDOW: Window = Window { items: 64, bytes: 256 * KIB };
/// The most requests a client may have unanswered.
pub const REQUESTS_MAX: u32 = 8;
/// The largest frame of a request: a new token of 3 KiB, or 200 users of ten bytes, and what stands around them. So
/// what a session asks for takes a broker 32 KiB at most while it waits.
pub const REQUEST_BYTES_MAX: usize = 4 * KIB as usize;

/// The window of the express lane for a client that names none.
pub const EXPRESS_WINDOW: Window = Window { items: 64, bytes: 64 * KIB };
/// The window of the bulk lane for a client that names none.
pub const BULK_WINDOW: Window = Window { items: 256, bytes: 256 * KIB };
/// The fewest items of a delivery window.
pub const WINDOW_ITEMS_MIN: u32 = 1;
/// The most items of a delivery window.
pub const WINDOW_ITEMS_MAX: u32 = 4096;
/// The fewest bytes of a delivery window: what the smallest clients have to spare.
pub const WINDOW_BYTES_MIN: u32 = 512;
/// The most bytes of a delivery window.
pub const WINDOW_BYTES_MAX: u32 = 4096 * KIB;

/// The shortest time between heartbeats.
pub const HEARTBEAT_MS_MIN: u32 = 15 * SECOND_MS;
/// The longest time between heartbeats.
pub const HEARTBEAT_MS_MAX: u32 = 600 * SECOND_MS;
/// The time between heartbeats for a client that wishes for none.
pub const HEARTBEAT_MS: u32 = 60 * SECOND_MS;
/// How long a client waits for any byte after its heartbeat.
pub const HEARTBEAT_ANSWER_MS: u64 = 10_000;

/// How long the TLS handshake may take, from accept.
pub const TLS_MS: u64 = 5_000;
/// How long a socket waits for its turn to shake hands. A client that waited longer is about to give up, and would have the
/// handshake begun for nothing.
pub const TLS_TURN_MS: u64 = 4_000;
/// The time for a handshake from its turn on, however long that took to come: or who waited longest would have it begun for
/// nothing.
pub const TLS_MS_MIN: u64 = 2_000;
/// How long it may take until `Connected`, from accept; a client gives a broker the same.
pub const AUTH_MS: u64 = 10_000;
/// How long stored items may wait for their ack.
pub const ACK_DELAY_MS: u64 = 1_000;
/// How long an item may be unacked before the broker asks: the ack's own delay, and nine seconds to store and travel.
pub const ACK_OVERDUE_MS: u64 = 10_000;
/// How long a client may take to answer an `AckRequest` once it has it.
pub const ACK_ANSWER_DELAY_MS: u64 = 10_000;
/// How long the broker waits for the answer to an `AckRequest`, before it counts the bytes that are under way.
pub const ACK_ANSWER_MS: u64 = 20_000;
/// What is added to [`ACK_ANSWER_MS`] for each KiB unacked: a link of 8 kbit/s is not cut off.
pub const ACK_ANSWER_PER_KIB_MS: u64 = 1_000;
/// How often a cursor leaves while items flow.
pub const CURSOR_MS: u64 = 1_000;

/// How many missed entries of one conversation a `SKIP` catch-up sends before it sends one `Head`.
pub const CATCH_UP_ENTRIES_MAX: u64 = 200;
/// How many items a `SKIP` catch-up sends in all.
pub const CATCH_UP_ITEMS_MAX: u64 = 2_000;
/// How many bytes a `SKIP` catch-up sends in all.
pub const CATCH_UP_BYTES_MAX: u64 = 1024 * KIB as u64;
/// How many conversations with news a catch-up takes on.
pub const CATCH_UP_CONVERSATIONS_MAX: usize = 500;

/// The most devices of a user.
pub const DEVICES_MAX: usize = 20;
/// How long a device may stay away before it is forgotten: 60 days.
pub const DEVICE_UNSEEN_MS: u64 = 60 * 86_400_000;
/// The longest `display_name` of a profile.
pub const DISPLAY_NAME_BYTES_MAX: usize = 128;
/// The longest `picture` of a profile.
pub const PROFILE_PICTURE_BYTES_MAX: usize = 512;
/// The longest `data` of a profile.
pub const PROFILE_DATA_BYTES_MAX: usize = 1024;
/// The most users that `ProfilesRequest` may name: their profiles fit a frame.
pub const PROFILES_MAX: usize = 50;
/// The most contacts of a user.
pub const CONTACTS_MAX: u32 = 5_000;
/// The longest `nick` of a contact.
pub const NICK_BYTES_MAX: usize = 256;
/// The longest `data` of a contact: a page of contacts fits a frame.
pub const CONTACT_DATA_BYTES_MAX: usize = 256;
/// The most users that a user blocks.
pub const BLOCKED_MAX: usize = 1_000;
/// The fewest bytes of a new password.
pub const PASSWORD_BYTES_MIN: usize = 8;
/// The most bytes of a password.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// The most channels a session watches.
pub const WATCHES_MAX: usize = 100;

/// The longest content of a signal.
pub const SIGNAL_BYTES_MAX: usize = KIB as usize;
/// What a signal costs of the time that a session has for them: five a second.
pub const SIGNAL_EVERY_MS: u64 = 200;
/// How many signals a session may send at once.
pub const SIGNALS_AHEAD: u64 = 50;
/// The most members of a conversation, and watchers of a channel, that signals are carried to.
pub const SIGNAL_READERS_MAX: usize = 200;
/// How long someone is away before that is told.
pub const OFFLINE_AFTER_MS: u64 = 30_000;
/// The most conversations of one user, the inbox not counted.
pub const CONVERSATIONS_MAX: u32 = 20_000;
/// The most members of one group.
pub const MEMBERS_MAX: u32 = 100_000;
/// The most users who are banned from one group: each is a row that its admins make, and 100 a second of them name users
/// that nobody ever saw.
pub const BANNED_MAX: u32 = 10_000;
/// The most users whose presence a session is told.
pub const PRESENCES_MAX: usize = 500;
/// Users of whose deliveries one session is told, in all conversations: a group of 200, and as many direct ones as anyone
/// looks at.
pub const FOLLOWED_MAX: usize = 500;
/// How long a device is gone before its will is published, if that does not say; and the least and the most it may say.
pub const WILL_AFTER_MS: u32 = 30 * SECOND_MS;
/// See [`WILL_AFTER_MS`].
pub const WILL_AFTER_MS_MIN: u32 = SECOND_MS;
/// See [`WILL_AFTER_MS`].
pub const WILL_AFTER_MS_MAX: u32 = 86_400 * SECOND_MS;
/// The most conversations of which a device is delivered less than everything.
pub const LEVELS_MAX: usize = 1_000;
/// How long what is withheld by a level waits to be reported, in the foreground.
pub const WITHHELD_MS: u64 = 1_000;
/// How long what is withheld waits to be reported, in the background.
pub const WITHHELD_BACKGROUND_MS: u64 = 60_000;
/// The longest content of a will, which is kept at hand until the device goes.
pub const WILL_BYTES_MAX: usize = 4 * KIB as usize;
/// The longest name that a provider of push has for a device; an endpoint of Web Push is a URL.
pub const PUSH_TARGET_BYTES_MAX: usize = 2 * KIB as usize;

/// The shortest time for which entries are kept.
pub const RETENTION_MS_MIN: u64 = SECOND_MS as u64;
/// The longest, where they are not kept for good.
pub const RETENTION_MS_MAX: u64 = 10 * 366 * 24 * 3600 * SECOND_MS as u64;
/// The longest for which entries are kept that not every device has.
pub const UNDELIVERED_MS_MAX: u64 = 366 * 24 * 3600 * SECOND_MS as u64;
/// The most members of a conversation whose entries go as every device has them: each is looked at.
pub const DELIVERED_MEMBERS_MAX: u32 = 200;

// What must hold between them.
const _: () = {
    assert!(PAYLOAD_BYTES_MAX < FRAME_BYTES_MAX && FRAME_BYTES_MAX <= FRAME_BYTES_CEILING);
    // A page of history is one frame: its items, or its single large one, fit.
    assert!(PAGE_BYTES_MAX < FRAME_BYTES_MAX as usize);
    assert!(2 * GROUP_USERS_MAX * (USER_NAME_BYTES_MAX + 2) < FRAME_BYTES_MAX as usize);
    assert!(ATTACHMENTS_BYTES_MAX + MENTIONS_MAX * 10 + 1024 < (FRAME_BYTES_MAX - PAYLOAD_BYTES_MAX) as usize);
    assert!(PUBLISH_WINDOW.items as u64 <= ID_SPAN_MAX);
    // A full run of the largest content fits the publish window.
    assert!(PUBLISH_WINDOW.bytes >= FRAME_BYTES_MAX);
    assert!(HEARTBEAT_ANSWER_MS < HEARTBEAT_MS_MIN as u64);
    assert!(ACK_DELAY_MS < ACK_OVERDUE_MS && ACK_ANSWER_DELAY_MS < ACK_ANSWER_MS);
    assert!(TLS_MS < AUTH_MS && TLS_TURN_MS + TLS_MS_MIN < AUTH_MS);
    // A page of profiles, and one of contacts, is one frame.
    let profile =
        DISPLAY_NAME_BYTES_MAX + PROFILE_PICTURE_BYTES_MAX + PROFILE_DATA_BYTES_MAX + USER_NAME_BYTES_MAX + 32;
    assert!(PROFILES_MAX * profile < FRAME_BYTES_MAX as usize);
    let contact = NICK_BYTES_MAX + CONTACT_DATA_BYTES_MAX + USER_NAME_BYTES_MAX + 32;
    assert!(PAGE_ITEMS_MAX * contact < FRAME_BYTES_MAX as usize);
};

/// A delivery window as wished for, brought within bounds; `None` and zeros mean the default of the lane.
#[must_use]
pub fn delivery_window(wish: Option<Window>, default: Window) -> Window {
    let wish = wish.unwrap_or_default();
    let or_default = |wish: u32, default: u32| if wish == 0 { default } else { wish };
    Window {
        items: or_default(wish.items, default.items).clamp(WINDOW_ITEMS_MIN, WINDOW_ITEMS_MAX),
        bytes: or_default(wish.bytes, default.bytes).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
    }
}
