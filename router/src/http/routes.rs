//! Routes with a list of them, so that nothing is served that is not documented.

use super::access::{Access, Needs, guard};
use super::body::{BODY_BYTES_MAX, Bound, LONG_BODIES_MAX, LONG_BODY_BYTES_MAX};
use super::places::Places;
use super::problem::Problem;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use axum::{Extension, Router};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// The longest that a request takes. What is asked of Redis ends within a second for each step.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request with a long body waits for its turn: it holds one of the places of all requests meanwhile.
const LONG_TURN_WAIT: Duration = Duration::from_secs(2);

/// Whether a body is, or may be, longer than most routes take.
fn is_long(request: &Request) -> bool {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.is_none_or(|bytes: u64| bytes > BODY_BYTES_MAX as u64)
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What it needs.
    pub needs: Needs,
    /// `get`, `post`, `put`, `patch` or `delete`, as in an OpenAPI document.
    pub method: &'static str,
    /// The path, with `{…}` for what varies.
    pub path: &'static str,
}

/// Routes that answer from an `S`.
#[derive(Debug)]
pub struct Routes<S> {
    router: Router<Arc<S>>,
    listed: Vec<Route>,
    body_bytes_max: usize,
    /// Turns of requests with long bodies.
    long_bodies: Arc<Semaphore>,
    timeout: Duration,
}

impl<S: Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Routes {
            router: Router::new(),
            listed: Vec::new(),
            body_bytes_max: BODY_BYTES_MAX,
            long_bodies: Arc::new(Semaphore::new(LONG_BODIES_MAX)),
            timeout: REQUEST_TIMEOUT,
        }
    }
}

impl<S: Send + Sync + 'static> Routes<S> {
    /// No routes yet.
    #[must_use]
    pub fn new() -> Self {
        Routes::default()
    }

    /// With other bounds than those of questions and changes: bodies up to so many bytes, and requests that take so
    /// long at most.
    #[must_use]
    pub fn bounded(self, body_bytes_max: usize, timeout: Duration) -> Self {
        Routes { body_bytes_max, timeout, ..self }
    }

    /// Adds a question.
    #[must_use]
    pub fn get<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        self.add("get", path, needs, routing::get(handler))
    }

    /// Adds a request that changes something, or brings a body.
    #[must_use]
    pub fn post<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        self.add("post", path, needs, routing::post(handler))
    }

    /// Adds a request with a body of up to [`LONG_BODY_BYTES_MAX`]; of those with more than [`BODY_BYTES_MAX`], or
    /// without a length, [`LONG_BODIES_MAX`] have their turn at a time. All others never wait for them.
    #[must_use]
    pub fn post_long<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        let turns = self.long_bodies.clone();
        let handler = routing::post(handler)
            .route_layer(DefaultBodyLimit::max(LONG_BODY_BYTES_MAX))
            .route_layer(Extension(Bound(LONG_BODY_BYTES_MAX)))
            .route_layer(from_fn(move |request: Request, next: Next| {
                let turns = turns.clone();
                async move {
                    if !is_long(&request) {
                        return next.run(request).await;
                    }
                    match timeout(LONG_TURN_WAIT, turns.acquire()).await {
                        Ok(_turn) => next.run(request).await,
                        Err(_) => {
                            let detail = "as many long bodies are under way as may be; try again in a moment";
                            Problem::unavailable(detail).into_response()
                        }
                    }
                }
            }));
        self.add("post", path, needs, handler)
    }

    /// Adds a request that says how something is to be from then on.
    #[must_use]
    pub fn put<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        self.add("put", path, needs, routing::put(handler))
    }

    /// Adds a request that says how a part of something is to be from then on.
    #[must_use]
    pub fn patch<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        self.add("patch", path, needs, routing::patch(handler))
    }

    /// Adds a request that takes something back.
    #[must_use]
    pub fn delete<T: 'static>(self, path: &'static str, needs: Needs, handler: impl Handler<T, Arc<S>>) -> Self {
        self.add("delete", path, needs, routing::delete(handler))
    }

    fn add(mut self, method: &'static str, path: &'static str, needs: Needs, handler: MethodRouter<Arc<S>>) -> Self {
        self.listed.push(Route { needs, method, path });
        let handler = handler.route_layer(from_fn(move |request: Request, next: Next| async move {
            // Health is answered whatever else is under way.
            let places = request.extensions().get::<Arc<Places>>().filter(|_| needs != Needs::Nothing).cloned();
            let Some(places) = places else { return guard(needs, request, next).await };
            let busy = || Problem::unavailable("as many requests are under way as may be; try again in a moment");
            match places.begin_request() {
                Some(_under_way) => guard(needs, request, next).await,
                None => busy().into_response(),
            }
        }));
        Routes { router: self.router.route(path, handler), ..self }
    }

    /// The routes so far.
    #[must_use]
    pub fn listed(&self) -> &[Route] {
        &self.listed
    }

    /// The routes as they are served: with bounds of body and time, and problems for all else. `hint` says where to
    /// look for what there is; it ends the sentence of those problems, and may be empty. `access` says who may use
    /// them.
    pub fn into_router(self, hint: &'static str, access: Arc<Access>) -> Router<Arc<S>> {
        let not_found = async move |uri: Uri| Problem::not_found(format!("there is nothing at {}{hint}", uri.path()));
        let not_allowed = async move |method: Method, uri: Uri| {
            let detail = format!("{} does not take {method}{hint}", uri.path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
        };
        let limit = self.timeout;
        self.router
            .layer(DefaultBodyLimit::max(self.body_bytes_max))
            .fallback(not_found)
            .method_not_allowed_fallback(not_allowed)
            .layer(from_fn(move |request: Request, next: Next| bounded(limit, request, next)))
            .layer(Extension(access))
    }
}

/// When a request is ended, in its extensions for handlers that have to say more than that before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

/// Ends the request when it takes too long.
async fn bounded(limit: Duration, mut request: Request, next: Next) -> Response {
    let deadline = Instant::now() + limit;
    request.extensions_mut().insert(Deadline(deadline));
    match timeout_at(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("there was no answer within {} s; try again later", limit.as_secs());
            Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).into_response()
        }
    }
}
