//! What the benches write into a message so that every single one can be accounted for.
//!
//! ```text
//! 0   sender     8  user id
//! 8   recipient  8  user id
//! 16  sequence   4  counted from 0 for each flow
//! 20  check      4  of all the other fields: a changed time would be a wrong latency
//! 24  sent_ns    8  when, on the load's own clock
//! 32  flow       4  index of the sender-recipient relation
//! 36  run        4  which run of the bench, so that a leftover of another is told apart
//! 40  filler        words derived from run, flow and sequence
//! ```
//! All integers are big-endian.

/// The smallest payload: the fields without filler.
pub(crate) const PAYLOAD_BYTES_MIN: usize = 40;

/// The fields of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The sending user.
    pub(crate) sender: u64,
    /// The user it is for.
    pub(crate) recipient: u64,
    /// Position in the flow, from 0, below 2^32.
    pub(crate) sequence: u64,
    /// When it was written, nanoseconds on the load's own clock.
    pub(crate) sent_ns: u64,
    /// Index of the flow.
    pub(crate) flow: u32,
    /// Number of the run.
    pub(crate) run: u32,
}

impl Label {
    /// Writes the label and its filler over the whole payload, which has at least [`PAYLOAD_BYTES_MIN`] bytes.
    pub(crate) fn write(&self, payload: &mut [u8]) {
        let (label, filler) = payload.split_at_mut(PAYLOAD_BYTES_MIN);
        label[0..8].copy_from_slice(&self.sender.to_be_bytes());
        label[8..16].copy_from_slice(&self.recipient.to_be_bytes());
        label[16..20].copy_from_slice(&(self.sequence as u32).to_be_bytes());
        label[20..24].copy_from_slice(&self.check().to_be_bytes());
        label[24..32].copy_from_slice(&self.sent_ns.to_be_bytes());
        label[32..36].copy_from_slice(&self.flow.to_be_bytes());
        label[36..40].copy_from_slice(&self.run.to_be_bytes());
        let mut words = self.filler();
        for chunk in filler.chunks_mut(8) {
            chunk.copy_from_slice(&words.next_word()[..chunk.len()]);
        }
    }

    /// Reads the label of a payload; `None` when it is too short to have one.
    pub(crate) fn read(payload: &[u8]) -> Option<Label> {
        Some(Label {
            sender: long(payload, 0)?,
            recipient: long(payload, 8)?,
            sequence: short(payload, 16)?.into(),
            sent_ns: long(payload, 24)?,
            flow: short(payload, 32)?,
            run: short(payload, 36)?,
        })
    }

    /// Whether the rest of the payload is what this label wrote: the check of its fields, and the filler.
    pub(crate) fn is_intact(&self, payload: &[u8]) -> bool {
        let mut words = self.filler();
        short(payload, 20) == Some(self.check())
            && payload[PAYLOAD_BYTES_MIN..].chunks(8).all(|chunk| *chunk == words.next_word()[..chunk.len()])
    }

    /// A number that another value of any field would change.
    fn check(&self) -> u32 {
        let ends = u64::from(self.flow) << 32 | u64::from(self.run);
        let words = [self.sender, self.recipient, self.sequence, self.sent_ns, ends];
        let mixed = words.iter().fold(0, |sum: u64, word| u64::from_be_bytes(Filler(sum ^ word).next_word()));
        (mixed >> 32) as u32
    }

    fn filler(&self) -> Filler {
        Filler(self.sequence ^ u64::from(self.flow) << 32 ^ u64::from(self.run) << 16)
    }
}

fn long(payload: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(at..at + 8)?.try_into().ok()?))
}

fn short(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?))
}

/// Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number generators", 2014).
struct Filler(u64);

impl Filler {
    fn next_word(&mut self) -> [u8; 8] {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ word >> 31).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label { sender: 3, recipient: 4, sequence: 17, sent_ns: 99, flow: 2, run: 7 };

    #[test]
    fn a_payload_of_any_length_reads_back_as_written() {
        for bytes in PAYLOAD_BYTES_MIN..PAYLOAD_BYTES_MIN + 40 {
            let mut payload = vec![0; bytes];
            LABEL.write(&mut payload);
            assert_eq!(Label::read(&payload), Some(LABEL));
            assert!(LABEL.is_intact(&payload));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed_also_one_of_the_time() {
        for bytes in [PAYLOAD_BYTES_MIN, 64] {
            let mut payload = vec![0; bytes];
            LABEL.write(&mut payload);
            for at in 0..payload.len() {
                payload[at] ^= 0x10;
                let read = Label::read(&payload).expect("long enough");
                assert!(!read.is_intact(&payload), "byte {at} of {bytes}");
                payload[at] ^= 0x10;
            }
        }
    }

    #[test]
    fn a_short_payload_has_no_label() {
        assert_eq!(Label::read(&[0; PAYLOAD_BYTES_MIN - 1]), None);
    }
}
