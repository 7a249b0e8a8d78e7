//! Broken connections, refused logins, and coming back.

use std::time::Duration;

use crate::support::gateway::Gateway;
use crate::support::{HEARTBEAT_SECS, Switchboard, config, pair};
use tokio::time::Instant;
use trunkline_client::{Backoff, Client, Code, Config, Error, Event, Events, Outcome, Reason};
use trunkline_proto::{Bye, Kind, flags};

const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_SECS as u64);

/// The next event other than failed attempts to come back.
async fn next(events: &mut Events) -> Option<Event> {
    loop {
        match events.next().await {
            Some(Event::ReconnectFailed { .. }) => {}
            event => return event,
        }
    }
}

/// The next event, which must be a lost connection; why, and when the next attempt begins.
pub(crate) async fn lost(events: &mut Events) -> (Reason, Option<Duration>) {
    match next(events).await {
        Some(Event::Disconnected { reason, retry_in }) => (reason, retry_in),
        other => panic!("expected a lost connection, not {other:?}"),
    }
}

async fn back(events: &mut Events) {
    assert_eq!(next(events).await, Some(Event::Reconnected { resumed: false }));
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_fate_are_sent_again_with_the_same_id_in_order_before_new_ones() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    let settled = client.send_tracked(2, "settled").await.expect("queued");
    let first = client.send_tracked(2, "first").await.expect("queued");
    client.send(2, "at most once").await.expect("sent");
    let second = client.send_tracked(3, "second").await.expect("queued");
    let frame = peer.expect_send("settled").await;
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(settled.outcome().await.expect("a fate"), Outcome::Delivered);
    peer.expect_send("first").await;
    drop(peer);

    assert_eq!(lost(&mut events).await.0, Reason::ServerClosed);
    assert!(!client.is_connected());
    // Accepted without a connection, and sent behind the older ones.
    let third = client.send_tracked(2, "third").await.expect("queued");

    let mut peer = board.admitted().await;
    back(&mut events).await;
    // The gateway is told which of them it may have had before.
    let retry = flags::ACK | flags::RETRY;
    let expected = [(first, 2, "first", retry), (second, 3, "second", retry), (third, 2, "third", flags::ACK)];
    for (receipt, to, body, flags) in expected {
        let frame = peer.expect_send(body).await;
        assert_eq!((frame.id, frame.peer, frame.flags), (receipt.id(), to, flags));
        peer.sent(&frame, Outcome::Stored).await;
        assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Stored);
    }
    peer.expect_quiet(Duration::from_secs(100)).await;
}

#[tokio::test(start_paused = true)]
async fn more_unacked_bytes_than_the_send_buffer_holds_are_all_sent_again() {
    let (client, _events, peer, mut board) = pair(config()).await;
    drop(peer);
    let mut receipts = Vec::new();
    for number in 0..100_u8 {
        receipts.push(client.send_tracked(2, vec![number; 20_000]).await.expect("queued"));
    }
    let mut peer = board.admitted().await;
    let _new = client.send_tracked(2, "new").await.expect("queued");
    for (number, receipt) in receipts.iter().enumerate() {
        let frame = peer.expect(Kind::Send).await;
        assert_eq!((frame.id, usize::from(frame.body[0])), (receipt.id(), number));
    }
    peer.expect_send("new").await;
}

#[tokio::test(start_paused = true)]
async fn a_message_too_large_for_the_new_gateway_fails_and_the_others_go_on() {
    let (client, _events, peer, mut board) = pair(config()).await;
    let large = client.send_tracked(2, vec![0; 5_000]).await.expect("queued");
    let small = client.send_tracked(2, "small").await.expect("queued");
    drop(peer);
    let mut peer = board.arrival().await.peer;
    peer.admit_with(|answer| answer.max_frame = 1_024).await;
    assert_eq!(peer.expect_send("small").await.id, small.id());
    assert!(matches!(large.outcome().await, Err(Error::PayloadTooLarge { bytes: 5_000, bytes_max: 992 })));
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_plain_sends_and_pings_fail_at_once() {
    let (client, mut events, peer, board) = pair(config()).await;
    board.refuse(usize::MAX);
    drop(peer);
    lost(&mut events).await;
    assert!(matches!(client.send(2, "x").await, Err(Error::NotConnected)));
    assert!(matches!(client.ping().await, Err(Error::NotConnected)));
}

#[tokio::test(start_paused = true)]
async fn a_message_taken_while_disconnected_is_acknowledged_when_it_is_delivered_again() {
    let (_client, mut events, mut peer, mut board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    drop(peer);
    let mut peer = board.arrival().await.peer;
    assert!(matches!(events.next().await, Some(Event::Message(message)) if message.id == 7));
    lost(&mut events).await;
    // Until the client has noted that the message is taken, with no connection to say so on.
    tokio::time::sleep(Duration::from_secs(1)).await;
    peer.admit().await;
    back(&mut events).await;
    peer.deliver_again(2, 7, 250, "hello").await;
    let ack = peer.expect(Kind::Ack).await;
    assert_eq!((ack.id, ack.stamp), (7, 250));
    peer.deliver(2, 8, 300, "next").await;
    assert!(matches!(events.next().await, Some(Event::Message(message)) if message.id == 8));
}

#[tokio::test(start_paused = true)]
async fn final_reasons_end_the_client_and_nobody_connects_again() {
    for code in [Code::BadCredentials, Code::UnsupportedVersion, Code::Replaced, Code::Kicked, Code::BadRequest] {
        let (client, mut events, mut peer, mut board) = pair(config()).await;
        let receipt = client.send_tracked(2, "x").await.expect("queued");
        peer.expect_send("x").await;
        // Neither a redirection nor a time to wait changes what is final.
        let bye = Bye { reconnect_after_ms: 10, redirect: "elsewhere:1".into(), text: "enough".into() };
        peer.bye(code, bye).await;
        let reason = Reason::Bye { code: code.as_u16(), text: "enough".into() };
        assert_eq!(lost(&mut events).await, (reason.clone(), None));
        assert_eq!(events.next().await, None);
        assert!(matches!(receipt.outcome().await, Err(Error::Closed(why)) if why == reason));
        assert!(matches!(client.send(2, "x").await, Err(Error::Closed(why)) if why == reason));
        drop(peer);
        board.expect_nobody(Duration::from_secs(100_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_login_refused_for_good_while_reconnecting_ends_the_client() {
    let (client, mut events, peer, mut board) = pair(config()).await;
    drop(peer);
    assert!(lost(&mut events).await.1.is_some());
    let mut peer = board.arrival().await.peer;
    peer.expect_login().await;
    peer.bye(Code::BadCredentials, Bye::default()).await;
    let (reason, retry_in) = lost(&mut events).await;
    assert!(matches!(reason, Reason::Bye { code: 6, .. }) && retry_in.is_none());
    assert!(matches!(client.send_acked(2, "x").await, Err(Error::Closed(_))));
    board.expect_nobody(Duration::from_secs(100_000)).await;
}

#[tokio::test(start_paused = true)]
async fn every_other_reason_leads_back_with_the_ticket_of_the_old_session() {
    let (dial, mut board) = Switchboard::new();
    let (connected, mut peer) = tokio::join!(Client::connect_with(config(), dial), async {
        let mut peer = board.arrival().await.peer;
        let login = peer.admit_with(|answer| answer.resume = b"ticket".to_vec()).await;
        assert!(login.resume.is_empty());
        peer
    });
    let (_client, mut events) = connected.expect("logged in");
    for code in [Code::Idle, Code::TooSlow, Code::Draining, Code::Moved, Code::Internal] {
        peer.bye(code, Bye::default()).await;
        let (reason, retry_in) = lost(&mut events).await;
        assert!(matches!(reason, Reason::Bye { code: number, .. } if number == code.as_u16()));
        assert!(retry_in.is_some());
        peer = board.arrival().await.peer;
        let login = peer
            .admit_with(|answer| {
                answer.resume = b"ticket".to_vec();
                answer.resumed = true;
            })
            .await;
        assert_eq!((login.user, &login.resume[..]), (1, &b"ticket"[..]));
        assert_eq!(events.next().await, Some(Event::Reconnected { resumed: true }));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_the_maximum_while_nothing_answers() {
    let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(8) };
    let (_client, mut events, peer, mut board) = pair(Config { backoff, ..config() }).await;
    drop(peer);
    lost(&mut events).await;
    let began = Instant::now();
    board.refuse(10);
    let arrival = board.arrival().await;
    let waited = arrival.at - began;
    // 1 + 2 + 4 + 8 × 8 s are the ceilings of eleven waits; each is at least half its ceiling.
    let ceiling = Duration::from_secs(1 + 2 + 4 + 8 * 8);
    assert!(waited <= ceiling && waited >= ceiling / 2, "{waited:?}");
    assert_eq!(board.refusals_left(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_drops_every_session_at_once_is_met_with_growing_waits() {
    let (_client, mut events, mut peer, mut board) = pair(config()).await;
    let mut waits = Vec::new();
    for _ in 0..6 {
        drop(peer);
        waits.push(lost(&mut events).await.1.expect("another attempt"));
        peer = board.admitted().await;
        back(&mut events).await;
    }
    assert!(waits[0] <= Duration::from_millis(250), "{waits:?}");
    assert!(waits[5] >= Duration::from_secs(4), "{waits:?}");

    // A session that holds ends the mistrust.
    peer.expect_quiet(Duration::from_secs(10)).await;
    drop(peer);
    let wait = lost(&mut events).await.1.expect("another attempt");
    assert!(wait <= Duration::from_millis(250), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn the_wait_a_bye_asks_for_is_kept() {
    let (_client, mut events, mut peer, mut board) = pair(config()).await;
    let bye = Bye { reconnect_after_ms: 60_000, ..Bye::default() };
    peer.bye(Code::Draining, bye).await;
    let (_reason, retry_in) = lost(&mut events).await;
    let began = Instant::now();
    let waited = board.arrival().await.at - began;
    assert_eq!(Some(waited.as_secs()), retry_in.map(|wait| wait.as_secs()));
    let jitter = Backoff::default().first;
    let asked = Duration::from_secs(60);
    assert!(waited > asked && waited <= asked + jitter + Duration::from_millis(2), "{waited:?}");
}

/// A redirection to `addr`.
fn to(addr: &str) -> Bye {
    Bye { redirect: addr.into(), ..Bye::default() }
}

#[tokio::test(start_paused = true)]
async fn a_learnt_address_is_kept_and_those_known_are_tried_in_turn_when_it_fails() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    let seed = config().addrs[0].clone();
    peer.bye(Code::Moved, to("other:7700")).await;
    lost(&mut events).await;
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, "other:7700");
    arrival.peer.admit().await;
    back(&mut events).await;
    assert_eq!(client.session().addr, "other:7700");

    // The connection is lost, and that says nothing against the address.
    drop(arrival);
    lost(&mut events).await;
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, "other:7700");
    arrival.peer.admit().await;
    back(&mut events).await;

    // It is gone: the configured one is next.
    board.remove("other:7700");
    drop(arrival);
    lost(&mut events).await;
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, seed);
    arrival.peer.admit().await;
    back(&mut events).await;

    // Both are, for a while, and the one that was learnt comes back first.
    board.remove(&seed);
    drop(arrival);
    lost(&mut events).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    board.restore("other:7700");
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, "other:7700");
    arrival.peer.admit().await;
    back(&mut events).await;

    // A redirection that leads nowhere, and one that is no address at all.
    board.restore(&seed);
    board.remove("nowhere:1");
    for garbage in ["nowhere:1", "no address", "http://nowhere:1/", "nowhere:99999"] {
        arrival.peer.bye(Code::Moved, to(garbage)).await;
        lost(&mut events).await;
        arrival = board.arrival().await;
        assert!([&seed, "other:7700"].contains(&arrival.addr.as_str()), "after {garbage} {}", arrival.addr);
        arrival.peer.admit().await;
        back(&mut events).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirection_from_a_websocket_leads_to_one_with_the_same_path() {
    let addrs = vec!["wss://chat.example.com/x".to_owned()];
    let (client, mut events, mut peer, mut board) = pair(Config { addrs, ..config() }).await;
    peer.bye(Code::Moved, to("one:7700")).await;
    lost(&mut events).await;
    // From there another one is named, in answer to the login.
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, "wss://one:7700/x");
    arrival.peer.expect_login().await;
    arrival.peer.bye(Code::Moved, to("[::1]:443")).await;
    let mut arrival = board.arrival().await;
    assert_eq!(arrival.addr, "wss://[::1]:443/x");
    arrival.peer.admit().await;
    back(&mut events).await;
    assert_eq!(client.session().addr, "wss://[::1]:443/x");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_drains_without_a_word_where_to_go_is_left_for_another() {
    let addrs = vec!["a:1".to_owned(), "b:1".into()];
    let (_client, mut events, mut peer, mut board) = pair(Config { addrs, ..config() }).await;
    peer.bye(Code::Draining, Bye::default()).await;
    lost(&mut events).await;
    assert_eq!(board.arrival().await.addr, "b:1");
}

#[tokio::test(start_paused = true)]
async fn the_first_login_tries_each_address_once_in_turn() {
    let addrs = vec!["a:1".to_owned(), "b:1".into(), "c:1".into()];
    let config = Config { addrs, ..config() };
    let (dial, mut board) = Switchboard::new();
    board.remove("a:1");
    let (connected, ()) = tokio::join!(Client::connect_with(config.clone(), dial), async {
        // b sends the client to a node that is gone.
        board.remove("gone:1");
        let mut arrival = board.arrival().await;
        assert_eq!(arrival.addr, "b:1");
        arrival.peer.expect_login().await;
        arrival.peer.bye(Code::Moved, to("gone:1")).await;
        let mut arrival = board.arrival().await;
        assert_eq!(arrival.addr, "c:1");
        arrival.peer.admit().await;
    });
    assert_eq!(connected.expect("logged in").0.session().addr, "c:1");

    let (dial, mut board) = Switchboard::new();
    board.refuse(usize::MAX);
    match Client::connect_with(config.clone(), dial).await {
        Err(Error::Connect { addr, .. }) => assert_eq!(addr, "c:1"),
        other => panic!("{other:?}"),
    }
    assert_eq!(board.refusals_left(), usize::MAX - 3);
    board.refuse(0);
    board.expect_nobody(Duration::from_secs(1_000)).await;

    // What is wrong with the login itself is wrong everywhere.
    let (dial, mut board) = Switchboard::new();
    let (refused, ()) = tokio::join!(Client::connect_with(config, dial), async {
        let mut peer = board.arrival().await.peer;
        peer.expect_login().await;
        peer.bye(Code::BadCredentials, Bye::default()).await;
    });
    assert!(matches!(refused, Err(Error::LoginRefused { code: 6, .. })));
    board.expect_nobody(Duration::from_secs(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_that_send_a_client_to_each_other_are_met_with_growing_waits_and_keep_it_from_no_other() {
    let addrs = vec!["a:1".to_owned(), "b:1".into()];
    let (_client, mut events, mut peer, mut board) = pair(Config { addrs, ..config() }).await;
    let began = Instant::now();
    peer.bye(Code::Moved, to("x:1")).await;
    lost(&mut events).await;
    let mut tried = Vec::new();
    for _ in 0..20 {
        let mut arrival = board.arrival().await;
        arrival.peer.expect_login().await;
        let other = if arrival.addr == "x:1" { "y:1" } else { "x:1" };
        tried.push(arrival.addr);
        arrival.peer.bye(Code::Moved, to(other)).await;
    }
    assert_eq!(tried[..6], ["x:1", "y:1", "x:1", "y:1", "b:1", "x:1"]);
    for seed in ["a:1", "b:1"] {
        assert!(tried.iter().any(|addr| addr == seed), "{tried:?}");
    }
    // Seven waits double from a quarter of a second, the others are 30 s at most; each is half that at least.
    let least = Duration::from_millis((250 + 500 + 1_000 + 2_000 + 4_000 + 8_000 + 16_000 + 13 * 30_000) / 2);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_name_is_resolved_and_an_address_that_refuses_is_passed_over() {
    let gateway = Gateway::start("").await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dead = free.local_addr().expect("an address").to_string();
    drop(free);
    let live = format!("localhost:{}", gateway.addr.port());
    let config = Config { addrs: vec![dead, live.clone()], ..config() };
    let (client, _events) = Client::connect(config).await.expect("logged in");
    assert_eq!(client.session().addr, live);
}

#[tokio::test(start_paused = true)]
async fn a_silent_gateway_is_asked_after_one_heartbeat_and_given_up_after_two() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    let began = Instant::now();
    peer.expect(Kind::Ping).await;
    assert_eq!(began.elapsed().as_secs(), HEARTBEAT.as_secs());
    let (reason, _) = lost(&mut events).await;
    assert!(matches!(reason, Reason::ServerSilent { silence } if silence.as_secs() == 2 * HEARTBEAT.as_secs()));
    assert_eq!(began.elapsed().as_secs(), 2 * HEARTBEAT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn the_reason_for_a_close_is_heard_by_a_client_that_still_has_something_to_write() {
    // Whether the end is noticed by writing or by reading is left to chance.
    for _ in 0..50 {
        let (client, mut events, mut peer, _board) = pair(config()).await;
        let _receipt = client.send_tracked(2, "too late").await.expect("queued");
        peer.bye(Code::Kicked, Bye { text: "out".into(), ..Bye::default() }).await;
        drop(peer);
        assert_eq!(lost(&mut events).await, (Reason::Bye { code: Code::Kicked.as_u16(), text: "out".into() }, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_answers_pings_is_never_given_up() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.expect_quiet(Duration::from_secs(100_000)).await;
    assert!(client.is_connected());
    let nothing = tokio::time::timeout(Duration::ZERO, events.next()).await;
    assert!(nothing.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_busy_sender_still_notices_a_gateway_that_says_nothing() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    let sender = tokio::spawn(async move {
        while client.send(2, "x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let reader = tokio::spawn(async move {
        let mut pings = 0;
        while let Some(frame) = peer.frame().await {
            pings += u32::from(frame.kind == Kind::Ping);
        }
        pings
    });
    assert!(matches!(lost(&mut events).await.0, Reason::ServerSilent { .. }));
    assert!(reader.await.expect("no panic") >= 1);
    sender.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_late_does_not_make_the_gateway_look_dead() {
    let (_client, mut events, mut peer, _board) =
        pair(Config { event_queue_len: 1, event_wait: Duration::from_secs(100_000), ..config() }).await;
    for id in 1..=3 {
        peer.deliver(2, id, id, "x").await;
    }
    let gateway = tokio::spawn(async move {
        // Pongs are written all the time; the client leaves them unread.
        let mut acks = 0;
        while acks < 3 {
            let frame = peer.frame().await.expect("the client stays");
            match frame.kind {
                Kind::Ping => peer.write(Kind::Pong, 0, 0, 0, 0, 0, &[]).await,
                Kind::Ack => acks += 1,
                other => panic!("{other:?}"),
            }
        }
        peer
    });
    tokio::time::sleep(10 * HEARTBEAT).await;
    for id in 1..=3 {
        assert!(matches!(events.next().await, Some(Event::Message(message)) if message.id == id));
    }
    gateway.await.expect("the same connection all the time");
}

#[tokio::test(start_paused = true)]
async fn broken_framing_ends_the_connection_and_not_the_client() {
    for bytes in [
        &[0_u8, 0, 0, 3][..],
        &[0xFF, 0xFF, 0xFF, 0xFF],
        // DELIVER shorter than its header.
        &[0, 0, 0, 8, 0x83, 0, 0, 0],
        // A frame that only clients send.
        &[0, 0, 0, 8, 0x02, 0, 0, 0],
    ] {
        let (_client, mut events, mut peer, mut board) = pair(config()).await;
        peer.raw(bytes).await;
        let (reason, retry_in) = lost(&mut events).await;
        assert!(matches!(reason, Reason::Protocol(_)), "{reason:?}");
        assert!(retry_in.is_some());
        board.admitted().await;
        back(&mut events).await;
    }
}

#[tokio::test(start_paused = true)]
async fn closing_while_reconnecting_ends_at_once() {
    let (client, mut events, peer, mut board) = pair(config()).await;
    board.refuse(usize::MAX);
    drop(peer);
    lost(&mut events).await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    let began = Instant::now();
    let receipt = client.send_tracked(2, "x").await.expect("queued");
    client.close().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(matches!(receipt.outcome().await, Err(Error::Closed(Reason::LoggedOut))));
    assert_eq!(lost(&mut events).await, (Reason::LoggedOut, None));
    board.refuse(0);
    board.expect_nobody(Duration::from_secs(1_000)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_login_reports_what_is_wrong_and_is_made_once() {
    // Refused.
    let (dial, mut board) = Switchboard::new();
    board.refuse(1);
    let refused = Client::connect_with(config(), dial).await;
    assert!(matches!(refused, Err(Error::Connect { .. })));

    // Bad credentials.
    let (dial, mut board2) = Switchboard::new();
    let (refused, ()) = tokio::join!(Client::connect_with(config(), dial), async {
        let mut peer = board2.arrival().await.peer;
        peer.expect_login().await;
        let text = "token has expired".into();
        let bye = Bye { text, ..Bye::default() };
        peer.bye(Code::BadCredentials, bye).await;
    });
    match refused {
        Err(Error::LoginRefused { code: 6, text }) => assert_eq!(text, "token has expired"),
        other => panic!("{other:?}"),
    }

    // Closed without a word.
    let (dial, mut board3) = Switchboard::new();
    let (refused, ()) = tokio::join!(Client::connect_with(config(), dial), async {
        board3.arrival().await.peer.expect_login().await;
    });
    assert!(matches!(refused, Err(Error::LoginCut { .. })));

    // No answer.
    let (dial, mut board4) = Switchboard::new();
    let (refused, _peer) = tokio::join!(Client::connect_with(config(), dial), board4.arrival());
    assert!(matches!(refused, Err(Error::Timeout { waited, .. }) if waited == config().connect_timeout));

    // Something else altogether.
    let (dial, mut board5) = Switchboard::new();
    let (refused, ()) = tokio::join!(Client::connect_with(config(), dial), async {
        let mut peer = board5.arrival().await.peer;
        peer.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    assert!(matches!(refused, Err(Error::Protocol(_))));

    for board in [&mut board, &mut board2, &mut board3, &mut board4, &mut board5] {
        board.expect_nobody(Duration::from_secs(1_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_login_follows_redirections_but_not_in_circles() {
    let (dial, mut board) = Switchboard::new();
    let gateway = tokio::spawn(async move {
        let mut addrs = Vec::new();
        loop {
            let mut arrival = board.arrival().await;
            addrs.push(arrival.addr);
            arrival.peer.expect_login().await;
            let redirect = format!("node-{}:7700", addrs.len());
            let bye = Bye { redirect, ..Bye::default() };
            arrival.peer.bye(Code::Moved, bye).await;
            if addrs.len() == 5 {
                return addrs;
            }
        }
    });
    let refused = Client::connect_with(config(), dial).await;
    assert!(matches!(refused, Err(Error::LoginRefused { code: 13, .. })));
    let addrs = gateway.await.expect("five attempts");
    assert_eq!(addrs[0], config().addrs[0]);
    assert_eq!(addrs[4], "node-4:7700");
}

#[tokio::test(start_paused = true)]
async fn the_login_carries_the_configuration() {
    let (dial, mut board) = Switchboard::new();
    let config = Config {
        user: 42,
        token: "secret".into(),
        device: "phone".into(),
        device_class: "mobile".into(),
        agent: "test/1".into(),
        heartbeat_secs: 17,
        ..Config::default()
    };
    let (connected, login) = tokio::join!(Client::connect_with(config, dial), async {
        let mut arrival = board.arrival().await;
        arrival
            .peer
            .admit_with(|answer| {
                answer.session = 9;
                answer.node = "n1".into();
                answer.shard = 3;
                answer.heartbeat_secs = 20;
            })
            .await
    });
    assert_eq!(login.version, 1);
    assert_eq!((login.user, login.token.as_str()), (42, "secret"));
    assert_eq!((login.device.as_str(), login.device_class.as_str()), ("phone", "mobile"));
    assert_eq!((login.agent.as_str(), login.heartbeat_secs), ("test/1", 17));
    let info = connected.expect("logged in").0.session();
    assert_eq!((info.session, info.node.as_str(), info.shard), (9, "n1", 3));
    assert_eq!(info.heartbeat, Duration::from_secs(20));
}
