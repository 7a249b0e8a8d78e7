//! The memory budget: what the process can come to need when every limit is reached at once.
//!
//! It is a sum of bounds, so a node in use stays far below it. Its purpose is that reaching a limit is met by that
//! limit's policy and never by the kernel's out-of-memory killer. A node whose sum exceeds `memory_max` does not start.

use crate::bounds::{HTTP_CONNECTIONS_MAX, PREVIEW_WEIGHT_MAX};
use crate::broadcast;
use crate::core::PEER_BYTES;
use crate::core::tokens::{SAID_BYTES, TOKEN_BYTES};
use crate::desk::{DUPLICATES_BYTES, LOGOUTS_BYTES, PAGES_MAX, READER_BYTES};
use crate::directory::RemoteSessions;
use crate::events::{LANE_BYTES, LANES, SHARD_BYTES as EVENT_SHARD_BYTES};
use crate::groups::MEMBERSHIP_BYTES;
use crate::hook::{REQUEST_BYTES, WAITING_BYTES};
use crate::limits::{CLASS_BYTES_MAX, Limits, SLOTS_RESERVED, SendPolicy};
use crate::portal::FATE_BYTES;
use crate::presence_log::log_bytes;
use crate::push::api::{BATCHES_MAX, BODIES_BYTES_MAX, LINES_MAX};
use crate::push::{OPEN_BYTES, RATES_BYTES, WINDOW_BYTES};
use crate::pushed::PUSHED_BYTES;
use crate::senders::SEND_CLAIM_BYTES;
use crate::services::{CALL_BYTES, PUSHES_OPEN_MAX};
use crate::services_thread::{CONNECTION_BYTES, CONNECTIONS_MAX as SERVICES_CONNECTIONS_MAX};
use crate::size::Size;
use crate::store_memory::{STORE_USER_BYTES, StoreMemory};
use crate::transport::tls::KEYS_BYTES_MAX;
use crate::upstream::CONN_BYTES as UPSTREAM_CONN_BYTES;
use crate::wheel::ENTRY_BYTES;
use std::fmt;
use trunkline_core::conn::CONN_BYTES;
use trunkline_core::outbox::Outbox;
use trunkline_proto::DEVICE_BYTES_MAX;
use trunkline_router::http::{LONG_BODIES_MAX, LONG_BODY_BYTES_MAX};
use trunkline_router::presence::Embedded;

/// A Vec that grows doubles, so it may hold twice the bytes that are counted.
const VEC_GROWTH: u64 = 2;
/// A slot's places in the lists of a shard: once in dirty, due, overflowed, waiting, flights, spenders, behind and
/// redeliverable, up to twice in slow and in holders (four bytes each), and up to twice in strangers (eight).
const LIST_BYTES: u64 = ((8 + 2 * 2) * 4 + 2 * 8) * VEC_GROWTH;
/// A send under way: its connection, its buffer's handle, its place in the list of free ones.
const SEND_BYTES: u64 = (32 + 4) * VEC_GROWTH;
/// Answers may fill the outboxes of a shard to five quarters of their bound.
const ANSWERS_NUMERATOR: u64 = 5;
const ANSWERS_DENOMINATOR: u64 = 4;
/// Queue of a mailbox: letters for each sending shard, and the size of one.
const MAILBOX_LETTERS: u64 = 64;
const LETTER_BYTES: u64 = 48;
/// Queues of a data ring (1,024 submissions of 64 bytes, 16,384 completions of 16) and the batch the completions are
/// taken to.
const RING_BYTES: u64 = 1_024 * 64 + 3 * 16_384 * 16;
/// Entry of the provided-buffer ring.
const RING_ENTRY_BYTES: u64 = 16;
/// An executor with its three small rings and the touched part of its stack, and a shard's batches and outboxes kept
/// for reuse (2 MiB) and counters. Shards that share a core share an executor too: then the sum is above what they
/// need.
const EXECUTOR_BYTES: u64 = (3 << 20) + (512 << 10);
/// Program, runtime of the control thread, and what the allocator keeps back.
const PROCESS_BYTES: u64 = 24 << 20;
/// Lines that wait for the log, and the batch that is being written.
const LOG_BYTES: u64 = 2 * trunkline_router::log::BYTES_MAX as u64;
/// Header, body and answer of one HTTP connection, and one rendering of the metrics of a shard.
const HTTP_CONNECTION_BYTES: u64 = 64 << 10;
/// What the longest bodies add: each as it came, as it was read, and as it is handed on.
const LONG_BODIES_BYTES: u64 = 3 * (LONG_BODIES_MAX * LONG_BODY_BYTES_MAX) as u64;
/// What TLS adds to one: a record each way, and what is half received or not yet sent.
const HTTP_TLS_BYTES: u64 = 64 << 10;
const METRICS_BYTES_PER_SHARD: u64 = 16 << 10;
/// A line of a batch of pushes while its outcome is waited for, and its answer.
const BATCH_LINE_BYTES: u64 = 512;
/// What a preview of the ring takes for each unit of weight, both rings and the sample together; there is one at a
/// time.
const PREVIEW_BYTES_PER_WEIGHT: u64 = 2_500;
/// What the kernel holds for an idle connection: its TCP socket, inode and file (3.6 to 3.9 KB), and the armed poll.
pub(crate) const KERNEL_BYTES_PER_CONNECTION: u64 = 4_100;

/// A message that another node is to answer: its places in a table that may be half empty and in a queue twice as long.
pub(crate) const AWAY_BYTES: u64 = 2 * 56 + 2 * 2 * 40;

/// What the store takes for a membership, and for its part of a group: there may be an eighth as many groups.
pub(crate) const MEMBERSHIP_STORED_BYTES: u64 = 128;

/// A login or logout that waits for Redis; its queue is bounded in bytes too, by this for each.
pub(crate) const PRESENCE_WRITE_BYTES: u64 = 512;

/// What a shard remembers of messages and LOGOUTs.
const REMEMBERED_BYTES: u64 = DUPLICATES_BYTES + LOGOUTS_BYTES;
/// What a connection over TLS keeps: its keys, and places in two lists that grow.
const TLS_BYTES: u64 = KEYS_BYTES_MAX as u64 + 2 * 4 * VEC_GROWTH;
/// Certificates, those who sign for clients', and the tables of ciphers.
const TLS_NODE_BYTES: u64 = 2 << 20;

/// One term of the sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What takes the memory.
    pub name: &'static str,
    /// Bytes for the whole node.
    pub bytes: u64,
    /// How the number comes about.
    pub how: String,
    /// Flags that make it smaller, or empty.
    pub flags: &'static [&'static str],
}

/// The sum.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Its terms.
    pub terms: Vec<Term>,
    /// What it may come to.
    pub memory_max: u64,
    /// Connections of the node at their limit.
    pub connections: u64,
    /// Shards of the node.
    pub shards: u64,
    /// Memory there is, bytes, for the sum and for what the kernel holds besides; 0 when that is not known.
    pub memory_available: u64,
    /// When the sum does not fit: flags and values, each of which makes it fit.
    pub remedies: Vec<String>,
}

/// Bytes a shard takes for this many connections, whatever they do: slots, timers and users, without queues.
pub(crate) fn connections_bytes(connections: u64) -> u64 {
    slot_bytes(connections).saturating_add(user_bytes(connections)).saturating_add(queue_head_bytes(connections))
}

/// Bytes a shard takes for this many connections for what the connect hook has said of them.
fn said_bytes(limits: &Limits, connections: u64) -> u64 {
    let each = if limits.hook_requests_max > 0 { SAID_BYTES } else { 0 };
    (connections + u64::from(SLOTS_RESERVED)) * each as u64
}

/// Bytes a shard takes for this many connections for to whom they may write, without lists.
fn send_claim_bytes(limits: &Limits, connections: u64) -> u64 {
    let each = if limits.send.policy == SendPolicy::Claim { SEND_CLAIM_BYTES } else { 0 };
    (connections + u64::from(SLOTS_RESERVED)) * each as u64
}

fn slot_bytes(connections: u64) -> u64 {
    (connections + u64::from(SLOTS_RESERVED)) * (CONN_BYTES + ENTRY_BYTES + TOKEN_BYTES) as u64
        + (connections + u64::from(SLOTS_RESERVED)) * LIST_BYTES
}

fn user_bytes(connections: u64) -> u64 {
    let connections = usize::try_from(connections).unwrap_or(usize::MAX);
    Embedded::memory_bytes_max(connections, connections, DEVICE_BYTES_MAX + CLASS_BYTES_MAX) as u64
}

/// What a home shard takes for sessions on other nodes, besides what it takes for its own.
fn remote_bytes(connections: u64, remotes: u64) -> u64 {
    (RemoteSessions::bytes_max(remotes as usize) as u64)
        .saturating_add(user_bytes(connections.saturating_add(remotes)).saturating_sub(user_bytes(connections)))
}

fn queue_head_bytes(connections: u64) -> u64 {
    connections * (size_of::<Outbox>() as u64 + SEND_BYTES)
}

fn tls_bytes(connections: u64) -> u64 {
    connections * TLS_BYTES
}

impl Budget {
    /// The budget of `shards` shards with these limits each; a node of a cluster has a queue of presence writes of this
    /// length.
    pub(crate) fn of_limits(limits: &Limits, shards: u16, presence_queue: Option<u64>, memory_max: u64) -> Self {
        let shards = u64::from(shards);
        let each = u64::from(limits.connections_max);
        let connections = each * shards;
        let buffer_bytes = u64::from(limits.recv_buffer_bytes) + RING_ENTRY_BYTES;
        let pairs = shards * (shards - 1);
        let node = |per_shard: usize, factor: u64| (per_shard as u64).saturating_mul(shards).saturating_mul(factor);
        let size = |bytes: u64| Size(bytes).rounded();
        let http = u64::from(HTTP_CONNECTIONS_MAX);
        let preview = u64::from(PREVIEW_WEIGHT_MAX) * PREVIEW_BYTES_PER_WEIGHT;
        let mut terms = vec![
            Term {
                name: "connection slots",
                bytes: slot_bytes(each) * shards,
                how: format!(
                    "{connections} connections and {} spare slots, {CONN_BYTES} B each, {ENTRY_BYTES} B in the timer \
                     wheel, {LIST_BYTES} B in lists, {TOKEN_BYTES} B for its token",
                    u64::from(SLOTS_RESERVED) * shards
                ),
                flags: &["--connections-max", "--shards"],
            },
            Term {
                name: "users",
                bytes: user_bytes(each).saturating_mul(shards),
                how: format!(
                    "one on each connection, with the longest device name and class, {} B",
                    user_bytes(each) / each
                ),
                flags: &["--connections-max", "--shards"],
            },
            Term {
                name: "outboxes",
                bytes: (node(limits.outbox_total_bytes_max, VEC_GROWTH) / ANSWERS_DENOMINATOR)
                    .saturating_mul(ANSWERS_NUMERATOR)
                    .saturating_add(queue_head_bytes(each) * shards),
                how: format!(
                    "{} queued, or held by the kernel for who does not read, a quarter more of answers, growth, and {} \
                     B for each connection",
                    size(node(limits.outbox_total_bytes_max, 1)),
                    queue_head_bytes(1)
                ),
                flags: &["--outbox-total-bytes-max", "--connections-max"],
            },
            Term {
                name: "unacknowledged",
                bytes: node(limits.unacked_total_bytes_max, VEC_GROWTH),
                how: format!(
                    "{} of messages, and growth of their lists",
                    size(node(limits.unacked_total_bytes_max, 1))
                ),
                flags: &["--unacked-total-bytes-max"],
            },
            Term {
                name: "partial frames",
                bytes: node(limits.partial_total_bytes_max, VEC_GROWTH),
                how: format!("{} of frames half received, and growth", size(node(limits.partial_total_bytes_max, 1))),
                flags: &["--partial-bytes-max"],
            },
            Term {
                name: "receive buffers",
                bytes: u64::from(limits.recv_buffers) * buffer_bytes * shards,
                how: format!(
                    "{shards} shards with {} buffers of {}",
                    limits.recv_buffers,
                    Size(limits.recv_buffer_bytes.into())
                ),
                flags: &["--recv-buffer-bytes"],
            },
            Term {
                name: "mailboxes",
                bytes: (limits.mailbox_bytes_max as u64)
                    .saturating_mul(VEC_GROWTH)
                    .saturating_mul(pairs)
                    .saturating_add(MAILBOX_LETTERS * LETTER_BYTES * shards * shards),
                how: format!(
                    "{pairs} pairs of shards with {} each, growth, and their queues",
                    size(limits.mailbox_bytes_max as u64)
                ),
                flags: &["--mailbox-bytes-max", "--shards"],
            },
            Term {
                name: "rings and executors",
                bytes: (RING_BYTES + EXECUTOR_BYTES) * shards,
                how: format!("{shards} shards with {} each", size(RING_BYTES + EXECUTOR_BYTES)),
                flags: &["--shards"],
            },
            Term {
                name: "program and HTTP",
                bytes: PROCESS_BYTES
                    + LOG_BYTES
                    + LONG_BODIES_BYTES
                    + preview
                    + http * (HTTP_CONNECTION_BYTES + METRICS_BYTES_PER_SHARD * shards),
                how: format!(
                    "and {http} HTTP connections that all read the metrics, a preview of the ring, and lines that wait \
                     for the log"
                ),
                flags: &["--shards"],
            },
        ];
        if limits.addresses_known {
            let counted = u64::from(limits.addresses_max);
            terms.push(Term {
                name: "client addresses",
                bytes: (connections * PEER_BYTES).saturating_add(counted * crate::addresses::ENTRY_BYTES),
                how: format!(
                    "{PEER_BYTES} B for each connection, and {counted} addresses that are counted, {} B each",
                    crate::addresses::ENTRY_BYTES
                ),
                flags: &["--connections-max"],
            });
        }
        if limits.calls_max > 0 {
            let calls = u64::from(limits.calls_max) * shards;
            // At the caller's shard and at the worker's, each in tables that may be half empty.
            let call_bytes = 2 * VEC_GROWTH * CALL_BYTES as u64;
            let pushes = shards * PUSHES_OPEN_MAX as u64;
            terms.push(Term {
                name: "calls",
                bytes: calls
                    .saturating_mul(call_bytes)
                    .saturating_add(node(limits.calls_kept_bytes_max, VEC_GROWTH) + pushes * OPEN_BYTES),
                how: format!(
                    "{calls} open, {call_bytes} B each, {} kept to be sent, or sent again, and {pushes} pushes of \
                     workers",
                    size(node(limits.calls_kept_bytes_max, 1))
                ),
                flags: &["--calls-max", "--calls-kept-bytes-max", "--shards"],
            });
        }
        if limits.upstream_bytes_max > 0 {
            let (bytes, conns) = (limits.upstream_bytes_max as u64, u64::from(limits.upstream_conns_max));
            // Calls one way, answers the other; what the thread has is in none of them.
            let portals = node(limits.portal_bytes_max, VEC_GROWTH);
            terms.push(Term {
                name: "HTTP servers of services",
                bytes: (VEC_GROWTH * bytes).saturating_add(portals).saturating_add(conns * UPSTREAM_CONN_BYTES),
                how: format!(
                    "{} of calls and answers, {} in portals, and growth, {conns} connections, {} each",
                    size(bytes),
                    size(node(limits.portal_bytes_max, 1)),
                    size(UPSTREAM_CONN_BYTES)
                ),
                flags: &["--upstream-bytes-max", "--upstream-conns-max", "--portal-bytes-max", "--shards"],
            });
        }
        if limits.pushes_open_max > 0 {
            let open = u64::from(limits.pushes_open_max);
            let each = OPEN_BYTES + VEC_GROWTH * FATE_BYTES as u64;
            // A body, what is read of it, and the payload.
            let bodies = 3 * BODIES_BYTES_MAX as u64;
            let connections = u64::from(SERVICES_CONNECTIONS_MAX) * CONNECTION_BYTES
                + (BATCHES_MAX * LINES_MAX) as u64 * BATCH_LINE_BYTES;
            terms.push(Term {
                name: "pushes by HTTP",
                bytes: node(limits.portal_bytes_max, VEC_GROWTH)
                    .saturating_add(open.saturating_mul(each))
                    .saturating_add(bodies + connections + WINDOW_BYTES + RATES_BYTES),
                how: format!(
                    "{} in portals, and growth, {open} open, {each} B each, {} of bodies, {} of connections, {} of \
                     keys and rates",
                    size(node(limits.portal_bytes_max, 1)),
                    size(bodies),
                    size(connections),
                    size(WINDOW_BYTES + RATES_BYTES)
                ),
                flags: &["--portal-bytes-max", "--pushes-open-max", "--shards"],
            });
        }
        if limits.webhooks > 0 {
            let (bytes, lanes) = (limits.webhook_bytes_max as u64, u64::from(limits.webhooks) * LANES as u64);
            terms.push(Term {
                name: "events",
                // What waits is written anew to the log at times, all of it at once.
                bytes: bytes.saturating_mul(3).saturating_add(EVENT_SHARD_BYTES * shards + lanes * LANE_BYTES),
                how: format!(
                    "{} that wait for webhooks, and what is written of them, {} in each shard, {lanes} requests, {} \
                     each",
                    size(bytes),
                    size(EVENT_SHARD_BYTES),
                    size(LANE_BYTES)
                ),
                flags: &["--webhook-bytes-max", "--webhook", "--shards"],
            });
        }
        if limits.hook_requests_max > 0 {
            let waiting = u64::from(limits.hook_waiting_max) * WAITING_BYTES;
            let requests = u64::from(limits.hook_requests_max) * REQUEST_BYTES;
            let cache = limits.hook_cache_bytes_max as u64;
            let said = said_bytes(limits, limits.connections_max.into()).saturating_mul(shards);
            terms.push(Term {
                name: "connect hook",
                bytes: waiting + requests + cache + said,
                how: format!(
                    "{} of logins that wait, {} of requests, {} of answers that still count, {SAID_BYTES} B for a \
                     connection",
                    size(waiting),
                    size(requests),
                    size(cache)
                ),
                flags: &["--connect-hook-waiting-max", "--connect-hook-requests-max", "--connect-hook-cache-bytes-max"],
            });
        }
        if limits.pushes_open_max > 0 || presence_queue.is_some() {
            let bytes = broadcast::bytes_of(shards, limits.frame_bytes_max.into());
            terms.push(Term {
                name: "pushes to all",
                bytes,
                how: format!("{} of payloads at once, at each shard for this node and for others", size(bytes)),
                flags: &["--frame-bytes-max", "--shards"],
            });
        }
        if limits.tls_handshakes_max > 0 {
            terms.push(Term {
                name: "TLS",
                bytes: tls_bytes(each).saturating_mul(shards).saturating_add(TLS_NODE_BYTES),
                how: format!("keys of {connections} connections, {TLS_BYTES} B each at most, and certificates"),
                flags: &["--connections-max", "--shards"],
            });
        }
        if let Some(presence_queue) = presence_queue {
            let remotes = u64::from(limits.remote_sessions_max);
            terms.push(Term {
                name: "remote sessions",
                bytes: remote_bytes(each, remotes).saturating_mul(shards),
                how: format!("{} on other nodes, of users whose home is here, as many as here", remotes * shards),
                flags: &["--connections-max", "--shards"],
            });
            terms.push(Term {
                name: "mesh",
                bytes: node(limits.mesh_bytes_max, VEC_GROWTH)
                    .saturating_add(node(limits.parked_bytes_max, VEC_GROWTH))
                    .saturating_add(node(limits.sent_away_max, AWAY_BYTES)),
                how: format!(
                    "{} for other nodes, {} that wait for a home, and {} messages that others are to answer; growth",
                    size(node(limits.mesh_bytes_max, 1)),
                    size(node(limits.parked_bytes_max, 1)),
                    node(limits.sent_away_max, 1)
                ),
                flags: &["--mesh-bytes-max", "--shards"],
            });
            let queue = presence_queue.saturating_mul(PRESENCE_WRITE_BYTES);
            let log = log_bytes(limits.slots().into(), DEVICE_BYTES_MAX + CLASS_BYTES_MAX);
            terms.push(Term {
                name: "presence writes",
                bytes: queue.saturating_add(log * shards),
                how: format!(
                    "{} that wait for Redis, {PRESENCE_WRITE_BYTES} B each, and {shards} shards with {} of events",
                    presence_queue,
                    size(log)
                ),
                flags: &["--presence-queue-max"],
            });
        }
        if limits.pushes_open_max > 0 || presence_queue.is_some() {
            terms.push(Term {
                name: "pushes remembered",
                bytes: PUSHED_BYTES * shards,
                how: format!("{shards} shards with {} of pushes that may come again", size(PUSHED_BYTES)),
                flags: &["--shards"],
            });
        }
        if limits.store_after_ms > 0 {
            // As many pages of backlogs as of SYNC, each half an outbox.
            let pages = (limits.outbox_bytes_max as u64).saturating_mul(PAGES_MAX as u64 * shards);
            let readers = connections.saturating_mul(READER_BYTES);
            terms.push(Term {
                name: "inboxes online",
                bytes: readers.saturating_add(pages).saturating_add(REMEMBERED_BYTES * shards),
                how: format!(
                    "{READER_BYTES} B for each device, {} of pages, {} of messages and LOGOUTs remembered",
                    size(pages),
                    size(REMEMBERED_BYTES * shards)
                ),
                flags: &["--connections-max", "--outbox-bytes-max"],
            });
            let StoreMemory { pending, recent, tables, users } = StoreMemory::of(limits);
            terms.push(Term {
                name: "store",
                bytes: [pending, recent, tables, users].into_iter().fold(0, u64::saturating_add),
                how: format!(
                    "{} on their way and being stored, {} of messages that are not in a table yet, {} of lists and \
                     filters of tables, {} users with {STORE_USER_BYTES} B each",
                    size(pending),
                    size(recent),
                    size(tables),
                    limits.store_users_max
                ),
                flags: &[
                    "--store-mail-bytes-max",
                    "--store-recent-bytes-max",
                    "--store-bytes-max",
                    "--store-users-max",
                ],
            });
        }
        // A frame is in the queue once, and in what is being walked.
        let queues = (limits.groups.queue_bytes_max as u64).saturating_mul(2 * shards);
        // Most sessions are in a few groups: so many memberships are counted in all as the node may keep.
        let stored = if limits.store_after_ms > 0 { MEMBERSHIP_STORED_BYTES } else { 0 };
        let each = MEMBERSHIP_BYTES + stored;
        let logs = if limits.store_after_ms > 0 { StoreMemory::of_groups(limits) } else { 0 };
        terms.push(Term {
            name: "groups",
            bytes: queues.saturating_add(limits.groups.memberships_max.saturating_mul(each)).saturating_add(logs),
            how: format!(
                "{} memberships with {each} B each, {} of frames, {} of logs",
                limits.groups.memberships_max,
                size(queues),
                size(logs)
            ),
            flags: &["--group-memberships-max", "--group-queue-bytes-max"],
        });
        if limits.send.policy == SendPolicy::Claim {
            let lists = (limits.send.bytes_max as u64).saturating_mul(shards);
            let places = send_claim_bytes(limits, limits.connections_max.into()).saturating_mul(shards);
            terms.push(Term {
                name: "send claims",
                bytes: lists.saturating_add(places),
                how: format!("{shards} × {} of lists, {SEND_CLAIM_BYTES} B for a connection", size(lists / shards)),
                flags: &["--send-bytes-max"],
            });
        }
        // While a table grows, what it was is still there.
        let watches = (limits.watch.bytes_max as u64).saturating_mul(shards);
        terms.push(Term {
            name: "watches",
            bytes: watches.saturating_mul(3) / 2,
            how: format!(
                "{shards} × {} of tables, half as much again while they grow",
                size(limits.watch.bytes_max as u64)
            ),
            flags: &["--watch-bytes-max"],
        });
        Budget { terms, memory_max, connections, shards, memory_available: 0, remedies: Vec::new() }
    }

    /// What TLS of the HTTP API takes besides, and of the one for back-ends where there is one.
    pub(crate) fn add_http_tls(&mut self, for_backends: bool) {
        let connections = HTTP_CONNECTIONS_MAX + if for_backends { SERVICES_CONNECTIONS_MAX } else { 0 };
        self.terms.push(Term {
            name: "TLS of HTTP",
            bytes: u64::from(connections) * HTTP_TLS_BYTES,
            how: format!("{connections} HTTP connections with records both ways"),
            flags: &["--http-tls-cert"],
        });
    }

    /// The most connections of each shard for which the sum still fits, everything else as it is. `limits` are those
    /// that this is the budget of, `in_cluster` says whether of a node of a cluster.
    pub(crate) fn connections_fitting(&self, limits: &Limits, in_cluster: bool) -> u64 {
        let each = u64::from(limits.connections_max);
        let remote = |connections| if in_cluster { remote_bytes(connections, connections) } else { 0 };
        let tls = |connections| if limits.tls_handshakes_max > 0 { tls_bytes(connections) } else { 0 };
        let reader = if limits.store_after_ms > 0 { READER_BYTES } else { 0 };
        let all = |connections: u64| {
            connections_bytes(connections)
                .saturating_add(said_bytes(limits, connections))
                .saturating_add(send_claim_bytes(limits, connections))
                .saturating_add(remote(connections))
                .saturating_add(tls(connections))
                .saturating_add(connections.saturating_mul(reader))
        };
        let besides = self.total().saturating_sub(all(each).saturating_mul(self.shards));
        let room = self.memory_max.saturating_sub(besides) / self.shards;
        // The table of users grows in steps, so there is no formula to turn round.
        let (mut fits, mut too_many) = (0, u64::from(u32::MAX));
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if all(middle) <= room { fits = middle } else { too_many = middle }
        }
        fits
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.terms.iter().fold(0, |sum, term| sum.saturating_add(term.bytes))
    }

    /// What the kernel holds for the connections besides, roughly. It is not part of the sum, because it is not this
    /// process's memory.
    pub fn kernel_bytes(&self) -> u64 {
        self.connections * KERNEL_BYTES_PER_CONNECTION
    }

    /// What to say when sum and kernel together are more than there is: then the machine, or the control group, runs
    /// out of memory before the limits are reached.
    pub fn overcommitted(&self) -> Option<String> {
        let needed = self.total().saturating_add(self.kernel_bytes());
        if self.memory_available == 0 || needed <= self.memory_available {
            return None;
        }
        let for_kernel = self.memory_available.saturating_sub(self.total());
        let advice = match for_kernel / KERNEL_BYTES_PER_CONNECTION / self.shards {
            0 => "a smaller --memory-max, or more memory, avoids it".to_owned(),
            each => format!("--connections-max {each} avoids it"),
        };
        Some(format!(
            "at the limits this node needs {} with what the kernel holds for its connections, and there is {}: \
             {advice}",
            Size(needed).rounded(),
            Size(self.memory_available).rounded()
        ))
    }
}

impl fmt::Display for Budget {
    /// One line for each term, the sum, and the kernel's share; and a warning when they are more than there is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory at the limits:")?;
        for term in &self.terms {
            writeln!(f, "  {:<20} {:>11}  {}", term.name, Size(term.bytes).rounded(), term.how)?;
        }
        writeln!(
            f,
            "  {:<20} {:>11}  of {} allowed (memory_max)",
            "sum",
            Size(self.total()).rounded(),
            Size(self.memory_max).rounded()
        )?;
        write!(
            f,
            "  {:<20} {:>11}  about {KERNEL_BYTES_PER_CONNECTION} B a connection, not part of the sum",
            "kernel, besides",
            Size(self.kernel_bytes()).rounded()
        )?;
        match self.overcommitted() {
            Some(word) => write!(f, "\n  warning: {word}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::resolve;
    use crate::config::{Config, Host, Sources};

    fn config(text: &str) -> Config {
        resolve(text).expect(text)
    }

    fn budget(text: &str) -> Budget {
        Budget::of(&config(text))
    }

    fn term(budget: &Budget, name: &str) -> u64 {
        budget.terms.iter().find(|term| term.name == name).unwrap_or_else(|| panic!("no term {name}")).bytes
    }

    #[test]
    fn each_term_follows_its_limit() {
        let base = "shards = 4\nconnections_max = 1000\noutbox_total_bytes_max = \"64MiB\"\n\
                    unacked_total_bytes_max = \"16MiB\"\n\
                    partial_bytes_max = \"8MiB\"\nmailbox_bytes_max = \"1MiB\"\nrecv_buffer_bytes = \"4MiB\"\n";
        let budget = budget(base);
        assert_eq!(term(&budget, "connection slots"), 4 * 1_064 * ((CONN_BYTES + ENTRY_BYTES) as u64 + 128 + 8));
        assert_eq!(term(&budget, "users"), 4 * Embedded::memory_bytes_max(1_000, 1_000, 128) as u64);
        let queue_head = size_of::<Outbox>() as u64 + 72;
        assert_eq!(term(&budget, "outboxes"), (64 << 20) * 5 / 4 * 2 + 4_000 * queue_head);
        assert_eq!(term(&budget, "unacknowledged"), 32 << 20);
        assert_eq!(term(&budget, "partial frames"), 16 << 20);
        assert_eq!(term(&budget, "receive buffers"), 1_024 * (4_096 + 16));
        assert_eq!(term(&budget, "mailboxes"), 12 * (2 << 20) + 64 * 48 * 16);
        assert_eq!(budget.total(), budget.terms.iter().map(|term| term.bytes).sum::<u64>());
        assert_eq!(budget.kernel_bytes(), 4_000 * 4_100);
    }

    #[test]
    fn a_store_takes_what_its_settings_allow() {
        let base = "shards = 2\nconnections_max = 1000\ndata_dir = \"d\"\nstore_mail_bytes_max = \"8MiB\"\n\
                    store_bytes_max = \"4GiB\"\n\
                    store_users_max = 500000\nstore_recent_bytes_max = \"16MiB\"\n";
        let sum = |text: &str| term(&budget(text), "store");
        let (pending, recent, tables, users) = (3 * (8 << 20) + (48 << 20), 8 * (16 << 20), 222 << 20, 500_000 * 64);
        assert_eq!(sum(base), pending + recent + tables + users);
        for (of, more, bytes) in [
            ("store_mail_bytes_max = \"8MiB\"", "store_mail_bytes_max = \"9MiB\"", 3 << 20),
            ("store_bytes_max = \"4GiB\"", "store_bytes_max = \"4100MiB\"", 222 << 10),
            ("store_users_max = 500000", "store_users_max = 500001", 64),
            ("store_recent_bytes_max = \"16MiB\"", "store_recent_bytes_max = \"17MiB\"", 8 << 20),
        ] {
            assert_eq!(sum(&base.replace(of, more)) - sum(base), bytes, "{more}");
        }
        let own = 2_000 * READER_BYTES + 2 * 64 * (256 << 10) + 2 * (DUPLICATES_BYTES + LOGOUTS_BYTES);
        assert_eq!(term(&budget(base), "inboxes online"), own);
        let without = budget("shards = 2\n");
        assert!(without.terms.iter().all(|term| term.name != "store" && term.name != "inboxes online"));
    }

    #[test]
    fn one_shard_has_no_mailbox_traffic() {
        assert_eq!(term(&budget("shards = 1\n"), "mailboxes"), MAILBOX_LETTERS * LETTER_BYTES);
    }

    #[test]
    fn a_budget_fits_up_to_the_last_byte() {
        let mut budget = budget("shards = 2\n");
        budget.memory_max = budget.total();
        assert!(budget.check().is_ok());
        budget.memory_max -= 1;
        assert!(budget.check().is_err());
    }

    #[test]
    fn the_connections_that_fit_are_the_last_that_fit() {
        for text in [
            "shards = 2\nmemory_max = \"2GiB\"\ndata_dir = \"d\"\n",
            "shards = 3\nmemory_max = \"1GiB\"\nconnections_max = 5000\n",
        ] {
            let now = config(text);
            let fitting = Budget::of(&now).connections_fitting(now.limits(), now.cluster.is_some());
            let with = |connections: u64| {
                let mut other = config(text).effective().clone();
                other.connections_max = Some(connections);
                other.http = None;
                let host = Host { cores: 2, nofile_hard: u64::MAX, memory_available: 16 << 30, name: "h".to_owned() };
                let sources = Sources { command: other, ..Sources::default() };
                Budget::of(&Config::resolve(sources, &host).unwrap())
            };
            assert!(with(fitting).check().is_ok(), "{fitting}");
            assert!(with(fitting + 1).check().is_err(), "{fitting}");
        }
    }

    #[test]
    fn a_budget_that_does_not_fit_names_terms_and_flags() {
        let error =
            budget("shards = 2\nmemory_max = \"64MiB\"\noutbox_total_bytes_max = \"4GiB\"\nconnections_max = 1000\n")
                .check()
                .unwrap_err();
        let message = error.to_string();
        for part in ["memory", "outboxes", "10.0 GiB", "64.0 MiB", "--outbox-total-bytes-max ", "--memory-max "] {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
    }

    #[test]
    fn a_budget_beyond_all_numbers_is_refused_and_does_not_overflow() {
        let huge = "shards = 1024\nconnections_max = 1048512\noutbox_total_bytes_max = \"4194304TiB\"\n\
                    unacked_total_bytes_max = \"8388607TiB\"\n\
                    mailbox_bytes_max = \"1GiB\"\n";
        assert!(budget(huge).check().is_err());
    }

    #[test]
    fn the_table_has_a_line_for_each_term_and_the_sum() {
        let budget = budget("shards = 2\n");
        let table = budget.to_string();
        assert_eq!(table.lines().count(), budget.terms.len() + 3);
        assert!(
            table.starts_with("memory at the limits:") && table.contains("memory_max") && table.contains("kernel"),
            "{table}"
        );
    }
}
