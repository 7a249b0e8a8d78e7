//! A copy of the folder of a node that goes on storing, as of one moment.

use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::random::Random;
use crate::support::scratch::ScratchFolder;
use crate::support::wait_for;
use crate::support::wire::{self, Frame, Login, SyncOk, flag, kind, outcome};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SENDER: u64 = 1;
/// Messages without an answer at a time: fewer than a page of SYNC.
const IN_FLIGHT: usize = 100;
const USERS: std::ops::RangeInclusive<u64> = 10..=15;

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
        let checked = gateway_command().args(["store", "check", "--data-dir", copy.path()]).output();
        let checked = checked.expect("run gateway store");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
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
