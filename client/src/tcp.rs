//! Connections over TCP.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Dial;
use crate::addrs::Scheme;

/// Addresses of one name that are tried; a name with more has the others in vain.
const ADDRESSES_MAX: usize = 16;

/// How long an address has before the next one is tried beside it (RFC 8305, section 5: "Connection Attempt Delay").
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// Plain TCP, with `TCP_NODELAY`: frames are already coalesced here, and a chat message should not wait for an ACK.
///
/// A name is resolved anew for each connection. If it has several addresses they are tried in turn, IPv6 and IPv4 in
/// alternation, each a quarter of a second after the one before or as soon as that has failed; the first connection
/// wins (RFC 8305, "Happy Eyeballs"). So one address that does not answer does not use up the time for the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Dial for Tcp {
    type Stream = TcpStream;

    async fn dial(&mut self, addr: &str) -> io::Result<TcpStream> {
        match Scheme::of(addr) {
            (Scheme::Any | Scheme::Tcp, addr) => connect(addr).await,
            (Scheme::Tls, _) => Err(unusable("trunkline+tls:// is an address for Tls, and this client was given none")),
            (Scheme::Ws | Scheme::Wss, _) => Err(unusable(NOT_WITHOUT_WS)),
        }
    }

    async fn dial_http(&mut self, addr: &str) -> io::Result<TcpStream> {
        match Scheme::of(addr) {
            (Scheme::Tls | Scheme::Wss, _) => {
                Err(unusable("wss:// is an address for Ws over Tls, and this client was given no TLS"))
            }
            (_, addr) => connect(addr).await,
        }
    }
}

/// What a dialer says that makes no WebSockets.
pub(crate) const NOT_WITHOUT_WS: &str = "ws:// and wss:// are addresses for Ws, and this client was given none";

/// The address is not one for this dialer.
pub(crate) fn unusable(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

async fn connect(addr: &str) -> io::Result<TcpStream> {
    let addresses = in_alternation(lookup_host(addr).await?);
    let stream = first_to_connect(addresses, TcpStream::connect).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The first addresses, those of the two families in alternation, beginning with that of the first one.
fn in_alternation(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for address in addresses {
        let first: &SocketAddr = one.first().unwrap_or(&address);
        if first.is_ipv6() == address.is_ipv6() { one.push(address) } else { other.push(address) }
    }
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    std::iter::from_fn(|| Some([one.next(), other.next()]).filter(|pair| pair.iter().any(Option::is_some)))
        .flatten()
        .flatten()
        .take(ADDRESSES_MAX)
        .collect()
}

/// Connects to the addresses, one after the other and beside each other; the others are given up when one is connected.
async fn first_to_connect<Connect, Connecting, Stream>(
    addresses: Vec<SocketAddr>,
    connect: Connect,
) -> io::Result<Stream>
where
    Connect: Fn(SocketAddr) -> Connecting,
    Connecting: Future<Output = io::Result<Stream>> + Send + 'static,
    Stream: Send + 'static,
{
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = waiting.next() {
            attempts.spawn(connect(address));
        }
        tokio::select! {
            attempt = attempts.join_next() => match attempt {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failure = error,
                Some(Err(error)) => failure = io::Error::other(error),
                None => return Err(failure),
            },
            () = sleep(NEXT_AFTER), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::Instant;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn families_alternate_and_the_number_is_bounded() {
        let given = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let expected = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(in_alternation(given.into_iter()), expected);
        let many = (1..=100).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let first: Vec<u16> = in_alternation(many).iter().map(SocketAddr::port).collect();
        assert_eq!(first, (1..=16).collect::<Vec<u16>>());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_does_not_answer_does_not_hold_up_the_next() {
        let began = Instant::now();
        let connected = first_to_connect(addresses(&["[::1]:1", "1.1.1.1:1", "2.2.2.2:1"]), |address| async move {
            if address.is_ipv6() { pending().await } else { Ok(address) }
        });
        assert_eq!(connected.await.expect("connected").to_string(), "1.1.1.1:1");
        assert_eq!(began.elapsed(), NEXT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_makes_room_for_the_next_at_once() {
        let began = Instant::now();
        let refusing = |address: SocketAddr| async move {
            if address.port() == 1 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(address.port()) }
        };
        let connected = first_to_connect(addresses(&["[::1]:1", "1.1.1.1:1", "[::1]:2"]), refusing).await;
        assert_eq!(connected.expect("connected"), 2);
        let refused = first_to_connect(addresses(&["[::1]:1", "1.1.1.1:1"]), refusing).await;
        assert_eq!(refused.expect_err("both refuse").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_one_may_still_win() {
        let connected = first_to_connect(addresses(&["[::1]:3", "1.1.1.1:9"]), |address| async move {
            sleep(Duration::from_millis(u64::from(address.port()) * 100)).await;
            Ok(address.port())
        });
        assert_eq!(connected.await.expect("connected"), 3);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_an_error() {
        let none = first_to_connect(Vec::new(), |_| async { Ok(()) }).await;
        assert_eq!(none.expect_err("nothing to connect to").kind(), io::ErrorKind::NotFound);
    }
}
