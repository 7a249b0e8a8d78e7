//! What load goes to: one server, or several gateways that are the nodes of one cluster.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use trunkline_router::{Node, Ring};

use crate::{
    affinity::SERVER_CORE,
    counters::Counters,
    failure::Failure,
    fleet::Targets,
    gateway::GatewayArgs,
    redis::{Commands, Redis, Scratch, free_ports},
    server::Server,
    users::{Placement, Seats},
};

/// How long nodes may take to see and reach each other.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long Redis may take for the presence of all users once they are in.
const PRESENCE_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the nodes' counters.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A time without messages holds several renewals and polls of each node, which come once a second.
pub(crate) const QUIET_MIN: Duration = Duration::from_secs(4);
/// Counters of links are brought up to date at each tick of a shard, a tenth of a second.
const LINK_COUNTERS_DELAY: Duration = Duration::from_millis(250);

/// How many gateways, and what they know each other by.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct NodesArgs {
    /// Gateways: with 2 or more they are the nodes of one cluster, each user logs in at its home
    /// node, and the CPU of all nodes counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=9))]
    pub(crate) nodes: u32,
    /// Redis Cluster of the nodes: redis-cluster://HOST:PORT for one that runs; without a URL, and always with 2 nodes
    /// or more, six redis-server processes that end with the bench. With one node: a cluster of one, which writes
    /// presence
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "")]
    #[serde(skip)]
    redis: Option<String>,
    /// Cores of the nodes, in turn; the load is on core 1. On one core nodes share its caches and its time, as shards
    /// do
    #[arg(long, value_name = "CORES", value_delimiter = ',', default_values_t = [SERVER_CORE])]
    node_cores: Vec<usize>,
}

impl NodesArgs {
    /// Whether the gateways are nodes of a cluster, also a single one.
    pub(crate) fn are_clustered(&self) -> bool {
        self.nodes > 1 || self.redis.is_some()
    }
}

/// What makes gateways the nodes of a cluster.
#[derive(Debug)]
struct Cluster {
    ring: Ring,
    redis: Redis,
    /// With the cluster's secret.
    _folder: Scratch,
}

/// One server or several.
#[derive(Debug)]
pub(crate) struct Site {
    /// In the order of the ring's nodes.
    servers: Vec<Server>,
    cluster: Option<Cluster>,
}

/// Counters of all nodes together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Crossings {
    /// Messages sent on to the node that is the recipient's home.
    pub(crate) away: u64,
    /// Those of them that went on to a third node, because views differed.
    pub(crate) forwarded: u64,
    /// Records queued for other nodes: messages, copies for guests, answers.
    pub(crate) records: u64,
    /// Bytes sent to other nodes.
    pub(crate) bytes: u64,
}

impl Crossings {
    /// Whether as many messages crossed between nodes as they have to, for so many delivered.
    pub(crate) fn judge(&self, placement: Placement, messages: u64) -> Result<(), Failure> {
        let away = if placement.links() > 0 { messages } else { 0 };
        if self.away == away && self.forwarded == 0 {
            return Ok(());
        }
        Err(Failure::Accounts(format!(
            "of {messages} messages {away} should have gone to another node and none on to a third, but the nodes \
             count {} and {}",
            self.away, self.forwarded
        )))
    }

    /// What has come since `earlier`.
    pub(crate) fn since(self, earlier: Crossings) -> Crossings {
        Crossings {
            away: self.away.saturating_sub(earlier.away),
            forwarded: self.forwarded.saturating_sub(earlier.forwarded),
            records: self.records.saturating_sub(earlier.records),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

/// What the Redis Cluster had to do in some time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RedisUse {
    /// The time.
    pub(crate) seconds: f64,
    /// Messages delivered in it.
    pub(crate) messages: u64,
    /// What its masters executed.
    #[serde(flatten)]
    pub(crate) commands: Commands,
}

impl RedisUse {
    /// Commands a second.
    pub(crate) fn rate(&self) -> f64 {
        self.commands.total as f64 / self.seconds.max(1e-9)
    }

    /// Commands for a message beyond those of a quiet time: what leases and polls of the view cost goes on without
    /// messages.
    pub(crate) fn per_message(&self, quiet: &RedisUse) -> f64 {
        (self.commands.total as f64 - quiet.rate() * self.seconds) / self.messages.max(1) as f64
    }
}

/// What Redis had executed at a moment.
#[derive(Debug)]
pub(crate) struct RedisMark {
    at: Instant,
    commands: Commands,
}

/// Presence writes of all nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PresenceWrites {
    /// Executed by Redis.
    pub(crate) written: u64,
    /// Waiting, or on their way.
    pub(crate) queued: u64,
    /// Tried in vain and queued again.
    pub(crate) failed: u64,
    /// Never to be written: their queue was full, or the shard's.
    pub(crate) refused: u64,
    /// Times all sessions of a node were written again.
    pub(crate) resyncs: u64,
    /// Nodes that are at that now.
    pub(crate) resyncing: u64,
}

impl Site {
    /// A server by itself.
    pub(crate) fn alone(server: Server) -> Site {
        Site { servers: vec![server], cluster: None }
    }

    /// Starts the gateways for so many connections and waits until they are one cluster; a single one without Redis as
    /// [`GatewayArgs::start_on`] does on `cores`.
    pub(crate) fn start(
        nodes: &NodesArgs,
        gateway: &GatewayArgs,
        connections: u32,
        cores: &[usize],
    ) -> Result<Site, Failure> {
        if !nodes.are_clustered() {
            return gateway.start_on(connections, cores).map(Site::alone);
        }
        if gateway.runs_already() {
            return Err(Failure::Setup(
                "--nodes and --redis start gateways of their own: leave --gateway out".to_owned(),
            ));
        }
        let redis = match nodes.redis.as_deref() {
            None | Some("") => Redis::start()?,
            Some(url) => Redis::running(url)?,
        };
        // Names decide who is whose home: the same ones in each run, where no other node can be.
        let prefix = if redis.is_own() { "node-".to_owned() } else { format!("bench-{}-", std::process::id()) };
        let names: Vec<String> = (1..=nodes.nodes).map(|number| format!("{prefix}{number}")).collect();
        let ring = names.iter().map(|name| Node::new(name, 1)).collect::<Result<Vec<_>, _>>().and_then(Ring::new);
        let ring = ring.map_err(|error| Failure::Setup(error.to_string()))?;
        let folder = Scratch::new("secret")?;
        let secret = folder.path().join("secret");
        // Nodes on loopback for the time of a bench: a process id and the time are secret enough.
        let text = format!("{}-{:?}-of-a-bench\n", std::process::id(), Instant::now());
        fs::write(&secret, text).map_err(|error| Failure::system(&format!("writing {}", secret.display()), error))?;
        let mut servers = Vec::new();
        let cores = nodes.node_cores.iter().copied().cycle();
        for ((name, port), core) in names.iter().zip(free_ports(names.len())).zip(cores) {
            let mut command = gateway.command(connections, &[core])?;
            let (mesh, secret) = (format!("127.0.0.1:{port}"), secret.display().to_string());
            // Nobody is sent anywhere by its address for clients, which a port chosen by the system is not known in
            // advance for.
            let own = ["--node", name, "--redis", redis.url(), "--mesh", &mesh, "--cluster-secret-file", &secret];
            let common = ["--advertise", "127.0.0.1:7700", "--placement", "accept", "--weight", "1"];
            command.arguments.splice(0..0, own.iter().chain(&common).map(|&argument| argument.to_owned()));
            servers.push(Server::gateway(&command)?);
        }
        let mut site = Site { servers, cluster: Some(Cluster { ring, redis, _folder: folder }) };
        match site.wait_joined() {
            Ok(()) => Ok(site),
            Err(failure) => Err(site.explain(failure)),
        }
    }

    /// Waits until all nodes see each other and no one else, all links are up, and all have told each other of their
    /// sessions.
    fn wait_joined(&self) -> Result<(), Failure> {
        let nodes = self.servers.len() as u64;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = self.counters()?;
            let joined = counters.iter().all(|node| {
                let links = node.get("trunkline_mesh_links");
                node.get("trunkline_cluster_members{state=\"active\"}") == nodes
                    && node.sum("trunkline_cluster_members") == nodes
                    && links >= nodes - 1
                    && node.get("trunkline_mesh_links_up") == links
                    && node.get("trunkline_directory_settling") == 0
            });
            if joined {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seen: Vec<String> = counters
                    .iter()
                    .map(|node| {
                        format!(
                            "{} nodes, {} of them active, {} of {} links",
                            node.sum("trunkline_cluster_members"),
                            node.get("trunkline_cluster_members{state=\"active\"}"),
                            node.get("trunkline_mesh_links_up"),
                            node.get("trunkline_mesh_links"),
                        )
                    })
                    .collect();
                let waiting_for = format!("{nodes} nodes to be one cluster; they see {}", seen.join("; "));
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Its servers, in the order of the ring's nodes.
    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// How many servers there are.
    pub(crate) fn nodes(&self) -> u32 {
        self.servers.len() as u32
    }

    /// Their processes, of which CPU time and memory are read.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// The Redis servers that are the bench's own.
    pub(crate) fn redis_pids(&self) -> Vec<u32> {
        self.cluster.as_ref().map_or(Vec::new(), |cluster| cluster.redis.pids())
    }

    /// Users and the nodes they log in at. `shards` is what a single server has.
    pub(crate) fn seats(&self, connections: u32, shards: u32, placement: Placement) -> Seats {
        match &self.cluster {
            Some(cluster) => Seats::at_nodes(connections, &cluster.ring, placement),
            None => Seats::at_one(connections, shards, placement),
        }
    }

    /// Adds users who log in at their homes.
    pub(crate) fn seat_more(&self, seats: &mut Seats, count: u32) {
        seats.add_at_home(count, self.cluster.as_ref().map(|cluster| &cluster.ring));
    }

    /// Where each connection goes.
    pub(crate) fn targets(&self, seats: &Seats) -> Targets {
        Targets::new(self.servers.iter().map(Server::address).collect(), seats.nodes.clone())
    }

    /// What Redis has executed so far; `None` where there is no Redis.
    pub(crate) fn redis_mark(&self) -> Result<Option<RedisMark>, Failure> {
        let Some(cluster) = &self.cluster else { return Ok(None) };
        Ok(Some(RedisMark { commands: cluster.redis.commands()?, at: Instant::now() }))
    }

    /// What Redis has executed since, while so many messages were delivered.
    pub(crate) fn redis_since(&self, mark: Option<RedisMark>, messages: u64) -> Result<Option<RedisUse>, Failure> {
        let (Some(mark), Some(now)) = (mark, self.redis_mark()?) else { return Ok(None) };
        let seconds = (now.at - mark.at).as_secs_f64();
        Ok(Some(RedisUse { seconds, messages, commands: now.commands.since(&mark.commands) }))
    }

    /// What has gone between nodes so far; waits until the counters are up to date. Nothing where there is one server.
    pub(crate) fn crossings(&self) -> Result<Crossings, Failure> {
        if self.cluster.is_none() {
            return Ok(Crossings::default());
        }
        thread::sleep(LINK_COUNTERS_DELAY);
        let counters = self.counters()?;
        let all = |name: &str| counters.iter().map(|node| node.get(name)).sum();
        Ok(Crossings {
            away: all("trunkline_messages_away_total"),
            forwarded: all("trunkline_messages_forwarded_total"),
            records: all("trunkline_mesh_records_sent_total"),
            bytes: all("trunkline_mesh_bytes_sent_total"),
        })
    }

    /// Presence so far; `None` where it is not written.
    pub(crate) fn presence(&self) -> Result<Option<PresenceWrites>, Failure> {
        if self.cluster.is_none() {
            return Ok(None);
        }
        let counters = self.counters()?;
        let all = |name: &str| counters.iter().map(|node| node.get(name)).sum::<u64>();
        Ok(Some(PresenceWrites {
            written: all("trunkline_presence_written_total"),
            queued: all("trunkline_presence_queued"),
            failed: all("trunkline_presence_failed_total"),
            refused: all("trunkline_presence_refused_total") + all("trunkline_presence_events_dropped_total"),
            resyncs: all("trunkline_presence_resyncs_total"),
            resyncing: all("trunkline_presence_resyncing"),
        }))
    }

    /// Waits until Redis has all presence, letting `meanwhile` go on between two looks. Returns how long that took:
    /// until the first look that saw nothing waiting, confirmed by the next one.
    pub(crate) fn await_presence(
        &self,
        mut meanwhile: impl FnMut(Duration) -> Result<(), Failure>,
    ) -> Result<Duration, Failure> {
        let from = Instant::now();
        let mut quiet: Option<(PresenceWrites, Duration)> = None;
        while let Some(presence) = self.presence()? {
            let waits = presence.queued > 0 || presence.resyncing > 0;
            match quiet {
                Some((before, after)) if before == presence => return Ok(after),
                _ => quiet = (!waits).then(|| (presence, from.elapsed())),
            }
            if from.elapsed() > PRESENCE_PATIENCE {
                let waiting_for = format!("Redis to have all presence; {} writes wait", presence.queued);
                return Err(Failure::Stalled { waiting_for, after: PRESENCE_PATIENCE });
            }
            meanwhile(LOOK_INTERVAL)?;
        }
        Ok(Duration::ZERO)
    }

    fn counters(&self) -> Result<Vec<Counters>, Failure> {
        self.servers.iter().map(|server| server.http().and_then(Counters::read)).collect()
    }

    /// Puts the fate of a server's process into a failure that its end explains.
    pub(crate) fn explain(&mut self, failure: Failure) -> Failure {
        self.servers.iter_mut().fold(failure, |failure, server| server.explain(failure))
    }

    /// Ends all servers at once, whatever they think of it: for those that are not this project's.
    pub(crate) fn kill(self) {
        self.servers.into_iter().for_each(Server::kill);
    }

    /// Asks all servers to end and waits for them; Redis ends after them.
    pub(crate) fn stop(self) -> Result<(), Failure> {
        let Site { servers, cluster } = self;
        let ends = servers.into_iter().map(Server::stop).collect::<Vec<_>>();
        drop(cluster);
        ends.into_iter().collect()
    }
}
