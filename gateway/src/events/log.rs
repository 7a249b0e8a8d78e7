//! A log of events in files, so that they outlive the process.
//!
//! A file begins with how far each webhook is ([`put_snapshot`]); behind that are events and gaps as they come, and
//! word of what need not be sent any more. A file that is long enough is closed, and removed when nothing in it or
//! before it waits any more. Where something waits for so long that files grow without that, all that waits is written
//! to a new file and the others are removed.
//!
//! Every record has a checksum. What stands behind a record that is not whole is not looked at: it was being written
//! when the process ended, and nobody has relied on it.

use super::LANES;
use super::hub::{Body, Gap, Item};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use trunkline_core::events::{EVENT_BYTES_MAX, Event, EventKind};
use trunkline_store::make_folder;

/// A file of this length is closed.
pub(super) const SEGMENT_BYTES: u64 = 8 << 20;
/// What a file begins with.
const MAGIC: &[u8; 8] = b"TLEVENT1";
const SUFFIX: &str = ".events";
/// Bytes of a record besides its own: length and checksum.
const FRAME_BYTES: usize = 8;
/// Longest record.
const RECORD_BYTES_MAX: usize = 16 * (8 + 8 * LANES) + EVENT_BYTES_MAX + 64;

const SNAPSHOT: u8 = 0;
const EVENT: u8 = 1;
const GAP: u8 = 2;
const DONE: u8 = 3;

fn frame(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; FRAME_BYTES]);
    fill(out);
    let record = &out[at + FRAME_BYTES..];
    let (len, sum) = (record.len() as u32, crc32fast::hash(record));
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

/// How far each webhook, known by its key, is in each lane.
pub(super) fn put_snapshot(out: &mut Vec<u8>, epoch: u64, last_seq: u64, hooks: &[(u64, [u64; LANES])]) {
    frame(out, |out| {
        out.push(SNAPSHOT);
        put_words(out, &[epoch, last_seq]);
        for (key, cursors) in hooks {
            put_words(out, &[*key]);
            put_words(out, cursors);
        }
    });
}

/// An event, and which webhooks of the file's first record are to get it.
pub(super) fn put_event(out: &mut Vec<u8>, seq: u64, mask: u16, bytes: &[u8]) {
    frame(out, |out| {
        out.push(EVENT);
        put_words(out, &[seq]);
        out.extend_from_slice(&mask.to_le_bytes());
        out.extend_from_slice(bytes);
    });
}

/// A gap as it is now; the last one of a number holds.
pub(super) fn put_gap(out: &mut Vec<u8>, seq: u64, hook: usize, lane: usize, gap: &Gap) {
    frame(out, |out| {
        out.push(GAP);
        put_words(out, &[seq]);
        out.extend_from_slice(&[hook as u8, lane as u8, gap.kind as u8]);
        put_words(out, &[gap.count, gap.from_ms, gap.to_ms]);
    });
}

/// All events of a lane up to this one need not be sent any more.
pub(super) fn put_done(out: &mut Vec<u8>, hook: usize, lane: usize, seq: u64) {
    frame(out, |out| {
        out.extend_from_slice(&[DONE, hook as u8, lane as u8]);
        put_words(out, &[seq]);
    });
}

/// What a log held.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Of a log that there was.
    pub(super) epoch: Option<u64>,
    pub(super) last_seq: u64,
    /// What waits: webhook, lane, item; in order.
    pub(super) waiting: Vec<(usize, usize, Item)>,
    /// Files that did not end with a whole record.
    pub(super) torn: usize,
}

/// While files are read.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    keys: &'a [u64],
    recovered: Recovered,
    /// By webhook of now; `None` for one that the log does not know.
    cursors: Vec<Option<[u64; LANES]>>,
    /// The webhook of now for each one of the file.
    numbers: Vec<Option<usize>>,
    events: BTreeMap<u64, (u16, Vec<u8>)>,
    gaps: BTreeMap<u64, (usize, usize, Gap)>,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl<'a> Reading<'a> {
    /// Nothing yet, for webhooks with these keys.
    pub(super) fn of(keys: &'a [u64]) -> Self {
        Reading {
            keys,
            recovered: Recovered::default(),
            cursors: vec![None; keys.len()],
            numbers: Vec::new(),
            events: BTreeMap::new(),
            gaps: BTreeMap::new(),
        }
    }

    /// Takes in the next file, in the order in which they were written.
    pub(super) fn file(&mut self, bytes: &[u8]) {
        self.numbers.clear();
        let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
            self.recovered.torn += 1;
            return;
        };
        while !rest.is_empty() {
            let Some((record, behind)) = split(rest).filter(|(record, _)| self.record(record).is_some()) else {
                self.recovered.torn += 1;
                return;
            };
            debug_assert!(!record.is_empty());
            rest = behind;
        }
    }

    fn record(&mut self, record: &[u8]) -> Option<()> {
        let (kind, rest) = record.split_first()?;
        match *kind {
            SNAPSHOT => {
                self.recovered.epoch = Some(word(rest, 0)?);
                self.seen(word(rest, 8)?);
                let hooks = rest.get(16..)?.chunks_exact(8 + 8 * LANES);
                self.numbers.clear();
                for hook in hooks {
                    let key = word(hook, 0)?;
                    let number = self.keys.iter().position(|own| *own == key);
                    self.numbers.push(number);
                    if let Some(number) = number {
                        let cursors = self.cursors[number].get_or_insert([0; LANES]);
                        for (lane, cursor) in cursors.iter_mut().enumerate() {
                            *cursor = (*cursor).max(word(hook, 8 + 8 * lane)?);
                        }
                    }
                }
            }
            EVENT => {
                let seq = word(rest, 0)?;
                let theirs = u16::from_le_bytes(rest.get(8..10)?.try_into().ok()?);
                let bytes = rest.get(10..)?;
                Event::decode(bytes).filter(|(_, len)| *len == bytes.len())?;
                self.seen(seq);
                let named = self.numbers.iter().enumerate().filter(|(at, _)| theirs >> at & 1 == 1);
                let mask = named.filter_map(|(_, own)| *own).fold(0, |mask, own| mask | 1 << own);
                if mask != 0 {
                    self.events.insert(seq, (mask, bytes.to_vec()));
                }
            }
            GAP => {
                let seq = word(rest, 0)?;
                let (hook, lane) = (usize::from(*rest.get(8)?), usize::from(*rest.get(9)?));
                let kind = EventKind::from_u8(*rest.get(10)?)?;
                let gap = Gap { kind, count: word(rest, 11)?, from_ms: word(rest, 19)?, to_ms: word(rest, 27)? };
                self.seen(seq);
                if let Some(Some(own)) = self.numbers.get(hook).filter(|_| lane < LANES) {
                    self.gaps.insert(seq, (*own, lane, gap));
                }
            }
            DONE => {
                let (hook, lane) = (usize::from(*rest.first()?), usize::from(*rest.get(1)?));
                let seq = word(rest, 2)?;
                let own = self.numbers.get(hook).copied().flatten();
                if let Some(cursors) = own.and_then(|own| self.cursors[own].as_mut())
                    && let Some(cursor) = cursors.get_mut(lane)
                {
                    *cursor = (*cursor).max(seq);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn seen(&mut self, seq: u64) {
        self.recovered.last_seq = self.recovered.last_seq.max(seq);
    }

    /// What all of them hold.
    pub(super) fn end(self) -> Recovered {
        let Reading { mut recovered, cursors, events, gaps, .. } = self;
        let mut all: BTreeMap<u64, Vec<(usize, usize, Body)>> = BTreeMap::new();
        for (seq, (mask, bytes)) in events {
            let Some((event, _)) = Event::decode(&bytes) else { continue };
            let (lane, shared): (usize, std::sync::Arc<[u8]>) = (event.lane(), bytes.as_slice().into());
            let hooks = (0..cursors.len()).filter(|hook| mask >> hook & 1 == 1);
            all.entry(seq).or_default().extend(hooks.map(|hook| (hook, lane, Body::Event(shared.clone()))));
        }
        for (seq, (hook, lane, gap)) in gaps {
            all.entry(seq).or_default().push((hook, lane, Body::Gap(gap)));
        }
        for (seq, of_seq) in all {
            for (hook, lane, body) in of_seq {
                if cursors[hook].is_some_and(|cursors| cursors[lane] < seq) {
                    recovered.waiting.push((hook, lane, Item { seq, body }));
                }
            }
        }
        recovered
    }
}

/// What files hold for webhooks with these keys.
#[cfg(test)]
pub(super) fn recover(files: &[Vec<u8>], keys: &[u64]) -> Recovered {
    let mut reading = Reading::of(keys);
    files.iter().for_each(|bytes| reading.file(bytes));
    reading.end()
}

/// The beginning of a file.
pub(super) fn begun(snapshot: &[u8]) -> Vec<u8> {
    [MAGIC, snapshot].concat()
}

/// The lengths of records one behind the other, as they were just put.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = bytes.get(at..at + 4)?.try_into().ok()?;
        let record = FRAME_BYTES + u32::from_le_bytes(len) as usize;
        at += record;
        Some(record)
    })
}

/// The first record, and what stands behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    if len > RECORD_BYTES_MAX {
        return None;
    }
    let record = bytes.get(FRAME_BYTES..FRAME_BYTES + len)?;
    (crc32fast::hash(record) == sum).then(|| (record, &bytes[FRAME_BYTES + len..]))
}

/// A file that is closed.
#[derive(Debug)]
struct Closed {
    path: PathBuf,
    bytes: u64,
    last_seq: u64,
}

/// What is to be written at once.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Records.
    pub(super) bytes: Vec<u8>,
    /// The number of the last event there is.
    pub(super) last_seq: u64,
    /// For the beginning of a file.
    pub(super) snapshot: Vec<u8>,
    /// Up to here nothing waits any more.
    pub(super) done_below: u64,
    /// Whether it is to be on the disk before this counts as done.
    pub(super) sync: bool,
    /// Whether the records are all that waits, and older files are of no use any more.
    pub(super) anew: bool,
}

/// The files.
#[derive(Debug)]
pub(super) struct EventLog {
    folder: PathBuf,
    /// `None` before the first write.
    file: Option<File>,
    path: PathBuf,
    number: u64,
    written: u64,
    last_seq: u64,
    closed: VecDeque<Closed>,
    /// Keeps other processes away.
    _lock: File,
}

impl EventLog {
    /// Opens the log in a folder, which is made if need be, and reads what it holds for webhooks with these keys. What
    /// is written first has to be [`Job::anew`].
    ///
    /// # Errors
    /// When folder or files cannot be used.
    pub(super) fn open(folder: &Path, keys: &[u64]) -> io::Result<(Self, Recovered)> {
        make_folder(folder)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("lock"))?;
        lock.try_lock().map_err(|error| io::Error::other(format!("another process has it ({error})")))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if let Some(number) = name.strip_suffix(SUFFIX).and_then(|number| number.parse::<u64>().ok()) {
                files.push((number, path));
            }
        }
        files.sort();
        let mut closed = VecDeque::new();
        let mut reading = Reading::of(keys);
        for (_, path) in &files {
            let bytes = fs::read(path)?;
            reading.file(&bytes);
            closed.push_back(Closed { path: path.clone(), bytes: bytes.len() as u64, last_seq: u64::MAX });
        }
        let number = files.last().map_or(0, |(number, _)| *number);
        let log = EventLog {
            folder: folder.to_owned(),
            file: None,
            path: PathBuf::new(),
            number,
            written: 0,
            last_seq: 0,
            closed,
            _lock: lock,
        };
        Ok((log, reading.end()))
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.written + self.closed.iter().map(|closed| closed.bytes).sum::<u64>()
    }

    /// Writes. After an error the next job has to be [`Job::anew`]; nothing of the one that failed is left.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(&mut self, job: &Job) -> io::Result<()> {
        // First, because a disk that is full may have room then.
        self.remove_done(job.done_below);
        let is_fresh = job.anew || self.written >= SEGMENT_BYTES || self.file.is_none();
        if is_fresh {
            self.begin_file(&job.snapshot)?;
        }
        if let Err(error) = self.append(job) {
            self.take_back(is_fresh);
            return Err(error);
        }
        self.written += job.bytes.len() as u64;
        self.last_seq = job.last_seq;
        if job.anew {
            self.closed.iter_mut().for_each(|closed| closed.last_seq = 0);
            self.remove_done(job.done_below);
        }
        Ok(())
    }

    fn append(&mut self, job: &Job) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        file.write_all(&job.bytes)?;
        if job.sync || job.anew { file.sync_data() } else { Ok(()) }
    }

    /// Takes back what a write has left that failed. Where that fails too, what is left is a file more to be removed.
    fn take_back(&mut self, is_fresh: bool) {
        if !is_fresh {
            let Some(file) = &mut self.file else { return };
            let cut = file.set_len(self.written).and_then(|()| file.seek(SeekFrom::Start(self.written)));
            if let Err(error) = cut {
                tracing::warn!(%error, "what was not written whole stays in the log of events");
            }
            return;
        }
        self.file = None;
        let closed = Closed { path: std::mem::take(&mut self.path), bytes: self.written, last_seq: u64::MAX };
        self.written = 0;
        if !is_removed(&closed.path) {
            self.closed.push_back(closed);
        }
    }

    /// Removes files of which nothing waits, in their order: what a later one says of an earlier one holds for as long
    /// as that is there. One that cannot be removed is tried again with the next job.
    fn remove_done(&mut self, done_below: u64) {
        while let Some(closed) = self.closed.front()
            && closed.last_seq <= done_below
            && is_removed(&closed.path)
        {
            self.closed.pop_front();
        }
    }

    fn begin_file(&mut self, snapshot: &[u8]) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let path = std::mem::take(&mut self.path);
            self.closed.push_back(Closed { path, bytes: self.written, last_seq: self.last_seq });
            self.written = 0;
            file.sync_data()?;
        }
        self.number += 1;
        let path = self.folder.join(format!("{:020}{SUFFIX}", self.number));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        self.path = path;
        self.written = (MAGIC.len() + snapshot.len()) as u64;
        let begin = |mut file: File| {
            file.write_all(MAGIC)?;
            file.write_all(snapshot)?;
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
            Ok(file)
        };
        let begun = begin(file);
        match begun {
            Ok(file) => {
                self.file = Some(file);
                Ok(())
            }
            Err(error) => {
                self.take_back(true);
                Err(error)
            }
        }
    }
}

/// Removes a file; whether it is not there any more.
fn is_removed(path: &Path) -> bool {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "a file of the log of events cannot be removed");
            false
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;
