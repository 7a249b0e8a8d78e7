//! Which users a table may know.

/// Bits for each user of a table. With [`PROBES`] of them set, one of about 40 other users is taken for known.
const BITS_PER_USER: u64 = 12;
const PROBES: u32 = 4;

/// A Bloom filter of the users of a table (Bloom 1970), all bits of a user in one word (Putze, Sanders and Singler
/// 2007): whoever looks for a user passes over most tables that do not know it without a read.
pub(crate) struct Filter {
    words: Box<[u64]>,
    /// Some users of the table could not be read, so it may know anybody.
    anybody: bool,
}

impl Filter {
    /// A filter for so many users.
    pub(crate) fn new(users: u64) -> Self {
        let words = (users * BITS_PER_USER / u64::from(u64::BITS) + 1).min(u64::from(u32::MAX));
        Filter { words: vec![0; words as usize].into(), anybody: false }
    }

    /// Memory that it takes, bytes.
    pub(crate) fn memory(&self) -> usize {
        size_of_val(&*self.words)
    }

    /// Notes a user.
    pub(crate) fn add(&mut self, user: u64) {
        let (word, bits) = self.place(user);
        self.words[word] |= bits;
    }

    /// From now on anybody may be known.
    pub(crate) fn add_anybody(&mut self) {
        self.anybody = true;
    }

    /// False only if the user was not noted.
    pub(crate) fn may_have(&self, user: u64) -> bool {
        let (word, bits) = self.place(user);
        self.anybody || self.words[word] & bits == bits
    }

    fn place(&self, user: u64) -> (usize, u64) {
        // The end of splitmix64, Steele, Lea and Flood 2014: users that follow each other are far apart.
        let mixed = (user ^ (user >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let mixed = mixed ^ (mixed >> 31);
        // The high half chooses the word (Lemire 2019), six bits of the low half each bit.
        let word = ((mixed >> 32) * self.words.len() as u64) >> 32;
        let bits = (0..PROBES).fold(0, |bits, probe| bits | 1 << ((mixed >> (6 * probe)) & 63));
        (word as usize, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    #[test]
    fn who_was_noted_is_known_and_few_others_are() {
        let mut filter = Filter::new(10_000);
        (0..10_000).for_each(|user| filter.add(user * 7));
        assert!((0..10_000).all(|user| filter.may_have(user * 7)));
        let others = (0..70_000).filter(|user| user % 7 != 0 && filter.may_have(*user)).count();
        assert!(others < 60_000 / 20, "{others} of 60,000 others are taken for known");
    }

    #[test]
    fn an_empty_filter_knows_nobody_until_it_may_know_anybody() {
        let mut filter = Filter::new(0);
        assert!(!filter.may_have(5));
        filter.add_anybody();
        assert!(filter.may_have(5));
    }
}
