//! Who makes as much as it can: conversations, members, users.

use std::time::Instant;

use longwire::routing::limits::{MAKES_MAX, MAKES_PER_SECOND};
use longwire_protocol::limits;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, Publish, Role};
use longwire_protocol::reason::Reason;

use super::{Bystander, flood};
use crate::world::{Wire, World};

/// A creation that names as many users as it may. All are one, so that it costs little to make here: what is charged is
/// how many are named.
fn creation() -> Action {
    let users = vec!["somebody".to_owned(); limits::GROUP_USERS_MAX];
    Action::CreateGroup(packet::CreateGroup { label: "g".into(), users, ..Default::default() })
}

/// Gets: nine groups of a thousand, then *rate_limited* with the wait, on each of its devices. Costs: what nine groups
/// do, and nothing for the rest. Others: make groups of their own; and it can talk as ever.
/// SPEC R5.5-10.
#[tokio::test]
async fn who_makes_too_much_at_once_is_told_to_wait() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let mut mallory = world.user("mallory").await;
    let direct = mallory.open_direct("friend").await;
    let (mut made, begun) = (0, Instant::now());
    let mut another = None;
    for _ in 0..2 {
        let device = another.as_mut().unwrap_or(&mut mallory);
        let refusal = loop {
            match device.act(0, creation()).await {
                Ok(_) => made += 1,
                Err(refusal) => break refusal,
            }
            assert!(made <= 40, "it goes on and on");
        };
        // On a busy machine time pays for one more meanwhile: a tenth of a second is enough.
        let paid = begun.elapsed().as_millis() as u64 * u64::from(MAKES_PER_SECOND) / 1_000;
        let most = (u64::from(MAKES_MAX) + paid) / (1 + limits::GROUP_USERS_MAX as u64);
        assert!((9..=most).contains(&made), "{made} of {most}, on all devices together");
        assert_eq!(refusal.reason, Reason::RateLimited);
        assert!((1..=11_000).contains(&refusal.retry_after_ms), "{}", refusal.retry_after_ms);
        let connect = packet::Connect { device: "another".into(), ..world.connect("mallory") };
        another = Some(world.wire(connect).await);
    }
    mallory.say(direct, "messages are none of it").await;
    world.user("carol").await.act(0, creation()).await.expect("another user's is its own");
    bystander.goes_on().await;
}

/// Adds users to a group, as fast as the window allows; how many were refused, by the last refusal's reason.
async fn add(admin: &mut Wire, group: u64, users: impl Iterator<Item = String>) -> (u64, Option<Reason>) {
    let refused = flood(
        admin,
        users.map(|user| {
            let action = Some(Action::SetRole(packet::SetRole { user, role: Role::Member.into() }));
            Publish { conversation: group, action, ..Publish::default() }
        }),
    )
    .await;
    (refused.len() as u64, refused.last().copied())
}

/// Gets: a group of 100,000, then *quota_exceeded*. Others: go on.
/// `cargo test --test it -- --ignored full_size`, some minutes.
/// SPEC R7-9.
#[tokio::test]
#[ignore = "a hundred thousand members: by hand"]
async fn a_group_of_full_size_takes_nobody_more() {
    const MEMBERS: usize = 100_000;
    const ADMINS: usize = 11;
    let world = World::with_options(longwire::store::StoreOptions::default()).await;
    let mut bystander = Bystander::new(&world).await;
    let mut mallory = world.user("mallory").await;
    let admins: Vec<String> = (0..ADMINS).map(|n| format!("admin{n}")).collect();
    let names: Vec<&str> = admins.iter().map(String::as_str).collect();
    let group = mallory.create_group("all", &names).await;
    let mut left = MEMBERS - ADMINS - 1;
    for admin in &admins {
        mallory.set_role(group, admin, Role::Admin).await.expect("an admin");
        let mut wire = world.user(admin).await;
        let count = left.min(9_500);
        left -= count;
        let refused = add(&mut wire, group, (0..count).map(|n| format!("{admin}-{n}"))).await;
        assert_eq!(refused, (0, None), "{left} are left to add");
        bystander.goes_on().await;
    }
    assert_eq!(left, 0);
    let refused = add(&mut mallory, group, (0..100).map(|n| format!("late-{n}"))).await;
    assert_eq!(refused, (100, Some(Reason::QuotaExceeded)));
    bystander.goes_on().await;
}
