//! The limits one shard works within. Each has a number here, a key in the configuration, a metric, and a policy when
//! it is hit.

mod groups;
mod send;
mod watch;

pub use groups::GroupLimits;
pub use send::{SendLimits, SendPolicy};
pub use watch::{WatchLimits, WatchPolicy};

/// How connections are read. `Auto` is what production uses; the others exist so that each mode can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// One-shot poll while quiet, multishot receive while busy.
    Auto,
    /// Always a one-shot poll and a single receive.
    Cold,
    /// Always an armed multishot receive.
    Hot,
}

/// Kicks that wait for other nodes, at each shard: those asked of homes, and those that a home has not seen confirmed.
/// Beyond it they are refused.
pub const KICKS_MAX: usize = 256;

/// Shards a node may have; their numbers travel in 12 bits of a hand-over token.
pub const SHARDS_MAX: u16 = 1_024;

/// What becomes of a login at a node that is not the user's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The user is served here.
    Accept,
    /// The client is sent to the home node.
    Redirect,
}

/// Limits of one shard, resolved from the configuration. Times are milliseconds, sizes are bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections, logged in or not. Further ones get BYE 14.
    pub connections_max: u32,
    /// Time a connection has for its LOGIN; then BYE 9.
    pub login_timeout_ms: u64,
    /// Shortest heartbeat a client may ask for, seconds.
    pub heartbeat_secs_min: u32,
    /// Longest heartbeat a client may ask for, seconds.
    pub heartbeat_secs_max: u32,
    /// Heartbeat of a client that asks for none, seconds.
    pub heartbeat_secs: u32,
    /// Longest frame accepted, header included; longer ones end the connection with BYE 2.
    pub frame_bytes_max: u32,
    /// Bytes queued for one connection; beyond it messages without ACK are dropped and counted, messages with ACK get
    /// SENT 3.
    pub outbox_bytes_max: usize,
    /// Bytes queued for one connection in a burst: for as long as [`BURST_MS`] an outbox may hold this much, for a
    /// reader that had no time to read yet.
    pub outbox_burst_bytes_max: usize,
    /// How long an outbox may stay full, or take nothing of what is sent, before BYE 10.
    pub outbox_full_ms_max: u64,
    /// Bytes queued for all connections of the shard; beyond it the connections that take nothing are closed, the one
    /// that holds most first, and until there is room every outbox counts as full.
    pub outbox_total_bytes_max: usize,
    /// Bytes one shard may have under way to another; beyond it messages without ACK are dropped and counted, others
    /// get SENT 3.
    pub mailbox_bytes_max: usize,
    /// Messages waiting for the ACK of one recipient; further ones get SENT 3.
    pub unacked_per_user_max: usize,
    /// Bytes of messages waiting for the ACK of one recipient; further ones get SENT 3.
    pub unacked_bytes_per_user_max: usize,
    /// Bytes of unacknowledged messages in the shard; beyond it the users for whom most waits lose theirs with SENT 3,
    /// then further ones get SENT 3.
    pub unacked_total_bytes_max: usize,
    /// Time without an ACK after which a message is sent again with AGAIN.
    pub redeliver_ms: u64,
    /// How often a message is sent again before it is given up with SENT 2.
    pub redeliver_attempts_max: u8,
    /// Frames per second and connection, 0 = off; the excess gets ERROR 11. ACKs of what was delivered and LOGOUT do
    /// not count.
    pub frames_per_sec: u32,
    /// Connections accepted per second, 0 = off; the excess waits in the accept backlog.
    pub logins_per_sec: u32,
    /// Connections that one turn may bring before they are accepted a few at a time.
    pub accepts_per_turn: u32,
    /// Time between two RENEWs of a connection that are looked at, because a signature costs far more than other frames
    /// do; one that comes sooner gets ERROR 11.
    pub renew_ms: u64,
    /// Devices of one user; a further one gets BYE 14.
    pub devices_per_user_max: usize,
    /// Number of receive buffers the kernel picks from, a power of two. See also [`Limits::bulk_buffers`].
    pub recv_buffers: u16,
    /// Size of one receive buffer.
    pub recv_buffer_bytes: u32,
    /// What one connection may bring in a turn, in units of a frame; a frame of more than [`UNIT_BYTES`] counts once
    /// for each of them. The rest waits, and the connection is not read meanwhile.
    pub turn_units_max: u16,
    /// Bytes received and not handled yet in the shard: half-received frames and what waits for its turn. Beyond it the
    /// oldest connection without LOGIN gets BYE 14, then the one that holds most.
    pub partial_total_bytes_max: usize,
    /// How connections are read.
    pub read_mode: ReadMode,
    /// Time without traffic after which a busy connection is read as a quiet one again.
    pub hot_idle_ms: u64,
    /// Time over which a drain spreads its BYEs.
    pub drain_ms: u64,
    /// Bytes held for other nodes on all links of the shard, of which one link holds a share, see [`MESH_LINK_SHARE`];
    /// beyond it messages without ACK are dropped and counted, others get SENT 3.
    pub mesh_bytes_max: usize,
    /// Messages with ACK that other nodes are to answer; further ones get SENT 3.
    pub sent_away_max: usize,
    /// Bytes of messages that wait until it is known where their recipient is; further ones are refused like those for
    /// a full link.
    pub parked_bytes_max: usize,
    /// Sessions on other nodes of users whose home this shard is; a further login there gets BYE 14.
    pub remote_sessions_max: u32,
    /// Bytes the kernel takes for a connection before they can be on their way (`TCP_NOTSENT_LOWAT`); the rest waits in
    /// the outbox, where it is counted.
    pub unsent_bytes_max: u32,
    /// How long the kernel waits for a peer to acknowledge bytes before it gives the connection up
    /// (`TCP_USER_TIMEOUT`).
    pub tcp_user_timeout_ms: u64,
    /// Slots for connections to other nodes; 0 when the node is alone.
    pub mesh_slots: u32,
    /// Open connections of one address, of the whole node, 0 = off; a further one is closed. An IPv6 address counts
    /// with its /64.
    pub address_connections_max: u32,
    /// Connections that one address may open in a second, at the whole node, 0 = off; a further one is closed.
    pub address_connections_per_sec: u32,
    /// Handshakes of TLS that one address may begin in a second, at the whole node, 0 = off; the connection with a
    /// further one is closed.
    pub address_handshakes_per_sec: u32,
    /// Addresses whose connections are counted at a time, of the whole node; 0 when none are. Further ones are not
    /// limited.
    pub addresses_max: u32,
    /// Whether it is known of each connection where its client is.
    pub addresses_known: bool,
    /// Time without ACK after which a message is stored; 0 where there is no store.
    pub store_after_ms: u64,
    /// Messages the inbox of one user holds; 0 where there is no store. Beyond it the sender gets SENT 5, or the oldest
    /// give way.
    pub inbox_messages_max: u64,
    /// Bytes the inbox of one user holds, likewise.
    pub inbox_bytes_max: u64,
    /// How long a stored message is kept, seconds.
    pub inbox_age_secs: u64,
    /// How long a device that was not seen is remembered, seconds.
    pub device_age_secs: u64,
    /// Bytes on their way from all shards to the store; beyond it the sender gets SENT 3.
    pub store_mail_bytes_max: u64,
    /// Bytes of all inboxes on disk; beyond it the sender gets SENT 5.
    pub store_bytes_max: u64,
    /// Users for whom messages wait in the store; beyond it the sender gets SENT 5.
    pub store_users_max: u64,
    /// Memory at which stored messages leave it for a table.
    pub store_recent_bytes_max: u64,
    /// Messages of its backlog that a device may have unacknowledged at a time, unless its LOGIN says less.
    pub replay_window: u32,
    /// Bounds of groups.
    pub groups: GroupLimits,
    /// Who may write to whom, and how much is kept of that.
    pub send: SendLimits,
    /// Who may watch whom, and how much of it there may be.
    pub watch: WatchLimits,
    /// Handshakes of TLS under way. A further one takes the place of the oldest that waits for its peer; where half of
    /// them wait for the shard, it is refused. 0 without TLS.
    pub tls_handshakes_max: u32,
    /// Handshakes that go on in one turn, each by a flight; the others wait for the next. 0 without TLS.
    pub tls_handshakes_per_turn: u32,
    /// Calls of one session that have had no last REPLY; a further one gets REPLY 11. 0 without services.
    pub calls_per_session_max: u32,
    /// Calls that workers of this shard have, or that wait for them; a further one gets REPLY 14. 0 without services.
    pub calls_max: u32,
    /// Bytes of calls that wait for a worker or may have to be sent to another one; beyond it a call is not sent again,
    /// or gets REPLY 14.
    pub calls_kept_bytes_max: usize,
    /// Bytes queued for one link of a worker; beyond it calls wait, or go to another worker. 0 without services.
    pub link_outbox_bytes_max: usize,
    /// Bytes of pushes by HTTP on their way to the shard, and of calls on their way from it to HTTP servers; beyond it
    /// pushes end as overloaded, and a call gets REPLY 14. 0 without either.
    pub portal_bytes_max: usize,
    /// Bytes of calls that HTTP servers have or that wait for them, and of answers, of the whole node; beyond it a call
    /// gets REPLY 14, and an answer is lost. 0 without HTTP servers.
    pub upstream_bytes_max: usize,
    /// Connections to HTTP servers, of the whole node; beyond it calls wait. 0 without HTTP servers.
    pub upstream_conns_max: u32,
    /// Users of pushes by HTTP whose outcome is not known, of the whole node; a further push gets 503.
    pub pushes_open_max: u32,
    /// Pushes by HTTP to one user in a second, at the whole node, 0 = off; a further one ends as overloaded.
    pub pushes_per_user_per_sec: u32,
    /// Pushes by HTTP with one key in a second, at the whole node, 0 = off; a further request gets 429.
    pub pushes_per_key_per_sec: u32,
    /// Bytes of events that wait for webhooks, of the whole node; further ones become gaps. 0 without webhooks.
    pub webhook_bytes_max: usize,
    /// Webhooks of the node.
    pub webhooks: u32,
    /// Requests to the connect-time hook under way, of the whole node; further questions wait. 0 without a hook.
    pub hook_requests_max: u32,
    /// Logins and renewals that wait for the hook, of the whole node; a further one ends as overloaded. 0 without one.
    pub hook_waiting_max: u32,
    /// Bytes of the hook's answers that still count, of the whole node; those that end first give way.
    pub hook_cache_bytes_max: usize,
    /// Sessions of a shard that pushes to all are given to in a second.
    pub broadcast_per_sec: u32,
}

/// Sessions of a shard that pushes to all are given to in a second, where nothing is set.
pub const BROADCAST_PER_SEC: u32 = 200_000;
/// How long an outbox may hold more than [`Limits::outbox_bytes_max`]: long enough for a reader on a host whose cores
/// are busy with other work.
pub const BURST_MS: u64 = 1_000;
/// Longest frame accepted before LOGIN is through, bytes: a stranger is not to hold more.
pub const LOGIN_FRAME_BYTES_MAX: u32 = 8_192;
/// Bytes of a frame that count as one unit of a turn's budget, see [`Limits::turn_units_max`].
pub const UNIT_BYTES: usize = 64;
/// Units that a turn is shared out among the connections that have more for it than their part, while there are few
/// enough of them.
pub const TURN_UNITS: u32 = 2_048;
/// The least that a connection may bring in a turn.
pub const TURN_UNITS_FLOOR: u16 = 64;
/// Bytes a turn takes from the shard's mailbox; the rest waits for the next.
pub const MAIL_TURN_BYTES: usize = 512 << 10;
/// Messages of its backlog that a device may have unacknowledged at a time where its LOGIN does not say.
pub const REPLAY_WINDOW: u32 = 256;
/// Most that a LOGIN may ask for instead.
pub const REPLAY_WINDOW_MAX: u32 = 1_024;
/// Joins of live rooms that wait at a shard for the room's home on another node; a further one gets ERROR 14.
pub const ROOM_JOINS_WAITING_MAX: usize = 16_384;
/// Bytes of messages to one live room that are gathered at a shard; beyond it they go at once.
pub const ROOM_GATHER_BYTES_MAX: usize = 16 << 10;
/// Sessions of a user that wait to pay attention to a group until the store has told the user's groups; a further one
/// gets ERROR 14.
pub const ATTENTION_WAITING_MAX: usize = 256;
/// Users about whom the store is asked at the same time because others may have been their homes meanwhile; others wait
/// for the next tick. All nodes ask at once when they have missed a view, and what is sent meanwhile has to be stored as
/// well.
pub const LOG_LOOKS_MAX: usize = 128;
/// Messages of a page of SYNC where that does not say.
pub const SYNC_PAGE: u32 = 256;
/// Most messages of a page of SYNC.
pub const SYNC_PAGE_MAX: u32 = 1_000;
/// How long a LOGIN waits for the store to say where its device stands; without a word it is answered without.
pub const STORE_LOGIN_MS: u64 = 1_000;
/// How long a sender waits for the store's answer, beyond [`Limits::store_after_ms`]; then it is told SENT 3, whatever
/// becomes of the message.
pub const STORE_ANSWER_MS: u64 = 2_000;
/// Answers of the store that a turn takes; the rest waits for the next. A commit may answer tens of thousands at once.
pub const STORE_ANSWERS_PER_TURN: usize = 2_048;
/// Messages of which a shard remembers what became of them, so that one that is sent again is found.
pub const DUPLICATES_MAX: usize = 262_144;
/// How long they are remembered at most; half as long at least, unless there are too many.
pub const DUPLICATES_MS: u64 = 120_000;
/// How long a sender waits for room in the mailbox of another shard, whose thread then has not run for that long.
pub const MAILBOX_WAIT_MS: u64 = 1_000;
/// Longest device class accepted, bytes. The protocol sets no limit, and a session keeps its class for as long as it
/// lives.
pub const CLASS_BYTES_MAX: usize = 64;
/// One link to another node holds this part, as a divisor, of what all of its shard may hold: a slow node leaves room
/// for the others.
pub const MESH_LINK_SHARE: usize = 4;
/// Of its receive buffers a shard with links to other nodes spends this part on large ones, each as long as so many of
/// the others, unless there would be fewer than that.
const BULK_SHARE: u16 = 8;
const BULK_UNITS: u16 = 16;
const BULK_BUFFERS_MIN: u16 = 2;
/// Ring slots beyond `connections_max`: a connection that is refused, or that lingers until its BYE is read, still
/// needs one.
pub const SLOTS_RESERVED: u32 = 64;

impl Limits {
    /// Large receive buffers, for links to other nodes that bring much; their memory is that of
    /// [`Limits::buffers_in_bulk`] of the others. 0 where there are no links, or fewer buffers than could be spared.
    pub fn bulk_buffers(&self) -> u16 {
        let count = self.recv_buffers / BULK_SHARE / BULK_UNITS;
        if self.mesh_slots > 0 && count >= BULK_BUFFERS_MIN { count } else { 0 }
    }

    /// Bytes of each large receive buffer.
    pub fn bulk_bytes(&self) -> u32 {
        u32::from(BULK_UNITS) * self.recv_buffer_bytes
    }

    /// How many receive buffers there are fewer because of the large ones.
    pub fn buffers_in_bulk(&self) -> u16 {
        self.bulk_buffers() * BULK_UNITS
    }

    /// Slots of the shard's descriptor table.
    pub const fn slots(&self) -> u32 {
        self.connections_max + SLOTS_RESERVED + self.mesh_slots
    }

    /// Takes from `newer` what a running shard reads at each use; the rest is built into what it has set up.
    pub fn reload(&mut self, newer: &Limits) {
        self.login_timeout_ms = newer.login_timeout_ms;
        self.heartbeat_secs_min = newer.heartbeat_secs_min;
        self.heartbeat_secs_max = newer.heartbeat_secs_max;
        self.heartbeat_secs = newer.heartbeat_secs;
        self.outbox_full_ms_max = newer.outbox_full_ms_max;
        self.frames_per_sec = newer.frames_per_sec;
        self.logins_per_sec = newer.logins_per_sec;
        self.hot_idle_ms = newer.hot_idle_ms;
        self.drain_ms = newer.drain_ms;
        self.groups.sends_per_sec = newer.groups.sends_per_sec;
        self.groups.member_sends_per_sec = newer.groups.member_sends_per_sec;
        self.groups.passive_above = newer.groups.passive_above;
        self.groups.room_gather_ms = newer.groups.room_gather_ms;
        self.groups.room_frames_per_sec = newer.groups.room_frames_per_sec;
    }

    /// The limits of each shard when `accepting` of `shards` shards accept for all: those share what all may accept.
    #[must_use]
    pub fn with_accepting(self, accepting: u16, shards: u16) -> Limits {
        let all = u64::from(self.logins_per_sec) * u64::from(shards);
        Limits { logins_per_sec: all.div_ceil(accepting.max(1).into()) as u32, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 16_384,
            login_timeout_ms: 10_000,
            heartbeat_secs_min: 5,
            heartbeat_secs_max: 600,
            heartbeat_secs: 30,
            frame_bytes_max: trunkline_proto::FRAME_BYTES_MAX_DEFAULT,
            outbox_bytes_max: 256 << 10,
            outbox_burst_bytes_max: 4 << 20,
            outbox_full_ms_max: 10_000,
            outbox_total_bytes_max: 256 << 20,
            mailbox_bytes_max: 4 << 20,
            unacked_per_user_max: 1_024,
            unacked_bytes_per_user_max: 8 << 20,
            unacked_total_bytes_max: 64 << 20,
            redeliver_ms: 15_000,
            redeliver_attempts_max: 3,
            frames_per_sec: 0,
            logins_per_sec: 0,
            accepts_per_turn: 64,
            renew_ms: 1_000,
            devices_per_user_max: 16,
            recv_buffers: 1_024,
            recv_buffer_bytes: 4_096,
            turn_units_max: 1_024,
            partial_total_bytes_max: 64 << 20,
            read_mode: ReadMode::Auto,
            hot_idle_ms: 10_000,
            drain_ms: 2_000,
            mesh_bytes_max: 32 << 20,
            sent_away_max: 131_072,
            parked_bytes_max: 16 << 20,
            remote_sessions_max: 0,
            unsent_bytes_max: 32 << 10,
            tcp_user_timeout_ms: 60_000,
            mesh_slots: 0,
            address_connections_max: 0,
            address_connections_per_sec: 0,
            address_handshakes_per_sec: 0,
            addresses_max: 0,
            addresses_known: false,
            store_after_ms: 0,
            inbox_messages_max: 0,
            inbox_bytes_max: 0,
            inbox_age_secs: 0,
            device_age_secs: 0,
            store_mail_bytes_max: 0,
            store_bytes_max: 0,
            store_users_max: 0,
            store_recent_bytes_max: 0,
            replay_window: REPLAY_WINDOW,
            groups: GroupLimits::default(),
            send: SendLimits::default(),
            watch: WatchLimits::default(),
            tls_handshakes_max: 0,
            tls_handshakes_per_turn: 0,
            calls_per_session_max: 0,
            calls_max: 0,
            calls_kept_bytes_max: 0,
            link_outbox_bytes_max: 0,
            portal_bytes_max: 0,
            upstream_bytes_max: 0,
            upstream_conns_max: 0,
            pushes_open_max: 0,
            pushes_per_user_per_sec: 0,
            pushes_per_key_per_sec: 0,
            webhook_bytes_max: 0,
            webhooks: 0,
            hook_requests_max: 0,
            hook_waiting_max: 0,
            hook_cache_bytes_max: 0,
            broadcast_per_sec: BROADCAST_PER_SEC,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_that_accept_for_others_accept_as_many_as_all_together() {
        let of_all = |logins_per_sec, accepting, shards| {
            Limits { logins_per_sec, ..Limits::default() }.with_accepting(accepting, shards).logins_per_sec
        };
        assert_eq!((of_all(100, 2, 2), of_all(100, 16, 64), of_all(1, 16, 17)), (100, 400, 2));
        assert_eq!(of_all(0, 16, 64), 0, "off stays off");
        assert_eq!(of_all(1_000_000, 1, 1_024), 1_024_000_000);
    }
}
