//! A log of the router that cannot be written, and signals: what they cost, and what they must not cost.

use crate::http_support::{Router, router_command};
use crate::support::redis_cluster::RedisCluster;
use std::io::{Read, Write, pipe};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use trunkline_router::http::{NewKey, Scope};

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped.
struct Unheard(Child, SocketAddr);

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Unheard {
    /// A router whose output goes elsewhere, without a Redis: it serves, and says that it waits.
    fn start(command: &mut Command, [stdout, stderr]: [Stdio; 2]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        command.args(["--redis", "redis-cluster://127.0.0.1:1", "--http", &address.to_string(), "--log", "debug"]);
        let child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
        let router = Unheard(child, address);
        wait("it answers", || router.get("/metrics").is_some());
        router
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.1).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.1).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The status of a request to make an account with this key.
    fn makes_account(&self, key: &str) -> String {
        let mut stream = TcpStream::connect(self.1).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = "{\"name\":\"ada\"}";
        let head = format!(
            "Host: {}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n",
            self.1
        );
        write!(stream, "POST /v1/accounts HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    fn metric(&self, series: &str) -> u64 {
        let text = self.get("/metrics").expect("metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn end(mut self) -> ExitStatus {
        self.signal("-TERM");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_nobody_else_notices() {
    let streams: [fn() -> [Stdio; 2]; 3] = [|| [full(), full()], || [closed(), closed()], || [Stdio::null(), full()]];
    for streams in streams {
        let router = Unheard::start(&mut router_command(&[]), streams());
        for _ in 0..10 {
            router.signal("-HUP");
            assert!(router.get("/healthz").is_some_and(|answer| answer.contains(" 200 ")));
        }
        wait("the lines are counted", || router.metric("trunkline_log_lines_dropped_total{reason=\"error\"}") > 0);
        let status = router.end();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_reader_that_has_stopped_holds_up_nothing() {
    let (reader, writer) = pipe().unwrap();
    let mut filler = writer.try_clone().unwrap();
    // It hangs in a write until the reader is dropped, and keeps the pipe full.
    std::thread::spawn(move || while filler.write_all(&[b'x'; 512]).is_ok() {});
    let router = Unheard::start(&mut router_command(&[]), [writer.try_clone().unwrap().into(), writer.into()]);
    for _ in 0..10 {
        router.signal("-HUP");
        assert!(router.get("/healthz").is_some_and(|answer| answer.contains(" 200 ")));
    }
    let status = router.end();
    assert!(status.success(), "{status}");
    drop(reader);
}

#[test]
fn sighup_reads_the_keys_again_and_a_broken_file_changes_nothing() {
    let [first, second] = ["first", "second"].map(|name| NewKey::make(name, &[Scope::AccountsWrite]).unwrap());
    let path = format!("{}/reloaded-keys-{}.toml", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&path, &first.line).unwrap();
    let router = Unheard::start(&mut router_command(&["--api-keys-file", &path]), [Stdio::null(), full()]);
    // With the right key it is refused for want of Redis, which is not there.
    assert_eq!((router.makes_account(&first.key), router.makes_account(&second.key)), ("503".into(), "401".into()));
    std::fs::write(&path, &second.line).unwrap();
    router.signal("-HUP");
    wait("the second key is taken", || router.makes_account(&second.key) == "503");
    assert_eq!(router.makes_account(&first.key), "401");
    std::fs::write(&path, "no keys").unwrap();
    for _ in 0..5 {
        router.signal("-HUP");
        assert_eq!(router.makes_account(&second.key), "503");
    }
    assert!(router.end().success());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn signals_that_mean_nothing_end_nothing() {
    let cluster = RedisCluster::start();
    let router = Router::start(&cluster.url(), &[]);
    for signal in ["-HUP", "-USR1", "-USR2", "-ALRM", "-VTALRM", "-PROF", "-XFSZ", "-PIPE", "-HUP"] {
        router.signal(signal);
        assert_eq!(router.get("/healthz").status, 200, "{signal}");
    }
    wait("it says what SIGHUP does", || router.said().contains("nothing to reload"));
    router.signal("-TERM");
    let (status, said) = router.wait();
    assert_eq!(status, Some(0), "{said}");
}
