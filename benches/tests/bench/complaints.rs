//! What the bench says when a run cannot be done, or ends half way.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::scenarios::{bench, complaint, gateway};

#[test]
fn a_wrong_flag_is_named() {
    complaint(&["hold", "--conns", "many"], 2, &["--conns", "many"]);
    complaint(&["hold", "--cons", "5"], 2, &["--cons"]);
    complaint(&["hold", "--control", "3"], 1, &["--control", "even"]);
    complaint(&["hold", "--secs", "0"], 1, &["--secs", "seconds"]);
    complaint(&["hold", "--shared-cores", "1024"], 1, &["--shared-cores 1024", "may use"]);
    complaint(&["hold", "--shared-cores", "1", "--nodes", "2"], 1, &["--shared-cores", "--nodes"]);
    complaint(&["storm", "--shared-cores", "2", "--shards", "3"], 1, &["--shared-cores 2"]);
    complaint(&["rate", "--rate=-1"], 1, &["--rate", "per second"]);
    complaint(&["rate", "--rate", "0"], 1, &["--rate", "per second"]);
    complaint(&["churn", "--rate", "1e12"], 1, &["--rate", "per second"]);
    complaint(&["slow", "--share", "2"], 1, &["--share"]);
    complaint(&["storm", "--login-rate", "0"], 1, &["--login-rate"]);
    complaint(&["vs", "--peer", "nobody"], 1, &["nobody", "nats-server"]);
    complaint(&["pairs", "--nodes", "10"], 2, &["--nodes", "1..=9"]);
    complaint(&["pairs", "--transport", "carrier-pigeon"], 2, &["carrier-pigeon", "native, ws"]);
    complaint(&["pairs", "--saturation", "7"], 1, &["--saturation"]);
    complaint(&["pairs", "--guests"], 1, &["--guests", "--nodes 2"]);
    complaint(&["pairs", "--nodes", "2", "--shards", "2", "--across"], 1, &["--across", "shards of one gateway"]);
    let pid = std::process::id().to_string();
    let running = ["rate", "--nodes", "2", "--gateway", "127.0.0.1:7700", "--gateway-pid", &pid];
    complaint(&running, 1, &["--nodes", "--gateway"]);
    complaint(&["rate", "--redis", "redis://127.0.0.1:7000"], 1, &["--redis", "redis-cluster"]);
    complaint(&["plot", "/nowhere/x.json"], 1, &["/nowhere/x.json"]);
    complaint(&["hold", "--gateway-bin", "/nowhere/gateway", "--conns", "10"], 1, &["/nowhere/gateway", "cargo build"]);
}

#[test]
fn a_target_that_is_not_on_loopback_is_refused() {
    let pid = std::process::id().to_string();
    let arguments = ["rate", "--gateway", "192.0.2.1:7700", "--gateway-pid", &pid, "--conns", "2"];
    complaint(&arguments, 1, &["192.0.2.1:7700", "--beyond-loopback"]);
    let redis = ["rate", "--redis", "redis-cluster://192.0.2.1:7000"];
    complaint(&redis, 1, &["192.0.2.1:7000", "not on loopback"]);
}

#[test]
fn a_dead_target_ends_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let pid = std::process::id().to_string();
    let arguments = ["rate", "--gateway", &address, "--gateway-pid", &pid, "--conns", "50"];
    complaint(&arguments, 1, &["not one login succeeded", &address, "refused"]);
}

/// A gateway that is killed or stopped while clients are held.
fn during_a_hold(signal: &str) -> (Option<i32>, String) {
    let mut server = Command::new(gateway())
        .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the gateway starts");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.strip_prefix("listening on ")?.to_owned())).expect("it says where");
    let pid = server.id().to_string();
    let (signalled, signal) = (pid.clone(), signal.to_owned());
    let killer = thread::spawn(move || {
        // Long after all are in, long before the end.
        thread::sleep(Duration::from_secs(4));
        Command::new("kill").args([&signal, &signalled]).status().expect("kill runs")
    });
    let output = bench(&[
        "rate",
        "--gateway",
        &address,
        "--gateway-pid",
        &pid,
        "--conns",
        "50",
        "--secs",
        "60",
        "--rate",
        "100",
        "--heartbeat",
        "3",
    ]);
    assert!(killer.join().expect("no panic").success());
    server.kill().expect("it is still to be waited for");
    server.wait().expect("it was started here");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_target_that_dies_half_way_ends_the_run() {
    let (status, stderr) = during_a_hold("-KILL");
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("ended during the run"), "{stderr}");
}

#[test]
fn a_target_that_falls_silent_half_way_ends_the_run() {
    let (status, stderr) = during_a_hold("-STOP");
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("no PONG for a whole heartbeat"), "{stderr}");
}

#[test]
fn too_few_descriptors_are_named_with_the_fix() {
    let script = format!("ulimit -n 200; exec timeout 60 {} rate --conns 1000", env!("CARGO_BIN_EXE_bench"));
    let output = Command::new("sh").args(["-c", &script]).output().expect("sh runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("ulimit -n"), "{stderr}");
}
