//! What an entry that was read a while ago is shown as now: as it is, or as a head, since it was recalled, has expired or
//! was erased meanwhile.

use longwire_protocol::packet::HeadReason;
use longwire_protocol::{ConversationId, Seq};

use crate::mutation::Mutation;
use crate::routing::alteration::{author, withheld};
use crate::routing::items::{head_item, item_for};
use crate::routing::outbox::Session;
use crate::routing::reads::{Miss, Reads};
use crate::routing::rows::MoreOfConversation;
use crate::routing::stream::Ready;
use crate::routing::view::{Reader, Rows as _};
use crate::store::PageLimit;

/// What is withheld of the conversation that was looked at last: looked up again with each step, since a message may be
/// recalled while it waits to be handed out.
#[derive(Default)]
pub(super) struct Gone {
    conversation: ConversationId,
    span: MoreOfConversation,
    /// Somebody is being erased.
    has_erased: bool,
}

/// What becomes of an entry that was read.
pub(super) enum Judged {
    Shown,
    Withheld(HeadReason),
    /// An erasure was done since it was read.
    Stale,
}

impl Gone {
    /// Judges an entry that was read after so many erasures.
    pub(super) fn judge(
        &mut self,
        reads: Reads<'_>,
        forgotten: u64,
        (id, seq): (ConversationId, Seq),
        item: &[u8],
    ) -> Result<Judged, Miss> {
        let is_stale = |rows: &Reader<'_>| rows.state().forgotten() != forgotten && !Mutation::ErasedKept.is_planted();
        if self.conversation != id {
            let known = reads.rows(|rows| {
                let span = rows.conversation(id).map(|row| row.more).unwrap_or_default();
                (!is_stale(rows)).then_some((span, !rows.erased().is_empty()))
            })?;
            let Some((span, has_erased)) = known else { return Ok(Judged::Stale) };
            *self = Self { conversation: id, span, has_erased };
        }
        if !self.span.may_be_withheld(seq) && !self.has_erased {
            return Ok(Judged::Shown);
        }
        reads.rows(|rows| {
            if is_stale(rows) {
                return Judged::Stale;
            }
            let conversation = rows.conversation(id);
            let reason = conversation.and_then(|row| withheld(rows, row, id, seq, reads.now, || author(item)));
            reason.map_or(Judged::Shown, Judged::Withheld)
        })
    }
}

/// Makes items that were found a while ago, after so many erasures, what they are to be shown as now.
///
/// # Errors
/// See [`Miss`]; it can be tried again.
pub fn shown_now(reads: Reads<'_>, session: &Session, forgotten: u64, found: &mut [Ready]) -> Result<(), Miss> {
    let one = PageLimit { entries: 1, bytes: usize::MAX };
    let mut gone = Gone::default();
    for ready in found.iter_mut().filter(|ready| ready.place.conversation.is_some()) {
        let (id, seq) = (ready.place.conversation, ready.place.seq);
        let mut forgotten = forgotten;
        loop {
            match gone.judge(reads, forgotten, (id, seq), &ready.item)? {
                Judged::Shown => break,
                Judged::Withheld(reason) => {
                    ready.item = head_item(id, seq, seq, reason, 0);
                    break;
                }
                Judged::Stale => {
                    forgotten = reads.forgotten()?;
                    ready.item = match reads.range(id, seq, seq, false, one)?.pop() {
                        Some(entry) => item_for(&session.outbox.lock(), session, &entry),
                        None => head_item(id, seq, seq, HeadReason::Expired, 0),
                    };
                }
            }
        }
    }
    Ok(())
}
