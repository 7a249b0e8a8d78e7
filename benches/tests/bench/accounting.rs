//! The load client against a gateway of a few lines, first a correct one, then ones with a planted fault: each fault
//! ends the bench with exit status 1 and a sentence that names the message.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use trunkline_proto::{
    Code, FRAME_BYTES_MAX_DEFAULT, Frame, Header, Kind, Login, LoginOk, Outcome, decode, encode, encode_message, flags,
    prost::Message as _,
};

/// What the gateway does to one message, the twentieth of each connection, or to a login.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Lose,
    Double,
    Overtake,
    FlipByte,
    Misdeliver,
    SameStamp,
    WrongSender,
    CloseInstead,
    ConfirmTwice,
    ConfirmAsOverloaded,
    RefuseLogin,
    NeverAnswerLogin,
}

const FAULTY_MESSAGE: u32 = 20;

type Peers = Arc<Mutex<HashMap<u64, (TcpStream, u64)>>>;

/// Starts the gateway on a port of its own.
fn gateway(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let peers = Peers::default();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let peers = Arc::clone(&peers);
            thread::spawn(move || serve(stream, &peers, fault));
        }
    });
    address
}

fn serve(mut stream: TcpStream, peers: &Peers, fault: Fault) {
    let mut session = Session { user: 0, messages: 0, held: None, fault };
    let mut received = Vec::new();
    let mut chunk = [0; 4_096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        received.extend_from_slice(&chunk[..count]);
        let mut consumed = 0;
        while let Some((frame, len)) = decode(&received[consumed..], FRAME_BYTES_MAX_DEFAULT).expect("a valid frame") {
            if !session.handle(&frame, &stream, peers) {
                return;
            }
            consumed += len;
        }
        received.drain(..consumed);
    }
}

struct Session {
    user: u64,
    messages: u32,
    held: Option<Vec<u8>>,
    fault: Fault,
}

impl Session {
    /// Returns whether the connection goes on.
    fn handle(&mut self, frame: &Frame<'_>, stream: &TcpStream, peers: &Peers) -> bool {
        match frame.known() {
            Some(Kind::Login) => self.log_in(frame, stream, peers),
            Some(Kind::Send) => self.send(frame, peers),
            Some(Kind::Ack) => self.acknowledged(frame, peers),
            other => panic!("the bench sends no {other:?}"),
        }
    }

    fn log_in(&mut self, frame: &Frame<'_>, mut stream: &TcpStream, peers: &Peers) -> bool {
        let login = Login::decode(frame.body).expect("a Login");
        self.user = login.user;
        let mut out = Vec::new();
        match self.fault {
            Fault::NeverAnswerLogin => return true,
            Fault::RefuseLogin => {
                let bye = trunkline_proto::Bye::default();
                encode_message(&mut out, Kind::Bye, Code::BadCredentials.as_u16(), &bye);
            }
            _ => encode_message(&mut out, Kind::LoginOk, 0, &LoginOk { heartbeat_secs: 30, ..LoginOk::default() }),
        }
        let copy = stream.try_clone().expect("a descriptor");
        peers.lock().expect("no panic").insert(login.user, (copy, 0));
        stream.write_all(&out).is_ok()
    }

    fn send(&mut self, frame: &Frame<'_>, peers: &Peers) -> bool {
        self.messages += 1;
        let fault = if self.messages == FAULTY_MESSAGE { self.fault } else { Fault::None };
        let mut peers = peers.lock().expect("no panic");
        let recipient = if fault == Fault::Misdeliver { self.user } else { frame.peer };
        let (stream, stamp) = peers.get_mut(&recipient).expect("the bench sends to users that are there");
        *stamp += u64::from(fault != Fault::SameStamp);
        let mut body = frame.body.to_vec();
        if fault == Fault::FlipByte {
            *body.last_mut().expect("a payload") ^= 1;
        }
        let sender = if fault == Fault::WrongSender { self.user + 100 } else { self.user };
        let header = Header {
            kind: Kind::Deliver,
            flags: frame.flags & flags::ACK,
            aux: 0,
            id: frame.id,
            peer: sender,
            stamp: *stamp,
        };
        let mut deliver = Vec::new();
        encode(&mut deliver, &header, &body);
        match fault {
            Fault::CloseInstead => return stream.shutdown(std::net::Shutdown::Both).is_err(),
            Fault::Lose => return true,
            Fault::Overtake => {
                self.held = Some(deliver);
                return true;
            }
            Fault::Double => deliver.extend_from_within(..),
            _ => {}
        }
        deliver.extend(self.held.take().unwrap_or_default());
        stream.write_all(&deliver).is_ok()
    }

    fn acknowledged(&mut self, frame: &Frame<'_>, peers: &Peers) -> bool {
        self.messages += 1;
        let fault = if self.messages >= FAULTY_MESSAGE { self.fault } else { Fault::None };
        let outcome = if fault == Fault::ConfirmAsOverloaded { Outcome::Overloaded } else { Outcome::Delivered };
        let header = Header {
            kind: Kind::Sent,
            flags: 0,
            aux: outcome.as_u16(),
            id: frame.id,
            peer: self.user,
            stamp: frame.stamp,
        };
        let mut sent = Vec::new();
        encode(&mut sent, &header, &[]);
        if fault == Fault::ConfirmTwice {
            sent.extend_from_within(..);
        }
        let mut peers = peers.lock().expect("no panic");
        let (stream, _) = peers.get_mut(&frame.peer).expect("the sender is there");
        stream.write_all(&sent).is_ok()
    }
}

fn bench(address: SocketAddr, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["pairs", "--conns", "4", "--window", "3", "--secs", "0.3", "--warmup", "0.05", "--rounds", "1"])
        .args(["--gateway", &address.to_string(), "--gateway-pid", &std::process::id().to_string()])
        .args(more)
        .output()
        .expect("the bench starts")
}

/// What the bench says about a gateway with this fault. Messages are counted from 0, each connection keeps 3 in flight.
fn complaint(fault: Fault, more: &[&str]) -> String {
    // Long enough for any machine to come to the faulty message, where the bench ends. With two shards it starts no
    // floor.
    let output = bench(gateway(fault), &[&["--secs", "60", "--shards", "2", "--within"], more].concat());
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{fault:?}: {stderr}");
    stderr
}

#[track_caller]
fn assert_names(complaint: &str, expected: &[&str]) {
    for part in expected {
        assert!(complaint.contains(part), "{part:?} is not in {complaint:?}");
    }
}

#[test]
fn a_correct_gateway_passes() {
    for more in [&[][..], &["--ack"], &["--payload", "40"], &["--payload", "5001", "--window", "40"]] {
        let output = bench(gateway(Fault::None), more);
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{more:?}: {stderr}");
        assert!(stdout.contains("each delivered once"), "{stdout}");
    }
}

#[test]
fn a_lost_message_is_named() {
    assert_names(&complaint(Fault::Lose, &[]), &["message 19 from user", "lost or overtaken"]);
    // Alone in its window, nothing comes after it.
    assert_names(&complaint(Fault::Lose, &["--window", "1"]), &["message 19 from user", "was never delivered"]);
}

#[test]
fn a_doubled_message_is_named() {
    assert_names(&complaint(Fault::Double, &[]), &["message 19 from user", "delivered twice"]);
}

#[test]
fn an_overtaken_message_is_named() {
    assert_names(&complaint(Fault::Overtake, &[]), &["message 19 from user", "message 20 came in its place"]);
}

#[test]
fn an_altered_message_is_named() {
    assert_names(&complaint(Fault::FlipByte, &[]), &["message 19 from user", "another payload"]);
    assert_names(&complaint(Fault::WrongSender, &[]), &["message 19 from user", "another peer"]);
}

#[test]
fn a_message_at_the_wrong_user_is_named() {
    // Alone in its window, so that its absence elsewhere is not noticed first.
    assert_names(&complaint(Fault::Misdeliver, &["--window", "1"]), &["message 19 from user", "was delivered to user"]);
}

#[test]
fn a_stamp_that_stands_still_is_named() {
    assert_names(&complaint(Fault::SameStamp, &[]), &["message", "not above"]);
}

#[test]
fn confirmations_that_do_not_add_up_are_named() {
    assert_names(&complaint(Fault::ConfirmTwice, &["--ack"]), &["message", "confirmed twice"]);
    assert_names(&complaint(Fault::ConfirmAsOverloaded, &["--ack"]), &["message", "outcome 3"]);
}

#[test]
fn a_connection_lost_during_traffic_is_reported() {
    assert_names(&complaint(Fault::CloseInstead, &[]), &["the connection of user", "was lost during traffic"]);
}

#[test]
fn a_refused_login_is_reported_with_its_reason() {
    assert_names(&complaint(Fault::RefuseLogin, &[]), &["the login of user", "was refused with reason 6"]);
}

#[test]
fn a_login_that_is_never_answered_ends_the_bench() {
    assert_names(&complaint(Fault::NeverAnswerLogin, &[]), &["nothing happened for 10 s", "LOGIN_OK; 0 of 4"]);
}

#[test]
fn an_address_nobody_listens_on_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let output = bench(address, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8_lossy(&output.stderr), &[&format!("cannot connect to {address}"), "refused"]);
}

#[test]
fn a_gateway_that_ends_at_once_is_reported_with_its_exit_status() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["pairs", "--gateway-bin", "/bin/false"])
        .output()
        .expect("the bench starts");
    assert_eq!(output.status.code(), Some(1));
    assert_names(&String::from_utf8_lossy(&output.stderr), &["the gateway ended before it listened", "exit status: 1"]);
}

#[test]
fn the_floor_alone_needs_no_gateway() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["floor", "--conns", "10", "--window", "50", "--payload", "3000", "--secs", "0.2", "--rounds", "1"])
        .output()
        .expect("the bench starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_names(&String::from_utf8_lossy(&output.stdout), &["floor", "each delivered once"]);
}
