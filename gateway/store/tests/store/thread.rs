//! The store's thread and its mailbox.

use crate::support::{Folder, Hands, now_stamp, record, small};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use trunkline_store::{Answer, Embedded, Limits, Memory, Reply, Request, Source, Stats, Store, StoreMail, StoreThread};

fn append(user: u64, token: u64, hands: &Hands) -> Request {
    Request::Append { user, record: record(now_stamp(hands), token, 20), retry: None, token }
}

#[test]
fn every_request_is_answered_to_its_source_in_order() {
    let folder = Folder::new("thread");
    let hands = Hands::new();
    let limits = Limits { user_messages_max: 100_000, ..Limits::default() };
    let store = Embedded::open(&folder.0, limits, hands.clock()).unwrap();
    let answers: Arc<Mutex<HashMap<Source, Vec<u64>>>> = Arc::default();
    let taken = answers.clone();
    let thread = StoreThread::start(store, StoreMail::new(StoreMail::BYTES_MAX), move |source, ready| {
        let mut answers = taken.lock().unwrap();
        answers.entry(source).or_default().extend(ready.into_iter().map(|answer: Answer| {
            assert!(matches!(answer.reply, Reply::Stored { .. }));
            answer.token
        }));
    })
    .unwrap();
    std::thread::scope(|scope| {
        for source in 0..4 {
            let sender = thread.sender(source);
            let hands = &hands;
            scope.spawn(move || {
                for token in 0..500 {
                    sender.try_send(append(u64::from(source), token, hands)).unwrap();
                }
            });
        }
    });
    // What was taken is answered although the store is stopped at once.
    assert!(thread.stop());
    let answers = answers.lock().unwrap();
    for source in 0..4 {
        assert!(answers[&source].iter().copied().eq(0..500), "source {source}");
    }
}

/// A store that takes its time: it applies a batch when it is let.
struct Slow(Memory, mpsc::Receiver<()>);

impl Store for Slow {
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer)) {
        self.1.recv().unwrap();
        self.0.apply(batch, out);
    }
    fn tick(&mut self) -> Option<Duration> {
        self.0.tick()
    }
    fn close(&mut self) {
        self.0.close();
    }
    fn stats(&self) -> &Arc<Stats> {
        self.0.stats()
    }
}

#[test]
fn a_full_mailbox_gives_the_request_back_at_once() {
    let hands = Hands::new();
    let (go, wait) = mpsc::channel();
    let store = Slow(Memory::new(small(), hands.clock(), 1), wait);
    let (answered, answers) = mpsc::channel();
    let thread = StoreThread::start(store, StoreMail::new(10_000), move |_, ready| {
        ready.into_iter().for_each(|answer| answered.send(answer.token).unwrap());
    })
    .unwrap();
    let sender = thread.sender(0);
    let mut sent = 0;
    let refused = loop {
        match sender.try_send(append(1, sent, &hands)) {
            Ok(()) => sent += 1,
            Err(request) => break request,
        }
        assert!(sent < 10_000, "it is never full");
    };
    assert_eq!(refused.token(), Some(sent));
    assert_eq!(sender.mail().refused(), 1);
    for _ in 0..sent {
        go.send(()).unwrap();
    }
    for token in 0..sent {
        assert_eq!(answers.recv_timeout(Duration::from_secs(60)).unwrap(), token);
    }
    assert!(thread.stop());
    assert!(sender.try_send(append(1, 0, &hands)).is_err(), "it has been closed");
    assert_eq!(sender.mail().bytes(), 0);
}

#[test]
fn a_folder_belongs_to_one_store() {
    let folder = Folder::new("lock");
    let hands = Hands::new();
    let first = Embedded::open(&folder.0, small(), hands.clock()).unwrap();
    let second = Embedded::open(&folder.0, small(), hands.clock());
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    Embedded::open(&folder.0, small(), hands.clock()).unwrap();
}

/// A job that writes or merges tables holds the folder. Who drops the store in the middle of it must find the folder
/// free.
#[test]
fn a_store_can_be_opened_again_as_soon_as_it_was_dropped() {
    let folder = Folder::new("drop");
    let hands = Hands::new();
    // Nearly each batch cuts the log, so jobs run most of the time.
    let limits = Limits { log_bytes_max: 100_000, user_messages_max: 1_000_000, ..Limits::default() };
    let mut stored = 0;
    for round in 0..60 {
        let mut store = Embedded::open(&folder.0, limits.clone(), hands.clock()).unwrap();
        for _ in 0..=round % 7 {
            hands.pass(1);
            let batch = (0..300).map(|id| {
                let record = record(now_stamp(&hands), id, 500);
                (0, Request::Append { user: id, record, retry: None, token: id })
            });
            store.apply(&mut batch.collect(), &mut |_, answer| {
                stored += u64::from(matches!(answer.reply, Reply::Stored { .. }));
            });
        }
        drop(store);
    }
    let mut store = Embedded::open(&folder.0, limits, hands.clock()).unwrap();
    assert_eq!(store.check().unwrap().messages, stored);
}
