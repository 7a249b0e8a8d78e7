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
use crate::mesh::handshake::{self, Dial, Dialer, Identity, ResumeState, Secrets};
use crate::mesh::peers::CALLER_MARK;
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
/// Calls under way at once. A node that begins makes 128 with a beat, of which none takes longer than two.
const CALLS_MAX: usize = 512;
/// The name to dial under.
const DIALER_NAME: &str = "!reach";
/// What is read at once of an answer.
const READ_BYTES: usize = 1_024;

/// What this node has found of those that join.
#[derive(Debug)]
pub(super) struct Prober {
    secrets: Secrets,
    own: String,
    found: BTreeMap<String, Found>,
    dials: JoinSet<(String, u64, Result<(), String>)>,
    calls: JoinSet<Result<(), String>>,
    calls_refused: u64,
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
        Prober { secrets, own: own.to_owned(), found, dials, calls, calls_refused: 0 }
    }

    /// Calls at the node `name` at its mesh address, so that it knows of this one in the life `life`. It refuses the
    /// call, since it has no link for it; what it was called by is proved then.
    pub(super) fn call(&mut self, life: u64, name: &str, mesh: &str) {
        while self.calls.try_join_next().is_some() {}
        if self.calls.len() >= CALLS_MAX {
            self.calls_refused += 1;
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

    /// Calls that were not made because so many others were under way; the next beats make them.
    pub(super) fn calls_refused(&self) -> u64 {
        self.calls_refused
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
