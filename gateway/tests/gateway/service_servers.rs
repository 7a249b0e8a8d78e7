//! Servers of a service that the gateway dials: the client library's worker that listens, its end and its return.

use crate::support::gateway::{Gateway, with_gateway};
use crate::support::http;
use crate::support::scratch::ScratchFile;
use serde_json::Value;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use trunkline_client::service::{Answer, Request, Service, ServiceError};
use trunkline_client::{Client, Config, Error, Outcome};
use trunkline_proto::prost::Message;
use trunkline_proto::{Bye, Invite, Kind, VERSION, decode, encode_message};
use trunkline_router::http::{NewKey, Scope};

const SERVICE: u16 = 7;
const GATEWAY_KEY: &str = "what-the-gateway-shows";

/// A worker that listens, on a port of its own or on this one again.
async fn listen(address: SocketAddr, key: &str, says: &'static str) -> Service {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let service = Service::listen(address.to_string(), "orders-1")
            .token(key)
            .gateway_key(GATEWAY_KEY)
            .serve(SERVICE, move |request: Request| async move { Answer::ok(format!("{says} {}", request.user)) });
        match service.start().await {
            Ok(service) => return service,
            // The port is free when the last connection of the one before has gone.
            Err(ServiceError::Io(_)) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The only server of the only service, as the HTTP API shows it.
fn server(gateway: &Gateway) -> Value {
    let services = gateway.get("/v1/services").json();
    services["services"][0]["servers"][0].clone()
}

/// Waits until the only server is in this state with so many links.
async fn wait_for_server(gateway: &Gateway, state: &str, links: u64) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let server = server(gateway);
        if server["state"] == state && server["links"] == links {
            return;
        }
        assert!(Instant::now() < until, "not {state} with {links} links: {server}\n{}", gateway.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Who does not show the key is told nothing but BYE 6, and not the worker's own key.
fn assert_turns_strangers_away(address: SocketAddr) {
    let mut stranger = TcpStream::connect(address).expect("connect to the worker");
    let invite = Invite { version: VERSION, service: SERVICE.into(), links: 1, link: 1, ..Invite::default() };
    let mut bytes = Vec::new();
    encode_message(&mut bytes, Kind::Invite, 0, &invite);
    std::io::Write::write_all(&mut stranger, &bytes).expect("write to the worker");
    stranger.set_read_timeout(Some(Duration::from_secs(20))).expect("a read timeout");
    let mut said = Vec::new();
    stranger.read_to_end(&mut said).expect("the worker ends it");
    let (frame, len) = decode(&said, 65_536).expect("a frame").expect("whole");
    assert_eq!((frame.known(), frame.aux, len), (Some(Kind::Bye), 6, said.len()));
    assert!(Bye::decode(frame.body).is_ok_and(|bye| bye.text.contains("key")));
}

#[test]
fn a_server_that_is_dialed_serves_goes_and_comes_back() {
    let worker_key = NewKey::make("orders", &[Scope::Serve(SERVICE)]).expect("a key");
    let ops_key = NewKey::make("ops", &[Scope::ServicesWrite]).expect("a key");
    let keys = ScratchFile::new("keys.toml", format!("{}\n{}", worker_key.line, ops_key.line));
    let shown = ScratchFile::new("shown.key", format!("{GATEWAY_KEY}\n"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let any = "127.0.0.1:0".parse().expect("an address");
    let first = runtime.block_on(listen(any, &worker_key.key, "first"));
    let address = first.local_addr().expect("it listens");
    let text = format!("7:orders,server={address} weight=3 max_conns=9,key_file={}", shown.path());
    with_gateway(2, &["--service", &text, "--api-keys-file", keys.path()], |gateway| {
        runtime.block_on(async {
            wait_for_server(gateway, "serving", 2).await;
            let services = gateway.get("/v1/services").json();
            let instance = &services["services"][0]["instances"][0];
            assert_eq!(instance["name"], address.to_string());
            assert_eq!((&instance["weight"], &instance["window"]), (&Value::from(3), &Value::from(9)));
            let config = Config { addrs: vec![gateway.client_address().to_string()], user: 5, ..Config::default() };
            let (client, _events) = Client::connect(config).await.expect("a login");
            let said = client.call(SERVICE, "one, please").await.expect("an answer");
            assert_eq!((said.status, &said.body[..]), (0, &b"first 5"[..]));
            let pushing = first.push(SERVICE, 99, "nobody is there");
            assert_eq!(pushing.await.expect("a fate"), Outcome::OfflineNotStored);
            assert_turns_strangers_away(address);

            let set = |state: &str| {
                let path = format!("/v1/services/{SERVICE}/instances/{address}");
                let headers = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", ops_key.key);
                let body = format!("{{\"state\":\"{state}\"}}");
                let answer =
                    http::exchange(gateway.http_address(), "PATCH", &path, &headers, &body).expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.body);
                answer.json()["state"].clone()
            };
            assert_eq!(set("drain"), "drain");
            let drained = client.call(SERVICE, "not now").await;
            assert!(matches!(drained, Err(Error::Call { code: 18, .. })), "{drained:?}");

            first.drain().await;
            wait_for_server(gateway, "failing", 0).await;
            let gone = client.call(SERVICE, "another one").await;
            assert!(matches!(gone, Err(Error::Call { code: 18, .. })), "{gone:?}");

            let second = listen(address, &worker_key.key, "second").await;
            wait_for_server(gateway, "serving", 2).await;
            let drained = client.call(SERVICE, "still not").await;
            assert!(matches!(drained, Err(Error::Call { code: 18, .. })), "what was said outlives links: {drained:?}");
            assert_eq!(set("active"), "active");
            let said = client.call(SERVICE, "and one more").await.expect("an answer");
            assert_eq!(&said.body[..], b"second 5");
            second.drain().await;
            client.close().await;
        });
        let log = gateway.log();
        let lines = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        assert_eq!(lines("a server that is dialed takes calls"), 2, "one line for each change:\n{log}");
        let metrics = gateway.metrics();
        let of = |reason: &str| metrics.sum("trunkline_service_dial_failures_total", &[("reason", reason)]);
        assert!(of("logged_out") + of("lost") >= 2, "{log}");
        assert_eq!((of("key"), of("strange"), of("silent")), (0, 0, 0), "{log}");
    });
}
