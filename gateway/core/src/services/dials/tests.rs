use super::*;
use crate::services::ServiceSpec;
use std::collections::BTreeSet;

const A: &str = "10.0.0.1:9000";
const B: &str = "10.0.0.2:9000";

fn servers(text: &str) -> DialedServers {
    let spec: ServiceSpec = text.parse().expect(text);
    DialedServers::new(&[spec], |service| format!("key of {service}").into())
}

fn dials(text: &str, shard: u16, shards: u16) -> (DialedServers, Dials) {
    let servers = servers(text);
    let mut dials = Dials::new(servers.clone(), shard, shards);
    assert!(dials.look(0).is_empty());
    (servers, dials)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect(text)
}

/// So many look-ups as it takes to believe that others are gone.
fn resolved(servers: &DialedServers, at: usize, addresses: &[SocketAddr]) {
    (0..3).for_each(|_| assert_eq!(servers.resolved(at, addresses), 0));
}

fn one<T>(mut all: Vec<T>) -> T {
    assert_eq!(all.len(), 1, "there is one");
    all.remove(0)
}

/// Dials what is due; a token for each address.
fn due(dials: &mut Dials, now_ms: u64) -> Vec<(u32, String)> {
    dials.due(now_ms, 100).into_iter().map(|(token, address)| (token, address.to_string())).collect()
}

/// Brings the only server that is due to SERVE.
fn serve(dials: &mut Dials, slot: u32, now_ms: u64) -> Placing {
    let (token, _) = one(due(dials, now_ms));
    assert!(dials.connected(token, slot).is_some());
    let placing = dials.placing(slot).expect("it was dialed");
    dials.serves(slot, now_ms);
    placing
}

#[test]
fn a_server_is_dialed_greeted_and_takes_part_as_it_was_configured() {
    let text = format!("7,server={A} weight=5 backup max_conns=10 max_fails=2 fail_timeout_secs=4 slow_start_secs=9");
    let (_, mut dials) = dials(&text, 1, 4);
    let (token, address) = one(due(&mut dials, 0));
    assert_eq!((token & SERVER_DIAL, address.as_str()), (SERVER_DIAL, A));
    assert!(due(&mut dials, 0).is_empty(), "once");
    assert_eq!(dials.placing(3), None, "nobody was dialed into that slot");
    let greeting = dials.connected(token, 3).expect("it is waited for");
    assert_eq!((greeting.service, &*greeting.key), (7, "key of 7"));
    assert_eq!(dials.connected(token, 4), None, "a dial ends once");
    let rules = Rules { max_fails: 2, fail_timeout_ms: 4_000, slow_start_ms: 9_000 };
    let set = InstanceChange::default();
    let placing = Placing { name: A.into(), service: 7, weight: 5, backup: true, rules, cap: 3, is_back: false, set };
    assert_eq!(dials.placing(3), Some(placing.clone()));
    dials.serves(3, 5);
    assert_eq!(dials.placing(3), None, "SERVE is taken once");
    assert_eq!(dials.standings(), Standings { serving: 1, ..Standings::default() });
    assert_eq!(dials.ended(3, CloseReason::PeerReset, 20_000, 0), Some(ServerFailure::Lost));
    assert_eq!(serve(&mut dials, 5, 30_000), Placing { is_back: true, ..placing });
}

#[test]
fn what_may_be_called_at_once_is_shared_out_to_the_links_exactly() {
    for (shards, max_conns) in [(1, 7), (2, 7), (4, 7), (4, 2), (40, 100), (16, 1_048_560)] {
        let caps = (0..shards).map(|shard| {
            let (_, mut dials) = dials(&format!("7,server={A} max_conns={max_conns}"), shard, shards);
            if due(&mut dials, 0).is_empty() {
                assert!(shard >= LINKS_PER_SERVER_MAX && dials.seen(7).is_empty(), "{shard} of {shards}");
                return 0;
            }
            dials.connected(SERVER_DIAL | 1, 0).expect("it was dialed");
            dials.placing(0).expect("it was dialed").cap
        });
        assert_eq!(caps.sum::<u32>(), max_conns, "{shards} shards");
    }
}

#[test]
fn pauses_double_up_to_five_seconds_are_spread_and_end_with_a_link_that_was_well() {
    let (_, mut dials) = dials(&format!("7,server={A}"), 0, 1);
    let mut now_ms = 0;
    for (attempt, most) in [200, 400, 800, 1_600, 3_200, 5_000, 5_000].into_iter().enumerate() {
        let (token, _) = one(due(&mut dials, now_ms));
        // The shortest pause, and the longest.
        let random = if attempt % 2 == 0 { 0 } else { most / 2 };
        assert_eq!(dials.not_connected(token, libc::ECONNREFUSED, now_ms, random), Some(ServerFailure::Refused));
        let pause = if attempt % 2 == 0 { most / 2 } else { most };
        assert!(due(&mut dials, now_ms + pause - 1).is_empty(), "{attempt}");
        now_ms += pause;
    }
    // One that serves for a moment and is lost goes on with the pauses; one that was well begins anew.
    for (served_ms, least) in [(WELL_MS - 1, 2_500), (WELL_MS, 100)] {
        serve(&mut dials, 1, now_ms);
        now_ms += served_ms;
        assert_eq!(dials.ended(1, CloseReason::PeerClosed, now_ms, 0), Some(ServerFailure::Lost));
        assert!(due(&mut dials, now_ms + least - 1).is_empty());
        now_ms += least;
    }
    assert_eq!(due(&mut dials, now_ms).len(), 1);
}

#[test]
fn every_end_of_a_try_has_its_reason_and_is_tried_again() {
    let (_, mut dials) = dials(&format!("7,server={A}"), 0, 1);
    let mut now_ms = 0;
    for (errno, failure) in [
        (libc::ECONNREFUSED, ServerFailure::Refused),
        (libc::ETIMEDOUT, ServerFailure::Unanswered),
        (libc::EHOSTUNREACH, ServerFailure::Unreachable),
        (libc::ENFILE, ServerFailure::Unreachable),
    ] {
        let (token, _) = one(due(&mut dials, now_ms));
        assert_eq!(dials.not_connected(token, errno, now_ms, 0), Some(failure));
        assert_eq!(dials.not_connected(token, errno, now_ms, 0), None, "a dial ends once");
        now_ms += RETRY_MS_MAX;
    }
    for (reason, failure) in [
        (CloseReason::LoginTimeout, ServerFailure::Silent),
        (CloseReason::NotLoggedIn, ServerFailure::Strange),
        (CloseReason::BadLogin, ServerFailure::Strange),
        (CloseReason::UnsupportedVersion, ServerFailure::Strange),
        (CloseReason::MalformedFrame, ServerFailure::Strange),
        (CloseReason::FrameTooLarge, ServerFailure::Strange),
        (CloseReason::UnknownTransport, ServerFailure::Strange),
        (CloseReason::BadCredentials, ServerFailure::Key),
        (CloseReason::PeerClosed, ServerFailure::Closed),
        (CloseReason::PeerReset, ServerFailure::Closed),
        (CloseReason::Logout, ServerFailure::TurnedAway),
        (CloseReason::Overloaded, ServerFailure::NoRoom),
        (CloseReason::Draining, ServerFailure::NoRoom),
    ] {
        let (token, _) = one(due(&mut dials, now_ms));
        assert!(dials.connected(token, 9).is_some());
        assert_eq!(dials.ended(9, reason, now_ms, 0), Some(failure), "{reason:?}");
        assert_eq!(dials.ended(9, reason, now_ms, 0), None, "an end is one");
        let seen = one(dials.seen(7));
        assert_eq!((seen.state, seen.failure, seen.links), (ServerState::Failing, Some(failure), 0));
        now_ms += RETRY_MS_MAX;
    }
    serve(&mut dials, 9, now_ms);
    assert_eq!(dials.seen(7)[0].failure, None);
    assert_eq!(dials.ended(9, CloseReason::Logout, now_ms, 0), Some(ServerFailure::LoggedOut));
    assert_eq!(dials.ended(8, CloseReason::Logout, now_ms, 0), None, "nobody was dialed into that slot");
}

#[test]
fn a_name_may_come_to_stand_for_others_and_calls_of_those_that_go_are_answered_first() {
    let (servers, mut dials) = dials("7,server=orders:9000 resolve,server=gone:1 down", 0, 1);
    assert!(due(&mut dials, 0).is_empty());
    let states: Vec<(ServerState, String)> = dials.seen(7).into_iter().map(|seen| (seen.state, seen.server)).collect();
    let expected = [(ServerState::Unknown, "orders:9000".to_owned()), (ServerState::Down, "gone:1".to_owned())];
    assert_eq!(states, expected);
    servers.resolved(0, &[address(A)]);
    assert!(dials.look(0).is_empty());
    serve(&mut dials, 1, 0);
    servers.resolved(0, &[address(B)]);
    assert!(dials.look(0).is_empty(), "it is missing for the first time");
    let (token, now) = one(due(&mut dials, 0));
    assert_eq!(now, B);
    resolved(&servers, 0, &[address(B)]);
    assert_eq!(dials.look(0), [1], "it gets no more calls");
    assert_eq!(dials.leaving().collect::<Vec<_>>(), [1]);
    // Back before the link has ended, it goes on.
    servers.resolved(0, &[address(A), address(B)]);
    assert!(dials.look(0).is_empty());
    assert_eq!((dials.take_returned(), dials.leaving().count()), (vec![(1, u32::MAX)], 0));
    resolved(&servers, 0, &[address(B)]);
    assert_eq!(dials.look(0), [1]);
    assert_eq!(dials.ended(1, CloseReason::Draining, 0, 0), Some(ServerFailure::Lost));
    servers.resolved(0, &[address(A), address(B)]);
    assert!(dials.look(0).is_empty() && dials.take_returned().is_empty());
    assert_eq!(due(&mut dials, 0).len(), 1);
    // Gone while it is dialed: nobody waits for that dial.
    resolved(&servers, 0, &[address("10.0.0.3:9000")]);
    assert!(dials.look(0).is_empty());
    assert_eq!((dials.connected(token, 2), dials.not_connected(token, 0, 0, 0)), (None, None));
    assert_eq!(dials.seen(7).len(), 2, "one address, and the one that is down");
}

#[test]
fn of_two_names_for_one_address_the_first_one_has_it() {
    let (servers, mut dials) = dials("7,server=a:9000 weight=2,server=b:9000 weight=3", 0, 1);
    servers.resolved(1, &[address(A)]);
    dials.look(0);
    assert_eq!(serve(&mut dials, 1, 0).weight, 3);
    servers.resolved(0, &[address(A)]);
    assert_eq!(dials.look(0), [1]);
    assert!(due(&mut dials, 0).is_empty(), "not before the other link has ended");
    dials.ended(1, CloseReason::Draining, 0, 0);
    dials.look(0);
    assert_eq!(serve(&mut dials, 2, 0).weight, 2);
}

#[test]
fn what_an_operator_says_of_a_server_outlives_its_links() {
    let (servers, mut dials) = dials("7,server=orders:9000 resolve weight=2", 0, 1);
    let drain = InstanceChange { drained: Some(true), weight: None };
    assert!(!dials.change(7, A, drain), "it is not dialed");
    servers.resolved(0, &[address(A), address(B)]);
    dials.look(0);
    assert!(dials.change(7, A, drain) && !dials.change(8, A, drain));
    assert!(dials.change(7, A, InstanceChange { drained: None, weight: Some(9) }));
    let set = InstanceChange { drained: Some(true), weight: Some(9) };
    let aside = |dials: &Dials| dials.set_aside(7).map(|(name, set, _)| (name.to_owned(), set)).collect::<Vec<_>>();
    assert_eq!(aside(&dials), [(A.to_owned(), set)]);
    for round in 0..2_u64 {
        let now_ms = round * 100_000;
        for (slot, (token, address)) in (1..).zip(due(&mut dials, now_ms)) {
            assert!(dials.connected(token, slot).is_some());
            let expected = if address == A { set } else { InstanceChange::default() };
            assert_eq!(dials.placing(slot).expect("it was dialed").set, expected, "{address}");
            dials.serves(slot, now_ms);
        }
        assert!(aside(&dials).is_empty(), "it serves");
        for slot in 1..3 {
            dials.ended(slot, CloseReason::PeerReset, now_ms, 0);
        }
        assert_eq!(aside(&dials).len(), 1);
    }
    assert!(dials.change(7, A, InstanceChange { drained: Some(false), weight: None }));
    assert_eq!(aside(&dials)[0].1.drained, Some(false));
    // With its address it is forgotten.
    resolved(&servers, 0, &[address(B)]);
    dials.look(0);
    servers.resolved(0, &[address(A), address(B)]);
    dials.look(0);
    assert!(aside(&dials).is_empty());
}

#[test]
fn what_there_is_no_room_for_has_failed_for_that_and_is_tried_again() {
    let (_, mut dials) = dials(&format!("7,server={A}"), 0, 1);
    assert!(dials.due(0, 0).is_empty());
    assert_eq!((dials.put_off(0, || 0), dials.put_off(0, || 0)), (1, 0), "it waits then");
    let seen = one(dials.seen(7));
    assert_eq!((seen.state, seen.failure), (ServerState::Failing, Some(ServerFailure::NoRoom)));
    assert!(dials.due(99, 1).is_empty());
    assert_eq!(dials.due(100, 1).len(), 1);
}

#[test]
fn links_and_dials_are_bounded() {
    let names: Vec<String> = (0..20).map(|at| format!(",server=n{at}:1 resolve")).collect();
    let (servers, mut dials) = dials(&format!("7{}", names.concat()), 0, 1);
    for at in 0..20_u8 {
        let addresses: Vec<SocketAddr> = (0..16).map(|last| SocketAddr::from(([10, 0, at, last], 1))).collect();
        assert_eq!(servers.resolved(at.into(), &addresses), 0);
    }
    dials.look(0);
    dials.look(0);
    assert_eq!((dials.links.len(), dials.left_out), (DIALED_MAX, 20 * 16 - DIALED_MAX as u64));
    assert_eq!(dials.due(0, 3).len(), 3, "not more than there is room for");
    let under_way = dials.due(0, 100);
    assert_eq!(under_way.len(), DIALS_AT_ONCE_MAX - 3);
    dials.connected(under_way[0].0, 1);
    let next = dials.due(0, 100);
    assert_eq!(next.len(), 1);
    let tokens: BTreeSet<u32> = under_way.iter().chain(&next).map(|(token, _)| *token).collect();
    assert_eq!(tokens.len(), DIALS_AT_ONCE_MAX - 3 + 1);
}
