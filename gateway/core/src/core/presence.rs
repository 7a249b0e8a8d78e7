//! What the control thread asks of a shard about its sessions. Without a cluster only those of users are asked for.

use super::shard::Shard;
use crate::conn::Phase;
use crate::control::{SessionInfo, SessionsList, SessionsPage};
use crate::directory::is_remote;
use crate::presence_log::PresenceWriter;
use crate::reason::CloseReason;
use trunkline_router_core::presence::{Entry, Presence};

/// Slots looked at for one page, so that a table with few sessions in it holds no turn up.
const PAGE_SLOTS_MAX: u32 = 4_096;

impl Shard {
    /// The sessions of a user whose home is this shard.
    pub(super) fn described_sessions(&self, user: u64) -> Vec<SessionInfo> {
        let sessions = self.presence.sessions(user).iter().map(|entry| SessionInfo {
            device: entry.device().to_owned(),
            class: entry.class().to_owned(),
            session: entry.session,
            since: entry.since_s,
        });
        sessions.collect()
    }

    /// Tells of up to `max` sessions again, from a slot on. Those that do not fit the queue now are for the next page.
    pub(crate) fn sessions_page(&mut self, from_slot: u32, max: usize) -> SessionsPage {
        self.page(from_slot, max, |log, user, entry| log.again(user, entry))
    }

    /// Lists up to `max` sessions, from a slot on, without telling of them.
    pub(crate) fn sessions_list(&mut self, from_slot: u32, max: usize) -> SessionsList {
        let mut sessions = Vec::new();
        let page = self.page(from_slot, max, |log, user, entry| {
            sessions.push(log.described(user, entry));
            true
        });
        SessionsList { sessions, next_slot: page.next_slot }
    }

    /// Goes through up to `max` sessions from a slot on, until `each` says that it takes no more.
    fn page(
        &mut self,
        from_slot: u32,
        max: usize,
        mut each: impl FnMut(&mut PresenceWriter, u64, &Entry) -> bool,
    ) -> SessionsPage {
        let Some(log) = &mut self.presence_log else { return SessionsPage { sessions: 0, next_slot: None } };
        let high_water = self.links.slots.high_water();
        let end = high_water.min(from_slot.saturating_add(PAGE_SLOTS_MAX));
        let mut sessions = 0;
        for slot in from_slot..end {
            let conn = self.links.slots.at(slot);
            if conn.phase != Phase::Open {
                continue;
            }
            let user = conn.user;
            let Some(entry) = self.presence.sessions(user).iter().find(|entry| entry.slot == slot) else { continue };
            if sessions == max || !each(log, user, entry) {
                return SessionsPage { sessions, next_slot: Some(slot) };
            }
            sessions += 1;
        }
        SessionsPage { sessions, next_slot: (end < high_water).then_some(end) }
    }

    /// Tells of these sessions again, as far as they are still there. What does not fit the queue is found missing
    /// again.
    pub(crate) fn tell_again(&mut self, sessions: &[(u64, u64)]) {
        let Some(log) = &mut self.presence_log else { return };
        for (user, session) in sessions {
            let mut entries = self.presence.sessions(*user).iter();
            let entry = entries.find(|entry| entry.session == *session && !is_remote(entry.slot));
            if let Some(entry) = entry
                && !log.again(*user, entry)
            {
                return;
            }
        }
    }

    /// Gives a session a version above `above`, if it is still there.
    pub(crate) fn outbid(&mut self, user: u64, session: u64, above: u64) {
        let wall_ms = self.now.wall_ms;
        let mut sessions = self.presence.sessions(user).iter();
        let entry = sessions.find(|entry| entry.session == session && !is_remote(entry.slot));
        if let (Some(log), Some(entry)) = (&mut self.presence_log, entry)
            && !log.outbid(wall_ms, user, entry, above)
        {
            tracing::warn!(
                user,
                session,
                above,
                "presence of this session cannot be written: what is stored is from the future"
            );
        }
    }

    /// Ends this very session, if it is still there.
    pub(crate) fn end_session(&mut self, user: u64, session: u64, reason: CloseReason) {
        let mut sessions = self.presence.sessions(user).iter();
        let entry = sessions.find(|entry| entry.session == session && !is_remote(entry.slot));
        if let Some(slot) = entry.map(|entry| entry.slot) {
            self.close(slot, reason);
        }
    }
}
