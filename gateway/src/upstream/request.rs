//! A call as an HTTP request.

use crate::services::Target;
use crate::upstream::Letter;
use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body of one piece.
#[derive(Debug)]
pub(crate) struct Whole(Option<Bytes>);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(hyper::body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

const SERVICE: HeaderName = HeaderName::from_static("trunkline-service");
const USER: HeaderName = HeaderName::from_static("trunkline-user");
const DEVICE: HeaderName = HeaderName::from_static("trunkline-device");
const SESSION: HeaderName = HeaderName::from_static("trunkline-session");
const KEY: HeaderName = HeaderName::from_static("trunkline-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("trunkline-request-id");
const TIMEOUT_MS: HeaderName = HeaderName::from_static("trunkline-timeout-ms");
const AGAIN: HeaderName = HeaderName::from_static("trunkline-again");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The request for a call, with so many milliseconds left for it.
pub(crate) fn request(target: &Target, letter: &Letter, left_ms: u64) -> Request<Whole> {
    let Letter { service, user, id, head, body, again } = letter;
    let mut request = to(target, Method::POST, &target.path, Whole(Some(body.clone()).filter(|body| !body.is_empty())));
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(SERVICE, HeaderValue::from(*service));
    headers.insert(USER, HeaderValue::from(*user));
    headers.insert(REQUEST_ID, HeaderValue::from(*id));
    headers.insert(TIMEOUT_MS, HeaderValue::from(left_ms));
    headers.insert(IDEMPOTENCY_KEY, text(&format!("{user}-{id}")));
    headers.insert(SESSION, HeaderValue::from(head.session));
    headers.insert(DEVICE, text(&head.device));
    if head.routing_key != 0 {
        headers.insert(KEY, HeaderValue::from(head.routing_key));
    }
    if !head.traceparent.is_empty() {
        headers.insert(TRACEPARENT, text(&head.traceparent));
    }
    if *again {
        headers.insert(AGAIN, HeaderValue::from_static("1"));
    }
    request
}

/// The request by which a server is asked whether it is well.
pub(super) fn check(target: &Target, path: &str) -> Request<Whole> {
    to(target, Method::GET, path, Whole(None))
}

fn to(target: &Target, method: Method, path: &str, body: Whole) -> Request<Whole> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    // It was judged as part of the configuration.
    let path = PathAndQuery::try_from(path).unwrap_or(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    let headers = request.headers_mut();
    headers.insert(HOST, text(&target.authority()));
    headers.insert(USER_AGENT, HeaderValue::from_static("trunkline"));
    request
}

/// A text as the value of a header: visible ASCII as it is, everything else, and `%`, as its bytes in hexadecimal.
fn text(text: &str) -> HeaderValue {
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            value.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(value, "%{byte:02X}");
        }
    }
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::body::Body;
    use trunkline_proto::CallHead;

    fn letter() -> Letter {
        let head = CallHead {
            device: "Ä phone\r\nX: 1".to_owned(),
            session: 77,
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            routing_key: 5,
            ..CallHead::default()
        };
        Letter { service: 7, user: u64::MAX, id: 9, head, body: Bytes::from_static(b"\x00raw"), again: false }
    }

    #[test]
    fn a_call_is_posted_with_who_calls_and_nothing_a_client_says_makes_a_header_of_its_own() {
        let target: Target = "http://orders.internal:9000/calls?v=1".parse().unwrap();
        let request = request(&target, &letter(), 1_500);
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "/calls?v=1"));
        assert_eq!(request.body().size_hint().exact(), Some(4));
        let mut headers: Vec<(&str, &str)> =
            request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("content-type", "application/octet-stream"),
                ("host", "orders.internal:9000"),
                ("idempotency-key", "18446744073709551615-9"),
                ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                ("trunkline-device", "%C3%84%20phone%0D%0AX:%201"),
                ("trunkline-key", "5"),
                ("trunkline-request-id", "9"),
                ("trunkline-service", "7"),
                ("trunkline-session", "77"),
                ("trunkline-timeout-ms", "1500"),
                ("trunkline-user", "18446744073709551615"),
                ("user-agent", "trunkline"),
            ]
        );
    }

    #[test]
    fn a_call_that_another_server_may_have_says_so_and_what_is_not_known_is_left_out() {
        let target: Target = "https://[::1]/".parse().unwrap();
        let letter = Letter { again: true, head: CallHead::default(), body: Bytes::new(), ..letter() };
        let request = request(&target, &letter, 0);
        let of = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(
            (of("trunkline-again"), of("host"), of("trunkline-key"), of("traceparent")),
            (Some("1"), Some("[::1]"), None, None)
        );
        assert_eq!(request.body().size_hint().exact(), Some(0));
        assert_eq!(check(&target, "/up").uri(), "/up");
    }
}
