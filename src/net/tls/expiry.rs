//! When a certificate expires: read out of its DER, which is all that a broker wants to know of its own.
//!
//! ```text
//! Certificate ::= SEQUENCE { SEQUENCE { [0] version?, INTEGER serial, SEQUENCE algorithm, SEQUENCE issuer,
//!                                       SEQUENCE { notBefore, notAfter }, ... }, ... }          (RFC 5280)
//! ```

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The end of a certificate's time, in seconds since 1970; `None` where it is not understood.
pub(crate) fn expiry(der: &[u8]) -> Option<u64> {
    let mut certificate = Elements(Elements(der).content(SEQUENCE)?);
    let mut signed = Elements(certificate.content(SEQUENCE)?);
    if signed.0.first() == Some(&VERSION) {
        signed.content(VERSION)?;
    }
    signed.content(INTEGER)?;
    signed.content(SEQUENCE)?;
    signed.content(SEQUENCE)?;
    let mut validity = Elements(signed.content(SEQUENCE)?);
    validity.next()?;
    match validity.next()? {
        (UTC_TIME, text) => {
            let year = number(text.get(..2)?)?;
            seconds(if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        (GENERALIZED_TIME, text) => seconds(number(text.get(..4)?)?, text.get(4..)?),
        _ => None,
    }
}

/// DER elements, one after another.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // So many bytes of length: four are more than any certificate needs.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

/// Of `MMDDhhmmssZ` in a year, as RFC 5280 asks for.
fn seconds(year: u64, text: &[u8]) -> Option<u64> {
    let &[m1, m2, d1, d2, h1, h2, n1, n2, s1, s2, b'Z'] = text else { return None };
    let pair = |a, b| number(&[a, b]);
    let (month, day) = (pair(m1, m2)?, pair(d1, d2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Years begin in March, so that the day of a leap year is the last one.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    /// From March of the year 0 to 1970.
    const UNTIL_1970: u64 = 719_468;
    Some((days.checked_sub(UNTIL_1970)? * 24 + pair(h1, h2)?) * 3_600 + pair(n1, n2)? * 60 + pair(s1, s2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(year, month, day);
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_found_in_either_form() {
        for ((year, month, day), expected) in [
            ((1999, 12, 31), 946_598_400),
            ((2024, 2, 29), 1_709_164_800),
            ((2027, 3, 1), 1_803_859_200),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 1, 1), 2_524_608_000),
            ((2100, 3, 1), 4_107_542_400),
        ] {
            assert_eq!(expiry(&certificate(year, month, day)), Some(expected), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let good = certificate(2030, 1, 1);
        for length in 0..good.len() {
            assert_eq!(expiry(&good[..length]), None, "cut at {length}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = expiry(&bad);
        }
        assert_eq!(expiry(&[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(seconds(2030, b"1301000000Z"), None);
    }
}
