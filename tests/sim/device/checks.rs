//! What a device holds the broker to: verdicts, acks, refusals, every item in its place, history and conversations, and in
//! the end that nothing is missing.

use longwire_protocol::packet::EntryKind;
use longwire_protocol::packet::publish::Action;

use super::*;

impl Device {
    /// A cursor is resumed where this log has been, and nowhere else.
    pub(crate) fn check_verdict(
        &self,
        connected: &packet::Connected,
        wire: &Wire,
        around: &mut Around<'_>,
    ) -> CursorVerdict {
        let verdict = connected.cursor();
        let reason = connected.reset_reason();
        let Some(cursor) = &wire.own_cursor else {
            assert!(
                verdict == CursorVerdict::Resumed || reason == ResetReason::Asked || !around.lost.is_empty(),
                "without a cursor of its own: {reason:?}"
            );
            return verdict;
        };
        let (_, express, bulk): (u64, u64, u64) = postcard::from_bytes(&cursor[1..]).expect("a cursor of this broker");
        let segment: u64 = postcard::from_bytes::<(u64, u64, u64)>(&cursor[1..]).expect("as above").0;
        let is_lost = around.lost.iter().any(|&(of, tail)| of == segment && express.max(bulk) > tail);
        if is_lost {
            around.coverage.count("cursors beyond a lost tail");
            assert_eq!(verdict, CursorVerdict::Reset, "{}: a cursor beyond what is left is resumed", self.name);
        } else if around.lost.is_empty() {
            assert_eq!(verdict, CursorVerdict::Resumed, "{}: a good cursor is reset: {reason:?}", self.name);
        }
        verdict
    }

    pub(crate) fn check_ack(&mut self, ack: &packet::PublishAck, wire: &Wire, model: &Model) {
        let id = self.id(ack.message_id);
        let stored = model.answers.get(&id);
        let stored = *stored.unwrap_or_else(|| panic!("{}: {id:?} is acked and not in the log", self.name));
        let out = self.durable.outbox.get(&ack.message_id);
        let publish = &out.unwrap_or_else(|| panic!("{}: {id:?} is acked and was settled", self.name)).publish;
        // What one hides or sets is told to the own inbox, and has its seq; where it changes nothing that is noted where it
        // was published.
        let is_own = matches!(publish.action, Some(Action::Hide(_) | Action::SetSettings(_)));
        let conversation = match publish.conversation {
            0 => ack.conversation,
            named if is_own && stored.conversation != named => model.inboxes[&self.user_id],
            named => named,
        };
        let told = Answer { conversation, seq: ack.seq, time: ack.time };
        assert_eq!(told, stored, "{}: the ack of {id:?} says what is stored", self.name);
        if let Some((over, sent)) = wire.over_since.zip(out.map(|out| out.sent_at)) {
            assert!(
                sent <= over,
                "{}: {id:?} is acked, sent at {sent} with a token that was over at {over}",
                self.name
            );
        }
        if let Some(of) = model.conversations.get(&conversation)
            && publish.action.is_none()
            && of.kind == Kind::Channel
        {
            let may = self.held.iter().any(|pass| pass.publishes(&of.label));
            assert!(may, "{}: {id:?} is acked in {}, and no token lets it", self.name, of.label);
        }
        if let Some(before) = self.acked.insert(id, told) {
            assert_eq!(before, told, "a repeat of {id:?} gets the same answer");
        }
        if let (Some(Action::SetLevel(set)), Some(sent)) = (&publish.action, out.and_then(|out| out.first_sent)) {
            self.check_level_ack(conversation, set, sent, model);
        }
        let is_channel = model.conversations.get(&conversation).is_some_and(|of| of.kind == Kind::Channel);
        let is_admins = match &publish.action {
            Some(Action::EraseUser(_)) => true,
            Some(Action::SetRetention(_)) => is_channel,
            _ => false,
        };
        assert!(!is_admins || self.held.iter().any(|pass| pass.is_admin), "{}: {publish:?} is acked", self.name);
        if publish.action.is_none() {
            let entry = model.conversations[&conversation].entry(ack.seq).expect("an acked entry is there");
            let item = Item::decode(entry.item.clone()).expect("an item reads back");
            let Some(item::Kind::Entry(entry)) = item.kind else { panic!("an entry is an entry") };
            assert_eq!(entry.content, publish.content, "what is stored is what was published");
        }
    }

    /// Nobody is refused what the user may do.
    pub(crate) fn check_refusal(&self, refusal: &Refusal, publish: &Publish, sent: u64, around: &Around<'_>) {
        let reason = refusal.reason;
        assert!(
            !matches!(reason, Reason::IdConflict | Reason::IdSpanExceeded),
            "{}: {refusal:?} about {publish:?}",
            self.name
        );
        let Some(conversation) = around.model.conversations.get(&publish.conversation) else { return };
        // A refusal that was lost may be told as a stale id, when a later one is stored meanwhile.
        let is_about_rights = matches!(reason, Reason::Forbidden | Reason::UnknownConversation | Reason::StaleId);
        if publish.action.is_some() || !is_about_rights || !around.lost.is_empty() {
            return;
        }
        let may = match conversation.kind {
            Kind::Channel => self.held.iter().all(|pass| pass.publishes(&conversation.label)),
            Kind::Inbox => false,
            // Who is erased takes nothing any more.
            Kind::Direct
                if [conversation.pair.0, conversation.pair.1]
                    .iter()
                    .any(|user| around.model.erased.contains_key(user)) =>
            {
                false
            }
            Kind::Direct | Kind::Group => conversation.members.get(&self.user_id).is_some_and(|member| {
                let since = member.intervals.last().map_or(0, |i| i.0);
                // The user is a member, and was before this was first sent.
                member.is_active() && member.role >= 2 && conversation.entry(since).is_none_or(|e| e.position <= sent)
            }),
        };
        assert!(!may, "{}: {refusal:?}, though the user may: {publish:?}", self.name);
    }

    pub(crate) fn check_refused_request(&self, asked: &packet::Request, refusal: &Refusal, around: &Around<'_>) {
        let Some(packet::request::Op::History(history)) = &asked.op else { return };
        let sees = around.model.conversations.get(&history.conversation).is_some_and(|conversation| {
            conversation.members.get(&self.user_id).is_some_and(crate::model::Member::is_active)
        });
        let is_channel = around.model.conversations.get(&history.conversation).is_some_and(|c| c.kind == Kind::Channel);
        let sees = sees && !(is_channel && self.is_limited());
        assert!(!(sees && around.is_final), "{}: history refused to a member: {refusal:?}", self.name);
    }

    /// Holds an item against the model as it arrives.
    pub(crate) fn check_item(&self, lane: Lane, n: u64, item: &Item, wire: &mut Wire, around: &mut Around<'_>) {
        let at = lane as usize;
        let key = match &item.kind {
            Some(item::Kind::Entry(entry)) => (entry.conversation, entry.seq),
            Some(item::Kind::Own(own)) => (own.conversation, own.seq),
            Some(item::Kind::Head(head)) => (head.conversation, head.from_seq),
            _ => (0, 0),
        };
        if n <= wire.seen.newest[at] {
            around.coverage.count("items that came again");
            let before = wire.seen.keys[at].get(&n);
            assert_eq!(before, Some(&key), "{}: item {n} is another when it comes again", self.name);
            if let Some(item::Kind::Head(head)) = &item.kind {
                self.check_reason(head, around);
            }
            self.check_shown(key, wire.rewound, item, wire, around);
            return self.check_content(item, wire, around);
        }
        wire.seen.newest[at] = n;
        wire.seen.keys[at].insert(n, key);
        match &item.kind {
            Some(item::Kind::Entry(_) | item::Kind::Own(_)) => {
                self.check_shown(key, wire.since.0, item, wire, around);
                self.check_content(item, wire, around);
                self.check_place(lane, key.0, key.1, item, wire, around);
            }
            Some(item::Kind::Head(head)) => self.check_head(lane, head, wire, around),
            Some(item::Kind::Mark(mark)) => {
                let about = around.model.conversations.get(&mark.conversation).expect("a mark is in a conversation");
                let own = about.members.get(&self.user_id).expect("who is told of marks is a member, or was one");
                if mark.user == 0 {
                    assert!(own.mark >= mark.seq, "a mark that nobody set: {mark:?}");
                    around.coverage.count("marks");
                } else {
                    let of = about.members.get(&mark.user).expect("the mark is a member's");
                    assert!(of.mark >= mark.seq, "a mark that nobody set: {mark:?}");
                    assert!(matches!(about.kind, Kind::Direct | Kind::Group), "marks of {:?} reach nobody", about.kind);
                    assert_eq!(about.is_express(), lane == Lane::Express, "a lane follows from the kind");
                    let last = own.intervals.last().map_or(0, |(_, to)| *to);
                    assert!(mark.seq <= last, "{}: a mark set after the user was removed: {mark:?}", self.name);
                    around.coverage.count("marks of others");
                }
            }
            Some(item::Kind::CaughtUp(_)) => {
                assert!(!std::mem::replace(&mut wire.seen.caught_up[at], true), "caught up twice");
                around.coverage.count(match self.manner.mode {
                    CatchUpMode::Skip => "catch-ups in skip",
                    CatchUpMode::All => "catch-ups in all",
                });
            }
            Some(item::Kind::Progress(_)) => {}
            None => panic!("an item of no known kind"),
        }
    }

    /// What was recalled or had ended before it was asked for is shown to nobody (SPEC R5.6-6).
    fn check_shown(&self, (id, seq): (u64, u64), tail: u64, item: &Item, wire: &Wire, around: &mut Around<'_>) {
        let entry = match &item.kind {
            Some(item::Kind::Entry(entry)) => Some(entry),
            Some(item::Kind::Own(own)) => own.entry.as_ref(),
            _ => return,
        };
        let conversation = &around.model.conversations[&id];
        assert!(
            !conversation.is_recalled(seq, tail),
            "{}: {id}/{seq} was recalled, and is sent after {tail}",
            self.name
        );
        assert!(
            seq >= conversation.kept_from(tail),
            "{}: {id}/{seq} is kept no more, and sent after {tail}",
            self.name
        );
        let (since, session) = (wire.since.1, wire.connected.as_ref().map_or(0, |connected| connected.session));
        assert!(!conversation.has_ended(seq, since), "{}: {id}/{seq} had ended at {since}, and is sent", self.name);
        assert!(!around.model.is_erased(id, seq, tail), "{}: {id}/{seq} is erased, and sent after {tail}", self.name);
        if let Some(erased) = around.model.erased_at(&self.user) {
            let position = conversation.entry(seq).map_or(0, |entry| entry.position);
            assert!(position <= erased, "{}: {id}/{seq} at {position} reaches a user erased at {erased}", self.name);
        }
        let is_withdrawn = around.withdrawn.get(&session).is_some_and(|withdrawn| withdrawn.contains(&(id, seq)));
        assert!(!is_withdrawn, "{}: {id}/{seq} was recalled or erased before it was its turn, and is sent", self.name);
        if let Some(entry) = entry {
            around.coverage.count(match entry.kind() {
                EntryKind::Edit => "edits",
                EntryKind::Recall => "recalls",
                EntryKind::Reaction => "reactions",
                EntryKind::Mentioned => "mentions told",
                EntryKind::Settings => "settings told",
                EntryKind::Hidden => "hidden messages told",
                EntryKind::Retention => "retentions told",
                EntryKind::Message if entry.expires > 0 => "messages that end",
                _ => "other entries",
            });
        }
    }

    /// A `Head` says why, and that is so.
    fn check_reason(&self, head: &packet::Head, around: &mut Around<'_>) {
        let conversation = &around.model.conversations[&head.conversation];
        let (floor, latest) = (around.model.gone_below(), around.log_latest);
        for seq in head.from_seq..=head.to_seq {
            let position = conversation.entry(seq).expect("within the conversation").position;
            if around.model.may_be_gone(head.conversation, seq) {
                continue;
            }
            match head.reason() {
                HeadReason::Expired if position < floor => around.coverage.count("heads of what expired"),
                HeadReason::Expired if seq < conversation.kept_from(u64::MAX) => {
                    around.coverage.count("heads of what is kept no more");
                }
                HeadReason::Expired => {
                    let has_ended = conversation.has_ended(seq, latest);
                    assert!(has_ended, "{}: {head:?}: {seq} at {position} is kept from {floor}", self.name);
                    around.coverage.count("heads of what ended");
                }
                HeadReason::Erased => {
                    let is_erased = around.model.is_erased(head.conversation, seq, u64::MAX);
                    assert!(is_erased, "{}: {head:?}: nobody erased {seq}", self.name);
                    around.coverage.count("heads of what was erased");
                }
                HeadReason::Recalled => {
                    let is_recalled = conversation.recalled.contains_key(&seq);
                    assert!(is_recalled, "{}: {head:?}: nobody recalled {seq}", self.name);
                    around.coverage.count("heads of what was recalled");
                }
                _ => {}
            }
        }
    }

    pub(crate) fn check_content(&self, item: &Item, wire: &Wire, around: &mut Around<'_>) {
        let window = wire.connected.as_ref().and_then(|connected| connected.bulk);
        if window.is_some_and(|window| item.encoded_len() > window.bytes as usize) {
            around.coverage.count("items larger than a window");
        }
        match &item.kind {
            Some(item::Kind::Entry(entry)) => {
                let stored = self.stored(entry.conversation, entry.seq, around.model);
                assert_eq!(stored.item, item.encode_to_vec(), "an entry is delivered as it is stored");
                assert_ne!(stored.origin.device.0, self.device_id, "an own entry comes as Own");
            }
            Some(item::Kind::Own(own)) => {
                let stored = self.stored(own.conversation, own.seq, around.model);
                let incarnation = if own.incarnation == 0 { self.durable.incarnation } else { own.incarnation };
                assert_eq!(
                    (stored.origin.device.0, stored.origin.incarnation.0, stored.origin.message_id.0, stored.time),
                    (self.device_id, incarnation, own.message_id, own.time),
                    "an Own says whose it is"
                );
                let of_session = incarnation == self.durable.incarnation
                    && (wire.published.contains(&own.message_id) || own.message_id < wire.named_unanswered);
                assert!(own.entry.is_some() || of_session, "{}: content left out that it lacks: {own:?}", self.name);
            }
            _ => {}
        }
    }

    pub(crate) fn stored<'m>(&self, conversation: u64, seq: u64, model: &'m Model) -> &'m crate::model::Entry {
        let stored = model.conversations.get(&conversation).and_then(|c| c.entry(seq));
        stored.unwrap_or_else(|| panic!("{}: {conversation}/{seq} is delivered and not in the log", self.name))
    }

    pub(crate) fn check_place(
        &self,
        lane: Lane,
        id: u64,
        seq: u64,
        item: &Item,
        wire: &mut Wire,
        around: &mut Around<'_>,
    ) {
        let at = lane as usize;
        let model = around.model;
        let conversation = &model.conversations[&id];
        let position = conversation.entry(seq).expect("looked up before").position;
        assert_eq!(conversation.is_express(), lane == Lane::Express, "a lane follows from the kind");
        assert!(
            position > wire.seen.position[at],
            "{}: {id}/{seq} at {position} in {lane:?} after {}",
            self.name,
            wire.seen.position[at]
        );
        wire.seen.position[at] = position;
        self.check_wanted(lane, id, position, item, wire, model);
        self.check_overtaken(lane, position, wire, model);
        let sees = conversation.members.get(&self.user_id).is_some_and(|m| m.sees(seq));
        let watches = wire.watching.get(&id).into_iter().flatten().any(|&(after, to)| after < seq && seq <= to);
        assert!(sees || watches, "{}: {id}/{seq} is delivered to who may not see it", self.name);
        if conversation.kind == Kind::Channel {
            let before = wire.before.as_ref().filter(|(_, tail)| position <= *tail).map(|(pass, _)| pass);
            let may = [Some(&self.pass), wire.refreshing.as_ref(), before];
            let may = may.into_iter().flatten().any(|pass| pass.reads(&conversation.label));
            assert!(may, "{}: {id}/{seq} of {} is delivered against its token", self.name, conversation.label);
        }
        if let Some(over) = wire.over_since {
            let at = around.committed.range(..=position).next_back().map_or(0, |(_, now)| *now);
            assert!(at <= over, "{}: {id}/{seq} of {at} is delivered, and its token was over at {over}", self.name);
        }
        if conversation.kind == Kind::Channel && watches {
            around.coverage.count("entries of watched channels");
        }
        let covered = model.covered.get(&(self.user_id, id)).copied().unwrap_or(u64::MAX);
        // Who dropped items of express is not told again before bulk goes on.
        let is_whole = wire.seen.started.is_some() && !wire.has_dropped;
        if lane == Lane::Bulk && seq > covered && !watches && is_whole {
            let inbox = &model.conversations[&model.inboxes[&self.user_id]];
            let announced = inbox.entry(model.announced[&(self.user_id, id)]).expect("an entry of the inbox").position;
            let is_known = announced <= wire.seen.position[0] || announced < model.gone_below();
            assert!(is_known, "{}: {id}/{seq} comes before it is announced at {announced}", self.name);
        }
        let heads = wire.seen.heads.entry(id).or_default();
        assert!(!heads.has(seq), "{}: {id}/{seq} comes though a Head named it", self.name);
        let next = wire.seen.next.get(&id).copied().unwrap_or(1);
        assert!(next <= seq, "{}: {id}/{seq} comes again in one session", self.name);
        if let Some(started) = wire.seen.started {
            for missed in next..seq {
                let is_excused = self.is_excused(id, missed, model)
                    || conversation.entry(missed).is_some_and(|e| e.position <= started[at])
                    || heads.has(missed);
                assert!(is_excused, "{}: {id}/{missed} is left out before {seq}", self.name);
            }
        }
        wire.seen.next.insert(id, seq + 1);
    }

    pub(crate) fn check_head(&self, lane: Lane, head: &packet::Head, wire: &mut Wire, around: &mut Around<'_>) {
        let model = around.model;
        let conversation = model.conversations.get(&head.conversation).expect("a head of a conversation that exists");
        assert_eq!(conversation.is_express(), lane == Lane::Express, "a lane follows from the kind");
        assert!(head.from_seq >= 1 && head.from_seq <= head.to_seq, "a head of nothing: {head:?}");
        assert!(head.to_seq <= conversation.head(), "a head beyond the head: {head:?}");
        let member = conversation.members.get(&self.user_id);
        let watches = wire.watching.contains_key(&head.conversation);
        assert!(watches || member.is_some_and(|m| m.sees(head.to_seq)), "a head of what is not seen: {head:?}");
        let first = conversation.entry(head.from_seq).expect("within the conversation").position;
        let at = lane as usize;
        match head.reason() {
            HeadReason::Expired => {
                self.check_reason(head, around);
            }
            HeadReason::Recalled | HeadReason::Erased => self.check_reason(head, around),
            HeadReason::Skipped => {
                around.coverage.count("heads of what was skipped");
                let is_mode = self.manner.mode == CatchUpMode::Skip;
                assert!(is_mode, "{}: only a catch-up in mode skip skips: {head:?}", self.name);
            }
            HeadReason::TooLarge => {
                around.coverage.count("heads of what is too large");
                assert!(self.manner.item_bytes_max > 0 && head.from_seq == head.to_seq, "{head:?}");
            }
            HeadReason::Withheld => self.check_withheld(head, first, wire, around),
            other => panic!("a head that says {other:?}"),
        }
        if head.reason() != HeadReason::Expired {
            assert!(first > wire.seen.position[at], "{}: {head:?} stands at {first}, out of order", self.name);
            wire.seen.position[at] = first;
            self.check_overtaken(lane, first, wire, model);
        }
        let next = wire.seen.next.get(&head.conversation).copied().unwrap_or(1);
        assert!(head.reason() == HeadReason::Expired || head.from_seq >= next, "{head:?} names what came: {next}");
        wire.seen.heads.entry(head.conversation).or_default().add(head.from_seq, head.to_seq);
    }

    /// It had a token that does not let it read every channel: what it missed of channels is not looked at here.
    fn is_limited(&self) -> bool {
        self.held.iter().any(|pass| pass.read != ALL)
    }

    /// Nobody owes this device this entry.
    pub(crate) fn is_excused(&self, id: u64, seq: u64, model: &Model) -> bool {
        let conversation = &model.conversations[&id];
        let Some(&covered) = model.covered.get(&(self.user_id, id)) else { return true };
        let Some(entry) = conversation.entry(seq) else { return true };
        let lane = usize::from(!conversation.is_express());
        seq <= covered
            || (conversation.kind == Kind::Channel && self.is_limited())
            || entry.position <= self.durable.excused[lane]
            || !conversation.members.get(&self.user_id).is_some_and(|m| m.sees(seq))
    }

    /// The first entry that it is owed and does not have.
    pub(crate) fn missing(&self, model: &Model) -> Option<(u64, u64)> {
        let empty = Stretches::default();
        let mine = model.of_user.get(&self.user_id).into_iter().flatten();
        mine.flat_map(|id| (1..=model.conversations[id].head()).map(|seq| (*id, seq))).find(|&(id, seq)| {
            // What it wants nothing of is told with something else, and there may be nothing.
            let is_unwanted = model.level_at(self.device_id, id, u64::MAX) == packet::Level::Nothing;
            !self.durable.covered.get(&id).unwrap_or(&empty).has(seq)
                && !self.is_excused(id, seq, model)
                && !is_unwanted
        })
    }

    /// At rest: everything that it may see is there, or it was told.
    pub(crate) fn check_view(&self, model: &Model) {
        if let Some((id, seq)) = self.missing(model) {
            let conversation = &model.conversations[&id];
            panic!(
                "{}/{}: {id}/{seq} at {} of {:?} never came; excused to {:?}, covered {:?}",
                self.user,
                self.name,
                conversation.entry(seq).expect("within").position,
                conversation.kind,
                self.durable.excused,
                self.durable.covered.get(&id),
            );
        }
        for (id, reason) in &self.never {
            assert!(!model.answers.contains_key(id), "{}: {id:?} is stored, and was refused: {reason:?}", self.name);
        }
        for (id, answer) in &self.acked {
            assert_eq!(model.answers.get(id), Some(answer), "{}: the ack of {id:?} holds", self.name);
        }
    }

    pub(crate) fn check_history(
        &self,
        page: &packet::HistoryPage,
        asked: &packet::HistoryRequest,
        (tail, time): (u64, u64),
        around: &mut Around<'_>,
    ) {
        let model = around.model;
        let conversation = &model.conversations[&asked.conversation];
        let sees = |seq: u64| {
            (conversation.kind == Kind::Channel && self.held.iter().any(|pass| pass.reads(&conversation.label)))
                || conversation.members.get(&self.user_id).is_some_and(|member| member.sees(seq))
        };
        assert!(page.head_seq <= conversation.head(), "no head beyond the head");
        let mut at = match (asked.backwards, asked.from_seq) {
            (true, 0) => page.head_seq,
            (true, from) => from.min(page.head_seq),
            (false, from) => from.max(1),
        };
        for item in &page.items {
            let (from, to, reason) = match &item.kind {
                Some(item::Kind::Entry(entry)) => {
                    let stored = self.stored(asked.conversation, entry.seq, model);
                    assert_eq!(stored.item, item.encode_to_vec(), "history is what is stored");
                    assert!(sees(entry.seq), "{}: history shows {}", self.name, entry.seq);
                    (entry.seq, entry.seq, None)
                }
                Some(item::Kind::Own(own)) => {
                    let stored = self.stored(asked.conversation, own.seq, model);
                    let entry = packet::Item { kind: own.entry.clone().map(item::Kind::Entry) };
                    assert_eq!(stored.item, entry.encode_to_vec(), "an own entry of history has its content");
                    assert_eq!(stored.origin.message_id.0, own.message_id, "and its id");
                    assert_eq!(stored.origin.device.0, self.device_id, "and is the device's own");
                    assert!(sees(own.seq), "{}: history shows {}", self.name, own.seq);
                    (own.seq, own.seq, None)
                }
                Some(item::Kind::Head(head)) => (head.from_seq, head.to_seq, Some(head.reason())),
                other => panic!("history holds {other:?}"),
            };
            for seq in from..=to {
                if reason.is_some() && model.may_be_gone(asked.conversation, seq) {
                    continue;
                }
                let (is_hidden, had_ended) =
                    (conversation.is_hidden(self.user_id, seq, tail), conversation.has_ended(seq, time));
                match reason {
                    None => {
                        let is_unkept = seq < conversation.kept_from(tail);
                        let is_gone = conversation.is_recalled(seq, tail) || had_ended || is_hidden || is_unkept;
                        assert!(!is_gone, "{}: history shows {seq}, which is not shown since {tail}", self.name);
                        let is_erased = model.is_erased(asked.conversation, seq, tail);
                        assert!(!is_erased, "{}: history shows {seq}, which is erased since {tail}", self.name);
                    }
                    Some(HeadReason::Recalled) => {
                        assert!(conversation.recalled.contains_key(&seq), "nobody recalled {seq}");
                        around.coverage.count("heads of what was recalled, in history");
                    }
                    Some(HeadReason::Erased) => {
                        assert!(model.is_erased(asked.conversation, seq, u64::MAX), "nobody erased {seq}");
                        around.coverage.count("heads of what was erased, in history");
                    }
                    Some(HeadReason::HiddenByUser) => {
                        assert!(conversation.hidden.contains_key(&(self.user_id, seq)), "the user did not hide {seq}");
                        around.coverage.count("heads of what is hidden");
                    }
                    Some(HeadReason::NotYours) => assert!(!sees(seq), "{seq} is the user's"),
                    Some(HeadReason::Expired) => {
                        let entry = self.stored(asked.conversation, seq, model);
                        let has_ended = conversation.has_ended(seq, around.log_latest);
                        let is_kept = seq >= conversation.kept_from(u64::MAX);
                        assert!(has_ended || !is_kept || entry.position < model.gone_below(), "{seq} is not expired");
                        if !is_kept {
                            around.coverage.count("heads of what is kept no more, in history");
                        }
                    }
                    _ => {}
                }
            }
            assert_eq!(if asked.backwards { to } else { from }, at, "a page is without holes: {asked:?} {page:?}");
            at = if asked.backwards { from - 1 } else { to + 1 };
        }
        if page.next_seq != 0 {
            assert_eq!(page.next_seq, at, "the next page goes on where this one ends");
        } else if around.is_final {
            let mut rest = if asked.backwards { 1..=at } else { at..=page.head_seq };
            assert!(rest.all(|seq| !sees(seq)), "{}: history ends at {at} of {}: {asked:?}", self.name, page.head_seq);
        }
    }

    pub(crate) fn check_conversations(
        &self,
        page: &packet::ConversationsPage,
        (tail, asked_at): (u64, u64),
        around: &mut Around<'_>,
    ) {
        around.coverage.count("pages of conversations");
        if !around.is_final {
            return;
        }
        let mut told = BTreeSet::new();
        for row in &page.conversations {
            let conversation = &around.model.conversations[&row.id];
            let member = conversation.members.get(&self.user_id).expect("only the user's own");
            told.insert(row.id);
            assert_eq!(
                (row.head_seq, row.role, row.mark),
                (conversation.head(), member.role, member.mark),
                "{}: head, role and mark of {} ({:?})",
                self.user,
                row.id,
                conversation.kind
            );
            // What expired above the mark may count or not.
            let unread = conversation.unread(self.user_id, (0, tail), asked_at);
            let kept = conversation.unread(self.user_id, (around.model.gone_below(), u64::MAX), around.log_latest);
            assert!(
                (kept..=unread).contains(&row.unread),
                "{}: {} unread in {} ({:?}), it says {}",
                self.user,
                unread,
                row.id,
                conversation.kind,
                row.unread
            );
            let last = row.last.as_ref().map_or(0, |entry| entry.seq);
            assert!(
                !around.model.is_erased(row.id, last, tail),
                "{}: {}/{last} is erased, and listed",
                self.user,
                row.id
            );
            let set = around.model.settings.get(&(self.user_id, row.id)).copied().unwrap_or_default();
            let told = row.settings.unwrap_or_default();
            assert_eq!(told, set, "{}: the settings of {}", self.user, row.id);
        }
        if page.next == 0 {
            let total: u64 = page.conversations.iter().map(|row| row.unread).sum();
            assert_eq!(page.unread_total, total, "{}: what is unread in all", self.user);
        }
        let active = around.model.of_user.get(&self.user_id).into_iter().flatten().filter(|id| {
            let conversation = &around.model.conversations[id];
            conversation.kind != Kind::Inbox && conversation.members[&self.user_id].is_active()
        });
        if page.next == 0 {
            assert_eq!(told, active.copied().collect(), "{}: the conversations are those", self.user);
        }
    }
}
