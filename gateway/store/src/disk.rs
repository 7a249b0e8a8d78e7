//! What a store asks of a file system. A trait, so that a simulated one can be cut off at every write.

mod dir;
mod sim;
mod window;

pub use dir::{DirDisk, make_folder};
pub use sim::{Fault, SimDisk};
pub(crate) use window::Window;

use std::io;
use std::sync::Arc;

/// A folder of files. What is created, renamed or removed is durable after [`Disk::sync_dir`], not before.
pub trait Disk: Send + Sync {
    /// Makes a file, or empties the one of that name.
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens a file to read from it.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Names and sizes of all files, in no order.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Gives a file another name; one that had it is gone.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which files there are.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self) -> io::Result<()>;
}

/// A file. What is written is durable after [`File::sync`], not before; what was written before a sync that failed may
/// never be.
pub trait File: Send + Sync {
    /// Writes all of `bytes` at a place.
    ///
    /// # Errors
    /// Those of the file system; some of it may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads until `bytes` are full.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file is shorter, and those of the file system.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&self) -> io::Result<()>;

    /// Its size, bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn size(&self) -> io::Result<u64>;
}
