//! Sizes as people write them, in the configuration and in what is said about memory.

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes, written as a number with an optional unit: `65536`, `64KiB`, `256M`, `2 GiB`. Units are powers of
/// 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// What is not a [`Size`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSize;

impl fmt::Display for NoSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size is a whole number of bytes, or one with a unit, KiB, MiB, GiB or TiB: 65536, 64KiB, 2GiB")
    }
}

impl std::error::Error for NoSize {}

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| NoSize)?;
        let unit = unit.trim_start();
        if unit.is_empty() || unit == "B" {
            return Ok(Size(number));
        }
        // "K" and "KiB" are the same; "KB" is not taken because it means 1,000 to some.
        let named = |name: &str| name.eq_ignore_ascii_case(unit) || name[..1].eq_ignore_ascii_case(unit);
        let (_, factor) = UNITS.iter().find(|(name, _)| named(name)).ok_or(NoSize)?;
        number.checked_mul(*factor).map(Size).ok_or(NoSize)
    }
}

impl fmt::Display for Size {
    /// The exact number in the largest unit that makes it whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Size {
    /// Rounded to one decimal, for people: `61.4 MiB`.
    pub fn rounded(self) -> String {
        match UNITS.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((name, factor)) => format!("{:.1} {name}", self.0 as f64 / *factor as f64),
            None => format!("{} B", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;

        impl Visitor<'_> for SizeVisitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 65536 or \"64KiB\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(NoSize))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(|error| E::custom(format_args!("\"{text}\": {error}")))
            }
        }

        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("7B", 7),
            ("64KiB", 65_536),
            ("64k", 65_536),
            (" 3 MiB ", 3 << 20),
            ("2G", 2 << 30),
            ("1tib", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "a lot",
            "-1",
            "1.5M",
            "1KB",
            "1MB",
            "MiB",
            "1 2",
            "1KiBit",
            "18446744073709551616",
            "18014398509481984K",
            "9é",
        ] {
            assert_eq!(text.parse::<Size>(), Err(NoSize), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_written_exactly_and_read_back() {
        for (bytes, text) in
            [(0, "0"), (1_023, "1023"), (1_024, "1KiB"), (1_536, "1536"), (1 << 20, "1MiB"), (5 << 30, "5GiB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(1_536 << 10).rounded(), "1.5 MiB");
        assert_eq!(Size(12).rounded(), "12 B");
    }
}
