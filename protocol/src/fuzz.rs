//! The bodies of the fuzz targets of the wire. They live here so that they always compile; `fuzz/` holds one line for
//! each, and the tests below replay the corpora that are kept.

mod broker;
mod client;
mod frame;
mod input;
mod packet;
mod pair;

pub use broker::session_broker;
pub use client::session_client;
pub use frame::frame;
pub use packet::packet;
pub use pair::pair;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn corpus(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
    }

    /// Every input that is kept of a target passes.
    fn replay(target: &str, body: fn(&[u8])) {
        let mut count = 0;
        for entry in std::fs::read_dir(corpus(target)).expect("the corpus") {
            let path = entry.expect("an entry").path();
            body(&std::fs::read(&path).expect("an input"));
            count += 1;
        }
        assert!(count >= 5, "the corpus of {target} is there: {count}");
    }

    /// Among them are all vectors.
    #[test]
    fn the_kept_corpus_of_frame_passes() {
        if std::env::var_os("LONGWIRE_GENERATE").is_some() {
            write_vectors();
        }
        replay("frame", super::frame);
    }

    #[test]
    fn the_kept_corpus_of_packet_passes() {
        replay("packet", super::packet);
    }

    #[test]
    fn the_kept_corpus_of_session_broker_passes() {
        replay("session_broker", super::session_broker);
    }

    #[test]
    fn the_kept_corpus_of_session_client_passes() {
        replay("session_client", super::session_client);
    }

    #[test]
    fn the_kept_corpus_of_pair_passes() {
        replay("pair", super::pair);
    }

    /// Every vector as an input of `frame`, cut into sevens, with the limit of an open session; and the good ones as
    /// inputs of `packet`.
    fn write_vectors() {
        for (file, key) in [("good.jsonl", "frame"), ("bad.jsonl", "bytes")] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
            for line in std::fs::read_to_string(path).expect("vectors").lines() {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let text = line[key].as_str().expect("hex");
                let bytes: Vec<u8> = (0..text.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
                    .collect();
                let name = line["name"].as_str().expect("a name");
                write("frame", name, &[&[0x87], &bytes[..]].concat());
                let prefix = bytes.iter().take_while(|byte| **byte >= 0x80).count() + 1;
                if key == "frame" && bytes.len() > prefix {
                    write("packet", name, &bytes[prefix..]);
                }
            }
        }
    }

    fn write(target: &str, name: &str, input: &[u8]) {
        std::fs::create_dir_all(corpus(target)).expect("the folder");
        std::fs::write(corpus(target).join(name), input).expect("write an input");
    }
}
