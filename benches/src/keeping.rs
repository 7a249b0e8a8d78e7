//! Clients that give messages to a server which is to keep them for users who are not there, and count its word for
//! each: one for each message, in whatever order.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;
use trunkline_proto::Frame;

use crate::{
    clock::now_ns,
    dialect::{Keeper, Word},
    discrepancy::{Discrepancy, Message},
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken},
    latency::{ClosedLoop, Percentiles},
    payload::Label,
    process::{CpuTime, own_cpu, written_bytes},
    progress::Progress,
};

/// How long nothing may come while something is awaited. A disk may be slow, and a table is written meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// Traffic before a measurement.
const WARMUP: Duration = Duration::from_millis(500);
/// The first sender: above all other users of a run.
pub(crate) const FIRST_SENDER: u64 = 1 << 40;
/// The highest 16 bits of a message's id tell the run.
const RUN_BITS_AT: u32 = 48;

/// Who sends to whom: recipient `r` gets its messages from sender `r % senders`, so that their order is that of one
/// connection.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Tells the messages of one run from those of another.
    pub(crate) run: u32,
    /// How many send.
    pub(crate) senders: u32,
    /// To whom.
    pub(crate) recipients: Vec<u64>,
    /// Bytes of a message.
    pub(crate) payload: u32,
}

impl Plan {
    /// The users who send, in the order of their connections.
    pub(crate) fn sending_users(&self) -> Vec<u64> {
        (0..u64::from(self.senders)).map(|sender| FIRST_SENDER + sender).collect()
    }

    /// Who sends to a recipient.
    pub(crate) fn sender_of(&self, recipient: u32) -> u64 {
        FIRST_SENDER + u64::from(recipient % self.senders)
    }

    /// Recipients of a sender.
    fn recipients_of(&self, sender: u32) -> u64 {
        (self.recipients.len() as u64 + u64::from(self.senders - 1 - sender)) / u64::from(self.senders)
    }

    /// Message `number` of a sender: the recipient, as an index, and the position among the messages to it.
    fn place(&self, sender: u32, number: u64) -> (u32, u64) {
        let each = self.recipients_of(sender).max(1);
        (sender + (number % each) as u32 * self.senders, number / each)
    }

    /// How many of the first `sent` messages of its sender a recipient gets.
    fn share(&self, recipient: u32, sent: u64) -> u64 {
        let (sender, place) = (recipient % self.senders, u64::from(recipient / self.senders));
        (sent + self.recipients_of(sender) - 1).saturating_sub(place) / self.recipients_of(sender)
    }

    /// The label of a message.
    pub(crate) fn label(&self, recipient: u32, sequence: u64, sent_ns: u64) -> Label {
        let (sender, user) = (self.sender_of(recipient), self.recipients[recipient as usize]);
        Label { sender, recipient: user, sequence, sent_ns, flow: recipient, run: self.run }
    }

    /// The message for a person.
    pub(crate) fn message(&self, recipient: u32, sequence: u64) -> Message {
        Message { sender: self.sender_of(recipient), recipient: self.recipients[recipient as usize], sequence }
    }
}

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After a warm-up and so long.
    Time(Duration),
    /// When so many messages for each recipient are kept, all senders beginning with the first.
    Each(u64),
    /// When so many messages more are kept.
    Count(u64),
}

/// What a load has come to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kept {
    /// Messages kept in the time that was measured.
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    /// A second.
    pub(crate) rate: f64,
    /// CPU time of the server's processes for a message, user and system, all threads.
    pub(crate) cpu_us_per_message: f64,
    /// Their saturation: CPU time over wall time.
    pub(crate) cores: f64,
    pub(crate) bench_cores: f64,
    /// Bytes that the server wrote to files for a message, as the kernel counts them; nothing where it does not tell.
    pub(crate) disk_bytes_per_message: Option<f64>,
    /// From writing a message to taking the server's word for it, of the messages under way in the measurement.
    pub(crate) latency: Percentiles,
    /// As clients would see it that do not wait for the message before; see [`ClosedLoop::corrected`].
    pub(crate) latency_corrected: Percentiles,
    /// The longest time in which the server said nothing, in milliseconds.
    pub(crate) silence_ms: f64,
}

/// One connection.
#[derive(Debug, Default)]
struct Sender {
    ready: bool,
    /// Messages of this one that are sent.
    sent: u64,
    /// When each was written that waits for the server's word, the oldest first; 0: it has come.
    waiting: VecDeque<u64>,
}

/// All who send.
pub(crate) struct Senders<'a> {
    keeper: &'a dyn Keeper,
    plan: Plan,
    name: &'a str,
    senders: Vec<Sender>,
    ready: u32,
    payload: Vec<u8>,
    kept: u64,
    sent: u64,
    latencies: Option<ClosedLoop>,
    /// Connections that may send one more.
    due: Vec<u32>,
}

impl<'a> Senders<'a> {
    pub(crate) fn new(keeper: &'a dyn Keeper, plan: Plan, name: &'a str) -> Senders<'a> {
        Senders {
            keeper,
            name,
            senders: (0..plan.senders).map(|_| Sender::default()).collect(),
            ready: 0,
            payload: vec![0; plan.payload as usize],
            plan,
            kept: 0,
            sent: 0,
            latencies: None,
            due: Vec::new(),
        }
    }

    /// Opens the connection of each and waits until all may send.
    pub(crate) fn enter(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        let connections = self.senders.len() as u32;
        fleet.open(connections)?;
        let mut last_progress = Instant::now();
        while self.ready < connections {
            let before = self.ready;
            fleet.turn(self, Duration::from_millis(50))?;
            if self.ready > before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("{} to let {connections} senders in; {} are", self.name, self.ready);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Messages sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages kept.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// How many messages a recipient was sent.
    pub(crate) fn sent_to(&self, recipient: u32) -> u64 {
        self.plan.share(recipient, self.senders[(recipient % self.plan.senders) as usize].sent)
    }

    /// Sends messages, so many under way at a time over all connections, and waits for the server's word for each.
    pub(crate) fn run(
        &mut self,
        fleet: &mut Fleet,
        in_flight: u32,
        until: Until,
        pids: &[u32],
        progress: &Progress,
    ) -> Result<Kept, Failure> {
        let count = match until {
            Until::Time(_) => u64::MAX,
            Until::Each(each) => each * self.plan.recipients.len() as u64,
            Until::Count(count) => count,
        };
        let bar = progress.phase("messages kept", if count == u64::MAX { 0 } else { count });
        let last = self.sent.saturating_add(count);
        let limits: Option<Vec<u64>> = match until {
            Until::Each(each) => {
                Some((0..self.plan.senders).map(|sender| each * self.plan.recipients_of(sender)).collect())
            }
            _ => None,
        };
        let mut may_send = |senders: &Senders<'_>, sender: u32| match &limits {
            Some(limits) => senders.senders[sender as usize].sent < limits[sender as usize],
            None => senders.sent < last,
        };
        self.due = (0..in_flight).map(|number| number % self.plan.senders).collect();
        if let Until::Time(_) = until {
            self.turn_until(fleet, Some(Instant::now() + WARMUP), u64::MAX, &mut may_send, |_| ())?;
        }
        self.latencies = Some(ClosedLoop::from(now_ns()));
        let (kept_before, own_before, written_before) = (self.kept, own_cpu(), written_bytes(pids));
        let (cpu_before, from) = (CpuTime::of_all(pids)?, Instant::now());
        let end = if let Until::Time(length) = until { Some(from + length) } else { None };
        let all = kept_before.saturating_add(count);
        self.turn_until(fleet, end, all, &mut may_send, |senders| bar.set(senders.kept - kept_before))?;
        let seconds = from.elapsed().as_secs_f64();
        let (cpu, _) = CpuTime::of_all(pids)?.since(&cpu_before);
        let (own, written_after) = (own_cpu() - own_before, written_bytes(pids));
        let messages = self.kept - kept_before;
        // Those that are still under way are the slowest, so they are waited for.
        if let Some(latencies) = &mut self.latencies {
            latencies.end(now_ns());
        }
        let sent = self.sent;
        self.turn_until(fleet, None, sent, &mut |_, _| false, |_| ())?;
        self.due.clear();
        if messages == 0 {
            return Err(Failure::Accounts(format!("{} kept not one message in {seconds:.1} s", self.name)));
        }
        let latencies = self.latencies.take().expect("set above");
        Ok(Kept {
            messages,
            seconds,
            rate: messages as f64 / seconds,
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages as f64,
            cores: cpu.as_secs_f64() / seconds,
            bench_cores: own.as_secs_f64() / seconds,
            disk_bytes_per_message: match (written_before, written_after) {
                (Some(before), Some(after)) => Some(after.saturating_sub(before) as f64 / messages as f64),
                _ => None,
            },
            latency: latencies.percentiles(),
            latency_corrected: latencies.corrected(),
            silence_ms: latencies.silence().as_secs_f64() * 1e3,
        })
    }

    /// Turns the fleet until so many are kept, or a time is over; who has got an answer sends the next one if it may.
    fn turn_until(
        &mut self,
        fleet: &mut Fleet,
        end: Option<Instant>,
        kept: u64,
        may_send: &mut impl FnMut(&Senders<'_>, u32) -> bool,
        mut tick: impl FnMut(&Senders<'_>),
    ) -> Result<(), Failure> {
        let mut last = (self.kept, Instant::now());
        while self.kept < kept {
            let mut due = std::mem::take(&mut self.due);
            for sender in due.drain(..) {
                if may_send(self, sender) {
                    self.send(fleet, sender);
                }
            }
            // Its room serves again.
            self.due = due;
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(());
            }
            fleet.turn(self, left.min(Duration::from_millis(50)))?;
            tick(self);
            if self.kept > last.0 {
                last = (self.kept, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                return Err(self.stalled());
            }
        }
        Ok(())
    }

    fn send(&mut self, fleet: &mut Fleet, sender: u32) {
        let number = self.senders[sender as usize].sent;
        let (recipient, sequence) = self.plan.place(sender, number);
        let (now_ns, user) = (now_ns(), self.plan.recipients[recipient as usize]);
        self.plan.label(recipient, sequence, now_ns).write(&mut self.payload);
        let id = u64::from(self.plan.run & 0xFFFF) << RUN_BITS_AT | (number + 1);
        let (keeper, from, payload) = (self.keeper, self.plan.sender_of(recipient), &self.payload);
        fleet.stage(sender, |out| keeper.put(sender, from, user, id, payload, out));
        let one = &mut self.senders[sender as usize];
        one.sent += 1;
        one.waiting.push_back(now_ns.max(1));
        self.sent += 1;
    }

    /// The message with an id, or the oldest without an answer: its number, and its place among those that wait.
    fn find(&self, sender: u32, id: Option<u64>) -> Result<(u64, usize), Failure> {
        let Sender { sent, waiting, .. } = &self.senders[sender as usize];
        let user = FIRST_SENDER + u64::from(sender);
        let foreign = || Discrepancy::Foreign { user, what: "an answer to a message it has not sent" };
        let oldest = sent - waiting.len() as u64;
        let number = match id {
            None if waiting.is_empty() => return Err(foreign().into()),
            None => oldest,
            Some(id) => {
                let run = u64::from(self.plan.run & 0xFFFF);
                let number = (id & ((1 << RUN_BITS_AT) - 1)).checked_sub(1).filter(|number| number < sent);
                number.filter(|_| id >> RUN_BITS_AT == run).ok_or_else(foreign)?
            }
        };
        let waits = number.checked_sub(oldest).map(|place| place as usize).filter(|place| waiting[*place] > 0);
        let (recipient, sequence) = self.plan.place(sender, number);
        let place = waits.ok_or_else(|| Discrepancy::ConfirmedTwice(self.plan.message(recipient, sequence)))?;
        Ok((number, place))
    }

    fn kept_one(&mut self, sender: u32, id: Option<u64>, now_ns: u64) -> Result<(), Failure> {
        let (_, place) = self.find(sender, id)?;
        let waiting = &mut self.senders[sender as usize].waiting;
        let sent_ns = std::mem::take(&mut waiting[place]);
        while waiting.front() == Some(&0) {
            waiting.pop_front();
        }
        self.kept += 1;
        if let Some(latencies) = &mut self.latencies {
            latencies.record(now_ns, now_ns.saturating_sub(sent_ns));
        }
        self.due.push(sender);
        Ok(())
    }

    /// The first message that nothing was said of.
    fn stalled(&self) -> Failure {
        let open = (0..).zip(&self.senders).find(|(_, sender)| !sender.waiting.is_empty());
        match open {
            Some((number, sender)) => {
                let (recipient, sequence) = self.plan.place(number, sender.sent - sender.waiting.len() as u64);
                Discrepancy::Unanswered(self.plan.message(recipient, sequence)).into()
            }
            None => Failure::Stalled { waiting_for: "the next message".to_owned(), after: PATIENCE },
        }
    }
}

impl Driver for Senders<'_> {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        self.keeper.enter(connection, FIRST_SENDER + u64::from(connection), out);
        Ok(Arm::Always)
    }

    fn frame(&mut self, _: u32, _: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        unreachable!("bytes are read by the dialect")
    }

    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        let mut taken = Taken { bytes: 0, frames: 0 };
        loop {
            let next = self.keeper.next(&bytes[taken.bytes..]).map_err(|what| self.lost(connection, &what))?;
            let Some((word, length)) = next else { return Ok(taken) };
            match word {
                Word::Ready => {
                    let sender = &mut self.senders[connection as usize];
                    self.ready += u32::from(!std::mem::replace(&mut sender.ready, true));
                }
                Word::Kept(id) => self.kept_one(connection, id, now_ns)?,
                Word::NotKept(None, why) if self.senders[connection as usize].waiting.is_empty() => {
                    return Err(self.lost(connection, &why));
                }
                Word::NotKept(id, why) => {
                    let (number, _) = self.find(connection, id)?;
                    let (recipient, sequence) = self.plan.place(connection, number);
                    let message = self.plan.message(recipient, sequence);
                    return Err(Discrepancy::NotKept { message, why }.into());
                }
                Word::Answer(answer) => out.extend_from_slice(answer),
                Word::Nothing => {}
                Word::Refused(why) => return Err(self.lost(connection, &why)),
            }
            taken.frames += 1;
            taken.bytes += length;
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let user = FIRST_SENDER + u64::from(connection);
        Failure::ServerGone(format!("{}: the connection of sender {user} was lost: {how}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Streams, Trunkline};
    use std::collections::HashMap;

    fn plan(senders: u32, recipients: u64) -> Plan {
        Plan { run: 5, senders, recipients: (1..=recipients).collect(), payload: 64 }
    }

    #[test]
    fn each_recipient_gets_its_messages_from_one_sender_in_order() {
        for (senders, recipients) in [(1, 1), (3, 7), (4, 8), (2, 5)] {
            let plan = plan(senders, recipients);
            for sent in 0..40 {
                let mut seen: HashMap<u32, u64> = HashMap::new();
                for sender in 0..senders {
                    for number in 0..sent {
                        let (recipient, sequence) = plan.place(sender, number);
                        let next = seen.entry(recipient).or_default();
                        assert_eq!((recipient % senders, sequence), (sender, *next));
                        *next += 1;
                    }
                }
                for recipient in 0..recipients as u32 {
                    assert_eq!(plan.share(recipient, sent), seen.get(&recipient).copied().unwrap_or(0));
                }
            }
        }
    }

    fn sent(keeper: &'static dyn Keeper, count: u64) -> Senders<'static> {
        let mut senders = Senders::new(keeper, plan(1, 10), "test");
        senders.senders[0].sent = count;
        senders.senders[0].waiting = (0..count).map(|number| number + 1).collect();
        senders.sent = count;
        senders
    }

    fn id(number: u64) -> Option<u64> {
        Some(5 << RUN_BITS_AT | (number + 1))
    }

    #[test]
    fn one_answer_each_in_any_order_and_no_second_one() {
        let mut senders = sent(&Trunkline, 3);
        for number in [1, 0] {
            senders.kept_one(0, id(number), 10).expect("the first answer");
        }
        assert_eq!((senders.kept(), senders.senders[0].waiting.len()), (2, 1));
        for number in [0, 1] {
            let again = senders.kept_one(0, id(number), 10);
            assert!(matches!(again, Err(Failure::Miscounted(Discrepancy::ConfirmedTwice(_)))), "{again:?}");
        }
        for foreign in [id(3), Some(3), Some(6 << RUN_BITS_AT | 3), Some(0)] {
            let answer = senders.kept_one(0, foreign, 10);
            assert!(matches!(answer, Err(Failure::Miscounted(Discrepancy::Foreign { .. }))), "{answer:?}");
        }
        let missing = senders.stalled().to_string();
        assert!(missing.contains("message 0 from user") && missing.contains("to user 3"), "{missing}");
    }

    #[test]
    fn answers_without_an_id_are_for_the_oldest() {
        let mut senders = sent(&Streams, 2);
        senders.kept_one(0, None, 10).expect("the first");
        senders.kept_one(0, None, 10).expect("the second");
        assert!(senders.kept_one(0, None, 10).is_err(), "there was no third");
    }

    #[test]
    fn what_is_not_kept_is_named() {
        let mut senders = sent(&Streams, 2);
        let refused = senders.received(0, b"$3\r\n1-0\r\n-OOM no room\r\n", 10, &mut Vec::new());
        let sentence = refused.map(drop).expect_err("refused").to_string();
        assert!(sentence.contains("message 0 from user") && sentence.contains("OOM no room"), "{sentence}");
    }
}
