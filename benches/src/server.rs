//! The server under test: a child process of the bench, or one that runs already.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead as _, BufReader, Read},
    net::{SocketAddr, SocketAddrV4, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    affinity::{SERVER_CORE, kernel_number},
    failure::Failure,
    process::is_running,
    ring::os,
    sockets::tables_for,
};

/// How long a server may take to say where it listens.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to end after it was asked to.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of a server's output kept for the case that it ends.
const LAST_WORDS_LINES: usize = 12;

/// Where a server's HTTP interface is, once it has said so.
type HttpAddress = Arc<Mutex<Option<SocketAddr>>>;

/// A server to put load on. A child is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    address: SocketAddrV4,
    /// Where its HTTP interface is, if it has one.
    http: HttpAddress,
    pid: u32,
    child: Option<Child>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

/// What a gateway is started with.
#[derive(Clone, Debug)]
pub(crate) struct GatewayCommand {
    /// The program.
    pub(crate) binary: PathBuf,
    /// Its number of shards.
    pub(crate) shards: u32,
    /// Connections of one shard; `None` leaves the gateway's own limit.
    pub(crate) connections_max: Option<u32>,
    /// Further arguments, as given.
    pub(crate) arguments: Vec<String>,
    /// The only cores it may use, counted from 0; none of them leaves it all.
    pub(crate) cores: Vec<usize>,
}

impl Server {
    /// Starts the floor server for so many connections on the servers' core.
    pub(crate) fn floor(connections: u32, batch: u32) -> Result<Server, Failure> {
        Server::floor_with(connections, &["--batch", &batch.to_string()])
    }

    /// The floor of idle connections: it accepts them, and nothing is armed on any.
    pub(crate) fn floor_unarmed(connections: u32) -> Result<Server, Failure> {
        Server::floor_with(connections, &["--unarmed"])
    }

    /// The floor of a message to many: it sends what arrives on one connection on all others.
    pub(crate) fn floor_fan_out(connections: u32) -> Result<Server, Failure> {
        Server::floor_with(connections, &["--fan-out"])
    }

    fn floor_with(connections: u32, arguments: &[&str]) -> Result<Server, Failure> {
        let (tables, _) = tables_for(connections)?;
        if tables > 1 {
            return Err(Failure::Setup(format!(
                "the floor server is one ring, whose table cannot hold {connections} connections: lower --conns or \
                 raise the limit with `ulimit -n`"
            )));
        }
        let binary = env::current_exe().map_err(|error| Failure::system("finding the bench's own program", error))?;
        let mut command = Command::new(binary);
        command.args(["floor-server", "--listen", "127.0.0.1:0"]);
        command.args(["--core", &SERVER_CORE.to_string()]).args(arguments);
        // It ends when its standard input does, with the bench.
        command.stdin(Stdio::piped());
        Server::start("floor", command)
    }

    /// Starts a gateway, which pins shard i to core i modulo cores: a single shard runs on the servers' core.
    pub(crate) fn gateway(gateway: &GatewayCommand) -> Result<Server, Failure> {
        if !gateway.binary.exists() {
            return Err(Failure::Setup(format!(
                "there is no gateway at {}: build it with `cargo build --release -p trunkline-gateway`, or name one \
                 with --gateway-bin",
                gateway.binary.display()
            )));
        }
        let mut command = Command::new(&gateway.binary);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--shards", &gateway.shards.to_string()]);
        if let Some(connections) = gateway.connections_max {
            command.args(["--connections-max", &connections.to_string()]);
        }
        command.args(&gateway.arguments).stdin(Stdio::null());
        if !gateway.cores.is_empty() {
            os::confine(&mut command, gateway.cores.iter().filter_map(|&core| kernel_number(core)).collect());
        }
        Server::start("gateway", command)
    }

    /// A server that runs already; `pid` is the process whose CPU time and memory are read.
    pub(crate) fn running(
        name: &'static str,
        address: SocketAddrV4,
        http: Option<SocketAddr>,
        pid: u32,
    ) -> Result<Server, Failure> {
        if !is_running(pid) {
            return Err(Failure::Setup(format!(
                "there is no process {pid}: --gateway-pid names the {name} at {address}"
            )));
        }
        let http = Arc::new(Mutex::new(http));
        Ok(Server { name, address, http, pid, child: None, last_words: Arc::default(), readers: Vec::new() })
    }

    /// Starts a server that listens on a known address and says nothing about it.
    pub(crate) fn start_at(name: &'static str, mut command: Command, address: SocketAddrV4) -> Result<Server, Failure> {
        let mut server = Server::spawn(name, &mut command, None)?;
        server.address = address;
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect(address).is_err() {
            if server.wait_for_end(Duration::from_millis(50)).is_some() {
                return Err(Failure::ServerGone(format!("{name} ended before it listened: {}", server.fate())));
            }
            if Instant::now() > deadline {
                let waiting_for = format!("{name} to listen on {address}; {}", server.fate());
                return Err(Failure::Stalled { waiting_for, after: START_PATIENCE });
            }
        }
        Ok(server)
    }

    fn start(name: &'static str, mut command: Command) -> Result<Server, Failure> {
        let (said, saying) = mpsc::channel();
        let mut server = Server::spawn(name, &mut command, Some(said))?;
        server.address = match saying.recv_timeout(START_PATIENCE) {
            Ok(address) => address,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                server.wait_for_end(END_PATIENCE);
                return Err(Failure::ServerGone(format!("the {name} ended before it listened: {}", server.fate())));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let waiting_for = format!("the {name} to say where it listens; {}", server.fate());
                return Err(Failure::Stalled { waiting_for, after: START_PATIENCE });
            }
        };
        Ok(server)
    }

    fn spawn(
        name: &'static str,
        command: &mut Command,
        said: Option<mpsc::Sender<SocketAddrV4>>,
    ) -> Result<Server, Failure> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        os::die_with_parent(command);
        let mut child = command.spawn().map_err(|error| Failure::system(&format!("starting the {name}"), error))?;
        let last_words = Arc::default();
        let http = Arc::default();
        let stdout = child.stdout.take().expect("piped above");
        let stderr = child.stderr.take().expect("piped above");
        let readers = vec![
            listen_to(stdout, Arc::clone(&last_words), said.map(|said| (said, Arc::clone(&http)))),
            listen_to(stderr, Arc::clone(&last_words), None),
        ];
        let unknown = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0);
        let pid = child.id();
        Ok(Server { name, address: unknown, http, pid, child: Some(child), last_words, readers })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// Where its HTTP interface is. A child says so right after it says where it listens.
    pub(crate) fn http(&self) -> Result<SocketAddr, Failure> {
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            if let Some(http) = *self.http.lock().unwrap_or_else(PoisonError::into_inner) {
                return Ok(http);
            }
            if self.child.is_none() || Instant::now() > deadline {
                let name = self.name;
                return Err(Failure::Setup(format!("the HTTP address of the {name} is not known: say --gateway-http")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Puts the fate of the server's process into a failure that its end explains.
    pub(crate) fn explain(&mut self, failure: Failure) -> Failure {
        /// A process whose sockets are closed is about to be gone.
        const PATIENCE: Duration = Duration::from_secs(2);
        if !matches!(failure, Failure::ServerGone(_) | Failure::Connect { .. } | Failure::Stalled { .. }) {
            return failure;
        }
        if self.wait_for_end(PATIENCE).is_some() {
            let fate = self.fate();
            return Failure::ServerGone(format!("the {} ended during the run ({failure}): {fate}", self.name));
        }
        if self.child.is_none() && !is_running(self.pid) {
            let (name, pid) = (self.name, self.pid);
            return Failure::ServerGone(format!("the {name}, process {pid}, ended during the run ({failure})"));
        }
        failure
    }

    /// Ends a child at once, whatever it thinks of it: for servers that are not this project's.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Asks a child to end and waits for it. Errors: it does not end in time, or ends with another status than 0.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let Some(child) = &mut self.child else { return Ok(()) };
        match child.stdin.take() {
            Some(stdin) => drop(stdin),
            None => os::terminate(child).map_err(|error| Failure::system("ending a server", error))?,
        }
        match self.wait_for_end(END_PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(_) => {
                let fate = self.fate();
                Err(Failure::ServerGone(format!("the {} did not end well: {fate}", self.name)))
            }
            None => {
                let waiting_for = format!("the {} to end", self.name);
                Err(Failure::Stalled { waiting_for, after: END_PATIENCE })
            }
        }
    }

    fn wait_for_end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        let child = self.child.as_mut()?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The exit status, if there is one, and the last lines of output.
    fn fate(&mut self) -> String {
        /// Output that was written before the end is read by then, unless somebody else holds the pipe open.
        const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);
        let status = match self.wait_for_end(Duration::ZERO) {
            Some(status) => {
                let deadline = Instant::now() + OUTPUT_PATIENCE;
                while !self.readers.iter().all(thread::JoinHandle::is_finished) && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(1));
                }
                status.to_string()
            }
            None => "still running".to_owned(),
        };
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() {
            return format!("{status}, without a word");
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        format!("{status}; its last words:\n  {}", words.join("\n  "))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only when the child has been waited for already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads a child's output to its end on a thread of its own, so that the child never waits for a reader.
fn listen_to(
    output: impl Read + Send + 'static,
    words: Arc<Mutex<VecDeque<String>>>,
    said: Option<(mpsc::Sender<SocketAddrV4>, HttpAddress)>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut said, http) = said.unzip();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(SocketAddr::V4(address)) = address_after(&line, "listening on ")
                && let Some(said) = said.take()
            {
                // Nobody waits any more if the start has been given up.
                let _ = said.send(address);
            }
            if let (Some(address), Some(http)) = (address_after(&line, "http on "), &http) {
                *http.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
            }
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.len() == LAST_WORDS_LINES {
                words.pop_front();
            }
            words.push_back(line);
        }
    })
}

fn address_after(line: &str, words: &str) -> Option<SocketAddr> {
    line.strip_prefix(words)?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_server_that_says_where_it_listens_is_found() {
        let server = Server::start("test", shell("echo listening on 127.0.0.1:4711; exec sleep 60")).expect("listens");
        assert_eq!(server.address(), "127.0.0.1:4711".parse().expect("an address"));
    }

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let failure = Server::start("test", shell("echo no such flag >&2; exit 2")).expect_err("ends");
        let sentence = failure.to_string();
        assert!(sentence.contains("exit status: 2") && sentence.contains("no such flag"), "{sentence}");
    }

    #[test]
    fn a_server_that_ends_later_explains_a_lost_connection() {
        let mut server = Server::start("test", shell("echo listening on 127.0.0.1:4711; echo out of luck; exit 3"))
            .expect("listens");
        let sentence = server.explain(Failure::ServerGone("a connection was closed".to_owned())).to_string();
        assert!(sentence.contains("exit status: 3") && sentence.contains("a connection was closed"), "{sentence}");
    }

    #[test]
    fn a_gateway_that_is_not_there_is_named() {
        let gateway = GatewayCommand {
            binary: "/nowhere/gateway".into(),
            shards: 1,
            connections_max: None,
            arguments: vec![],
            cores: Vec::new(),
        };
        let sentence = Server::gateway(&gateway).expect_err("missing").to_string();
        assert!(sentence.contains("/nowhere/gateway") && sentence.contains("cargo build"), "{sentence}");
    }
}
