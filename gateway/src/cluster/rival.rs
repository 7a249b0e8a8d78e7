//! A login that lost against what Redis holds: which of the two is right?
//!
//! Versions are times of different clocks, so the one with the higher version need not be the later login, and need not
//! even count any more. What counts is whether it lives.

use crate::control::{Control, ControlPort};
use crate::reason::CloseReason;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use trunkline_router::membership::View;
use trunkline_router::redis::{Plane, PresenceEntry};

/// Pause before a shard whose queue was full is told again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// How often that is tried; a shard has a turn within far less.
const RETRIES_MAX: u32 = 200;
/// Losers that are looked into together: one pipeline for each master of Redis, so a hundred thousand take seconds and
/// not minutes.
const BATCH: usize = 512;
/// Of that many losers of a batch each has a line of its own in the log.
const NAMED_MAX: usize = 5;

/// A login of this node that lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loser {
    pub(super) user: u64,
    pub(super) entry: PresenceEntry,
    /// The version that beat it.
    pub(super) version: u64,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The device has a session that counts elsewhere: end ours.
    End,
    /// What is stored does not count: write ours above this version.
    Outbid(u64),
    /// It has been settled meanwhile.
    Nothing,
}

/// What to do about `loser`, with what Redis holds of its device.
fn verdict(loser: &Loser, stored: Option<&PresenceEntry>, view: &View) -> Verdict {
    match stored {
        Some(entry) if entry.node == loser.entry.node && entry.incarnation >= loser.entry.incarnation => {
            Verdict::Nothing
        }
        Some(entry) if view.is_live(&entry.node, entry.incarnation) => Verdict::End,
        Some(entry) => Verdict::Outbid(entry.version.max(loser.version)),
        // A mark that a logout left, or garbage.
        None => Verdict::Outbid(loser.version),
    }
}

/// Settles the losers in batches, for ever or until nobody can send any more. A loser that cannot be settled is found
/// again when its session is compared or written the next time.
pub(super) async fn settle(
    plane: Plane,
    ports: Vec<ControlPort>,
    view: watch::Receiver<Arc<View>>,
    mut losers: mpsc::Receiver<Loser>,
) {
    let mut batch: Vec<Loser> = Vec::with_capacity(BATCH);
    while losers.recv_many(&mut batch, BATCH).await > 0 {
        let devices: Vec<(u64, &str)> = batch.iter().map(|loser| (loser.user, &*loser.entry.device)).collect();
        let stored = plane.stored(&devices).await;
        let judged: Vec<(&Loser, Verdict)> = {
            let view = view.borrow();
            // What could not be asked for is left alone.
            let known = batch.iter().zip(&stored).filter_map(|(loser, stored)| Some((loser, stored.as_ref().ok()?)));
            known.map(|(loser, stored)| (loser, verdict(loser, stored.as_ref(), &view))).collect()
        };
        for (at, (loser, verdict)) in judged.iter().filter(|(_, verdict)| *verdict != Verdict::Nothing).enumerate() {
            let (user, session) = (loser.user, loser.entry.session);
            if at < NAMED_MAX {
                let device = &*loser.entry.device;
                tracing::info!(user, session, device, ?verdict, "a login lost against what Redis holds");
            }
            let control = match *verdict {
                Verdict::End => Control::End { user, session, reason: CloseReason::Replaced },
                Verdict::Outbid(above) => Control::Outbid { user, session, above },
                Verdict::Nothing => continue,
            };
            if let Some(port) = ports.get(loser.entry.shard as usize) {
                send(port, control).await;
            }
        }
        let more = judged.iter().filter(|(_, verdict)| *verdict != Verdict::Nothing).count().saturating_sub(NAMED_MAX);
        if more > 0 {
            tracing::info!(more, "and more logins lost at the same time");
        }
        batch.clear();
    }
}

async fn send(port: &ControlPort, mut control: Control) {
    for _ in 0..RETRIES_MAX {
        match port.send(control) {
            Ok(()) => return,
            Err(refused) => control = refused,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_router::membership::{Membership, NodeRecord, NodeState};

    fn entry(node: &str, incarnation: u64, session: u64, version: u64) -> PresenceEntry {
        PresenceEntry {
            device: "desk".into(),
            node: node.into(),
            incarnation,
            shard: 0,
            session,
            since_ms: 0,
            class: "".into(),
            version,
        }
    }

    fn view() -> Arc<View> {
        let records = [("a", 7), ("b", 9)].map(|(name, incarnation)| NodeRecord {
            name: name.to_owned(),
            incarnation,
            state: NodeState::Active,
            weight: 1,
            shards: 1,
            mesh: "127.0.0.1:1".to_owned(),
            advertise: "127.0.0.1:2".to_owned(),
            http: String::new(),
            protocol: 1,
            connections: 0,
            users: 0,
            started_ms: 1,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: false,
            turns: 0,
            view: 0,
            silent: String::new(),
        });
        let mut membership = Membership::new(Some("a"), 5_000);
        membership.polled(0, records.to_vec());
        membership.view()
    }

    fn judged(stored: Option<PresenceEntry>) -> Verdict {
        verdict(&Loser { user: 5, entry: entry("a", 7, 1, 100), version: 200 }, stored.as_ref(), &view())
    }

    #[test]
    fn a_session_that_lives_elsewhere_wins() {
        assert_eq!(judged(Some(entry("b", 9, 3, 200))), Verdict::End);
    }

    #[test]
    fn what_does_not_count_is_outbid() {
        assert_eq!(judged(Some(entry("b", 8, 3, 200))), Verdict::Outbid(200), "of an incarnation before");
        assert_eq!(judged(Some(entry("gone", 1, 3, 300))), Verdict::Outbid(300), "of a node that is no more");
        assert_eq!(
            judged(Some(entry("a", 6, 3, 200))),
            Verdict::Outbid(200),
            "of this node before it was started again"
        );
        assert_eq!(judged(None), Verdict::Outbid(200), "a mark");
    }

    #[test]
    fn a_later_session_of_this_node_has_settled_it() {
        assert_eq!(judged(Some(entry("a", 7, 2, 200))), Verdict::Nothing);
        assert_eq!(judged(Some(entry("a", 8, 1, 100))), Verdict::Nothing);
    }
}
