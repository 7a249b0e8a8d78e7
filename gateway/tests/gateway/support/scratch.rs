//! Files a test hands to the gateway.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A file in cargo's folder for test data, removed when the test is done with it.
pub(crate) struct ScratchFile(PathBuf);

impl ScratchFile {
    pub(crate) fn new(name: &str, content: impl AsRef<[u8]>) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}-{name}", std::process::id()));
        std::fs::write(&path, content).expect("write a scratch file");
        ScratchFile(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("cargo's test folder has a UTF-8 path")
    }
}

/// A folder in cargo's folder for test data, removed with all that is in it when the test is done with it.
pub(crate) struct ScratchFolder(PathBuf);

impl ScratchFolder {
    pub(crate) fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}-{name}", std::process::id()));
        ScratchFolder(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().expect("cargo's test folder has a UTF-8 path")
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        // Whether the gateway has made it or not.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
