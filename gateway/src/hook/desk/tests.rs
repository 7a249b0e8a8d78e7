use super::super::circuit::{FAILURES, OPEN_MS};
use super::*;
use crate::hook::Grant;
use hashbrown::HashSet;
use std::sync::Arc;
use trunkline_core::hook::testing::ask;
use trunkline_core::io::sim::Rng;

fn desk(running_max: usize) -> Desk {
    Desk::new(running_max, 1 << 20, FailurePolicy::Refuse)
}

fn deeds(desk: &mut Desk) -> (Vec<Key>, Vec<(u32, Decision)>) {
    let (mut started, mut told) = (Vec::new(), Vec::new());
    while let Some(deed) = desk.next() {
        match deed {
            Deed::Start { key, .. } => started.push(key),
            Deed::Tell { caller, decision } => told.push((caller.conn.slot, decision)),
        }
    }
    (started, told)
}

fn asks(desk: &mut Desk, slot: u32, token: &str, now_ms: u64) {
    desk.ask(0, Box::new(ask(slot, 1, token)), now_ms);
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

fn let_in(cache_ms: u64) -> End {
    End::In { grant: Arc::default(), cache_ms }
}

fn failed() -> End {
    End::Failed { why: String::new() }
}

fn given() -> Decision {
    Decision::In(Arc::new(Grant::default()))
}

#[test]
fn equal_questions_are_asked_once_and_what_was_answered_counts_for_its_time() {
    let mut desk = desk(8);
    for slot in 0..3 {
        asks(&mut desk, slot, "a", 0);
    }
    let (started, told) = deeds(&mut desk);
    assert_eq!((started.len(), told.len()), (1, 0));
    desk.ended(started[0], let_in(100), 0);
    assert_eq!(deeds(&mut desk), (vec![], (0..3).map(|slot| (slot, given())).collect()));
    asks(&mut desk, 4, "a", 99);
    assert_eq!(deeds(&mut desk), (vec![], vec![(4, given())]));
    asks(&mut desk, 5, "a", 100);
    let (started, _) = deeds(&mut desk);
    desk.ended(started[0], End::Refused { words: "no".into(), cache_ms: 50 }, 100);
    asks(&mut desk, 6, "a", 149);
    asks(&mut desk, 7, "a", 150);
    let refused = Decision::Refused("no".into());
    assert_eq!(deeds(&mut desk).1, [(5, refused.clone()), (6, refused)]);
    let counts = Counts { asked: 3, accepted: 1, refused: 1, cached: 2, shared: 2, ..Counts::default() };
    assert_eq!(desk.counts, counts);
}

#[test]
fn questions_are_equal_if_the_hook_is_told_the_same() {
    let base = ask(1, 1, "token");
    let others = [
        Ask { user: 8, ..base.clone() },
        Ask { device: "a".into(), ..base.clone() },
        Ask { class: "a".into(), ..base.clone() },
        Ask { renews: true, ..base.clone() },
        Ask { websocket: true, ..base.clone() },
        Ask { tls: true, ..base.clone() },
        Ask { address: Some([192, 0, 2, 7].into()), ..base.clone() },
        Ask { address: Some([192, 0, 2, 8].into()), ..base.clone() },
        Ask { address: Some([0, 0, 0, 0, 0, 0, 0, 1].into()), ..base.clone() },
        Ask { token: "toke".into(), device: "n".into(), ..base.clone() },
        Ask { token: "".into(), device: "token".into(), ..base.clone() },
    ];
    let keys: HashSet<Key> = others.iter().chain([&base]).map(key).collect();
    assert_eq!(keys.len(), others.len() + 1);
    assert_eq!(key(&base), key(&Ask { conn: conn(9), ..base.clone() }));
}

#[test]
fn so_many_are_asked_at_a_time_in_order_and_one_whose_callers_have_gone_is_not() {
    let mut desk = desk(1);
    for (slot, token) in [(1, "a"), (2, "b"), (3, "b"), (4, "c")] {
        asks(&mut desk, slot, token, 0);
    }
    let (first, _) = deeds(&mut desk);
    assert_eq!(first.len(), 1);
    for slot in [1, 2, 3, 3, 9] {
        desk.cancel(0, conn(slot));
    }
    assert_eq!(deeds(&mut desk), (vec![], [1, 2, 3].map(|slot| (slot, Decision::Gone)).into()));
    desk.ended(first[0], let_in(100), 0);
    assert_eq!(deeds(&mut desk).0, [key(&ask(4, 1, "c"))]);
    asks(&mut desk, 5, "a", 1);
    assert_eq!(deeds(&mut desk).1, [(5, given())], "its answer was of use");
}

#[test]
fn while_the_hook_is_dead_everybody_is_answered_at_once_and_one_in_a_while_finds_out() {
    for (policy, decision) in [(FailurePolicy::Refuse, Decision::Down), (FailurePolicy::Allow, Decision::Allowed)] {
        let mut desk = Desk::new(2, 1 << 20, policy);
        for slot in 0..FAILURES {
            asks(&mut desk, slot, &slot.to_string(), 0);
            let (started, _) = deeds(&mut desk);
            desk.ended(started[0], failed(), 0);
            assert_eq!(deeds(&mut desk).1, [(slot, decision.clone())]);
        }
        assert!(desk.is_cut());
        for slot in 10..99 {
            asks(&mut desk, slot, "same", OPEN_MS - 1);
            assert_eq!(deeds(&mut desk), (vec![], vec![(slot, decision.clone())]));
        }
        asks(&mut desk, 100, "probe", OPEN_MS);
        let (probe, _) = deeds(&mut desk);
        asks(&mut desk, 101, "other", OPEN_MS);
        assert_eq!(deeds(&mut desk), (vec![], vec![(101, decision.clone())]));
        desk.ended(probe[0], let_in(0), OPEN_MS);
        asks(&mut desk, 102, "other", OPEN_MS);
        assert_eq!((deeds(&mut desk).0.len(), desk.is_cut()), (1, false));
        assert_eq!((desk.counts.failed, desk.counts.cut), (u64::from(FAILURES), 90));
    }
}

#[test]
fn what_the_application_answers_to_one_login_cuts_off_nobody_else() {
    let (erred, busy) = (End::Erred { why: String::new() }, End::Busy { why: String::new() });
    for (policy, of_failure) in [(FailurePolicy::Refuse, Decision::Down), (FailurePolicy::Allow, Decision::Allowed)] {
        for (end, decision) in [(&erred, &of_failure), (&busy, &Decision::Down)] {
            let mut desk = Desk::new(2, 1 << 20, policy);
            for slot in 0..3 * FAILURES {
                asks(&mut desk, slot, "a", 0);
                let (started, _) = deeds(&mut desk);
                desk.ended(started[0], end.clone(), 0);
                assert_eq!(deeds(&mut desk).1, [(slot, decision.clone())]);
            }
            assert_eq!((desk.is_cut(), desk.counts.failed, desk.counts.cut), (false, u64::from(3 * FAILURES), 0));
        }
    }
}

/// Whatever happens in whatever order: each question has exactly one verdict, and never more are asked than may be.
#[test]
fn each_question_has_one_verdict_whatever_happens() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let running_max = rng.within(1, 4) as usize;
        let mut desk = desk(running_max);
        let (mut running, mut waits, mut now_ms, mut verdicts) = (Vec::new(), HashSet::new(), 0, 0);
        let mut take = |desk: &mut Desk, running: &mut Vec<Key>, waits: &mut HashSet<u32>| {
            let (started, told) = deeds(desk);
            running.extend(started);
            for (slot, _) in told {
                assert!(waits.remove(&slot), "seed {seed}: a second verdict");
                verdicts += 1;
            }
        };
        for slot in 0..300 {
            now_ms += rng.within(0, 300);
            match rng.within(0, 3) {
                0 | 1 => {
                    waits.insert(slot);
                    asks(&mut desk, slot, &rng.within(0, 9).to_string(), now_ms);
                }
                2 => desk.cancel(0, conn(rng.within(0, u64::from(slot)) as u32)),
                _ if !running.is_empty() => {
                    let at = rng.within(0, running.len() as u64 - 1) as usize;
                    let end = [let_in(500), failed(), failed(), let_in(0)][rng.within(0, 3) as usize].clone();
                    desk.ended(running.swap_remove(at), end, now_ms);
                }
                _ => desk.tick(now_ms),
            }
            take(&mut desk, &mut running, &mut waits);
            assert!(running.len() <= running_max && desk.running() == running.len(), "seed {seed}");
        }
        while let Some(key) = running.pop() {
            desk.ended(key, let_in(0), now_ms);
            take(&mut desk, &mut running, &mut waits);
        }
        assert!(waits.is_empty() && verdicts > 0, "seed {seed}: {waits:?}");
        assert!(desk.open.is_empty() && desk.callers.is_empty() && desk.queue.is_empty(), "seed {seed}");
    }
}
