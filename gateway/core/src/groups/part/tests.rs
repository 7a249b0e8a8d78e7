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

/// What was missed is told at once, with how far the groups are then.
fn tell_missed(parts: &Parts, got: &mut Got, told: &mut BTreeMap<(ConnId, u64), u64>) {
    for (conn, group) in std::mem::take(&mut got.missed) {
        if let Some(part) = parts.get(group) {
            told.insert((conn, group), part.last);
        }
    }
}

/// A step of the rounds, in which who is told of what is noted: the sessions with the stamps, by group.
fn step(parts: &mut Parts, got: &Got, told: &mut BTreeMap<(ConnId, u64), u64>) -> Vec<u32> {
    let step = parts.next_step();
    for (slot, news) in &step {
        assert!(!news.is_empty());
        for news in news {
            assert_eq!(news.number, news.stamp / 10);
            told.insert((got.conn(*slot), news.group), news.stamp);
        }
    }
    step.into_iter().map(|(slot, _)| slot).collect()
}

#[test]
fn in_large_groups_the_attentive_get_frames_and_the_others_are_told_the_last_state_once_in_a_round() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (mut parts, mut got) = (Parts::default(), Got::default());
        // Who is in which group, and whether it pays attention.
        let mut members: BTreeMap<u64, BTreeMap<ConnId, bool>> = BTreeMap::new();
        let mut large: BTreeMap<u64, bool> = BTreeMap::new();
        let mut due: BTreeMap<(ConnId, u64), Vec<u8>> = BTreeMap::new();
        // What has to be told, and was.
        let (mut owed, mut told) = (BTreeMap::new(), BTreeMap::new());
        let mut looked_at: BTreeMap<u32, u64> = BTreeMap::new();
        // Far apart, so that they are looked at in different steps.
        let slots: Vec<u32> = (0..8).map(|at| at * 700 + rng.below(64) as u32).collect();
        let mut ticks = 0;
        for at in 1..=rng.within(50, 600) {
            let slot = *rng.pick(&slots);
            let group = rng.within(1, 3);
            let conn = got.conn(slot);
            let of = members.entry(group).or_default();
            match rng.below(12) {
                0..3 => {
                    parts.join(conn, group, 0, 0);
                    of.entry(conn).or_insert(false);
                }
                3 => {
                    parts.leave(conn, group);
                    of.remove(&conn);
                    owed.remove(&(conn, group));
                    due.remove(&(conn, group));
                    got.frames.remove(&(conn, group));
                }
                4 => {
                    parts.leave_all(slot);
                    for of in members.values_mut() {
                        of.remove(&conn);
                    }
                    owed.retain(|(gone, _), _| *gone != conn);
                    due.retain(|(gone, _), _| *gone != conn);
                    *got.generations.entry(slot).or_default() += 1;
                }
                5..7 => {
                    let attends = rng.chance(500);
                    let moved = parts.attend(conn, group, attends);
                    let known = of.get_mut(&conn);
                    assert_eq!(moved == Moved::NotIn, known.is_none(), "seed {seed}");
                    if let Some(known) = known {
                        *known = attends;
                    }
                    // It is told of it in the answer.
                    owed.remove(&(conn, group));
                    if moved == Moved::Missed {
                        due.remove(&(conn, group));
                        got.frames.remove(&(conn, group));
                    }
                }
                7..10 => {
                    let passive = *large.entry(group).or_insert(false) != rng.chance(100);
                    large.insert(group, passive);
                    let Some(part) = parts.get_mut(group) else { continue };
                    (part.last, part.number) = (10 * at, at);
                    parts.set_passive(group, passive);
                    if passive {
                        parts.note_news(group);
                    }
                    assert_eq!(parts.gets_frames(group), !passive || of.values().any(|attends| *attends));
                    assert!(parts.push(group, 1, None, &[at as u8], 1 << 20));
                    for (conn, attends) in of {
                        if *attends || !passive {
                            due.entry((*conn, group)).or_default().push(at as u8);
                        } else {
                            owed.insert((*conn, group), 10 * at);
                        }
                    }
                    // As a turn does.
                    parts.walk(if rng.chance(800) { usize::MAX } else { 2 }, &mut got);
                    tell_missed(&parts, &mut got, &mut told);
                }
                _ => {
                    for _ in 0..rng.within(1, 30) {
                        ticks += 1;
                        for slot in step(&mut parts, &got, &mut told) {
                            let before = looked_at.insert(slot, ticks);
                            assert!(before.is_none_or(|before| ticks - before >= ROUND), "seed {seed}: {slot}");
                        }
                    }
                }
            }
            let attentive = members.values().flat_map(BTreeMap::values).filter(|attends| **attends).count();
            assert!(parts.attentive() <= attentive, "seed {seed}");
        }
        parts.walk(usize::MAX, &mut got);
        tell_missed(&parts, &mut got, &mut told);
        // What could not be told in a round because frames were on their way is told in the next one.
        (0..2 * ROUND).for_each(|_| drop(step(&mut parts, &got, &mut told)));
        for (who, stamp) in owed {
            assert!(told.get(&who).is_some_and(|told| *told >= stamp), "seed {seed}: {who:?} was not told of {stamp}");
        }
        for (who, frames) in due {
            assert_eq!(got.frames.get(&who), Some(&frames), "seed {seed}: {who:?}");
        }
        let count = |wanted: bool| members.values().flat_map(BTreeMap::values).filter(|is| **is == wanted).count();
        assert_eq!((parts.attentive(), parts.memberships()), (count(true), count(true) + count(false)), "seed {seed}");
        assert!((0..2 * ROUND).all(|_| parts.next_step().is_empty()), "seed {seed}: told twice");
        (1..=3).for_each(|group| parts.end(group));
        assert_eq!((parts.len(), parts.memberships(), parts.passive(), parts.attentive()), (0, 0, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_busy_group_that_is_not_large_any_more_tells_once_what_it_had_not_given() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let (mut parts, mut got) = (Parts::default(), Got::default());
        let slots: Vec<u32> = (0..20).map(|at| at * 150).collect();
        for slot in &slots {
            parts.join(got.conn(*slot), 7, 0, 0);
        }
        // Frames of before are on their way, and have to come before the news.
        assert!(parts.push(7, 1, None, &[1], 1 << 20));
        parts.walk(rng.below(20) as usize, &mut got);
        parts.set_passive(7, true);
        let part = parts.get_mut(7).expect("it has sessions");
        (part.last, part.number) = (10, 1);
        parts.note_news(7);
        parts.set_passive(7, false);
        let mut times: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for tick in 1..=5 * ROUND {
            // There is always something on its way, sessions come and go, and the walk is never at its end.
            assert!(parts.push(7, 1, None, &[2], 1 << 20));
            let late = got.conn(10_000 + rng.below(8) as u32);
            if rng.chance(500) {
                parts.join(late, 7, 0, 0);
            } else {
                parts.leave(late, 7);
            }
            parts.walk(rng.within(1, 60) as usize, &mut got);
            // Who has come since may be told along with the others.
            for (slot, news) in parts.next_step().into_iter().filter(|(slot, _)| slots.contains(slot)) {
                assert_eq!(news, [News { group: 7, stamp: 10, number: 1 }], "seed {seed}");
                assert!(got.frames[&(got.conn(slot), 7)].starts_with(&[1]), "seed {seed}: {slot} was told too soon");
                times.entry(slot).or_default().push(tick);
            }
        }
        assert_eq!(times.len(), slots.len(), "seed {seed}: all are told");
        let once = times.values().all(|times| times.len() == 1 && times[0] <= 2 * ROUND);
        assert!(once, "seed {seed}: {times:?}");
    }
}

/// Ticks between two HEADS of large groups.
const ROUND: u64 = passive::ROUND_STEPS;

#[test]
fn a_tick_looks_at_so_many_sessions_and_every_one_is_told_all_the_same() {
    let (mut parts, mut got) = (Parts::default(), Got::default());
    // More in one step than may be told in a tick.
    let slots: Vec<u32> = (0..80).flat_map(|block| (0..64).map(move |at| block * 64 * ROUND as u32 + at)).collect();
    for slot in &slots {
        parts.join(got.conn(*slot), 7, 0, 0);
    }
    parts.set_passive(7, true);
    assert_eq!(parts.passive(), slots.len());
    let mut times: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for tick in 1..=4 * ROUND {
        let part = parts.get_mut(7).unwrap();
        (part.last, part.number) = (10 * tick, tick);
        parts.note_news(7);
        let told = step(&mut parts, &got, &mut BTreeMap::new());
        assert!(told.len() <= 4_096, "{} in a tick", told.len());
        told.into_iter().for_each(|slot| times.entry(slot).or_default().push(tick));
    }
    assert_eq!(times.len(), slots.len());
    for times in times.values() {
        assert!(times.len() >= 3 && times.windows(2).all(|pair| pair[1] - pair[0] >= ROUND), "{times:?}");
    }
    parts.walk(usize::MAX, &mut got);
    assert!(got.frames.is_empty());
}
