//! Attention that a gateway could not give or take back yet, and rooms of the connection before that it could not take
//! the session into (ERROR 14): they are asked for again, later each time.
//!
//! What an application waits for is asked for a few times; what this client asks for by itself after a reconnect as
//! long as the session lasts. A later wish for the same group takes the place of an earlier one.

use std::time::Duration;

use tokio::time::Instant;

use super::{Act, Asked};
use crate::Backoff;

/// How often a wish of the application is asked for, the first time included: some seconds in all.
const TRIES_MAX: u32 = 6;

/// How long to wait between two times.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(30) };

/// A wish that is asked for again.
#[derive(Debug)]
struct Later {
    due: Instant,
    asked: Asked,
}

/// The wishes of one connection that wait to be asked for again: at most one for each group.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    later: Vec<Later>,
}

impl Attention {
    pub(crate) fn len(&self) -> usize {
        self.later.len()
    }

    /// The gateway cannot say yet. Gives the wish back if it is not asked for again.
    pub(crate) fn refused(&mut self, asked: Asked, now: Instant, random: f64) -> Option<Asked> {
        let is_wish = matches!(asked.act, Act::Open | Act::Close | Act::Rejoin) && !asked.is_outdated;
        let is_hopeless = asked.is_waited_for() && asked.tries >= TRIES_MAX;
        if !is_wish || is_hopeless || asked.is_forgotten() {
            return Some(asked);
        }
        let due = now + AGAIN.delay(asked.tries.saturating_sub(1), random);
        self.later.push(Later { due, asked });
        None
    }

    /// When the next one is to be asked for.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.later.iter().map(|later| later.due).min()
    }

    /// Whether a room waits to be joined again.
    pub(crate) fn has_room_to_rejoin(&self) -> bool {
        self.later.iter().any(|later| later.asked.act == Act::Rejoin)
    }

    /// One whose time has come.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Asked> {
        let at = self.later.iter().position(|later| later.due <= now)?;
        Some(self.later.swap_remove(at).asked)
    }

    /// The wish for a group that something later takes the place of.
    pub(crate) fn take(&mut self, group: u64) -> Option<Asked> {
        let at = self.later.iter().position(|later| later.asked.group == group)?;
        Some(self.later.swap_remove(at).asked)
    }

    /// The connection has ended.
    pub(crate) fn end(self) -> impl Iterator<Item = Asked> {
        self.later.into_iter().map(|later| later.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_wish_of_the_application_is_asked_for_a_few_times_and_one_of_the_client_without_end() {
        let mut attention = Attention::default();
        let now = Instant::now();
        let (answer, mut waits) = oneshot::channel();
        let mut asked = Asked::new(7, Act::Open, 0, Some(answer));
        for tries in 1..TRIES_MAX {
            asked.tries = tries;
            assert!(attention.refused(asked, now, 1.0).is_none());
            let due = attention.due().expect("one waits");
            assert!(due > now && due <= now + AGAIN.max && attention.take_due(due - SECOND / 1_000).is_none());
            asked = attention.take_due(due).expect("its time has come");
        }
        asked.tries = TRIES_MAX;
        assert!(attention.refused(asked, now, 0.5).is_some_and(|asked| asked.group == 7) && attention.len() == 0);
        assert!(waits.try_recv().is_err(), "who gets it back answers it");
        for tries in [1, TRIES_MAX, 1_000] {
            assert!(attention.refused(Asked::new(8, Act::Open, tries, None), now, 0.0).is_none());
            assert!(attention.due().is_some_and(|due| due <= now + AGAIN.max));
            assert!(attention.take(9).is_none() && attention.take(8).is_some());
        }
        // So it is with a room that the connection before was in: its home may take seconds to be there again.
        assert!(attention.refused(Asked::new(9, Act::Rejoin, 1_000, None), now, 0.0).is_none());
        assert!(attention.has_room_to_rejoin() && attention.take(9).is_some() && !attention.has_room_to_rejoin());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_any_more_is_not_asked_for_again() {
        let (mut attention, now) = (Attention::default(), Instant::now());
        let (answer, waits) = oneshot::channel();
        drop(waits);
        assert!(attention.refused(Asked::new(7, Act::Open, 1, Some(answer)), now, 0.5).is_some(), "nobody waits");
        assert!(attention.refused(Asked::new(7, Act::Join, 1, None), now, 0.5).is_some(), "no attention");
        let mut outdated = Asked::new(7, Act::Open, 1, None);
        outdated.is_outdated = true;
        assert!(attention.refused(outdated, now, 0.5).is_some(), "another wish was told since");
        assert!(attention.due().is_none());
    }
}
