//! The stream of native frames through a WebSocket.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::{Inbound, Outbound};

/// Longest piece that is put into one frame, in bytes: as much as a record of TLS holds.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// What [`crate::Ws`] makes: native frames through a WebSocket, or over the connection as it is where the address was
/// not that of a WebSocket. Both halves of it belong to one task.
pub struct WsStream<S> {
    stream: S,
    websocket: Option<Box<WebSocket>>,
}

impl<S> fmt::Debug for WsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsStream").field("websocket", &self.websocket.is_some()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct WebSocket {
    inbound: Inbound,
    /// What came with the answer to the request, and is not read yet.
    early: Vec<u8>,
    outbound: Outbound,
    /// Frames on their way out: one piece, or answers of a few bytes.
    out: Vec<u8>,
    /// Bytes of them that are written.
    written: usize,
}

impl<S> WsStream<S> {
    pub(super) fn native(stream: S) -> Self {
        WsStream { stream, websocket: None }
    }

    /// `early` came behind the head of the answer.
    pub(super) fn websocket(stream: S, early: Vec<u8>) -> Self {
        WsStream { stream, websocket: Some(Box::new(WebSocket { early, ..WebSocket::default() })) }
    }
}

impl WebSocket {
    /// Writes what is on its way out, and then the answers that are due: so those never wait in a queue.
    fn poll_out<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.out.len() {
                let count = ready!(Pin::new(&mut *stream).poll_write(cx, &self.out[self.written..]))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += count;
            }
            self.out.clear();
            self.written = 0;
            if self.outbound.is_closed() {
                return Poll::Ready(Ok(()));
            }
            if let Some(ping) = self.inbound.ping.take() {
                self.outbound.put_pong(&mut self.out, &ping)?;
            } else if self.inbound.end.is_some() {
                self.outbound.put_close(&mut self.out, self.inbound.end.as_ref())?;
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Pushes answers on their way as far as they go now. An error of writing is left to who writes: what the server
    /// has sent, its reason among it, is still to be read.
    fn answer<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) {
        let is_due = self.inbound.ping.is_some() || self.inbound.end.is_some() || !self.out.is_empty();
        if is_due && let Poll::Ready(Ok(())) = self.poll_out(cx, stream) {
            // A stream with a buffer of its own (TLS) would keep them; it also pushes on with the next flush.
            let _pushed = Pin::new(stream).poll_flush(cx);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let stream = &mut this.stream;
        let Some(websocket) = &mut this.websocket else { return Pin::new(stream).poll_read(cx, buf) };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What could not be written when it was due.
        websocket.answer(cx, stream);
        loop {
            if let Some(end) = &websocket.inbound.end {
                return Poll::Ready(end.outcome());
            }
            let room = buf.initialize_unfilled();
            let count = if websocket.early.is_empty() {
                let mut read = ReadBuf::new(room);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
                read.filled().len()
            } else {
                let count = websocket.early.len().min(room.len());
                room[..count].copy_from_slice(&websocket.early[..count]);
                websocket.early.drain(..count);
                count
            };
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            let native = websocket.inbound.take(&mut room[..count]);
            websocket.answer(cx, stream);
            if native > 0 {
                buf.advance(native);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let stream = &mut this.stream;
        let Some(websocket) = &mut this.websocket else { return Pin::new(stream).poll_write(cx, bytes) };
        ready!(websocket.poll_out(cx, stream))?;
        if websocket.outbound.is_closed() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the WebSocket is closed")));
        }
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        if piece.is_empty() {
            return Poll::Ready(Ok(0));
        }
        websocket.outbound.put(&mut websocket.out, piece)?;
        // It is taken; what does not go now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = websocket.poll_out(cx, stream) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(websocket) = &mut this.websocket {
            ready!(websocket.poll_out(cx, &mut this.stream))?;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(websocket) = &mut this.websocket {
            ready!(websocket.poll_out(cx, &mut this.stream))?;
            if !websocket.outbound.is_closed() {
                let WebSocket { outbound, out, .. } = &mut **websocket;
                outbound.put_close(out, None)?;
                ready!(websocket.poll_out(cx, &mut this.stream))?;
            }
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
