//! Whether the interrupts of network queues are spread over the CPUs.

use super::{Check, PROCESSOR, Status};
use crate::host_tree::Root;
use std::collections::BTreeSet;

/// Parts of the names under which drivers request the interrupts of their queues, besides the interface's own name:
/// virtio, Mellanox, and those that say which direction.
const QUEUE_NAMES: [&str; 6] = ["-input.", "-output.", "TxRx", "mlx5_comp", "-rx-", "-tx-"];

/// The interrupt of one queue: where it went so far.
struct Queue {
    /// The CPU that took most of them; none when there were none yet.
    cpu: Option<usize>,
}

pub(super) fn check(root: &Root) -> Check {
    let name = "network interrupts";
    let Some(table) = root.text("/proc/interrupts") else {
        return Check::ok(PROCESSOR, name, "not told");
    };
    let interfaces: Vec<String> = root.names("/sys/class/net").into_iter().filter(|name| name != "lo").collect();
    let cpus = table.lines().next().unwrap_or_default().split_whitespace().count();
    let queues: Vec<Queue> = table.lines().skip(1).filter_map(|line| queue(line, cpus, &interfaces)).collect();
    let at_work: Vec<usize> = queues.iter().filter_map(|queue| queue.cpu).collect();
    let used: BTreeSet<usize> = at_work.iter().copied().collect();
    if queues.is_empty() {
        return Check::ok(PROCESSOR, name, "no queues of a network card");
    }
    let check =
        Check::ok(PROCESSOR, name, format!("queues at work: {}, on {} of {cpus} CPUs", at_work.len(), used.len()));
    // One busy queue may keep one CPU; steering by software spreads what is behind it.
    let crowded = used.len() < at_work.len().min(cpus);
    let single = cpus > 1 && used.len() == 1 && !is_steered(root, &interfaces);
    if !crowded && !single {
        return check;
    }
    check.bad(
        Status::Warn,
        format!("{} CPUs, or RPS", at_work.len().max(2).min(cpus)),
        "one CPU receives for all shards and limits the packets of the node",
        "tuning/nic-affinity.sh --apply INTERFACE",
    )
}

/// A line `number: count of each CPU ... name` that is about a queue.
fn queue(line: &str, cpus: usize, interfaces: &[String]) -> Option<Queue> {
    let (number, rest) = line.split_once(':')?;
    number.trim().parse::<u32>().ok()?;
    let counts: Vec<u64> = rest.split_whitespace().take(cpus).map_while(|count| count.parse().ok()).collect();
    let name = rest.split_whitespace().last()?;
    let of_interface = |interface: &String| {
        name.strip_prefix(interface.as_str()).is_some_and(|rest| rest.starts_with(['-', '@', ':']))
    };
    if !QUEUE_NAMES.iter().any(|part| name.contains(part)) && !interfaces.iter().any(of_interface) {
        return None;
    }
    let busiest = (0..counts.len()).max_by_key(|cpu| counts[*cpu]).filter(|cpu| counts[*cpu] > 0);
    Some(Queue { cpu: busiest })
}

/// Whether some receive queue has CPUs to steer packets to.
fn is_steered(root: &Root, interfaces: &[String]) -> bool {
    interfaces.iter().any(|interface| {
        let queues = format!("/sys/class/net/{interface}/queues");
        root.names(&queues).iter().filter(|queue| queue.starts_with("rx-")).any(|queue| {
            let mask = root.text(&format!("{queues}/{queue}/rps_cpus")).unwrap_or_default();
            mask.contains(|c: char| c.is_ascii_hexdigit() && c != '0')
        })
    })
}
