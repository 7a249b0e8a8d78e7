//! Connections that wait for the store: logins for where their device stands, sessions for a page that they asked for.

use super::{Desk, PAGES_MAX, WaitingLogin};
use crate::io::ConnId;

impl Desk {
    /// A login waits for the store, in this slot.
    pub(crate) fn hold_login(&mut self, slot: u32, login: WaitingLogin) {
        let before = self.logins.insert(slot, login);
        debug_assert!(before.is_none(), "a connection logs in once: slot {slot}");
    }

    /// The login in a slot waits no longer: it has waited long enough, or its connection has ended.
    pub(crate) fn take_login(&mut self, slot: u32) -> Option<WaitingLogin> {
        self.logins.remove(&slot)
    }

    /// The login of this connection waits no longer, if it still does: the store has answered.
    pub(crate) fn take_login_of(&mut self, conn: ConnId) -> Option<WaitingLogin> {
        let waits = self.logins.get(&conn.slot).is_some_and(|login| login.generation == conn.generation);
        if waits { self.logins.remove(&conn.slot) } else { None }
    }

    /// Logins that wait.
    pub(crate) fn logins(&self) -> usize {
        self.logins.len()
    }

    /// Whether a connection waits for a page already.
    pub(crate) fn is_syncing(&self, conn: ConnId) -> bool {
        self.syncs.contains(&conn)
    }

    /// Whether one more connection may ask for a page.
    pub(crate) fn has_sync_room(&self) -> bool {
        self.syncs.len() < PAGES_MAX
    }

    /// A connection waits for a page.
    pub(crate) fn begin_sync(&mut self, conn: ConnId) {
        debug_assert!(self.has_sync_room(), "it was looked at before");
        self.syncs.insert(conn);
    }

    /// The page has come, or will not.
    pub(crate) fn end_sync(&mut self, conn: ConnId) {
        self.syncs.remove(&conn);
    }
}
