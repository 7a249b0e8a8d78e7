//! A blocking client.

use super::PATIENCE;
use super::gateway::Gateway;
use super::wire::{self, Frame, Login, LoginOk, flag, kind};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// One connection. Reads and writes fail the test after `PATIENCE`.
pub(crate) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
    frames: VecDeque<Frame>,
    next_id: u64,
    next_ping: u16,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Frame(Frame),
    /// The server closed the connection, in order or with a reset.
    Closed,
    TimedOut,
}

impl Client {
    /// Connects, with Nagle's algorithm off so that a write is a segment.
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        Client::connect_to(gateway.client_address())
    }

    pub(crate) fn connect_to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        Client::over(stream)
    }

    /// Connects to a gateway that may not be there.
    pub(crate) fn try_connect(address: SocketAddr) -> Option<Self> {
        TcpStream::connect_timeout(&address, PATIENCE).ok().map(Client::over)
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        Client { stream, unread: Vec::new(), frames: VecDeque::new(), next_id: 1, next_ping: 1 }
    }

    /// Connects and logs in.
    pub(crate) fn login(gateway: &Gateway, user: u64) -> Self {
        Client::login_with(gateway, &Login::of(user)).0
    }

    pub(crate) fn login_with(gateway: &Gateway, login: &Login) -> (Self, LoginOk) {
        let mut client = Client::connect(gateway);
        client.write(&login.frame());
        let login_ok = client.expect_login_ok();
        (client, login_ok)
    }

    /// A client for which the next frame must be LOGIN_OK.
    pub(crate) fn expect_login_ok(&mut self) -> LoginOk {
        LoginOk::parse(&self.recv())
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn write(&mut self, frame: &Frame) {
        self.write_bytes(&frame.encode());
    }

    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write to the gateway");
    }

    /// Writes what the server may no longer want to read: it may have closed the connection by now.
    pub(crate) fn write_while_open(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            assert!(
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "write to the gateway: {error}"
            );
        }
    }

    /// Sends a message with a fresh id, which it returns.
    pub(crate) fn send(&mut self, peer: u64, flags: u8, body: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.write(&wire::send(id, peer, flags, body));
        id
    }

    /// `send` on a connection the server may have closed by now.
    pub(crate) fn send_while_open(&mut self, peer: u64, flags: u8, body: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.write_while_open(&wire::send(id, peer, flags, body).encode());
        id
    }

    /// `ack` on a connection the server may have closed by now.
    pub(crate) fn ack_while_open(&mut self, deliver: &Frame) {
        self.write_while_open(&wire::ack(deliver).encode());
    }

    pub(crate) fn ack(&mut self, deliver: &Frame) {
        self.write(&wire::ack(deliver));
    }

    /// The next frame, the end of the connection, or neither within `timeout`.
    pub(crate) fn read_event(&mut self, timeout: Duration) -> Event {
        self.stream.set_read_timeout(Some(timeout)).expect("a read timeout");
        self.next_event()
    }

    /// What is there now; `Event::TimedOut` when nothing is.
    pub(crate) fn poll_event(&mut self) -> Event {
        self.stream.set_nonblocking(true).expect("a non-blocking socket");
        let event = self.next_event();
        self.stream.set_nonblocking(false).expect("a blocking socket");
        event
    }

    fn next_event(&mut self) -> Event {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Event::Frame(frame);
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.unread.is_empty(), "closed within a frame: {:?}", self.unread);
                    return Event::Closed;
                }
                Ok(length) => self.take_frames(&buffer[..length]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Event::TimedOut,
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return Event::Closed,
                    ErrorKind::Interrupted => {}
                    _ => panic!("read from the gateway: {error}"),
                },
            }
        }
    }

    fn take_frames(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some((frame, length)) = Frame::decode(&self.unread[taken..]) {
            taken += length;
            self.frames.push_back(frame);
        }
        self.unread.drain(..taken);
    }

    /// The next frame.
    pub(crate) fn recv(&mut self) -> Frame {
        match self.read_event(PATIENCE) {
            Event::Frame(frame) => frame,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    /// The next frame, which must be of this kind.
    pub(crate) fn recv_kind(&mut self, frame_kind: u8) -> Frame {
        let frame = self.recv();
        assert_eq!(frame.kind, frame_kind, "expected kind {frame_kind:#04x}, got {frame:?}");
        frame
    }

    /// The next frame, which must be a DELIVER.
    pub(crate) fn recv_deliver(&mut self) -> Frame {
        self.recv_kind(kind::DELIVER)
    }

    /// The next frame must be the SENT of this message.
    pub(crate) fn expect_sent(&mut self, id: u64, peer: u64, outcome: u16) {
        let sent = self.recv_kind(kind::SENT);
        assert_eq!((sent.id, sent.peer, sent.aux), (id, peer, outcome), "{sent:?}");
        assert!(sent.body.is_empty(), "{sent:?}");
    }

    /// The next frame must be an ERROR with this code, id and peer, and a text for a person.
    pub(crate) fn expect_error(&mut self, code: u16, id: u64, peer: u64) {
        let error = self.recv_kind(kind::ERROR);
        assert_eq!((error.aux, error.id, error.peer), (code, id, peer), "{error:?}");
        let text = std::str::from_utf8(&error.body).expect("the body of an ERROR is UTF-8");
        assert!(!text.is_empty(), "{error:?}");
    }

    /// The next frame must be an ERROR with this code that no message caused; its text.
    pub(crate) fn recv_error_text(&mut self, code: u16) -> String {
        let error = self.recv_kind(kind::ERROR);
        assert_eq!((error.aux, error.id, error.peer), (code, 0, 0), "{error:?}");
        String::from_utf8(error.body).expect("the body of an ERROR is UTF-8")
    }

    /// The next frame must be a BYE with this reason, and nothing may come after it; its text.
    pub(crate) fn recv_bye_text(&mut self, reason: u16) -> String {
        let bye = self.recv_kind(kind::BYE);
        let text = wire::bye_text(&bye);
        assert_eq!(bye.aux, reason, "{text}");
        self.expect_closed();
        text
    }

    /// The next frame must be a BYE with this reason, and nothing may come after it.
    pub(crate) fn expect_bye(&mut self, reason: u16) {
        let bye = self.recv_kind(kind::BYE);
        assert_eq!(bye.aux, reason, "{}", wire::bye_text(&bye));
        wire::bye_text(&bye);
        self.expect_closed();
    }

    /// The server must close without another frame.
    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.read_event(PATIENCE), Event::Closed);
    }

    /// Everything until the server closes.
    pub(crate) fn recv_until_closed(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            match self.read_event(PATIENCE) {
                Event::Frame(frame) => frames.push(frame),
                Event::Closed => return frames,
                Event::TimedOut => panic!("not closed; the last frame was {:?}", frames.last()),
            }
        }
    }

    /// Sends a PING and expects nothing before its PONG: so the server has read all that was sent, and had nothing to
    /// say about it.
    pub(crate) fn ping(&mut self) {
        let before = self.recv_until_pong();
        assert!(before.is_empty(), "before the PONG came {before:?}");
    }

    /// Sends a PING and returns what comes before its PONG.
    pub(crate) fn recv_until_pong(&mut self) -> Vec<Frame> {
        let aux = self.next_ping;
        self.next_ping = self.next_ping.wrapping_add(1);
        self.write(&wire::ping(aux));
        let mut before = Vec::new();
        loop {
            let frame = self.recv();
            if frame.kind == kind::PONG && frame.aux == aux {
                return before;
            }
            before.push(frame);
        }
    }

    /// Sends a message without ACK to `peer`, which must receive it next. What was sent to `peer` on the same way has
    /// arrived before.
    pub(crate) fn send_barrier(&mut self, peer: &mut Client, user: u64) {
        let id = self.send(user, 0, b"barrier");
        let deliver = peer.recv_deliver();
        assert_eq!((deliver.id, deliver.body.as_slice()), (id, b"barrier".as_slice()));
    }

    /// Sends a message with ACK that `peer` receives and acknowledges, and waits for its SENT.
    pub(crate) fn exchange(&mut self, peer: &mut Client, user: u64, body: &[u8]) {
        let id = self.send(user, flag::ACK, body);
        let deliver = peer.recv_deliver();
        assert_eq!((deliver.id, deliver.body.as_slice()), (id, body));
        peer.ack(&deliver);
        self.expect_sent(id, user, wire::outcome::DELIVERED);
    }

    /// No more will be written; reading goes on.
    pub(crate) fn shutdown_write(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shut down the writing side");
    }

    /// `shutdown_write` on a connection the server may have closed by now.
    pub(crate) fn shutdown_write_while_open(&self) {
        if let Err(error) = self.stream.shutdown(Shutdown::Write) {
            assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        }
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        let socket = socket2::Socket::from(self.stream);
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    }
}
