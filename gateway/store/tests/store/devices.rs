//! Devices that stay, and devices that stay away.

use crate::support::{Hands, ask, cursor, everything, now_stamp, open, open_device, record, small, stored};
use std::sync::atomic::Ordering;
use trunkline_store::{Limits, Memory, Opened, Reply, Request, SimDisk, Store};

const HOUR_MS: u64 = 3_600_000;

fn limits() -> Limits {
    Limits { message_age_ms_max: 1_000 * HOUR_MS, device_unseen_ms_max: 30 * 24 * HOUR_MS, ..small() }
}

fn names(store: &mut dyn Store) -> Vec<String> {
    match ask(store, Request::Devices { user: 1, token: 1 }) {
        Some(Reply::Devices(devices)) => devices.into_iter().map(|device| device.name.into()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Two devices are connected for 80 days, and one of them is reported as seen twice a day; `reopen` gives the store
/// after a restart.
fn stay<S: Store>(mut store: S, hands: &Hands, mut reopen: impl FnMut(S) -> S) {
    let phone = open_device(&mut store, 1, "phone");
    open_device(&mut store, 1, "desk");
    for half_day in 0..160 {
        hands.pass(12 * HOUR_MS);
        let Opened { device, device_epoch, .. } = phone;
        assert_eq!(ask(&mut store, Request::Seen { user: 1, device, device_epoch }), None);
        // Numbers that are not known are ignored.
        assert_eq!(ask(&mut store, Request::Seen { user: 1, device: 77, device_epoch }), None);
        hands.pass(200);
        store.tick();
        if half_day % 20 == 0 {
            store = reopen(store);
        }
        let away_too_long = half_day >= 59;
        let expected: &[&str] = if away_too_long { &["phone"] } else { &["phone", "desk"] };
        assert_eq!(names(&mut store), expected, "after {half_day} half days");
    }
    // What comes now waits for it, wherever the floor would be without a device.
    stored(&mut store, 1, record(now_stamp(hands), 5, 10));
    let again = open_device(&mut store, 1, "phone");
    assert!(again.known);
    assert_eq!((again.device_epoch, again.pending), (phone.device_epoch, 1));
    assert_eq!(everything(&mut store, 1).len(), 1);
}

#[test]
fn a_device_that_is_connected_is_not_forgotten() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let store = open(&disk, &limits(), &hands);
    stay(store, &hands, |store| {
        drop(store);
        open(&disk, &limits(), &hands)
    });
}

#[test]
fn what_a_device_has_told_another_node_is_no_gap_to_it() {
    let hands = Hands::new();
    let mut store = Memory::new(limits(), hands.clock(), 7);
    let phone = open_device(&mut store, 1, "phone");
    let stamps: Vec<u64> = (1..=4).map(|id| stored(&mut store, 1, record(now_stamp(&hands), id, 10))).collect();
    ask(&mut store, cursor(1, &phone, stamps[1]));
    let mut page = |device, after| {
        let device_epoch = phone.device_epoch;
        let read =
            Request::Read { user: 1, device, device_epoch, after, since_ms: 0, limit: 9, bytes_max: 9_999, token: 1 };
        match ask(&mut store, read) {
            Some(Reply::Page(page)) => {
                let found: Vec<u64> = page.records.iter().map(|record| record.stamp).collect();
                (page.truncated, page.floor, found)
            }
            other => panic!("{other:?}"),
        }
    };
    // Another home asks that has not heard of the ACKs; and somebody who has only the first.
    assert_eq!(page(phone.device, stamps[0]), (false, stamps[1], stamps[2..].to_vec()));
    assert_eq!(page(0, stamps[0]), (true, stamps[1], stamps[2..].to_vec()));
    assert_eq!(page(phone.device, stamps[2]), (false, stamps[1], stamps[3..].to_vec()));
    assert!(page(phone.device + 1, 0).0, "a device that is not known has nothing");
}

#[test]
fn a_number_that_another_device_has_got_is_not_the_readers() {
    let hands = Hands::new();
    let mut store = Memory::new(Limits { devices_per_user_max: 2, ..limits() }, hands.clock(), 7);
    let phone = open_device(&mut store, 1, "phone");
    open_device(&mut store, 1, "desk");
    let stamps: Vec<u64> = (1..=3).map(|id| stored(&mut store, 1, record(now_stamp(&hands), id, 10))).collect();
    ask(&mut store, cursor(1, &phone, stamps[0]));
    let page = |store: &mut Memory, device: &Opened| {
        let Opened { device, device_epoch, .. } = *device;
        let (user, after, since_ms, limit, bytes_max, token) = (1, 0, 0, 9, 9_999, 1);
        match ask(store, Request::Read { user, device, device_epoch, after, since_ms, limit, bytes_max, token }) {
            Some(Reply::Page(page)) => page.records.iter().map(|record| record.stamp).collect::<Vec<u64>>(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page(&mut store, &phone), stamps[1..]);
    let tablet = open_device(&mut store, 1, "tablet");
    assert_eq!((tablet.device, tablet.cursor), (phone.device, stamps[2]));
    assert!(page(&mut store, &tablet).is_empty());
    assert_eq!(page(&mut store, &phone), stamps, "it is told the truth, if too much of it");
}

/// A device is forgotten, and another one gets its number. What the first has acknowledged, and its connection, come to
/// light late.
fn succeed(store: &mut dyn Store, hands: &Hands) {
    let stale = |store: &dyn Store| store.stats().cursors_stale.load(Ordering::Relaxed);
    let phone = open_device(store, 1, "phone");
    hands.pass(HOUR_MS);
    let desk = open_device(store, 1, "desk");
    hands.pass(HOUR_MS);
    let tablet = open_device(store, 1, "tablet");
    assert_eq!(tablet.device, phone.device);
    let stamps: Vec<u64> = (1..=3).map(|id| stored(store, 1, record(now_stamp(hands), id, 10))).collect();
    ask(store, cursor(1, &desk, stamps[2]));
    hands.pass(2 * HOUR_MS);
    let Opened { device, device_epoch, .. } = phone;
    ask(store, cursor(1, &phone, stamps[2]));
    ask(store, Request::Seen { user: 1, device, device_epoch });
    ask(store, Request::Cursor { user: 1, device: 77, device_epoch: 0, stamp: stamps[2] });
    hands.pass(200);
    store.tick();
    let now = open_device(store, 1, "tablet");
    assert_eq!((now.known, now.cursor, now.pending), (true, tablet.cursor, 3), "what it has not got waits for it");
    assert_eq!(stale(store), 3, "and those who look are told");
    ask(store, cursor(1, &tablet, stamps[1]));
    hands.pass(200);
    store.tick();
    assert_eq!((open_device(store, 1, "tablet").pending, stale(store)), (1, 3));
}

#[test]
fn what_comes_late_of_a_device_that_was_forgotten_moves_nothing_of_its_successor() {
    let limits = Limits { devices_per_user_max: 2, ..limits() };
    let hands = Hands::new();
    succeed(&mut open(&SimDisk::new(), &limits, &hands), &hands);
    succeed(&mut Memory::new(limits, hands.clock(), 7), &hands);
}

#[test]
fn what_a_device_had_when_it_logged_out_is_not_lost_because_it_is_told_later() {
    let hands = Hands::new();
    let mut store = Memory::new(limits(), hands.clock(), 7);
    let phone = open_device(&mut store, 1, "phone");
    let stamps: Vec<u64> = (1..=2).map(|id| stored(&mut store, 1, record(now_stamp(&hands), id, 10))).collect();
    ask(&mut store, Request::LogOut { user: 1, device: "phone".into(), number: 1 });
    ask(&mut store, cursor(1, &phone, stamps[0]));
    let since = open_device(&mut store, 1, "phone");
    assert_ne!(since.device_epoch, phone.device_epoch);
    assert_eq!((since.cursor, since.pending), (stamps[0], 1));
    let Opened { device, device_epoch, .. } = since;
    ask(&mut store, Request::Forget { user: 1, device, device_epoch: device_epoch + 7, token: 1 });
    assert!(open_device(&mut store, 1, "phone").known, "the number is another one's");
    ask(&mut store, Request::Forget { user: 1, device, device_epoch, token: 1 });
    let anew = open_device(&mut store, 1, "phone");
    for epoch in [phone.device_epoch, since.device_epoch] {
        ask(&mut store, cursor(1, &Opened { device_epoch: epoch, ..anew }, stamps[1]));
    }
    assert_eq!(open_device(&mut store, 1, "phone").pending, 1, "it is another one");
    assert_eq!(store.stats().cursors_stale.load(Ordering::Relaxed), 2);
}

/// A message is looked for among those that came lately, where its sender does not say that it sends again.
fn look_up(store: &mut dyn Store, hands: &Hands) {
    let stamps: Vec<u64> = (1..=3).map(|id| stored(store, 1, record(now_stamp(hands), id, 10))).collect();
    let mut again = |retry| match ask(store, Request::Append { user: 1, record: record(0, 2, 10), retry, token: 1 }) {
        Some(Reply::Stored { stamp, duplicate, .. }) => (stamp, duplicate),
        other => panic!("{other:?}"),
    };
    assert_eq!(again(Some(0)), (stamps[1], true));
    assert_eq!(again(Some(stamps[1] - 1)), (stamps[1], true));
    let (stamp, duplicate) = again(Some(stamps[1]));
    assert!(!duplicate && stamp > stamps[2], "one as old as that is another message");
}

#[test]
fn a_look_up_goes_no_further_back_than_it_is_to() {
    let hands = Hands::new();
    look_up(&mut open(&SimDisk::new(), &limits(), &hands), &hands);
    look_up(&mut Memory::new(limits(), hands.clock(), 7), &hands);
}

#[test]
fn a_device_that_is_connected_is_not_forgotten_in_memory() {
    let hands = Hands::new();
    stay(Memory::new(limits(), hands.clock(), 7), &hands, |mut store| {
        store.crash();
        store
    });
}
