//! What the kernel holds for a socket at rest: measured on real ones, since a byte stream in memory has none.

use std::net::{TcpListener, TcpStream};

use super::super::super::super::Fail;
use super::super::super::load::process::slab_bytes;

/// Pairs of sockets that are looked at; both ends are on this machine.
const PAIRS_MAX: u64 = 5_000;

/// Bytes of the kernel's slabs for one end of a TCP connection at rest. Others on this machine blur it. `None` where the
/// system does not say.
pub(super) fn socket_bytes(files: u64) -> Result<Option<f64>, Fail> {
    let pairs = PAIRS_MAX.min(files.saturating_sub(1) / 2);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let before = slab_bytes();
    let mut held = Vec::new();
    for _ in 0..pairs {
        held.push(TcpStream::connect(address)?);
        held.push(listener.accept()?.0);
    }
    let grown = slab_bytes().zip(before).map(|(after, before)| after.saturating_sub(before) as f64);
    Ok(grown.map(|grown| grown / held.len().max(1) as f64))
}
