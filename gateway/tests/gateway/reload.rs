//! SIGHUP: what a running gateway takes of a changed configuration, what it says, and that a broken one changes
//! nothing.

use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::names::metric;
use crate::support::scratch::ScratchFile;
use crate::support::signing::encode;
use crate::support::wire::{Login, code, flag, kind};
use crate::support::{http, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::time::Duration;
use trunkline_router::http::{NewKey, Scope};

const FIRST: &str = "the first secret of this test, 32 bytes or more";
const SECOND: &str = "another secret of this test, 32 bytes or more";

fn token(user: u64, secret: &str) -> String {
    let claims = json!({ "sub": user.to_string(), "exp": get_current_timestamp() + 3_600 });
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes()))
}

/// A gateway with a configuration file, which can be changed below it.
struct Reloading {
    gateway: Gateway,
    file: ScratchFile,
    reloads: usize,
}

impl Reloading {
    fn start(text: &str) -> Self {
        let file = ScratchFile::new("gateway.toml", text);
        let mut command = gateway_command();
        command.args(["--config", file.path(), "--drain-secs", "0"]);
        Reloading { gateway: Gateway::start_command(command), file, reloads: 0 }
    }

    fn change(&self, text: &str) {
        fs::write(self.file.path(), text).expect("write the configuration");
    }

    /// Reloads and waits for the word that says how it ended; returns what it said about it.
    fn reload(&mut self) -> String {
        const ENDS: [&str; 3] = ["reload: nothing has changed", "more need a restart", "reload: refused"];
        self.gateway.signal(Signal::HUP);
        self.reloads += 1;
        wait_for("the reload is done", || {
            let log = self.gateway.log();
            let ends = log.lines().filter(|line| ENDS.iter().any(|end| line.contains(end))).count();
            (ends == self.reloads).then_some(())
        });
        let log = self.gateway.log();
        log.rsplit_once("SIGHUP: reading").expect("it says that it reads").1.to_owned()
    }
}

#[test]
fn keys_are_changed_without_a_restart() {
    let key = ScratchFile::new("secret", FIRST);
    let text = format!("shards = 2\nauth = \"jwt\"\njwt_hs256_secret_file = \"{}\"\n", key.path());
    let mut node = Reloading::start(&text);
    let login = |node: &Reloading, user: u64, secret: &str| {
        Client::login_with(&node.gateway, &Login::of(user).token(&token(user, secret))).0
    };
    let refused = |node: &Reloading, user: u64, secret: &str| {
        let mut client = Client::connect(&node.gateway);
        client.write(&Login::of(user).token(&token(user, secret)).frame());
        client.expect_bye(code::BAD_CREDENTIALS);
    };
    let mut before = login(&node, 1, FIRST);
    refused(&node, 2, SECOND);
    fs::write(key.path(), SECOND).expect("change the key");
    let said = node.reload();
    assert!(said.contains("reload: jwt_hs256_secret_file = ") && said.contains("1 settings changed"), "{said}");
    assert!(!said.contains(SECOND), "{said}");
    // Those who are in stay in, and new ones need the new key, on each shard.
    for user in 2..20 {
        login(&node, user, SECOND).ping();
        refused(&node, user, FIRST);
    }
    before.ping();
    // A key that cannot be used changes nothing.
    fs::write(key.path(), "too short").expect("change the key");
    let said = node.reload();
    assert!(said.contains("reload: refused") && said.contains("jwt_hs256_secret_file ("), "{said}");
    login(&node, 2, SECOND).ping();
    drop(before);
    node.gateway.audit();
    node.gateway.finish();
}

#[test]
fn keys_of_the_http_api_are_changed_without_a_restart() {
    let [first, second] = ["first", "second"].map(|name| NewKey::make(name, &[Scope::Kick]).expect("a key"));
    let keys = ScratchFile::new("keys.toml", &first.line);
    let mut node = Reloading::start(&format!("api_keys_file = \"{}\"\n", keys.path()));
    // 404 is the answer of one who may ask: user 1 has no session.
    let kick = |node: &Reloading, key: &NewKey| {
        let header = format!("Authorization: Bearer {}\r\n", key.key);
        http::request_with(node.gateway.http_address(), "POST", "/v1/users/1/kick", &header).expect("an answer").status
    };
    assert_eq!((kick(&node, &first), kick(&node, &second)), (404, 401));
    fs::write(keys.path(), &second.line).expect("change the keys");
    assert!(node.reload().contains("reload: api_keys_file = "));
    assert_eq!((kick(&node, &first), kick(&node, &second)), (401, 404));
    // An API that has had keys does not open.
    node.change("");
    assert!(node.reload().contains("reload: refused"));
    fs::write(keys.path(), "no keys").expect("change the keys");
    node.change(&format!("api_keys_file = \"{}\"\n", keys.path()));
    let said = node.reload();
    assert!(said.contains("reload: refused") && said.contains("api_keys_file ("), "{said}");
    assert_eq!((kick(&node, &first), kick(&node, &second)), (401, 404));
    node.gateway.audit();
    node.gateway.finish();
}

#[test]
fn limits_and_the_log_are_changed_and_the_rest_is_told() {
    let mut node = Reloading::start("shards = 2\nheartbeat_secs = 40\n");
    let heartbeat = |node: &Reloading| node.gateway.metrics().sum(metric::LIMIT_SECONDS, &[("limit", "heartbeat")]);
    let (mut old, login_ok) = Client::login_with(&node.gateway, &Login::of(1));
    assert_eq!((login_ok.heartbeat_secs, heartbeat(&node)), (40, 40));
    assert!(node.reload().contains("nothing has changed"));

    node.change(
        "shards = 3\nheartbeat_secs = 50\nframes_per_sec = 2\nlog = \"info,trunkline_gateway=debug\"\n\
         unacked_max = 7\n",
    );
    let said = node.reload();
    let line =
        |part: &str| said.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part:?} in {said}"));
    assert!(line("reload: heartbeat_secs = 50, was 40 (").contains("line 2)"));
    assert!(line("reload: log = \"info,trunkline_gateway=debug\", was \"info\"").contains("line 4)"));
    line("reload: frames_per_sec = 2, was 0");
    assert!(line("reload: shards = 3, was 2 (").contains("needs a restart"));
    assert!(line("reload: unacked_max = 7, was 1024 (").contains("needs a restart"));
    line("3 settings changed, 2 more need a restart");
    assert_eq!(heartbeat(&node), 50);
    assert_eq!(node.gateway.metrics().sum(metric::LIMIT, &[("limit", "unacked_per_user")]), 1_024);
    // Shards know when they have had a turn, which a login is.
    wait_for("a login gets the new heartbeat on each shard", || {
        let given = (2..10).map(|user| Client::login_with(&node.gateway, &Login::of(user)).1.heartbeat_secs);
        given.collect::<Vec<_>>().iter().all(|secs| *secs == 50).then_some(())
    });
    wait_for("the rate limit holds for a session of before", || is_limited(&mut old).then_some(()));
    drop(old);
    node.gateway.audit();
    node.gateway.finish();
}

#[test]
fn logins_per_sec_may_come_and_go() {
    let mut node = Reloading::start("shards = 2\n");
    for (text, said) in [
        ("shards = 2\nlogins_per_sec = 50\n", "logins_per_sec = 50, was 0"),
        ("shards = 2\nlogins_per_sec = 100\n", "logins_per_sec = 100, was 50"),
        ("shards = 2\n", "logins_per_sec = 0, was 100"),
    ] {
        let clients: Vec<Client> = (1..30).map(|user| Client::login(&node.gateway, user)).collect();
        node.change(text);
        assert!(node.reload().contains(said));
        for mut client in clients {
            client.ping();
        }
    }
    let clients: Vec<Client> = (1..30).map(|user| Client::login(&node.gateway, user)).collect();
    drop(clients);
    node.gateway.audit();
    node.gateway.finish();
}

#[test]
fn a_broken_configuration_changes_nothing_and_says_why() {
    let mut node = Reloading::start("heartbeat_secs = 40\n");
    for (text, why) in [
        ("heartbeat_secs = = 50\n", "line 1"),
        ("heartbeat_secs = 50\nlog = \"verbose\"\n", "\"verbose\" is no level"),
        ("heartbeat_secs = 50\nhartbeat_secs = 50\n", "did you mean `heartbeat_secs`?"),
        ("heartbeat_secs = 50\nshards = 0\n", "shards = 0"),
    ] {
        node.change(text);
        let said = node.reload();
        assert!(said.contains("reload: refused, the configuration in force stays") && said.contains(why), "{said}");
        let (_, login_ok) = Client::login_with(&node.gateway, &Login::of(1));
        assert_eq!(login_ok.heartbeat_secs, 40);
    }
    node.gateway.audit();
    node.gateway.finish();
}

#[test]
fn without_a_file_there_is_nothing_to_change() {
    let gateway = Gateway::start(1, &["--drain-secs", "0"]);
    gateway.signal(Signal::HUP);
    wait_for("it says so", || gateway.log().contains("reload: nothing has changed").then_some(()));
    gateway.audit();
    gateway.finish();
}

/// Whether a burst of frames is refused in part because of the rate. Reads all answers there are.
fn is_limited(client: &mut Client) -> bool {
    for _ in 0..20 {
        client.send(4_711, flag::ACK, b"to nobody");
    }
    let mut limited = false;
    while let Event::Frame(frame) = client.read_event(Duration::from_millis(200)) {
        limited |= frame.kind == kind::ERROR && frame.aux == code::RATE_LIMITED;
    }
    limited
}

#[test]
fn the_api_reloads_too_and_tells_what_came_of_it() {
    let keys = ["ops", "reader"].map(|name| {
        let scope = if name == "ops" { Scope::Reload } else { Scope::NodesRead };
        NewKey::make(name, &[scope]).expect("a key")
    });
    let keys_file = ScratchFile::new("keys.toml", format!("{}\n{}", keys[0].line, keys[1].line));
    let text = |rest: &str| format!("api_keys_file = \"{}\"\nshards = 2\n{rest}", keys_file.path());
    let node = Reloading::start(&text("heartbeat_secs = 40\n"));
    let reload = |key: &NewKey| {
        let header = format!("Authorization: Bearer {}\r\n", key.key);
        http::request_with(node.gateway.http_address(), "POST", "/v1/node/reload", &header).expect("an answer")
    };
    assert_eq!(reload(&keys[1]).status, 403, "another scope");
    let nothing = reload(&keys[0]);
    assert_eq!((nothing.status, nothing.json()), (200, json!({ "applied": [], "needs_restart": [] })));

    node.change(&text("heartbeat_secs = 50\nunacked_max = 7\n"));
    let taken = reload(&keys[0]).json();
    assert_eq!(taken["applied"][0]["setting"], "heartbeat_secs", "{taken}");
    assert!(taken["applied"][0]["change"].as_str().is_some_and(|change| change.starts_with("= 50, was 40")), "{taken}");
    assert_eq!(taken["needs_restart"][0]["setting"], "unacked_max", "{taken}");
    assert_eq!(Client::login_with(&node.gateway, &Login::of(1)).1.heartbeat_secs, 50);

    node.change(&text("heartbeat_secs = \"often\"\n"));
    let refused = reload(&keys[0]);
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.body.contains("heartbeat_secs") && refused.body.contains("stays"), "{}", refused.body);
    assert_eq!(Client::login_with(&node.gateway, &Login::of(1)).1.heartbeat_secs, 50);
    let audited = |line: &str| line.contains("audit") && line.contains("/v1/node/reload") && line.contains("ops");
    wait_for("it is audited", || node.gateway.log().lines().any(audited).then_some(()));
    node.gateway.audit();
    node.gateway.finish();
}
