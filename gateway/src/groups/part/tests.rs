//! Parts against a model that knows who was in when.

use super::*;
use crate::io::sim::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What sessions got.
#[derive(Default)]
struct Got {
    generations: BTreeMap<u32, u32>,
    frames: BTreeMap<(ConnId, u64), Vec<u8>>,
    missed: BTreeSet<(ConnId, u64)>,
    walked: usize,
}

impl Got {
    fn conn(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self.generations.get(&slot).copied().unwrap_or(0) }
    }
}

impl Sink for Got {
    fn is_open(&mut self, conn: ConnId) -> bool {
        self.conn(conn.slot) == conn
    }
    fn give(&mut self, slot: u32, group: u64, run: &Run) {
        self.walked += 1;
        assert_eq!(run.frames.last().map(|frame| frame.end), Some(run.bytes.len()));
        let conn = self.conn(slot);
        self.frames.entry((conn, group)).or_default().extend_from_slice(&run.bytes);
    }
    fn miss(&mut self, slot: u32, group: u64) {
        self.walked += 1;
        let conn = self.conn(slot);
        self.missed.insert((conn, group));
    }
}

#[test]
fn a_session_gets_what_is_sent_while_it_is_in_each_once_and_in_order() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (mut parts, mut got) = (Parts::default(), Got::default());
        let mut members: BTreeMap<u64, BTreeSet<ConnId>> = BTreeMap::new();
        let mut due: BTreeMap<(ConnId, u64), Vec<u8>> = BTreeMap::new();
        // Sessions that have left, at one time or another.
        let mut gone: BTreeSet<(ConnId, u64)> = BTreeSet::new();
        for step in 0..rng.within(20, 300) {
            let slot = rng.below(8) as u32;
            let group = rng.within(1, 4);
            let conn = got.conn(slot);
            match rng.below(10) {
                0..3 => {
                    let known = parts.get(group).is_some();
                    let new = parts.join(conn, group, 0, 0);
                    assert_eq!(new, !known, "seed {seed}");
                    members.entry(group).or_default().insert(conn);
                }
                3 => {
                    parts.leave(conn, group);
                    if members.entry(group).or_default().remove(&conn) {
                        gone.insert((conn, group));
                    }
                }
                4 => {
                    parts.leave_all(slot);
                    for (group, of) in &mut members {
                        if of.remove(&conn) {
                            gone.insert((conn, *group));
                        }
                    }
                    *got.generations.entry(slot).or_default() += 1;
                }
                5..8 => {
                    let frame = [step as u8];
                    assert!(parts.push(group, 1, None, &frame, 1 << 20));
                    for conn in members.entry(group).or_default().iter() {
                        due.entry((*conn, group)).or_default().extend(frame);
                    }
                }
                _ => {
                    let before = got.walked;
                    parts.walk(rng.within(1, 6) as usize, &mut got);
                    assert!(got.walked - before <= 6, "seed {seed}");
                }
            }
            let all: usize = members.values().map(BTreeSet::len).sum();
            assert!(parts.memberships() <= all, "seed {seed}");
        }
        parts.walk(usize::MAX, &mut got);
        assert!(parts.is_idle() && parts.queued_bytes() == 0, "seed {seed}");
        for (who, frames) in &due {
            let have = got.frames.get(who).cloned().unwrap_or_default();
            if !gone.contains(who) {
                assert_eq!(have, *frames, "seed {seed}: {who:?}");
            }
            // One that left may miss what was on its way, and gets nothing that was not sent while it was in.
            let mut sent = frames.iter();
            assert!(have.iter().all(|frame| sent.any(|sent| sent == frame)), "seed {seed}: {who:?}");
        }
        for (group, of) in &members {
            for conn in of {
                assert!(parts.is_in(*conn, *group), "seed {seed}");
                assert!(parts.groups_of(conn.slot).any(|known| known == *group), "seed {seed}");
            }
            assert_eq!(parts.get(*group).is_some(), !of.is_empty(), "seed {seed}: an empty part has ended");
        }
        assert_eq!(parts.memberships(), members.values().map(BTreeSet::len).sum::<usize>(), "seed {seed}");
    }
}

#[test]
fn without_changes_every_session_gets_every_frame_whatever_the_stretches() {
    let (mut parts, mut got) = (Parts::default(), Got::default());
    for slot in 0..2_000 {
        parts.join(got.conn(slot), 7, 0, 0);
    }
    parts.join(got.conn(5_000), 8, 0, 0);
    for frame in 0..5u8 {
        assert!(parts.push(7, 1, None, &[frame], 1 << 20));
        parts.push(8, 1, None, &[frame], 1 << 20);
        parts.walk(300, &mut got);
        // The small group waits for a stretch of the large one, and for no more.
        parts.walk(300, &mut got);
        assert_eq!(got.frames[&(got.conn(5_000), 8)].len(), usize::from(frame) + 1);
    }
    while !parts.is_idle() {
        parts.walk(4_096, &mut got);
    }
    for slot in 0..2_000 {
        assert_eq!(got.frames[&(got.conn(slot), 7)], [0, 1, 2, 3, 4]);
    }
}

#[test]
fn frames_beyond_the_bound_are_told_as_missing_and_nothing_is_kept_of_those_who_left() {
    let (mut parts, mut got) = (Parts::default(), Got::default());
    for slot in 0..3 {
        parts.join(got.conn(slot), 7, 0, 0);
    }
    assert!(parts.push(7, 1, None, &[1; 100], 150));
    assert!(!parts.push(7, 1, None, &[2; 100], 150));
    assert!(!parts.push(7, 1, None, &[3; 100], 150));
    parts.walk(100, &mut got);
    assert_eq!((got.missed.len(), parts.queued_bytes()), (3, 0));
    parts.push(7, 1, None, &[4; 100], 150);
    parts.end(7);
    assert_eq!((parts.len(), parts.memberships(), parts.queued_bytes()), (0, 0, 0));
    parts.walk(100, &mut got);
    assert!(got.frames.values().all(|frames| frames.len() == 100) && parts.is_idle());
}
