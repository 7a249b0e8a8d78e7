//! The defaults on little memory, with a real process: in a control group where this machine lets a test make one, and
//! by flags.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Clients of each gateway, and messages that go round among them.
const CLIENTS: u64 = 200;
const BODY_BYTES: usize = 1_000;

/// A control group with a limit on memory; removed at the end.
struct Group(PathBuf);

impl Group {
    /// Below the group of this process, in the version the machine has.
    fn new(mib: u64) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let name = format!("trunkline-test-{}-{mib}", std::process::id());
        let mut why = "no memory controller in /proc/self/cgroup".to_owned();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (mount, limit) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => continue,
            };
            let folder = Path::new(mount).join(path.trim_start_matches('/')).join(&name);
            match Group::at(folder, limit, mib) {
                Ok(group) => return Ok(group),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn at(folder: PathBuf, limit: &str, mib: u64) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir(&folder).map_err(failed)?;
        let group = Group(folder.clone());
        fs::write(folder.join(limit), (mib << 20).to_string()).map_err(failed)?;
        Ok(group)
    }

    /// The command, run in this group from its first instruction on.
    fn command(&self, flags: &[&str]) -> Command {
        let gateway = gateway_command();
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0"/cgroup.procs && exec "$@""#]).arg(&self.0).arg(gateway.get_program());
        command.args(flags);
        for (name, value) in gateway.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// Everybody logs in, sends to the next one and reads what comes.
fn serves(gateway: &Gateway) {
    let mut clients: Vec<Client> = (1..=CLIENTS).map(|user| Client::login(gateway, user)).collect();
    let body = vec![7; BODY_BYTES];
    for (client, at) in clients.iter_mut().zip(1..) {
        client.send(at % CLIENTS + 1, 0, &body);
    }
    for client in &mut clients {
        assert_eq!(client.recv_deliver().body, body);
    }
}

#[test]
fn the_defaults_start_and_serve_in_a_small_control_group() {
    for mib in [64, 96, 224, 256] {
        let group = match Group::new(mib) {
            Ok(group) => group,
            Err(why) => {
                println!("skipped: no control group can be made here ({why})");
                return;
            }
        };
        let gateway = Gateway::start_command(group.command(&[]));
        let stdout = gateway.stdout();
        assert!(stdout.contains("memory at the limits:") && !stdout.contains("warning"), "{mib} MiB: {stdout}");
        serves(&gateway);
        gateway.audit();
        gateway.finish();
        drop(group);
    }
}

#[test]
fn little_memory_by_flags_starts_and_serves() {
    for flags in [&["--memory-max", "56MiB", "--shards", "1"][..], &["--memory-max", "384MiB", "--shards", "16"]] {
        let mut command = gateway_command();
        command.args(flags);
        let gateway = Gateway::start_command(command);
        serves(&gateway);
        gateway.audit();
        gateway.finish();
    }
}

#[test]
fn advice_that_is_printed_can_be_followed() {
    let refused = ["--memory-max", "64MiB", "--shards", "16"];
    let output = gateway_command().args(refused).output().expect("run the gateway");
    let stderr = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let advice = stderr.rsplit_once(": each of these makes it fit: ").expect(&stderr).1.trim();
    let pieces: Vec<&str> = advice.split(", or ").collect();
    assert_eq!(pieces.len(), 2, "a number of shards and a size: {advice}");
    for piece in pieces {
        let (flag, value) = piece.split_once(' ').expect(piece);
        let mut flags = refused;
        let at = flags.iter().position(|given| *given == flag).expect("one of the flags that were given");
        flags[at + 1] = value;
        let mut command = gateway_command();
        command.args(flags);
        Gateway::start_command(command).finish();
    }
}
