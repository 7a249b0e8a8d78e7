//! The `chat` program over pipes, against a small gateway.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crate::support::gateway::{CLOSED_GROUP, Gateway, Seen};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use trunkline_proto::{Code, Header, Kind, SyncOk, encode, encode_message, flags};

/// Ends a test that hangs; nothing is measured by it.
const HANG: Duration = Duration::from_secs(60);

struct Chat {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Chat {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(args)
            .env_remove("TRUNKLINE_TOKEN")
            .env_remove("TRUNKLINE_TOKEN_FILE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chat starts");
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            stderr: BufReader::new(child.stderr.take().expect("piped")),
            child,
        }
    }

    /// Starts as a user of `gateway` and waits for the login.
    async fn login(gateway: &mut Gateway, user: u64, more: &[&str]) -> Self {
        let (user_arg, addr) = (user.to_string(), gateway.addr.to_string());
        let mut args = vec!["--user", &user_arg, "--addr", &addr];
        args.extend(more);
        let chat = Self::start(&args);
        timeout(HANG, gateway.expect_seen(Seen::Login(user))).await.expect("a login");
        chat
    }

    async fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("open");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("chat reads");
    }

    /// Closes standard input.
    fn end_input(&mut self) {
        self.stdin = None;
    }

    async fn printed(&mut self) -> String {
        let mut line = String::new();
        timeout(HANG, self.stdout.read_line(&mut line)).await.expect("a line").expect("readable");
        line.trim_end().to_owned()
    }

    /// Waits for the end; what was left on standard output and standard error.
    async fn finish(mut self) -> (ExitStatus, String, String) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let all = async {
            self.stdout.read_to_string(&mut stdout).await.expect("text");
            self.stderr.read_to_string(&mut stderr).await.expect("text");
            self.child.wait().await.expect("an end")
        };
        let status = timeout(HANG, all).await.expect("chat ends");
        (status, stdout, stderr)
    }
}

#[tokio::test]
async fn two_users_talk_and_each_message_gets_its_fate() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    let mut two = Chat::login(&mut gateway, 2, &[]).await;

    one.type_line("2;;hello").await;
    assert_eq!(two.printed().await, "[1] hello");
    assert_eq!(one.printed().await, "delivered to 2: hello");

    two.type_line("/to 1").await;
    two.type_line("hello yourself").await;
    assert_eq!(one.printed().await, "[2] hello yourself");
    assert_eq!(two.printed().await, "delivered to 1: hello yourself");

    one.type_line("9;;anybody?").await;
    assert_eq!(one.printed().await, "offline: 9 did not get: anybody?");

    one.type_line("/quit").await;
    gateway.expect_seen(Seen::Logout(1)).await;
    two.end_input();
    gateway.expect_seen(Seen::Logout(2)).await;
    // One of them has not got all of its lines through.
    for (chat, code) in [(one, 3), (two, 0)] {
        let (status, stdout, stderr) = chat.finish().await;
        assert_eq!(status.code(), Some(code), "{stderr}");
        assert_eq!(stdout, "");
    }
}

#[tokio::test]
async fn the_exit_status_of_a_script_tells_whether_every_line_got_through() {
    let mut gateway = Gateway::start("").await;
    let _two = Chat::login(&mut gateway, 2, &[]).await;
    for (lines, code, words) in [
        (&["2;;hello", "/ping"][..], 0, ""),
        (&["2;;hello", "9;;anybody?"], 3, "1 lines were not sent or not delivered"),
        (&["1;;myself"], 3, "1 lines were not sent or not delivered"),
        (&["to nobody", "/nonsense", "0;;nobody"], 3, "3 lines were not sent or not delivered"),
        (&[], 0, ""),
    ] {
        let mut one = Chat::login(&mut gateway, 1, &[]).await;
        for line in lines {
            one.type_line(line).await;
        }
        one.end_input();
        let (status, stdout, stderr) = one.finish().await;
        assert_eq!(status.code(), Some(code), "{lines:?}: {stdout}{stderr}");
        assert!(stderr.contains(words), "{lines:?}: {stderr}");
        if lines == ["1;;myself"] {
            gateway.expect_seen(Seen::ToSelf(1, "myself".into())).await;
            assert_eq!(stdout, "you have no other device online that could get: myself\n");
        }
        gateway.expect_seen(Seen::Logout(1)).await;
    }
}

#[tokio::test]
async fn members_of_a_group_talk_and_a_script_hears_what_became_of_each_line() {
    let mut gateway = Gateway::start("").await;
    let mut two = Chat::login(&mut gateway, 2, &[]).await;
    two.type_line("/join 77").await;
    assert_eq!(two.printed().await, "you are in group 77; `/g 77 hello` says hello there");
    let room = "9223372036854775813";
    for (lines, code, printed) in [
        // Lines behind a command about groups wait for it.
        (
            vec!["/join 77".into(), "/g 77 hello all".into(), format!("/join {room}"), "/leave 77".into()],
            0,
            vec![
                "you are in group 77; `/g 77 hello` says hello there".into(),
                "stored in group 77: hello all".into(),
                format!("you are in live room {room}; `/g {room} hello` says hello there"),
                "you are not in group 77 any more".into(),
            ],
        ),
        (vec!["/g 77 and now?".into()], 3, vec!["denied: you are not in group 77, or muted: and now?".into()]),
        (
            vec!["/history 77".into(), "/leave 77".into()],
            0,
            vec!["[1 in 77] hello all".into(), "you are not in group 77 any more".into()],
        ),
        (vec!["/history 78".into()], 0, vec!["nothing is kept of group 78".into()]),
        (
            vec![format!("/join {CLOSED_GROUP}"), format!("/history {room}"), format!("/members {room}")],
            3,
            vec![
                "not joined: the gateway refused it: You are not a member of this group (code 19)".into(),
                "nothing is kept of a live room".into(),
                "the gateway has no list of who is in a live room".into(),
            ],
        ),
    ] {
        let mut one = Chat::login(&mut gateway, 1, &[]).await;
        for line in &lines {
            one.type_line(line).await;
        }
        one.end_input();
        let (status, stdout, stderr) = one.finish().await;
        assert_eq!(status.code(), Some(code), "{lines:?}: {stdout}{stderr}");
        let (mut said, mut expected): (Vec<&str>, Vec<String>) = (stdout.lines().collect(), printed);
        said.sort_unstable();
        expected.sort_unstable();
        assert_eq!(said, expected, "{lines:?}: {stderr}");
        gateway.expect_seen(Seen::Logout(1)).await;
    }
    assert_eq!(two.printed().await, "[1 in 77] hello all");
    two.end_input();
    assert!(two.finish().await.0.success());
}

#[tokio::test]
async fn a_script_that_cannot_send_at_most_once_says_so() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &["--no-ack"]).await;
    gateway.close_doors(true);
    gateway.bye(1, Code::Draining);
    let mut line = String::new();
    while !line.contains("connection lost: ") {
        line.clear();
        timeout(HANG, one.stderr.read_line(&mut line)).await.expect("a line").expect("readable");
    }
    one.type_line("2;;into the void").await;
    assert!(one.printed().await.starts_with("not sent to 2: into the void ("));
    one.end_input();
    let (status, _stdout, stderr) = one.finish().await;
    assert_eq!(status.code(), Some(3), "{stderr}");
}

#[tokio::test]
async fn a_line_that_meets_a_recipient_who_is_not_back_yet_is_not_lost() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    gateway.bye(1, Code::Draining);
    timeout(HANG, gateway.expect_seen(Seen::Login(1))).await.expect("chat comes back");
    one.type_line("2;;are you back?").await;
    one.type_line("/ping").await;
    // The gateway has said by now that 2 is offline.
    assert!(one.printed().await.starts_with("round trip "));
    let mut two = Chat::login(&mut gateway, 2, &[]).await;
    assert_eq!(two.printed().await, "[1] are you back?");
    assert_eq!(one.printed().await, "delivered to 2: are you back?");
    one.end_input();
    let (status, stdout, stderr) = one.finish().await;
    assert!(status.success() && stdout.is_empty(), "{stdout}{stderr}");
}

#[tokio::test]
async fn a_line_to_somebody_whom_the_gateway_has_just_sent_away_is_not_lost() {
    let mut gateway = Gateway::start("").await;
    let mut two = Chat::login(&mut gateway, 2, &[]).await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    one.type_line("2;;first").await;
    assert_eq!(one.printed().await, "delivered to 2: first");
    // The recipient goes before the sender does, as when a gateway drains.
    gateway.close_doors(true);
    gateway.bye(2, Code::Draining);
    one.type_line("2;;second").await;
    one.type_line("/ping").await;
    assert!(one.printed().await.starts_with("round trip "));
    gateway.close_doors(false);
    assert_eq!(one.printed().await, "delivered to 2: second");
    for line in ["[1] first", "[1] second"] {
        assert_eq!(two.printed().await, line);
    }
    one.end_input();
    let (status, stdout, stderr) = one.finish().await;
    assert!(status.success() && stdout.is_empty(), "{stdout}{stderr}");
}

#[tokio::test]
async fn what_another_device_has_sent_is_shown_with_its_recipient() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    for body in ["→2;;hello\n", "→not;;a copy"] {
        let header = Header { kind: Kind::Deliver, flags: flags::SELF, aux: 0, id: 1, peer: 1, stamp: 1 };
        let mut bytes = Vec::new();
        encode(&mut bytes, &header, body.as_bytes());
        gateway.raw(1, bytes);
    }
    assert_eq!(one.printed().await, r"[1 to 2, from another device] hello\n");
    assert_eq!(one.printed().await, "[1, from another device] →not;;a copy");
}

#[tokio::test]
async fn what_was_missed_is_shown_in_order_and_told_from_what_comes_now() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    let deliver = |stamp: u64, from: u64, more: u8, body: &str| {
        let flags = flags::ACK | more;
        let header = Header { kind: Kind::Deliver, flags, aux: 0, id: stamp, peer: from, stamp };
        let mut bytes = Vec::new();
        encode(&mut bytes, &header, body.as_bytes());
        gateway.raw(1, bytes);
    };
    let backlog_over = |truncated| {
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::SyncOk, 0, &SyncOk { complete: true, truncated, ..SyncOk::default() });
        gateway.raw(1, bytes);
    };
    deliver(1, 2, flags::REPLAY, "are you there?");
    deliver(2, 1, flags::REPLAY | flags::SELF, "→2;;not now");
    backlog_over(true);
    deliver(3, 2, 0, "welcome back");
    // What was lost on its way and comes later is no news of an absence.
    deliver(4, 2, flags::REPLAY, "late");
    backlog_over(false);
    for line in ["[2] are you there?", "[1 to 2, from another device] not now", "[2] welcome back", "[2] late"] {
        assert_eq!(one.printed().await, line);
    }
    one.end_input();
    let (status, _stdout, stderr) = one.finish().await;
    assert!(status.success(), "{stderr}");
    let told: Vec<&str> = stderr.lines().skip(1).collect();
    let gone = "messages for you are gone: they were too old or too many to be kept";
    assert_eq!(told, ["this came while you were away:", gone, "that was all of it"]);
}

#[tokio::test]
async fn a_script_gets_the_fate_of_every_message_before_it_ends() {
    let mut gateway = Gateway::start("").await;
    let two = Chat::login(&mut gateway, 2, &[]).await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    // More than chat keeps under way at once.
    let script: String = (0..2_000).map(|number| format!("2;;{number}\n")).collect();
    let mut stdin = one.stdin.take().expect("open");
    let writer = tokio::spawn(async move { stdin.write_all(script.as_bytes()).await });
    let reader = tokio::spawn(async move {
        let mut two = two;
        for number in 0..2_000 {
            assert_eq!(two.printed().await, format!("[1] {number}"));
        }
        // Kept: what it printed last it may not have acknowledged yet.
        two
    });
    let (status, stdout, stderr) = one.finish().await;
    assert!(status.success(), "{stderr}");
    let expected: String = (0..2_000).map(|number| format!("delivered to 2: {number}\n")).collect();
    let (mut fates, mut all): (Vec<_>, Vec<_>) = (stdout.lines().collect(), expected.lines().collect());
    // Fates that arrive together may be printed in any order.
    fates.sort_unstable();
    all.sort_unstable();
    assert_eq!(fates, all);
    writer.await.expect("no panic").expect("chat reads all");
    let _two = reader.await.expect("in order");
    gateway.expect_seen(Seen::Logout(1)).await;
}

#[tokio::test]
async fn without_ack_nothing_is_reported_and_everything_is_sent_before_leaving() {
    let mut gateway = Gateway::start("").await;
    let mut two = Chat::login(&mut gateway, 2, &[]).await;
    let mut one = Chat::login(&mut gateway, 1, &["--no-ack"]).await;
    one.type_line("2;;quick").await;
    one.type_line("9;;lost").await;
    one.type_line("2;;gone").await;
    one.end_input();
    let (status, stdout, stderr) = one.finish().await;
    assert!(status.success(), "{stderr}");
    assert_eq!(stdout, "");
    assert_eq!(two.printed().await, "[1] quick");
    assert_eq!(two.printed().await, "[1] gone");
}

#[tokio::test]
async fn commands_answer_and_mistakes_are_explained() {
    let mut gateway = Gateway::start("").await;
    let http = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let http_addr = http.local_addr().expect("an address").to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = http.accept().await.expect("chat asks");
        let mut request = [0; 4_096];
        let count = stream.read(&mut request).await.expect("a request");
        let phone = r#"{"device":"phone","class":"mobile","node":"n","shard":3,"session":1,"since":0}"#;
        let json = &format!(r#"{{"user":2,"online":true,"devices":[{phone}],"shard":3}}"#);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len());
        stream.write_all(answer.as_bytes()).await.expect("chat listens");
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    let mut one = Chat::login(&mut gateway, 1, &["--http", &http_addr]).await;

    one.type_line("/who 2").await;
    let who = one.printed().await;
    assert!(who.starts_with("user 2 is online: phone (mobile) at node n, shard 3, for "), "{who}");
    let request = server.await.expect("asked once");
    assert!(request.starts_with("GET /v1/users/2 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nHost: {http_addr}\r\n")), "{request}");

    // Its listener has gone.
    one.type_line("/who 2").await;
    let who = one.printed().await;
    assert!(who.starts_with(&format!("cannot ask {http_addr}: ")), "{who}");

    one.type_line("/ping").await;
    let ping = one.printed().await;
    assert!(ping.starts_with("round trip ") && ping.ends_with(" ms"), "{ping}");

    one.type_line("/help").await;
    assert!(one.printed().await.contains("send hello to user 2"));
    one.type_line("to nobody").await;
    one.type_line("/nonsense").await;
    one.end_input();
    let (status, _stdout, stderr) = one.finish().await;
    assert_eq!(status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("to whom?") && stderr.contains("/nonsense is unknown"), "{stderr}");
}

#[tokio::test]
async fn a_peer_cannot_control_the_terminal() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    let header = Header { kind: Kind::Deliver, flags: flags::SELF, aux: 0, id: 1, peer: 1, stamp: 1 };
    let mut bytes = Vec::new();
    encode(&mut bytes, &header, b"\x1b[2Jgone\nline two");
    gateway.raw(1, bytes);
    assert_eq!(one.printed().await, r"[1, from another device] \u{1b}[2Jgone\nline two");
}

#[tokio::test]
async fn bad_credentials_end_with_a_sentence_and_status_1() {
    let gateway = Gateway::start("the token").await;
    let addr = gateway.addr.to_string();
    let chat = Chat::start(&["--user", "1", "--addr", &addr, "--token", "wrong"]);
    let (status, stdout, stderr) = chat.finish().await;
    assert_eq!(status.code(), Some(1));
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("chat: the gateway refused the login: "), "{stderr}");
    assert!(stderr.contains("(code 6)"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn the_token_may_come_from_the_environment_and_never_shows_in_the_help() {
    let mut gateway = Gateway::start("hush-hush").await;
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(args)
            .env("TRUNKLINE_TOKEN", "hush-hush")
            .env("TRUNKLINE_TOKEN_FILE", "")
            .stdin(Stdio::null())
            .output()
    };
    let addr = gateway.addr.to_string();
    let output = run(&["--user", "1", "--addr", &addr]).await.expect("chat runs");
    assert!(output.status.success(), "{output:?}");
    gateway.expect_seen(Seen::Login(1)).await;
    gateway.expect_seen(Seen::Logout(1)).await;

    let help = run(&["--help"]).await.expect("chat runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("TRUNKLINE_TOKEN") && !help.contains("hush-hush"), "{help}");
    assert!(help.contains("Examples:") && help.contains("2;;hello"), "{help}");
}

#[tokio::test]
async fn a_gateway_that_is_not_there_ends_with_a_sentence_and_status_1() {
    // Bound and dropped: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = free.local_addr().expect("an address").to_string();
    drop(free);
    let chat = Chat::start(&["--user", "1", "--addr", &addr]);
    let (status, _stdout, stderr) = chat.finish().await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.starts_with(&format!("chat: cannot connect to {addr}: ")), "{stderr}");
    assert!(stderr.contains("is the gateway running?"), "{stderr}");
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_status_2() {
    for args in [
        &[][..],
        &["--user", "0"],
        &["--user", "x"],
        &["--user", "1", "--nonsense"],
        &["--user", "1", "--addr", "localhost"],
        &["--user", "1", "--addr", "localhost:7700,"],
    ] {
        let (status, _stdout, stderr) = Chat::start(args).finish().await;
        assert_eq!(status.code(), Some(2), "{stderr}");
    }
}

#[tokio::test]
async fn a_session_that_is_replaced_ends_chat_with_a_sentence_and_status_1() {
    let mut gateway = Gateway::start("").await;
    let one = Chat::login(&mut gateway, 1, &[]).await;
    gateway.bye(1, Code::Replaced);
    let (status, _stdout, stderr) = one.finish().await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("chat: the session has ended: ") && stderr.contains("(code 8)"), "{stderr}");
}

#[tokio::test]
async fn a_broken_connection_is_told_and_mended() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    gateway.bye(1, Code::Draining);
    timeout(HANG, gateway.expect_seen(Seen::Login(1))).await.expect("chat comes back");
    let _two = Chat::login(&mut gateway, 2, &[]).await;
    one.type_line("2;;still there?").await;
    assert_eq!(one.printed().await, "delivered to 2: still there?");
    one.end_input();
    let (status, _stdout, stderr) = one.finish().await;
    assert!(status.success(), "{stderr}");
    assert!(stderr.contains("connection lost: ") && stderr.contains("connected again"), "{stderr}");
}

#[tokio::test]
async fn interrupt_and_terminate_leave_with_a_logout_and_status_0() {
    for signal in ["-INT", "-TERM"] {
        let mut gateway = Gateway::start("").await;
        let mut one = Chat::login(&mut gateway, 1, &[]).await;
        // An answer proves that the program is past its start, where it sets up its signals.
        one.type_line("/ping").await;
        one.printed().await;
        let pid = one.child.id().expect("running").to_string();
        let killed = Command::new("kill").args([signal, &pid]).status().await.expect("kill runs");
        assert!(killed.success());
        gateway.expect_seen(Seen::Logout(1)).await;
        let (status, _stdout, stderr) = one.finish().await;
        assert_eq!(status.code(), Some(0), "{stderr}");
    }
}

#[tokio::test]
async fn a_stalled_reader_of_its_output_does_not_keep_chat_from_leaving_on_a_signal() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    let mut stdin = one.stdin.take().expect("open");
    // Each line is answered by a list; nobody reads them, so after a while chat takes no more lines.
    let script = "/help\n".repeat(100_000);
    let stuck = timeout(Duration::from_secs(2), stdin.write_all(script.as_bytes())).await;
    assert!(stuck.is_err(), "chat has read everything: it does not stall");
    let pid = one.child.id().expect("running").to_string();
    let killed = Command::new("kill").args(["-INT", &pid]).status().await;
    assert!(killed.expect("kill runs").success());
    timeout(HANG, gateway.expect_seen(Seen::Logout(1))).await.expect("a logout");
    let status = timeout(HANG, one.child.wait()).await.expect("an end");
    assert_eq!(status.expect("an end").code(), Some(0));
}

#[tokio::test]
async fn chat_logs_out_when_nobody_reads_what_it_prints() {
    let mut gateway = Gateway::start("").await;
    let mut one = Chat::login(&mut gateway, 1, &[]).await;
    let mut two = Chat::login(&mut gateway, 2, &["--no-ack"]).await;
    drop(one.stdout);
    // The first line meets the closed pipe, a later one finds the printer gone.
    let writer =
        tokio::spawn(async move { while two.stdin.as_mut().expect("open").write_all(b"1;;x\n").await.is_ok() {} });
    timeout(HANG, gateway.expect_seen(Seen::Logout(1))).await.expect("a logout");
    writer.abort();
    let status = timeout(HANG, one.child.wait()).await.expect("chat ends").expect("an end");
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn several_addresses_are_tried_and_names_are_resolved() {
    let mut gateway = Gateway::start("").await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dead = free.local_addr().expect("an address").to_string();
    drop(free);
    let live = format!("localhost:{}", gateway.addr.port());
    for addrs in [vec!["--addr", &dead, "--addr", &live], vec!["--addr", &format!("{dead},{live}")]] {
        let mut chat = Chat::start(&[&["--user", "1"][..], &addrs].concat());
        timeout(HANG, gateway.expect_seen(Seen::Login(1))).await.expect("a login");
        chat.type_line("/quit").await;
        gateway.expect_seen(Seen::Logout(1)).await;
        let (status, _, stderr) = chat.finish().await;
        assert!(status.success() && stderr.contains(&live), "{stderr}");
    }
}

#[tokio::test]
async fn a_token_file_is_read_again_before_its_token_expires() {
    let mut gateway = Gateway::start_lasting("first", 4).await;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("token-{}", std::process::id()));
    std::fs::write(&file, "first\n").expect("a file");
    let path = file.to_str().expect("UTF-8");
    let mut chat = Chat::login(&mut gateway, 1, &["--token-file", path]).await;
    // At once for whoever reads it meanwhile.
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, " second\n").expect("a file");
    std::fs::rename(&fresh, &file).expect("a rename");
    timeout(HANG, gateway.expect_seen(Seen::Renewed(1, "second".into()))).await.expect("a renewal");
    // The next time there is none.
    std::fs::write(&file, "").expect("a file");
    let mut line = String::new();
    while !line.contains("not renewed") {
        line.clear();
        timeout(HANG, chat.stderr.read_line(&mut line)).await.expect("a line").expect("readable");
    }
    assert!(line.contains("it is empty") && line.contains("the session ends in"), "{line}");
    chat.type_line("/quit").await;
    chat.finish().await;
    std::fs::remove_file(&file).expect("removed");

    let missing = Chat::start(&["--user", "1", "--token-file", path, "--addr", &gateway.addr.to_string()]);
    let (status, _, stderr) = missing.finish().await;
    assert!(
        !status.success() && stderr.contains("there is no token to log in with") && stderr.contains(path),
        "{stderr}"
    );
}
