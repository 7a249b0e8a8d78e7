//! Where Redis is, and how long to wait for it.

use super::tls::{Tls, TlsError, TlsFiles};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The scheme of the URL, without and with TLS.
const SCHEME: &str = "redis-cluster://";
const SCHEME_TLS: &str = "rediss-cluster://";

/// An example for the texts of errors.
const EXAMPLE: &str = "redis-cluster://10.0.0.1:7000,10.0.0.2:7000";

/// Where the Redis Cluster is, and the limits of talking to it.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// Some of its nodes, host and port; the others are learnt from them. At least one.
    pub hosts: Vec<(String, u16)>,
    /// The user of an access-control list; `None` for the default user.
    pub username: Option<String>,
    /// The password; `None` if Redis asks for none.
    pub password: Option<String>,
    /// Whether connections are TLS: `rediss-cluster://`.
    pub wants_tls: bool,
    /// TLS as [`RedisConfig::load_tls`] has set it up; `None` without it.
    pub tls: Option<Tls>,
    /// The longest that [`Plane::connect`](super::Plane::connect) takes. Default 5 s: long enough for a lost SYN to be
    /// sent again twice, short enough for somebody at a terminal.
    pub connect_timeout: Duration,
    /// The longest that one command takes. Default 1 s: a fifth of the default lease, so a renewal that fails can be
    /// tried three times more before the lease ends.
    pub command_timeout: Duration,
    /// How long a user's entries stay without being written again. Default 24 h. Sessions are written again at half of
    /// it.
    pub presence_ttl: Duration,
}

impl RedisConfig {
    /// Reads `redis-cluster://[user:password@]host:port[,host:port…]`, or `rediss-cluster://…` for TLS, which
    /// [`RedisConfig::load_tls`] has to set up before anything connects. An IPv6 address stands in brackets; characters
    /// of user and password that have a meaning in a URL are written as `%` and two hexadecimal digits.
    ///
    /// # Errors
    /// [`UrlError`], which names what to correct.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let with_tls = url.strip_prefix(SCHEME_TLS);
        let rest = with_tls.or_else(|| url.strip_prefix(SCHEME)).ok_or_else(|| match url.split_once("://") {
            Some((scheme, _)) => UrlError::Scheme { scheme: scheme.into() },
            None => UrlError::NoScheme,
        })?;
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, rest),
        };
        let (username, password) = match login {
            None => (None, None),
            Some(login) => {
                let (user, password) = login.split_once(':').ok_or(UrlError::NoPassword)?;
                let decoded = |text: &str| percent_decoded(text).ok_or(UrlError::Escape);
                (Some(decoded(user)?).filter(|user| !user.is_empty()), Some(decoded(password)?))
            }
        };
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        if hosts.is_empty() {
            return Err(UrlError::NoHost);
        }
        if let Some(at) = hosts.find(['/', '?', '#']) {
            // No more than its beginning: a password may stand there by mistake.
            return Err(UrlError::Trailing { text: hosts[at..=at].into() });
        }
        let hosts = hosts.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
        Ok(RedisConfig {
            hosts,
            username,
            password,
            wants_tls: with_tls.is_some(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(1),
            presence_ttl: Duration::from_secs(24 * 3600),
        })
    }

    /// Reads the files of TLS, if the URL asks for it.
    ///
    /// # Errors
    /// What is wrong with a file, or that one is given and the URL does not ask for TLS.
    pub fn load_tls(&mut self, files: &TlsFiles) -> Result<(), TlsError> {
        if self.wants_tls {
            self.tls = Some(Tls::load(files)?);
        } else if files.is_given() {
            let detail =
                format!("files for TLS are given, and the Redis URL does not ask for it: begin it with {SCHEME_TLS}");
            return Err(TlsError { path: None, detail });
        }
        Ok(())
    }
}

/// The URL of a Redis Cluster as somebody gave it, possibly with a password, which is shown by nothing but
/// [`RedisUrl::exposed`].
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl Serialize for RedisUrl {
    /// Without user and password.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl RedisUrl {
    /// The URL, its password included.
    #[must_use]
    pub fn exposed(&self) -> &str {
        &self.0
    }

    /// Whether something is left out where it is shown.
    #[must_use]
    pub fn has_login(&self) -> bool {
        self.to_string() != self.0
    }

    /// What it means.
    ///
    /// # Errors
    /// As [`RedisConfig::parse`].
    pub fn config(&self) -> Result<RedisConfig, UrlError> {
        RedisConfig::parse(&self.0)
    }
}

impl From<&str> for RedisUrl {
    fn from(url: &str) -> Self {
        RedisUrl(url.to_owned())
    }
}

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        RedisUrl(url)
    }
}

impl fmt::Display for RedisUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_login(&self.0))
    }
}

impl fmt::Debug for RedisUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A text, such as a line of a file, with what stands before the last `@` of a URL in it left out: user and password. A
/// password may hold an `@` by mistake, and the URL need not be whole.
#[must_use]
pub fn without_login(text: &str) -> Cow<'_, str> {
    let Some(at) = text.rfind('@') else { return text.into() };
    let from = match text[..at].find("://") {
        Some(scheme) => scheme + "://".len(),
        // Half a URL: nothing before the @ can be told from a password but the key of a setting.
        None => text[..at].find('=').map_or(0, |equals| equals + 1),
    };
    format!("{}…{}", &text[..from], &text[at..]).into()
}

impl fmt::Debug for RedisConfig {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("hosts", &self.hosts)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("wants_tls", &self.wants_tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("command_timeout", &self.command_timeout)
            .field("presence_ttl", &self.presence_ttl)
            .finish()
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), UrlError> {
    let bad = || UrlError::BadHost { text: text.into() };
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(bad)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
        None if host.contains(':') => return Err(bad()),
        None => host,
    };
    if host.is_empty() || host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad());
    }
    Ok((host.into(), port))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Why a URL is not one of a Redis Cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlError {
    /// There is no `://` in it.
    NoScheme,
    /// Another scheme.
    Scheme {
        /// The scheme as given.
        scheme: String,
    },
    /// Something stands before the `@`, but not `user:password`.
    NoPassword,
    /// A `%` that does not begin an escape, or escapes that are not UTF-8.
    Escape,
    /// No host at all.
    NoHost,
    /// Not `host:port`.
    BadHost {
        /// The host as given.
        text: String,
    },
    /// Something follows the hosts.
    Trailing {
        /// What follows.
        text: String,
    },
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlError::NoScheme => write!(f, "the Redis URL has to begin with {SCHEME}, as in {EXAMPLE}"),
            UrlError::Scheme { scheme } if scheme.starts_with("rediss") => {
                write!(
                    f,
                    "{scheme}:// is not the scheme of a Redis Cluster; write {SCHEME_TLS}host:port for one with TLS"
                )
            }
            UrlError::Scheme { scheme } => {
                write!(f, "{scheme}:// is not the scheme of a Redis Cluster; write {SCHEME}host:port, as in {EXAMPLE}")
            }
            UrlError::NoPassword => {
                write!(f, "before the @ of a Redis URL stands user:password; write :password@ for the default user")
            }
            UrlError::Escape => {
                write!(f, "user or password of the Redis URL has a % that is no escape; write a % itself as %25")
            }
            UrlError::NoHost => write!(f, "the Redis URL names no host; write host:port, as in {EXAMPLE}"),
            UrlError::BadHost { text } => {
                write!(f, "{text:?} in the Redis URL is not host:port, as in {EXAMPLE}; IPv6 is [::1]:7000")
            }
            UrlError::Trailing { text } => {
                write!(
                    f,
                    "{text:?} after the hosts of the Redis URL has no meaning; leave it out (a cluster has one \
                     database)"
                )
            }
        }
    }
}

impl Error for UrlError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_user_and_password_are_read() {
        let config = RedisConfig::parse("redis-cluster://me:a%40b%25@h1:7000,[::1]:7001,10.0.0.3:7002/").unwrap();
        assert_eq!(config.hosts, [("h1".into(), 7000), ("::1".into(), 7001), ("10.0.0.3".into(), 7002)]);
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("me"), Some("a@b%")));
        let config = RedisConfig::parse("redis-cluster://:secret@h:1").unwrap();
        assert_eq!((config.username, config.password.as_deref()), (None, Some("secret")));
        assert_eq!(RedisConfig::parse("redis-cluster://h:1").unwrap().password, None);
        let with_tls = RedisConfig::parse("rediss-cluster://me:secret@h:1").unwrap();
        assert!(with_tls.wants_tls && !config_without_tls().wants_tls);
        assert_eq!((with_tls.username.as_deref(), with_tls.hosts.len()), (Some("me"), 1));
    }

    fn config_without_tls() -> RedisConfig {
        RedisConfig::parse("redis-cluster://h:1").unwrap()
    }

    #[test]
    fn files_of_tls_have_a_meaning_with_tls_only() {
        let files = TlsFiles { ca: Some("/no/such/file".into()), ..TlsFiles::default() };
        let error = config_without_tls().load_tls(&files).unwrap_err().to_string();
        assert!(error.contains("rediss-cluster://"), "{error}");
        assert_eq!(config_without_tls().load_tls(&TlsFiles::default()), Ok(()));
        let mut config = RedisConfig::parse("rediss-cluster://me:secret@h:1").unwrap();
        let error = config.load_tls(&files).unwrap_err().to_string();
        assert!(error.contains("/no/such/file") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = RedisConfig::parse("redis-cluster://me:secret@h:1").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        for (url, shown) in [
            ("redis-cluster://me:secret@h:1,i:2", "redis-cluster://…@h:1,i:2"),
            ("redis-cluster://me:sec@ret@h:1", "redis-cluster://…@h:1"),
            ("rediss-cluster://me:secret@h:1", "rediss-cluster://…@h:1"),
            ("redis://me:secret@h:1", "redis://…@h:1"),
            ("me:secret@h:1", "…@h:1"),
            ("redis-cluster://h:1", "redis-cluster://h:1"),
        ] {
            let url = RedisUrl::from(url);
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), format!("\"{shown}\"")));
            assert_eq!(url.has_login(), shown.contains('…'));
        }
        assert_eq!(without_login("redis = \"me:secret@h:1"), "redis =…@h:1");
        let trailing = RedisConfig::parse("redis-cluster://h:1?password=secret").unwrap_err().to_string();
        assert!(!trailing.contains("secret"), "{trailing}");
    }

    #[test]
    fn each_mistake_is_named_with_its_correction() {
        for (url, hint) in [
            ("", "begin with redis-cluster://"),
            ("localhost:7000", "begin with redis-cluster://"),
            ("redis://h:1", "write redis-cluster://"),
            ("rediss://h:1", "rediss-cluster://host:port"),
            ("rediss-cluster://h", "is not host:port"),
            ("redis-cluster://", "names no host"),
            ("redis-cluster://h", "is not host:port"),
            ("redis-cluster://h:0", "is not host:port"),
            ("redis-cluster://h:65536", "is not host:port"),
            ("redis-cluster://:1", "is not host:port"),
            ("redis-cluster://::1:7000", "[::1]:7000"),
            ("redis-cluster://[::1:7000", "[::1]:7000"),
            ("redis-cluster://a:1,,b:2", "is not host:port"),
            ("redis-cluster://a:1/0", "has no meaning"),
            ("redis-cluster://secret@a:1", "user:password"),
            ("redis-cluster://me:50%@a:1", "%25"),
            ("redis-cluster://me:%ff@a:1", "%25"),
        ] {
            let text = RedisConfig::parse(url).unwrap_err().to_string();
            assert!(text.contains(hint), "{url}: {text}");
        }
    }
}
