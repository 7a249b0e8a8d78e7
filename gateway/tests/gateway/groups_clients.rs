//! The client libraries and groups at a gateway that is killed: each member's application gets each message once and in
//! order, and a live room is joined again.

use crate::support::gateway::{Gateway, gateway_command};
use crate::support::scratch::ScratchFolder;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use trunkline_client::{Client, Config, Event, Events, History, Outcome, Outgoing, Resume};

const GROUP: u64 = 77;
const ROOM: u64 = (1 << 63) + 5;
const SENDER: u64 = 1;
/// A batch on its way when the gateway is killed: no more than it looks back for what is sent again.
const BATCH: u64 = 40;
const BATCHES: u64 = 4;
const ALL: u64 = BATCH * BATCHES;

fn command(folder: &ScratchFolder) -> Command {
    let mut command = gateway_command();
    command.args(["--shards", "2", "--data-dir", folder.path()]);
    command.args(["--group-sends-per-sec", "0", "--group-member-sends-per-sec", "0"]);
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

fn config(addr: SocketAddr, user: u64) -> Config {
    Config { addrs: vec![addr.to_string()], user, ..Config::default() }
}

/// The ids of the next messages to a group, until `count` have come.
async fn take(events: &mut Events, group: u64, count: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    while (ids.len() as u64) < count {
        match events.next().await.expect("the client lives") {
            Event::GroupMessage(message) if message.group == group => ids.push(message.id),
            Event::GroupLost { code, text, .. } => panic!("{code} {text}"),
            _ => {}
        }
    }
    ids
}

/// Nothing more comes of a group.
async fn expect_no_more(events: &mut Events) {
    let more = tokio::time::timeout(Duration::from_millis(200), take(events, GROUP, 1)).await;
    assert!(more.is_err(), "{more:?}");
}

/// Joins, over a gateway that may just have come back.
async fn join(client: &Client, group: u64) {
    while let Err(error) = client.join_group(group).await {
        assert!(!client.is_connected(), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn each_member_has_each_message_once_and_in_order_over_kills() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let folder = ScratchFolder::new("groups-clients");
    let mut gateway = Gateway::start_command(command(&folder));
    let addr = gateway.client_address();
    let connect = |config| runtime.block_on(Client::connect(config)).expect("a login");

    // One member stays, one is away.
    let (sender, sender_events) = connect(config(addr, SENDER));
    let (stays, mut stays_events) = connect(config(addr, 2));
    let (away, away_events) = connect(config(addr, 3));
    let resume = runtime.block_on(async {
        for client in [&sender, &stays, &away] {
            join(client, GROUP).await;
        }
        away.close().await;
        away.resume()
    });
    assert_eq!(resume.groups, [(GROUP, 0)]);
    drop((away_events, sender_events));

    // Each batch is on its way when the gateway is killed, and its fates are heard all the same.
    for batch in 0..BATCHES {
        let receipts = runtime.block_on(async {
            let mut receipts = Vec::new();
            for id in batch * BATCH + 1..=(batch + 1) * BATCH {
                let message = Outgoing::to_group(GROUP, format!("message {id}")).with_id(id);
                receipts.push(sender.submit(message).await.expect("queued"));
            }
            receipts
        });
        gateway = kill_and_start(gateway, &folder);
        runtime.block_on(async {
            for receipt in receipts {
                assert_eq!(receipt.outcome().await.expect("a fate"), Outcome::Stored);
            }
        });
    }

    runtime.block_on(async {
        assert_eq!(take(&mut stays_events, GROUP, ALL).await, (1..=ALL).collect::<Vec<_>>());
        expect_no_more(&mut stays_events).await;
    });
    // The other comes back in a later process, and is at it when the gateway is killed once more.
    let (away, mut away_events) = connect(Config { resume, ..config(addr, 3) });
    let half = runtime.block_on(take(&mut away_events, GROUP, ALL / 2));
    gateway = kill_and_start(gateway, &folder);
    runtime.block_on(async {
        let mut got = half;
        got.extend(take(&mut away_events, GROUP, ALL / 2).await);
        assert_eq!(got, (1..=ALL).collect::<Vec<_>>());
        expect_no_more(&mut away_events).await;
        // It has asked for the next, so it is done with all: a third process has nothing to do.
        let resume: Resume = away.resume();
        away.close().await;
        let (third, mut third_events) = Client::connect(Config { resume, ..config(addr, 3) }).await.expect("a login");
        expect_no_more(&mut third_events).await;

        // What is kept is looked at page by page, and what comes now comes as ever.
        let (mut request, mut kept) = (History::all().with_limit(64), Vec::new());
        loop {
            let page = third.group_history(GROUP, request).await.expect("a page");
            kept.extend(page.messages.iter().map(|message| message.id));
            if page.complete {
                break;
            }
            request = History::after(page.next).with_limit(64);
        }
        assert_eq!(kept, (1..=ALL).collect::<Vec<_>>());
        let live = Outgoing::to_group(GROUP, "live").with_id(ALL + 1);
        let fate = sender.submit(live).await.expect("queued").outcome().await;
        assert_eq!(fate.expect("a fate"), Outcome::Stored);
        assert_eq!(take(&mut third_events, GROUP, 1).await, [ALL + 1]);
        third.leave_group(GROUP).await.expect("left");
        let denied = third.send_to_group_acked(GROUP, "no member any more").await.expect("a fate");
        assert_eq!(denied, Outcome::Denied);
        third.close().await;
        stays.close().await;
        sender.close().await;
    });
    gateway.audit();
    gateway.finish();
}

#[test]
fn a_live_room_is_joined_again_after_a_kill() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let folder = ScratchFolder::new("rooms-clients");
    let mut gateway = Gateway::start_command(command(&folder));
    let addr = gateway.client_address();
    let connect = |user| runtime.block_on(Client::connect(config(addr, user))).expect("a login");
    let (one, mut one_events) = connect(1);
    let (two, mut two_events) = connect(2);
    runtime.block_on(async {
        for client in [&one, &two] {
            join(client, ROOM).await;
        }
        assert_eq!(one.send_to_group_acked(ROOM, "before").await.expect("a fate"), Outcome::Accepted);
        take(&mut two_events, ROOM, 1).await;
    });
    gateway = kill_and_start(gateway, &folder);
    runtime.block_on(async {
        // What is said in a room waits until the room is joined again, so that both are in it now.
        for client in [&one, &two] {
            assert_eq!(client.send_to_group_acked(ROOM, "back").await.expect("a fate"), Outcome::Accepted);
        }
        let said = Outgoing::to_group(ROOM, "after").with_id(7);
        let fate = one.submit(said).await.expect("queued").outcome().await;
        assert_eq!(fate.expect("a fate"), Outcome::Accepted);
        while take(&mut two_events, ROOM, 1).await != [7] {}
        // The other one's "back" came to this one.
        take(&mut one_events, ROOM, 1).await;
        one.close().await;
        two.close().await;
    });
    gateway.audit();
    gateway.finish();
}

#[test]
fn the_javascript_client_has_each_message_of_a_group_once_and_in_order_over_kills() {
    let folder = ScratchFolder::new("groups-js");
    let js = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("client/js");
    assert!(js.join("dist/groups.js").exists(), "client/js is not built: run scripts/setup.sh");
    let mut node = Command::new("node");
    node.arg(js.join("test/with_groups.mjs")).args([env!("CARGO_BIN_EXE_gateway"), folder.path()]);
    let output = node.output().expect("run the client");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"all well\n", "{said}");
}
