use super::super::homes::{Actual, Homes, Moment};
use super::super::{Place, push_class};
use super::*;
use crate::ids::NodeKey;

const HOME: Place = Place { node: NodeKey(1), shard: 0 };
const BOUNDS: (u32, usize) = (1_000, usize::MAX);

fn state(status: Status) -> State<'static> {
    let since_s = if status == Status::Online { 7 } else { 0 };
    State { status, since_s, classes: &[] }
}

fn follow(watchers: &mut Watchers, slot: u32, users: &[u64], tick: u32) {
    watchers.watch(slot, users, true, tick, BOUNDS, |_| true).unwrap();
    ask(watchers);
}

/// Asks home 0 for everybody; who was asked for, and who was forgotten.
fn ask(watchers: &mut Watchers) -> (Vec<u64>, Vec<u64>) {
    let (mut asked, mut forgotten) = (Vec::new(), Vec::new());
    while let Some(word) = watchers.next_word() {
        match word {
            Word::Ask { user, .. } => {
                assert!(watchers.asked(user, HOME));
                asked.push(user);
            }
            Word::Forget { user, .. } => forgotten.push(user),
        }
    }
    (asked, forgotten)
}

/// What each session is told at this tick.
fn frames(watchers: &mut Watchers, tick: u32) -> Vec<(u32, Vec<(u64, Status)>)> {
    let mut frames = Vec::new();
    for _ in 0..watchers.listed() {
        let Some((slot, due)) = watchers.next_listed(tick) else { break };
        if !due {
            watchers.later(slot);
            continue;
        }
        let mut users = Vec::new();
        watchers.tell(slot, tick, |shown| {
            users.push((shown.user, shown.state.status));
            true
        });
        frames.push((slot, users));
    }
    frames
}

#[test]
fn a_home_is_asked_once_for_all_and_the_answer_waits_for_all_users() {
    let mut watchers = Watchers::default();
    watchers.watch(1, &[5, 6], true, 100, BOUNDS, |_| true).unwrap();
    assert_eq!(ask(&mut watchers), (vec![5, 6], vec![]));
    watchers.watch(2, &[5], true, 100, BOUNDS, |_| true).unwrap();
    assert_eq!(ask(&mut watchers), (vec![], vec![]));
    watchers.told(5, state(Status::Online), 100);
    assert_eq!(frames(&mut watchers, 101), [(2, vec![(5, Status::Online)])], "session 1 waits for user 6");
    watchers.told(6, state(Status::Offline), 101);
    assert_eq!(frames(&mut watchers, 101), [(1, vec![(5, Status::Online), (6, Status::Offline)])]);
    assert_eq!(frames(&mut watchers, 200), []);
    watchers.told(5, state(Status::Online), 200);
    assert_eq!(frames(&mut watchers, 200), [], "that is known");
    watchers.session_ended(1);
    assert_eq!(ask(&mut watchers), (vec![], vec![6]));
    watchers.unwatch(2, &[5]);
    assert_eq!(ask(&mut watchers), (vec![], vec![5]));
    assert_eq!((watchers.len(), watchers.users()), (0, 0));
}

#[test]
fn frames_are_a_second_apart_and_the_last_state_wins() {
    let mut watchers = Watchers::default();
    follow(&mut watchers, 1, &[5, 6], 100);
    watchers.told(5, state(Status::Offline), 100);
    watchers.told(6, state(Status::Offline), 100);
    assert_eq!(frames(&mut watchers, 100).len(), 1);
    for status in [Status::Online, Status::Offline, Status::Online] {
        watchers.told(5, state(status), 101);
    }
    assert_eq!(frames(&mut watchers, 109), []);
    assert_eq!(frames(&mut watchers, 110), [(1, vec![(5, Status::Online)])]);
}

#[test]
fn so_many_users_a_frame_and_the_rest_in_the_next() {
    let mut watchers = Watchers::default();
    let users: Vec<u64> = (1..=600).collect();
    follow(&mut watchers, 1, &users, 100);
    users.iter().for_each(|user| watchers.told(*user, state(Status::Offline), 100));
    let lens: Vec<_> = (100..140).flat_map(|tick| frames(&mut watchers, tick)).map(|(_, users)| users.len()).collect();
    assert_eq!(lens, [256, 256, 88]);
}

#[test]
fn a_question_for_one_answer_ends_with_it_and_who_follows_is_answered_again() {
    let mut watchers = Watchers::default();
    watchers.watch(1, &[5], false, 100, BOUNDS, |_| true).unwrap();
    assert_eq!(ask(&mut watchers).0, [5]);
    watchers.told(5, state(Status::Online), 100);
    assert_eq!(frames(&mut watchers, 100), [(1, vec![(5, Status::Online)])]);
    assert_eq!((ask(&mut watchers).1, watchers.len()), (vec![5], 0));
    follow(&mut watchers, 1, &[5], 200);
    watchers.told(5, state(Status::Online), 200);
    assert_eq!(frames(&mut watchers, 200).len(), 1);
    watchers.watch(1, &[5], false, 300, BOUNDS, |_| true).unwrap();
    assert_eq!(frames(&mut watchers, 300), [(1, vec![(5, Status::Online)])]);
    assert_eq!(watchers.len(), 1, "it goes on following");
}

#[test]
fn nobody_is_told_offline_for_want_of_knowledge() {
    let mut watchers = Watchers::default();
    follow(&mut watchers, 1, &[5, 6, 7], 100);
    watchers.told(5, State::UNKNOWN, 100);
    watchers.told(7, state(Status::Online), 100);
    watchers.expire(100 + FRESH_TICKS - 1);
    assert_eq!(frames(&mut watchers, 105), [(1, vec![(7, Status::Online)])]);
    watchers.expire(100 + FRESH_TICKS);
    assert_eq!(frames(&mut watchers, 130), [(1, vec![(5, Status::Unknown), (6, Status::Unknown)])]);
    watchers.told(5, state(Status::Offline), 140);
    assert_eq!(frames(&mut watchers, 140), [(1, vec![(5, Status::Offline)])]);
    // Another home: what was known counts until that one knows, and not for ever.
    watchers.begin_walk();
    watchers.walk_on(1, 200, |_, _| false, |_| true);
    assert!(watchers.walks());
    watchers.walk_on(100, 200, |_, _| false, |_| true);
    assert!(!watchers.walks());
    let (asked, forgotten) = ask(&mut watchers);
    assert_eq!((asked, forgotten), (vec![5, 6, 7], vec![5, 6, 7]), "the home of before is told so");
    watchers.told(5, state(Status::Offline), 210);
    watchers.expire(200 + STALE_TICKS - 1);
    assert_eq!(frames(&mut watchers, 299), []);
    watchers.expire(200 + STALE_TICKS);
    assert_eq!(frames(&mut watchers, 300), [(1, vec![(7, Status::Unknown)])], "nobody said anything of 7");
}

#[test]
fn who_is_known_again_and_lost_again_has_the_whole_time() {
    let mut watchers = Watchers::default();
    follow(&mut watchers, 1, &[5], 100);
    watchers.told(5, state(Status::Online), 100);
    assert_eq!(frames(&mut watchers, 100).len(), 1);
    watchers.homes_lost(|_| true, 100);
    ask(&mut watchers);
    watchers.told(5, state(Status::Online), 110);
    watchers.homes_lost(|_| true, 190);
    watchers.expire(200);
    assert_eq!(frames(&mut watchers, 200), []);
    watchers.expire(290);
    assert_eq!(frames(&mut watchers, 290), [(1, vec![(5, Status::Unknown)])]);
}

#[test]
fn a_home_that_is_cut_off_or_full_makes_the_state_unknown_and_is_asked_again() {
    let mut watchers = Watchers::default();
    follow(&mut watchers, 1, &[5, 6], 100);
    watchers.told(5, state(Status::Online), 100);
    watchers.home_is_full(6, 100);
    assert_eq!(frames(&mut watchers, 100), [(1, vec![(5, Status::Online), (6, Status::Unknown)])]);
    watchers.homes_lost(|_| true, 200);
    while let Some(word) = watchers.next_word() {
        // There is no way to it.
        let Word::Ask { user, .. } = word else { panic!("{word:?}") };
        watchers.ask_again(user, 200);
    }
    assert_eq!(frames(&mut watchers, 200), []);
    watchers.expire(200 + AGAIN_TICKS);
    assert_eq!(ask(&mut watchers).0, [5, 6]);
    watchers.expire(200 + STALE_TICKS);
    assert_eq!(frames(&mut watchers, 300), [(1, vec![(5, Status::Unknown)])]);
    watchers.told(5, state(Status::Online), 320);
    assert_eq!(frames(&mut watchers, 320), [(1, vec![(5, Status::Online)])]);
}

#[test]
fn who_may_not_be_watched_looks_like_somebody_who_is_offline() {
    let mut watchers = Watchers::default();
    let only_5 = |user| user == 5;
    watchers.watch(1, &[5, 6], true, 100, BOUNDS, only_5).unwrap();
    ask(&mut watchers);
    watchers.told(5, state(Status::Offline), 100);
    watchers.told(6, state(Status::Online), 100);
    assert_eq!(frames(&mut watchers, 100), [(1, vec![(5, Status::Offline), (6, Status::Offline)])]);
    watchers.told(6, state(Status::Unknown), 200);
    watchers.told(6, state(Status::Offline), 201);
    assert_eq!(frames(&mut watchers, 300), [], "nor is anything told by when something is");
    watchers.told(6, state(Status::Online), 301);
    watchers.allow(1, |user| user == 6);
    assert_eq!(frames(&mut watchers, 310), [(1, vec![(5, Status::Offline), (6, Status::Online)])]);
    watchers.told(5, state(Status::Online), 320);
    assert_eq!(frames(&mut watchers, 330), []);
}

#[test]
fn a_session_and_a_table_have_bounds_and_a_watch_is_taken_whole_or_not_at_all() {
    let mut watchers = Watchers::default();
    let users: Vec<u64> = (1..=10).collect();
    let watch = |watchers: &mut Watchers, users: &[u64], bounds| watchers.watch(1, users, true, 0, bounds, |_| true);
    assert_eq!(watch(&mut watchers, &users, (9, usize::MAX)), Err(Denied::Session));
    assert_eq!((watchers.len(), ask(&mut watchers).0), (0, Vec::new()));
    assert_eq!(watch(&mut watchers, &users, (10, usize::MAX)), Ok(()));
    assert_eq!(watch(&mut watchers, &users, (10, usize::MAX)), Ok(()), "they are watched already");
    assert_eq!(watch(&mut watchers, &[11], (10, usize::MAX)), Err(Denied::Session));
    watchers.unwatch(1, &[3]);
    assert_eq!(watch(&mut watchers, &[11], (10, usize::MAX)), Ok(()));
    watchers.unwatch(1, &[]);
    assert_eq!(watchers.len(), 0);
    let bytes = watchers.used_bytes();
    assert_eq!(watch(&mut watchers, &users, (10, bytes + 100)), Err(Denied::Table));
}

/// Sessions come until there is no room, and for each that goes there is room again, over and over.
#[test]
fn a_table_that_was_full_has_room_as_soon_as_a_watch_ends() {
    for each in [1_u64, 40] {
        let (mut watchers, most) = (Watchers::default(), 200_000);
        let watch = |watchers: &mut Watchers, slot: u32| {
            let first = u64::from(slot) * each / 2 + 1;
            let users: Vec<u64> = (first..first + each).collect();
            let watched = watchers.watch(slot, &users, true, 0, (1_000, most), |_| true);
            ask(watchers);
            watchers.expire(FRESH_TICKS);
            frames(watchers, FRESH_TICKS);
            watched
        };
        let mut slots: VecDeque<u32> = (0..100_000).take_while(|slot| watch(&mut watchers, *slot).is_ok()).collect();
        let (full, held) = (slots.len() as u32, watchers.bytes());
        assert!(full > 50 && held > most / 2, "{full} sessions, {held} bytes");
        let mut next = full;
        for _ in 0..4 * full {
            // Some go, in no order, so that the room that they leave is everywhere.
            for _ in 0..3 {
                slots.rotate_left(next as usize * 7 % slots.len());
                watchers.session_ended(slots.pop_front().unwrap());
            }
            ask(&mut watchers);
            let before = slots.len();
            while watch(&mut watchers, next).is_ok() {
                slots.push_back(next);
                next += 1;
            }
            assert!(slots.len() > before, "{each} each: there is room for one at least");
        }
        assert!(slots.len() as u32 > full / 2, "{} of {full}", slots.len());
        let tables = watchers.targets.bytes() + watchers.lists.bytes() + watchers.list_bytes;
        assert!(tables <= most * 3 / 2, "{tables} bytes");
    }
}

/// 200,000 watches: the sessions of two shards, and the users of whom half have their home at each, as on a node of
/// two cores. Ten watch each user and each session watches a hundred.
#[test]
fn a_watch_takes_less_than_thirty_two_bytes_and_nothing_is_left_of_it() {
    let (shards, sessions, users, each) = (2_u32, 2_000_u32, 20_000_u64, 100_u64);
    let mut homes = [Homes::default(), Homes::default()];
    let mut watchers = [Watchers::default(), Watchers::default()];
    let now = Moment { tick: 1_000, wall_s: 0 };
    for session in 0..sessions {
        let shard = (session % shards) as usize;
        let mut watched: Vec<u64> = (0..each).map(|n| (u64::from(session) * 7 + n * 199) % users + 1).collect();
        watched.sort_unstable();
        watched.dedup();
        watchers[shard].watch(session, &watched, true, 1_000, BOUNDS, |_| true).unwrap();
        let place = Place { node: NodeKey::OWN, shard: shard as u16 };
        for user in ask(&mut watchers[shard]).0 {
            let home = &mut homes[(user % 2) as usize];
            home.ask(user, place, Status::Unknown, Some(Actual::OFFLINE), now, usize::MAX).unwrap();
            watchers[shard].told(user, state(Status::Offline), 1_000);
        }
    }
    let count: usize = watchers.iter().map(Watchers::len).sum();
    assert!(count > 190_000, "{count}");
    // What was on its way is, and queues of those of whom nothing is known are empty.
    for watchers in &mut watchers {
        (1_000..1_100).for_each(|tick| drop(frames(watchers, tick)));
        watchers.expire(1_100);
    }
    let of_watchers: usize = watchers.iter().map(Watchers::bytes).sum();
    let of_homes: usize = homes.iter().map(Homes::bytes).sum();
    let each = (of_watchers + of_homes) as f64 / count as f64;
    println!("{each:.1} bytes a watch: {of_watchers} at watchers and {of_homes} at homes, of {count}");
    assert!(each <= 32.0, "{each} bytes a watch");
    for session in 0..sessions {
        watchers[(session % shards) as usize].session_ended(session);
    }
    for (shard, watchers) in (0..).zip(&mut watchers) {
        for user in ask(watchers).1 {
            homes[(user % 2) as usize].forget(user, Place { node: NodeKey::OWN, shard });
        }
        assert_eq!((watchers.len(), watchers.users(), watchers.list_bytes), (0, 0, 0));
    }
    assert!(homes.iter().all(Homes::is_empty));
}

#[test]
fn classes_are_told_and_counted() {
    let mut watchers = Watchers::default();
    follow(&mut watchers, 1, &[5], 100);
    let mut classes = Vec::new();
    push_class(&mut classes, "phone");
    let here = State { status: Status::Online, since_s: 3, classes: &classes };
    watchers.told(5, here, 100);
    let mut shown = Vec::new();
    watchers.next_listed(100);
    watchers.tell(1, 100, |it| {
        shown.push((it.state.since_s, it.state.classes.to_vec()));
        true
    });
    assert_eq!(shown, [(3, classes.clone())]);
    // A new home that does not know since when says as much as was known.
    watchers.told(5, State { since_s: 0, classes: &[], ..here }, 150);
    assert_eq!(frames(&mut watchers, 200), []);
    watchers.told(5, state(Status::Offline), 200);
    assert_eq!(frames(&mut watchers, 210).len(), 1);
    watchers.session_ended(1);
    assert_eq!(watchers.list_bytes, 0);
}

/// Sessions come, watch, watch no more and go, as they like: both ends of each watch agree, and nothing is left.
#[test]
fn any_history_of_watches_leaves_both_sides_in_agreement() {
    for seed in 1..40_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut watchers = Watchers::default();
        for tick in 100..400 {
            let slot = next(6) as u32;
            let mut users: Vec<u64> = (0..next(8)).map(|_| next(12) + 1).collect();
            users.sort_unstable();
            users.dedup();
            match next(8) {
                0..3 => watchers.watch(slot, &users, next(2) == 0, tick, BOUNDS, |_| true).unwrap(),
                3 => watchers.unwatch(slot, &users),
                4 => watchers.session_ended(slot),
                5 => drop(frames(&mut watchers, tick)),
                6 => watchers.expire(tick),
                _ => {
                    let status = Status::from_u8(next(3) as u8).unwrap();
                    watchers.told(next(12) + 1, state(status), tick);
                }
            }
            ask(&mut watchers);
            let mut edges = 0;
            for (slot, session) in &watchers.sessions {
                assert!(session.edges.is_sorted_by_key(|edge| edge.place()), "seed {seed}");
                let dirty = session.edges.iter().filter(|edge| edge.has(DIRTY)).count();
                assert_eq!(session.dirty as usize, dirty, "seed {seed}");
                assert!(dirty == 0 || watchers.listed.contains(slot), "seed {seed}");
                for edge in &session.edges {
                    let target = watchers.targets.look(edge.place()).unwrap();
                    let position = usize::from(edge.position);
                    assert_eq!(watchers.lists.get(target.watchers, position), Some(*slot), "seed {seed}");
                    edges += 1;
                }
            }
            assert_eq!(watchers.len(), edges, "seed {seed}");
        }
        (0..6).for_each(|slot| watchers.session_ended(slot));
        ask(&mut watchers);
        assert_eq!((watchers.users(), watchers.list_bytes), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_user_whom_very_many_watch_is_told_by_and_by_and_to_all() {
    let mut watchers = Watchers::default();
    let sessions = (MARKS_AT_ONCE + MARKS_PER_TICK + 10) as u32;
    (0..sessions).for_each(|slot| follow(&mut watchers, slot, &[7], 0));
    ask(&mut watchers);
    watchers.told(7, state(Status::Online), 1);
    assert_eq!(watchers.listed(), MARKS_AT_ONCE);
    // Some go and others come while it is under way.
    (0..10).for_each(|slot| watchers.session_ended(slot));
    watchers.session_ended(sessions - 1);
    follow(&mut watchers, sessions, &[7], 1);
    watchers.expire(2);
    assert!(!watchers.marking.is_empty());
    watchers.expire(3);
    assert!(watchers.marking.is_empty() && watchers.marking_order.is_empty());
    let told: std::collections::BTreeSet<u32> = frames(&mut watchers, 50).into_iter().map(|(slot, _)| slot).collect();
    let expected: std::collections::BTreeSet<u32> = (10..sessions - 1).chain([sessions]).collect();
    assert!(told == expected, "{} of {}", told.len(), expected.len());
}
