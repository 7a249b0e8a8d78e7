//! The proof at length, which is left out unless it is asked for: messages that were answered for while gateways are
//! killed at random, with applications of the client library at both ends.
//!
//! `make soak-kill` (MESSAGES=1000000 KILLS=200 SEED=1) runs one gateway with files of its own; `make
//! soak-kill-cluster` three nodes with a Redis Cluster, where masters of Redis are killed too. What is shown:
//!
//! - every message that its sender was told is stored or delivered comes to its recipient;
//! - no application gets one twice in the life of a client;
//! - whoever was away all the time gets those of each sender in their order, unless one of them was refused in between.
//!
//! A message that is refused (SENT 3) is sent again with RETRY, as an application should.

use crate::cluster_support::Fleet;
use crate::cluster_support::redis_cluster::SERVERS;
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::random::Random;
use crate::support::scratch::ScratchFolder;
use crate::support::wait_for;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use trunkline_client::{Backoff, Client, Config, Event, Events, Outcome, Outgoing, Receipt};

const SENDERS: u64 = 4;
/// Messages of a sender without an answer: fewer than what a gateway finds again after a crash, even to one recipient.
const IN_FLIGHT: usize = 200;
/// Users who are never there before the end.
const AWAY: std::ops::Range<u64> = 100..112;
/// Users who are there all the time.
const THERE: std::ops::Range<u64> = 200..204;
/// Users who come now and then, and go.
const VISITORS: std::ops::Range<u64> = 300..304;
/// A refused message is sent again after so long.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How long nothing may be settled, and how long the end of a backlog may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// A kill comes up to so many milliseconds after the message that it waited for.
const KILL_LATER_MS: usize = 5;
const ROOMY: [&str; 6] = ["--inbox-messages-max", "1000000", "--inbox-bytes-max", "1GiB", "--store-after-ms", "300"];

/// How much is done.
struct Extent {
    messages: u64,
    kills: u64,
    seed: u64,
}

impl Extent {
    /// As the environment says.
    fn new(messages: u64, kills: u64) -> Self {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
            Err(_) => default,
        };
        let extent = Extent {
            messages: number("TRUNKLINE_SOAK_MESSAGES", messages),
            kills: number("TRUNKLINE_SOAK_KILLS", kills),
            seed: number("TRUNKLINE_SOAK_SEED", std::process::id().into()),
        };
        assert!(extent.messages >= 16 * (extent.kills + 1), "16 messages for each kill at least");
        eprintln!("{} messages, {} kills, seed {}", extent.messages, extent.kills, extent.seed);
        extent
    }
}

/// What is killed.
trait World {
    /// Where clients connect.
    fn addrs(&self) -> Vec<String>;
    /// Kills something and brings it back; says what.
    fn strike(&mut self, random: &mut Random) -> String;
    /// All is well.
    fn finish(self);
}

/// One gateway with files of its own.
struct Alone {
    gateway: Option<Gateway>,
    client: SocketAddr,
    http: SocketAddr,
    folder: ScratchFolder,
}

impl Alone {
    fn start() -> Self {
        let folder = ScratchFolder::new("soak");
        let gateway = Gateway::start_command(Alone::command(&folder));
        let (client, http) = (gateway.client_address(), gateway.http_address());
        Alone { gateway: Some(gateway), client, http, folder }
    }

    fn command(folder: &ScratchFolder) -> Command {
        let mut command = gateway_command();
        command.args(["--shards", "2", "--data-dir", folder.path()]).args(ROOMY);
        command
    }
}

impl World for Alone {
    fn addrs(&self) -> Vec<String> {
        vec![self.client.to_string()]
    }

    fn strike(&mut self, _: &mut Random) -> String {
        self.gateway.take().expect("it runs").kill();
        let gateway = Gateway::start_unready(Alone::command(&self.folder), self.client, self.http);
        gateway.wait_until_ready();
        self.gateway = Some(gateway);
        "the gateway".to_owned()
    }

    fn finish(mut self) {
        let gateway = self.gateway.take().expect("it runs");
        gateway.audit();
        gateway.finish();
    }
}

const NAMES: [&str; 3] = ["one", "two", "three"];

/// Three nodes with a Redis Cluster.
struct Nodes {
    fleet: Fleet,
    flags: Vec<&'static str>,
    at: Vec<(SocketAddr, SocketAddr)>,
}

impl Nodes {
    fn start() -> Self {
        let flags = [&["--store", "redis", "--store-sync", "replica"][..], &ROOMY].concat();
        let fleet = Fleet::start(&NAMES, &flags);
        let at = (0..NAMES.len()).map(|at| (fleet.node(at).client_address(), fleet.node(at).http_address())).collect();
        Nodes { fleet, flags, at }
    }
}

impl World for Nodes {
    fn addrs(&self) -> Vec<String> {
        self.at.iter().map(|(client, _)| client.to_string()).collect()
    }

    fn strike(&mut self, random: &mut Random) -> String {
        if random.below(2) == 0 {
            let at = random.below(NAMES.len());
            self.fleet.nodes[at].take().expect("it runs").kill();
            let (client, http) = self.at[at];
            let node = Gateway::start_unready(self.fleet.members[at].command(&self.flags), client, http);
            node.wait_until_ready();
            self.fleet.nodes[at] = Some(node);
            self.fleet.wait_joined();
            return format!("node {}", NAMES[at]);
        }
        let slot = self.fleet.redis.slot_of(&format!("tl:inbox:{{{}}}", AWAY.start + random.below(12) as u64));
        let master = self.fleet.redis.master_of_slot(slot);
        self.fleet.redis.kill(master);
        wait_for("a replica is promoted", || self.fleet.redis.master_of_slot_after(master, slot).then_some(()));
        self.fleet.redis.restart(master);
        self.fleet.redis.wait_ok();
        self.fleet.redis.wait_replicated();
        self.fleet.wait_joined();
        format!("master {master} of {SERVERS} servers of Redis")
    }

    fn finish(self) {
        self.fleet.finish();
    }
}

/// What is known of all messages.
#[derive(Default)]
struct Books {
    /// How many count as stored or delivered.
    settled: AtomicU64,
    /// Sender and id of those that a device has acknowledged (SENT 0); the others are stored (SENT 1).
    delivered: Mutex<HashSet<(u64, u64)>>,
    /// How many answers said that a message was not taken.
    refused: AtomicU64,
    /// Sender and recipient of those: they come out of order.
    disordered: Mutex<HashSet<(u64, u64)>>,
    /// How many all senders together may have sent: they wait for the next kill, or most kills would find nothing
    /// under way.
    allowed: AtomicU64,
    /// Nobody sends any more.
    over: AtomicBool,
}

impl Books {
    fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    fn disordered(&self) -> MutexGuard<'_, HashSet<(u64, u64)>> {
        self.disordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delivered(&self) -> MutexGuard<'_, HashSet<(u64, u64)>> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so many are settled.
    fn await_settled(&self, count: u64) {
        let mut last = (self.settled(), Instant::now());
        while self.settled() < count {
            std::thread::sleep(Duration::from_millis(1));
            if self.settled() > last.0 {
                last = (self.settled(), Instant::now());
            }
            assert!(last.1.elapsed() < PATIENCE, "nothing is settled any more behind {} messages", last.0);
        }
    }
}

/// All recipients.
fn recipients() -> Vec<u64> {
    AWAY.chain(THERE).chain(VISITORS).collect()
}

/// The recipient of a sender's message.
fn recipient_of(sender: u64, id: u64) -> u64 {
    let recipients = recipients();
    recipients[(id.wrapping_mul(7).wrapping_add(sender) % recipients.len() as u64) as usize]
}

fn config(addrs: &[String], user: u64) -> Config {
    // Gateways come back within a moment.
    let backoff = Backoff { first: Duration::from_millis(20), max: Duration::from_millis(200) };
    Config { addrs: addrs.to_vec(), user, device: "soak".into(), backoff, ..Config::default() }
}

/// A first login; gateways may be away meanwhile.
async fn connected(config: impl Fn() -> Config) -> (Client, Events) {
    let began = Instant::now();
    loop {
        match Client::connect(config()).await {
            Ok(connected) => return connected,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

fn message(sender: u64, id: u64) -> Outgoing {
    Outgoing::new(recipient_of(sender, id), format!("{sender}/{id}")).with_id(id)
}

/// Sends `count` messages and sees each of them settled.
async fn send(addrs: Vec<String>, sender: u64, count: u64, books: Arc<Books>) {
    let config = || Config { unacked_max: IN_FLIGHT, ephemeral: true, ..config(&addrs, sender) };
    let (client, mut events) = connected(config).await;
    let client = Arc::new(client);
    let ends = tokio::spawn(async move { while events.next().await.is_some() {} });
    // What was refused and waits for its next attempt is under way, too.
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut under_way = JoinSet::new();
    for id in 1..=count {
        while id * SENDERS > books.allowed.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let place = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
        let receipt = client.submit_when_room(message(sender, id)).await.expect("taken");
        let (client, books) = (Arc::clone(&client), Arc::clone(&books));
        under_way.spawn(async move {
            settle(&client, sender, id, receipt, &books).await;
            drop(place);
        });
        while let Some(ended) = under_way.try_join_next() {
            ended.expect("it is settled");
        }
    }
    while let Some(ended) = under_way.join_next().await {
        ended.expect("it is settled");
    }
    client.close().await;
    ends.await.expect("no panic");
}

/// Sees a message settled, however often it is refused.
async fn settle(client: &Client, sender: u64, id: u64, mut receipt: Receipt, books: &Books) {
    loop {
        match receipt.outcome().await.expect("a fate") {
            Outcome::Stored => break,
            Outcome::Delivered => {
                books.delivered().insert((sender, id));
                break;
            }
            Outcome::Overloaded | Outcome::OfflineNotStored => {}
            other => panic!("message {id} of sender {sender}: {other:?}"),
        }
        books.refused.fetch_add(1, Ordering::Relaxed);
        books.disordered().insert((sender, recipient_of(sender, id)));
        tokio::time::sleep(RETRY_AFTER).await;
        receipt = client.submit_when_room(message(sender, id).as_retry()).await.expect("taken");
    }
    books.settled.fetch_add(1, Ordering::Relaxed);
}

/// What an application has got: sender and id of each message, as they came.
type Got = Vec<(u64, u64)>;

/// How far one who takes messages is.
#[derive(Clone, Copy)]
struct Taken {
    messages: usize,
    /// The backlog is over.
    caught_up: bool,
    /// Nothing has come for a while.
    quiet: bool,
}

/// Takes what comes in the life of one client, until `done` says that it is enough.
async fn take(config: Config, mut done: impl FnMut(Taken) -> bool) -> Got {
    let (client, mut events) = connected(|| config.clone()).await;
    let (mut got, mut once, mut caught_up) = (Got::new(), HashSet::new(), false);
    let mut last = Instant::now();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
        let quiet = next.is_err();
        match next {
            Err(_nothing) => assert!(last.elapsed() < PATIENCE, "user {}: nothing comes any more", config.user),
            Ok(None) => panic!("user {}: the client has ended", config.user),
            Ok(Some(event)) => {
                last = Instant::now();
                match event {
                    Event::Message(message) => {
                        let told = format!("{}/{}", message.from, message.id);
                        assert_eq!(message.text(), Some(told.as_str()), "to user {}", config.user);
                        let new = once.insert((message.from, message.id));
                        assert!(new, "user {} got message {told} twice: {message:?}", config.user);
                        got.push((message.from, message.id));
                    }
                    Event::CaughtUp { .. } => caught_up = true,
                    Event::Disconnected { retry_in: Some(_), .. } => caught_up = false,
                    Event::Reconnected { .. } | Event::ReconnectFailed { .. } | Event::Lost { .. } => {}
                    other => panic!("user {}: {other:?}", config.user),
                }
            }
        }
        if done(Taken { messages: got.len(), caught_up, quiet }) {
            break;
        }
    }
    client.close().await;
    got
}

/// Messages that came before an earlier one of their sender.
fn out_of_order(got: &[(u64, u64)], of: impl Fn(u64) -> bool) -> usize {
    let mut last: HashMap<u64, u64> = HashMap::new();
    let late = |(sender, id): &&(u64, u64)| {
        let highest = last.entry(*sender).or_default();
        let is_late = id < highest;
        *highest = (*highest).max(*id);
        is_late && of(*sender)
    };
    got.iter().filter(late).count()
}

/// What a user has to have.
fn due(user: u64, each: u64) -> HashSet<(u64, u64)> {
    let all = (1..=SENDERS).flat_map(|sender| (1..=each).map(move |id| (sender, id)));
    all.filter(|(sender, id)| recipient_of(*sender, *id) == user).collect()
}

#[track_caller]
fn assert_has_all(user: u64, got: &HashSet<(u64, u64)>, each: u64, books: &Books) {
    let (due, delivered) = (due(user, each), books.delivered());
    let told = |message: &(u64, u64)| (*message, if delivered.contains(message) { "SENT 0" } else { "SENT 1" });
    let mut missing: Vec<_> = due.difference(got).map(told).collect();
    missing.sort_unstable();
    assert!(missing.is_empty(), "user {user} has {} of {} and misses {missing:?}", got.len(), due.len());
    assert_eq!(got.len(), due.len(), "user {user} got what nobody sent");
}

fn soak(mut world: impl World, extent: &Extent) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (addrs, books) = (world.addrs(), Arc::new(Books::default()));
    let each = extent.messages / SENDERS;
    let total = each * SENDERS;
    let mut random = Random::seeded(extent.seed);
    // Those who are there, before anything is sent. They have seen the last when nobody sends and they have all.
    let there: Vec<(u64, JoinHandle<Got>)> = THERE
        .map(|user| {
            let (config, books, all) = (config(&addrs, user), Arc::clone(&books), due(user, each).len());
            let done = move |taken: Taken| taken.quiet && taken.messages >= all && books.over.load(Ordering::Relaxed);
            (user, runtime.spawn(take(config, done)))
        })
        .collect();
    let senders: Vec<JoinHandle<()>> =
        (1..=SENDERS).map(|sender| runtime.spawn(send(addrs.clone(), sender, each, Arc::clone(&books)))).collect();
    let mut visits: Vec<(u64, JoinHandle<Got>)> = Vec::new();
    let part = (total / (extent.kills + 1)).max(1);
    for kill in 1..=extent.kills {
        // Anywhere in its part of the messages, of which one more may be sent meanwhile.
        books.allowed.store((kill + 1) * part, Ordering::Relaxed);
        books.await_settled((kill - 1) * part + random.next() % part);
        std::thread::sleep(Duration::from_millis(random.below(KILL_LATER_MS) as u64));
        let what = world.strike(&mut random);
        let (settled, refused) = (books.settled(), books.refused.load(Ordering::Relaxed));
        eprintln!("kill {kill} of {}: {what}; {settled} of {total} settled, {refused} refused", extent.kills);
        // One of the visitors comes, if it is not there still, and goes when it has what waited for it: the device that
        // comes a second time would throw the first one out.
        let user = VISITORS.start + random.below(VISITORS.count()) as u64;
        if visits.iter().all(|(visitor, visit)| *visitor != user || visit.is_finished()) {
            visits.push((user, runtime.spawn(take(config(&addrs, user), |taken| taken.caught_up))));
        }
    }
    books.allowed.store(u64::MAX, Ordering::Relaxed);
    books.await_settled(total);
    senders.into_iter().for_each(|sender| runtime.block_on(sender).expect("a sender has sent all"));
    books.over.store(true, Ordering::Relaxed);
    let mut late = 0;
    for (user, there) in there {
        let got = runtime.block_on(there).expect("it has all");
        assert_has_all(user, &got.iter().copied().collect(), each, &books);
        late += out_of_order(&got, |_| true);
    }
    eprintln!("those who were there have all, each once; {late} came behind later ones");
    // Nothing that comes now was in anybody's memory.
    world.strike(&mut random);
    for user in AWAY {
        let got = runtime.block_on(take(config(&addrs, user), |taken| taken.caught_up && taken.quiet));
        assert_has_all(user, &got.iter().copied().collect(), each, &books);
        let disordered = books.disordered();
        let late = out_of_order(&got, |sender| !disordered.contains(&(sender, user)));
        assert_eq!(late, 0, "user {user} got messages of a sender out of their order");
    }
    // A crash may cost the last positions of a device, so one visit may give what another has given before.
    let mut visited: HashMap<u64, HashSet<(u64, u64)>> = HashMap::new();
    for (user, visit) in visits {
        visited.entry(user).or_default().extend(runtime.block_on(visit).expect("it is over"));
    }
    for user in VISITORS {
        let mut got = visited.remove(&user).unwrap_or_default();
        got.extend(runtime.block_on(take(config(&addrs, user), |taken| taken.caught_up && taken.quiet)));
        assert_has_all(user, &got, each, &books);
    }
    eprintln!(
        "{total} messages answered for under {} kills: all there, none twice; {} were refused and sent again",
        extent.kills,
        books.refused.load(Ordering::Relaxed)
    );
    world.finish();
}

#[test]
#[ignore = "minutes: make soak-kill"]
fn what_was_answered_for_comes_once_however_often_the_gateway_is_killed() {
    soak(Alone::start(), &Extent::new(1_000_000, 200));
}

#[test]
#[ignore = "minutes: make soak-kill-cluster"]
fn what_was_answered_for_comes_once_however_often_nodes_and_masters_are_killed() {
    soak(Nodes::start(), &Extent::new(100_000, 40));
}
