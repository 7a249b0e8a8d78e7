//! What was kept for users, as it comes to them after their login: all of it, in order, each message once, and then the
//! word that this is all.

use trunkline_proto::{Frame, Header, Kind, encode, flags};

use crate::{discrepancy::Discrepancy, keeping::Plan, payload::Label};

/// One acknowledgement is for so many messages of a backlog at most, or for its last ones.
const ACK_EVERY: u64 = 64;

/// What each connection is to get.
#[derive(Clone, Debug)]
pub(crate) struct Backlog {
    plan: Plan,
    of: Vec<Owed>,
    open: u32,
    messages: u64,
    /// One acknowledgement is for so many messages.
    ack_every: u64,
}

/// What one connection is to get, and has.
#[derive(Clone, Copy, Debug)]
struct Owed {
    user: u64,
    /// Index among the plan's recipients, if it is one.
    recipient: Option<u32>,
    messages: u64,
    got: u64,
    last_stamp: u64,
    over: bool,
}

impl Backlog {
    /// For each connection its recipient, as an index into the plan's, and how many messages there are for it.
    pub(crate) fn new(plan: Plan, of: impl IntoIterator<Item = (u32, u64)>) -> Backlog {
        let of = of.into_iter().map(|(recipient, messages)| {
            let user = plan.recipients[recipient as usize];
            Owed { user, recipient: Some(recipient), messages, got: 0, last_stamp: 0, over: false }
        });
        let of: Vec<Owed> = of.collect();
        Backlog { plan, open: of.len() as u32, of, messages: 0, ack_every: ACK_EVERY }
    }

    /// For the user of each connection as many messages, where it is one of the plan's recipients, and for whoever is
    /// none of them nothing.
    pub(crate) fn of_users(
        plan: Plan,
        users: impl IntoIterator<Item = u64>,
        recipient_of: impl Fn(u64) -> Option<u32>,
        each: u64,
    ) -> Backlog {
        let of = users.into_iter().map(|user| {
            let recipient = recipient_of(user);
            let messages = if recipient.is_some() { each } else { 0 };
            Owed { user, recipient, messages, got: 0, last_stamp: 0, over: recipient.is_none() }
        });
        let of: Vec<Owed> = of.collect();
        let open = of.iter().filter(|owed| !owed.over).count() as u32;
        Backlog { plan, open, of, messages: 0, ack_every: ACK_EVERY }
    }

    /// The clients let so many messages be unacknowledged and no more: they acknowledge twice for each as many. 0 is
    /// the gateway's own number, which is enough for [`ACK_EVERY`].
    pub(crate) fn within_window(mut self, window: u32) -> Backlog {
        if window > 0 {
            self.ack_every = u64::from(window / 2).clamp(1, ACK_EVERY);
        }
        self
    }

    /// Connections whose backlog is not over.
    pub(crate) fn open(&self) -> u32 {
        self.open
    }

    /// Messages that have come, to all.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// How many messages a connection is to get.
    pub(crate) fn owed(&self, connection: u32) -> u64 {
        self.of[connection as usize].messages
    }

    /// Judges a message, and appends the ACK if it is time for one.
    pub(crate) fn received(&mut self, at: u32, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Discrepancy> {
        let owed = &mut self.of[at as usize];
        let user = owed.user;
        let foreign = |what| Discrepancy::Foreign { user, what };
        let label = Label::read(frame.body).ok_or(foreign("a payload too short to be of this bench"))?;
        if label.run != self.plan.run || label.flow as usize >= self.plan.recipients.len() {
            return Err(foreign("a message that another run has sent"));
        }
        let message = self.plan.message(label.flow, label.sequence);
        if Some(label.flow) != owed.recipient {
            return Err(Discrepancy::Misdelivered { message, to: user });
        }
        let is_whole = frame.body.len() == self.plan.payload as usize && label.is_intact(frame.body);
        if !is_whole || (label.sender, label.recipient) != (message.sender, message.recipient) {
            return Err(Discrepancy::Altered { message, what: "payload" });
        }
        if frame.peer != message.sender {
            return Err(Discrepancy::Altered { message, what: "peer" });
        }
        if label.sequence < owed.got {
            return Err(Discrepancy::Doubled(message));
        }
        if label.sequence > owed.got {
            let missing = self.plan.message(label.flow, owed.got);
            return Err(Discrepancy::Skipped { missing, instead: label.sequence });
        }
        if owed.got >= owed.messages {
            return Err(foreign("a message that was never sent"));
        }
        if frame.flags != flags::ACK | flags::REPLAY {
            return Err(Discrepancy::Altered { message, what: "flags" });
        }
        let before = std::mem::replace(&mut owed.last_stamp, frame.stamp);
        if frame.stamp <= before {
            return Err(Discrepancy::StampNotIncreasing { message, stamp: frame.stamp, before });
        }
        owed.got += 1;
        self.messages += 1;
        if owed.got.is_multiple_of(self.ack_every) || owed.got == owed.messages {
            let Frame { id, peer, stamp, .. } = *frame;
            encode(out, &Header { kind: Kind::Ack, flags: flags::CUMULATIVE, aux: 0, id, peer, stamp }, &[]);
        }
        Ok(())
    }

    /// The server says that a connection has all there was.
    pub(crate) fn over(&mut self, at: u32) -> Result<(), Discrepancy> {
        let owed = &mut self.of[at as usize];
        if owed.got < owed.messages {
            let recipient = owed.recipient.unwrap_or_default();
            return Err(Discrepancy::NotInBacklog(self.plan.message(recipient, owed.got)));
        }
        self.open -= u32::from(!std::mem::replace(&mut owed.over, true));
        Ok(())
    }

    /// The first message that has not come.
    pub(crate) fn missing(&self) -> Option<Discrepancy> {
        let owed = self.of.iter().find(|owed| owed.got < owed.messages)?;
        Some(Discrepancy::Lost(self.plan.message(owed.recipient?, owed.got)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_proto::{FRAME_BYTES_MAX_DEFAULT, decode};

    fn backlog() -> Backlog {
        let plan = Plan { run: 5, senders: 2, recipients: vec![11, 22, 33], payload: 64 };
        Backlog::new(plan, [(0, 3), (2, 1)])
    }

    fn deliver(recipient: u32, sequence: u64, stamp: u64, more: u8) -> Vec<u8> {
        let (plan, mut payload) = (backlog().plan, [0; 64]);
        plan.label(recipient, sequence, 9).write(&mut payload);
        let flags = flags::ACK | flags::REPLAY | more;
        let peer = plan.sender_of(recipient);
        let mut out = Vec::new();
        encode(&mut out, &Header { kind: Kind::Deliver, flags, aux: 0, id: sequence + 1, peer, stamp }, &payload);
        out
    }

    /// What comes of it, and how many bytes are answered.
    fn take(backlog: &mut Backlog, at: u32, bytes: &[u8]) -> Result<usize, Discrepancy> {
        let (frame, _) = decode(bytes, FRAME_BYTES_MAX_DEFAULT).expect("valid").expect("whole");
        let mut out = Vec::new();
        backlog.received(at, &frame, &mut out).map(|()| out.len())
    }

    #[test]
    fn all_of_it_in_order_is_acknowledged_once_and_then_over() {
        let mut backlog = backlog();
        assert!(matches!(backlog.missing(), Some(Discrepancy::Lost(message)) if message.recipient == 11));
        for (sequence, answered) in [(0, 0), (1, 0), (2, 32)] {
            assert_eq!(take(&mut backlog, 0, &deliver(0, sequence, sequence + 1, 0)), Ok(answered));
        }
        assert_eq!((backlog.over(0), backlog.open(), backlog.messages()), (Ok(()), 1, 3));
        assert!(matches!(backlog.over(1), Err(Discrepancy::NotInBacklog(message)) if message.recipient == 33));
        assert_eq!(take(&mut backlog, 1, &deliver(2, 0, 1, 0)), Ok(32));
        assert_eq!((backlog.over(1), backlog.open(), backlog.missing()), (Ok(()), 0, None));
    }

    #[test]
    fn whoever_is_no_recipient_gets_nothing_and_is_not_waited_for() {
        let plan = backlog().plan;
        let recipient_of = |user: u64| [11, 22, 33].iter().position(|known| *known == user).map(|at| at as u32);
        let mut backlog = Backlog::of_users(plan, [99, 33], recipient_of, 1);
        assert_eq!((backlog.open(), backlog.over(0)), (1, Ok(())));
        let misdelivered = take(&mut backlog, 0, &deliver(2, 0, 1, 0)).expect_err("it is for another");
        assert!(matches!(misdelivered, Discrepancy::Misdelivered { to: 99, .. }), "{misdelivered:?}");
        assert_eq!(take(&mut backlog, 1, &deliver(2, 0, 1, 0)), Ok(32));
        assert_eq!((backlog.over(1), backlog.open()), (Ok(()), 0));
    }

    #[test]
    fn what_is_wrong_with_a_message_is_named() {
        let first = || {
            let mut backlog = backlog();
            take(&mut backlog, 0, &deliver(0, 0, 5, 0)).expect("the first one");
            backlog
        };
        let judged = |at, bytes: &[u8]| take(&mut first(), at, bytes).expect_err("wrong");
        assert!(matches!(judged(0, &deliver(0, 0, 6, 0)), Discrepancy::Doubled(_)));
        assert!(matches!(judged(0, &deliver(0, 2, 6, 0)), Discrepancy::Skipped { instead: 2, .. }));
        assert!(matches!(judged(0, &deliver(0, 1, 5, 0)), Discrepancy::StampNotIncreasing { .. }));
        assert!(matches!(judged(0, &deliver(0, 1, 6, flags::AGAIN)), Discrepancy::Altered { what: "flags", .. }));
        assert!(matches!(judged(0, &deliver(2, 0, 6, 0)), Discrepancy::Misdelivered { to: 11, .. }));
        let mut altered = deliver(0, 1, 6, 0);
        *altered.last_mut().expect("a body") ^= 1;
        assert!(matches!(judged(0, &altered), Discrepancy::Altered { what: "payload", .. }));
        let mut backlog = first();
        for sequence in [1, 2] {
            take(&mut backlog, 0, &deliver(0, sequence, 6 + sequence, 0)).expect("in order");
        }
        let more = take(&mut backlog, 0, &deliver(0, 3, 10, 0)).expect_err("one too many");
        assert!(matches!(more, Discrepancy::Foreign { user: 11, .. }), "{more:?}");
    }
}
