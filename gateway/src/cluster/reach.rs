//! Can the others dial this node, and can this one dial those that join?
//!
//! A node that its peers cannot dial would take its place in the ring and be the home of users whom nobody reaches. It
//! cannot find that out by itself: 127.0.0.1 is reached from everywhere, and is each time another node. So every node
//! dials those that join, up to the proof that it is that very node, and says in its own record what it found; a node
//! that joins waits until most of those that were there before it have found it.
//!
//! - Who was there before: the active nodes. While there are none, those that joined earlier, by incarnation and name;
//!   so of nodes that are started together one has nobody before it and begins.
//! - Most, not one: the one may be its neighbour on the same host, for whom a loopback address works. Not all: one node
//!   that cannot dial anybody must not keep others from joining.
//! - A node that has crashed says nothing, and counts until its lease is over. One of a version that does not dial has
//!   no say.
//! - Nothing new is on the wire: it is the handshake of a link, ended before it claims one, under a name that no node
//!   has. A node is dialed by those whose names sort before its own only, and that name sorts before all.

use crate::clock::now_ms;
use crate::directory::NodeKey;
use crate::mesh::handshake::{self, Dial, Dialer, Identity, ResumeState, Secrets};
use crate::mesh::node_key;
use crate::mesh::peers::{CALLER_MARK, Counted, LINKS_MAX, links_needed};
use crate::mesh::spread::Side;
use crate::mesh::wire::NONCE_BYTES;
use rustix::rand::GetRandomFlags;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use trunkline_router::membership::{NodeRecord, NodeState, REACH_MAX, Reach};

/// How long a node may take to answer. It is asked again with the next poll.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The name to dial under.
const DIALER_NAME: &str = "!reach";
/// What is read at once of an answer.
const READ_BYTES: usize = 1_024;

/// Whether a node that joins may become active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Yes.
    Open,
    /// Not yet; holds why.
    Waits(String),
    /// Not as long as the others cannot dial it; holds who says so and what to do.
    Unreachable(String),
    /// Not with so many nodes and shards: the links between them would be more than there are places for. Holds where,
    /// and what to do.
    NoPlaces(String),
}

/// Judges by the records of all nodes, of which `own` is one or not.
pub(crate) fn admission(own: &NodeRecord, records: &[NodeRecord]) -> Admission {
    let others = || records.iter().filter(|record| record.name != own.name && record.reach.is_some());
    let active = others().any(|record| record.state == NodeState::Active);
    let before = |record: &&NodeRecord| match record.state {
        NodeState::Active => true,
        NodeState::Joining => !active && (record.incarnation, &record.name) < (own.incarnation, &own.name),
        NodeState::Draining | NodeState::Gone | NodeState::Other(_) => false,
    };
    let (mut found, mut not_found, mut silent) = (0, Vec::new(), Vec::new());
    for record in others().filter(before) {
        let of_own = |reach: &&Reach| reach.name == own.name && reach.incarnation == own.incarnation;
        match record.reach.iter().flatten().find(of_own) {
            Some(Reach { ok: true, .. }) => found += 1,
            Some(_) => not_found.push(record.name.as_str()),
            None => silent.push(record.name.as_str()),
        }
    }
    if let Some(why) = no_places(own, records) {
        return Admission::NoPlaces(why);
    }
    let judges = found + not_found.len() + silent.len();
    if judges == 0 || 2 * found > judges {
        return Admission::Open;
    }
    if not_found.is_empty() {
        return Admission::Waits(format!("waiting until {} have dialed this node at {}", silent.join(", "), own.mesh));
    }
    Admission::Unreachable(format!(
        "this node does not become active: {} cannot dial it at {}; give --mesh an address of this machine that they reach",
        not_found.join(", "),
        own.mesh
    ))
}

fn side(record: &NodeRecord) -> Side {
    Side { shards: record.shards, links_max: record.mesh_links.min(u16::MAX.into()) as u16 }
}

/// Where there would be more links than places with this node in the ring.
fn no_places(own: &NodeRecord, records: &[NodeRecord]) -> Option<String> {
    let others = || records.iter().filter(|record| record.name != own.name && record.state != NodeState::Gone);
    let active = others().filter(|record| record.state == NodeState::Active);
    std::iter::once(own).chain(active).find_map(|at| {
        let peers = others().chain(std::iter::once(own)).filter(|record| record.name != at.name);
        let peers = peers.map(|record| Counted {
            key: NodeKey(node_key(&record.name, record.life())),
            side: side(record),
        });
        let needed = links_needed(side(at), peers).err()?;
        Some(format!(
            "this node does not become active: a shard of node {} would have {needed} mesh links, and has places for {LINKS_MAX}; \
             give all nodes about as many --shards, fewer --mesh-links, or have fewer nodes",
            at.name
        ))
    })
}

/// What this node has found of those that join.
#[derive(Debug)]
pub(super) struct Prober {
    secrets: Secrets,
    own: String,
    found: BTreeMap<String, Found>,
    dials: JoinSet<(String, u64, Result<(), String>)>,
    calls: JoinSet<Result<(), String>>,
}

#[derive(Debug)]
struct Found {
    incarnation: u64,
    /// `None` until the first dial has ended.
    ok: Option<bool>,
    dialing: bool,
}

impl Prober {
    pub(super) fn new(secrets: Secrets, own: &str) -> Self {
        let (found, dials, calls) = (BTreeMap::new(), JoinSet::new(), JoinSet::new());
        Prober { secrets, own: own.to_owned(), found, dials, calls }
    }

    /// Calls at the node `name` at its mesh address, so that it knows of this one in the life `life`. It refuses the
    /// call, since it has no link for it; what it was called by is proved then.
    pub(super) fn call(&mut self, life: u64, name: &str, mesh: &str) {
        while self.calls.try_join_next().is_some() {}
        if self.calls.len() >= REACH_MAX {
            return;
        }
        let me = Identity {
            name: format!("{CALLER_MARK}{}", self.own),
            incarnation: life,
            versions: self.secrets.versions(),
        };
        let (secret, name, mesh) = (self.secrets.first(), name.to_owned(), mesh.to_owned());
        self.calls.spawn(async move {
            let called = timeout(DIAL_TIMEOUT, dial(secret, me, &name, &mesh, true)).await;
            called.unwrap_or_else(|_| Err(format!("no answer within {} s", DIAL_TIMEOUT.as_secs())))
        });
    }

    /// Dials those that join and were not found yet, and forgets those that do not join any more.
    pub(super) fn look(&mut self, records: &[NodeRecord]) {
        let joins = |name: &str, incarnation: u64| {
            let same = |record: &&NodeRecord| record.name == name && record.incarnation == incarnation;
            records.iter().find(same).is_some_and(|record| record.state == NodeState::Joining)
        };
        self.found.retain(|name, found| found.dialing || joins(name, found.incarnation));
        for record in records.iter().filter(|record| record.state == NodeState::Joining && record.name != self.own) {
            let found = self.found.get(&record.name);
            let known = found.is_some_and(|found| {
                found.dialing || (found.incarnation == record.incarnation && found.ok == Some(true))
            });
            if known || (found.is_none() && self.found.len() >= REACH_MAX) {
                continue;
            }
            let ok = found.filter(|found| found.incarnation == record.incarnation).and_then(|found| found.ok);
            let incarnation = record.incarnation;
            self.found.insert(record.name.clone(), Found { incarnation, ok, dialing: true });
            let me = Identity { name: DIALER_NAME.to_owned(), incarnation: 0, versions: self.secrets.versions() };
            let (secret, name, mesh) = (self.secrets.first(), record.name.clone(), record.mesh.clone());
            self.dials.spawn(async move {
                let dialed = timeout(DIAL_TIMEOUT, dial(secret, me, &name, &mesh, false)).await;
                let result = dialed.unwrap_or_else(|_| Err(format!("no answer within {} s", DIAL_TIMEOUT.as_secs())));
                (name, incarnation, result)
            });
        }
    }

    /// Waits for the end of a dial. Whether what is known has changed; never, while none is under way.
    pub(super) async fn next(&mut self) -> bool {
        let Some(ended) = self.dials.join_next().await else { return std::future::pending().await };
        // A dial has no way to panic; were there one, its node would not be dialed again.
        let Ok((name, incarnation, result)) = ended else { return false };
        let Some(found) = self.found.get_mut(&name).filter(|found| found.incarnation == incarnation) else {
            return false;
        };
        found.dialing = false;
        let changed = found.ok.replace(result.is_ok()) != Some(result.is_ok());
        match result {
            Err(error) if changed => tracing::warn!("node {name} joins, and cannot be dialed by this one: {error}"),
            _ => {}
        }
        changed
    }

    /// For this node's record.
    pub(super) fn reach(&self) -> Vec<Reach> {
        let found = self.found.iter().filter_map(|(name, found)| {
            Some(Reach { name: name.clone(), incarnation: found.incarnation, ok: found.ok? })
        });
        found.collect()
    }
}

/// Connects, and goes through the handshake as far as the proof of the node's name; or one step on, to where it is told
/// who calls.
async fn dial(
    secret: handshake::ClusterSecret,
    me: Identity,
    name: &str,
    mesh: &str,
    calls: bool,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("{mesh}: {error}");
    let mut stream = TcpStream::connect(mesh).await.map_err(failed)?;
    let dial = Dial { peer: name.to_owned(), peer_incarnation_known: 0, link: 0, resume: ResumeState::default() };
    let (mut out, mut random) = (Vec::new(), [0; NONCE_BYTES]);
    // So few bytes come whole, once the kernel's generator is seeded.
    match rustix::rand::getrandom(&mut random, GetRandomFlags::empty()) {
        Ok(NONCE_BYTES) => {}
        other => return Err(format!("no random numbers: {other:?}")),
    }
    let patience_ms = DIAL_TIMEOUT.as_millis() as u64;
    let mut dialer = Dialer::new(secret, me, dial, &random, now_ms(), patience_ms, &mut out);
    let mut bytes = [0; READ_BYTES];
    while !dialer.peer_has_proved() {
        stream.write_all(&out).await.map_err(failed)?;
        out.clear();
        let read = stream.read(&mut bytes).await.map_err(failed)?;
        if read == 0 {
            return Err(format!("{mesh}: the connection was closed in the handshake"));
        }
        dialer.received(&bytes[..read], &mut out).map_err(|error| format!("{mesh}: {error}"))?;
    }
    if calls {
        stream.write_all(&out).await.map_err(failed)?;
        // It is refused. To hang up before that could take the call back.
        while stream.read(&mut bytes).await.map_err(failed)? > 0 {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, incarnation: u64, state: NodeState, reach: Option<Vec<Reach>>) -> NodeRecord {
        NodeRecord {
            name: name.to_owned(),
            incarnation,
            state,
            weight: 1,
            shards: 1,
            mesh: "127.0.0.1:7790".to_owned(),
            advertise: "10.0.0.1:7700".to_owned(),
            http: String::new(),
            protocol: 1,
            connections: 0,
            users: 0,
            started_ms: 1,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: false,
            turns: 0,
            view: 0,
        }
    }

    fn says(ok: bool) -> Option<Vec<Reach>> {
        Some(vec![Reach { name: "x".to_owned(), incarnation: 50, ok }])
    }

    fn judged(others: &[NodeRecord]) -> Admission {
        let own = record("x", 50, NodeState::Joining, Some(Vec::new()));
        admission(&own, &[std::slice::from_ref(&own), others].concat())
    }

    #[test]
    fn the_first_node_waits_for_nobody() {
        use NodeState::{Active, Draining, Joining};
        assert_eq!(judged(&[]), Admission::Open);
        assert_eq!(judged(&[record("later", 51, Joining, says(false))]), Admission::Open, "it came later");
        assert_eq!(judged(&[record("leaves", 3, Draining, says(false))]), Admission::Open);
        assert_eq!(judged(&[record("old", 3, Active, None)]), Admission::Open, "a version that does not dial");
    }

    #[test]
    fn most_of_those_before_it_decide() {
        use NodeState::{Active, Joining};
        let active = |name: &str, reach| record(name, 3, Active, reach);
        assert_eq!(judged(&[active("a", says(true))]), Admission::Open);
        assert!(matches!(judged(&[active("a", says(false))]), Admission::Unreachable(_)));
        assert!(matches!(judged(&[active("a", Some(Vec::new()))]), Admission::Waits(_)), "not dialed yet");
        assert!(matches!(judged(&[record("a", 49, Joining, says(false))]), Admission::Unreachable(_)));
        // A neighbour on the same host is not enough.
        assert!(matches!(judged(&[active("a", says(true)), active("b", says(false))]), Admission::Unreachable(_)));
        let joins_too =
            [active("a", says(true)), record("b", 4, Joining, says(false)), record("c", 5, Joining, Some(Vec::new()))];
        assert_eq!(judged(&joins_too), Admission::Open, "who joins has no say beside who is active");
        let one_of_three = [active("a", says(true)), active("b", says(false)), active("c", says(true))];
        assert_eq!(judged(&one_of_three), Admission::Open, "one that cannot dial keeps nobody out");
    }

    #[test]
    fn who_would_bring_more_links_than_there_are_places_for_does_not_become_active() {
        let (yes, mut own) = (says(true), record("x", 50, NodeState::Joining, Some(Vec::new())));
        let others = |shards: u32, count: usize| -> Vec<NodeRecord> {
            let other = |at| NodeRecord { shards, ..record(&format!("n{at}"), 3, NodeState::Active, yes.clone()) };
            (0..count).map(other).collect()
        };
        let judged = |own: &NodeRecord, others: &[NodeRecord]| admission(own, others);
        assert_eq!(judged(&own, &others(1, LINKS_MAX)), Admission::Open);
        let Admission::NoPlaces(why) = judged(&own, &others(1, LINKS_MAX + 1)) else { panic!("too many nodes") };
        assert!(why.contains("256") && why.contains("257") && why.contains("node x"), "{why}");
        // Ten nodes that go from 2 to 56 shards: those that have not changed yet run out of places.
        let mut grown = others(56, 9);
        grown.push(NodeRecord { shards: 2, ..record("old", 3, NodeState::Active, yes.clone()) });
        own.shards = 56;
        let Admission::NoPlaces(why) = judged(&own, &grown) else { panic!("ten times 28 links") };
        assert!(why.contains("280") && why.contains("node old") && why.contains("--shards"), "{why}");
        grown.truncate(8);
        grown.push(NodeRecord { shards: 2, ..record("old", 3, NodeState::Active, yes.clone()) });
        assert_eq!(judged(&own, &grown), Admission::Open, "nine times 28 find places");
    }

    #[test]
    fn a_few_links_for_each_two_nodes_leave_places_for_many_nodes_of_many_shards() {
        let (yes, own) = (says(true), record("x", 50, NodeState::Joining, Some(Vec::new())));
        let others = |mesh_links: u32| -> Vec<NodeRecord> {
            let other = |at| {
                let record = record(&format!("n{at}"), 3, NodeState::Active, yes.clone());
                NodeRecord { shards: 64, mesh_links, ..record }
            };
            (0..300).map(other).collect()
        };
        let own = |mesh_links| NodeRecord { shards: 64, mesh_links, ..own.clone() };
        assert_eq!(admission(&own(4), &others(4)), Admission::Open, "some 19 links a shard");
        assert!(matches!(admission(&own(4), &others(0)), Admission::NoPlaces(_)), "300 links a shard");
        assert!(matches!(admission(&own(0), &others(4)), Admission::NoPlaces(_)));
    }

    #[test]
    fn what_was_found_of_an_incarnation_before_does_not_count() {
        let before = vec![Reach { name: "x".to_owned(), incarnation: 49, ok: true }];
        let other = record("a", 3, NodeState::Active, Some(before));
        assert!(matches!(judged(&[other]), Admission::Waits(_)));
    }

    #[test]
    fn who_says_no_and_what_to_do_is_said() {
        let Admission::Unreachable(why) = judged(&[record("a", 3, NodeState::Active, says(false))]) else {
            panic!("it was let in");
        };
        for part in ["a cannot dial it", "127.0.0.1:7790", "--mesh"] {
            assert!(why.contains(part), "{why}");
        }
    }
}
