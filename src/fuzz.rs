//! The bodies of the fuzz targets that are the broker's own; those of the wire are in the protocol crate. `fuzz/` holds
//! one line for each, and the tests below replay the corpora that are kept. Not part of a broker.

use std::path::Path;
use std::sync::LazyLock;
use std::task::Poll;

use crate::auth::{AUDIENCE, Authority, Claims, Identity, issue};
use crate::config;
use crate::net::tls;
use crate::net::tls::records::QUIET_MAX;
use crate::net::tls::testing::{Pair, hear, library_hears};
use crate::routing::model::{Choices, Warmth, live};
use crate::routing::resume;
use crate::store;

/// The key of the issuer that is believed here, in [`token`], and of the certificate that is good, in [`certificate`].
const KEY: &[u8] = include_bytes!("../fuzz/fixtures/key.pem");
const PUBLIC: &[u8] = include_bytes!("../fuzz/fixtures/public.pem");
const CERTIFICATE: &[u8] = include_bytes!("../fuzz/fixtures/certificate.pem");

/// Operations in one life of [`core`]: each is checked against all that was said before it.
const OPERATIONS_MAX: usize = 100;

/// Several users on one core, as the bytes choose: the first byte says how much of the state stays in memory.
///
/// # Panics
/// Where core and naive model differ.
pub fn core(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let warmth = match first % 3 {
        0 => Warmth::Whole,
        1 => Warmth::Cold(3),
        _ => Warmth::Cold(10),
    };
    live("these bytes", Choices::Bytes(rest), OPERATIONS_MAX, warmth);
}

/// What the store reads back of any bytes.
///
/// # Panics
/// If something is read back otherwise than it was written.
pub fn records(data: &[u8]) {
    store::fuzz::records(data);
}

/// Any text as a configuration: settings within their bounds, or what is wrong.
///
/// # Panics
/// If settings contradict each other, or an error says nothing.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text).and_then(config::Written::resolve) {
        Ok(settings) => {
            let (min, max) = settings.heartbeat;
            assert!(min <= max && min.as_secs() >= 1 && max.as_secs() <= 3_600, "a range of heartbeats");
            assert!(settings.state_memory >= 1 << 20 && settings.handshakes > 0, "enough to live on");
            assert!(!settings.issuers.is_empty(), "somebody can be let in");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says what is wrong"),
    }
}

/// Any bytes as a token; or, after a first byte that is odd, a good token whose bytes are changed: pairs of a place and
/// what is added there.
///
/// # Panics
/// If a token is believed that nobody issued.
pub fn token(data: &[u8]) {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
        let authority = Authority::default();
        authority.set_issuers(&[("me".into(), PUBLIC.to_vec())]).expect("a key");
        authority
    });
    static TOKEN: LazyLock<String> = LazyLock::new(|| {
        let claims = Claims {
            iss: "me".into(),
            sub: "ada".into(),
            aud: AUDIENCE.into(),
            exp: 1_000,
            publish: vec!["news/*".into()],
            ..Claims::default()
        };
        issue(&claims, KEY).expect("a token")
    });
    static GOOD: LazyLock<std::sync::Arc<Identity>> = LazyLock::new(|| AUTHORITY.verify(&TOKEN, 0).expect("believed"));
    let Some((&what, bytes)) = data.split_first() else { return };
    let token = if what & 1 == 0 {
        bytes.to_vec()
    } else {
        let mut token = TOKEN.clone().into_bytes();
        for change in bytes.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % token.len();
            token[at] = token[at].wrapping_add(change[2]);
        }
        token
    };
    let Ok(token) = String::from_utf8(token) else { return };
    match AUTHORITY.verify(&token, 0) {
        Ok(identity) => {
            let signed = |token: &str| token.rsplit_once('.').map(|(signed, _)| signed.to_owned());
            assert!(identity == *GOOD && signed(&token) == signed(&TOKEN), "a forged token is believed: {token}");
            assert!(AUTHORITY.verify(&token, 1_000).is_err(), "a token outlives its end");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says what is wrong"),
    }
}

/// Any bytes as a cursor.
///
/// # Panics
/// If a cursor does not survive being written and read.
pub fn cursor(data: &[u8]) {
    let Some(cursor) = resume::decode(data) else { return };
    let written = resume::encode(&cursor);
    assert!(written.len() <= 1 + 3 * 10, "a cursor is small");
    assert_eq!(resume::decode(&written), Some(cursor));
}

/// Any bytes as the files of certificate and key, with a zero between them; without one, they are the file of the
/// certificate, beside a good key.
///
/// # Panics
/// If files that cannot be used give a configuration, or say nothing of what is wrong.
pub fn certificate(data: &[u8]) {
    let (chain, key) = match data.iter().position(|byte| *byte == 0) {
        Some(0) => (CERTIFICATE, &data[1..]),
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, KEY),
    };
    match tls::configure((Path::new("certificate"), chain), (Path::new("key"), key)) {
        Ok(config) => assert!(!config.alpn_protocols.is_empty(), "a whole configuration"),
        Err(error) => assert!(error.to_string().contains("certificate") || error.to_string().contains("key")),
    }
}

/// What a stranger says who has no keys yet, in pieces. The library's own connection, which has buffers, is the model.
///
/// # Panics
/// If one goes on where the other does not, or is told something else.
pub fn hello(data: &[u8]) {
    let Some((piece, said)) = data.split_first() else { return };
    let (heard, told) = hear(said, usize::from(*piece));
    let (expected, words) = library_hears(said);
    assert_eq!(heard.is_ready(), expected.is_err(), "{heard:?}, and the library: {expected:?}");
    assert!(!matches!(heard, Poll::Ready(Ok(()))), "let in");
    assert_eq!(kinds(&told), kinds(&words), "{heard:?}: told {told:02x?}, by the library {words:02x?}");
}

/// The types of these records, and what those say that are alerts in the clear. The rest is made of randomness.
fn kinds(mut records: &[u8]) -> Vec<(u8, Option<u8>)> {
    let mut kinds = Vec::new();
    while let [kind, _, _, high, low, behind @ ..] = records {
        let (body, behind) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        kinds.push((*kind, body.last().copied().filter(|_| *kind == 21)));
        records = behind;
    }
    kinds
}

/// What a client that holds the keys of a connection may send: each record of any type, whole or damaged, the
/// bytes cut anywhere. A small model says what has to come of it.
///
/// # Panics
/// If something else is read than was said, or the connection goes on where it must not.
pub fn tls(data: &[u8]) {
    const TYPES: [u8; 6] = [23, 23, 22, 21, 20, 24];
    let mut forger = Pair::new(0, 0, &[]).into_forger();
    let (mut said, mut rest) = (Vec::new(), data);
    // What was said of a `KeyUpdate` so far, records without data in a row, and whether the keys are old.
    let (mut update, mut quiet, mut is_old) = (0, 0, false);
    let mut end = Poll::Pending;
    while let [how, length, behind @ ..] = rest {
        let (plain, behind) = behind.split_at(behind.len().min(usize::from(*length)));
        let (typ, is_damaged) = (TYPES[usize::from(how % 6)], how & 0x80 != 0);
        forger.say_damaged(typ, plain, is_damaged);
        rest = behind;
        if end.is_ready() {
            continue;
        }
        let is_data = typ == 23 && !plain.is_empty();
        quiet = if is_data { 0 } else { quiet + 1 };
        let broken = Poll::Ready(false);
        end = match (typ, plain) {
            _ if is_damaged || is_old => broken,
            (22, _) if quiet <= QUIET_MAX => {
                let so_far = [&[24, 0, 0, 1][..update], plain].concat();
                let is_whole = matches!(so_far[..], [24, 0, 0, 1, 0 | 1]);
                let is_part = !plain.is_empty() && [24, 0, 0, 1].starts_with(&so_far);
                (update, is_old) = (if is_part { so_far.len() } else { 0 }, is_whole);
                if is_whole || is_part { Poll::Pending } else { broken }
            }
            _ if update > 0 || quiet > QUIET_MAX => broken,
            (23, _) => {
                said.extend_from_slice(plain);
                Poll::Pending
            }
            (21, [_, 0]) => Poll::Ready(true),
            (21, [_, 90]) => Poll::Pending,
            _ => broken,
        };
    }
    let piece = data.first().map_or(0, |piece| usize::from(*piece));
    let (read, ended) = forger.read(piece);
    assert_eq!(read, said, "what was said before the end is read, and nothing else");
    let ended = ended.map_or(Poll::Pending, |end| Poll::Ready(end.is_ok()));
    assert_eq!(ended, end, "it ends as it must");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use longwire_protocol::{Frame, FrameCodec};
    use tokio_util::codec::Decoder as _;

    use super::*;

    /// For so long each target is given what chance makes of its inputs, beside the inputs themselves.
    const MUTATED_FOR: Duration = Duration::from_secs(5);
    /// As `fuzz/run` has it.
    const LENGTH_MAX: usize = 4_096;

    fn fuzz_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// Every input that is kept of a target passes, and so does what chance makes of them. The fuzzer proper, which is led by
    /// what it reaches, is `fuzz/run`: it takes some ten minutes to build.
    fn replay(target: &'static str, body: fn(&[u8])) {
        let entries = std::fs::read_dir(fuzz_folder().join("corpus").join(target)).expect("the corpus");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let kept: Vec<Vec<u8>> = paths.map(|path| std::fs::read(path).expect("an input")).collect();
        assert!(kept.len() >= 3, "the corpus of {target} is there: {}", kept.len());
        kept.iter().for_each(|input| body(input));
        let dictionary = std::fs::read_to_string(fuzz_folder().join(format!("dictionaries/{target}.dict")));
        let words: Vec<Vec<u8>> = words(&dictionary.unwrap_or_default()).into_iter().map(|(_, word)| word).collect();
        let (mut random, began) = (fastrand::Rng::new(), Instant::now());
        while began.elapsed() < MUTATED_FOR {
            let mut input = Tried { target, bytes: mutated(&kept, &words, &mut random) };
            body(&input.bytes);
            input.bytes.clear();
        }
    }

    /// An input of which it is not known yet whether it passes; it is kept where the fuzzer keeps what fails.
    struct Tried {
        target: &'static str,
        bytes: Vec<u8>,
    }

    impl Drop for Tried {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let folder = fuzz_folder().join("failed").join(self.target);
                let path = folder.join(format!("mutated-{:016x}", xxhash_rust::xxh3::xxh3_64(&self.bytes)));
                let kept = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, &self.bytes));
                println!("{}: fails with {} ({kept:?})", self.target, path.display());
            }
        }
    }

    /// One of the inputs after a few changes: bytes, words of the dictionary, pieces of it and of the others.
    fn mutated(kept: &[Vec<u8>], words: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = random.choice(kept).expect("inputs").clone();
        for _ in 0..random.usize(1..=4) {
            let at = random.usize(..=bytes.len());
            let end = at + random.usize(..=(bytes.len() - at).min(64));
            match random.u8(..7) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
                1 if at < bytes.len() => bytes[at] = random.u8(..),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                4 => bytes.insert(at, random.u8(..)),
                5 => {
                    let other = random.choice(kept).expect("inputs");
                    bytes.splice(at.., other[random.usize(..=other.len())..].iter().copied());
                }
                _ => {
                    let word = random.choice(words).map_or(&[0xff][..], Vec::as_slice);
                    let until = at + word.len().min(bytes.len() - at);
                    bytes.splice(at..if random.bool() { at } else { until }, word.iter().copied());
                }
            }
        }
        bytes.truncate(LENGTH_MAX);
        bytes
    }

    /// The words of a dictionary, by their names where they have one, as libFuzzer reads them.
    fn words(dictionary: &str) -> Vec<(String, Vec<u8>)> {
        let word = |line: &str| {
            let (name, quoted) = line.split_once('"')?;
            let quoted = quoted.strip_suffix('"')?;
            let (mut bytes, mut rest) = (Vec::new(), quoted);
            while let Some(first) = rest.chars().next() {
                let escaped = rest.strip_prefix("\\x").and_then(|hex| u8::from_str_radix(hex.get(..2)?, 16).ok());
                bytes.push(escaped.or_else(|| u8::try_from(first).ok().filter(|_| first != '\\'))?);
                rest = &rest[if escaped.is_some() { 4 } else { 1 }..];
            }
            (!bytes.is_empty()).then(|| (name.trim_end_matches('=').to_owned(), bytes))
        };
        let lines = dictionary.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| word(line).unwrap_or_else(|| panic!("no word: {line}"))).collect()
    }

    /// Each target has words of its own, unless each of its bytes is a choice. What the dictionaries of sessions say is
    /// said as the wire has it.
    #[test]
    fn every_dictionary_is_one() {
        let fuzz = fuzz_folder();
        for target in std::fs::read_dir(fuzz.join("fuzz_targets")).expect("the targets") {
            let path = target.expect("a target").path();
            let target = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            let dictionary = std::fs::read_to_string(fuzz.join(format!("dictionaries/{target}.dict")));
            if ["core", "pair"].contains(&target.as_str()) {
                assert!(dictionary.is_err(), "{target} reads choices");
                continue;
            }
            let words = words(&dictionary.unwrap_or_else(|error| panic!("{target}: {error}")));
            assert!(words.len() >= 3, "{target}");
            for (name, bytes) in words.iter().filter(|(name, _)| name.starts_with("say_")) {
                assert!(bytes[0] == 0 && usize::from(bytes[1]) == bytes.len() - 2, "{target}, {name}: {bytes:02x?}");
                let mut said = bytes::BytesMut::from(&bytes[2..]);
                let frame = FrameCodec::default().decode(&mut said).unwrap_or_else(|error| panic!("{name}: {error}"));
                let known = match frame.unwrap_or_else(|| panic!("{target}: {name} is cut")).0 {
                    Frame::Packet(_) => !name.ends_with("unknown") && !name.ends_with("heartbeat"),
                    Frame::Heartbeat => name.ends_with("heartbeat"),
                    _ => name.ends_with("unknown"),
                };
                assert!(known && said.is_empty(), "{target}, {name}");
            }
        }
    }

    #[test]
    fn the_kept_corpus_of_core_passes() {
        replay("core", core);
    }

    #[test]
    fn the_kept_corpus_of_records_passes() {
        replay("records", records);
    }

    #[test]
    fn the_kept_corpus_of_config_passes() {
        replay("config", super::config);
    }

    #[test]
    fn the_kept_corpus_of_token_passes() {
        replay("token", token);
    }

    #[test]
    fn the_kept_corpus_of_cursor_passes() {
        replay("cursor", cursor);
    }

    #[test]
    fn the_kept_corpus_of_certificate_passes() {
        replay("certificate", certificate);
    }

    #[test]
    fn the_kept_corpus_of_tls_passes() {
        replay("tls", super::tls);
    }

    #[test]
    fn the_kept_corpus_of_hello_passes() {
        replay("hello", super::hello);
    }

    #[test]
    fn any_records_of_who_holds_the_keys_are_judged_as_the_model_does() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut data = vec![random.u8(..)];
            for _ in 0..random.usize(..60) {
                let how = random.u8(..6) | if random.u8(..40) == 0 { 0x80 } else { 0 };
                let plain: &[u8] = match random.u8(..8) {
                    0 => &[24, 0, 0, 1, 0],
                    1 => &[24, 0],
                    2 => &[0, 1, 1],
                    3 => &[1, 90],
                    4 => &[1, 0],
                    5 => &[],
                    _ => b"data",
                };
                let how = if random.u8(..4) > 0 && plain == b"data" { 0 } else { how };
                data.extend([&[how, plain.len() as u8], plain].concat());
            }
            // The first byte says how it is cut, too.
            data[0] = data.get(1).copied().unwrap_or(0);
            super::tls(&data[1..]);
        }
    }

    #[test]
    fn the_certificate_that_is_called_good_is() {
        let good = tls::configure((Path::new("certificate"), CERTIFICATE), (Path::new("key"), KEY));
        assert!(good.is_ok(), "{good:?}");
    }
}
