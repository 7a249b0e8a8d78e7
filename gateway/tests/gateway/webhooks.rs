//! Events to a webhook: a receiver of this test behind a real gateway, which is killed while the receiver is down.

use crate::cluster_support::Fleet;
use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::scratch::ScratchFolder;
use crate::support::wait_for;
use crate::support::wire::{flag, kind, outcome};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G";

/// A receiver that knows what comes twice by its id, and hangs up while it is down.
#[derive(Clone, Debug)]
struct Receiver {
    address: SocketAddr,
    is_down: Arc<AtomicBool>,
    /// Events in the order in which they came first.
    events: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let receiver = Receiver { address, is_down: Arc::new(AtomicBool::new(true)), events: Arc::default() };
        let own = receiver.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let own = own.clone();
                thread::spawn(move || own.serve(stream));
            }
        });
        receiver
    }

    fn serve(&self, stream: TcpStream) {
        let mut writer = stream.try_clone().expect("a second handle");
        let mut reader = BufReader::new(stream);
        while let Some((headers, body)) = request(&mut reader) {
            if self.is_down.load(Ordering::SeqCst) {
                return;
            }
            assert_eq!(headers["content-type"], "application/cloudevents-batch+json");
            let mut mac = Hmac::<Sha256>::new_from_slice(&BASE64.decode(SECRET).expect("Base64")).expect("a key");
            mac.update(format!("{}.{}.", headers["webhook-id"], headers["webhook-timestamp"]).as_bytes());
            mac.update(&body);
            let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
            assert!(headers["webhook-signature"].split(' ').any(|one| one == signature), "{headers:?}");
            let batch: Vec<Value> = serde_json::from_slice(&body).expect("a batch");
            let mut events = self.events.lock().expect("the events");
            for event in batch {
                if events.iter().all(|known| known["id"] != event["id"]) {
                    events.push(event);
                }
            }
            drop(events);
            if writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                return;
            }
        }
    }

    /// Of the events of a type what stands in a field of their data.
    fn of(&self, kind: &str, field: &str) -> Vec<String> {
        let events = self.events.lock().expect("the events");
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.map(|event| event["data"][field].as_str().unwrap_or("").to_owned()).collect()
    }
}

/// The next request of a connection; `None` at its end.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(HashMap<String, String>, Vec<u8>)> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    assert_eq!(line.trim(), "POST /hook?a=1 HTTP/1.1");
    let mut headers = HashMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let Some((name, value)) = field.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().expect("a length")];
    reader.read_exact(&mut body).ok()?;
    Some((headers, body))
}

/// A client whose backlog, of which there is none, is over.
fn login(gateway: &Gateway) -> Client {
    let mut client = Client::login(gateway, 1);
    client.recv_kind(kind::SYNC_OK);
    client
}

/// Sends messages that are stored, to three users who are not there, and gives their ids by recipient.
fn store_some(client: &mut Client, stored: &mut HashMap<u64, Vec<String>>) {
    for round in 0..10 {
        let to = 10 + round % 3;
        let id = client.send(to, flag::ACK, b"hello");
        client.expect_sent(id, to, outcome::STORED);
        stored.entry(to).or_default().push(id.to_string());
    }
}

/// What was stored was told of in the order of each user, each message once.
fn assert_in_order(receiver: &Receiver, stored: &HashMap<u64, Vec<String>>) {
    for (to, ids) in stored {
        let events = receiver.events.lock().expect("the events");
        let to = to.to_string();
        let of_user = events.iter().filter(|event| event["type"] == "message.stored" && event["data"]["to"] == *to);
        let seen: Vec<&Value> = of_user.map(|event| &event["data"]["id"]).collect();
        assert_eq!(seen, ids.iter().collect::<Vec<_>>(), "the messages of user {to}, in order, each once");
    }
}

#[test]
fn events_kept_in_redis_outlive_a_process_that_is_killed() {
    let (receiver, folder) = (Receiver::start(), ScratchFolder::new("webhooks-redis"));
    std::fs::create_dir_all(folder.path()).expect("a folder");
    let secret_file = format!("{}/hook.key", folder.path());
    std::fs::write(&secret_file, format!("whsec_{SECRET}\n")).expect("a file");
    let webhook = format!("http://{}/hook?a=1,secret_file={secret_file},events=message.stored", receiver.address);
    let mut fleet = Fleet::start(&["hooked"], &["--store", "redis", "--webhook", &webhook]);
    let mut stored = HashMap::new();
    store_some(&mut login(fleet.node(0)), &mut stored);
    fleet.nodes[0].take().expect("it runs").kill();
    fleet.start_node(0);
    store_some(&mut login(fleet.node(0)), &mut stored);
    receiver.is_down.store(false, Ordering::SeqCst);
    wait_for("all events to come", || (receiver.of("message.stored", "id").len() >= 20).then_some(()));
    assert_in_order(&receiver, &stored);
    fleet.node(0).wait_for_metrics("nothing waits, and nothing is kept", |metrics| {
        metrics.sum("trunkline_webhook_events_waiting", &[]) == 0
            && metrics.sum("trunkline_webhook_events_total", &[("end", "dropped")]) == 0
            && metrics.sum("trunkline_event_log_errors_total", &[]) == 0
            && metrics.sum("trunkline_event_log_bytes", &[]) == 0
    });
    fleet.finish();
}

#[test]
fn events_outlive_a_receiver_that_is_down_and_a_process_that_is_killed_meanwhile() {
    let (receiver, folder) = (Receiver::start(), ScratchFolder::new("webhooks"));
    std::fs::create_dir_all(folder.path()).expect("a folder");
    let secret_file = format!("{}/hook.key", folder.path());
    std::fs::write(&secret_file, format!("whsec_{SECRET}\n")).expect("a file");
    let webhook = format!("http://{}/hook?a=1,secret_file={secret_file},events=*", receiver.address);
    let data_dir = format!("{}/data", folder.path());
    let flags = ["--data-dir", &data_dir, "--webhook", &webhook];
    let mut stored = HashMap::new();
    let gateway = Gateway::start(2, &flags);
    let mut client = login(&gateway);
    store_some(&mut client, &mut stored);
    gateway.kill();

    let gateway = Gateway::start(2, &flags);
    let mut client = login(&gateway);
    store_some(&mut client, &mut stored);
    receiver.is_down.store(false, Ordering::SeqCst);
    // Each lane has its own time to try again.
    let all = [
        ("message.stored", "id", 20),
        ("message.sent", "from", 20),
        ("user.online", "user", 2),
        ("node.started", "node", 2),
    ];
    wait_for("all events to come", || {
        all.iter().all(|(kind, field, count)| receiver.of(kind, field).len() >= *count).then_some(())
    });
    assert_in_order(&receiver, &stored);
    assert_eq!(receiver.of("message.sent", "from"), vec!["1"; 20]);
    assert_eq!(
        (receiver.of("user.online", "user"), receiver.of("node.started", "node").len()),
        (vec!["1".into(); 2], 2)
    );
    gateway.wait_for_metrics("nothing waits", |metrics| {
        metrics.sum("trunkline_webhook_events_waiting", &[]) == 0
            && metrics.sum("trunkline_webhook_requests_total", &[("status", "none")]) > 0
            && metrics.sum("trunkline_events_total", &[("type", "message.stored")]) == 10
            && metrics.sum("trunkline_webhook_events_total", &[("end", "dropped")]) == 0
            && metrics.sum("trunkline_limit_hits_total", &[("limit", "event_kept_time")]) == 0
    });
    // Whoever is there when the node ends is told of before it does.
    gateway.finish();
    assert_eq!(receiver.of("session.logout", "reason"), ["draining"]);
    assert_eq!((receiver.of("user.offline", "user"), receiver.of("events.gap", "count").len()), (vec!["1".into()], 0));
    drop(client);
}
