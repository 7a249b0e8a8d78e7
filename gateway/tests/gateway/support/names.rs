//! Every name of the gateway that the tests know beyond PROTOCOL.md: what it prints, its metrics, its JSON fields.

/// Stdout line that says where clients connect, before the address.
pub(crate) const LISTENING_ON: &str = "listening on ";
/// Stdout line that says where the HTTP API is, before the address.
pub(crate) const HTTP_ON: &str = "http on ";
/// The same of one that speaks TLS.
pub(crate) const HTTPS_ON: &str = "https on ";

/// Metric names. Each has the label `shard`.
pub(crate) mod metric {
    pub(crate) const ACCEPTED: &str = "trunkline_connections_accepted_total";
    pub(crate) const OPEN: &str = "trunkline_connections_open";
    /// Further label: `reason`.
    pub(crate) const CLOSED: &str = "trunkline_connections_closed_total";
    pub(crate) const MOVED_OUT: &str = "trunkline_connections_moved_out_total";
    pub(crate) const MOVED_IN: &str = "trunkline_connections_moved_in_total";
    pub(crate) const LOGINS: &str = "trunkline_logins_total";
    /// SEND frames accepted.
    pub(crate) const MESSAGES_RECEIVED: &str = "trunkline_messages_received_total";
    /// Further label: `outcome`.
    pub(crate) const MESSAGES: &str = "trunkline_messages_total";
    /// Messages whose fate is open.
    pub(crate) const UNACKED: &str = "trunkline_messages_unacked";
    /// Further label: `reason`.
    pub(crate) const TOKENS_REFUSED: &str = "trunkline_tokens_refused_total";
    pub(crate) const TOKEN_RENEWALS: &str = "trunkline_token_renewals_total";
    /// Bytes of half-received frames.
    pub(crate) const PARTIAL_BYTES: &str = "trunkline_partial_bytes";
    /// Further label: `limit`.
    pub(crate) const LIMIT_HITS: &str = "trunkline_limit_hits_total";
    /// Label: `reason`.
    pub(crate) const LOG_DROPPED: &str = "trunkline_log_lines_dropped_total";
    pub(crate) const PANICS: &str = "trunkline_panics_total";
    /// Label: `limit`.
    pub(crate) const LIMIT: &str = "trunkline_limit";
    /// Label: `limit`.
    pub(crate) const LIMIT_SECONDS: &str = "trunkline_limit_seconds";
    /// Numbers that only a fault of the gateway makes anything but 0.
    pub(crate) const FAULTS: &[&str] = &[
        "trunkline_ring_cq_overflow",
        "trunkline_ring_stale_completions_total",
        "trunkline_accept_errors_total",
        "trunkline_handover_errors_total",
    ];
}

/// Values of the label `outcome`.
pub(crate) mod outcome_label {
    pub(crate) const DELIVERED: &str = "delivered";
    pub(crate) const ACKNOWLEDGED: &str = "acknowledged";
    pub(crate) const OFFLINE_DROPPED: &str = "offline_dropped";
    pub(crate) const OFFLINE_REFUSED: &str = "offline_refused";
    pub(crate) const OUTBOX_FULL_DROPPED: &str = "outbox_full_dropped";
    pub(crate) const OVERLOADED_REFUSED: &str = "overloaded_refused";
}

/// Values of the label `reason`.
pub(crate) mod reason_label {
    pub(crate) const LOGOUT: &str = "logout";
    pub(crate) const LOGIN_TIMEOUT: &str = "login_timeout";
    pub(crate) const IDLE: &str = "idle";
    pub(crate) const TOO_SLOW: &str = "too_slow";
    pub(crate) const REPLACED: &str = "replaced";
    pub(crate) const OVERLOADED: &str = "overloaded";
    pub(crate) const KICKED: &str = "kicked";
    pub(crate) const BAD_CREDENTIALS: &str = "bad_credentials";
    pub(crate) const TOKEN_EXPIRED: &str = "token_expired";
}

/// Values of the label `limit`.
pub(crate) mod limit_label {
    pub(crate) const FRAMES_PER_SEC: &str = "frames_per_sec";
    pub(crate) const LOGINS_PER_SEC: &str = "logins_per_sec";
    pub(crate) const CONNECTIONS: &str = "connections";
    pub(crate) const RENEW: &str = "renew";
    pub(crate) const DEVICES: &str = "devices_per_user";
    pub(crate) const UNACKED: &str = "unacked_per_user";
    pub(crate) const INBOX: &str = "inbox";
    pub(crate) const STORE_BYTES: &str = "store_bytes";
    pub(crate) const MAILBOX: &str = "mailbox";
    pub(crate) const RECV_BUFFERS: &str = "recv_buffers";
}

/// Fields of the JSON the HTTP API answers with.
pub(crate) mod json {
    /// `GET /v1/users/{id}`: whether the user has a session.
    pub(crate) const ONLINE: &str = "online";
    /// `GET /v1/users/{id}`: the home shard.
    pub(crate) const SHARD: &str = "shard";
    /// `GET /v1/users/{id}`: the sessions.
    pub(crate) const DEVICES: &str = "devices";
    /// A session: the device's name.
    pub(crate) const DEVICE: &str = "device";
    /// A session: the device class.
    pub(crate) const CLASS: &str = "class";
    /// A session: its id, as in LOGIN_OK.
    pub(crate) const SESSION: &str = "session";
    /// `GET /v1/node`: the node's name, as in LOGIN_OK.
    pub(crate) const NODE: &str = "node";
    /// `GET /v1/node`: the number of shards.
    pub(crate) const SHARDS: &str = "shards";
    /// `POST /v1/users/{id}/kick`: how many sessions were ended.
    pub(crate) const KICKED: &str = "kicked";
}
