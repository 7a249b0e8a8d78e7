use super::*;
use crate::ids::NodeKey;
use std::collections::BTreeMap;

const A: Place = Place { node: NodeKey::OWN, shard: 0 };
const B: Place = Place { node: NodeKey(7), shard: 3 };

fn at(tick: u32) -> Moment {
    Moment { tick, wall_s: 1_000 + tick / 10 }
}

fn online(classes: u32) -> Option<Actual> {
    Some(Actual { online: true, since_s: 5, classes })
}

const NEVER: [u32; 0] = [];
const NOBODY: [u64; 0] = [];
const OFFLINE: Option<Actual> = Some(Actual::OFFLINE);

fn told(homes: &Homes) -> (Status, u32) {
    homes.said(1).map(|told| (told.status, told.since_s)).unwrap()
}

/// Lets time pass to a tick; the ticks at which watchers were told.
fn pass(homes: &mut Homes, from: u32, to: u32, actual: Option<Actual>) -> Vec<u32> {
    let mut ticks = Vec::new();
    for tick in from..=to {
        while let Some(user) = homes.next_due(tick) {
            if homes.is_due(user, actual, at(tick)) {
                ticks.push(tick);
            }
        }
    }
    ticks
}

fn watched(actual: Option<Actual>) -> Homes {
    let mut homes = Homes::default();
    homes.ask(1, A, Status::Unknown, actual, at(1_000), usize::MAX).unwrap();
    homes
}

#[test]
fn a_snapshot_then_online_at_once_and_offline_after_ten_seconds() {
    let mut homes = watched(OFFLINE);
    assert_eq!(told(&homes), (Status::Offline, 0), "since when is not known");
    assert!(homes.changed(1, online(0), at(1_001)));
    assert_eq!(told(&homes), (Status::Online, 5));
    assert!(!homes.changed(1, OFFLINE, at(1_010)));
    assert_eq!(told(&homes), (Status::Online, 5), "it lingers");
    assert_eq!(pass(&mut homes, 1_010, 1_200, OFFLINE), [1_110]);
    assert_eq!(told(&homes), (Status::Offline, 1_111), "since then");
}

#[test]
fn who_is_back_soon_was_never_away_and_a_later_absence_counts_from_its_own_beginning() {
    let mut homes = watched(online(0));
    assert!(!homes.changed(1, OFFLINE, at(1_000)));
    assert!(!homes.changed(1, online(0), at(1_090)));
    assert!(!homes.changed(1, OFFLINE, at(1_095)));
    assert_eq!(pass(&mut homes, 1_000, 1_194, OFFLINE), NEVER);
    // Looking does not put it off.
    assert!(!homes.changed(1, OFFLINE, at(1_194)));
    assert_eq!(pass(&mut homes, 1_195, 1_400, OFFLINE), [1_195]);
}

#[test]
fn changes_are_five_seconds_apart_and_the_last_state_is_told() {
    let mut homes = watched(OFFLINE);
    assert!(homes.changed(1, online(0), at(1_000)));
    homes.changed(1, OFFLINE, at(1_001));
    assert_eq!(pass(&mut homes, 1_001, 1_101, OFFLINE), [1_101]);
    assert!(!homes.changed(1, online(0), at(1_103)), "it is too soon");
    assert!(!homes.changed(1, OFFLINE, at(1_104)));
    assert_eq!(pass(&mut homes, 1_102, 1_160, OFFLINE), NEVER, "that is what they were told");
    assert!(homes.changed(1, online(0), at(1_161)), "at once, since it is late enough");
    homes.changed(1, OFFLINE, at(1_162));
    assert_eq!(pass(&mut homes, 1_162, 1_262, OFFLINE), [1_262]);
    assert!(!homes.changed(1, online(0), at(1_270)));
    assert_eq!(pass(&mut homes, 1_263, 1_400, online(0)), [1_312]);
}

#[test]
fn a_device_more_or_less_is_told_after_a_while_and_never_if_it_is_as_before_by_then() {
    let mut homes = watched(online(1));
    assert!(!homes.changed(1, online(2), at(1_000)));
    assert!(!homes.changed(1, online(1), at(1_050)));
    assert_eq!(pass(&mut homes, 1_000, 1_200, online(1)), NEVER);
    assert!(!homes.changed(1, online(3), at(1_200)));
    // Who asks meanwhile sees what is there, so the others are told in any case.
    homes.ask(1, B, Status::Unknown, online(3), at(1_210), usize::MAX);
    assert!(!homes.changed(1, online(1), at(1_220)));
    assert_eq!(pass(&mut homes, 1_200, 1_400, online(1)), [1_300]);
}

#[test]
fn a_home_that_cannot_tell_answers_when_it_can_and_who_was_online_lingers() {
    for (hoped, back) in [(false, false), (true, false), (true, true)] {
        let mut homes = Homes::default();
        let answer = homes.ask(1, A, Status::Unknown, None, at(1_000), usize::MAX).unwrap();
        assert_eq!(answer, (Told { status: Status::Unknown, since_s: 0 }, false));
        homes.ask(1, B, if hoped { Status::Online } else { Status::Unknown }, None, at(1_000), usize::MAX).unwrap();
        let ticks = pass(&mut homes, 1_000, 1_019, None);
        assert_eq!(ticks, NEVER);
        let actual = if back { online(0) } else { OFFLINE };
        homes.begin_walk();
        assert_eq!(homes.walk_on(100, at(1_020), |_| actual), [1], "everybody is told");
        let expected = if hoped { Status::Online } else { Status::Offline };
        assert_eq!(told(&homes).0, expected);
        let later = pass(&mut homes, 1_021, 1_300, actual);
        assert_eq!(later, if hoped && !back { vec![1_100] } else { Vec::new() }, "ten seconds from the question on");
    }
}

#[test]
fn a_home_that_becomes_none_forgets_what_it_told_and_tells_again_as_a_home() {
    let mut homes = watched(online(0));
    homes.begin_walk();
    assert_eq!(homes.walk_on(100, at(1_010), |_| None), NOBODY);
    assert_eq!(told(&homes).0, Status::Unknown);
    assert!(!homes.changed(1, None, at(1_011)));
    homes.begin_walk();
    assert_eq!(homes.walk_on(100, at(1_050), |_| OFFLINE), [1]);
    assert_eq!(told(&homes).0, Status::Online, "it may be back");
    assert_eq!(pass(&mut homes, 1_050, 1_200, OFFLINE), [1_110]);
}

#[test]
fn who_watches_no_more_and_nodes_that_are_gone_are_forgotten() {
    let mut homes = watched(OFFLINE);
    let far = |shard| Place { node: NodeKey(9), shard };
    for shard in 0..100 {
        assert!(homes.ask(1, far(shard), Status::Unknown, OFFLINE, at(1_000), usize::MAX).is_some());
    }
    assert_eq!(homes.told_places(1).len(), 101);
    homes.forget(1, far(80));
    homes.forget(1, far(3));
    homes.forget(2, A);
    assert_eq!(homes.told_places(1).len(), 99);
    homes.owe_at(far(81), 1);
    homes.owe_at(far(80), 1);
    assert_eq!(homes.take_owed(10).into_iter().map(|(_, place, _)| place).collect::<Vec<_>>(), [far(81)]);
    homes.owe_at(far(81), 1);
    homes.retain(|place| place.node == NodeKey::OWN);
    assert_eq!((homes.told_places(1), homes.take_owed(10)), (vec![(0, A)], Vec::new()));
    homes.forget(1, A);
    assert!(homes.is_empty() && homes.bytes() < 4_096, "{}", homes.bytes());
}

#[test]
fn the_table_has_a_bound_and_a_user_who_is_watched_costs_some_fifty_bytes() {
    let mut homes = Homes::default();
    let most = 6 << 20;
    let taken =
        (1..1_000_000).take_while(|user| homes.ask(*user, A, Status::Unknown, OFFLINE, at(0), most).is_some()).count();
    assert!(homes.bytes() <= most * 3 / 2, "{}", homes.bytes());
    let each = homes.bytes() as f64 / taken as f64;
    assert!((40.0..=52.0).contains(&each), "{each} bytes a user, of {taken}");
    for gone in 1..=1_000 {
        homes.forget(gone, A);
        let user = 1_000_000 + gone;
        assert!(homes.ask(user, A, Status::Unknown, OFFLINE, at(0), most).is_some(), "who has gone has left room");
        assert!(homes.ask(user + 1_000, A, Status::Unknown, OFFLINE, at(0), most).is_none(), "and for nobody else");
    }
}

/// Whatever a user does: changes are five seconds apart, and what was told last is true once it is quiet.
#[test]
fn any_history_is_told_with_changes_apart_and_ends_with_what_is_so() {
    for seed in 0..400_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut homes = Homes::default();
        let mut actual = OFFLINE;
        homes.ask(1, A, Status::Unknown, actual, at(1_000), usize::MAX);
        let (mut tick, mut changes, mut seen) = (1_000, Vec::new(), BTreeMap::new());
        seen.insert(1_000, told(&homes).0);
        for _ in 0..60 {
            let to = tick + next(if seed % 2 == 0 { 20 } else { 150 }) as u32;
            changes.extend(pass(&mut homes, tick, to, actual));
            tick = to;
            actual = match next(5) {
                0 | 1 => OFFLINE,
                _ => online(next(2) as u32),
            };
            if homes.changed(1, actual, at(tick)) {
                changes.push(tick);
            }
        }
        changes.extend(pass(&mut homes, tick, tick + 200, actual));
        let apart = changes.windows(2).all(|pair| pair[1] - pair[0] >= CHANGE_TICKS);
        assert!(apart, "seed {seed}: {changes:?}");
        let expected = if actual == OFFLINE { Status::Offline } else { Status::Online };
        assert_eq!(told(&homes).0, expected, "seed {seed}");
    }
}

#[test]
fn who_asks_when_it_has_just_become_known_has_all_told() {
    let mut homes = Homes::default();
    homes.ask(1, A, Status::Unknown, None, at(1_000), usize::MAX).unwrap();
    let told = Told { status: Status::Online, since_s: 5 };
    assert_eq!(homes.ask(1, B, Status::Unknown, online(0), at(1_001), usize::MAX), Some((told, true)));
    assert_eq!(homes.ask(1, B, Status::Unknown, online(0), at(1_002), usize::MAX), Some((told, false)));
}

#[test]
fn a_new_home_keeps_the_changes_of_the_one_before_apart() {
    let mut homes = Homes::default();
    homes.ask(1, A, Status::Offline, online(0), at(1_000), usize::MAX).unwrap();
    assert_eq!(told(&homes).0, Status::Offline, "that may just have been told");
    assert_eq!(pass(&mut homes, 1_000, 1_200, online(0)), [1_050]);
    let mut homes = Homes::default();
    homes.ask(1, A, Status::Online, OFFLINE, at(1_000), usize::MAX).unwrap();
    assert_eq!(told(&homes).0, Status::Online);
    assert_eq!(pass(&mut homes, 1_000, 1_200, OFFLINE), [1_100]);
}
