//! A bot that answers every message with the same words.
//!
//! `cargo run -p trunkline-client --example echo -- 7` logs in as user 7; then talk to it with `chat --user 1` and the
//! line `7;;hello`.

use std::process::ExitCode;

use trunkline_client::{Client, Config, Error, Event};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(user) = std::env::args().nth(1).and_then(|user| user.parse().ok()) else {
        eprintln!("usage: echo USER");
        return ExitCode::from(2);
    };
    match echo(user).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers until the session ends for good.
async fn echo(user: u64) -> Result<(), Error> {
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        device_class: "bot".into(),
        ..Config::default()
    };
    let (client, mut events) = Client::connect(config).await?;
    println!("user {user} echoes; say something to it");

    while let Some(event) = events.next().await {
        match event {
            // What this user says elsewhere is not addressed to the bot.
            Event::Message(message) if !message.is_own() => {
                // At most once: waiting for the fate of one answer would hold up all the others.
                match client.send(message.from, message.body).await {
                    Ok(_id) => {}
                    Err(error) => eprintln!("no answer to {}: {error}", message.from),
                }
            }
            Event::Disconnected { reason, .. } => eprintln!("disconnected: {reason}"),
            Event::Reconnected { .. } => eprintln!("connected again"),
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}
