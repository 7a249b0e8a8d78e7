//! The process is killed while messages are being stored. What its sender was told of as stored is there afterwards,
//! and nothing is there twice.
//!
//! `TRUNKLINE_KILL_ROUNDS=200 cargo test -p trunkline-gateway --test gateway killed -- --nocapture` kills it more
//! often.

use crate::support::PATIENCE;
use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::random::Random;
use crate::support::scratch::ScratchFolder;
use crate::support::wire::{self, Frame, Login, flag, kind, outcome};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SENDER: u64 = 1;
/// Users who are never there before the end.
const OFFLINE: std::ops::RangeInclusive<u64> = 10..=17;
/// A user who comes now and then, takes everything and goes.
const VISITOR: u64 = 20;
/// Messages without an answer at a time, for all recipients together.
const IN_FLIGHT: usize = 200;
/// Answers after which the process is killed, at most; and how much later, at most, in milliseconds.
const ANSWERS_MAX: usize = 1_000;
const KILL_LATER_MS: usize = 5;

/// Who sends, and what is known of each message.
#[derive(Default)]
struct Sender {
    last_id: u64,
    /// Messages without an answer, with their recipients.
    unsettled: BTreeMap<u64, u64>,
    /// Messages that count as stored or delivered, by recipient.
    settled: BTreeMap<u64, BTreeSet<u64>>,
    /// Messages refused at some time: they come out of order.
    refused: u64,
}

impl Sender {
    /// Sends, and kills the process a moment after so many answers; without a kill it sends nothing new, until all have
    /// their answers.
    fn run(&mut self, gateway: &Gateway, client: &mut Client, mut kill: Option<(usize, Duration)>) {
        let last = kill.is_none();
        let mut answers = 0;
        let unsettled: Vec<(u64, u64)> = self.unsettled.iter().map(|(id, to)| (*id, *to)).collect();
        let mut open = BTreeSet::new();
        for (id, to) in unsettled {
            self.write(client, id, to, flag::RETRY);
            open.insert(id);
        }
        loop {
            while !last && self.unsettled.len() < IN_FLIGHT {
                self.last_id += 1;
                let recipients = OFFLINE.count() as u64 + 1;
                let to = match self.last_id % recipients {
                    0 => VISITOR,
                    at => OFFLINE.start() + at - 1,
                };
                self.unsettled.insert(self.last_id, to);
                self.write(client, self.last_id, to, 0);
                open.insert(self.last_id);
            }
            if last && self.unsettled.is_empty() {
                return gateway.assert_running();
            }
            if let Some((_, later)) = kill.take_if(|(after, _)| *after <= answers) {
                std::thread::sleep(later);
                gateway.signal(Signal::KILL);
            }
            match client.read_event(PATIENCE) {
                Event::Frame(frame) if frame.kind == kind::SENT => {
                    assert!(open.remove(&frame.id), "{} was answered twice on a connection", frame.id);
                    answers += 1;
                    let to = self.unsettled[&frame.id];
                    match frame.aux {
                        outcome::STORED | outcome::DELIVERED => {
                            self.unsettled.remove(&frame.id);
                            self.settled.entry(to).or_default().insert(frame.id);
                        }
                        // The machine is busy.
                        outcome::OVERLOADED => {
                            self.refused += 1;
                            self.write(client, frame.id, to, flag::RETRY);
                            open.insert(frame.id);
                        }
                        other => panic!("{frame:?}: {other}"),
                    }
                }
                Event::Frame(frame) => assert_eq!(frame.kind, kind::SYNC_OK, "{frame:?}"),
                Event::Closed if !last => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn write(&self, client: &mut Client, id: u64, to: u64, flags: u8) {
        client.write_while_open(&wire::send(id, to, flag::ACK | flags, &id.to_be_bytes()).encode());
    }
}

/// Everything that waits for a user, who acknowledges it.
fn take_all(gateway: &Gateway, user: u64) -> Vec<u64> {
    let (mut client, login_ok) = Client::login_with(gateway, &Login::of(user));
    assert_eq!(login_ok.truncated, 0, "nothing is gone");
    let mut ids = Vec::new();
    let mut last_stamp = 0;
    loop {
        let frame = client.recv();
        if frame.kind == kind::SYNC_OK {
            break;
        }
        assert_eq!((frame.kind, frame.peer, &frame.body[..]), (kind::DELIVER, SENDER, &frame.id.to_be_bytes()[..]));
        assert!(frame.stamp > last_stamp, "out of order: {frame:?}");
        last_stamp = frame.stamp;
        client.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&frame) });
        ids.push(frame.id);
    }
    client.ping();
    ids
}

#[test]
fn what_counts_as_stored_outlives_a_process_that_is_killed_again_and_again_and_is_there_once() {
    let rounds = std::env::var("TRUNKLINE_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let folder = ScratchFolder::new("killed");
    let start = || {
        let roomy = ["--inbox-messages-max", "1000000", "--inbox-bytes-max", "1GiB"];
        Gateway::start(2, &[&["--data-dir", folder.path()], &roomy[..]].concat())
    };
    let mut random = Random::seeded(17);
    let mut sender = Sender::default();
    let mut visitor_has = BTreeSet::new();
    for round in 0..rounds {
        let mut gateway = start();
        if random.below(2) == 0 {
            visitor_has.extend(take_all(&gateway, VISITOR));
        }
        let mut client = Client::login(&gateway, SENDER);
        let later = Duration::from_millis(random.below(KILL_LATER_MS) as u64);
        sender.run(&gateway, &mut client, Some((random.below(ANSWERS_MAX), later)));
        gateway.wait_for_exit();
        let settled: usize = sender.settled.values().map(BTreeSet::len).sum();
        eprintln!("round {round}: {settled} settled, {} without an answer", sender.unsettled.len());
    }
    let gateway = start();
    let mut client = Client::login(&gateway, SENDER);
    sender.run(&gateway, &mut client, None);
    for user in OFFLINE {
        let got = take_all(&gateway, user);
        let once: BTreeSet<u64> = got.iter().copied().collect();
        assert_eq!(once.len(), got.len(), "user {user} got a message twice");
        assert_eq!(Some(&once), sender.settled.get(&user), "user {user}");
        assert!(sender.refused > 0 || got.is_sorted(), "user {user} got messages in another order than they were sent");
    }
    // A crash may cost the last positions of a device, so this one may have got some twice, and none too few.
    visitor_has.extend(take_all(&gateway, VISITOR));
    assert_eq!(Some(&visitor_has), sender.settled.get(&VISITOR));
    drop(client);
    gateway.audit();
    gateway.finish();
}
