//! Types of configuration values that need a form of their own: sizes, files of keys, lists, and choices.

use crate::auth::KEY_ID_BYTES_MAX;
use crate::limits::ReadMode;
pub use crate::size::{NoSize, Size};
use clap::ValueEnum;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

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
