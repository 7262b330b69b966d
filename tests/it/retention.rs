//! How long conversations keep their entries, as SPEC chapter 5.7 has it, and users that are erased, as 15.4 has it.

use std::path::Path;
use std::time::Duration;

use longwire::auth::Claims;
use longwire::routing::audit::Audit;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, EntryKind, HeadReason, PublishAck, RetentionMode, Role};
use longwire_protocol::reason::{Reason, Refusal};

use crate::world::{Wire, World, entry, heads, texts};

const SECOND: u64 = 1_000;
const DAY: u64 = 86_400_000;
/// How often something is looked at that comes of itself: a minute in all.
const PATIENCE: usize = 1_200;

fn retention(mode: RetentionMode, age_ms: u64) -> Action {
    let retention = Some(packet::Retention { mode: mode.into(), age_ms });
    Action::SetRetention(packet::SetRetention { retention })
}

fn erase(user: &str) -> Action {
    Action::EraseUser(packet::EraseUser { user: user.into() })
}

fn reason(answer: Result<PublishAck, Refusal>) -> Reason {
    answer.expect_err("refused").reason
}

async fn page(wire: &mut Wire, conversation: u64) -> Vec<packet::Item> {
    let request = packet::HistoryRequest { conversation, limit: 200, ..Default::default() };
    wire.history(request).await.expect("a page").items
}

/// Asks until history ends its first page's head at `seq` with this reason.
async fn until_gone(wire: &mut Wire, conversation: u64, seq: u64, reason: HeadReason) {
    for _ in 0..PATIENCE {
        let gone = heads(&page(wire, conversation).await);
        if gone.iter().any(|(_, from, to, why)| (*from..=*to).contains(&seq) && *why == reason) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{conversation}/{seq} is not {reason:?}");
}

async fn listed(wire: &mut Wire, conversation: u64) -> packet::Conversation {
    let all = wire.conversations().await;
    all.into_iter().find(|one| one.id == conversation).expect("it is listed")
}

async fn admin(world: &World) -> Wire {
    let claims = Claims { admin: true, ..world.claims("root") };
    world.wire(packet::Connect { token: world.token(&claims), ..world.connect("root") }).await
}

/// SPEC R5.7-1.
#[tokio::test]
async fn who_may_says_how_long_entries_are_kept() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let group = alice.create_group("g", &["bob"]).await;
    let week = || retention(RetentionMode::KeepFor, 7 * DAY);
    assert_eq!(reason(bob.act(group, week()).await), Reason::Forbidden, "a group's is its owner's to say");
    alice.set_role(group, "bob", Role::Admin).await.expect("an admin");
    assert_eq!(reason(bob.act(group, week()).await), Reason::Forbidden, "and no admin's");
    let ack = alice.act(group, week()).await.expect("said");
    assert_eq!(alice.act(group, week()).await.expect("acked").seq, ack.seq, "said again it writes no entry");
    let told =
        entry(&bob.until(|item| entry(item).is_some_and(|e| e.seq == ack.seq)).await.pop().expect("told")).cloned();
    let told = told.expect("an entry");
    let expected = packet::Retention { mode: RetentionMode::KeepFor.into(), age_ms: 7 * DAY };
    assert_eq!((told.kind(), told.retention), (EntryKind::Retention, Some(expected)));
    assert_eq!(listed(&mut bob, group).await.retention, Some(expected));

    let cases = [
        retention(RetentionMode::Keep, SECOND),
        retention(RetentionMode::KeepFor, SECOND - 1),
        retention(RetentionMode::KeepFor, 3_661 * DAY),
        retention(RetentionMode::UntilDelivered, 0),
        retention(RetentionMode::UntilDelivered, 367 * DAY),
    ];
    for wrong in cases {
        let words = format!("{wrong:?}");
        assert_eq!(reason(alice.act(group, wrong).await), Reason::InvalidArgument, "{words}");
    }
    let direct = alice.open_direct("bob").await;
    bob.act(direct, week()).await.expect("either of the two");
    assert_eq!(listed(&mut alice, direct).await.retention, Some(expected));
    alice.act(direct, retention(RetentionMode::Keep, 0)).await.expect("either of the two");
    assert_eq!(listed(&mut alice, direct).await.retention, None);
    let claims = Claims { publish: vec!["news/*".into()], ..world.claims("eve") };
    let mut eve = world.wire(packet::Connect { token: world.token(&claims), ..world.connect("eve") }).await;
    let channel = eve.open_channel("news/local").await.expect("opened");
    assert_eq!(reason(eve.act(channel, week()).await), Reason::Forbidden, "a channel is nobody's");
    let inbox = alice.act(999_999, week()).await;
    assert_eq!(reason(inbox), Reason::UnknownConversation);
}

/// SPEC R5.7-2, R5.7-3, R5.7-5: gone from history, the list, the counts; and told to who was away.
#[tokio::test]
async fn what_is_kept_for_a_time_goes() {
    let mut world = World::new().await;
    let (mut alice, mut bob, direct) = world.pair().await;
    for word in ["one", "two", "three"] {
        alice.say(direct, word).await;
    }
    bob.store_all().await;
    let cursor = bob.settle().await;
    bob.leave().await;
    let last = alice.say(direct, "four").await.seq;
    let said = alice.act(direct, retention(RetentionMode::KeepFor, SECOND)).await.expect("said").seq;
    until_gone(&mut alice, direct, last, HeadReason::Expired).await;
    let kept = alice.say(direct, "young").await.seq;
    assert_eq!(heads(&page(&mut alice, direct).await)[0].2, kept - 1, "all that was there before");
    let row = listed(&mut alice, direct).await;
    assert!(row.first_seq > last && row.first_seq <= kept, "kept from {}", row.first_seq);

    // What went is no target any more, and nobody loses anything by a start.
    assert_eq!(reason(alice.act(direct, Action::Recall(packet::Recall { seq: last })).await), Reason::InvalidArgument);
    world.restart().await;
    let mut bob = world.wire(world.resume("bob", cursor)).await;
    let missed = bob.caught_up().await;
    let gone = heads(&missed);
    let is_told =
        |seq: u64| gone.iter().any(|(_, from, to, why)| (*from..=*to).contains(&seq) && *why == HeadReason::Expired);
    assert!(is_told(last) && is_told(said), "each seq that is missing is explained: {gone:?}");
    assert!(!texts(&missed).contains(&"four".to_owned()), "and none is shown");
    let row = listed(&mut bob, direct).await;
    assert!(row.unread <= 1, "what went does not count: {}", row.unread);
    assert!(row.last.is_none_or(|last| last.seq == kept), "nor is it the newest message");
}

/// SPEC R5.7-4.
#[tokio::test]
async fn what_every_device_has_goes_and_nothing_else() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let mut bob = world.user("bob").await;
    let direct = alice.open_direct("bob").await;
    alice.act(direct, retention(RetentionMode::UntilDelivered, DAY)).await.expect("said");
    let (first, second) = (alice.say(direct, "first").await.seq, alice.say(direct, "second").await.seq);
    bob.until(|item| entry(item).is_some_and(|e| e.seq == second)).await;
    let is_own = |item: &packet::Item| matches!(&item.kind, Some(packet::item::Kind::Own(own)) if own.seq == second);
    alice.until(is_own).await;
    // A device that never stored anything holds it all back.
    alice.store_all().await;
    alice.leave().await;
    let page_now = page(&mut bob, direct).await;
    assert!(heads(&page_now).is_empty(), "bob's device has stored nothing yet: {page_now:?}");
    bob.store_all().await;
    bob.leave().await;
    let mut bob = world.wire(packet::Connect { device: "other".into(), ..world.connect("bob") }).await;
    bob.store_all().await;
    bob.leave().await;
    let mut alice = world.user("alice").await;
    until_gone(&mut alice, direct, first, HeadReason::Expired).await;
    until_gone(&mut alice, direct, second, HeadReason::Expired).await;
}

/// Whether something stands in any file of a folder.
pub(crate) fn is_in_files(folder: &Path, what: &str) -> Vec<String> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path()) {
        if file.is_dir() {
            found.extend(is_in_files(&file, what));
        } else if let Ok(bytes) = std::fs::read(&file)
            && bytes.windows(what.len()).any(|window| window == what.as_bytes())
        {
            found.push(file.display().to_string());
        }
    }
    found
}

/// SPEC R15-21, R15-22, R15-23, R15-24, R15-25, with starts in the middle.
#[tokio::test]
async fn who_is_erased_leaves_nothing_behind() {
    const SECRET: &str = "nobody shall ever read this again";
    let mut world = World::new().await;
    let (mut root, mut ada) = (admin(&world).await, world.user("ada").await);
    let mut ben = world.user("ben").await;
    drop(world.user("cid").await);
    let direct = ada.open_direct("ben").await;
    let group = ada.create_group("g", &["ben", "cid"]).await;
    let mut groups = Vec::new();
    for at in 0..40 {
        groups.push(ben.create_group(&format!("g{at}"), &["ada"]).await);
    }
    let said = ada.say(direct, SECRET).await.seq;
    let in_group = ada.say(group, SECRET).await.seq;
    let edit = packet::Publish {
        conversation: group,
        content: format!("edited: {SECRET}").into(),
        action: Some(Action::Edit(packet::Edit { seq: in_group })),
        ..Default::default()
    };
    ada.insist(edit).await.expect("edited");
    let react = Action::React(packet::React { seq: said, reaction: "+1".into() });
    ben.act(direct, react).await.expect("reacted");
    let profile = packet::Profile { display_name: "Ada".into(), ..Default::default() };
    ada.act(0, Action::SetProfile(packet::SetProfile { profile: Some(profile) })).await.expect("set");
    let contact = packet::SetContact { user: "ben".into(), nick: "benny".into(), ..Default::default() };
    ada.act(0, Action::SetContact(contact)).await.expect("kept");
    let others = ben.say(direct, "ben's own stays").await.seq;
    assert!(!is_in_files(&world.store(), SECRET).is_empty(), "the files hold it");

    assert_eq!(reason(ben.act(0, erase("ada")).await), Reason::Forbidden, "administrators erase");
    assert_eq!(reason(root.act(0, erase("nobody")).await), Reason::InvalidArgument);
    root.act(0, erase("ada")).await.expect("begun");
    root.act(0, erase("ada")).await.expect("said twice, done once");
    assert_eq!(ada.ended().await.reason, Reason::Revoked, "its sessions end at once");
    assert_eq!(world.refused(world.connect("ada")).await.reason, Reason::Revoked, "and it is let in no more");
    let now = page(&mut ben, direct).await;
    assert!(heads(&now).contains(&(direct, said, said, HeadReason::Erased)), "shown to nobody from then on: {now:?}");
    assert_eq!(texts(&now), ["ben's own stays"], "what others said stays: {others}");

    // In the middle, and once more.
    world.restart().await;
    let mut ben = world.user("ben").await;
    until_gone(&mut ben, group, in_group, HeadReason::Erased).await;
    world.restart().await;
    let (mut ben, mut root) = (world.user("ben").await, admin(&world).await);
    let is_in = |all: &[packet::Conversation]| all.iter().filter(|c| groups.contains(&c.id) && c.members == 2).count();
    for _ in 0..PATIENCE {
        if is_in(&ben.conversations().await) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(is_in(&ben.conversations().await), 0, "it left them all");
    let roles = |page: Vec<packet::Item>| -> Vec<(String, Role)> {
        let memberships = page.iter().filter_map(|item| entry(item)?.membership.clone());
        memberships.map(|one| (one.name.clone(), one.role())).collect()
    };
    let mut cid = world.user("cid").await;
    let told = roles(page(&mut cid, group).await);
    let [.., (who, left), (_, heir)] = &told[..] else { panic!("others see it leave: {told:?}") };
    assert_eq!((who.as_str(), *left, *heir), ("ada", Role::None, Role::Owner), "and another takes over");

    // Written anew without it, after a while; and nothing is missing that others are owed.
    for _ in 0..PATIENCE {
        if is_in_files(&world.store(), SECRET).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(is_in_files(&world.store(), SECRET), Vec::<String>::new(), "the disk forgets it");
    let now = page(&mut ben, direct).await;
    assert!(heads(&now).contains(&(direct, said, said, HeadReason::Erased)), "still explained: {now:?}");
    assert_eq!(texts(&now), ["ben's own stays"]);
    let whole = packet::HistoryRequest { conversation: direct, limit: 200, compact: true, ..Default::default() };
    let shown = ben.history(whole).await.expect("a page").items;
    assert!(heads(&shown).contains(&(direct, said, said, HeadReason::Erased)), "with its reactions, too: {shown:?}");
    assert!(shown.iter().filter_map(entry).all(|e| e.conversation == direct), "{shown:?}");
    let account = packet::SetAccount { user: "ada".into(), ..Default::default() };
    assert_eq!(reason(root.act(0, Action::SetAccount(account)).await), Reason::Forbidden, "the name is nobody's");
    world.stop().await;
    let report = longwire::store::check(&world.store(), &mut Audit::default()).expect("a store");
    assert!(report.is_sound(), "{:?}", report.problems);
}

/// What the user has and published comes out of a stopped broker's store, and nothing of others.
#[tokio::test]
async fn a_user_is_exported() {
    let mut world = World::new().await;
    let (mut ada, mut ben, direct) = world.pair().await;
    let contact = packet::SetContact { user: "cid".into(), nick: "ceedee".into(), ..Default::default() };
    ada.act(0, Action::SetContact(contact)).await.expect("kept");
    let nobody = packet::ShowPresence { to: packet::Audience::Nobody.into() };
    ada.act(0, Action::ShowPresence(nobody)).await.expect("shown to nobody");
    ada.act(0, Action::HideMarks(packet::HideMarks::default())).await.expect("hidden");
    let push = packet::SetPush {
        provider: "webpush".into(),
        target: "https://push.example.com/where-ada-is".into(),
        key: vec![4; 65].into(),
        secret: b"a secret of adas".to_vec().into(),
        quiet_until: 420,
        ..Default::default()
    };
    ada.act(0, Action::SetPush(push)).await.expect("registered");
    let will = packet::Publish {
        conversation: direct,
        content: "ada is lost".into(),
        action: Some(Action::SetWill(packet::SetWill { after_ms: 86_400_000 })),
        ..Default::default()
    };
    ada.insist(will).await.expect("left");
    let level = packet::Level::HeadsOnly.into();
    ada.act(direct, Action::SetLevel(packet::SetLevel { level })).await.expect("set");
    for word in 0..40 {
        ada.say(direct, &format!("of the first {word}")).await;
        ben.say(direct, &format!("of the second {word}")).await;
    }
    for (seq, reaction) in [(2, "+"), (4, "+"), (4, "")] {
        ada.act(direct, Action::React(packet::React { seq, reaction: reaction.into() })).await.expect("reacted");
    }
    ben.act(direct, Action::React(packet::React { seq: 6, reaction: "?".into() })).await.expect("reacted");
    ada.act(direct, Action::Hide(packet::Hide { seq: 8, undo: false })).await.expect("hidden");
    let settings = packet::Settings { pinned: true, marked_unread: true, ..Default::default() };
    ada.act(direct, Action::SetSettings(packet::SetSettings { settings: Some(settings) })).await.expect("set");
    world.stop().await;
    let export = |user: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_longwire"));
        command.args(["user", "export", user, "--store"]).arg(world.store());
        command.output().expect("it runs")
    };
    let first = export("alice");
    let text = String::from_utf8(first.stdout).expect("text");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((of("user"), of("device"), of("contact")), (1, 1, 1), "{text}");
    let said =
        lines.iter().filter(|line| line["content"].as_str().is_some_and(|text| text.starts_with("of the first")));
    assert_eq!(said.count(), 40, "{text}");
    assert!(!text.contains("of the second"), "what others said is theirs");
    let one = |kind: &str| {
        let mut of_kind = lines.iter().filter(|line| line["type"] == kind);
        let first = of_kind.next().unwrap_or_else(|| panic!("no {kind}: {text}")).clone();
        assert!(of_kind.next().is_none(), "one {kind}: {text}");
        first
    };
    let user = one("user");
    assert_eq!((&user["presence_shown_to"], &user["hides_marks"]), (&"nobody".into(), &true.into()));
    let levels = serde_json::json!([{ "conversation": direct, "level": "heads_only" }]);
    assert_eq!(one("device")["levels"], levels);
    let (will, push, reaction) = (one("will"), one("push"), one("reaction"));
    assert_eq!((&will["content"], &will["conversation"]), (&"ada is lost".into(), &direct.into()));
    assert_eq!((&push["provider"], &push["quiet_until"]), (&"webpush".into(), &420.into()));
    assert!(!text.contains("where-ada-is") && !text.contains("a secret of adas"), "how it is reached is not in it");
    assert_eq!((&reaction["seq"], &reaction["reaction"]), (&2.into(), &"+".into()));
    let of_direct = lines.iter().find(|line| line["type"] == "conversation" && line["conversation"] == direct);
    let of_direct = of_direct.expect("their conversation");
    assert_eq!(of_direct["hidden"], serde_json::json!([8]));
    assert_eq!((&of_direct["pinned"], &of_direct["marked_unread"]), (&true.into(), &true.into()));
    assert!(!export("nobody").status.success(), "and there is nothing of who is not there");
    world.start().await;
    assert_eq!(
        texts(&page(&mut world.user("alice").await, direct).await).len(),
        79,
        "the store is as it was, and hides one"
    );
}
