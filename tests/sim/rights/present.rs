//! What is worth nothing later, and still is not for everybody: signals, and who is there.

use longwire_protocol::packet::{EntryKind, PresenceState, SignalKind};

use super::*;

impl History {
    /// Someone signals in a conversation, mostly one of its own; who may hear it is known before.
    pub(super) fn signal(&mut self, device: usize) {
        let id = self.any(device);
        self.said += 1;
        let content = Bytes::from(format!("signal {}", self.said));
        let of = &self.devices[device];
        let (user, grants) = (of.user_id, of.peer.as_ref().expect("it is online").grants);
        let says = self.oracle.clone().act(user, &grants, id, &Act::Say(String::new(), Vec::new()));
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

    pub(super) fn check_signal(&mut self, device: usize, peer: &mut Peer, signal: &packet::Signal) {
        let user = self.devices[device].user_id;
        if let Some(presence) = signal.presence {
            let other = presence.user;
            assert!(self.devices[device].subscribed.contains(&other), "{user} is told of {other}, unasked");
            let is_shown = presence.state() != PresenceState::NotShown;
            let was_shown = peer.shown.get(&other).is_some_and(|was| *was);
            assert!(is_shown || was_shown, "{user} is told again that {other} is not shown to it");
            assert!(is_shown || presence.last_seen == 0, "who is not shown was not seen");
            let could = self.may_know[device].contains(&other);
            assert!(!is_shown || could, "{user} is told of {other}, who is not shown to it: {presence:?}");
            peer.shown.insert(other, is_shown);
            self.coverage.count(if is_shown { "changes of presence told" } else { "presences shown no more" });
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
        if let Some(peer) = self.devices[device].peer.as_mut().filter(|_| stop) {
            peer.shown.clear();
        }
        assert_eq!(answer.users.iter().map(|presence| presence.user).collect::<Vec<_>>(), expected, "in order");
        for presence in &answer.users {
            let other = presence.user;
            let may = self.oracle.knows(user, other);
            assert_eq!(presence.state() != PresenceState::NotShown, may, "what {user} may know of {other}");
            assert!(may || presence.last_seen == 0, "nor when it was seen");
            self.coverage.count(if may { "presences told" } else { "presences hidden" });
            if let Some(peer) = &mut self.devices[device].peer {
                peer.shown.insert(other, may);
            }
        }
        assert_eq!(answer.shown_to(), self.oracle.audience(user), "its own setting");
        assert_eq!(answer.hides_marks, self.oracle.hides_marks.contains(&user), "its own setting");
    }

    /// Whoever was told of a user that it may know nothing of any more, whatever of the two changed, was told that, too.
    pub(super) fn check_who_is_shown(&self) {
        for device in &self.devices {
            let shown = device.peer.iter().flat_map(|peer| &peer.shown).filter(|(_, is_shown)| **is_shown);
            for (other, _) in shown {
                let (user, other) = (device.user_id, *other);
                let share = self.oracle.share(other, user);
                let [it, its] = [self.oracle.audience(user), self.oracle.audience(other)];
                let why = format!("blocked: {}, share: {share}, {it:?}, {its:?}", self.oracle.blocks(other, user));
                assert!(self.oracle.knows(user, other), "{user} still sees {other}: {why}");
            }
        }
    }

    /// A user shows itself to others than before; or hides from someone who asked, which is told, and shows itself again.
    pub(super) fn show_presence(&mut self, device: usize) {
        let all = [packet::Audience::Company, packet::Audience::Contacts, packet::Audience::Nobody];
        let to = *self.rng.choice(&all).expect("some");
        let hides = to == packet::Audience::Nobody && self.rng.bool();
        let asks = self.rng.usize(0..self.devices.len());
        if hides && asks != device && self.devices[asks].peer.is_some() {
            self.presence(asks);
        }
        self.shows_to(device, to);
        if hides {
            self.wait_for_news();
            if self.devices[device].peer.is_some() {
                self.shows_to(device, packet::Audience::Company);
                self.wait_for_news();
            }
        }
    }

    /// Time passes in which presence is told.
    fn wait_for_news(&mut self) {
        self.pass(2_100);
        self.turn(true, None);
        (0..self.devices.len()).for_each(|device| self.receive(device));
    }

    fn shows_to(&mut self, device: usize, to: packet::Audience) {
        let user = self.devices[device].user_id;
        let publish = self.next(device, 0, Some(Action::ShowPresence(packet::ShowPresence { to: to.into() })), "");
        // Whom it shows itself to may be told before it has its ack.
        self.oracle.audiences.insert(user, to);
        self.publish(device, &publish).expect("everybody may");
        self.coverage.count(match to {
            packet::Audience::Contacts => "presences shown to contacts",
            _ => "presences shown",
        });
    }

    /// A user hides its marks in direct conversations, or no more; and reads, mostly before its device has said that it
    /// has what there is to read, while the other asks.
    pub(super) fn hide_marks(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let undo = self.rng.u8(0..3) == 0;
        let publish = self.next(device, 0, Some(Action::HideMarks(packet::HideMarks { undo })), "");
        // What it hides is not told once that is acked, and what it shows may be told before.
        if undo {
            self.oracle.hides_marks.remove(&user);
        } else {
            self.oracle.note_shown_marks(user);
        }
        self.publish(device, &publish).expect("everybody may");
        if !undo {
            self.oracle.hides_marks.insert(user);
        }
        self.coverage.count(if undo { "marks shown again" } else { "marks hidden" });
        let mut with = Vec::new();
        for (other, of) in self.devices.iter().enumerate().filter(|(_, of)| of.peer.is_some() && of.user_id != user) {
            with.extend(self.oracle.direct(user, of.user_id).map(|id| (other, id)));
        }
        let Some(&(other, id)) = self.rng.choice(&with) else { return };
        let does = |of: &mut Self, device: usize, act: Act, action: Option<Action>, content: &str| {
            if of.devices[device].peer.is_some() {
                let publish = of.next(device, id, action, content);
                let expected = of.expected(device, id, &act);
                let answer = of.publish(device, &publish);
                of.check_answer(&act, expected, answer);
            }
        };
        self.said += 1;
        let text = format!("said {}", self.said);
        does(self, other, Act::Say(text.clone(), Vec::new()), None, &text);
        let seq = self.oracle.conversations[&id].head();
        does(self, device, Act::SetMark(seq), Some(Action::SetMark(packet::SetMark { seq })), "");
        if self.devices[other].peer.is_some() {
            self.ask_receipts(other, id);
        }
    }

    /// A user keeps something of another, or nothing any more.
    pub(super) fn keep_contact(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let (other, name) = self.anyone();
        let remove = self.rng.u8(0..3) == 0;
        let nick = if remove { String::new() } else { format!("nick {}", self.rng.u8(0..3)) };
        let set = packet::SetContact { user: name.into(), nick: nick.clone(), data: Bytes::new(), remove };
        let publish = self.next(device, 0, Some(Action::SetContact(set)), "");
        if other == user {
            let refusal = self.publish(device, &publish).expect_err("nobody is its own contact");
            return assert_eq!(refusal.reason, Reason::InvalidArgument);
        }
        let seq = self.oracle.keep_contact(user, other, (!remove).then_some(nick));
        let answer = self.publish(device, &publish);
        assert_eq!(answer.expect("whoever wants keeps contacts").seq, seq, "the seq of a contact");
        self.coverage.count(if remove { "contacts removed" } else { "contacts kept" });
    }

    /// Notes whose presence each device may be told now.
    pub(super) fn note_who_may_know(&mut self) {
        let users: Vec<u64> = self.oracle.users.keys().copied().collect();
        for (device, known) in self.devices.iter().zip(&mut self.may_know) {
            known.extend(users.iter().filter(|other| self.oracle.knows(device.user_id, **other)));
        }
    }
}

impl Oracle {
    /// To whom a user shows its presence.
    fn audience(&self, user: u64) -> packet::Audience {
        self.audiences.get(&user).copied().unwrap_or(packet::Audience::Company)
    }

    /// A user begins to hide its marks, unless it does: what was told by now stays told.
    fn note_shown_marks(&mut self, user: u64) {
        for (id, conversation) in &self.conversations {
            let (a, b) = conversation.pair;
            if conversation.kind == ConversationKind::Direct && (a == user || b == user) && !self.hides_in(*id) {
                let marks = [a, b].map(|of| ((*id, of), conversation.members[&of].mark));
                self.shown_marks.extend(marks);
            }
        }
    }

    fn shows(&self, user: u64, to: u64) -> bool {
        match self.audience(user) {
            packet::Audience::Company => true,
            packet::Audience::Contacts => self.contacts.contains_key(&(user, to)),
            packet::Audience::Nobody => false,
        }
    }

    /// Whether a user may know of another's presence.
    fn knows(&self, user: u64, other: u64) -> bool {
        let is_mutual = self.shows(user, other) && self.shows(other, user);
        other == user || (self.share(user, other) && is_mutual && !self.blocks(other, user))
    }

    /// What a user keeps of another from here on; gives the seq of the answer.
    fn keep_contact(&mut self, user: u64, other: u64, nick: Option<String>) -> u64 {
        let before = match &nick {
            Some(nick) => self.contacts.insert((user, other), nick.clone()),
            None => self.contacts.remove(&(user, other)),
        };
        if before != nick {
            return self.push_own(user, user, EntryKind::Contact, &nick.unwrap_or_default(), other);
        }
        self.conversations[&self.users[&user].0].head()
    }
}
