//! WebSocket (RFC 6455) as Trunkline uses it: native frames inside binary messages.
//!
//! There is no I/O and no buffer in here. [`Decoder`] walks over received bytes, wherever they were split, and unmasks
//! them where they lie. [`Inbound`] stands on it: it turns a receive buffer in place into the native frames it brought,
//! for [`decode`](crate::decode) to read. [`seal`] is the way back: a run of native frames becomes binary messages.
//!
//! ```
//! use trunkline_proto::websocket::{Inbound, Opcode, Role, put_frame};
//!
//! let native = [0, 0, 0, 8, 2, 0, 0, 7]; // a PING
//! let mut bytes = Vec::new();
//! put_frame(&mut bytes, Opcode::Binary, true, Some([1, 2, 3, 4]), &native);
//!
//! let mut inbound = Inbound::default();
//! let taken = inbound.take(Role::Server, &mut bytes, |_| {});
//! assert_eq!((&bytes[..taken.native], taken.end), (&native[..], None));
//! assert!(inbound.is_idle());
//! ```

mod bounds;
mod close;
mod decoder;
mod encode;
mod header;
mod inbound;
mod mask;
mod utf8;
mod violation;

pub use bounds::Bounds;
pub use close::{CLOSE_REASON_BYTES_MAX, Close, close_code, put_close};
pub use decoder::{Decoder, Part, Rules, Step};
pub use encode::{MESSAGE_BYTES_MAX, put_control, put_frame, put_messages, seal, sealed_frames};
pub use header::{CONTROL_BYTES_MAX, HEADER_BYTES_MAX, Opcode, Role};
pub use inbound::{Control, End, Inbound, MESSAGE_BYTES_IN_MAX, Taken};
pub use violation::Violation;
