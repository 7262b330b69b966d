//! What is worth nothing later, and still is not for everybody: signals, and who is there.

use longwire_protocol::packet::{PresenceState, SignalKind};

use super::*;

impl History {
    /// Someone signals in a conversation, mostly one of its own; who may hear it is known before.
    pub(super) fn signal(&mut self, device: usize) {
        let id = self.any(device);
        self.said += 1;
        let content = Bytes::from(format!("signal {}", self.said));
        let of = &self.devices[device];
        let (user, grants) = (of.user_id, of.peer.as_ref().expect("it is online").grants);
        let says = self.oracle.clone().act(user, &grants, id, &Act::Say(String::new()));
        let hears = if matches!(says, Answer::Done(_)) { self.hearers(id) } else { BTreeSet::new() };
        self.coverage.count(if hears.is_empty() { "signals to nobody" } else { "signals to somebody" });
        self.signals.insert(content.clone(), hears);
        let kind = SignalKind::App.into();
        let (now, peer) = (self.now, self.devices[device].peer.as_mut().expect("it is online"));
        peer.session.signal(packet::Signal { conversation: id, kind, content, ..packet::Signal::default() });
        peer.send(now);
        // It is carried now or never: what changes afterwards changes nothing about who may have heard it.
        let number = peer.number;
        self.turn(false, Some(number));
    }

    /// The members of a conversation; of a channel, who may read it and watches it.
    fn hearers(&self, id: u64) -> BTreeSet<u64> {
        let conversation = &self.oracle.conversations[&id];
        if conversation.kind != ConversationKind::Channel {
            return conversation.active().into_iter().map(|(user, _)| user).collect();
        }
        let older = self.older.iter().map(|(device, peer)| (&self.devices[*device], peer));
        let peers = self.devices.iter().filter_map(|device| Some((device, device.peer.as_ref()?))).chain(older);
        let watching = peers.filter(|(_, peer)| {
            let is_open = |(of, _, to): &(u64, u64, u64)| *of == id && *to == u64::MAX;
            peer.grants.reads(&conversation.label) && peer.watched.iter().any(is_open)
        });
        watching.map(|(device, _)| device.user_id).collect()
    }

    pub(super) fn check_signal(&mut self, device: usize, signal: &packet::Signal) {
        let user = self.devices[device].user_id;
        if let Some(presence) = signal.presence {
            assert!(
                self.devices[device].subscribed.contains(&presence.user),
                "{user} is told of {}, unasked",
                presence.user
            );
            self.coverage.count("changes of presence told");
            return;
        }
        let hears = &self.signals[&signal.content];
        assert!(hears.contains(&user), "user {user} hears {signal:?}, which is for {hears:?}");
        self.coverage.count("signals heard");
    }

    /// Someone asks who is there: only of who shares a conversation is anything said, and only if both show themselves.
    pub(super) fn presence(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let mut users: Vec<u64> = self.oracle.users.keys().copied().collect();
        users.push(NOWHERE);
        let stop = self.rng.u8(0..6) == 0;
        self.devices[device].subscribed.extend(&users);
        let asked = packet::PresenceRequest { users: users.clone(), stop };
        let told = self.ask(device, &request::Op::Presence(asked));
        let Ok(response::Result::Presence(answer)) = told else { panic!("presence for {user}: {told:?}") };
        let expected = if stop { Vec::new() } else { users };
        assert_eq!(answer.users.iter().map(|presence| presence.user).collect::<Vec<_>>(), expected, "in order");
        for presence in answer.users {
            let other = presence.user;
            let is_hidden = self.hidden.contains(&user) || self.hidden.contains(&other);
            let is_blocked = self.oracle.blocks(other, user);
            let may = other == user || (self.oracle.share(user, other) && !is_hidden && !is_blocked);
            assert_eq!(presence.state() != PresenceState::NotShown, may, "what {user} may know of {other}");
            assert!(may || presence.last_seen == 0, "nor when it was seen");
            self.coverage.count(if may { "presences told" } else { "presences hidden" });
        }
        let is_hidden = answer.shown_to != i32::from(packet::Audience::Company);
        assert_eq!(is_hidden, self.hidden.contains(&user), "its own setting");
    }

    pub(super) fn show_presence(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        // Nobody here has contacts.
        let others = [packet::Audience::Contacts, packet::Audience::Nobody];
        let to = if self.rng.bool() { packet::Audience::Company } else { others[self.rng.usize(0..2)] };
        let publish = self.next(device, 0, Some(Action::ShowPresence(packet::ShowPresence { to: to.into() })), "");
        self.publish(device, &publish).expect("everybody may");
        match to {
            packet::Audience::Company => self.hidden.remove(&user),
            packet::Audience::Contacts | packet::Audience::Nobody => self.hidden.insert(user),
        };
    }
}
