use super::*;
use trunkline_core::events::lane_of;

const KEYS: [u64; 2] = [11, 22];

fn event(user: u64, id: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Event { id, ..Event::new(EventKind::UserOnline, 5, user) }.encode(&mut bytes);
    bytes
}

fn snapshot(last_seq: u64, first: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_snapshot(&mut out, 77, last_seq, &[(KEYS[0], [first; LANES]), (KEYS[1], [0; LANES])]);
    out
}

fn seqs(recovered: &Recovered, hook: usize) -> Vec<u64> {
    recovered.waiting.iter().filter(|(of, ..)| *of == hook).map(|(_, _, item)| item.seq).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("trunkline-event-log-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

#[test]
fn what_waits_is_there_after_a_restart_whatever_the_webhooks_are_then() {
    let mut file = begun(&snapshot(3, 3));
    put_event(&mut file, 4, 0b11, &event(1, 1));
    put_event(&mut file, 5, 0b10, &event(1, 2));
    put_event(&mut file, 6, 0b11, &event(1, 3));
    let gap = |count| Gap { kind: EventKind::UserOnline, count, from_ms: 1, to_ms: 2 };
    put_gap(&mut file, 7, 0, 3, &gap(1));
    put_gap(&mut file, 7, 0, 3, &gap(9));
    put_done(&mut file, 0, lane_of(1), 4);
    let recovered = recover(&[file.clone()], &KEYS);
    assert_eq!((recovered.epoch, recovered.last_seq, recovered.torn), (Some(77), 7, 0));
    assert_eq!((seqs(&recovered, 0), seqs(&recovered, 1)), (vec![6, 7], vec![4, 5, 6]));
    assert_eq!(
        recovered.waiting.last().map(|(_, lane, item)| (*lane, item.body.clone())),
        Some((3, Body::Gap(gap(9))))
    );
    // Another order, one more, and one less.
    let other = recover(&[file.clone()], &[99, 22, 11]);
    assert_eq!((seqs(&other, 0), seqs(&other, 1), seqs(&other, 2)), (vec![], vec![4, 5, 6], vec![6, 7]));
    assert_eq!(seqs(&recover(&[file], &[22]), 0), [4, 5, 6]);
}

#[test]
fn a_record_that_is_not_whole_ends_a_file_and_nothing_panics() {
    let mut file = begun(&snapshot(0, 0));
    let mut ends = vec![file.len()];
    for seq in 1..=5 {
        put_event(&mut file, seq, 0b01, &event(seq, seq));
        ends.push(file.len());
    }
    for end in 0..=file.len() {
        let recovered = recover(&[file[..end].to_vec()], &KEYS);
        let whole = ends.iter().filter(|whole| **whole <= end).count().saturating_sub(1);
        assert_eq!(seqs(&recovered, 0).len(), whole, "{end}");
        let is_whole = ends.contains(&end) || end == MAGIC.len();
        assert_eq!(recovered.torn, usize::from(!is_whole), "{end}");
    }
    for at in 0..file.len() {
        let mut changed = file.clone();
        changed[at] ^= 0x41;
        let recovered = recover(&[changed], &KEYS);
        assert!(recovered.torn == 1 && seqs(&recovered, 0).len() < 5, "{at}");
    }
}

#[test]
fn files_are_removed_when_nothing_in_them_waits_and_a_new_one_can_take_the_place_of_all() {
    let folder = folder("files");
    let (mut log, recovered) = EventLog::open(&folder, &KEYS).expect("a log");
    assert!(recovered.epoch.is_none() && recovered.waiting.is_empty());
    let busy = EventLog::open(&folder, &KEYS).expect_err("it is in use").to_string();
    assert!(busy.contains("another process"), "{busy}");
    let files = || {
        let names = fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("a file").file_name());
        names.filter(|name| name.to_string_lossy().ends_with(SUFFIX)).count()
    };
    let mut write = |seqs: std::ops::Range<u64>, done_below: u64, anew: bool| {
        let mut bytes = Vec::new();
        seqs.clone().for_each(|seq| put_event(&mut bytes, seq, 0b01, &event(seq, seq)));
        let last_seq = seqs.end - 1;
        let job = Job { bytes, last_seq, snapshot: snapshot(last_seq, done_below), done_below, sync: false, anew };
        log.write(&job).expect("written");
        log.bytes()
    };
    write(1..2, 0, true);
    let long = SEGMENT_BYTES / 70;
    write(2..long, 0, false);
    write(long..long + 1, 0, false);
    assert_eq!(files(), 2, "the first one was long enough");
    write(long + 1..long + 2, long - 1, false);
    assert_eq!(files(), 1, "nothing of it waits");
    assert!(write(long..long + 2, long - 1, true) < 2_000);
    assert_eq!(files(), 1);
    drop(log);
    let (_, recovered) = EventLog::open(&folder, &KEYS).expect("a log");
    assert_eq!((seqs(&recovered, 0), recovered.last_seq), (vec![long, long + 1], long + 1));
    fs::remove_dir_all(&folder).expect("the folder");
}
