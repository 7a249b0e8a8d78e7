//! What a request brings: JSON bodies, user ids and queries, each refused with a problem that names the fix.

use super::problem::Problem;
use crate::api::{NO_USER, UserId};
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::timeout;

/// The largest body, in bytes: a preview of some hundred nodes.
pub const BODY_BYTES_MAX: usize = 16 << 10;

/// The largest body of the few routes that take more, in bytes: a thousand ids of users, or a message of the longest
/// frame in base64.
pub const LONG_BODY_BYTES_MAX: usize = 128 << 10;

/// Requests with such a body that are read and carried out at a time; the others wait for their turn.
pub const LONG_BODIES_MAX: usize = 4;

/// What the route of a request takes as a body, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound(pub(super) usize);

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A JSON body, which is an object of at most [`BODY_BYTES_MAX`] bytes, or [`LONG_BODY_BYTES_MAX`] where the route
/// takes more.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body has to be JSON: send it with Content-Type: application/json (curl: --json '{…}')";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let bytes = body_bytes(request, state).await?;
        // A list would be taken for the fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::bad_request("the body has to be a JSON object: {…}"));
        }
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Body(value)),
            Err(error) => Err(Problem::bad_request(format!("the body is not what this route takes: {error}"))),
        }
    }
}

/// A body of at most as many bytes as its route takes, whatever it is.
pub(super) async fn body_bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let Bound(most) = request.extensions().get().copied().unwrap_or(Bound(BODY_BYTES_MAX));
    match timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("the body is larger than {most} bytes; send less at once");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(Err(rejection)) => Err(Problem::bad_request(rejection.body_text())),
        Err(_) => {
            let detail = format!("the body took longer than {} s; send it faster", BODY_TIMEOUT.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

/// The user in the path.
#[derive(Debug)]
pub struct UserInPath(pub u64);

impl<S: Send + Sync> FromRequestParts<S> for UserInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = text_in_path(Path::from_request_parts(parts, state).await)?;
        UserId::parse(&text).map(|user| UserInPath(user.0)).ok_or_else(|| Problem::bad_request(NO_USER))
    }
}

/// The name in the path.
#[derive(Debug)]
pub struct NameInPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for NameInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        text_in_path(Path::from_request_parts(parts, state).await).map(NameInPath)
    }
}

fn text_in_path(path: Result<Path<String>, PathRejection>) -> Result<String, Problem> {
    match path {
        Ok(Path(text)) => Ok(text),
        Err(rejection) => Err(Problem::bad_request(format!("the path cannot be read: {}", rejection.body_text()))),
    }
}

/// The query, of known parameters only.
#[derive(Debug)]
pub struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        match query {
            Ok(Query(parameters)) => Ok(Parameters(parameters)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}
