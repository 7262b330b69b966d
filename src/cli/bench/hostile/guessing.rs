//! Guessing passwords: of one account that there is, and of names that nobody has, from many addresses.

use longwire_client::packet;
use tokio::time::timeout;

use super::super::load::wire::fresh;
use super::attack::Ground;
use super::strangers::{PATIENCE, TASKS, each};

/// How it is counted that a guess at the account was looked at, and was wrong.
pub(super) const LOOKED_AT: &str = "wrong for the account that there is";
/// The same for the names that nobody has: in the same words, and after the same work.
const LOOKED_AT_NOBODY: &str = "wrong for names that nobody has";

pub(super) async fn guess(ground: Ground) {
    let victim = format!("{}-victim", ground.prefix);
    let register = packet::Login { register: true, ..login(&victim, format!("{:032x}", fastrand::u128(..))) };
    // Where nobody may register there is no such account: it is guessed at all the same.
    if let Some((mut peer, open)) = ground.stream(0).await {
        let _may_be_refused = timeout(PATIENCE, peer.connect(connect(register))).await;
        drop(open);
    }
    each(TASKS, |n| {
        let (ground, victim) = (ground.clone(), victim.clone());
        async move {
            for tried in 0.. {
                let Some((mut peer, open)) = ground.stream(n + TASKS * tried).await else { continue };
                let is_victim = tried % 2 == 0;
                let user = if is_victim { victim.clone() } else { format!("{victim}-{n}-{tried}") };
                let guess = connect(login(&user, format!("guess {tried}")));
                ground.tally.sent(1, 0);
                match timeout(PATIENCE, peer.connect(guess)).await {
                    Ok(Err(how)) => {
                        if how == "unauthenticated" {
                            ground.tally.refused(if is_victim { LOOKED_AT } else { LOOKED_AT_NOBODY }, true);
                        }
                        open.ended(how);
                    }
                    Ok(Ok(_)) => {
                        ground.tally.accepted(0);
                        open.ended("let in");
                    }
                    Err(_) => open.ended("no answer"),
                }
            }
        }
    })
    .await;
}

fn login(user: &str, password: String) -> packet::Login {
    packet::Login { user: user.to_owned(), password, ..packet::Login::default() }
}

/// What is said first by who has no token.
fn connect(login: packet::Login) -> packet::Connect {
    packet::Connect { login: Some(login.into()), ..fresh(String::new(), "phone".to_owned()) }
}
