//! What a device is sent: order, resumption, catch-up, both lanes.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, CatchUpMode, HeadReason, Role, StartKind, item};
use longwire_protocol::reason::Reason;

use longwire::store::StoreOptions;

use crate::world::{Wire, World, entry, heads, seqs, texts};

#[tokio::test]
async fn a_message_reaches_the_other_user_and_is_an_own_for_its_sender() {
    let world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    let ack = alice.say(direct, "hello").await;
    assert_eq!(ack.seq, 1);
    let got = bob.entry(direct).await;
    assert_eq!((got.seq, &got.content[..], got.sender, got.time), (1, &b"hello"[..], alice.connected.user, ack.time));
    let items = alice.until(|item| matches!(item.kind, Some(item::Kind::Own(_)))).await;
    let Some(item::Kind::Own(own)) = &items.last().expect("an item").kind else { panic!("no own") };
    assert_eq!((own.conversation, own.seq, own.message_id), (direct, 1, ack.message_id));
    assert_eq!(own.entry, None, "the device has the content");
}

#[tokio::test]
async fn a_session_resumes_from_its_own_cursor_with_exactly_what_came_after() {
    let mut world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    alice.say(direct, "one").await;
    bob.entry(direct).await;
    let cursor = bob.settle().await;
    alice.say(direct, "two").await;
    bob.entry(direct).await;
    drop(bob);
    alice.say(direct, "three").await;
    world.restart().await;
    let mut bob = world.wire(world.resume("bob", cursor)).await;
    assert_eq!(bob.connected.cursor(), packet::CursorVerdict::Resumed);
    assert_eq!(texts(&bob.caught_up().await), ["two", "three"]);
}

/// SPEC R4-8.
#[tokio::test]
async fn a_device_without_memory_resumes_where_its_acks_stand() {
    let mut world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    alice.say(direct, "one").await;
    bob.entry(direct).await;
    bob.flush().await;
    bob.stores = false;
    alice.say(direct, "two").await;
    bob.entry(direct).await;
    bob.leave().await;
    world.restart().await;
    let stored = packet::Connect { start: StartKind::StoredCursor.into(), ..world.connect("bob") };
    let mut bob = world.wire(stored).await;
    assert_eq!(texts(&bob.caught_up().await), ["two"]);
}

#[tokio::test]
async fn a_cursor_of_another_broker_is_reset_and_never_resumed_by_luck() {
    let (world, other) = (World::new().await, World::new().await);
    let mut wires = [world.user("bob").await, other.user("bob").await];
    let mut cursors = Vec::new();
    for (wire, world) in wires.iter_mut().zip([&world, &other]) {
        let mut alice = world.user("alice").await;
        let direct = alice.open_direct("bob").await;
        alice.say(direct, "hello").await;
        wire.entry(direct).await;
        cursors.push(wire.settle().await);
    }
    for (cursor, reason) in [
        (cursors[1].clone(), packet::ResetReason::ForeignSegment),
        (bytes::Bytes::from_static(b"nonsense"), packet::ResetReason::Unreadable),
        (bytes::Bytes::new(), packet::ResetReason::Unreadable),
    ] {
        let bob = world.wire(world.resume("bob", cursor)).await;
        assert_eq!(bob.connected.cursor(), packet::CursorVerdict::Reset);
        assert_eq!(bob.connected.reset_reason(), reason);
    }
}

/// S6: an old copy of the store is restored; cursors of what came after are reset, also once the tail overtakes them.
#[tokio::test]
async fn s6_a_cursor_beyond_a_restored_copy_is_reset_even_when_the_tail_overtakes_it() {
    let mut world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    alice.say(direct, "kept").await;
    drop(alice);
    world.stop().await;
    let copy = tempfile::tempdir().expect("a folder");
    copy_folder(&world.store(), copy.path());
    world.start().await;
    let mut bob = world.user("bob").await;
    let mut alice = world.user("alice").await;
    alice.say(direct, "lost with the disk").await;
    bob.entry(direct).await;
    let cursor = bob.settle().await;
    drop((alice, bob));
    world.stop().await;
    std::fs::remove_dir_all(world.store()).expect("the disk is gone");
    copy_folder(copy.path(), &world.store());
    world.start().await;
    let mut alice = world.user("alice").await;
    for n in 0..20 {
        alice.say(direct, &format!("after {n}")).await;
    }
    let bob = world.wire(world.resume("bob", cursor)).await;
    assert_eq!(bob.connected.cursor(), packet::CursorVerdict::Reset);
    assert_eq!(bob.connected.reset_reason(), packet::ResetReason::ForeignSegment);
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for file in std::fs::read_dir(from).expect("files") {
        let file = file.expect("a file");
        let target = to.join(file.file_name());
        if file.file_type().expect("a type").is_dir() {
            copy_folder(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).expect("copied");
        }
    }
}

/// SPEC R6.5-2.
#[tokio::test]
async fn skipping_reports_a_long_absence_as_one_head_and_all_brings_everything() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let group = alice.create_group("busy", &["bob"]).await;
    let (direct, back) = world.away(&mut alice, "bob").await;
    for n in 0..250 {
        alice.say(group, &format!("{n}")).await;
    }
    alice.say(direct, "hey").await;
    let mut skipping = world.wire(back.clone()).await;
    let items = skipping.caught_up().await;
    assert_eq!(texts(&items), ["hey"]);
    let reported = heads(&items);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!((reported[0].0, reported[0].2, reported[0].3), (group, 252, HeadReason::Skipped));
    // What is live from here on comes after the head.
    alice.say(group, "live").await;
    assert_eq!(skipping.entry(group).await.seq, 253);
    let all = packet::Connect { catch_up: CatchUpMode::All.into(), ..back };
    let mut all = world.wire(all).await;
    let items = all.caught_up().await;
    assert_eq!(seqs(&items, group), (3..=253).collect::<Vec<_>>());
}

/// S9: an item larger than the window still comes, alone; one larger than the client's own bound comes as a head.
/// SPEC R6.2-2.
#[tokio::test]
async fn s9_an_item_larger_than_the_window_comes_alone_or_as_a_head() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let window = Some(packet::Window { items: 4, bytes: 1_024 });
    let mut bob = world.wire(packet::Connect { express: window, ..world.connect("bob") }).await;
    let small =
        packet::Connect { express: window, item_bytes_max: 2_000, device: "tag".into(), ..world.connect("bob") };
    let mut tag = world.wire(small).await;
    let large = "x".repeat(60_000);
    alice.say(direct, &large).await;
    alice.say(direct, "small").await;
    assert_eq!(bob.entry(direct).await.content.len(), 60_000);
    assert_eq!(&bob.entry(direct).await.content[..], b"small");
    let items = tag.until(|item| entry(item).is_some_and(|e| e.conversation == direct)).await;
    assert_eq!(heads(&items), [(direct, 1, 1, HeadReason::TooLarge)]);
    assert_eq!(texts(&items), ["small"]);
}

/// A backlog that ends with an item larger than the window: the `CaughtUp` behind it waits for room.
#[tokio::test]
async fn a_backlog_that_fills_the_window_ends_all_the_same() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (direct, back) = world.away(&mut alice, "bob").await;
    let large = "x".repeat(100_000);
    alice.say(direct, &large).await;
    for _ in 0..2 {
        let mut bob = world.wire(back.clone()).await;
        assert_eq!(texts(&bob.caught_up().await), [large.as_str()]);
        bob.leave().await;
    }
}

#[tokio::test]
async fn a_reader_that_never_acks_gets_its_window_and_no_more_and_hinders_nobody() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let group = alice.create_group("all", &["bob", "carol"]).await;
    let window = Some(packet::Window { items: 8, bytes: 4_096 });
    let mut bob = world.wire(packet::Connect { bulk: window, ..world.connect("bob") }).await;
    bob.stores = false;
    let mut carol = world.user("carol").await;
    bob.caught_up().await;
    for n in 0..50 {
        alice.say(group, &format!("{n}")).await;
    }
    for n in 0..50 {
        assert_eq!(&carol.entry(group).await.content[..], format!("{n}").as_bytes());
    }
    // One of bob's eight was the `CaughtUp` of the lane.
    for n in 0..7 {
        assert_eq!(&bob.entry(group).await.content[..], format!("{n}").as_bytes());
    }
    // Nothing more until it acks; then it reads on from the log, in order, without a hole.
    bob.act(group, Action::SetMark(packet::SetMark { seq: 1 })).await.expect("answered");
    assert_eq!(texts(&bob.items.iter().map(|(_, item)| item.clone()).collect::<Vec<_>>()), [""; 0]);
    bob.stores = true;
    bob.session.stored(longwire_protocol::Millis(0), longwire_protocol::Lane::Bulk, 8);
    bob.session.flush_acks();
    for n in 7..50 {
        assert_eq!(&bob.entry(group).await.content[..], format!("{n}").as_bytes());
    }
}

/// SPEC R6.5-3.
#[tokio::test]
async fn catching_up_with_everything_is_refused_beyond_500_conversations_and_skipping_is_reset() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (_, back) = world.away(&mut alice, "bob").await;
    for n in 0..501 {
        let group = alice.create_group(&format!("{n}"), &["bob"]).await;
        alice.say(group, "news").await;
    }
    let refusal = world.refused(packet::Connect { catch_up: CatchUpMode::All.into(), ..back.clone() }).await;
    assert_eq!(refusal.reason, Reason::TooManyConversations);
    let bob = world.wire(back).await;
    assert_eq!(bob.connected.reset_reason(), packet::ResetReason::TooManyConversations);
}

#[tokio::test]
async fn history_pages_both_ways_and_explains_every_seq() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let group = alice.create_group("g", &[]).await;
    for n in 0..10 {
        alice.say(group, &format!("{n}")).await;
    }
    alice.set_role(group, "bob", packet::Role::Member).await.expect("added");
    for n in 10..20 {
        alice.say(group, &format!("{n}")).await;
    }
    let mut bob = world.user("bob").await;
    let pages = bob.pages(group, 4, false).await;
    assert!(pages.iter().all(|page| page.head_seq == 22));
    let items: Vec<_> = pages.into_iter().flat_map(|page| page.items).collect();
    assert_eq!(heads(&items), [(group, 1, 11, HeadReason::NotYours)]);
    assert_eq!(seqs(&items, group), (12..=22).collect::<Vec<_>>());
    let pages = bob.pages(group, 4, true).await;
    let backwards: Vec<u64> = pages.iter().flat_map(|page| seqs(&page.items, group)).collect();
    assert_eq!(backwards, (12..=22).rev().collect::<Vec<_>>());
}

/// SPEC R7-7.
#[tokio::test]
async fn reading_on_one_device_moves_the_mark_on_the_other() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    for n in 0..5 {
        alice.say(direct, &format!("{n}")).await;
    }
    let mut phone = world.user("bob").await;
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("bob") }).await;
    let unread = |list: &[packet::Conversation]| list.iter().map(|c| (c.id, c.unread)).collect::<Vec<_>>();
    assert_eq!(unread(&phone.conversations().await), [(direct, 5)]);
    phone.act(direct, Action::SetMark(packet::SetMark { seq: 3 })).await.expect("marked");
    let is_mark = |item: &packet::Item| matches!(item.kind, Some(item::Kind::Mark(_)));
    let items = laptop.until(is_mark).await;
    let Some(item::Kind::Mark(mark)) = &items.last().expect("an item").kind else { panic!("no mark") };
    assert_eq!((mark.conversation, mark.user, mark.seq), (direct, 0, 3));
    assert_eq!(unread(&laptop.conversations().await), [(direct, 2)]);
    // A mark beyond the head is the head; a lower one changes nothing.
    laptop.act(direct, Action::SetMark(packet::SetMark { seq: 99 })).await.expect("marked");
    laptop.act(direct, Action::SetMark(packet::SetMark { seq: 1 })).await.expect("answered");
    assert_eq!(unread(&laptop.conversations().await), [(direct, 0)]);
}

/// S2: an own entry between entries that were not stored; the crash comes before the ack. The next session gets all
/// three again, in order, the own one with its content, since the device may not have it.
#[tokio::test]
async fn s2_an_own_entry_between_unstored_ones_comes_again_in_its_place() {
    let world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    alice.say(direct, "zero").await;
    bob.entry(direct).await;
    let cursor = bob.settle().await;
    bob.stores = false;
    alice.say(direct, "one").await;
    bob.entry(direct).await;
    let own = bob.say(direct, "two").await;
    alice.say(direct, "three").await;
    bob.until(|item| texts(std::slice::from_ref(item)) == ["three"]).await;
    drop(bob);
    let back = world.resume("bob", cursor);
    let back = packet::Connect { incarnation: 1, first_unanswered: own.message_id, ..back };
    let mut bob = world.wire(back).await;
    let items = bob.caught_up().await;
    assert_eq!(texts(&items), ["one", "two", "three"]);
    let is_own =
        |item: &&packet::Item| matches!(&item.kind, Some(item::Kind::Own(o)) if o.message_id == own.message_id);
    assert_eq!(items.iter().filter(is_own).count(), 1);
}

/// S11: a client restored from a backup, its cursor and its outbox older than what it once sent. It is told how far its
/// ids were answered, takes a new incarnation, and finds what it had sent as own entries with their content.
#[tokio::test]
async fn s11_a_client_restored_from_a_backup_finds_what_it_had_sent() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    alice.say(direct, "before the backup").await;
    alice.until(|item| matches!(item.kind, Some(item::Kind::Own(_)))).await;
    let (cursor, next_id) = (alice.settle().await, alice.next_id);
    for text in ["after one", "after two"] {
        alice.say(direct, text).await;
    }
    drop(alice);
    let backup = packet::Connect { incarnation: 1, first_unanswered: next_id, ..world.resume("alice", cursor) };
    let told = world.wire(backup.clone()).await.connected.first_unanswered;
    assert!(told > next_id, "its ids up to {told} are answered already");
    let mut alice = world.wire(packet::Connect { incarnation: 0, first_unanswered: 1, ..backup }).await;
    assert_eq!(alice.incarnation, 2);
    let items = alice.caught_up().await;
    assert_eq!(texts(&items), ["after one", "after two"]);
    let is_own_of_1 = |item: &packet::Item| matches!(&item.kind, Some(item::Kind::Own(own)) if own.incarnation == 1);
    assert!(items.iter().all(is_own_of_1));
    // History says so too, for whoever had them skipped.
    let page = packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 10, backwards: true, compact: false };
    let items = alice.history(page).await.expect("a page").items;
    assert_eq!(texts(&items), ["after two", "after one", "before the backup"]);
    assert!(items.iter().all(is_own_of_1));
}

/// Makes so many groups with these users, as fast as the window allows; their ids.
async fn make_groups(wire: &mut Wire, count: u64, users: &[&str]) -> Vec<u64> {
    let first = wire.next_id;
    let (mut answered, mut made) = (first - 1, Vec::new());
    while (made.len() as u64) < count {
        while wire.next_id < first + count && wire.session.publish_room().items > 0 && wire.next_id < answered + 200 {
            let users = users.iter().map(|&user| user.to_owned()).collect();
            let create = packet::CreateGroup { label: wire.next_id.to_string(), users, ..Default::default() };
            wire.session.publish(packet::Publish {
                message_id: wire.next_id,
                first_unanswered: answered + 1,
                action: Some(Action::CreateGroup(create)),
                ..packet::Publish::default()
            });
            wire.next_id += 1;
        }
        match wire.event().await.expect("the connection holds") {
            longwire_protocol::ClientEvent::PublishAck(ack) => {
                answered = ack.message_id;
                made.push(ack.conversation);
            }
            longwire_protocol::ClientEvent::Refused(refusal) => panic!("{refusal}"),
            _ => {}
        }
        wire.items.clear();
    }
    made
}

/// S15: 20,000 conversations, as many as a user may have, and a broker that has just started: the first twenty, newest
/// first, are one request away. Others made 16,000 of them, which is as many as they can: the rest is the user's own.
/// SPEC R7-9, R5.5-4.
#[tokio::test]
async fn s15_the_first_twenty_of_20000_conversations_after_a_cold_start() {
    // Nearly all of it is saved in runs and state, and none of that is in memory after the start.
    let mut world = World::with_options(StoreOptions { seal_entries: 5_000, ..StoreOptions::default() }).await;
    let connect = packet::Connect { device: "first".into(), ..world.connect("alice") };
    drop(world.wire(connect).await);
    for maker in ["bob", "carol", "dave", "erin"] {
        make_groups(&mut world.user(maker).await, 4_000, &["alice"]).await;
    }
    let mut mallory = world.user("mallory").await;
    let open = Action::OpenDirect(packet::OpenDirect { user: "alice".into() });
    assert_eq!(mallory.act(0, open).await.expect_err("no more from others").reason, Reason::QuotaExceeded);
    let group = mallory.create_group("without her", &["alice"]).await;
    let added = mallory.set_role(group, "alice", Role::Member).await;
    assert_eq!(added.expect_err("no more from others").reason, Reason::QuotaExceeded);

    let mut alice = world.user("alice").await;
    let mut newest = make_groups(&mut alice, 4_000, &[]).await;
    let one_more =
        Action::CreateGroup(packet::CreateGroup { label: "one more".into(), users: Vec::new(), ..Default::default() });
    assert_eq!(alice.act(0, one_more).await.expect_err("as many as it may").reason, Reason::QuotaExceeded);
    drop(alice);
    world.restart().await;
    let mut alice = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("alice") }).await;
    let page = alice.conversations_page(0, 20).await;
    let first: Vec<u64> = page.conversations.iter().map(|c| c.id).collect();
    newest.reverse();
    assert_eq!(first, newest[..20]);
    assert_eq!(alice.conversations_page(page.next, 1).await.conversations[0].id, newest[20]);
}

/// Stores whose memtables are sealed all the time, so that nearly everything is read from runs.
fn tiny_memtables() -> StoreOptions {
    StoreOptions { birth_unix_ms: 1_700_000_000_000, seal_entries: 20, ..StoreOptions::default() }
}

#[tokio::test]
async fn what_has_left_memory_is_caught_up_with_and_paged_just_the_same() {
    let mut world = World::with_options(tiny_memtables()).await;
    let mut alice = world.user("alice").await;
    let groups = [alice.create_group("a", &["bob"]).await, alice.create_group("b", &["bob"]).await];
    let (direct, back) = world.away(&mut alice, "bob").await;
    let back = packet::Connect { catch_up: CatchUpMode::All.into(), ..back };
    for n in 0..300 {
        let conversation = [groups[0], groups[1], direct][n % 3];
        alice.say(conversation, &n.to_string()).await;
    }
    // Nothing of bob's stays in a memtable: his last step reads the disk, too, and he must go live after it.
    let private = alice.create_group("private", &[]).await;
    for n in 0..60 {
        alice.say(private, &n.to_string()).await;
    }
    drop(alice);
    world.restart().await;
    let small = Some(packet::Window { items: 16, bytes: 1_000 });
    let mut live = Vec::new();
    for (device, bulk) in [("phone", small), ("laptop", None)] {
        let connect = packet::Connect { device: device.into(), bulk, ..back.clone() };
        let mut bob = world.wire(connect).await;
        let items = bob.caught_up().await;
        for (at, lane) in [&groups[..], &[direct]].iter().enumerate() {
            let got = items.iter().filter_map(entry).filter(|e| lane.contains(&e.conversation));
            let got: Vec<_> = got.map(|e| String::from_utf8_lossy(&e.content).into_owned()).collect();
            let expected: Vec<_> =
                (0..300).filter(|n| (n % 3 == 2) == (at == 1)).map(|n: usize| n.to_string()).collect();
            assert_eq!(got, expected, "log order within a lane of {device}");
        }
        live.push(bob);
    }
    let mut alice = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
    alice.next_id += 1;
    for conversation in [groups[0], direct] {
        alice.say(conversation, "live").await;
        for bob in &mut live {
            assert_eq!(&bob.entry(conversation).await.content[..], b"live");
        }
    }
    let page =
        packet::HistoryRequest { conversation: groups[0], from_seq: 0, limit: 200, backwards: true, compact: false };
    let page = live[0].history(page).await.expect("a page");
    assert_eq!(page.items.iter().filter_map(entry).count(), 102, "all since the own membership");
}

/// S12, the store's part: the oldest runs go, what is missing is reported as expired, live and by history.
#[tokio::test]
async fn s12_what_retention_lets_go_is_reported_as_expired() {
    let mut world = World::with_options(tiny_memtables()).await;
    let mut alice = world.user("alice").await;
    let (direct, back) = world.away(&mut alice, "bob").await;
    for n in 0..200 {
        alice.say(direct, &n.to_string()).await;
    }
    drop(alice);
    world.stop().await;
    world.retention = longwire::broker::commit::Retention { bytes: Some(1), ..Default::default() };
    world.start().await;
    let back = packet::Connect { catch_up: CatchUpMode::All.into(), ..back };
    let whole =
        packet::HistoryRequest { conversation: direct, from_seq: 0, limit: 200, backwards: false, compact: false };
    let mut alice = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
    let expired = loop {
        let page = alice.history(whole).await.expect("a page");
        if let Some(&(_, 1, to, HeadReason::Expired)) = heads(&page.items).first() {
            break to;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let items = world.wire(back).await.caught_up().await;
    let head = heads(&items)[0];
    assert_eq!((head.0, head.3), (direct, HeadReason::Expired));
    let kept = seqs(&items, direct);
    assert_eq!(head.2 + 1, kept.first().copied().unwrap_or(202), "the head ends where the entries begin");
    assert!(head.2 >= expired && head.1 <= 2);
    assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    alice.next_id += 1;
    assert_eq!(alice.say(direct, "goes on").await.seq, 202);
}

/// R6.3-4: a cursor covers every item that stands before it on the wire, also while items flow: whoever stores entries
/// and cursor together and dies right after a cursor gets nothing twice.
#[tokio::test]
async fn a_cursor_covers_exactly_what_stands_before_it_while_items_flow() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let group = alice.create_group("busy", &["bob"]).await;
    let talk = tokio::spawn(async move {
        for n in 0..1_500 {
            alice.say(group, &n.to_string()).await;
        }
        alice
    });
    let mut connect = packet::Connect { catch_up: CatchUpMode::All.into(), ..world.connect("bob") };
    let (mut stored, mut cursors) = (Vec::new(), 0);
    while stored.last() != Some(&1_502) {
        let mut bob = world.wire(connect.clone()).await;
        let mut unstored = Vec::new();
        loop {
            match bob.event().await.expect("the connection holds") {
                longwire_protocol::ClientEvent::Items { items, .. } => {
                    unstored.extend(seqs(&items, group));
                }
                longwire_protocol::ClientEvent::Cursor(cursor) => {
                    stored.append(&mut unstored);
                    (connect.start, connect.cursor) = (StartKind::OwnCursor.into(), cursor);
                    connect.incarnation = bob.incarnation;
                    cursors += 1;
                    break;
                }
                _ => {}
            }
        }
        // Two cursors of one session are a second apart; what matters is the place of the first after each resume.
        bob.leave().await;
    }
    let first = stored[0];
    assert_eq!(stored, (first..=1_502).collect::<Vec<_>>(), "after {cursors} cursors");
    assert!(cursors > 2);
    talk.await.expect("alice talked");
}
