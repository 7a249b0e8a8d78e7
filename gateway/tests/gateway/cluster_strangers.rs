//! Connections on the mesh port that say nothing, which takes no secret: they keep no node out.

use crate::cluster_support::Fleet;
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Connections held at a time: twice as many as there are places for strangers.
const HELD: usize = 128;

/// Connects from an address of the loopback.
fn connect_from(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether the other side has not hung up.
fn lasts(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn silent_connections_on_the_mesh_port_keep_no_node_out() {
    let mut fleet = Fleet::start(&["a", "b"], &[]);
    let mesh: SocketAddr = fleet.members[1].mesh.parse().expect("an address");
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let squatter = {
        let (stop, made) = (stop.clone(), made.clone());
        std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                held.retain_mut(lasts);
                for at in held.len()..HELD {
                    // Half of them from where no member is.
                    let from = [127, 0, 0, 1 + (at % 2) as u8];
                    held.extend(connect_from(from, mesh));
                    made.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let hits = |fleet: &Fleet, limit| fleet.node(1).metrics().sum("trunkline_limit_hits_total", &[("limit", limit)]);
    crate::support::wait_for("all places are taken", || {
        let both = ["mesh_strangers", "mesh_strangers_per_address"];
        both.iter().all(|limit| hits(&fleet, limit) > 0).then_some(())
    });
    for signal in [Signal::TERM, Signal::KILL] {
        let mut node = fleet.nodes[0].take().expect("it runs");
        node.signal(signal);
        node.wait_for_exit();
        fleet.start_node(0);
        fleet.wait_joined();
    }
    stop.store(true, Ordering::Relaxed);
    squatter.join().expect("the squatter");
    println!("{} connections were made", made.load(Ordering::Relaxed));
    fleet.finish();
}
