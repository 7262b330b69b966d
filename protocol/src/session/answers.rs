//! What the broker owes: acks, refusals, responses, in the order in which they became due. They leave before everything
//! else, and say as they leave what that frees.

use bytes::{Bytes, BytesMut};

use super::queue::Queue;
use crate::{
    frame,
    packet::{self, packet::Kind},
    varint,
};

/// Answers that wait to leave.
#[derive(Debug)]
pub(super) struct Answers {
    waiting: Queue<Answer>,
}

#[derive(Debug)]
enum Answer {
    /// Kept as it is until it leaves: it is the hot one, and takes no allocation so.
    Ack(packet::PublishAck),
    /// A whole frame.
    Frame { frame: Bytes, frees: Frees },
}

/// What an answer frees as it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frees {
    Nothing,
    /// The room of this message id.
    Publish(u64),
    /// The room of a request.
    Request,
}

impl Answers {
    pub(super) const fn new() -> Self {
        Self { waiting: Queue::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push_ack(&mut self, ack: packet::PublishAck) {
        self.waiting.push_back(Answer::Ack(ack));
    }

    pub(super) fn push(&mut self, kind: &Kind, frees: Frees) {
        let mut frame = BytesMut::with_capacity(frame::encoded_len(kind));
        frame::encode(kind, &mut frame);
        self.waiting.push_back(Answer::Frame { frame: frame.freeze(), frees });
    }

    /// A page of history, of items that are encoded already.
    pub(super) fn push_history(&mut self, id: u64, items: &[Bytes], next_seq: u64, head_seq: u64) {
        let frame = history_frame(id, items, next_seq, head_seq);
        self.waiting.push_back(Answer::Frame { frame, frees: Frees::Request });
    }

    /// The length of the frame that leaves next; for an ack, no less than that.
    pub(super) fn next_len(&self) -> Option<usize> {
        self.waiting.front().map(|answer| match answer {
            Answer::Ack(_) => ACK_FRAME_BYTES_MAX,
            Answer::Frame { frame, .. } => frame.len(),
        })
    }

    /// Writes the next one; says what that frees.
    pub(super) fn write(&mut self, out: &mut BytesMut) -> Frees {
        match self.waiting.pop_front() {
            Some(Answer::Ack(ack)) => {
                frame::encode(&Kind::PublishAck(ack), out);
                Frees::Publish(ack.message_id)
            }
            Some(Answer::Frame { frame, frees }) => {
                out.extend_from_slice(&frame);
                frees
            }
            None => Frees::Nothing,
        }
    }

    /// Gives back memory that nothing uses.
    pub(super) fn shrink(&mut self) {
        self.waiting.shrink();
    }
}

/// Four numbers of at most ten bytes with a tag each, and what stands around them.
pub(super) const ACK_FRAME_BYTES_MAX: usize = 48;

/// `Packet { response: Response { id, history: HistoryPage { items, next_seq, head_seq } } }`, from encoded items.
fn history_frame(id: u64, items: &[Bytes], next_seq: u64, head_seq: u64) -> Bytes {
    const TAG_RESPONSE: u64 = 9 << 3 | 2;
    const TAG_ID: u64 = 1 << 3;
    const TAG_HISTORY: u64 = 2 << 3 | 2;
    const TAG_ITEM: u64 = 1 << 3 | 2;
    const TAG_NEXT: u64 = 2 << 3;
    const TAG_HEAD: u64 = 3 << 3;
    let number = |value: u64| if value == 0 { 0 } else { 1 + varint::len(value) };
    let delimited = |len: usize| 1 + varint::len(len as u64) + len;
    let page = items.iter().map(|item| delimited(item.len())).sum::<usize>() + number(next_seq) + number(head_seq);
    let response = number(id) + delimited(page);
    let packet = delimited(response);
    let mut out = BytesMut::with_capacity(varint::len(packet as u64) + packet);
    for value in [packet as u64, TAG_RESPONSE, response as u64, TAG_ID, id, TAG_HISTORY, page as u64] {
        varint::write(value, &mut out);
    }
    for item in items {
        varint::write(TAG_ITEM, &mut out);
        varint::write(item.len() as u64, &mut out);
        out.extend_from_slice(item);
    }
    for (tag, value) in [(TAG_NEXT, next_seq), (TAG_HEAD, head_seq)] {
        if value != 0 {
            varint::write(tag, &mut out);
            varint::write(value, &mut out);
        }
    }
    out.freeze()
}
