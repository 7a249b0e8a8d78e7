//! The end of a gateway: SIGTERM drains, a second one does not wait.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::wire::{self, Login, code, flag, kind};
use crate::support::{PATIENCE, SHARD_COUNTS, wait_for};
use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

#[test]
fn sigterm_says_bye_to_everybody_and_exits_0() {
    for &shards in SHARD_COUNTS {
        let mut gateway = Gateway::start(shards, &["--drain-secs", "1"]);
        let bystanders = Bystanders::new(&gateway);
        let mut clients: Vec<Client> = (1..=50).map(|user| Client::login(&gateway, user)).collect();
        gateway.signal(Signal::TERM);
        for client in &mut clients {
            client.expect_bye(code::DRAINING);
        }
        bystanders.expect_bye(code::DRAINING);
        let status = gateway.wait_for_exit();
        assert!(status.success(), "{shards} shards: {status}");
    }
}

/// The soft and the hard limit on core dumps of a process.
fn core_limits(process: &str) -> Vec<String> {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("the limits of the process");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("one of core dumps");
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn no_core_dump_can_be_written_unless_that_is_asked_for() {
    let own = core_limits("self");
    for (flags, soft) in [(&[][..], "1"), (&["--core-dumps"], &own[0])] {
        let mut gateway = Gateway::start(1, flags);
        // Where the hard limit is 0 the soft one cannot be 1, and the process is marked instead.
        let soft = if own[1] == "0" { "0" } else { soft };
        assert_eq!(core_limits(&gateway.id().to_string()), [soft, &own[1]], "{flags:?}");
        if flags.is_empty() {
            gateway.signal(Signal::ABORT);
            let status = gateway.wait_for_exit();
            assert!(status.signal().is_some() && !status.core_dumped(), "{status}");
        }
    }
}

#[test]
fn sigint_ends_it_like_sigterm() {
    let mut gateway = Gateway::start(2, &["--drain-secs", "1"]);
    let mut client = Client::login(&gateway, 1);
    gateway.signal(Signal::INT);
    client.expect_bye(code::DRAINING);
    let status = gateway.wait_for_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn a_drain_reaches_connections_in_every_state() {
    let mut gateway = Gateway::start(2, &["--drain-secs", "1"]);
    let mut silent = Client::connect(&gateway);
    let mut in_login = Client::connect(&gateway);
    let login = Login::of(1).frame().encode();
    in_login.write_bytes(&login[..login.len() / 2]);
    let mut in_frame = Client::login(&gateway, 2);
    in_frame.write_bytes(&wire::send(1, 3, 0, &[0; 5_000]).encode()[..2_000]);
    let mut sender = Client::login(&gateway, 4);
    let mut recipient = Client::login(&gateway, 5);
    sender.send(5, flag::ACK, b"not acknowledged in time");
    recipient.recv_deliver();
    gateway.signal(Signal::TERM);
    for client in [&mut silent, &mut in_login, &mut in_frame, &mut recipient] {
        client.expect_bye(code::DRAINING);
    }
    // Its recipient may have gone first, which is then the fate of its message.
    let frames = sender.recv_until_closed();
    let (bye, before) = frames.split_last().expect("a BYE");
    assert_eq!((bye.kind, bye.aux), (kind::BYE, code::DRAINING));
    assert!(before.len() <= 1 && before.iter().all(|frame| frame.kind == kind::SENT), "{before:?}");
    let status = gateway.wait_for_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn a_client_that_never_reads_does_not_hold_up_the_end() {
    let mut gateway = Gateway::start(2, &["--drain-secs", "1", "--outbox-full-secs", "60"]);
    let stuck = Client::login(&gateway, 1);
    let mut sender = Client::login(&gateway, 2);
    // 30 MB: more than the kernel and the outbox take.
    let body = vec![0; 60_000];
    for _ in 0..500 {
        sender.send(1, 0, &body);
    }
    sender.ping();
    gateway.signal(Signal::TERM);
    sender.expect_bye(code::DRAINING);
    let status = gateway.wait_for_exit();
    assert!(status.success(), "{status}");
    drop(stuck);
}

#[test]
fn nobody_gets_in_during_the_drain() {
    let mut gateway = Gateway::start(2, &["--drain-secs", "1"]);
    let mut client = Client::login(&gateway, 1);
    gateway.signal(Signal::TERM);
    client.expect_bye(code::DRAINING);
    // Refused by the kernel, reset, or told to go: but never logged in.
    if let Ok(stream) = std::net::TcpStream::connect(gateway.client_address()) {
        let mut late = Client::over(stream);
        late.write_while_open(&Login::of(2).frame().encode());
        for frame in late.recv_until_closed() {
            assert_eq!((frame.kind, frame.aux), (kind::BYE, code::DRAINING));
        }
    }
    assert!(gateway.wait_for_exit().success());
}

#[test]
fn readiness_ends_with_the_first_signal() {
    let mut gateway = Gateway::start(1, &["--drain-secs", "10"]);
    let clients: Vec<Client> = (1..=100).map(|user| Client::login(&gateway, user)).collect();
    gateway.signal(Signal::TERM);
    // A balancer must stop sending clients here before the last one has gone.
    let status = wait_for("not ready", || {
        let status = gateway.answers_http("/readyz");
        (status != Some(200)).then_some(status)
    });
    assert_eq!(status, Some(503));
    gateway.signal(Signal::TERM);
    gateway.wait_for_exit();
    drop(clients);
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    const DRAIN_SECS: u64 = 60;
    let mut gateway = Gateway::start(2, &["--drain-secs", &DRAIN_SECS.to_string()]);
    let mut clients: Vec<Client> = (1..=200).map(|user| Client::login(&gateway, user)).collect();
    let start = Instant::now();
    gateway.signal(Signal::TERM);
    // The drain has begun, and is paced.
    let first_bye = wait_for("the first BYE", || {
        clients.iter_mut().find_map(|client| match client.read_event(Duration::from_millis(1)) {
            Event::Frame(frame) => Some(frame),
            _ => None,
        })
    });
    assert_eq!((first_bye.kind, first_bye.aux), (kind::BYE, code::DRAINING));
    gateway.signal(Signal::TERM);
    gateway.wait_for_exit();
    assert!(start.elapsed() < PATIENCE.min(Duration::from_secs(DRAIN_SECS / 2)));
}

#[test]
fn the_ports_come_free_after_the_end() {
    let mut gateway = Gateway::start(4, &["--drain-secs", "1"]);
    let address = gateway.client_address();
    gateway.signal(Signal::TERM);
    assert!(gateway.wait_for_exit().success());
    // The kernel takes the rings of an ended process apart at its own pace, and their sockets with them.
    wait_for("bind where the gateway listened", || TcpListener::bind(address).ok());
}
