//! An HTTP answer that comes in parts: each is a REPLY with MORE. No I/O and no clock.
//!
//! The server asks for it by the header `Trunkline-Parts` of its answer. Where the pieces of a body end means nothing
//! in HTTP, whatever its server wrote at once; so a server whose parts have borders sends them as lines.

use bytes::Bytes;

/// What the parts of an answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// What has come of the body by then, whatever that is.
    Pieces,
    /// Its lines, without their ends; empty ones are left out.
    Lines,
}

impl Parts {
    /// What the header says. `None` for what nobody knows: the answer is one whole then.
    #[must_use]
    pub fn of(header: &[u8]) -> Option<Self> {
        match header.trim_ascii() {
            b"pieces" => Some(Parts::Pieces),
            b"lines" => Some(Parts::Lines),
            _ => None,
        }
    }
}

/// A line does not fit into a REPLY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTooLong;

/// Makes parts of a body as it comes.
#[derive(Debug)]
pub struct Splitter {
    parts: Parts,
    /// The beginning of a line whose end has not come; never longer than a part may be.
    line: Vec<u8>,
    part_bytes_max: usize,
}

impl Splitter {
    /// For a body whose parts may have so many bytes, 1 at least.
    #[must_use]
    pub fn new(parts: Parts, part_bytes_max: usize) -> Self {
        Splitter { parts, line: Vec::new(), part_bytes_max: part_bytes_max.max(1) }
    }

    /// Bytes that wait for the end of their line.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// The parts that are whole with this piece of the body.
    ///
    /// # Errors
    /// When a line is too long; the parts before it are lost with it, and nothing more may be pushed.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<Bytes>, LineTooLong> {
        if self.parts == Parts::Pieces {
            return Ok(piece.chunks(self.part_bytes_max).map(Bytes::copy_from_slice).collect());
        }
        let mut parts = Vec::new();
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.add(&rest[..end])?;
            parts.extend(self.take());
            rest = &rest[end + 1..];
        }
        self.add(rest)?;
        Ok(parts)
    }

    /// The last part, at the end of the body, if there is one more.
    pub fn end(&mut self) -> Option<Bytes> {
        self.take()
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), LineTooLong> {
        if self.line.len() + bytes.len() > self.part_bytes_max {
            return Err(LineTooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take(&mut self) -> Option<Bytes> {
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Some(Bytes::from(line)).filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_one_whole_answer() {
        assert_eq!((Parts::of(b"lines"), Parts::of(b" pieces ")), (Some(Parts::Lines), Some(Parts::Pieces)));
        assert_eq!((Parts::of(b""), Parts::of(b"words")), (None, None));
    }

    #[test]
    fn lines_are_the_same_whatever_the_pieces_are() {
        let body = b"one\ntwo and more\r\n\n\nthree";
        for at in 0..body.len() {
            for next in at..body.len() {
                let mut splitter = Splitter::new(Parts::Lines, 13);
                let mut parts = Vec::new();
                for piece in [&body[..at], &body[at..next], &body[next..]] {
                    parts.extend(splitter.push(piece).expect("no line is too long"));
                }
                parts.extend(splitter.end());
                assert_eq!(parts, ["one", "two and more", "three"], "{at} {next}");
                assert_eq!(splitter.waiting(), 0);
            }
        }
    }

    #[test]
    fn a_part_is_never_longer_than_it_may_be() {
        let mut pieces = Splitter::new(Parts::Pieces, 4);
        assert_eq!(pieces.push(b"seven x").expect("pieces"), ["seve", "n x"]);
        assert_eq!((pieces.waiting(), pieces.end()), (0, None));
        let mut lines = Splitter::new(Parts::Lines, 4);
        assert_eq!(lines.push(b"four\nfou"), Ok(vec![Bytes::from_static(b"four")]));
        assert_eq!((lines.waiting(), lines.push(b"r!")), (3, Err(LineTooLong)));
    }
}
