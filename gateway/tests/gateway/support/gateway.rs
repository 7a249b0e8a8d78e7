//! The real `gateway` process: started, asked over HTTP, audited and ended.

use super::http::{self, Response};
use super::metrics::Metrics;
use super::names::{HTTP_ON, HTTPS_ON, LISTENING_ON, json, metric};
use super::tls::trusting;
use super::{PATIENCE, wait_for};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use rustls::ClientConfig;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A running gateway. `with_gateway` is the way to have one; a test about starting or stopping may hold it itself.
pub(crate) struct Gateway {
    child: Child,
    arguments: Vec<String>,
    client_address: SocketAddr,
    http_address: SocketAddr,
    /// For an HTTP API that speaks TLS.
    https: Option<Arc<ClientConfig>>,
    stdout: Output,
    stderr: Output,
    ended: bool,
}

/// What a process has written so far, and the thread that reads it until the end.
struct Output {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// Runs `body` against a gateway with this many shards and these further flags. Afterwards the gateway must still run,
/// the books must balance once everybody has gone, no fault may be counted, and SIGTERM must end it with status 0.
pub(crate) fn with_gateway(shards: u32, flags: &[&str], body: impl FnOnce(&Gateway)) {
    let gateway = Gateway::start(shards, flags);
    body(&gateway);
    gateway.audit();
    gateway.finish();
}

/// `with_gateway` for each of these shard counts.
pub(crate) fn with_each_gateway(shard_counts: &[u32], flags: &[&str], body: impl Fn(&Gateway)) {
    for &shards in shard_counts {
        with_gateway(shards, flags, &body);
    }
}

/// The `gateway` binary with an environment that does not configure it.
pub(crate) fn gateway_command() -> Command {
    gateway_command_of(Path::new(env!("CARGO_BIN_EXE_gateway")))
}

/// The same with the binary of another build.
pub(crate) fn gateway_command_of(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUNKLINE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

impl Gateway {
    /// Starts a gateway on free ports of the loopback interface and waits until it is ready.
    pub(crate) fn start(shards: u32, flags: &[&str]) -> Self {
        let mut command = gateway_command();
        command.args(["--shards", &shards.to_string()]).args(flags);
        Gateway::start_command(command)
    }

    /// Starts this command on free ports of the loopback interface and waits until it is ready.
    pub(crate) fn start_command(mut command: Command) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let (mut gateway, lines) = Gateway::spawn(command);
        gateway.read_addresses(&lines);
        gateway.wait_until_ready();
        gateway
    }

    /// Starts this command at these addresses, which it does not say before it serves, and waits for nothing but HTTP.
    pub(crate) fn start_unready(mut command: Command, client: SocketAddr, http: SocketAddr) -> Self {
        command.args(["--listen", &client.to_string(), "--http", &http.to_string()]);
        let (mut gateway, _) = Gateway::spawn(command);
        (gateway.client_address, gateway.http_address) = (client, http);
        wait_for("HTTP is there", || {
            gateway.assert_running();
            gateway.answers_http("/healthz")
        });
        gateway
    }

    /// Starts this command with its output going elsewhere than to the test, and waits until it is ready.
    pub(crate) fn start_unheard(mut command: Command, [stdout, stderr]: [Stdio; 2]) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let (client_address, http_address) = (free(), free());
        command.args(["--listen", &client_address.to_string(), "--http", &http_address.to_string()]);
        let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let child = command.stdout(stdout).stderr(stderr).spawn().expect("start the gateway");
        // The command holds the other end of a pipe as long as it lives.
        drop(command);
        let (stdout, stderr) = (Output::unheard(), Output::unheard());
        let gateway =
            Gateway { child, arguments, client_address, http_address, https: None, stdout, stderr, ended: false };
        gateway.wait_until_ready();
        gateway
    }

    /// Waits until `/readyz` is 200.
    pub(crate) fn wait_until_ready(&self) {
        wait_for("/readyz is 200", || {
            self.assert_running();
            self.answers_http("/readyz").filter(|status| *status == 200)
        });
    }

    /// Everything it has written on stderr.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    fn spawn(mut command: Command) -> (Self, Receiver<String>) {
        let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the gateway");
        let (stdout, lines) = Output::read_lines(child.stdout.take().expect("stdout is piped"));
        let (stderr, _) = Output::read_lines(child.stderr.take().expect("stderr is piped"));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let gateway = Gateway {
            child,
            arguments,
            client_address: unknown,
            http_address: unknown,
            https: None,
            stdout,
            stderr,
            ended: false,
        };
        (gateway, lines)
    }

    fn read_addresses(&mut self, lines: &Receiver<String>) {
        let (mut client, mut http) = (None, None);
        while client.is_none() || http.is_none() {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("no line that says where it listens; it said\n{}", self.stderr.text());
            };
            if let Some(address) = line.strip_prefix(LISTENING_ON) {
                // Places of other kinds than one address say more.
                client = address.trim().parse().ok().or(client);
            } else if let Some(address) = line.strip_prefix(HTTP_ON) {
                http = Some(address.trim().parse().expect("the address of the HTTP API"));
            } else if let Some(address) = line.strip_prefix(HTTPS_ON) {
                http = Some(address.trim().parse().expect("the address of the HTTP API"));
                let at =
                    self.arguments.iter().position(|argument| argument == "--http-tls-cert").expect("a certificate");
                self.https = Some(trusting(&self.arguments[at + 1], rustls::ALL_VERSIONS, &["http/1.1"]));
            }
        }
        self.client_address = client.expect("read above");
        self.http_address = http.expect("read above");
    }

    /// Where clients connect.
    pub(crate) fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// Where the HTTP API is.
    pub(crate) fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Everything it has written on stdout.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Everything it has written on stderr, which is its log.
    pub(crate) fn log(&self) -> String {
        self.stderr.text()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.request("GET", path)
    }

    pub(crate) fn post(&self, path: &str) -> Response {
        self.request("POST", path)
    }

    pub(crate) fn post_json(&self, path: &str, body: &serde_json::Value) -> Response {
        self.request_json("POST", path, &body.to_string())
    }

    pub(crate) fn request_json(&self, method: &str, path: &str, body: &str) -> Response {
        self.exchange(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn exchange(&self, method: &str, path: &str, body: &str) -> std::io::Result<Response> {
        match &self.https {
            None => http::request_json(self.http_address, method, path, body),
            Some(config) => http::request_over_tls(config, self.http_address, method, path, body),
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Response {
        self.request_json(method, path, "")
    }

    /// Whether the HTTP API still takes connections.
    pub(crate) fn answers_http(&self, path: &str) -> Option<u16> {
        self.exchange("GET", path, "").ok().map(|response| response.status)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200, "{}", response.body);
        Metrics::parse(&response.body)
    }

    /// Reads the metrics until `condition` holds.
    pub(crate) fn wait_for_metrics(&self, what: &str, condition: impl Fn(&Metrics) -> bool) {
        wait_for(what, || condition(&self.metrics()).then_some(()));
    }

    /// Waits until the API shows a user as online or offline.
    pub(crate) fn wait_for_presence(&self, user: u64, online: bool) {
        wait_for(&format!("user {user} online: {online}"), || {
            let response = self.get(&format!("/v1/users/{user}"));
            assert_eq!(response.status, 200, "{}", response.body);
            (response.json()[json::ONLINE] == online).then_some(())
        });
    }

    /// A line of `/proc/PID/status` that is given in kB, in bytes.
    pub(crate) fn memory_bytes(&self, line: &str) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the status of the process");
        let kilobytes = status
            .lines()
            .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok());
        kilobytes.unwrap_or_else(|| panic!("no {line} in {status}")) * 1_024
    }

    /// The process still runs and none of its threads has panicked.
    /// Number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn assert_running(&self) {
        let running = Pid::from_child(&self.child);
        assert!(rustix::process::test_kill_process(running).is_ok(), "the gateway is gone");
        let state =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the state of the process");
        let after_name = state.rsplit_once(')').map_or("", |(_, rest)| rest).trim();
        assert!(!after_name.starts_with('Z'), "the gateway has exited\n{}", self.stderr.text());
        self.assert_no_panic();
    }

    /// The books balance, with all clients gone, and nothing was counted that is a fault.
    pub(crate) fn audit(&self) {
        self.assert_running();
        let deadline = Instant::now() + PATIENCE;
        while let Some(trouble) = self.open_books() {
            assert!(Instant::now() < deadline, "after {PATIENCE:?} still: {trouble}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let metrics = self.metrics();
        for fault in metric::FAULTS {
            assert_eq!(metrics.sum(fault, &[]), 0, "{fault}");
        }
    }

    /// Why the books cannot be closed yet.
    fn open_books(&self) -> Option<String> {
        let metrics = self.metrics();
        let open = metrics.sum(metric::OPEN, &[]);
        let imbalance = metrics.imbalance();
        imbalance.or_else(|| (open > 0).then(|| format!("{open} connections open")))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("send a signal");
    }

    /// Ends the gateway with SIGTERM and expects status 0.
    pub(crate) fn finish(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_for_exit();
        assert!(status.success(), "after SIGTERM it ended with {status}");
    }

    /// Kills the process, as a power failure or `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait_for_exit();
    }

    /// Lets no file of the process grow beyond this size from now on.
    pub(crate) fn limit_files(&self, bytes: u64) {
        let limit = Rlimit { current: (bytes < u64::MAX).then_some(bytes), maximum: None };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).expect("limit the files of the process");
    }

    /// Waits until the process has ended.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let status = self.wait_for_exit_after_panic();
        self.assert_no_panic();
        status
    }

    /// The same for a process that was made to panic.
    pub(crate) fn wait_for_exit_after_panic(&mut self) -> ExitStatus {
        let status = wait_for("the process ends", || self.child.try_wait().expect("wait for the process"));
        self.ended = true;
        self.stdout.join();
        self.stderr.join();
        status
    }

    fn assert_no_panic(&self) {
        let stderr = self.stderr.text();
        assert!(!stderr.contains("panicked at"), "a thread of the gateway panicked:\n{stderr}");
    }
}

impl Drop for Gateway {
    /// Reached with the process running only when a test has failed: says what the gateway said, and leaves nothing
    /// behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("gateway {}", self.arguments.join(" "));
            eprintln!("--- its stdout\n{}--- its stderr\n{}---", self.stdout.text(), self.stderr.text());
        }
        if !self.ended {
            if let Err(error) = self.child.kill() {
                eprintln!("kill the gateway: {error}");
            }
            if let Err(error) = self.child.wait() {
                eprintln!("wait for the gateway: {error}");
            }
        }
    }
}

impl Output {
    /// Of a process that writes elsewhere.
    fn unheard() -> Self {
        Output { text: Arc::default(), reader: None }
    }

    /// Reads lines to the end on a thread of its own; each is also sent to the receiver while that is held.
    fn read_lines(stream: impl Read + Send + 'static) -> (Self, Receiver<String>) {
        let (sender, receiver) = channel();
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let line = line.unwrap_or_else(|error| format!("(unreadable: {error})"));
                let mut text = shared.lock().expect("nobody panics while holding the text");
                text.push_str(&line);
                text.push('\n');
                drop(text);
                // The receiver is dropped once the addresses are known.
                let _ = sender.send(line);
            }
        });
        (Output { text, reader: Some(reader) }, receiver)
    }

    fn text(&self) -> String {
        self.text.lock().expect("nobody panics while holding the text").clone()
    }

    fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of the gateway's output");
        }
    }
}
