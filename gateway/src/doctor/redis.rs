//! Whether the Redis Cluster works and keeps what it is given.

use super::checks::{Check, Status};
use trunkline_router::redis::{Master, Plane, PlaneError, RedisConfig};

const GROUP: &str = "redis";

/// Connects, and asks each master about itself.
pub fn check_redis(config: &RedisConfig) -> Vec<Check> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let masters = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let plane = Plane::connect(config).await?;
            let masters = plane.masters().await;
            plane.close().await;
            masters
        }),
        Err(error) => Err(PlaneError::Redis { detail: error.to_string() }),
    };
    match masters {
        Ok(masters) => of_masters(&masters),
        Err(error) => vec![Check::ok(GROUP, "cluster", error.to_string()).bad(
            Status::Fail,
            "a cluster that answers",
            "a node waits for it before it serves",
            "see what was found",
        )],
    }
}

fn of_masters(masters: &[Master]) -> Vec<Check> {
    let mut checks = vec![Check::ok(GROUP, "cluster", format!("{} masters answer", masters.len()))];
    for risk in masters.iter().flat_map(Master::risks) {
        let (found, fix) = risk.rsplit_once(": ").unwrap_or((&risk, ""));
        checks.push(Check::ok(GROUP, "what it keeps", found).bad(
            Status::Warn,
            "noeviction, and a replica for each master",
            "presence that Redis loses is found and written again only within presence_audit_secs",
            fix,
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_risk_is_a_warning_with_its_fix() {
        let master = |policy: &str, replicas| Master {
            address: "10.0.0.1:7000".to_owned(),
            maxmemory_policy: policy.to_owned(),
            maxmemory: 1 << 30,
            replicas: Some(replicas),
        };
        let checks = of_masters(&[master("noeviction", 1), master("allkeys-lru", 0)]);
        assert_eq!(checks.iter().filter(|check| check.status == Status::Ok).count(), 1, "{checks:?}");
        let warnings: Vec<&Check> = checks.iter().filter(|check| check.status == Status::Warn).collect();
        assert!(warnings[0].found.contains("allkeys-lru") && warnings[0].fix.contains("noeviction"), "{warnings:?}");
        assert!(warnings[1].found.contains("no replica") && warnings[1].fix.contains("add-node"), "{warnings:?}");
    }
}
