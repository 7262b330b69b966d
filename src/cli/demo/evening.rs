//! The evening itself: each person does something now and then, on one of the own devices, and writes down what was acked.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use longwire_client::packet::{self, Beside, PublishAck, Role, SignalKind};
use longwire_client::{Client, Publication, PublishError};
use longwire_protocol::reason::Reason;

use super::super::Fail;
use super::chronicle::{Chronicle, Deed, Done, Kind, Past, Shown, Talk, UserNo};
use super::device::Device;

/// How long a message that expires is shown.
pub(super) const EXPIRES: Duration = Duration::from_secs(2);
/// Of how many of the newest entries one is picked to be answered, edited, and so on.
const RECENT: usize = 40;
const REACTIONS: [&str; 6] = ["👍", "❤", "😂", "😮", "😢", "🙏"];
const WORDS: [&str; 12] =
    ["so", "tonight", "coffee", "the train", "is late", "again", "who", "brings", "cake", "nobody", "knows", "yet"];

/// What everybody shares.
pub(super) struct World {
    pub(super) chronicle: Mutex<Chronicle>,
    pub(super) names: Vec<String>,
    /// The broker's ids of users.
    pub(super) ids: Vec<u64>,
    /// Who comes and goes in a group is settled by one at a time.
    groups: HashMap<u64, (UserNo, tokio::sync::Mutex<()>)>,
    pub(super) channel: u64,
    /// Messages that somebody recalls, or has.
    recalled: Mutex<HashSet<(u64, u64)>>,
    pub(super) counts: Counts,
    is_over: AtomicBool,
}

/// What went on so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) messages: AtomicU64,
    /// Edits, recalls, reactions.
    pub(super) changes: AtomicU64,
    /// Members who were added, removed, left, or came back.
    pub(super) crossings: AtomicU64,
    /// What came too late: its message was recalled, or its author removed, just before.
    pub(super) refused: AtomicU64,
    pub(super) absences: AtomicU64,
    pub(super) away: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One person and the own devices.
pub(super) struct Person {
    pub(super) no: UserNo,
    pub(super) devices: Vec<Device>,
    /// Where this person says something, if it is in there.
    pub(super) talks: Vec<u64>,
    rng: Rng,
    said: u64,
}

/// Something that a person does.
#[derive(Clone, Copy)]
enum Whim {
    Say,
    Edit,
    Recall,
    React,
    Mark,
    Hide,
    Settings,
    Type,
    Members,
    Device,
}

/// How often, of a hundred.
const WHIMS: [(Whim, u32); 10] = [
    (Whim::Say, 46),
    (Whim::React, 12),
    (Whim::Mark, 10),
    (Whim::Edit, 7),
    (Whim::Device, 7),
    (Whim::Type, 5),
    (Whim::Recall, 4),
    (Whim::Hide, 3),
    (Whim::Settings, 3),
    (Whim::Members, 3),
];

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(super) fn chronicle(&self) -> MutexGuard<'_, Chronicle> {
        lock(&self.chronicle)
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn user(&self, id: u64) -> UserNo {
        self.ids.iter().position(|of| *of == id).unwrap_or(UserNo::MAX)
    }

    fn note(&self, conversation: u64, seq: u64, by: UserNo, deed: Deed) -> Result<(), Fail> {
        self.chronicle().note(conversation, seq, by, deed).map_err(Fail::failed)
    }
}

/// Everybody with everybody's devices; each user's first device makes what is talked in.
pub(super) async fn gather(
    mut people: Vec<Person>,
    names: Vec<String>,
    rng: &mut Rng,
) -> Result<(World, Vec<Person>), Fail> {
    let mut ids = Vec::new();
    for person in &mut people {
        let mut user = 0;
        for device in &mut person.devices {
            user = device.come().await?.user;
        }
        ids.push(user);
    }
    let mut world = World {
        chronicle: Mutex::default(),
        names,
        ids,
        groups: HashMap::new(),
        channel: 0,
        recalled: Mutex::default(),
        counts: Counts::default(),
        is_over: AtomicBool::new(false),
    };
    let all = people.len();
    for no in 0..all {
        let other = rng.usize(..all);
        let ack = people[no].first()?.open_direct(&*world.names[other]).await?.await?;
        let talks = &mut world.chronicle().talks;
        talks.entry(ack.conversation).or_insert_with(|| Talk::new(Kind::Direct(no, other)));
        people[no].talks.push(ack.conversation);
        people[other].talks.push(ack.conversation);
    }
    for number in 0..all.div_ceil(8) {
        let mut members: Vec<UserNo> = (0..all).collect();
        rng.shuffle(&mut members);
        members.truncate(rng.usize(3..=30.min(all)));
        let owner = members[0];
        let past = [Past::Nothing, Past::Everything, Past::Last(20)][number % 3];
        let conversation = make_group(&world, &people[owner], number, &members, past).await?;
        world.groups.insert(conversation, (owner, tokio::sync::Mutex::new(())));
        for member in members {
            people[member].talks.push(conversation);
        }
    }
    world.channel = people[0].first()?.open_channel("town/square").await?.await?.conversation;
    world.chronicle().talks.insert(world.channel, Talk::new(Kind::Channel));
    for person in &mut people {
        let ack = person.first()?.join(world.channel).await?.await?;
        if let Some(talk) = world.chronicle().talks.get_mut(&world.channel) {
            talk.readers.insert(person.no, ack.seq);
        }
        person.talks.push(world.channel);
    }
    Ok((world, people))
}

/// Makes a group of these members, the first of whom owns it.
async fn make_group(world: &World, owner: &Person, number: usize, members: &[UserNo], past: Past) -> Result<u64, Fail> {
    let (kind, past_entries) = match past {
        Past::Nothing => (packet::Past::FromJoining, 0),
        Past::Everything => (packet::Past::Everything, 0),
        Past::Last(entries) => (packet::Past::Last, u32::try_from(entries).unwrap_or(u32::MAX)),
    };
    let policy = packet::Policy { past: kind.into(), past_entries, ..Default::default() };
    let info = packet::Info { policy: Some(policy), ..Default::default() };
    let others = members[1..].iter().map(|no| world.names[*no].clone());
    let ack = owner.first()?.create_group_with(format!("group {number}"), others, info, false).await?.await?;
    let mut talk = Talk::new(Kind::Group(past));
    let before = ack.seq.saturating_sub(members.len() as u64);
    for seq in 1..=before {
        talk.deeds.insert(seq, Done { by: owner.no, deed: Deed::Says });
    }
    for (member, seq) in members.iter().zip(before + 1..) {
        talk.deeds.insert(seq, Done { by: owner.no, deed: Deed::Comes(*member) });
    }
    world.chronicle().talks.insert(ack.conversation, talk);
    Ok(ack.conversation)
}

impl Person {
    pub(super) fn new(no: UserNo, devices: Vec<Device>, rng: Rng) -> Self {
        Self { no, devices, talks: Vec::new(), rng, said: 0 }
    }

    fn first(&self) -> Result<&Client, Fail> {
        self.devices[0].client().ok_or_else(|| Fail::failed("a device is not there"))
    }

    /// One of the devices that are there, and its client.
    fn any(&mut self) -> Option<(usize, Client)> {
        let there = self.devices.iter().enumerate().filter_map(|(at, device)| Some((at, device.client()?.clone())));
        let there: Vec<_> = there.collect();
        self.rng.choice(there)
    }

    /// Does this and that until the evening is over; then all devices come back.
    pub(super) async fn live(&mut self, world: &World, pause: Duration) -> Result<(), Fail> {
        while !world.is_over.load(Ordering::Relaxed) {
            tokio::time::sleep(pause.mul_f64(self.rng.f64() * 2.0)).await;
            let mut choice = self.rng.u32(..100);
            for (whim, weight) in WHIMS {
                if choice < weight {
                    self.follow(whim, world).await?;
                    break;
                }
                choice -= weight;
            }
        }
        for device in &mut self.devices {
            if device.client().is_none() {
                device.come().await?;
                world.counts.away.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    async fn follow(&mut self, whim: Whim, world: &World) -> Result<(), Fail> {
        if matches!(whim, Whim::Device) {
            return self.come_or_go(world).await;
        }
        let (Some((at, client)), Some(conversation)) = (self.any(), self.rng.choice(&self.talks).copied()) else {
            return Ok(());
        };
        if matches!(whim, Whim::Members) {
            return self.settle_members(&client, conversation, world).await;
        }
        if !world.chronicle().talks.get(&conversation).is_some_and(|talk| talk.has(self.no, u64::MAX)) {
            return Ok(());
        }
        match whim {
            Whim::Say => self.say(&client, conversation, world).await,
            Whim::Type => {
                client.signal(conversation, SignalKind::Typing, Vec::new()).await;
                Ok(())
            }
            Whim::Mark => self.mark(&client, conversation, world).await,
            Whim::Settings => self.set(&client, conversation, world).await,
            Whim::Hide => self.hide(at, &client, conversation, world).await,
            _ => self.change(whim, &client, conversation, world).await,
        }
    }

    async fn come_or_go(&mut self, world: &World) -> Result<(), Fail> {
        let at = self.rng.usize(..self.devices.len());
        let device = &mut self.devices[at];
        if device.client().is_some() {
            device.go().await;
            Counts::add(&world.counts.away);
            Counts::add(&world.counts.absences);
        } else {
            device.come().await?;
            world.counts.away.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn say(&mut self, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        self.said += 1;
        let words: Vec<&str> = (0..self.rng.usize(1..12)).filter_map(|_| self.rng.choice(WORDS)).collect();
        let text = format!("{} {}: {}", world.names[self.no], self.said, words.join(" "));
        let expires = self.rng.u32(..20) == 0;
        let mut mentions = Vec::new();
        if self.rng.u32(..10) == 0 {
            let other = self.rng.usize(..world.names.len());
            let talks = &world.chronicle().talks;
            if other != self.no && talks.get(&conversation).is_some_and(|talk| talk.has(other, u64::MAX)) {
                mentions.push(other);
            }
        }
        let answers = self.said.is_multiple_of(5).then(|| self.pick(world, conversation, |_| true)).flatten();
        let beside = Beside {
            reply_to: answers.unwrap_or_default(),
            mentions: mentions.iter().map(|no| world.ids[*no]).collect(),
            expires_in_ms: if expires { EXPIRES.as_millis() as u64 } else { 0 },
            ..Beside::default()
        };
        let publication = client.publish_with(conversation, text.clone(), beside).await;
        let Some(ack) = accepted(publication, world).await? else { return Ok(()) };
        Counts::add(&world.counts.messages);
        world.note(conversation, ack.seq, self.no, Deed::Message { text, mentions, expires })
    }

    /// A message that this person is shown, among the newest ones.
    fn pick(&self, world: &World, conversation: u64, fits: impl Fn(UserNo) -> bool) -> Option<u64> {
        let chronicle = world.chronicle();
        let talk = chronicle.talks.get(&conversation)?;
        let intervals = talk.intervals(self.no);
        let found = talk.deeds.iter().rev().take(RECENT).find(|(seq, done)| {
            let lasts = matches!(done.deed, Deed::Message { expires: false, .. });
            lasts && fits(done.by) && intervals.iter().any(|(from, to)| (from..=to).contains(seq))
        });
        found.map(|(seq, _)| *seq)
    }

    async fn change(&mut self, whim: Whim, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        let own = matches!(whim, Whim::Edit | Whim::Recall);
        let Some(seq) = self.pick(world, conversation, |by| !own || by == self.no) else { return Ok(()) };
        let (publication, deed) = match whim {
            Whim::Edit => {
                let text =
                    format!("{}, or rather: {}", world.names[self.no], self.rng.choice(WORDS).unwrap_or_default());
                (client.edit(conversation, seq, text.clone()).await, Deed::Edit { seq, text })
            }
            Whim::Recall => {
                // A second recall would have no entry, and its ack the seq of another one.
                if !lock(&world.recalled).insert((conversation, seq)) {
                    return Ok(());
                }
                (client.recall(conversation, seq).await, Deed::Recall { seq })
            }
            _ => {
                let reaction = self.other_reaction(world, conversation, seq);
                (client.react(conversation, seq, reaction.clone()).await, Deed::React { seq, reaction })
            }
        };
        let Some(ack) = accepted(publication, world).await? else { return Ok(()) };
        Counts::add(&world.counts.changes);
        world.note(conversation, ack.seq, self.no, deed)
    }

    /// The others are told in the inbox; this device knows.
    async fn hide(&mut self, at: usize, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        let Some(seq) = self.pick(world, conversation, |_| true) else { return Ok(()) };
        if accepted(client.hide(conversation, seq, false).await, world).await?.is_some() {
            self.devices[at].notes().hidden.entry(conversation).or_default().insert(seq);
            if let Some(talk) = world.chronicle().talks.get_mut(&conversation) {
                talk.hidden.entry(self.no).or_default().insert(seq);
            }
        }
        Ok(())
    }

    /// A reaction other than the one that this person gave: the same again would have no entry.
    fn other_reaction(&mut self, world: &World, conversation: u64, about: u64) -> String {
        let chronicle = world.chronicle();
        let given = chronicle.talks.get(&conversation).and_then(|talk| {
            talk.deeds.values().rev().find_map(|done| match &done.deed {
                Deed::React { seq, reaction } if *seq == about && done.by == self.no => Some(reaction.clone()),
                _ => None,
            })
        });
        let given = given.unwrap_or_default();
        if !given.is_empty() && self.rng.u32(..4) == 0 {
            return String::new();
        }
        let others: Vec<&str> = REACTIONS.into_iter().filter(|reaction| *reaction != given).collect();
        self.rng.choice(others).unwrap_or_default().to_owned()
    }

    async fn mark(&mut self, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        let head = world.chronicle().talks.get(&conversation).map_or(0, Talk::head);
        if head == 0 || accepted(client.mark(conversation, head).await, world).await?.is_none() {
            return Ok(());
        }
        if let Some(talk) = world.chronicle().talks.get_mut(&conversation) {
            talk.set_mark(self.no, head);
        }
        Ok(())
    }

    async fn set(&mut self, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        let shown = Shown { pinned: self.rng.bool(), marked_unread: self.rng.bool() };
        let Shown { pinned, marked_unread } = shown;
        let settings = packet::Settings { pinned, marked_unread, ..Default::default() };
        let answer = accepted(client.set_settings(conversation, settings).await, world).await?;
        if answer.is_some()
            && let Some(talk) = world.chronicle().talks.get_mut(&conversation)
        {
            talk.settings.insert(self.no, shown);
        }
        Ok(())
    }

    /// The owner of a group removes a member, or brings one back; anybody else leaves.
    async fn settle_members(&mut self, client: &Client, conversation: u64, world: &World) -> Result<(), Fail> {
        let Some((owner, turn)) = world.groups.get(&conversation) else { return Ok(()) };
        let _turn = turn.lock().await;
        let is_in =
            |who: UserNo| world.chronicle().talks.get(&conversation).is_some_and(|talk| talk.has(who, u64::MAX));
        let (publication, deed) = if *owner == self.no {
            let other = self.rng.usize(..world.names.len());
            if other == self.no {
                return Ok(());
            }
            let (role, deed) =
                if is_in(other) { (Role::None, Deed::Goes(other)) } else { (Role::Member, Deed::Comes(other)) };
            (client.set_role(conversation, world.names[other].clone(), role).await, deed)
        } else if is_in(self.no) {
            (client.leave(conversation).await, Deed::Goes(self.no))
        } else {
            return Ok(());
        };
        let Some(ack) = accepted(publication, world).await? else { return Ok(()) };
        Counts::add(&world.counts.crossings);
        world.note(conversation, ack.seq, self.no, deed)
    }
}

/// Waits for the answer. `None`: refused, as what comes too late is.
async fn accepted(publication: Result<Publication, PublishError>, world: &World) -> Result<Option<PublishAck>, Fail> {
    match publication?.await {
        Ok(ack) => Ok(Some(ack)),
        Err(PublishError::Refused(refusal))
            if matches!(refusal.reason, Reason::Forbidden | Reason::UnknownConversation | Reason::InvalidArgument) =>
        {
            Counts::add(&world.counts.refused);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
