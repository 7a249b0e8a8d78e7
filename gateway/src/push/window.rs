//! Pushes of the last minutes by their `Idempotency-Key`, so that one that is sent again is not carried out again. No
//! clock.

use super::ledger::Standing;
use hashbrown::HashMap;
use std::collections::VecDeque;
use trunkline_proto::Outcome;

/// How long a key is remembered.
pub(super) const WINDOW_MS: u64 = 300_000;
/// Keys that are remembered; beyond it the oldest is forgotten.
pub(crate) const KEYS_MAX: usize = 65_536;
/// Bytes that the window takes at most.
pub(crate) const WINDOW_BYTES: u64 =
    2 * KEYS_MAX as u64 * (size_of::<(Name, Known)>() + size_of::<(u64, Name)>()) as u64;

/// A caller and its key, hashed.
pub(super) type Name = [u8; 16];

/// What is remembered of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// What it said.
    said: [u8; 16],
    at: At,
    noted_ms: u64,
}

/// Where a push is that was asked for before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// It is open under this number.
    Open(u32),
    /// All its users have a result.
    Over(Standing),
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    New,
    /// The same was asked for before.
    Again(At),
    /// Something else was asked for under this key.
    Other,
}

/// Whether a push is to be carried out again when it comes again, because a limit has kept it from somebody. The homes
/// of those who have it know it by its id.
pub(super) fn is_for_again(standing: &Standing) -> bool {
    standing.counts.of(Outcome::Overloaded) > 0
}

/// The keys of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Window {
    known: HashMap<Name, Known>,
    /// Which key an open push has.
    open: HashMap<u32, Name>,
    /// When each was noted, the oldest first.
    noted: VecDeque<(u64, Name)>,
}

impl Window {
    /// Looks a key up.
    pub(super) fn find(&mut self, name: &Name, said: &[u8; 16], now_ms: u64) -> Found {
        while self.noted.front().is_some_and(|(noted_ms, _)| noted_ms + WINDOW_MS <= now_ms) {
            self.forget_oldest();
        }
        match self.known.get(name) {
            None => Found::New,
            Some(known) if known.said == *said => Found::Again(known.at),
            Some(_) => Found::Other,
        }
    }

    /// Notes a push that was not known. True if another one had to be forgotten for it before its time.
    pub(super) fn note(&mut self, name: Name, said: [u8; 16], at: At, now_ms: u64) -> bool {
        let is_full = self.noted.len() >= KEYS_MAX;
        if is_full {
            self.forget_oldest();
        }
        self.noted.push_back((now_ms, name));
        if let At::Open(token) = at {
            self.open.insert(token, name);
        }
        self.known.insert(name, Known { said, at, noted_ms: now_ms });
        is_full
    }

    /// A push has come to its end. One that may be carried out again is forgotten.
    pub(super) fn ended(&mut self, token: u32, standing: Standing) {
        let Some(name) = self.open.remove(&token) else { return };
        if is_for_again(&standing) {
            self.known.remove(&name);
        }
        if let Some(known) = self.known.get_mut(&name).filter(|known| known.at == At::Open(token)) {
            known.at = At::Over(standing);
        }
    }

    fn forget_oldest(&mut self) {
        let Some((then_ms, name)) = self.noted.pop_front() else { return };
        // It may have been forgotten, and noted anew.
        let known = self.known.get(&name).filter(|known| known.noted_ms == then_ms).copied();
        let Some(Known { at, .. }) = known else { return };
        self.known.remove(&name);
        if let At::Open(token) = at {
            self.open.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: [u8; 16] = [7; 16];

    fn name(number: u32) -> Name {
        let mut name = [0; 16];
        name[..4].copy_from_slice(&number.to_ne_bytes());
        name
    }

    #[test]
    fn a_key_names_one_push_for_five_minutes() {
        let mut window = Window::default();
        assert_eq!(window.find(&name(1), &SAID, 0), Found::New);
        assert!(!window.note(name(1), SAID, At::Open(5), 0));
        assert_eq!(window.find(&name(1), &SAID, 10), Found::Again(At::Open(5)));
        assert_eq!(window.find(&name(1), &[8; 16], 10), Found::Other);
        let standing = Standing { id: 3, pending: 0, ..Standing::default() };
        window.ended(5, standing);
        window.ended(6, Standing::default());
        assert_eq!(window.find(&name(1), &SAID, WINDOW_MS - 1), Found::Again(At::Over(standing)));
        assert_eq!(window.find(&name(1), &SAID, WINDOW_MS), Found::New);
        assert!(window.known.is_empty() && window.open.is_empty() && window.noted.is_empty());
    }

    #[test]
    fn one_that_is_forgotten_while_it_is_open_leaves_nothing_behind() {
        let mut window = Window::default();
        window.note(name(1), SAID, At::Open(5), 0);
        assert_eq!(window.find(&name(1), &SAID, WINDOW_MS), Found::New);
        window.note(name(2), SAID, At::Open(5), WINDOW_MS);
        window.ended(5, Standing::default());
        assert_eq!(window.find(&name(2), &SAID, WINDOW_MS), Found::Again(At::Over(Standing::default())));
    }

    #[test]
    fn one_that_found_no_room_may_be_carried_out_again_and_is_remembered_as_long_then() {
        let mut window = Window::default();
        window.note(name(1), SAID, At::Open(5), 0);
        let mut standing = Standing::default();
        standing.counts.add(Outcome::Overloaded);
        window.ended(5, standing);
        assert_eq!(window.find(&name(1), &SAID, 1), Found::New);
        window.note(name(1), SAID, At::Open(6), WINDOW_MS - 1);
        window.ended(6, Standing::default());
        assert_eq!(window.find(&name(1), &SAID, WINDOW_MS), Found::Again(At::Over(Standing::default())));
        assert_eq!(window.find(&name(1), &SAID, 2 * WINDOW_MS), Found::New);
        assert!(window.known.is_empty() && window.open.is_empty() && window.noted.is_empty());
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut window = Window::default();
        let noted = |window: &mut Window, number: u32| window.note(name(number), SAID, At::Open(number), 1);
        assert!((0..KEYS_MAX as u32).all(|number| !noted(&mut window, number)));
        assert!(noted(&mut window, KEYS_MAX as u32));
        assert_eq!(window.find(&name(0), &SAID, 1), Found::New);
        assert_eq!(window.find(&name(1), &SAID, 1), Found::Again(At::Open(1)));
        assert_eq!(window.known.len(), KEYS_MAX);
    }
}
