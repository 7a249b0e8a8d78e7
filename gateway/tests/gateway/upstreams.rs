//! Calls to HTTP servers: back-ends of this test behind a real gateway.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::wait_for;
use crate::support::wire::{Frame, kind};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use trunkline_proto::call_flags;

/// A request as a back-end got it.
#[derive(Clone, Debug)]
struct Got {
    line: String,
    headers: HashMap<String, String>,
    body: String,
    /// The connection it came by, counted from 0.
    connection: usize,
}

/// A server of HTTP/1.1 that does what the body of a request says, and writes down all that it was asked.
#[derive(Clone, Debug)]
struct Backend {
    address: SocketAddr,
    ledger: Arc<Mutex<Vec<Got>>>,
    /// Requests to hang whose connection the gateway has closed.
    gone: Arc<Mutex<usize>>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let backend = Backend { address, ledger: Arc::default(), gone: Arc::default() };
        let own = backend.clone();
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let own = own.clone();
                thread::spawn(move || own.serve(stream, connection));
            }
        });
        backend
    }

    fn ledger(&self) -> Vec<Got> {
        self.ledger.lock().expect("the ledger").clone()
    }

    /// How often this was carried out.
    fn times(&self, body: &str) -> usize {
        self.ledger().iter().filter(|got| got.body == body).count()
    }

    fn serve(&self, stream: TcpStream, connection: usize) {
        let mut writer = stream.try_clone().expect("a second handle");
        let mut reader = BufReader::new(stream);
        while let Some(got) = request(&mut reader, connection) {
            let body = got.body.clone();
            self.ledger.lock().expect("the ledger").push(got);
            let (word, rest) = body.split_once(' ').unwrap_or((&body, ""));
            let answer = match word {
                "status" => format!("HTTP/1.1 {rest} Said\r\nContent-Length: 4\r\n\r\nsaid"),
                "own" => format!("HTTP/1.1 200 OK\r\nTrunkline-Status: {rest}\r\nContent-Length: 3\r\n\r\nown"),
                "pieces" => {
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n".to_owned()
                }
                "parts" => {
                    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrunkline-Parts: lines\r\n\r\n";
                    let end = if rest == "break" { "" } else { "5\r\nthree\r\n0\r\n\r\n" };
                    format!("{head}8\r\none\ntwo\n\r\n{end}")
                }
                "long" => format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000)),
                "half" => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_owned(),
                "hang" => {
                    // Until the gateway closes.
                    let _ = reader.read(&mut [0]);
                    *self.gone.lock().expect("the count") += 1;
                    return;
                }
                "break" => return,
                _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            };
            if writer.write_all(answer.as_bytes()).is_err() || word == "half" || rest == "break" {
                return;
            }
        }
    }
}

/// The next request of a connection; `None` at its end.
fn request(reader: &mut BufReader<TcpStream>, connection: usize) -> Option<Got> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut headers = HashMap::new();
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let Some((name, value)) = field.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got { line: line.trim().to_owned(), headers, body: String::from_utf8(body).expect("text"), connection })
}

fn call(service: u16, id: u64, flags: u8, body: &str) -> Frame {
    Frame { kind: kind::CALL, flags, aux: service, id, peer: 0, stamp: 0, body: body.as_bytes().to_vec() }
}

/// Calls, and gives status and text of the REPLY.
fn ask(client: &mut Client, service: u16, id: u64, flags: u8, body: &str) -> (u16, String) {
    client.write(&call(service, id, flags, body));
    let frame = client.recv();
    assert_eq!((frame.kind, frame.id, frame.flags), (kind::REPLY, id, 0), "{frame:?}");
    (frame.aux, String::from_utf8(frame.body).expect("text"))
}

/// With all clients gone every call that came in has ended in one way, and every request as well.
fn assert_books(gateway: &Gateway) {
    gateway.wait_for_metrics("calls are accounted for", |metrics| {
        let of = |name: &str| metrics.sum(name, &[]);
        of("trunkline_calls_received_total") == of("trunkline_calls_total")
            && of("trunkline_upstream_requests_total") == of("trunkline_upstream_ends_total")
            && of("trunkline_calls_open") == 0
            && of("trunkline_upstream_calls_waiting") == 0
            && of("trunkline_upstream_requests_under_way") == 0
            && of("trunkline_upstream_bytes") == 0
    });
}

/// An address where nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

#[test]
fn calls_go_to_http_servers_and_every_one_gets_what_its_answer_means() {
    let (one, three) = (Backend::start(), Backend::start());
    let (a, b, nobody) = (one.address, three.address, nobody());
    let services = [
        format!("7:orders,transport=http,call_timeout_ms=60000,keepalive_secs=600,server=http://{a}/calls?v=1"),
        format!("8:slow,transport=http,call_timeout_ms=300,server={a}"),
        format!("9:both,transport=http,call_timeout_ms=60000,server={a},server={b} weight=3"),
        format!("10:half,transport=http,call_timeout_ms=60000,server={nobody} max_fails=0,server={b}"),
        format!("11:none,transport=http,call_timeout_ms=60000,server={nobody}"),
        format!("12:safe,transport=http,idempotent,call_timeout_ms=60000,server={a},server={b}"),
    ];
    let flags: Vec<&str> = services.iter().flat_map(|service| ["--service", service]).collect();
    with_gateway(2, &flags, |gateway| {
        let mut client = Client::login(gateway, 42);
        let trace: Vec<u8> = (1..=25).collect();
        let traced = Frame { peer: 5, ..call(7, 1, call_flags::TRACE, "") };
        client.write(&Frame { body: [&trace[..], b"hello"].concat(), ..traced });
        let reply = client.recv();
        assert_eq!(
            (reply.kind, reply.aux, reply.id, reply.peer, &reply.body[..]),
            (kind::REPLY, 0, 1, 5, &b"hello"[..])
        );
        let got = one.ledger()[0].clone();
        assert_eq!((got.line.as_str(), got.body.as_str()), ("POST /calls?v=1 HTTP/1.1", "hello"));
        let of = |name: &str| got.headers.get(name).map(String::as_str).unwrap_or("");
        assert_eq!((of("trunkline-user"), of("trunkline-request-id"), of("trunkline-service")), ("42", "1", "7"));
        assert_eq!((of("idempotency-key"), of("trunkline-key"), of("host")), ("42-1", "5", a.to_string().as_str()));
        assert_eq!(of("traceparent"), "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-19");
        assert!((1..=60_000).contains(&of("trunkline-timeout-ms").parse::<u64>().expect("a time")));
        assert!(of("trunkline-session").parse::<u64>().expect("a session") > 0);

        let mut id = 1;
        for (says, status, text) in [
            ("pieces", 0, "onetwo"),
            ("own 300", 300, "own"),
            ("own 14", 25, ""),
            ("status 404", 20, "404"),
            ("status 429", 14, "429"),
            ("status 503", 14, "503"),
            ("status 500", 25, "500"),
            ("long", 25, ""),
            ("half", 25, ""),
            ("break", 25, ""),
        ] {
            id += 1;
            let (got, body) = ask(&mut client, 7, id, 0, says);
            assert_eq!(got, status, "{says}: {body}");
            assert!(body.contains(text), "{says}: {body}");
            assert_eq!(one.times(says), 1, "{says} was carried out twice");
        }
        let connections: Vec<usize> = one.ledger().iter().map(|got| got.connection).collect();
        assert!(connections[..8].iter().all(|connection| *connection == 0), "one connection is kept: {connections:?}");

        for (says, parts, last) in
            [("parts", &["one", "two", "three"][..], 0), ("parts break", &["one", "two"][..], 25)]
        {
            id += 1;
            client.write(&call(7, id, call_flags::SAFE, says));
            for part in parts {
                let frame = client.recv();
                assert_eq!(
                    (frame.kind, frame.id, frame.flags),
                    (kind::REPLY, id, call_flags::MORE),
                    "{says}: {frame:?}"
                );
                assert_eq!((frame.aux, frame.body), (0, part.as_bytes().to_vec()), "{says}");
            }
            let frame = client.recv();
            assert_eq!((frame.kind, frame.id, frame.flags, frame.aux), (kind::REPLY, id, 0, last), "{says}: {frame:?}");
            assert_eq!(one.times(says), 1, "{says} was carried out twice");
        }

        assert_eq!(ask(&mut client, 8, 100, 0, "hang").0, 24);
        wait_for("the gateway has closed", || (*one.gone.lock().expect("the count") == 1).then_some(()));

        (200..=599).for_each(|id| assert_eq!(ask(&mut client, 9, id, 0, "share").0, 0));
        assert_eq!((one.times("share"), three.times("share")), (100, 300));

        (600..=603).for_each(|id| assert_eq!(ask(&mut client, 10, id, 0, "refused elsewhere").0, 0));
        assert_eq!(three.times("refused elsewhere"), 4);
        assert_eq!(ask(&mut client, 11, 700, 0, "nowhere").0, 18);

        // Of a service whose calls may be carried out twice, one that broke goes to the other server, and then no more.
        assert_eq!(ask(&mut client, 12, 800, 0, "break").0, 25);
        assert_eq!((one.times("break"), three.times("break")), (2, 1));
        assert!(one.ledger().iter().chain(&three.ledger()).any(|got| got.headers.contains_key("trunkline-again")));

        // The session ends while its call hangs: the back-end sees the connection close.
        client.write(&call(7, 900, 0, "hang"));
        wait_for("it hangs", || (one.times("hang") == 2).then_some(()));
        drop(client);
        wait_for("the gateway has closed", || (*one.gone.lock().expect("the count") == 2).then_some(()));
        assert_books(gateway);
    });
}

#[test]
fn a_server_that_hangs_holds_up_nobody_else_and_takes_no_more_than_it_may() {
    let (hangs, works) = (Backend::start(), Backend::start());
    let (a, b) = (hangs.address, works.address);
    let services = [
        format!("7:hangs,transport=http,call_timeout_ms=600000,queue=8,server={a} max_conns=4"),
        format!("8:works,transport=http,call_timeout_ms=60000,server={b}"),
    ];
    let flags: Vec<&str> = services.iter().flat_map(|service| ["--service", service]).collect();
    with_gateway(1, &flags, |gateway| {
        let (mut stuck, mut other) = (Client::login(gateway, 1), Client::login(gateway, 2));
        (1..=20).for_each(|id| stuck.write(&call(7, id, 0, "hang")));
        // Four are carried out and eight wait; there is no room for the others.
        let refused: Vec<(u64, u16)> = (0..8).map(|_| stuck.recv()).map(|frame| (frame.id, frame.aux)).collect();
        assert_eq!(refused, (13..=20).map(|id| (id, 14)).collect::<Vec<_>>());
        (1..=50).for_each(|id| assert_eq!(ask(&mut other, 8, id, 0, "quick"), (0, "quick".to_owned())));
        gateway.wait_for_metrics("the calls hang", |metrics| {
            metrics.sum("trunkline_upstream_requests_under_way", &[]) == 4
                && metrics.sum("trunkline_upstream_calls_waiting", &[]) == 8
        });
        assert!(hangs.ledger().iter().all(|got| got.connection < 4), "max_conns is exact");
        // Nobody waits for them any more: four connections are closed, and what waited is carried out by nobody.
        drop(stuck);
        wait_for("the gateway has closed", || (*hangs.gone.lock().expect("the count") == 4).then_some(()));
        gateway.wait_for_metrics("all are counted", |metrics| {
            metrics.sum("trunkline_calls_total", &[("outcome", "session_ended")]) == 12
        });
        assert_eq!(hangs.times("hang"), 4);
        drop(other);
        assert_books(gateway);
    });
}
