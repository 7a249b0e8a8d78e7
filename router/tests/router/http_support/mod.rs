//! The real `router` process against a real Redis Cluster, and HTTP requests to it.

use crate::support::redis_cluster::{RedisCluster, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trunkline_router::membership::{NodeRecord, NodeState};
use trunkline_router::redis::{Plane, RedisConfig};

const PATIENCE: Duration = Duration::from_secs(30);

/// The `router` binary with an environment that does not configure it.
pub(crate) fn router_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_router"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUNKLINE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end: status, stdout, stderr.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = router_command(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A router that serves. Killed when dropped.
pub(crate) struct Router {
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Router {
    /// Starts one on a free port and waits until it knows the nodes, be it that there are none.
    pub(crate) fn start(redis_url: &str, flags: &[&str]) -> Self {
        let router = Router::start_unready(redis_url, flags);
        wait_until("it knows the nodes", || router.get("/v1/nodes").status == 200);
        router
    }

    /// Starts one on a free port that need not know any node.
    pub(crate) fn start_unready(redis_url: &str, flags: &[&str]) -> Self {
        let mut command = router_command(&["--http", "127.0.0.1:0", "--redis", redis_url]);
        let mut child = command.args(flags).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("a line that says where it listens").unwrap();
        let place = first.strip_prefix("http on ").or_else(|| first.strip_prefix("https on "));
        let address = place.unwrap_or_else(|| panic!("{first}")).parse().unwrap();
        let mut readers = vec![collect(Arc::clone(&said), lines)];
        readers.push(collect(Arc::clone(&said), BufReader::new(child.stderr.take().unwrap()).lines()));
        Router { child, address, said, readers }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has written so far but for the first line.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "Content-Type: application/json\r\n", &body.to_string())
    }

    /// A request with further header lines.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: \
             {}\r\n\r\n{body}",
            body.len()
        );
        self.exchange(text.as_bytes())
    }

    /// Raw bytes; the answer is all that comes back.
    pub(crate) fn exchange(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Answer::read(&mut stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The value of a metric by its name and labels as they are written.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end: exit status and everything it said.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the router does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        };
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        (status.code(), self.said())
    }

    /// Ends it with SIGTERM, and the test fails if that is not orderly.
    pub(crate) fn finish(self) {
        self.signal("-TERM");
        let (status, said) = self.wait();
        assert_eq!(status, Some(0), "{said}");
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(
    said: Arc<Mutex<String>>,
    lines: impl Iterator<Item = std::io::Result<String>> + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    })
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The header in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        // A server that answers before it has read all closes with a reset, behind its answer.
        if let Err(error) = stream.read_to_end(&mut bytes) {
            assert!(!bytes.is_empty(), "{error}");
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer: {text:?}"));
        Answer { status: head[9..12].parse().unwrap(), head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON of an answer that has to be 200 or 201.
    pub(crate) fn good(&self) -> Value {
        assert!(self.status == 200 || self.status == 201, "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        self.json()
    }

    /// The detail of a problem with this status.
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        assert_eq!(self.head.contains("\r\nretry-after: 1"), status == 503, "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

/// What gateways would write to Redis.
pub(crate) struct Nodes {
    runtime: tokio::runtime::Runtime,
    pub(crate) plane: Plane,
}

impl Nodes {
    pub(crate) fn new(cluster: &RedisCluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plane = runtime.block_on(Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap())).unwrap();
        Nodes { runtime, plane }
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Takes the lease of a node for a time that outlasts the test. Its incarnation.
    pub(crate) fn join(&self, record: &NodeRecord) -> u64 {
        self.join_for(record, 600_000)
    }

    pub(crate) fn join_for(&self, record: &NodeRecord, ttl_ms: u64) -> u64 {
        self.block_on(self.plane.acquire(record, ttl_ms)).unwrap()
    }

    /// Gives a lease back.
    pub(crate) fn leave(&self, name: &str, incarnation: u64) {
        assert!(self.block_on(self.plane.release(name, incarnation)).unwrap());
    }
}

pub(crate) fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation: 0,
        state: NodeState::Active,
        weight: 1,
        shards: 4,
        mesh: "127.0.0.1:7790".into(),
        advertise: format!("{name}.example:7700"),
        http: String::new(),
        protocol: 1,
        connections: 10,
        users: 8,
        started_ms: 1,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}
