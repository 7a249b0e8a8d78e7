//! Tells many users the same, and what became of it.
//!
//! `cargo run -p trunkline-client --example broadcast -- 1 1000 11000 60 "maintenance at noon"` sends, as user 1, to
//! the users 1000 to 10999, and waits for 60 s at most. Its exit status is 0 when everybody has the message or it is
//! stored for them.
//!
//! What it shows: as many messages are under way as the client may have, and no more memory is used, however many there
//! are; one deadline for all of them; each fate is reported.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline_client::{Client, Config, Error, Outcome, Outgoing, Payload};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |at: usize| args.get(at).and_then(|number| number.parse::<u64>().ok());
    let (Some(user), Some(first), Some(end), Some(secs), Some(text)) =
        (numbers(0), numbers(1), numbers(2), numbers(3), args.get(4))
    else {
        eprintln!("usage: broadcast USER FIRST END SECONDS TEXT");
        return ExitCode::from(2);
    };
    match run(user, first..end, Duration::from_secs(secs), text.as_str().into()).await {
        Ok(fates) => {
            for (fate, count) in &fates {
                println!("{count:8} {fate}");
            }
            let is_good = |fate: &String| ["Delivered", "Stored"].contains(&fate.as_str());
            if fates.keys().all(is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("broadcast: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How many messages had each fate.
async fn run(
    user: u64,
    recipients: std::ops::Range<u64>,
    limit: Duration,
    text: Payload,
) -> Result<BTreeMap<String, u64>, Error> {
    let deadline = Instant::now() + limit;
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        device: "broadcast".into(),
        // It only sends: a gateway with a store should keep nothing for it.
        ephemeral: true,
        ..Config::default()
    };
    let (client, _) = Client::connect(config).await?;
    let mut fates = BTreeMap::new();
    let mut waiting = JoinSet::new();
    for to in recipients {
        // A message has what is left of the time; one that comes too late is given up at once, though it may have been
        // sent, and says so.
        let left = deadline.saturating_duration_since(Instant::now());
        let receipt = client.submit_when_room(Outgoing::new(to, text.clone()).with_timeout(left)).await?;
        waiting.spawn(async move { (to, receipt.outcome().await) });
        while let Some(done) = waiting.try_join_next() {
            report(done.expect("a task that only waits does not panic"), &mut fates);
        }
    }
    while let Some(done) = waiting.join_next().await {
        report(done.expect("a task that only waits does not panic"), &mut fates);
    }
    client.close().await;
    Ok(fates)
}

fn report((to, fate): (u64, Result<Outcome, Error>), fates: &mut BTreeMap<String, u64>) {
    let words = match &fate {
        Ok(outcome) => format!("{outcome:?}"),
        // Without its figure, which differs from message to message.
        Err(Error::NoFate { .. }) => "nothing was heard of it in time".to_owned(),
        Err(error) => error.to_string(),
    };
    if !matches!(fate, Ok(Outcome::Delivered | Outcome::Stored)) {
        eprintln!("user {to}: {words}");
    }
    *fates.entry(words).or_default() += 1;
}
