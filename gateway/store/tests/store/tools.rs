//! Check, export, import.

use crate::support::{Hands, ask, cursor, everything, now_stamp, open, open_device, record, small, stored};
use std::sync::Arc;
use trunkline_store::{Disk, Embedded, Imported, Request, SimDisk, Store};

fn filled(disk: &SimDisk, hands: &Hands) -> Embedded {
    let mut store = open(disk, &small(), hands);
    for user in 1..=5 {
        let device = open_device(&mut store, user, "phone");
        let mut stamps = Vec::new();
        for id in 0..40 {
            stamps.push(stored(&mut store, user, record(now_stamp(hands), id, 100)));
        }
        hands.pass(50);
        ask(&mut store, cursor(user, &device, stamps[user as usize]));
    }
    hands.pass(200);
    store.tick();
    store
}

#[test]
fn an_export_imports_to_the_same() {
    let (disk, other, hands) = (SimDisk::new(), SimDisk::new(), Hands::new());
    let mut store = filled(&disk, &hands);
    let mut exported = Vec::new();
    store.export(&mut exported).unwrap();
    let mut copy = open(&other, &small(), &hands);
    let imported = copy.import(&mut &exported[..]).unwrap();
    assert_eq!((imported.users, imported.refused, imported.duplicates), (5, 0, 0));
    // Some at the end are known again, and none of the others is lost; all have their stamps.
    let again: Imported = open(&other, &small(), &hands).import(&mut &exported[..0]).unwrap();
    assert_eq!(again, Imported::default());
    let mut copy = open(&other, &small(), &hands);
    // More than are looked through for one that is sent again.
    let again = copy.import(&mut &exported[..]).unwrap();
    assert_eq!((again.messages, again.duplicates, again.refused), (0, imported.messages, 0));
    for user in 1..=5 {
        assert_eq!(everything(&mut copy, user), everything(&mut store, user));
        assert_eq!(
            ask(&mut copy, Request::Devices { user, token: 1 }),
            ask(&mut store, Request::Devices { user, token: 1 })
        );
    }
    let (mut first, mut second) = (Vec::new(), Vec::new());
    store.export(&mut first).unwrap();
    copy.export(&mut second).unwrap();
    assert_eq!(first, second);
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &small(), &hands);
    let error = store.import(&mut &b"{\"user\":\"1\",\"floor\":\"0\",\"devices\":[]}\n{\"user\":1}\n"[..]).unwrap_err();
    assert!(error.to_string().starts_with("line 2: "), "{error}");
}

#[test]
fn a_check_reads_everything() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = filled(&disk, &hands);
    let checked = store.check().unwrap();
    assert!(checked.is_sound(), "{checked:?}");
    assert_eq!((checked.users, checked.devices), (5, 5));
    drop(store);
    let files = disk.list().unwrap();
    let (table, size) = files.iter().find(|(name, _)| name.starts_with("table-")).unwrap();
    assert!(disk.damage(table, size / 3));
    let mut store = Embedded::on_disk(Arc::new(disk), small(), hands.clock(), 1).unwrap();
    assert!(!store.check().unwrap().is_sound());
}
