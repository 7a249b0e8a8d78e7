//! What becomes of a message with acknowledgement: waited for, left alone, given up, too late, handed back.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Switchboard, config, pair};
use tokio::time::{Instant, timeout};
use trunkline_client::{
    Client, Config, Durability, Error, Event, FileOutbox, Outbox, Outcome, Outgoing, Reason, Token,
};
use trunkline_proto::{Kind, flags};

#[tokio::test(start_paused = true)]
async fn a_dropped_receipt_leaves_its_message_alone_and_a_cancelled_one_gives_it_up() {
    let (client, _events, mut peer, mut board) = pair(config()).await;
    drop(client.send_tracked(2, "dropped").await.expect("queued"));
    client.send_tracked(2, "detached").await.expect("queued").detach();
    let mut polled = client.send_tracked(2, "polled").await.expect("queued");
    assert!(timeout(Duration::from_millis(1), &mut polled).await.is_err());
    drop(polled);
    let given_up = client.send_tracked(2, "given up").await.expect("queued");
    for body in ["dropped", "detached", "polled", "given up"] {
        peer.expect_send(body).await;
    }
    assert!(given_up.cancel());
    drop(peer);
    let mut peer = board.admitted().await;
    for body in ["dropped", "detached", "polled"] {
        let frame = peer.expect_send(body).await;
        peer.sent(&frame, Outcome::Delivered).await;
    }
    peer.expect_quiet(Duration::from_secs(100)).await;
    assert_eq!(client.unsettled(), []);
}

#[tokio::test(start_paused = true)]
async fn a_message_given_up_makes_room_at_once_also_without_a_connection() {
    let (client, _events, peer, mut board) = pair(Config { unacked_max: 2, ..config() }).await;
    board.refuse(usize::MAX);
    drop(peer);
    // Far more than there is room for, one after the other.
    for _ in 0..100 {
        assert!(timeout(Duration::from_millis(10), client.send_acked(2, "in vain")).await.is_err());
    }
    for _ in 0..100 {
        assert!(client.send_tracked(2, "in vain").await.expect("room").cancel());
    }
    let kept = client.send_tracked(2, "kept").await.expect("room");
    client.send_tracked(2, "detached").await.expect("room").detach();
    assert!(matches!(client.send_tracked(2, "third").await, Err(Error::TooManyUnacked { max: 2 })));
    board.refuse(0);
    let mut peer = board.admitted().await;
    assert_eq!(peer.expect_send("kept").await.id, kept.id());
    peer.expect_send("detached").await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_after_the_fate_is_known_changes_nothing() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let receipt = client.submit(Outgoing::new(2, "one").with_id(5)).await.expect("queued");
    let frame = peer.expect_send("one").await;
    peer.sent(&frame, Outcome::Delivered).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Its id is free again, and what has it now is another message.
    let second = client.submit(Outgoing::new(2, "two").with_id(5)).await.expect("queued");
    assert!(!receipt.cancel());
    let frame = peer.expect_send("two").await;
    peer.sent(&frame, Outcome::Stored).await;
    assert_eq!(second.outcome().await.expect("a fate"), Outcome::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_fate_that_does_not_come_in_time_is_an_error_connected_or_not() {
    let limit = Duration::from_secs(50);
    let (client, _events, mut peer, mut board) = pair(Config { fate_timeout: limit, unacked_max: 3, ..config() }).await;
    let began = Instant::now();
    let first = client.send_tracked(2, "first").await.expect("queued");
    let short = Outgoing::new(2, "short").with_timeout(Duration::from_secs(5));
    let short = client.submit(short).await.expect("queued");
    let long = Outgoing::new(2, "long").with_timeout(Duration::MAX);
    let long = client.submit(long).await.expect("queued");
    assert!(matches!(short.outcome().await, Err(Error::NoFate { waited }) if waited == Duration::from_secs(5)));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    for body in ["first", "short", "long"] {
        peer.expect_send(body).await;
    }
    board.refuse(usize::MAX);
    drop(peer);
    client.send_tracked(2, "fourth").await.expect("room").detach();
    assert!(matches!(first.outcome().await, Err(Error::NoFate { waited }) if waited == limit));
    assert_eq!(began.elapsed(), limit);
    tokio::time::sleep(Duration::from_secs(1_000_000)).await;
    board.refuse(0);
    let mut peer = board.admitted().await;
    // Of a message whose time is over nothing is sent.
    let frame = peer.expect_send("long").await;
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(long.outcome().await.expect("a fate"), Outcome::Delivered);
    assert_eq!(client.unsettled(), []);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_has_crashed_says_that_it_sends_again() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    client.submit(Outgoing::new(2, "again").with_id(4_711).as_retry()).await.expect("queued").detach();
    assert_eq!(peer.expect_send("again").await.flags, flags::ACK | flags::RETRY);
    assert!(client.unsettled()[0].retry);
}

#[tokio::test(start_paused = true)]
async fn ids_may_be_given_and_order_is_that_of_the_calls() {
    let (client, _events, peer, mut board) = pair(config()).await;
    drop(peer);
    let mut receipts = Vec::new();
    for id in [900, 3, u64::MAX, 1] {
        let message = Outgoing::new(2, id.to_string()).with_id(id);
        receipts.push(client.submit(message).await.expect("queued"));
    }
    let again = client.submit(Outgoing::new(3, "another").with_id(3)).await;
    assert!(matches!(again, Err(Error::DuplicateId { id: 3 })));
    let zero = client.submit(Outgoing::new(3, "none").with_id(0)).await;
    assert!(matches!(zero, Err(Error::ZeroId)));
    let mut peer = board.admitted().await;
    for receipt in receipts {
        let frame = peer.expect_send(&receipt.id().to_string()).await;
        // The first connection may have taken it before it was known to be gone.
        assert_eq!((frame.id, frame.flags & !flags::RETRY), (receipt.id(), flags::ACK));
        peer.sent(&frame, Outcome::Delivered).await;
        assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Delivered);
    }
}

#[tokio::test(start_paused = true)]
async fn closing_hands_back_what_has_no_fate_and_another_client_sends_it() {
    let (client, _events, mut peer, _board) = pair(config()).await;
    let settled = client.send_tracked(2, "settled").await.expect("queued");
    let open = client.submit(Outgoing::new(2, "open").with_id(77)).await.expect("queued");
    client.send_tracked(3, "detached").await.expect("queued").detach();
    let frame = peer.expect_send("settled").await;
    peer.sent(&frame, Outcome::Delivered).await;
    settled.outcome().await.expect("a fate");
    let left = client.close().await;
    assert!(matches!(open.outcome().await, Err(Error::Closed(Reason::LoggedOut))));
    let bodies: Vec<_> = left.iter().map(|message| (message.to, message.payload.to_vec())).collect();
    assert_eq!(bodies, [(2, b"open".to_vec()), (3, b"detached".to_vec())]);
    assert_eq!(left[0].id, Some(77));
    assert_eq!(client.unsettled(), left);

    let (next, _events, mut peer, _board) = pair(config()).await;
    for message in left {
        next.submit(message).await.expect("queued").detach();
    }
    assert_eq!(peer.expect_send("open").await.id, 77);
    peer.expect_send("detached").await;
}

/// Ends a runtime in the middle of everything, as a crash would.
fn until_the_crash<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(work)
}

#[test]
fn what_an_outbox_keeps_is_sent_by_the_next_process_under_the_old_ids_before_all_else() {
    let path = std::env::temp_dir().join(format!("trunkline-fates-{}", std::process::id()));
    let with_outbox = |path: &std::path::Path| {
        let outbox = FileOutbox::open(path, Durability::Process).expect("opened");
        Config { outbox: Some(Arc::new(outbox)), ..config() }
    };
    let first = with_outbox(&path);
    let ids = until_the_crash(async move {
        let (client, _events, mut peer, _board) = pair(first).await;
        let mut ids = Vec::new();
        for number in 0..10 {
            let message = Outgoing::new(2, number.to_string()).with_id(1_000 - number);
            let receipt = client.submit(message).await.expect("queued");
            ids.push(receipt.id());
            let frame = peer.expect_send(&number.to_string()).await;
            // The fate of every third is known.
            if number % 3 == 0 {
                peer.sent(&frame, Outcome::Delivered).await;
                receipt.outcome().await.expect("a fate");
            }
        }
        assert!(timeout(Duration::from_secs(1), client.send_acked(2, "given up")).await.is_err());
        ids
    });
    let second = with_outbox(&path);
    until_the_crash(async move {
        let (client, _events, mut peer, _board) = pair(second).await;
        client.send_tracked(2, "new").await.expect("queued").detach();
        let waits = client.receipt(999).expect("on its way, and nobody waits");
        assert!(client.receipt(999).is_none() && client.receipt(1_000).is_none());
        for (number, id) in ids.iter().enumerate().filter(|(number, _)| number % 3 != 0) {
            let frame = peer.expect_send(&number.to_string()).await;
            assert_eq!(frame.id, *id);
            peer.sent(&frame, Outcome::Delivered).await;
        }
        assert_eq!(waits.outcome().await.expect("a fate"), Outcome::Delivered);
        let frame = peer.expect_send("new").await;
        peer.sent(&frame, Outcome::Stored).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(client.unsettled(), []);
    });
    let outbox = FileOutbox::open(&path, Durability::Process).expect("opened");
    assert_eq!(outbox.load().expect("readable"), []);
    std::fs::remove_file(path).expect("removed");
}

/// An outbox that notes what it is told, and fails when it is told to.
#[derive(Debug, Default)]
struct Notes {
    fails: Mutex<bool>,
    told: Mutex<Vec<String>>,
}

impl Outbox for Notes {
    fn load(&self) -> io::Result<Vec<Outgoing>> {
        Ok(Vec::new())
    }

    fn put(&self, message: &Outgoing) -> io::Result<()> {
        if *self.fails.lock().expect("no panic") {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.told.lock().expect("no panic").push(format!("put {}", message.id.expect("an id")));
        Ok(())
    }

    fn settle(&self, id: u64, fate: &Result<Outcome, Error>) {
        let fate = match fate {
            Ok(outcome) => format!("{outcome:?}"),
            Err(error) => error.to_string(),
        };
        self.told.lock().expect("no panic").push(format!("{id}: {fate}"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_outbox_hears_of_each_fate_once_and_what_it_cannot_keep_is_not_sent() {
    let notes = Arc::new(Notes::default());
    let (client, _events, mut peer, _board) = pair(Config { outbox: Some(notes.clone()), ..config() }).await;
    let submit = |id| client.submit(Outgoing::new(2, "x").with_id(id));
    submit(1).await.expect("kept").detach();
    let frame = peer.expect_send("x").await;
    peer.sent(&frame, Outcome::Delivered).await;
    peer.sent(&frame, Outcome::Delivered).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let cancelled = submit(2).await.expect("kept");
    peer.expect_send("x").await;
    assert!(cancelled.cancel());
    *notes.fails.lock().expect("no panic") = true;
    assert!(matches!(submit(3).await, Err(Error::Outbox(error)) if error.kind() == io::ErrorKind::StorageFull));
    *notes.fails.lock().expect("no panic") = false;
    submit(4).await.expect("kept").detach();
    assert_eq!(peer.expect(Kind::Send).await.id, 4);
    client.close().await;
    let told = notes.told.lock().expect("no panic").clone();
    // What has no fate at the end stays.
    assert_eq!(told, ["put 1", "1: Delivered", "put 2", "2: the message was given up", "put 4"]);
}

#[tokio::test(start_paused = true)]
async fn more_in_the_outbox_than_may_be_under_way_is_said_at_the_start() {
    #[derive(Debug)]
    struct Full;
    impl Outbox for Full {
        fn load(&self) -> io::Result<Vec<Outgoing>> {
            Ok((1..=3).map(|id| Outgoing::new(2, "x").with_id(id)).collect())
        }
        fn put(&self, _message: &Outgoing) -> io::Result<()> {
            Ok(())
        }
        fn settle(&self, _id: u64, _fate: &Result<Outcome, Error>) {}
    }
    let (dial, mut board) = Switchboard::new();
    let config = Config { outbox: Some(Arc::new(Full)), unacked_max: 2, ..config() };
    let (refused, _peer) = tokio::join!(Client::connect_with(config, dial), board.admitted());
    assert!(matches!(refused, Err(Error::TooManyUnacked { max: 2 })));
}

#[tokio::test(start_paused = true)]
async fn the_end_is_told_also_when_the_client_is_torn_down() {
    // A provider that panics, in the task that owns the connection.
    let token = {
        let asked = std::sync::atomic::AtomicU32::new(0);
        Token::provider(move || {
            let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                assert_eq!(number, 0, "a provider with a fault");
                Ok::<_, String>("token".to_owned())
            }
        })
    };
    let (client, mut events, peer, _board) = pair(Config { token, ..config() }).await;
    let receipt = client.send_tracked(2, "x").await.expect("queued");
    drop(peer);
    assert!(matches!(events.next().await, Some(Event::Disconnected { retry_in: Some(_), .. })));
    let last = Event::Disconnected { reason: Reason::Aborted, retry_in: None };
    assert_eq!(events.next().await, Some(last));
    assert_eq!(events.next().await, None);
    assert!(matches!(receipt.outcome().await, Err(Error::Closed(Reason::Aborted))));
    assert!(matches!(client.send(2, "x").await, Err(Error::Closed(Reason::Aborted))));
    assert_eq!(client.close().await.len(), 1);
}
