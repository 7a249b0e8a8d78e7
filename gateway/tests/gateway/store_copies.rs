//! Copies of what is stored: from a folder to Redis and back, message by message; and a copy of the folder of a node
//! that goes on storing, as of one moment.

use crate::cluster_support::Member;
use crate::cluster_support::redis_cluster::RedisCluster;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::random::Random;
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::wait_for;
use crate::support::wire::{self, Frame, Login, SyncOk, flag, kind, outcome};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SENDER: u64 = 1;
/// Messages without an answer at a time: fewer than a page of SYNC.
const IN_FLIGHT: usize = 100;
const USERS: std::ops::RangeInclusive<u64> = 10..=15;
/// Of an export: for each user more than are looked through for one that is sent again.
const MESSAGES: u64 = 1_800;

fn start(folder: &ScratchFolder, flags: &[&str]) -> Gateway {
    Gateway::start(2, &[&["--data-dir", folder.path(), "--store-after-ms", "300"], flags].concat())
}

/// All that waits for a device, which acknowledges it if it is to; with who sent it.
fn backlog(client: &mut Client, acknowledges: bool) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    loop {
        let frame = client.recv();
        if frame.kind == kind::SYNC_OK {
            assert!(!SyncOk::parse(&frame).truncated);
            return frames;
        }
        assert_eq!(frame.kind, kind::DELIVER, "{frame:?}");
        if acknowledges && frames.len() % 50 == 49 {
            client.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&frame) });
        }
        frames.push(frame);
    }
}

/// Sends to users who are away and reads the answers, as long as `wants`. Returns what was answered, by recipient.
fn send_to_all(
    sender: &mut Client,
    bodies: &mut Random,
    wants: impl Fn(u64) -> bool,
    answered: &Mutex<BTreeMap<u64, Vec<u64>>>,
) {
    let (mut sent, mut open) = (0, BTreeMap::new());
    loop {
        while open.len() < IN_FLIGHT && wants(sent) {
            let to = USERS.start() + sent % USERS.count() as u64;
            let bytes = bodies.below(3_000);
            open.insert(sender.send(to, flag::ACK, &bodies.bytes(bytes)), to);
            sent += 1;
        }
        if open.is_empty() {
            return;
        }
        match sender.read_event(Duration::from_secs(20)) {
            Event::Frame(frame) if frame.kind == kind::SENT => {
                assert_eq!(frame.aux, outcome::STORED, "{frame:?}");
                let to = open.remove(&frame.id).expect("it was sent");
                answered.lock().expect("no panic").entry(to).or_default().push(frame.id);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A place of a store, as arguments of `gateway store`.
type Place<'a> = &'a [&'a str];

fn store_command(action: &str, place: Place<'_>, input: Option<&str>) -> String {
    let mut command: Command = gateway_command();
    command.args(["store", action]).args(place);
    if let Some(input) = input {
        command.stdin(fs::File::open(input).expect("open what was exported"));
    }
    let output = command.output().expect("run gateway store");
    assert!(output.status.success(), "{action} {place:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it writes text")
}

/// The lines of an export, by user: the one of the user itself, then messages by their positions.
fn lines_of(export: &str) -> Vec<Value> {
    let mut lines: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let number =
        |line: &Value, name: &str| line[name].as_str().map_or(0, |text| text.parse::<u64>().expect("a number"));
    lines.sort_by_key(|line| (number(line, "user"), number(line, "stamp")));
    lines
}

#[test]
fn an_export_is_the_same_out_of_a_folder_out_of_redis_and_out_of_another_folder() {
    let folder = ScratchFolder::new("store");
    let gateway = start(&folder, &[]);
    // One with two devices, one of which is behind; one whose only device has a part.
    for (user, device) in [(10, "phone"), (10, "desk"), (11, "phone")] {
        let (mut client, _) = Client::login_with(&gateway, &Login::of(user).device(device));
        backlog(&mut client, false);
    }
    [10, 11].iter().for_each(|user| gateway.wait_for_presence(*user, false));
    let mut sender = Client::login(&gateway, SENDER);
    backlog(&mut sender, false);
    let answered = Mutex::default();
    send_to_all(&mut sender, &mut Random::seeded(1), |sent| sent < MESSAGES, &answered);
    for user in [10, 11] {
        let (mut phone, _) = Client::login_with(&gateway, &Login { window: 100, ..Login::of(user).device("phone") });
        let frames: Vec<Frame> = (0..30).map(|_| phone.recv_deliver()).collect();
        phone.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&frames[29]) });
        phone.recv_deliver();
        drop(phone);
        gateway.wait_for_presence(user, false);
    }
    drop(sender);
    gateway.finish();

    let redis = RedisCluster::start();
    let member = Member::new(&redis, "copies");
    let other = ScratchFolder::new("other");
    let in_redis = [
        "--store",
        "redis",
        "--node",
        member.name,
        "--redis",
        &member.url,
        "--mesh",
        &member.mesh,
        "--cluster-secret-file",
        member.secret_file(),
        "--advertise",
        "gate.example.org:7700",
    ];
    let (first, third) = (["--data-dir", folder.path()], ["--data-dir", other.path()]);
    let places: [Place<'_>; 3] = [&first, &in_redis, &third];
    let mut exports: Vec<Vec<Value>> = Vec::new();
    for (at, place) in places.into_iter().enumerate() {
        if at > 0 {
            let export = exports[at - 1].iter().map(|line| format!("{line}\n")).collect::<String>();
            let input = ScratchFile::new("inboxes.jsonl", export);
            // What is there already is not stored again.
            for _ in 0..2 {
                store_command("import", place, Some(input.path()));
            }
        }
        store_command("check", place, None);
        exports.push(lines_of(&store_command("export", place, None)));
    }
    let stored: usize = answered.into_inner().expect("no panic").values().map(Vec::len).sum();
    // The device that is behind still needs what the other one has. What nobody needs goes sooner or later.
    let gone = 30;
    let messages = exports[0].iter().filter(|line| line["payload"].is_string()).count();
    assert_eq!(stored as u64, MESSAGES);
    assert!((stored - gone..=stored).contains(&messages), "{messages}");
    for export in &exports[1..] {
        let differs = exports[0].iter().zip(export).find(|(before, after)| before != after);
        assert_eq!((differs, export.len()), (None, exports[0].len()));
    }
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("make a folder");
    for entry in fs::read_dir(from).expect("read the folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), &target).expect("copy a file")),
        }
    }
}

/// Whether none of the threads of a process runs.
fn is_stopped(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
    })
}

/// Says so when it is dropped, also where a test fails.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_of_all_files_at_one_moment_has_all_that_was_answered_before_it() {
    let folder = ScratchFolder::new("store");
    // Tables are written all the time.
    let flags = ["--store-recent-bytes-max", "4MiB", "--inbox-messages-max", "1000000", "--inbox-bytes-max", "1GiB"];
    let gateway = start(&folder, &flags);
    let mut sender = Client::login(&gateway, SENDER);
    backlog(&mut sender, false);
    let (answered, ends) = (Mutex::<BTreeMap<u64, Vec<u64>>>::default(), AtomicBool::new(false));
    let mut copies = Vec::new();
    std::thread::scope(|scope| {
        let _ends = AtTheEnd(&ends);
        scope.spawn(|| {
            send_to_all(&mut sender, &mut Random::seeded(2), |_| !ends.load(Ordering::Relaxed), &answered);
        });
        let count = || answered.lock().expect("no panic").values().map(Vec::len).sum::<usize>();
        for at in 1..=2 {
            let goal = count() + 3_000;
            wait_for("more is stored", || (count() >= goal).then_some(()));
            let before = answered.lock().expect("no panic").clone();
            // A snapshot has all files at one moment; so has a copy while nothing runs.
            gateway.signal(Signal::STOP);
            wait_for("it stands still", || is_stopped(gateway.id()).then_some(()));
            let target = ScratchFolder::new(&format!("copy-{at}"));
            copy(Path::new(folder.path()), Path::new(target.path()));
            gateway.signal(Signal::CONT);
            copies.push((before, target));
        }
    });
    drop(sender);
    gateway.audit();
    gateway.finish();
    for (before, copy) in copies {
        store_command("check", &["--data-dir", copy.path()], None);
        let gateway = start(&copy, &flags);
        for (user, ids) in before {
            let (mut client, _) = Client::login_with(&gateway, &Login::of(user));
            let got: Vec<u64> = backlog(&mut client, true).iter().map(|frame| frame.id).collect();
            assert!(
                got.is_sorted() && got.len() >= ids.len(),
                "{} of {} messages of user {user}",
                got.len(),
                ids.len()
            );
            assert_eq!(got[..ids.len()], ids, "of user {user}");
        }
        gateway.finish();
    }
}
