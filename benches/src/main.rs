//! `bench`: what a gateway costs, measured beside the floor and beside other servers.
//!
//! `floor`, `pairs` and `idle` measure a message and an idle connection next to a raw echo on the leanest ring set-up;
//! `hold`, `rate`, `storm`, `slow` and `churn` drive many clients ([`crowd`]) through one situation each, `hold` and
//! `storm` on several threads if asked to ([`team`]); `vs` lets the same load engine speak the protocols of other
//! servers. Every message is accounted for: a run whose messages do not add up ends with exit status 1 and names the
//! first one that does not.

mod affinity;
mod backend;
mod backlog;
mod ballast;
mod calls;
mod churn;
mod clock;
mod cores;
mod counters;
mod crowd;
mod dialect;
mod discrepancy;
mod disk;
mod exchange;
mod failure;
mod fanout;
mod fleet;
mod floor;
mod gateway;
mod handshakes;
mod heartbeat;
mod hold;
mod http;
mod idle;
mod keepers;
mod keeping;
mod latency;
mod ledger;
mod login;
mod pairs;
mod payload;
mod peers;
mod plain;
mod plot;
mod posting;
mod process;
mod progress;
mod push;
mod push_all;
mod push_round;
mod rate;
mod reading;
mod redis;
mod replay;
mod report;
mod ring;
mod scenario;
mod server;
mod service;
mod site;
mod sleeper;
mod slow;
mod sockets;
mod store;
mod storm;
mod team;
mod tls;
mod traffic;
mod transport;
mod users;
mod vs;
mod watch;
mod watches;
mod websocket;

use std::{net::SocketAddr, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Load client of Trunkline: what a gateway costs, beside a raw echo in the same run.
///
/// Servers run on core 0, the load on core 1. Build everything with `--release` before measuring, and measure on a
/// machine that does nothing else.
#[derive(Debug, Parser)]
#[command(name = "bench", version, arg_required_else_help = true, args_override_self = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bench pairs --conns 100 --window 1            what a message costs, over the floor
  bench pairs --transport native,ws,tls,wss     and over WebSockets, TLS and both
  bench handshakes                              what logins over TLS cost, and what others notice of them
  bench hold --conns 100000 --secs 60           log in 100,000 clients and keep them
  bench rate --conns 2000 --rate 10000,50000    latency at fixed rates
  bench pairs --nodes 2 --conns 100             a message across two nodes, over one within
  bench pairs --nodes 3 --guests                and to users who are not at their home node
  bench hold --redis --conns 100000             logins with presence written to Redis
  bench storm --conns 50000                     all are cut off at once and come back
  bench fanout --members 15000                  one message to everybody in a room, beside a raw send to each
  bench calls --conns 100                       CALL and REPLY, beside nats-server, nginx and HAProxy
  bench push --users 5000                       pushes by a worker and by HTTP, beside messages
  bench watch --watches 1000000 --users 100000  who is online, while users come and go
  bench store --burst 1000000                   messages for users who are not there, beside bare appends and JetStream
  bench replay --users 10000 --messages 100     they come, and take what was kept for them
  bench vs --json vs.json                       beside every other server that is installed
  bench plot vs.json --out figures              and as pictures

Exit status:
  0 every message is accounted for; 1 something is not, or the run could not be done: the last line says what;
  2 a flag is wrong. Load goes to loopback only, unless --beyond-loopback says otherwise.";

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
    /// Messages at fixed rates among held connections: latency from the time each was to be sent
    Rate(rate::RateArgs),
    /// Cut all clients off at once and let them come back; a control group goes on
    Storm(storm::StormArgs),
    /// A share of the clients stops reading: what the others notice, and what is dropped
    Slow(slow::SlowArgs),
    /// One message to everybody in a live room: CPU for a delivery beside a raw send to each, and other servers
    ///
    /// The floor sends what arrives on one connection on all others, one send each. nats-server, redis-server and
    /// mosquitto, where they are installed, give it to as many subscribers of one subject. Counted is the CPU time of
    /// each server, user and system, of all its threads, and how long it takes until the first and the last have it.
    Fanout(fanout::FanoutArgs),
    /// Clients connect, log in, send a few messages and leave, at a steady rate
    Churn(churn::ChurnArgs),
    /// Logins over TLS: full, resumed, and at another node; what others notice of them, and of a flood
    Handshakes(handshakes::HandshakesArgs),
    /// Floor, gateway and other servers side by side: CPU for a message, memory of idle connections, latency
    Vs(vs::VsArgs),
    /// Calls and their answers, by a worker and by HTTP: CPU for a call, beside an echo and other servers
    ///
    /// Each client has one call in flight, and a back-end of the bench, on the load's core, sends back what it is
    /// given. Counted is the CPU time of the server in between, user and system, of all its threads: of the gateway
    /// with a worker and with an HTTP server behind it, and of nats-server (request/reply), nginx (stream) and HAProxy
    /// (TCP), where they are installed. The floor is a raw echo with nobody behind it: it receives and sends once for a
    /// call, all others twice.
    Calls(calls::CallsArgs),
    /// Pushes to users who are there, by a worker and by HTTP: CPU for one, beside messages; and one push to all
    ///
    /// The users log in and get what is pushed; all cases are measured at one gateway. A worker pushes over one link
    /// as much as it keeps in flight, with and without asking for fates, and beside it the same users send to each
    /// other in pairs, with and without ACK. By HTTP pushes are posted one by one and in batches, each answered with
    /// its fate; of these the CPU time of the gateway's services thread is shown by itself, since that thread has a
    /// core of its own where there is one, and here shares that of the shard. The push to all goes at the pace that
    /// is set, and ends with the exact number of sessions.
    Push(push::PushArgs),
    /// Watches over users who log in and out: states told, memory of a watch, how late; all true at the end
    ///
    /// The users log in, and some sessions watch them. Then users are chosen at random, so many a second: who is in
    /// logs out, who is out logs in. Each watcher is to be told of each user at most one change in five seconds, that
    /// one has gone 10 s later, and in any case the last state: once the changes have an end, the run waits until all
    /// of that has come and is true.
    Watch(watches::WatchArgs),
    /// Messages for users who are not there: kept a second, CPU, SEND to SENT 1; beside bare appends and other servers
    Store(store::StoreArgs),
    /// Users come for whom messages were kept: messages a second and core until all have all
    Replay(replay::ReplayArgs),
    /// Draw figures from JSON files of hold, rate and vs
    Plot(plot::PlotArgs),
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
    /// Accept connections, and neither receive nor answer anything: what is idle then is a socket and no more
    #[arg(long, conflicts_with = "fan_out")]
    unarmed: bool,
    /// Send what arrives on one connection on all others, instead of back
    #[arg(long)]
    fan_out: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Floor(args) => pairs::run_floor(&args),
        Command::Pairs(args) => pairs::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Hold(args) => hold::run(&args),
        Command::Rate(args) => rate::run(&args),
        Command::Storm(args) => storm::run(&args),
        Command::Slow(args) => slow::run(&args),
        Command::Fanout(args) => fanout::run(&args),
        Command::Churn(args) => churn::run(&args),
        Command::Handshakes(args) => handshakes::run(&args),
        Command::Vs(args) => vs::run(&args),
        Command::Calls(args) => calls::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Watch(args) => watches::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::FloorServer(args) => {
            let manner = match (args.unarmed, args.fan_out) {
                (true, _) => floor::Manner::Accept,
                (_, true) => floor::Manner::FanOut,
                _ => floor::Manner::Echo,
            };
            floor::serve(args.listen, args.core, args.batch, manner)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
