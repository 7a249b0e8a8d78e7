use super::*;
use rand::{Rng, RngExt};

const CALLER: Caller = Caller::own(0, ConnId { slot: 1, generation: 1 });

/// A desk, and servers that do as the test says.
struct World {
    desk: Desk,
    stats: Arc<ShardStats>,
    /// Requests under way.
    runs: Vec<Run>,
    /// Answers: the call's id and its status.
    told: Vec<(u64, u16)>,
    /// Parts of answers: the call's id and the text.
    parts: Vec<(u64, Bytes)>,
    aborted: Vec<u64>,
    now_ms: u64,
}

fn address(at: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9_000 + at))
}

/// This service, of whose servers so many are known, on ports from 9000 on.
fn world(text: &str, servers: u16) -> World {
    let spec: ServiceSpec = text.parse().unwrap();
    let stats = Arc::new(ShardStats::default());
    let mut desk = Desk::new(&[spec], 100, stats.clone(), 1);
    (0..servers).for_each(|at| desk.resolved(7, at.into(), &[address(at)], 0));
    World { desk, stats, runs: Vec::new(), told: Vec::new(), parts: Vec::new(), aborted: Vec::new(), now_ms: 0 }
}

fn ok(body: &'static str) -> End {
    End::Answered { http: 200, own: None, body: Bytes::from_static(body.as_bytes()) }
}

fn http(http: u16) -> End {
    End::Answered { http, own: None, body: Bytes::from_static(b"said") }
}

impl World {
    fn call(&mut self, id: u64, flags: u8) {
        let letter = Letter { service: 7, user: id, id, head: CallHead::default(), body: Bytes::new(), again: false };
        self.desk.call(NewCall { caller: CALLER, flags, letter }, 1 << 20, self.now_ms);
        self.act();
    }

    fn act(&mut self) {
        while let Some(deed) = self.desk.next_deed() {
            match deed {
                Deed::Start(run) => self.runs.push(run),
                Deed::Abort { token } => self.aborted.push(token),
                Deed::Part { id, body, .. } => self.parts.push((id, body)),
                Deed::Answer { id, status, .. } => self.told.push((id, status)),
            }
        }
    }

    /// Ends the oldest request.
    fn end(&mut self, end: End) {
        let run = self.runs.remove(0);
        self.desk.ended(run.at, end, 1_000, self.now_ms);
        self.act();
    }

    fn ports(&self) -> Vec<u16> {
        self.runs.iter().map(|run| run.at.address.port() - 9_000).collect()
    }

    fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        self.desk.tick(self.now_ms);
        self.act();
    }

    fn assert_empty(&self) {
        assert!(self.desk.calls.is_empty() && self.desk.by_caller.is_empty());
        assert_eq!((self.desk.bytes(), self.desk.waiting(), self.desk.running()), (0, 0, 0));
        for service in self.desk.services.values() {
            assert_eq!(service.waiting, 0);
            assert!(service.balancer.servers(0).all(|state| state.conns == 0));
        }
    }
}

const TWO: &str = "7,transport=http,server=127.0.0.1:9000,server=127.0.0.1:9001";

#[test]
fn weights_share_out_calls_exactly_and_max_conns_is_never_exceeded() {
    let mut world = world("7,transport=http,server=127.0.0.1:9000,server=127.0.0.1:9001 weight=3", 2);
    for id in 1..=400 {
        world.call(id, 0);
    }
    // 128 for each: the first has its quarter of what both have had.
    let ports = world.ports();
    assert_eq!(ports.len(), 100, "as many as there may be connections in all");
    assert_eq!(ports.iter().filter(|port| **port == 0).count(), 25);
    while !world.runs.is_empty() {
        world.end(ok(""));
        assert!(world.desk.running() <= 100);
    }
    assert_eq!(world.told.len(), 400);
    assert!(world.told.iter().all(|(_, status)| *status == 0));
    let limited = "7,transport=http,server=127.0.0.1:9000 max_conns=2,server=127.0.0.1:9001 max_conns=1 weight=9";
    let mut world = self::world(limited, 2);
    (1..=10).for_each(|id| world.call(id, 0));
    let mut ports = world.ports();
    ports.sort_unstable();
    assert_eq!((ports, world.desk.waiting()), (vec![0, 0, 1], 7));
    while !world.runs.is_empty() {
        world.end(ok(""));
        assert!(world.ports().iter().filter(|port| **port == 1).count() <= 1);
    }
    world.assert_empty();
}

#[test]
fn nothing_handed_over_goes_to_another_server_and_what_was_does_not() {
    let mut world = world(TWO, 2);
    world.call(1, 0);
    assert_eq!(world.ports(), [0]);
    world.end(End::NotSent);
    assert_eq!(world.ports(), [1]);
    assert!(!world.runs[0].letter.again, "nobody else has seen it");
    world.end(End::NotSent);
    assert_eq!(world.told.pop(), Some((1, 18)), "every server was tried once");
    for (end, status) in [
        (End::Broken, 25),
        (http(500), 25),
        (http(503), 14),
        (http(429), 14),
        (http(404), 20),
        (http(302), 25),
        (End::TooLarge, 25),
        (End::NoRoom, 25),
        (ok("done"), 0),
    ] {
        // Long enough for what has failed to be tried again.
        world.now_ms += 100_000;
        world.call(2, 0);
        world.end(end.clone());
        assert_eq!(world.told.pop(), Some((2, status)), "{end:?}");
        assert!(world.runs.is_empty());
    }
    world.assert_empty();
}

#[test]
fn an_answer_in_parts_ends_once_and_its_call_goes_to_nobody_else() {
    for (end, status) in
        [(ok(""), 0), (End::Broken, 25), (End::TimedOut, 24), (End::TooLarge, 25), (End::NoRoom, 25), (http(503), 25)]
    {
        let mut world = world(TWO, 2);
        world.call(1, call_flags::SAFE);
        let at = world.runs[0].at;
        for text in ["one", "two"] {
            world.desk.part(at, 0, Bytes::from_static(text.as_bytes()));
        }
        world.end(end.clone());
        assert_eq!(world.parts, [(1, Bytes::from_static(b"one")), (1, Bytes::from_static(b"two"))]);
        assert_eq!(world.told, [(1, status)], "{end:?}");
        assert!(world.runs.is_empty(), "{end:?}");
        assert_eq!(world.stats.limit_upstream_more.get(), u64::from(end == End::TimedOut));
        world.assert_empty();
    }
    // What comes after nobody waits any more is nobody's.
    let mut world = world(TWO, 2);
    world.call(1, 0);
    world.desk.cancel(CALLER, 1, 0);
    let at = world.runs[0].at;
    world.desk.part(at, 0, Bytes::from_static(b"late"));
    world.end(End::Aborted);
    assert!(world.parts.is_empty() && world.told.is_empty());
    assert_eq!(world.stats.upstream_parts_late.get(), 1);
    world.assert_empty();
}

#[test]
fn a_safe_call_whose_server_broke_or_refused_is_carried_out_by_another_one_once_more_and_no_more() {
    for flags_or_idempotent in [TWO.to_owned(), format!("{TWO},idempotent,server=127.0.0.1:9002")] {
        let flags = if flags_or_idempotent.contains("idempotent") { 0 } else { call_flags::SAFE };
        let servers = if flags == 0 { 3 } else { 2 };
        let mut world = world(&flags_or_idempotent, servers);
        world.call(1, flags);
        world.end(End::Broken);
        assert_eq!(world.runs.len(), 1);
        assert!(world.runs[0].letter.again && world.runs[0].at.address != address(0));
        world.end(http(503));
        assert_eq!(world.told.pop(), Some((1, 25)), "the first one may have done it");
        world.call(2, flags);
        world.end(http(429));
        world.end(ok(""));
        assert_eq!(world.told.pop(), Some((2, 0)));
        assert_eq!(world.stats.upstream_retries.get(), 2);
        world.assert_empty();
    }
}

#[test]
fn retries_have_a_budget() {
    let mut world = world(TWO, 2);
    for id in 1..=100 {
        world.call(id, 0);
    }
    // All of those under way lose their server at once: ten, and a fifth of a hundred, may go to the other one.
    for _ in 0..100 {
        world.end(End::NotSent);
    }
    assert!(world.stats.upstream_retries.get() <= 30, "{}", world.stats.upstream_retries.get());
    assert!(world.told.iter().all(|(_, status)| *status == 18));
}

#[test]
fn calls_wait_in_order_up_to_the_queue_and_for_no_longer_than_their_time() {
    let text = "7,transport=http,queue=2,call_timeout_ms=1000,server=127.0.0.1:9000 max_conns=1";
    let mut world = world(text, 1);
    (1..=4).for_each(|id| world.call(id, 0));
    assert_eq!((world.runs.len(), world.desk.waiting(), world.told.pop()), (1, 2, Some((4, 14))));
    assert_eq!(world.stats.limit_upstream_queue.get(), 1);
    world.end(ok(""));
    assert_eq!((world.runs[0].letter.id, world.told.pop()), (2, Some((1, 0))));
    world.tick(999);
    assert!(world.told.is_empty());
    world.tick(1);
    assert_eq!(world.told.pop(), Some((3, 14)), "it was not carried out");
    world.end(End::TimedOut);
    assert_eq!(world.told.pop(), Some((2, 24)));
    world.assert_empty();
}

#[test]
fn a_server_that_fails_is_left_alone_and_a_backup_takes_over_and_checks_take_one_out_too() {
    let text = "7,transport=http,server=127.0.0.1:9000 max_fails=2 fail_timeout_secs=5,server=127.0.0.1:9001 backup";
    let mut world = world(text, 2);
    for id in 1..=2 {
        world.call(id, 0);
        world.end(http(503));
    }
    world.call(3, 0);
    assert_eq!(world.ports(), [1]);
    world.end(ok(""));
    world.now_ms = 5_000;
    world.call(4, 0);
    assert_eq!(world.ports(), [0], "one call tries it again");
    world.end(ok(""));
    world.desk.checked(7, address(0), false, 5_000);
    world.call(5, 0);
    assert_eq!(world.ports(), [0], "one check that fails is none");
    world.end(ok(""));
    world.desk.checked(7, address(0), false, 5_000);
    world.call(6, 0);
    assert_eq!(world.ports(), [1]);
    world.end(ok(""));
    world.desk.checked(7, address(0), true, 5_000);
    world.call(7, 0);
    assert_eq!(world.ports(), [0]);
    world.end(ok(""));
    world.assert_empty();
}

#[test]
fn a_call_that_is_taken_back_is_aborted_and_its_place_is_free_when_its_connection_is_closed() {
    let mut world = world("7,transport=http,server=127.0.0.1:9000 max_conns=1", 1);
    world.call(1, 0);
    world.call(2, 0);
    world.desk.cancel(CALLER, 1, 0);
    world.act();
    assert_eq!((world.aborted.len(), world.runs.len()), (1, 1), "the connection is still there");
    world.end(End::Aborted);
    assert_eq!(world.runs[0].letter.id, 2);
    world.desk.cancel(CALLER, 2, 0);
    world.act();
    // Its answer has come all the same.
    world.end(ok(""));
    assert!(world.told.is_empty());
    world.assert_empty();
}

#[test]
fn a_name_that_stands_for_other_addresses_moves_calls_and_one_that_stands_for_none_ends_them() {
    let mut world = world("7,transport=http,server=orders:9000 resolve", 0);
    world.call(1, 0);
    assert_eq!(world.told.pop(), Some((1, 18)), "nobody knows yet where it is");
    world.desk.resolved(7, 0, &[address(1), address(2), address(1)], 0);
    (2..=5).for_each(|id| world.call(id, 0));
    let mut ports = world.ports();
    ports.sort_unstable();
    assert_eq!(ports, [1, 1, 2, 2]);
    world.desk.resolved(7, 0, &[address(3)], 0);
    world.call(6, 0);
    assert_eq!(world.ports().last(), Some(&3));
    while !world.runs.is_empty() {
        world.end(ok(""));
    }
    assert_eq!(world.told.len(), 5);
    world.assert_empty();
}

#[test]
fn servers_that_are_there_from_the_start_have_their_whole_weight_and_one_that_comes_climbs() {
    let slow = "slow_start_secs=60";
    let servers =
        format!("server=127.0.0.1:9000 {slow},server=127.0.0.1:9001 {slow},server=orders:9000 {slow} resolve");
    let mut world = world(&format!("7,transport=http,{servers}"), 3);
    (1..=6).for_each(|id| world.call(id, 0));
    assert_eq!(world.ports(), [0, 1, 2, 0, 1, 2]);
    world.desk.resolved(7, 2, &[address(2), address(3)], 0);
    (7..=15).for_each(|id| world.call(id, 0));
    assert!(!world.ports().contains(&3), "{:?}", world.ports());
    world.now_ms = 60_000;
    (16..=19).for_each(|id| world.call(id, 0));
    assert!(world.ports().contains(&3), "{:?}", world.ports());
}

#[test]
fn a_server_that_is_down_gets_no_calls_and_none_are_left_if_all_are() {
    let mut world = world("7,transport=http,server=127.0.0.1:9000 down,server=127.0.0.1:9001", 2);
    (1..=3).for_each(|id| world.call(id, 0));
    assert_eq!(world.ports(), [1, 1, 1]);
    let mut world = self::world("7,transport=http,server=127.0.0.1:9000 down", 1);
    world.call(1, 0);
    assert_eq!(world.told, [(1, 18)]);
    world.assert_empty();
}

#[test]
fn a_hash_keeps_the_calls_of_one_key_with_one_server() {
    for option in ["key=user", "key=peer", "key=address"] {
        let servers = "server=127.0.0.1:9000,server=127.0.0.1:9001,server=127.0.0.1:9002";
        let mut world = world(&format!("7,transport=http,policy=consistent-hash,{option},{servers}"), 3);
        for id in 1..=60 {
            // Six of what counts, and sixty of all else.
            let of = |counts: &str| if option == counts { id % 6 + 1 } else { id };
            let (user, peer, address) = (of("key=user"), of("key=peer"), format!("10.0.0.{}", of("key=address")));
            let head = CallHead { routing_key: peer, address, ..CallHead::default() };
            let letter = Letter { service: 7, user, id, head, body: Bytes::new(), again: false };
            world.desk.call(NewCall { caller: CALLER, flags: 0, letter }, 1 << 20, 0);
            world.act();
        }
        let ports = world.ports();
        assert_eq!(ports.len(), 60);
        assert!((6..60).all(|at| ports[at] == ports[at - 6]), "{option}: {ports:?}");
        assert!(ports.iter().any(|port| *port != ports[0]), "{option}");
    }
}

#[test]
fn what_finds_no_room_is_refused() {
    let mut world = world(TWO, 2);
    let letter = Letter {
        service: 7,
        user: 1,
        id: 1,
        head: CallHead::default(),
        body: Bytes::from(vec![0; 5_000]),
        again: false,
    };
    world.desk.call(NewCall { caller: CALLER, flags: 0, letter }, 5_000, 0);
    world.act();
    assert_eq!((world.told.pop(), world.stats.limit_upstream_bytes.get()), (Some((1, 14)), 1));
    world.assert_empty();
}

/// Whatever servers, callers and time do: one answer for each call that was not taken back, bounds hold, and nothing
/// that may have been carried out goes to a second server unless that does no harm.
#[test]
fn every_call_has_exactly_one_end_whatever_happens() {
    for seed in 0..200 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let conns = rng.random_range(1..4);
        let text = format!(
            "7,transport=http,queue=5,call_timeout_ms=1000,server=127.0.0.1:9000 max_conns={conns},\
             server=127.0.0.1:9001 max_conns=2 weight=3 max_fails=1 fail_timeout_secs=1,server=127.0.0.1:9002 backup"
        );
        let mut world = world(&text, 3);
        let (mut next, mut open, mut gone) = (1, Vec::new(), Vec::new());
        let mut given: HashMap<u64, u32> = HashMap::new();
        for _ in 0..400 {
            match rng.random_range(0..10) {
                0..=3 => {
                    let safe = next % 3 == 0;
                    open.push(next);
                    world.call(next, if safe { call_flags::SAFE } else { 0 });
                    next += 1;
                }
                4..=6 if !world.runs.is_empty() => {
                    let at = rng.random_range(0..world.runs.len());
                    let run = world.runs.swap_remove(at);
                    let ends = [ok(""), End::NotSent, End::Broken, End::TimedOut, http(503), http(500), End::TooLarge];
                    let end = ends[rng.random_range(0..ends.len())].clone();
                    if end != End::NotSent {
                        *given.entry(run.letter.id).or_default() += 1;
                    }
                    world.desk.ended(run.at, end, rng.next_u64() % 1_000_000, world.now_ms);
                    world.act();
                }
                7 if !open.is_empty() => {
                    let id = open.swap_remove(rng.random_range(0..open.len()));
                    world.desk.cancel(CALLER, id, world.now_ms);
                    gone.push(id);
                    world.act();
                }
                8 => world.tick(rng.random_range(0..800)),
                _ => {}
            }
            assert!(world.desk.waiting() <= 5, "seed {seed}");
            let of = |port| world.ports().iter().filter(|at| **at == port).count();
            assert!(of(0) <= conns && of(1) <= 2, "seed {seed}");
        }
        while !world.runs.is_empty() || world.desk.waiting() > 0 {
            if world.runs.is_empty() {
                world.tick(1_000);
            } else {
                world.end(ok(""));
            }
        }
        let mut told: Vec<u64> = world.told.iter().map(|(id, _)| *id).collect();
        told.sort_unstable();
        let once = told.len();
        told.dedup();
        assert_eq!(told.len(), once, "seed {seed}: one call had two answers");
        let unanswered = (1..next).filter(|id| told.binary_search(id).is_err());
        assert!(unanswered.clone().all(|id| gone.contains(&id)), "seed {seed}: {:?}", unanswered.collect::<Vec<_>>());
        assert!(given.iter().all(|(id, times)| *times <= if id % 3 == 0 { 2 } else { 1 }), "seed {seed}: {given:?}");
        world.assert_empty();
    }
}
