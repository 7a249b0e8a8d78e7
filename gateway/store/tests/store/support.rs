//! What the tests share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trunkline_store::{
    Answer, Clock, Embedded, Limits, Opened, Page, Record, Reply, Request, SimDisk, Store, stamp_at,
};

/// The time at which tests begin, milliseconds since 1970.
pub(crate) const BEGIN_MS: u64 = 1_800_000_000_000;

/// A clock that the test moves.
#[derive(Clone)]
pub(crate) struct Hands(Arc<AtomicU64>);

impl Hands {
    pub(crate) fn new() -> Self {
        Hands(Arc::new(AtomicU64::new(BEGIN_MS)))
    }
    pub(crate) fn clock(&self) -> Clock {
        let hands = self.clone();
        Arc::new(move || hands.now_ms())
    }
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    pub(crate) fn set_back(&self, ms: u64) {
        self.0.fetch_sub(ms, Ordering::Relaxed);
    }
    pub(crate) fn pass(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

/// splitmix64, Steele, Lea and Flood 2014.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// Limits so small that a few dozen messages go through all of it: log, tables, merges, full logs.
pub(crate) fn small() -> Limits {
    Limits {
        user_messages_max: 60,
        user_bytes_max: 12_000,
        message_age_ms_max: 3_600_000,
        device_unseen_ms_max: 7_200_000,
        devices_per_user_max: 3,
        payload_bytes_max: 2_000,
        retry_window: 8,
        page_max: 20,
        log_bytes_max: 64 << 10,
        recent_bytes_max: 20 << 10,
        ..Limits::default()
    }
}

/// Opens the store on a simulated disk.
pub(crate) fn open(disk: &SimDisk, limits: &Limits, hands: &Hands) -> Embedded {
    Embedded::on_disk(Arc::new(disk.clone()), limits.clone(), hands.clock(), 7).unwrap()
}

pub(crate) fn record(stamp: u64, id: u64, bytes: usize) -> Record {
    Record { stamp, from: 9, id, flags: (id % 7) as u8, payload: vec![id as u8; bytes].into() }
}

/// Asks one thing.
pub(crate) fn ask(store: &mut dyn Store, request: Request) -> Option<Reply> {
    let mut answers: Vec<Answer> = Vec::new();
    store.apply(&mut vec![(3, request)], &mut |source, answer| {
        assert_eq!(source, 3);
        answers.push(answer);
    });
    assert!(answers.len() <= 1);
    answers.pop().map(|answer| answer.reply)
}

pub(crate) fn append(store: &mut dyn Store, user: u64, record: Record) -> Reply {
    ask(store, Request::Append { user, record, retry: None, token: 1 }).unwrap()
}

/// Stores a message and says where.
pub(crate) fn stored(store: &mut dyn Store, user: u64, record: Record) -> u64 {
    match append(store, user, record) {
        Reply::Stored { stamp, .. } => stamp,
        other => panic!("not stored: {other:?}"),
    }
}

pub(crate) fn open_device(store: &mut dyn Store, user: u64, device: &str) -> Opened {
    match ask(store, Request::Open { user, device: device.into(), ephemeral: false, claims: false, token: 1 }) {
        Some(Reply::Opened(opened)) => opened,
        other => panic!("not opened: {other:?}"),
    }
}

pub(crate) fn page(store: &mut dyn Store, user: u64, after: u64) -> Page {
    let read = Request::Read {
        user,
        device: 0,
        device_epoch: 0,
        after,
        since_ms: 0,
        limit: u32::MAX,
        bytes_max: u32::MAX,
        token: 1,
    };
    match ask(store, read) {
        Some(Reply::Page(page)) => page,
        other => panic!("no page: {other:?}"),
    }
}

/// That a device has everything up to a stamp.
pub(crate) fn cursor(user: u64, device: &Opened, stamp: u64) -> Request {
    let Opened { device, device_epoch, .. } = *device;
    Request::Cursor { user, device, device_epoch, stamp }
}

/// All messages of a user, page by page.
pub(crate) fn everything(store: &mut dyn Store, user: u64) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    loop {
        let next = page(store, user, all.last().map_or(0, |record| record.stamp));
        let complete = next.complete;
        all.extend(next.records);
        if complete {
            return all;
        }
    }
}

pub(crate) fn now_stamp(hands: &Hands) -> u64 {
    stamp_at(hands.now_ms())
}

/// A folder that is gone when the test is over.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trunkline-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The seeds of a test: `STORE_SEED` alone if that is set, else as many as it says, `STORE_SEEDS` times over.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    let variable = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match variable("STORE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=count * variable("STORE_SEEDS").unwrap_or(1)).collect(),
    }
}

/// Says which seed it was if the test fails.
pub(crate) struct Blame(pub(crate) u64);

impl Drop for Blame {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat it with STORE_SEED={}", self.0);
        }
    }
}
