//! Two people on two terminals, and a real gateway that is killed and started again.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::terminal::Chat;

/// Lines that each types: while all is well, while there is no gateway, and while it comes back.
const LINES: usize = 4;

/// The gateway that is built with the tests of the workspace, beside `chat`.
struct RealGateway {
    child: Child,
}

impl RealGateway {
    /// Starts it, and waits until it takes clients.
    fn start(addr: &str) -> Self {
        let path = Path::new(env!("CARGO_BIN_EXE_chat")).with_file_name("gateway");
        let hint = "run the tests of the whole workspace, or build the gateway";
        assert!(path.exists(), "there is no {}: {hint}", path.display());
        let mut child = Command::new(path)
            .args(["--listen", addr, "--http", "127.0.0.1:0", "--shards", "1", "--log", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let listening = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("listening on")));
        assert!(listening.is_some(), "the gateway does not listen");
        // What else it says must not find a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child }
    }

    /// As a power failure does.
    fn kill(&mut self) {
        self.child.kill().expect("it ran");
        self.child.wait().expect("its end");
    }
}

impl Drop for RealGateway {
    fn drop(&mut self) {
        // Where a test has failed it may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One person, and what they have typed so far.
struct Person {
    user: u64,
    chat: Chat,
    typed: usize,
}

impl Person {
    async fn start(addr: &str, user: u64) -> Self {
        let mut chat = Chat::start(addr, user, &[], &[("NO_COLOR", "1")]);
        chat.shows("/help lists the commands").await;
        chat.types(&format!("/to {}\r", 3 - user));
        chat.shows(&format!("{user} to {}>", 3 - user)).await;
        Self { user, chat, typed: 0 }
    }

    fn types_lines(&mut self) {
        for _ in 0..LINES {
            self.typed += 1;
            self.chat.types(&format!("line {}.\r", self.typed));
        }
    }

    /// Waits until all that `other` has typed, and the fate of all that this one has, can be read.
    async fn reads_all(&mut self, other: usize) {
        for number in 1..=other {
            self.chat.comes_to_read(&format!("[{}] line {number}.", 3 - self.user)).await;
        }
        for number in 1..=self.typed {
            self.chat.comes_to_read(&format!("delivered to {}: line {number}.", 3 - self.user)).await;
        }
    }

    /// Every line is there once, with its time before it.
    fn check(&self, other: usize) {
        let reads = self.chat.reads();
        let peer = 3 - self.user;
        let is_there_once = |text: &str| {
            let found: Vec<&str> = reads.lines().filter(|row| row.contains(text)).collect();
            let [row] = found[..] else { panic!("{text} is there {} times in:\n{reads}", found.len()) };
            let time = row.strip_suffix(text).and_then(|time| time.strip_suffix(' '));
            let parts = time.and_then(|time| time.split_once(':')).map(<[&str; 2]>::from);
            let is_time =
                parts.is_some_and(|parts| parts.iter().all(|part| part.len() == 2 && part.parse::<u8>().is_ok()));
            assert!(is_time, "no time before {text} in:\n{reads}");
        };
        for number in 1..=other {
            is_there_once(&format!("[{peer}] line {number}."));
        }
        for number in 1..=self.typed {
            is_there_once(&format!("delivered to {peer}: line {number}."));
        }
        assert!(!reads.contains("offline:"), "given up:\n{reads}");
    }
}

#[tokio::test]
async fn a_gateway_that_is_killed_and_started_again_loses_no_line_of_two_people() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let addr = free.to_string();
    let mut gateway = RealGateway::start(&addr);
    let (mut one, mut two) = (Person::start(&addr, 1).await, Person::start(&addr, 2).await);
    one.types_lines();
    two.types_lines();
    one.reads_all(LINES).await;
    two.reads_all(LINES).await;
    // Some of these are on their way when it happens, some are typed before it is noticed, some after.
    one.types_lines();
    gateway.kill();
    two.types_lines();
    for person in [&mut one, &mut two] {
        person.chat.comes_to_read("connection lost: ").await;
        person.types_lines();
        person.chat.comes_to_read("once there is a connection: line ").await;
    }
    gateway = RealGateway::start(&addr);
    one.types_lines();
    two.types_lines();
    for (person, other) in [(&mut one, two.typed), (&mut two, 4 * LINES)] {
        person.reads_all(other).await;
        person.check(other);
    }
    one.chat.leaves().await;
    two.chat.leaves().await;
    drop(gateway);
}
