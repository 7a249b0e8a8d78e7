//! The scripts: each one is a step that nobody sees half done, on keys of one hash slot.

use super::plane::cluster::Request;
use fred::types::Value;

/// A Lua script and the name under which Redis keeps it.
#[derive(Debug)]
pub(super) struct Script {
    source: &'static str,
    sha: String,
}

impl Script {
    pub(super) fn new(source: &'static str) -> Self {
        Script { source, sha: fred::util::sha1_hash(source) }
    }

    /// The call of it on `keys`, of which there is at least one. A master that does not know it, because it is new or
    /// has just been promoted, is told the source and asked again; the call then comes later than others sent at the
    /// same time, so callers that need an order wait for one before the next.
    pub(super) fn request<const K: usize>(&self, keys: [&str; K], args: Vec<Value>) -> Request {
        const { assert!(K > 0) };
        let mut call: Vec<Value> = Vec::with_capacity(2 + K + args.len());
        call.push(self.sha.as_str().into());
        call.push((K as i64).into());
        call.extend(keys.iter().map(|&key| Value::from(key)));
        call.extend(args);
        let slot = fred::util::redis_keyslot(keys[0].as_bytes());
        Request { slot, name: "EVALSHA", args: call, source: Some(self.source) }
    }
}

/// All scripts.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) acquire: Script,
    pub(super) renew: Script,
    pub(super) restore: Script,
    pub(super) release: Script,
    pub(super) register: Script,
    pub(super) epoch: Script,
    pub(super) login: Script,
    pub(super) logout: Script,
    pub(super) account: Script,
    pub(super) take_back: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Scripts {
            acquire: Script::new(include_str!("scripts/acquire.lua")),
            renew: Script::new(include_str!("scripts/renew.lua")),
            restore: Script::new(include_str!("scripts/restore.lua")),
            release: Script::new(include_str!("scripts/release.lua")),
            register: Script::new(include_str!("scripts/register.lua")),
            epoch: Script::new(include_str!("scripts/epoch.lua")),
            login: Script::new(include_str!("scripts/login.lua")),
            logout: Script::new(include_str!("scripts/logout.lua")),
            account: Script::new(include_str!("scripts/account.lua")),
            take_back: Script::new(include_str!("scripts/take_back.lua")),
        }
    }
}
