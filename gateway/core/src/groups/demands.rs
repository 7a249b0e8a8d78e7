//! What single sessions ask of homes and of the store by frames of groups, so that no session takes the room of others:
//! joins and leaves that are not answered, and messages to groups that it is not in. No I/O; times are ticks of the
//! shard.

use hashbrown::HashMap;

/// Joins and leaves of a session that are not answered. With so many it is not heard until one is.
pub(crate) const UNANSWERED_MAX: usize = 32;
/// Messages of a session in a second to durable groups that it is not in, as far as its shard knows: most of them will
/// be refused, and each costs the store as much as one that is not.
pub(crate) const STRANGE_SENDS_PER_SEC: u16 = 32;
/// A second.
const WINDOW_TICKS: u32 = 10;

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    /// By slot: groups, and the ids of the frames.
    unanswered: HashMap<u32, Vec<(u64, u64)>>,
    /// Messages to groups that the session in a slot is not in, in this second.
    strange: HashMap<u32, u16>,
    window_tick: u32,
}

impl Demands {
    /// A join or a leave is asked. False if the session has to wait for an answer first.
    pub(crate) fn begin(&mut self, slot: u32, group: u64, id: u64) -> bool {
        let of_session = self.unanswered.entry(slot).or_default();
        let has_room = of_session.len() < UNANSWERED_MAX;
        if has_room {
            of_session.push((group, id));
        }
        has_room
    }

    /// It is answered, or was not asked after all.
    pub(crate) fn over(&mut self, slot: u32, group: u64, id: u64) {
        let Some(of_session) = self.unanswered.get_mut(&slot) else { return };
        if let Some(at) = of_session.iter().position(|asked| *asked == (group, id)) {
            of_session.swap_remove(at);
        }
        if of_session.is_empty() {
            self.unanswered.remove(&slot);
        }
    }

    /// Whether a join or a leave of a group is not answered.
    pub(crate) fn is_asked(&self, slot: u32, group: u64) -> bool {
        self.unanswered.get(&slot).is_some_and(|asked| asked.iter().any(|(of, _)| *of == group))
    }

    /// A session has a message for a group that it is not in. False if it has had its messages of this second.
    pub(crate) fn may_send_as_stranger(&self, slot: u32) -> bool {
        self.strange.get(&slot).is_none_or(|sent| *sent < STRANGE_SENDS_PER_SEC)
    }

    /// A session has sent a message to a group that it is not in.
    pub(crate) fn sent_as_stranger(&mut self, slot: u32) {
        let sent = self.strange.entry(slot).or_default();
        *sent = sent.saturating_add(1);
    }

    /// The session has ended.
    pub(crate) fn end(&mut self, slot: u32) {
        self.unanswered.remove(&slot);
        self.strange.remove(&slot);
    }

    /// Begins a new second, if one has passed.
    pub(crate) fn pass(&mut self, tick: u32) {
        if tick.wrapping_sub(self.window_tick) >= WINDOW_TICKS {
            self.window_tick = tick;
            self.strange.clear();
            self.strange.shrink_to(1_024);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_joins_of_a_session_wait_for_their_answers_and_others_have_their_own() {
        let mut demands = Demands::default();
        assert!((0..UNANSWERED_MAX as u64).all(|id| demands.begin(1, 7, id)));
        assert!(!demands.begin(1, 8, 1) && demands.begin(2, 8, 1));
        assert!(demands.is_asked(1, 7) && !demands.is_asked(1, 8) && !demands.is_asked(3, 7));
        demands.over(1, 7, 99);
        assert!(!demands.begin(1, 8, 1), "that was none of them");
        demands.over(1, 7, 3);
        assert!(demands.begin(1, 8, 1) && !demands.begin(1, 8, 2));
        (0..UNANSWERED_MAX as u64).for_each(|id| demands.over(1, 7, id));
        demands.over(1, 8, 1);
        demands.end(2);
        assert!(demands.unanswered.is_empty());
    }

    #[test]
    fn a_stranger_has_so_many_messages_in_a_second() {
        let mut demands = Demands::default();
        let sent = |demands: &mut Demands, slot| {
            let mut count = 0;
            while demands.may_send_as_stranger(slot) {
                demands.sent_as_stranger(slot);
                count += 1;
            }
            count
        };
        assert_eq!(sent(&mut demands, 1), usize::from(STRANGE_SENDS_PER_SEC));
        assert_eq!(sent(&mut demands, 2), usize::from(STRANGE_SENDS_PER_SEC));
        demands.pass(WINDOW_TICKS - 1);
        assert_eq!(sent(&mut demands, 1), 0);
        demands.end(1);
        assert!(sent(&mut demands, 1) > 0, "the next session in that slot");
        demands.pass(WINDOW_TICKS);
        assert!(sent(&mut demands, 2) > 0);
    }
}
