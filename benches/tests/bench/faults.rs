//! What `bench` finds between itself and a gateway: messages that are lost, doubled, overtaken or altered end a run
//! with exit status 1 and the name of the first one, and a pause is in the latencies, also when a measurement ends
//! within it.

use std::time::Duration;

use serde_json::Value;

use crate::{
    proxy::{Fault, Proxied},
    scenarios::{bench, report_of},
};

const STALL: Duration = Duration::from_secs(4);
/// A measurement in which a server stood for so long shows that, whenever it ended.
const STALL_SEEN_US: f64 = 2e6;

/// Scenarios with messages, and what they are started with. Each delivers more than 300 messages in a second and lasts
/// for a minute unless something is wrong.
const PAIRS: [&str; 11] = ["pairs", "--conns", "4", "--window", "2", "--warmup", "0", "--rounds", "1", "--shards", "2"];
const RATE: [&str; 7] = ["rate", "--conns", "4", "--rate", "2000", "--secs", "60"];

fn complaint(arguments: &[&str], fault: Fault) -> String {
    let proxied = Proxied::start(fault, 300);
    let more = proxied.arguments();
    let arguments: Vec<&str> = arguments.iter().copied().chain(more.iter().map(String::as_str)).collect();
    let output = bench(&arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{fault:?}: {arguments:?}: {stderr}");
    stderr
}

#[test]
fn a_proxy_that_changes_what_it_passes_on_is_found() {
    let faults = [
        (Fault::Drop, "lost or overtaken"),
        (Fault::Double, "was delivered twice"),
        (Fault::Reorder, "lost or overtaken"),
        (Fault::CorruptPayload, "arrived with another payload"),
        (Fault::CorruptTime, "arrived with another payload"),
    ];
    for (fault, what) in faults {
        for scenario in [&[&PAIRS[..], &["--within", "--secs", "60"]].concat(), &RATE[..]] {
            let said = complaint(scenario, fault);
            assert!(said.contains("message") && said.contains(what), "{fault:?}: {scenario:?}: {said}");
        }
    }
    let marked = complaint(&[&PAIRS[..], &["--within", "--secs", "60", "--ack"]].concat(), Fault::MarkAgain);
    assert!(marked.contains("marked AGAIN, but for the first time"), "{marked}");
    // Nobody has asked for an acknowledgement, so nothing can be sent again.
    let marked = complaint(&RATE, Fault::MarkAgain);
    assert!(marked.contains("arrived with another flags"), "{marked}");
}

/// A report of a scenario in which the proxy passes nothing on from message `at` on for 4 s, and what was printed.
fn with_stall(arguments: &[&str], at: u64) -> (Value, String) {
    let proxied = Proxied::start(Fault::Stall(STALL), at);
    report_of(arguments, &proxied.arguments())
}

#[track_caller]
fn assert_shows_stall(latency: &Value, count_min: u64) {
    let p99_us = latency["p99_us"].as_f64().expect("a number");
    assert!(p99_us > STALL_SEEN_US, "a pause of {STALL:?} is not in {latency}");
    assert!(latency["count"].as_u64().is_some_and(|count| count >= count_min), "{latency}");
}

#[test]
fn a_pause_in_which_an_open_loop_ends_is_in_its_p99() {
    // A second to warm up and two to measure; the pause begins in the second of those and ends after it.
    let (rate, printed) = with_stall(&["rate", "--conns", "10", "--rate", "200", "--secs", "2"], 500);
    let step = &rate["steps"][0];
    assert_shows_stall(&step["messages"], 380);
    assert_eq!(step["asked"], step["delivered"], "every message that was to be sent is accounted for");
    assert!(step["in_time_share"].as_f64().is_some_and(|share| share < 0.9), "{step}");
    assert!(printed.contains("had arrived when the step was over"), "{printed}");

    // The messages begin a second after the clients are in.
    let arguments = ["hold", "--conns", "12", "--control", "10", "--rate", "200", "--secs", "4"];
    let (hold, _) = with_stall(&arguments, 450);
    assert_shows_stall(&hold["held"]["messages"], 400);

    let arguments = ["storm", "--conns", "20", "--control", "4", "--rate", "200", "--secs", "2"];
    let (storm, _) = with_stall(&arguments, 650);
    assert_shows_stall(&storm["after"]["messages"], 350);
}

#[test]
fn a_pause_in_which_a_closed_loop_ends_is_in_its_p99_and_is_warned_of() {
    let (pairs, printed) = with_stall(&[&PAIRS[..], &["--within", "--secs", "1"]].concat(), 20);
    let round = &pairs["cases"][0]["rounds"][0];
    assert_shows_stall(&round["latency_corrected"], 20);
    assert!(round["latency"]["max_us"].as_f64().is_some_and(|max_us| max_us > STALL_SEEN_US), "{round}");
    assert!(round["silence_ms"].as_f64().is_some_and(|ms| ms * 1e3 > STALL_SEEN_US), "{round}");
    assert!(printed.contains("no message arrived for"), "{printed}");

    // Where the pause begins before the measurement, it is in that as well.
    let arguments = ["vs", "--conns", "4", "--window", "1", "--idle", "0", "--secs", "6", "--rounds", "1"];
    let (vs, printed) = with_stall(&[&arguments[..], &["--peer", "nats-server"]].concat(), 20);
    assert_shows_stall(&vs["servers"][1]["rounds"][0]["latency_corrected"], 4);
    assert!(printed.contains("no message arrived for"), "{printed}");
}

#[test]
fn a_proxy_that_passes_everything_on_is_not_complained_about() {
    let proxied = Proxied::start(Fault::None, 0);
    let (rate, printed) = report_of(&["rate", "--conns", "10", "--rate", "200", "--secs", "1"], &proxied.arguments());
    let step = &rate["steps"][0];
    assert_eq!((&step["asked"], &step["delivered"]), (&step["messages"]["count"], &step["messages"]["count"]));
    assert!(printed.contains("each delivered once"), "{printed}");
}
