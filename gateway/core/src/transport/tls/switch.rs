//! Where all shards find the certificates in force, and where others take their place while the node runs.

use super::acceptor::{Acceptor, ClientCa};
use super::certificates::Certificates;
use super::tickets::TicketSecret;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The [`Acceptor`] in force. Replacing it is for the control thread; shards look through a [`TlsReader`] each and
/// never wait for it.
#[derive(Debug)]
pub struct TlsSwitch {
    /// Grows with each replacement.
    version: AtomicU64,
    acceptor: Mutex<Arc<Acceptor>>,
    /// What stays when certificates change, so that tickets do.
    tickets: Mutex<TicketSecret>,
}

impl TlsSwitch {
    /// Begins with these.
    ///
    /// # Errors
    /// When they cannot be used together, and why.
    pub fn new(
        certificates: Certificates,
        client_ca: Option<&ClientCa>,
        tickets: TicketSecret,
    ) -> Result<Arc<Self>, String> {
        let acceptor = Acceptor::new(certificates, client_ca, &tickets)?;
        let (acceptor, tickets) = (Mutex::new(Arc::new(acceptor)), Mutex::new(tickets));
        Ok(Arc::new(TlsSwitch { version: AtomicU64::new(0), acceptor, tickets }))
    }

    /// Puts others in their place, for every handshake from now on. Connections that are there go on with the keys they
    /// have. Tickets stay good, unless they are to follow from another secret.
    ///
    /// # Errors
    /// When they cannot be used together, and why; those in force stay.
    pub fn replace(
        &self,
        certificates: Certificates,
        client_ca: Option<&ClientCa>,
        tickets: Option<TicketSecret>,
    ) -> Result<(), String> {
        let mut kept = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let tickets = tickets.unwrap_or_else(|| kept.clone());
        let acceptor = Arc::new(Acceptor::new(certificates, client_ca, &tickets)?);
        *kept = tickets;
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = acceptor;
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The one in force.
    pub fn current(&self) -> Arc<Acceptor> {
        self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A shard's own view of it.
    pub fn reader(self: &Arc<Self>) -> TlsReader {
        // The version first: at worst the same one is taken once more.
        let version = self.version.load(Ordering::Acquire);
        TlsReader { acceptor: self.current(), version, switch: self.clone() }
    }
}

/// A shard's view of the [`Acceptor`] in force.
#[derive(Debug)]
pub struct TlsReader {
    switch: Arc<TlsSwitch>,
    version: u64,
    acceptor: Arc<Acceptor>,
}

impl TlsReader {
    /// The one in force; for the moment in which it is being replaced, still the one before.
    pub fn get(&mut self) -> &Acceptor {
        let version = self.switch.version.load(Ordering::Acquire);
        if version != self.version
            && let Ok(current) = self.switch.acceptor.try_lock()
        {
            self.acceptor = current.clone();
            self.version = version;
        }
        &self.acceptor
    }
}
