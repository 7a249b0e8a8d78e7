use super::*;
use crate::config::Size;
use crate::config::testing::resolve;
use std::path::Path;

const BASE: &str = "redis = \"redis-cluster://h:1\"\ncluster_secret_file = \"s\"\n";

fn cluster(more: &str) -> ClusterConfig {
    let config = resolve(&format!("{BASE}{more}")).unwrap_or_else(|error| panic!("{more}: {error}"));
    config.cluster.expect("redis is given")
}

fn refusal(text: &str) -> String {
    resolve(text).expect_err(text).to_string()
}

fn refusal_with_redis(more: &str) -> String {
    refusal(&format!("{BASE}{more}"))
}

#[test]
fn without_redis_a_node_is_alone() {
    assert!(resolve("").unwrap().cluster.is_none());
    let defaults = "mesh = \"127.0.0.1:7790\"\nadvertise = \"127.0.0.1:7700\"\nweight = 10\nzone = \"\"\n\
                    mesh_encryption = \"on\"\nmesh_links = 16\nplacement = \"accept\"\n\
                    lease_secs = 5\nredis_down = \"majority\"\npresence_queue_max = 1000000\n";
    assert!(resolve(defaults).unwrap().cluster.is_none());
    for (key, value) in [
        ("mesh", "\"127.0.0.1:7791\""),
        ("advertise", "\"gate.example.org:7700\""),
        ("weight", "2"),
        ("cluster_secret_file", "\"s\""),
        ("placement", "\"redirect\""),
        ("lease_secs", "6"),
        ("mesh_encryption", "\"off\""),
        ("mesh_links", "2"),
        ("redis_down", "\"serve\""),
        ("presence_queue_max", "2000000"),
        ("presence_audit_secs", "60"),
    ] {
        let message = refusal(&format!("{key} = {value}\n"));
        assert!(message.starts_with(&format!("{key} (some.toml, line 1)")), "{message}");
        assert!(message.contains("--redis redis-cluster://"), "{message}");
    }
}

#[test]
fn a_cluster_has_the_documented_defaults() {
    let cluster = cluster("");
    assert_eq!(cluster.redis.hosts, [("h".to_owned(), 1)]);
    assert_eq!((cluster.mesh.to_string().as_str(), cluster.advertise.as_str()), ("127.0.0.1:7790", "127.0.0.1:7700"));
    assert_eq!((cluster.weight, cluster.placement, cluster.lease_ms), (10, Placement::Accept, 5_000));
    assert_eq!((cluster.presence_queue_max, cluster.secret_files[0].as_path()), (1_000_000, Path::new("s")));
    assert_eq!((cluster.beat(), cluster.redis.command_timeout), (Duration::from_secs(1), Duration::from_secs(1)));
}

#[test]
fn a_short_lease_is_renewed_more_often_and_waits_less() {
    let short = cluster("lease_secs = 2\n");
    assert_eq!((short.beat(), short.redis.command_timeout), (Duration::from_millis(400), Duration::from_millis(400)));
    let long = cluster("lease_secs = 60\n");
    assert_eq!((long.beat(), long.redis.command_timeout), (Duration::from_secs(1), Duration::from_secs(1)));
}

#[test]
fn redis_needs_the_secret_of_the_cluster() {
    let message = refusal("redis = \"redis-cluster://h:1\"\n");
    assert!(message.contains("--cluster-secret-file FILE"), "{message}");
}

#[test]
fn a_url_that_is_refused_is_shown_without_its_password() {
    let message = refusal("redis = \"redis://me:hush@h:1\"\ncluster_secret_file = \"s\"\n");
    assert!(message.starts_with("redis = redis://…@h:1 (some.toml, line 1): "), "{message}");
    assert!(message.contains("redis-cluster://host:port") && !message.contains("hush"), "{message}");
}

#[test]
fn every_range_has_both_ends() {
    for (key, inside, outside) in [
        ("weight", ["1", "65535"], ["0", "65536"]),
        ("mesh_links", ["1", "64"], ["0", "65"]),
        ("lease_secs", ["2", "60"], ["1", "61"]),
        ("presence_queue_max", ["1000", "100000000"], ["999", "100000001"]),
        ("presence_audit_secs", ["1", "86400"], ["0", "86401"]),
    ] {
        for value in inside {
            cluster(&format!("{key} = {value}\n"));
        }
        for value in outside {
            let message = refusal_with_redis(&format!("{key} = {value}\n"));
            assert!(message.starts_with(&format!("{key} = {value} (some.toml, line 3): it must be ")), "{message}");
        }
    }
}

#[test]
fn what_others_dial_can_be_dialled() {
    for advertise in ["gate.example.org:7700", "[::1]:65535", "localhost:80"] {
        assert_eq!(cluster(&format!("advertise = \"{advertise}\"\n")).advertise, advertise);
    }
    let real = cluster("advertise = \"10.1.2.3:1\"\nmesh = \"10.1.2.3:7790\"\n");
    assert_eq!((real.advertise.as_str(), real.mesh.to_string().as_str()), ("10.1.2.3:1", "10.1.2.3:7790"));
    for advertise in ["", "gate", ":7700", "gate:0", "gate:65536", "0.0.0.0:7700", "[::]:7700", "::1:7700", "a b:1"] {
        let message = refusal_with_redis(&format!("advertise = \"{advertise}\"\n"));
        assert!(message.starts_with("advertise = ") && message.contains("host:port"), "{message}");
    }
    for mesh in ["0.0.0.0:7790", "[::]:7790", "127.0.0.1:0"] {
        let message = refusal_with_redis(&format!("mesh = \"{mesh}\"\n"));
        assert!(message.starts_with("mesh = ") && message.contains("dial"), "{message}");
    }
}

#[test]
fn a_mesh_address_on_loopback_beside_a_real_one_for_clients_is_refused() {
    for (advertise, suggested) in [("10.1.2.3:7700", "--mesh"), ("[2001:db8::1]:7700", "[2001:db8::1]:7790")] {
        let message = refusal_with_redis(&format!("advertise = \"{advertise}\"\n"));
        assert!(message.starts_with("mesh = 127.0.0.1:7790 (the default): "), "{message}");
        assert!(message.contains(advertise) && message.contains(suggested), "{message}");
    }
    let message = refusal_with_redis("listen = [\"10.1.2.3:7700\"]\ninsecure_open = true\n");
    assert!(message.contains("such as 10.1.2.3:7790"), "{message}");
}

#[test]
fn listening_everywhere_or_on_a_free_port_needs_an_advertised_address() {
    for listen in ["127.0.0.1:0", "0.0.0.0:7700"] {
        let listening = format!("listen = [\"{listen}\"]\ninsecure_open = true\n");
        let message = refusal_with_redis(&listening);
        assert!(message.starts_with(&format!("advertise = {listen} (the default)")), "{message}");
        assert!(message.contains("--advertise HOST:PORT"), "{message}");
        cluster(&format!("{listening}advertise = \"gate:1\"\n"));
    }
}

#[test]
fn a_secret_has_16_to_1024_bytes_and_its_last_newline_does_not_count() {
    let folder = std::env::temp_dir().join(format!("trunkline-secret-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("secret");
    let cluster = ClusterConfig { secret_files: vec![path.clone()], ..cluster("") };
    let load = |content: &str| {
        std::fs::write(&path, content).unwrap();
        cluster.load_secret()
    };
    assert_eq!(load("0123456789abcdef\n").unwrap().all().next().unwrap(), b"0123456789abcdef");
    assert_eq!(load(&"x".repeat(1_024)).unwrap().all().next().unwrap().len(), 1_024);
    for content in ["".to_owned(), "0123456789abcde\n".to_owned(), "x".repeat(1_025)] {
        let message = load(&content).unwrap_err().to_string();
        assert!(message.starts_with(path.to_str().unwrap()) && message.contains("16 to 1024"), "{message}");
    }
    assert!(!format!("{:?}", load("0123456789abcdef").unwrap()).contains("0123"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(cluster.load_secret().unwrap_err().to_string().contains("No such file"));
}

#[test]
fn what_waits_for_redis_is_in_the_memory_budget() {
    let term = |text: &str| {
        let budget = crate::budget::Budget::of(&resolve(text).unwrap());
        budget.terms.iter().find(|term| term.name == "presence writes").map(|term| term.bytes)
    };
    assert_eq!(term(""), None);
    let (some, more) = (term(BASE).unwrap(), term(&format!("{BASE}presence_queue_max = 1100000\n")).unwrap());
    assert_eq!(more - some, 100_000 * 512);
    assert!(Size(some).0 > 512_000_000);
}
