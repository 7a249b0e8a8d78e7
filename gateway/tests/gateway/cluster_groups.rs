//! Durable groups over the nodes of a cluster whose store is in a real Redis Cluster, and the home of a group that is
//! killed.

use crate::cluster_support::Fleet;
use crate::support::client::{Client, Event};
use crate::support::gateway::Gateway;
use crate::support::wait_for;
use crate::support::wire::{self, Frame, SyncOk, code, flag, kind, outcome};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const FLAGS: [&str; 4] = ["--store", "redis", "--group-member-sends-per-sec", "0"];
/// Whatever has to happen does within this time on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

struct Member {
    user: u64,
    client: Client,
    /// Positions and texts of what it was given as it was sent.
    got: Vec<(u64, String)>,
    /// Answers to its messages: id and outcome.
    answers: Vec<(u64, u16)>,
    /// A group of which HEADS named news that was not sent.
    news: Option<u64>,
    /// The log of that group, as it was asked for.
    fetched: Vec<(u64, String)>,
}

impl Member {
    fn new(fleet: &Fleet, node: usize, user: u64) -> Self {
        let mut client = Client::login(fleet.node(node), user);
        client.recv_kind(kind::SYNC_OK);
        Member { user, client, got: Vec::new(), answers: Vec::new(), news: None, fetched: Vec::new() }
    }

    fn ask(&mut self, frame_kind: u8, group: u64) -> u64 {
        self.client.write(&Frame { kind: frame_kind, id: 900, peer: group, ..Frame::default() });
        let ok = self.client.recv_kind(kind::GROUP_OK);
        assert_eq!((ok.id, ok.peer), (900, group), "{ok:?}");
        ok.stamp
    }

    fn send(&mut self, group: u64, id: u64, flags: u8, text: &str) {
        let body = text.as_bytes().to_vec();
        let send =
            Frame { kind: kind::GROUP_SEND, flags: flag::ACK | flags, id, peer: group, body, ..Frame::default() };
        self.client.write(&send);
    }

    fn take(&mut self, frame: &Frame) {
        match frame.kind {
            kind::GROUP_DELIVER if frame.flags & flag::REPLAY == 0 => {
                let text = String::from_utf8(frame.body[8..].to_vec()).expect("a text");
                assert!(self.got.iter().all(|(_, known)| *known != text), "{text} came twice to {}", self.user);
                if let Some((before, _)) = self.got.last() {
                    assert!(frame.stamp > *before, "{} behind {before} for {}", frame.stamp, self.user);
                }
                self.got.push((frame.stamp, text));
            }
            kind::SENT => {
                assert!(self.answers.iter().all(|(id, _)| *id != frame.id), "{frame:?} is a second answer");
                self.answers.push((frame.id, frame.aux));
            }
            kind::HEADS => self.news = wire::heads(frame).first().map(|head| head.group),
            _ => panic!("{frame:?}"),
        }
    }

    fn read(&mut self) {
        while let Event::Frame(frame) = self.client.poll_event() {
            self.take(&frame);
        }
    }

    fn outcome(&mut self, id: u64) -> u16 {
        wait_for("the message has its answer", || {
            self.read();
            self.answers.iter().find(|(answered, _)| *answered == id).map(|(_, outcome)| *outcome)
        })
    }

    /// Asks for what it was only told of: a message that was stored while its groups were looked up after LOGIN, or
    /// while its node missed some, is named in HEADS and not sent.
    fn fetch_news(&mut self) {
        if let Some(group) = self.news.take() {
            self.fetched = self.history(group, 0);
        }
    }

    fn has(&self, text: &str) -> bool {
        self.got.iter().chain(&self.fetched).any(|(_, known)| known == text)
    }

    /// All of the log from a position on.
    fn history(&mut self, group: u64, mut after: u64) -> Vec<(u64, String)> {
        self.read();
        let mut all = Vec::new();
        loop {
            self.client.write(&wire::sync_group(7, group, after, 0));
            let sync_ok = loop {
                let frame = self.client.recv();
                match frame.kind {
                    kind::SYNC_OK => break SyncOk::parse(&frame),
                    kind::GROUP_DELIVER if frame.flags & flag::REPLAY != 0 => {
                        all.push((frame.stamp, String::from_utf8(frame.body[8..].to_vec()).expect("a text")));
                    }
                    _ => self.take(&frame),
                }
            };
            assert!(!sync_ok.truncated);
            after = sync_ok.next_stamp;
            if sync_ok.complete {
                return all;
            }
        }
    }
}

fn all_have(members: &mut [Member], sender: usize, text: &str, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        for member in members.iter_mut() {
            member.read();
            member.fetch_news();
        }
        if members.iter().enumerate().all(|(at, member)| at == sender || member.has(text)) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn request(gateway: &Gateway, method: &str, path: &str, body: &str, status: u16) -> serde_json::Value {
    let answer = gateway.request_json(method, path, body);
    assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
    answer.json()
}

#[test]
fn a_group_goes_on_when_the_node_that_is_its_home_is_killed_and_its_log_is_whole() {
    let mut fleet = Fleet::start(&["a", "b", "c"], &FLAGS);
    let mut members: Vec<Member> = (0..6).map(|at| Member::new(&fleet, at % 3, 1 + at as u64)).collect();
    // A group whose home is the last node, which asks nobody for copies.
    let relays = |fleet: &Fleet, node: usize| fleet.node(node).metrics().sum("trunkline_group_relays", &[]);
    let group = (70..170).find(|group| {
        for member in &mut members {
            member.ask(kind::GROUP_JOIN, *group);
        }
        let home = wait_for("all nodes but the home ask it for copies", || {
            let without: Vec<usize> = (0..3).filter(|node| relays(&fleet, *node) == 0).collect();
            (without.len() == 1).then(|| without[0])
        });
        if home != 2 {
            for member in &mut members {
                member.ask(kind::GROUP_LEAVE, *group);
            }
            wait_for("nothing is left of the group", || (fleet.sum("trunkline_group_relays", &[]) == 0).then_some(()));
        }
        home == 2
    });
    let group = group.expect("one of a hundred has its home on the last node");
    let mut stored: Vec<String> = Vec::new();
    for sender in 0..members.len() {
        let text = format!("from {sender}");
        members[sender].send(group, 1, 0, &text);
        assert_eq!(members[sender].outcome(1), outcome::STORED);
        assert!(all_have(&mut members, sender, &text, PATIENCE), "{text}");
        stored.push(text);
    }
    // Sent again it is not stored again, wherever it comes from.
    members[0].answers.clear();
    members[0].send(group, 1, flag::RETRY, "from 0");
    assert_eq!(members[0].outcome(1), outcome::STORED);

    // Over HTTP, at a node that is not the home.
    let path = |rest: &str| format!("/v1/groups/{group}{rest}");
    let posted = r#"{"from": "2", "id": "77", "payload": "aHR0cA=="}"#;
    assert_eq!(request(fleet.node(0), "POST", &path("/messages"), posted, 200)["duplicate"], false);
    assert!(all_have(&mut members, usize::MAX, "http", PATIENCE));
    stored.push("http".to_owned());
    assert_eq!(request(fleet.node(0), "GET", &path(""), "", 200)["members"], 6);
    let mine = request(fleet.node(1), "GET", "/v1/users/1/groups", "", 200);
    assert_eq!(mine["groups"].as_array().map(Vec::len), Some(1), "{mine}");

    // Who is taken out at another node gets nothing more, and may send nothing.
    let mut gone = members.pop().expect("six");
    request(fleet.node(1), "DELETE", &path("/members/6"), "", 200);
    members[1].send(group, 2, 0, "without the last");
    assert_eq!(members[1].outcome(2), outcome::STORED);
    assert!(all_have(&mut members, 1, "without the last", PATIENCE));
    stored.push("without the last".to_owned());
    gone.send(group, 3, 0, "nobody gets this");
    assert_eq!(gone.outcome(3), outcome::DENIED);
    assert!(!gone.has("without the last"));

    // The home is killed.
    let mut node = fleet.nodes[2].take().expect("it runs");
    node.signal(Signal::KILL);
    node.wait_for_exit();
    members.retain(|member| (member.user - 1) % 3 != 2);
    assert_eq!(members.len(), 4);
    let (mut id, begun) = (10, Instant::now());
    loop {
        let (sender, text) = ((id % 4) as usize, format!("meanwhile {id}"));
        members[sender].send(group, id, 0, &text);
        let outcome = members[sender].outcome(id);
        assert!([outcome::STORED, outcome::OVERLOADED].contains(&outcome), "{outcome}");
        let is_stored = outcome == outcome::STORED;
        if is_stored {
            stored.push(text.clone());
        }
        id += 1;
        if is_stored && all_have(&mut members, sender, &text, Duration::from_millis(500)) {
            break;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "the group does not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    for sender in 0..4 {
        let text = format!("after {sender}");
        members[sender].send(group, 1_000, 0, &text);
        assert_eq!(members[sender].outcome(1_000), outcome::STORED);
        assert!(all_have(&mut members, sender, &text, PATIENCE), "{text}");
        stored.push(text);
    }
    // The log has all that was stored, once and in order; and whoever logs in anew is in the group.
    members.push(Member::new(&fleet, 0, 3));
    members[0].send(group, 2_000, 0, "for the new session");
    assert_eq!(members[0].outcome(2_000), outcome::STORED);
    assert!(all_have(&mut members[4..], usize::MAX, "for the new session", PATIENCE));
    stored.push("for the new session".to_owned());
    let whole = members[4].history(group, 0);
    assert!(whole.is_sorted_by_key(|(stamp, _)| *stamp));
    // What was answered SENT 3 may be in it all the same.
    let texts: Vec<&String> = whole.iter().map(|(_, text)| text).collect();
    let kept: Vec<&String> = texts.iter().copied().filter(|text| stored.contains(*text)).collect();
    assert_eq!(kept, stored.iter().collect::<Vec<_>>());
    for member in &mut members {
        assert_eq!(member.history(group, 0), whole);
        assert!(member.got.iter().all(|given| whole.contains(given)), "user {}: {:?}", member.user, member.got);
    }
    let mut gone = Member::new(&fleet, 0, 6);
    gone.client.write(&wire::sync_group(7, group, 0, 0));
    gone.client.expect_error(code::NOT_A_MEMBER, 0, group);
    drop((members, gone));
    fleet.finish();
}
