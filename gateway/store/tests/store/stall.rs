//! A disk that takes its time, as one does whose controller starts again.

use crate::support::{Hands, everything, now_stamp, open, record, small};
use std::io;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;
use trunkline_store::{Disk, Embedded, File, Limits, Reply, Request, SimDisk, StoreMail, StoreThread};

/// Syncs wait while it is shut.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn set_shut(&self, shut: bool) {
        *self.0.0.lock().unwrap() = shut;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let shut = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(shut, |shut| *shut).unwrap());
    }
}

struct Stalling(SimDisk, Gate);

struct StallingFile(Arc<dyn File>, Gate);

impl Disk for Stalling {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(StallingFile(self.0.create(name)?, self.1.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.0.open(name)
    }
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.0.list()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
}

impl File for StallingFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

#[test]
fn a_stall_makes_no_sender_wait_is_told_and_loses_nothing() {
    let (disk, hands, gate) = (SimDisk::new(), Hands::new(), Gate::default());
    let limits = Limits { user_messages_max: 100_000, user_bytes_max: 1 << 30, ..small() };
    let stalling = Arc::new(Stalling(disk.clone(), gate.clone()));
    let store = Embedded::on_disk(stalling, limits.clone(), hands.clock(), 7).unwrap();
    let (answered, answers) = mpsc::channel();
    let thread = StoreThread::start(store, StoreMail::new(20_000), move |_, ready| {
        ready.into_iter().for_each(|answer| answered.send(answer).unwrap());
    })
    .unwrap();
    let sender = thread.sender(0);
    let append = |token| Request::Append { user: 1, record: record(now_stamp(&hands), token, 20), retry: None, token };
    gate.set_shut(true);
    sender.try_send(append(0)).unwrap();
    // The commit is under way, and waits.
    while thread.stats().stalled_ms(hands.now_ms() + 1) == 0 {
        std::thread::yield_now();
    }
    hands.pass(5_000);
    assert_eq!(thread.stats().stalled_ms(hands.now_ms()), 5_000);
    // Each of these returns while the disk stands still: what there is room for waits, the rest comes back.
    let mut sent = 1;
    while sender.try_send(append(sent)).is_ok() {
        sent += 1;
        assert!(sent < 10_000, "the mailbox is not bounded");
    }
    assert!(sent > 10);
    assert_eq!(sender.mail().refused(), 1);
    assert!(answers.try_recv().is_err(), "nothing is durable yet");
    gate.set_shut(false);
    for token in 0..sent {
        let answer = answers.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(answer.token, token);
        assert!(matches!(answer.reply, Reply::Stored { .. }), "{answer:?}");
    }
    sender.try_send(append(sent)).unwrap();
    assert!(matches!(answers.recv_timeout(Duration::from_secs(60)).unwrap().reply, Reply::Stored { .. }));
    assert_eq!(thread.stats().stalled_ms(hands.now_ms()), 0);
    assert!(thread.stop());
    disk.crash(1);
    let there = everything(&mut open(&disk, &limits, &hands), 1);
    assert!(there.iter().map(|record| record.id).eq(0..=sent));
}
