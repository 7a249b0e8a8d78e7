//! Messages with ACK that were delivered to a user of this shard and wait for the recipient's ACK.

use crate::ids::Origin;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// What a waiting message takes besides its payload, for the byte bound.
pub(crate) const OVERHEAD_BYTES: usize = size_of::<Unacked>();
/// Users for whom so much waits, or a sixteenth of all that may, are the ones that give way when the bound of all is
/// reached. Few enough can have as much, so they are kept in a list.
const HEAVY_BYTES: usize = 16 << 10;

/// A message that waits for its ACKs. The shard owns a copy of it until then.
#[derive(Debug)]
pub(crate) struct Unacked {
    /// Position in the user's inbox; strictly increasing.
    pub(crate) stamp: u64,
    pub(crate) from: u64,
    pub(crate) id: u64,
    pub(crate) origin: Origin,
    /// Tick of the latest delivery.
    pub(crate) sent_tick: u32,
    /// How often it has been sent again: times a copy of it was queued.
    pub(crate) attempts: u8,
    /// Its fate has been told: a device has acknowledged it, and it waits for others that have not.
    pub(crate) told: bool,
    /// Sessions that have not acknowledged it, by their seats in the inbox; none of them means all sessions that the
    /// user has.
    pub(crate) owed: Seats,
    /// Those of them for which a copy has been queued.
    pub(crate) queued: Seats,
    pub(crate) keep: Keep,
    /// A registered device that is not online, or could not be given it, owes its ACK too: the message goes to the
    /// store, whoever acknowledges it.
    pub(crate) absent: bool,
    /// Its sender says that it has sent it before.
    pub(crate) retry: bool,
    /// It is for the sessions that it is owed to, and for no other.
    pub(crate) bound: bool,
    /// When it is over, in seconds since the Unix epoch; 0 for never.
    pub(crate) until_s: u32,
    pub(crate) payload: Box<[u8]>,
}

/// What the store has to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing: it is sent again on a timer, and given up.
    Never,
    /// It goes there unless all acknowledge it in time.
    Waiting,
    /// It is on its way there.
    Storing,
}

impl Unacked {
    /// A message that waits for whoever the recipient's sessions are.
    pub(crate) fn waiting(
        stamp: u64,
        from: u64,
        id: u64,
        origin: Origin,
        sent_tick: u32,
        attempts: u8,
        payload: Box<[u8]>,
    ) -> Self {
        let (owed, queued) = (Seats::default(), Seats::default());
        Unacked {
            stamp,
            from,
            id,
            origin,
            sent_tick,
            attempts,
            told: false,
            owed,
            queued,
            keep: Keep::Never,
            absent: false,
            retry: false,
            bound: false,
            until_s: 0,
            payload,
        }
    }

    /// Whether nobody is left of those it is bound to.
    pub(crate) fn is_stranded(&self) -> bool {
        self.bound && self.owed.is_empty()
    }

    fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.payload.len()
    }
}

/// Some of a user's sessions: a bit for each seat, of which an inbox has as many as a user may have devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seats(u64);

const _: () = assert!(trunkline_router_core::presence::DEVICES_PER_USER_LIMIT <= 64);

impl Seats {
    /// Whether nobody is in there.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Whether all of `others` are in there.
    pub(crate) fn has(self, others: Seats) -> bool {
        self.0 & others.0 == others.0
    }
    /// Whether any of `others` is in there.
    pub(crate) fn shares(self, others: Seats) -> bool {
        self.0 & others.0 != 0
    }
    /// Adds some.
    pub(crate) fn add(&mut self, others: Seats) {
        self.0 |= others.0;
    }
    /// Takes some out.
    pub(crate) fn remove(&mut self, others: Seats) {
        self.0 &= !others.0;
    }
}

/// Which bound refuses a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboxFull {
    /// The user has too many messages waiting.
    User,
    /// The user has too many bytes waiting.
    UserBytes,
    /// The shard has too many bytes waiting.
    Shard,
}

/// What came of a message that is sent again while the first one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adopted {
    /// It does not wait.
    No,
    /// Who sent it now is told of it, in place of who sent it before.
    Yes,
    /// Likewise; who sent it before has been told that the store is late.
    Again,
}

/// What an ACK came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acked {
    /// The first one for that message: its sender is to be told.
    First { origin: Origin, from: u64, id: u64 },
    /// Another device's, for a message whose fate has been told.
    Further,
    /// No such message waits.
    Unknown,
}

/// What waits for one user.
#[derive(Debug, Default)]
struct Inbox {
    messages: VecDeque<Unacked>,
    bytes: usize,
    /// Session of each seat; 0 where it is free.
    seats: Vec<u64>,
    /// Tick of the latest ACK, or of the first message.
    acked_tick: u32,
}

impl Inbox {
    /// The seat of a session; a new one if it has none.
    fn seat(&mut self, session: u64) -> Seats {
        let at = self.seats.iter().position(|taken| *taken == session);
        let at = at.or_else(|| self.seats.iter().position(|taken| *taken == 0)).unwrap_or_else(|| {
            self.seats.push(0);
            self.seats.len() - 1
        });
        self.seats[at] = session;
        // A user never has more sessions than an inbox has seats: a seat is left with its session.
        Seats(1_u64.checked_shl(at as u32).unwrap_or(0))
    }
}

/// The waiting messages of all users of a shard, by user.
#[derive(Debug)]
pub(crate) struct Inboxes {
    by_user: HashMap<u64, Inbox>,
    /// Users for whom much waits, and some for whom much did.
    heavy: Vec<u64>,
    heavy_bytes: usize,
    limits: InboxLimits,
    bytes: usize,
    /// Those whose fate is not told yet.
    messages: usize,
    /// Tick at which room was last made among them.
    room_tick: Option<u32>,
}

/// Bounds of what waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InboxLimits {
    /// Messages for one user.
    pub(crate) per_user_max: usize,
    /// Bytes for one user.
    pub(crate) user_bytes_max: usize,
    /// Bytes for all users.
    pub(crate) bytes_max: usize,
}

impl Inboxes {
    pub(crate) fn new(limits: InboxLimits) -> Self {
        let heavy_bytes = (limits.bytes_max / 16).min(HEAVY_BYTES);
        let (by_user, heavy) = (HashMap::new(), Vec::new());
        Inboxes { by_user, heavy, heavy_bytes, limits, bytes: 0, messages: 0, room_tick: None }
    }

    /// Whether room may be made in this tick. That takes a look at all users for whom much waits, so it is done once a
    /// tick.
    pub(crate) fn may_make_room(&mut self, tick: u32) -> bool {
        self.room_tick.replace(tick) != Some(tick)
    }

    /// Whether one more message with a payload of that size may wait for this user.
    pub(crate) fn admit(&self, user: u64, payload_bytes: usize) -> Result<(), InboxFull> {
        let bytes = OVERHEAD_BYTES + payload_bytes;
        if let Some(inbox) = self.by_user.get(&user) {
            if inbox.messages.len() >= self.limits.per_user_max {
                return Err(InboxFull::User);
            }
            // One message always may, however long it is.
            if inbox.bytes > 0 && inbox.bytes + bytes > self.limits.user_bytes_max {
                return Err(InboxFull::UserBytes);
            }
        }
        if self.bytes + bytes > self.limits.bytes_max {
            return Err(InboxFull::Shard);
        }
        Ok(())
    }

    /// Whether a message for somebody who is offline may wait for the store: all of them together leave half of the
    /// room to those who are online.
    pub(crate) fn admits_offline(&self, payload_bytes: usize) -> bool {
        self.bytes + OVERHEAD_BYTES + payload_bytes <= self.limits.bytes_max / 2
    }

    /// Makes room for a message of `user` at the bound of all: the users for whom most waits lose their oldest
    /// messages, those first who have acknowledged nothing for a while. Returns the lost ones with their users, told of
    /// or not; none if `user` has most itself, or nobody much.
    pub(crate) fn make_room(&mut self, user: u64, tick: u32, quiet_ticks: u32) -> Vec<(u64, Unacked)> {
        let by_user = &self.by_user;
        let waiting = |user: &u64| by_user.get(user).map_or(0, |inbox| inbox.bytes);
        self.heavy.sort_unstable();
        self.heavy.dedup();
        let much = self.heavy_bytes;
        self.heavy.retain(|user| waiting(user) >= much);
        let quiet =
            |user: &u64| by_user.get(user).is_some_and(|inbox| tick.saturating_sub(inbox.acked_tick) >= quiet_ticks);
        let mut heavy: Vec<(bool, usize, u64)> =
            self.heavy.iter().map(|user| (quiet(user), waiting(user), *user)).collect();
        heavy.sort_unstable();
        let mut lost = Vec::new();
        let target = self.limits.bytes_max - self.limits.bytes_max / 8;
        let own = waiting(&user);
        while self.bytes > target
            && let Some((_, bytes, hog)) = heavy.pop()
        {
            if hog == user || bytes <= own {
                continue;
            }
            // Half of it, so that one who is only busy goes on with the rest.
            let keep = bytes / 2;
            while let Some(inbox) = self.by_user.get_mut(&hog)
                && inbox.bytes > keep
                && self.bytes > target
                && let Some(message) = inbox.messages.pop_front()
            {
                self.forget(hog, &message);
                lost.push((hog, message));
            }
        }
        lost
    }

    /// The seat of a user's session among those that messages are owed to.
    pub(crate) fn seat(&mut self, user: u64, session: u64) -> Seats {
        self.by_user.entry(user).or_default().seat(session)
    }

    /// Adds a message that was admitted. Its stamp is larger than all before it.
    pub(crate) fn push(&mut self, user: u64, message: Unacked) {
        let inbox = self.by_user.entry(user).or_default();
        if inbox.messages.is_empty() {
            inbox.acked_tick = message.sent_tick;
        }
        let before = inbox.bytes;
        inbox.bytes += message.bytes();
        let now = inbox.bytes;
        self.bytes += message.bytes();
        self.messages += usize::from(!message.told);
        inbox.messages.push_back(message);
        self.note_heavy(user, before, now);
    }

    /// Notes a user for whom much waits now.
    fn note_heavy(&mut self, user: u64, before: usize, now: usize) {
        let much = self.heavy_bytes;
        if before >= much || now < much {
            return;
        }
        self.heavy.push(user);
        // Those that are so no more are forgotten when the list has doubled.
        if self.heavy.len() >= 64 && self.heavy.len().is_power_of_two() {
            let by_user = &self.by_user;
            self.heavy.sort_unstable();
            self.heavy.dedup();
            self.heavy.retain(|user| by_user.get(user).is_some_and(|inbox| inbox.bytes >= much));
        }
    }

    /// A session of the user has acknowledged a message; 0 where it is not known which. The message goes when nobody is
    /// left that it is owed to.
    pub(crate) fn ack(&mut self, user: u64, session: u64, stamp: u64, tick: u32) -> Acked {
        let Some(inbox) = self.by_user.get_mut(&user) else { return Acked::Unknown };
        // Most ACKs are for the oldest message.
        let at = match inbox.messages.front() {
            Some(front) if front.stamp == stamp => 0,
            _ => match inbox.messages.binary_search_by_key(&stamp, |message| message.stamp) {
                Ok(at) => at,
                Err(_) => return Acked::Unknown,
            },
        };
        inbox.acked_tick = tick;
        let seat = inbox.seats.iter().position(|taken| *taken == session && session != 0);
        let message = &mut inbox.messages[at];
        if let Some(at) = seat {
            message.owed.remove(Seats(1 << at));
        }
        let first = !std::mem::replace(&mut message.told, true);
        self.messages -= usize::from(first);
        let Unacked { origin, from, id, .. } = *message;
        let acked = if first { Acked::First { origin, from, id } } else { Acked::Further };
        if message.owed.is_empty()
            && !message.absent
            && let Some(message) = inbox.messages.remove(at)
        {
            self.forget(user, &message);
        }
        acked
    }

    /// Positions up to `stamp` for which a copy was queued for a session that has not acknowledged them.
    pub(crate) fn queued_up_to(&self, user: u64, session: u64, stamp: u64) -> Vec<u64> {
        let Some(inbox) = self.by_user.get(&user) else { return Vec::new() };
        let Some(at) = inbox.seats.iter().position(|taken| *taken == session && session != 0) else {
            return Vec::new();
        };
        let seat = Seats(1 << at);
        let messages = inbox.messages.iter().take_while(|message| message.stamp <= stamp);
        messages
            .filter(|message| message.owed.has(seat) && message.queued.has(seat))
            .map(|message| message.stamp)
            .collect()
    }

    /// A session has ended: nothing is owed to it any more.
    pub(crate) fn leave(&mut self, user: u64, session: u64) {
        let Some(inbox) = self.by_user.get_mut(&user) else { return };
        let Some(at) = inbox.seats.iter().position(|taken| *taken == session) else { return };
        inbox.seats[at] = 0;
        let seat = Seats(1 << at);
        for message in &mut inbox.messages {
            message.owed.remove(seat);
            message.queued.remove(seat);
        }
        self.drop_if(user, |message| message.told && message.owed.is_empty() && !message.absent);
    }

    /// What the store keeps for a device of a user is owed to that device's session no more: it gets it from there.
    pub(crate) fn leave_to_store(&mut self, user: u64, session: u64) {
        let Some(inbox) = self.by_user.get_mut(&user) else { return };
        let Some(at) = inbox.seats.iter().position(|taken| *taken == session) else { return };
        let seat = Seats(1 << at);
        for message in inbox.messages.iter_mut().filter(|message| message.keep != Keep::Never) {
            message.absent |= message.owed.has(seat);
            message.owed.remove(seat);
            message.queued.remove(seat);
        }
    }

    /// A session takes another one's place: what was owed to that is owed to it, and none of it has been queued for it.
    pub(crate) fn replace(&mut self, user: u64, old: u64, new: u64) {
        let Some(inbox) = self.by_user.get_mut(&user) else { return };
        let Some(at) = inbox.seats.iter().position(|taken| *taken == old) else { return };
        inbox.seats[at] = new;
        for message in &mut inbox.messages {
            message.queued.remove(Seats(1 << at));
        }
    }

    /// A message waits for a sender's newer session, which is told what becomes of it.
    pub(crate) fn adopt(&mut self, user: u64, stamp: u64, origin: Origin, tick: u32) -> Adopted {
        let Some(message) = self.find(user, stamp) else { return Adopted::No };
        let told = std::mem::replace(&mut message.told, false);
        if told && message.keep != Keep::Storing {
            message.told = true;
            return Adopted::No;
        }
        message.origin = origin;
        message.sent_tick = if told { tick } else { message.sent_tick };
        self.messages += usize::from(told);
        if told { Adopted::Again } else { Adopted::Yes }
    }

    /// The fate of a message is being told although nobody has acknowledged it and the store has not answered.
    pub(crate) fn tell(&mut self, user: u64, stamp: u64) -> Option<(Origin, u64)> {
        let message = self.find(user, stamp).filter(|message| !message.told)?;
        message.told = true;
        let told = (message.origin, message.id);
        self.messages -= 1;
        Some(told)
    }

    /// The message at a position, if it waits.
    pub(crate) fn find(&mut self, user: u64, stamp: u64) -> Option<&mut Unacked> {
        let inbox = self.by_user.get_mut(&user)?;
        let at = inbox.messages.binary_search_by_key(&stamp, |message| message.stamp).ok()?;
        inbox.messages.get_mut(at)
    }

    /// Takes out the message at a position.
    pub(crate) fn take(&mut self, user: u64, stamp: u64) -> Option<Unacked> {
        let inbox = self.by_user.get_mut(&user)?;
        let at = inbox.messages.binary_search_by_key(&stamp, |message| message.stamp).ok()?;
        let message = inbox.messages.remove(at)?;
        self.forget(user, &message);
        Some(message)
    }

    /// Forgets a user without sessions for whom nothing waits.
    pub(crate) fn drop_empty(&mut self, user: u64) {
        if self.by_user.get(&user).is_some_and(|inbox| inbox.messages.is_empty()) {
            self.by_user.remove(&user);
        }
    }

    /// Takes out everything that waits for a user. Returns what has not been told of.
    pub(crate) fn take_all(&mut self, user: u64) -> VecDeque<Unacked> {
        let Some(mut inbox) = self.by_user.remove(&user) else { return VecDeque::new() };
        for message in &inbox.messages {
            self.uncount(message);
        }
        inbox.messages.retain(|message| !message.told);
        inbox.messages
    }

    /// Adds a message of another home, with the stamp it has there, at its place. False, and nothing done, if a message
    /// has that stamp.
    pub(crate) fn insert(&mut self, user: u64, message: Unacked) -> bool {
        let inbox = self.by_user.entry(user).or_default();
        let Err(at) = inbox.messages.binary_search_by_key(&message.stamp, |known| known.stamp) else { return false };
        let before = inbox.bytes;
        inbox.bytes += message.bytes();
        let now = inbox.bytes;
        self.bytes += message.bytes();
        self.messages += usize::from(!message.told);
        inbox.messages.insert(at, message);
        self.note_heavy(user, before, now);
        true
    }

    /// Users for whom something waits, in the order of their ids.
    pub(crate) fn users(&self) -> Vec<u64> {
        let waiting = self.by_user.iter().filter(|(_, inbox)| !inbox.messages.is_empty());
        let mut users: Vec<u64> = waiting.map(|(user, _)| *user).collect();
        users.sort_unstable();
        users
    }

    /// Takes out the oldest message of a user that has not been told of, and drops those that have.
    pub(crate) fn pop(&mut self, user: u64) -> Option<Unacked> {
        loop {
            let message = self.by_user.get_mut(&user)?.messages.pop_front()?;
            self.forget(user, &message);
            if !message.told {
                return Some(message);
            }
        }
    }

    /// Takes out the oldest message of a user, told of or not.
    pub(crate) fn pop_any(&mut self, user: u64) -> Option<Unacked> {
        let message = self.by_user.get_mut(&user)?.messages.pop_front()?;
        self.forget(user, &message);
        Some(message)
    }

    /// A copy of a message has not reached a session after all.
    pub(crate) fn bounced(&mut self, user: u64, session: u64, stamp: u64) {
        if self.find(user, stamp).is_none() {
            return;
        }
        let seat = self.seat(user, session);
        if let Some(message) = self.find(user, stamp) {
            message.queued.remove(seat);
        }
    }

    /// Takes out those of a user's messages for which `which` is true. Returns those that have not been told of.
    pub(crate) fn take_if(&mut self, user: u64, which: impl Fn(&Unacked) -> bool) -> VecDeque<Unacked> {
        let Some(inbox) = self.by_user.get_mut(&user) else { return VecDeque::new() };
        if !inbox.messages.iter().any(&which) {
            return VecDeque::new();
        }
        let (mut taken, kept): (VecDeque<Unacked>, VecDeque<Unacked>) =
            std::mem::take(&mut inbox.messages).into_iter().partition(which);
        inbox.messages = kept;
        for message in &taken {
            self.forget(user, message);
        }
        taken.retain(|message| !message.told);
        taken
    }

    /// Drops those of a user's messages for which `which` is true, all of which have been told of. Returns how many.
    fn drop_if(&mut self, user: u64, which: impl Fn(&Unacked) -> bool) -> usize {
        let before = self.len(user);
        let untold = self.take_if(user, which);
        debug_assert!(untold.is_empty());
        before - self.len(user)
    }

    /// What waits for a user, oldest first, to be sent again.
    pub(crate) fn of(&mut self, user: u64) -> impl Iterator<Item = &mut Unacked> {
        self.by_user.get_mut(&user).into_iter().flat_map(|inbox| &mut inbox.messages)
    }

    /// Takes out the user's messages that were sent again too often. Returns those that have not been told of, and how
    /// many others there were.
    pub(crate) fn take_exhausted(
        &mut self,
        user: u64,
        attempts_max: u8,
        sent_before: u32,
    ) -> (VecDeque<Unacked>, usize) {
        let exhausted = |message: &Unacked| {
            message.keep == Keep::Never && message.attempts >= attempts_max && message.sent_tick <= sent_before
        };
        let told = self.drop_if(user, |message| message.told && exhausted(message));
        (self.take_if(user, exhausted), told)
    }

    /// Tick of the oldest latest delivery among those of a user's messages that are sent again on a timer. An inbox
    /// found empty is dropped here rather than at its last ACK, because the next message usually comes soon.
    pub(crate) fn oldest_sent(&mut self, user: u64) -> Option<u32> {
        let inbox = self.by_user.get(&user)?;
        let on_timer = inbox.messages.iter().filter(|message| message.keep == Keep::Never);
        let oldest = on_timer.map(|message| message.sent_tick).min();
        if inbox.messages.is_empty() {
            self.by_user.remove(&user);
        }
        oldest
    }

    /// Messages waiting for a user.
    pub(crate) fn len(&self, user: u64) -> usize {
        self.by_user.get(&user).map_or(0, |inbox| inbox.messages.len())
    }

    /// Messages waiting in all whose fate has not been told.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes that all messages take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A message has been taken out.
    fn forget(&mut self, user: u64, message: &Unacked) {
        if let Some(inbox) = self.by_user.get_mut(&user) {
            inbox.bytes -= message.bytes();
        }
        self.uncount(message);
    }

    fn uncount(&mut self, message: &Unacked) {
        #[cfg(test)]
        if message.id.is_multiple_of(5) && crate::simulation::planted(crate::simulation::Bug::BudgetLeaked) {
            self.messages -= usize::from(!message.told);
            return;
        }
        self.bytes -= message.bytes();
        self.messages -= usize::from(!message.told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ConnId;

    fn message(stamp: u64, sent_tick: u32) -> Unacked {
        let origin = Origin::own(0, ConnId { slot: 1, generation: 1 });
        Unacked {
            stamp,
            from: 1,
            id: stamp,
            origin,
            sent_tick,
            attempts: 0,
            told: false,
            owed: Seats::default(),
            queued: Seats::default(),
            keep: Keep::Never,
            absent: false,
            retry: false,
            bound: false,
            until_s: 0,
            payload: Box::new([0; 10]),
        }
    }

    fn inboxes(per_user_max: usize, bytes_max: usize) -> Inboxes {
        Inboxes::new(InboxLimits { per_user_max, user_bytes_max: bytes_max, bytes_max })
    }

    fn first(id: u64) -> Acked {
        Acked::First { origin: message(id, 0).origin, from: 1, id }
    }

    fn is_empty(inboxes: &Inboxes) -> bool {
        (inboxes.messages(), inboxes.bytes()) == (0, 0)
    }

    #[test]
    fn a_message_is_acknowledged_once_and_in_any_order() {
        let mut inboxes = inboxes(10, 10_000);
        for stamp in [5, 6, 9] {
            inboxes.admit(2, 10).unwrap();
            inboxes.push(2, message(stamp, 0));
        }
        assert_eq!(inboxes.ack(2, 1, 6, 0), first(6));
        assert_eq!(inboxes.ack(2, 1, 6, 0), Acked::Unknown);
        assert_eq!(inboxes.ack(3, 1, 5, 0), Acked::Unknown);
        assert_eq!(inboxes.ack(2, 1, 9, 0), first(9));
        assert_eq!(inboxes.ack(2, 1, 5, 0), first(5));
        assert!(is_empty(&inboxes));
    }

    #[test]
    fn what_an_absent_device_owes_waits_whoever_acknowledges_it() {
        let mut inboxes = inboxes(10, 10_000);
        let phone = inboxes.seat(2, 100);
        for stamp in [5, 6, 7] {
            let absent = stamp != 7;
            inboxes.push(2, Unacked { owed: phone, queued: phone, keep: Keep::Waiting, absent, ..message(stamp, 0) });
        }
        assert_eq!(inboxes.queued_up_to(2, 100, 6), [5, 6]);
        assert_eq!(inboxes.queued_up_to(2, 200, 6), [0; 0]);
        for stamp in [5, 6, 7] {
            assert_eq!(inboxes.ack(2, 100, stamp, 0), first(stamp));
        }
        inboxes.leave(2, 100);
        assert_eq!((inboxes.messages(), inboxes.len(2)), (0, 2));
        let newer = Origin::own(3, ConnId { slot: 9, generation: 9 });
        assert_eq!(inboxes.adopt(2, 5, newer, 9), Adopted::No, "its fate is told");
        assert_eq!(inboxes.take(2, 5).map(|message| message.told), Some(true));
        assert_eq!(inboxes.take(2, 5).map(|message| message.stamp), None);
        assert_eq!(inboxes.oldest_sent(2), None, "nothing is sent again on a timer");
        inboxes.take(2, 6);
        inboxes.drop_empty(2);
        assert!(is_empty(&inboxes) && inboxes.by_user.is_empty());
    }

    #[test]
    fn one_that_was_told_that_the_store_is_late_is_told_again_if_it_asks_again() {
        let mut inboxes = inboxes(10, 10_000);
        let newer = Origin::own(3, ConnId { slot: 9, generation: 9 });
        inboxes.push(2, Unacked { keep: Keep::Storing, ..message(5, 0) });
        assert_eq!(inboxes.adopt(2, 5, newer, 7), Adopted::Yes);
        assert_eq!(inboxes.tell(2, 5), Some((newer, 5)));
        assert_eq!((inboxes.tell(2, 5), inboxes.messages(), inboxes.len(2)), (None, 0, 1));
        assert_eq!(inboxes.adopt(2, 5, newer, 7), Adopted::Again);
        assert_eq!((inboxes.messages(), inboxes.take(2, 5).map(|message| message.sent_tick)), (1, Some(7)));
        assert_eq!(inboxes.adopt(2, 5, newer, 7), Adopted::No);
        assert!(is_empty(&inboxes));
    }

    #[test]
    fn what_is_for_those_who_are_offline_leaves_half_of_the_room() {
        let one = OVERHEAD_BYTES + 10;
        let mut inboxes = Inboxes::new(InboxLimits { per_user_max: 9, user_bytes_max: 9 * one, bytes_max: 4 * one });
        inboxes.push(1, message(1, 0));
        assert!(inboxes.admits_offline(10));
        inboxes.push(1, message(2, 0));
        assert!(!inboxes.admits_offline(10) && inboxes.admit(3, 10).is_ok());
    }

    #[test]
    fn the_first_ack_tells_and_the_last_one_ends() {
        let mut inboxes = inboxes(10, 10_000);
        let (phone, desk) = (inboxes.seat(2, 100), inboxes.seat(2, 200));
        let mut owed = phone;
        owed.add(desk);
        inboxes.push(2, Unacked { owed, queued: phone, ..message(5, 0) });
        assert_eq!(inboxes.ack(2, 100, 5, 0), first(5));
        assert_eq!((inboxes.messages(), inboxes.len(2)), (0, 1), "told, and still owed to the other device");
        assert_eq!(inboxes.ack(2, 100, 5, 0), Acked::Further);
        assert_eq!(inboxes.of(2).map(|message| message.owed).collect::<Vec<_>>(), [desk]);
        assert_eq!(inboxes.ack(2, 200, 5, 0), Acked::Further);
        assert!(is_empty(&inboxes) && inboxes.len(2) == 0);
    }

    #[test]
    fn nothing_is_owed_to_a_session_that_has_left_and_all_to_the_one_in_its_place() {
        let mut inboxes = inboxes(10, 10_000);
        let (phone, desk) = (inboxes.seat(2, 100), inboxes.seat(2, 200));
        let mut owed = phone;
        owed.add(desk);
        for stamp in [5, 6] {
            inboxes.push(2, Unacked { owed, queued: owed, ..message(stamp, 0) });
        }
        inboxes.ack(2, 100, 5, 0);
        inboxes.replace(2, 200, 201);
        assert_eq!(inboxes.seat(2, 201), desk);
        assert!(inboxes.of(2).all(|message| message.owed.has(desk) && !message.queued.has(desk)));
        inboxes.leave(2, 201);
        // What was told is over with the last device that had not got it; the other waits for whoever is there.
        assert_eq!(inboxes.of(2).map(|message| message.stamp).collect::<Vec<_>>(), [6]);
        inboxes.leave(2, 100);
        assert!(inboxes.of(2).all(|message| message.owed.is_empty()));
        assert_eq!(inboxes.take_all(2).len(), 1);
        assert!(is_empty(&inboxes));
    }

    #[test]
    fn a_message_of_another_home_takes_its_place_by_its_stamp_and_once() {
        let mut inboxes = inboxes(10, 10_000);
        inboxes.push(2, message(5, 0));
        inboxes.push(2, message(9, 0));
        assert!(inboxes.insert(2, message(7, 0)));
        assert!(!inboxes.insert(2, message(7, 0)));
        assert!(inboxes.insert(3, message(1, 0)));
        assert_eq!(inboxes.users(), [2, 3]);
        assert_eq!(inboxes.of(2).map(|m| m.stamp).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!(inboxes.ack(2, 1, 7, 0), first(7));
        assert_eq!(std::iter::from_fn(|| inboxes.pop(2)).map(|m| m.stamp).collect::<Vec<_>>(), [5, 9]);
        assert_eq!(inboxes.take_all(3).len(), 1);
        assert!(is_empty(&inboxes));
        assert!(inboxes.users().is_empty());
    }

    #[test]
    fn each_bound_refuses_and_reopens() {
        let one = OVERHEAD_BYTES + 10;
        let limits = InboxLimits { per_user_max: 3, user_bytes_max: 2 * one, bytes_max: 3 * one };
        let mut inboxes = Inboxes::new(limits);
        inboxes.push(1, message(1, 0));
        inboxes.push(1, message(2, 0));
        assert_eq!(inboxes.admit(1, 10), Err(InboxFull::UserBytes));
        inboxes.push(2, message(3, 0));
        assert_eq!(inboxes.admit(3, 10), Err(InboxFull::Shard));
        inboxes.ack(1, 1, 1, 0);
        assert_eq!(inboxes.admit(1, 10), Ok(()));
        let mut inboxes = Inboxes::new(InboxLimits { per_user_max: 1, ..limits });
        inboxes.push(1, message(1, 0));
        assert_eq!(inboxes.admit(1, 10), Err(InboxFull::User));
    }

    #[test]
    fn at_the_bound_of_all_the_one_who_has_most_and_acknowledges_nothing_gives_way() {
        let long = || vec![0; 8_000].into_boxed_slice();
        let one = OVERHEAD_BYTES + 8_000;
        let limits = InboxLimits { per_user_max: 100, user_bytes_max: 100 * one, bytes_max: 16 * one };
        let mut inboxes = Inboxes::new(limits);
        // User 1 has most, but acknowledges; user 2 does not; user 3 has little.
        for stamp in 0..8 {
            inboxes.push(1, Unacked { payload: long(), ..message(stamp, 0) });
        }
        for stamp in 8..14 {
            inboxes.push(2, Unacked { payload: long(), ..message(stamp, 0) });
        }
        inboxes.push(3, Unacked { payload: long(), ..message(14, 0) });
        inboxes.ack(1, 1, 0, 50);
        inboxes.push(1, Unacked { payload: long(), ..message(15, 50) });
        inboxes.push(3, Unacked { payload: long(), ..message(16, 50) });
        assert_eq!(inboxes.admit(4, 8_000), Err(InboxFull::Shard));
        assert!(inboxes.make_room(1, 55, 10).is_empty(), "one who has most moves nobody else");
        let lost = inboxes.make_room(4, 55, 10);
        assert!(!lost.is_empty() && lost.iter().all(|(user, _)| *user == 2), "{lost:?}");
        let mut inboxes_two = Inboxes::new(limits);
        for stamp in 0..16 {
            inboxes_two.push(2, Unacked { payload: long(), ..message(stamp, 0) });
        }
        let lost = inboxes_two.make_room(4, 55, 10);
        let stamps: Vec<u64> = lost.iter().map(|(_, message)| message.stamp).collect();
        assert_eq!(stamps, [0, 1], "the oldest, as many as make room");
        assert_eq!(inboxes_two.admit(4, 8_000), Ok(()));
        assert!(inboxes_two.make_room(2, 55, 10).is_empty());
    }

    #[test]
    fn only_messages_sent_too_often_and_long_ago_are_given_up() {
        let mut inboxes = inboxes(10, 10_000);
        for (stamp, attempts, tick) in [(1, 3, 5), (2, 3, 50), (3, 0, 5)] {
            inboxes.push(7, Unacked { attempts, ..message(stamp, tick) });
        }
        let (given_up, told) = inboxes.take_exhausted(7, 3, 10);
        assert_eq!((given_up.iter().map(|m| m.stamp).collect::<Vec<_>>(), told), (vec![1], 0));
        assert_eq!(inboxes.oldest_sent(7), Some(5));
        assert_eq!(inboxes.take_all(7).len(), 2);
        assert!(is_empty(&inboxes));
        assert_eq!(inboxes.oldest_sent(7), None);
    }
}
