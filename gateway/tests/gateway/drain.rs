//! Draining a node over HTTP: its clients are sent away at a pace, it stays up, and the drain can be called off.

use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::wire::{self, Frame, Login, code, kind};
use crate::support::{ONE_AND_MANY, wait_for};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const DRAIN: &str = "/v1/node/drain";

fn drain_of(gateway: &Gateway) -> serde_json::Value {
    gateway.get("/v1/node").json()["drain"].clone()
}

/// The BYE 12 that a login is answered with; a session while no shard has heard of the drain yet.
fn refused_login(gateway: &Gateway, user: u64) -> Option<Frame> {
    let mut client = Client::connect(gateway);
    client.write(&Login::of(user).frame());
    let answer = client.recv();
    if answer.kind == kind::LOGIN_OK {
        return None;
    }
    assert_eq!((answer.kind, answer.aux), (kind::BYE, code::DRAINING));
    client.expect_closed();
    Some(answer)
}

#[test]
fn a_drained_node_is_empty_and_stays_up_until_it_is_called_off_or_ended() {
    for &shards in ONE_AND_MANY {
        let mut gateway = Gateway::start(shards, &["--drain-secs", "1"]);
        let mut clients: Vec<Client> = (1..=40).map(|user| Client::login(&gateway, user)).collect();
        // It is in no hurry to log in, and is told where to go when it does.
        let mut waiting = Client::connect(&gateway);
        let begun = gateway.post(DRAIN);
        assert_eq!(begun.status, 202, "{}", begun.body);
        assert_eq!(begun.json()["state"], "draining");
        let mut delays_ms = BTreeSet::new();
        for client in &mut clients {
            let bye = client.recv_kind(kind::BYE);
            assert_eq!((bye.aux, wire::bye_redirect(&bye)), (code::DRAINING, String::new()), "there is no other node");
            delays_ms.insert(wire::bye_reconnect_after_ms(&bye));
            client.expect_closed();
        }
        assert!(delays_ms.len() > 20 && delays_ms.iter().all(|ms| (500..5_500).contains(ms)), "{delays_ms:?}");
        let drain = wait_for("all are gone", || Some(drain_of(&gateway)).filter(|drain| drain["sessions_left"] == 0));
        assert_eq!((&drain["moved"], &drain["ends"]), (&40.into(), &false.into()), "{drain}");
        let ready = gateway.get("/readyz");
        assert_eq!((ready.status, &ready.json()["state"]), (503, &"draining".into()), "{}", ready.body);
        assert_eq!(gateway.metrics().sum("trunkline_sessions_drained_total", &[]), 40);

        waiting.write(&Login::of(41).frame());
        waiting.expect_bye(code::DRAINING);
        for user in 42..50 {
            let bye = refused_login(&gateway, user).expect("every shard drains");
            assert_eq!(wire::bye_redirect(&bye), "");
        }
        assert_eq!(drain_of(&gateway)["moved"], 40, "who never was in was not moved");

        let resumed = gateway.request("DELETE", DRAIN);
        assert_eq!((resumed.status, &resumed.json()["state"]), (200, &"running".into()), "{}", resumed.body);
        assert_eq!(gateway.get("/readyz").status, 200);
        let mut back = wait_for("logins are served", || {
            let mut client = Client::connect(&gateway);
            client.write(&Login::of(1).frame());
            (client.recv().kind == kind::LOGIN_OK).then_some(client)
        });
        back.ping();
        drop(back);
        gateway.audit();

        // Again, and then to the end: who connects in between is told as well.
        gateway.post(DRAIN);
        wait_for("logins are refused", || refused_login(&gateway, 3));
        let mut silent = Client::connect(&gateway);
        // It must have been accepted, or the kernel ends it.
        gateway.wait_for_metrics("it alone is accepted", |metrics| metrics.sum("trunkline_connections_open", &[]) == 1);
        gateway.signal(Signal::TERM);
        silent.expect_bye(code::DRAINING);
        drop(silent);
        assert!(gateway.wait_for_exit().success());
    }
}

#[test]
fn a_drain_keeps_its_pace_and_who_is_left_stays_when_it_is_called_off() {
    const CLIENTS: usize = 100;
    const DRAIN_SECS: u64 = 10;
    let gateway = Gateway::start(2, &["--drain-secs", &DRAIN_SECS.to_string()]);
    let mut clients: Vec<Client> = (1..=CLIENTS as u64).map(|user| Client::login(&gateway, user)).collect();
    gateway.post(DRAIN);
    let begun = Instant::now();
    let drain = wait_for("ten have been moved", || {
        let drain = drain_of(&gateway);
        // The two figures are of one turn of a shard or of the next: asked for in between they are one too many.
        let is_whole = drain["sessions_left"].as_u64()? + drain["moved"].as_u64()? == CLIENTS as u64;
        (is_whole && drain["moved"].as_u64()? >= 10).then_some(drain)
    });
    assert!(begun.elapsed() > Duration::from_millis(500), "a tenth of them within {:?}", begun.elapsed());
    let ms_left = drain["ms_left"].as_u64().expect("it is out of the ring at once");
    assert!((1..DRAIN_SECS * 1_000).contains(&ms_left), "{drain}");
    assert!(drain["deadline"].as_u64().is_some_and(|at| at > 1_700_000_000), "{drain}");

    assert_eq!(gateway.request("DELETE", DRAIN).status, 200);
    gateway.wait_for_metrics("every shard has heard of it", |metrics| {
        let before = metrics.sum("trunkline_sessions_drained_total", &[]);
        std::thread::sleep(Duration::from_millis(500));
        gateway.metrics().sum("trunkline_sessions_drained_total", &[]) == before
    });
    let moved = gateway.metrics().sum("trunkline_sessions_drained_total", &[]) as usize;
    let mut gone = 0;
    for client in &mut clients {
        match client.read_event(Duration::from_millis(5)) {
            Event::Frame(bye) => {
                assert_eq!((bye.kind, bye.aux), (kind::BYE, code::DRAINING));
                gone += 1;
            }
            _ => client.ping(),
        }
    }
    assert_eq!(gone, moved);
    assert!((10..CLIENTS / 2).contains(&gone), "{gone} of {CLIENTS} were moved");
    assert_eq!(gateway.metrics().sum("trunkline_sessions", &[]) as usize, CLIENTS - gone);
    drop(clients);
    gateway.audit();
    gateway.finish();
}

#[test]
fn an_end_by_signal_cannot_be_called_off() {
    let mut gateway = Gateway::start(2, &["--drain-secs", "30"]);
    let clients: Vec<Client> = (1..=100).map(|user| Client::login(&gateway, user)).collect();
    gateway.signal(Signal::TERM);
    let shown = wait_for("it drains", || Some(drain_of(&gateway)).filter(|drain| drain["ends"] == true));
    assert!(shown["sessions_left"].as_u64() > Some(0), "{shown}");
    let refused = gateway.request("DELETE", DRAIN);
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.body.contains("cannot be called off"), "{}", refused.body);
    assert_eq!(gateway.post(DRAIN).json()["drain"]["ends"], true);
    assert_eq!(gateway.get("/readyz").status, 503);
    gateway.signal(Signal::TERM);
    gateway.wait_for_exit();
    drop(clients);
}
