//! Limits by the address of clients: how many connections one may have, how many it may open in a second, and how many
//! handshakes of TLS it may begin in one. Off unless asked for.
//!
//! An IPv4 address counts by itself, an IPv6 address with its /64, which is what one customer of a provider has at
//! least. The kernel spreads the connections of an address over all shards, so their count is shared: one table for the
//! node, in stripes with a lock each, touched when a connection begins, when it ends, and where handshakes are limited
//! when one begins. What a shard hands over was counted before, so nothing is counted again where it arrives.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// Parts of the table with a lock each: so many that shards seldom meet.
const STRIPES: usize = 64;
/// A full stripe is looked through no more often than that, since a look takes as long as it has entries.
const SWEEP_PAUSE_MS: u64 = 100;
/// Thousandths of a connection, or of a handshake.
const MILLI: u32 = 1_000;
/// Bytes that an entry takes, free room of the table included.
pub const ENTRY_BYTES: u64 = 2 * (size_of::<Prefix>() + size_of::<Usage>() + 1) as u64;

/// What addresses are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prefix {
    V4(u32),
    V6(u64),
}

impl Prefix {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Prefix::V4(address.to_bits()),
            IpAddr::V6(address) => Prefix::V6((address.to_bits() >> 64) as u64),
        }
    }
}

/// What an address has used up.
#[derive(Clone, Copy, Debug)]
struct Usage {
    open: u32,
    /// Token buckets: thousandths of a connection that it may open, and of a handshake that it may begin, as of a time.
    connections: u32,
    handshakes: u32,
    at_ms: u64,
}

/// Why an address may not have another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// As many as it may have are open.
    Open,
    /// It has opened as many as it may in this second.
    PerSec,
    /// There is no room to count those of another address.
    Addresses,
}

/// The limits of each address; 0 is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerAddress {
    /// Open connections.
    pub open_max: u32,
    /// Connections in a second; the first may come at once.
    pub per_sec: u32,
    /// Handshakes of TLS begun in a second, likewise.
    pub handshakes_per_sec: u32,
    /// Addresses that are counted at a time.
    pub addresses_max: u32,
}

/// A part of the table.
#[derive(Debug, Default)]
struct Stripe {
    usages: HashMap<Prefix, Usage>,
    /// When it was last swept.
    swept_ms: u64,
}

/// What is known of the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where it is; `None` behind a Unix socket whose proxy did not say.
    pub(crate) address: Option<SocketAddr>,
    /// It is entered in the book of addresses.
    pub(crate) counted: bool,
}

impl Known {
    /// The address alone.
    pub(crate) fn client(&self) -> Option<std::net::IpAddr> {
        self.address.map(|address| address.ip().to_canonical())
    }
}

/// The connections of each address, of the whole node.
#[derive(Debug)]
pub struct AddressBook {
    limits: PerAddress,
    hasher: RandomState,
    stripes: Vec<Mutex<Stripe>>,
}

impl AddressBook {
    /// A book with nobody in it; `None` where nothing is limited.
    pub fn new(limits: PerAddress) -> Option<Self> {
        let PerAddress { open_max, per_sec, handshakes_per_sec, .. } = limits;
        (open_max > 0 || per_sec > 0 || handshakes_per_sec > 0).then(|| AddressBook {
            limits,
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
        })
    }

    /// Enters another connection of an address, at a time in milliseconds that never goes back. [`AddressBook::leave`]
    /// has to follow when that ends.
    ///
    /// # Errors
    /// When the address may not have it; then nothing has changed.
    pub(crate) fn enter(&self, address: IpAddr, now_ms: u64) -> Result<(), TooMany> {
        let prefix = Prefix::of(address);
        let mut stripe = self.stripe(prefix).lock().unwrap_or_else(PoisonError::into_inner);
        let PerAddress { open_max, per_sec, handshakes_per_sec, .. } = self.limits;
        let fresh = Usage { open: 0, connections: full(per_sec), handshakes: full(handshakes_per_sec), at_ms: now_ms };
        let Stripe { usages, swept_ms } = &mut *stripe;
        if !usages.contains_key(&prefix) && usages.len() >= self.stripe_max() {
            if now_ms.saturating_sub(*swept_ms) >= SWEEP_PAUSE_MS {
                *swept_ms = now_ms;
                usages.retain(|_, usage| {
                    self.earn(usage, now_ms);
                    (usage.open, usage.connections, usage.handshakes) != (0, fresh.connections, fresh.handshakes)
                });
            }
            if usages.len() >= self.stripe_max() {
                return Err(TooMany::Addresses);
            }
        }
        let usage = usages.entry(prefix).or_insert(fresh);
        if open_max > 0 && usage.open >= open_max {
            return Err(TooMany::Open);
        }
        if per_sec > 0 {
            self.earn(usage, now_ms);
            usage.connections = usage.connections.checked_sub(MILLI).ok_or(TooMany::PerSec)?;
        }
        usage.open += 1;
        Ok(())
    }

    /// A handshake of TLS is about to begin on a connection that was entered, at a time as for [`AddressBook::enter`].
    /// Returns whether its address may have another one; if not, nothing has changed.
    pub(crate) fn begin_handshake(&self, address: IpAddr, now_ms: u64) -> bool {
        if self.limits.handshakes_per_sec == 0 {
            return true;
        }
        let prefix = Prefix::of(address);
        let mut stripe = self.stripe(prefix).lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a connection that was entered has an entry.
        let Some(usage) = stripe.usages.get_mut(&prefix) else { return true };
        self.earn(usage, now_ms);
        let left = usage.handshakes.checked_sub(MILLI);
        usage.handshakes = left.unwrap_or(usage.handshakes);
        left.is_some()
    }

    /// A connection that was entered has ended.
    pub(crate) fn leave(&self, address: IpAddr) {
        let prefix = Prefix::of(address);
        let mut stripe = self.stripe(prefix).lock().unwrap_or_else(PoisonError::into_inner);
        let Some(usage) = stripe.usages.get_mut(&prefix) else { return };
        usage.open = usage.open.saturating_sub(1);
        // What it has opened or begun lately counts on; that is forgotten when the room is wanted.
        if usage.open == 0 && self.limits.per_sec == 0 && self.limits.handshakes_per_sec == 0 {
            stripe.usages.remove(&prefix);
        }
    }

    /// Whether nobody has a connection, or had one lately.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.iter().all(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).usages.is_empty())
    }

    /// Open connections.
    #[cfg(test)]
    pub(crate) fn open(&self) -> u64 {
        let of_stripe = |stripe: &Mutex<Stripe>| -> u64 {
            let stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            stripe.usages.values().map(|usage| u64::from(usage.open)).sum()
        };
        self.stripes.iter().map(of_stripe).sum()
    }

    fn stripe(&self, prefix: Prefix) -> &Mutex<Stripe> {
        &self.stripes[self.hasher.hash_one(prefix) as usize % STRIPES]
    }

    fn stripe_max(&self) -> usize {
        (self.limits.addresses_max as usize).div_ceil(STRIPES)
    }

    /// Fills the buckets with what has been earned since.
    fn earn(&self, usage: &mut Usage, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(usage.at_ms);
        usage.at_ms = usage.at_ms.max(now_ms);
        usage.connections = earned(usage.connections, self.limits.per_sec, passed_ms);
        usage.handshakes = earned(usage.handshakes, self.limits.handshakes_per_sec, passed_ms);
    }
}

/// What a bucket holds: a second's worth.
fn full(per_sec: u32) -> u32 {
    per_sec.saturating_mul(MILLI)
}

/// What is in a bucket after so many milliseconds more. One in a second is a thousandth in a millisecond.
fn earned(bucket: u32, per_sec: u32, passed_ms: u64) -> u32 {
    let earned = passed_ms.saturating_mul(per_sec.into());
    earned.saturating_add(bucket.into()).min(full(per_sec).into()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(open_max: u32, per_sec: u32, addresses_max: u32) -> AddressBook {
        with_handshakes(open_max, per_sec, 0, addresses_max)
    }

    fn with_handshakes(open_max: u32, per_sec: u32, handshakes_per_sec: u32, addresses_max: u32) -> AddressBook {
        let limits = PerAddress { open_max, per_sec, handshakes_per_sec, addresses_max };
        AddressBook::new(limits).expect("something is limited")
    }

    fn at(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn nothing_is_counted_where_nothing_is_limited() {
        let limits = PerAddress { open_max: 0, per_sec: 0, handshakes_per_sec: 0, addresses_max: 9 };
        assert!(AddressBook::new(limits).is_none());
    }

    #[test]
    fn an_address_has_as_many_open_connections_as_it_may_and_others_do_not_notice() {
        let book = book(2, 0, 1_000);
        let (one, other) = (at("192.0.2.7"), at("192.0.2.8"));
        assert_eq!([book.enter(one, 0), book.enter(one, 0), book.enter(one, 0)], [Ok(()), Ok(()), Err(TooMany::Open)]);
        assert_eq!(book.enter(other, 0), Ok(()));
        // In the form of an IPv6 address it is the same one.
        assert_eq!(book.enter(at("::ffff:192.0.2.7"), 0), Err(TooMany::Open));
        book.leave(one);
        assert_eq!([book.enter(one, 0), book.enter(one, 0)], [Ok(()), Err(TooMany::Open)]);
        for _ in 0..2 {
            book.leave(one);
        }
        book.leave(other);
        assert!(book.is_empty(), "nobody is remembered");
    }

    #[test]
    fn an_ipv6_address_counts_with_its_64() {
        let book = book(1, 0, 1_000);
        assert_eq!(book.enter(at("2001:db8:0:1::1"), 0), Ok(()));
        assert_eq!(book.enter(at("2001:db8:0:1:ffff::2"), 0), Err(TooMany::Open));
        assert_eq!(book.enter(at("2001:db8:0:2::1"), 0), Ok(()));
    }

    #[test]
    fn an_address_opens_as_many_in_a_second_as_it_may() {
        let book = book(0, 4, 1_000);
        let one = at("192.0.2.7");
        let opened = |now_ms| (0..100).filter(|_| book.enter(one, now_ms).is_ok()).count();
        assert_eq!((opened(0), opened(0), opened(249), opened(250), opened(1_250)), (4, 0, 0, 1, 4));
        assert_eq!(opened(1_000_000), 4, "no more than a second's worth is saved up");
        // A clock that lags behind another shard's gives nothing twice.
        assert_eq!((opened(999_000), opened(1_000_000)), (0, 0));
        assert_eq!(book.enter(one, 1_000_000), Err(TooMany::PerSec));
    }

    #[test]
    fn an_address_begins_as_many_handshakes_in_a_second_as_it_may_over_all_its_connections() {
        let book = with_handshakes(0, 0, 4, 1_000);
        let (one, same, other) = (at("2001:db8:0:1::1"), at("2001:db8:0:1::2"), at("192.0.2.7"));
        // Connections themselves are not limited by it.
        assert!([one, same, other].into_iter().all(|address| book.enter(address, 0).is_ok()));
        let begun = |address, now_ms| (0..100).filter(|_| book.begin_handshake(address, now_ms)).count();
        assert_eq!((begun(one, 0), begun(same, 0), begun(one, 249), begun(same, 250)), (4, 0, 0, 1));
        assert_eq!(begun(other, 250), 4, "another one has its own");
        // To come again with a new connection gives nothing anew, and time does.
        book.leave(one);
        book.leave(same);
        assert_eq!(book.enter(one, 250), Ok(()));
        assert_eq!((begun(one, 250), begun(one, 1_250), begun(one, 900_000)), (0, 4, 4));
    }

    #[test]
    fn the_buckets_of_connections_and_handshakes_are_filled_each_by_its_own_rate() {
        let book = with_handshakes(0, 2, 10, 1_000);
        let one = at("192.0.2.7");
        let opened = |now_ms| (0..100).filter(|_| book.enter(one, now_ms).is_ok()).count();
        let begun = |now_ms| (0..100).filter(|_| book.begin_handshake(one, now_ms)).count();
        assert_eq!((opened(0), begun(0)), (2, 10));
        // Looks at one of them in between take nothing from what the other earns.
        let begun_later: usize = (1..=10).map(|tenth| begun(tenth * 100)).sum();
        assert_eq!((begun_later, opened(1_000)), (10, 2));
        assert_eq!((opened(1_500), begun(1_500)), (1, 5));
    }

    #[test]
    fn who_began_handshakes_lately_is_remembered_until_the_room_is_wanted() {
        let book = with_handshakes(0, 0, 1, STRIPES as u32);
        let one = at("192.0.2.7");
        assert!(book.enter(one, 0).is_ok() && book.begin_handshake(one, 0) && !book.begin_handshake(one, 0));
        book.leave(one);
        assert!(!book.is_empty());
        let others = |now_ms| (0..10_000u32).map(move |n| (IpAddr::from((n + 1).to_be_bytes()), now_ms));
        others(0).for_each(|(address, now_ms)| _ = book.enter(address, now_ms).map(|()| book.leave(address)));
        assert!(book.enter(one, 0).is_ok() && !book.begin_handshake(one, 0), "it is still full of others, and of it");
        book.leave(one);
        others(2_000).for_each(|(address, now_ms)| _ = book.enter(address, now_ms).map(|()| book.leave(address)));
        assert!(book.enter(one, 2_200).is_ok() && book.begin_handshake(one, 2_200));
    }

    #[test]
    fn addresses_that_have_nothing_and_opened_nothing_lately_make_room_for_others() {
        let book = book(0, 1, 10 * STRIPES as u32);
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let enter =
            |range: std::ops::Range<u32>, now_ms| range.map(|n| book.enter(address(n), now_ms)).collect::<Vec<_>>();
        let entered = enter(0..10_000, 0);
        let counted: Vec<u32> = (0..10_000).filter(|n| entered[*n as usize].is_ok()).collect();
        assert!(counted.len() <= 10 * STRIPES && counted.len() > 9 * STRIPES, "{}", counted.len());
        assert!(entered.iter().all(|told| matches!(told, Ok(()) | Err(TooMany::Addresses))));
        // Open ones stay, however long ago they came.
        assert!(enter(20_000..21_000, 5_000).iter().all(|told| *told == Err(TooMany::Addresses)));
        counted.iter().for_each(|number| book.leave(address(*number)));
        assert!(enter(30_000..30_100, 0).contains(&Err(TooMany::Addresses)), "what they opened in this second counts");
        assert!(enter(40_000..40_100, 6_000).iter().all(Result::is_ok));
    }
}
