//! How a router asks a node over HTTP, and how it asks one to end the sessions of a user; what it passes on of what it
//! is asked itself is in `relay`.
//!
//! A router has no link to the nodes' shards, and no secret of the cluster. It finds the nodes' HTTP addresses in their
//! leases, and any of them ends the sessions of a user everywhere. A node on another host, and one that has a keys
//! file, wants a key with the scope `kick`: that of `--node-key-file`. It is sent to whatever address a lease names, so
//! it should have that scope alone. A node whose record says that it speaks TLS is asked over TLS, and has to show a
//! certificate for the name or address that it has in its record.

use super::access::AuditNote;
use crate::redis::Tls;
use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Nodes that are asked one after the other when one does not answer.
pub(super) const NODES_ASKED_MAX: usize = 3;
/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the handshake of TLS may take behind that.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long its answer may take: longer than it waits for other nodes itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7);
/// Longest answer taken.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What came of asking a node.
pub(super) enum Asked {
    /// It answered for the whole cluster.
    Answered(Response),
    /// It did not, and another may.
    Failed(String),
}

/// What nodes are asked with.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    /// A key of theirs.
    pub(super) key: Option<&'a str>,
    /// TLS to those that speak it, or why it cannot be spoken.
    pub(super) tls: &'a Result<Tls, String>,
}

/// Asks the node at `address` to end the sessions of a user, over TLS if it speaks that.
pub(super) async fn kick(
    address: &str,
    https: bool,
    credentials: &Credentials<'_>,
    user: u64,
    device: Option<&str>,
) -> Asked {
    let key = credentials.key;
    let stream = match connect(address, https, credentials.tls).await {
        Ok(stream) => stream,
        Err(error) => return Asked::Failed(error),
    };
    match timeout(ANSWER_TIMEOUT, exchange(stream, address, key, user, device)).await {
        Ok(Ok((status, body))) => judge(status, body, key.is_some()),
        Ok(Err(error)) => Asked::Failed(error),
        Err(_) => Asked::Failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}

/// What requests to a node go over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to the HTTP API of the node at `address`, over TLS if it speaks that. Nothing has been asked yet.
pub(super) async fn connect(address: &str, https: bool, tls: &Result<Tls, String>) -> Result<Box<dyn Stream>, String> {
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
    };
    if !https {
        return Ok(Box::new(stream));
    }
    let tls = tls.as_ref().map_err(Clone::clone)?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
    match timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(tls.shared()).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(format!("TLS: {error}; --node-ca-file says whose certificates count")),
        Err(_) => Err(format!("no handshake of TLS within {} s", HANDSHAKE_TIMEOUT.as_secs())),
    }
}

fn judge(status: StatusCode, body: Vec<u8>, has_key: bool) -> Asked {
    let content_type = match status {
        StatusCode::OK => "application/json",
        StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => "application/problem+json",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let what = if has_key { "refuses the key of --node-key-file" } else { "wants a key: give --node-key-file" };
            return Asked::Failed(format!("it {what}; that key needs the scope kick in the node's keys file"));
        }
        status => return Asked::Failed(format!("it answered {status}")),
    };
    let note = String::from_utf8_lossy(&body).into_owned();
    let response = (status, Extension(AuditNote(note)), [(header::CONTENT_TYPE, content_type)], body);
    let mut response = response.into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, super::problem::RETRY_AFTER_SECS);
    }
    Asked::Answered(response)
}

async fn exchange(
    stream: Box<dyn Stream>,
    address: &str,
    key: Option<&str>,
    user: u64,
    device: Option<&str>,
) -> Result<(StatusCode, Vec<u8>), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let query = device.map_or_else(String::new, |device| format!("?device={}", percent_encoded(device)));
    let mut request = Request::post(format!("/v1/users/{user}/kick{query}")).header(header::HOST, address);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let request = request.body(Body::empty()).map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        let body = to_bytes(Body::new(body), ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
        Ok((head.status, body.to_vec()))
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        // It may end first although the answer has come.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(failed(&error)),
        },
    }
}

fn percent_encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_of_any_kind_are_encoded() {
        assert_eq!(percent_encoded("desk-1.a_b~"), "desk-1.a_b~");
        assert_eq!(percent_encoded("my phone&ä+"), "my%20phone%26%C3%A4%2B");
    }

    #[test]
    fn what_a_node_refuses_names_the_fix() {
        for (has_key, hint) in [(true, "refuses the key"), (false, "--node-key-file")] {
            let Asked::Failed(error) = judge(StatusCode::UNAUTHORIZED, Vec::new(), has_key) else { panic!("answered") };
            assert!(error.contains(hint) && error.contains("scope kick"), "{error}");
        }
        assert!(matches!(judge(StatusCode::NOT_FOUND, Vec::new(), true), Asked::Answered(_)));
        assert!(matches!(judge(StatusCode::GATEWAY_TIMEOUT, Vec::new(), true), Asked::Failed(_)));
    }
}
