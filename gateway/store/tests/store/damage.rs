//! Bits that flip on disk.

use crate::support::{Blame, Dice, Hands, append, everything, now_stamp, open, page, record, seeds, small, stored};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use trunkline_store::{Disk, Embedded, Fault, Limits, Refusal, Reply, SimDisk, Store};

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
fn check(disk: &SimDisk, limits: &Limits, hands: &Hands, promised: &[(u64, u64)]) -> u64 {
    let mut store = open(disk, limits, hands);
    let is_damaged = store.stats().damages.load(Ordering::Relaxed) > 0;
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
    store.close();
    assert_eq!(store.stats().damage().is_some(), is_damaged, "it is shown until the process ends");
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
        // With little memory the log that is read back becomes several tables.
        let memory = if seed.is_multiple_of(2) { 500 } else { limits().recent_bytes_max };
        lost_ever += check(&disk, &Limits { recent_bytes_max: memory, ..limits() }, &hands, &promised);
        // The second start has got used to it.
        let mut again = open(&disk, &limits(), &hands);
        if name.starts_with("log-") {
            assert_eq!(again.check().unwrap().miscounted, 0);
        }
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
    assert!(check(&disk, &limits(), &hands, &promised) > 0);
    let store = open(&disk, &limits(), &hands);
    assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
}

/// Where the batches of a log begin, for logs of one segment: the header has a page, and each batch begins a page.
const PAGE_BYTES: u64 = 4_096;

/// A log with batches of one message each, no table, and the stamps of the messages. The third one has several pages.
fn logged(disk: &SimDisk, hands: &Hands, fails_before_last: bool) -> Vec<u64> {
    let limits = Limits { payload_bytes_max: 20_000, user_bytes_max: 1 << 20, ..limits() };
    let mut store = open(disk, &limits, hands);
    let mut stamps = Vec::new();
    for id in 0..6 {
        hands.pass(5);
        if id == 5 && fails_before_last {
            // The segment after it begins with the last message.
            disk.set_fault(Some(Fault::SyncFails));
            let refused = append(&mut store, 1, record(now_stamp(hands), 99, 10));
            assert_eq!(refused, Reply::Refused(Refusal::Unavailable));
            disk.set_fault(None);
            hands.pass(2_000);
        }
        stamps.push(stored(&mut store, 1, record(now_stamp(hands), id, if id == 2 { 9_000 } else { 100 })));
    }
    assert_eq!(store.stats().tables.load(Ordering::Relaxed), 0);
    stamps
}

/// Opens a log of which one batch is damaged: that message is gone, whoever asks is told, and the others are there.
fn check_logged(disk: &SimDisk, hands: &Hands, stamps: &[u64], lost: usize) {
    hands.pass(10);
    let mut store = Embedded::on_disk(Arc::new(disk.clone()), limits(), hands.clock(), 7).unwrap();
    assert_eq!(store.stats().damages.load(Ordering::Relaxed), 1, "message {lost}: {:?}", store.stats().trouble());
    let there: Vec<u64> = everything(&mut store, 1).iter().map(|record| record.stamp).collect();
    let left: Vec<u64> = stamps.iter().filter(|stamp| **stamp != stamps[lost]).copied().collect();
    assert_eq!(there, left, "message {lost}");
    assert!(page(&mut store, 1, stamps[lost] - 1).truncated, "message {lost} is lost in silence");
    assert!(stored(&mut store, 1, record(0, 100, 5)) > stamps[5]);
}

/// What is damaged with whole batches behind it was durable, so it is no write that a crash tore.
#[test]
fn a_damaged_batch_in_the_middle_of_the_log_is_told_and_the_rest_is_read() {
    // Pages of the batches: the third message has three.
    for (lost, place) in [1, 2, 3, 6, 7].into_iter().enumerate() {
        // The magic, the length, the number, both checksums, the message.
        for within in [0, 5, 9, 33, 38, 60] {
            let (disk, hands) = (SimDisk::new(), Hands::new());
            let stamps = logged(&disk, &hands, false);
            let (log, _) = disk.list().unwrap().into_iter().find(|(name, _)| name.starts_with("log-")).unwrap();
            assert!(disk.damage(&log, place * PAGE_BYTES + within));
            check_logged(&disk, &hands, &stamps, lost);
        }
    }
}

/// The end of a segment may be torn only if the next segment begins with the batch that is torn.
#[test]
fn a_damaged_batch_at_the_end_of_a_segment_is_told() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let stamps = logged(&disk, &hands, true);
    let log = disk.list().unwrap().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("log-")).min();
    assert!(disk.damage(&log.unwrap(), 7 * PAGE_BYTES + 60));
    check_logged(&disk, &hands, &stamps, 4);
}

/// The last batch may have been torn by the crash, before anybody was told that it is stored.
#[test]
fn a_torn_end_is_no_damage() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let stamps = logged(&disk, &hands, false);
    let (log, _) = disk.list().unwrap().into_iter().find(|(name, _)| name.starts_with("log-")).unwrap();
    assert!(disk.damage(&log, 8 * PAGE_BYTES + 60));
    let mut store = open(&disk, &limits(), &hands);
    assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
    let there: Vec<u64> = everything(&mut store, 1).iter().map(|record| record.stamp).collect();
    assert_eq!(there, stamps[..5]);
    assert!(!page(&mut store, 1, 0).truncated);
}
