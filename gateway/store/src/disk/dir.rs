//! A folder of the operating system.

use super::{Disk, File};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file whose lock says that the folder is in use. It stays when the process ends; the lock does not.
const LOCK: &str = "lock";

/// A folder that no other process uses at the same time.
#[derive(Debug)]
pub struct DirDisk {
    dir: PathBuf,
    /// Holds the lock until it is dropped, or the process ends in whatever way.
    lock: fs::File,
}

impl Drop for DirDisk {
    /// Closing the file is not enough: a child that this process is just starting has it too, until it runs a program
    /// of its own.
    fn drop(&mut self) {
        // The next one to open the folder is told if it is locked still.
        let _ = self.lock.unlock();
    }
}

/// Makes a folder durably, and those above it that are not there: what is synced in a folder is gone after a power
/// failure if the folder itself is.
///
/// # Errors
/// Those of the file system; but where nothing can be synced in the folder above one that was there already, that is
/// left.
pub fn make_folder(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let mut missing = Vec::new();
    let mut known = dir.as_path();
    while !known.try_exists()? {
        missing.push(known);
        known = known.parent().ok_or(io::ErrorKind::NotFound)?;
    }
    // A process that was killed may have made this one, and not have come to the sync.
    if let Some(parent) = known.canonicalize()?.parent() {
        use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
        match sync_folder(parent) {
            // Then no such process made it: it can change nothing there, or nobody can while the system runs.
            Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | ReadOnlyFilesystem) => {}
            synced => synced?,
        }
    }
    for folder in missing.into_iter().rev() {
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        sync_folder(folder.parent().ok_or(io::ErrorKind::NotFound)?)?;
    }
    Ok(())
}

/// Makes durable which files and folders a folder has.
fn sync_folder(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

impl DirDisk {
    /// Opens a folder, and makes it if there is none.
    ///
    /// # Errors
    /// Of kind `WouldBlock` if another process uses it; otherwise those of the file system.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_folder(dir)?;
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, format!("{} is in use by another process", dir.display()))
            }
            fs::TryLockError::Error(error) => error,
        })?;
        Ok(DirDisk { dir: dir.to_owned(), lock })
    }
}

impl Disk for DirDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        // Messages are nobody else's business.
        options.create(true).truncate(true).read(true).write(true).mode(0o600);
        Ok(Arc::new(options.open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(fs::File::open(self.dir.join(name))?))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK
            {
                files.push((name, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_folder(&self.dir)
    }
}

impl File for fs::File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
