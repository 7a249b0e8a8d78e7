//! Names of servers, looked up again and again.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::time::sleep;

/// From one look-up of a name to the next; the system's resolver does not tell how long its answer holds.
const LOOKUP_EVERY: Duration = Duration::from_secs(10);
/// The same after one that gave nothing.
const LOOKUP_AGAIN: Duration = Duration::from_secs(2);

/// The address of a host that is none but an address.
pub(super) fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port))
}

/// Looks up a name and tells what it stands for: once, or again and again. The one who is told is to say false when it
/// is to end. A look-up that fails is told as no address.
pub(crate) async fn lookups(host: String, port: u16, again: bool, mut tell: impl FnMut(Vec<SocketAddr>) -> bool) {
    loop {
        // It runs on a thread of its own, of which there are few. So it is awaited however long it takes, and there is
        // one for each name at most.
        let found = tokio::net::lookup_host((host.as_str(), port)).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(found) => found.collect(),
            Err(error) => {
                tracing::warn!(host, %error, "the name of a server cannot be looked up; what it stood for stays");
                Vec::new()
            }
        };
        let found_some = !addresses.is_empty();
        if !tell(addresses) || (found_some && !again) {
            return;
        }
        sleep(if found_some { LOOKUP_EVERY } else { LOOKUP_AGAIN }).await;
    }
}
