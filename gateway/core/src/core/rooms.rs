//! Live rooms and durable groups in a cluster: which node is the home of a room, how messages come to it, and one copy
//! of each from there to every node with sessions in the room. What a durable group has besides is in `shared_groups`.
//!
//! The home of a room is a pure function of the view. On each other node one shard stands for the room, its *relay*:
//! the shard that would be the home if the node were alone. Joins, leaves and messages of the node's sessions go there;
//! it has told the home that copies are wanted, takes the one for its node, and gives it to the node's shards. So a
//! message crosses a link once, whatever the members behind it.
//!
//! Of a room nothing is stored, so nothing is made up for. What a change of the view, a crash or a full link costs is visible in
//! the numbers: a home counts on from the highest number that any relay has seen from another home, and leaves one out
//! whenever it cannot know what that one has passed on. A *reign* is the time in which one home counts, and names it.

use super::fan_out::Numbered;
use super::far::{HOPS_MAX, PARK_MS, Path};
use super::links::ticks;
use super::shard::Shard;
use crate::directory::{Away, Held, Home};
use crate::groups::home::{Claim, Seen};
use crate::groups::interest::{Joining, Word};
use crate::groups::mail::GroupMail;
use crate::groups::{Manner, PLACE, group_home, is_room};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::mesh::peers::GivenBack;
use crate::mesh::wire::{ROOMS_SINCE, Record as FarRecord};
use trunkline_proto::{Code, flags};
use trunkline_router_core::hash::user_hash;

/// Homes that are asked for copies, or told that none are wanted, in one go.
const WORDS_PER_TURN: usize = 4_096;

/// A message to a live room on its way to the room's home.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToRoom<'a> {
    pub(super) group: u64,
    pub(super) origin: Origin,
    pub(super) from: u64,
    pub(super) id: u64,
    /// Of the client's frame.
    pub(super) flags: u8,
    pub(super) path: Path,
    pub(super) payload: &'a [u8],
}

impl Shard {
    /// Whether live rooms can be served: every node of the view knows the records for them.
    pub(super) fn speaks_rooms(&self) -> bool {
        self.alone || self.directory.routing.as_ref().is_some_and(|routing| routing.protocol_least() >= ROOMS_SINCE)
    }

    /// Whose home a room is.
    pub(super) fn room_home(&self, group: u64) -> Home {
        match &self.directory.routing {
            Some(routing) if is_room(group) && routing.protocol_least() >= ROOMS_SINCE => routing.home(group ^ PLACE),
            Some(routing) if !is_room(group) && self.serves_groups() => routing.home(group ^ PLACE),
            _ => Home::Nowhere,
        }
    }

    /// The shard of another node that takes copies of a room there, or is its home.
    pub(super) fn relay_of(&self, node: NodeKey, group: u64) -> Option<u16> {
        let member = self.directory.routing.as_ref()?.member(node)?;
        Some(group_home(group, u16::try_from(member.shards.max(1)).unwrap_or(u16::MAX)))
    }

    /// A number that no other home has for its reign.
    fn new_reign(&mut self) -> u64 {
        user_hash(self.own_key().0 ^ self.next_stamp().rotate_left(20)).max(1)
    }

    /// This node is the home of a room, perhaps a new one.
    pub(super) fn reign(&mut self, group: u64) {
        if !self.alone && !self.groups.homes.at(group).reigns {
            let reign = self.new_reign();
            self.groups.homes.at(group).begin_reign(reign);
        }
    }

    /// The same, and of a durable group the store is told.
    fn reign_as_home(&mut self, group: u64) {
        if is_room(group) {
            return self.reign(group);
        }
        // It is tried again if it cannot be told now.
        self.reign_over_log(group);
    }

    /// A message to a room, at this node's shard for it.
    pub(super) fn room_message(&mut self, message: &ToRoom<'_>) {
        let ToRoom { group, origin, from, id, flags: of_message, path, payload } = *message;
        if !self.serving || self.directory.departed.has(origin.node) {
            self.links.stats.fenced.add(1);
            return self.group_overloaded(origin, id, group, of_message);
        }
        match self.room_home(group) {
            Home::Here => {
                if self.is_within_rates(group, origin, from, id, of_message) {
                    self.take_as_home(group, origin, from, id, of_message, payload);
                }
            }
            // Those behind one that waits wait too.
            Home::There { node, .. }
                if self.directory.parked_rooms.holds(group) || !self.may_go_to(node, origin, path, group) =>
            {
                self.park_room_message(message);
            }
            Home::There { node, shard } => self.room_message_away(message, node, shard),
            Home::Nowhere => self.group_overloaded(origin, id, group, of_message),
        }
    }

    /// Whether a message to a room may go on to that node. To where it was it goes back only when that has said that it
    /// has the view in which it is the home.
    fn may_go_to(&self, node: NodeKey, origin: Origin, path: Path, group: u64) -> bool {
        let was_there = node == path.via || node == origin.node;
        let has_view = |shard| self.directory.settling.has_view(node, shard);
        path.hops < HOPS_MAX && (!was_there || self.relay_of(node, group).is_some_and(has_view))
    }

    /// Views differ: lets a message wait until they agree.
    fn park_room_message(&mut self, message: &ToRoom<'_>) {
        let ToRoom { group, origin, from, id, flags: of_message, path: Path { via, hops }, payload } = *message;
        let held = Held {
            origin,
            from,
            id,
            acked: of_message & flags::ACK != 0,
            extra: of_message,
            hops,
            via,
            deadline_tick: self.links.tick + ticks(PARK_MS),
            payload: payload.into(),
            transfer: None,
        };
        if self.directory.parked_rooms.park(group, held, payload.len()).is_err() {
            self.links.stats.limit_parked.add(1);
            self.group_overloaded(origin, id, group, of_message);
        }
    }

    /// Lets every message to a room go that waits no longer.
    pub(super) fn release_parked_rooms(&mut self) {
        let tick = self.links.tick;
        for group in self.directory.parked_rooms.users() {
            for held in self.directory.parked_rooms.take(group) {
                let Held { origin, from, id, extra: of_message, hops, via, deadline_tick, ref payload, .. } = held;
                let path = Path { via, hops };
                let goes = !self.directory.parked_rooms.holds(group)
                    && match self.room_home(group) {
                        Home::Here => true,
                        Home::There { node, .. } => self.may_go_to(node, origin, path, group),
                        Home::Nowhere => false,
                    };
                if goes {
                    self.room_message(&ToRoom { group, origin, from, id, flags: of_message, path, payload });
                    continue;
                }
                if deadline_tick <= tick && self.directory.settling.is_settled() {
                    self.links.stats.parked_expired.add(1);
                    self.group_overloaded(origin, id, group, of_message);
                    continue;
                }
                let bytes = payload.len();
                if self.directory.parked_rooms.park(group, held, bytes).is_err() {
                    self.group_overloaded(origin, id, group, of_message);
                }
            }
        }
    }

    /// This node counts as another one from now on: nothing that waits goes on.
    pub(super) fn refuse_parked_rooms(&mut self) {
        for group in self.directory.parked_rooms.users() {
            for Held { origin, id, extra, .. } in self.directory.parked_rooms.take(group) {
                self.group_overloaded(origin, id, group, extra);
            }
        }
    }

    /// Sends a message on to the home of its room. With ACK the answer is owed by that node from now on.
    fn room_message_away(&mut self, message: &ToRoom<'_>, node: NodeKey, shard: u16) {
        let ToRoom { group, mut origin, from, id, flags: of_message, path, payload } = *message;
        let is_own = origin.node == NodeKey::OWN;
        let owes = is_own && of_message & flags::ACK != 0;
        if owes && !self.directory.sent_away.has_room() {
            self.links.stats.limit_sent_away.add(1);
            return self.group_overloaded(origin, id, group, of_message);
        }
        if is_own {
            origin.holder = self.shard;
        }
        let (hops, flags) = (path.hops, of_message);
        let record = FarRecord::GroupSend { origin: self.address(origin), from, group, id, hops, flags, payload };
        if self.send_far(node, shard, &record).is_err() {
            return self.group_overloaded(message.origin, id, group, of_message);
        }
        self.links.stats.group_messages_away.add(1);
        if owes {
            let away = Away { shard: origin.shard, conn: origin.conn, id, to: group };
            self.directory.sent_away.add(away, node, self.links.tick);
        }
    }

    /// One copy of a message to each node that wants some.
    pub(super) fn copy_to_nodes(&mut self, message: &Numbered<'_>) {
        let Numbered { group, from, id, stamp, number, manner, payload, .. } = *message;
        let origin = self.origin_for_nodes(message);
        let nodes = std::mem::take(&mut self.groups.homes.at(group).nodes);
        let origin = self.address(origin);
        let manner = manner.bits();
        let record = FarRecord::GroupCopy { group, origin, from, id, stamp, number, manner, payload };
        for node in &nodes {
            #[cfg(test)]
            if crate::simulation::planted(crate::simulation::Bug::CopiedTwice) {
                self.copy_to_node(*node, group, &record);
            }
            self.copy_to_node(*node, group, &record);
        }
        self.groups.homes.at(group).nodes = nodes;
    }

    fn copy_to_node(&mut self, node: NodeKey, group: u64, record: &FarRecord<'_>) {
        let sent = self.relay_of(node, group).is_some_and(|shard| self.send_far(node, shard, record).is_ok());
        match sent {
            true => self.links.stats.group_relay_copies.add(1),
            // The next one shows by its number that this one is missing.
            false => {
                self.links.stats.group_relay_dropped.add(1);
                self.copy_lost(node, group);
            }
        }
    }

    /// The copy of a message for this node.
    fn room_copy(&mut self, node: NodeKey, message: &Numbered<'_>) {
        let group = message.group;
        let is_next = self.groups.homes.get(group).is_some_and(|home| message.number > home.number);
        let takes = self.serving && is_next && self.groups.interests.takes_from(group, node);
        if !takes {
            self.links.stats.group_relay_stale.add(1);
            self.groups.copies_refused |= !is_room(group) && !self.serving;
            // Whoever sends what nobody wants has not been told so, or that was lost.
            let is_wanted = self.groups.interests.is_home(group, node);
            if let Some(shard) = self.relay_of(node, group).filter(|_| !is_wanted) {
                self.groups.interests.say_goodbye(Word { group, node, shard, token: 0 });
            }
            return;
        }
        self.links.stats.group_relay_copies_in.add(1);
        self.groups.homes.at(group).copied(message.number, message.stamp);
        self.copy_to_shards(message);
    }

    /// A session wants to join a room or to leave it, at this node's shard for it.
    pub(super) fn room_join_arrived(&mut self, group: u64, join: Joining, leave: bool) {
        let Joining { origin, id, .. } = join;
        if leave {
            // What waits for the home took effect before and is over, or the session would be in after its leave.
            for Joining { origin, id, .. } in self.groups.interests.take_joins_of(group, origin.conn, origin.shard) {
                let ok = GroupMail::Ok { group, conn: origin.conn, id, stamp: 0, joined: false };
                self.tell_group(origin.shard, &ok);
            }
            self.links.stats.group_leaves.add(1);
            self.tell_of_room(group, join, false);
            return self.room_unwatched(group);
        }
        let home = if self.alone { Home::Here } else { self.room_home(group) };
        match home {
            Home::Here => {
                self.reign(group);
                self.room_joined(group, join);
            }
            Home::There { .. } if self.groups.interests.is_confirmed(group) => self.room_joined(group, join),
            Home::There { node, shard } => {
                self.groups.interests.want(group, Some((node, shard)));
                if self.groups.interests.wait(group, join, self.links.tick) {
                    return self.tell_interests();
                }
                self.links.stats.limit_group_joins.add(1);
                self.group_refuse(origin, id, group, Code::Overloaded);
                self.room_unwatched(group);
            }
            Home::Nowhere => self.group_refuse(origin, id, group, Code::Overloaded),
        }
    }

    /// A session is in a room from now on: copies come to this shard.
    fn room_joined(&mut self, group: u64, join: Joining) {
        self.links.stats.group_joins.add(1);
        self.groups.homes.watch(group, join.origin.shard);
        self.tell_of_room(group, join, true);
    }

    fn tell_of_room(&mut self, group: u64, join: Joining, joined: bool) {
        let Joining { origin, user, id } = join;
        let (last, number) = self.groups.homes.get(group).map_or((0, 0), |home| (home.last, home.number));
        let session = Some(origin.conn);
        self.tell_group(origin.shard, &GroupMail::Member { group, user, joined, last, number, session });
        self.tell_group(origin.shard, &GroupMail::Ok { group, conn: origin.conn, id, stamp: last, joined });
    }

    /// A shard of this node has a part of a room: copies are wanted, if they come from another node.
    pub(super) fn room_watched(&mut self, group: u64) {
        if self.alone {
            return;
        }
        match self.room_home(group) {
            Home::Here => self.reign_as_home(group),
            Home::There { node, shard } => self.groups.interests.want(group, Some((node, shard))),
            Home::Nowhere => self.groups.interests.want(group, None),
        }
        self.tell_interests();
    }

    /// A shard of this node has no part of a room any more, or a join of one has come to nothing.
    pub(super) fn room_unwatched(&mut self, group: u64) {
        if self.alone {
            return;
        }
        if self.groups.homes.get(group).is_none_or(|home| home.shards.is_empty())
            && self.groups.interests.release(group)
        {
            self.tell_interests();
        }
        self.groups.homes.forget_if_idle(group);
    }

    /// Asks homes for copies, and tells others that none are wanted any more.
    fn tell_interests(&mut self) {
        let tick = self.links.tick;
        for _ in 0..WORDS_PER_TURN {
            let Some(Word { group, node, shard, token }) = self.groups.interests.next_ask(tick) else { break };
            let Seen { reign, number, last } = self.groups.homes.get(group).map_or(Seen::NOTHING, |home| home.seen());
            let record = FarRecord::GroupWatch { group, token, reign, number, last, watch: true };
            if self.send_far(node, shard, &record).is_err() {
                // It is asked again in time.
                self.links.stats.mesh_answers_lost.add(1);
            }
        }
        let mut later = Vec::new();
        for _ in 0..WORDS_PER_TURN {
            let Some(word) = self.groups.interests.next_goodbye() else { break };
            let Word { group, node, shard, token } = word;
            let record = FarRecord::GroupWatch { group, token, reign: 0, number: 0, last: 0, watch: false };
            // Who is no member any more has forgotten it by itself.
            if self.relay_of(node, group).is_some() && self.send_far(node, shard, &record).is_err() {
                later.push(word);
            }
        }
        later.into_iter().for_each(|word| self.groups.interests.say_goodbye(word));
    }

    /// What is due about rooms in this tick.
    pub(super) fn expire_rooms(&mut self) {
        if self.alone {
            return;
        }
        for (group, Joining { origin, id, .. }) in self.groups.interests.expire(self.links.tick) {
            self.group_refuse(origin, id, group, Code::Overloaded);
            self.room_unwatched(group);
        }
        self.tell_interests();
    }

    /// Another node wants copies of a room, or none any more.
    pub(super) fn room_wanted(&mut self, node: NodeKey, group: u64, token: u64, seen: Option<Seen>) {
        let Some(seen) = seen else {
            if let Some(home) = self.groups.homes.get_mut(group) {
                home.nodes.retain(|known| *known != node);
            }
            return self.groups.homes.forget_if_idle(group);
        };
        // Who has another view asks again, until this node has the same or somebody else is asked.
        let Some(shard) = self.relay_of(node, group) else { return };
        if !self.serving || self.room_home(group) != Home::Here {
            return;
        }
        let is_known = self.groups.homes.get(group).is_some();
        if !is_known && self.groups.homes.len() as u64 >= self.links.limits.groups.memberships_max {
            return self.links.stats.limit_group_memberships.add(1);
        }
        if !is_room(group) {
            let claimed = self.reign_over_log(group) && self.groups.homes.at(group).claim == Claim::Done;
            if !claimed {
                return self.groups.homes.at(group).wait(node, token, seen);
            }
        }
        let reign = self.new_reign();
        // What a durable group has that this home does not know of the store has told, or tells, and all hear of it.
        let seen = Seen { last: if is_room(group) { seen.last } else { 0 }, ..seen };
        let Seen { reign, number, last } = self.groups.homes.at(group).register(node, seen, reign);
        if self.send_far(node, shard, &FarRecord::GroupHead { group, token, reign, number, last }).is_err() {
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// The home of a room has confirmed that copies come from now on.
    fn room_confirmed(&mut self, node: NodeKey, group: u64, token: u64, seen: Seen) {
        // Unasked: the home has learned that it is further than it knew.
        let is_word_of_home = token == 0 && self.groups.interests.takes_from(group, node);
        let joins = match self.groups.interests.confirm(group, node, token) {
            Some(joins) => joins,
            None if is_word_of_home => Vec::new(),
            None => return,
        };
        let home = self.groups.homes.at(group);
        home.follow(seen);
        let (last, number, shards) = (home.last, home.number, home.shards.clone());
        for shard in shards {
            self.tell_group(shard, &GroupMail::Head { group, last, number });
        }
        for join in joins {
            self.room_joined(group, join);
        }
        self.room_unwatched(group);
    }

    /// There is a new view: finds the homes of all rooms again. `reborn`: this node counts as another one.
    pub(super) fn rooms_moved(&mut self, reborn: bool) {
        let known = self.groups.homes.groups().chain(self.groups.interests.rooms());
        let mut groups: Vec<u64> = known.collect();
        // Not in the order of a table.
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            self.place_room(group, reborn);
        }
        if reborn {
            self.groups.interests.all_were_lost();
        }
        self.tell_interests();
        self.look_again_at_groups();
    }

    fn place_room(&mut self, group: u64, reborn: bool) {
        let home = match self.room_home(group) {
            Home::Here => return self.reign_over(group, reborn),
            Home::There { node, shard } => Some((node, shard)),
            Home::Nowhere => None,
        };
        self.forget_lost_nodes(group, reborn);
        let has_parts = self.groups.homes.get_mut(group).is_some_and(|home| {
            home.reigns = false;
            home.unclaim();
            !home.shards.is_empty()
        });
        #[cfg(test)]
        if group.is_multiple_of(2) && crate::simulation::planted(crate::simulation::Bug::InterestUntold) {
            return;
        }
        if has_parts || self.groups.interests.contains(group) {
            self.groups.interests.want(group, home);
        }
        self.groups.homes.forget_if_idle(group);
    }

    /// This node is the home of a room with the present view.
    fn reign_over(&mut self, group: u64, reborn: bool) {
        self.forget_lost_nodes(group, reborn);
        let joins = self.groups.interests.take(group);
        if reborn {
            self.groups.homes.at(group).reigns = false;
        }
        if let Some(home) = self.groups.homes.get_mut(group) {
            // Another may have been the home in a view that this node has not had.
            home.unclaim();
        }
        self.reign_as_home(group);
        for join in joins.unwrap_or_default() {
            self.room_joined(group, join);
        }
        self.groups.homes.forget_if_idle(group);
    }

    /// Nodes that are gone get no copies any more. Those that live on tell this one when they want none: they may have
    /// another view.
    fn forget_lost_nodes(&mut self, group: u64, reborn: bool) {
        if let (Some(home), Some(routing)) = (self.groups.homes.get_mut(group), &self.directory.routing) {
            home.nodes.retain(|node| !reborn && routing.member(*node).is_some());
        }
    }

    /// Nodes live on and have lost what was told to them.
    pub(crate) fn rooms_again(&mut self, nodes: &[NodeKey]) {
        self.groups.interests.were_lost(nodes);
        self.tell_interests();
    }

    /// A record about a room from another node.
    pub(super) fn room_record(&mut self, node: NodeKey, record: &FarRecord<'_>) {
        match *record {
            FarRecord::GroupSend { group, .. }
            | FarRecord::GroupCopy { group, .. }
            | FarRecord::GroupWatch { group, .. }
                if !is_room(group) && (group == 0 || !self.serves_groups()) =>
            {
                self.links.stats.mesh_misrouted.add(1);
            }
            // It would stay the highest for ever.
            FarRecord::GroupCopy { number, .. }
            | FarRecord::GroupWatch { number, watch: true, .. }
            | FarRecord::GroupHead { number, .. }
                if number >= Seen::NUMBERS_END =>
            {
                self.links.stats.mesh_misrouted.add(1);
            }
            FarRecord::GroupSend { origin, from, group, id, hops, flags: of_message, payload } => {
                let (mut origin, path) = (Self::origin_at(origin), Path { via: node, hops: hops.saturating_add(1) });
                if origin.node == self.own_key() {
                    // It began here and comes back, for the home is here by now. If its sender has been told meanwhile
                    // that it failed, it goes nowhere.
                    let Origin { shard, conn, .. } = origin;
                    let is_owed = of_message & flags::ACK != 0;
                    if is_owed && !self.directory.sent_away.answered(Away { shard, conn, id, to: group }) {
                        return self.links.stats.came_back_late.add(1);
                    }
                    self.links.stats.came_back.add(u64::from(is_owed));
                    origin.node = NodeKey::OWN;
                }
                self.room_message(&ToRoom { group, origin, from, id, flags: of_message, path, payload });
            }
            FarRecord::GroupCopy { group, origin, from, id, stamp, number, manner, payload } => {
                let mut origin = Self::origin_at(origin);
                if origin.node == self.own_key() {
                    origin.node = NodeKey::OWN;
                }
                let (origin, manner) = (Some(origin), Manner::from_bits(manner));
                self.room_copy(node, &Numbered { group, origin, from, id, stamp, number, manner, payload });
            }
            FarRecord::GroupWatch { group, token, reign, number, last, watch } => {
                self.room_wanted(node, group, token, watch.then_some(Seen { reign, number, last }));
            }
            FarRecord::GroupHead { group, token, reign, number, last } => {
                self.room_confirmed(node, group, token, Seen { reign, number, last });
            }
            FarRecord::GroupRefused { origin, group, id, code } => {
                let Origin { shard, conn, .. } = Self::origin_at(origin);
                // With ACK it was owed; that is the answer.
                self.directory.sent_away.answered(Away { shard, conn, id, to: group });
                if shard < self.shards {
                    self.tell_group(shard, &GroupMail::Refused { group, conn, id, code });
                }
            }
            _ => {}
        }
    }

    /// ERROR for a session of another node.
    pub(super) fn refuse_away(&mut self, origin: Origin, id: u64, group: u64, code: Code) {
        let record = FarRecord::GroupRefused { origin: self.address(origin), group, id, code: code.as_u16() };
        self.send_refusal(origin.node, origin.holder, &record);
    }

    fn send_refusal(&mut self, node: NodeKey, shard: u16, record: &FarRecord<'_>) {
        if self.send_far(node, shard, record).is_err() {
            self.links.stats.sent_to_gone.add(1);
        }
    }

    /// A record about a room that finds no room on this node, or was not confirmed by the one it was for.
    pub(super) fn room_record_lost(&mut self, record: &FarRecord<'_>) {
        match *record {
            FarRecord::GroupSend { origin, group, id, flags, .. } => {
                self.group_overloaded(Self::origin_at(origin), id, group, flags);
            }
            FarRecord::GroupCopy { group, .. } => {
                self.links.stats.group_relay_dropped.add(1);
                if !is_room(group) {
                    self.all_look_again();
                }
            }
            _ => {}
        }
    }

    /// A record about a room that was queued for a node and will not be confirmed.
    pub(super) fn room_record_back(&mut self, back: &GivenBack, record: &FarRecord<'_>) {
        match *record {
            // Of one without ACK that may have arrived nobody is told, and it is not counted again.
            FarRecord::GroupSend { flags: of_message, .. } if of_message & flags::ACK == 0 && back.maybe_received => {}
            FarRecord::GroupCopy { group, .. } => {
                self.links.stats.group_relay_dropped.add(u64::from(!back.maybe_received));
                self.copy_lost(back.node, group);
            }
            FarRecord::GroupSend { .. } => self.room_record_lost(record),
            FarRecord::GroupWatch { group, token, watch: true, .. } => self.groups.interests.was_lost(group, token),
            FarRecord::GroupWatch { group, token, watch: false, .. } => {
                if let Some(shard) = self.relay_of(back.node, group) {
                    self.groups.interests.say_goodbye(Word { group, node: back.node, shard, token });
                }
            }
            FarRecord::GroupRefused { origin, .. } => self.send_refusal(back.node, origin.seat.shard, record),
            // Nobody waits for it.
            FarRecord::GroupHead { group, token: 0, .. } => self.copy_lost(back.node, group),
            // Whoever waits for a confirmation asks again.
            _ => {}
        }
    }
}
