//! A client over a WebSocket of tungstenite's.

use super::PATIENCE;
use super::gateway::Gateway;
use super::wire::{Frame, Login, LoginOk};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, Message, WebSocket, client};

/// One connection. Reads and writes fail the test after `PATIENCE`.
pub(crate) struct WebSocketClient<S: Read + Write = TcpStream> {
    pub(crate) socket: WebSocket<S>,
    frames: VecDeque<Frame>,
}

impl WebSocketClient {
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        WebSocketClient::connect_with(gateway, &[])
    }

    /// With these further fields in the request.
    pub(crate) fn connect_with(gateway: &Gateway, fields: &[(&'static str, &str)]) -> Self {
        let address = gateway.client_address();
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        let mut request = format!("ws://{address}/ws").into_client_request().expect("a request");
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        WebSocketClient::over(stream, request)
    }

    pub(crate) fn login(gateway: &Gateway, user: u64) -> Self {
        WebSocketClient::login_with(gateway, &Login::of(user)).0
    }

    pub(crate) fn login_with(gateway: &Gateway, login: &Login) -> (Self, LoginOk) {
        let mut client = WebSocketClient::connect(gateway);
        client.write(&login.frame());
        let login_ok = LoginOk::parse(&client.recv());
        (client, login_ok)
    }
}

impl<S: Read + Write> WebSocketClient<S> {
    /// Over a stream that is there.
    pub(crate) fn over(stream: S, request: impl IntoClientRequest) -> Self {
        let request = request.into_client_request().expect("a request");
        let (socket, _) = match client(request, stream) {
            Ok(upgraded) => upgraded,
            Err(error) => panic!("an upgrade: {error}"),
        };
        WebSocketClient { socket, frames: VecDeque::new() }
    }

    pub(crate) fn write(&mut self, frame: &Frame) {
        self.write_message(Message::binary(frame.encode()));
    }

    pub(crate) fn write_message(&mut self, message: Message) {
        self.socket.send(message).expect("write to the gateway");
    }

    /// The next frame.
    pub(crate) fn recv(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return frame;
            }
            match self.socket.read().expect("a message") {
                Message::Binary(bytes) => self.take_message(&bytes),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    fn take_message(&mut self, bytes: &[u8]) {
        let mut taken = 0;
        while let Some((frame, length)) = Frame::decode(&bytes[taken..]) {
            taken += length;
            self.frames.push_back(frame);
        }
        assert_eq!(taken, bytes.len(), "a message holds whole frames");
    }

    /// The next frame, which must be of this kind.
    pub(crate) fn recv_kind(&mut self, frame_kind: u8) -> Frame {
        let frame = self.recv();
        assert_eq!(frame.kind, frame_kind, "expected kind {frame_kind:#04x}, got {frame:?}");
        frame
    }

    /// The next that comes must be a Close; its code and reason. Behind it the connection must end.
    pub(crate) fn recv_close(&mut self) -> (u16, String) {
        assert_eq!(self.frames.len(), 0, "frames before Close");
        let close = loop {
            match self.socket.read().expect("a Close") {
                Message::Close(Some(frame)) => break (frame.code.into(), frame.reason.as_str().to_owned()),
                Message::Close(None) => break (1005, String::new()),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("expected Close, got {other:?}"),
            }
        };
        match self.socket.read() {
            Err(Error::ConnectionClosed) => close,
            // Who was long in reading finds that the server did not wait for it.
            Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                close
            }
            other => panic!("expected the end, got {other:?}"),
        }
    }
}
