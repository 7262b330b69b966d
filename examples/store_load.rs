//! Loads a store and restarts it as after a SIGKILL, to measure both:
//!
//! ```text
//! cargo run --release --example store_load -- [entries] [group] [conversations] [folder]
//! cargo run --release --example store_load -- 10000000 512
//! ```
//!
//! LONGWIRE_TWO_PHASE=1 commits in two phases. Entries have 200 bytes and belong to random conversations. Without a folder a temporary one is used and removed. The
//! restart is that of a process that was killed: the load ends without closing anything.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::BufMut;
use longwire::store::{
    EntryMeta, FrameBuilder, Log, Origin, PageLimit, Position, Pressure, RedbLog, StateDelta, StoreOptions, check,
    stats,
};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq};

const ITEM_BYTES: usize = 200;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| -> Result<u64> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{text:?} is no number")))
    };
    let (entries, group, conversations) = (number(1_000_000)?, number(512)?, number(1_000_000)?);
    let folder = arguments.next();
    match folder.as_deref() {
        // What the example starts itself as, to be killed: see below.
        Some(folder) if arguments.next().as_deref() == Some("--then-die") => {
            load(Path::new(folder), entries, group, conversations)?;
            // Nothing is closed and no destructor runs.
            std::process::abort();
        }
        folder => {
            let temporary = folder.is_none().then(tempfile::tempdir).transpose()?;
            let folder = match (&temporary, folder) {
                (Some(temporary), _) => temporary.path().to_owned(),
                (None, folder) => PathBuf::from(folder.unwrap_or_default()),
            };
            let status = Command::new(std::env::current_exe()?)
                .args([entries.to_string(), group.to_string(), conversations.to_string()])
                .args([folder.as_os_str(), "--then-die".as_ref()])
                .status()?;
            if status.success() {
                bail!("the load was to die, and did not");
            }
            restart(&folder)
        }
    }
}

/// The heads of conversations that changed since the last seal, as routing would save them.
struct Heads(Vec<(u64, u64)>);

impl StateDelta for Heads {
    fn rows(&self, row: &mut dyn FnMut(&[u8], Option<&[u8]>)) {
        for (conversation, seq) in &self.0 {
            let mut key = [0; 11];
            key[..2].copy_from_slice(&((conversation % 4096) as u16).to_be_bytes());
            key[2] = b'h';
            key[3..].copy_from_slice(&conversation.to_be_bytes());
            let mut value = [0; 32];
            value[..8].copy_from_slice(&seq.to_be_bytes());
            row(&key, Some(&value));
        }
    }
}

fn load(folder: &Path, entries: u64, group: u64, conversations: u64) -> Result<()> {
    let two_phase_commit = std::env::var_os("LONGWIRE_TWO_PHASE").is_some();
    let mut log = RedbLog::open(folder, StoreOptions { two_phase_commit, ..StoreOptions::default() })?;
    let segment = log.segments().last().context("a log has a segment")?.id;
    let mut rng = fastrand::Rng::with_seed(1);
    let mut heads = vec![0_u64; conversations as usize];
    let mut dirty = Vec::new();
    let mut latencies = Vec::new();
    let mut refused = Duration::ZERO;
    let item = [b'x'; ITEM_BYTES];
    let (began, cpu) = (Instant::now(), cpu_seconds());
    while log.tail().0 < entries {
        let mut frame = FrameBuilder::new(segment, Position(log.tail().0 + 1), LogTime(log.tail().0));
        for _ in 0..group {
            let conversation = rng.u64(0..conversations);
            let seq = &mut heads[conversation as usize];
            *seq += 1;
            dirty.push(conversation);
            let origin =
                Origin { device: DeviceId(conversation + 1), incarnation: Incarnation(1), message_id: MessageId(*seq) };
            let meta = EntryMeta {
                conversation: ConversationId(conversation),
                seq: Seq(*seq),
                countable: *seq,
                origin,
                ..EntryMeta::default()
            };
            frame.push_entry(&meta, |b| b.put_slice(&item));
        }
        let frame = frame.finish();
        let waited = Instant::now();
        while log.pressure() == Pressure::Full {
            std::thread::sleep(Duration::from_millis(1));
        }
        refused += waited.elapsed();
        let commit = Instant::now();
        log.append(&frame)?;
        latencies.push(commit.elapsed());
        if log.is_seal_due() {
            dirty.sort_unstable();
            dirty.dedup();
            let rows = std::mem::take(&mut dirty).into_iter().map(|c| (c, heads[c as usize])).collect();
            log.seal(Box::new(Heads(rows)));
        }
    }
    let took = began.elapsed();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "load: {entries} entries of {ITEM_BYTES} bytes in groups of {group} over {conversations} conversations: {:.0}/s, \
         commit p50 {:?} p99 {:?} p99.9 {:?} max {:?}; refused for {refused:?}",
        log.tail().0 as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    let written = log.written();
    println!(
        "load: {:.2} us of CPU an entry, background work included; {:?}, amplification {:.2}",
        (cpu_seconds() - cpu) * 1e6 / log.tail().0 as f64,
        written,
        written.amplification()
    );
    Ok(())
}

fn restart(folder: &Path) -> Result<()> {
    let began = Instant::now();
    let log = RedbLog::open(folder, StoreOptions::default())?;
    let opened = began.elapsed();
    let mut rows = 0;
    log.saved().each(&[], &mut |_, _| rows += 1)?;
    let applied = log.applied()?;
    let state = began.elapsed();
    let mut frames = 0;
    log.follow(applied, &mut |_| frames += 1)?;
    println!(
        "restart: opened in {opened:?}, {rows} rows of state by {state:?}, {frames} frames replayed by {:?}; tail {}",
        began.elapsed(),
        log.tail().0
    );
    let history = log.history();
    let page = PageLimit { entries: 50, bytes: 1 << 20 };
    let mut rng = fastrand::Rng::with_seed(2);
    let mut latencies = Vec::new();
    for _ in 0..2_000 {
        let conversation = ConversationId(rng.u64(0..100_000));
        let read = Instant::now();
        history.range(conversation, Seq(1), Seq(u64::MAX - 1), true, page)?;
        latencies.push(read.elapsed());
    }
    latencies.sort_unstable();
    println!("read: newest 50 of a conversation: p50 {:?} p99 {:?}", latencies[1_000], latencies[1_980]);
    Box::new(log).close()?;
    let began = Instant::now();
    let stats = stats(folder)?;
    println!("stats in {:?}: {stats:?}", began.elapsed());
    let began = Instant::now();
    let report = check(folder, &mut ())?;
    println!("check in {:?}: sound {}, {} entries in runs", began.elapsed(), report.is_sound(), report.run_entries);
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}
