//! The keys of one direction, and the number of its next record. A cipher is opened from them when it is needed, and
//! closed with [`Keys::rest`].

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, NONCE_LEN,
    OutboundChunks, OutboundPlainMessage, Tls13AeadAlgorithm,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion};

/// The ciphers of a suite.
pub type Ciphers = &'static dyn Tls13AeadAlgorithm;

/// What opens the records that arrive.
pub type Opener = Keys<dyn MessageDecrypter>;
/// What seals the records that leave.
pub type Sealer = Keys<dyn MessageEncrypter>;

/// The only length of a key that the library takes as bytes. A cipher of shorter keys stays open.
const KEY_BYTES: usize = 32;

/// Beyond this no record is numbered; nobody sends so many.
const NUMBER_MAX: u64 = u64::MAX - (1 << 16);

/// See the module.
pub struct Keys<C: ?Sized> {
    /// None if it is shorter than [`KEY_BYTES`] and a cipher was opened: that one stays.
    key: Option<AeadKey>,
    iv: Iv,
    next: u64,
    cipher: Option<Box<C>>,
}

impl<C: ?Sized> Keys<C> {
    /// From what the library gives out, with the number of the next record.
    ///
    /// # Errors
    /// With ciphers of a kind that this library version does not have.
    pub fn new((next, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv }) = secrets else {
            return Err(Error::General("secrets of an unknown kind".into()));
        };
        Ok(Self { key: Some(key), iv, next, cipher: None })
    }

    /// Records so far.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Closes the cipher, unless it could not be opened again.
    pub fn rest(&mut self) {
        if self.key.is_some() {
            self.cipher = None;
        }
    }

    fn number(&mut self) -> Result<u64, Error> {
        if self.next >= NUMBER_MAX {
            return Err(Error::General("all numbers of records are used".into()));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// A key and an IV to open a cipher with; none if that is open.
    fn copy(&mut self) -> Option<(AeadKey, Iv)> {
        let key = match <[u8; KEY_BYTES]>::try_from(self.key.as_ref()?.as_ref()) {
            Ok(bytes) => AeadKey::from(bytes),
            Err(_) => self.key.take()?,
        };
        let mut iv = [0; NONCE_LEN];
        iv.copy_from_slice(self.iv.as_ref());
        Some((key, Iv::from(iv)))
    }
}

impl Opener {
    /// Opens a record in place: its type, and its body behind the header.
    ///
    /// # Errors
    /// When it was not sealed by the peer as the next one, or its inside breaks a rule.
    pub fn open<'a>(&mut self, ciphers: Ciphers, body: &'a mut [u8]) -> Result<InboundPlainMessage<'a>, Error> {
        if self.cipher.is_none()
            && let Some((key, iv)) = self.copy()
        {
            self.cipher = Some(ciphers.decrypter(key, iv));
        }
        let number = self.number()?;
        let cipher = self.cipher.as_mut().ok_or(Error::DecryptError)?;
        let record = InboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, body);
        cipher.decrypt(record, number)
    }
}

impl Sealer {
    /// Seals one record of this type, and appends it to `out`. `plain` is no longer than a record holds.
    ///
    /// # Errors
    /// When no number is left.
    pub fn seal(&mut self, ciphers: Ciphers, typ: ContentType, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if self.cipher.is_none()
            && let Some((key, iv)) = self.copy()
        {
            let mut cipher = ciphers.encrypter(key, iv);
            if self.next > 0 {
                // The cipher sees to it that numbers rise, counted from the first nonce it is shown, which it takes for
                // that of number 0. So it is shown that one first; what it makes of it is dropped here and seen by nobody.
                drop(cipher.encrypt(outbound(ContentType::ApplicationData, &[]), 0)?);
            }
            self.cipher = Some(cipher);
        }
        let number = self.number()?;
        let cipher = self.cipher.as_mut().ok_or(Error::EncryptError)?;
        let sealed = cipher.encrypt(outbound(typ, plain), number)?.encode();
        if out.is_empty() {
            *out = sealed
        } else {
            out.extend_from_slice(&sealed)
        }
        Ok(())
    }
}

fn outbound(typ: ContentType, plain: &[u8]) -> OutboundPlainMessage<'_> {
    OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_3, payload: OutboundChunks::Single(plain) }
}
