//! Many connections at once. The figures with 40,000 and a million are the benches' matter; this is about every path
//! between shards.

use crate::support::client::Client;
use crate::support::gateway::with_gateway;
use crate::support::names::metric;
use crate::support::wire::{Login, flag, outcome};
use std::collections::BTreeSet;

#[test]
fn two_thousand_connections_on_four_shards_all_reach_each_other() {
    const USERS: u64 = 2_000;
    // Each user writes to these many places further on, so that every pair of shards is used, in both directions.
    const DISTANCES: [u64; 4] = [1, 7, 500, 1_999];
    let user_at = |place: u64| place % USERS + 1;
    with_gateway(4, &[], |gateway| {
        let mut clients: Vec<Client> = (0..USERS)
            .map(|place| {
                let mut client = Client::connect(gateway);
                client.write(&Login::of(user_at(place)).frame());
                client
            })
            .collect();
        let shards: BTreeSet<u64> = clients.iter_mut().map(|client| client.expect_login_ok().shard).collect();
        assert_eq!(shards.len(), 4);
        gateway.wait_for_metrics("everybody there", |metrics| metrics.sum(metric::OPEN, &[]) == USERS);
        for (client, place) in clients.iter_mut().zip(0..) {
            for distance in DISTANCES {
                let to = user_at(place + distance);
                client.send(to, flag::ACK, &to.to_be_bytes());
            }
        }
        for (client, place) in clients.iter_mut().zip(0..) {
            let mut from = BTreeSet::new();
            for _ in DISTANCES {
                let deliver = loop {
                    let frame = client.recv();
                    if frame.kind == crate::support::wire::kind::DELIVER {
                        break frame;
                    }
                    assert_eq!(frame.aux, outcome::DELIVERED, "{frame:?}");
                };
                assert_eq!(deliver.body, user_at(place).to_be_bytes());
                from.insert(deliver.peer);
                client.ack(&deliver);
            }
            let expected = DISTANCES.map(|distance| user_at(place + USERS - distance));
            assert_eq!(from, BTreeSet::from(expected));
        }
        gateway.wait_for_metrics("every message acknowledged", |metrics| {
            metrics.outcome(crate::support::names::outcome_label::ACKNOWLEDGED) == USERS * DISTANCES.len() as u64
        });
        // All of them leave at once.
        drop(clients);
        gateway.wait_for_metrics("everybody gone", |metrics| metrics.sum(metric::OPEN, &[]) == 0);
    });
}
