//! Client sockets, and how many of them fit where.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{failure::Failure, ring::os};

/// Connections of one source address. Linux offers about 28,000 ports for each and slows down when they run short.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;
/// Below the ports that Linux gives to those who ask for none.
const FIRST_PORT: u16 = 20_000;
/// Descriptors left to the rest of the process.
const DESCRIPTORS_SPARE: u64 = 256;
/// Sockets opened before they are put into a ring's table together; each takes a descriptor for so long.
pub(crate) const INSTALL_BATCH: u32 = 64;

/// Slots a shard keeps beside those of its connections.
const SHARD_SLOTS_RESERVED: u64 = 64;
/// Share of a shard's slots that its users take on average: hashing spreads them, but not evenly.
const SHARD_FILL: f64 = 0.95;

/// Descriptors this process may have, and so a server it starts: raised to the hard limit.
pub(crate) fn descriptor_limit() -> Result<u64, Failure> {
    os::raise_descriptor_limit().map_err(|error| Failure::system("reading the descriptor limit", error))
}

/// As few shards of a gateway as hold so many connections, when a shard's table is bounded by `limit`.
pub(crate) fn shards_for(connections: u32, limit: u64) -> u32 {
    let slots = limit.min(1 << 20).saturating_sub(SHARD_SLOTS_RESERVED).max(1);
    if u64::from(connections) <= slots {
        return 1;
    }
    // An even number, so that two cores have the same.
    ((f64::from(connections) / (slots as f64 * SHARD_FILL)).ceil() as u32).next_multiple_of(2)
}

/// How many tables of direct descriptors so many connections take, and how many slots each has: the kernel bounds a
/// ring's table by the limit of open files, which is raised to the hard limit here.
pub(crate) fn tables_for(connections: u32) -> Result<(u32, u32), Failure> {
    let limit = descriptor_limit()?;
    let slots_max = limit.min(1 << 20) as u32;
    let tables = connections.div_ceil(slots_max.max(1)).max(1);
    // A ring and its event descriptor each.
    let descriptors_needed = u64::from(tables) * 2 + DESCRIPTORS_SPARE;
    if descriptors_needed > limit {
        return Err(Failure::Setup(format!(
            "{connections} connections need {tables} rings and {descriptors_needed} descriptors, but the limit is \
             {limit}: raise it with `ulimit -n`"
        )));
    }
    Ok((tables, connections.div_ceil(tables).max(1)))
}

/// How a client begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It connects, and no more.
    #[default]
    Plain,
    /// It sends as soon as it is connected, which saves the acknowledgement before its first bytes.
    SpeaksFirst,
    /// It sends its first bytes along with its SYN (TCP Fast Open, RFC 7413).
    FastOpen,
}

/// A socket ready to connect, with a source address that depends on its index. Closing it sends a reset, so that none
/// lingers in TIME_WAIT.
pub(crate) fn to_connect(index: u32, manner: Manner) -> io::Result<Socket> {
    let socket = blank()?;
    if manner == Manner::FastOpen {
        os::fast_open(socket.as_fd())?;
    }
    if manner != Manner::Plain {
        os::delay_first_ack(socket.as_fd())?;
    }
    bind(&socket, index)?;
    Ok(socket)
}

/// Whether clients of this machine may open fast, and servers too without asking for it.
pub(crate) fn can_open_fast() -> Result<(), Failure> {
    /// Clients; servers; servers that do not ask for it.
    const BITS: u32 = 0x1 | 0x2 | 0x400;
    let path = "/proc/sys/net/ipv4/tcp_fastopen";
    let text = fs::read_to_string(path).map_err(|error| Failure::system(&format!("reading {path}"), error))?;
    let value: u32 = text.trim().parse().unwrap_or(0);
    if value & BITS == BITS {
        return Ok(());
    }
    Err(Failure::Setup(format!(
        "--fast-open needs net.ipv4.tcp_fastopen = {}, and it is {value}: set it with `sysctl -w \
         net.ipv4.tcp_fastopen={}`, best in a network namespace",
        BITS,
        value | BITS
    )))
}

/// Binds to a port that is the connection's own, so that connecting need not look for one; or, if somebody has that, to
/// one found by connecting.
fn bind(socket: &Socket, index: u32) -> io::Result<()> {
    let mut address = source(index);
    address.set_port(FIRST_PORT + (index % CONNECTIONS_PER_SOURCE) as u16);
    match socket.bind(&address.into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            os::set_bind_address_no_port(socket.as_fd())?;
            socket.bind(&source(index).into())
        }
        bound => bound,
    }
}

/// A socket with a port of its own at once.
pub(crate) fn with_port(index: u32) -> io::Result<Socket> {
    let socket = blank()?;
    socket.bind(&source(index).into())?;
    Ok(socket)
}

/// A socket without an address.
pub(crate) fn blank() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// 127.0.0.2 and up; 127.0.0.1 is left to the servers.
fn source(index: u32) -> SocketAddrV4 {
    let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + 1 + index / CONNECTIONS_PER_SOURCE);
    SocketAddrV4::new(address, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_has_as_few_shards_as_hold_its_connections() {
        assert_eq!(shards_for(19_936, 20_000), 1);
        assert_eq!(shards_for(19_937, 20_000), 2);
        assert_eq!(shards_for(40_000, 20_000), 4);
        assert_eq!(shards_for(1_000_000, 20_000), 54);
        assert_eq!(shards_for(1_000_000, 2_000_000), 1);
    }
}
