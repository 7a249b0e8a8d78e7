//! Back-ends of the bench itself, which send back what they are given: an echo behind a balancer of connections, an
//! HTTP server, a worker of the gateway, and a responder of nats-server. They run on the load's core, so what they take
//! is no part of what is measured.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Header, Kind, Offer, Serve, VERSION, decode, encode, encode_message};

use crate::{
    affinity::{LOAD_CORE, pin},
    dialect::{Dialect as _, Event, Nats},
    failure::Failure,
    service::{SERVICE, SUBJECT},
};

/// How long a back-end may take to be in, and between two looks whether it is to end.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// Connections of a back-end.
const CONNECTIONS_MAX: usize = 4_096;
/// Calls that a worker takes at once.
const WINDOW: u32 = 4_096;
/// Longest head of a request, and its longest body.
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 1 << 20;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// What comes goes back.
    Echo,
    /// HTTP/1.1: the body of a request is that of its answer.
    Http,
    /// Frames of a worker.
    Worker,
    /// Lines of nats-server.
    Nats,
}

impl Speech {
    /// Answers the first thing in `bytes`, and says how many bytes it takes; `None` when it is not whole.
    fn answer(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, String> {
        match self {
            Speech::Echo if bytes.is_empty() => Ok(None),
            Speech::Echo => {
                out.extend_from_slice(bytes);
                Ok(Some(bytes.len()))
            }
            Speech::Http => http(bytes, out),
            Speech::Worker => worker(bytes, out),
            Speech::Nats => nats(bytes, out),
        }
    }
}

fn http(bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err("a head without end".to_owned()) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().map_or(Ok(0), |(_, length)| length.trim().parse::<usize>());
    let length = length.ok().filter(|length| *length <= BODY_BYTES_MAX).ok_or("no length that may be")?;
    let whole = end + 4 + length;
    let Some(body) = bytes.get(end + 4..whole) else { return Ok(None) };
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").expect("a vector takes all");
    out.extend_from_slice(body);
    Ok(Some(whole))
}

fn worker(bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).map_err(|violation| violation.to_string())?;
    let Some((frame, taken)) = decoded else { return Ok(None) };
    match frame.known() {
        Some(Kind::Request) => {
            let header = Header { kind: Kind::Answer, flags: 0, aux: 0, id: frame.id, peer: 0, stamp: 0 };
            encode(out, &header, frame.body);
        }
        Some(Kind::Ping) => {
            encode(out, &Header { kind: Kind::Pong, flags: 0, aux: frame.aux, id: 0, peer: 0, stamp: 0 }, &[]);
        }
        Some(Kind::Bye | Kind::Error) => return Err(format!("the gateway refuses the worker: {}", frame.aux)),
        _ => {}
    }
    Ok(Some(taken))
}

fn nats(bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let Some((event, taken)) = Nats.next(bytes)? else { return Ok(None) };
    match event {
        Event::Message(payload) => {
            // MSG <subject> <sid> <reply-to> <length>
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            let to = line.split(' ').nth(3).filter(|_| line.split(' ').count() == 5);
            let to = to.ok_or_else(|| format!("a request without a place for its answer: {line}"))?;
            write!(out, "PUB {to} {}\r\n", payload.len()).expect("a vector takes all");
            out.extend_from_slice(payload);
            out.extend_from_slice(b"\r\n");
        }
        Event::Answer(answer) => out.extend_from_slice(answer),
        Event::Refused(why) => return Err(why),
        Event::Ready | Event::Nothing => {}
    }
    Ok(Some(taken))
}

/// A connection, and what of it is not whole or not written.
struct Link {
    stream: TcpStream,
    unread: Vec<u8>,
    unwritten: Vec<u8>,
}

impl Link {
    fn new(stream: TcpStream) -> io::Result<Link> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Link { stream, unread: Vec::new(), unwritten: Vec::new() })
    }

    /// Reads once, answers what is whole, writes what fits. False when it has ended.
    fn turn(&mut self, speech: Speech) -> bool {
        let mut buffer = [0; 65_536];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => self.unread.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        let mut at = 0;
        loop {
            match speech.answer(&self.unread[at..], &mut self.unwritten) {
                Ok(Some(taken)) => at += taken,
                Ok(None) => break,
                // Whoever measures finds that calls are not answered, and says so.
                Err(_) => return false,
            }
        }
        self.unread.drain(..at);
        while !self.unwritten.is_empty() {
            match self.stream.write(&self.unwritten) {
                Ok(written) => drop(self.unwritten.drain(..written)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(_) => return false,
            }
        }
        true
    }
}

/// A back-end that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddrV4,
    ends: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Backend {
    /// One that is connected to.
    pub(crate) fn listen(speech: Speech) -> Result<Backend, Failure> {
        let failed = |error| Failure::system("starting a back-end", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let SocketAddr::V4(address) = listener.local_addr().map_err(failed)? else {
            unreachable!("it listens on IPv4")
        };
        Backend::run(speech, address, Some(listener), Vec::new())
    }

    /// A worker of the gateway whose services' port this is.
    pub(crate) fn worker(address: SocketAddrV4) -> Result<Backend, Failure> {
        let offers = vec![Offer { service: SERVICE.into(), ..Offer::default() }];
        let serve =
            Serve { version: VERSION, name: "bench".to_owned(), offers, window: WINDOW, shard: 1, ..Serve::default() };
        let mut hello = Vec::new();
        encode_message(&mut hello, Kind::Serve, 0, &serve);
        Backend::dial(Speech::Worker, address, &hello, |bytes| {
            let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).ok().flatten();
            decoded.is_some_and(|(frame, _)| frame.known() == Some(Kind::ServeOk))
        })
    }

    /// A responder of this nats-server.
    pub(crate) fn responder(address: SocketAddrV4) -> Result<Backend, Failure> {
        let login = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"rust","version":"1"}"#;
        let hello = format!("{login}\r\nSUB {SUBJECT} 1\r\nPING\r\n");
        let is_in = |bytes: &[u8]| bytes.windows(6).any(|six| six == b"PONG\r\n");
        Backend::dial(Speech::Nats, address, hello.as_bytes(), is_in)
    }

    fn dial(
        speech: Speech,
        address: SocketAddrV4,
        hello: &[u8],
        is_in: impl Fn(&[u8]) -> bool,
    ) -> Result<Backend, Failure> {
        let failed = |error| Failure::system(&format!("a back-end at {address}"), error);
        let mut stream = TcpStream::connect(address).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.write_all(hello).map_err(failed)?;
        let mut heard = Vec::new();
        while !is_in(&heard) {
            let mut buffer = [0; 4_096];
            match stream.read(&mut buffer).map_err(failed)? {
                0 => return Err(Failure::ServerGone(format!("{address} lets the back-end not in"))),
                length => heard.extend_from_slice(&buffer[..length]),
            }
        }
        Backend::run(speech, address, None, vec![Link::new(stream).map_err(failed)?])
    }

    fn run(
        speech: Speech,
        address: SocketAddrV4,
        listener: Option<TcpListener>,
        links: Vec<Link>,
    ) -> Result<Backend, Failure> {
        let ends = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&ends);
        let thread = thread::Builder::new().name("backend".to_owned()).spawn(move || {
            // Where it cannot be pinned it runs all the same: then it says so by what it costs.
            let _ = pin(LOAD_CORE);
            turn(speech, listener.as_ref(), links, &own);
        });
        let thread = Some(thread.map_err(|error| Failure::system("starting a back-end", error))?);
        Ok(Backend { address, ends, thread })
    }

    /// Where it listens, or what it is connected to.
    pub(crate) fn address(&self) -> SocketAddrV4 {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic is on standard error.
            let _ = thread.join();
        }
    }
}

fn turn(speech: Speech, listener: Option<&TcpListener>, mut links: Vec<Link>, ends: &AtomicBool) {
    let look = Timespec::try_from(LOOK).expect("a short time");
    while !ends.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(links.len() + 1);
        for link in &links {
            let writes = if link.unwritten.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&link.stream, PollFlags::IN | writes));
        }
        fds.extend(listener.filter(|_| links.len() < CONNECTIONS_MAX).map(|it| PollFd::new(it, PollFlags::IN)));
        if poll(&mut fds, Some(&look)).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut at = 0;
        links.retain_mut(|link| {
            at += 1;
            !ready[at - 1] || link.turn(speech)
        });
        if let Some(listener) = listener.filter(|_| ready.get(at) == Some(&true))
            && let Ok((stream, _)) = listener.accept()
            && let Ok(link) = Link::new(stream)
        {
            links.push(link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the bytes are cut in two, nothing is answered before it is whole, and then the same.
    fn answers(speech: Speech, bytes: &[u8]) -> Vec<u8> {
        let answered = |cut: usize| {
            let (mut out, mut at) = (Vec::new(), 0);
            for end in [cut, bytes.len()] {
                while let Some(taken) = speech.answer(&bytes[at..end], &mut out).expect("valid") {
                    at += taken;
                }
            }
            assert_eq!(at, bytes.len(), "left over");
            out
        };
        let whole = answered(0);
        (0..bytes.len()).for_each(|cut| assert_eq!(answered(cut), whole, "cut at {cut}"));
        whole
    }

    #[test]
    fn each_back_end_sends_back_what_it_is_given() {
        assert_eq!(answers(Speech::Echo, b"abc"), b"abc");
        let post = b"POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n\r\nhiPOST / HTTP/1.1\r\n\r\n";
        let answered = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answers(Speech::Http, post), answered);
        let asked = b"INFO {}\r\nMSG calls 1 r.5 5\r\n\r\nabc\r\nPING\r\n";
        assert_eq!(answers(Speech::Nats, asked), b"PUB r.5 5\r\n\r\nabc\r\nPONG\r\n");
        let (mut asked, mut wanted) = (Vec::new(), Vec::new());
        for id in [3, 4] {
            encode(&mut asked, &Header { kind: Kind::Request, flags: 0, aux: 7, id, peer: 9, stamp: 1 }, b"hi");
            encode(&mut wanted, &Header { kind: Kind::Answer, flags: 0, aux: 0, id, peer: 0, stamp: 0 }, b"hi");
        }
        assert_eq!(answers(Speech::Worker, &asked), wanted);
        let mut out = Vec::new();
        assert!(Speech::Http.answer(b"POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", &mut out).is_err());
        assert!(Speech::Nats.answer(b"MSG calls 1 0\r\n\r\n", &mut out).is_err());
    }
}
