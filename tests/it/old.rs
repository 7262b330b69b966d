//! The store of an older broker under this one: what people did with the broker of 21 November 2026 (before messages could be
//! edited; rows of format 1), its real process, users with devices that went away in the middle. Kept in
//! `tests/fixtures/broker-v1`; a later format gets a fixture of its own beside it, by
//! `LONGWIRE_OLD_BROKER=PROGRAM LONGWIRE_FIXTURE=FOLDER cargo test --test it old -- --ignored`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Publish, Role, StartKind};
use longwire_protocol::reason::Reason;

use crate::pages::{packed, unpacked};
use crate::process::{Process, Setup, let_in};
use crate::world::{Wire, World, seqs, texts};

/// Messages that Alice said to Bob before he went away, and after.
const BEFORE: u64 = 20;
const AFTER: u64 = 5;
/// Alice's newest message id: she opened one conversation, made one, spoke in it twice and removed a member, too.
const NEWEST_ID: u64 = BEFORE + AFTER + 5;
/// Bob read up to here.
const READ: u64 = 12;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/broker-v1")
}

fn words(number: u64) -> String {
    format!("message {number} of the old broker")
}

async fn old_user(process: &Process, user: &str) -> Wire {
    let_in(process.port, &process.connect(user, "phone")).await
}

#[tokio::test]
#[ignore = "writes a fixture, by a broker of another version"]
async fn write_what_an_old_broker_stored() {
    let program =
        Some(PathBuf::from(std::env::var("LONGWIRE_OLD_BROKER").expect("LONGWIRE_OLD_BROKER names a program")));
    let target = PathBuf::from(std::env::var("LONGWIRE_FIXTURE").expect("LONGWIRE_FIXTURE names a folder"));
    let mut process = Process::with(Setup { program, faults: "seal=16".into(), ..Setup::default() });
    let mut alice = old_user(&process, "alice").await;
    let mut bob = old_user(&process, "bob").await;
    let mut cat = old_user(&process, "cat").await;
    let direct = alice.open_direct("bob").await;
    for number in 1..=BEFORE {
        alice.say(direct, &words(number)).await;
    }
    while bob.entry(direct).await.seq < BEFORE {}
    bob.act(direct, Action::SetMark(packet::SetMark { seq: READ })).await.expect("marked");
    let group = alice.create_group("lunch", &["bob", "cat"]).await;
    alice.say(group, "who comes").await;
    assert_eq!(&cat.entry(group).await.content[..], b"who comes");
    bob.entry(group).await;
    alice.set_role(group, "cat", Role::None).await.expect("removed");
    alice.say(group, "without the cat").await;
    bob.entry(group).await;
    bob.settle().await;
    bob.leave().await;
    for number in BEFORE + 1..=BEFORE + AFTER {
        alice.say(direct, &words(number)).await;
    }
    assert!(process.drain().success());
    for folder in ["", "runs"] {
        std::fs::create_dir_all(target.join(folder)).expect("made");
        for file in std::fs::read_dir(process.store().join(folder)).expect("listed").map(|file| file.expect("a file")) {
            if file.file_type().expect("known").is_file() {
                let name = format!("{}.pages", file.file_name().display());
                std::fs::write(target.join(folder).join(name), packed(&std::fs::read(file.path()).expect("read")))
                    .expect("written");
            }
        }
    }
}

/// Puts the store of that broker into a folder.
pub(crate) fn put_in_place(store: &Path) {
    for folder in ["", "runs"] {
        std::fs::create_dir_all(store.join(folder)).expect("made");
        for file in std::fs::read_dir(fixture().join(folder)).expect("the fixture").map(|file| file.expect("a file")) {
            let name = file.file_name().display().to_string();
            if let Some(name) = name.strip_suffix(".pages") {
                let bytes = unpacked(&std::fs::read(file.path()).expect("read"));
                std::fs::write(store.join(folder).join(name), bytes).expect("written");
            }
        }
    }
}

/// What its people find: bob, with all that came while he was away where he comes for the first time; alice, who repeats
/// what she said last; and the cat, who was removed.
pub(crate) async fn check(bob: &mut Wire, alice: &mut Wire, cat: &mut Wire, is_first: bool) {
    let conversations = bob.conversations().await;
    let find = |label: &str| conversations.iter().find(|c| c.label == label).expect("listed").clone();
    let (direct, group) = (find("alice"), find("lunch"));
    assert_eq!((direct.head_seq, direct.mark, direct.unread), (BEFORE + AFTER, READ, BEFORE + AFTER - READ));
    assert_eq!((group.members, group.unread), (2, 2));
    if is_first {
        let missed = bob.caught_up().await;
        assert_eq!(seqs(&missed, direct.id), (BEFORE + 1..=BEFORE + AFTER).collect::<Vec<_>>());
        assert_eq!(texts(&missed), (BEFORE + 1..=BEFORE + AFTER).map(words).collect::<Vec<_>>());
    }
    let all = bob.pages(direct.id, 7, false).await.into_iter().flat_map(|page| page.items).collect::<Vec<_>>();
    assert_eq!(texts(&all), (1..=BEFORE + AFTER).map(words).collect::<Vec<_>>());

    // The device's newest publish, whose answer it may have lost.
    let publish = |text: String| {
        let newest = Publish { message_id: NEWEST_ID, first_unanswered: NEWEST_ID, ..Publish::default() };
        Publish { conversation: direct.id, content: Bytes::from(text), ..newest }
    };
    let again = alice.publish_as(publish(words(BEFORE + AFTER))).await;
    assert_eq!(again.expect("as it was answered").seq, BEFORE + AFTER);
    let other = alice.publish_as(publish("another".to_owned())).await;
    assert_eq!(other.expect_err("it was something else").reason, Reason::IdConflict);

    // What was said behind the cat's removal stays unseen.
    let page = packet::HistoryRequest { conversation: group.id, limit: 10, ..Default::default() };
    let seen = cat.history(page).await;
    assert!(!seen.is_ok_and(|page| texts(&page.items).contains(&"without the cat".to_owned())));
}

#[tokio::test]
async fn what_an_old_broker_stored_is_served_by_this_one() {
    let mut world = World::over(put_in_place).await;
    // Twice: as it was, and with rows that this version has saved.
    for start in 1..=2 {
        let stored = |user: &str| packet::Connect { start: StartKind::StoredCursor.into(), ..world.connect(user) };
        let mut bob = world.wire(stored("bob")).await;
        let mut alice = world.wire(packet::Connect { incarnation: 1, ..world.connect("alice") }).await;
        let mut cat = world.user("cat").await;
        check(&mut bob, &mut alice, &mut cat, start == 1).await;
        for wire in [&mut alice, &mut bob, &mut cat] {
            wire.leave().await;
        }
        world.restart().await;
    }
}
