//! A real Redis Cluster below real gateways, and what Redis holds, read from DESIGN.md alone.

#[path = "../../../../router/tests/router/support/certificates.rs"]
pub(crate) mod certificates;
#[path = "../../../../router/tests/router/support/redis_cluster.rs"]
pub(crate) mod redis_cluster;
pub(crate) mod traffic;

use crate::support::gateway::{Gateway, gateway_command, gateway_command_of};
use crate::support::scratch::ScratchFile;
use crate::support::wait_for;
use redis_cluster::{RedisCluster, SERVERS, free_ports};
use std::path::PathBuf;
use std::process::Command;

/// Lease of the nodes under test, seconds: the shortest there is.
pub(crate) const LEASE_SECS: u64 = 2;

/// A node's files and addresses; starts it any number of times.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) mesh: String,
    pub(crate) url: String,
    secret: ScratchFile,
}

impl Member {
    pub(crate) fn new(cluster: &RedisCluster, name: &'static str) -> Self {
        Member::with_url(&cluster.url(), name)
    }

    pub(crate) fn with_url(url: &str, name: &'static str) -> Self {
        let secret = ScratchFile::new("cluster-secret", "0123456789abcdef0123456789abcdef\n");
        let mesh = format!("127.0.0.1:{}", free_ports(1)[0]);
        Member { name, mesh, url: url.to_owned(), secret }
    }

    pub(crate) fn secret_file(&self) -> &str {
        self.secret.path()
    }

    /// The command that starts it, with two shards if `flags` say nothing else, and without addresses for clients and
    /// HTTP.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        self.complete(gateway_command(), flags)
    }

    fn complete(&self, mut command: Command, flags: &[&str]) -> Command {
        command.args(["--node", self.name, "--redis", &self.url, "--mesh", &self.mesh]);
        let lease_secs = LEASE_SECS.to_string();
        let defaults = [
            ("--shards", "2"),
            ("--cluster-secret-file", self.secret.path()),
            ("--advertise", "gate.example.org:7700"),
            ("--presence-queue-max", "100000"),
            ("--drain-secs", "0"),
            ("--lease-secs", &lease_secs),
        ];
        for (flag, value) in defaults {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(flags);
        command
    }

    /// Starts it and waits until Redis has it as active.
    pub(crate) fn start(&self, cluster: &RedisCluster, flags: &[&str]) -> Gateway {
        self.start_command(cluster, self.command(flags))
    }

    fn start_command(&self, cluster: &RedisCluster, command: Command) -> Gateway {
        let gateway = Gateway::start_command(command);
        wait_for("the node is active", || {
            lease(cluster, self.name).filter(|lease| lease.record["state"] == "active").map(drop)
        });
        gateway
    }
}

/// What `tl:node:{name}` holds.
pub(crate) struct Lease {
    pub(crate) incarnation: u64,
    pub(crate) record: serde_json::Value,
}

/// The lease of a node, if it has one.
pub(crate) fn lease(cluster: &RedisCluster, name: &str) -> Option<Lease> {
    let text = redis(cluster, &["GET", &format!("tl:node:{{{name}}}")]);
    let mut lines = text.splitn(3, '\n');
    let incarnation = lines.next()?.parse().ok()?;
    let record = serde_json::from_str(lines.nth(1)?).expect("the record is JSON");
    Some(Lease { incarnation, record })
}

/// One field of `tl:user:{user}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) device: String,
    pub(crate) version: u64,
    pub(crate) incarnation: u64,
    pub(crate) session: u64,
    pub(crate) node: String,
    pub(crate) shard: u32,
    pub(crate) since_ms: u64,
    pub(crate) class: String,
}

/// What Redis holds of a user, in the order of device names; what does not count is among it.
pub(crate) fn stored(cluster: &RedisCluster, user: u64) -> Vec<Stored> {
    let text = redis(cluster, &["HGETALL", &user_key(user)]);
    let lines: Vec<&str> = text.lines().collect();
    let mut stored: Vec<Stored> = lines.chunks_exact(2).filter_map(|pair| parse(pair[0], pair[1])).collect();
    stored.sort_by(|a, b| a.device.cmp(&b.device));
    stored
}

fn parse(device: &str, value: &str) -> Option<Stored> {
    let parts: Vec<&str> = value.split('\t').collect();
    // A mark of a logout has two parts only.
    let [version, incarnation, session, node, shard, since_ms, class] = parts[..] else { return None };
    Some(Stored {
        device: device.to_owned(),
        version: version.parse().expect("a version"),
        incarnation: incarnation.parse().expect("an incarnation"),
        session: session.parse().expect("a session"),
        node: node.to_owned(),
        shard: shard.parse().expect("a shard"),
        since_ms: since_ms.parse().expect("a time"),
        class: class.to_owned(),
    })
}

/// Where a user really is: the entries whose node has its lease with that incarnation.
pub(crate) fn live(cluster: &RedisCluster, user: u64) -> Vec<Stored> {
    let stored = stored(cluster, user);
    let lives =
        |entry: &Stored| lease(cluster, &entry.node).is_some_and(|lease| lease.incarnation == entry.incarnation);
    stored.into_iter().filter(lives).collect()
}

/// Waits until the live sessions of a user are these, in the order of device names.
pub(crate) fn wait_live(cluster: &RedisCluster, user: u64, sessions: &[(&str, u64)]) {
    wait_for(&format!("user {user} is online with {sessions:?}"), || {
        let live = live(cluster, user);
        let found: Vec<(&str, u64)> = live.iter().map(|entry| (entry.device.as_str(), entry.session)).collect();
        (found == sessions).then_some(())
    });
}

pub(crate) fn user_key(user: u64) -> String {
    format!("tl:user:{{{user}}}")
}

/// One command about one key. Only the master of the key executes it; the other servers refuse.
pub(crate) fn redis(cluster: &RedisCluster, command: &[&str]) -> String {
    wait_for(&format!("a server executes {command:?}"), || {
        (0..SERVERS).find_map(|server| cluster.ask(server, command).ok())
    })
}

/// A few nodes on a Redis Cluster of their own.
pub(crate) struct Fleet {
    pub(crate) redis: RedisCluster,
    pub(crate) members: Vec<Member>,
    /// The nodes that run, in the order of `members`.
    pub(crate) nodes: Vec<Option<Gateway>>,
    flags: Vec<Vec<String>>,
    /// What is started from now on, if it is not the binary of this build.
    pub(crate) binary: Option<PathBuf>,
}

impl Fleet {
    /// Starts the nodes and waits until they have one view and all links.
    pub(crate) fn start(names: &[&'static str], flags: &[&str]) -> Self {
        Fleet::start_with(names, |_| flags.iter().map(|flag| (*flag).to_owned()).collect())
    }

    /// The same, with flags for each node.
    pub(crate) fn start_with(names: &[&'static str], flags: impl Fn(usize) -> Vec<String>) -> Self {
        Fleet::start_of(None, names, flags)
    }

    /// The same, with the binary of another build.
    pub(crate) fn start_of(
        binary: Option<PathBuf>,
        names: &[&'static str],
        flags: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        let redis = RedisCluster::start();
        let members = names.iter().map(|name| Member::new(&redis, name)).collect();
        let flags = (0..names.len()).map(flags).collect();
        let mut fleet = Fleet { redis, members, nodes: names.iter().map(|_| None).collect(), flags, binary };
        for at in 0..names.len() {
            fleet.start_node(at);
        }
        fleet.wait_joined();
        fleet
    }

    /// Starts a node, or starts it again.
    pub(crate) fn start_node(&mut self, at: usize) {
        let flags: Vec<&str> = self.flags[at].iter().map(String::as_str).collect();
        let (member, binary) = (&self.members[at], self.binary.as_deref());
        let command = binary.map_or_else(gateway_command, gateway_command_of);
        self.nodes[at] = Some(member.start_command(&self.redis, member.complete(command, &flags)));
    }

    pub(crate) fn node(&self, at: usize) -> &Gateway {
        self.nodes[at].as_ref().expect("the node runs")
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Gateway> {
        self.nodes.iter().flatten()
    }

    /// The sum of a metric over the nodes that run.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.running().map(|node| node.metrics().sum(name, labels)).sum()
    }

    /// Waits until the nodes that run see each other and no one else, are linked, and have told each other of their
    /// sessions.
    pub(crate) fn wait_joined(&self) {
        let running = self.running().count() as u64;
        wait_for("all nodes have one view and all links", || {
            let metrics: Vec<_> = self.running().map(Gateway::metrics).collect();
            let joined = metrics.iter().all(|metrics| {
                let members = metrics.sum("trunkline_cluster_members", &[]);
                let active = metrics.sum("trunkline_cluster_members", &[("state", "active")]);
                let (links, up) =
                    (metrics.sum("trunkline_mesh_links", &[]), metrics.sum("trunkline_mesh_links_up", &[]));
                let settling = metrics.sum("trunkline_directory_settling", &[]);
                (members, active) == (running, running) && links == up && links == 2 * (running - 1) && settling == 0
            });
            joined.then_some(())
        });
    }

    /// Ends all nodes in order.
    pub(crate) fn finish(mut self) {
        for node in self.nodes.drain(..).flatten() {
            node.finish();
        }
    }
}
