//! The router's own HTTP API over TLS.

use crate::http_support::{Answer, Router};
use crate::support::certificates::{Signed, Signer, text};
use crate::support::redis_cluster::wait_until;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::Write;
use std::sync::Arc;

/// Nobody listens there: what is asked for here does not need Redis.
const NO_REDIS: &str = "redis-cluster://127.0.0.1:1";

/// The answer to a request by somebody who trusts this signer alone; `None` if there is no TLS with the router then.
fn ask(router: &Router, signer: &Signer, path: &str) -> Option<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(signer.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let client = ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, router.connect());
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    Some(Answer::read(&mut stream))
}

#[test]
fn the_router_speaks_tls_with_the_certificate_of_the_last_reload_that_was_whole() {
    let (first, second) = (Signer::new(), Signer::new());
    let of = |signer: &Signer| signer.sign("router", "IP:127.0.0.1");
    let (Signed { cert, key }, other) = (of(&first), of(&second));
    let router = Router::start_unready(NO_REDIS, &["--http-tls-cert", text(&cert), "--http-tls-key", text(&key)]);
    assert_eq!(ask(&router, &first, "/healthz").expect("TLS").status, 200);
    assert!(ask(&router, &second, "/healthz").is_none(), "a certificate that nobody trusts was taken");
    let in_clear = router.get("/healthz");
    assert!(in_clear.status == 400 && in_clear.body.contains("https://"), "{in_clear:?}");

    // A pair that does not belong together changes nothing, and is told.
    fs::copy(&other.cert, &cert).unwrap();
    router.signal("-HUP");
    wait_until("the reason is told", || router.said().contains("cannot be used together"));
    assert_eq!(ask(&router, &first, "/healthz").expect("TLS").status, 200);
    fs::copy(&other.key, &key).unwrap();
    router.signal("-HUP");
    wait_until("the new one is served", || ask(&router, &second, "/healthz").is_some_and(|it| it.status == 200));
    assert!(ask(&router, &first, "/healthz").is_none());
    router.finish();
}
