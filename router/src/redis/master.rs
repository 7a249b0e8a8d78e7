//! What a master says about itself, and what of that puts presence at risk.

use std::collections::BTreeMap;

/// A master of the cluster, as its INFO tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// `host:port`.
    pub address: String,
    /// What it does when its memory is full, such as `noeviction`; empty if it does not tell.
    pub maxmemory_policy: String,
    /// Bytes it may take; 0 for no limit.
    pub maxmemory: u64,
    /// Replicas that follow it now; `None` if it does not tell.
    pub replicas: Option<u64>,
}

/// How a master of the cluster is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterSettings {
    /// `host:port`.
    pub address: String,
    /// Values by their names; none of those that it does not have, or does not let be read.
    pub settings: BTreeMap<String, String>,
}

impl Master {
    pub(super) fn read(address: String, info: &str) -> Self {
        let value =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        Master {
            address,
            maxmemory_policy: value("maxmemory_policy").unwrap_or_default().to_owned(),
            maxmemory: value("maxmemory").and_then(|text| text.parse().ok()).unwrap_or(0),
            replicas: value("connected_slaves").and_then(|text| text.parse().ok()),
        }
    }

    /// What is wrong with it, each with the fix, a colon between the two.
    #[must_use]
    pub fn risks(&self) -> Vec<String> {
        let mut risks = Vec::new();
        let policy = self.maxmemory_policy.as_str();
        if !policy.is_empty() && policy != "noeviction" {
            let when = if self.maxmemory == 0 { "if maxmemory is ever set" } else { "when its memory is full" };
            risks.push(format!(
                "the Redis at {} drops what it likes {when} (maxmemory-policy {policy}), users who are online and \
                 leases too: CONFIG SET maxmemory-policy noeviction, and the same in its redis.conf",
                self.address
            ));
        }
        if self.replicas == Some(0) {
            risks.push(format!(
                "the Redis at {} has no replica, so what it holds is gone with it, and its users cannot be found until \
                 it is back: redis-cli --cluster add-node HOST:PORT {} --cluster-slave",
                self.address, self.address
            ));
        }
        risks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(policy: &str, maxmemory: u64, replicas: u64) -> Master {
        let info = format!(
            "# Memory\r\nmaxmemory:{maxmemory}\r\nmaxmemory_human:0B\r\nmaxmemory_policy:{policy}\r\n\r\n\
             # Replication\r\nrole:master\r\n\
             connected_slaves:{replicas}\r\n"
        );
        Master::read("10.0.0.1:7000".to_owned(), &info)
    }

    #[test]
    fn a_master_that_keeps_everything_twice_is_no_risk() {
        assert_eq!(master("noeviction", 1 << 30, 1).risks(), Vec::<String>::new());
        assert_eq!(Master::read("a:1".to_owned(), "nothing of use").risks(), Vec::<String>::new());
    }

    #[test]
    fn eviction_and_missing_replicas_are_named_with_the_fix() {
        for (master, parts) in [
            (
                master("allkeys-lru", 1 << 30, 1),
                ["maxmemory-policy allkeys-lru", "when its memory is full", "noeviction"],
            ),
            (master("volatile-ttl", 0, 1), ["volatile-ttl", "if maxmemory is ever set", "noeviction"]),
            (master("noeviction", 0, 0), ["10.0.0.1:7000", "no replica", "--cluster-slave"]),
        ] {
            let risks = master.risks();
            assert_eq!(risks.len(), 1, "{risks:?}");
            for part in parts {
                assert!(risks[0].contains(part), "no {part} in {}", risks[0]);
            }
        }
        assert_eq!(master("allkeys-random", 5, 0).risks().len(), 2);
    }
}
