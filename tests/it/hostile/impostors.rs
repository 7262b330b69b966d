//! Who has no token, an old one, or another's: nothing of the victim's session is touched. And the names that one may
//! take to be someone else.

use longwire::auth::password::Cost;
use longwire::auth::{self, Claims, Registration};
use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, request};
use longwire_protocol::reason::Reason;

use super::{Bystander, Raw, socket_from};
use crate::world::World;

/// Base64 as tokens have it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        out.extend((0..=chunk.len()).map(|n| char::from(DIGITS[(bits >> (18 - 6 * n)) as usize & 63])));
    }
    out
}

/// A token with this header over the claims, and this signature.
fn forged(header: &str, claims: &Claims, signature: &str) -> String {
    let claims = serde_json::to_vec(claims).expect("claims");
    format!("{}.{}.{signature}", base64(header.as_bytes()), base64(&claims))
}

/// Gets: *unauthenticated* in the same words for whatever is not signed by the issuer it names, *token_expired* for what
/// was good once, and *revoked*. Costs: one signature check at most. The victim: its session goes on.
#[tokio::test]
async fn tokens_that_are_not_the_victims_own_touch_nothing_of_it() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    alice.say(direct, "before").await;
    let (session, incarnation) = (alice.connected.session, alice.incarnation);

    let claims = world.claims("alice");
    let good = world.token(&claims);
    let (head, signature) = good.rsplit_once('.').expect("a signature");
    let (other_key, _) = auth::generate_key().expect("a key");
    let other = |claims: &Claims| auth::issue(claims, other_key.as_bytes()).expect("a token");
    let of_bob = world.token(&world.claims("bob"));
    let (_, of_bob_signature) = of_bob.rsplit_once('.').expect("a signature");
    let no_issuer = |error: &str| (Reason::Unauthenticated, error.to_owned());
    let attacks = [
        (String::new(), no_issuer("none")),
        ("x".into(), no_issuer("garbage")),
        ("...".into(), no_issuer("dots")),
        ("\u{0}.\u{0}.\u{0}".into(), no_issuer("zeros")),
        (forged(r#"{"alg":"none"}"#, &claims, ""), no_issuer("no algorithm")),
        (forged(r#"{"alg":"NONE","typ":"JWT"}"#, &claims, signature), no_issuer("no algorithm, loudly")),
        (forged(r#"{"alg":"HS256"}"#, &claims, signature), no_issuer("another algorithm")),
        (forged(r#"{"alg":"EdDSA"}"#, &claims, of_bob_signature), no_issuer("another's signature")),
        (forged(r#"{"alg":"EdDSA"}"#, &claims, ""), no_issuer("no signature")),
        (format!("{head}.{}", &signature[1..]), no_issuer("a cut signature")),
        (other(&claims), no_issuer("another key")),
        (other(&Claims { iss: "elsewhere".into(), ..claims.clone() }), no_issuer("another broker's issuer")),
        (world.token(&Claims { iss: "elsewhere".into(), ..claims.clone() }), no_issuer("an issuer without a key")),
        (world.token(&Claims { aud: "elsewhere".into(), ..claims.clone() }), no_issuer("another audience")),
        (world.token(&Claims { sub: String::new(), ..claims.clone() }), no_issuer("nobody")),
        (world.token(&Claims { read: vec!["x".into(); 65], ..claims.clone() }), no_issuer("too many patterns")),
        (world.token(&Claims { moderate: vec!["x".into(); 65], ..claims.clone() }), no_issuer("too many, again")),
        (format!("{good}{}", "x".repeat(3_072)), no_issuer("too long")),
        (world.token(&Claims { device: Some("laptop".into()), ..claims.clone() }), no_issuer("for another device")),
        (world.token(&Claims { exp: 2_000, ..claims.clone() }), (Reason::TokenExpired, "old".to_owned())),
    ];
    for (token, (reason, what)) in attacks {
        // With a newer incarnation, which would end the victim's outbox if it were looked at.
        let connect = packet::Connect { token, incarnation: 9, first_unanswered: 900, ..world.connect("alice") };
        assert_eq!(world.refused(connect).await.reason, reason, "{what}");
    }
    world.revoke("user alice 500");
    let old = world.token(&Claims { iat: 499, ..claims.clone() });
    assert_eq!(world.refused(packet::Connect { token: old, ..world.connect("alice") }).await.reason, Reason::Revoked);
    // The words are the same for an issuer that is not known and a signature that is wrong.
    let words = async |token| world.refused(packet::Connect { token, ..world.connect("alice") }).await.to_string();
    assert_eq!(words(other(&claims)).await, words(other(&Claims { iss: "elsewhere".into(), ..claims.clone() })).await);

    alice.say(direct, "after").await;
    assert_eq!((alice.connected.session, alice.incarnation), (session, incarnation));
    let again = world.wire(packet::Connect { incarnation, ..world.connect("alice") }).await;
    assert_eq!(again.incarnation, incarnation, "nobody made a newer one");
}

/// A token names the user, so the same device name of another user is another device.
#[tokio::test]
async fn another_users_device_of_the_same_name_is_another_device() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let direct = alice.open_direct("bob").await;
    let mallory = world.user("mallory").await;
    assert_ne!(alice.connected.device, mallory.connected.device);
    alice.say(direct, "still here").await;
}

/// Gets: *rate_limited* after four takeovers, with how long to wait. Others: go on, and so does the last session.
#[tokio::test]
async fn two_clients_that_fight_for_a_device_are_told_to_wait() {
    let world = World::new().await;
    let mut bystander = Bystander::new(&world).await;
    let mut holders = Vec::new();
    let refusal = loop {
        let mut wire = world.dial(world.connect("alice")).await;
        match wire.connected().await {
            Ok(()) => holders.push(wire),
            Err(refusal) => break refusal,
        }
        assert!(holders.len() <= 5, "they fight on");
    };
    assert_eq!((holders.len(), refusal.reason), (5, Reason::RateLimited), "four took it over from the first");
    assert!((1..=60_000).contains(&refusal.retry_after_ms), "{}", refusal.retry_after_ms);
    let mut last = holders.pop().expect("a session");
    last.open_direct("bob").await;
    for mut wire in holders {
        assert_eq!(wire.ended().await.reason, Reason::TakenOver);
    }
    for _ in 0..100 {
        assert_eq!(world.refused(world.connect("alice")).await.reason, Reason::RateLimited);
    }
    last.open_direct("carol").await;
    bystander.goes_on().await;
}

/// A session ends when its token does, though nothing is sent and no heartbeat is due.
#[tokio::test]
async fn a_quiet_session_ends_with_its_token() {
    let world = World::new().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = world.token(&Claims { exp: now + 3, ..world.claims("alice") });
    let (mut raw, connected) = Raw::let_in(world.port(), packet::Connect { token, ..world.connect("alice") }).await;
    assert!(connected.token_expires_in_ms <= 3_000);
    assert_eq!(raw.end().await, Some(Reason::TokenExpired));
}

/// A new token is taken for the same user and device alone.
#[tokio::test]
async fn a_session_is_not_prolonged_by_another_token() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let (key, _) = auth::generate_key().expect("a key");
    let claims = world.claims("alice");
    for (token, reason) in [
        (world.token(&world.claims("bob")), Reason::Forbidden),
        (world.token(&Claims { device: Some("laptop".into()), ..claims.clone() }), Reason::Forbidden),
        (auth::issue(&claims, key.as_bytes()).expect("a token"), Reason::Unauthenticated),
        (world.token(&Claims { exp: 2_000, ..claims.clone() }), Reason::TokenExpired),
        ("x".repeat(3_100), Reason::Unauthenticated),
    ] {
        let refresh = request::Op::Refresh(packet::RefreshRequest { token });
        assert_eq!(alice.ask(refresh).await.expect_err("refused").reason, reason);
    }
    alice.open_direct("bob").await;
}

/// What may be a name, in a token's `sub`, as a device and in an action alike (SPEC R5.5-9); what looks like another name
/// and is spelled otherwise is another user.
#[tokio::test]
async fn names_follow_one_rule_wherever_they_stand() {
    let world = World::new().await;
    let mut alice = world.user("alice").await;
    let long = "x".repeat(65);
    let refused = [
        "",
        "a\0",
        "a\nb",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{85}",
        "ali\u{200b}ce",
        "alice\u{200d}",
        "\u{202e}ecila",
        "\u{2066}alice",
        "alice\u{feff}",
        "al\u{ad}ice",
        "a\u{2028}b",
        "alice\u{e0061}",
        &long,
    ];
    let mut user = world.wire(packet::Connect { device: "grants".into(), ..granted(&world, "carol") }).await;
    for name in refused {
        let token = world.token(&world.claims(name));
        let refusal = world.refused(packet::Connect { token, device: "d".into(), ..world.connect("x") }).await;
        assert_eq!(refusal.reason, Reason::Unauthenticated, "sub {name:?}");
        let refusal = world.refused(packet::Connect { device: name.into(), ..world.connect("dan") }).await;
        assert_eq!(refusal.reason, Reason::InvalidArgument, "device {name:?}");
        let open = Action::OpenDirect(packet::OpenDirect { user: name.into() });
        assert_eq!(alice.act(0, open).await.expect_err("no name").reason, Reason::InvalidArgument, "{name:?}");
        let create = Action::CreateGroup(packet::CreateGroup {
            label: "g".into(),
            users: vec![name.into()],
            ..Default::default()
        });
        assert_eq!(alice.act(0, create).await.expect_err("no name").reason, Reason::InvalidArgument, "{name:?}");
        if name.len() < 65 {
            let channel = user.open_channel(name).await.expect_err("no name").reason;
            assert_eq!(channel, Reason::InvalidArgument, "channel {name:?}");
        }
    }
    for channel in ["/", "a/", "/a", "a//b", "*", "a/**", "a*"] {
        assert_eq!(user.open_channel(channel).await.expect_err("no name").reason, Reason::InvalidArgument, "{channel}");
    }
    // Spelled otherwise: Cyrillic, capitals, a decomposed letter, a space.
    let mut seen = vec![alice.connected.user];
    for name in ["аlice", "Alice", "alice ", "ali\u{0301}ce", "alíce"] {
        let other = world.user(name).await;
        assert!(!seen.contains(&other.connected.user), "{name:?} is somebody else");
        seen.push(other.connected.user);
        alice.open_direct(name).await;
    }
}

/// Gets: the guesses that one address may make, of however many names; with others, what the queue holds and *overloaded*;
/// never a word more. Costs: one password a core at a time, at a low priority. Others go on, and the victim comes in with its
/// token while its password is tried.
#[tokio::test]
async fn guessing_passwords_gets_nothing_and_keeps_nobody_out() {
    let mut world = World::new().await;
    world.accounts.registration = Registration::Open;
    // As dear as it is.
    world.accounts.cost = Cost::default();
    world.restart().await;
    let mut bystander = Bystander::new(&world).await;
    let mut victim = world.wire(world.register("victim", "correct horse", "")).await;
    let token = victim.connected.token.clone();
    victim.leave().await;
    let mut guesses = Vec::new();
    for address in 2..6 {
        for n in 0..60 {
            let name = if n < 30 { "victim".to_owned() } else { format!("user-{n}") };
            let connect = world.log_in(&name, &format!("guess {n}"));
            let socket = socket_from(address, world.port()).await.expect("a connection");
            guesses.push(tokio::spawn(async move {
                let mut raw = Raw::over(socket);
                raw.say(&Kind::Connect(connect)).await;
                raw.end().await
            }));
        }
    }
    bystander.goes_on().await;
    let connect = packet::Connect { token, ..world.connect("victim") };
    world.wire(connect).await;
    let mut told = std::collections::BTreeMap::new();
    for guess in guesses {
        let reason = guess.await.expect("it ends").expect("with a word");
        *told.entry(format!("{reason:?}")).or_insert(0) += 1;
    }
    bystander.goes_on().await;
    // Of each address five of the victim, and each other name once.
    let checked = told.remove("Unauthenticated").unwrap_or(0);
    let refused = told.remove("RateLimited").unwrap_or(0);
    let overloaded = told.remove("Overloaded").unwrap_or(0);
    // Guesses are checked at a low priority: a machine that is busy may have no time for some.
    let late = told.remove("HandshakeTimeout").unwrap_or(0);
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(checked + refused + overloaded + late, 240, "{checked} {refused} {overloaded} {late}");
    assert!(checked <= 4 * 35 + 8 && refused + late >= 4 * 20, "{checked} were checked, {refused} refused");
}

/// What `user` says first with a token for all channels.
fn granted(world: &World, user: &str) -> packet::Connect {
    let all = || vec!["**".to_owned()];
    let claims = Claims { publish: all(), read: all(), ..world.claims(user) };
    packet::Connect { token: world.token(&claims), ..world.connect(user) }
}
