//! SIGHUP: the configuration and the files it names are read again, and a running node takes what it can.
//!
//! What it takes is marked `reloadable` in the table of settings: keys, the secrets of the cluster, the log level, and
//! limits that are plain numbers read at each use. Everything else is built into what was set up at the start, and a
//! change of it is told to need a restart. All or nothing: a configuration that is refused changes nothing, and neither
//! does one whose reloadable part does not go with the rest of the one in force.
//!
//! Certificates of TLS that change on disk are taken without a SIGHUP, and nothing else with them: see [`watch`].
//!
//! Files are read on a thread of their own, because a file may be a pipe nobody writes to or stand on a server that is
//! gone, and nothing of the node may wait for it.

mod watch;

use crate::auth::{Auth, AuthSwitch};
use crate::clock::wall_s;
use crate::cluster::Secrets;
use crate::config::{
    ClusterSecret, Config, ConfigError, Host, Origin, SETTINGS, TLS_FILE_KEYS, TlsMaterial, read_key, to_table,
};
use crate::control::{Control, ControlPort};
use crate::http::Node;
use crate::limits::Limits;
use crate::reload_request::{Asked, Change, REQUESTS_MAX, Reload, Reloaded};
use crate::transport::tls::{TicketSecret, TlsSwitch};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use trunkline_router::http::{ApiKeys, HttpIdentity, HttpTls};
use trunkline_router::log;

/// How long reading the files may take.
const READ_MAX: Duration = Duration::from_secs(10);
/// Pause before a request is given to a shard again whose queue was full.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Reads the configuration anew from where the one in force came from.
pub type Read = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// What a reload changes besides the log.
#[derive(Debug)]
pub struct Targets {
    /// The shards.
    pub ports: Vec<ControlPort>,
    /// How many of them accept connections for all.
    pub accepting: u16,
    /// How long a drain takes, milliseconds.
    pub drain_ms: Arc<AtomicU64>,
    /// Who may log in.
    pub auth: Arc<AuthSwitch>,
    /// The secrets of the cluster; `None` for a node that is alone.
    pub secrets: Option<Secrets>,
    /// The certificates; `None` without TLS.
    pub tls: Option<Arc<TlsSwitch>>,
    /// The certificate of the HTTP API; `None` for one in clear.
    pub http_tls: Option<Arc<HttpTls>>,
    /// What the API shows.
    pub node: Arc<Node>,
}

/// Carries reloads out, one after the other.
pub struct Reloader {
    shared: Arc<Shared>,
    asked: mpsc::Receiver<Asked>,
    asker: mpsc::WeakSender<Asked>,
    /// Files of TLS, to be looked at.
    watched: Arc<Mutex<Vec<PathBuf>>>,
    in_force: Arc<InForce>,
}

struct Shared {
    read: Read,
    host: Host,
}

/// The configuration in force, and what the files it names held when they were read.
struct InForce {
    config: Config,
    marks: Marks,
}

/// SHA-256 of the files that settings name, by key and path; `None` for one that cannot be read.
type Marks = BTreeMap<(&'static str, std::path::PathBuf), Option<[u8; 32]>>;

/// What was read, judged and found good.
struct Fresh {
    in_force: InForce,
    auth: Auth,
    secret: Option<ClusterSecret>,
    api_keys: Option<ApiKeys>,
    tls: Option<TlsMaterial>,
    http_tls: Option<HttpIdentity>,
    reloaded: Reloaded,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("in_force", &self.in_force.config).finish_non_exhaustive()
    }
}

impl Reloader {
    /// For a node that starts with this configuration on this host.
    pub fn new(config: Config, host: Host, read: Read) -> (Self, Reload) {
        let (sender, asked) = mpsc::channel(REQUESTS_MAX);
        let marks = marks(&config);
        let shared = Arc::new(Shared { read, host });
        let watched = Arc::new(Mutex::new(config.tls_files()));
        let (asker, in_force) = (sender.downgrade(), Arc::new(InForce { config, marks }));
        (Reloader { shared, asked, asker, watched, in_force }, Reload::new(sender))
    }

    /// Runs until nobody can ask any more. Logs what each reload did.
    pub async fn run(mut self, targets: Targets) {
        if targets.tls.is_some() || targets.http_tls.is_some() {
            self.watch();
        }
        while let Some(asked) = self.asked.recv().await {
            let answer = match asked {
                Asked::All(answer) => answer,
                Asked::Certificates => {
                    match self.reload_certificates(&targets).await {
                        Ok(()) => tracing::info!("the certificates have changed: the new ones are in force"),
                        Err(error) => {
                            tracing::error!("the certificates have changed, and those in force stay: {error}");
                        }
                    }
                    continue;
                }
            };
            let outcome = self.reload(&targets).await;
            match &outcome {
                Ok(done) => tell(done),
                Err(error) => tracing::error!("reload: refused, the configuration in force stays: {error}"),
            }
            // Whoever asked may have gone.
            let _ = answer.send(outcome);
        }
    }

    async fn reload(&mut self, targets: &Targets) -> Result<Reloaded, String> {
        let (shared, in_force) = (self.shared.clone(), self.in_force.clone());
        let fresh = read_apart(move || shared.look(&in_force)).await?;
        if let (Some(switch), Some(material)) = (&targets.tls, fresh.tls) {
            // Whoever knows a secret of before makes no tickets with it any more.
            let tickets = fresh.secret.as_ref().and_then(|secret| secret.all().next()).map(TicketSecret::shared);
            // The one step that may still fail, so it is the first.
            switch.replace(material.certificates, material.client_ca.as_ref(), tickets)?;
            switch.current().certificates().tell(wall_s());
        }
        if let (Some(tls), Some(identity)) = (&targets.http_tls, fresh.http_tls) {
            tls.replace(identity);
        }
        log::set_filter(&fresh.in_force.config.log)?;
        let limits = fresh.in_force.config.limits().clone();
        targets.drain_ms.store(limits.drain_ms, Ordering::Relaxed);
        targets.node.set_limits(limits.clone());
        let of_shard = Arc::new(limits.with_accepting(targets.accepting, targets.ports.len() as u16));
        targets.auth.replace(fresh.auth);
        if let (Some(secrets), Some(secret)) = (&targets.secrets, &fresh.secret) {
            // Links that are up go on: they have been proved.
            secrets.replace(secret.all())?;
            if let Some(place) = targets.node.place() {
                place.remark(secret.mark()).await;
            }
        }
        if let Some(keys) = fresh.api_keys {
            targets.node.access().set_keys(keys);
        }
        for port in &targets.ports {
            give(port, &of_shard).await;
        }
        // Only a weight that has changed: one that was set by the API meanwhile stays else.
        let weight = fresh.in_force.config.cluster.as_ref().map(|cluster| cluster.weight);
        if let (Some(weight), Some(place)) = (weight, targets.node.place())
            && fresh.reloaded.applied.iter().any(|change| change.key == "weight")
        {
            place.weigh(weight).await;
        }
        self.in_force = Arc::new(fresh.in_force);
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = self.in_force.config.tls_files();
        Ok(fresh.reloaded)
    }

    /// Reads the files of TLS that the configuration in force names.
    async fn reload_certificates(&mut self, targets: &Targets) -> Result<(), String> {
        let in_force = self.in_force.clone();
        let read = move || {
            let config = &in_force.config;
            Ok((config.load_tls()?, config.load_http_tls()?, marks(config)))
        };
        let (material, identity, marks) = read_apart(read).await?;
        if let (Some(switch), Some(material)) = (&targets.tls, material) {
            switch.replace(material.certificates, material.client_ca.as_ref(), None)?;
            switch.current().certificates().tell(wall_s());
        }
        if let (Some(tls), Some(identity)) = (&targets.http_tls, identity) {
            tls.replace(identity);
        }
        // A reload of everything does not tell of them again.
        let mut new = InForce { config: self.in_force.config.clone(), marks: self.in_force.marks.clone() };
        new.marks.extend(marks.into_iter().filter(|((key, _), _)| TLS_FILE_KEYS.contains(key)));
        self.in_force = Arc::new(new);
        Ok(())
    }

    /// Looks at the files of TLS as long as somebody can ask for a reload. On a thread of its own, as all reading of
    /// files is.
    fn watch(&self) {
        let (watched, asker) = (self.watched.clone(), self.asker.clone());
        let changes = asker.clone();
        let paths = move || {
            asker.upgrade()?;
            Some(watched.lock().unwrap_or_else(PoisonError::into_inner).clone())
        };
        let changed = move || {
            if let Some(asker) = changes.upgrade() {
                // One who has gone reads nothing any more.
                let _ = asker.blocking_send(Asked::Certificates);
            }
        };
        let thread = std::thread::Builder::new().name("tls-files".to_owned());
        if let Err(error) = thread.spawn(move || watch::watch(paths, changed)) {
            tracing::error!("certificates that change are taken with a reload only: no thread to watch them: {error}");
        }
    }
}

/// Reads files on a thread of its own, and waits for that, but not for ever.
async fn read_apart<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ConfigError> + Send + 'static,
) -> Result<T, String> {
    let (answer, answered) = oneshot::channel();
    let reading = std::thread::Builder::new().name("reload".to_owned());
    reading
        .spawn(move || {
            // Nobody waits any more when it took too long.
            let _ = answer.send(read());
        })
        .map_err(|error| format!("no thread to read the files with: {error}"))?;
    match tokio::time::timeout(READ_MAX, answered).await {
        Ok(Ok(read)) => read.map_err(|error| error.to_string()),
        Ok(Err(_)) => Err("reading the files has failed; the log has more".to_owned()),
        Err(_) => Err(format!("the files could not be read within {} s", READ_MAX.as_secs())),
    }
}

/// A full queue empties with the shard's next turn. One that has none any more is given up: the process is about to
/// end.
async fn give(port: &ControlPort, limits: &Arc<Limits>) {
    let give = async {
        while port.send(Control::Reload { limits: limits.clone() }).is_err() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    if tokio::time::timeout(READ_MAX, give).await.is_err() {
        tracing::error!("reload: a shard does not take its new settings, because it does not turn");
    }
}

fn tell(done: &Reloaded) {
    for change in &done.applied {
        tracing::info!("reload: {change}");
    }
    for change in &done.needs_restart {
        tracing::warn!("reload: {change}: needs a restart, the old value stays in force");
    }
    match (done.applied.len(), done.needs_restart.len()) {
        (0, 0) => tracing::info!("reload: nothing has changed"),
        (applied, restart) => tracing::info!("reload: {applied} settings changed, {restart} more need a restart"),
    }
}

impl Shared {
    /// Reads everything and judges it against what is in force. On a thread of its own.
    fn look(&self, old: &InForce) -> Result<Fresh, ConfigError> {
        let files = old.config.file.iter().chain(old.marks.keys().map(|(_, path)| path));
        ConfigError::unless_none(files.filter_map(|path| once_only(path).err()).collect())?;
        let new = (self.read)()?;
        // Also what needs a restart must be right, or the restart would fail.
        let new_files_are_good = [
            new.load_auth().err(),
            new.load_api_keys().err(),
            new.load_secret().err(),
            new.load_cluster().err(),
            new.load_tls().err(),
            new.load_http_tls().err(),
        ];
        ConfigError::unless_none(new_files_are_good.into_iter().flatten().collect())?;
        let config = Config::merged(&old.config, &new, &self.host).map_err(|error| {
            ConfigError::Conflict(format!(
                "what can be reloaded does not go with what cannot, so this change needs a restart as a whole: {error}"
            ))
        })?;
        let auth = config.load_auth()?;
        let secret = config.load_secret()?;
        let api_keys = config.load_api_keys()?;
        if api_keys.is_none() && old.config.http_access.keys_file.is_some() {
            let words = "api_keys_file is gone, and an HTTP API that has had keys opens with a restart only".to_owned();
            return Err(ConfigError::Conflict(words));
        }
        let tls = config.load_tls()?;
        if tls.is_some() != old.config.tls.is_some() {
            let words = "tls_cert is set or gone, and TLS begins or ends with a restart only".to_owned();
            return Err(ConfigError::Conflict(words));
        }
        let http_tls = config.load_http_tls()?;
        if http_tls.is_some() != old.config.http_tls.is_some() {
            let words = "http_tls_cert is set or gone, and TLS of the HTTP API begins or ends with a restart only";
            return Err(ConfigError::Conflict(words.to_owned()));
        }
        let new_marks = marks(&new);
        let reloaded = compare(old, &new, &new_marks);
        // What needs a restart is told again by the next reload.
        let mut marks = old.marks.clone();
        marks.retain(|(key, _), _| !is_reloadable(key));
        marks.extend(new_marks.into_iter().filter(|((key, _), _)| is_reloadable(key)));
        Ok(Fresh { in_force: InForce { config, marks }, auth, secret, api_keys, tls, http_tls, reloaded })
    }
}

fn compare(old: &InForce, new: &Config, new_marks: &Marks) -> Reloaded {
    let mut reloaded = Reloaded::default();
    let (before, after) = (to_table(old.config.effective()), to_table(new.effective()));
    let shown = |value: Option<&toml::Value>| value.map_or_else(|| "unset".to_owned(), ToString::to_string);
    for key in old.config.effective().differing(new.effective()) {
        let origin = new.origin(key);
        // Computed from a setting that has changed, which is told itself.
        if origin == Origin::Default && old.config.origin(key) == Origin::Default {
            continue;
        }
        let what = match (shown(before.get(key)), shown(after.get(key))) {
            // The login of Redis is shown to nobody.
            (before, after) if before == after => format!("has changed ({origin})"),
            (before, after) => format!("= {after}, was {before} ({origin})"),
        };
        let list = if is_reloadable(key) { &mut reloaded.applied } else { &mut reloaded.needs_restart };
        list.push(Change { key, what });
    }
    for ((key, path), mark) in new_marks {
        if old.marks.get(&(*key, path.clone())).is_some_and(|before| before != mark) {
            let what = format!("= {}: the file holds something else now", path.display());
            let list = if is_reloadable(key) { &mut reloaded.applied } else { &mut reloaded.needs_restart };
            list.push(Change { key, what });
        }
    }
    reloaded
}

fn is_reloadable(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key == key && setting.reloadable)
}

fn marks(config: &Config) -> Marks {
    let mark = |path: &Path| read_key(path).ok().map(|bytes| Sha256::digest(bytes).into());
    config.files().into_iter().map(|(key, path)| ((key, path.clone()), mark(&path))).collect()
}

/// What was read from a pipe, such as `<(…)` in a shell, is gone.
fn once_only(path: &Path) -> Result<(), ConfigError> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(ConfigError::File {
            path: path.to_owned(),
            error: "it is no regular file, so it cannot be read a second time".to_owned(),
        }),
        // One that is gone is told of by whoever reads it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
