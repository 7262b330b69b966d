//! Channels: opened by name, read and written by the token's patterns.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, StartKind};
use longwire_protocol::reason::Reason;

use crate::world::{Wire, World, texts};

async fn granted(world: &World, user: &str, publish: &[&str], read: &[&str]) -> Wire {
    let list = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect();
    let mut claims = world.claims(user);
    (claims.publish, claims.read) = (list(publish), list(read));
    world.wire(packet::Connect { token: world.token(&claims), ..world.connect(user) }).await
}

#[tokio::test]
async fn patterns_decide_and_the_rest_does_not_exist() {
    let world = World::new().await;
    let mut writer = granted(&world, "sensor", &["sensors/*/t"], &[]).await;
    let mut reader = granted(&world, "desk", &[], &["sensors/**"]).await;
    let mut other = granted(&world, "other", &["x"], &["x"]).await;
    let channel = writer.open_channel("sensors/4/t").await.expect("opened");
    assert_eq!(reader.open_channel("sensors/4/t").await.expect("the same"), channel);
    assert_eq!(other.open_channel("sensors/4/t").await.expect_err("hidden").reason, Reason::UnknownConversation);
    assert_eq!(writer.open_channel("sensors/4").await.expect_err("no grant").reason, Reason::UnknownConversation);
    writer.say(channel, "20.5").await;
    let hello = packet::Publish { conversation: channel, ..packet::Publish::default() };
    assert_eq!(reader.publish(hello.clone()).await.expect_err("reads").reason, Reason::Forbidden);
    assert_eq!(other.publish(hello).await.expect_err("hidden").reason, Reason::UnknownConversation);
    let page =
        packet::HistoryRequest { conversation: channel, from_seq: 0, limit: 10, backwards: false, compact: false };
    assert_eq!(texts(&reader.history(page).await.expect("readable").items), ["20.5"]);
    assert_eq!(other.history(page).await.expect_err("hidden").reason, Reason::UnknownConversation);
    assert_eq!(writer.history(page).await.expect_err("writes only").reason, Reason::UnknownConversation);
}

#[tokio::test]
async fn a_reader_with_a_row_misses_nothing_while_away_and_a_watcher_is_live_only() {
    let world = World::new().await;
    let mut writer = granted(&world, "writer", &["**"], &[]).await;
    let channel = writer.open_channel("news").await.expect("opened");
    writer.say(channel, "old").await;
    let mut reader = granted(&world, "reader", &[], &["**"]).await;
    let mut watcher = granted(&world, "watcher", &[], &["**"]).await;
    reader.act(channel, Action::Join(packet::Join::default())).await.expect("joined");
    let watch = packet::WatchRequest { conversation: channel, stop: false };
    watcher.ask(packet::request::Op::Watch(watch)).await.expect("watching");
    writer.say(channel, "one").await;
    assert_eq!(&reader.entry(channel).await.content[..], b"one");
    assert_eq!(&watcher.entry(channel).await.content[..], b"one");
    let cursor = reader.settle().await;
    let watched = watcher.settle().await;
    for wire in [&mut reader, &mut watcher] {
        wire.leave().await;
    }
    writer.say(channel, "two").await;
    for (user, cursor, expected) in [("reader", cursor, &["two"][..]), ("watcher", watched, &[])] {
        let mut claims = world.claims(user);
        claims.read = vec!["**".into()];
        let token = world.token(&claims);
        let back = packet::Connect { token, start: StartKind::OwnCursor.into(), cursor, ..world.connect(user) };
        assert_eq!(texts(&world.wire(back).await.caught_up().await), expected, "{user}");
    }
}

#[tokio::test]
async fn an_empty_channel_that_was_left_is_left_and_can_be_watched() {
    let world = World::new().await;
    let mut writer = granted(&world, "writer", &["**"], &[]).await;
    let channel = writer.open_channel("news").await.expect("opened");
    let mut reader = granted(&world, "reader", &["own"], &["**"]).await;
    let own = reader.open_channel("own").await.expect("opened");
    reader.act(own, Action::Join(packet::Join::default())).await.expect("joined");
    reader.act(channel, Action::Join(packet::Join::default())).await.expect("joined");
    reader.act(channel, Action::Leave(packet::Leave {})).await.expect("left");
    writer.say(channel, "unheard").await;
    reader.say(own, "fence").await;
    let is_own = |item: &packet::Item| matches!(item.kind, Some(packet::item::Kind::Own(_)));
    assert_eq!(texts(&reader.until(is_own).await), [""; 0]);
    let watch = packet::WatchRequest { conversation: channel, stop: false };
    reader.ask(packet::request::Op::Watch(watch)).await.expect("watching");
    writer.say(channel, "heard").await;
    assert_eq!(&reader.entry(channel).await.content[..], b"heard");
}

/// What waits for the window's room, or stands in the log, when a token is exchanged for a narrower one, does not leave.
#[tokio::test]
async fn a_narrower_token_takes_away_what_has_not_left_yet() {
    let world = World::new().await;
    let mut writer = granted(&world, "writer", &["**"], &[]).await;
    let news = writer.open_channel("news").await.expect("opened");
    let mut reader = granted(&world, "reader", &[], &["**"]).await;
    reader.act(news, Action::Join(packet::Join::default())).await.expect("joined");
    reader.caught_up().await;
    let cursor = reader.settle().await;
    let group = writer.create_group("g", &["reader"]).await;
    let one = Some(packet::Window { items: 1, bytes: 1 << 16 });
    let claims = |read: &[&str]| {
        let mut claims = world.claims("reader");
        claims.read = read.iter().map(|&pattern| pattern.to_owned()).collect();
        world.token(&claims)
    };
    for is_live in [true, false] {
        reader.leave().await;
        let texts_of = ["one", "two", "three"];
        if !is_live {
            for text in texts_of {
                writer.say(news, text).await;
            }
        }
        let connect = world.resume("reader", cursor.clone());
        let connect = packet::Connect { token: claims(&["**"]), bulk: one, ..connect };
        reader = world.dial(connect).await;
        reader.connected().await.expect("let in");
        if is_live {
            reader.caught_up().await;
            reader.stores = false;
            for text in texts_of {
                writer.say(news, text).await;
            }
        }
        reader.stores = false;
        let first = reader.entry(news).await;
        assert_eq!(&first.content[..], b"one", "live: {is_live}");
        let refresh = packet::RefreshRequest { token: claims(&["other"]) };
        reader.ask(packet::request::Op::Refresh(refresh)).await.expect("refreshed");
        writer.say(group, "fence").await;
        reader.stores = true;
        reader.store_all().await;
        let is_fence = |item: &packet::Item| texts(std::slice::from_ref(item)) == ["fence"];
        let came = reader.until(is_fence).await;
        assert_eq!(texts(&came), ["fence"], "live: {is_live}");
    }
}
