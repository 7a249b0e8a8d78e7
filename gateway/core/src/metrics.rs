//! Counters and gauges of one shard. The HTTP side reads them at any time. Each has one writer: the shard, or for what
//! the services thread does that thread. What both count has a place for each, written `a + b` below, and is shown as
//! one series.

use crate::auth::{REFUSALS, Refusal};
use crate::reason::{CLOSE_REASONS, CloseReason};
use crate::transport::tls::{ALERTS, Alert, SUITES, Suite, Version};
use crate::transport::upgrade::{REFUSALS as REQUEST_REFUSALS, Refusal as RequestRefusal};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number with a single writer, so that adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Stat(AtomicU64);

impl Stat {
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// Subtracts `n`.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }
    /// Sets the value of a gauge.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// The value now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Prometheus type of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatType {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A gauge counted in microseconds and shown in seconds.
    GaugeMicros,
    /// How often a value fell below each bound.
    Histogram,
}

/// Number of bounds of a [`Histogram`].
pub const BOUNDS: usize = 19;
/// The bounds of every histogram, microseconds: a turn is at the lower end, a login or a delivery between nodes at the
/// upper.
pub const BOUNDS_US: [u64; BOUNDS] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// How often a time fell between each two bounds; one writer. The last place is for what is above all of them.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Stat; BOUNDS + 1],
    sum_us: Stat,
}

impl Histogram {
    /// Counts a time in microseconds.
    #[inline]
    pub fn observe(&self, us: u64) {
        self.counts[place(us)].add(1);
        self.sum_us.add(us);
    }

    /// Takes the counts of somebody who counts for himself.
    pub fn set(&self, times: &Times) {
        self.counts.iter().zip(times.counts).for_each(|(stat, count)| stat.set(count));
        self.sum_us.set(times.sum_us);
    }

    /// The counts now.
    pub fn times(&self) -> Times {
        Times { counts: std::array::from_fn(|at| self.counts[at].get()), sum_us: self.sum_us.get() }
    }
}

fn place(us: u64) -> usize {
    BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS)
}

/// The counts of a [`Histogram`] as plain numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    counts: [u64; BOUNDS + 1],
    sum_us: u64,
}

impl Times {
    /// Counts a time in microseconds.
    pub fn observe(&mut self, us: u64) {
        self.counts[place(us)] += 1;
        self.sum_us += us;
    }

    /// Adds what others have counted.
    pub fn add(&mut self, other: &Times) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
    }

    /// For each bound in seconds how many times did not exceed it, then how many there are, and their sum in seconds.
    pub fn cumulated(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut count = 0;
        let below = BOUNDS_US.iter().zip(self.counts).map(|(bound, times)| {
            count += times;
            (*bound as f64 / 1e6, count)
        });
        let below = below.collect();
        (below, count + self.counts[BOUNDS], self.sum_us as f64 / 1e6)
    }
}

/// How a handshake of TLS ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TlsOutcome {
    /// With new secrets.
    Full,
    /// With those of an earlier connection.
    Resumed,
    /// One side would not have it.
    Failed,
    /// The connection ended before it was over.
    Abandoned,
}

impl TlsOutcome {
    /// All of them.
    pub const ALL: &[TlsOutcome] = &[TlsOutcome::Full, TlsOutcome::Resumed, TlsOutcome::Failed, TlsOutcome::Abandoned];

    /// The value of the metric label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            TlsOutcome::Full => "full",
            TlsOutcome::Resumed => "resumed",
            TlsOutcome::Failed => "failed",
            TlsOutcome::Abandoned => "abandoned",
        }
    }
}

/// Name, labels and help text of one series of a shard.
#[derive(Clone, Copy, Debug)]
pub struct StatInfo {
    /// Metric name.
    pub name: &'static str,
    /// Further labels as they stand between the braces, or empty.
    pub labels: &'static str,
    /// Counter or gauge.
    pub stat_type: StatType,
    /// One sentence for `# HELP`; the same for all series of one name.
    pub help: &'static str,
}

macro_rules! shard_stats {
    ($($field:ident $(+ $other:ident)?: $ty:ident $name:literal $labels:literal $help:literal;)*) => {
        /// All numbers of one shard.
        #[derive(Debug, Default)]
        pub struct ShardStats {
            $(#[doc = $help] pub $field: Stat, $(#[doc = $help] pub $other: Stat,)?)*
            closed: [Stat; CLOSE_REASONS],
            tokens_refused: [Stat; REFUSALS],
            requests_refused: [Stat; REQUEST_REFUSALS],
            handshakes: [Stat; TlsOutcome::ALL.len()],
            tls_12: [Stat; SUITES],
            tls_13: [Stat; SUITES],
            alerts_sent: [Stat; ALERTS],
            alerts_received: [Stat; ALERTS],
            /// Length of turns: of those with 32 completions or more, and of each sixteenth of the others.
            pub turn_time: Histogram,
            /// Time from LOGIN to LOGIN_OK, a hand-over to another shard and the question to another node included.
            pub login_time: Histogram,
            /// Time from a question to the connect-time hook to its answer, or to its failure.
            pub hook_time: Histogram,
            /// Time from the sending of records to another node to their confirmation.
            pub mesh_time: Histogram,
            /// Time from a change of the view to when all other nodes had been told of this shard's sessions.
            pub view_change_time: Histogram,
            /// Time from a change of the view to when all other nodes had told of theirs, or were waited for no longer.
            pub settling_time: Histogram,
        }

        impl ShardStats {
            /// Visits every series but the closes, in a fixed order; series of one name follow each other.
            pub fn visit(&self, mut each: impl FnMut(StatInfo, u64)) {
                $(each(
                    StatInfo { name: $name, labels: $labels, stat_type: StatType::$ty, help: $help },
                    self.$field.get() $(+ self.$other.get())?,
                );)*
            }
        }
    };
}

shard_stats! {
    accepted: Counter "trunkline_connections_accepted_total" "" "Connections accepted by this shard.";
    open: Gauge "trunkline_connections_open" "" "Connections open on this shard, logged in or not.";
    moved_out: Counter "trunkline_connections_moved_out_total" "" "Connections handed over to their home shard.";
    moved_in: Counter "trunkline_connections_moved_in_total" "" "Connections taken over from the shard that accepted them.";
    sessions: Gauge "trunkline_sessions" "" "Logged-in sessions on this shard.";
    users: Gauge "trunkline_users_online" "" "Users with at least one session on this shard.";
    logins: Counter "trunkline_logins_total" "" "Successful logins.";
    websockets: Counter "trunkline_websockets_total" "" "Connections that became WebSockets.";
    websocket_pings: Counter "trunkline_websocket_pings_total" "" "Pings sent to clients that had been silent for one and a half heartbeats.";
    websockets_within: Gauge "trunkline_websockets_within_message" "" "WebSockets of which a part of a message has come, or that have not logged in with the token of their request.";
    tls_connections: Gauge "trunkline_tls_connections" "" "Connections over TLS whose handshake is over.";
    tls_shaking: Gauge "trunkline_tls_handshakes_under_way" "" "Handshakes of TLS that have begun and are not over.";
    tls_updates_in: Counter "trunkline_tls_key_updates_total" "by=\"peer\"" "Keys of TLS changed within a connection, by who changed its own.";
    tls_updates_out: Counter "trunkline_tls_key_updates_total" "by=\"node\"" "Keys of TLS changed within a connection, by who changed its own.";
    renewals: Counter "trunkline_token_renewals_total" "" "Tokens of sessions replaced by RENEW.";
    sessions_drained: Counter "trunkline_sessions_drained_total" "" "Sessions ended by a drain, to go on at another node.";
    messages_in: Counter "trunkline_messages_received_total" "" "SEND frames accepted from clients of this shard, PUSH_TO frames from workers, and pushes by HTTP.";
    out_delivered: Counter "trunkline_messages_total" "outcome=\"delivered\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_acked: Counter "trunkline_messages_total" "outcome=\"acknowledged\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_offline: Counter "trunkline_messages_total" "outcome=\"offline_dropped\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_offline_refused: Counter "trunkline_messages_total" "outcome=\"offline_refused\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_outbox_full: Counter "trunkline_messages_total" "outcome=\"outbox_full_dropped\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_mailbox_full: Counter "trunkline_messages_total" "outcome=\"mailbox_full_dropped\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_overloaded: Counter "trunkline_messages_total" "outcome=\"overloaded_refused\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_denied: Counter "trunkline_messages_total" "outcome=\"denied_refused\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_unrouted: Counter "trunkline_messages_total" "outcome=\"unrouted_dropped\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_stored: Counter "trunkline_messages_total" "outcome=\"stored\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_inbox_full: Counter "trunkline_messages_total" "outcome=\"inbox_full_refused\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_duplicate: Counter "trunkline_messages_total" "outcome=\"duplicate\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    out_expired: Counter "trunkline_messages_total" "outcome=\"expired\"" "Fate of each message without ACK, and of each message with ACK once it is known.";
    messages_away: Counter "trunkline_messages_away_total" "" "Messages sent on to the node that is the recipient's home.";
    messages_forwarded: Counter "trunkline_messages_forwarded_total" "" "Messages of other nodes sent on to a third, because views differed.";
    overtaken: Counter "trunkline_messages_overtaken_total" "" "Messages that came without RETRY when their sender had sent them again with RETRY before; taken for the same.";
    messages_owed: Gauge "trunkline_messages_owed" "" "Messages with ACK that other nodes are to answer.";
    away_given_up: Counter "trunkline_messages_away_given_up_total" "" "Messages with ACK that another node did not answer, because it was lost or in time; answered with SENT 3.";
    fates_late: Counter "trunkline_fates_late_total" "" "Answers of other nodes for messages that had been answered before.";
    messages_pending: Gauge "trunkline_messages_unacked" "" "Messages delivered that wait for the recipient's ACK.";
    deliveries: Counter "trunkline_deliveries_total" "" "DELIVER frames queued, one for each device.";
    copies_dropped: Counter "trunkline_delivery_copies_dropped_total" "" "DELIVER frames not queued because that device's outbox was full.";
    copies_unsent: Counter "trunkline_delivery_copies_unsent_total" "" "DELIVER frames without ACK that were queued but not taken by the kernel when their connection ended.";
    copies_given_up: Counter "trunkline_delivery_copies_given_up_total" "" "Messages with ACK that one device acknowledged and another did not, however often they were sent to it.";
    redeliveries: Counter "trunkline_redeliveries_total" "" "DELIVER frames queued again with AGAIN.";
    replays: Counter "trunkline_replays_total" "" "DELIVER frames queued with REPLAY: backlogs and pages of SYNC.";
    replays_expired: Counter "trunkline_replays_expired_total" "" "Stored messages left out of a backlog or a page of SYNC because their time was over.";
    backlogs_truncated: Counter "trunkline_backlogs_truncated_total" "" "Backlogs of which something was gone, which the device was told.";
    logs_missed: Counter "trunkline_logs_missed_total" "" "Times a device had to get from the store what another home of its user had added unseen by this one.";
    readers_held: Counter "trunkline_readers_held_total" "" "Times a device could not be given a message with ACK and got it and what followed from the store.";
    stored: Counter "trunkline_stored_total" "" "Messages that the store has taken, also for devices that had not acknowledged what another one had.";
    storing: Gauge "trunkline_messages_storing" "" "Messages on their way to the store.";
    store_asked: Gauge "trunkline_requests_to_store_open" "" "Requests that the store has not answered.";
    store_silence_us: GaugeMicros "trunkline_store_silence_seconds" "" "How long the store has answered nothing although it was asked something, in steps of a tick.";
    store_logins: Gauge "trunkline_logins_waiting_for_store" "" "Logins that wait until the store says where their device stands.";
    logins_without_store: Counter "trunkline_logins_without_store_total" "" "Logins answered before the store said where their device stands, because it was slow or out of order.";
    pushes_remembered: Gauge "trunkline_pushes_remembered" "" "Pushes that may come again, of which is remembered that they were taken.";
    duplicates_known: Gauge "trunkline_messages_remembered" "" "Messages of which is remembered what became of them.";
    deliver_to_gone: Counter "trunkline_deliver_to_gone_total" "" "Copies from other nodes for a session that had ended; their home is told.";
    sent_to_gone: Counter "trunkline_sent_to_gone_sender_total" "" "SENT results whose sender had disconnected.";
    calls_in: Counter "trunkline_calls_received_total" "" "CALL frames taken in from clients of this shard.";
    calls_done: Counter "trunkline_calls_total" "outcome=\"answered\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_limited: Counter "trunkline_calls_total" "outcome=\"rate_limited\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_overloaded: Counter "trunkline_calls_total" "outcome=\"overloaded\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_unknown: Counter "trunkline_calls_total" "outcome=\"unknown_service\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_unavailable: Counter "trunkline_calls_total" "outcome=\"unavailable\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_bad: Counter "trunkline_calls_total" "outcome=\"bad_request\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_timed_out: Counter "trunkline_calls_total" "outcome=\"timed_out\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_outcome_unknown: Counter "trunkline_calls_total" "outcome=\"outcome_unknown\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_gone: Counter "trunkline_calls_total" "outcome=\"session_ended\"" "End of each call: by the status of its REPLY, or because its session ended first.";
    calls_open: Gauge "trunkline_calls_open" "" "Calls of sessions of this shard that have had no last REPLY.";
    calls_waiting: Gauge "trunkline_calls_waiting" "" "Calls that wait at this shard for a worker that has room.";
    calls_kept_bytes: Gauge "trunkline_calls_kept_bytes" "" "Bytes of calls that wait for a worker, or may have to be sent to another one.";
    requests_out: Counter "trunkline_requests_sent_total" "" "REQUEST frames queued for workers.";
    call_retries: Counter "trunkline_call_retries_total" "" "Calls given to a second worker, because the first one had not begun or was lost.";
    calls_to_nodes: Counter "trunkline_calls_handed_to_nodes_total" "" "Calls handed to other nodes; one that comes back is counted each time.";
    calls_from_nodes: Counter "trunkline_calls_handed_by_nodes_total" "" "Calls that other nodes have handed to this shard.";
    calls_back_from_nodes: Counter "trunkline_calls_given_back_by_nodes_total" "" "Calls that no worker of the node they were handed to has had.";
    cancels_out: Counter "trunkline_cancels_sent_total" "" "CANCEL frames queued for workers: calls that timed out, or whose session ended.";
    answers_late: Counter "trunkline_answers_late_total" "" "ANSWER frames for calls that had ended.";
    answers_to_gone: Counter "trunkline_answers_to_gone_caller_total" "" "Answers whose caller's session had ended.";
    service_links: Gauge "trunkline_service_links" "" "Links of workers to this shard.";
    service_places: Gauge "trunkline_service_places" "" "Shards of other nodes with workers that take calls, for each service, as this shard knows them.";
    service_links_opened: Counter "trunkline_service_links_opened_total" "" "Links of workers that SERVE_OK was sent on.";
    service_servers_serving: Gauge "trunkline_service_servers" "state=\"serving\"" "Addresses of servers that this shard dials, by the state of its link to them.";
    service_servers_opening: Gauge "trunkline_service_servers" "state=\"opening\"" "Addresses of servers that this shard dials, by the state of its link to them.";
    service_servers_dialing: Gauge "trunkline_service_servers" "state=\"dialing\"" "Addresses of servers that this shard dials, by the state of its link to them.";
    service_servers_down: Gauge "trunkline_service_servers" "state=\"down\"" "Addresses of servers that this shard dials, by the state of its link to them.";
    service_dials: Counter "trunkline_service_dials_total" "" "Dials of servers of services that were begun.";
    server_refused: Counter "trunkline_service_dial_failures_total" "reason=\"refused\"" "Why servers that were dialed did not serve, or serve no more.";
    server_unanswered: Counter "trunkline_service_dial_failures_total" "reason=\"unanswered\"" "Why servers that were dialed did not serve, or serve no more.";
    server_unreachable: Counter "trunkline_service_dial_failures_total" "reason=\"unreachable\"" "Why servers that were dialed did not serve, or serve no more.";
    server_silent: Counter "trunkline_service_dial_failures_total" "reason=\"silent\"" "Why servers that were dialed did not serve, or serve no more.";
    server_strange: Counter "trunkline_service_dial_failures_total" "reason=\"strange\"" "Why servers that were dialed did not serve, or serve no more.";
    server_key: Counter "trunkline_service_dial_failures_total" "reason=\"key\"" "Why servers that were dialed did not serve, or serve no more.";
    server_turned_away: Counter "trunkline_service_dial_failures_total" "reason=\"turned_away\"" "Why servers that were dialed did not serve, or serve no more.";
    server_closed: Counter "trunkline_service_dial_failures_total" "reason=\"closed\"" "Why servers that were dialed did not serve, or serve no more.";
    server_no_room: Counter "trunkline_service_dial_failures_total" "reason=\"no_room\"" "Why servers that were dialed did not serve, or serve no more.";
    server_logged_out: Counter "trunkline_service_dial_failures_total" "reason=\"logged_out\"" "Why servers that were dialed did not serve, or serve no more.";
    server_lost: Counter "trunkline_service_dial_failures_total" "reason=\"lost\"" "Why servers that were dialed did not serve, or serve no more.";
    service_lookups_failed: Counter "trunkline_service_lookups_failed_total" "" "Look-ups of names of servers that are dialed that gave no address.";
    upstream_requests: Counter "trunkline_upstream_requests_total" "" "Requests to HTTP servers of services that were begun; their ends are in trunkline_upstream_ends_total.";
    upstream_done: Counter "trunkline_upstream_ends_total" "end=\"2xx\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_busy: Counter "trunkline_upstream_ends_total" "end=\"busy\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_4xx: Counter "trunkline_upstream_ends_total" "end=\"4xx\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_5xx: Counter "trunkline_upstream_ends_total" "end=\"5xx\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_strange: Counter "trunkline_upstream_ends_total" "end=\"strange\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_not_sent: Counter "trunkline_upstream_ends_total" "end=\"not_sent\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_broken: Counter "trunkline_upstream_ends_total" "end=\"broken\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_timed_out: Counter "trunkline_upstream_ends_total" "end=\"timed_out\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_too_large: Counter "trunkline_upstream_ends_total" "end=\"too_large\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_aborted: Counter "trunkline_upstream_ends_total" "end=\"aborted\"" "End of each request to an HTTP server of a service: the class of its status, or what else became of it.";
    upstream_under_way: Gauge "trunkline_upstream_requests_under_way" "" "Requests to HTTP servers of services that have not ended.";
    upstream_waiting: Gauge "trunkline_upstream_calls_waiting" "" "Calls that wait for an HTTP server with a free connection.";
    upstream_bytes: Gauge "trunkline_upstream_bytes" "" "Bytes of calls that HTTP servers have or that wait for them, and of answers.";
    upstream_idle: Gauge "trunkline_upstream_connections_idle" "" "Connections to HTTP servers of services that no call has.";
    upstream_connects: Counter "trunkline_upstream_connects_total" "" "Connections made to HTTP servers of services.";
    upstream_retries: Counter "trunkline_upstream_retries_total" "" "Calls given to another HTTP server.";
    upstream_parts: Counter "trunkline_upstream_parts_total" "outcome=\"passed_on\"" "Parts of answers of HTTP servers that came before their ends.";
    upstream_parts_late: Counter "trunkline_upstream_parts_total" "outcome=\"late\"" "Parts of answers of HTTP servers that came before their ends.";
    upstream_lookups_failed: Counter "trunkline_upstream_lookups_failed_total" "" "Look-ups of names of HTTP servers that gave no address.";
    upstream_checks_failed: Counter "trunkline_upstream_checks_failed_total" "" "Checks of HTTP servers that were not answered with a status of 2xx.";
    pushes_in: Counter "trunkline_pushes_received_total" "" "PUSH_TO frames taken in from workers; their fates are among those of messages.";
    pushes_denied: Counter "trunkline_pushes_denied_total" "" "PUSH_TO frames of services that the worker's link does not serve, or to groups without the scope for that.";
    pushes_http_in: Counter "trunkline_http_pushes_received_total" "" "Pushes by HTTP to users of this shard that were begun, one for each user.";
    pushes_http_delivered: Counter "trunkline_http_pushes_total" "outcome=\"delivered\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_stored: Counter "trunkline_http_pushes_total" "outcome=\"stored\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_offline: Counter "trunkline_http_pushes_total" "outcome=\"offline\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_overloaded: Counter "trunkline_http_pushes_total" "outcome=\"overloaded\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_denied: Counter "trunkline_http_pushes_total" "outcome=\"denied\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_inbox_full: Counter "trunkline_http_pushes_total" "outcome=\"inbox_full\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_accepted: Counter "trunkline_http_pushes_total" "outcome=\"accepted\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_expired: Counter "trunkline_http_pushes_total" "outcome=\"expired\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_unknown: Counter "trunkline_http_pushes_total" "outcome=\"unknown\"" "What became of each push by HTTP, one for each user: its fate, overloaded without one where a limit was hit, or unknown where the node ended first.";
    pushes_http_open: Gauge "trunkline_http_pushes_open" "" "Pushes by HTTP, one for each user, whose outcome is not known yet.";
    pushes_http_repeated: Counter "trunkline_http_pushes_repeated_total" "" "Requests with an Idempotency-Key that had been carried out before.";
    push_fates_late + worker_push_fates_late: Counter "trunkline_http_push_fates_late_total" "" "Fates of pushes by HTTP, and of workers' pushes with a head, that were not open.";
    push_callers_gone: Counter "trunkline_http_push_callers_gone_total" "" "Callers that left before the answer about their pushes.";
    broadcasts_begun: Counter "trunkline_broadcasts_total" "" "Pushes to all sessions that were begun at this node.";
    broadcasts_open: Gauge "trunkline_broadcasts_open" "" "Pushes to all sessions begun at this node of which not all shards of all nodes have ended.";
    broadcast_walks: Gauge "trunkline_broadcast_walks" "" "Pushes to all sessions, of this node and others, that the shard has not ended.";
    broadcast_delivered: Counter "trunkline_broadcast_copies_total" "outcome=\"delivered\"" "Sessions of this shard that pushes to all have met: copies queued, and those for which an outbox had no room.";
    broadcast_overloaded: Counter "trunkline_broadcast_copies_total" "outcome=\"overloaded\"" "Sessions of this shard that pushes to all have met: copies queued, and those for which an outbox had no room.";
    portal_bytes: Gauge "trunkline_portal_bytes" "" "Bytes of pushes by HTTP on their way to the shard.";
    errors_sent: Counter "trunkline_errors_sent_total" "" "ERROR frames sent.";
    proxy_headers: Counter "trunkline_proxy_headers_total" "" "Connections that a trusted proxy opened with a PROXY header.";
    proxy_untrusted: Counter "trunkline_proxy_refused_total" "reason=\"untrusted\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    proxy_missing: Counter "trunkline_proxy_refused_total" "reason=\"missing\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    proxy_too_long: Counter "trunkline_proxy_refused_total" "reason=\"too_long\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    proxy_malformed: Counter "trunkline_proxy_refused_total" "reason=\"malformed\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    proxy_unsupported: Counter "trunkline_proxy_refused_total" "reason=\"unsupported\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    proxy_wrong_checksum: Counter "trunkline_proxy_refused_total" "reason=\"wrong_checksum\"" "PROXY headers refused: missing or wrong where one has to come, or from somebody who is no trusted proxy.";
    bytes_in: Counter "trunkline_bytes_received_total" "" "Bytes received from clients.";
    bytes_out: Counter "trunkline_bytes_sent_total" "" "Bytes the kernel took for clients.";
    frames_in: Counter "trunkline_frames_received_total" "" "Frames received from clients.";
    limit_connections: Counter "trunkline_limit_hits_total" "limit=\"connections\"" "How often each limit was hit.";
    limit_addresses: Counter "trunkline_limit_hits_total" "limit=\"addresses\"" "How often each limit was hit.";
    limit_address_open: Counter "trunkline_limit_hits_total" "limit=\"address_connections\"" "How often each limit was hit.";
    limit_address_per_sec: Counter "trunkline_limit_hits_total" "limit=\"address_connections_per_sec\"" "How often each limit was hit.";
    limit_address_handshakes: Counter "trunkline_limit_hits_total" "limit=\"address_handshakes_per_sec\"" "How often each limit was hit.";
    limit_login_timeout: Counter "trunkline_limit_hits_total" "limit=\"login_timeout\"" "How often each limit was hit.";
    limit_heartbeat: Counter "trunkline_limit_hits_total" "limit=\"heartbeat\"" "How often each limit was hit.";
    limit_frame_bytes: Counter "trunkline_limit_hits_total" "limit=\"frame_bytes\"" "How often each limit was hit.";
    limit_outbox: Counter "trunkline_limit_hits_total" "limit=\"outbox_bytes\"" "How often each limit was hit.";
    limit_outbox_burst: Counter "trunkline_limit_hits_total" "limit=\"outbox_burst_bytes\"" "How often each limit was hit.";
    limit_outbox_total: Counter "trunkline_limit_hits_total" "limit=\"outbox_total_bytes\"" "How often each limit was hit.";
    limit_outbox_full_time: Counter "trunkline_limit_hits_total" "limit=\"outbox_full_time\"" "How often each limit was hit.";
    limit_mailbox: Counter "trunkline_limit_hits_total" "limit=\"mailbox\"" "How often each limit was hit.";
    limit_unacked: Counter "trunkline_limit_hits_total" "limit=\"unacked_per_user\"" "How often each limit was hit.";
    limit_unacked_user_bytes: Counter "trunkline_limit_hits_total" "limit=\"unacked_bytes_per_user\"" "How often each limit was hit.";
    limit_unacked_bytes: Counter "trunkline_limit_hits_total" "limit=\"unacked_total_bytes\"" "How often each limit was hit.";
    limit_frames: Counter "trunkline_limit_hits_total" "limit=\"frames_per_sec\"" "How often each limit was hit.";
    limit_turn: Counter "trunkline_limit_hits_total" "limit=\"turn_units\"" "How often each limit was hit.";
    limit_accepts: Counter "trunkline_limit_hits_total" "limit=\"accepts_per_turn\"" "How often each limit was hit.";
    limit_logins: Counter "trunkline_limit_hits_total" "limit=\"logins_per_sec\"" "How often each limit was hit.";
    limit_renew: Counter "trunkline_limit_hits_total" "limit=\"renew\"" "How often each limit was hit.";
    limit_devices: Counter "trunkline_limit_hits_total" "limit=\"devices_per_user\"" "How often each limit was hit.";
    limit_recv_buffers: Counter "trunkline_limit_hits_total" "limit=\"recv_buffers\"" "How often each limit was hit.";
    limit_partial: Counter "trunkline_limit_hits_total" "limit=\"partial_bytes\"" "How often each limit was hit.";
    limit_mesh: Counter "trunkline_limit_hits_total" "limit=\"mesh_bytes\"" "How often each limit was hit.";
    limit_mesh_strangers: Counter "trunkline_limit_hits_total" "limit=\"mesh_strangers\"" "How often each limit was hit.";
    limit_mesh_strangers_address: Counter "trunkline_limit_hits_total" "limit=\"mesh_strangers_per_address\"" "How often each limit was hit.";
    limit_mesh_later: Counter "trunkline_limit_hits_total" "limit=\"mesh_unknown_nodes\"" "How often each limit was hit.";
    limit_sent_away: Counter "trunkline_limit_hits_total" "limit=\"messages_owed\"" "How often each limit was hit.";
    limit_parked: Counter "trunkline_limit_hits_total" "limit=\"parked_bytes\"" "How often each limit was hit.";
    limit_kicks: Counter "trunkline_limit_hits_total" "limit=\"kicks\"" "How often each limit was hit.";
    limit_remote_sessions: Counter "trunkline_limit_hits_total" "limit=\"remote_sessions\"" "How often each limit was hit.";
    limit_users: Counter "trunkline_limit_hits_total" "limit=\"users\"" "How often each limit was hit.";
    limit_inbox: Counter "trunkline_limit_hits_total" "limit=\"inbox\"" "How often each limit was hit.";
    limit_store_mail: Counter "trunkline_limit_hits_total" "limit=\"store_mail_bytes\"" "How often each limit was hit.";
    limit_store_bytes: Counter "trunkline_limit_hits_total" "limit=\"store_bytes\"" "How often each limit was hit.";
    limit_store_answer: Counter "trunkline_limit_hits_total" "limit=\"store_answer_time\"" "How often each limit was hit.";
    limit_store_gaps: Counter "trunkline_limit_hits_total" "limit=\"store_gaps\"" "How often each limit was hit.";
    limit_store_users: Counter "trunkline_limit_hits_total" "limit=\"store_users\"" "How often each limit was hit.";
    limit_log_looks: Counter "trunkline_limit_hits_total" "limit=\"log_looks\"" "How often each limit was hit.";
    limit_syncs: Counter "trunkline_limit_hits_total" "limit=\"syncs\"" "How often each limit was hit.";
    limit_group_members: Counter "trunkline_limit_hits_total" "limit=\"group_members\"" "How often each limit was hit.";
    limit_group_memberships: Counter "trunkline_limit_hits_total" "limit=\"group_memberships\"" "How often each limit was hit.";
    limit_group_sends: Counter "trunkline_limit_hits_total" "limit=\"group_sends_per_sec\"" "How often each limit was hit.";
    limit_group_member_sends: Counter "trunkline_limit_hits_total" "limit=\"group_member_sends_per_sec\"" "How often each limit was hit.";
    limit_group_joins: Counter "trunkline_limit_hits_total" "limit=\"room_joins_waiting\"" "How often each limit was hit.";
    limit_group_wishes: Counter "trunkline_limit_hits_total" "limit=\"group_attention_waiting\"" "How often each limit was hit.";
    limit_room_gather: Counter "trunkline_limit_hits_total" "limit=\"room_gather_bytes\"" "How often each limit was hit.";
    limit_room_frames: Counter "trunkline_limit_hits_total" "limit=\"room_frames_per_sec\"" "How often each limit was hit.";
    limit_group_queue: Counter "trunkline_limit_hits_total" "limit=\"group_queue_bytes\"" "How often each limit was hit.";
    limit_watches_session: Counter "trunkline_limit_hits_total" "limit=\"watches_per_session\"" "How often each limit was hit.";
    limit_watch_bytes: Counter "trunkline_limit_hits_total" "limit=\"watch_bytes\"" "How often each limit was hit.";
    limit_send_users: Counter "trunkline_limit_hits_total" "limit=\"send_users\"" "How often each limit was hit.";
    limit_send_bytes: Counter "trunkline_limit_hits_total" "limit=\"send_bytes\"" "How often each limit was hit.";
    limit_pushes_remembered: Counter "trunkline_limit_hits_total" "limit=\"pushes_remembered\"" "How often each limit was hit.";
    limit_duplicates: Counter "trunkline_limit_hits_total" "limit=\"messages_remembered\"" "How often each limit was hit.";
    limit_tls_handshakes: Counter "trunkline_limit_hits_total" "limit=\"tls_handshakes\"" "How often each limit was hit.";
    limit_tls_steps: Counter "trunkline_limit_hits_total" "limit=\"tls_handshakes_per_turn\"" "How often each limit was hit.";
    limit_calls_session: Counter "trunkline_limit_hits_total" "limit=\"calls_per_session\"" "How often each limit was hit.";
    limit_calls: Counter "trunkline_limit_hits_total" "limit=\"calls\"" "How often each limit was hit.";
    limit_call_queue: Counter "trunkline_limit_hits_total" "limit=\"call_queue\"" "How often each limit was hit.";
    limit_call_time: Counter "trunkline_limit_hits_total" "limit=\"call_time\"" "How often each limit was hit.";
    limit_call_more: Counter "trunkline_limit_hits_total" "limit=\"call_more_time\"" "How often each limit was hit.";
    limit_call_retries: Counter "trunkline_limit_hits_total" "limit=\"call_retries\"" "How often each limit was hit.";
    limit_calls_kept: Counter "trunkline_limit_hits_total" "limit=\"calls_kept_bytes\"" "How often each limit was hit.";
    limit_link_outbox: Counter "trunkline_limit_hits_total" "limit=\"link_outbox_bytes\"" "How often each limit was hit.";
    limit_service_links: Counter "trunkline_limit_hits_total" "limit=\"service_links\"" "How often each limit was hit.";
    limit_service_servers: Counter "trunkline_limit_hits_total" "limit=\"service_servers\"" "How often each limit was hit.";
    limit_service_places: Counter "trunkline_limit_hits_total" "limit=\"service_places\"" "How often each limit was hit.";
    limit_call_portal: Counter "trunkline_limit_hits_total" "limit=\"call_portal_bytes\"" "How often each limit was hit.";
    limit_upstream_bytes: Counter "trunkline_limit_hits_total" "limit=\"upstream_bytes\"" "How often each limit was hit.";
    limit_upstream_answer: Counter "trunkline_limit_hits_total" "limit=\"upstream_answer_bytes\"" "How often each limit was hit.";
    limit_upstream_queue: Counter "trunkline_limit_hits_total" "limit=\"upstream_queue\"" "How often each limit was hit.";
    limit_upstream_time: Counter "trunkline_limit_hits_total" "limit=\"upstream_time\"" "How often each limit was hit.";
    limit_upstream_more: Counter "trunkline_limit_hits_total" "limit=\"upstream_more_time\"" "How often each limit was hit.";
    limit_upstream_retries: Counter "trunkline_limit_hits_total" "limit=\"upstream_retries\"" "How often each limit was hit.";
    limit_upstream_conns: Counter "trunkline_limit_hits_total" "limit=\"upstream_conns\"" "How often each limit was hit.";
    limit_portal: Counter "trunkline_limit_hits_total" "limit=\"portal_bytes\"" "How often each limit was hit.";
    limit_pushes_open + limit_worker_pushes_open: Counter "trunkline_limit_hits_total" "limit=\"pushes_open\"" "How often each limit was hit.";
    limit_pushes_user: Counter "trunkline_limit_hits_total" "limit=\"pushes_per_user_per_sec\"" "How often each limit was hit.";
    limit_pushes_key: Counter "trunkline_limit_hits_total" "limit=\"pushes_per_key_per_sec\"" "How often each limit was hit.";
    limit_broadcasts: Counter "trunkline_limit_hits_total" "limit=\"broadcasts\"" "How often each limit was hit.";
    limit_push_bodies: Counter "trunkline_limit_hits_total" "limit=\"push_bodies_bytes\"" "How often each limit was hit.";
    limit_push_batches: Counter "trunkline_limit_hits_total" "limit=\"push_batches\"" "How often each limit was hit.";
    limit_push_keys: Counter "trunkline_limit_hits_total" "limit=\"push_keys_remembered\"" "How often each limit was hit.";
    limit_webhook_bytes: Counter "trunkline_limit_hits_total" "limit=\"webhook_bytes\"" "How often each limit was hit.";
    limit_webhook_age: Counter "trunkline_limit_hits_total" "limit=\"webhook_age_time\"" "How often each limit was hit.";
    limit_event_portal: Counter "trunkline_limit_hits_total" "limit=\"event_portal_bytes\"" "How often each limit was hit.";
    limit_event_log: Counter "trunkline_limit_hits_total" "limit=\"event_log_bytes\"" "How often each limit was hit.";
    limit_event_kept: Counter "trunkline_limit_hits_total" "limit=\"event_kept_time\"" "How often each limit was hit.";
    limit_events_held: Counter "trunkline_limit_hits_total" "limit=\"events_held\"" "How often each limit was hit.";
    limit_events_going: Counter "trunkline_limit_hits_total" "limit=\"users_going\"" "How often each limit was hit.";
    limit_hook_waiting: Counter "trunkline_limit_hits_total" "limit=\"connect_hook_waiting\"" "How often each limit was hit.";
    limit_hook_cache: Counter "trunkline_limit_hits_total" "limit=\"connect_hook_cache_bytes\"" "How often each limit was hit.";
    events_online: Counter "trunkline_events_total" "type=\"user.online\"" "Events that some webhook wants, each counted once.";
    events_offline: Counter "trunkline_events_total" "type=\"user.offline\"" "Events that some webhook wants, each counted once.";
    events_login: Counter "trunkline_events_total" "type=\"session.login\"" "Events that some webhook wants, each counted once.";
    events_logout: Counter "trunkline_events_total" "type=\"session.logout\"" "Events that some webhook wants, each counted once.";
    events_sent: Counter "trunkline_events_total" "type=\"message.sent\"" "Events that some webhook wants, each counted once.";
    events_stored: Counter "trunkline_events_total" "type=\"message.stored\"" "Events that some webhook wants, each counted once.";
    events_push: Counter "trunkline_events_total" "type=\"push.outcome\"" "Events that some webhook wants, each counted once.";
    events_node_lost: Counter "trunkline_events_total" "type=\"node.lost\"" "Events that some webhook wants, each counted once.";
    events_node_started: Counter "trunkline_events_total" "type=\"node.started\"" "Events that some webhook wants, each counted once.";
    webhook_delivered: Counter "trunkline_webhook_events_total" "end=\"delivered\"" "What became of events, counted for each webhook: delivered; dropped because there was no room; given up because the receiver refused them, or took none for too long.";
    webhook_dropped: Counter "trunkline_webhook_events_total" "end=\"dropped\"" "What became of events, counted for each webhook: delivered; dropped because there was no room; given up because the receiver refused them, or took none for too long.";
    webhook_given_up: Counter "trunkline_webhook_events_total" "end=\"given_up\"" "What became of events, counted for each webhook: delivered; dropped because there was no room; given up because the receiver refused them, or took none for too long.";
    webhook_requests_2xx: Counter "trunkline_webhook_requests_total" "status=\"2xx\"" "Requests to receivers of events by what was answered; none is those without an answer in time.";
    webhook_requests_3xx: Counter "trunkline_webhook_requests_total" "status=\"3xx\"" "Requests to receivers of events by what was answered; none is those without an answer in time.";
    webhook_requests_4xx: Counter "trunkline_webhook_requests_total" "status=\"4xx\"" "Requests to receivers of events by what was answered; none is those without an answer in time.";
    webhook_requests_5xx: Counter "trunkline_webhook_requests_total" "status=\"5xx\"" "Requests to receivers of events by what was answered; none is those without an answer in time.";
    webhook_requests_failed: Counter "trunkline_webhook_requests_total" "status=\"none\"" "Requests to receivers of events by what was answered; none is those without an answer in time.";
    webhook_retries: Counter "trunkline_webhook_retries_total" "" "Requests to receivers of events that are, or were, to be sent again after a while.";
    webhook_waiting: Gauge "trunkline_webhook_events_waiting" "" "Events that wait for receivers, counted for each webhook.";
    webhook_bytes: Gauge "trunkline_webhook_bytes" "" "Bytes of events that wait for receivers.";
    webhook_oldest_us: GaugeMicros "trunkline_webhook_oldest_seconds" "" "Age of the oldest event that waits for a receiver, in steps of a tick.";
    event_log_bytes: Gauge "trunkline_event_log_bytes" "" "Bytes of the files in which events are kept.";
    event_log_errors: Counter "trunkline_event_log_errors_total" "" "Times events could not be written to their files; they go on from memory then.";
    events_held: Gauge "trunkline_events_held" "" "Senders that are told SENT 1 as soon as the event of their stored message is kept.";
    hook_asked: Counter "trunkline_connect_hook_requests_total" "" "Requests to the connect-time hook.";
    hook_accepted: Counter "trunkline_connect_hook_answers_total" "end=\"accepted\"" "Answers of the connect-time hook, by what became of them: accepted, refused, failed where there was none that says either.";
    hook_refused: Counter "trunkline_connect_hook_answers_total" "end=\"refused\"" "Answers of the connect-time hook, by what became of them: accepted, refused, failed where there was none that says either.";
    hook_failed: Counter "trunkline_connect_hook_answers_total" "end=\"failed\"" "Answers of the connect-time hook, by what became of them: accepted, refused, failed where there was none that says either.";
    hook_cached: Counter "trunkline_connect_hook_saved_total" "by=\"cache\"" "Logins and renewals for which no request was made: the answer was known, an equal question was open, or the hook is left in peace.";
    hook_shared: Counter "trunkline_connect_hook_saved_total" "by=\"equal\"" "Logins and renewals for which no request was made: the answer was known, an equal question was open, or the hook is left in peace.";
    hook_cut: Counter "trunkline_connect_hook_saved_total" "by=\"circuit\"" "Logins and renewals for which no request was made: the answer was known, an equal question was open, or the hook is left in peace.";
    hook_allowed: Counter "trunkline_connect_hook_allowed_total" "" "Logins let in without an answer, as connect_hook_failure = \"allow\" has it.";
    hook_waiting: Gauge "trunkline_connect_hook_waiting" "" "Logins and renewals that wait for the connect-time hook.";
    hook_under_way: Gauge "trunkline_connect_hook_under_way" "" "Requests to the connect-time hook that are under way.";
    hook_cache_bytes: Gauge "trunkline_connect_hook_cache_bytes" "" "Bytes of answers of the connect-time hook that still count.";
    hook_is_cut: Gauge "trunkline_connect_hook_circuit_open" "" "1 while the connect-time hook is asked hardly anything, since it gave no answers.";
    group_messages_in: Counter "trunkline_group_messages_received_total" "" "Messages to groups that clients sent.";
    group_stored: Counter "trunkline_group_messages_total" "outcome=\"stored\"" "Messages to groups, by what became of them.";
    group_accepted: Counter "trunkline_group_messages_total" "outcome=\"accepted\"" "Messages to groups, by what became of them.";
    group_duplicates: Counter "trunkline_group_messages_total" "outcome=\"duplicate\"" "Messages to groups, by what became of them.";
    group_denied: Counter "trunkline_group_messages_total" "outcome=\"denied\"" "Messages to groups, by what became of them.";
    group_overloaded: Counter "trunkline_group_messages_total" "outcome=\"overloaded\"" "Messages to groups, by what became of them.";
    group_rate_limited: Counter "trunkline_group_messages_total" "outcome=\"rate_limited\"" "Messages to groups, by what became of them.";
    group_encoded: Counter "trunkline_group_messages_encoded_total" "" "Messages to groups encoded for the sessions of a shard: once for each shard that has some.";
    group_deliveries: Counter "trunkline_group_deliveries_total" "" "Copies of messages to groups queued for sessions.";
    group_copies_dropped: Counter "trunkline_group_copies_dropped_total" "" "Copies of messages to groups for which a session's outbox had no room, or its budget of messages of live rooms; it is told by HEADS.";
    room_walks: Counter "trunkline_room_walks_total" "" "Times that messages to a live room went to its sessions of a shard: each session got one send.";
    room_frames_walked: Counter "trunkline_room_messages_walked_total" "" "Messages to live rooms that went to their sessions of a shard: several at a time where a room is busy.";
    group_gaps: Counter "trunkline_group_gaps_total" "" "Times a shard saw that it had not got a message to a group; its sessions are told by HEADS.";
    group_replays: Counter "trunkline_group_replays_total" "" "Messages of groups given out for SYNC.";
    group_joins: Counter "trunkline_group_joins_total" "" "Joins of groups and rooms that took effect.";
    group_leaves: Counter "trunkline_group_leaves_total" "" "Leaves of groups and rooms that took effect.";
    group_messages_away: Counter "trunkline_group_messages_away_total" "" "Messages to live rooms sent on to the node that is the home of the room.";
    group_relay_copies: Counter "trunkline_group_relay_copies_sent_total" "" "Copies of messages to live rooms queued for other nodes: one for each node with sessions in the room, whatever their number.";
    group_relay_copies_in: Counter "trunkline_group_relay_copies_received_total" "" "Copies of messages to live rooms that came from the home of the room for the sessions of this node.";
    group_relay_dropped: Counter "trunkline_group_relay_copies_dropped_total" "" "Copies of messages to live rooms for which the link to a node, or a mailbox there, had no room; the numbers show it.";
    group_relay_stale: Counter "trunkline_group_relay_copies_stale_total" "" "Copies of messages to live rooms that were not passed on: nobody is in the room any more, or another node is its home by now.";
    group_marks: Counter "trunkline_group_marks_total" "" "Read marks that clients sent.";
    heads: Counter "trunkline_group_heads_total" "" "HEADS sent: to sessions that were not given something, and after LOGIN.";
    group_passive_heads: Counter "trunkline_group_passive_heads_total" "" "HEADS sent to sessions that are not given the messages of large groups: at most one in 5 s each.";
    group_spared: Counter "trunkline_group_copies_spared_total" "kept=\"yes\"" "Copies of messages that sessions were not given because the group is large and they pay no attention, by whether the message is in the log; of those that are they are told by HEADS.";
    group_unkept_spared: Counter "trunkline_group_copies_spared_total" "kept=\"no\"" "Copies of messages that sessions were not given because the group is large and they pay no attention, by whether the message is in the log; of those that are they are told by HEADS.";
    group_parts: Gauge "trunkline_group_parts" "" "Groups and rooms with sessions on this shard.";
    group_sessions: Gauge "trunkline_group_sessions" "" "Sessions in groups and rooms, counted once for each.";
    group_passive: Gauge "trunkline_group_passive_sessions" "" "Sessions in large groups that pay no attention and are told by HEADS, counted once for each.";
    group_attentive: Gauge "trunkline_group_attentive_sessions" "" "Sessions that pay attention to a group, whatever its size, counted once for each.";
    group_homes: Gauge "trunkline_group_homes" "" "Groups and rooms in use whose home this shard is.";
    group_relays: Gauge "trunkline_group_relays" "" "Groups and live rooms with sessions on this node whose home is another one.";
    group_joins_waiting: Gauge "trunkline_group_joins_waiting" "" "Joins, and other questions about groups, that wait for a home on another node.";
    group_news_owed: Gauge "trunkline_group_member_news_waiting" "" "Changes of memberships of groups that could not be told to another node yet.";
    group_queue_bytes: Gauge "trunkline_group_queue_bytes" "" "Bytes of frames on their way through the sessions of groups.";
    group_behind: Gauge "trunkline_group_sessions_behind" "" "Sessions that are to be told by HEADS that they were not given something.";
    watch_frames: Counter "trunkline_watch_frames_total" "" "PRESENCE frames queued for sessions.";
    watch_states: Counter "trunkline_watch_states_total" "" "States of users in PRESENCE frames.";
    watch_changes: Counter "trunkline_watch_changes_total" "" "Changes of users that their home has told of, however many watch; at most one for a user and 5 s.";
    watch_owed: Counter "trunkline_watch_owed_total" "" "Times the link to a node had no room for a state of a user; it is told later.";
    watches: Gauge "trunkline_watches" "" "Watches of sessions: one for each session and user.";
    watched: Gauge "trunkline_watched_users" "" "Users whose home this shard is and whom somebody watches.";
    watch_bytes: Gauge "trunkline_watch_bytes" "" "Memory of the tables of watches.";
    send_claims: Gauge "trunkline_send_claims" "" "Sessions whose token or connect hook says to whom they may write.";
    send_claim_bytes: Gauge "trunkline_send_claim_bytes" "" "Bytes that those claims count for.";
    evicted_outbox: Counter "trunkline_evictions_total" "of=\"outbox\"" "Connections, or users' messages, that gave way because a bound of all was reached and they held most of it.";
    evicted_partial: Counter "trunkline_evictions_total" "of=\"partial\"" "Connections, or users' messages, that gave way because a bound of all was reached and they held most of it.";
    evicted_handshakes: Counter "trunkline_evictions_total" "of=\"tls_handshake\"" "Connections, or users' messages, that gave way because a bound of all was reached and they held most of it.";
    evicted_unacked: Counter "trunkline_evictions_total" "of=\"unacked\"" "Connections, or users' messages, that gave way because a bound of all was reached and they held most of it.";
    reads_paused: Counter "trunkline_reads_paused_total" "" "Connections not read for a while because their own outbox was full.";
    reads_behind: Counter "trunkline_reads_behind_total" "" "Times a connection's input waited for a later turn.";
    mailbox_waits: Counter "trunkline_mailbox_waits_total" "" "Times a message waited with its sender for room in the mailbox of another shard.";
    slow_outboxes: Gauge "trunkline_connections_slow" "" "Connections that had not taken the bytes of an earlier turn when last looked at.";
    unsent_bytes: Gauge "trunkline_kernel_unsent_bytes" "" "About what the kernel holds for those connections; it counts against the bound of all outboxes.";
    clock_jumps: Counter "trunkline_clock_jumps_total" "" "Times the shard did not run for a second or more; its timers do not count such time.";
    outbox_bytes: Gauge "trunkline_outbox_bytes" "" "Bytes queued for clients of this shard.";
    partial_bytes: Gauge "trunkline_partial_bytes" "" "Bytes of half-received frames.";
    unacked_bytes: Gauge "trunkline_unacked_bytes" "" "Bytes of messages that wait for an ACK.";
    mailbox_depth: Gauge "trunkline_mailbox_batches" "" "Letters this shard took from its mailbox in its last turn.";
    mailbox_pending_bytes: Gauge "trunkline_mailbox_pending_bytes" "" "Bytes this shard has under way to other shards.";
    view_epoch: Gauge "trunkline_view_epoch" "" "Epoch of the view of the cluster this shard works with; 0 when the node is alone.";
    settling: Gauge "trunkline_directory_settling" "" "1 while this shard tells other nodes of its sessions, or waits for them to, after a change of the view.";
    remote_sessions: Gauge "trunkline_remote_sessions" "" "Sessions on other nodes of users whose home this shard is.";
    registering: Gauge "trunkline_logins_registering" "" "Logins that wait for the user's home on another node.";
    registrations: Counter "trunkline_registrations_total" "" "Sessions on other nodes registered with this home shard.";
    registered_again: Counter "trunkline_registered_again_total" "" "Sessions of this shard registered with a new home after a change of the view.";
    transferred: Counter "trunkline_messages_transferred_total" "" "Messages that waited for an ACK and were sent to the recipient's new home.";
    settled_sent: Counter "trunkline_directory_settled_sent_total" "" "Records to other nodes that say that all sessions of this shard were told of after a change of the view, without those that say it of several.";
    settled_sets: Counter "trunkline_directory_settled_sets_sent_total" "" "Records to other nodes that say so of several shards at once, those that share a link: one for each link and change, unless some are late.";
    settle_timeouts: Counter "trunkline_directory_settle_timeouts_total" "" "Changes of the view after which not every node had told of its sessions in time.";
    parked_bytes: Gauge "trunkline_parked_bytes" "" "Bytes of messages that wait until it is known where their recipient is.";
    parked_expired: Counter "trunkline_parked_expired_total" "" "Messages that waited in vain until it was known where their recipient is.";
    came_back: Counter "trunkline_messages_came_back_total" "" "Messages with ACK that another node had sent back to the one they began at, or handed on to it, because their recipient's home is that one after a change of the view.";
    came_back_late: Counter "trunkline_messages_came_back_late_total" "" "The same that were dropped, because their senders had been told meanwhile that they failed.";
    redelivery_users: Gauge "trunkline_redelivery_users" "" "Users with sessions on other nodes only for whom messages wait.";
    fenced: Counter "trunkline_fenced_total" "" "Messages, logins and registrations refused because the node had no lease.";
    mesh_links: Gauge "trunkline_mesh_links" "" "Links of this shard to other nodes.";
    mesh_links_up: Gauge "trunkline_mesh_links_up" "" "Links of this shard to other nodes that are connected.";
    mesh_links_in_clear: Gauge "trunkline_mesh_links_in_clear" "" "Links of this shard to other nodes that are connected and not encrypted.";
    mesh_links_missing: Gauge "trunkline_mesh_links_missing" "" "Links to other nodes for which this shard has no places; anything but 0 means that nodes do not reach each other.";
    mesh_held_bytes: Gauge "trunkline_mesh_held_bytes" "" "Bytes held for other nodes until they confirm them.";
    mesh_bytes_in: Counter "trunkline_mesh_bytes_received_total" "" "Bytes received from other nodes.";
    mesh_bytes_out: Counter "trunkline_mesh_bytes_sent_total" "" "Bytes the kernel took for other nodes.";
    mesh_records_out: Counter "trunkline_mesh_records_sent_total" "" "Records queued for other nodes.";
    mesh_records_in: Counter "trunkline_mesh_records_received_total" "" "Records taken from other nodes.";
    mesh_resent: Counter "trunkline_mesh_records_resent_total" "" "Records sent again after a reconnect.";
    mesh_refused: Counter "trunkline_mesh_records_refused_total" "" "Records not queued because the link held as much as it may.";
    mesh_unreachable: Counter "trunkline_mesh_unreachable_total" "" "Messages not queued for another node because its link had been down for 3 s.";
    mesh_duplicates: Counter "trunkline_mesh_records_duplicate_total" "" "Records that came again and were dropped.";
    mesh_unknown: Counter "trunkline_mesh_records_unknown_total" "" "Records of a kind this version does not know.";
    mesh_carry_waits: Counter "trunkline_mesh_records_waited_total" "" "Records for other nodes that waited for room in the mailbox of the shard that has the link.";
    mesh_carried: Counter "trunkline_mesh_records_carried_total" "" "Records for other nodes handed to the shard that has the link.";
    mesh_carries_refused: Counter "trunkline_mesh_carries_refused_total" "" "Records another shard handed on that found no room on the link.";
    mesh_backs: Counter "trunkline_mesh_records_returned_total" "" "Records that went back to the shard that had handed them on: refused, or not confirmed when their stream ended.";
    mesh_backs_bytes: Gauge "trunkline_mesh_returned_bytes" "" "Bytes of records on their way back to other shards of the node; bounded by limit mailbox, beyond which they wait at the link and nothing more is handed on.";
    mesh_ended_bytes: Gauge "trunkline_mesh_ended_bytes" "" "Bytes of streams that have ended and have not been given back; they count for the link's bound.";
    mesh_given_back: Counter "trunkline_mesh_records_given_back_total" "" "Records not confirmed when their stream ended.";
    mesh_reconnects: Counter "trunkline_mesh_reconnects_total" "" "Connections of links after the first.";
    mesh_failures: Counter "trunkline_mesh_failures_total" "" "Handshakes that failed, peers that could not be reached, and links that were closed for silence or a violation.";
    mesh_misrouted: Counter "trunkline_mesh_misrouted_total" "" "Records for a shard this node does not have, or with an outcome nobody knows; anything but 0 is a fault of a peer.";
    mesh_answers_lost: Counter "trunkline_mesh_answers_lost_total" "" "Answers and registrations that could not be queued for another node.";
    memos_dropped: Counter "trunkline_cluster_memos_dropped_total" "" "Words between the control threads of two nodes that found no connection, no room or no member; they are said again with the next beat.";
    mesh_news_dropped: Counter "trunkline_mesh_news_dropped_total" "" "Times the control thread was not told of links because its queue was full; it is told again with the next heartbeat.";
    mesh_rtt_us: GaugeMicros "trunkline_mesh_round_trip_seconds" "" "Longest smoothed round trip of a link, in steps of a millisecond.";
    hot: Gauge "trunkline_connections_hot" "" "Connections read by an armed multishot receive.";
    turns: Counter "trunkline_turns_total" "" "Turns of the shard's loop.";
    parks: Counter "trunkline_parks_total" "" "Times the shard went to sleep in its executor.";
    ring_completions: Counter "trunkline_ring_completions_total" "" "Completions taken from the data ring.";
    ring_enobufs: Counter "trunkline_ring_enobufs_total" "" "Receives that found no free buffer and were armed again.";
    ring_bulk_starved: Counter "trunkline_ring_bulk_starved_total" "" "Reads of links to other nodes that found all large receive buffers taken by others, and come before those in the next turn.";
    ring_short_sends: Counter "trunkline_ring_short_sends_total" "" "Sends of which the kernel took only a part.";
    ring_cq_overflow: Gauge "trunkline_ring_cq_overflow" "" "Completions the kernel had to drop because its queue was full; anything but 0 is a fault.";
    ring_sq_full: Counter "trunkline_ring_sq_full_total" "" "Times the submission queue had to be flushed within a turn.";
    ring_submit_retries: Counter "trunkline_ring_submit_retries_total" "" "Times the kernel took nothing of what was submitted and it was submitted again.";
    finishing_retries: Counter "trunkline_finishing_retries_total" "" "Times the operations of a closing connection were cancelled once more because they had not ended.";
    ring_stale: Counter "trunkline_ring_stale_completions_total" "" "Completions for a connection that no longer holds the slot; anything but 0 is a fault.";
    accept_errors: Counter "trunkline_accept_errors_total" "" "Accepts that failed.";
    arriving: Gauge "trunkline_connections_arriving" "" "Connections announced by other shards whose descriptor has not come yet.";
    handover_errors: Counter "trunkline_handover_errors_total" "" "Connections whose hand-over to their home shard failed.";
}

impl ShardStats {
    /// Counts one closed connection.
    pub fn count_close(&self, reason: CloseReason) {
        self.closed[reason as usize].add(1);
    }

    /// Counts one refused token.
    pub fn count_refusal(&self, refusal: Refusal) {
        self.tokens_refused[refusal as usize].add(1);
    }

    /// Refused tokens by what was wrong with them.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.tokens_refused[refusal as usize].get()
    }

    /// Counts one refused request to become a WebSocket.
    pub fn count_request_refused(&self, refusal: RequestRefusal) {
        self.requests_refused[refusal as usize].add(1);
    }

    /// Refused requests by what was wrong with them.
    pub fn request_refused(&self, refusal: RequestRefusal) -> u64 {
        self.requests_refused[refusal as usize].get()
    }

    /// Counts one handshake of TLS that is over.
    pub fn count_handshake(&self, outcome: TlsOutcome) {
        self.handshakes[outcome as usize].add(1);
    }

    /// Handshakes of TLS by how they ended.
    pub fn handshakes(&self, outcome: TlsOutcome) -> u64 {
        self.handshakes[outcome as usize].get()
    }

    /// Counts one connection over TLS.
    pub fn count_tls(&self, version: Version, suite: Suite) {
        self.tls_of(version)[suite as usize].add(1);
    }

    /// Connections over TLS by version and suite.
    pub fn tls(&self, version: Version, suite: Suite) -> u64 {
        self.tls_of(version)[suite as usize].get()
    }

    fn tls_of(&self, version: Version) -> &[Stat; SUITES] {
        match version {
            Version::Tls12 => &self.tls_12,
            Version::Tls13 => &self.tls_13,
        }
    }

    /// Counts one alert sent to a peer.
    pub fn count_alert_sent(&self, alert: Alert) {
        self.alerts_sent[alert.index()].add(1);
    }

    /// Counts one alert of a peer.
    pub fn count_alert_received(&self, alert: Alert) {
        self.alerts_received[alert.index()].add(1);
    }

    /// Alerts sent to peers, and those of peers.
    pub fn alerts(&self, alert: Alert) -> (u64, u64) {
        (self.alerts_sent[alert.index()].get(), self.alerts_received[alert.index()].get())
    }

    /// Closed connections by reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].get()
    }

    /// Closed connections in all.
    pub fn closed_total(&self) -> u64 {
        self.closed.iter().map(Stat::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_threads_count_is_one_series() {
        let stats = ShardStats::default();
        stats.limit_pushes_open.add(2);
        stats.limit_worker_pushes_open.add(3);
        let mut seen = Vec::new();
        stats.visit(|info, value| {
            if info.labels == "limit=\"pushes_open\"" {
                seen.push(value);
            }
        });
        assert_eq!(seen, [5]);
    }

    #[test]
    fn a_time_is_counted_at_the_first_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for us in [0, 10, 11, 1_000, 10_000_000, 10_000_001] {
            histogram.observe(us);
        }
        let (below, count, sum) = histogram.times().cumulated();
        let at = |secs: f64| below.iter().find(|(bound, _)| *bound == secs).map(|(_, count)| *count);
        assert_eq!((at(0.000_01), at(0.000_025), at(0.001), at(10.0), count), (Some(2), Some(3), Some(4), Some(5), 6));
        assert!((sum - 20.001_022).abs() < 1e-9, "{sum}");
        let mut all = Times::default();
        all.observe(10);
        all.add(&histogram.times());
        assert_eq!(all.cumulated().0[0].1, 3);
        let other = Histogram::default();
        other.set(&all);
        assert_eq!(other.times(), all);
    }
}
