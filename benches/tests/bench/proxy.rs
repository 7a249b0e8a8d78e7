//! A real gateway behind a proxy that does something to its messages.
//!
//! The proxy passes bytes on, and knows where the gateway's frames begin. It counts the messages delivered on all
//! connections; the fault happens at one of them.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;
use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Kind, decode, flags};

use crate::scenarios::gateway;

/// What the proxy does to a message on its way to its recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Drop,
    Double,
    /// The next message on the same connection comes first.
    Reorder,
    CorruptPayload,
    /// The time at which it was sent, from which its latency is told.
    CorruptTime,
    /// It says that it was sent before.
    MarkAgain,
    /// Nothing passes for so long, in either direction, on any connection.
    Stall(Duration),
}

/// How long a thread waits for bytes before it looks whether the other end is gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Where `sent_ns` is in the payload of a message of the bench, and a byte of its filler.
const TIME_AT: usize = 24;
const FILLER_AT: usize = 50;

struct Shared {
    fault: Fault,
    /// At which message, counted from 1 over all connections.
    at: u64,
    delivered: Mutex<u64>,
    stands_until: Mutex<Option<Instant>>,
}

/// A gateway and the proxy before it. The gateway ends when this is dropped.
pub(crate) struct Proxied {
    gateway: Child,
    http: String,
    address: SocketAddr,
}

impl Proxied {
    /// Starts both; the fault is in message number `at`, counted from 1 over all connections.
    pub(crate) fn start(fault: Fault, at: u64) -> Proxied {
        let mut child = Command::new(gateway())
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the gateway starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let (mut behind, mut http) = (None, None);
        for line in lines {
            let after = |words: &str| Some(line.strip_prefix(words)?.split_whitespace().next()?.to_owned());
            behind = behind.or_else(|| after("listening on "));
            http = http.or_else(|| after("http on "));
            if behind.is_some() && http.is_some() {
                break;
            }
        }
        let behind: SocketAddr = behind.expect("it says where").parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared { fault, at, delivered: Mutex::new(0), stands_until: Mutex::new(None) });
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(behind).expect("the gateway listens");
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("set");
                    stream.set_read_timeout(Some(LOOK_INTERVAL)).expect("set");
                    // Who is reset at one end is reset at the other.
                    SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("set");
                }
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                let (from, to) = (client.try_clone().expect("copied"), server.try_clone().expect("copied"));
                let over = Arc::new(AtomicBool::new(false));
                let told = Arc::clone(&over);
                thread::spawn(move || pass_up(&up, from, to, &told));
                thread::spawn(move || pass_down(&down, server, client, &over));
            }
        });
        Proxied { gateway: child, http: http.expect("it says where"), address }
    }

    /// What tells a bench to measure this one.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let named = [
            ("--gateway", self.address.to_string()),
            ("--gateway-pid", self.gateway.id().to_string()),
            ("--gateway-http", self.http.clone()),
        ];
        named.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

impl Drop for Proxied {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.gateway.kill();
        let _ = self.gateway.wait();
    }
}

impl Shared {
    /// Waits while nothing passes.
    fn pass(&self) {
        let until = *self.stands_until.lock().expect("no panic");
        if let Some(left) = until.and_then(|until| until.checked_duration_since(Instant::now())) {
            thread::sleep(left);
        }
    }

    /// What happens to the next message.
    fn next_fault(&self) -> Fault {
        let mut delivered = self.delivered.lock().expect("no panic");
        *delivered += 1;
        if *delivered != self.at {
            return Fault::None;
        }
        if let Fault::Stall(length) = self.fault {
            *self.stands_until.lock().expect("no panic") = Some(Instant::now() + length);
        }
        self.fault
    }
}

/// Reads until one of both ends is gone; then the other one learns of it once nobody has its socket open any more.
fn read(from: &mut TcpStream, chunk: &mut [u8], over: &AtomicBool) -> Option<usize> {
    while !over.load(Ordering::Relaxed) {
        match from.read(chunk) {
            Ok(count @ 1..) => return Some(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => break,
        }
    }
    over.store(true, Ordering::Relaxed);
    None
}

fn pass_up(shared: &Shared, mut from: TcpStream, mut to: TcpStream, over: &AtomicBool) {
    let mut chunk = [0; 16_384];
    while let Some(count) = read(&mut from, &mut chunk, over) {
        shared.pass();
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
}

fn pass_down(shared: &Shared, mut from: TcpStream, mut to: TcpStream, over: &AtomicBool) {
    let (mut received, mut chunk) = (Vec::new(), [0; 16_384]);
    let mut held: Vec<u8> = Vec::new();
    while let Some(count) = read(&mut from, &mut chunk, over) {
        received.extend_from_slice(&chunk[..count]);
        let (mut out, mut taken) = (Vec::new(), 0);
        while let Some((frame, length)) = decode(&received[taken..], FRAME_BYTES_MAX_LIMIT).expect("a valid frame") {
            let is_message = frame.known() == Some(Kind::Deliver);
            let body_at = length - frame.body.len();
            let mut bytes = received[taken..taken + length].to_vec();
            taken += length;
            match if is_message { shared.next_fault() } else { Fault::None } {
                Fault::None | Fault::Stall(_) => out.append(&mut bytes),
                Fault::Drop => bytes.clear(),
                Fault::Double => {
                    out.extend_from_slice(&bytes);
                    out.append(&mut bytes);
                }
                Fault::Reorder => {
                    held = bytes;
                    continue;
                }
                Fault::CorruptPayload => bytes[body_at + FILLER_AT] ^= 1,
                Fault::CorruptTime => bytes[body_at + TIME_AT + 4] ^= 1,
                Fault::MarkAgain => bytes[5] |= flags::AGAIN,
            }
            out.append(&mut bytes);
            if is_message {
                out.append(&mut held);
            }
        }
        received.drain(..taken);
        shared.pass();
        if to.write_all(&out).is_err() {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
}
