//! Who leaves as much behind as it can, or has itself told as often as it can: wills, presence, push registrations, bans.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Audience, PresenceState, Publish, SignalKind, request, response};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ClientEvent, limits};

use super::{Bystander, flood};
use crate::world::{Wire, World};

/// As many devices of mallory's as there may be.
async fn devices(world: &World) -> Vec<Wire> {
    let mut wires = Vec::new();
    for n in 0..limits::DEVICES_MAX {
        wires.push(world.wire(packet::Connect { device: format!("d{n}"), ..world.connect("mallory") }).await);
    }
    let one_more = world.refused(packet::Connect { device: "more".into(), ..world.connect("mallory") }).await;
    assert_eq!(one_more.reason, Reason::QuotaExceeded);
    wires
}

fn action(action: Action) -> Publish {
    Publish { action: Some(action), ..Publish::default() }
}

/// Gets: one will for each of 20 devices, the last that it set, *payload_too_large* beyond 4 KiB. Costs: a row of 4 KiB a
/// device, whatever was set before. Others: go on, and are told 20 messages.
/// SPEC R16-15, R16-16.
#[tokio::test]
async fn a_device_has_one_will_however_often_it_sets_one() {
    const TIMES: usize = 100;
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let mut alice = world.user("alice").await;
    let mut wires = devices(&world).await;
    let direct = wires[0].open_direct("alice").await;
    let will = |content: String| Publish {
        conversation: direct,
        content: content.into(),
        ..action(Action::SetWill(packet::SetWill { after_ms: 1_000 }))
    };
    let long = "x".repeat(limits::WILL_BYTES_MAX - 10);
    for (n, wire) in wires.iter_mut().enumerate() {
        let refused = flood(wire, (0..TIMES).map(|time| will(format!("{n}-{time}-{long}")))).await;
        // Memtables are small here: the store may have to seal one first.
        assert!(refused.iter().all(|why| matches!(why, Reason::StoreUnavailable | Reason::After)), "{refused:?}");
        wire.insist(will(format!("last of {n}"))).await.expect("set");
        let large = wire.insist(will("x".repeat(limits::WILL_BYTES_MAX + 1))).await;
        assert_eq!(large.expect_err("too large").reason, Reason::PayloadTooLarge);
        bystander.goes_on().await;
    }
    drop(wires);
    let mut said = Vec::new();
    while said.len() < limits::DEVICES_MAX {
        said.push(String::from_utf8_lossy(&alice.entry(direct).await.content).into_owned());
    }
    let expected: BTreeSet<String> = (0..limits::DEVICES_MAX).map(|n| format!("last of {n}")).collect();
    assert_eq!(said.into_iter().collect::<BTreeSet<_>>(), expected, "of each the last");
    // And that was all.
    assert_eq!(alice.say(direct, "behind all of them").await.seq, limits::DEVICES_MAX as u64 + 1);
    bystander.goes_on().await;
}

/// Gets: 500 users, however often it asks; all others are *quota_exceeded* or not shown. Costs: what 500 take. Whoever it
/// flaps at is told of it once in two seconds at the most. Others: go on.
/// SPEC R16-10, R16-12.
#[tokio::test]
async fn presence_is_asked_for_and_flapped_with_in_vain() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let (mut alice, mut mallory) = (world.user("alice").await, world.user("mallory").await);
    let names: Vec<String> = (0..600).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let group = mallory.create_group("many", &names).await;
    let mut users = Vec::new();
    while users.len() < 600 {
        let after_user = users.last().copied().unwrap_or(0);
        let op = request::Op::Members(packet::MembersRequest { conversation: group, after_user, limit: 200 });
        let Ok(response::Result::Members(page)) = mallory.ask(op).await else { panic!("a page of members") };
        users.extend(page.members.iter().map(|member| member.user));
    }
    let asks = |users: &[u64]| request::Op::Presence(packet::PresenceRequest { users: users.to_vec(), stop: false });
    for chunk in users[..500].chunks(100) {
        mallory.ask(asks(chunk)).await.expect("as many as there may be");
    }
    for n in 0..100_u64 {
        mallory.ask(asks(&users[..100])).await.expect("these are there already");
        let refused = mallory.ask(asks(&users[500..550])).await.expect_err("too many");
        assert_eq!(refused.reason, Reason::QuotaExceeded);
        mallory.ask(asks(&[n * 4_096 + 17; 100])).await.expect("nobody, or a stranger: nothing is kept");
        if n % 20 == 0 {
            bystander.goes_on().await;
        }
    }

    alice.create_group("shared", &["mallory"]).await;
    let of_mallory = mallory.connected.user;
    alice.ask(asks(&[of_mallory])).await.expect("an answer");
    let begun = Instant::now();
    for n in 0..200_u32 {
        let background = request::Op::Background(packet::BackgroundRequest { background: n % 2 == 0 });
        mallory.ask(background).await.expect("taken");
        let to = if n % 3 == 0 { Audience::Nobody } else { Audience::Company };
        mallory.act(0, Action::ShowPresence(packet::ShowPresence { to: to.into() })).await.expect("shown");
        if n % 50 == 0 {
            bystander.goes_on().await;
        }
    }
    // What she was told lies before the answer to this.
    alice.session.request(packet::Request { id: 77, op: Some(asks(&[])) });
    let (mut told, mut is_shown) = (0, true);
    loop {
        match alice.event().await.expect("the connection holds") {
            ClientEvent::Signal(signal) => {
                let of = signal.presence.expect("a presence");
                assert_eq!((signal.kind(), of.user), (SignalKind::Presence, of_mallory));
                is_shown = of.state() != PresenceState::NotShown;
                told += 1;
            }
            ClientEvent::Response(response) if response.id == 77 => break,
            _ => {}
        }
    }
    let most = begun.elapsed().as_secs() / 2 + 2;
    assert!(told <= most, "{told} in {:?}", begun.elapsed());
    // What holds in the end she is told all the same, if it is other than what she was told last.
    if is_shown {
        let nobody = packet::ShowPresence { to: Audience::Nobody.into() };
        mallory.act(0, Action::ShowPresence(nobody)).await.expect("hidden");
    }
    loop {
        if let ClientEvent::Signal(signal) = alice.event().await.expect("the connection holds")
            && let Some(of) = signal.presence
            && (of.state() == PresenceState::NotShown) == is_shown
        {
            break;
        }
    }
    bystander.goes_on().await;
}

/// Gets: one registration for each of 20 devices, the last that it made; *invalid_argument* for what is no target. Costs: a
/// row of 2 KiB a device. Others: go on.
/// SPEC R17-1.
#[tokio::test]
async fn a_device_has_one_registration_however_often_it_makes_one() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let set =
        |provider: &str, target: String| packet::SetPush { provider: provider.into(), target, ..Default::default() };
    let mut wires = devices(&world).await;
    for wire in &mut wires {
        let targets = (0..100).map(|n| format!("{n}-{}", "t".repeat(limits::PUSH_TARGET_BYTES_MAX - 10)));
        let refused = flood(wire, targets.map(|target| action(Action::SetPush(set("webhook", target))))).await;
        assert!(refused.iter().all(|why| matches!(why, Reason::StoreUnavailable | Reason::After)), "{refused:?}");
        for (provider, target) in [
            ("pigeon", "t".to_owned()),
            ("fcm", String::new()),
            ("fcm", "t".repeat(limits::PUSH_TARGET_BYTES_MAX + 1)),
            ("apns", "a\r\nb".to_owned()),
            ("webpush", "https://10.0.0.1/".to_owned()),
        ] {
            let refused = wire.act(0, Action::SetPush(set(provider, target))).await.expect_err("no target");
            assert_eq!(refused.reason, Reason::InvalidArgument, "{provider}");
        }
        wire.act(0, Action::SetPush(set("fcm", "the-last".into()))).await.expect("set");
        bystander.goes_on().await;
    }
    let told = wires[0].ask(request::Op::Devices(packet::DevicesRequest {})).await;
    let Ok(response::Result::Devices(page)) = told else { panic!("{told:?}") };
    assert_eq!(page.devices.len(), limits::DEVICES_MAX);
    assert!(page.devices.iter().all(|device| device.push == "fcm"), "of each the last: {page:?}");
}

/// Gets: as many bans as one may make of anything, then *rate_limited* with the wait; 10,000 in a group in all (*quota_exceeded*).
/// Costs: a row for each. Others: go on.
/// SPEC R5.5-10, R7-11.
#[tokio::test]
async fn bans_end_at_what_one_may_make() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let mut mallory = world.user("mallory").await;
    let group = mallory.create_group("mine", &[]).await;
    let creations = (0..9).map(|_| {
        let users = vec!["somebody".to_owned(); limits::GROUP_USERS_MAX];
        action(Action::CreateGroup(packet::CreateGroup { label: "g".into(), users, ..Default::default() }))
    });
    flood(&mut mallory, creations).await;
    let ban = |n: u32| Publish {
        conversation: group,
        content: Bytes::new(),
        ..action(Action::Ban(packet::Ban { user: format!("never seen {n}"), lift: false }))
    };
    let refused = flood(&mut mallory, (0..3_000).map(ban)).await;
    assert!(refused.contains(&Reason::RateLimited), "{refused:?}");
    bystander.goes_on().await;
}
