//! A call on its way to an HTTP server.

use bytes::Bytes;
use trunkline_proto::CallHead;

/// What a call is, for the server that gets it.
#[derive(Clone, Debug)]
pub struct Letter {
    pub service: u16,
    pub user: u64,
    /// The caller's id for it.
    pub id: u64,
    pub head: CallHead,
    pub body: Bytes,
    /// Another server may have it already.
    pub again: bool,
}
