//! `bench`: what a gateway costs, measured beside the floor in the same run.
//!
//! `bench floor` measures a raw echo on the leanest ring set-up, `bench pairs` that echo and the gateway in alternation,
//! `bench idle` the memory of idle connections. Every message is accounted for: a run whose messages do not add up
//! ends with exit status 1 and names the first one that does not.

mod affinity;
mod clock;
mod counters;
mod crowd;
mod discrepancy;
mod exchange;
mod failure;
mod fleet;
mod floor;
mod hold;
mod idle;
mod latency;
mod ledger;
mod login;
mod pairs;
mod payload;
mod plain;
mod process;
mod progress;
mod report;
mod ring;
mod scenario;
mod server;
mod sleeper;
mod sockets;
mod traffic;
mod users;
mod watch;

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Load client of Trunkline: what a gateway costs, beside a raw echo in the same run.
///
/// Servers run on core 0, the load on core 1. Build everything with `--release` before measuring, and measure on a
/// machine that does nothing else.
#[derive(Debug, Parser)]
#[command(name = "bench", version, arg_required_else_help = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// CPU time, rate and latency of a raw io_uring echo: the least a message can cost
    Floor(pairs::FloorArgs),
    /// The same of a gateway whose users send to each other in pairs, in alternation with the floor
    Pairs(pairs::PairsArgs),
    /// Memory of idle connections, user and kernel, of the gateway and of the floor
    Idle(idle::IdleArgs),
    /// Log in many clients and keep them: login rate, memory, idle CPU, messages of a control group
    Hold(hold::HoldArgs),
    /// The echo that the others start
    #[command(hide = true)]
    FloorServer(FloorServerArgs),
}

#[derive(Debug, Args)]
struct FloorServerArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Core to run on
    #[arg(long, default_value_t = affinity::SERVER_CORE)]
    core: usize,
    /// Completions to take at once when busy; 0 leaves it at what one plain system call yields
    #[arg(long, default_value_t = floor::BATCH)]
    batch: u32,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Floor(args) => pairs::run_floor(&args),
        Command::Pairs(args) => pairs::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Hold(args) => hold::run(&args),
        Command::FloorServer(args) => floor::serve(args.listen, args.core, args.batch),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
