//! An outbox in a file.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use trunkline_proto::Outcome;

use crate::{Error, Outbox, Outgoing, Payload};

/// What the file begins with: its kind and the version of its format.
const MAGIC: &[u8; 8] = b"TLOUTBX1";

/// Bytes of settled messages above which the file is written anew, once they are more than half of it.
const WASTE_BYTES_MAX: u64 = 1024 * 1024;

/// Length of what stands before the payload of a record: checksum, kind, length of the payload, id, recipient.
const HEAD_BYTES: usize = 8 + 1 + 4 + 8 + 8;

/// Longest payload: a frame is below 16 MiB. A length above it is not one that was written here.
const PAYLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

const PUT: u8 = b'P';
/// A message that is not to be stored by a gateway.
const PUT_WITHOUT_STORE: u8 = b'N';
/// A message to a group, and one that is not to be stored.
const PUT_GROUP: u8 = b'G';
const PUT_GROUP_WITHOUT_STORE: u8 = b'H';
const SETTLED: u8 = b'S';

/// What a message survives once [`crate::Client::submit`] has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, however it ends: the message is with the operating system.
    Process,
    /// A power failure, too: the message is on the disk (`fdatasync` for each).
    Disk,
}

/// An [`Outbox`] in one file, which only its user may read. Records are appended, each with a checksum, and the file is
/// written anew when more than half of it, and more than 1 MiB, is settled. A record cut short by a crash is left out.
///
/// The file is locked: a second process that opens it gets [`io::ErrorKind::WouldBlock`].
///
/// ```
/// use std::sync::Arc;
/// use trunkline_client::{Config, Durability, FileOutbox};
///
/// # let path = std::env::temp_dir().join(format!("outbox-doc-{}", std::process::id()));
/// let outbox = FileOutbox::open(&path, Durability::Process)?;
/// let config = Config { user: 7, outbox: Some(Arc::new(outbox)), ..Config::default() };
/// # std::fs::remove_file(path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FileOutbox {
    path: PathBuf,
    durability: Durability,
    journal: Mutex<Journal>,
}

#[derive(Debug)]
struct Journal {
    file: File,
    bytes: u64,
    /// What is not settled, in the order of the calls.
    kept: BTreeMap<u64, Outgoing>,
    /// Bytes of their records.
    kept_bytes: u64,
    /// The place of each id in that order.
    places: HashMap<u64, u64>,
    place_next: u64,
    /// A fate could not be written down, or the file not be written anew; told at the next `put`.
    failed: Option<io::Error>,
}

impl FileOutbox {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// Those of the file system; [`io::ErrorKind::WouldBlock`] when another process has it;
    /// [`io::ErrorKind::InvalidData`] when it is no outbox. Each names the file.
    pub fn open(path: impl AsRef<Path>, durability: Durability) -> io::Result<Self> {
        let path = path.as_ref();
        Self::open_at(path.to_owned(), durability).map_err(|error| naming(path, &error))
    }

    fn open_at(path: PathBuf, durability: Durability) -> io::Result<Self> {
        let mut file = private(OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(&path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::WouldBlock, "another process has it open"),
            TryLockError::Error(error) => error,
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // Cut short at its very beginning by a crash, or new.
        if MAGIC.starts_with(&bytes) {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(MAGIC)?;
            bytes = MAGIC.to_vec();
        }
        let Some(mut records) = bytes.strip_prefix(MAGIC) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no outbox"));
        };
        let (kept, places) = (BTreeMap::new(), HashMap::new());
        let bytes = MAGIC.len() as u64;
        let mut journal = Journal { file, bytes, kept, kept_bytes: 0, places, place_next: 0, failed: None };
        while let Some((record, len)) = Record::read(records) {
            records = &records[len..];
            journal.bytes += len as u64;
            journal.note(record);
        }
        // What is behind was never finished.
        journal.file.set_len(journal.bytes)?;
        journal.file.seek(SeekFrom::End(0))?;
        Ok(Self { path, durability, journal: Mutex::new(journal) })
    }

    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        match self.durability {
            Durability::Process => Ok(()),
            Durability::Disk => file.sync_data(),
        }
    }

    fn put_down(&self, message: &Outgoing) -> io::Result<()> {
        let mut journal = self.lock();
        if let Some(failed) = journal.failed.take() {
            return Err(failed);
        }
        if message.id.is_none() || message.payload.len() > PAYLOAD_BYTES_MAX {
            let reason = format!("a message needs an id and at most {PAYLOAD_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.write_down(&mut journal, Record::put(message))?;
        self.sync(&journal.file)
    }

    fn write_down(&self, journal: &mut Journal, record: Record) -> io::Result<()> {
        let bytes = record.bytes();
        if let Err(error) = journal.file.write_all(&bytes) {
            // Half a record would hide all that come behind it.
            journal.file.set_len(journal.bytes)?;
            journal.file.seek(SeekFrom::End(0))?;
            return Err(error);
        }
        journal.bytes += bytes.len() as u64;
        journal.note(record);
        if let Err(error) = self.write_anew(journal) {
            // This record is written; the file only stays longer than it need be.
            journal.failed = Some(error);
        }
        Ok(())
    }

    /// Leaves out what is settled, if that is much: into a second file, which then takes the place of the first.
    fn write_anew(&self, journal: &mut Journal) -> io::Result<()> {
        let waste = journal.bytes.saturating_sub(journal.kept_bytes);
        if waste <= WASTE_BYTES_MAX || waste <= journal.bytes / 2 {
            return Ok(());
        }
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let mut file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&name)?;
        file.lock()?;
        let mut bytes = MAGIC.to_vec();
        for message in journal.kept.values() {
            bytes.extend(Record::put(message).bytes());
        }
        file.write_all(&bytes)?;
        // Before the old file goes, whatever the durability: a rename may reach the disk before the bytes do.
        file.sync_all()?;
        std::fs::rename(&name, &self.path)?;
        (journal.file, journal.bytes) = (file, bytes.len() as u64);
        Ok(())
    }
}

impl Drop for FileOutbox {
    /// Closing the file is not enough: a child that this process is just starting has it too, until it runs a program
    /// of its own.
    fn drop(&mut self) {
        // The next one to open the file is told if it is locked still.
        let _ = self.lock().file.unlock();
    }
}

impl Outbox for FileOutbox {
    fn load(&self) -> io::Result<Vec<Outgoing>> {
        Ok(self.lock().kept.values().cloned().collect())
    }

    fn put(&self, message: &Outgoing) -> io::Result<()> {
        self.put_down(message).map_err(|error| naming(&self.path, &error))
    }

    fn settle(&self, id: u64, _fate: &Result<Outcome, Error>) {
        let mut journal = self.lock();
        if journal.places.contains_key(&id)
            && let Err(error) = self.write_down(&mut journal, Record::Settled(id))
        {
            // The message would be sent once more after a restart; its recipient knows its id.
            journal.failed = Some(error);
        }
    }
}

impl Journal {
    fn note(&mut self, record: Record) {
        match record {
            Record::Put(id, message) => {
                self.leave_out(id);
                self.places.insert(id, self.place_next);
                self.kept_bytes += record_bytes(&message);
                self.kept.insert(self.place_next, message);
                self.place_next += 1;
            }
            Record::Settled(id) => self.leave_out(id),
        }
    }

    fn leave_out(&mut self, id: u64) {
        if let Some(message) = self.places.remove(&id).and_then(|place| self.kept.remove(&place)) {
            self.kept_bytes -= record_bytes(&message);
        }
    }
}

/// The same error, with the file that it is about.
fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("outbox {}: {error}", path.display()))
}

fn record_bytes(message: &Outgoing) -> u64 {
    (HEAD_BYTES + message.payload.len()) as u64
}

#[derive(Debug)]
enum Record {
    Put(u64, Outgoing),
    Settled(u64),
}

impl Record {
    fn put(message: &Outgoing) -> Self {
        Self::Put(message.id.unwrap_or_default(), message.clone())
    }

    fn bytes(&self) -> Vec<u8> {
        let (kind, id, to, payload) = match self {
            Self::Put(id, message) => {
                let kind = match (message.group, message.no_store) {
                    (false, false) => PUT,
                    (false, true) => PUT_WITHOUT_STORE,
                    (true, false) => PUT_GROUP,
                    (true, true) => PUT_GROUP_WITHOUT_STORE,
                };
                (kind, *id, message.to, &message.payload[..])
            }
            Self::Settled(id) => (SETTLED, *id, 0, &[][..]),
        };
        let mut bytes = vec![0; 8];
        bytes.push(kind);
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend(to.to_be_bytes());
        bytes.extend(payload);
        let checksum = checksum(&bytes[8..]).to_be_bytes();
        bytes[..8].copy_from_slice(&checksum);
        bytes
    }

    /// The first record and its length; `None` if there is no whole one.
    fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (sum, rest) = bytes.split_first_chunk::<8>()?;
        let (&kind, fields) = rest.split_first()?;
        let (payload_bytes, fields) = fields.split_first_chunk::<4>()?;
        let (id, fields) = fields.split_first_chunk::<8>()?;
        let (to, payload) = fields.split_first_chunk::<8>()?;
        let payload_bytes = usize::try_from(u32::from_be_bytes(*payload_bytes)).ok()?;
        let payload = payload.get(..payload_bytes)?;
        let len = HEAD_BYTES + payload_bytes;
        if checksum(&bytes[8..len]) != u64::from_be_bytes(*sum) {
            return None;
        }
        let (id, to) = (u64::from_be_bytes(*id), u64::from_be_bytes(*to));
        match kind {
            PUT | PUT_WITHOUT_STORE | PUT_GROUP | PUT_GROUP_WITHOUT_STORE => {
                let no_store = matches!(kind, PUT_WITHOUT_STORE | PUT_GROUP_WITHOUT_STORE);
                let group = matches!(kind, PUT_GROUP | PUT_GROUP_WITHOUT_STORE);
                let message = Outgoing::new(to, Payload::from(payload)).with_id(id);
                Some((Self::Put(id, Outgoing { group, no_store, ..message }), len))
            }
            SETTLED => Some((Self::Settled(id), len)),
            _ => None,
        }
    }
}

/// FNV-1a with 64 bits: it tells a record that was cut short from a whole one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Only the user of this process may read the file: it holds what people say.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("trunkline-outbox-{name}-{}", std::process::id()));
        // Left by a run that was killed and had the same process id.
        drop(std::fs::remove_file(&path));
        path
    }

    fn message(id: u64, payload: &str) -> Outgoing {
        Outgoing::new(2, payload).with_id(id)
    }

    fn ids(outbox: &FileOutbox) -> Vec<u64> {
        outbox.load().expect("readable").iter().filter_map(|message| message.id).collect()
    }

    #[test]
    fn what_is_not_settled_is_loaded_by_the_next_process_in_order() {
        let path = scratch("order");
        for durability in [Durability::Process, Durability::Disk] {
            let outbox = FileOutbox::open(&path, durability).expect("opened");
            for id in [9, 3, 7, 5] {
                outbox.put(&message(id, "hello")).expect("kept");
            }
            outbox.settle(3, &Ok(Outcome::Delivered));
            outbox.settle(4_711, &Ok(Outcome::Delivered));
            drop(outbox);
            let outbox = FileOutbox::open(&path, durability).expect("opened");
            assert_eq!(ids(&outbox), [9, 7, 5]);
            assert_eq!(outbox.load().expect("readable")[0], message(9, "hello"));
            for id in [9, 7, 5] {
                outbox.settle(id, &Err(Error::Cancelled));
            }
            assert_eq!(ids(&outbox), [0_u64; 0]);
        }
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn a_file_cut_anywhere_loses_only_the_record_that_was_cut() {
        let path = scratch("cut");
        let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
        let mut ends = vec![MAGIC.len()];
        for id in 1..=3 {
            outbox.put(&message(id, "some words")).expect("kept");
            ends.push(outbox.lock().bytes as usize);
        }
        drop(outbox);
        let whole = std::fs::read(&path).expect("readable");
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).expect("written");
            let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
            let kept = ends.iter().filter(|end| **end <= len).count().saturating_sub(1);
            assert_eq!(ids(&outbox), (1..=kept as u64).collect::<Vec<_>>(), "cut at {len}");
            // And it goes on from there.
            outbox.put(&message(99, "more")).expect("kept");
            drop(outbox);
            let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
            assert_eq!(ids(&outbox).last(), Some(&99), "cut at {len}");
        }
        // A byte that has changed ends what can be believed.
        let mut changed = whole.clone();
        changed[ends[1] + 20] ^= 1;
        std::fs::write(&path, &changed).expect("written");
        assert_eq!(ids(&FileOutbox::open(&path, Durability::Process).expect("opened")), [1]);
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn the_file_stays_in_proportion_to_what_it_keeps() {
        let path = scratch("size");
        let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
        let payload = "x".repeat(10_000);
        outbox.put(&message(1, "kept all the time")).expect("kept");
        let mut largest = 0;
        for id in 2..2_000 {
            outbox.put(&message(id, &payload)).expect("kept");
            outbox.settle(id, &Ok(Outcome::Delivered));
            largest = largest.max(std::fs::metadata(&path).expect("there").len());
        }
        assert!(largest < 3 * WASTE_BYTES_MAX, "{largest}");
        drop(outbox);
        assert_eq!(ids(&FileOutbox::open(&path, Durability::Process).expect("opened")), [1]);
        std::fs::remove_file(path).expect("removed");
    }

    #[test]
    fn one_process_at_a_time_has_it_and_other_files_are_left_alone() {
        let path = scratch("lock");
        let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
        let second = FileOutbox::open(&path, Durability::Process);
        let error = second.expect_err("locked");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let words = error.to_string();
        assert!(words.contains(&path.display().to_string()) && words.contains("another process"), "{words}");
        drop(outbox);
        FileOutbox::open(&path, Durability::Process).expect("opened");
        std::fs::write(&path, "somebody's letter").expect("written");
        let other = FileOutbox::open(&path, Durability::Process);
        assert_eq!(other.expect_err("no outbox").kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&path).expect("readable"), b"somebody's letter");
        std::fs::remove_file(path).expect("removed");
    }
}
