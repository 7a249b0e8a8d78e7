//! Disks that fail while the store runs.

use crate::support::{
    Hands, append, ask, cursor, everything, now_stamp, open, open_device, page, record, small, stored,
};
use std::sync::atomic::Ordering;
use trunkline_store::{Embedded, Fault, Limits, Refusal, Reply, Request, SimDisk, Store};

const REFUSED: Reply = Reply::Refused(Refusal::Unavailable);

#[test]
fn a_failed_disk_refuses_and_comes_back_by_itself() {
    for fault in [Fault::Full, Fault::ReadOnly, Fault::SyncFails, Fault::SyncDoubtful, Fault::Broken] {
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = open(&disk, &small(), &hands);
        let device = open_device(&mut store, 1, "phone");
        let before = stored(&mut store, 1, record(now_stamp(&hands), 1, 100));
        disk.set_fault(Some(fault));
        for id in 2..5 {
            assert_eq!(append(&mut store, 1, record(now_stamp(&hands), id, 100)), REFUSED, "{fault:?}");
            hands.pass(2_000);
            store.tick();
        }
        assert!(!store.stats().is_available());
        assert!(store.stats().trouble().is_some());
        // What is in memory can be read, and known devices can log in.
        assert_eq!(page(&mut store, 1, 0).records.len(), 1, "{fault:?}");
        assert!(open_device(&mut store, 1, "phone").known);
        let new = Request::Open { user: 1, device: "desk".into(), ephemeral: false, claims: false, token: 1 };
        assert_eq!(ask(&mut store, new), Some(REFUSED));
        ask(&mut store, cursor(1, &device, before));
        disk.set_fault(None);
        hands.pass(2_000);
        store.tick();
        assert!(store.stats().is_available(), "{fault:?}");
        let after = stored(&mut store, 1, record(now_stamp(&hands), 9, 100));
        disk.crash(5);
        let mut store = open(&disk, &small(), &hands);
        let ids: Vec<u64> = everything(&mut store, 1).iter().map(|record| record.id).collect();
        assert_eq!(ids, [9], "{fault:?}: the first was acknowledged, those refused are not there");
        assert!(stored(&mut store, 1, record(0, 10, 1)) > after);
        assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn logins_of_known_devices_take_no_memory_without_bound_while_the_disk_does_not_write() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let limits = Limits { recent_bytes_max: 8_000, ..small() };
    let mut store = open(&disk, &limits, &hands);
    const USERS: u64 = 400;
    for user in 1..=USERS {
        open_device(&mut store, user, "phone");
        store.tick();
    }
    // So much later a login is worth noting.
    hands.pass(3_600_001);
    disk.set_fault(Some(Fault::ReadOnly));
    for user in 1..=USERS {
        assert!(open_device(&mut store, user, "phone").known);
        hands.pass(1);
        store.tick();
    }
    let recent = store.stats().recent_bytes.load(Ordering::Relaxed);
    assert!(recent <= 5 * limits.recent_bytes_max, "{recent} bytes");
    assert!(store.stats().cursors_dropped.load(Ordering::Relaxed) > 0);
}

/// The kernel drops what it could not write, and calls the next sync a success. Who goes on in the same file loses what
/// it answered next.
#[test]
fn after_a_failed_sync_the_same_file_is_never_trusted_again() {
    for seed in 0..20 {
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = open(&disk, &small(), &hands);
        let mut expected = Vec::new();
        for round in 0..6 {
            for id in 0..4 {
                expected.push(stored(&mut store, 1, record(now_stamp(&hands), round * 10 + id, 50)));
            }
            disk.set_fault(Some(Fault::SyncFails));
            assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 100 + round, 50)), REFUSED);
            disk.set_fault(None);
            hands.pass(1_500);
        }
        disk.crash(seed);
        let mut store = open(&disk, &small(), &hands);
        let there: Vec<u64> = everything(&mut store, 1).iter().map(|record| record.stamp).collect();
        assert_eq!(there, expected);
        assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
    }
}

/// A sync that failed may have got the batch to disk all the same. Its sender was told that it is not stored, so it
/// must not come to light: neither after a kill, where the page cache has all of it, nor after a power failure, where
/// the disk has any part of it.
#[test]
fn what_was_refused_does_not_come_to_light() {
    for fault in [Fault::SyncFails, Fault::SyncDoubtful] {
        for seed in 0..20 {
            let (disk, hands) = (SimDisk::new(), Hands::new());
            let mut store = open(&disk, &small(), &hands);
            let mut expected = Vec::new();
            for round in 0..5 {
                for id in 0..round {
                    expected.push(stored(&mut store, 1, record(now_stamp(&hands), round * 10 + id, 50)));
                }
                disk.set_fault(Some(fault));
                assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 100 + round, 50)), REFUSED);
                disk.set_fault(None);
                hands.pass(1_500);
            }
            expected.push(stored(&mut store, 1, record(now_stamp(&hands), 99, 50)));
            drop(store);
            if seed > 0 {
                disk.crash(seed);
            }
            let mut store = open(&disk, &small(), &hands);
            let there: Vec<u64> = everything(&mut store, 1).iter().map(|record| record.stamp).collect();
            assert_eq!(there, expected, "{fault:?}, seed {seed}");
            assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0);
            assert!(store.check().unwrap().is_sound());
        }
    }
}

/// After a failed sync and a kill the page cache shows what is not on disk. A sender that tries again is told that it
/// is stored, and then the power fails.
#[test]
fn what_only_the_page_cache_has_is_made_durable_before_anybody_is_told_of_it() {
    for seed in 0..20 {
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = open(&disk, &small(), &hands);
        stored(&mut store, 1, record(now_stamp(&hands), 1, 50));
        disk.set_fault(Some(Fault::SyncFails));
        assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 2, 50)), REFUSED);
        drop(store);
        disk.set_fault(None);
        let mut store = open(&disk, &small(), &hands);
        let again = Request::Append { user: 1, record: record(now_stamp(&hands), 2, 50), retry: Some(0), token: 1 };
        let Some(Reply::Stored { stamp, duplicate: true, .. }) = ask(&mut store, again) else {
            panic!("the page cache was not read: the test is worth nothing")
        };
        drop(store);
        disk.crash(seed);
        let there = everything(&mut open(&disk, &small(), &hands), 1);
        assert_eq!(there.last().map(|record| (record.id, record.stamp)), Some((2, stamp)));
    }
}

#[test]
fn a_disk_that_is_full_while_a_table_is_written_loses_nothing() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let limits = Limits { user_messages_max: 1_000, user_bytes_max: 1 << 30, ..small() };
    let mut store = open(&disk, &limits, &hands);
    let mut expected = Vec::new();
    for id in 0..400 {
        // Every now and then it fails for a while, at a place of its own.
        let fault = if id % 50 > 40 { Some(Fault::Full) } else { None };
        disk.set_fault(fault);
        hands.pass(300);
        match append(&mut store, 1 + id % 7, record(now_stamp(&hands), id, 400)) {
            Reply::Stored { stamp, .. } => expected.push((1 + id % 7, stamp)),
            REFUSED => {}
            other => panic!("{other:?}"),
        }
        store.tick();
    }
    disk.set_fault(None);
    hands.pass(2_000);
    store.tick();
    assert!(
        store.stats().table_failures.load(Ordering::Relaxed) > 0
            || store.stats().tables_written.load(Ordering::Relaxed) > 0
    );
    disk.crash(1);
    let mut store = open(&disk, &limits, &hands);
    for user in 1..=7 {
        let there: Vec<u64> = everything(&mut store, user).iter().map(|record| record.stamp).collect();
        let promised: Vec<u64> = expected.iter().filter(|(of, _)| *of == user).map(|(_, stamp)| *stamp).collect();
        assert_eq!(there, promised);
    }
}

#[test]
fn a_closed_store_refuses() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &small(), &hands);
    store.close();
    assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 1, 1)), REFUSED);
}

/// The same, and the disk still fails when the store starts again.
#[test]
fn what_only_the_page_cache_has_is_told_to_nobody_while_the_disk_fails() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &small(), &hands);
    stored(&mut store, 1, record(now_stamp(&hands), 1, 50));
    disk.set_fault(Some(Fault::SyncFails));
    assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 2, 50)), REFUSED);
    drop(store);
    let mut store = open(&disk, &small(), &hands);
    assert!(!store.stats().is_available());
    let again = || Request::Append { user: 1, record: record(now_stamp(&hands), 2, 50), retry: Some(0), token: 1 };
    assert_eq!(ask(&mut store, again()), Some(REFUSED));
    disk.set_fault(None);
    hands.pass(2_000);
    store.tick();
    let Some(Reply::Stored { stamp, .. }) = ask(&mut store, again()) else { panic!("the disk works again") };
    drop(store);
    disk.crash(3);
    let there = everything(&mut open(&disk, &small(), &hands), 1);
    assert_eq!(there.last().map(|record| (record.id, record.stamp)), Some((2, stamp)));
}

/// The same, and the process that starts again is killed or meets a failure at any operation of its start. Whatever the
/// third one finds in the page cache, it makes it durable before it tells anybody.
#[test]
fn what_only_the_page_cache_has_is_not_trusted_because_a_start_went_on_after_it() {
    for fault in [Fault::SyncFails, Fault::SyncDoubtful, Fault::Full] {
        for at in 0..16 {
            let (disk, hands) = (SimDisk::new(), Hands::new());
            let mut store = open(&disk, &small(), &hands);
            stored(&mut store, 1, record(now_stamp(&hands), 1, 50));
            disk.set_fault(Some(Fault::SyncFails));
            assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 2, 50)), REFUSED);
            drop(store);
            disk.set_fault(None);
            // The second process meets the fault and is killed at once, or a little later.
            let begin = disk.operations() + at / 2;
            disk.set_fault_at(begin..begin + 50, fault);
            let mut store = open(&disk, &small(), &hands);
            if at % 2 == 1 {
                hands.pass(2_000);
                store.tick();
            }
            drop(store);
            disk.set_fault_at(0..0, fault);
            let mut store = open(&disk, &small(), &hands);
            let again = Request::Append { user: 1, record: record(now_stamp(&hands), 2, 50), retry: Some(0), token: 1 };
            let Some(Reply::Stored { stamp, .. }) = ask(&mut store, again) else { panic!("the disk works") };
            drop(store);
            disk.crash(at);
            let mut store = open(&disk, &small(), &hands);
            let there: Vec<(u64, u64)> =
                everything(&mut store, 1).iter().map(|record| (record.id, record.stamp)).collect();
            assert_eq!(there.len(), 2, "{fault:?} at {at}: {there:?}");
            assert_eq!(there[1], (2, stamp), "{fault:?} at {at}");
            assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0, "{fault:?} at {at}");
        }
    }
}

/// Limits with which all of it is at work within some dozens of messages.
fn busy() -> Limits {
    Limits { recent_bytes_max: 4 << 10, user_messages_max: 10_000, user_bytes_max: 1 << 30, ..small() }
}

/// Stores messages for a while, and returns what was answered as stored.
fn run(store: &mut Embedded, hands: &Hands) -> Vec<(u64, u64)> {
    let mut expected = Vec::new();
    for id in 0..70 {
        hands.pass(400);
        match append(store, 1 + id % 5, record(now_stamp(hands), id, 400)) {
            Reply::Stored { stamp, .. } => expected.push((1 + id % 5, stamp)),
            REFUSED => {}
            other => panic!("{other:?}"),
        }
        store.tick();
    }
    expected
}

fn check(store: &mut Embedded, expected: &[(u64, u64)], what: &str) {
    for user in 1..=5 {
        let there: Vec<u64> = everything(store, user).iter().map(|record| record.stamp).collect();
        let promised: Vec<u64> = expected.iter().filter(|(of, _)| *of == user).map(|(_, stamp)| *stamp).collect();
        assert_eq!(there, promised, "{what}");
    }
    assert!(store.check().unwrap().is_sound(), "{what}");
}

/// Whatever the store is at when a write, a sync or a change of the folder fails: the log, a table, a merge.
#[test]
fn a_failure_of_any_operation_loses_nothing_and_is_over_with_the_fault() {
    let operations = {
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = open(&disk, &busy(), &hands);
        run(&mut store, &hands);
        assert!(store.stats().tables_written.load(Ordering::Relaxed) > 5);
        disk.operations()
    };
    let faults = [Fault::Full, Fault::ReadOnly, Fault::SyncFails, Fault::SyncDoubtful, Fault::Broken];
    let (mut commits, mut tables) = (0, 0);
    // The first ones open the store.
    for at in (8..operations).step_by(2) {
        let fault = faults[at as usize % faults.len()];
        let what = format!("{fault:?} at {at}");
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = open(&disk, &busy(), &hands);
        disk.set_fault_at(at..at + 1 + at % 4, fault);
        let mut expected = run(&mut store, &hands);
        let stats = store.stats().clone();
        commits += stats.commit_failures.load(Ordering::Relaxed);
        tables += stats.table_failures.load(Ordering::Relaxed);
        disk.set_fault_at(0..0, fault);
        // A merge is tried again after a minute.
        hands.pass(70_000);
        store.tick();
        assert!(stats.is_available(), "{what}");
        expected.push((1, stored(&mut store, 1, record(now_stamp(&hands), 1_000, 10))));
        check(&mut store, &expected, &what);
        drop(store);
        disk.crash(at);
        let mut store = open(&disk, &busy(), &hands);
        check(&mut store, &expected, &what);
        assert_eq!(store.stats().damages.load(Ordering::Relaxed), 0, "{what}");
    }
    assert!(commits > 0 && tables > 0, "no fault hit a commit or a table: the test is worth nothing");
}

/// What can't be read is refused, not taken for an empty log.
#[test]
fn tables_that_cannot_be_read_are_not_taken_for_empty() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &busy(), &hands);
    let expected = run(&mut store, &hands);
    disk.set_fault(Some(Fault::Broken));
    let read = || Request::Read {
        user: 1,
        device: 0,
        device_epoch: 0,
        after: 0,
        since_ms: 0,
        limit: 5,
        bytes_max: 1 << 20,
        token: 1,
    };
    assert_eq!(ask(&mut store, read()), Some(REFUSED));
    let retry = Request::Append { user: 1, record: record(now_stamp(&hands), 0, 400), retry: Some(0), token: 1 };
    assert_eq!(ask(&mut store, retry), Some(REFUSED));
    disk.set_fault(None);
    hands.pass(2_000);
    store.tick();
    check(&mut store, &expected, "the disk is back");
}

/// A store on a file system that has become read-only opens, gives out what it has and refuses what is new.
#[test]
fn a_read_only_disk_at_the_start_is_read() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &busy(), &hands);
    let expected = run(&mut store, &hands);
    drop(store);
    disk.set_fault(Some(Fault::ReadOnly));
    let mut store = open(&disk, &busy(), &hands);
    assert!(!store.stats().is_available());
    check(&mut store, &expected, "read-only");
    assert_eq!(append(&mut store, 1, record(now_stamp(&hands), 1_000, 10)), REFUSED);
    disk.set_fault(None);
    hands.pass(2_000);
    store.tick();
    assert!(store.stats().is_available());
    stored(&mut store, 1, record(now_stamp(&hands), 1_001, 10));
}
