//! Health, metrics, the documents, and what surrounds every request.

use super::access::Needs;
use super::keys::Scope;
use super::metrics;
use super::routes::Routes;
use super::service::{Readiness, Service};
use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;

/// The OpenAPI 3.1 document of the API.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What `GET /` shows.
pub(super) const INDEX: &str = include_str!("index.txt");

pub(super) fn add(routes: Routes<Service>) -> Routes<Service> {
    routes
        .get("/", Needs::AnyKey, async || INDEX)
        .get("/healthz", Needs::Nothing, async || "ok\n")
        .get("/readyz", Needs::Nothing, ready)
        .get("/metrics", Needs::Read(Scope::MetricsRead), expose)
        .get("/v1/openapi.json", Needs::AnyKey, async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))
}

#[derive(Serialize)]
struct ReadyAnswer {
    ready: bool,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

async fn ready(State(service): State<Arc<Service>>) -> Response {
    let (ready, state, reason) = match service.readiness() {
        Readiness::Running => (true, "running", None),
        Readiness::Empty(reason) => (false, "empty", Some(reason)),
        Readiness::Degraded(reason) => (true, "degraded", Some(reason)),
        Readiness::Starting(reason) => {
            (false, "starting", reason.or_else(|| Some("Redis has not been asked yet".to_owned())))
        }
        Readiness::Ending => (false, "ending", Some("the router has been told to end".to_owned())),
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ReadyAnswer { ready, state, reason })).into_response()
}

async fn expose(State(service): State<Arc<Service>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::exposition(&service)).into_response()
}

/// Counts the answer.
pub(super) async fn counted(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    service.requests.count(route.as_ref().map_or("none", MatchedPath::as_str), response.status().as_u16());
    response
}
