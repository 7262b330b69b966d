//! Tokens that were verified not long ago: a signature costs more than everything else that a connect asks of this
//! process but the TLS handshake, and clients come back with the token that they have.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

use super::Identity;

/// SHA-256 of a token: nobody finds two tokens with one, so it stands for the token, and holds no secret.
type Digest = [u8; 32];

/// Identities by their token's digest. Two halves: once the newer is full the older one is forgotten and they change
/// places, so that what is in use stays and nothing has to be counted.
#[derive(Debug)]
pub(super) struct Cache {
    half: usize,
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    newer: HashMap<Digest, Arc<Identity>, foldhash::fast::RandomState>,
    older: HashMap<Digest, Arc<Identity>, foldhash::fast::RandomState>,
}

/// Identities that are remembered: with what most tokens say, 300 bytes each, and never more than 1.5 KiB. A live session
/// shares its own.
const IDENTITIES_MAX: usize = 65_536;
/// The longest token that is remembered, so that memory is bounded; longer ones are verified each time.
const TOKEN_BYTES_MAX: usize = 768;
/// The most patterns in it, likewise.
const PATTERNS_MAX: usize = 8;

impl Default for Cache {
    fn default() -> Self {
        Self::of(IDENTITIES_MAX)
    }
}

impl Cache {
    fn of(identities_max: usize) -> Self {
        Self { half: identities_max / 2, halves: Mutex::default() }
    }

    /// Whether a token is one to remember.
    pub(super) fn takes(token: &str, identity: &Identity) -> bool {
        let patterns = identity.publish.len() + identity.read.len() + identity.moderate.len();
        token.len() <= TOKEN_BYTES_MAX && patterns <= PATTERNS_MAX
    }

    /// The identity of a token that was verified; whether it still holds is the caller's to ask.
    pub(super) fn get(&self, token: &str) -> Option<Arc<Identity>> {
        let key = key(token);
        let mut halves = self.lock();
        if let Some(known) = halves.newer.get(&key) {
            return Some(Arc::clone(known));
        }
        let known = halves.older.remove(&key)?;
        self.insert(&mut halves, key, Arc::clone(&known));
        Some(known)
    }

    /// Remembers a token that was verified.
    pub(super) fn put(&self, token: &str, identity: Arc<Identity>) {
        self.insert(&mut self.lock(), key(token), identity);
    }

    fn insert(&self, halves: &mut Halves, key: Digest, identity: Arc<Identity>) {
        if halves.newer.len() >= self.half {
            halves.older = mem::take(&mut halves.newer);
        }
        halves.newer.insert(key, identity);
    }

    /// Forgets everything: other issuers are believed from now on.
    pub(super) fn clear(&self) {
        *self.lock() = Halves::default();
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        // Whole after every step: a thread that panicked left nothing half done.
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(token: &str) -> Digest {
    let mut key = Digest::default();
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(number: u64) -> Arc<Identity> {
        Arc::new(Identity {
            user: number.to_string().into(),
            device: None,
            publish: Vec::new(),
            read: Vec::new(),
            moderate: Vec::new(),
            expires: 0,
            issued: 0,
            id: Box::default(),
            is_admin: false,
            generation: None,
        })
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_bounded() {
        let cache = Cache::of(10);
        cache.put("used", identity(0));
        for number in 1..1_000 {
            cache.put(&number.to_string(), identity(number));
            assert_eq!(cache.get("used"), Some(identity(0)), "after {number}");
            let halves = cache.lock();
            assert!(halves.newer.len() + halves.older.len() <= 10);
        }
        assert_eq!(cache.get("999"), Some(identity(999)));
        assert_eq!(cache.get("1"), None, "not used for long");
        cache.clear();
        assert_eq!(cache.get("used"), None);
    }
}
