//! Who may ask what. Every route says what it needs, and this is asked before its handler is.
//!
//! | the request comes | there are keys | there are none |
//! |---|---|---|
//! | from this host | questions are answered, changes need a key | all is answered |
//! | from elsewhere | everything but health needs a key | nothing but health is answered, unless `--http-insecure-open` |
//!
//! A web page is kept out everywhere: browsers say in `Origin` or `Sec-Fetch-Site` that another site's page asks, and
//! in `Host` whom the page believes to ask. So on this host `Host` has to be a name of loopback, which no name that a
//! stranger points here is. What a reverse proxy passes on does not come from this host, whatever its address.
//!
//! A key is one in the request, or the one that the certificate names which the caller has shown on this connection; one
//! in the request is the one that counts. A browser shows a certificate for any page that asks it to, which is why pages
//! are kept out before keys are looked at.

use super::keys::{ApiKeys, Scope};
use super::problem::Problem;
use super::stats::HttpMetric;
use super::tls::CertifiedKey;
use axum::Extension;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, SocketAddr};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Refused requests are logged one in this time; the next line says how many there were between.
const LOG_PERIOD: Duration = Duration::from_secs(10);
/// Of a path that is logged, so many bytes at most.
const LOGGED_PATH_BYTES_MAX: usize = 200;
/// What proxies add to a request that they pass on.
const PROXY_HEADERS: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing, from anywhere: health.
    Nothing,
    /// Any key, where one is needed for questions.
    AnyKey,
    /// A key with this scope, where one is needed for questions.
    Read(Scope),
    /// A key with this scope, where one is needed for changes. The request goes into the audit log.
    Change(Scope),
    /// The same with a key that has one of these scopes; which one it has to be is for the handler to say, by
    /// [`CallerKey::has`].
    ChangeOfOne(&'static [Scope]),
}

/// The other end of a connection, put into each of its requests by the server.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The key that a request came with, for its handler. It is in the extensions of each request that was let through to a
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerKey {
    /// Its id; empty for a request without one.
    pub id: String,
    /// What it may do; `None` for a request that needed no key, and may do everything.
    pub scopes: Option<Vec<Scope>>,
}

impl CallerKey {
    /// Whether the caller may do what needs this scope.
    #[must_use]
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&scope))
    }
}

/// What a handler has to say about a change, for the audit log; it goes into the extensions of the response.
#[derive(Debug, Clone)]
pub struct AuditNote(pub String);

/// Who may use an API. The keys can be exchanged while it is served.
#[derive(Debug)]
pub struct Access {
    keys: RwLock<Option<Arc<ApiKeys>>>,
    insecure_open: bool,
    refused: [AtomicU64; Refusal::ALL.len()],
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    at: Option<Instant>,
    since: u64,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// A page of another site asks.
    Origin,
    /// It is meant for another host.
    Host,
    /// A key is needed and there is none in the request.
    Missing,
    /// What is in the request is no key of ours.
    Unknown,
    /// The key may do other things.
    Scope(Scope),
    /// There are no keys, and it comes from elsewhere.
    Closed,
}

impl Refusal {
    const ALL: [Refusal; 6] = [
        Refusal::Origin,
        Refusal::Host,
        Refusal::Missing,
        Refusal::Unknown,
        Refusal::Scope(Scope::Kick),
        Refusal::Closed,
    ];

    const fn label(self) -> &'static str {
        match self {
            Refusal::Origin => "origin",
            Refusal::Host => "host",
            Refusal::Missing => "no_key",
            Refusal::Unknown => "unknown_key",
            Refusal::Scope(_) => "scope",
            Refusal::Closed => "no_keys_file",
        }
    }

    const fn index(self) -> usize {
        match self {
            Refusal::Origin => 0,
            Refusal::Host => 1,
            Refusal::Missing => 2,
            Refusal::Unknown => 3,
            Refusal::Scope(_) => 4,
            Refusal::Closed => 5,
        }
    }

    fn problem(self) -> Problem {
        match self {
            Refusal::Origin => Problem::new(
                StatusCode::FORBIDDEN,
                "a web page of another site may not ask this; ask without Origin and Sec-Fetch-Site, as curl does",
            ),
            Refusal::Host => Problem::new(
                StatusCode::FORBIDDEN,
                "this is asked of another host; without a key, ask it as localhost, 127.0.0.1 or [::1]",
            ),
            Refusal::Missing => Problem::new(
                StatusCode::UNAUTHORIZED,
                "this needs a key: send Authorization: Bearer tlk_…; gateway api-key makes one for the keys file",
            ),
            Refusal::Unknown => Problem::new(
                StatusCode::UNAUTHORIZED,
                "this key is not in the keys file, or the header is not Authorization: Bearer tlk_…; of a caller with a \
                 certificate, the key that it names (URI:urn:trunkline:key:ID)",
            ),
            Refusal::Scope(scope) => {
                let detail = format!("this key does not have the scope {scope}; add it to its line in the keys file");
                Problem::new(StatusCode::FORBIDDEN, detail)
            }
            Refusal::Closed => Problem::new(
                StatusCode::FORBIDDEN,
                "from another host, or through a proxy, this needs a key, and there is no keys file: give --api-keys-file",
            ),
        }
    }
}

/// Who asks, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Caller {
    /// The holder of the key with this id, and its scopes.
    Key(String, Vec<Scope>),
    /// Somebody without a key.
    Anybody,
}

/// A key that is in no file of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownKey;

impl std::fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this key is not in the keys file")
    }
}

impl std::error::Error for UnknownKey {}

impl Access {
    /// Access with these keys; with none, for this host alone, or with `insecure_open` for whoever reaches the API.
    #[must_use]
    pub fn new(keys: Option<ApiKeys>, insecure_open: bool) -> Self {
        Access {
            keys: RwLock::new(keys.map(Arc::new)),
            insecure_open,
            refused: [const { AtomicU64::new(0) }; Refusal::ALL.len()],
            logged: Mutex::default(),
        }
    }

    /// Takes these keys instead of those before, from the next request on.
    pub fn set_keys(&self, keys: ApiKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
    }

    /// What the owner of a key may do, for those who do not come over HTTP: `None` without a keys file, an error for a
    /// key that is not in it.
    ///
    /// # Errors
    /// [`UnknownKey`].
    pub fn scopes(&self, key: &str) -> Result<Option<Vec<Scope>>, UnknownKey> {
        let Some(keys) = self.keys() else { return Ok(None) };
        keys.find(key).map(|(_, scopes)| Some(scopes.to_vec())).ok_or(UnknownKey)
    }

    /// Whether there is a keys file.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        self.keys().is_some()
    }

    fn keys(&self) -> Option<Arc<ApiKeys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> Vec<HttpMetric> {
        let samples = Refusal::ALL.map(|refusal| {
            let count = self.refused[refusal.index()].load(Ordering::Relaxed);
            (refusal.label(), count)
        });
        let keys = self.keys().map_or(0, |keys| keys.len() as u64);
        vec![
            HttpMetric {
                name: "trunkline_http_denied_total",
                is_counter: true,
                help: "HTTP requests refused for want of a right, by reason.",
                label: "reason",
                samples: samples.to_vec(),
            },
            HttpMetric::plain(
                "trunkline_http_keys",
                false,
                "Keys that the HTTP API accepts; 0 without a keys file.",
                keys,
            ),
        ]
    }

    fn judge(
        &self,
        needs: Needs,
        (peer, certified): (Option<IpAddr>, Option<&CertifiedKey>),
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Caller, Refusal> {
        let (needed, is_change) = match &needs {
            Needs::Nothing => return Ok(Caller::Anybody),
            Needs::AnyKey => (&[][..], false),
            Needs::Read(scope) => (slice::from_ref(scope), false),
            Needs::Change(scope) => (slice::from_ref(scope), true),
            Needs::ChangeOfOne(scopes) => (*scopes, true),
        };
        if is_from_a_page(headers) {
            return Err(Refusal::Origin);
        }
        let keys = self.keys();
        // Without a keys file a key says nothing: a program that has one may be used with a node that asks for none.
        let credential = headers.get(header::AUTHORIZATION);
        if let Some(keys) = keys.as_ref().filter(|_| credential.is_some() || certified.is_some()) {
            let found = match (credential, certified) {
                (Some(credential), _) => bearer(credential).and_then(|key| keys.find(key)),
                (None, certified) => certified.and_then(|CertifiedKey(id)| keys.of_certificate(id)),
            };
            let (id, scopes) = found.ok_or(Refusal::Unknown)?;
            let has_one = needed.iter().any(|scope| scopes.contains(scope));
            return match needed.first().filter(|_| !has_one) {
                Some(scope) => Err(Refusal::Scope(*scope)),
                None => Ok(Caller::Key(id.to_owned(), scopes.to_vec())),
            };
        }
        let is_here = is_here(peer, headers);
        match (is_here, keys.is_some()) {
            (false, true) | (true, true) if is_change || !is_here => Err(Refusal::Missing),
            (true, _) if all_hosts(uri, headers, is_loopback_name) => Ok(Caller::Anybody),
            (true, _) => Err(Refusal::Host),
            (false, _) if !self.insecure_open => Err(Refusal::Closed),
            // Whoever reaches it may do everything, but not be made to by a page: an address is no name that can be
            // pointed here.
            (false, _) if is_change && !all_hosts(uri, headers, is_address_or_localhost) => Err(Refusal::Host),
            (false, _) => Ok(Caller::Anybody),
        }
    }

    /// Counts a refusal and lets it into the log if the last was long enough ago.
    fn refuse(&self, refusal: Refusal, peer: Option<SocketAddr>, what: &str) -> Response {
        self.refused[refusal.index()].fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.at.is_some_and(|at| at.elapsed() < LOG_PERIOD) {
            logged.since += 1;
        } else {
            let more = std::mem::take(&mut logged.since);
            logged.at = Some(Instant::now());
            drop(logged);
            let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
            tracing::warn!(target: "audit", peer, what, reason = refusal.label(), more, "an HTTP request was refused");
        }
        refusal.problem().into_response()
    }
}

/// Lets a request through to its handler, or not.
pub(super) async fn guard(needs: Needs, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let Some(Extension(access)) = request.extensions().get::<Arc<Access>>().cloned().map(Extension) else {
        return Problem::unavailable("this API was set up without a list of who may use it").into_response();
    };
    let caller = (peer.map(|peer| peer.ip()), request.extensions().get::<CertifiedKey>());
    let judged = access.judge(needs, caller, request.uri(), request.headers());
    let is_change = matches!(needs, Needs::Change(_) | Needs::ChangeOfOne(_));
    let what = if is_change || judged.is_err() { what_is_asked(&request) } else { String::new() };
    match judged {
        Err(refusal) => access.refuse(refusal, peer, &what),
        Ok(_) if !is_change => next.run(request).await,
        Ok(caller) => {
            let key = match &caller {
                Caller::Key(id, scopes) => CallerKey { id: id.clone(), scopes: Some(scopes.clone()) },
                Caller::Anybody => CallerKey { id: String::new(), scopes: None },
            };
            request.extensions_mut().insert(key);
            let response = next.run(request).await;
            audit(&caller, peer, &what, &response);
            response
        }
    }
}

fn what_is_asked(request: &Request) -> String {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let end = target.floor_char_boundary(LOGGED_PATH_BYTES_MAX.min(target.len()));
    format!("{} {}", request.method(), target[..end].escape_default())
}

fn audit(caller: &Caller, peer: Option<SocketAddr>, what: &str, response: &Response) {
    let who = match caller {
        Caller::Key(id, _) => id.as_str(),
        Caller::Anybody => "nobody",
    };
    let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    let note = response.extensions().get::<AuditNote>().map_or("", |note| note.0.as_str());
    tracing::info!(target: "audit", key = who, peer, what, status = response.status().as_u16(), note, "a change was asked for");
}

/// Whether a request comes from this host, and no proxy has passed it on.
pub(super) fn is_here(peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    peer.is_some_and(|peer| peer.to_canonical().is_loopback())
        && !PROXY_HEADERS.iter().any(|name| headers.contains_key(*name))
}

fn is_from_a_page(headers: &HeaderMap) -> bool {
    let elsewhere = |site: &HeaderValue| site != "none" && site != "same-origin";
    headers.contains_key(header::ORIGIN) || headers.get_all("sec-fetch-site").iter().any(elsewhere)
}

fn bearer(credential: &HeaderValue) -> Option<&str> {
    let (scheme, key) = credential.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Whether everything in a request that says whom it asks says what is allowed. Browsers always say it; who says
/// nothing is no page.
fn all_hosts(uri: &Uri, headers: &HeaderMap, allowed: impl Fn(&str) -> bool) -> bool {
    let stated =
        headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(|host| allowed(without_port(host))));
    stated && uri.host().is_none_or(|host| allowed(host.trim_start_matches('[').trim_end_matches(']')))
}

/// The name or address of `host[:port]`, without the brackets of an IPv6 address.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

fn is_loopback_name(host: &str) -> bool {
    is_localhost(host) || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_address_or_localhost(host: &str) -> bool {
    is_localhost(host) || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::keys::NewKey;
    use super::*;
    use axum::http::HeaderName;

    const HERE: &str = "127.0.0.1";
    const ELSEWHERE: &str = "10.0.0.9";

    struct Asked {
        needs: Needs,
        peer: &'static str,
        headers: Vec<(&'static str, String)>,
        certified: Option<&'static str>,
    }

    fn asked(needs: Needs, peer: &'static str, headers: &[(&'static str, &str)]) -> Asked {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Asked { needs, peer, headers, certified: None }
    }

    fn judge(access: &Access, asked: &Asked) -> Result<Caller, &'static str> {
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let uri = Uri::from_static("/v1/node/drain");
        let certified = asked.certified.map(|id| CertifiedKey(id.into()));
        let caller = (asked.peer.parse().ok(), certified.as_ref());
        access.judge(asked.needs, caller, &uri, &headers).map_err(Refusal::label)
    }

    const READ: Needs = Needs::Read(Scope::UsersRead);
    const CHANGE: Needs = Needs::Change(Scope::Kick);
    const LOCAL: (&str, &str) = ("host", "127.0.0.1:7780");

    fn key(scopes: &[Scope]) -> (String, ApiKeys) {
        let made = NewKey::make("ops", scopes).unwrap();
        (format!("Bearer {}", made.key), ApiKeys::parse(&made.line).unwrap())
    }

    #[test]
    fn without_keys_this_host_may_do_everything_and_nobody_else_anything() {
        let access = Access::new(None, false);
        for needs in [READ, CHANGE, Needs::AnyKey] {
            for host in ["127.0.0.1:7780", "localhost:7780", "LOCALHOST", "127.9.9.9", "[::1]:7780", "[::1]"] {
                assert_eq!(judge(&access, &asked(needs, HERE, &[("host", host)])), Ok(Caller::Anybody), "{host}");
                assert_eq!(judge(&access, &asked(needs, "::1", &[("host", host)])), Ok(Caller::Anybody), "{host}");
                assert_eq!(judge(&access, &asked(needs, ELSEWHERE, &[("host", host)])), Err("no_keys_file"), "{host}");
            }
            assert_eq!(judge(&access, &asked(needs, HERE, &[])), Ok(Caller::Anybody), "no browser leaves Host out");
            assert_eq!(judge(&access, &asked(needs, "nowhere", &[LOCAL])), Err("no_keys_file"));
        }
        assert_eq!(judge(&access, &asked(Needs::Nothing, ELSEWHERE, &[("origin", "http://x")])), Ok(Caller::Anybody));
    }

    #[test]
    fn no_web_page_gets_anything_from_this_host() {
        let (credential, keys) = key(&[Scope::Kick, Scope::UsersRead]);
        for access in [Access::new(None, false), Access::new(None, true), Access::new(Some(keys), false)] {
            for needs in [READ, CHANGE, Needs::AnyKey] {
                for page in [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
                    for credential in [None, Some(credential.as_str())] {
                        let mut headers = vec![LOCAL, page];
                        headers.extend(credential.map(|credential| ("authorization", credential)));
                        assert_eq!(judge(&access, &asked(needs, HERE, &headers)), Err("origin"), "{needs:?} {page:?}");
                    }
                }
                if needs != CHANGE {
                    for host in
                        ["evil.example:7780", "localhost.evil.example", "10.0.0.9:7780", "[::1", "", "127.0.0.1.nip.io"]
                    {
                        assert_eq!(judge(&access, &asked(needs, HERE, &[("host", host)])), Err("host"), "{host}");
                    }
                    assert_eq!(judge(&access, &asked(needs, HERE, &[LOCAL, ("host", "evil.example")])), Err("host"));
                }
            }
        }
        let access = Access::new(None, false);
        assert_eq!(judge(&access, &asked(CHANGE, HERE, &[("host", "evil.example:7780")])), Err("host"));
        let absolute = Uri::from_static("http://evil.example/v1/node/drain");
        let judged = access.judge(CHANGE, (HERE.parse().ok(), None), &absolute, &HeaderMap::new());
        assert_eq!(judged, Err(Refusal::Host));
    }

    #[test]
    fn with_keys_changes_need_one_here_too_and_everything_does_elsewhere() {
        let (credential, keys) = key(&[Scope::Kick]);
        let access = Access::new(Some(keys), false);
        assert_eq!(judge(&access, &asked(READ, HERE, &[LOCAL])), Ok(Caller::Anybody));
        assert_eq!(judge(&access, &asked(CHANGE, HERE, &[LOCAL])), Err("no_key"));
        for needs in [READ, CHANGE, Needs::AnyKey] {
            assert_eq!(judge(&access, &asked(needs, ELSEWHERE, &[LOCAL])), Err("no_key"));
        }
        let with =
            |needs, credential: &str| asked(needs, ELSEWHERE, &[("host", "gate"), ("authorization", credential)]);
        let ops = Ok(Caller::Key("ops".to_owned(), vec![Scope::Kick]));
        assert_eq!(judge(&access, &with(CHANGE, &credential)), ops);
        assert_eq!(judge(&access, &with(Needs::AnyKey, &credential)), ops);
        assert_eq!(judge(&access, &with(READ, &credential)), Err("scope"));
        assert_eq!(judge(&access, &with(Needs::ChangeOfOne(&[Scope::Login, Scope::Kick]), &credential)), ops);
        assert_eq!(judge(&access, &with(Needs::ChangeOfOne(&[Scope::Login]), &credential)), Err("scope"));
        assert_eq!(judge(&access, &asked(Needs::ChangeOfOne(&[Scope::Kick]), HERE, &[LOCAL])), Err("no_key"));
        assert_eq!(judge(&access, &with(CHANGE, &credential.replace("Bearer", "bearer"))), ops);
        for wrong in ["", "Bearer", "Bearer tlk_ops_00", &credential[7..], &credential.replace("Bearer", "Basic")] {
            assert_eq!(judge(&access, &with(CHANGE, wrong)), Err("unknown_key"), "{wrong}");
        }
        // Another file: the key before is nobody's, from the next request on.
        let (other, keys) = key(&[Scope::Kick]);
        access.set_keys(keys);
        assert_eq!(judge(&access, &with(CHANGE, &credential)), Err("unknown_key"));
        assert_eq!(judge(&access, &with(CHANGE, &other)), ops);
    }

    #[test]
    fn what_a_proxy_passes_on_is_not_from_this_host() {
        for name in PROXY_HEADERS {
            let request = asked(READ, HERE, &[LOCAL, (name, "203.0.113.9")]);
            assert_eq!(judge(&Access::new(None, false), &request), Err("no_keys_file"), "{name}");
            assert_eq!(judge(&Access::new(Some(key(&[Scope::Kick]).1), false), &request), Err("no_key"), "{name}");
        }
    }

    #[test]
    fn open_to_all_means_all_but_pages() {
        let access = Access::new(None, true);
        for host in ["gate.internal:7780", "10.0.0.1:7780"] {
            assert_eq!(judge(&access, &asked(READ, ELSEWHERE, &[("host", host)])), Ok(Caller::Anybody));
        }
        assert_eq!(judge(&access, &asked(CHANGE, ELSEWHERE, &[("host", "10.0.0.1:7780")])), Ok(Caller::Anybody));
        assert_eq!(judge(&access, &asked(CHANGE, ELSEWHERE, &[("host", "evil.example:7780")])), Err("host"));
    }

    #[test]
    fn every_refusal_is_counted_and_the_log_has_few_of_them() {
        let access = Access::new(None, false);
        for refusal in Refusal::ALL {
            assert!(access.refuse(refusal, None, "GET /").status().is_client_error());
        }
        let metrics = access.metrics();
        assert!(metrics[0].samples.iter().all(|(_, count)| *count == 1), "{metrics:?}");
        assert_eq!(metrics[0].samples.len(), Refusal::ALL.len());
        assert_eq!(access.logged.lock().unwrap().since, Refusal::ALL.len() as u64 - 1);
    }

    #[test]
    fn a_certificate_stands_for_the_key_that_it_names_and_a_key_in_the_request_goes_before_it() {
        let (bearer, _) = key(&[Scope::Kick]);
        let line = NewKey::make("other", &[Scope::Kick]).unwrap().line;
        let access = |text: &str| Access::new(Some(ApiKeys::parse(text).unwrap()), false);
        let by_name = access("ops = { scopes = [\"kick\"] }");
        let ask = |access: &Access, certified, headers: &[(&'static str, &str)]| {
            judge(access, &Asked { certified, ..asked(CHANGE, ELSEWHERE, headers) })
        };
        assert!(matches!(ask(&by_name, Some("ops"), &[]), Ok(Caller::Key(id, _)) if id == "ops"));
        assert_eq!(ask(&by_name, Some("nobody"), &[]), Err("unknown_key"));
        assert_eq!(ask(&by_name, None, &[]), Err("no_key"));
        assert_eq!(ask(&access("ops = { scopes = [\"drain\"] }"), Some("ops"), &[]), Err("scope"));
        assert_eq!(ask(&by_name, Some("ops"), &[("origin", "https://a.example")]), Err("origin"));
        assert_eq!(ask(&by_name, Some("ops"), &[("authorization", &bearer)]), Err("unknown_key"));
        assert_eq!(ask(&access(&line), Some("ops"), &[]), Err("unknown_key"), "another key has no such name");
        assert_eq!(
            ask(&Access::new(None, false), Some("ops"), &[]),
            Err("no_keys_file"),
            "without keys it says nothing"
        );
    }
}
