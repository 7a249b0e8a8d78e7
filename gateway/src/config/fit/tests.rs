use super::*;
use crate::config::{Config, ConfigFile, Sources};
use proptest::prelude::*;
use std::path::Path;

const CLUSTER: &str = "redis = \"redis-cluster://127.0.0.1:7000\"\ncluster_secret_file = \"s\"\n";

fn host(cores: u64, nofile_hard: u64, memory_available: u64) -> Host {
    Host { cores, nofile_hard, memory_available, name: "h".to_owned() }
}

fn resolved(text: &str, host: &Host) -> Config {
    let file = ConfigFile::parse(Path::new("some.toml"), text).expect(text);
    Config::resolve(Sources { file: Some(file), ..Sources::default() }, host).expect(text)
}

/// The same settings with one of the printed remedies taken.
fn with_remedy(text: &str, remedy: &str) -> String {
    let (flag, value) = remedy.split_once(' ').expect(remedy);
    let key = flag.strip_prefix("--").expect(remedy).replace('-', "_");
    let others = text.lines().filter(|line| !line.starts_with(&format!("{key} = "))).map(|line| format!("{line}\n"));
    format!("{}{key} = {}\n", others.collect::<String>(), quoted(value))
}

fn quoted(value: &str) -> String {
    if value.parse::<u64>().is_ok() { value.to_owned() } else { format!("\"{value}\"") }
}

fn assert_fits(config: &Config, host: &Host) {
    let budget = Budget::of(config);
    if let Err(error) = budget.check() {
        panic!("{host:?}: {error}\n{budget}");
    }
    assert_eq!(budget.overcommitted(), None, "{host:?}\n{budget}");
    assert!(config.limits().connections_max >= 64, "{host:?}\n{budget}");
}

#[test]
fn the_defaults_fit_from_64_mib_to_16_gib_on_1_to_64_cores() {
    for cluster in ["", CLUSTER] {
        for mib in [64, 80, 96, 109, 128, 192, 224, 256, 384, 512, 768, 1_024, 2_048, 4_096, 8_192, 16_384] {
            // Few of them all, and of the many those on both sides of where something changes.
            for cores in [1, 2, 3, 4, 6, 8, 15, 16, 17, 32, 33, 63, 64] {
                for nofile_hard in [1_024, 20_000, 1 << 20, u64::MAX] {
                    let host = host(cores, nofile_hard, mib << 20);
                    assert_fits(&resolved(cluster, &host), &host);
                }
            }
        }
    }
}

#[test]
fn the_defaults_fit_with_tls_of_the_http_api_too() {
    let tls = "http_tls_cert = \"c\"\nhttp_tls_key = \"k\"\n";
    let for_backends = format!("{tls}services_http = \"127.0.0.1:7792\"\n");
    for text in [tls, &for_backends] {
        for mib in [256, 384, 512, 1_024, 2_048, 4_096] {
            for cores in [1, 2, 4, 16] {
                let host = host(cores, 1 << 20, mib << 20);
                assert_fits(&resolved(text, &host), &host);
            }
        }
    }
}

#[test]
fn sixteen_shards_in_512_mib_and_shards_by_hand_start() {
    for (mib, shards) in [(512, 16), (256, 8), (224, 4), (128, 4), (64, 1), (4_096, 64), (16_384, 64)] {
        let host = host(2, 1 << 20, mib << 20);
        let config = resolved(&format!("shards = {shards}\n"), &host);
        assert_eq!(u64::from(config.shards), shards);
        assert_fits(&config, &host);
    }
}

#[test]
fn one_shard_for_each_core_where_memory_allows_it() {
    let shards = |cores, mib: u64| resolved("", &host(cores, 1 << 20, mib << 20)).shards;
    assert_eq!((shards(4, 16_384), shards(64, 16_384), shards(16, 1_024)), (4, 64, 16));
    assert_eq!(shards(64, 64), 1);
    assert!((2..64).contains(&shards(64, 512)));
}

#[test]
fn more_memory_never_makes_a_default_smaller_by_much() {
    // The steps of the search for connections are a sixteenth.
    let mut before = 0;
    for mib in (64..2_048).step_by(16) {
        let connections = u64::from(resolved("shards = 1\n", &host(1, 1 << 20, mib << 20)).limits().connections_max);
        assert!(connections >= before / 8 * 7, "{connections} after {before} with {mib} MiB");
        before = connections;
    }
    assert!(before > 80_000, "{before}");
}

#[test]
fn what_the_kernel_holds_fits_beside_the_process() {
    for mib in [64, 256, 1_024] {
        let host = host(2, 1 << 20, mib << 20);
        let budget = Budget::of(&resolved("", &host));
        assert!(budget.total() + budget.kernel_bytes() <= host.memory_available, "{budget}");
    }
    // What is asked for by hand is granted, with a word and with advice that helps.
    let host = host(2, 1 << 20, 256 << 20);
    let text = "connections_max = 100000\nmemory_max = \"240MiB\"\n";
    let word = Budget::of(&resolved(text, &host)).overcommitted().expect("a warning");
    let advice = word.rsplit_once(": ").and_then(|(_, advice)| advice.strip_suffix(" avoids it")).expect(&word);
    let followed = resolved(&with_remedy(text, advice), &host);
    assert_eq!(Budget::of(&followed).overcommitted(), None, "{advice}");
}

#[test]
fn every_remedy_that_is_printed_helps() {
    let mut seen = Vec::new();
    for (text, mib) in [
        ("", 32),
        ("shards = 64\n", 64),
        ("shards = 64\n", 256),
        ("shards = 1000\n", 16_384),
        ("memory_max = \"16MiB\"\n", 4_096),
        ("memory_max = \"64MiB\"\nshards = 16\n", 512),
        ("shards = 2\nmemory_max = \"64MiB\"\noutbox_total_bytes_max = \"4GiB\"\nconnections_max = 1000\n", 16_384),
        ("connections_max = 1000000\nshards = 2\n", 256),
        ("shards = 16\nmailbox_bytes_max = \"64MiB\"\n", 1_024),
        ("frame_bytes_max = \"15MiB\"\noutbox_bytes_max = \"16MiB\"\nshards = 4\n", 512),
        ("recv_buffer_bytes = \"512MiB\"\nshards = 4\n", 512),
        ("unacked_total_bytes_max = \"1GiB\"\npartial_bytes_max = \"1GiB\"\nshards = 4\n", 4_096),
    ] {
        for cluster in ["", CLUSTER] {
            if !cluster.is_empty() && text.contains("15MiB") {
                // Such frames are refused in a cluster.
                continue;
            }
            let (text, host) = (format!("{text}{cluster}"), host(8, 1 << 20, mib << 20));
            let config = resolved(&text, &host);
            let budget = Budget::of(&config);
            let message = budget.check().expect_err(&text).to_string();
            assert!(!config.remedies.is_empty(), "{message}");
            for remedy in &config.remedies {
                assert!(message.contains(remedy), "no {remedy} in {message}");
                let (followed, host) = match remedy.strip_prefix("a machine or a control group with ") {
                    Some(size) => {
                        (text.clone(), Host { memory_available: size.parse::<Size>().unwrap().0, ..host.clone() })
                    }
                    None => (with_remedy(&text, remedy), host.clone()),
                };
                if let Err(error) = Budget::of(&resolved(&followed, &host)).check() {
                    panic!("{remedy} was followed, and: {error}\nbefore: {message}");
                }
                seen.push(remedy.split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }
    for kind in
        ["--shards", "--memory-max", "--connections-max", "--outbox-total-bytes-max", "--mailbox-bytes-max", "a"]
    {
        assert!(seen.iter().any(|seen| seen == kind), "{kind} was never printed: {seen:?}");
    }
}

proptest! {
    #[test]
    fn the_defaults_fit_every_machine(
        mib in 64_u64..16_384, cores in 1_u64..=64, nofile_hard in 1_024_u64..2_000_000, in_cluster: bool,
    ) {
        let host = host(cores, nofile_hard, mib << 20);
        assert_fits(&resolved(if in_cluster { CLUSTER } else { "" }, &host), &host);
    }

    #[test]
    fn shards_by_hand_start_or_are_refused_with_a_number_that_starts(mib in 64_u64..16_384, shards in 1_u64..=64) {
        let host = host(4, 1 << 20, mib << 20);
        let text = format!("shards = {shards}\n");
        let config = resolved(&text, &host);
        if Budget::of(&config).check().is_ok() {
            assert_fits(&config, &host);
        } else {
            let remedy = config.remedies.iter().find(|remedy| remedy.starts_with("--shards "));
            let remedy = remedy.expect("a number of shards");
            assert_fits(&resolved(&with_remedy(&text, remedy), &host), &host);
        }
    }
}
