//! From a credential to an identity: Ed25519 JWTs of configured issuers, and what the operator has revoked since.
//! Knows nothing of sockets, conversations or the store.

mod accounts;
mod cache;
mod guesses;
pub mod password;
mod revocation;
mod token;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use cache::Cache;
use jsonwebtoken::DecodingKey;

pub use accounts::{Accounts, AccountsSettings, Registration};
pub use guesses::Guesses;
pub use revocation::{RevocationError, Revocations};
pub use token::{AUDIENCE, Claims, INVITATION_AUDIENCE, Invitation, TokenError, generate_key, issue};

/// Who a verified token says its bearer is, and what it may do. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub user: Box<str>,
    /// The one device that may use the token, where it is bound to one.
    pub device: Option<Box<str>>,
    /// Patterns of channels it may publish to.
    pub publish: Vec<String>,
    /// Patterns of channels it may read.
    pub read: Vec<String>,
    /// Patterns of channels it moderates.
    pub moderate: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// When it was made, likewise; 0 where it does not say.
    pub issued: u64,
    /// The token's own id; empty where it has none.
    pub id: Box<str>,
    /// Whether it may administer accounts.
    pub is_admin: bool,
    /// The generation of the user's and the device's tokens, if it is the broker's own.
    pub generation: Option<(u32, u32)>,
}

/// Whose tokens are believed, and which are not any more. Shared by all connections; both parts can be swapped.
#[derive(Default)]
pub struct Authority {
    issuers: ArcSwap<HashMap<String, DecodingKey>>,
    revocations: Arc<ArcSwap<Revocations>>,
    /// Set once, before the first connection.
    accounts: OnceLock<Accounts>,
    generation: AtomicU64,
    verified: Cache,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let issuers: Vec<_> = self.issuers.load().keys().cloned().collect();
        f.debug_struct("Authority").field("issuers", &issuers).finish_non_exhaustive()
    }
}

impl Authority {
    /// Believes these issuers from now on: each name (`iss`) with its Ed25519 public key in PEM.
    ///
    /// # Errors
    /// The name of the issuer whose key is none, and why; nothing is changed then.
    pub fn set_issuers(&self, keys: &[(String, Vec<u8>)]) -> Result<(), (String, String)> {
        let mut issuers = HashMap::new();
        for (name, pem) in keys {
            let key = DecodingKey::from_ed_pem(pem).map_err(|e| (name.clone(), e.to_string()))?;
            issuers.insert(name.clone(), key);
        }
        self.issuers.store(Arc::new(issuers));
        // Before what is remembered goes: who verified meanwhile sees that it has risen, and forgets again.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.verified.clear();
        Ok(())
    }

    /// Believes no longer what is revoked here.
    pub fn set_revocations(&self, revocations: Revocations) {
        self.revocations.store(Arc::new(revocations));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What is revoked, now and from then on.
    #[must_use]
    pub fn revocations(&self) -> Arc<ArcSwap<Revocations>> {
        Arc::clone(&self.revocations)
    }

    /// Lets people in by password, and believes the tokens that these accounts make.
    ///
    /// # Panics
    /// When it was called before.
    pub fn set_accounts(&self, accounts: Accounts) {
        assert!(self.accounts.set(accounts).is_ok(), "accounts are set once");
    }

    /// How people are let in by password, if they are.
    #[must_use]
    pub fn accounts(&self) -> Option<&Accounts> {
        self.accounts.get()
    }

    /// The id of an invitation for this user, and when it ends.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify_invitation(&self, invitation: &str, user: &str, now: u64) -> Result<(Box<str>, u64), TokenError> {
        token::verify_invitation(invitation, &self.issuers.load(), user, now)
    }

    /// Rises whenever something is no longer believed that was: live sessions ask [`Self::is_revoked`] again.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the operator took back what this identity was given.
    #[must_use]
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.load().revokes(identity)
    }

    /// The identity of a token. Costs one signature check, about 0.1 ms; a hundredth of that for a token that was
    /// verified not long ago.
    ///
    /// # Errors
    /// Why it is not believed. The same words for an unknown issuer and a wrong signature.
    pub fn verify(&self, token: &str, now_unix: u64) -> Result<Arc<Identity>, TokenError> {
        let identity = match self.verified.get(token) {
            Some(identity) if identity.expires <= now_unix => return Err(TokenError::Expired),
            Some(identity) => identity,
            None => {
                let generation = self.generation();
                let identity = Arc::new(token::verify(token, &self.issuers.load(), self.accounts(), now_unix)?);
                if Cache::takes(token, &identity) {
                    self.verified.put(token, Arc::clone(&identity));
                }
                if self.generation() != generation {
                    // Believed by issuers that may not be any more: the next one asks again.
                    self.verified.clear();
                }
                identity
            }
        };
        if self.is_revoked(&identity) {
            return Err(TokenError::Revoked);
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Authority, String) {
        let (private, public) = generate_key().expect("a key");
        let authority = Authority::default();
        authority.set_issuers(&[("test".into(), public.into_bytes())]).expect("a public key");
        let claims = Claims {
            iss: "test".into(),
            sub: "alice".into(),
            aud: AUDIENCE.into(),
            exp: 1_000,
            jti: "one".into(),
            ..Claims::default()
        };
        (authority, issue(&claims, private.as_bytes()).expect("a token"))
    }

    /// SPEC R12-3: also of a token that was believed before.
    #[test]
    fn a_token_that_was_believed_is_asked_about_again() {
        let (authority, token) = authority();
        for _ in 0..2 {
            assert_eq!(authority.verify(&token, 999).map(|identity| identity.user.clone()), Ok("alice".into()));
        }
        assert_eq!(authority.verify(&token, 1_000), Err(TokenError::Expired));
        authority.set_revocations(Revocations::parse("token one").expect("a revocation"));
        assert_eq!(authority.verify(&token, 999), Err(TokenError::Revoked));
        authority.set_revocations(Revocations::default());
        assert!(authority.verify(&token, 999).is_ok());
        authority.set_issuers(&[]).expect("nobody");
        assert_eq!(authority.verify(&token, 999), Err(TokenError::Invalid), "its issuer is not believed any more");
    }

    #[test]
    fn a_token_that_is_not_believed_is_not_remembered() {
        let (authority, token) = authority();
        let forged = format!("{}x", token);
        assert_eq!(authority.verify(&forged, 999), Err(TokenError::Invalid));
        assert_eq!(authority.verified.get(&forged), None);
        assert_eq!(authority.verify(&token, 1_000), Err(TokenError::Expired));
        assert_eq!(authority.verified.get(&token), None);
    }
}
