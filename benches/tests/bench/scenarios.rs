//! Every scenario at small size against a real gateway.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::redis_cluster;

/// Numbers the files that runs write.
static REPORTS: AtomicU32 = AtomicU32::new(0);

/// The gateway that is built with the workspace's tests, next to the bench.
pub(crate) fn gateway() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_bench")).with_file_name("gateway");
    assert!(
        path.exists(),
        "there is no {}: run the tests of the whole workspace, or build the gateway",
        path.display()
    );
    path
}

pub(crate) fn bench(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the bench starts")
}

fn command(arguments: &[&str]) -> Command {
    // A bench that hangs is ended by `timeout`, with status 124.
    let mut command = Command::new("timeout");
    command.arg("120").arg(env!("CARGO_BIN_EXE_bench")).args(arguments);
    command
}

/// Runs a scenario against a gateway of its own and returns what it wrote as JSON.
fn report(name: &str, arguments: &[&str]) -> Value {
    report_with_path(name, arguments, None)
}

/// The same, with a folder in which programs are looked for first.
fn report_with_path(name: &str, arguments: &[&str], programs: Option<&Path>) -> Value {
    let gateway = gateway();
    let mut command = command(&[&[name], arguments, &["--gateway-bin", gateway.to_str().expect("UTF-8")]].concat());
    if let Some(programs) = programs {
        command.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").expect("a PATH")));
    }
    written_by(command).0
}

/// Runs a scenario against a server named by `target`, and returns what it wrote as JSON and what it printed.
pub(crate) fn report_of(arguments: &[&str], target: &[String]) -> (Value, String) {
    let mut command = command(arguments);
    command.args(target);
    written_by(command)
}

/// How often a bench is run again in which nothing arrived while it measured.
const SILENT_MAX: usize = 5;

fn written_by(mut command: Command) -> (Value, String) {
    let number = REPORTS.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("bench-scenario-{}-{number}.json", std::process::id()));
    command.arg("--json").arg(&path);
    let mut output = command.output().expect("the bench starts");
    // Where the cores are busy with other work, whoever was to answer may have had none for as long as was measured.
    // Once is chance, and so often is not.
    for _ in 0..SILENT_MAX {
        if !String::from_utf8_lossy(&output.stderr).contains("not one message arrived in") {
            break;
        }
        output = command.output().expect("the bench starts");
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {stdout}\n{stderr}");
    let report = serde_json::from_str(&fs::read_to_string(&path).expect("written")).expect("JSON");
    fs::remove_file(&path).expect("there");
    (report, stdout.into_owned())
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn hold_logs_all_in_and_keeps_them_with_heartbeats() {
    let report =
        report("hold", &["--conns", "400", "--secs", "4", "--heartbeat", "1", "--control", "20", "--rate", "200"]);
    assert_eq!((count(&report["held_to_the_end"]), count(&report["lost"]), count(&report["refused"])), (400, 0, 0));
    assert!(count(&report["messages"]) > 200, "{}", report["messages"]);
    assert!(count(&report["idle_pongs"]["pongs"]["count"]) > 100, "each client pings once a second");
    // What it is depends on whatever else the machine does.
    assert!(report["memory"]["kernel"].is_number() && report["memory"]["caches"].is_object());
    assert_eq!(report["bench"], "hold");
    assert!(report["machine"]["kernel"].is_string() && report["command"].is_array());
}

#[test]
fn hold_spreads_over_rings_and_shards() {
    let report = report("hold", &["--conns", "600", "--secs", "1", "--shards", "3", "--control", "600"]);
    assert_eq!((count(&report["held_to_the_end"]), count(&report["shards"])), (600, 3));
}

/// As many cores as shared ones are tried on: two, where there are two.
fn shared_cores() -> String {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(2)).to_string()
}

#[test]
fn on_shared_cores_clients_of_several_threads_talk_to_each_other() {
    let cores = shared_cores();
    let shared = ["--shared-cores", &cores, "--heartbeat", "1", "--rate", "200"];
    let report = report("hold", &[&["--conns", "401", "--secs", "4", "--control", "20"], &shared[..]].concat());
    assert_eq!((count(&report["held_to_the_end"]), count(&report["lost"]), count(&report["refused"])), (401, 0, 0));
    assert!(count(&report["messages"]) > 200, "{}", report["messages"]);
    assert_eq!(report["shards"].to_string(), cores, "one for each core");
    let logins = report["ramp"]["latency"]["count"].as_u64();
    assert_eq!(logins, Some(401), "the threads' latencies together");
}

/// Runs `hold --fast-open` in a network of its own where `net.ipv4.tcp_fastopen` has a value, and prints the kernel's
/// counters after it.
fn hold_with_fast_open(value: &str) -> Output {
    let script =
        r#"ip link set lo up && sysctl -qw net.ipv4.tcp_fastopen="$0" && timeout 120 "$@" && cat /proc/net/netstat"#;
    let gateway = gateway();
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", script, value, env!("CARGO_BIN_EXE_bench")])
        .args(["hold", "--conns", "100", "--secs", "1", "--control", "10", "--fast-open", "--gateway-bin"])
        .arg(gateway)
        .output()
        .expect("unshare, of util-linux")
}

#[test]
fn with_fast_open_login_comes_along_with_the_syn() {
    let output = hold_with_fast_open("1027");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    // A line of names, then one of values.
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = stdout.lines().filter(|line| line.starts_with("TcpExt:")).map(fields).collect();
    let [names, values] = &lines[..] else { panic!("{stdout}") };
    let at = names.iter().position(|name| name == "TCPFastOpenPassive").expect("a kernel with TCP Fast Open");
    let opened: u32 = values[at].parse().expect("a number");
    // All but those for which the cookie of their address was not there yet; the 100 of the warm-up count too.
    assert!(opened > 100, "{opened} of 200 connections");
}

#[test]
fn fast_open_is_refused_where_the_kernel_would_not_do_it() {
    let output = hold_with_fast_open("1");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("it is 1: set it with `sysctl -w net.ipv4.tcp_fastopen=1027`"), "{stderr}");
}

#[test]
fn what_the_gateway_refuses_is_counted_by_kind_and_fails_the_run() {
    let gateway = gateway();
    let arguments = ["hold", "--conns", "200", "--secs", "0.5", "--connections-max", "150", "--control", "2"];
    let output = bench(&[&arguments[..], &["--gateway-bin", gateway.to_str().expect("UTF-8")]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("BYE 14") && stderr.contains("(50)"), "{stderr}");
}

#[test]
fn rate_measures_each_rate_from_the_intended_time() {
    let report = report("rate", &["--conns", "100", "--talkers", "40", "--rate", "500,2000", "--secs", "1"]);
    let steps = report["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert!(count(&step["messages"]["count"]) > 100, "{step}");
    }
}

#[test]
fn pairs_over_websockets_stand_beside_native_ones_in_the_same_run() {
    let arguments = ["--transport", "native,ws", "--conns", "10", "--window", "3", "--secs", "0.3", "--rounds", "2"];
    let report = report("pairs", &arguments);
    let cases = report["cases"].as_array().expect("cases");
    let names: Vec<_> = cases.iter().filter_map(|case| case["name"].as_str()).collect();
    assert_eq!(names, ["floor", "gateway", "floor, WebSocket", "gateway, WebSocket"]);
    for case in cases {
        assert!(case["rounds"].as_array().is_some_and(|rounds| rounds.len() == 2), "{case}");
        assert!(count(&case["rounds"][0]["checked"]) > 100, "{case}");
    }
    let ratio = |ratio: &Value| (ratio["case"].as_str().map(str::to_owned), ratio["over"].as_str().map(str::to_owned));
    let named = |case: &str, over: &str| (Some(case.to_owned()), Some(over.to_owned()));
    assert_eq!(
        report["ratios"].as_array().expect("ratios").iter().map(ratio).collect::<Vec<_>>(),
        [
            named("gateway", "floor"),
            named("floor, WebSocket", "floor"),
            named("gateway, WebSocket", "floor, WebSocket"),
            named("gateway, WebSocket", "gateway"),
        ]
    );
    let ratio = &report["ratios"][0];
    let [median, low, high] = ["median", "low", "high"].map(|field| ratio[field].as_f64().expect("a number"));
    assert!(low <= median && median <= high && ratio["confidence"].is_number(), "{ratio}");
    assert!(cases[0]["rounds"][0]["bench_cores"].is_number() && cases[0]["rounds"][0]["server_core"].is_object());
}

#[test]
fn with_ack_and_large_payloads_websockets_account_for_every_message() {
    for more in [&["--ack", "--window", "4"][..], &["--payload", "65000", "--window", "2"]] {
        let arguments = ["--transport", "ws", "--conns", "6", "--secs", "0.3", "--rounds", "1"];
        let report = report("pairs", &[&arguments, more].concat());
        assert!(count(&report["cases"][1]["rounds"][0]["checked"]) > 20, "{report}");
    }
}

#[test]
fn pairs_over_tls_stand_beside_native_ones_without_a_floor_of_their_own() {
    let arguments = ["--transport", "native,tls,wss", "--conns", "10", "--window", "3", "--secs", "0.3"];
    let report = report("pairs", &[&arguments[..], &["--rounds", "1", "--tls-cipher", "chacha20"]].concat());
    let cases = report["cases"].as_array().expect("cases");
    let names: Vec<_> = cases.iter().filter_map(|case| case["name"].as_str()).collect();
    assert_eq!(names, ["floor", "gateway", "gateway, TLS", "gateway, WebSocket over TLS"]);
    for case in cases {
        assert!(count(&case["rounds"][0]["checked"]) > 20, "{case}");
    }
    let over: Vec<_> = report["ratios"].as_array().expect("ratios").iter().map(|ratio| &ratio["over"]).collect();
    assert_eq!(over, ["floor", "gateway", "gateway"]);
}

#[test]
fn with_long_payloads_records_of_tls_are_put_together_again() {
    let arguments = ["--transport", "wss", "--conns", "6", "--secs", "0.3", "--rounds", "1", "--window", "2"];
    let report = report("pairs", &[&arguments[..], &["--payload", "65000", "--tls-group", "x25519"]].concat());
    assert!(count(&report["cases"][0]["rounds"][0]["checked"]) > 10, "{report}");
}

#[test]
fn scenarios_with_many_clients_run_over_tls() {
    let wss = ["--transport", "wss", "--conns", "60", "--secs", "0.5", "--control", "20"];
    let hold = report("hold", &wss);
    assert_eq!((count(&hold["held_to_the_end"]), count(&hold["lost"])), (60, 0));
    let storm = report("storm", &wss);
    assert_eq!(count(&storm["cut"]), 40);
    let all = ["--transport", "tls,wss", "--conns", "40", "--runs", "1", "--hold", "0.1", "--exchange"];
    let idle = report("idle", &[&all[..], &["--tls-cipher", "aes256"]].concat());
    let run = &idle["runs"][0];
    assert!(run["tls"]["user_rss"].is_number() && run["wss"]["user_rss"].is_number(), "{run}");
    assert_eq!(run["exchanged"].as_array().map(Vec::len), Some(2));
}

#[test]
fn handshakes_are_as_the_gateway_counts_them() {
    let few = ["--secs", "1.5", "--under-way", "8", "--control", "10", "--rate", "50", "--paced", "20"];
    let report = report("handshakes", &[&few[..], &["--flood", "100"]].concat());
    let names: Vec<_> = report["cases"].as_array().expect("cases").iter().map(|case| &case["name"]).collect();
    assert_eq!(names, ["without TLS", "full", "resumed"]);
    assert!(report["others"]["paced_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
    let flood = &report["flood"];
    assert_eq!(count(&flood["abandoned"]) + count(&flood["not_begun"]), 100, "{flood}");
    assert!(count(&flood["others"]["delivered"]) > 0, "{flood}");
}

#[test]
fn a_ticket_of_one_node_resumes_at_another() {
    // Long enough for a login on a machine that does something else.
    let few = ["--secs", "2", "--under-way", "8", "--nodes", "2"];
    let redis = redis_cluster::RedisCluster::start();
    let report = report("handshakes", &[&few[..], &["--redis", &redis.url()]].concat());
    assert!(count(&report["cases"][1]["logins"]) > 0, "{report}");
}

#[test]
fn pairs_are_held_to_a_share_of_a_core() {
    let arguments = ["--saturation", "0.2", "--conns", "10", "--secs", "0.4", "--rounds", "2"];
    let report = report("pairs", &arguments);
    for case in report["cases"].as_array().expect("cases") {
        let round = &case["rounds"][1];
        let (pace, rate) = (round["pace"].as_f64().expect("a pace"), round["rate"].as_f64().expect("a rate"));
        // A machine that does something else may be slower, and what comes of a late start is sent at once.
        assert!(rate < 1.2 * pace + 1_000.0, "{rate} messages a second, held to {pace}");
    }
}

#[test]
fn every_scenario_runs_over_websockets() {
    let ws = ["--transport", "ws"];
    let hold =
        report("hold", &[&ws[..], &["--conns", "200", "--secs", "3", "--heartbeat", "1", "--control", "20"]].concat());
    assert_eq!((count(&hold["held_to_the_end"]), count(&hold["lost"])), (200, 0));
    let storm = report("storm", &[&ws[..], &["--conns", "200", "--secs", "0.5", "--control", "20"]].concat());
    assert_eq!(count(&storm["cut"]), 180);
    let churn =
        report("churn", &[&ws[..], &["--conns", "100", "--secs", "1", "--rate", "200", "--messages", "2"]].concat());
    assert_eq!(count(&churn["delivered"]), 2 * count(&churn["visits"]));
    let both = ["--transport", "native,ws"];
    let idle = report("idle", &[&both[..], &["--conns", "100", "--runs", "1", "--hold", "0.1", "--exchange"]].concat());
    let run = &idle["runs"][0];
    assert!(run["gateway"]["user_with_start"].is_number() && run["websocket"]["user_rss"].is_number(), "{run}");
    assert_eq!(run["exchanged"].as_array().map(Vec::len), Some(2));
    let few =
        ["--conns", "10", "--window", "2", "--idle", "50", "--secs", "0.2", "--rounds", "2", "--peer", "nats-server"];
    let vs = report("vs", &[&both[..], &few].concat());
    let names: Vec<_> =
        vs["servers"].as_array().expect("servers").iter().map(|server| server["name"].clone()).collect();
    assert_eq!(names[..4], ["floor", "trunkline", "floor, WebSocket", "trunkline, WebSocket"]);
}

#[test]
fn a_request_to_become_a_websocket_that_is_refused_ends_the_run() {
    let gateway = gateway();
    let arguments =
        ["hold", "--transport", "ws", "--conns", "20", "--secs", "0.5", "--connections-max", "12", "--control", "2"];
    let output = bench(&[&arguments[..], &["--gateway-bin", gateway.to_str().expect("UTF-8")]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("503"), "{stderr}");
}

#[test]
fn a_floor_for_idle_connections_accepts_and_nothing_more() {
    let mut floor = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["floor-server", "--unarmed"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the floor starts");
    let mut said = String::new();
    BufReader::new(floor.stdout.as_mut().expect("piped")).read_line(&mut said).expect("it says where");
    let mut floor = Ended(floor);
    let address = said.trim().strip_prefix("listening on ").expect("it says where");
    let mut stream = std::net::TcpStream::connect(address).expect("accepted");
    stream.write_all(&[7; 96]).expect("the kernel takes it");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
    let error = stream.read(&mut [0; 96]).expect_err("nothing comes back, and it is not closed");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(floor.0.stdin.take());
    assert!(floor.0.wait().expect("it ends with its input").success());
}

#[test]
fn a_message_to_a_room_comes_to_everybody_from_floor_and_gateway_alike() {
    let flags = ["--members", "40", "--burst", "3", "--shards", "2", "--rounds", "1", "--secs", "0.2"];
    let report = report("fanout", &flags);
    let others = report["others"].as_array().expect("others");
    assert_eq!(others.len() + report["skipped"].as_array().expect("those that are not installed").len(), 3);
    let named = |server: &str| others.iter().find(|other| other["name"] == server).map(|other| &other["rounds"]);
    for server in ["floor", "gateway", "nats-server", "redis-server", "mosquitto"] {
        let Some(rounds) = report.get(server).or_else(|| named(server)) else { continue };
        let round = &rounds[0];
        assert_eq!(count(&round["deliveries"]), count(&round["casts"]) * 3 * 39, "{server}: {round}");
        assert!(round["cpu_us"].as_f64().expect("a number") > 0.0, "{server}: {round}");
        assert!(round["first_ms"].as_f64() <= round["last_ms"].as_f64(), "{server}: {round}");
    }
    assert!(report["over_floor"]["median"].as_f64().expect("a ratio") > 0.0, "{report}");
    for other in others {
        assert!(other["over_gateway"]["median"].is_number() && other["over_floor"]["median"].is_number(), "{other}");
    }
    complaint(&["fanout", "--peer", "rumqttd"], 1, &["rumqttd", "mosquitto"]);
}

#[test]
fn members_that_stop_reading_have_everything_in_the_end_and_the_others_miss_nothing() {
    let flags = ["--members", "20", "--slow-percent", "10", "--payload", "16384", "--burst", "7"];
    let report = report("fanout", &[&flags[..], &["--rounds", "1", "--secs", "1.3"]].concat());
    let round = &report["rounds"][0];
    let [dropped, replayed, overtaken] = ["dropped", "replayed", "overtaken"].map(|name| count(&round[name]));
    assert!(dropped > 0, "the outboxes of two members were full: {round}");
    assert_eq!(replayed, dropped + overtaken, "{round}");
    assert!(count(&round["heads"]) >= 2 && count(&round["pages"]) >= 2, "{round}");
    for stretch in ["without", "with"].map(|name| &round[name]) {
        assert_eq!(count(&stretch["deliveries"]), count(&stretch["casts"]) * 7 * 17, "{stretch}");
    }
    assert!(report["p99_ratio"]["median"].as_f64().expect("a ratio") > 0.0, "{report}");
    complaint(&["fanout", "--slow-percent", "5", "--nodes", "2"], 1, &["--slow-percent", "--nodes"]);
}

#[test]
fn a_message_to_a_room_of_several_nodes_crosses_each_link_once() {
    let flags = ["--members", "12", "--burst", "3", "--nodes", "3", "--rounds", "1", "--secs", "0.3"];
    let report = report("fanout", &flags);
    for round in ["one", "several"].map(|name| &report[name][0]) {
        assert_eq!(count(&round["deliveries"]), count(&round["casts"]) * 3 * 11, "{round}");
    }
    let [messages, sent, received] = ["messages", "sent", "received"].map(|name| count(&report["copies"][name]));
    assert_eq!((messages, sent), (3 * count(&report["several"][0]["casts"]), 2 * messages), "{report}");
    assert_eq!(received, sent, "{report}");
    assert!(report["over_one"]["median"].as_f64().expect("a ratio") > 0.0, "{report}");
}

#[test]
fn members_of_a_room_are_on_several_threads_on_shared_cores() {
    let cores = shared_cores();
    let flags = ["--members", "40", "--burst", "3", "--rounds", "1", "--secs", "0.2", "--shared-cores", &cores];
    let report = report("fanout", &flags);
    let round = &report["gateway"][0];
    assert_eq!(count(&round["deliveries"]), count(&round["casts"]) * 3 * 39, "{round}");
    assert!(round["first_ms"].as_f64() <= round["last_ms"].as_f64(), "{round}");
    assert!(report["floor"].as_array().is_some_and(Vec::is_empty), "the floor has one core: {report}");
}

#[test]
fn pairs_across_nodes_cross_as_many_links_as_they_should_and_redis_sees_none_of_it() {
    let report = report("pairs", &["--nodes", "3", "--guests", "--conns", "24", "--secs", "0.5", "--rounds", "1"]);
    let cases = report["cases"].as_array().expect("cases");
    let named = |case: &Value| (case["placement"].as_str().expect("a word").to_owned(), case["name"].clone());
    let placements: Vec<String> = cases.iter().map(|case| named(case).0).collect();
    assert_eq!(placements, ["local", "remote", "guests-together", "guests-apart"]);
    for (case, links) in cases.iter().zip([0, 1, 2, 2]) {
        let round = &case["rounds"][0];
        let messages = count(&round["checked"]);
        assert!(messages > 100, "{round}");
        let crossings = &round["crossings"];
        assert_eq!(crossings.is_object(), links > 0);
        if links > 0 {
            assert_eq!((count(&crossings["away"]), count(&crossings["forwarded"])), (messages, 0));
            // Besides messages there are a few of views, where somebody was silent for as long as a lease lasts.
            let records = links * messages;
            let crossed = count(&crossings["records"]);
            assert!((records..=records + records / 100).contains(&crossed), "{crossed} records, not {records}");
        }
        assert_eq!(count(&round["redis"]["messages"]), messages);
        // Leases and polls go on: some for each node and second, and nothing near one for a message.
        let (busy, quiet) = (count(&round["redis"]["total"]), count(&case["redis_quiet"]["total"]));
        assert!(
            busy > 0 && quiet > 0 && busy < messages / 4 + 200,
            "{busy} commands, {quiet} without {messages} messages"
        );
        assert!(round["redis"]["by_name"].get("info").is_none(), "{}", round["redis"]);
    }
    assert_eq!(report["ratios"].as_array().map(Vec::len), Some(3));
    assert_eq!((count(&report["arguments"]["nodes"]), report["arguments"].get("redis")), (3, None));
}

#[test]
fn pairs_of_a_cluster_of_one_have_the_floor_beside_them() {
    let report = report("pairs", &["--redis", "--ack", "--conns", "10", "--secs", "0.3", "--rounds", "1"]);
    let cases = report["cases"].as_array().expect("cases");
    assert_eq!((cases[0]["name"].as_str(), cases[1]["name"].as_str()), (Some("floor"), Some("gateway")));
    assert!(cases[0].get("redis_quiet").is_none() && cases[1]["redis_quiet"].is_object());
}

#[test]
fn rate_across_nodes_of_a_redis_cluster_that_runs_already() {
    let redis = redis_cluster::RedisCluster::start();
    let url = redis.url();
    let arguments =
        ["--nodes", "2", "--redis", &url, "--conns", "50", "--talkers", "40", "--rate", "500", "--secs", "1"];
    // Twice: nodes of the first run are remembered there for a while.
    for _ in 0..2 {
        let report = report("rate", &arguments);
        let messages = count(&report["messages"]);
        assert!(messages > 400, "{messages}");
        assert_eq!(count(&report["crossings"]["records"]), messages);
        assert!(report["steps"][0]["redis"].is_object() && report["redis_quiet"].is_object());
        thread::sleep(Duration::from_secs(6));
    }
}

#[test]
fn hold_waits_until_redis_has_the_presence_of_all() {
    for nodes in ["1", "2"] {
        let arguments = ["--nodes", nodes, "--redis", "--conns", "400", "--secs", "1", "--control", "20"];
        let report = report("hold", &arguments);
        assert_eq!(count(&report["held_to_the_end"]), 400);
        let presence = &report["presence"];
        assert!(count(&presence["written"]) >= 400, "{presence}");
        assert_eq!((count(&presence["refused"]), count(&presence["resyncs"])), (0, 0), "{presence}");
        assert!(report["logins_per_second_and_node"].as_f64().is_some_and(|rate| rate > 0.0));
    }
}

/// Processes of a bench's own Redis Cluster, by the folder they work in.
fn redis_servers_of(bench: u32) -> usize {
    let folder = std::env::temp_dir().join(format!("trunkline-bench-redis-{bench}"));
    let processes = fs::read_dir("/proc").expect("there").map_while(Result::ok);
    let is_one = |process: &fs::DirEntry| {
        fs::read_link(process.path().join("cwd")).is_ok_and(|works_in| works_in.starts_with(&folder))
    };
    processes.filter(is_one).count()
}

/// A process that does not outlive a test that fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_redis_cluster_of_a_bench_ends_with_it_however_that_ends() {
    let gateway = gateway();
    let arguments = ["pairs", "--nodes", "2", "--secs", "60", "--gateway-bin", gateway.to_str().expect("UTF-8")];
    for signal in ["-INT", "-KILL"] {
        // Whoever runs the tests in the background may have had SIGINT ignored, which children inherit.
        let bench = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_bench")])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the bench starts");
        let mut bench = Ended(bench);
        let folder = std::env::temp_dir().join(format!("trunkline-bench-redis-{}", bench.0.id()));
        redis_cluster::wait_until("six servers run", || redis_servers_of(bench.0.id()) >= 6);
        let status = Command::new("kill").args([signal, &bench.0.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
        bench.0.wait().expect("it was started here");
        redis_cluster::wait_until("no server is left", || redis_servers_of(bench.0.id()) == 0);
        redis_cluster::wait_until("their folder is gone", || !folder.exists());
    }
}

#[test]
fn a_redis_server_that_is_not_installed_is_named_with_the_fix() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["pairs", "--nodes", "2"])
        .env("PATH", "/nowhere")
        .output()
        .expect("the bench starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("apt-get install redis-server") && stderr.contains("--redis"), "{stderr}");
}

#[test]
fn storm_brings_everybody_back_and_no_message_is_missing() {
    let storm = ["--conns", "500", "--secs", "1", "--control", "20", "--rate", "500"];
    for cores in [&[][..], &["--shared-cores", &shared_cores()]] {
        let report = report("storm", &[&storm, cores].concat());
        assert_eq!(count(&report["cut"]), 480);
        assert!(count(&report["messages"]) > 500);
        let peak = &report["memory_peak_ratio"];
        assert!(peak.as_f64().is_some_and(|ratio| ratio >= 1.0), "{peak}");
    }
}

#[test]
fn after_a_storm_everybody_gets_what_was_kept_meanwhile() {
    let storm = ["--conns", "200", "--secs", "0.5", "--control", "20", "--rate", "200", "--backlog", "3"];
    let report = report("storm", &storm);
    assert_eq!((count(&report["cut"]), count(&report["backlog"]["messages"])), (180, 540));
    assert_eq!(count(&report["backlog"]["kept"]["messages"]), 540);
    let seconds = |field: &Value| field.as_f64().expect("seconds");
    assert!(seconds(&report["backlog"]["seconds_until_all"]) >= seconds(&report["seconds_until_back"]), "{report}");
}

#[test]
fn what_is_kept_for_users_who_are_away_is_answered_once_and_read_back() {
    let few = ["--senders", "4", "--recipients", "90", "--secs", "0.2", "--rounds", "1", "--burst", "700"];
    let only = ["--in-flight", "1,24", "--burst-window", "100", "--only", "floor,trunkline,redis-always,jetstream"];
    let report = report("store", &[&few[..], &only].concat());
    let servers = report["servers"].as_array().expect("servers");
    let names: Vec<_> = servers.iter().map(|server| server["name"].as_str().expect("a name")).collect();
    assert_eq!(names[..2], ["floor", "trunkline"], "the others where they are installed");
    for server in servers {
        assert!(server["failed"].is_null(), "{server}");
        let rounds = server["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.iter().map(|round| round["burst"] == true).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(count(&rounds[2]["messages"]), 700, "{server}");
        assert!(count(&server["answered"]) > 700 && count(&rounds[0]["latency"]["count"]) > 0, "{server}");
    }
    assert_eq!(servers[1]["read_back"], servers[1]["answered"], "each user is one of those looked at");
}

#[test]
fn who_comes_for_what_was_kept_gets_all_of_it_and_then_nothing_more() {
    let few = ["--senders", "3", "--users", "50", "--messages", "70", "--in-flight", "500", "--rounds", "2"];
    for more in [&["--restart"][..], &["--window", "8", "--payload", "300"]] {
        let report = report("replay", &[&few[..], more].concat());
        let rounds = report["rounds"].as_array().expect("rounds");
        assert_eq!(rounds.iter().map(|round| count(&round["messages"])).collect::<Vec<_>>(), [3_500, 3_500]);
        assert!(rounds[0]["seconds_until_let_go"].is_number() && rounds[0]["rate"].is_number(), "{report}");
    }
}

#[test]
fn slow_accounts_for_every_message_that_was_dropped() {
    let report = report(
        "slow",
        // A slow reader gets 9.6 MB, and the kernel holds some 4 of them.
        &[
            "--conns",
            "20",
            "--secs",
            "16",
            "--rounds",
            "1",
            "--rate",
            "750",
            "--payload",
            "16000",
            "--gateway-arg=--outbox-bytes-max=4MiB",
        ],
    );
    let lossy = &report["lossy"];
    let dropped: u64 = report["dropped"].as_object().expect("by kind").values().map(count).sum();
    assert!(dropped > 0, "nothing was dropped: {report}");
    // Where the machine is too busy for the others to keep up, they miss some too.
    assert_eq!(count(&lossy["sent"]) + count(&report["missed"]), count(&lossy["delivered"]) + dropped);
}

#[test]
fn churn_lets_every_visitor_in_and_out() {
    let report = report("churn", &["--conns", "200", "--secs", "2", "--rate", "300", "--messages", "2"]);
    let visits = count(&report["visits"]);
    assert!(visits > 100, "{visits}");
    assert_eq!(count(&report["delivered"]), 2 * visits);
}

#[test]
fn vs_goes_on_without_a_peer_that_does_not_start() {
    let programs = std::env::temp_dir().join(format!("bench-peers-{}", std::process::id()));
    fs::create_dir_all(&programs).expect("made");
    let program = programs.join("mosquitto");
    // It has a version, and no more.
    fs::write(&program, "#!/bin/sh\n[ \"$1\" = -h ] && echo mosquitto version 0.0.0 || exit 7\n").expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let arguments =
        ["--conns", "10", "--window", "1", "--idle", "20", "--secs", "0.2", "--rounds", "2", "--peer", "mosquitto"];
    let vs = report_with_path("vs", &arguments, Some(&programs));
    fs::remove_dir_all(&programs).expect("there");
    let servers = vs["servers"].as_array().expect("servers");
    let rounds = |server: &Value| server["rounds"].as_array().map(Vec::len);
    assert_eq!(servers.iter().map(rounds).collect::<Vec<_>>(), [Some(2), Some(2), Some(0)]);
    let failed = servers[2]["failed"].as_str().expect("it says why");
    assert!(failed.contains("mosquitto ended before it listened"), "{failed}");
}

#[test]
fn vs_measures_floor_and_gateway_and_plot_draws_what_was_measured() {
    let folder = std::env::temp_dir().join(format!("bench-plots-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("made");
    let write = |name: &str, report: &Value| {
        let path = folder.join(name);
        fs::write(&path, report.to_string()).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let vs = report(
        "vs",
        &[
            "--conns",
            "10",
            "--window",
            "1,4",
            "--idle",
            "50",
            "--secs",
            "0.3",
            "--rounds",
            "1",
            "--peer",
            "nats-server",
        ],
    );
    let servers = vs["servers"].as_array().expect("servers");
    assert_eq!((servers[0]["name"].as_str(), servers[1]["name"].as_str()), (Some("floor"), Some("trunkline")));
    assert!(servers.iter().all(|server| server["rounds"].as_array().is_some_and(|rounds| rounds.len() == 2)));
    assert!(servers.len() == 3 || vs["skipped"][0][1].as_str().is_some_and(|install| install.contains("install")));
    let rate = report("rate", &["--conns", "10", "--rate", "100,200", "--secs", "0.3"]);
    let hold = report("hold", &["--conns", "100", "--secs", "0.5"]);
    let files = [write("vs.json", &vs), write("rate.json", &rate), write("hold.json", &hold)];
    let out = folder.to_str().expect("UTF-8");
    let output = bench(&["plot", &files[0], &files[1], &files[2], "--out", out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["cpu.svg", "idle.svg", "latency.svg", "memory.svg"] {
        let picture = fs::read_to_string(folder.join(name)).expect(name);
        assert!(picture.starts_with("<svg") && picture.contains("</svg>"), "{name}");
    }
    fs::remove_dir_all(&folder).expect("there");
}

#[test]
fn calls_are_answered_by_a_worker_and_by_an_http_server_and_others_are_measured_beside() {
    let few = ["--conns", "10", "--secs", "0.3", "--rounds", "1"];
    let calls = report("calls", &few);
    let cases = calls["cases"].as_array().expect("cases");
    let named = |name: &str| cases.iter().find(|case| case["name"] == name).expect("a case");
    for name in ["floor", "gateway, worker", "gateway, HTTP"] {
        assert!(named(name)["rounds"][0]["messages"].as_u64().is_some_and(|calls| calls > 0), "{name}");
    }
    let skipped = calls["skipped"].as_array().expect("those that are not installed");
    assert_eq!(cases.len() + skipped.len(), 6);
    assert!(cases.iter().all(|case| case["failed"].is_null()), "{cases:?}");
    assert!(calls["ratios"].as_array().is_some_and(|ratios| ratios.iter().any(|ratio| ratio["over"] == "floor")));
    complaint(&["calls", "--peer", "apache"], 1, &["apache", "haproxy"]);
}

#[test]
fn what_is_pushed_comes_to_each_user_once_by_a_link_by_http_and_to_all() {
    let sizes = ["--users", "20", "--clients", "4", "--batches", "2", "--lines", "15", "--broadcast-per-sec", "100"];
    let push = report("push", &[&sizes[..], &["--secs", "0.2", "--rounds", "1"]].concat());
    let cases = push["cases"].as_array().expect("cases");
    let named = |name: &str| cases.iter().find(|case| case["name"] == name).expect("a case");
    for name in ["messages", "pushes", "messages, ACK", "pushes, fates", "POST push", "POST batch"] {
        let round = &named(name)["rounds"][0];
        assert!(count(&round["messages"]) > 0 && count(&round["checked"]) >= count(&round["messages"]), "{round}");
        let of_services = round["services_cpu_us"].as_f64();
        assert_eq!(of_services.is_some_and(|cpu_us| cpu_us > 0.0), name.starts_with("POST"), "{name}: {round}");
    }
    assert_eq!(count(&named("to all")["casts"][0]["sessions"]), 20);
    let over = |ratio: &Value| (ratio["case"].clone(), ratio["over"].clone());
    assert_eq!(
        push["ratios"].as_array().expect("ratios").iter().map(over).collect::<Vec<_>>(),
        [("pushes".into(), "messages".into()), ("pushes, fates".into(), "messages, ACK".into())]
    );
    complaint(&["push", "--lines", "1000", "--payload", "16384"], 1, &["--lines", "--payload"]);
}

#[test]
fn every_watcher_knows_the_last_state_of_each_of_its_users_in_the_end() {
    let report =
        report("watch", &["--users", "30", "--watches", "70", "--each", "20", "--changes", "60", "--secs", "0.5"]);
    assert_eq!((count(&report["watchers"]), count(&report["changes"])), (4, 30), "{report}");
    let (told, memory) = (&report["told"], &report["memory"]);
    assert!(count(&told["states"]) > 70 && count(&told["changes"]) > 0, "each was answered, and who has gone: {told}");
    assert!(count(&told["most_of_one"]) <= count(&told["most_of_one_allowed"]), "{told}");
    assert!(memory["tables_per_watch"].as_f64().is_some_and(|bytes| bytes > 0.0), "{memory}");
    assert!(count(&report["last_offline"]["count"]) > 0 && report["all_true_secs"].as_f64() > Some(5.0), "{report}");
    complaint(&["watch", "--each", "3", "--users", "2"], 1, &["--each 3", "--users 2"]);
}

/// What a run says that must fail, and how.
#[track_caller]
pub(crate) fn complaint(arguments: &[&str], status: i32, parts: &[&str]) {
    let output = bench(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: {part:?} is not in {stderr:?}");
    }
}
