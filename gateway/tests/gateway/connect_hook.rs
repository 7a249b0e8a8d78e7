//! The connect-time hook: an application of this test, behind a real gateway, that accepts, refuses, hangs, talks
//! nonsense and is dead for a while.

use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::names::metric;
use crate::support::scratch::ScratchFolder;
use crate::support::wait_for;
use crate::support::websocket::WebSocketClient;
use crate::support::wire::{Login, LoginOk, code, flag, kind, outcome, ping};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G";
/// 2100-01-01.
const END_S: u64 = 4_102_444_800;

/// What a token begins with says what is answered.
#[derive(Clone, Debug)]
struct Application {
    address: SocketAddr,
    is_dead: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Application {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let application = Application { address, is_dead: Arc::default(), asked: Arc::default() };
        let own = application.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let own = own.clone();
                thread::spawn(move || own.serve(stream));
            }
        });
        application
    }

    /// Until the connection ends; `None` then.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut writer = stream.try_clone().expect("a second handle");
        let mut reader = BufReader::new(stream);
        loop {
            let question = question(&mut reader)?;
            if self.is_dead.load(Ordering::SeqCst) {
                return None;
            }
            let token = question["token"].as_str().expect("a token").to_owned();
            let (behavior, of) = token.split_once(':').unwrap_or((&token, ""));
            self.asked.lock().expect("the questions").push(question);
            let (status, body) = match behavior {
                "user" => (200, json!({ "user": of, "claims": { "send": "*" }, "cache_secs": 3_600 }).to_string()),
                "silent" => (200, "{}".to_owned()),
                "all" => {
                    let claims = json!({ "exp": END_S, "watch": ["8"], "send": ["8"] });
                    (200, json!({ "claims": claims, "limits": { "heartbeat_secs": 60 } }).to_string())
                }
                "no" => (403, json!({ "message": "Banned until Monday", "cache_secs": 0 }).to_string()),
                "nonsense" => (200, "welcome".to_owned()),
                "huge" => (200, json!({ "user": " ".repeat(1 << 20) }).to_string()),
                // Until the gateway hangs up.
                _ => return reader.read(&mut [0]).ok().map(drop),
            };
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(body.as_bytes())).ok()?;
        }
    }

    fn questions(&self, token: &str) -> Vec<Value> {
        let asked = self.asked.lock().expect("the questions");
        asked.iter().filter(|question| question["token"] == token).cloned().collect()
    }
}

/// The next question of a connection, whose signature must be right; `None` at its end.
fn question(reader: &mut BufReader<TcpStream>) -> Option<Value> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    assert_eq!(line.trim(), "POST /login HTTP/1.1");
    let mut headers = HashMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let Some((name, value)) = field.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().expect("a length")];
    reader.read_exact(&mut body).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64.decode(SECRET).expect("Base64")).expect("a key");
    mac.update(format!("{}.{}.", headers["webhook-id"], headers["webhook-timestamp"]).as_bytes());
    mac.update(&body);
    assert_eq!(headers["webhook-signature"], format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())));
    Some(serde_json::from_slice(&body).expect("a question"))
}

fn begin(gateway: &Gateway, user: u64, token: &str) -> Client {
    let mut client = Client::connect(gateway);
    client.write(&Login::of(user).token(token).frame());
    client
}

/// The code of a login that ends by a BYE; `None` if it is let in.
fn refusal(gateway: &Gateway, token: &str) -> Option<u16> {
    let first = begin(gateway, 1, token).recv();
    (first.kind == kind::BYE).then_some(first.aux)
}

#[test]
fn the_application_says_who_is_let_in_and_as_whom_and_a_dead_one_is_left_in_peace() {
    let (application, folder) = (Application::start(), ScratchFolder::new("connect-hook"));
    std::fs::create_dir_all(folder.path()).expect("a folder");
    let secret_file = format!("{}/hook.key", folder.path());
    std::fs::write(&secret_file, format!("whsec_{SECRET}\n")).expect("a file");
    let hook = format!("http://{}/login,secret_file={secret_file},timeout_ms=3000", application.address);
    let gateway = Gateway::start(2, &["--connect-hook", &hook, "--login-timeout-secs", "60", "--send", "claim"]);

    // Users of both shards, whoever LOGIN says they are; what comes right behind LOGIN waits.
    let mut clients: Vec<Client> = (100..106).map(|user| begin(&gateway, user % 2, &format!("user:{user}"))).collect();
    for client in &mut clients {
        client.write(&ping(9));
        client.expect_login_ok();
        assert_eq!(client.recv_kind(kind::PONG).aux, 9);
    }
    let (first, rest) = clients.split_at_mut(1);
    for (client, user) in rest.iter_mut().zip(101..) {
        first[0].send_barrier(client, user);
    }
    // The same question again is answered from what is known; another user's is another one.
    for device in ["", "other"] {
        let login = Login::of(0).token("user:100").device(device);
        drop(Client::login_with(&gateway, &login));
    }
    assert_eq!(application.questions("user:100").len(), 2);
    let question = &application.questions("user:101")[0];
    assert_eq!((&question["user"], &question["type"]), (&json!("1"), &json!("login")));
    assert_eq!((&question["address"], &question["transport"]), (&json!("127.0.0.1"), &json!("native")));
    assert_eq!(application.questions("user:100")[0]["user"], Value::Null);

    let login = Login::of(7).token("all:").heartbeat_secs(30);
    let (mut client, login_ok) = Client::login_with(&gateway, &login);
    assert_eq!((login_ok.heartbeat_secs, login_ok.expires_ms), (60, END_S * 1_000));
    client.write(&login.clone().token("no").renew_frame());
    assert!(!client.recv_error_text(code::BAD_CREDENTIALS).is_empty());
    // What an answer to RENEW leaves out stays: the end, and to whom the session may write.
    for token in ["all:", "silent"] {
        wait_for("a renewal that is looked at", || {
            client.write(&login.clone().token(token).renew_frame());
            let answer = client.recv();
            (answer.kind == kind::LOGIN_OK).then(|| assert_eq!(LoginOk::parse(&answer).expires_ms, END_S * 1_000))
        });
        for (user, outcome) in [(8, outcome::OFFLINE_NOT_STORED), (9, outcome::DENIED)] {
            let id = client.send(user, flag::ACK, b"hello");
            client.expect_sent(id, user, outcome);
        }
    }
    assert_eq!(begin(&gateway, 7, "no").recv_bye_text(code::BAD_CREDENTIALS), "Banned until Monday");
    assert_eq!(refusal(&gateway, &"x".repeat(4_097)), Some(code::BAD_CREDENTIALS));
    for token in ["nonsense", "huge"] {
        assert_eq!(refusal(&gateway, token), Some(code::OVERLOADED), "{token}");
    }

    // Whoever hangs up gives the place to somebody else, long before the application answers.
    let mut waits = begin(&gateway, 7, "hang:1");
    let goes = begin(&gateway, 7, "hang:2");
    gateway.wait_for_metrics("two wait", |metrics| metrics.sum("trunkline_connect_hook_waiting", &[]) == 2);
    drop(goes);
    gateway.wait_for_metrics("one waits", |metrics| metrics.sum("trunkline_connect_hook_waiting", &[]) == 1);
    waits.expect_bye(code::OVERLOADED);

    application.is_dead.store(true, Ordering::SeqCst);
    wait_for("the circuit to open", || {
        assert_eq!(refusal(&gateway, "all:"), Some(code::OVERLOADED));
        (gateway.metrics().sum("trunkline_connect_hook_circuit_open", &[]) == 1).then_some(())
    });
    assert_eq!(refusal(&gateway, "all:"), Some(code::OVERLOADED));
    drop(Client::login_with(&gateway, &Login::of(0).token("user:100")));
    application.is_dead.store(false, Ordering::SeqCst);
    wait_for("the application to be asked again", || refusal(&gateway, "all:").is_none().then_some(()));
    gateway.wait_for_metrics("all was counted", |metrics| {
        let of = |name: &str, labels: &[(&str, &str)]| metrics.sum(name, labels);
        of("trunkline_connect_hook_answers_total", &[("end", "accepted")]) >= 9
            && of("trunkline_connect_hook_answers_total", &[("end", "refused")]) == 2
            && of("trunkline_connect_hook_answers_total", &[("end", "failed")]) >= 5
            && of("trunkline_connect_hook_saved_total", &[("by", "cache")]) == 2
            && of("trunkline_connect_hook_saved_total", &[("by", "circuit")]) >= 1
            && of("trunkline_connect_hook_waiting", &[]) == 0
    });
    drop((client, clients));
    gateway.finish();

    let allow = ["--connect-hook", "http://127.0.0.1:1/", "--connect-hook-failure", "allow"];
    let gateway = Gateway::start(1, &allow);
    drop(Client::login(&gateway, 5));
    gateway.wait_for_metrics("it is counted", |metrics| metrics.sum("trunkline_connect_hook_allowed_total", &[]) == 1);
    gateway.finish();
}

#[test]
fn pings_of_a_client_whose_login_waits_for_the_application_are_no_way_to_fill_memory() {
    const PINGS_BYTES: usize = 64 << 20;
    let (application, folder) = (Application::start(), ScratchFolder::new("connect-hook-pings"));
    std::fs::create_dir_all(folder.path()).expect("a folder");
    let secret_file = format!("{}/hook.key", folder.path());
    std::fs::write(&secret_file, format!("whsec_{SECRET}\n")).expect("a file");
    let hook = format!("http://{}/login,secret_file={secret_file},timeout_ms=30000", application.address);
    let gateway = Gateway::start(1, &["--connect-hook", &hook, "--login-timeout-secs", "60", "--drain-secs", "0"]);
    let mut client = WebSocketClient::connect(&gateway);
    client.write(&Login::of(1).token("hang:").frame());
    wait_for("the question", || (!application.questions("hang:").is_empty()).then_some(()));
    // It reads no Pong. What the kernel holds of them is less than this.
    let ping = [&[0x89, 0xFD, 0, 0, 0, 0][..], &[7; 125]].concat();
    let stream = client.socket.get_mut();
    _ = (0..PINGS_BYTES / (500 * ping.len())).try_for_each(|_| stream.write_all(&ping.repeat(500)));
    wait_for("the end", || (gateway.metrics().sum(metric::CLOSED, &[("reason", "too_slow")]) == 1).then_some(()));
    drop(client);
    gateway.finish();
}
