//! What a client is told before it connects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trunkline_proto::DEVICE_BYTES_MAX;

use crate::addrs::is_address;
use crate::config_error::{ADDRS_MAX, BACKOFF_MAX, BACKOFF_MIN, QUEUE_LEN_MAX, REPLAY_WINDOW_MAX};
use crate::{Backoff, ConfigError, Outbox, Resume, Token};

/// When a message is acknowledged. The sender is told "delivered" then, and no gateway delivers the message again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Acknowledge {
    /// When the application asks [`crate::Events`] for the next event: then it is done with this one. What it is at
    /// when it crashes is delivered again. The last message before the events are dropped is not acknowledged either,
    /// unless by
    /// [`crate::Client::ack`]. The default.
    #[default]
    OnNext,
    /// When the application takes it from [`crate::Events`]. What it is at when it crashes is lost.
    OnTake,
    /// Only by [`crate::Client::ack`] or a [`crate::Guard`]: for applications that work on several messages at a time.
    Manually,
}

/// How to connect and how much to keep. Every field has a default but the user:
///
/// ```
/// use trunkline_client::Config;
///
/// let config = Config { user: 7, device: "phone".into(), ..Config::default() };
/// assert_eq!(config.addrs, ["127.0.0.1:7700"]);
/// assert!(config.validate().is_ok());
/// assert!(Config::default().validate().is_err());
/// ```
#[derive(Clone)]
pub struct Config {
    /// Gateways to begin with, each `host:port` with a name, an IPv4 address or an IPv6 address in brackets; 1 to 64.
    /// `trunkline+tls://` in front of one says that it is for TLS, `trunkline://` that it is not; a client that was
    /// given the other does not connect there. `ws://host/path` and `wss://host/path` are WebSockets, in clear and over
    /// TLS, for `Ws` (feature `ws`); there the port may be left out (80, 443), and the path (`/ws`).
    /// They are tried in turn, so the one that should have most clients need not be the first for all of them. Default
    /// `127.0.0.1:7700` alone.
    pub addrs: Vec<String>,
    /// The user to log in as. No default. 0 with a [`Config::token`] leaves it to the application that the gateway asks
    /// (its connect-time hook); a gateway that asks none refuses the login.
    pub user: u64,
    /// Proof of being that user: a JWT, or somebody to ask for one; empty where the gateway's authentication is open.
    /// Default empty.
    pub token: Token,
    /// Name of this device, at most 64 bytes. A second login of the same user and device replaces the first. Default
    /// empty, which the gateway reads as `default`.
    pub device: String,
    /// The gateway keeps nothing for this device once it has gone: for a program that is only interested in what comes
    /// while it runs, or that only sends. Otherwise a gateway with a store remembers the device by its name, and what
    /// it never takes fills the user's inbox. Default false.
    pub ephemeral: bool,
    /// Where an earlier process of the same user and device stood: [`crate::Client::resume`]. Default nothing.
    pub resume: Resume,
    /// Messages of the backlog that may be on their way or unacknowledged at a time, 1 … 1,024; never more than
    /// [`Config::event_queue_len`]. Default 256.
    pub replay_window: u32,
    /// Kind of device, shown in presence, for example `mobile`. Default empty.
    pub device_class: String,
    /// Name and version of the program, for the gateway's operators. Default `trunkline-client/<version>`.
    pub agent: String,
    /// Heartbeat wished for, in seconds; the gateway decides. 0 leaves it to the gateway. Default 0.
    pub heartbeat_secs: u32,
    /// When a message is acknowledged. Default [`Acknowledge::OnNext`].
    pub acknowledge: Acknowledge,
    /// Events that may wait for the application, 1 … 1,000,000. Default 1,024.
    pub event_queue_len: usize,
    /// How long the connection is left unread for an application that does not take its events, before events are
    /// dropped;
    /// [`Duration::MAX`] for ever. Before that, as many events as the queue is long (256 and 1 MiB at most) are read
    /// ahead, and fates and PONGs among them are heard at once. It keeps a burst whole and still cannot lock up an
    /// application that waits for a fate before it takes the next event, unless it is for ever. Default 1 s.
    pub event_wait: Duration,
    /// Commands that may wait for the connection, 1 … 1,000,000. Default 1,024.
    pub send_queue_len: usize,
    /// Messages with acknowledgement whose fate is not known yet, 1 … 1,000,000. Each keeps its payload. Default 1,024.
    pub unacked_max: usize,
    /// How long the fate of a message is waited for, from the call on, connected or not; then it is given up with
    /// [`crate::Error::NoFate`]. [`Duration::MAX`] for ever. Default 24 h.
    pub fate_timeout: Duration,
    /// Keeps messages without a known fate beyond the process. Default none: they end with it.
    pub outbox: Option<Arc<dyn Outbox>>,
    /// Received messages remembered to remove duplicates, [`Config::event_queue_len`] … 1,000,000, about 64 bytes each.
    /// Default 4,096.
    pub dedup_window_len: usize,
    /// Limit for connecting to one of the addresses and, again, for the login there. Default 10 s.
    pub connect_timeout: Duration,
    /// Waits between attempts to reconnect; ceilings of 1 ms … 24 h.
    pub backoff: Backoff,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addrs: vec!["127.0.0.1:7700".into()],
            user: 0,
            token: Token::default(),
            device: String::new(),
            ephemeral: false,
            resume: Resume::default(),
            replay_window: 256,
            device_class: String::new(),
            agent: concat!("trunkline-client/", env!("CARGO_PKG_VERSION")).into(),
            heartbeat_secs: 0,
            acknowledge: Acknowledge::default(),
            event_queue_len: 1_024,
            event_wait: Duration::from_secs(1),
            send_queue_len: 1_024,
            unacked_max: 1_024,
            fate_timeout: Duration::from_secs(24 * 3_600),
            outbox: None,
            dedup_window_len: 4_096,
            connect_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
        }
    }
}

impl fmt::Debug for Config {
    /// Shows everything but the token, which is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("addrs", &self.addrs)
            .field("user", &self.user)
            .field("token", &self.token)
            .field("device", &self.device)
            .field("ephemeral", &self.ephemeral)
            .field("resume", &self.resume)
            .field("replay_window", &self.replay_window)
            .field("device_class", &self.device_class)
            .field("agent", &self.agent)
            .field("heartbeat_secs", &self.heartbeat_secs)
            .field("acknowledge", &self.acknowledge)
            .field("event_queue_len", &self.event_queue_len)
            .field("event_wait", &self.event_wait)
            .field("send_queue_len", &self.send_queue_len)
            .field("unacked_max", &self.unacked_max)
            .field("fate_timeout", &self.fate_timeout)
            .field("outbox", &self.outbox)
            .field("dedup_window_len", &self.dedup_window_len)
            .field("connect_timeout", &self.connect_timeout)
            .field("backoff", &self.backoff)
            .finish()
    }
}

impl Config {
    /// Checks every field that has a range. [`crate::Client::connect`] does it, too.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.user == 0 && !self.token.may_be_some() {
            return Err(ConfigError::NoUser);
        }
        if !(1..=ADDRS_MAX).contains(&self.addrs.len()) {
            return Err(ConfigError::AddrCount { count: self.addrs.len() });
        }
        if let Some(addr) = self.addrs.iter().find(|addr| !is_address(addr)) {
            return Err(ConfigError::Addr { addr: addr.clone() });
        }
        if self.device.len() > DEVICE_BYTES_MAX {
            return Err(ConfigError::DeviceTooLong { bytes: self.device.len() });
        }
        for (field, len) in [
            ("event_queue_len", self.event_queue_len),
            ("send_queue_len", self.send_queue_len),
            ("unacked_max", self.unacked_max),
            ("dedup_window_len", self.dedup_window_len),
        ] {
            if !(1..=QUEUE_LEN_MAX).contains(&len) {
                return Err(ConfigError::QueueLen { field, len });
            }
        }
        if !(1..=REPLAY_WINDOW_MAX).contains(&self.replay_window) {
            return Err(ConfigError::ReplayWindow { len: self.replay_window });
        }
        if self.dedup_window_len < self.event_queue_len {
            return Err(ConfigError::DedupWindow { len: self.dedup_window_len, len_min: self.event_queue_len });
        }
        for (field, ceiling) in [("first", self.backoff.first), ("max", self.backoff.max)] {
            if !(BACKOFF_MIN..=BACKOFF_MAX).contains(&ceiling) {
                return Err(ConfigError::Backoff { field, ceiling });
            }
        }
        Ok(())
    }

    /// `Login.window`: a backlog never fills the queue of events.
    pub(crate) fn window(&self) -> u32 {
        self.replay_window.min(u32::try_from(self.event_queue_len).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Config {
        Config { user: 1, ..Config::default() }
    }

    #[test]
    fn every_range_is_checked_at_both_ends() {
        let with = |change: &dyn Fn(&mut Config)| {
            let mut config = valid();
            change(&mut config);
            config.validate()
        };
        assert_eq!(with(&|_| ()), Ok(()));
        assert_eq!(with(&|c| c.user = 0), Err(ConfigError::NoUser));
        assert_eq!(with(&|c| (c.user, c.token) = (0, "s3cr3t".into())), Ok(()), "whose that is the gateway asks");
        for count in [0, 65] {
            let many = vec!["localhost:7700".to_owned(); count];
            assert_eq!(with(&|c| c.addrs = many.clone()), Err(ConfigError::AddrCount { count }));
        }
        assert_eq!(with(&|c| c.addrs = vec!["localhost:7700".into(), "[::1]:1".into()]), Ok(()));
        let bad = with(&|c| c.addrs.push("localhost".into()));
        assert_eq!(bad, Err(ConfigError::Addr { addr: "localhost".into() }));
        assert_eq!(with(&|c| c.device = "d".repeat(64)), Ok(()));
        assert_eq!(with(&|c| c.device = "d".repeat(65)), Err(ConfigError::DeviceTooLong { bytes: 65 }));
        for len in [0, 1_000_001] {
            assert_eq!(with(&|c| c.unacked_max = len), Err(ConfigError::QueueLen { field: "unacked_max", len }));
        }
        for len in [1, 1_000_000] {
            assert_eq!(with(&|c| (c.event_queue_len, c.dedup_window_len) = (len, len)), Ok(()));
        }
        for len in [0, 1_025] {
            assert_eq!(with(&|c| c.replay_window = len), Err(ConfigError::ReplayWindow { len }));
        }
        let forgetful = with(&|c| (c.event_queue_len, c.dedup_window_len) = (100, 99));
        assert_eq!(forgetful, Err(ConfigError::DedupWindow { len: 99, len_min: 100 }));
        for ceiling in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
            let error = |field| Err(ConfigError::Backoff { field, ceiling });
            assert_eq!(with(&|c| c.backoff.first = ceiling), error("first"));
            assert_eq!(with(&|c| c.backoff.max = ceiling), error("max"));
        }
        assert_eq!(with(&|c| c.backoff = Backoff { first: BACKOFF_MAX, max: BACKOFF_MIN }), Ok(()));
    }

    #[test]
    fn debug_output_keeps_the_token_secret() {
        let config = Config { token: "hunter2".into(), ..valid() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
