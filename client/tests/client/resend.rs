//! Sending again over a slow link.

use std::time::Duration;

use crate::reconnect::lost;
use crate::support::{config, pair};
use tokio::time::Instant;
use trunkline_client::{Event, Outcome};
use trunkline_proto::Kind;

#[tokio::test(start_paused = true)]
async fn fates_and_messages_are_read_while_a_slow_link_is_full_of_what_is_sent_again() {
    const MESSAGES: usize = 500;
    const PAYLOAD_BYTES: usize = 16_000;
    const BYTES_PER_SEC: usize = 400_000;
    let (client, mut events, peer, mut board) = pair(config()).await;
    board.refuse(1);
    drop(peer);
    lost(&mut events).await;
    let mut receipts = Vec::new();
    for _ in 0..MESSAGES {
        receipts.push(client.send_tracked(2, vec![b'x'; PAYLOAD_BYTES]).await.expect("queued"));
    }
    let mut peer = board.arrival().await.peer;
    // A server that says nothing for ten seconds counts as dead; the whole takes twice as long.
    peer.admit_with(|answer| answer.heartbeat_secs = 5).await;
    let began = Instant::now();
    let gateway = tokio::spawn(async move {
        let (mut sends, mut acks) = (0, 0);
        while sends < MESSAGES {
            let frame = peer.frame_at(BYTES_PER_SEC).await.expect("one connection is enough");
            match frame.kind {
                Kind::Send => {
                    sends += 1;
                    peer.sent(&frame, Outcome::Delivered).await;
                    if sends % 10 == 0 {
                        peer.deliver(2, sends as u64, sends as u64, "meanwhile").await;
                    }
                }
                Kind::Ack => acks += 1,
                Kind::Ping => peer.write(Kind::Pong, 0, frame.aux, 0, 0, 0, &[]).await,
                other => panic!("{other:?}"),
            }
        }
        // Nobody connects a second time.
        board.expect_nobody(Duration::from_secs(1)).await;
        (peer, acks)
    });
    let reader = tokio::spawn(async move {
        let mut messages = 0;
        while let Some(event) = events.next().await {
            messages += usize::from(matches!(event, Event::Message(_)));
            if messages == MESSAGES / 10 {
                return messages;
            }
        }
        messages
    });
    for receipt in receipts {
        assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Delivered);
    }
    let took = began.elapsed();
    let least = Duration::from_secs_f64((MESSAGES * (PAYLOAD_BYTES + 32)) as f64 / BYTES_PER_SEC as f64);
    assert!(took < 2 * least, "{took:?} for what takes {least:?}");
    assert_eq!(reader.await.expect("no panic"), MESSAGES / 10);
    let (_peer, acks) = gateway.await.expect("no panic");
    // The last ones may still be on their way.
    assert!(acks + 10 >= MESSAGES / 10, "{acks}");
}
