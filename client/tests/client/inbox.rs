//! A gateway that keeps messages: what comes after a login, each once, and what can be looked up.

use std::time::Duration;

use crate::reconnect::lost;
use crate::support::{OwnedFrame, Peer, Switchboard, config};
use tokio::io::DuplexStream;
use tokio::time::timeout;
use trunkline_client::{
    Acknowledge, Client, Config, Durability, Error, Event, Events, FileOutbox, History, Message, Outcome, Outgoing,
    Resume,
};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Kind, LoginOk, Sync, SyncOk, encode_message, flags};

const REPLAY: u8 = flags::ACK | flags::REPLAY;

/// A device that the gateway keeps messages for.
fn registered(answer: &mut LoginOk) {
    answer.resume = b"ticket 1".to_vec();
}

async fn pair_with(
    config: Config,
    change: impl FnOnce(&mut LoginOk),
) -> (Client, Events, Peer<DuplexStream>, Switchboard) {
    let (dial, mut board) = Switchboard::new();
    let admitted = async {
        let mut peer = board.arrival().await.peer;
        peer.admit_with(change).await;
        peer
    };
    let (connected, peer) = tokio::join!(Client::connect_with(config, dial), admitted);
    let (client, events) = connected.expect("logged in");
    (client, events, peer, board)
}

async fn message(events: &mut Events) -> Message {
    match events.next().await {
        Some(Event::Message(message)) => message,
        other => panic!("expected a message, not {other:?}"),
    }
}

async fn expect_nothing(events: &mut Events) {
    let event = timeout(Duration::from_millis(1), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

async fn replay(peer: &mut Peer<DuplexStream>, stamp: u64) {
    peer.write(Kind::Deliver, REPLAY, 0, stamp, 2, stamp, b"kept").await;
}

async fn sync_ok(peer: &mut Peer<DuplexStream>, aux: u16, sync_ok: SyncOk) {
    let mut out = Vec::new();
    encode_message(&mut out, Kind::SyncOk, aux, &sync_ok);
    peer.raw(&out).await;
}

fn ends_at(next_stamp: u64, complete: bool) -> SyncOk {
    SyncOk { next_stamp, complete, last: 99, ..SyncOk::default() }
}

async fn expect_sync(peer: &mut Peer<DuplexStream>) -> (u16, Sync) {
    let frame = peer.expect(Kind::Sync).await;
    (frame.aux, Sync::decode(&frame.body[..]).expect("a Sync"))
}

#[tokio::test(start_paused = true)]
async fn a_login_tells_where_the_device_stands() {
    let resume = Resume { token: b"ticket 0".to_vec(), last_stamp: 40, ..Resume::default() };
    let first = Config { resume, ephemeral: true, replay_window: 64, event_queue_len: 32, ..config() };
    let (dial, mut board) = Switchboard::new();
    let admitted = async {
        let mut peer = board.arrival().await.peer;
        let login = peer.admit_with(registered).await;
        assert_eq!((&login.resume[..], login.last_stamp), (&b"ticket 0"[..], 40));
        assert_eq!((login.ephemeral, login.window), (true, 32), "a backlog never fills the queue");
        peer
    };
    let (connected, mut peer) = tokio::join!(Client::connect_with(first, dial), admitted);
    let (client, mut events) = connected.expect("logged in");
    assert!(client.session().registered && !client.session().resumed);
    assert_eq!(client.resume(), Resume { token: b"ticket 1".to_vec(), last_stamp: 40, ..Resume::default() });
    peer.deliver(2, 1, 50, "hello").await;
    assert_eq!(message(&mut events).await.stamp, 50);
    peer.expect(Kind::Ack).await;
    drop(peer);
    lost(&mut events).await;
    // The store does not answer in time: the ticket from before is kept.
    let mut peer = board.arrival().await.peer;
    let login = peer.admit().await;
    assert_eq!((&login.resume[..], login.last_stamp), (&b"ticket 1"[..], 50));
    assert_eq!(events.next().await, Some(Event::Reconnected { resumed: false }));
    assert_eq!((client.session().registered, client.resume().token), (false, b"ticket 1".to_vec()));
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.arrival().await.peer;
    let resumed = |answer: &mut LoginOk| (answer.resume, answer.resumed) = (b"ticket 2".to_vec(), true);
    assert_eq!(peer.admit_with(resumed).await.resume, b"ticket 1");
    assert_eq!(events.next().await, Some(Event::Reconnected { resumed: true }));
    assert!(client.session().resumed);
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_told_from_what_comes_now_and_its_end_is_told() {
    let waiting = |answer: &mut LoginOk| {
        registered(answer);
        (answer.pending, answer.last) = (2, 12);
    };
    let (client, mut events, mut peer, _board) = pair_with(config(), waiting).await;
    assert_eq!((client.session().pending, client.session().last), (2, 12));
    replay(&mut peer, 11).await;
    peer.deliver(3, 1, 13, "now").await;
    replay(&mut peer, 12).await;
    sync_ok(&mut peer, 0, ends_at(12, true)).await;
    for (stamp, is_replay) in [(11, true), (13, false), (12, true)] {
        let message = message(&mut events).await;
        assert_eq!((message.stamp, message.is_replay()), (stamp, is_replay));
    }
    assert_eq!(events.next().await, Some(Event::CaughtUp { last: 99 }));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_twice_is_not_the_ack_of_what_came_between() {
    let (client, mut events, mut peer, _board) =
        pair_with(Config { acknowledge: Acknowledge::OnNext, ..config() }, registered).await;
    // The second one is in the store, and its sender, who does not know, sends it again after others.
    replay(&mut peer, 1).await;
    replay(&mut peer, 2).await;
    sync_ok(&mut peer, 0, ends_at(2, true)).await;
    peer.deliver(2, 7, 21, "not taken").await;
    peer.deliver(2, 2, 22, "kept").await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((message(&mut events).await.id, message(&mut events).await.id), (1, 2));
    assert_eq!(events.next().await, Some(Event::CaughtUp { last: 99 }));
    let closed = tokio::spawn(async move { client.close().await });
    // By what the gateway knows: one ACK may be for all that it gave before the position it names.
    let (given, mut done) = ([1, 2, 21, 22], Vec::new());
    loop {
        let frame = peer.frame().await.expect("LOGOUT at the end");
        match frame.kind {
            Kind::Ack if frame.flags & flags::CUMULATIVE != 0 => {
                done.extend(given.iter().take_while(|stamp| **stamp != frame.stamp));
                done.push(frame.stamp);
            }
            Kind::Ack => done.push(frame.stamp),
            Kind::Logout => break,
            other => panic!("{other:?}"),
        }
    }
    done.sort_unstable();
    done.dedup();
    assert_eq!(done, [1, 2, 22], "the application has not had the one at 21");
    drop(peer);
    closed.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn each_message_reaches_the_application_once_however_often_the_connection_breaks() {
    let (_client, mut events, mut peer, mut board) =
        pair_with(Config { acknowledge: Acknowledge::OnNext, ..config() }, registered).await;
    for stamp in 1..=3 {
        replay(&mut peer, stamp).await;
    }
    assert_eq!(message(&mut events).await.stamp, 1);
    // The gateway dies before it has an ACK. The second and third message wait for the application.
    drop(peer);
    let mut peer = board.arrival().await.peer;
    peer.admit_with(registered).await;
    for stamp in 1..=4 {
        replay(&mut peer, stamp).await;
    }
    sync_ok(&mut peer, 0, ends_at(4, true)).await;
    assert_eq!(message(&mut events).await.stamp, 2);
    assert_eq!(message(&mut events).await.stamp, 3);
    lost(&mut events).await;
    assert_eq!(events.next().await, Some(Event::Reconnected { resumed: false }));
    assert_eq!(message(&mut events).await.stamp, 4);
    assert_eq!(events.next().await, Some(Event::CaughtUp { last: 99 }));
    // All four are acknowledged on the new connection, the first when it came the second time or since.
    let mut acknowledged = 0;
    while acknowledged < 4 {
        let ack = peer.expect(Kind::Ack).await;
        acknowledged = ack.stamp;
    }
    expect_nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn one_ack_is_for_all_that_the_application_took_in_order() {
    const MESSAGES: u64 = 100;
    let (_client, mut events, mut peer, _board) = pair_with(config(), registered).await;
    for stamp in 1..=MESSAGES {
        peer.deliver(2, stamp, stamp, "burst").await;
    }
    // All are in the queue before the first is taken.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for stamp in 1..=MESSAGES {
        assert_eq!(message(&mut events).await.stamp, stamp);
    }
    let (mut acks, mut upto) = (0, 0);
    while upto < MESSAGES {
        let ack = peer.expect(Kind::Ack).await;
        assert!(ack.flags == flags::CUMULATIVE || ack.stamp == upto + 1, "{} is left out: {ack:?}", upto + 1);
        (acks, upto) = (acks + 1, ack.stamp);
    }
    assert!(acks < MESSAGES / 2, "{acks}");
}

#[tokio::test(start_paused = true)]
async fn no_ack_is_for_a_message_that_the_application_has_not_got() {
    let manually = Config { acknowledge: Acknowledge::Manually, ..config() };
    let (client, mut events, mut peer, _board) = pair_with(manually, registered).await;
    for stamp in 1..=4 {
        peer.deliver(2, stamp, stamp, "work").await;
    }
    let mut messages = Vec::new();
    for _ in 1..=4 {
        messages.push(message(&mut events).await);
    }
    for stamp in [2, 3, 4] {
        client.ack(&messages[stamp - 1]).await.expect("connected");
    }
    for stamp in [2, 3, 4] {
        let ack = peer.expect(Kind::Ack).await;
        assert_eq!((ack.stamp, ack.flags), (stamp, 0), "the first is not done");
    }
    client.ack(&messages[0]).await.expect("connected");
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 1);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_told_once_and_before_what_lies_behind_it() {
    let gap = |answer: &mut LoginOk| {
        registered(answer);
        (answer.truncated, answer.floor) = (true, 7);
    };
    let (client, mut events, mut peer, _board) = pair_with(config(), gap).await;
    assert!(client.session().truncated);
    replay(&mut peer, 8).await;
    let told = |floor| SyncOk { truncated: true, floor, ..ends_at(8, true) };
    sync_ok(&mut peer, 0, told(7)).await;
    assert_eq!(events.next().await, Some(Event::Truncated { floor: 7 }));
    assert_eq!(message(&mut events).await.stamp, 8);
    assert_eq!(events.next().await, Some(Event::CaughtUp { last: 99 }));
    // And one that is found later.
    sync_ok(&mut peer, 0, told(20)).await;
    assert_eq!(events.next().await, Some(Event::Truncated { floor: 20 }));
    expect_nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn history_comes_page_by_page_beside_the_backlog_and_is_not_acknowledged() {
    let (client, mut events, mut peer, _board) = pair_with(config(), registered).await;
    let gateway = tokio::spawn(async move {
        let (aux, sync) = expect_sync(&mut peer).await;
        assert_eq!((sync.after_stamp, sync.since_ms, sync.limit, sync.group), (0, 0, 3, 0));
        // The backlog begins, the page comes, the backlog goes on.
        for stamp in [5, 6, 4, 5, 6, 7] {
            replay(&mut peer, stamp).await;
        }
        peer.deliver(3, 1, 50, "now").await;
        sync_ok(&mut peer, 0, ends_at(7, true)).await;
        sync_ok(&mut peer, aux, ends_at(6, false)).await;
        let acks: Vec<u64> = [peer.expect(Kind::Ack).await, peer.expect(Kind::Ack).await].map(|ack| ack.stamp).into();
        (peer, acks)
    });
    let page = client.history(History::all().with_limit(3)).await.expect("a page");
    let stamps: Vec<u64> = page.messages.iter().map(|message| message.stamp).collect();
    assert_eq!((&stamps[..], page.next, page.complete, page.truncated), (&[4, 5, 6][..], 6, false, false));
    let mut got = Vec::new();
    loop {
        match events.next().await.expect("an event") {
            Event::Message(message) => got.push(message.stamp),
            other => break assert_eq!(other, Event::CaughtUp { last: 99 }),
        }
    }
    assert_eq!(got, [50, 5, 6, 7], "each of the backlog once, and what was only looked up not at all");
    let (mut peer, _acks) = gateway.await.expect("no panic");

    // From a time: the later of both counts.
    let asked = tokio::spawn({
        let client = client.clone();
        async move { client.history(History::since_ms(3)).await }
    });
    let (aux, sync) = loop {
        let frame = peer.frame().await.expect("connected");
        if frame.kind == Kind::Sync {
            break (frame.aux, Sync::decode(&frame.body[..]).expect("a Sync"));
        }
    };
    assert_eq!((sync.after_stamp, sync.since_ms), (0, 3));
    sync_ok(&mut peer, aux, SyncOk { truncated: true, floor: 8, ..ends_at(3 << 20, true) }).await;
    let page = asked.await.expect("no panic").expect("a page");
    assert!(page.messages.is_empty() && page.complete && page.truncated && page.floor == 8);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_does_not_come_is_an_error() {
    let (client, mut events, mut peer, mut board) = pair_with(config(), |_| ()).await;
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.history(History::all()).await })
    };
    let (one, two) = (ask(), ask());
    expect_sync(&mut peer).await;
    // The second waits for the first.
    peer.expect_quiet(Duration::from_secs(1)).await;
    peer.write(Kind::Error, 0, 21, 0, 0, 0, b"no store").await;
    assert!(matches!(one.await.expect("no panic"), Err(Error::Refused { code: 21, .. })));
    expect_sync(&mut peer).await;
    drop(peer);
    assert!(matches!(two.await.expect("no panic"), Err(Error::NotConnected)));
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    // An ERROR that nothing was asked before is told.
    peer.write(Kind::Error, 0, 21, 0, 0, 0, b"no store").await;
    assert!(matches!(events.next().await, Some(Event::ServerError { code: 21, .. })));
    let abandoned = timeout(Duration::from_secs(1), client.history(History::all())).await;
    assert!(abandoned.is_err());
    client.close().await;
    assert!(matches!(client.history(History::all()).await, Err(Error::Closed(_))));
}

#[tokio::test(start_paused = true)]
async fn what_was_dropped_on_its_way_is_asked_for_again() {
    let small = Config { event_queue_len: 2, dedup_window_len: 64, ..config() };
    let (_client, mut events, mut peer, _board) = pair_with(small, registered).await;
    for stamp in 1..=20 {
        peer.deliver(2, stamp, stamp, "many").await;
    }
    // Longer than the connection is left unread.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut got = Vec::new();
    let lost = loop {
        match events.next().await.expect("an event") {
            Event::Message(message) => got.push(message.stamp),
            Event::Lost { count } => break count,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(got.len() as u64 + lost, 20);
    let gateway = tokio::spawn(async move {
        let mut given = 0;
        loop {
            match peer.frame().await {
                None => return given,
                Some(OwnedFrame { kind: Kind::Sync, aux, body, .. }) => {
                    let sync = Sync::decode(&body[..]).expect("a Sync");
                    let page = (sync.after_stamp + 1..=20).take(sync.limit as usize);
                    let mut next = sync.after_stamp;
                    for stamp in page {
                        replay(&mut peer, stamp).await;
                        (next, given) = (stamp, given + 1);
                    }
                    sync_ok(&mut peer, aux, ends_at(next, next == 20)).await;
                }
                Some(OwnedFrame { kind: Kind::Ping, aux, .. }) => peer.write(Kind::Pong, 0, aux, 0, 0, 0, &[]).await,
                Some(frame) => assert!(matches!(frame.kind, Kind::Ack | Kind::Logout), "{frame:?}"),
            }
        }
    });
    while got.len() < 20 {
        if let Event::Message(message) = events.next().await.expect("an event") {
            got.push(message.stamp);
        }
    }
    got.sort_unstable();
    assert_eq!(got, (1..=20).collect::<Vec<_>>(), "each once");
    assert!(!gateway.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_message_given_back_is_asked_for_again_alone() {
    let manually = Config { acknowledge: Acknowledge::Manually, ..config() };
    let (client, mut events, mut peer, _board) = pair_with(manually, registered).await;
    for stamp in [10, 11] {
        peer.deliver(2, stamp, stamp, "work").await;
    }
    drop(client.guard(message(&mut events).await).await.expect("connected"));
    client.guard(message(&mut events).await).await.expect("connected").ack();
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 11);
    let (aux, sync) = expect_sync(&mut peer).await;
    assert_eq!((sync.after_stamp, sync.limit), (9, 1));
    replay(&mut peer, 10).await;
    sync_ok(&mut peer, aux, ends_at(10, false)).await;
    client.guard(message(&mut events).await).await.expect("connected").ack();
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 10);
    peer.expect_quiet(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_must_not_be_stored_says_so_whenever_it_is_sent() {
    let path = std::env::temp_dir().join(format!("trunkline-inbox-outbox-{}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let outbox = || Some(std::sync::Arc::new(FileOutbox::open(&path, Durability::Process).expect("opened")) as _);
    let (client, events, mut peer, _board) = pair_with(Config { outbox: outbox(), ..config() }, registered).await;
    client.submit(Outgoing::new(2, "typing").with_id(7).without_store()).await.expect("queued").detach();
    let send = peer.expect_send("typing").await;
    assert_eq!((send.id, send.flags), (7, flags::ACK | flags::NO_STORE));
    // The process dies and another takes over.
    client.close().await;
    drop((client, events, peer));
    tokio::task::yield_now().await;
    let (client, _events, mut peer, _board) = pair_with(Config { outbox: outbox(), ..config() }, registered).await;
    let send = peer.expect_send("typing").await;
    assert_eq!((send.id, send.flags), (7, flags::ACK | flags::NO_STORE | flags::RETRY));
    let receipt = client.receipt(7).expect("it is on its way");
    peer.sent(&send, Outcome::OfflineNotStored).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::OfflineNotStored);
    drop(std::fs::remove_file(&path));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_replays_without_end_is_left() {
    let (client, mut events, mut peer, mut board) = pair_with(config(), registered).await;
    let asked = tokio::spawn(async move { client.history(History::all()).await });
    expect_sync(&mut peer).await;
    for stamp in 1..100_000 {
        let mut out = Vec::new();
        let header = trunkline_proto::Header { kind: Kind::Deliver, flags: REPLAY, aux: 0, id: stamp, peer: 2, stamp };
        trunkline_proto::encode(&mut out, &header, b"more");
        if peer.try_raw(&out).await.is_err() {
            break;
        }
    }
    assert!(matches!(asked.await.expect("no panic"), Err(Error::NotConnected)));
    lost(&mut events).await;
    board.arrival().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_only_sends_asks_for_nothing_and_leaves_what_comes_to_the_gateway() {
    let (client, events, mut peer, _board) = pair_with(config(), registered).await;
    drop(events);
    for stamp in 1..=100 {
        peer.deliver(2, stamp, stamp, "for nobody").await;
    }
    peer.expect_quiet(Duration::from_secs(60)).await;
    assert!(client.is_connected());
}
