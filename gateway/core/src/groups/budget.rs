//! How many messages of live rooms each session has been given in this second, of all its rooms together. Beyond the
//! budget they are left out: the session sees that by their numbers.

/// Counts by slot.
#[derive(Debug, Default)]
pub(crate) struct RoomBudget {
    second: u64,
    /// Slots that there are: the table is made for all of them.
    slots: usize,
    given: Vec<u16>,
    /// Something was given in this second.
    is_used: bool,
}

impl RoomBudget {
    /// The second that it is, and how many slots there are.
    pub(crate) fn pass(&mut self, second: u64, slots: u32) {
        self.slots = slots as usize;
        if self.second == second {
            return;
        }
        self.second = second;
        if std::mem::take(&mut self.is_used) {
            self.given.fill(0);
        } else {
            // The rooms are quiet.
            self.given = Vec::new();
        }
    }

    /// Takes so many messages of a session's budget. False if it has not as many: then it takes none.
    pub(crate) fn takes(&mut self, slot: u32, messages: usize, most: u16) -> bool {
        let slot = slot as usize;
        if slot >= self.given.len() {
            let slots = self.slots.max(slot + 1);
            self.given.reserve_exact(slots - self.given.len());
            self.given.resize(slots, 0);
        }
        self.is_used = true;
        let given = usize::from(self.given[slot]) + messages;
        match u16::try_from(given) {
            Ok(given) if given <= most => {
                self.given[slot] = given;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_gets_so_many_messages_in_a_second_and_all_of_them_in_the_next() {
        let mut budget = RoomBudget::default();
        budget.pass(7, 4);
        assert!(budget.takes(2, 3, 5) && budget.takes(3, 5, 5));
        assert!(!budget.takes(2, 3, 5), "two are left");
        assert!(budget.takes(2, 2, 5) && !budget.takes(2, 1, 5));
        assert!(budget.takes(9, 1, 5), "a session that has come since");
        budget.pass(7, 10);
        assert!(!budget.takes(2, 1, 5), "it is the same second");
        budget.pass(8, 10);
        assert!(budget.takes(2, 5, 5) && !budget.takes(2, usize::from(u16::MAX), 5));
        budget.pass(9, 10);
        budget.pass(10, 10);
        assert_eq!(budget.given.capacity(), 0, "nothing is held while the rooms are quiet");
        assert!(budget.takes(2, 5, 5));
    }
}
