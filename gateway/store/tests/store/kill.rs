//! A process that is killed at any moment has lost nothing that it answered.

use crate::support::{Dice, Folder, everything};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use trunkline_store::{Clock, Embedded, Limits, Record, Refusal, Reply, Request, Store, stamp_at};

const FOLDER: &str = "TRUNKLINE_STORE_TEST_FOLDER";
const USERS: u64 = 50;
const KILLS: u64 = 12;

fn clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

fn limits() -> Limits {
    // Tables and merges all the time.
    Limits {
        log_bytes_max: 1 << 20,
        recent_bytes_max: 1 << 20,
        user_messages_max: 1_000_000,
        user_bytes_max: 1 << 30,
        ..Limits::default()
    }
}

/// The other process: stores messages for ever and prints what was answered.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let now = clock();
    let mut store = Embedded::open(Path::new(&folder), limits(), now.clone()).unwrap();
    let mut id = now() << 20;
    loop {
        let batch = (0..200).map(|at| {
            id += 1;
            let record = Record { stamp: stamp_at(now()), from: 1, id, flags: 0, payload: vec![at as u8; 90].into() };
            (0, Request::Append { user: id % USERS, record, retry: None, token: id })
        });
        let mut text = String::new();
        store.apply(&mut batch.collect(), &mut |_, answer| match answer.reply {
            Reply::Stored { stamp, .. } => {
                text += &format!("stored {} {} {stamp}\n", answer.token % USERS, answer.token)
            }
            // On a busy machine more comes than tables are written.
            Reply::Refused(Refusal::Unavailable) => {}
            other => panic!("{other:?}"),
        });
        store.tick();
        // One write, so that a line is cut only at the very end.
        std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn nothing_that_was_answered_is_lost_by_kill_9() {
    let folder = Folder::new("kill");
    let mut dice = Dice(std::process::id().into());
    let mut answered: HashMap<(u64, u64), u64> = HashMap::new();
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--nocapture"])
            .env(FOLDER, &folder.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        // It is killed after so many answers, wherever it is then.
        let mut until_kill = 1 + dice.below(4_000);
        loop {
            let mut line = String::new();
            // A last line without its end was cut by the kill.
            if output.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                break;
            }
            until_kill = until_kill.saturating_sub(1);
            if until_kill == 0 {
                child.kill().unwrap();
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [.., "stored", user, id, stamp] = words[..] {
                answered.insert((user.parse().unwrap(), id.parse().unwrap()), stamp.parse().unwrap());
            }
        }
        child.wait().unwrap();
    }
    assert!(!answered.is_empty(), "nothing was ever answered");
    let mut store = Embedded::open(&folder.0, limits(), clock()).unwrap();
    let mut left = answered.len();
    for user in 0..USERS {
        let there = everything(&mut store, user);
        assert!(there.windows(2).all(|pair| pair[0].stamp < pair[1].stamp));
        for record in there {
            if let Some(stamp) = answered.get(&(user, record.id)) {
                assert_eq!(*stamp, record.stamp);
                left -= 1;
            }
        }
    }
    assert_eq!(left, 0, "answered, and not there");
    assert!(store.check().unwrap().is_sound());
}
