//! What the simulation asks of a shard, and gives to one, that no program does. So it needs none of a shard's fields.

use super::shard::Shard;
use crate::directory::Home;
use crate::events::EventsInner;
use crate::portal::InnerEnd;
use trunkline_router_core::presence::{Entry, Presence};

impl Shard {
    /// Gives the shard a portal.
    pub(crate) fn set_portal(&mut self, portal: InnerEnd) {
        self.portal = Some(Box::new(portal));
    }

    /// Has the shard tell of what happens.
    pub(crate) fn set_events(&mut self, events: EventsInner) {
        self.events = Some(Box::new(events));
    }

    /// The sessions of a user, as the shard knows them.
    pub(crate) fn sessions(&self, user: u64) -> &[Entry] {
        self.presence.sessions(user)
    }

    /// Whether the shard acts as the home of a user whenever the node may serve.
    pub(crate) fn acts_as_home(&self, user: u64) -> bool {
        let lives = self.cluster.as_ref().is_some_and(|cluster| cluster.state.life() == self.life);
        lives && self.home(user) == Home::Here && !self.is_unsettled(user)
    }

    /// The user of each session that is in a group, as this shard's part of it has them.
    pub(crate) fn sessions_in(&mut self, group: u64) -> Vec<u64> {
        let (slots, parts) = (&mut self.links.slots, &self.groups.parts);
        let is_in = |slot: &u32| parts.groups_of(*slot).any(|of| of == group);
        (0..slots.high_water()).filter(is_in).map(|slot| slots.at(slot).user).collect()
    }

    /// Connections to other nodes.
    pub(crate) fn node_connections(&self) -> u32 {
        self.mesh.as_ref().map_or(0, |mesh| mesh.connections())
    }

    /// Receive buffers that the shard's ring was given.
    pub(crate) fn recv_buffers(&self) -> usize {
        let limits = &self.links.limits;
        (limits.recv_buffers - limits.buffers_in_bulk() + limits.bulk_buffers()).into()
    }

    /// Nothing is left of calls and workers that are gone.
    pub(crate) fn assert_no_services(&self) {
        if let Some(services) = &self.services {
            services.assert_empty(self.shard);
        }
    }

    /// Nothing is left of connections, users and messages that are gone. Those to other nodes stay.
    pub(crate) fn assert_empty(&self) {
        let (name, shard) = (&self.node, self.shard);
        self.links.assert_empty(shard, self.node_connections());
        self.directory.assert_empty(name, shard);
        assert_eq!(self.mesh_bytes(), 0, "shard {shard}: bytes for other nodes");
        let unacknowledged = (self.inboxes.messages(), self.inboxes.bytes());
        assert_eq!(unacknowledged, (0, 0), "shard {shard}: unacknowledged messages");
        let users = (self.presence.users(), self.presence.session_count());
        assert_eq!(users, (0, 0), "shard {shard}: presence");
        if let Some(desk) = &self.desk {
            desk.assert_empty(shard);
        }
        let groups = &self.groups;
        let left = (groups.homes.len(), groups.interests.len(), groups.parts.len() + groups.joins.len());
        assert_eq!(left, (0, 0, 0), "{name} shard {shard}: homes, interests, parts of groups");
        assert_eq!(self.handovers.departing(), 0, "shard {shard}: departing connections");
    }

    /// Nothing is under way to or from other shards.
    pub(crate) fn assert_nothing_under_way(&self) {
        let shard = self.shard;
        assert_eq!(self.handovers.arriving(), 0, "shard {shard}: arriving connections");
        assert_eq!(self.outgoing.pending_bytes(), 0, "shard {shard}: bytes under way to other shards");
    }
}
