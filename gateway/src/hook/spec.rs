//! What the configuration says of the hook.

use super::FailurePolicy;
use crate::events::{judge_ca_file, number, receiver, shown};
use crate::services::Target;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Time for one request, milliseconds: by default, at the least and at the most.
const TIMEOUT_MS: u64 = 2_000;
const TIMEOUT_MS_LEAST: u64 = 50;
const TIMEOUT_MS_MAX: u64 = 60_000;

/// The hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSpec {
    /// Where questions are posted to.
    pub target: Target,
    /// File of one or two secrets; both sign. `None` for questions that are not signed.
    pub secret_file: Option<PathBuf>,
    /// Time for one request, connecting included, milliseconds.
    pub timeout_ms: u64,
    /// Who signs for it over TLS; without it those whom this system trusts.
    pub ca_file: Option<PathBuf>,
    /// Who is let in where it cannot say.
    pub failure: FailurePolicy,
}

impl FromStr for HookSpec {
    type Err = String;

    /// `https://app.example.com/login,secret_file=hook.key,timeout_ms=2000`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (target, options) = receiver(text, "the URL that is asked")?;
        let (mut secret_file, mut ca_file, mut timeout_ms) = (None, None, TIMEOUT_MS);
        for (key, value) in options {
            match key {
                "secret_file" if !value.is_empty() => secret_file = Some(value.into()),
                "timeout_ms" => timeout_ms = number(key, value, TIMEOUT_MS_LEAST, TIMEOUT_MS_MAX)?,
                "ca_file" if !value.is_empty() => ca_file = Some(value.into()),
                _ => {
                    let known = "secret_file, timeout_ms, ca_file";
                    return Err(format!("{key:?} is nothing that can be said of the hook; there are {known}"));
                }
            }
        }
        judge_ca_file(&target, ca_file.as_ref())?;
        Ok(HookSpec { target, secret_file, timeout_ms, ca_file, failure: FailurePolicy::default() })
    }
}

impl fmt::Display for HookSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.target.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_is_its_url_and_what_is_said_of_it() {
        let spec: HookSpec = "https://App/login?key=1,secret_file=a.key,timeout_ms=50".parse().expect("a hook");
        assert_eq!((spec.timeout_ms, spec.secret_file.is_some(), spec.ca_file.is_some()), (50, true, false));
        assert_eq!(spec.to_string(), "https://app/login?…");
        let spec: HookSpec = "http://127.0.0.1:9/".parse().expect("a hook");
        assert_eq!((spec.timeout_ms, spec.secret_file, spec.failure), (TIMEOUT_MS, None, FailurePolicy::Refuse));
        for (bad, why) in [
            ("app/login", "must begin with the URL"),
            ("http://h/,timeout_ms=49", "50 to 60000"),
            ("http://h/,timeout_ms=soon", "50 to 60000"),
            ("http://h/,ca_file=x", "https:// only"),
            ("http://h/,secret=x", "nothing that can be said"),
            ("https://me:pw@h/", "leave it out"),
        ] {
            let error = bad.parse::<HookSpec>().expect_err(bad);
            assert!(error.contains(why) && !error.contains("pw@"), "{bad}: {error}");
        }
    }
}
