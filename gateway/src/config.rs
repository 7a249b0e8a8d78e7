//! The configuration: flags over environment over file over defaults, judged as a whole before anything starts.

mod addresses;
mod cluster;
mod file;
mod fit;
mod groups;
mod hook;
mod host;
mod listen;
mod names;
#[cfg(test)]
mod reference;
mod resolve;
mod send;
mod service_tables;
mod services;
mod settings;
mod store;
mod tables;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod tls;
mod values;
mod watch;
mod webhooks;
mod websocket;

pub(crate) use fit::Room;
pub(crate) use resolve::{RING_SLOTS_MAX, connections_default};

pub use cluster::{ClusterConfig, ClusterSecret};
pub use file::ConfigFile;
pub use host::Host;
pub use listen::{At, Endpoint, Listen, NoListen};
pub use names::strange_variables;
pub use services::ServicesConfig;
pub use settings::{DefaultValue, SETTINGS, Setting, Settings};
pub use store::{StoreConfig, StorePlace};
pub use text::default_config;
pub(crate) use text::to_table;
pub use tls::{HttpTlsConfig, TlsConfig, TlsMaterial};
pub use trunkline_router::log::LogFormat;
pub use values::{
    AuthKind, InboxFull, KeyFile, MeshEncryptionKind, NoKeyFile, NoSize, ReadModeKind, RedisDown, Size, StoreKind,
    StoreSyncKind,
};
pub use webhooks::WebhooksConfig;

use resolve::{Judge, known};
pub(crate) use tls::TLS_FILE_KEYS;

use crate::auth::{Auth, JwtKeys, KeyError};
use crate::files;
use crate::hook::HookSpec;
use crate::limits::Limits;
pub use crate::limits::Placement;
pub(crate) use crate::services::is_node_name_char;
use crate::transport::networks::Proxies;
use crate::transport::upgrade;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use trunkline_router::http::{Access, ApiKeys, HttpIdentity};

/// Longest name of a node; it travels in every LOGIN_OK.
const NODE_NAME_CHARS_MAX: usize = 64;
/// Longest key file read. Keys take some hundred bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// The configuration of a node, every value judged and every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect, without duplicates, at least one place.
    pub listen: Vec<Endpoint>,
    /// Address of the HTTP API.
    pub http: SocketAddr,
    /// Who may use the HTTP API.
    pub http_access: HttpAccess,
    /// Whether the HTTP API serves the page for trying.
    pub demo: bool,
    /// Whether core dumps of the process may be written.
    pub core_dumps: bool,
    /// Name of the node.
    pub node: String,
    /// Number of shards, 1 to [`crate::limits::SHARDS_MAX`].
    pub shards: u16,
    /// How LOGIN is checked.
    pub auth: AuthConfig,
    /// Which requests become WebSockets.
    pub upgrade: upgrade::Rules,
    /// The proxies in front of the node.
    pub proxies: Proxies,
    /// TLS for clients; `None` without.
    pub tls: Option<TlsConfig>,
    /// TLS for the HTTP API; `None` for one in clear.
    pub http_tls: Option<HttpTlsConfig>,
    /// How the node takes part in a cluster; `None` when it is alone.
    pub cluster: Option<ClusterConfig>,
    /// Where messages are kept for users who are offline; `None` without a store.
    pub store: Option<StoreConfig>,
    /// Most bytes the memory budget may come to.
    pub memory_max: u64,
    /// Memory there was to take when this was resolved, bytes.
    pub memory_available: u64,
    /// How workers come to this node; `None` without services.
    pub services: Option<ServicesConfig>,
    /// Address of the HTTP API for back-ends; `None` without one.
    pub services_http: Option<SocketAddr>,
    /// Who is asked about logins; `None` without a connect-time hook.
    pub connect_hook: Option<HookSpec>,
    /// Who is told of what happens; `None` without webhooks.
    pub webhooks: Option<WebhooksConfig>,
    /// When the memory budget does not fit: flags and values, each of which makes it fit.
    pub remedies: Vec<String>,
    room: Room,
    /// Log filter, valid.
    pub log: String,
    /// How a line of the log looks.
    pub log_format: LogFormat,
    /// The configuration file, if one was named.
    pub file: Option<PathBuf>,
    limits: Limits,
    /// What was set by somebody.
    asked: Settings,
    effective: Settings,
    origins: Origins,
}

/// Who may use the HTTP API, before keys are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAccess {
    /// File of the keys.
    pub keys_file: Option<PathBuf>,
    /// Whether others than this host may use it without keys.
    pub insecure_open: bool,
}

impl HttpAccess {
    /// Loads the keys; `None` when no file is configured. [`Access::set_keys`] takes them while the API is served.
    ///
    /// # Errors
    /// When the file cannot be read or used; the message names it.
    pub fn load_keys(&self) -> Result<Option<ApiKeys>, ConfigError> {
        let load = |path: &PathBuf| {
            ApiKeys::load(path).map_err(|error| ConfigError::File { path: path.clone(), error: error.to_string() })
        };
        self.keys_file.as_ref().map(load).transpose()
    }

    /// Loads the keys, and says who may use the API.
    ///
    /// # Errors
    /// As [`HttpAccess::load_keys`].
    pub fn load(&self) -> Result<Access, ConfigError> {
        Ok(Access::new(self.load_keys()?, self.insecure_open))
    }
}

/// How LOGIN is checked, before keys are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthConfig {
    /// Everybody is who they say.
    Open,
    /// JWT; at least one file is given.
    Jwt {
        /// Files with HS256 secrets.
        hs256_secret_files: Vec<KeyFile>,
        /// Files with Ed25519 public keys.
        ed25519_public_key_files: Vec<KeyFile>,
        /// Issuers of which a token must name one; none is any.
        issuers: Vec<String>,
        /// Audiences of which a token must name one; none is any.
        audiences: Vec<String>,
        /// How far `nbf` may lie ahead.
        leeway_s: u64,
    },
}

impl Config {
    /// Judges what the sources say and fills in the defaults.
    ///
    /// # Errors
    /// Every value out of range or in conflict with another, with its source and what is allowed.
    pub fn resolve(sources: Sources, host: &Host) -> Result<Self, ConfigError> {
        resolve::resolve(sources, host)
    }

    /// The configuration in force, `old`, with what a running node takes of a newer one.
    ///
    /// # Errors
    /// When the two do not go together.
    pub fn merged(old: &Config, new: &Config, host: &Host) -> Result<Self, ConfigError> {
        let origin = |setting: &Setting| {
            let of = if setting.reloadable { new } else { old };
            (setting.key, of.origin(setting.key))
        };
        let origins = Origins(SETTINGS.iter().map(origin).collect());
        let command = old.asked.clone().reloaded(new.asked.clone());
        let merged = Sources { command, origins: Some(origins), ..Sources::default() };
        Ok(Config { file: new.file.clone(), ..resolve::resolve(merged, host)? })
    }

    /// Limits of each shard. What is given for the node is shared out.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the defaults shared out.
    pub(crate) fn room(&self) -> Room {
        self.room
    }

    /// Every setting with the value in force.
    pub fn effective(&self) -> &Settings {
        &self.effective
    }

    /// Loads the keys of [`AuthConfig::load`].
    ///
    /// # Errors
    /// When a file cannot be read or holds no usable key; the message names the setting, where it comes from, and the
    /// file.
    pub fn load_auth(&self) -> Result<Auth, ConfigError> {
        self.auth.load().map_err(|error| self.named(error))
    }

    /// Loads the keys of the HTTP API; `None` when no file is configured.
    ///
    /// # Errors
    /// As [`HttpAccess::load_keys`]; the message names the setting and where it comes from too.
    pub fn load_api_keys(&self) -> Result<Option<ApiKeys>, ConfigError> {
        self.http_access.load_keys().map_err(|error| self.named(error))
    }

    /// Loads the keys of the HTTP API, and says who may use it.
    ///
    /// # Errors
    /// As [`Config::load_api_keys`].
    pub fn load_access(&self) -> Result<Access, ConfigError> {
        self.http_access.load().map_err(|error| self.named(error))
    }

    /// Reads the secret of the cluster; `None` for a node that is alone.
    ///
    /// # Errors
    /// As [`ClusterConfig::load_secret`]; the message names the setting and where it comes from too.
    pub fn load_secret(&self) -> Result<Option<ClusterSecret>, ConfigError> {
        let secret = self.cluster.as_ref().map(ClusterConfig::load_secret).transpose();
        secret.map_err(|error| self.named(error))
    }

    /// Reads and checks the certificates; `None` without TLS.
    ///
    /// # Errors
    /// As [`TlsConfig::load`]; the message names the setting and where it comes from too.
    pub fn load_tls(&self) -> Result<Option<TlsMaterial>, ConfigError> {
        self.tls.as_ref().map(TlsConfig::load).transpose().map_err(|error| match error {
            ConfigError::Several(faults) => {
                ConfigError::Several(faults.into_iter().map(|fault| self.named(fault)).collect())
            }
            error => self.named(error),
        })
    }

    /// Reads and checks the certificate of the HTTP API; `None` for one in clear.
    ///
    /// # Errors
    /// As [`HttpTlsConfig::load`]; the message names the setting and where it comes from too.
    pub fn load_http_tls(&self) -> Result<Option<HttpIdentity>, ConfigError> {
        self.http_tls.as_ref().map(HttpTlsConfig::load).transpose().map_err(|error| self.named(error))
    }

    /// How the node takes part in its cluster, TLS to Redis set up; `None` for a node that is alone.
    ///
    /// # Errors
    /// As [`ClusterConfig::with_tls`]; the message names the setting and where it comes from too.
    pub fn load_cluster(&self) -> Result<Option<ClusterConfig>, ConfigError> {
        let cluster = self.cluster.as_ref().map(ClusterConfig::with_tls).transpose();
        cluster.map_err(|error| self.named(error))
    }

    /// An error about a file, with the setting that names the file.
    fn named(&self, error: ConfigError) -> ConfigError {
        let ConfigError::File { path, .. } = &error else { return error };
        match self.files().into_iter().find(|(_, file)| file == path) {
            Some((key, _)) => ConfigError::Setting { key, origin: self.origins.of(key), error: Box::new(error) },
            None => error,
        }
    }

    /// The files that settings name, with their keys.
    pub fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let table = to_table(&self.effective);
        let mut files = Vec::new();
        let names_files = |key: &&str| key.ends_with("_file") || key.ends_with("_files") || TLS_FILE_KEYS.contains(key);
        for key in SETTINGS.iter().map(|setting| setting.key).filter(names_files) {
            match table.get(key) {
                Some(toml::Value::String(path)) => files.push((key, path.into())),
                Some(toml::Value::Array(paths)) if key == "cluster_secret_file" || TLS_FILE_KEYS.contains(&key) => {
                    files.extend(paths.iter().filter_map(|path| Some((key, path.as_str()?.into()))));
                }
                // Lists hold keys, which may have a name before the file.
                Some(toml::Value::Array(keys)) => {
                    let keys = keys.iter().filter_map(|text| text.as_str()?.parse::<KeyFile>().ok());
                    files.extend(keys.map(|file| (key, file.path)));
                }
                _ => {}
            }
        }
        files
    }

    /// Those of TLS among them.
    pub fn tls_files(&self) -> Vec<PathBuf> {
        let files = self.files().into_iter().filter(|(key, _)| TLS_FILE_KEYS.contains(key));
        files.map(|(_, path)| path).collect()
    }

    /// Where the value of a key comes from.
    pub fn origin(&self, key: &'static str) -> Origin {
        self.origins.of(key)
    }
}

impl AuthConfig {
    /// Loads the keys and makes the whole [`Auth`] of this configuration: at start, and again for a node that is to
    /// take other keys ([`crate::auth::AuthSwitch::replace`]). One newline at the end of a secret's file does not
    /// belong to the secret.
    ///
    /// # Errors When a file cannot be read or holds no usable key; the message names the file.
    pub fn load(&self) -> Result<Auth, ConfigError> {
        let AuthConfig::Jwt { hs256_secret_files, ed25519_public_key_files, issuers, audiences, leeway_s } = self
        else {
            return Ok(Auth::Open);
        };
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |error: KeyError| ConfigError::File { path, error: error.to_string() }
        };
        let mut keys = JwtKeys::default();
        for KeyFile { id, path } in hs256_secret_files {
            let secret = read_key(path)?;
            keys = keys.with_hs256(id.as_deref(), without_newline(&secret)).map_err(unusable(path))?;
        }
        for KeyFile { id, path } in ed25519_public_key_files {
            keys = keys.with_ed25519(id.as_deref(), &read_key(path)?).map_err(unusable(path))?;
        }
        let keys = keys.with_issuers(issuers.clone()).with_audiences(audiences.clone()).with_leeway_s(*leeway_s);
        Ok(Auth::Jwt(Box::new(keys)))
    }
}

fn without_newline(secret: &[u8]) -> &[u8] {
    let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
    secret.strip_suffix(b"\r").unwrap_or(secret)
}

/// Reads a file of keys or a secret.
pub(crate) fn read_key(path: &Path) -> Result<Vec<u8>, ConfigError> {
    read_bounded(path, KEY_FILE_BYTES_MAX, "a file of keys")
}

/// Reads a file of the configuration that may be of any kind, a device or a pipe too.
///
/// # Errors
/// When it cannot be read, or is longer than `bytes_max`.
fn read_bounded(path: &Path, bytes_max: u64, what: &str) -> Result<Vec<u8>, ConfigError> {
    files::read_bounded(path, bytes_max, what).map_err(|error| ConfigError::File { path: path.to_owned(), error })
}

/// Everything a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// What flags and environment say, flags first.
    pub command: Settings,
    /// The keys among them that come from the environment.
    pub from_environment: Vec<&'static str>,
    /// The file, if one was named.
    pub file: Option<ConfigFile>,
    /// What was found wrong with the environment.
    pub faults: Vec<ConfigError>,
    /// Where values come from, where that is known already.
    pub origins: Option<Origins>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag; holds it.
    Flag(String),
    /// An environment variable; holds its name.
    Environment(&'static str),
    /// A line of the file.
    File(PathBuf, usize),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => f.write_str(flag),
            Origin::Environment(name) => f.write_str(name),
            Origin::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Origin::Default => f.write_str("the default"),
        }
    }
}

/// The origin of every key that somebody set.
#[derive(Clone, Debug, Default)]
pub struct Origins(HashMap<&'static str, Origin>);

impl Origins {
    fn of(&self, key: &'static str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// A configuration that is refused. Each message is one sentence that says where and what is allowed; several stand in
/// lines of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// A file that cannot be read or used.
    File {
        /// Its name.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// A line of the configuration file.
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: String,
        /// What is wrong with it.
        error: String,
    },
    /// A value out of range.
    Value {
        /// Its key.
        key: &'static str,
        /// The value.
        value: String,
        /// Where it comes from.
        origin: Origin,
        /// What is allowed.
        allowed: String,
    },
    /// Values that do not go together.
    Conflict(String),
    /// What a setting names cannot be used.
    Setting {
        /// Its key.
        key: &'static str,
        /// Where its value comes from.
        origin: Origin,
        /// What is wrong.
        error: Box<ConfigError>,
    },
    /// Several of these, two at least.
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// All of these as one.
    ///
    /// # Errors
    /// When there are any.
    pub fn unless_none(mut faults: Vec<ConfigError>) -> Result<(), ConfigError> {
        match faults.len() {
            0 => Ok(()),
            1 => Err(faults.remove(0)),
            _ => Err(ConfigError::Several(faults)),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::File { path, error } => write!(f, "{}: {error}", path.display()),
            ConfigError::Line { path, line, text, error } => {
                write!(f, "{}, line {line}: {text}: {error}", path.display())
            }
            ConfigError::Value { key, value, origin, allowed } => write!(f, "{key} = {value} ({origin}): {allowed}"),
            ConfigError::Conflict(message) => f.write_str(message),
            ConfigError::Setting { key, origin, error } => write!(f, "{key} ({origin}): {error}"),
            ConfigError::Several(faults) => {
                write!(f, "{} faults in the configuration:", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_does_not_belong_to_a_secret() {
        for (file, secret) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\n", "secret"),
            ("secret\n\n", "secret\n"),
            ("", ""),
        ] {
            assert_eq!(without_newline(file.as_bytes()), secret.as_bytes(), "{file:?}");
        }
    }
}
