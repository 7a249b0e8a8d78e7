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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HttpAccess;
    use trunkline_router::http::{ApiKeys, NewKey};

    fn made(id: &str, scopes: &[Scope]) -> NewKey {
        NewKey::make(id, scopes).unwrap()
    }

    fn keys_of(lines: &[&NewKey]) -> ApiKeys {
        let lines: Vec<&str> = lines.iter().map(|key| key.line.as_str()).collect();
        ApiKeys::parse(&lines.join("\n")).unwrap()
    }

    fn may(keys: &ServeKeys, key: &str, services: &[u32]) -> Option<bool> {
        keys.may_serve(key, &mut services.iter().copied())
    }

    #[test]
    fn a_worker_serves_what_each_scope_of_its_key_names_and_nothing_else() {
        let two = made("two", &[Scope::Serve(7), Scope::Serve(8), Scope::PushGroup]);
        let other = made("other", &[Scope::Kick, Scope::ServicesWrite]);
        let keys = ServeKeys(Arc::new(Access::new(Some(keys_of(&[&two, &other])), false)));
        assert!(keys.are_needed());
        for (services, expected) in
            [(&[7][..], true), (&[7, 8], true), (&[7, 9], false), (&[9], false), (&[7 + 65_536], false), (&[0], false)]
        {
            assert_eq!(may(&keys, &two.key, services), Some(expected), "{services:?}");
        }
        assert_eq!(may(&keys, &other.key, &[7]), Some(false), "it is a key, for something else");
        assert_eq!((keys.may_push_to_groups(&two.key), keys.may_push_to_groups(&other.key)), (true, false));
        assert_eq!((may(&keys, "", &[7]), keys.may_push_to_groups("")), (None, false));
        // Without a file nobody is asked for one, and what a worker shows says nothing.
        let open = ServeKeys(Arc::new(Access::new(None, false)));
        assert!(!open.are_needed() && open.may_push_to_groups(""));
        assert_eq!(may(&open, &two.key, &[7]), None);
    }

    #[test]
    fn keys_are_rotated_while_workers_come() {
        let (old, new) = (made("orders-1", &[Scope::Serve(7)]), made("orders-2", &[Scope::Serve(7)]));
        let keys = ServeKeys(Arc::new(Access::new(Some(keys_of(&[&old])), false)));
        let seen = || [&old, &new].map(|key| may(&keys, &key.key, &[7]));
        assert_eq!(seen(), [Some(true), None]);
        keys.0.set_keys(keys_of(&[&old, &new]));
        assert_eq!(seen(), [Some(true), Some(true)], "both, until all workers have the new one");
        keys.0.set_keys(keys_of(&[&new]));
        assert_eq!(seen(), [None, Some(true)], "from the next SERVE on");
        // The same id with another secret is another key.
        let again = made("orders-2", &[Scope::Serve(8)]);
        keys.0.set_keys(keys_of(&[&again]));
        assert_eq!((may(&keys, &new.key, &[7]), may(&keys, &again.key, &[8])), (None, Some(true)));
    }

    #[test]
    fn a_file_that_is_broken_or_gone_takes_nobodys_key_away() {
        let file = std::env::temp_dir().join(format!("trunkline-serve-keys-{}.toml", std::process::id()));
        let key = made("orders", &[Scope::Serve(7)]);
        std::fs::write(&file, &key.line).unwrap();
        let access = HttpAccess { keys_file: Some(file.clone()), insecure_open: false };
        let keys = ServeKeys(Arc::new(access.load().unwrap()));
        for broken in [String::new(), "orders = {".to_owned(), key.line.replace("serve:7", "serve:0")] {
            std::fs::write(&file, broken).unwrap();
            let error = access.load_keys().map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(file.to_str().unwrap()), "{error}");
            assert_eq!(may(&keys, &key.key, &[7]), Some(true));
        }
        std::fs::remove_file(&file).unwrap();
        assert!(access.load_keys().is_err() && may(&keys, &key.key, &[7]) == Some(true));
    }

    /// The comparison takes as long whatever differs, so it has to look at all of it: one digit anywhere, of the key or
    /// of what the file has, makes it another key.
    #[test]
    fn every_digit_of_a_key_counts() {
        let key = made("orders", &[Scope::Serve(7)]);
        let keys = ServeKeys(Arc::new(Access::new(Some(keys_of(&[&key])), false)));
        let other_digit = |text: &str, at: usize| {
            let mut text = text.to_owned().into_bytes();
            text[at] = if text[at] == b'0' { b'1' } else { b'0' };
            String::from_utf8(text).unwrap()
        };
        for at in 0..key.key.len() {
            assert_eq!(may(&keys, &other_digit(&key.key, at), &[7]), None, "digit {at} of the key");
        }
        let hash = key.line.find("sha256 = \"").unwrap() + "sha256 = \"".len();
        for at in hash..hash + 64 {
            keys.0.set_keys(ApiKeys::parse(&other_digit(&key.line, at)).unwrap());
            assert_eq!(may(&keys, &key.key, &[7]), None, "digit {at} of the line");
        }
        keys.0.set_keys(keys_of(&[&key]));
        assert_eq!(may(&keys, &key.key, &[7]), Some(true));
    }
}
