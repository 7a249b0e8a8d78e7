//! Health, metrics, the documents, and what surrounds every request.

use super::Source;
use super::access::Needs;
use super::keys::Scope;
use super::metrics;
use super::problem::Problem;
use super::routes::Routes;
use super::service::{Readiness, Service};
use crate::api;
use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
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
        .get("/v1/cluster", Needs::Read(Scope::NodesRead), cluster)
        .get("/metrics", Needs::Read(Scope::MetricsRead), expose)
        .get("/v1/openapi.json", Needs::AnyKey, async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))
}

/// JSON, unless the client would rather have text: for people at a terminal.
async fn cluster(State(service): State<Arc<Service>>, headers: HeaderMap) -> Result<Response, Problem> {
    let picture = service.picture().map_err(Problem::unavailable)?;
    let overview = api::overview(&picture, |_| None);
    Ok(match prefers_text(&headers) {
        true => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], overview.page()).into_response(),
        false => Json(overview).into_response(),
    })
}

/// Whether `Accept` (RFC 9110, section 12.5.1) wants text/plain more than application/json. Without it, or where both are as good, no.
fn prefers_text(headers: &HeaderMap) -> bool {
    let quality = |wanted: &str| {
        let ranges = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let kind = wanted.split('/').next().unwrap_or_default();
        let fits = ranges.filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let range = parts.next()?;
            let names = ["*/*".to_owned(), format!("{kind}/*"), wanted.to_owned()];
            let how_near = names.iter().position(|name| range.eq_ignore_ascii_case(name))?;
            let weight =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0_f32), |text| text.parse().ok())?;
            Some((how_near, weight))
        });
        // The range that names it most closely decides.
        fits.max_by_key(|(how_near, _)| *how_near).map_or(0.0, |(_, weight)| weight)
    };
    quality("text/plain") > quality("application/json")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_for_those_who_ask_for_it() {
        for (accept, text) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["text/plain"], true),
            (&["Text/Plain; charset=utf-8"], true),
            (&["text/*, application/json;q=0.5"], true),
            (&["application/json", "text/plain"], false),
            (&["application/json;q=0.2, text/plain;q=0.3"], true),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], false),
            (&["text/plain;q=0, */*"], false),
            (&["text/plain;q=much"], false),
            (&["\u{ff}"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(prefers_text(&headers), text, "{accept:?}");
        }
    }
}
