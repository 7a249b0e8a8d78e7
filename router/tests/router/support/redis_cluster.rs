//! A real Redis Cluster for tests: three masters and three replicas on loopback, in a folder of their own.
//!
//! Only the standard library, so that other crates can include this file with `#[path]`. The servers end with the
//! [`RedisCluster`], and also with the test process however it ends: a shell holds the other end of a pipe and kills
//! what is left when the pipe closes. So a cluster in a `static` needs no drop.

#![allow(dead_code, reason = "each crate uses a part of it")]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Servers of a cluster: as many replicas as masters.
pub(crate) const SERVERS: usize = 6;
const MASTERS: usize = 3;
const SLOTS: u32 = 16_384;

/// The longest wait for anything that a cluster does by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that is silent for so long is failing, in milliseconds. A failover takes about twice as long.
const NODE_TIMEOUT_MS: u32 = 1_000;

/// One `redis-server`. Ends when dropped.
pub(crate) struct Server {
    port: u16,
    bus_port: u16,
    folder: PathBuf,
    clustered: bool,
    child: Option<Child>,
}

impl Server {
    fn new(folder: &Path, port: u16, bus_port: u16, clustered: bool) -> Self {
        Server { port, bus_port, folder: folder.join(port.to_string()), clustered, child: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Starts it and waits until it answers. What it knew of the cluster is in its folder.
    fn start(&mut self, extra: &[&str]) {
        fs::create_dir_all(&self.folder).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--dir", self.folder.to_str().unwrap(), "--repl-diskless-sync-delay", "0"]);
        if self.clustered {
            command.args(["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]);
            command.args(["--cluster-port", &self.bus_port.to_string()]);
            command.args(["--cluster-node-timeout", &NODE_TIMEOUT_MS.to_string()]);
            command.args(["--cluster-replica-validity-factor", "0", "--repl-ping-replica-period", "1"]);
        }
        let log = fs::File::create(self.folder.join("log")).unwrap();
        command.args(extra).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("redis-server has to be installed: scripts/setup.sh does it");
        fs::write(self.folder.join("pid"), format!("{}\n", child.id())).unwrap();
        self.child = Some(child);
        wait_until("a redis-server answers", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(
                ended.is_none(),
                "redis-server: {}",
                fs::read_to_string(self.folder.join("log")).unwrap_or_default()
            );
            ask(self.port, &["PING"]).map_or_else(|error| error.to_string().starts_with("NOAUTH"), |_| true)
        });
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The number may be another's as soon as it was waited for.
            let _ = fs::remove_file(self.folder.join("pid"));
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder of some servers, and the shell that cleans up.
struct Watch {
    folder: PathBuf,
    shell: Child,
}

impl Watch {
    fn new() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("trunkline-redis-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let script = r#"trap '' INT TERM HUP; read _; kill -9 $(cat "$0"/*/pid 2>/dev/null) 2>/dev/null; rm -rf "$0""#;
        let shell = Command::new("sh")
            .args(["-c", script])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Watch { folder, shell }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// One server alone, cluster or not; see [`RedisCluster`] for a cluster that works.
pub(crate) struct RedisAlone {
    server: Server,
    _watch: Watch,
}

impl RedisAlone {
    pub(crate) fn start(clustered: bool, extra: &[&str]) -> Self {
        let watch = Watch::new();
        let ports = free_ports(2);
        let mut server = Server::new(&watch.folder, ports[0], ports[1], clustered);
        server.start(extra);
        RedisAlone { server, _watch: watch }
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    pub(crate) fn pause(&self) {
        self.server.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.server.signal("-CONT");
    }

    /// Makes it a cluster of one, whose password this is.
    pub(crate) fn serve_all_slots(&self, password: &str) {
        let last = (SLOTS - 1).to_string();
        let commands: [&[&str]; 2] = [&["AUTH", password], &["CLUSTER", "ADDSLOTSRANGE", "0", &last]];
        ask_all(self.server.port, &commands).unwrap();
    }
}

/// A cluster that works.
pub(crate) struct RedisCluster {
    // Before the watch: servers are ended one by one, then the folder goes.
    servers: Vec<Server>,
    _watch: Watch,
}

impl RedisCluster {
    /// Starts all servers and waits until they agree that all is well. A few seconds.
    pub(crate) fn start() -> Self {
        let watch = Watch::new();
        let ports = free_ports(2 * SERVERS);
        let servers = (0..SERVERS).map(|i| Server::new(&watch.folder, ports[i], ports[SERVERS + i], true)).collect();
        let mut cluster = RedisCluster { servers, _watch: watch };
        cluster.start_all_empty();
        cluster
    }

    /// `redis-cluster://` with all servers.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    pub(crate) fn port(&self, index: usize) -> u16 {
        self.servers[index].port
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) {
        self.servers[index].kill();
    }

    /// Starts a killed server again; it has lost its data, but knows the cluster.
    pub(crate) fn restart(&mut self, index: usize) {
        self.servers[index].start(&[]);
    }

    pub(crate) fn pause(&self, index: usize) {
        self.servers[index].signal("-STOP");
    }

    pub(crate) fn resume(&self, index: usize) {
        self.servers[index].signal("-CONT");
    }

    /// `kill -9` to all.
    pub(crate) fn stop_all(&mut self) {
        self.servers.iter_mut().for_each(Server::kill);
    }

    /// Starts all, on the same ports, as a new cluster without data.
    pub(crate) fn start_all_empty(&mut self) {
        self.stop_all();
        for server in &mut self.servers {
            let _ = fs::remove_dir_all(&server.folder);
            server.start(&[]);
        }
        self.form();
    }

    /// FLUSHALL on every master.
    pub(crate) fn flush_all(&self) {
        for index in self.masters() {
            self.ask(index, &["FLUSHALL"]).unwrap();
        }
    }

    /// One command to one server. Errors of Redis are errors; the elements of lists are lines.
    pub(crate) fn ask(&self, index: usize, command: &[&str]) -> io::Result<String> {
        ask(self.servers[index].port, command)
    }

    pub(crate) fn slot_of(&self, key: &str) -> u32 {
        self.first_alive(&["CLUSTER", "KEYSLOT", key]).trim().parse().unwrap()
    }

    /// The server that serves the slot now, as an answering server sees it.
    pub(crate) fn master_of_slot(&self, slot: u32) -> usize {
        let nodes = self.first_alive(&["CLUSTER", "NODES"]);
        for line in nodes.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if !words[2].contains("master") || words[2].contains("fail") {
                continue;
            }
            let owns = words[8..].iter().any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let bounds = (first.parse::<u32>(), last.parse::<u32>());
                matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&slot))
            });
            if owns {
                let port = words[1].split('@').next().unwrap().rsplit(':').next().unwrap();
                return self.servers.iter().position(|server| server.port.to_string() == port).unwrap();
            }
        }
        panic!("nobody serves slot {slot}:\n{nodes}");
    }

    /// Whether another server than `before`, which does not answer, serves the slot now.
    pub(crate) fn master_of_slot_after(&self, before: usize, slot: u32) -> bool {
        let others = (0..SERVERS).filter(|&index| index != before && self.servers[index].child.is_some());
        let old = format!("127.0.0.1:{}@", self.servers[before].port);
        let Some(nodes) = others.into_iter().find_map(|index| self.ask(index, &["CLUSTER", "NODES"]).ok()) else {
            return false;
        };
        nodes.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[2].contains("master")
                && !words[1].starts_with(&old)
                && words[8..].iter().any(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    let bounds = (first.parse::<u32>(), last.parse::<u32>());
                    matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&slot))
                })
        })
    }

    /// All commands executed so far, by all servers that answer; those of replication and of this file included.
    pub(crate) fn commands_processed(&self) -> u64 {
        self.sum("stats", |line| line.strip_prefix("total_commands_processed:")?.parse().ok())
    }

    /// Calls of one command (lower case) so far, by all servers that answer. Those that a script makes count too.
    pub(crate) fn calls_of(&self, command: &str) -> u64 {
        let name = format!("cmdstat_{command}:calls=");
        self.sum("commandstats", |line| line.strip_prefix(name.as_str())?.split(',').next()?.parse().ok())
    }

    fn sum(&self, section: &str, value: impl Fn(&str) -> Option<u64>) -> u64 {
        let infos = self.servers.iter().filter_map(|server| ask(server.port, &["INFO", section]).ok());
        infos.map(|info| info.lines().filter_map(&value).sum::<u64>()).sum()
    }

    /// Waits until every server that runs says that all is well.
    pub(crate) fn wait_ok(&self) {
        wait_until("the cluster is ok everywhere", || {
            self.running().all(|index| {
                let info = self.ask(index, &["CLUSTER", "INFO"]).unwrap_or_default();
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            })
        });
    }

    /// Waits until every replica that runs has all its master has.
    pub(crate) fn wait_replicated(&self) {
        wait_until("replicas are linked to their masters", || {
            let roles: Vec<String> =
                self.running().map(|index| self.ask(index, &["INFO", "replication"]).unwrap_or_default()).collect();
            roles.iter().filter(|role| role.contains("role:slave")).count() == roles.len() - MASTERS
                && roles.iter().all(|role| role.contains("role:master") || role.contains("master_link_status:up"))
        });
    }

    fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..SERVERS).filter(|&index| self.servers[index].child.is_some())
    }

    fn masters(&self) -> Vec<usize> {
        self.running()
            .filter(|&index| self.ask(index, &["ROLE"]).is_ok_and(|role| role.starts_with("master")))
            .collect()
    }

    fn first_alive(&self, command: &[&str]) -> String {
        self.running().find_map(|index| self.ask(index, command).ok()).expect("a server answers")
    }

    /// What `redis-cli --cluster create` does, without its pauses.
    fn form(&self) {
        let ids: Vec<String> =
            (0..SERVERS).map(|index| self.ask(index, &["CLUSTER", "MYID"]).unwrap().trim().to_owned()).collect();
        for index in 0..MASTERS {
            let first = SLOTS * index as u32 / MASTERS as u32;
            let last = SLOTS * (index as u32 + 1) / MASTERS as u32 - 1;
            self.ask(index, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).unwrap();
            self.ask(index, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).unwrap();
        }
        for server in &self.servers[1..] {
            let (port, bus_port) = (server.port.to_string(), server.bus_port.to_string());
            self.ask(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port]).unwrap();
        }
        wait_until("all servers have met", || {
            (0..SERVERS).all(|index| {
                let nodes = self.ask(index, &["CLUSTER", "NODES"]).unwrap_or_default();
                nodes.lines().count() == SERVERS
                    && !nodes.contains("handshake")
                    && ids.iter().all(|id| nodes.contains(id))
            })
        });
        for index in MASTERS..SERVERS {
            self.ask(index, &["CLUSTER", "REPLICATE", &ids[index - MASTERS]]).unwrap();
        }
        self.wait_ok();
        self.wait_replicated();
    }
}

/// Waits for a condition, or fails the test.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Ports nobody listens on, below those the system hands out for outgoing connections.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u16 = 20_000;
    const RANGE: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let seed = (std::process::id() as u16).wrapping_mul(97);
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = FIRST + seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % RANGE;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    ports
}

/// One command to the server at `port` of this host, on a connection of its own.
fn ask(port: u16, command: &[&str]) -> io::Result<String> {
    ask_all(port, &[command])
}

/// Commands on one connection; the answer is that of the last.
fn ask_all(port: u16, commands: &[&[&str]]) -> io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answers = BufReader::new(&stream);
    let mut last = String::new();
    for command in commands {
        let mut request = format!("*{}\r\n", command.len());
        for word in *command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        (&stream).write_all(request.as_bytes())?;
        last = reply(&mut answers)?;
    }
    Ok(last)
}

fn reply(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let Some((kind, rest)) = line.trim_end().split_at_checked(1) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let length = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let Ok(length) = usize::try_from(length()?) else {
                return Ok(String::new());
            };
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(length);
            String::from_utf8(bytes).map_err(io::Error::other)
        }
        "*" => {
            let parts: io::Result<Vec<String>> = (0..length()?).map(|_| reply(stream)).collect();
            Ok(parts?.join("\n"))
        }
        _ => Err(io::Error::other(rest.to_owned())),
    }
}
