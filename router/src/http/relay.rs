//! What a router does not know itself and any node answers: groups, and what is kept for users. It passes such a
//! request on to a node, and the answer back.
//!
//! The router judges the caller first, by its own keys, as for everything else. The node judges again: it is given the
//! caller's key, if there is one in the request. A request without a key that comes from elsewhere, to a router that
//! was told to be open, is passed on as from a proxy, so that a node takes it for no request of its own host.
//!
//! The home of what is asked about is asked first, because it needs nobody else. Another node is asked when a node
//! cannot be reached, and for questions also when it does not answer; a change that was handed over and not answered
//! may have been made, so it is given to nobody else.

use super::Source;
use super::access::{AuditNote, Needs, Peer, is_here};
use super::body::body_bytes;
use super::forward::{Stream, connect};
use super::keys::Scope;
use super::problem::Problem;
use super::routes::{Deadline, Route, Routes};
use super::service::{Service, nodes_to_ask};
use crate::membership::NodeRecord;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

const READS: Needs = Needs::Read(Scope::UsersRead);
const CHANGES: Needs = Needs::Change(Scope::AccountsWrite);

/// The routes of a node that a router has too, with what they need there.
pub const RELAYED: [Route; 14] = [
    Route { needs: READS, method: "get", path: "/v1/groups/{group}" },
    Route { needs: CHANGES, method: "put", path: "/v1/groups/{group}" },
    Route { needs: CHANGES, method: "delete", path: "/v1/groups/{group}" },
    Route { needs: READS, method: "get", path: "/v1/groups/{group}/members" },
    Route { needs: CHANGES, method: "post", path: "/v1/groups/{group}/members" },
    Route { needs: CHANGES, method: "put", path: "/v1/groups/{group}/members/{user}" },
    Route { needs: CHANGES, method: "delete", path: "/v1/groups/{group}/members/{user}" },
    Route { needs: READS, method: "get", path: "/v1/groups/{group}/messages" },
    Route { needs: Needs::Change(Scope::PushGroup), method: "post", path: "/v1/groups/{group}/messages" },
    Route { needs: READS, method: "get", path: "/v1/groups/{group}/reads" },
    Route { needs: READS, method: "get", path: "/v1/users/{user}/groups" },
    Route { needs: READS, method: "get", path: "/v1/users/{user}/inbox" },
    Route { needs: CHANGES, method: "delete", path: "/v1/users/{user}/inbox" },
    Route { needs: CHANGES, method: "delete", path: "/v1/users/{user}/devices/{device}" },
];

/// Requests passed on at a time. Each takes a place of a node, which has 64.
const RELAYS_MAX: usize = 32;
/// How long a node may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(7);
/// The same where a request has used up some of its time, at least: with less left a node is not given it.
const ANSWER_TIMEOUT_LEAST: Duration = Duration::from_secs(1);
/// What is left of a request's time when a node is waited for no longer, so that what became of it is told before the
/// bound of all requests ends it without a word of that.
const TIME_TO_TELL: Duration = Duration::from_millis(500);
/// How long the answer may take to pass through behind that: the place at the node is free again then, however slow the
/// caller is.
const PASS_TIMEOUT: Duration = Duration::from_secs(10);
/// What of an answer's header is passed on. How long the body is, is told by the body itself.
const HEADERS_BACK: [HeaderName; 2] = [header::CONTENT_TYPE, header::RETRY_AFTER];
/// Says to a node that a request has come through somebody else.
const VIA: &str = "1.1 trunkline-router";

/// What became of a request that was to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A node has answered, whatever it said.
    Answered,
    /// A node did not take the caller's key, or wants one.
    Refused,
    /// No node could be reached, or none is known.
    Unreachable,
    /// A node had it and did not answer in time, or the caller has left.
    Lost,
    /// As many were under way as may be.
    Busy,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 5] = [
        (Outcome::Answered, "answered"),
        (Outcome::Refused, "refused"),
        (Outcome::Unreachable, "unreachable"),
        (Outcome::Lost, "lost"),
        (Outcome::Busy, "busy"),
    ];
}

/// The requests that are passed on, and what became of them.
#[derive(Debug)]
pub(super) struct Relays {
    room: Arc<Semaphore>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
}

impl Default for Relays {
    fn default() -> Self {
        Relays {
            room: Arc::new(Semaphore::new(RELAYS_MAX)),
            outcomes: [const { AtomicU64::new(0) }; Outcome::ALL.len()],
        }
    }
}

impl Relays {
    /// How many there were with each outcome.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Outcome::ALL.iter().zip(&self.outcomes).map(|((_, word), count)| (*word, count.load(Ordering::Relaxed)))
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        RELAYS_MAX - self.room.available_permits()
    }
}

/// Counts a request once, whatever ends it: one that is dropped before it has an outcome is lost.
struct Counted<'a> {
    relays: &'a Relays,
    outcome: Outcome,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let at = Outcome::ALL.iter().position(|(outcome, _)| *outcome == self.outcome);
        // It has all of them.
        if let Some(count) = at.and_then(|at| self.relays.outcomes.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Adds the routes.
pub(super) fn add(routes: Routes<Service>) -> Routes<Service> {
    RELAYED.into_iter().fold(routes, |routes, Route { needs, method, path }| match method {
        "get" => routes.get(path, needs, relay),
        "put" => routes.put(path, needs, relay),
        "post" => routes.post_long(path, needs, relay),
        "delete" => routes.delete(path, needs, relay),
        other => unreachable!("{other} is no method of the list above"),
    })
}

/// A request as it is passed on, to one node or another.
struct Passed {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Passed {
    async fn of(request: Request, is_open: bool) -> Result<Passed, Problem> {
        let mut headers = HeaderMap::new();
        for name in [header::CONTENT_TYPE, header::AUTHORIZATION] {
            if let Some(value) = request.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        if is_open && !is_here(peer, request.headers()) {
            headers.insert(header::VIA, header::HeaderValue::from_static(VIA));
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let target = uri.path_and_query().cloned().map_or(uri, Uri::from);
        Ok(Passed { method, target, headers, body: body_bytes(request, &()).await? })
    }

    /// What it is about: the user or group behind `/v1/users/` or `/v1/groups/`. What is no number belongs nowhere, and
    /// any node says so.
    fn key(&self) -> u64 {
        self.target.path().split('/').nth(3).and_then(|key| key.parse().ok()).unwrap_or(0)
    }

    fn has_key(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
    }

    fn for_node(&self, address: &str) -> Result<Request, String> {
        let mut request = Request::builder().method(self.method.clone()).uri(self.target.clone());
        request = request.header(header::HOST, address);
        let mut request = request.body(Body::from(self.body.clone())).map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }
}

/// How long a node may take to begin its answer, to a request that has so much time left; `None` where that is too
/// little to give it to a node.
fn answer_timeout(left: Duration) -> Option<Duration> {
    let time = left.checked_sub(TIME_TO_TELL)?;
    (time >= ANSWER_TIMEOUT_LEAST).then_some(time.min(ANSWER_TIMEOUT))
}

async fn relay(State(service): State<Arc<Service>>, request: Request) -> Result<Response, Problem> {
    let relays = service.relays();
    // Requests without a bound are none of a router's; they have what a node may take.
    let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
    let left = || deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
    // Its body first: whoever takes long over that keeps nobody from a node.
    let passed = Passed::of(request, !service.access().has_keys()).await?;
    let Ok(permit) = Arc::clone(&relays.room).try_acquire_owned() else {
        drop(Counted { relays, outcome: Outcome::Busy });
        let detail = format!("{RELAYS_MAX} requests are with nodes, which is as many as may be; try again in a moment");
        return Err(Problem::unavailable(detail));
    };
    // Given back when the answer has passed, whoever of those that have it is the last.
    let permit = Arc::new(permit);
    let mut counted = Counted { relays, outcome: Outcome::Lost };
    let view = service.picture().map_err(|error| none_reached(&mut counted, error))?.view;
    let nodes = nodes_to_ask(&view, passed.key());
    if nodes.is_empty() {
        let detail = "no node is known that could answer; GET /v1/nodes shows those there are";
        return Err(none_reached(&mut counted, detail.to_owned()));
    }
    let (mut failures, mut had_it) = (Vec::new(), false);
    for node in nodes {
        // What is left while this connects is enough for an answer.
        let connected = match answer_timeout(left()).map(|enough| Instant::now() + enough) {
            Some(until) => timeout_at(until, connect(&node.http, node.https, service.node_tls())).await,
            None => {
                failures.push(no_time_for(node));
                break;
            }
        };
        let failed = match connected {
            Err(_) => "no connection in the time that the request had left".to_owned(),
            Ok(Err(error)) => error,
            Ok(Ok(stream)) => {
                let Some(within) = answer_timeout(left()) else {
                    failures.push(no_time_for(node));
                    break;
                };
                match timeout(within, exchange(stream, &passed, node, &permit)).await {
                    Ok(Ok(answer)) => {
                        counted.outcome = Outcome::Answered;
                        return judge(answer, node, &passed, &mut counted);
                    }
                    Ok(Err(error)) => {
                        had_it = true;
                        error
                    }
                    Err(_) => {
                        had_it = true;
                        format!("no answer within {:.1} s", within.as_secs_f64())
                    }
                }
            }
        };
        failures.push(format!("node {} at {}: {failed}", node.name, node.http));
        if had_it && !passed.method.is_safe() {
            let failures = failures.join("; ");
            let detail = format!("{failures}. It may have been done all the same: ask before trying again");
            return Err(Problem::new(StatusCode::BAD_GATEWAY, detail));
        }
    }
    let failures = failures.join("; ");
    Err(match had_it {
        true => Problem::new(StatusCode::BAD_GATEWAY, format!("no node has answered: {failures}")),
        false => none_reached(&mut counted, format!("no node could be asked: {failures}")),
    })
}

fn no_time_for(node: &NodeRecord) -> String {
    format!("node {} at {}: the request had too little time left to be given to it", node.name, node.http)
}

fn none_reached(counted: &mut Counted<'_>, detail: String) -> Problem {
    counted.outcome = Outcome::Unreachable;
    Problem::unavailable(detail)
}

/// The answer of a node as it is given to the caller.
fn judge(answer: Response, node: &NodeRecord, passed: &Passed, counted: &mut Counted<'_>) -> Result<Response, Problem> {
    if matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        counted.outcome = Outcome::Refused;
        let detail = match passed.has_key() {
            true => format!(
                "node {} does not take the key that this router takes: its keys file has to have it too, with the same \
                 scopes",
                node.name
            ),
            false => format!(
                "node {} wants a key, and there is none in the request to pass on: send Authorization: Bearer tlk_…",
                node.name
            ),
        };
        return Err(Problem::new(answer.status(), detail));
    }
    Ok(answer)
}

/// Hands a request over and waits for the beginning of the answer, whose body then passes through as the caller takes
/// it.
async fn exchange(
    stream: Box<dyn Stream>,
    passed: &Passed,
    node: &NodeRecord,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Result<Response, String> {
    let failed = |error: hyper::Error| error.to_string();
    let request = passed.for_node(&node.http)?;
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(failed)?;
    let (permit, name) = (Arc::clone(permit), node.name.clone());
    tokio::spawn(async move {
        // It ends with its answer, or when nobody waits for that any more.
        match timeout(ANSWER_TIMEOUT + PASS_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(node = name, %error, "a request that was passed on failed"),
            Err(_) => tracing::debug!(node = name, "an answer that was passed on took too long"),
        }
        drop(permit);
    });
    let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
    let mut response = (head.status, Body::new(body)).into_response();
    for name in HEADERS_BACK {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let note = AuditNote(format!("by node {}", node.name));
    Ok((Extension(note), response).into_response())
}

#[cfg(test)]
mod tests;
