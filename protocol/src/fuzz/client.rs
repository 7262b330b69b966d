//! The target `session_client`: the client's session against any broker, and every order of what an application may do.

use std::collections::VecDeque;

use bytes::BytesMut;
use tokio_util::codec::Decoder as _;

use super::input::Input;
use crate::{
    ClientEvent, ClientSession, Frame, FrameCodec, Lane, MessageId, Millis, Reason, Refusal, frame,
    limits::{FRAME_BYTES_CEILING, PUBLISH_WINDOW},
    packet::{self, Window, packet::Kind},
};

const STEPS_MAX: usize = 400;
const CHUNKS: [usize; 4] = [1, 100, 4 << 10, 1 << 20];
const WAITS_MS: [u64; 8] = [0, 1, 999, 1_000, 9_000, 10_000, 20_000, 60_000];
const CONTENT_BYTES: [usize; 5] = [0, 20, 2_000, 20_000, 70_000];

/// Bytes of a broker in any pieces, time, and every call an application may make.
///
/// # Panics
/// If an item is handed out twice or out of order, if an ack runs ahead of what is stored, if the publish window is
/// exceeded, or if the session does not end when the broker is silent.
pub fn session_client(data: &[u8]) {
    let mut input = Input::new(data);
    let mut story = Story::new(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_over() || story.session.is_closed() {
            break;
        }
        story.step(&mut input);
        story.check();
    }
    story.end();
}

#[derive(Clone, Copy, Default)]
struct Counted {
    /// The highest number handed out, and the highest stored.
    handed: u64,
    stored: u64,
    /// The highest number acked on the wire.
    acked: u64,
}

struct Story {
    now: Millis,
    session: ClientSession,
    codec: FrameCodec,
    arrived: BytesMut,
    written: BytesMut,
    onlooker: FrameCodec,
    express: Counted,
    bulk: Counted,
    window: Window,
    /// Ids without an answer, and their bytes.
    publishes: VecDeque<(u64, usize)>,
    next_id: u64,
    asked: Option<u64>,
}

impl Story {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Millis(1_000);
        let connect = packet::Connect {
            version: 1,
            device: "d".into(),
            heartbeat_ms: (input.number() as u32).saturating_mul(1_000),
            ..Default::default()
        };
        Self {
            now,
            session: ClientSession::new(now, connect).with_heartbeat_phase(Millis(input.number())),
            codec: FrameCodec::default(),
            arrived: BytesMut::new(),
            written: BytesMut::new(),
            onlooker: FrameCodec::new(FRAME_BYTES_CEILING),
            express: Counted::default(),
            bulk: Counted::default(),
            window: Window::default(),
            publishes: VecDeque::new(),
            next_id: 1,
            asked: None,
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut Counted {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => {
                let count = usize::from(input.byte());
                let bytes = input.take(count);
                self.arrived.extend_from_slice(bytes);
                self.read();
            }
            1..=7 => {
                let mut wire = BytesMut::new();
                match self.packet(input) {
                    Some(kind) => frame::encode(&kind, &mut wire),
                    None => frame::encode_heartbeat(&mut wire),
                }
                let piece = usize::from(input.byte()) + 1;
                for piece in wire.chunks(piece) {
                    self.session.handle_bytes(self.now);
                    self.arrived.extend_from_slice(piece);
                    self.read();
                }
            }
            8 => {
                self.now = self.now.after(input.choice(&WAITS_MS));
                let _ = self.session.handle_deadline(self.now);
            }
            9 => self.publish(input),
            10 => {
                let lane = input.choice(&[Lane::Express, Lane::Bulk]);
                let less = u64::from(input.byte() % 4);
                let now = self.now;
                let counted = self.lane(lane);
                let n = counted.handed.saturating_sub(less);
                counted.stored = counted.stored.max(n);
                self.session.stored(now, lane, n);
            }
            11 => self.session.flush_acks(),
            12 => {
                if let Some(k) = self.asked.take() {
                    self.session.answer(k);
                }
            }
            13 => match input.byte() {
                0 => self.session.goodbye(),
                n if n & 1 == 0 => self.session.give_up(MessageId(n.into())),
                n => self.session.request(packet::Request { id: n.into(), op: None }),
            },
            _ => {
                let max = input.choice(&CHUNKS);
                self.write(max);
            }
        }
    }

    /// What a broker may say, well or badly.
    fn packet(&self, input: &mut Input<'_>) -> Option<Kind> {
        let window = |input: &mut Input<'_>| {
            let items = input.number() as u32;
            (items != 0).then(|| Window { items, bytes: (input.number() as u32).saturating_mul(64) })
        };
        let id = |input: &mut Input<'_>| match input.byte() {
            0 => input.number(),
            n if self.publishes.is_empty() => n.into(),
            n => self.publishes[usize::from(n) % self.publishes.len()].0,
        };
        Some(match input.byte() % 10 {
            0 => Kind::Connected(packet::Connected {
                heartbeat_ms_min: input.number() as u32,
                heartbeat_ms_max: input.number() as u32,
                frame_bytes_max: input.number() as u32,
                publish: window(input),
                express: window(input),
                bulk: window(input),
                ..Default::default()
            }),
            1 => Kind::PublishAck(packet::PublishAck { message_id: id(input), ..Default::default() }),
            2 => {
                let reason = input.choice(&[Reason::Overloaded, Reason::Forbidden, Reason::After, Reason::Draining]);
                Kind::Refused((&Refusal::publish(MessageId(id(input)), reason)).into())
            }
            3..=5 => {
                let lane = input.choice(&[Lane::Express, Lane::Bulk]);
                let next = self.session.next(lane);
                let n = match input.byte() {
                    0 => input.number(),
                    n => next.saturating_sub(u64::from(n / 32)),
                };
                let items = vec![packet::Item::default(); usize::from(input.byte() % 8)];
                Kind::Deliver(packet::Deliver { lane: lane.into(), n, items })
            }
            6 => Kind::Cursor(packet::Cursor { cursor: vec![3; 9].into() }),
            7 => Kind::AckRequest(packet::AckRequest { k: input.number() }),
            8 => Kind::Goaway(packet::Goaway { retry_after_ms: input.byte().into() }),
            _ => return None,
        })
    }

    fn read(&mut self) {
        loop {
            let (frame, bytes) = match self.codec.decode(&mut self.arrived) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return self.session.goodbye(),
            };
            let next = [self.session.next(Lane::Express), self.session.next(Lane::Bulk)];
            let Ok(event) = self.session.handle_frame(self.now, frame, bytes) else {
                assert!(self.session.is_closed(), "a broken rule ends the session");
                return;
            };
            self.codec.set_frame_bytes_max(self.session.frame_bytes_max());
            match event {
                Some(ClientEvent::Connected(connected)) => self.window = connected.publish.unwrap_or(PUBLISH_WINDOW),
                Some(ClientEvent::Items { lane, first_n, items }) => {
                    assert!(!items.is_empty(), "something is handed out");
                    assert_eq!(first_n, next[lane as usize], "in order, each once");
                    let last = first_n + items.len() as u64 - 1;
                    assert_eq!(self.session.next(lane), last + 1);
                    let counted = self.lane(lane);
                    counted.handed = counted.handed.max(last);
                }
                Some(ClientEvent::PublishAck(packet::PublishAck { message_id, .. })) => self.answered(message_id),
                Some(ClientEvent::Refused(refusal)) if refusal.message_id.is_some() => {
                    self.answered(refusal.message_id.0);
                }
                Some(ClientEvent::AckRequest { k }) => self.asked = Some(k),
                _ => {}
            }
        }
    }

    fn answered(&mut self, message_id: u64) {
        let at = self.publishes.iter().position(|(id, _)| *id == message_id);
        self.publishes.remove(at.expect("an answer to what was asked"));
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        let content = vec![1; input.choice(&CONTENT_BYTES)].into();
        let publish = packet::Publish { message_id: self.next_id, conversation: 1, content, ..Default::default() };
        let bytes = frame::encoded_len(&Kind::Publish(publish.clone()));
        if self.session.publish_room().admits(bytes) {
            self.session.publish(publish);
            self.publishes.push_back((self.next_id, bytes));
            self.next_id += 1;
        }
    }

    /// Writes, and looks at what leaves.
    fn write(&mut self, max: usize) {
        let mut out = BytesMut::new();
        let wrote = self.session.poll_transmit(self.now, &mut out, max);
        assert_eq!(wrote, !out.is_empty());
        self.written.extend_from_slice(&out);
        while let Some((frame, _)) = self.onlooker.decode(&mut self.written).expect("a client writes good frames") {
            if let Frame::Packet(Kind::Ack(ack)) = frame {
                for (lane, n) in [(Lane::Express, ack.express), (Lane::Bulk, ack.bulk)] {
                    let counted = self.lane(lane);
                    assert!(n >= counted.acked && n <= counted.stored, "an ack of what is stored, and never less");
                    counted.acked = n;
                }
            }
        }
        assert!(self.written.is_empty(), "whole frames leave");
    }

    fn check(&self) {
        assert_eq!(self.session.unanswered() as usize, self.publishes.len());
        let bytes: usize = self.publishes.iter().map(|(_, bytes)| bytes).sum();
        assert!(self.publishes.len() <= self.window.items as usize, "more publishes than the window has");
        assert!(bytes <= self.window.bytes as usize || self.publishes.len() == 1, "more bytes than the window has");
        for (lane, counted) in [(Lane::Express, self.express), (Lane::Bulk, self.bulk)] {
            assert!(self.session.next(lane) > counted.stored, "what is stored is not asked for again");
        }
        if !self.session.is_closed() {
            assert!(self.session.poll_deadline().is_some(), "a session that lives has a deadline");
        }
    }

    /// The broker says nothing any more: the session ends by itself.
    fn end(mut self) {
        for _ in 0..16 {
            let Some(deadline) = self.session.poll_deadline() else { break };
            self.now = Millis(self.now.0.max(deadline.0));
            let _ = self.session.handle_deadline(self.now);
            while self.session.poll_transmit(self.now, &mut BytesMut::new(), 1 << 20) {}
        }
        assert!(self.session.is_closed(), "a session without a broker ends");
        assert_eq!(self.session.handle_frame(self.now, Frame::Heartbeat, 1), Ok(None));
        assert!(!self.session.publish_room().admits(0), "no room at the end");
    }
}
