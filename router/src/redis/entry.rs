//! How an entry of presence stands in Redis: the fields and values that the scripts read.

use super::PresenceEntry;

/// A number as the scripts compare it: 20 decimal digits, which every `u64` fits.
pub(super) fn padded(number: u64) -> String {
    format!("{number:020}")
}

/// The part of a stored entry that no script looks at.
pub(super) fn tail(entry: &PresenceEntry) -> String {
    format!("{}\t{}\t{}", entry.shard, entry.since_ms, entry.class)
}

/// What a field of a user's hash says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Entry(PresenceEntry),
    /// The mark of a fenced logout.
    Mark,
    Garbage,
}

/// Reads a field: version, incarnation, session, node, shard, since, class, with a tab between each two. No text in it
/// has a tab, since control characters are refused.
pub(super) fn parse(device: &str, value: &str) -> Stored {
    let mut parts = value.split('\t');
    let mut next = || parts.next();
    let Some(version) = next().and_then(number) else {
        return Stored::Garbage;
    };
    let Some(incarnation) = next() else {
        return Stored::Garbage;
    };
    if incarnation == "-" {
        return Stored::Mark;
    }
    let entry = || -> Option<PresenceEntry> {
        Some(PresenceEntry {
            device: device.into(),
            version,
            incarnation: number(incarnation)?,
            session: number(next()?)?,
            node: next()?.into(),
            shard: next()?.parse().ok()?,
            since_ms: number(next()?)?,
            class: next()?.into(),
        })
    };
    let mut entry = entry;
    entry().map_or(Stored::Garbage, Stored::Entry)
}

pub(super) fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_garbage_is_told_apart() {
        let entry = PresenceEntry {
            device: "tablet".into(),
            node: "node a:1".into(),
            incarnation: u64::MAX,
            shard: 7,
            session: 9,
            since_ms: 1_700_000_000_000,
            class: "".into(),
            version: 3,
        };
        let text = format!("{}\t{}\t9\tnode a:1\t{}", padded(3), padded(u64::MAX), tail(&entry));
        assert_eq!(parse("tablet", &text), Stored::Entry(entry));
        assert_eq!(parse("tablet", &format!("{}\t-", padded(3))), Stored::Mark);
        for garbage in ["", "x", "1", "1\tx", "1\t2\t3", "1\t2\t3\tn\t99999999999\t0\t", "1\t2\t3\tn\t0\t0"] {
            assert_eq!(parse("tablet", garbage), Stored::Garbage, "{garbage:?}");
        }
    }

    #[test]
    fn padded_numbers_sort_as_numbers_do() {
        let numbers = [0, 1, 9, 10, (1 << 53) + 1, (1 << 53) + 2, u64::MAX];
        assert!(numbers.windows(2).all(|pair| padded(pair[0]) < padded(pair[1])));
        assert!(numbers.iter().all(|&number| padded(number).len() == 20));
    }
}
