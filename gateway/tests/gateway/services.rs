//! Calls of clients to services: workers of this test at the services' port of a real gateway.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::wire::{Frame, code, flag, kind, outcome};
use crate::support::worker::{Got, WITH_SERVICES, Worker, serve, services_address};
use std::net::Shutdown;
use std::time::Duration;
use trunkline_proto::prost::Message;
use trunkline_proto::{CallHead, Kind, Offer, Serve, call_flags};

const SERVICE: u16 = 7;
/// Statuses of REPLY that are the gateway's.
const UNKNOWN_SERVICE: u16 = 17;
const UNAVAILABLE: u16 = 18;
const TIMED_OUT: u16 = 24;
const OUTCOME_UNKNOWN: u16 = 25;

fn call(id: u64, flags: u8, body: &[u8]) -> Frame {
    Frame { kind: kind::CALL, flags, aux: SERVICE, id, peer: 0, stamp: 0, body: body.to_vec() }
}

/// The next frame of a client, which must be a REPLY to this call.
fn reply(client: &mut Client, id: u64) -> Frame {
    let frame = client.recv();
    assert_eq!((frame.kind, frame.id), (kind::REPLY, id), "{frame:?}");
    frame
}

/// With all clients gone every call that came in has ended in one way.
fn assert_books(gateway: &Gateway) {
    gateway.wait_for_metrics("calls are accounted for", |metrics| {
        let of = |name: &str| metrics.sum(name, &[]);
        of("trunkline_calls_received_total") == of("trunkline_calls_total")
            && of("trunkline_calls_open") == 0
            && of("trunkline_calls_waiting") == 0
            && of("trunkline_calls_kept_bytes") == 0
    });
}

fn with_services(shards: u32, flags: &[&str], body: impl FnOnce(&Gateway)) {
    let flags: Vec<&str> = WITH_SERVICES.iter().chain(flags).copied().collect();
    with_gateway(shards, &flags, |gateway| {
        body(gateway);
        assert_books(gateway);
    });
}

#[test]
fn a_call_reaches_a_worker_and_its_answer_the_caller_whatever_shard_they_are_on() {
    let flags = [WITH_SERVICES[0], WITH_SERVICES[1], "--calls-per-session-max", "64"];
    with_each_gateway(&[1, 2, 4], &flags, |gateway| {
        let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), 0));
        let mut clients: Vec<Client> = (1..=8).map(|user| Client::login(gateway, user)).collect();
        for (client, user) in clients.iter_mut().zip(1..) {
            for id in 1..=20 {
                let body = format!("{user} {id}").into_bytes();
                let frame = loop {
                    client.write(&Frame { peer: 5, ..call(id, 0, &body) });
                    match worker.recv_within(Duration::from_millis(500)) {
                        Some(request) => {
                            assert_eq!(
                                (request.kind, request.aux, request.peer, request.stamp),
                                (Kind::Request, 7, user, id)
                            );
                            assert_eq!((request.flags, &request.body), (0, &body));
                            worker.answer(&request, 300, b"done");
                            break reply(client, id);
                        }
                        // The other shards have not heard of the worker yet.
                        None => assert!(matches!(reply(client, id).aux, UNKNOWN_SERVICE | UNAVAILABLE)),
                    }
                };
                assert_eq!((frame.aux, frame.peer, frame.flags, &frame.body[..]), (300, 5, 0, &b"done"[..]));
            }
        }
        drop(clients);
        assert_books(gateway);
    });
}

#[test]
fn a_service_nobody_ever_served_is_unknown_and_one_that_was_is_unavailable() {
    with_services(1, &["--service", "9:billing"], |gateway| {
        let mut client = Client::login(gateway, 1);
        client.write(&call(1, 0, b""));
        assert_eq!(reply(&mut client, 1).aux, UNKNOWN_SERVICE);
        client.write(&Frame { aux: 9, ..call(2, 0, b"") });
        assert_eq!(reply(&mut client, 2).aux, UNAVAILABLE);
        let worker = Worker::start(gateway, &serve("w", SERVICE.into(), 0));
        worker.stream().shutdown(Shutdown::Both).expect("close");
        gateway.wait_for_metrics("the link has ended", |metrics| metrics.sum("trunkline_service_links", &[]) == 0);
        client.write(&call(3, 0, b""));
        assert_eq!(reply(&mut client, 3).aux, UNAVAILABLE);
        for (id, wrong) in [(4, Frame { aux: 0, ..call(4, 0, b"") }), (5, call(5, call_flags::TRACE, b"short"))] {
            client.write(&wrong);
            assert_eq!(reply(&mut client, id).aux, code::BAD_REQUEST);
        }
        client.write(&call(0, 0, b""));
        client.expect_error(code::BAD_REQUEST, 0, 0);
        client.write(&call(6, call_flags::NO_REPLY, b""));
        client.write(&crate::support::wire::ping(1));
        client.recv_kind(kind::PONG);
    });
}

#[test]
fn a_call_that_is_not_answered_in_time_ends_in_24_and_its_worker_hears_of_it() {
    with_services(2, &["--service", "7:slow,call_timeout_ms=300"], |gateway| {
        let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), home_shard(1, 2)));
        let mut client = Client::login(gateway, 1);
        client.write(&call(1, 0, b"a"));
        let request = worker.request();
        assert_eq!(reply(&mut client, 1).aux, TIMED_OUT);
        let cancel = worker.recv();
        assert_eq!((cancel.kind, cancel.id), (Kind::Cancel, request.id));
        // The answer that comes too late is nobody's, not even the next call's.
        client.write(&call(2, 0, b"b"));
        let next = worker.request();
        worker.answer(&request, 0, b"late");
        worker.answer(&next, 0, b"in time");
        assert_eq!(reply(&mut client, 2).body, b"in time");
        gateway.wait_for_metrics("it was counted", |metrics| metrics.sum("trunkline_answers_late_total", &[]) == 1);
    });
}

/// The shard of a user.
fn home_shard(user: u64, shards: u32) -> u32 {
    trunkline_router::hash::home_shard(user, shards)
}

#[test]
fn an_answer_in_parts_ends_with_the_last_one() {
    with_services(1, &["--service", "7:parts,call_timeout_ms=400"], |gateway| {
        let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), 0));
        let mut client = Client::login(gateway, 1);
        client.write(&call(1, call_flags::SAFE, b""));
        let request = worker.request();
        for part in 0..3 {
            worker.answer_with(&request, call_flags::MORE, 0, &[part]);
            let frame = reply(&mut client, 1);
            assert_eq!((frame.flags, frame.aux, frame.body), (call_flags::MORE, 0, vec![part]));
        }
        // Longer than a call may take without a word.
        std::thread::sleep(Duration::from_millis(700));
        worker.answer(&request, 256, b"end");
        let frame = reply(&mut client, 1);
        assert_eq!((frame.flags, frame.aux, &frame.body[..]), (0, 256, &b"end"[..]));
    });
}

#[test]
fn a_window_is_never_exceeded_and_those_that_wait_come_in_order() {
    with_services(1, &["--service", "7:w,queue=4"], |gateway| {
        let mut worker = Worker::start(gateway, &Serve { window: 2, ..serve("w", SERVICE.into(), 0) });
        let mut client = Client::login(gateway, 1);
        for id in 1..=7 {
            client.write(&call(id, 0, b""));
        }
        // Two are with the worker, four wait.
        let overloaded = reply(&mut client, 7);
        assert_eq!(overloaded.aux, code::OVERLOADED);
        let mut at_work: Vec<Got> = vec![worker.request(), worker.request()];
        assert_eq!(worker.recv_within(Duration::from_millis(300)), None, "no more than its window");
        for next in 3..=6 {
            let done = at_work.remove(0);
            worker.answer(&done, 0, b"");
            assert_eq!(reply(&mut client, done.stamp).aux, 0);
            at_work.push(worker.request());
            assert_eq!(at_work[1].stamp, next);
        }
        worker.window(3);
        client.write(&call(8, 0, b""));
        at_work.push(worker.request());
        // Draining: what it has it answers, and new calls find nobody.
        worker.window(0);
        gateway_sees_no_worker(&mut client);
        for request in at_work {
            worker.answer(&request, 0, b"");
            assert_eq!(reply(&mut client, request.stamp).aux, 0);
        }
    });
}

/// Calls until the answer is that nobody serves.
fn gateway_sees_no_worker(client: &mut Client) {
    for id in 100.. {
        client.write(&call(id, 0, b""));
        if reply(client, id).aux == UNAVAILABLE {
            return;
        }
    }
}

#[test]
fn a_session_has_so_many_calls_and_takes_them_with_it_when_it_ends() {
    with_services(2, &["--calls-per-session-max", "3"], |gateway| {
        // One worker at the caller's shard, and one that is reached through the mailbox.
        for shard in [home_shard(1, 2), 1 - home_shard(1, 2)] {
            let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), shard));
            let mut client = Client::login(gateway, 1);
            let first = first_request(&mut client, &mut worker, 1);
            for id in 2..=4 {
                client.write(&call(id, 0, b""));
            }
            assert_eq!(reply(&mut client, 4).aux, code::RATE_LIMITED);
            let mut at_work = vec![first, worker.request(), worker.request()];
            worker.answer(&at_work.remove(0), 0, b"");
            assert_eq!(reply(&mut client, 1).aux, 0);
            client.write(&call(5, call_flags::NO_REPLY, b"to be carried out all the same"));
            let no_reply = worker.request();
            assert_eq!(no_reply.flags, call_flags::NO_REPLY);
            drop(client);
            let mut cancelled = [worker.recv(), worker.recv()];
            cancelled.sort_by_key(|cancel| cancel.id);
            at_work.sort_by_key(|request| request.id);
            for (cancel, request) in cancelled.iter().zip(&at_work) {
                assert_eq!((cancel.kind, cancel.id), (Kind::Cancel, request.id));
            }
            worker.answer(&no_reply, 0, b"");
            worker.stream().shutdown(Shutdown::Both).expect("close");
            gateway.wait_for_metrics("the link has ended", |metrics| metrics.sum("trunkline_service_links", &[]) == 0);
        }
    });
}

/// The request of a call, which is made again until its shard has heard of the worker.
fn first_request(client: &mut Client, worker: &mut Worker, id: u64) -> Got {
    loop {
        client.write(&call(id, 0, b""));
        match worker.recv_within(Duration::from_millis(500)) {
            Some(request) => return request,
            None => assert!(matches!(reply(client, id).aux, UNKNOWN_SERVICE | UNAVAILABLE)),
        }
    }
}

#[test]
fn a_lost_workers_calls_end_in_25_and_safe_ones_go_to_another_worker_once() {
    with_services(1, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut lost = Worker::start(gateway, &serve("lost", SERVICE.into(), 0));
        client.write(&call(1, 0, b"order"));
        client.write(&call(2, call_flags::SAFE, b"question"));
        assert_eq!((lost.request().stamp, lost.request().stamp), (1, 2));
        let mut other = Worker::start(gateway, &serve("other", SERVICE.into(), 0));
        drop(lost);
        let unknown = reply(&mut client, 1);
        assert_eq!(unknown.aux, OUTCOME_UNKNOWN);
        let again = other.request();
        assert_eq!((again.stamp, again.flags, &again.body[..]), (2, call_flags::AGAIN, &b"question"[..]));
        // The second worker is lost too: nobody tries a third time.
        let mut third = Worker::start(gateway, &serve("third", SERVICE.into(), 0));
        drop(other);
        assert_eq!(reply(&mut client, 2).aux, OUTCOME_UNKNOWN);
        assert_eq!(third.recv_within(Duration::from_millis(300)), None);
    });
}

#[test]
fn who_has_not_begun_passes_the_call_on_or_the_caller_may_try_again() {
    with_services(1, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut refuses = Worker::start(gateway, &serve("refuses", SERVICE.into(), 0));
        client.write(&call(1, 0, b""));
        let request = refuses.request();
        refuses.answer_with(&request, call_flags::NOT_BEGUN, 0, b"");
        assert_eq!(reply(&mut client, 1).aux, code::OVERLOADED);
        client.write(&call(2, call_flags::SAFE, b"x"));
        let request = refuses.request();
        let mut takes = Worker::start(gateway, &serve("takes", SERVICE.into(), 0));
        refuses.answer_with(&request, call_flags::NOT_BEGUN, 0, b"");
        let again = takes.request();
        takes.answer(&again, 0, b"y");
        assert_eq!(reply(&mut client, 2).body, b"y");
        // A status that is the gateway's is no answer.
        client.write(&call(3, 0, b""));
        let mut who = vec![refuses, takes];
        for worker in &mut who {
            if let Some(request) = worker.recv_within(Duration::from_millis(500)) {
                worker.answer(&request, 14, b"");
                assert_eq!(worker.recv().kind, Kind::Error);
                break;
            }
        }
        assert_eq!(reply(&mut client, 3).aux, OUTCOME_UNKNOWN);
    });
}

#[test]
fn weights_share_out_calls_as_they_say() {
    with_services(1, &["--calls-per-session-max", "1000"], |gateway| {
        let offer = |weight| vec![Offer { service: SERVICE.into(), weight, backup: false }];
        let names = ["a", "b", "c", "d"];
        let mut workers: Vec<Worker> = (1..)
            .zip(names)
            .map(|(weight, name)| {
                let serve = Serve { offers: offer(weight), window: 1_000, ..serve(name, SERVICE.into(), 0) };
                Worker::start(gateway, &serve)
            })
            .collect();
        let mut client = Client::login(gateway, 1);
        for id in 1..=1_000 {
            client.write(&call(id, 0, b""));
        }
        for (worker, count) in workers.iter_mut().zip([100, 200, 300, 400]) {
            for _ in 0..count {
                let request = worker.request();
                worker.answer(&request, 0, b"");
            }
        }
        for _ in 0..1_000 {
            assert_eq!(client.recv_kind(kind::REPLY).aux, 0);
        }
    });
}

#[test]
fn a_drain_outlives_the_links_of_a_worker_until_it_is_undone() {
    with_services(2, &[], |gateway| {
        let set = |state: &str| {
            let body = format!("{{\"state\":\"{state}\"}}");
            let answer = gateway.request_json("PATCH", &format!("/v1/services/{SERVICE}/instances/w"), &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            (answer.json()["state"].clone(), answer.json()["links"].clone())
        };
        let here = home_shard(1, 2);
        let there = 1 - here;
        let worker = Worker::start(gateway, &serve("w", SERVICE.into(), here));
        assert_eq!(set("drain"), ("drain".into(), 1.into()));
        worker.stream().shutdown(Shutdown::Both).expect("close");
        gateway.wait_for_metrics("its link has ended", |metrics| metrics.sum("trunkline_service_links", &[]) == 0);
        assert_eq!(set("drain"), ("drain".into(), 0.into()), "it is known although it is away");
        // It comes back, and not to the shard that it had its link to.
        let mut client = Client::login(gateway, 1);
        for (id, shard) in [(1, there), (2, here)] {
            let worker = Worker::start(gateway, &serve("w", SERVICE.into(), shard));
            client.write(&call(id, 0, b"not now"));
            assert_eq!(reply(&mut client, id).aux, UNAVAILABLE);
            drop(worker);
        }
        let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), here));
        assert_eq!(set("active").0, "active");
        client.write(&call(3, 0, b"now"));
        let request = worker.request();
        worker.answer(&request, 0, b"done");
        assert_eq!(reply(&mut client, 3).aux, 0);
    });
}

#[test]
fn a_worker_that_asks_for_heads_is_told_who_calls() {
    with_services(2, &[], |gateway| {
        for shard in [home_shard(1, 2), 1 - home_shard(1, 2)] {
            let mut worker = Worker::start(gateway, &Serve { heads: true, ..serve("w", SERVICE.into(), shard) });
            let login = crate::support::wire::Login::of(1).device("phone");
            let (mut client, login_ok) = Client::login_with(gateway, &login);
            let first = first_request(&mut client, &mut worker, 1);
            worker.answer(&first, 0, b"");
            reply(&mut client, 1);
            let mut body = vec![0xab; 24];
            body.extend_from_slice(&[1]);
            body.extend_from_slice(b"payload");
            client.write(&Frame { peer: 99, ..call(2, call_flags::TRACE | call_flags::SAFE, &body) });
            let request = worker.request();
            assert_eq!(request.flags, call_flags::HEAD);
            let (len, rest) = request.body.split_first_chunk::<2>().expect("a length");
            let (head, payload) = rest.split_at(u16::from_be_bytes(*len).into());
            assert_eq!(payload, b"payload");
            let head = CallHead::decode(head).expect("a CallHead");
            assert_eq!((head.device.as_str(), head.session, head.routing_key), ("phone", login_ok.session, 99));
            assert_eq!(head.traceparent, format!("00-{}-{}-01", "ab".repeat(16), "ab".repeat(8)));
            assert!((4_000..=5_100).contains(&head.timeout_ms), "{head:?}");
            worker.answer(&request, 0, b"");
            reply(&mut client, 2);
            worker.stream().shutdown(Shutdown::Both).expect("close");
            gateway.wait_for_metrics("the link has ended", |metrics| metrics.sum("trunkline_service_links", &[]) == 0);
        }
    });
}

#[test]
fn a_push_reaches_a_user_and_its_fate_the_worker() {
    for shards in [1, 4] {
        with_services(shards, &[], |gateway| {
            let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), 0));
            let mut client = Client::login(gateway, 1);
            worker.send(Kind::PushTo, flag::ACK, SERVICE, 41, 1, b"with ack");
            let push = client.recv();
            assert_eq!((push.kind, push.aux, push.id, push.peer), (0x87, SERVICE, 41, 0));
            assert_eq!((push.flags, &push.body[..]), (flag::ACK, &b"with ack"[..]));
            client.ack(&push);
            let pushed = worker.recv();
            assert_eq!((pushed.kind, pushed.aux, pushed.id, pushed.peer), (Kind::Pushed, outcome::DELIVERED, 41, 1));
            worker.send(Kind::PushTo, 0, SERVICE, 42, 1, b"without");
            assert_eq!(client.recv().body, b"without");
            worker.send(Kind::PushTo, flag::ACK, SERVICE, 43, 2, b"offline");
            assert_eq!(worker.recv().aux, outcome::OFFLINE_NOT_STORED);
            // A service that the link does not serve, nobody, and a user that is none.
            worker.send(Kind::PushTo, flag::ACK, 8, 44, 1, b"");
            assert_eq!((worker.recv().aux), 4);
            for (id, peer) in [(0, 1), (45, 0), (46, u64::MAX)] {
                worker.send(Kind::PushTo, flag::ACK, SERVICE, id, peer, b"");
                let error = worker.recv();
                assert_eq!((error.kind, error.aux), (Kind::Error, code::BAD_REQUEST));
            }
        });
    }
}

#[test]
fn a_push_to_a_user_who_is_offline_is_stored_and_comes_with_the_login() {
    let scratch = crate::support::scratch::ScratchFolder::new("push-stored");
    let data_dir = scratch.path();
    with_services(1, &["--data-dir", data_dir], |gateway| {
        // A device has to be known, so that something is kept for it.
        Client::login(gateway, 1).write(&crate::support::wire::logout());
        gateway.wait_for_presence(1, false);
        let mut worker = Worker::start(gateway, &serve("w", SERVICE.into(), 0));
        worker.send(Kind::PushTo, flag::ACK, SERVICE, 41, 1, b"kept");
        let pushed = worker.recv();
        assert_eq!((pushed.kind, pushed.aux), (Kind::Pushed, outcome::STORED));
        let mut client = Client::login(gateway, 1);
        let push = client.recv_kind(0x87);
        assert_eq!((push.aux, push.id, &push.body[..]), (SERVICE, 41, &b"kept"[..]));
        assert_ne!(push.flags & flag::REPLAY, 0);
        client.ack(&push);
    });
}

#[test]
fn only_who_has_a_key_of_the_service_serves_it() {
    let made =
        trunkline_router::http::NewKey::make("orders", &[trunkline_router::http::Scope::Serve(7)]).expect("a key");
    let file = crate::support::scratch::ScratchFile::new("service-keys", &made.line);
    let gateway = {
        let mut command = crate::support::gateway::gateway_command();
        command.args(["--shards", "1", "--api-keys-file", file.path()]).args(WITH_SERVICES);
        Gateway::start_command(command)
    };
    let address = services_address(&gateway);
    let with = |service, token: &str| Serve { token: token.to_owned(), ..serve("w", service, 0) };
    for (serve, why) in [
        (with(7, ""), "needs a key"),
        (with(7, "tlk_orders_00"), "not in the keys file"),
        (with(8, &made.key), "does not have the scope"),
    ] {
        let (code, text) = Worker::try_start(address, &serve).err().expect("it is refused");
        assert!(code == code::BAD_CREDENTIALS && text.contains(why), "{code} {text}");
    }
    assert!(Worker::try_start(address, &with(7, &made.key)).is_ok());
    gateway.finish();
}

#[test]
fn what_is_no_serve_ends_the_connection_and_clients_do_not_log_in_there() {
    with_services(2, &[], |gateway| {
        let address = services_address(gateway);
        let refused = |serve: &Serve| Worker::try_start(address, serve).err().expect("it is refused").0;
        let good = serve("w", 7, 0);
        let bad = [
            Serve { name: String::new(), ..good.clone() },
            Serve { name: "a b".into(), ..good.clone() },
            Serve { offers: Vec::new(), ..good.clone() },
            Serve { offers: vec![Offer::default()], ..good.clone() },
            Serve { offers: vec![Offer { service: 7, ..Offer::default() }; 2], ..good.clone() },
            Serve { offers: vec![Offer { service: 65_536, ..Offer::default() }], ..good.clone() },
            Serve { shard: 3, ..good.clone() },
            Serve { window: 65_536, ..good.clone() },
        ];
        for serve in bad {
            assert_eq!(refused(&serve), code::BAD_REQUEST, "{serve:?}");
        }
        assert_eq!(refused(&Serve { version: 2, ..good.clone() }), code::UNSUPPORTED_VERSION);
        let mut client = Client::connect_to(address);
        client.write(&crate::support::wire::Login::of(1).frame());
        client.expect_bye(code::NOT_LOGGED_IN);
        let mut http = Client::connect_to(address);
        http.write_bytes(b"GET /ws HTTP/1.1\r\n\r\n");
        http.expect_closed();
        // A link has a role of its own: it sends nothing as a user, and nobody serves on the clients' port.
        let mut worker = Worker::start(gateway, &good);
        worker.send(Kind::Send, 0, 0, 1, 1, b"");
        assert_eq!((worker.recv().kind, worker.ok.shards), (Kind::Error, 2));
        let mut wrong_door = Client::connect(gateway);
        let mut bytes = Vec::new();
        trunkline_proto::encode_message(&mut bytes, Kind::Serve, 0, &good);
        wrong_door.write_bytes(&bytes);
        wrong_door.expect_bye(code::NOT_LOGGED_IN);
    });
}

#[test]
fn a_gateway_that_drains_has_what_is_open_answered_first() {
    let mut command = crate::support::gateway::gateway_command();
    command.args(["--shards", "2", "--drain-secs", "2"]).args(WITH_SERVICES);
    let mut gateway = Gateway::start_command(command);
    let mut worker = Worker::start(&gateway, &serve("w", SERVICE.into(), home_shard(1, 2)));
    let mut client = Client::login(&gateway, 1);
    client.write(&call(1, 0, b""));
    let request = worker.request();
    gateway.signal(rustix::process::Signal::TERM);
    worker.answer(&request, 0, b"answered");
    assert_eq!(reply(&mut client, 1).body, b"answered");
    client.expect_bye(code::DRAINING);
    let bye = worker.recv();
    assert_eq!((bye.kind, bye.aux), (Kind::Bye, code::DRAINING));
    drop((client, worker));
    assert!(gateway.wait_for_exit().success());
}
