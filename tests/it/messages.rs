//! What becomes of messages: what stands beside them, edits, recalls, reactions, what one hides; and the reads that show
//! it: the compact view, the list of conversations, receipts.

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::response::Result as Answer;
use longwire_protocol::packet::{self, Beside, EntryKind, HeadReason, Role, item};
use longwire_protocol::reason::{Reason, Refusal};

use crate::world::{Wire, World, entry, heads, texts};

impl Wire {
    async fn say_with(&mut self, conversation: u64, text: &str, beside: Beside) -> Result<packet::PublishAck, Refusal> {
        let content = Bytes::copy_from_slice(text.as_bytes());
        self.insist(packet::Publish { conversation, content, beside: Some(Box::new(beside)), ..Default::default() })
            .await
    }

    async fn edit(&mut self, conversation: u64, seq: u64, text: &str) -> Result<packet::PublishAck, Refusal> {
        let content = Bytes::copy_from_slice(text.as_bytes());
        let action = Some(Action::Edit(packet::Edit { seq }));
        self.insist(packet::Publish { conversation, content, action, ..Default::default() }).await
    }

    async fn recall(&mut self, conversation: u64, seq: u64) -> Result<packet::PublishAck, Refusal> {
        self.act(conversation, Action::Recall(packet::Recall { seq })).await
    }

    async fn react(&mut self, conversation: u64, seq: u64, reaction: &str) -> Result<packet::PublishAck, Refusal> {
        self.act(conversation, Action::React(packet::React { seq, reaction: reaction.into() })).await
    }

    async fn hide(&mut self, conversation: u64, seq: u64, undo: bool) -> Result<packet::PublishAck, Refusal> {
        self.act(conversation, Action::Hide(packet::Hide { seq, undo })).await
    }

    async fn set(&mut self, conversation: u64, settings: packet::Settings) -> Result<packet::PublishAck, Refusal> {
        self.act(conversation, Action::SetSettings(packet::SetSettings { settings: Some(settings) })).await
    }

    async fn mark(&mut self, conversation: u64, seq: u64) -> packet::PublishAck {
        self.act(conversation, Action::SetMark(packet::SetMark { seq })).await.expect("marked")
    }

    async fn page(&mut self, conversation: u64, compact: bool) -> Vec<packet::Item> {
        let request = packet::HistoryRequest { conversation, limit: 200, compact, ..Default::default() };
        self.history(request).await.expect("a page").items
    }

    /// The conversation as the list has it.
    async fn listed(&mut self, conversation: u64) -> packet::Conversation {
        let all = self.conversations().await;
        all.into_iter().find(|one| one.id == conversation).expect("it is listed")
    }

    async fn receipts(&mut self, conversation: u64) -> Result<Vec<(u64, u64)>, Refusal> {
        let request = packet::ReceiptsRequest { conversation, limit: 200, ..Default::default() };
        match self.ask(Op::Receipts(request)).await? {
            Answer::Receipts(page) => Ok(page.marks.iter().map(|mark| (mark.user, mark.seq)).collect()),
            other => panic!("{other:?} answers a request for receipts"),
        }
    }
}

fn reason(answer: Result<packet::PublishAck, Refusal>) -> Reason {
    answer.expect_err("refused").reason
}

/// SPEC R5.6-1, R5.6-2.
#[tokio::test]
async fn what_stands_beside_a_message_comes_with_it() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let direct = alice.open_direct("bob").await;
    let first = alice.say(direct, "first").await.seq;
    let attachment = packet::Attachment { reference: "media/1".into(), name: "beach.jpg".into(), ..Default::default() };
    let beside = Beside {
        reply_to: first,
        mentions_all: true,
        forwarded: true,
        silent: true,
        expires_in_ms: 60_000,
        attachments: vec![attachment.clone()],
        ..Default::default()
    };
    let ack = alice.say_with(direct, "second", beside.clone()).await.expect("acked");
    bob.entry(direct).await;
    let got = bob.entry(direct).await;
    assert_eq!(got.expires, ack.time + 60_000, "how long became until when");
    assert_eq!(got.beside, Some(Box::new(Beside { expires_in_ms: 0, ..beside })));

    let cases = [
        Beside { reply_to: 100, ..Default::default() },
        Beside { expires_in_ms: 367 * 86_400_000, ..Default::default() },
        Beside { attachments: vec![packet::Attachment::default()], ..Default::default() },
        Beside {
            attachments: vec![packet::Attachment { reference: "a\u{7}".into(), ..attachment.clone() }],
            ..Default::default()
        },
        Beside {
            attachments: vec![packet::Attachment { reference: "x".repeat(3_000), ..attachment }],
            ..Default::default()
        },
    ];
    for beside in cases {
        let words = format!("{beside:?}");
        assert_eq!(reason(alice.say_with(direct, "no", beside).await), Reason::InvalidArgument, "{words}");
    }
    let action = Some(Action::SetMark(packet::SetMark { seq: 1 }));
    let marked = packet::Publish { conversation: direct, action, beside: Some(Box::default()), ..Default::default() };
    assert_eq!(reason(alice.insist(marked).await), Reason::InvalidArgument, "only messages have something beside them");
}

/// SPEC R5.6-3.
#[tokio::test]
async fn a_mention_is_told_to_who_is_there_and_to_nobody_else() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let group = alice.create_group("g", &["bob"]).await;
    let ids = [&alice, &bob, &carol].map(|wire| wire.connected.user);
    let mentions = vec![ids[1], ids[2], ids[0], ids[1], u64::MAX];
    let seq = alice.say_with(group, "look", Beside { mentions, ..Default::default() }).await.expect("acked").seq;

    let is_mentioned = |item: &packet::Item| entry(item).is_some_and(|e| e.kind() == EntryKind::Mentioned);
    let told = bob.until(is_mentioned).await;
    let told = told.last().and_then(entry).expect("an entry").clone();
    assert_eq!(told.mentioned, Some(packet::Mentioned { conversation: group, seq }));
    assert_eq!(told.conversation, bob.connected.inbox);
    let got = bob.until(|item| entry(item).is_some_and(|e| e.seq == seq && e.conversation == group)).await;
    let mentions = got.last().and_then(entry).and_then(|e| e.beside.clone()).expect("beside").mentions;
    assert_eq!(mentions, [ids[1], ids[2], ids[0], u64::MAX], "each once");
    assert_eq!((bob.listed(group).await.mentions, bob.conversations_page(0, 10).await.mentions_total), (1, 1));

    // Carol is not there: nothing in her inbox says that there is such a group.
    let direct = alice.open_direct("carol").await;
    alice.say(direct, "a fence").await;
    let items = carol.until(|item| entry(item).is_some_and(|e| e.conversation == direct)).await;
    assert!(!items.iter().any(is_mentioned), "{items:?}");
    bob.mark(group, seq).await;
    assert_eq!(bob.listed(group).await.mentions, 0, "what is read mentions nobody any more");
}

/// SPEC R5.6-4, R5.6-7, R8-10.
#[tokio::test]
async fn the_compact_view_shows_messages_as_they_are_now() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let direct = alice.open_direct("bob").await;
    let seq = alice.say(direct, "helo").await.seq;
    let other = bob.say(direct, "hi").await.seq;
    let edit = alice.edit(direct, seq, "hello").await.expect("edited");
    assert_eq!(reason(bob.edit(direct, seq, "mine now").await), Reason::Forbidden, "only who sent it edits it");
    alice.react(direct, other, "👍").await.expect("given");
    bob.react(direct, seq, "❤").await.expect("given");
    let head = bob.react(direct, seq, "👍").await.expect("another instead").seq;
    assert_eq!(bob.react(direct, seq, "👍").await.expect("the same again").seq, head, "and no entry");
    assert_eq!(reason(bob.react(direct, seq, &"x".repeat(33)).await), Reason::InvalidArgument);
    assert_eq!(reason(bob.react(direct, head, "👍").await), Reason::InvalidArgument, "that is no message");

    let page = bob.page(direct, true).await;
    assert_eq!(texts(&page), ["hello", "hi"]);
    let shown: Vec<_> = page.iter().filter_map(entry).map(|e| e.compacted.clone().expect("altered")).collect();
    assert_eq!((shown[0].edit, shown[0].edit_time), (edit.seq, edit.time));
    let counts = |of: &packet::Compacted| -> Vec<_> {
        of.reactions.iter().map(|r| (r.reaction.clone(), r.count, r.own)).collect()
    };
    assert_eq!(counts(&shown[0]), [("👍".to_owned(), 1, true)]);
    assert_eq!(counts(&shown[1]), [("👍".to_owned(), 1, false)]);
    assert_eq!(heads(&page), [(direct, other + 1, head, HeadReason::Folded)], "what is told with its message");
    let backwards = packet::HistoryRequest {
        conversation: direct,
        limit: 200,
        compact: true,
        backwards: true,
        ..Default::default()
    };
    let mut other_way = bob.history(backwards).await.expect("a page").items;
    other_way.reverse();
    assert_eq!(other_way, page, "the same from both ends");

    let raw = bob.page(direct, false).await;
    let kinds: Vec<_> = raw.iter().filter_map(entry).map(packet::Entry::kind).collect();
    let (message, reaction) = (EntryKind::Message, EntryKind::Reaction);
    assert_eq!(kinds, [message, message, EntryKind::Edit, reaction, reaction, reaction]);
    assert_eq!(texts(&raw), ["helo", "hi"], "entries never change");

    bob.react(direct, seq, "").await.expect("taken back");
    let page = bob.page(direct, true).await;
    let first = page.first().and_then(entry).and_then(|e| e.compacted.clone()).expect("edited");
    assert!(first.reactions.is_empty());
}

/// SPEC R5.6-5, R5.6-6, R5.6-10.
#[tokio::test]
async fn nobody_is_shown_what_was_recalled() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let mut bob = world.user("bob").await;
    let group = alice.create_group("g", &["bob", "carol"]).await;
    let seq = bob.say(group, "secret").await.seq;
    let edited = bob.edit(group, seq, "more of the secret").await.expect("edited").seq;
    let after = alice.say(group, "what?").await.seq;
    let mut dave = world.user("carol").await;
    assert_eq!(reason(dave.recall(group, seq).await), Reason::Forbidden, "a member recalls nothing of others");
    alice.set_role(group, "bob", Role::Reader).await.expect("demoted");
    let recall = alice.recall(group, seq).await.expect("an admin recalls").seq;
    let again = alice.recall(group, seq).await.expect("once more").seq;
    assert_eq!(again, recall, "a second recall writes nothing");
    for about in [seq, edited, recall, 0, 1_000] {
        assert_eq!(reason(alice.react(group, about, "x").await), Reason::InvalidArgument, "{about}");
    }

    for compact in [false, true] {
        for wire in [&mut alice, &mut bob, &mut dave] {
            let page = wire.page(group, compact).await;
            assert_eq!(texts(&page), ["what?"], "nobody reads it");
            assert!(!page.iter().filter_map(entry).any(|e| e.kind() == EntryKind::Edit), "nor what it became");
            let recalled: Vec<_> =
                heads(&page).into_iter().filter(|(.., reason)| *reason == HeadReason::Recalled).collect();
            assert_eq!(recalled, [(group, seq, edited, HeadReason::Recalled)]);
        }
    }
    // Who was away is told that it is gone.
    let back = packet::Connect {
        device: "tablet".into(),
        start: packet::StartKind::StoredCursor.into(),
        ..world.connect("carol")
    };
    let mut tablet = world.wire(back).await;
    tablet.caught_up().await;
    tablet.leave().await;
    let gone = alice.say(group, "gone soon").await.seq;
    let kept = alice.say(group, "kept").await.seq;
    alice.recall(group, gone).await.expect("recalled");
    let back = packet::Connect {
        device: "tablet".into(),
        start: packet::StartKind::StoredCursor.into(),
        incarnation: tablet.connected.incarnation,
        ..world.connect("carol")
    };
    let mut tablet = world.wire(back).await;
    let items = tablet.caught_up().await;
    assert!(
        texts(&items).contains(&"kept".to_owned()) && !texts(&items).contains(&"gone soon".to_owned()),
        "{items:?}"
    );
    assert!(heads(&items).contains(&(group, gone, gone, HeadReason::Recalled)), "{items:?}");
    assert!(kept > after);
}

/// SPEC R5.6-6, R5.6-11: what expires is shown until then.
#[tokio::test]
async fn what_has_expired_is_shown_no_more() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let direct = alice.open_direct("bob").await;
    let beside = Beside { expires_in_ms: 1, ..Default::default() };
    let seq = alice.say_with(direct, "now", beside).await.expect("acked").seq;
    alice.say(direct, "for good").await;
    // The broker's time goes on by itself.
    loop {
        let page = bob.page(direct, false).await;
        if texts(&page) == ["for good"] {
            assert_eq!(heads(&page), [(direct, seq, seq, HeadReason::Expired)]);
            break;
        }
        assert_eq!(texts(&page), ["now", "for good"]);
    }
    assert_eq!(bob.listed(direct).await.unread, 1, "and counts no more");
    assert_eq!(reason(alice.edit(direct, seq, "later").await), Reason::InvalidArgument);
}

/// SPEC R5.6-8, R5.6-9, R8-11.
#[tokio::test]
async fn what_one_hides_and_sets_is_on_all_own_devices_and_nowhere_else() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let mut laptop = world.wire(packet::Connect { device: "laptop".into(), ..world.connect("bob") }).await;
    let direct = alice.open_direct("bob").await;
    let seq = alice.say(direct, "look").await.seq;
    alice.say(direct, "sorry").await;
    bob.hide(direct, seq, false).await.expect("hidden");
    let is_hidden = |item: &packet::Item| entry(item).is_some_and(|e| e.kind() == EntryKind::Hidden);
    let told = laptop.until(is_hidden).await;
    let told = told.last().and_then(entry).and_then(|e| e.hidden).expect("says what");
    assert_eq!(told, packet::Hidden { conversation: direct, seq, undo: false, countable: 1 });
    let page = laptop.page(direct, false).await;
    assert_eq!(
        (texts(&page), heads(&page)),
        (vec!["sorry".to_owned()], vec![(direct, seq, seq, HeadReason::HiddenByUser)])
    );
    assert_eq!(texts(&alice.page(direct, false).await), ["look", "sorry"], "others see it");
    assert_eq!(laptop.listed(direct).await.unread, 1);
    bob.hide(direct, seq, true).await.expect("shown again");
    assert_eq!(texts(&laptop.page(direct, false).await), ["look", "sorry"]);

    let changes = laptop.conversations_page(0, 10).await.changes;
    let since = packet::ConversationsRequest { since: changes, limit: 10, ..Default::default() };
    let changed = async |wire: &mut Wire| match wire.ask(Op::Conversations(since)).await.expect("a page") {
        Answer::Conversations(page) => page.conversations.iter().map(|one| one.id).collect::<Vec<_>>(),
        other => panic!("{other:?} lists nothing"),
    };
    assert!(changed(&mut laptop).await.is_empty(), "nothing changed since");
    let settings = packet::Settings { muted_until: u64::MAX, pinned: true, archived: false, marked_unread: true };
    bob.set(direct, settings).await.expect("set");
    assert_eq!(laptop.listed(direct).await.settings, Some(settings));
    assert_eq!(changed(&mut laptop).await, [direct]);
    assert_eq!(alice.listed(direct).await.settings, None);
    // Read to the end already: the mark says nothing new, and yet it is read now.
    bob.mark(direct, 2).await;
    bob.set(direct, settings).await.expect("set again");
    bob.mark(direct, 2).await;
    let settings = packet::Settings { marked_unread: false, ..settings };
    assert_eq!(laptop.listed(direct).await.settings, Some(settings));
}

/// SPEC R6.1-6, R8-12.
#[tokio::test]
async fn who_has_read_how_far_is_told_to_the_others() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let group = alice.create_group("g", &["bob", "carol"]).await;
    let seq = alice.say(group, "read this").await.seq;
    bob.entry(group).await;
    bob.mark(group, seq).await;
    let bob_id = bob.connected.user;
    let is_mark = |item: &packet::Item| matches!(&item.kind, Some(item::Kind::Mark(mark)) if mark.user == bob_id);
    for wire in [&mut alice, &mut carol] {
        let items = wire.until(is_mark).await;
        let Some(item::Kind::Mark(mark)) = items.last().and_then(|item| item.kind.clone()) else { panic!("no mark") };
        assert_eq!((mark.conversation, mark.seq), (group, seq));
    }
    let users = [&alice, &bob, &carol].map(|wire| wire.connected.user);
    let mut expected = vec![(users[0], seq), (users[1], seq), (users[2], 0)];
    expected.sort_unstable();
    assert_eq!(alice.receipts(group).await.expect("receipts"), expected);
    let mut dan = world.user("dan").await;
    assert_eq!(dan.receipts(group).await.expect_err("an outsider").reason, Reason::UnknownConversation);

    // Who is away is told when it comes back, of the newest mark alone.
    let cursor = carol.settle().await;
    carol.leave().await;
    for text in ["more", "and more"] {
        let seq = alice.say(group, text).await.seq;
        bob.mark(group, seq).await;
    }
    let back = packet::Connect {
        start: packet::StartKind::OwnCursor.into(),
        cursor,
        incarnation: carol.connected.incarnation,
        ..world.connect("carol")
    };
    let items = world.wire(back).await.caught_up().await;
    let marks: Vec<_> = items.iter().filter(|item| is_mark(item)).collect();
    assert_eq!(marks.len(), 1, "{items:?}");
}

/// SPEC R8-4, R8-11: the list has the newest message, and edits or reactions move nothing up.
#[tokio::test]
async fn the_list_shows_the_newest_message_and_the_sums() {
    let world = World::new().await;
    let (mut alice, mut bob) = (world.user("alice").await, world.user("bob").await);
    let direct = alice.open_direct("bob").await;
    let group = alice.create_group("g", &["bob"]).await;
    let seq = alice.say(direct, "helo").await.seq;
    let long = "x".repeat(1_000);
    let newest = alice.say(group, &long).await.seq;
    alice.edit(direct, seq, "hello").await.expect("edited");
    let page = bob.conversations_page(0, 10).await;
    let ids: Vec<_> = page.conversations.iter().map(|one| one.id).collect();
    assert_eq!(ids, [group, direct], "an edit moves nothing up");
    let lasts: Vec<_> = page.conversations.iter().map(|one| one.last.clone().expect("a message")).collect();
    assert_eq!(lasts[0].content, long.as_bytes()[..512], "the beginning of it");
    assert_eq!(lasts[1].content, &b"hello"[..], "as it is now");
    assert_eq!((page.unread_total, page.mentions_total, page.next), (2, 0, 0));
    let unread: u64 = page.conversations.iter().map(|one| one.unread).sum();
    assert_eq!(unread, page.unread_total, "the sum");
    alice.recall(group, newest).await.expect("recalled");
    let page = bob.conversations_page(0, 1).await;
    assert_eq!((page.unread_total, page.conversations[0].last.clone()), (1, None), "what is recalled is nowhere");
    assert_eq!(page.conversations[0].unread, 0);
    let second = bob.conversations_page(page.next, 1).await;
    assert_eq!((second.conversations[0].id, second.unread_total, second.next), (direct, 0, 0));
}
