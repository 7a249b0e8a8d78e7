//! A Redis that has no memory, loses keys, or is asked by somebody whose clock or configuration is another one.

use super::redis_cluster::RedisCluster;
use super::{BEGIN_MS, Running, cluster, limits, record, settings, wait_until};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use trunkline_redis_store::{GroupBounds, Settings, Tool};
use trunkline_store::{Inbox, Limits, Opened, Page, Refusal, Reply, Request, stamp_at};

fn server_of(redis: &RedisCluster, user: u64) -> usize {
    redis.master_of_slot(redis.slot_of(&format!("tl:inbox:{{{user}}}")))
}

fn open(running: &Running, user: u64) -> Opened {
    let open = Request::Open { user, device: "phone".into(), ephemeral: false, claims: true, token: 1 };
    match running.ask(0, open) {
        Reply::Opened(opened) => opened,
        other => panic!("{other:?}"),
    }
}

fn inspect(running: &Running, user: u64) -> Inbox {
    match running.ask(0, Request::Inspect { user, claims: true, token: 1 }) {
        Reply::Inspected(inbox) => inbox,
        other => panic!("{other:?}"),
    }
}

fn page(running: &Running, user: u64, after: u64) -> Page {
    let read =
        Request::Read { user, device: 0, device_epoch: 0, after, since_ms: 0, limit: 20, bytes_max: 9_999, token: 1 };
    match running.ask(0, read) {
        Reply::Page(page) => page,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_redis_without_memory_gives_out_what_it_has_and_lets_it_go_when_it_is_acknowledged() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let user = 7_100;
    let server = server_of(&redis, user);
    let phone = open(&running, user);
    for id in 1..=10 {
        assert!(matches!(running.append(0, user, id, false), Reply::Stored { .. }));
    }
    redis.ask(server, &["CONFIG", "SET", "maxmemory", "1000000"]).unwrap();
    assert_eq!(running.append(0, user, 11, false), Reply::Refused(Refusal::StoreFull));
    assert!(!running.stats().is_available() && running.stats().trouble().is_some());
    assert!(matches!(running.append(0, user, 10, true), Reply::Stored { duplicate: true, .. }));
    let opened = open(&running, user);
    assert_eq!((opened.known, opened.pending, opened.unsure_claim), (true, 10, false));
    assert_eq!(page(&running, user, 0).records.len(), 10);
    let (device, device_epoch) = (phone.device, phone.device_epoch);
    running.send(0, Request::Cursor { user, device, device_epoch, stamp: opened.last });
    assert_eq!(inspect(&running, user).messages, 0);
    redis.ask(server, &["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    wait_until("the store is well again", || running.stats().is_available());
    assert!(matches!(running.append(0, user, 11, true), Reply::Stored { duplicate: false, .. }));
    assert!(running.store.unwrap().stop());
}

#[test]
fn a_key_that_somebody_deletes_is_told_of_and_is_in_nobodys_way() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let user = 7_200;
    let server = server_of(&redis, user);
    let (stream, hash) = (format!("tl:inbox:{{{user}}}"), format!("tl:inbox:{{{user}}}:m"));
    for id in 1..=3 {
        assert!(matches!(running.append(0, user, id, false), Reply::Stored { .. }));
    }
    let before = inspect(&running, user);
    redis.ask(server, &["DEL", &hash]).unwrap();
    assert_eq!(inspect(&running, user), before);
    let phone = open(&running, user);
    assert_eq!((phone.pending, phone.last), (3, before.last));
    assert!(matches!(running.append(0, user, 4, false), Reply::Stored { .. }));
    let after = inspect(&running, user);
    assert_eq!((after.messages, after.bytes), (4, before.bytes / 3 * 4));
    // The messages are gone, and what comes next does not hide that.
    redis.ask(server, &["DEL", &stream]).unwrap();
    assert!(matches!(running.append(0, user, 5, false), Reply::Stored { .. }));
    let opened = open(&running, user);
    assert_eq!((opened.known, opened.pending, opened.floor), (true, 1, after.last));
    assert!(opened.cursor < opened.floor);
    let page = page(&running, user, opened.cursor);
    assert_eq!((page.truncated, page.records.len()), (true, 1));
    assert!(running.store.unwrap().stop());
}

#[test]
fn nobody_lets_messages_go_because_of_another_clock_or_configuration() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let (clock, user) = (Arc::new(AtomicU64::new(now_ms)), 7_300);
    let by_redis = |limits: Limits, clock: &Arc<AtomicU64>| {
        let of_run = settings(&redis, limits, None, clock);
        Settings { time: None, ..of_run }
    };
    let running = Running::start_with(by_redis(Limits::default(), &clock), clock.clone());
    open(&running, user);
    let message = record(stamp_at(now_ms), 1, 10);
    let append = Request::Append { user, record: message, retry: None, token: 1 };
    assert!(matches!(running.ask(0, append), Reply::Stored { .. }));
    // A year later, as this gateway believes.
    clock.fetch_add(365 * 24 * 3_600_000, Ordering::Relaxed);
    let has_all = |what: &str| {
        let opened = open(&running, user);
        assert_eq!((opened.known, opened.pending), (true, 1), "{what}");
    };
    has_all("a clock that is ahead");
    let server = server_of(&redis, user);
    let ttl_ms = || -> u64 {
        let ttl = redis.ask(server, &["PTTL", &format!("tl:inbox:{{{user}}}")]).unwrap();
        ttl.trim().parse().unwrap()
    };
    let before_ms = ttl_ms();
    let short = Limits { message_age_ms_max: 1, device_unseen_ms_max: 1, ..Limits::default() };
    let groups = GroupBounds { age_ms_max: 1, ..GroupBounds::default() };
    let of_tool = Settings { groups, ..by_redis(short, &Arc::new(AtomicU64::new(BEGIN_MS))) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tool = Tool::connect(of_tool).await.unwrap();
        let copy = tool.state(user).await.unwrap();
        assert_eq!((copy.devices.len(), tool.page(user, 0).await.unwrap().records.len()), (1, 1));
    });
    has_all("a tool that is told other ages");
    let minute_ms = 60_000;
    assert!(ttl_ms() + minute_ms > before_ms, "it ends no sooner");
    assert!(running.store.unwrap().stop());
}
