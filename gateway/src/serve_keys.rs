//! Which services the keys of the HTTP API may serve, for the shards that workers come to.

use crate::services::WorkerKeys;
use std::sync::Arc;
use trunkline_router::http::{Access, Scope};

/// Whoever has the scope of each service; without a keys file nobody is asked for a key.
#[derive(Debug)]
pub struct ServeKeys(pub Arc<Access>);

impl WorkerKeys for ServeKeys {
    fn are_needed(&self) -> bool {
        self.0.has_keys()
    }

    fn may_serve(&self, key: &str, mut services: &mut dyn Iterator<Item = u32>) -> Option<bool> {
        let scopes = self.0.scopes(key).ok()??;
        let may =
            |service: u32| scopes.iter().any(|scope| matches!(scope, Scope::Serve(n) if u32::from(*n) == service));
        Some(Iterator::all(&mut services, may))
    }

    fn may_push_to_groups(&self, key: &str) -> bool {
        self.0.scopes(key).is_ok_and(|scopes| scopes.is_none_or(|scopes| scopes.contains(&Scope::PushGroup)))
    }
}
