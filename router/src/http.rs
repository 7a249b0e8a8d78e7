//! The HTTP route API: accounts, login dispatch, and questions about nodes and users.
//!
//! | part | what it is |
//! |---|---|
//! | [`reads`](fn@reads) | the questions, for whoever has a [`Source`]: the `router` binary and each gateway |
//! | [`Service`] | what the `router` binary knows: the last view, its connection to Redis, its balancers |
//! | [`router`](fn@router) | all routes of the `router` binary |
//! | [`serve`](fn@serve) | the server below: bounded connections, time-outs, an orderly end |
//!
//! Every answer is computed from the view at hand; only users and accounts are asked for in Redis. The answers themselves are
//! in [`api`](crate::api). Errors are `application/problem+json` (RFC 9457) with a `detail` that says what to do.

mod body;
mod metrics;
mod operations;
mod problem;
mod reads;
mod routes;
mod serve;
mod service;
mod writes;

pub use body::BODY_BYTES_MAX;
pub use operations::OPENAPI;
pub use reads::reads;
pub use routes::Route;
pub use serve::{CONNECTIONS_MAX, serve};
pub use service::{POLL_PERIOD, Service};

use crate::api::Picture;
use crate::redis::PresenceEntry;
use axum::http::{Method, StatusCode, Uri};
use problem::Problem;
use routes::Routes;
use std::sync::Arc;

/// Where the answers of [`reads`](fn@reads) come from.
pub trait Source: Send + Sync + 'static {
    /// What is known of the cluster now; `None` before anything is.
    fn picture(&self) -> Option<Picture>;

    /// What the presence store holds of a user; entries of nodes that are gone may be among them.
    ///
    /// # Errors
    /// Why it cannot be said, and what to do.
    fn entries(&self, user: u64) -> impl Future<Output = Result<Vec<PresenceEntry>, String>> + Send;

    /// Whether this process has a link to `node`; `None` if it has links to nobody.
    fn reachable(&self, node: &str) -> Option<bool> {
        let _ = node;
        None
    }
}

/// All routes of the `router` binary.
pub fn router(service: Arc<Service>) -> axum::Router {
    let routes = all_routes();
    let not_found = async |uri: Uri| {
        Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}; GET / lists what there is", uri.path()))
    };
    let not_allowed = async |method: Method, uri: Uri| {
        let detail = format!("{} does not take {method}; GET / lists what there is", uri.path());
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
    };
    routes
        .into_router()
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(axum::middleware::from_fn(operations::bounded))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&service), operations::counted))
        .with_state(service)
}

/// The routes of [`router`](fn@router), for the test that holds them against the OpenAPI document.
#[must_use]
pub fn routes() -> Vec<Route> {
    all_routes().listed().to_vec()
}

fn all_routes() -> Routes<Service> {
    operations::add(writes::add(reads::add(Routes::new())))
}

#[cfg(test)]
mod tests;
