//! What a broker needs to let people in by password: tokens of its own, and who may make an account.

use jsonwebtoken::DecodingKey;

use super::password::Cost;
use super::token::{AUDIENCE, Claims, issue};
use super::{Identity, password};

/// Who may make an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Registration {
    /// Administrators alone.
    #[default]
    Closed,
    /// Whoever has an invitation, once.
    Invitation,
    /// Anyone.
    Open,
}

/// What accounts are made of, as the operator wants them.
#[derive(Clone, Debug, Default)]
pub struct AccountsSettings {
    /// The `iss` of the broker's own tokens.
    pub issuer: String,
    /// How long they are good, in seconds.
    pub token_life_s: u64,
    /// Who may make an account.
    pub registration: Registration,
    /// Patterns of channels that whoever has a password may publish to.
    pub publish: Vec<String>,
    /// Patterns of channels that it may read.
    pub read: Vec<String>,
    /// What a password costs.
    pub cost: Cost,
}

/// See the module.
pub struct Accounts {
    pub(super) settings: AccountsSettings,
    pub(super) key: DecodingKey,
    private_pem: String,
    /// What the password of a user that there is not is checked by, so that it takes as long as another.
    nobody: String,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Accounts {
    /// Accounts whose tokens are signed with this Ed25519 private key, in PKCS#8 PEM.
    ///
    /// # Errors
    /// When that is no such key.
    pub fn new(settings: AccountsSettings, private_pem: String) -> Result<Self, String> {
        let pair = rcgen::KeyPair::from_pem(&private_pem).map_err(|e| e.to_string())?;
        let key = DecodingKey::from_ed_pem(pair.public_key_pem().as_bytes()).map_err(|e| e.to_string())?;
        let nobody = password::hash("nobody's", settings.cost)?;
        Ok(Self { settings, key, private_pem, nobody })
    }

    /// What the operator wants.
    #[must_use]
    pub fn settings(&self) -> &AccountsSettings {
        &self.settings
    }

    /// Whether this is the password that was stored. Takes as long where none was.
    #[must_use]
    pub fn verify(&self, password: &str, stored: Option<&str>) -> bool {
        password::verify(password, stored.unwrap_or(&self.nobody)) && stored.is_some()
    }

    /// Who someone is that gave the right password: what the token will say that is made once the device is let in.
    #[must_use]
    pub fn identity(&self, user: &str, device: &str, now_unix: u64) -> Identity {
        self.claims(user, device, (0, 0), now_unix).identity(true)
    }

    /// A token for a user's device, of this generation, and what it says.
    ///
    /// # Errors
    /// When the key signs nothing.
    pub fn mint(
        &self,
        user: &str,
        device: &str,
        generation: (u32, u32),
        now_unix: u64,
    ) -> Result<(String, Identity), String> {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| "no randomness".to_owned())?;
        let jti = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let claims = Claims { jti, ..self.claims(user, device, generation, now_unix) };
        let token = issue(&claims, self.private_pem.as_bytes())?;
        Ok((token, claims.identity(true)))
    }

    fn claims(&self, user: &str, device: &str, generation: (u32, u32), now_unix: u64) -> Claims {
        let settings = &self.settings;
        Claims {
            iss: settings.issuer.clone(),
            sub: user.to_owned(),
            aud: AUDIENCE.to_owned(),
            exp: now_unix + settings.token_life_s,
            iat: now_unix,
            jti: String::new(),
            device: Some(device.to_owned()),
            publish: settings.publish.clone(),
            read: settings.read.clone(),
            moderate: Vec::new(),
            admin: false,
            generation: Some(generation),
        }
    }

    /// Whether a token of the broker's own is in the second half of its life: whoever comes with it gets another.
    #[must_use]
    pub fn is_aging(&self, identity: &Identity, now_unix: u64) -> bool {
        identity.generation.is_some() && identity.expires.saturating_sub(now_unix) < self.settings.token_life_s / 2
    }
}
