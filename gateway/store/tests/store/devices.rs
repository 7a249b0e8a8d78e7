//! Devices that stay, and devices that stay away.

use crate::support::{Hands, ask, everything, now_stamp, open, open_device, record, small, stored};
use trunkline_store::{Limits, Memory, Reply, Request, SimDisk, Store};

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
        assert_eq!(ask(&mut store, Request::Seen { user: 1, device: phone.device }), None);
        // Numbers that are not known are ignored.
        assert_eq!(ask(&mut store, Request::Seen { user: 1, device: 77 }), None);
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
fn a_device_that_is_connected_is_not_forgotten_in_memory() {
    let hands = Hands::new();
    stay(Memory::new(limits(), hands.clock(), 7), &hands, |mut store| {
        store.crash();
        store
    });
}
