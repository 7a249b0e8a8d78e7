//! A change of the view: who is lost, whose home is another one now, and the walk that tells the new homes, piece by
//! piece.
//!
//! With each view a shard
//! - answers for what lost nodes owe, and closes the links to them;
//! - registers its sessions with homes that do not know them, sends the messages that wait for their users after them,
//!   forgets what other nodes had told it and is not its to know any more, and then says that this was all
//!   ([`WalkStep`]);
//! - as a new home, lets messages wait until every other node has said that ([`Settling`](crate::directory::Settling)).

use super::carry::is_easy;
use super::far::{self, Path};
use super::links::ticks;
use super::route::Routed;
use super::shard::Shard;
use crate::conn::Phase;
use crate::directory::{Away, Directory, Held, Home, Member, Routing, Transferred, ViewWalk, WalkStep};
use crate::head::{HEADED, MessageHead};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::inbox::{Keep, Unacked};
use crate::limits::DUPLICATES_MS;
use crate::mesh::node_key;
use crate::mesh::peers::{FarError, Mesh};
use crate::mesh::wire::{Record as FarRecord, SETTLED_SHARDS_SINCE, Seat, flags as far_flags, shards_of};
use std::sync::Arc;
use trunkline_proto::{Outcome, flags};
use trunkline_router_core::membership::{NodeState, View, promise_ms};
use trunkline_router_core::presence::Presence;

/// How long a new home waits for the others at most; or for a lease time, if that is longer: until then a former home
/// that is not reached may still have the view before.
const SETTLE_MS: u64 = 5_000;
/// Sessions, or places of a table, that one turn goes through.
const WALK_STEPS: u32 = 512;

impl Shard {
    /// The nodes that count now, and the incarnation since which this one has not been fenced.
    pub(crate) fn set_view(&mut self, view: Arc<View>, life: u64) {
        let key_of = |name: &str, life| NodeKey(node_key(name, life));
        let own = key_of(&self.node, life);
        let before = self.directory.routing.clone();
        // Between views that do not follow each other other nodes may have been homes of users here; and where the last
        // change is not told of to the end, those who have a home here again may still be read for.
        let in_doubt = self.directory.is_changing();
        let next = Arc::new(Routing::new(own, &view, key_of));
        self.links.stats.view_epoch.set(view.epoch);
        let is_renumbered = self.desk.as_ref().is_some_and(|desk| desk.shared && desk.port.view() != view.epoch);
        if let Some(desk) = &mut self.desk {
            let known = desk.port.view();
            desk.port.set_view(view.epoch);
            let moves = before.as_ref().is_none_or(|before| before.digest() != next.digest());
            let (is_other, skipped) = (known != view.epoch || moves, view.epoch > known + 1);
            if desk.shared && is_other && (in_doubt || skipped) {
                desk.doubt_all();
            }
            if desk.shared && (moves || skipped) {
                // For as long as the home before remembers what has come, and may have stored it.
                let until_tick = self.links.tick + ticks(DUPLICATES_MS / 2);
                let ended = before.clone().filter(|before| before.own() == own && !skipped);
                self.directory.view_ended(ended, until_tick);
            }
            desk.note_view_change();
        }
        self.life = life;
        let mono_ms = self.now.mono_ms;
        if let Some(mesh) = &mut self.mesh {
            mesh.set_view(life, &next, mono_ms);
        }
        if before.as_ref().is_some_and(|before| before.own() == own && before.digest() == next.digest()) {
            if is_renumbered {
                self.claim_logs_again();
            }
            return;
        }
        let reborn = before.as_ref().is_some_and(|before| before.own() != own);
        let lease_ms = self.cluster.as_ref().map_or(0, |cluster| promise_ms(cluster.state.lease_ms()));
        let deadline = self.links.tick + ticks(SETTLE_MS.max(lease_ms));
        self.directory.begin_view(next.clone(), deadline, self.now.mono_us);
        if let Some(before) = &before {
            let lost = before.lost_in(&next);
            if !reborn {
                self.tell_lost(&lost, &next);
            }
            let ended = lost.iter().filter(|member| member.state != NodeState::Draining).map(|member| member.key);
            ended.chain(reborn.then(|| before.own())).for_each(|life| self.directory.departed.add(life));
            self.directory.departed.are_back(next.others().map(|member| member.key));
            match reborn {
                true => self.forget_all(),
                false => self.forget_lost(&lost),
            }
        }
        self.rooms_moved(reborn);
        self.watches_moved(reborn);
        self.calls_moved(reborn);
        self.ask_again();
        self.release_parked();
        self.release_parked_rooms();
    }

    /// This node counts as another one from now on: nothing that others have told it, or owe it, holds any more.
    fn forget_all(&mut self) {
        let owed = self.directory.sent_away.take_all();
        self.give_up_away(owed);
        let mut slots = Vec::new();
        self.directory.remotes.find(0, usize::MAX, |_| true, &mut slots);
        for slot in slots {
            if let Some(remote) = self.directory.remotes.get(slot).copied() {
                self.remove_session(remote.user, remote.session);
            }
        }
        self.forget_readers();
        self.refuse_parked_rooms();
        // What waits here and came from other nodes: they have told its senders that it failed.
        self.refuse_waiting(self.inboxes.users(), |_, origin| origin.node != NodeKey::OWN);
    }

    /// Refuses what waits in the inboxes of `users`, and for views to agree, and has an origin for which `which` is
    /// true.
    fn refuse_waiting(&mut self, users: Vec<u64>, which: impl Fn(&Directory, Origin) -> bool) {
        for user in users {
            for message in self.inboxes.take_if(user, |message| which(&self.directory, message.origin)) {
                let Unacked { origin, from, id, ref payload, .. } = message;
                self.refuse(&Routed { origin, from, to: user, id, acked: true, extra: 0, payload });
            }
        }
        for user in self.directory.parked.users() {
            for held in self.directory.parked.take(user) {
                let Held { origin, from, id, acked, ref payload, .. } = held;
                let bytes = payload.len();
                if which(&self.directory, origin) {
                    self.refuse(&Routed { origin, from, to: user, id, acked, extra: 0, payload });
                } else if let Err(held) = self.directory.parked.park(user, held, bytes) {
                    self.refuse(&Routed { origin, from, to: user, id, acked, extra: 0, payload: &held.payload });
                }
            }
        }
    }

    /// Nodes that are gone will not answer. One that drained has handed on what it had, to be answered by others.
    fn forget_lost(&mut self, lost: &[Member]) {
        for member in lost.iter().filter(|member| member.state != NodeState::Draining) {
            let owed = self.directory.sent_away.take_of(member.key);
            self.give_up_away(owed);
        }
        if lost.iter().any(|member| self.directory.departed.has(member.key)) {
            // Nothing of this has been delivered. If the node comes back in a new life it has told its senders that all
            // of it failed.
            let undelivered = self.directory.orphans().collect();
            self.refuse_waiting(undelivered, |directory, origin| directory.departed.has(origin.node));
        }
    }

    /// Goes on with the walk. Returns whether there is more to do in the next turn at once.
    pub(crate) fn walk_on(&mut self) -> bool {
        let Some(routing) = self.directory.routing.clone() else { return false };
        let Some(ViewWalk { before, step }) = self.directory.take_walk() else { return false };
        let begun = (step.mark(), self.inboxes.messages());
        let step = match step {
            WalkStep::Sessions { slot } => self.register_some(&routing, before.as_deref(), slot),
            WalkStep::Inboxes { users } => self.transfer_some(users),
            WalkStep::Remotes { from } => Some(self.forget_all_past(&routing, from)),
            WalkStep::Sweep { from } => self.forget_some(&routing, from).map(|from| WalkStep::Sweep { from }),
            WalkStep::Settled { nodes } => self.say_settled(&routing, nodes),
        };
        let Some(step) = step else { return false };
        // A walk that waits for a link goes on with the next tick, or whatever comes before.
        let went_on = begun != (step.mark(), self.inboxes.messages());
        self.directory.put_walk(ViewWalk { before, step });
        went_on
    }

    /// Registers sessions with homes that do not know them. A link that holds much already lets the walk wait.
    fn register_some(&mut self, routing: &Routing, before: Option<&Routing>, from: u32) -> Option<WalkStep> {
        let high_water = self.links.slots.high_water();
        let end = high_water.min(from.saturating_add(WALK_STEPS));
        for slot in from..end {
            let conn = self.links.slots.at(slot);
            if conn.phase != Phase::Open {
                continue;
            }
            let user = conn.user;
            let Home::There { node, shard } = routing.home(user) else {
                self.read_again(user, slot, before);
                continue;
            };
            self.leave_reading(user);
            #[cfg(test)]
            if user.is_multiple_of(3) && crate::simulation::planted(crate::simulation::Bug::SessionUntold) {
                continue;
            }
            if before.is_some_and(|before| !before.must_register(routing, user)) {
                continue;
            }
            if let Some(mesh) = &mut self.mesh {
                if mesh.is_unreachable(node, shard) {
                    mesh.pass_over(node);
                    continue;
                }
                if !is_easy(mesh, &self.outgoing, node) {
                    return Some(WalkStep::Sessions { slot });
                }
            }
            let Some(entry) = self.presence.sessions(user).iter().find(|entry| entry.slot == slot) else { continue };
            let seat = Seat { shard: self.shard, conn: self.links.slots.id(slot) };
            let (session, since_s) = (entry.session, entry.since_s);
            let (device, class) = (entry.device(), entry.class());
            let wish = self.wish_in(slot);
            let record = FarRecord::Register { user, seat, session, since_s, device, class, hops: 0, wish };
            if far::queue(&mut self.mesh, &mut self.links, &mut self.outgoing, node, shard, &record).is_err() {
                return Some(WalkStep::Sessions { slot });
            }
            self.links.stats.registered_again.add(1);
        }
        Some(match end < high_water {
            true => WalkStep::Sessions { slot: end },
            false => WalkStep::Inboxes { users: self.inboxes.users() },
        })
    }

    /// Sends what waits for the ACK of users who belong elsewhere now to their new homes.
    fn transfer_some(&mut self, mut users: Vec<u64>) -> Option<WalkStep> {
        let mut budget = WALK_STEPS;
        while let Some(user) = users.last().copied() {
            if let Home::There { node, shard } = self.home(user) {
                // For a node that is not reached they are refused.
                let goes = |shard_here: &Shard| {
                    let way =
                        |mesh: &Mesh| is_easy(mesh, &shard_here.outgoing, node) || mesh.is_unreachable(node, shard);
                    shard_here.mesh.as_ref().is_none_or(way)
                };
                while budget > 0 && goes(self) {
                    let next = if self.desk.is_some() { self.inboxes.pop_any(user) } else { self.inboxes.pop(user) };
                    let Some(message) = next else { break };
                    self.transfer(user, message, node, shard);
                    budget -= 1;
                }
                if self.inboxes.len(user) > 0 {
                    return Some(WalkStep::Inboxes { users });
                }
            }
            users.pop();
            budget = budget.saturating_sub(1);
            if budget == 0 {
                return Some(WalkStep::Inboxes { users });
            }
        }
        Some(WalkStep::Remotes { from: 0 })
    }

    /// Sends one message that waits for its ACK to the user's new home. A sender on this node is answered by that home
    /// from now on.
    fn transfer(&mut self, user: u64, message: Unacked, node: NodeKey, shard: u16) {
        let Unacked { stamp, from, id, origin, attempts, told, keep, retry, bound, until_s, payload, .. } = message;
        let retry = if retry || keep == Keep::Storing { flags::RETRY } else { 0 };
        let no_store = if keep == Keep::Never && self.desk.is_some() { flags::NO_STORE } else { 0 };
        let head = MessageHead { until_s, device: None };
        // Where it ends is not told to a node that would not know what that is.
        let headed = !head.is_empty() && self.speaks_pushes(node);
        let payload = if headed { head.before(&payload) } else { payload.into() };
        let extra = retry | no_store | if headed { HEADED } else { 0 };
        let routed = Routed { origin, from, to: user, id, acked: true, extra, payload: &payload };
        if bound {
            // The new home cannot know which session it was given to. Its sender is told that nobody knows.
            return match told {
                true => self.links.stats.copies_given_up.add(1),
                false => self.refuse(&routed),
            };
        }
        let owes = origin.node == NodeKey::OWN && !told;
        if owes && !self.directory.sent_away.has_room() {
            self.links.stats.limit_sent_away.add(1);
            return self.refuse(&routed);
        }
        let holder = if owes { self.shard } else { origin.holder };
        let origin = self.address(Origin { holder, ..origin });
        let flags = far::flags_of(true, extra) | if told { far_flags::TOLD } else { 0 };
        let record = FarRecord::Transfer { user, stamp, origin, from, id, attempts, flags, payload: &payload };
        if self.send_far(node, shard, &record).is_err() {
            if told {
                return self.links.stats.copies_given_up.add(1);
            }
            return self.refuse(&routed);
        }
        self.links.stats.transferred.add(1);
        if owes {
            let Origin { shard, conn, .. } = routed.origin;
            self.directory.sent_away.add(Away { shard, conn, id, to: user }, node, self.links.tick);
        } else if !told {
            self.goes_again(routed.origin, id, user, node);
        }
    }

    /// A message that waited at a former home comes to wait here.
    /// `told`: its sender knows, and it is for devices that have not acknowledged it.
    pub(crate) fn take_transfer(&mut self, message: &Routed<'_>, via: NodeKey, stamp: u64, attempts: u8, told: bool) {
        let (until_s, payload) = match message.extra & HEADED {
            0 => (0, message.payload),
            _ => match MessageHead::split(message.payload) {
                Some((head, payload)) => (head.until_s, payload),
                None if told => return self.links.stats.copies_given_up.add(1),
                None => return self.refuse(message),
            },
        };
        let whole = message;
        let message = &Routed { extra: message.extra & !HEADED, payload, ..*message };
        let Routed { origin, from, to: user, id, extra, payload, .. } = *message;
        if told && (!self.serving || self.desk.is_none() || self.home(user) != Home::Here) {
            return self.links.stats.copies_given_up.add(1);
        }
        if !self.serving || self.directory.departed.has(origin.node) {
            self.links.stats.fenced.add(1);
            return self.refuse(message);
        }
        match self.home(user) {
            Home::Here => {}
            Home::There { node, shard } if node != via || self.directory.settling.has_view(node, shard) => {
                let sent_tick = self.links.tick;
                let payload = payload.into();
                let retry = extra & flags::RETRY != 0;
                let keep = if extra & flags::NO_STORE == 0 { Keep::Waiting } else { Keep::Never };
                let waiting = Unacked::waiting(stamp, from, id, origin, sent_tick, attempts, payload);
                let waiting = Unacked { retry, keep, until_s, ..waiting };
                return self.transfer(user, waiting, node, shard);
            }
            // The former home has a view already in which this one is the home.
            Home::There { .. } => {
                let path = Path { via, hops: 0 };
                return self.park(whole, path, Some(Transferred { stamp, attempts }));
            }
            Home::Nowhere => return self.refuse(message),
        }
        if !told && self.directory.take_early_ack(user, stamp) {
            self.links.stats.out_acked.add(1);
            return self.tell_fate(origin, id, user, Outcome::Delivered, stamp);
        }
        if !self.admit(user, payload.len()) {
            if told {
                return self.links.stats.copies_given_up.add(1);
            }
            return self.refuse(message);
        }
        if self.desk.is_some() && extra & flags::NO_STORE == 0 {
            return self.keep_transferred(message, stamp, told, until_s);
        }
        let offline = self.presence.sessions(user).is_empty();
        if offline && !self.is_unsettled(user) {
            self.links.stats.out_offline_refused.add(1);
            return self.tell_fate(origin, id, user, Outcome::OfflineNotStored, 0);
        }
        let sent_tick = self.links.tick;
        let payload = payload.into();
        // It waits for whoever is there, or comes.
        let waiting = Unacked::waiting(stamp, from, id, origin, sent_tick, attempts, payload);
        if !self.inboxes.insert(user, Unacked { until_s, ..waiting }) {
            // It came twice, or another message has its very stamp: the sender is told to try again.
            return self.refuse(message);
        }
        self.note_transferred_push((from, id, user), stamp);
        self.note_end(user, until_s);
        // Positions given out from now on lie behind those of the former home.
        self.stamps.follow_other_home(stamp, self.now.wall_ms);
        if offline {
            self.directory.orphan(user);
        } else {
            self.look_after(user);
        }
    }

    fn forget_all_past(&mut self, routing: &Routing, from: usize) -> WalkStep {
        if let Some(from) = self.forget_some(routing, from) {
            return WalkStep::Remotes { from };
        }
        WalkStep::Settled { nodes: routing.others().map(|member| member.key).collect() }
    }

    /// Forgets remote sessions that are not this home's to know any more, and those of nodes that are gone. Returns
    /// where to go on.
    ///
    /// A node that is ahead of this one tells of sessions for a view that comes here later: those have to be kept, or
    /// nobody will know them.
    fn forget_some(&mut self, routing: &Routing, from: usize) -> Option<usize> {
        let mut slots = Vec::new();
        let settling = &self.directory.settling;
        let shared = self.desk.as_ref().is_some_and(|desk| desk.shared);
        let wanted = |remote: &crate::directory::RemoteSession| {
            routing.member(remote.node).is_none()
                || match routing.home(remote.user) {
                    Home::Here => shared,
                    _ => settling.is_past(remote),
                }
        };
        let next = self.directory.remotes.find(from, WALK_STEPS as usize, wanted, &mut slots);
        for slot in slots {
            let Some(remote) = self.directory.remotes.get(slot).copied() else { continue };
            if routing.member(remote.node).is_some() && routing.home(remote.user) == Home::Here {
                self.read_for_guest(slot);
            } else if routing.home(remote.user) == Home::Here {
                self.remove_session(remote.user, remote.session);
            } else {
                self.leave_reading(remote.user);
                // The user's new home has what waited here, or gets it.
                self.presence_logout(remote.user, remote.session);
            }
        }
        next
    }

    /// Tells the other nodes that all their shards have been told of. A link that is full keeps the rest waiting.
    fn say_settled(&mut self, routing: &Routing, mut nodes: Vec<NodeKey>) -> Option<WalkStep> {
        while let Some(node) = nodes.last() {
            if let Some(member) = routing.member(*node)
                && self.say_settled_to(member, routing.digest()) == Err(FarError::Full)
            {
                return Some(WalkStep::Settled { nodes });
            }
            nodes.pop();
        }
        if let Some(took_us) = self.directory.told_all(self.now.mono_us) {
            self.links.stats.view_change_time.observe(took_us);
        }
        self.directory.settling.is_settled().then_some(WalkStep::Sweep { from: 0 })
    }

    /// One record for each link to the node, or for each of its shards if its version knows no other. Those that were
    /// told before an error are told again, which does no harm.
    fn say_settled_to(&mut self, member: &Member, digest: u64) -> Result<(), FarError> {
        let (node, from) = (member.key, self.shard);
        let sets = self.mesh.as_ref().map(|mesh| mesh.shard_sets(node)).unwrap_or_default();
        for set in sets {
            let Some(first) = shards_of(&set).next() else { continue };
            if let Some(mesh) = &mut self.mesh
                && mesh.is_unreachable(node, first)
            {
                mesh.pass_over(node);
                continue;
            }
            // What a carrier has to refuse has to be told from the beginning.
            let mesh = self.mesh.as_ref().filter(|mesh| mesh.carrier_of(node).is_some());
            if mesh.is_some_and(|mesh| !is_easy(mesh, &self.outgoing, node)) {
                return Err(FarError::Full);
            }
            if member.protocol >= SETTLED_SHARDS_SINCE {
                self.send_settled(node, first, &FarRecord::SettledShards { from, digest, shards: &set })?;
                continue;
            }
            for to in shards_of(&set) {
                self.send_settled(node, to, &FarRecord::Settled { from, to, digest })?;
            }
        }
        Ok(())
    }

    fn send_settled(&mut self, node: NodeKey, to: u16, record: &FarRecord<'_>) -> Result<(), FarError> {
        self.send_far(node, to, record)?;
        // With the word of others it is one record, which the shard that has the link counts.
        let gathers = self.mesh.as_ref().is_some_and(|mesh| mesh.gathers(node));
        self.links.stats.settled_sent.add(u64::from(!gathers));
        Ok(())
    }

    /// Ends the wait for other nodes if it is over; those for whom nobody has registered a session are offline then.
    pub(crate) fn look_at_settling(&mut self) {
        if let (false, Some(mesh)) = (self.directory.settling.is_settled(), &self.mesh) {
            self.directory.settling.look_without(|node| mesh.is_silent(node));
        }
        if self.directory.settling.expire(self.links.tick) {
            self.links.stats.settle_timeouts.add(1);
        }
        let Some(settled) = self.directory.settle(self.now.mono_us) else { return };
        if let Some(took_us) = settled.took_us {
            self.links.stats.settling_time.observe(took_us);
        }
        self.watches.homes.begin_walk();
        for user in settled.orphans {
            if !self.presence.sessions(user).is_empty() {
                self.look_after(user);
                continue;
            }
            let left = match self.desk {
                Some(_) => self.keep_what_waits(user),
                None => self.inboxes.take_all(user),
            };
            for message in left {
                self.links.stats.out_offline_refused.add(1);
                self.tell_fate(message.origin, message.id, user, Outcome::OfflineNotStored, 0);
            }
        }
        self.release_parked();
    }
}
