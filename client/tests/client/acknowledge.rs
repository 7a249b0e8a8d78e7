//! When a message is acknowledged: once the application is done with it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::pair;
use trunkline_client::{Acknowledge, Config, Event, Events, Message};
use trunkline_proto::Kind;

/// As an application has it that sets nothing.
fn config() -> Config {
    Config { user: 1, ..Config::default() }
}

async fn message(events: &mut Events) -> Message {
    match events.next().await {
        Some(Event::Message(message)) => message,
        other => panic!("expected a message, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_when_the_next_event_is_asked_for() {
    let (_client, mut events, mut peer, _board) = pair(config()).await;
    for id in 1..=2 {
        peer.deliver(2, id, id, "hello").await;
    }
    assert_eq!(message(&mut events).await.id, 1);
    peer.expect_quiet(Duration::from_secs(100)).await;
    assert_eq!(message(&mut events).await.id, 2);
    assert_eq!(peer.expect(Kind::Ack).await.id, 1);
    peer.expect_quiet(Duration::from_secs(100)).await;
    // Asking is enough; there need not be a next event.
    assert!(tokio::time::timeout(Duration::from_millis(1), events.next()).await.is_err());
    assert_eq!(peer.expect(Kind::Ack).await.id, 2);
}

#[tokio::test(start_paused = true)]
async fn what_an_application_is_at_when_it_ends_is_not_acknowledged() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    for id in 1..=3 {
        peer.deliver(2, id, id, "hello").await;
    }
    for id in 1..=3 {
        assert_eq!(message(&mut events).await.id, id);
    }
    drop(events);
    client.close().await;
    for id in 1..=2 {
        assert_eq!(peer.expect(Kind::Ack).await.id, id);
    }
    peer.expect(Kind::Logout).await;
}

#[tokio::test(start_paused = true)]
async fn an_application_may_acknowledge_before_and_it_is_done_once() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "hello").await;
    let first = message(&mut events).await;
    client.ack(&first).await.expect("connected");
    assert_eq!(peer.expect(Kind::Ack).await.id, 7);
    peer.deliver(2, 8, 200, "next").await;
    assert_eq!(message(&mut events).await.id, 8);
    peer.expect_quiet(Duration::from_secs(100)).await;
    // A copy that the gateway sends again has not heard of it: that is answered.
    peer.deliver_again(2, 7, 300, "hello").await;
    let ack = peer.expect(Kind::Ack).await;
    assert_eq!((ack.id, ack.stamp), (7, 300));
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_acknowledged_whole_and_in_order_by_an_application_that_takes_it() {
    for acknowledge in [Acknowledge::OnNext, Acknowledge::OnTake] {
        let (_client, mut events, mut peer, _board) =
            pair(Config { event_queue_len: 4, dedup_window_len: 4, acknowledge, ..config() }).await;
        let gateway = tokio::spawn(async move {
            for id in 1..=3_000 {
                peer.deliver(2, id, id, "burst").await;
            }
            for id in 1..=3_000 {
                assert_eq!(peer.expect(Kind::Ack).await.id, id);
            }
        });
        let application = tokio::spawn(async move { while events.next().await.is_some() {} });
        gateway.await.expect("every message is acknowledged, in order");
        application.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_acknowledges_its_message_in_whatever_order_the_work_is_done() {
    let (client, mut events, mut peer, _board) = pair(Config { acknowledge: Acknowledge::Manually, ..config() }).await;
    let mut guards = Vec::new();
    for id in 1..=3 {
        peer.deliver(2, id, id, "work").await;
        guards.push(client.guard(message(&mut events).await).await.expect("connected"));
    }
    peer.expect_quiet(Duration::from_secs(100)).await;
    for id in [2, 3, 1] {
        let at = guards.iter().position(|guard| guard.id == id).expect("held");
        assert_eq!(guards.remove(at).ack().id, id);
        assert_eq!(peer.expect(Kind::Ack).await.id, id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_guard_is_dropped_is_delivered_again_as_the_first_time() {
    let (client, mut events, mut peer, _board) = pair(Config { acknowledge: Acknowledge::Manually, ..config() }).await;
    peer.deliver(2, 7, 100, "work").await;
    let guard = client.guard(message(&mut events).await).await.expect("connected");
    // A copy that comes while somebody works on it is none.
    peer.deliver_again(2, 7, 200, "work").await;
    let worker = tokio::spawn(async move {
        assert_eq!(guard.text(), Some("work"));
        panic!("the work fails");
    });
    assert!(worker.await.is_err());
    peer.expect_quiet(Duration::from_secs(1)).await;
    peer.deliver_again(2, 7, 300, "work").await;
    let again = message(&mut events).await;
    assert!(again.is_again() && again.id == 7);
    client.guard(again).await.expect("connected").ack();
    let ack = peer.expect(Kind::Ack).await;
    assert_eq!((ack.id, ack.stamp), (7, 300));
    // And from then on it is answered, not delivered.
    peer.deliver_again(2, 7, 400, "work").await;
    assert_eq!(peer.expect(Kind::Ack).await.stamp, 400);
    assert!(tokio::time::timeout(Duration::from_secs(1), events.next()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn guards_are_bounded_and_one_that_is_let_go_makes_room() {
    let (client, mut events, mut peer, _board) =
        pair(Config { acknowledge: Acknowledge::Manually, event_queue_len: 1, dedup_window_len: 64, ..config() }).await;
    let mut guards = Vec::new();
    let refused = loop {
        let id = guards.len() as u64 + 1;
        peer.deliver(2, id, id, "work").await;
        let guard = client.guard(message(&mut events).await);
        match tokio::time::timeout(Duration::from_secs(1), guard).await {
            Ok(guard) => guards.push(guard.expect("connected")),
            Err(_elapsed) => break id,
        }
    };
    assert_eq!(refused, 18, "one in the queue and 16 more");
    guards.remove(0).ack();
    peer.expect(Kind::Ack).await;
    peer.deliver(2, 100, 100, "work").await;
    client.guard(message(&mut events).await).await.expect("there is room").ack();
}

#[tokio::test(start_paused = true)]
async fn events_are_a_stream() {
    use std::future::poll_fn;
    use std::pin::Pin;

    use futures_core::Stream;

    let (_client, mut events, mut peer, _board) = pair(config()).await;
    for id in 1..=2 {
        peer.deliver(2, id, id, "hello").await;
    }
    for id in 1..=2 {
        let event = poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await;
        assert!(matches!(event, Some(Event::Message(message)) if message.id == id));
    }
    assert_eq!(peer.expect(Kind::Ack).await.id, 1);
}

/// What an application keeps on its disk: the messages that it has worked on.
type Disk = Arc<Mutex<Vec<(u64, u64)>>>;

/// Runs an application until it dies after so many steps, or until it has nothing to do; `unacknowledged` are delivered
/// to it first. Returns what is still unacknowledged then.
fn run_and_die(disk: &Disk, steps: usize, unacknowledged: &[u64]) -> Vec<u64> {
    let (disk, mut left) = (disk.clone(), unacknowledged.to_vec());
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async move {
        let (_client, mut events, mut peer, _board) = pair(config()).await;
        for &id in &left {
            peer.deliver_again(2, id, id, "work").await;
        }
        let application = async {
            for step in 0..steps {
                // Two steps a message: it is taken, and it is worked on.
                if step % 2 == 0 {
                    assert!(matches!(events.next().await, Some(Event::Message(_))));
                } else {
                    let key = (2, unacknowledged[step / 2]);
                    let mut done = disk.lock().expect("no panic");
                    if !done.contains(&key) {
                        done.push(key);
                    }
                }
            }
            // Dead, or asleep over an empty queue.
            if steps == 2 * unacknowledged.len() {
                events.next().await;
            }
            std::future::pending::<()>().await;
        };
        let gateway = async {
            loop {
                let frame = peer.expect(Kind::Ack).await;
                let done = disk.lock().expect("no panic").contains(&(2, frame.id));
                assert!(done, "{} is acknowledged and would be lost", frame.id);
                left.retain(|id| *id != frame.id);
            }
        };
        let both = async { tokio::join!(application, gateway) };
        assert!(tokio::time::timeout(Duration::from_secs(1), both).await.is_err());
        left
    })
}

#[test]
fn an_application_that_dies_at_any_point_loses_nothing_and_works_on_nothing_twice() {
    let all = [11, 12, 13];
    for steps in 0..=2 * all.len() {
        let disk = Disk::default();
        let left = run_and_die(&disk, steps, &all);
        let left = run_and_die(&disk, 2 * left.len(), &left);
        assert_eq!(left, [0_u64; 0], "after {steps} steps");
        assert_eq!(*disk.lock().expect("no panic"), all.map(|id| (2, id)), "after {steps} steps");
    }
}
