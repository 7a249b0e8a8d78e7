//! Durable groups in a cluster whose nodes have one store: what the home of a group does for other nodes, and what is
//! told to them. How messages come to the home and from there to sessions is in `rooms` and `fan_out`, as for live
//! rooms.
//!
//! The home of a group *claims* it in its view before it gives copies to anybody: from then on the store refuses what
//! an earlier home would add, and has said where the log ends. So what was added until then and did not reach a node is
//! told by HEADS, and nothing is added behind a member's back.
//!
//! Joins, leaves and what comes over HTTP go to the home, which asks the store and tells all nodes what has become of
//! a membership, on the way that copies go. So nobody gets a message that was passed on after its leave. What could not
//! be told, because a node was away or had another view, is made up for by asking the store for the groups of all
//! sessions again: at each change of the view, and when a node is told that it has missed something.

use super::fan_out::Numbered;
use super::resent::Before;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::desk::Asked;
use crate::directory::Home;
use crate::groups::ask::{decode_ask, decode_reply, encode_ask, encode_reply, is_for_home};
use crate::groups::asked::GroupAsked;
use crate::groups::asked::Sending;
use crate::groups::asked::{Asker, Effect};
use crate::groups::away::MemberNews;
use crate::groups::home::{Claim, Home as GroupHome, Rate, Seen};
use crate::groups::is_room;
use crate::groups::mail::{GroupMail, NUMBER_UNKNOWN};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::mesh::peers::GivenBack;
use crate::mesh::wire::{GROUPS_SINCE, Record as FarRecord, member_change};
use futures_channel::oneshot;
use trunkline_proto::Code;
use trunkline_router_core::hash::home_shard;
use trunkline_store::{GroupAsk, GroupDenial, GroupReply, Record as Stored, Refusal, Reply, Request};

/// How long after the store did not say who is a member all sessions ask again, ticks: 2 s.
const UNKNOWN_TICKS: u32 = 20;
/// And the least time from one such asking to the next, ticks: 10 s. It costs the store a question for each session and
/// each of its groups, so one group that cannot be reached for long must not have it go on without an end.
const UNKNOWN_APART_TICKS: u32 = 100;
/// Slots that are looked through in a tick for sessions whose groups are asked for again.
const LOOKS_PER_TICK: u32 = 256;

/// Whether nobody looks for what other homes have written: bugs that are planted would be made up for.
fn overlooks_other_homes() -> bool {
    #[cfg(test)]
    {
        use crate::simulation::{Bug, planted};
        planted(Bug::StaleHomeStores) || planted(Bug::LogTakenForKnown)
    }
    #[cfg(not(test))]
    false
}

impl Shard {
    /// Whether durable groups can be served: there is a store, and in a cluster all nodes have it and know the records.
    pub(super) fn serves_groups(&self) -> bool {
        let Some(desk) = &self.desk else { return false };
        let speaks = |least: u32| least >= GROUPS_SINCE;
        self.alone
            || (desk.shared && self.directory.routing.as_ref().is_some_and(|routing| speaks(routing.protocol_least())))
    }

    /// Asks the home of a group, wherever it is.
    pub(super) fn ask_group_home(&mut self, group: u64, ask: GroupAsk, asker: Asker) {
        if !self.alone && (!self.serving || !self.serves_groups()) {
            return self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        }
        match if self.alone { Home::Here } else { self.room_home(group) } {
            Home::Here => self.ask_as_home(group, ask, asker),
            // Views differ: whoever asked tries again.
            Home::There { .. } if matches!(asker, Asker::Node { .. }) => {
                self.answer_asker(group, asker, Reply::Refused(Refusal::Stale));
            }
            Home::There { node, shard } => self.ask_other_home(group, &ask, asker, node, shard),
            Home::Nowhere => self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable)),
        }
    }

    fn ask_other_home(&mut self, group: u64, ask: &GroupAsk, asker: Asker, node: NodeKey, shard: u16) {
        let Some(body) = encode_ask(ask) else {
            return self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        };
        let number = match self.groups.away.begin(group, asker, self.links.tick) {
            Ok(number) => number,
            Err(asker) => {
                self.links.stats.limit_group_joins.add(1);
                return self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
            }
        };
        let record = FarRecord::GroupAsk { group, shard: self.shard, ask: number, body: &body };
        if self.send_far(node, shard, &record).is_err() {
            self.give_up_ask(number);
        }
    }

    fn give_up_ask(&mut self, number: u64) {
        if let Some((group, asker)) = self.groups.away.take(number) {
            self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        }
    }

    /// This node is the home of the group.
    pub(super) fn ask_as_home(&mut self, group: u64, ask: GroupAsk, asker: Asker) {
        if let GroupAsk::Append { record, .. } = &ask
            && self.count_in_rates(group, record.from) != Rate::Within
        {
            let denied = GroupReply::Denied(GroupDenial::RateLimited);
            return self.answer_asker(group, asker, Reply::Group(Box::new(denied)));
        }
        if !self.alone && !self.reign_over_log(group) {
            return self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        }
        if let GroupAsk::Append { record, retry } = ask {
            let Stored { from, id, payload, .. } = record;
            let (stamp, retry) = match self.sent_to_group_before(group, from, id, retry.is_some()) {
                Before::Stored(stamp) => {
                    self.links.stats.group_duplicates.add(1);
                    // Nobody is given it again, so that it does not matter how many there are.
                    let stored = GroupReply::Stored { stamp, duplicate: true, members: 0, before: 0 };
                    return self.answer_asker(group, asker, Reply::Group(Box::new(stored)));
                }
                Before::Unknown(look) => (self.next_stamp(), look),
            };
            let (origin, acked, told, answer) = (None, false, false, Some(asker));
            let sending = Box::new(Sending { group, origin, from, id, stamp, acked, payload, told, answer });
            if let Err(sending) = self.ask_to_send(sending, retry, false)
                && let Some(asker) = sending.answer
            {
                self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
            }
            return;
        }
        let effect = match ask {
            GroupAsk::Join { user, .. } => Effect::Joined(user),
            GroupAsk::Leave { user } => Effect::Left(user),
            GroupAsk::Delete => Effect::Ended,
            _ => Effect::Nothing,
        };
        self.ask_store_of_group(group, ask, effect, asker);
    }

    /// Asks the store about a group.
    pub(super) fn ask_store_of_group(&mut self, group: u64, ask: GroupAsk, effect: Effect, asker: Asker) {
        let request = |token| Request::Group { group, ask: Box::new(ask), token: Some(token) };
        let asked = Asked::Group(GroupAsked::Home { group, effect, asker });
        let tick = self.links.tick;
        let asked = match &mut self.desk {
            Some(desk) => desk.ask(tick, asked, request),
            None => Err(asked),
        };
        if let Err(Asked::Group(GroupAsked::Home { asker, .. })) = asked {
            self.links.stats.limit_store_mail.add(1);
            match asker {
                Asker::Session { origin, id, .. } => self.group_refuse(origin, id, group, Code::Overloaded),
                asker => self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable)),
            }
        }
    }

    /// Tells who asked what has come of it.
    pub(super) fn answer_asker(&mut self, group: u64, asker: Asker, reply: Reply) {
        match asker {
            // Who asked may have gone.
            Asker::Control(answer) => drop(answer.send(reply)),
            Asker::Node { node, shard, ask } => {
                let body = encode_reply(&reply);
                let record = FarRecord::GroupAnswer { group, shard, ask, body: &body };
                if self.send_far(node, shard, &record).is_err() {
                    // Whoever waits there is told when its time is over.
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            Asker::Session { origin, id, user } => {
                let code = match &reply {
                    Reply::Group(reply) => match **reply {
                        GroupReply::Joined { last: stamp, .. } | GroupReply::Left { last: stamp, .. } => {
                            let joined = matches!(**reply, GroupReply::Joined { .. });
                            if !joined && !self.alone {
                                // The home tells all nodes, and that may come later than this. A session that was
                                // told that it has left gets nothing more.
                                let (shard, session) = (origin.shard, Some(origin.conn));
                                let left = GroupMail::Member { group, user, joined, last: stamp, number: 0, session };
                                self.tell_group(shard, &left);
                            }
                            let ok = GroupMail::Ok { group, conn: origin.conn, id, stamp, joined };
                            return self.tell_group(origin.shard, &ok);
                        }
                        GroupReply::Denied(denial) => {
                            let code = super::groups::code_of(denial);
                            self.links.stats.limit_group_members.add(u64::from(code == Code::LimitReached));
                            code
                        }
                        _ => Code::ServiceUnavailable,
                    },
                    // Not now: another home, a link, or the store.
                    _ if !self.alone => Code::Overloaded,
                    _ => Code::ServiceUnavailable,
                };
                self.group_refuse(origin, id, group, code);
            }
        }
    }

    /// What the control thread asks in a cluster: what changes who gets messages goes to the home of the group.
    pub(super) fn ask_group_of_cluster(&mut self, group: u64, ask: GroupAsk, answer: oneshot::Sender<Reply>) {
        let asker = Asker::Control(answer);
        if !self.serves_groups() {
            return self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        }
        if is_for_home(&ask) {
            return self.ask_group_home(group, ask, asker);
        }
        self.ask_store_of_group(group, ask, Effect::Nothing, asker);
    }

    /// This node is the home of a durable group: it reigns, and has told the store so before anything that follows.
    /// False if the store cannot be told.
    pub(super) fn reign_over_log(&mut self, group: u64) -> bool {
        self.reign(group);
        let Some(home) = self.groups.homes.get(group) else { return false };
        if home.claim != Claim::Untold {
            return true;
        }
        let request = |token| Request::Group { group, ask: Box::new(GroupAsk::Claim), token: Some(token) };
        let tick = self.links.tick;
        let home = self.groups.homes.at(group);
        home.claim_number += 1;
        let asked = Asked::Group(GroupAsked::Claim { group, number: home.claim_number });
        let told = self.desk.as_mut().is_some_and(|desk| desk.ask(tick, asked, request).is_ok());
        let home = self.groups.homes.at(group);
        if told {
            home.claim = Claim::Asked;
            home.asked += 1;
        } else {
            self.links.stats.limit_store_mail.add(1);
            self.groups.unclaimed.push(group);
        }
        told
    }

    /// The store has answered a claim.
    pub(super) fn group_claimed(&mut self, group: u64, number: u64, reply: Reply) {
        self.groups.homes.answered(group);
        let claimed = match &reply {
            Reply::Group(reply) => match **reply {
                GroupReply::Claimed { last } => Some(last),
                _ => None,
            },
            _ => None,
        };
        // A late answer to an earlier claim says nothing of the log since.
        let is_it = |home: &&mut GroupHome| home.claim != Claim::Untold && home.claim_number == number;
        let Some(home) = self.groups.homes.get_mut(group).filter(is_it) else {
            return self.groups.homes.forget_if_idle(group);
        };
        let Some(last) = claimed else {
            home.unclaim();
            self.groups.unclaimed.push(group);
            return self.groups.homes.forget_if_idle(group);
        };
        let is_news = home.claimed(last);
        let Seen { number, last, .. } = home.seen();
        let (shards, nodes, waiting) = (home.shards.clone(), home.nodes.clone(), std::mem::take(&mut home.waiting));
        self.stamps.follow(last);
        for shard in shards {
            self.tell_group(shard, &GroupMail::Head { group, last, number });
        }
        for node in nodes.into_iter().filter(|_| is_news) {
            self.groups.away.owe_head(node, group);
        }
        self.tell_heads();
        for (node, token, seen) in waiting {
            self.room_wanted(node, group, token, Some(seen));
        }
        self.groups.homes.forget_if_idle(group);
    }

    /// The view has another number from now on. Under the one before, nodes that had another view may have written to
    /// logs whose home this is, and the store did not refuse it: it is asked again where they end.
    pub(super) fn claim_logs_again(&mut self) {
        if overlooks_other_homes() {
            return;
        }
        let is_claimed = |group: &u64| self.groups.homes.get(*group).is_some_and(|home| home.claim != Claim::Untold);
        let groups: Vec<u64> = self.groups.homes.groups().filter(is_claimed).collect();
        for group in groups {
            if let Some(home) = self.groups.homes.get_mut(group) {
                home.doubt();
            }
            self.groups.unclaimed.push(group);
        }
    }

    /// A message is in the log of a group, behind the one at `before`. If that is another home's, which had another
    /// view, it is left out of the numbers, and all learn with this one that something is missing.
    pub(super) fn follow_log(&mut self, group: u64, before: u64, stamp: u64) {
        if overlooks_other_homes() {
            return;
        }
        if let Some(home) = self.groups.homes.get_mut(group).filter(|home| home.reigns) {
            home.logged(before, stamp);
        }
    }

    /// Tells nodes how far groups are of which a copy did not get there.
    fn tell_heads(&mut self) {
        for (node, group) in self.groups.away.take_heads() {
            let Some(home) = self.groups.homes.get(group).filter(|home| home.nodes.contains(&node)) else { continue };
            let Seen { reign, number, last } = home.seen();
            let head = FarRecord::GroupHead { group, token: 0, reign, number, last };
            let sent = self.relay_of(node, group).is_some_and(|shard| self.send_far(node, shard, &head).is_ok());
            if !sent {
                self.groups.away.owe_head(node, group);
            }
        }
    }

    /// A copy of a message did not get to a node. Of a room the next one shows it.
    pub(super) fn copy_lost(&mut self, node: NodeKey, group: u64) {
        if !is_room(group) {
            self.groups.away.owe_head(node, group);
        }
    }

    /// Something is in the log of a group, or may be, and is not passed on: all who are in learn that from the numbers,
    /// and how far the group is.
    pub(super) fn pass_over(&mut self, group: u64, stamp: u64) {
        let Some(home) = self.groups.homes.get_mut(group) else { return };
        home.passed_over(stamp);
        let (last, number) = (home.last, home.number);
        let (shards, nodes) = (home.shards.clone(), home.nodes.clone());
        for shard in shards {
            self.tell_group(shard, &GroupMail::Head { group, last, number });
        }
        nodes.into_iter().for_each(|node| self.groups.away.owe_head(node, group));
    }

    /// The store has not said whether it has a message: it is asked where the log ends.
    pub(super) fn log_unknown(&mut self, group: u64) {
        if self.alone || !self.numbers_group(group) {
            return;
        }
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::LogTakenForKnown) {
            return;
        }
        self.pass_over(group, 0);
        if let Some(home) = self.groups.homes.get_mut(group).filter(|home| home.claim == Claim::Done) {
            home.unclaim();
        }
        self.groups.unclaimed.push(group);
    }

    /// The store has not said whether somebody is a member now: it may be so, and nobody was told. Sessions of all
    /// nodes ask again whose they are, in a while: what happens to one happens to more while a master is replaced.
    pub(super) fn membership_unknown(&mut self) {
        if !self.alone {
            let soonest_tick = self.groups.unknown_told.map_or(0, |told_tick| told_tick + UNKNOWN_APART_TICKS);
            let due_tick = soonest_tick.max(self.links.tick + UNKNOWN_TICKS);
            self.groups.unknown_due.get_or_insert(due_tick);
        }
    }

    fn look_at_unknown(&mut self) {
        if self.groups.unknown_due.take_if(|due_tick| *due_tick <= self.links.tick).is_none() {
            return;
        }
        self.groups.unknown_told = Some(self.links.tick);
        if let Some(routing) = self.directory.routing.clone() {
            routing.others().for_each(|member| self.tell_node_of_member(member.key, MemberNews::MISSED));
        }
        self.all_look_again();
    }

    /// What has become of a membership is told to all nodes.
    pub(super) fn tell_nodes_of_member(&mut self, group: u64, user: u64, last: u64, change: u16) {
        let Some(routing) = self.directory.routing.clone().filter(|_| !self.alone) else { return };
        // Who is not the home any more may tell this behind what the present one tells.
        let is_late = !self.numbers_group(group);
        for node in routing.others().map(|member| member.key) {
            self.tell_node_of_member(node, MemberNews { group, user, last, change });
            if is_late {
                self.tell_node_of_member(node, MemberNews::MISSED);
            }
        }
        if is_late {
            self.all_look_again();
        }
    }

    fn tell_node_of_member(&mut self, node: NodeKey, news: MemberNews) {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::MemberUntold) {
            return;
        }
        // Behind what waits for the node already.
        if self.groups.away.owes(node) || !self.send_member_news(node, news) {
            self.groups.away.owe(node, news);
        }
    }

    fn send_member_news(&mut self, node: NodeKey, news: MemberNews) -> bool {
        let MemberNews { group, user, last, change } = news;
        let record = FarRecord::GroupMember { group, user, last, change };
        self.relay_of(node, group).is_some_and(|shard| self.send_far(node, shard, &record).is_ok())
    }

    /// What is due in this tick about durable groups in a cluster.
    pub(super) fn expire_shared_groups(&mut self) {
        if self.alone {
            return;
        }
        for (group, asker) in self.groups.away.expire(self.links.tick) {
            self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable));
        }
        let routing = self.directory.routing.clone();
        self.groups.away.forget_nodes(|node| routing.as_ref().is_some_and(|routing| routing.member(node).is_some()));
        while let Some((node, news)) = self.groups.away.next_owed() {
            if !self.send_member_news(node, news) {
                self.groups.away.owe_first(node, news);
                break;
            }
        }
        self.tell_heads();
        self.look_at_unknown();
        if self.serving && std::mem::take(&mut self.groups.copies_refused) {
            self.all_look_again();
        }
        let mut unclaimed = std::mem::take(&mut self.groups.unclaimed);
        unclaimed.sort_unstable();
        unclaimed.dedup();
        for group in unclaimed {
            let reigns = self.groups.homes.get(group).is_some_and(|home| home.reigns);
            if reigns && self.serving && self.room_home(group) == Home::Here {
                self.reign_over_log(group);
            }
        }
        self.look_again_at_some();
    }

    /// The groups of all sessions are to be asked for again.
    pub(super) fn look_again_at_groups(&mut self) {
        if self.desk.as_ref().is_some_and(|desk| desk.shared) {
            // One that is under way goes on, or it would never come to the end.
            self.groups.look_once_more |= self.groups.look_again.is_some();
            self.groups.look_again.get_or_insert(0);
        }
    }

    fn look_again_at_some(&mut self) {
        let Some(from) = self.groups.look_again else { return };
        if !self.serving || !self.serves_groups() {
            return;
        }
        let high_water = self.links.slots.high_water();
        let end = high_water.min(from.saturating_add(LOOKS_PER_TICK));
        // Those that cannot be asked for now are asked for by themselves.
        self.groups.look_again = match end < high_water {
            true => Some(end),
            false => std::mem::take(&mut self.groups.look_once_more).then_some(0),
        };
        for slot in from..end {
            let conn = self.links.slots.at(slot);
            let asks = conn.phase == Phase::Open && !conn.flags.has(ConnFlags::SERVICE);
            // Who waits is asked for then.
            if asks && !self.groups.later.waits(slot) {
                let user = conn.user;
                self.begin_groups(self.links.slots.id(slot), user, None);
            }
        }
    }

    /// A record about a durable group from another node.
    pub(super) fn shared_group_record(&mut self, node: NodeKey, record: &FarRecord<'_>) {
        match *record {
            FarRecord::GroupAsk { group, shard, ask: number, body } => {
                let asker = Asker::Node { node, shard, ask: number };
                let ask = decode_ask(body).filter(|_| !is_room(group) && group != 0);
                let is_member = self.relay_of(node, group).is_some();
                match ask.filter(|_| is_member && !self.directory.departed.has(node)) {
                    Some(ask) => self.ask_group_home(group, ask, asker),
                    None => self.answer_asker(group, asker, Reply::Refused(Refusal::Unavailable)),
                }
            }
            FarRecord::GroupAnswer { ask, body, .. } => {
                let Some((group, asker)) = self.groups.away.take(ask) else { return };
                let reply = decode_reply(body).unwrap_or(Reply::Refused(Refusal::Unavailable));
                self.answer_asker(group, asker, reply);
            }
            FarRecord::GroupMember { group, user, last, change } => {
                self.member_news(group, user, last, change);
                // What a former home tells may be older than what the present one has told.
                let home = self.room_home(group);
                let is_of_home = matches!(home, Home::There { node: home, .. } if home == node);
                if change != member_change::MISSED && !is_of_home {
                    self.all_look_again();
                }
            }
            _ => {}
        }
    }

    /// Sessions of all shards may have missed something.
    pub(super) fn all_look_again(&mut self) {
        for shard in 0..self.shards {
            self.tell_group(shard, &GroupMail::Missed);
        }
    }

    fn member_news(&mut self, group: u64, user: u64, last: u64, change: u16) {
        match change {
            member_change::JOINED | member_change::LEFT => {
                let (joined, number, session) = (change == member_change::JOINED, NUMBER_UNKNOWN, None);
                let shard = home_shard(user, u32::from(self.shards)) as u16;
                self.tell_group(shard, &GroupMail::Member { group, user, joined, last, number, session });
            }
            member_change::ENDED => {
                for shard in self.groups.homes.end(group) {
                    self.tell_group(shard, &GroupMail::Ended { group });
                }
                self.room_unwatched(group);
            }
            member_change::MISSED => self.all_look_again(),
            _ => self.links.stats.mesh_misrouted.add(1),
        }
    }

    /// A record about a durable group that was queued for a node and will not be confirmed.
    pub(super) fn shared_group_record_back(&mut self, back: &GivenBack, record: &FarRecord<'_>) {
        match *record {
            FarRecord::GroupAsk { ask, .. } => self.give_up_ask(ask),
            FarRecord::GroupAnswer { shard, .. } => {
                let lost = self.send_far(back.node, shard, record).is_err();
                self.links.stats.mesh_answers_lost.add(u64::from(lost));
            }
            // It may have arrived, and others that came later too: the node asks the store.
            FarRecord::GroupMember { .. } => self.groups.away.owe(back.node, MemberNews::MISSED),
            _ => {}
        }
    }

    /// Whether this shard gives the messages of a durable group their numbers: what the store has answered to one that
    /// does not is told by whoever is the home now.
    pub(super) fn numbers_group(&self, group: u64) -> bool {
        self.alone || self.groups.homes.get(group).is_some_and(|home| home.reigns)
    }

    /// The address of nobody, for what came over HTTP.
    pub(super) fn origin_for_nodes(&self, message: &Numbered<'_>) -> Origin {
        let nobody = crate::io::ConnId { slot: 0, generation: u32::MAX };
        message.origin.unwrap_or(Origin { node: NodeKey::OWN, shard: 0, holder: 0, conn: nobody })
    }
}
