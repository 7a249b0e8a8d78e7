//! The numbers of a router in the Prometheus text exposition format, version 0.0.4.

use super::Source;
use super::service::{Readiness, Service};
use crate::dispatch::Strategy;
use crate::log;
use crate::membership::NodeState;
use crate::process::Process;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// `Content-Type` of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Requests by route and status. Bounded: routes are those of the server, and handlers give few statuses.
#[derive(Debug, Default)]
pub(super) struct RequestCounts(Mutex<BTreeMap<(String, u16), u64>>);

impl RequestCounts {
    pub(super) fn count(&self, route: &str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route.to_owned(), status)).or_default() += 1;
    }
}

/// All metrics of a router.
pub(super) fn exposition(service: &Service) -> String {
    let mut text = Exposition::default();
    text.name("trunkline_build_info", "gauge", "Always 1; its labels say what runs.");
    text.sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1);
    for (name, kind, help, value) in Process::read().series() {
        text.name(name, kind, help);
        text.sample(&[], value);
    }
    text.name("trunkline_uptime_seconds", "gauge", "Time since the start.");
    text.sample(&[], service.uptime().as_secs_f64());
    let readiness = service.readiness();
    let is_ready = matches!(readiness, Readiness::Running | Readiness::Degraded(_));
    text.name("trunkline_ready", "gauge", "1 while /readyz is 200.");
    text.sample(&[], u8::from(is_ready));
    text.name(
        "trunkline_router_degraded",
        "gauge",
        "1 while Redis does not answer or lacks leases of nodes that serve on, and the last view is used.",
    );
    text.sample(&[], u8::from(matches!(readiness, Readiness::Degraded(_))));
    text.name("trunkline_router_polls_total", "counter", "Polls of Redis for the leases of all nodes.");
    text.sample(&[], service.polls.load(Ordering::Relaxed));
    text.name("trunkline_router_poll_failures_total", "counter", "Polls that failed.");
    text.sample(&[], service.poll_failures.load(Ordering::Relaxed));
    if let Ok(picture) = service.picture() {
        text.name("trunkline_router_view_epoch", "gauge", "Epoch of the view.");
        text.sample(&[], picture.view.epoch);
        text.name("trunkline_router_view_age_seconds", "gauge", "Time since the last poll that worked.");
        text.sample(&[], picture.age_ms as f64 / 1_000.0);
        text.name("trunkline_router_nodes", "gauge", "Nodes with a live lease, by state.");
        for (label, state) in
            [("joining", NodeState::Joining), ("active", NodeState::Active), ("draining", NodeState::Draining)]
        {
            let count = picture.view.members.iter().filter(|member| member.state == state).count();
            text.sample(&[("state", &label)], count);
        }
    }
    text.name("trunkline_router_logins_total", "counter", "Logins dispatched, by strategy.");
    for strategy in Strategy::ALL {
        text.sample(&[("strategy", &strategy)], service.logins[strategy as usize].load(Ordering::Relaxed));
    }
    let dispatch = service.dispatch_stats();
    text.name("trunkline_router_logins_spilled_total", "counter", "Logins from a zone that were sent to another zone.");
    text.sample(&[], dispatch.spilled);
    text.name(
        "trunkline_router_failures_reported_total",
        "counter",
        "Nodes that logins named as failed, by whether it counted.",
    );
    text.sample(&[("counted", &"yes")], dispatch.reports_counted);
    text.sample(&[("counted", &"no")], dispatch.reports_ignored);
    text.name(
        "trunkline_router_nodes_suspended",
        "gauge",
        "Active nodes that reports of clients keep out for a moment.",
    );
    text.sample(&[], dispatch.suspended);
    text.name("trunkline_router_requests_total", "counter", "HTTP requests answered, by route and status.");
    let counts = service.requests.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for ((route, status), count) in &counts {
        text.sample(&[("route", route), ("status", status)], count);
    }
    text.name(
        "trunkline_router_relayed_total",
        "counter",
        "Requests about groups and inboxes that were to be passed on to a node, by what became of them.",
    );
    for (outcome, count) in service.relays().outcomes() {
        text.sample(&[("outcome", &outcome)], count);
    }
    text.name("trunkline_router_relays_open", "gauge", "Requests passed on to nodes whose answer has not passed yet.");
    text.sample(&[], service.relays().under_way());
    for metric in service.places().metrics().into_iter().chain(service.access().metrics()) {
        text.name(metric.name, if metric.is_counter { "counter" } else { "gauge" }, metric.help);
        for (value, number) in &metric.samples {
            let labels: &[(&str, &dyn Display)] = &[(metric.label, value)];
            text.sample(if metric.label.is_empty() { &[] } else { labels }, number);
        }
    }
    let mut name = "";
    for counter in log::counters() {
        if name != counter.name {
            name = counter.name;
            text.name(name, "counter", counter.help);
        }
        match &counter.reason {
            Some(reason) => text.sample(&[("reason", reason)], counter.value),
            None => text.sample(&[], counter.value),
        }
    }
    let plane = service.plane().metrics().snapshot();
    text.name("trunkline_cluster_names", "gauge", "Names on the list of nodes, those ended within a minute included.");
    text.sample(&[], plane.names);
    for (name, help, value) in [
        ("trunkline_redis_commands_total", "Commands sent to Redis, scripts included.", plane.commands),
        (
            "trunkline_redis_command_errors_total",
            "Commands that ended in an error or a time-out.",
            plane.command_errors,
        ),
        ("trunkline_redis_garbage_total", "Records and entries in Redis that cannot be read.", plane.garbage),
    ] {
        text.name(name, "counter", help);
        text.sample(&[], value);
    }
    text.0
}

#[derive(Default)]
struct Exposition(String, &'static str);

impl Exposition {
    /// Begins the series of a name. All of them must follow before the next name.
    fn name(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A sample of the name begun last.
    fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(self.1);
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if at == 0 { "{" } else { "," });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}
