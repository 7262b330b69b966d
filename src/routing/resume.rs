//! Where a session starts: the client's own cursor, the stored one, or the tail; and what is said when a cursor cannot
//! be resumed. Never by luck: a cursor is good only for a segment of this log, up to that segment's end.

use longwire_protocol::LogTime;
use longwire_protocol::packet::{CatchUpMode, Connected, CursorVerdict, ResetReason, StartKind};
use longwire_protocol::reason::{Reason, Refusal};

use super::catch_up::Plan;
use super::limits::CATCH_UP_CONVERSATIONS_MAX;
use super::outbox::Attached;
use super::rows::DeviceCursor;
use super::stream::{News, Turn};
use super::view::Reader;
use crate::mutation::Mutation;
use crate::store::{Position, Segment, SegmentId};

/// The first byte of a cursor.
const VERSION: u8 = 1;

/// The bytes of a cursor: opaque to the client.
#[must_use]
pub fn encode(cursor: &DeviceCursor) -> Vec<u8> {
    let body = (cursor.segment.0, cursor.express.0, cursor.bulk.0);
    postcard::to_extend(&body, vec![VERSION]).expect("three numbers can be encoded")
}

pub(crate) fn decode(bytes: &[u8]) -> Option<DeviceCursor> {
    let (&VERSION, body) = bytes.split_first()? else { return None };
    let ((segment, express, bulk), rest) = postcard::take_from_bytes(body).ok()?;
    let cursor = DeviceCursor { segment: SegmentId(segment), express: Position(express), bulk: Position(bulk) };
    rest.is_empty().then_some(cursor)
}

/// What a client asks for in `Connect`.
#[derive(Debug)]
pub struct Wish {
    /// Which cursor.
    pub start: StartKind,
    /// Its own.
    pub cursor: bytes::Bytes,
    /// Everything, or heads.
    pub catch_up: CatchUpMode,
}

/// Decides where an attached session starts, and says so in `connected`.
///
/// # Errors
/// When everything is asked for and too many conversations have news.
pub fn resume(
    rows: &Reader<'_>,
    segments: &[Segment],
    attached: &Attached,
    wish: &Wish,
    connected: &mut Connected,
) -> Result<DeviceCursor, Refusal> {
    let state = rows.state();
    let current = segments.last().map_or(SegmentId(0), |segment| segment.id);
    let tail = DeviceCursor { segment: current, express: state.tail, bulk: state.tail };
    let mut reset = |reason: ResetReason, common: LogTime| {
        connected.set_cursor(CursorVerdict::Reset);
        connected.set_reset_reason(reason);
        connected.reset_common_time = common.0;
        Ok(tail)
    };
    let cursor = match wish.start {
        StartKind::Fresh => return reset(ResetReason::Asked, LogTime(0)),
        StartKind::StoredCursor => match attached.cursor {
            Some(cursor) => cursor,
            None => return reset(ResetReason::Asked, LogTime(0)),
        },
        StartKind::OwnCursor => match decode(&wish.cursor) {
            Some(cursor) => cursor,
            None => return reset(ResetReason::Unreadable, LogTime(0)),
        },
    };
    let Some(at) = segments.iter().position(|segment| segment.id == cursor.segment) else {
        return reset(ResetReason::ForeignSegment, LogTime(0));
    };
    let (end, end_time) = match segments.get(at + 1) {
        Some(next) => (Position(next.first.0 - 1), next.time),
        None => (state.tail, state.time),
    };
    if (cursor.express > end || cursor.bulk > end) && !Mutation::ResumedByLuck.is_planted() {
        return reset(ResetReason::BeyondTail, end_time);
    }
    let everything = Turn { news: News::Any, marks: false, target: None };
    let news: usize = [(cursor.express, true), (cursor.bulk, false)]
        .map(|(sent, is_express)| {
            Plan::new(rows, &attached.session, &everything, sent, is_express, false).conversations()
        })
        .into_iter()
        .sum();
    if news > CATCH_UP_CONVERSATIONS_MAX {
        if wish.catch_up == CatchUpMode::All {
            let refusal = Refusal::connection(Reason::TooManyConversations);
            return Err(
                refusal.because(format!("{news} conversations have news, {CATCH_UP_CONVERSATIONS_MAX} are the most"))
            );
        }
        return reset(ResetReason::TooManyConversations, LogTime(0));
    }
    connected.set_cursor(CursorVerdict::Resumed);
    Ok(cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_no_other_bytes_do() {
        let cursor = DeviceCursor { segment: SegmentId(u64::MAX), express: Position(7), bulk: Position(1 << 40) };
        let bytes = encode(&cursor);
        assert!(bytes.len() <= 24, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes), Some(cursor));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes[..end]), None);
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(decode(b"\x02abc"), None);
    }
}
