//! The `chat` program on a terminal, against a small gateway: what a pipe does not show.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::gateway::{Gateway, Seen};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use trunkline_client::{Client, Config, Event};
use trunkline_proto::{Code, Header, Kind, encode, flags};

/// Ends a test that hangs; nothing is measured by it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A narrow terminal, as high as all that a test prints.
const COLUMNS: u16 = 60;
const ROWS: u16 = 300;

/// `chat` on a terminal of its own.
pub(crate) struct Chat {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What was written to the terminal and not asked for so far.
    shown: String,
    /// What the terminal makes of all that was written.
    terminal: vt100::Parser,
}

impl Chat {
    async fn login(gateway: &mut Gateway, user: u64) -> Self {
        Self::login_with(gateway, user, &[], &[("NO_COLOR", "1")]).await
    }

    async fn login_with(gateway: &mut Gateway, user: u64, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut chat = Self::start(&gateway.addr.to_string(), user, args, variables);
        timeout(HANG, gateway.expect_seen(Seen::Login(user))).await.expect("a login");
        chat.shows("/help lists the commands").await;
        chat
    }

    /// Starts it, and waits for nothing.
    pub(crate) fn start(addr: &str, user: u64, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("the terminal is ours");
        unlockpt(&master).expect("the terminal can be opened");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let path = name.to_str().expect("a path of ASCII");
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("a size");
        let terminal =
            || Stdio::from(OpenOptions::new().read(true).write(true).open(path).expect("the terminal opens"));
        let child = Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(["--user", &user.to_string(), "--addr", addr])
            .args(args)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied())
            .stdin(terminal())
            .stdout(terminal())
            .stderr(terminal())
            .kill_on_drop(true)
            .spawn()
            .expect("chat starts");
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().expect("a second descriptor");
        let (shown, screen) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            // The last terminal descriptor closed is an error here: the end.
            while let Ok(len @ 1..) = output.read(&mut bytes) {
                if shown.send(bytes[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let [rows, columns] = [ROWS, COLUMNS].map(|size| NonZero::new(size).expect("above 0"));
        let terminal = vt100::Parser::new(rows, columns, 0);
        Self { child, keyboard, screen, shown: String::new(), terminal }
    }

    /// Types all of `keys` at once.
    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("chat has a keyboard");
    }

    /// Waits until `text` is shown; returns all that was shown up to its end.
    pub(crate) async fn shows(&mut self, text: &str) -> String {
        self.shows_all(&[text]).await
    }

    /// Waits until each of `texts` is shown, in any order; returns all that was shown up to the end of the last.
    async fn shows_all(&mut self, texts: &[&str]) -> String {
        let wait = async {
            loop {
                let ends = texts.iter().map(|text| self.shown.find(text).map(|at| at + text.len()));
                if let Some(ends) = ends.collect::<Option<Vec<_>>>() {
                    return self.shown.drain(..ends.into_iter().max().unwrap_or(0)).collect();
                }
                match self.screen.try_recv() {
                    Ok(bytes) => {
                        self.terminal.process(&bytes);
                        self.shown.push_str(&String::from_utf8_lossy(&bytes));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let came: Option<String> = timeout(HANG, wait).await.ok();
        came.unwrap_or_else(|| panic!("{texts:?} are not shown, but {:?}", self.shown))
    }
}

impl Chat {
    /// All that can be read on the terminal, lines that it has wrapped in one piece.
    pub(crate) fn reads(&self) -> String {
        self.terminal.screen().contents()
    }

    /// Waits until this can be read on the terminal.
    pub(crate) async fn comes_to_read(&mut self, text: &str) {
        self.comes_to_read_times(text, 1).await;
    }

    /// Waits until this can be read on the terminal so many times.
    async fn comes_to_read_times(&mut self, text: &str, count: usize) {
        let wait = async {
            while self.reads().matches(text).count() < count {
                match self.screen.try_recv() {
                    Ok(bytes) => {
                        self.terminal.process(&bytes);
                        self.shown.push_str(&String::from_utf8_lossy(&bytes));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let came = timeout(HANG, wait).await;
        assert!(came.is_ok(), "{text:?} cannot be read in:\n{}", self.reads());
    }

    pub(crate) async fn leaves(mut self) {
        self.types("/quit\r");
        let status = timeout(HANG, self.child.wait()).await.expect("chat ends").expect("its status");
        assert!(status.success());
    }
}

async fn user(gateway: &Gateway, user: u64) -> Client {
    let config = Config { user, addrs: vec![gateway.addr.to_string()], ..Config::default() };
    let (client, mut events) = Client::connect(config).await.expect("a session");
    tokio::spawn(async move { while events.next().await.is_some() {} });
    client
}

#[tokio::test]
async fn what_was_missed_is_shown_with_the_time_at_which_it_was_sent() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    let sent = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(3 * 24);
    let stamp = (sent.as_millisecond() as u64) << 20;
    let flags = flags::ACK | flags::REPLAY;
    let header = Header { kind: Kind::Deliver, flags, aux: 0, id: 7, peer: 2, stamp };
    let mut bytes = Vec::new();
    encode(&mut bytes, &header, b"call me");
    gateway.raw(1, bytes);
    let time = jiff::tz::TimeZone::system().to_datetime(sent).strftime("%Y-%m-%d %H:%M").to_string();
    chat.shows("this came while you were away:").await;
    chat.shows(&format!("{time} [2] call me")).await;
    chat.types("/quit\r");
    assert!(timeout(HANG, chat.child.wait()).await.expect("an end").expect("a status").success());
}

#[tokio::test]
async fn a_group_is_joined_and_talked_to_with_the_help_of_tab() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    let other = user(&gateway, 2).await;
    other.join_group(7_777).await.expect("joined");
    chat.types("/jo\t7777\r");
    chat.comes_to_read("you are in group 7777; `/g 7777 hello` says hello there").await;
    other
        .send_to_group_acked(7_777, "welcome to a group whose lines are longer than it is wide")
        .await
        .expect("a fate");
    chat.comes_to_read("[2 in 7777] welcome to a group whose lines are longer than it is wide").await;
    chat.types("/g 7\tthank you\r");
    chat.comes_to_read("stored in group 7777: thank you").await;
    chat.types("/his\t7\t\r");
    chat.comes_to_read("[1 in 7777] thank you").await;
    chat.comes_to_read("these are the last 2 messages of group 7777 that are kept").await;
    chat.leaves().await;
}

#[tokio::test]
async fn lines_typed_ahead_are_all_read() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    chat.types("/to 9\rone\rtwo\r");
    // Each fate is told when it is known: the second may be known first.
    chat.shows_all(&["offline: 9 did not get: one", "offline: 9 did not get: two"]).await;
    chat.types("/quit\r");
    let status = timeout(HANG, chat.child.wait()).await.expect("chat ends").expect("its status");
    assert!(status.success());
}

#[tokio::test]
async fn a_message_does_not_tear_the_line_being_typed() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    let other = user(&gateway, 2).await;
    chat.types("2;;half");
    chat.shows("half").await;
    other.send(1, "in between").await.expect("sent");
    let shown = chat.shows("in between").await + &chat.shows("half").await;
    // The message on a line of its own, then the prompt and what was typed so far: in one piece, or after it if the
    // editor had not yet read it.
    let (_, after) = shown.split_once("[2] in between\r\n").expect("a whole line");
    let (_, typed) = after.split_once("1> ").expect("a prompt");
    assert!(typed.contains("2;;half"), "{shown:?}");
    chat.types(" whole\r");
    chat.shows("delivered to 2: half whole").await;
}

#[tokio::test]
async fn nothing_vanishes_from_a_narrow_terminal_however_long_the_line_being_typed() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    let other = user(&gateway, 2).await;
    let long = "w".repeat(COLUMNS as usize);
    let mut typed = String::from("2;;");
    chat.types(&typed);
    // The line grows over three rows; before each piece a short and a long message come in.
    for number in 0..40 {
        let short = format!("short {number}.");
        let long = format!("long {number} {long}.");
        other.send(1, short.as_str()).await.expect("sent");
        chat.shows(&short).await;
        other.send(1, long.as_str()).await.expect("sent");
        chat.shows(&long).await;
        let piece = format!("{number:03}=");
        chat.types(&piece);
        chat.shows(piece.get(2..).expect("ASCII")).await;
        typed.push_str(&piece);
    }
    chat.types("\r");
    chat.shows("delivered to 2: ").await;
    let reads = chat.reads();
    for number in 0..40 {
        assert_eq!(reads.matches(&format!("[2] short {number}.")).count(), 1, "{number} in:\n{reads}");
        assert_eq!(reads.matches(&format!("[2] long {number} {long}.")).count(), 1, "{number} in:\n{reads}");
    }
    assert_eq!(reads.matches(&typed).count(), 1, "{typed} in:\n{reads}");
    chat.leaves().await;
}

#[tokio::test]
async fn a_burst_and_lines_sent_one_after_the_other_all_stay_to_be_read() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    let other = user(&gateway, 2).await;
    for number in 0..30 {
        other.send(1, format!("burst {number}.")).await.expect("sent");
        chat.types(&format!("2;;{}{number}.\r", "line-".repeat(15)));
        // Sometimes it comes while a line is typed, sometimes between two.
        if number % 3 == 0 {
            chat.shows(&format!("burst {number}.")).await;
        }
    }
    chat.comes_to_read_times(&format!("delivered to 2: {}", "line-".repeat(8)), 30).await;
    // What the other user sent and the fates of one's own lines come in no order between them.
    chat.comes_to_read("[2] burst 29.").await;
    // The editor itself begins a new row where the typed line has filled one.
    let reads = chat.reads().replace('\n', "");
    for number in 0..30 {
        assert_eq!(reads.matches(&format!("[2] burst {number}.")).count(), 1, "{number} in:\n{reads}");
        let typed = format!("2;;{}{number}.", "line-".repeat(15));
        assert!(reads.matches(&typed).count() >= 1, "{number} in:\n{reads}");
    }
    chat.leaves().await;
}

#[tokio::test]
async fn lines_have_their_time_and_colours_honour_no_color() {
    let mut gateway = Gateway::start("").await;
    for (args, variables, coloured) in [
        (&[][..], &[][..], true),
        (&[], &[("NO_COLOR", "1")], false),
        (&[], &[("NO_COLOR", "")], true),
        (&["--color", "never"], &[], false),
        (&["--color", "always"], &[("NO_COLOR", "1")], true),
        (&[], &[("TERM", "vt220"), ("TZ", "Asia/Tokyo")], true),
    ] {
        let mut chat = Chat::login_with(&mut gateway, 1, args, variables).await;
        let other = user(&gateway, 2).await;
        other.send(1, "hello").await.expect("sent");
        let shown = chat.shows("hello").await;
        assert_eq!(shown.contains("\x1b[1;36m[2]\x1b[0m"), coloured, "{shown:?}");
        chat.types("2;;and you?\r");
        chat.shows("delivered to 2: and you?").await;
        let reads = chat.reads();
        let line = reads.lines().find(|line| line.contains("[2] hello")).expect("shown");
        let (time, _) = line.split_once(" [2]").expect("a time before it");
        let (hours, minutes) = time.split_once(':').expect("hours and minutes");
        let in_range = |text: &str, end: u32| text.len() == 2 && text.parse().is_ok_and(|number: u32| number < end);
        assert!(in_range(hours, 24) && in_range(minutes, 60), "{line}");
        chat.leaves().await;
        gateway.expect_seen(Seen::Login(2)).await;
        gateway.expect_seen(Seen::ToSelf(1, "→2;;and you?".into())).await;
        gateway.expect_seen(Seen::Logout(1)).await;
        other.close().await;
        gateway.expect_seen(Seen::Logout(2)).await;
    }
}

#[tokio::test]
async fn a_lost_connection_is_told_at_the_prompt_and_no_line_typed_meanwhile_is_lost() {
    let mut gateway = Gateway::start("").await;
    let mut chat = Chat::login(&mut gateway, 1).await;
    chat.types("/to 2\rtyped");
    chat.comes_to_read("1 to 2> typed").await;
    gateway.close_doors(true);
    gateway.bye(1, Code::Draining);
    chat.shows("connection lost: ").await;
    // Under the user's hands the prompt has changed.
    chat.comes_to_read("1 to 2! typed").await;
    chat.types(" meanwhile\r");
    chat.shows("to be sent to 2 once there is a connection: typed meanwhile").await;
    chat.comes_to_read("1 to 2 (disconnected)>").await;
    chat.shows("still disconnected: ").await;
    gateway.close_doors(false);
    timeout(HANG, gateway.expect_seen(Seen::Login(1))).await.expect("chat comes back");
    chat.shows("connected again").await;
    chat.comes_to_read("1 to 2 (connected)>").await;
    // The sender is back before the recipient.
    let (other, mut events) = {
        let config = Config { user: 2, addrs: vec![gateway.addr.to_string()], ..Config::default() };
        Client::connect(config).await.expect("a session")
    };
    let message = timeout(HANG, events.next()).await.expect("in time");
    assert!(matches!(message, Some(Event::Message(message)) if message.text() == Some("typed meanwhile")));
    let listener = tokio::spawn(async move { while events.next().await.is_some() {} });
    let shown = chat.shows("delivered to 2: typed meanwhile").await;
    assert!(!shown.contains("offline"), "{shown}");
    listener.abort();
    other.close().await;
    chat.leaves().await;
}
