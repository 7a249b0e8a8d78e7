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
                    parts.walk(rng.within(1, 6) as usize, Pace::default(), &mut got);
                    assert!(got.walked - before <= 6, "seed {seed}");
                }
            }
            let all: usize = members.values().map(BTreeSet::len).sum();
            assert!(parts.memberships() <= all, "seed {seed}");
        }
        parts.walk(usize::MAX, Pace::default(), &mut got);
        assert!(parts.is_idle(0) && parts.queued_bytes() == 0, "seed {seed}");
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
        parts.walk(300, Pace::default(), &mut got);
        // The small group waits for a stretch of the large one, and for no more.
        parts.walk(300, Pace::default(), &mut got);
        assert_eq!(got.frames[&(got.conn(5_000), 8)].len(), usize::from(frame) + 1);
    }
    while !parts.is_idle(0) {
        parts.walk(4_096, Pace::default(), &mut got);
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
    parts.walk(100, Pace::default(), &mut got);
    assert_eq!((got.missed.len(), parts.queued_bytes()), (3, 0));
    parts.push(7, 1, None, &[4; 100], 150);
    parts.end(7);
    assert_eq!((parts.len(), parts.memberships(), parts.queued_bytes()), (0, 0, 0));
    parts.walk(100, Pace::default(), &mut got);
    assert!(got.frames.values().all(|frames| frames.len() == 100) && parts.is_idle(0));
}

/// What was missed is told at once, with how far the groups are then.
fn tell_missed(parts: &Parts, got: &mut Got, told: &mut BTreeMap<(ConnId, u64), u64>) {
    for (conn, group) in std::mem::take(&mut got.missed) {
        if let Some(part) = parts.get(group) {
            told.insert((conn, group), part.last);
        }
    }
}

#[test]
fn frames_of_a_busy_room_are_gathered_and_none_waits_longer_than_that() {
    const ROOM: u64 = 1 << 63;
    const GATHER_MS: u64 = 20;
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let (mut parts, mut got) = (Parts::default(), Got::default());
        for slot in 0..3 {
            parts.join(got.conn(slot), ROOM, 0, 0);
        }
        parts.join(got.conn(3), 7, 0, 0);
        // When each frame came, and how many walks there were.
        let (mut pushed, mut given, mut walks) = (Vec::new(), 0, 0);
        let length_ms = 2_000;
        let busy = rng.within(20, 600);
        for now_ms in 0..length_ms {
            if rng.chance(busy as u32) {
                assert!(parts.push(ROOM, 1, None, &[1], 1 << 20));
                pushed.push(now_ms);
            }
            if rng.chance(100) {
                assert!(parts.push(7, 1, None, &[1], 1 << 20));
            }
            let roll = rng.below(40);
            if roll == 0 {
                parts.join(got.conn(4), ROOM, 0, 0);
            } else if roll == 1 {
                parts.leave(got.conn(4), ROOM);
            }
            let pace = Pace { now_ms, room_gather_ms: GATHER_MS };
            assert_eq!(
                parts.is_idle(now_ms),
                parts.active.is_empty() && parts.gathered_ms().is_none_or(|due| due > now_ms)
            );
            parts.walk(usize::MAX, pace, &mut got);
            assert!(parts.is_idle(now_ms), "seed {seed}: nothing is to be done before the next time");
            let now_given = got.frames.get(&(got.conn(0), ROOM)).map_or(0, Vec::len);
            walks += u64::from(now_given > given);
            given = now_given;
            let waiting = pushed[given..].first();
            assert!(waiting.is_none_or(|pushed_ms| now_ms - pushed_ms < GATHER_MS), "seed {seed}: {waiting:?}");
            assert_eq!(parts.gathered_ms().is_some(), waiting.is_some(), "seed {seed}");
            let of_group = parts.get(7).map_or(0, |part| part.queue.len());
            assert_eq!(of_group, 0, "seed {seed}: a group with members does not wait");
        }
        assert!(walks <= length_ms / GATHER_MS, "seed {seed}: {walks} walks");
        assert!(walks < pushed.len() as u64, "seed {seed}: some went together");
        parts.end(ROOM);
        assert_eq!((parts.gathered_ms(), parts.len()), (None, 1), "seed {seed}");
    }
}

#[test]
fn what_is_gathered_goes_at_once_when_it_is_much_and_when_the_shard_drains() {
    const ROOMS: [u64; 3] = [1 << 63, (1 << 63) + 1, (1 << 63) + 2];
    let pace = Pace { now_ms: 5, room_gather_ms: 20 };
    let (mut parts, mut got) = (Parts::default(), Got::default());
    let given = |got: &Got, room| got.frames.get(&(got.conn(0), room)).map_or(0, Vec::len);
    for room in ROOMS {
        parts.join(got.conn(0), room, 0, 0);
        assert!(parts.push(room, 1, None, &[1], 1 << 20));
    }
    parts.walk(100, pace, &mut got);
    assert!(ROOMS.iter().all(|room| given(&got, *room) == 1), "the rooms were quiet");
    assert_eq!(parts.take_tally(), Tally { walks: 3, frames: 3, early: 0 });

    // Of one room, more than is given at once.
    assert!(parts.push(ROOMS[0], 1, None, &[2; RUN_BYTES - 1], 1 << 20));
    assert!(parts.push(ROOMS[1], 1, None, &[2; 10], 1 << 20));
    parts.walk(100, pace, &mut got);
    assert_eq!((given(&got, ROOMS[0]), given(&got, ROOMS[1])), (1, 1), "they wait");
    assert!(parts.push(ROOMS[0], 1, None, &[3; 2], 1 << 20));
    assert!(!parts.is_idle(5));
    parts.walk(100, pace, &mut got);
    assert_eq!((given(&got, ROOMS[0]), given(&got, ROOMS[1])), (RUN_BYTES + 2, 1));
    assert_eq!(parts.take_tally(), Tally { walks: 2, frames: 2, early: 1 });

    // Of all of them, more than a half of what may be held.
    assert!(parts.push(ROOMS[2], 1, None, &[4; 100], 1_000));
    parts.walk(100, pace, &mut got);
    assert_eq!(parts.queued_bytes(), 110);
    assert!(parts.push(ROOMS[0], 1, None, &[4; 400], 1_000));
    parts.walk(100, pace, &mut got);
    assert_eq!((given(&got, ROOMS[1]), given(&got, ROOMS[2])), (11, 101), "all that waited");
    assert_eq!((parts.take_tally().early, parts.queued_bytes()), (2, 400));

    // And all of it when nothing is to be held any more, and from then on.
    parts.walk(100, Pace::AT_ONCE, &mut got);
    assert_eq!((given(&got, ROOMS[0]), parts.queued_bytes(), parts.gathered_ms()), (RUN_BYTES + 402, 0, None));
    assert!(parts.push(ROOMS[0], 1, None, &[5], 1_000));
    parts.walk(100, pace, &mut got);
    assert_eq!(given(&got, ROOMS[0]), RUN_BYTES + 403, "nor is anything left of that when the drain is called off");
}

#[test]
fn frames_that_are_dropped_are_told_to_those_who_have_not_had_them() {
    const ROOM: u64 = 1 << 63;
    let (mut parts, mut got) = (Parts::default(), Got::default());
    for slot in 0..10 {
        parts.join(got.conn(slot), 7, 0, 0);
        parts.join(got.conn(slot), ROOM, 0, 0);
    }
    let pace = Pace { now_ms: 5, room_gather_ms: 20 };
    assert!(parts.push(ROOM, 1, None, &[1], 1 << 20));
    parts.walk(100, pace, &mut got);
    assert!(parts.push(ROOM, 1, None, &[2], 1 << 20));
    parts.walk(100, pace, &mut got);
    assert!(parts.push(7, 1, None, &[1], 1 << 20));
    parts.walk(4, pace, &mut got);
    assert!(parts.push(7, 1, None, &[2], 1 << 20));
    parts.drop_frames();
    assert_eq!((parts.queued_bytes(), parts.gathered_ms()), (0, None));
    while !parts.is_idle(5) {
        parts.walk(3, pace, &mut got);
    }
    let had = got.frames.iter().filter(|((_, group), _)| *group == 7).count();
    assert_eq!(had, 4, "and nobody had the second one");
    assert!(got.frames.values().all(|frames| frames == &[1]));
    let missed = |group| got.missed.iter().filter(|(_, missed)| *missed == group).count();
    assert_eq!((missed(7), missed(ROOM)), (10, 10));
    assert!(parts.push(7, 1, None, &[3], 1 << 20));
    parts.walk(100, pace, &mut got);
    assert!((0..10).all(|slot| got.frames[&(got.conn(slot), 7)].last() == Some(&3)), "what comes later is given");
}

#[test]
fn a_shorter_time_to_gather_holds_for_what_waits_already() {
    const ROOM: u64 = 1 << 63;
    let (mut parts, mut got) = (Parts::default(), Got::default());
    parts.join(got.conn(0), ROOM, 0, 0);
    for frame in [1, 2] {
        assert!(parts.push(ROOM, 1, None, &[frame], 1 << 20));
        parts.walk(100, Pace { now_ms: 5, room_gather_ms: 1_000 }, &mut got);
    }
    assert_eq!(parts.gathered_ms(), Some(1_005));
    parts.gather_until(26);
    parts.gather_until(1_000);
    assert_eq!(parts.gathered_ms(), Some(26), "nor is it longer again");
    parts.walk(100, Pace { now_ms: 26, room_gather_ms: 20 }, &mut got);
    assert_eq!(got.frames[&(got.conn(0), ROOM)], [1, 2]);
}

#[test]
fn a_message_may_not_be_the_next_one_where_nobody_has_said_so() {
    let mut part = Part::new(7, 10, 0, None);
    part.unheard = true;
    assert!(part.is_gap_before(1), "the home has said nothing");
    part.unheard = true;
    assert!(!part.hear(10, 0) && !part.is_gap_before(1), "there was none before");
    part.number = 1;
    assert!(!part.is_gap_before(2) && part.is_gap_before(3) && part.is_gap_before(1));
    assert!(part.hear(20, 2) && !part.is_gap_before(3), "what is missing is told with the word of the home");
    assert!(!part.hear(20, 3), "where it is nobody knows");
    assert!(!part.hear(20, 3) && part.is_gap_before(4), "all are told with the next message");
    part.number = 4;
    assert!(!part.is_gap_before(5), "once");
    // Of a group of which the first message did not come here.
    let mut part = Part::new(7, 0, 0, None);
    assert!(part.is_gap_before(2) && !part.is_gap_before(1));
    assert!(!Part::new(1 << 63, 0, 0, None).is_gap_before(2), "who enters a live room has missed nothing");
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
                    parts.walk(if rng.chance(800) { usize::MAX } else { 2 }, Pace::default(), &mut got);
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
        parts.walk(usize::MAX, Pace::default(), &mut got);
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
        parts.walk(rng.below(20) as usize, Pace::default(), &mut got);
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
            parts.walk(rng.within(1, 60) as usize, Pace::default(), &mut got);
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
    parts.walk(usize::MAX, Pace::default(), &mut got);
    assert!(got.frames.is_empty());
}

#[test]
fn a_group_that_has_ended_is_gone_at_once_and_its_places_by_and_by() {
    let (mut parts, mut got) = (Parts::default(), Got::default());
    let sessions = 5_000;
    for slot in 0..sessions {
        parts.join(got.conn(slot), 7, 0, 0);
    }
    assert_eq!(parts.attend(got.conn(9), 7, true), Moved::Yes);
    parts.join(got.conn(9), 8, 0, 0);
    assert!(parts.push(7, 1, None, b"x", 1 << 20));
    parts.join(got.conn(sessions), 7, 0, 0);
    parts.end(7);
    assert!((0..=sessions).all(|slot| !parts.is_in(got.conn(slot), 7)));
    assert_eq!((parts.groups_of(9).collect::<Vec<_>>(), parts.len(), parts.queued_bytes()), (vec![8], 1, 0));
    assert!(parts.memberships() > 1, "they are not all taken out in one go");
    // The next group of that id has nothing to do with it.
    assert!(parts.join(got.conn(9), 7, 0, 0) && parts.push(7, 1, None, b"y", 1 << 20));
    assert_eq!(parts.leave_all(4_000), [0; 0]);
    let mut walks = 0;
    while !parts.is_idle(0) {
        assert_eq!(parts.walk(1_024, Pace::AT_ONCE, &mut got), [0; 0]);
        walks += 1;
    }
    assert!((5..50).contains(&walks), "{walks}");
    assert_eq!(got.frames.into_iter().collect::<Vec<_>>(), [((ConnId { slot: 9, generation: 0 }, 7), b"y".to_vec())]);
    assert_eq!((parts.memberships(), parts.attentive(), parts.passive()), (2, 0, 0));
    assert_eq!(parts.leave_all(9), [7, 8]);
    assert_eq!((parts.memberships(), parts.free_parts.len()), (0, parts.parts.len()));
}

#[test]
fn who_joins_again_and_again_during_a_walk_waits_once() {
    let (mut parts, got) = (Parts::default(), Got::default());
    parts.join(got.conn(1), 7, 0, 0);
    assert!(parts.push(7, 1, None, b"x", 1 << 20));
    for at in 0..100 {
        parts.join(got.conn(at % 4), 7, 0, 0);
    }
    assert_eq!(parts.get(7).map(|part| part.queue.len()), Some(1 + 3), "one of them is in already");
    parts.leave(got.conn(2), 7);
    assert!(!parts.is_in(got.conn(2), 7) && parts.is_in(got.conn(3), 7));
}

#[test]
fn a_turn_copies_so_many_bytes_however_long_the_messages_are() {
    let (mut parts, mut got) = (Parts::default(), Got::default());
    for slot in 0..4_096 {
        parts.join(got.conn(slot), 7, 0, 0);
    }
    for (bytes, turns) in [(100, 1), (8 * BYTES_PER_SESSION, 8)] {
        assert!(parts.push(7, 1, None, &vec![0; bytes], 1 << 20));
        let needed = (0..100).take_while(|_| {
            !parts.is_idle(0) && {
                parts.walk(4_096, Pace::AT_ONCE, &mut got);
                true
            }
        });
        let needed = needed.count();
        assert!((turns..=turns + 1).contains(&needed), "{bytes} B: {needed}");
    }
}
