//! The store on disk and the one in memory give the same answers.

use crate::support::{BEGIN_MS, Blame, Dice, Hands, now_stamp, open, record, seeds, small};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use trunkline_store::{Answer, Limits, Memory, Opened, Reply, Request, SimDisk, Store, WhenFull};

const USERS: u64 = 6;

/// The epochs that devices with a number have had, by user and number: in the store on disk, and in the one in memory,
/// which counts on where the other has begun anew.
type DeviceEpochs = BTreeMap<(u64, u16), Vec<[u32; 2]>>;

/// A request as the store in memory has to get it.
fn for_model(request: &Request, epochs: &DeviceEpochs) -> Request {
    let mut request = request.clone();
    if let Request::Cursor { user, device, device_epoch, .. }
    | Request::Forget { user, device, device_epoch, .. }
    | Request::Seen { user, device, device_epoch } = &mut request
    {
        let known = epochs.get(&(*user, *device)).into_iter().flatten().rev();
        *device_epoch = known.copied().find(|[own, _]| own == device_epoch).map_or(0, |[_, models]| models);
    }
    request
}

fn request(dice: &mut Dice, hands: &Hands, stamps: &[u64], epochs: &DeviceEpochs) -> Request {
    let user = 1 + dice.below(USERS) * dice.below(2).max(1);
    let token = dice.roll();
    let device = 1 + dice.below(4) as u16;
    // Positions that were given out, or beside them.
    let stamp = match stamps.len() {
        0 => 0,
        len => stamps[len - 1 - dice.below(len.min(40) as u64) as usize] + dice.below(3) - 1,
    };
    // Most often that of the device, at times that of one before it.
    let device_epoch = match epochs.get(&(user, device)).map_or(&[][..], |known| &known[..]) {
        [.., [before, _], _] if dice.below(6) == 0 => *before,
        [.., [last, _]] => *last,
        [] => 0,
    };
    match dice.below(100) {
        0..60 => {
            let proposed = match dice.below(20) {
                0 => stamp,
                1 => 0,
                2 => now_stamp(hands) + (dice.below(50) << 20),
                _ => now_stamp(hands) + dice.below(1_000),
            };
            let bytes = if dice.below(30) == 0 { 2_100 } else { dice.below(600) as usize };
            let record = record(proposed, dice.below(400), bytes);
            let retry = (dice.below(4) == 0).then_some(0);
            Request::Append { user, record, retry, token }
        }
        60..70 => {
            let device = format!("device {}", dice.below(5)).into();
            Request::Open { user, device, ephemeral: dice.below(5) == 0, claims: false, token }
        }
        70..82 => Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after: if dice.below(3) == 0 { 0 } else { stamp },
            since_ms: if dice.below(4) == 0 { hands.now_ms() - dice.below(100_000) } else { 0 },
            limit: dice.below(30) as u32,
            bytes_max: 1 << dice.below(14),
            token,
        },
        82..93 => Request::Cursor { user, device, device_epoch, stamp },
        93 => Request::Seen { user, device, device_epoch },
        94 => Request::Gap { user, stamp },
        95 => Request::Devices { user, token },
        96 => Request::Forget { user, device, device_epoch, token },
        97 if dice.below(4) == 0 => Request::Delete { user, token },
        _ => Request::Inspect { user, claims: false, token },
    }
}

fn compare(seed: u64, limits: &Limits, reopen: bool) {
    let _blame = Blame(seed);
    let mut dice = Dice(seed);
    let hands = Hands::new();
    let disk = SimDisk::new();
    let mut store = open(&disk, limits, &hands);
    let mut model = Memory::new(limits.clone(), hands.clock(), 7);
    let mut stamps = vec![BEGIN_MS << 20];
    let mut epochs = DeviceEpochs::new();
    let (mut tables, mut stale) = (0, 0);
    for step in 0..600 {
        hands.pass(match dice.below(60) {
            0 => 400_000,
            1 => 30_000,
            _ => dice.below(40),
        });
        let count = 1 + dice.below(8);
        let batch: Vec<_> = (0..count).map(|at| (at as u16, request(&mut dice, &hands, &stamps, &epochs))).collect();
        let (mut expected, mut given) = (Vec::new(), Vec::new());
        // The store in memory reads at once, the one on disk after the commit: reads are asked alone, or last.
        let (reads, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|(_, request)| matches!(request, Request::Read { .. }));
        let batch = [others, reads].concat();
        let mut of_model = batch.iter().map(|(source, request)| (*source, for_model(request, &epochs))).collect();
        model.apply(&mut of_model, &mut |source, answer| expected.push((source, as_on_disk(answer))));
        store.apply(&mut batch.clone(), &mut |source, answer| given.push((source, answer)));
        let epoch_of = |(_, answer): &mut (_, Answer)| match &mut answer.reply {
            Reply::Opened(opened) => std::mem::take(&mut opened.device_epoch),
            Reply::Devices(devices) => {
                devices.iter_mut().for_each(|device| device.device_epoch = 0);
                0
            }
            _ => 0,
        };
        let of_model: Vec<u32> = expected.iter_mut().map(epoch_of).collect();
        let own: Vec<u32> = given.iter_mut().map(epoch_of).collect();
        assert_eq!(given, expected, "step {step}: {batch:#?}");
        for ((_, answer), told) in given.iter().zip(own.into_iter().zip(of_model)) {
            if let Reply::Stored { stamp, .. } = answer.reply {
                stamps.push(stamp);
            }
            if let Reply::Opened(Opened { device, .. }) = answer.reply
                && let Some((_, request)) = batch.iter().find(|(_, request)| request.token() == Some(answer.token))
            {
                let known = epochs.entry((request.user(), device)).or_default();
                if known.last() != Some(&told.into()) {
                    known.push(told.into());
                }
            }
        }
        if dice.below(10) == 0 {
            hands.pass(200);
            model.tick();
            store.tick();
        }
        if reopen && dice.below(50) == 0 {
            store.close();
            stale += cursors_stale(&store);
            tables += store.stats().tables_written.load(Ordering::Relaxed);
            drop(store);
            store = open(&disk, limits, &hands);
        }
    }
    tables += store.stats().tables_written.load(Ordering::Relaxed);
    assert!(tables > 0, "the log was never cut");
    hands.pass(200);
    model.tick();
    assert_eq!(stale + cursors_stale(&store), cursors_stale(&model));
}

fn cursors_stale(store: &dyn Store) -> u64 {
    store.stats().cursors_stale.load(Ordering::Relaxed)
}

/// An answer without what a store on disk does not tell, since nobody else adds to it.
fn as_on_disk(mut answer: Answer) -> Answer {
    if let Reply::Stored { before, .. } = &mut answer.reply {
        *before = 0;
    }
    answer
}

#[test]
fn disk_and_memory_answer_alike() {
    for seed in seeds(10) {
        compare(seed, &small(), false);
    }
}

#[test]
fn disk_and_memory_answer_alike_across_restarts() {
    for seed in seeds(10) {
        compare(seed, &small(), true);
    }
}

#[test]
fn disk_and_memory_drop_the_same_when_full() {
    let limits = Limits { when_full: WhenFull::DropOldest, ..small() };
    for seed in seeds(10) {
        compare(seed, &limits, true);
    }
}

#[test]
fn disk_and_memory_answer_alike_without_tables() {
    let limits = Limits { recent_bytes_max: 1 << 30, log_bytes_max: 1 << 30, ..small() };
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = open(&disk, &limits, &hands);
    let mut model = Memory::new(limits.clone(), hands.clock(), 7);
    let mut dice = Dice(1);
    let stamps = [BEGIN_MS << 20];
    for _ in 0..500 {
        hands.pass(dice.below(40));
        let request = request(&mut dice, &hands, &stamps, &DeviceEpochs::new());
        let (mut expected, mut given) = (None, None);
        model.apply(&mut vec![(0, request.clone())], &mut |_, answer| expected = Some(as_on_disk(answer)));
        store.apply(&mut vec![(0, request)], &mut |_, answer| given = Some(answer));
        assert_eq!(given, expected);
    }
}
