//! Clocks that somebody sets.

use crate::support::{Hands, append, ask, cursor, now_stamp, open, open_device, page, record, small, stored};
use std::sync::atomic::Ordering;
use trunkline_store::{Fault, Limits, Refusal, Reply, SimDisk, Store};

const DAY_MS: u64 = 24 * 3_600_000;

#[test]
fn a_message_gets_the_position_its_node_proposes_however_far_the_clock_was_set_back() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &Limits::default(), &hands);
    let phone = open_device(&mut store, 1, "phone");
    let first = stored(&mut store, 1, record(now_stamp(&hands), 1, 10));
    hands.set_back(2 * DAY_MS);
    assert_eq!(stored(&mut store, 1, record(first + 1, 2, 10)), first + 1);
    // Nothing waits for the user, who is known from the disk alone.
    ask(&mut store, cursor(1, &phone, first + 1));
    store.close();
    let mut store = open(&disk, &Limits::default(), &hands);
    assert_eq!(stored(&mut store, 1, record(first + 2, 3, 10)), first + 2);
    let ids: Vec<u64> = page(&mut store, 1, first + 1).records.iter().map(|record| record.id).collect();
    assert_eq!(ids, [3]);
    assert_eq!(open_device(&mut store, 1, "phone").pending, 1);
}

#[test]
fn what_is_due_is_done_though_the_clock_was_set_back() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &Limits::default(), &hands);
    let phone = open_device(&mut store, 1, "phone");
    let stamp = stored(&mut store, 1, record(now_stamp(&hands), 1, 10));
    ask(&mut store, cursor(1, &phone, stamp));
    let commits = store.stats().commits.load(Ordering::Relaxed);
    hands.set_back(2 * DAY_MS);
    store.tick();
    hands.pass(100);
    store.tick();
    assert_eq!(store.stats().commits.load(Ordering::Relaxed), commits + 1, "the cursor is durable");
    disk.set_fault(Some(Fault::Full));
    let refused = Reply::Refused(Refusal::Unavailable);
    assert_eq!(append(&mut store, 1, record(stamp + 1, 2, 10)), refused);
    disk.set_fault(None);
    hands.set_back(2 * DAY_MS);
    store.tick();
    hands.pass(1_000);
    store.tick();
    assert!(stored(&mut store, 1, record(stamp + 1, 2, 10)) > stamp);
}

#[test]
fn a_clock_that_runs_ahead_of_the_time_that_passes_empties_no_inbox_and_forgets_no_device() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let uptime = Hands::new();
    let mut store = open(&disk, &small(), &hands);
    store.set_uptime(uptime.clock());
    open_device(&mut store, 1, "phone");
    let stamp = stored(&mut store, 1, record(now_stamp(&hands), 1, 10));
    let ahead = |store: &dyn Store| store.stats().clock_ahead_ms.load(Ordering::Relaxed);
    assert_eq!(ahead(&store), 0);
    hands.pass(400 * DAY_MS);
    store.tick();
    assert_eq!((page(&mut store, 1, 0).records.len(), ahead(&store)), (1, 400 * DAY_MS - 3_600_000));
    // The table is looked through, and merged.
    for id in 0..400 {
        append(&mut store, 2 + id % 20, record(stamp + id, id, 500));
        store.tick();
    }
    assert!(store.stats().tables_written.load(Ordering::Relaxed) > 0);
    let opened = open_device(&mut store, 1, "phone");
    assert_eq!((opened.known, opened.pending), (true, 1));
    // Time that passes counts.
    uptime.pass(small().message_age_ms_max);
    hands.pass(small().message_age_ms_max);
    assert_eq!(page(&mut store, 1, 0).records.len(), 0);
    uptime.pass(500 * DAY_MS);
    hands.pass(small().device_unseen_ms_max);
    store.tick();
    assert_eq!((open_device(&mut store, 1, "phone").known, ahead(&store)), (false, 0));
}
