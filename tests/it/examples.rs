//! The programs in `examples`, against a real broker.

use std::cell::RefCell;

use bytes::Bytes;
use longwire_client::{Client, Start};
use longwire_protocol::packet::{self, Beside, Level, Publish};

use crate::world::World;

#[expect(dead_code, reason = "its main is that of a program")]
#[path = "../../examples/constrained.rs"]
mod constrained;
#[expect(dead_code, reason = "its main is that of a program")]
#[path = "../../examples/group_bot.rs"]
mod group_bot;
#[expect(dead_code, reason = "its main is that of a program")]
#[path = "../../examples/unread_badge.rs"]
mod unread_badge;

#[tokio::test]
async fn the_bot_answers_who_mentions_it() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let (bot, deliveries) = Client::start(world.client("bot")).expect("started");
    let user = bot.connected().await.expect("connected").user;
    let talk = async {
        let group = ann.create_group("team", &["bot"]).await;
        ann.say(group, "nobody is meant").await;
        let beside = Some(Box::new(Beside { mentions: vec![user], ..Beside::default() }));
        let content = Bytes::from_static(b"are you there?");
        let meant = ann.insist(Publish { conversation: group, content, beside, ..Publish::default() }).await;
        let (meant, answer) = (meant.expect("published"), ann.entry(group).await);
        assert_eq!(answer.content, "you said: are you there?");
        assert_eq!((answer.sender, answer.beside.expect("a reply").reply_to), (user, meant.seq));
        bot.close().await;
    };
    let (served, ()) = tokio::join!(group_bot::serve(&bot, deliveries), talk);
    served.expect("it serves until it is closed");
}

#[tokio::test]
async fn the_constrained_device_wants_heads_and_leaves_a_will() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let group = ann.create_group("team", &["boiler"]).await;
    let (device, deliveries) = Client::start(constrained::constrained(world.client("boiler"))).expect("started");
    let talk = async {
        let here = ann.until(|item| crate::world::entry(item).is_some_and(|entry| !entry.content.is_empty())).await;
        assert_eq!(crate::world::texts(&here).last().map(String::as_str), Some("the boiler is here"));
        let page = device.conversations(0, 10).await.expect("a page");
        let level = page.conversations.iter().find(|one| one.id == group).map(packet::Conversation::level);
        assert_eq!(level, Some(Level::HeadsOnly));
        device.close().await;
    };
    let (watched, ()) = tokio::join!(constrained::watch_over(&device, deliveries, "ann", group), talk);
    watched.expect("it watches until it is closed");
}

#[tokio::test]
async fn the_badge_shows_what_is_unread() {
    let world = World::new().await;
    let mut ann = world.user("ann").await;
    let mut config = world.client("ben");
    config.start = Start::Fresh;
    let (badge, deliveries) = Client::start(config).expect("started");
    badge.connected().await.expect("connected");
    let (shown, told) = (RefCell::new(Vec::new()), tokio::sync::Notify::new());
    let until = async |unread| {
        while shown.borrow().last() != Some(&(unread, 0)) {
            told.notified().await;
        }
    };
    let talk = async {
        until(0).await;
        let direct = ann.open_direct("ben").await;
        ann.say(direct, "one").await;
        until(1).await;
        ann.say(direct, "two").await;
        until(2).await;
        badge.mark(direct, 2).await.expect("kept").await.expect("marked");
        until(0).await;
        badge.close().await;
    };
    let show = |unread, mentions| {
        shown.borrow_mut().push((unread, mentions));
        told.notify_one();
    };
    let (served, ()) = tokio::join!(unread_badge::show(&badge, deliveries, show), talk);
    served.expect("it shows until it is closed");
}
