//! The services of a node, as an operator sees them: who serves them, and that a worker is to get no more calls, or
//! another part of them.

use super::Node;
use super::groups::whole;
use crate::control::Control;
use crate::services::{ASIDE_MAX, Changed, InstanceChange, InstanceSeen, ServerSeen, ServerState, ServiceSeen};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use futures_channel::oneshot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use trunkline_router::http::{AuditNote, CallerKey, JsonBody, Needs, Problem, Routes, Scope};

/// How long the shards may take to answer, all together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest weight of a worker, as in SERVE.
const WEIGHT_MAX: u32 = 65_535;

/// Adds the routes.
pub(super) fn add(routes: Routes<Node>) -> Routes<Node> {
    routes.get("/v1/services", Needs::Read(Scope::NodesRead), show).patch(
        "/v1/services/{service}/instances/{name}",
        Needs::Change(Scope::ServicesWrite),
        change,
    )
}

#[derive(Serialize)]
struct ServicesDescription {
    services: Vec<ServiceDescription>,
}

#[derive(Serialize)]
struct ServiceDescription {
    service: u16,
    name: String,
    policy: &'static str,
    transport: &'static str,
    waiting: usize,
    instances: Vec<InstanceDescription>,
    servers: Vec<ServerDescription>,
    nodes: Vec<NodeWeight>,
}

/// An address of a server that is dialed.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ServerDescription {
    server: String,
    instance: String,
    state: &'static str,
    links: usize,
    failure: &'static str,
}

#[derive(Serialize)]
struct NodeWeight {
    node: String,
    weight: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct InstanceDescription {
    name: String,
    state: &'static str,
    weight: u32,
    backup: bool,
    links: usize,
    window: u64,
    calls: u64,
}

/// What several shards know of one worker.
#[derive(Debug)]
struct Merged {
    seen: InstanceSeen,
    window: u64,
    calls: u64,
    /// It has failed at each of them.
    failed: bool,
}

impl Merged {
    fn add(&mut self, seen: InstanceSeen) {
        if self.seen.links == 0 && seen.links > 0 {
            // A shard without a link to it knows only what was said of it.
            (self.seen.weight, self.seen.backup) = (seen.weight, seen.backup);
        }
        self.window += u64::from(seen.window);
        self.calls += u64::from(seen.calls);
        self.failed &= seen.failed;
        self.seen.links += seen.links;
        self.seen.drained |= seen.drained;
    }

    fn describe(self) -> InstanceDescription {
        let Merged { seen, window, calls, failed } = self;
        let state = match (seen.drained, window, failed) {
            (true, ..) => "drain",
            (_, 0, _) => "closed",
            (_, _, true) => "failed",
            _ => "active",
        };
        let InstanceSeen { name, weight, backup, links, .. } = seen;
        InstanceDescription { name, state, weight, backup, links, window, calls }
    }
}

/// Adds what a shard knows of servers to what others know: the best state of any link counts.
fn add_servers(known: &mut Vec<ServerSeen>, of_shard: Vec<ServerSeen>) {
    for seen in of_shard {
        let same = |other: &&mut ServerSeen| other.server == seen.server && other.instance == seen.instance;
        match known.iter_mut().find(same) {
            Some(before) => {
                before.links += seen.links;
                before.failure = before.failure.or(seen.failure);
                before.state = before.state.min(seen.state);
            }
            None => known.push(seen),
        }
    }
}

fn describe_server(seen: ServerSeen) -> ServerDescription {
    let ServerSeen { server, instance, state, links, failure } = seen;
    // One that serves some shards may have failed at others.
    let failure = failure.filter(|_| state != ServerState::Serving).map_or("", |failure| failure.word());
    ServerDescription { server, instance, state: state.word(), links, failure }
}

/// What all shards know, put together.
fn merge(shards: Vec<Vec<ServiceSeen>>) -> Vec<ServiceDescription> {
    let mut services: BTreeMap<u16, (ServiceSeen, BTreeMap<String, Merged>)> = BTreeMap::new();
    for mut seen in shards.into_iter().flatten() {
        let instances = std::mem::take(&mut seen.instances);
        let servers = std::mem::take(&mut seen.servers);
        let waiting = seen.waiting;
        let (service, merged) = services.entry(seen.service).or_insert_with(|| {
            let fresh = ServiceSeen { waiting: 0, ..seen.clone() };
            (fresh, BTreeMap::new())
        });
        service.waiting += waiting;
        add_servers(&mut service.servers, servers);
        if service.name.is_empty() && !seen.name.is_empty() {
            (service.name, service.policy) = (seen.name, seen.policy);
        }
        if service.nodes.is_empty() {
            service.nodes = seen.nodes;
        }
        for instance in instances {
            match merged.get_mut(&instance.name) {
                Some(known) => known.add(instance),
                None => {
                    let (window, calls) = (u64::from(instance.window), u64::from(instance.calls));
                    let merged_instance = Merged { window, calls, failed: instance.failed, seen: instance };
                    merged.insert(merged_instance.seen.name.clone(), merged_instance);
                }
            }
        }
    }
    let describe = |(seen, instances): (ServiceSeen, BTreeMap<String, Merged>)| ServiceDescription {
        service: seen.service,
        name: seen.name,
        policy: seen.policy.name(),
        transport: if seen.is_http { "http" } else { "workers" },
        waiting: seen.waiting,
        instances: instances.into_values().map(Merged::describe).collect(),
        servers: seen.servers.into_iter().map(describe_server).collect(),
        nodes: seen.nodes.into_iter().map(|(node, weight)| NodeWeight { node, weight }).collect(),
    };
    services.into_values().map(describe).collect()
}

/// Asks all shards.
async fn ask_all<T>(node: &Node, request: impl Fn(oneshot::Sender<T>) -> Control) -> Result<Vec<T>, Problem> {
    let shards =
        node.shards.get().ok_or_else(|| Problem::unavailable("the node is starting; try again in a moment"))?;
    let mut waiting = Vec::with_capacity(shards.ports.len());
    for (shard, port) in shards.ports.iter().enumerate() {
        let (sender, answer) = oneshot::channel();
        if port.send(request(sender)).is_err() {
            let detail = format!("shard {shard} has too many requests waiting; try again in a moment");
            return Err(Problem::unavailable(detail));
        }
        waiting.push(answer);
    }
    let until = Instant::now() + ANSWER_TIMEOUT;
    let mut answers = Vec::with_capacity(waiting.len());
    for (shard, answer) in waiting.into_iter().enumerate() {
        match timeout_at(until, answer).await {
            Ok(Ok(answer)) => answers.push(answer),
            Ok(Err(_)) => return Err(Problem::unavailable(format!("shard {shard} has ended"))),
            Err(_) => {
                let detail = format!("shard {shard} did not answer within {} s", ANSWER_TIMEOUT.as_secs());
                return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail));
            }
        }
    }
    Ok(answers)
}

async fn describe(node: &Node) -> Result<Vec<ServiceDescription>, Problem> {
    let answers = ask_all(node, |answer| Control::Services { answer }).await?;
    let known: Option<Vec<Vec<ServiceSeen>>> = answers.into_iter().collect();
    let no_services =
        || Problem::new(StatusCode::CONFLICT, "this node has no services: give --services-listen, or servers of one");
    known.map(merge).ok_or_else(no_services)
}

async fn show(State(node): State<Arc<Node>>) -> Result<Json<ServicesDescription>, Problem> {
    Ok(Json(ServicesDescription { services: describe(&node).await? }))
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StateWord {
    Active,
    Drain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    state: Option<StateWord>,
    #[serde(default, deserialize_with = "whole")]
    weight: Option<u32>,
}

/// It holds at this node until it is undone, or the worker has had no link for a day; of a server that is dialed as
/// long as its address is.
async fn change(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<CallerKey>,
    Path((service, name)): Path<(String, String)>,
    JsonBody(Change { state, weight }): JsonBody<Change>,
) -> Result<(Extension<AuditNote>, Json<InstanceDescription>), Problem> {
    let number = service.parse::<u16>().ok().filter(|number| *number != 0);
    let service = number.ok_or_else(|| Problem::bad_request("a service is a number from 1 to 65535"))?;
    if !caller.limits.may_use(service) {
        let detail = format!("this key may not change service {service}: its line in the keys file names others");
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    if weight.is_some_and(|weight| !(1..=WEIGHT_MAX).contains(&weight)) {
        return Err(Problem::bad_request(format!("a weight is a number from 1 to {WEIGHT_MAX}")));
    }
    if state.is_none() && weight.is_none() {
        return Err(Problem::bad_request("say what is to change: state, weight, or both"));
    }
    let drained = state.map(|state| matches!(state, StateWord::Drain));
    let change = InstanceChange { drained, weight };
    let ask = |is_known| {
        let (node, name) = (&node, &name);
        ask_all(node, move |answer| Control::Instance { service, name: name.clone(), change, is_known, answer })
    };
    let mut came = ask(false).await?;
    // A worker that comes back may do so at another shard.
    if came.contains(&Changed::Yes) && came.contains(&Changed::Unknown) {
        came = ask(true).await?;
    }
    let nobody = || {
        Problem::not_found(format!(
            "no worker {name:?} of service {service} is known at this node, or with that weight those of its workers \
             would add up to more than can be balanced"
        ))
    };
    if came.contains(&Changed::Full) {
        let detail = format!(
            "{ASIDE_MAX} workers of service {service} are drained or have a weight that was set here; make some of \
             them active again",
        );
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    if !came.contains(&Changed::Yes) {
        return Err(nobody());
    }
    let services = describe(&node).await?;
    let of_service = services.into_iter().find(|known| known.service == service).ok_or_else(nobody)?;
    let instance = of_service.instances.into_iter().find(|known| known.name == name).ok_or_else(nobody)?;
    let note = format!("service {service}, worker {name:?}: {}, weight {}", instance.state, instance.weight);
    Ok((Extension(AuditNote(note)), Json(instance)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::ServerFailure;
    use trunkline_router::Policy;

    #[test]
    fn what_shards_know_of_a_worker_is_put_together() {
        let seen = |name: &str, calls, failed, drained| InstanceSeen {
            name: name.to_owned(),
            weight: 2,
            backup: false,
            links: 1,
            window: 4,
            calls,
            drained,
            failed,
        };
        let of_shard = |waiting, instances| ServiceSeen {
            service: 7,
            name: "orders".to_owned(),
            policy: Policy::RoundRobin,
            is_http: false,
            waiting,
            instances,
            servers: Vec::new(),
            nodes: vec![("b".to_owned(), 3)],
        };
        let closed = InstanceSeen { window: 0, ..seen("c", 0, false, false) };
        let merged = merge(vec![
            vec![of_shard(1, vec![seen("a", 3, true, false), seen("b", 0, true, false), closed])],
            Vec::new(),
            vec![of_shard(2, vec![seen("a", 1, false, false), seen("d", 0, false, true)])],
        ]);
        let [service] = &merged[..] else { panic!("one service") };
        assert_eq!((service.service, service.waiting, service.nodes.len()), (7, 3, 1));
        let states: Vec<(&str, &str, usize, u64, u64)> =
            service.instances.iter().map(|it| (it.name.as_str(), it.state, it.links, it.window, it.calls)).collect();
        let expected =
            [("a", "active", 2, 8, 4), ("b", "failed", 1, 4, 0), ("c", "closed", 1, 0, 0), ("d", "drain", 1, 4, 0)];
        assert_eq!(states, expected);
    }

    #[test]
    fn what_shards_know_of_a_server_that_is_dialed_is_put_together() {
        let seen = |instance: &str, state, failure| ServerSeen {
            server: "orders:9000".to_owned(),
            instance: instance.to_owned(),
            state,
            links: usize::from(state == ServerState::Serving),
            failure,
        };
        let of_shard = |servers| ServiceSeen {
            service: 7,
            name: String::new(),
            policy: Policy::RoundRobin,
            is_http: false,
            waiting: 0,
            instances: Vec::new(),
            servers,
            nodes: Vec::new(),
        };
        let (refused, lost) = (Some(ServerFailure::Refused), Some(ServerFailure::Lost));
        let merged = merge(vec![
            vec![of_shard(vec![seen("a", ServerState::Serving, None), seen("b", ServerState::Failing, refused)])],
            // It does not dial.
            vec![of_shard(Vec::new())],
            vec![of_shard(vec![
                seen("a", ServerState::Failing, lost),
                seen("b", ServerState::Failing, lost),
                seen("c", ServerState::Connecting, None),
            ])],
        ]);
        let servers: Vec<(&str, &str, usize, &str)> =
            merged[0].servers.iter().map(|it| (it.instance.as_str(), it.state, it.links, it.failure)).collect();
        assert_eq!(servers, [("a", "serving", 1, ""), ("b", "failing", 0, "refused"), ("c", "connecting", 0, "")]);
    }
}
