//! The floor of keeping messages: they are appended to a file, with one fdatasync for all that are under way.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    failure::Failure,
    keeping::{Kept, Until},
    latency::{Percentiles, histogram},
    process::{own_cpu, written_bytes},
    progress::Progress,
};

/// What is kept of a message beside its payload: recipient, sender, id, position, flags and length, as the gateway has
/// them in its log.
pub(crate) const RECORD_BYTES: usize = 8 + 8 + 8 + 8 + 1 + 4;

/// Appends records with `in_flight` of them for each write and fdatasync, and takes the time of each.
pub(crate) fn append(
    folder: &Path,
    payload: u32,
    in_flight: u32,
    until: Until,
    progress: &Progress,
) -> Result<Kept, Failure> {
    let path = folder.join("append");
    let failed = |error| Failure::system(&format!("appending to {}", path.display()), error);
    let mut file = File::create(&path).map_err(failed)?;
    let batch = vec![7; (RECORD_BYTES + payload as usize) * in_flight as usize];
    let (length, count) = match until {
        Until::Time(length) => (length, u64::MAX),
        Until::Each(count) | Until::Count(count) => (Duration::MAX, count),
    };
    let bar = progress.phase("messages kept", if count == u64::MAX { 0 } else { count });
    let pids = [std::process::id()];
    let (mut latency, mut messages, mut longest) = (histogram(), 0, Duration::ZERO);
    let (own, written, from) = (own_cpu(), written_bytes(&pids), Instant::now());
    while messages < count && from.elapsed() < length {
        let records = (count - messages).min(in_flight.into());
        let began = Instant::now();
        let bytes = &batch[..(RECORD_BYTES + payload as usize) * records as usize];
        file.write_all(bytes).and_then(|()| file.sync_data()).map_err(failed)?;
        let took = began.elapsed();
        latency.saturating_record_n(took.as_nanos() as u64, records);
        longest = longest.max(took);
        messages += records;
        bar.set(messages);
    }
    let seconds = from.elapsed().as_secs_f64();
    let cpu = (own_cpu() - own).as_secs_f64();
    let latency = Percentiles::of(&latency);
    drop(file);
    fs::remove_file(&path).map_err(failed)?;
    Ok(Kept {
        messages,
        seconds,
        rate: messages as f64 / seconds,
        cpu_us_per_message: cpu * 1e6 / messages.max(1) as f64,
        cores: cpu / seconds,
        bench_cores: cpu / seconds,
        disk_bytes_per_message: match (written, written_bytes(&pids)) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before) as f64 / messages.max(1) as f64),
            _ => None,
        },
        // Nobody waits for anybody here.
        latency_corrected: latency,
        latency,
        silence_ms: longest.as_secs_f64() * 1e3,
    })
}

/// Whether a folder is in memory, so that nothing that is written there comes to a disk.
pub(crate) fn is_in_memory(folder: &Path) -> Result<bool, Failure> {
    let failed = |error| Failure::system(&format!("looking at {}", folder.display()), error);
    let folder = folder.canonicalize().map_err(failed)?;
    let mounts = fs::read_to_string("/proc/mounts").map_err(|error| Failure::system("reading /proc/mounts", error))?;
    Ok(matches!(kind_of(&mounts, &folder), Some("tmpfs" | "ramfs")))
}

/// The kind of file system that a path is in, by the lines of `/proc/mounts`: device, folder, kind and more.
fn kind_of<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((Path::new(words.next()?), words.next()?))
    });
    // Of two at one place the later one lies above the earlier one.
    let within = mounts.filter(|(at, _)| path.starts_with(at)).max_by_key(|(at, _)| at.components().count());
    within.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_memory_is_told_from_one_on_a_disk() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n/dev/vdb /dev/shm/x xfs rw 0 0\n";
        for (path, kind) in
            [("/tmp/a", "ext4"), ("/dev/shm/b", "tmpfs"), ("/dev/shm/x/c", "xfs"), ("/dev/shmx", "ext4")]
        {
            assert_eq!(kind_of(mounts, Path::new(path)), Some(kind), "{path}");
        }
    }

    #[test]
    fn what_is_appended_is_counted_and_goes() {
        let folder = crate::redis::Scratch::new("append").expect("a folder");
        let progress = Progress::new("test".to_owned());
        let kept = append(folder.path(), 64, 8, Until::Count(20), &progress).expect("it is written");
        assert_eq!((kept.messages, kept.latency.count), (20, 20));
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 0);
    }
}
