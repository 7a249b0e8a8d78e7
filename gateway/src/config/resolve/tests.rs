use super::*;
use crate::config::{ConfigFile, DefaultValue, KeyFile, default_config};
use crate::limits::ReadMode;
use std::path::Path;

fn host() -> Host {
    Host { cores: 4, nofile_hard: 20_000, memory_available: 16 << 30, name: "host-1".to_owned() }
}

fn file(text: &str) -> ConfigFile {
    ConfigFile::parse(Path::new("some.toml"), text).expect(text)
}

fn from_file(text: &str) -> Result<Config, ConfigError> {
    Config::resolve(Sources { file: Some(file(text)), ..Sources::default() }, &host())
}

fn from_flags(command: Settings) -> Result<Config, ConfigError> {
    Config::resolve(Sources { command, ..Sources::default() }, &host())
}

fn refusal(text: &str) -> String {
    from_file(text).expect_err(text).to_string()
}

#[test]
fn flags_override_the_environment_which_overrides_the_file_which_overrides_the_defaults() {
    // Flags and environment arrive merged, flags first; the command line's own tests show that.
    let command = Settings { shards: Some(3), node: Some("from-env".to_owned()), ..Settings::default() };
    let file = file("shards = 2\nnode = \"from-file\"\nheartbeat_secs = 45\n");
    let config = Config::resolve(
        Sources { command, from_environment: vec!["node"], file: Some(file), ..Sources::default() },
        &host(),
    )
    .unwrap();
    assert_eq!((config.shards, config.node.as_str(), config.limits().heartbeat_secs), (3, "from-env", 45));
    assert_eq!(config.limits().login_timeout_ms, 10_000);
    assert_eq!(config.origin("shards"), Origin::Flag("--shards".to_owned()));
    assert_eq!(config.origin("node"), Origin::Environment("TRUNKLINE_NODE"));
    assert_eq!(config.origin("heartbeat_secs"), Origin::File("some.toml".into(), 3));
    assert_eq!(config.origin("login_timeout_secs"), Origin::Default);
}

#[test]
fn the_defaults_are_those_of_the_documents() {
    let config = from_flags(Settings::default()).unwrap();
    assert_eq!(config.listen[0].addresses(), ["127.0.0.1:7700".parse().unwrap()]);
    assert_eq!(config.http, "127.0.0.1:7780".parse().unwrap());
    assert_eq!((config.node.as_str(), config.shards, &config.auth), ("host-1", 4, &AuthConfig::Open));
    let (limits, model) = (config.limits(), Limits::default());
    assert_eq!(limits.connections_max, 20_000 - SLOTS_RESERVED);
    // What does not depend on the machine is what the data path's own tests run with.
    assert_eq!(limits.login_timeout_ms, model.login_timeout_ms);
    assert_eq!(limits.heartbeat_secs, model.heartbeat_secs);
    assert_eq!(
        (limits.heartbeat_secs_min, limits.heartbeat_secs_max),
        (model.heartbeat_secs_min, model.heartbeat_secs_max)
    );
    assert_eq!(limits.frame_bytes_max, model.frame_bytes_max);
    assert_eq!(
        (limits.outbox_bytes_max, limits.outbox_full_ms_max),
        (model.outbox_bytes_max, model.outbox_full_ms_max)
    );
    assert_eq!(
        (limits.unacked_per_user_max, limits.devices_per_user_max),
        (model.unacked_per_user_max, model.devices_per_user_max)
    );
    assert_eq!(
        (limits.redeliver_ms, limits.redeliver_attempts_max),
        (model.redeliver_ms, model.redeliver_attempts_max)
    );
    assert_eq!((limits.frames_per_sec, limits.logins_per_sec), (0, 0));
    assert_eq!((limits.recv_buffers, limits.recv_buffer_bytes), (model.recv_buffers, model.recv_buffer_bytes));
    assert_eq!(
        (limits.read_mode, limits.hot_idle_ms, limits.drain_ms),
        (ReadMode::Auto, model.hot_idle_ms, model.drain_ms)
    );
    assert_eq!(limits.mailbox_bytes_max, 4 << 20);
    assert_eq!(limits.outbox_total_bytes_max, (1 << 30) / 4);
}

#[test]
fn what_is_given_for_the_node_is_shared_out_to_the_shards() {
    let text = "shards = 8\noutbox_total_bytes_max = \"1GiB\"\nunacked_total_bytes_max = \"80MiB\"\n\
                partial_bytes_max = 8000000\n\
                recv_buffer_bytes = \"64MiB\"\nmailbox_bytes_max = \"1MiB\"\n";
    let config = from_file(text).unwrap();
    let limits = config.limits();
    assert_eq!(limits.outbox_total_bytes_max, 128 << 20);
    assert_eq!(limits.unacked_total_bytes_max, 10 << 20);
    assert_eq!(limits.partial_total_bytes_max, 1_000_000);
    assert_eq!(limits.recv_buffers, 2_048);
    assert_eq!(limits.mailbox_bytes_max, 1 << 20);
}

#[test]
fn receive_buffers_are_a_power_of_two() {
    for (bytes, buffers) in
        [("256KiB", 64), ("511KiB", 64), ("512KiB", 128), ("3MiB", 512), ("128MiB", 32_768), ("255MiB", 32_768)]
    {
        let config = from_file(&format!("shards = 1\nrecv_buffer_bytes = \"{bytes}\"\n")).unwrap();
        assert_eq!(config.limits().recv_buffers, buffers, "{bytes}");
    }
}

#[test]
fn many_shards_share_one_bound_of_mailboxes() {
    let config = from_file("shards = 56\n").unwrap();
    let mailboxes = 56 * 55 * config.limits().mailbox_bytes_max;
    assert!(mailboxes <= 512 << 20, "{mailboxes}");
    assert!(config.limits().mailbox_bytes_max > 65_536);
}

#[test]
fn memory_bounds_the_default_of_connections_but_not_what_is_asked_for() {
    let host = Host { cores: 16, nofile_hard: u64::MAX, memory_available: 8 << 30, name: "h".to_owned() };
    let config = Config::resolve(Sources::default(), &host).unwrap();
    let connections = u64::from(config.limits().connections_max);
    // The kernel holds 16 x 32,736 of them in the 2 GiB beside memory_max.
    assert!((30_000..40_000).contains(&connections), "{connections}");
    let sources = Sources { file: Some(file("connections_max = 1048512\n")), ..Sources::default() };
    assert_eq!(Config::resolve(sources, &host).unwrap().limits().connections_max, 1_048_512);
}

#[test]
fn every_range_has_both_ends() {
    for (key, inside, outside) in [
        ("shards", ["1", "1024"], ["0", "1025"]),
        ("connections_max", ["1", "1048512"], ["0", "1048513"]),
        ("login_timeout_secs", ["1", "3600"], ["0", "3601"]),
        ("heartbeat_secs", ["5", "600"], ["4", "601"]),
        ("heartbeat_secs_min", ["1", "30"], ["0", "3601"]),
        ("heartbeat_secs_max", ["30", "3600"], ["0", "3601"]),
        ("hot_idle_secs", ["1", "3600"], ["0", "3601"]),
        ("drain_secs", ["0", "3600"], ["3601", "4294967296"]),
        ("devices_max", ["1", "64"], ["0", "65"]),
        ("logins_per_sec", ["0", "1000000"], ["1000001", "9999999999"]),
        ("frames_per_sec", ["0", "1000000"], ["1000001", "9999999999"]),
        ("unacked_max", ["1", "65536"], ["0", "65537"]),
        ("redeliver_secs", ["1", "3600"], ["0", "3601"]),
        ("redeliver_attempts_max", ["0", "255"], ["256", "300"]),
        ("outbox_full_secs", ["1", "3600"], ["0", "3601"]),
        ("frame_bytes_max", ["1024", "65536"], ["1023", "16777216"]),
        ("outbox_bytes_max", ["65536", "1048576"], ["65535", "1073741825"]),
        ("mailbox_bytes_max", ["131072", "1073741824"], ["65536", "1073741825"]),
        ("outbox_total_bytes_max", ["1048576", "68719476736"], ["1048575", "0"]),
        ("unacked_total_bytes_max", ["1048576", "68719476736"], ["262144", "0"]),
        ("partial_bytes_max", ["262144", "68719476736"], ["262143", "0"]),
        ("recv_buffer_bytes", ["1048576", "536870912"], ["1048575", "1073741824"]),
    ] {
        for value in inside {
            if let Err(error) = from_file(&format!("{key} = {value}\n")) {
                panic!("{key} = {value}: {error}");
            }
        }
        for value in outside {
            let message = refusal(&format!("# one\n{key} = {value}\n"));
            assert!(message.starts_with(&format!("{key} = ")), "{message}");
            assert!(message.contains("(some.toml, line 2): "), "{message}");
            let allowed = message.split(": ").nth(1).expect("what is allowed");
            assert!(allowed.contains(char::is_numeric) || allowed.contains("heartbeat"), "{message}");
        }
    }
}

#[test]
fn a_long_frame_needs_longer_queues() {
    assert!(
        refusal("frame_bytes_max = \"1MiB\"\n")
            .starts_with("outbox_bytes_max = 256KiB (the default): it must be 1MiB to 1GiB")
    );
    let config = from_file("frame_bytes_max = \"1MiB\"\noutbox_bytes_max = \"4MiB\"\n").unwrap();
    assert!(config.limits().mailbox_bytes_max > 1 << 20);
    from_file("shards = 56\nframe_bytes_max = 16777215\noutbox_bytes_max = \"16MiB\"\n").unwrap();
}

#[test]
fn contradicting_heartbeats_name_both() {
    let message = refusal("heartbeat_secs_min = 50\nheartbeat_secs_max = 40\n");
    for part in ["heartbeat_secs_min = 50 (some.toml, line 1)", "heartbeat_secs_max = 40 (some.toml, line 2)"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(refusal("heartbeat_secs = 700\n").contains("5 to 600"));
}

#[test]
fn open_authentication_beyond_loopback_needs_a_word() {
    for address in ["0.0.0.0:7700", "[::]:7700", "192.168.1.1:0"] {
        let message = refusal(&format!("listen = [\"127.0.0.1:1\", \"{address}\"]\n"));
        assert!(
            message.contains(address) && message.contains("--insecure-open") && message.contains("--auth jwt"),
            "{message}"
        );
        from_file(&format!("listen = [\"{address}\"]\ninsecure_open = true\n")).unwrap();
        from_file(&format!("listen = [\"{address}\"]\nauth = \"jwt\"\njwt_hs256_secret_file = \"s\"\n")).unwrap();
    }
    from_file("listen = [\"127.8.9.1:7700\", \"[::1]:7700\"]\n").unwrap();
}

#[test]
fn the_demo_beyond_loopback_needs_a_word() {
    assert!(from_file("demo = true\n").unwrap().demo && !from_file("").unwrap().demo);
    let message = refusal("demo = true\nhttp = \"0.0.0.0:7780\"\napi_keys_file = \"k\"\n");
    assert!(message.contains("demo = true") && message.contains("--http-insecure-open"), "{message}");
    assert!(from_file("demo = true\nhttp = \"0.0.0.0:7780\"\nhttp_insecure_open = true\n").unwrap().demo);
}

#[test]
fn a_node_that_nothing_but_loopback_protects_knows_no_other_name_of_itself() {
    let of = |text: &str| from_file(text).unwrap().upgrade.loopback_names;
    assert!(of("") && of("listen = [\"[::1]:7700\", \"127.0.0.1:7700\"]\n"));
    for text in [
        "listen = [\"127.0.0.1:7700\", \"unix:/s\"]\n",
        "listen = [\"0.0.0.0:7700\"]\ninsecure_open = true\n",
        "proxy_from = [\"127.0.0.2\"]\n",
        "forwarded_from = [\"127.0.0.2\"]\n",
        "connect_hook = \"http://127.0.0.1:9/\"\n",
        "auth = \"jwt\"\njwt_hs256_secret_file = \"k\"\n",
    ] {
        assert!(!of(text), "{text}");
    }
}

#[test]
fn the_demo_needs_a_port_that_takes_more_than_tls() {
    let tls = "demo = true\ntls_cert = \"/c\"\ntls_key = \"/k\"\n";
    assert!(from_file(tls).unwrap().demo);
    for more in ["tls_required = true\n", "listen = [\"tls://127.0.0.1:7700\"]\n"] {
        let message = refusal(&format!("{tls}{more}"));
        assert!(message.contains("demo = true") && message.contains("in clear"), "{message}");
    }
    assert!(from_file(&format!("{tls}listen = [\"tls://127.0.0.1:7443\", \"127.0.0.1:7700\"]\n")).unwrap().demo);
    assert!(refusal("demo = true\nlisten = [\"unix:/s\"]\n").contains("Unix sockets only"));
}

#[test]
fn pushes_by_http_beyond_loopback_need_keys_and_have_a_port_of_their_own() {
    let message = refusal("services_http = \"0.0.0.0:7782\"\n");
    assert!(message.contains("--api-keys-file") && message.contains("push:user"), "{message}");
    from_file("services_http = \"0.0.0.0:7782\"\napi_keys_file = \"k\"\n").unwrap();
    assert!(refusal("services_http = \"127.0.0.1:7780\"\n").contains("http = 127.0.0.1:7780 (the default) listens"));
    let message = refusal("services_listen = \"127.0.0.1:7791\"\nservices_http = \"127.0.0.1:7791\"\n");
    assert!(message.contains("services_listen = 127.0.0.1:7791"), "{message}");
    let limits = from_file("shards = 2\nservices_http = \"127.0.0.1:7782\"\n").unwrap().limits().clone();
    assert_eq!((limits.portal_bytes_max, limits.pushes_open_max), (4 << 20, 65_536));
    assert_eq!((limits.pushes_per_user_per_sec, limits.pushes_per_key_per_sec), (50, 1_000));
    assert_eq!(from_file("broadcast_per_sec = 10\n").unwrap().limits().broadcast_per_sec, 10);
    assert!(refusal("broadcast_per_sec = 9\n").contains("10"));
    assert_eq!(from_file("").unwrap().limits().portal_bytes_max, 0, "nothing is kept for what is not there");
    let small = "services_http = \"127.0.0.1:7782\"\nshards = 2\nportal_bytes_max = \"100KiB\"\n";
    assert!(refusal(small).contains("320KiB or more"));
}

#[test]
fn addresses_are_named_once_and_port_0_any_number_of_times() {
    assert!(refusal("listen = []\n").contains("one address at least"));
    assert!(
        refusal("listen = [\"127.0.0.1:5\", \"127.0.0.1:6\", \"127.0.0.1:5\"]\n")
            .contains("127.0.0.1:5 (some.toml, line 1): it is named twice")
    );
    assert_eq!(from_file("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n").unwrap().listen.len(), 2);
}

#[test]
fn jwt_and_its_keys_go_together() {
    let message = refusal("auth = \"jwt\"\n");
    assert!(
        message.contains("--jwt-hs256-secret-file") && message.contains("--jwt-ed25519-public-key-file"),
        "{message}"
    );
    assert!(refusal("jwt_hs256_secret_file = \"s\"\n").contains("set auth to jwt"));
    let config = from_file("auth = \"jwt\"\njwt_ed25519_public_key_file = \"/no/such/key\"\n").unwrap();
    assert!(config.auth.load().unwrap_err().to_string().starts_with("/no/such/key: "));
}

#[test]
fn several_keys_each_have_an_id_of_their_own() {
    let text = |hs256: &str, ed25519: &str| {
        format!("auth = \"jwt\"\njwt_hs256_secret_file = {hs256}\njwt_ed25519_public_key_file = {ed25519}\n")
    };
    let config = from_file(&text("[\"a=/one\", \"/two\"]", "\"b=/three\"")).unwrap();
    let AuthConfig::Jwt { hs256_secret_files, ed25519_public_key_files, leeway_s, .. } = &config.auth else {
        panic!("{:?}", config.auth)
    };
    let shown = |files: &[KeyFile]| files.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (shown(hs256_secret_files), shown(ed25519_public_key_files)),
        (vec!["a=/one".to_owned(), "/two".to_owned()], vec!["b=/three".to_owned()])
    );
    assert_eq!(*leeway_s, 5);
    for (hs256, ed25519) in [("[\"a=/one\", \"a=/two\"]", "[]"), ("\"a=/one\"", "\"a=/two\"")] {
        let message = refusal(&text(hs256, ed25519));
        assert!(message.contains("two keys have the id a") && message.contains("some.toml, line 2"), "{message}");
    }
    let many: Vec<String> = (0..17).map(|number| format!("\"/{number}\"")).collect();
    assert!(refusal(&text(&format!("[{}]", many.join(", ")), "[]")).contains("17 files (some.toml, line 2)"));
    assert!(refusal(&text("[]", "[]")).contains("it needs a key"));
}

#[test]
fn what_tokens_must_say_is_judged() {
    let jwt = "auth = \"jwt\"\njwt_hs256_secret_file = \"s\"\n";
    let config =
        from_file(&format!("{jwt}jwt_issuer = \"https://a\"\njwt_audience = [\"x\", \"y\"]\njwt_leeway_secs = 0\n"));
    match config.unwrap().auth {
        AuthConfig::Jwt { issuers, audiences, leeway_s, .. } => {
            assert_eq!(
                (issuers, audiences, leeway_s),
                (vec!["https://a".to_owned()], vec!["x".to_owned(), "y".to_owned()], 0)
            );
        }
        open => panic!("{open:?}"),
    }
    assert!(refusal(&format!("{jwt}jwt_issuer = \"\"\n")).contains("1 to 256 bytes"));
    assert!(refusal(&format!("{jwt}jwt_audience = [\"{}\"]\n", "x".repeat(257))).contains("1 to 256 bytes"));
    assert!(refusal(&format!("{jwt}jwt_leeway_secs = 301\n")).contains("0 to 300"));
    assert!(refusal("jwt_audience = \"x\"\n").contains("set auth to jwt"));
}

#[test]
fn a_node_name_is_plain() {
    for name in ["", "a b", "caf\u{e9}", "a\\\"b", &"x".repeat(65)] {
        assert!(refusal(&format!("node = \"{name}\"\n")).contains("1 to 64 letters"), "{name}");
    }
    assert_eq!(from_file(&format!("node = \"{}\"\n", "x".repeat(64))).unwrap().node.len(), 64);
}

#[test]
fn a_log_filter_is_judged() {
    for filter in ["warn", "info,trunkline_gateway=debug", "off"] {
        from_file(&format!("log = \"{filter}\"\n")).unwrap();
    }
    for filter in ["trunkline_gateway=loud", "verbose", ""] {
        assert!(refusal(&format!("log = \"{filter}\"\n")).contains("debug, trace"), "{filter}");
    }
}

#[test]
fn the_default_configuration_reads_back_as_the_defaults() {
    let text = default_config(&host());
    let from_text = from_file(&text).unwrap();
    let defaults = from_flags(Settings::default()).unwrap();
    assert_eq!(from_text.effective(), defaults.effective());
    for setting in SETTINGS {
        let commented = !matches!(setting.default, DefaultValue::Fixed(_));
        let start = format!("{}{} = ", if commented { "# " } else { "" }, setting.key);
        assert_eq!(text.lines().filter(|line| line.starts_with(&start)).count(), 1, "{start}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 120));
}

#[test]
fn the_default_configuration_can_be_taken_out_of_its_comments() {
    let text: String = default_config(&host())
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if SETTINGS.iter().any(|setting| rest.starts_with(&format!("{} = ", setting.key))) => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let settings = file(&text).settings;
    assert_eq!(settings.keys().len(), SETTINGS.len());
    assert_eq!(settings.connections_max, Some(19_936));
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let text = "listen = [\"127.0.0.1:7700\", \"[::1]:7701\"]\nshards = 5\nauth = \"jwt\"\n\
                jwt_hs256_secret_file = \"s\"\nmemory_max = 12345678901\n";
    let config = from_file(text).unwrap();
    let effective = config.effective_text();
    assert!(effective.contains("# some.toml, line 2"), "{effective}");
    assert_eq!(from_file(&effective).unwrap().effective(), config.effective());
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let message = refusal(
        "shards = 0\nhttp = \"127.0.0.1:7700\"\nheartbeat_secs_min = 50\nheartbeat_secs_max = 40\nlog = \"verbose\"\n\
         auth = \"jwt\"\n\
         redis = \"redis://me:secret@h:1\"\ncluster_secret_file = \"s\"\nweight = 0\nnode = \"a b\"\n\
         listen = [\"127.0.0.1:7700\"]\n",
    );
    for start in [
        "shards = 0 (some.toml, line 1): ",
        "http = 127.0.0.1:7700 (some.toml, line 2): ",
        "heartbeat_secs_min = 50 (some.toml, line 3) ",
        "log = \"verbose\" (some.toml, line 5): ",
        "auth = jwt (some.toml, line 6): ",
        "redis = redis://…@h:1 (some.toml, line 7): ",
        "weight = 0 (some.toml, line 9): ",
        "node = \"a b\" (some.toml, line 10): ",
    ] {
        assert!(message.lines().any(|line| line.trim().starts_with(start)), "no {start:?} in {message}");
    }
    assert_eq!(message.lines().count(), 9, "{message}");
    assert!(!message.contains("secret@"), "{message}");
}

#[test]
fn faults_of_file_and_environment_are_told_beside_those_of_values() {
    let path = Path::new("some.toml");
    let text = "shard = 2\nweight = 0\n";
    let in_environment = ConfigError::Conflict("something about the environment".to_owned());
    std::fs::create_dir_all(std::env::temp_dir()).unwrap();
    let scratch = std::env::temp_dir().join(format!("trunkline-resolve-{}.toml", std::process::id()));
    std::fs::write(&scratch, text).unwrap();
    let file = ConfigFile { path: path.to_owned(), ..ConfigFile::read(&scratch).unwrap() };
    std::fs::remove_file(&scratch).unwrap();
    let sources = Sources { file: Some(file), faults: vec![in_environment], ..Sources::default() };
    let message = Config::resolve(sources, &host()).unwrap_err().to_string();
    for part in ["3 faults", "the environment", "did you mean `shards`?", "weight"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

#[test]
fn what_the_folders_of_the_file_are_called_hides_no_fault() {
    let text = "http = \"127.0.0.1:7700\"\nlog = \"verbose\"\nweight = 0\n";
    let file = ConfigFile::parse(Path::new("/srv/http/log/some.toml"), text).expect(text);
    let message = Config::resolve(Sources { file: Some(file), ..Sources::default() }, &host()).unwrap_err().to_string();
    for start in ["http = 127.0.0.1:7700 (", "log = \"verbose\" (", "weight (/srv/http/log/some.toml, line 3)"] {
        assert!(message.lines().any(|line| line.trim().starts_with(start)), "no {start:?} in {message}");
    }
}

#[test]
fn addresses_that_take_each_other_are_refused_with_both_names() {
    let cluster = "redis = \"redis-cluster://h:1\"\ncluster_secret_file = \"s\"\n";
    for (text, key, other) in [
        (
            "http = \"127.0.0.1:7700\"\n".to_owned(),
            "http = 127.0.0.1:7700 (some.toml, line 1)",
            "listen = 127.0.0.1:7700 (the default)",
        ),
        ("http = \"0.0.0.0:7700\"\nhttp_insecure_open = true\n".to_owned(), "http = 0.0.0.0:7700", "listen ="),
        (format!("{cluster}mesh = \"127.0.0.1:7700\"\n"), "mesh = 127.0.0.1:7700", "listen"),
        (format!("{cluster}mesh = \"127.0.0.1:7780\"\n"), "mesh = 127.0.0.1:7780", "http = 127.0.0.1:7780"),
        (
            format!("{cluster}http = \"[::]:5\"\nmesh = \"[::1]:5\"\nhttp_insecure_open = true\n"),
            "mesh = [::1]:5",
            "http = [::]:5 (some.toml, line 3)",
        ),
    ] {
        let message = refusal(&text);
        assert!(message.starts_with(key) && message.contains(other), "{text}: {message}");
    }
    for text in [
        "listen = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n",
        "http = \"127.0.0.2:7700\"\n",
        "http = \"[::1]:7700\"\n",
    ] {
        from_file(text).unwrap();
    }
}

#[test]
fn a_login_of_redis_is_shown_to_nobody() {
    let config = from_file("redis = \"redis-cluster://me:secret@h:1\"\ncluster_secret_file = \"s\"\n").unwrap();
    let effective = config.effective_text();
    assert!(effective.contains("redis = \"redis-cluster://…@h:1\"") && effective.contains("not shown"), "{effective}");
    for text in [effective, format!("{config:?}"), format!("{:?}", config.effective())] {
        assert!(!text.contains("secret@"), "{text}");
    }
    assert_eq!(config.cluster.unwrap().redis.password.as_deref(), Some("secret"));
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_setting() {
    let config = from_file("auth = \"jwt\"\njwt_hs256_secret_file = \"/no/such/key\"\n").unwrap();
    let message = config.load_auth().unwrap_err().to_string();
    assert!(message.starts_with("jwt_hs256_secret_file (some.toml, line 2): /no/such/key: "), "{message}");
    let config = from_file("auth = \"jwt\"\njwt_hs256_secret_file = \"/dev/zero\"\n").unwrap();
    let message = config.load_auth().unwrap_err().to_string();
    assert!(message.contains("longer than 64KiB"), "{message}");
}

#[test]
fn what_a_running_node_takes_is_taken_and_the_rest_stays() {
    let old = from_file("shards = 2\nheartbeat_secs = 45\n").unwrap();
    let new = from_file("shards = 3\nheartbeat_secs = 50\nlog = \"debug\"\n").unwrap();
    let merged = old.effective().clone().reloaded(new.effective().clone());
    assert_eq!((merged.shards, merged.heartbeat_secs, merged.log.as_deref()), (Some(2), Some(50), Some("debug")));
    assert_eq!(old.effective().differing(&merged), ["heartbeat_secs", "log"]);
}

#[test]
fn workers_can_be_bound_to_tls_where_they_have_a_port_and_the_node_a_certificate() {
    let with = |more: &str| from_file(&format!("services_tls_required = true\n{more}"));
    let (port, tls) = ("services_listen = \"127.0.0.1:7791\"\n", "tls_cert = [\"/c\"]\ntls_key = [\"/k\"]\n");
    assert!(with(tls).unwrap_err().to_string().contains("services_listen is not set"));
    assert!(with(port).unwrap_err().to_string().contains("tls_cert is not set"));
    assert!(with(&format!("{port}{tls}")).unwrap().services.unwrap().tls_required);
    assert!(!from_file(&format!("{port}{tls}")).unwrap().services.unwrap().tls_required);
}

#[test]
fn a_certificate_of_the_http_api_comes_with_its_key_and_without_the_demo() {
    let with = |more: &str| from_file(&format!("http_tls_cert = \"/c\"\n{more}"));
    assert!(with("").unwrap_err().to_string().contains("without http_tls_key"));
    assert!(from_file("http_tls_key = \"/k\"\n").unwrap_err().to_string().contains("without http_tls_cert"));
    assert!(with("http_tls_key = \"/k\"\n").unwrap().http_tls.is_some());
    let ca = "http_tls_client_ca = \"/ca\"\n";
    assert!(from_file(ca).unwrap_err().to_string().contains("has a meaning with TLS only"));
    assert!(with(&format!("http_tls_key = \"/k\"\n{ca}")).unwrap().http_tls.unwrap().client_ca.is_some());
    assert!(with("http_tls_key = \"/k\"\ndemo = true\n").unwrap_err().to_string().contains("ws://"));
}
