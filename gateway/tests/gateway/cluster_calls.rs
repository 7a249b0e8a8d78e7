//! Calls over the nodes of a cluster: real gateways, a real Redis Cluster, and the worker's node that is killed.

use crate::cluster_support::Fleet;
use crate::support::client::Client;
use crate::support::wire::{Frame, kind};
use crate::support::worker::{WITH_SERVICES, Worker, serve};
use rustix::process::Signal;
use std::collections::BTreeMap;
use trunkline_proto::{Kind, call_flags};

const SERVICE: u16 = 7;
/// Statuses of REPLY that are the gateway's.
const OVERLOADED: u16 = 14;
const UNAVAILABLE: u16 = 18;
const OUTCOME_UNKNOWN: u16 = 25;

fn call(id: u64, body: &[u8]) -> Frame {
    Frame { kind: kind::CALL, flags: 0, aux: SERVICE, id, peer: 0, stamp: 0, body: body.to_vec() }
}

fn reply(client: &mut Client, id: u64) -> Frame {
    let frame = client.recv_kind(kind::REPLY);
    assert_eq!(frame.id, id, "{frame:?}");
    frame
}

#[test]
fn a_call_goes_to_a_worker_of_another_node_and_gets_its_reply_though_that_node_is_killed() {
    // No call ends by its time here.
    let flags = [WITH_SERVICES[0], WITH_SERVICES[1], "--service", "7:orders,call_timeout_ms=120000"];
    let mut fleet = Fleet::start(&["a", "b"], &flags);
    let mut worker = Worker::start(fleet.node(1), &serve("w", SERVICE.into(), 0));
    assert_eq!(worker.ok.nodes, ["a", "b"]);
    fleet.node(0).wait_for_metrics("both shards of a know of the worker at b", |metrics| {
        metrics.sum("trunkline_service_places", &[]) == 2
    });
    let mut clients: Vec<Client> = (1..=4).map(|user| Client::login(fleet.node(0), user)).collect();
    for (client, user) in clients.iter_mut().zip(1..) {
        for id in 1..=5 {
            client.write(&call(id, b"one of those"));
            let request = worker.request();
            assert_eq!((request.aux, request.peer, request.stamp, request.flags), (SERVICE, user, id, 0));
            assert_eq!(request.body, b"one of those");
            worker.answer_with(&request, call_flags::MORE, 300, b"part");
            let part = reply(client, id);
            assert_eq!((part.aux, part.flags, &part.body[..]), (300, call_flags::MORE, &b"part"[..]));
            worker.answer(&request, 301, b"rest");
            let rest = reply(client, id);
            assert_eq!((rest.aux, rest.flags, &rest.body[..]), (301, 0, &b"rest"[..]));
        }
    }

    // The worker hears of a caller that has left.
    clients[3].write(&call(6, b"never mind"));
    let request = worker.request();
    drop(clients.pop());
    let cancel = worker.recv();
    assert_eq!((cancel.kind, cancel.id), (Kind::Cancel, request.id));

    // What is under way when the node is killed may have been carried out; what comes later has not been.
    for client in &mut clients {
        (10..20).for_each(|id| client.write(&call(id, b"under way")));
    }
    (0..30).for_each(|_| drop(worker.request()));
    let mut node = fleet.nodes[1].take().expect("it runs");
    node.signal(Signal::KILL);
    node.wait_for_exit();
    clients.iter_mut().for_each(|client| client.write(&call(20, b"too late")));
    for client in &mut clients {
        let replies: Vec<Frame> = (10..=20).map(|_| client.recv_kind(kind::REPLY)).collect();
        let statuses: BTreeMap<u64, u16> = replies.iter().map(|frame| (frame.id, frame.aux)).collect();
        assert!(statuses.keys().copied().eq(10..=20), "one REPLY for each: {replies:?}");
        assert!((10..20).all(|id| statuses[&id] == OUTCOME_UNKNOWN), "{statuses:?}");
        assert!([OVERLOADED, UNAVAILABLE, OUTCOME_UNKNOWN].contains(&statuses[&20]), "{statuses:?}");
    }

    // A worker at home is all that is needed.
    let mut worker = Worker::start(fleet.node(0), &serve("w", SERVICE.into(), 0));
    fleet.node(0).wait_for_metrics("nobody counts on b", |metrics| metrics.sum("trunkline_service_places", &[]) == 0);
    for client in &mut clients {
        client.write(&call(30, b"at home"));
        let request = worker.request();
        worker.answer(&request, 300, b"");
        assert_eq!(reply(client, 30).aux, 300);
    }
    drop((clients, worker));
    fleet.node(0).wait_for_metrics("calls are accounted for", |metrics| {
        let of = |name: &str| metrics.sum(name, &[]);
        of("trunkline_calls_received_total") == of("trunkline_calls_total")
            && of("trunkline_calls_open") + of("trunkline_calls_waiting") + of("trunkline_calls_kept_bytes") == 0
    });
    fleet.finish();
}
