//! How fast a store is, beside a bare append with fdatasync on the same disk. Not a test: it needs a quiet machine and
//! says nothing about right or wrong.
//!
//! `cargo run --release -p trunkline-store --example store_bench -- --help`

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trunkline_store::{
    Answer, Clock, Embedded, Limits, MailSender, Record, Reply, Request, Source, Store, StoreMail, StoreThread,
    stamp_at,
};

const HELP: &str = "\
store_bench FOLDER [options]: measures the embedded store on the disk that FOLDER is on

  --only PARTS      burst,refill,read,steady,flight,recovery; all if not given
  --messages N      messages of a burst (1000000)
  --users N         recipients, each message to another one (1000000)
  --payload N       bytes of a message (64)
  --window N        messages under way at a time in burst and steady (32768)
  --steady N        seconds of storing and acknowledging the same volume (60)
  --flight N        seconds with 256 messages under way, and of bare fdatasync (10)
  --log N           MiB of log that are recovered (1024)
  --keep            leave the files in FOLDER";

/// Messages under way where latency is measured.
const IN_FLIGHT: u64 = 256;
/// A message is acknowledged when so many have been stored after it.
const ACK_BEHIND: usize = 262_144;
/// Payload of the messages from which a log is recovered.
const RECOVERY_PAYLOAD_BYTES: usize = 512;

struct Options {
    folder: PathBuf,
    only: Option<String>,
    messages: u64,
    users: u64,
    payload: usize,
    window: u64,
    steady: Duration,
    flight: Duration,
    log_mib: u64,
    keep: bool,
}

impl Options {
    fn parse() -> Result<Self, String> {
        let mut options = Options {
            folder: PathBuf::new(),
            only: None,
            messages: 1_000_000,
            users: 1_000_000,
            payload: 64,
            window: 32_768,
            steady: Duration::from_secs(60),
            flight: Duration::from_secs(10),
            log_mib: 1_024,
            keep: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || {
                let text = words.next().ok_or(format!("{word} needs a value"))?;
                text.parse::<u64>().map_err(|_| format!("{text} is not a number"))
            };
            match word.as_str() {
                "--help" => return Err(String::new()),
                "--keep" => options.keep = true,
                "--only" => options.only = Some(words.next().ok_or("--only needs a value")?),
                "--messages" => options.messages = number()?,
                "--users" => options.users = number()?.max(1),
                "--payload" => options.payload = number()? as usize,
                "--window" => options.window = number()?.max(1),
                "--steady" => options.steady = Duration::from_secs(number()?),
                "--flight" => options.flight = Duration::from_secs(number()?),
                "--log" => options.log_mib = number()?,
                _ if word.starts_with('-') => return Err(format!("{word} is not known")),
                _ => options.folder = PathBuf::from(word),
            }
        }
        if options.folder.as_os_str().is_empty() {
            return Err("a folder is needed, on the disk that is to be measured".to_owned());
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|word| word == part))
    }

    fn open(&self, name: &str, limits: Limits) -> Embedded {
        let clock: Clock = Arc::new(now_ms);
        Embedded::open(&self.folder.join(name), limits, clock).expect("the store opens")
    }

    fn append(&self, number: u64) -> Request {
        let payload = vec![number as u8; self.payload].into();
        let record = Record { stamp: stamp_at(now_ms()), from: 1, id: number, flags: 0, payload };
        Request::Append { user: self.user(number), record, retry: None, token: number }
    }

    /// Users in an order that is none.
    fn user(&self, number: u64) -> u64 {
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.users
    }
}

fn limits() -> Limits {
    Limits { store_bytes_max: 64 << 30, ..Limits::default() }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A store on its thread, and the answers as they come: one list for each batch.
struct Running {
    thread: StoreThread,
    sender: MailSender,
    answers: mpsc::Receiver<Vec<Answer>>,
}

impl Running {
    fn start(store: Embedded) -> Self {
        let (answered, answers) = mpsc::channel();
        let thread = StoreThread::start(store, StoreMail::new(StoreMail::BYTES_MAX), move |_: Source, ready| {
            // The other end is gone when the time is over.
            let _ = answered.send(ready);
        })
        .expect("there are threads");
        let sender = thread.sender(0);
        Running { thread, sender, answers }
    }

    fn send(&self, request: Request) {
        let mut request = request;
        while let Err(back) = self.sender.try_send(request) {
            request = back;
            std::thread::yield_now();
        }
    }

    fn report(&self) {
        let stats = self.thread.stats();
        let commits = stats.commits.load(Ordering::Relaxed).max(1);
        println!(
            "  {} commits, {} us each; {} tables written, {} MB; {} tables; {} MB anonymous memory",
            commits,
            stats.commit_us_sum.load(Ordering::Relaxed) / commits,
            stats.tables_written.load(Ordering::Relaxed),
            stats.table_bytes_written.load(Ordering::Relaxed) >> 20,
            stats.tables.load(Ordering::Relaxed),
            anonymous_mb(),
        );
    }
}

fn stamp_of(answer: &Answer) -> u64 {
    match answer.reply {
        Reply::Stored { stamp, .. } => stamp,
        ref other => panic!("{other:?}"),
    }
}

/// A burst: as fast as the store takes it.
fn burst(options: &Options, running: &Running, first: u64) {
    let began = Instant::now();
    let (mut sent, mut done) = (0, 0);
    let (mut last, mut silence) = (began, Duration::ZERO);
    while done < options.messages {
        while sent < options.messages && sent - done < options.window {
            running.send(options.append(first + sent));
            sent += 1;
        }
        let answers = running.answers.recv().expect("the thread runs");
        answers.iter().for_each(|answer| assert!(stamp_of(answer) > 0));
        done += answers.len() as u64;
        silence = silence.max(last.elapsed());
        last = Instant::now();
    }
    let rate = options.messages as f64 / began.elapsed().as_secs_f64();
    println!("  {rate:.0} messages/s, longest time without an answer {} ms", silence.as_millis());
    running.report();
}

/// Stores, and acknowledges what was stored somewhat earlier.
fn steady(options: &Options) {
    let running = Running::start(options.open("steady", limits()));
    // The epoch of the device of each user.
    let mut epochs: HashMap<u64, u32> = HashMap::new();
    for users in (0..options.users).collect::<Vec<u64>>().chunks(8_192) {
        for user in users {
            let (user, device) = (*user, "phone".into());
            running.send(Request::Open { user, device, ephemeral: false, claims: false, token: user });
        }
        let mut opened = 0;
        while opened < users.len() {
            let answers = running.answers.recv().expect("the thread runs");
            opened += answers.len();
            epochs.extend(answers.iter().map(|answer| match answer.reply {
                Reply::Opened(opened) => (answer.token, opened.device_epoch),
                ref other => panic!("not opened: {other:?}"),
            }));
        }
    }
    let began = Instant::now();
    let (mut sent, mut done, mut acknowledged) = (0, 0, 0);
    let (mut last, mut silence) = (began, Duration::ZERO);
    let mut unacknowledged: VecDeque<(u64, u64)> = VecDeque::new();
    let mut seconds = Vec::new();
    while began.elapsed() < options.steady || done < sent {
        while began.elapsed() < options.steady && sent - done < options.window {
            for _ in 0..256 {
                running.send(options.append(sent));
                sent += 1;
            }
        }
        let answers = running.answers.recv().expect("the thread runs");
        silence = silence.max(last.elapsed());
        last = Instant::now();
        unacknowledged.extend(answers.iter().map(|answer| (options.user(answer.token), stamp_of(answer))));
        done += answers.len() as u64;
        while unacknowledged.len() > ACK_BEHIND {
            let Some((user, stamp)) = unacknowledged.pop_front() else { break };
            let device_epoch = epochs.get(&user).copied().unwrap_or_default();
            running.send(Request::Cursor { user, device: 1, device_epoch, stamp });
            acknowledged += 1;
        }
        let second = began.elapsed().as_secs() as usize;
        seconds.resize(seconds.len().max(second + 1), 0);
        seconds[second] += answers.len();
    }
    let rate = done as f64 / began.elapsed().as_secs_f64();
    seconds.pop();
    println!(
        "  {rate:.0} messages/s over {} s, {acknowledged} of {done} acknowledged; worst second {}, longest time \
         without an answer {} ms",
        began.elapsed().as_secs(),
        seconds.iter().min().unwrap_or(&0),
        silence.as_millis()
    );
    running.report();
    let stats = running.thread.stats();
    println!(
        "  {} messages left, {} dropped as acknowledged, {} MB of tables",
        stats.messages.load(Ordering::Relaxed),
        stats.acknowledged.load(Ordering::Relaxed),
        stats.table_bytes.load(Ordering::Relaxed) >> 20
    );
    running.thread.stop();
}

/// Latencies with so many requests under way at any time.
fn in_flight(options: &Options, running: &Running) -> Vec<u64> {
    let mut began_at = Vec::new();
    let mut latencies = Vec::new();
    let send = |began_at: &mut Vec<Instant>| {
        let number = began_at.len() as u64;
        began_at.push(Instant::now());
        running.send(options.append(number));
    };
    (0..IN_FLIGHT).for_each(|_| send(&mut began_at));
    let began = Instant::now();
    while began.elapsed() < options.flight {
        for answer in running.answers.recv().expect("the thread runs") {
            latencies.push(began_at[answer.token as usize].elapsed().as_micros() as u64);
            send(&mut began_at);
        }
    }
    latencies.sort_unstable();
    latencies
}

/// A bare append of 4 KiB with fdatasync, over and over.
fn bare(path: &Path, time: Duration) -> Vec<u64> {
    let file = File::create(path).expect("the file can be made");
    let mut latencies = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let at = latencies.len() as u64 * 4_096;
        let one = Instant::now();
        file.write_all_at(&[7; 4_096], at).and_then(|()| file.sync_data()).expect("the disk takes it");
        latencies.push(one.elapsed().as_micros() as u64);
    }
    latencies.sort_unstable();
    latencies
}

fn part(latencies: &[u64], part: f64) -> f64 {
    latencies[((latencies.len() - 1) as f64 * part) as usize] as f64 / 1_000.0
}

fn show(what: &str, latencies: &[u64], time: Duration) {
    println!(
        "  {what}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, most {:.2} ms",
        latencies.len() as f64 / time.as_secs_f64(),
        part(latencies, 0.5),
        part(latencies, 0.99),
        part(latencies, 0.999),
        part(latencies, 1.0)
    );
}

fn flight(options: &Options) {
    let mut bare_latencies = bare(&options.folder.join("bare"), options.flight / 2);
    let running = Running::start(options.open("flight", limits()));
    let latencies = in_flight(options, &running);
    running.thread.stop();
    // Half before, half after: what else uses the disk changes with time.
    bare_latencies.extend(bare(&options.folder.join("bare"), options.flight / 2));
    bare_latencies.sort_unstable();
    show("bare append + fdatasync", &bare_latencies, options.flight);
    show("store, 256 in flight", &latencies, options.flight);
    println!(
        "  p50 is {:.1} times, p99 {:.1} times the p50 of the bare fdatasync; p99 is {:.1} times its p99",
        part(&latencies, 0.5) / part(&bare_latencies, 0.5),
        part(&latencies, 0.99) / part(&bare_latencies, 0.5),
        part(&latencies, 0.99) / part(&bare_latencies, 0.99)
    );
}

fn read(options: &Options, store: &mut dyn Store) {
    let began = Instant::now();
    let mut read = 0;
    for user in 0..options.users / 4 {
        let request = Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after: 0,
            since_ms: 0,
            limit: 256,
            bytes_max: 1 << 20,
            token: 1,
        };
        store.apply(&mut vec![(0, request)], &mut |_, answer| match answer.reply {
            Reply::Page(page) => read += page.records.len(),
            other => panic!("{other:?}"),
        });
    }
    println!("  read {:.0} messages/s", read as f64 / began.elapsed().as_secs_f64());
}

/// Opens a store whose log has that size. No table may be written before, so the limits are set accordingly (by default
/// a log can't become so large), and the store is dropped without having been closed.
fn recovery(options: &Options) {
    let log_bytes = options.log_mib << 20;
    let limits = || Limits { log_bytes_max: log_bytes * 2, recent_bytes_max: log_bytes * 8, ..limits() };
    let mut store = options.open("recovery", limits());
    let mut number = 0;
    while store.stats().log_bytes.load(Ordering::Relaxed) < log_bytes {
        let batch = (number..number + 8_192).map(|number| {
            let Request::Append { user, mut record, retry, token } = options.append(number) else { unreachable!() };
            record.payload = vec![number as u8; RECOVERY_PAYLOAD_BYTES].into();
            (0, Request::Append { user, record, retry, token })
        });
        store.apply(&mut batch.collect(), &mut |_, answer| assert!(stamp_of(&answer) > 0));
        number += 8_192;
    }
    drop(store);
    let began = Instant::now();
    let store = options.open("recovery", limits());
    println!(
        "  {} MiB of log, {number} messages, recovered in {} ms; {} there, {} MB anonymous memory",
        options.log_mib,
        began.elapsed().as_millis(),
        store.stats().messages.load(Ordering::Relaxed),
        anonymous_mb()
    );
}

fn anonymous_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let options = Options::parse().unwrap_or_else(|error| {
        println!("{error}\n{HELP}");
        std::process::exit(if error.is_empty() { 0 } else { 2 });
    });
    std::fs::create_dir_all(&options.folder).expect("the folder can be made");
    if options.wants("burst") || options.wants("refill") || options.wants("read") {
        println!("burst of {} messages of {} bytes", options.messages, options.payload);
        let running = Running::start(options.open("burst", limits()));
        burst(&options, &running, 0);
        if options.wants("refill") {
            println!("the same again, into a store that has {}", options.messages);
            burst(&options, &running, options.messages);
        }
        running.thread.stop();
        let began = Instant::now();
        let mut store = options.open("burst", limits());
        println!("opened again in {} ms, {} MB anonymous memory", began.elapsed().as_millis(), anonymous_mb());
        if options.wants("read") {
            read(&options, &mut store);
        }
    }
    if options.wants("steady") {
        println!("stored and acknowledged, {} users", options.users);
        steady(&options);
    }
    if options.wants("flight") {
        println!("latency");
        flight(&options);
    }
    if options.wants("recovery") {
        println!("recovery");
        recovery(&options);
    }
    if !options.keep {
        for name in ["burst", "steady", "flight", "recovery"] {
            let _ = std::fs::remove_dir_all(options.folder.join(name));
        }
        let _ = std::fs::remove_file(options.folder.join("bare"));
    }
}
