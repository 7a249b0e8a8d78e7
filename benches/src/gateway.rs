//! The gateway that a bench measures: which program, or which running one, and how it is started.

use std::{
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use clap::Args;
use serde::Serialize;

use crate::{
    failure::Failure,
    server::{GatewayCommand, Server},
    sockets::{self, descriptor_limit},
    tls::Identity,
    transport::Transport,
};

/// Which gateway to measure.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct GatewayArgs {
    /// Gateway program to start [default: the one next to this program]
    #[arg(long, value_name = "FILE", conflicts_with = "gateway")]
    gateway_bin: Option<PathBuf>,
    /// Address of a gateway that runs already
    #[arg(long, value_name = "ADDRESS", requires = "gateway_pid")]
    gateway: Option<SocketAddrV4>,
    /// Its process id, whose CPU time and memory are read
    #[arg(long, value_name = "PID", requires = "gateway")]
    gateway_pid: Option<u32>,
    /// Address of its HTTP interface, where its counters are read
    #[arg(long, value_name = "ADDRESS", requires = "gateway")]
    gateway_http: Option<SocketAddr>,
    /// Allow a gateway that is not on loopback: only where its owner knows of the load
    #[arg(long, requires = "gateway")]
    beyond_loopback: bool,
    /// Shards of the gateway [default: as few as hold the connections]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    shards: Option<u32>,
    /// Connections the gateway is to allow for each shard [default: the gateway's own]
    #[arg(long, value_name = "N")]
    pub(crate) connections_max: Option<u32>,
    /// One more argument for the gateway; may be given several times
    #[arg(long = "gateway-arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    gateway_arguments: Vec<String>,
    /// What it shows to clients over TLS, where there are some.
    #[arg(skip)]
    #[serde(skip)]
    identity: OnceLock<Arc<Identity>>,
}

impl GatewayArgs {
    /// Shards of the gateway: the number asked for, or as few as hold so many connections under the limit of open
    /// files.
    pub(crate) fn shards_for(&self, connections: u32) -> Result<u32, Failure> {
        match self.shards {
            Some(shards) => Ok(shards),
            None => Ok(sockets::shards_for(connections, descriptor_limit()?)),
        }
    }

    /// Gives each of so many cores the same number of shards.
    pub(crate) fn spread_over(&mut self, cores: u32, connections: u32) -> Result<(), Failure> {
        let shards = self.shards_for(connections)?;
        if self.shards.is_some() && !shards.is_multiple_of(cores) {
            return Err(Failure::Setup(format!(
                "--shared-cores {cores} takes as many shards on each core: --shards {shards} is no multiple of it"
            )));
        }
        self.shards = Some(shards.next_multiple_of(cores));
        Ok(())
    }

    /// Adds arguments for a gateway that is started.
    pub(crate) fn also(&mut self, arguments: &[&str]) {
        self.gateway_arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// Whether it runs already, somewhere.
    pub(crate) fn runs_already(&self) -> bool {
        self.gateway.is_some()
    }

    /// Gives gateways that are started a certificate from now on. One that runs already has its own.
    pub(crate) fn show_certificate(&self) -> Result<(), Failure> {
        if self.identity.get().is_none() && !self.runs_already() {
            let identity = Arc::new(Identity::made_by(&self.binary()?)?);
            self.identity.get_or_init(|| identity);
        }
        Ok(())
    }

    /// What it is given; see [`GatewayArgs::show_certificate`].
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get().map(Arc::as_ref)
    }

    /// The same for clients of one transport: without a certificate where nobody wants one.
    pub(crate) fn over(&self, transport: Transport) -> GatewayArgs {
        let identity = if transport.is_tls() { self.identity.clone() } else { OnceLock::new() };
        GatewayArgs { identity, ..self.clone() }
    }

    fn binary(&self) -> Result<PathBuf, Failure> {
        if let Some(binary) = &self.gateway_bin {
            return Ok(binary.clone());
        }
        let own = std::env::current_exe();
        let own = own.map_err(|error| Failure::system("finding the bench's own program", error))?;
        Ok(own.with_file_name("gateway"))
    }

    /// Starts the gateway for so many connections, or finds the running one.
    pub(crate) fn start(&self, connections: u32) -> Result<Server, Failure> {
        self.start_on(connections, &[])
    }

    /// The same, on these cores only, if any are named.
    pub(crate) fn start_on(&self, connections: u32, cores: &[usize]) -> Result<Server, Failure> {
        if let (Some(address), Some(pid)) = (self.gateway, self.gateway_pid) {
            if !address.ip().is_loopback() && !self.beyond_loopback {
                return Err(Failure::Setup(format!(
                    "{address} is not on loopback: say --beyond-loopback if its owner knows of the load"
                )));
            }
            return Server::running("gateway", address, self.gateway_http, pid);
        }
        Server::gateway(&self.command(connections, cores)?)
    }

    /// How a gateway for so many connections is started.
    pub(crate) fn command(&self, connections: u32, cores: &[usize]) -> Result<GatewayCommand, Failure> {
        let mut arguments = self.gateway_arguments.clone();
        if let Some(identity) = self.identity() {
            for (flag, file) in [("--tls-cert", identity.cert()), ("--tls-key", identity.key())] {
                arguments.extend([flag.to_owned(), file.display().to_string()]);
            }
        }
        Ok(GatewayCommand {
            binary: self.binary()?,
            shards: self.shards_for(connections)?,
            connections_max: self.connections_max,
            arguments,
            cores: cores.to_vec(),
        })
    }
}
