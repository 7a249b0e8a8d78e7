//! Certificates that change on disk are noticed without anybody's asking: programs that renew them only write files.
//!
//! The files are looked at from time to time. That works on every file system, for files that are replaced and for
//! links that lead elsewhere from then on.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Pause between two looks. A certificate and its key are written one after the other, so a change counts when the next
/// look has seen no other.
const PAUSE: Duration = Duration::from_millis(250);

/// What shows that a file was written, or that another is in its place: inode, seconds and nanoseconds of the last
/// change, length. `None` where there is none.
type Stamp = Option<(u64, i64, i64, u64)>;

/// What was seen in one look.
#[derive(Debug, Default, PartialEq, Eq)]
struct Look {
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
}

/// Which changes have been told.
#[derive(Debug, Default)]
struct Watch {
    told: Look,
    before: Look,
}

impl Watch {
    /// Takes another look. Returns whether there is a change to tell.
    fn look(&mut self, paths: Vec<PathBuf>) -> bool {
        let stamp = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
        };
        let stamps = paths.iter().map(stamp).collect();
        let before = std::mem::replace(&mut self.before, Look { paths, stamps });
        let now = &self.before;
        // Other files than before are those of a configuration that was read just now, and they with it.
        let others = now.paths != self.told.paths;
        let changed = !others && *now == before && now.stamps != self.told.stamps;
        if others || changed {
            self.told = Look { paths: now.paths.clone(), stamps: now.stamps.clone() };
        }
        changed
    }
}

/// Looks at the files that `paths` names until it names none any more, and calls `changed` when they have changed and
/// lie still again. Blocks.
pub(super) fn watch(mut paths: impl FnMut() -> Option<Vec<PathBuf>>, mut changed: impl FnMut()) {
    let mut watch = Watch::default();
    while let Some(paths) = paths() {
        if watch.look(paths) {
            changed();
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_when_it_is_over() {
        let folder = std::env::temp_dir().join(format!("trunkline-watch-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let paths = ["cert", "key"].map(|name| folder.join(name)).to_vec();
        let write = |at: usize, text: &str| {
            // In its place rather than over it: two writes within one tick of the file system's clock differ by the
            // inode.
            let new = folder.join("new");
            std::fs::write(&new, text).expect("a file");
            std::fs::rename(&new, &paths[at]).expect("a rename");
        };
        write(0, "a");
        write(1, "b");
        let mut watch = Watch::default();
        let mut look = |paths: &[PathBuf]| watch.look(paths.to_vec());
        assert_eq!([look(&paths), look(&paths)], [false, false], "nothing has changed");
        write(0, "ab");
        assert!(!look(&paths), "the key may follow");
        write(1, "bc");
        assert!(!look(&paths));
        assert_eq!([look(&paths), look(&paths)], [true, false]);
        std::fs::remove_file(&paths[1]).expect("a file");
        assert_eq!([look(&paths), look(&paths), look(&paths)], [false, true, false], "that one is gone is a change");
        write(0, "abc");
        assert_eq!([look(&paths[..1]), look(&paths[..1])], [false, false], "other files are no change");
        std::fs::remove_dir_all(&folder).expect("a folder");
    }
}
