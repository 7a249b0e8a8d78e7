//! How fast a store is, beside a bare append with fdatasync on the same disk. Not a test: it needs a quiet machine and
//! says nothing about right or wrong.
//!
//! `cargo run --release -p trunkline-store --example store_bench -- FOLDER`

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trunkline_store::{
    Answer, Clock, Embedded, Limits, Record, Reply, Request, Source, Stats, Store, StoreMail, StoreThread, stamp_at,
};

const USERS: u64 = 1_000_000;
const PAYLOAD_BYTES: usize = 96;
const BATCH: u64 = 8_192;
/// Messages stored for one figure.
const MESSAGES: u64 = 4_000_000;
const IN_FLIGHT: u64 = 256;
const IN_FLIGHT_TIME: Duration = Duration::from_secs(10);

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The floor: the bytes of each batch are appended to one file, and fdatasync.
struct Bare {
    file: File,
    end: u64,
    buffer: Vec<u8>,
    stats: Arc<Stats>,
}

impl Bare {
    fn new(path: &Path) -> std::io::Result<Self> {
        Ok(Bare { file: File::create(path)?, end: 0, buffer: Vec::new(), stats: Arc::default() })
    }
}

impl Store for Bare {
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer)) {
        self.buffer.clear();
        for (_, request) in batch.iter() {
            if let Request::Append { user, record, .. } = request {
                for value in [*user, record.stamp, record.from, record.id] {
                    self.buffer.extend_from_slice(&value.to_le_bytes());
                }
                self.buffer.extend_from_slice(&record.payload);
            }
        }
        self.file.write_all_at(&self.buffer, self.end).expect("the disk takes it");
        self.file.sync_data().expect("the disk takes it");
        self.end += self.buffer.len() as u64;
        for (source, request) in batch.drain(..) {
            if let Some(token) = request.token() {
                out(source, Answer { token, reply: Reply::Stored { stamp: token, duplicate: false } });
            }
        }
    }
    fn tick(&mut self) -> Option<Duration> {
        None
    }
    fn close(&mut self) {}
    fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

fn append(number: u64) -> Request {
    // Users in an order that is none.
    let user = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % USERS;
    let payload = vec![number as u8; PAYLOAD_BYTES].into();
    let record = Record { stamp: stamp_at(now_ms()), from: 1, id: number, flags: 0, payload };
    Request::Append { user, record, retry: false, token: number }
}

/// Messages a second in large batches. `acknowledge`: what was stored is acknowledged some batches later, as devices
/// do.
fn burst(store: &mut dyn Store, first: u64, acknowledge: bool) -> f64 {
    let began = Instant::now();
    let mut at = first;
    let mut slowest = Duration::ZERO;
    let mut stored: std::collections::VecDeque<Vec<(u64, u64)>> = Default::default();
    while at < first + MESSAGES {
        let mut batch: Vec<(Source, Request)> = (at..at + BATCH).map(|number| (0, append(number))).collect();
        let users: Vec<u64> = batch.iter().map(|(_, request)| request.user()).collect();
        if acknowledge && stored.len() > 32 {
            let cursors = stored.pop_front().into_iter().flatten();
            batch.extend(cursors.map(|(user, stamp)| (0, Request::Cursor { user, device: 1, stamp })));
        }
        at += BATCH;
        let mut stamps = Vec::new();
        let commit = Instant::now();
        store.apply(&mut batch, &mut |_, answer| match answer.reply {
            Reply::Stored { stamp, .. } => stamps.push(stamp),
            other => panic!("{other:?}"),
        });
        slowest = slowest.max(commit.elapsed());
        stored.push_back(users.into_iter().zip(stamps).collect());
        store.tick();
    }
    println!("  slowest batch {} ms", slowest.as_millis());
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

/// Latencies with so many requests under way at any time.
fn in_flight(store: impl Store + Send + 'static) {
    let (answered, answers) = mpsc::channel();
    let thread = StoreThread::start(store, StoreMail::new(StoreMail::BYTES_MAX), move |_, ready| {
        // The other end is gone when the time is over.
        let _ = answered.send(ready.into_iter().map(|answer| answer.token).collect::<Vec<u64>>());
    })
    .expect("there are threads");
    let sender = thread.sender(0);
    let mut began_at = Vec::new();
    let mut latencies = Vec::new();
    let send = |began_at: &mut Vec<Instant>| {
        let number = began_at.len() as u64;
        began_at.push(Instant::now());
        sender.try_send(append(number)).expect("the mailbox has room");
    };
    (0..IN_FLIGHT).for_each(|_| send(&mut began_at));
    let began = Instant::now();
    while began.elapsed() < IN_FLIGHT_TIME {
        for token in answers.recv().expect("the thread runs") {
            latencies.push(began_at[token as usize].elapsed().as_micros() as u64);
            send(&mut began_at);
        }
    }
    latencies.sort_unstable();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize] as f64 / 1_000.0;
    println!(
        "  {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, most {:.2} ms",
        latencies.len() as f64 / IN_FLIGHT_TIME.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    thread.stop();
}

fn anonymous_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("a folder is needed, on the disk that is to be measured");
        std::process::exit(2);
    };
    let clock: Clock = Arc::new(now_ms);
    let limits = Limits { store_bytes_max: 64 << 30, ..Limits::default() };
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let open = |name: &str| {
        let path = folder.join(name);
        Embedded::open(&path, limits.clone(), clock.clone()).expect("the store opens")
    };
    let bare = || Bare::new(&folder.join("bare")).expect("the file can be made");

    println!("bare append + fdatasync, batches of {BATCH}");
    println!("  {:.0} messages/s", burst(&mut bare(), 0, false));
    println!("store, batches of {BATCH}");
    let mut store = open("burst");
    println!("  {:.0} messages/s, {} MB anonymous memory", burst(&mut store, 0, false), anonymous_mb());
    println!("  {:.0} messages/s into a store that has {MESSAGES}", burst(&mut store, MESSAGES, false));
    drop(store);
    let began = Instant::now();
    let mut store = open("burst");
    println!("  opened again in {} ms, {} MB anonymous memory", began.elapsed().as_millis(), anonymous_mb());
    let began = Instant::now();
    let mut read = 0;
    for user in 0..USERS / 4 {
        let request = Request::Read { user, after: 0, since_ms: 0, limit: 256, bytes_max: 1 << 20, token: 1 };
        store.apply(&mut vec![(0, request)], &mut |_, answer| match answer.reply {
            Reply::Page(page) => read += page.records.len(),
            other => panic!("{other:?}"),
        });
    }
    println!("  read {:.0} messages/s", read as f64 / began.elapsed().as_secs_f64());
    drop(store);

    println!("store, batches of {BATCH}, each acknowledged 32 batches later");
    let mut store = open("steady");
    for users in (0..USERS).collect::<Vec<u64>>().chunks(BATCH as usize) {
        let open = |user: &u64| (0, Request::Open { user: *user, device: "d".into(), ephemeral: false, token: 1 });
        store.apply(&mut users.iter().map(open).collect(), &mut |_, _| {});
    }
    println!("  {:.0} messages/s stored and as many acknowledged", burst(&mut store, 0, true));
    drop(store);

    println!("bare append + fdatasync, {IN_FLIGHT} in flight");
    in_flight(bare());
    println!("store, {IN_FLIGHT} in flight");
    in_flight(open("flight"));
}
