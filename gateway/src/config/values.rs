//! Types of configuration values that need a form of their own: sizes, and choices.

use crate::auth::KEY_ID_BYTES_MAX;
use crate::limits::ReadMode;
use clap::ValueEnum;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
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

/// A file with a key for tokens, and the `kid` of the tokens that are signed with it, if they name one: `path` or
/// `kid=path`.
///
/// What stands before the first `=` is a kid if it has 1 to 64 letters, digits, `.`, `_`, `-`, `~`, `:` or `+`; so a
/// path with `=` in it needs a `/` before that, as `./a=b` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The `kid`.
    pub id: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for KeyFile {
    type Err = NoKeyFile;

    fn from_str(text: &str) -> Result<Self, NoKeyFile> {
        let is_id = |id: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-~:+".contains(c);
            (1..=KEY_ID_BYTES_MAX).contains(&id.len()) && id.chars().all(plain)
        };
        let (id, path) = match text.split_once('=') {
            Some((id, path)) if is_id(id) => (Some(id.to_owned()), path),
            _ => (None, text),
        };
        if path.is_empty() { Err(NoKeyFile) } else { Ok(KeyFile { id, path: path.into() }) }
    }
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.id {
            Some(id) => write!(f, "{id}={}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

/// What is not a [`KeyFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoKeyFile;

impl fmt::Display for NoKeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is a file, or KID=FILE: /etc/trunkline/secret, 2026-a=/etc/trunkline/secret")
    }
}

impl std::error::Error for NoKeyFile {}

impl Serialize for KeyFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format_args!("\"{text}\": {error}")))
    }
}

/// A list of which one alone may stand without its brackets.
pub(super) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct ListVisitor<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(de::value::StrDeserializer::new(text)).map(|one| vec![one])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(ListVisitor(PhantomData)).map(Some)
}

/// How LOGIN is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AuthKind {
    /// Everybody is who they say; on loopback addresses only, unless insecure_open is set.
    Open,
    /// The token of LOGIN is a JWT, signed with HS256 or EdDSA, whose sub is the user id and whose exp is in the
    /// future.
    Jwt,
}

/// Who serves while Redis can be reached by no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RedisDown {
    /// A majority of the nodes that were there last: no user has two homes.
    Majority,
    /// Every node, also one that is cut off: nobody is without a home, and some may have two.
    Serve,
}

/// Who is let in while the connect-time hook gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HookFailureKind {
    /// Nobody; clients are told to come again.
    Refuse,
    /// Whoever `auth` lets in.
    Allow,
}

/// Whether what nodes say to each other is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MeshEncryptionKind {
    /// With every node whose version can.
    On,
    /// Nodes that cannot are refused.
    Required,
    /// Never: for a network of their own that nobody else reads.
    Off,
}

/// What keeps messages for users who are offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Nothing: a message with ACK to a user who is offline gets SENT 2.
    Off,
    /// Files in data_dir, written by this process.
    Embedded,
    /// The Redis Cluster of redis, which all nodes share.
    Redis,
}

/// When a message counts as stored in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreSyncKind {
    /// When a replica has it too, or two where there are two.
    Replica,
    /// Likewise, and when it is in the append-only files of all of these; Redis 7.2.
    Aof,
    /// When the master has it. What is not replicated yet is lost with the master.
    Master,
}

/// To whom a session may send messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SendKind {
    /// To everybody.
    Open,
    /// To its own user's devices, and to whoever the claim `send` of its token or of the connect hook names.
    Claim,
}

/// Who may be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WatchKind {
    /// Everybody, by everybody.
    Open,
    /// Whoever the token of the watcher names.
    Claim,
    /// Nobody.
    Off,
}

/// What becomes of a message for an inbox that is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum InboxFull {
    /// Its sender gets SENT 5.
    Refuse,
    /// The oldest messages are dropped for it, and devices that had not got them are told.
    DropOldest,
}

/// How connections are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReadModeKind {
    /// Quiet connections by a one-shot poll, busy ones by an armed multishot receive.
    Auto,
    /// All by poll: least kernel memory.
    Cold,
    /// All by multishot receive: least CPU per message.
    Hot,
}

impl From<ReadModeKind> for ReadMode {
    fn from(kind: ReadModeKind) -> Self {
        match kind {
            ReadModeKind::Auto => ReadMode::Auto,
            ReadModeKind::Cold => ReadMode::Cold,
            ReadModeKind::Hot => ReadMode::Hot,
        }
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

    #[test]
    fn a_key_is_a_file_with_or_without_an_id() {
        let long = format!("{}=/k", "x".repeat(KEY_ID_BYTES_MAX + 1));
        for (text, id, path) in [
            ("/etc/key", None, "/etc/key"),
            ("2026-a=/etc/key", Some("2026-a"), "/etc/key"),
            ("a=b=c", Some("a"), "b=c"),
            ("./a=b", None, "./a=b"),
            ("=b", None, "=b"),
            ("caf\u{e9}=b", None, "caf\u{e9}=b"),
            (&long, None, &long),
        ] {
            let file: KeyFile = text.parse().unwrap();
            assert_eq!((file.id.as_deref(), file.path.as_path()), (id, std::path::Path::new(path)), "{text}");
            assert_eq!(file.to_string(), text);
        }
        for text in ["", "a="] {
            assert_eq!(text.parse::<KeyFile>(), Err(NoKeyFile), "{text:?}");
        }
    }
}
