//! The command line: what is refused before anything starts, and that the refusal says what to do.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command, with_gateway};
use crate::support::names::json;
use crate::support::scratch::ScratchFile;
use std::net::TcpListener;
use std::process::{Command, Output};

/// Runs a command that must end by itself.
fn run(command: &mut Command) -> Output {
    // A gateway that starts although it should not would run for ever: `timeout` ends it, with status 124.
    let mut bounded = Command::new("timeout");
    bounded.arg("20").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    let output = bounded.output().expect("run the gateway");
    assert_ne!(output.status.code(), Some(124), "it started: {output:?}");
    output
}

fn gateway(arguments: &[&str]) -> Output {
    run(gateway_command().args(arguments))
}

/// Starts a gateway that must refuse to; returns what it says.
fn assert_refused(arguments: &[&str]) -> String {
    let output = gateway(arguments);
    let stderr = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert!(!output.status.success(), "{arguments:?} was accepted");
    assert!(output.status.code().is_some(), "{arguments:?}: {:?}\n{stderr}", output.status);
    assert!(!stderr.contains("panicked at"), "{stderr}");
    assert!(!stderr.trim().is_empty(), "{arguments:?} is refused without a word");
    stderr
}

fn assert_names(message: &str, parts: &[&str]) {
    let lower = message.to_lowercase();
    for part in parts {
        assert!(lower.contains(&part.to_lowercase()), "no {part:?} in:\n{message}");
    }
}

const ON_FREE_PORTS: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

fn assert_flags_refused(flags: &[&str]) -> String {
    assert_refused(&[&ON_FREE_PORTS[..], flags].concat())
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = gateway(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).expect("UTF-8");
    assert_names(&text, &["--listen", "--shards", "--auth", "default-config", "check-config", "doctor"]);
    let version = gateway(&["--version"]);
    assert!(version.status.success());
    assert_names(&String::from_utf8(version.stdout).expect("UTF-8"), &[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn an_unknown_flag_is_named() {
    assert_names(&assert_refused(&["--no-such-flag"]), &["--no-such-flag"]);
    assert_names(&assert_refused(&["no-such-command"]), &["no-such-command"]);
}

#[test]
fn a_bad_value_is_named_with_its_flag() {
    let cases: [&[&str]; 12] = [
        &["--shards", "0"],
        &["--shards", "many"],
        &["--shards", "-1"],
        &["--auth", "maybe"],
        &["--frame-bytes-max", "1023"],
        &["--frame-bytes-max", "16777216"],
        &["--heartbeat-secs", "0"],
        &["--heartbeat-secs-min", "0"],
        &["--connections-max", "0"],
        &["--login-timeout-secs", "0"],
        &["--outbox-bytes-max", "0"],
        &["--memory-max", "a lot"],
    ];
    for case in cases {
        let flag = case[0].trim_start_matches("--");
        // The message may speak of the key of the configuration file, which has the flag's name.
        let message = assert_flags_refused(case).replace('_', "-");
        assert_names(&message, &[flag]);
    }
    for (flag, address) in [("--listen", "nowhere"), ("--http", "127.0.0.1:99999")] {
        let message = assert_refused(&[flag, address]);
        assert_names(&message, &[flag.trim_start_matches("--"), address]);
    }
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let message = assert_flags_refused(&["--heartbeat-secs-min", "50", "--heartbeat-secs-max", "40"]);
    assert_names(&message.replace('_', "-"), &["heartbeat-secs-min", "heartbeat-secs-max"]);
    let message = assert_flags_refused(&["--heartbeat-secs", "700", "--heartbeat-secs-max", "600"]);
    assert_names(&message.replace('_', "-"), &["heartbeat-secs"]);
    // An outbox that cannot hold one frame would drop every long message.
    let message = assert_flags_refused(&["--outbox-bytes-max", "2048"]);
    assert_names(&message.replace('_', "-"), &["outbox-bytes-max"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let file = ScratchFile::new("unknown.toml", "# one\n# two\n\n# four\nno_such_key = 1\n");
    for arguments in [vec!["check-config", file.path()], vec!["--config", file.path()]] {
        let message = assert_refused(&arguments);
        assert_names(&message, &["no_such_key", file.path()]);
        let names_line_5 = message.contains("line 5") || message.contains(&format!("{}:5", file.path()));
        assert!(names_line_5, "no line number in:\n{message}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_line() {
    let file = ScratchFile::new("wrong_type.toml", "# one\n# two\nshards = \"many\"\n");
    let message = assert_refused(&["check-config", file.path()]);
    assert_names(&message, &["shards", file.path()]);
    let names_line_3 = message.contains("line 3") || message.contains(&format!("{}:3", file.path()));
    assert!(names_line_3, "no line number in:\n{message}");
}

#[test]
fn a_file_that_is_no_toml_is_refused() {
    let file = ScratchFile::new("broken.toml", "shards = = 4\n");
    assert_names(&assert_refused(&["check-config", file.path()]), &[file.path(), "1"]);
    let binary = ScratchFile::new("binary.toml", [0xff, 0xfe, 0, 1]);
    assert_names(&assert_refused(&["check-config", binary.path()]), &[binary.path()]);
    assert_names(&assert_refused(&["check-config", "/no/such/file"]), &["/no/such/file"]);
    assert_names(&assert_refused(&["--config", "/no/such/file"]), &["/no/such/file"]);
}

#[test]
fn check_config_refuses_what_run_would_refuse() {
    let file = ScratchFile::new("out_of_range.toml", "shards = 0\n");
    assert_names(&assert_refused(&["check-config", file.path()]), &["shards"]);
}

#[test]
fn the_default_configuration_passes_its_check() {
    let default = gateway(&["default-config"]);
    assert!(default.status.success());
    let text = String::from_utf8(default.stdout).expect("UTF-8");
    // It is there to be read and changed: every limit is in it.
    assert_names(&text, &["listen", "shards", "heartbeat", "outbox", "frame", "unacked"]);
    let file = ScratchFile::new("default.toml", &text);
    let checked = gateway(&["check-config", file.path()]);
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn a_misspelt_variable_is_told_and_is_no_error() {
    let file = ScratchFile::new("fine.toml", "shards = 1\n");
    let checked = run(gateway_command().args(["check-config", file.path()]).env("TRUNKLINE_HEARTBEAT_SEC", "20"));
    assert!(checked.status.success(), "{checked:?}");
    let text = String::from_utf8(checked.stdout).expect("UTF-8");
    assert_names(&text, &["# warning: ", "TRUNKLINE_HEARTBEAT_SEC is that of no setting", "TRUNKLINE_HEARTBEAT_SECS?"]);
    let mut command = gateway_command();
    command.env("TRUNKLINE_HEARTBEAT_SEC", "20");
    let gateway = Gateway::start_command(command);
    assert_names(&gateway.log(), &["TRUNKLINE_HEARTBEAT_SECS?"]);
    gateway.finish();
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let file = ScratchFile::new("shards.toml", "shards = 1\n");
    let shards_of = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = gateway_command();
        command.args(["--config", file.path()]);
        command.envs(environment.map(|value| ("TRUNKLINE_SHARDS", value)));
        command.args(flag.into_iter().flat_map(|value| ["--shards", value]));
        let gateway = Gateway::start_command(command);
        let shards = gateway.get("/v1/node").json()[json::SHARDS].as_u64();
        gateway.finish();
        shards
    };
    assert_eq!(shards_of(None, None), Some(1));
    assert_eq!(shards_of(Some("2"), None), Some(2));
    assert_eq!(shards_of(Some("2"), Some("3")), Some(3));
    assert_eq!(shards_of(None, Some("3")), Some(3));
}

#[test]
fn open_authentication_beyond_loopback_needs_a_word() {
    let message = assert_refused(&["--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"]);
    assert_names(&message, &["--insecure-open", "0.0.0.0"]);
    let message = assert_refused(&["--listen", "[::]:0", "--http", "127.0.0.1:0"]);
    assert_names(&message, &["--insecure-open"]);
}

#[test]
fn an_http_api_beyond_loopback_needs_keys_or_a_word() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let message = assert_refused(&["--listen", "127.0.0.1:0", "--http", address]);
        assert_names(&message, &["http", address, "--api-keys-file", "--http-insecure-open"]);
    }
    let file = ScratchFile::new("open.toml", "http = \"0.0.0.0:7780\"\n");
    assert_names(&assert_refused(&["check-config", file.path()]), &["0.0.0.0:7780", "line 1", "--api-keys-file"]);
    for (content, hint) in [("", "holds no key"), ("a = 1\n", "line 1"), ("nonsense", "line 1")] {
        let keys = ScratchFile::new("keys.toml", content);
        assert_names(&assert_flags_refused(&["--api-keys-file", keys.path()]), &[keys.path(), hint]);
    }
    let both = ["--api-keys-file", "/no/such/file", "--http-insecure-open"];
    assert_names(&assert_flags_refused(&both), &["leave one of them out"]);
    assert_names(&assert_flags_refused(&["--api-keys-file", "/no/such/file"]), &["/no/such/file"]);
}

#[test]
fn a_key_is_made_with_its_line_for_the_keys_file() {
    let made = gateway(&["api-key", "ops", "--scope", "kick,drain"]);
    assert!(made.status.success());
    let text = String::from_utf8(made.stdout).expect("UTF-8");
    let key = text.lines().find(|line| line.starts_with("tlk_ops_")).expect("the key");
    let line = text.lines().find(|line| line.starts_with("ops = ")).expect("the line");
    assert!(!line.contains(&key["tlk_ops_".len()..]), "{text}");
    let keys = ScratchFile::new("keys.toml", line);
    let checked =
        ScratchFile::new("keyed.toml", format!("http = \"0.0.0.0:7780\"\napi_keys_file = {:?}\n", keys.path()));
    assert!(gateway(&["check-config", checked.path()]).status.success());
    assert!(!gateway(&["api-key", "o p s", "--scope", "kick"]).status.success());
    assert!(!gateway(&["api-key", "ops", "--scope", "fly"]).status.success());
}

#[test]
fn jwt_needs_a_key_that_can_be_read() {
    let message = assert_flags_refused(&["--auth", "jwt"]);
    assert_names(&message, &["--jwt-hs256-secret-file", "--jwt-ed25519-public-key-file"]);
    for flag in ["--jwt-hs256-secret-file", "--jwt-ed25519-public-key-file"] {
        let message = assert_flags_refused(&["--auth", "jwt", flag, "/no/such/key"]);
        assert_names(&message, &["/no/such/key"]);
        let empty = ScratchFile::new("empty.key", "");
        assert_names(&assert_flags_refused(&["--auth", "jwt", flag, empty.path()]), &[empty.path()]);
    }
    let no_pem = ScratchFile::new("no.pem", "this is no PEM\n");
    let flags = ["--auth", "jwt", "--jwt-ed25519-public-key-file", no_pem.path()];
    assert_names(&assert_flags_refused(&flags), &[no_pem.path()]);
}

#[test]
fn a_memory_budget_that_does_not_fit_is_refused() {
    let message = assert_flags_refused(&["--memory-max", "1048576"]);
    assert_names(&message, &["memory"]);
}

#[test]
fn the_memory_budget_is_printed() {
    with_gateway(2, &[], |gateway| {
        let said = gateway.stdout();
        assert_names(&said, &["memory"]);
    });
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let address = taken.local_addr().expect("its address").to_string();
    let message = assert_refused(&["--listen", &address, "--http", "127.0.0.1:0"]);
    assert_names(&message, &[&address, "in use"]);
    let message = assert_refused(&["--listen", "127.0.0.1:0", "--http", &address]);
    assert_names(&message, &[&address, "in use"]);
}

#[test]
fn a_second_gateway_does_not_share_the_port_of_the_first() {
    // The shards of one gateway share a port; the kernel would let another process of the same user join them
    // unnoticed.
    with_gateway(2, &[], |first| {
        let address = first.client_address().to_string();
        let message = assert_refused(&["--listen", &address, "--http", "127.0.0.1:0"]);
        assert_names(&message, &[&address, "in use"]);
        for user in 1..=8 {
            Client::login(first, user).ping();
        }
    });
}

#[test]
fn check_config_tells_every_fault_and_what_was_meant() {
    let file = ScratchFile::new(
        "faults.toml",
        "shard = 2\nhttp = \"127.0.0.1:7700\"\nlog = \"verbose\"\nweight = 0\nauth = \"jwt\"\n\
         jwt_hs256_secret_file = \"/no/such/key\"\n",
    );
    let message = assert_refused(&["check-config", file.path()]);
    let parts = [
        ("line 1", "did you mean `shards`?"),
        ("http = 127.0.0.1:7700", "listen"),
        ("log = \"verbose\"", "debug"),
        ("weight (", "line 4"),
    ];
    for (start, says) in parts {
        let line =
            message.lines().find(|line| line.contains(start)).unwrap_or_else(|| panic!("no {start} in {message}"));
        assert_names(line, &[says, file.path()]);
    }
    assert_eq!(gateway(&["check-config", file.path()]).status.code(), Some(2));
    // What only shows when the rest is right.
    let key = ScratchFile::new("key.toml", "auth = \"jwt\"\njwt_hs256_secret_file = \"/no/such/key\"\n");
    let message = assert_refused(&["check-config", key.path()]);
    assert_names(&message, &["jwt_hs256_secret_file (", "line 2", "/no/such/key"]);
}

#[test]
fn check_config_refuses_addresses_that_take_each_other() {
    let message = assert_refused(&["--listen", "127.0.0.1:7700", "--http", "127.0.0.1:7700"]);
    assert_names(&message, &["http = 127.0.0.1:7700 (--http)", "listen", "another port"]);
    let secret = ScratchFile::new("cluster", "sixteen bytes and more");
    let cluster = ["--redis", "redis-cluster://127.0.0.1:1", "--cluster-secret-file", secret.path()];
    for mesh in ["127.0.0.1:7700", "127.0.0.1:7780"] {
        let message = assert_refused(&[&["--mesh", mesh], &cluster[..]].concat());
        assert_names(&message, &[&format!("mesh = {mesh} (--mesh)"), "another port"]);
    }
}

#[test]
fn the_password_of_redis_is_printed_nowhere() {
    let secret = ScratchFile::new("cluster", "sixteen bytes and more");
    let with = |url: &str| {
        let text = format!("redis = \"{url}\"\ncluster_secret_file = \"{}\"\n", secret.path());
        let file = ScratchFile::new("redis.toml", text);
        let output = gateway(&["check-config", file.path()]);
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).expect("UTF-8")).concat();
        assert!(!said.contains("hunter2"), "{said}");
        (output.status.success(), said)
    };
    let (accepted, said) = with("redis-cluster://me:hunter2@127.0.0.1:1");
    assert!(accepted, "{said}");
    assert_names(&said, &["redis = \"redis-cluster://…@127.0.0.1:1\"", "not shown"]);
    for url in
        ["redis://me:hunter2@127.0.0.1:1", "redis-cluster://me:hunter2@127.0.0.1", "redis-cluster://me:hunter2@h:1\\"]
    {
        let (accepted, said) = with(url);
        assert!(!accepted, "{said}");
        assert_names(&said, &["redis"]);
    }
}

#[test]
fn a_file_without_an_end_is_refused() {
    for arguments in [["check-config", "/dev/zero"], ["--config", "/dev/zero"]] {
        assert_names(&assert_refused(&arguments), &["/dev/zero", "longer than"]);
    }
    let flags = ["--auth", "jwt", "--jwt-hs256-secret-file", "/dev/zero"];
    assert_names(&assert_flags_refused(&flags), &["jwt_hs256_secret_file (--jwt-hs256-secret-file)", "/dev/zero"]);
}

#[test]
fn a_configuration_may_come_through_a_pipe() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo shards = 3 | \"$0\" check-config /dev/stdin", env!("CARGO_BIN_EXE_gateway")]);
    let output = command.output().expect("run it");
    assert!(output.status.success(), "{output:?}");
    assert_names(&String::from_utf8(output.stdout).expect("UTF-8"), &["shards = 3"]);
}

#[test]
fn a_variable_that_is_empty_is_not_set() {
    let file = ScratchFile::new("empty.toml", "shards = 3\n");
    let mut command = gateway_command();
    command.args(["check-config", file.path()]);
    for name in ["TRUNKLINE_SHARDS", "TRUNKLINE_LISTEN", "TRUNKLINE_AUTH", "TRUNKLINE_REDIS", "TRUNKLINE_CONFIG"] {
        command.env(name, "");
    }
    let output = run(&mut command);
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.lines().any(|line| line.starts_with("shards = 3 ") && line.contains(file.path())), "{said}");
}

#[test]
fn a_refused_variable_is_named_beside_every_other_fault() {
    let file =
        ScratchFile::new("weight.toml", "weight = 0\nredis = \"redis-cluster://h:1\"\ncluster_secret_file = \"s\"\n");
    let mut command = gateway_command();
    command.args(["check-config", file.path()]);
    command.envs([("TRUNKLINE_SHARDS", "many"), ("TRUNKLINE_AUTH", "maybe"), ("TRUNKLINE_HEARTBEAT_SECS", "700")]);
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    for (line, allowed) in [
        ("shards = many (TRUNKLINE_SHARDS): ", "digit"),
        ("auth = maybe (TRUNKLINE_AUTH): ", "open or jwt"),
        ("heartbeat_secs = 700 (TRUNKLINE_HEARTBEAT_SECS): ", "5 to 600"),
        ("weight = 0 (", "line 1"),
    ] {
        let found = said.lines().find(|found| found.contains(line)).unwrap_or_else(|| panic!("no {line} in {said}"));
        assert_names(found, &[allowed]);
    }
}

#[test]
fn settings_that_can_be_reloaded_are_marked() {
    let default = String::from_utf8(gateway(&["default-config"]).stdout).expect("UTF-8");
    let before = |key: &str| {
        let at = default.find(&format!("\n{key} = ")).unwrap_or_else(|| panic!("no {key}"));
        default[..at].rsplit("\n\n").next().expect("what stands before it").to_owned()
    };
    assert!(before("heartbeat_secs").contains("Reloadable"), "{default}");
    assert!(!before("unacked_max").contains("Reloadable"), "{default}");
}

#[test]
fn advice_about_open_files_can_be_followed() {
    // A gateway that starts is ended by `timeout`, which a run of these flags never needs when it is refused.
    let with_limit = |limit: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n \"$1\"; shift; exec \"$@\"", "sh", limit, "timeout", "2"]);
        command.arg(env!("CARGO_BIN_EXE_gateway")).args(ON_FREE_PORTS).args(["--shards", "1"]);
        let output = command.output().expect("run it");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (status, said) = with_limit("64");
    assert_eq!(status, Some(1), "{said}");
    assert_names(&said, &["RLIMIT_NOFILE", "is 64", "raise it to "]);
    assert!(!said.contains("connections-max to 0"), "{said}");
    let needed = said.split_once("raise it to ").expect("a number").1.split(' ').next().expect("a number");
    let (status, said) = with_limit(needed);
    assert_ne!(status, Some(1), "with {needed}: {said}");
}
