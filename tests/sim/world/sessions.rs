//! Tokens, and whose session there is: what devices may do and how long, and that nobody is there who is not.

use super::*;

/// What tokens let devices do with the channels of a world.
const GRANTS: [(&[&str], &[&str]); 4] = [(ALL, ALL), (&["news/0"], ALL), (&["news/1"], &["news/0"]), (&[], &[])];

/// What a token says beside whose it is.
#[derive(Clone, Copy)]
pub(super) struct Allows {
    pub(super) expires: u64,
    /// Which of [`GRANTS`].
    pub(super) grants: usize,
    pub(super) is_admin: bool,
}

pub(super) fn new_pass(user: &str, id: String, allows: Allows, private_key: &str) -> Pass {
    let Allows { expires, grants, is_admin } = allows;
    let (read, publish) = GRANTS[grants];
    let claims = longwire::auth::Claims {
        iss: "sim".into(),
        sub: user.into(),
        aud: longwire::auth::AUDIENCE.into(),
        exp: expires,
        iat: 1_000,
        jti: id.clone(),
        publish: publish.iter().map(ToString::to_string).collect(),
        read: read.iter().map(ToString::to_string).collect(),
        admin: is_admin,
        ..longwire::auth::Claims::default()
    };
    let token = longwire::auth::issue(&claims, private_key.as_bytes()).expect("a token");
    Pass { token, id, expires, read, publish, is_admin }
}

/// When a token ends that does not.
pub(super) const NEVER: u64 = u64::MAX / 2_000;

impl World {
    /// A token for a device, as this world has them.
    pub(super) fn mint(&mut self, device: usize) -> Pass {
        self.minted += 1;
        let expires = match self.weather.tokens_last.filter(|_| !self.is_calm) {
            Some(seconds) => self.unix_ms() / 1_000 + 1 + self.rng.u64(0..seconds),
            None => NEVER,
        };
        let grants = if self.weather.tokens_differ { self.rng.usize(0..GRANTS.len()) } else { 0 };
        let of = &self.devices[device];
        let allows = Allows { expires, grants, is_admin: of.pass.is_admin };
        new_pass(&of.user, format!("token{}", self.minted), allows, &self.private_key)
    }

    /// Whose token is over, from now on or still.
    pub(super) fn look_at_tokens(&mut self) {
        let (now, seconds) = (self.now, self.unix_ms() / 1_000);
        if self.broker.is_some() {
            self.latest = self.latest.max(seconds);
        }
        let is_over = |pass: &Pass| pass.expires <= seconds || self.revoked.contains(&pass.id);
        for device in &mut self.devices {
            let Some(wire) = &mut device.wire else { continue };
            if is_over(&device.pass) && wire.refreshing.as_ref().is_none_or(is_over) {
                wire.over_since.get_or_insert(now);
            } else {
                wire.over_since = None;
            }
        }
    }

    /// Whoever is taken over, is so by a session that somebody has; after a commit that stalled, by one that somebody had when
    /// that was decided.
    pub(super) fn check_takeovers(&mut self, has_stalled: bool) {
        let Some(broker) = &self.broker else { return };
        let all = broker.rooms.shared.registry.all();
        for session in &all {
            let closing = session.outbox.lock().closing.as_ref().map(|refusal| refusal.reason);
            if closing != Some(Reason::TakenOver) || !self.taken_over.insert(session.number.0) {
                continue;
            }
            let newer = |of: &&std::sync::Arc<Session>| of.device == session.device && of.number > session.number;
            let by = all.iter().filter(newer).any(|of| has_stalled || !of.outbox.lock().is_abandoned);
            assert!(by, "a session of {} is taken over by nobody", session.device);
        }
    }

    /// Nobody is there who is erased, but for a session that was told so and has its last words left.
    pub(super) fn check_erased_sessions(&mut self) {
        let Some(broker) = &self.broker else { return };
        for user in self.model.erased.keys() {
            broker.rooms.shared.registry.each_of(UserId(*user), |of| {
                let is_told = of.outbox.lock().closing.is_some() && self.told_erased.insert(of.number.0);
                let was_told = is_told || self.told_erased.contains(&of.number.0);
                assert!(was_told, "session {} of erased user {user} goes on", of.number);
            });
        }
    }

    /// Whoever watches a channel is there.
    pub(super) fn check_watchers(&self) {
        let Some(broker) = &self.broker else { return };
        let registry = &broker.rooms.shared.registry;
        for channel in self.model.channels.values() {
            let mut watchers = Vec::new();
            registry.each_watcher(ConversationId(*channel), |of| watchers.push((of.user, of.number)));
            for (user, number) in watchers {
                let mut is_there = false;
                registry.each_of(user, |of| is_there |= of.number == number);
                assert!(is_there, "session {number} of {user} watches {channel}, and is over");
            }
        }
    }
}
