//! The bodies of the fuzz targets. They live here so that they always compile; `fuzz/` holds one line for each, and the
//! tests below replay the corpus that is kept.

use bytes::BytesMut;
use tokio_util::codec::Decoder as _;

use crate::{
    BrokerLimits, BrokerSession, Frame, FrameCodec, Millis, frame,
    limits::{FRAME_BYTES_CEILING, FRAME_BYTES_MAX, PRE_AUTH_FRAME_BYTES_MAX},
    packet,
};

/// Any bytes, in any pieces: the first byte says how they are cut and which limit holds, the rest is what arrives.
///
/// # Panics
/// If a frame means something else when its bytes come in pieces, if what was decoded does not survive being encoded
/// and decoded again, if more is reserved than the limit allows, or if a session panics.
pub fn frame(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let limit = if how & 0x80 == 0 { PRE_AUTH_FRAME_BYTES_MAX } else { FRAME_BYTES_MAX };
    let whole = decode_all(bytes, bytes.len().max(1), limit);
    let pieces = decode_all(bytes, usize::from(how & 0x7f).max(1), limit);
    assert_eq!(whole, pieces, "the pieces in which bytes arrive must not matter");
    for frame in &whole.0 {
        if let Frame::Packet(kind) = frame {
            let mut wire = BytesMut::new();
            frame::encode(kind, &mut wire);
            assert_eq!(wire.len(), frame::encoded_len(kind));
            // It may be shorter (padding, defaults spelled out) or longer (a negative number in an enumeration).
            let again = FrameCodec::new(FRAME_BYTES_CEILING).decode(&mut wire);
            assert_eq!(again.map(|item| item.map(|(frame, _)| frame)).as_ref(), Ok(&Some(frame.clone())));
        }
    }
    feed_session(&whole.0);
}

/// All frames of these bytes when they arrive in pieces, and whether they ended in an error.
fn decode_all(bytes: &[u8], piece: usize, limit: u32) -> (Vec<Frame>, bool) {
    let mut codec = FrameCodec::new(limit);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some((frame, _))) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
            let reserved_max = 4 * (limit as usize + bytes.len() + 64);
            assert!(buffer.capacity() <= reserved_max, "{} bytes reserved", buffer.capacity());
        }
    }
    (frames, false)
}

/// A session takes whatever frames come, after a `Connect` that is let in.
fn feed_session(frames: &[Frame]) {
    let connect = packet::Connect { version: 1, device: "d".into(), ..Default::default() };
    let mut now = Millis(0);
    let mut session = BrokerSession::<u64>::new(now, BrokerLimits::default());
    let mut out = BytesMut::new();
    let first = Frame::Packet(packet::packet::Kind::Connect(connect));
    if session.handle_frame(now, first, 10).is_ok() {
        session.accept(now, packet::Connected::default());
    }
    for frame in frames {
        now = now.after(1);
        let event = session.handle_frame(now, frame.clone(), 10);
        drop(event);
        while session.poll_event().is_some() {}
        session.poll_transmit(now, &mut out, 1 << 16);
        out.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every input that is kept under `fuzz/corpus/frame` passes; among them are all vectors.
    #[test]
    fn the_kept_corpus_of_frame_passes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frame");
        if std::env::var_os("LONGWIRE_GENERATE").is_some() {
            write_vectors(&folder);
        }
        let mut count = 0;
        for entry in std::fs::read_dir(folder).expect("the corpus") {
            let path = entry.expect("an entry").path();
            super::frame(&std::fs::read(&path).expect("an input"));
            count += 1;
        }
        assert!(count >= 70, "the corpus is there: {count}");
    }

    /// Every vector as an input: cut into sevens, with the limit of an open session.
    fn write_vectors(folder: &Path) {
        std::fs::create_dir_all(folder).expect("the folder");
        for (file, key) in [("good.jsonl", "frame"), ("bad.jsonl", "bytes")] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
            for line in std::fs::read_to_string(path).expect("vectors").lines() {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let text = line[key].as_str().expect("hex");
                let bytes =
                    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"));
                let input: Vec<u8> = std::iter::once(0x87).chain(bytes).collect();
                let name = line["name"].as_str().expect("a name");
                std::fs::write(folder.join(name), input).expect("write an input");
            }
        }
    }
}
