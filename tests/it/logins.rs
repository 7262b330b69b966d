//! Letting in by password, as SPEC chapter 15.3 has it: accounts, tokens of the broker's own, invitations, administrators.

use longwire::auth::password::{self, Cost};
use longwire::auth::{Claims, Registration};
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Publish, response};
use longwire_protocol::reason::Reason;

use crate::world::{Wire, World};

const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

fn set_account(user: &str, password: &str) -> Action {
    let password_hash = password::hash(password, CHEAP).expect("a hash");
    Action::SetAccount(packet::SetAccount { user: user.into(), password_hash, close: false })
}

fn close(user: &str) -> Action {
    Action::SetAccount(packet::SetAccount { user: user.into(), close: true, ..Default::default() })
}

async fn admin(world: &World) -> Wire {
    let claims = Claims { admin: true, ..world.claims("root") };
    world.wire(packet::Connect { token: world.token(&claims), ..world.connect("root") }).await
}

/// What comes back with a token that the broker made.
fn with(world: &World, user: &str, token: &str) -> packet::Connect {
    packet::Connect { token: token.into(), ..world.connect(user) }
}

async fn open(registration: Registration) -> World {
    let mut world = World::new().await;
    world.accounts.registration = registration;
    (world.accounts.read, world.accounts.publish) = (vec!["news/*".into()], vec![]);
    world.restart().await;
    world
}

/// SPEC R15-13, R15-14: the password once, then the token; over a restart of the broker, too.
#[tokio::test]
async fn a_password_gives_a_token_and_the_token_lets_in() {
    let mut world = open(Registration::Closed).await;
    let mut root = admin(&world).await;
    root.act(0, set_account("ada", "correct horse")).await.expect("set");
    for (user, password) in [("ada", "Correct horse"), ("ada", ""), ("nobody", "correct horse"), ("root", "x")] {
        let refusal = world.refused(world.log_in(user, password)).await;
        let told = (refusal.reason, refusal.detail.as_ref());
        assert_eq!(told, (Reason::Unauthenticated, "user name and password do not belong together"), "{user}");
    }
    let mut ada = world.wire(world.log_in("ada", "correct horse")).await;
    let token = ada.connected.token.clone();
    assert!(!token.is_empty() && ada.connected.token_expires_in_ms <= 3_600_000);
    assert_eq!(ada.open_channel("secret").await.expect_err("not hers").reason, Reason::UnknownConversation);
    ada.open_channel("news/a").await.expect("as the operator says");
    let direct = ada.open_direct("bob").await;
    ada.say(direct, "hello").await;
    ada.leave().await;
    world.restart().await;
    let again = world.wire(with(&world, "ada", &token)).await;
    assert!(again.connected.token.is_empty(), "it is young");
    let other = packet::Connect { device: "other".into(), ..with(&world, "ada", &token) };
    assert_eq!(world.refused(other).await.reason, Reason::Unauthenticated, "it is this device's");
    world.wire(world.log_in("ada", "correct horse")).await;
}

/// SPEC R15-14, R8-8: whoever comes late in its life, or asks, gets another.
#[tokio::test]
async fn a_token_of_the_brokers_own_is_renewed() {
    let mut world = open(Registration::Open).await;
    world.accounts.token_life_s = 60;
    world.restart().await;
    let mut ada = world.wire(world.register("ada", "correct horse", "")).await;
    let first = ada.connected.token.clone();
    let refresh = || Op::Refresh(packet::RefreshRequest::default());
    let response::Result::Refresh(answer) = ada.ask(refresh()).await.expect("a new one") else { panic!("no refresh") };
    assert!(answer.token != first && !answer.token.is_empty() && answer.expires_in_ms > 50_000);
    ada.leave().await;
    // With a life that is twice as long, this one is in its second half.
    world.accounts.token_life_s = 3_600;
    world.restart().await;
    let late = world.wire(with(&world, "ada", &answer.token)).await;
    assert!(!late.connected.token.is_empty() && late.connected.token_expires_in_ms > 3_000_000);
    let mut bob = world.user("bob").await;
    assert_eq!(bob.ask(refresh()).await.expect_err("another issuer's").reason, Reason::Forbidden);
}

/// SPEC R15-17, R15-20, R16-17, R17-2: what ends a user's tokens leaves nothing of its devices behind, whether they are there
/// or gone; a new password spares the device that sets it.
#[tokio::test]
async fn who_is_let_in_no_more_leaves_no_will_and_is_told_nothing() {
    let mut world = open(Registration::Closed).await;
    let (mut root, mut bob) = (admin(&world).await, world.user("bob").await);
    root.act(0, set_account("ada", "correct horse")).await.expect("set");
    let on = |device: &str, connect: packet::Connect| packet::Connect { device: device.into(), ..connect };
    let mut devices = Vec::new();
    let mut direct = 0;
    // The first ones would be published first.
    for (device, after_ms) in [("lost", 2_000), ("tablet", 1_000), ("phone", 3_000)] {
        let mut wire = world.wire(on(device, world.log_in("ada", "correct horse"))).await;
        direct = wire.open_direct("bob").await;
        leave_behind(&mut wire, direct, device, after_ms).await;
        devices.push(wire);
    }
    let phone = devices.pop().expect("the phone");
    drop(devices.remove(0));
    let mut change = on("phone", world.log_in("ada", "correct horse"));
    (change.incarnation, change.first_unanswered) = (phone.incarnation, phone.next_id);
    change.login.as_mut().expect("a login").new_password = "battery staple".into();
    let mut phone = world.wire(change).await;
    assert_eq!(devices[0].ended().await.reason, Reason::Revoked);
    let told_by = |devices: Vec<packet::Device>| devices.into_iter().map(|of| (of.name, of.push)).collect::<Vec<_>>();
    let told = [("lost", ""), ("tablet", ""), ("phone", "webhook")].map(|(of, by)| (of.to_owned(), by.to_owned()));
    assert_eq!(told_by(crate::accounts::devices(&mut phone).await), told);
    drop(phone);
    assert_eq!(bob.entry(direct).await.content, "phone", "and nothing before");

    // Closed, and over a restart.
    let mut watch = world.wire(on("watch", world.log_in("ada", "battery staple"))).await;
    leave_behind(&mut watch, direct, "watch", 1_000).await;
    root.act(0, close("ada")).await.expect("closed");
    let mut eve = world.user("eve").await;
    let with_bob = eve.open_direct("bob").await;
    leave_behind(&mut eve, with_bob, "the last to be due", 2_000).await;
    world.restart().await;
    let (mut bob, mut root) = (world.user("bob").await, admin(&world).await);
    assert_eq!(bob.entry(with_bob).await.content, "the last to be due");
    let page = bob.pages(direct, 10, false).await.remove(0);
    assert_eq!(crate::world::texts(&page.items), ["phone"]);
    root.act(0, set_account("ada", "another horse")).await.expect("it is hers again");
    let mut phone = world.wire(on("phone", world.log_in("ada", "another horse"))).await;
    assert!(told_by(crate::accounts::devices(&mut phone).await).iter().all(|(_, by)| by.is_empty()));
}

async fn leave_behind(wire: &mut Wire, conversation: u64, content: &str, after_ms: u32) {
    let will = Some(Action::SetWill(packet::SetWill { after_ms }));
    let content = content.to_owned().into();
    wire.insist(Publish { conversation, content, action: will, ..Publish::default() }).await.expect("set");
    let push = packet::SetPush { provider: "webhook".into(), target: "somewhere".into(), ..Default::default() };
    wire.act(0, Action::SetPush(push)).await.expect("set");
}

/// SPEC R15-15: open, and whose a name is.
#[tokio::test]
async fn a_name_is_registered_once_and_never_somebody_elses() {
    let world = open(Registration::Open).await;
    let mut bob = world.user("bob").await;
    let direct = bob.open_direct("ada").await;
    bob.say(direct, "for whoever comes").await;
    let mut ada = world.wire(world.register("ada", "correct horse", "")).await;
    assert_eq!(ada.open_direct("bob").await, direct);
    assert_eq!(ada.conversations().await[0].unread, 1);
    for (name, password, reason) in [
        ("ada", "another one", Reason::NameTaken),
        ("bob", "correct horse", Reason::NameTaken),
        ("carol", "short", Reason::InvalidArgument),
        ("a\u{200b}", "correct horse", Reason::InvalidArgument),
    ] {
        assert_eq!(world.refused(world.register(name, password, "")).await.reason, reason, "{name}");
    }
    let closed = open(Registration::Closed).await;
    assert_eq!(closed.refused(closed.register("ada", "correct horse", "")).await.reason, Reason::Forbidden);
}

/// SPEC R15-16.
#[tokio::test]
async fn an_invitation_is_good_once_for_whom_it_names() {
    let world = open(Registration::Invitation).await;
    let later = u64::MAX / 2_000;
    let any = world.invitation("one", None, later);
    let bad = [
        String::new(),
        "nonsense".to_owned(),
        world.invitation("two", Some("somebody"), later),
        world.invitation("three", None, 1_000),
        world.invitation("", None, later),
        world.invitation(&"x".repeat(65), None, later),
        world.token(&world.claims("ada")),
        any[..any.len() - 1].to_owned(),
    ];
    for invitation in &bad {
        let refusal = world.refused(world.register("ada", "correct horse", invitation)).await;
        assert_eq!(refusal.reason, Reason::Forbidden, "{invitation}");
    }
    world.wire(world.register("ada", "correct horse", &any)).await;
    assert_eq!(world.refused(world.register("ben", "correct horse", &any)).await.reason, Reason::Forbidden);
    let named = world.invitation("two", Some("ben"), later);
    world.wire(world.register("ben", "correct horse", &named)).await;
    // An invitation is no token.
    assert_eq!(world.refused(with(&world, "ada", &any)).await.reason, Reason::Unauthenticated);
}

/// SPEC R15-17: everything that the old one let in ends.
#[tokio::test]
async fn a_new_password_ends_what_the_old_one_let_in() {
    let world = open(Registration::Open).await;
    let mut phone = world.wire(world.register("ada", "correct horse", "")).await;
    let token = phone.connected.token.clone();
    let change = |password: &str, new: &str| {
        let mut connect = packet::Connect { device: "laptop".into(), ..world.log_in("ada", password) };
        connect.login.as_mut().expect("a login").new_password = new.into();
        connect
    };
    assert_eq!(world.refused(change("wrong horse", "battery staple")).await.reason, Reason::Unauthenticated);
    assert_eq!(world.refused(change("correct horse", "short")).await.reason, Reason::InvalidArgument);
    let mut laptop = world.wire(change("correct horse", "battery staple")).await;
    assert_eq!(phone.ended().await.reason, Reason::Revoked);
    assert_eq!(world.refused(with(&world, "ada", &token)).await.reason, Reason::Revoked);
    assert_eq!(world.refused(world.log_in("ada", "correct horse")).await.reason, Reason::Unauthenticated);
    laptop.open_direct("bob").await;
    let own = packet::Connect { device: "laptop".into(), ..with(&world, "ada", &laptop.connected.token) };
    laptop.leave().await;
    world.wire(own).await;
    world.wire(world.log_in("ada", "battery staple")).await;
}

/// SPEC R15-18: and who has the token is not kept out by who guesses.
#[tokio::test]
async fn passwords_are_tried_a_few_times_and_then_now_and_then() {
    let world = open(Registration::Open).await;
    let mut ada = world.wire(world.register("ada", "correct horse", "")).await;
    let token = ada.connected.token.clone();
    ada.leave().await;
    for n in 0..20 {
        world.wire(world.log_in("ada", "correct horse")).await.leave().await;
        assert!(n < 20, "right ones do not count");
    }
    let mut tried = 0;
    let refusal = loop {
        let refusal = world.refused(world.log_in("ada", &format!("guess {tried}"))).await;
        if refusal.reason != Reason::Unauthenticated {
            break refusal;
        }
        tried += 1;
        assert!(tried < 20, "there is an end to it");
    };
    assert_eq!((tried, refusal.reason), (5, Reason::RateLimited));
    assert!((1..=20_000).contains(&refusal.retry_after_ms), "{refusal:?}");
    let refusal = world.refused(world.log_in("ada", "correct horse")).await;
    assert_eq!(refusal.reason, Reason::RateLimited, "no guess is told from the right one now");
    world.wire(with(&world, "ada", &token)).await;
    // A user that there is not: the same.
    let reasons = async |user: &str| {
        let mut reasons = Vec::new();
        for _ in 0..6 {
            reasons.push(world.refused(world.log_in(user, "a guess")).await.reason);
        }
        reasons
    };
    let expected = [&[Reason::Unauthenticated; 5][..], &[Reason::RateLimited]].concat();
    assert_eq!(reasons("nobody").await, expected);
    assert_eq!(reasons("bob").await, expected);
}

/// Of how many of one user the profile is told, and its presence.
async fn shown(wire: &mut Wire, user: u64) -> (usize, packet::PresenceState) {
    let told = wire.ask(Op::Profiles(packet::ProfilesRequest { users: vec![user] })).await;
    let response::Result::Profiles(page) = told.expect("told") else { panic!("no profiles") };
    let told = wire.ask(Op::Presence(packet::PresenceRequest { users: vec![user], stop: false })).await;
    let response::Result::Presence(answer) = told.expect("told") else { panic!("no presence") };
    (page.profiles.len(), answer.users[0].state())
}

/// SPEC R15-20, R15-3, R15-6, R16-11: who administers, and what closing an account means to others.
#[tokio::test]
async fn administrators_make_and_close_accounts() {
    let world = open(Registration::Closed).await;
    let mut root = admin(&world).await;
    let (mut bob, mut carol) = (world.user("bob").await, world.user("carol").await);
    let accounts = |after_user| Op::Accounts(packet::AccountsRequest { after_user, limit: 2 });
    assert_eq!(bob.act(0, set_account("bob", "correct horse")).await.expect_err("no").reason, Reason::Forbidden);
    assert_eq!(bob.act(0, close("root")).await.expect_err("no").reason, Reason::Forbidden);
    assert_eq!(bob.ask(accounts(0)).await.expect_err("no").reason, Reason::Forbidden);
    for hash in ["plain", "$argon2id$v=19$m=4194304,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA"] {
        let set = packet::SetAccount { user: "ada".into(), password_hash: hash.into(), close: false };
        let refusal = root.act(0, Action::SetAccount(set)).await.expect_err("no hash");
        assert_eq!(refusal.reason, Reason::InvalidArgument, "{hash}");
    }
    root.act(0, set_account("ada", "correct horse")).await.expect("set");
    let mut ada = world.wire(world.log_in("ada", "correct horse")).await;
    let direct = ada.open_direct("bob").await;
    bob.entry(bob.connected.inbox).await;
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let response::Result::Accounts(page) = root.ask(accounts(after)).await.expect("a page") else { panic!("no") };
        all.extend(page.accounts.into_iter().map(|one| (one.name, one.has_password, one.closed)));
        after = page.next;
        if after == 0 {
            break;
        }
    }
    all.sort();
    let user = |name: &str, has_password| (name.to_owned(), has_password, false);
    assert_eq!(all, [user("ada", true), user("bob", false), user("carol", false), user("root", false)]);
    let token = ada.connected.token.clone();
    let id = ada.connected.user;
    assert_eq!(shown(&mut bob, id).await, (1, packet::PresenceState::Online));
    root.act(0, close("ada")).await.expect("closed");
    assert_eq!(shown(&mut bob, id).await, (0, packet::PresenceState::NotShown), "as of who blocks");
    assert_eq!(ada.ended().await.reason, Reason::Revoked);
    assert_eq!(world.refused(with(&world, "ada", &token)).await.reason, Reason::Revoked);
    assert_eq!(world.refused(world.connect("ada")).await.reason, Reason::Revoked, "nor by another issuer's token");
    assert_eq!(world.refused(world.log_in("ada", "correct horse")).await.reason, Reason::Unauthenticated);
    // The same words as those of a block.
    carol.act(0, Action::Block(packet::Block { user: "bob".into(), undo: false })).await.expect("blocked");
    let say = Publish { conversation: direct, content: "x".into(), ..Publish::default() };
    let closed = bob.insist(say).await.expect_err("nothing is taken");
    let open = |user: &str| Action::OpenDirect(packet::OpenDirect { user: user.into() });
    let mut dave = world.user("dave").await;
    let never = dave.act(0, open("ada")).await.expect_err("closed");
    let blocked = bob.act(0, open("carol")).await.expect_err("blocked");
    assert_eq!(closed.reason, Reason::Forbidden);
    assert_eq!((never.reason, &never.detail), (blocked.reason, &blocked.detail));
    root.act(0, set_account("ada", "battery staple")).await.expect("open again");
    world.wire(world.log_in("ada", "battery staple")).await;
    bob.say(direct, "welcome back").await;
}

/// SPEC R4-2: a login beside a token, and what is no login.
#[tokio::test]
async fn a_login_stands_in_place_of_a_token() {
    let world = open(Registration::Open).await;
    let beside = packet::Connect { token: world.token(&world.claims("ada")), ..world.log_in("ada", "x") };
    let mut both = world.register("ada", "correct horse", "");
    both.login.as_mut().expect("a login").new_password = "battery staple".into();
    for connect in [beside, both, world.log_in("", "x"), world.log_in("ada", &"x".repeat(257))] {
        assert_eq!(world.refused(connect).await.reason, Reason::InvalidArgument);
    }
    assert_eq!(world.refused(packet::Connect { token: String::new(), ..world.connect("ada") }).await.reason, {
        Reason::Unauthenticated
    });
}

/// The SDK: the password once, then the token, kept; when that ends, the password again, but not for a device that was
/// revoked.
#[tokio::test]
async fn a_client_with_a_password_keeps_a_token_in_its_place() {
    use std::sync::{Arc, Mutex};

    use longwire_client::{Client, Failure, Login, State};

    let mut world = open(Registration::Open).await;
    let kept = Arc::new(Mutex::new(Vec::<String>::new()));
    let keep = {
        let kept = Arc::clone(&kept);
        move |token: &str| kept.lock().expect("unpoisoned").push(token.to_owned())
    };
    let config = |world: &World, login: Login| {
        let mut config = world.client("ada");
        config.token = login.into();
        config
    };
    let start = |config| Client::start(config).expect("starts");
    let login = Login::new("ada", "correct horse").registering("").keeping(keep.clone());
    assert!(!format!("{login:?}").contains("horse"));
    let (client, deliveries) = start(config(&world, login));
    client.connected().await.expect("registered");
    assert_eq!(kept.lock().expect("unpoisoned").len(), 1);
    // A restart of the broker under it: it comes again, with the token.
    let ack = client.open_direct("bob").await.expect("taken").await.expect("acked");
    drop(deliveries);
    world.stop().await;
    client.close().await;
    world.start().await;
    let first = kept.lock().expect("unpoisoned")[0].clone();
    let (client, deliveries) = start(config(&world, Login::new("ada", "").with_token(first)));
    let again = client.open_direct("bob").await.expect("taken").await.expect("acked");
    assert_eq!(again.conversation, ack.conversation);
    client.close().await;
    drop(deliveries);
    // One that is not believed: the password does.
    let login = Login::new("ada", "correct horse").with_token("no.to.ken").keeping(keep);
    let (client, deliveries) = start(config(&world, login));
    let connected = client.connected().await.expect("by the password");
    assert_eq!(kept.lock().expect("unpoisoned").len(), 2);
    let revoked = client.revoke_device(connected.device).await.expect("taken").await;
    revoked.expect("acked, and then it ends");
    let state = client.states().wait_for(State::is_final).await.expect("it ends").clone();
    assert!(
        matches!(&state, State::Failed(Failure::Refused(refusal)) if refusal.reason == Reason::Revoked),
        "{state:?}"
    );
    drop(deliveries);
    let (client, _deliveries) = start(config(&world, Login::new("ada", "wrong horse")));
    let state = client.connected().await.expect_err("refused");
    assert!(matches!(&state, State::Failed(Failure::Refused(refusal)) if refusal.reason == Reason::Unauthenticated));
}

/// The command line, from an invitation to a device that is revoked. No password is an argument.
#[tokio::test(flavor = "multi_thread")]
async fn commands_administer_and_log_in() {
    let mut world = open(Registration::Invitation).await;
    world.accounts.token_life_s = 86_400;
    world.restart().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let claims = Claims { admin: true, ..world.claims("root") };
    std::fs::write(path("root.token"), world.token(&claims)).expect("written");
    let url = format!("longwire://127.0.0.1:{}", world.port());
    let run = |arguments: &[&str], password: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_longwire"));
        command.args(arguments).args(["--url", &url, "--state-dir", &path("state")]);
        let output = command.env("LONGWIRE_PASSWORD", password).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let root = path("root.token");
    let done = |outcome: (Option<i32>, String, String)| {
        assert_eq!(outcome.0, Some(0), "{outcome:?}");
        outcome.1
    };
    done(run(&["user", "add", "ada", "--token-file", &root], "correct horse"));
    let listed = done(run(&["user", "list", "--json", "--token-file", &root], ""));
    assert!(listed.contains(r#""name":"ada","password":true"#), "{listed}");
    let (code, _, why) = run(&["account", "devices", "--user", "ada"], "wrong horse");
    assert_eq!(code, Some(77), "{why}");
    done(run(&["account", "devices", "--user", "ada"], "correct horse"));
    // From here on the token that was kept does.
    done(run(&["account", "block", "mallory", "--user", "ada"], ""));
    done(run(&["account", "contact", "bob", "Bobby", "--user", "ada"], ""));
    assert_eq!(done(run(&["account", "blocked", "--user", "ada"], "")), "mallory\n");
    let contacts = done(run(&["account", "contacts", "--json", "--user", "ada"], ""));
    assert!(contacts.contains(r#""name":"bob","nick":"Bobby""#), "{contacts}");
    done(run(&["account", "profile", "Ada L.", "--user", "ada"], ""));
    let invitation = world.invitation("one", None, u64::MAX / 2_000);
    let (code, _, why) = run(&["account", "register", "ben"], "battery staple");
    assert_eq!(code, Some(77), "{why}");
    done(run(&["account", "register", "ben", "--invitation", &invitation], "battery staple"));
    done(run(&["account", "devices", "--user", "ben"], ""));
    let devices = done(run(&["account", "devices", "--json", "--user", "ada"], ""));
    let own: serde_json::Value = serde_json::from_str(devices.lines().next().expect("a device")).expect("JSON");
    let number = own["device"].to_string();
    done(run(&["account", "name-device", &number, "shell", "--user", "ada"], ""));
    done(run(&["account", "revoke", &number, "--user", "ada"], ""));
    let (code, _, why) = run(&["account", "devices", "--user", "ada"], "");
    assert_eq!(code, Some(77), "{why}");
    // The token is forgotten, the password asked for: and the device is let in anew.
    done(run(&["account", "devices", "--user", "ada"], "correct horse"));
    done(run(&["user", "remove", "ada", "--token-file", &root], ""));
    let (code, _, why) = run(&["account", "devices", "--user", "ada"], "");
    assert_eq!(code, Some(77), "{why}");
}
