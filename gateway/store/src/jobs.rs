//! What is written besides the log: tables. It takes seconds, so it is not done on the thread that commits.

use crate::Record;
use crate::codec::Totals;
use crate::disk::Disk;
use crate::state::State;
use crate::table::{Entry, Footer, Seen, Table, TableWriter};
use hashbrown::HashMap;
use std::collections::{VecDeque, vec_deque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    let mut users: Vec<u64> = recents.keys().copied().collect();
    users.sort_unstable();
    let mut writer = TableWriter::new(disk.clone(), footer)?;
    for user in users {
        let recent = &recents[&user];
        let floor = recent.state.as_ref().map_or(0, |state| state.floor);
        for record in recent.records.iter().filter(|record| record.stamp > floor) {
            writer.message(user, &Seen::of(record))?;
        }
        writer.user(user, recent.totals, recent.state.clone())?;
    }
    writer.finish()
}

/// The entries of a table, one after the other.
struct Entries<'a> {
    table: &'a Table,
    next_block: usize,
    entries: VecDeque<Entry>,
    blocks_damaged: u64,
}

impl Entries<'_> {
    /// Lets the first entry be there, if there is one.
    fn fill(&mut self) -> io::Result<()> {
        while self.entries.is_empty() && self.next_block < self.table.blocks() {
            match self.table.block(self.next_block) {
                Ok(entries) => self.entries = entries.into(),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => self.blocks_damaged += 1,
                Err(error) => return Err(error),
            }
            self.next_block += 1;
        }
        Ok(())
    }
}

/// `drop_before`: of users who have nothing, and had no message since that stamp, nothing is kept. 0 unless the first
/// of the inputs is the first table of all: what an earlier one knows would come to light again.
fn merge(
    disk: &Arc<dyn Disk>,
    footer: Footer,
    inputs: &[Arc<Table>],
    drop_before: u64,
    stop: &AtomicBool,
) -> io::Result<Merged> {
    let mut writer = TableWriter::new(disk.clone(), footer)?;
    let mut damaged = Vec::new();
    let entries = |table| Entries { table, next_block: 0, entries: VecDeque::new(), blocks_damaged: 0 };
    let mut cursors: Vec<Entries<'_>> = inputs.iter().map(|table| entries(&**table)).collect();
    loop {
        for cursor in &mut cursors {
            cursor.fill()?;
        }
        let next = cursors.iter().filter_map(|cursor| cursor.entries.front()).map(|entry| entry.user).min();
        let Some(user) = next else { break };
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // From the oldest table to the newest: what comes later is nearer to the truth.
        let (mut totals, mut state) = (Totals::default(), None);
        let mut ranges = Vec::new();
        for cursor in &mut cursors {
            if cursor.entries.front().is_none_or(|entry| entry.user != user) {
                continue;
            }
            let Some(entry) = cursor.entries.pop_front() else { continue };
            totals = entry.totals;
            state = entry.state.or(state);
            ranges.extend(entry.range.map(|range| (cursor.table, range)));
        }
        let floor = state.as_ref().map_or(0, |state: &State| state.floor);
        let mut kept = false;
        for (table, range) in ranges {
            let mut result = Ok(());
            let scanned = table.scan(user, &range, floor, |seen| {
                kept = true;
                result = writer.message(user, &seen);
                if result.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            result?;
            if scanned.damaged > floor {
                damaged.push((user, scanned.damaged));
            }
        }
        let nothing = !kept && totals.messages == 0;
        let unknown = state.as_ref().is_none_or(|state| state.devices.is_empty() && state.gap < drop_before);
        if nothing && unknown && totals.last < drop_before {
            writer.dropped(totals.last);
        } else {
            writer.user(user, totals, state)?;
        }
    }
    let blocks_damaged = cursors.iter().map(|cursor| cursor.blocks_damaged).sum();
    Ok(Merged { table: writer.finish()?, damaged, blocks_damaged })
}

/// Runs jobs.
pub(crate) trait Executor: Send {
    /// Begins a job.
    fn start(&mut self, job: Job);
    /// The result of a job that has ended.
    fn poll(&mut self) -> Option<Done>;
    /// The same, and waits for it. None if no job runs.
    fn wait(&mut self) -> Option<Done>;
    /// Lets go of many messages, which takes a while.
    fn release(&mut self, recents: Arc<Recents>);
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

    fn release(&mut self, recents: Arc<Recents>) {
        drop(recents);
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

    fn release(&mut self, recents: Arc<Recents>) {
        // If there is no thread it happens here.
        let _ = std::thread::Builder::new().name("store-free".to_owned()).spawn(move || drop(recents));
    }
}
