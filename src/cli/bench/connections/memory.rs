//! `--transport memory`: broker and clients in one process, over byte streams in memory, so that no limit on files or
//! ports is met. The broker's side is its own: the same connection task, session, outbox and TLS state as over TCP. Of
//! each client the keys are left once it is connected. What sockets add is measured apart.

mod kernel;
mod pipe;
mod resting;

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use longwire_client::packet::{self, item};
use longwire_protocol::frame::{FrameCodec, FrameError};
use longwire_protocol::session::{ClientEvent, ClientSession, Millis};
use longwire_protocol::{BrokerLimits, limits};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::codec::Decoder as _;

use super::super::super::Fail;
use super::super::args::{DEVICES_OF_A_USER, Issuer};
use super::super::load::crew::Counter;
use super::super::load::own::Folder;
use super::super::load::process;
use super::super::load::wire::{WireError, fresh};
use super::super::report::{Report, Run};
use super::{Args, FILES_BESIDE};
use crate::auth::{self, Authority};
use crate::broker::commit::Retention;
use crate::broker::{Broker, BrokerParts};
use crate::clock::unix_ms;
use crate::net::listener::AcceptLimits;
use crate::net::tls::{self, server_config};
use crate::routing::allowance::Rates;
use crate::routing::limits::Quotas;
use crate::store::{RedbLog, StoreOptions};
use pipe::{BrokerEnd, ClientEnd, Pipe, Said};
use resting::{Clients, Resting, THREADS};

/// The name of the broker's issuer, and of its machine.
const ISSUER: &str = "bench";
const HOST: &str = "localhost";
/// What is gathered before it is written.
const OUT_BYTES: usize = 32 * 1024;
/// What the broker of a benchmark keeps of its rows in memory.
const STATE_BYTES_MAX: usize = 256 << 20;

/// Opens connections step by step and says what they take.
pub(super) fn run(args: &Args, report: &mut Report) -> Result<(), Fail> {
    let limit = process::raise_open_files();
    let kernel = kernel::socket_bytes(limit.saturating_sub(FILES_BESIDE))?;
    let most = args.steps.iter().copied().max().unwrap_or(0) as usize;
    let world = Arc::new(World::start(args)?);
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(THREADS).enable_time().build()?;
    // Everything that clients at rest take is taken before it is looked what the broker takes.
    let said = Arc::<Said>::default();
    let pipes: Vec<_> = (0..most).map(|number| Arc::new(Pipe::new(number, Arc::clone(&said)))).collect();
    let pipes = Arc::new(pipes);
    let clients = Clients::start(Arc::clone(&pipes), said, args.heartbeat)?;
    let base = spent()?;
    let (mut open, mut resident) = (0, base.resident);
    let mut runs = Vec::new();
    let connected_so_far = Counter::default();
    for &target in &args.steps {
        let (began, before, opened_before) = (Instant::now(), spent()?, open);
        let target = target as usize;
        let connecting = world.connect(open..target.max(open), args, &pipes, &clients, &connected_so_far);
        let (resumed, _) = threads.block_on(connected_so_far.while_doing("connected", connecting));
        let resumed = resumed?;
        let (seconds, connected) = (began.elapsed().as_secs_f64().max(0.001), spent()?);
        open = open.max(target);
        std::thread::sleep(args.settle);
        clients.are_well()?;
        let after = spent()?;
        let further = (open - opened_before).max(1) as f64;
        let kib = |from: u64, connections: f64| after.resident.saturating_sub(from) as f64 / 1024.0 / connections;
        let mut run = Run::new(format!("in memory {open}"));
        run.figure("connections", "connections", open as f64);
        run.figure("connects_per_second", "connects/s", further / seconds);
        run.figure("resumed", "of these with a ticket", resumed as f64);
        let cpu = connected.cpu.saturating_sub(before.cpu).as_secs_f64();
        run.figure("broker_cpu_us_per_connect", "broker CPU a connect, us", cpu * 1e6 / further);
        let each = kib(base.resident, open as f64);
        run.figure("broker_kib_per_connection", "broker KiB a connection", each);
        run.figure("broker_kib_per_further_connection", "KiB a further connection", kib(resident, further));
        run.figure("resident_gib", "process GiB, clients too", after.resident as f64 / f64::from(1 << 30));
        if let Some(kernel) = kernel {
            run.figure("kernel_kib_per_socket", "KERNEL, by real sockets, KiB", kernel / 1024.0);
            run.figure("kib_per_connection_with_kernel", "KiB with the kernel's", each + kernel / 1024.0);
        }
        resident = after.resident;
        runs.push(run);
    }
    if let (Some(last), false) = (runs.last_mut(), args.idle.is_zero()) {
        let (before, beats, began) = (spent()?, clients.beats(), Instant::now());
        std::thread::sleep(args.idle);
        let (cpu, seconds) = (spent()?.cpu.saturating_sub(before.cpu).as_secs_f64(), began.elapsed().as_secs_f64());
        let (beaten, late) = (clients.beats().0 - beats.0, clients.beats().1 - beats.1);
        last.figure("heartbeats_per_second", "heartbeats/s", beaten as f64 / seconds);
        last.figure("late_answers", "answers after 2 s", late as f64);
        last.figure("broker_cpu_us_per_heartbeat", "broker CPU a heartbeat, us", cpu * 1e6 / beaten.max(1) as f64);
        last.figure("idle_core_percent", "of one core at rest, %", cpu / seconds * 100.0);
        let rested = spent()?.resident.saturating_sub(base.resident) as f64 / 1024.0 / open.max(1) as f64;
        last.figure("broker_kib_at_rest", "broker KiB a connection, then", rested);
    }
    clients.end()?;
    threads.shutdown_background();
    let there = world.broker.connections();
    if there != open {
        return Err(Fail::failed(format!("{} connections did not last", open - there.min(open))));
    }
    if let Some(world) = Arc::into_inner(world) {
        world.end();
    }
    runs.into_iter().for_each(|run| report.add(run));
    Ok(())
}

/// What the broker's threads have spent, and what the whole process takes.
fn spent() -> Result<process::Spent, Fail> {
    let clients = process::own_threads(THREADS);
    let all = process::spent(std::process::id())?;
    Ok(process::Spent { cpu: all.cpu.saturating_sub(clients), ..all })
}

/// The broker, and who may connect.
struct World {
    broker: Broker,
    net: Runtime,
    issuer: Issuer,
    tls: Option<Tls>,
    _folder: Folder,
}

#[derive(Clone)]
struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    fn new(args: &Args, folder: &Folder) -> Result<Self, Fail> {
        let made = |error: rcgen::Error| Fail::failed(error.to_string());
        let key = rcgen::KeyPair::generate().map_err(made)?;
        let certificate = rcgen::CertificateParams::new(vec![HOST.to_owned()]).map_err(made)?;
        let certificate = certificate.self_signed(&key).map_err(made)?.pem();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("cert.pem"), &certificate)?;
        std::fs::write(path("key.pem"), key.serialize_pem())?;
        let failed = |error: &dyn std::fmt::Display| Fail::failed(error.to_string());
        let server = server_config(&path("cert.pem"), &path("key.pem")).map_err(|error| failed(&error))?;
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| failed(&error))?;
        roots.add(trusted).map_err(|error| failed(&error))?;
        let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![limits::ALPN.to_vec()];
        client.enable_secret_extraction = true;
        if !args.resume {
            client.resumption = Resumption::disabled();
        }
        Ok(Self { server, client: Arc::new(client) })
    }
}

impl World {
    fn start(args: &Args) -> Result<Self, Fail> {
        let folder = Folder::make()?;
        let tls = (!args.broker.plain).then(|| Tls::new(args, &folder)).transpose()?;
        let (private, public) = auth::generate_key().map_err(|error| Fail::failed(error.to_string()))?;
        let authority = Authority::default();
        let believed = authority.set_issuers(&[(ISSUER.to_owned(), public.into_bytes())]);
        believed.map_err(|(_, error)| Fail::failed(error))?;
        let options = StoreOptions { birth_unix_ms: unix_ms(), ..StoreOptions::default() };
        let log =
            RedbLog::open(&folder.path().join("store"), options).map_err(|error| Fail::failed(error.to_string()))?;
        let net = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("longwire-net")
            .max_blocking_threads(16)
            .build()?;
        let inside = net.enter();
        let accept = AcceptLimits {
            connections: usize::MAX,
            connections_per_address: usize::MAX,
            handshakes: 0,
            memory_bytes: None,
        };
        let broker = Broker::start(BrokerParts {
            log: Box::new(log),
            authority,
            limits: BrokerLimits::default(),
            accept,
            rates: Rates::default(),
            quotas: Quotas::default(),
            retention: Retention::default(),
            state_bytes_max: STATE_BYTES_MAX,
        });
        drop(inside);
        let broker = broker.map_err(|error| Fail::failed(error.to_string()))?;
        let issuer = Issuer::new(private.into_bytes(), ISSUER);
        Ok(Self { broker, net, issuer, tls, _folder: folder })
    }

    /// Makes these connections and sends them to rest; returns how many of them used a ticket.
    async fn connect(
        self: &Arc<Self>,
        numbers: std::ops::Range<usize>,
        args: &Args,
        pipes: &[Arc<Pipe>],
        clients: &Clients,
        connected: &Counter,
    ) -> Result<u64, Fail> {
        let gate = Arc::new(Semaphore::new(args.at_once.max(1)));
        let (mut connecting, mut resumed) = (JoinSet::new(), 0);
        let (mut named, mut token) = (String::new(), String::new());
        for number in numbers {
            let user = format!("{}-c{}", args.broker.devices_prefix, number / DEVICES_OF_A_USER);
            if user != named {
                token = self.issuer.token(&user)?;
                named = user;
            }
            let device = format!("d{}", number % DEVICES_OF_A_USER);
            let heartbeat_ms = u32::try_from(args.heartbeat.as_millis()).unwrap_or(u32::MAX);
            let connect = packet::Connect { heartbeat_ms, ..fresh(token.clone(), device) };
            let turn = Arc::clone(&gate).acquire_owned().await;
            clients.are_well()?;
            let (world, pipe, arrivals) = (Arc::clone(self), Arc::clone(&pipes[number]), clients.arrivals());
            connecting.spawn(async move {
                let (client, has_resumed) = world.open(pipe, connect).await?;
                // Whoever is gone looks after nobody, and says so.
                drop(arrivals.send((number, client)));
                drop(turn);
                Ok::<_, WireError>(has_resumed)
            });
            while let Some(opened) = connecting.try_join_next() {
                connected.add(1);
                resumed += u64::from(opened.map_err(|error| Fail::failed(error.to_string()))??);
            }
        }
        while let Some(opened) = connecting.join_next().await {
            connected.add(1);
            resumed += u64::from(opened.map_err(|error| Fail::failed(error.to_string()))??);
        }
        Ok(resumed)
    }

    /// Makes one connection; returns what is left of its client, and whether it used a ticket.
    async fn open(self: Arc<Self>, pipe: Arc<Pipe>, connect: packet::Connect) -> Result<(Resting, bool), WireError> {
        let (broker_end, mut client_end) = (BrokerEnd(Arc::clone(&pipe)), ClientEnd(pipe));
        let Some(tls) = self.tls.clone() else {
            let inside = self.net.enter();
            self.broker.carry(broker_end);
            drop(inside);
            settle(&mut client_end, connect).await?;
            return Ok((Resting::plain(), false));
        };
        let world = Arc::clone(&self);
        self.net.spawn(async move {
            // One that fails is noticed at the other end.
            if let Ok(stream) = tls::accept(tls.server, broker_end, None).await {
                world.broker.carry(stream);
            }
        });
        let name = ServerName::try_from(HOST).map_err(|error| WireError::Broken(error.to_string()))?;
        let mut stream = TlsConnector::from(tls.client).connect(name, client_end).await?;
        settle(&mut stream, connect).await?;
        let (_, mut connection) = stream.into_inner();
        let unread = unread(&mut connection)?;
        let has_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let resting = Resting::of(connection, unread).map_err(|error| WireError::Broken(error.to_string()))?;
        Ok((resting, has_resumed))
    }

    fn end(self) {
        let Self { broker, net, _folder, .. } = self;
        // Clients at rest hear no Goaway: nobody is waited for.
        net.block_on(broker.drain(Duration::ZERO));
        net.shutdown_background();
    }
}

/// What was opened and not read: an item that came behind the end of the backlog.
fn unread(connection: &mut ClientConnection) -> Result<Vec<u8>, WireError> {
    let mut unread = Vec::new();
    match connection.reader().read_to_end(&mut unread) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(unread),
    }
}

/// Connects and goes on until nothing is under way: both backlogs have ended, the cursor is there, all is acked.
async fn settle<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, connect: packet::Connect) -> Result<(), WireError> {
    let now = Millis(0);
    let mut session = ClientSession::new(now, connect);
    let (mut codec, mut input, mut out) = (FrameCodec::default(), BytesMut::new(), BytesMut::new());
    let (mut ends, mut has_cursor) = (0, false);
    loop {
        session.flush_acks();
        while session.poll_transmit(now, &mut out, OUT_BYTES) {
            stream.write_all(&out).await?;
            out.clear();
        }
        stream.flush().await?;
        if ends == 2 && has_cursor && !codec.is_inside_frame(&input) {
            return Ok(());
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        while let Some((frame, bytes)) = codec.decode(&mut input).map_err(FrameError::refusal)? {
            let event = session.handle_frame(now, frame, bytes)?;
            codec.set_frame_bytes_max(session.frame_bytes_max());
            match event {
                Some(ClientEvent::Closed(refusal) | ClientEvent::Refused(refusal)) => return Err(refusal.into()),
                Some(ClientEvent::Cursor(_)) => has_cursor = true,
                Some(ClientEvent::Items { lane, first_n, items }) => {
                    ends += items.iter().filter(|item| matches!(item.kind, Some(item::Kind::CaughtUp(_)))).count();
                    session.stored(now, lane, first_n + items.len() as u64 - 1);
                }
                _ => {}
            }
        }
    }
}
