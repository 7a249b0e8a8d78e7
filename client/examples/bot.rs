//! A bot that keeps a shared shopping list: `add milk`, `done milk`, `list`.
//!
//! `cargo run -p trunkline-client --example bot -- 7` logs in as user 7; then talk to it with `chat --user 1` and the
//! line `7;;add milk`.
//!
//! What it shows: a message is acknowledged when the next one is asked for, so one that the bot dies of is delivered
//! again; then its answer has the same id as before, and whoever asked sees one answer. Answers are in an outbox before
//! that, so none is lost, whenever the bot is killed. The list itself is in memory alone: a bot of yours has a database
//! there.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use trunkline_client::{Client, Config, Durability, Error, Event, FileOutbox, Message};

/// Items on the list: a bot, too, should be bounded.
const ITEMS_MAX: usize = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(user) = std::env::args().nth(1).and_then(|user| user.parse().ok()) else {
        eprintln!("usage: bot USER");
        return ExitCode::from(2);
    };
    match run(user).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bot: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the session ends for good.
async fn run(user: u64) -> Result<(), Box<dyn std::error::Error>> {
    let outbox = FileOutbox::open(std::env::temp_dir().join(format!("bot-{user}.outbox")), Durability::Process)?;
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        device: "bot".into(),
        device_class: "bot".into(),
        outbox: Some(Arc::new(outbox)),
        ..Config::default()
    };
    let (client, mut events) = Client::connect(config).await?;
    println!("user {user} keeps a list; say `add milk`, `done milk` or `list` to it");
    let mut list = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            // What this user says on another device is not addressed to the bot.
            Event::Message(message) if !message.is_own() => {
                let answer = answer(&mut list, &message);
                send(&client, &message, answer).await?;
            }
            Event::Disconnected { reason, .. } => eprintln!("disconnected: {reason}"),
            Event::Reconnected { .. } => eprintln!("connected again"),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}

/// Hands the answer over to the client, which has it in the outbox when this returns. An error ends the bot before the
/// question is acknowledged, so that it comes again.
async fn send(client: &Client, question: &Message, text: String) -> Result<(), Error> {
    match client.answer(question, text).await {
        // Nobody waits for its fate: the next question does not depend on it.
        Ok(receipt) => receipt.detach(),
        Err(error @ (Error::Closed(_) | Error::Outbox(_))) => return Err(error),
        Err(error) => eprintln!("no answer to {}: {error}", question.from),
    }
    Ok(())
}

/// Each command has the same effect when it is obeyed twice, so that a message delivered again does no harm.
fn answer(list: &mut BTreeSet<String>, message: &Message) -> String {
    let text = message.text().unwrap_or_default();
    match text.split_once(' ').unwrap_or((text, "")) {
        ("add", item) if !item.is_empty() && list.len() < ITEMS_MAX => {
            list.insert(item.to_owned());
            format!("{item} is on the list")
        }
        ("done", item) if list.remove(item) => format!("{item} is off the list"),
        ("done", item) => format!("{item} is not on the list"),
        ("list", "") if list.is_empty() => "there is nothing on the list".into(),
        ("list", "") => list.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
        _ => "say `add milk`, `done milk` or `list`".into(),
    }
}
