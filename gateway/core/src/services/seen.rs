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
    /// The servers of it that the shard dials.
    pub servers: Vec<ServerSeen>,
    /// Other nodes with workers of it, and what those weigh together.
    pub nodes: Vec<(String, u64)>,
}

/// Where a link to a server that is dialed stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerState {
    /// It serves.
    Serving,
    /// It has not been reached yet, and has not failed.
    Connecting,
    /// It was tried, and did not serve or serves no more; it is tried again.
    Failing,
    /// Nobody knows an address for its name yet.
    Unknown,
    /// It was configured not to be dialed.
    Down,
}

impl ServerState {
    /// All of them, in their order.
    pub const ALL: [ServerState; 5] =
        [ServerState::Serving, ServerState::Connecting, ServerState::Failing, ServerState::Unknown, ServerState::Down];

    /// Its word in the HTTP API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            ServerState::Serving => "serving",
            ServerState::Connecting => "connecting",
            ServerState::Failing => "failing",
            ServerState::Unknown => "unknown",
            ServerState::Down => "down",
        }
    }
}

/// Why a server that is dialed does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFailure {
    /// Nobody listens there.
    Refused,
    /// Nobody has answered to the dial.
    Unanswered,
    /// There is no way there, or the system has none.
    Unreachable,
    /// It has not sent SERVE in time.
    Silent,
    /// What it sent first was no SERVE, or one for something else.
    Strange,
    /// Its key does not let it serve.
    Key,
    /// It has said BYE instead of SERVE.
    TurnedAway,
    /// It has closed the connection before SERVE.
    Closed,
    /// This node has no room for it, or ends.
    NoRoom,
    /// It has logged out.
    LoggedOut,
    /// The link that served has ended.
    Lost,
}

impl ServerFailure {
    /// Its word in the HTTP API, and the value of the metric label `reason`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            ServerFailure::Refused => "refused",
            ServerFailure::Unanswered => "unanswered",
            ServerFailure::Unreachable => "unreachable",
            ServerFailure::Silent => "silent",
            ServerFailure::Strange => "strange",
            ServerFailure::Key => "key",
            ServerFailure::TurnedAway => "turned_away",
            ServerFailure::Closed => "closed",
            ServerFailure::NoRoom => "no_room",
            ServerFailure::LoggedOut => "logged_out",
            ServerFailure::Lost => "lost",
        }
    }

    /// It as words for a person.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            ServerFailure::Refused => "nobody listens there",
            ServerFailure::Unanswered => "nobody has answered within 3 s",
            ServerFailure::Unreachable => "there is no way there",
            ServerFailure::Silent => "it has not sent SERVE in time",
            ServerFailure::Strange => "what it sent first was no SERVE for this service alone",
            ServerFailure::Key => "it showed no key that may serve this service",
            ServerFailure::TurnedAway => "it has said BYE: it may not take the key that it was shown",
            ServerFailure::Closed => "it has closed the connection before SERVE",
            ServerFailure::NoRoom => "this node has no room for it",
            ServerFailure::LoggedOut => "it has logged out",
            ServerFailure::Lost => "the link to it has ended",
        }
    }
}

/// What one shard knows of an address of a server that it dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSeen {
    /// The server as it was given: host and port.
    pub server: String,
    /// The address, which is the name of the instance; empty where none is known.
    pub instance: String,
    /// Where its link stands.
    pub state: ServerState,
    /// Links that serve.
    pub links: usize,
    /// Why it does not serve.
    pub failure: Option<ServerFailure>,
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

/// What an operator says of a worker. It holds until it is undone, or the worker has had no link to the shard for a
/// day; of a server that is dialed as long as its address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstanceChange {
    /// Whether it gets no more calls.
    pub drained: Option<bool>,
    /// Its weight, whatever it says itself.
    pub weight: Option<u32>,
}

/// What came of [`InstanceChange`] at one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It holds.
    Yes,
    /// The shard knows no such worker, or has no room for that weight.
    Unknown,
    /// Something is kept of as many workers of the service as may be.
    Full,
}
