//! Connections through a WebSocket: native frames inside its binary messages.

mod masks;
mod stream;
mod upgrade;
mod wire;

#[cfg(test)]
mod tests;

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Dial;
use crate::addrs::WebSocketUrl;

pub use stream::WsStream;
pub use upgrade::UpgradeRefused;

/// WebSockets over the connections of another [`Dial`], for networks and proxies that let nothing but HTTP pass:
/// `ws://chat.example.com/ws` over [`crate::Tcp`], `wss://chat.example.com/ws` over `Tls`. Without a port it is that of
/// HTTP or HTTPS, without a path it is `/ws`. Addresses of other schemes are dialed as they are without it.
///
/// A gateway that names another one is followed there with the same scheme and path. [`crate::Client::connect`] dials
/// with `Ws::over(Tcp)`. The path is no place for secrets: errors and [`crate::SessionInfo::addr`] show it.
///
/// ```no_run
/// # use trunkline_client::{Client, Config, Error, Ws};
/// # #[cfg(feature = "tls")]
/// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
/// # use trunkline_client::Tls;
/// let config = Config { addrs: vec!["wss://chat.example.com/ws".into()], user: 1, ..Config::default() };
/// let (client, events) = Client::connect_with(config, Ws::over(Tls::of_system()?)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Ws<D> {
    dial: D,
}

impl<D: Dial> Ws<D> {
    /// WebSockets over connections that `dial` makes, see [`Dial::dial_http`].
    pub fn over(dial: D) -> Self {
        Ws { dial }
    }
}

impl<D: Dial> Dial for Ws<D> {
    type Stream = WsStream<D::Stream>;

    async fn dial(&mut self, addr: &str) -> io::Result<Self::Stream> {
        match WebSocketUrl::read(addr) {
            Some(url) => open(self.dial.dial_http(&url.server()).await?, &url).await,
            None => Ok(WsStream::native(self.dial.dial(addr).await?)),
        }
    }
}

/// Makes a WebSocket of a connection to an HTTP server. Cancelled with [`crate::Config::connect_timeout`], so a server
/// that answers nothing, or byte after byte, has as long as that.
async fn open<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, url: &WebSocketUrl<'_>) -> io::Result<WsStream<S>> {
    let mut nonce = [0; upgrade::NONCE_BYTES];
    masks::fill(&mut nonce)?;
    let key = upgrade::key(&nonce);
    stream.write_all(upgrade::request(url, &key).as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    loop {
        // One read may bring more than the head: frames behind it.
        answer.reserve(upgrade::HEAD_BYTES_MAX);
        if stream.read_buf(&mut answer).await? == 0 {
            let why = "the server closed the connection before it answered the request for a WebSocket";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        if let Some(head) = upgrade::read_answer(&answer, &key)? {
            answer.drain(..head);
            return Ok(WsStream::websocket(stream, answer));
        }
    }
}
