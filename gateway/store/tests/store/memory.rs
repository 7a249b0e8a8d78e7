//! What the store keeps in memory of users who do not come.

use crate::support::{Hands, append, cursor, now_stamp, open, record};
use std::sync::atomic::Ordering;
use trunkline_store::{Embedded, Limits, Opened, Reply, Request, SimDisk, Store};

/// One more than a table of users has room for before it is twice as large: it is as empty as it can be.
const USERS: u64 = (1 << 13) * 7 / 8 + 1;
/// What the design allows for a user with messages on disk.
const WITH_MESSAGES_MAX: u64 = 64;
/// A table's filter has 12 bits for each of its users, and there is a list of its blocks.
const KNOWN_MAX: u64 = 3;

fn index_bytes(store: &Embedded) -> u64 {
    store.stats().index_bytes.load(Ordering::Relaxed)
}

/// Asks something about each user in one batch.
fn ask_all(store: &mut Embedded, request: impl FnMut(u64) -> Request) -> Vec<Reply> {
    let mut batch = (1..=USERS).map(request).map(|request| (0, request)).collect();
    let mut replies = Vec::new();
    store.apply(&mut batch, &mut |_, answer| replies.push(answer.reply));
    replies
}

/// Lets the log be cut, and what is quiet be forgotten.
fn rest(store: &mut Embedded, hands: &Hands) {
    for _ in 0..3 {
        hands.pass(600_000);
        // What is quiet is so beside the latest message of anybody.
        append(store, 1 << 40, record(now_stamp(hands), 1, 1));
        store.tick();
    }
}

#[test]
fn a_user_costs_some_bytes_while_messages_wait_and_hardly_any_otherwise() {
    let limits = Limits { device_unseen_ms_max: u64::MAX / 2, message_age_ms_max: u64::MAX / 2, ..Limits::default() };
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &limits, &hands);
    let nobody = index_bytes(&store);
    let opened = ask_all(&mut store, |user| {
        let device = "phone".into();
        Request::Open { user, device, ephemeral: false, claims: false, token: user }
    });
    let devices: Vec<Opened> = opened
        .into_iter()
        .map(|reply| match reply {
            Reply::Opened(opened) => opened,
            other => panic!("{other:?}"),
        })
        .collect();
    rest(&mut store, &hands);
    let known = index_bytes(&store) - nobody;
    assert!(known <= KNOWN_MAX * USERS, "{known} bytes for {USERS} users with empty inboxes");

    ask_all(&mut store, |user| {
        let record = record(now_stamp(&hands), user, 20);
        Request::Append { user, record, retry: None, token: user }
    });
    rest(&mut store, &hands);
    assert_eq!(store.stats().users.load(Ordering::Relaxed), USERS + 1);
    let waiting = index_bytes(&store) - nobody;
    assert!(waiting <= WITH_MESSAGES_MAX * USERS, "{waiting} bytes for {USERS} users with messages on disk");
    drop(store);
    let mut store = open(&disk, &limits, &hands);
    assert!(index_bytes(&store) - nobody <= WITH_MESSAGES_MAX * USERS, "after a restart");

    ask_all(&mut store, |user| cursor(user, &devices[user as usize - 1], u64::MAX));
    rest(&mut store, &hands);
    assert_eq!(store.stats().users.load(Ordering::Relaxed), 1);
    let known = index_bytes(&store) - nobody;
    let tables = store.stats().tables.load(Ordering::Relaxed);
    assert!(known <= KNOWN_MAX * tables * USERS, "{known} bytes for {USERS} users who have all, in {tables} tables");
}
