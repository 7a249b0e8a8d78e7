//! The HTTP route API: accounts, login dispatch, and questions about nodes and users.
//!
//! | part | what it is |
//! |---|---|
//! | [`Routes::reads`] | the questions, for whoever has a [`Source`]: the `router` binary and each gateway |
//! | [`Service`] | what the `router` binary knows: the last view, its connection to Redis, its balancers |
//! | [`router`](fn@router) | all routes of the `router` binary |
//! | [`Access`] | who may ask what: keys with scopes, no web pages, an audit log |
//! | [`serve`](fn@serve) | the server below: places, time-outs, an orderly end |
//! | [`HttpTls`] | its certificate, if it speaks TLS |
//!
//! Every answer is computed from the view at hand; only users and accounts are asked for in Redis, and what nodes alone
//! know is passed on to one of them ([`RELAYED`]). The answers themselves are in [`api`](crate::api). Errors are
//! `application/problem+json` (RFC 9457) with a `detail` that says what to do.

mod access;
mod body;
mod forward;
mod jwt;
mod keys;
mod metrics;
mod operations;
mod places;
mod presence;
mod problem;
mod reads;
mod relay;
mod routes;
mod serve;
mod service;
mod stats;
mod tls;
mod writes;

pub use access::{Access, AuditNote, CallerKey, Needs, Peer, UnknownKey};
pub use body::{
    BODY_BYTES_MAX, Body as JsonBody, LONG_BODIES_MAX, LONG_BODY_BYTES_MAX, NameInPath, Parameters, UserInPath,
};
pub use keys::{ApiKeys, ApiKeysError, KeyLimits, NewKey, NoScope, Scope};
pub use operations::OPENAPI;
pub use places::{HEALTH_PLACES, Places};
pub use problem::Problem;
pub use relay::RELAYED;
pub use routes::{Route, Routes};
pub use serve::serve;
pub use service::{POLL_PERIOD, Service, ServiceConfig};
pub use stats::HttpMetric;
pub use tls::{HttpIdentity, HttpTls};

use crate::api::{PeerLinks, Picture};
use crate::redis::PresenceEntry;
use std::sync::Arc;

/// Where the answers of [`Routes::reads`] come from.
pub trait Source: Send + Sync + 'static {
    /// What is known of the cluster now.
    ///
    /// # Errors
    /// Why nothing is known yet, and what to do.
    fn picture(&self) -> Result<Picture, String>;

    /// What the presence store holds of a user; entries of nodes that are gone may be among them.
    ///
    /// # Errors
    /// Why it cannot be said, and what to do.
    fn entries(&self, user: u64) -> impl Future<Output = Result<Vec<PresenceEntry>, String>> + Send;

    /// The same of several users, one answer for each and in their order; `None` of those of whom it cannot be said
    /// now.
    fn entries_of(&self, users: &[u64]) -> impl Future<Output = Vec<Option<Vec<PresenceEntry>>>> + Send;

    /// Whether this process has a link to `node`; `None` if it has links to nobody.
    fn reachable(&self, node: &str) -> Option<bool> {
        let _ = node;
        None
    }

    /// The links of this process to each node; `None` if it has none.
    fn links(&self) -> Option<Vec<PeerLinks>> {
        None
    }

    /// The largest sum of weights that a preview of the ring is computed for here. It takes about 2.5 KB for each unit.
    fn preview_weight_max(&self) -> u32 {
        u32::MAX
    }
}

/// All routes of the `router` binary.
pub fn router(service: Arc<Service>) -> axum::Router {
    all_routes()
        .into_router("; GET / lists what there is", Arc::clone(service.access()))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&service), operations::counted))
        .with_state(service)
}

/// The routes of [`router`](fn@router), for the test that holds them against the OpenAPI document.
#[must_use]
pub fn routes() -> Vec<Route> {
    all_routes().listed().to_vec()
}

fn all_routes() -> Routes<Service> {
    operations::add(relay::add(writes::add(Routes::new().reads())))
}

#[cfg(test)]
mod tests;
