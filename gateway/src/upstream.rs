//! Calls to HTTP servers: services whose transport is `http`. All of it runs on the services thread.
//!
//! - [`desk`] decides: which server gets a call, which waits, which is given to another one, what its caller is told.
//!   No I/O and no clock. `service` is what it knows of one service's servers.
//! - `answer` says what an HTTP answer means for a call, `request` what a call is as an HTTP request.
//! - `connections` makes connections, keeps idle ones, and carries out one request on one of them.
//! - `driver` is the loop between the portals, the desk and the connections; `watch` looks up names and checks servers.
//!
//! A connection has one call at a time. A call that was handed to a connection is never given to another server unless
//! that does no harm: [`End::NotSent`](desk::End) says that no byte of it was handed over, and nothing else does.

mod connections;
mod driver;
mod request;
mod watch;

pub(crate) use driver::{Driver, DriverConfig};
pub(crate) use trunkline_core::upstream::{
    Deed, Desk, End, Letter, Parts, Run, RunId, Splitter, answer_bytes_max, status_of_parts,
};
pub(crate) use watch::lookups;

/// What a connection to a server takes: the buffers of HTTP both ways, and those of TLS.
pub(crate) const CONN_BYTES: u64 = 64 << 10;
