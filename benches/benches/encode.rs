//! Encoding: a DELIVER of 96 bytes, alone and many into one outbox, and a protobuf message.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trunkline_proto::{Header, Kind, LoginOk, encode, encode_message};

const PAYLOAD: [u8; 64] = [7; 64];

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let deliver = Header { kind: Kind::Deliver, flags: 0, aux: 0, id: 1, peer: 2, stamp: 3 };
    let mut out = Vec::with_capacity(1 << 20);
    for count in [1, 32, 2_000] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} DELIVER of 96 bytes"), |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..count {
                    encode(&mut out, black_box(&deliver), black_box(&PAYLOAD));
                }
                out.len()
            });
        });
    }
    let login_ok = LoginOk {
        session: 1 << 40,
        node: "node-1".to_owned(),
        shard: 3,
        heartbeat_secs: 30,
        time_ms: 1_760_000_000_000,
        max_frame: 65_536,
        ..LoginOk::default()
    };
    group.throughput(Throughput::Elements(1));
    group.bench_function("LOGIN_OK", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_message(&mut out, Kind::LoginOk, 0, black_box(&login_ok));
            out.len()
        });
    });
    group.finish();
}

criterion_group!(benches, encoding);
criterion_main!(benches);
