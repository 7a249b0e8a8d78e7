//! From a user to its home node: a consistent-hash ring (ketama).
//!
//! The placement is the one of nginx's `hash KEY consistent`, which follows Cache::Memcached::Fast:
//!
//! - a server name is split at the last `:` if only digits follow it, into host and port; a leading `unix:` is dropped
//!   and such a name has no port;
//! - a node has 160 points for each unit of weight; each is the CRC-32 (IEEE) of host, a NUL, port and the 4
//!   little-endian bytes of the node's previous point, where the first follows 0;
//! - a key belongs to the first point that is not below the key's CRC-32, and after the last point to the first.
//!
//! One case is decided here and left open there: a point claimed by several nodes goes to the one whose name sorts
//! first. So the ring does not depend on the order in which the nodes are given.

use std::error::Error;
use std::fmt;

/// Points on the ring for each unit of weight, as in nginx.
pub const POINTS_PER_WEIGHT: u32 = 160;

/// Nodes a ring may have.
pub const NODES_MAX: usize = 1_024;

/// The largest weight of one node.
pub const WEIGHT_MAX: u32 = 65_535;

/// The weight of a node that nobody has given another. The more points, the more even the shares: the fullest of a
/// hundred equal nodes has a fifth more than its share with a weight of 1, and some 6 % with 10.
pub const WEIGHT_DEFAULT: u32 = 10;

/// The largest sum of weights of a ring: 10.5 million points, 63 MB. Weights count against each other only, so a
/// larger sum can always be scaled down.
pub const WEIGHT_TOTAL_MAX: u32 = 65_536;

/// The longest node name, in bytes: a DNS name of 253 bytes, a colon and a port.
pub const NAME_BYTES_MAX: usize = 259;

/// The most parts of the ring that have an entry in the index: 256 KiB. A larger ring has more points in each part.
const PART_BITS_MAX: u32 = 16;

/// The places on the ring.
const KEY_HASHES: u64 = 1 << 32;

/// The decimal digits of `u64::MAX`.
const USER_DIGITS_MAX: usize = 20;

/// A node as the ring sees it: a valid name and a valid weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    name: Box<str>,
    weight: u32,
}

impl Node {
    /// A node called `name` (`host:port`, `unix:path` or a plain name) with `weight` 1 … [`WEIGHT_MAX`].
    ///
    /// # Errors
    /// [`RingError::BadName`] for a name that is empty, longer than [`NAME_BYTES_MAX`] or has a control character;
    /// [`RingError::BadWeight`] for a weight out of range.
    pub fn new(name: &str, weight: u32) -> Result<Self, RingError> {
        // A NUL inside a name would blur the border between host and port.
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(RingError::BadName { name: name.into() });
        }
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return Err(RingError::BadWeight { name: name.into(), weight });
        }
        Ok(Node { name: name.into(), weight })
    }

    /// The name as given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The weight, 1 … [`WEIGHT_MAX`].
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// The part of every point's hash that is common to all points of this node.
    fn base_hash(&self) -> crc32fast::Hasher {
        let (host, port) = host_and_port(&self.name);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(host.as_bytes());
        hasher.update(&[0]);
        hasher.update(port.as_bytes());
        hasher
    }
}

/// Why a ring cannot be built. All are mistakes in the list of nodes, and the text names the one to correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingError {
    /// The list is empty: a ring without nodes could not answer.
    NoNodes,
    /// More than [`NODES_MAX`] nodes.
    TooManyNodes {
        /// How many were given.
        count: usize,
    },
    /// A name that is empty, too long or has a control character.
    BadName {
        /// The name as given.
        name: Box<str>,
    },
    /// A weight that is not within 1 … [`WEIGHT_MAX`].
    BadWeight {
        /// The node's name.
        name: Box<str>,
        /// The weight as given.
        weight: u32,
    },
    /// The weights add up to more than [`WEIGHT_TOTAL_MAX`].
    TotalWeight {
        /// Their sum.
        total: u32,
    },
    /// Two nodes have the same points, so that one of them would own nothing: their names are equal, mean the same host
    /// and port, or happen to share a CRC-32.
    SamePlacement {
        /// One of the names.
        first: Box<str>,
        /// The other one.
        second: Box<str>,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::NoNodes => write!(f, "a ring needs at least one node"),
            RingError::TooManyNodes { count } => {
                write!(f, "a ring has at most {NODES_MAX} nodes, {count} were given")
            }
            RingError::BadName { name } => write!(
                f,
                "node name {name:?} is not usable: 1 to {NAME_BYTES_MAX} bytes without control characters are"
            ),
            RingError::BadWeight { name, weight } => {
                write!(f, "node {name:?} has weight {weight}, which is not within 1 to {WEIGHT_MAX}")
            }
            RingError::TotalWeight { total } => write!(
                f,
                "the weights of all nodes add up to {total}, more than {WEIGHT_TOTAL_MAX}; scale them down together"
            ),
            RingError::SamePlacement { first, second } => write!(
                f,
                "nodes {first:?} and {second:?} have the same place on the ring; give one of them another name"
            ),
        }
    }
}

impl Error for RingError {}

/// An immutable ring. Membership that changes makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// In the order of their names.
    nodes: Box<[Node]>,
    /// The points, ascending and distinct. Apart from their owners so that the search walks 4 bytes a point.
    points: Box<[u32]>,
    /// Index into `nodes` of the owner of each point.
    owners: Box<[u16]>,
    /// Where a search begins and ends: the ring is cut into equal parts, about as many as there are points, and this
    /// has the index of the first point of each part and of the end. A binary search over all points would be a chain
    /// of ten loads, each waiting for the one before.
    parts: Box<[u32]>,
    /// What of a place is below the number of its part, in bits.
    part_shift: u32,
}

// Owners are kept as u16.
const _: () = assert!(NODES_MAX <= u16::MAX as usize);

impl Ring {
    /// A ring of `nodes`, in any order. Takes time and memory in proportion to the sum of the weights.
    ///
    /// # Errors
    /// [`RingError::NoNodes`], [`RingError::TooManyNodes`], [`RingError::TotalWeight`], [`RingError::SamePlacement`].
    pub fn new(mut nodes: Vec<Node>) -> Result<Self, RingError> {
        if nodes.is_empty() {
            return Err(RingError::NoNodes);
        }
        if nodes.len() > NODES_MAX {
            return Err(RingError::TooManyNodes { count: nodes.len() });
        }
        // At most NODES_MAX × WEIGHT_MAX, which a u32 holds.
        let total = nodes.iter().map(Node::weight).sum::<u32>();
        if total > WEIGHT_TOTAL_MAX {
            return Err(RingError::TotalWeight { total });
        }
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        refuse_same_placement(&nodes)?;

        let mut placed: Vec<(u32, u16)> = Vec::with_capacity((total * POINTS_PER_WEIGHT) as usize);
        for (node, owner) in nodes.iter().zip(0_u16..) {
            let base = node.base_hash();
            let mut point = 0_u32;
            for _ in 0..node.weight * POINTS_PER_WEIGHT {
                let mut hasher = base.clone();
                hasher.update(&point.to_le_bytes());
                point = hasher.finalize();
                placed.push((point, owner));
            }
        }
        // Ties in the point sort by owner, that is by name, and the first of them stays.
        placed.sort_unstable();
        placed.dedup_by_key(|(point, _)| *point);
        let points: Box<[u32]> = placed.iter().map(|(point, _)| *point).collect();
        let (parts, part_shift) = parts(&points);
        Ok(Ring {
            nodes: nodes.into(),
            owners: placed.iter().map(|(_, owner)| *owner).collect(),
            points,
            parts,
            part_shift,
        })
    }

    /// The home node of `user`. The key is the user id in decimal digits, so nginx with `hash $user consistent` agrees.
    #[inline]
    #[must_use]
    pub fn owner(&self, user: u64) -> &Node {
        &self.nodes[self.owner_index(user)]
    }

    /// The home node of `user` as an index into [`Ring::nodes`].
    #[inline]
    #[must_use]
    pub fn owner_index(&self, user: u64) -> usize {
        // A node that works alone should not pay for a hash to learn that it is the home of everybody.
        if self.nodes.len() == 1 {
            return 0;
        }
        self.owner_of_hash(user_key_hash(user))
    }

    /// The node that owns an arbitrary key, as an index into [`Ring::nodes`].
    #[inline]
    #[must_use]
    pub fn key_owner_index(&self, key: &[u8]) -> usize {
        self.owner_of_hash(key_hash(key))
    }

    #[inline]
    fn owner_of_hash(&self, hash: u32) -> usize {
        let at = self.first_point(hash);
        let at = if at == self.points.len() { 0 } else { at };
        usize::from(self.owners[at])
    }

    /// The owners of all points, once around the ring from the owner of a key's hash on, as indices into
    /// [`Ring::nodes`].
    pub(crate) fn owners_from(&self, hash: u32) -> impl Iterator<Item = usize> {
        let (behind, ahead) = self.owners.split_at(self.first_point(hash));
        ahead.iter().chain(behind).map(|&owner| usize::from(owner))
    }

    /// The index of the first point that is not below `hash`; the number of points if there is none.
    #[inline]
    fn first_point(&self, hash: u32) -> usize {
        let part = (hash >> self.part_shift) as usize;
        let (from, end) = (self.parts[part] as usize, self.parts[part + 1] as usize);
        from + self.points[from..end].partition_point(|&point| point < hash)
    }

    /// All nodes, in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The index in [`Ring::nodes`] of the node called `name`.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.nodes.binary_search_by(|node| node.name().cmp(name)).ok()
    }

    /// Every point with its owner, ascending. A point is the end, included, of the owner's stretch of the key hashes.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (u32, &Node)> {
        self.points.iter().zip(&self.owners).map(|(&point, &owner)| (point, &self.nodes[usize::from(owner)]))
    }

    /// How `user` came to its home node: the place of its key and the point that owns it.
    #[must_use]
    pub fn placement(&self, user: u64) -> Placement<'_> {
        let hash = user_key_hash(user);
        let first = self.first_point(hash);
        let wraps = first == self.points.len();
        let at = if wraps { 0 } else { first };
        Placement { hash, point: self.points[at], wraps, node: &self.nodes[usize::from(self.owners[at])] }
    }

    /// The share, 0.0 … 1.0, of all key hashes that each node owns, in the order of [`Ring::nodes`]. O(points).
    #[must_use]
    pub fn shares(&self) -> Vec<f64> {
        let mut owned = vec![0_u64; self.nodes.len()];
        // The first stretch begins behind the last point and goes on over 0.
        let mut before = self.points.last().copied().unwrap_or(0);
        for (&point, &owner) in self.points.iter().zip(&self.owners) {
            let stretch = u64::from(point.wrapping_sub(before));
            owned[usize::from(owner)] += if stretch == 0 { KEY_HASHES } else { stretch };
            before = point;
        }
        owned.into_iter().map(|owned| owned as f64 / KEY_HASHES as f64).collect()
    }

    /// The share, 0.0 … 1.0, of users that would move if `next` took the place of this ring, estimated over the users
    /// 1 … `sample`. A sample of 0 says 0.0.
    #[must_use]
    pub fn preview(&self, next: &Ring, sample: u32) -> f64 {
        let after: Vec<Option<usize>> = self.nodes.iter().map(|node| next.index_of(node.name())).collect();
        let moved = (1..=u64::from(sample))
            .filter(|&user| after[self.owner_index(user)] != Some(next.owner_index(user)))
            .count();
        moved as f64 / f64::from(sample.max(1))
    }
}

/// Where a user's key meets the ring; see [`Ring::placement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement<'r> {
    /// The CRC-32 of the user id in decimal digits.
    pub hash: u32,
    /// The point that owns it: the first that is not below `hash`, or the first of all.
    pub point: u32,
    /// Whether all points are below `hash`, so that the first of all owns it.
    pub wraps: bool,
    /// The node whose point it is: [`Ring::owner`].
    pub node: &'r Node,
}

/// Two nodes with one base hash have all their points in common.
fn refuse_same_placement(nodes: &[Node]) -> Result<(), RingError> {
    let mut by_base: Vec<(u32, &Node)> = nodes.iter().map(|node| (node.base_hash().finalize(), node)).collect();
    by_base.sort_by_key(|(base, _)| *base);
    match by_base.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(RingError::SamePlacement { first: pair[0].1.name.clone(), second: pair[1].1.name.clone() }),
        None => Ok(()),
    }
}

/// The index of a ring's points, which ascend, and how far a place is shifted to the number of its part.
fn parts(points: &[u32]) -> (Box<[u32]>, u32) {
    let bits = points.len().next_power_of_two().ilog2().clamp(1, PART_BITS_MAX);
    let shift = u32::BITS - bits;
    let mut first = 0;
    let starts = (0..=1_u64 << bits).map(|part| {
        while points.get(first).is_some_and(|&point| u64::from(point >> shift) < part) {
            first += 1;
        }
        first as u32
    });
    (starts.collect(), shift)
}

/// Splits a server name as nginx does before it hashes it.
fn host_and_port(name: &str) -> (&str, &str) {
    if let Some((scheme, path)) = name.split_at_checked("unix:".len())
        && scheme.eq_ignore_ascii_case("unix:")
    {
        return (path, "");
    }
    match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (name, ""),
    }
}

/// The place of an arbitrary key on the ring.
#[inline]
pub(crate) fn key_hash(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

/// The place of a user on the ring.
#[inline]
pub(crate) fn user_key_hash(user: u64) -> u32 {
    let mut digits = [0; USER_DIGITS_MAX];
    key_hash(decimal(user, &mut digits))
}

/// The decimal digits of `user`, written to the end of `digits`.
#[inline]
fn decimal(user: u64, digits: &mut [u8; USER_DIGITS_MAX]) -> &[u8] {
    let mut at = USER_DIGITS_MAX;
    let mut rest = user;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_finds_what_a_search_over_all_points_finds() {
        for weights in [&[1][..], &[1, 1], &[1, 2, 3], &[500, 700]] {
            let nodes = weights.iter().zip(["a", "b", "c"]).map(|(weight, name)| Node::new(name, *weight).unwrap());
            let ring = Ring::new(nodes.collect()).unwrap();
            let around = ring.points.iter().flat_map(|point| [point.wrapping_sub(1), *point, point.wrapping_add(1)]);
            let edges = (0..1 << 12).flat_map(|part: u32| [part << 20, (part << 20).wrapping_sub(1)]);
            for hash in around.chain(edges).chain([0, 1, u32::MAX]) {
                assert_eq!(ring.first_point(hash), ring.points.partition_point(|&point| point < hash), "{hash:#x}");
            }
        }
    }
}
