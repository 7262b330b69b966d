//! The tokens: EdDSA JWTs. `longwire token` makes them here; other issuers make them with any JWT library.

use std::collections::HashMap;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use longwire_protocol::limits::USER_NAME_BYTES_MAX;
use longwire_protocol::names::is_name;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::Identity;
use super::accounts::Accounts;

/// The `aud` that every token has to name.
pub const AUDIENCE: &str = "longwire";
/// The `aud` of an invitation.
pub const INVITATION_AUDIENCE: &str = "longwire-invitation";
/// The longest id of an invitation.
const INVITATION_ID_BYTES_MAX: usize = 64;
/// The longest token.
const TOKEN_BYTES_MAX: usize = 3 << 10;
/// Patterns in one token.
const PATTERNS_MAX: usize = 64;

/// The claims of a token, as SPEC names them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who made it.
    pub iss: String,
    /// The user's name.
    pub sub: String,
    /// `longwire`; of several, as JWTs may have them, that one.
    #[serde(deserialize_with = "audience")]
    pub aud: String,
    /// When it ends, in seconds since 1970; a fraction is left out.
    #[serde(deserialize_with = "seconds")]
    pub exp: u64,
    /// When it was made.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "seconds")]
    pub iat: u64,
    /// Its id, for revocation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// The one device that may use it; any, if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Patterns of channels it may publish to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Patterns of channels it may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
    /// Patterns of channels it moderates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moderate: Vec<String>,
    /// Whether it may administer accounts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// How often the tokens of the user, and those of the device, had been taken back: in the broker's own tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<(u32, u32)>,
}

impl Claims {
    /// Who the bearer is, once the token is verified. Only of the broker's own is the generation believed, and none of
    /// those administers or moderates anything.
    pub(super) fn identity(self, is_own: bool) -> Identity {
        Identity {
            user: self.sub.into(),
            device: self.device.map(Into::into),
            publish: self.publish,
            read: self.read,
            moderate: if is_own { Vec::new() } else { self.moderate },
            expires: self.exp,
            issued: self.iat,
            id: self.jti.into(),
            is_admin: self.admin && !is_own,
            generation: self.generation.filter(|_| is_own),
        }
    }
}

/// An invitation: whoever has it makes one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Who made it.
    pub iss: String,
    /// [`INVITATION_AUDIENCE`].
    pub aud: String,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// Its id: it is used once.
    pub jti: String,
    /// The one name that it is for; any, if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
}

/// One audience, or a list of which at most one is ours.
fn audience<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => one,
        Audience::Several(all) => all.into_iter().find(|one| one == AUDIENCE).unwrap_or_default(),
    })
}

/// Seconds, which JWTs may give with a fraction.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Seconds {
        Whole(u64),
        Part(f64),
    }
    Ok(match Seconds::deserialize(deserializer)? {
        Seconds::Whole(seconds) => seconds,
        Seconds::Part(seconds) => Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)?.as_secs(),
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Why a token is not believed. Says nothing of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than any token may be.
    #[error("the token is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// No JWT, another algorithm, an issuer that is not configured, or a wrong signature.
    #[error("the token is not one of a configured issuer")]
    Invalid,
    /// For another audience.
    #[error("the token is not for the audience \"{AUDIENCE}\"")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// The claims contradict SPEC.
    #[error("a claim of the token is malformed")]
    Claims,
    /// The operator took it back.
    #[error("the token was revoked")]
    Revoked,
}

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// Verifies a token against the key of the issuer that it names; `own` are the broker's own.
pub(super) fn verify(
    token: &str,
    issuers: &HashMap<String, DecodingKey>,
    own: Option<&Accounts>,
    now_unix: u64,
) -> Result<Identity, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::TooLong);
    }
    let issuer = issuer_of(token)?;
    let own = own.filter(|own| own.settings.issuer == issuer);
    let key = own.map(|own| &own.key).or_else(|| issuers.get(&issuer)).ok_or(TokenError::Invalid)?;
    let claims: Claims = decode(token, key, &["exp", "iss", "sub", "aud"])?;
    if claims.aud != AUDIENCE {
        return Err(TokenError::Audience);
    }
    if claims.exp <= now_unix {
        return Err(TokenError::Expired);
    }
    if !is_name(&claims.sub, USER_NAME_BYTES_MAX)
        || claims.publish.len() > PATTERNS_MAX
        || claims.read.len() > PATTERNS_MAX
        || claims.moderate.len() > PATTERNS_MAX
    {
        return Err(TokenError::Claims);
    }
    Ok(claims.identity(own.is_some()))
}

/// Verifies an invitation against the key of the issuer that it names.
pub(super) fn verify_invitation(
    invitation: &str,
    issuers: &HashMap<String, DecodingKey>,
    user: &str,
    now_unix: u64,
) -> Result<(Box<str>, u64), TokenError> {
    let key = issuers.get(&issuer_of(invitation)?).ok_or(TokenError::Invalid)?;
    let claims: Invitation = decode(invitation, key, &["exp", "iss", "aud"])?;
    if claims.aud != INVITATION_AUDIENCE {
        return Err(TokenError::Audience);
    }
    if claims.exp <= now_unix {
        return Err(TokenError::Expired);
    }
    if claims.jti.is_empty() || claims.jti.len() > INVITATION_ID_BYTES_MAX {
        return Err(TokenError::Claims);
    }
    if claims.sub.is_some_and(|sub| sub != user) {
        return Err(TokenError::Claims);
    }
    Ok((claims.jti.into(), claims.exp))
}

fn issuer_of(token: &str) -> Result<String, TokenError> {
    let claimed: Issuer = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenError::Invalid)?;
    Ok(claimed.iss)
}

fn decode<C: serde::de::DeserializeOwned>(token: &str, key: &DecodingKey, required: &[&str]) -> Result<C, TokenError> {
    // The time is the caller's, so that tests and a broken clock are one matter: it is compared there.
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.set_required_spec_claims(required);
    Ok(jsonwebtoken::decode::<C>(token, key, &validation).map_err(|_| TokenError::Invalid)?.claims)
}

/// Makes a token, or an invitation, with an Ed25519 private key in PKCS#8 PEM.
///
/// # Errors
/// When the key is none.
pub fn issue(claims: &impl Serialize, private_key_pem: &[u8]) -> Result<String, String> {
    let key =
        EncodingKey::from_ed_pem(private_key_pem).map_err(|e| format!("not an Ed25519 key in PKCS#8 PEM: {e}"))?;
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).map_err(|e| e.to_string())
}

/// A new issuer's key: private (PKCS#8) and public (SPKI), both in PEM.
///
/// # Errors
/// When the machine gives no randomness.
pub fn generate_key() -> Result<(String, String), String> {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| e.to_string())?;
    Ok((pair.serialize_pem(), pair.public_key_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims { iss: "test".into(), sub: "alice".into(), aud: AUDIENCE.into(), exp: 1_000, ..Claims::default() }
    }

    fn issuers(public: &str) -> HashMap<String, DecodingKey> {
        HashMap::from([("test".into(), DecodingKey::from_ed_pem(public.as_bytes()).expect("a public key"))])
    }

    #[test]
    fn a_token_names_its_user_until_it_expires() {
        let (private, public) = generate_key().expect("a key");
        let token = issue(&claims(), private.as_bytes()).expect("a token");
        let identity = verify(&token, &issuers(&public), None, 999).expect("believed");
        assert_eq!(&*identity.user, "alice");
        assert_eq!(verify(&token, &issuers(&public), None, 1_000), Err(TokenError::Expired));
    }

    /// SPEC R12-3: what RFC 7519 lets libraries write is read, and nothing beyond that.
    #[test]
    fn audiences_may_be_several_and_times_have_a_fraction() {
        let (private, public) = generate_key().expect("a key");
        let key = EncodingKey::from_ed_pem(private.as_bytes()).expect("a key");
        let of = |change: serde_json::Value| {
            let mut claims = serde_json::json!({"iss": "test", "sub": "alice", "aud": AUDIENCE, "exp": 1_000});
            let (claims, change) = (claims.as_object_mut().expect("an object"), change);
            claims.extend(change.as_object().expect("an object").clone());
            claims.retain(|_, value| !value.is_null());
            let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).expect("a token");
            verify(&token, &issuers(&public), None, 999).map(|identity| (identity.expires, identity.issued))
        };
        assert_eq!(of(serde_json::json!({"aud": ["other", AUDIENCE], "exp": 1000.9, "iat": 5.5})), Ok((1_000, 5)));
        assert_eq!(of(serde_json::json!({"aud": ["other"]})), Err(TokenError::Audience));
        assert_eq!(of(serde_json::json!({"aud": []})), Err(TokenError::Audience));
        assert_eq!(of(serde_json::json!({"exp": 999.9})), Err(TokenError::Expired));
        for wrong in
            [serde_json::json!({"exp": -1.5}), serde_json::json!({"exp": 1e300}), serde_json::json!({"exp": "1000"})]
        {
            assert_eq!(of(wrong.clone()), Err(TokenError::Invalid), "{wrong}");
        }
        for absent in ["iss", "sub", "aud", "exp"] {
            assert_eq!(of(serde_json::json!({absent: null})), Err(TokenError::Invalid), "without {absent}");
        }
    }

    /// SPEC R12-4, R15-20: whatever the broker's own key signed.
    #[test]
    fn the_brokers_own_tokens_neither_administer_nor_moderate() {
        let claims = Claims { moderate: vec!["**".into()], admin: true, ..claims() };
        let (own, other) = (claims.clone().identity(true), claims.identity(false));
        assert!(own.moderate.is_empty() && !own.is_admin);
        assert!(other.moderate == ["**"] && other.is_admin);
    }

    /// SPEC R12-3.
    #[test]
    fn what_is_not_signed_for_this_broker_is_not_believed() {
        let (private, public) = generate_key().expect("a key");
        let (_, other) = generate_key().expect("another key");
        let token = issue(&claims(), private.as_bytes()).expect("a token");
        assert_eq!(verify(&token, &issuers(&other), None, 0), Err(TokenError::Invalid), "another key");
        assert_eq!(verify(&token, &HashMap::new(), None, 0), Err(TokenError::Invalid), "no issuer");
        let audience = issue(&Claims { aud: "other".into(), ..claims() }, private.as_bytes()).expect("a token");
        assert_eq!(verify(&audience, &issuers(&public), None, 0), Err(TokenError::Audience));
        let nobody = issue(&Claims { sub: String::new(), ..claims() }, private.as_bytes()).expect("a token");
        assert_eq!(verify(&nobody, &issuers(&public), None, 0), Err(TokenError::Claims));
        assert_eq!(verify(&"x".repeat(TOKEN_BYTES_MAX + 1), &issuers(&public), None, 0), Err(TokenError::TooLong));
        // Another algorithm, with the public key as its secret.
        let secret = EncodingKey::from_secret(public.as_bytes());
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret).expect("a token");
        assert_eq!(verify(&forged, &issuers(&public), None, 0), Err(TokenError::Invalid));
        for cut in 0..token.len() {
            assert!(verify(&token[..cut], &issuers(&public), None, 0).is_err(), "cut at {cut}");
        }
    }
}
