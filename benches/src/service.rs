//! What the services of benches are called.

/// The service that is called, and that pushes come from.
pub(crate) const SERVICE: u16 = 7;
/// The subject that is asked at nats-server.
pub(crate) const SUBJECT: &str = "calls";
