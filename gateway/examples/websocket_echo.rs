//! A WebSocket server that sends back what it is sent, over the gateway's own codec: what test suites of the protocol
//! ask for, since the gateway itself takes no text and no messages that are no frames. `make test-autobahn` runs the
//! cases of the Autobahn test suite against it.
//!
//! `websocket_echo ADDR:PORT` says where it listens and serves until it is killed; each connection has a thread and
//! plain, blocking sockets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;
use trunkline_gateway::transport::upgrade::{self, Request};
use trunkline_proto::websocket::{
    CONTROL_BYTES_MAX, Close, Decoder, Opcode, Part, Role, Rules, Violation, put_close, put_control, put_frame,
};

/// The suite sends messages of 16 MiB.
const RULES: Rules = Rules { role: Role::Server, text: true, message_bytes_max: 32 << 20 };
/// No multiple of anything, so that headers and characters are parted at every place sooner or later.
const READ_BYTES: usize = 4_093;
/// How long a peer may be silent; the suite's own time-outs are shorter.
const SILENCE_MAX: Duration = Duration::from_secs(60);

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A peer that goes without a word is its own affair.
            let _ = serve(stream);
        });
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let Some(mut early) = open(&mut stream)? else { return Ok(()) };
    let mut echo = Echo::default();
    let mut buffer = [0; READ_BYTES];
    let mut out = Vec::new();
    loop {
        let going_on = echo.take(&mut early, &mut out);
        stream.write_all(&out)?;
        out.clear();
        if !going_on {
            break;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            len => early = buffer[..len].to_vec(),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    // A close with unread input would reset the connection, and the Close might be lost.
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Answers the request; returns what came behind it.
fn open(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut buffer) = (Vec::new(), [0; READ_BYTES]);
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&buffer[..len]);
        // The suite asks for the root.
        if head.starts_with(b"GET / ") {
            head.splice(..6, *b"GET /ws ");
        }
        let mut answer = Vec::new();
        let behind = match upgrade::read(&upgrade::Rules::default(), &head, 0) {
            Ok(None) => continue,
            Ok(Some((Request::Upgrade(upgrade), end))) => {
                upgrade.put_response(&mut answer);
                Some(head.split_off(end))
            }
            Ok(Some(_)) => {
                upgrade::put_health(true, &mut answer);
                None
            }
            Err(refusal) => {
                refusal.put_response(&mut answer);
                None
            }
        };
        stream.write_all(&answer)?;
        return Ok(behind);
    }
}

/// One connection's stream.
#[derive(Default)]
struct Echo {
    decoder: Decoder,
    message: Vec<u8>,
    control: Vec<u8>,
}

impl Echo {
    /// Takes bytes, and appends what is answered. Returns whether the connection goes on.
    fn take(&mut self, mut bytes: &mut [u8], out: &mut Vec<u8>) -> bool {
        while !bytes.is_empty() {
            let step = match self.decoder.step(&RULES, bytes) {
                Ok(step) => step,
                Err(violation) => return violated(violation, out),
            };
            match step.part {
                Some(Part::Data { range, text, end }) => {
                    self.message.extend_from_slice(&bytes[range]);
                    if end {
                        let opcode = if text { Opcode::Text } else { Opcode::Binary };
                        put_frame(out, opcode, true, None, &self.message);
                        self.message.clear();
                    }
                }
                Some(Part::Control { opcode, range, end, .. }) => {
                    self.control.extend_from_slice(&bytes[range]);
                    assert!(self.control.len() <= CONTROL_BYTES_MAX, "the codec refuses longer ones");
                    if end && !answer(opcode, &std::mem::take(&mut self.control), out) {
                        return false;
                    }
                }
                None => {}
            }
            bytes = &mut bytes[step.consumed..];
        }
        true
    }
}

fn answer(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) -> bool {
    match opcode {
        Opcode::Ping => put_control(out, Opcode::Pong, payload),
        Opcode::Close => match Close::read(payload) {
            Ok(close) => {
                put_close(out, close.code, "");
                return false;
            }
            Err(violation) => return violated(violation, out),
        },
        _ => {}
    }
    true
}

fn violated(violation: Violation, out: &mut Vec<u8>) -> bool {
    put_close(out, Some(violation.close_code()), violation.text());
    false
}
