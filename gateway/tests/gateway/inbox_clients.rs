//! The client library and a gateway with a store that is killed: its application gets each message once and in order.

use crate::support::gateway::{Gateway, gateway_command};
use crate::support::scratch::ScratchFolder;
use std::net::SocketAddr;
use std::time::Duration;
use trunkline_client::{Client, Config, Event, Events, History, Outcome, Outgoing, Resume};

const SENDER: u64 = 1;
const RECIPIENT: u64 = 2;
/// A batch on its way when the gateway is killed: no more than it looks back for what is sent again.
const BATCH: u64 = 40;
const BATCHES: u64 = 5;
const ALL: u64 = BATCH * BATCHES;

fn command(folder: &ScratchFolder) -> std::process::Command {
    let mut command = gateway_command();
    command.args(["--shards", "2", "--data-dir", folder.path(), "--store-after-ms", "300"]);
    command
}

/// Kills the gateway and starts it again where it was.
fn kill_and_start(gateway: Gateway, folder: &ScratchFolder) -> Gateway {
    let (client, http) = (gateway.client_address(), gateway.http_address());
    gateway.kill();
    let gateway = Gateway::start_unready(command(folder), client, http);
    gateway.wait_until_ready();
    gateway
}

fn config(addr: SocketAddr, user: u64, device: &str) -> Config {
    Config { addrs: vec![addr.to_string()], user, device: device.into(), ..Config::default() }
}

/// The ids of the next messages, until `count` have come; and all ends of backlogs on the way.
async fn take(events: &mut Events, count: usize) -> (Vec<u64>, u32) {
    let (mut ids, mut ends) = (Vec::new(), 0);
    while ids.len() < count {
        match events.next().await.expect("the client lives") {
            Event::Message(message) => ids.push(message.id),
            Event::CaughtUp { .. } => ends += 1,
            Event::Disconnected { retry_in: Some(_), .. }
            | Event::Reconnected { .. }
            | Event::ReconnectFailed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    (ids, ends)
}

async fn until_caught_up(events: &mut Events) {
    loop {
        match events.next().await.expect("the client lives") {
            Event::CaughtUp { .. } => return,
            Event::Message(message) => panic!("a message too many: {message:?}"),
            _ => {}
        }
    }
}

#[test]
fn what_came_while_a_client_was_away_reaches_it_once_and_in_order_over_kills() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let folder = ScratchFolder::new("store");
    let mut gateway = Gateway::start_command(command(&folder));
    let addr = gateway.client_address();

    // Two devices are known, and away.
    let mut resume = Resume::default();
    for device in ["desk", "phone"] {
        resume = runtime.block_on(async {
            let (client, mut events) = Client::connect(config(addr, RECIPIENT, device)).await.expect("a login");
            assert!(client.session().registered);
            until_caught_up(&mut events).await;
            client.close().await;
            client.resume()
        });
    }

    // Each batch but the last is on its way when the gateway is killed.
    let (sender, _sender_events) =
        runtime.block_on(Client::connect(config(addr, SENDER, ""))).expect("a login of the sender");
    for batch in 0..BATCHES {
        let receipts = runtime.block_on(async {
            let mut receipts = Vec::new();
            for id in batch * BATCH + 1..=(batch + 1) * BATCH {
                let message = Outgoing::new(RECIPIENT, format!("message {id}")).with_id(id);
                receipts.push(sender.submit(message).await.expect("queued"));
            }
            receipts
        });
        if batch + 1 < BATCHES {
            gateway = kill_and_start(gateway, &folder);
        }
        runtime.block_on(async {
            for receipt in receipts {
                assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Stored);
            }
        });
    }
    gateway = kill_and_start(gateway, &folder);

    // The phone comes back, and the gateway is killed while it is at its backlog.
    let half = ALL as usize / 2;
    let phone = Config { resume, replay_window: 32, ..config(addr, RECIPIENT, "phone") };
    let (phone, mut events) = runtime.block_on(Client::connect(phone)).expect("a login of the phone");
    assert!(phone.session().resumed && !phone.session().truncated, "{:?}", phone.session());
    let (mut got, _) = runtime.block_on(take(&mut events, half));
    gateway = kill_and_start(gateway, &folder);
    let (rest, ends) = runtime.block_on(take(&mut events, ALL as usize - half));
    got.extend(rest);
    assert_eq!(got, (1..=ALL).collect::<Vec<_>>(), "each once and in order");
    runtime.block_on(async {
        if ends == 0 {
            until_caught_up(&mut events).await;
        }
        // Nothing comes behind the end of the backlog.
        let more = tokio::time::timeout(Duration::from_millis(100), take(&mut events, 1)).await;
        assert!(more.is_err(), "{more:?}");

        // The desk has not got them, so they are all held.
        let (mut request, mut pages, mut held) = (History::all().with_limit(64), 0, Vec::new());
        loop {
            let page = phone.history(request).await.expect("a page");
            assert!(!page.truncated && page.messages.len() <= 64);
            held.extend(page.messages.iter().map(|message| message.id));
            pages += 1;
            if page.complete {
                break;
            }
            request = History::after(page.next).with_limit(64);
        }
        assert_eq!((held, pages), ((1..=ALL).collect(), ALL.div_ceil(64)));

        // What comes now comes as ever.
        let fate = sender.send_acked(RECIPIENT, "live");
        let live = async {
            let (ids, _) = take(&mut events, 1).await;
            // Asking for the next is the acknowledgement.
            let more = tokio::time::timeout(Duration::from_millis(500), take(&mut events, 1)).await;
            assert!(ids.len() == 1 && more.is_err());
        };
        assert_eq!(tokio::join!(fate, live).0.expect("a fate"), Outcome::Delivered);
        phone.close().await;
        sender.close().await;
    });
    gateway.audit();
    gateway.finish();
}

#[test]
fn the_javascript_client_gets_each_message_once_and_in_order_over_kills() {
    let folder = ScratchFolder::new("store");
    let js = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("client/js");
    assert!(js.join("dist/index.js").exists(), "client/js is not built: run scripts/setup.sh");
    let mut node = std::process::Command::new("node");
    node.arg(js.join("test/with_store.mjs")).args([env!("CARGO_BIN_EXE_gateway"), folder.path()]);
    let output = node.output().expect("run the client");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"all well\n", "{said}");
}
