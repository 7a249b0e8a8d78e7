//! Which part of an export messages are of. An export that is put in again, after an error or for a second time, is
//! known by it: of each part the store notes up to where it came, and takes nothing twice, also where devices have
//! acknowledged it since, or it has got another position.

use trunkline_router::redis::Value;
use trunkline_store::Record;

/// Messages that are put in by one call, and about their bytes: so long a call holds up its server.
const MESSAGES_MAX: usize = 256;
const BYTES_MAX: usize = 1 << 20;

/// Offset basis and prime of FNV-1a with 64 bits. It tells the parts of a few exports from each other.
const BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01B3;

/// Messages of one user or group that stand in a row, in the order of their positions.
#[derive(Debug)]
pub(crate) struct Part {
    /// Over the line about whom they are of and the first message: the same for the same export, another one for that
    /// of another store.
    name: u64,
    last: Option<u64>,
    /// They are not noted.
    is_given_up: bool,
    held: Vec<Record>,
    bytes: usize,
}

impl Part {
    /// Begins with the line that says whom the messages are of; an empty one where there is none.
    pub(crate) fn new(line: &str) -> Self {
        Part { name: hashed(BASIS, line), last: None, is_given_up: false, held: Vec::new(), bytes: 0 }
    }

    /// One more message, and the line that it stands in.
    pub(crate) fn hold(&mut self, record: Record, line: &str) {
        match self.last {
            None => self.name = hashed(self.name, line),
            // That it came is no word of those before it.
            Some(last) if record.stamp <= last => self.give_up(),
            Some(_) => {}
        }
        self.last = Some(record.stamp);
        self.bytes += record.bytes();
        self.held.push(record);
    }

    /// Whether they are as many as one call puts in.
    pub(crate) fn is_full(&self) -> bool {
        self.held.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    /// Those that are held, which are so no more.
    pub(crate) fn take(&mut self) -> Vec<Record> {
        self.bytes = 0;
        std::mem::take(&mut self.held)
    }

    /// From here on nothing is noted of it.
    pub(crate) fn give_up(&mut self) {
        self.is_given_up = true;
    }

    /// Adds its name to what a script is asked, before its messages.
    pub(crate) fn put(&self, words: &mut Vec<Value>) {
        if !self.is_given_up {
            words.extend(["part".into(), format!("{:016x}", self.name).into()]);
        }
    }
}

fn hashed(begin: u64, line: &str) -> u64 {
    line.bytes().fold(begin, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn record(stamp: u64) -> Record {
        Record { stamp, from: 1, id: stamp, flags: 0, payload: Arc::from(&b"text"[..]) }
    }

    fn words(part: &Part) -> Vec<Value> {
        let mut words = Vec::new();
        part.put(&mut words);
        words
    }

    #[test]
    fn a_part_is_known_by_how_it_begins() {
        let of = |line: &str, messages: &[(u64, &str)]| {
            let mut part = Part::new(line);
            messages.iter().for_each(|(stamp, line)| part.hold(record(*stamp), line));
            part
        };
        let part = of("user 7", &[(5, "five"), (6, "six")]);
        assert_eq!(words(&part), words(&of("user 7", &[(5, "five"), (7, "seven")])));
        for other in [of("user 7", &[(6, "six")]), of("user 8", &[(5, "five")]), of("", &[(5, "five")])] {
            assert_ne!(words(&part), words(&other));
        }
    }

    #[test]
    fn what_is_out_of_order_or_behind_a_refusal_is_not_noted_and_a_call_is_bounded() {
        let mut part = Part::new("user 7");
        part.hold(record(5), "five");
        assert_eq!(words(&part).len(), 2);
        part.hold(record(5), "five");
        assert!(words(&part).is_empty());
        assert_eq!((part.take().len(), part.take().len()), (2, 0));
        (0..MESSAGES_MAX as u64).for_each(|at| part.hold(record(10 + at), ""));
        assert!(part.is_full());
        part.take();
        assert!(!part.is_full());
        part.hold(Record { payload: Arc::from(vec![0; BYTES_MAX]), ..record(900) }, "");
        assert!(part.is_full());
    }
}
