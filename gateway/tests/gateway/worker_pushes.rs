//! Pushes of workers that say in a head whom they are for, at a real gateway.

use crate::push_http::{SERVICE, recv_push};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::scratch::ScratchFile;
use crate::support::wire::{Frame, Login, code, flag, kind, ping};
use crate::support::worker::{WITH_SERVICES, Worker, serve, services_address};
use trunkline_proto::prost::Message;
use trunkline_proto::{Kind, PushHead, PushReport, Serve, call_flags};
use trunkline_router::http::{NewKey, Scope};

const FIRST_ROOM: u64 = 1 << 63;
const ROOM: u64 = FIRST_ROOM + 5;

fn push(worker: &mut Worker, flags: u8, id: u64, head: &PushHead, payload: &[u8]) {
    let head = head.encode_to_vec();
    let body = [&(head.len() as u16).to_be_bytes()[..], &head, payload].concat();
    worker.send(Kind::PushTo, flags | call_flags::HEAD, SERVICE, id, 0, &body);
}

/// What became of a push.
fn report(worker: &mut Worker, id: u64) -> PushReport {
    let pushed = worker.recv();
    assert_eq!((pushed.kind, pushed.flags, pushed.id, pushed.peer), (Kind::Pushed, call_flags::HEAD, id, 0));
    PushReport::decode(&pushed.body[..]).expect("a report")
}

/// The code of an ERROR, and its text.
fn error(worker: &mut Worker, id: u64) -> (u16, String) {
    let error = worker.recv();
    assert_eq!((error.kind, error.id), (Kind::Error, id), "{error:?}");
    (error.aux, String::from_utf8(error.body).expect("a text"))
}

fn users(users: impl IntoIterator<Item = u64>) -> PushHead {
    PushHead { users: users.into_iter().collect(), ..PushHead::default() }
}

fn group(group: u64) -> PushHead {
    PushHead { group, ..PushHead::default() }
}

#[test]
fn a_worker_pushes_to_several_users_a_device_or_a_group_and_has_one_report() {
    let scopes = [vec![Scope::Serve(SERVICE), Scope::PushGroup], vec![Scope::Serve(SERVICE)]];
    let keys = scopes.map(|scopes| NewKey::make(&format!("k{}", scopes.len()), &scopes).expect("a key"));
    let file = ScratchFile::new("worker-pushes", format!("{}\n{}\n", keys[0].line, keys[1].line));
    let mut command = gateway_command();
    command.args(["--shards", "3", "--api-keys-file", file.path()]).args(WITH_SERVICES);
    let gateway = Gateway::start_command(command);
    // On another shard than the one that has its first frame, mostly.
    let start = |key: &NewKey| {
        let serve = Serve { token: key.key.clone(), ..serve("w", SERVICE.into(), 1) };
        Worker::try_start(services_address(&gateway), &serve).expect("a worker that may serve")
    };
    let (mut worker, mut other) = (start(&keys[0]), start(&keys[1]));
    let mut clients: Vec<Client> = (1..=8).map(|user| Client::login(&gateway, user)).collect();

    // Several users, each once, on all shards; and one who is not there.
    push(&mut worker, flag::ACK, 1, &users((1..=8).chain([3, 99])), b"all of you");
    for client in &mut clients {
        let frame = recv_push(client);
        assert_eq!((frame.id, frame.flags, &frame.body[..]), (1, flag::ACK, &b"all of you"[..]));
        client.ack(&frame);
    }
    assert_eq!(report(&mut worker, 1), PushReport { delivered: 8, offline: 1, ..PushReport::default() });

    // Without ACK nothing is told.
    push(&mut worker, 0, 2, &users([1, 2]), b"");
    for client in &mut clients[..2] {
        assert_eq!((recv_push(client).id, client.recv_until_pong().len()), (2, 0));
    }

    // One device of two, and one with an end.
    let mut phone = Client::login_with(&gateway, &Login::of(1).device("phone")).0;
    push(&mut worker, flag::ACK, 3, &PushHead { device: "phone".to_owned(), ..users([1]) }, b"phone");
    let frame = recv_push(&mut phone);
    phone.ack(&frame);
    assert_eq!(report(&mut worker, 3), PushReport { delivered: 1, ..PushReport::default() });
    push(&mut worker, flag::ACK, 4, &PushHead { ttl_secs: 1, ..users([2]) }, b"soon over");
    assert_eq!(recv_push(&mut clients[1]).body, b"soon over");
    assert_eq!(report(&mut worker, 4), PushReport { expired: 1, ..PushReport::default() });
    assert!(clients[0].recv_until_pong().is_empty(), "the push was for the other device");

    // A room; a group needs a store; and whoever lacks the scope.
    // Whose homes are different shards, while the worker's link is at one of them.
    for room in [ROOM, FIRST_ROOM + 1, FIRST_ROOM + 9] {
        clients[0].write(&Frame { kind: kind::GROUP_JOIN, id: 1, peer: room, ..Frame::default() });
        clients[0].recv_kind(kind::GROUP_OK);
    }
    push(&mut other, flag::ACK, 5, &group(ROOM), b"");
    assert_eq!(report(&mut other, 5), PushReport { denied: 1, ..PushReport::default() });
    push(&mut other, 0, 6, &group(ROOM), b"");
    assert_eq!(error(&mut other, 6).0, 26);
    for room in [ROOM, FIRST_ROOM + 1, FIRST_ROOM + 9] {
        push(&mut worker, flag::ACK, 7, &group(room), b"to the room");
        assert_eq!(report(&mut worker, 7), PushReport { accepted: 1, ..PushReport::default() });
        let delivered = clients[0].recv_kind(kind::GROUP_DELIVER);
        assert!(delivered.peer == room && delivered.body.ends_with(b"to the room"), "{delivered:?}");
    }
    push(&mut worker, flag::ACK, 8, &group(5), b"");
    assert_eq!(report(&mut worker, 8), PushReport { denied: 1, ..PushReport::default() });

    // What cannot be done, with the reason.
    for (head, expected, why) in [
        (PushHead { all: true, ..PushHead::default() }, code::UNSUPPORTED, "POST /v1/push"),
        (PushHead::default(), code::BAD_REQUEST, "a head has users"),
        (users([0]), code::BAD_REQUEST, "a user is a number"),
    ] {
        push(&mut worker, flag::ACK, 9, &head, b"");
        let (aux, text) = error(&mut worker, 9);
        assert!(aux == expected && text.contains(why), "{aux} {text}");
    }
    worker.send(Kind::PushTo, flag::ACK | call_flags::HEAD, SERVICE, 10, 0, &[0, 9]);
    assert_eq!(error(&mut worker, 10).0, code::BAD_REQUEST);

    // A worker that has gone is told nothing, and its push goes on.
    push(&mut other, flag::ACK, 11, &users([1, 2]), b"last");
    let frames: Vec<Frame> = clients[..2].iter_mut().map(recv_push).collect();
    drop(other);
    gateway.wait_for_metrics("its link has ended", |metrics| metrics.sum("trunkline_service_links", &[]) == 1);
    let told = |gateway: &Gateway| {
        gateway.wait_for_metrics("nobody is there to be told", |metrics| {
            metrics.sum("trunkline_sent_to_gone_sender_total", &[]) == 1
        });
    };
    clients.iter_mut().zip(&frames).for_each(|(client, frame)| client.ack(frame));
    told(&gateway);
    clients[0].write(&ping(1));
    clients[0].recv_kind(kind::PONG);
    gateway.wait_for_metrics("the frames were counted", |metrics| {
        metrics.sum("trunkline_pushes_received_total", &[]) == 9
            && metrics.sum("trunkline_pushes_denied_total", &[]) == 2
    });
    drop((clients, phone, worker));
    gateway.finish();
}
