//! What each script and each method of the plane guarantees, on a real cluster that is well. The tests share it, and
//! keep apart by their names and user ids.

use crate::support::plane::{record, wait_for};
use crate::support::redis_cluster::RedisCluster;
use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use trunkline_router::membership::{Membership, NodeRecord, NodeState};
use trunkline_router::redis::{
    ACCOUNT_IDS, AccountError, AcquireError, NAMES_MAX, Plane, PresenceEntry, PresenceWrite, RedisConfig, Renewal,
    WriteBehind, WriteOutcome, live, queue, write_behind,
};

const LEASE_MS: u64 = 5_000;

fn cluster() -> &'static RedisCluster {
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    CLUSTER.get_or_init(RedisCluster::start)
}

/// Runs a test on several threads, as the stateless router may, with a connection of its own.
fn with_plane<F: Future<Output = ()>>(test: impl FnOnce(Plane) -> F) {
    with_plane_of(cluster(), test);
}

/// The same for a test that needs a cluster of its own. However busy the machine is, its Redis is not taken for silent.
fn with_plane_of<F: Future<Output = ()>>(cluster: &RedisCluster, test: impl FnOnce(Plane) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let config = RedisConfig::parse(&cluster.url()).unwrap();
        let config = RedisConfig { command_timeout: Duration::from_secs(60), ..config };
        let plane = Plane::connect(&config).await.unwrap();
        test(plane.clone()).await;
        plane.close().await;
    });
}

fn entry(session: u64, version: u64) -> PresenceEntry {
    PresenceEntry {
        device: "default".into(),
        node: "a".into(),
        incarnation: 7,
        shard: 3,
        session,
        since_ms: 1_700_000_000_000,
        class: "phone".into(),
        version,
    }
}

fn login(user: u64, entry: &PresenceEntry) -> PresenceWrite {
    PresenceWrite::Login { user, entry: entry.clone() }
}

fn fenced(write: PresenceWrite) -> PresenceWrite {
    match write {
        PresenceWrite::Logout { user, device, node, incarnation, session, version, .. } => {
            PresenceWrite::Logout { user, device, node, incarnation, session, version, fence: true }
        }
        login => login,
    }
}

async fn write(plane: &Plane, write: PresenceWrite) -> WriteOutcome {
    plane.write(&[write]).await.remove(0).unwrap()
}

#[test]
fn of_many_who_want_a_name_one_gets_it() {
    with_plane(|plane| async move {
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let plane = plane.clone();
                tokio::spawn(async move { plane.acquire(&record("race"), LEASE_MS).await })
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => granted += 1,
                Err(AcquireError::NameTaken { advertise, mesh, ttl_ms_left }) => {
                    assert_eq!((advertise.as_str(), mesh.as_str()), ("203.0.113.7:7700", "127.0.0.1:7790"));
                    assert!((1..=LEASE_MS).contains(&ttl_ms_left));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(granted, 1);
    });
}

#[test]
fn a_taken_name_is_refused_with_what_to_do() {
    with_plane(|plane| async move {
        plane.acquire(&record("taken"), LEASE_MS).await.unwrap();
        let text = plane.acquire(&record("taken"), LEASE_MS).await.unwrap_err().to_string();
        assert!(text.contains("203.0.113.7:7700") && text.contains("--node"), "{text}");
    });
}

#[test]
fn a_lease_that_ran_out_is_not_revived_and_the_next_incarnation_is_higher() {
    with_plane(|plane| async move {
        let first = plane.acquire(&record("expiring"), 100).await.unwrap();
        let held = NodeRecord { incarnation: first, ..record("expiring") };
        assert_eq!(plane.renew(&held, 100).await, Ok(Renewal::Renewed));
        wait_for("the lease runs out", || async {
            !plane.poll().await.unwrap().iter().any(|node| node.name == "expiring")
        })
        .await;
        assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::LostToNobody));
        let second = plane.acquire(&record("expiring"), LEASE_MS).await.unwrap();
        assert!(second > first);
        assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::LostToAnother));
        assert_eq!(plane.release("expiring", first).await, Ok(false), "another's lease is not released");
        assert_eq!(plane.release("expiring", second).await, Ok(true));
        assert!(plane.acquire(&record("expiring"), LEASE_MS).await.unwrap() > second);
    });
}

#[test]
fn a_poll_gives_what_was_last_renewed_and_skips_garbage() {
    with_plane(|plane| async move {
        let incarnation = plane.acquire(&record("polled: ünï cödé"), LEASE_MS).await.unwrap();
        let now = NodeRecord { incarnation, users: 42, state: NodeState::Draining, ..record("polled: ünï cödé") };
        assert_eq!(plane.renew(&now, LEASE_MS).await, Ok(Renewal::Renewed));
        plane.acquire(&record("garbage"), LEASE_MS).await.unwrap();
        let key = "tl:node:{garbage}";
        let cluster = cluster();
        cluster.ask(cluster.master_of_slot(cluster.slot_of(key)), &["SET", key, "nonsense"]).unwrap();
        let polled = plane.poll().await.unwrap();
        assert_eq!(polled.iter().find(|node| node.name == now.name), Some(&now));
        assert!(!polled.iter().any(|node| node.name == "garbage"));
        assert!(plane.metrics().snapshot().garbage > 0);
        let mut membership = Membership::new(None, LEASE_MS);
        assert!(membership.polled(0, polled));
        assert!(membership.view().member(&now.name).is_some());
    });
}

#[test]
fn a_node_that_takes_its_lease_anew_is_never_seen_without_one() {
    with_plane(|plane| async move {
        let first = plane.acquire(&record("mended"), LEASE_MS).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let rivals: Vec<_> = (0..4)
            .map(|_| {
                let (plane, done) = (plane.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut polls = 0;
                    while !done.load(Ordering::Relaxed) {
                        let rival = plane.acquire(&record("mended"), LEASE_MS).await;
                        assert!(matches!(rival, Err(AcquireError::NameTaken { .. })), "{rival:?}");
                        let polled = plane.poll().await.unwrap();
                        assert!(polled.iter().any(|node| node.name == "mended"), "a poll found a gap");
                        polls += 1;
                    }
                    polls
                })
            })
            .collect();
        let mut held = NodeRecord { incarnation: first, ..record("mended") };
        for _ in 0..300 {
            let next = plane.acquire(&held, LEASE_MS).await.unwrap();
            assert!(next > held.incarnation);
            assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::LostToAnother), "of before");
            held.incarnation = next;
        }
        done.store(true, Ordering::Relaxed);
        for rival in rivals {
            assert!(rival.await.unwrap() > 0);
        }
        let stranger = NodeRecord { incarnation: first, ..record("mended") };
        assert!(matches!(plane.acquire(&stranger, LEASE_MS).await, Err(AcquireError::NameTaken { .. })));
        assert_eq!(plane.release("mended", held.incarnation).await, Ok(true));
    });
}

/// Redis was restored from nothing, and its clock is right again; before, it was a day ahead.
#[test]
fn an_incarnation_grows_although_the_clock_of_redis_was_ahead() {
    with_plane(|plane| async move {
        let now = plane.acquire(&record("skewed"), LEASE_MS).await.unwrap();
        plane.release("skewed", now).await.unwrap();
        ask_key(&["DEL", "tl:incarnation:{skewed}"]);
        let ahead = now + 86_400_000;
        let next = plane.acquire(&NodeRecord { incarnation: ahead, ..record("skewed") }, LEASE_MS).await;
        assert_eq!(next, Ok(ahead + 1));
    });
}

#[test]
fn names_whose_lease_has_ended_leave_the_list_and_none_that_lives_is_crowded_out() {
    // The list is one for all, and this test fills it.
    let cluster = &RedisCluster::start();
    with_plane_of(cluster, |plane| async move {
        let master = cluster.master_of_slot(cluster.slot_of("tl:nodes"));
        let time = cluster.ask(master, &["TIME"]).unwrap();
        let now_ms = time.lines().next().unwrap().parse::<u64>().unwrap() * 1_000;
        for (name, ended_ms) in
            [("forgotten", now_ms - 90_000), ("absent", now_ms - 30_000), ("ahead", now_ms + 90_000_000)]
        {
            cluster.ask(master, &["ZADD", "tl:nodes", &ended_ms.to_string(), name]).unwrap();
        }
        // Whoever was here within the day is remembered, apart from what polls ask for.
        for (name, ended_ms) in [("yesterday", now_ms - 90_000_000), ("today", now_ms - 80_000_000)] {
            cluster.ask(master, &["ZADD", "tl:past:{tl:nodes}", &ended_ms.to_string(), name]).unwrap();
        }
        let held = record("registering");
        let held = NodeRecord { incarnation: plane.acquire(&held, LEASE_MS).await.unwrap(), ..held };
        let names = || cluster.ask(master, &["ZRANGE", "tl:nodes", "0", "-1"]).unwrap();
        let listed = names();
        let listed: Vec<&str> = listed.lines().collect();
        assert!(!listed.contains(&"forgotten") && listed.contains(&"registering"), "{listed:?}");
        assert!(listed.contains(&"absent") && listed.contains(&"ahead"), "{listed:?}");
        let score = cluster.ask(master, &["ZSCORE", "tl:nodes", "ahead"]).unwrap().parse::<u64>().unwrap();
        assert!(score < now_ms + 60_000, "a time beyond any lease becomes one of now");
        let past: Vec<(String, String)> = plane.listed().await.unwrap();
        let past = |name: &str| past.iter().find(|(listed, _)| listed == name).map(|(_, mesh)| mesh.clone());
        assert_eq!((past("today"), past("yesterday")), (Some(String::new()), None));
        assert_eq!(past("registering"), Some(held.mesh.clone()));

        // More names than there is room for, all of leases that end before those of who lives.
        for batch in (0..3 * NAMES_MAX).collect::<Vec<_>>().chunks(1_000) {
            let mut command = vec!["ZADD".to_owned(), "tl:nodes".to_owned()];
            command.extend(batch.iter().flat_map(|at| [(now_ms - 1_000).to_string(), format!("crowd-{at}")]));
            cluster.ask(master, &command.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        assert!(plane.poll().await.unwrap().iter().any(|node| node.name == "registering"), "read before all others");
        assert_eq!(plane.renew(&held, LEASE_MS).await, Ok(Renewal::Renewed));
        assert_eq!(names().lines().count(), NAMES_MAX);
        assert!(plane.poll().await.unwrap().iter().any(|node| node.name == "registering"));
        let metrics = plane.metrics().snapshot();
        assert_eq!(metrics.names, NAMES_MAX as u64);
        assert!(metrics.names_dropped >= 2 * NAMES_MAX as u64, "{metrics:?}");
        cluster.ask(master, &["ZREMRANGEBYSCORE", "tl:nodes", "-inf", &(now_ms - 500).to_string()]).unwrap();
    });
}

#[test]
fn epochs_are_agreed_on_and_never_fall() {
    with_plane(|plane| async move {
        let first = plane.epoch(0xa, 5).await.unwrap();
        assert!(first >= 6);
        assert_eq!(plane.epoch(0xa, 0).await, Ok(first));
        assert_eq!(plane.epoch(0xa, first + 10).await, Ok(first + 10), "never below the caller's own");
        assert_eq!(plane.epoch(0xa, 1).await, Ok(first + 10));
        assert_eq!(plane.epoch(0xb, 1).await, Ok(first + 11));
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let plane = plane.clone();
                tokio::spawn(async move { plane.epoch(0xc, 0).await.unwrap() })
            })
            .collect();
        let mut epochs = HashSet::new();
        for task in tasks {
            epochs.insert(task.await.unwrap());
        }
        assert_eq!(epochs, HashSet::from([first + 12]));
    });
}

#[test]
fn a_login_is_read_back_as_it_was_written() {
    with_plane(|plane| async move {
        let exact =
            PresenceEntry { session: u64::MAX, version: u64::MAX - 1, incarnation: (1 << 53) + 1, ..entry(0, 0) };
        assert_eq!(write(&plane, login(u64::MAX, &exact)).await, WriteOutcome::Written);
        assert_eq!(plane.user(u64::MAX).await, Ok(vec![exact]));
        let cluster = cluster();
        let key = format!("tl:user:{{{}}}", u64::MAX);
        let ttl_s = cluster.ask(cluster.master_of_slot(cluster.slot_of(&key)), &["TTL", &key]).unwrap();
        assert!((86_000..=86_400).contains(&ttl_s.parse::<u64>().unwrap()), "{ttl_s}");
    });
}

#[test]
fn in_whatever_order_logins_come_the_highest_version_stays() {
    with_plane(|plane| async move {
        // Versions that doubles cannot tell apart.
        let base = 1_u64 << 60;
        let writes: Vec<PresenceWrite> = (0..200).map(|i| login(1_000, &entry(i, base + (i * 7) % 200))).collect();
        let tasks: Vec<_> = writes
            .chunks(10)
            .map(|chunk| {
                let (plane, chunk) = (plane.clone(), chunk.to_vec());
                tokio::spawn(async move { plane.write(&chunk).await })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap().into_iter().all(|result| result.is_ok()));
        }
        let stored = plane.user(1_000).await.unwrap();
        assert_eq!(stored.iter().map(|entry| entry.version).collect::<Vec<_>>(), [base + 199]);
    });
}

#[test]
fn a_login_loses_against_a_higher_version_and_learns_it() {
    with_plane(|plane| async move {
        assert_eq!(write(&plane, login(1_001, &entry(2, 20))).await, WriteOutcome::Written);
        assert_eq!(write(&plane, login(1_001, &entry(1, 19))).await, WriteOutcome::Stale { version: 20 });
        assert_eq!(write(&plane, login(1_001, &entry(3, 20))).await, WriteOutcome::Stale { version: 20 });
        assert_eq!(write(&plane, login(1_001, &entry(2, 20))).await, WriteOutcome::Written, "itself again");
        let reborn = PresenceEntry { incarnation: 8, ..entry(2, 20) };
        assert_eq!(write(&plane, login(1_001, &reborn)).await, WriteOutcome::Written, "under a new incarnation");
        assert_eq!(write(&plane, login(1_001, &entry(2, 20))).await, WriteOutcome::Stale { version: 20 });
        assert_eq!(plane.user(1_001).await, Ok(vec![reborn]));
    });
}

#[test]
fn a_late_logout_never_removes_a_newer_login() {
    with_plane(|plane| async move {
        let (old, new) = (entry(1, 1), entry(2, 2));
        assert_eq!(write(&plane, login(1_002, &old)).await, WriteOutcome::Written);
        assert_eq!(write(&plane, login(1_002, &new)).await, WriteOutcome::Written);
        assert_eq!(write(&plane, PresenceWrite::logout_of(1_002, &old)).await, WriteOutcome::Absent);
        assert_eq!(write(&plane, fenced(PresenceWrite::logout_of(1_002, &old))).await, WriteOutcome::Absent);
        let others = [
            PresenceEntry { incarnation: 8, ..new.clone() },
            PresenceEntry { node: "b".into(), ..new.clone() },
            PresenceEntry { session: 3, ..new.clone() },
        ];
        for other in &others {
            assert_eq!(write(&plane, PresenceWrite::logout_of(1_002, other)).await, WriteOutcome::Absent);
        }
        assert_eq!(plane.user(1_002).await, Ok(vec![new.clone()]));
        assert_eq!(write(&plane, PresenceWrite::logout_of(1_002, &new)).await, WriteOutcome::Written);
        assert_eq!(write(&plane, PresenceWrite::logout_of(1_002, &new)).await, WriteOutcome::Absent, "again");
        assert_eq!(plane.user(1_002).await, Ok(vec![]));
    });
}

#[test]
fn a_fenced_logout_keeps_its_own_late_login_out_but_no_newer_one() {
    with_plane(|plane| async move {
        let session = entry(5, 50);
        assert_eq!(write(&plane, fenced(PresenceWrite::logout_of(1_003, &session))).await, WriteOutcome::Absent);
        assert_eq!(write(&plane, login(1_003, &session)).await, WriteOutcome::Stale { version: 50 });
        assert_eq!(plane.user(1_003).await, Ok(vec![]), "a mark is no session");
        assert_eq!(write(&plane, login(1_003, &entry(6, 51))).await, WriteOutcome::Written);
        assert_eq!(plane.user(1_003).await, Ok(vec![entry(6, 51)]));
    });
}

#[test]
fn devices_are_kept_apart_and_entries_count_while_their_incarnation_lives() {
    with_plane(|plane| async move {
        let tablet = PresenceEntry { device: "tablet".into(), node: "b".into(), ..entry(9, 9) };
        write(&plane, login(1_004, &entry(8, 8))).await;
        write(&plane, login(1_004, &tablet)).await;
        let entries = plane.user(1_004).await.unwrap();
        assert_eq!(entries.len(), 2);
        let mut membership = Membership::new(None, LEASE_MS);
        let nodes = vec![NodeRecord { incarnation: 7, ..record("a") }, NodeRecord { incarnation: 8, ..record("b") }];
        membership.polled(0, nodes);
        assert_eq!(live(entries, &membership.view()), [entry(8, 8)], "b has another incarnation");
    });
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    with_plane(|plane| async move {
        let bad = [
            PresenceEntry { device: "".into(), ..entry(1, 1) },
            PresenceEntry { device: "x".repeat(65).into(), ..entry(1, 1) },
            PresenceEntry { class: "a\tb".into(), ..entry(1, 1) },
            PresenceEntry { node: "{a}".into(), ..entry(1, 1) },
        ];
        for entry in &bad {
            assert!(plane.write(&[login(1_005, entry)]).await[0].is_err(), "{entry:?}");
        }
        assert!(plane.acquire(&record("br{ace"), LEASE_MS).await.unwrap_err().to_string().contains("brace"));
    });
}

#[test]
fn of_many_who_want_an_account_name_one_gets_it() {
    with_plane(|plane| async move {
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let plane = plane.clone();
                tokio::spawn(async move { plane.create_account("}{ alice").await })
            })
            .collect();
        let (mut made, mut taken) = (Vec::new(), HashSet::new());
        for task in tasks {
            match task.await.unwrap() {
                Ok(user) => made.push(user),
                Err(AccountError::NameTaken { user }) => {
                    taken.insert(user);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(made.len(), 1);
        assert!(ACCOUNT_IDS.contains(&made[0]));
        assert_eq!(taken, HashSet::from([made[0]]));
        assert_eq!(plane.account("}{ alice").await, Ok(Some(made[0])));
        assert_ne!(plane.create_account("bob").await.unwrap(), made[0]);
        assert_eq!(plane.account("nobody").await, Ok(None));
        for name in ["", "a\nb", &"x".repeat(65)] {
            assert_eq!(plane.create_account(name).await, Err(AccountError::BadName));
        }
    });
}

/// The key under which the name of an account stands, by its user id.
fn ask_key(command: &[&str]) -> String {
    let cluster = cluster();
    cluster.ask(cluster.master_of_slot(cluster.slot_of(command[1])), command).unwrap()
}

#[test]
fn a_user_id_is_of_one_account_and_stays_so_when_the_account_is_gone() {
    with_plane(|plane| async move {
        let user = plane.create_account("ids: one").await.unwrap();
        assert!(ACCOUNT_IDS.contains(&user), "{user}");
        let key = format!("tl:account-name:{{{user}}}");
        assert_eq!(ask_key(&["GET", &key]), "ids: one");
        assert_eq!(plane.create_account("ids: one").await, Err(AccountError::NameTaken { user }));
        assert_eq!(plane.remove_account("ids: one").await, Ok(Some(user)));
        assert_eq!(ask_key(&["EXISTS", &key]), "0");
        assert_eq!((plane.account("ids: one").await, plane.remove_account("ids: one").await), (Ok(None), Ok(None)));
        assert_ne!(plane.create_account("ids: one").await.unwrap(), user);
        assert_eq!(plane.remove_account("a\nb").await, Err(AccountError::BadName));
    });
}

#[test]
fn removing_an_account_touches_no_other() {
    with_plane(|plane| async move {
        // Two names that claim one id: what an account of an earlier version beside a lost key looks like.
        let user = plane.create_account("mine").await.unwrap().to_string();
        ask_key(&["SET", "tl:account:{theirs}", &user]);
        assert_eq!(plane.remove_account("theirs").await.unwrap().unwrap().to_string(), user);
        assert_eq!(ask_key(&["GET", &format!("tl:account-name:{{{user}}}")]), "mine");
        assert_eq!(plane.account("mine").await.unwrap().unwrap().to_string(), user);
    });
}

#[test]
fn the_write_behind_writes_each_once_and_tells_of_those_that_lost() {
    with_plane(|plane| async move {
        write(&plane, login(30_000, &entry(1, 1_000))).await;
        let queue = Arc::new(WriteBehind::new(queue::ENTRIES_MAX, queue::BYTES_MAX, Arc::clone(plane.metrics())));
        for user in 20_000..25_000 {
            assert!(queue.push(login(user, &entry(1, 1))));
        }
        assert!(queue.push(login(30_000, &entry(2, 999))));
        assert!(!queue.push(login(1, &PresenceEntry { device: "".into(), ..entry(1, 1) })));
        assert!(!queue.overflowed(), "a bad text is no overflow");
        queue.close();
        let mut lost = Vec::new();
        write_behind::run(plane.clone(), Arc::clone(&queue), |write, version| lost.push((write.user(), version))).await;
        assert_eq!(lost, [(30_000, 1_000)]);
        let now = plane.metrics().snapshot();
        assert_eq!(
            (now.queued, now.queued_bytes, now.written, now.stale, now.failed, now.refused),
            (0, 0, 5_001, 1, 0, 1)
        );
        for user in (20_000..25_000).step_by(97) {
            assert_eq!(plane.user(user).await.unwrap(), [entry(1, 1)]);
        }
        assert!(cluster().calls_of("keys") + cluster().calls_of("scan") + cluster().calls_of("hscan") == 0);
        assert!(cluster().commands_processed() > 5_000);
    });
}
