//! What it costs to route: the three look-ups of the hot path.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use trunkline_router_core::{Embedded, Entry, LoginOutcome, Node, Presence, Ring, home_shard};

const USERS: u64 = 100_000;

/// Users in an order that no cache foresees: a step that is prime to their number visits each of them.
fn next_user(user: u64) -> u64 {
    (user + 61_803) % USERS
}

fn bench_home_shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("home_shard");
    for shards in [1_u32, 2, 4, 56] {
        let mut user = 0;
        group.bench_with_input(BenchmarkId::from_parameter(shards), &shards, |b, &shards| {
            b.iter(|| {
                user = next_user(user);
                home_shard(black_box(user), black_box(shards))
            });
        });
    }
    group.finish();
}

fn bench_ring_owner(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring_owner");
    for count in [1, 3, 64, 1_024] {
        let nodes = (0..count).map(|n| Node::new(&format!("node-{n}:7790"), 1).expect("a valid node")).collect();
        let ring = Ring::new(nodes).expect("a valid ring");
        let mut user = 0;
        group.bench_with_input(BenchmarkId::from_parameter(count), &ring, |b, ring| {
            b.iter(|| {
                user = next_user(user);
                ring.owner_index(black_box(1_000_000 + user))
            });
        });
    }
    group.finish();
}

fn bench_presence(c: &mut Criterion) {
    let mut directory = Embedded::new(8, USERS as usize + 1);
    for user in 0..USERS {
        assert_eq!(directory.login(user, Entry::new(user, user as u32, 0, "", "")), LoginOutcome::Added);
    }
    let mut group = c.benchmark_group("presence");
    let mut user = 0;
    group.bench_function("sessions_online", |b| {
        b.iter(|| {
            user = next_user(user);
            directory.sessions(black_box(user)).first().map(|entry| entry.slot)
        });
    });
    group.bench_function("sessions_offline", |b| {
        b.iter(|| {
            user = next_user(user);
            directory.sessions(black_box(USERS + user)).first().map(|entry| entry.slot)
        });
    });
    group.bench_function("login_logout", |b| {
        b.iter(|| {
            user = next_user(user);
            let outcome = directory.login(USERS + user, Entry::new(user, 0, 0, "", ""));
            (outcome, directory.logout(USERS + user, user))
        });
    });
    group.finish();
}

criterion_group!(benches, bench_home_shard, bench_ring_owner, bench_presence);
criterion_main!(benches);
