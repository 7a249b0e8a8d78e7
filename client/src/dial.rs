//! How a connection is made.

use std::future::Future;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

/// Makes byte streams to a gateway. `Tcp`, with the feature `tcp`, is the usual one; implement it to go through TLS, a
/// proxy, or memory in a test.
pub trait Dial: Send + 'static {
    /// The stream of bytes in both directions.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `addr`: `host:port`, behind `trunkline://` or `trunkline+tls://` where [`crate::Config::addrs`] says
    /// so. It is cancelled when [`crate::Config::connect_timeout`] is over.
    ///
    /// # Errors
    /// Whatever keeps the connection from being made; the client tries again later, except at the first connect.
    fn dial(&mut self, addr: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Connects to `addr`, `ws://host:port` or `wss://host:port`, for HTTP/1.1: `Ws`, with the feature `ws`, makes a
    /// WebSocket of it. Over TLS the application protocol is then `http/1.1`. By default as [`Dial::dial`].
    ///
    /// # Errors
    /// As [`Dial::dial`].
    fn dial_http(&mut self, addr: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send {
        self.dial(addr)
    }
}
