//! From a push that was judged to the shards of its users, and from their fates to who waits. No I/O and no clock.
//!
//! Each user of a push that was begun ends in exactly one result, which is counted at the user's shard: its fate; or
//! overloaded at once, where the user has had all pushes of this second or the portal of the shard is full; or unknown,
//! when the shards have ended.

use super::broadcasts::{Begun as BroadcastBegun, Broadcasts, NotBegun, Progress};
use super::ledger::{Ledger, Settled, Standing};
use super::rates::Rates;
use super::request::{OnItsWay, Push, Target};
use super::window::{At, Found, Name, Window, is_for_again};
use crate::broadcast::{Spec, Word};
use crate::groups::group_home;
use crate::limits::Limits;
use crate::metrics::{ShardStats, Stat};
use crate::portal::{OuterEnd, Push as Carried};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::oneshot;
use trunkline_proto::{Outcome, flags};
use trunkline_router::hash::home_shard;
use trunkline_router::http::CallerKey;

/// Who waits for the end of a push.
pub(super) type Waiter = oneshot::Sender<Standing>;

/// Why a push, or a request with several, was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many pushes are open as may be.
    Open,
    /// No shard of its users takes one more now.
    Portal,
    /// As many pushes to all are under way as may be.
    Broadcasts,
    /// The node is about to end.
    Ending,
    /// The Idempotency-Key was used for another push.
    OtherPush,
}

/// The pushes of a node.
#[derive(Debug)]
pub(crate) struct Desk {
    out: OuterEnd,
    ledger: Ledger<Waiter>,
    rates: Rates,
    window: Window,
    broadcasts: Broadcasts,
    /// The numbers of each shard, of which those of pushes by HTTP are written here alone.
    stats: Vec<Arc<ShardStats>>,
    /// Gives ids to pushes without one.
    ids: SmallRng,
    ends: bool,
}

impl Desk {
    /// A desk for the shards behind `out`.
    pub(crate) fn new(out: OuterEnd, stats: Vec<Arc<ShardStats>>, limits: &Limits, seed: u64) -> Self {
        Desk {
            out,
            ledger: Ledger::new(limits.pushes_open_max as usize),
            rates: Rates::new(limits.pushes_per_user_per_sec, limits.pushes_per_key_per_sec),
            window: Window::default(),
            broadcasts: Broadcasts::default(),
            stats,
            // An id is a name and no secret.
            ids: SmallRng::seed_from_u64(seed),
            ends: false,
        }
    }

    /// Takes so many pushes from what the caller's key may have. False if it has had too many.
    pub(super) fn take_for_key(&mut self, caller: &CallerKey, pushes: usize, now_ms: u64) -> bool {
        let may = self.rates.take_for_key(&caller.id, caller.limits.pushes_per_sec, pushes, now_ms);
        if !may {
            self.stats[0].limit_pushes_key.add(1);
        }
        may
    }

    /// Begins a push, or finds the one that was begun under that key before.
    ///
    /// # Errors
    /// Why it was not begun.
    pub(super) fn begin(&mut self, push: Push, caller: &str, key: Option<&str>, now_ms: u64) -> Result<At, Refused> {
        let said = digest([push.said().as_slice()]);
        let name = key.map(|key| digest([caller.as_bytes(), b"\0", key.as_bytes()]));
        if let Some(name) = &name {
            match self.window.find(name, &said, now_ms) {
                Found::New => {}
                Found::Again(at) => {
                    self.stats[0].pushes_http_repeated.add(1);
                    return Ok(at);
                }
                Found::Other => return Err(Refused::OtherPush),
            }
        }
        if self.ends {
            return Err(Refused::Ending);
        }
        let recipients = push.recipients();
        if !self.ledger.has_room(recipients) {
            self.stats[0].limit_pushes_open.add(1);
            return Err(Refused::Open);
        }
        let id = self.id_of_push(push.id, name.as_ref(), push.service);
        let Push { service, ack, retry, .. } = push;
        let OnItsWay { recipients: users, to_groups, extra, payload } = push.on_its_way().ok_or(Refused::Open)?;
        let again = if retry || name.is_some() { flags::RETRY } else { 0 };
        let token = self.ledger.begin(id, users.clone());
        let carried = Carried { token, service, acked: ack, to_groups, extra: extra | again, id, payload: &payload };
        let (mut standing, mut unplaced) = (None, 0);
        let shards = self.out.shards();
        let at = |recipient: u64| counted_at(recipient, shards);
        for (shard, users) in self.by_shard(users, to_groups) {
            // Those of one shard are counted in one place.
            let stats = &self.stats[at(users.first().copied().unwrap_or_default())];
            stats.pushes_http_in.add(users.len() as u64);
            stats.pushes_http_open.add(users.len() as u64);
            let (taken, limited): (Vec<u64>, Vec<u64>) =
                users.into_iter().partition(|user| to_groups || self.rates.take_for_user(*user, now_ms));
            stats.limit_pushes_user.add(limited.len() as u64);
            let has_room = self.out.put(shard, &carried, &taken);
            if !has_room {
                stats.limit_portal.add(1);
                unplaced += taken.len();
            }
            let refused = limited.into_iter().chain(if has_room { Vec::new() } else { taken });
            for user in refused {
                if let Settled::Last(last, _) = settle(&mut self.ledger, stats, token, id, user, Outcome::Overloaded) {
                    standing = Some(last);
                }
            }
        }
        if unplaced == recipients {
            return Err(Refused::Portal);
        }
        let at = standing.map_or(At::Open(token), At::Over);
        if let Some(name) = name
            && !standing.as_ref().is_some_and(is_for_again)
            && self.window.note(name, said, at, now_ms)
        {
            self.stats[0].limit_push_keys.add(1);
        }
        Ok(at)
    }

    /// The id of a push that has been given that one, or none.
    fn id_of_push(&mut self, given: Option<u64>, name: Option<&Name>, service: u16) -> u64 {
        match (given, name) {
            (Some(id), _) => id,
            // The same at each node, so that the recipient's home knows it again.
            (None, Some(name)) => id_of(&digest([name.as_slice(), &service.to_be_bytes()])),
            (None, None) => self.ids.next_u64().max(1),
        }
    }

    /// Begins a push to all sessions for which its condition holds, or finds the one that was begun under its id
    /// before.
    ///
    /// # Errors
    /// Why it was not begun.
    pub(super) fn broadcast(
        &mut self,
        push: Push,
        caller: &str,
        key: Option<&str>,
        now_ms: u64,
    ) -> Result<Progress, Refused> {
        let said = digest([push.said().as_slice()]);
        let name = key.map(|key| digest([caller.as_bytes(), b"\0", key.as_bytes()]));
        if let Some(name) = &name
            && !matches!(self.window.find(name, &said, now_ms), Found::New)
        {
            return Err(Refused::OtherPush);
        }
        let id = self.id_of_push(push.id, name.as_ref(), push.service);
        let Push { to: Target::Sessions(condition), service, payload, .. } = push else { return Err(Refused::Open) };
        if self.ends && self.broadcasts.progress(id).is_none() {
            return Err(Refused::Ending);
        }
        match self.broadcasts.begin(id, service, said, payload.len(), self.out.shards()) {
            Ok(BroadcastBegun::New(token)) => {
                let spec = Spec { token, service, id, condition, payload: payload.into() };
                self.out.tell_all(&Word::Begin(Arc::new(spec)));
                self.stats[0].broadcasts_begun.add(1);
            }
            Ok(BroadcastBegun::Known(_)) => self.stats[0].pushes_http_repeated.add(1),
            Err(NotBegun::OtherPush) => return Err(Refused::OtherPush),
            Err(NotBegun::Full) => {
                self.stats[0].limit_broadcasts.add(1);
                return Err(Refused::Broadcasts);
            }
        }
        self.stats[0].broadcasts_open.set(self.broadcasts.len() as u64);
        Ok(self.broadcasts.progress(id).unwrap_or_default())
    }

    /// How far a push to all is; `None` if nobody knows of it.
    pub(super) fn progress(&self, id: u64) -> Option<Progress> {
        self.broadcasts.progress(id)
    }

    /// Stops a push to all. Returns how far it was; `None` if nobody knows of it.
    pub(super) fn stop_broadcast(&mut self, id: u64) -> Option<Progress> {
        let (progress, news) = self.broadcasts.stop(id)?;
        if let Some(token) = news {
            self.out.tell_all(&Word::Stop(token));
        }
        Some(progress)
    }

    /// The users, or groups, of each shard.
    fn by_shard(&self, recipients: Vec<u64>, groups: bool) -> Vec<(usize, Vec<u64>)> {
        let mut by_shard: Vec<(usize, Vec<u64>)> = Vec::new();
        for user in recipients {
            let shard = match groups {
                true => usize::from(group_home(user, self.out.shards() as u16)),
                false => home_shard(user, self.out.shards()) as usize,
            };
            match by_shard.iter_mut().find(|(known, _)| *known == shard) {
                Some((_, users)) => users.push(user),
                None => by_shard.push((shard, vec![user])),
            }
        }
        by_shard
    }

    /// Lets somebody wait for the end of a push. False if it has ended.
    pub(super) fn wait(&mut self, token: u32, waiter: Waiter) -> bool {
        self.ledger.wait(token, waiter, |other| !other.is_closed())
    }

    /// Where an open push stands.
    pub(super) fn standing(&self, token: u32) -> Option<Standing> {
        self.ledger.standing(token)
    }

    /// Hands over to the shards what has been begun, and takes what they have told. Returns the pushes to all that are
    /// over with that.
    pub(super) fn turn(&mut self) -> Vec<Progress> {
        let Desk { out, ledger, window, stats, broadcasts, .. } = self;
        out.post();
        let shards = out.shards();
        out.take_fates(|fate| {
            let stats = &stats[counted_at(fate.user, shards)];
            match settle(ledger, stats, fate.token, fate.id, fate.user, fate.outcome) {
                Settled::Late => stats.push_fates_late.add(1),
                Settled::Counted => {}
                Settled::Last(standing, waiters) => {
                    window.ended(fate.token, standing);
                    tell(waiters, standing);
                }
            }
        });
        for (shard, stats) in stats.iter().enumerate() {
            stats.portal_bytes.set(out.bytes(shard) as u64);
        }
        let mut over = Vec::new();
        out.take_news(|news| over.extend(broadcasts.hear(news)));
        stats[0].broadcasts_open.set(broadcasts.len() as u64);
        over
    }

    /// Begins no more pushes from now on.
    pub(crate) fn end(&mut self) {
        self.ends = true;
    }

    /// The shards have ended: nothing more is heard of what is open.
    pub(crate) fn give_up(&mut self) {
        // Nobody is left to hear of pushes to all.
        drop(self.turn());
        self.end();
        for (standing, waiters, users) in self.ledger.give_up() {
            for user in users {
                let stats = &self.stats[counted_at(user, self.out.shards())];
                stats.pushes_http_open.sub(1);
                stats.pushes_http_unknown.add(1);
            }
            tell(waiters, standing);
        }
    }

    /// Users of open pushes.
    #[cfg(test)]
    pub(super) fn open_users(&self) -> usize {
        self.ledger.users()
    }

    /// The caller of a request left before its answer.
    pub(super) fn caller_left(&self) {
        self.stats[0].push_callers_gone.add(1);
    }

    /// As many batches were under way as may be.
    pub(super) fn batch_refused(&self) {
        self.stats[0].limit_push_batches.add(1);
    }

    /// There was no room for the body of a request.
    pub(super) fn body_refused(&self) {
        self.stats[0].limit_push_bodies.add(1);
    }
}

/// The shard in whose numbers a push to a user, or a group, is counted.
fn counted_at(recipient: u64, shards: u32) -> usize {
    home_shard(recipient, shards) as usize
}

fn tell(waiters: Vec<Waiter>, standing: Standing) {
    for waiter in waiters {
        // It may have gone, or have waited long enough.
        let _ = waiter.send(standing);
    }
}

/// Gives a user of a push its result, once, and counts it.
fn settle(
    ledger: &mut Ledger<Waiter>,
    stats: &ShardStats,
    token: u32,
    id: u64,
    user: u64,
    outcome: Outcome,
) -> Settled<Waiter> {
    let settled = ledger.settle(token, id, user, outcome);
    if !matches!(settled, Settled::Late) {
        stats.pushes_http_open.sub(1);
        counter(stats, outcome).add(1);
    }
    settled
}

fn counter(stats: &ShardStats, outcome: Outcome) -> &Stat {
    // By the numbers of the outcomes; with a further outcome this does not compile, so that none goes uncounted.
    let counters: [&Stat; Outcome::ALL.len()] = [
        &stats.pushes_http_delivered,
        &stats.pushes_http_stored,
        &stats.pushes_http_offline,
        &stats.pushes_http_overloaded,
        &stats.pushes_http_denied,
        &stats.pushes_http_inbox_full,
        &stats.pushes_http_accepted,
        &stats.pushes_http_expired,
    ];
    counters[usize::from(outcome.as_u16())]
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    let mut sha256 = Sha256::new();
    parts.into_iter().for_each(|part| sha256.update(part));
    let mut first = [0; 16];
    first.copy_from_slice(&sha256.finalize()[..16]);
    first
}

/// An id, which is not 0.
fn id_of(digest: &[u8; 16]) -> u64 {
    let (first, _) = digest.split_first_chunk::<8>().expect("sixteen bytes");
    u64::from_be_bytes(*first).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::portal::{Fate, InnerEnd, Portals};
    use trunkline_core::head::{HEADED, MessageHead};

    struct World {
        desk: Desk,
        shards: Vec<InnerEnd>,
        stats: Vec<Arc<ShardStats>>,
    }

    fn world(limits: Limits) -> World {
        let portals = Portals::new(2);
        let stats: Vec<Arc<ShardStats>> = (0..2).map(|_| Arc::default()).collect();
        let desk = Desk::new(portals.outer(limits.portal_bytes_max), stats.clone(), &limits, 1);
        World { desk, shards: (0..2).map(|shard| portals.inner(shard)).collect(), stats }
    }

    fn limits() -> Limits {
        Limits { portal_bytes_max: 4_096, pushes_open_max: 100, ..Limits::default() }
    }

    impl World {
        /// The shards give every push that has come this outcome; gives whom they got, with id and flags.
        fn settle_all(&mut self, outcome: Outcome) -> Vec<(u64, u64, u8)> {
            drop(self.desk.turn());
            let mut seen = Vec::new();
            for shard in &mut self.shards {
                while let Some(mut batch) = shard.take() {
                    while let Some((user, push)) = batch.next_push() {
                        seen.push((user, push.id, push.extra));
                        let fate = Fate { token: push.token, id: push.id, user, outcome };
                        shard.tell(&fate);
                    }
                }
                shard.post();
            }
            drop(self.desk.turn());
            seen.sort_unstable();
            seen
        }

        fn sum(&self, number: fn(&ShardStats) -> &Stat) -> u64 {
            self.stats.iter().map(|stats| number(stats).get()).sum()
        }

        /// Every push that was begun has one result, or is open.
        fn assert_books(&self) {
            let mut results = self.sum(|stats| &stats.pushes_http_unknown);
            for outcome in Outcome::ALL {
                results += self.stats.iter().map(|stats| counter(stats, *outcome).get()).sum::<u64>();
            }
            let open = self.sum(|stats| &stats.pushes_http_open);
            assert_eq!(self.sum(|stats| &stats.pushes_http_in), results + open);
            assert_eq!(open, self.desk.open_users() as u64);
        }
    }

    fn push(users: &[u64]) -> Push {
        Push {
            to: Target::Users(users.to_vec()),
            service: 7,
            id: None,
            payload: vec![1; 100],
            ack: true,
            store: true,
            retry: false,
            ttl_secs: 0,
            until_s: 0,
            wait: None,
        }
    }

    fn open(at: Result<At, Refused>) -> u32 {
        match at {
            Ok(At::Open(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_waits_is_told_when_all_users_of_all_shards_have_a_result() {
        let mut world = world(limits());
        let users: Vec<u64> = (1..=10).collect();
        let token = open(world.desk.begin(push(&users), "", None, 0));
        let (waiter, mut told) = oneshot::channel();
        assert!(world.desk.wait(token, waiter));
        assert!(told.try_recv().is_err());
        assert_eq!(world.settle_all(Outcome::Stored).len(), 10);
        let standing = told.try_recv().expect("it is over");
        assert_eq!((standing.pending, standing.counts.of(Outcome::Stored)), (0, 10));
        assert_eq!(world.sum(|stats| &stats.pushes_http_stored), 10);
        assert!(world.stats.iter().all(|stats| stats.pushes_http_stored.get() > 0), "of both shards");
        world.assert_books();
    }

    #[test]
    fn a_push_that_is_sent_again_is_the_same_push() {
        let mut world = world(limits());
        let token = open(world.desk.begin(push(&[1]), "a", Some("key"), 0));
        assert_eq!(world.desk.begin(push(&[1]), "a", Some("key"), 1), Ok(At::Open(token)));
        assert_eq!(world.desk.begin(push(&[2]), "a", Some("key"), 1), Err(Refused::OtherPush));
        let seen = world.settle_all(Outcome::Delivered);
        assert_eq!((seen.len(), seen[0].2), (1, flags::RETRY), "its home looks whether another node had it");
        let Ok(At::Over(standing)) = world.desk.begin(push(&[1]), "a", Some("key"), 1) else { panic!("it is over") };
        assert_eq!((standing.counts.of(Outcome::Delivered), standing.id), (1, seen[0].1));
        // The key of another caller is another key; and at another node the same key gives the same id.
        open(world.desk.begin(push(&[1]), "b", Some("key"), 1));
        assert_ne!(world.settle_all(Outcome::Delivered)[0].1, seen[0].1);
        let mut elsewhere = self::world(limits());
        open(elsewhere.desk.begin(push(&[1]), "a", Some("key"), 9));
        assert_eq!(elsewhere.settle_all(Outcome::Delivered), seen);
        assert_eq!(world.sum(|stats| &stats.pushes_http_repeated), 2);
        world.assert_books();
    }

    #[test]
    fn what_finds_no_room_in_a_portal_is_overloaded_and_a_push_for_which_there_is_none_is_refused() {
        let mut world = world(Limits { portal_bytes_max: 300, ..limits() });
        let of_shard = |shard| (1..).filter(|user| home_shard(*user, 2) == shard).take(3).collect::<Vec<u64>>();
        let (here, there) = (of_shard(0), of_shard(1));
        for _ in 0..2 {
            open(world.desk.begin(push(&here[..1]), "", None, 0));
        }
        assert_eq!(world.desk.begin(push(&here[..1]), "", Some("key"), 0), Err(Refused::Portal));
        assert_eq!(world.sum(|stats| &stats.limit_portal), 1);
        let mut both = [here[1], there[0]];
        both.sort_unstable();
        let token = open(world.desk.begin(push(&both), "", None, 0));
        let standing = world.desk.standing(token).expect("it is open");
        assert_eq!((standing.counts.of(Outcome::Overloaded), standing.pending), (1, 1));
        world.assert_books();
        assert_eq!(world.settle_all(Outcome::Delivered).len(), 3);
        open(world.desk.begin(push(&here[..1]), "", Some("key"), 0));
        world.assert_books();
    }

    #[test]
    fn limits_hold() {
        let limits = Limits { pushes_open_max: 3, pushes_per_user_per_sec: 2, pushes_per_key_per_sec: 5, ..limits() };
        let mut world = world(limits);
        open(world.desk.begin(push(&[1, 2]), "", None, 0));
        assert_eq!(world.desk.begin(push(&[3, 4]), "", None, 0), Err(Refused::Open));
        open(world.desk.begin(push(&[1]), "", None, 0));
        world.settle_all(Outcome::Delivered);
        // User 1 has had its two of this second.
        let Ok(At::Over(standing)) = world.desk.begin(push(&[1]), "", None, 999) else { panic!("refused at once") };
        assert_eq!((standing.counts.of(Outcome::Overloaded), standing.pending), (1, 0));
        // With a key it is carried out when it comes again, for nobody had it.
        let again = |world: &mut World, now_ms| world.desk.begin(push(&[1]), "", Some("key"), now_ms);
        assert!(matches!(again(&mut world, 999), Ok(At::Over(_))));
        open(again(&mut world, 1_000));
        assert_eq!(world.sum(|stats| &stats.pushes_http_repeated), 0);
        let caller = CallerKey { id: "a".to_owned(), scopes: None, limits: Default::default() };
        assert!(world.desk.take_for_key(&caller, 100, 0) && !world.desk.take_for_key(&caller, 1, 0));
        assert_eq!(world.sum(|stats| &stats.limit_pushes_open), 1);
        assert_eq!(world.sum(|stats| &stats.limit_pushes_user), 2);
        assert_eq!(world.sum(|stats| &stats.limit_pushes_key), 1);
        world.assert_books();
    }

    #[test]
    fn at_the_end_all_that_is_open_is_told_and_nothing_new_begins() {
        let mut world = world(limits());
        let token = open(world.desk.begin(push(&[1, 2]), "", Some("key"), 0));
        let (waiter, mut told) = oneshot::channel();
        assert!(world.desk.wait(token, waiter));
        world.desk.end();
        assert_eq!(world.desk.begin(push(&[1]), "", None, 0), Err(Refused::Ending));
        assert_eq!(
            world.desk.begin(push(&[1, 2]), "", Some("key"), 0),
            Ok(At::Open(token)),
            "it may still be asked for"
        );
        world.desk.give_up();
        assert_eq!(told.try_recv().map(|standing| standing.pending), Ok(2));
        assert_eq!(world.sum(|stats| &stats.pushes_http_unknown), 2);
        world.assert_books();
    }

    #[test]
    fn a_push_to_a_device_or_with_an_end_has_a_head_and_one_to_a_group_none() {
        let mut world = world(limits());
        let begin = |world: &mut World, push: Push| open(world.desk.begin(push, "", None, 0));
        let device = Target::Device { user: 1, device: "phone".into() };
        begin(&mut world, Push { to: device, store: false, ..push(&[]) });
        begin(&mut world, Push { until_s: 77, ..push(&[2]) });
        begin(&mut world, Push { to: Target::Group(3), ..push(&[]) });
        drop(world.desk.turn());
        let mut seen = Vec::new();
        for shard in &mut world.shards {
            while let Some(mut batch) = shard.take() {
                while let Some((to, push)) = batch.next_push() {
                    let head = (push.extra & HEADED != 0).then(|| MessageHead::split(push.payload).expect("a head"));
                    let (head, payload) = head.unwrap_or((MessageHead::default(), push.payload));
                    assert_eq!(payload, [1; 100]);
                    seen.push((to, push.to_groups, head.until_s, head.device.map(str::to_owned)));
                }
            }
        }
        seen.sort();
        let expected = [(1, false, 0, Some("phone".to_owned())), (2, false, 77, None), (3, true, 0, None)];
        assert_eq!(seen, expected);
        world.assert_books();
    }

    #[test]
    fn a_push_to_a_group_goes_to_the_home_of_the_group_and_has_one_result() {
        let mut world = world(limits());
        for group in 1..=8 {
            let token = open(world.desk.begin(Push { to: Target::Group(group), ..push(&[]) }, "", None, 0));
            drop(world.desk.turn());
            let home = usize::from(group_home(group, 2));
            assert!(world.shards[home].has_pushes() && !world.shards[1 - home].has_pushes());
            assert_eq!(world.settle_all(Outcome::Stored).len(), 1);
            assert_eq!(world.desk.standing(token), None);
        }
        assert_eq!(world.sum(|stats| &stats.pushes_http_stored), 8);
        assert_eq!(world.sum(|stats| &stats.limit_pushes_user), 0, "a group has rates of its own");
        world.assert_books();
    }
}
