//! What holds for connections before they are sessions, as the configuration has it.

use crate::conn::Conn;
use crate::limits::Placement;
use crate::transport::upgrade;
use std::sync::Arc;

/// The rules of the entrance to one shard.
#[derive(Debug)]
pub(super) struct Entrance {
    upgrade: Arc<upgrade::Rules>,
    tls_required: bool,
    listeners_tls_only: Arc<[bool]>,
    placement: Placement,
}

impl Entrance {
    /// `listeners_tls_only`: of each listener for clients, whether what comes from it has to begin with TLS; empty is
    /// none.
    pub(super) fn new(
        upgrade: Arc<upgrade::Rules>,
        tls_required: bool,
        listeners_tls_only: Arc<[bool]>,
        placement: Placement,
    ) -> Self {
        Entrance { upgrade, tls_required, listeners_tls_only, placement }
    }

    /// Which requests become WebSockets.
    pub(super) fn upgrade(&self) -> &upgrade::Rules {
        &self.upgrade
    }

    /// Whether a connection has to begin with TLS.
    #[inline]
    pub(super) fn needs_tls(&self, conn: &Conn) -> bool {
        conn.needs_tls(self.tls_required)
    }

    /// Whether all that comes from a listener has to begin with TLS.
    pub(super) fn is_tls_only(&self, listener: u16) -> bool {
        self.listeners_tls_only.get(usize::from(listener)) == Some(&true)
    }

    /// Whether guests are sent to the node that is their user's home.
    pub(super) fn sends_guests_away(&self) -> bool {
        self.placement != Placement::Accept
    }
}
