//! Readers on threads of their own, while frames are appended and the background thread turns memtables into runs under
//! them: what is acknowledged can be read at every moment, whole and once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BufMut;
use longwire::store::{
    EntryMeta, FrameBuilder, History, Log, PageLimit, Position, Pressure, RedbLog, StateDelta, StoreOptions, check,
};
use longwire_protocol::{ConversationId, LogTime, Seq};

const CONVERSATIONS: u64 = 5;
const FRAMES: u64 = 1_500;

struct Nothing;

impl StateDelta for Nothing {
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        row(b"\0\0nothing", None);
    }
}

#[test]
fn readers_see_all_that_is_acknowledged_while_it_moves_into_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = StoreOptions { seal_entries: 100, pause: Duration::ZERO, ..StoreOptions::default() };
    let mut log = RedbLog::open(folder.path(), options).expect("opens");
    let acknowledged = Arc::new(AtomicU64::new(0));
    let is_done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|seed| {
            let (history, acknowledged, is_done) = (log.history(), Arc::clone(&acknowledged), Arc::clone(&is_done));
            std::thread::spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut reads = 0_u64;
                while !is_done.load(Ordering::Acquire) {
                    read_something(&*history, acknowledged.load(Ordering::Acquire), &mut rng);
                    reads += 1;
                }
                reads
            })
        })
        .collect();

    let segment = log.segments().last().expect("a log has a segment").id;
    for number in 1..=FRAMES {
        let mut frame = FrameBuilder::new(segment, Position(log.tail().0 + 1), LogTime(number));
        for conversation in 1..=CONVERSATIONS {
            let conversation = ConversationId(conversation);
            let meta = EntryMeta { conversation, seq: Seq(number), countable: number, ..EntryMeta::default() };
            frame.push_entry(&meta, |b| b.put_u64(number));
        }
        while log.pressure() == Pressure::Full {
            std::thread::sleep(Duration::from_millis(1));
        }
        log.append(&frame.finish()).expect("appends");
        acknowledged.store(number, Ordering::Release);
        if log.is_seal_due() {
            log.seal(Box::new(Nothing));
        }
    }
    is_done.store(true, Ordering::Release);
    for reader in readers {
        assert!(reader.join().expect("a reader found nothing wrong") > 0);
    }
    assert!(log.written().runs > 0, "there were runs");
    Box::new(log).close().expect("closes");
    let report = check(folder.path(), &mut ()).expect("can be checked");
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(report.run_entries + report.journal_entries, FRAMES * CONVERSATIONS);
}

fn read_something(history: &dyn History, acknowledged: u64, rng: &mut fastrand::Rng) {
    let conversation = ConversationId(rng.u64(1..=CONVERSATIONS));
    let from = rng.u64(1..=acknowledged + 1);
    let to = from + rng.u64(0..200);
    let page = PageLimit { entries: 100, bytes: 1 << 20 };
    let is_backwards = rng.bool();
    let entries = history.range(conversation, Seq(from), Seq(to), is_backwards, page).expect("reads");
    let expected = to.min(acknowledged).saturating_sub(from.saturating_sub(1)).min(100);
    assert!(entries.len() as u64 >= expected, "{} of {expected} from {from} to {to}", entries.len());
    for (index, entry) in (0_u64..).zip(&entries) {
        let expected = if is_backwards { entries[0].seq.0 - index } else { from + index };
        assert_eq!(entry.seq, Seq(expected));
        assert_eq!(entry.item, &expected.to_be_bytes()[..]);
    }
    // Frame n has the positions (n - 1) * 5 + 1 to n * 5, one for each conversation.
    let position = Position(rng.u64(0..=acknowledged * CONVERSATIONS));
    let expected = (position.0 + CONVERSATIONS - conversation.0) / CONVERSATIONS + 1;
    let found = history.first_after(conversation, position).expect("reads");
    if expected <= acknowledged {
        assert_eq!(found, Some(Seq(expected)), "first after {position:?} in {conversation}");
    }
}
