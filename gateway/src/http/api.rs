//! The routes.

use super::cluster::{ClusterDescription, describe_cluster};
use super::document::DOCUMENT;
use super::{Node, NodeState, VERSION, groups, inbox, services};
use crate::clock::now_ms;
use crate::cluster::write_cluster;
use crate::control::{Control, Kicked, Rest};
use crate::drain::{Ending, Progress, Wanted};
use crate::metrics::StatType;
use crate::prometheus::{
    CONTENT_TYPE, Exposition, limit_values, write_certificates, write_limits, write_log, write_shards,
};
use crate::reload_request::{Change, Reloaded};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use futures_channel::oneshot;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trunkline_proto::DEVICE_BYTES_MAX;
use trunkline_router::hash::home_shard;
use trunkline_router::http::{AuditNote, JsonBody, Needs, Parameters, Places, Problem, Routes, Scope, UserInPath};
use trunkline_router::process::Process;
use trunkline_router::ring::WEIGHT_MAX;
use trunkline_store::{Reply, Request};

/// How long a shard may take to answer. It answers within a turn, so one that does not is in trouble.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a kick waits for a home that is just changing.
const KICK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before it asks again.
const KICK_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The API of a node.
pub fn router(node: Arc<Node>) -> Router {
    let access = Arc::clone(node.access());
    routes().into_router("; see /v1/openapi.json for what there is", access).with_state(node)
}

pub(super) fn routes() -> Routes<Node> {
    services::add(groups::add(Routes::new()))
        .reads()
        .get("/healthz", Needs::Nothing, async || "ok\n")
        .get("/readyz", Needs::Nothing, ready)
        .get("/metrics", Needs::Read(Scope::MetricsRead), metrics)
        .get("/v1/node", Needs::Read(Scope::NodesRead), describe_node)
        .post("/v1/node/drain", Needs::Change(Scope::Drain), begin_drain)
        .delete("/v1/node/drain", Needs::Change(Scope::Drain), call_off_drain)
        .post("/v1/node/weight", Needs::Change(Scope::Drain), set_weight)
        .post("/v1/node/reload", Needs::Change(Scope::Reload), reload)
        .post("/v1/users/{user}/kick", Needs::Change(Scope::Kick), kick_user)
        .get("/v1/users/{user}/inbox", Needs::Read(Scope::UsersRead), inbox::show)
        .delete("/v1/users/{user}/inbox", Needs::Change(Scope::AccountsWrite), inbox::empty)
        .delete("/v1/users/{user}/devices/{device}", Needs::Change(Scope::AccountsWrite), inbox::forget)
        .get("/v1/openapi.json", Needs::AnyKey, async || {
            ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
        })
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What does not work although the node serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    degraded: Vec<String>,
}

async fn ready(State(node): State<Arc<Node>>) -> Response {
    let state = node.state().as_str();
    let reason = node.unready();
    let ready = reason.is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let degraded = node.degraded();
    (status, Json(Readiness { ready, state, reason, degraded })).into_response()
}

async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let mut exposition = Exposition::default();
    exposition.name("trunkline_build_info", StatType::Gauge, "Always 1; its labels say what runs.");
    exposition.sample(&[("version", &VERSION), ("node", &node.name)], 1);
    exposition.name("trunkline_uptime_seconds", StatType::Gauge, "Time since the start.");
    exposition.sample(&[], node.started.elapsed().as_secs_f64());
    exposition.name("trunkline_ready", StatType::Gauge, "1 while /readyz is 200.");
    exposition.sample(&[], u8::from(node.unready().is_none()));
    // The scheduler's account is finer than that of /proc.
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu_seconds = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32).as_secs_f64();
    for (name, kind, help, value) in (Process { cpu_seconds: Some(cpu_seconds), ..Process::read() }).series() {
        exposition.name(name, if kind == "counter" { StatType::Counter } else { StatType::Gauge }, help);
        exposition.sample(&[], value);
    }
    exposition.name(
        "trunkline_connections_turned_away_total",
        StatType::Counter,
        "Connections that came before the node had joined its cluster and got BYE 14.",
    );
    exposition.sample(&[], node.turned_away().load(std::sync::atomic::Ordering::Relaxed));
    exposition.name("trunkline_shards_stuck", StatType::Gauge, "Shards that have not had a turn for 3 s.");
    exposition.sample(&[], node.pulse.stuck().len());
    for metric in node.places().metrics().into_iter().chain(node.access().metrics()) {
        let stat_type = if metric.is_counter { StatType::Counter } else { StatType::Gauge };
        exposition.name(metric.name, stat_type, metric.help);
        for (value, number) in &metric.samples {
            let labels: &[(&str, &dyn Display)] = &[(metric.label, value)];
            exposition.sample(if metric.label.is_empty() { &[] } else { labels }, number);
        }
    }
    if let Some(places) = node.services_places() {
        write_services_places(&mut exposition, places);
    }
    write_limits(&mut exposition, &node.limits());
    if let Some(tls) = node.tls() {
        write_certificates(&mut exposition, tls.current().certificates());
    }
    write_log(&mut exposition);
    if let Some(cluster) = node.cluster() {
        write_cluster(&mut exposition, cluster, now_ms());
    }
    if let Some(store) = node.store.get() {
        store.write(&mut exposition);
    }
    write_shards(&mut exposition, node.stats());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], exposition.finish()).into_response()
}

/// The numbers of the server for back-ends, under names of their own.
fn write_services_places(exposition: &mut Exposition, places: &Places) {
    const NAMES: [(&str, &str, &str); 5] = [
        ("trunkline_http_places", "trunkline_services_http_places", "Connections of back-ends served at a time."),
        (
            "trunkline_http_connections_open",
            "trunkline_services_http_connections_open",
            "Connections of back-ends that have a place.",
        ),
        (
            "trunkline_http_connections_accepted_total",
            "trunkline_services_http_connections_accepted_total",
            "Connections of back-ends accepted.",
        ),
        (
            "trunkline_http_connections_evicted_total",
            "trunkline_services_http_connections_evicted_total",
            "Connections of back-ends without a request that were ended because all places were taken.",
        ),
        (
            "trunkline_http_requests_refused_total",
            "trunkline_services_http_requests_refused_total",
            "Requests of back-ends answered 503 because as many were under way as may be.",
        ),
    ];
    for metric in places.metrics() {
        let Some((_, name, help)) = NAMES.iter().find(|(of_api, ..)| *of_api == metric.name) else { continue };
        exposition.name(name, if metric.is_counter { StatType::Counter } else { StatType::Gauge }, help);
        exposition.sample(&[], metric.samples[0].1);
    }
}

#[derive(Serialize)]
struct NodeDescription<'a> {
    node: &'a str,
    version: &'static str,
    state: &'static str,
    uptime_secs: u64,
    shards: usize,
    listen: &'a [SocketAddr],
    http: SocketAddr,
    connections: u64,
    sessions: u64,
    users: u64,
    /// Of each shard.
    limits: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain: Option<DrainDescription>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterDescription>,
}

#[derive(Serialize)]
struct DrainDescription {
    /// Whether the process ends with it.
    ends: bool,
    /// Sessions that have not been sent away yet.
    sessions_left: u64,
    /// Sessions sent away so far.
    moved: u64,
    /// Time until all are, and when that is in seconds since the Unix epoch; absent while the node leaves the ring,
    /// before any is.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms_left: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
}

fn describe_drain(node: &Node) -> Option<DrainDescription> {
    let Progress { moved, deadline_ms } = node.drain().progress(node.stats())?;
    let ms_left = deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(now_ms()));
    let wall_ms = |from_now_ms: u64| {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (since_1970 + Duration::from_millis(from_now_ms)).as_secs()
    };
    Some(DrainDescription {
        ends: node.drain().wanted() == Wanted::End,
        sessions_left: node.sum(|stats| stats.sessions.get()),
        moved,
        ms_left,
        deadline: ms_left.map(wall_ms),
    })
}

/// Accepted and not done: `GET /v1/node` shows how far it is.
async fn begin_drain(State(node): State<Arc<Node>>) -> Result<Response, Problem> {
    if node.state() == NodeState::Starting {
        return Err(Problem::unavailable("the node is starting; try again in a moment"));
    }
    tracing::info!("a drain was asked for by the API");
    node.drain().drain(node.stats());
    Ok((StatusCode::ACCEPTED, describe_node(State(node)).await).into_response())
}

async fn call_off_drain(State(node): State<Arc<Node>>) -> Result<Response, Problem> {
    node.drain().call_off().map_err(|Ending| {
        let detail = "the process was told to end by a signal, which cannot be called off; start the node again when \
                      it has ended";
        Problem::new(StatusCode::CONFLICT, detail)
    })?;
    Ok(describe_node(State(node)).await)
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Weight {
    weight: u32,
}

/// Told to the other nodes within a second. It lasts until the process ends or the setting is changed and reloaded.
async fn set_weight(
    State(node): State<Arc<Node>>,
    JsonBody(Weight { weight }): JsonBody<Weight>,
) -> Result<(Extension<AuditNote>, Json<Weight>), Problem> {
    if !(1..=WEIGHT_MAX).contains(&weight) {
        return Err(Problem::bad_request(format!("a weight is a number from 1 to {WEIGHT_MAX}")));
    }
    let Some(place) = node.place() else {
        return Err(match node.joins {
            true => Problem::unavailable("the node has not joined its cluster yet; try again in a moment"),
            false => {
                Problem::new(StatusCode::CONFLICT, "the node is alone, so its weight has no meaning; give --redis")
            }
        });
    };
    place.weigh(weight).await;
    Ok((Extension(AuditNote(format!("weight {weight}"))), Json(Weight { weight })))
}

#[derive(Serialize)]
struct ReloadAnswer {
    applied: Vec<ChangeDescription>,
    needs_restart: Vec<ChangeDescription>,
}

#[derive(Serialize)]
struct ChangeDescription {
    setting: &'static str,
    change: String,
}

impl ChangeDescription {
    fn of(changes: Vec<Change>) -> Vec<Self> {
        changes.into_iter().map(|Change { key, what }| ChangeDescription { setting: key, change: what }).collect()
    }
}

/// The same as SIGHUP, whose outcome stands in the log alone.
async fn reload(State(node): State<Arc<Node>>) -> Result<(Extension<AuditNote>, Json<ReloadAnswer>), Problem> {
    let Some(reload) = node.reload() else {
        return Err(Problem::unavailable("the node is starting; try again in a moment"));
    };
    let Reloaded { applied, needs_restart } = reload.ask().await.map_err(|error| {
        let detail = format!("the configuration in force stays: {error}");
        Problem::new(StatusCode::CONFLICT, detail)
    })?;
    let note = AuditNote(format!("{} settings changed", applied.len()));
    let answer =
        ReloadAnswer { applied: ChangeDescription::of(applied), needs_restart: ChangeDescription::of(needs_restart) };
    Ok((Extension(note), Json(answer)))
}

async fn describe_node(State(node): State<Arc<Node>>) -> Response {
    Json(NodeDescription {
        node: &node.name,
        version: VERSION,
        state: node.state().as_str(),
        uptime_secs: node.started.elapsed().as_secs(),
        shards: node.stats().len(),
        listen: &node.listen,
        http: node.http,
        connections: node.sum(|stats| stats.open.get()),
        sessions: node.sum(|stats| stats.sessions.get()),
        users: node.sum(|stats| stats.users.get()),
        limits: limit_values(&node.limits()).into_iter().collect(),
        drain: describe_drain(&node),
        cluster: node.cluster().map(|cluster| describe_cluster(cluster, now_ms())),
    })
    .into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KickQuery {
    device: Option<String>,
}

#[derive(Serialize)]
struct KickAnswer {
    kicked: u32,
}

async fn kick_user(
    State(node): State<Arc<Node>>,
    UserInPath(user): UserInPath,
    Parameters(KickQuery { device }): Parameters<KickQuery>,
) -> Result<(Extension<AuditNote>, Json<KickAnswer>), Problem> {
    let nobody = || match &device {
        Some(device) => Problem::not_found(format!("user {user} has no session of device {device:?} on any node")),
        None => Problem::not_found(format!("user {user} has no session on any node")),
    };
    // No client has such a name, and between nodes it would not be carried.
    if device.as_ref().is_some_and(|device| device.len() > DEVICE_BYTES_MAX) {
        return Err(nobody());
    }
    let deadline = Instant::now() + KICK_TIMEOUT;
    let mut ended = 0;
    let left = loop {
        let kick = |answer| Control::Kick { user, device: device.clone(), answer };
        let (_, Kicked { ended: more, rest }) = ask(&node, user, kick).await?;
        ended += more;
        match rest {
            Rest::Nothing if ended == 0 => return Err(nobody()),
            Rest::Nothing => {
                let note = Extension(AuditNote(format!("{ended} sessions ended")));
                return Ok((note, Json(KickAnswer { kicked: ended })));
            }
            Rest::Unconfirmed(left) => break format!("{left} on other nodes were told to end and have not answered"),
            Rest::Busy => break "too many kicks are under way for more".to_owned(),
            Rest::Unreachable => break "the user's home node could not be asked for those on other nodes".to_owned(),
            Rest::Unsettled if Instant::now() < deadline => tokio::time::sleep(KICK_RETRY_PAUSE).await,
            Rest::Unsettled => break "the home of the user is just changing, and nobody knows all of them".to_owned(),
        }
    };
    Err(Problem::unavailable(format!("{ended} sessions were ended; {left}. Try again in a moment")))
}

/// Asks the store about a user, through the user's shard, which may have to know.
pub(super) async fn ask_store(
    node: &Node,
    user: u64,
    forgets: Option<(u16, u32)>,
    request: fn(u64, (u16, u32), u64) -> Request,
) -> Result<Reply, Problem> {
    if node.store.get().is_none() {
        return Err(inbox::no_store());
    }
    match ask(node, user, |answer| Control::Store { user, forgets, ask: request, answer }).await {
        Ok((_, reply)) => Ok(reply),
        Err(problem) => Err(problem),
    }
}

/// Asks the home shard of a user. Returns the shard and its answer.
pub(super) async fn ask<T>(
    node: &Node,
    user: u64,
    request: impl FnOnce(oneshot::Sender<T>) -> Control,
) -> Result<(u32, T), Problem> {
    let shards =
        node.shards.get().ok_or_else(|| Problem::unavailable("the node is starting; try again in a moment"))?;
    let shard = home_shard(user, shards.ports.len() as u32);
    let (sender, answer) = oneshot::channel();
    if shards.ports[shard as usize].send(request(sender)).is_err() {
        return Err(Problem::unavailable(format!(
            "shard {shard} has too many requests waiting; try again in a moment"
        )));
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok((shard, answer)),
        Ok(Err(_)) => Err(Problem::unavailable(format!("shard {shard} has ended"))),
        Err(_) => {
            let detail = format!("shard {shard} did not answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        }
    }
}
