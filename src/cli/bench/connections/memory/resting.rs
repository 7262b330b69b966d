//! Clients at rest: of each nothing is left but the keys of its TLS connection. One thread sends their heartbeats, each
//! at its time, and looks at every answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use longwire_client::packet::{self, Lane, packet::Kind};
use longwire_protocol::frame::{self, Frame, FrameCodec, HEARTBEAT};
use rustls::{ClientConnection, ContentType};
use tokio_util::codec::Decoder as _;

use super::super::super::super::Fail;
use super::pipe::{Pipe, Said};
use crate::net::tls::keys::{Ciphers, Opener, Sealer};
use crate::net::tls::records::{HEADER_BYTES, Records};

/// The name of the threads of clients: what they take of the processor is not the broker's.
pub(super) const THREADS: &str = "bench-clients";
/// An answer has so long to come.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two looks at whose time has come.
const TICK: Duration = Duration::from_millis(5);

/// What is left of a client.
pub(super) struct Resting {
    /// None without TLS.
    keys: Option<Keys>,
    /// Its heartbeat has no answer yet.
    awaits: bool,
    /// What it was told before it rested, and has not looked at.
    unread: Vec<u8>,
}

struct Keys {
    sealer: Sealer,
    opener: Opener,
    ciphers: Ciphers,
}

impl Resting {
    pub(super) const fn plain() -> Self {
        Self { keys: None, awaits: false, unread: Vec::new() }
    }

    /// From a connection that has said all there is; `unread` is what it has opened and nobody has read.
    pub(super) fn of(tls: ClientConnection, unread: Vec<u8>) -> Result<Self, rustls::Error> {
        let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let ciphers = suite.ok_or(rustls::Error::HandshakeNotComplete)?.aead_alg;
        let secrets = tls.dangerous_extract_secrets()?;
        let keys = Keys { sealer: Sealer::new(secrets.tx)?, opener: Opener::new(secrets.rx)?, ciphers };
        Ok(Self { keys: Some(keys), awaits: false, unread })
    }

    fn say(&mut self, pipe: &Pipe, plain: &[u8]) -> Result<(), String> {
        let Some(keys) = &mut self.keys else {
            pipe.say(plain);
            return Ok(());
        };
        let mut sealed = Vec::new();
        let typ = ContentType::ApplicationData;
        keys.sealer.seal(keys.ciphers, typ, plain, &mut sealed).map_err(|error| error.to_string())?;
        keys.sealer.rest();
        pipe.say(&sealed);
        Ok(())
    }

    /// Sends a heartbeat, unless one is under way.
    fn beat(&mut self, pipe: &Pipe) -> Result<(), String> {
        if !std::mem::replace(&mut self.awaits, true) {
            self.say(pipe, &[HEARTBEAT])?;
        }
        Ok(())
    }

    /// Takes what the broker said, and acks what it delivered. Anything that it says is an answer.
    fn hear(&mut self, pipe: &Pipe) -> Result<(), String> {
        let mut said = pipe.hear().ok_or("the broker has ended a connection")?;
        let mut plain = BytesMut::from(&std::mem::take(&mut self.unread)[..]);
        match &mut self.keys {
            None => plain.extend_from_slice(&said),
            Some(keys) => {
                let mut rest = &mut said[..];
                while !rest.is_empty() {
                    let length = Records::record_bytes(rest).ok().flatten().filter(|length| *length <= rest.len());
                    let (record, behind) = rest.split_at_mut(length.ok_or("not a whole record")?);
                    let opened = keys.opener.open(keys.ciphers, &mut record[HEADER_BYTES..]);
                    plain.extend_from_slice(opened.map_err(|error| error.to_string())?.payload);
                    rest = behind;
                }
                keys.opener.rest();
            }
        }
        let (mut codec, mut out) = (FrameCodec::default(), BytesMut::new());
        while let Some((frame, _)) = codec.decode(&mut plain).map_err(|error| error.to_string())? {
            self.awaits = false;
            match frame {
                Frame::Packet(Kind::Deliver(deliver)) => {
                    let last = deliver.n + deliver.items.len() as u64 - 1;
                    let ack = match deliver.lane() {
                        Lane::Express => packet::Ack { express: last, ..Default::default() },
                        Lane::Bulk => packet::Ack { bulk: last, ..Default::default() },
                    };
                    frame::encode(&Kind::Ack(ack), &mut out);
                }
                Frame::Heartbeat | Frame::Packet(Kind::Cursor(_)) => {}
                other => return Err(format!("the broker says {other:?} to a client at rest")),
            }
        }
        if plain.is_empty() {
            return if out.is_empty() { Ok(()) } else { self.say(pipe, &out) };
        }
        Err("the broker says half a frame".to_owned())
    }
}

/// What happened so far.
#[derive(Debug, Default)]
struct Counts {
    beats: AtomicU64,
    late: AtomicU64,
    waiting: AtomicU64,
    is_over: AtomicBool,
    /// What went wrong first.
    wrong: Mutex<Option<String>>,
}

/// All clients at rest, and their thread.
pub(super) struct Clients {
    arrivals: Sender<(usize, Resting)>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

impl Clients {
    /// Starts the thread; room for all of them is taken at once.
    pub(super) fn start(pipes: Arc<Vec<Arc<Pipe>>>, said: Arc<Said>, heartbeat: Duration) -> Result<Self, Fail> {
        let (arrivals, arrived) = channel();
        let counts = Arc::new(Counts::default());
        let slots: Vec<Option<Resting>> = pipes.iter().map(|_| None).collect();
        let drive = Drive { pipes, said, slots, heartbeat, counts: Arc::clone(&counts) };
        let thread = thread::Builder::new().name(THREADS.into()).spawn(move || drive.run(&arrived))?;
        Ok(Self { arrivals, counts, thread: Some(thread) })
    }

    /// Where connections that are made go.
    pub(super) fn arrivals(&self) -> Sender<(usize, Resting)> {
        self.arrivals.clone()
    }

    /// Heartbeats so far, and how many of them had no answer after [`ANSWER`].
    pub(super) fn beats(&self) -> (u64, u64) {
        (self.counts.beats.load(Ordering::Relaxed), self.counts.late.load(Ordering::Relaxed))
    }

    /// Whether all is as it should be.
    pub(super) fn are_well(&self) -> Result<(), Fail> {
        let wrong = self.counts.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.as_ref().map_or(Ok(()), |wrong| Err(Fail::failed(wrong.clone())))
    }

    /// Sends no more heartbeats, and sees that all there were are answered.
    pub(super) fn end(mut self) -> Result<(), Fail> {
        self.counts.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        self.are_well()?;
        match self.counts.waiting.load(Ordering::Relaxed) {
            0 => Ok(()),
            missing => Err(Fail::failed(format!("{missing} heartbeats have no answer"))),
        }
    }
}

struct Drive {
    pipes: Arc<Vec<Arc<Pipe>>>,
    said: Arc<Said>,
    slots: Vec<Option<Resting>>,
    heartbeat: Duration,
    counts: Arc<Counts>,
}

impl Drive {
    fn run(mut self, arrived: &Receiver<(usize, Resting)>) {
        let outcome = self.drive(arrived).and_then(|()| {
            // The last ones have their time, too.
            thread::sleep(ANSWER);
            (0..self.slots.len()).try_for_each(|at| self.hear(at).map(drop))
        });
        let waiting = self.slots.iter().flatten().filter(|client| client.awaits).count();
        self.counts.waiting.store(waiting as u64, Ordering::Relaxed);
        if let Err(wrong) = outcome {
            *self.counts.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(wrong);
        }
    }

    /// Each client has its turn once in the time of a heartbeat, all of them evenly over it.
    fn drive(&mut self, arrived: &Receiver<(usize, Resting)>) -> Result<(), String> {
        let (begun, all) = (Instant::now(), self.slots.len());
        let (mut beaten, mut heard) = (0, 0);
        while !self.counts.is_over.load(Ordering::Relaxed) {
            for (at, client) in arrived.try_iter() {
                self.slots[at] = Some(client);
                self.hear(at)?;
            }
            for at in self.said.take() {
                self.hear(at)?;
            }
            let turns = |passed: Duration| (passed.as_secs_f64() / self.heartbeat.as_secs_f64() * all as f64) as usize;
            let (beat_to, hear_to) = (turns(begun.elapsed()), turns(begun.elapsed().saturating_sub(ANSWER)));
            while beaten < beat_to {
                self.beat(beaten % all)?;
                beaten += 1;
            }
            while heard < hear_to {
                if self.hear(heard % all)? {
                    self.counts.late.fetch_add(1, Ordering::Relaxed);
                }
                heard += 1;
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn beat(&mut self, at: usize) -> Result<(), String> {
        let Some(client) = &mut self.slots[at] else { return Ok(()) };
        self.counts.beats.fetch_add(1, Ordering::Relaxed);
        client.beat(&self.pipes[at])
    }

    /// Returns whether an answer is missing still.
    fn hear(&mut self, at: usize) -> Result<bool, String> {
        let Some(client) = &mut self.slots[at] else { return Ok(false) };
        client.hear(&self.pipes[at])?;
        Ok(client.awaits)
    }
}
