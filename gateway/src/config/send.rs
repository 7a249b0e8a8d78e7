//! Who may write to whom: from the settings to what a shard works with.

use super::resolve::{Judge, known};
use super::values::{AuthKind, SendKind};
use super::{ConfigError, Settings};
use crate::limits::{SendLimits, SendPolicy};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
/// Users that a claim may name, at the most: what a token, or an answer of the hook, has room for is little more.
const USERS_MOST: u64 = 10_000;
/// Lists of a shard at the least, bytes: one of the longest.
pub(super) const SEND_BYTES_LEAST: u64 = 128 * KIB;

/// Judges who may write to whom, and how much is kept of that; with the policy `open` it is nothing.
pub(super) fn send_limits(all: &Settings, shards: u64, judge: &Judge) -> Result<SendLimits, ConfigError> {
    let users_max = judge.count("send_users_max", known(all.send_users_max), 1..=USERS_MOST)? as u32;
    let allowed = SEND_BYTES_LEAST * shards..=4 * GIB * shards;
    let bytes = judge.size("send_bytes_max", known(all.send_bytes_max), allowed)?;
    if known(all.send) == SendKind::Open {
        return Ok(SendLimits { policy: SendPolicy::Open, users_max, bytes_max: 0 });
    }
    if known(all.auth) == AuthKind::Open && all.connect_hook.is_none() {
        let allowed = "with auth open and without connect_hook nobody has a claim, so nobody could write to anybody: \
                       use --auth jwt or --connect-hook, or leave it out";
        return judge.refuse("send", "claim", allowed);
    }
    Ok(SendLimits { policy: SendPolicy::Claim, users_max, bytes_max: (bytes / shards) as usize })
}

#[cfg(test)]
mod tests {
    use crate::config::testing::resolve;
    use crate::limits::{SendLimits, SendPolicy};

    #[test]
    fn claims_are_for_those_who_can_have_one() {
        let open = resolve("send_users_max = 5\nsend_bytes_max = \"1MiB\"\n").expect("valid");
        assert_eq!(open.limits().send, SendLimits { users_max: 5, ..SendLimits::default() });
        assert_eq!(open.limits().send.bytes_max, 0, "nothing is kept");
        let hook = "send = \"claim\"\nconnect_hook = \"https://app/login\"\n";
        let claim = resolve(&format!("{hook}send_bytes_max = \"1MiB\"\n")).expect("valid").limits().send;
        assert_eq!((claim.policy, claim.users_max, claim.bytes_max), (SendPolicy::Claim, 1_000, 512 << 10));
        assert!(resolve(hook).expect("valid").limits().send.bytes_max > 32 << 20);
        let jwt = "send = \"claim\"\nauth = \"jwt\"\njwt_hs256_secret_file = \"k\"\n";
        assert_eq!(resolve(jwt).expect("valid").limits().send.policy, SendPolicy::Claim);
        let error = resolve("send = \"claim\"\n").expect_err("nobody has a claim").to_string();
        assert!(error.contains("connect_hook") && error.contains("--auth jwt"), "{error}");
        for (text, named) in [
            ("send = \"off\"\n", "send"),
            ("send_users_max = 0\n", "send_users_max"),
            ("send_users_max = 10001\n", "send_users_max"),
            ("send_bytes_max = \"100KiB\"\n", "send_bytes_max"),
        ] {
            let error = resolve(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn the_budget_has_what_claims_take_and_nothing_where_there_are_none() {
        let hook = "connect_hook = \"https://app/login\"\nconnections_max = 1000\nsend_bytes_max = \"3MiB\"\n";
        let budget = |text: &str| crate::budget::Budget::of(&resolve(&format!("{hook}{text}")).expect("valid"));
        let term =
            |text: &str| budget(text).terms.iter().find(|term| term.name == "send claims").map(|term| term.bytes);
        assert_eq!(term("send = \"open\"\n"), None);
        assert_eq!(term("send = \"claim\"\n"), Some((3 << 20) + 2 * (1_000 + 64) * 24));
    }
}
