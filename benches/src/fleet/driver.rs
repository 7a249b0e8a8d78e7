//! What the owner of a fleet does with its connections.

use std::{io, net::SocketAddrV4};

use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Frame, decode};

use crate::failure::Failure;

/// What a connection does with bytes that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// Nothing: they wait in the kernel.
    Nothing,
    /// Receive until one whole frame has come, then nothing is armed any more.
    OneFrame,
    /// Receive on and on.
    Always,
}

/// How a connection ended that the fleet did not end itself.
#[derive(Debug)]
pub(crate) enum End {
    /// It never was one.
    NotConnected { target: SocketAddrV4, error: io::Error },
    /// The server closed it.
    Closed,
    /// It broke.
    Broken(io::Error),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::NotConnected { target, error } => write!(f, "cannot connect to {target}: {error}"),
            End::Closed => f.write_str("the server closed it"),
            End::Broken(error) => error.fmt(f),
        }
    }
}

/// What a driver made of received bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Bytes of whole frames; the rest is kept until more has come.
    pub(crate) bytes: usize,
    /// How many frames they were.
    pub(crate) frames: usize,
}

/// What the owner of a fleet does with it.
pub(crate) trait Driver {
    /// A connection is there. What is appended to `out` is sent on it.
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure>;

    /// A frame has come; `now_ns` is when its buffer was taken. What is appended to `out` is sent on the same
    /// connection, in one send with the answers to all frames of that buffer.
    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure>;

    /// The failure that a connection's unexpected end is.
    fn lost(&mut self, connection: u32, how: &str) -> Failure;

    /// Bytes have come, from the start of a frame on. The default takes them for frames of Trunkline's protocol.
    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        take_frames(self, connection, bytes, now_ns, out)
    }

    /// A connection has ended, or could not be made. Without an error the run goes on, and its slot is closed.
    fn ended(&mut self, connection: u32, end: End) -> Result<(), Failure> {
        match end {
            End::NotConnected { target, error } => Err(Failure::Connect { target: target.to_string(), error }),
            end => Err(self.lost(connection, &end.to_string())),
        }
    }

    /// The slot of a connection that ended or was cut is empty: it can be opened again.
    fn freed(&mut self, _connection: u32) {}
}

/// Hands frames of Trunkline's protocol to a driver, one by one.
pub(crate) fn take_frames<D: Driver + ?Sized>(
    driver: &mut D,
    connection: u32,
    bytes: &[u8],
    now_ns: u64,
    out: &mut Vec<u8>,
) -> Result<Taken, Failure> {
    let mut taken = Taken { bytes: 0, frames: 0 };
    loop {
        match decode(&bytes[taken.bytes..], FRAME_BYTES_MAX_LIMIT) {
            Ok(Some((frame, consumed))) => {
                driver.frame(connection, &frame, now_ns, out)?;
                taken.frames += 1;
                taken.bytes += consumed;
            }
            Ok(None) => return Ok(taken),
            Err(violation) => {
                return Err(driver.lost(connection, &format!("the server sent a malformed frame: {violation}")));
            }
        }
    }
}
