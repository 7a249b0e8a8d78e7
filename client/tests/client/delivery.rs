//! Messages in both directions over one connection.

use std::time::Duration;

use crate::support::{config, pair};
use tokio::time::timeout;
use trunkline_client::{Acknowledge, Client, Code, Config, Error, Event, Events, Message, Outcome, Outgoing, Reason};
use trunkline_proto::{Bye, Kind, flags};

async fn message(events: &mut Events) -> Message {
    match events.next().await {
        Some(Event::Message(message)) => message,
        other => panic!("expected a message, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_send_carries_no_ack_flag_and_waits_for_nothing() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let first = client.send(2, "one").await.expect("sent");
    let second = client.send(2, b"two".as_slice()).await.expect("sent");
    let frame = peer.expect_send("one").await;
    assert_eq!((frame.peer, frame.id, frame.flags, frame.stamp), (2, first, 0, 0));
    let frame = peer.expect_send("two").await;
    assert_eq!((frame.id, frame.flags), (second, 0));
    assert!(first != 0 && second != 0 && first != second);
}

#[tokio::test(start_paused = true)]
async fn an_acked_send_ends_with_the_outcome_the_gateway_reports() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    for outcome in
        [Outcome::Delivered, Outcome::Stored, Outcome::OfflineNotStored, Outcome::Overloaded, Outcome::Denied]
    {
        let fate = async {
            let frame = peer.expect_send("hello").await;
            assert_eq!(frame.flags, flags::ACK);
            peer.sent(&frame, outcome).await;
        };
        let (reported, ()) = tokio::join!(client.send_acked(2, "hello"), fate);
        assert_eq!(reported.expect("a fate"), outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_or_an_error_for_another_message_settles_nothing() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    let receipt = client.send_tracked(2, "mine").await.expect("queued");
    let frame = peer.expect_send("mine").await;
    assert_eq!(frame.id, receipt.id());
    // The right id with the wrong peer, then the wrong id.
    peer.write(Kind::Sent, 0, 0, frame.id, 3, 0, &[]).await;
    peer.write(Kind::Sent, 0, 0, frame.id + 1, 2, 0, &[]).await;
    peer.write(Kind::Error, 0, 14, frame.id + 1, 2, 0, b"busy").await;
    let expected =
        Event::ServerError { code: Code::Overloaded.as_u16(), text: "busy".into(), id: frame.id + 1, peer: 2 };
    assert_eq!(events.next().await, Some(expected));
    peer.sent(&frame, Outcome::Stored).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Stored);
}

#[tokio::test(start_paused = true)]
async fn an_error_about_an_acked_message_goes_to_its_sender() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let receipt = client.send_tracked(2, "too fast").await.expect("queued");
    let frame = peer.expect_send("too fast").await;
    let code = Code::RateLimited.as_u16();
    peer.write(Kind::Error, 0, code, frame.id, 2, 0, b"slow down").await;
    match receipt.outcome().await {
        Err(Error::Refused { code: 11, text }) => assert_eq!(text, "slow down"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_from_the_future_is_an_error_with_its_number() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let receipt = client.send_tracked(2, "x").await.expect("queued");
    let frame = peer.expect_send("x").await;
    peer.write(Kind::Sent, 0, 999, frame.id, 2, 0, &[]).await;
    assert!(matches!(receipt.outcome().await, Err(Error::UnknownOutcome(999))));
}

#[tokio::test(start_paused = true)]
async fn tracked_messages_keep_the_order_of_their_calls() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let mut receipts = Vec::new();
    for number in 0..100 {
        receipts.push(client.send_tracked(2, number.to_string()).await.expect("queued"));
    }
    for (number, receipt) in receipts.iter().enumerate() {
        let frame = peer.expect_send(&number.to_string()).await;
        assert_eq!(frame.id, receipt.id());
    }
    assert!(receipts.windows(2).all(|two| two[0].id() < two[1].id()));
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_when_the_application_takes_it_and_not_before() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    peer.expect_quiet(Duration::from_secs(100)).await;
    let received = message(&mut events).await;
    assert_eq!((received.from, received.id, received.stamp, received.flags), (2, 7, 100, flags::ACK));
    assert_eq!(received.body, b"hello".as_slice());
    let ack = peer.expect(Kind::Ack).await;
    assert_eq!((ack.peer, ack.id, ack.stamp, ack.body.len()), (2, 7, 100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_without_the_ack_flag_is_never_acknowledged() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.write(Kind::Deliver, flags::SELF, 0, 7, 1, 100, b"from my phone").await;
    let received = message(&mut events).await;
    assert!(received.is_own() && !received.wants_ack());
    peer.expect_quiet(Duration::from_secs(100)).await;
}

#[tokio::test(start_paused = true)]
async fn where_it_is_left_to_the_application_only_the_application_acknowledges() {
    let (client, mut events, mut peer, _board) = pair(Config { acknowledge: Acknowledge::Manually, ..config() }).await;
    peer.deliver(2, 7, 100, "hello").await;
    let received = message(&mut events).await;
    peer.expect_quiet(Duration::from_secs(100)).await;
    client.ack(&received).await.expect("queued");
    let ack = peer.expect(Kind::Ack).await;
    assert_eq!((ack.peer, ack.id, ack.stamp), (2, 7, 100));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_next_loses_neither_message_nor_acknowledgement() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    for _ in 0..3 {
        let cancelled = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
        assert!(cancelled.is_err());
    }
    peer.deliver(2, 7, 100, "hello").await;
    assert_eq!(message(&mut events).await.id, 7);
    assert_eq!(peer.expect(Kind::Ack).await.id, 7);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_taken_message_is_acknowledged_again_and_not_shown() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    assert_eq!(message(&mut events).await.id, 7);
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 100);

    peer.deliver_again(2, 7, 200, "hello").await;
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 200);
    peer.deliver(2, 8, 300, "next").await;
    assert_eq!(message(&mut events).await.id, 8);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_waiting_message_is_acknowledged_once_with_its_newest_stamp() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    peer.deliver_again(2, 7, 200, "hello").await;
    peer.deliver(3, 7, 300, "same id, other sender").await;
    peer.expect_quiet(Duration::from_secs(100)).await;

    assert_eq!(message(&mut events).await.from, 2);
    assert_eq!(message(&mut events).await.from, 3);
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 200);
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 300);
    peer.expect_quiet(Duration::from_secs(100)).await;
}

#[tokio::test(start_paused = true)]
async fn messages_without_acknowledgement_are_never_taken_for_duplicates() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    for body in [b"a", b"b"] {
        peer.write(Kind::Deliver, 0, 0, 7, 2, 0, body).await;
    }
    assert_eq!(message(&mut events).await.body, b"a".as_slice());
    assert_eq!(message(&mut events).await.body, b"b".as_slice());
}

#[tokio::test(start_paused = true)]
async fn frames_split_at_any_byte_and_frames_of_the_future_are_understood() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    let mut bytes = Vec::new();
    // A kind of the future.
    bytes.extend_from_slice(&[0, 0, 0, 9, 0xEE, 0, 0, 0, 1]);
    let header = trunkline_proto::Header { kind: Kind::Deliver, flags: 0, aux: 0, id: 5, peer: 2, stamp: 9 };
    trunkline_proto::encode(&mut bytes, &header, &[b'x'; 40_000]);
    for byte in bytes.chunks(997) {
        peer.raw(byte).await;
    }
    for &byte in &bytes[..60] {
        peer.raw(&[byte]).await;
    }
    peer.raw(&bytes[60..]).await;
    for _ in 0..2 {
        assert_eq!(message(&mut events).await.body.len(), 40_000);
    }
}

#[tokio::test(start_paused = true)]
async fn the_number_of_unacked_messages_is_bounded_and_a_fate_makes_room() {
    let (client, _events, mut peer, _board) = pair(Config { unacked_max: 2, ..config() }).await;
    let first = client.send_tracked(2, "1").await.expect("room");
    let _second = client.send_tracked(2, "2").await.expect("room");
    assert!(matches!(client.send_tracked(2, "3").await, Err(Error::TooManyUnacked { max: 2 })));
    assert!(matches!(client.send_acked(2, "3").await, Err(Error::TooManyUnacked { max: 2 })));
    // Messages without a fate are not counted.
    client.send(2, "4").await.expect("sent");

    let frame = peer.expect_send("1").await;
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(first.outcome().await.expect("a fate"), Outcome::Delivered);
    client.send_tracked(2, "5").await.expect("room again").detach();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_gets_it_with_a_fate_and_hears_of_the_end() {
    let (client, _events, mut peer, _board) = pair(Config { unacked_max: 1, ..config() }).await;
    let submit = |body: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.submit_when_room(Outgoing::new(2, body)).await })
    };
    client.send_tracked(2, "1").await.expect("room").detach();
    let frame = peer.expect_send("1").await;
    let second = submit("2");
    // One that gives up waiting is not sent, and takes nobody's place.
    let gives_up = client.submit_when_room(Outgoing::new(2, "given up"));
    assert!(timeout(Duration::from_secs(1), gives_up).await.is_err());
    assert!(!second.is_finished());
    peer.sent(&frame, Outcome::OfflineNotStored).await;
    let second = second.await.expect("no panic").expect("room");
    peer.expect_send("2").await;

    let third = submit("3");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.close().await.len(), 1);
    assert!(matches!(third.await.expect("no panic"), Err(Error::Closed(_))));
    assert!(matches!(second.outcome().await, Err(Error::Closed(_))));
}

#[tokio::test(start_paused = true)]
async fn sending_waits_when_the_gateway_does_not_read_and_memory_stays_bounded() {
    let (client, _events, mut peer, _board) = pair(Config { send_queue_len: 4, ..config() }).await;
    let payload = vec![b'x'; 10_000];
    let mut accepted = 0_usize;
    // 64 KiB on the way, 64 KiB and a frame in the buffer, 4 in the queue, at 10,032 bytes each.
    while tokio::time::timeout(Duration::from_secs(1), client.send(2, payload.clone())).await.is_ok() {
        accepted += 1;
        assert!(accepted < 30, "nothing holds the sender back");
    }
    assert!(accepted >= 10, "{accepted}");
    for _ in 0..accepted {
        assert_eq!(peer.expect(Kind::Send).await.body.len(), 10_000);
    }
    client.send(2, "room again").await.expect("sent");
    peer.expect_send("room again").await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_sends_and_never_reads_cannot_grow_the_send_buffer() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 1, "").await;
    assert_eq!(message(&mut events).await.id, 7);
    // Each of these calls for an ACK of the same size. 64 KiB fit on the way in either direction, 64 KiB in the send
    // buffer.
    let mut taken = 0_u64;
    let patience = Duration::from_secs(1);
    while tokio::time::timeout(patience, peer.deliver_again(2, 7, taken, "")).await.is_ok() {
        taken += 1;
        assert!(taken < 10_000, "the client reads on without bound");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_larger_than_the_event_queue_arrives_whole_if_the_application_keeps_up() {
    let (_client, mut events, mut peer, _board) = pair(Config { event_queue_len: 4, ..config() }).await;
    let sender = tokio::spawn(async move {
        for id in 1..=3_000 {
            peer.deliver(2, id, id, "burst").await;
        }
        for id in 1..=3_000 {
            assert_eq!(peer.expect(Kind::Ack).await.id, id);
        }
    });
    for id in 1..=3_000 {
        assert_eq!(message(&mut events).await.id, id);
    }
    sender.await.expect("every message is acknowledged, in order");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_take_its_events_loses_a_counted_number_and_gets_acked_ones_again() {
    let (client, mut events, mut peer, _board) = pair(Config { event_queue_len: 2, ..config() }).await;
    // Two fill the queue and two are read ahead; the others have no place.
    for id in 1..=7 {
        peer.deliver(2, id, id, "flood").await;
    }
    // Its fate comes behind the flood: waiting for it must not wait for the application.
    let receipt = client.send_tracked(2, "x").await.expect("queued");
    let frame = peer.expect_send("x").await;
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Delivered);

    for id in 1..=4 {
        assert_eq!(message(&mut events).await.id, id);
        assert_eq!(peer.expect(Kind::Ack).await.id, id);
    }
    assert_eq!(events.next().await, Some(Event::Lost { count: 3 }));
    peer.deliver_again(2, 5, 5, "flood").await;
    assert_eq!(message(&mut events).await.id, 5);
    assert_eq!(peer.expect(Kind::Ack).await.id, 5);
}

#[tokio::test(start_paused = true)]
async fn fates_and_pongs_behind_a_full_queue_are_heard_at_once() {
    let patient = Config { event_queue_len: 8, event_wait: Duration::MAX, ..config() };
    let (client, mut events, mut peer, _board) = pair(patient).await;
    // The queue is full and nearly as much is read ahead.
    for id in 1..=15 {
        peer.deliver(2, id, id, "flood").await;
    }
    let began = tokio::time::Instant::now();
    let receipt = client.send_tracked(2, "x").await.expect("queued");
    let frame = peer.expect_send("x").await;
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Delivered);
    let (round_trip, ()) = tokio::join!(client.ping(), async {
        let aux = peer.expect(Kind::Ping).await.aux;
        peer.write(Kind::Pong, 0, aux, 0, 0, 0, &[]).await;
    });
    assert_eq!(round_trip.expect("answered"), Duration::ZERO);
    assert_eq!(began.elapsed(), Duration::ZERO);
    // What comes then waits in the connection, however long, and nothing is lost.
    for id in 16..=40 {
        peer.deliver(2, id, id, "flood").await;
    }
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    let application = tokio::spawn(async move {
        for id in 1..=40 {
            assert_eq!(message(&mut events).await.id, id);
        }
        events
    });
    let mut acknowledged = 0;
    while acknowledged < 40 {
        let frame = peer.frame().await.expect("the client stays");
        match frame.kind {
            Kind::Ack => acknowledged += 1,
            Kind::Ping => peer.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await,
            other => panic!("{other:?}"),
        }
    }
    drop(application.await.expect("in order"));
}

#[tokio::test(start_paused = true)]
async fn payloads_are_bounded_by_the_frame_size_of_the_login() {
    let (dial, mut board) = crate::support::Switchboard::new();
    let (connected, mut peer) = tokio::join!(Client::connect_with(config(), dial), async {
        let mut peer = board.arrival().await.peer;
        peer.admit_with(|answer| answer.max_frame = 2_048).await;
        peer
    });
    let (client, _events) = connected.expect("logged in");
    assert_eq!(client.session().frame_bytes_max, 2_048);
    client.send(2, vec![0; 2_016]).await.expect("exactly fits");
    assert_eq!(peer.expect(Kind::Send).await.body.len(), 2_016);
    for result in
        [client.send(2, vec![0; 2_017]).await.map(|_| ()), client.send_acked(2, vec![0; 2_017]).await.map(|_| ())]
    {
        assert!(matches!(result, Err(Error::PayloadTooLarge { bytes: 2_017, bytes_max: 2_016 })));
    }
}

#[tokio::test(start_paused = true)]
async fn user_zero_is_refused_as_recipient_and_as_self() {
    let (client, _events, _peer, _board) = pair(config()).await;
    assert!(matches!(client.send(0, "x").await, Err(Error::NoSuchUser)));
    assert!(matches!(client.send_acked(0, "x").await, Err(Error::NoSuchUser)));
    let (dial, _board) = crate::support::Switchboard::new();
    let refused = Client::connect_with(Config::default(), dial).await;
    assert!(matches!(refused, Err(Error::Config(_))));
}

#[tokio::test(start_paused = true)]
async fn a_ping_measures_until_its_own_pong() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let (one, two, ()) = tokio::join!(client.ping(), client.ping(), async {
        let one = peer.expect(Kind::Ping).await.aux;
        let two = peer.expect(Kind::Ping).await.aux;
        assert!(one != two && one != 0 && two != 0);
        tokio::time::sleep(Duration::from_millis(20)).await;
        peer.write(Kind::Pong, 0, two, 0, 0, 0, &[]).await;
        peer.write(Kind::Pong, 0, 4_711, 0, 0, 0, &[]).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        peer.write(Kind::Pong, 0, one, 0, 0, 0, &[]).await;
    });
    assert_eq!(one.expect("answered"), Duration::from_millis(50));
    assert_eq!(two.expect("answered"), Duration::from_millis(20));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_pings_under_way_is_bounded() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let mut pings = tokio::task::JoinSet::new();
    for _ in 0..33 {
        let client = client.clone();
        pings.spawn(async move { client.ping().await });
    }
    let first = pings.join_next().await.expect("33 of them").expect("no panic");
    assert!(matches!(first, Err(Error::TooManyPings { max: 32 })));
    for _ in 0..32 {
        let aux = peer.expect(Kind::Ping).await.aux;
        peer.write(Kind::Pong, 0, aux, 0, 0, 0, &[]).await;
    }
    while let Some(answered) = pings.join_next().await {
        assert!(answered.expect("no panic").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn closing_sends_what_is_queued_then_logout_and_tells_everybody() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    client.send(2, "last words").await.expect("sent");
    let receipt = client.send_tracked(2, "no fate").await.expect("queued");
    let gateway = tokio::spawn(async move {
        peer.expect_send("last words").await;
        peer.expect_send("no fate").await;
        peer.expect(Kind::Logout).await;
        drop(peer);
    });
    client.close().await;
    gateway.await.expect("in this order");
    assert!(matches!(receipt.outcome().await, Err(Error::Closed(Reason::LoggedOut))));
    let last = Event::Disconnected { reason: Reason::LoggedOut, retry_in: None };
    assert_eq!(events.next().await, Some(last));
    assert_eq!(events.next().await, None);
    client.close().await;
    assert!(!client.is_connected());
    assert!(matches!(client.send(2, "x").await, Err(Error::Closed(Reason::LoggedOut))));
    assert!(matches!(client.ping().await, Err(Error::Closed(Reason::LoggedOut))));
    board.expect_nobody(Duration::from_secs(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn closing_acknowledges_first_what_the_application_has_taken() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    for id in 1..=50 {
        peer.deliver(2, id, id, "x").await;
    }
    let closer = tokio::spawn(async move {
        for id in 1..=50 {
            assert_eq!(message(&mut events).await.id, id);
        }
        client.close().await;
    });
    for id in 1..=50 {
        assert_eq!(peer.expect(Kind::Ack).await.id, id);
    }
    peer.expect(Kind::Logout).await;
    drop(peer);
    closer.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn dropping_every_handle_logs_out() {
    let (client, events, mut peer, mut board) = pair(config()).await;
    drop(client);
    // The receiving half alone keeps the session.
    peer.expect_quiet(Duration::from_secs(100)).await;
    drop(events);
    peer.expect(Kind::Logout).await;
    drop(peer);
    board.expect_nobody(Duration::from_secs(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_ignores_logout_is_not_waited_for() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let began = tokio::time::Instant::now();
    client.close().await;
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    peer.expect(Kind::Logout).await;
    assert_eq!(peer.frame().await, None);
}

#[tokio::test(start_paused = true)]
async fn messages_for_an_application_that_has_dropped_its_events_are_not_acknowledged() {
    let (client, events, mut peer, _board) = pair(config()).await;
    drop(events);
    peer.deliver(2, 7, 100, "hello").await;
    peer.expect_quiet(Duration::from_secs(100)).await;
    client.send(2, "still here").await.expect("sent");
    peer.expect_send("still here").await;
}

#[tokio::test(start_paused = true)]
async fn a_bye_that_cannot_be_read_still_counts_with_its_number() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.write(Kind::Bye, 0, Code::Kicked.as_u16(), 0, 0, 0, &[0xFF; 9]).await;
    let last = Event::Disconnected { reason: Reason::Bye { code: 15, text: String::new() }, retry_in: None };
    assert_eq!(events.next().await, Some(last));
}

#[tokio::test(start_paused = true)]
async fn what_was_received_before_a_final_bye_can_still_be_taken() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    peer.bye(Code::Replaced, Bye::default()).await;
    assert_eq!(message(&mut events).await.id, 7);
    assert!(matches!(events.next().await, Some(Event::Disconnected { retry_in: None, .. })));
    assert_eq!(events.next().await, None);
}
