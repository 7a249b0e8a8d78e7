//! How a connection is made.

use std::future::Future;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Makes byte streams to a gateway. [`Tcp`] is the usual one; implement it to go through TLS, a proxy, or memory in a test.
pub trait Dial: Send + 'static {
    /// The stream of bytes in both directions.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to `addr` (`host:port`). It is cancelled when [`crate::Config::connect_timeout`] is over.
    ///
    /// # Errors
    /// Whatever keeps the connection from being made; the client tries again later, except at the first connect.
    fn dial(&mut self, addr: &str) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Plain TCP, with `TCP_NODELAY`: frames are already coalesced here, and a chat message should not wait for an ACK.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Dial for Tcp {
    type Stream = TcpStream;

    async fn dial(&mut self, addr: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
