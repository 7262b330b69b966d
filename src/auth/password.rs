//! Passwords: argon2id, in the PHC string format. What one costs is the operator's to say; what a stored hash asks for is
//! bounded, since whoever administers accounts may have made it elsewhere.

use argon2::password_hash::{PasswordHash, SaltString};
use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use zeroize::Zeroize as _;

/// What one hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes in it.
    pub lanes: u32,
}

impl Default for Cost {
    /// The first choice of OWASP: 19 MiB, twice; some 20 ms.
    fn default() -> Self {
        Self { memory_kib: 19 << 10, passes: 2, lanes: 1 }
    }
}

/// The most memory that a stored hash may ask for: one a core is checked at a time.
const MEMORY_KIB_MAX: u32 = 256 << 10;
/// The most passes.
const PASSES_MAX: u32 = 16;
/// The most lanes.
const LANES_MAX: u32 = 16;
/// Bytes of salt.
const SALT_BYTES: usize = 16;

impl Cost {
    /// Whether a broker does this for one login.
    #[must_use]
    pub fn is_bearable(self) -> bool {
        self.memory_kib <= MEMORY_KIB_MAX
            && self.passes <= PASSES_MAX
            && self.lanes <= LANES_MAX
            && Params::new(self.memory_kib, self.passes, self.lanes, None).is_ok()
    }
}

/// What a password is checked by from now on. Takes as long as it costs.
///
/// # Errors
/// When the cost is none that argon2 knows, or the machine gives no randomness.
pub fn hash(password: &str, cost: Cost) -> Result<String, String> {
    let mut salt = [0; SALT_BYTES];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| "no randomness".to_owned())?;
    let salt = SaltString::encode_b64(&salt).map_err(|e| e.to_string())?;
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, None).map_err(|e| e.to_string())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password.as_bytes(), &salt).map(|hash| hash.to_string());
    overwrite_stack();
    hash.map_err(|e| e.to_string())
}

/// Whether this is the password. Takes as long as the hash says that it costs, and says nothing sooner.
#[must_use]
pub fn verify(password: &str, hash: &str) -> bool {
    let Some(parsed) = parse(hash) else { return false };
    let is_right = Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok();
    overwrite_stack();
    is_right
}

/// Overwrites the stack below the caller, where hashing has left the password: it stands at the beginning of what argon2 gives
/// to BLAKE2. That is some KiB deep.
#[inline(never)]
fn overwrite_stack() {
    let mut below = [0_u8; 32 << 10];
    below.zeroize();
    std::hint::black_box(&below);
}

/// Whether this is a hash that passwords can be checked by, at a bearable cost.
#[must_use]
pub fn is_hash(hash: &str) -> bool {
    parse(hash).is_some()
}

fn parse(hash: &str) -> Option<PasswordHash<'_>> {
    let parsed = PasswordHash::new(hash).ok()?;
    let params = Params::try_from(&parsed).ok()?;
    let cost = Cost { memory_kib: params.m_cost(), passes: params.t_cost(), lanes: params.p_cost() };
    let is_known = parsed.algorithm == Algorithm::Argon2id.ident() && parsed.hash.is_some() && parsed.salt.is_some();
    (is_known && cost.is_bearable()).then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 8, passes: 1, lanes: 1 };

    #[test]
    fn a_password_is_known_by_its_hash_and_no_other_is() {
        let one = hash("correct horse", CHEAP).expect("a hash");
        assert_ne!(one, hash("correct horse", CHEAP).expect("a hash"), "each has its salt");
        assert!(verify("correct horse", &one));
        for other in ["", "correct hors", "correct horse ", "Correct horse"] {
            assert!(!verify(other, &one), "{other:?}");
        }
        for cut in 0..one.len() {
            assert!(!verify("correct horse", &one[..cut]), "cut at {cut}");
        }
    }

    #[test]
    fn a_hash_that_asks_for_too_much_is_none() {
        let good = hash("x", CHEAP).expect("a hash");
        assert!(is_hash(&good));
        for bad in [
            good.replace("m=8,", "m=4194304,"),
            good.replace("t=1,", "t=1000,"),
            good.replace("argon2id", "argon2i"),
            "$argon2id$v=19$m=8,t=1,p=1".to_owned(),
            "plain text".to_owned(),
        ] {
            assert!(!is_hash(&bad), "{bad}");
        }
        assert!(Cost::default().is_bearable() && !Cost { lanes: 0, ..CHEAP }.is_bearable());
    }
}
