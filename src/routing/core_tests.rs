//! What the core decides about sessions whose connection is gone, and what a rehearsal leaves alone.

use std::sync::Arc;

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::{self, PublishAck};
use longwire_protocol::reason::Reason;
use longwire_protocol::{ConversationId, Incarnation, LogTime, MessageId, SessionNumber};

use super::core::Core;
use super::draft::Draft;
use super::grants::{Grants, Patterns};
use super::loading::load;
use super::ops::{Attach, Effect, Op, Parting, Proof, Publish, digest};
use super::outbox::{Attached, Outbox, Session};
use super::rehearsal::rehearse;
use super::rows::DeviceCursor;
use super::state::{Lookup, State};
use super::view::{Overlay, View};
use crate::store::{FrameBuilder, Log as _, MemoryLog, Position, SegmentId};

/// Decides one operation over a state that is wholly in memory.
pub(super) fn decide(core: &mut Core, state: &mut State, op: Op) -> Vec<Effect> {
    let (mut overlay, mut effects) = (Overlay::default(), Vec::new());
    let mut frame = FrameBuilder::new(SegmentId(1), Position(state.tail.0 + 1), LogTime(0));
    let view = View::new(state, &mut overlay);
    let mut draft = Draft { view, frame: &mut frame, effects: &mut effects, now_ms: 0, writable: true };
    core.decide(op, &mut draft);
    overlay.merge(state);
    effects
}

pub(super) fn attach(core: &mut Core, state: &mut State, user: &str, outbox: &Arc<Outbox>) -> Option<Arc<Session>> {
    attached(core, state, user, outbox).map(|attached| attached.session)
}

fn attached(core: &mut Core, state: &mut State, user: &str, outbox: &Arc<Outbox>) -> Option<Attached> {
    granted(core, state, user, Grants::default(), outbox)
}

fn granted(core: &mut Core, state: &mut State, user: &str, grants: Grants, outbox: &Arc<Outbox>) -> Option<Attached> {
    let attach = Attach {
        user: user.into(),
        device: "phone".into(),
        grants: Arc::new(grants),
        proof: Proof::Token { issued: LogTime(0), generation: None },
        incarnation: Incarnation(0),
        first_unanswered: MessageId(1),
        hears_signals: false,
        is_background: false,
        outbox: Arc::clone(outbox),
    };
    decide(core, state, Op::Attach(Box::new(attach))).into_iter().find_map(|effect| match effect {
        Effect::Attach(attached) => Some(attached),
        _ => None,
    })
}

fn op(session: &Arc<Session>, conversation: u64, action: Option<Action>) -> Publish {
    let publish = packet::Publish { conversation, message_id: 1, action, ..packet::Publish::default() };
    Publish { session: Arc::clone(session), digest: digest(&publish), publish, found: None }
}

fn created(core: &mut Core, state: &mut State, session: &Arc<Session>) -> PublishAck {
    let create =
        Action::CreateGroup(packet::CreateGroup { label: "g".into(), users: Vec::new(), ..Default::default() });
    let effects = decide(core, state, Op::Publish(op(session, 0, Some(create))));
    let answer = effects.into_iter().find_map(|effect| match effect {
        Effect::Answer(_, _, answer) => answer.ok(),
        _ => None,
    });
    answer.expect("the session may publish")
}

/// Attaches come in the order in which their rows were loaded: one whose connection is gone may come after a newer one.
#[test]
fn an_attach_whose_connection_is_gone_takes_nothing_over() {
    let (mut core, mut state) = (Core::new(SessionNumber(0)), State::default());
    let session = attach(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    let gone = Arc::<Outbox>::default();
    gone.lock().is_abandoned = true;
    assert!(attach(&mut core, &mut state, "ann", &gone).is_none());
    assert!(session.outbox.lock().closing.is_none(), "the newer one was told nothing");
    created(&mut core, &mut state, &session);
}

/// What a device acked is not sent to it again because somebody came between who acked nothing, or whose group failed.
#[test]
fn acks_outlive_takeovers_that_fail_and_sessions_that_ack_nothing() {
    let (mut core, mut state) = (Core::new(SessionNumber(0)), State::default());
    let acked = DeviceCursor { segment: SegmentId(1), express: Position(5), bulk: Position(3) };
    let outbox = Arc::<Outbox>::default();
    attached(&mut core, &mut state, "ann", &outbox).expect("attached");
    (outbox.lock().stands, outbox.lock().has_acked) = (acked, true);

    let failed = attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    core.forget(&failed.session);
    let failed = attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    assert_eq!(failed.cursor, Some(acked), "the takeover before it failed");
    core.forget(&failed.session);
    attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    let silent = attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    assert_eq!(silent.cursor, Some(acked), "the one that it took over acked nothing");
    decide(&mut core, &mut state, Op::Detach(silent.session, None, Parting::Lost));
    let later = DeviceCursor { express: Position(9), ..acked };
    let next = attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    assert_eq!(next.cursor, Some(acked), "nobody was there meanwhile");
    decide(&mut core, &mut state, Op::Detach(next.session, Some(later), Parting::Lost));
    let last = attached(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    assert_eq!(last.cursor, Some(later), "what is stored later goes before");
}

/// What a token lets its user do with channels lets it do nothing with a group that is called so.
#[test]
fn patterns_open_no_groups() {
    let (mut core, mut state) = (Core::new(SessionNumber(0)), State::default());
    let ann = attach(&mut core, &mut state, "ann", &Arc::default()).expect("attached");
    let group = created(&mut core, &mut state, &ann).conversation;
    let all = || Patterns::new(["**"]);
    assert!(all().admit("g"), "as the group is called");
    let grants = Grants { publish: all(), read: all(), ..Grants::default() };
    let ben = granted(&mut core, &mut state, "ben", grants, &Arc::default()).expect("attached").session;
    let join = Action::Join(packet::Join::default());
    for (n, action) in (2..).zip([None, Some(join)]) {
        let mut op = op(&ben, group, action);
        op.publish.message_id = n;
        let effects = decide(&mut core, &mut state, Op::Publish(op));
        let reason = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer(_, _, answer) => answer.err().map(|refusal| refusal.reason),
            _ => None,
        });
        assert_eq!(reason, Some(Reason::UnknownConversation));
    }
}

/// Else whoever guesses ids would have the lists of large groups loaded.
#[test]
fn a_rehearsal_loads_no_members_for_who_may_not_write() {
    let (mut core, mut state) = (Core::new(SessionNumber(0)), State::default());
    let [ann, ben] = ["ann", "ben"].map(|user| attach(&mut core, &mut state, user, &Arc::default()).expect("attached"));
    let group = created(&mut core, &mut state, &ann).conversation;
    let mut log = MemoryLog::new(0, usize::MAX);
    log.seal(Box::new(state.seal()));
    for (session, is_member) in [(ben, false), (ann, true)] {
        let cold = std::sync::RwLock::new(State::over(log.saved(), state.tail, usize::MAX).expect("reads"));
        loop {
            let wants = rehearse(&cold.read().expect("unpoisoned"), &op(&session, group, None), LogTime(0));
            if wants.is_empty() {
                break;
            }
            load(&cold, &wants).expect("loads");
        }
        let members = matches!(cold.read().expect("unpoisoned").members(ConversationId(group)), Lookup::Known(_));
        assert_eq!(members, is_member);
    }
}
