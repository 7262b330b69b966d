//! Who brings another's token, one of before, or a name that looks like another's.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longwire_client::packet::{self, publish::Action};
use longwire_protocol::packet::packet::Kind;
use tokio::time::timeout;

use super::super::super::Fail;
use super::super::load::wire::{Wire, WireError, fresh};
use super::attack::Ground;
use super::door::{CLOSED, Peer, named};
use super::insiders::{self, channel, note, publish};
use super::strangers::{PATIENCE, TASKS, each};
use super::victim::{DEVICE, Victim};
use crate::auth::{self, Claims};

/// How long the token holds that is to expire.
const LIFE: Duration = Duration::from_secs(2);

/// Names that cannot be: of users, devices and channels alike (SPEC R5.5-9).
const INVALID: [&str; 8] = ["", "a\0", "a\nb", "\u{1b}[2J", "al\u{ad}ice", "a\u{200b}", "\u{202e}ecila", "\u{feff}a"];

/// Names that look like a victim's, and are others.
fn confusable(name: &str) -> [String; 4] {
    [name.replace('i', "\u{456}"), name.replace('c', "\u{441}"), format!("{name} "), name.replace("victim", "Victim")]
}

/// Goes on with the attack for as long as its victim does, and notes what happened to it.
async fn beside(ground: &Ground, victim: Victim, attack: impl Future<Output = ()>) {
    tokio::select! {
        wrong = victim.goes_on(ground) => ground.tally.wrong(wrong),
        () = attack => {}
    }
    // What went wrong once is enough.
    std::future::pending::<()>().await;
}

// ---------------------------------------------------------------------------------------------- impostors

/// Tokens with which nobody is let in as the victim, on the very device that it is connected with.
fn tokens_of_others(ground: &Ground, victim: &str) -> Result<Vec<String>, Fail> {
    let claims = ground.issuer.claims(victim);
    let (good, others) = (ground.issuer.sign(&claims)?, ground.issuer.token(&format!("{victim}-other"))?);
    let cut = |token: &str| token.rsplit_once('.').map(|(head, end)| (head.to_owned(), end.to_owned()));
    let (head, _) = cut(&good).unwrap_or_default();
    let (_, other_signature) = cut(&others).unwrap_or_default();
    let (other_key, _) = auth::generate_key().map_err(Fail::failed)?;
    Ok(vec![
        auth::issue(&claims, other_key.as_bytes()).map_err(Fail::failed)?,
        ground.issuer.sign(&Claims { exp: 2_000, ..claims.clone() })?,
        ground.issuer.sign(&Claims { device: Some("laptop".to_owned()), ..claims.clone() })?,
        ground.issuer.sign(&Claims { aud: "elsewhere".to_owned(), ..claims })?,
        format!("{head}.{other_signature}"),
        format!("{head}."),
    ])
}

pub(super) async fn impostors(ground: Ground) {
    let victim = Victim::connected(&ground).await;
    let Ok(tokens) = tokens_of_others(&ground, &victim.name) else {
        return ground.tally.wrong("there are no tokens to try");
    };
    let attack = try_tokens(&ground, tokens.into_iter().map(|token| (token, DEVICE)).collect());
    beside(&ground, victim, attack).await;
}

/// Tries these tokens, each with its device, one after another; none of them is to be let in.
async fn try_tokens(ground: &Ground, tokens: Vec<(String, &'static str)>) {
    each(TASKS, |n| {
        let (ground, tokens) = (ground.clone(), tokens.clone());
        async move {
            for (token, device) in tokens.iter().cycle() {
                let Some((mut peer, open)) = ground.stream(n).await else { continue };
                ground.tally.sent(1, token.len());
                // It would end the victim's outbox, too, if it were looked at.
                let connect = packet::Connect {
                    incarnation: 9,
                    first_unanswered: 900,
                    ..fresh(token.clone(), (*device).to_owned())
                };
                match timeout(PATIENCE, peer.connect(connect)).await {
                    Ok(Err(how)) => open.ended(how),
                    Ok(Ok(_)) => {
                        ground.tally.wrong("let in as the victim");
                        open.ended("let in");
                    }
                    Err(_) => open.ended("no answer"),
                }
            }
        }
    })
    .await;
}

// ---------------------------------------------------------------------------------------------- replays

/// Both tokens were believed, and are remembered by the broker as good: one has expired since, one was taken back with
/// its device.
pub(super) async fn replays(ground: Ground) {
    let tokens = loop {
        match tokens_of_before(&ground).await {
            Ok(tokens) => break tokens,
            // The next try is of other users: of those devices were revoked.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    tokio::time::sleep(LIFE).await;
    try_tokens(&ground, tokens).await;
}

async fn tokens_of_before(ground: &Ground) -> Result<Vec<(String, &'static str)>, WireError> {
    let broken = |fail: Fail| WireError::Broken(fail.to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let once = fastrand::u32(..);
    let of = |name: &str, device: Option<&str>, exp: Option<u64>| {
        let claims = ground.issuer.claims(&format!("{}-{name}-{once:08x}", ground.prefix));
        let exp = exp.unwrap_or(claims.exp);
        ground.issuer.sign(&Claims { device: device.map(str::to_owned), exp, ..claims }).map_err(broken)
    };
    let connect = async |token: &str, device: &str| {
        Wire::connect(ground.door.way(), None, fresh(token.to_owned(), device.to_owned())).await
    };
    let expires = of("late", None, Some(now + LIFE.as_secs()))?;
    connect(&expires, DEVICE).await?.close().await;
    let lost = of("lost", Some(DEVICE), None)?;
    let phone = connect(&lost, DEVICE).await?;
    let mut laptop = connect(&of("lost", Some("laptop"), None)?, "laptop").await?;
    let revoke = Some(Action::RevokeDevice(packet::RevokeDevice { device: phone.connected.device }));
    laptop.publish_one(packet::Publish { message_id: 1, action: revoke, ..Default::default() }).await?;
    Ok(vec![(expires, DEVICE), (lost, DEVICE)])
}

// ---------------------------------------------------------------------------------------------- names

pub(super) async fn names(ground: Ground) {
    let victim = Victim::connected(&ground).await;
    let attack = {
        let (name, user) = (victim.name.clone(), victim.user);
        let ground = ground.clone();
        each(insiders::TASKS, move |n| {
            let (ground, name) = (ground.clone(), name.clone());
            async move {
                loop {
                    let (mut peer, open, _) = ground.session(n, DEVICE).await;
                    let mut first = 1;
                    let end = loop {
                        match name_others(&ground, &mut peer, first, &name).await {
                            Ok(named) => first += named,
                            Err(end) => break end,
                        }
                        be_called(&ground, n, &name, user).await;
                    };
                    open.ended(end);
                }
            }
        })
    };
    beside(&ground, victim, attack).await;
}

/// Opens what has such a name, and looks at what was opened; says how many ids that took.
async fn name_others(ground: &Ground, peer: &mut Peer, first: u64, victim: &str) -> Result<u64, &'static str> {
    let user = |name: &str| Some(Action::OpenDirect(packet::OpenDirect { user: name.to_owned() }));
    let like_it = confusable(victim);
    let actions: Vec<_> = [user(victim)]
        .into_iter()
        .chain(like_it.iter().map(|name| user(name)))
        .chain(INVALID.iter().map(|name| user(name)))
        .chain(INVALID.iter().map(|name| channel((*name).to_owned())))
        .chain(["/", "a//b", "a/**"].iter().map(|name| channel((*name).to_owned())))
        .collect();
    let count = actions.len() as u64;
    ground.packets.turn(count as u32).await;
    ground.tally.sent(count, 0);
    for (id, action) in (first..).zip(actions) {
        let publish = packet::Publish { first_unanswered: first, ..publish(id, 0, action) };
        if peer.say(&Kind::Publish(publish)).await.is_err() {
            return Err(peer.end().await);
        }
    }
    let (mut opened, mut left) = (HashMap::new(), count);
    while left > 0 {
        let kind = peer.next().await.ok_or(CLOSED)?;
        note(&ground.tally, &kind, 0);
        match kind {
            Kind::PublishAck(ack) => {
                left -= 1;
                if ack.message_id > first + like_it.len() as u64 {
                    ground.tally.wrong("a name that cannot be was taken");
                }
                if opened.insert(ack.conversation, ack.message_id).is_some() {
                    ground.tally.wrong("a name was taken for another");
                }
            }
            Kind::Refused(refused) if refused.message_id != 0 => left -= 1,
            Kind::Refused(refused) => return Err(named(&refused)),
            _ => {}
        }
    }
    Ok(count)
}

/// Comes with tokens of such names: of one that cannot be with none, of others as somebody else.
async fn be_called(ground: &Ground, n: u64, victim: &str, user: u64) {
    let like_it = confusable(victim);
    let which = fastrand::usize(..INVALID.len() + like_it.len());
    let (sub, can_be) = match INVALID.get(which) {
        Some(name) => (*name, false),
        None => (like_it[which - INVALID.len()].as_str(), true),
    };
    let Ok(token) = ground.issuer.token(sub) else { return };
    let Some((mut peer, open)) = ground.stream(n).await else { return };
    ground.tally.sent(1, token.len());
    match timeout(PATIENCE, peer.connect(fresh(token, DEVICE.to_owned()))).await {
        Ok(Ok(_)) if !can_be => ground.tally.wrong("a token for a name that cannot be was believed"),
        Ok(Ok(connected)) if connected.user == user => ground.tally.wrong("let in as the victim"),
        Ok(Ok(_)) => {}
        Ok(Err(how)) => open.ended(how),
        Err(_) => open.ended("no answer"),
    }
}

#[cfg(test)]
mod tests {
    use longwire_protocol::names::is_name;

    use super::*;

    #[test]
    fn what_looks_alike_is_a_name_and_another() {
        let (name, mut seen) = ("bench-victim", vec!["bench-victim".to_owned()]);
        for like_it in confusable(name) {
            assert!(is_name(&like_it, 64) && !seen.contains(&like_it), "{like_it:?}");
            seen.push(like_it);
        }
        assert!(INVALID.iter().all(|name| !is_name(name, 64)));
    }
}
