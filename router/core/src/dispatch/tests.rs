//! The rules of the dispatch, one by one, and that a cluster as a whole is served evenly.

use super::*;
use crate::membership::Membership;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::Arc;

fn record(name: &str, state: NodeState, weight: u32, connections: u64) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation: 1,
        state,
        weight,
        shards: 2,
        mesh: "127.0.0.1:7790".into(),
        advertise: format!("{name}:7700"),
        http: String::new(),
        protocol: 1,
        connections,
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

fn active(name: &str, weight: u32, connections: u64) -> NodeRecord {
    record(name, NodeState::Active, weight, connections)
}

fn view(records: &[NodeRecord]) -> Arc<View> {
    let mut membership = Membership::new(None, 5_000);
    membership.polled(0, records.to_vec());
    membership.view()
}

/// A dispatch, its view, and a source of randomness that is the same for every run.
struct Fixture {
    dispatch: Dispatch,
    view: Arc<View>,
    rng: StdRng,
    now_ms: u64,
}

impl Fixture {
    fn new(records: &[NodeRecord]) -> Self {
        Fixture::with_slow_start(records, 0)
    }

    fn with_slow_start(records: &[NodeRecord], slow_start_ms: u64) -> Self {
        let dispatch = Dispatch::new(slow_start_ms).unwrap();
        let mut fixture = Fixture { dispatch, view: view(records), rng: StdRng::seed_from_u64(7), now_ms: 0 };
        fixture.poll(records);
        fixture
    }

    fn poll(&mut self, records: &[NodeRecord]) {
        self.view = view(records);
        self.dispatch.polled(self.now_ms, &self.view).unwrap();
    }

    fn pick(&mut self, strategy: Strategy, user: u64) -> Result<String, NoNode> {
        self.ask(Wish { user, strategy, zone: "", failed: &[] })
    }

    fn ask(&mut self, wish: Wish<'_>) -> Result<String, NoNode> {
        let record = self.dispatch.pick(self.now_ms, &self.view, wish, &mut self.rng)?;
        Ok(record.name.clone())
    }

    /// A user of a zone, by least-conn.
    fn ask_from(&mut self, zone: &str) -> String {
        self.ask(Wish { user: 1, strategy: Strategy::LeastConn, zone, failed: &[] }).unwrap()
    }

    /// A user who could not reach a node asks again.
    fn ask_after_failure(&mut self, user: u64, strategy: Strategy, failed: &str) -> String {
        self.ask(Wish { user, strategy, zone: "", failed: &[failed.to_owned()] }).unwrap()
    }

    fn counts(&mut self, strategy: Strategy, picks: u64) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for user in 1..=picks {
            *counts.entry(self.pick(strategy, user).unwrap()).or_default() += 1;
        }
        counts
    }
}

#[test]
fn home_is_the_owner_of_the_ring() {
    let mut fixture = Fixture::new(&[active("a", 1, 0), active("b", 3, 0)]);
    let ring = fixture.view.ring.clone().unwrap();
    for user in (1..500).chain([u64::MAX]) {
        assert_eq!(fixture.pick(Strategy::Home, user).unwrap(), ring.owner(user).name());
    }
}

#[test]
fn round_robin_follows_the_weights_and_goes_on_over_a_poll() {
    let records = [active("a", 5, 0), active("b", 1, 0), active("c", 1, 0)];
    let mut fixture = Fixture::new(&records);
    let mut order = String::new();
    for user in 1..=7 {
        order += &fixture.pick(Strategy::WeightedRoundRobin, user).unwrap();
        fixture.poll(&records);
    }
    assert_eq!(order, "aabacaa");
}

#[test]
fn a_burst_does_not_go_to_the_node_that_was_least_loaded_at_its_beginning() {
    let mut fixture = Fixture::new(&[active("a", 1, 100), active("b", 1, 100), active("c", 1, 90)]);
    let counts = fixture.counts(Strategy::LeastConn, 310);
    assert_eq!(counts, BTreeMap::from([("a".into(), 100), ("b".into(), 100), ("c".into(), 110)]));
    // Homes count too, and random-two sees them.
    let counts = fixture.counts(Strategy::RandomTwo, 3_000);
    assert!(counts.values().all(|count| (900..1_100).contains(count)), "{counts:?}");
}

#[test]
fn what_was_sent_counts_until_the_records_can_have_it() {
    let records = [active("a", 1, 0), active("b", 1, 2)];
    let mut fixture = Fixture::new(&records);
    assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 2)]));
    // The record of a is from before the logins arrived.
    fixture.poll(&records);
    assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 1), ("b".into(), 1)]));
    // Now the records would have them, so what they say counts: a was left by all.
    fixture.poll(&records);
    fixture.poll(&records);
    assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 2)]));
}

#[test]
fn only_active_nodes_are_picked() {
    let records = [
        record("joining", NodeState::Joining, 1, 0),
        record("draining", NodeState::Draining, 1, 0),
        active("active", 1, 1_000_000),
    ];
    let mut fixture = Fixture::new(&records);
    for strategy in Strategy::ALL {
        assert_eq!(fixture.counts(strategy, 50).len(), 1, "{strategy}");
    }
    let mut fixture = Fixture::new(&records[..2]);
    for strategy in Strategy::ALL {
        assert_eq!(fixture.pick(strategy, 1), Err(NoNode), "{strategy}");
    }
}

#[test]
fn a_cluster_at_its_limit_is_taken_and_absurd_records_do_no_harm() {
    let mut records: Vec<NodeRecord> = (0..NODES_MAX).map(|at| active(&format!("n{at:04}"), 1, u64::MAX)).collect();
    records.push(record("a-joining", NodeState::Joining, 1, 0));
    let mut fixture = Fixture::new(&records);
    assert_eq!(fixture.counts(Strategy::WeightedRoundRobin, 2_048).len(), NODES_MAX);
    fixture.pick(Strategy::LeastConn, 1).unwrap();
}

#[test]
fn names_are_read_as_they_are_written() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
        assert_eq!(serde_json::to_value(strategy).unwrap(), strategy.name());
    }
    let error = "fastest".parse::<Strategy>().unwrap_err().to_string();
    assert!(error.contains("least-conn") && error.contains("home"), "{error}");
}

fn in_zone(name: &str, zone: &str, connections: u64) -> NodeRecord {
    NodeRecord { zone: zone.into(), ..active(name, 1, connections) }
}

#[test]
fn a_client_that_could_not_reach_a_node_gets_another() {
    let mut fixture = Fixture::new(&[active("a", 1, 0), active("b", 1, 5), active("c", 1, 9)]);
    assert_eq!(fixture.pick(Strategy::LeastConn, 1).unwrap(), "a");
    for strategy in Strategy::ALL {
        for (user, failed) in [(10, "a"), (11, "b"), (12, "c")] {
            assert_ne!(fixture.ask_after_failure(user, strategy, failed), failed, "{strategy}");
        }
    }
    // Who could reach nobody is sent somewhere all the same: it may work this time.
    let all = ["a", "b", "c"].map(str::to_owned);
    fixture.ask(Wish { user: 1, strategy: Strategy::LeastConn, zone: "", failed: &all }).unwrap();
}

#[test]
fn three_users_take_a_node_out_and_one_login_tries_it_again() {
    let records = [active("a", 1, 0), active("b", 1, 500), active("c", 1, 500)];
    let mut fixture = Fixture::new(&records);
    for user in 1..=2 {
        fixture.ask_after_failure(user, Strategy::LeastConn, "a");
        // The same user again, and a node that nobody knows.
        fixture.ask_after_failure(user, Strategy::LeastConn, "a");
        fixture.ask_after_failure(user, Strategy::LeastConn, "x");
    }
    assert!((0..9).any(|user| fixture.pick(Strategy::LeastConn, 100 + user).unwrap() == "a"));
    fixture.ask_after_failure(3, Strategy::LeastConn, "a");
    let stats = fixture.dispatch.stats();
    assert_eq!((stats.reports_counted, stats.reports_ignored, stats.suspended), (3, 4, 1));
    for strategy in Strategy::ALL {
        assert!((100..200).all(|user| fixture.pick(strategy, user).unwrap() != "a"), "{strategy}");
    }
    // One tries it, and only one.
    fixture.now_ms = FAIL_TIMEOUT_MS;
    fixture.poll(&records);
    let tried = (0..100).filter(|user| fixture.pick(Strategy::LeastConn, 1_000 + user).unwrap() == "a").count();
    assert_eq!(tried, 1);
    // It says that it failed, and the node stays out; the next says nothing, and the node is in again.
    fixture.ask_after_failure(4, Strategy::LeastConn, "a");
    fixture.now_ms += FAIL_TIMEOUT_MS;
    let tried = (0..100).filter(|user| fixture.pick(Strategy::LeastConn, 2_000 + user).unwrap() == "a").count();
    assert_eq!(tried, 1);
    fixture.now_ms += FAIL_TIMEOUT_MS;
    fixture.poll(&records);
    assert_eq!(fixture.dispatch.stats().suspended, 0);
    assert!((0..100).filter(|user| fixture.pick(Strategy::LeastConn, 3_000 + user).unwrap() == "a").count() > 30);
}

#[test]
fn a_home_that_is_out_is_tried_by_one_login_too() {
    let records = [active("a", 1, 0), active("b", 1, 0), active("c", 1, 0)];
    let mut fixture = Fixture::new(&records);
    let ring = fixture.view.ring.clone().unwrap();
    let of_a: Vec<u64> = (1..).filter(|user| ring.owner(*user).name() == "a").take(60).collect();
    (1..=3).for_each(|user| drop(fixture.ask_after_failure(user, Strategy::LeastConn, "a")));
    let home = |fixture: &mut Fixture, users: &[u64]| {
        users.iter().filter(|user| fixture.pick(Strategy::Home, **user).unwrap() == "a").count()
    };
    assert_eq!(home(&mut fixture, &of_a[..20]), 0);
    fixture.now_ms = FAIL_TIMEOUT_MS;
    assert_eq!(home(&mut fixture, &of_a[20..40]), 1);
    fixture.now_ms = 2 * FAIL_TIMEOUT_MS;
    fixture.poll(&records);
    assert_eq!(home(&mut fixture, &of_a[40..]), 20);
}

#[test]
fn reports_never_take_more_than_half_of_the_nodes_out() {
    for nodes in 1..=9_u64 {
        let records: Vec<NodeRecord> = (0..nodes).map(|at| active(&format!("n{at}"), 1, 0)).collect();
        let mut fixture = Fixture::new(&records);
        for user in 1..=100 {
            for record in &records {
                fixture.ask_after_failure(user, Strategy::RandomTwo, &record.name);
            }
        }
        assert_eq!(fixture.dispatch.stats().suspended, nodes / 2, "{nodes}");
        Strategy::ALL.into_iter().for_each(|strategy| drop(fixture.pick(strategy, 1).unwrap()));
    }
}

#[test]
fn the_own_zone_is_preferred_until_it_is_full_and_left_when_it_is_gone() {
    let records =
        [in_zone("a1", "a", 1_000), in_zone("a2", "a", 1_100), in_zone("b1", "b", 1_000), in_zone("b2", "b", 1_000)];
    let mut fixture = Fixture::new(&records);
    for _ in 0..100 {
        assert!(fixture.ask_from("b").starts_with('b') && fixture.ask_from("a").starts_with('a'));
    }
    assert_eq!(fixture.dispatch.stats().spilled, 0);
    // Without a zone, and from one that no node has, anywhere.
    // The logins before have made zone a the fuller one, so it is not the first.
    assert!(
        (0..200).any(|_| fixture.ask_from("").starts_with('a'))
            && (0..200).any(|_| fixture.ask_from("c").starts_with('b'))
    );
    // More than a quarter above the average: everybody helps.
    let loaded =
        [in_zone("a1", "a", 9_000), in_zone("a2", "a", 9_000), in_zone("b1", "b", 1_000), in_zone("b2", "b", 1_000)];
    let mut fixture = Fixture::new(&loaded);
    assert!((0..50).all(|_| fixture.ask_from("a").starts_with('b')) && fixture.dispatch.stats().spilled == 50);
    // Its nodes are out, one by reports and one by draining.
    let draining = NodeRecord { state: NodeState::Draining, ..in_zone("a2", "a", 0) };
    let mut fixture =
        Fixture::new(&[in_zone("a1", "a", 0), draining, in_zone("b1", "b", 500), in_zone("b2", "b", 500)]);
    assert_eq!(fixture.ask_from("a"), "a1");
    (1..=3).for_each(|user| drop(fixture.ask_after_failure(user, Strategy::LeastConn, "a1")));
    assert!(fixture.ask_from("a").starts_with('b'));
}

#[test]
fn a_node_that_comes_is_not_flooded_by_any_number_of_routers() {
    const NODES: u64 = 10;
    const ROUTERS: u64 = 20;
    const LOGINS: u64 = 30;
    let mut records: Vec<NodeRecord> = (0..NODES).map(|at| active(&format!("n{at}"), 1, 10_000)).collect();
    let mut routers: Vec<Fixture> = (0..ROUTERS).map(|_| Fixture::with_slow_start(&records, 30_000)).collect();
    records.push(active("new", 1, 0));
    let (mut most, mut total) = (0, 0);
    for second in 1..=60 {
        let mut got = 0;
        for router in &mut routers {
            router.now_ms = second * 1_000;
            router.poll(&records);
            let to_new = (0..LOGINS).filter(|user| router.pick(Strategy::LeastConn, *user).unwrap() == "new").count();
            got += to_new as u64;
        }
        records.last_mut().unwrap().connections += got;
        total += got;
        most = most.max(got);
        if second == 1 {
            // Its weight has hardly begun to climb.
            assert!(got <= ROUTERS * LOGINS * 2 / (NODES + 1) + ROUTERS, "{got} in the first second");
        }
    }
    // Twice its share of 600 logins a second, and what each router's pace rounds up to; without a bound it would be all
    // 600.
    assert!(most <= ROUTERS * LOGINS * 2 / (NODES + 1) + ROUTERS * 8, "{most} in a second");
    assert!(total > ROUTERS * LOGINS * 60 / (NODES + 1), "it fills all the same: {total}");
}

#[test]
fn the_weight_of_a_node_that_comes_climbs() {
    let mut records = vec![active("a", 1, 0), active("b", 1, 0)];
    let mut fixture = Fixture::with_slow_start(&records, 30_000);
    records.push(active("c", 1, 0));
    let mut share = |now_ms| {
        fixture.now_ms = now_ms;
        fixture.poll(&records);
        *fixture.counts(Strategy::WeightedRoundRobin, 300).get("c").unwrap_or(&0)
    };
    let shares = [0, 7_500, 15_000, 30_000].map(&mut share);
    assert!(shares[0] <= 3 && (50..=70).contains(&shares[2]) && (95..=105).contains(&shares[3]), "{shares:?}");
    assert!(shares.is_sorted(), "{shares:?}");
}
