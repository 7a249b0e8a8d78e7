//! Answers to messages: one for each question, whatever comes twice.

use std::time::Duration;

use crate::support::{OwnedFrame, Peer, config, pair};
use tokio::io::DuplexStream;
use trunkline_client::{Error, Event, Events, Message, Outcome, Outgoing};
use trunkline_proto::{Kind, flags};

async fn question(events: &mut Events) -> Message {
    match events.next().await {
        Some(Event::Message(message)) => message,
        other => panic!("expected a message, not {other:?}"),
    }
}

/// The next SEND; ACKs before it are left out.
async fn send(peer: &mut Peer<DuplexStream>) -> OwnedFrame {
    loop {
        let frame = peer.frame().await.expect("a frame");
        match frame.kind {
            Kind::Send => return frame,
            Kind::Ack => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn answer(peer: &mut Peer<DuplexStream>) -> (u64, u64, u8) {
    let frame = send(peer).await;
    (frame.id, frame.peer, frame.flags)
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_the_same_id_in_every_process_and_says_when_it_may_have_been_sent_before() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "what?").await;
    let first = question(&mut events).await;
    client.answer(&first, "that").await.expect("queued").detach();
    let (id, to, with) = answer(&mut peer).await;
    assert_eq!((to, with), (2, flags::ACK));
    // Another process, to which the same question comes again.
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver_again(2, 7, 100, "what?").await;
    let again = question(&mut events).await;
    client.answer(&again, "that").await.expect("queued").detach();
    assert_eq!(answer(&mut peer).await, (id, 2, flags::ACK | flags::RETRY));
    // The same words under another id are another question, and so is the same id of another user.
    peer.deliver(2, 8, 101, "what?").await;
    client.answer(&question(&mut events).await, "that").await.expect("queued").detach();
    assert_ne!(answer(&mut peer).await.0, id);
    peer.deliver(3, 7, 102, "what?").await;
    client.answer(&question(&mut events).await, "that").await.expect("queued").detach();
    assert_ne!(answer(&mut peer).await.0, id);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_under_way_is_not_sent_twice() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "what?").await;
    let message = question(&mut events).await;
    let waits = client.answer(&message, "first").await.expect("queued");
    let twice = client.answer(&message, "second").await;
    assert!(matches!(twice, Err(Error::DuplicateId { id }) if id == waits.id()), "{twice:?}");
    let id = waits.id();
    waits.detach();
    let found = client.answer(&message, "third").await.expect("the first");
    assert_eq!(found.id(), id);
    let frame = send(&mut peer).await;
    assert_eq!(&frame.body[..], b"first");
    peer.sent(&frame, Outcome::Delivered).await;
    assert_eq!(found.outcome().await.expect("a fate"), Outcome::Delivered);
    assert_eq!(client.unsettled(), []);
}

#[tokio::test(start_paused = true)]
async fn nobody_can_keep_another_from_an_answer_by_its_id() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    peer.deliver(2, 7, 100, "what?").await;
    let message = question(&mut events).await;
    let id = client.answer(&message, "that").await.expect("queued").id();
    let frame = send(&mut peer).await;
    peer.sent(&frame, Outcome::Delivered).await;
    while !client.unsettled().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The id is taken by what is on its way to somebody else.
    client.submit(Outgoing::new(9, "else").with_id(id)).await.expect("queued").detach();
    let other = client.answer(&message, "that").await.expect("queued");
    assert_ne!(other.id(), id);
    assert_eq!(send(&mut peer).await.peer, 9);
    assert_eq!(answer(&mut peer).await, (other.id(), 2, flags::ACK));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_a_group_goes_to_the_group_and_is_always_looked_for() {
    let (client, mut events, mut peer, _board) = pair(config()).await;
    let body = [&2_u64.to_be_bytes()[..], b"!roll"].concat();
    peer.write(Kind::GroupDeliver, 0, 1, 7, 77, 100, &body).await;
    let Some(Event::GroupMessage(message)) = events.next().await else { panic!("a message to a group") };
    client.answer_in_group(&message, "4").await.expect("queued").detach();
    let frame = peer.expect(Kind::GroupSend).await;
    assert_eq!((frame.peer, frame.flags, &frame.body[..]), (77, flags::ACK | flags::RETRY, &b"4"[..]));
}
