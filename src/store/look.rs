//! Looking whether a run holds anything that is to go, before it is written anew without it: most runs hold nothing, and
//! are not touched. Only the conversations are looked at of which the sieve says that something may go.

use std::sync::Arc;

use longwire_protocol::ConversationId;

use super::merge::MergeError;
use super::run::{Rows, Run};
use super::sieve::{Left, Sieve};
use super::{Position, ReadError};

/// A look under way.
pub(super) struct Look {
    run: Arc<Run>,
    sieve: Arc<dyn Sieve>,
    stands_at: Position,
    /// The conversations to look at, ascending; all of them where nothing is said.
    among: Option<Vec<ConversationId>>,
    rows: Rows,
}

impl Look {
    /// Begins to look at a run.
    pub(super) fn begin(run: &Arc<Run>, sieve: Arc<dyn Sieve>) -> Result<Self, MergeError> {
        // In this order: what is to go from there on is not looked for.
        let stands_at = sieve.stands_at();
        let among = sieve.among();
        let rows = rows_from(run, ConversationId(0))?;
        Ok(Self { run: Arc::clone(run), sieve, stands_at, among, rows })
    }

    /// The run that is looked at.
    pub(super) fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Where the state stood that it goes by.
    pub(super) fn stands_at(&self) -> Position {
        self.stands_at
    }

    /// Looks at so many rows; returns whether something is to go, or nothing while that is not known.
    pub(super) fn step(&mut self, rows: usize) -> Result<Option<bool>, MergeError> {
        for _ in 0..rows {
            let row = self.rows.next().transpose().map_err(|error| unreadable(&self.run, error))?;
            let Some(row) = row else { return Ok(Some(false)) };
            let Some(id) = row.first().map(|entry| entry.conversation) else { continue };
            let next = match self.next_from(id) {
                Some(next) if next == id => match self.sieve.left(&row)? {
                    Left::ToGo => return Ok(Some(true)),
                    Left::Gone => continue,
                    Left::Kept => self.next_from(ConversationId(id.0 + 1)),
                },
                next => next,
            };
            match next {
                // What comes next comes anyway.
                Some(_) if self.among.is_none() => {}
                Some(next) => self.rows = rows_from(&self.run, next)?,
                None => return Ok(Some(false)),
            }
        }
        Ok(None)
    }

    /// The first conversation to look at that is not below this one.
    fn next_from(&self, id: ConversationId) -> Option<ConversationId> {
        match &self.among {
            None => Some(id),
            Some(among) => among.get(among.partition_point(|known| *known < id)).copied(),
        }
    }
}

fn rows_from(run: &Arc<Run>, conversation: ConversationId) -> Result<Rows, MergeError> {
    run.rows_from(conversation).map_err(|error| unreadable(run, error))
}

fn unreadable(run: &Run, error: ReadError) -> MergeError {
    MergeError { error, unreadable: vec![run.row().number] }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Mutex, PoisonError};

    use bytes::Bytes;
    use longwire_protocol::Seq;

    use super::super::options::StoreOptions;
    use super::super::redb_log::RedbLog;
    use super::super::testing::model::ALL;
    use super::super::testing::{Model, SimDisk};
    use super::super::{Log as _, StoredEntry};
    use super::*;

    const BLANK: &[u8] = b"gone";

    /// From which seq on each conversation is kept; the others are kept whole.
    #[derive(Default)]
    struct Keeps {
        from: Mutex<BTreeMap<u64, u64>>,
        stands_at: Mutex<Position>,
    }

    impl Keeps {
        fn let_go(&self, conversation: u64, below: u64, stands_at: Position) {
            self.from.lock().unwrap_or_else(PoisonError::into_inner).insert(conversation, below);
            *self.stands_at.lock().unwrap_or_else(PoisonError::into_inner) = stands_at;
        }

        fn goes(&self, entry: &StoredEntry) -> bool {
            let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
            from.get(&entry.conversation.0).is_some_and(|from| entry.seq.0 < *from)
        }
    }

    impl Sieve for Keeps {
        fn stands_at(&self) -> Position {
            *self.stands_at.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn is_idle(&self, is_thorough: bool) -> bool {
            !is_thorough
        }

        fn sift(&self, entries: &mut [StoredEntry], _: bool) -> Result<usize, ReadError> {
            let gone = entries.iter().take_while(|entry| self.goes(entry)).count();
            entries[..gone].iter_mut().for_each(|entry| entry.item = Bytes::from_static(BLANK));
            Ok(gone)
        }

        fn among(&self) -> Option<Vec<ConversationId>> {
            let from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
            Some(from.keys().map(|id| ConversationId(*id)).collect())
        }

        fn left(&self, entries: &[StoredEntry]) -> Result<Left, ReadError> {
            if entries.iter().any(|entry| self.goes(entry) && entry.item[..] != *BLANK) {
                return Ok(Left::ToGo);
            }
            let is_gone = entries.last().is_some_and(|entry| self.goes(entry));
            Ok(if is_gone { Left::Gone } else { Left::Kept })
        }
    }

    /// Asks for a purge and does what the broker does until it is done; gives the bytes of runs that it wrote.
    fn purge(log: &mut RedbLog, model: &mut Model, upto: Position) -> u64 {
        let before = log.written().runs;
        while !log.purge(upto) {
            while log.work().expect("works") {}
            model.seal_if_due(log);
        }
        log.written().runs - before
    }

    /// Only the runs are written anew that hold something to go, and none is written twice for the same.
    #[test]
    fn a_purge_writes_what_has_to_go_and_nothing_else() {
        let disk = SimDisk::default();
        let options = StoreOptions { seal_entries: 400, ..StoreOptions::default() };
        let mut log = RedbLog::open_by_hand(Arc::new(disk.clone()), options).expect("opens");
        let (mut model, keeps) = (Model::default(), Arc::new(Keeps::default()));
        log.set_sieve(Arc::clone(&keeps) as Arc<dyn Sieve>);
        // Conversation 7 is in the first runs alone, 9 in the last ones, 1 and 20 in all.
        for frame in 0..600 {
            let some: &[u64] = if frame < 300 { &[1, 7, 20] } else { &[1, 9, 20] };
            let frame = model.frame_of(&log, some, 200);
            model.append(&mut log, &frame);
            model.seal_if_due(&mut log);
            while log.work().expect("works") {}
        }
        let runs = || disk.names().into_iter().filter(|name| name.starts_with("runs/")).collect::<BTreeSet<_>>();
        let before = runs();
        assert!(before.len() >= 3, "{before:?}");

        let kept = |log: &RedbLog, model: &Model| {
            let all = log.history().range(ConversationId(7), Seq(1), Seq(u64::MAX - 1), false, ALL);
            assert_eq!(all.expect("can be read"), model.entries[&ConversationId(7)]);
        };

        let more = |log: &mut RedbLog, model: &mut Model| {
            let frame = model.frame_of(log, &[1, 20], 200);
            model.append(log, &frame);
            model.tail
        };

        // Nothing went: nothing is written, whatever may go one day.
        keeps.let_go(7, 0, model.tail);
        keeps.let_go(9, 0, model.tail);
        purge(&mut log, &mut model, Position(500));
        assert!(runs().is_superset(&before), "the memtable is sealed, since the journal gets a new file: that is all");
        let before = runs();
        assert_eq!(purge(&mut log, &mut model, Position(501)), 0);
        assert_eq!(runs(), before);

        // The first of conversation 7 went: of all runs the first alone is another; the memtable becomes one, too.
        let upto = more(&mut log, &mut model);
        keeps.let_go(7, 10, upto);
        purge(&mut log, &mut model, upto);
        let after = runs();
        let (left, came) = (before.difference(&after).count(), after.difference(&before).count());
        assert_eq!((left, came), (1, 2), "{before:?} {after:?}");
        model.entries.get_mut(&ConversationId(7)).expect("it is there").drain(..9);
        kept(&log, &model);

        // Asked again, it writes nothing; and once more has come, that alone.
        assert_eq!(purge(&mut log, &mut model, upto), 0);
        let upto = more(&mut log, &mut model);
        keeps.let_go(7, 10, upto);
        purge(&mut log, &mut model, upto);
        let again = runs();
        assert!(again.is_superset(&after) && again.len() == after.len() + 1, "{after:?} {again:?}");
        assert_eq!(purge(&mut log, &mut model, Position(upto.0 - 1)), 0);
        assert_eq!(runs(), again);
        kept(&log, &model);
    }

    /// What was read of a run lately is held in memory, and whoever withheld what was in it forgets that after a purge.
    #[test]
    fn nothing_is_held_of_what_a_purge_took_away() {
        let mut log = RedbLog::open_by_hand(Arc::new(SimDisk::default()), StoreOptions::default()).expect("opens");
        let (mut model, keeps) = (Model::default(), Arc::new(Keeps::default()));
        log.set_sieve(Arc::clone(&keeps) as Arc<dyn Sieve>);
        for _ in 0..9 {
            let frame = model.frame_of(&log, &[1, 2], 10);
            model.append(&mut log, &frame);
        }
        log.seal(model.fold.take_delta());
        while log.work().expect("works") {}
        let history = log.history();
        let read = || history.range(ConversationId(1), Seq(1), Seq(9), true, ALL).expect("can be read");
        let held = || history.range_in_memory(ConversationId(1), Seq(1), Seq(9), true, ALL);
        assert_eq!(held(), None);
        let before = read();
        assert_eq!((held(), before.len()), (Some(before), 9));

        let upto = model.tail;
        keeps.let_go(1, 10, upto);
        purge(&mut log, &mut model, upto);
        assert_eq!(held(), None);
        assert_eq!((read(), held()), (Vec::new(), None));
    }

    /// What is moved of the journal is moved while publishes wait: so a purge waits until that is little, and for a broker
    /// that is never quiet no longer than some looks.
    #[test]
    fn a_purge_moves_little_of_the_journal_or_waits() {
        let disk = SimDisk::default();
        let options = StoreOptions { journal_file_bytes: 1 << 20, ..StoreOptions::default() };
        let mut log = RedbLog::open_by_hand(Arc::new(disk), options).expect("opens");
        let (mut model, keeps) = (Model::default(), Arc::new(Keeps::default()));
        log.set_sieve(Arc::clone(&keeps) as Arc<dyn Sieve>);
        let looks_until_done = |log: &mut RedbLog, model: &mut Model, bytes: usize| {
            let frame = model.frame_of(log, &[1, 2, 3], 1_000);
            model.append(log, &frame);
            let upto = model.tail;
            keeps.let_go(1, 0, upto);
            log.seal(model.fold.take_delta());
            let look = |log: &mut RedbLog| {
                let is_done = log.purge(upto);
                while log.work().expect("works") {}
                is_done
            };
            assert!(!look(log), "the runs go first");
            for _ in 0..bytes / 3_000 {
                let frame = model.frame_of(log, &[1, 2, 3], 1_000);
                model.append(log, &frame);
            }
            let looks = (1..100).find(|_| look(log)).expect("in the end");
            model.assert_matches(log);
            looks
        };
        assert_eq!(looks_until_done(&mut log, &mut model, 30_000), 1);
        // A third of the file, where a look is good for a sixteenth more.
        assert_eq!(looks_until_done(&mut log, &mut model, 340_000), 6);
    }

    #[test]
    fn a_purge_seals_once_what_memory_holds() {
        let mut log = RedbLog::open_by_hand(Arc::new(SimDisk::default()), StoreOptions::default()).expect("opens");
        let mut model = Model::default();
        let keeps = Arc::new(Keeps::default());
        log.set_sieve(Arc::clone(&keeps) as Arc<dyn Sieve>);
        let frame = model.frame_of(&log, &[1, 2], 10);
        model.append(&mut log, &frame);
        keeps.let_go(9, 1, model.tail);
        assert!(!log.is_seal_due());
        assert!(!log.purge(model.tail));
        assert!(log.is_seal_due(), "it holds entries up to there");
        log.seal(model.fold.take_delta());
        assert!(!log.is_seal_due(), "they are on their way");
        while log.work().expect("works") {}
        assert!(!log.is_seal_due());
        let frame = model.frame_of(&log, &[1, 2], 10);
        model.append(&mut log, &frame);
        assert!(!log.is_seal_due(), "what came later may stay");
    }
}
