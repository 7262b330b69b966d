//! Commands as people run them, against a broker: what they do there, and what they say.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use longwire::auth::Claims;
use longwire_protocol::packet::{self, ConversationKind, EntryKind, HeadReason, Role};

use crate::world::{World, entry, heads};

/// Runs a command as a user, with these lines to read.
async fn run(world: &World, user: &str, args: &[&str], lines: &str) -> Output {
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    longwire.args(args).arg("--url").arg(format!("longwire://127.0.0.1:{}", world.port()));
    let patterns = || vec!["news".to_owned()];
    let claims = Claims { read: patterns(), publish: patterns(), ..world.claims(user) };
    longwire.env("LONGWIRE_TOKEN", world.token(&claims));
    longwire.env("LONGWIRE_STATE_DIR", world.store().with_extension("state"));
    longwire.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let lines = lines.to_owned();
    let done = tokio::task::spawn_blocking(move || {
        let mut child = longwire.spawn().expect("it runs");
        child.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    });
    done.await.expect("it ran")
}

/// The same, of one that succeeds; what it prints.
async fn says(world: &World, user: &str, args: &[&str]) -> String {
    let output = run(world, user, args, "").await;
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn a_message_is_hidden_and_shown_again() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let direct = ann.open_direct("ben").await;
    let seq = ann.say(direct, "a slip").await.seq;
    let (id, at) = (direct.to_string(), seq.to_string());
    assert_eq!(says(&world, "ben", &["conversation", "hide", &id, &at]).await, "");
    let page = packet::HistoryRequest { conversation: direct, limit: 200, ..Default::default() };
    let shown = ben.history(page).await.expect("a page").items;
    assert_eq!(heads(&shown), [(direct, seq, seq, HeadReason::HiddenByUser)], "from ben's own sight");
    let shown = ann.history(page).await.expect("a page").items;
    assert_eq!(heads(&shown), [], "and nobody else's");
    let told = says(&world, "ben", &["conversation", "hide", "@ann", &at, "--undo", "--json"]).await;
    assert!(told.contains("\"seq\":"), "{told}");
    assert_eq!(heads(&ben.history(page).await.expect("a page").items), []);
    let nothing = run(&world, "ben", &["conversation", "hide", &id, "99"], "").await;
    assert!(!nothing.status.success() && !nothing.stderr.is_empty(), "there is no such message: {nothing:?}");
}

#[tokio::test]
async fn what_a_group_lets_its_members_do_is_printed_and_changed() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let group = ann.create_group("team", &["ben"]).await;
    let id = group.to_string();
    let policy = async |wire: &mut crate::world::Wire| {
        let all = wire.conversations().await;
        let info = all.into_iter().find(|one| one.id == group).expect("it is listed").info;
        info.unwrap_or_default().policy.unwrap_or_default()
    };
    let text = says(&world, "ann", &["conversation", "policy", &id]).await;
    assert!(text.contains("publishes    member\n") && text.contains("adds         admin\n"), "{text}");
    says(&world, "ann", &["conversation", "policy", &id, "--publishes", "admin", "--recall-within", "1h"]).await;
    says(&world, "ann", &["conversation", "policy", &id, "--hide-marks"]).await;
    let set = policy(&mut ben).await;
    assert_eq!((set.publishes(), set.recall_within_ms, set.hides_marks), (Role::Admin, 3_600_000, true));
    says(&world, "ann", &["conversation", "policy", &id, "--show-marks", "--informs", "member"]).await;
    let set = policy(&mut ben).await;
    assert_eq!((set.publishes(), set.informs(), set.hides_marks), (Role::Admin, Role::Member, false), "the rest stays");
    let refused = run(&world, "ben", &["conversation", "policy", &id, "--publishes", "member"], "").await;
    assert!(!refused.status.success(), "a member decides nothing: {refused:?}");
    assert_eq!(policy(&mut ann).await.publishes(), Role::Admin);
}

/// Who publishes in a channel has not joined it (chapter 7 of SPEC.md): it is listed from then on.
#[tokio::test]
async fn a_list_of_nothing_says_why_a_channel_is_not_in_it() {
    let world = World::new().await;
    says(&world, "ann", &["pub", "#news", "hello"]).await;
    let list = ["conversation", "list"];
    let nothing = run(&world, "ann", &list, "").await;
    let hint = String::from_utf8_lossy(&nothing.stderr);
    assert!(nothing.status.success() && nothing.stdout.is_empty() && hint.contains("conversation join"), "{nothing:?}");
    let json = run(&world, "ann", &["conversation", "list", "--json"], "").await;
    assert!(json.stdout.is_empty() && json.stderr.is_empty(), "a program knows: {json:?}");
    says(&world, "ann", &["conversation", "join", "#news"]).await;
    let listed = run(&world, "ann", &list, "").await;
    let text = String::from_utf8_lossy(&listed.stdout);
    assert!(text.contains("#news") && listed.stderr.is_empty(), "{listed:?}");
    let mut ann = world.user("ann").await;
    assert_eq!(ann.conversations().await[0].kind(), ConversationKind::Channel);
}

/// What a message mentions is what its newest text mentions.
#[tokio::test]
async fn an_edit_in_the_chat_mentions_whom_its_text_does() {
    let world = World::new().await;
    let (mut ann, ben) = (world.user("ann").await, world.user("ben").await);
    let cid = world.user("cid").await;
    let group = ann.create_group("team", &["ben", "cid"]).await;
    let lines = "at noon, @ben\n/edit . at one, @ben and @cid\n/edit . at two, @cid!\n";
    let output = run(&world, "ann", &["chat", &group.to_string()], lines).await;
    assert!(output.status.success(), "{output:?}");
    let page = packet::HistoryRequest { conversation: group, limit: 200, ..Default::default() };
    let all = ann.history(page).await.expect("a page").items;
    let said = all.iter().filter_map(entry).filter(|e| matches!(e.kind(), EntryKind::Message | EntryKind::Edit));
    let mentions: Vec<_> =
        said.map(|e| e.beside.as_ref().map_or_else(Vec::new, |beside| beside.mentions.clone())).collect();
    let (ben, cid) = (ben.connected.user, cid.connected.user);
    assert_eq!(mentions, [vec![ben], vec![ben, cid], vec![cid]], "{output:?}");
}
