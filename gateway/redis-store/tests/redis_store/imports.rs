//! Exports that are put in more than once, and while Redis is late.

use super::{BEGIN_MS, Running, cluster, limits, record, settings};
use std::sync::PoisonError;
use trunkline_redis_store::Tool;
use trunkline_store::{CopyLine, Imported, Opened, Reply, Request, UserCopy, stamp_at};

const MESSAGES: u64 = 20;

/// An export of one user with a device that has nothing yet: messages with these ids, one in a millisecond from then
/// on.
fn export(user: u64, begin_ms: u64, ids: std::ops::Range<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    let devices = vec![(1, 77, "phone".to_owned(), 0, BEGIN_MS)];
    CopyLine::User(UserCopy { user, floor: 0, devices }).write(&mut out).unwrap();
    for (at, id) in ids.enumerate() {
        let record = record(stamp_at(begin_ms + at as u64), id, 10);
        CopyLine::Message(user, record).write(&mut out).unwrap();
    }
    out
}

#[test]
fn what_is_put_in_again_is_there_once_and_homes_go_on_writing() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let user = 81;
    let text = export(user, BEGIN_MS - 1_000, 0..MESSAGES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tool = runtime.block_on(Tool::connect(settings(&redis, limits(), None, &running.clock_ms))).unwrap();
    let import = |text: &[u8]| runtime.block_on(tool.import(&mut &text[..]));
    let counts = |imported: Imported| (imported.messages, imported.duplicates, imported.refused);

    // It ends in the midst of it, and Redis is late as it is begun anew.
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let cut = [&lines[..13].concat()[..], b"{\"user\":81}\n"].concat();
    assert!(import(&cut).unwrap_err().to_string().starts_with("line 14: "));
    let master = redis.master_of_slot(redis.slot_of(&format!("tl:inbox:{{{user}}}")));
    redis.ask(master, &["CLIENT", "PAUSE", "1300", "ALL"]).unwrap();
    let imported = import(&text).unwrap();
    assert_eq!((imported.messages + imported.duplicates, imported.refused), (MESSAGES, 0));
    assert_eq!(counts(import(&text).unwrap()), (0, MESSAGES, 0));
    assert_eq!(running.read(user), (0..MESSAGES).collect::<Vec<u64>>());

    // What the device has since does not come back.
    let open = Request::Open { user, device: "phone".into(), ephemeral: false, claims: false, token: 1 };
    let Reply::Opened(Opened { device, device_epoch, .. }) = running.ask(0, open) else { panic!("not opened") };
    running.send(0, Request::Cursor { user, device, device_epoch, stamp: stamp_at(BEGIN_MS - 1_000 + 14) });
    assert_eq!(counts(import(&text).unwrap()), (0, MESSAGES, 0));
    assert_eq!(running.read(user), (15..MESSAGES).collect::<Vec<u64>>());

    // The home of a user writes in its view, whatever has been imported.
    running.send(0, Request::View { epoch: 5 });
    assert!(matches!(running.append(0, user, 100, false), Reply::Stored { .. }));

    // Older messages of another store come behind what is there, once, though they have other positions here.
    let other = export(user, BEGIN_MS - 5_000, 200..210);
    assert_eq!(counts(import(&other).unwrap()), (10, 0, 0));
    assert_eq!([&other, &text, &other].map(|text| import(text).unwrap().messages), [0; 3]);
    let expected: Vec<u64> = (15..MESSAGES).chain([100]).chain(200..210).collect();
    assert_eq!(running.read(user), expected);
    assert!(running.store.unwrap().stop());
}
