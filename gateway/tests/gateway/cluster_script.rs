//! `scripts/cluster.sh`, which `make cluster` runs: it starts a whole cluster on loopback and leaves nothing behind,
//! however it ends.

use crate::support::http;
use crate::support::wait_for;
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports that the script takes, from its base on.
const PORTS: u16 = 22;
/// Where in them the clients of node b, the HTTP APIs of the nodes, and that of the router are.
const CLIENT_B: u16 = 13;
const HTTP: [u16; 3] = [15, 16, 17];
const ROUTER: u16 = 21;

/// One run of the script.
struct Script {
    child: Child,
    base: u16,
    folder: PathBuf,
}

/// As many ports in a row that nobody listens on, below those that other tests and the system take.
fn free_base() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let seed = (std::process::id() as u16).wrapping_mul(7);
    loop {
        let base = 10_000 + seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 400 * PORTS;
        if (base..base + PORTS).all(is_free) {
            return base;
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

impl Script {
    fn start(name: &str, flags: &[&str]) -> Self {
        Script::start_at(free_base(), name, flags)
    }

    fn start_at(base: u16, name: &str, flags: &[&str]) -> Self {
        let bin = Path::new(env!("CARGO_BIN_EXE_gateway")).parent().expect("it is in a folder");
        for program in ["router", "chat"] {
            assert!(bin.join(program).exists(), "{program} is not built: cargo build --bin router --bin chat");
        }
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-script-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder for what it leaves");
        // Whoever runs the tests in the background may have had SIGINT ignored, which children inherit and a shell
        // cannot undo.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cluster.sh"));
        command.arg("--bin").arg(bin).args(["--base-port", &base.to_string()]).args(flags).env("TMPDIR", &folder);
        // A group of its own, as a shell gives it to what one types.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("start the script");
        Script { child, base, folder }
    }

    fn get(&self, port: u16, path: &str) -> Option<http::Response> {
        http::request(SocketAddr::from(([127, 0, 0, 1], self.base + port)), "GET", path).ok()
    }

    /// Waits for its end: its status, and what it said.
    fn finish(mut self) -> (Option<i32>, String) {
        let status = wait_for("the script ends", || self.child.try_wait().expect("wait for the script"));
        let mut said = String::new();
        self.child.stdout.take().expect("stdout is piped").read_to_string(&mut said).expect("it speaks UTF-8");
        self.child.stderr.take().expect("stderr is piped").read_to_string(&mut said).expect("it speaks UTF-8");
        let left: Vec<_> = fs::read_dir(&self.folder).expect("the folder").collect();
        assert!(left.is_empty(), "it left {left:?}, and said: {said}");
        (status.code(), said)
    }

    fn assert_ports_free(base: u16, but: &[u16]) {
        let held: Vec<u16> = (0..PORTS).filter(|port| !but.contains(port) && !is_free(base + port)).collect();
        assert!(held.is_empty(), "somebody still listens on {base} + {held:?}");
    }
}

impl Drop for Script {
    /// When a test has failed, the script is told to end what it started.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_check_finds_every_process_at_work_and_leaves_nothing() {
    let script = Script::start("check", &["--check"]);
    let base = script.base;
    let (status, said) = script.finish();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("name one home of user 1"), "{said}");
    assert!(said.contains("a message has gone from user 1 at node a to user 2 at node b"), "{said}");
    Script::assert_ports_free(base, &[]);
}

#[test]
fn ctrl_c_ends_all_of_it() {
    let script = Script::start("ctrl-c", &[]);
    let base = script.base;
    for port in HTTP.into_iter().chain([ROUTER]) {
        wait_for("three nodes are in the ring", || {
            let nodes = script.get(port, "/v1/nodes").filter(|answer| answer.status == 200)?.json();
            let in_ring = nodes["nodes"].as_array()?.iter().filter(|node| node["in_ring"] == true).count();
            (in_ring == 3).then_some(())
        });
    }
    kill_process_group(Pid::from_child(&script.child), Signal::INT).expect("press Ctrl-C");
    let (status, said) = script.finish();
    assert_eq!(status, Some(0), "{said}");
    Script::assert_ports_free(base, &[]);
}

#[test]
fn a_process_that_does_not_start_is_shown_with_its_log_and_ends_the_rest() {
    let base = free_base();
    let _taken = TcpListener::bind(("127.0.0.1", base + CLIENT_B)).expect("it was free a moment ago");
    let (status, said) = Script::start_at(base, "taken", &[]).finish();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("gateway-b has ended") && said.contains("already in use"), "{said}");
    Script::assert_ports_free(base, &[CLIENT_B]);
}
