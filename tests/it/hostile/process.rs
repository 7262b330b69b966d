//! What attacks cost the real broker in memory and CPU. Bounds are generous: they tell a ceiling from none. CPU is that of
//! the process, so that others of the machine do not count, and limits lie far above what a build without optimization takes.

use std::time::{Duration, Instant};

use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::reason::Reason;
use longwire_protocol::{frame, limits, varint};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::contents::ZEROS;
use super::{Raw, framed};
use crate::process::{Process, let_in};
use crate::world::PATIENCE;

const MIB: u64 = 1 << 20;

/// Connections of strangers, each with all of a frame but its last byte.
async fn slow_strangers(port: u16, count: u64) -> Vec<TcpStream> {
    let mut out = bytes::BytesMut::new();
    varint::write(u64::from(limits::PRE_AUTH_FRAME_BYTES_MAX), &mut out);
    out.resize(out.len() + limits::PRE_AUTH_FRAME_BYTES_MAX as usize - 1, 0);
    let mut all = Vec::new();
    for _ in 0..count {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        socket.write_all(&out).await.expect("sent");
        all.push(socket);
    }
    all
}

/// Gets: a `Goodbye` after 10 s. Costs: a connection and the frame's beginning, less than 32 KiB each.
async fn strangers_cost(count: u64) {
    let process = Process::new();
    let mut alice = let_in(process.port, &process.connect("alice", "phone")).await;
    let direct = alice.open_direct("bob").await;
    let (before, ticks) = (process.resident(), process.ticks());
    let strangers = slow_strangers(process.port, count).await;
    alice.say(direct, "meanwhile").await;
    let each = process.resident().saturating_sub(before) / count;
    // What alice says meanwhile counts as well.
    let cpu = Duration::from_millis(10 * (process.ticks() - ticks)) / u32::try_from(count).expect("a count");
    assert!(cpu < Duration::from_millis(10), "{cpu:?} of CPU for each of {count} connections");
    println!("{count} strangers: {each} bytes and {cpu:?} each");
    assert!(each < 32 << 10, "{each} bytes for each of {count} connections that have not said who they are");
    drop(strangers);
    alice.say(direct, "afterwards").await;
}

#[tokio::test]
async fn a_stranger_costs_little_memory() {
    strangers_cost(400).await;
}

/// `cargo test --test it -- --ignored ten_thousand --nocapture`, with 20,000 open files allowed.
#[tokio::test]
#[ignore = "ten thousand connections: by hand"]
async fn ten_thousand_strangers_cost_little_memory() {
    strangers_cost(10_000).await;
}

/// Gets: nothing. Costs: the reading; what waits for the commit thread has a bound. Others: go on.
#[tokio::test]
async fn floods_of_an_insider_leave_the_memory_where_it_was() {
    let process = Process::new();
    let mut alice = let_in(process.port, &process.connect("alice", "phone")).await;
    let direct = alice.open_direct("bob").await;
    let before = process.resident();
    let (mut raw, _) = Raw::let_in(process.port, process.connect("mallory", "phone")).await;
    let give_ups: Vec<u8> = (1..=20_000_u64)
        .flat_map(|n| framed(&Kind::GiveUp(packet::GiveUp { message_id: (1 << 40) + n })).to_vec())
        .collect();
    for _ in 0..20 {
        raw.send(&give_ups).await;
        alice.say(direct, "meanwhile").await;
    }
    // The beginning of the largest frame, on as many devices as a user has.
    let mut large = Vec::new();
    for n in 1..20 {
        let (mut raw, _) = Raw::let_in(process.port, process.connect("mallory", &format!("d{n}"))).await;
        let content = vec![0; limits::PAYLOAD_BYTES_MAX as usize].into();
        let frame = framed(&Kind::Publish(Publish { message_id: 1, content, ..Publish::default() }));
        raw.send(&frame[..frame.len() - 1]).await;
        large.push(raw);
    }
    alice.say(direct, "meanwhile").await;
    let grown = process.resident().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    drop((raw, large));
    // Nothing of it stays: a new connection is served as ever.
    let begun = Instant::now();
    alice.say(direct, "afterwards").await;
    while process.resident().saturating_sub(before) > 48 * MIB {
        assert!(begun.elapsed() < PATIENCE, "memory is given back");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A broker that has let someone in, and has done for the first time whatever that takes.
async fn running() -> Process {
    let process = Process::new();
    let_in(process.port, &process.connect("bystander", "phone")).await;
    process
}

/// The CPU that the broker takes for each of `count`, while `attack` goes on.
async fn cpu_each<T>(process: &Process, what: &str, count: u64, attack: impl Future<Output = T>) -> (Duration, T) {
    let before = process.ticks();
    let outcome = attack.await;
    let taken = Duration::from_millis(10 * (process.ticks() - before));
    let each = taken / u32::try_from(count).expect("a count");
    println!("{what}: {each:?} of CPU each, {taken:?} for {count}");
    (each, outcome)
}

/// Gets: nothing. Costs: a few instructions for each packet that asks for nothing.
#[tokio::test]
async fn floods_of_an_insider_cost_little_cpu() {
    let process = running().await;
    let unknown = [&[42][..], &[0x9a, 0x06, 39][..], &[0xff; 39]].concat();
    for (n, (what, one, most)) in [
        ("heartbeats", vec![frame::HEARTBEAT], Duration::from_micros(20)),
        ("acks", framed(&Kind::Ack(packet::Ack::default())).to_vec(), Duration::from_micros(50)),
        ("unknown packets", unknown, Duration::from_micros(50)),
        ("GiveUps", framed(&Kind::GiveUp(packet::GiveUp { message_id: 1 << 50 })).to_vec(), Duration::from_micros(50)),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut raw, _) = Raw::let_in(process.port, process.connect("mallory", &format!("d{n}"))).await;
        let count = 100_000;
        let flood = one.repeat(count);
        let attack = async {
            for part in flood.chunks(1 << 14) {
                raw.send(part).await;
            }
            // All of it has been read when this is answered.
            raw.is_served().await
        };
        let (each, is_served) = cpu_each(&process, what, count as u64, attack).await;
        assert!(is_served && each < most, "{what}: {each:?} each");
    }
}

/// Gets: *unauthenticated*. Costs: a connection, and one check of a signature.
#[tokio::test]
async fn a_forged_token_costs_little_cpu() {
    let process = running().await;
    let good = process.token("alice", u64::MAX / 2_000);
    let (head, _) = good.rsplit_once('.').expect("a signature");
    let forged = format!("{head}.{}", "A".repeat(86));
    let attack = async {
        for _ in 0..200 {
            let mut raw = Raw::open(process.port).await;
            raw.say(&Kind::Connect(packet::Connect { token: forged.clone(), ..process.connect("alice", "phone") }))
                .await;
            assert_eq!(raw.end().await, Some(Reason::Unauthenticated));
        }
    };
    let (each, ()) = cpu_each(&process, "forged tokens", 200, attack).await;
    assert!(each < Duration::from_millis(5), "{each:?} each");
}

/// Gets: what it sent. Costs: the kilobyte that each of them is, and not the megabyte that it would be: five hundred of them
/// would be half a gigabyte.
#[tokio::test]
async fn what_is_compressed_costs_what_it_is() {
    const COUNT: u64 = 500;
    let process = Process::new();
    let mut alice = let_in(process.port, &process.connect("alice", "phone")).await;
    let direct = alice.open_direct("bob").await;
    let before = process.resident();
    let content = bytes::Bytes::from_static(ZEROS);
    let attack = async {
        for _ in 0..COUNT {
            let publish = Publish { conversation: direct, content: content.clone(), ..Publish::default() };
            alice.publish(publish).await.expect("stored");
        }
    };
    let (each, ()) = cpu_each(&process, "compressed contents", COUNT, attack).await;
    let grown = process.resident().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    assert!(each < Duration::from_millis(10), "{each:?} each");
}

/// Gets: *payload_too_large*. Costs: the reading of what is thrown away.
#[tokio::test]
async fn what_is_too_large_costs_its_reading() {
    const COUNT: u64 = 100;
    let process = running().await;
    let (mut raw, _) = Raw::let_in(process.port, process.connect("mallory", "phone")).await;
    let before = process.resident();
    let content = bytes::Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX as usize + 1]);
    let attack = async {
        for message_id in 1..=COUNT {
            let publish = Publish { message_id, content: content.clone(), ..Publish::default() };
            raw.say(&Kind::Publish(Publish { first_unanswered: message_id, ..publish })).await;
            assert_eq!(raw.refused().await, Some(Reason::PayloadTooLarge));
        }
    };
    let (each, ()) = cpu_each(&process, "contents that are too large", COUNT, attack).await;
    let grown = process.resident().saturating_sub(before);
    assert!(grown < 16 * MIB, "{} MiB more", grown / MIB);
    assert!(each < Duration::from_millis(20), "{each:?} each");
}
