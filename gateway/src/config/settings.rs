//! The table of all settings: one row gives the key of the file, the flag, the environment variable, the text of help
//! and `default-config`, and the default.

use super::hook::without_secrets as hook_without_secrets;
use super::service_tables::services;
use super::values::{
    AuthKind, HookFailureKind, InboxFull, KeyFile, MeshEncryptionKind, ReadModeKind, RedisDown, SendKind, Size,
    StoreKind, StoreSyncKind, WatchKind, one_or_many,
};
use super::webhooks::{from_tables, without_secrets};
use super::{Listen, LogFormat, Placement};
use crate::transport::upgrade::ForwardedField;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use trunkline_router::redis::RedisUrl;

/// Where a setting's value comes from when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// Always this value, as it stands in TOML.
    Fixed(&'static str),
    /// Computed from the machine or from other settings, as the words say.
    Computed(&'static str),
    /// Nothing; holds an example, as it stands in TOML.
    Unset(&'static str),
}

use DefaultValue::{Computed, Fixed, Unset};

/// What is known about one setting besides its value.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Key in the file. The flag is the same with hyphens.
    pub key: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Heading it stands under.
    pub section: &'static str,
    /// Lines of help, each with a leading space.
    pub help: &'static [&'static str],
    /// Its default.
    pub default: DefaultValue,
    /// Whether a running node takes a change of it, see [`crate::reload`]. A change of the others needs a restart.
    pub reloadable: bool,
}

impl Setting {
    /// The flag, hyphens included.
    pub fn flag(&self) -> String {
        flag(self.key)
    }
}

/// The flag of a key.
pub(super) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// Whether the word stands before a setting.
macro_rules! is_reloadable {
    () => {
        false
    };
    (reloadable) => {
        true
    };
}

macro_rules! settings {
    ($([$section:literal] $(
        $(#[doc = $help:literal])+
        $(#[arg($($arg:tt)+)])?
        $(#[serde($($serde:tt)+)])?
        $(@$reloadable:ident)? $key:ident: [$($ty:tt)+] $value:literal $env:literal $default:expr;
    )+)+) => {
        /// Settings as they are given by one source; what it does not set is `None`.
        #[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {$($(
            $(#[doc = $help])+
            #[arg(long, env = $env, value_name = $value, help_heading = $section, hide_env_values = true $(, $($arg)+)?)]
            #[serde(skip_serializing_if = "Option::is_none" $(, $($serde)+)?)]
            pub $key: Option<$($ty)+>,
        )+)+}

        /// All settings, in the order in which they are explained.
        pub const SETTINGS: &[Setting] = &[$($(
            Setting { key: stringify!($key), env: $env, section: $section, help: &[$($help),+], default: $default, reloadable: is_reloadable!($($reloadable)?) },
        )+)+];

        impl Settings {
            /// These settings, and those of `lower` where these say nothing.
            #[must_use]
            pub fn or(self, lower: Settings) -> Settings {
                Settings {$($( $key: self.$key.or(lower.$key), )+)+}
            }

            /// These settings without the value of one key.
            #[must_use]
            pub fn without(mut self, key: &str) -> Settings {
                $($( if key == stringify!($key) { self.$key = None; } )+)+
                self
            }

            /// These settings with the values that `newer` has for those a running node takes.
            #[must_use]
            pub fn reloaded(self, newer: Settings) -> Settings {
                Settings {$($(
                    $key: if is_reloadable!($($reloadable)?) { newer.$key } else { self.$key },
                )+)+}
            }

            /// Keys whose values differ.
            pub fn differing(&self, other: &Settings) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $($( if self.$key != other.$key { keys.push(stringify!($key)); } )+)+
                keys
            }

            /// Keys that have a value here.
            pub fn keys(&self) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $($( if self.$key.is_some() { keys.push(stringify!($key)); } )+)+
                keys
            }
        }
    };
}

settings! {
    ["Addresses"]
    /// Address and port for clients; may be given several times. Shards listen on each of them, eight of a core at
    /// most, which accept for the others. Port 0 takes a free port, which is printed at start. An IPv6 address takes
    /// IPv6 connections only; :7700 is every address of both families; a name is all its addresses as of the start;
    /// unix:/PATH is a Unix socket, whose folder decides who reaches it. With tls:// in front a place takes TLS only.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    listen: [Vec<Listen>] "ADDR:PORT" "TRUNKLINE_LISTEN" Fixed("[\"127.0.0.1:7700\"]");
    /// Networks of proxies in front of this node: 10.0.0.0/8, 192.0.2.7, fd00::/8; unix is whoever connects by a Unix
    /// socket. Whoever connects from there must begin with a PROXY header (version 1 or 2), and is where that says;
    /// from elsewhere such a header is refused. May be given several times.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    proxy_from: [Vec<String>] "NETWORK" "TRUNKLINE_PROXY_FROM" Unset("[\"10.0.0.0/8\"]");
    /// Networks of proxies in front of this node that pass on requests for WebSockets: like proxy_from. Where their
    /// requests have the field forwarded_field, the client is where that says; from elsewhere it is ignored. May be
    /// given several times.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    forwarded_from: [Vec<String>] "NETWORK" "TRUNKLINE_FORWARDED_FROM" Unset("[\"10.0.0.0/8\"]");
    /// Field in which the proxies of forwarded_from tell the client's address. The other one is not read: they pass on
    /// what a client has written there.
    forwarded_field: [ForwardedField] "FIELD" "TRUNKLINE_FORWARDED_FIELD" Fixed("\"x-forwarded-for\"");
    /// Address and port of the HTTP API: /healthz, /readyz, /metrics, /v1. One that is not loopback needs
    /// api_keys_file.
    http: [SocketAddr] "ADDR:PORT" "TRUNKLINE_HTTP" Fixed("\"127.0.0.1:7780\"");
    /// File of the keys that may use the HTTP API; gateway api-key makes one and prints its line.
    /// With it, changes need a key, and from other hosts everything but /healthz and /readyz does. Without it the API
    /// is for this host alone.
    @reloadable api_keys_file: [PathBuf] "FILE" "TRUNKLINE_API_KEYS_FILE" Unset("\"/path/to/file\"");
    /// Allow an HTTP API on an address that is not loopback without keys: whoever reaches it may end sessions and drain
    /// the node.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    http_insecure_open: [bool] "BOOL" "TRUNKLINE_HTTP_INSECURE_OPEN" Fixed("false");
    /// Serve a chat page at /demo of the HTTP API, for trying this node in a browser. It may connect as a page of
    /// ws_origin may. On an address that is not loopback only with http_insecure_open.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    demo: [bool] "BOOL" "TRUNKLINE_DEMO" Fixed("false");
    /// Name of this node, told to clients and shown in metrics: 1 to 64 letters, digits, '.', '_' or '-'.
    node: [String] "NAME" "TRUNKLINE_NODE" Computed("the host name");

    ["Shards"]
    /// Number of shards, 1 to 1024: threads that each own a part of users and connections.
    /// More than there are cores is of use where the descriptor limit is low, because the limit on connections counts
    /// for each shard.
    shards: [u64] "N" "TRUNKLINE_SHARDS" Computed("one for each core, as far as memory_max holds what they need");
    /// How connections are read. auto is right; the others are there to be measured.
    read_mode: [ReadModeKind] "MODE" "TRUNKLINE_READ_MODE" Fixed("\"auto\"");
    /// Seconds without traffic after which a busy connection counts as quiet, 1 to 3600.
    @reloadable hot_idle_secs: [u64] "SECS" "TRUNKLINE_HOT_IDLE_SECS" Fixed("10");

    ["Authentication"]
    /// Who may log in.
    auth: [AuthKind] "KIND" "TRUNKLINE_AUTH" Fixed("\"open\"");
    /// With auth jwt: file with the secret of HS256 tokens, at least 32 bytes. One newline at the end does not count.
    /// May be given several times, and as KID=FILE: tokens whose header names that kid are then tried with no other
    /// key.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable jwt_hs256_secret_file: [Vec<KeyFile>] "[KID=]FILE" "TRUNKLINE_JWT_HS256_SECRET_FILE" Unset("[\"2026-a=/path/to/file\"]");
    /// With auth jwt: file with the public key of EdDSA tokens, Ed25519 in PEM. May be given several times and as
    /// KID=FILE, and beside secrets: 16 keys in all.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable jwt_ed25519_public_key_file: [Vec<KeyFile>] "[KID=]FILE" "TRUNKLINE_JWT_ED25519_PUBLIC_KEY_FILE" Unset("[\"2026-b=/path/to/file\"]");
    /// With auth jwt: a token must have been issued by (iss) one of these; may be given several times.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable jwt_issuer: [Vec<String>] "ISS" "TRUNKLINE_JWT_ISSUER" Unset("[\"https://accounts.example.com\"]");
    /// With auth jwt: a token must be meant for (aud) one of these; may be given several times.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable jwt_audience: [Vec<String>] "AUD" "TRUNKLINE_JWT_AUDIENCE" Unset("[\"chat\"]");
    /// With auth jwt: seconds by which the beginning of a token (nbf) may lie ahead of this node's clock, 0 to 300. Its
    /// end (exp) has no leeway: a session ends with its token.
    @reloadable jwt_leeway_secs: [u64] "SECS" "TRUNKLINE_JWT_LEEWAY_SECS" Fixed("5");
    /// Ask the application by HTTP about each LOGIN and RENEW that auth has let in: URL and, after commas,
    /// secret_file=FILE (signs requests, as for a webhook), timeout_ms=2000, ca_file=FILE (for https). Its answer lets in
    /// or refuses, and may say whose session it is, when it ends, whom it may watch, to whom it may write, and its heartbeat.
    #[serde(serialize_with = "hook_without_secrets")]
    connect_hook: [String] "URL" "TRUNKLINE_CONNECT_HOOK" Unset("\"https://app.example.com/login,secret_file=hook.key\"");
    /// Who is let in while the connect hook gives no answer: refuse (nobody; clients are told to come again), or allow
    /// (whoever auth lets in).
    connect_hook_failure: [HookFailureKind] "POLICY" "TRUNKLINE_CONNECT_HOOK_FAILURE" Fixed("\"refuse\"");
    /// Requests to the connect hook under way at a time, 1 to 1024. When hit: further logins wait.
    connect_hook_requests_max: [u64] "N" "TRUNKLINE_CONNECT_HOOK_REQUESTS_MAX" Fixed("64");
    /// Logins and renewals that wait for the connect hook, 16 to 65536. When hit: a further one is told that the node is
    /// overloaded.
    connect_hook_waiting_max: [u64] "N" "TRUNKLINE_CONNECT_HOOK_WAITING_MAX" Fixed("4096");
    /// Bytes of answers of the connect hook that still count (cache_secs), 0 to 4GiB. When hit: those that end first are
    /// forgotten.
    connect_hook_cache_bytes_max: [Size] "SIZE" "TRUNKLINE_CONNECT_HOOK_CACHE_BYTES_MAX" Fixed("\"16MiB\"");
    /// Origin of web pages that may connect besides those of the host they connect to: https://example.com, null, or *
    /// for all of them. May be given several times.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    ws_origin: [Vec<String>] "ORIGIN" "TRUNKLINE_WS_ORIGIN" Unset("[\"https://example.com\"]");
    /// Cookie that holds the token of a WebSocket client whose LOGIN and Authorization have none. Not with ws_origin *.
    ws_cookie: [String] "NAME" "TRUNKLINE_WS_COOKIE" Unset("\"session\"");
    /// Allow auth open on addresses that are not loopback: whoever reaches them may log in as anybody.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    insecure_open: [bool] "BOOL" "TRUNKLINE_INSECURE_OPEN" Fixed("false");

    ["TLS"]
    /// File with a certificate (PEM) of this node and, behind it, those that signed it up to the one that clients
    /// trust. With it clients may use TLS, on the same ports. May be given several times, each with its tls_key: a
    /// client gets the one for the name it asks for (*.example.com is one label), else the first. ECDSA (P-256) is
    /// best: a handshake with RSA costs five times as much.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable tls_cert: [Vec<PathBuf>] "FILE" "TRUNKLINE_TLS_CERT" Unset("[\"/path/to/fullchain.pem\"]");
    /// File with the key (PEM) of that certificate.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable tls_key: [Vec<PathBuf>] "FILE" "TRUNKLINE_TLS_KEY" Unset("[\"/path/to/privkey.pem\"]");
    /// File with the certificates (PEM) of those who sign clients' certificates, and their revocation lists if there
    /// are some. A client may then show one, and if it names a user (subjectAltName URI:urn:trunkline:user:42), with
    /// auth jwt a LOGIN of that user needs no token.
    @reloadable tls_client_ca: [PathBuf] "FILE" "TRUNKLINE_TLS_CLIENT_CA" Unset("\"/path/to/file\"");
    /// File with a certificate (PEM) for the HTTP API and, behind it, those that signed it: with it that API, and
    /// that of services_http, speaks TLS and nothing else.
    @reloadable http_tls_cert: [PathBuf] "FILE" "TRUNKLINE_HTTP_TLS_CERT" Unset("\"/path/to/fullchain.pem\"");
    /// File with the key (PEM) of that certificate.
    @reloadable http_tls_key: [PathBuf] "FILE" "TRUNKLINE_HTTP_TLS_KEY" Unset("\"/path/to/privkey.pem\"");
    /// File with the certificates (PEM) of those who sign for callers of the HTTP API. A caller may then show one, and
    /// if it names a key (subjectAltName URI:urn:trunkline:key:ID) it has the scopes of that line of the keys file.
    @reloadable http_tls_client_ca: [PathBuf] "FILE" "TRUNKLINE_HTTP_TLS_CLIENT_CA" Unset("\"/path/to/file\"");
    /// Close connections that do not begin with TLS, requests of balancers included: those have the HTTP API.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    tls_required: [bool] "BOOL" "TRUNKLINE_TLS_REQUIRED" Fixed("false");
    /// Handshakes of each shard that are under way, 16 to 65536. When hit: of those that wait for their clients the one
    /// that began first is ended; where half of all wait for the shard, a further one is refused.
    tls_handshakes_max: [u64] "N" "TRUNKLINE_TLS_HANDSHAKES_MAX" Fixed("1024");
    /// Handshakes that go on in one turn of a shard, 1 to 64; each costs about 0.1 ms. When hit: the others wait for
    /// the next turn.
    tls_handshakes_per_turn: [u64] "N" "TRUNKLINE_TLS_HANDSHAKES_PER_TURN" Fixed("2");

    ["Cluster"]
    /// The Redis Cluster through which nodes find each other: redis-cluster://[user:password@]host:port[,host:port…],
    /// or rediss-cluster://… for TLS. Without it this node is alone, and the settings below have no meaning.
    /// Flags are seen by others on this machine: a password belongs in the environment or in the file.
    redis: [RedisUrl] "URL" "TRUNKLINE_REDIS" Unset("\"redis-cluster://10.0.0.1:7000,10.0.0.2:7000\"");
    /// With rediss-cluster://: file with the certificates (PEM) of those who sign for Redis. Without it, those that
    /// this system trusts.
    redis_ca_file: [PathBuf] "FILE" "TRUNKLINE_REDIS_CA_FILE" Unset("\"/path/to/file\"");
    /// File with the certificate (PEM) to show to a Redis that asks for one, as it does by default.
    redis_cert_file: [PathBuf] "FILE" "TRUNKLINE_REDIS_CERT_FILE" Unset("\"/path/to/file\"");
    /// File with the key (PEM) of that certificate.
    redis_key_file: [PathBuf] "FILE" "TRUNKLINE_REDIS_KEY_FILE" Unset("\"/path/to/file\"");
    /// Address and port for the links of other nodes, which dial it.
    mesh: [SocketAddr] "ADDR:PORT" "TRUNKLINE_MESH" Fixed("\"127.0.0.1:7790\"");
    /// Host and port at which clients reach this node, told to other nodes.
    advertise: [String] "HOST:PORT" "TRUNKLINE_ADVERTISE" Computed("the first address of listen");
    /// Share of the users this node is the home of, against the weights of the others, 1 to 65535. With 10 the shares
    /// of a hundred equal nodes differ by a few percent, with 1 by a fifth.
    @reloadable weight: [u64] "N" "TRUNKLINE_WEIGHT" Fixed("10");
    /// Where this node stands, such as a data centre; a router sends clients of a zone to nodes of that zone as long as
    /// they have room. At most 64 characters.
    zone: [String] "NAME" "TRUNKLINE_ZONE" Fixed("\"\"");
    /// File with the secret that all nodes of the cluster share, 16 to 1024 bytes. One newline at the end does not
    /// count. May be given twice: the first is the one this node proves, and both are accepted, so that a secret can be
    /// changed without a stop.
    #[arg(value_delimiter = ',', action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "one_or_many")]
    @reloadable cluster_secret_file: [Vec<PathBuf>] "FILE" "TRUNKLINE_CLUSTER_SECRET_FILE" Unset("[\"/path/to/file\"]");
    /// Whether what nodes say to each other is encrypted: with every node whose version can, only so, or never. Of two
    /// nodes with required and off neither lets the other in.
    mesh_encryption: [MeshEncryptionKind] "KIND" "TRUNKLINE_MESH_ENCRYPTION" Fixed("\"on\"");
    /// Links to each other node, 1 to 64, where either of the two has more shards than that: what their shards have for
    /// each other shares them. Of two nodes with different values the smaller one counts.
    mesh_links: [u64] "N" "TRUNKLINE_MESH_LINKS" Fixed("16");
    /// What becomes of a login at a node that is not the user's home.
    placement: [Placement] "KIND" "TRUNKLINE_PLACEMENT" Fixed("\"accept\"");
    /// Seconds without a word from this node, 2 to 60, after which the others take its users for offline.
    lease_secs: [u64] "SECS" "TRUNKLINE_LEASE_SECS" Fixed("5");
    /// Who serves while no node reaches Redis: a majority of the nodes that were there last (of two both, unless the
    /// other has ended), or every node for itself, so that nodes that are cut off from each other may serve one user
    /// twice.
    redis_down: [RedisDown] "WHO" "TRUNKLINE_REDIS_DOWN" Fixed("\"majority\"");
    /// Logins and logouts that wait to be written to Redis, 1000 to 100000000. When hit: all sessions are written again
    /// once Redis works.
    presence_queue_max: [u64] "N" "TRUNKLINE_PRESENCE_QUEUE_MAX" Computed("1000000, as far as a sixteenth of memory_max holds them at 512 B each");
    /// Seconds in which all sessions are compared with what Redis holds of them, 1 to 86400, by 5,120 a second at most.
    /// What Redis has lost is written again.
    presence_audit_secs: [u64] "SECS" "TRUNKLINE_PRESENCE_AUDIT_SECS" Fixed("300");

    ["Connections"]
    /// Open connections of each shard, 1 to 1048512. When hit: a further one gets BYE 14 (overloaded).
    connections_max: [u64] "N" "TRUNKLINE_CONNECTIONS_MAX" Computed("the hard limit on open files less 64, as far as a quarter of memory_max holds them");
    /// Seconds a connection has for its LOGIN, 1 to 3600. When hit: BYE 9 (idle).
    @reloadable login_timeout_secs: [u64] "SECS" "TRUNKLINE_LOGIN_TIMEOUT_SECS" Fixed("10");
    /// Connections accepted in a second for each shard, up to 1000000; 0 is no limit. When hit: the excess waits in the
    /// backlog.
    @reloadable logins_per_sec: [u64] "N" "TRUNKLINE_LOGINS_PER_SEC" Fixed("0");
    /// Connections that one turn of a shard may bring, 1 to 4096. When hit: they are accepted 32 at a time for the next
    /// second, so that a flood of them does not hold up messages.
    accepts_per_turn: [u64] "N" "TRUNKLINE_ACCEPTS_PER_TURN" Fixed("64");
    /// Devices of one user, 1 to 64. When hit: a further one gets BYE 14 (overloaded).
    devices_max: [u64] "N" "TRUNKLINE_DEVICES_MAX" Fixed("16");
    /// Open connections that one client address may have at this node, 0 to 1000000; 0 is off. An IPv6 address counts
    /// with its /64, and behind a proxy of proxy_from the address that this tells. When hit: a further one is closed at
    /// once.
    address_connections_max: [u64] "N" "TRUNKLINE_ADDRESS_CONNECTIONS_MAX" Fixed("0");
    /// Connections that one client address may open in a second at this node, 0 to 1000000; 0 is off. When hit: a
    /// further one is closed at once.
    address_connections_per_sec: [u64] "N" "TRUNKLINE_ADDRESS_CONNECTIONS_PER_SEC" Fixed("0");
    /// Handshakes of TLS that one client address may begin in a second at this node, 0 to 1000000; 0 is off. Addresses
    /// count as for address_connections_max. When hit: the connection with a further one is closed at once, before
    /// anything of it is reckoned.
    address_handshakes_per_sec: [u64] "N" "TRUNKLINE_ADDRESS_HANDSHAKES_PER_SEC" Fixed("0");
    /// Seconds between heartbeats for a client that names no wish. When it is silent for twice as long: BYE 9 (idle).
    @reloadable heartbeat_secs: [u64] "SECS" "TRUNKLINE_HEARTBEAT_SECS" Fixed("30");
    /// Shortest heartbeat a client gets, 1 to 3600. A shorter wish is raised to it.
    @reloadable heartbeat_secs_min: [u64] "SECS" "TRUNKLINE_HEARTBEAT_SECS_MIN" Fixed("5");
    /// Longest heartbeat a client gets, 1 to 3600. A longer wish is lowered to it.
    @reloadable heartbeat_secs_max: [u64] "SECS" "TRUNKLINE_HEARTBEAT_SECS_MAX" Fixed("600");
    /// Seconds over which a drain or a shutdown spreads its BYE 12 (draining), 0 to 3600, so that not all clients come
    /// back at once.
    @reloadable drain_secs: [u64] "SECS" "TRUNKLINE_DRAIN_SECS" Fixed("2");

    ["Messages"]
    /// Longest frame, its header included, 1KiB to 16777215 bytes. When hit: BYE 2 (frame too large).
    frame_bytes_max: [Size] "SIZE" "TRUNKLINE_FRAME_BYTES_MAX" Fixed("\"64KiB\"");
    /// Frames of one connection in a second, up to 1000000; 0 is no limit. When hit: the excess gets ERROR 11 (rate
    /// limited). ACKs of what was delivered and LOGOUT do not count: they are not the client's choice.
    @reloadable frames_per_sec: [u64] "N" "TRUNKLINE_FRAMES_PER_SEC" Fixed("0");
    /// Frames one connection may bring in a turn of its shard, 64 to 32768; each 64 bytes of a longer frame count as
    /// one. When hit: the rest waits for the next turn, and the connection is not read meanwhile.
    frames_per_turn: [u64] "N" "TRUNKLINE_FRAMES_PER_TURN" Fixed("1024");
    /// Messages to one user that wait for the ACK, 1 to 65536. When hit: the sender gets SENT 3 (overloaded).
    unacked_max: [u64] "N" "TRUNKLINE_UNACKED_MAX" Fixed("1024");
    /// Bytes of messages to one user that wait for the ACK, one message at least. When hit: the sender gets SENT 3
    /// (overloaded).
    unacked_bytes_max: [Size] "SIZE" "TRUNKLINE_UNACKED_BYTES_MAX" Computed("an eighth of each shard's share of unacked_total_bytes_max");
    /// Seconds without ACK after which a message is delivered again, 1 to 3600.
    redeliver_secs: [u64] "SECS" "TRUNKLINE_REDELIVER_SECS" Fixed("15");
    /// How often a message is delivered again, 0 to 255. When hit: the sender gets SENT 2 (not stored).
    redeliver_attempts_max: [u64] "N" "TRUNKLINE_REDELIVER_ATTEMPTS_MAX" Fixed("3");
    /// Bytes queued for one connection, from frame_bytes_max to 1GiB. When hit: messages without ACK are dropped and
    /// counted, those with ACK get SENT 3 (overloaded).
    outbox_bytes_max: [Size] "SIZE" "TRUNKLINE_OUTBOX_BYTES_MAX" Fixed("\"256KiB\"");
    /// Bytes queued for one connection for up to a second, from outbox_bytes_max to 1GiB: a burst to a reader that had
    /// no time to read yet. When hit: as outbox_bytes_max.
    outbox_burst_bytes_max: [Size] "SIZE" "TRUNKLINE_OUTBOX_BURST_BYTES_MAX" Computed("a quarter of each shard's share of outbox_total_bytes_max, 4MiB at most");
    /// Bytes the kernel takes for a connection before they can be sent (TCP_NOTSENT_LOWAT), 4KiB to 16MiB; the rest
    /// waits in the connection's queue.
    unsent_bytes_max: [Size] "SIZE" "TRUNKLINE_UNSENT_BYTES_MAX" Fixed("\"32KiB\"");
    /// Seconds after which the kernel gives up a connection that acknowledges nothing of what was sent
    /// (TCP_USER_TIMEOUT), 1 to 3600.
    tcp_user_timeout_secs: [u64] "SECS" "TRUNKLINE_TCP_USER_TIMEOUT_SECS" Fixed("60");
    /// Seconds a connection's queue may stay full, or lose nothing to the kernel, 1 to 3600. When hit: BYE 10 (too
    /// slow).
    @reloadable outbox_full_secs: [u64] "SECS" "TRUNKLINE_OUTBOX_FULL_SECS" Fixed("10");
    /// To whom a session may send messages. open: to everybody. claim: to the other devices of its user, and to whoever
    /// the claim `send` of its token, or of the answer of connect_hook, names: "*" or a list of user ids. A message to
    /// others gets SENT 4 (denied), without ACK ERROR 26 (not allowed).
    send: [SendKind] "POLICY" "TRUNKLINE_SEND" Fixed("\"open\"");
    /// Users that the claim `send` may name, 1 to 10000. When hit: the LOGIN or RENEW is refused with code 6 (bad
    /// credentials).
    send_users_max: [u64] "N" "TRUNKLINE_SEND_USERS_MAX" Fixed("1000");
    /// Bytes of the lists that claims `send` of all sessions have, shared by all shards, 128KiB to 4GiB each; a list
    /// takes 32 B, and 8 B for each user. When hit: a LOGIN or RENEW with a list gets code 14 (overloaded).
    send_bytes_max: [Size] "SIZE" "TRUNKLINE_SEND_BYTES_MAX" Computed("a 64th of memory_max, 1GiB at most; none with send = \"open\"");

    ["Services"]
    /// Address and port for workers, which serve what clients call and push to users. Without it there are only the
    /// services that have servers.
    /// On an address that is not loopback workers need a key of api_keys_file with the scope serve:<number>, and with
    /// api_keys_file everywhere.
    services_listen: [SocketAddr] "ADDR:PORT" "TRUNKLINE_SERVICES_LISTEN" Unset("\"127.0.0.1:7791\"");
    /// Close links of workers that do not begin with TLS. With tls_cert they may begin with it anyway: the first byte
    /// tells. It needs both tls_cert and services_listen.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    services_tls_required: [bool] "BOOL" "TRUNKLINE_SERVICES_TLS_REQUIRED" Fixed("false");
    /// What is said of a service: NUMBER:NAME and, after commas, policy=weighted-round-robin | least-conn | least-time
    /// | random-two | consistent-hash, key=user | peer | address (of the hash), call_timeout_ms=5000, queue=1024 (calls
    /// that wait at a shard for a worker with room), idempotent, max_fails=3, fail_timeout_secs=10, slow_start_secs=0.
    /// May be given several times. A service of which nothing is said exists as soon as a worker serves it. Workers
    /// dial in; with server=HOST:PORT, once for each, the gateway dials those servers (behind each, after spaces,
    /// weight=1, backup, down, max_conns=0 (calls at once, 0 for as many as it takes), max_fails=3,
    /// fail_timeout_secs=10, slow_start_secs=0, resolve (the name again and again)), and shows them the key in
    /// key_file=FILE. With transport=http its calls are posted to HTTP servers instead, each server=URL and behind it,
    /// after spaces, weight=1, backup, down, max_conns=128, max_fails=3, fail_timeout_secs=10, slow_start_secs=0,
    /// resolve (the name again and again); and for all of them connect_timeout_ms=1000, keepalive_secs=4, ca_file=FILE
    /// (for https), health_interval_secs=5, health_path=/. In the file a service may be a table [[service]] with
    /// number, name and these, and tables [[service.server]] with address, and [service.health]; such tables stand
    /// behind all settings.
    #[arg(action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "services")]
    service: [Vec<String>] "SERVICE" "TRUNKLINE_SERVICE" Unset("[\"7:orders,policy=least-time,call_timeout_ms=5000\"]");
    /// Open calls of one session, 1 to 4096. When hit: a further one gets REPLY 11 (rate limited).
    calls_per_session_max: [u64] "N" "TRUNKLINE_CALLS_PER_SESSION_MAX" Fixed("32");
    /// Calls of each shard that workers have or that wait for them, 1 to 4000000. When hit: a further one gets REPLY 14
    /// (overloaded).
    calls_max: [u64] "N" "TRUNKLINE_CALLS_MAX" Computed("65536, as far as a 128th of memory_max holds them");
    /// Bytes of calls that wait for a worker, or may have to be sent to another one, for the node. When hit: a call is
    /// not sent again, and one that would have to wait gets REPLY 14 (overloaded).
    calls_kept_bytes_max: [Size] "SIZE" "TRUNKLINE_CALLS_KEPT_BYTES_MAX" Computed("a 64th of memory_max, 64MiB for each shard at most");
    /// Bytes queued for one link of a worker, from one frame to 1GiB. When hit: calls go to other workers, or wait.
    link_outbox_bytes_max: [Size] "SIZE" "TRUNKLINE_LINK_OUTBOX_BYTES_MAX" Fixed("\"4MiB\"");
    /// Address and port of the HTTP API by which back-ends push to users: /v1/push, /v1/push/batch. Without it there is
    /// none: whoever reaches it may push to everybody. With api_keys_file each request needs a key with the scope
    /// push:user, and on an address that is not loopback that file is needed.
    services_http: [SocketAddr] "ADDR:PORT" "TRUNKLINE_SERVICES_HTTP" Unset("\"127.0.0.1:7782\"");
    /// Bytes of pushes by HTTP on their way to the shards, for the node, and as many of calls on their way to HTTP
    /// servers. When hit: pushes end as overloaded, and a request of which nothing finds room gets 503; a call gets
    /// REPLY 14 (overloaded).
    portal_bytes_max: [Size] "SIZE" "TRUNKLINE_PORTAL_BYTES_MAX" Computed("4MiB for each shard, a 64th of memory_max at most, two pushes at least");
    /// Bytes of calls that HTTP servers have or that wait for them, and of their answers, for the node. When hit: a
    /// further call gets REPLY 14 (overloaded), and an answer for which there is no room is lost: REPLY 25 (outcome
    /// unknown).
    upstream_bytes_max: [Size] "SIZE" "TRUNKLINE_UPSTREAM_BYTES_MAX" Computed("a 64th of memory_max, 64MiB at most, four frames at least");
    /// Connections to HTTP servers of services, idle ones included, of the node, 1 to 65536. When hit: calls wait in the
    /// queue of their service.
    upstream_conns_max: [u64] "N" "TRUNKLINE_UPSTREAM_CONNS_MAX" Fixed("512");
    /// Pushes by HTTP whose outcome is not known, one for each user, at this node, 1000 to 4000000. When hit: a further
    /// request gets 503.
    pushes_open_max: [u64] "N" "TRUNKLINE_PUSHES_OPEN_MAX" Computed("65536, as far as a 64th of memory_max holds them");
    /// Pushes by HTTP to one user in a second, at this node, up to 1000000; 0 is no limit. When hit: a further one ends
    /// as overloaded.
    pushes_per_user_per_sec: [u64] "N" "TRUNKLINE_PUSHES_PER_USER_PER_SEC" Fixed("50");
    /// Pushes by HTTP with one key in a second, one for each user, at this node, up to 1000000; 0 is no limit. When hit:
    /// a further request gets 429 until the average is below it.
    pushes_per_key_per_sec: [u64] "N" "TRUNKLINE_PUSHES_PER_KEY_PER_SEC" Fixed("1000");
    /// Sessions of a shard that pushes to all sessions are given to in a second, 10 to 10000000: those that this node was
    /// asked for by HTTP, and those that came from other nodes. When hit: they take longer.
    broadcast_per_sec: [u64] "N" "TRUNKLINE_BROADCAST_PER_SEC" Fixed("200000");

    /// Who is told of what happens, by HTTP: URL,secret_file=FILE,events=user.* message.stored and, after further
    /// commas, timeout_ms=10000, batch_max=100 (events of a request), ca_file=FILE (for https). Events are user.online,
    /// user.offline, session.login, session.logout, message.sent, message.stored, push.outcome, node.lost, node.started;
    /// * is all of them. The file holds one secret that signs requests, or two while it is being changed, as lines
    /// whsec_BASE64. May be given several times, up to 16. In the file a webhook may be a table [[webhook]] with url and
    /// these, and events a list; such tables stand behind all settings.
    #[arg(action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "from_tables", serialize_with = "without_secrets")]
    webhook: [Vec<String>] "WEBHOOK" "TRUNKLINE_WEBHOOK" Unset("[\"https://app.example.com/hook,secret_file=hook.key,events=user.* message.stored\"]");
    /// Bytes of events that wait for webhooks, shared by them, 1MiB to 64GiB. When hit: further events are dropped, and
    /// the webhook gets an event events.gap that counts them.
    webhook_bytes_max: [Size] "SIZE" "TRUNKLINE_WEBHOOK_BYTES_MAX" Computed("a 64th of memory_max, 64MiB at most, 1MiB for each webhook at least");
    /// Folder in which events are kept that wait for webhooks, which is made if need be; one process has it at a time.
    /// Without it that is the folder events in data_dir, if there is one, or with store = redis the Redis Cluster; else
    /// they are lost when the process ends.
    events_dir: [PathBuf] "DIR" "TRUNKLINE_EVENTS_DIR" Unset("\"/var/lib/trunkline/events\"");

    ["Store"]
    /// What keeps messages with ACK for users who are offline, or do not acknowledge them. With redis: redis or off,
    /// the same at all nodes.
    store: [StoreKind] "KIND" "TRUNKLINE_STORE" Computed("embedded with data_dir, off without");
    /// With store = redis: when a message counts as stored. Unset: replica where each master has a replica as the node
    /// starts, master otherwise.
    store_sync: [StoreSyncKind] "WHEN" "TRUNKLINE_STORE_SYNC" Unset("\"replica\"");
    /// Folder of the embedded store, which is made if need be. One process has it at a time.
    data_dir: [PathBuf] "DIR" "TRUNKLINE_DATA_DIR" Unset("\"/var/lib/trunkline\"");
    /// Milliseconds without ACK after which a message is stored, 100 to 600000.
    store_after_ms: [u64] "MS" "TRUNKLINE_STORE_AFTER_MS" Fixed("2000");
    /// Messages in one inbox, 1 to 1000000. When hit: as inbox_full says.
    inbox_messages_max: [u64] "N" "TRUNKLINE_INBOX_MESSAGES_MAX" Fixed("10000");
    /// Bytes of one inbox, from the longest message to 1GiB. When hit: as inbox_full says.
    inbox_bytes_max: [Size] "SIZE" "TRUNKLINE_INBOX_BYTES_MAX" Computed("16MiB, one message at least");
    /// What becomes of a further message for a full inbox.
    inbox_full: [InboxFull] "POLICY" "TRUNKLINE_INBOX_FULL" Fixed("\"refuse\"");
    /// Seconds a message is kept, 1 to 315360000. Its devices are told that messages are gone.
    inbox_age_secs: [u64] "SECS" "TRUNKLINE_INBOX_AGE_SECS" Fixed("2592000");
    /// Seconds after which a device that was not seen is forgotten, 1 to 315360000: nothing is kept for it any more.
    device_age_secs: [u64] "SECS" "TRUNKLINE_DEVICE_AGE_SECS" Fixed("2592000");
    /// Bytes on their way to the store, for the node, from four messages to 1GiB. When hit: the sender gets SENT 3
    /// (overloaded).
    store_mail_bytes_max: [Size] "SIZE" "TRUNKLINE_STORE_MAIL_BYTES_MAX" Computed("32MiB, four messages at least");
    /// Bytes of all inboxes on disk, 64MiB to 64TiB; each GiB may take 56MiB of memory. Groups may take a quarter as
    /// much besides. When hit: the sender gets SENT 5 (inbox full), of a message to a group SENT 3 (overloaded).
    store_bytes_max: [Size] "SIZE" "TRUNKLINE_STORE_BYTES_MAX" Computed("as much as memory_max, 64MiB to 16GiB");
    /// Users for whom messages wait in the store, 1000 to 1000000000; each takes 64 B of memory. When hit: the
    /// sender gets SENT 5 (inbox full).
    store_users_max: [u64] "N" "TRUNKLINE_STORE_USERS_MAX" Computed("as many as take a thirty-second of memory_max");
    /// Memory at which stored messages leave it for a table on disk, 4MiB to 1GiB. Eight times as much is taken while
    /// the disk is slow; beyond that the sender gets SENT 3 (overloaded).
    store_recent_bytes_max: [Size] "SIZE" "TRUNKLINE_STORE_RECENT_BYTES_MAX" Computed("a 128th of memory_max, 4MiB to 64MiB");

    ["Groups"]
    /// Members of one group, 1 to 100000000. When hit: a further one gets ERROR 22 (limit reached).
    group_members_max: [u64] "N" "TRUNKLINE_GROUP_MEMBERS_MAX" Fixed("1000000");
    /// Groups of one user, and live rooms of one session, 1 to 100000. When hit: a further one gets ERROR 22 (limit
    /// reached).
    groups_per_user_max: [u64] "N" "TRUNKLINE_GROUPS_PER_USER_MAX" Fixed("1000");
    /// Messages kept of one group, 1 to 1000000. When hit: the oldest go, and who asks for them is told so.
    group_messages_max: [u64] "N" "TRUNKLINE_GROUP_MESSAGES_MAX" Fixed("10000");
    /// Seconds a message of a group is kept, 1 to 315360000.
    group_age_secs: [u64] "SECS" "TRUNKLINE_GROUP_AGE_SECS" Fixed("604800");
    /// Messages to one group in a second, up to 1000000; 0 is no limit. When hit: the sender gets SENT 3 (overloaded).
    @reloadable group_sends_per_sec: [u64] "N" "TRUNKLINE_GROUP_SENDS_PER_SEC" Fixed("200");
    /// Messages of one member to one group in a second, up to 1000000; 0 is no limit. When hit: the sender gets ERROR
    /// 11 (rate limited).
    @reloadable group_member_sends_per_sec: [u64] "N" "TRUNKLINE_GROUP_MEMBER_SENDS_PER_SEC" Fixed("10");
    /// Memberships in all groups of the node, 1000 to 1000000000, and an eighth as many groups; each takes 128 B of
    /// memory where there is a store. When hit: a further one gets ERROR 22 (limit reached). Each shard serves as many
    /// sessions in groups and rooms; beyond that a session is in none.
    group_memberships_max: [u64] "N" "TRUNKLINE_GROUP_MEMBERSHIPS_MAX" Computed("as many as take a thirty-second of memory_max");
    /// Members above which a group is large, up to 100000000; 0: no group is. Sessions in a large group are told by
    /// HEADS, at most once in 5 s for all their groups together, that there are messages, and are given them only while
    /// they pay attention (GROUP_JOIN with aux 1). With a tenth fewer members it is not large any more. In a cluster
    /// the setting of the node counts that is the home of the group.
    @reloadable group_passive_above: [u64] "N" "TRUNKLINE_GROUP_PASSIVE_ABOVE" Fixed("10000");
    /// Milliseconds for which messages of a live room are gathered after some have gone to its sessions, so that a busy
    /// room costs fewer sends, up to 1000; 0: they go at once. In a room that was quiet for as long a message goes at
    /// once in any case.
    @reloadable room_gather_ms: [u64] "MS" "TRUNKLINE_ROOM_GATHER_MS" Fixed("20");
    /// Messages of live rooms that a session is given in a second, of all its rooms together, up to 65535; 0 is off.
    /// When hit: the others of that second are left out, which the session sees by their numbers.
    @reloadable room_frames_per_sec: [u64] "N" "TRUNKLINE_ROOM_FRAMES_PER_SEC" Fixed("1000");
    /// Bytes of frames on their way through the members of groups, for each shard, from one frame to 1GiB. When hit:
    /// members are told that there is something to ask for.
    group_queue_bytes_max: [Size] "SIZE" "TRUNKLINE_GROUP_QUEUE_BYTES_MAX" Computed("a 128th of memory_max, 256MiB at most, shared by all shards, 4MiB each at most, two frames at least");

    ["Presence"]
    /// Who may watch whether others are online. open: everybody. claim: whoever the claim `watch` of the token names,
    /// which is "all" or a list of user ids; others look offline. off: nobody, WATCH is answered with ERROR 21.
    watch: [WatchKind] "POLICY" "TRUNKLINE_WATCH" Computed("claim with auth = \"jwt\", otherwise open");
    /// Users that one session may watch, 1 to 10000. When hit: ERROR 22 (limit reached).
    watches_per_session_max: [u64] "N" "TRUNKLINE_WATCHES_PER_SESSION_MAX" Fixed("1000");
    /// Bytes of all tables of watches, shared by all shards, 256KiB to 4GiB each. A watch takes about 13 B, and each user
    /// who is watched about 60 B for each shard that has watchers and for the home. When hit: ERROR 22 (limit reached),
    /// or the state of a user is unknown.
    watch_bytes_max: [Size] "SIZE" "TRUNKLINE_WATCH_BYTES_MAX" Computed("a 64th of memory_max, 1GiB at most");

    ["Memory"]
    /// Memory this process may need at its limits. When the sum of its budget is more, it does not start.
    memory_max: [Size] "SIZE" "TRUNKLINE_MEMORY_MAX" Computed("three quarters of what is available, seven eighths of up to 109MiB");
    /// Bytes queued for all connections of the node, and what the kernel holds for those that do not read. When hit:
    /// connections that take nothing are closed with BYE 10 (too slow), the largest queue first; where none is, every
    /// queue counts as full.
    outbox_total_bytes_max: [Size] "SIZE" "TRUNKLINE_OUTBOX_TOTAL_BYTES_MAX" Computed("an eighth of memory_max, 1GiB at most");
    /// Bytes of messages that wait for an ACK, for the node. When hit: users for whom most waits and who acknowledge
    /// nothing lose their oldest, the senders get SENT 3 (overloaded); where none is, the sender of a further one does.
    unacked_total_bytes_max: [Size] "SIZE" "TRUNKLINE_UNACKED_TOTAL_BYTES_MAX" Computed("a sixteenth of memory_max, 512MiB at most");
    /// Bytes received and not handled yet, for the node: frames of which only a part has come, and what waits for its
    /// turn. When hit: the oldest connection that has not logged in gets BYE 14 (overloaded); where none is, the one
    /// that holds most.
    partial_bytes_max: [Size] "SIZE" "TRUNKLINE_PARTIAL_BYTES_MAX" Computed("a thirty-second of memory_max, 256MiB at most");
    /// Bytes under way from one shard to another, for each pair. When hit: senders wait; when the other shard takes
    /// nothing for a second, messages without ACK are dropped and counted, those with ACK get SENT 3 (overloaded).
    mailbox_bytes_max: [Size] "SIZE" "TRUNKLINE_MAILBOX_BYTES_MAX" Computed("a thirty-second of memory_max, 256MiB at most, shared by all pairs, 4MiB each at most, one frame at least");
    /// Bytes held for other nodes until they confirm them, for the node; one link holds a quarter of its shard's share.
    /// When hit: messages without ACK are dropped and counted, those with ACK get SENT 3 (overloaded).
    mesh_bytes_max: [Size] "SIZE" "TRUNKLINE_MESH_BYTES_MAX" Computed("a sixteenth of memory_max, 512MiB at most");
    /// Receive buffers of the node, 4 KiB each, shared out to the shards: a power of two from 64 to 32768 for each. In
    /// a cluster a shard with 256 or more has an eighth of them as large ones, of 64 KiB, for links to other nodes.
    /// When there is none free: the connection is read a moment later.
    recv_buffer_bytes: [Size] "SIZE" "TRUNKLINE_RECV_BUFFER_BYTES" Computed("4MiB for each shard, 64MiB and a sixteenth of memory_max at most");
    /// Let the kernel write a core dump of this process when it is killed by a fault, if the host's limits do. Such a
    /// file holds keys, tokens and messages. Without this setting RLIMIT_CORE is 1 from the start on, which the kernel
    /// takes for none even where dumps go to a program; prlimit --core=unlimited --pid PID allows one later on.
    #[arg(num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    core_dumps: [bool] "BOOL" "TRUNKLINE_CORE_DUMPS" Fixed("false");

    ["Log"]
    /// What is logged on stderr: error, warn, info, debug or trace, or a filter such as info,trunkline_gateway=debug.
    @reloadable log: [String] "FILTER" "TRUNKLINE_LOG" Fixed("\"info\"");
    /// How a line of the log looks.
    log_format: [LogFormat] "FORMAT" "TRUNKLINE_LOG_FORMAT" Fixed("\"text\"");
}

/// The settings with a fixed default, set to it.
pub(super) fn fixed_defaults() -> Settings {
    let lines = SETTINGS.iter().filter_map(|setting| match setting.default {
        Fixed(value) => Some(format!("{} = {value}\n", setting.key)),
        Computed(_) | Unset(_) => None,
    });
    toml::from_str(&lines.collect::<String>()).expect("the table above holds valid values, as a test shows")
}
