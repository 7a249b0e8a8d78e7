//! Decoding: one frame of 96 bytes, and a buffer of many.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use trunkline_proto::{Decoder, FRAME_BYTES_MAX_DEFAULT, Header, Kind, decode, encode};

const PAYLOAD: [u8; 64] = [7; 64];

fn sends(count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in 1..=count {
        let header = Header { kind: Kind::Send, flags: 0, aux: 0, id, peer: 2, stamp: 0 };
        encode(&mut bytes, &header, &PAYLOAD);
    }
    bytes
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let one = sends(1);
    group.throughput(Throughput::Elements(1));
    group.bench_function("one SEND of 96 bytes", |bencher| {
        bencher.iter(|| decode(black_box(&one), FRAME_BYTES_MAX_DEFAULT).map(|frame| frame.map(|(frame, _)| frame.id)));
    });
    let partial = &one[..95];
    group.bench_function("a SEND that lacks a byte", |bencher| {
        bencher.iter(|| decode(black_box(partial), FRAME_BYTES_MAX_DEFAULT).map(|frame| frame.is_none()));
    });
    for count in [32, 2_000] {
        let bytes = sends(count);
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} SEND in one buffer"), |bencher| {
            bencher.iter(|| {
                let mut sum = 0_u64;
                for frame in Decoder::new(black_box(&bytes), FRAME_BYTES_MAX_DEFAULT) {
                    sum = sum.wrapping_add(frame.expect("valid frames").id);
                }
                sum
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decoding);
criterion_main!(benches);
