//! The store of a node: opened at start, on a thread of its own, and ended behind the shards, so that what is owed is
//! committed.

use crate::config::{ClusterConfig, Config, InboxFull, Size, StoreConfig, StorePlace, StoreSyncKind};
use crate::desk::{ShardStore, StoreAnswers};
use crate::events::EventsInRedis;
use crate::limits::{Limits, REPLAY_WINDOW_MAX, SYNC_PAGE_MAX};
use crate::metrics::StatType;
use crate::prometheus::Exposition;
use crate::startup::StartupError;
use crate::store_memory::GROUPS_PART;
use rustix::rand::{GetRandomFlags, getrandom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use trunkline_redis_store::{GroupBounds, RedisStore, Settings, StoreSync};
pub use trunkline_redis_store::{Tool, ToolError};
use trunkline_store::{
    COMMIT_BUCKETS_US, Clock, Embedded, GroupLimits, GroupStats, Groups, Refusal, Stats, StoreMail, StoreThread,
    WhenFull, WithGroups, group_store_limits,
};

/// Registered devices of a user that are remembered at least, also where fewer may be online.
const DEVICES_LEAST: u16 = 32;

/// Messages at the end of an inbox among which one that is sent again looks for itself after a restart: more than
/// senders usually have under way to one recipient. A look may read them all from a table, on the thread that commits.
const RETRY_WINDOW: u32 = 256;

/// Folder of the logs of groups, in that of the store.
const GROUPS_FOLDER: &str = "groups";

/// A store that has answered nothing for so long is late. A commit takes milliseconds on a disk that works.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// The thread of a store.
#[derive(Debug)]
enum Running {
    Embedded(StoreThread),
    Redis(RedisStore),
}

/// A store in operation.
#[derive(Debug)]
pub struct NodeStore {
    running: Running,
    shards: ShardStore,
    bytes_max: u64,
    frame_bytes_max: u64,
}

/// Bounds of a store, from the configuration.
pub fn store_limits(config: &StoreConfig, limits: &Limits) -> trunkline_store::Limits {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    trunkline_store::Limits {
        user_messages_max: narrow(limits.inbox_messages_max),
        user_bytes_max: narrow(limits.inbox_bytes_max),
        when_full: match config.full {
            InboxFull::Refuse => WhenFull::Refuse,
            InboxFull::DropOldest => WhenFull::DropOldest,
        },
        message_age_ms_max: limits.inbox_age_secs.saturating_mul(1_000),
        device_unseen_ms_max: limits.device_age_secs.saturating_mul(1_000),
        devices_per_user_max: (limits.devices_per_user_max as u16).max(DEVICES_LEAST),
        store_bytes_max: config.bytes_max,
        payload_bytes_max: limits.frame_bytes_max,
        page_max: SYNC_PAGE_MAX.max(REPLAY_WINDOW_MAX),
        retry_window: RETRY_WINDOW,
        recent_bytes_max: limits.store_recent_bytes_max,
        ..trunkline_store::Limits::default()
    }
}

/// Opens the store in a folder, which is made if need be.
///
/// # Errors
/// When the folder cannot be used, or another process has it; the message names it.
pub fn open(data_dir: &Path, limits: trunkline_store::Limits) -> Result<Embedded, StartupError> {
    let mut store = Embedded::open(data_dir, limits, wall_clock())
        .map_err(|error| StartupError::Store(data_dir.to_owned(), error.to_string()))?;
    store.set_uptime(Arc::new(crate::clock::now_ms));
    Ok(store)
}

fn wall_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64)
}

/// Whether anything is kept of groups in the folder of a store.
pub fn has_groups(data_dir: &Path) -> bool {
    data_dir.join(GROUPS_FOLDER).is_dir()
}

/// Opens what is kept of groups, in a folder of its own within that of the store.
///
/// # Errors
/// As [`open`].
pub fn open_groups(data_dir: &Path, config: &StoreConfig, limits: &Limits) -> Result<Groups<Embedded>, StartupError> {
    let folder = data_dir.join(GROUPS_FOLDER);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let of_inboxes = store_limits(config, limits);
    let of_groups = trunkline_store::Limits {
        store_bytes_max: of_inboxes.store_bytes_max / GROUPS_PART,
        recent_bytes_max: of_inboxes.recent_bytes_max / GROUPS_PART,
        ..of_inboxes
    };
    let most = &limits.groups;
    let of_groups = group_store_limits(&of_groups, narrow(most.messages_max), most.age_secs.saturating_mul(1_000));
    let logs = open(&folder, of_groups)?;
    let of_members = GroupLimits {
        members_max: narrow(most.members_max),
        groups_per_user_max: narrow(most.per_user_max),
        memberships_max: most.memberships_max,
        groups_max: most.memberships_max / 8,
    };
    Groups::open(logs, of_members, wall_clock()).map_err(|error| StartupError::Store(folder, error.to_string()))
}

fn store_sync(kind: StoreSyncKind) -> StoreSync {
    match kind {
        StoreSyncKind::Replica => StoreSync::Replica,
        StoreSyncKind::Aof => StoreSync::Aof,
        StoreSyncKind::Master => StoreSync::Master,
    }
}

/// Where a node whose store is in Redis keeps events for webhooks: there as well, and as safe.
pub fn events_in_redis(config: &Config, cluster: &ClusterConfig) -> EventsInRedis {
    let place = config.store.as_ref().map(|store| &store.place);
    let sync = match place {
        Some(StorePlace::Redis(sync)) => sync.map(store_sync),
        _ => None,
    };
    EventsInRedis { redis: cluster.redis.clone(), sync }
}

/// What the store in the Redis Cluster of a node is made of.
pub fn redis_settings(
    config: &StoreConfig,
    sync: Option<StoreSyncKind>,
    limits: &Limits,
    cluster: &ClusterConfig,
) -> Settings {
    let sync = sync.map(store_sync);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let most = &limits.groups;
    let groups = GroupBounds {
        messages_max: narrow(most.messages_max),
        age_ms_max: most.age_secs.saturating_mul(1_000),
        members_max: narrow(most.members_max),
        groups_per_user_max: narrow(most.per_user_max),
    };
    let (limits, clock, time) = (store_limits(config, limits), wall_clock(), None);
    Settings { redis: cluster.redis.clone(), sync, limits, groups, clock, time }
}

impl NodeStore {
    /// Opens the store and starts its thread.
    ///
    /// # Errors
    /// As [`open`], or when the system gives no thread or no random numbers.
    /// `cluster`: with TLS to Redis set up; only for a store there, which connects by itself.
    pub fn start(
        config: &StoreConfig,
        limits: &Limits,
        shards: u16,
        cluster: Option<&ClusterConfig>,
    ) -> Result<Self, StartupError> {
        let folder = match &config.place {
            StorePlace::Folder(folder) => folder.clone(),
            StorePlace::Redis(_) => "Redis".into(),
        };
        let failed = |error: String| StartupError::Store(folder.clone(), error);
        let mut key = [0; 8];
        getrandom(&mut key, GetRandomFlags::empty()).map_err(|error| failed(error.to_string()))?;
        let mail = StoreMail::new(limits.store_mail_bytes_max as usize);
        let answers = StoreAnswers::new(shards);
        let way_back = answers.clone();
        let give_back = move |source, batch| way_back.put(source, batch);
        let no_thread = |error: std::io::Error| failed(format!("starting its thread: {error}"));
        let mut group_stats = None;
        let (running, stats, highest_stamp, bytes_max) = match &config.place {
            StorePlace::Folder(folder) => {
                let store = open(folder, store_limits(config, limits))?;
                let groups = open_groups(folder, config, limits)?;
                let highest_stamp = store.high().max(groups.logs().high());
                group_stats = Some(groups.stats().clone());
                let store = WithGroups::new(store, Some(groups));
                let thread = StoreThread::start(store, mail.clone(), give_back).map_err(no_thread)?;
                let stats = thread.stats().clone();
                (Running::Embedded(thread), stats, highest_stamp, config.bytes_max)
            }
            StorePlace::Redis(sync) => {
                let cluster = cluster.ok_or_else(|| failed("no Redis Cluster is configured".to_owned()))?;
                let settings = redis_settings(config, *sync, limits, cluster);
                let store = RedisStore::start(settings, mail.clone(), give_back).map_err(no_thread)?;
                let stats = store.stats().clone();
                (Running::Redis(store), stats, 0, u64::MAX)
            }
        };
        let key = u64::from_ne_bytes(key);
        let shared = matches!(running, Running::Redis(_));
        let shards = ShardStore { mail, answers, highest_stamp, key, stats, shared, groups: group_stats };
        let frame_bytes_max = limits.frame_bytes_max.into();
        Ok(NodeStore { running, shards, bytes_max, frame_bytes_max })
    }

    /// What its shards need.
    pub fn shards(&self) -> ShardStore {
        self.shards.clone()
    }

    /// How it is, for those who show it.
    pub fn watch(&self) -> StoreWatch {
        let ShardStore { stats, mail, groups, .. } = self.shards();
        StoreWatch { stats, mail, groups, bytes_max: self.bytes_max, frame_bytes_max: self.frame_bytes_max }
    }

    /// Answers what it was asked, makes everything durable and ends. False if its thread had panicked.
    pub fn stop(self) -> bool {
        match self.running {
            Running::Embedded(thread) => thread.stop(),
            Running::Redis(store) => store.stop(),
        }
    }
}

/// The numbers of a store.
#[derive(Clone, Debug)]
pub struct StoreWatch {
    stats: Arc<Stats>,
    mail: Arc<StoreMail>,
    groups: Option<Arc<GroupStats>>,
    bytes_max: u64,
    frame_bytes_max: u64,
}

impl StoreWatch {
    /// What does not work, in words; `None` if everything does. `silence`: for how long the store has answered nothing
    /// although it was asked.
    pub fn degraded(&self, silence: Duration) -> Option<String> {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let trouble = self.stats.trouble();
        let why = trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
        if !self.stats.is_available() {
            return Some(format!(
                "the store cannot write{why}, so messages for users who are offline are refused with SENT 3"
            ));
        }
        if let Some(groups) = self.groups.as_ref().filter(|groups| !groups.store.is_available()) {
            let why = groups.store.trouble().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
            return Some(format!("the store cannot write logs of groups{why}, so messages to groups get SENT 3"));
        }
        if silence >= SILENCE_MAX {
            return Some(format!(
                "the store has answered nothing for {} s, so messages for users who are offline get SENT 3 if it lasts",
                silence.as_secs()
            ));
        }
        let bytes = of(&self.stats.log_bytes) + of(&self.stats.table_bytes);
        // A short message may still fit.
        if bytes.saturating_add(self.frame_bytes_max) > self.bytes_max {
            return Some(format!(
                "the store is full: {} of {} are used, so messages for users who are offline are refused with SENT 5",
                Size(bytes).rounded(),
                Size(self.bytes_max).rounded()
            ));
        }
        if self.stats.sync_is_makeshift.load(Ordering::Relaxed) {
            return Some(
                "a master of Redis had no replica when the store connected, so messages count as stored when the \
                 master alone has them: give each master a replica, or set store_sync = master if that is meant"
                    .to_owned(),
            );
        }
        if trouble.is_some() {
            return Some(format!(
                "the store cannot write its tables{why}; when its memory is full, messages for users who are offline \
                 get SENT 3"
            ));
        }
        let of_groups = self.groups.as_ref().and_then(|groups| groups.store.damage());
        let damage = self.stats.damage().or(of_groups)?;
        Some(format!(
            "something that was stored is damaged ({damage}), and devices are told truncated; this is said until the \
             next start"
        ))
    }

    /// Writes its metrics.
    pub fn write(&self, exposition: &mut Exposition) {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let Stats { refused, commit_us, commit_us_sum, .. } = &*self.stats;
        for (name, kind, help, value) in [
            (
                "trunkline_store_available",
                StatType::Gauge,
                "1 while the store can write.",
                u64::from(self.stats.is_available()),
            ),
            (
                "trunkline_store_clock_ahead_seconds",
                StatType::Gauge,
                "By how much the clock has run ahead since the start, where nothing in the store ages by that.",
                of(&self.stats.clock_ahead_ms) / 1_000,
            ),
            (
                "trunkline_store_mail_pending_bytes",
                StatType::Gauge,
                "Bytes on their way to the store.",
                self.mail.bytes() as u64,
            ),
            (
                "trunkline_store_mail_refused_total",
                StatType::Counter,
                "Requests for which its mailbox had no room.",
                self.mail.refused(),
            ),
            ("trunkline_store_appends_total", StatType::Counter, "Messages stored.", of(&self.stats.appends)),
            (
                "trunkline_store_append_bytes_total",
                StatType::Counter,
                "Bytes of their payloads.",
                of(&self.stats.append_bytes),
            ),
            (
                "trunkline_store_duplicates_total",
                StatType::Counter,
                "Messages sent again that were found stored.",
                of(&self.stats.duplicates),
            ),
            (
                "trunkline_store_acknowledged_total",
                StatType::Counter,
                "Messages let go because all registered devices have them.",
                of(&self.stats.acknowledged),
            ),
            (
                "trunkline_store_expired_total",
                StatType::Counter,
                "Messages let go because of their age.",
                of(&self.stats.expired),
            ),
            (
                "trunkline_store_dropped_total",
                StatType::Counter,
                "Oldest messages let go because their inbox was full.",
                of(&self.stats.dropped_oldest),
            ),
            ("trunkline_store_read_total", StatType::Counter, "Messages given out.", of(&self.stats.read)),
            (
                "trunkline_store_devices_forgotten_total",
                StatType::Counter,
                "Devices forgotten because they were not seen for too long, or too many.",
                of(&self.stats.devices_forgotten),
            ),
            (
                "trunkline_store_cursors_dropped_total",
                StatType::Counter,
                "Positions of devices not noted because no table could be written for long; these get messages again.",
                of(&self.stats.cursors_dropped),
            ),
            (
                "trunkline_store_gaps_dropped_total",
                StatType::Counter,
                "Gaps that devices are not told of because they could not be noted for long.",
                of(&self.stats.gaps_dropped),
            ),
            (
                "trunkline_store_marks_dropped_total",
                StatType::Counter,
                "Read marks not noted because Redis had not taken them for long; what they are for counts as unread.",
                of(&self.stats.marks_dropped),
            ),
            (
                "trunkline_store_logouts_dropped_total",
                StatType::Counter,
                "LOGOUTs not noted because Redis had not taken them for long; other nodes do not know of them.",
                of(&self.stats.log_outs_dropped),
            ),
            (
                "trunkline_store_cursors_stale_total",
                StatType::Counter,
                "Positions and signs of life ignored because their device is forgotten, or its number another one's.",
                of(&self.stats.cursors_stale),
            ),
            (
                "trunkline_store_damages_total",
                StatType::Counter,
                "Damaged places found on disk; devices are told that messages may be gone.",
                of(&self.stats.damages),
            ),
            (
                "trunkline_store_commit_failures_total",
                StatType::Counter,
                "Batches that could not be made durable.",
                of(&self.stats.commit_failures),
            ),
            ("trunkline_store_messages", StatType::Gauge, "Messages in all inboxes.", of(&self.stats.messages)),
            (
                "trunkline_store_message_bytes",
                StatType::Gauge,
                "Their bytes, as in the limits of inboxes.",
                of(&self.stats.message_bytes),
            ),
            (
                "trunkline_store_index_bytes",
                StatType::Gauge,
                "Memory by which users are found: of those for whom messages wait, and of those whom a table knows.",
                of(&self.stats.index_bytes),
            ),
            (
                "trunkline_store_users",
                StatType::Gauge,
                "Users for whom messages wait, or lately did.",
                of(&self.stats.users),
            ),
            (
                "trunkline_store_log_bytes",
                StatType::Gauge,
                "Bytes of the log that is written first.",
                of(&self.stats.log_bytes),
            ),
            (
                "trunkline_store_table_bytes",
                StatType::Gauge,
                "Bytes of the tables behind it.",
                of(&self.stats.table_bytes),
            ),
            (
                "trunkline_store_recent_bytes",
                StatType::Gauge,
                "Memory of messages that are not in a table yet.",
                of(&self.stats.recent_bytes),
            ),
        ] {
            exposition.name(name, kind, help);
            exposition.sample(&[], value);
        }
        if let Some(groups) = &self.groups {
            write_groups(exposition, groups);
        }
        let help = "1 for what of Redis has to have a message before it counts as stored.";
        exposition.name("trunkline_store_sync", StatType::Gauge, help);
        for (number, sync) in [(1, "master"), (2, "replica"), (3, "aof")] {
            exposition.sample(&[("sync", &sync)], u64::from(of(&self.stats.sync) == number));
        }
        exposition.name("trunkline_store_refused_total", StatType::Counter, "Requests refused, by why.");
        for refusal in Refusal::ALL {
            exposition.sample(&[("reason", &refusal.label())], of(&refused[refusal as usize]));
        }
        let counts: Vec<u64> = commit_us.iter().map(of).collect();
        exposition.buckets(
            "trunkline_store_commit_duration_seconds",
            "Time in which a batch was made durable.",
            &COMMIT_BUCKETS_US,
            &counts,
            of(commit_us_sum),
        );
    }
}

fn write_groups(exposition: &mut Exposition, groups: &GroupStats) {
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    for (name, kind, help, value) in [
        ("trunkline_groups", StatType::Gauge, "Groups that are kept.", of(&groups.groups)),
        ("trunkline_group_memberships", StatType::Gauge, "Memberships in them.", of(&groups.memberships)),
        ("trunkline_group_appends_total", StatType::Counter, "Messages stored in logs of groups.", of(&groups.appends)),
        ("trunkline_group_marks_stored_total", StatType::Counter, "Read marks that were news.", of(&groups.marks)),
        (
            "trunkline_group_books_begun_total",
            StatType::Counter,
            "Lists of members written anew because they had become long.",
            of(&groups.books_begun),
        ),
        (
            "trunkline_group_log_bytes",
            StatType::Gauge,
            "Bytes on disk of groups: logs, lists of members, and tables.",
            of(&groups.store.log_bytes) + of(&groups.store.table_bytes),
        ),
        (
            "trunkline_group_commit_failures_total",
            StatType::Counter,
            "Batches of groups that could not be made durable.",
            of(&groups.store.commit_failures),
        ),
        (
            "trunkline_group_damages_total",
            StatType::Counter,
            "Damaged places found on disk in what is kept of groups.",
            of(&groups.store.damages),
        ),
        (
            "trunkline_group_dropped_total",
            StatType::Counter,
            "Oldest messages of groups let go because their log was full, or because of their age.",
            of(&groups.store.dropped_oldest) + of(&groups.store.expired),
        ),
    ] {
        exposition.name(name, kind, help);
        exposition.sample(&[], value);
    }
}
