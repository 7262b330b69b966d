//! Which rows an operation will look at: found out before it is queued, so that they are loaded by then and the commit
//! thread does not wait for the disk. What a rehearsal misses costs such a wait and nothing else.

use longwire_protocol::packet::publish::Action;
use longwire_protocol::{ConversationId, DeviceId, LogTime, MessageId, UserId};

use super::account::is_own;
use super::draft::Draft;
use super::fold::{next_id, next_id_named};
use super::loading::Want;
use super::ops::{Op, Publish};
use super::rows::{Conversation, Counted, Kind, Member, partition};
use super::state::State;
use super::view::{Overlay, Reader, Rows as _, View};
use crate::store::{FrameBuilder, Position, SegmentId};

/// What is cold of what will be looked at when a publish is decided and fed. Costs a few lookups for a message, a trial
/// run for the rest, as if it were decided at this `time`.
#[must_use]
pub fn rehearse(state: &State, op: &Publish, time: LogTime) -> Vec<Want> {
    let (session, publish) = (&op.session, &op.publish);
    let conversation = ConversationId(publish.conversation);
    let rows = Reader::new(state);
    let _ = rows.device(session.device);
    let is_member = rows.member(conversation, session.user).is_some_and(Member::is_active);
    let is_fed_by_list = |c: &Conversation| match c.kind {
        Kind::Group => is_member,
        Kind::Channel => session.grants.load().publish.admit(&c.label),
        Kind::Direct | Kind::Inbox => false,
    };
    // Whether the other one of the two takes it.
    if let Some(direct) = rows.conversation(conversation).filter(|c| c.kind == Kind::Direct && is_member) {
        let (a, b) = direct.pair;
        let _ = rows.refusals(if a == session.user { b } else { a });
    }
    if rows.conversation(conversation).is_some_and(|c| c.more.kept.is_timed) {
        let _ = rows.keeping(conversation);
    }
    // Who may not write there has no list loaded.
    if rows.conversation(conversation).is_some_and(is_fed_by_list) {
        let _ = rows.members(conversation);
    }
    // Its inbox, in which the id counts.
    if is_own(publish.action.as_ref()) {
        let _ = rows.user(session.user);
    }
    if matches!(publish.action, Some(Action::SetWill(_) | Action::SetPush(_))) {
        let _ = rows.bearer(session.user, session.device);
    }
    let mut cold = rows.into_cold();
    if publish.action.is_some() || publish.beside.is_some() {
        let mut overlay = Overlay::default();
        let mut frame = FrameBuilder::new(SegmentId(0), Position(state.tail.0 + 1), time.max(state.time));
        let view = View::rehearsal(state, &mut overlay);
        let mut draft = Draft { view, frame: &mut frame, effects: &mut Vec::new(), now_ms: 0, writable: true };
        let _ = draft.append(session, publish.clone(), MessageId(0), op.digest, op.found);
        cold.extend(draft.view.into_cold());
    }
    cold
}

/// Whether a device left something to be done while it is away, as far as is committed.
#[must_use]
pub fn has_left(state: &State, user: UserId, device: DeviceId) -> bool {
    state.wills().contains_key(&device) || state.pushes().contains(&(user, device))
}

/// What is cold of what a piece of the commit thread's own work will look at.
#[must_use]
pub fn rehearse_upkeep(state: &State, op: &Op, time: LogTime) -> Vec<Want> {
    let mut overlay = Overlay::default();
    let mut frame = FrameBuilder::new(SegmentId(0), Position(state.tail.0 + 1), time);
    let view = View::rehearsal(state, &mut overlay);
    let mut draft = Draft { view, frame: &mut frame, effects: &mut Vec::new(), now_ms: 0, writable: true };
    match op {
        Op::Sweep(id) => drop(draft.sweep(*id)),
        Op::Erase(user) => draft.erase_step(*user),
        _ => {}
    }
    draft.view.into_cold()
}

/// Looks at all that attaching a device looks at, so that it is known to be at hand; and, where the session `resumes`, at
/// what it starts from.
pub fn rehearse_attach(rows: &Reader<'_>, user: &str, device: &str, resumes: bool) {
    let Some(id) = rows.user_named(user) else {
        let id = next_id_named(rows, Counted::Users, user);
        let _ = (rows.user(UserId(id)), next_id(rows, Counted::Conversations, partition(id)));
        let _ = next_id(rows, Counted::Devices, partition(id));
        return;
    };
    let owner = rows.user(id);
    let known = rows.device_named(id, device);
    // Whether what it left was left with another token.
    if let Some(device) = known.filter(|device| has_left(rows.state(), id, *device)) {
        let _ = rows.bearer(id, device);
    }
    let is_new = known.and_then(|device| rows.device(device)).is_none_or(|row| row.is_gone);
    if is_new {
        // Whether others were not seen for so long that they make room; and the inbox, which is told of the new one.
        let _ = next_id(rows, Counted::Devices, partition(id.0));
        for other in owner.map_or(&[][..], |owner| &owner.devices) {
            let _ = rows.device(*other);
        }
        let _ = owner.map(|owner| rows.conversation(owner.inbox));
    }
    for (conversation, _) in rows.duties(id).iter().filter(|_| resumes) {
        let _ = (rows.conversation(conversation), rows.member(conversation, id));
    }
}
