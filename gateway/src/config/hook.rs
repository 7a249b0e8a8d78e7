//! The connect-time hook: from the settings to who is asked about logins.

use super::resolve::{Judge, known};
use super::values::HookFailureKind;
use super::{Config, ConfigError, Settings};
use crate::events::{Secrets, shown};
use crate::hook::{FailurePolicy, HookSpec};
use crate::limits::Limits;
use serde::{Serialize, Serializer};
use std::path::Path;

const GIB: u64 = 1 << 30;

/// Judges it; `None` for a node without.
pub(super) fn connect_hook(all: &Settings, judge: &Judge) -> Result<Option<HookSpec>, ConfigError> {
    let Some(text) = &all.connect_hook else { return Ok(None) };
    let failure = match known(all.connect_hook_failure) {
        HookFailureKind::Refuse => FailurePolicy::Refuse,
        HookFailureKind::Allow => FailurePolicy::Allow,
    };
    match text.parse::<HookSpec>() {
        Ok(spec) => Ok(Some(HookSpec { failure, ..spec })),
        Err(error) => judge.refuse("connect_hook", format!("{:?}", shown(text)), error),
    }
}

/// Judges the limits of what is asked; they stay 0 without a hook.
pub(super) fn hook_limits(limits: &mut Limits, all: &Settings, judge: &Judge) -> Result<(), ConfigError> {
    let requests = judge.count("connect_hook_requests_max", known(all.connect_hook_requests_max), 1..=1_024)?;
    let waiting = judge.count("connect_hook_waiting_max", known(all.connect_hook_waiting_max), 16..=65_536)?;
    let bytes = judge.size("connect_hook_cache_bytes_max", known(all.connect_hook_cache_bytes_max), 0..=4 * GIB)?;
    if all.connect_hook.is_some() {
        limits.hook_requests_max = requests as u32;
        limits.hook_waiting_max = waiting as u32;
        limits.hook_cache_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    Ok(())
}

impl Config {
    /// Reads the secrets of the connect-time hook.
    ///
    /// # Errors
    /// When they cannot be read or used; the message names the file.
    pub fn check_connect_hook(&self) -> Result<(), ConfigError> {
        let path = self.connect_hook.as_ref().and_then(|spec| spec.secret_file.as_deref());
        path.map_or(Ok(()), |path| self.check_secrets("connect_hook", path))
    }

    /// Reads the secrets that a setting names; the error names both.
    pub(super) fn check_secrets(&self, key: &'static str, path: &Path) -> Result<(), ConfigError> {
        let Err(error) = Secrets::judge(path) else { return Ok(()) };
        let error = Box::new(ConfigError::File { path: path.to_owned(), error });
        Err(ConfigError::Setting { key, origin: self.origin(key), error })
    }
}

/// Writes it as it may be shown.
pub(super) fn without_secrets<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| shown(text)).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use crate::config::testing::resolve;
    use crate::hook::FailurePolicy;

    #[test]
    fn the_hook_is_judged_and_shown_without_what_may_be_a_secret() {
        let text =
            "connect_hook = \"https://app/login?key=1,secret_file=none.key\"\nconnect_hook_failure = \"allow\"\n";
        let config = resolve(text).expect("a configuration");
        let hook = config.connect_hook.as_ref().expect("a hook");
        assert_eq!((hook.failure, hook.timeout_ms), (FailurePolicy::Allow, 2_000));
        let limits = config.limits();
        let of = (limits.hook_requests_max, limits.hook_waiting_max, limits.hook_cache_bytes_max);
        assert_eq!(of, (64, 4_096, 16 << 20));
        let shown = toml::to_string(config.effective()).expect("TOML");
        assert!(shown.contains("https://app/login?…,secret_file") && !shown.contains("key=1"), "{shown}");
        let error = config.check_connect_hook().expect_err("no file").to_string();
        assert!(error.contains("none.key") && error.contains("connect_hook"), "{error}");
        let none = resolve("").expect("a configuration");
        assert!(none.connect_hook.is_none() && none.check_connect_hook().is_ok());
        assert_eq!(none.limits().hook_requests_max, 0);
        let error = resolve("connect_hook = \"app/login?key=1\"\n").expect_err("no URL").to_string();
        assert!(error.contains("https://HOST") && !error.contains("key=1"), "{error}");
    }
}
