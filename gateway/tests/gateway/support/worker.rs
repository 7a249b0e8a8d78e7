//! A blocking worker: one link to the services' port.

use super::gateway::Gateway;
use super::{PATIENCE, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use trunkline_proto::prost::Message;
use trunkline_proto::{Bye, Header, Kind, Offer, Serve, ServeOk, VERSION, decode, encode, encode_message};

/// The flags of a gateway with a services' port.
pub(crate) const WITH_SERVICES: [&str; 2] = ["--services-listen", "127.0.0.1:0"];

/// A frame of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) aux: u16,
    pub(crate) id: u64,
    pub(crate) peer: u64,
    pub(crate) stamp: u64,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Worker {
    stream: TcpStream,
    unread: Vec<u8>,
    pub(crate) ok: ServeOk,
}

/// Where workers connect.
pub(crate) fn services_address(gateway: &Gateway) -> SocketAddr {
    wait_for("it says where workers connect", || {
        let stdout = gateway.stdout();
        let line = stdout.lines().find_map(|line| line.strip_prefix("services on "));
        line.map(|address| address.trim().parse().expect("an address"))
    })
}

/// A SERVE of one service, on a link of this shard, counted from 0.
pub(crate) fn serve(name: &str, service: u32, shard: u32) -> Serve {
    let offers = vec![Offer { service, ..Offer::default() }];
    Serve { version: VERSION, name: name.to_owned(), offers, shard: shard + 1, ..Serve::default() }
}

impl Worker {
    /// Connects and serves.
    pub(crate) fn start(gateway: &Gateway, serve: &Serve) -> Self {
        Worker::try_start(services_address(gateway), serve).unwrap_or_else(|(code, text)| panic!("BYE {code}: {text}"))
    }

    /// The same, or what BYE says.
    pub(crate) fn try_start(address: SocketAddr, serve: &Serve) -> Result<Self, (u16, String)> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect to the services' port");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut worker = Worker { stream, unread: Vec::new(), ok: ServeOk::default() };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Serve, 0, serve);
        worker.write(&bytes);
        let first = worker.recv();
        match first.kind {
            Kind::ServeOk => worker.ok = ServeOk::decode(&first.body[..]).expect("a ServeOk"),
            Kind::Bye => return Err((first.aux, Bye::decode(&first.body[..]).expect("a Bye").text)),
            other => panic!("SERVE was answered with {}", other.name()),
        }
        Ok(worker)
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write to the gateway");
    }

    /// Sends a frame with a long header.
    pub(crate) fn send(&mut self, kind: Kind, flags: u8, aux: u16, id: u64, peer: u64, body: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind, flags, aux, id, peer, stamp: 0 }, body);
        self.write(&bytes);
    }

    pub(crate) fn answer(&mut self, request: &Got, aux: u16, body: &[u8]) {
        self.answer_with(request, 0, aux, body);
    }

    pub(crate) fn answer_with(&mut self, request: &Got, flags: u8, aux: u16, body: &[u8]) {
        self.send(Kind::Answer, flags, aux, request.id, 0, body);
    }

    pub(crate) fn window(&mut self, window: u16) {
        self.send(Kind::Window, 0, window, 0, 0, &[]);
    }

    /// The next frame.
    pub(crate) fn recv(&mut self) -> Got {
        self.recv_within(PATIENCE).expect("a frame of the gateway")
    }

    /// The next request.
    pub(crate) fn request(&mut self) -> Got {
        let got = self.recv();
        assert_eq!(got.kind, Kind::Request, "{got:?}");
        got
    }

    /// The next frame, if one comes in this time; `None` too when the gateway has closed.
    pub(crate) fn recv_within(&mut self, timeout: Duration) -> Option<Got> {
        self.stream.set_read_timeout(Some(timeout)).expect("a read timeout");
        loop {
            let whole = decode(&self.unread, u32::MAX).expect("frames of the gateway");
            if let Some((frame, len)) = whole {
                let kind = frame.known().expect("a kind of the protocol");
                let got = Got {
                    kind,
                    flags: frame.flags,
                    aux: frame.aux,
                    id: frame.id,
                    peer: frame.peer,
                    stamp: frame.stamp,
                    body: frame.body.to_vec(),
                };
                self.unread.drain(..len);
                return Some(got);
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.unread.extend_from_slice(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("read from the gateway: {error}"),
            }
        }
    }
}
