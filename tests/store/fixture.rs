//! A store of format 1, written once and kept in `tests/fixtures/store-v1`: every later version opens it and answers from
//! it.
//!
//! A new format gets a new fixture beside the old ones: `cargo test --test store -- --ignored` writes one into the
//! folder that LONGWIRE_FIXTURE names.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::BufMut;
use longwire::store::{
    EntryMeta, Frame, FrameBuilder, Log, Origin, PageLimit, Position, RedbLog, StateDelta, StoreOptions, check,
};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};

use crate::pages::{packed, unpacked};

const FILES: [&str; 4] = ["journal.redb", "state.redb", "runs/1.redb", "runs/2.redb"];
const BIRTH: u64 = 1_763_700_000_000;
const FRAMES: u64 = 30;

fn options() -> StoreOptions {
    StoreOptions { birth_unix_ms: BIRTH, seal_entries: 24, ..StoreOptions::default() }
}

/// Frame `number` of the fixture, from 1: entry `number` of each of two conversations, a change, and a rider.
fn frame(log: &RedbLog, number: u64) -> Frame {
    let segment = log.segments().last().expect("a log has a segment").id;
    let mut builder = FrameBuilder::new(segment, Position(log.tail().0 + 1), LogTime(number * 1_000));
    for conversation in [4_097, 8_192 + number % 3] {
        let seq = if conversation == 4_097 { number } else { number.div_ceil(3) };
        let origin = Origin { device: DeviceId(7), incarnation: Incarnation(2), message_id: MessageId(number) };
        let meta = EntryMeta {
            conversation: ConversationId(conversation),
            seq: Seq(seq),
            countable: seq,
            origin,
            first_unanswered: MessageId(number - 1),
            digest: number << 40 | conversation,
            source: Position(number - 1),
        };
        builder.push_entry(&meta, |b| b.put_slice(item(conversation, seq).as_bytes()));
    }
    builder.push_change(|b| b.put_u64(number));
    builder.push_rider(|b| b.put_slice(b"rider"));
    builder.finish()
}

fn item(conversation: u64, seq: u64) -> String {
    format!("entry {seq} of conversation {conversation}")
}

struct Row(u64);

impl StateDelta for Row {
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        row(b"\0\x01frames", Some(&self.0.to_be_bytes()));
        row(b"\0\x01gone", None);
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-v1")
}

#[test]
fn a_store_of_format_1_opens_and_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("runs")).expect("is made");
    for name in FILES {
        let packed = fs::read(fixture().join(format!("{name}.pages"))).expect("the fixture is there");
        fs::write(folder.path().join(name), unpacked(&packed)).expect("is written");
    }
    let report = check(folder.path(), &mut ()).expect("can be checked");
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!((report.format, report.runs, report.tail), (1, 2, FRAMES * 3));

    let mut log = RedbLog::open(folder.path(), options()).expect("opens");
    assert_eq!((log.birth_unix_ms(), log.tail(), log.tail_time()), (BIRTH, Position(90), LogTime(30_000)));
    assert_eq!(log.segments().len(), 2, "that of the fixture and that of this start");
    let mut rows = Vec::new();
    log.saved().each(&[], &mut |key, value| rows.push((key.to_vec(), value.to_vec()))).expect("reads");
    let applied = log.applied().expect("reads");
    assert_eq!(applied, Position(72));
    assert_eq!(rows, [(b"\0\x01frames".to_vec(), 24_u64.to_be_bytes().to_vec())]);
    let mut followed = Vec::new();
    log.follow(applied, &mut |frame| followed.push(frame.first.0)).expect("follows");
    assert_eq!(followed, [73, 76, 79, 82, 85, 88]);
    let page = PageLimit { entries: 100, bytes: 1 << 20 };
    for (conversation, length) in [(4_097, 30), (8_192, 10), (8_193, 10), (8_194, 10)] {
        let id = ConversationId(conversation);
        let entries = log.history().range(id, Seq(1), Seq(1_000), false, page).expect("reads");
        assert_eq!(entries.len(), length, "conversation {conversation}");
        for (entry, seq) in entries.iter().zip(1..) {
            assert_eq!((entry.conversation, entry.seq, entry.countable), (id, Seq(seq), seq));
            assert_eq!(entry.item, item(conversation, seq).as_bytes());
            let number = entry.origin.message_id.0;
            assert_eq!(entry.origin.incarnation, Incarnation(2));
            assert_eq!((entry.time, entry.source), (LogTime(number * 1_000), Position(number - 1)));
            assert_eq!(entry.digest, number << 40 | conversation);
        }
    }
    let next = frame(&log, FRAMES + 1);
    log.append(&next).expect("goes on");
    Box::new(log).close().expect("closes");
}

#[test]
#[ignore = "writes a fixture, once for each format"]
fn write_a_fixture() {
    let target = PathBuf::from(std::env::var("LONGWIRE_FIXTURE").expect("LONGWIRE_FIXTURE names a folder"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut log = RedbLog::open(folder.path(), options()).expect("opens");
    for number in 1..=FRAMES {
        let next = frame(&log, number);
        log.append(&next).expect("appends");
        if log.is_seal_due() {
            log.seal(Box::new(Row(number)));
            let began = Instant::now();
            while log.unsaved_seals() > 0 {
                assert!(began.elapsed() < Duration::from_secs(60), "the background thread is done");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    Box::new(log).close().expect("closes");
    fs::create_dir_all(target.join("runs")).expect("is made");
    for name in FILES {
        let bytes = fs::read(folder.path().join(name)).expect("is there");
        let packed = packed(&bytes);
        assert_eq!(unpacked(&packed), bytes);
        fs::write(target.join(format!("{name}.pages")), packed).expect("is written");
    }
}
