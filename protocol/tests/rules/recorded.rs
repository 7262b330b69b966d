//! A conversation on the wire as version 1 had it, kept as bytes: later versions must answer an old client as this one
//! did, and understand an old broker. The recording is written once, where it is missing, and never again.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use longwire_protocol::{
    BrokerEvent, BrokerLimits, BrokerSession, ClientEvent, ClientSession, FrameCodec, Lane, MessageId, Millis, Reason,
    Refusal,
    packet::{self, publish::Action, request::Op},
};
use serde_json::{Value as Json, json};
use tokio_util::codec::Decoder as _;

use crate::world::{connect, item, message, stored};

/// What happens, a step each: the client does something, the broker answers, and so on.
const STEPS: [Step; 9] = [
    Step { name: "connect", wait_ms: 0 },
    Step { name: "publish", wait_ms: 10 },
    Step { name: "repeat", wait_ms: 500 },
    Step { name: "read", wait_ms: 10 },
    Step { name: "deliver", wait_ms: 10 },
    Step { name: "ack", wait_ms: 1_000 },
    Step { name: "ask", wait_ms: 12_000 },
    Step { name: "heartbeat", wait_ms: 60_000 },
    Step { name: "goodbye", wait_ms: 10 },
];

#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    wait_ms: u64,
}

struct Client {
    session: ClientSession,
    codec: FrameCodec,
    told: Vec<ClientEvent>,
}

struct Broker {
    session: BrokerSession<u64>,
    codec: FrameCodec,
    told: usize,
}

impl Client {
    fn new(now: Millis) -> Self {
        let connect = packet::Connect { incarnation: 1, first_unanswered: 7, agent: "recorded".into(), ..connect() };
        Self { session: ClientSession::new(now, connect), codec: FrameCodec::default(), told: Vec::new() }
    }

    fn act(&mut self, step: &str, now: Millis) -> Bytes {
        let session = &mut self.session;
        match step {
            "publish" => {
                let open = Action::OpenDirect(packet::OpenDirect { user: "ada".into() });
                session.publish(packet::Publish { message_id: 7, action: Some(open), ..Default::default() });
                session.publish(message(8, 4_097, 3));
                session.publish(message(9, 4_097, 200));
            }
            "repeat" => session.publish(packet::Publish { first_unanswered: 8, ..message(9, 4_097, 200) }),
            "read" => {
                let history = packet::HistoryRequest { conversation: 4_097, limit: 10, ..Default::default() };
                session.request(packet::Request { id: 1, op: Some(Op::History(history)) });
            }
            "goodbye" => session.goodbye(),
            _ => session.handle_deadline(now).expect("nothing ends"),
        }
        let mut out = BytesMut::new();
        session.poll_transmit(now, &mut out, usize::MAX);
        out.freeze()
    }

    fn hear(&mut self, step: &str, now: Millis, bytes: &[u8]) {
        let mut bytes = BytesMut::from(bytes);
        while let Some((frame, len)) = self.codec.decode(&mut bytes).expect("good bytes") {
            let Some(event) = self.session.handle_frame(now, frame, len).expect("no rule is broken") else { continue };
            match &event {
                ClientEvent::Connected(_) => self.codec.set_frame_bytes_max(self.session.frame_bytes_max()),
                // The last one of what is asked about cannot be stored at first.
                ClientEvent::Items { lane, first_n, items } => {
                    self.session.stored(now, *lane, first_n + items.len() as u64 - 1 - u64::from(step == "deliver"));
                }
                ClientEvent::AckRequest { k } => self.session.answer(*k),
                _ => {}
            }
            self.told.push(event);
        }
        assert!(bytes.is_empty());
    }
}

impl Broker {
    fn new(now: Millis) -> Self {
        Self { session: BrokerSession::new(now, BrokerLimits::default()), codec: FrameCodec::default(), told: 0 }
    }

    fn hear(&mut self, step: &str, now: Millis, bytes: &[u8]) {
        let mut bytes = BytesMut::from(bytes);
        while let Some((frame, len)) = self.codec.decode(&mut bytes).expect("good bytes") {
            let mut event = self.session.handle_frame(now, frame, len).expect("no rule is broken");
            while let Some(what) = event {
                self.told += 1;
                self.answer(step, now, what);
                event = self.session.poll_event();
            }
        }
        assert!(bytes.is_empty());
    }

    fn answer(&mut self, step: &str, now: Millis, event: BrokerEvent<u64>) {
        let session = &mut self.session;
        match event {
            BrokerEvent::Connect(_) => {
                let connected = packet::Connected { user: 1, device: 2, session: 3, ..Default::default() };
                session.accept(now, connected);
                self.codec.set_frame_bytes_max(session.frame_bytes_max());
            }
            BrokerEvent::Publish(publish) if publish.message_id == 9 && step == "publish" => {
                session.refuse(Refusal::publish(MessageId(9), Reason::Overloaded).retry_after(400));
            }
            BrokerEvent::Publish(publish) => session.acknowledge(stored(publish.message_id)),
            BrokerEvent::Request(request) => session.respond_history(request.id, &[item(1, 3), item(2, 200)], 0, 2),
            BrokerEvent::Resend { lane, from_n, places } => {
                for (n, place) in (from_n..).zip(places) {
                    session.resend(now, lane, n, &item(place, 20));
                }
            }
            _ => {}
        }
    }

    fn act(&mut self, step: &str, now: Millis) -> Bytes {
        if step == "deliver" {
            for place in 1..=3 {
                self.session.deliver(now, Lane::Express, place, item(place, 20));
                self.session.deliver(now, Lane::Bulk, place, item(place, 200));
            }
            self.session.cursor(Bytes::from_static(b"cursor"));
        }
        self.session.handle_deadline(now).expect("nothing ends");
        let mut out = BytesMut::new();
        self.session.poll_transmit(now, &mut out, usize::MAX);
        out.freeze()
    }
}

/// The recording: what each side said in each step.
fn recording() -> Vec<(Bytes, Bytes)> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/recorded_1.jsonl");
    if !path.exists() && std::env::var_os("LONGWIRE_GENERATE").is_some() {
        // Renamed into place, so that the other test never reads a part of it.
        let part = path.with_extension(format!("part{:?}", std::thread::current().id()));
        std::fs::write(&part, record()).expect("write the recording");
        std::fs::rename(&part, &path).expect("put it in place");
    }
    let text = std::fs::read_to_string(&path).expect("the recording");
    assert_eq!(text.lines().count(), STEPS.len());
    let bytes = |line: &Json, side: &str| -> Bytes {
        let text = line[side].as_str().expect("hex");
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    };
    let lines = text.lines().map(|line| serde_json::from_str::<Json>(line).expect("JSON"));
    lines.map(|line| (bytes(&line, "client"), bytes(&line, "broker"))).collect()
}

fn record() -> String {
    let hex = |bytes: &Bytes| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut now = Millis(0);
    let (mut client, mut broker) = (Client::new(now), Broker::new(now));
    let lines = STEPS.map(|step| {
        now = now.after(step.wait_ms);
        let said = client.act(step.name, now);
        broker.hear(step.name, now, &said);
        let answered = broker.act(step.name, now);
        client.hear(step.name, now, &answered);
        format!("{}\n", json!({ "step": step.name, "client": hex(&said), "broker": hex(&answered) }))
    });
    lines.concat()
}

/// What a client of version 1 said gets the answers that it got.
#[test]
fn a_recorded_client_is_answered_as_it_was() {
    let mut now = Millis(0);
    let mut broker = Broker::new(now);
    for (step, (said, answered)) in STEPS.iter().zip(recording()) {
        now = now.after(step.wait_ms);
        broker.hear(step.name, now, &said);
        assert_eq!(broker.act(step.name, now), answered, "{}", step.name);
    }
    assert!(broker.session.is_closed());
    assert!(broker.told >= 10, "{}", broker.told);
}

/// What a broker of version 1 said leads to what it led to.
#[test]
fn a_recorded_broker_is_understood_as_it_was() {
    let mut now = Millis(0);
    let mut client = Client::new(now);
    for (step, (said, answered)) in STEPS.iter().zip(recording()) {
        now = now.after(step.wait_ms);
        let acts = client.act(step.name, now);
        if step.name == "goodbye" {
            // Version 1 as it was recorded did not ack in front of its goodbye (R6.3-7).
            let ack = acts.len() - said.len();
            assert!(acts.ends_with(&said) && acts[..ack] == [6, 0x2a, 4, 8, 3, 16, 3], "{acts:?}");
        } else {
            assert_eq!(acts, said, "{}", step.name);
        }
        client.hear(step.name, now, &answered);
    }
    let count = |is: fn(&ClientEvent) -> bool| client.told.iter().filter(|event| is(event)).count();
    assert_eq!(count(|event| matches!(event, ClientEvent::PublishAck(_))), 3);
    assert_eq!(count(|event| matches!(event, ClientEvent::Refused(_))), 1);
    assert_eq!(count(|event| matches!(event, ClientEvent::AckRequest { .. })), 1);
    assert_eq!(count(|event| matches!(event, ClientEvent::Items { .. })), 4, "both lanes, and both once more");
    assert_eq!(count(|event| matches!(event, ClientEvent::Cursor(_))), 1);
}
