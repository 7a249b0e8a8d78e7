//! The client protocol of Trunkline, version 1: frame layout, incremental decoder, encoder and control messages.
//!
//! This crate works on bytes alone: it does no I/O and reads no clock. A frame is a header of 8 or 32 bytes,
//! big-endian, and a body:
//!
//! ```text
//! offset  size  field
//! 0       4     length   of the whole frame, these 4 bytes included
//! 4       1     kind     see Kind
//! 5       1     flags    see flags
//! 6       2     aux      a small number, by kind
//! ---- long kinds go on with
//! 8       8     id       message or request id
//! 16      8     peer     the other side: a user or a group
//! 24      8     stamp    position given by the server; 0 from clients
//! ```
//!
//! ```
//! use trunkline_proto::{Decoder, FRAME_BYTES_MAX_DEFAULT, Header, Kind, encode, flags};
//!
//! let mut bytes = Vec::new();
//! let header = Header { kind: Kind::Send, flags: flags::ACK, aux: 0, id: 1, peer: 42, stamp: 0 };
//! encode(&mut bytes, &header, b"hello");
//! bytes.extend_from_slice(&[0, 0, 0]); // the beginning of the next frame
//!
//! let mut decoder = Decoder::new(&bytes, FRAME_BYTES_MAX_DEFAULT);
//! let frame = decoder.next().expect("one whole frame")?;
//! assert_eq!((frame.known(), frame.peer, frame.body), (Some(Kind::Send), 42, &b"hello"[..]));
//! assert!(decoder.next().is_none());
//! assert_eq!(decoder.rest(), [0, 0, 0]); // keep it, and append what arrives next
//! # Ok::<(), trunkline_proto::Violation>(())
//! ```
#![forbid(unsafe_code)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod code;
mod control;
mod decode;
mod encode;
mod frame;
#[doc(hidden)]
#[allow(clippy::missing_panics_doc, reason = "a panic is how they tell of a fault")]
pub mod fuzz;
mod kind;
pub mod websocket;

pub use code::{Code, Outcome};
pub use control::{
    Bye, CallHead, Head, Heads, Invite, Login, LoginOk, Offer, Presence, PushHead, PushReport, Serve, ServeOk, Sync,
    SyncOk, UserState, Watch,
};
pub use decode::{Decoder, Violation, decode, frame_len};
pub use encode::{Header, encode, encode_message, encoded_len};
pub use frame::{
    FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT, Frame, SERVICE_USERS, call_flags, flags,
};
pub use kind::{HEADER_LONG, HEADER_SHORT, Kind};
pub use prost;

/// Version of the protocol, as in [`Login::version`].
pub const VERSION: u32 = 1;

/// Longest [`Login::device`] in bytes.
pub const DEVICE_BYTES_MAX: usize = 64;
