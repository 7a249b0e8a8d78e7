//! A bot in a group: `!roll`, `!roll 20` and `!help`.
//!
//! `gateway --data-dir /tmp/trunkline` keeps groups. `cargo run -p trunkline-client --example group_bot -- 7 77` joins
//! group 77 as user 7; then start `chat --user 1` and type `/join 77` and `/g 77 !roll`.
//!
//! What it shows: questions come each once and in order, and where the bot has got to is in a file, so that it answers
//! what was asked while it was down. Should it be killed between an answer and that note, the question comes again and
//! its answer has the same id as before: the group has it once.

use std::path::Path;
use std::process::ExitCode;

use trunkline_client::{Client, Config, Error, Event, GroupMessage, Outcome, Resume};

/// Sides of a die, if the question does not say.
const SIDES: u64 = 6;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().skip(1).map_while(|number| number.parse().ok()).collect();
    let &[user, group] = &numbers[..] else {
        eprintln!("usage: group_bot USER GROUP");
        return ExitCode::from(2);
    };
    match run(user, group).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("group_bot: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the session ends for good.
async fn run(user: u64, group: u64) -> Result<(), Box<dyn std::error::Error>> {
    let note = std::env::temp_dir().join(format!("group-bot-{user}-{group}.position"));
    let groups: Vec<(u64, u64)> = read_position(&note).map(|stamp| (group, stamp)).into_iter().collect();
    let config = Config {
        user,
        addrs: vec![std::env::var("TRUNKLINE_ADDR").unwrap_or("127.0.0.1:7700".into())],
        token: std::env::var("TRUNKLINE_TOKEN").unwrap_or_default().into(),
        device: "group-bot".into(),
        device_class: "bot".into(),
        resume: Resume { groups, ..Resume::default() },
        ..Config::default()
    };
    let (client, mut events) = Client::connect(config).await?;
    client.join_group(group).await?;
    println!("user {user} is in group {group}; say `!roll` or `!help` there");
    while let Some(event) = events.next().await {
        match event {
            Event::GroupMessage(message) if message.group == group => {
                if let Some(text) = answer(&message) {
                    send(&client, &message, text).await?;
                }
                std::fs::write(&note, message.stamp.to_string())?;
            }
            Event::GroupTruncated { .. } => eprintln!("some questions are gone: the bot was away for too long"),
            Event::GroupLost { code, text, .. } => return Err(trunkline_client::sentence(code, &text).into()),
            Event::Disconnected { reason, .. } => eprintln!("disconnected: {reason}"),
            _ => {}
        }
    }
    Ok(())
}

fn read_position(note: &Path) -> Option<u64> {
    std::fs::read_to_string(note).ok()?.trim().parse().ok()
}

/// Answers in the group, and waits until the answer is stored there.
async fn send(client: &Client, question: &GroupMessage, text: String) -> Result<(), Error> {
    match client.answer_in_group(question, text).await?.outcome().await {
        Ok(Outcome::Stored) => {}
        Ok(other) => eprintln!("no answer to {}: {other:?}", question.from),
        Err(error @ Error::Closed(_)) => return Err(error),
        // Too many in a second, say.
        Err(error) => eprintln!("no answer to {}: {error}", question.from),
    }
    Ok(())
}

/// What the bot says to a message; mostly nothing.
fn answer(question: &GroupMessage) -> Option<String> {
    // Its own, of an earlier run, and those of people who talk about it.
    let text = question.text().filter(|text| !question.is_own() && text.starts_with('!'))?;
    match text.split_once(' ').unwrap_or((text, "")) {
        ("!roll", sides) => {
            let sides = sides.trim().parse().ok().filter(|sides| *sides > 1).unwrap_or(SIDES);
            // Everybody can check it: the question itself is the die.
            Some(format!("{} rolled {} of {sides}", question.from, question.id % sides + 1))
        }
        ("!help", _) => Some("say `!roll` for a die, or `!roll 20` for one with 20 sides".into()),
        _ => None,
    }
}
