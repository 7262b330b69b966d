//! One device of a user: makes its conversations, writes what is due, takes in what comes, goes and comes back.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use longwire_client::packet::{
    self, CatchUpMode, ConversationKind, EntryKind, HeadReason, Role, SignalKind, StartKind, item, publish::Action,
};
use longwire_protocol::features;
use longwire_protocol::reason::{Reason, Refusal, Verdict};
use longwire_protocol::session::ClientEvent;
use tokio::sync::watch;

use super::super::load::crew::Counter;
use super::super::load::party::{self, Broker, Heard, Place};
use super::super::load::sender::{Acked, Body, Outgoing, Pace, WINDOW};
use super::super::load::stamp::Stamp;
use super::super::load::streams::Streams;
use super::super::load::wire::{Wire, WireError, fresh};
use super::super::mix::Planned;
use super::super::report::histogram;
use super::follower::Follower;
use super::{Shared, Stage};

/// What people react with.
const REACTIONS: [&str; 6] = ["👍", "❤️", "😂", "😮", "😢", "🙏"];
/// How many messages are remembered, to react to them or change them.
const REMEMBERED: usize = 16;
/// Between two tries to come back, or to make something.
const AGAIN: Duration = Duration::from_millis(100);

/// Which device of which user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) user: usize,
    pub(super) device: usize,
}

impl Name {
    /// Connects for the first time.
    pub(super) async fn connect(self, broker: &Broker, shared: &Shared) -> Result<Box<Wire>, WireError> {
        self.connect_with(broker, shared, |_| {}).await
    }

    async fn connect_with(
        self,
        broker: &Broker,
        shared: &Shared,
        change: impl FnOnce(&mut packet::Connect),
    ) -> Result<Box<Wire>, WireError> {
        let broken = |fail: super::Fail| WireError::Broken(fail.to_string());
        let (way, issuer) = broker.longwire().map_err(broken)?;
        let token = issuer.token(&shared.user(self.user)).map_err(broken)?;
        let mut connect = fresh(token, format!("d{}", self.device));
        connect.features.push(features::SIGNALS.to_owned());
        change(&mut connect);
        Ok(Box::new(Wire::connect(way, None, connect).await?))
    }
}

pub(super) struct Outcome {
    pub(super) to_ack: Histogram<u64>,
    pub(super) to_delivery: Histogram<u64>,
    pub(super) refused_for_now: u64,
}

/// A conversation of the user.
#[derive(Clone, Copy, Debug)]
struct Spot {
    conversation: u64,
    /// How much it gets of what the user writes.
    weight: f64,
}

/// What a device keeps together with a cursor, and begins from when it comes back with that.
#[derive(Clone, Default)]
struct Kept {
    cursor: Bytes,
    streams: Streams,
    has: Has,
}

/// What has come.
#[derive(Clone, Default)]
struct Has {
    spots: Vec<Spot>,
    followers: HashMap<u64, Follower>,
}

/// A group of the user's own.
struct Owned {
    conversation: u64,
    /// Whoever is a member, or was.
    known: Vec<usize>,
    /// A member that was added meanwhile, and is to be removed.
    guest: Option<usize>,
}

pub(super) struct Device {
    number: usize,
    name: Name,
    broker: Broker,
    wire: Box<Wire>,
    /// Since when it is connected, and how many lanes have come to the present since then.
    since: Instant,
    lanes_caught_up: u32,
    shared: Arc<Shared>,
    random: fastrand::Rng,
    outgoing: Outgoing,
    has: Has,
    kept: Kept,
    /// How many messages went to each conversation.
    sent: HashMap<u64, u64>,
    /// Messages of others that came lately: conversation and seq.
    seen: VecDeque<(u64, u64)>,
    /// Those that it wrote lately, and what they say of themselves.
    own: VecDeque<(u64, u64, Stamp)>,
    owned: Vec<Owned>,
    /// What it was removed from.
    removed: HashSet<u64>,
    /// Where a publish was refused as from someone who is not in it.
    refused_in: HashSet<u64>,
    /// The newest seq of each conversation, as acks say.
    acked: HashMap<u64, u64>,
    talks: bool,
    /// It goes once everything is acked.
    goes: bool,
    outcome: Outcome,
}

impl Device {
    pub(super) fn new(
        number: usize,
        name: Name,
        broker: Broker,
        wire: Box<Wire>,
        shared: Arc<Shared>,
        random: fastrand::Rng,
    ) -> Self {
        Self {
            number,
            name,
            broker,
            wire,
            since: Instant::now(),
            lanes_caught_up: 0,
            shared,
            random,
            outgoing: Outgoing::new(WINDOW),
            has: Has::default(),
            kept: Kept::default(),
            sent: HashMap::new(),
            seen: VecDeque::new(),
            own: VecDeque::new(),
            owned: Vec::new(),
            removed: HashSet::new(),
            refused_in: HashSet::new(),
            acked: HashMap::new(),
            talks: false,
            goes: false,
            outcome: Outcome { to_ack: histogram(), to_delivery: histogram(), refused_for_now: 0 },
        }
    }

    pub(super) async fn run(mut self, make: Vec<Planned>) -> Result<Outcome, WireError> {
        for plan in make {
            self.make(plan).await?;
        }
        let mut stage = self.shared.stage.subscribe();
        self.shared.one_is_ready();
        while *stage.borrow_and_update() == Stage::Making {
            self.turn(None, &mut stage).await?;
        }
        let Stage::Talking(began) = *stage.borrow() else {
            return Err(WireError::Broken("everyone was done before this one had begun".to_owned()));
        };
        self.talk(began, &mut stage).await?;
        {
            let mut heads = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
            for (conversation, seq) in &self.acked {
                let head = heads.entry(*conversation).or_default();
                *head = (*head).max(*seq);
            }
        }
        self.shared.one_has_sent();
        while *stage.borrow_and_update() != Stage::Awaiting || !self.has_everything() {
            self.turn(None, &mut stage).await?;
        }
        if let Some(conversation) = self.refused_in.iter().find(|place| !self.removed.contains(place)) {
            let what = format!("refused in conversation {conversation}, and was never removed from it");
            return Err(WireError::Broken(what));
        }
        self.outcome.refused_for_now = self.outgoing.refused_for_now;
        self.wire.close().await;
        Ok(self.outcome)
    }

    // ------------------------------------------------------------------------------------------ makes

    /// Makes a conversation, or becomes a reader of a channel, and takes in what comes meanwhile.
    async fn make(&mut self, plan: Planned) -> Result<(), WireError> {
        let Planned { users, absent, channel } = plan;
        if let Some(number) = channel {
            let name = self.shared.channel(number, users[0]);
            let channel = self.act(0, Action::OpenChannel(packet::OpenChannel { name })).await?;
            self.act(channel, Action::Join(packet::Join::default())).await?;
            return Ok(());
        }
        let others = users.iter().skip(1).map(|user| self.shared.user(*user));
        let mut others = others.chain(absent.iter().map(|number| self.shared.absent(*number)));
        let members = users.len() + absent.len();
        if members == 2 {
            let user = others.next().unwrap_or_default();
            self.act(0, Action::OpenDirect(packet::OpenDirect { user })).await?;
            return Ok(());
        }
        let label = format!("{members} people");
        let create = packet::CreateGroup { label, users: others.collect(), ..Default::default() };
        let conversation = self.act(0, Action::CreateGroup(create)).await?;
        self.owned.push(Owned { conversation, known: users, guest: None });
        Ok(())
    }

    /// Does it, and waits for the ack; returns the conversation that it names.
    async fn act(&mut self, conversation: u64, action: Action) -> Result<u64, WireError> {
        let message_id = self.outgoing.take_id();
        let publish = packet::Publish {
            conversation,
            message_id,
            first_unanswered: message_id,
            action: Some(action),
            ..Default::default()
        };
        self.wire.session.publish(publish.clone());
        loop {
            self.wire.step().await?;
            while let Some(event) = self.wire.next_event()? {
                match event {
                    ClientEvent::PublishAck(ack) => return Ok(ack.conversation),
                    ClientEvent::Refused(refusal) if refusal.reason.verdict() == Verdict::Retry => {
                        tokio::time::sleep(AGAIN + Duration::from_millis(refusal.retry_after_ms.into())).await;
                        self.wire.session.publish(publish.clone());
                    }
                    ClientEvent::Refused(refusal) => return Err(refusal.into()),
                    event => self.take(event)?,
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------ talks

    /// Sends what is due until the time is over and everything is acked.
    async fn talk(&mut self, began: Instant, stage: &mut watch::Receiver<Stage>) -> Result<(), WireError> {
        self.talks = true;
        let size = self.shared.size;
        let mut pace = Pace::since(began, Some(size.rate), self.number, size.devices);
        let end = began + size.duration;
        loop {
            let mut wake = self.outgoing.repeat(&mut *self.wire);
            let over = Instant::now() >= end;
            let mut next = None;
            // Whoever just came back hears first what conversations there are.
            if self.has.spots.is_empty() {
                wake = wake.into_iter().chain([end]).min();
            }
            while !over && !self.has.spots.is_empty() && self.outgoing.has_room(&*self.wire, 64 * 1024) {
                match pace.next() {
                    Ok(due) => self.say(due),
                    Err(at) => {
                        next = Some(at.min(end));
                        wake = wake.into_iter().chain(next).min();
                        break;
                    }
                }
            }
            if over && self.outgoing.is_empty() {
                return Ok(());
            }
            match next {
                Some(next) if self.goes && self.outgoing.is_empty() && !self.kept.cursor.is_empty() => {
                    self.goes = false;
                    self.go_until(next).await?;
                }
                _ => self.turn(wake, stage).await?,
            }
        }
    }

    /// One message somewhere, and now and then something else, there or about what came lately.
    fn say(&mut self, due: Instant) {
        let Some(conversation) = self.chosen() else { return };
        let mix = Arc::clone(&self.shared.mix);
        self.type_there(conversation, mix.signals_per_message);
        let number = self.sent.entry(conversation).or_default();
        *number += 1;
        let sender = u32::try_from(self.number).unwrap_or(u32::MAX);
        let content = Stamp::new(sender, *number, due).content(mix.bytes(&mut self.random));
        self.send(conversation, Body::Content(content), due);
        if self.happens(mix.marks_per_message)
            && let Some(seq) = self.wire.streams.last(conversation)
        {
            self.also(conversation, Body::Mark(seq), due, |did| &did.marks);
        }
        if self.happens(mix.reactions_per_message)
            && let Some((conversation, seq)) = self.random.choice(&self.seen).copied()
        {
            let reaction = REACTIONS[self.random.usize(..REACTIONS.len())].to_owned();
            let react = Action::React(packet::React { seq, reaction });
            self.also(conversation, Body::Act(react, Bytes::new()), due, |did| &did.reactions);
        }
        if self.happens(mix.edits_per_message)
            && let Some((conversation, seq, stamp)) = self.own.back().copied()
        {
            let edit = Action::Edit(packet::Edit { seq });
            let content = stamp.content(mix.bytes(&mut self.random));
            self.also(conversation, Body::Act(edit, content), due, |did| &did.edits);
        }
        if self.happens(mix.recalls_per_message)
            && let Some((conversation, seq, _)) = self.own.pop_front()
        {
            let recall = Action::Recall(packet::Recall { seq });
            self.also(conversation, Body::Act(recall, Bytes::new()), due, |did| &did.recalls);
        }
        // The first device of each user does it for all of them.
        let size = self.shared.size;
        let share = size.devices as f64 / size.users.max(1) as f64;
        if self.name.device == 0 && self.happens(mix.membership_changes_per_message * share) {
            self.change_members(due);
        }
        self.goes |= self.happens(mix.sessions_per_message);
    }

    fn happens(&mut self, often: f64) -> bool {
        self.random.f64() < often
    }

    /// A conversation, by how much each gets.
    fn chosen(&mut self) -> Option<u64> {
        let all: f64 = self.has.spots.iter().map(|spot| spot.weight).sum();
        let mut at = self.random.f64() * all;
        let chosen = self.has.spots.iter().filter(|spot| spot.weight > 0.0).find(|spot| {
            at -= spot.weight;
            at < 0.0
        });
        chosen.map(|spot| spot.conversation)
    }

    /// Someone types there, this often: the part beyond a whole number now and then.
    fn type_there(&mut self, conversation: u64, often: f64) {
        let times = often as u64 + u64::from(self.happens(often.fract()));
        for _ in 0..times {
            let kind = SignalKind::Typing.into();
            self.wire.session.signal(packet::Signal { conversation, kind, ..Default::default() });
        }
        self.shared.did.signals.add(times);
    }

    fn send(&mut self, conversation: u64, body: Body, due: Instant) {
        self.outgoing.send(&mut *self.wire, &Place::Conversation(conversation), body, due);
    }

    /// Something beside a message, where there is room for it.
    fn also(&mut self, conversation: u64, body: Body, due: Instant, count: impl Fn(&super::Did) -> &Counter) {
        if self.outgoing.has_room(&*self.wire, 64 * 1024) {
            self.send(conversation, body, due);
            count(&self.shared.did).add(1);
        }
    }

    /// Adds someone to a group of the user's own, or removes who was added before.
    fn change_members(&mut self, due: Instant) {
        if self.owned.is_empty() || !self.outgoing.has_room(&*self.wire, 64 * 1024) {
            return;
        }
        let at = self.random.usize(..self.owned.len());
        let newcomer = self.random.usize(..self.shared.size.users);
        let owned = &mut self.owned[at];
        let (user, role) = match owned.guest.take() {
            Some(guest) => (guest, Role::None),
            // Nobody is added twice: what it has of either stay would come by two lanes.
            None if owned.known.contains(&newcomer) => return,
            None => {
                owned.guest = Some(newcomer);
                owned.known.push(newcomer);
                (newcomer, Role::Member)
            }
        };
        let (conversation, user) = (owned.conversation, self.shared.user(user));
        let set = Action::SetRole(packet::SetRole { user, role: role.into() });
        self.also(conversation, Body::Act(set, Bytes::new()), due, |did| &did.membership_changes);
    }

    // ------------------------------------------------------------------------------------------ goes

    /// Goes, and comes back before it has to write again, with what it kept beside its cursor.
    async fn go_until(&mut self, next: Instant) -> Result<(), WireError> {
        if self.happens(self.shared.mix.vanish) {
            self.shared.did.vanished.add(1);
            self.wire.vanish().await;
        } else {
            self.wire.leave().await;
        }
        let away = next.saturating_duration_since(Instant::now()).mul_f64(self.shared.mix.away);
        tokio::time::sleep(away).await;
        let incarnation = self.wire.connected.incarnation;
        let (first_unanswered, cursor) = (self.outgoing.next_id(), self.kept.cursor.clone());
        self.wire = loop {
            let back = |connect: &mut packet::Connect| {
                connect.incarnation = incarnation;
                connect.first_unanswered = first_unanswered;
                connect.cursor = cursor.clone();
                connect.set_start(StartKind::OwnCursor);
                // Then whatever was missed comes, and can be held against what was sent.
                connect.set_catch_up(CatchUpMode::All);
            };
            match self.name.connect_with(&self.broker, &self.shared, back).await {
                Ok(wire) => break wire,
                Err(WireError::Refused(refusal)) if refusal.reason.verdict() == Verdict::Retry => {
                    tokio::time::sleep(AGAIN + Duration::from_millis(refusal.retry_after_ms.into())).await;
                }
                Err(error) => return Err(error),
            }
        };
        if self.wire.connected.cursor() != packet::CursorVerdict::Resumed {
            let why = self.wire.connected.reset_reason();
            return Err(WireError::Broken(format!("a device could not go on from where it stood: {why:?}")));
        }
        self.since = Instant::now();
        self.lanes_caught_up = 0;
        self.wire.streams = self.kept.streams.clone();
        self.wire.cursor = self.kept.cursor.clone();
        self.has = self.kept.has.clone();
        self.shared.did.returns.add(1);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ takes in

    /// Writes, reads and takes in what has come; returns early when the stage changes.
    async fn turn(&mut self, wake: Option<Instant>, stage: &mut watch::Receiver<Stage>) -> Result<(), WireError> {
        self.wire.flush().await?;
        tokio::select! {
            filled = self.wire.fill(wake) => filled?,
            changed = stage.changed() => drop(changed),
        }
        while let Some(event) = self.wire.next_event()? {
            self.take(event)?;
        }
        Ok(())
    }

    fn take(&mut self, event: ClientEvent) -> Result<(), WireError> {
        match event {
            ClientEvent::Cursor(cursor) => {
                self.kept = Kept { cursor, streams: self.wire.streams.clone(), has: self.has.clone() };
                return Ok(());
            }
            ClientEvent::Signal(_) => self.shared.did.signals_heard.add(1),
            ClientEvent::Refused(refusal) if refusal.reason.verdict() == Verdict::Stop => {
                return self.overtaken(refusal);
            }
            ClientEvent::Items { ref items, .. } => {
                for item in items {
                    self.take_item(item).map_err(WireError::Broken)?;
                }
            }
            _ => {}
        }
        let mut acked = Vec::new();
        let (outgoing, shared) = (&mut self.outgoing, &self.shared);
        let (followers, outcome, since) = (&mut self.has.followers, &mut self.outcome, self.since);
        party::hear(event, &mut |heard| {
            if let Heard::Received { stamp, conversation } = heard {
                let follower = followers.entry(conversation).or_insert_with(Follower::late);
                follower.take(stamp).map_err(WireError::Broken)?;
                // What was written while it was away took as long as it was.
                if u128::from(stamp.age_us()) <= since.elapsed().as_micros() {
                    outcome.to_delivery.saturating_record(stamp.age_us());
                }
                shared.delivered.add(1);
            } else {
                acked.extend(outgoing.hear(&heard));
            }
            Ok(())
        })?;
        acked.into_iter().for_each(|acked| self.take_ack(&acked));
        Ok(())
    }

    fn take_ack(&mut self, acked: &Acked) {
        let (Some(seq), Place::Conversation(conversation)) = (acked.seq, &acked.place) else { return };
        if matches!(acked.body, Body::Mark(_)) {
            return;
        }
        let head = self.acked.entry(*conversation).or_default();
        *head = (*head).max(seq);
        if let Body::Content(content) = &acked.body {
            self.outcome.to_ack.saturating_record(acked.micros());
            self.shared.did.messages.add(1);
            if let Some(stamp) = Stamp::read(content) {
                remember(&mut self.own, (*conversation, seq, stamp));
            }
        }
    }

    /// What was refused for good: right where what it is about was recalled, or the user removed, meanwhile.
    fn overtaken(&mut self, refusal: Refusal) -> Result<(), WireError> {
        let Some((place, body)) = self.outgoing.give_up(refusal.message_id.0) else { return Err(refusal.into()) };
        #[cfg_attr(not(feature = "mqtt-peer"), expect(irrefutable_let_patterns, reason = "MQTT has topics"))]
        let Place::Conversation(conversation) = place else { return Err(refusal.into()) };
        let is_about_a_message = matches!(body, Body::Act(Action::React(_) | Action::Edit(_) | Action::Recall(_), _));
        match refusal.reason {
            Reason::InvalidArgument if is_about_a_message => {}
            Reason::UnknownConversation | Reason::Forbidden => {
                self.refused_in.insert(conversation);
            }
            _ => return Err(refusal.into()),
        }
        self.shared.did.overtaken.add(1);
        Ok(())
    }

    /// Takes in which conversations the user has, what is worth a reaction, and what is reported instead of delivered.
    fn take_item(&mut self, item: &packet::Item) -> Result<(), String> {
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                if let (EntryKind::Joined, Some(joined)) = (entry.kind(), &entry.joined) {
                    self.join(joined);
                }
                if let (EntryKind::Left, Some(left)) = (entry.kind(), &entry.left) {
                    self.has.spots.retain(|spot| spot.conversation != left.conversation);
                    self.has.followers.remove(&left.conversation);
                    self.removed.insert(left.conversation);
                    self.seen.retain(|(conversation, _)| *conversation != left.conversation);
                    self.own.retain(|(conversation, ..)| *conversation != left.conversation);
                }
                if entry.kind() == EntryKind::Message {
                    remember(&mut self.seen, (entry.conversation, entry.seq));
                }
            }
            Some(item::Kind::CaughtUp(_)) => self.lanes_caught_up += 1,
            Some(item::Kind::Head(head)) => {
                let seqs = head.to_seq.saturating_sub(head.from_seq) + 1;
                if !matches!(head.reason(), HeadReason::Recalled | HeadReason::NotYours) {
                    let packet::Head { conversation, from_seq, to_seq, .. } = head;
                    let why = head.reason();
                    return Err(format!("{from_seq} to {to_seq} of {conversation} did not come: {why:?}"));
                }
                self.has.followers.entry(head.conversation).or_insert_with(Follower::late).report(seqs);
                self.shared.did.recalled.add(seqs);
            }
            _ => {}
        }
        Ok(())
    }

    fn join(&mut self, joined: &packet::Joined) {
        let conversation = joined.conversation;
        if self.has.spots.iter().any(|spot| spot.conversation == conversation) {
            return;
        }
        let weight = self.shared.mix.weight(self.has.spots.len(), joined.kind() == ConversationKind::Direct);
        let writes =
            joined.kind() != ConversationKind::Channel || joined.label.ends_with(&format!("/{}", self.name.user));
        self.has.spots.push(Spot { conversation, weight: if writes { weight } else { 0.0 } });
        let follower = if self.talks { Follower::late() } else { Follower::default() };
        self.has.followers.insert(conversation, follower);
    }

    /// Whether everything that was acked to anyone has come here, where it should.
    fn has_everything(&self) -> bool {
        let heads = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
        // Before that it does not know yet what conversations there are.
        self.lanes_caught_up == 2
            && self.has.spots.iter().all(|spot| {
                let head = heads.get(&spot.conversation).copied().unwrap_or(0);
                self.wire.streams.last(spot.conversation).unwrap_or(0) >= head
            })
    }
}

fn remember<T>(all: &mut VecDeque<T>, one: T) {
    all.push_back(one);
    if all.len() > REMEMBERED {
        all.pop_front();
    }
}
