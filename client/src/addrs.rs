//! Which address to try next: those configured, those learnt, and the one a gateway has just named.

use std::collections::VecDeque;

/// Addresses of gateways that were learnt from others and took a login. With more, the one that has not been used for
/// longest is forgotten.
const LEARNT_MAX: usize = 16;

/// Redirections followed in a row, without a session that lasted in between. The next one is ignored, and the addresses
/// known are tried in turn: so two nodes that send a client to each other do not keep it from the others.
const REDIRECTS_MAX: u32 = 4;

/// A DNS name has at most 253 bytes.
const HOST_BYTES_MAX: usize = 253;

/// Longest path of a WebSocket in bytes. A gateway takes a head of 8,192 bytes in all.
const PATH_BYTES_MAX: usize = 1_024;

/// Where a gateway has its WebSocket: the path of an address without one.
const PATH_DEFAULT: &str = "/ws";

/// How an address may say what is spoken there; without it that is up to who dials.
const OVER_TCP: &str = "trunkline://";
const OVER_TLS: &str = "trunkline+tls://";
const WEBSOCKET: &str = "ws://";
const WEBSOCKET_OVER_TLS: &str = "wss://";

/// What an address says of how it is reached, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Nothing.
    Any,
    /// Over TCP, in clear.
    Tcp,
    /// Over TLS.
    Tls,
    /// Through a WebSocket, in clear.
    Ws,
    /// Through a WebSocket over TLS.
    Wss,
}

impl Scheme {
    /// Of an address.
    pub(crate) fn of(addr: &str) -> (Scheme, &str) {
        let schemes = [
            (OVER_TLS, Scheme::Tls),
            (OVER_TCP, Scheme::Tcp),
            (WEBSOCKET, Scheme::Ws),
            (WEBSOCKET_OVER_TLS, Scheme::Wss),
        ];
        let found = schemes.iter().find_map(|(prefix, scheme)| Some((*scheme, addr.strip_prefix(prefix)?)));
        found.unwrap_or((Scheme::Any, addr))
    }
}

/// Where a WebSocket is: `ws://host:port/path` or `wss://host:port/path`. Without a port it is that of HTTP or HTTPS,
/// without a path that of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WebSocketUrl<'a> {
    /// `ws://` or `wss://`.
    prefix: &'static str,
    /// With its brackets, if it is an IPv6 address.
    host: &'a str,
    /// Its digits, if it is said and not the usual one.
    port: Option<&'a str>,
    port_default: &'static str,
    path: &'a str,
}

impl<'a> WebSocketUrl<'a> {
    /// Reads an address; `None` if its scheme is another, or what follows is not as it should be.
    pub(crate) fn read(addr: &'a str) -> Option<Self> {
        let (prefix, port_default, rest) = match Scheme::of(addr) {
            (Scheme::Ws, rest) => (WEBSOCKET, "80", rest),
            (Scheme::Wss, rest) => (WEBSOCKET_OVER_TLS, "443", rest),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { PATH_DEFAULT } else { path };
        // A fragment is no part of what is asked for.
        let path_is_good = path.len() <= PATH_BYTES_MAX && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        let has_port = authority.rfind(':') > authority.rfind(']');
        let (host, port) = match authority.rsplit_once(':').filter(|_| has_port) {
            Some((host, port)) => (host, port),
            None => (authority, port_default),
        };
        let is_good = path_is_good && is_host(host) && is_port(port);
        let port = Some(port).filter(|port| *port != port_default);
        is_good.then_some(WebSocketUrl { prefix, host, port, port_default, path })
    }

    /// What is asked for.
    #[cfg(feature = "ws")]
    pub(crate) fn path(&self) -> &'a str {
        self.path
    }

    /// Whom to connect to: scheme, host and port.
    #[cfg(feature = "ws")]
    pub(crate) fn server(&self) -> String {
        let WebSocketUrl { prefix, host, port, port_default, .. } = self;
        format!("{prefix}{host}:{}", port.unwrap_or(port_default))
    }

    /// What the field `Host` of a request says.
    #[cfg(feature = "ws")]
    pub(crate) fn host_field(&self) -> String {
        // The zone of an address is this machine's own matter.
        let host = match self.host.split_once('%') {
            Some((address, _)) => format!("{address}]"),
            None => self.host.to_owned(),
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// What the gateway at `from` means with `host:port`: the same transport there. An address with a scheme says itself
/// what it means.
pub(crate) fn redirected_from(from: &str, redirect: &str) -> String {
    match WebSocketUrl::read(from) {
        Some(url) if Scheme::of(redirect).0 == Scheme::Any => format!("{}{redirect}{}", url.prefix, url.path),
        _ => redirect.to_owned(),
    }
}

/// Whether this is `host:port`: a name, an IPv4 address, or an IPv6 address in brackets, and a port other than 0. In
/// front of it there may be a scheme; that of a WebSocket has its own form.
pub(crate) fn is_address(addr: &str) -> bool {
    let (scheme, rest) = Scheme::of(addr);
    if matches!(scheme, Scheme::Ws | Scheme::Wss) {
        return WebSocketUrl::read(addr).is_some();
    }
    rest.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port))
}

fn is_host(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let host_is_good = match bracketed {
        // With a zone, as in fe80::1%eth0.
        Some(v6) => v6.contains(':') && v6.chars().all(|c| plain(c) || c == ':' || c == '%'),
        None => host.chars().all(plain),
    };
    !host.is_empty() && host.len() <= HOST_BYTES_MAX && host_is_good
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The addresses of one client.
#[derive(Debug)]
pub(crate) struct AddressBook {
    seeds: Vec<String>,
    /// The latest used first.
    learnt: VecDeque<String>,
    /// Where the latest login worked; `None` when it has failed since.
    last: Option<String>,
    /// Named by a gateway, to be tried next.
    redirect: Option<String>,
    redirects: u32,
    /// What is left of this round, in which each address is tried once.
    round: VecDeque<String>,
}

impl AddressBook {
    pub(crate) fn new(seeds: &[String]) -> Self {
        let mut book = Self {
            seeds: seeds.to_vec(),
            learnt: VecDeque::new(),
            last: None,
            redirect: None,
            redirects: 0,
            round: VecDeque::new(),
        };
        book.begin_round();
        book
    }

    /// The address to try now. A redirection goes first, then the address that worked last, the seeds in their order,
    /// and those learnt, the latest used first; then all over again.
    pub(crate) fn next(&mut self) -> String {
        if let Some(redirect) = self.redirect.take() {
            return redirect;
        }
        if self.round.is_empty() {
            self.begin_round();
        }
        self.round.pop_front().unwrap_or_default()
    }

    /// Whether every address has been tried since the last login, and no redirection waits.
    pub(crate) fn all_tried(&self) -> bool {
        self.redirect.is_none() && self.round.is_empty()
    }

    /// A gateway has named an address.
    pub(crate) fn redirected(&mut self, addr: &str) {
        if self.redirects < REDIRECTS_MAX {
            self.redirects += 1;
            self.redirect = Some(addr.to_owned());
        } else {
            self.redirects = 0;
        }
    }

    /// A login at this address worked.
    pub(crate) fn worked(&mut self, addr: &str) {
        self.learnt.retain(|known| known != addr);
        if !self.seeds.iter().any(|seed| seed == addr) {
            self.learnt.push_front(addr.to_owned());
            self.learnt.truncate(LEARNT_MAX);
        }
        self.last = Some(addr.to_owned());
        self.begin_round();
    }

    /// A login at this address failed.
    pub(crate) fn failed(&mut self, addr: &str) {
        self.last.take_if(|last| last == addr);
    }

    /// The session has lasted for long enough to trust that the client is where it should be.
    pub(crate) fn settled(&mut self) {
        self.redirects = 0;
    }

    /// The gateway of the last session wants its clients to go elsewhere: it is the last to be tried.
    pub(crate) fn leave_last(&mut self) {
        if let Some(last) = self.last.take() {
            self.begin_round();
            self.round.retain(|addr| *addr != last);
            self.round.push_back(last);
        }
    }

    fn begin_round(&mut self) {
        self.round.clear();
        for addr in self.last.iter().chain(&self.seeds).chain(&self.learnt) {
            if !self.round.contains(addr) {
                self.round.push_back(addr.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(seeds: &[&str]) -> AddressBook {
        AddressBook::new(&seeds.iter().map(|seed| (*seed).to_owned()).collect::<Vec<_>>())
    }

    fn take(book: &mut AddressBook, count: usize) -> Vec<String> {
        (0..count).map(|_| book.next()).collect()
    }

    #[test]
    fn names_and_addresses_with_a_port_are_taken_and_nothing_else() {
        for good in [
            "localhost:7700",
            "a.example:1",
            "10.0.0.1:65535",
            "[::1]:7700",
            "[fe80::1%eth0]:7",
            "my_host:80",
            "trunkline+tls://a:1",
            "wss://a",
            "ws://a:1/",
            "wss://[::1]/x?y=z",
            "ws://[::1]:8080",
        ] {
            assert!(is_address(good), "{good}");
        }
        let long = format!("{}:1", "x".repeat(254));
        for bad in [
            "",
            ":",
            "localhost",
            "localhost:",
            ":7700",
            "localhost:0",
            "localhost:65536",
            "localhost:+1",
            "::1:7700",
            "[::1]",
            "[]:1",
            "[localhost]:1",
            "http://a:1",
            "user@host:1",
            "a b:1",
            "a\n:1",
            "a:1 ",
            "caf\u{e9}:1",
            "ws://",
            "ws:///ws",
            "ws://a:",
            "ws://a:0/ws",
            "ws://user@a/ws",
            "ws://a?b",
            "wss://a/#b",
            "wss://a/b c",
            "wss://a/\r\nX: y",
            "wss://::1/ws",
            "ws://ws://a:1",
            &long,
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[cfg(feature = "ws")]
    #[test]
    fn an_address_of_a_websocket_says_whom_to_connect_to_and_what_to_ask_for() {
        for (addr, server, host, path) in [
            ("wss://a", "wss://a:443", "a", "/ws"),
            ("ws://a", "ws://a:80", "a", "/ws"),
            ("wss://a:443/", "wss://a:443", "a", "/"),
            ("wss://a:80/chat?x=1", "wss://a:80", "a:80", "/chat?x=1"),
            ("ws://[fe80::1%eth0]:7700/ws", "ws://[fe80::1%eth0]:7700", "[fe80::1]:7700", "/ws"),
            ("ws://[::1]", "ws://[::1]:80", "[::1]", "/ws"),
        ] {
            let url = WebSocketUrl::read(addr).expect("an address");
            assert_eq!((&url.server()[..], &url.host_field()[..], url.path()), (server, host, path), "{addr}");
        }
    }

    #[test]
    fn a_redirection_keeps_scheme_and_path() {
        for (from, to, expected) in [
            ("a:1", "b:2", "b:2"),
            ("trunkline+tls://a:1", "b:2", "b:2"),
            ("wss://a/x", "b:2", "wss://b:2/x"),
            ("ws://a:1", "[::1]:2", "ws://[::1]:2/ws"),
            ("wss://a/x", "wss://b/y", "wss://b/y"),
            ("wss://a/x", "trunkline://b:1", "trunkline://b:1"),
        ] {
            assert_eq!(redirected_from(from, to), expected, "from {from} to {to}");
        }
    }

    #[test]
    fn seeds_are_tried_in_turn_again_and_again() {
        let mut book = book(&["a:1", "b:1", "a:1"]);
        assert_eq!(take(&mut book, 2), ["a:1", "b:1"]);
        assert!(book.all_tried());
        assert_eq!(take(&mut book, 3), ["a:1", "b:1", "a:1"]);
    }

    #[test]
    fn a_learnt_address_is_kept_and_tried_first_until_it_fails() {
        let mut book = book(&["a:1", "b:1"]);
        book.redirected("c:1");
        assert_eq!(take(&mut book, 1), ["c:1"]);
        book.worked("c:1");
        assert_eq!(take(&mut book, 4), ["c:1", "a:1", "b:1", "c:1"]);
        book.failed("c:1");
        // The round under way goes on; the next one begins with the seeds and still has it.
        assert_eq!(take(&mut book, 2), ["a:1", "b:1"]);
        assert_eq!(take(&mut book, 3), ["a:1", "b:1", "c:1"]);
        // A login elsewhere does not make it forgotten either.
        book.worked("b:1");
        assert_eq!(take(&mut book, 3), ["b:1", "a:1", "c:1"]);
    }

    #[test]
    fn learnt_addresses_are_bounded_and_the_latest_used_stay() {
        let mut book = book(&["a:1"]);
        for number in 0..100 {
            book.worked(&format!("n{number}:1"));
            book.worked("often:1");
        }
        assert_eq!(book.learnt.len(), LEARNT_MAX);
        assert!(book.learnt[0] == "often:1" && book.learnt[1] == "n99:1" && book.learnt[15] == "n85:1");
    }

    #[test]
    fn redirections_in_a_row_are_bounded() {
        let mut book = book(&["a:1", "b:1"]);
        let mut tried = Vec::new();
        for _ in 0..12 {
            let addr = book.next();
            tried.push(addr.clone());
            // x and y send each other their clients, and the seeds send theirs to x.
            book.redirected(if addr == "x:1" { "y:1" } else { "x:1" });
        }
        assert_eq!(tried, ["a:1", "x:1", "y:1", "x:1", "y:1", "b:1", "x:1", "y:1", "x:1", "y:1", "a:1", "x:1"]);
    }

    #[test]
    fn a_gateway_that_is_to_be_left_is_tried_last() {
        let mut book = book(&["a:1", "b:1", "c:1"]);
        book.worked("b:1");
        book.leave_last();
        assert_eq!(take(&mut book, 3), ["a:1", "c:1", "b:1"]);
        assert_eq!(take(&mut book, 3), ["a:1", "b:1", "c:1"]);
    }
}
