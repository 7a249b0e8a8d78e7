//! Bounds of the node that no setting changes, and that the memory budget and the start-up checks count with.

/// Connections the HTTP API serves at a time; a further one gets the place of one without a request. Each has its place
/// in the memory budget.
pub const HTTP_CONNECTIONS_MAX: u32 = 64;

/// The largest sum of weights a preview of the ring may come to. A router takes any; here it has its place in the
/// memory budget.
pub const PREVIEW_WEIGHT_MAX: u32 = 1_024;
