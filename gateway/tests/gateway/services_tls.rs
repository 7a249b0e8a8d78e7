//! TLS on the services' port.

use crate::support::client::Client as RawClient;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::tls::{Identity, TlsClient};
use crate::support::wire::{Login, kind};
use crate::support::worker::{WITH_SERVICES, Worker, serve, services_address};
use crate::support::{ONE_AND_MANY, PATIENCE};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;
use trunkline_client::service::{Answer, Request, Service, ServiceError};
use trunkline_client::{Client, Config, Error, Tls};
use trunkline_proto::prost::Message;
use trunkline_proto::{Kind, ServeOk, decode, encode_message};

const SERVICE: u16 = 7;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A worker of the library that echoes, over TLS.
async fn echo(gateway: &Gateway, identity: &Identity) -> Result<Service, ServiceError> {
    let tls = Tls::trusting(&fs::read(identity.cert.path()).expect("a certificate")).expect("one to trust");
    let address = format!("trunkline+tls://localhost:{}", services_address(gateway).port());
    let service = Service::connect(address, "over-tls").tls(tls);
    service.serve(SERVICE, |request: Request| async move { Answer::ok(request.body) }).start().await
}

/// Reads the first frame, with nothing behind it, which must be SERVE_OK.
fn read_serve_ok(worker: &mut TlsClient) -> ServeOk {
    let mut bytes = Vec::new();
    loop {
        if let Some((frame, _)) = decode(&bytes, u32::MAX).expect("frames of the gateway") {
            assert_eq!(frame.known(), Some(Kind::ServeOk));
            return ServeOk::decode(frame.body).expect("a ServeOk");
        }
        let mut buffer = [0; 4_096];
        let length = worker.stream.read(&mut buffer).expect("read from the gateway");
        assert!(length > 0, "closed in place of SERVE_OK");
        bytes.extend_from_slice(&buffer[..length]);
    }
}

fn handshakes(gateway: &Gateway, outcome: &str) -> u64 {
    gateway.metrics().sum("trunkline_tls_handshakes_total", &[("outcome", outcome)])
}

#[test]
fn a_worker_over_tls_serves_and_one_in_clear_does_beside_it() {
    let identity = Identity::new();
    // What all clients have to do does not bind workers.
    let flags = [&identity.flags()[..], &WITH_SERVICES, &["--tls-required"]].concat();
    with_each_gateway(ONE_AND_MANY, &flags, |gateway| {
        runtime().block_on(async {
            let service = echo(gateway, &identity).await.expect("the worker starts");
            let tls = Tls::trusting(&fs::read(identity.cert.path()).expect("a certificate")).expect("one to trust");
            let address = format!("trunkline+tls://localhost:{}", gateway.client_address().port());
            let config = Config { addrs: vec![address], user: 1, ..Config::default() };
            let (client, _events) = Client::connect_with(config, tls).await.expect("a login");
            let until = Instant::now() + PATIENCE;
            // From nothing to several records; a longer one is no frame.
            for size in [0, 1, 5_000, 60_000] {
                let body = vec![7; size];
                let reply = loop {
                    match client.call(SERVICE, body.clone()).await {
                        Ok(reply) => break reply,
                        // The user's shard has not heard of the worker yet.
                        Err(Error::Call { code: 17 | 18, .. }) if Instant::now() < until => {}
                        Err(error) => panic!("{error}"),
                    }
                };
                assert!(reply.body[..] == body[..], "{size} bytes");
            }
            service.drain().await;
        });
        let worker = Worker::start(gateway, &serve("in-clear", SERVICE.into(), 0));
        drop(worker);
    });
}

#[test]
fn where_tls_is_required_a_worker_in_clear_is_told_nothing_and_its_key_is_not_looked_at() {
    let identity = Identity::new();
    let flags = [&identity.flags()[..], &WITH_SERVICES, &["--services-tls-required"]].concat();
    with_gateway(2, &flags, |gateway| {
        let mut in_clear = TcpStream::connect(services_address(gateway)).expect("connect");
        in_clear.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Serve, 0, &serve("in-clear", SERVICE.into(), 0));
        in_clear.write_all(&bytes).expect("write");
        let mut answer = Vec::new();
        // It may be a reset: what it wrote was not read to the end.
        drop(in_clear.read_to_end(&mut answer));
        assert!(answer.is_empty(), "{answer:?}");
        gateway.wait_for_metrics("it was counted", |metrics| metrics.closed("unknown_transport") == 1);

        // The first frame over TLS is SERVE as well, and nothing else is spoken there, whatever was agreed on.
        let address = services_address(gateway);
        let mut login = TlsClient::connect_to(address, &identity.any());
        login.write(&Login::of(1).frame());
        login.expect_bye(4);
        let mut http = TlsClient::connect_to(address, &identity.any_of_http());
        http.stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
        assert_eq!(http.next(), None, "closed without an answer");
        for shard in 0..2 {
            let mut worker = TlsClient::connect_to(address, &identity.any_of_http());
            let mut bytes = Vec::new();
            encode_message(&mut bytes, Kind::Serve, 0, &serve("over-tls", SERVICE.into(), shard));
            worker.stream.write_all(&bytes).expect("write");
            assert_eq!(read_serve_ok(&mut worker).shard, shard, "handed over with its keys");
            worker.ping();
        }
        assert_eq!((handshakes(gateway, "full"), handshakes(gateway, "failed")), (4, 0));
        // Clients go on in clear: it is said of workers alone.
        let mut client = RawClient::login(gateway, 1);
        client.write(&crate::support::wire::ping(1));
        assert!(client.recv_kind(kind::PONG).body.is_empty());
    });
}
