//! What is asked for again because nobody knew whether replicas have it.

use super::{BEGIN_MS, Running, cluster, limits};
use std::sync::PoisonError;
use trunkline_store::{GroupReply, Reply, Request};

const INBOX: &str = include_str!("../../src/inbox.lua");
const GROUP: &str = include_str!("../../src/group.lua");

#[test]
fn a_position_and_a_mark_that_are_told_again_are_written_again() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let now = BEGIN_MS.to_string();
    // The answer of a script begins with whether it has written, which is when replicas are asked.
    let has_written = |source: &str, keys: &[String], words: &[&str]| {
        let (count, key) = (keys.len().to_string(), redis.slot_of(&keys[0]));
        let mut command = vec!["EVAL", source, &count];
        command.extend(keys.iter().map(String::as_str));
        command.extend_from_slice(words);
        let answer = redis.ask(redis.master_of_slot(key), &command).unwrap();
        answer.starts_with("1\n")
    };
    let id = |stamp: u64| format!("{}-{}", stamp >> 20, stamp & 0xF_FFFF);
    let user = 83;
    let open = Request::Open { user, device: "phone".into(), ephemeral: false, claims: false, token: 1 };
    let Reply::Opened(opened) = running.ask(0, open) else { panic!("not opened") };
    let stamps: Vec<String> = (1..=2)
        .map(|id_of_message| match running.append(0, user, id_of_message, false) {
            Reply::Stored { stamp, .. } => id(stamp),
            other => panic!("{other:?}"),
        })
        .collect();
    let keys = [format!("tl:inbox:{{{user}}}"), format!("tl:inbox:{{{user}}}:m")];
    let cursor = |at: &str| {
        let (number, epoch) = (opened.device.to_string(), opened.device_epoch.to_string());
        let bounds = ["24", "8000", "0", "600000", "7200000", "3", "8", "864000000"];
        let words = [&[now.as_str()][..], &bounds, &["cursor", &number, &epoch, at]].concat();
        has_written(INBOX, &keys, &words)
    };
    let told = [&stamps[1], &stamps[1], &stamps[0], "0-0"].map(cursor);
    assert_eq!(told, [true, true, false, false], "an older one, and a sign of life, need no replica");

    let (group, member) = (930_001, 9_300);
    assert!(matches!(running.join(0, group, member), Reply::Group(_)));
    let Reply::Group(stored) = running.say(0, group, member, 1) else { panic!("not stored") };
    let GroupReply::Stored { stamp, .. } = *stored else { panic!("{stored:?}") };
    let keys = ["g", "gl", "gm", "gi", "gr"].map(|kind| format!("tl:{kind}:{{{group}}}"));
    let mark = |at: &str| {
        let member = format!("{member:016x}");
        has_written(GROUP, &keys, &[&now, "20", "600000", "5", "8", "864000000", "mark", &member, at])
    };
    assert_eq!([&id(stamp), &id(stamp), "0-0"].map(mark), [true, true, false]);
    assert!(running.store.unwrap().stop());
}
