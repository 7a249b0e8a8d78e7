//! Logins of guests that wait for the answer of their user's home.

use super::routing::NodeKey;
use crate::auth::Granted;
use crate::desk::Wish;
use hashbrown::HashMap;
use trunkline_store::Opened;

/// A login that waits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    /// Tells this login's connection from a later one in its slot.
    pub(crate) generation: u32,
    pub(crate) user: u64,
    pub(crate) device: String,
    pub(crate) class: String,
    pub(crate) heartbeat_secs: u16,
    pub(crate) granted: Granted,
    /// When LOGIN came, microseconds of the monotonic clock, to measure with.
    pub(crate) began_us: u64,
    /// The home that was asked.
    pub(crate) home: NodeKey,
    /// The home cannot say now: when to ask again.
    pub(crate) again_tick: Option<u32>,
    /// What LOGIN says of the inbox, and where its device stands there, if the store has said it.
    pub(crate) wish: Wish,
    pub(crate) opened: Option<Opened>,
}

/// All of them, by the slot of their connection; so there are never more than connections.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    by_slot: HashMap<u32, Registration>,
}

impl Registrations {
    /// A login waits for its home from now on.
    pub(crate) fn add(&mut self, slot: u32, registration: Registration) {
        self.by_slot.insert(slot, registration);
    }

    /// The answer for a connection has come: takes the login out, unless the slot has another one by now.
    pub(crate) fn take(&mut self, slot: u32, generation: u32, user: u64) -> Option<Registration> {
        let waiting = self.by_slot.get(&slot)?;
        if waiting.generation != generation || waiting.user != user {
            return None;
        }
        self.by_slot.remove(&slot)
    }

    /// The connection of a slot has ended.
    pub(crate) fn forget(&mut self, slot: u32) -> Option<Registration> {
        self.by_slot.remove(&slot)
    }

    /// Slots of the logins for which `wanted` holds, such as those that wait for a home that is none any more.
    pub(crate) fn find(&self, wanted: impl Fn(&Registration) -> bool) -> Vec<u32> {
        let waiting = self.by_slot.iter().filter(|(_, registration)| wanted(registration));
        let mut slots: Vec<u32> = waiting.map(|(slot, _)| *slot).collect();
        slots.sort_unstable();
        slots
    }

    /// The login that waits in a slot, to be asked for at another home.
    pub(crate) fn at(&mut self, slot: u32) -> Option<&mut Registration> {
        self.by_slot.get_mut(&slot)
    }

    /// Logins that wait.
    pub(crate) fn len(&self) -> usize {
        self.by_slot.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(generation: u32, user: u64, home: u64) -> Registration {
        let (device, class) = (String::new(), String::new());
        Registration {
            generation,
            user,
            device,
            class,
            heartbeat_secs: 30,
            granted: Granted::default(),
            began_us: 0,
            home: NodeKey(home),
            again_tick: None,
            wish: Wish::default(),
            opened: None,
        }
    }

    #[test]
    fn an_answer_meets_its_own_login_only() {
        let mut waiting = Registrations::default();
        waiting.add(5, registration(1, 10, 1));
        assert_eq!(waiting.take(5, 2, 10), None, "a later connection");
        assert_eq!(waiting.take(5, 1, 11), None, "another user");
        assert_eq!(waiting.take(6, 1, 10), None, "another slot");
        assert_eq!(waiting.take(5, 1, 10), Some(registration(1, 10, 1)));
        assert_eq!(waiting.take(5, 1, 10), None, "it was answered");
    }

    #[test]
    fn logins_of_a_home_that_is_gone_can_be_asked_for_elsewhere() {
        let mut waiting = Registrations::default();
        for slot in [4, 9, 2, 7] {
            waiting.add(slot, registration(1, u64::from(slot), u64::from(slot % 2)));
        }
        assert_eq!(waiting.find(|waiting| waiting.home == NodeKey(0)), [2, 4]);
        waiting.at(2).unwrap().home = NodeKey(1);
        assert_eq!(waiting.find(|waiting| waiting.home == NodeKey(1)), [2, 7, 9]);
        assert!(waiting.forget(7).is_some());
        assert_eq!(waiting.len(), 3);
    }
}
