//! What a push asks for: from the JSON of a request to a [`Push`]. No I/O.

use crate::broadcast::{CLASSES_MAX, Condition};
use crate::head::{HEADED, MessageHead, UNTIL_BYTES, until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::Duration;
use trunkline_proto::{DEVICE_BYTES_MAX, HEADER_LONG, PushHead, SERVICE_USERS, flags};
use trunkline_router_core::api::{NO_USER, UserId};

/// Users that one push may name.
pub const USERS_MAX: usize = 1_000;
/// How long a caller waits for outcomes where it does not say, and at most, milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 5_000;
pub const TIMEOUT_MS_MAX: u64 = 30_000;
/// The longest time to live, seconds: 30 days.
pub const TTL_SECS_MAX: u32 = 30 * 24 * 3_600;
/// Bytes that a group puts before a payload: who sent it.
const SENDER_BYTES: usize = 8;

/// Whom a push is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Ascending, each once.
    Users(Vec<u64>),
    /// One device of a user, and no other.
    Device { user: u64, device: Box<str> },
    /// The members of a durable group, or who is in a live room.
    Group(u64),
    /// All sessions for which the condition holds, at every node.
    Sessions(Condition),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Users(users) => write!(f, "{} users", users.len()),
            Target::Device { .. } => f.write_str("a device"),
            Target::Group(group) => write!(f, "group {group}"),
            Target::Sessions(condition) if *condition == Condition::all() => f.write_str("all"),
            Target::Sessions(Condition { classes, percent, group }) => {
                write!(f, "{percent} % of")?;
                match classes.len() {
                    0 => f.write_str(" all")?,
                    many => write!(f, " {many} classes")?,
                }
                if *group == 0 { Ok(()) } else { write!(f, " in group {group}") }
            }
        }
    }
}

/// A push, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub to: Target,
    pub service: u16,
    /// The sender's id for it; `None` leaves it to the gateway.
    pub id: Option<u64>,
    pub payload: Vec<u8>,
    /// Its fate is to be known.
    pub ack: bool,
    /// It may be kept for users who are offline.
    pub store: bool,
    /// It may have been sent before under its id.
    pub retry: bool,
    /// After so many seconds nobody gets it any more; 0 for no such end.
    pub ttl_secs: u32,
    /// When that is, seconds since the Unix epoch; 0 for never, or while nobody has said when it began.
    pub until_s: u32,
    /// How long the caller waits for the outcome; `None` is not at all.
    pub wait: Option<Duration>,
}

/// A push as it goes to the homes of its recipients.
#[derive(Debug)]
pub struct OnItsWay {
    /// Users, or one group.
    pub recipients: Vec<u64>,
    pub to_groups: bool,
    /// Flags of the message besides ACK.
    pub extra: u8,
    /// What it says besides its payload goes before that.
    pub payload: Vec<u8>,
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
    ttl_secs: Option<Whole>,
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
    device: Option<Device>,
    group: Option<UserId>,
    all: Option<bool>,
    #[serde(rename = "where")]
    condition: Option<Where>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    user: UserId,
    device: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Where {
    class: Option<Vec<String>>,
    percent: Option<Whole>,
    group: Option<UserId>,
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
    pub fn parse(json: &[u8], frame_bytes_max: usize) -> Result<Push, String> {
        // A list would be taken for the fields in their order.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err("a push has to be a JSON object: {…}".to_owned());
        }
        let body: Body = serde_json::from_slice(json).map_err(|error| format!("this is no push: {error}"))?;
        let Ok(service @ 1..) = u16::try_from(body.service.0) else {
            return Err("service has to be 1 to 65535".to_owned());
        };
        let to = target(body.to)?;
        fits(&to, body.ack, body.store, body.retry, body.ttl_secs.is_some(), body.wait)?;
        let ttl_secs = match body.ttl_secs {
            None => 0,
            Some(Whole(ttl)) => match u32::try_from(ttl) {
                Ok(ttl @ 1..=TTL_SECS_MAX) => ttl,
                _ => return Err(format!("ttl_secs has to be 1 to {TTL_SECS_MAX}")),
            },
        };
        let payload = STANDARD.decode(&body.payload).map_err(|error| format!("payload is not base64: {error}"))?;
        has_room(&to, ttl_secs, payload.len(), frame_bytes_max)?;
        let timeout_ms = body.timeout_ms.map_or(TIMEOUT_MS_DEFAULT, |whole| whole.0);
        if timeout_ms > TIMEOUT_MS_MAX {
            return Err(format!("timeout_ms has to be 0 to {TIMEOUT_MS_MAX}"));
        }
        let live = matches!(to, Target::Sessions(_));
        let waits = !live && body.wait.unwrap_or(Wait::Outcome) == Wait::Outcome;
        Ok(Push {
            service,
            id: body.id.map(|id| id.0),
            payload,
            ack: body.ack.unwrap_or(!live),
            store: body.store.unwrap_or(!live && !matches!(to, Target::Device { .. })),
            // A new id was never used before.
            retry: body.retry.unwrap_or(false) && body.id.is_some(),
            ttl_secs,
            until_s: 0,
            wait: waits.then(|| Duration::from_millis(timeout_ms)),
            to,
        })
    }

    /// The push that a PUSH_TO with a head is: `said` has what the frame says, and nobody to go to yet.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn with_head(head: PushHead, said: Push, frame_bytes_max: usize) -> Result<Push, String> {
        let PushHead { users: named, device, group, ttl_secs, .. } = head;
        if named.contains(&0) {
            return Err(NO_USER.to_owned());
        }
        let to = match (named.len(), device.is_empty(), group) {
            (1, false, 0) => Target::Device { user: users(named)?[0], device: named_device(device)? },
            (1.., true, 0) => Target::Users(users(named)?),
            (0, true, 1..) => Target::Group(group),
            _ => return Err("a head has users, or one user and a device, or a group".to_owned()),
        };
        if ttl_secs > TTL_SECS_MAX {
            return Err(format!("ttl_secs has to be 0 to {TTL_SECS_MAX}"));
        }
        let store = said.store && !matches!(to, Target::Device { .. });
        fits(&to, Some(said.ack), Some(store), None, ttl_secs > 0, None)?;
        has_room(&to, ttl_secs, said.payload.len(), frame_bytes_max)?;
        Ok(Push { to, store, ttl_secs, ..said })
    }

    /// The same, begun at this time of the wall clock.
    pub fn from(self, now_ms: u64) -> Push {
        let until_s = if self.ttl_secs > 0 { until(self.ttl_secs, now_ms) } else { 0 };
        Push { until_s, ..self }
    }

    /// How many have a result of their own: users, or the group.
    pub fn recipients(&self) -> usize {
        match &self.to {
            Target::Users(users) => users.len(),
            Target::Device { .. } | Target::Group(_) | Target::Sessions(_) => 1,
        }
    }

    /// What goes to the homes of its recipients; `None` for a push to all sessions, which have none.
    pub fn on_its_way(self) -> Option<OnItsWay> {
        let (recipients, device, to_groups) = match self.to {
            Target::Users(users) => (users, None, false),
            Target::Device { user, device } => (vec![user], Some(device), false),
            Target::Group(group) => (vec![group], None, true),
            Target::Sessions(_) => return None,
        };
        let head = MessageHead { until_s: self.until_s, device: device.as_deref() };
        let headed = if head.is_empty() { 0 } else { HEADED };
        let payload = if head.is_empty() { self.payload } else { head.before(&self.payload) };
        let no_store = if self.store { 0 } else { flags::NO_STORE };
        Some(OnItsWay { recipients, to_groups, extra: no_store | headed, payload })
    }

    /// What tells it from another push, as far as a repetition has to agree: all but how long its caller waits.
    pub fn said(&self) -> Vec<u8> {
        let word: &[u8] = match (self.ack, self.store) {
            (true, true) => b"ack store",
            (true, false) => b"ack",
            (false, true) => b"store",
            (false, false) => b"",
        };
        let mut said = Vec::with_capacity(64 + self.payload.len());
        said.extend_from_slice(&self.service.to_be_bytes());
        said.extend_from_slice(&self.id.unwrap_or(0).to_be_bytes());
        said.extend_from_slice(&self.ttl_secs.to_be_bytes());
        let mut number = |tag: u8, number: u64| {
            said.push(tag);
            said.extend_from_slice(&number.to_be_bytes());
        };
        match &self.to {
            Target::Users(users) => {
                number(b'u', users.len() as u64);
                users.iter().for_each(|user| said.extend_from_slice(&user.to_be_bytes()));
            }
            Target::Device { user, device } => {
                number(b'd', *user);
                said.extend_from_slice(device.as_bytes());
            }
            Target::Group(group) => number(b'g', *group),
            Target::Sessions(Condition { classes, percent, group }) => {
                number(*percent, *group);
                for class in classes {
                    said.push(class.len() as u8);
                    said.extend_from_slice(class.as_bytes());
                }
            }
        }
        said.push(0);
        said.extend_from_slice(word);
        said.push(0);
        said.extend_from_slice(&self.payload);
        said
    }
}

/// Whether what is said of a push can be so of one with this target.
fn fits(
    to: &Target,
    ack: Option<bool>,
    store: Option<bool>,
    retry: Option<bool>,
    ttl: bool,
    wait: Option<Wait>,
) -> Result<(), String> {
    let wrong = match to {
        Target::Users(_) => None,
        Target::Device { .. } if store == Some(true) => {
            Some("nothing is stored for one device alone: leave store out, or push to the user")
        }
        Target::Device { .. } => None,
        Target::Group(_) if ttl => Some("a group keeps its messages as its own settings say: leave ttl_secs out"),
        Target::Group(_) => None,
        Target::Sessions(_) if ack == Some(true) => Some("a push to all has no ACK: leave ack out"),
        Target::Sessions(_) if store == Some(true) => Some("a push to all is for who is there: leave store out"),
        Target::Sessions(_) if ttl => Some("a push to all is for who is there while it goes: leave ttl_secs out"),
        Target::Sessions(_) if retry == Some(true) => {
            Some("a push to all is known again by its Idempotency-Key, at this node: leave retry out")
        }
        Target::Sessions(_) if wait == Some(Wait::Outcome) => {
            Some("a push to all is answered at once: leave wait out, and ask GET /v1/pushes/{id} how far it is")
        }
        Target::Sessions(_) => None,
    };
    wrong.map_or(Ok(()), |wrong| Err(wrong.to_owned()))
}

const ONE_OF: &str = "to has to be one of {\"user\": …}, {\"users\": […]}, {\"device\": {…}}, {\"group\": …}, \
                      {\"all\": true}, {\"where\": {…}}";

/// Whom it is for.
fn target(to: To) -> Result<Target, String> {
    match to {
        To { user: Some(user), users: None, device: None, group: None, all: None, condition: None } => {
            users(vec![user.0]).map(Target::Users)
        }
        To { user: None, users: Some(named), device: None, group: None, all: None, condition: None } => {
            users(named.into_iter().map(|user| user.0).collect()).map(Target::Users)
        }
        To { user: None, users: None, device: Some(named), group: None, all: None, condition: None } => {
            users(vec![named.user.0])?;
            Ok(Target::Device { user: named.user.0, device: named_device(named.device)? })
        }
        To { user: None, users: None, device: None, group: Some(group), all: None, condition: None } => {
            Ok(Target::Group(group.0))
        }
        To { user: None, users: None, device: None, group: None, all: Some(all), condition: None } => match all {
            true => Ok(Target::Sessions(Condition::all())),
            false => Err("to.all has to be true".to_owned()),
        },
        To { user: None, users: None, device: None, group: None, all: None, condition: Some(condition) } => {
            sessions(condition).map(Target::Sessions)
        }
        _ => Err(ONE_OF.to_owned()),
    }
}

/// The name of a device. Every session has one: without a name it is the default one, which has this name here.
fn named_device(device: String) -> Result<Box<str>, String> {
    match device.len() {
        1..=DEVICE_BYTES_MAX => Ok(device.into()),
        _ => Err(format!("to.device.device has to have 1 to {DEVICE_BYTES_MAX} bytes")),
    }
}

/// Whether a frame holds a payload of so many bytes with what goes before it on its way.
fn has_room(to: &Target, ttl_secs: u32, payload: usize, frame_bytes_max: usize) -> Result<(), String> {
    let besides = match to {
        Target::Group(_) => SENDER_BYTES,
        _ if ttl_secs > 0 => UNTIL_BYTES,
        _ => 0,
    };
    let longest = frame_bytes_max.saturating_sub(HEADER_LONG + besides);
    match payload <= longest {
        true => Ok(()),
        false => Err(format!("payload has {payload} bytes, and a frame holds {longest} at most (frame_bytes_max)")),
    }
}

fn users(mut users: Vec<u64>) -> Result<Vec<u64>, String> {
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

fn sessions(condition: Where) -> Result<Condition, String> {
    let Where { class, percent, group } = condition;
    if class.is_none() && percent.is_none() && group.is_none() {
        return Err("to.where has to say something: class, percent, group; {\"all\": true} is for all".to_owned());
    }
    let classes: Vec<Box<str>> = class.iter().flatten().map(|class| class.as_str().into()).collect();
    let named = !class.is_some_and(|classes| classes.is_empty());
    if !named || classes.len() > CLASSES_MAX || classes.iter().any(|class| class.len() > DEVICE_BYTES_MAX) {
        return Err(format!("to.where.class names 1 to {CLASSES_MAX} classes of at most {DEVICE_BYTES_MAX} bytes"));
    }
    let percent = match percent {
        None => 100,
        Some(Whole(percent @ 1..=100)) => percent as u8,
        Some(_) => return Err("to.where.percent has to be 1 to 100".to_owned()),
    };
    Ok(Condition { classes, percent, group: group.map_or(0, |group| group.0) })
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
            to: Target::Users(vec![42]),
            service: 7,
            id: None,
            payload: b"hi".to_vec(),
            ack: true,
            store: true,
            retry: false,
            ttl_secs: 0,
            until_s: 0,
            wait: Some(Duration::from_secs(5)),
        };
        assert_eq!(push, expected);
    }

    #[test]
    fn what_is_said_counts_and_each_user_once() {
        let push = parse(
            r#"{"to":{"users":["18446744073709486079",7,"7",1]},"service":65535,"id":"9001","payload":"","ack":false,
                "store":false,"retry":true,"wait":"none","timeout_ms":0,"ttl_secs":2592000}"#,
        );
        let expected = Push {
            to: Target::Users(vec![1, 7, SERVICE_USERS - 1]),
            service: 65_535,
            id: Some(9_001),
            payload: Vec::new(),
            ack: false,
            store: false,
            retry: true,
            ttl_secs: 2_592_000,
            until_s: 0,
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
            (with("{}", ""), "one of"),
            (with(r#"{"user":1,"users":[2]}"#, ""), "one of"),
            (with(r#"{"user":1,"group":2}"#, ""), "one of"),
            (with(r#"{"all":true,"where":{"percent":1}}"#, ""), "one of"),
            (with(r#"{"users":[]}"#, ""), "1 to 1000"),
            (with(&format!(r#"{{"users":[{}]}}"#, many.join(",")), ""), "1 to 1000"),
            (with(r#"{"user":0}"#, ""), "1"),
            (with(r#"{"user":"18446744073709486080"}"#, ""), "services"),
            (with(r#"{"device":{"user":"18446744073709486080","device":"d"}}"#, ""), "services"),
            (with(r#"{"device":{"user":1}}"#, ""), "no push"),
            (with(r#"{"device":{"user":1,"device":""}}"#, ""), "1 to 64"),
            (with(&format!(r#"{{"device":{{"user":1,"device":"{}"}}}}"#, "d".repeat(65)), ""), "1 to 64"),
            (with(r#"{"device":{"user":1,"device":"d"}}"#, ",\"store\":true"), "one device alone"),
            (with(r#"{"group":0}"#, ""), "no push"),
            (with(r#"{"group":5}"#, ",\"ttl_secs\":5"), "leave ttl_secs out"),
            (with(r#"{"all":false}"#, ""), "to.all has to be true"),
            (with(r#"{"all":true}"#, ",\"ack\":true"), "leave ack out"),
            (with(r#"{"all":true}"#, ",\"store\":true"), "leave store out"),
            (with(r#"{"all":true}"#, ",\"retry\":true"), "leave retry out"),
            (with(r#"{"all":true}"#, ",\"ttl_secs\":5"), "leave ttl_secs out"),
            (with(r#"{"all":true}"#, ",\"wait\":\"outcome\""), "leave wait out"),
            (with(r#"{"where":{}}"#, ""), "has to say something"),
            (with(r#"{"where":{"class":[]}}"#, ""), "1 to 16 classes"),
            (with(&format!(r#"{{"where":{{"class":["{}"]}}}}"#, "c".repeat(65)), ""), "1 to 16 classes"),
            (with(r#"{"where":{"percent":0}}"#, ""), "1 to 100"),
            (with(r#"{"where":{"percent":101}}"#, ""), "1 to 100"),
            (with(r#"{"where":{"percent":1,"device":"d"}}"#, ""), "unknown field"),
            (with(user, ",\"ttl_secs\":0"), "1 to 2592000"),
            (with(user, ",\"ttl_secs\":2592001"), "1 to 2592000"),
            (with(user, ",\"ttl_secs\":1.5"), "whole number"),
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

    #[test]
    fn whom_it_is_for_is_read_and_what_follows_from_that() {
        let push = |to: &str| parse(&format!(r#"{{"to":{to},"service":7,"payload":"aGk="}}"#)).expect(to);
        let device = push(r#"{"device":{"user":"42","device":"phone"}}"#);
        assert_eq!(device.to, Target::Device { user: 42, device: "phone".into() });
        assert!(device.ack && !device.store && device.wait.is_some());
        let group = push(r#"{"group":"9223372036854775808"}"#);
        assert_eq!((&group.to, group.store, group.ack), (&Target::Group(1 << 63), true, true));
        let all = push(r#"{"all":true}"#);
        assert_eq!(all.to, Target::Sessions(Condition::all()));
        assert!(!all.ack && !all.store && all.wait.is_none());
        let some = push(r#"{"where":{"class":["phone","tv"],"percent":10,"group":"5"}}"#);
        let classes = vec!["phone".into(), "tv".into()];
        assert_eq!(some.to, Target::Sessions(Condition { classes, percent: 10, group: 5 }));
        assert_eq!([device, group, all, some].map(|push| push.recipients()), [1; 4]);
    }

    #[test]
    fn two_pushes_say_the_same_only_if_they_are_the_same() {
        let rest = [
            r#""to":{"user":1},"payload":"aGk=""#,
            r#""to":{"user":2},"payload":"aGk=""#,
            r#""to":{"users":[1,2]},"payload":"aGk=""#,
            r#""to":{"user":1},"payload":"aGkh""#,
            r#""to":{"user":1},"payload":"aGk=","ack":false"#,
            r#""to":{"user":1},"payload":"aGk=","store":false"#,
            r#""to":{"user":1},"payload":"aGk=","ttl_secs":5"#,
            r#""to":{"user":1},"payload":"aGk=","id":5"#,
            r#""to":{"device":{"user":1,"device":"d"}},"payload":"aGk=""#,
            r#""to":{"device":{"user":1,"device":"e"}},"payload":"aGk=""#,
            r#""to":{"group":1},"payload":"aGk=""#,
            r#""to":{"all":true},"payload":"aGk=""#,
            r#""to":{"where":{"percent":99}},"payload":"aGk=""#,
            r#""to":{"where":{"group":1}},"payload":"aGk=""#,
            r#""to":{"where":{"class":["d"]}},"payload":"aGk=""#,
            r#""to":{"where":{"class":["de"]}},"payload":"aGk=""#,
            r#""to":{"where":{"class":["d","e"]}},"payload":"aGk=""#,
        ];
        let said: Vec<Vec<u8>> =
            rest.iter().map(|rest| parse(&format!("{{\"service\":7,{rest}}}")).expect(rest).said()).collect();
        for (at, one) in said.iter().enumerate() {
            assert!(said[..at].iter().all(|other| other != one), "{}", rest[at]);
        }
        let waits = parse(r#"{"service":7,"to":{"user":1},"payload":"aGk=","wait":"none","timeout_ms":7}"#);
        assert_eq!(waits.unwrap().said(), said[0], "how long its caller waits is no matter");
    }

    #[test]
    fn a_payload_leaves_room_for_what_goes_before_it() {
        let with = |to: &str, bytes: usize, rest: &str| {
            let payload = STANDARD.encode(vec![0; bytes]);
            parse(&format!(r#"{{"to":{to},"service":7,"payload":"{payload}"{rest}}}"#)).is_ok()
        };
        for (to, rest, most) in [
            (r#"{"user":1}"#, "", 992),
            (r#"{"user":1}"#, r#","ttl_secs":1"#, 988),
            (r#"{"group":1}"#, "", 984),
            (r#"{"all":true}"#, "", 992),
        ] {
            assert!(with(to, most, rest) && !with(to, most + 1, rest), "{to}{rest}");
        }
    }
}
