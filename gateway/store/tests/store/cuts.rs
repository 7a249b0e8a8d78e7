//! The power fails at every single write.

use crate::support::{
    Blame, Dice, Hands, everything, now_stamp, open, open_device, page, record, seeds, small, stored,
};
use std::collections::HashMap;
use std::sync::Arc;
use trunkline_store::{Embedded, Limits, Record, Reply, Request, SimDisk, Store};

/// What a user was promised.
#[derive(Default)]
struct Promises {
    /// Messages answered as stored.
    stored: Vec<Record>,
    /// The highest stamp that was ever answered.
    last: u64,
    /// What was asked to be stored and has got no answer, or was refused: it may be there.
    doubtful: Vec<Record>,
    /// The highest position that was acknowledged.
    acknowledged: u64,
    registered: bool,
    /// The epoch of its device, as last answered.
    device_epoch: u32,
    /// A login was asked for: it may have registered the device although nobody got the answer.
    maybe_registered: bool,
}

fn limits() -> Limits {
    // Every few batches a table, and every few tables a merge.
    Limits { recent_bytes_max: 6 << 10, user_messages_max: 10_000, user_bytes_max: 1 << 30, ..small() }
}

/// Limits with which a log that is read back becomes several tables.
fn tight(at: u64) -> Limits {
    if at.is_multiple_of(2) { limits() } else { Limits { recent_bytes_max: 300, ..limits() } }
}

/// Lets some batches go to the store until the disk fails. Returns whether it did.
fn work(store: &mut Embedded, dice: &mut Dice, hands: &Hands, promises: &mut HashMap<u64, Promises>, steps: u64) {
    for _ in 0..steps {
        hands.pass(1 + dice.below(60));
        let mut batch = Vec::new();
        let mut asked: HashMap<u64, (u64, Record)> = HashMap::new();
        for token in 0..1 + dice.below(6) {
            let user = 1 + dice.below(5);
            let to = promises.entry(user).or_default();
            match dice.below(10) {
                0 => {
                    to.maybe_registered = true;
                    let device = "phone".into();
                    batch.push((0, Request::Open { user, device, ephemeral: false, claims: false, token }));
                }
                1 | 2 if !to.stored.is_empty() => {
                    let at = dice.below(to.stored.len() as u64) as usize;
                    to.acknowledged = to.acknowledged.max(to.stored[at].stamp);
                    let (device, device_epoch, stamp) = (1, to.device_epoch, to.stored[at].stamp);
                    batch.push((0, Request::Cursor { user, device, device_epoch, stamp }));
                }
                _ => {
                    let record = record(now_stamp(hands) + token, dice.roll(), dice.below(900) as usize);
                    asked.insert(token, (user, record.clone()));
                    batch.push((0, Request::Append { user, record, retry: None, token }));
                }
            }
        }
        let opens: HashMap<u64, u64> = batch
            .iter()
            .filter_map(|(_, request)| match request {
                Request::Open { user, token, .. } => Some((*token, *user)),
                _ => None,
            })
            .collect();
        store.apply(&mut batch, &mut |_, answer| match answer.reply {
            Reply::Stored { stamp, .. } => {
                let (user, record) = asked.remove(&answer.token).unwrap();
                let to = promises.get_mut(&user).unwrap();
                assert!(stamp > to.last, "stamps of {user} went back");
                to.last = stamp;
                to.stored.push(Record { stamp, ..record });
            }
            Reply::Opened(opened) => {
                let to = promises.get_mut(&opens[&answer.token]).unwrap();
                (to.registered, to.device_epoch) = (true, opened.device_epoch);
            }
            Reply::Refused(_) => {}
            other => panic!("unexpected: {other:?}"),
        });
        for (user, record) in asked.into_values() {
            promises.get_mut(&user).unwrap().doubtful.push(record);
        }
        store.tick();
    }
}

/// Checks what is there against what was promised, and takes what is there for what is promised from now on.
fn check(store: &mut Embedded, hands: &Hands, promises: &mut HashMap<u64, Promises>) {
    for (user, to) in promises {
        let there = everything(store, *user);
        assert!(there.windows(2).all(|pair| pair[0].stamp < pair[1].stamp), "out of order");
        // Cursors may be lost, and may have got to disk: what lies before the highest need not be there, unless nobody
        // is registered.
        let gone_upto = if to.maybe_registered { to.acknowledged } else { 0 };
        for promised in to.stored.iter().filter(|record| record.stamp > gone_upto) {
            assert!(there.contains(promised), "user {user} has lost {}", promised.stamp);
        }
        for found in &there {
            let known = to.stored.contains(found)
                || to.doubtful.iter().any(|asked| (asked.id, &asked.payload) == (found.id, &found.payload));
            assert!(known, "user {user} has {found:?}, which nobody sent");
        }
        let next = stored(store, *user, record(now_stamp(hands), u64::MAX, 3));
        assert!(next > to.last, "stamps of {user} went back after the crash");
        assert!(!page(store, *user, to.last).truncated);
        let there = everything(store, *user);
        (to.last, to.stored) = (next, there);
        to.doubtful.clear();
        if to.registered {
            let device = open_device(store, *user, "phone");
            assert!(device.known, "the device of {user} was forgotten");
            to.device_epoch = device.device_epoch;
        }
    }
    assert!(store.check().unwrap().is_sound());
}

fn cut(seed: u64, at: u64, again: Option<u64>) {
    let mut dice = Dice(seed);
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut promises = HashMap::new();
    disk.cut_after(at);
    if let Ok(mut store) = Embedded::on_disk(Arc::new(disk.clone()), limits(), hands.clock(), 7) {
        work(&mut store, &mut dice, &hands, &mut promises, 40);
    }
    disk.crash(seed ^ at);
    if let Some(again) = again {
        // It fails once more while the store recovers, or soon after.
        disk.cut_after(again);
        if let Ok(mut store) = Embedded::on_disk(Arc::new(disk.clone()), tight(again), hands.clock(), 7) {
            work(&mut store, &mut dice, &hands, &mut promises, 10);
        }
        disk.crash(seed ^ at ^ (again << 32));
    }
    let mut store = open(&disk, &tight(at), &hands);
    check(&mut store, &hands, &mut promises);
    assert_eq!(store.stats().damages.load(std::sync::atomic::Ordering::Relaxed), 0, "a crash is no damage");
    // It goes on, also after another restart.
    work(&mut store, &mut dice, &hands, &mut promises, 5);
    drop(store);
    check(&mut open(&disk, &limits(), &hands), &hands, &mut promises);
}

fn operations(seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &limits(), &hands);
    work(&mut store, &mut dice, &hands, &mut HashMap::new(), 40);
    assert!(store.stats().tables_written.load(std::sync::atomic::Ordering::Relaxed) > 5);
    disk.operations()
}

#[test]
fn what_was_answered_is_there_wherever_the_power_fails() {
    for seed in seeds(1) {
        let _blame = Blame(seed);
        for at in 0..=operations(seed) {
            cut(seed, at, None);
        }
    }
}

#[test]
fn what_was_answered_is_there_when_it_fails_again_while_recovering() {
    for seed in seeds(1) {
        let _blame = Blame(seed);
        let mut dice = Dice(seed);
        let operations = operations(seed);
        for again in 0..60 {
            cut(seed, dice.below(operations), Some(again));
        }
    }
}
