//! A rolling restart of every node below the client library's traffic: nothing with ACK is lost, nothing reaches an
//! application twice.

use crate::cluster_support::Fleet;
use crate::cluster_support::redis_cluster::free_ports;
use crate::support::random::Random;
use crate::support::wait_for;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use trunkline_client::{Client, Config, Event, Events, Outcome};

const USERS: u64 = 30;

/// What all clients know together.
#[derive(Default)]
struct Books {
    stop: AtomicBool,
    logged_in: AtomicU64,
    next: AtomicU64,
    /// How often the application of the recipient got each message.
    received: Mutex<BTreeMap<u64, u32>>,
    /// What the sender was told of each.
    told: Mutex<BTreeMap<u64, Outcome>>,
    reconnects: AtomicU64,
}

async fn receive(mut events: Events, books: Arc<Books>) {
    while let Some(event) = events.next().await {
        match event {
            Event::Message(message) => {
                let number = String::from_utf8(message.body.to_vec()).expect("a number").parse().expect("a number");
                *books.received.lock().unwrap().entry(number).or_default() += 1;
            }
            Event::Reconnected { .. } => _ = books.reconnects.fetch_add(1, Ordering::Relaxed),
            Event::Disconnected { .. } | Event::ReconnectFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn send(client: Client, user: u64, books: Arc<Books>) {
    let mut rng = Random::seeded(user);
    while !books.stop.load(Ordering::Relaxed) {
        let to = 1 + rng.below(USERS as usize) as u64;
        if to == user {
            continue;
        }
        let number = books.next.fetch_add(1, Ordering::Relaxed);
        let outcome = client.send_acked(to, number.to_string()).await.expect("an outcome");
        books.told.lock().unwrap().insert(number, outcome);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_rolling_restart_loses_nothing_and_doubles_nothing() {
    roll(None);
}

/// For `make test-upgrade`: one node after the other gives way to one of this build, and then back again, for an
/// upgrade may have to be undone.
#[test]
fn nodes_of_two_builds_are_one_cluster_while_one_takes_the_place_of_the_other() {
    if let Some(binary) = std::env::var_os("TRUNKLINE_OTHER_GATEWAY") {
        roll(Some(binary.into()));
    }
}

/// Restarts each node, with the binary of this build in place of the one given, and then with that one again.
fn roll(other: Option<PathBuf>) {
    let ports = free_ports(3);
    let names = ["a", "b", "c"];
    let mut fleet = Fleet::start_of(other.clone(), &names, |at| {
        let address = format!("127.0.0.1:{}", ports[at]);
        ["--listen", &address, "--advertise", &address, "--drain-secs", "1"].map(str::to_owned).to_vec()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let books = Arc::new(Books::default());
    let clients = Arc::clone(&books);
    let driver = std::thread::spawn(move || {
        runtime.block_on(async {
            let (mut tasks, mut receivers) = (tokio::task::JoinSet::new(), tokio::task::JoinSet::new());
            for user in 1..=USERS {
                let addr = format!("127.0.0.1:{}", ports[user as usize % 3]);
                let config = Config { addrs: vec![addr], user, ..Config::default() };
                let (client, events) = Client::connect(config).await.expect("a login");
                clients.logged_in.fetch_add(1, Ordering::Relaxed);
                receivers.spawn(receive(events, Arc::clone(&clients)));
                tasks.spawn(send(client, user, Arc::clone(&clients)));
            }
            while let Some(ended) = tasks.join_next().await {
                ended.expect("a client that ends in order");
            }
            // The last copies are on their way.
            tokio::time::sleep(Duration::from_millis(300)).await;
            while let Some(ended) = receivers.try_join_next() {
                ended.expect("an application that takes every event");
            }
        });
    });
    wait_for("all have logged in", || (books.logged_in.load(Ordering::Relaxed) == USERS).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    let rounds = if other.is_some() { vec![None, other] } else { vec![None] };
    let restarts = rounds.into_iter().flat_map(|binary| (0..names.len()).map(move |at| (at, binary.clone())));
    for (at, binary) in restarts {
        fleet.binary = binary;
        let mut node = fleet.nodes[at].take().expect("it runs");
        node.signal(Signal::TERM);
        assert!(node.wait_for_exit().success());
        fleet.start_node(at);
        fleet.wait_joined();
        std::thread::sleep(Duration::from_secs(1));
    }
    books.stop.store(true, Ordering::Relaxed);
    driver.join().expect("the clients");

    let (received, told) = (books.received.lock().unwrap(), books.told.lock().unwrap());
    let delivered = told.values().filter(|outcome| **outcome == Outcome::Delivered).count();
    let doubled: Vec<_> = received.iter().filter(|(_, times)| **times != 1).collect();
    assert!(doubled.is_empty(), "applications got these more than once: {doubled:?}");
    let lost: Vec<_> = told
        .iter()
        .filter(|(number, outcome)| **outcome == Outcome::Delivered && !received.contains_key(number))
        .collect();
    assert!(lost.is_empty(), "these were said to be delivered: {lost:?}");
    assert_eq!(told.len() as u64, books.next.load(Ordering::Relaxed), "each has one outcome");
    assert!(delivered > 1_000, "{delivered} of {} were delivered", told.len());
    assert!(books.reconnects.load(Ordering::Relaxed) >= USERS, "all of them had to move");
    println!("{delivered} of {} delivered, {} reconnects", told.len(), books.reconnects.load(Ordering::Relaxed));
    fleet.finish();
}
