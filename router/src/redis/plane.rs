//! The connection to the cluster, and everything that is asked of it.

use super::config::RedisConfig;
use super::entry::{self, Stored, padded};
use super::error::{AccountError, AcquireError, PlaneError};
use super::master::{Master, MasterSettings};
use super::metrics::{Metrics, add};
use super::script::{Script, Scripts};
use super::{PresenceEntry, PresenceWrite, Renewal, WriteOutcome};
use crate::membership::{NodeRecord, REMEMBERED_MS, check_name};
use crate::ring::NODES_MAX;
use cluster::{Cluster, Request};
use fred::types::Value;
use fred::types::config::Server;
use futures_util::future::join_all;
use rand::RngExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

pub(super) mod cluster;
pub(super) mod connect;
mod link;
mod slots;

/// The names that polls ask for.
const LIST: &str = "tl:nodes";

/// The names of nodes that were here. It has the hash slot of [`LIST`], so that one script writes both.
const PAST_LIST: &str = "tl:past:{tl:nodes}";

/// How long a node's name stays on [`LIST`] after its lease has ended: a minute. Each name costs every node one GET a
/// second, and a lease that has ended is as good as none; the minute is for clocks of Redis servers that differ when a
/// replica takes over. On [`PAST_LIST`], which is read by nodes that begin, it stays for [`REMEMBERED_MS`].
const NAME_KEPT_MS: u64 = 60_000;

/// The most names on either list: as many again as a ring may have, for those that have ended. Those whose leases end
/// first have to go, so nodes that live stay, whatever else has been on the list.
pub const NAMES_MAX: usize = 2 * NODES_MAX;

/// The longest lease, as `--lease-secs` takes it.
const LEASE_MS_MAX: u64 = 3_600_000;

/// The pause between two attempts to connect for the first time.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The longest name of an account, in characters.
const ACCOUNT_CHARS_MAX: usize = 64;

/// The ids that accounts get. They fit the signed numbers of SQL and Java. Those below 2^40 are left to users that are
/// numbered in another way, such as by a database, or by an earlier version of this, which counted from 1.
pub const ACCOUNT_IDS: std::ops::Range<u64> = 1 << 40..1 << 63;

/// How often an id is drawn for one account. With a billion accounts one draw in nine billion meets an id that is
/// taken.
const ID_DRAWS_MAX: u32 = 4;

/// A connection to the cluster. Clones share it. Needs a tokio runtime; every method ends within `command_timeout`
/// (those with several steps within that for each).
#[derive(Debug, Clone)]
pub struct Plane {
    cluster: Cluster,
    config: Arc<RedisConfig>,
    scripts: Arc<Scripts>,
    metrics: Arc<Metrics>,
}

impl Plane {
    /// Connects. From then on connections that break are made anew, for ever.
    ///
    /// # Errors
    /// All but [`PlaneError::Busy`]: each says what to do.
    pub async fn connect(config: &RedisConfig) -> Result<Self, PlaneError> {
        let plane = Plane::unconnected(config);
        plane.try_connect().await?;
        Ok(plane)
    }

    /// Without a connection yet: until [`Plane::connect_patiently`] has ended every command fails.
    #[must_use]
    pub fn unconnected(config: &RedisConfig) -> Self {
        let config = Arc::new(config.clone());
        Plane {
            cluster: Cluster::unconnected(Arc::clone(&config)),
            config,
            scripts: Arc::new(Scripts::new()),
            metrics: Arc::new(Metrics::default()),
        }
    }

    async fn try_connect(&self) -> Result<(), PlaneError> {
        connect::connect(&self.config, &self.cluster).await
    }

    /// Connects, and waits for a cluster that is not there yet, is being set up, loads its data or refuses the
    /// password: all that may pass by itself. `waits` is told why after each attempt that failed, about once a second.
    ///
    /// # Errors
    /// What only a change of the configuration mends; see [`PlaneError::may_pass`].
    pub async fn connect_patiently(&self, mut waits: impl FnMut(&PlaneError)) -> Result<(), PlaneError> {
        loop {
            match self.try_connect().await {
                Err(error) if error.may_pass() => waits(&error),
                result => return result,
            }
            sleep(CONNECT_PAUSE).await;
        }
    }

    /// Closes the connections. Commands that are on their way fail.
    pub async fn close(&self) {
        self.cluster.close();
    }

    /// The numbers of this connection.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &RedisConfig {
        &self.config
    }

    /// Takes the lease of `record.name` for `ttl_ms`, with a new incarnation, and puts the name on the list.
    /// `record.incarnation` is the one the caller had before, or 0: the new one is higher, and if Redis still has the
    /// lease of the one before it takes its place in the same step, so that nobody sees the name without a lease.
    /// Otherwise the lease holds `record` as it is.
    ///
    /// # Errors
    /// [`AcquireError::NameTaken`] while another incarnation lives.
    pub async fn acquire(&self, record: &NodeRecord, ttl_ms: u64) -> Result<u64, AcquireError> {
        let json = record.to_json().map_err(PlaneError::from)?;
        let token = format!("{:016x}", rand::random::<u64>());
        let keys = [lease_key(&record.name), counter_key(&record.name), mesh_key(&record.name)];
        let numbers = [ttl_ms, record.incarnation].map(|number| number.to_string().into());
        let args = [token.into(), json.into()].into_iter().chain(numbers).chain([record.mesh.as_str().into()]);
        let answer = self.call(&self.scripts.acquire, keys.each_ref().map(String::as_str), args.collect()).await?;
        let mut parts = texts(answer).into_iter();
        let mut next = || parts.next().flatten();
        match next().as_deref() {
            Some("granted") => {
                let incarnation = next().as_deref().and_then(entry::number);
                self.register(&record.name, ttl_ms).await;
                Ok(incarnation.ok_or_else(|| PlaneError::answer("acquire"))?)
            }
            Some("taken") => {
                let ttl_ms_left = next().as_deref().and_then(entry::number).unwrap_or(0);
                let holder = next().and_then(|json| NodeRecord::parse(json.as_bytes()).ok());
                let (advertise, mesh) = holder.map(|holder| (holder.advertise, holder.mesh)).unwrap_or_default();
                Err(AcquireError::NameTaken { advertise, mesh, ttl_ms_left })
            }
            _ => Err(PlaneError::answer("acquire").into()),
        }
    }

    /// Renews the lease of `record.name` and `record.incarnation` for `ttl_ms`, and replaces the record in it.
    ///
    /// # Errors
    /// If Redis did not work; the lease may or may not have been renewed.
    pub async fn renew(&self, record: &NodeRecord, ttl_ms: u64) -> Result<Renewal, PlaneError> {
        let json = record.to_json()?;
        let args = vec![record.incarnation.to_string().into(), json.into(), ttl_ms.to_string().into()];
        let lease = lease_key(&record.name);
        let answer = self.call(&self.scripts.renew, [lease.as_str()], args).await?;
        self.renewal(&record.name, ttl_ms, answer, "renew").await
    }

    /// Writes the lease of `record.name` and `record.incarnation` again for `ttl_ms` if Redis has lost it, and renews
    /// it otherwise. Only for a node that may still serve: whoever sees its lease goes on with what it knew of this
    /// incarnation.
    ///
    /// # Errors
    /// If Redis did not work; the lease may or may not have been written.
    pub async fn restore(&self, record: &NodeRecord, ttl_ms: u64) -> Result<Renewal, PlaneError> {
        let json = record.to_json()?;
        let token = format!("{:016x}", rand::random::<u64>());
        let keys = [lease_key(&record.name), counter_key(&record.name), mesh_key(&record.name)];
        let (incarnation, ttl_ms_text) = (record.incarnation.to_string(), ttl_ms.to_string());
        let args = [incarnation, token, json, ttl_ms_text, record.mesh.clone()].map(Value::from).into();
        let answer = self.call(&self.scripts.restore, keys.each_ref().map(String::as_str), args).await?;
        self.renewal(&record.name, ttl_ms, answer, "restore").await
    }

    async fn renewal(
        &self,
        name: &str,
        ttl_ms: u64,
        answer: Value,
        script: &'static str,
    ) -> Result<Renewal, PlaneError> {
        match answer.as_string().as_deref() {
            Some("renewed") => {
                self.register(name, ttl_ms).await;
                Ok(Renewal::Renewed)
            }
            Some("absent") => Ok(Renewal::LostToNobody),
            Some("taken") => Ok(Renewal::LostToAnother),
            _ => Err(PlaneError::answer(script)),
        }
    }

    /// Gives the lease up and takes the name off the list. Whether this incarnation held it.
    ///
    /// # Errors
    /// If Redis did not work; the lease then runs out by itself.
    pub async fn release(&self, name: &str, incarnation: u64) -> Result<bool, PlaneError> {
        check_name(name)?;
        let args = vec![incarnation.to_string().into()];
        let lease = lease_key(name);
        let answer = self.call(&self.scripts.release, [lease.as_str()], args).await?;
        let held = answer.as_u64() == Some(1);
        if held {
            let removals = [PAST_LIST, LIST].map(|list| self.command("ZREM", vec![list.into(), name.into()]));
            for removed in join_all(removals).await {
                removed?;
            }
        }
        Ok(held)
    }

    /// The records of all nodes with a live lease. Records that cannot be read are skipped and counted.
    ///
    /// # Errors
    /// If any of the leases could not be asked for: half a view is none.
    pub async fn poll(&self) -> Result<Vec<NodeRecord>, PlaneError> {
        // Those whose leases end last come first: whoever lives is among them.
        let last = (NAMES_MAX - 1).to_string();
        let names = texts(self.command("ZREVRANGE", vec![LIST.into(), "0".into(), last.into()]).await?);
        self.metrics.names.store(names.len() as u64, Ordering::Relaxed);
        let gets = names.into_iter().flatten().filter(|name| check_name(name).is_ok()).map(|name| async move {
            let lease = self.command("GET", vec![lease_key(&name).into()]).await?;
            Ok::<_, PlaneError>((name, lease))
        });
        let mut records = Vec::new();
        for lease in join_all(gets).await {
            let (name, value) = lease?;
            let Some(text) = value.as_string() else {
                continue;
            };
            match record_of_lease(&name, &text) {
                Some(record) => records.push(record),
                None => add(&self.metrics.garbage, 1),
            }
        }
        Ok(records)
    }

    /// The names of nodes with a lease, and of those that had one within the day and have not given it up; and the mesh
    /// address that each had, or an empty text where Redis does not know it.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn listed(&self) -> Result<Vec<(String, String)>, PlaneError> {
        let last = (NAMES_MAX - 1).to_string();
        // Nodes of versions that did not write the list of the past are on the other one. The latest come first:
        // whoever has been gone for longest is of least account.
        let lists = [PAST_LIST, LIST]
            .map(|list| self.command("ZREVRANGE", vec![list.into(), "0".into(), last.as_str().into()]));
        let mut listed = BTreeSet::new();
        for names in join_all(lists).await {
            listed.extend(texts(names?).into_iter().flatten().filter(|name| check_name(name).is_ok()));
        }
        let names = listed.into_iter();
        let meshes = names.map(|name| async move {
            let mesh = self.command("GET", vec![mesh_key(&name).into()]).await?;
            Ok((name, mesh.as_string().unwrap_or_default()))
        });
        join_all(meshes).await.into_iter().collect()
    }

    /// The epoch that the cluster has agreed on for the view with this digest, where `known` is the caller's own. Never
    /// below `known`. To be asked after every poll: another node may have raised it.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn epoch(&self, digest: u64, known: u64) -> Result<u64, PlaneError> {
        let args = vec![format!("{digest:016x}").into(), known.to_string().into()];
        let answer = self.call(&self.scripts.epoch, ["tl:view"], args).await?;
        answer.as_string().as_deref().and_then(entry::number).ok_or_else(|| PlaneError::answer("epoch"))
    }

    /// All entries of a user, dead ones included; see [`live`](super::live).
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn user(&self, user: u64) -> Result<Vec<PresenceEntry>, PlaneError> {
        Ok(self.entries_in(self.command("HGETALL", vec![user_key(user).into()]).await?))
    }

    /// The same of several users, one result for each and in their order: a pipeline for each master. What is for a
    /// master that is away fails at once.
    pub async fn users(&self, users: &[u64]) -> Vec<Result<Vec<PresenceEntry>, PlaneError>> {
        let requests = users.iter().map(|user| {
            let key = user_key(*user);
            let slot = fred::util::redis_keyslot(key.as_bytes());
            Request { slot, name: "HGETALL", args: vec![key.into()], source: None }
        });
        let answers = self.cluster.requests(requests.collect()).await;
        answers.into_iter().map(|answer| Ok(self.entries_in(self.counted(answer)?))).collect()
    }

    /// The entries in what HGETALL has answered.
    fn entries_in(&self, answer: Value) -> Vec<PresenceEntry> {
        let fields = texts(answer);
        let mut entries = Vec::with_capacity(fields.len() / 2);
        for field in fields.chunks_exact(2) {
            match (&field[0], &field[1]) {
                (Some(device), Some(value)) => match entry::parse(device, value) {
                    Stored::Entry(entry) => entries.push(entry),
                    Stored::Mark => {}
                    Stored::Garbage => add(&self.metrics.garbage, 1),
                },
                _ => add(&self.metrics.garbage, 1),
            }
        }
        entries
    }

    /// Writes all of `writes` at once: they go out together, one pipeline for each master, and have no order among
    /// themselves. One result for each, in the order given. After an error it is not known whether the write was done.
    /// What is for a master that is away fails at once and does not delay the rest.
    pub async fn write(&self, writes: &[PresenceWrite]) -> Vec<Result<WriteOutcome, PlaneError>> {
        let invalid = |write: &PresenceWrite| PlaneError::Invalid {
            detail: format!("a session of user {} with a bad text", write.user()),
        };
        let requests = writes.iter().filter(|write| write.is_valid()).map(|write| self.write_request(write)).collect();
        let mut answers = self.cluster.requests(requests).await.into_iter();
        let mut outcome = |write: &PresenceWrite| {
            if !write.is_valid() {
                return Err(invalid(write));
            }
            let answer = self.counted(answers.next().unwrap_or_else(|| Err(PlaneError::answer("write"))))?;
            write_outcome(write, &answer)
        };
        writes.iter().map(&mut outcome).collect()
    }

    fn write_request(&self, write: &PresenceWrite) -> Request {
        let key = user_key(write.user());
        let (node, session, incarnation) = write.identity();
        let kept_s = self.config.presence_ttl.as_secs().max(1).to_string();
        let mut args: Vec<Value> = Vec::with_capacity(7);
        args.push(write.device().into());
        args.push(padded(write.version()).into());
        args.push(padded(incarnation).into());
        args.push(session.to_string().into());
        args.push(node.into());
        let script = match write {
            PresenceWrite::Login { entry, .. } => {
                args.push(entry::tail(entry).into());
                &self.scripts.login
            }
            PresenceWrite::Logout { fence, .. } => {
                args.push(if *fence { "1" } else { "0" }.into());
                &self.scripts.logout
            }
        };
        args.push(kept_s.into());
        script.request([key.as_str()], args)
    }

    /// What is stored of each of these devices, in the order given: one HGET for each in a pipeline for each master.
    /// `None` is no entry, the mark of a logout, or what cannot be read. What is for a master that is away fails at
    /// once.
    pub async fn stored(&self, devices: &[(u64, &str)]) -> Vec<Result<Option<PresenceEntry>, PlaneError>> {
        let requests = devices.iter().map(|(user, device)| {
            let key = user_key(*user);
            let slot = fred::util::redis_keyslot(key.as_bytes());
            Request { slot, name: "HGET", args: vec![key.into(), (*device).into()], source: None }
        });
        let mut answers = self.cluster.requests(requests.collect()).await.into_iter();
        let stored = devices.iter().map(|(_, device)| {
            let answer = self.counted(answers.next().unwrap_or_else(|| Err(PlaneError::answer("HGET"))))?;
            Ok(match answer.as_string().map(|value| entry::parse(device, &value)) {
                Some(Stored::Entry(entry)) => Some(entry),
                Some(Stored::Garbage) => {
                    add(&self.metrics.garbage, 1);
                    None
                }
                Some(Stored::Mark) | None => None,
            })
        });
        stored.collect()
    }

    /// What the masters say about themselves that matters to what is kept in them.
    ///
    /// # Errors
    /// If one of them did not answer.
    pub async fn masters(&self) -> Result<Vec<Master>, PlaneError> {
        let mut masters = Vec::new();
        for (address, answer) in self.cluster.ask_masters("INFO", vec![]).await {
            let info = self.counted(answer)?.as_string().ok_or_else(|| PlaneError::answer("INFO"))?;
            masters.push(Master::read(hosts_text(&[address]), &info));
        }
        Ok(masters)
    }

    /// How the masters are set up, as far as they let that be read.
    ///
    /// # Errors
    /// If one of them did not answer.
    pub async fn settings_of_masters(&self, names: &[&str]) -> Result<Vec<MasterSettings>, PlaneError> {
        let mut masters: BTreeMap<(String, u16), BTreeMap<String, String>> = BTreeMap::new();
        for name in names {
            for (address, answer) in self.cluster.ask_masters("CONFIG", vec!["GET".into(), (*name).into()]).await {
                let settings = masters.entry(address).or_default();
                let value = match answer {
                    Ok(Value::Array(pair)) => pair.get(1).and_then(Value::as_string),
                    Ok(Value::Map(map)) => map.iter().next().and_then(|(_, value)| value.as_string()),
                    Ok(_) => None,
                    // Not everybody may read the configuration.
                    Err(PlaneError::Redis { .. }) => None,
                    Err(error) => return Err(error),
                };
                settings.extend(value.map(|value| ((*name).to_owned(), value)));
            }
        }
        let settings = |(address, settings)| MasterSettings { address: hosts_text(&[address]), settings };
        Ok(masters.into_iter().map(settings).collect())
    }

    /// Makes a user with a name that nobody has, and returns the user's id.
    ///
    /// The id is drawn at random from [`ACCOUNT_IDS`], and set aside under a key of its own before the name gets it. So
    /// no loss of Redis gives an id twice: a counter that a failover or FLUSHALL sets back does, and one id in 2^63 is
    /// not drawn again by chance. The key guards the rest: of two accounts that draw the same id one draws again.
    ///
    /// # Errors
    /// [`AccountError::NameTaken`], [`AccountError::BadName`]. After another error the name may have been given to the
    /// new user.
    pub async fn create_account(&self, name: &str) -> Result<u64, AccountError> {
        if let Some(user) = self.account(name).await? {
            return Err(AccountError::NameTaken { user });
        }
        let user = self.set_aside(name).await?;
        let key = account_key(name);
        let answer = self.call(&self.scripts.account, [key.as_str()], vec![user.to_string().into()]).await?;
        match answer.as_u64() {
            Some(holder) if holder == user => Ok(user),
            Some(holder) => {
                // Another was faster. Should this fail, an id that nobody has stays set aside, which is one of 2^63.
                if let Err(error) = self.take_back(&account_name_key(user), name).await {
                    tracing::debug!("user id {user}, which nobody has, stays set aside: {error}");
                }
                Err(AccountError::NameTaken { user: holder })
            }
            None => Err(PlaneError::answer("account").into()),
        }
    }

    /// Draws an id for the account `name` that no account has.
    async fn set_aside(&self, name: &str) -> Result<u64, PlaneError> {
        for _ in 0..ID_DRAWS_MAX {
            let user = rand::rng().random_range(ACCOUNT_IDS);
            let args = vec![account_name_key(user).into(), name.into(), "NX".into()];
            match self.command("SET", args).await? {
                Value::Null => {}
                _ => return Ok(user),
            }
        }
        Err(PlaneError::Redis { detail: format!("{ID_DRAWS_MAX} user ids drawn at random were all taken") })
    }

    /// Removes the account `name` and returns the user it was of; `None` if there is none. Its id is not given again.
    /// Removing it twice, or after an error, does no harm.
    ///
    /// # Errors
    /// [`AccountError::BadName`], or if Redis did not work; then the account may be gone or not.
    pub async fn remove_account(&self, name: &str) -> Result<Option<u64>, AccountError> {
        let Some(user) = self.account(name).await? else { return Ok(None) };
        // The name last: as long as it is there, an attempt that failed half way can be made again.
        self.take_back(&account_name_key(user), name).await?;
        let removed = self.take_back(&account_key(name), &user.to_string()).await?;
        Ok(removed.then_some(user))
    }

    /// Deletes `key` if it holds `value`. Whether it did.
    async fn take_back(&self, key: &str, value: &str) -> Result<bool, PlaneError> {
        let answer = self.call(&self.scripts.take_back, [key], vec![value.into()]).await?;
        Ok(answer.as_u64() == Some(1))
    }

    /// The user of that name.
    ///
    /// # Errors
    /// [`AccountError::BadName`], or if Redis did not work.
    pub async fn account(&self, name: &str) -> Result<Option<u64>, AccountError> {
        if name.is_empty() || name.chars().count() > ACCOUNT_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(AccountError::BadName);
        }
        Ok(self.command("GET", vec![account_key(name).into()]).await?.as_u64())
    }

    /// Puts the name on both lists, for a lease of `ttl_ms`. Failing is no harm to the lease, and the next renewal does
    /// it again.
    async fn register(&self, name: &str, ttl_ms: u64) {
        let numbers = [ttl_ms, NAMES_MAX as u64, LEASE_MS_MAX, NAME_KEPT_MS, REMEMBERED_MS];
        let args = std::iter::once(name.into()).chain(numbers.map(|number| number.to_string().into()));
        match self.call(&self.scripts.register, [LIST, PAST_LIST], args.collect()).await {
            Ok(dropped) => {
                let dropped = integers(&dropped);
                add(&self.metrics.names_dropped, dropped.first().copied().unwrap_or(0));
                add(&self.metrics.past_names_dropped, dropped.get(1).copied().unwrap_or(0));
            }
            Err(_) => add(&self.metrics.unregistered, 1),
        }
    }

    async fn call<const K: usize>(
        &self,
        script: &Script,
        keys: [&str; K],
        args: Vec<Value>,
    ) -> Result<Value, PlaneError> {
        let result = self.cluster.request(script.request(keys, args)).await;
        self.counted(result)
    }

    /// A plain command whose first argument is its key.
    async fn command(&self, name: &'static str, args: Vec<Value>) -> Result<Value, PlaneError> {
        let slot = args.first().and_then(Value::as_bytes).map_or(0, fred::util::redis_keyslot);
        let result = self.cluster.request(Request { slot, name, args, source: None }).await;
        self.counted(result)
    }

    fn counted(&self, result: Result<Value, PlaneError>) -> Result<Value, PlaneError> {
        add(&self.metrics.commands, 1);
        if result.is_err() {
            add(&self.metrics.command_errors, 1);
        }
        result
    }
}

/// What the script of `write` answered.
fn write_outcome(write: &PresenceWrite, answer: &Value) -> Result<WriteOutcome, PlaneError> {
    match write {
        PresenceWrite::Login { .. } => match answer.as_string().as_deref() {
            Some("") => Ok(WriteOutcome::Written),
            // What is stored may be garbage; then it is the caller's version that says least.
            Some(version) => Ok(WriteOutcome::Stale { version: entry::number(version).unwrap_or(u64::MAX) }),
            None => Err(PlaneError::answer("login")),
        },
        PresenceWrite::Logout { .. } => match answer.as_u64() {
            Some(0) => Ok(WriteOutcome::Absent),
            Some(_) => Ok(WriteOutcome::Written),
            None => Err(PlaneError::answer("logout")),
        },
    }
}

fn lease_key(name: &str) -> String {
    format!("tl:node:{{{name}}}")
}

fn counter_key(name: &str) -> String {
    format!("tl:incarnation:{{{name}}}")
}

fn mesh_key(name: &str) -> String {
    format!("tl:mesh:{{{name}}}")
}

fn user_key(user: u64) -> String {
    format!("tl:user:{{{user}}}")
}

fn account_key(name: &str) -> String {
    format!("tl:account:{{{name}}}")
}

fn account_name_key(user: u64) -> String {
    format!("tl:account-name:{{{user}}}")
}

/// The record in a lease: incarnation, token and JSON in a line each. The first line counts, since it is what the
/// scripts compare.
fn record_of_lease(name: &str, lease: &str) -> Option<NodeRecord> {
    let mut lines = lease.splitn(3, '\n');
    let incarnation = entry::number(lines.next()?)?;
    let record = NodeRecord::parse(lines.nth(1)?.as_bytes()).ok()?;
    (record.name == name).then_some(NodeRecord { incarnation, ..record })
}

/// The elements of an answer that is a list, those that are no texts as `None`. Anything else is an empty list.
fn texts(answer: Value) -> Vec<Option<String>> {
    match answer {
        Value::Array(values) => values.into_iter().map(|value| value.as_string()).collect(),
        _ => Vec::new(),
    }
}

/// The elements of an answer that is a list, those that are no numbers as 0. Anything else is an empty list.
fn integers(answer: &Value) -> Vec<u64> {
    match answer {
        Value::Array(values) => values.iter().map(|value| value.as_u64().unwrap_or(0)).collect(),
        _ => Vec::new(),
    }
}

/// `host:port` of each, for texts.
pub(super) fn hosts_text(hosts: &[(String, u16)]) -> String {
    hosts.iter().map(|(host, port)| Server::new(host.as_str(), *port).to_string()).collect::<Vec<_>>().join(", ")
}
