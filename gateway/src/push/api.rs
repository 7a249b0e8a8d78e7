//! The HTTP side of pushes: routes, bodies, statuses, and the answers when outcomes are known.

use super::broadcasts::Progress;
use super::desk::{Desk, Refused};
use super::document::DOCUMENT;
use super::frames::push_frames;
use super::ledger::Standing;
use super::request::{Push, Target};
use super::window::At;
use crate::bell::Bell;
use crate::broadcast::{BROADCAST_BYTES_MAX, BROADCASTS_MAX, Tally};
use crate::clock::{now_ms, wall_ms};
use crate::limits::Limits;
use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use trunkline_proto::Outcome;
use trunkline_router::api::UserId;
use trunkline_router::http::{Access, AuditNote, CallerKey, Needs, Problem, Routes, Scope};

/// The largest body: a full batch.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// Bodies that are being received and read, all together.
pub(crate) const BODIES_BYTES_MAX: usize = 4 << 20;
/// Batches that are under way at a time.
pub(crate) const BATCHES_MAX: usize = 32;
/// Lines of a batch.
pub(crate) const LINES_MAX: usize = 1_000;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a request takes: its body, and as long as a caller may wait for outcomes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
/// Longest Idempotency-Key, bytes.
const KEY_BYTES_MAX: usize = 255;

/// One of these is needed to push at all; which one depends on whom a push is for.
const PUSH_SCOPES: &[Scope] = &[Scope::PushUser, Scope::PushGroup, Scope::PushAll];

const BUSY_BODIES: &str = "the bodies of other requests take all the room there is; try again in a moment";

/// What the API is served from.
#[derive(Debug)]
pub(crate) struct PushApi {
    desk: Mutex<Desk>,
    /// Room for bodies, bytes.
    bodies: Semaphore,
    batches: Semaphore,
    /// Rung when the desk has something for the shards.
    bell: Arc<Bell>,
    frame_bytes_max: usize,
}

/// The API of pushes.
pub(crate) fn router(api: Arc<PushApi>, access: Arc<Access>) -> Router {
    routes().into_router("; see /v1/openapi.json for what there is", access).with_state(api)
}

pub(super) fn routes() -> Routes<PushApi> {
    Routes::new()
        .bounded(BODY_BYTES_MAX, REQUEST_TIMEOUT)
        .get("/healthz", Needs::Nothing, async || "ok\n")
        .post("/v1/push", Needs::ChangeOfOne(PUSH_SCOPES), push)
        .post("/v1/push/batch", Needs::ChangeOfOne(PUSH_SCOPES), push_batch)
        .post("/v1/push/frames", Needs::ChangeOfOne(PUSH_SCOPES), push_frames)
        .get("/v1/pushes/{id}", Needs::Read(Scope::PushAll), progress)
        .delete("/v1/pushes/{id}", Needs::Change(Scope::PushAll), stop)
        .get("/v1/openapi.json", Needs::AnyKey, async || ([(header::CONTENT_TYPE, "application/json")], DOCUMENT))
}

impl PushApi {
    pub(crate) fn new(desk: Desk, bell: Arc<Bell>, limits: &Limits) -> Self {
        let frame_bytes_max = limits.frame_bytes_max as usize;
        let (bodies, batches) = (Semaphore::new(BODIES_BYTES_MAX), Semaphore::new(BATCHES_MAX));
        PushApi { desk: Mutex::new(desk), bodies, batches, bell, frame_bytes_max }
    }

    /// The desk, for as long as nothing is awaited.
    pub(crate) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to do for the desk when its bell was rung.
    pub(crate) fn turn(&self) {
        for progress in self.desk().turn() {
            let told = ProgressAnswer::of(&progress);
            tracing::info!(target: "audit", "a push to all is over: {told}");
        }
    }

    /// A body, and the room that it takes.
    pub(super) async fn body(&self, request: Request) -> Result<(Bytes, SemaphorePermit<'_>), Problem> {
        let too_large = || {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes; send less at once");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        // Without a length it may be as long as any.
        let bytes = length.unwrap_or(BODY_BYTES_MAX);
        if bytes > BODY_BYTES_MAX {
            return Err(too_large());
        }
        let Ok(room) = self.bodies.try_acquire_many(bytes as u32) else {
            self.desk().body_refused();
            return Err(Problem::unavailable(BUSY_BODIES));
        };
        match timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => Ok((body, room)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
            Ok(Err(rejection)) => Err(Problem::bad_request(rejection.body_text())),
            Err(_) => {
                let detail = format!("the body took longer than {} s; send it faster", BODY_TIMEOUT.as_secs());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
            }
        }
    }

    /// Begins a push.
    fn begin(&self, push: Push, caller: &str, key: Option<&str>) -> Result<Begun, Problem> {
        let push = push.from(wall_ms());
        let wait = push.wait;
        let mut desk = self.desk();
        let token = match desk.begin(push, caller, key, now_ms()).map_err(refused)? {
            At::Over(standing) => return Ok(Begun::Known(standing)),
            At::Open(token) => token,
        };
        self.bell.ring();
        match wait.filter(|wait| !wait.is_zero()) {
            None => Ok(Begun::Known(desk.standing(token).unwrap_or_default())),
            Some(wait) => {
                let (waiter, told) = oneshot::channel();
                // It is open, as begin has just said.
                desk.wait(token, waiter);
                Ok(Begun::Waits { token, told, until: Instant::now() + wait })
            }
        }
    }

    /// A place among the batches that are under way.
    pub(super) fn place_of_batch(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.batches.try_acquire().map_err(|_| {
            self.desk().batch_refused();
            Problem::unavailable("as many batches are under way as may be; try again in a moment")
        })
    }

    /// Begins the pushes of a batch, all before any is waited for and in their order. Those that were refused before
    /// stay so. Also returns how many recipients they have.
    ///
    /// # Errors
    /// When the caller's key has had too many; nothing is pushed then.
    pub(super) fn begin_batch<E: From<Problem>>(
        &self,
        pushes: Vec<Result<Push, E>>,
        caller: &CallerKey,
        key: Option<&str>,
    ) -> Result<(Vec<Result<Begun, E>>, usize), Problem> {
        let recipients: usize = pushes.iter().flatten().map(Push::recipients).sum();
        if !self.desk().take_for_key(caller, recipients, now_ms()) {
            return Err(too_many());
        }
        let begin = |(number, push): (usize, Result<Push, E>)| {
            let key = key.map(|key| format!("{key}/{number}"));
            self.begin(push?, &caller.id, key.as_deref()).map_err(E::from)
        };
        Ok(((1..).zip(pushes).map(begin).collect(), recipients))
    }

    pub(super) fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// Where a push stands when it is over, or the caller has waited long enough.
    pub(super) async fn outcome(&self, begun: Begun) -> Standing {
        match begun {
            Begun::Known(standing) => standing,
            Begun::Waits { token, mut told, until } => match timeout_at(until, &mut told).await {
                Ok(Ok(standing)) => standing,
                // Told while others were waited for, or still open.
                _ => told.try_recv().ok().or_else(|| self.desk().standing(token)).unwrap_or_default(),
            },
        }
    }
}

/// A push that was begun.
pub(super) enum Begun {
    /// Nobody waits for more.
    Known(Standing),
    Waits {
        token: u32,
        told: oneshot::Receiver<Standing>,
        until: Instant,
    },
}

fn refused(why: Refused) -> Problem {
    match why {
        Refused::Open => Problem::unavailable(
            "as many pushes are open as may be (pushes_open_max): their recipients have not acknowledged them yet; \
             try again in a moment",
        ),
        Refused::Portal => Problem::unavailable(
            "the shards of these users take no more pushes just now (portal_bytes_max); try again in a moment",
        ),
        Refused::Broadcasts => Problem::unavailable(format!(
            "{BROADCASTS_MAX} pushes to all are under way, or {BROADCAST_BYTES_MAX} bytes of them; try again when one \
             is over, or stop one",
        )),
        Refused::Ending => Problem::unavailable("the node is shutting down; try another one"),
        Refused::OtherPush => Problem::new(
            StatusCode::CONFLICT,
            "this Idempotency-Key was used for another push within the last five minutes; take a new one",
        ),
    }
}

/// Where a push stands, as it is answered.
#[derive(Serialize)]
struct Answer {
    id: String,
    delivered: u16,
    stored: u16,
    offline: u16,
    overloaded: u16,
    denied: u16,
    inbox_full: u16,
    accepted: u16,
    expired: u16,
    pending: u16,
}

impl Answer {
    fn of(standing: &Standing) -> Self {
        let of = |outcome| standing.counts.of(outcome);
        Answer {
            id: standing.id.to_string(),
            delivered: of(Outcome::Delivered),
            stored: of(Outcome::Stored),
            offline: of(Outcome::OfflineNotStored),
            overloaded: of(Outcome::Overloaded),
            denied: of(Outcome::Denied),
            inbox_full: of(Outcome::InboxFull),
            accepted: of(Outcome::Accepted),
            expired: of(Outcome::Expired),
            pending: standing.pending,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("delivered", self.delivered),
            ("stored", self.stored),
            ("offline", self.offline),
            ("overloaded", self.overloaded),
            ("denied", self.denied),
            ("inbox full", self.inbox_full),
            ("accepted", self.accepted),
            ("expired", self.expired),
            ("pending", self.pending),
        ];
        write!(f, "id {}", self.id)?;
        counts.iter().filter(|(_, count)| *count > 0).try_for_each(|(word, count)| write!(f, ", {count} {word}"))
    }
}

/// Says so when a caller leaves before its answer: what it has pushed is on its way all the same.
pub(super) struct Leaves<'a> {
    api: &'a PushApi,
    caller: &'a str,
    what: &'static str,
    answered: bool,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.api.desk().caller_left();
            let (key, what) = (if self.caller.is_empty() { "nobody" } else { self.caller }, self.what);
            tracing::info!(target: "audit", key, what, "a caller left before its answer; what it pushed is on its way");
        }
    }
}

impl<'a> Leaves<'a> {
    /// The answer of `work`; if that is never known, it is told.
    pub(super) async fn watch<T>(
        api: &'a PushApi,
        caller: &'a str,
        what: &'static str,
        work: impl Future<Output = T>,
    ) -> T {
        let mut leaves = Leaves { api, caller, what, answered: false };
        let answer = work.await;
        leaves.answered = true;
        answer
    }
}

pub(super) fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (Some(key), more) = (keys.next(), keys.next()) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if more.is_none() && (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let detail = format!("an Idempotency-Key is given once and has 1 to {KEY_BYTES_MAX} visible characters");
            Err(Problem::bad_request(detail))
        }
    }
}

fn too_many() -> Problem {
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "this key has pushed as much as it may for now (pushes_per_key_per_sec, or pushes_per_sec in its line of \
         the keys file); try again in a moment",
    )
}

async fn push(
    State(api): State<Arc<PushApi>>,
    Extension(caller): Extension<CallerKey>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    Leaves::watch(&api, &caller.id, "POST /v1/push", push_one(&api, &caller, &headers, request)).await
}

fn not_as(service: u16) -> Problem {
    let detail = format!("this key may not push as service {service}: its line in the keys file names others");
    Problem::new(StatusCode::FORBIDDEN, detail)
}

/// Whether a caller may push to whom the push is for, and as its service.
pub(super) fn may_push(caller: &CallerKey, push: &Push) -> Result<(), Problem> {
    if !caller.limits.may_use(push.service) {
        return Err(not_as(push.service));
    }
    let scope = match &push.to {
        Target::Users(_) | Target::Device { .. } => Scope::PushUser,
        Target::Group(_) => Scope::PushGroup,
        Target::Sessions(_) => Scope::PushAll,
    };
    match caller.has(scope) {
        true => Ok(()),
        false => {
            let detail = format!("this key does not have the scope {scope}, which a push to these needs");
            Err(Problem::new(StatusCode::FORBIDDEN, detail))
        }
    }
}

async fn push_one(
    api: &PushApi,
    caller: &CallerKey,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    if media_type(headers) != "application/json" {
        let detail = "the body has to be JSON: send it with Content-Type: application/json (curl: --json '{…}')";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let key = idempotency_key(headers)?;
    let (body, room) = api.body(request).await?;
    let push = Push::parse(&body, api.frame_bytes_max).map_err(Problem::bad_request)?;
    drop((body, room));
    may_push(caller, &push)?;
    if !api.desk().take_for_key(caller, push.recipients(), now_ms()) {
        return Err(too_many());
    }
    if matches!(push.to, Target::Sessions(_)) {
        return broadcast(api, push, &caller.id, key.as_deref());
    }
    let (service, whom, waits) = (push.service, push.to.to_string(), push.wait.is_some());
    let begun = api.begin(push, &caller.id, key.as_deref())?;
    let answer = Answer::of(&api.outcome(begun).await);
    let note = AuditNote(format!("service {service}, {whom}, {answer}"));
    let status = if waits { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Extension(note), Json(answer)).into_response())
}

/// How far a push to all is, as it is answered.
#[derive(Serialize)]
struct ProgressAnswer {
    id: String,
    /// `running`, `stopping`, `stopped` or `done`.
    state: &'static str,
    delivered: u64,
    overloaded: u64,
    shards: u32,
    shards_done: u32,
    shards_lost: u32,
}

impl ProgressAnswer {
    fn of(progress: &Progress) -> Self {
        let Progress { id, tally: Tally { delivered, overloaded }, shards, done, lost, stopped, over, .. } = *progress;
        let state = match (over, stopped) {
            (false, false) => "running",
            (false, true) => "stopping",
            (true, false) => "done",
            (true, true) => "stopped",
        };
        let (shards_done, shards_lost) = (done, lost);
        ProgressAnswer { id: id.to_string(), state, delivered, overloaded, shards, shards_done, shards_lost }
    }
}

impl fmt::Display for ProgressAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProgressAnswer { id, state, delivered, overloaded, shards, shards_done, shards_lost } = self;
        write!(f, "id {id}, {state}, {delivered} delivered, {overloaded} overloaded, ")?;
        write!(f, "{shards_done} of {shards} shards done, {shards_lost} lost")
    }
}

/// Begins a push to all.
fn broadcast(api: &PushApi, push: Push, caller: &str, key: Option<&str>) -> Result<Response, Problem> {
    let (service, whom) = (push.service, push.to.to_string());
    let progress = api.desk().broadcast(push, caller, key, now_ms()).map_err(refused)?;
    let answer = ProgressAnswer::of(&progress);
    let note = AuditNote(format!("service {service}, {whom}, {answer}"));
    Ok((StatusCode::ACCEPTED, Extension(note), Json(answer)).into_response())
}

fn push_id(text: &str) -> Result<u64, Problem> {
    let id = UserId::parse(text).map(|id| id.0).filter(|id| *id != 0);
    id.ok_or_else(|| Problem::bad_request("the id of a push is a number from 1 to 18446744073709551615"))
}

fn no_push() -> Problem {
    Problem::not_found("this node knows of no push to all with this id: it was another node's, or is long over")
}

async fn progress(State(api): State<Arc<PushApi>>, Path(id): Path<String>) -> Result<Json<ProgressAnswer>, Problem> {
    let progress = api.desk().progress(push_id(&id)?).ok_or_else(no_push)?;
    Ok(Json(ProgressAnswer::of(&progress)))
}

async fn stop(
    State(api): State<Arc<PushApi>>,
    Extension(caller): Extension<CallerKey>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = push_id(&id)?;
    let service = api.desk().progress(id).ok_or_else(no_push)?.service;
    if !caller.limits.may_use(service) {
        return Err(not_as(service));
    }
    let progress = api.desk().stop_broadcast(id).ok_or_else(no_push)?;
    let answer = ProgressAnswer::of(&progress);
    Ok((Extension(AuditNote(answer.to_string())), Json(answer)).into_response())
}

/// The result of one line of a batch.
#[derive(Serialize)]
#[serde(untagged)]
enum LineResult {
    Pushed(Answer),
    Refused { error: LineError },
}

#[derive(Serialize)]
struct LineError {
    status: u16,
    detail: String,
}

async fn push_batch(
    State(api): State<Arc<PushApi>>,
    Extension(caller): Extension<CallerKey>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    Leaves::watch(&api, &caller.id, "POST /v1/push/batch", push_lines(&api, &caller, &headers, request)).await
}

/// A batch with more pushes than one may have; `what` each of them is.
pub(super) fn batch_too_long(what: &str) -> Problem {
    let detail = format!("a batch has {LINES_MAX} {what} at most; send less at once");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

/// One push of a batch.
fn line_of_batch(line: &[u8], caller: &CallerKey, frame_bytes_max: usize) -> Result<Push, Problem> {
    let push = Push::parse(line, frame_bytes_max).map_err(Problem::bad_request)?;
    may_push(caller, &push)?;
    match push.to {
        Target::Sessions(_) => Err(Problem::bad_request("a push to all is no line of a batch: POST /v1/push it")),
        _ => Ok(push),
    }
}

async fn push_lines(
    api: &PushApi,
    caller: &CallerKey,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    if !["application/x-ndjson", "application/ndjson", "application/jsonl"].contains(&media_type(headers).as_str()) {
        let detail = "the body has to be a push a line: send it with Content-Type: application/x-ndjson";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let key = idempotency_key(headers)?;
    let _place = api.place_of_batch()?;
    let (body, room) = api.body(request).await?;
    let lines = lines(&body);
    if lines.len() > LINES_MAX {
        return Err(batch_too_long("lines"));
    }
    let pushes: Vec<Result<Push, Problem>> =
        lines.into_iter().map(|line| line_of_batch(line, caller, api.frame_bytes_max)).collect();
    drop((body, room));
    let (begun, recipients) = api.begin_batch(pushes, caller, key.as_deref())?;
    let (mut text, mut good, all) = (Vec::new(), 0, begun.len());
    for begun in begun {
        let result = match begun {
            Ok(begun) => {
                good += 1;
                LineResult::Pushed(Answer::of(&api.outcome(begun).await))
            }
            Err(problem) => {
                let (status, detail) = (problem.status().as_u16(), problem.detail().to_owned());
                LineResult::Refused { error: LineError { status, detail } }
            }
        };
        // Writing to a Vec does not fail, and these have no keys but words.
        let _ = serde_json::to_writer(&mut text, &result);
        text.push(b'\n');
    }
    let note = AuditNote(format!("{all} lines, {} refused, {recipients} recipients", all - good));
    Ok((Extension(note), [(header::CONTENT_TYPE, "application/x-ndjson")], text).into_response())
}

/// The lines of a batch; the last one may end or not.
fn lines(body: &[u8]) -> Vec<&[u8]> {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    if body.is_empty() {
        return Vec::new();
    }
    body.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_its_lines() {
        let none: [&[u8]; 0] = [];
        assert_eq!(lines(b""), none);
        assert_eq!(lines(b"\n"), none);
        assert_eq!(lines(b"a"), [b"a"]);
        assert_eq!(lines(b"a\r\nb\n"), [b"a", b"b"]);
        assert_eq!(lines(b"a\n\nb"), [b"a".as_slice(), b"", b"b"]);
    }

    #[test]
    fn an_idempotency_key_is_one() {
        let parse = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", axum::http::HeaderValue::from_str(value).unwrap());
            }
            idempotency_key(&headers).map_err(|problem| problem.detail().to_owned())
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["order 7"]), Ok(Some("order 7".to_owned())));
        let long = "x".repeat(256);
        for wrong in [&["a", "b"][..], &[""], &[&long], &["ä"]] {
            assert!(parse(wrong).is_err_and(|detail| detail.contains("1 to 255")), "{wrong:?}");
        }
    }
}
