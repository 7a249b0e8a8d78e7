//! Redis over TLS, with a real server: whom it is spoken to, and whom not.

use crate::http_support::Router;
use crate::support::certificates::{Signed, Signer, text};
use crate::support::plane::record;
use crate::support::redis_cluster::{RedisAlone, free_ports, wait_until};
use std::fs;
use std::path::Path;
use std::time::Duration;
use trunkline_router::redis::{Plane, PlaneError, PresenceEntry, PresenceWrite, RedisConfig, TlsFiles, WriteOutcome};

/// A cluster of one server, which speaks TLS on a port of its own.
struct Secure {
    _redis: RedisAlone,
    port: u16,
}

impl Secure {
    /// `asks` is whether clients have to show a certificate.
    fn start(signer: &Signer, server: &Signed, asks: bool) -> Self {
        let port = free_ports(1)[0];
        let ca = signer.ca();
        let flags = [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", text(&server.cert).to_owned()),
            ("--tls-key-file", text(&server.key).to_owned()),
            ("--tls-ca-cert-file", text(&ca).to_owned()),
            ("--tls-auth-clients", if asks { "yes" } else { "no" }.to_owned()),
            ("--tls-cluster", "yes".to_owned()),
            ("--requirepass", "hush".to_owned()),
        ];
        let flags: Vec<&str> = flags.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
        let redis = RedisAlone::start(true, &flags);
        redis.serve_all_slots("hush");
        Secure { _redis: redis, port }
    }

    fn url(&self) -> String {
        format!("rediss-cluster://:hush@127.0.0.1:{}", self.port)
    }

    /// What comes of connecting with these files.
    fn connect(&self, files: &TlsFiles) -> Result<Plane, PlaneError> {
        let mut config = RedisConfig::parse(&self.url()).unwrap();
        config.load_tls(files).unwrap();
        config.connect_timeout = Duration::from_secs(20);
        config.command_timeout = Duration::from_secs(10);
        runtime().block_on(async {
            // It has been told to serve all slots, and says so a moment later.
            let mut connected = Plane::connect(&config).await;
            while matches!(connected, Err(PlaneError::ClusterDown { .. })) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                connected = Plane::connect(&config).await;
            }
            let plane = connected?;
            let incarnation = plane.acquire(&record("secure"), 60_000).await.unwrap();
            assert_eq!(plane.poll().await.unwrap()[0].incarnation, incarnation);
            let entry = PresenceEntry {
                device: "default".into(),
                node: "secure".into(),
                incarnation,
                shard: 1,
                session: 2,
                since_ms: 3,
                class: "".into(),
                version: 4,
            };
            let written = plane.write(&[PresenceWrite::Login { user: 5, entry: entry.clone() }]).await;
            assert_eq!(written, [Ok(WriteOutcome::Written)]);
            assert_eq!(plane.user(5).await, Ok(vec![entry]));
            plane.release("secure", incarnation).await.unwrap();
            plane.close().await;
            Ok(plane)
        })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn with_ca(path: &Path) -> TlsFiles {
    TlsFiles { ca: Some(path.to_owned()), ..TlsFiles::default() }
}

#[test]
fn a_server_whose_signer_is_trusted_is_spoken_to_and_no_other() {
    let signer = Signer::new();
    let server = signer.sign("server", "IP:127.0.0.1");
    let redis = Secure::start(&signer, &server, false);
    redis.connect(&with_ca(&signer.ca())).unwrap();

    let stranger = Signer::new();
    for files in [with_ca(&stranger.ca()), TlsFiles::default()] {
        let error = redis.connect(&files).unwrap_err();
        assert!(matches!(error, PlaneError::Tls { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("--redis-ca-file") && text.contains(&redis.port.to_string()), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }
    // Without TLS nothing is told to it, the password least of all, that it could answer.
    let plain = RedisConfig::parse(&redis.url().replace("rediss", "redis")).unwrap();
    let error = runtime().block_on(Plane::connect(&plain)).unwrap_err();
    assert!(error.may_pass(), "{error:?}");
}

#[test]
fn a_certificate_of_another_server_is_refused() {
    let signer = Signer::new();
    let other = signer.sign("other", "DNS:other.example,IP:127.0.0.2");
    let redis = Secure::start(&signer, &other, false);
    let error = redis.connect(&with_ca(&signer.ca())).unwrap_err();
    assert!(matches!(error, PlaneError::Tls { .. }), "{error:?}");
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_it() {
    let signer = Signer::new();
    let server = signer.sign("server", "IP:127.0.0.1");
    let redis = Secure::start(&signer, &server, true);
    let client = signer.sign("client", "DNS:client.example");
    let files = TlsFiles { cert: Some(client.cert.clone()), key: Some(client.key.clone()), ..with_ca(&signer.ca()) };
    redis.connect(&files).unwrap();
    // With TLS 1.3 the client is through before the server has looked, so it learns by the end of the connection.
    let error = redis.connect(&with_ca(&signer.ca())).unwrap_err();
    assert!(matches!(error, PlaneError::Tls { .. } | PlaneError::Unreachable { .. }), "{error:?}");

    let half = TlsFiles { cert: None, ..files.clone() };
    let mut config = RedisConfig::parse(&redis.url()).unwrap();
    assert!(config.load_tls(&half).unwrap_err().to_string().contains("--redis-cert-file"));
    let nothing = signer.file("nothing.pem");
    fs::write(&nothing, "no certificate\n").unwrap();
    for files in
        [with_ca(&nothing), with_ca(Path::new("/no/such/file")), TlsFiles { key: Some(nothing.clone()), ..files }]
    {
        let error = config.load_tls(&files).unwrap_err();
        assert!(error.path.is_some() && !error.to_string().contains("hush"), "{error}");
    }
}

#[test]
fn the_router_speaks_tls_and_does_not_print_the_password() {
    let signer = Signer::new();
    let server = signer.sign("server", "IP:127.0.0.1");
    let redis = Secure::start(&signer, &server, false);
    let ca = signer.ca();
    let router = Router::start(&redis.url(), &["--redis-ca-file", text(&ca)]);
    assert_eq!(router.get("/v1/nodes").good()["nodes"], serde_json::json!([]));
    assert!(!router.said().contains("hush"), "{}", router.said());
    router.finish();

    // The folder of this signer is gone.
    let stranger = Signer::new().ca();
    let (status, _, said) = crate::http_support::run(&["--redis", &redis.url(), "--redis-ca-file", text(&stranger)]);
    assert!(status == Some(1) && said.contains("TLS to Redis") && !said.contains("hush"), "{said}");
    let wrong = Signer::new();
    let wrong_ca = wrong.ca();
    let router = Router::start_unready(&redis.url(), &["--redis-ca-file", text(&wrong_ca)]);
    wait_until("/readyz says why", || {
        let ready = router.get("/readyz").body;
        ready.contains("no TLS with Redis") && !ready.contains("hush")
    });
    router.finish();
}
