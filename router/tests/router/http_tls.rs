//! The router's own HTTP API over TLS.

use crate::http_support::{Answer, Router};
use crate::support::certificates::{Signed, Signer, text};
use crate::support::redis_cluster::wait_until;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;

/// Nobody listens there: what is asked for here does not need Redis.
const NO_REDIS: &str = "redis-cluster://127.0.0.1:1";

/// The answer to a request by somebody who trusts this signer alone; `None` if there is no TLS with the router then.
fn ask(router: &Router, signer: &Signer, path: &str) -> Option<Answer> {
    ask_as(None, router, signer, path, "localhost")
}

/// The same by a caller who shows a certificate, and asks it of `host`.
fn ask_as(caller: Option<&Signed>, router: &Router, signer: &Signer, path: &str, host: &str) -> Option<Answer> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(signer.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let config = Arc::new(match caller {
        None => config.with_no_client_auth(),
        Some(Signed { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_file(cert).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    });
    let client = ClientConnection::new(config, "127.0.0.1".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, router.connect());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    // One whose certificate is refused may be told so behind the request only.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok().filter(|_| !answer.is_empty())?;
    Some(Answer::read(&mut answer.as_slice()))
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

#[test]
fn a_caller_has_the_scopes_of_the_key_that_its_certificate_names() {
    let (ours, strangers) = (Signer::new(), Signer::new());
    let Signed { cert, key } = ours.sign("router", "IP:127.0.0.1");
    let keys = ours.file("keys.toml");
    // One of them has no secret, so it is for certificates alone.
    let with_secret = format!("[app]\nsha256 = \"{}\"\nscopes = [\"login\"]\n", "0".repeat(64));
    fs::write(&keys, format!("{with_secret}[ops]\nscopes = [\"nodes:read\"]\n")).unwrap();
    let ca = ours.ca();
    let flags = [
        ["--http-tls-cert", text(&cert)],
        ["--http-tls-key", text(&key)],
        ["--http-tls-client-ca", text(&ca)],
        ["--api-keys-file", text(&keys)],
    ];
    let router = Router::start_unready(NO_REDIS, flags.as_flattened());
    let named = |signer: &Signer, id: &str| signer.sign(id, &format!("URI:urn:trunkline:key:{id}"));
    let asks =
        |caller: &Signed| ask_as(Some(caller), &router, &ours, "/v1/nodes", "router.example").map(|it| it.status);
    // There is no Redis, hence 503 for who may ask.
    assert_eq!(asks(&named(&ours, "ops")), Some(503));
    assert_eq!(asks(&named(&ours, "app")), Some(403), "it has another scope");
    assert_eq!(asks(&named(&ours, "nobody")), Some(401), "it is not in the keys file");
    let unnamed = ours.sign("plain", "URI:urn:example:key:ops");
    let without = ask_as(None, &router, &ours, "/v1/nodes", "localhost").map(|it| it.status);
    let asked = ask_as(Some(&unnamed), &router, &ours, "/v1/nodes", "localhost").map(|it| it.status);
    assert_eq!(asked, without, "it names no key, which is as none");
    assert_eq!(asks(&named(&strangers, "ops")), None, "nobody trusts who has signed it");
    router.finish();
}
