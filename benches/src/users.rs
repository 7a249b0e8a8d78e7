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

    /// Pairs at the nodes of a ring, as many at each. `connections` is even; the ring has 2 nodes or more for what is
    /// not local, and 3 for
    /// [`Placement::GuestsApart`].
    pub(crate) fn at_nodes(connections: u32, ring: &Ring, placement: Placement) -> Seats {
        let count = ring.nodes().len();
        let mut homes = Homes::new(count, |user| ring.owner_index(user));
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

    /// These users, at each of so many nodes in turn, wherever their homes are.
    pub(crate) fn in_turn(users: Vec<u64>, nodes: u32) -> Seats {
        let nodes = (0..users.len()).map(|number| (number % nodes as usize) as u8).collect();
        Seats { users, nodes }
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
struct Homes<F> {
    home_of: F,
    next: u64,
    waiting: Vec<VecDeque<u64>>,
}

impl<F: Fn(u64) -> usize> Homes<F> {
    /// All users, whose homes are `0..count`.
    fn new(count: usize, home_of: F) -> Homes<F> {
        Homes { home_of, next: 1, waiting: vec![VecDeque::new(); count] }
    }

    /// The next user with this home.
    fn draw(&mut self, home: usize) -> u64 {
        loop {
            if let Some(user) = self.waiting[home].pop_front() {
                return user;
            }
            self.waiting[(self.home_of)(self.next)].push_back(self.next);
            self.next += 1;
        }
    }
}

/// The clients of one thread of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The user of each of its connections; the first of them exchange messages.
    pub(crate) users: Vec<u64>,
    /// How many do.
    pub(crate) control: u32,
    /// Users of the whole control group, whose flows go between them.
    pub(crate) group: Vec<u64>,
    /// Senders and recipients of all flows, in the same order in each share: below the number of `users` one of them,
    /// from there on one of `group`, who is with another share.
    pub(crate) flows: Vec<(u32, u32)>,
}

impl Share {
    /// All clients on one thread; neighbours among the first `control` exchange messages.
    pub(crate) fn of_one(users: Vec<u64>, control: u32) -> Share {
        let flows = (0..control).map(|from| (from, from ^ 1)).collect();
        Share { users, control, group: Vec::new(), flows }
    }

    /// Sender and recipient of a flow.
    #[cfg(test)]
    fn ends(&self, flow: usize) -> (u64, u64) {
        let user = |index: u32| match self.users.get(index as usize) {
            Some(&user) => user,
            None => self.group[index as usize - self.users.len()],
        };
        let (from, to) = self.flows[flow];
        (user(from), user(to))
    }

    /// So many clients on a thread for each of `cores` cores: each on the core of its user's shard, and as many on
    /// each. Of the pairs that exchange messages as many are on one core as by chance. `control` is even and at most
    /// `connections`; `shards` is a multiple of `cores`.
    pub(crate) fn of_cores(connections: u32, control: u32, shards: u32, cores: usize) -> Vec<Share> {
        let mut homes = Homes::new(cores, |user| home_shard(user, shards) as usize % cores);
        let mut users: Vec<Vec<u64>> = vec![Vec::new(); cores];
        // Core and connection of each of the control group.
        let mut seats = Vec::new();
        let mut group = Vec::new();
        for pair in 0..control as usize / 2 {
            for core in [pair % cores, pair / cores % cores] {
                let user = homes.draw(core);
                seats.push((core, users[core].len() as u32));
                users[core].push(user);
                group.push(user);
            }
        }
        let with_control: Vec<usize> = users.iter().map(Vec::len).collect();
        for _ in control..connections {
            let emptiest = (0..cores).min_by_key(|&core| users[core].len()).unwrap_or(0);
            users[emptiest].push(homes.draw(emptiest));
        }
        let share = |(core, users): (usize, Vec<u64>)| {
            let own = users.len() as u32;
            let index = |member: u32| match seats[member as usize] {
                (at, connection) if at == core => connection,
                _ => own + member,
            };
            let flows = (0..control).map(|from| (index(from), index(from ^ 1))).collect();
            Share { users, control: with_control[core] as u32, group: group.clone(), flows }
        };
        users.into_iter().enumerate().map(share).collect()
    }
}

/// Users for `connections` connections, of which numbers 2k and 2k + 1 are a pair. `connections` is even, and `shards`
/// at least 2 for [`Placement::Across`].
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
    fn clients_are_on_the_core_of_their_users_shard() {
        for (connections, control, shards, cores) in
            [(1_000, 100, 54, 2), (999, 16, 6, 3), (64, 64, 4, 4), (2, 2, 2, 2)]
        {
            let shares = Share::of_cores(connections, control, shards, cores);
            let users: Vec<u64> = shares.iter().flat_map(|share| share.users.iter().copied()).collect();
            assert_eq!(users.len(), connections as usize);
            assert_eq!(users.iter().collect::<std::collections::BTreeSet<_>>().len(), users.len(), "each once");
            for (core, share) in shares.iter().enumerate() {
                assert!(share.users.iter().all(|&user| home_shard(user, shards) as usize % cores == core));
                assert!(control == connections || share.users.len().abs_diff(connections as usize / cores) <= 1);
                assert_eq!(share.flows.len(), control as usize);
            }
            assert_eq!(shares.iter().map(|share| share.control).sum::<u32>(), control);
            let mut far = 0;
            for flow in 0..control as usize {
                let ends: Vec<(u64, u64)> = shares.iter().map(|share| share.ends(flow)).collect();
                assert!(ends.iter().all(|end| *end == ends[0]), "all shares mean the same by a flow");
                let is_own = |index: u32, share: &Share| index < share.users.len() as u32;
                let senders = shares.iter().filter(|share| is_own(share.flows[flow].0, share)).count();
                let recipients = shares.iter().filter(|share| is_own(share.flows[flow].1, share)).count();
                assert_eq!((senders, recipients), (1, 1));
                far += usize::from(
                    shares.iter().any(|share| is_own(share.flows[flow].0, share) != is_own(share.flows[flow].1, share)),
                );
            }
            if control >= 64 {
                let by_chance = control as usize * (cores - 1) / cores;
                assert!(far.abs_diff(by_chance) <= 2 * cores, "{far} of {control} flows between {cores} cores");
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
