//! HTTP/1.1 requests, one connection each.

use super::PATIENCE;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// An answer of the HTTP API.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Header names are in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; fails the test when it is not.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

/// Sends a request without a body and reads the whole answer.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str) -> std::io::Result<Response> {
    exchange(address, method, path, "", "")
}

/// The same with further header lines, each with its end.
pub(crate) fn request_with(address: SocketAddr, method: &str, path: &str, headers: &str) -> std::io::Result<Response> {
    exchange(address, method, path, headers, "")
}

/// Posts a body, JSON unless the further header lines say something else, and reads the whole answer.
pub(crate) fn post_with(address: SocketAddr, path: &str, headers: &str, body: &str) -> std::io::Result<Response> {
    exchange(address, "POST", path, headers, body)
}

/// Sends a JSON body, or none if it is empty, and reads the whole answer.
pub(crate) fn request_json(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<Response> {
    exchange(address, method, path, "", body)
}

/// The same as [`request_json`] over TLS, on a connection of its own.
pub(crate) fn request_over_tls(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<Response> {
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
    exchange_over(StreamOwned::new(connection, connect(address)?), address, method, path, "", body)
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a request with these header lines and a body, and reads the whole answer.
pub(crate) fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<Response> {
    exchange_over(connect(address)?, address, method, path, headers, body)
}

fn exchange_over(
    mut stream: impl Read + Write,
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<Response> {
    let has_type = body.is_empty() || headers.contains("Content-Type");
    let (length, json) = (body.len(), if has_type { "" } else { "Content-Type: application/json\r\n" });
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\
         {json}{headers}Connection: close\r\n\r\n{body}"
    );
    // A server that refuses a request by its head answers and closes, maybe before the rest is written or read: then
    // its answer is there all the same.
    let written = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        written?;
        read?;
    }
    Ok(parse(&answer))
}

fn parse(answer: &[u8]) -> Response {
    let text = std::str::from_utf8(answer).expect("the API answers in UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a header and a body");
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|line| line.get(..3))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {head}"));
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { join_chunks(body) } else { body.to_owned() };
    Response { status, headers, body }
}

fn join_chunks(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").expect("a chunk starts with its size");
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size is hexadecimal");
        if size == 0 {
            return body;
        }
        body.push_str(&after[..size]);
        rest = after[size..].strip_prefix("\r\n").expect("a chunk ends with an empty line");
    }
}
