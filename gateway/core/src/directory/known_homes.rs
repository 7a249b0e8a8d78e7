//! Homes of the users whom a shard was asked for last. Who talks to somebody does so more than once, and a look at the
//! ring is a tenth of what a message costs.

use super::routing::{Home, Routing};
use crate::ids::NodeKey;
use std::cell::Cell;

const PLACES_BITS: u32 = 10;
/// Users that are known at a time: 24 KiB.
const PLACES: usize = 1 << PLACES_BITS;

/// Each user has one place that it can be in, and whoever came last is there.
#[derive(Debug)]
pub(crate) struct KnownHomes {
    places: Box<[Cell<(u64, Home)>]>,
    /// Of which view they are, and as which node sees it.
    view: Cell<(u64, NodeKey)>,
}

impl KnownHomes {
    pub(crate) fn new() -> Self {
        let places = (0..PLACES).map(|_| Cell::new((0, Home::Nowhere))).collect();
        KnownHomes { places, view: Cell::new((0, NodeKey::OWN)) }
    }

    /// The home of a user, as the view has it.
    #[inline]
    pub(crate) fn home(&self, routing: &Routing, user: u64) -> Home {
        let view = (routing.digest(), routing.own());
        if self.view.get() != view {
            self.forget(view);
        }
        let place = &self.places[(user.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - PLACES_BITS)) as usize];
        let (known, home) = place.get();
        // Nobody is 0.
        if known == user && user != 0 {
            return home;
        }
        let home = routing.home(user);
        place.set((user, home));
        home
    }

    #[cold]
    fn forget(&self, view: (u64, NodeKey)) {
        self.places.iter().for_each(|place| place.set((0, Home::Nowhere)));
        self.view.set(view);
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::routing;
    use super::*;
    use trunkline_router_core::NodeState::Active;

    #[test]
    fn what_is_known_is_what_the_present_view_says() {
        let nodes = [("a", 1, Active), ("b", 1, Active), ("c", 1, Active)];
        let views = [routing(("a", 1), &nodes), routing(("a", 1), &nodes[..2]), routing(("b", 1), &nodes)];
        let known = KnownHomes::new();
        // More users than places, some of them soon again.
        for user in (0..3_000).flat_map(|user| [user, user / 2, user, u64::MAX - user]) {
            assert_eq!(known.home(&views[0], user), views[0].home(user), "user {user}");
        }
        for view in [0, 1, 0, 2, 1, 2] {
            for user in 0..100 {
                assert_eq!(known.home(&views[view], user), views[view].home(user), "user {user} in view {view}");
            }
        }
    }
}
