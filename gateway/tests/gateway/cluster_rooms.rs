//! Live rooms over the nodes of a cluster: real gateways, a real Redis Cluster, and the home of a room that is killed.

use crate::cluster_support::Fleet;
use crate::support::client::{Client, Event};
use crate::support::wait_for;
use crate::support::wire::{Frame, code, flag, kind, outcome};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// The first id of live rooms.
const ROOMS: u64 = 1 << 63;
/// Whatever has to happen does within this time on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session in the room.
struct Member {
    user: u64,
    client: Client,
    /// Numbers and texts of what it was given.
    got: Vec<(u16, String)>,
    /// Answers to its messages: id and outcome.
    answers: Vec<(u64, u16)>,
}

impl Member {
    fn new(fleet: &Fleet, node: usize, user: u64) -> Self {
        Member { user, client: Client::login(fleet.node(node), user), got: Vec::new(), answers: Vec::new() }
    }

    fn ask(&mut self, frame_kind: u8, room: u64) {
        self.client.write(&Frame { kind: frame_kind, id: 900, peer: room, ..Frame::default() });
        let ok = self.client.recv_kind(kind::GROUP_OK);
        assert_eq!((ok.id, ok.peer), (900, room), "{ok:?}");
    }

    fn join(&mut self, room: u64) {
        self.ask(kind::GROUP_JOIN, room);
    }

    fn send(&mut self, room: u64, id: u64, text: &str) {
        let body = text.as_bytes().to_vec();
        let send = Frame { kind: kind::GROUP_SEND, flags: flag::ACK, id, peer: room, body, ..Frame::default() };
        self.client.write(&send);
    }

    /// Takes what there is.
    fn read(&mut self, room: u64) {
        while let Event::Frame(frame) = self.client.poll_event() {
            match frame.kind {
                kind::GROUP_DELIVER => {
                    assert_eq!((frame.peer, frame.flags), (room, 0), "{frame:?}");
                    let text = String::from_utf8(frame.body[8..].to_vec()).expect("a text");
                    assert!(self.got.iter().all(|(_, known)| *known != text), "{text} came twice to {}", self.user);
                    if let Some((before, _)) = self.got.last() {
                        assert!(frame.aux > *before, "{} behind {before} for {}", frame.aux, self.user);
                    }
                    self.got.push((frame.aux, text));
                }
                kind::SENT => {
                    assert_eq!(frame.peer, room, "{frame:?}");
                    assert!(self.answers.iter().all(|(id, _)| *id != frame.id), "{frame:?} is a second answer");
                    self.answers.push((frame.id, frame.aux));
                }
                // Something was missing, as the numbers say too.
                kind::HEADS => {}
                _ => panic!("{frame:?}"),
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        self.got.iter().any(|(_, known)| known == text)
    }

    /// The outcome of a message, once it has come.
    fn outcome(&mut self, room: u64, id: u64) -> u16 {
        wait_for("the message has its answer", || {
            self.read(room);
            self.answers.iter().find(|(answered, _)| *answered == id).map(|(_, outcome)| *outcome)
        })
    }
}

/// Whether all but the sender have a message within the time.
fn all_have(members: &mut [Member], room: u64, sender: usize, text: &str, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        members.iter_mut().for_each(|member| member.read(room));
        if members.iter().enumerate().all(|(at, member)| at == sender || member.has(text)) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two members at each node of a room whose home is the last one.
fn room_at_home_on_the_last(fleet: &Fleet) -> (u64, Vec<Member>) {
    let nodes = fleet.nodes.len();
    let mut members: Vec<Member> = (0..2 * nodes).map(|at| Member::new(fleet, at % nodes, 1 + at as u64)).collect();
    for room in ROOMS..ROOMS + 100 {
        members.iter_mut().for_each(|member| member.join(room));
        let relays = |node: usize| fleet.node(node).metrics().sum("trunkline_group_relays", &[]);
        let home = wait_for("all nodes but the home ask it for copies", || {
            let without: Vec<usize> = (0..nodes).filter(|node| relays(*node) == 0).collect();
            (without.len() == 1).then(|| without[0])
        });
        if home == nodes - 1 {
            return (room, members);
        }
        members.iter_mut().for_each(|member| member.ask(kind::GROUP_LEAVE, room));
        wait_for("the room has ended", || {
            let left = ["trunkline_group_relays", "trunkline_group_homes"].map(|name| fleet.sum(name, &[]));
            (left == [0, 0]).then_some(())
        });
    }
    panic!("no room of a hundred has its home on the last node");
}

#[test]
fn a_room_goes_on_when_the_node_that_is_its_home_is_killed() {
    let mut fleet = Fleet::start(&["a", "b", "c"], &[]);
    let (room, mut members) = room_at_home_on_the_last(&fleet);
    let before = fleet.sum("trunkline_group_relay_copies_sent_total", &[]);
    for sender in 0..members.len() {
        let text = format!("from {sender}");
        members[sender].send(room, 1, &text);
        assert_eq!(members[sender].outcome(room, 1), outcome::ACCEPTED);
        assert!(all_have(&mut members, room, sender, &text, PATIENCE), "{text}");
    }
    for (at, member) in members.iter().enumerate() {
        let expected: Vec<(u16, String)> =
            (0..6).filter(|sender| *sender != at).map(|sender| (sender as u16 + 1, format!("from {sender}"))).collect();
        assert_eq!(member.got, expected, "member {at}");
    }
    // One copy for each other node, whatever its members.
    assert_eq!(fleet.sum("trunkline_group_relay_copies_sent_total", &[]) - before, 6 * 2);
    assert_eq!(fleet.sum("trunkline_group_relay_copies_received_total", &[]), 6 * 2);

    // Who has left gets nothing more.
    let mut gone = members.pop().expect("six");
    gone.ask(kind::GROUP_LEAVE, room);
    members[1].send(room, 2, "without the last");
    assert_eq!(members[1].outcome(room, 2), outcome::ACCEPTED);
    assert!(all_have(&mut members, room, 1, "without the last", PATIENCE));
    gone.client.ping();

    // The home is killed. Each message has an answer meanwhile, and all is well again by itself.
    let mut node = fleet.nodes[2].take().expect("it runs");
    node.signal(Signal::KILL);
    node.wait_for_exit();
    members.retain(|member| (member.user - 1) % 3 != 2);
    assert_eq!(members.len(), 4);
    let (mut id, mut accepted, begun) = (10, 7, Instant::now());
    loop {
        let (sender, text) = ((id % 4) as usize, format!("meanwhile {id}"));
        members[sender].send(room, id, &text);
        let outcome = members[sender].outcome(room, id);
        assert!([outcome::ACCEPTED, outcome::OVERLOADED].contains(&outcome), "{outcome}");
        accepted += u16::from(outcome == outcome::ACCEPTED);
        let arrived =
            outcome == outcome::ACCEPTED && all_have(&mut members, room, sender, &text, Duration::from_millis(500));
        id += 1;
        if arrived {
            break;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "the room does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    for sender in 0..4 {
        let text = format!("after {sender}");
        members[sender].send(room, 1_000, &text);
        assert_eq!(members[sender].outcome(room, 1_000), outcome::ACCEPTED);
        assert!(all_have(&mut members, room, sender, &text, PATIENCE), "{text}");
    }
    accepted += 4;
    // What was passed on before the end of the old home is not known to the new one: it leaves a number out.
    let [.., (last, _)] = members[0].got[..] else { panic!("it has some") };
    assert!(last > accepted, "{last} of {accepted} messages leaves no gap");

    // The node is back, and so are its users.
    fleet.start_node(2);
    fleet.wait_joined();
    members.extend([3, 6].map(|user| Member::new(&fleet, 2, user)));
    members[4..].iter_mut().for_each(|member| member.join(room));
    for sender in 0..6 {
        let text = format!("in the end {sender}");
        members[sender].send(room, 2_000, &text);
        assert_eq!(members[sender].outcome(room, 2_000), outcome::ACCEPTED);
        assert!(all_have(&mut members, room, sender, &text, PATIENCE), "{text}");
    }
    drop(members);
    wait_for("nothing is left of the room", || {
        let left = ["trunkline_group_relays", "trunkline_group_homes", "trunkline_group_sessions"];
        (left.map(|name| fleet.sum(name, &[])) == [0; 3]).then_some(())
    });
    drop(gone);
    fleet.finish();
}

#[test]
fn durable_groups_are_refused_in_a_cluster() {
    let fleet = Fleet::start(&["a", "b"], &[]);
    let mut client = Client::login(fleet.node(0), 1);
    for frame_kind in [kind::GROUP_JOIN, kind::GROUP_LEAVE, kind::GROUP_SEND] {
        client.write(&Frame { kind: frame_kind, id: 5, peer: 77, ..Frame::default() });
        client.expect_error(code::UNSUPPORTED, 5, 77);
    }
    drop(client);
    fleet.finish();
}
