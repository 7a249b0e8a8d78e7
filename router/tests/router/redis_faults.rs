//! A Redis Cluster that breaks: nothing accepted is lost in silence, and what comes back is used again.
//!
//! The tests take turns on one cluster, since each breaks all of it.

use crate::support::plane::{record, wait_for};
use crate::support::redis_cluster::RedisCluster;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use trunkline_router::membership::NodeRecord;
use trunkline_router::redis::{
    AccountError, Plane, PresenceEntry, PresenceWrite, RedisConfig, Renewal, WriteBehind, queue, write_behind,
};

const LEASE_MS: u64 = 5_000;

fn cluster() -> MutexGuard<'static, RedisCluster> {
    static CLUSTER: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| Mutex::new(RedisCluster::start())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test as the gateway's control thread would.
fn with_plane(cluster: &RedisCluster, test: impl AsyncFnOnce(Plane)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plane = Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap()).await.unwrap();
        test(plane.clone()).await;
        plane.close().await;
    });
}

fn login(user: u64) -> PresenceWrite {
    let entry = PresenceEntry {
        device: "default".into(),
        node: "n".into(),
        incarnation: 7,
        shard: 3,
        session: user,
        since_ms: 1_700_000_000_000,
        class: "".into(),
        version: 1,
    };
    PresenceWrite::Login { user, entry }
}

async fn assert_online(plane: &Plane, users: impl Iterator<Item = u64>) {
    for user in users {
        let entries = plane.user(user).await.unwrap();
        assert_eq!(entries.len(), 1, "user {user}");
    }
}

fn draining(plane: &Plane) -> (Arc<WriteBehind>, tokio::task::JoinHandle<()>) {
    let queue = Arc::new(WriteBehind::new(queue::ENTRIES_MAX, queue::BYTES_MAX, Arc::clone(plane.metrics())));
    let task = tokio::spawn(write_behind::run(plane.clone(), Arc::clone(&queue), |_, _| {}));
    (queue, task)
}

#[test]
fn incarnations_grow_although_redis_lost_its_data() {
    let cluster = cluster();
    with_plane(&cluster, async |plane| {
        let first = plane.acquire(&record("grows"), LEASE_MS).await.unwrap();
        cluster.flush_all();
        let held = NodeRecord { incarnation: first, ..record("grows") };
        assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::LostToNobody));
        assert_eq!(plane.poll().await, Ok(vec![]));
        let second = plane.acquire(&record("grows"), LEASE_MS).await.unwrap();
        assert!(second > first);
        assert_eq!(plane.poll().await.unwrap()[0].incarnation, second);
        plane.release("grows", second).await.unwrap();
    });
}

#[test]
fn scripts_that_a_server_has_forgotten_are_sent_again() {
    let cluster = cluster();
    with_plane(&cluster, async |plane| {
        (0..crate::support::redis_cluster::SERVERS)
            .for_each(|index| drop(cluster.ask(index, &["SCRIPT", "FLUSH", "SYNC"])));
        let writes: Vec<PresenceWrite> = (1..100).map(login).collect();
        assert!(plane.write(&writes).await.iter().all(Result::is_ok));
        assert_online(&plane, 1..100).await;
    });
}

#[test]
fn a_master_that_dies_under_writes_loses_none() {
    let mut cluster = cluster();
    cluster.wait_replicated();
    let victim = cluster.master_of_slot(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plane = Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap()).await.unwrap();
        let (queue, task) = draining(&plane);
        let mut users = 10_000..40_000_u64;
        for user in users.by_ref().take(10_000) {
            assert!(queue.push(login(user)));
        }
        wait_for("some are written", || async { plane.metrics().snapshot().written > 1_000 }).await;
        cluster.kill(victim);
        for user in users {
            assert!(queue.push(login(user)));
            if user % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        wait_for("all are written", || async { queue.is_empty() }).await;
        queue.close();
        task.await.unwrap();
        let now = plane.metrics().snapshot();
        assert_eq!((now.written, now.queued, now.refused, now.stale), (30_000, 0, 0, 0));
        assert!(now.failed > 0, "the master was not missed");
        assert_ne!(cluster.master_of_slot(0), victim);
        assert_online(&plane, 10_000..40_000).await;
        plane.close().await;
    });
    cluster.restart(victim);
    cluster.wait_ok();
    cluster.wait_replicated();
}

/// Accounts of some names, by their user ids; each name is asked for until Redis, which may be failing over, takes it.
async fn make_accounts(plane: &Plane, prefix: &str, count: u32) -> BTreeMap<u64, String> {
    let mut made = BTreeMap::new();
    for number in 0..count {
        let name = format!("{prefix}{number}");
        let user = loop {
            match plane.create_account(&name).await {
                Ok(user) | Err(AccountError::NameTaken { user }) => break user,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        assert_eq!(made.insert(user, name), None, "user {user} is given twice");
    }
    made
}

/// The replica that takes over has never heard of the last accounts; later all of Redis is emptied.
#[test]
fn no_user_id_is_given_twice_whatever_redis_loses() {
    let mut cluster = cluster();
    cluster.wait_replicated();
    let victim = cluster.master_of_slot(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plane = Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap()).await.unwrap();
        let replicas: Vec<usize> = (0..crate::support::redis_cluster::SERVERS)
            .filter(|&index| cluster.ask(index, &["ROLE"]).unwrap().starts_with("slave"))
            .collect();
        replicas.iter().for_each(|&index| cluster.pause(index));
        // What the kernel holds for a replica that sleeps would be read when it wakes.
        cluster.ask(victim, &["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
        let acknowledged = make_accounts(&plane, "before", 60).await;
        cluster.kill(victim);
        replicas.iter().for_each(|&index| cluster.resume(index));
        wait_for("the replica is promoted", || async { cluster.master_of_slot_after(victim, 0) }).await;
        let (mut kept, mut lost) = (0, 0);
        for (user, name) in &acknowledged {
            let holder = loop {
                match plane.account(name).await {
                    Ok(holder) => break holder,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            match holder {
                Some(holder) => {
                    assert_eq!(holder, *user, "{name}");
                    kept += 1;
                }
                None => lost += 1,
            }
        }
        assert!(kept > 0 && lost > 0, "the failover lost {lost} of {} accounts", kept + lost);
        let after = make_accounts(&plane, "after", 60).await;
        assert!(after.keys().all(|user| !acknowledged.contains_key(user)));
        // The names that were lost are free, and get ids that nobody has had.
        let again = make_accounts(&plane, "before", 60).await;
        let new = again.iter().filter(|(user, _)| !acknowledged.contains_key(user)).count();
        assert_eq!(new, lost);
        cluster.flush_all();
        let empty = make_accounts(&plane, "before", 60).await;
        assert!(empty.keys().all(|user| ![&acknowledged, &after, &again].iter().any(|known| known.contains_key(user))));
        plane.close().await;
    });
    cluster.restart(victim);
    cluster.wait_ok();
    cluster.wait_replicated();
}

#[test]
fn all_of_redis_stopped_and_back_empty() {
    let mut cluster = cluster();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plane = Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap()).await.unwrap();
        let first = plane.acquire(&record("n"), LEASE_MS).await.unwrap();
        let held = NodeRecord { incarnation: first, ..record("n") };
        let (queue, task) = draining(&plane);
        cluster.stop_all();
        for user in 1..=1_000 {
            assert!(queue.push(login(user)));
        }
        for _ in 0..2 {
            let began = tokio::time::Instant::now();
            assert!(plane.renew(&held, LEASE_MS).await.is_err());
            assert!(plane.poll().await.is_err());
            assert!(began.elapsed() < Duration::from_secs(4), "an outage is noticed in time: {:?}", began.elapsed());
        }
        assert_eq!(plane.metrics().snapshot().queued, 1_000);
        cluster.start_all_empty();
        wait_for("Redis is found again", || async { plane.poll().await.is_ok() }).await;
        assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::LostToNobody));
        assert!(plane.acquire(&record("n"), LEASE_MS).await.unwrap() > first);
        wait_for("what waited is written", || async { queue.is_empty() }).await;
        assert_online(&plane, 1..=1_000).await;
        assert_eq!(plane.poll().await.unwrap().len(), 1);
        queue.close();
        task.await.unwrap();
        plane.close().await;
    });
}

#[test]
fn a_paused_master_delays_and_loses_nothing() {
    let cluster = cluster();
    with_plane(&cluster, async |plane| {
        let (queue, task) = draining(&plane);
        let victim = cluster.master_of_slot(cluster.slot_of("tl:user:{50001}"));
        cluster.pause(victim);
        for user in 50_000..51_000 {
            assert!(queue.push(login(user)));
        }
        // Some masters work, so their part goes through; the rest waits for a failover or for this one.
        wait_for("a part is written", || async { plane.metrics().snapshot().written > 300 }).await;
        cluster.resume(victim);
        wait_for("the rest is written", || async { queue.is_empty() }).await;
        cluster.wait_ok();
        assert_online(&plane, 50_000..51_000).await;
        queue.close();
        task.await.unwrap();
    });
}

/// What breaks a master.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Connects are refused at once.
    Kill,
    /// Nothing is refused and nothing is answered, as when packets are dropped.
    Pause,
}

/// A user whose key is in a slot of that server.
fn user_on(cluster: &RedisCluster, server: usize) -> u64 {
    let on_it = |user: &u64| cluster.master_of_slot(cluster.slot_of(&format!("tl:user:{{{user}}}"))) == server;
    (900_000..).find(on_it).unwrap()
}

/// The longest time without a good answer, and the answers, of something asked ten times a second.
struct Gap {
    last_good: Instant,
    longest: Duration,
    good: u32,
}

impl Gap {
    fn new() -> Self {
        Gap { last_good: Instant::now(), longest: Duration::ZERO, good: 0 }
    }

    fn good(&mut self) {
        self.longest = self.longest.max(self.last_good.elapsed());
        self.last_good = Instant::now();
        self.good += 1;
    }
}

/// Reads one user again and again until told to end.
fn watch(plane: &Plane, user: u64) -> (Arc<Mutex<Gap>>, tokio::task::JoinHandle<()>) {
    let gap = Arc::new(Mutex::new(Gap::new()));
    let (plane, seen) = (plane.clone(), Arc::clone(&gap));
    let task = tokio::spawn(async move {
        loop {
            if plane.user(user).await.is_ok() {
                seen.lock().unwrap().good();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    (gap, task)
}

/// Breaks the master at `victim` under writes and renewals, and lets it come back.
fn break_master(cluster: &mut RedisCluster, victim: usize, fault: Fault, first_user: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // As many leases as masters at least, so that some are on the one that breaks.
    let names: Vec<String> = (0..8).map(|i| format!("steady-{first_user}-{i}")).collect();
    let masters: Vec<usize> = [0, 6_000, 12_000].map(|slot| cluster.master_of_slot(slot)).to_vec();
    let slot = [0, 6_000, 12_000][masters.iter().position(|&master| master == victim).unwrap()];
    let watched: Vec<u64> = masters.iter().map(|&master| user_on(cluster, master)).collect();
    let began = runtime.block_on(async {
        let plane = Plane::connect(&RedisConfig::parse(&cluster.url()).unwrap()).await.unwrap();
        let mut leases = Vec::new();
        for name in &names {
            let incarnation = plane.acquire(&record(name), LEASE_MS).await.unwrap();
            let held = NodeRecord { incarnation, ..record(name) };
            let plane = plane.clone();
            leases.push(tokio::spawn(async move {
                let mut ticks = tokio::time::interval(Duration::from_secs(1));
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                let mut gap = Gap::new();
                loop {
                    ticks.tick().await;
                    match plane.renew(&held, LEASE_MS).await {
                        Ok(Renewal::Renewed) => gap.good(),
                        Ok(lost) => panic!("{lost:?} after {:?}", gap.last_good.elapsed()),
                        Err(_) => ticks.reset_after(Duration::from_millis(100)),
                    }
                    assert!(gap.last_good.elapsed() < Duration::from_millis(LEASE_MS), "not renewed in time");
                }
            }));
        }
        let watches: Vec<_> = watched.iter().map(|&user| watch(&plane, user)).collect();
        let (queue, drain) = draining(&plane);
        // Leases and a first copy of everything are with the replicas.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        match fault {
            Fault::Kill => cluster.kill(victim),
            Fault::Pause => cluster.pause(victim),
        }
        let mut promoted = None;
        let mut users = first_user..first_user + 10_000;
        while began.elapsed() < Duration::from_secs(8) {
            for user in users.by_ref().take(50) {
                assert!(queue.push(login(user)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Asking is slow, and only the first answer counts.
            if promoted.is_none() && began.elapsed() > Duration::from_secs(1) {
                promoted = (cluster.master_of_slot_after(victim, slot)).then(|| began.elapsed());
            }
        }
        wait_for("all are written", || async { queue.is_empty() }).await;
        let promoted = promoted.expect("Redis fails over");
        for (gap, task) in &watches {
            task.abort();
            let gap = gap.lock().unwrap();
            println!(
                "{fault:?} of {victim}: promoted after {promoted:?}, {} answers, longest gap {:?}",
                gap.good, gap.longest
            );
            assert!(gap.longest < promoted + Duration::from_secs(3), "the longest gap: {:?}", gap.longest);
            assert!(gap.last_good.elapsed() < Duration::from_secs(2));
        }
        for lease in leases {
            assert!(!lease.is_finished(), "{:?}", lease.await);
            lease.abort();
        }
        let now = plane.metrics().snapshot();
        println!("{fault:?} of {victim}: {} written, {} failed attempts", now.written, now.failed);
        assert_eq!((now.written, now.queued, now.refused, now.stale), (10_000, 0, 0, 0));
        assert_online(&plane, first_user..first_user + 10_000).await;
        queue.close();
        drain.await.unwrap();
        plane.close().await;
        began
    });
    match fault {
        Fault::Kill => cluster.restart(victim),
        Fault::Pause => cluster.resume(victim),
    }
    assert!(began.elapsed() > Duration::from_secs(8));
    cluster.wait_ok();
    cluster.wait_replicated();
}

#[test]
fn no_lease_is_lost_and_no_write_while_a_master_is_killed_or_paused() {
    break_masters([(Fault::Kill, 0), (Fault::Pause, 6_000)]);
}

#[test]
#[ignore = "the same for each master takes a minute and a half"]
fn no_lease_is_lost_and_no_write_while_each_master_is_killed_or_paused_in_turn() {
    break_masters(
        [Fault::Kill, Fault::Pause].into_iter().flat_map(|fault| [0, 6_000, 12_000].map(|slot| (fault, slot))),
    );
}

/// Breaks the masters of some slots, one after the other.
fn break_masters(faults: impl IntoIterator<Item = (Fault, u32)>) {
    let mut cluster = cluster();
    for ((fault, slot), round) in faults.into_iter().zip(0..) {
        let victim = cluster.master_of_slot(slot);
        break_master(&mut cluster, victim, fault, 100_000 + 10_000 * round);
    }
}

/// Prints how many presence writes one thread gets through. Run it alone: `-- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn presence_writes_per_second() {
    let cluster = cluster();
    with_plane(&cluster, async |plane| {
        let (queue, task) = draining(&plane);
        for round in 0..3 {
            let began = Instant::now();
            for user in 0..50_000 {
                assert!(queue.push(login(1_000_000 + round * 50_000 + user)));
            }
            wait_for("all are written", || async { queue.is_empty() }).await;
            println!("{:.0} presence writes a second", 50_000.0 / began.elapsed().as_secs_f64());
        }
        queue.close();
        task.await.unwrap();
    });
}
