//! Bits that flip on disk.

use crate::support::{Blame, Dice, Hands, everything, now_stamp, open, page, record, seeds, small, stored};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use trunkline_store::{Disk, Embedded, Limits, SimDisk, Store};

fn limits() -> Limits {
    Limits { user_messages_max: 10_000, user_bytes_max: 1 << 30, ..small() }
}

/// A store with messages in tables and in the log, and what it promised.
fn filled(disk: &SimDisk, hands: &Hands) -> Vec<(u64, u64)> {
    let mut store = open(disk, &limits(), hands);
    let mut promised = Vec::new();
    for id in 0..300 {
        hands.pass(5);
        let user = 1 + id % 9;
        promised.push((user, stored(&mut store, user, record(now_stamp(hands), id, 300))));
    }
    promised
}

/// What is lost of what was promised is told as truncated to whoever asks for it, and nothing false is shown.
fn check(disk: &SimDisk, hands: &Hands, promised: &[(u64, u64)]) -> u64 {
    let mut store = Embedded::on_disk(Arc::new(disk.clone()), limits(), hands.clock(), 7).unwrap();
    let mut lost = 0;
    for user in 1..=9 {
        let there = everything(&mut store, user);
        let floor = page(&mut store, user, 0).floor;
        for (_, stamp) in promised.iter().filter(|(of, _)| *of == user) {
            let found = there.iter().find(|record| record.stamp == *stamp);
            match found {
                Some(record) => assert!(record.payload.iter().all(|byte| *byte == record.id as u8)),
                None => {
                    lost += 1;
                    assert!(floor >= *stamp, "{stamp} of {user} is lost in silence");
                    assert!(page(&mut store, user, stamp - 1).truncated);
                }
            }
        }
        let last = promised.iter().filter(|(of, _)| *of == user).map(|(_, stamp)| *stamp).max().unwrap();
        assert!(stored(&mut store, user, record(now_stamp(hands), 1_000, 5)) > last, "stamps went back");
    }
    if lost > 0 {
        assert!(store.stats().damages.load(Ordering::Relaxed) > 0, "nobody counted it");
    }
    lost
}

#[test]
fn a_flipped_bit_anywhere_is_told_and_never_shown() {
    let mut lost_ever = 0;
    for seed in seeds(60) {
        let _blame = Blame(seed);
        let mut dice = Dice(seed);
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let promised = filled(&disk, &hands);
        let files = disk.list().unwrap();
        let (name, size) = files[dice.below(files.len() as u64) as usize].clone();
        // A flip in the last batch of the log can't be told from a write that the crash tore, so it is not among those
        // that must be told.
        let last_log = files.iter().map(|(name, _)| name).filter(|name| name.starts_with("log-")).max();
        if Some(&name) == last_log && size < 3 * 4_096 {
            continue;
        }
        let offset = if Some(&name) == last_log { dice.below(size - 4_096) } else { dice.below(size) };
        hands.pass(10);
        assert!(disk.damage(&name, offset));
        lost_ever += check(&disk, &hands, &promised);
        // The second start has got used to it.
        let again = open(&disk, &limits(), &hands);
        assert!(again.stats().damages.load(Ordering::Relaxed) <= 1, "{:?}", again.stats().trouble());
    }
    assert!(lost_ever > 0, "no flip did any harm: the test is worth nothing");
}

#[test]
fn a_table_that_is_missing_is_told_once() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let promised = filled(&disk, &hands);
    let files = disk.list().unwrap();
    let table = files.iter().map(|(name, _)| name).filter(|name| name.starts_with("table-")).min().unwrap();
    disk.remove(table).unwrap();
    hands.pass(10);
    assert!(check(&disk, &hands, &promised) > 0);
    let store = open(&disk, &limits(), &hands);
    assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
}
