//! `bench fanout --nodes`: the same deliveries from one gateway and from several that are one cluster, in turns.
//!
//! What the nodes of a cluster have to do besides is to bring each message to its room's home and from there to each
//! other node with members. That is one copy for each link and message, whatever the members behind it: the nodes'
//! counters have to say so, or the run has failed. CPU is that of all nodes; that of Redis, where they have their
//! leases, is not counted.

use std::time::Duration;

use serde::Serialize;

use super::room::{Room, Round, Speech};
use super::{FanoutArgs, SENDS_PER_SEC, rounds_row, table_head};
use crate::{
    affinity::{SERVER_CORE, on_load_core},
    counters::Counters,
    failure::Failure,
    fleet::Targets,
    progress::Progress,
    report::{INTERVALS, Machine, Median, table, write_json},
    site::Site,
    users::{Placement, Share},
};

/// Copies between nodes in all measured rounds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Copies {
    /// Messages to the room.
    messages: u64,
    /// Copies that its home sent, and that came to other nodes.
    sent: u64,
    received: u64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    arguments: &'a FanoutArgs,
    command: Vec<String>,
    one: Vec<Round>,
    several: Vec<Round>,
    /// CPU for a delivery of several nodes over that of one, by round.
    over_one: Median,
    copies: Copies,
}

/// Runs it.
pub(super) fn run(args: &FanoutArgs, length: Duration) -> Result<(), Failure> {
    if !args.members.is_multiple_of(2) || args.members < 2 * args.nodes.nodes {
        return Err(Failure::Setup("--nodes takes an even number of members, two for each node at least".to_owned()));
    }
    let mut gateway = args.gateway.clone();
    gateway.also(&["--group-sends-per-sec", SENDS_PER_SEC, "--group-member-sends-per-sec", SENDS_PER_SEC]);
    // Each cast is awaited, so there is never anything to gather, only to wait for.
    gateway.also(&["--room-gather-ms", "0", "--room-frames-per-sec", "0"]);
    let several = Site::start(&args.nodes, &gateway, args.members, &[])?;
    let one = gateway.start_on(args.members, &[SERVER_CORE]).map(Site::alone)?;
    let mut sites = [("one node", one), ("nodes", several)];
    let outcome = on_load_core(|| measure(args, &sites, length));
    let explain = |failure| sites.iter_mut().fold(failure, |failure, (_, site)| site.explain(failure));
    let ([one, several], copies) = outcome.map_err(explain)?;
    sites.into_iter().try_for_each(|(_, site)| site.stop())?;
    let ratios = several.iter().zip(&one).map(|(several, one)| several.cpu_us / one.cpu_us);
    let report = Report {
        bench: "fanout-nodes",
        machine: Machine::this(),
        arguments: args,
        command: std::env::args().collect(),
        over_one: Median::of(ratios),
        one,
        several,
        copies,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

fn measure(
    args: &FanoutArgs,
    sites: &[(&'static str, Site); 2],
    length: Duration,
) -> Result<([Vec<Round>; 2], Copies), Failure> {
    let shards = args.gateway.shards_for(args.members)?;
    let mut rooms = Vec::new();
    for (name, site) in sites {
        // Each member at its home.
        let seats = site.seats(args.members, shards, Placement::Any);
        let targets: Targets = site.targets(&seats);
        rooms.push(Room::enter(args, &targets, vec![Share::of_one(seats.users, 0)], name, Speech::Gateway)?);
    }
    let (mut rounds, mut copies) = ([Vec::new(), Vec::new()], Copies::default());
    for number in 1..=args.rounds as usize {
        // By turns, so that neither always finds the machine as the other one left it.
        for at in [number % 2, (number + 1) % 2] {
            let ((name, site), room) = (&sites[at], &mut rooms[at]);
            let progress = Progress::new(format!("{name} {number}/{}", args.rounds));
            room.calm()?;
            room.warm()?;
            let before = counters(site)?;
            let round = room.round(&site.pids(), length, &progress)?;
            let messages = round.casts * u64::from(args.burst);
            if site.nodes() > 1 {
                copies.add(judge(&before, &counters(site)?, messages)?);
            }
            rounds[at].push(round);
        }
    }
    rooms.into_iter().try_for_each(Room::close)?;
    Ok((rounds, copies))
}

fn counters(site: &Site) -> Result<Vec<Counters>, Failure> {
    site.servers().iter().map(|server| server.http().and_then(Counters::read)).collect()
}

/// Whether one node, the home of the room, has sent one copy of each message to each other node, and these have got
/// one.
fn judge(before: &[Counters], after: &[Counters], messages: u64) -> Result<Copies, Failure> {
    let grown = |name: &str| -> Vec<u64> {
        let name = format!("trunkline_group_relay_copies_{name}_total");
        before.iter().zip(after).map(|(before, after)| after.grown(before, &name)).collect()
    };
    let [sent, received, dropped, stale] = ["sent", "received", "dropped", "stale"].map(grown);
    let others = before.len() as u64 - 1;
    let is_as_it_should = sent.iter().zip(&received).all(|pair| match pair {
        (0, received) => *received == messages,
        (sent, received) => *sent == messages * others && *received == 0,
    });
    let copies = Copies { messages, sent: sent.iter().sum(), received: received.iter().sum() };
    let lost: u64 = dropped.iter().chain(&stale).sum();
    if is_as_it_should && copies.sent == messages * others && lost == 0 {
        return Ok(copies);
    }
    Err(Failure::Accounts(format!(
        "of {messages} messages one copy should have gone over each link, but the nodes have sent {sent:?} and \
         received {received:?}; {lost} were not passed on"
    )))
}

impl Copies {
    fn add(&mut self, other: Copies) {
        self.messages += other.messages;
        self.sent += other.sent;
        self.received += other.received;
    }
}

fn print_summary(report: &Report<'_>) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!(
        "a room of {}, {} B, {} at once; {} rounds of {} s, medians",
        args.members, args.payload, args.burst, args.rounds, args.secs
    );
    let rows =
        [rounds_row("one node", &report.one), rounds_row(&format!("{} nodes", args.nodes.nodes), &report.several)];
    println!("{}", table(&table_head(), &rows));
    println!("CPU for a delivery of {} nodes over one: {}", args.nodes.nodes, report.over_one);
    println!("{INTERVALS}");
    let Copies { messages, sent, received } = report.copies;
    println!(
        "{messages} messages, {sent} copies between nodes, {received} of which came: one for each link and message"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_for_each_link_and_message_is_what_may_be() {
        let counters = |sent: [u64; 3], received: [u64; 3], stale: u64| {
            let node = |at: usize| {
                let name = |what: &str, value: u64| format!("trunkline_group_relay_copies_{what}_total {value}\n");
                Counters::parsed(&(name("sent", sent[at]) + &name("received", received[at]) + &name("stale", stale)))
            };
            [0, 1, 2].map(node)
        };
        let before = counters([5, 7, 0], [5, 5, 1], 0);
        let judged = |sent, received, stale| judge(&before, &counters(sent, received, stale), 10);
        let right = judged([5, 27, 0], [15, 5, 11], 0).expect("one each");
        assert_eq!((right.messages, right.sent, right.received), (10, 20, 20));
        for (sent, received, stale) in [
            ([5, 28, 0], [15, 5, 11], 0),
            ([5, 27, 0], [16, 5, 11], 0),
            ([5, 27, 0], [15, 5, 10], 0),
            ([25, 27, 0], [15, 5, 11], 0),
            ([5, 27, 0], [15, 5, 11], 1),
            ([5, 7, 0], [15, 15, 11], 0),
        ] {
            assert!(judged(sent, received, stale).is_err(), "{sent:?} {received:?} {stale}");
        }
    }
}
