//! A file system in memory that loses what was not synced, tears writes and fails when it is asked to.

use super::{Disk, File};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pieces of a write that get to the disk together or not at all: a sector.
const SECTOR_BYTES: usize = 512;

/// How a simulated disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes and new files fail: no space is left. Half of a write gets there.
    Full,
    /// Writes, syncs and changes of the folder fail.
    ReadOnly,
    /// Syncs fail, and what was written since the last one is never written, although it can be read until the crash.
    SyncFails,
    /// Syncs fail, but what was written can be read, and a crash may find it on disk.
    SyncDoubtful,
    /// Everything fails, reads included.
    Broken,
}

/// A file system in memory. Clones are the same one.
#[derive(Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// The folder as the process sees it.
    names: BTreeMap<String, usize>,
    /// The folder on disk.
    durable_names: BTreeMap<String, usize>,
    files: Vec<Content>,
    fault: Option<Fault>,
    /// Operations, counted like `operations`, of which each fails like this.
    fault_at: Option<(Range<u64>, Fault)>,
    /// Operations that change something, until the power fails; none: it does not.
    operations_left: Option<u64>,
    /// It has failed in the middle of an operation.
    cut: bool,
    operations: u64,
    syncs: u64,
}

#[derive(Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Written since the last sync.
    pending: Vec<(u64, Vec<u8>)>,
}

struct SimFile {
    disk: SimDisk,
    number: usize,
}

/// A small generator; its seed is all of its state.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // splitmix64, Steele, Lea and Flood 2014.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        SimDisk::default()
    }

    /// Lets it fail, or work again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.lock().fault = fault;
    }

    /// Lets some operations fail, by their numbers as [`SimDisk::operations`] counts.
    pub fn set_fault_at(&self, operations: Range<u64>, fault: Fault) {
        self.lock().fault_at = Some((operations, fault));
    }

    /// Lets the power fail after so many more writes, syncs and changes of the folder: they fail from then on, until
    /// [`SimDisk::crash`].
    pub fn cut_after(&self, operations: u64) {
        self.lock().operations_left = Some(operations);
    }

    /// Writes, syncs and changes of the folder so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Successful syncs of files so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The power fails and comes back. Of what was not synced, the seed decides for each sector, and for each change of
    /// the folder, whether it is on disk.
    pub fn crash(&self, seed: u64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut dice = Dice(seed);
        for content in &mut inner.files {
            for (offset, bytes) in std::mem::take(&mut content.pending) {
                // All, nothing, a torn beginning, or any sectors of it.
                let mode = dice.roll() % 4;
                let torn_at = (dice.roll() % (bytes.len() as u64 + 1)) as usize;
                let mut at = 0;
                for piece in bytes.chunks(SECTOR_BYTES) {
                    let kept = match mode {
                        0 => piece.len(),
                        1 => 0,
                        2 => torn_at.saturating_sub(at).min(piece.len()),
                        _ => piece.len() * (dice.roll() % 2) as usize,
                    };
                    write(&mut content.durable, &piece[..kept], offset as usize + at);
                    at += piece.len();
                }
            }
            content.seen = content.durable.clone();
        }
        let names: Vec<String> = inner.names.keys().chain(inner.durable_names.keys()).cloned().collect();
        for name in names {
            let (seen, durable) = (inner.names.get(&name).copied(), inner.durable_names.get(&name).copied());
            let kept = if dice.roll().is_multiple_of(2) { seen } else { durable };
            match kept {
                Some(number) => inner.durable_names.insert(name, number),
                None => inner.durable_names.remove(&name),
            };
        }
        // A renamed file is there under one name at least: a journal keeps both halves of a rename together.
        for (name, number) in &inner.names {
            if !inner.durable_names.values().any(|known| known == number) && dice.roll().is_multiple_of(2) {
                inner.durable_names.entry(name.clone()).or_insert(*number);
            }
        }
        inner.names = inner.durable_names.clone();
        (inner.operations_left, inner.cut, inner.fault, inner.fault_at) = (None, false, None, None);
    }

    /// Flips a bit of a file, for tests of what is done about damage. False if the file is not that long.
    pub fn damage(&self, name: &str, offset: u64) -> bool {
        let mut inner = self.lock();
        let Some(&number) = inner.names.get(name) else { return false };
        let content = &mut inner.files[number];
        let offset = offset as usize;
        if offset >= content.seen.len() || offset >= content.durable.len() {
            return false;
        }
        content.seen[offset] ^= 0x10;
        content.durable[offset] ^= 0x10;
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts something that changes the disk, and says whether it can be done; if not, how the disk fails.
    fn change(&self, sync: bool) -> Result<MutexGuard<'_, Inner>, (io::Error, Option<Fault>)> {
        let mut inner = self.lock();
        let number = inner.operations;
        inner.operations += 1;
        if let Some(left) = &mut inner.operations_left {
            if *left == 0 {
                return Err((io::Error::other("the power has failed"), None));
            }
            *left -= 1;
        }
        let at = inner.fault_at.as_ref().filter(|(operations, _)| operations.contains(&number));
        let fault = inner.fault.or(at.map(|(_, fault)| *fault));
        let error = match fault {
            None => return Ok(inner),
            Some(Fault::Full) if sync => return Ok(inner),
            Some(Fault::SyncFails | Fault::SyncDoubtful) if !sync => return Ok(inner),
            Some(Fault::Full) => io::ErrorKind::StorageFull.into(),
            Some(Fault::ReadOnly) => io::ErrorKind::ReadOnlyFilesystem.into(),
            Some(Fault::SyncFails | Fault::SyncDoubtful | Fault::Broken) => io::Error::other("input/output error"),
        };
        Err((error, fault))
    }

    /// The same, where it does not matter how.
    fn change_dir(&self, sync: bool) -> io::Result<MutexGuard<'_, Inner>> {
        self.change(sync).map_err(|(error, _)| error)
    }

    fn look(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.lock();
        if inner.fault == Some(Fault::Broken) || inner.operations_left == Some(0) {
            return Err(io::Error::other("input/output error"));
        }
        Ok(inner)
    }
}

fn write(content: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if bytes.is_empty() {
        return;
    }
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut inner = self.change_dir(false)?;
        let number = inner.files.len();
        inner.files.push(Content::default());
        inner.names.insert(name.to_owned(), number);
        Ok(Arc::new(SimFile { disk: self.clone(), number }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let number = self.look()?.names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), number }))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let inner = self.look()?;
        Ok(inner.names.iter().map(|(name, number)| (name.clone(), inner.files[*number].seen.len() as u64)).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.change_dir(false)?;
        let number = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change_dir(false)?.names.remove(name).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.change_dir(true)?;
        inner.durable_names = inner.names.clone();
        Ok(())
    }
}

impl File for SimFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = match self.disk.change(false) {
            Ok(inner) => inner,
            Err((error, fault)) => {
                let mut inner = self.disk.lock();
                if fault == Some(Fault::Full) {
                    let half = &bytes[..bytes.len() / 2];
                    let content = &mut inner.files[self.number];
                    write(&mut content.seen, half, offset as usize);
                    content.pending.push((offset, half.to_vec()));
                }
                // The power fails in the middle of this write: the crash decides how much of it there is.
                if inner.operations_left == Some(0) && !std::mem::replace(&mut inner.cut, true) {
                    inner.files[self.number].pending.push((offset, bytes.to_vec()));
                }
                return Err(error);
            }
        };
        let content = &mut inner.files[self.number];
        write(&mut content.seen, bytes, offset as usize);
        content.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let inner = self.disk.look()?;
        let content = &inner.files[self.number].seen;
        let offset = offset as usize;
        let found = content.get(offset..offset.saturating_add(bytes.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(found);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let result = self.disk.change(true);
        let mut inner = match result {
            Ok(inner) => inner,
            Err((error, fault)) => {
                let mut inner = self.disk.lock();
                if fault == Some(Fault::SyncFails) {
                    // The kernel takes the pages for clean: the next sync succeeds and writes nothing.
                    inner.files[self.number].pending.clear();
                }
                return Err(error);
            }
        };
        inner.syncs += 1;
        let Content { durable, pending, .. } = &mut inner.files[self.number];
        for (offset, bytes) in std::mem::take(pending) {
            write(durable, &bytes, offset as usize);
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.look()?.files[self.number].seen.len() as u64)
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimDisk").field("files", &self.lock().names.keys().collect::<Vec<_>>()).finish()
    }
}
