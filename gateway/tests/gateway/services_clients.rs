//! The client library at both ends of a call; and workers that are processes of their own, killed, stopped and drained
//! under load.

use crate::support::client::{Client as RawClient, Event as RawEvent};
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::scratch::ScratchFile;
use crate::support::wait_for;
use crate::support::wire::{Frame, kind};
use crate::support::worker::{WITH_SERVICES, services_address};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use trunkline_client::service::{Answer, Parts, Push, PushReport, Request, Service, ServiceError};
use trunkline_client::{Call, Client, Code, Config, Error, Event, Outcome};
use trunkline_proto::call_flags;

const SERVICE: u16 = 7;
/// What a worker of the load test is told: where to connect, how it is called, and the file to write down what it does.
const WORKER_VARIABLE: &str = "TRUNKLINE_TEST_WORKER";

fn config(addr: SocketAddr, user: u64) -> Config {
    Config { addrs: vec![addr.to_string()], user, ..Config::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn the_library_calls_serves_and_pushes() {
    let flags = [&WITH_SERVICES[..], &["--service", "7:echo,call_timeout_ms=500"]].concat();
    with_gateway(2, &flags, |gateway| {
        runtime().block_on(async {
            let service = Service::connect(services_address(gateway).to_string(), "echo-1")
                .with_heads()
                .serve(SERVICE, |request: Request| async move {
                    let device = request.head.map(|head| head.device).unwrap_or_default();
                    match &request.body[..] {
                        b"refuse" => Answer::not_begun(),
                        b"status" => Answer::status(300, "mine"),
                        b"slow" => {
                            tokio::time::sleep(Duration::from_secs(60)).await;
                            Answer::ok("late")
                        }
                        body => Answer::ok(format!("{} {device} {}", request.user, String::from_utf8_lossy(body))),
                    }
                })
                .serve_in_parts(SERVICE + 1, |request: Request, parts: Parts| async move {
                    let too_long = parts.send(vec![0_u8; 70_000]).await;
                    assert!(matches!(too_long, Err(ServiceError::AnswerTooLarge { .. })), "{too_long:?}");
                    for word in request.body.split(|byte| *byte == b' ') {
                        parts.send(word.to_vec()).await.expect("there is a link");
                    }
                    Answer::status(301, "all")
                })
                .start()
                .await
                .expect("the worker starts");
            let (client, mut events) =
                Client::connect(Config { device: "phone".into(), ..config(gateway.client_address(), 1) })
                    .await
                    .expect("a login");
            // A link for each shard, whatever shard the user is on.
            let until = Instant::now() + Duration::from_secs(20);
            while service.links() < 2 && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(service.links(), 2);
            let reply = loop {
                match client.call(SERVICE, "hello").await {
                    Ok(reply) => break reply,
                    // The second link's shard has not told of itself yet.
                    Err(Error::Call { code: 17 | 18, .. }) if Instant::now() < until => {}
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!((reply.status, &reply.body[..], reply.parts.len()), (0, &b"1 phone hello"[..], 0));
            assert_eq!(client.call(SERVICE, "status").await.expect("an answer").status, 300);
            let code = |result: Result<_, Error>| match result {
                Err(error @ Error::Call { .. }) => {
                    let may_be_done = error.may_be_done();
                    let Error::Call { code, .. } = error else { unreachable!("matched above") };
                    (Code::from_u16(code).expect("a code"), may_be_done)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(code(client.call(SERVICE, "refuse").await), (Code::Overloaded, false));
            assert_eq!(code(client.call(SERVICE, "slow").await), (Code::TimedOut, true));
            assert_eq!(code(client.call(9, "nobody").await), (Code::UnknownService, false));
            let reply = client.call(SERVICE + 1, "one two three").await.expect("an answer");
            assert_eq!((reply.status, &reply.body[..]), (301, &b"all"[..]));
            assert_eq!(reply.parts, ["one", "two", "three"]);
            let safe = client.call_with(Call::new(SERVICE, "again").safe().routing_key(3)).await;
            assert_eq!(&safe.expect("an answer").body[..], b"1 phone again");

            let pushing = async { service.push(SERVICE, 1, "news").await.expect("a fate") };
            let taking = async {
                let Some(Event::Message(message)) = events.next().await else { panic!("a push") };
                assert_eq!((message.service(), message.text()), (Some(SERVICE), Some("news")));
                // It is acknowledged when the next event is asked for.
                let _ = tokio::time::timeout(Duration::from_millis(500), events.next()).await;
            };
            let (outcome, ()) = tokio::join!(pushing, taking);
            assert_eq!(outcome, Outcome::Delivered);
            assert_eq!(service.push(SERVICE, 99, "nobody").await.expect("a fate"), Outcome::OfflineNotStored);
            service.drain().await;
            assert_eq!(code(client.call(SERVICE, "gone").await), (Code::ServiceUnavailable, false));
            client.close().await;
        });
    });
}

#[test]
fn a_worker_pushes_from_its_handlers_and_hears_of_an_answer_that_is_left_out() {
    const ROOM: u64 = (1 << 63) + 5;
    const LONG: u16 = 8;
    const NOT_SERVED: u16 = 9;
    let flags = [&WITH_SERVICES[..], &["--service", "7:shop,call_timeout_ms=60000"]].concat();
    let flags = [&flags[..], &["--service", "8:long,call_timeout_ms=100"]].concat();
    with_gateway(1, &flags, |gateway| {
        runtime().block_on(async {
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let builder = Service::connect(services_address(gateway).to_string(), "shop-1")
                .on_error(move |error| drop(tell.send(error.to_string())));
            let pusher = builder.pusher();
            let service = builder
                .serve(SERVICE, move |request: Request| {
                    let pusher = pusher.clone();
                    async move {
                        let push = Push::to_users([request.user, 99], "from the handler");
                        let report = pusher.push_with(SERVICE, push).await.expect("a report");
                        Answer::ok(format!("{} {}", report.delivered, report.offline))
                    }
                })
                .serve(LONG, |_| async { Answer::ok(vec![0; 1 << 20]) })
                .start()
                .await
                .expect("the worker starts");
            let (client, mut events) = Client::connect(config(gateway.client_address(), 1)).await.expect("a login");
            client.join_group(ROOM).await.expect("joined");
            let taking = async {
                let Some(Event::Message(message)) = events.next().await else { panic!("a push") };
                assert_eq!((message.service(), message.text()), (Some(SERVICE), Some("from the handler")));
                events.next().await
            };
            let acting = async {
                let reply = client.call(SERVICE, "buy").await.expect("an answer");
                assert_eq!(&reply.body[..], b"1 1", "the user has it, and nobody else is there");
                let report = service.push_with(SERVICE, Push::to_group(ROOM, "to all")).await.expect("a report");
                assert_eq!(report, PushReport { accepted: 1, ..PushReport::default() });
            };
            let (event, ()) = tokio::join!(taking, acting);
            let Some(Event::GroupMessage(message)) = event else { panic!("a message to the room") };
            assert_eq!((message.group, message.text()), (ROOM, Some("to all")));

            let not_served = service.push(NOT_SERVED, 1, "x").await;
            assert!(matches!(not_served, Err(ServiceError::NotServed { service: NOT_SERVED })), "{not_served:?}");
            let nobody = service.push_with(SERVICE, Push::to_user(0, "x")).await;
            let is_bad = matches!(nobody, Err(ServiceError::Refused { code, .. }) if code == Code::BadRequest.as_u16());
            assert!(is_bad, "{nobody:?}");
            // Not an answer with nothing in it.
            let long = client.call(LONG, "").await;
            assert!(long.as_ref().is_err_and(Error::may_be_done), "{long:?}");
            let told = told.recv().await.expect("a word");
            assert!(told.contains("an answer of 1048576 bytes was left out"), "{told}");
            service.drain().await;
            client.close().await;
        });
    });
}

#[test]
fn the_javascript_worker_serves_pushes_drains_and_comes_back() {
    let js = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("client/js");
    assert!(js.join("dist/service.js").exists(), "client/js is not built: run scripts/setup.sh");
    let mut node = Command::new("node");
    node.arg(js.join("test/with_service.mjs")).arg(env!("CARGO_BIN_EXE_gateway"));
    let output = node.output().expect("run the worker");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"all well\n", "{said}");
}

/// Not a test: the process of a worker, which this test program becomes when it is told so.
#[test]
#[ignore = "a worker of the test below"]
fn worker_process() {
    let Ok(told) = std::env::var(WORKER_VARIABLE) else { return };
    let [addr, name, ledger] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let ledger = std::sync::Arc::new(OpenOptions::new().append(true).open(ledger).expect("the ledger"));
    runtime().block_on(async {
        let handler = move |request: Request| {
            let ledger = ledger.clone();
            async move {
                // One write, so that lines of several workers do not mix.
                (&*ledger).write_all(format!("{} {}\n", request.user, request.id).as_bytes()).expect("write it down");
                tokio::time::sleep(Duration::from_millis(3)).await;
                Answer::ok(request.body)
            }
        };
        let service = Service::connect(addr, name).window(32).serve(SERVICE, handler).start().await;
        let service = service.expect("the worker starts");
        let mut ends = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("a signal");
        ends.recv().await;
        service.drain().await;
    });
}

struct WorkerProcess(Child);

impl WorkerProcess {
    fn start(gateway: &Gateway, name: &str, ledger: &ScratchFile) -> Self {
        let told = format!("{} {name} {}", services_address(gateway), ledger.path());
        let child = Command::new(std::env::current_exe().expect("this test program"))
            .args(["services_clients::worker_process", "--exact", "--ignored", "--nocapture"])
            .env(WORKER_VARIABLE, told)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("start a worker");
        WorkerProcess(child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("send a signal");
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // It may have ended as the test wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls without a pause until `until`, eight at a time, every other one SAFE. Returns how many ended with each status.
fn caller(mut client: RawClient, until: Instant) -> BTreeMap<u16, u64> {
    let (mut open, mut ended, mut statuses) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    let mut next = 1;
    let last_words = until + Duration::from_secs(20);
    while Instant::now() < until || !open.is_empty() {
        assert!(Instant::now() < last_words, "{} calls without a last REPLY", open.len());
        while open.len() < 8 && Instant::now() < until {
            let flags = if next % 2 == 0 { call_flags::SAFE } else { 0 };
            let body = b"payload".to_vec();
            client.write(&Frame { kind: kind::CALL, flags, aux: SERVICE, id: next, body, ..Frame::default() });
            open.insert(next);
            next += 1;
        }
        match client.read_event(Duration::from_millis(200)) {
            RawEvent::Frame(frame) => {
                assert_eq!(frame.kind, kind::REPLY, "{frame:?}");
                assert!(open.remove(&frame.id), "a second REPLY: {frame:?}");
                assert!(ended.insert(frame.id));
                *statuses.entry(frame.aux).or_insert(0) += 1;
            }
            RawEvent::TimedOut => {}
            RawEvent::Closed => panic!("the session has ended"),
        }
    }
    statuses
}

#[test]
fn workers_that_are_killed_stopped_and_drained_under_load_cost_no_reply_and_nothing_runs_twice() {
    let flags = [&WITH_SERVICES[..], &["--service", "7:load,call_timeout_ms=700,policy=least-conn"]].concat();
    with_gateway(2, &flags, |gateway| {
        let ledger = ScratchFile::new("calls", "");
        let mut workers: Vec<WorkerProcess> =
            ["killed", "stopped", "drained", "stays"].map(|name| WorkerProcess::start(gateway, name, &ledger)).into();
        gateway.wait_for_metrics("all workers are linked", |metrics| metrics.sum("trunkline_service_links", &[]) == 8);
        let until = Instant::now() + Duration::from_secs(4);
        let callers: Vec<_> = (1..=4)
            .map(|user| {
                let client = RawClient::login(gateway, user);
                std::thread::spawn(move || caller(client, until))
            })
            .collect();
        let second = Duration::from_millis(800);
        std::thread::sleep(second);
        workers[0].signal(Signal::KILL);
        std::thread::sleep(second);
        workers[1].signal(Signal::STOP);
        std::thread::sleep(second);
        workers[2].signal(Signal::TERM);
        let drained = wait_for("the drained worker ends", || workers[2].0.try_wait().expect("wait for it"));
        assert!(drained.success());
        let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
        for caller in callers {
            for (status, count) in caller.join().expect("a caller") {
                *statuses.entry(status).or_insert(0) += count;
            }
        }
        workers[1].signal(Signal::CONT);
        // 24: of the stopped one. 25: of the killed one. Nothing else was ever lacking.
        assert!(statuses.keys().all(|status| [0, 24, 25].contains(status)), "{statuses:?}");
        assert!(statuses[&0] > 100, "{statuses:?}");
        let text = std::fs::read_to_string(ledger.path()).expect("the ledger");
        let mut done: BTreeMap<&str, u32> = BTreeMap::new();
        text.lines().for_each(|line| *done.entry(line).or_insert(0) += 1);
        let is_safe = |line: &str| line.split(' ').nth(1).is_some_and(|id| id.parse::<u64>().expect("an id") % 2 == 0);
        let twice: Vec<_> = done.iter().filter(|(line, times)| **times > 1 && !is_safe(line)).collect();
        assert!(twice.is_empty(), "not SAFE, and carried out twice: {twice:?}");
        assert!(done.values().all(|times| *times <= 2), "nothing is tried a third time");
        assert!(done.len() as u64 >= statuses[&0]);
        workers.clear();
    });
}
