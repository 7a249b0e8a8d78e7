//! The timer wheel: moving a deadline, as each frame of a busy connection may, and a tick with many idle connections.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trunkline_gateway::wheel::TimerWheel;

/// Connections with a deadline.
const SLOTS: u32 = 100_000;
/// Their deadlines lie this far ahead, spread evenly: one in 600 is due at each tick.
const DELAY_TICKS: u32 = 600;

fn armed() -> TimerWheel {
    let mut wheel = TimerWheel::new(SLOTS);
    for slot in 0..SLOTS {
        wheel.arm(slot, 1 + slot % DELAY_TICKS);
    }
    wheel
}

fn timers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("timer wheel, 100,000 armed");
    group.throughput(Throughput::Elements(1));
    let mut wheel = armed();
    let mut slot = 0;
    group.bench_function("move a deadline", |bencher| {
        bencher.iter(|| {
            // A stride that visits all slots, but not in the order of memory.
            slot = (slot + 7_919) % SLOTS;
            wheel.arm(black_box(slot), black_box(DELAY_TICKS - slot % 7));
        });
    });
    group.bench_function("an earlier deadline is set already", |bencher| {
        bencher.iter(|| {
            slot = (slot + 7_919) % SLOTS;
            wheel.arm_earlier(black_box(slot), black_box(2 * DELAY_TICKS));
        });
    });

    let mut wheel = armed();
    let mut due = Vec::new();
    let mut now = 0;
    group.throughput(Throughput::Elements(u64::from(SLOTS / DELAY_TICKS)));
    group.bench_function("a tick: 166 are due and are armed again", |bencher| {
        bencher.iter(|| {
            now += 1;
            due.clear();
            wheel.advance(now, &mut due);
            for &slot in &due {
                wheel.arm(slot, now + DELAY_TICKS);
            }
            due.len()
        });
    });
    group.finish();
}

criterion_group!(benches, timers);
criterion_main!(benches);
