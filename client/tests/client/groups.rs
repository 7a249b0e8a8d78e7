//! Groups and live rooms: what a client asks, what its application is told, and what a reconnect changes.

use std::time::Duration;

use crate::reconnect::lost;
use crate::support::{OwnedFrame, Peer, config, pair};
use tokio::io::DuplexStream;
use tokio::time::timeout;
use trunkline_client::{
    Client, Config, Durability, Error, Event, Events, FileOutbox, GroupMessage, History, Outcome, Outgoing, Resume,
};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Head, Heads, Kind, Sync, SyncOk, encode_message, flags};

const GROUP: u64 = 77;
const ROOM: u64 = (1 << 63) + 5;

async fn group_message(events: &mut Events) -> GroupMessage {
    match events.next().await {
        Some(Event::GroupMessage(message)) => message,
        other => panic!("expected a message to a group, not {other:?}"),
    }
}

async fn expect_nothing(events: &mut Events) {
    let event = timeout(Duration::from_millis(1), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

/// User 2 says `text` to a group.
async fn deliver(peer: &mut Peer<DuplexStream>, group: u64, flags: u8, number: u16, stamp: u64) {
    let body = [&2_u64.to_be_bytes()[..], b"text"].concat();
    peer.write(Kind::GroupDeliver, flags, number, stamp, group, stamp, &body).await;
}

/// The page that was asked for, from this position on.
async fn answer_sync(peer: &mut Peer<DuplexStream>, after: u64, page: &[u64], complete: bool) {
    let frame = peer.expect(Kind::Sync).await;
    let sync = Sync::decode(&frame.body[..]).expect("a Sync");
    assert_eq!((sync.group, sync.after_stamp), (GROUP, after));
    for &stamp in page {
        deliver(peer, GROUP, flags::REPLAY, 0, stamp).await;
    }
    let next_stamp = page.last().copied().unwrap_or(after);
    let mut out = Vec::new();
    let sync_ok = SyncOk { next_stamp, complete, group: GROUP, ..SyncOk::default() };
    encode_message(&mut out, Kind::SyncOk, frame.aux, &sync_ok);
    peer.raw(&out).await;
}

async fn heads(peer: &mut Peer<DuplexStream>, stamp: u64, seq: u64) {
    let mut out = Vec::new();
    let heads = vec![Head { group: GROUP, stamp, seq, ..Head::default() }];
    encode_message(&mut out, Kind::Heads, 0, &Heads { heads });
    peer.raw(&out).await;
}

async fn ok(peer: &mut Peer<DuplexStream>, asked: &OwnedFrame, stamp: u64) {
    peer.write(Kind::GroupOk, 0, 0, asked.id, asked.peer, stamp, &[]).await;
}

async fn join(client: &Client, peer: &mut Peer<DuplexStream>, group: u64, stamp: u64) {
    let answered = async {
        let asked = peer.expect(Kind::GroupJoin).await;
        assert_eq!((asked.peer, asked.aux), (group, 0));
        ok(peer, &asked, stamp).await;
    };
    assert_eq!(tokio::join!(client.join_group(group), answered).0.expect("joined"), stamp);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_joined_read_marked_and_left() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    deliver(&mut peer, GROUP, 0, 1, 11).await;
    let message = group_message(&mut events).await;
    assert_eq!((message.group, message.from, message.id, message.stamp, message.number), (GROUP, 2, 11, 11, 1));
    assert_eq!((message.text(), message.is_own(), message.is_replay()), (Some("text"), false, false));
    client.mark_read(GROUP, message.stamp).await.expect("connected");
    let mark = peer.expect(Kind::Mark).await;
    assert_eq!((mark.peer, mark.stamp), (GROUP, 11));
    assert_eq!(client.resume(), Resume { last_stamp: 11, groups: vec![(GROUP, 11)], ..Resume::default() });
    let left = async {
        let asked = peer.expect(Kind::GroupLeave).await;
        ok(&mut peer, &asked, 11).await;
    };
    tokio::join!(client.leave_group(GROUP), left).0.expect("left");
    assert_eq!(client.resume().groups, []);
    // What is refused.
    let refused = async {
        let asked = peer.expect(Kind::GroupJoin).await;
        peer.write(Kind::Error, 0, 19, asked.id, asked.peer, 0, b"ask an admin").await;
    };
    let error = tokio::join!(client.join_group(GROUP), refused).0.expect_err("refused");
    assert!(matches!(error, Error::Refused { code: 19, .. }), "{error:?}");
    for error in [client.join_group(0).await.map(drop), client.mark_read(0, 1).await] {
        assert!(matches!(error, Err(Error::NoSuchUser)), "{error:?}");
    }
    let large = client.send_to_group(GROUP, vec![0; 65_536 - 32 - 7]).await;
    assert!(matches!(large, Err(Error::PayloadTooLarge { bytes_max: 65_496, .. })), "{large:?}");
    expect_nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_group_has_a_fate_and_is_in_the_group_once_over_a_reconnect() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    for (outcome, stamp) in
        [(Outcome::Stored, 12), (Outcome::Accepted, 13), (Outcome::Denied, 0), (Outcome::Overloaded, 0)]
    {
        let answered = async {
            let sent = peer.expect(Kind::GroupSend).await;
            assert_eq!((sent.peer, sent.flags, &sent.body[..]), (GROUP, flags::ACK, &b"hello"[..]));
            peer.write(Kind::Sent, 0, outcome.as_u16(), sent.id, sent.peer, stamp, &[]).await;
        };
        let fate = tokio::join!(client.send_to_group_acked(GROUP, "hello"), answered).0;
        assert_eq!(fate.expect("a fate"), outcome);
    }
    // Too many in a second.
    let limited = async {
        let sent = peer.expect(Kind::GroupSend).await;
        peer.write(Kind::Error, 0, 11, sent.id, sent.peer, 0, b"").await;
    };
    let error = tokio::join!(client.send_to_group_acked(GROUP, "hello"), limited).0.expect_err("refused");
    assert!(matches!(error, Error::Refused { code: 11, .. }), "{error:?}");
    // Two of them have numbers.
    deliver(&mut peer, GROUP, 0, 1, 11).await;
    deliver(&mut peer, GROUP, 0, 4, 14).await;
    assert_eq!(group_message(&mut events).await.stamp, 11);
    assert_eq!(group_message(&mut events).await.stamp, 14);
    // Without ACK, and never to a store.
    let id = client.send_to_group(GROUP, "once").await.expect("queued");
    let once = peer.expect(Kind::GroupSend).await;
    assert_eq!((once.id, once.flags), (id, 0));
    let receipt = client.submit(Outgoing::to_group(GROUP, "typing").without_store().with_id(9)).await.expect("queued");
    assert_eq!(peer.expect(Kind::GroupSend).await.flags, flags::ACK | flags::NO_STORE);
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    let again = peer.expect(Kind::GroupSend).await;
    assert_eq!((again.id, again.flags), (9, flags::ACK | flags::NO_STORE | flags::RETRY));
    peer.sent(&again, Outcome::Accepted).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Accepted);
}

#[tokio::test(start_paused = true)]
async fn a_gap_is_told_and_filled_in_order() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    deliver(&mut peer, GROUP, 0, 1, 11).await;
    deliver(&mut peer, GROUP, 0, 4, 14).await;
    answer_sync(&mut peer, 10, &[11, 12, 13], false).await;
    deliver(&mut peer, GROUP, 0, 5, 15).await;
    answer_sync(&mut peer, 13, &[14], true).await;
    assert_eq!(group_message(&mut events).await.stamp, 11);
    assert_eq!(events.next().await, Some(Event::GroupGap { group: GROUP, missed: 2 }));
    for stamp in 12..=15 {
        assert_eq!(group_message(&mut events).await.stamp, stamp);
    }
    // And what is not in the log any more.
    heads(&mut peer, 20, 10).await;
    assert_eq!(events.next().await, Some(Event::GroupGap { group: GROUP, missed: 5 }));
    let frame = peer.expect(Kind::Sync).await;
    deliver(&mut peer, GROUP, flags::REPLAY, 0, 20).await;
    let mut out = Vec::new();
    let (complete, truncated, floor) = (true, true, 19);
    let sync_ok = SyncOk { next_stamp: 20, complete, truncated, floor, group: GROUP, ..SyncOk::default() };
    encode_message(&mut out, Kind::SyncOk, frame.aux, &sync_ok);
    peer.raw(&out).await;
    assert_eq!(events.next().await, Some(Event::GroupTruncated { group: GROUP, floor: 19 }));
    assert_eq!(group_message(&mut events).await.stamp, 20);
    expect_nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_group_had_while_the_connection_was_gone_is_fetched() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    deliver(&mut peer, GROUP, 0, 1, 11).await;
    peer.deliver(3, 1, 50, "to the inbox").await;
    assert_eq!(group_message(&mut events).await.stamp, 11);
    assert!(matches!(events.next().await, Some(Event::Message(_))));
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.arrival().await.peer;
    // Where the group stands, and not the inbox, which is further.
    assert_eq!(peer.admit().await.last_stamp, 11);
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    heads(&mut peer, 13, 7).await;
    answer_sync(&mut peer, 10, &[11, 12, 13], true).await;
    deliver(&mut peer, GROUP, 0, 8, 14).await;
    for stamp in 12..=14 {
        assert_eq!(group_message(&mut events).await.stamp, stamp);
    }
    expect_nothing(&mut events).await;
    // A later process goes on from there.
    let resume = client.resume();
    assert_eq!((resume.last_stamp, &resume.groups[..]), (50, &[(GROUP, 14)][..]));
    let (_client, mut events, mut peer, _board) = pair(Config { resume, ..config() }).await;
    heads(&mut peer, 15, 9).await;
    answer_sync(&mut peer, 14, &[15], true).await;
    assert_eq!(group_message(&mut events).await.stamp, 15);
}

#[tokio::test(start_paused = true)]
async fn a_message_the_application_is_at_when_it_ends_comes_again() {
    let (client, mut events, mut peer, _board) = pair(Config { user: 1, ..Config::default() }).await;
    join(&client, &mut peer, GROUP, 10).await;
    for stamp in [11, 12] {
        deliver(&mut peer, GROUP, 0, (stamp - 10) as u16, stamp).await;
    }
    assert_eq!(group_message(&mut events).await.stamp, 11);
    assert_eq!(client.resume().groups, [(GROUP, 10)], "it is not done with it");
    assert_eq!(group_message(&mut events).await.stamp, 12);
    assert_eq!(client.resume().groups, [(GROUP, 11)]);
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_known_from_heads_alone_is_told() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    heads(&mut peer, 20, 5).await;
    match events.next().await {
        Some(Event::GroupHeads(heads)) => {
            assert_eq!(heads.iter().map(|head| (head.group, head.stamp)).collect::<Vec<_>>(), [(GROUP, 20)]);
        }
        other => panic!("{other:?}"),
    }
    peer.expect_quiet(Duration::from_secs(1)).await;
    client.follow_group(GROUP, 17).await.expect("connected");
    answer_sync(&mut peer, 17, &[18, 20], true).await;
    assert_eq!(group_message(&mut events).await.stamp, 18);
    assert_eq!(group_message(&mut events).await.stamp, 20);
    deliver(&mut peer, GROUP, 0, 6, 21).await;
    assert_eq!(group_message(&mut events).await.stamp, 21);
}

#[tokio::test(start_paused = true)]
async fn history_is_looked_at_and_is_no_event() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 20).await;
    let asked = client.group_history(GROUP, History::after(10).with_limit(2));
    let (page, ()) = tokio::join!(asked, answer_sync(&mut peer, 10, &[11, 12], false));
    let page = page.expect("a page");
    assert_eq!(page.messages.iter().map(|message| message.stamp).collect::<Vec<_>>(), [11, 12]);
    assert_eq!((page.next, page.complete), (12, false));
    let refused = async {
        peer.expect(Kind::Sync).await;
        peer.write(Kind::Error, 0, 19, 0, GROUP, 0, b"no").await;
    };
    let page = tokio::join!(client.group_history(GROUP, History::all()), refused).0;
    assert!(matches!(page, Err(Error::Refused { code: 19, .. })), "{page:?}");
    // One page at a time, those of the inbox among them.
    let (inbox, group) = (client.history(History::all()), client.group_history(GROUP, History::all()));
    let gateway = async {
        let first = peer.expect(Kind::Sync).await;
        peer.expect_quiet(Duration::from_secs(1)).await;
        let mut out = Vec::new();
        encode_message(&mut out, Kind::SyncOk, first.aux, &SyncOk { complete: true, ..SyncOk::default() });
        peer.raw(&out).await;
        answer_sync(&mut peer, 0, &[11], true).await;
    };
    let (inbox, group, ()) = tokio::join!(inbox, group, gateway);
    assert!(inbox.expect("a page").complete && group.expect("a page").messages.len() == 1);
    expect_nothing(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_live_room_is_joined_again_before_anything_is_said_in_it() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    join(&client, &mut peer, ROOM, 10).await;
    deliver(&mut peer, ROOM, 0, 1, 11).await;
    assert_eq!(group_message(&mut events).await.stamp, 11);
    let receipt = client.submit(Outgoing::to_group(ROOM, "hello")).await.expect("queued");
    peer.expect(Kind::GroupSend).await;
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    let asked = peer.expect(Kind::GroupJoin).await;
    peer.expect_quiet(Duration::from_secs(1)).await;
    ok(&mut peer, &asked, 15).await;
    let again = peer.expect(Kind::GroupSend).await;
    peer.sent(&again, Outcome::Accepted).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Accepted);
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    assert_eq!(events.next().await, Some(Event::GroupGap { group: ROOM, missed: 0 }));
    deliver(&mut peer, ROOM, 0, 7, 17).await;
    assert_eq!(group_message(&mut events).await.stamp, 17);
    deliver(&mut peer, ROOM, 0, 9, 19).await;
    assert_eq!(events.next().await, Some(Event::GroupGap { group: ROOM, missed: 1 }));
    assert_eq!(group_message(&mut events).await.stamp, 19);
    // A room that is not to be had again; and one that is left while there is no connection.
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    let asked = peer.expect(Kind::GroupJoin).await;
    peer.write(Kind::Error, 0, 22, asked.id, asked.peer, 0, b"full").await;
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    let full = Event::GroupLost { group: ROOM, code: 22, text: "full".into() };
    assert_eq!(events.next().await, Some(full));
    join(&client, &mut peer, ROOM + 1, 0).await;
    drop(peer);
    lost(&mut events).await;
    client.leave_group(ROOM + 1).await.expect("nobody is in it any more");
    assert!(matches!(client.join_group(ROOM).await, Err(Error::NotConnected)));
    let mut peer = board.admitted().await;
    peer.expect_quiet(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_application_was_too_slow_for_comes_in_its_place() {
    const ALL: u64 = 40;
    let small = Config { event_queue_len: 2, dedup_window_len: 64, ..config() };
    let (client, mut events, mut peer, _board) = pair(small).await;
    join(&client, &mut peer, GROUP, 0).await;
    for stamp in 1..=ALL {
        deliver(&mut peer, GROUP, 0, stamp as u16, stamp).await;
    }
    // Longer than the connection is left unread.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let gateway = tokio::spawn(async move {
        while let Some(frame) = peer.frame().await {
            match frame.kind {
                Kind::Sync => {
                    let sync = Sync::decode(&frame.body[..]).expect("a Sync");
                    let page: Vec<u64> = (sync.after_stamp + 1..=ALL).take(sync.limit as usize).collect();
                    for &stamp in &page {
                        deliver(&mut peer, GROUP, flags::REPLAY, 0, stamp).await;
                    }
                    let next_stamp = page.last().copied().unwrap_or(sync.after_stamp);
                    let sync_ok = SyncOk { next_stamp, complete: next_stamp == ALL, group: GROUP, ..SyncOk::default() };
                    let mut out = Vec::new();
                    encode_message(&mut out, Kind::SyncOk, frame.aux, &sync_ok);
                    peer.raw(&out).await;
                }
                Kind::Ping => peer.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await,
                other => assert_eq!(other, Kind::Logout),
            }
        }
    });
    let (mut got, mut lost) = (Vec::new(), 0);
    while got.len() < ALL as usize {
        match events.next().await.expect("an event") {
            Event::GroupMessage(message) => got.push(message.stamp),
            Event::Lost { count } => lost += count,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, (1..=ALL).collect::<Vec<_>>(), "each once and in order");
    assert!(lost > 0);
    drop((client, events));
    gateway.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn an_outbox_keeps_what_is_for_a_group() {
    let path = std::env::temp_dir().join(format!("trunkline-groups-outbox-{}", std::process::id()));
    drop(std::fs::remove_file(&path));
    let outbox = || Some(std::sync::Arc::new(FileOutbox::open(&path, Durability::Process).expect("opened")) as _);
    let (client, events, mut peer, _board) = pair(Config { outbox: outbox(), ..config() }).await;
    client.submit(Outgoing::to_group(GROUP, "kept").with_id(7)).await.expect("queued").detach();
    peer.expect(Kind::GroupSend).await;
    client.close().await;
    drop((client, events, peer));
    tokio::task::yield_now().await;
    let (client, _events, mut peer, _board) = pair(Config { outbox: outbox(), ..config() }).await;
    let again = peer.expect(Kind::GroupSend).await;
    assert_eq!((again.id, again.peer, again.flags), (7, GROUP, flags::ACK | flags::RETRY));
    let receipt = client.receipt(7).expect("it is on its way");
    peer.sent(&again, Outcome::Stored).await;
    assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Stored);
    drop(std::fs::remove_file(&path));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_open_is_opened_again_after_a_reconnect_until_it_is_closed() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    let opened = async {
        let asked = peer.expect(Kind::GroupJoin).await;
        assert_eq!((asked.peer, asked.aux), (GROUP, 1));
        ok(&mut peer, &asked, 12).await;
        answer_sync(&mut peer, 10, &[11, 12], true).await;
    };
    tokio::join!(client.open_group(GROUP), opened).0.expect("open");
    assert_eq!((group_message(&mut events).await.stamp, group_message(&mut events).await.stamp), (11, 12));
    client.open_group(ROOM).await.expect("it is open to all who are in");
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    let asked = peer.expect(Kind::GroupJoin).await;
    assert_eq!((asked.peer, asked.aux), (GROUP, 1));
    ok(&mut peer, &asked, 12).await;
    let closed = async {
        let asked = peer.expect(Kind::GroupLeave).await;
        assert_eq!((asked.peer, asked.aux), (GROUP, 1));
        ok(&mut peer, &asked, 12).await;
    };
    tokio::join!(client.close_group(GROUP), closed).0.expect("closed");
    deliver(&mut peer, GROUP, 0, 9, 13).await;
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    assert_eq!(group_message(&mut events).await.stamp, 13, "it is a member still");
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    assert!(matches!(events.next().await, Some(Event::Reconnected { .. })));
    client.mark_read(GROUP, 13).await.expect("connected");
    assert_eq!(peer.expect(Kind::Mark).await.stamp, 13, "and nothing was asked before");
}

/// The gateway is asked to open the group, and cannot say yet.
async fn refuse_open(peer: &mut Peer<DuplexStream>) {
    let asked = loop {
        let frame = peer.frame().await.expect("the client stays");
        match frame.kind {
            Kind::Ping => peer.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await,
            _ => break frame,
        }
    };
    assert_eq!((asked.kind, asked.peer, asked.aux), (Kind::GroupJoin, GROUP, 1));
    peer.write(Kind::Error, 0, 14, asked.id, asked.peer, 0, b"later").await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_cannot_be_opened_yet_is_asked_for_again() {
    let (client, mut events, mut peer, mut board) = pair(config()).await;
    join(&client, &mut peer, GROUP, 10).await;
    let opened = async {
        refuse_open(&mut peer).await;
        refuse_open(&mut peer).await;
        let asked = peer.expect(Kind::GroupJoin).await;
        ok(&mut peer, &asked, 10).await;
    };
    tokio::join!(client.open_group(GROUP), opened).0.expect("open");
    drop(peer);
    lost(&mut events).await;
    let mut peer = board.admitted().await;
    for _ in 0..10 {
        refuse_open(&mut peer).await;
    }
    // Nobody asks for it any more once it is to be closed.
    let closed = async {
        let asked = peer.expect(Kind::GroupLeave).await;
        assert_eq!((asked.peer, asked.aux), (GROUP, 1));
        ok(&mut peer, &asked, 10).await;
    };
    tokio::join!(client.close_group(GROUP), closed).0.expect("closed");
    peer.expect_quiet(Duration::from_secs(100)).await;
    // One that the application waits for is told at last.
    let refused = async {
        for _ in 0..6 {
            refuse_open(&mut peer).await;
        }
    };
    let error = tokio::join!(client.open_group(GROUP), refused).0.expect_err("refused");
    assert!(matches!(error, Error::Refused { code: 14, .. }), "{error:?}");
}
