//! What a push asks for: from the JSON of a request to a [`Push`]. No I/O.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer};
use std::time::Duration;
use trunkline_proto::{HEADER_LONG, SERVICE_USERS};
use trunkline_router::api::UserId;

/// Users that one push may name.
pub(super) const USERS_MAX: usize = 1_000;
/// How long a caller waits for outcomes where it does not say, and at most, milliseconds.
const TIMEOUT_MS: u64 = 5_000;
pub(super) const TIMEOUT_MS_MAX: u64 = 30_000;

/// A push to one or several users, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Push {
    /// Ascending, each once.
    pub(super) users: Vec<u64>,
    pub(super) service: u16,
    /// The sender's id for it; `None` leaves it to the gateway.
    pub(super) id: Option<u64>,
    pub(super) payload: Vec<u8>,
    /// Its fate is to be known.
    pub(super) ack: bool,
    /// It may be kept for users who are offline.
    pub(super) store: bool,
    /// It may have been sent before under its id.
    pub(super) retry: bool,
    /// How long the caller waits for the outcome; `None` is not at all.
    pub(super) wait: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    to: To,
    service: Whole,
    id: Option<UserId>,
    payload: String,
    ack: Option<bool>,
    store: Option<bool>,
    retry: Option<bool>,
    wait: Option<Wait>,
    timeout_ms: Option<Whole>,
    ttl_secs: Option<IgnoredAny>,
}

/// A whole number; 5.0 is one too, as in JSON Schema.
struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = serde_json::Number::deserialize(deserializer)?;
        // Beyond 2^53 a double may have lost digits.
        let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(number);
        let of_double = || number.as_f64().filter(is_whole).map(|number| number as u64);
        let whole = number.as_u64().or_else(of_double);
        whole.map(Whole).ok_or_else(|| D::Error::custom(format_args!("{number} is no whole number from 0 on")))
    }
}

/// Of these fields one is given.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    user: Option<UserId>,
    users: Option<Vec<UserId>>,
    device: Option<IgnoredAny>,
    group: Option<IgnoredAny>,
    all: Option<IgnoredAny>,
    #[serde(rename = "where")]
    condition: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Wait {
    Outcome,
    None,
}

impl Push {
    /// Reads a push. A frame with its payload has to be no longer than `frame_bytes_max`.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn parse(json: &[u8], frame_bytes_max: usize) -> Result<Push, String> {
        // A list would be taken for the fields in their order.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err("a push has to be a JSON object: {…}".to_owned());
        }
        let body: Body = serde_json::from_slice(json).map_err(|error| format!("this is no push: {error}"))?;
        if body.ttl_secs.is_some() {
            return Err("ttl_secs is not served: what is stored is kept as long as inbox_age_secs says; \
                        \"store\": false pushes to who is online only"
                .to_owned());
        }
        let Ok(service @ 1..) = u16::try_from(body.service.0) else {
            return Err("service has to be 1 to 65535".to_owned());
        };
        let payload = STANDARD.decode(&body.payload).map_err(|error| format!("payload is not base64: {error}"))?;
        let longest = frame_bytes_max.saturating_sub(HEADER_LONG);
        if payload.len() > longest {
            let len = payload.len();
            return Err(format!("payload has {len} bytes, and a frame holds {longest} at most (frame_bytes_max)"));
        }
        let timeout_ms = body.timeout_ms.map_or(TIMEOUT_MS, |whole| whole.0);
        if timeout_ms > TIMEOUT_MS_MAX {
            return Err(format!("timeout_ms has to be 0 to {TIMEOUT_MS_MAX}"));
        }
        let waits = body.wait.unwrap_or(Wait::Outcome) == Wait::Outcome;
        Ok(Push {
            users: users(body.to)?,
            service,
            id: body.id.map(|id| id.0),
            payload,
            ack: body.ack.unwrap_or(true),
            store: body.store.unwrap_or(true),
            // A new id was never used before.
            retry: body.retry.unwrap_or(false) && body.id.is_some(),
            wait: waits.then(|| Duration::from_millis(timeout_ms)),
        })
    }

    /// What tells it from another push, as far as a repetition has to agree: all but how long its caller waits.
    pub(super) fn said(&self) -> impl Iterator<Item = &[u8]> {
        let word: &[u8] = match (self.ack, self.store) {
            (true, true) => b"ack store",
            (true, false) => b"ack",
            (false, true) => b"store",
            (false, false) => b"",
        };
        [word, b"\0", &self.payload].into_iter()
    }
}

/// Whom it is for.
fn users(to: To) -> Result<Vec<u64>, String> {
    let To { user, users, device, group, all, condition } = to;
    let further = [("device", device), ("group", group), ("all", all), ("where", condition)];
    if let Some((word, _)) = further.iter().find(|(_, given)| given.is_some()) {
        return Err(format!("to.{word} is not served: to has to be {{\"user\": …}} or {{\"users\": […]}}"));
    }
    let mut users: Vec<u64> = match (user, users) {
        (Some(user), None) => vec![user.0],
        (None, Some(users)) => users.into_iter().map(|user| user.0).collect(),
        _ => return Err("to has to be {\"user\": …} or {\"users\": […]}, one of them".to_owned()),
    };
    if users.is_empty() || users.len() > USERS_MAX {
        return Err(format!("to.users names {}; 1 to {USERS_MAX} are allowed", users.len()));
    }
    if users.iter().any(|user| *user >= SERVICE_USERS) {
        return Err(format!("users from {SERVICE_USERS} on are services, and nobody logs in as one"));
    }
    users.sort_unstable();
    users.dedup();
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Push, String> {
        Push::parse(json.as_bytes(), 1_024)
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let push = parse(r#"{"to":{"user":"42"},"service":7,"payload":"aGk="}"#).unwrap();
        let expected = Push {
            users: vec![42],
            service: 7,
            id: None,
            payload: b"hi".to_vec(),
            ack: true,
            store: true,
            retry: false,
            wait: Some(Duration::from_secs(5)),
        };
        assert_eq!(push, expected);
    }

    #[test]
    fn what_is_said_counts_and_each_user_once() {
        let push = parse(
            r#"{"to":{"users":["18446744073709486079",7,"7",1]},"service":65535,"id":"9001","payload":"","ack":false,
                "store":false,"retry":true,"wait":"none","timeout_ms":0}"#,
        );
        let expected = Push {
            users: vec![1, 7, SERVICE_USERS - 1],
            service: 65_535,
            id: Some(9_001),
            payload: Vec::new(),
            ack: false,
            store: false,
            retry: true,
            wait: None,
        };
        assert_eq!(push.unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_the_reason() {
        let long = STANDARD.encode([0; 1_024 - HEADER_LONG + 1]);
        let many: Vec<String> = (1..=1_001).map(|user| user.to_string()).collect();
        let with = |to: &str, rest: &str| format!(r#"{{"to":{to},"service":7,"payload":""{rest}}}"#);
        let user = r#"{"user":1}"#;
        for (json, why) in [
            ("[]".to_owned(), "JSON object"),
            ("{".to_owned(), "no push"),
            (with(user, ",\"x\":1"), "unknown field"),
            (with("{}", ""), "one of them"),
            (with(r#"{"user":1,"users":[2]}"#, ""), "one of them"),
            (with(r#"{"users":[]}"#, ""), "1 to 1000"),
            (with(&format!(r#"{{"users":[{}]}}"#, many.join(",")), ""), "1 to 1000"),
            (with(r#"{"user":0}"#, ""), "1"),
            (with(r#"{"user":"18446744073709486080"}"#, ""), "services"),
            (with(r#"{"group":"5"}"#, ""), "to.group is not served"),
            (with(r#"{"all":true}"#, ""), "to.all is not served"),
            (with(r#"{"where":{}}"#, ""), "to.where is not served"),
            (with(r#"{"device":{"user":1,"device":"d"}}"#, ""), "to.device is not served"),
            (with(user, ",\"ttl_secs\":5"), "ttl_secs is not served"),
            (with(user, ",\"timeout_ms\":30001"), "0 to 30000"),
            (with(user, ",\"timeout_ms\":0.5"), "whole number"),
            (with(user, ",\"wait\":\"long\""), "no push"),
            (r#"{"to":{"user":1},"service":0,"payload":""}"#.to_owned(), "1 to 65535"),
            (r#"{"to":{"user":1},"service":7,"payload":"?"}"#.to_owned(), "base64"),
            (format!(r#"{{"to":{{"user":1}},"service":7,"payload":"{long}"}}"#), "992 at most"),
        ] {
            let error = parse(&json).expect_err(&json);
            assert!(error.contains(why), "{json}: {error}");
        }
    }
}
