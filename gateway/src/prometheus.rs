//! The Prometheus text exposition format, version 0.0.4.

use crate::auth::Refusal;
use crate::broadcast::BROADCASTS_MAX;
use crate::desk::{GAPS_MAX, PAGES_MAX};
use crate::events::{AGE_MS_MAX, GOING_MAX, HELD_MAX, KEPT_MS, PORTAL_BYTES as EVENT_PORTAL_BYTES, log_bytes_max};
use crate::limits::{
    ATTENTION_WAITING_MAX, DUPLICATES_MAX, KICKS_MAX, LOG_LOOKS_MAX, Limits, ROOM_GATHER_BYTES_MAX,
    ROOM_JOINS_WAITING_MAX, STORE_ANSWER_MS,
};
use crate::mesh::peers::{LATER_MAX, LINKS_MAX, STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX};
use crate::metrics::{Histogram, ShardStats, StatInfo, StatType, Times, TlsOutcome};
use crate::push::KEYS_MAX as PUSH_KEYS_MAX;
use crate::push::api::{BATCHES_MAX, BODIES_BYTES_MAX};
use crate::pushed::PUSHED_MAX;
use crate::reason::CloseReason;
use crate::services::{
    DIALED_MAX, LINKS_MAX as SERVICE_LINKS_MAX, MORE_MS, PLACES_MAX as SERVICE_PLACES_MAX, RETRIES_PER_SEC, ServiceSpec,
};
use crate::transport::tls::{Alert, Certificates, Suite, Version};
use crate::transport::upgrade::Refusal as RequestRefusal;
use crate::upstream::answer_bytes_max;
use std::fmt::{Display, Write};
use std::sync::Arc;
use trunkline_router::log;

/// `Content-Type` of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text being written, one metric name after the other.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins the series of a name. All of them must follow before the next name.
    pub fn name(&mut self, name: &'static str, stat_type: StatType, help: &str) {
        let stat_type = match stat_type {
            StatType::Counter => "counter",
            StatType::Gauge | StatType::GaugeMicros => "gauge",
            StatType::Histogram => "histogram",
        };
        self.name = name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {stat_type}\n");
    }

    /// A sample of the name begun last. `labels` are written escaped.
    pub fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.sample_with("", labels, value);
    }

    /// A sample with labels that stand as they are to be written, before the others.
    fn sample_with(&mut self, raw_labels: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.part(raw_labels, "", labels, value);
    }

    /// All series of a histogram.
    pub fn histogram(&mut self, name: &'static str, help: &str, times: &Times) {
        self.name(name, StatType::Histogram, help);
        let (below, count, sum) = times.cumulated();
        for (bound, times) in below {
            self.part("", "_bucket", &[("le", &bound)], times);
        }
        self.part("", "_bucket", &[("le", &"+Inf")], count);
        self.part("", "_sum", &[], sum);
        self.part("", "_count", &[], count);
    }

    /// All series of a histogram that is counted elsewhere: its bounds and its sum in microseconds, and what fell into
    /// each place between them and above.
    pub fn buckets(&mut self, name: &'static str, help: &str, bounds_us: &[u64], counts: &[u64], sum_us: u64) {
        self.name(name, StatType::Histogram, help);
        let mut below = 0;
        for (bound, count) in bounds_us.iter().zip(counts) {
            below += count;
            self.part("", "_bucket", &[("le", &(*bound as f64 / 1e6))], below);
        }
        let count: u64 = counts.iter().sum();
        self.part("", "_bucket", &[("le", &"+Inf")], count);
        self.part("", "_sum", &[], sum_us as f64 / 1e6);
        self.part("", "_count", &[], count);
    }

    fn part(&mut self, raw_labels: &str, suffix: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        if !raw_labels.is_empty() || !labels.is_empty() {
            self.text.push('{');
            self.text.push_str(raw_labels);
            for (at, (label, value)) in labels.iter().enumerate() {
                let comma = if at == 0 && raw_labels.is_empty() { "" } else { "," };
                let _ = write!(self.text, "{comma}{label}=\"");
                escape(&mut self.text, &value.to_string());
                self.text.push('"');
            }
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

/// Writes all series of the shards.
pub fn write_shards(exposition: &mut Exposition, shards: &[Arc<ShardStats>]) {
    let readings: Vec<Vec<(StatInfo, u64)>> = shards
        .iter()
        .map(|stats| {
            let mut reading = Vec::new();
            stats.visit(|info, value| reading.push((info, value)));
            reading
        })
        .collect();
    let mut name = "";
    for series in 0..readings.first().map_or(0, Vec::len) {
        for (shard, reading) in readings.iter().enumerate() {
            let (info, value) = reading[series];
            if info.name != name {
                name = info.name;
                exposition.name(info.name, info.stat_type, info.help);
            }
            if info.stat_type == StatType::GaugeMicros {
                exposition.sample_with(info.labels, &[("shard", &shard)], value as f64 / 1e6);
            } else {
                exposition.sample_with(info.labels, &[("shard", &shard)], value);
            }
        }
    }
    exposition.name(
        "trunkline_connections_closed_total",
        StatType::Counter,
        "Connections closed, by the one reason each ended with.",
    );
    for (shard, stats) in shards.iter().enumerate() {
        for reason in CloseReason::ALL {
            exposition.sample(&[("shard", &shard), ("reason", &reason.label())], stats.closed(*reason));
        }
    }
    write_refusals(exposition, shards);
    write_request_refusals(exposition, shards);
    write_tls(exposition, shards);
    write_times(exposition, shards);
}

/// Writes the histograms, of all shards together.
fn write_times(exposition: &mut Exposition, shards: &[Arc<ShardStats>]) {
    let all = |of: fn(&ShardStats) -> &Histogram| {
        let mut times = Times::default();
        shards.iter().for_each(|stats| times.add(&of(stats).times()));
        times
    };
    exposition.histogram(
        "trunkline_turn_duration_seconds",
        "Length of the shards' turns: of those with 32 completions or more, and of each sixteenth of the others.",
        &all(|stats| &stats.turn_time),
    );
    exposition.histogram(
        "trunkline_login_duration_seconds",
        "Time from LOGIN to LOGIN_OK, in steps of a turn.",
        &all(|stats| &stats.login_time),
    );
    exposition.histogram(
        "trunkline_connect_hook_duration_seconds",
        "Time from a request to the connect-time hook to its answer, or to its failure.",
        &all(|stats| &stats.hook_time),
    );
    exposition.histogram(
        "trunkline_mesh_delivery_duration_seconds",
        "Time from the sending of records to another node to their confirmation, in steps of a millisecond.",
        &all(|stats| &stats.mesh_time),
    );
    exposition.histogram(
        "trunkline_view_change_duration_seconds",
        "Time from a change of the view to when a shard had told all other nodes of its sessions.",
        &all(|stats| &stats.view_change_time),
    );
    exposition.histogram(
        "trunkline_settling_duration_seconds",
        "Time from a change of the view to when all other nodes had told a shard of their sessions, or were waited for no longer.",
        &all(|stats| &stats.settling_time),
    );
}

/// Writes what was wrong with refused tokens.
fn write_refusals(exposition: &mut Exposition, shards: &[Arc<ShardStats>]) {
    let help = "Tokens refused, of LOGIN and RENEW, by what was wrong with them.";
    exposition.name("trunkline_tokens_refused_total", StatType::Counter, help);
    for (shard, stats) in shards.iter().enumerate() {
        for refusal in Refusal::ALL {
            exposition.sample(&[("shard", &shard), ("reason", &refusal.label())], stats.refused(*refusal));
        }
    }
}

/// Writes what was wrong with refused requests.
fn write_request_refusals(exposition: &mut Exposition, shards: &[Arc<ShardStats>]) {
    let help = "Requests on the ports for clients that were refused, by what was wrong with them.";
    exposition.name("trunkline_requests_refused_total", StatType::Counter, help);
    for (shard, stats) in shards.iter().enumerate() {
        for refusal in RequestRefusal::ALL {
            exposition.sample(&[("shard", &shard), ("reason", &refusal.label())], stats.request_refused(*refusal));
        }
    }
}

/// Writes what became of handshakes of TLS, and of the connections that came of them.
fn write_tls(exposition: &mut Exposition, shards: &[Arc<ShardStats>]) {
    let help = "Handshakes of TLS, by how they ended.";
    exposition.name("trunkline_tls_handshakes_total", StatType::Counter, help);
    for (shard, stats) in shards.iter().enumerate() {
        for outcome in TlsOutcome::ALL {
            exposition.sample(&[("shard", &shard), ("outcome", &outcome.label())], stats.handshakes(*outcome));
        }
    }
    let help = "Connections over TLS, by version and cipher.";
    exposition.name("trunkline_tls_connections_total", StatType::Counter, help);
    for (shard, stats) in shards.iter().enumerate() {
        for version in [Version::Tls12, Version::Tls13] {
            for suite in Suite::ALL {
                let labels: [(&str, &dyn Display); 3] =
                    [("shard", &shard), ("version", &version.label()), ("cipher", &suite.label())];
                exposition.sample(&labels, stats.tls(version, *suite));
            }
        }
    }
    let help = "Alerts of TLS but those that end a connection in order, by who sent them.";
    exposition.name("trunkline_tls_alerts_total", StatType::Counter, help);
    for (shard, stats) in shards.iter().enumerate() {
        for alert in Alert::ALL.iter().filter(|alert| **alert != Alert::CloseNotify) {
            let (sent, received) = stats.alerts(*alert);
            for (by, count) in [("node", sent), ("peer", received)] {
                exposition.sample(&[("shard", &shard), ("by", &by), ("alert", &alert.label())], count);
            }
        }
    }
}

/// Every limit of one shard with the name it has in `trunkline_limit_hits_total`, where it has one: bytes, seconds or a
/// count; 0 is off.
pub fn limit_values(limits: &Limits) -> [(&'static str, u64); 113] {
    [
        ("connections", limits.connections_max.into()),
        ("login_timeout", limits.login_timeout_ms / 1_000),
        ("logins_per_sec", limits.logins_per_sec.into()),
        ("accepts_per_turn", limits.accepts_per_turn.into()),
        ("renew", limits.renew_ms / 1_000),
        ("devices_per_user", limits.devices_per_user_max as u64),
        ("heartbeat", limits.heartbeat_secs.into()),
        ("heartbeat_min", limits.heartbeat_secs_min.into()),
        ("heartbeat_max", limits.heartbeat_secs_max.into()),
        ("frame_bytes", limits.frame_bytes_max.into()),
        ("frames_per_sec", limits.frames_per_sec.into()),
        ("outbox_bytes", limits.outbox_bytes_max as u64),
        ("outbox_burst_bytes", limits.outbox_burst_bytes_max as u64),
        ("outbox_total_bytes", limits.outbox_total_bytes_max as u64),
        ("outbox_full_time", limits.outbox_full_ms_max / 1_000),
        ("mailbox", limits.mailbox_bytes_max as u64),
        ("unacked_per_user", limits.unacked_per_user_max as u64),
        ("unacked_bytes_per_user", limits.unacked_bytes_per_user_max as u64),
        ("unacked_total_bytes", limits.unacked_total_bytes_max as u64),
        ("redeliver", limits.redeliver_ms / 1_000),
        ("redeliver_attempts", limits.redeliver_attempts_max.into()),
        ("turn_units", limits.turn_units_max.into()),
        ("users", u64::from(limits.connections_max) + u64::from(limits.remote_sessions_max)),
        ("unsent_bytes", limits.unsent_bytes_max.into()),
        ("tcp_user_timeout", limits.tcp_user_timeout_ms / 1_000),
        ("recv_buffers", limits.recv_buffers.into()),
        ("partial_bytes", limits.partial_total_bytes_max as u64),
        ("drain", limits.drain_ms / 1_000),
        ("mesh_bytes", limits.mesh_bytes_max as u64),
        ("mesh_strangers", STRANGERS_MAX as u64),
        ("mesh_strangers_per_address", STRANGERS_PER_ADDRESS_MAX as u64),
        ("mesh_links", LINKS_MAX as u64),
        ("mesh_unknown_nodes", LATER_MAX as u64),
        ("messages_owed", limits.sent_away_max as u64),
        ("parked_bytes", limits.parked_bytes_max as u64),
        ("remote_sessions", limits.remote_sessions_max.into()),
        ("kicks", KICKS_MAX as u64),
        ("addresses", limits.addresses_max.into()),
        ("address_connections", limits.address_connections_max.into()),
        ("address_connections_per_sec", limits.address_connections_per_sec.into()),
        ("address_handshakes_per_sec", limits.address_handshakes_per_sec.into()),
        ("store_after_time", limits.store_after_ms.div_ceil(1_000)),
        ("inbox", limits.inbox_messages_max),
        ("inbox_bytes", limits.inbox_bytes_max),
        ("inbox_age_time", limits.inbox_age_secs),
        ("device_age_time", limits.device_age_secs),
        ("store_mail_bytes", limits.store_mail_bytes_max),
        ("store_bytes", limits.store_bytes_max),
        ("store_users", limits.store_users_max),
        ("store_gaps", GAPS_MAX as u64),
        ("store_recent_bytes", limits.store_recent_bytes_max),
        ("store_answer_time", if limits.store_after_ms > 0 { STORE_ANSWER_MS / 1_000 } else { 0 }),
        ("replay_window", limits.replay_window.into()),
        ("log_looks", LOG_LOOKS_MAX as u64),
        ("syncs", PAGES_MAX as u64),
        ("messages_remembered", DUPLICATES_MAX as u64),
        ("pushes_remembered", PUSHED_MAX as u64),
        ("group_members", limits.groups.members_max),
        ("groups_per_user", limits.groups.per_user_max),
        ("group_messages", limits.groups.messages_max),
        ("group_age_time", limits.groups.age_secs),
        ("group_sends_per_sec", limits.groups.sends_per_sec.into()),
        ("group_member_sends_per_sec", limits.groups.member_sends_per_sec.into()),
        ("group_memberships", limits.groups.memberships_max),
        ("room_joins_waiting", ROOM_JOINS_WAITING_MAX as u64),
        ("group_attention_waiting", ATTENTION_WAITING_MAX as u64),
        ("group_passive_above", limits.groups.passive_above),
        ("room_gather_bytes", ROOM_GATHER_BYTES_MAX as u64),
        ("room_frames_per_sec", limits.groups.room_frames_per_sec.into()),
        ("group_queue_bytes", limits.groups.queue_bytes_max as u64),
        ("send_users", limits.send.users_max.into()),
        ("send_bytes", limits.send.bytes_max as u64),
        ("watches_per_session", limits.watch.per_session_max.into()),
        ("watch_bytes", limits.watch.bytes_max as u64),
        ("calls_per_session", limits.calls_per_session_max.into()),
        ("calls", limits.calls_max.into()),
        ("call_queue", if limits.calls_max > 0 { ServiceSpec::of(1).queue.into() } else { 0 }),
        ("call_time", if limits.calls_max > 0 { ServiceSpec::of(1).call_timeout_ms / 1_000 } else { 0 }),
        ("call_more_time", if limits.calls_max > 0 { MORE_MS / 1_000 } else { 0 }),
        ("call_retries", if limits.calls_max > 0 { RETRIES_PER_SEC } else { 0 }),
        ("calls_kept_bytes", limits.calls_kept_bytes_max as u64),
        ("link_outbox_bytes", limits.link_outbox_bytes_max as u64),
        ("service_links", if limits.calls_max > 0 { SERVICE_LINKS_MAX as u64 } else { 0 }),
        ("service_servers", if limits.calls_max > 0 { DIALED_MAX as u64 } else { 0 }),
        ("service_places", if limits.calls_max > 0 { SERVICE_PLACES_MAX as u64 } else { 0 }),
        ("call_portal_bytes", if limits.upstream_bytes_max > 0 { limits.portal_bytes_max as u64 } else { 0 }),
        ("upstream_bytes", limits.upstream_bytes_max as u64),
        ("upstream_answer_bytes", if limits.upstream_bytes_max > 0 { answer_bytes_max(limits) as u64 } else { 0 }),
        ("upstream_queue", if limits.upstream_bytes_max > 0 { ServiceSpec::of(1).queue.into() } else { 0 }),
        ("upstream_time", if limits.upstream_bytes_max > 0 { ServiceSpec::of(1).call_timeout_ms / 1_000 } else { 0 }),
        ("upstream_more_time", if limits.upstream_bytes_max > 0 { MORE_MS / 1_000 } else { 0 }),
        ("upstream_retries", if limits.upstream_bytes_max > 0 { RETRIES_PER_SEC } else { 0 }),
        ("upstream_conns", limits.upstream_conns_max.into()),
        ("portal_bytes", limits.portal_bytes_max as u64),
        ("pushes_open", limits.pushes_open_max.into()),
        ("pushes_per_user_per_sec", limits.pushes_per_user_per_sec.into()),
        ("pushes_per_key_per_sec", limits.pushes_per_key_per_sec.into()),
        ("broadcast_per_sec", limits.broadcast_per_sec.into()),
        ("broadcasts", if limits.pushes_open_max > 0 { BROADCASTS_MAX as u64 } else { 0 }),
        ("push_bodies_bytes", if limits.pushes_open_max > 0 { BODIES_BYTES_MAX as u64 } else { 0 }),
        ("push_batches", if limits.pushes_open_max > 0 { BATCHES_MAX as u64 } else { 0 }),
        ("push_keys_remembered", if limits.pushes_open_max > 0 { PUSH_KEYS_MAX as u64 } else { 0 }),
        ("webhook_bytes", limits.webhook_bytes_max as u64),
        ("webhook_age_time", if limits.webhooks > 0 { AGE_MS_MAX / 1_000 } else { 0 }),
        ("event_portal_bytes", if limits.webhooks > 0 { EVENT_PORTAL_BYTES as u64 } else { 0 }),
        ("event_log_bytes", if limits.webhooks > 0 { log_bytes_max(limits.webhook_bytes_max as u64) } else { 0 }),
        ("event_kept_time", if limits.webhooks > 0 { KEPT_MS / 1_000 } else { 0 }),
        ("events_held", if limits.webhooks > 0 { HELD_MAX as u64 } else { 0 }),
        ("users_going", if limits.webhooks > 0 { GOING_MAX as u64 } else { 0 }),
        ("connect_hook_waiting", limits.hook_waiting_max.into()),
        ("connect_hook_cache_bytes", limits.hook_cache_bytes_max as u64),
        ("tls_handshakes", limits.tls_handshakes_max.into()),
        ("tls_handshakes_per_turn", limits.tls_handshakes_per_turn.into()),
    ]
}

/// What the value of a limit is: a name of metrics has one unit only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Seconds,
    Count,
}

impl Unit {
    /// By the name of the limit.
    fn of(limit: &str) -> Self {
        const SECONDS: [&str; 8] = [
            "login_timeout",
            "renew",
            "heartbeat",
            "heartbeat_min",
            "heartbeat_max",
            "outbox_full_time",
            "redeliver",
            "drain",
        ];
        if limit.contains("bytes") || limit == "mailbox" {
            Unit::Bytes
        } else if SECONDS.contains(&limit) || limit.ends_with("_time") || limit.ends_with("timeout") {
            Unit::Seconds
        } else {
            Unit::Count
        }
    }
}

/// Writes the value of every limit.
pub fn write_limits(exposition: &mut Exposition, limits: &Limits) {
    for (unit, name, help) in [
        (Unit::Bytes, "trunkline_limit_bytes", "Value of each limit of one shard that is in bytes."),
        (Unit::Seconds, "trunkline_limit_seconds", "Value of each limit of one shard that is a time."),
        (
            Unit::Count,
            "trunkline_limit",
            "Value of each limit of one shard that is a number, or one for each second; 0 is off.",
        ),
    ] {
        exposition.name(name, StatType::Gauge, help);
        for (limit, value) in limit_values(limits).into_iter().filter(|(limit, _)| Unit::of(limit) == unit) {
            exposition.sample(&[("limit", &limit)], value);
        }
    }
}

/// Writes until when each certificate holds.
pub fn write_certificates(exposition: &mut Exposition, certificates: &Certificates) {
    let help = "Last second in which each certificate of TLS holds, since the Unix epoch; \
                its number is its place in tls_cert.";
    exposition.name("trunkline_tls_certificate_expiry_timestamp_seconds", StatType::Gauge, help);
    for (number, certificate) in certificates.all().iter().enumerate() {
        let name = certificate.names.first().map_or("", String::as_str);
        exposition.sample(&[("certificate", &number), ("name", &name)], certificate.not_after_s);
    }
}

/// Writes the counters of what this process says and of panics.
pub fn write_log(exposition: &mut Exposition) {
    let mut name = "";
    for counter in log::counters() {
        if name != counter.name {
            name = counter.name;
            exposition.name(counter.name, StatType::Counter, counter.help);
        }
        match &counter.reason {
            Some(reason) => exposition.sample(&[("reason", reason)], counter.value),
            None => exposition.sample(&[], counter.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn shards(count: usize) -> Vec<Arc<ShardStats>> {
        (0..count).map(|_| Arc::new(ShardStats::default())).collect()
    }

    fn render(shards: &[Arc<ShardStats>]) -> String {
        let mut exposition = Exposition::default();
        write_shards(&mut exposition, shards);
        write_limits(&mut exposition, &Limits::default());
        exposition.finish()
    }

    fn line<'a>(text: &'a str, series: &str) -> &'a str {
        let mut lines = text.lines().filter(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let found = lines.next().unwrap_or_else(|| panic!("no {series} in\n{text}"));
        assert_eq!(lines.next(), None, "{series} is there twice");
        found.rsplit_once(' ').expect("a value").1
    }

    #[test]
    fn help_and_type_stand_once_before_all_series_of_a_name() {
        let text = render(&shards(3));
        let mut typed = HashSet::new();
        let mut current = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split(' ').next().unwrap();
                assert!(typed.insert(current), "{current} has two HELP lines");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert_eq!(rest.split(' ').next(), Some(current));
            } else {
                let series = line.split(['{', ' ']).next().unwrap();
                let rest = series.strip_prefix(current).unwrap_or_else(|| panic!("{line} behind {current}"));
                assert!(["", "_bucket", "_sum", "_count"].contains(&rest), "{line}");
            }
        }
        assert!(typed.contains("trunkline_messages_total") && typed.contains("trunkline_mailbox_batches"));
    }

    #[test]
    fn no_series_stands_twice() {
        let text = render(&shards(2));
        let series: Vec<&str> =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0).collect();
        assert_eq!(series.iter().collect::<HashSet<_>>().len(), series.len());
    }

    #[test]
    fn every_shard_has_its_own_numbers() {
        let shards = shards(2);
        shards[0].accepted.add(7);
        shards[1].out_delivered.add(5);
        shards[1].count_close(CloseReason::Kicked);
        let text = render(&shards);
        assert_eq!(line(&text, "trunkline_connections_accepted_total{shard=\"0\"}"), "7");
        assert_eq!(line(&text, "trunkline_connections_accepted_total{shard=\"1\"}"), "0");
        assert_eq!(line(&text, "trunkline_messages_total{outcome=\"delivered\",shard=\"1\"}"), "5");
        assert_eq!(line(&text, "trunkline_connections_closed_total{shard=\"1\",reason=\"kicked\"}"), "1");
        assert_eq!(line(&text, "trunkline_connections_closed_total{shard=\"0\",reason=\"kicked\"}"), "0");
    }

    #[test]
    fn every_reason_is_there_from_the_start() {
        let text = render(&shards(1));
        for reason in CloseReason::ALL {
            line(&text, &format!("trunkline_connections_closed_total{{shard=\"0\",reason=\"{}\"}}", reason.label()));
        }
    }

    #[test]
    fn every_refusal_is_there_from_the_start_and_counted_by_itself() {
        let shards = shards(2);
        shards[1].count_refusal(Refusal::WrongSubject);
        let text = render(&shards);
        for refusal in Refusal::ALL {
            let series =
                |shard| format!("trunkline_tokens_refused_total{{shard=\"{shard}\",reason=\"{}\"}}", refusal.label());
            assert_eq!(line(&text, &series(0)), "0");
            assert_eq!(line(&text, &series(1)), if *refusal == Refusal::WrongSubject { "1" } else { "0" });
        }
    }

    #[test]
    fn every_limit_that_counts_hits_shows_its_value() {
        let text = render(&shards(1));
        let hits = text.lines().filter_map(|line| line.strip_prefix("trunkline_limit_hits_total{limit=\""));
        let mut seen = 0;
        for limit in hits.map(|rest| rest.split('"').next().unwrap()) {
            let series = ["trunkline_limit", "trunkline_limit_bytes", "trunkline_limit_seconds"]
                .map(|name| format!("{name}{{limit=\"{limit}\"}} "));
            let shown = text.lines().filter(|line| series.iter().any(|series| line.starts_with(series))).count();
            assert_eq!(shown, 1, "{limit}");
            seen += 1;
        }
        assert!(seen >= 10, "{seen} limits count hits");
        assert_eq!(line(&text, "trunkline_limit_bytes{limit=\"outbox_bytes\"}"), "262144");
        assert_eq!(line(&text, "trunkline_limit_bytes{limit=\"mailbox\"}"), "4194304");
        assert_eq!(line(&text, "trunkline_limit_seconds{limit=\"login_timeout\"}"), "10");
        assert_eq!(line(&text, "trunkline_limit{limit=\"devices_per_user\"}"), "16");
        assert!(text.contains("trunkline_limit_seconds{limit=\"tcp_user_timeout\"}"), "{text}");
    }

    #[test]
    fn label_values_and_help_are_escaped() {
        let mut exposition = Exposition::default();
        exposition.name("some", StatType::Gauge, "one\\two\nthree");
        exposition.sample(&[("a", &"back\\slash"), ("b", &"quo\"te\nline")], 1.5);
        exposition.sample(&[], -2);
        let expected = "# HELP some one\\\\two\\nthree\n# TYPE some gauge\nsome{a=\"back\\\\slash\",b=\"quo\\\"te\\nline\"} 1.5\nsome -2\n";
        assert_eq!(exposition.finish(), expected);
    }

    #[test]
    fn histograms_are_of_all_shards_and_in_seconds() {
        let shards = shards(2);
        shards[0].turn_time.observe(20);
        shards[1].turn_time.observe(3_000);
        let text = render(&shards);
        let bucket =
            |bound: &str| line(&text, &format!("trunkline_turn_duration_seconds_bucket{{le=\"{bound}\"}}")).to_owned();
        assert_eq!([bucket("0.00001"), bucket("0.000025"), bucket("0.005"), bucket("+Inf")], ["0", "1", "2", "2"]);
        assert_eq!(line(&text, "trunkline_turn_duration_seconds_count"), "2");
        assert_eq!(line(&text, "trunkline_turn_duration_seconds_sum"), "0.00302");
    }

    #[test]
    fn a_round_trip_is_in_seconds() {
        let shards = shards(1);
        shards[0].mesh_rtt_us.set(2_500);
        assert_eq!(line(&render(&shards), "trunkline_mesh_round_trip_seconds{shard=\"0\"}"), "0.0025");
    }

    #[test]
    fn no_shard_is_no_series() {
        assert!(!render(&[]).contains("trunkline_connections_open"));
    }
}
