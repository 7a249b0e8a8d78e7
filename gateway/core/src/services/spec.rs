//! What is said of a service beforehand. A service of which nothing is said has the defaults, and exists as soon as a
//! worker serves it.

use super::http_spec::{HTTP_OPTIONS, HttpSpec, number, truth};
use super::native_spec::NativeSpec;
use super::pick_key::HashKey;
use std::fmt;
use std::str::FromStr;
use trunkline_router_core::Policy;
use trunkline_router_core::balance::{MAX_FAILS_LIMIT, PERIOD_MS_MAX};

/// Longest time a call may take, milliseconds. Deadlines are ticks of 100 ms.
const CALL_TIMEOUT_MS_MAX: u64 = 600_000;
/// Longest queue.
const QUEUE_MAX: u64 = 65_536;
/// Longest name of a service.
const NAME_CHARS_MAX: usize = 64;

/// One service: `7:orders,policy=least-time,call_timeout_ms=5000,queue=1024`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its number, 1 to 65,535.
    pub service: u16,
    /// Its name, for people.
    pub name: String,
    /// How an instance is picked.
    pub policy: Policy,
    /// What a hash is made of.
    pub key: HashKey,
    /// Time a call may take, milliseconds.
    pub call_timeout_ms: u64,
    /// Calls that may wait at each shard for an instance that has room.
    pub queue: u32,
    /// All its calls may be carried out more than once, as if they were SAFE.
    pub idempotent: bool,
    /// As of nginx's `server`.
    pub max_fails: u32,
    /// As of nginx's `server`, milliseconds.
    pub fail_timeout_ms: u64,
    /// As of nginx's `server`, milliseconds.
    pub slow_start_ms: u64,
    /// The HTTP servers that its calls go to; `None` for one that workers serve.
    pub http: Option<HttpSpec>,
    /// The native servers that the gateway dials; `None` for a service whose workers all dial in.
    pub native: Option<NativeSpec>,
}

impl ServiceSpec {
    /// A service of which nothing is said.
    pub fn of(service: u16) -> Self {
        ServiceSpec {
            service,
            name: String::new(),
            policy: Policy::RoundRobin,
            key: HashKey::User,
            call_timeout_ms: 5_000,
            queue: 1_024,
            idempotent: false,
            max_fails: 3,
            fail_timeout_ms: 10_000,
            slow_start_ms: 0,
            http: None,
            native: None,
        }
    }
}

/// What is no service, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError(String);

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SpecError {}

/// An option and its value; of one without a value, that it is so.
fn pair(option: &str) -> (&str, &str) {
    option.split_once('=').unwrap_or((option, "true"))
}

impl FromStr for ServiceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (head, rest) = text.split_once(',').unwrap_or((text, ""));
        let (number, name) = head.split_once(':').unwrap_or((head, ""));
        let Ok(service @ 1..) = number.parse::<u16>() else {
            return Err(SpecError(format!("{number:?} is no number of a service: it must be 1 to 65535")));
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.len() > NAME_CHARS_MAX || !name.chars().all(is_name) {
            return Err(SpecError(format!(
                "{name:?} is no name of a service: letters, digits, '.', '_' or '-', 64 at most"
            )));
        }
        let mut spec = ServiceSpec { name: name.to_owned(), ..ServiceSpec::of(service) };
        let options = || rest.split(',').map(str::trim).filter(|option| !option.is_empty());
        let transport = options().map(pair).filter(|(key, _)| *key == "transport").map(|(_, value)| value).next_back();
        let is_http = match transport {
            None | Some("native") => false,
            Some("http") => true,
            Some(other) => return Err(SpecError(format!("transport={other}: native or http"))),
        };
        let (mut http, mut native, mut said) = (HttpSpec::new(), NativeSpec::default(), None);
        for (key, value) in options().map(pair) {
            match key {
                "transport" => {}
                "server" if !is_http => native.servers.push(value.parse().map_err(SpecError)?),
                "key_file" if is_http => {
                    let error =
                        "key_file= is what is shown to native servers: say it of a service without transport=http";
                    return Err(SpecError(error.to_owned()));
                }
                "key_file" => native.key_file = Some(value.into()),
                _ if http.take(key, value).map_err(SpecError)? => _ = said.get_or_insert(key),
                _ => spec.take(key, value).map_err(SpecError)?,
            }
        }
        let of_workers = ["max_fails", "fail_timeout_secs", "slow_start_secs"];
        let is_said = |key: &&str| options().any(|option| pair(option).0 == *key);
        match said {
            Some(key) if !is_http => {
                return Err(SpecError(format!("{key}= is said of HTTP servers only: add transport=http")));
            }
            _ if is_http => {
                if let Some(key) = of_workers.iter().find(|key| is_said(key)) {
                    let error = format!("{key}= of HTTP servers stands behind the address of a server");
                    return Err(SpecError(error));
                }
                http.judge().map_err(SpecError)?;
                spec.http = Some(http);
            }
            _ if native != NativeSpec::default() => {
                native.judge().map_err(SpecError)?;
                spec.native = Some(native);
            }
            _ => {}
        }
        Ok(spec)
    }
}

impl ServiceSpec {
    /// Takes one of the options that every service has.
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "policy" => self.policy = value.parse().map_err(|error| format!("{error}"))?,
            "key" => self.key = value.parse()?,
            "call_timeout_ms" => self.call_timeout_ms = number(key, value, 100, CALL_TIMEOUT_MS_MAX)?,
            "queue" => self.queue = number(key, value, 0, QUEUE_MAX)? as u32,
            "idempotent" => self.idempotent = truth(key, value)?,
            "max_fails" => self.max_fails = number(key, value, 0, MAX_FAILS_LIMIT.into())? as u32,
            "fail_timeout_secs" => self.fail_timeout_ms = number(key, value, 1, PERIOD_MS_MAX / 1_000)? * 1_000,
            "slow_start_secs" => self.slow_start_ms = number(key, value, 0, PERIOD_MS_MAX / 1_000)? * 1_000,
            _ => {
                let known = "transport, server, key_file, policy, key, call_timeout_ms, queue, idempotent, max_fails, \
                             fail_timeout_secs, slow_start_secs";
                return Err(format!(
                    "{key:?} is nothing that can be said of a service; there are {known}, and for HTTP {HTTP_OPTIONS}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_its_number_and_what_is_said_of_it() {
        let spec: ServiceSpec =
            "7:orders,policy=least-time,key=address,call_timeout_ms=800,queue=9,idempotent,max_fails=2"
                .parse()
                .unwrap();
        let said = ServiceSpec {
            name: "orders".to_owned(),
            policy: Policy::LeastTime,
            key: HashKey::Address,
            call_timeout_ms: 800,
            queue: 9,
            idempotent: true,
            max_fails: 2,
            ..ServiceSpec::of(7)
        };
        assert_eq!(spec, said);
        assert_eq!("8".parse(), Ok(ServiceSpec::of(8)));
        for (bad, why) in [
            ("0", "1 to 65535"),
            ("orders", "1 to 65535"),
            ("7:a b", "name"),
            ("7,policy=fastest", "fastest"),
            ("7,call_timeout_ms=1", "100 to 600000"),
            ("7,weight=3", "nothing that can be said"),
            ("7,idempotent=maybe", "true or false"),
            ("7,key=device", "user, peer (the routing key of the call) or address"),
        ] {
            let error = bad.parse::<ServiceSpec>().expect_err(bad).to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
