//! How many pushes there may be in a second: by the key of the caller, and by the user they are for. No clock.

use hashbrown::HashMap;

/// Users that are counted in one second; further ones are not limited.
const USERS_MAX: usize = 65_536;
/// Keys that are counted; a file of keys holds some hundreds.
const KEYS_MAX: usize = 4_096;
/// Bytes that both tables take at most, half empty.
pub(crate) const RATES_BYTES: u64 = 2 * (USERS_MAX as u64 * 17 + KEYS_MAX as u64 * 160);

/// What a key has left: in thousandths of a push, below 0 after more than a second's worth at once.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: i64,
    seen_ms: u64,
    /// Pushes a second.
    rate: i64,
}

impl Bucket {
    /// What is in it when it is full: a second's worth.
    fn full(&self) -> i64 {
        self.rate * 1_000
    }

    /// What is in it at that time.
    fn at(&self, now_ms: u64) -> i64 {
        let passed_ms = i64::try_from(now_ms.saturating_sub(self.seen_ms)).unwrap_or(i64::MAX);
        self.left.saturating_add(passed_ms.saturating_mul(self.rate)).min(self.full())
    }
}

/// The rates of one node.
#[derive(Debug)]
pub(super) struct Rates {
    per_user: u32,
    per_key: u32,
    /// The second at hand, and pushes to each user in it.
    second: u64,
    users: HashMap<u64, u32>,
    keys: HashMap<String, Bucket>,
}

impl Rates {
    /// So many pushes a second to each user, and by each key; 0 is no limit.
    pub(super) fn new(per_user: u32, per_key: u32) -> Self {
        Rates { per_user, per_key, second: 0, users: HashMap::new(), keys: HashMap::new() }
    }

    /// Takes so many pushes of a key, all or none. Whoever has something left may take more than that, and waits the
    /// longer then: on the average nobody has more than the rate, and a large request is not refused for ever.
    /// `own`: the rate of this key, instead of that of all.
    pub(super) fn take_for_key(&mut self, key: &str, own: Option<u32>, pushes: usize, now_ms: u64) -> bool {
        let rate = i64::from(own.unwrap_or(self.per_key));
        if rate == 0 {
            return true;
        }
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(key) {
            // Those with all of it left are as good as unknown.
            self.keys.retain(|_, bucket| bucket.at(now_ms) < bucket.full());
        }
        let bucket = self.keys.entry_ref(key).or_insert(Bucket { left: rate * 1_000, seen_ms: now_ms, rate });
        // Its line in the keys file may say another rate by now.
        bucket.rate = rate;
        (bucket.left, bucket.seen_ms) = (bucket.at(now_ms), now_ms);
        let may = bucket.left > 0;
        if may {
            bucket.left -= i64::try_from(pushes).unwrap_or(i64::MAX).saturating_mul(1_000);
        }
        may
    }

    /// Takes one push to a user. False if the user has had all of this second.
    pub(super) fn take_for_user(&mut self, user: u64, now_ms: u64) -> bool {
        if self.per_user == 0 {
            return true;
        }
        if self.second != now_ms / 1_000 {
            self.second = now_ms / 1_000;
            self.users.clear();
        }
        if self.users.len() >= USERS_MAX && !self.users.contains_key(&user) {
            return true;
        }
        let pushes = self.users.entry(user).or_insert(0);
        let may = *pushes < self.per_user;
        *pushes += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_gets_so_many_in_each_second() {
        let mut rates = Rates::new(3, 0);
        let taken = |rates: &mut Rates, user, now_ms| (0..10).filter(|_| rates.take_for_user(user, now_ms)).count();
        assert_eq!((taken(&mut rates, 1, 5_000), taken(&mut rates, 2, 5_000)), (3, 3));
        assert_eq!((taken(&mut rates, 1, 5_999), taken(&mut rates, 1, 6_000)), (0, 3));
        assert!((0..10).all(|_| Rates::new(0, 0).take_for_user(1, 0)), "0 is no limit");
    }

    #[test]
    fn a_key_has_its_rate_on_the_average_however_large_its_requests_are() {
        let mut rates = Rates::new(0, 100);
        assert!(rates.take_for_key("a", None, 1_000, 1_000), "more than a second's worth goes at once");
        assert!(!rates.take_for_key("a", None, 1, 1_000) && rates.take_for_key("b", None, 1, 1_000));
        assert!(!rates.take_for_key("a", None, 1, 10_000), "900 too many take nine seconds");
        assert!(rates.take_for_key("a", None, 1, 10_010));
        let small = (0..2_000).filter(|step| rates.take_for_key("c", None, 1, 20_000 + step)).count();
        assert!((298..=302).contains(&small), "{small} in two seconds, the first one's worth besides");
        assert!((0..1_000).all(|_| Rates::new(0, 0).take_for_key("a", None, 1_000, 0)), "0 is no limit");
    }

    #[test]
    fn a_key_may_have_a_rate_of_its_own() {
        let mut rates = Rates::new(0, 100);
        let taken = |rates: &mut Rates, key, own, from_ms: u64| {
            (from_ms..from_ms + 2_000).filter(|now_ms| rates.take_for_key(key, own, 1, *now_ms)).count()
        };
        assert!((14..=16).contains(&taken(&mut rates, "slow", Some(5), 10_000)));
        assert!((298..=302).contains(&taken(&mut rates, "any", None, 10_000)));
        assert!((1_400..=1_600).contains(&taken(&mut rates, "slow", Some(500), 20_000)), "its line is another by then");
        let mut unlimited = Rates::new(0, 0);
        assert!((14..=16).contains(&taken(&mut unlimited, "slow", Some(5), 10_000)));
        assert_eq!(taken(&mut unlimited, "any", None, 10_000), 2_000);
    }

    #[test]
    fn tables_are_bounded() {
        let mut rates = Rates::new(1, 1);
        for user in 0..2 * USERS_MAX as u64 {
            assert!(rates.take_for_user(user, 1_000));
        }
        assert_eq!(rates.users.len(), USERS_MAX);
        for key in 0..2 * KEYS_MAX as u64 {
            rates.take_for_key(&key.to_string(), None, 1, key * 10_000);
        }
        assert!(rates.keys.len() <= KEYS_MAX);
    }
}
