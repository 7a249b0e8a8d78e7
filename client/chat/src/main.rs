//! `chat`: talk to other users of a Trunkline gateway from a terminal or a script.

mod complete;
mod deliver;
mod groups;
mod line;
mod prompt;
mod screen;
mod style;
mod text;
mod token;
mod watch;
mod who;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use trunkline_client::{
    Acknowledge, Client, Config, Error, Event, Events, GroupMessage, Outcome, Outgoing, Receipt, Tls, Ws, is_live_room,
};

use crate::deliver::{Circumstances, Tally};
use crate::groups::KnownGroups;
use crate::line::Command;
use crate::screen::{Input, Screen};
use crate::style::{Tone, When};
use crate::watch::Watching;

/// Requests under way; while there are so many, no line is read. Below the library's own limit for messages, so that a
/// script that sends faster than the gateway answers is slowed down and not refused.
const JOBS_MAX: usize = 256;

/// How long leaving waits for the fates of the last messages: a script should get its answers, a person wants to go.
/// A script's is longer than a restart of the gateway and of everybody's sessions takes.
const LAST_FATES_SCRIPT: Duration = Duration::from_secs(60);
const LAST_FATES_PERSON: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  chat --user 1                         talk as user 1; in another terminal: chat --user 2
  chat --user 1 --device laptop         a second device of user 1 gets everything, too
  printf '2;;hello\\n' | chat --user 1   send one message, print its fate and leave
  TRUNKLINE_TOKEN=eyJ… chat --user 1    log in where the gateway runs with --auth jwt
  chat --user 1 --token-file token      the same, from a file that is read again in time
  chat --user 1 --addr a:7700,b:7700    try b when a does not answer
  chat --user 1 --device bot --ephemeral  take nothing that came before, and leave nothing behind
  printf '/join 77\\n/g 77 hi\\n' | chat --user 1   join a group, say hi
  chat --user 1 --tls-ca dev-cert.pem   over TLS, to a gateway with that certificate
  chat --user 1 --addr wss://chat.example.com/ws   through a WebSocket, where only HTTPS passes

Lines:
  2;;hello   send hello to user 2          /who 2       is user 2 online
  /to 2      lines go to user 2 from now   /members 77  who is in group 77
  hello      send to the user of /to       /history 77  what was said in it
  /join 77   join group 77 (or /leave)     /ping        round trip to the gateway
  /g 77 hi   send hi to group 77           /watch 2 3   say when users 2 and 3 come and go
  /quit      leave (or Ctrl-D)             /unwatch 2   say it no more

Exit status: 0 after leaving, 1 when the gateway cannot be reached, refuses the login or ends the session for good, or
when messages were left without an answer, 2 for a wrong command line, 3 when a line of a script was not understood,
not sent, or neither delivered, stored nor passed on.";

/// Exit status of a script that did not get all of its lines through.
const NOT_ALL_DELIVERED: u8 = 3;

/// Talk to other users of a Trunkline gateway.
///
/// Type a line to send it; messages for you appear above the line you type. When standard input is not a terminal,
/// lines are read plainly, and chat leaves at the end of the input, after the fate of every message is known.
#[derive(Debug, Parser)]
#[command(name = "chat", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
struct Args {
    /// User to log in as, 1 or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    user: u64,

    /// Addresses of gateways, separated by commas or given several times: tried in turn, together with those that
    /// gateways name; ws://HOST/PATH and wss://HOST/PATH are WebSockets
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = address,
        default_value = "127.0.0.1:7700")]
    addr: Vec<String>,

    /// Address of the gateway's HTTP interface, for /who
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7780")]
    http: String,

    /// Token that proves who you are, where the gateway wants one; better given in the environment, where other users
    /// of this machine do not see it
    #[arg(long, value_name = "TOKEN", env = "TRUNKLINE_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// File with the token, which goes before --token; it is read again before each login and before the token
    /// expires: then the session goes on with the new one
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<OsString>,

    /// Connect over TLS, and trust those whom this system trusts
    #[arg(long)]
    tls: bool,

    /// Connect over TLS, and trust the certificates (PEM) in this file instead
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// Name of this device; another login of the same user and device replaces this one
    #[arg(long, value_name = "NAME", default_value = "")]
    device: String,

    /// Have nothing kept for this device while it is away; for scripts, that would otherwise take what a person has
    /// missed
    #[arg(long)]
    ephemeral: bool,

    /// Ask for an acknowledgement and print the fate of each message (the default)
    #[arg(long, overrides_with = "no_ack")]
    ack: bool,

    /// Send at most once, without acknowledgement
    #[arg(long, overrides_with = "ack")]
    no_ack: bool,

    /// Keep what you send from your other devices; a script never shows it to them
    #[arg(long)]
    no_copy: bool,

    /// Colours
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: When,
}

/// An address as the library takes it.
fn address(text: &str) -> Result<String, String> {
    let config = Config { addrs: vec![text.to_owned()], user: 1, ..Config::default() };
    config.validate().map(|()| text.to_owned()).map_err(|error| error.to_string())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(status) => status,
        Err(sentence) => {
            eprintln!("chat: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// How to connect over TLS; `None` without.
fn tls(args: &Args) -> Result<Option<Tls>, String> {
    match &args.tls_ca {
        Some(path) => {
            let trusted = std::fs::read(path).and_then(|pem| Tls::trusting(&pem));
            trusted.map(Some).map_err(|error| format!("{}: {error}", path.display()))
        }
        None if args.tls || args.addr.iter().any(|addr| is_for_tls(addr)) => {
            Tls::of_system().map(Some).map_err(|error| error.to_string())
        }
        None => Ok(None),
    }
}

/// Whether an address says that it is one for TLS.
fn is_for_tls(addr: &str) -> bool {
    ["trunkline+tls://", "wss://"].iter().any(|scheme| addr.starts_with(scheme))
}

/// The whole program; an error is a sentence for the user.
async fn run(args: Args) -> Result<ExitCode, String> {
    // A variable that is set to nothing is not set.
    let token = match args.token_file.clone().filter(|file| !file.is_empty()) {
        Some(file) => token::from_file(file.into()),
        None => args.token.clone().unwrap_or_default().into(),
    };
    let config = Config {
        addrs: args.addr.clone(),
        user: args.user,
        token,
        device: args.device.clone(),
        ephemeral: args.ephemeral,
        device_class: "terminal".into(),
        agent: concat!("chat/", env!("CARGO_PKG_VERSION")).into(),
        acknowledge: Acknowledge::Manually,
        ..Config::default()
    };
    let connected = match tls(&args)? {
        Some(tls) => Client::connect_with(config, Ws::over(tls)).await,
        None => Client::connect(config).await,
    };
    let (client, events) = connected.map_err(|error| match error {
        Error::Connect { .. } => {
            format!("{error} (is the gateway running? --addr names another address)")
        }
        other => text::printable(other.to_string().as_bytes()),
    })?;
    let known = KnownGroups::default();
    let (screen, mut input) = Screen::start(args.user, args.color, known.clone());
    let (jobs, tally, circumstances) = (JoinSet::new(), Tally::default(), Circumstances::default());
    let missed = Some(0);
    let mut chat = Chat {
        args,
        client,
        screen,
        jobs,
        known,
        waited_for: 0,
        watching: Watching::default(),
        tally,
        circumstances,
        missed,
    };
    let interactive = chat.screen.interactive;
    let mut result = tokio::select! {
        result = chat.talk(events, &mut input) => result,
        // Around everything: the conversation may be waiting for a pipe that nobody reads. On a terminal the line
        // editor sees Ctrl-C as a key.
        result = signalled(), if !interactive => result,
    };
    if let (Ok(()), 1..) = (&result, chat.tally.open) {
        result = Err(format!("{} messages are without an answer", chat.tally.open));
    }
    let failed = chat.tally.failed;
    chat.client.close().await;
    if let Err(sentence) = &result {
        chat.screen.release(sentence, &mut input).await;
    }
    chat.screen.flush().await;
    result?;
    if interactive || failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("chat: {failed} lines were not sent or not delivered");
    Ok(NOT_ALL_DELIVERED.into())
}

/// Waits for SIGINT or SIGTERM.
async fn signalled() -> Result<(), String> {
    let watch = |kind| signal(kind).map_err(|error| format!("cannot watch for signals: {error}"));
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// How the conversation goes on.
#[derive(Debug)]
enum Next {
    GoOn,
    /// Leave when the fates of all messages are known.
    Leave,
}

struct Chat {
    args: Args,
    client: Client,
    screen: Screen,
    /// Requests under way; each ends in a line to print.
    jobs: JoinSet<Report>,
    known: KnownGroups,
    /// Commands about groups under way: the lines behind them wait, since they may depend on them, or undo them.
    waited_for: usize,
    /// Lines that wait for the first word about the users they name.
    watching: Watching,
    tally: Tally,
    circumstances: Circumstances,
    /// Messages printed that came while nobody was here; `None` when that has been told.
    missed: Option<usize>,
}

/// What a request ended in.
#[derive(Debug)]
enum Report {
    /// The fate of a message.
    Fate { to: u64, text: String, fate: Result<Outcome, Error> },
    /// The fate of a message to a group.
    GroupFate { group: u64, text: String, fate: Result<Outcome, Error> },
    /// The answer to a command about a group; one that could not be had counts as a line that was not obeyed.
    OfGroup(Result<String, String>),
    /// All that a `/watch` asked for is on the screen; or the sentence that says why not.
    Watched(Result<String, String>),
    /// What was said in a group.
    History { group: u64, messages: Result<Vec<GroupMessage>, String> },
    /// The answer to a command.
    Answer(String),
}

impl Chat {
    async fn talk(&mut self, mut events: Events, input: &mut mpsc::Receiver<Input>) -> Result<(), String> {
        let session = self.client.session();
        let welcome = format!(
            "user {} at {} (node {}, shard {}); /help lists the commands",
            self.args.user,
            session.addr,
            text::printable(session.node.as_bytes()),
            session.shard
        );
        self.screen.status(welcome).await;

        let interactive = self.screen.interactive;
        let mut leave_at: Option<Instant> = None;
        loop {
            if leave_at.is_some() && self.jobs.is_empty() {
                return Ok(());
            }
            let reading = leave_at.is_none() && self.jobs.len() < JOBS_MAX && self.waited_for == 0;
            let deadline = leave_at.unwrap_or_else(Instant::now);
            tokio::select! {
                next = input.recv(), if reading => {
                    let next = match next.unwrap_or(Input::End) {
                        Input::Command(command) => self.obey(command).await,
                        Input::End => Next::Leave,
                        Input::Failed(sentence) => return Err(sentence),
                    };
                    if let Next::Leave = next {
                        let wait = if interactive { LAST_FATES_PERSON } else { LAST_FATES_SCRIPT };
                        leave_at = Some(Instant::now() + wait);
                    }
                }
                event = events.next() => {
                    self.tell(event).await?;
                }
                Some(report) = self.jobs.join_next() => {
                    let report = report.map_err(|error| format!("a request failed inside chat: {error}"))?;
                    self.report(report).await;
                }
                () = sleep_until(deadline), if leave_at.is_some() => {
                    return Ok(());
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Nothing => {}
            Command::Send { to, text } => self.send(to, text).await,
            Command::Who { user } => {
                let addr = self.args.http.clone();
                self.jobs.spawn(async move {
                    Report::Answer(who::who(&addr, user).await.unwrap_or_else(|error| error.to_string()))
                });
            }
            Command::Join { group } => {
                self.known.add(group);
                self.waited_for += 1;
                let client = self.client.clone();
                self.jobs.spawn(async move { Report::OfGroup(groups::join(&client, group).await) });
            }
            Command::Leave { group } => {
                self.known.remove(group);
                self.waited_for += 1;
                let client = self.client.clone();
                self.jobs.spawn(async move { Report::OfGroup(groups::leave(&client, group).await) });
            }
            Command::Say { group, text } => self.say(group, text).await,
            Command::Members { group } => {
                self.waited_for += 1;
                let addr = self.args.http.clone();
                self.jobs.spawn(async move {
                    Report::OfGroup(match is_live_room(group) {
                        true => Err("the gateway has no list of who is in a live room".into()),
                        false => who::members(&addr, group).await.map_err(|error| error.to_string()),
                    })
                });
            }
            Command::History { group } => {
                self.waited_for += 1;
                let client = self.client.clone();
                self.jobs.spawn(async move {
                    let messages = groups::history(&client, group).await;
                    Report::History { group, messages }
                });
            }
            Command::Watch { users } => {
                let told = self.watching.wait(self.client.clone(), users);
                self.jobs.spawn(async move { Report::Watched(told.await) });
            }
            Command::Unwatch { users } => {
                let ended = match users.is_empty() {
                    true => self.client.unwatch_all().await,
                    false => self.client.unwatch(users).await,
                };
                if let Err(error) = ended {
                    self.tally.failed += 1;
                    self.screen.line(Tone::Bad, text::printable(error.to_string().as_bytes())).await;
                }
            }
            Command::Ping => {
                let client = self.client.clone();
                self.jobs.spawn(async move {
                    Report::Answer(match client.ping().await {
                        Ok(round_trip) => {
                            format!("round trip {:.3} ms", round_trip.as_secs_f64() * 1e3)
                        }
                        Err(error) => error.to_string(),
                    })
                });
            }
            Command::Help => {
                self.screen.line(Tone::Plain, text::HELP.into()).await;
            }
            Command::Quit => return Next::Leave,
            Command::Wrong(sentence) => {
                self.tally.failed += 1;
                self.screen.status(sentence).await;
            }
        }
        Next::GoOn
    }

    /// Queued here, so that messages keep their order; only the wait for the fate goes to the background.
    async fn send(&mut self, to: u64, text: String) {
        let queued = if self.args.no_ack && !self.args.ack {
            self.client.send(to, text.as_str()).await.map(|_id| None)
        } else if self.circumstances.lanes.is_busy(to) {
            // Behind one that is asked about again.
            return self.wait_for_fate(to, text, None).await;
        } else {
            self.client.send_tracked(to, text.as_str()).await.map(Some)
        };
        match queued {
            Ok(Some(receipt)) => self.wait_for_fate(to, text, Some(receipt)).await,
            Ok(None) => self.copy_to_own_devices(to, &text).await,
            Err(error) => {
                self.tally.failed += 1;
                let text = text::excerpt(&text);
                self.screen.line(Tone::Bad, format!("not sent to {to}: {text} ({error})")).await;
            }
        }
    }

    /// The same for a message to a group, which its members' and the sender's other devices get anyway.
    async fn say(&mut self, group: u64, text: String) {
        self.known.add(group);
        let queued = if self.args.no_ack && !self.args.ack {
            self.client.send_to_group(group, text.as_str()).await.map(|_id| None)
        } else {
            self.client.submit(Outgoing::to_group(group, text.as_str())).await.map(Some)
        };
        match queued {
            Ok(Some(receipt)) => {
                self.tally.open += 1;
                self.jobs.spawn(async move { Report::GroupFate { group, text, fate: receipt.outcome().await } });
            }
            Ok(None) => {}
            Err(error) => {
                self.tally.failed += 1;
                let (group, text) = (text::group(group), text::excerpt(&text));
                self.screen.line(Tone::Bad, format!("not sent to {group}: {text} ({error})")).await;
            }
        }
    }

    async fn wait_for_fate(&mut self, to: u64, text: String, receipt: Option<Receipt>) {
        if self.screen.interactive && !self.client.is_connected() {
            let excerpt = text::excerpt(&text);
            self.screen.status(format!("to be sent to {to} once there is a connection: {excerpt}")).await;
        }
        self.tally.open += 1;
        let (client, circumstances) = (self.client.clone(), self.circumstances.clone());
        self.jobs.spawn(async move {
            let fate = deliver::fate(&client, &circumstances, to, &text, receipt).await;
            Report::Fate { to, text, fate }
        });
    }

    /// Shows the sender's other devices what was sent: as a message to oneself, which goes to them alone. Nobody waits
    /// for its fate, which is "offline" where there is no other device.
    async fn copy_to_own_devices(&self, to: u64, text: &str) {
        let me = self.args.user;
        if !self.screen.interactive || self.args.no_copy || to == me {
            return;
        }
        let copy = deliver::copy(to, text);
        // Too long by the length of its mark, or one too many: then there is none.
        if let Ok(receipt) = self.client.send_tracked(me, copy.as_str()).await {
            let (client, circumstances) = (self.client.clone(), self.circumstances.clone());
            // Other devices come back from a restart as late as anybody.
            tokio::spawn(async move { drop(deliver::fate(&client, &circumstances, me, &copy, Some(receipt)).await) });
        }
    }

    async fn report(&mut self, report: Report) {
        let (tone, line) = match report {
            Report::Fate { to, text, fate } => {
                self.tally.open -= 1;
                let arrived = matches!(fate, Ok(Outcome::Delivered | Outcome::Stored));
                self.tally.failed += usize::from(!arrived);
                if arrived {
                    self.copy_to_own_devices(to, &text).await;
                }
                text::fate(self.args.user, to, &text, &fate)
            }
            Report::GroupFate { group, text, fate } => {
                self.tally.open -= 1;
                let arrived = matches!(fate, Ok(Outcome::Stored | Outcome::Accepted));
                self.tally.failed += usize::from(!arrived);
                text::group_fate(group, &text, &fate)
            }
            Report::OfGroup(answer) => {
                self.waited_for -= 1;
                self.checked(answer)
            }
            // The users are on the screen already.
            Report::Watched(Ok(_)) => return,
            Report::Watched(answer) => self.checked(answer),
            Report::History { group, messages: Ok(messages) } if !messages.is_empty() => {
                self.waited_for -= 1;
                let count = messages.len();
                for message in messages {
                    self.screen.message(text::of_group(&message), message.time_ms()).await;
                }
                let status = format!("these are the last {count} messages of {} that are kept", text::group(group));
                self.screen.status(status).await;
                return;
            }
            Report::History { group, messages } => {
                self.waited_for -= 1;
                self.checked(messages.map(|_none| format!("nothing is kept of {}", text::group(group))))
            }
            Report::Answer(line) => (Tone::Plain, line),
        };
        self.screen.line(tone, line).await;
    }

    fn checked(&mut self, answer: Result<String, String>) -> (Tone, String) {
        match answer {
            Ok(line) => (Tone::Plain, line),
            Err(sentence) => {
                self.tally.failed += 1;
                (Tone::Bad, sentence)
            }
        }
    }

    /// A message is about to be printed that was kept: the first one after a login has a line above it.
    async fn miss(&mut self) {
        if let Some(missed) = &mut self.missed {
            *missed += 1;
            if *missed == 1 {
                self.screen.status("this came while you were away:".into()).await;
            }
        }
    }

    /// Prints an event; an error ends the program.
    async fn tell(&mut self, event: Option<Event>) -> Result<(), String> {
        let printed = match event {
            Some(Event::Message(message)) => {
                if message.is_replay() {
                    // It says nothing of where its sender is now.
                    self.miss().await;
                } else {
                    self.circumstances.seen.is_there(message.from);
                }
                let printed = self.screen.message(text::incoming(&message), message.time_ms()).await;
                if printed {
                    // After the end of the session it comes again with the next one.
                    drop(self.client.ack(&message).await);
                }
                printed
            }
            Some(Event::GroupMessage(message)) => {
                self.known.add(message.group);
                if message.is_replay() {
                    self.miss().await;
                }
                self.screen.message(text::of_group(&message), message.time_ms()).await
            }
            Some(Event::GroupGap { group, missed }) if is_live_room(group) => {
                let missed = if missed == 0 { "some".into() } else { missed.to_string() };
                let status = format!("{missed} messages of {} did not get here", text::group(group));
                self.screen.status(status).await
            }
            // They come next.
            Some(Event::GroupGap { .. }) => true,
            Some(Event::GroupTruncated { group, .. }) => {
                let status = format!("messages of {} are gone: they were too old or too many", text::group(group));
                self.screen.status(status).await
            }
            Some(Event::GroupHeads(heads)) => {
                let groups: Vec<u64> = heads.iter().map(|head| head.group).collect();
                groups.iter().for_each(|group| self.known.add(*group));
                let status = format!("you are in groups with messages: {}; see /history", text::groups(&groups));
                self.screen.status(status).await
            }
            Some(Event::Presence(users)) => {
                let mut printed = true;
                for presence in &users {
                    printed &= self.screen.line(Tone::Plain, watch::line(presence)).await;
                }
                self.watching.told(&users);
                printed
            }
            Some(Event::GroupLost { group, code, text }) => {
                self.known.remove(group);
                let words = text::printable(trunkline_client::sentence(code, &text).as_bytes());
                self.screen.status(format!("you are not in {} any more: {words}", text::group(group))).await
            }
            Some(Event::Disconnected { reason, retry_in: Some(wait) }) => {
                self.circumstances.weather.lost();
                self.screen.connected.set(false);
                let reason = text::printable(reason.to_string().as_bytes());
                let wait_ms = wait.as_millis();
                let status = format!("connection lost: {reason}; trying again in {wait_ms} ms");
                self.screen.status(status).await
            }
            Some(Event::Disconnected { reason, retry_in: None }) => {
                let reason = text::printable(reason.to_string().as_bytes());
                return Err(format!("the session has ended: {reason}"));
            }
            Some(Event::ReconnectFailed { why, retry_in, .. }) => {
                let why = text::printable(why.as_bytes());
                let wait_ms = retry_in.as_millis();
                self.screen.status(format!("still disconnected: {why}; trying again in {wait_ms} ms")).await
            }
            Some(Event::CaughtUp { .. }) => match self.missed.take() {
                Some(1..) => self.screen.status("that was all of it".into()).await,
                Some(0) | None => true,
            },
            Some(Event::Truncated { .. }) => {
                let status = "messages for you are gone: they were too old or too many to be kept";
                self.screen.status(status.into()).await
            }
            Some(Event::Reconnected { .. }) => {
                self.missed = Some(0);
                self.circumstances.weather.back();
                self.screen.connected.set(true);
                self.screen.status("connected again".into()).await
            }
            Some(Event::TokenNotRenewed { why, ends_in }) => {
                let why = text::printable(why.as_bytes());
                let status = format!("the token is not renewed: {why}; the session ends in {}", text::span(ends_in));
                self.screen.status(status).await
            }
            Some(Event::ServerError { code, text, peer, .. }) => {
                // About a message without acknowledgement; of others it is the fate.
                self.tally.failed += usize::from(peer != 0);
                self.screen.line(Tone::Bad, text::server_error(code, &text, peer)).await
            }
            Some(Event::Lost { count }) => {
                let status = format!("{count} events came faster than they could be printed and were dropped");
                self.screen.status(status).await
            }
            Some(_from_a_later_version) => true,
            None => return Err("the session has ended".into()),
        };
        if printed { Ok(()) } else { Err("nothing can be printed any more".into()) }
    }
}
