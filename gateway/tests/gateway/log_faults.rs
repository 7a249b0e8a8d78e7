//! A log that cannot be written, and a panic: what they cost, and what they must not cost.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::names::metric;
use crate::support::scratch::ScratchFile;
use crate::support::wait_for;
use crate::support::wire::{code, kind};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io::{PipeReader, Read, Write, pipe};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// As in `trunkline_router::log`: lines of one kind at once, and in a second for good.
const BURST: u64 = 100;
const PER_SEC: u64 = 5;

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

fn closed() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn command(flags: &[&str]) -> Command {
    let mut command = gateway_command();
    command.args(["--shards", "2", "--drain-secs", "0"]).args(flags);
    command
}

fn dropped(gateway: &Gateway, reason: &str) -> u64 {
    gateway.metrics().sum(metric::LOG_DROPPED, &[("reason", reason)])
}

/// Everybody is served, HTTP answers, and SIGTERM ends it in an orderly way, while it has something to log all the
/// time.
fn assert_unharmed(mut gateway: Gateway) {
    let mut bystanders = Bystanders::new(&gateway);
    for _ in 0..10 {
        gateway.signal(Signal::HUP);
        bystanders.talk();
        assert_eq!((gateway.answers_http("/readyz"), gateway.answers_http("/healthz")), (Some(200), Some(200)));
    }
    gateway.signal(Signal::TERM);
    bystanders.expect_bye(code::DRAINING);
    let status = gateway.wait_for_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn lines_that_cannot_be_written_are_counted_and_nobody_else_notices() {
    let streams: [fn() -> [Stdio; 2]; 6] = [
        || [full(), Stdio::null()],
        || [Stdio::null(), full()],
        || [full(), full()],
        || [closed(), Stdio::null()],
        || [Stdio::null(), closed()],
        || [closed(), closed()],
    ];
    for streams in streams {
        let gateway = Gateway::start_unheard(command(&[]), streams());
        wait_for("lines that could not be written", || (dropped(&gateway, "error") > 0).then_some(()));
        assert_unharmed(gateway);
    }
}

#[test]
fn a_log_file_that_has_reached_its_limit_is_counted_and_nobody_else_notices() {
    // Beyond its limit (RLIMIT_FSIZE) a write also raises SIGXFSZ, which kills by default.
    let (out, log) = (ScratchFile::new("stdout", ""), ScratchFile::new("log", ""));
    let open = |file: &ScratchFile| Stdio::from(std::fs::OpenOptions::new().append(true).open(file.path()).unwrap());
    let gateway = command(&[]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1; exec \"$@\"", "sh"]).arg(gateway.get_program()).args(gateway.get_args());
    limited.stdin(Stdio::null());
    let gateway = Gateway::start_unheard(limited, [open(&out), open(&log)]);
    wait_for("the log reaches its limit", || {
        gateway.signal(Signal::HUP);
        (dropped(&gateway, "error") > 0).then_some(())
    });
    assert_unharmed(gateway);
    assert!(std::fs::metadata(log.path()).unwrap().len() <= 1_024);
}

/// A pipe nobody reads, full: the reader, and what writes to it.
fn stalled() -> (PipeReader, Stdio) {
    let (reader, writer) = pipe().expect("a pipe");
    let mut filler = writer.try_clone().expect("another handle");
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    // It hangs in a write until the reader is dropped.
    std::thread::spawn(move || {
        while filler.write_all(&[b'x'; 512]).is_ok() {
            count.fetch_add(512, Ordering::Relaxed);
        }
    });
    let mut before = u64::MAX;
    wait_for("the pipe is full", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = written.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(())
    });
    (reader, writer.into())
}

#[test]
fn a_reader_that_has_stopped_holds_up_nothing() {
    for both in [false, true] {
        let (reader, stderr) = stalled();
        let (other_reader, stdout) = stalled();
        let stdout = if both { stdout } else { Stdio::null() };
        assert_unharmed(Gateway::start_unheard(command(&["--log", "debug"]), [stdout, stderr]));
        drop((reader, other_reader));
    }
}

#[test]
fn a_reader_that_goes_on_gets_what_was_said_meanwhile() {
    let (mut reader, stderr) = stalled();
    let mut gateway = Gateway::start_unheard(command(&[]), [Stdio::null(), stderr]);
    gateway.signal(Signal::HUP);
    gateway.signal(Signal::TERM);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        // The filler ends with the reader, so this one ends by itself.
        let mut bytes = [0; 4_096];
        while !text.contains("all connections have ended") {
            match reader.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(len) => text.push_str(&String::from_utf8_lossy(&bytes[..len])),
            }
        }
        text
    });
    let text = reading.join().expect("it reads");
    assert!(gateway.wait_for_exit().success());
    assert!(text.contains("Trunkline gateway") && text.contains("SIGTERM"), "{text}");
}

#[test]
fn what_strangers_cause_is_bounded_and_what_is_left_out_is_told() {
    let start = Instant::now();
    let gateway = Gateway::start(1, &["--log", "debug", "--drain-secs", "0"]);
    wait_for("lines are left out", || {
        for _ in 0..50 {
            // No HTTP, so the server says that the connection has failed.
            let mut stranger = TcpStream::connect(gateway.http_address()).expect("connect");
            let _ = stranger.write_all(b"\x16\x03\x01 hello\r\n\r\n");
            let _ = stranger.read(&mut [0; 512]);
        }
        (dropped(&gateway, "rate") > 0).then_some(())
    });
    wait_for("a word about them", || {
        gateway.log().lines().find(|line| line.contains("more lines of one kind were left out")).map(drop)
    });
    // Lines that differ in numbers only, the time aside, come from one place.
    let mut kinds: HashMap<String, u64> = HashMap::new();
    for line in gateway.log().lines() {
        let said = line.split_once(' ').map_or("", |(_, said)| said);
        *kinds.entry(said.chars().filter(|c| !c.is_ascii_digit()).collect()).or_default() += 1;
    }
    let allowed = BURST + PER_SEC * (start.elapsed().as_secs() + 1);
    let most = kinds.values().copied().max().unwrap_or_default();
    assert!(most >= BURST && most <= allowed, "{most} lines of a kind, {allowed} allowed");
    assert_eq!(dropped(&gateway, "error") + dropped(&gateway, "full"), 0);
    gateway.finish();
}

#[test]
fn signals_that_mean_nothing_do_nothing() {
    let gateway = Gateway::start(2, &["--drain-secs", "0"]);
    let mut bystanders = Bystanders::new(&gateway);
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::XFSZ, Signal::PIPE]
    {
        for _ in 0..20 {
            gateway.signal(signal);
        }
        bystanders.talk();
    }
    gateway.assert_running();
    drop(bystanders);
    gateway.audit();
    gateway.finish();
}

/// A gateway of two shards in which a part panics when the file is there.
fn with_trap(part: &str, flags: &[&str]) -> (Gateway, String) {
    let file = ScratchFile::new("trap", "");
    let path = file.path().to_owned();
    drop(file);
    let mut command = gateway_command();
    command.args(["--shards", "2"]).args(flags).env("TRUNKLINE_DEBUG_PANIC", format!("{part}:{path}"));
    (Gateway::start_command(command), path)
}

fn spring(trap: &str) {
    std::fs::write(trap, "").expect("spring the trap");
}

#[test]
fn a_panic_anywhere_drains_the_node_and_ends_it_with_status_1() {
    for part in ["shard", "task", "control"] {
        let (mut gateway, trap) = with_trap(part, &["--drain-secs", "1"]);
        let users: Vec<u64> = (1..=16).collect();
        let shard_of = |user: &u64| gateway.get(&format!("/v1/users/{user}")).json()["shard"].as_u64().unwrap();
        let shards: Vec<u64> = users.iter().map(shard_of).collect();
        assert!(shards.contains(&0) && shards.contains(&1));
        let mut clients: Vec<Client> = users.iter().map(|user| Client::login(&gateway, *user)).collect();
        spring(&trap);
        for (client, shard) in clients.iter_mut().zip(&shards) {
            if part == "shard" && *shard == 0 {
                // Its shard is gone: the connection ends with the process.
                client.recv_until_closed();
            } else {
                client.expect_bye(code::DRAINING);
            }
        }
        let status = gateway.wait_for_exit_after_panic();
        let log = gateway.log();
        assert_eq!(status.code(), Some(1), "{part}: {status}\n{log}");
        assert_eq!(log.matches("panicked at").count(), 1, "{part}: {log}");
        assert!(log.contains("a test asked for it") && log.contains("gateway: "), "{part}: {log}");
        std::fs::remove_file(trap).unwrap();
    }
}

#[test]
fn a_panic_is_counted_while_the_node_drains() {
    let (mut gateway, trap) = with_trap("task", &["--drain-secs", "600"]);
    let mut clients: Vec<Client> = (1..=16).map(|user| Client::login(&gateway, user)).collect();
    assert_eq!(gateway.metrics().sum(metric::PANICS, &[]), 0);
    spring(&trap);
    wait_for("the panic is counted", || (gateway.metrics().sum(metric::PANICS, &[]) == 1).then_some(()));
    wait_for("it drains", || (gateway.answers_http("/readyz") == Some(503)).then_some(()));
    let first_bye = wait_for("the first BYE", || {
        clients.iter_mut().find_map(|client| match client.read_event(Duration::from_millis(1)) {
            Event::Frame(frame) => Some(frame),
            _ => None,
        })
    });
    assert_eq!((first_bye.kind, first_bye.aux), (kind::BYE, code::DRAINING));
    // At once, as in any drain, but not with status 0.
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait_for_exit_after_panic().code(), Some(1));
    std::fs::remove_file(trap).unwrap();
}
