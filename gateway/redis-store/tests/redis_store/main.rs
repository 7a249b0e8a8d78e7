//! The store in a real Redis Cluster: it answers like the one in memory, and says what it cannot promise.

mod again;
mod groups;
mod imports;
mod losses;

#[path = "../../../../router/tests/router/support/redis_cluster.rs"]
mod redis_cluster;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use redis_cluster::{RedisCluster, wait_until};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use trunkline_redis_store::{RedisStore, Settings, StoreSync};
use trunkline_router::redis::RedisConfig;
use trunkline_store::{
    Answer, Clock, Limits, Memory, Opened, Record, Refusal, Reply, Request, Source, Store, StoreMail, WhenFull,
    stamp_at,
};

const BEGIN_MS: u64 = 1_760_000_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// One cluster for all tests, since each takes seconds to form; who kills servers has it alone.
fn cluster() -> &'static Mutex<RedisCluster> {
    static CLUSTER: OnceLock<Mutex<RedisCluster>> = OnceLock::new();
    CLUSTER.get_or_init(|| Mutex::new(RedisCluster::start()))
}

struct Running {
    store: Option<RedisStore>,
    mail: Arc<StoreMail>,
    answers: Receiver<(Source, Vec<Answer>)>,
    clock_ms: Arc<AtomicU64>,
}

fn limits() -> Limits {
    Limits {
        user_messages_max: 24,
        user_bytes_max: 8_000,
        payload_bytes_max: 2_000,
        retry_window: 8,
        page_max: 20,
        devices_per_user_max: 3,
        message_age_ms_max: 600_000,
        device_unseen_ms_max: 2 * 3_600_000,
        ..Limits::default()
    }
}

fn settings(redis: &RedisCluster, limits: Limits, sync: Option<StoreSync>, clock_ms: &Arc<AtomicU64>) -> Settings {
    let time = clock_ms.clone();
    let clock: Clock = Arc::new(move || time.load(Ordering::Relaxed));
    Settings {
        redis: RedisConfig::parse(&redis.url()).unwrap(),
        sync,
        limits,
        groups: groups::bounds(),
        time: Some(clock.clone()),
        clock,
    }
}

impl Running {
    fn start(redis: &RedisCluster, limits: Limits, sync: Option<StoreSync>) -> Self {
        let clock_ms = Arc::new(AtomicU64::new(BEGIN_MS));
        Running::start_with(settings(redis, limits, sync, &clock_ms), clock_ms)
    }

    fn start_with(settings: Settings, clock_ms: Arc<AtomicU64>) -> Self {
        let mail = StoreMail::new(StoreMail::BYTES_MAX);
        let (sender, answers) = channel();
        let give = move |source, batch| drop(sender.send((source, batch)));
        let store = RedisStore::start(settings, mail.clone(), give).unwrap();
        let running = Running { store: Some(store), mail, answers, clock_ms };
        wait_until("the store is connected", || running.stats().is_available());
        running
    }

    fn stats(&self) -> &Arc<trunkline_store::Stats> {
        self.store.as_ref().expect("it runs").stats()
    }

    fn send(&self, source: Source, request: Request) {
        self.mail.sender(source).try_send(request).unwrap();
    }

    fn ask(&self, source: Source, request: Request) -> Reply {
        self.send(source, request);
        let (of, mut answers) = self.answers.recv_timeout(PATIENCE).expect("an answer");
        assert_eq!((of, answers.len()), (source, 1));
        answers.remove(0).reply
    }

    fn append(&self, source: Source, user: u64, id: u64, retry: bool) -> Reply {
        let stamp = stamp_at(self.clock_ms.load(Ordering::Relaxed));
        self.ask(source, Request::Append { user, record: record(stamp, id, 10), retry: retry.then_some(0), token: id })
    }

    fn read(&self, user: u64) -> Vec<u64> {
        let read = Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after: 0,
            since_ms: 0,
            limit: 1_000,
            bytes_max: u32::MAX,
            token: 1,
        };
        match self.ask(0, read) {
            Reply::Page(page) => page.records.iter().map(|record| record.id).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn record(stamp: u64, id: u64, bytes: usize) -> Record {
    Record { stamp, from: 1 + id % 3, id, flags: 0, payload: Arc::from(vec![id as u8; bytes]) }
}

fn request(dice: &mut SmallRng, now_ms: u64, users: u64, stamps: &[u64]) -> Request {
    let user = users + dice.random_range(0..4_u64);
    let token = dice.random();
    let device = dice.random_range(1..5_u16);
    let stamp = match stamps.len() {
        0 => 0,
        len => stamps[len - 1 - dice.random_range(0..len.min(40))] + dice.random_range(0..3) - 1,
    };
    match dice.random_range(0..100) {
        0..55 => {
            let proposed = match dice.random_range(0..20) {
                0 => stamp,
                1 => 0,
                2 => stamp_at(now_ms + dice.random_range(0..50)),
                3 => stamp_at(now_ms + 30 * 3_600_000) + 5,
                _ => stamp_at(now_ms) + dice.random_range(0..1_000),
            };
            let bytes = if dice.random_range(0..30) == 0 { 2_100 } else { dice.random_range(0..600) };
            let record = record(proposed, dice.random_range(0..200), bytes);
            let retry = match dice.random_range(0..5) {
                0 => Some(0),
                1 => Some(stamp),
                _ => None,
            };
            Request::Append { user, record, retry, token }
        }
        55..67 => {
            let device = format!("device {}", dice.random_range(0..5)).into();
            Request::Open { user, device, ephemeral: dice.random_range(0..5) == 0, claims: dice.random(), token }
        }
        67..80 => Request::Read {
            user,
            device: if dice.random() { device } else { 0 },
            // Each store has its own.
            device_epoch: 0,
            after: if dice.random_range(0..3) == 0 { 0 } else { stamp },
            since_ms: if dice.random_range(0..4) == 0 { now_ms - dice.random_range(0..100_000) } else { 0 },
            limit: dice.random_range(0..30),
            bytes_max: 1 << dice.random_range(0..14),
            token,
        },
        80..91 => Request::Cursor { user, device, device_epoch: 0, stamp },
        91 => Request::Seen { user, device, device_epoch: 0 },
        92 => Request::Gap { user, stamp },
        93 => Request::Devices { user, token },
        94 => Request::Forget { user, device, device_epoch: 0, token },
        95 => {
            let device = format!("device {}", dice.random_range(0..5)).into();
            Request::LogOut { user, device, number: dice.random() }
        }
        96 if dice.random_range(0..4) == 0 => Request::Delete { user, token },
        _ => Request::Inspect { user, claims: dice.random(), token },
    }
}

/// An answer without what each store numbers in its own way.
fn comparable(reply: Reply) -> Reply {
    match reply {
        Reply::Opened(opened) => Reply::Opened(Opened { store_epoch: 0, device_epoch: 0, ..opened }),
        Reply::Devices(mut devices) => {
            devices.sort_by_key(|device| device.device);
            devices.iter_mut().for_each(|device| device.device_epoch = 0);
            Reply::Devices(devices)
        }
        other => other,
    }
}

/// The epochs that both stores have told of the device that a request is for.
fn known_devices(request: &Request, epochs: &BTreeMap<(u64, u16), [u32; 2]>) -> [u32; 2] {
    match request {
        Request::Read { user, device, .. }
        | Request::Cursor { user, device, .. }
        | Request::Forget { user, device, .. }
        | Request::Seen { user, device, .. } => epochs.get(&(*user, *device)).copied().unwrap_or_default(),
        _ => [0; 2],
    }
}

fn with_epoch(request: &Request, epoch: u32) -> Request {
    let mut request = request.clone();
    if let Request::Read { device_epoch, .. }
    | Request::Cursor { device_epoch, .. }
    | Request::Forget { device_epoch, .. }
    | Request::Seen { device_epoch, .. } = &mut request
    {
        *device_epoch = epoch;
    }
    request
}

#[test]
fn redis_and_memory_answer_alike() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    for (seed, when_full) in [(1, WhenFull::Refuse), (2, WhenFull::DropOldest), (3, WhenFull::Refuse)] {
        let limits = Limits { when_full, ..limits() };
        let running = Running::start(&redis, limits.clone(), None);
        let time = running.clock_ms.clone();
        let mut model = Memory::new(limits, Arc::new(move || time.load(Ordering::Relaxed)), 7).shared();
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut stamps = Vec::new();
        // The epochs of devices, by user and number, of both stores.
        let mut epochs: BTreeMap<(u64, u16), [u32; 2]> = BTreeMap::new();
        for step in 0..700 {
            let passed = match dice.random_range(0..60) {
                0 => 400_000,
                1 => 30_000,
                _ => dice.random_range(0..40),
            };
            let now_ms = running.clock_ms.fetch_add(passed, Ordering::Relaxed) + passed;
            let request = request(&mut dice, now_ms, 1_000 * seed, &stamps);
            let mut expected = None;
            let [own, models] = known_devices(&request, &epochs);
            model.apply(&mut vec![(0, with_epoch(&request, models))], &mut |_, answer| expected = Some(answer.reply));
            let request = if request.token().is_none() {
                // Both have to deal with it at the same time of the clock.
                let look = Request::Inspect { user: request.user(), claims: false, token: 1 };
                running.send(0, with_epoch(&request, own));
                model.apply(&mut vec![(0, look.clone())], &mut |_, answer| expected = Some(answer.reply));
                look
            } else {
                request
            };
            let given = running.ask(0, with_epoch(&request, own));
            if let Reply::Stored { stamp, .. } = given {
                stamps.push(stamp);
            }
            if let (Reply::Opened(given), Some(Reply::Opened(expected))) = (&given, &expected) {
                epochs.insert((request.user(), given.device), [given.device_epoch, expected.device_epoch]);
            }
            assert_eq!(Some(comparable(given)), expected.map(comparable), "seed {seed}, step {step}: {request:?}");
        }
        let stale = |stats: &trunkline_store::Stats| stats.cursors_stale.load(Ordering::Relaxed);
        assert_eq!(stale(running.stats()), stale(model.stats()), "seed {seed}");
        assert!(running.store.unwrap().stop());
    }
}

#[test]
fn a_home_of_an_earlier_view_appends_nothing_once_a_later_one_has_claimed() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let (old, new) = (1, 2);
    running.send(old, Request::View { epoch: 5 });
    running.send(new, Request::View { epoch: 6 });
    assert!(matches!(running.append(old, 50, 1, false), Reply::Stored { .. }));
    let open = Request::Open { user: 50, device: "phone".into(), ephemeral: false, claims: true, token: 9 };
    let Reply::Opened(opened) = running.ask(new, open) else { panic!("not opened") };
    assert_eq!(running.append(old, 50, 2, false), Reply::Refused(Refusal::Stale));
    let Reply::Stored { stamp, .. } = running.append(new, 50, 3, false) else { panic!("not stored") };
    assert!(stamp > opened.last, "positions never go back");
    assert_eq!(running.read(50), [1, 3]);
    // What was stored before is found by whoever is the home now.
    assert!(matches!(running.append(new, 50, 1, true), Reply::Stored { duplicate: true, .. }));
    assert_eq!(running.append(old, 51, 4, false).clone(), running.append(old, 51, 4, true).clone_as_first());
}

/// A reply to a retry, as the first one was.
trait AsFirst {
    fn clone_as_first(&self) -> Reply;
}

impl AsFirst for Reply {
    fn clone_as_first(&self) -> Reply {
        match *self {
            Reply::Stored { stamp, duplicate: true, before } => {
                assert_eq!(before, stamp, "nothing was added since");
                Reply::Stored { stamp, duplicate: false, before: 0 }
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_logout_is_remembered_and_a_position_is_not_lost_with_it() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let open = || match running
        .ask(0, Request::Open { user: 60, device: "p".into(), ephemeral: false, claims: false, token: 1 })
    {
        Reply::Opened(opened) => opened,
        other => panic!("{other:?}"),
    };
    let first = open();
    assert_eq!(open().device_epoch, first.device_epoch);
    let log_out = |number| running.send(0, Request::LogOut { user: 60, device: "p".into(), number });
    log_out(5);
    let after = open();
    // Nobody knew whether it had been done.
    log_out(5);
    assert_eq!(open().device_epoch, after.device_epoch);
    assert_ne!(after.device_epoch, first.device_epoch);
    assert_eq!((after.known, after.device, after.cursor), (true, first.device, first.cursor));
    // Its home may tell of its last ACKs when the LOGOUT has come from another node.
    assert!(matches!(running.append(0, 60, 1, false), Reply::Stored { .. }));
    let cursor = |of: &Opened, stamp| {
        let Opened { device, device_epoch, .. } = *of;
        running.send(0, Request::Cursor { user: 60, device, device_epoch, stamp });
    };
    cursor(&first, open().last);
    assert_eq!(open().pending, 0);
    // When it has been forgotten, and another one has its name and number, that is no more so.
    running.ask(0, {
        let Opened { device, device_epoch, .. } = after;
        Request::Forget { user: 60, device, device_epoch, token: 1 }
    });
    let anew = open();
    assert!(!anew.known && anew.device == first.device);
    assert!(matches!(running.append(0, 60, 2, false), Reply::Stored { .. }));
    cursor(&first, open().last);
    cursor(&after, open().last);
    assert_eq!((open().pending, running.stats().cursors_stale.load(Ordering::Relaxed)), (1, 2));
    assert_ne!(first.store_epoch, 0);
}

#[test]
fn a_number_that_another_device_has_got_is_not_the_readers_and_a_look_up_ends_where_it_is_to() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, Limits { devices_per_user_max: 2, ..limits() }, None);
    let user = 9_100;
    let open = |device: &str| match running
        .ask(0, Request::Open { user, device: device.into(), ephemeral: false, claims: false, token: 1 })
    {
        Reply::Opened(opened) => opened,
        other => panic!("{other:?}"),
    };
    let page = |device: &Opened| {
        let Opened { device, device_epoch, .. } = *device;
        let read =
            Request::Read { user, device, device_epoch, after: 0, since_ms: 0, limit: 9, bytes_max: 9_999, token: 1 };
        match running.ask(0, read) {
            Reply::Page(page) => page.records.iter().map(|record| record.id).collect::<Vec<u64>>(),
            other => panic!("{other:?}"),
        }
    };
    let append = |id, retry| {
        let record = record(stamp_at(running.clock_ms.load(Ordering::Relaxed)), id, 10);
        match running.ask(0, Request::Append { user, record, retry, token: 1 }) {
            Reply::Stored { stamp, duplicate, .. } => (stamp, duplicate),
            other => panic!("{other:?}"),
        }
    };
    let phone = open("phone");
    open("desk");
    let stamps: Vec<u64> = (1..=3).map(|id| append(id, None).0).collect();
    let cursor = |device: &Opened, stamp| {
        let Opened { device, device_epoch, .. } = *device;
        running.send(0, Request::Cursor { user, device, device_epoch, stamp });
    };
    cursor(&phone, stamps[0]);
    assert_eq!(page(&phone), [2, 3]);
    let tablet = open("tablet");
    assert_eq!((tablet.device, tablet.cursor), (phone.device, stamps[2]));
    assert_eq!((page(&tablet), page(&phone)), (vec![], vec![1, 2, 3]));
    // What the phone has acknowledged comes to light late.
    let stamp = append(4, None).0;
    cursor(&phone, stamp);
    assert_eq!((open("tablet").pending, page(&tablet)), (1, vec![4]), "what it has not got waits for it");
    assert_eq!(running.stats().cursors_stale.load(Ordering::Relaxed), 1);
    cursor(&tablet, stamp);
    assert_eq!(open("tablet").pending, 0);

    assert_eq!(append(2, Some(0)), (stamps[1], true));
    assert_eq!(append(2, Some(stamps[1] - 1)), (stamps[1], true));
    assert!(!append(2, Some(stamps[1])).1, "one as old as that is another message");
    assert!(running.store.unwrap().stop());
}

#[test]
fn many_users_are_served_in_few_batches() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, Limits::default(), None);
    let waits = redis.calls_of("wait");
    const MESSAGES: u64 = 5_000;
    for id in 0..MESSAGES {
        let record = record(stamp_at(BEGIN_MS) + id, id, 64);
        running.send(0, Request::Append { user: 10_000 + id % 500, record, retry: None, token: id });
    }
    let mut stored = BTreeMap::new();
    while stored.len() < MESSAGES as usize {
        for answer in running.answers.recv_timeout(PATIENCE).expect("answers").1 {
            assert!(matches!(answer.reply, Reply::Stored { .. }), "{answer:?}");
            assert!(stored.insert(answer.token, ()).is_none(), "answered twice");
        }
    }
    let waits = redis.calls_of("wait") - waits;
    assert!(waits < MESSAGES / 20, "{waits} WAITs for {MESSAGES} messages");
    assert_eq!(running.read(10_000).len() as u64, MESSAGES / 500);
}

/// What says whether the claims hold that are made as a device is opened, as an inbox is looked at, and of a group: all
/// on that master.
fn claims_of<'a>(
    running: &'a Running,
    redis: &RedisCluster,
    user: u64,
    master: usize,
) -> impl Fn() -> [bool; 3] + use<'a> {
    let group = (1..).find(|group| redis.master_of_slot(redis.slot_of(&format!("tl:g:{{{group}}}"))) == master);
    let group = group.expect("some group is there");
    running.send(0, Request::View { epoch: 3 });
    let open = move || {
        let open = Request::Open { user, device: "phone".into(), ephemeral: false, claims: true, token: 1 };
        match running.ask(0, open) {
            Reply::Opened(opened) => !opened.unsure_claim,
            other => panic!("a device that is known is told where it stands: {other:?}"),
        }
    };
    open();
    move || {
        let inspected = running.ask(0, Request::Inspect { user, claims: true, token: 1 });
        let ask = Box::new(trunkline_store::GroupAsk::Claim);
        let claimed = running.ask(0, Request::Group { group, ask, token: Some(1) });
        for reply in [&inspected, &claimed] {
            let is_known =
                matches!(reply, Reply::Inspected(_) | Reply::Group(_) | Reply::Refused(Refusal::Unavailable));
            assert!(is_known, "{reply:?}");
        }
        let holds = |reply: &Reply| !matches!(reply, Reply::Refused(_));
        [open(), holds(&inspected), holds(&claimed)]
    }
}

#[test]
fn without_replicas_that_follow_nothing_counts_as_stored_and_all_is_well_afterwards() {
    let mut redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), Some(StoreSync::Replica));
    let user = 70;
    let master = redis.master_of_slot(redis.slot_of(&format!("tl:inbox:{{{user}}}")));
    assert!(matches!(running.append(0, user, 1, false), Reply::Stored { .. }));
    // Its replica does not acknowledge: what is written is on one machine.
    let replica = (0..redis_cluster::SERVERS).find(|&server| {
        let role = redis.ask(server, &["ROLE"]).unwrap_or_default();
        role.starts_with("slave") && role.contains(&redis.port(master).to_string())
    });
    let replica = replica.expect("the master has a replica");
    let claims_hold = claims_of(&running, &redis, user, master);
    assert_eq!(claims_hold(), [true; 3]);
    redis.pause(replica);
    // A claim that is made again in the same view, and was answered before, says what holds now.
    assert_eq!((claims_hold(), claims_hold()), ([false; 3], [false; 3]));
    assert_eq!(running.append(0, user, 2, false), Reply::Refused(Refusal::Unavailable));
    assert!(!running.stats().is_available() && running.stats().trouble().is_some());
    let other = (100..).find(|user| redis.master_of_slot(redis.slot_of(&format!("tl:inbox:{{{user}}}"))) != master);
    let other = other.expect("some user is elsewhere");
    assert!(matches!(running.append(0, other, 3, false), Reply::Stored { .. }), "another master is well");
    redis.resume(replica);
    redis.wait_ok();
    redis.wait_replicated();
    wait_until("the store is well again", || running.stats().is_available());
    assert!(matches!(running.append(0, user, 2, true), Reply::Stored { duplicate: true, .. }));
    assert_eq!(running.read(user), [1, 2]);
    assert_eq!(claims_hold(), [true; 3]);
    drop(claims_hold);

    // A failover: nothing that was confirmed is lost.
    let slot = redis.slot_of(&format!("tl:inbox:{{{user}}}"));
    redis.kill(master);
    wait_until("a replica is promoted", || redis.master_of_slot_after(master, slot));
    assert!(matches!(running.append(0, other, 4, false), Reply::Stored { .. } | Reply::Refused(_)));
    wait_until("what is stored can be read", || {
        let read = Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after: 0,
            since_ms: 0,
            limit: 10,
            bytes_max: 9_999,
            token: 1,
        };
        matches!(running.ask(0, read), Reply::Page(page) if page.records.len() == 2)
    });
    redis.restart(master);
    redis.wait_ok();
    redis.wait_replicated();
    wait_until("messages are stored again", || matches!(running.append(0, user, 5, true), Reply::Stored { .. }));
    assert_eq!(running.read(user), [1, 2, 5]);
    assert!(running.store.unwrap().stop());
}
