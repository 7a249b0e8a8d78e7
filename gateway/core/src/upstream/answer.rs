//! What an HTTP answer means for a call.

use crate::limits::Limits;
use trunkline_proto::{Code, HEADER_LONG};

/// The longest body of an answer: what a REPLY can hold.
pub fn answer_bytes_max(limits: &Limits) -> usize {
    limits.frame_bytes_max as usize - HEADER_LONG
}

/// What the caller is told, and what is held against the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// The status of the REPLY.
    pub status: u16,
    /// The body of the answer is that of the REPLY; else it is a sentence of the gateway's.
    pub has_body: bool,
    /// The server has said that it did not carry out the call.
    pub refused: bool,
    /// It counts among the server's failures.
    pub failed: bool,
}

/// What a status means, with the `Trunkline-Status` of the answer if there is one.
pub(crate) fn meaning(http: u16, own: Option<&[u8]>) -> Meaning {
    let told = |code: Code, refused, failed| Meaning { status: code.as_u16(), has_body: false, refused, failed };
    match http {
        200..300 => match own.map(own_status) {
            None => Meaning { status: 0, has_body: true, refused: false, failed: false },
            Some(Some(status)) => Meaning { status, has_body: true, refused: false, failed: false },
            // As with a worker that answers with a number of the gateway's: what it has done nobody can tell.
            Some(None) => told(Code::OutcomeUnknown, false, true),
        },
        // Too many of this caller's, perhaps: that says nothing about the server.
        429 => told(Code::Overloaded, true, false),
        503 => told(Code::Overloaded, true, true),
        400..500 => told(Code::BadRequest, false, false),
        // It answers, so it is there; what it answers to one call need not be what it answers to another.
        _ => told(Code::OutcomeUnknown, false, false),
    }
}

/// The status of the REPLYs of an answer that comes in parts; `None` for one whose body is not what the caller gets.
#[must_use]
pub fn status_of_parts(http: u16, own: Option<&[u8]>) -> Option<u16> {
    let Meaning { status, has_body, .. } = meaning(http, own);
    has_body.then_some(status)
}

/// The status that a server gives of its own: 0, or 256 and up.
fn own_status(value: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(value).ok()?.trim();
    digits.parse().ok().filter(|status| *status == 0 || *status >= 256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_http_becomes_a_status_of_the_protocol() {
        let status = |http, own: Option<&str>| meaning(http, own.map(str::as_bytes)).status;
        for (http, own, told) in [
            (200, None, 0),
            (204, None, 0),
            (299, Some("256"), 256),
            (201, Some(" 65535 "), 65_535),
            (200, Some("0"), 0),
            (200, Some("14"), 25),
            (200, Some("65536"), 25),
            (200, Some("many"), 25),
            (400, None, 20),
            (404, Some("300"), 20),
            (429, None, 14),
            (503, None, 14),
            (500, None, 25),
            (502, Some("300"), 25),
            (504, None, 25),
            (302, None, 25),
            (101, None, 25),
        ] {
            assert_eq!(status(http, own), told, "{http} {own:?}");
        }
    }

    #[test]
    fn what_was_not_carried_out_may_be_tried_again_and_only_who_is_in_trouble_has_failed() {
        let of = |http| meaning(http, None);
        assert!(of(429).refused && of(503).refused && !of(500).refused && !of(400).refused);
        assert!(of(503).failed && !of(429).failed && !of(404).failed && !of(200).failed);
        assert!(of(200).has_body && !of(400).has_body && !of(500).has_body);
        assert_eq!((status_of_parts(200, Some(b"300")), status_of_parts(204, None)), (Some(300), Some(0)));
        assert_eq!((status_of_parts(200, Some(b"14")), status_of_parts(404, None)), (None, None));
    }
}
