//! One link by itself. Two of them on a network that cuts: see `model`.

mod model;

use super::*;
use crate::io::ConnId;
use crate::mesh::wire::{Address, BATCH_HEADER_BYTES, RECORD_BYTES_MAX, Seat};

const LIMITS: LinkLimits = LinkLimits { bytes_max: 1 << 20, reserve_bytes: 4 << 10 };
const STREAM: ResumeState = ResumeState { stream: 7, expected: 0 };

fn origin() -> Address {
    Address { node: 1, seat: Seat { shard: 2, conn: ConnId { slot: 3, generation: 4 } } }
}

fn message(id: u64, payload: &[u8]) -> Record<'_> {
    Record::Message { origin: origin(), from: 1, to: 2, id, hops: 0, flags: 0, payload }
}

fn gone(user: u64) -> Record<'static> {
    Record::Gone { user, session: 1 }
}

/// A link that is connected since time 0.
fn connected(limits: LinkLimits) -> Link {
    let mut link = Link::new(limits);
    assert_eq!(link.connected(0, STREAM), Ok(Resumed::Anew));
    link
}

/// Sends everything the link has at that time.
fn drain(link: &mut Link, now_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(Outgoing { buf, offset }) = link.take_send(now_ms) {
        bytes.extend_from_slice(&buf[offset..]);
        let taken = buf.len() - offset;
        link.sent(buf, taken);
    }
    bytes
}

/// The users of the Gone records in some bytes.
fn feed(link: &mut Link, bytes: &[u8], now_ms: u64) -> Vec<u64> {
    let mut users = Vec::new();
    let each = |record: Record<'_>| match record {
        Record::Gone { user, .. } => users.push(user),
        Record::Message { id, .. } => users.push(id),
        other => panic!("{other:?}"),
    };
    link.received(bytes, now_ms, each).unwrap();
    users
}

fn units(bytes: &[u8]) -> Vec<String> {
    let mut units = Vec::new();
    let each = |unit: Unit<'_>| {
        units.push(format!("{unit:?}"));
        Ok(())
    };
    Inbound::default().feed(bytes, each).unwrap();
    units
}

fn given_back(link: &mut Link) -> Vec<(u64, bool)> {
    let mut back = Vec::new();
    link.take_unconfirmed(|record, sent| match record {
        Record::Gone { user, .. } => back.push((user, sent)),
        Record::Message { id, .. } => back.push((id, sent)),
        other => panic!("{other:?}"),
    });
    back
}

#[test]
fn what_is_queued_in_a_turn_goes_out_in_one_send() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    for user in 0..100 {
        a.queue(&gone(user)).unwrap();
    }
    let Outgoing { buf, offset } = a.take_send(0).unwrap();
    assert!(a.take_send(0).is_none(), "one send at a time");
    a.queue(&gone(100)).unwrap();
    assert_eq!(feed(&mut b, &buf[offset..], 0), (0..100).collect::<Vec<_>>());
    let len = buf.len();
    a.sent(buf, len);
    assert_eq!(feed(&mut b, &drain(&mut a, 0), 0), [100], "what came meanwhile shares the next send");
}

#[test]
fn a_send_the_kernel_took_in_part_goes_on_where_it_stopped() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    (0..20).for_each(|user| a.queue(&gone(user)).unwrap());
    let mut users = Vec::new();
    while let Some(Outgoing { buf, offset }) = a.take_send(0) {
        let taken = (buf.len() - offset).min(17);
        users.extend(feed(&mut b, &buf[offset..offset + taken], 0));
        a.sent(buf, taken);
    }
    assert_eq!(users, (0..20).collect::<Vec<_>>());
}

#[test]
fn a_batch_ends_at_its_bound_and_a_larger_record_has_one_alone() {
    let limits = LinkLimits { bytes_max: 32 << 20, reserve_bytes: 0 };
    let mut link = connected(limits);
    let payload = vec![5; CHUNK_BYTES_MAX / 4];
    (0..5).for_each(|id| link.queue(&message(id, &payload)).unwrap());
    let longest = vec![6; RECORD_BYTES_MAX - 50];
    link.queue(&message(5, &longest)).unwrap();
    link.queue(&message(6, b"")).unwrap();
    let mut lens = Vec::new();
    while let Some(Outgoing { buf, offset }) = link.take_send(0) {
        lens.push(buf.len() - offset);
        let taken = buf.len();
        link.sent(buf, taken);
    }
    let record = payload.len() + 50;
    assert_eq!(
        lens,
        [
            BATCH_HEADER_BYTES + 3 * record,
            BATCH_HEADER_BYTES + 2 * record,
            BATCH_HEADER_BYTES + RECORD_BYTES_MAX,
            BATCH_HEADER_BYTES + 50,
        ]
    );
    let too_long = vec![6; RECORD_BYTES_MAX - 49];
    assert_eq!(link.queue(&message(7, &too_long)), Err(LinkFull::RecordTooLong));
}

#[test]
fn messages_are_refused_at_the_bound_and_answers_within_the_reserve_pass() {
    let mut link = connected(LinkLimits { bytes_max: 10_000, reserve_bytes: 2_000 });
    let payload = [0; 450];
    let mut id = 0;
    while link.queue(&message(id, &payload)).is_ok() {
        id += 1;
    }
    assert_eq!(link.queue(&message(id, &payload)), Err(LinkFull::Bytes));
    assert!(link.stats().unconfirmed_bytes <= 10_000);
    let mut answers = 0;
    while link.queue(&gone(1)).is_ok() {
        answers += 1;
    }
    assert!(answers >= 2_000 / 24, "{answers}");
    assert!(link.stats().unconfirmed_bytes <= 12_000);
    assert_eq!(link.stats().refused, 3);

    // The bound counts what is not confirmed, sent or not.
    let sent = drain(&mut link, 0);
    assert_eq!(link.queue(&gone(1)), Err(LinkFull::Bytes));
    let mut peer = connected(LIMITS);
    feed(&mut peer, &sent, 0);
    feed(&mut link, &drain(&mut peer, 50), 50);
    assert_eq!(link.stats().unconfirmed_bytes, 0);
    link.queue(&message(id, &payload)).unwrap();
}

#[test]
fn a_confirmation_rides_on_a_batch_or_goes_alone_after_its_delay() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    a.queue(&gone(1)).unwrap();
    feed(&mut b, &drain(&mut a, 0), 10);
    assert_eq!(b.next_deadline(10), Some(60));
    assert!(b.take_send(59).is_none());
    b.queue(&gone(2)).unwrap();
    let batch = drain(&mut b, 59);
    assert_eq!(units(&batch)[0], "Batch { seq: 0, ack: 1, records_bytes: 24 }");
    assert!(b.take_send(100).is_none(), "confirmed already");

    a.queue(&gone(3)).unwrap();
    feed(&mut b, &drain(&mut a, 100), 100);
    assert!(b.take_send(149).is_none());
    let alone = drain(&mut b, 150);
    assert_eq!(units(&alone), ["Heartbeat { ack: 2, sent_ms: 150, echo_ms: 0 }"]);
    feed(&mut a, &alone, 150);
    assert_eq!(a.stats().unconfirmed_bytes, 0);
}

#[test]
fn many_bytes_are_confirmed_at_once() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    let payload = vec![0; ACK_BYTES / 2];
    a.queue(&message(1, &payload)).unwrap();
    feed(&mut b, &drain(&mut a, 0), 5);
    assert!(b.take_send(5).is_none());
    a.queue(&message(2, &payload)).unwrap();
    feed(&mut b, &drain(&mut a, 5), 6);
    assert_eq!(b.next_deadline(6), Some(6));
    assert_eq!(units(&drain(&mut b, 6)), ["Heartbeat { ack: 2, sent_ms: 6, echo_ms: 0 }"]);
}

#[test]
fn heartbeats_keep_a_link_alive_and_silence_kills_it() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    let mut heartbeats = 0;
    let mut now_ms = 0;
    while now_ms < 10_000 {
        now_ms = a.next_deadline(now_ms).unwrap();
        let bytes = drain(&mut a, now_ms);
        heartbeats += usize::from(!bytes.is_empty());
        feed(&mut b, &bytes, now_ms);
        feed(&mut a, &drain(&mut b, now_ms), now_ms);
        assert!(!a.is_dead(now_ms) && !b.is_dead(now_ms));
    }
    assert_eq!(heartbeats, 20);
    assert!(!a.is_dead(now_ms + DEAD_AFTER_MS - 1));
    assert!(a.is_dead(now_ms + DEAD_AFTER_MS));
    a.disconnected();
    assert!(!a.is_dead(now_ms + DEAD_AFTER_MS), "there is no connection to be dead");
    assert_eq!(a.next_deadline(now_ms), None);
}

#[test]
fn a_buffer_that_the_ring_keeps_wakes_nobody_until_the_peer_is_dead() {
    let mut link = connected(LIMITS);
    link.queue(&gone(1)).unwrap();
    assert_eq!(link.next_deadline(5), Some(5));
    let lent = link.take_send(5).unwrap();
    assert_eq!(link.next_deadline(5), Some(DEAD_AFTER_MS));
    link.sent(lent.buf, 1);
    assert_eq!(link.next_deadline(5), Some(5), "the rest is to be sent");
}

#[test]
fn the_round_trip_is_measured_without_the_time_an_echo_was_held() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    let to_b = drain(&mut a, 500);
    feed(&mut b, &to_b, 510); // 10 ms on the way
    let to_a = drain(&mut b, 900); // held for 390 ms
    feed(&mut a, &to_a, 907); // 7 ms back
    assert_eq!(a.stats().rtt_us, 17_000);
    assert_eq!(b.stats().rtt_us, 0);
    // An echo from the future tells nothing.
    feed(&mut a, &heartbeat_frame(0, 1, 5_000), 1_000);
    assert_eq!(a.stats().rtt_us, 17_000);
}

#[test]
fn a_resumed_stream_goes_on_within_a_chunk() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    (0..10).for_each(|user| a.queue(&gone(user)).unwrap());
    let Outgoing { buf, offset } = a.take_send(0).unwrap();
    // The connection is cut within the fifth record.
    let cut = offset + BATCH_HEADER_BYTES + 4 * 24 + 11;
    assert_eq!(feed(&mut b, &buf[offset..cut], 0), [0, 1, 2, 3]);
    a.disconnected();
    a.sent(buf, cut - offset);
    (10..12).for_each(|user| a.queue(&gone(user)).unwrap());
    b.disconnected();

    let claim = a.resume_state();
    let answer = b.answer(claim, 99);
    assert_eq!(answer, ResumeState { stream: 7, expected: 4 });
    assert_eq!(b.connected(10, claim), Ok(Resumed::Same));
    assert_eq!(a.connected(10, answer), Ok(Resumed::Same));
    let again = a.take_send(10).unwrap();
    assert_eq!(units(&again.buf[again.offset..])[0], "Batch { seq: 4, ack: 0, records_bytes: 144 }");
    assert_eq!(feed(&mut b, &again.buf[again.offset..], 10), (4..10).collect::<Vec<_>>());
    let taken = again.buf.len() - again.offset;
    a.sent(again.buf, taken);
    assert_eq!(feed(&mut b, &drain(&mut a, 10), 10), [10, 11]);
    assert_eq!((a.stats().resent, a.stats().reconnects, b.stats().duplicates), (6, 1, 0));
    feed(&mut a, &drain(&mut b, 60), 60);
    assert_eq!(a.stats().unconfirmed_bytes, 0);
}

#[test]
fn records_that_come_again_are_dropped_and_a_gap_is_a_violation() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    (0..3).for_each(|user| a.queue(&gone(user)).unwrap());
    let first = drain(&mut a, 0);
    a.queue(&gone(3)).unwrap();
    let second = drain(&mut a, 0);
    assert_eq!(feed(&mut b, &first, 0), [0, 1, 2]);
    assert!(feed(&mut b, &first, 0).is_empty());
    assert_eq!(feed(&mut b, &second, 0), [3]);
    assert_eq!(b.stats().duplicates, 3);

    let mut c = connected(LIMITS);
    let result = c.received(&second, 0, |_| panic!("nothing of this"));
    assert_eq!(result, Err(MeshViolation::Gap { expected: 0, seq: 3 }));
    assert!(!c.is_connected());
    assert_eq!(c.resume_state(), ResumeState::default(), "the next handshake begins a new stream");
}

#[test]
fn a_confirmation_of_what_was_never_sent_is_a_violation() {
    let mut link = connected(LIMITS);
    link.queue(&gone(1)).unwrap();
    let result = link.received(&heartbeat_frame(1, 0, 0), 0, |_| {});
    assert_eq!(result, Err(MeshViolation::AckBeyondSent { ack: 1, sent: 0 }));
    assert_eq!(given_back(&mut link), [(1, false)]);

    let mut link = connected(LIMITS);
    link.disconnected();
    let result = link.connected(0, ResumeState { stream: 7, expected: 1 });
    assert_eq!(result, Err(MeshViolation::AckBeyondSent { ack: 1, sent: 0 }));
    assert!(!link.is_connected());
}

#[test]
fn a_stream_that_ended_gives_back_what_was_not_confirmed_and_says_what_may_have_arrived() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    (0..4).for_each(|user| a.queue(&gone(user)).unwrap());
    let Outgoing { buf, offset } = a.take_send(0).unwrap();
    feed(&mut b, &buf[offset..offset + BATCH_HEADER_BYTES + 2 * 24], 0);
    feed(&mut a, &drain(&mut b, 50), 50); // 0 and 1 are confirmed, while the ring still has the buffer
    (4..6).for_each(|user| a.queue(&gone(user)).unwrap());

    assert_eq!(a.connected(100, ResumeState { stream: 8, expected: 0 }), Ok(Resumed::Anew));
    a.queue(&gone(6)).unwrap();
    assert!(given_back(&mut a).is_empty(), "the ring has the buffer of the first");
    assert!(a.take_send(100).is_none() && a.is_lent());
    a.sent(buf, 0);
    assert_eq!(given_back(&mut a), [(2, true), (3, true), (4, false), (5, false)]);
    assert_eq!(a.stats().given_back, 4);
    let fresh = drain(&mut a, 100);
    assert_eq!(units(&fresh)[0], "Batch { seq: 0, ack: 0, records_bytes: 24 }");
    let mut c = connected(LIMITS);
    assert_eq!(feed(&mut c, &fresh, 100), [6]);
    feed(&mut a, &drain(&mut c, 150), 150);
    assert_eq!(a.stats().unconfirmed_bytes, 0);
}

#[test]
fn what_is_queued_before_the_first_connection_goes_into_its_stream() {
    let mut link = Link::new(LIMITS);
    link.queue(&gone(1)).unwrap();
    assert!(link.take_send(0).is_none());
    assert_eq!(link.connected(0, STREAM), Ok(Resumed::Anew));
    // Nor does a second attempt lose it: the first connection carried nothing.
    assert_eq!(link.connected(0, ResumeState { stream: 8, expected: 0 }), Ok(Resumed::Anew));
    assert!(given_back(&mut link).is_empty());
    let mut peer = connected(LIMITS);
    assert_eq!(feed(&mut peer, &drain(&mut link, 0), 0), [1]);
}

#[test]
fn a_fresh_stream_has_an_id_of_its_own() {
    let link = connected(LIMITS);
    assert_eq!(link.answer(STREAM, 99), STREAM);
    for (claimed, random, stream) in [(0, 99, 99), (8, 8, 9), (6, 6, 8), (0, 0, 1), (0, 7, 8), (u64::MAX, u64::MAX, 1)]
    {
        let claim = ResumeState { stream: claimed, expected: 0 };
        assert_eq!(link.answer(claim, random), ResumeState { stream, expected: 0 }, "{claimed}, {random}");
    }
    let beyond = ResumeState { stream: 7, expected: 1 };
    assert_eq!(link.answer(beyond, 99).stream, 99, "a peer that expects what was never sent starts anew");
}

#[test]
fn a_goodbye_follows_everything_queued() {
    let (mut a, mut b) = (connected(LIMITS), connected(LIMITS));
    a.queue(&gone(1)).unwrap();
    a.say_goodbye(crate::mesh::wire::goodbye::SHUTDOWN);
    a.queue(&gone(2)).unwrap();
    let bytes = drain(&mut a, 0);
    assert_eq!(a.next_deadline(0), Some(DEAD_AFTER_MS));
    assert_eq!(feed(&mut b, &bytes, 0), [1, 2]);
    assert_eq!(b.peer_goodbye(), Some(1));
    assert!(a.take_send(10_000).is_none(), "nothing comes after it");
}

#[test]
fn attempts_to_connect_back_off_within_bounds_until_bytes_come() {
    let mut link = Link::new(LIMITS);
    for most in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
        let mut other = Link { attempts: link.attempts, ..Link::new(LIMITS) };
        let delays = [link.reconnect_delay_ms(0), other.reconnect_delay_ms(most / 2)];
        assert_eq!(delays, [most / 2, most]);
    }
    for random in 0..100_000 {
        let delay = link.reconnect_delay_ms(random * 7_919);
        assert!((RECONNECT_MS_MIN..=RECONNECT_MS_MAX).contains(&delay));
    }
    link.connected(0, STREAM).unwrap();
    feed(&mut link, &heartbeat_frame(0, 0, 0), 0);
    assert_eq!(link.reconnect_delay_ms(0), RECONNECT_MS_MIN);
}

#[test]
fn chunks_after_a_burst_do_not_keep_its_memory() {
    let mut link = connected(LinkLimits { bytes_max: 64 << 20, reserve_bytes: 0 });
    let payload = vec![0; 4_000];
    (0..200).for_each(|id| link.queue(&message(id, &payload)).unwrap());
    drain(&mut link, 0);
    let mut memory = 0;
    for id in 0..1_000 {
        link.queue(&message(id, b"")).unwrap();
        let Outgoing { buf, .. } = link.take_send(0).unwrap();
        memory += buf.capacity();
        let taken = buf.len();
        link.sent(buf, taken);
    }
    assert!(memory < (256 << 10) + 2 * 1_000 * (BATCH_HEADER_BYTES + 50), "{memory} bytes");
}

/// What it holds goes up and down around half of what it may hold, record by record, and comes down in the end.
#[test]
fn a_link_at_its_mark_does_not_change_its_word_with_each_record() {
    let held = (0..200).map(|step| if step % 2 == 0 { 10_050 } else { 9_950 }).chain([7_501, 7_500, 9_000, 10_000]);
    let (mut easy, mut changes) = (true, Vec::new());
    for bytes in held {
        let now = is_easy_with(bytes, 20_000, easy);
        if std::mem::replace(&mut easy, now) != now {
            changes.push((bytes, now));
        }
    }
    assert_eq!(changes, [(10_050, false), (7_500, true)]);
}
