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

/// What it shows of itself a user reads and says by commands: R16-12, R6.1-7.
#[tokio::test]
async fn who_sees_a_user_and_what_it_read_is_printed_and_changed() {
    let world = World::new().await;
    let account = async |what: &'static [&'static str]| says(&world, "ann", &[&["account"][..], what].concat()).await;
    assert_eq!(account(&["presence"]).await, "company\n");
    assert_eq!(account(&["presence", "nobody"]).await, "");
    assert_eq!(account(&["presence", "--json"]).await, "{\"presence\":\"nobody\"}\n");
    assert_eq!(account(&["presence", "contacts"]).await, "");
    assert_eq!(account(&["presence"]).await, "contacts\n");
    assert_eq!(account(&["marks"]).await, "shown\n");
    assert_eq!(account(&["marks", "hidden"]).await, "");
    assert_eq!(account(&["marks", "--json"]).await, "{\"marks\":\"hidden\"}\n");
    assert_eq!(account(&["marks", "shown"]).await, "");
    assert_eq!(account(&["marks"]).await, "shown\n");
    for (words, right) in
        [(["presence", "everybody"], "company, contacts, nobody"), (["marks", "off"], "shown, hidden")]
    {
        let wrong = run(&world, "ann", &[&["account"][..], &words].concat(), "").await;
        let said = String::from_utf8_lossy(&wrong.stderr);
        assert_eq!(wrong.status.code(), Some(2), "{said}");
        assert!(said.contains(words[1]) && said.contains(right), "{said}");
    }
}

/// A device is registered for push, and no more, without a program of its own: R17-1.
#[tokio::test]
async fn a_device_is_registered_for_push() {
    let world = World::new().await;
    let mut ben = world.user("ben").await;
    let named = packet::Connect { device: "tablet".into(), ..world.connect("ann") };
    let mut tablet = world.wire(named.clone()).await;
    let direct = tablet.open_direct("ben").await;
    ben.say(direct, "this is acked").await;
    tablet.entry(direct).await;
    tablet.settle().await;
    tablet.leave().await;
    ben.say(direct, "and this is not, by nobody in its place").await;
    let push = async |what: &[&str]| run(&world, "ann", &[&["account", "push"][..], what].concat(), "").await;
    let told = async || {
        let all = says(&world, "ann", &["account", "devices", "--json"]).await;
        let lines = all.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON"));
        let told = lines.filter(|line| line["name"] == "tablet").map(|line| line["push"].clone());
        told.collect::<Vec<_>>()
    };
    assert_eq!(told().await, [""]);
    let nobody = push(&["webhook", "ann-tablet"]).await;
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("--device"), "{nobody:?}");
    let of_tablet = ["webhook", "ann-tablet", "--device", "tablet", "--quiet", "22:00-07:00", "--shows", "names"];
    let done = push(&of_tablet).await;
    assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("no provider \"webhook\""), "{done:?}");
    assert_eq!(told().await, ["webhook"]);
    let refused = push(&["webhook", "ann's tablet", "--device", "tablet"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("visible ASCII"), "{refused:?}");
    assert!(push(&["off", "--device", "tablet"]).await.status.success());
    assert_eq!(told().await, [""]);
    let stored = packet::Connect { start: packet::StartKind::StoredCursor.into(), ..named };
    let came = world.wire(stored).await.caught_up().await;
    assert_eq!(crate::world::seqs(&came, direct), [2], "what waits for the device waits");
}

/// What stands beside a message is said on the command line: R5.6-1.
#[tokio::test]
async fn a_message_is_published_with_what_stands_beside_it() {
    let world = World::new().await;
    let (mut ann, mut ben) = (world.user("ann").await, world.user("ben").await);
    let cid = world.user("cid").await;
    let group = ann.create_group("team", &["ben", "cid"]).await;
    let first = ann.say(group, "who comes?").await.seq;
    let (id, first_text) = (group.to_string(), first.to_string());
    let all = ["pub", &id, "we do", "--reply-to", &first_text, "--expires-in", "10m", "--silent", "--mention", "@cid"];
    let all = [&all[..], &["--mention", "ann", "--mention-all"]].concat();
    says(&world, "ben", &all).await;
    let told = ben.until(|item| entry(item).is_some_and(|entry| &entry.content[..] == b"we do")).await;
    let told = entry(told.last().expect("it came")).expect("an entry").clone();
    let beside = told.beside.expect("it has something beside");
    assert_eq!((beside.reply_to, beside.silent, beside.mentions_all), (first, true, true));
    let mut mentions = [ann.connected.user, cid.connected.user];
    mentions.sort_unstable();
    let mut are = beside.mentions.clone();
    are.sort_unstable();
    assert_eq!(are, mentions);
    assert_eq!(told.expires - told.time, 600_000);
    let lines = run(&world, "ben", &["pub", &id, "-l", "--silent"], "one\ntwo\n").await;
    assert!(lines.status.success(), "{lines:?}");
    let told = ann.until(|item| entry(item).is_some_and(|entry| &entry.content[..] == b"two")).await;
    let silent = told.iter().filter_map(entry).filter(|e| e.beside.as_ref().is_some_and(|b| b.silent)).count();
    assert_eq!(silent, 3);
    for (words, says, code) in [
        (&["--mention", "dot"][..], "\"dot\" is not in", 2),
        (&["--expires-in", "400d"], "366 days", 2),
        (&["--expires-in", "0s"], "366 days", 2),
        (&["--reply-to", "0"], "--reply-to", 2),
        (&["--reply-to", "999"], "reply", 1),
        (&["--silent", "--from", "/nowhere"], "--from", 2),
    ] {
        let text: &[&str] = if words.contains(&"--from") { &[] } else { &["no"] };
        let wrong = run(&world, "ben", &[&["pub", &id][..], text, words].concat(), "").await;
        let said = String::from_utf8_lossy(&wrong.stderr);
        assert!(wrong.status.code() == Some(code) && said.contains(says), "{words:?}: {said}");
    }
}

/// A conversation is quiet for a while, and says until when: R5.6-9.
#[tokio::test]
async fn a_conversation_is_muted_for_a_time() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let group = ann.create_group("team", &[]).await;
    let id = group.to_string();
    let settings =
        async |what: &[&str]| says(&world, "ann", &[&["conversation", "settings", &id][..], what].concat()).await;
    assert!(settings(&[]).await.contains("muted          no\n"));
    settings(&["--mute-for", "8h", "--pin"]).await;
    let set = ann.conversations().await[0].settings.expect("something is set");
    let until = set.muted_until as i64 - ann.connected.now as i64;
    assert!(set.pinned && (28_800_000..28_920_000).contains(&until), "{until}");
    let text = settings(&[]).await;
    assert!(text.contains("muted          yes, until 20") && text.contains("pinned         yes\n"), "{text}");
    assert!(settings(&["--json"]).await.contains(&format!("\"muted_until\":{}", set.muted_until)));
    settings(&["--mute-for", "1ms"]).await;
    assert!(settings(&[]).await.contains("muted          no\n"), "it is over");
    settings(&["--mute"]).await;
    assert!(settings(&[]).await.contains("muted          yes\n"), "for good");
}
