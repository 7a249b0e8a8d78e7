//! Watching who is online: from the frames of clients to the homes of the users, and from what becomes of those users'
//! sessions back to the clients. [`crate::watch`] has the tables; here they meet presence, mailboxes and other nodes.
//!
//! A watcher's shard asks the home shard of each user, wherever that is in the present view, and asks again whenever
//! the view gives the user another home or the question may have been lost. A home that cannot tell whether a user is
//! online, because not all nodes have told it of their sessions, keeps the question and answers when it can. So what
//! a watcher is told comes from the present home; where there is none for too long, it is told that nobody knows.

use super::links::{TICK_MS, ticks};
use super::shard::Shard;
use crate::auth::Whom;
use crate::directory::{Home, Routing};
use crate::ids::NodeKey;
use crate::limits::SHARDS_MAX;
use crate::limits::WatchPolicy;
use crate::mailbox::Record;
use crate::mesh::peers::FarError;
use crate::mesh::wire::{Record as FarRecord, WATCH_FULL, WATCH_SINCE, watch_bits};
use crate::watch::homes::{Actual, Moment, Told};
use crate::watch::mail::WatchMail;
use crate::watch::watchers::{Denied, Word};
use crate::watch::{Place, State, Status, Watches, classes_of, push_class};
use trunkline_proto::prost::Message;
use trunkline_proto::{Code, Frame, HEADER_SHORT, Kind, Presence as PresenceBody, UserState, Watch, encode_message};
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::presence::Presence;

/// Users looked at in a tick, after a change of the view.
const WALK_PLACES: usize = 65_536;
/// Changes told in a tick; the rest waits for the next.
const CHANGES_PER_TICK: usize = 16_384;
/// Sessions that are told in a tick what has changed, and those that are looked at: some are not due yet, some do not
/// read. The rest waits for the next.
const SESSIONS_PER_TICK: usize = 4_096;
const LOOKS_PER_TICK: usize = 65_536;
/// Words to homes in one go; the rest goes with the next tick.
const WORDS_PER_TURN: usize = 65_536;
/// How often it is looked which nodes are reached.
const LOOK_MS: u64 = 1_000;
/// Bytes a user id takes in a body at most, with its tag.
const ID_BYTES: usize = 11;
/// Bytes around a state of a user in a body at most: tags and lengths.
const STATE_SLACK_BYTES: usize = 16;
const _: () = assert!(TICK_MS == 100);

/// The shard that is the home of a user, if it can be asked: every member of the view may have another version.
fn home_place(routing: Option<&Routing>, alone: bool, shards: u16, user: u64) -> Option<Place> {
    let here = Place { node: NodeKey::OWN, shard: home_shard(user, u32::from(shards)) as u16 };
    let Some(routing) = routing else { return alone.then_some(here) };
    match routing.home(user) {
        Home::Here => Some(here),
        Home::There { node, shard } => {
            let speaks = |node| routing.member(node).is_some_and(|member| member.protocol >= WATCH_SINCE);
            (speaks(node) && speaks(routing.own())).then_some(Place { node, shard })
        }
        Home::Nowhere => None,
    }
}

impl Shard {
    /// WATCH and UNWATCH.
    pub(super) fn watch_frame(&mut self, slot: u32, kind: Kind, frame: &Frame<'_>) {
        let most = self.links.limits.watch;
        if most.policy == WatchPolicy::Off {
            return self.links.error(slot, Code::Unsupported, 0, 0);
        }
        // A list of ids takes up to eight times the memory of its bytes.
        if frame.body.len() > (most.per_session_max as usize + 1) * ID_BYTES {
            self.links.stats.limit_watches_session.add(1);
            return self.links.error(slot, Code::LimitReached, 0, 0);
        }
        let mut watch = match Watch::decode(frame.body) {
            Ok(watch) if !watch.users.contains(&0) => watch,
            _ => return self.links.error(slot, Code::BadRequest, 0, 0),
        };
        watch.users.sort_unstable();
        watch.users.dedup();
        let Watches { watchers, claims, unkept, .. } = &mut self.watches;
        if kind == Kind::Unwatch {
            watchers.unwatch(slot, &watch.users);
            return self.tell_homes();
        }
        if unkept.contains(&slot) {
            // Whom it may watch nobody knows any more, so nobody must look offline for that.
            self.links.stats.limit_watch_bytes.add(1);
            return self.links.error(slot, Code::LimitReached, 0, 0);
        }
        let claim = claims.get(&slot);
        let may_watch = |user| most.policy == WatchPolicy::Open || claim.is_some_and(|claim| claim.covers(user));
        let (tick, bounds) = (self.links.tick, (most.per_session_max, most.bytes_max / 2));
        match watchers.watch(slot, &watch.users, watch.follow, tick, bounds, may_watch) {
            Ok(()) => self.tell_homes(),
            Err(denied) => {
                match denied {
                    Denied::Session => self.links.stats.limit_watches_session.add(1),
                    Denied::Table => self.links.stats.limit_watch_bytes.add(1),
                }
                self.links.error(slot, Code::LimitReached, 0, 0);
            }
        }
    }

    /// Keeps whom the session in a slot may watch, where tokens say so.
    pub(super) fn keep_claim(&mut self, slot: u32, claim: Whom) {
        let limits = self.links.limits.watch;
        self.forget_claim(slot);
        let claims = &mut self.watches.claims;
        if limits.policy != WatchPolicy::Claim || claim == Whom::Nobody {
            return;
        }
        if self.watches.claim_bytes + claim.bytes() > limits.bytes_max / 2 {
            self.watches.unkept.insert(slot);
            return self.links.stats.limit_watch_bytes.add(1);
        }
        self.watches.claim_bytes += claim.bytes();
        claims.insert(slot, claim);
    }

    fn forget_claim(&mut self, slot: u32) {
        let Watches { claims, claim_bytes, unkept, .. } = &mut self.watches;
        if let Some(before) = claims.remove(&slot) {
            *claim_bytes -= before.bytes();
        }
        unkept.remove(&slot);
    }

    /// Whether there was no room for the list of whom the session in a slot may watch.
    pub(super) fn lost_claim(&self, slot: u32) -> bool {
        self.watches.unkept.contains(&slot)
    }

    /// That list stays unknown, because what came later did not say it again.
    pub(super) fn claim_stays_lost(&mut self, slot: u32) {
        self.watches.unkept.insert(slot);
    }

    /// Whom the session in a slot may watch.
    pub(super) fn watch_claim(&self, slot: u32) -> Whom {
        self.watches.claims.get(&slot).cloned().unwrap_or_default()
    }

    /// The session goes on with another token, which may say something else.
    pub(super) fn renew_claim(&mut self, slot: u32, claim: Whom) {
        self.keep_claim(slot, claim);
        if self.links.limits.watch.policy == WatchPolicy::Claim {
            let Watches { watchers, claims, .. } = &mut self.watches;
            let claim = claims.get(&slot);
            watchers.allow(slot, |user| claim.is_some_and(|claim| claim.covers(user)));
        }
    }

    /// The session of a slot has ended.
    pub(super) fn watches_end(&mut self, slot: u32) {
        self.forget_claim(slot);
        if !self.watches.watchers.is_empty() {
            self.watches.watchers.session_ended(slot);
            self.tell_homes();
        }
    }

    /// Says to homes what is to be said to them.
    fn tell_homes(&mut self) {
        let tick = self.links.tick;
        let mut later = Vec::new();
        for _ in 0..WORDS_PER_TURN {
            let Some(word) = self.watches.watchers.next_word() else { break };
            match word {
                Word::Ask { user, known } => {
                    let home = home_place(self.directory.routing.as_deref(), self.alone, self.shards, user);
                    // The answer may come at once.
                    let asked = home.is_some_and(|home| {
                        self.watches.watchers.asked(user, home)
                            && self.send_watch(home, &WatchMail::Ask { user, known }).is_ok()
                    });
                    if !asked {
                        self.watches.watchers.ask_again(user, tick);
                    }
                }
                Word::Forget { user, place } => {
                    // A link that is full now has room later; a node that is no member has forgotten it by itself.
                    if self.send_watch(place, &WatchMail::Forget { user }) == Err(FarError::Full) {
                        later.push((user, place));
                    }
                }
            }
        }
        later.into_iter().for_each(|(user, place)| self.watches.watchers.forget_later(user, place));
    }

    /// Hands a word to a shard, of this node or another.
    fn send_watch(&mut self, place: Place, mail: &WatchMail<'_>) -> Result<(), FarError> {
        if place.node == NodeKey::OWN {
            if place.shard == self.shard {
                self.take_watch_mail(place.shard, mail);
            } else {
                // Each such word is one of few for a watch, whose number is bounded.
                self.outgoing.put(place.shard, &Record::Watch(*mail));
            }
            return Ok(());
        }
        let Place { node, shard: to } = place;
        let from = self.shard;
        let record = match *mail {
            WatchMail::Ask { user, known } => {
                let known = (known as u8) << watch_bits::KNOWN_SHIFT;
                FarRecord::UserWatch { user, from, bits: watch_bits::WATCH | known }
            }
            WatchMail::Forget { user } => FarRecord::UserWatch { user, from, bits: 0 },
            WatchMail::Told { user, state: State { status, since_s, classes } } => {
                FarRecord::UserTold { user, to, status: status as u8, since_s, classes }
            }
            WatchMail::Full { user } => FarRecord::UserTold { user, to, status: WATCH_FULL, since_s: 0, classes: &[] },
        };
        self.send_far(node, to, &record)
    }

    /// Takes a word about a user who is watched from a shard of this node, perhaps this one.
    pub(super) fn take_watch_mail(&mut self, from_shard: u16, mail: &WatchMail<'_>) {
        let place = Place { node: NodeKey::OWN, shard: from_shard };
        match *mail {
            WatchMail::Ask { user, known } => self.watch_asked(place, user, known),
            WatchMail::Forget { user } => self.watches.homes.forget(user, place),
            WatchMail::Told { user, state } => self.watch_told(place, user, Some(state)),
            WatchMail::Full { user } => self.watch_told(place, user, None),
        }
    }

    /// A shard of another node wants to hear of a user, or no more.
    pub(super) fn watch_asked_far(&mut self, node: NodeKey, user: u64, from: u16, bits: u8) {
        let place = Place { node, shard: from };
        if user == 0 || u32::from(from) >= u32::from(SHARDS_MAX) {
            return self.links.stats.mesh_misrouted.add(1);
        }
        match bits & watch_bits::WATCH != 0 {
            true => {
                let known = Status::from_u8(bits >> watch_bits::KNOWN_SHIFT & 3).unwrap_or(Status::Unknown);
                self.watch_asked(place, user, known);
            }
            false => self.watches.homes.forget(user, place),
        }
    }

    /// A home on another node tells of a user.
    pub(super) fn watch_told_far(&mut self, node: NodeKey, user: u64, status: u8, since_s: u32, classes: &[u8]) {
        // The shard of the user there is known by what it has.
        let shards = self.directory.routing.as_ref().and_then(|routing| routing.member(node)).map(|it| it.shards);
        let Some(shards) = shards else { return };
        let place = Place { node, shard: home_shard(user, shards.max(1)) as u16 };
        let state = Status::from_u8(status).map(|status| State { status, since_s, classes });
        self.watch_told(place, user, state);
    }

    /// What is so of a user by the sessions that this shard knows; `None` if it cannot tell: it is not the user's home,
    /// or does not know of all sessions yet.
    fn actual(&self, user: u64) -> Option<Actual> {
        if !self.serving || (!self.alone && (self.home(user) != Home::Here || self.is_unsettled(user))) {
            return None;
        }
        let sessions = self.presence.sessions(user);
        let Some(since_s) = sessions.iter().map(|entry| entry.since_s).min() else { return Some(Actual::OFFLINE) };
        // FNV-1a: it only has to tell lists of a few words apart.
        let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        let of_list = |hash, class: &str| class.as_bytes().iter().chain(&[0]).fold(hash, step);
        let classes = sessions.iter().map(|entry| entry.class()).filter(|class| !class.is_empty());
        let classes = classes.fold(0x811C_9DC5, of_list);
        Some(Actual { online: true, since_s, classes })
    }

    fn moment(&self) -> Moment {
        Moment { tick: self.links.tick, wall_s: (self.now.wall_ms / 1_000) as u32 }
    }

    /// A place asks this home for a user.
    fn watch_asked(&mut self, place: Place, user: u64, known: Status) {
        let (actual, now) = (self.actual(user), self.moment());
        let bytes_max = self.links.limits.watch.bytes_max / 2;
        match self.watches.homes.ask(user, place, known, actual, now, bytes_max) {
            Some((_, true)) => self.tell_all(user),
            Some((told, false)) => self.tell_place(None, place, user, told),
            None => {
                self.links.stats.limit_watch_bytes.add(1);
                if self.send_watch(place, &WatchMail::Full { user }).is_err() {
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
        }
    }

    /// Tells a place what was told of a user. What finds no room is told later.
    fn tell_place(&mut self, number: Option<u16>, place: Place, user: u64, Told { status, since_s }: Told) {
        let mut classes = Vec::new();
        if status == Status::Online {
            self.presence.sessions(user).iter().for_each(|entry| push_class(&mut classes, entry.class()));
        }
        let state = State { status, since_s, classes: &classes };
        match self.send_watch(place, &WatchMail::Told { user, state }) {
            Ok(()) | Err(FarError::TooLong) => {}
            // A node that is not known yet is in the next view, or is forgotten with it.
            Err(FarError::Full | FarError::Unreachable | FarError::Unknown) => {
                self.links.stats.watch_owed.add(1);
                match number {
                    Some(number) => self.watches.homes.owe(number, user),
                    None => self.watches.homes.owe_at(place, user),
                }
            }
        }
    }

    /// Tells everybody who watches a user of a change.
    fn tell_of(&mut self, user: u64) {
        self.links.stats.watch_changes.add(1);
        self.tell_all(user);
    }

    /// Tells everybody who watches a user what is so.
    fn tell_all(&mut self, user: u64) {
        let Some(told) = self.watches.homes.said(user) else { return };
        for (number, place) in self.watches.homes.told_places(user) {
            self.tell_place(Some(number), place, user, told);
        }
    }

    /// A session of a user has begun or ended at this shard, or is known no more.
    pub(super) fn note_presence(&mut self, user: u64) {
        if self.watches.homes.is_watched(user) {
            let (actual, now) = (self.actual(user), self.moment());
            if self.watches.homes.changed(user, actual, now) {
                self.tell_of(user);
            }
        }
    }

    /// A home tells of a user; `None`: it has no room for the watch.
    fn watch_told(&mut self, place: Place, user: u64, state: Option<State<'_>>) {
        let tick = self.links.tick;
        let is_home = self.watches.watchers.home_of(user) == Some(place);
        match (is_home, state) {
            (true, Some(state)) => self.watches.watchers.told(user, state, tick),
            (true, None) => self.watches.watchers.home_is_full(user, tick),
            // Who tells what nobody wants to hear has not been told so, or that was lost.
            (false, Some(_)) => {
                if self.send_watch(place, &WatchMail::Forget { user }).is_err() {
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            (false, None) => {}
        }
    }

    /// What is due about watches in this tick.
    pub(super) fn expire_watches(&mut self) {
        if self.watches.is_idle() {
            return;
        }
        if !self.serving {
            return self.watches.pause();
        }
        let tick = self.links.tick;
        self.watches.resume();
        if !self.alone {
            self.look_at_nodes();
        }
        self.tell_changes();
        self.walk_watches();
        self.watches.watchers.expire(tick);
        self.tell_homes();
        self.tell_watchers();
    }

    /// Users of nodes that are not reached are nobody's to tell of.
    fn look_at_nodes(&mut self) {
        let tick = self.links.tick;
        if !tick.is_multiple_of(ticks(LOOK_MS)) {
            return;
        }
        // While others have not told of all their sessions, who can be told of changes from one look to the next.
        if !self.directory.settling.is_settled() {
            self.watches.homes.begin_walk();
        }
        let (Some(mesh), Some(routing)) = (&self.mesh, &self.directory.routing) else { return };
        let silent: Vec<NodeKey> =
            routing.others().map(|member| member.key).filter(|node| mesh.is_silent(*node)).collect();
        let newly = self.watches.note_silent(silent);
        if !newly.is_empty() {
            self.watches.watchers.homes_lost(|place| newly.contains(&place.node), tick);
        }
    }

    /// Changes whose time has come, and those for which there was no room.
    fn tell_changes(&mut self) {
        let now = self.moment();
        for _ in 0..CHANGES_PER_TICK {
            let Some(user) = self.watches.homes.next_due(now.tick) else { break };
            let actual = self.actual(user);
            if self.watches.homes.is_due(user, actual, now) {
                self.tell_of(user);
            }
        }
        for (number, place, user) in self.watches.homes.take_owed(CHANGES_PER_TICK) {
            if let Some(told) = self.watches.homes.said(user) {
                self.tell_place(Some(number), place, user, told);
            }
        }
    }

    /// Goes on looking, after a change of the view, whose home is another one and what this home can tell.
    fn walk_watches(&mut self) {
        let now = self.moment();
        if self.watches.homes.walks() {
            let mut homes = std::mem::take(&mut self.watches.homes);
            let told = homes.walk_on(WALK_PLACES, now, |user| self.actual(user));
            self.watches.homes = homes;
            told.into_iter().for_each(|user| self.tell_of(user));
        }
        if self.watches.watchers.walks() {
            let routing = self.directory.routing.as_deref();
            let (alone, shards) = (self.alone, self.shards);
            let is_member = |node| routing.is_some_and(|routing| routing.member(node).is_some());
            self.watches.watchers.walk_on(
                WALK_PLACES,
                now.tick,
                |user, place| home_place(routing, alone, shards, user) == Some(place),
                |place| place.node == NodeKey::OWN || is_member(place.node),
            );
        }
    }

    /// There is a new view. `reborn`: this node counts as another one, of which no home knows.
    pub(super) fn watches_moved(&mut self, reborn: bool) {
        let tick = self.links.tick;
        let Watches { watchers, homes, .. } = &mut self.watches;
        let routing = self.directory.routing.as_deref();
        let is_member = |node| routing.is_some_and(|routing| routing.member(node).is_some());
        homes.retain(|place| place.node == NodeKey::OWN || is_member(place.node));
        homes.begin_walk();
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::WatchUnasked) {
            return;
        }
        watchers.begin_walk();
        if reborn {
            watchers.homes_lost(|place| place.node != NodeKey::OWN, tick);
        }
    }

    /// Nodes live on and have lost what was told to them.
    pub(super) fn watches_again(&mut self, nodes: &[NodeKey]) {
        self.watches.watchers.homes_lost(|place| nodes.contains(&place.node), self.links.tick);
        self.tell_homes();
    }

    /// What was said to a home was not confirmed, and will not be.
    pub(super) fn watch_back(&mut self, node: NodeKey, user: u64, bits: u8) {
        let tick = self.links.tick;
        let is_home = self.watches.watchers.home_of(user).is_some_and(|place| place.node == node);
        if bits & watch_bits::WATCH != 0 {
            if is_home {
                self.watches.watchers.ask_was_lost(user, tick);
            }
            return;
        }
        // Which shard of the node it was is not known: that of the user there.
        let routing = self.directory.routing.as_deref();
        if let Some(member) = routing.and_then(|routing| routing.member(node)).filter(|_| !is_home) {
            let place = Place { node, shard: home_shard(user, member.shards.max(1)) as u16 };
            self.watches.watchers.forget_later(user, place);
        }
    }

    /// What was told to a shard of another node was not confirmed, and will not be: it is told what is so by then.
    pub(super) fn told_back(&mut self, node: NodeKey, user: u64, to: u16) {
        self.watches.homes.owe_at(Place { node, shard: to }, user);
    }

    /// Tells sessions what has changed: the latest state of each user, so many in a frame, and frames a while apart.
    fn tell_watchers(&mut self) {
        let tick = self.links.tick;
        let frame_bytes_max = self.links.limits.frame_bytes_max as usize - HEADER_SHORT;
        let mut told = 0;
        for _ in 0..self.watches.watchers.listed().min(LOOKS_PER_TICK) {
            if told == SESSIONS_PER_TICK {
                return;
            }
            let Some((slot, is_due)) = self.watches.watchers.next_listed(tick) else { return };
            let room = self.links.limits.outbox_bytes_max / 2;
            if !is_due || self.links.slots.at(slot).outbox_bytes() >= room {
                self.watches.watchers.later(slot);
                continue;
            }
            told += 1;
            let (mut users, mut bytes) = (Vec::new(), 0);
            self.watches.watchers.tell(slot, tick, |shown| {
                let State { status, since_s, classes } = shown.state;
                let mut state = UserState {
                    user: shown.user,
                    online: status == Status::Online,
                    device_classes: classes_of(classes),
                    since_ms: u64::from(since_s) * 1_000,
                    unknown: status == Status::Unknown,
                };
                if users.is_empty() && state.encoded_len() + STATE_SLACK_BYTES > frame_bytes_max {
                    // It would never fit.
                    state.device_classes.clear();
                }
                bytes += state.encoded_len() + STATE_SLACK_BYTES;
                let fits = bytes <= frame_bytes_max;
                if fits {
                    users.push(state);
                }
                fits
            });
            self.links.stats.watch_frames.add(1);
            self.links.stats.watch_states.add(users.len() as u64);
            let presence = PresenceBody { users };
            self.links.reply(slot, |out| encode_message(out, Kind::Presence, 0, &presence));
        }
    }

    pub(super) fn set_watch_gauges(&self) {
        let (stats, watches) = (&self.links.stats, &self.watches);
        stats.watches.set(watches.watchers.len() as u64);
        stats.watched.set(watches.homes.len() as u64);
        stats.watch_bytes.set(watches.bytes() as u64);
    }
}
