//! Who watches a broker: what it counts is what happened, exactly; whether it is ready is true; and nobody who asks, in
//! whatever way, takes more than a few sockets for a few seconds.

use std::collections::BTreeSet;
use std::net::TcpListener as PortFinder;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire::admin::{Admin, Bounds};
use longwire::auth::Claims;
use longwire::routing::allowance::{Rate, Rates};
use longwire::routing::limits::Quotas;
use longwire::store::testing::SimDisk;
use longwire::store::{Failure, Log as _, MemoryLog, Pressure, RedbLog, StoreOptions};
use longwire_protocol::packet::{self, Publish, request, response};
use longwire_protocol::reason::Reason;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::faults::Faulty;
use crate::process::{Process, Setup, let_in};
use crate::scrape::{Family, Scrape, get, hear, say, scrape};
use crate::world::{PATIENCE, World};

async fn world() -> World {
    World::with_log(Box::new(MemoryLog::new(1_700_000_000_000, 1_000))).await
}

/// Has somebody watch it; returns the port.
async fn watch(world: &World) -> u16 {
    listen(Admin::default(), Some(world)).await
}

async fn listen(admin: Admin, world: Option<&World>) -> u16 {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = socket.local_addr().expect("its address").port();
    if let Some(world) = world {
        admin.set(Arc::new(world.broker().watched()));
    }
    tokio::spawn(admin.run(socket, CancellationToken::new()));
    port
}

/// Scrapes until what was counted is as it should be: a connection's end is seen a moment after its peer sees it.
pub(crate) async fn until(port: u16, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
    let begun = Instant::now();
    loop {
        let scrape = scrape(port).await;
        if holds(&scrape) {
            return scrape;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {scrape:#?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks until it answers with this status; returns the text.
async fn ready_is(port: u16, expected: u16) -> String {
    let begun = Instant::now();
    loop {
        let (status, text) = get(port, "/readyz").await;
        if status == expected {
            return text;
        }
        assert!(begun.elapsed() < PATIENCE, "{status} {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_counted_is_what_happened() {
    let world = world().await;
    let port = watch(&world).await;
    let (mut alice, mut bob, direct) = world.pair().await;
    alice.caught_up().await;
    bob.caught_up().await;
    // What came with the conversation is delivered to both before the first message is.
    let is_own = |item: &packet::Item| matches!(item.kind, Some(packet::item::Kind::Own(_)));
    alice.say(direct, "start").await;
    alice.until(is_own).await;
    bob.entry(direct).await;
    let before = scrape(port).await;
    for n in 0..7 {
        alice.say(direct, &format!("m{n}")).await;
        alice.until(is_own).await;
        bob.entry(direct).await;
    }
    // Once more under the same id, to nobody's conversation, too large, and with an id that was used for something else.
    let id = alice.next_id - 1;
    let again = Publish { conversation: direct, message_id: id, content: "m6".into(), ..Publish::default() };
    alice.publish_as(again.clone()).await.expect("acked again");
    let conflict = Publish { content: "else".into(), ..again };
    assert_eq!(alice.publish_as(conflict).await.expect_err("refused").reason, Reason::IdConflict);
    let nowhere = Publish { conversation: 123_456, content: "m".into(), ..Publish::default() };
    for _ in 0..3 {
        let refusal = alice.publish(nowhere.clone()).await.expect_err("refused");
        assert_eq!(refusal.reason, Reason::UnknownConversation);
    }
    let huge = Publish { conversation: direct, content: Bytes::from(vec![0; 193 << 10]), ..Publish::default() };
    assert_eq!(alice.publish(huge).await.expect_err("refused").reason, Reason::PayloadTooLarge);
    let page = |conversation| packet::HistoryRequest { conversation, limit: 10, ..Default::default() };
    bob.history(page(direct)).await.expect("a page");
    bob.history(page(123_456)).await.expect_err("not bob's");
    bob.settle().await;

    let after = until(port, "bob's acks", |scrape| scrape.value("longwire_acks_total", &[]) > 0.0).await;
    let more = |name: &str, labels: &[(&str, &str)]| after.value(name, labels) - before.value(name, labels);
    let counted = [
        ("longwire_publishes_total", vec![], 7.0),
        ("longwire_publishes_repeated_total", vec![], 1.0),
        ("longwire_publishes_refused_total", vec![("reason", "id_conflict")], 1.0),
        ("longwire_publishes_refused_total", vec![("reason", "unknown_conversation")], 3.0),
        ("longwire_publishes_refused_total", vec![("reason", "payload_too_large")], 1.0),
        ("longwire_publishes_refused_total", vec![("reason", "overloaded")], 0.0),
        ("longwire_requests_total", vec![], 2.0),
        ("longwire_requests_refused_total", vec![("reason", "unknown_conversation")], 1.0),
        // Bob's, and Alice's own: each device has what its user publishes.
        ("longwire_deliveries_total", vec![], 14.0),
        ("longwire_deliveries_resent_total", vec![], 0.0),
        ("longwire_log_position", vec![], 7.0),
        ("longwire_sessions", vec![], 0.0),
    ];
    for (name, labels, expected) in counted {
        assert_eq!(more(name, &labels), expected, "{name} {labels:?}");
    }
    let refused = "longwire_publishes_refused_total";
    assert_eq!(after.sum(refused) - before.sum(refused), 5.0, "and for no other reason");
    let commits = "longwire_commit_seconds_count";
    assert_eq!(more(commits, &[]), more("longwire_commits_total", &[]), "each is timed");
    assert_eq!(more("longwire_commit_entries_sum", &[]), 7.0, "and its entries are counted");
    assert_eq!(more("longwire_commits_failed_total", &[]), 0.0);
    assert_eq!((after.value("longwire_sessions", &[]), after.value("longwire_users_online", &[])), (2.0, 2.0));
}

#[tokio::test]
async fn connections_are_counted_as_they_come_and_go() {
    let world = world().await;
    let port = watch(&world).await;
    let mut alice = world.user("alice").await;
    let bob = world.user("bob").await;
    let forged = packet::Connect { token: "no token".into(), ..world.connect("eve") };
    assert_eq!(world.refused(forged).await.reason, Reason::Unauthenticated);
    let plain = [("listener", "plain")];
    let scrape = until(port, "eve is gone", |s| s.value("longwire_connections", &plain) == 2.0).await;
    assert_eq!(scrape.value("longwire_connections_opened_total", &plain), 3.0);
    assert_eq!(scrape.sum("longwire_connections"), 2.0, "at no other door");
    let token = |result| [("method", "token"), ("result", result)];
    assert_eq!(scrape.value("longwire_auth_total", &token("let_in")), 2.0);
    assert_eq!(scrape.value("longwire_auth_total", &token("refused")), 1.0);

    alice.leave().await;
    drop(bob);
    let scrape = until(port, "both are gone", |s| s.sum("longwire_connections") == 0.0).await;
    let closed = |reason| scrape.value("longwire_connections_closed_total", &[("reason", reason)]);
    assert_eq!((closed("goodbye"), closed("lost"), closed("unauthenticated")), (1.0, 1.0, 1.0));
    assert_eq!(scrape.sum("longwire_connections_closed_total"), 3.0);
    until(port, "their sessions too", |s| s.value("longwire_sessions", &[]) == 0.0).await;
}

#[tokio::test]
async fn passwords_and_new_accounts_are_counted_by_what_came_of_them() {
    let mut world = World::new().await;
    world.accounts.registration = longwire::auth::Registration::Open;
    world.restart().await;
    let port = watch(&world).await;
    let _carol = world.wire(world.register("carol", "correct horse", "")).await;
    assert_eq!(world.refused(world.register("carol", "another one", "")).await.reason, Reason::NameTaken);
    for _ in 0..5 {
        world.refused(world.log_in("carol", "wrong horse")).await;
    }
    let scrape = until(port, "all were answered", |s| {
        s.value("longwire_auth_total", &[("method", "password"), ("result", "refused")]) == 5.0
    });
    let scrape = scrape.await;
    let registered = |result| scrape.value("longwire_auth_total", &[("method", "registration"), ("result", result)]);
    assert_eq!((registered("let_in"), registered("refused")), (1.0, 1.0));
    let tried = scrape.value("longwire_rate_limited_total", &[("bucket", "passwords")]);
    let refused = scrape.value("longwire_connections_closed_total", &[("reason", "rate_limited")]);
    assert_eq!(tried, refused, "each that came too often, and no other");
}

/// SPEC R5.3-5: which of the buckets it was is told apart.
#[tokio::test]
async fn what_comes_too_often_is_counted_by_its_bucket() {
    let rate = |per_second| Some(Rate::new(per_second, 3));
    for (bucket, rates) in [
        ("connection", Rates { connection: rate(1), ..Rates::default() }),
        ("user", Rates { user: rate(1), ..Rates::default() }),
        ("conversation", Rates { conversation: rate(1), ..Rates::default() }),
    ] {
        let mut world = World::new().await;
        world.rates = rates;
        world.restart().await;
        let port = watch(&world).await;
        let mut alice = world.user("alice").await;
        let direct = alice.open_direct("bob").await;
        let message = Publish { conversation: direct, content: "m".into(), ..Publish::default() };
        let mut limited = 0.0;
        for _ in 0..8 {
            match alice.publish(message.clone()).await {
                Err(refusal) if refusal.reason == Reason::RateLimited => limited += 1.0,
                answer => drop(answer.expect("acked")),
            }
        }
        assert!(limited > 0.0, "{bucket}");
        let scrape = scrape(port).await;
        assert_eq!(scrape.value("longwire_rate_limited_total", &[("bucket", bucket)]), limited, "{bucket}");
        assert_eq!(scrape.sum("longwire_rate_limited_total"), limited, "and no other than {bucket}");
        let refused = scrape.value("longwire_publishes_refused_total", &[("reason", "rate_limited")]);
        assert_eq!(refused, limited);
        assert_eq!(scrape.value("longwire_publishes_per_second_max", &[("bucket", bucket)]), 1.0);
    }
}

/// SPEC R8-15: what is asked for beyond what a user may have looked at is answered later, and nothing else waits for it.
#[tokio::test]
async fn who_has_much_looked_at_is_answered_later() {
    let mut world = World::new().await;
    world.rates = Rates { reads: Some(Rate::of_reads(320)), ..Rates::default() };
    world.restart().await;
    let port = watch(&world).await;
    let (mut alice, mut bob, direct) = world.pair().await;
    for n in 0..100 {
        alice.say(direct, &format!("m{n}")).await;
    }
    let page = packet::HistoryRequest { conversation: direct, limit: 50, ..Default::default() };
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(alice.history(page).await.expect("a page").items.len(), 50);
    }
    // The first three are within 640 at once, or were begun before they were charged.
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    let waiting = Instant::now();
    let answer = tokio::join!(alice.history(page), async {
        bob.history(page).await.expect("another user's is its own");
        bob.say(direct, "still here").await;
        waiting.elapsed()
    });
    answer.0.expect("answered in the end");
    assert!(answer.1 < waiting.elapsed(), "bob did not wait for alice");
    let scrape = scrape(port).await;
    assert!(scrape.value("longwire_requests_beyond_rate_total", &[]) >= 2.0);
    assert_eq!(scrape.value("longwire_reads_per_second_max", &[]), 320.0);
    assert_eq!(scrape.sum("longwire_requests_refused_total"), 0.0, "nothing was refused");
}

/// SPEC R11-1.
#[tokio::test]
async fn quotas_that_were_lowered_are_told_and_kept() {
    let mut world = World::new().await;
    world.quotas = Quotas { members: 2, watches: 1, presences: 1, ..Quotas::default() };
    world.restart().await;
    let scrape = scrape(watch(&world).await).await;
    let quota = |of| scrape.value("longwire_quota", &[("of", of)]);
    assert_eq!((quota("members_of_a_group"), quota("channels_watched_by_a_session")), (2.0, 1.0));
    assert_eq!((quota("presences_watched_by_a_session"), quota("devices_of_a_user")), (1.0, 20.0));

    let claims = Claims { publish: vec!["**".into()], read: vec!["**".into()], ..world.claims("alice") };
    let connect = packet::Connect { token: world.token(&claims), ..world.connect("alice") };
    let mut alice = world.wire(connect).await;
    let group = alice.create_group("two", &["bob"]).await;
    let full = alice.set_role(group, "carol", packet::Role::Member).await.expect_err("a third");
    assert_eq!(full.reason, Reason::QuotaExceeded);
    let other = alice.create_group("two others", &["carol"]).await;
    let mut watched = Vec::new();
    for name in ["one", "two"] {
        let conversation = alice.open_channel(name).await.expect("opened");
        let watch = request::Op::Watch(packet::WatchRequest { conversation, stop: false });
        watched.push(alice.ask(watch).await.map(drop).map_err(|refusal| refusal.reason));
    }
    assert_eq!(watched, [Ok(()), Err(Reason::QuotaExceeded)]);
    let mut users = Vec::new();
    for conversation in [group, other] {
        let members = packet::MembersRequest { conversation, limit: 10, ..packet::MembersRequest::default() };
        match alice.ask(request::Op::Members(members)).await.expect("members") {
            response::Result::Members(page) => users.extend(page.members.iter().map(|member| member.user)),
            other => panic!("{other:?} answers a request for members"),
        }
    }
    users.sort_unstable();
    users.dedup();
    let presence = |users| request::Op::Presence(packet::PresenceRequest { users, stop: false });
    assert_eq!(alice.ask(presence(users.clone())).await.expect_err("all").reason, Reason::QuotaExceeded);
    alice.ask(presence(vec![users[0]])).await.expect("one");
}

#[tokio::test]
async fn a_socket_beyond_a_limit_is_counted_by_that_limit() {
    let mut world = World::new().await;
    world.accept.connections_per_address = 1;
    world.restart().await;
    let port = watch(&world).await;
    let _alice = world.user("alice").await;
    let mut beyond = TcpStream::connect(("127.0.0.1", world.port())).await.expect("connected");
    assert_eq!(hear(&mut beyond).await, "");
    let scrape = scrape(port).await;
    let turned_away = |limit| scrape.value("longwire_connections_turned_away_total", &[("limit", limit)]);
    assert_eq!((turned_away("connections_per_address"), turned_away("connections")), (1.0, 0.0));
    assert_eq!(scrape.sum("longwire_connections_opened_total"), 1.0, "it was never let in");
}

/// A store that takes nothing makes the broker unready, by name, and ready again where it takes something again.
#[tokio::test]
async fn a_store_that_takes_no_publishes_is_not_ready() {
    let log = Faulty::new();
    let world = World::with_log(Box::new(log.clone())).await;
    let port = watch(&world).await;
    assert_eq!(get(port, "/readyz").await, (200, "ready\n".into()));
    let check = [("check", "store")];
    assert_eq!(scrape(port).await.value("longwire_unready", &check), 0.0);
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    log.press(Pressure::Full);
    alice.publish(Publish { conversation: direct, content: "m".into(), ..Publish::default() }).await.expect_err("full");
    assert!(ready_is(port, 503).await.starts_with("store: full"));
    let scraped = scrape(port).await;
    assert_eq!(scraped.value("longwire_unready", &check), 1.0);
    assert_eq!(scraped.value("longwire_publishes_refused_total", &[("reason", "store_unavailable")]), 1.0);
    log.press(Pressure::Open);
    ready_is(port, 200).await;
    log.fail_next(Failure::Sync);
    alice
        .publish(Publish { conversation: direct, content: "m".into(), ..Publish::default() })
        .await
        .expect_err("fails");
    assert_eq!(ready_is(port, 503).await, "store: nothing is written any more until a restart\n");
    assert_eq!(get(port, "/livez").await, (200, "live\n".into()), "it turns all the same");
    assert_eq!(scrape(port).await.value("longwire_commits_failed_total", &[]), 1.0);
}

/// A start that finds a store that it cannot write to serves who reads, and says so to who watches.
#[tokio::test]
async fn a_store_that_cannot_be_written_from_the_start_is_not_ready() {
    let disk = SimDisk::default();
    drop(RedbLog::open_by_hand(Arc::new(disk.clone()), StoreOptions::default()).expect("opens"));
    // The call that its first frame fails at is somewhere among the first hundreds of a start.
    let start = |calls| {
        let disk = disk.after_crash(&mut fastrand::Rng::with_seed(calls));
        disk.fail_after(calls);
        let log = RedbLog::open_by_hand(Arc::new(disk), StoreOptions::default()).ok()?;
        (!log.figures().is_writable).then_some(log)
    };
    let world = World::with_log(Box::new((1..400).find_map(start).expect("a start that cannot write"))).await;
    let port = watch(&world).await;
    assert_eq!(ready_is(port, 503).await, "store: nothing is written any more until a restart\n");
    assert_eq!(get(port, "/livez").await, (200, "live\n".into()), "it turns all the same");
    let scraped = scrape(port).await;
    assert_eq!(scraped.value("longwire_unready", &[("check", "store")]), 1.0);
}

#[tokio::test]
async fn before_there_is_a_broker_it_lives_and_is_not_ready() {
    let port = listen(Admin::default(), None).await;
    assert_eq!(get(port, "/livez").await.0, 200);
    assert_eq!(get(port, "/readyz").await, (503, "store: it is being opened\n".into()));
    assert_eq!(get(port, "/metrics").await.0, 503);
}

#[tokio::test]
async fn whoever_asks_for_anything_else_is_told_no() {
    let world = world().await;
    let port = watch(&world).await;
    let status = |answer: &str| answer.get(9..12).map(str::to_owned).unwrap_or_default();
    for (request, expected) in [
        ("POST /metrics HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\n\r\nhello", "405"),
        ("DELETE /livez HTTP/1.1\r\nhost: b\r\n\r\n", "405"),
        ("HEAD /readyz HTTP/1.1\r\nhost: b\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\nhost: b\r\n\r\n", "404"),
        ("GET /metrics/../etc/passwd HTTP/1.1\r\nhost: b\r\n\r\n", "404"),
        ("PUT /publish HTTP/1.1\r\nhost: b\r\n\r\n", "404"),
        ("GET /livez?a=b HTTP/1.1\r\nhost: b\r\n\r\n", "200"),
        ("GET /livez HTTP/1.0\r\n\r\n", "200"),
        ("nonsense\r\n\r\n", "400"),
        ("GET /livez HTTP/9.9\r\n\r\n", "400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        ("\x16\x03\x01\x02\x00\x01\x00", "400"),
    ] {
        assert_eq!(status(&say(port, request).await), expected, "{request:?}");
    }
    let long = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", "b".repeat(64 << 10));
    assert!(["431", ""].contains(&status(&say(port, &long).await).as_str()), "a request has 8 KiB at the most");
    let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    assert!(["431", ""].contains(&status(&say(port, &many).await).as_str()), "and 64 lines");
    // Two at once are one, and its connection is closed.
    let two = say(port, &"GET /livez HTTP/1.1\r\nhost: b\r\n\r\n".repeat(2)).await;
    assert_eq!(two.matches("HTTP/1.1 200").count(), 1, "{two}");
    assert_eq!(get(port, "/livez").await.0, 200, "and others are answered as before");
}

#[tokio::test]
async fn slow_and_many_askers_are_bounded_in_number_and_time() {
    let bounds = Bounds { connections: 4, request_within: Duration::from_secs(1), all_within: Duration::from_secs(5) };
    let world = world().await;
    let port = listen(Admin::within(bounds), Some(&world)).await;
    let mut slow = Vec::new();
    for _ in 0..bounds.connections {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        socket.write_all(b"GET /metrics HT").await.expect("sent");
        slow.push(socket);
    }
    // Whoever comes while they hold every place is closed unread; they are cut when their time is over.
    let begun = Instant::now();
    let mut closed_unread = 0;
    loop {
        let answer = say(port, "GET /livez HTTP/1.1\r\nhost: b\r\n\r\n").await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        assert_eq!(answer, "", "no place, no word");
        closed_unread += 1;
        assert!(begun.elapsed() < PATIENCE, "places come free");
    }
    assert!(closed_unread > 0, "there were places for no more than {}", bounds.connections);
    for mut socket in slow {
        assert!(!hear(&mut socket).await.contains("200 OK"), "it was never answered");
    }
}

/// A free port, for a process that is told it.
pub(crate) fn free_port() -> u16 {
    PortFinder::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn watched_process(more: &str) -> (Process, u16) {
    let port = free_port();
    let setup = Setup { config: format!("admin.listen = '127.0.0.1:{port}'\n{more}"), ..Setup::default() };
    (Process::prepared(setup), port)
}

async fn answers(port: u16) {
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "it listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ready_is(port, 200).await;
}

#[tokio::test]
async fn a_broker_that_drains_says_so_until_it_ends() {
    let (mut process, port) = watched_process("");
    process.start();
    answers(port).await;
    let connect = process.connect("alice", "phone");
    let alice = let_in(process.port, &connect).await;
    process.signal(Signal::TERM);
    assert_eq!(ready_is(port, 503).await, "draining: the broker is going away\n");
    assert_eq!(get(port, "/livez").await.0, 200);
    drop(alice);
    assert!(process.ends().await.success());
    process.assert_no_panic("drained");
}

/// A port in use is an error that names it, before the store is touched; another machine's eyes have to be asked for.
#[test]
fn an_address_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let serve = |arguments: &[&str]| {
        let dev = ["serve", "--dev", "--listen", "127.0.0.1:0"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_longwire"));
        let output = command.args(dev).args(arguments).current_dir(folder.path()).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let taken = PortFinder::bind(("127.0.0.1", 0)).expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let (code, said) = serve(&["--admin", &address]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
    assert!(!folder.path().join("longwire-dev/store").exists(), "nothing was made");
    let (code, said) = serve(&["--check", "--admin", "0.0.0.0:0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("admin.beyond_loopback"), "{said}");
    assert_eq!(serve(&["--check", "--admin", "0.0.0.0:0", "--admin-beyond-loopback"]).0, Some(0));
    assert_eq!(serve(&["--check", "--admin", "nonsense"]).0, Some(2));
}

/// The table of docs/operating.md is what a broker with everything on says of itself, row by row; `LONGWIRE_GENERATE=1`
/// writes it.
#[tokio::test]
async fn the_documented_metrics_are_those_that_there_are() {
    let (mut process, port) = watched_process("");
    crate::tls::write_certificate(process.folder());
    let secret = process.folder().join("webhook.secret");
    std::fs::write(&secret, format!("whsec_{}", "QUJD".repeat(8))).expect("written");
    process.setup.tls = true;
    process.setup.config.push_str(&format!(
        "limits = {{ connection_publishes = 5, user_publishes = 5, conversation_publishes = 5, memory = '1GiB' }}\npush.webhook = {{ url = 'http://127.0.0.1:{}', secret = '{}' }}\n",
        free_port(),
        secret.display()
    ));
    process.start();
    answers(port).await;
    let scrape = scrape(port).await;
    // Where they are few, the words of a label are listed, too.
    let label = |(label, words): (&str, BTreeSet<&str>)| match words.len() {
        2..=8 => format!("`{label}`: {}", words.into_iter().collect::<Vec<_>>().join(", ")),
        _ => format!("`{label}`"),
    };
    let rows: Vec<String> = scrape
        .families
        .iter()
        .map(|family| {
            let labels = family.labels().into_iter().map(label).collect::<Vec<_>>().join("; ");
            format!("| `{}` | {} | {labels} | {} |", family.asked_for(), family.kind, family.help)
        })
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating.md");
    let text = std::fs::read_to_string(&path).expect("the chapter");
    let begin = text.find("| metric | type |").expect("the table");
    let begin = begin + text[begin..].match_indices('\n').nth(1).expect("its head").0 + 1;
    let end = begin + text[begin..].find("\n\n").expect("its end") + 1;
    let written = format!("{}\n", rows.join("\n"));
    if std::env::var_os("LONGWIRE_GENERATE").is_some() {
        std::fs::write(&path, format!("{}{written}{}", &text[..begin], &text[end..])).expect("written");
    } else {
        let (listed, there): (BTreeSet<&str>, BTreeSet<&str>) =
            (text[begin..end].lines().collect(), written.lines().collect());
        let gone: Vec<_> = listed.difference(&there).collect();
        let new: Vec<_> = there.difference(&listed).collect();
        assert!(gone.is_empty() && new.is_empty(), "listed, and not there: {gone:#?}\nthere, and not listed: {new:#?}");
    }
    let alerts = text[end..].split("\n## ").next().expect("the rest of the chapter");
    let words = alerts.split(|c: char| c != '_' && !c.is_ascii_lowercase());
    let asked_for: BTreeSet<&str> = words.filter(|word| word.starts_with("longwire_")).collect();
    assert!(asked_for.len() > 10, "{asked_for:?}");
    for name in asked_for {
        let is_it = |family: &&Family| family.asked_for() == name || format!("{}_bucket", family.name) == name;
        assert!(scrape.families.iter().any(|family| is_it(&family)), "an alert asks for {name}, which is not there");
    }

    let expiry = scrape.value("longwire_certificate_expiry_timestamp_seconds", &[("listener", "tls")]);
    assert!(expiry > 1.7e9, "{expiry}");
    for (name, least, most) in [
        ("process_resident_memory_bytes", 1e6, 1e10),
        ("process_open_fds", 5.0, 1e4),
        ("process_max_fds", 64.0, 1e10),
        ("longwire_memory_bytes_max", (1u64 << 30) as f64, (1u64 << 30) as f64),
    ] {
        let value = scrape.value(name, &[]);
        assert!((least..=most).contains(&value), "{name} is {value}");
    }
    assert!(process.drain().success());
}
