use super::*;
use crate::config::testing::host;
use crate::config::{ConfigFile, Sources};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder with a configuration and a key, removed when the test is done.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("trunkline-reload-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0).unwrap();
        folder.key("a secret of thirty-two bytes, at least");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn key(&self, secret: &str) {
        fs::write(self.path("key"), secret).unwrap();
    }

    fn config(&self, more: &str) {
        let key = self.path("key");
        let text = format!("auth = \"jwt\"\njwt_hs256_secret_file = {:?}\n{more}", key.to_str().unwrap());
        fs::write(self.path("gateway.toml"), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn read(path: &Path) -> Result<Config, ConfigError> {
    let file = Some(ConfigFile::read(path)?);
    Config::resolve(Sources { file, ..Sources::default() }, &host())
}

/// What is read anew each time, and what is in force.
fn begin(folder: &Folder) -> (Shared, InForce) {
    let path = folder.path("gateway.toml");
    let config = read(&path).unwrap();
    let marks = marks(&config);
    (Shared { read: Box::new(move || read(&path)), host: host() }, InForce { config, marks })
}

fn keys(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.key).collect()
}

#[test]
fn nothing_changed_is_nothing_done() {
    let folder = Folder::new();
    folder.config("log = \"info\"\n");
    let (shared, in_force) = begin(&folder);
    assert_eq!(shared.look(&in_force).unwrap().reloaded, Reloaded::default());
}

#[test]
fn what_can_be_taken_is_taken_and_the_rest_is_told() {
    let folder = Folder::new();
    folder.config("log = \"info\"\nshards = 2\nheartbeat_secs = 40\n");
    let (shared, in_force) = begin(&folder);
    folder.config("log = \"debug\"\nshards = 3\nlogins_per_sec = 7\n");
    let fresh = shared.look(&in_force).unwrap();
    assert_eq!(keys(&fresh.reloaded.applied), ["logins_per_sec", "heartbeat_secs", "log"]);
    assert_eq!(keys(&fresh.reloaded.needs_restart), ["shards"]);
    let config = &fresh.in_force.config;
    assert_eq!((config.log.as_str(), config.shards, config.limits().heartbeat_secs), ("debug", 2, 30));
    let shards = fresh.reloaded.needs_restart[0].to_string();
    assert!(shards.starts_with("shards = 3, was 2 (") && shards.contains("gateway.toml, line 4"), "{shards}");
    // The next one tells of the shards again, and of nothing else.
    let again = shared.look(&fresh.in_force).unwrap().reloaded;
    assert_eq!((keys(&again.applied), keys(&again.needs_restart)), (vec![], vec!["shards"]));
}

#[test]
fn a_key_that_holds_something_else_is_taken() {
    let folder = Folder::new();
    folder.config("");
    let (shared, in_force) = begin(&folder);
    folder.key("another secret of thirty-two bytes, or more");
    let fresh = shared.look(&in_force).unwrap();
    assert_eq!(keys(&fresh.reloaded.applied), ["jwt_hs256_secret_file"]);
    let told = fresh.reloaded.applied[0].to_string();
    assert!(told.contains("holds something else") && !told.contains("another"), "{told}");
    assert_eq!(shared.look(&fresh.in_force).unwrap().reloaded, Reloaded::default());
}

#[test]
fn the_secrets_of_the_cluster_are_taken_and_its_redis_needs_a_restart_each_time_it_is_asked() {
    let folder = Folder::new();
    let secret = folder.path("secret");
    fs::write(&secret, "sixteen bytes or more").unwrap();
    let cluster =
        format!("redis = \"redis-cluster://me:hidden@h:1\"\ncluster_secret_file = {:?}\n", secret.to_str().unwrap());
    folder.config(&cluster);
    let (shared, in_force) = begin(&folder);
    let before = in_force.config.load_secret().unwrap().unwrap();
    fs::write(&secret, "another one of sixteen bytes").unwrap();
    folder.config(&cluster.replace("hidden", "unseen"));
    let fresh = shared.look(&in_force).unwrap();
    assert_eq!(keys(&fresh.reloaded.applied), ["cluster_secret_file"]);
    assert_eq!(keys(&fresh.reloaded.needs_restart), ["redis"]);
    let after = fresh.secret.as_ref().unwrap();
    assert!(after.mark() != before.mark() && !after.accepts(&before.mark()));
    for change in &fresh.reloaded.needs_restart {
        let told = change.to_string();
        assert!(!told.contains("hidden") && !told.contains("unseen"), "{told}");
    }
    let again = shared.look(&fresh.in_force).unwrap().reloaded;
    assert_eq!((keys(&again.applied), keys(&again.needs_restart)), (Vec::new(), vec!["redis"]));
    // A second file beside the first: what the first one holds is proved, and both are accepted.
    let second = folder.path("second");
    fs::write(&second, "sixteen bytes or more\n").unwrap();
    let files = [&second, &secret].map(|path| format!("{:?}", path.to_str().unwrap())).join(", ");
    folder.config(&format!("redis = \"redis-cluster://me:hidden@h:1\"\ncluster_secret_file = [{files}]\n"));
    let both = shared.look(&fresh.in_force).unwrap().secret.unwrap();
    assert!(both.mark() == before.mark() && both.accepts(&before.mark()) && both.accepts(&after.mark()));
}

#[test]
fn what_is_refused_is_refused_as_a_whole_with_the_reason() {
    let folder = Folder::new();
    folder.config("");
    let (shared, in_force) = begin(&folder);
    let refusal = |more: &str| {
        folder.config(more);
        shared.look(&in_force).map(|fresh| fresh.reloaded).unwrap_err().to_string()
    };
    assert!(refusal("log = \"verbose\"\n").contains("log = \"verbose\""));
    assert!(refusal("shards = = 2\n").contains("line 3"));
    assert!(refusal("log = \"debug\"\nnode = \"a b\"\n").contains("1 to 64 letters"));
    folder.key("too short");
    assert!(refusal("log = \"debug\"\n").contains("jwt_hs256_secret_file"));
    fs::remove_file(folder.path("gateway.toml")).unwrap();
    let gone = shared.look(&in_force).map(|fresh| fresh.reloaded).unwrap_err().to_string();
    assert!(gone.contains("gateway.toml"), "{gone}");
}

#[test]
fn what_can_only_be_read_once_is_not_read_again() {
    let folder = Folder::new();
    folder.config("");
    let (shared, in_force) = begin(&folder);
    let InForce { mut config, marks } = in_force;
    config.file = Some("/dev/null".into());
    let in_force = InForce { config, marks };
    let refusal = shared.look(&in_force).map(|fresh| fresh.reloaded).unwrap_err().to_string();
    assert!(refusal.contains("/dev/null: it is no regular file"), "{refusal}");
}
