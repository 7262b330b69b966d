//! What happens in a history: people connect, say, decide, open, refresh, fight for a device, go and come back.

use longwire_protocol::packet::EntryKind;

use super::*;

/// A join key; none closes the group.
fn key_bytes(key: Option<u8>) -> Bytes {
    key.map_or_else(Bytes::new, |key| vec![key; 16].into())
}

impl History {
    pub(super) fn connect(&mut self, device: usize) -> bool {
        if let Some(older) = self.devices[device].peer.take() {
            self.older.push((device, older));
        }
        let number = self.next_link;
        self.next_link += 1;
        let window = [None, Some(Window { items: 1, bytes: 512 }), Some(Window { items: 4, bytes: 2_000 })];
        let window = window[self.rng.usize(0..3)];
        let of = &self.devices[device];
        let (start, cursor) = match self.rng.u8(0..6) {
            0 => (StartKind::Fresh, Bytes::new()),
            1 => (StartKind::StoredCursor, Bytes::new()),
            _ if of.cursors.is_empty() => (StartKind::Fresh, Bytes::new()),
            2..=3 => (StartKind::OwnCursor, of.cursors[self.rng.usize(0..of.cursors.len())].clone()),
            _ => (StartKind::OwnCursor, of.cursors[of.cursors.len() - 1].clone()),
        };
        let mut peer = Peer::connect(Dial {
            number,
            now: self.now,
            token: &self.tokens[of.user][of.grants],
            grants: GRANTS[of.grants],
            device: &of.name,
            incarnation: of.incarnation,
            first_unanswered: of.next_id,
            start,
            cursor,
            window,
        });
        peer.gone = self.gone_before.clone().unwrap_or_else(|| self.oracle.gone());
        let is_erased = self.oracle.is_erased(of.user_id);
        let link = peer.link.clone();
        self.broker().accept(number, &link);
        self.devices[device].peer = Some(peer);
        for _ in 0..PATIENCE {
            self.turn(false, Some(number));
            self.receive(device);
            match &self.devices[device].peer {
                Some(peer) if peer.connected.is_some() => {
                    assert!(!is_erased, "user {} is erased, and let in", self.devices[device].user_id);
                    self.coverage.count("connects");
                    return true;
                }
                Some(_) => {}
                None => return false,
            }
        }
        panic!("a connect has no answer");
    }

    /// Connects, if need be once the fight for the device is over.
    pub(super) fn connect_at_last(&mut self, device: usize) {
        if !self.connect(device) {
            self.pass(61_000);
            assert!(self.connect(device), "let in after a minute");
        }
    }

    /// Publishes and waits for the answer; where the connection ends before, says it again on the next one.
    pub(super) fn publish(&mut self, device: usize, publish: &packet::Publish) -> Result<PublishAck, Refusal> {
        loop {
            let now = self.now;
            if let Some(peer) = self.devices[device].peer.as_mut() {
                peer.session.publish(publish.clone());
                peer.send(now);
                if let Some(answer) = self.answer(device, |history, device| history.acked.remove(&device)) {
                    self.gone_before = None;
                    return answer;
                }
            }
            let next_id = std::mem::replace(&mut self.devices[device].next_id, publish.message_id);
            self.connect_at_last(device);
            self.devices[device].next_id = next_id;
        }
    }

    pub(super) fn ask(&mut self, device: usize, op: &request::Op) -> Told {
        loop {
            let now = self.now;
            if let Some(peer) = self.devices[device].peer.as_mut() {
                peer.request += 1;
                peer.session.request(packet::Request { id: peer.request, op: Some(op.clone()) });
                peer.send(now);
                if let Some(told) = self.answer(device, |history, device| history.told.remove(&device)) {
                    return told;
                }
            }
            self.connect_at_last(device);
        }
    }

    /// Waits for an answer; `None` where the connection ends before it comes.
    pub(super) fn answer<T>(&mut self, device: usize, take: impl Fn(&mut Self, usize) -> Option<T>) -> Option<T> {
        // Half of the time nobody else has a turn meanwhile, and nothing is fed.
        let number = self.devices[device].peer.as_ref()?.number;
        let (feeds, only) = if self.rng.bool() { (true, None) } else { (false, Some(number)) };
        for _ in 0..PATIENCE {
            self.turn(feeds, only);
            self.receive(device);
            let answer = take(self, device);
            if answer.is_some() || self.devices[device].peer.is_none() {
                return answer;
            }
        }
        panic!("no answer");
    }

    pub(super) fn next(
        &mut self,
        device: usize,
        conversation: u64,
        action: Option<Action>,
        content: &str,
    ) -> packet::Publish {
        let of = &mut self.devices[device];
        let message_id = of.next_id;
        of.next_id += 1;
        let content = Bytes::copy_from_slice(content.as_bytes());
        packet::Publish { conversation, message_id, first_unanswered: message_id, content, action, beside: None }
    }

    pub(super) fn step(&mut self) {
        let device = self.rng.usize(0..self.devices.len());
        if self.rng.u8(0..3) == 0 {
            self.turn(true, None);
        }
        if self.devices[device].peer.is_none() {
            self.connect(device);
            return;
        }
        match self.rng.u8(0..90) {
            68..=70 => self.own(device),
            71..=73 => self.keep(),
            74..=75 => self.set_level(device),
            76 => self.erase(),
            60..=63 => self.signal(device),
            64..=66 => self.presence(device),
            67 | 77 => self.show_presence(device),
            78..=79 => self.keep_contact(device),
            80..=82 => self.hide_marks(device),
            83..=85 => self.moderate(device),
            86..=89 => self.try_again(),
            0..=12 => self.act(device),
            13..=18 => self.alter(device),
            19..=28 => self.decide(),
            29..=30 => self.open(device),
            31..=42 => {
                let id = self.any(device);
                self.request(device, id);
            }
            43 => self.refresh(device),
            44 => self.own(device),
            45..=46 => self.take_over(device),
            47..=50 => {
                // It goes, and says so or not.
                if let Some(peer) = self.devices[device].peer.take() {
                    if self.rng.bool() {
                        peer.link.shut_up();
                    } else {
                        peer.link.cut();
                    }
                }
            }
            51..=53 => {
                let ms = if self.rng.u8(0..3) == 0 { 10_500 } else { self.rng.u64(0..1_500) };
                self.pass(ms);
            }
            54 if self.rng.bool() => self.restart(),
            55 => self.own(device),
            _ => {
                self.receive(device);
                for at in (0..self.older.len()).rev() {
                    self.older(at);
                }
            }
        }
    }

    /// An older connection of a device takes what still comes.
    pub(super) fn older(&mut self, at: usize) {
        let (device, mut peer) = self.older.swap_remove(at);
        self.take_in(device, &mut peer, false);
        if !peer.is_over {
            self.older.push((device, peer));
        }
    }

    /// A conversation, mostly one of the user's.
    pub(super) fn any(&mut self, device: usize) -> u64 {
        let user = self.devices[device].user_id;
        if self.rng.u8(0..20) == 0 {
            return NOWHERE;
        }
        let all: Vec<u64> = self.oracle.conversations.keys().copied().collect();
        if self.rng.u8(0..5) == 0 {
            let name = CHANNELS[self.rng.usize(0..2)];
            if let Some(channel) = self.oracle.channel(name) {
                return channel;
            }
        }
        let of = |id: &u64| {
            let conversation = &self.oracle.conversations[id];
            conversation.kind != ConversationKind::Inbox && conversation.members.contains_key(&user)
        };
        let own: Vec<u64> = all.iter().copied().filter(of).collect();
        let from = if own.is_empty() || self.rng.u8(0..4) == 0 { &all } else { &own };
        from[self.rng.usize(0..from.len())]
    }

    pub(super) fn anyone(&mut self) -> (u64, &'static str) {
        let device = self.rng.usize(0..self.devices.len());
        (self.devices[device].user_id, USERS[self.devices[device].user])
    }

    /// Somebody to bring in, or to write to; often one who does not want to hear of this user.
    fn anyone_to(&mut self, user: u64) -> (u64, &'static str) {
        let blocks = |of: &&Device| self.oracle.blocks(of.user_id, user);
        let blocking: Vec<_> = self.devices.iter().filter(blocks).map(|of| (of.user_id, USERS[of.user])).collect();
        match self.rng.choice(&blocking) {
            Some(one) if self.rng.bool() => *one,
            _ => self.anyone(),
        }
    }

    pub(super) fn act(&mut self, device: usize) {
        let (act, publish) = self.chosen(device);
        let expected = self.expected(device, publish.conversation, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// Who is kept out of a group comes with its key, and who is blocked reacts to what it was written.
    fn try_again(&mut self) {
        let mut tries = Vec::new();
        for (at, device) in self.devices.iter().enumerate().filter(|(_, device)| device.peer.is_some()) {
            let user = device.user_id;
            for (id, c) in &self.oracle.conversations {
                if let Some(key) = c.key_in_vain(user) {
                    let action = Action::Join(packet::Join { key: key_bytes(Some(key)) });
                    tries.push((at, *id, Act::Join(Some(key)), action));
                }
                let other = if c.pair.0 == user { c.pair.1 } else { c.pair.0 };
                let is_blocked =
                    c.kind == ConversationKind::Direct && c.is_member(user) && self.oracle.blocks(other, user);
                let written = c.entries.iter().position(|entry| entry.kind == EntryKind::Message && !entry.is_gone);
                if let Some(seq) = written.filter(|_| is_blocked).map(|at| at as u64 + 1) {
                    let action = Action::React(packet::React { seq, reaction: "a".into() });
                    tries.push((at, *id, Act::React(seq, "a"), action));
                }
            }
        }
        if tries.is_empty() {
            return;
        }
        let (device, id, act, action) = tries.swap_remove(self.rng.usize(0..tries.len()));
        self.coverage.count("tries of who is kept out");
        let publish = self.next(device, id, Some(action), "");
        let expected = self.expected(device, id, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// Something about a message that there is; or a knock, with a key, at a group that has one.
    fn alter(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        let is_knock = self.rng.u8(0..4) == 0;
        let mut about = Vec::new();
        for (id, c) in &self.oracle.conversations {
            if is_knock && c.kind == ConversationKind::Group && c.has_join_key() {
                about.push((*id, 0));
            }
            let own = (1..).zip(&c.entries).filter(|(_, entry)| entry.kind == EntryKind::Message);
            let own = own.filter(|(seq, entry)| !is_knock && (entry.sender == user || seq % 3 == 0));
            about.extend(own.map(|(seq, _)| (*id, seq)));
        }
        let Some(&(id, seq)) = self.rng.choice(&about) else { return };
        self.said += 1;
        let text = format!("said {}", self.said);
        let (act, action, content) = match self.rng.u8(0..5) {
            _ if is_knock => {
                let key = Some(u8::from(self.rng.u8(0..4) == 0));
                (Act::Join(key), Action::Join(packet::Join { key: key_bytes(key) }), "")
            }
            0 => (Act::Edit(seq, text.clone()), Action::Edit(packet::Edit { seq }), text.as_str()),
            1..=2 => {
                let reaction = ["", "a", "a", "b"][self.rng.usize(0..4)];
                let react = packet::React { seq, reaction: reaction.into() };
                (Act::React(seq, reaction), Action::React(react), "")
            }
            3 => (Act::Recall(seq), Action::Recall(packet::Recall { seq }), ""),
            _ => {
                let undo = self.rng.u8(0..4) == 0;
                (Act::Hide(seq, undo), Action::Hide(packet::Hide { seq, undo }), "")
            }
        };
        let publish = self.next(device, id, Some(action), content);
        let expected = self.expected(device, id, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// Somebody recalls what was said in a channel: who said it may, and who moderates the channel. Where nothing is left of
    /// that, somebody says something first, in a channel that is opened if need be.
    fn moderate(&mut self, device: usize) {
        let channels = self.oracle.conversations.iter().filter(|(_, c)| c.kind == ConversationKind::Channel);
        let all = channels.flat_map(|(id, c)| (1..).zip(&c.entries).map(move |(seq, entry)| (*id, seq, entry)));
        let said = all.filter(|(.., entry)| entry.kind == EntryKind::Message && !entry.is_gone);
        let said: Vec<(u64, u64)> = said.map(|(id, seq, _)| (id, seq)).collect();
        let (act, publish) = match self.rng.choice(&said) {
            Some(&(id, seq)) => {
                (Act::Recall(seq), self.next(device, id, Some(Action::Recall(packet::Recall { seq })), ""))
            }
            None => {
                let name = CHANNELS[self.rng.usize(0..2)];
                let Some(id) = self.oracle.channel(name) else { return self.open_channel(device, name) };
                self.said += 1;
                let text = format!("said {}", self.said);
                (Act::Say(text.clone(), Vec::new()), self.next(device, id, None, &text))
            }
        };
        let expected = self.expected(device, publish.conversation, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// Who decides about a group adds someone, or lets someone go.
    pub(super) fn decide(&mut self) {
        let mut may = Vec::new();
        for (at, device) in self.devices.iter().enumerate().filter(|(_, device)| device.peer.is_some()) {
            let groups = self.oracle.conversations.iter().filter(|(_, c)| c.kind == ConversationKind::Group);
            let decides = |role| matches!(role, Role::Admin | Role::Owner);
            may.extend(groups.filter(|(_, c)| decides(c.role(device.user_id))).map(|(id, _)| (at, *id)));
        }
        let Some(&(device, id)) = self.rng.choice(&may) else { return };
        let (whose, name) = self.anyone_to(self.devices[device].user_id);
        let is_in = self.oracle.conversations[&id].is_member(whose);
        let role = if is_in { Role::None } else { Role::Member };
        let (act, action) = match self.rng.u8(0..10) {
            8..=9 => {
                let info = self.any_info(id);
                (Act::SetInfo(info.clone()), Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) }))
            }
            0..=1 => {
                let lift = self.rng.u8(0..3) == 0;
                (Act::Ban(whose, lift), Action::Ban(packet::Ban { user: name.into(), lift }))
            }
            2 => (Act::SetJoinKey(Some(0)), Action::SetJoinKey(packet::SetJoinKey { key: key_bytes(Some(0)) })),
            _ => {
                let set = packet::SetRole { user: name.into(), role: role.into() };
                (Act::SetRole(whose, role), Action::SetRole(set))
            }
        };
        let publish = self.next(device, id, Some(action), "");
        let expected = self.expected(device, id, &act);
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    /// What a group may say of itself; half of the time with the policy that it has, which the owner alone changes.
    fn any_info(&mut self, id: u64) -> packet::Info {
        let [publishes, adds, informs] = [
            [Role::None, Role::None, Role::Admin, Role::Owner],
            [Role::None, Role::Member, Role::Member, Role::Owner],
            [Role::None, Role::Member, Role::Member, Role::Owner],
        ]
        .map(|roles| if self.rng.bool() { 0 } else { roles[self.rng.usize(0..4)] as i32 });
        let policy = match self.oracle.conversations.get(&id).filter(|_| self.rng.bool()) {
            Some(group) => group.policy(),
            None => packet::Policy { publishes, adds, informs, ..packet::Policy::default() },
        };
        let description = format!("says {}", self.rng.u8(0..3));
        packet::Info { description, policy: Some(policy), ..packet::Info::default() }
    }

    pub(super) fn chosen(&mut self, device: usize) -> (Act, packet::Publish) {
        let id = self.any(device);
        self.said += 1;
        let text = format!("said {}", self.said);
        let (whose, name) = self.anyone();
        let roles = [Role::None, Role::None, Role::Member, Role::Member, Role::Reader, Role::Admin, Role::Owner];
        let role = roles[self.rng.usize(0..roles.len())];
        let seq = self.rng.u64(0..12);
        let key = [None, Some(0), Some(0), Some(1)][self.rng.usize(0..4)];
        let is_channel = self.oracle.conversations.get(&id).is_some_and(|c| c.kind == ConversationKind::Channel);
        let (act, action) = match self.rng.u8(0..20) {
            0..=2 if is_channel => (Act::Join(None), Some(Action::Join(packet::Join::default()))),
            0 => {
                let key = key.or(Some(0));
                (Act::Join(key), Some(Action::Join(packet::Join { key: key_bytes(key) })))
            }
            1..=2 => (Act::Leave, Some(Action::Leave(packet::Leave {}))),
            3..=9 => {
                let set = packet::SetRole { user: name.into(), role: role.into() };
                (Act::SetRole(whose, role), Some(Action::SetRole(set)))
            }
            10 if self.rng.bool() => {
                (Act::SetJoinKey(key), Some(Action::SetJoinKey(packet::SetJoinKey { key: key_bytes(key) })))
            }
            10 => (Act::SetLabel(text.clone()), Some(Action::SetLabel(packet::SetLabel { label: text.clone() }))),
            11..=12 => (Act::SetMark(seq), Some(Action::SetMark(packet::SetMark { seq }))),
            16 => {
                let settings = packet::Settings {
                    muted_until: self.rng.u64(0..2),
                    pinned: self.rng.bool(),
                    marked_unread: self.rng.bool(),
                    ..packet::Settings::default()
                };
                (
                    Act::SetSettings(settings),
                    Some(Action::SetSettings(packet::SetSettings { settings: Some(settings) })),
                )
            }
            17 => {
                let info = self.any_info(id);
                let action = Action::SetInfo(packet::SetInfo { info: Some(Box::new(info.clone())) });
                (Act::SetInfo(info), Some(action))
            }
            13 => (Act::Edit(seq, text.clone()), Some(Action::Edit(packet::Edit { seq }))),
            14 => (Act::Recall(seq), Some(Action::Recall(packet::Recall { seq }))),
            15 => {
                let mentions: Vec<u64> = (0..self.rng.usize(1..4)).map(|_| self.anyone().0).chain([whose]).collect();
                (Act::Say(text.clone(), mentions), None)
            }
            _ => (Act::Say(text.clone(), Vec::new()), None),
        };
        let content = if action.is_none() || matches!(act, Act::Edit(..)) { text.as_str() } else { "" };
        let mut publish = self.next(device, id, action, content);
        if let Act::Say(_, mentions) = &act
            && !mentions.is_empty()
        {
            publish.beside = Some(Box::new(packet::Beside { mentions: mentions.clone(), ..Default::default() }));
        }
        (act, publish)
    }

    pub(super) fn expected(&mut self, device: usize, id: u64, act: &Act) -> Answer {
        let of = &self.devices[device];
        let grants = of.peer.as_ref().expect("it is online").grants;
        let was = self.oracle.conversations.get(&id).map(|c| c.role(of.user_id));
        self.gone_before = Some(self.oracle.gone());
        let expected = self.oracle.act(of.user_id, &grants, id, act);
        self.coverage.count(match (&expected, act) {
            (Answer::Unknown, _) => "what is none of the user's",
            (Answer::Refused, _) => "what the user may not do",
            (_, Act::Join(Some(_))) if was == Some(Role::None) => "groups joined with a key",
            (_, Act::Join(_)) => "joins",
            (Answer::Done(_), Act::Edit(..)) => "edits",
            (_, Act::Recall(seq)) if self.oracle.is_moderated(id, *seq) => "recalls by who moderates",
            (_, Act::Recall(_)) => "recalls",
            (_, Act::React(_, "")) => "reactions taken back",
            (_, Act::React(..)) => "reactions",
            (_, Act::Ban(_, true)) => "bans lifted",
            (_, Act::Ban(..)) => "bans",
            (Answer::Done(_), Act::SetRetention(..)) => "retentions set",
            (_, Act::Say(_, mentions)) if !mentions.is_empty() => "messages that mention",
            (_, Act::Hide(_, true)) => "messages hidden no more",
            (_, Act::Hide(..)) => "messages hidden",
            (_, Act::SetSettings(_)) => "settings",
            (_, Act::SetInfo(_)) => "what groups say of themselves",
            (_, Act::Leave) if was != Some(Role::None) => "users who left",
            (_, Act::SetRole(_, Role::None)) => "removals",
            (_, Act::SetRole(whose, _)) if self.has_left(id, *whose) => "returns",
            (_, Act::SetRole(..)) => "roles given",
            _ => "other publishes",
        });
        expected
    }

    /// Whether this user was in a conversation before it came in last.
    pub(super) fn has_left(&self, id: u64, user: u64) -> bool {
        self.oracle.conversations[&id].members.get(&user).is_some_and(|member| member.stretches.len() > 1)
    }

    pub(super) fn open(&mut self, device: usize) {
        let user = self.devices[device].user_id;
        match self.rng.u8(0..3) {
            0 => {
                let (other, name) = self.anyone_to(user);
                // Before the answer comes, which makes it the oracle's, too.
                let is_refused = self.oracle.direct(user, other).is_none() && self.oracle.blocks(other, user);
                self.opening = Some(Opening::Direct(user, other));
                let publish =
                    self.next(device, 0, Some(Action::OpenDirect(packet::OpenDirect { user: name.into() })), "");
                let answer = self.publish(device, &publish);
                if is_refused {
                    self.opening = None;
                    let refusal = answer.expect_err("it is opened to who blocks");
                    assert_eq!(refusal.reason, Reason::Forbidden);
                    return self.coverage.count("openings that a block forbids");
                }
                answer.expect("whoever may be written to");
            }
            1 => {
                let chosen: Vec<_> = (0..self.rng.usize(0..4)).map(|_| self.anyone_to(user)).collect();
                let label = format!("group {}", self.said);
                let users = chosen.iter().map(|(_, name)| (*name).to_owned()).collect();
                let create = packet::CreateGroup { label: label.clone(), users, ..Default::default() };
                self.opening = Some(Opening::Group(user, label, chosen.iter().map(|(user, _)| *user).collect()));
                let publish = self.next(device, 0, Some(Action::CreateGroup(create)), "");
                self.publish(device, &publish).expect("anyone makes a group");
            }
            _ => {
                let name = CHANNELS[self.rng.usize(0..2)];
                self.open_channel(device, name);
            }
        }
    }

    fn open_channel(&mut self, device: usize, name: &'static str) {
        let grants = self.devices[device].peer.as_ref().expect("it is online").grants;
        self.opening = Some(Opening::Channel(name));
        let open = packet::OpenChannel { name: name.into() };
        let publish = self.next(device, 0, Some(Action::OpenChannel(open)), "");
        let opened = self.publish(device, &publish);
        self.opening = None;
        match opened {
            Ok(_) => assert!(Oracle::may_open(&grants, name), "{name} is opened by who may not"),
            Err(refusal) => {
                assert!(!Oracle::may_open(&grants, name), "{name} may be opened: {refusal:?}");
                Self::check_unknown(&refusal);
            }
        }
    }

    /// A new token, which may let its user do more or less.
    pub(super) fn refresh(&mut self, device: usize) {
        let grants = self.rng.usize(0..GRANTS.len());
        let token = self.tokens[self.devices[device].user][grants].clone();
        self.refreshing = Some(grants);
        let told = self.ask(device, &request::Op::Refresh(packet::RefreshRequest { token }));
        assert!(matches!(told, Ok(response::Result::Refresh(_))), "a good token is taken: {told:?}");
        self.coverage.count("tokens refreshed");
        self.devices[device].grants = grants;
    }

    /// The answer to a refresh has come: what follows it on the wire follows the new token.
    pub(super) fn refreshed(&mut self, peer: &mut Peer) {
        let Some(grants) = self.refreshing.take() else { return };
        let channels = self.oracle.conversations.iter().filter(|(_, c)| c.kind == ConversationKind::Channel);
        let heads = channels.map(|(id, c)| (*id, c.head())).collect();
        let before = std::mem::replace(&mut peer.grants, GRANTS[grants]);
        peer.before.push((before, heads));
    }

    /// A second connection of the device, while the first one still says something: that is stored once or not at all,
    /// and once it is repeated.
    pub(super) fn take_over(&mut self, device: usize) {
        let (act, publish) = self.chosen(device);
        let expected = self.expected(device, publish.conversation, &act);
        let peer = self.devices[device].peer.as_mut().expect("it is online");
        let number = peer.number;
        peer.session.publish(publish.clone());
        peer.send(self.now);
        match self.rng.u8(0..3) {
            0 => drop(self.broker().poll(number)),
            1 => self.turn(false, Some(number)),
            _ => {}
        }
        // What the older one was answered is the newer one's to hear: it repeats all.
        let next_id = std::mem::replace(&mut self.devices[device].next_id, publish.message_id);
        let is_in = self.connect(device);
        self.devices[device].next_id = next_id;
        self.coverage.count(if is_in { "takeovers" } else { "takeovers refused" });
        let answer = self.publish(device, &publish);
        self.check_answer(&act, expected, answer);
    }

    pub(super) fn restart(&mut self) {
        let broker = self.broker.take().expect("it runs");
        broker.kill(&mut self.ground);
        self.older.clear();
        for device in &mut self.devices {
            device.peer = None;
        }
        let unix_ms = BORN_UNIX_MS + self.now;
        let broker = Running::start(&mut self.ground, &self.settings, self.now, unix_ms).expect("it starts again");
        self.broker = Some(broker);
        self.coverage.count("starts");
    }

    /// Everyone comes back from where they once were, is sent all there is, and asks for everything.
    pub(super) fn end(&mut self) {
        self.pass(61_000);
        // What has to be loaded before it is looked at may take a few looks.
        for _ in 0..5 {
            self.pass(1_100);
        }
        self.oracle.check_kept(self.now);
        for device in self.there() {
            if self.rng.bool() || self.devices[device].peer.is_none() {
                assert!(self.connect(device), "let in at the end");
            }
            for _ in 0..4 {
                self.turn(true, None);
                self.receive(device);
            }
        }
        self.check_who_is_shown();
        for device in self.there() {
            if self.devices[device].peer.is_none() {
                continue;
            }
            let all: Vec<u64> = self.oracle.conversations.keys().copied().collect();
            for id in all {
                self.ask_history(device, id, 0, 200, false);
                self.ask_members(device, id);
                self.ask_receipts(device, id);
            }
            self.ask_conversations(device);
            self.ask_users(device);
            self.ask_profiles(device);
            self.ask_blocked(device);
        }
        let users: BTreeSet<u64> = self.devices.iter().map(|device| device.user_id).collect();
        assert_eq!(users, self.oracle.users.keys().copied().collect(), "nobody else was made");
    }
}
