//! A TLS 1.3 connection after its handshake, as a value: records go in and come out, nothing is read or written here.
//!
//! ```text
//!   +------+---------+--------+------------------------------------------------+
//!   | 0x17 | 0x03 xx | length | sealed: content, its type, padding of zeros    |    length: 17 to 16,640
//!   +------+---------+--------+------------------------------------------------+
//! ```
//!
//! Inside there may be data, an alert, or, of all handshake messages, a `KeyUpdate`: it ends its record, since the next
//! one is sealed with other keys. What carries no data may not come for ever: [`QUIET_MAX`] in a row.

use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{AlertDescription, ContentType, Error, ExtractedSecrets, Tls13CipherSuite};

use super::keys::{Opener, Sealer};

/// The header of a record.
pub const HEADER_BYTES: usize = 5;
/// The most that a record carries.
pub const PLAIN_BYTES_MAX: usize = 1 << 14;
/// The most behind a header.
pub const BODY_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;
/// Records in a row that carry no data, as with the library and with BoringSSL.
pub const QUIET_MAX: u8 = 32;

/// A `KeyUpdate` that asks for none in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// Data; never empty.
    Data(&'a [u8]),
    /// Nothing for the one above.
    Nothing,
    /// The peer sends no more.
    Closed,
}

/// The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What the peer is to be told; nothing if it said so itself.
    pub tell: Option<AlertDescription>,
}

impl Broken {
    const fn by(tell: AlertDescription) -> Self {
        Self { tell: Some(tell) }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::by(match error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            _ => AlertDescription::InternalError,
        })
    }
}

/// See the module.
pub struct Records {
    /// Knows the secrets that the next keys are made from.
    kernel: KernelConnection<ServerConnectionData>,
    suite: &'static Tls13CipherSuite,
    opener: Opener,
    sealer: Sealer,
    /// The bytes of a `KeyUpdate` whose rest has not arrived.
    fragment_bytes: u8,
    /// Records without data in a row.
    quiet: u8,
    /// The peer asked for other keys: they are used from the next record on, after saying so.
    owes_update: bool,
    is_closed: bool,
}

impl Records {
    /// What becomes of a connection whose handshake is done.
    ///
    /// # Errors
    /// If it is not one of TLS 1.3.
    pub fn new(secrets: ExtractedSecrets, kernel: KernelConnection<ServerConnectionData>) -> Result<Self, Error> {
        let suite = kernel.negotiated_cipher_suite().tls13().ok_or(Error::HandshakeNotComplete)?;
        Ok(Self {
            kernel,
            suite,
            opener: Opener::new(secrets.rx)?,
            sealer: Sealer::new(secrets.tx)?,
            fragment_bytes: 0,
            quiet: 0,
            owes_update: false,
            is_closed: false,
        })
    }

    /// How long the record is that begins here, header included, as soon as that is known.
    ///
    /// # Errors
    /// When none begins like this, or it is longer than any may be: before anything is kept of it.
    pub fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, Broken> {
        if bytes.first().is_some_and(|typ| *typ != u8::from(ContentType::ApplicationData)) {
            return Err(Broken::by(AlertDescription::UnexpectedMessage));
        }
        if bytes.get(1).is_some_and(|major| *major != 3) {
            return Err(Broken::by(AlertDescription::ProtocolVersion));
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if body > BODY_BYTES_MAX {
            return Err(Broken::by(AlertDescription::RecordOverflow));
        }
        Ok(Some(HEADER_BYTES + body))
    }

    /// Opens a whole record, in place. After `Closed` nothing is opened any more.
    ///
    /// # Errors
    /// See [`Broken`].
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<Opened<'a>, Broken> {
        if self.is_closed {
            return Ok(Opened::Closed);
        }
        let opened = self.opener.open(self.suite.aead_alg, &mut record[HEADER_BYTES..])?;
        let (typ, plain) = (opened.typ, opened.payload);
        if typ != ContentType::Handshake && self.fragment_bytes > 0 {
            // Nothing stands between the parts of a handshake message.
            return Err(Broken::by(AlertDescription::UnexpectedMessage));
        }
        if typ == ContentType::ApplicationData && !plain.is_empty() {
            self.quiet = 0;
            return Ok(Opened::Data(plain));
        }
        self.quiet += 1;
        if self.quiet > QUIET_MAX {
            return Err(Broken::by(AlertDescription::UnexpectedMessage));
        }
        match typ {
            ContentType::ApplicationData => {}
            ContentType::Alert => return self.alert(plain),
            ContentType::Handshake => self.handshake(plain)?,
            _ => return Err(Broken::by(AlertDescription::UnexpectedMessage)),
        }
        Ok(Opened::Nothing)
    }

    fn alert(&mut self, plain: &[u8]) -> Result<Opened<'static>, Broken> {
        match *plain {
            [_, CLOSE_NOTIFY] => {
                self.is_closed = true;
                Ok(Opened::Closed)
            }
            // Says that a close follows.
            [_, USER_CANCELED] => Ok(Opened::Nothing),
            // All others end the connection, whatever their level says.
            [_, _] => Err(Broken { tell: None }),
            _ => Err(Broken::by(AlertDescription::DecodeError)),
        }
    }

    fn handshake(&mut self, plain: &[u8]) -> Result<(), Broken> {
        if plain.is_empty() {
            return Err(Broken::by(AlertDescription::UnexpectedMessage));
        }
        for (index, byte) in plain.iter().enumerate() {
            let at = usize::from(self.fragment_bytes);
            if at + 1 < KEY_UPDATE.len() {
                if *byte != KEY_UPDATE[at] {
                    return Err(Broken::by(AlertDescription::UnexpectedMessage));
                }
                self.fragment_bytes += 1;
                continue;
            }
            self.fragment_bytes = 0;
            match byte {
                0 => {}
                // Asked several times before anything leaves, it is answered once.
                1 => self.owes_update = true,
                _ => return Err(Broken::by(AlertDescription::IllegalParameter)),
            }
            if index + 1 < plain.len() {
                return Err(Broken::by(AlertDescription::UnexpectedMessage));
            }
            self.opener = Opener::new(self.kernel.update_rx_secret()?)?;
        }
        Ok(())
    }

    /// Seals data into records, and appends them to `out`.
    ///
    /// # Errors
    /// When no number is left for them; not in practice, since keys are changed long before.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let records_max = self.suite.common.confidentiality_limit;
        self.seal_at_most(records_max, plain, out)
    }

    /// The same, with keys that are good for so many records.
    pub(super) fn seal_at_most(&mut self, records_max: u64, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        for plain in plain.chunks(PLAIN_BYTES_MAX) {
            // One is left for saying so.
            if std::mem::take(&mut self.owes_update) || self.sealer.next() + 1 >= records_max {
                self.put(ContentType::Handshake, &KEY_UPDATE, out)?;
                self.sealer = Sealer::new(self.kernel.update_tx_secret()?)?;
            }
            self.put(ContentType::ApplicationData, plain, out)?;
        }
        Ok(())
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// As with [`Self::seal`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.put(ContentType::Alert, &[WARNING, CLOSE_NOTIFY], out)
    }

    /// Says why the connection ends.
    ///
    /// # Errors
    /// As with [`Self::seal`].
    pub fn fail(&mut self, why: AlertDescription, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.put(ContentType::Alert, &[FATAL, why.into()], out)
    }

    /// How many records were sealed with these keys.
    #[cfg(test)]
    pub(super) fn sealed(&self) -> u64 {
        self.sealer.next()
    }

    fn put(&mut self, typ: ContentType, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        Ok(self.sealer.seal(self.suite.aead_alg, typ, plain, out)?)
    }

    /// Closes the ciphers: nothing is under way.
    pub fn rest(&mut self) {
        self.opener.rest();
        self.sealer.rest();
    }
}
