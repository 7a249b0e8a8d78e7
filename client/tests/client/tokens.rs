//! Tokens that are asked for, that end, and that are renewed in time.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Switchboard, config, pair};
use tokio::time::Instant;
use trunkline_client::{Client, Code, Config, Error, Event, Events, Reason, Token};
use trunkline_proto::{Bye, Kind, LoginOk};

const EXPIRED: &str = "the token has expired";

/// A provider that gives what it is told to, and counts.
#[derive(Clone, Default)]
struct Issuer {
    answer: Arc<Mutex<Option<Result<String, String>>>>,
    asked: Arc<AtomicU32>,
    under_way: Arc<AtomicU32>,
    takes: Duration,
}

impl Issuer {
    /// It gives token-0, token-1 and so on.
    fn new() -> Self {
        Self::default()
    }

    /// It gives this from now on; `None`: a new token each time.
    fn give(&self, answer: Option<Result<&str, &str>>) {
        let answer = answer.map(|answer| answer.map(str::to_owned).map_err(str::to_owned));
        *self.answer.lock().expect("no panic") = answer;
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    fn token(&self) -> Token {
        let issuer = self.clone();
        Token::provider(move || {
            let issuer = issuer.clone();
            async move {
                assert_eq!(issuer.under_way.fetch_add(1, Ordering::Relaxed), 0, "asked twice at a time");
                tokio::time::sleep(issuer.takes).await;
                issuer.under_way.fetch_sub(1, Ordering::Relaxed);
                let number = issuer.asked.fetch_add(1, Ordering::Relaxed);
                issuer.answer.lock().expect("no panic").clone().unwrap_or(Ok(format!("token-{number}")))
            }
        })
    }

    fn config(&self) -> Config {
        Config { token: self.token(), ..config() }
    }
}

/// The gateway's clock is far from the client's; only what lies between the two numbers counts.
fn lasting(secs: u64) -> impl FnOnce(&mut LoginOk) {
    move |answer| {
        answer.time_ms = 77_000;
        answer.expires_ms = 77_000 + secs * 1_000;
    }
}

/// A client that is logged in with a token that lasts so long.
async fn pair_lasting(
    config: Config,
    secs: u64,
) -> (Client, Events, crate::support::Peer<tokio::io::DuplexStream>, Switchboard) {
    let (dial, mut board) = Switchboard::new();
    let (connected, peer) = tokio::join!(Client::connect_with(config, dial), async {
        let mut peer = board.arrival().await.peer;
        peer.admit_with(lasting(secs)).await;
        peer
    });
    let (client, events) = connected.expect("logged in");
    (client, events, peer, board)
}

async fn expired(peer: &mut crate::support::Peer<tokio::io::DuplexStream>) {
    peer.bye(Code::BadCredentials, Bye { text: EXPIRED.into(), ..Bye::default() }).await;
}

fn expired_reason() -> Reason {
    Reason::Bye { code: 6, text: EXPIRED.into() }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_given_a_new_token_when_three_fifths_to_four_fifths_of_the_old_one_are_over() {
    let issuer = Issuer::new();
    let (client, mut events, mut peer, _board) = pair_lasting(issuer.config(), 1_000).await;
    assert_eq!(client.session().expires_ms, 1_077_000);
    for number in 1..5 {
        let began = Instant::now();
        let renewal = peer.expect_renewal().await;
        let waited = began.elapsed().as_secs_f64();
        assert!((599.9..=800.1).contains(&waited), "{waited}");
        assert_eq!((renewal.version, renewal.user, renewal.token), (1, 1, format!("token-{number}")));
        peer.welcome_with(|answer| {
            lasting(1_000)(answer);
            answer.expires_ms += number;
        })
        .await;
    }
    peer.expect_quiet(Duration::from_secs(1)).await;
    assert_eq!(client.session().expires_ms, 1_077_004);
    assert!(client.is_connected());
    assert!(tokio::time::timeout(Duration::ZERO, events.next()).await.is_err(), "nothing to tell");
    assert_eq!(issuer.asked(), 5);
}

#[tokio::test(start_paused = true)]
async fn clients_that_came_together_do_not_renew_together() {
    let mut waits = Vec::new();
    for _ in 0..10 {
        let (_client, _events, mut peer, _board) = pair_lasting(Issuer::new().config(), 10_000).await;
        let began = Instant::now();
        peer.expect_renewal().await;
        waits.push(began.elapsed().as_secs());
    }
    waits.sort_unstable();
    assert!(waits[9] - waits[0] > 100, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_renewed_where_the_token_has_no_end_or_nobody_is_asked() {
    let issuer = Issuer::new();
    let (_client, _events, mut peer, _board) = pair(issuer.config()).await;
    peer.expect_quiet(Duration::from_secs(100_000)).await;
    assert_eq!(issuer.asked(), 1);

    let known = Config { token: "known".into(), ..config() };
    let (_client, mut events, mut peer, mut board) = pair_lasting(known, 1_000).await;
    peer.expect_quiet(Duration::from_secs(1_000)).await;
    expired(&mut peer).await;
    assert_eq!(events.next().await, Some(Event::Disconnected { reason: expired_reason(), retry_in: None }));
    board.expect_nobody(Duration::from_secs(100_000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_is_told_and_tried_again_until_the_end() {
    let issuer = Issuer::new();
    let (_client, mut events, mut peer, _board) = pair_lasting(issuer.config(), 1_000).await;
    let began = Instant::now();
    let mut left = Duration::from_secs(1_000);
    for number in 1..4 {
        assert_eq!(peer.expect_renewal().await.token, format!("token-{number}"));
        // Also where the gateway has no room, or cannot ask whoever decides.
        let (code, text) = [(6, "the token is signed with an unknown key"), (14, "try again later")][number % 2];
        peer.write(Kind::Error, 0, code, 0, 0, 0, text.as_bytes()).await;
        match events.next().await {
            Some(Event::TokenNotRenewed { why, ends_in }) => {
                assert!(why.contains(&format!("(code {code}): {text}")), "{why}");
                assert!(ends_in < left && ends_in > Duration::ZERO, "{ends_in:?} of {left:?}");
                left = ends_in;
            }
            other => panic!("{other:?}"),
        }
    }
    // The one that is taken in the end counts from then on.
    peer.expect_renewal().await;
    assert!(began.elapsed() < Duration::from_secs(1_000));
    peer.welcome_with(lasting(1_000)).await;
    let renewed = Instant::now();
    peer.expect_renewal().await;
    assert!(renewed.elapsed() >= Duration::from_secs(599));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_down_or_late_is_asked_again_and_never_twice_at_a_time() {
    let issuer = Issuer { takes: Duration::from_secs(3), ..Issuer::new() };
    let (_client, mut events, mut peer, _board) = pair_lasting(issuer.config(), 100).await;
    let renewal = tokio::spawn(async move { peer.expect_renewal().await.token });
    for (answer, words) in [(Err("503"), "503"), (Ok("token-0"), "no newer token")] {
        issuer.give(Some(answer));
        match events.next().await {
            Some(Event::TokenNotRenewed { why, .. }) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    issuer.give(None);
    assert_eq!(renewal.await.expect("no panic"), "token-3");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_never_works_is_tried_a_few_times_and_the_session_ends() {
    let issuer = Issuer::new();
    let (client, mut events, mut peer, mut board) = pair_lasting(issuer.config(), 3_600).await;
    issuer.give(Some(Ok("token-0")));
    peer.expect_quiet(Duration::from_secs(3_600)).await;
    let asked = issuer.asked();
    assert!((5..40).contains(&asked), "{asked}");
    expired(&mut peer).await;
    drop(peer);
    // The issuer may be late, so it is asked a few times more; nobody connects with the token that has expired.
    let mut reasons = Vec::new();
    while let Some(event) = events.next().await {
        if let Event::Disconnected { reason, retry_in } = event {
            reasons.push((reason, retry_in.is_some()));
        }
    }
    assert_eq!(reasons, [(expired_reason(), true), (expired_reason(), false)]);
    assert_eq!(issuer.asked() - asked, 8);
    assert!(matches!(client.send_acked(2, "x").await, Err(Error::Closed(reason)) if reason == expired_reason()));
    board.expect_nobody(Duration::from_secs(100_000)).await;
}

#[tokio::test(start_paused = true)]
async fn after_the_end_of_its_token_a_client_comes_back_with_another_one() {
    let issuer = Issuer::new();
    issuer.give(Some(Ok("first")));
    let (_client, mut events, mut peer, mut board) = pair(issuer.config()).await;
    expired(&mut peer).await;
    assert!(matches!(events.next().await, Some(Event::Disconnected { retry_in: Some(_), .. })));
    // As after a suspend of the machine, when the issuer is late by a moment.
    tokio::time::sleep(Duration::from_secs(5)).await;
    issuer.give(Some(Ok("second")));
    let mut peer = board.arrival().await.peer;
    assert_eq!(peer.admit().await.token, "second");
    let mut event = events.next().await;
    while let Some(Event::ReconnectFailed { why, .. }) = event {
        assert!(why.contains("no other token") && why.contains(EXPIRED), "{why}");
        event = events.next().await;
    }
    assert_eq!(event, Some(Event::Reconnected { resumed: false }));

    // Two in a row that are refused are enough.
    issuer.give(None);
    expired(&mut peer).await;
    assert!(matches!(events.next().await, Some(Event::Disconnected { retry_in: Some(_), .. })));
    let mut peer = board.arrival().await.peer;
    peer.expect_login().await;
    expired(&mut peer).await;
    assert_eq!(events.next().await, Some(Event::Disconnected { reason: expired_reason(), retry_in: None }));
    board.expect_nobody(Duration::from_secs(100_000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_login_needs_a_token_and_a_reconnect_waits_for_one() {
    let issuer = Issuer::new();
    issuer.give(Some(Err("no such account")));
    let (dial, mut board) = Switchboard::new();
    let refused = Client::connect_with(issuer.config(), dial).await;
    assert!(matches!(refused, Err(Error::Token(why)) if why == "no such account"));
    board.expect_nobody(Duration::from_secs(1_000)).await;

    issuer.give(None);
    let (_client, mut events, peer, mut board) = pair(issuer.config()).await;
    issuer.give(Some(Err("the issuer is down")));
    drop(peer);
    assert!(matches!(events.next().await, Some(Event::Disconnected { retry_in: Some(_), .. })));
    board.expect_nobody(Duration::from_secs(1_000)).await;
    let asked = issuer.asked();
    assert!((20..60).contains(&asked), "{asked}");
    issuer.give(Some(Ok("back")));
    let mut peer = board.arrival().await.peer;
    assert_eq!(peer.admit().await.token, "back");
}

#[tokio::test(start_paused = true)]
async fn a_login_ok_that_nobody_asked_for_breaks_the_protocol() {
    let issuer = Issuer::new();
    let (_client, mut events, mut peer, _board) = pair(issuer.config()).await;
    peer.welcome().await;
    match events.next().await {
        Some(Event::Disconnected { reason: Reason::Protocol(what), retry_in: Some(_) }) => {
            assert!(what.contains("LOGIN_OK"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}
