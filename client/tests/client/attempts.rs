//! Attempts to come back that fail, as the application hears of them.

use std::time::Duration;

use crate::reconnect::lost;
use crate::support::{config, pair};
use tokio::time::Instant;
use trunkline_client::{Config, Event};

#[tokio::test(start_paused = true)]
async fn failed_attempts_are_told_with_their_reason_and_the_next_wait() {
    let (_client, mut events, peer, mut board) = pair(config()).await;
    board.refuse(5);
    drop(peer);
    let mut due = Instant::now() + lost(&mut events).await.1.expect("another attempt");
    for number in 1..=5 {
        match events.next().await {
            Some(Event::ReconnectFailed { attempt, why, retry_in }) => {
                // Timers are good to a millisecond.
                assert!(Instant::now() - due <= Duration::from_millis(1));
                assert_eq!(attempt, number);
                assert!(why.starts_with("cannot connect to 127.0.0.1:7700: "), "{why}");
                due = Instant::now() + retry_in;
            }
            other => panic!("{other:?}"),
        }
    }
    board.admitted().await;
    assert_eq!(events.next().await, Some(Event::Reconnected { resumed: false }));
}

#[tokio::test(start_paused = true)]
async fn an_application_that_is_away_for_days_finds_how_it_stands_and_no_list_of_failures() {
    let (_client, mut events, peer, mut board) = pair(Config { event_queue_len: 16, ..config() }).await;
    board.refuse(usize::MAX);
    drop(peer);
    tokio::time::sleep(Duration::from_secs(3 * 24 * 3_600)).await;
    board.refuse(0);
    let mut peer = board.admitted().await;
    peer.deliver(2, 7, 1, "hello").await;
    assert!(matches!(events.next().await, Some(Event::Disconnected { .. })));
    let mut failures = 0;
    loop {
        match events.next().await {
            Some(Event::ReconnectFailed { .. }) => failures += 1,
            other => {
                assert_eq!(other, Some(Event::Reconnected { resumed: false }));
                break;
            }
        }
    }
    assert_eq!(failures, 7);
    assert!(matches!(events.next().await, Some(Event::Message(message)) if message.id == 7));
}
