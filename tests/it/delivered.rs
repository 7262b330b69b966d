//! Receipts: what was delivered to whom, asked for and followed, over real sockets.

use bytes::Bytes;
use longwire_protocol::ClientEvent;
use longwire_protocol::packet::item::Kind;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Mark, ReceiptsRequest, Role, SignalKind, response};
use longwire_protocol::reason::{Reason, Refusal};

use crate::world::{PATIENCE, Wire, World, entry};

impl Wire {
    async fn marks(&mut self, request: ReceiptsRequest) -> Result<Vec<Mark>, Refusal> {
        match self.ask(Op::Receipts(request)).await? {
            response::Result::Receipts(page) => Ok(page.marks),
            other => panic!("{other:?} answers a request for receipts"),
        }
    }

    async fn receipts_of(&mut self, conversation: u64) -> Result<Vec<Mark>, Refusal> {
        self.marks(ReceiptsRequest { conversation, limit: 200, ..Default::default() }).await
    }

    pub(crate) async fn follow(&mut self, conversation: u64) -> Result<Vec<Mark>, Refusal> {
        self.marks(ReceiptsRequest { conversation, limit: 200, follow: true, ..Default::default() }).await
    }

    pub(crate) async fn unfollow(&mut self, conversation: u64) {
        let stop = ReceiptsRequest { conversation, stop: true, ..Default::default() };
        assert_eq!(self.marks(stop).await.expect("answered"), []);
    }

    /// How far a user has it, as a receipt says.
    async fn delivered_to(&mut self, conversation: u64, user: u64) -> u64 {
        let marks = self.receipts_of(conversation).await.expect("receipts");
        marks.iter().find(|mark| mark.user == user).expect("it is in there").delivered
    }

    /// Waits until a receipt says that a user has it up to there.
    async fn until_delivered(&mut self, conversation: u64, user: u64, seq: u64) {
        let wait = async { while self.delivered_to(conversation, user).await < seq {} };
        tokio::time::timeout(PATIENCE, wait).await.expect("it is delivered in time");
    }

    /// The next delivery that it is told of: in which conversation, to whom, up to where.
    pub(crate) async fn told(&mut self) -> (u64, u64, u64) {
        loop {
            match self.event().await.expect("the connection holds") {
                ClientEvent::Signal(signal) if signal.kind() == SignalKind::Delivered => {
                    return (signal.conversation, signal.user, signal.seq);
                }
                _ => {}
            }
        }
    }
}

fn block(user: &str, undo: bool) -> Action {
    Action::Block(packet::Block { user: user.into(), undo })
}

/// A mark as a receipt has it.
fn receipt(conversation: u64, user: u64, seq: u64, delivered: u64) -> Mark {
    Mark { conversation, user, seq, delivered }
}

/// R8-13, R8-14: it is delivered with the first device that acks it, not when it was sent; and who follows is told.
#[tokio::test]
async fn who_follows_is_told_when_the_first_device_has_it() {
    let world = World::new().await;
    let (mut ann, mut phone) = (world.user("ann").await, world.user("ben").await);
    let direct = ann.open_direct("ben").await;
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("ben") }).await;
    laptop.caught_up().await;
    let (of_ann, of_ben) = (ann.connected.user, phone.connected.user);
    (phone.stores, laptop.stores) = (false, false);
    ann.say(direct, "hello").await;
    let marks = ann.follow(direct).await.expect("it is in there");
    assert_eq!(marks, [receipt(direct, of_ann, 1, 1), receipt(direct, of_ben, 0, 0)]);
    phone.entry(direct).await;
    laptop.entry(direct).await;
    assert_eq!(ann.delivered_to(direct, of_ben).await, 0, "it was sent, and nobody has stored it");
    laptop.store_all().await;
    assert_eq!(ann.told().await, (direct, of_ben, 1));
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1], receipt(direct, of_ben, 0, 1));
    // The other device changes nothing, and the next message is news again.
    phone.store_all().await;
    ann.say(direct, "there?").await;
    ann.say(direct, "well").await;
    phone.entry(direct).await;
    phone.entry(direct).await;
    phone.store_all().await;
    assert_eq!(ann.told().await, (direct, of_ben, 3), "once");
    ann.unfollow(direct).await;
    ann.say(direct, "good night").await;
    laptop.stores = true;
    laptop.until(|item| entry(item).is_some_and(|entry| entry.seq == 4)).await;
    laptop.flush().await;
    ann.until_delivered(direct, of_ben, 4).await;
    // What is not followed is not told: the next signal is that of another conversation.
    let group = ann.create_group("team", &["ben"]).await;
    ann.follow(group).await.expect("a member");
    ann.say(group, "both of us").await;
    laptop.entry(group).await;
    laptop.flush().await;
    let (conversation, ..) = ann.told().await;
    assert_eq!(conversation, group);
}

/// R8-13: nothing is written for it, and it outlives sessions and the broker; who never stored anything has nothing.
#[tokio::test]
async fn what_was_delivered_is_known_when_everybody_is_away() {
    let mut world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let direct = ann.open_direct("ben").await;
    let (of_ben, group) = (ben.connected.user, ann.create_group("team", &["ben", "cid"]).await);
    ann.say(direct, "one").await;
    ben.entry(direct).await;
    ben.leave().await;
    ann.say(direct, "two").await;
    let said = ann.say(group, "all of you").await.seq;
    world.restart().await;
    let mut ann = world.user("ann").await;
    assert_eq!(ann.delivered_to(direct, of_ben).await, 1);
    let marks = ann.receipts_of(group).await.expect("receipts");
    assert!(marks.iter().all(|mark| mark.user == ann.connected.user || mark.delivered < said), "{marks:?}");
    let mut ben = world.user("ben").await;
    ann.follow(direct).await.expect("it is in there");
    ben.caught_up().await;
    ben.flush().await;
    ann.until_delivered(direct, of_ben, 2).await;
    ben.act(group, Action::SetMark(packet::SetMark { seq: said })).await.expect("marked");
    assert_eq!(ann.delivered_to(group, of_ben).await, said, "what is read is there");
}

/// R8-13: what a level withholds counts once its report is acked, as what is skipped.
#[tokio::test]
async fn what_is_withheld_counts_as_had() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let group = ann.create_group("team", &["ben"]).await;
    let level = packet::Level::HeadsOnly.into();
    ben.act(group, Action::SetLevel(packet::SetLevel { level })).await.expect("set");
    ann.follow(group).await.expect("a member");
    let said = ann.say(group, "noise").await.seq;
    ben.until(|item| matches!(item.kind, Some(packet::item::Kind::Head(_)))).await;
    ben.flush().await;
    loop {
        let (conversation, user, seq) = ann.told().await;
        assert_eq!((conversation, user), (group, ben.connected.user));
        if seq == said {
            break;
        }
    }
}

/// R8-12, R8-14: who may not know who has read what is told of no delivery either.
#[tokio::test]
async fn deliveries_are_for_who_may_see_marks() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let mut cid = world.user("cid").await;
    let group = ann.create_group("team", &["ben"]).await;
    let of = |answer: Result<Vec<Mark>, Refusal>| answer.map(|_| ()).map_err(|refusal| refusal.reason);
    assert_eq!(of(cid.follow(group).await), Err(Reason::UnknownConversation));
    ann.follow(group).await.expect("the owner");
    ben.follow(group).await.expect("a member");
    let policy = packet::Policy { hides_marks: true, ..Default::default() };
    let info = Some(Box::new(packet::Info { policy: Some(policy), ..Default::default() }));
    ann.act(group, Action::SetInfo(packet::SetInfo { info })).await.expect("the owner may");
    assert_eq!(of(ben.follow(group).await), Err(Reason::Forbidden));
    assert_eq!(of(ben.receipts_of(group).await), Err(Reason::Forbidden));
    assert_eq!(of(ann.follow(group).await), Err(Reason::Forbidden), "it is not told live of what is hidden");
    assert_eq!(of(ann.receipts_of(group).await), Ok(()), "and may ask");
    let many: Vec<String> = (0..210).map(|n| format!("u{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["ben"]).collect();
    let large = ann.create_group("large", &many).await;
    assert_eq!(of(ben.follow(large).await), Err(Reason::Forbidden), "marks reach nobody there");

    // Who is out is told no more: what ben hears of is a direct conversation, though more was delivered in the group.
    let second = ann.create_group("second", &["ben", "cid"]).await;
    ben.follow(second).await.expect("a member");
    ann.set_role(second, "ben", Role::None).await.expect("removed");
    let said = ann.say(second, "without ben").await.seq;
    let of_cid = cid.connected.user;
    cid.until(|item| entry(item).is_some_and(|entry| entry.conversation == second && entry.seq == said)).await;
    cid.flush().await;
    ann.until_delivered(second, of_cid, said).await;
    let direct = ben.open_direct("cid").await;
    ben.follow(direct).await.expect("its own");
    ben.say(direct, "what did they say?").await;
    cid.entry(direct).await;
    cid.flush().await;
    loop {
        let (conversation, user, seq) = ben.told().await;
        if conversation == direct {
            assert_eq!((user, seq), (of_cid, 1));
            break;
        }
        assert!(conversation == group || seq < said, "ben is out of {conversation}");
    }
}

/// The SDK: what is followed is told as signals, on the next connection too; an edit takes what stands beside a message along.
#[tokio::test]
async fn the_sdk_follows_deliveries_and_edits_what_stands_beside() {
    use longwire_client::{Client, Signal};
    let world = World::new().await;
    let mut ben = world.user("ben").await;
    let (ann, _deliveries) = Client::start(world.client("ann")).expect("started");
    let mut signals = ann.signals();
    let group = ann.create_group("team", ["ben"]).await.expect("kept").await.expect("made").conversation;
    let of_ben = ben.connected.user;
    let marks = ann.follow_receipts(group).await.expect("a member");
    assert_eq!(marks.len(), 2);
    let seq = ann.publish(group, "hello").await.expect("kept").await.expect("stored").seq;
    ben.entry(group).await;
    ben.flush().await;
    let told =
        |signal: &Signal| matches!(signal, Signal::Delivered { user, seq: to, .. } if *user == of_ben && *to == seq);
    let mut until = async || while !told(&signals.next().await.expect("the client lives")) {};
    tokio::time::timeout(PATIENCE, until()).await.expect("told");
    let beside = packet::Beside { mentions: vec![of_ben], ..Default::default() };
    ann.edit_with(group, seq, "hello, @ben", beside.clone()).await.expect("kept").await.expect("edited");
    let page = ann.history_compact(group, seq, 1, longwire_client::Direction::Backwards).await.expect("a page");
    let shown = entry(&page.items[0]).expect("the message");
    assert_eq!((&shown.content[..], shown.beside.as_deref()), (&b"hello, @ben"[..], Some(&beside)));
    ann.close().await;
}

/// R15-5: what someone reads and is delivered is told no more to whom it blocks, live, after an absence, or when asked.
#[tokio::test]
async fn who_is_blocked_learns_nothing_from_marks_and_deliveries() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let (of_ann, of_ben) = (ann.connected.user, ben.connected.user);
    let direct = ann.open_direct("ben").await;
    let mark = |seq| Action::SetMark(packet::SetMark { seq });
    let is_mark = |item: &packet::Item| matches!(&item.kind, Some(Kind::Mark(mark)) if mark.user == of_ben);
    ann.say(direct, "read").await;
    ben.entry(direct).await;
    ben.act(direct, mark(1)).await.expect("set");
    ann.until(is_mark).await;
    ann.follow(direct).await.expect("it is in there");
    let mut tablet = world.wire(packet::Connect { device: "tablet".into(), ..world.connect("ann") }).await;
    tablet.caught_up().await;
    let cursor = tablet.settle().await;
    tablet.leave().await;
    ben.stores = false;
    ann.say(direct, "not yet").await;
    ben.entry(direct).await;
    ben.act(0, block("ann", false)).await.expect("blocked");
    ben.stores = true;
    ben.store_all().await;
    ben.act(direct, mark(2)).await.expect("set");
    let blocked = [receipt(direct, of_ann, 2, 2), receipt(direct, of_ben, 1, 1)];
    assert_eq!(ann.receipts_of(direct).await.expect("receipts"), blocked, "as they were");
    // What comes next is of another conversation, and what is said, not what is read.
    let mut cid = world.user("cid").await;
    let group = ann.create_group("team", &["cid"]).await;
    ann.follow(group).await.expect("a member");
    ann.say(group, "both of us").await;
    cid.entry(group).await;
    cid.flush().await;
    assert_eq!(ann.told().await.0, group);
    ben.say(direct, "who blocks may write").await;
    let came = ann.until(|item| entry(item).is_some_and(|entry| entry.sender == of_ben && entry.seq == 3)).await;
    assert!(!came.iter().any(is_mark), "{came:?}");
    let back = tablet_again(&world, &tablet, cursor);
    let came = world.wire(back).await.caught_up().await;
    assert!(came.iter().any(|item| entry(item).is_some_and(|entry| entry.seq == 3)), "{came:?}");
    assert!(!came.iter().any(is_mark), "{came:?}");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1], blocked[1]);
    ben.act(0, block("ann", true)).await.expect("unblocked");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1], receipt(direct, of_ben, 3, 3));
    ann.say(direct, "again").await;
    ben.entry(direct).await;
    ben.act(direct, mark(4)).await.expect("set");
    ann.until(is_mark).await;
}

/// Ann's tablet comes back, with the cursor that it had.
fn tablet_again(world: &World, tablet: &Wire, cursor: Bytes) -> packet::Connect {
    let (device, incarnation) = ("tablet".into(), tablet.incarnation);
    packet::Connect { device, incarnation, first_unanswered: 1, ..world.resume("ann", cursor) }
}

/// R6.1-7: marks that are hidden are told to nobody else, live, after an absence, by receipts or by what counts as delivered;
/// who hides them sees none either, its own devices go on telling each other, groups too; and the broker remembers.
#[tokio::test]
async fn who_hides_its_marks_is_not_seen_to_read_and_sees_nobody_read() {
    let mut world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let (of_ann, of_ben) = (ann.connected.user, ben.connected.user);
    let direct = ann.open_direct("ben").await;
    let mark = |seq| Action::SetMark(packet::SetMark { seq });
    let hide = |undo| Action::HideMarks(packet::HideMarks { undo });
    let is_mark = |item: &packet::Item| matches!(&item.kind, Some(Kind::Mark(mark)) if mark.user != 0);
    ann.say(direct, "read").await;
    ben.entry(direct).await;
    ben.act(direct, mark(1)).await.expect("set");
    ann.until(is_mark).await;
    let mut tablet = world.wire(packet::Connect { device: "tablet".into(), ..world.connect("ann") }).await;
    tablet.caught_up().await;
    let cursor = tablet.settle().await;
    tablet.leave().await;
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("ben") }).await;
    laptop.caught_up().await;
    assert!(!ben.presence(&[]).await.expect("an answer").hides_marks, "they are shown as long as nothing is said");
    let told = ben.act(0, hide(false)).await.expect("whoever wants hides them");
    assert_eq!((told.seq, told.conversation), (0, 0));
    ben.act(0, hide(false)).await.expect("it does already");
    assert!(laptop.presence(&[]).await.expect("an answer").hides_marks, "on all devices");

    // What is read before it is acked is not told as delivered either, to who asks and to who follows.
    (ben.stores, laptop.stores) = (false, false);
    ben.store_all().await;
    ann.until_delivered(direct, of_ben, 1).await;
    assert_eq!(ann.follow(direct).await.expect("it is in there")[1], receipt(direct, of_ben, 0, 1));
    ann.say(direct, "seen").await;
    ben.entry(direct).await;
    ben.act(direct, mark(2)).await.expect("set");
    laptop.until(|item| matches!(&item.kind, Some(Kind::Mark(mark)) if mark.user == 0 && mark.seq == 2)).await;
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1], receipt(direct, of_ben, 0, 1));
    assert_eq!(ben.receipts_of(direct).await.expect("receipts")[1], receipt(direct, of_ben, 2, 2), "it knows its own");
    ben.stores = true;
    ben.store_all().await;
    assert_eq!(ann.told().await, (direct, of_ben, 2), "it has it, whether it was read or not");
    // And it sees nobody read.
    ann.act(direct, mark(2)).await.expect("set");
    ann.store_all().await;
    ben.until_delivered(direct, of_ann, 2).await;
    assert_eq!(ben.receipts_of(direct).await.expect("receipts")[0], receipt(direct, of_ann, 0, 2));
    ann.say(direct, "well?").await;
    let came = ben.until(|item| entry(item).is_some_and(|entry| entry.seq == 3)).await;
    assert!(!came.iter().any(is_mark), "{came:?}");
    ben.say(direct, "what?").await;
    let came = ann.until(|item| entry(item).is_some_and(|entry| entry.seq == 4)).await;
    assert!(!came.iter().any(is_mark), "{came:?}");

    // In groups nothing changes.
    let group = ann.create_group("team", &["ben"]).await;
    let said = ann.say(group, "both of us").await.seq;
    ben.entry(group).await;
    ben.act(group, mark(said)).await.expect("set");
    ann.until(is_mark).await;

    world.restart().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let back = tablet_again(&world, &tablet, cursor);
    let is_here = |item: &packet::Item| matches!(&item.kind, Some(Kind::Mark(mark)) if mark.conversation == direct && mark.user != 0);
    let came = world.wire(back).await.caught_up().await;
    assert!(came.iter().any(|item| entry(item).is_some_and(|entry| entry.seq == 4)), "{came:?}");
    assert!(!came.iter().any(is_here), "{came:?}");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1].seq, 0);
    // Who blocks besides is seen to have nothing: what it had read at the block is hidden.
    ben.act(0, block("ann", false)).await.expect("blocked");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1], receipt(direct, of_ben, 0, 0));
    ben.act(0, block("ann", true)).await.expect("unblocked");

    // Shown again, it is told by receipts, and from the next mark on.
    ben.act(0, hide(true)).await.expect("shown again");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1].seq, 4);
    ann.say(direct, "there").await;
    ben.entry(direct).await;
    ben.act(direct, mark(5)).await.expect("set");
    ann.until(is_here).await;
    // It takes both of them.
    ann.act(0, hide(false)).await.expect("hidden");
    assert_eq!(ann.receipts_of(direct).await.expect("receipts")[1].seq, 0);
    assert_eq!(ben.receipts_of(direct).await.expect("receipts")[0].seq, 0);
}

/// R6.1-7: what the SDK says of it.
#[tokio::test]
async fn the_sdk_hides_marks() {
    use longwire_client::Client;
    let world = World::new().await;
    let (ann, _deliveries) = Client::start(world.client("ann")).expect("started");
    assert!(!ann.hides_marks().await.expect("an answer"));
    ann.hide_marks(true).await.expect("kept").await.expect("hidden");
    assert!(ann.hides_marks().await.expect("an answer"));
    ann.hide_marks(false).await.expect("kept").await.expect("shown");
    assert!(!ann.hides_marks().await.expect("an answer"));
    ann.close().await;
}
