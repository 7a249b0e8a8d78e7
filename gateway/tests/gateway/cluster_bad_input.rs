//! What must not get into a cluster, and must not harm it: garbage on the mesh port, other versions, strangers, another
//! secret.

use crate::cluster_support::{Fleet, Member};
use crate::support::client::Client;
use crate::support::wait_for;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// A connection to a node's mesh port.
fn dial(fleet: &Fleet, node: usize) -> TcpStream {
    let stream = TcpStream::connect(&fleet.members[node].mesh).expect("connect to the mesh port");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream
}

/// Everything until the other side closes, in order or with a reset.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1_024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("not closed: {error}; so far {bytes:?}"),
        }
    }
}

/// A Hello as `mesh/wire.rs` describes it.
fn hello(versions: [u16; 2], name: &str) -> Vec<u8> {
    let mut body = b"\x01TLMX".to_vec();
    body.extend(versions.iter().flat_map(|version| version.to_be_bytes()));
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&(name.len() as u16).to_be_bytes());
    body.extend_from_slice(name.as_bytes());
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

/// The code and the text of a Refuse, which must be the last frame.
fn refusal(bytes: &[u8]) -> (u16, String) {
    let mut rest = bytes;
    loop {
        let length = u32::from_be_bytes(rest[..4].try_into().expect("a length")) as usize;
        let (frame, behind) = rest.split_at(length);
        if behind.is_empty() {
            assert_eq!(frame[4], 4, "a Refuse in {bytes:?}");
            let text = String::from_utf8(frame[7..].to_vec()).expect("UTF-8");
            return (u16::from_be_bytes([frame[5], frame[6]]), text);
        }
        rest = behind;
    }
}

/// Users of both nodes reach each other, over links that have not been harmed.
fn check_unharmed(fleet: &Fleet) {
    let mut clients: Vec<Client> = (1..=8).map(|user| Client::login(fleet.node(user % 2), user as u64)).collect();
    for from in 0..7 {
        let (low, high) = clients.split_at_mut(from + 1);
        low[from].exchange(&mut high[0], from as u64 + 2, b"unharmed");
        high[0].exchange(&mut low[from], from as u64 + 1, b"in both directions");
    }
    assert_eq!(fleet.sum("trunkline_mesh_reconnects_total", &[]), 0);
    assert_eq!(fleet.sum("trunkline_mesh_links", &[]), fleet.sum("trunkline_mesh_links_up", &[]));
}

#[test]
fn nothing_that_comes_to_the_mesh_port_gets_in_or_does_harm() {
    let fleet = Fleet::start(&["a", "b"], &[]);
    let failures = || fleet.node(1).metrics().sum("trunkline_mesh_failures_total", &[]);
    let mut counted = failures();
    let mut refused = |what: &str, bytes: &[u8]| {
        let mut stream = dial(&fleet, 1);
        stream.write_all(bytes).expect("write to the mesh port");
        let answer = until_closed(&mut stream);
        wait_for(what, || (failures() > counted).then_some(()));
        counted = failures();
        answer
    };
    refused("HTTP is counted", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    refused("TLS is counted", &[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]);
    refused("a length that lies is counted", &[0, 0, 255, 255, 1]);
    refused("noise is counted", &(0..4_096_u32).map(|n| (n * 31 % 251) as u8).collect::<Vec<u8>>());

    let (code, text) = refusal(&refused("another version is counted", &hello([90, 99], "a")));
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("version"), "{text}");
    let (code, text) = refusal(&refused("its own name is counted", &hello([2, 2], "b")));
    assert_eq!(code, 3, "{text}");
    // Somebody who knows the name of a node and not the secret.
    let mut proof = hello([2, 2], "a");
    proof.extend_from_slice(&[0, 0, 0, 37, 2]);
    proof.extend_from_slice(&[9; 32]);
    let answer = refused("a proof that is none is counted", &proof);
    let (code, text) = refusal(&answer);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--cluster-secret-file"), "{text}");

    // One that says nothing is closed in time, and many of them are bounded.
    let mut silent: Vec<TcpStream> = (0..100).map(|_| dial(&fleet, 1)).collect();
    for stream in &mut silent {
        until_closed(stream);
    }
    check_unharmed(&fleet);
    fleet.finish();
}

#[test]
fn a_node_with_another_secret_is_not_let_in() {
    let fleet = Fleet::start(&["a", "b"], &[]);
    let secret = crate::support::scratch::ScratchFile::new("other-secret", "fedcba9876543210fedcba9876543210\n");
    let stranger = Member::new(&fleet.redis, "stranger");
    let command = stranger.command(&["--cluster-secret-file", secret.path()]);
    let mut bounded = Command::new("timeout");
    bounded.arg("20").arg(command.get_program()).args(command.get_args());
    bounded.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let output = bounded.output().expect("run the gateway");
    let message = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("another secret") && message.contains("--cluster-secret-file"), "{message}");
    assert!(crate::cluster_support::lease(&fleet.redis, "stranger").is_none(), "it has no place in the cluster");
    check_unharmed(&fleet);
    fleet.finish();
}
