use super::*;

const LEASE_MS: u64 = 5_000;
const BEAT_MS: u64 = 1_000;

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
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
    }
}

/// A heart that beats: its lease is taken at 0, and each of `records` is in the view.
fn beating(records: &[NodeRecord]) -> Heart {
    let mut heart = Heart::new("a", LEASE_MS);
    assert_eq!((heart.ask(0), heart.fenced()), (Ask::Acquire, Some(Fenced::NotAcquired)));
    assert!(heart.acquired(0, 10, 7));
    heart.polled(20, records.to_vec());
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
        assert_eq!(heart.serve_until_ms(), beat * BEAT_MS + LEASE_MS);
    }
    assert_eq!(heart.fenced(), None);
}

#[test]
fn a_node_that_was_paused_is_fenced_at_the_first_look() {
    for mut heart in [alone(), among_others()] {
        renew(&mut heart, 1_000);
        assert!(heart.look(5_999));
        assert!(!heart.look(16_000));
        assert_eq!((heart.fenced(), heart.serve_until_ms()), (Some(Fenced::Silent), 0));
        assert_eq!(heart.ask(16_000), Ask::Acquire);
    }
}

#[test]
fn news_that_waited_while_the_node_was_paused_do_not_lift_the_fence() {
    let all_news: [fn(&mut Heart); 5] = [
        |heart| heart.renewed(1_000, 16_000, Renewal::Renewed),
        |heart| heart.renew_failed(16_000),
        |heart| {
            heart.polled(16_000, vec![record("a", 7)]);
        },
        |heart| {
            heart.poll_failed(16_000);
        },
        |heart| heart.renewed(1_000, 16_000, Renewal::LostToNobody),
    ];
    for news in all_news {
        let mut heart = alone();
        news(&mut heart);
        assert_eq!(heart.fenced(), Some(Fenced::Silent));
        assert_eq!(heart.ask(16_001), Ask::Acquire);
        assert!(heart.acquired(16_002, 16_010, 8));
        assert_eq!((heart.fenced(), heart.incarnation(), heart.serve_until_ms()), (None, 8, 21_002));
        assert_eq!(heart.ask(16_011), Ask::Renew);
    }
}

#[test]
fn a_node_alone_serves_on_however_long_redis_is_out() {
    let mut heart = alone();
    for beat in 1..600 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
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
    for beat in 1..=4 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
    }
    assert!(heart.look(4_999));
    assert!(!heart.look(5_000));
    assert_eq!(heart.fenced(), Some(Fenced::Isolated));
}

#[test]
fn a_node_that_peers_confirm_serves_on_while_redis_is_out() {
    let mut heart = among_others();
    for beat in 1..60 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
        heart.peers_confirmed(beat * BEAT_MS + 950, 7);
        heart.peers_confirmed(beat * BEAT_MS + 950, 6);
        assert!(heart.look((beat + 1) * BEAT_MS));
    }
}

#[test]
fn a_redis_without_the_lease_gives_a_new_incarnation_without_a_fence() {
    let mut heart = alone();
    for beat in 1..30 {
        beat_in_vain(&mut heart, beat * BEAT_MS);
    }
    heart.renewed(30_000, 30_005, Renewal::LostToNobody);
    assert_eq!((heart.fenced(), heart.redis_failing_ms()), (None, Some(1_900)));
    assert_eq!(heart.ask(30_010), Ask::Acquire);
    assert!(heart.acquired(30_010, 30_015, 8));
    heart.polled(30_020, vec![record("a", 8)]);
    assert_eq!((heart.ask(31_000), heart.redis_failing_ms()), (Ask::Renew, None));
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
    }
}

#[test]
fn the_view_has_the_epoch_of_the_cluster() {
    let mut heart = among_others();
    let view = heart.view();
    heart.set_epoch(view.digest, 40);
    assert_eq!(heart.view().epoch, 40);
    assert!(heart.polled(1_000, vec![record("a", 7)]));
    assert_eq!((heart.view().epoch, heart.view().members.len()), (41, 1));
}
