//! HTTP/1.1 as far as a load needs it: requests on connections that are kept, and their answers.

use std::io::Write as _;

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What a server has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    /// Its status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: &'a [u8],
    /// Bytes of all of it.
    pub(crate) length: usize,
}

/// Appends a POST.
pub(crate) fn put_post(target: &str, content_type: &str, body: &[u8], out: &mut Vec<u8>) {
    let length = body.len();
    write!(out, "POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n").expect("a vector takes all");
    write!(out, "Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n").expect("a vector takes all");
    out.extend_from_slice(body);
}

/// Appends a GET.
pub(crate) fn put_get(target: &str, out: &mut Vec<u8>) {
    write!(out, "GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("a vector takes all");
}

/// The first answer in `bytes`; `None` when it is not whole. Errors: this is no answer, or one without a length.
pub(crate) fn answer(bytes: &[u8]) -> Result<Option<Answer<'_>>, String> {
    let Some(end) = bytes.windows(4).take(HEAD_BYTES_MAX).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err("a head without end".to_owned()) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| format!("no answer of HTTP: {first}"))?;
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, length)| length.trim().parse::<usize>().ok());
    let length = length.ok_or_else(|| format!("an answer without a length: {first}"))?;
    let start = end + 4;
    let whole = start.checked_add(length).ok_or("an answer of no length that may be")?;
    Ok(bytes.get(start..whole).map(|body| Answer { status, body, length: whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole_and_what_follows_is_left() {
        let bytes = b"HTTP/1.1 202 Accepted\r\nx: y\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200";
        let whole = bytes.len() - "HTTP/1.1 200".len();
        for end in 0..whole {
            assert_eq!(answer(&bytes[..end]), Ok(None), "{end}");
        }
        assert_eq!(answer(bytes), Ok(Some(Answer { status: 202, body: b"hello", length: whole })));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", usize::MAX);
        for wrong in ["SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 2\r\n\r\n", &huge] {
            assert!(answer(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(answer(&[b'a'; HEAD_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        let mut out = Vec::new();
        put_post("/a", "text/plain", b"hi", &mut out);
        put_get("/b", &mut out);
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(
            text.starts_with("POST /a HTTP/1.1\r\n") && text.contains("Content-Length: 2\r\n\r\nhiGET /b "),
            "{text}"
        );
    }
}
