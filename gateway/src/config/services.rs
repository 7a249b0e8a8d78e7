//! Services: from the settings to where workers connect and what is said of services.

use super::resolve::{Judge, RATE_MAX, known};
use super::{Config, ConfigError, Settings};
use crate::limits::Limits;
use crate::push::api::BODY_BYTES_MAX;
use crate::services::{DIALS_AT_ONCE_MAX, HashKey, LINKS_PER_SERVER_MAX, ServiceSpec};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
/// Most open calls of a session, and of a shard.
const CALLS_PER_SESSION_MAX: u64 = 4_096;
const CALLS_MAX: u64 = 4_000_000;
/// Most users of pushes by HTTP whose outcome is not known; by default, and at least.
const PUSHES_OPEN_MAX: u64 = 4_000_000;
pub(super) const PUSHES_OPEN: u64 = 65_536;
pub(super) const PUSHES_OPEN_LEAST: u64 = 1_000;
/// Most connections to HTTP servers.
const UPSTREAM_CONNS_MAX: u64 = 65_536;
/// Services of which something may be said.
const SPECS_MAX: usize = 1_024;

/// Longest key that is shown to servers.
const SERVER_KEY_BYTES_MAX: usize = 1_024;

/// How workers come to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Where they connect; `None` where all services of which something is said have servers.
    pub listen: Option<SocketAddr>,
    /// Whether they have to begin with TLS.
    pub tls_required: bool,
    /// What is said of services.
    pub specs: Arc<[ServiceSpec]>,
}

/// Judges how workers come to the node; `None` for one without services.
pub(super) fn services(all: &Settings, judge: &Judge) -> Result<Option<ServicesConfig>, ConfigError> {
    let texts = all.service.clone().unwrap_or_default();
    if let Some(listen) = all.services_listen.filter(|listen| !listen.ip().is_loopback())
        && all.api_keys_file.is_none()
    {
        let allowed = "this is not loopback, and without keys nobody could serve from there: \
                       give --api-keys-file FILE (gateway api-key --scope serve:7 makes a key)";
        return judge.refuse("services_listen", listen, allowed);
    }
    let mut specs: Vec<ServiceSpec> = Vec::new();
    for text in &texts {
        let spec = match text.parse::<ServiceSpec>() {
            Ok(spec) => spec,
            Err(error) => return judge.refuse("service", format!("{text:?}"), error.to_string()),
        };
        if specs.iter().any(|other| other.service == spec.service) {
            return judge.refuse("service", format!("{text:?}"), "something was said of this service before");
        }
        if all.services_listen.is_none() && spec.http.is_none() && spec.native.is_none() {
            let allowed = "no worker could serve it: give --services-listen too, or server=HOST:PORT, or \
                           transport=http and servers";
            return judge.refuse("service", format!("{text:?}"), allowed);
        }
        specs.push(spec);
    }
    if specs.len() > SPECS_MAX {
        return judge.refuse("service", specs.len(), format!("at most {SPECS_MAX}"));
    }
    let listen = all.services_listen;
    let tls_required = all.services_tls_required == Some(true);
    for (missing, key) in [(listen.is_none(), "services_listen"), (all.tls_cert.is_none(), "tls_cert")] {
        if tls_required && missing {
            return Err(ConfigError::Conflict(format!(
                "services_tls_required ({}) has a meaning for workers' links over TLS only, and {key} is not set: \
                 give that too, or leave services_tls_required out",
                judge.origins.of("services_tls_required")
            )));
        }
    }
    let is_some = listen.is_some() || !specs.is_empty();
    Ok(is_some.then(|| ServicesConfig { listen, tls_required, specs: specs.into() }))
}

/// Whether calls of some service go to HTTP servers. What is wrong with services is told by [`services`].
pub(super) fn has_upstreams(all: &Settings) -> bool {
    let is_http = |text: &String| text.parse::<ServiceSpec>().is_ok_and(|spec| spec.http.is_some());
    all.service.as_ref().is_some_and(|texts| texts.iter().any(is_http))
}

/// Whether some service has servers that are dialed.
fn has_dialed(all: &Settings) -> bool {
    let is_dialed = |text: &String| text.parse::<ServiceSpec>().is_ok_and(|spec| spec.native.is_some());
    all.service.as_ref().is_some_and(|texts| texts.iter().any(is_dialed))
}

/// Whether some service is balanced by the address of the caller.
pub(super) fn has_addressed(all: &Settings) -> bool {
    let is_addressed = |text: &String| text.parse::<ServiceSpec>().is_ok_and(|spec| spec.key == HashKey::Address);
    all.service.as_ref().is_some_and(|texts| texts.iter().any(is_addressed))
}

/// The key in a file: its text without the end of the line.
fn server_key(path: &Path) -> Result<Arc<str>, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(SERVER_KEY_BYTES_MAX as u64 + 2).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let key = text.trim_end_matches(['\r', '\n']);
    match (1..=SERVER_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(key.into()),
        false => Err(format!("a key is one line of 1 to {SERVER_KEY_BYTES_MAX} letters, digits and signs of ASCII")),
    }
}

impl Config {
    /// Reads what servers that are dialed are shown, by service.
    ///
    /// # Errors
    /// When a file cannot be read or holds no key; the message names it.
    pub fn load_server_keys(&self) -> Result<HashMap<u16, Arc<str>>, ConfigError> {
        let specs = self.services.iter().flat_map(|services| services.specs.iter());
        let (mut keys, mut faults) = (HashMap::new(), Vec::new());
        for spec in specs {
            let Some(path) = spec.native.as_ref().and_then(|native| native.key_file.clone()) else { continue };
            match server_key(&path) {
                Ok(key) => _ = keys.insert(spec.service, key),
                Err(error) => {
                    let (key, error) = ("service", Box::new(ConfigError::File { path, error }));
                    faults.push(ConfigError::Setting { key, origin: self.origin(key), error });
                }
            }
        }
        ConfigError::unless_none(faults).map(|()| keys)
    }
}

impl ServicesConfig {
    /// Descriptors that the node needs for dials of servers that are under way.
    #[must_use]
    pub fn dials_at_once(&self, shards: u16) -> u64 {
        match self.specs.iter().any(|spec| spec.native.is_some()) {
            true => u64::from(shards.min(LINKS_PER_SERVER_MAX)) * DIALS_AT_ONCE_MAX as u64,
            false => 0,
        }
    }

    /// Whether calls of some service go to HTTP servers.
    #[must_use]
    pub fn has_upstreams(&self) -> bool {
        self.specs.iter().any(|spec| spec.http.is_some())
    }
}

/// Judges the limits of calls, and sets those of each shard; they stay 0 without services.
pub(super) fn call_limits(limits: &mut Limits, all: &Settings, shards: u64, judge: &Judge) -> Result<(), ConfigError> {
    let upstreams = has_upstreams(all);
    if all.services_listen.is_none() && !upstreams && !has_dialed(all) {
        return Ok(());
    }
    let frame = u64::from(limits.frame_bytes_max);
    if upstreams {
        let bytes = known(all.upstream_bytes_max);
        limits.upstream_bytes_max = judge.size("upstream_bytes_max", bytes, 4 * (frame + KIB)..=64 * GIB)? as usize;
        let conns = judge.count("upstream_conns_max", known(all.upstream_conns_max), 1..=UPSTREAM_CONNS_MAX)?;
        limits.upstream_conns_max = conns as u32;
    }
    let count = |key, value: Option<u64>, most| judge.count(key, known(value), 1..=most);
    let per_session = count("calls_per_session_max", all.calls_per_session_max, CALLS_PER_SESSION_MAX)?;
    limits.calls_per_session_max = per_session as u32;
    limits.calls_max = count("calls_max", all.calls_max, CALLS_MAX)? as u32;
    let link = judge.size("link_outbox_bytes_max", known(all.link_outbox_bytes_max), frame + KIB..=GIB)?;
    limits.link_outbox_bytes_max = link as usize;
    let kept = known(all.calls_kept_bytes_max);
    let why = "each has room for the longest call (frame_bytes_max)";
    limits.calls_kept_bytes_max = judge.share("calls_kept_bytes_max", kept, shards, frame + KIB, why)?;
    Ok(())
}

/// Judges where back-ends reach the node by HTTP; `None` for one that has no such place.
pub(super) fn services_http(all: &Settings, judge: &Judge) -> Result<Option<SocketAddr>, ConfigError> {
    match all.services_http {
        Some(address) if !address.ip().is_loopback() && all.api_keys_file.is_none() => {
            let allowed = "this is not loopback, and without keys nobody could push from there: \
                           give --api-keys-file FILE (gateway api-key --scope push:user makes a key)";
            judge.refuse("services_http", address, allowed)
        }
        address => Ok(address),
    }
}

/// What each portal has to have room for: two pushes with the longest payload that a frame, or a request, can hold.
pub(super) fn portal_bytes_least(frame: u64) -> u64 {
    2 * (frame.min(BODY_BYTES_MAX as u64) + 16 * KIB)
}

/// How many sessions of a shard pushes to all may be given to in a second.
const PACE: RangeInclusive<u64> = 10..=10_000_000;

/// Judges the limits of pushes by HTTP, and sets those of the node and of each shard; they stay 0 without such
/// pushes, and but for the portals where there are only calls to HTTP servers.
pub(super) fn push_limits(limits: &mut Limits, all: &Settings, shards: u64, judge: &Judge) -> Result<(), ConfigError> {
    // Other nodes may ask for some.
    let pace = judge.count("broadcast_per_sec", known(all.broadcast_per_sec), PACE)?;
    limits.broadcast_per_sec = pace as u32;
    if all.services_http.is_none() && !has_upstreams(all) {
        return Ok(());
    }
    let frame = u64::from(limits.frame_bytes_max);
    let why = "each portal has room for two pushes or calls (frame_bytes_max)";
    let portals = known(all.portal_bytes_max);
    limits.portal_bytes_max = judge.share("portal_bytes_max", portals, shards, portal_bytes_least(frame), why)?;
    if all.services_http.is_none() {
        return Ok(());
    }
    let open = judge.count("pushes_open_max", known(all.pushes_open_max), PUSHES_OPEN_LEAST..=PUSHES_OPEN_MAX)?;
    limits.pushes_open_max = open as u32;
    let rate = |key, value: Option<u64>| judge.count(key, known(value), 0..=RATE_MAX).map(|rate| rate as u32);
    limits.pushes_per_user_per_sec = rate("pushes_per_user_per_sec", all.pushes_per_user_per_sec)?;
    limits.pushes_per_key_per_sec = rate("pushes_per_key_per_sec", all.pushes_per_key_per_sec)?;
    Ok(())
}
