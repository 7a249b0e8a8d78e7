//! Routes with a list of them, so that nothing is served that is not documented.

use super::body::BODY_BYTES_MAX;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::routing;
use std::sync::Arc;

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// `get` or `post`, as in an OpenAPI document.
    pub method: &'static str,
    /// The path, with `{…}` for what varies.
    pub path: &'static str,
}

/// Routes that answer from an `S`.
pub(super) struct Routes<S> {
    router: Router<Arc<S>>,
    listed: Vec<Route>,
}

impl<S: Send + Sync + 'static> Routes<S> {
    pub(super) fn new() -> Self {
        Routes { router: Router::new(), listed: Vec::new() }
    }

    pub(super) fn get<T: 'static>(mut self, path: &'static str, handler: impl Handler<T, Arc<S>>) -> Self {
        self.listed.push(Route { method: "get", path });
        Routes { router: self.router.route(path, routing::get(handler)), ..self }
    }

    pub(super) fn post<T: 'static>(mut self, path: &'static str, handler: impl Handler<T, Arc<S>>) -> Self {
        self.listed.push(Route { method: "post", path });
        Routes { router: self.router.route(path, routing::post(handler)), ..self }
    }

    pub(super) fn listed(&self) -> &[Route] {
        &self.listed
    }

    pub(super) fn into_router(self) -> Router<Arc<S>> {
        self.router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
    }
}
