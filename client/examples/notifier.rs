//! Notifies a user, once and for sure: for cron jobs and alarms.
//!
//! `cargo run -p trunkline-client --example notifier -- 1 2 4711 "the backup is late"` sends notice 4711 from user 1 to
//! user 2. Its exit status is 0 when the notice is delivered or stored, and then running it again with the same number
//! does no harm: user 2 sees one notice.
//!
//! What it shows: an id of the application's own, an outbox in a file for what is not settled when the program ends,
//! and a limit for the fate.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use trunkline_client::{Client, Config, Durability, FileOutbox, Outcome, Outgoing};

/// Whoever waits for this program should hear something.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |at: usize| args.get(at).and_then(|number| number.parse().ok());
    let (Some(user), Some(to), Some(id), Some(text)) = (numbers(0), numbers(1), numbers(2), args.get(3)) else {
        eprintln!("usage: notifier USER RECIPIENT NUMBER TEXT");
        return ExitCode::from(2);
    };
    match notify(user, Outgoing::new(to, text.as_str()).with_id(id)).await {
        Ok(Outcome::Delivered | Outcome::Stored) => ExitCode::SUCCESS,
        Ok(other) => {
            eprintln!("notifier: user {to} does not have it: {other:?}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("notifier: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn notify(user: u64, notice: Outgoing) -> Result<Outcome, Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("notifier-{user}.outbox"));
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        // Beside a phone of the same user, not in its place.
        device: "notifier".into(),
        // It only sends: a gateway with a store should keep nothing for it.
        ephemeral: true,
        outbox: Some(Arc::new(FileOutbox::open(path, Durability::Disk)?)),
        ..Config::default()
    };
    // Nobody is to hear what is said to this user here.
    let (client, _) = Client::connect(config).await?;
    // Notices of earlier runs that were not settled are in the outbox and go out first; this one may be among them.
    let receipt = match notice.id.and_then(|id| client.receipt(id)) {
        Some(receipt) => receipt,
        None => client.submit(notice).await?,
    };
    let fate = timeout(PATIENCE, receipt.outcome()).await;
    client.close().await;
    match fate {
        Ok(fate) => Ok(fate?),
        Err(_elapsed) => Err("it has no answer yet; the next run goes on with it".into()),
    }
}
