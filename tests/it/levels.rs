//! How much of a conversation a device is delivered (SPEC 6.6): levels, and devices that nobody looks at.

use bytes::Bytes;
use longwire::store::Failure;
use longwire_protocol::limits::LEVELS_MAX;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, HeadReason, Item, Level, item};
use longwire_protocol::reason::{Reason, Refusal};

use crate::faults::Faulty;
use crate::world::{Wire, World, entry, heads, texts};

impl Wire {
    async fn set_level(&mut self, conversation: u64, level: Level) -> Result<packet::PublishAck, Refusal> {
        self.act(conversation, Action::SetLevel(packet::SetLevel { level: level.into() })).await
    }

    async fn goes_to(&mut self, background: bool) {
        self.ask(Op::Background(packet::BackgroundRequest { background })).await.expect("taken");
    }

    async fn level(&mut self, conversation: u64) -> Level {
        let all = self.conversations().await;
        all.iter().find(|one| one.id == conversation).expect("it is listed").level()
    }

    /// Everything up to an entry that says this.
    async fn until_text(&mut self, text: &str) -> Vec<Item> {
        self.until(|item| entry(item).is_some_and(|entry| entry.content == text)).await
    }

    async fn mention(&mut self, conversation: u64, text: &str, user: u64) -> packet::PublishAck {
        let beside = Some(Box::new(packet::Beside { mentions: vec![user], ..Default::default() }));
        let content = Bytes::copy_from_slice(text.as_bytes());
        self.insist(packet::Publish { conversation, content, beside, ..Default::default() }).await.expect("taken")
    }
}

fn is_head(item: &Item) -> bool {
    matches!(item.kind, Some(item::Kind::Head(_)))
}

/// Ann and Ben in two groups, each with all that was said so far.
async fn two_groups(world: &World) -> (Wire, Wire, u64, u64) {
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let (one, other) = (ann.create_group("one", &["ben"]).await, ann.create_group("other", &["ben"]).await);
    ann.say(other, "both are there").await;
    ben.until_text("both are there").await;
    (ann, ben, one, other)
}

/// SPEC R6.6-1, R6.6-2, R6.6-4: of a group that it wants nothing of a device is told with what it does want, in one
/// `Head`; other devices notice nothing; and so it is when it comes again.
#[tokio::test]
async fn a_device_is_told_of_what_it_wants_nothing_of_with_what_it_wants() {
    let world = World::new().await;
    let (mut ann, mut ben, one, other) = two_groups(&world).await;
    let head = ben.set_level(one, Level::Nothing).await.expect("a member may").seq;
    assert_eq!((ben.level(one).await, ben.level(other).await), (Level::Nothing, Level::Full));
    let tablet = packet::Connect { device: "tablet".into(), ..world.connect("ben") };
    let mut tablet = world.wire(tablet).await;
    assert_eq!(tablet.level(one).await, Level::Full, "it is the other device's");
    for text in ["a", "b", "c"] {
        ann.say(one, text).await;
    }
    ann.say(other, "said there").await;
    let items = ben.until_text("said there").await;
    assert_eq!(heads(&items), [(one, head + 1, head + 3, HeadReason::Withheld)]);
    assert_eq!(texts(&items), ["said there"], "and nothing of what it does not want");
    assert_eq!(texts(&tablet.until_text("said there").await), ["a", "b", "c", "said there"]);

    let cursor = ben.settle().await;
    ben.leave().await;
    ann.say(one, "while it is away").await;
    let mut ben = world.wire(world.resume("ben", cursor)).await;
    let items = ben.caught_up().await;
    assert_eq!(heads(&items), [(one, head + 4, head + 4, HeadReason::Withheld)], "before it has caught up");
    assert!(texts(&items).is_empty(), "{items:?}");
}

/// SPEC R6.6-4: what only heads are wanted of is told after a second, whether there is something else or not.
#[tokio::test]
async fn heads_come_by_themselves() {
    let world = World::new().await;
    let (mut ann, mut ben, one, _) = two_groups(&world).await;
    let head = ben.set_level(one, Level::HeadsOnly).await.expect("a member may").seq;
    for text in ["a", "b"] {
        ann.say(one, text).await;
    }
    let mut told = Vec::new();
    while told.last() != Some(&(head + 2)) {
        for (of, from, to, reason) in heads(&ben.until(is_head).await) {
            assert_eq!((of, reason), (one, HeadReason::Withheld));
            assert_eq!(from, told.last().map_or(head + 1, |last| last + 1), "without a hole");
            told.push(to);
        }
    }
}

/// SPEC R6.6-3, R6.6-5, R6.6-6: in the background what is direct comes, and a message that mentions the user, behind what
/// was withheld; coming to the foreground tells the rest.
#[tokio::test]
async fn only_what_is_urgent_is_delivered_into_the_background() {
    let world = World::new().await;
    let (mut ann, mut ben, one, other) = two_groups(&world).await;
    let direct = ann.open_direct("ben").await;
    ann.say(direct, "direct").await;
    ben.until_text("direct").await;
    ben.goes_to(true).await;
    let first = ann.say(one, "not urgent").await.seq;
    ann.act(other, Action::SetMark(packet::SetMark { seq: 1 })).await.expect("marked");
    ann.say(other, "nor this").await;
    let user = ben.connected.user;
    ann.say(direct, "look").await;
    assert_eq!(texts(&ben.until_text("look").await), ["look"], "express waits for nothing");
    ann.mention(other, "hey ben", user).await;
    let items = ben.until_text("hey ben").await;
    let told: Vec<_> = heads(&items).iter().map(|(of, .., reason)| (*of, *reason)).collect();
    assert_eq!(told, [(one, HeadReason::Withheld), (other, HeadReason::Withheld)], "in the order of the log");
    assert_eq!(texts(&items), ["hey ben"]);

    ann.say(one, "last").await;
    ann.say(direct, "fence").await;
    assert!(!ben.until_text("fence").await.iter().any(is_head), "nothing tells of it yet");
    ben.goes_to(false).await;
    let items = ben.until(is_head).await;
    assert_eq!(heads(&items), [(one, first + 1, first + 1, HeadReason::Withheld)], "at once");
    ann.say(one, "delivered").await;
    assert_eq!(texts(&ben.until_text("delivered").await), ["delivered"], "and so is what comes");
}

/// SPEC R6.6-6: wanting everything again tells what was withheld, and delivery goes on behind that.
#[tokio::test]
async fn a_level_that_is_lifted_is_answered_by_what_it_withheld() {
    let world = World::new().await;
    let (mut ann, mut ben, one, _) = two_groups(&world).await;
    let head = ben.set_level(one, Level::Nothing).await.expect("a member may").seq;
    ann.say(one, "withheld").await;
    assert_eq!(ben.set_level(one, Level::Full).await.expect("a member may").seq, head + 1);
    assert_eq!(ben.level(one).await, Level::Full);
    ann.say(one, "delivered").await;
    let items = ben.until_text("delivered").await;
    assert_eq!(heads(&items), [(one, head + 1, head + 1, HeadReason::Withheld)]);
    assert_eq!(texts(&items), ["delivered"]);
}

/// SPEC R6.6-1.
#[tokio::test]
async fn levels_are_for_who_is_in_a_conversation_and_not_for_inboxes() {
    let mut world = World::new().await;
    let (mut ann, mut ben, one, _) = two_groups(&world).await;
    let cids = longwire::auth::Claims { read: vec!["news".into()], ..world.claims("cid") };
    let mut cid = world.wire(packet::Connect { token: world.token(&cids), ..world.connect("cid") }).await;
    let reason = |answer: Result<packet::PublishAck, Refusal>| answer.expect_err("refused").reason;
    assert_eq!(reason(cid.set_level(one, Level::Nothing).await), Reason::UnknownConversation);
    let channel = cid.open_channel("news").await.expect("opened");
    assert_eq!(reason(cid.set_level(channel, Level::Nothing).await), Reason::Forbidden, "it only watches");
    let inbox = ben.connected.inbox;
    assert_eq!(reason(ben.set_level(inbox, Level::Nothing).await), Reason::InvalidArgument);
    let unknown = Action::SetLevel(packet::SetLevel { level: 9 });
    assert_eq!(reason(ben.act(one, unknown).await), Reason::InvalidArgument);
    ben.set_level(one, Level::HeadsOnly).await.expect("a member may");
    ann.leave().await;
    cid.leave().await;
    ben.leave().await;
    world.restart().await;
    let mut ben = world.user("ben").await;
    assert_eq!(ben.level(one).await, Level::HeadsOnly, "it outlives the broker");
    const { assert!(LEVELS_MAX >= 1_000) };
}

/// A level whose commit failed under way is what the log says after reopening, also to the session that is there.
#[tokio::test]
async fn a_level_of_unknown_outcome_holds_if_its_frame_is_there() {
    for (failure, heard) in
        [(Failure::UnknownAndStored, &["said there"][..]), (Failure::UnknownAndLost, &["said here", "said there"][..])]
    {
        let log = Faulty::new();
        let world = World::with_log(Box::new(log.clone())).await;
        let (mut ann, mut ben, one, other) = two_groups(&world).await;
        log.fail_next(failure);
        let refusal = ben.set_level(one, Level::Nothing).await.expect_err("its commit fails");
        assert_eq!(refusal.reason, Reason::OutcomeUnknown, "{failure:?}");
        for (group, text) in [(one, "said here"), (other, "said there")] {
            ann.insist(packet::Publish { conversation: group, content: text.into(), ..Default::default() })
                .await
                .expect("once the store is open again");
        }
        assert_eq!(texts(&ben.until_text("said there").await), heard, "{failure:?}");
    }
}
