//! Messages between all of many connections: each user sends to a few others chosen at random.

use std::time::{Duration, Instant};

use serde::Serialize;
use trunkline_proto::Frame;

use crate::{
    clock::now_ns,
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    ledger::{Flow, Ledger, Route},
    progress::Progress,
    traffic::{lost, settle},
};

/// Messages under way at the same time: far fewer than any queue of the gateway holds.
const IN_FLIGHT_MAX: u64 = 2_048;

/// What an exchange has moved.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Exchanged {
    /// Messages sent and delivered; each was checked.
    pub(crate) messages: u64,
    /// Recipients each user sent to.
    pub(crate) recipients: u32,
    /// Wall time.
    pub(crate) seconds: f64,
}

struct Delivered {
    ledger: Ledger,
}

impl Driver for Delivered {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open before messages are exchanged")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        self.ledger.received(connection, frame, now_ns)?;
        Ok(())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        lost(&self.ledger, connection, how)
    }
}

/// Sends one message from each user to `recipients` others and accounts for all of them. Every connection is armed.
pub(crate) fn run(
    fleet: &mut Fleet,
    users: &[u64],
    recipients: u32,
    payload_bytes: usize,
    run_number: u32,
    progress: &Progress,
) -> Result<Exchanged, Failure> {
    let flows = flows(users.len() as u32, recipients, u64::from(run_number));
    let total = flows.len() as u32;
    let ledger = Ledger::new(Route::Deliver { ack: false }, run_number, users.to_vec(), flows, payload_bytes);
    let bar = progress.phase("messages", u64::from(total));
    let mut driver = Delivered { ledger };
    let start = Instant::now();
    let mut last_progress = start;
    let mut sent = 0;
    while sent < total {
        while sent < total && driver.ledger.outstanding() < IN_FLIGHT_MAX {
            let from = driver.ledger.flow(sent).from;
            fleet.stage(from, |out| driver.ledger.send(sent, now_ns(), out));
            sent += 1;
        }
        let before = driver.ledger.delivered();
        fleet.turn(&mut driver, Duration::from_millis(50))?;
        if driver.ledger.delivered() > before {
            last_progress = Instant::now();
            bar.set(driver.ledger.delivered());
        } else if last_progress.elapsed() > Duration::from_secs(10) {
            break;
        }
    }
    settle(fleet, &mut driver, |driver| &driver.ledger)?;
    Ok(Exchanged { messages: driver.ledger.delivered(), recipients, seconds: start.elapsed().as_secs_f64() })
}

/// For each connection, flows to `recipients` distinct others, shuffled so that senders take turns.
fn flows(connections: u32, recipients: u32, seed: u64) -> Vec<Flow> {
    let mut random = Random(seed);
    let recipients = recipients.min(connections - 1);
    let mut flows = Vec::with_capacity(connections as usize * recipients as usize);
    for from in 0..connections {
        let first = flows.len();
        while flows.len() < first + recipients as usize {
            let to = random.below(connections);
            if to != from && flows[first..].iter().all(|flow: &Flow| flow.to != to) {
                flows.push(Flow::new(from, to));
            }
        }
    }
    for index in (1..flows.len()).rev() {
        flows.swap(index, random.below(index as u32 + 1) as usize);
    }
    flows
}

/// SplitMix64, see [`crate::payload`].
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((word >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn everybody_sends_to_distinct_others() {
        let flows = flows(50, 4, 9);
        let distinct: BTreeSet<_> = flows.iter().map(|flow| (flow.from, flow.to)).collect();
        assert_eq!((flows.len(), distinct.len()), (200, 200));
        assert!(flows.iter().all(|flow| flow.from != flow.to));
        for connection in 0..50 {
            assert_eq!(flows.iter().filter(|flow| flow.from == connection).count(), 4);
        }
    }

    #[test]
    fn two_connections_have_only_each_other() {
        assert_eq!(flows(2, 4, 1).len(), 2);
    }
}
