//! The promises of [`Ring`] on real sockets.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use super::*;

const SHAPE: RingShape = RingShape { submissions: 8, completions: 64, slots: 4, buffers: 4, buffer_bytes: 1_024 };
const PATIENCE: Duration = Duration::from_secs(20);

/// A ring with a connected socket in slot 0, and the other end.
fn connected() -> (Ring, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    let (far, _) = listener.accept().expect("accepts");
    let mut ring = Ring::new(SHAPE).expect("a ring");
    ring.install(0, &[near.as_raw_fd()]).expect("room");
    (ring, far)
}

/// Turns the ring until it reports something.
fn next(ring: &mut Ring) -> Completion {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        assert!(Instant::now() < deadline, "nothing was reported");
        ring.turn(Wait::AtMost { completions: 1, timeout: Duration::from_millis(100) }).expect("turns");
    }
}

/// Bytes in which every position can be told from its neighbours.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn stage(ring: &mut Ring, bytes: &[u8]) {
    let start = ring.staged().len();
    ring.staged().extend_from_slice(bytes);
    ring.begin_sends();
    ring.send_staged(0, start, bytes.len()).expect("queued");
}

#[test]
fn a_send_that_works_reports_nothing_and_is_over_when_the_turn_is() {
    let (mut ring, mut far) = connected();
    let mut sent = Vec::new();
    for round in 0..100u8 {
        let bytes = [round; 100];
        stage(&mut ring, &bytes);
        assert_eq!(ring.turn(Wait::No).expect("turns"), 0);
        // The bytes of this send are overwritten by the next one.
        sent.extend_from_slice(&bytes);
    }
    let mut received = vec![0; sent.len()];
    far.read_exact(&mut received).expect("all of it");
    assert_eq!(received, sent);
}

#[test]
fn what_the_peer_does_not_take_comes_back_and_nothing_is_lost() {
    let (mut ring, mut far) = connected();
    let bytes = pattern(64 << 20);
    stage(&mut ring, &bytes);
    let mut reader = None;
    let mut stops = 0;
    loop {
        ring.turn(Wait::No).expect("turns");
        let Some(completion) = ring.next() else { break };
        let Completion::SendStopped { slot: 0, errno: 0, rest } = completion else { panic!("{completion:?}") };
        stops += 1;
        // Only now does the peer begin to read.
        let len = bytes.len();
        let mut far = far.try_clone().expect("a descriptor");
        reader.get_or_insert_with(|| {
            thread::spawn(move || {
                let mut received = vec![0; len];
                far.read_exact(&mut received).map(|()| received)
            })
        });
        ring.wait_writable(0).expect("queued");
        assert!(matches!(next(&mut ring), Completion::Writable { slot: 0 }));
        stage(&mut ring, &rest);
    }
    assert!(stops > 0, "64 MiB fit into no socket");
    assert_eq!(ring.counters().short_sends, stops);
    let received = reader.expect("started").join().expect("no panic").expect("all of it");
    assert!(received == bytes, "bytes were lost or changed");
    far.write_all(b"x").expect("still connected");
}

#[test]
fn an_echoed_buffer_serves_again() {
    let (mut ring, mut far) = connected();
    ring.receive_many(0).expect("queued");
    // Many times the four buffers of the ring.
    for round in 0..50u8 {
        far.write_all(&[round; 64]).expect("sent");
        let Completion::Received { slot: 0, buffer, armed: true } = next(&mut ring) else { panic!("a receive") };
        assert_eq!(ring.received(&buffer).0, [round; 64]);
        ring.begin_sends();
        ring.send_buffer(0, buffer).expect("queued");
        ring.turn(Wait::No).expect("turns");
        let mut echo = [0; 64];
        far.read_exact(&mut echo).expect("the echo");
        assert_eq!(echo, [round; 64]);
    }
}

#[test]
fn a_receive_without_buffers_ends_and_can_be_armed_again() {
    let (mut ring, mut far) = connected();
    ring.receive_many(0).expect("queued");
    far.write_all(&pattern(8 * 1_024)).expect("sent");
    let mut held = Vec::new();
    loop {
        match next(&mut ring) {
            Completion::Received { buffer, .. } => held.push(buffer),
            Completion::ReceiveEnded { slot: 0, end } => {
                assert_eq!(end, ReceiveEnd::OutOfBuffers);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(held.len(), 4);
    let mut received = Vec::new();
    for buffer in held {
        received.extend_from_slice(ring.received(&buffer).0);
        ring.recycle(buffer);
    }
    ring.receive_many(0).expect("queued");
    while received.len() < 8 * 1_024 {
        match next(&mut ring) {
            Completion::Received { buffer, .. } => {
                received.extend_from_slice(ring.received(&buffer).0);
                ring.recycle(buffer);
            }
            Completion::ReceiveEnded { end: ReceiveEnd::OutOfBuffers, .. } => ring.receive_many(0).expect("queued"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, pattern(8 * 1_024));
}

#[test]
fn closing_ends_the_receive_and_frees_the_slot() {
    let (mut ring, mut far) = connected();
    ring.receive_many(0).expect("queued");
    ring.turn(Wait::No).expect("turns");
    ring.close(0).expect("queued");
    // Of the receive that was cancelled nothing is reported: the slot may be in use again by then.
    assert!(matches!(next(&mut ring), Completion::Closed { slot: 0 }));
    assert_eq!(far.read(&mut [0; 8]).expect("the end"), 0);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    ring.accept_one(listener.as_fd()).expect("queued");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    assert!(matches!(next(&mut ring), Completion::Accepted { slot: 0 }));
}

#[test]
fn more_submissions_than_the_queue_holds_all_go_out() {
    let (mut ring, mut far) = connected();
    stage(&mut ring, b"first of all");
    for _ in 0..40 {
        ring.wait_writable(0).expect("queued");
    }
    for _ in 0..40 {
        assert!(matches!(next(&mut ring), Completion::Writable { slot: 0 }));
    }
    let mut received = [0; 12];
    far.read_exact(&mut received).expect("sent");
    assert_eq!(&received, b"first of all");
}
