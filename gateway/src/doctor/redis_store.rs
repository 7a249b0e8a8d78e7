//! Whether the Redis Cluster is set up for the messages that are kept in it.

use super::checks::{Check, Status};
use crate::config::StoreSyncKind;
use trunkline_router::redis::{MasterSettings, Plane, RedisConfig};

const GROUP: &str = "store in redis";
/// The most that a node of a stream should have, bytes. A stream takes as much as one, however little is in it.
const STREAM_NODE_BYTES_MAX: u64 = 1_024;
/// What it is asked for.
const NAMES: [&str; 4] = ["stream-node-max-bytes", "maxmemory-policy", "appendonly", "appendfsync"];

/// Asks each master how it is set up. Nothing where it cannot be asked: that is said elsewhere.
pub fn check_redis_store(config: &RedisConfig, sync: Option<StoreSyncKind>) -> Vec<Check> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let settings = runtime.block_on(async {
        let plane = Plane::connect(config).await.ok()?;
        let settings = plane.settings_of_masters(&NAMES).await;
        plane.close().await;
        settings.ok()
    });
    settings.map_or_else(Vec::new, |settings| of_settings(&settings, sync))
}

fn of_settings(masters: &[MasterSettings], sync: Option<StoreSyncKind>) -> Vec<Check> {
    let mut checks = Vec::new();
    for MasterSettings { address, settings } in masters {
        let of = |name: &str| settings.get(name).map(String::as_str);
        let mut warn = |name: &'static str, value: &str, wanted: &str, why: &str| {
            let found = format!("{name} {value} at {address}");
            let fix = format!("CONFIG SET {name} {wanted}, and the same in its redis.conf");
            checks.push(Check::ok(GROUP, name, found).bad(Status::Warn, wanted, why, fix));
        };
        let is_large = |text: &str| text.parse().is_ok_and(|bytes: u64| bytes == 0 || bytes > STREAM_NODE_BYTES_MAX);
        if let Some(value) = of("stream-node-max-bytes").filter(|value| is_large(value)) {
            let why = "each inbox with messages takes as much memory as a whole node of its stream";
            warn("stream-node-max-bytes", value, "1024", why);
        }
        if let Some(value) = of("maxmemory-policy").filter(|value| *value != "noeviction") {
            let why = "when its memory is full Redis drops messages that were answered for, and refuses no new ones";
            warn("maxmemory-policy", value, "noeviction", why);
        }
        match (of("appendonly"), sync, of("appendfsync")) {
            (Some("no"), Some(StoreSyncKind::Aof), _) => {
                warn("appendonly", "no", "yes", "with store_sync = aof nothing is stored without it");
            }
            (Some("no"), ..) => {
                let why = "all that is stored is lost if a master and its replicas end at once";
                warn("appendonly", "no", "yes", why);
            }
            (Some("yes"), Some(StoreSyncKind::Aof), Some(value)) if value != "always" => {
                let why = "with store_sync = aof each batch waits for the next write to its file, a second or more";
                warn("appendfsync", value, "always", why);
            }
            _ => {}
        }
        if settings.is_empty() {
            let found = format!("{address} does not let its configuration be read");
            checks.push(Check::ok(GROUP, "settings", found));
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(GROUP, "settings", format!("{} masters are set up for it", masters.len())));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(values: [&str; 4]) -> MasterSettings {
        let settings = NAMES.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value.to_owned()));
        MasterSettings { address: "10.0.0.1:7000".to_owned(), settings: settings.collect() }
    }

    /// The names of what is wrong.
    fn wrong(values: [&str; 4], sync: Option<StoreSyncKind>) -> Vec<&'static str> {
        let checks = of_settings(&[master(values)], sync);
        let wrong = checks.iter().filter(|check| check.status == Status::Warn);
        wrong.map(|check| check.name).collect()
    }

    #[test]
    fn what_does_not_fit_the_store_is_a_warning_that_names_the_setting() {
        let aof = Some(StoreSyncKind::Aof);
        assert_eq!(wrong(["1024", "noeviction", "yes", "everysec"], None), [""; 0]);
        assert_eq!(wrong(["512", "noeviction", "yes", "always"], aof), [""; 0]);
        assert_eq!(wrong(["4096", "noeviction", "yes", "everysec"], None), ["stream-node-max-bytes"]);
        assert_eq!(wrong(["0", "allkeys-lru", "yes", "always"], aof), ["stream-node-max-bytes", "maxmemory-policy"]);
        assert_eq!(wrong(["1024", "noeviction", "no", "everysec"], None), ["appendonly"]);
        assert_eq!(wrong(["1024", "noeviction", "no", "everysec"], aof), ["appendonly"]);
        assert_eq!(wrong(["1024", "noeviction", "yes", "everysec"], aof), ["appendfsync"]);
        let fix = &of_settings(&[master(["4096", "noeviction", "yes", "always"])], None)[0].fix;
        assert!(fix.contains("CONFIG SET stream-node-max-bytes 1024"), "{fix}");
    }

    #[test]
    fn who_may_not_read_the_configuration_is_told_so() {
        let master = MasterSettings { address: "10.0.0.1:7000".to_owned(), settings: Default::default() };
        let checks = of_settings(&[master], None);
        assert!(checks.len() == 1 && checks[0].found.contains("10.0.0.1:7000"), "{checks:?}");
    }
}
