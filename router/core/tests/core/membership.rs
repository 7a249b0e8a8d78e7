//! Views and leases through virtual time: each rule by itself, then random histories.

use proptest::prelude::*;
use trunkline_router_core::membership::{
    Fenced, Outage, RECORD_BYTES_MAX, Reach, RecordError, STATE_BYTES_MAX, promise_ms, proof_ms,
};
use trunkline_router_core::{Lease, Membership, NodeRecord, NodeState};

const LEASE_MS: u64 = 5_000;
/// For how long a proof counts.
const PROOF_MS: u64 = proof_ms(LEASE_MS);

fn node(name: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation,
        state: NodeState::Active,
        weight: 2,
        shards: 4,
        mesh: format!("{name}.example:7790"),
        advertise: format!("{name}.example:7700"),
        http: String::new(),
        protocol: 1,
        connections: 10,
        users: 9,
        started_ms: 1_700_000_000_000,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}

fn names(membership: &Membership) -> Vec<String> {
    membership.view().members.iter().map(|member| member.name.clone()).collect()
}

fn of_a_b_c() -> Membership {
    let mut membership = Membership::new(Some("a"), LEASE_MS);
    assert!(membership.polled(0, vec![node("c", 3), node("a", 1), node("b", 2)]));
    for (name, incarnation) in [("b", 2), ("c", 3)] {
        membership.mesh_heard(0, name, incarnation);
    }
    membership
}

#[test]
fn a_record_survives_its_json_and_fields_of_newer_nodes_are_skipped() {
    let record = node("a", u64::MAX);
    assert_eq!(NodeRecord::parse(record.to_json().unwrap().as_bytes()), Ok(record.clone()));
    let newer = record.to_json().unwrap().replacen('{', r#"{"rack":{"row":7},"#, 1);
    assert_eq!(NodeRecord::parse(newer.as_bytes()), Ok(record));
}

#[test]
fn a_state_of_a_newer_node_is_kept_and_is_no_home() {
    let json = node("b", 2).to_json().unwrap().replace("\"active\"", "\"hibernating\"");
    let newer = NodeRecord::parse(json.as_bytes()).unwrap();
    assert_eq!((newer.state.word(), newer.to_json().unwrap()), ("hibernating", json));
    let mut membership = Membership::new(None, LEASE_MS);
    membership.polled(0, vec![node("a", 1), newer.clone()]);
    let view = membership.view();
    assert_eq!(names(&membership), ["a", "b"]);
    assert!(view.is_live("b", 2), "its sessions count");
    assert_eq!(view.ring.as_ref().unwrap().nodes().len(), 1);
    // Computed apart from this code, as the digest below: 0, and the word with its length in front.
    assert_eq!(view.digest, DIGEST_WITH_A_NEWER_STATE);
    for odd in ["", "ein sehr langer Zustand, länger als alles", "ääääääääääääää"] {
        let json = node("b", 2).to_json().unwrap().replace("\"active\"", &format!("\"{odd}\""));
        let record = NodeRecord::parse(json.as_bytes()).unwrap();
        assert!(odd.starts_with(record.state.word()) && record.state.word().len() <= STATE_BYTES_MAX, "{record:?}");
    }
}

fn speaking(name: &str, incarnation: u64, oldest: u32, newest: u32) -> NodeRecord {
    NodeRecord { protocol_oldest: oldest, protocol: newest, ..node(name, incarnation) }
}

#[test]
fn versions_of_the_mesh_protocol_are_compared_as_ranges() {
    for ((oldest, newest), (other_oldest, other_newest), speak) in [
        ((1, 1), (1, 1), true),
        ((1, 2), (2, 3), true),
        ((1, 2), (3, 4), false),
        ((5, 9), (1, 4), false),
        ((1, 9), (4, 4), true),
        // A node that does not tell is judged by the handshake alone.
        ((0, 1), (7, 7), true),
    ] {
        let (one, other) = (speaking("a", 1, oldest, newest), speaking("b", 2, other_oldest, other_newest));
        assert_eq!((one.speaks_with(&other), other.speaks_with(&one)), (speak, speak), "{one:?} {other:?}");
    }
    let json = serde_json::to_string(&speaking("a", 1, 3, 2)).unwrap();
    let refused = NodeRecord::parse(json.as_bytes());
    assert_eq!(refused, Err(RecordError::BadProtocols { oldest: 3, newest: 2 }));
}

proptest! {
    /// Whoever is in the ring can speak with everybody else in it; nobody is left out while all can; and the order does
    /// not matter.
    #[test]
    fn all_homes_speak_with_each_other(ranges in prop::collection::vec((0_u32..6, 0_u32..3), 1..9)) {
        let records: Vec<NodeRecord> = ranges
            .iter()
            .zip(1_u64..)
            .map(|((oldest, more), number)| speaking(&format!("n{number}"), number, *oldest, oldest + more))
            .collect();
        let view = |records: Vec<NodeRecord>| {
            let mut membership = Membership::new(None, LEASE_MS);
            membership.polled(0, records);
            membership.view()
        };
        let seen = view(records.clone());
        let homes: Vec<&NodeRecord> =
            seen.ring.as_ref().unwrap().nodes().iter().map(|home| seen.member(home.name()).unwrap()).collect();
        let speaks = |one: &NodeRecord, others: &[&NodeRecord]| others.iter().all(|other| one.speaks_with(other));
        let all_speak = |records: &[&NodeRecord]| records.iter().all(|one| speaks(one, records));
        prop_assert!(all_speak(&homes));
        prop_assert_eq!(homes.len() + seen.left_out.len(), records.len());
        prop_assert_eq!(all_speak(&records.iter().collect::<Vec<_>>()), seen.left_out.is_empty());
        // A protocol that most speak has most of the ring.
        let speaks = |node: &&NodeRecord, version: u32| node.protocols().is_none_or(|range| range.contains(&version));
        let speakers = |version: u32| records.iter().filter(|node| speaks(node, version)).count();
        prop_assert_eq!(homes.len(), (0..9).map(speakers).max().unwrap());
        let mut reversed = records.clone();
        reversed.reverse();
        prop_assert_eq!(view(reversed), seen);
    }
}

#[test]
fn records_out_of_range_are_refused() {
    let refused = |change: fn(&mut NodeRecord)| {
        let mut record = node("a", 1);
        change(&mut record);
        let json = serde_json::to_string(&record).unwrap();
        NodeRecord::parse(json.as_bytes()).unwrap_err()
    };
    assert!(matches!(refused(|record| record.name = "a}".into()), RecordError::Braces { .. }));
    assert!(matches!(refused(|record| record.name = String::new()), RecordError::Node(_)));
    assert!(matches!(refused(|record| record.weight = 0), RecordError::Node(_)));
    assert!(matches!(refused(|record| record.weight = 65_536), RecordError::Node(_)));
    assert!(matches!(refused(|record| record.shards = 0), RecordError::BadShards { .. }));
    for mesh in ["", "host", ":1", "host:0", "host:65536", "ho st:1"] {
        let json = serde_json::to_string(&NodeRecord { mesh: mesh.into(), ..node("a", 1) }).unwrap();
        assert!(matches!(NodeRecord::parse(json.as_bytes()), Err(RecordError::BadMesh { .. })), "{mesh}");
    }
    assert!(matches!(refused(|record| record.advertise = String::new()), RecordError::BadAdvertise { .. }));
    let large = vec![b' '; RECORD_BYTES_MAX + 1];
    assert_eq!(NodeRecord::parse(&large), Err(RecordError::TooLarge { bytes: RECORD_BYTES_MAX + 1 }));
    assert!(matches!(NodeRecord::parse(b"{}"), Err(RecordError::Syntax(_))));
}

#[test]
fn the_digest_is_pinned_and_load_does_not_change_it() {
    let mut membership = Membership::new(None, LEASE_MS);
    assert_eq!(membership.view().digest, 0xcbf2_9ce4_8422_2325);
    membership.polled(0, vec![node("b", 2), node("a", 1)]);
    let before = membership.view();
    assert_eq!(before.digest, DIGEST_OF_A_AND_B);
    assert!(!membership.polled(1, vec![NodeRecord { users: 1_000, ..node("a", 1) }, node("b", 2)]));
    let after = membership.view();
    assert_eq!((after.digest, after.epoch, after.members[0].users), (before.digest, before.epoch, 1_000));
    for change in [
        NodeRecord { incarnation: 3, ..node("b", 2) },
        NodeRecord { life: 2, ..node("b", 3) },
        NodeRecord { state: NodeState::Draining, ..node("b", 3) },
        NodeRecord { weight: 3, ..node("b", 3) },
        NodeRecord { shards: 5, ..node("b", 3) },
        NodeRecord { mesh: "x:1".into(), ..node("b", 3) },
        NodeRecord { advertise: "x:1".into(), ..node("b", 3) },
    ] {
        assert!(membership.polled(2, vec![node("a", 1), change.clone()]), "{change:?}");
    }
}

/// The view of `node("a", 1)` and `node("b", 2)`, computed apart from this code.
const DIGEST_OF_A_AND_B: u64 = 0x30a6_9c03_8a01_8dba;
const DIGEST_WITH_A_NEWER_STATE: u64 = 0x5655_be74_0002_3f22;

#[test]
fn only_active_members_are_in_the_ring() {
    let mut membership = Membership::new(Some("a"), LEASE_MS);
    assert!(membership.wants_poll());
    let joining = NodeRecord { state: NodeState::Joining, ..node("a", 1) };
    membership.polled(0, vec![joining.clone()]);
    assert!(membership.view().ring.is_none() && !membership.wants_poll());
    let draining = NodeRecord { state: NodeState::Draining, ..node("c", 1) };
    let gone = NodeRecord { state: NodeState::Gone, ..node("d", 1) };
    membership.polled(0, vec![joining, node("b", 1), draining, gone]);
    assert_eq!(names(&membership), ["a", "b", "c"]);
    let ring = membership.view().ring.clone().unwrap();
    assert_eq!(ring.nodes().iter().map(|node| node.name()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn while_redis_answers_the_lease_decides_and_not_the_mesh() {
    let mut membership = of_a_b_c();
    assert!(!membership.mesh_lost(100, "b", 2));
    assert!(membership.wants_poll() && !membership.is_reachable("b") && membership.is_reachable("c"));
    assert!(!membership.polled(20_000, vec![node("a", 1), node("b", 2), node("c", 3)]));
    assert!(!membership.tick(20_001));
    assert_eq!(names(&membership), ["a", "b", "c"]);
    assert!(membership.polled(20_100, vec![node("a", 1), node("c", 3)]), "its lease is gone");
    assert_eq!(names(&membership), ["a", "c"]);
    assert!(membership.is_reachable("a") && !membership.is_reachable("b") && !membership.is_reachable("nobody"));
}

#[test]
fn without_redis_the_mesh_decides_after_a_lease_time() {
    let mut membership = of_a_b_c();
    membership.set_outage(Outage::MeshDecides);
    assert!(!membership.poll_failed(1_000));
    assert!(!membership.tick(1_000_000), "an outage of any length changes nothing while peers are heard");
    assert!(!membership.mesh_lost(1_000_000, "b", 2));
    assert!(!membership.tick(1_000_000 + LEASE_MS));
    assert!(membership.tick(1_000_001 + LEASE_MS));
    assert_eq!(names(&membership), ["a", "c"]);
    assert!(!membership.mesh_heard(1_010_000, "b", 1), "an incarnation from before");
    assert_eq!(names(&membership), ["a", "c"]);
    assert!(membership.mesh_heard(1_010_000, "b", 2));
    assert_eq!(names(&membership), ["a", "b", "c"]);
    assert!(membership.mesh_heard(1_010_000, "b", 5), "restarted");
    assert!(membership.view().is_live("b", 5) && !membership.view().is_live("b", 2));
    assert!(!membership.mesh_lost(1_010_001, "b", 2), "an old link");
    assert!(membership.is_reachable("b"));
}

#[test]
fn without_redis_the_view_is_frozen_but_for_the_dead() {
    let mut membership = of_a_b_c();
    membership.poll_failed(1_000);
    membership.mesh_lost(2_000, "b", 2);
    membership.mesh_lost(2_000, "c", 3);
    assert!(!membership.tick(1_000_000));
    assert!(!membership.found_dead(1_000_000, "b", 1, Some(999_000)), "another life of it");
    assert!(membership.found_dead(1_000_000, "b", 2, Some(999_000)));
    assert_eq!(names(&membership), ["a", "c"]);
    assert_eq!((membership.dead_ms("b"), membership.dead_ms("c")), (Some(999_000), None));
    assert!(membership.found_dead(1_000_000, "b", 2, None), "another process may be there");
    assert!(membership.found_dead(1_000_000, "b", 2, Some(999_500)));
    assert!(membership.mesh_heard(1_000_001, "b", 2), "it was not after all");
    assert_eq!(names(&membership), ["a", "b", "c"]);
}

#[test]
fn a_member_that_is_heard_has_a_lease_time_to_write_its_lease_again() {
    let mut membership = of_a_b_c();
    assert!(!membership.polled(1_000, vec![node("a", 1), node("c", 3)]));
    assert!(!membership.polled(5_999, vec![node("a", 1), node("c", 3)]));
    assert!(!membership.polled(5_999, vec![node("a", 1), node("b", 2), node("c", 3)]), "there it is");
    assert!(!membership.polled(9_000, vec![node("a", 1), node("c", 3)]));
    assert!(membership.tick(9_000 + LEASE_MS));
    assert_eq!(names(&membership), ["a", "c"]);
}

#[test]
fn a_lease_that_is_missing_before_it_can_have_run_out_was_lost() {
    let renewed = |renewals| NodeRecord { renewals, ..node("b", 2) };
    let mut membership = Membership::new(Some("a"), LEASE_MS);
    for now_ms in [1_000, 2_000, 3_000] {
        membership.polled(now_ms, vec![node("a", 1), renewed(now_ms)]);
    }
    // It renewed after 2,000, and is not heard.
    assert!(!membership.polled(4_000, vec![node("a", 1)]));
    assert!(!membership.polled(3_999 + promise_ms(LEASE_MS), vec![node("a", 1)]));
    assert!(membership.polled(4_000 + promise_ms(LEASE_MS), vec![node("a", 1)]), "it has not written it again");

    let mut membership = Membership::new(Some("a"), LEASE_MS);
    for now_ms in [1_000, 2_000, 3_000, 4_000, 5_000, 6_000] {
        membership.polled(now_ms, vec![node("a", 1), renewed(7)]);
    }
    // The one renewal that was seen came before the first poll.
    assert!(membership.polled(6_100, vec![node("a", 1)]), "it has run out");
}

#[test]
fn who_was_promised_to_stay_stays_for_a_lease_time_whatever_redis_says() {
    let mut membership = of_a_b_c();
    membership.mesh_lost(900, "b", 2);
    assert!(!membership.vouch(1_000, "b", 1, false), "another life of it");
    assert!(!membership.vouch(1_000, "x", 2, false), "no member");
    assert!(membership.vouch(1_000, "b", 2, false));
    assert!(!membership.polled(2_000, vec![node("a", 1), node("c", 3)]));
    assert!(!membership.tick(999 + promise_ms(LEASE_MS)));
    assert!(membership.tick(1_000 + promise_ms(LEASE_MS)));
    assert_eq!(names(&membership), ["a", "c"]);
}

#[test]
fn a_majority_that_may_serve_without_redis_is_not_dropped() {
    let [a, b, c] = [node("a", 1), node("b", 2), node("c", 3)];
    let mut membership = of_a_b_c();
    assert!(membership.vouch(1_000, "b", 2, true) && membership.vouch(1_000, "c", 3, true));
    for (name, incarnation) in [("b", 2), ("c", 3)] {
        membership.mesh_lost(1_500, name, incarnation);
    }
    // Redis is back, for this node alone.
    assert!(!membership.polled(20_000, vec![a.clone()]) && !membership.tick(1_000_000));
    assert!(!membership.polled(1_000_000, vec![a.clone()]));
    assert_eq!(names(&membership), ["a", "b", "c"]);
    assert!(membership.found_dead(1_000_001, "b", 2, Some(1_000_000)), "of two that are left one is no majority");
    assert_eq!(names(&membership), ["a"]);
    // All have been seen since: the next absence is one like any other.
    assert!(membership.polled(1_010_000, vec![a.clone(), b.clone(), c]));
    assert!(membership.polled(1_020_000, vec![a]));
    assert_eq!(names(&membership), ["a"]);
}

#[test]
fn a_member_that_most_do_not_reach_is_no_home_until_they_do() {
    let says = |name: &str, incarnation, silent: &[(&str, u64)]| {
        let reach =
            |(name, incarnation): &(&str, u64)| Reach { name: (*name).into(), incarnation: *incarnation, ok: false };
        NodeRecord { reach: Some(silent.iter().map(reach).collect()), ..node(name, incarnation) }
    };
    let ring = |membership: &Membership| {
        let ring = membership.view().ring.clone();
        ring.map_or(Vec::new(), |ring| ring.nodes().iter().map(|node| node.name().to_owned()).collect::<Vec<_>>())
    };
    let mut membership = Membership::new(None, LEASE_MS);
    let z = || says("z", 9, &[("a", 1), ("b", 2), ("c", 3)]);
    membership.polled(0, vec![says("a", 1, &[("z", 9)]), says("b", 2, &[]), says("c", 3, &[]), z()]);
    assert_eq!(ring(&membership), ["a", "b", "c", "z"], "one does not reach it");
    membership.polled(1, vec![says("a", 1, &[("z", 9)]), says("b", 2, &[("z", 8)]), says("c", 3, &[]), z()]);
    assert_eq!(ring(&membership), ["a", "b", "c", "z"], "the other means an earlier one");
    assert!(membership.polled(2, vec![says("a", 1, &[("z", 9)]), says("b", 2, &[("z", 9)]), says("c", 3, &[]), z()]));
    assert_eq!((ring(&membership).len(), names(&membership).len()), (3, 4));
    membership.polled(3, vec![says("a", 1, &[]), says("b", 2, &[]), says("c", 3, &[]), z()]);
    assert_eq!(ring(&membership), ["a", "b", "c", "z"]);
    // Two halves that do not reach each other say nothing about either.
    let halves = [("a", ["c", "d"]), ("b", ["c", "d"]), ("c", ["a", "b"]), ("d", ["a", "b"])];
    let records = halves.map(|(name, silent)| says(name, 20, &silent.map(|name| (name, 20))));
    membership.polled(4, records.to_vec());
    assert_eq!(ring(&membership), ["a", "b", "c", "d"]);
}

#[test]
fn as_many_gray_members_as_a_ring_may_lose_are_out_of_it_whoever_joins() {
    let name = |at: u64| format!("gateway-{at:03}");
    let is_gray = |at: u64| at.is_multiple_of(5);
    let gray = (0..100).filter(|at| is_gray(*at));
    let silent: Vec<Reach> = gray.map(|at| Reach { name: name(at), incarnation: at + 1, ok: false }).collect();
    for joiners in [0, 16] {
        let found: Vec<Reach> =
            (0..joiners).map(|at| Reach { name: format!("new-{at}"), incarnation: 500 + at, ok: true }).collect();
        let records = (0..100).map(|at| {
            let mut record = NodeRecord { reach: Some(Vec::new()), ..node(&name(at), at + 1) };
            if !is_gray(at) {
                record.reach = Some(found.clone());
                record.set_silent(&silent);
                record.trim();
            }
            let record = NodeRecord::parse(record.to_json().unwrap().as_bytes()).unwrap();
            let said = record.reach.iter().flatten().filter(|reach| reach.ok).count() as u64;
            assert_eq!(said, if is_gray(at) { 0 } else { joiners });
            record
        });
        let mut membership = Membership::new(None, LEASE_MS);
        membership.polled(0, records.collect());
        let view = membership.view();
        assert_eq!((view.members.len(), view.ring.as_ref().unwrap().nodes().len()), (100, 80), "{joiners} join");
    }
}

#[test]
fn a_record_that_says_too_much_of_others_says_less_and_is_written() {
    let reach = |ok: bool| {
        move |at: u64| Reach { name: format!("{at}.{}.example:7700", "n".repeat(200)), incarnation: u64::MAX - at, ok }
    };
    let silent: Vec<Reach> = (0..300).map(reach(false)).collect();
    let mut record = NodeRecord { reach: Some((900..916).map(reach(true)).collect()), ..node("a", u64::MAX) };
    record.set_silent(&silent);
    assert!(matches!(record.to_json(), Err(RecordError::TooLarge { .. })));
    record.trim();
    assert!(record.to_json().unwrap().len() <= RECORD_BYTES_MAX);
    assert!(record.reach.iter().flatten().count() > 10 && record.silent.is_empty());
    // With names of a fair length all is said.
    let silent: Vec<Reach> = (0..300).map(|at| Reach { name: format!("n{at}"), incarnation: at, ok: false }).collect();
    let mut record = node("a", u64::MAX);
    record.set_silent(&silent);
    record.trim();
    assert_eq!((record.reach.iter().flatten().count(), record.silent.len()), (16, 8 * 256));
    // Old data of others, or garbage, is no harm.
    let garbage = NodeRecord { silent: "ä!?{}[]garbage".repeat(9), reach: Some(Vec::new()), ..node("b", 2) };
    let mut membership = Membership::new(None, LEASE_MS);
    membership.polled(0, vec![node("a", 1), garbage]);
    assert_eq!(membership.view().ring.as_ref().unwrap().nodes().len(), 2);
}

#[test]
fn silence_is_counted_from_the_loss_or_from_the_first_sight() {
    let mut membership = of_a_b_c();
    membership.polled(1_000, vec![node("a", 1), node("b", 2), node("c", 3), node("d", 4)]);
    membership.mesh_lost(3_000, "b", 2);
    let silent = |now_ms| membership.silent(now_ms, 5_000).into_iter().map(|reach| reach.name).collect::<Vec<_>>();
    assert!(silent(5_999).is_empty());
    assert_eq!((silent(6_000), silent(8_000)), (vec!["d".to_owned()], vec!["b".to_owned(), "d".to_owned()]));
}

#[test]
fn a_node_of_which_no_poll_has_told_is_a_stranger_until_one_has() {
    let mut membership = of_a_b_c();
    assert!(!membership.hears_stranger(0));
    membership.mesh_heard(1_000, "d", 4);
    assert!(membership.hears_stranger(1_000) && !membership.hears_stranger(1_001));
    membership.polled(2_000, vec![node("a", 1), node("b", 2), node("c", 3), node("d", 4)]);
    assert!(!membership.hears_stranger(0));
}

#[test]
fn who_has_ended_is_out_of_the_view_and_not_of_what_redis_told() {
    let mut membership = of_a_b_c();
    let (told, _) = membership.told(0);
    membership.poll_failed(20_000);
    assert!(membership.found_dead(20_000, "c", 3, Some(19_000)));
    assert_eq!(names(&membership), ["a", "b"]);
    assert_eq!(membership.told(20_000).0, told);
}

#[test]
fn an_empty_poll_is_no_view_for_who_only_watches() {
    let mut membership = Membership::new(None, LEASE_MS);
    assert!(!membership.polled(0, vec![]));
    assert!(membership.polled(1_000, vec![node("a", 1), node("b", 2)]));
    assert!(!membership.polled(100_000, vec![]) && !membership.tick(200_000));
    assert!(membership.polled(300_000, vec![node("b", 2)]));
    assert_eq!(names(&membership), ["b"]);
}

#[test]
fn old_incarnations_are_ignored() {
    let mut membership = of_a_b_c();
    membership.polled(1, vec![node("a", 1), node("b", 9), node("c", 3)]);
    assert!(membership.polled(2, vec![node("a", 1), node("b", 8), node("c", 3)]));
    assert_eq!(names(&membership), ["a", "c"]);
    assert!(membership.polled(3, vec![node("a", 1), node("b", 8), node("b", 9), node("b", 7), node("c", 3)]));
    assert!(membership.view().is_live("b", 9));
}

/// The clock of Redis was ahead, then Redis lost its data: a node that starts again gets a lower incarnation than
/// before.
#[test]
fn a_lower_incarnation_that_lasts_is_no_old_data() {
    let mut membership = of_a_b_c();
    let polled = |membership: &mut Membership, at_ms| {
        membership.polled(at_ms, vec![node("a", 1), node("b", 1), node("c", 3)]);
        membership.view().is_live("b", 1)
    };
    for at_ms in (1_000..=11_000).step_by(1_000) {
        assert!(!polled(&mut membership, at_ms), "{at_ms}");
        // The mesh hears the higher one, so it has a lease time to write its lease again.
        let expected: &[&str] = if at_ms < 1_000 + LEASE_MS { &["a", "b", "c"] } else { &["a", "c"] };
        assert_eq!(names(&membership), expected);
    }
    assert!(polled(&mut membership, 12_000));
    assert!(!membership.mesh_heard(12_000, "b", 0) && !membership.is_reachable("b"));
    membership.mesh_heard(12_000, "b", 1);
    assert!(membership.is_reachable("b"));
}

#[test]
fn a_redis_that_forgot_does_not_empty_the_view_at_once() {
    let mut membership = of_a_b_c();
    assert!(!membership.polled(1_000, vec![]));
    membership.mesh_lost(1_100, "c", 3);
    assert_eq!(names(&membership), ["a", "b"], "whom the mesh has lost too is out");
    assert!(membership.polled(2_000, vec![node("a", 11)]));
    assert_eq!(names(&membership), ["a", "b"]);
    assert!(membership.polled(3_000, vec![node("a", 11), node("b", 12)]));
    assert!(!membership.tick(30_000_000));
    assert_eq!(names(&membership), ["a", "b"]);

    let mut membership = of_a_b_c();
    membership.polled(1_000, vec![node("b", 2)]);
    membership.polled(4_000, vec![node("b", 2)]);
    assert_eq!(names(&membership), ["a", "b", "c"]);
    assert!(membership.tick(1_000 + LEASE_MS), "but not for longer than a lease");
    assert_eq!(names(&membership), ["b"]);
    membership.polled(7_000, vec![node("b", 2)]);
    assert_eq!(names(&membership), ["b"]);
}

#[test]
fn a_node_that_the_ring_cannot_hold_is_left_out_of_it() {
    let mut membership = Membership::new(None, LEASE_MS);
    // Names that mean the same host and port.
    membership.polled(0, vec![node("unix:x", 7), node("UNIX:x", 8), node("y", 1)]);
    let view = membership.view();
    assert_eq!((view.members.len(), view.left_out.as_slice()), (3, &["UNIX:x".to_owned()][..]));
    assert_eq!(view.ring.as_ref().map(|ring| ring.nodes().len()), Some(2));
    membership.polled(1, vec![NodeRecord { weight: 65_535, ..node("x", 1) }, NodeRecord { weight: 9, ..node("y", 2) }]);
    assert_eq!(membership.view().left_out, ["y"]);
}

#[test]
fn epochs_follow_the_cluster_and_never_fall() {
    let mut membership = of_a_b_c();
    let view = membership.view();
    assert_eq!(view.epoch, 1);
    membership.set_epoch(view.digest ^ 1, 100);
    assert_eq!(membership.view().epoch, 1, "another view's");
    membership.set_epoch(view.digest, 40);
    membership.set_epoch(view.digest, 30);
    assert_eq!(membership.view().epoch, 40);
    membership.mesh_lost(1, "c", 3);
    membership.polled(1, vec![node("a", 1), node("b", 2)]);
    assert_eq!(membership.view().epoch, 41);
}

fn leased() -> Lease {
    let mut lease = Lease::new();
    assert!(!lease.may_serve(0));
    assert_eq!(lease.fenced(), Some(Fenced::NotAcquired));
    assert!(lease.acquired(1_000, 7, LEASE_MS));
    lease
}

#[test]
fn a_lease_counts_from_when_the_request_was_sent() {
    let mut lease = leased();
    lease.renewed(2_000, LEASE_MS);
    assert_eq!(lease.serve_until_ms(), 1_000 + PROOF_MS, "the view is as old as it was");
    lease.viewed(2_100);
    assert!(lease.may_serve(2_000 + PROOF_MS - 1));
    assert!(!lease.may_serve(2_000 + PROOF_MS));
    assert_eq!(lease.fenced(), Some(Fenced::Silent));
}

#[test]
fn a_lost_lease_fences_until_a_higher_incarnation() {
    let mut lease = leased();
    lease.lost(1_500);
    lease.renewed(1_500, LEASE_MS);
    lease.vouched(1_500);
    assert!(!lease.may_serve(1_500));
    assert_eq!(lease.fenced(), Some(Fenced::Lost));
    assert!(!lease.acquired(1_600, 7, LEASE_MS) && !lease.may_serve(1_600));
    assert!(lease.acquired(1_600, 8, LEASE_MS) && lease.may_serve(1_600));
}

#[test]
fn an_outage_of_redis_does_not_fence_whom_peers_confirm() {
    let mut lease = leased();
    for now_ms in (2_000..600_000).step_by(1_000) {
        lease.renew_failed(now_ms);
        lease.vouched(now_ms - 500);
        assert!(lease.may_serve(now_ms + 999));
    }
    lease.renew_failed(603_000);
    assert!(!lease.may_serve(604_000), "peers are silent too");
    assert_eq!(lease.fenced(), Some(Fenced::Isolated));
}

#[test]
fn a_promise_outlasts_what_it_proves_by_more_than_clocks_differ() {
    for ttl_ms in [2_000, 5_000, 60_000] {
        assert!(promise_ms(ttl_ms) - ttl_ms >= ttl_ms / 50 && ttl_ms - proof_ms(ttl_ms) >= ttl_ms / 50);
    }
}

#[derive(Debug, Clone)]
enum News {
    Polled(Vec<(u8, u64)>),
    PollFailed,
    Heard(u8, u64),
    Lost(u8, u64),
    Epoch(u64),
    Tick,
}

fn news() -> impl Strategy<Value = News> {
    let node = || (0..4_u8, 1..4_u64);
    prop_oneof![
        prop::collection::vec(node(), 0..5).prop_map(News::Polled),
        Just(News::PollFailed),
        node().prop_map(|(name, incarnation)| News::Heard(name, incarnation)),
        node().prop_map(|(name, incarnation)| News::Lost(name, incarnation)),
        (0..50_u64).prop_map(News::Epoch),
        Just(News::Tick),
    ]
}

fn name_of(index: u8) -> String {
    char::from(b'a' + index).to_string()
}

fn tell(membership: &mut Membership, now_ms: u64, news: &News) -> bool {
    match news {
        News::Polled(nodes) => {
            membership.polled(now_ms, nodes.iter().map(|(name, inc)| node(&name_of(*name), *inc)).collect())
        }
        News::PollFailed => membership.poll_failed(now_ms),
        News::Heard(name, incarnation) => membership.mesh_heard(now_ms, &name_of(*name), *incarnation),
        News::Lost(name, incarnation) => membership.mesh_lost(now_ms, &name_of(*name), *incarnation),
        News::Epoch(epoch) => {
            membership.set_epoch(membership.view().digest, *epoch);
            false
        }
        News::Tick => membership.tick(now_ms),
    }
}

/// What happens to the holder of a lease.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Renewed(u64),
    Failed,
    Viewed(u64),
    Vouched(u64),
    Pause(u64),
    Step(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        (0..1_000_u64).prop_map(Turn::Renewed),
        Just(Turn::Failed),
        (0..1_000_u64).prop_map(Turn::Viewed),
        (0..1_000_u64).prop_map(Turn::Vouched),
        (LEASE_MS..20_000).prop_map(Turn::Pause),
        (0..3_000_u64).prop_map(Turn::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn epochs_never_fall_incarnations_neither_and_members_are_sorted(
        history in prop::collection::vec((0..4_000_u64, news()), 0..60),
    ) {
        let mut membership = Membership::new(Some("a"), LEASE_MS);
        let mut now_ms = 0;
        // By name: the incarnation of the last view, the highest one told of, and when that was told last.
        let mut shown = [0_u64; 4];
        let mut told = [(0_u64, 0_u64); 4];
        for (pause_ms, news) in history {
            now_ms += pause_ms;
            let before = membership.view();
            let changed = tell(&mut membership, now_ms, &news);
            let before_told = told;
            let telling = match &news {
                News::Polled(nodes) => nodes.as_slice(),
                News::Heard(name, incarnation) => &[(*name, *incarnation)],
                _ => &[],
            };
            for (name, incarnation) in telling {
                let (highest, at_ms) = &mut told[usize::from(*name)];
                if incarnation >= highest {
                    (*highest, *at_ms) = (*incarnation, now_ms);
                }
            }
            let view = membership.view();
            prop_assert_eq!(changed, view.digest != before.digest);
            prop_assert!(view.epoch >= before.epoch + u64::from(changed));
            prop_assert!(view.members.windows(2).all(|pair| pair[0].name < pair[1].name));
            for member in &view.members {
                let at = usize::from(member.name.as_bytes()[0] - b'a');
                if member.incarnation < shown[at] {
                    // It has been found for longer than a lease that is replaced can last, and nobody has told of the
                    // higher one since.
                    prop_assert!(matches!(news, News::Polled(_)) && now_ms - before_told[at].1 > 2 * LEASE_MS);
                    told[at] = (member.incarnation, now_ms);
                }
                shown[at] = member.incarnation;
            }
        }
    }

    #[test]
    fn the_same_records_make_the_same_view_whatever_came_before(
        histories in prop::collection::vec(prop::collection::vec(news(), 0..20), 2),
        mut nodes in prop::collection::vec((0..4_u8, 4..9_u64), 1..5),
    ) {
        nodes.sort_unstable();
        nodes.dedup_by_key(|(name, _)| *name);
        let views: Vec<_> = histories.iter().map(|history| {
            let mut membership = Membership::new(None, LEASE_MS);
            for news in history {
                tell(&mut membership, 0, news);
            }
            // Past every doubt about what Redis may have forgotten.
            for now_ms in [10 * LEASE_MS, 12 * LEASE_MS] {
                let records = nodes.iter().map(|(name, inc)| node(&name_of(*name), *inc)).collect();
                membership.polled(now_ms, records);
            }
            membership.view()
        }).collect();
        prop_assert_eq!(views[0].digest, views[1].digest);
        prop_assert_eq!(&views[0].members, &views[1].members);
    }

    /// After a pause of a lease time or more the node is fenced, whatever is noticed first, and stays so.
    #[test]
    fn a_paused_node_is_fenced(turns in prop::collection::vec(turn(), 1..40)) {
        let mut lease = leased();
        let mut now_ms = 1_000_u64;
        // Nothing is sent during a pause.
        let (mut paused, mut woke_ms) = (false, now_ms);
        for turn in turns {
            match turn {
                Turn::Renewed(ago_ms) => lease.renewed(now_ms.saturating_sub(ago_ms).max(woke_ms), LEASE_MS),
                Turn::Failed => lease.renew_failed(now_ms),
                Turn::Viewed(ago_ms) => lease.viewed(now_ms.saturating_sub(ago_ms).max(woke_ms)),
                Turn::Vouched(ago_ms) => lease.vouched(now_ms.saturating_sub(ago_ms).max(woke_ms)),
                Turn::Pause(ms) => {
                    now_ms += ms;
                    (paused, woke_ms) = (true, now_ms);
                }
                Turn::Step(ms) => now_ms += ms,
            }
            if paused && !matches!(turn, Turn::Pause(_)) {
                prop_assert!(!lease.may_serve(now_ms), "{lease:?}");
            }
        }
    }
}
