//! Servers to compare with: how each is started on a port of its own, and how to install it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    affinity::{SERVER_CORE, kernel_number},
    dialect::{Dialect, Mqtt, Nats, Resp},
    failure::Failure,
    ring::os,
    server::Server,
    tls::{Greeting, Identity, TlsArgs, TlsClient, Within},
    transport::{Layers, Transport, Wire},
};

/// A server that is no part of this project.
pub(crate) struct Peer {
    /// Its name, also that of its program.
    pub(crate) name: &'static str,
    /// What it is and how messages reach a user.
    pub(crate) what: &'static str,
    /// How to install it.
    pub(crate) install: &'static str,
    /// Its protocol.
    pub(crate) dialect: &'static dyn Dialect,
    /// Prints its version.
    version: &'static [&'static str],
    /// How it goes over TLS, if it does.
    pub(crate) tls: Option<Greeting>,
    /// The subprotocol of its WebSockets, if it has some; empty where it asks for none.
    pub(crate) websocket: Option<&'static str>,
    /// Writes its configuration into a folder of its own and says how to start it.
    command: fn(&Path, SocketAddrV4, Layered<'_>) -> Result<Command, Failure>,
}

/// What lies between a peer's protocol and TCP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layered<'a> {
    /// WebSockets.
    pub(crate) websocket: bool,
    /// TLS, with this certificate.
    pub(crate) tls: Option<&'a Identity>,
}

/// All that are known.
pub(crate) const PEERS: [Peer; 4] = [
    Peer {
        name: "nats-server",
        what: "NATS, PUB to the other's subject",
        install: "apt-get install nats-server",
        dialect: &Nats,
        version: &["nats-server", "--version"],
        tls: Some(Greeting::Line),
        websocket: Some(""),
        command: |folder, address, layered| {
            let mut command = Command::new("nats-server");
            let (ip, port) = (address.ip(), address.port());
            if layered.websocket {
                let tls = match layered.tls {
                    None => "no_tls: true".to_owned(),
                    Some(identity) => format!(
                        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}",
                        identity.cert().display(),
                        identity.key().display()
                    ),
                };
                // It has to listen for its own protocol as well: somewhere.
                let text = format!("listen: \"{ip}:-1\"\nwebsocket {{ listen: \"{ip}:{port}\", {tls} }}\n");
                command.arg("-c").arg(written(folder, "nats.conf", &text)?);
                return Ok(command);
            }
            command.args(["-a", &ip.to_string(), "-p", &port.to_string()]);
            if let Some(identity) = layered.tls {
                command.arg("--tls").arg("--tlscert").arg(identity.cert()).arg("--tlskey").arg(identity.key());
            }
            Ok(command)
        },
    },
    Peer {
        name: "mosquitto",
        what: "MQTT 3.1.1, QoS 0",
        install: "apt-get install mosquitto",
        dialect: &Mqtt,
        version: &["mosquitto", "-h"],
        tls: Some(Greeting::None),
        websocket: Some("mqtt"),
        command: |folder, address, layered| {
            let (ip, port) = (address.ip(), address.port());
            // Version 2.0.11 ends where all it listens for are WebSockets.
            let (besides, protocol) = match layered.websocket {
                true => (format!("listener 0 {}\n", folder.join("mqtt.sock").display()), "protocol websockets\n"),
                false => (String::new(), ""),
            };
            let tls = layered.tls.map(|identity| {
                format!("certfile {}\nkeyfile {}\n", identity.cert().display(), identity.key().display())
            });
            let text = format!(
                "{besides}listener {port} {ip}\n{protocol}{}allow_anonymous true\npersistence false\n\
                 set_tcp_nodelay true\nuser root\nlog_type error\n",
                tls.unwrap_or_default()
            );
            let mut command = Command::new("mosquitto");
            command.arg("-c").arg(written(folder, "mosquitto.conf", &text)?);
            Ok(command)
        },
    },
    Peer {
        name: "redis-server",
        what: "Redis Pub/Sub, RESP3",
        install: "apt-get install redis-server",
        dialect: &Resp,
        version: &["redis-server", "--version"],
        tls: Some(Greeting::None),
        websocket: None,
        command: |folder, address, layered| {
            let mut command = Command::new("redis-server");
            command.args(["--bind", &address.ip().to_string()]);
            let port = address.port().to_string();
            match layered.tls {
                None => command.args(["--port", &port]),
                Some(identity) => command
                    .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no", "--tls-cert-file"])
                    .arg(identity.cert())
                    .arg("--tls-key-file")
                    .arg(identity.key()),
            };
            command.args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxclients",
                "18000",
                "--tcp-backlog",
                "4096",
                "--protected-mode",
                "no",
            ]);
            command.args(["--client-output-buffer-limit", "pubsub 256mb 64mb 60", "--dir"]).arg(folder);
            Ok(command)
        },
    },
    Peer {
        name: "rumqttd",
        what: "MQTT 3.1.1, QoS 0, in Rust on tokio",
        install: "cargo install rumqttd",
        dialect: &Mqtt,
        version: &["rumqttd", "--version"],
        tls: None,
        websocket: None,
        command: |folder, address, _| {
            let text = format!(
                "id = 0\n[router]\nid = 0\nmax_connections = 18000\nmax_outgoing_packet_count = 200\n\
                 max_segment_size = 104857600\nmax_segment_count = 10\n\
                 [v4.1]\nname = \"v4-1\"\nlisten = \"{address}\"\nnext_connection_delay_ms = 0\n[v4.1.connections]\n\
                 connection_timeout_ms = 60000\n\
                 max_payload_size = 20480\nmax_inflight_count = 200\ndynamic_filters = true\n"
            );
            let mut command = Command::new("rumqttd");
            command.arg("-c").arg(written(folder, "rumqttd.toml", &text)?);
            Ok(command)
        },
    },
];

impl Peer {
    /// What its clients do over a transport; `None` where it does not speak that.
    pub(crate) fn layers(&self, transport: Transport, tls: TlsArgs) -> Option<Layers> {
        let websocket = Wire::OtherWebSocket(self.websocket.unwrap_or_default());
        Some(match transport {
            Transport::Native => Wire::Native.into(),
            Transport::Ws => self.websocket.map(|_| websocket.into())?,
            Transport::Tls => {
                let client = TlsClient::new(tls, Within::Other(self.tls?));
                Layers { wire: Wire::Native, tls: Some(client) }
            }
            Transport::Wss => {
                let client = TlsClient::new(tls, Within::Other(Greeting::None));
                self.tls.and(self.websocket).map(|_| Layers { wire: websocket, tls: Some(client) })?
            }
        })
    }

    /// What it says of its version, or `None` when it is not installed.
    pub(crate) fn version(&self) -> Option<String> {
        version_of(Path::new(self.version[0]), &self.version[1..])
    }

    /// Starts it on the servers' core, on a free port of loopback.
    pub(crate) fn start(&self, folder: &Path, layered: Layered<'_>) -> Result<Server, Failure> {
        start_in(self.name, &folder.join(self.name), |folder, address| (self.command)(folder, address, layered))
    }
}

/// Starts a server on the servers' core, on a free port of loopback; `command` says how, for a folder of its own.
pub(crate) fn start_in(
    name: &'static str,
    folder: &Path,
    command: impl FnOnce(&Path, SocketAddrV4) -> Result<Command, Failure>,
) -> Result<Server, Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::system(&format!("making {}", folder.display()), error))?;
    let address = free_address()?;
    let mut command = command(folder, address)?;
    command.stdin(Stdio::null()).current_dir(folder);
    if let Some(core) = kernel_number(SERVER_CORE) {
        os::confine(&mut command, vec![core]);
    }
    Server::start_at(name, command, address)
}

/// What a program says of its version, or `None` when there is no such program.
pub(crate) fn version_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    // Some print their version with their help, and end with another status than 0.
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.chars().any(|character| character.is_ascii_digit()))?;
    Some(line.trim().to_owned())
}

/// A port of loopback on which nobody listens.
pub(crate) fn free_address() -> Result<SocketAddrV4, Failure> {
    let failed = |error| Failure::system("finding a free port", error);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().map_err(failed)?.port()))
}

pub(crate) fn written(folder: &Path, name: &str, text: &str) -> Result<PathBuf, Failure> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|error| Failure::system(&format!("writing {}", path.display()), error))?;
    Ok(path)
}
