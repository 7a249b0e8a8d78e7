//! Where the answers come from that every router gives too: from the cluster, or from the shards of a node that is
//! alone.

use super::api::ask;
use super::{Node, NodeState, PREVIEW_WEIGHT_MAX};
use crate::clock::now_ms;
use crate::cluster::{ClusterReader, MESH_PROTOCOL, MESH_PROTOCOL_OLDEST};
use crate::control::Control;
use std::sync::Arc;
use trunkline_router::api::{PeerLinks, Picture};
use trunkline_router::http::Source;
use trunkline_router::membership::{self, NodeRecord, View};
use trunkline_router::redis::PresenceEntry;

/// A node that is alone takes no lease, so it has no number for it.
const INCARNATION_ALONE: u64 = 0;

impl Node {
    /// The cluster; `None` for a node that is alone.
    fn reader(&self) -> Result<Option<&ClusterReader>, String> {
        match self.cluster.get() {
            None if self.joins => Err("the node has not joined its cluster yet; try again in a moment".to_owned()),
            reader => Ok(reader),
        }
    }

    /// The view of a node that is alone.
    fn alone(&self) -> Result<View, String> {
        let state = match self.state() {
            NodeState::Starting => return Err("the node is starting; try again in a moment".to_owned()),
            NodeState::Running => membership::NodeState::Active,
            NodeState::Draining => membership::NodeState::Draining,
        };
        Ok(View::alone(NodeRecord {
            name: self.name.clone(),
            incarnation: INCARNATION_ALONE,
            state,
            weight: 1,
            shards: self.stats().len() as u32,
            mesh: String::new(),
            advertise: self.listen.first().map(ToString::to_string).unwrap_or_default(),
            http: self.http.to_string(),
            protocol: MESH_PROTOCOL,
            connections: self.sum(|stats| stats.open.get()),
            users: self.sum(|stats| stats.users.get()),
            started_ms: self.started_ms,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: MESH_PROTOCOL_OLDEST,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: self.https.get().is_some(),
            turns: 0,
            view: 0,
        }))
    }

    /// The sessions of a user on a node that is alone.
    async fn own_entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        let asked = ask(self, user, |answer| Control::User { user, answer }).await;
        let (shard, sessions) = asked.map_err(|problem| problem.detail().to_owned())?;
        let node: Arc<str> = self.name.as_str().into();
        let entries = sessions.into_iter().map(|session| PresenceEntry {
            device: session.device.into(),
            node: node.clone(),
            incarnation: INCARNATION_ALONE,
            shard,
            session: session.session,
            since_ms: u64::from(session.since) * 1_000,
            class: session.class.into(),
            version: 0,
        });
        Ok(entries.collect())
    }
}

impl Source for Node {
    fn picture(&self) -> Result<Picture, String> {
        match self.reader()? {
            Some(cluster) => cluster.picture(now_ms()),
            None => Ok(Picture { view: Arc::new(self.alone()?), age_ms: 0, degraded: false }),
        }
    }

    async fn entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        match self.reader()? {
            Some(cluster) => cluster.entries(user).await,
            None => self.own_entries(user).await,
        }
    }

    fn reachable(&self, node: &str) -> Option<bool> {
        self.cluster.get()?.reachable(node)
    }

    fn links(&self) -> Option<Vec<PeerLinks>> {
        Some(self.cluster.get()?.state().peers(now_ms()))
    }

    fn preview_weight_max(&self) -> u32 {
        PREVIEW_WEIGHT_MAX
    }
}
