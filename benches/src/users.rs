//! Which users a bench logs in, and where.

use std::collections::VecDeque;

use serde::Serialize;
use trunkline_router::{Ring, hash::home_shard};

/// Where the two users of a pair live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Placement {
    /// Wherever their ids put them.
    Any,
    /// On the same shard.
    Within,
    /// On different shards.
    Across,
    /// At the same node, which is the home of both: no link is crossed.
    Local,
    /// At different nodes, each at its home: a message crosses one link.
    Remote,
    /// At the same node, both with their home at another: a message crosses a link there and one back.
    GuestsTogether,
    /// At different nodes, both with their home at a third: a message crosses two links.
    GuestsApart,
}

impl Placement {
    /// Links a message crosses between nodes.
    pub(crate) fn links(self) -> u64 {
        match self {
            Placement::Any | Placement::Within | Placement::Across | Placement::Local => 0,
            Placement::Remote => 1,
            Placement::GuestsTogether | Placement::GuestsApart => 2,
        }
    }
}

/// Users, and the node each logs in at.
#[derive(Clone, Debug)]
pub(crate) struct Seats {
    /// The user of each connection.
    pub(crate) users: Vec<u64>,
    /// Its node, as an index into the ring's.
    pub(crate) nodes: Vec<u8>,
}

impl Seats {
    /// Pairs at a single server.
    pub(crate) fn at_one(connections: u32, shards: u32, placement: Placement) -> Seats {
        let users = pairs(connections, shards, placement);
        Seats { nodes: vec![0; users.len()], users }
    }

    /// Pairs at the nodes of a ring, as many at each. `connections` is even; the ring has 2 nodes or more for what is not local, and 3 for
    /// [`Placement::GuestsApart`].
    pub(crate) fn at_nodes(connections: u32, ring: &Ring, placement: Placement) -> Seats {
        let count = ring.nodes().len();
        let mut homes = Homes { ring, next: 1, waiting: vec![VecDeque::new(); count] };
        let mut seats = Seats { users: Vec::new(), nodes: Vec::new() };
        for pair in 0..connections as usize / 2 {
            let first = pair % count;
            let second = (first + 1 + pair / count % (count - 1).max(1)) % count;
            // What is neither of two is the next after the second, or the one after that.
            let third = if (second + 1) % count == first { (second + 2) % count } else { (second + 1) % count };
            let (nodes, home_nodes) = match placement {
                Placement::Remote => ([first, second], [first, second]),
                Placement::GuestsTogether => ([first, first], [second, second]),
                Placement::GuestsApart => ([first, second], [third, third]),
                Placement::Any | Placement::Within | Placement::Across | Placement::Local => {
                    ([first, first], [first, first])
                }
            };
            seats.users.extend(home_nodes.map(|home| homes.draw(home)));
            seats.nodes.extend(nodes.map(|node| node as u8));
        }
        seats
    }

    /// Adds users who are not there yet, each at its home.
    pub(crate) fn add_at_home(&mut self, count: u32, ring: Option<&Ring>) {
        let first = self.users.iter().copied().max().unwrap_or(0) + 1;
        for user in first..first + u64::from(count) {
            self.users.push(user);
            self.nodes.push(ring.map_or(0, |ring| ring.owner_index(user) as u8));
        }
    }
}

/// Users in the order of their numbers, by home.
struct Homes<'r> {
    ring: &'r Ring,
    next: u64,
    waiting: Vec<VecDeque<u64>>,
}

impl Homes<'_> {
    /// The next user with this home.
    fn draw(&mut self, home: usize) -> u64 {
        loop {
            if let Some(user) = self.waiting[home].pop_front() {
                return user;
            }
            self.waiting[self.ring.owner_index(self.next)].push_back(self.next);
            self.next += 1;
        }
    }
}

/// Users for `connections` connections, of which numbers 2k and 2k + 1 are a pair. `connections` is even, and `shards` at
/// least 2 for [`Placement::Across`].
pub(crate) fn pairs(connections: u32, shards: u32, placement: Placement) -> Vec<u64> {
    if placement == Placement::Any {
        return (1..=u64::from(connections)).collect();
    }
    let mut waiting = vec![VecDeque::new(); shards as usize];
    let mut users = Vec::with_capacity(connections as usize);
    for user in 1.. {
        if users.len() == connections as usize {
            break;
        }
        let home = home_shard(user, shards) as usize;
        let partner = match placement {
            Placement::Across => {
                let other = (0..waiting.len()).filter(|&shard| shard != home).max_by_key(|&shard| waiting[shard].len());
                other.and_then(|shard| waiting[shard].pop_front())
            }
            _ => waiting[home].pop_front(),
        };
        match partner {
            Some(partner) => users.extend([partner, user]),
            None => waiting[home].push_back(user),
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_router::Node;

    #[test]
    fn pairs_log_in_where_their_messages_cross_as_many_links_as_they_should() {
        for count in [1_usize, 2, 3, 9] {
            let names = (1..=count).map(|number| Node::new(&format!("node-{number}"), 1).expect("valid"));
            let ring = Ring::new(names.collect()).expect("valid");
            let placements = [Placement::Local, Placement::Remote, Placement::GuestsTogether, Placement::GuestsApart];
            for placement in placements.into_iter().take(count + 1) {
                if count == 1 && placement != Placement::Local {
                    continue;
                }
                let mut seats = Seats::at_nodes(36, &ring, placement);
                for pair in (0..36).step_by(2) {
                    for (from, to) in [(pair, pair + 1), (pair + 1, pair)] {
                        let home = ring.owner_index(seats.users[to]) as u8;
                        let way = [seats.nodes[from], home, seats.nodes[to]];
                        let links = way.windows(2).filter(|step| step[0] != step[1]).count() as u64;
                        assert_eq!(links, placement.links(), "{placement:?} of {count}: {way:?}");
                        assert_eq!(placement == Placement::GuestsApart, links == 2 && way[0] != way[2]);
                    }
                }
                for node in 0..count {
                    assert_eq!(seats.nodes.iter().filter(|at| usize::from(**at) == node).count(), 36 / count);
                }
                seats.add_at_home(10, Some(&ring));
                assert!((36..46).all(|at| ring.owner_index(seats.users[at]) as u8 == seats.nodes[at]));
                let mut distinct = seats.users.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), 46);
            }
        }
    }

    #[test]
    fn pairs_live_where_they_were_asked_to() {
        for shards in [2, 3, 8] {
            for (placement, same) in [(Placement::Within, true), (Placement::Across, false)] {
                let users = pairs(1_000, shards, placement);
                assert_eq!(users.len(), 1_000);
                for pair in users.chunks(2) {
                    assert_eq!(home_shard(pair[0], shards) == home_shard(pair[1], shards), same, "{pair:?}");
                }
                let mut distinct = users.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), users.len());
            }
        }
    }
}
