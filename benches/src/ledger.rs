//! Exact accounting: each message is delivered once, in order, to the right user, with the right bytes.

use std::collections::BTreeSet;

use trunkline_proto::{Frame, Header, Kind, Outcome, encode, flags};

use crate::{
    discrepancy::{Discrepancy, Message},
    payload::Label,
    service::SERVICE,
};

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The server sends back the same bytes.
    Echo,
    /// The server delivers a SEND as a DELIVER.
    Deliver {
        /// Ask for an end-to-end acknowledgement.
        ack: bool,
    },
    /// A worker's PUSH_TO comes as a PUSH.
    Push {
        /// Ask for its fate, as above.
        ack: bool,
    },
    /// What is posted by HTTP comes as a PUSH, and each is answered.
    Post {
        /// Its answer says that it was delivered, and not only that it was passed on.
        ack: bool,
    },
}

impl Route {
    /// Whether recipients acknowledge what they get.
    pub(crate) fn has_ack(self) -> bool {
        matches!(self, Route::Deliver { ack: true } | Route::Push { ack: true } | Route::Post { ack: true })
    }

    /// Whether senders are told of each message what became of it.
    fn is_confirmed(self) -> bool {
        self.has_ack() || matches!(self, Route::Post { .. })
    }
}

/// Messages from one connection to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// Index of the sending connection.
    pub(crate) from: u32,
    /// Index of the receiving connection.
    pub(crate) to: u32,
    sent: u64,
    received: u64,
    /// Messages whose SENT has come, as far as there is no gap.
    confirmed: u64,
    /// Its recipient does not always read, so messages may be missing.
    lossy: bool,
    /// Messages may be missing although the recipient reads: the machine may be too busy for it to keep up.
    may_miss: bool,
}

impl Flow {
    /// A flow in which nothing has been sent.
    pub(crate) fn new(from: u32, to: u32) -> Flow {
        Flow { from, to, sent: 0, received: 0, confirmed: 0, lossy: false, may_miss: false }
    }

    /// Whether messages may be missing.
    pub(crate) fn is_lossy(&self) -> bool {
        self.lossy
    }

    /// One of which messages may be missing; those that come must still be right and in order.
    pub(crate) fn lossy(from: u32, to: u32) -> Flow {
        Flow { lossy: true, ..Flow::new(from, to) }.accounted()
    }

    /// The same, of which what is missing is no discrepancy; whoever runs it has to account for the sums.
    pub(crate) fn accounted(self) -> Flow {
        Flow { may_miss: true, ..self }
    }
}

/// Messages of flows to recipients that do not always read.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Lossy {
    /// Sent to them.
    pub(crate) sent: u64,
    /// Delivered to them.
    pub(crate) delivered: u64,
}

/// A message that has arrived as it should.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// The flow it belongs to.
    pub(crate) flow: u32,
    /// From the moment it was written to the moment its bytes were taken, nanoseconds.
    pub(crate) latency_ns: u64,
    /// A marked redelivery of one that had arrived before: acknowledge it, but don't count it.
    pub(crate) again: bool,
    /// It came to a recipient that does not always read: how long it took says nothing.
    pub(crate) lossy: bool,
}

/// Message ids are `run (12 bits) | flow (24) | sequence + 1 (28)`: never 0, and unique for each sender in all runs.
const RUN_BITS_AT: u32 = 52;
const FLOW_BITS_AT: u32 = 28;
const FLOWS_MAX: usize = 1 << 24;
const SEQUENCE_MAX: u64 = (1 << 28) - 2;

/// All flows of a run.
pub(crate) struct Ledger {
    route: Route,
    run: u32,
    /// Of each connection, and behind those of users whose connections another ledger has.
    users: Vec<u64>,
    flows: Vec<Flow>,
    /// The last stamp each connection has seen.
    stamps: Vec<u64>,
    /// Flow and sequence of confirmations that came before one of a lower sequence.
    confirmed_early: BTreeSet<(u32, u64)>,
    payload: Vec<u8>,
    sent: u64,
    delivered: u64,
    confirmed: u64,
    redelivered: u64,
    lossy: Lossy,
}

impl Ledger {
    /// `users` gives the user of each connection. At most 2^24 flows; `payload_bytes` at least
    /// [`PAYLOAD_BYTES_MIN`](crate::payload::PAYLOAD_BYTES_MIN). `run` tells this run's messages from those of others.
    pub(crate) fn new(route: Route, run: u32, users: Vec<u64>, flows: Vec<Flow>, payload_bytes: usize) -> Ledger {
        assert!(flows.len() <= FLOWS_MAX, "a message id has 24 bits for the flow");
        Ledger {
            route,
            run,
            stamps: vec![0; users.len()],
            users,
            flows,
            confirmed_early: BTreeSet::new(),
            payload: vec![0; payload_bytes],
            sent: 0,
            delivered: 0,
            confirmed: 0,
            redelivered: 0,
            lossy: Lossy::default(),
        }
    }

    /// What became of messages to recipients that do not always read.
    pub(crate) fn lossy(&self) -> Lossy {
        self.lossy
    }

    /// The user of a connection.
    pub(crate) fn user(&self, connection: u32) -> u64 {
        self.users[connection as usize]
    }

    /// How many flows there are.
    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len()
    }

    /// The flows whose senders are among the first `connections`.
    pub(crate) fn flows_from(&self, connections: u32) -> Vec<u32> {
        let flows = (0..).zip(&self.flows).filter(|(_, flow)| flow.from < connections);
        flows.map(|(index, _)| index).collect()
    }

    /// The flow at an index.
    pub(crate) fn flow(&self, flow: u32) -> &Flow {
        &self.flows[flow as usize]
    }

    /// Messages sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages delivered so far, redeliveries not counted.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Marked redeliveries so far.
    pub(crate) fn redelivered(&self) -> u64 {
        self.redelivered
    }

    /// Messages sent whose delivery, or whose confirmation if they ask for one, is still to come.
    pub(crate) fn outstanding(&self) -> u64 {
        match self.route.is_confirmed() {
            true => self.sent - self.confirmed.min(self.delivered),
            false => self.sent - self.delivered,
        }
    }

    /// Appends the next message of a flow.
    pub(crate) fn send(&mut self, flow: u32, now_ns: u64, out: &mut Vec<u8>) {
        let (kind, aux) = match self.route {
            Route::Push { .. } => (Kind::PushTo, SERVICE),
            _ => (Kind::Send, 0),
        };
        let Flow { to, sent: sequence, .. } = self.flows[flow as usize];
        self.post(flow, now_ns);
        let (flags, id, peer) = (self.send_flags(), self.message_id(flow, sequence), self.user(to));
        encode(out, &Header { kind, flags, aux, id, peer, stamp: 0 }, &self.payload);
    }

    /// Counts the next message of a flow as sent; returns whom it is for, its number, and its payload.
    pub(crate) fn post(&mut self, flow: u32, now_ns: u64) -> (u64, u64, &[u8]) {
        let Flow { from, to, sent: sequence, .. } = self.flows[flow as usize];
        let (sender, recipient) = (self.user(from), self.user(to));
        let label = Label { sender, recipient, sequence, sent_ns: now_ns, flow, run: self.run };
        label.write(&mut self.payload);
        let flow = &mut self.flows[flow as usize];
        flow.sent += 1;
        if flow.lossy {
            self.lossy.sent += 1;
        } else {
            self.sent += 1;
        }
        (recipient, sequence, &self.payload)
    }

    fn send_flags(&self) -> u8 {
        if self.route.has_ack() { flags::ACK } else { 0 }
    }

    fn message_id(&self, flow: u32, sequence: u64) -> u64 {
        assert!(sequence <= SEQUENCE_MAX, "a message id has 28 bits for the sequence number");
        u64::from(self.run & 0xFFF) << RUN_BITS_AT | u64::from(flow) << FLOW_BITS_AT | (sequence + 1)
    }

    fn message(&self, flow: u32, sequence: u64) -> Message {
        let Flow { from, to, .. } = self.flows[flow as usize];
        Message { sender: self.user(from), recipient: self.user(to), sequence }
    }

    /// Judges a message that has arrived on a connection.
    pub(crate) fn received(&mut self, at: u32, frame: &Frame<'_>, now_ns: u64) -> Result<Delivery, Discrepancy> {
        let user = self.user(at);
        let (kind, aux) = match self.route {
            Route::Echo => (Kind::Send, 0),
            Route::Deliver { .. } => (Kind::Deliver, 0),
            Route::Push { .. } | Route::Post { .. } => (Kind::Push, SERVICE),
        };
        if frame.known() != Some(kind) {
            return Err(Discrepancy::unexpected(user, frame));
        }
        let foreign = |what| Discrepancy::Foreign { user, what };
        let label = Label::read(frame.body).ok_or(foreign("a payload too short to be of this bench"))?;
        if label.run != self.run {
            return Err(foreign("a message that another run has sent"));
        }
        let Some(&flow) = self.flows.get(label.flow as usize) else {
            return Err(foreign("a message of a flow that does not exist"));
        };
        let message = self.message(label.flow, label.sequence);
        if flow.to != at {
            return Err(Discrepancy::Misdelivered { message, to: user });
        }
        let altered = |what| Discrepancy::Altered { message, what };
        if (label.sender, label.recipient) != (message.sender, message.recipient) {
            return Err(altered("sender or recipient in its payload"));
        }
        if frame.body.len() != self.payload.len() || !label.is_intact(frame.body) {
            return Err(altered("payload"));
        }
        let peer = match self.route {
            Route::Echo => message.recipient,
            Route::Deliver { .. } => message.sender,
            Route::Push { .. } | Route::Post { .. } => 0,
        };
        if frame.peer != peer {
            return Err(altered("peer"));
        }
        // A DELIVER has none.
        if kind == Kind::Push && frame.aux != aux {
            return Err(altered("service"));
        }
        // What is posted gets one from the gateway.
        let has_id = !matches!(self.route, Route::Post { .. });
        if has_id && frame.id != self.message_id(label.flow, label.sequence) {
            return Err(altered("id"));
        }
        let again = self.route.has_ack() && frame.flags & flags::AGAIN != 0;
        if frame.flags & !flags::AGAIN != self.send_flags() || (frame.flags & flags::AGAIN != 0 && !again) {
            return Err(altered("flags"));
        }
        if label.sequence < flow.received {
            self.redelivered += u64::from(again);
            return if again {
                Ok(Delivery { flow: label.flow, latency_ns: 0, again, lossy: flow.lossy })
            } else {
                Err(Discrepancy::Doubled(message))
            };
        }
        if again {
            return Err(Discrepancy::AgainAtFirst(message));
        }
        if label.sequence > flow.received && !flow.may_miss {
            let missing = Message { sequence: flow.received, ..message };
            return Err(Discrepancy::Skipped { missing, instead: label.sequence });
        }
        if self.route != Route::Echo {
            let before = std::mem::replace(&mut self.stamps[at as usize], frame.stamp);
            if frame.stamp <= before {
                return Err(Discrepancy::StampNotIncreasing { message, stamp: frame.stamp, before });
            }
        }
        self.flows[label.flow as usize].received = label.sequence + 1;
        if flow.lossy {
            self.lossy.delivered += 1;
        } else {
            self.delivered += 1;
        }
        Ok(Delivery {
            flow: label.flow,
            latency_ns: now_ns.saturating_sub(label.sent_ns),
            again: false,
            lossy: flow.lossy,
        })
    }

    /// Judges the answer to what was posted: it says of this message of a flow that it was delivered, or passed on.
    pub(crate) fn answered(&mut self, flow: u32, sequence: u64) -> Result<(), Discrepancy> {
        let message = self.message(flow, sequence);
        let has_ack = self.route.has_ack();
        let flow = &mut self.flows[flow as usize];
        if sequence != flow.confirmed {
            return Err(Discrepancy::ConfirmedTwice(message));
        }
        // Nobody but its recipient, here, can have acknowledged it.
        if has_ack && flow.received <= sequence {
            return Err(Discrepancy::Lost(message));
        }
        flow.confirmed += 1;
        self.confirmed += 1;
        Ok(())
    }

    /// Judges a SENT, or a PUSHED, that has arrived on a connection.
    pub(crate) fn confirmed(&mut self, at: u32, frame: &Frame<'_>) -> Result<(), Discrepancy> {
        let user = self.user(at);
        let kind = if matches!(self.route, Route::Push { .. }) { Kind::Pushed } else { Kind::Sent };
        if !self.route.has_ack() || frame.known() != Some(kind) {
            return Err(Discrepancy::unexpected(user, frame));
        }
        let foreign = Discrepancy::Foreign { user, what: "the fate of a message it has not sent" };
        let flow_index = (frame.id >> FLOW_BITS_AT) as u32 & (FLOWS_MAX as u32 - 1);
        let Some(sequence) = (frame.id & (SEQUENCE_MAX + 1)).checked_sub(1) else { return Err(foreign) };
        match self.flows.get(flow_index as usize) {
            Some(flow) if flow.from == at && sequence < flow.sent => {}
            _ => return Err(foreign),
        }
        let message = self.message(flow_index, sequence);
        if frame.id != self.message_id(flow_index, sequence) || frame.peer != message.recipient {
            return Err(foreign);
        }
        if frame.aux != Outcome::Delivered.as_u16() {
            return Err(Discrepancy::Refused { message, outcome: frame.aux });
        }
        let flow = &mut self.flows[flow_index as usize];
        if sequence == flow.confirmed {
            flow.confirmed += 1;
        } else if sequence < flow.confirmed || !self.confirmed_early.insert((flow_index, sequence)) {
            return Err(Discrepancy::ConfirmedTwice(message));
        }
        while self.confirmed_early.remove(&(flow_index, flow.confirmed)) {
            flow.confirmed += 1;
        }
        self.confirmed += 1;
        Ok(())
    }

    /// Adds what another ledger with the same flows knows of their messages: one may have sent what the other has
    /// received.
    pub(crate) fn add(&mut self, other: &Ledger) {
        assert_eq!((self.flows.len(), self.run), (other.flows.len(), other.run), "ledgers of the same run");
        for (flow, others) in self.flows.iter_mut().zip(&other.flows) {
            flow.sent += others.sent;
            flow.received += others.received;
            flow.confirmed += others.confirmed;
        }
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.confirmed += other.confirmed;
        self.redelivered += other.redelivered;
        self.lossy.sent += other.lossy.sent;
        self.lossy.delivered += other.lossy.delivered;
    }

    /// Whether everything sent has been delivered and confirmed; names the first message that has not.
    pub(crate) fn settled(&self) -> Result<(), Discrepancy> {
        for (index, flow) in self.flows.iter().enumerate().filter(|(_, flow)| !flow.lossy) {
            if flow.received < flow.sent {
                return Err(Discrepancy::Lost(self.message(index as u32, flow.received)));
            }
            if self.route.is_confirmed() && flow.confirmed < flow.sent {
                return Err(Discrepancy::Unconfirmed(self.message(index as u32, flow.confirmed)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_proto::{FRAME_BYTES_MAX_DEFAULT, decode};

    const USERS: [u64; 2] = [11, 22];

    fn pair(ack: bool) -> Ledger {
        Ledger::new(Route::Deliver { ack }, 5, USERS.to_vec(), vec![Flow::new(0, 1), Flow::new(1, 0)], 64)
    }

    #[test]
    fn what_one_ledger_sends_and_another_receives_adds_up() {
        let (mut here, mut there) = (pair(false), pair(false));
        let mut sent = Vec::new();
        here.send(0, 1_000, &mut sent);
        let delivered = routed(&sent, USERS[0], 1);
        let (frame, _) = decode(&delivered, FRAME_BYTES_MAX_DEFAULT).expect("valid").expect("whole");
        there.received(1, &frame, 2_000).expect("the first one");
        here.send(0, 3_000, &mut sent);
        let mut both = pair(false);
        both.add(&here);
        both.add(&there);
        assert_eq!((both.sent(), both.delivered(), both.outstanding()), (2, 1, 1));
        let missing = Message { sender: USERS[0], recipient: USERS[1], sequence: 1 };
        assert_eq!(both.settled(), Err(Discrepancy::Lost(missing)), "the second one never came");
        assert_eq!(there.settled(), Ok(()), "which who only receives cannot know");
    }

    /// What a correct gateway makes of a SEND.
    fn routed(sent: &[u8], sender: u64, stamp: u64) -> Vec<u8> {
        let (frame, _) = decode(sent, FRAME_BYTES_MAX_DEFAULT).expect("valid").expect("whole");
        let mut out = Vec::new();
        let header = Header { kind: Kind::Deliver, flags: frame.flags, aux: 0, id: frame.id, peer: sender, stamp };
        encode(&mut out, &header, frame.body);
        out
    }

    fn sent_by_first(ledger: &mut Ledger) -> Vec<u8> {
        let mut out = Vec::new();
        ledger.send(0, 100, &mut out);
        out
    }

    fn deliver(ledger: &mut Ledger, at: u32, bytes: &[u8]) -> Result<Delivery, Discrepancy> {
        let (frame, _) = decode(bytes, FRAME_BYTES_MAX_DEFAULT).expect("valid").expect("whole");
        ledger.received(at, &frame, 150)
    }

    fn confirm(ledger: &mut Ledger, id: u64, outcome: u16) -> Result<(), Discrepancy> {
        let frame = Frame { kind: Kind::Sent as u8, flags: 0, aux: outcome, id, peer: 22, stamp: 0, body: &[] };
        ledger.confirmed(0, &frame)
    }

    fn message(sequence: u64) -> Message {
        Message { sender: 11, recipient: 22, sequence }
    }

    #[test]
    fn a_push_comes_as_such_and_its_fate_to_who_pushed() {
        let mut ledger = Ledger::new(Route::Push { ack: true }, 5, vec![11, 99], vec![Flow::new(1, 0)], 64);
        let pushed = sent_by_first(&mut ledger);
        let (frame, _) = decode(&pushed, FRAME_BYTES_MAX_DEFAULT).expect("valid").expect("whole");
        assert_eq!((frame.known(), frame.aux, frame.peer), (Some(Kind::PushTo), SERVICE, 11));
        let push = |kind, aux, peer| {
            let mut out = Vec::new();
            encode(&mut out, &Header { kind, flags: frame.flags, aux, id: frame.id, peer, stamp: 7 }, frame.body);
            out
        };
        assert!(deliver(&mut ledger, 0, &push(Kind::Deliver, 0, 99)).is_err(), "no message of a user");
        assert!(deliver(&mut ledger, 0, &push(Kind::Push, SERVICE + 1, 0)).is_err(), "of another service");
        deliver(&mut ledger, 0, &push(Kind::Push, SERVICE, 0)).expect("as pushed");
        assert_eq!(ledger.outstanding(), 1, "its fate is still to come");
        let mut fate = |kind: Kind, aux| {
            let fate = Frame { kind: kind as u8, flags: 0, aux, id: frame.id, peer: 11, stamp: 0, body: &[] };
            ledger.confirmed(1, &fate)
        };
        assert!(fate(Kind::Sent, 0).is_err() && fate(Kind::Pushed, 2).is_err());
        fate(Kind::Pushed, 0).expect("delivered");
        assert_eq!((ledger.outstanding(), ledger.settled()), (0, Ok(())));
    }

    #[test]
    fn what_is_posted_is_answered_once_and_not_before_it_was_delivered() {
        for ack in [true, false] {
            let mut ledger = Ledger::new(Route::Post { ack }, 5, vec![11, 99], vec![Flow::new(1, 0)], 64);
            let (to, sequence, payload) = ledger.post(0, 100);
            let (body, flags) = (payload.to_vec(), if ack { flags::ACK } else { 0 });
            assert_eq!((to, sequence), (11, 0));
            let early = ledger.answered(0, 0);
            assert_eq!(early.is_err(), ack, "without ACK it is answered when it is passed on");
            let mut out = Vec::new();
            encode(&mut out, &Header { kind: Kind::Push, flags, aux: SERVICE, id: 77, peer: 0, stamp: 7 }, &body);
            deliver(&mut ledger, 0, &out).expect("under any id");
            if ack {
                assert_eq!((ledger.outstanding(), ledger.answered(0, 0)), (1, Ok(())));
            }
            assert!(ledger.answered(0, 0).is_err(), "twice");
            assert_eq!((ledger.outstanding(), ledger.settled()), (0, Ok(())));
        }
    }

    #[test]
    fn messages_in_order_settle_with_their_latency() {
        let mut ledger = pair(false);
        for stamp in 1..=3 {
            let frame = routed(&sent_by_first(&mut ledger), 11, stamp);
            assert_eq!(ledger.outstanding(), 1);
            assert_eq!(deliver(&mut ledger, 1, &frame).expect("as sent").latency_ns, 50);
        }
        assert_eq!((ledger.delivered(), ledger.outstanding()), (3, 0));
        assert_eq!(ledger.settled(), Ok(()));
    }

    #[test]
    fn a_lost_message_is_named() {
        let mut ledger = pair(false);
        sent_by_first(&mut ledger);
        assert_eq!(ledger.settled(), Err(Discrepancy::Lost(message(0))));
        let second = routed(&sent_by_first(&mut ledger), 11, 1);
        let skipped = Discrepancy::Skipped { missing: message(0), instead: 1 };
        assert_eq!(deliver(&mut ledger, 1, &second).map(drop), Err(skipped));
    }

    #[test]
    fn a_doubled_message_is_named() {
        let mut ledger = pair(false);
        let frame = routed(&sent_by_first(&mut ledger), 11, 1);
        deliver(&mut ledger, 1, &frame).expect("first");
        assert_eq!(deliver(&mut ledger, 1, &frame).map(drop), Err(Discrepancy::Doubled(message(0))));
    }

    #[test]
    fn a_message_at_the_wrong_user_is_named() {
        let mut ledger = pair(false);
        let frame = routed(&sent_by_first(&mut ledger), 11, 1);
        let wrong = Discrepancy::Misdelivered { message: message(0), to: 11 };
        assert_eq!(deliver(&mut ledger, 0, &frame).map(drop), Err(wrong));
    }

    #[test]
    fn no_changed_byte_passes() {
        let mut original = pair(false);
        let frame = routed(&sent_by_first(&mut original), 11, 1);
        for at in 0..frame.len() {
            // aux means nothing in a DELIVER; the stamp is the server's to choose.
            if matches!(at, 0..4 | 6..8 | 24..32) {
                continue;
            }
            let mut ledger = pair(false);
            sent_by_first(&mut ledger);
            let mut changed = frame.clone();
            changed[at] ^= 0x40;
            assert!(deliver(&mut ledger, 1, &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_message_that_comes_for_the_first_time_is_not_marked_as_redelivered() {
        let mut ledger = pair(true);
        let mut frame = routed(&sent_by_first(&mut ledger), 11, 1);
        frame[5] |= flags::AGAIN;
        assert_eq!(deliver(&mut ledger, 1, &frame).map(drop), Err(Discrepancy::AgainAtFirst(message(0))));
    }

    #[test]
    fn stamps_have_to_increase() {
        let mut ledger = pair(false);
        let first = routed(&sent_by_first(&mut ledger), 11, 9);
        deliver(&mut ledger, 1, &first).expect("first");
        let second = routed(&sent_by_first(&mut ledger), 11, 9);
        let backwards = Discrepancy::StampNotIncreasing { message: message(1), stamp: 9, before: 9 };
        assert_eq!(deliver(&mut ledger, 1, &second).map(drop), Err(backwards));
    }

    #[test]
    fn a_leftover_of_another_run_is_told_apart() {
        let mut other = Ledger::new(Route::Deliver { ack: false }, 6, USERS.to_vec(), vec![Flow::new(0, 1)], 64);
        let leftover = routed(&sent_by_first(&mut other), 11, 1);
        assert!(matches!(deliver(&mut pair(false), 1, &leftover), Err(Discrepancy::Foreign { user: 22, .. })));
    }

    #[test]
    fn with_ack_a_marked_redelivery_is_no_fault_and_every_message_needs_one_sent() {
        let mut ledger = pair(true);
        let sent = [sent_by_first(&mut ledger), sent_by_first(&mut ledger)];
        let mut ids = Vec::new();
        for (stamp, sent) in (1..).zip(&sent) {
            let mut frame = routed(sent, 11, stamp);
            deliver(&mut ledger, 1, &frame).expect("first");
            frame[5] |= flags::AGAIN;
            assert!(deliver(&mut ledger, 1, &frame).expect("marked").again);
            ids.push(u64::from_be_bytes(frame[8..16].try_into().expect("eight bytes")));
        }
        assert_eq!(ledger.settled(), Err(Discrepancy::Unconfirmed(message(0))));
        assert_eq!(confirm(&mut ledger, ids[1], 0), Ok(()));
        assert_eq!(ledger.settled(), Err(Discrepancy::Unconfirmed(message(0))));
        assert_eq!(confirm(&mut ledger, ids[0], 3), Err(Discrepancy::Refused { message: message(0), outcome: 3 }));
        assert_eq!(confirm(&mut ledger, ids[0], 0), Ok(()));
        assert_eq!(ledger.settled(), Ok(()));
        assert_eq!((ledger.outstanding(), ledger.redelivered()), (0, 2));
        for (sequence, id) in (0..).zip(ids) {
            assert_eq!(confirm(&mut ledger, id, 0), Err(Discrepancy::ConfirmedTwice(message(sequence))));
        }
        assert!(confirm(&mut ledger, 77, 0).is_err());
    }
}
