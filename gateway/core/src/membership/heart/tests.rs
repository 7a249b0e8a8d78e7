use super::*;
use trunkline_router_core::membership::proof_ms;

const LEASE_MS: u64 = 5_000;
const BEAT_MS: u64 = 1_000;
/// For how long a lease counts from the request.
const PROOF_MS: u64 = proof_ms(LEASE_MS);

fn record(name: &str, incarnation: u64) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        incarnation,
        state: NodeState::Active,
        weight: 1,
        shards: 2,
        mesh: "127.0.0.1:7790".to_owned(),
        advertise: "127.0.0.1:7700".to_owned(),
        http: String::new(),
        protocol: 1,
        connections: 0,
        users: 0,
        started_ms: 1,
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

/// A heart that beats: its lease is taken at 0, and each of `records` is in the view.
fn beating(records: &[NodeRecord]) -> Heart {
    let mut heart = Heart::new("a", LEASE_MS);
    assert_eq!((heart.ask(0), heart.fenced()), (Ask::Acquire, Some(Fenced::NotAcquired)));
    assert!(heart.acquired(0, 10, 7));
    heart.polled(15, 20, records.to_vec());
    heart
}

fn alone() -> Heart {
    beating(&[record("a", 7)])
}

fn among_others() -> Heart {
    beating(&[record("a", 7), record("b", 9)])
}

fn renew(heart: &mut Heart, now_ms: u64) {
    assert_eq!(heart.ask(now_ms), Ask::Renew, "at {now_ms}");
    heart.renewed(now_ms, now_ms + 5, Renewal::Renewed);
}

/// A beat of a Redis that does not answer: both fail after a time-out.
fn beat_in_vain(heart: &mut Heart, now_ms: u64) {
    heart.renew_failed(now_ms + 900);
    heart.poll_failed(now_ms + 900);
}

#[test]
fn a_lease_that_is_renewed_lasts() {
    let mut heart = among_others();
    for beat in 1..100 {
        renew(&mut heart, beat * BEAT_MS);
        assert!(heart.serve_until_ms() < beat * BEAT_MS + PROOF_MS, "its view is older");
        heart.polled(beat * BEAT_MS, beat * BEAT_MS + 5, vec![record("a", 7), record("b", 9)]);
        assert_eq!(heart.serve_until_ms(), beat * BEAT_MS + PROOF_MS);
    }
    assert_eq!(heart.fenced(), None);
}

#[test]
fn a_node_that_was_paused_is_fenced_at_the_first_look() {
    for mut heart in [alone(), among_others()] {
        renew(&mut heart, 1_000);
        heart.viewed(1_000, 1_010, vec![record("a", 7)]);
        assert!(heart.look(1_000 + PROOF_MS - 1));
        assert!(!heart.look(16_000));
        assert_eq!((heart.fenced(), heart.serve_until_ms()), (Some(Fenced::Silent), 0));
        assert_eq!(heart.ask(16_000), Ask::Acquire);
    }
}

#[test]
fn news_that_waited_while_the_node_was_paused_do_not_lift_the_fence() {
    let all_news: [fn(&mut Heart); 5] = [
        |heart| _ = heart.renewed(1_000, 16_000, Renewal::Renewed),
        |heart| heart.renew_failed(16_000),
        |heart| {
            heart.polled(15_999, 16_000, vec![record("a", 7)]);
        },
        |heart| {
            heart.poll_failed(16_000);
        },
        |heart| _ = heart.renewed(1_000, 16_000, Renewal::LostToNobody),
    ];
    for news in all_news {
        let mut heart = alone();
        news(&mut heart);
        assert_eq!(heart.fenced(), Some(Fenced::Silent));
        assert_eq!(heart.ask(16_001), Ask::Acquire);
        assert!(heart.acquired(16_002, 16_010, 8));
        assert_eq!((heart.fenced(), heart.incarnation(), heart.serve_until_ms()), (None, 8, 16_002 + PROOF_MS));
        assert_eq!(heart.ask(16_011), Ask::Renew);
    }
}

#[test]
fn a_node_alone_serves_on_however_long_redis_is_out() {
    let mut heart = alone();
    for beat in 1..600 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
        // Nobody is there to ask.
        heart.vouched(beat * BEAT_MS + 950, beat * BEAT_MS + 950);
        assert_eq!(heart.ask((beat + 1) * BEAT_MS), Ask::Renew, "at beat {beat}");
        assert_eq!(heart.redis_failing_ms(), Some(1_900));
    }
    assert_eq!(heart.view().members.len(), 1);
    // And is fenced when it is paused in that time.
    assert!(!heart.look(615_000));
}

#[test]
fn a_node_that_nobody_confirms_is_fenced_when_redis_is_out() {
    let mut heart = among_others();
    for beat in 1..=3 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
    }
    assert!(heart.look(PROOF_MS - 1));
    assert!(!heart.look(PROOF_MS));
    assert_eq!(heart.fenced(), Some(Fenced::Isolated));
}

#[test]
fn a_node_that_peers_confirm_serves_on_while_redis_is_out() {
    let mut heart = among_others();
    for beat in 1..60 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
        heart.vouched(beat * BEAT_MS, beat * BEAT_MS + 950);
        assert!(heart.look((beat + 1) * BEAT_MS));
    }
}

#[test]
fn a_redis_without_the_lease_gets_the_same_incarnation_again() {
    let mut heart = alone();
    for beat in 1..30 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
        heart.vouched(beat * BEAT_MS + 950, beat * BEAT_MS + 950);
    }
    heart.renewed(30_000, 30_005, Renewal::LostToNobody);
    assert_eq!((heart.fenced(), heart.redis_failing_ms()), (None, Some(1_900)));
    assert_eq!(heart.ask(30_010), Ask::Restore);
    heart.renewed(30_010, 30_015, Renewal::Renewed);
    heart.polled(30_010, 30_020, vec![record("a", 7)]);
    assert_eq!((heart.ask(31_000), heart.incarnation(), heart.redis_failing_ms()), (Ask::Renew, 7, None));
}

#[test]
fn a_fenced_node_takes_a_new_incarnation_although_nobody_has_its_name() {
    let mut heart = alone();
    heart.renewed(1_000, 1_005, Renewal::LostToNobody);
    assert_eq!((heart.ask(1_010), heart.ask(20_000)), (Ask::Restore, Ask::Acquire));
}

#[test]
fn what_a_node_reads_that_cannot_renew_is_no_view() {
    let mut heart = among_others();
    heart.renew_failed(1_000);
    assert!(!heart.polled(1_000, 1_005, vec![]));
    assert!(!heart.polled(2_000, 2_005, vec![record("a", 7)]));
    assert_eq!((heart.view().members.len(), heart.redis_failing_ms()), (2, Some(1_000)));
    renew(&mut heart, 3_000);
    assert!(heart.polled(3_000, 3_005, vec![record("a", 7)]));
}

#[test]
fn nodes_without_this_one_are_no_view_while_it_may_serve() {
    let mut heart = among_others();
    renew(&mut heart, 1_000);
    assert!(!heart.polled(1_000, 1_005, vec![]) && !heart.polled(1_010, 1_015, vec![record("b", 9)]));
    assert_eq!(heart.view().members.len(), 2);
    assert!(!heart.look(20_000));
    heart.polled(20_000, 20_005, vec![record("b", 9)]);
    assert!(heart.polled(30_000, 30_005, vec![record("b", 9)]), "a fenced node sees what is");
}

#[test]
fn a_view_of_a_peer_counts_from_when_redis_gave_it() {
    let mut heart = among_others();
    for beat in 1..10 {
        heart.poll_failed(beat * BEAT_MS);
        heart.renewed_for(beat * BEAT_MS, beat * BEAT_MS + 20, Renewal::Renewed);
        assert!(!heart.viewed(beat * BEAT_MS - 700, beat * BEAT_MS + 20, vec![record("a", 7), record("b", 9)]));
        assert_eq!(heart.serve_until_ms(), beat * BEAT_MS - 700 + PROOF_MS);
    }
    assert!(!heart.viewed(8_000, 9_100, vec![record("a", 7)]), "older than what it has");
    assert!(!heart.viewed(9_000, 9_100, vec![record("b", 9)]), "a view without this node");
    assert!(heart.viewed(9_000, 9_100, vec![record("a", 7)]));
}

#[test]
fn a_name_that_another_holds_fences_until_it_is_free() {
    let mut heart = alone();
    heart.renewed(1_000, 1_005, Renewal::LostToAnother);
    for now_ms in [2_000, 3_000, 60_000] {
        assert_eq!((heart.fenced(), heart.ask(now_ms)), (Some(Fenced::Lost), Ask::Acquire));
        heart.refused(now_ms + 5);
    }
    // Redis is not to blame.
    assert_eq!(heart.redis_failing_ms(), None);
    assert!(!heart.acquired(61_000, 61_005, 7), "an incarnation that is not higher");
    assert_eq!(heart.fenced(), Some(Fenced::Lost));
    assert!(heart.acquired(62_000, 62_005, 9));
    assert_eq!(heart.fenced(), None);
}

#[test]
fn a_name_taken_while_redis_had_no_lease_fences() {
    let mut heart = alone();
    heart.renewed(1_000, 1_005, Renewal::LostToNobody);
    heart.refused(1_010);
    assert_eq!(heart.fenced(), Some(Fenced::Lost));
}

#[test]
fn torn_presence_is_mended_once_redis_works_and_once_a_lease() {
    let mut heart = alone();
    heart.presence_torn();
    assert_eq!(heart.ask(1_000), Ask::Renew, "too soon after the last incarnation");
    heart.renew_failed(1_900);
    heart.vouched(1_900, 1_900);
    renew_in_vain_until(&mut heart, 7_000);
    assert_eq!(heart.ask(7_000), Ask::Renew, "Redis does not work");
    heart.renewed(7_000, 7_005, Renewal::Renewed);
    assert_eq!(heart.ask(7_010), Ask::Acquire);
    assert!(heart.acquired(7_010, 7_015, 8));
    assert_eq!(heart.ask(20), Ask::Renew);
    heart.presence_torn();
    assert_eq!(heart.ask(8_000), Ask::Renew);
}

fn renew_in_vain_until(heart: &mut Heart, until_ms: u64) {
    for now_ms in (2_000..until_ms).step_by(1_000) {
        heart.renew_failed(now_ms);
        heart.vouched(now_ms, now_ms);
    }
}

#[test]
fn the_view_has_the_epoch_of_the_cluster() {
    let mut heart = among_others();
    let view = heart.view();
    heart.set_epoch(view.digest, 40);
    assert_eq!(heart.view().epoch, 40);
    assert!(heart.polled(1_000, 1_005, vec![record("a", 7)]));
    assert_eq!((heart.view().epoch, heart.view().members.len()), (41, 1));
}
