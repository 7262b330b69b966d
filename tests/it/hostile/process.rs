//! What attacks cost the real broker in memory. Bounds are generous: they tell a ceiling from none.

use std::time::{Duration, Instant};

use longwire_protocol::packet::packet::Kind;
use longwire_protocol::packet::{self, Publish};
use longwire_protocol::{limits, varint};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

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
    let before = process.resident();
    let strangers = slow_strangers(process.port, count).await;
    alice.say(direct, "meanwhile").await;
    let each = process.resident().saturating_sub(before) / count;
    println!("{count} strangers: {each} bytes each");
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
