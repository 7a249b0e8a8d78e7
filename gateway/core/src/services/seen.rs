//! Services and their workers as an operator sees them, and what an operator says of a worker.

use trunkline_router_core::Policy;

/// What one shard knows of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSeen {
    /// Its number.
    pub service: u16,
    /// Its name, empty where nothing is said of it.
    pub name: String,
    /// How a worker is picked.
    pub policy: Policy,
    /// Whether HTTP servers take its calls.
    pub is_http: bool,
    /// Calls that wait at the shard for a worker with room.
    pub waiting: usize,
    /// Workers with links to the shard.
    pub instances: Vec<InstanceSeen>,
    /// Other nodes with workers of it, and what those weigh together.
    pub nodes: Vec<(String, u64)>,
}

/// What one shard knows of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceSeen {
    /// Its name.
    pub name: String,
    /// The weight by which it is picked.
    pub weight: u32,
    /// Whether it takes calls only while no other does.
    pub backup: bool,
    /// Its links to the shard.
    pub links: usize,
    /// Calls that it takes at once on them.
    pub window: u32,
    /// Calls that it has.
    pub calls: u32,
    /// An operator has said that it gets no more.
    pub drained: bool,
    /// It has failed lately and is left alone.
    pub failed: bool,
}

/// What an operator says of a worker. It holds until its last link to the shard has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceChange {
    /// Whether it gets no more calls.
    pub drained: Option<bool>,
    /// Its weight, whatever it says itself.
    pub weight: Option<u32>,
}
