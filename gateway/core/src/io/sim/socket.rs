//! One TCP connection, both ends.

use std::collections::VecDeque;
use std::net::IpAddr;

/// The address of a host, by its number.
pub(crate) fn host_address(host: usize) -> IpAddr {
    IpAddr::from([10, 0, (host >> 8) as u8, host as u8])
}

/// What travels over the network.
#[derive(Debug)]
pub(crate) enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// What a read of the server would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Bytes,
    Reset,
    End,
}

/// A TCP connection of a ring, the "server", with a simulated client. "Inbound" is towards the server.
///
/// A connection between two rings is two of these, each the client of the other: see `peers`.
#[derive(Debug)]
pub(crate) struct Socket {
    /// That of the server.
    pub host: usize,
    /// Arrived at the server and not read.
    pub inbound: VecDeque<u8>,
    pub inbound_end: bool,
    /// The connection is broken, as the server's kernel knows; the first read is told so.
    pub reset: bool,
    pub reset_told: bool,
    /// The server has shut its write side.
    pub shut: bool,
    /// No descriptor of the server is left.
    pub server_gone: bool,
    /// The server's last close was one with a reset.
    pub drop_untaken: bool,
    /// Taken from the server and not read by the client; never above `window`.
    pub unread: usize,
    pub window: usize,
    /// Arrived at the client and not read.
    pub arrived: VecDeque<u8>,
    pub arrived_end: bool,
    pub arrived_reset: bool,
    /// The client has closed or reset its end.
    pub client_gone: bool,
    /// Nothing may overtake what was sent before it.
    pub inbound_due_us: u64,
    pub outbound_due_us: u64,
    /// Ring and slot of each descriptor.
    pub holders: Vec<(usize, u32)>,
    /// The other end, when that is a ring too.
    pub peer: Option<Peer>,
}

/// What a ring's end of a connection knows of the ring at the other end.
#[derive(Debug)]
pub(crate) struct Peer {
    pub socket: usize,
    pub host: usize,
    /// Segments this end has sent and the network holds back.
    pub held: VecDeque<Segment>,
}

impl Socket {
    pub(crate) fn new(host: usize, window: usize) -> Self {
        Socket {
            host,
            inbound: VecDeque::new(),
            inbound_end: false,
            reset: false,
            reset_told: false,
            shut: false,
            server_gone: false,
            drop_untaken: false,
            unread: 0,
            window,
            arrived: VecDeque::new(),
            arrived_end: false,
            arrived_reset: false,
            client_gone: false,
            inbound_due_us: 0,
            outbound_due_us: 0,
            holders: Vec::new(),
            peer: None,
        }
    }

    pub(crate) fn found(&self) -> Found {
        if !self.inbound.is_empty() {
            Found::Bytes
        } else if self.reset && !self.reset_told {
            Found::Reset
        } else if self.inbound_end || self.reset {
            Found::End
        } else {
            Found::Nothing
        }
    }

    /// Bytes the connection would take now.
    pub(crate) fn room(&self) -> usize {
        self.window - self.unread
    }
}
