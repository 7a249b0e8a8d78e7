//! The Redis Cluster below the nodes: six servers of the bench's own or one that runs already, and what its masters
//! count.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use trunkline_router::redis::RedisConfig;

use crate::{failure::Failure, server::Server};

/// Servers of an own cluster: as many replicas as masters.
const SERVERS: usize = 6;
const MASTERS: usize = 3;
const SLOTS: u32 = 16_384;
/// The longest wait for anything that a cluster does by itself.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A server that is silent for so long is failing, in milliseconds. Nothing fails here, and both cores are busy: much
/// longer than a pause.
const NODE_TIMEOUT_MS: &str = "15000";
/// Largest answer read: INFO and CLUSTER NODES take some kilobytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Commands that masters have executed, those of the bench itself left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Commands {
    /// `total_commands_processed`, all masters together. What a script does inside counts too.
    pub(crate) total: u64,
    /// `commandstats`, by command.
    pub(crate) by_name: BTreeMap<String, u64>,
}

impl Commands {
    /// What was executed since `earlier`.
    pub(crate) fn since(&self, earlier: &Commands) -> Commands {
        let grown = self.by_name.iter().map(|(name, calls)| {
            let before = earlier.by_name.get(name).copied().unwrap_or(0);
            (name.clone(), calls.saturating_sub(before))
        });
        Commands {
            total: self.total.saturating_sub(earlier.total),
            by_name: grown.filter(|(_, calls)| *calls > 0).collect(),
        }
    }

    /// Adds what INFO says of one server.
    fn add(&mut self, info: &str) {
        for line in info.lines() {
            if let Some(total) = line.strip_prefix("total_commands_processed:") {
                self.total += total.trim().parse::<u64>().unwrap_or(0);
            }
            let Some((name, rest)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(':')) else {
                continue;
            };
            let calls = rest.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
            *self.by_name.entry(name.to_owned()).or_default() +=
                calls.and_then(|calls| calls.parse().ok()).unwrap_or(0);
        }
        for own in ["info", "auth"] {
            self.total = self.total.saturating_sub(self.by_name.remove(own).unwrap_or(0));
        }
    }
}

/// A Redis Cluster that works. Servers of its own end when this is dropped, and also with the bench however it ends.
#[derive(Debug)]
pub(crate) struct Redis {
    url: String,
    login: Option<Vec<String>>,
    masters: Vec<SocketAddr>,
    // Before the folder they write into.
    servers: Vec<Server>,
    _folder: Option<Scratch>,
}

impl Redis {
    /// A cluster that runs already. Errors: the URL is wrong, nobody answers, or a server is not on loopback.
    pub(crate) fn running(url: &str) -> Result<Redis, Failure> {
        let config = RedisConfig::parse(url).map_err(|error| Failure::Setup(format!("--redis {error}")))?;
        let login = config.password.as_ref().map(|password| {
            let user = config.username.iter().cloned();
            ["AUTH".to_owned()].into_iter().chain(user).chain([password.clone()]).collect::<Vec<_>>()
        });
        let mut redis = Redis { url: url.to_owned(), login, masters: Vec::new(), servers: Vec::new(), _folder: None };
        let mut failed = Failure::Setup("--redis names no server".to_owned());
        for (host, port) in &config.hosts {
            let address = (host.as_str(), *port)
                .to_socket_addrs()
                .and_then(|mut addresses| addresses.next().ok_or_else(|| io::Error::other("the name has no address")));
            let address = match address {
                Ok(address) => on_loopback(address)?,
                Err(error) => {
                    failed = Failure::system(&format!("looking {host} up"), error);
                    continue;
                }
            };
            match redis.ask(address, &["CLUSTER", "NODES"]) {
                Ok(nodes) => {
                    redis.masters = masters(&nodes);
                    failed = Failure::Setup(format!("the Redis Cluster at {host}:{port} has no masters with slots"));
                    break;
                }
                Err(error) => failed = Failure::system(&format!("asking the Redis Cluster at {host}:{port}"), error),
            }
        }
        if redis.masters.is_empty() {
            return Err(failed);
        }
        redis.masters.iter().try_for_each(|master| on_loopback(*master).map(drop))?;
        Ok(redis)
    }

    /// Starts three masters and three replicas on free ports of loopback and waits until they agree that all is well.
    pub(crate) fn start() -> Result<Redis, Failure> {
        if Command::new("redis-server").arg("--version").stdin(Stdio::null()).output().is_err() {
            return Err(Failure::Setup(
                "several nodes need a Redis Cluster, and there is no redis-server here: `apt-get install redis-server` \
                 (or `make setup`) installs it, or name a cluster that runs with --redis URL"
                    .to_owned(),
            ));
        }
        let folder = Scratch::new("redis")?;
        let ports = free_ports(2 * SERVERS);
        let mut servers = Vec::new();
        for (&port, &bus_port) in ports[..SERVERS].iter().zip(&ports[SERVERS..]) {
            let data = folder.path().join(port.to_string());
            fs::create_dir(&data).map_err(|error| Failure::system(&format!("making {}", data.display()), error))?;
            let mut command = Command::new("redis-server");
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
            command.args(["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--dir"]).arg(&data);
            command.args(["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"]);
            command.args(["--cluster-port", &bus_port.to_string(), "--cluster-node-timeout", NODE_TIMEOUT_MS]);
            command.stdin(Stdio::null());
            servers.push(Server::start_at("redis-server", command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?);
        }
        let hosts: Vec<String> = servers.iter().map(|server| server.address().to_string()).collect();
        let masters = servers[..MASTERS].iter().map(|server| server.address().into()).collect();
        let url = format!("redis-cluster://{}", hosts.join(","));
        let redis = Redis { url, login: None, masters, servers, _folder: Some(folder) };
        redis.form(&ports[SERVERS..])?;
        Ok(redis)
    }

    /// What gateways are given.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The processes of servers of its own.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// Whether no node but those of the bench can be there.
    pub(crate) fn is_own(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Reads what all masters have executed so far.
    pub(crate) fn commands(&self) -> Result<Commands, Failure> {
        let mut commands = Commands::default();
        for master in &self.masters {
            // One INFO with everything: older versions take one section at a time only, and two would not be of one
            // moment.
            let info = self.ask(*master, &["INFO", "all"]).map_err(|error| asked(*master, error))?;
            commands.add(&info);
        }
        Ok(commands)
    }

    /// What `redis-cli --cluster create` does, without its pauses.
    fn form(&self, bus_ports: &[u16]) -> Result<(), Failure> {
        let at = |index: usize| SocketAddr::from(self.servers[index].address());
        let told =
            |index: usize, command: &[&str]| self.ask(at(index), command).map_err(|error| asked(at(index), error));
        for master in 0..MASTERS {
            let first = SLOTS * master as u32 / MASTERS as u32;
            let last = SLOTS * (master as u32 + 1) / MASTERS as u32 - 1;
            told(master, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
            told(master, &["CLUSTER", "SET-CONFIG-EPOCH", &(master + 1).to_string()])?;
        }
        for (server, bus_port) in (1..SERVERS).zip(&bus_ports[1..]) {
            let port = self.servers[server].address().port().to_string();
            told(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port.to_string()])?;
        }
        self.wait("its servers to meet", || {
            (0..SERVERS).all(|server| {
                let nodes = self.ask(at(server), &["CLUSTER", "NODES"]).unwrap_or_default();
                nodes.lines().count() == SERVERS && !nodes.contains("handshake")
            })
        })?;
        for replica in MASTERS..SERVERS {
            let master = told(replica - MASTERS, &["CLUSTER", "MYID"])?;
            told(replica, &["CLUSTER", "REPLICATE", master.trim()])?;
        }
        self.wait("its servers to agree that all slots are served and all replicas are linked", || {
            (0..SERVERS).all(|server| {
                let info = self.ask(at(server), &["CLUSTER", "INFO"]).unwrap_or_default();
                let replication = self.ask(at(server), &["INFO", "replication"]).unwrap_or_default();
                let linked = server < MASTERS || replication.contains("master_link_status:up");
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384") && linked
            })
        })
    }

    fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            if Instant::now() > deadline {
                return Err(Failure::Stalled { waiting_for: format!("the Redis Cluster: {what}"), after: PATIENCE });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One command to one server, on a connection of its own. Errors of Redis are errors; elements of lists are lines.
    fn ask(&self, server: SocketAddr, command: &[&str]) -> io::Result<String> {
        let stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut answers = BufReader::new((&stream).take(ANSWER_BYTES_MAX));
        let mut exchange = |command: &mut dyn Iterator<Item = &str>| {
            let words: Vec<&str> = command.collect();
            let mut request = format!("*{}\r\n", words.len());
            for word in words {
                request += &format!("${}\r\n{word}\r\n", word.len());
            }
            (&stream).write_all(request.as_bytes())?;
            answer(&mut answers)
        };
        if let Some(login) = &self.login {
            exchange(&mut login.iter().map(String::as_str))?;
        }
        exchange(&mut command.iter().copied())
    }
}

fn on_loopback(server: SocketAddr) -> Result<SocketAddr, Failure> {
    if server.ip().is_loopback() {
        return Ok(server);
    }
    Err(Failure::Setup(format!(
        "the Redis server {server} is not on loopback: the nodes write each login there, and a bench has no business \
         doing that to a service"
    )))
}

fn asked(server: SocketAddr, error: io::Error) -> Failure {
    Failure::system(&format!("asking the Redis server {server}"), error)
}

/// The masters that serve slots, from what CLUSTER NODES says: id, address, flags, master, times, epoch, state, slots.
fn masters(nodes: &str) -> Vec<SocketAddr> {
    let serving = nodes.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_master = words.get(2)?.split(',').any(|flag| flag == "master") && words.len() > 8;
        // host:port@bus, with a comma and a name behind it in newer versions.
        let address = words[1].split('@').next()?;
        is_master.then(|| address.to_socket_addrs().ok()?.next()).flatten()
    });
    serving.collect()
}

fn answer(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let Some((kind, rest)) = line.trim_end().split_at_checked(1) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let length = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let Ok(length) = u64::try_from(length()?) else { return Ok(String::new()) };
            let mut text = String::new();
            stream.take(length).read_to_string(&mut text)?;
            stream.read_line(&mut String::new())?;
            Ok(text)
        }
        "*" => {
            let parts: io::Result<Vec<String>> = (0..length()?).map(|_| answer(stream)).collect();
            Ok(parts?.join("\n"))
        }
        _ => Err(io::Error::other(rest.to_owned())),
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

/// A temporary folder. It goes when this is dropped, and also with the bench however it ends: a shell holds the other
/// end of a pipe.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    shell: Child,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Result<Scratch, Failure> {
        Scratch::below(&std::env::temp_dir(), name)
    }

    /// The same in another folder than that for temporary files.
    pub(crate) fn below(parent: &Path, name: &str) -> Result<Scratch, Failure> {
        let path = parent.join(format!("trunkline-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| Failure::system(&format!("making {}", path.display()), error))?;
        // Servers that end with a bench that is killed may still write something.
        let script = r#"trap '' INT TERM HUP; read _ || sleep 1; rm -rf "$0""#;
        let shell = Command::new("sh")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Failure::system("starting sh", error))?;
        Ok(Scratch { path, shell })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A line says that all is over. The folder is a temporary one: that it stays is no failure of a bench.
        if let Some(mut stdin) = self.shell.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_all_masters_without_the_benchs_own() {
        let info = "# Stats\r\ntotal_commands_processed:10\r\n# Commandstats\r\ncmdstat_info:calls=3,usec=9\r\n\
                    cmdstat_get:calls=7,usec=8\r\n";
        let mut before = Commands::default();
        before.add(info);
        assert_eq!((before.total, before.by_name["get"]), (7, 7));
        let mut after = before.clone();
        after.add("total_commands_processed:2\ncmdstat_get:calls=1,usec=8\ncmdstat_cluster|nodes:calls=1,usec=3\n");
        let since = after.since(&before);
        assert_eq!((since.total, since.by_name["get"], since.by_name["cluster|nodes"]), (2, 1, 1));
    }

    #[test]
    fn masters_are_those_with_slots() {
        let nodes = "a 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460\n\
                     b 127.0.0.1:7001@17001,name slave a 0 0 1 connected\n\
                     c 127.0.0.1:7002@17002 master - 0 0 2 connected 5461-16383\n\
                     d 127.0.0.1:7003@17003 master - 0 0 3 connected\n";
        let expected: Vec<SocketAddr> = ["127.0.0.1:7000", "127.0.0.1:7002"].map(|a| a.parse().expect("one")).into();
        assert_eq!(masters(nodes), expected);
    }

    #[test]
    fn a_scratch_folder_goes() {
        let scratch = Scratch::new("test").expect("made");
        let path = scratch.path().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
    }
}
