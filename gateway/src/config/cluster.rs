//! What a node needs to be one of several.

use super::resolve::PRESENCE_QUEUE_MOST;
use super::{
    ConfigError, Judge, Listen, MeshEncryptionKind, Placement, RedisDown, Settings, known, read_key, without_newline,
};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trunkline_router::membership::{ZONE_CHARS_MAX, is_zone};
use trunkline_router::redis::{RedisConfig, TlsError, TlsFiles};
use trunkline_router::ring::WEIGHT_MAX;

/// Shortest and longest cluster secret, bytes: below, it could be guessed; above, it is the name of another file.
const SECRET_BYTES_MIN: usize = 16;
const SECRET_BYTES_MAX: usize = 1_024;
/// Secrets at a time: an old one and a new one.
const SECRETS_MAX: usize = 2;
const NO_SECRET: &str = "give --cluster-secret-file FILE, with the secret that all nodes of the cluster share";
/// A renewal gets a fifth of the lease, so that one that fails can be tried three times more before the lease ends.
const LEASE_PARTS: u64 = 5;
/// A lease is renewed each second, or more often where a fifth of it is less.
const BEAT_MAX: Duration = Duration::from_secs(1);
/// Most links to another node: one for each shard of a node with as many cores as nodes are made for.
const MESH_LINKS_MAX: u16 = 64;
/// Longest advertised address: the longest DNS name, a colon and a port.
const ADVERTISE_BYTES_MAX: usize = 259;

/// How a node takes part in a cluster, every value judged.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Where Redis is, with time-outs that fit the lease.
    pub redis: RedisConfig,
    /// The files of TLS to Redis; see [`ClusterConfig::with_tls`].
    pub tls_files: TlsFiles,
    /// Where the mesh listens; the other nodes dial it.
    pub mesh: SocketAddr,
    /// `host:port` that clients dial.
    pub advertise: String,
    /// Weight in the ring, 1 to 65535.
    pub weight: u32,
    /// Where the node stands; may be empty.
    pub zone: String,
    /// Files with the secrets of the cluster, one or two; see [`ClusterConfig::load_secret`].
    pub secret_files: Vec<PathBuf>,
    /// Whether what nodes say to each other is encrypted.
    pub mesh_encryption: MeshEncryptionKind,
    /// Most links to another node, 1 to 64.
    pub mesh_links: u16,
    /// What becomes of a login at a node that is not the user's home.
    pub placement: Placement,
    /// Time to live of the lease, milliseconds.
    pub lease_ms: u64,
    /// Who serves while no node reaches Redis.
    pub redis_down: RedisDown,
    /// Most presence writes that wait for Redis.
    pub presence_queue_max: usize,
    /// Time in which all sessions are compared with what Redis holds, milliseconds.
    pub presence_audit_ms: u64,
}

/// What all nodes of a cluster know and nobody else does, 16 to 1024 bytes; while it is being changed a second one
/// beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret {
    /// What this node proves that it knows.
    first: Box<[u8]>,
    /// What other nodes may prove instead.
    second: Option<Box<[u8]>>,
}

impl ClusterSecret {
    /// What tells the first secret from others and does not give it away: the first 8 bytes of HMAC-SHA256 over a
    /// label, in hexadecimal digits.
    pub fn mark(&self) -> String {
        mark(&self.first)
    }

    /// Whether a node with this mark proves a secret that this node accepts.
    pub fn accepts(&self, mark_of_other: &str) -> bool {
        self.all().any(|secret| mark(secret) == mark_of_other)
    }

    /// All secrets, first the one that this node proves.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&*self.first).chain(self.second.as_deref())
    }
}

fn mark(secret: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(b"trunkline cluster secret mark");
    mac.finalize().into_bytes().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for ClusterSecret {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

impl ClusterConfig {
    /// Reads the secrets. One newline at the end of a file does not belong to it.
    ///
    /// # Errors
    /// When a file cannot be read or its secret is too short or too long; the message names the file.
    pub fn load_secret(&self) -> Result<ClusterSecret, ConfigError> {
        let mut secrets = self.secret_files.iter().map(|file| load_secret(file));
        let first = secrets.next().unwrap_or_else(|| Err(ConfigError::Conflict(NO_SECRET.to_owned())))?;
        Ok(ClusterSecret { first, second: secrets.next().transpose()? })
    }

    /// The same with TLS to Redis set up, if it is asked for.
    ///
    /// # Errors
    /// When a file cannot be used; the message names it.
    pub fn with_tls(&self) -> Result<ClusterConfig, ConfigError> {
        let mut config = self.clone();
        config.redis.load_tls(&self.tls_files).map_err(|TlsError { path, detail }| match path {
            Some(path) => ConfigError::File { path, error: detail },
            None => ConfigError::Conflict(detail),
        })?;
        Ok(config)
    }

    /// How often the lease is renewed and the view is asked for: each second, or a fifth of a lease of less than 5 s.
    pub fn beat(&self) -> Duration {
        BEAT_MAX.min(Duration::from_millis(self.lease_ms / LEASE_PARTS))
    }
}

fn load_secret(file: &Path) -> Result<Box<[u8]>, ConfigError> {
    let bytes = read_key(file)?;
    let secret = without_newline(&bytes);
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
        let error = format!(
            "it holds {} bytes, and a cluster secret has {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}; \
             'openssl rand -hex 32' makes a good one, the same file for all nodes",
            secret.len()
        );
        return Err(ConfigError::File { path: file.to_owned(), error });
    }
    Ok(secret.into())
}

/// Judges the settings of a cluster; `None` for a node that is alone.
pub(super) fn cluster(
    all: &Settings,
    defaults: &Settings,
    judge: &Judge,
) -> Result<Option<ClusterConfig>, ConfigError> {
    let Some(url) = &all.redis else {
        return alone(all, defaults, judge).map(|()| None);
    };
    let mut redis = match url.config() {
        Ok(redis) => redis,
        Err(error) => return judge.refuse("redis", url, error.to_string()),
    };
    let lease_ms = judge.count("lease_secs", known(all.lease_secs), 2..=60)? * 1_000;
    redis.command_timeout = redis.command_timeout.min(Duration::from_millis(lease_ms / LEASE_PARTS));
    let secret_files = all.cluster_secret_file.clone().unwrap_or_default();
    if secret_files.is_empty() {
        let redis = judge.origins.of("redis");
        return Err(ConfigError::Conflict(format!(
            "redis ({redis}) is given without cluster_secret_file: {NO_SECRET}"
        )));
    }
    if secret_files.len() > SECRETS_MAX {
        return judge.refuse(
            "cluster_secret_file",
            secret_files.len(),
            format!("at most {SECRETS_MAX} files: the secret that this node proves, and one that it accepts beside it"),
        );
    }
    Ok(Some(ClusterConfig {
        redis,
        tls_files: TlsFiles {
            ca: all.redis_ca_file.clone(),
            cert: all.redis_cert_file.clone(),
            key: all.redis_key_file.clone(),
        },
        mesh: mesh(all, judge)?,
        advertise: advertise(all, judge)?,
        weight: judge.count("weight", known(all.weight), 1..=WEIGHT_MAX.into())? as u32,
        zone: zone(all, judge)?,
        secret_files,
        mesh_encryption: known(all.mesh_encryption),
        mesh_links: judge.count("mesh_links", known(all.mesh_links), 1..=MESH_LINKS_MAX.into())? as u16,
        placement: known(all.placement),
        lease_ms,
        redis_down: known(all.redis_down),
        presence_queue_max: judge.count("presence_queue_max", known(all.presence_queue_max), 1_000..=100_000_000)?
            as usize,
        presence_audit_ms: judge.count("presence_audit_secs", known(all.presence_audit_secs), 1..=86_400)? * 1_000,
    }))
}

/// What clients are told where nobody says what they are to be told.
fn first_listen(all: &Settings) -> Option<String> {
    all.listen.as_ref()?.first().map(Listen::reached)
}

/// Whoever sets one of these means to have a cluster, and would have none.
fn alone(all: &Settings, defaults: &Settings, judge: &Judge) -> Result<(), ConfigError> {
    let changed = [
        ("mesh", all.mesh != defaults.mesh),
        ("advertise", all.advertise.as_ref().is_some_and(|text| first_listen(all).as_ref() != Some(text))),
        ("weight", all.weight != defaults.weight),
        ("zone", all.zone != defaults.zone),
        ("cluster_secret_file", all.cluster_secret_file.is_some()),
        ("redis_ca_file", all.redis_ca_file.is_some()),
        ("redis_cert_file", all.redis_cert_file.is_some()),
        ("redis_key_file", all.redis_key_file.is_some()),
        ("mesh_encryption", all.mesh_encryption != defaults.mesh_encryption),
        ("mesh_links", all.mesh_links != defaults.mesh_links),
        ("placement", all.placement != defaults.placement),
        ("lease_secs", all.lease_secs != defaults.lease_secs),
        ("redis_down", all.redis_down != defaults.redis_down),
        ("presence_audit_secs", all.presence_audit_secs != defaults.presence_audit_secs),
        ("presence_queue_max", all.presence_queue_max != Some(PRESENCE_QUEUE_MOST)),
    ];
    match changed.iter().find(|(_, changed)| *changed) {
        Some((key, _)) => Err(ConfigError::Conflict(format!(
            "{key} ({}) has a meaning in a cluster only, and redis is not set: \
             give --redis redis-cluster://host:port, or leave {key} out",
            judge.origins.of(key)
        ))),
        None => Ok(()),
    }
}

fn zone(all: &Settings, judge: &Judge) -> Result<String, ConfigError> {
    let zone = known(all.zone.clone());
    if is_zone(&zone) {
        return Ok(zone);
    }
    judge.refuse(
        "zone",
        zone,
        format!("a zone has at most {ZONE_CHARS_MAX} characters, none of them a control character"),
    )
}

fn mesh(all: &Settings, judge: &Judge) -> Result<SocketAddr, ConfigError> {
    let mesh = known(all.mesh);
    if mesh.ip().is_unspecified() || mesh.port() == 0 {
        let allowed = "the other nodes dial this address, so it must be one of this machine with a port that is not 0";
        return judge.refuse("mesh", mesh, allowed);
    }
    // Of a host name nobody knows here where it leads.
    let advertised = all.advertise.as_ref().and_then(|text| text.parse::<SocketAddr>().ok());
    let elsewhere = advertised.filter(|address| !address.ip().is_loopback() && !address.ip().is_unspecified());
    if let (true, Some(advertised)) = (mesh.ip().is_loopback(), elsewhere) {
        let suggested = SocketAddr::new(advertised.ip(), mesh.port());
        return judge.refuse(
            "mesh",
            mesh,
            format!(
                "clients reach this node at {advertised} (advertise), and no other node reaches it on loopback: \
                 give --mesh an address that the other nodes dial, such as {suggested}"
            ),
        );
    }
    Ok(mesh)
}

fn advertise(all: &Settings, judge: &Judge) -> Result<String, ConfigError> {
    let text = known(all.advertise.clone());
    let allowed = "clients dial this, so it must be host:port with a host they reach and a port that is not 0";
    let computed = first_listen(all).as_ref() == Some(&text);
    let (host, port) = text.rsplit_once(':').unwrap_or((&text, ""));
    let unspecified = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    let bad = host.is_empty()
        || text.len() > ADVERTISE_BYTES_MAX
        || text.chars().any(|c| c.is_control() || c.is_whitespace())
        || (host.contains(':') && !(host.starts_with('[') && host.ends_with(']')))
        || !port.parse::<u16>().is_ok_and(|port| port != 0)
        || unspecified;
    if !bad {
        return Ok(text);
    }
    if computed {
        return judge.refuse("advertise", text, format!("{allowed}; it follows listen, so give --advertise HOST:PORT"));
    }
    judge.refuse("advertise", text, allowed)
}

#[cfg(test)]
mod tests;
