//! A connection against rustls's own client, and against one that holds its keys and says what no client would.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use rustls::{AlertDescription, ContentType};
use tokio::io::AsyncWrite as _;

use super::keys::{Opener, Sealer};
use super::records::{BODY_BYTES_MAX, PLAIN_BYTES_MAX, QUIET_MAX, Records};
use super::testing::{Pair, carry, hear, hello};
use crate::net::stream::ByteStream as _;

#[test]
fn what_comes_with_the_end_of_the_handshake_is_the_first_data() {
    for early in [0, 1, 100, 40_000] {
        for piece in [0, 1_000, 7] {
            let early = vec![b'e'; early];
            let mut pair = Pair::new(0, piece, &early);
            pair.say(b"and more");
            assert_eq!(pair.read(1 << 16).0, [&early[..], b"and more"].concat());
        }
    }
}

/// Tickets make no segment of their own: they leave with the first data, in one call.
#[test]
fn what_ends_the_handshake_leaves_with_the_first_data() {
    let mut pair = Pair::greeted(0, 0, b"");
    pair.carry();
    assert_eq!(pair.client.tls13_tickets_received(), 0, "held");
    let before = pair.link.lock().writes;
    pair.write(b"welcome");
    assert_eq!(pair.link.lock().writes - before, 1);
    assert_eq!(pair.heard(), b"welcome");
    assert!(pair.client.tls13_tickets_received() > 0);
    assert!(pair.server.is_at_rest(), "no buffer stays");
}

/// Whoever shakes hands wrongly is told so, and let go at once, however long it would keep the socket open.
#[test]
fn a_handshake_that_cannot_come_to_anything_is_over() {
    let hello = hello();
    let mut no_version = hello.clone();
    let versions = hello.windows(4).position(|bytes| bytes == [0, 43, 0, 3]).expect("its versions");
    no_version[versions + 5..versions + 7].copy_from_slice(&[3, 3]);
    for said in [&b"no TLS at all"[..], b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 1, 0, 4, 2, 0, 0, 0], &no_version] {
        for piece in [0, 1, 3] {
            let (ended, told) = hear(said, piece);
            assert!(matches!(ended, Poll::Ready(Err(_))), "{said:?} {ended:?}");
            assert!(matches!(told[..], [21, 3, 3, 0, 2, 2, _]), "{said:?}: a fatal alert, and not {told:?}");
        }
    }
    for waits in [&hello[..20], &hello] {
        assert!(hear(waits, 0).0.is_pending(), "it may go on");
    }
}

/// Data both ways, key updates asked for by the client, rests in between, a socket that takes and gives pieces of any
/// size and sometimes nothing: what arrives is what was sent, whatever the cipher.
#[test]
fn both_ways_everything_arrives_in_pieces_of_any_size() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pair = Pair::new(seed as usize, 0, &[]);
        let (mut up, mut down) = ([0_usize; 2], [0_usize; 2]);
        let byte = |at: usize| (at % 251) as u8;
        for _ in 0..200 {
            pair.link.lock().piece = if random.bool() { 0 } else { random.usize(1..40) };
            let bytes = [0, 1, 1, 5, 300, PLAIN_BYTES_MAX, 3 * PLAIN_BYTES_MAX][random.usize(..7)];
            match random.u8(..8) {
                0 => pair.server.rest(),
                1 => pair.client.refresh_traffic_keys().expect("a connection"),
                2 => pair.link.lock().room = Some(random.usize(..100)),
                3..5 => {
                    pair.say(&(up[0]..up[0] + bytes).map(byte).collect::<Vec<_>>());
                    up[0] += bytes;
                    let (read, end) = pair.read([1 << 16, 1 << 16, 100, 1][random.usize(..4)]);
                    assert!(end.is_none(), "seed {seed}: {end:?}");
                    assert!(read.iter().enumerate().all(|(i, b)| *b == byte(up[1] + i)), "seed {seed}");
                    up[1] += read.len();
                    assert_eq!(up[0], up[1], "seed {seed}");
                }
                _ => {
                    down[0] += pair.write(&(down[0]..down[0] + bytes).map(byte).collect::<Vec<_>>());
                    let heard = pair.heard();
                    assert!(heard.iter().enumerate().all(|(i, b)| *b == byte(down[1] + i)), "seed {seed}");
                    down[1] += heard.len();
                    assert!(down[1] <= down[0], "seed {seed}");
                }
            }
        }
        pair.link.lock().room = None;
        pair.write(b"");
        down[1] += pair.heard().len();
        assert_eq!(down[0], down[1], "seed {seed}: and in the end all of it");
        assert!(pair.server.is_at_rest(), "seed {seed}: no buffer stays");
    }
}

#[test]
fn keys_are_changed_before_their_cipher_has_sealed_too_much() {
    for suite in 0..3 {
        let mut pair = Pair::new(suite, 0, &[]);
        let mut said = Vec::new();
        for n in 0..40 {
            if n % 3 == 0 {
                pair.server.rest();
            }
            let mut sealed = Vec::new();
            pair.server.records().seal_at_most(4, &[n; 10], &mut sealed).expect("sealed");
            assert!(pair.server.records().sealed() < 4, "no more than these with one key");
            pair.link.lock().down.extend(sealed);
            said.extend([n; 10]);
        }
        assert_eq!(pair.heard(), said);
    }
}

#[test]
fn either_end_can_close() {
    let mut pair = Pair::new(0, 0, &[]);
    pair.client.writer().write_all(b"last").expect("into memory");
    pair.client.send_close_notify();
    pair.carry();
    let (read, end) = pair.read(100);
    assert_eq!((&read[..], end.map(|end| end.is_ok())), (&b"last"[..], Some(true)));
    assert_eq!(pair.write(b"the other way goes on"), 21);
    assert_eq!(pair.heard(), b"the other way goes on");

    let mut pair = Pair::new(0, 0, &[]);
    pair.write(b"last");
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut pair.server).poll_shutdown(&mut context).is_ready());
    assert!(matches!(Pin::new(&mut pair.server).poll_write(&mut context, b"x"), Poll::Ready(Err(_))));
    assert_eq!(pair.heard(), b"last");
    // Without the words of the end, there were none.
    assert_eq!(pair.client.reader().read(&mut [0]).expect("a clean end"), 0);

    let mut pair = Pair::new(0, 0, &[]);
    pair.link.lock().is_cut = true;
    let (_, end) = pair.read(100);
    assert_eq!(end.map(|end| end.map_err(|error| error.kind())), Some(Err(io::ErrorKind::UnexpectedEof)));
}

#[test]
fn a_peer_is_told_what_was_wrong_with_its_record() {
    let record = |typ: u8, body: usize| [&[typ, 3, 3], &(body as u16).to_be_bytes()[..], &vec![7; body]].concat();
    for (bytes, told) in [
        (record(23, 100), AlertDescription::BadRecordMac),
        (record(23, 0), AlertDescription::BadRecordMac),
        (record(22, 5), AlertDescription::UnexpectedMessage),
        (b"GET / HTTP/1.1".to_vec(), AlertDescription::UnexpectedMessage),
        (vec![23, 2], AlertDescription::ProtocolVersion),
        (record(23, BODY_BYTES_MAX + 1)[..5].to_vec(), AlertDescription::RecordOverflow),
    ] {
        for piece in [0, 1] {
            let mut pair = Pair::new(0, piece, &[]);
            pair.link.lock().up.extend(&bytes);
            let (read, end) = pair.read(100);
            assert!(read.is_empty() && matches!(end, Some(Err(_))), "{told:?}");
            let heard = carry(&mut pair.client, &pair.link);
            assert_eq!(heard, Err(rustls::Error::AlertReceived(told)));
            assert!(matches!(pair.read(100).1, Some(Err(_))), "and nothing is read afterwards");
        }
    }
    assert!(matches!(Records::record_bytes(&record(23, BODY_BYTES_MAX)), Ok(Some(_))), "the longest is none too many");
}

/// What a client that holds the keys may say, and what comes of it.
#[test]
fn of_handshake_messages_only_a_whole_key_update_is_taken() {
    use AlertDescription as A;
    const UPDATE: &[u8] = &[24, 0, 0, 1, 0];
    let waits = Poll::Pending;
    let closed = Poll::Ready(Ok(0));
    let broken = Poll::Ready(Err(io::ErrorKind::InvalidData));
    let empty: &[u8] = &[];
    let quiet = |count: u8| vec![(23, empty); count.into()];
    for (said, read, told) in [
        (vec![(22, UPDATE)], waits, None),
        (vec![(22, &UPDATE[..2]), (22, &UPDATE[2..])], waits, None),
        (vec![(22, &UPDATE[..2])], waits, None),
        (vec![(22, &UPDATE[..2]), (23, b"data")], broken, Some(A::UnexpectedMessage)),
        (vec![(22, &UPDATE[..2]), (21, &[1, 0])], broken, Some(A::UnexpectedMessage)),
        (vec![(22, &[24, 0, 0, 1, 0, 24])], broken, Some(A::UnexpectedMessage)),
        (vec![(22, &[24, 0, 0, 1, 2])], broken, Some(A::IllegalParameter)),
        (vec![(22, &[24, 0, 0, 2, 0, 0])], broken, Some(A::UnexpectedMessage)),
        (vec![(22, &[1, 0, 0, 1, 0])], broken, Some(A::UnexpectedMessage)),
        (vec![(22, empty)], broken, Some(A::UnexpectedMessage)),
        (vec![(20, &[1])], broken, Some(A::UnexpectedMessage)),
        (vec![(24, &[1])], broken, Some(A::UnexpectedMessage)),
        (vec![(21, &[1, 0])], closed, None),
        (vec![(21, &[1, 90]), (21, &[1, 0])], closed, None),
        (vec![(21, &[2, 40])], broken, None),
        (vec![(21, &[1, 40])], broken, None),
        (vec![(21, &[1])], broken, Some(A::DecodeError)),
        (vec![(21, &[1, 0, 0])], broken, Some(A::DecodeError)),
        (quiet(QUIET_MAX), waits, None),
        (quiet(QUIET_MAX + 1), broken, Some(A::UnexpectedMessage)),
        ([quiet(QUIET_MAX), vec![(23, b"data")], quiet(QUIET_MAX)].concat(), Poll::Ready(Ok(4)), None),
    ] {
        let mut forger = Pair::new(0, 0, &[]).into_forger();
        said.iter().for_each(|(typ, plain)| forger.say(*typ, plain));
        let outcome = forger.outcome();
        assert_eq!(outcome, (read, told.map(u8::from)), "{said:?}");
    }
}

#[test]
fn a_number_is_never_used_twice() {
    let forger = Pair::new(0, 0, &[]).into_forger();
    let key = |next| {
        let secrets = || rustls::ConnectionTrafficSecrets::Aes256Gcm { key: [7; 32].into(), iv: [7; 12].into() };
        (Sealer::new((next, secrets())).expect("keys"), Opener::new((next, secrets())).expect("keys"))
    };
    let last = u64::MAX - (1 << 16);
    let (mut sealer, mut opener) = key(last - 1);
    let mut sealed = Vec::new();
    sealer.seal(forger.ciphers, ContentType::ApplicationData, b"last", &mut sealed).expect("the last one");
    assert_eq!(opener.open(forger.ciphers, &mut sealed[5..]).expect("the last one").payload, b"last");
    assert!(sealer.seal(forger.ciphers, ContentType::ApplicationData, b"x", &mut Vec::new()).is_err());
    assert!(opener.open(forger.ciphers, &mut [0; 20]).is_err());
}
