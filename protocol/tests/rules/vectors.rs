//! The vectors of `protocol/vectors`, in both directions. `LONGWIRE_GENERATE=1` writes them anew: they may be added to,
//! but a line that is there never changes.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use longwire_protocol::{
    Frame, FrameCodec, Refusal, frame,
    limits::{FRAME_BYTES_CEILING, FRAME_BYTES_MAX, PRE_AUTH_FRAME_BYTES_MAX},
    packet::{self, Packet, Window, packet::Kind, publish::Action, request::Op, response::Result as Answer},
};
use prost::Message as _;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use serde_json::{Value as Json, json};
use tokio_util::codec::Decoder as _;

/// A frame for every kind of packet, every action, every operation and every kind of item.
fn good() -> Vec<(&'static str, Option<Kind>)> {
    let mut vectors = vec![("heartbeat", None)];
    let mut add = |name, kind| vectors.push((name, Some(kind)));
    add("connect_smallest", Kind::Connect(packet::Connect { version: 1, device: "d".into(), ..Default::default() }));
    add(
        "connect_everything",
        Kind::Connect(packet::Connect {
            version: 1,
            features: vec!["a".into(), "b".into()],
            token: "aaaa.bbbb.cccc".into(),
            device: "Zoë’s phone".into(),
            incarnation: 3,
            first_unanswered: 300,
            heartbeat_ms: 240_000,
            express: Some(Window { items: 16, bytes: 4_096 }),
            bulk: Some(Window { items: 32, bytes: 8_192 }),
            item_bytes_max: 2_048,
            start: packet::StartKind::StoredCursor as i32,
            cursor: Bytes::from_static(&[0, 1, 2, 0xfe, 0xff]),
            catch_up: packet::CatchUpMode::All as i32,
            background: true,
            agent: "longwire/0.1".into(),
            login: None,
        }),
    );
    let login = packet::Login {
        user: "ada".into(),
        password: "correct horse".into(),
        new_password: "battery staple".into(),
        register: true,
        invitation: "aaaa.bbbb.cccc".into(),
    };
    add(
        "connect_login",
        Kind::Connect(packet::Connect {
            version: 1,
            device: "d".into(),
            login: Some(Box::new(login)),
            ..Default::default()
        }),
    );
    add(
        "connected",
        Kind::Connected(packet::Connected {
            user: 4_097,
            device: 8_193,
            session: 77,
            incarnation: 3,
            first_unanswered: 300,
            inbox: 4_099,
            heartbeat_ms_min: 15_000,
            heartbeat_ms_max: 600_000,
            payload_bytes_max: 196_608,
            frame_bytes_max: 200_704,
            publish: Some(Window { items: 64, bytes: 262_144 }),
            express: Some(Window { items: 64, bytes: 65_536 }),
            bulk: Some(Window { items: 256, bytes: 262_144 }),
            birth_unix_ms: 1_790_000_000_000,
            now: 34_359_738_368,
            cursor: packet::CursorVerdict::Reset as i32,
            reset_reason: packet::ResetReason::BeyondTail as i32,
            reset_common_time: 34_359_000_000,
            token_expires_in_ms: 3_600_000,
            features: vec!["typing".into()],
            token: String::new(),
        }),
    );
    add(
        "connected_with_token",
        Kind::Connected(packet::Connected {
            user: 4_097,
            device: 8_193,
            session: 77,
            incarnation: 3,
            first_unanswered: 1,
            inbox: 4_099,
            token: "aaaa.bbbb.cccc".into(),
            ..Default::default()
        }),
    );
    let publish = |id, action| Kind::Publish(packet::Publish { message_id: id, action, ..Default::default() });
    let content = Bytes::from_static("good morning ☀".as_bytes());
    let message =
        packet::Publish { conversation: 1_048_576, message_id: 5_000, content: content.clone(), ..Default::default() };
    add("publish_message", Kind::Publish(message.clone()));
    add("publish_moves_first_unanswered", Kind::Publish(packet::Publish { first_unanswered: 4_990, ..message }));
    let user = || String::from("ada");
    add("publish_open_direct", publish(1, Some(Action::OpenDirect(packet::OpenDirect { user: user() }))));
    let users = vec![user(), "bob".into()];
    add(
        "publish_create_group",
        publish(
            2,
            Some(Action::CreateGroup(packet::CreateGroup { label: "team".into(), users, ..Default::default() })),
        ),
    );
    let name = "news/local".into();
    add("publish_open_channel", publish(3, Some(Action::OpenChannel(packet::OpenChannel { name }))));
    let on = |id, action| {
        Kind::Publish(packet::Publish { conversation: 9, message_id: id, action: Some(action), ..Default::default() })
    };
    add("publish_join", on(4, Action::Join(packet::Join::default())));
    add("publish_leave", on(5, Action::Leave(packet::Leave {})));
    let role = packet::Role::Admin as i32;
    add("publish_set_role", on(6, Action::SetRole(packet::SetRole { user: user(), role })));
    add("publish_remove", on(7, Action::SetRole(packet::SetRole { user: user(), role: 0 })));
    add("publish_set_label", on(8, Action::SetLabel(packet::SetLabel { label: "the team".into() })));
    add("publish_set_mark", on(9, Action::SetMark(packet::SetMark { seq: 300 })));
    let profile = Some(profile());
    add("publish_set_profile", publish(10, Some(Action::SetProfile(packet::SetProfile { profile }))));
    let contact = packet::SetContact { user: user(), nick: "mum".into(), data: content.clone(), remove: false };
    add("publish_set_contact", publish(11, Some(Action::SetContact(contact))));
    let gone = packet::SetContact { user: user(), remove: true, ..Default::default() };
    add("publish_remove_contact", publish(12, Some(Action::SetContact(gone))));
    add("publish_block", publish(13, Some(Action::Block(packet::Block { user: user(), undo: false }))));
    add("publish_unblock", publish(14, Some(Action::Block(packet::Block { user: user(), undo: true }))));
    let label = packet::NameDevice { device: 8_193, label: "the old one".into() };
    add("publish_name_device", publish(15, Some(Action::NameDevice(label))));
    add("publish_revoke_device", publish(16, Some(Action::RevokeDevice(packet::RevokeDevice { device: 8_193 }))));
    let account = packet::SetAccount { user: user(), password_hash: "$argon2id$v=19$".into(), close: false };
    add("publish_set_account", publish(17, Some(Action::SetAccount(account))));
    let closed = packet::SetAccount { user: user(), close: true, ..Default::default() };
    add("publish_close_account", publish(18, Some(Action::SetAccount(closed))));
    let will = packet::Publish {
        conversation: 9,
        message_id: 10,
        content: content.clone(),
        action: Some(Action::SetWill(packet::SetWill { after_ms: 5_000 })),
        ..Default::default()
    };
    add("publish_set_will", Kind::Publish(will));
    add("publish_no_will", publish(11, Some(Action::SetWill(packet::SetWill { after_ms: 0 }))));
    let to = packet::Audience::Nobody as i32;
    let retention = Some(retention());
    add("publish_set_retention", on(19, Action::SetRetention(packet::SetRetention { retention })));
    add("publish_erase_user", publish(20, Some(Action::EraseUser(packet::EraseUser { user: user() }))));
    add("publish_show_presence", publish(12, Some(Action::ShowPresence(packet::ShowPresence { to }))));
    let to = packet::Audience::Contacts as i32;
    add("publish_show_presence_to_contacts", publish(12, Some(Action::ShowPresence(packet::ShowPresence { to }))));
    add("publish_hide_marks", publish(12, Some(Action::HideMarks(packet::HideMarks { undo: false }))));
    add("publish_show_marks", publish(12, Some(Action::HideMarks(packet::HideMarks { undo: true }))));
    let set_level = Action::SetLevel(packet::SetLevel { level: packet::Level::HeadsOnly.into() });
    let set_level = packet::Publish { conversation: 9, message_id: 13, action: Some(set_level), ..Default::default() };
    add("publish_set_level", Kind::Publish(set_level));
    let push = packet::SetPush {
        provider: "webpush".into(),
        target: "https://push.example.com/abc".into(),
        key: vec![4; 65].into(),
        secret: vec![9; 16].into(),
        quiet_from: 1_320,
        quiet_until: 420,
        shows: packet::Shows::Names.into(),
    };
    add("publish_set_push", publish(13, Some(Action::SetPush(push))));
    add("publish_no_push", publish(14, Some(Action::SetPush(packet::SetPush::default()))));
    add(
        "publish_ack",
        Kind::PublishAck(packet::PublishAck { message_id: 5_000, seq: 10_000, time: 34_359_738_368, conversation: 0 }),
    );
    add(
        "publish_ack_names_conversation",
        Kind::PublishAck(packet::PublishAck { message_id: 1, seq: 0, time: 7, conversation: 9 }),
    );
    add("refused_publish", Kind::Refused(packet::Refused { message_id: 9, code: 20, ..Default::default() }));
    let refused = packet::Refused { request: 4, code: 16, detail: "no such conversation".into(), ..Default::default() };
    add("refused_request", Kind::Refused(refused));
    add("refused_connection", Kind::Refused(packet::Refused { code: 15, retry_after_ms: 2_500, ..Default::default() }));
    add("give_up", Kind::GiveUp(packet::GiveUp { message_id: 9 }));
    for (name, lane, n, items) in deliveries() {
        add(name, Kind::Deliver(packet::Deliver { lane: lane as i32, n, items }));
    }
    add("ack", Kind::Ack(packet::Ack { express: 3, bulk: 1_064, answer: 0 }));
    add("ack_answers", Kind::Ack(packet::Ack { express: 0, bulk: 0, answer: 2 }));
    add("ack_request", Kind::AckRequest(packet::AckRequest { k: 2 }));
    add("cursor", Kind::Cursor(packet::Cursor { cursor: Bytes::from_static(&[9, 0, 0xff]) }));
    for (name, id, op) in requests() {
        add(name, Kind::Request(packet::Request { id, op: Some(op) }));
    }
    for (name, id, result) in responses() {
        add(name, Kind::Response(packet::Response { id, result: Some(result) }));
    }
    add("goaway", Kind::Goaway(packet::Goaway { retry_after_ms: 4_000 }));
    let signal = packet::Signal { conversation: 1_048_576, ..Default::default() };
    let kind = packet::SignalKind::App as i32;
    let presence =
        packet::Presence { user: 4_098, state: packet::PresenceState::Offline as i32, last_seen: 34_359_738_368 };
    add("signal_typing", Kind::Signal(signal.clone()));
    add("signal_app", Kind::Signal(packet::Signal { kind, content: Bytes::from_static(b"?"), ..signal.clone() }));
    add(
        "signal_stopped_of_another",
        Kind::Signal(packet::Signal { kind: packet::SignalKind::Stopped as i32, user: 4_098, ..signal }),
    );
    let delivered = packet::SignalKind::Delivered as i32;
    let delivered = packet::Signal { conversation: 9, kind: delivered, user: 4_098, seq: 300, ..Default::default() };
    add("signal_delivered", Kind::Signal(delivered));
    let kind = packet::SignalKind::Presence as i32;
    add(
        "signal_presence",
        Kind::Signal(packet::Signal { kind, presence: Some(presence), ..packet::Signal::default() }),
    );
    add("goodbye_keep_will", Kind::Goodbye(packet::Goodbye { keep_will: true }));
    add("goodbye", Kind::Goodbye(packet::Goodbye::default()));
    for (name, kind) in about_messages().into_iter().chain(about_groups()) {
        add(name, kind);
    }
    vectors
}

fn profile() -> packet::Profile {
    let data = Bytes::from_static(&[1, 2, 3]);
    packet::Profile { display_name: "Ada L.".into(), picture: "media/4f2a".into(), data }
}

fn contact() -> packet::Contact {
    let data = Bytes::from_static(&[7]);
    packet::Contact { user: 4_098, name: "bob".into(), nick: "Bobby".into(), data, removed: false }
}

fn entry(seq: u64) -> packet::Entry {
    packet::Entry {
        conversation: 1_048_576,
        seq,
        sender: 4_097,
        time: 34_359_738_368,
        content: Bytes::from_static(b"good morning"),
        ..Default::default()
    }
}

/// What can be said about messages beside publishing them.
fn about_messages() -> Vec<(&'static str, Kind)> {
    use packet::item::Kind::Entry;
    let on = |message_id, action| {
        let action = Some(action);
        Kind::Publish(packet::Publish { conversation: 9, message_id, action, ..Default::default() })
    };
    let attachment = packet::Attachment {
        reference: "https://media.example.org/7f3a".into(),
        media_type: "image/jpeg".into(),
        name: "beach.jpg".into(),
        bytes: 182_044,
    };
    let beside = packet::Beside {
        reply_to: 300,
        mentions: vec![4_097, 4_098],
        mentions_all: true,
        expires_in_ms: 604_800_000,
        forwarded: true,
        silent: true,
        attachments: vec![attachment],
    };
    let content = Bytes::from_static("look ☀".as_bytes());
    let settings = packet::Settings { muted_until: 34_359_838_368, pinned: true, archived: true, marked_unread: true };
    let message = packet::Publish {
        conversation: 9,
        message_id: 10,
        content: content.clone(),
        beside: Some(Box::new(beside.clone())),
        ..Default::default()
    };
    let edit = packet::Publish {
        conversation: 9,
        message_id: 11,
        content: content.clone(),
        action: Some(Action::Edit(packet::Edit { seq: 300 })),
        ..Default::default()
    };
    let of = |kind: packet::EntryKind| packet::Entry { kind: kind as i32, content: Bytes::new(), ..entry(310) };
    let entries = vec![
        (
            "deliver_message_with_everything",
            packet::Entry {
                beside: Some(Box::new(packet::Beside { expires_in_ms: 0, ..beside })),
                expires: 34_964_538_368,
                ..entry(310)
            },
        ),
        ("deliver_edit", packet::Entry { edit: 300, content, ..of(packet::EntryKind::Edit) }),
        (
            "deliver_recall",
            packet::Entry {
                recall: Some(packet::Recalled { seq: 300, countable: 250 }),
                ..of(packet::EntryKind::Recall)
            },
        ),
        (
            "deliver_reaction",
            packet::Entry {
                reaction: Some(packet::React { seq: 300, reaction: "👍".into() }),
                ..of(packet::EntryKind::Reaction)
            },
        ),
        (
            "deliver_mentioned",
            packet::Entry {
                mentioned: Some(packet::Mentioned { conversation: 9, seq: 310 }),
                ..of(packet::EntryKind::Mentioned)
            },
        ),
        (
            "deliver_settings",
            packet::Entry {
                settings: Some(packet::Settled { conversation: 9, settings: Some(settings) }),
                ..of(packet::EntryKind::Settings)
            },
        ),
        (
            "deliver_hidden",
            packet::Entry {
                hidden: Some(packet::Hidden { conversation: 9, seq: 300, undo: true, countable: 250 }),
                ..of(packet::EntryKind::Hidden)
            },
        ),
    ];
    let last = packet::Entry {
        compacted: Some(Box::new(packet::Compacted {
            edit: 305,
            edit_time: 34_359_738_400,
            reactions: vec![packet::ReactionCount { reaction: "👍".into(), count: 3, own: true }],
        })),
        ..entry(300)
    };
    let conversation = packet::Conversation {
        id: 9,
        unread: 2,
        mentions: 1,
        settings: Some(settings),
        last: Some(last),
        ..Default::default()
    };
    let page = packet::ConversationsPage {
        conversations: vec![conversation],
        next: 0,
        unread_total: 7,
        mentions_total: 1,
        changes: 1_000_000,
    };
    let marks = vec![packet::Mark { conversation: 9, user: 4_098, seq: 299, delivered: 300 }];
    let receipts = packet::ReceiptsRequest { conversation: 9, limit: 100, ..Default::default() };
    let request = |id, op| Kind::Request(packet::Request { id, op: Some(op) });
    let response = |id, result| Kind::Response(packet::Response { id, result: Some(result) });
    let history = packet::HistoryRequest { conversation: 9, limit: 50, compact: true, ..Default::default() };
    let since = packet::ConversationsRequest { since: 999_000, limit: 20, ..Default::default() };
    let mut all = vec![
        ("publish_message_with_everything", Kind::Publish(message)),
        ("publish_edit", Kind::Publish(edit)),
        ("publish_recall", on(12, Action::Recall(packet::Recall { seq: 300 }))),
        ("publish_react", on(13, Action::React(packet::React { seq: 300, reaction: "👍".into() }))),
        ("publish_hide", on(14, Action::Hide(packet::Hide { seq: 300, undo: true }))),
        ("publish_set_settings", on(15, Action::SetSettings(packet::SetSettings { settings: Some(settings) }))),
        ("request_history_compact", request(10, Op::History(history))),
        ("request_conversations_since", request(11, Op::Conversations(since))),
        ("request_receipts", request(12, Op::Receipts(packet::ReceiptsRequest { after_user: 4_097, ..receipts }))),
        ("request_receipts_follow", request(13, Op::Receipts(packet::ReceiptsRequest { follow: true, ..receipts }))),
        ("request_receipts_stop", request(14, Op::Receipts(packet::ReceiptsRequest { stop: true, ..receipts }))),
        ("response_conversations_with_everything", response(11, Answer::Conversations(page))),
        ("response_receipts", response(12, Answer::Receipts(packet::ReceiptsPage { marks, next: 4_098 }))),
    ];
    for (n, (name, entry)) in (20..).zip(entries) {
        let items = vec![packet::Item { kind: Some(Entry(entry)) }];
        all.push((name, Kind::Deliver(packet::Deliver { lane: packet::Lane::Express as i32, n, items })));
    }
    all
}

/// What can be said about groups beyond making one.
fn about_groups() -> Vec<(&'static str, Kind)> {
    let on = |message_id, conversation, action| {
        let action = Some(action);
        Kind::Publish(packet::Publish { conversation, message_id, action, ..Default::default() })
    };
    let policy = packet::Policy {
        publishes: packet::Role::Admin as i32,
        adds: packet::Role::Member as i32,
        informs: packet::Role::Owner as i32,
        recall_within_ms: 3_600_000,
        past: packet::Past::Last as i32,
        past_entries: 100,
        hides_marks: true,
    };
    let info = packet::Info { picture: "media/7".into(), description: "all of us".into(), policy: Some(policy) };
    let create = packet::CreateGroup {
        label: "team".into(),
        users: vec!["ada".into()],
        info: Some(Box::new(info.clone())),
        distinct: true,
    };
    let key = Bytes::from_static(b"0123456789abcdef");
    let user = || String::from("ada");
    let membership = packet::Membership { user: 4_098, name: "bob".into(), role: 0, banned: true };
    let of = |kind: packet::EntryKind| packet::Entry { kind: kind as i32, content: Bytes::new(), ..entry(320) };
    let told = [
        packet::Entry { info: Some(Box::new(info.clone())), ..of(packet::EntryKind::Info) },
        packet::Entry { membership: Some(membership), ..of(packet::EntryKind::Membership) },
    ];
    let items = told.map(|entry| packet::Item { kind: Some(packet::item::Kind::Entry(entry)) }).into();
    let conversation = packet::Conversation { id: 9, info: Some(info.clone()), ..Default::default() };
    let page = packet::ConversationsPage { conversations: vec![conversation], ..Default::default() };
    let result = Some(Answer::Conversations(page));
    vec![
        ("publish_create_group_with_everything", on(20, 0, Action::CreateGroup(create))),
        ("publish_join_group", on(21, 9, Action::Join(packet::Join { key: key.clone() }))),
        ("publish_set_info", on(22, 9, Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) }))),
        ("publish_ban", on(23, 9, Action::Ban(packet::Ban { user: user(), lift: false }))),
        ("publish_ban_lifted", on(24, 9, Action::Ban(packet::Ban { user: user(), lift: true }))),
        ("publish_set_join_key", on(25, 9, Action::SetJoinKey(packet::SetJoinKey { key }))),
        ("deliver_info_and_ban", Kind::Deliver(packet::Deliver { lane: packet::Lane::Bulk as i32, n: 30, items })),
        ("response_conversations_with_info", Kind::Response(packet::Response { id: 13, result })),
    ]
}

fn deliveries() -> Vec<(&'static str, packet::Lane, u64, Vec<packet::Item>)> {
    use packet::{Lane::*, item::Kind::*};
    let item = |kind| packet::Item { kind: Some(kind) };
    let of = |kind: packet::EntryKind| packet::Entry { kind: kind as i32, content: Bytes::new(), ..entry(300) };
    let membership =
        packet::Membership { user: 4_098, name: "bob".into(), role: packet::Role::Member as i32, ..Default::default() };
    let joined = packet::Joined {
        conversation: 1_048_576,
        kind: packet::ConversationKind::Group as i32,
        visible_from: 12,
        seq: 40,
        label: "team".into(),
        role: packet::Role::Member as i32,
    };
    let own = packet::Own {
        conversation: 1_048_576,
        seq: 301,
        message_id: 5_000,
        time: 34_359_738_369,
        ..Default::default()
    };
    let head = |reason: packet::HeadReason, item_bytes| {
        let reason = reason as i32;
        item(Head(packet::Head { conversation: 1_048_576, from_seq: 302, to_seq: 302, reason, item_bytes }))
    };
    vec![
        ("deliver_entry", Bulk, 1, vec![item(Entry(entry(300)))]),
        ("deliver_run", Bulk, 1_000, (300..304).map(|seq| item(Entry(entry(seq)))).collect()),
        (
            "deliver_membership",
            Bulk,
            2,
            vec![item(Entry(packet::Entry { membership: Some(membership), ..of(packet::EntryKind::Membership) }))],
        ),
        (
            "deliver_label",
            Bulk,
            3,
            vec![item(Entry(packet::Entry { label: "team".into(), ..of(packet::EntryKind::Label) }))],
        ),
        (
            "deliver_joined",
            Express,
            4,
            vec![item(Entry(packet::Entry { joined: Some(joined), ..of(packet::EntryKind::Joined) }))],
        ),
        (
            "deliver_left",
            Express,
            5,
            vec![item(Entry(packet::Entry {
                left: Some(packet::Left { conversation: 1_048_576, seq: 90 }),
                ..of(packet::EntryKind::Left)
            }))],
        ),
        (
            "deliver_profile",
            Express,
            18,
            vec![item(Entry(packet::Entry { profile: Some(profile()), ..of(packet::EntryKind::Profile) }))],
        ),
        (
            "deliver_contact",
            Express,
            19,
            vec![item(Entry(packet::Entry { contact: Some(contact()), ..of(packet::EntryKind::Contact) }))],
        ),
        (
            "deliver_blocked",
            Express,
            20,
            vec![item(Entry(packet::Entry {
                blocked: Some(packet::Blocked { user: 4_098, name: "bob".into(), undone: true }),
                ..of(packet::EntryKind::Blocked)
            }))],
        ),
        (
            "deliver_device",
            Express,
            21,
            vec![item(Entry(packet::Entry {
                device: Some(packet::DeviceChange {
                    device: 8_193,
                    name: "laptop".into(),
                    label: "at work".into(),
                    kind: packet::DeviceChangeKind::DeviceRevoked as i32,
                }),
                ..of(packet::EntryKind::Device)
            }))],
        ),
        (
            "deliver_retention",
            Bulk,
            22,
            vec![item(Entry(packet::Entry { retention: Some(retention()), ..of(packet::EntryKind::Retention) }))],
        ),
        ("deliver_own", Express, 6, vec![item(Own(own.clone()))]),
        (
            "deliver_own_with_entry",
            Express,
            7,
            vec![item(Own(packet::Own { incarnation: 2, entry: Some(entry(301)), ..own }))],
        ),
        ("deliver_head_skipped", Bulk, 8, vec![head(packet::HeadReason::Skipped, 0)]),
        ("deliver_head_too_large", Bulk, 9, vec![head(packet::HeadReason::TooLarge, 150_000)]),
        ("deliver_head_expired", Bulk, 10, vec![head(packet::HeadReason::Expired, 0)]),
        ("deliver_head_recalled", Bulk, 11, vec![head(packet::HeadReason::Recalled, 0)]),
        ("deliver_head_erased", Bulk, 12, vec![head(packet::HeadReason::Erased, 0)]),
        ("deliver_head_not_yours", Bulk, 13, vec![head(packet::HeadReason::NotYours, 0)]),
        (
            "deliver_mark",
            Express,
            14,
            vec![item(Mark(packet::Mark { conversation: 9, user: 0, seq: 300, delivered: 0 }))],
        ),
        (
            "deliver_mark_of_another",
            Express,
            15,
            vec![item(Mark(packet::Mark { conversation: 9, user: 4_098, seq: 2, delivered: 0 }))],
        ),
        ("deliver_progress", Express, 16, vec![item(Progress(packet::Progress {}))]),
        ("deliver_caught_up", Bulk, 17, vec![item(CaughtUp(packet::CaughtUp {}))]),
    ]
}

fn requests() -> Vec<(&'static str, u64, Op)> {
    let history = packet::HistoryRequest { conversation: 9, from_seq: 0, limit: 50, ..Default::default() };
    vec![
        ("request_history", 1, Op::History(history)),
        (
            "request_history_backwards",
            2,
            Op::History(packet::HistoryRequest { from_seq: 300, backwards: true, ..history }),
        ),
        (
            "request_conversations",
            3,
            Op::Conversations(packet::ConversationsRequest { limit: 20, ..Default::default() }),
        ),
        ("request_members", 4, Op::Members(packet::MembersRequest { conversation: 9, after_user: 4_097, limit: 100 })),
        ("request_users", 5, Op::Users(packet::UsersRequest { users: vec![4_097, 4_098, 1] })),
        ("request_watch", 6, Op::Watch(packet::WatchRequest { conversation: 9, stop: false })),
        ("request_watch_stop", 7, Op::Watch(packet::WatchRequest { conversation: 9, stop: true })),
        ("request_presence", 9, Op::Presence(packet::PresenceRequest { users: vec![4_097, 4_098], stop: false })),
        ("request_presence_stop", 10, Op::Presence(packet::PresenceRequest { users: vec![4_098], stop: true })),
        ("request_online", 11, Op::Online(packet::OnlineRequest { conversation: 9 })),
        ("request_background", 12, Op::Background(packet::BackgroundRequest { background: true })),
        ("request_refresh", 8, Op::Refresh(packet::RefreshRequest { token: "aaaa.bbbb.cccc".into() })),
        ("request_refresh_own", 9, Op::Refresh(packet::RefreshRequest::default())),
        ("request_profiles", 10, Op::Profiles(packet::ProfilesRequest { users: vec![4_097, 4_098] })),
        ("request_contacts", 11, Op::Contacts(packet::ContactsRequest { before: 7, limit: 50 })),
        ("request_blocked", 12, Op::Blocked(packet::BlockedRequest { after_user: 4_097, limit: 50 })),
        ("request_devices", 13, Op::Devices(packet::DevicesRequest {})),
        ("request_accounts", 14, Op::Accounts(packet::AccountsRequest { after_user: 4_097, limit: 50 })),
    ]
}

fn responses() -> Vec<(&'static str, u64, Answer)> {
    let items = vec![
        packet::Item { kind: Some(packet::item::Kind::Entry(entry(2))) },
        packet::Item {
            kind: Some(packet::item::Kind::Head(packet::Head {
                conversation: 9,
                from_seq: 3,
                to_seq: 9,
                ..Default::default()
            })),
        },
    ];
    let conversation = packet::Conversation {
        id: 9,
        kind: packet::ConversationKind::Direct as i32,
        label: "ada".into(),
        role: packet::Role::Member as i32,
        head_seq: 300,
        head_time: 34_359_738_368,
        first_seq: 1,
        visible_from: 1,
        mark: 298,
        unread: 2,
        members: 2,
        ..Default::default()
    };
    let member = packet::Member { user: 4_098, name: "bob".into(), role: packet::Role::Owner as i32 };
    let device = packet::Device {
        device: 8_193,
        name: "laptop".into(),
        label: "at work".into(),
        created: 1,
        seen: 34_359_738_368,
        online: true,
        own: true,
        push: "apns".into(),
    };
    let account = packet::Account {
        user: 4_097,
        name: "ada".into(),
        has_password: true,
        closed: false,
        devices: 2,
        conversations: 12,
    };
    vec![
        ("response_history", 1, Answer::History(packet::HistoryPage { items, next_seq: 10, head_seq: 300 })),
        ("response_history_empty", 2, Answer::History(packet::HistoryPage::default())),
        (
            "response_conversations",
            3,
            Answer::Conversations(packet::ConversationsPage {
                conversations: vec![conversation.clone()],
                next: 12,
                ..Default::default()
            }),
        ),
        ("response_members", 4, Answer::Members(packet::MembersPage { members: vec![member.clone()], next: 4_098 })),
        ("response_users", 5, Answer::Users(packet::UsersPage { users: vec![member] })),
        ("response_watch", 6, Answer::Watch(packet::WatchAnswer { head_seq: 300 })),
        (
            "response_refresh",
            7,
            Answer::Refresh(packet::RefreshAnswer { expires_in_ms: 3_600_000, ..Default::default() }),
        ),
        (
            "response_refresh_own",
            9,
            Answer::Refresh(packet::RefreshAnswer { expires_in_ms: 3_600_000, token: "aaaa.bbbb.cccc".into() }),
        ),
        (
            "response_profiles",
            10,
            Answer::Profiles(packet::ProfilesPage {
                profiles: vec![packet::UserProfile { user: 4_097, name: "ada".into(), profile: Some(profile()) }],
            }),
        ),
        ("response_contacts", 11, Answer::Contacts(packet::ContactsPage { contacts: vec![contact()], next: 7 })),
        (
            "response_blocked",
            12,
            Answer::Blocked(packet::BlockedPage {
                users: vec![packet::Blocked { user: 4_098, name: "bob".into(), undone: false }],
                next: 4_098,
            }),
        ),
        ("response_devices", 13, Answer::Devices(packet::DevicesPage { devices: vec![device] })),
        ("response_accounts", 14, Answer::Accounts(packet::AccountsPage { accounts: vec![account], next: 4_097 })),
        (
            "response_presence",
            9,
            Answer::Presence(packet::PresenceAnswer {
                users: vec![
                    packet::Presence { user: 4_097, ..Default::default() },
                    packet::Presence { user: 4_098, state: packet::PresenceState::Away as i32, last_seen: 0 },
                ],
                shown_to: packet::Audience::Nobody as i32,
                hides_marks: true,
            }),
        ),
        ("response_online", 11, Answer::Online(packet::OnlineAnswer { online: 1_007 })),
        ("response_background", 12, Answer::Background(packet::BackgroundAnswer {})),
    ]
}

/// What must be refused, waited for, or ignored: a name, bytes, the limit that holds, the verdict.
fn bad() -> Vec<(&'static str, Vec<u8>, u32, &'static str)> {
    const PRE: u32 = PRE_AUTH_FRAME_BYTES_MAX;
    let (malformed, too_large) = ("malformed", "frame_too_large");
    // A frame of fewer than 128 bytes.
    let framed = |packet: &[u8]| [&[packet.len() as u8], packet].concat();
    let many_features = framed_long(&[&[0x82, 0x01, 0x42], &[0x12, 0x00].repeat(33)[..]].concat());
    vec![
        ("nothing", vec![], PRE, "partial"),
        ("length_of_two_bytes_cut", vec![0x80], PRE, "partial"),
        ("packet_cut", vec![0x04, 0x52, 0x02, 0x08], PRE, "partial"),
        ("length_padded", vec![0x84, 0x00, 0x52, 0x02, 0x08, 0x01], PRE, malformed),
        ("heartbeat_padded", vec![0x80, 0x00], PRE, malformed),
        ("length_of_more_than_64_bits", vec![0xff; 10], PRE, malformed),
        ("limit_before_connected", vec![0x80, 0x20], PRE, "partial"),
        ("above_limit_before_connected", vec![0x81, 0x20], PRE, too_large),
        ("limit_when_open", vec![0x80, 0xa0, 0x0c], FRAME_BYTES_MAX, "partial"),
        ("above_limit_when_open", vec![0x81, 0xa0, 0x0c], FRAME_BYTES_MAX, too_large),
        ("huge_length", vec![0xff, 0xff, 0xff, 0xff, 0x0f], FRAME_BYTES_MAX, too_large),
        ("two_members", framed(&[0x2a, 0x00, 0x52, 0x02, 0x08, 0x01]), PRE, malformed),
        ("one_member_twice", framed(&[0x2a, 0x00, 0x2a, 0x00]), PRE, malformed),
        ("two_actions", framed(&[0x0a, 0x06, 0x9a, 0x01, 0x00, 0xa2, 0x01, 0x00]), PRE, malformed),
        ("two_operations", framed(&[0x42, 0x04, 0x12, 0x00, 0x1a, 0x00]), PRE, malformed),
        ("two_kinds_of_item", framed(&[0x22, 0x06, 0x1a, 0x04, 0x2a, 0x00, 0x32, 0x00]), PRE, malformed),
        ("group", framed(&[0x0b, 0x0c]), PRE, malformed),
        ("group_inside", framed(&[0x0a, 0x04, 0x8b, 0x06, 0x8c, 0x06]), PRE, malformed),
        ("member_as_number", framed(&[0x08, 0x01]), PRE, malformed),
        ("field_number_zero", framed(&[0x00, 0x01]), PRE, malformed),
        ("member_longer_than_its_frame", framed(&[0x0a, 0x05, 0x08]), PRE, malformed),
        ("number_longer_than_its_message", framed(&[0x0a, 0x02, 0x10, 0x80]), PRE, malformed),
        ("text_that_is_no_utf8", framed(&[0x82, 0x01, 0x03, 0x1a, 0x01, 0xff]), PRE, malformed),
        ("number_as_text", framed(&[0x52, 0x03, 0x0a, 0x01, 0x31]), PRE, malformed),
        ("too_many_features", many_features, PRE, malformed),
        ("too_many_mentions", framed(&[&[0x0a, 0x37, 0x2a, 0x35, 0x12, 0x33][..], &[1; 51]].concat()), PRE, malformed),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4), PRE, malformed),
        ("unknown_member", framed(&[0x62, 0x01, 0x78]), PRE, "ignored"),
        ("unknown_member_as_number", framed(&[0xc0, 0x0c, 0x07]), PRE, "ignored"),
        ("unknown_field_beside_nothing", framed(&[0xfd, 0x0f, 1, 2, 3, 4]), PRE, "ignored"),
        ("heartbeat", vec![0x00], PRE, "ignored"),
    ]
}

fn framed_long(packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    longwire_protocol::varint::write(packet.len() as u64, &mut out);
    out.extend_from_slice(packet);
    out
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

/// The lines of a file of vectors, after it was held against what the code makes of them.
fn lines(name: &str, made: &[Json]) -> Vec<Json> {
    let text: String = made.iter().map(|line| format!("{line}\n")).collect();
    if std::env::var_os("LONGWIRE_GENERATE").is_some() {
        std::fs::write(path(name), &text).expect("write the vectors");
    }
    let kept = std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(kept == text, "{name} differs from the code: run with LONGWIRE_GENERATE=1");
    kept.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &Json) -> Vec<u8> {
    let text = text.as_str().expect("text");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn packet_descriptor() -> MessageDescriptor {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile([root.join("longwire.proto")], [root]).expect("the .proto compiles");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("descriptors");
    pool.get_message_by_name("longwire.v1.Packet").expect("Packet")
}

/// A message with the names of the `.proto`, read by another decoder than the one under test.
fn json(message: &DynamicMessage) -> Json {
    let fields = message.fields().map(|(field, value)| {
        let value = match value {
            Value::List(list) => list.iter().map(|value| json_value(&field, value)).collect(),
            single => json_value(&field, single),
        };
        (field.name().to_owned(), value)
    });
    Json::Object(fields.collect())
}

fn json_value(field: &protox::prost_reflect::FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::U32(value) => json!(value),
        Value::U64(value) => json!(value),
        Value::String(value) => json!(value),
        Value::Bytes(value) => json!(hex(value)),
        Value::Message(value) => json(value),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let value = kind.as_enum().and_then(|kind| kind.get_value(*number));
            json!(value.expect("a named value").name())
        }
        other => panic!("no such type in the .proto: {other:?}"),
    }
}

/// Every good vector decodes to its value, and its value encodes to it.
#[test]
fn good_vectors_hold_in_both_directions() {
    let descriptor = packet_descriptor();
    let value = |kind: &Kind| {
        let bytes = Packet { kind: Some(kind.clone()) }.encode_to_vec();
        json(&DynamicMessage::decode(descriptor.clone(), &bytes[..]).expect("a packet"))
    };
    let made: Vec<_> = good()
        .iter()
        .map(|(name, kind)| {
            let mut wire = BytesMut::new();
            match kind {
                Some(kind) => frame::encode(kind, &mut wire),
                None => frame::encode_heartbeat(&mut wire),
            }
            json!({ "name": name, "frame": hex(&wire), "value": kind.as_ref().map(value) })
        })
        .collect();
    for (line, (name, kind)) in lines("good.jsonl", &made).iter().zip(good()) {
        let wire = unhex(&line["frame"]);
        let mut buffer = BytesMut::from(&wire[..]);
        let decoded = FrameCodec::new(FRAME_BYTES_MAX).decode(&mut buffer).expect("a good frame").expect("a whole one");
        let expected = kind.map_or(Frame::Heartbeat, Frame::Packet);
        assert_eq!(decoded, (expected, wire.len()), "{name}");
        assert!(buffer.is_empty(), "{name}");
        for cut in 0..wire.len() {
            let cut_off = FrameCodec::new(FRAME_BYTES_MAX).decode(&mut BytesMut::from(&wire[..cut]));
            assert_eq!(cut_off, Ok(None), "{name} cut at {cut}");
        }
    }
}

/// Every kind of packet, action, operation, answer, item and entry has a vector.
#[test]
fn every_kind_has_a_vector() {
    let descriptor = packet_descriptor();
    let text: String = std::fs::read_to_string(path("good.jsonl")).expect("the vectors");
    for message in descriptor.parent_pool().all_messages() {
        for choice in message.oneofs() {
            for field in choice.fields() {
                assert!(text.contains(&format!("\"{}\":{{", field.name())), "{} has no vector", field.full_name());
            }
        }
    }
    let entries = descriptor.parent_pool().get_enum_by_name("longwire.v1.EntryKind").expect("EntryKind");
    for kind in entries.values().filter(|kind| kind.number() != 0) {
        assert!(text.contains(&format!("\"kind\":\"{}\"", kind.name())), "{} has no vector", kind.name());
    }
}

/// Every bad vector gets its verdict.
#[test]
fn bad_vectors_get_their_verdict() {
    let made: Vec<_> = bad()
        .iter()
        .map(|(name, bytes, limit, verdict)| json!({ "name": name, "bytes": hex(bytes), "limit": limit, "verdict": verdict }))
        .collect();
    for line in lines("bad.jsonl", &made) {
        let limit = line["limit"].as_u64().expect("a number") as u32;
        assert!(limit <= FRAME_BYTES_CEILING);
        let mut buffer = BytesMut::from(&unhex(&line["bytes"])[..]);
        let verdict = match FrameCodec::new(limit).decode(&mut buffer) {
            Ok(None) => "partial",
            Ok(Some((Frame::Heartbeat | Frame::Unknown, _))) => "ignored",
            Ok(Some((Frame::Packet(_), _))) => "accepted",
            Err(error) => Refusal::from(packet::Refused::from(&error.refusal())).reason.name(),
        };
        assert_eq!(verdict, line["verdict"].as_str().expect("text"), "{}", line["name"]);
    }
}

fn retention() -> packet::Retention {
    packet::Retention { mode: packet::RetentionMode::KeepFor as i32, age_ms: 604_800_000 }
}
