//! The store of a node: from the settings to what it is made of.

use super::resolve::{Judge, known};
use super::values::{InboxFull, StoreKind, StoreSyncKind};
use super::{ConfigError, Origin, Settings, Size};
use std::ops::RangeInclusive;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Longest time a message or a device is remembered: ten years, in seconds.
const AGE_SECS_MAX: u64 = 10 * 365 * 24 * 3_600;
/// Most messages an inbox may be allowed to hold.
const MESSAGES_MAX: u64 = 1_000_000;
/// Least size of a store: a log and a few tables.
pub(super) const STORE_BYTES_LEAST: u64 = 64 * MIB;
/// Users for whom messages may wait, at the least and at the most.
pub(super) const STORE_USERS_LEAST: u64 = 1_000;
pub(super) const STORE_USERS_MOST: u64 = 1_000_000_000;
/// Least memory at which stored messages leave it: smaller tables would be merged all the time.
pub(super) const STORE_RECENT_LEAST: u64 = 4 * MIB;
/// Longest time without ACK before a message is stored, milliseconds.
const STORE_AFTER_MS_MAX: u64 = 600_000;

/// Where and how a node keeps messages for users who are offline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where.
    pub place: StorePlace,
    /// What becomes of a message for an inbox that is full.
    pub full: InboxFull,
    /// Bytes of all inboxes on disk. Of no matter in Redis, whose `maxmemory` it is.
    pub bytes_max: u64,
}

/// Where messages are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// In the files of a folder.
    Folder(PathBuf),
    /// In the Redis Cluster of the nodes; when they count as stored, if that was said.
    Redis(Option<StoreSyncKind>),
}

/// The settings of the store that a shard needs, resolved. All are 0 where there is no store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreLimits {
    pub(super) after_ms: u64,
    pub(super) messages_max: u64,
    pub(super) bytes_max: u64,
    pub(super) age_secs: u64,
    pub(super) device_age_secs: u64,
    pub(super) mail_bytes_max: u64,
    pub(super) store_bytes_max: u64,
    pub(super) users_max: u64,
    pub(super) recent_bytes_max: u64,
}

/// Which store is meant by the settings; what nobody says follows from `data_dir`.
pub(super) fn store_kind(all: &Settings) -> StoreKind {
    all.store.unwrap_or(if all.data_dir.is_some() { StoreKind::Embedded } else { StoreKind::Off })
}

/// Judges the limits of the store.
pub(super) fn store_limits(all: &Settings, message_bytes_max: u64, judge: &Judge) -> Result<StoreLimits, ConfigError> {
    if store_kind(all) == StoreKind::Off {
        return Ok(StoreLimits::default());
    }
    let size = |key, value: Option<Size>, allowed: RangeInclusive<u64>| judge.size(key, known(value), allowed);
    let in_folder = store_kind(all) == StoreKind::Embedded;
    let of_folder = |limit: u64| if in_folder { limit } else { 0 };
    Ok(StoreLimits {
        after_ms: judge.count("store_after_ms", known(all.store_after_ms), 100..=STORE_AFTER_MS_MAX)?,
        messages_max: judge.count("inbox_messages_max", known(all.inbox_messages_max), 1..=MESSAGES_MAX)?,
        bytes_max: size("inbox_bytes_max", all.inbox_bytes_max, message_bytes_max..=GIB)?,
        age_secs: judge.count("inbox_age_secs", known(all.inbox_age_secs), 1..=AGE_SECS_MAX)?,
        device_age_secs: judge.count("device_age_secs", known(all.device_age_secs), 1..=AGE_SECS_MAX)?,
        mail_bytes_max: size("store_mail_bytes_max", all.store_mail_bytes_max, 4 * message_bytes_max..=GIB)?,
        store_bytes_max: of_folder(size("store_bytes_max", all.store_bytes_max, STORE_BYTES_LEAST..=64 * TIB)?),
        users_max: of_folder(judge.count(
            "store_users_max",
            known(all.store_users_max),
            STORE_USERS_LEAST..=STORE_USERS_MOST,
        )?),
        recent_bytes_max: of_folder(size(
            "store_recent_bytes_max",
            all.store_recent_bytes_max,
            STORE_RECENT_LEAST..=GIB,
        )?),
    })
}

/// Judges where the store is; `None` for a node without one.
pub(super) fn store(all: &Settings, judge: &Judge) -> Result<Option<StoreConfig>, ConfigError> {
    let origin = |key| judge.origins.of(key);
    if let (Some(_), false) = (all.store_sync, store_kind(all) == StoreKind::Redis) {
        return Err(ConfigError::Conflict(format!(
            "store_sync ({}) says when Redis has stored a message, and nothing is stored there: give --store redis \
             too, or leave it out",
            origin("store_sync")
        )));
    }
    let of_redis = |all: &Settings| StoreConfig {
        place: StorePlace::Redis(all.store_sync),
        full: known(all.inbox_full),
        bytes_max: known(all.store_bytes_max).0,
    };
    let data_dir = match (store_kind(all), all.data_dir.clone()) {
        (StoreKind::Redis, Some(_)) => {
            return Err(ConfigError::Conflict(format!(
                "data_dir ({}) is given and store = redis ({}), so nothing would be kept there: leave one of them out",
                origin("data_dir"),
                origin("store")
            )));
        }
        (StoreKind::Redis, None) if all.redis.is_none() => {
            return Err(ConfigError::Conflict(format!(
                "store = redis ({}) needs a Redis Cluster: give --redis redis-cluster://host:port",
                origin("store")
            )));
        }
        (StoreKind::Redis, None) => return Ok(Some(of_redis(all))),
        (StoreKind::Off, None) => return Ok(None),
        (StoreKind::Off, Some(_)) => {
            return Err(ConfigError::Conflict(format!(
                "data_dir ({}) is given and store = off ({}), so nothing would be kept there: leave one of them out",
                origin("data_dir"),
                origin("store")
            )));
        }
        (StoreKind::Embedded, None) => {
            return Err(ConfigError::Conflict(format!(
                "store = embedded ({}) needs a folder for its files: give --data-dir DIR",
                origin("store")
            )));
        }
        (StoreKind::Embedded, Some(data_dir)) => data_dir,
    };
    if all.redis.is_some() {
        let key = if origin("store") == Origin::Default { "data_dir" } else { "store" };
        return Err(ConfigError::Conflict(format!(
            "{key} ({}) asks for the embedded store, which is one node's own, and redis ({}) makes this node one of \
             several among which users move: leave {key} out, or give --store redis instead",
            origin(key),
            origin("redis")
        )));
    }
    let place = StorePlace::Folder(data_dir);
    Ok(Some(StoreConfig { place, full: known(all.inbox_full), bytes_max: known(all.store_bytes_max).0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::resolve;

    #[test]
    fn a_folder_is_what_makes_a_store() {
        let config = resolve("").unwrap();
        assert_eq!((&config.store, config.limits().store_after_ms), (&None, 0));
        let config = resolve("data_dir = \"/var/lib/trunkline\"\n").unwrap();
        let folder = StorePlace::Folder("/var/lib/trunkline".into());
        assert_eq!(config.store.as_ref().map(|store| &store.place), Some(&folder));
        assert_eq!((config.limits().store_after_ms, config.limits().inbox_messages_max), (2_000, 10_000));
        assert!(resolve("store = \"embedded\"\ndata_dir = \"d\"\n").unwrap().store.is_some());
    }

    #[test]
    fn what_contradicts_is_refused_and_says_what_to_do() {
        let message = |text: &str| resolve(text).unwrap_err().to_string();
        assert!(message("store = \"embedded\"\n").contains("--data-dir DIR"));
        assert!(message("store = \"off\"\ndata_dir = \"d\"\n").contains("leave one of them out"));
        let redis = "redis = \"redis-cluster://127.0.0.1:7000\"\ncluster_secret_file = \"s\"\n";
        let both = message(&format!("{redis}data_dir = \"d\"\n"));
        assert!(both.contains("one node's own") && both.contains("leave data_dir out"), "{both}");
        let of_redis = resolve(&format!("{redis}store = \"redis\"\nstore_sync = \"master\"\n")).unwrap();
        let place = of_redis.store.as_ref().map(|store| store.place.clone());
        assert_eq!(place, Some(StorePlace::Redis(Some(StoreSyncKind::Master))));
        assert_eq!((of_redis.limits().store_after_ms, of_redis.limits().store_bytes_max), (2_000, 0));
        assert!(message("store = \"redis\"\n").contains("give --redis"));
        assert!(message(&format!("{redis}store_sync = \"master\"\n")).contains("--store redis"));
        assert!(message(&format!("{redis}store = \"redis\"\ndata_dir = \"d\"\n")).contains("leave one of them out"));
        assert!(message("data_dir = \"d\"\nstore_after_ms = 5\n").contains("it must be 100 to 600000"));
        assert!(message("data_dir = \"d\"\ninbox_bytes_max = \"1KiB\"\n").contains("inbox_bytes_max"));
    }
}
