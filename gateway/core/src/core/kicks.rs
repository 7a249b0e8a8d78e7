//! Ending the sessions of a user at the wish of an operator, wherever in the cluster they are.
//!
//! The shard that is asked asks the user's home, if that is not itself. The home ends its own sessions, has the other
//! nodes end theirs, and answers when those are gone. Whoever asked can so be told how many sessions ended, and whether
//! any may be left.
//!
//! | table | bound | when it is full | for how long |
//! |---|---|---|---|
//! | requests sent to homes | [`KICKS_MAX`] | refused, and counted | [`ANSWER_MS`] |
//! | kicks whose sessions on other nodes are not gone yet | [`KICKS_MAX`] | answered at once with what is left | [`CONFIRM_MS`] |

use super::links::ticks;
use super::shard::Shard;
use crate::control::{Kicked, Rest};
use crate::directory::{Home, NodeKey, is_remote};
use crate::limits::KICKS_MAX;
use crate::mesh::wire::{Record as FarRecord, kick_status};
use crate::reason::CloseReason;
use futures_channel::oneshot;
use hashbrown::HashMap;
use trunkline_proto::Code;
use trunkline_router_core::presence::Presence;

/// How long other nodes have to end their sessions.
const CONFIRM_MS: u64 = 3_000;
/// How long the home has to answer: a little longer.
const ANSWER_MS: u64 = 4_000;

/// Kicks under way at one shard.
#[derive(Debug, Default)]
pub(crate) struct Kicks {
    last: u64,
    /// Requests of this shard that a home has not answered.
    asked: HashMap<u64, Asked>,
    /// Kicks of this home whose sessions on other nodes are not all gone.
    confirming: Vec<Confirming>,
}

#[derive(Debug)]
struct Asked {
    user: u64,
    device: Option<String>,
    answer: oneshot::Sender<Kicked>,
    deadline_tick: u32,
}

#[derive(Debug)]
struct Confirming {
    user: u64,
    asker: Asker,
    ended: u32,
    /// Sessions on other nodes that were asked to end.
    left: Vec<u64>,
    deadline_tick: u32,
}

/// Who gets the answer.
#[derive(Debug)]
enum Asker {
    /// The control thread of this node.
    Here(oneshot::Sender<Kicked>),
    /// The shard of another node, and its number for the request.
    There { node: NodeKey, shard: u16, ask: u64 },
}

impl Shard {
    /// Ends the sessions of a user, or that of one device, and answers when they are gone.
    pub(crate) fn kick_user(&mut self, user: u64, device: Option<String>, answer: oneshot::Sender<Kicked>) {
        match self.home(user) {
            Home::Here => self.kick_at_home(user, device.as_deref(), Asker::Here(answer)),
            Home::There { node, shard } => {
                if self.kicks.asked.len() >= KICKS_MAX {
                    self.links.stats.limit_kicks.add(1);
                    let _ = answer.send(Kicked { ended: 0, rest: Rest::Busy });
                    return;
                }
                self.kicks.last += 1;
                let ask = self.kicks.last;
                let deadline_tick = self.links.tick + ticks(ANSWER_MS);
                let record = FarRecord::KickUser { user, shard: self.shard, ask, device: device.as_deref() };
                let sent = self.send_far(node, shard, &record);
                let asked = Asked { user, device, answer, deadline_tick };
                match sent {
                    Ok(()) => drop(self.kicks.asked.insert(ask, asked)),
                    Err(_) => self.kick_without_home(asked),
                }
            }
            // While no node is active nobody can say that these sessions are all.
            Home::Nowhere => self.answer_kick(Asker::Here(answer), Kicked { ended: 0, rest: Rest::Unsettled }),
        }
    }

    /// Another node asks for a kick.
    pub(crate) fn kick_asked(&mut self, node: NodeKey, shard: u16, ask: u64, user: u64, device: Option<&str>) {
        self.kick_at_home(user, device, Asker::There { node, shard, ask });
    }

    fn kick_at_home(&mut self, user: u64, device: Option<&str>, asker: Asker) {
        let knows_all = self.serving && self.home(user) == Home::Here && !self.is_unsettled(user);
        if !knows_all {
            return self.answer_kick(asker, Kicked { ended: 0, rest: Rest::Unsettled });
        }
        let sessions = self.sessions_of(user, device);
        let mut left = Vec::new();
        for (slot, session) in &sessions {
            if is_remote(*slot) {
                self.kick_remote(*slot, user, *session, Code::Kicked);
                left.push(*session);
            } else {
                self.close(*slot, CloseReason::Kicked);
            }
        }
        let ended = (sessions.len() - left.len()) as u32;
        if left.is_empty() {
            return self.answer_kick(asker, Kicked { ended, rest: Rest::Nothing });
        }
        if self.kicks.confirming.len() >= KICKS_MAX {
            self.links.stats.limit_kicks.add(1);
            let rest = Rest::Unconfirmed(left.len() as u32);
            return self.answer_kick(asker, Kicked { ended, rest });
        }
        let deadline_tick = self.links.tick + ticks(CONFIRM_MS);
        self.kicks.confirming.push(Confirming { user, asker, ended, left, deadline_tick });
    }

    fn sessions_of(&self, user: u64, device: Option<&str>) -> Vec<(u32, u64)> {
        let sessions = self.presence.sessions(user).iter();
        let wanted = sessions.filter(|entry| device.is_none_or(|name| entry.device() == name));
        wanted.map(|entry| (entry.slot, entry.session)).collect()
    }

    /// A request has found no room on its way to the home.
    pub(super) fn kick_not_asked(&mut self, ask: u64) {
        if let Some(asked) = self.kicks.asked.remove(&ask) {
            self.kick_without_home(asked);
        }
    }

    /// The home cannot be asked: at least the sessions here end.
    fn kick_without_home(&mut self, asked: Asked) {
        let own = self.sessions_of(asked.user, asked.device.as_deref());
        let own: Vec<u32> = own.into_iter().map(|(slot, _)| slot).filter(|slot| !is_remote(*slot)).collect();
        for slot in &own {
            self.close(*slot, CloseReason::Kicked);
        }
        let _ = asked.answer.send(Kicked { ended: own.len() as u32, rest: Rest::Unreachable });
    }

    fn answer_kick(&mut self, asker: Asker, kicked: Kicked) {
        match asker {
            // Whoever asked may not wait any more.
            Asker::Here(answer) => {
                let _ = answer.send(kicked);
            }
            Asker::There { node, shard, ask } => {
                let (status, left) = match kicked.rest {
                    Rest::Nothing => (kick_status::DONE, 0),
                    Rest::Unconfirmed(left) => (kick_status::DONE, left),
                    Rest::Unsettled | Rest::Unreachable | Rest::Busy => (kick_status::UNSETTLED, 0),
                };
                let record = FarRecord::KickDone { shard, ask, ended: kicked.ended, left, status };
                if self.send_far(node, shard, &record).is_err() {
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
        }
    }

    /// The home of a user answers.
    pub(crate) fn kick_answered(&mut self, ask: u64, ended: u32, left: u32, status: u8) {
        // It may have been given up.
        let Some(asked) = self.kicks.asked.remove(&ask) else { return };
        let rest = match (status, left) {
            (kick_status::DONE, 0) => Rest::Nothing,
            (kick_status::DONE, left) => Rest::Unconfirmed(left),
            _ => Rest::Unsettled,
        };
        let _ = asked.answer.send(Kicked { ended, rest });
    }

    /// Answers the kicks whose sessions have gone or whose time is over. Once a tick.
    pub(crate) fn kicks_due(&mut self) {
        let tick = self.links.tick;
        let late = |deadline: u32| deadline <= tick;
        let overdue: Vec<u64> =
            self.kicks.asked.iter().filter(|(_, asked)| late(asked.deadline_tick)).map(|(ask, _)| *ask).collect();
        for ask in overdue {
            if let Some(asked) = self.kicks.asked.remove(&ask) {
                self.kick_without_home(asked);
            }
        }
        for mut kick in std::mem::take(&mut self.kicks.confirming) {
            let sessions = self.presence.sessions(kick.user);
            let asked = kick.left.len();
            kick.left.retain(|session| sessions.iter().any(|entry| entry.session == *session));
            // With a change of the view the sessions are told to another home, and gone from here although they go on.
            let is_home = self.serving && self.home(kick.user) == Home::Here;
            if is_home {
                kick.ended += (asked - kick.left.len()) as u32;
            }
            let rest = match kick.left.len() as u32 {
                _ if !is_home => Rest::Unsettled,
                0 => Rest::Nothing,
                left if late(kick.deadline_tick) => Rest::Unconfirmed(left),
                _ => {
                    self.kicks.confirming.push(kick);
                    continue;
                }
            };
            self.answer_kick(kick.asker, Kicked { ended: kick.ended, rest });
        }
    }
}
