//! The broker's half of one lane: what was given to be sent, what has left, what is acked.
//!
//! ```text
//!   1 ......... acked | acked+1 ..... left | left+1 ..... given
//!      stored by the  |  on the wire, or   |  encoded, waiting
//!      client         |  in the client     |  to leave
//! ```
//! Invariant: `acked <= left <= given`, and `in_flight` holds exactly the numbers above `acked` up to `given`.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Millis, Room, queue::Queue};
use crate::{
    packet::{Lane, Window},
    varint,
};

/// Tags of `Packet.deliver`, and of `Deliver`'s fields: number and wire type.
const TAG_DELIVER: u8 = 4 << 3 | 2;
const TAG_LANE: u8 = 1 << 3;
const TAG_N: u8 = 2 << 3;
const TAG_ITEM: u8 = 3 << 3 | 2;

#[derive(Debug)]
pub(super) struct LaneOut<P> {
    window: Window,
    /// Everything given and not acked, oldest first.
    in_flight: Queue<InFlight<P>>,
    /// What waits to leave, ascending by number.
    waiting: Queue<(u64, Bytes)>,
    /// The newest number given.
    given: u64,
    /// The newest number that has left.
    left: u64,
    /// The bytes of `in_flight`.
    bytes: u32,
}

#[derive(Clone, Copy, Debug)]
struct InFlight<P> {
    place: P,
    bytes: u32,
    /// Seconds; when it was given, or given again.
    since_s: u32,
    resent: bool,
}

impl<P: Copy> LaneOut<P> {
    pub(super) const fn new() -> Self {
        Self {
            window: Window { items: 0, bytes: 0 },
            in_flight: Queue::new(),
            waiting: Queue::new(),
            given: 0,
            left: 0,
            bytes: 0,
        }
    }

    pub(super) const fn window(&self) -> Window {
        self.window
    }

    pub(super) const fn set_window(&mut self, window: Window) {
        self.window = window;
    }

    pub(super) fn room(&self) -> Room {
        Room::new(self.window, self.in_flight.len() as u32, self.bytes)
    }

    pub(super) fn acked(&self) -> u64 {
        self.given - self.in_flight.len() as u64
    }

    pub(super) const fn left(&self) -> u64 {
        self.left
    }

    pub(super) const fn bytes(&self) -> u32 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When the oldest unacked item was given.
    pub(super) fn oldest(&self) -> Option<Millis> {
        self.in_flight.front().map(|item| Millis(u64::from(item.since_s) * 1000))
    }

    pub(super) const fn given(&self) -> u64 {
        self.given
    }

    /// Whether nothing up to `n` waits to leave.
    pub(super) fn is_past(&self, n: u64) -> bool {
        self.waiting.front().is_none_or(|(waiting, _)| *waiting > n)
    }

    pub(super) fn give(&mut self, now: Millis, place: P, item: Bytes) {
        assert!(self.room().admits(item.len()), "an item was delivered where the window has no room");
        self.given += 1;
        self.bytes += item.len() as u32;
        self.in_flight.push_back(InFlight { place, bytes: item.len() as u32, since_s: seconds(now), resent: false });
        self.waiting.push_back((self.given, item));
    }

    /// Puts an item on the wire once more, with its old number; nothing if it was acked meanwhile.
    pub(super) fn give_again(&mut self, now: Millis, n: u64, item: &Bytes) {
        assert!(n <= self.left, "an item was resent that has not been sent");
        let acked = self.acked();
        if n <= acked {
            return;
        }
        let in_flight = &mut self.in_flight.get_mut()[(n - acked - 1) as usize];
        self.bytes = self.bytes - in_flight.bytes + item.len() as u32;
        *in_flight = InFlight { bytes: item.len() as u32, since_s: seconds(now), resent: true, ..*in_flight };
        let waiting = self.waiting.get_mut();
        let at = waiting.partition_point(|(waiting, _)| *waiting < n);
        waiting.insert(at, (n, item.clone()));
    }

    /// Takes an ack of everything up to `n`, which has left; gives the place of `n` if it is news.
    pub(super) fn ack(&mut self, n: u64) -> Option<P> {
        debug_assert!(n <= self.left);
        let acked = self.acked();
        let mut newest = None;
        for _ in acked..n {
            let item = self.in_flight.pop_front()?;
            self.bytes -= item.bytes;
            newest = Some(item.place);
        }
        while self.waiting.front().is_some_and(|(waiting, _)| *waiting <= n) {
            self.waiting.pop_front();
        }
        newest
    }

    /// What is missing of the numbers up to `asked`, after the answer was taken: the first number and the places of
    /// those and of all behind them that have left, because a client that misses one drops what follows in the lane.
    pub(super) fn missing(&self, asked: u64) -> Option<(u64, Vec<P>)> {
        let acked = self.acked();
        let places = || self.in_flight.iter().take((self.left - acked) as usize).map(|item| item.place);
        (acked < asked).then(|| (acked + 1, places().collect()))
    }

    /// Whether something up to `asked` was sent twice and is missing still, after the answer was taken.
    pub(super) fn is_lost(&self, asked: u64) -> bool {
        let missing = asked.saturating_sub(self.acked());
        self.in_flight.iter().take(missing as usize).any(|item| item.resent)
    }

    /// Writes one `Deliver` with as many of the items that wait, in a run of numbers, as fit `bytes_max` (at least
    /// one); says whether there was any.
    pub(super) fn write(&mut self, lane: Lane, bytes_max: usize, out: &mut BytesMut) -> bool {
        let Some((first_n, _)) = self.waiting.front() else { return false };
        let first_n = *first_n;
        let fixed = 1 + varint::len(first_n) + if lane == Lane::Express { 0 } else { 2 };
        let mut body = fixed;
        let mut count = 0;
        for (index, (n, item)) in self.waiting.iter().enumerate() {
            let more = 1 + varint::len(item.len() as u64) + item.len();
            if *n != first_n + index as u64 || count > 0 && frame_len(body + more) > bytes_max {
                break;
            }
            body += more;
            count += 1;
        }
        out.reserve(frame_len(body));
        varint::write((1 + varint::len(body as u64) + body) as u64, out);
        out.put_u8(TAG_DELIVER);
        varint::write(body as u64, out);
        if lane != Lane::Express {
            out.put_u8(TAG_LANE);
            out.put_u8(lane as u8);
        }
        out.put_u8(TAG_N);
        varint::write(first_n, out);
        for (_, item) in self.waiting.get_mut().drain(..count) {
            out.put_u8(TAG_ITEM);
            varint::write(item.len() as u64, out);
            out.extend_from_slice(&item);
        }
        self.left = self.left.max(first_n + count as u64 - 1);
        true
    }

    /// The length of the frame that the next item would make on its own.
    pub(super) fn next_len(&self, lane: Lane) -> Option<usize> {
        let (n, item) = self.waiting.front()?;
        let fixed = 1 + varint::len(*n) + if lane == Lane::Express { 0 } else { 2 };
        Some(frame_len(fixed + 1 + varint::len(item.len() as u64) + item.len()))
    }

    /// Drops what waits to leave.
    pub(super) fn clear(&mut self) {
        self.waiting = Queue::new();
    }

    /// Gives back memory that nothing uses.
    pub(super) fn shrink(&mut self) {
        self.in_flight.shrink();
        self.waiting.shrink();
    }
}

/// The length of a frame around the body of a `Deliver`.
const fn frame_len(body: usize) -> usize {
    let packet = 1 + varint::len(body as u64) + body;
    varint::len(packet as u64) + packet
}

fn seconds(now: Millis) -> u32 {
    // Rounded up, so that nothing is overdue too early.
    now.0.div_ceil(1000) as u32
}
