//! The `chat` program on a terminal, against a small gateway: what a pipe does not show.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::gateway::{Gateway, Seen};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use trunkline_client::{Client, Config};

/// Ends a test that hangs; nothing is measured by it.
const HANG: Duration = Duration::from_secs(60);

/// `chat` on a terminal of its own.
struct Chat {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What is on the screen and was not asked for so far.
    shown: String,
}

impl Chat {
    async fn login(gateway: &mut Gateway, user: u64) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("the terminal is ours");
        unlockpt(&master).expect("the terminal can be opened");
        let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
        let path = name.to_str().expect("a path of ASCII");
        let terminal =
            || Stdio::from(OpenOptions::new().read(true).write(true).open(path).expect("the terminal opens"));
        let child = Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(["--user", &user.to_string(), "--addr", &gateway.addr.to_string()])
            .env("TERM", "xterm")
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
        timeout(HANG, gateway.expect_seen(Seen::Login(user))).await.expect("a login");
        let mut chat = Self { child, keyboard, screen, shown: String::new() };
        chat.shows("/help lists the commands").await;
        chat
    }

    /// Types all of `keys` at once.
    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("chat has a keyboard");
    }

    /// Waits until `text` is shown; returns all that was shown up to its end.
    async fn shows(&mut self, text: &str) -> String {
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
                    Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let came: Option<String> = timeout(HANG, wait).await.ok();
        came.unwrap_or_else(|| panic!("{texts:?} are not shown, but {:?}", self.shown))
    }
}

async fn user(gateway: &Gateway, user: u64) -> Client {
    let config = Config { user, addrs: vec![gateway.addr.to_string()], ..Config::default() };
    let (client, mut events) = Client::connect(config).await.expect("a session");
    tokio::spawn(async move { while events.next().await.is_some() {} });
    client
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
    // The message on a line of its own, then the prompt and what was typed so far.
    let (_, after) = shown.split_once("[2] in between\r\n").expect("a whole line");
    assert!(after.contains("1> 2;;half"), "{shown:?}");
    chat.types(" whole\r");
    chat.shows("delivered to 2: half whole").await;
}
