//! `/who` and `/members`: requests to the gateway's HTTP interface.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::text::{printable, span};

/// The whole answer, head included.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The whole exchange.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Whom the gateway sees.
#[derive(Debug, Deserialize)]
struct User {
    online: bool,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    device: String,
    #[serde(default)]
    class: String,
    node: String,
    shard: u32,
    /// Login time in seconds since the epoch.
    since: u64,
}

/// Members listed at most.
const MEMBERS_MAX: usize = 1_000;

/// Members of a page: their descriptions fit into an answer.
const MEMBERS_PAGE: usize = 200;

/// A page of the members of a group.
#[derive(Debug, Deserialize)]
struct Members {
    members: Vec<Member>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Member {
    user: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    muted_until: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum WhoError {
    Io { addr: String, source: io::Error },
    Slow { addr: String },
    TooLong,
    NotHttp,
    Status { status: u16, body: String },
    NotUser(serde_json::Error),
}

impl fmt::Display for WhoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { addr, source } => write!(f, "cannot ask {addr}: {source} (--http names another address)"),
            Self::Slow { addr } => write!(f, "{addr} did not answer within {TIME_MAX:?}"),
            Self::TooLong => write!(f, "the answer is longer than {ANSWER_BYTES_MAX} bytes"),
            Self::NotHttp => write!(f, "the answer is not a whole HTTP answer"),
            Self::Status { status, body } => write!(f, "the gateway answered {status}: {body}"),
            Self::NotUser(error) => write!(f, "the answer is not what was asked for: {error}"),
        }
    }
}

/// Asks the gateway at `addr` about a user; the answer as lines to print.
pub(crate) async fn who(addr: &str, user: u64) -> Result<String, WhoError> {
    let seen: User = ask(addr, &format!("/v1/users/{user}")).await?;
    Ok(describe(user, &seen, now_secs()))
}

/// Asks the gateway at `addr` who is in a group; the answer as a line to print.
pub(crate) async fn members(addr: &str, group: u64) -> Result<String, WhoError> {
    let (mut all, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let path = format!("/v1/groups/{group}/members?after={after}&limit={MEMBERS_PAGE}");
        let Members { members, next } = ask(addr, &path).await?;
        all.extend(members);
        match next {
            // What stands in a path comes from the gateway.
            Some(next) if all.len() < MEMBERS_MAX && next.bytes().all(|byte| byte.is_ascii_digit()) => after = next,
            next => return Ok(describe_members(group, &all, next.is_some(), now_secs())),
        }
    }
}

fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn ask<T: DeserializeOwned>(addr: &str, path: &str) -> Result<T, WhoError> {
    let answer = timeout(TIME_MAX, get(addr, path))
        .await
        .map_err(|_elapsed| WhoError::Slow { addr: addr.to_owned() })?
        .map_err(|source| WhoError::Io { addr: addr.to_owned(), source })?;
    serde_json::from_slice(body_of(&answer)?).map_err(WhoError::NotUser)
}

fn describe_members(group: u64, members: &[Member], more: bool, now_secs: u64) -> String {
    let described = members.iter().map(|member| {
        let mut about = Vec::new();
        if member.role != "member" && !member.role.is_empty() {
            about.push(printable(member.role.as_bytes()));
        }
        if member.muted_until > now_secs {
            about.push(format!("muted for {}", span(Duration::from_secs(member.muted_until - now_secs))));
        }
        let user = printable(member.user.as_bytes());
        if about.is_empty() { user } else { format!("{user} ({})", about.join(", ")) }
    });
    let mut described: Vec<String> = described.collect();
    if described.is_empty() {
        return format!("nobody is in group {group}");
    }
    if more {
        described.push("and more".into());
    }
    format!("in group {group}: {}", described.join(", "))
}

/// A GET that lets the server close the connection; at most one byte more than is allowed comes back.
async fn get(addr: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: application/json\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The body of a 200 answer (RFC 9112). The gateway states the length of its short answers; a chunked one, which it
/// never sends, is refused and not misread.
fn body_of(answer: &[u8]) -> Result<&[u8], WhoError> {
    if answer.len() as u64 > ANSWER_BYTES_MAX {
        return Err(WhoError::TooLong);
    }
    let head_len = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or(WhoError::NotHttp)?;
    let head = std::str::from_utf8(&answer[..head_len]).map_err(|_| WhoError::NotHttp)?;
    let mut body = &answer[head_len + 4..];

    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status: u16 = match status_line.split(' ').collect::<Vec<_>>()[..] {
        [version, status, ..] if version.starts_with("HTTP/1.") => status.parse().map_err(|_| WhoError::NotHttp)?,
        _ => return Err(WhoError::NotHttp),
    };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(WhoError::NotHttp)?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(WhoError::NotHttp);
        }
        if name.eq_ignore_ascii_case("content-length") {
            let len: usize = value.trim().parse().map_err(|_| WhoError::NotHttp)?;
            body = body.get(..len).ok_or(WhoError::NotHttp)?;
        }
    }
    if status != 200 {
        let body = printable(&body[..body.len().min(200)]);
        return Err(WhoError::Status { status, body });
    }
    Ok(body)
}

fn describe(number: u64, user: &User, now_secs: u64) -> String {
    if !user.online {
        return format!("user {number} is offline");
    }
    let devices: Vec<String> = user
        .devices
        .iter()
        .map(|device| {
            let name = printable(device.device.as_bytes());
            let class = match device.class.as_str() {
                "" => String::new(),
                class => format!(" ({})", printable(class.as_bytes())),
            };
            let since = Duration::from_secs(now_secs.saturating_sub(device.since));
            let node = printable(device.node.as_bytes());
            format!("{name}{class} at node {node}, shard {}, for {}", device.shard, span(since))
        })
        .collect();
    format!("user {number} is online: {}", devices.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_named_with_its_class_and_age() {
        let json = r#"{"user":"2","online":true,"home":"a","shard":1,"devices":[
            {"device":"default","class":"","node":"a","shard":1,"session":7,"since":1},
            {"device":"phone","class":"mobile","node":"b","shard":0,"session":8,"since":61}]}"#;
        let user: User = serde_json::from_str(json).expect("valid");
        let text =
            "user 2 is online: default at node a, shard 1, for 1 min 1 s; phone (mobile) at node b, shard 0, for 1 s";
        assert_eq!(describe(2, &user, 62), text);
    }

    #[test]
    fn an_offline_user_is_a_plain_sentence() {
        let user: User = serde_json::from_str(r#"{"user":"3","online":false,"home":null,"shard":null,"devices":[]}"#)
            .expect("valid");
        assert_eq!(describe(3, &user, 0), "user 3 is offline");
    }

    #[test]
    fn members_are_named_with_what_is_special_about_them() {
        let json = r#"{"members":[{"user":"1","role":"owner","muted_until":0,"notify":true,"read":"0"},
            {"user":"2","role":"member","muted_until":120,"notify":true,"read":"0"},{"user":"3"}],"next":"3"}"#;
        let Members { members, next } = serde_json::from_str(json).expect("valid");
        assert_eq!(next.as_deref(), Some("3"));
        assert_eq!(
            describe_members(77, &members, true, 60),
            "in group 77: 1 (owner), 2 (muted for 1 min 0 s), 3, and more"
        );
        assert_eq!(describe_members(77, &members[2..], false, 60), "in group 77: 3");
        assert_eq!(describe_members(77, &[], false, 60), "nobody is in group 77");
    }

    #[test]
    fn the_body_is_what_the_length_says() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 2\r\n\r\n{}extra";
        assert_eq!(body_of(answer).expect("a body"), b"{}");
    }

    #[test]
    fn an_unusable_answer_is_an_error_and_never_a_panic() {
        let long = vec![b'x'; ANSWER_BYTES_MAX as usize + 1];
        assert!(matches!(body_of(&long), Err(WhoError::TooLong)));
        let not_found = b"HTTP/1.1 404 Not Found\r\n\r\nno such\x1b user";
        match body_of(not_found) {
            Err(WhoError::Status { status: 404, body }) => assert!(!body.contains('\x1b')),
            other => panic!("{other:?}"),
        }
        for answer in [
            &b""[..],
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 2000000 OK\r\n\r\n",
            b"SSH-2.0-x 200 y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 \xff\r\n\r\n",
        ] {
            assert!(matches!(body_of(answer), Err(WhoError::NotHttp)), "{answer:?}");
        }
    }
}
