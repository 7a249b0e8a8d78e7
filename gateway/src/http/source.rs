//! Where the answers come from that every router gives too: from the cluster, or from the shards of a node that is
//! alone.

use super::api::{ANSWER_TIMEOUT, ask};
use super::{Node, NodeState};
use crate::bounds::PREVIEW_WEIGHT_MAX;
use crate::clock::now_ms;
use crate::cluster::{ClusterReader, MESH_PROTOCOL, MESH_PROTOCOL_OLDEST};
use crate::control::{Control, SessionInfo};
use futures_channel::oneshot;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use trunkline_router::api::{PeerLinks, Picture};
use trunkline_router::hash::home_shard;
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
            silent: String::new(),
        }))
    }

    /// The sessions of a user on a node that is alone.
    async fn own_entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        let asked = ask(self, user, |answer| Control::User { user, answer }).await;
        let (shard, sessions) = asked.map_err(|problem| problem.detail().to_owned())?;
        Ok(self.entries_at(shard, sessions))
    }

    /// Sessions at a shard of this node, as the presence store would have them.
    fn entries_at(&self, shard: u32, sessions: Vec<SessionInfo>) -> Vec<PresenceEntry> {
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
        entries.collect()
    }

    /// The sessions of users on a node that is alone; `None` of those whose shard does not tell. One question for each
    /// shard.
    async fn own_entries_of(&self, users: &[u64]) -> Vec<Option<Vec<PresenceEntry>>> {
        let mut entries = vec![None; users.len()];
        let Some(shards) = self.shards.get() else { return entries };
        let mut places: Vec<Vec<usize>> = vec![Vec::new(); shards.ports.len()];
        for (place, user) in users.iter().enumerate() {
            places[home_shard(*user, shards.ports.len() as u32) as usize].push(place);
        }
        let mut waiting = Vec::new();
        for (shard, places) in (0..).zip(places).filter(|(_, places)| !places.is_empty()) {
            let (answer, answered) = oneshot::channel();
            let users = places.iter().map(|place| users[*place]).collect();
            // What has no room for the question does not tell.
            if shards.ports[shard as usize].send(Control::Users { users, answer }).is_ok() {
                waiting.push((shard, places, answered));
            }
        }
        let until = Instant::now() + ANSWER_TIMEOUT;
        for (shard, places, answered) in waiting {
            let Ok(Ok(sessions)) = timeout_at(until, answered).await else { continue };
            for (place, sessions) in places.into_iter().zip(sessions) {
                entries[place] = Some(self.entries_at(shard, sessions));
            }
        }
        entries
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

    async fn entries_of(&self, users: &[u64]) -> Vec<Option<Vec<PresenceEntry>>> {
        match self.reader() {
            Ok(Some(cluster)) => cluster.entries_of(users).await,
            Ok(None) => self.own_entries_of(users).await,
            Err(_) => vec![None; users.len()],
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
