//! The node's place in the ring: taken when its shards run, given up before it drains, and taken again if that is
//! called off.

use super::task::Order;
use crate::control::ControlPort;
use crate::metrics::ShardStats;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use trunkline_router::membership::NodeState;

/// How many questions to Redis a step may take: a renewal behind one under way, a poll behind one under way.
const ROUND_TRIPS_MAX: u32 = 3;

/// Takes and gives up the node's place in the ring. Clones share it.
#[derive(Clone, Debug)]
pub struct Place {
    orders: mpsc::Sender<Order>,
    round_trip_max: Duration,
}

impl Place {
    pub(super) fn new(orders: mpsc::Sender<Order>, round_trip_max: Duration) -> Self {
        Place { orders, round_trip_max }
    }

    /// Another weight in the ring, 1 to 65535, told to the others with the next renewal; it lasts as long as the
    /// process, or until the next.
    pub async fn weigh(&self, weight: u32) {
        self.order(Order::Weigh { weight }).await;
    }

    /// Another secret of the cluster is proved to others, with this mark: told to them with the next renewal.
    pub async fn remark(&self, mark: String) {
        self.order(Order::Remark { mark }).await;
    }

    /// The shards run: into the ring, as soon as other nodes can dial this one. See [`Place::take`] for when this
    /// returns.
    pub async fn serve(&self, ports: Vec<ControlPort>, stats: Vec<Arc<ShardStats>>) {
        self.order(Order::Serve { ports, stats }).await;
        self.take().await;
    }

    /// Into the ring. Returns when every shard has been told a view in which this node is active, so that it knows the
    /// homes of users; or after as long as that may take. It goes on being tried then. For a node that others cannot
    /// dial it does not return.
    pub async fn take(&self) {
        // The sender is dropped when the node leaves, or when somebody else asks.
        let (done, admitted) = oneshot::channel();
        self.order(Order::Admit { done }).await;
        if admitted.await.is_err() {
            return;
        }
        if !self.becomes(NodeState::Active).await {
            tracing::warn!("Redis could not be told in time that this node is active; it is tried again each second");
        }
    }

    /// Out of the ring. Returns when every shard has been told a view in which this node is draining, so that it knows
    /// the next homes of its users; or when Redis fails, or after as long as that may take.
    pub async fn give_up(&self) {
        if !self.becomes(NodeState::Draining).await {
            tracing::warn!(
                "Redis could not be told that this node drains, so its own users are sent nowhere in particular"
            );
        }
    }

    async fn becomes(&self, state: NodeState) -> bool {
        let (done, told) = oneshot::channel();
        self.order(Order::Become { state, done }).await;
        // The sender is dropped when it cannot be, or when another order takes the place of this one.
        matches!(timeout(ROUND_TRIPS_MAX * self.round_trip_max, told).await, Ok(Ok(())))
    }

    pub(super) async fn order(&self, order: Order) {
        // The task ends with the order to leave, and has no use for others then.
        let _ = self.orders.send(order).await;
    }
}
