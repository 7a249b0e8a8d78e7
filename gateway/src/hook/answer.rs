//! What the application's answer means.

use crate::auth::{TokenEnd, Whom};
use crate::events::client::Answer;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use trunkline_proto::SERVICE_USERS;

use super::{Grant, WORDS_BYTES_MAX};

/// Longest time for which an answer counts, seconds.
const CACHE_SECS_MAX: u64 = 86_400;
/// For how long a refusal counts, unless the answer says something else, and at the longest.
const REFUSED_MS: u64 = 2_000;
const REFUSED_MS_MAX: u64 = 60_000;

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is let in; the answer counts for so long.
    In { grant: Arc<Grant>, cache_ms: u64 },
    /// It is refused, with these words.
    Refused { words: Arc<str>, cache_ms: u64 },
    /// There is no answer that says either, nor a sign of the application.
    Failed { why: String },
    /// The application could not say for this one, which tells nothing of others.
    Erred { why: String },
    /// The application has no time for this one: it is to come again.
    Busy { why: String },
}

/// An answer that lets in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct In {
    #[serde(default)]
    user: Option<Value>,
    #[serde(default)]
    claims: Claims,
    #[serde(default)]
    limits: SessionLimits,
    #[serde(default)]
    cache_secs: u64,
}

/// Claims, as in a token.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    exp: Option<f64>,
    watch: Option<Value>,
    send: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionLimits {
    heartbeat_secs: Option<u32>,
}

/// An answer that refuses. Whatever else stands in it is not looked at: it may be a page of a framework.
#[derive(Debug, Default, Deserialize)]
struct Refused {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    cache_secs: Option<u64>,
}

/// What an answer means that came at this wall clock.
pub(super) fn meaning(answer: &Answer, wall_ms: u64) -> End {
    match answer.status {
        200 => match &answer.body {
            Some(body) => let_in(body, wall_ms).unwrap_or_else(|why| End::Failed { why }),
            None => End::Failed { why: "its answer is longer than 64 KiB, or broke off".to_owned() },
        },
        204 => End::In { grant: Arc::default(), cache_ms: 0 },
        // That says nothing of the login, so nobody is let in by it. A single client may bring it about.
        408 | 429 => End::Busy { why: format!("it answered {}", answer.status) },
        400..=499 => refused(answer.body.as_deref().unwrap_or_default()),
        // A proxy's word that the application is not there.
        502..=504 => End::Failed { why: format!("it answered {}", answer.status) },
        status => End::Erred { why: format!("it answered {status}") },
    }
}

fn let_in(body: &[u8], wall_ms: u64) -> Result<End, String> {
    let unreadable = |error| format!("its answer cannot be read: {error}");
    says_what_it_says(&serde_json::from_slice(body).map_err(unreadable)?)?;
    let In { user, claims, limits, cache_secs } = serde_json::from_slice(body).map_err(unreadable)?;
    let user = user.map(|user| user_of(&user).ok_or("its answer has a user that is no id of a user")).transpose()?;
    let end = match claims.exp {
        Some(exp) => TokenEnd::of(exp),
        None => TokenEnd::NEVER,
    };
    let watch = claims.watch.as_ref().map(|watch| Whom::of(Some(watch)));
    let send = claims.send.as_ref().map(|send| Whom::of(Some(send)));
    let mut cache_ms = cache_secs.min(CACHE_SECS_MAX) * 1_000;
    if end != TokenEnd::NEVER {
        // Nobody is let in by it when it is over.
        cache_ms = cache_ms.min(end.ms().saturating_sub(wall_ms));
    }
    let heartbeat_secs = limits.heartbeat_secs.filter(|secs| *secs > 0);
    Ok(End::In { grant: Arc::new(Grant { user, end, watch, send, heartbeat_secs }), cache_ms })
}

/// An answer that lets in is an object, and so are its parts; what it does not say it leaves out. A null, or a list
/// that stands for an object without fields, is a mistake of the application: it meant to name a user, or an end, and
/// the client must not be let in without it.
fn says_what_it_says(answer: &Value) -> Result<(), &'static str> {
    let Value::Object(fields) = answer else { return Err("its answer, or a part of it, is no JSON object") };
    for (name, value) in fields {
        if value.is_null() {
            return Err("its answer has a null: it must leave out what it does not say");
        }
        if name == "claims" || name == "limits" {
            says_what_it_says(value)?;
        }
    }
    Ok(())
}

/// An id of a user: a text in decimal, or a number, which is exact below 2^53 alone in most languages.
fn user_of(value: &Value) -> Option<u64> {
    let user = match value {
        Value::String(text) => text.parse().ok()?,
        other => other.as_u64()?,
    };
    (user != 0 && user < SERVICE_USERS).then_some(user)
}

fn refused(body: &[u8]) -> End {
    let Refused { message, cache_secs } = serde_json::from_slice(body).unwrap_or_default();
    let cache_ms = cache_secs.map_or(REFUSED_MS, |secs| secs.saturating_mul(1_000)).min(REFUSED_MS_MAX);
    End::Refused { words: words(message.as_deref().unwrap_or_default()).into(), cache_ms }
}

/// Words for a client: one line of bounded length.
fn words(text: &str) -> String {
    let mut words = String::new();
    for part in text.chars().filter(|part| !part.is_control()) {
        if words.len() + part.len_utf8() > WORDS_BYTES_MAX {
            break;
        }
        words.push(part);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL_MS: u64 = 1_780_000_000_000;

    fn of(status: u16, body: &str) -> End {
        meaning(&Answer { status, retry_after_s: None, body: Some(body.into()) }, WALL_MS)
    }

    #[test]
    fn an_answer_lets_in_and_what_it_does_not_say_stays() {
        let all = r#"{"user":"18446744073709486079","claims":{"exp":1780000050.5,"watch":["7",9],"send":["8"]},
            "limits":{"heartbeat_secs":30},"cache_secs":600}"#;
        let grant = Grant {
            user: Some(SERVICE_USERS - 1),
            end: TokenEnd::at_s(1_780_000_051),
            watch: Some(Whom::Users([7, 9].into())),
            send: Some(Whom::Users([8].into())),
            heartbeat_secs: Some(30),
        };
        assert_eq!(of(200, all), End::In { grant: grant.into(), cache_ms: 51_000 }, "not cached beyond its end");
        for (status, body) in [(200, "{}"), (204, ""), (200, r#"{"claims":{},"limits":{"heartbeat_secs":0}}"#)] {
            assert_eq!(of(status, body), End::In { grant: Arc::default(), cache_ms: 0 }, "{body}");
        }
        let End::In { grant, cache_ms } = of(200, r#"{"user":5,"claims":{},"cache_secs":99999999}"#) else {
            panic!("it lets in");
        };
        assert_eq!((grant.user, &grant.watch, cache_ms), (Some(5), &None, 86_400_000));
        let End::In { cache_ms, .. } = of(200, r#"{"claims":{"exp":-3},"cache_secs":9}"#) else { panic!("it lets in") };
        assert_eq!(cache_ms, 0);
    }

    #[test]
    fn what_refuses_says_why_and_what_says_neither_is_a_failure() {
        let refused = |words: &str, cache_ms| End::Refused { words: words.into(), cache_ms };
        assert_eq!(of(403, r#"{"message":"You are\nbanned","code":"DENIED"}"#), refused("You arebanned", 2_000));
        assert_eq!(of(401, "<html>"), refused("", 2_000));
        assert_eq!(of(404, r#"{"cache_secs":0}"#), refused("", 0));
        assert_eq!(of(404, r#"{"cache_secs":99999999999999999999}"#), refused("", 2_000));
        let End::Refused { words, .. } = of(400, &format!(r#"{{"message":"{}"}}"#, "ä".repeat(1_000))) else {
            panic!("it refuses");
        };
        assert_eq!(words.len(), WORDS_BYTES_MAX);
        for (status, body) in [
            (200, "ok"),
            (200, "null"),
            (200, "[]"),
            (200, r#"["7"]"#),
            (200, r#"{"user":null}"#),
            (200, r#"{"claims":null}"#),
            (200, r#"{"claims":[]}"#),
            (200, r#"{"claims":{"exp":null}}"#),
            (200, r#"{"claims":{"watch":null}}"#),
            (200, r#"{"claims":{"send":null}}"#),
            (200, r#"{"limits":null}"#),
            (200, r#"{"limits":[]}"#),
            (200, r#"{"limits":{"heartbeat_secs":null}}"#),
            (200, r#"{"cache_secs":null}"#),
            (200, r#"{"user":7,"user":8}"#),
            (200, r#"{"user":0}"#),
            (200, r#"{"user":"-1"}"#),
            (200, r#"{"user":1.5}"#),
            (200, r#"{"user":"18446744073709551615"}"#),
            (200, r#"{"groups":[1]}"#),
            (200, r#"{"claims":{"admin":true}}"#),
            (502, ""),
            (503, ""),
            (504, "{}"),
        ] {
            assert!(matches!(of(status, body), End::Failed { .. }), "{status} {body}");
        }
        for (status, body) in [(201, "{}"), (302, ""), (500, "{}"), (501, ""), (505, "")] {
            assert!(matches!(of(status, body), End::Erred { .. }), "{status} {body}");
        }
        assert!([408, 429].into_iter().all(|status| matches!(of(status, "{}"), End::Busy { .. })));
        let long = Answer { status: 200, retry_after_s: None, body: None };
        assert!(matches!(meaning(&long, 0), End::Failed { why } if why.contains("64 KiB")));
    }
}
