//! What a certificate says of its time, its subject and its issuer: as much of its DER as is needed for that (RFC 5280,
//! section 4.1).

/// From when to when a certificate holds, whose it is and who signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outline<'a> {
    /// Seconds since the Unix epoch; what lies before it is 0.
    pub(crate) not_before_s: u64,
    /// The last second in which it holds.
    pub(crate) not_after_s: u64,
    /// The name of who signed it, as it stands there.
    pub(crate) issuer: &'a [u8],
    /// Its own name.
    pub(crate) subject: &'a [u8],
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which version 1 leaves out.
const VERSION: u8 = 0xA0;

impl<'a> Outline<'a> {
    /// Reads a certificate; `None` if it is none.
    pub(crate) fn of(certificate: &'a [u8]) -> Option<Self> {
        let (certificate, _) = expect(certificate, SEQUENCE)?;
        let (mut rest, _) = expect(certificate, SEQUENCE)?;
        if rest.first() == Some(&VERSION) {
            rest = expect(rest, VERSION)?.1;
        }
        let (_, rest) = expect(rest, INTEGER)?;
        let (_, rest) = expect(rest, SEQUENCE)?;
        let (issuer, rest) = expect(rest, SEQUENCE)?;
        let (validity, rest) = expect(rest, SEQUENCE)?;
        let (subject, _) = expect(rest, SEQUENCE)?;
        let (kind, not_before, validity) = read(validity)?;
        let not_before_s = time(kind, not_before)?;
        let (kind, not_after, _) = read(validity)?;
        Some(Outline { not_before_s, not_after_s: time(kind, not_after)?, issuer, subject })
    }
}

/// The first value of some DER: its tag, what it holds, and what stands behind it.
fn read(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    let (length, der) = if first < 0x80 {
        (usize::from(first), der)
    } else {
        let bytes = usize::from(first & 0x7F);
        if !(1..=3).contains(&bytes) {
            return None;
        }
        let (length, der) = der.split_at_checked(bytes)?;
        (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), der)
    };
    let (value, rest) = der.split_at_checked(length)?;
    Some((tag, value, rest))
}

fn expect(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, value, rest) = read(der)?;
    (tag == wanted).then_some((value, rest))
}

/// A time in one of the two forms that certificates use: `YYMMDDHHMMSSZ` up to 2049, `YYYYMMDDHHMMSSZ` from then on.
fn time(kind: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = digits.get(from..to)?;
        Some(digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
    };
    let (year, at) = match (kind, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(0, 2)?;
            (if year < 50 { 2_000 + year } else { 1_900 + year }, 2)
        }
        (GENERALIZED_TIME, 14) => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at, at + 2)?, number(at + 2, at + 4)?);
    let (hour, minute, second) = (number(at + 4, at + 6)?, number(at + 6, at + 8)?, number(at + 8, at + 10)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    in_range.then(|| {
        let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
        u64::try_from(seconds).unwrap_or(0)
    })
}

/// Days from 1970-01-01 to a day of the Gregorian calendar: years are counted from March, so that the day a leap year
/// has more is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let of_months = (153 * month + 2) / 5;
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + of_months + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        for (kind, text, seconds) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "000229120000Z", Some(951_825_600)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "20260301000000Z", Some(1_772_323_200)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "20500101000000Z", None),
            (GENERALIZED_TIME, "500101000000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "7001010000+1Z", None),
            (UTC_TIME, "700101000000", None),
            (SEQUENCE, "700101000000Z", None),
        ] {
            assert_eq!(time(kind, text.as_bytes()), seconds, "{text}");
        }
    }

    #[test]
    fn no_bytes_are_read_beyond_the_end() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let der = certificate.der();
        let outline = Outline::of(der).expect("it is a certificate");
        assert_eq!(outline.issuer, outline.subject);
        assert!(outline.not_before_s < outline.not_after_s);
        for end in 0..der.len() {
            assert_eq!(Outline::of(&der[..end]), None, "{end} bytes");
        }
        for at in 0..der.len() {
            let mut broken = der.to_vec();
            broken[at] ^= 0xFF;
            let _ = Outline::of(&broken);
        }
    }
}
