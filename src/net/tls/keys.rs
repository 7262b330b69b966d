//! The keys of one direction, and the number of its next record. A cipher is opened from them when it is needed, and
//! closed with [`Keys::rest`].

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, NONCE_LEN,
    OutboundChunks, OutboundPlainMessage, Tls13AeadAlgorithm,
};
use rustls::crypto::tls13::{HkdfExpander, OkmBlock, OutputLengthError};
use rustls::internal::derive_traffic_key;
use rustls::{ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion};

/// The ciphers of a suite.
pub type Ciphers = &'static dyn Tls13AeadAlgorithm;

/// What opens the records that arrive.
pub type Opener = Keys<dyn MessageDecrypter>;
/// What seals the records that leave.
pub type Sealer = Keys<dyn MessageEncrypter>;

/// Beyond this no record is numbered; nobody sends so many.
const NUMBER_MAX: u64 = u64::MAX - (1 << 16);

/// See the module.
pub struct Keys<C: ?Sized> {
    key: AeadKey,
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
        Ok(Self { key, iv, next, cipher: None })
    }

    /// Records so far.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Closes the cipher.
    pub fn rest(&mut self) {
        self.cipher = None;
    }

    fn number(&mut self) -> Result<u64, Error> {
        if self.next >= NUMBER_MAX {
            return Err(Error::General("all numbers of records are used".into()));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// A key and an IV to open a cipher with.
    fn copy(&self, ciphers: Ciphers) -> (AeadKey, Iv) {
        let mut iv = [0; NONCE_LEN];
        iv.copy_from_slice(self.iv.as_ref());
        (derive_traffic_key(&Known(self.key.as_ref()), ciphers), Iv::from(iv))
    }
}

/// Expands to a key that is known. The library takes bytes for a key only if there are 32 of them; a shorter one it
/// makes only by itself, from whatever expands.
struct Known<'a>(&'a [u8]);

impl HkdfExpander for Known<'_> {
    fn expand_slice(&self, _: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        let known = output.get_mut(..self.0.len()).ok_or(OutputLengthError)?;
        known.copy_from_slice(self.0);
        Ok(())
    }

    fn expand_block(&self, _: &[&[u8]]) -> OkmBlock {
        OkmBlock::new(self.0)
    }

    fn hash_len(&self) -> usize {
        self.0.len()
    }
}

impl Opener {
    /// Opens a record in place: its type, and its body behind the header.
    ///
    /// # Errors
    /// When it was not sealed by the peer as the next one, or its inside breaks a rule.
    pub fn open<'a>(&mut self, ciphers: Ciphers, body: &'a mut [u8]) -> Result<InboundPlainMessage<'a>, Error> {
        if self.cipher.is_none() {
            let (key, iv) = self.copy(ciphers);
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
        if self.cipher.is_none() {
            let (key, iv) = self.copy(ciphers);
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

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

    use super::*;

    /// At rest no suite keeps a cipher, whatever the length of its keys, and it goes on where it was.
    #[test]
    fn every_cipher_is_closed_at_rest_and_opened_again() {
        for suite in aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(|suite| suite.tls13()) {
            let ciphers = suite.aead_alg;
            let secrets = || {
                let key = derive_traffic_key(&Known(&[7; 32][..ciphers.key_len()]), ciphers);
                (0, ciphers.extract_keys(key, Iv::from([9; NONCE_LEN])).expect("a suite whose secrets are given out"))
            };
            let (mut sealer, mut opener) =
                (Sealer::new(secrets()).expect("keys"), Opener::new(secrets()).expect("keys"));
            for said in [&b"one"[..], b"two", b"three"] {
                let mut record = Vec::new();
                sealer.seal(ciphers, ContentType::ApplicationData, said, &mut record).expect("sealed");
                let body = &mut record[crate::net::tls::records::HEADER_BYTES..];
                assert_eq!(opener.open(ciphers, body).expect("opened").payload, said, "{suite:?}");
                sealer.rest();
                opener.rest();
                assert!(sealer.cipher.is_none() && opener.cipher.is_none(), "{suite:?}");
            }
        }
    }
}
