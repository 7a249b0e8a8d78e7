//! What is written besides the log: tables. It takes seconds, so it is not done on the thread that commits.

mod merge;

use crate::Record;
use crate::codec::Totals;
use crate::disk::Disk;
use crate::state::State;
use crate::table::{Footer, Seen, Table, TableWriter};
use hashbrown::HashMap;
use merge::merge;
use std::collections::{VecDeque, vec_deque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What has happened to a user since the last table.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// As of now, or of when the log was cut.
    pub(crate) totals: Totals,
    /// None as long as nothing but messages came, and nobody asked.
    pub(crate) state: Option<State>,
    pub(crate) records: VecDeque<Record>,
}

impl Recent {
    /// The messages after a stamp.
    pub(crate) fn after(&self, stamp: u64) -> vec_deque::Iter<'_, Record> {
        self.records.range(self.records.partition_point(|record| record.stamp <= stamp)..)
    }
}

/// Recent changes, by user.
pub(crate) type Recents = HashMap<u64, Recent>;

/// A table to be written.
pub(crate) enum Job {
    /// Recent changes become a table.
    Flush { footer: Footer, recents: Arc<Recents> },
    /// Tables that follow each other become one.
    Merge { footer: Footer, inputs: Vec<Arc<Table>>, drop_before: u64, stop: Arc<AtomicBool> },
}

/// What became of a job.
pub(crate) enum Done {
    Flushed(io::Result<Table>),
    Merged(io::Result<Merged>),
}

/// A table in place of others.
pub(crate) struct Merged {
    pub(crate) table: Table,
    /// Users some of whose messages, up to the stamp, could not be read.
    pub(crate) damaged: Vec<(u64, u64)>,
    /// Nothing is known of some users: a block of entries could not be read.
    pub(crate) blocks_damaged: u64,
}

impl Job {
    fn run(self, disk: &Arc<dyn Disk>) -> Done {
        match self {
            Job::Flush { footer, recents } => {
                let table = flush(disk, footer, &recents);
                if table.is_err() {
                    TableWriter::discard(&**disk, &footer, false);
                }
                Done::Flushed(table)
            }
            Job::Merge { footer, inputs, drop_before, stop } => {
                let merged = merge(disk, footer, &inputs, drop_before, &stop);
                if merged.is_err() {
                    TableWriter::discard(&**disk, &footer, inputs.len() == 1);
                }
                Done::Merged(merged)
            }
        }
    }
}

fn flush(disk: &Arc<dyn Disk>, footer: Footer, recents: &Recents) -> io::Result<Table> {
    let mut users: Vec<(u64, &Recent)> = recents.iter().map(|(user, recent)| (*user, recent)).collect();
    users.sort_unstable_by_key(|(user, _)| *user);
    let mut writer = TableWriter::new(disk.clone(), footer, users.len() as u64)?;
    for (user, recent) in users {
        let floor = recent.state.as_ref().map_or(0, |state| state.floor);
        for record in recent.records.iter().filter(|record| record.stamp > floor) {
            writer.message(user, &Seen::of(record))?;
        }
        writer.user(user, recent.totals, recent.state.clone())?;
    }
    writer.finish()
}

/// Runs jobs.
pub(crate) trait Executor: Send {
    /// Begins a job.
    fn start(&mut self, job: Job);
    /// The result of a job that has ended.
    fn poll(&mut self) -> Option<Done>;
    /// The same, and waits for it. None if no job runs.
    fn wait(&mut self) -> Option<Done>;
    /// Lets go of what takes a while.
    fn release(&mut self, garbage: Garbage);
}

/// What is not needed any more. A table's blocks on disk are free when its file has no name and nobody has it open.
#[derive(Default)]
pub(crate) struct Garbage {
    /// Files to be removed.
    pub(crate) files: Vec<String>,
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) recents: Option<Arc<Recents>>,
}

impl Garbage {
    fn discard(self, disk: &dyn Disk) {
        let Garbage { files, tables, recents } = self;
        for name in &files {
            // What stays is superseded, and removed at the next start.
            let _ = disk.remove(name);
        }
        drop((tables, recents));
    }
}

/// Runs each job on the spot, for simulations.
pub(crate) struct Inline {
    disk: Arc<dyn Disk>,
    done: VecDeque<Done>,
}

impl Inline {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Inline { disk, done: VecDeque::new() }
    }
}

impl Executor for Inline {
    fn start(&mut self, job: Job) {
        self.done.push_back(job.run(&self.disk));
    }

    fn poll(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn wait(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn release(&mut self, garbage: Garbage) {
        garbage.discard(&*self.disk);
    }
}

/// Runs each job on a thread of its own. Dropping it waits for them: each holds the disk, and with it the lock of the
/// folder, until it ends.
pub(crate) struct Threads {
    disk: Arc<dyn Disk>,
    results: Receiver<Done>,
    sender: Sender<Done>,
    /// Jobs whose result has not been taken.
    running: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        let (sender, results) = channel();
        Threads { disk, results, sender, running: 0, threads: Vec::new() }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.threads.drain(..) {
            // One that panicked has ended as well.
            let _ = thread.join();
        }
    }
}

/// Tells that a job failed if its thread ends without having told anything: then it panicked, and nobody must wait for
/// it.
struct Report {
    sender: Sender<Done>,
    done: Option<Done>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // Nobody waits for it any more when the store has been dropped.
            let _ = self.sender.send(done);
        }
    }
}

impl Executor for Threads {
    fn start(&mut self, job: Job) {
        let panicked = || io::Error::other("the thread that wrote the table panicked");
        let (name, failed) = match &job {
            Job::Flush { .. } => ("store-flush", Done::Flushed(Err(panicked()))),
            Job::Merge { .. } => ("store-merge", Done::Merged(Err(panicked()))),
        };
        let disk = self.disk.clone();
        let report = Report { sender: self.sender.clone(), done: Some(failed) };
        self.running += 1;
        // If there is no thread, dropping the closure reports a failed job.
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // All of it moves here, with what happens when it is dropped.
            let mut report = report;
            report.done = Some(job.run(&disk));
        });
        self.threads.retain(|thread| !thread.is_finished());
        self.threads.extend(spawned);
    }

    fn poll(&mut self) -> Option<Done> {
        let done = self.results.try_recv().ok()?;
        self.running -= 1;
        Some(done)
    }

    fn wait(&mut self) -> Option<Done> {
        if self.running == 0 {
            return None;
        }
        let done = self.results.recv().ok()?;
        self.running -= 1;
        Some(done)
    }

    fn release(&mut self, garbage: Garbage) {
        let disk = self.disk.clone();
        // If there is no thread, files stay until the next start.
        let spawned = std::thread::Builder::new().name("store-free".to_owned()).spawn(move || garbage.discard(&*disk));
        self.threads.extend(spawned);
    }
}
