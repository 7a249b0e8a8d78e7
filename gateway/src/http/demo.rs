//! The page for trying a node in a browser: `gateway --demo`. Its files are in the binary, and it loads nothing from
//! elsewhere.
//!
//! | file | what it is |
//! |---|---|
//! | `demo/page.html`, `demo/app.css`, `demo/app.js`, `demo/icon.svg` | the page |
//! | `demo/trunkline.js` | the client of `client/js` as `npm run build` makes it; its tests hold the two against each other |

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use axum::http::header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use trunkline_router::command::near;

/// Where the page is.
pub const PATH: &str = "/demo";

/// What the page loads: path, media type and bytes.
pub(super) const FILES: [(&str, &str, &str); 4] = [
    ("/demo/app.css", "text/css; charset=utf-8", include_str!("demo/app.css")),
    ("/demo/app.js", "text/javascript; charset=utf-8", include_str!("demo/app.js")),
    ("/demo/trunkline.js", "text/javascript; charset=utf-8", include_str!("demo/trunkline.js")),
    ("/demo/icon.svg", "image/svg+xml", include_str!("demo/icon.svg")),
];
const PAGE: &str = include_str!("demo/page.html");

/// The page, and what it has to know of its node.
#[derive(Clone, Debug)]
pub struct Demo {
    /// Where clients connect.
    listen: SocketAddr,
    http: SocketAddr,
    /// Whether a LOGIN needs a token.
    token: bool,
}

/// What the page asks for first.
#[derive(Serialize)]
struct PageConfig {
    /// Where the WebSocket is.
    url: String,
    /// Whether a LOGIN needs a token.
    token: bool,
}

impl Demo {
    /// The page of a node that takes clients at `listen` and serves HTTP at `http`; with `token` the page asks for one.
    pub fn new(listen: SocketAddr, http: SocketAddr, token: bool) -> Self {
        Demo { listen, http, token }
    }

    /// Origins of the page: the names by which a browser on this host reaches the HTTP API, and its address.
    ///
    /// An API that listens everywhere has more names than are known here; such a page connects where `--ws-origin`
    /// lists its origin.
    pub fn origins(&self) -> Vec<String> {
        let http = near(self.http);
        let mut origins = vec![format!("http://{http}")];
        if http.ip().is_loopback() {
            origins.push(format!("http://localhost:{}", http.port()));
        }
        origins
    }

    /// The routes: static files for whoever reaches the API, which need no right. What the page shows of users it asks
    /// the API for.
    pub fn router(self) -> Router {
        let page = self.clone();
        let mut router = Router::new()
            .route(PATH, get(async move |headers: HeaderMap| page.page(&headers)))
            .route("/demo/config.json", get(async move |headers: HeaderMap| self.config(&headers)));
        for (path, media_type, text) in FILES {
            router = router.route(path, get(async move || file(media_type, text)));
        }
        router
    }

    fn page(&self, headers: &HeaderMap) -> Response {
        let mut response = file("text/html; charset=utf-8", PAGE);
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            self.websocket(headers)
        );
        // Made of an address or of a name of letters, digits, dots and hyphens.
        if let Ok(policy) = HeaderValue::try_from(policy) {
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        }
        response
    }

    fn config(&self, headers: &HeaderMap) -> Response {
        let url = format!("{}/ws", self.websocket(headers));
        ([(CACHE_CONTROL, "no-store")], Json(PageConfig { url, token: self.token })).into_response()
    }

    /// Where the page's WebSocket connects, without a path. A content security policy knows no IPv6 addresses, so that
    /// of loopback is named.
    fn websocket(&self, headers: &HeaderMap) -> String {
        let port = self.listen.port();
        match self.listen.ip() {
            ip if ip.is_unspecified() => match asked_name(headers) {
                Some(name) => format!("ws://{name}:{port}"),
                None => format!("ws://localhost:{port}"),
            },
            IpAddr::V6(_) => format!("ws://localhost:{port}"),
            IpAddr::V4(ip) => format!("ws://{ip}:{port}"),
        }
    }
}

impl fmt::Display for Demo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins = self.origins();
        write!(f, "demo on {}{PATH} (pages of {} may connect)", origins[0], origins.join(" and "))
    }
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, media_type),
        (CACHE_CONTROL, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

/// The name or IPv4 address by which the page was asked for.
fn asked_name(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
    is_plain.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::upgrade::{Request, Rules, read};

    fn demo(listen: &str, http: &str) -> Demo {
        Demo::new(listen.parse().unwrap(), http.parse().unwrap(), false)
    }

    fn asked_as(host: &str) -> HeaderMap {
        HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())])
    }

    #[test]
    fn its_pages_may_connect_and_no_others() {
        let demo = demo("127.0.0.1:7700", "127.0.0.1:7780");
        let rules = Rules { origins: demo.origins(), ..Rules::default() };
        let answer = |origin: &str| {
            let head = format!(
                "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:7700\r\nOrigin: {origin}\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            );
            matches!(read(&rules, head.as_bytes(), 0), Ok(Some((Request::Upgrade(_), _))))
        };
        for origin in ["http://127.0.0.1:7780", "http://localhost:7780", "http://LOCALHOST:7780"] {
            assert!(answer(origin), "{origin}");
        }
        for origin in ["http://127.0.0.1:7781", "http://localhost", "http://evil.example:7780", "null"] {
            assert!(!answer(origin), "{origin}");
        }
    }

    #[test]
    fn the_page_connects_where_the_node_listens() {
        let plain = demo("127.0.0.1:7700", "127.0.0.1:7780");
        let everywhere = demo("0.0.0.0:7700", "0.0.0.0:7780");
        for (demo, host, wanted) in [
            (&plain, "localhost:7780", "ws://127.0.0.1:7700"),
            (&everywhere, "gate.example:7780", "ws://gate.example:7700"),
            (&everywhere, "192.0.2.7:7780", "ws://192.0.2.7:7700"),
            // Nothing of a name that is none gets into a header.
            (&everywhere, "a;b 'unsafe-inline':7780", "ws://localhost:7700"),
            (&demo("[::1]:7700", "[::1]:7780"), "[::1]:7780", "ws://localhost:7700"),
        ] {
            assert_eq!(demo.websocket(&asked_as(host)), wanted, "{host}");
        }
    }
}
