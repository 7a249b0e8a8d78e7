//! Limits by the address of clients: how many connections one may have, and how many it may open in a second. Off
//! unless asked for.
//!
//! An IPv4 address counts by itself, an IPv6 address with its /64, which is what one customer of a provider has at
//! least. The kernel spreads the connections of an address over all shards, so their count is shared: one table for the
//! node, in stripes with a lock each, touched once when a connection begins and once when it ends.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Parts of the table with a lock each: so many that shards seldom meet.
const STRIPES: usize = 64;
/// A full stripe is looked through no more often than that, since a look takes as long as it has entries.
const SWEEP_PAUSE_MS: u64 = 100;
/// Thousandths of a connection.
const MILLI: u64 = 1_000;
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
    /// Token bucket: thousandths of a connection that it may open, as of a time.
    millis: u32,
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
        let PerAddress { open_max, per_sec, .. } = limits;
        (open_max > 0 || per_sec > 0).then(|| AddressBook {
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
        let full = self.bucket_millis();
        let Stripe { usages, swept_ms } = &mut *stripe;
        if !usages.contains_key(&prefix) && usages.len() >= self.stripe_max() {
            if now_ms.saturating_sub(*swept_ms) >= SWEEP_PAUSE_MS {
                *swept_ms = now_ms;
                usages.retain(|_, usage| usage.open > 0 || self.earned(usage, now_ms) < full);
            }
            if usages.len() >= self.stripe_max() {
                return Err(TooMany::Addresses);
            }
        }
        let usage = usages.entry(prefix).or_insert(Usage { open: 0, millis: full, at_ms: now_ms });
        let PerAddress { open_max, per_sec, .. } = self.limits;
        if open_max > 0 && usage.open >= open_max {
            return Err(TooMany::Open);
        }
        if per_sec > 0 {
            let millis = self.earned(usage, now_ms);
            (usage.millis, usage.at_ms) = (millis, now_ms.max(usage.at_ms));
            usage.millis = millis.checked_sub(MILLI as u32).ok_or(TooMany::PerSec)?;
        }
        usage.open += 1;
        Ok(())
    }

    /// A connection that was entered has ended.
    pub(crate) fn leave(&self, address: IpAddr) {
        let prefix = Prefix::of(address);
        let mut stripe = self.stripe(prefix).lock().unwrap_or_else(PoisonError::into_inner);
        let Some(usage) = stripe.usages.get_mut(&prefix) else { return };
        usage.open = usage.open.saturating_sub(1);
        // What it has opened lately counts on; that is forgotten when the room is wanted.
        if usage.open == 0 && self.limits.per_sec == 0 {
            stripe.usages.remove(&prefix);
        }
    }

    /// Whether nobody has a connection, or had one lately.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.stripes.iter().all(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).usages.is_empty())
    }

    fn stripe(&self, prefix: Prefix) -> &Mutex<Stripe> {
        &self.stripes[self.hasher.hash_one(prefix) as usize % STRIPES]
    }

    fn stripe_max(&self) -> usize {
        (self.limits.addresses_max as usize).div_ceil(STRIPES)
    }

    /// What a bucket holds: a second's worth.
    fn bucket_millis(&self) -> u32 {
        self.limits.per_sec.saturating_mul(MILLI as u32)
    }

    fn earned(&self, usage: &Usage, now_ms: u64) -> u32 {
        let earned = now_ms.saturating_sub(usage.at_ms).saturating_mul(self.limits.per_sec.into());
        earned.saturating_add(usage.millis.into()).min(self.bucket_millis().into()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(open_max: u32, per_sec: u32, addresses_max: u32) -> AddressBook {
        AddressBook::new(PerAddress { open_max, per_sec, addresses_max }).expect("something is limited")
    }

    fn at(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn nothing_is_counted_where_nothing_is_limited() {
        assert!(AddressBook::new(PerAddress { open_max: 0, per_sec: 0, addresses_max: 9 }).is_none());
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
