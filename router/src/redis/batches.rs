//! Scripts called in batches, for a store of messages: on connections of their own, so that neither waits for the
//! other, leases and messages.

use super::config::RedisConfig;
use super::error::PlaneError;
use super::plane::cluster::{Cluster, Confirm, Request};
use super::plane::{connect, hosts_text};
use super::script::Script;
pub use fred::types::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a master may wait for its replicas. They are a fraction of a millisecond away.
const COPIES_MS: u64 = 100;
/// How long a master may wait for files: `appendfsync everysec` takes a second.
const FILES_MS: u64 = 1_500;
/// What a command may take besides.
const ANSWER_MS: u64 = 1_000;
/// The pause between two attempts to connect for the first time.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// When a message that was written to Redis counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreSync {
    /// When its master has it in memory. What is not replicated yet is lost with the master.
    Master,
    /// When one replica has it too, or two where the master has two or more.
    Replica,
    /// Likewise, and when it is in the append-only files of all of these.
    Aof,
}

/// A call of the script on keys of one hash slot.
#[derive(Debug, Clone)]
pub struct Call(Request);

/// A script besides the one of a [`Batches`], on keys of one hash slot as well.
#[derive(Debug)]
pub struct Program(Script);

impl Program {
    /// Of this source.
    #[must_use]
    pub fn new(source: &'static str) -> Self {
        Program(Script::new(source))
    }
}

/// The answer to a call, and whether what [`StoreSync`] asks for holds for it: if not, it was executed and may be
/// lost with the master. After an error it may have been executed, or not.
pub type Outcome = Result<(Value, bool), PlaneError>;

/// One script, called many times at once. Needs a tokio runtime; every batch ends within the time of a command.
#[derive(Debug)]
pub struct Batches {
    cluster: Cluster,
    config: Arc<RedisConfig>,
    script: Script,
}

impl Batches {
    /// Without a connection yet: until [`Batches::connect`] has ended every call fails. `slow`: a call may take as
    /// long as [`StoreSync::Aof`] needs.
    #[must_use]
    pub fn unconnected(config: &RedisConfig, source: &'static str, slow: bool) -> Self {
        Batches::unconnected_within(config, source, Duration::from_millis(ANSWER_MS + if slow { FILES_MS } else { 0 }))
    }

    /// The same with calls that may take so long, for those whom nobody waits for.
    #[must_use]
    pub fn unconnected_within(config: &RedisConfig, source: &'static str, command_timeout: Duration) -> Self {
        let config = Arc::new(RedisConfig { command_timeout, ..config.clone() });
        Batches { cluster: Cluster::unconnected(Arc::clone(&config)), config, script: Script::new(source) }
    }

    /// Connects, however long it takes. `waits` is told why after each attempt that failed, about once a second.
    pub async fn connect(&self, mut waits: impl FnMut(&PlaneError)) {
        while let Err(error) = connect::connect(&self.config, &self.cluster).await {
            waits(&error);
            sleep(CONNECT_PAUSE).await;
        }
    }

    /// Connects within the time that is configured for it.
    ///
    /// # Errors
    /// Each says what to do.
    pub async fn try_connect(&self) -> Result<(), PlaneError> {
        connect::connect(&self.config, &self.cluster).await
    }

    /// Closes the connections.
    pub fn close(&self) {
        self.cluster.close();
    }

    /// The least number of replicas that a master has.
    #[must_use]
    pub fn fewest_replicas(&self) -> u8 {
        self.cluster.fewest_replicas()
    }

    /// A call on keys, of which there is at least one.
    #[must_use]
    pub fn call<const K: usize>(&self, keys: [&str; K], args: Vec<Value>) -> Call {
        Call(self.script.request(keys, args))
    }

    /// A call of another script on keys, of which there is at least one.
    #[must_use]
    pub fn call_of<const K: usize>(&self, program: &Program, keys: [&str; K], args: Vec<Value>) -> Call {
        Call(program.0.request(keys, args))
    }

    /// The server that would execute a call for this key now, for those who keep apart what may wait for another.
    #[must_use]
    pub fn server_of(&self, key: &str) -> Option<(String, u16)> {
        self.cluster.server_of(fred::util::redis_keyslot(key.as_bytes()))
    }

    /// The outcomes of many calls, in their order: one pipeline for each master.
    pub async fn run(&self, calls: &[Call], sync: StoreSync) -> Vec<Outcome> {
        let confirm = match sync {
            StoreSync::Master => Confirm::Nothing,
            StoreSync::Replica => Confirm::Copies(Duration::from_millis(COPIES_MS)),
            StoreSync::Aof => Confirm::Files(Duration::from_millis(FILES_MS)),
        };
        let requests: Vec<Request> = calls.iter().map(|call| call.0.clone()).collect();
        self.cluster.batch(&requests, confirm).await
    }

    /// A plain command whose first argument is its key.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn command(&self, name: &'static str, args: Vec<Value>) -> Result<Value, PlaneError> {
        let slot = args.first().and_then(Value::as_bytes).map_or(0, fred::util::redis_keyslot);
        self.cluster.request(Request { slot, name, args, source: None }).await
    }

    /// Why no master can do what `sync` asks for; `None` if all can.
    pub async fn why_not(&self, sync: StoreSync) -> Option<String> {
        if sync != StoreSync::Aof {
            return None;
        }
        let args = ["0", "0", "0"].map(Value::from).to_vec();
        for (address, answer) in self.cluster.ask_masters("WAITAOF", args).await {
            if let Err(PlaneError::Redis { detail }) = answer {
                let server = hosts_text(&[address]);
                return Some(format!("{server} has no WAITAOF, which is of Redis 7.2 ({detail})"));
            }
        }
        for (address, answer) in self.cluster.ask_masters("CONFIG", vec!["GET".into(), "appendonly".into()]).await {
            let says_no = |value: &Value| value.as_string().is_some_and(|text| text == "no");
            let is_off = match answer {
                Ok(Value::Array(values)) => values.iter().any(says_no),
                Ok(Value::Map(map)) => map.iter().any(|(_, value)| says_no(value)),
                // Not everybody may read the configuration.
                _ => false,
            };
            if is_off {
                let server = hosts_text(&[address]);
                return Some(format!("{server} has no append-only file: set appendonly yes"));
            }
        }
        None
    }

    /// Names of keys that match a pattern, of all masters; a few hundred at a time are given to `each`. For tools: it
    /// goes through all keys there are.
    ///
    /// # Errors
    /// If a master does not answer.
    pub async fn scan(&self, pattern: &str, mut each: impl FnMut(Vec<String>)) -> Result<(), PlaneError> {
        let mut cursors: Vec<((String, u16), String)> = Vec::new();
        let begin = |cursor: &str| vec![cursor.into(), "MATCH".into(), pattern.into(), "COUNT".into(), "500".into()];
        for (address, answer) in self.cluster.ask_masters("SCAN", begin("0")).await {
            let (cursor, keys) = scanned(&answer?).ok_or_else(|| PlaneError::answer("SCAN"))?;
            each(keys);
            cursors.push((address, cursor));
        }
        let mut seen: BTreeSet<((String, u16), String)> = BTreeSet::new();
        let until = Instant::now() + Duration::from_secs(24 * 3_600);
        while let Some((address, cursor)) = cursors.pop() {
            if cursor == "0" || !seen.insert((address.clone(), cursor.clone())) {
                continue;
            }
            if Instant::now() > until {
                return Err(PlaneError::TimedOut { after: Duration::from_secs(24 * 3_600) });
            }
            let answer = self.cluster.ask_server(&address, "SCAN", begin(&cursor)).await?;
            let (next, keys) = scanned(&answer).ok_or_else(|| PlaneError::answer("SCAN"))?;
            each(keys);
            cursors.push((address, next));
        }
        Ok(())
    }
}

/// The next cursor of a SCAN and the keys that it has found.
fn scanned(answer: &Value) -> Option<(String, Vec<String>)> {
    let Value::Array(parts) = answer else { return None };
    let [cursor, Value::Array(keys)] = &parts[..] else { return None };
    Some((cursor.as_string()?, keys.iter().filter_map(Value::as_string).collect()))
}
