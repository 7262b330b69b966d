//! A stand-in for routing: it gives seqs, folds frames into rows of state, and remembers every frame, so that a log can
//! be compared with what must be in it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};

use crate::store::{
    EntryMeta, Frame, FrameBuilder, History, Log, Origin, PageLimit, Position, Record, StateDelta, StoredEntry,
};

/// A page that holds anything that a test stores.
pub(crate) const ALL: PageLimit = PageLimit { entries: usize::MAX, bytes: usize::MAX };

/// Rows of state and which of them changed since they were last saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fold {
    pub(crate) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    dirty: BTreeSet<Vec<u8>>,
}

impl Fold {
    /// Folds a frame: deterministic, from records alone. A change "-x" removes the row of x.
    pub(crate) fn apply(&mut self, frame: &Frame) {
        for record in &frame.records {
            match record {
                Record::Entry(entry) => self.set(head_key(entry.conversation), entry.seq.0.to_be_bytes().to_vec()),
                Record::Change(change) => match change.body.split_first() {
                    Some((b'-', name)) => {
                        let key = named_key(b'c', name);
                        self.rows.remove(&key);
                        self.dirty.insert(key);
                    }
                    _ => self.set(named_key(b'c', &change.body), change.position.0.to_be_bytes().to_vec()),
                },
                Record::Rider(change) => self.set(named_key(b'r', &change.body[..1]), change.body.to_vec()),
            }
        }
    }

    /// What changed since the last time, for sealing.
    pub(crate) fn take_delta(&mut self) -> Box<dyn StateDelta> {
        let rows = std::mem::take(&mut self.dirty).into_iter().map(|key| {
            let value = self.rows.get(&key).cloned();
            (key, value)
        });
        Box::new(Delta(rows.collect()))
    }

    /// What a start rebuilds: the saved rows, and the frames after them.
    pub(crate) fn recovered(log: &dyn Log) -> Self {
        let mut fold = Self::default();
        let saved = log.saved().each(&[], &mut |key, value| {
            fold.rows.insert(key.to_vec(), value.to_vec());
        });
        saved.expect("the state can be read");
        let applied = log.applied().expect("the state can be read");
        let mut next = applied.0 + 1;
        log.follow(applied, &mut |frame| {
            assert_eq!(frame.first.0, next, "frames follow without holes");
            next = frame.last().0 + 1;
            fold.apply(&frame);
        })
        .expect("the journal continues the state");
        assert_eq!(next, log.tail().0 + 1, "frames reach up to the tail");
        fold
    }

    fn set(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.dirty.insert(key.clone());
        self.rows.insert(key, value);
    }
}

fn head_key(conversation: ConversationId) -> Vec<u8> {
    let partition = (conversation.0 % 4096) as u16;
    [&partition.to_be_bytes()[..], b"h", &conversation.0.to_be_bytes()].concat()
}

fn named_key(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[0, 0, kind], name].concat()
}

struct Delta(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl StateDelta for Delta {
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        self.0.iter().for_each(|(key, value)| row(key, value.as_deref()));
    }
}

/// An entry of seven bytes: its time is ten times its position, its place among messages its seq.
pub(crate) fn entry(conversation: u64, seq: u64, position: u64) -> StoredEntry {
    StoredEntry {
        conversation: ConversationId(conversation),
        seq: Seq(seq),
        position: Position(position),
        time: LogTime(position * 10),
        countable: seq,
        origin: Origin::default(),
        first_unanswered: MessageId(0),
        digest: position,
        source: Position(0),
        item: Bytes::from_static(b"an item"),
    }
}

/// Everything that was appended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) fold: Fold,
    pub(crate) entries: BTreeMap<ConversationId, Vec<StoredEntry>>,
    pub(crate) tail: Position,
    pub(crate) time: LogTime,
    pub(crate) floor: Position,
}

impl Model {
    /// Takes a frame in as appended.
    pub(crate) fn apply(&mut self, frame: &Frame) {
        self.fold.apply(frame);
        for entry in frame.entries() {
            self.entries.entry(entry.conversation).or_default().push(entry.clone());
        }
        self.tail = frame.last();
        self.time = frame.time;
    }

    /// The next seq of a conversation.
    pub(crate) fn next_seq(&self, conversation: ConversationId) -> Seq {
        Seq(self.entries.get(&conversation).map_or(0, Vec::len) as u64 + 1)
    }

    /// Begins the frame that comes next.
    pub(crate) fn next_frame(&self, log: &dyn Log) -> FrameBuilder {
        let segment = log.segments().last().expect("a log has a segment").id;
        FrameBuilder::new(segment, Position(self.tail.0 + 1), LogTime(self.time.0 + 1))
    }

    /// A frame of one entry for each of the conversations, each item of `size` bytes.
    pub(crate) fn frame_of(&self, log: &dyn Log, conversations: &[u64], size: usize) -> Frame {
        let mut builder = self.next_frame(log);
        self.push_entries(&mut builder, conversations, size);
        builder.finish()
    }

    /// Adds one entry for each of the conversations.
    pub(crate) fn push_entries(&self, builder: &mut FrameBuilder, conversations: &[u64], size: usize) {
        let mut seqs = BTreeMap::new();
        for &conversation in conversations {
            let conversation = ConversationId(conversation);
            let seq = *seqs
                .entry(conversation)
                .and_modify(|seq: &mut Seq| *seq = seq.next())
                .or_insert_with(|| self.next_seq(conversation));
            let meta = EntryMeta {
                conversation,
                seq,
                countable: seq.0 / 2,
                origin: Origin {
                    device: DeviceId(conversation.0 + 1),
                    incarnation: Incarnation(1),
                    message_id: MessageId(seq.0),
                },
                first_unanswered: MessageId(seq.0.saturating_sub(1)),
                digest: conversation.0 ^ seq.0 << 20,
                source: Position(0),
            };
            let byte = (conversation.0 * 31 + seq.0) as u8;
            builder.push_entry(&meta, |b| b.put_bytes(byte, size));
        }
    }

    /// Appends a frame, which has to succeed, and takes it in.
    pub(crate) fn append(&mut self, log: &mut dyn Log, frame: &Frame) {
        log.append(frame).expect("the frame is appended");
        self.apply(frame);
        assert_eq!(log.tail(), self.tail);
    }

    /// Seals the log if it asks for it.
    pub(crate) fn seal_if_due(&mut self, log: &mut dyn Log) -> bool {
        let is_due = log.is_seal_due();
        if is_due {
            log.seal(self.fold.take_delta());
        }
        is_due
    }

    /// Entries of a conversation that are above the floor.
    pub(crate) fn kept(&self, conversation: ConversationId) -> Vec<StoredEntry> {
        let all = self.entries.get(&conversation).into_iter().flatten();
        all.filter(|entry| entry.position >= self.floor).cloned().collect()
    }

    /// Holds the log against everything that must be in it, and nothing else.
    pub(crate) fn assert_matches(&self, log: &dyn Log) {
        assert_eq!(log.tail(), self.tail, "tail");
        assert_eq!(Fold::recovered(log).rows, self.fold.rows, "state");
        self.assert_history(&*log.history());
    }

    /// Holds the history against the entries that must be readable.
    pub(crate) fn assert_history(&self, history: &dyn History) {
        for &conversation in self.entries.keys() {
            let kept = self.kept(conversation);
            let forwards = history.range(conversation, Seq(1), Seq(u64::MAX - 1), false, ALL).expect("can be read");
            assert_eq!(forwards, kept, "conversation {conversation}");
            let mut backwards = history.range(conversation, Seq(1), Seq(u64::MAX - 1), true, ALL).expect("can be read");
            backwards.reverse();
            assert_eq!(backwards, kept, "conversation {conversation} backwards");
        }
    }
}
