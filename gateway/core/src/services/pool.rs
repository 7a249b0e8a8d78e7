//! The instances of one service at one shard, and which of them takes the next call.

use super::aside::{ASIDE_MAX, Aside};
use super::dials::{Placing, Rules};
use super::{CallKey, Changed, Fifo, InstanceChange, PickKey, RetryBudget, ServiceSpec};
use rand::Rng;
use std::collections::VecDeque;
use trunkline_router_core::balance::{Health, Key, ServerId};
use trunkline_router_core::{Balancer, Policy, Server, ServerOptions};

/// A worker with one link or several to this shard.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) name: Box<str>,
    pub(crate) id: Option<ServerId>,
    /// As it says itself.
    weight: u32,
    /// As an operator says, instead.
    set_weight: Option<u32>,
    pub(crate) backup: bool,
    rules: Rules,
    /// An operator has said that it gets no more calls.
    pub(crate) drained: bool,
    /// The gateway dials it, and keeps what an operator has said of it by its address.
    is_dialed: bool,
    /// Slots of its links.
    pub(crate) links: Vec<u32>,
    /// The sum of their windows; 0 while it drains.
    window: u32,
}

impl Instance {
    /// The weight by which it is picked.
    pub(crate) fn weight(&self) -> u32 {
        self.set_weight.unwrap_or(self.weight)
    }

    /// Whether it takes calls.
    fn takes(&self) -> bool {
        self.window > 0 && !self.drained
    }

    /// What an operator has said of it.
    fn change(&self) -> InstanceChange {
        InstanceChange { drained: Some(true).filter(|_| self.drained), weight: self.set_weight }
    }
}

/// What became of the search for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// This one, by its place among the instances.
    At(usize),
    /// All that could take it have as much as they take at once.
    Full,
    /// There is none: all drain, or have failed, or are gone.
    Nobody,
}

/// One service.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) spec: ServiceSpec,
    balancer: Balancer,
    /// In the order of the balancer's servers.
    pub(crate) instances: Vec<Instance>,
    /// What an operator has said of workers without a link here.
    pub(crate) aside: Aside,
    /// Its calls, by the end of their time.
    pub(crate) fifo: Fifo,
    /// Calls that wait for room, and some that have ended meanwhile.
    queue: VecDeque<CallKey>,
    /// How many of them wait.
    pub(crate) waiting: usize,
    retries: RetryBudget,
    /// Instances that other shards have been told of.
    told: u16,
    /// Which of the instances have room, in the pick under way.
    rooms: Vec<bool>,
}

impl Pool {
    pub(crate) fn new(spec: ServiceSpec) -> Self {
        let balancer = Balancer::new(spec.policy, Vec::new()).expect("no server breaks no rule");
        Pool {
            spec,
            balancer,
            instances: Vec::new(),
            aside: Aside::default(),
            fifo: Fifo::default(),
            queue: VecDeque::new(),
            waiting: 0,
            retries: RetryBudget::default(),
            told: 0,
            rooms: Vec::new(),
        }
    }

    /// Whether calls may be given to workers of this shard, as the other shards know it.
    #[inline]
    pub(crate) fn is_told(&self) -> bool {
        self.told > 0
    }

    /// How many instances take calls, if other shards have been told of another number: they are to be told now.
    pub(crate) fn take_news(&mut self) -> Option<u16> {
        let instances = self.serving();
        (std::mem::replace(&mut self.told, instances) != instances).then_some(instances)
    }

    /// A call has come, of which a part may be tried again.
    pub(crate) fn note_call(&mut self) {
        self.retries.note_call();
    }

    /// Whether a call may be tried again: not more than a part of all.
    pub(crate) fn may_retry(&mut self, now_ms: u64) -> bool {
        self.retries.take(now_ms)
    }

    /// Whether one more call may wait for room.
    pub(crate) fn has_queue_room(&self) -> bool {
        self.waiting < self.spec.queue as usize
    }

    /// The first call of the queue, which may have ended meanwhile.
    pub(crate) fn first_queued(&self) -> Option<CallKey> {
        self.queue.front().copied()
    }

    /// A call waits: behind all others, or at this place among them.
    pub(crate) fn enqueue(&mut self, key: CallKey, place: Option<usize>) {
        let place = place.unwrap_or(usize::MAX).min(self.queue.len());
        self.queue.insert(place, key);
        self.waiting += 1;
    }

    /// The first call of the queue waits no more.
    pub(crate) fn dequeue(&mut self) {
        debug_assert!(self.waiting > 0, "a call that waits is counted");
        self.queue.pop_front();
        self.waiting -= 1;
    }

    /// The first call of the queue has ended before, and is counted no more.
    pub(crate) fn skip_ended(&mut self) {
        self.queue.pop_front();
    }

    /// Instances that take calls.
    pub(crate) fn serving(&self) -> u16 {
        self.instances.iter().filter(|instance| instance.takes()).count().try_into().unwrap_or(u16::MAX)
    }

    /// What the instances that take calls weigh together; backup ones only where there are no others.
    pub(crate) fn weight(&self) -> u32 {
        let of = |backup: bool| {
            let instances = self.instances.iter().filter(|instance| instance.takes() && instance.backup == backup);
            instances.map(|instance| u64::from(instance.weight())).sum::<u64>().min(u64::from(u32::MAX - 1)) as u32
        };
        if of(false) > 0 { of(false) } else { of(true) }
    }

    /// A link of an instance: the first, or one more. What the newest says of weight and backup holds for all. False if
    /// the balancer takes no more.
    pub(crate) fn add_link(&mut self, name: &str, slot: u32, weight: u32, backup: bool, now_ms: u64) -> bool {
        let ServiceSpec { max_fails, fail_timeout_ms, slow_start_ms, .. } = self.spec;
        let rules = Rules { max_fails, fail_timeout_ms, slow_start_ms };
        self.add(name, slot, (weight, backup, rules), now_ms)
    }

    /// The link to a server that was dialed, of which everything was said beforehand. False as of
    /// [`Pool::add_link`].
    pub(crate) fn add_server(&mut self, slot: u32, placing: &Placing, now_ms: u64) -> bool {
        let Placing { name, weight, backup, rules, is_back, set, .. } = placing;
        // As in nginx, the weight of one that is there for the first time does not climb.
        let first = if *is_back { *rules } else { Rules { slow_start_ms: 0, ..*rules } };
        let taken = self.add(name, slot, (*weight, *backup, first), now_ms);
        if taken && let Some(instance) = self.instances.iter_mut().find(|instance| *instance.name == **name) {
            (instance.rules, instance.is_dialed) = (*rules, true);
            self.update(now_ms);
            if *set != InstanceChange::default() {
                // A weight that the others leave no room for by now is left out.
                self.change(name, *set, true, now_ms);
            }
        }
        taken
    }

    fn add(&mut self, name: &str, slot: u32, (weight, backup, rules): (u32, bool, Rules), now_ms: u64) -> bool {
        match self.instances.iter_mut().find(|instance| *instance.name == *name) {
            Some(instance) => {
                (instance.weight, instance.backup, instance.rules) = (weight, backup, rules);
                instance.links.push(slot);
            }
            None => {
                let InstanceChange { drained, weight: set_weight } = self.aside.take(name, now_ms);
                self.instances.push(Instance {
                    name: name.into(),
                    id: None,
                    weight,
                    set_weight,
                    backup,
                    rules,
                    drained: drained == Some(true),
                    is_dialed: false,
                    links: vec![slot],
                    window: 1,
                });
            }
        }
        let mut taken = self.update(now_ms);
        let is_new = |instance: &&mut Instance| *instance.name == *name && instance.links.len() == 1;
        if !taken && let Some(instance) = self.instances.iter_mut().find(is_new) {
            // A weight that the others leave no room for by now is left out.
            instance.set_weight = None;
            taken = self.update(now_ms);
        }
        if !taken {
            self.remove_link(name, slot, now_ms);
        }
        taken
    }

    /// A link has ended. What the instance has failed at is forgotten with its last link, and not what an operator has
    /// said of it.
    pub(crate) fn remove_link(&mut self, name: &str, slot: u32, now_ms: u64) {
        if let Some(instance) = self.instances.iter_mut().find(|instance| *instance.name == *name) {
            instance.links.retain(|link| *link != slot);
            if instance.links.is_empty() && !instance.is_dialed {
                self.aside.note(name, instance.change(), now_ms);
            }
        }
        self.instances.retain(|instance| !instance.links.is_empty());
        self.update(now_ms);
    }

    /// The windows of an instance's links add up to this now.
    pub(crate) fn set_window(&mut self, name: &str, window: u32, now_ms: u64) {
        let Some(instance) = self.instances.iter_mut().find(|instance| *instance.name == *name) else { return };
        let drained = (instance.window == 0) != (window == 0);
        instance.window = window;
        if drained {
            self.update(now_ms);
        }
    }

    /// What an operator says of an instance, or of one without a link here: of that if something was said of it before,
    /// or if another shard knows it, `is_known`.
    pub(crate) fn change(&mut self, name: &str, change: InstanceChange, is_known: bool, now_ms: u64) -> Changed {
        let at = self.instances.iter().position(|instance| *instance.name == *name);
        let is_set = |instance: &Instance| !instance.is_dialed && instance.change() != InstanceChange::default();
        let has_one = self.aside.has(name, now_ms) || at.is_some_and(|at| is_set(&self.instances[at]));
        let is_dialed = at.is_some_and(|at| self.instances[at].is_dialed);
        if at.is_none() && !has_one && !is_known {
            return Changed::Unknown;
        }
        let says_more = change.drained == Some(true) || change.weight.is_some();
        let kept = self.aside.len(now_ms) + self.instances.iter().filter(|instance| is_set(instance)).count();
        if says_more && !has_one && !is_dialed && kept >= ASIDE_MAX {
            return Changed::Full;
        }
        let Some(at) = at else {
            self.aside.note(name, change, now_ms);
            return Changed::Yes;
        };
        let instance = &mut self.instances[at];
        let before = instance.set_weight;
        instance.drained = change.drained.unwrap_or(instance.drained);
        instance.set_weight = change.weight.or(instance.set_weight);
        let taken = self.update(now_ms);
        if !taken {
            // The weights would add up to more than a ring holds. Whatever becomes of them, a drain holds.
            self.instances[at].set_weight = before;
            self.update(now_ms);
        }
        if taken || change.drained.is_some() { Changed::Yes } else { Changed::Unknown }
    }

    /// Calls that an instance has.
    pub(crate) fn calls_of(&self, instance: &Instance, now_ms: u64) -> u32 {
        instance.id.and_then(|id| self.balancer.server(id, now_ms)).map_or(0, |state| state.conns)
    }

    /// Whether an instance is left alone because it has failed.
    pub(crate) fn has_failed(&self, instance: &Instance, now_ms: u64) -> bool {
        let health = instance.id.and_then(|id| self.balancer.server(id, now_ms)).map(|state| state.health);
        health.is_some_and(|health| health != Health::Up)
    }

    fn update(&mut self, now_ms: u64) -> bool {
        let server = |instance: &Instance| {
            let Rules { max_fails, fail_timeout_ms, slow_start_ms } = instance.rules;
            let options = ServerOptions {
                weight: instance.weight(),
                // Windows are kept link by link, see `pick`.
                max_conns: 0,
                max_fails,
                fail_timeout_ms,
                slow_start_ms,
                backup: instance.backup,
                down: false,
                drain: !instance.takes(),
            };
            Server::new(&instance.name, options)
        };
        let Ok(servers) = self.instances.iter().map(server).collect() else { return false };
        let taken = self.balancer.update(now_ms, servers).is_ok();
        if taken {
            for instance in &mut self.instances {
                instance.id = self.balancer.id_of(&instance.name);
            }
        }
        taken
    }

    /// The instance for a call with this key, among those that `has_room` says, but not the one at `except`.
    pub(crate) fn pick(
        &mut self,
        now_ms: u64,
        key: PickKey,
        rng: &mut impl Rng,
        except: Option<ServerId>,
        mut has_room: impl FnMut(&Instance) -> bool,
    ) -> Room {
        // The balancer's own pass over them is as long.
        self.rooms.clear();
        let instances = self.instances.iter();
        self.rooms.extend(instances.map(|instance| (except.is_none() || instance.id != except) && has_room(instance)));
        let rooms = &self.rooms;
        // As nginx hashes `$remote_addr`.
        let text = match key {
            PickKey::Address(address) if self.spec.policy == Policy::ConsistentHash => address.to_string(),
            _ => String::new(),
        };
        let key = if text.is_empty() { Key::User(key.number()) } else { Key::Bytes(text.as_bytes()) };
        let picked = self.balancer.pick_among(now_ms, Some(key), rng, |at| rooms.get(at) == Some(&true));
        if let Ok(id) = picked
            && let Some(at) = self.instances.iter().position(|instance| instance.id == Some(id))
        {
            self.balancer.connected(id);
            return Room::At(at);
        }
        let could = |instance: &Instance| {
            let is_up = |health| match health {
                Health::Up => true,
                Health::Failed { until_ms } | Health::Probing { until_ms } => until_ms <= now_ms,
            };
            let health = instance.id.and_then(|id| self.balancer.server(id, now_ms)).map(|state| state.health);
            instance.takes() && (except.is_none() || instance.id != except) && health.is_some_and(is_up)
        };
        if self.instances.iter().any(could) { Room::Full } else { Room::Nobody }
    }

    /// A call has left an instance, whatever came of it.
    pub(crate) fn released(&mut self, server: ServerId) {
        self.balancer.released(server);
    }

    /// An instance has answered, after so long.
    pub(crate) fn answered(&mut self, server: ServerId, us: u64, now_ms: u64) {
        self.balancer.succeeded(server, now_ms);
        if self.spec.policy == Policy::LeastTime {
            self.balancer.took(server, us, now_ms);
        }
    }

    /// An instance has not answered in time, or has refused.
    pub(crate) fn failed(&mut self, server: ServerId, now_ms: u64) {
        self.balancer.failed(server, now_ms);
        if self.spec.policy == Policy::LeastTime {
            self.balancer.took(server, self.spec.call_timeout_ms * 1_000, now_ms);
        }
    }

    /// Forgets the calls of the queue that have ended, when they are more than those that wait.
    pub(crate) fn sweep_queue(&mut self, mut waits: impl FnMut(CallKey) -> bool) {
        if self.queue.len() > 2 * self.waiting + 64 {
            self.queue.retain(|key| waits(*key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn pool(policy: Policy, weights: &[(&str, u32)]) -> (Pool, SmallRng) {
        let mut pool = Pool::new(ServiceSpec { policy, ..ServiceSpec::of(7) });
        for (slot, (name, weight)) in (0..).zip(weights) {
            assert!(pool.add_link(name, slot, *weight, false, 0));
        }
        (pool, SmallRng::seed_from_u64(1))
    }

    fn next(pool: &mut Pool, rng: &mut SmallRng, user: u64) -> String {
        match pool.pick(0, user.into(), rng, None, |_| true) {
            Room::At(at) => {
                let id = pool.instances[at].id.unwrap();
                pool.released(id);
                pool.instances[at].name.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    /// nginx's own example for weights 5, 1, 1, from the commit that brought smooth weighted round robin.
    #[test]
    fn calls_go_round_as_nginx_goes_round() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 5), ("b", 1), ("c", 1)]);
        let picks: String = (0..14).map(|_| next(&mut pool, &mut rng, 1)).collect();
        assert_eq!(picks, "aabacaaaabacaa");
    }

    #[test]
    fn weights_of_one_to_four_get_one_to_four_hundred_of_a_thousand_calls() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
        let picks: Vec<String> = (0..1_000).map(|_| next(&mut pool, &mut rng, 1)).collect();
        let count = |name: &str| picks.iter().filter(|picked| *picked == name).count();
        assert_eq!(["a", "b", "c", "d"].map(count), [100, 200, 300, 400]);
    }

    #[test]
    fn a_users_calls_stay_with_one_instance_by_hash() {
        let (mut pool, mut rng) = pool(Policy::ConsistentHash, &[("a", 1), ("b", 1), ("c", 1)]);
        let owners: Vec<String> = (1..200).map(|user| next(&mut pool, &mut rng, user)).collect();
        assert!((1..200).zip(&owners).all(|(user, owner)| next(&mut pool, &mut rng, user) == **owner));
        pool.remove_link("b", 1, 0);
        for (user, owner) in (1..200).zip(&owners).filter(|(_, owner)| **owner != "b") {
            assert_eq!(next(&mut pool, &mut rng, user), **owner, "only the calls of the one that left move");
        }
    }

    #[test]
    fn calls_from_one_address_stay_with_one_instance_whoever_calls() {
        let (mut pool, mut rng) = pool(Policy::ConsistentHash, &[("a", 1), ("b", 1), ("c", 1)]);
        let mut owner = |last: u8| {
            let key = PickKey::Address([10, 0, 0, last].into());
            let Room::At(at) = pool.pick(0, key, &mut rng, None, |_| true) else { panic!("there is room") };
            let id = pool.instances[at].id.unwrap();
            pool.released(id);
            at
        };
        let owners: Vec<usize> = (0..200).map(&mut owner).collect();
        assert_eq!((0..200).map(&mut owner).collect::<Vec<_>>(), owners);
        assert!((0..3).all(|at| owners.contains(&at)), "{owners:?}");
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert_ne!(PickKey::Address(v4).number(), PickKey::Address(v6).number());
    }

    #[test]
    fn who_has_no_room_is_waited_for_and_who_drains_is_not() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 1), ("b", 1)]);
        assert_eq!(pool.pick(0, 1.into(), &mut rng, None, |_| false), Room::Full);
        assert_eq!(pool.serving(), 2);
        pool.set_window("a", 0, 0);
        let b = pool.instances[1].id;
        assert_eq!(
            pool.pick(0, 1.into(), &mut rng, b, |_| true),
            Room::Nobody,
            "but for b there is only one that drains"
        );
        pool.set_window("b", 0, 0);
        assert_eq!(pool.pick(0, 1.into(), &mut rng, None, |_| true), Room::Nobody);
        assert_eq!(pool.serving(), 0);
        pool.set_window("a", 8, 0);
        assert_eq!(pool.pick(0, 1.into(), &mut rng, None, |_| true), Room::At(0));
    }

    #[test]
    fn an_operator_drains_an_instance_and_gives_it_another_weight() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 1), ("b", 1)]);
        let drain = |drained| InstanceChange { drained: Some(drained), weight: None };
        assert_eq!(pool.change("a", drain(true), false, 0), Changed::Yes);
        assert_eq!(pool.change("c", drain(true), false, 0), Changed::Unknown);
        assert_eq!((pool.serving(), pool.weight()), (1, 1));
        assert!((0..9).all(|_| next(&mut pool, &mut rng, 1) == "b"));
        // Whatever it says itself.
        assert!(pool.add_link("a", 9, 1, false, 0));
        pool.set_window("a", 8, 0);
        assert!((0..9).all(|_| next(&mut pool, &mut rng, 1) == "b"));
        let active = InstanceChange { drained: Some(false), weight: Some(3) };
        assert_eq!(pool.change("a", active, false, 0), Changed::Yes);
        assert_eq!((pool.serving(), pool.weight()), (2, 4));
        let picks: Vec<String> = (0..400).map(|_| next(&mut pool, &mut rng, 1)).collect();
        assert_eq!(picks.iter().filter(|picked| *picked == "a").count(), 300);
        let too_much = InstanceChange { drained: None, weight: Some(u32::MAX) };
        assert_eq!(pool.change("a", too_much, false, 0), Changed::Unknown);
        assert_eq!(pool.weight(), 4, "all is as it was");
    }

    #[test]
    fn what_was_said_of_a_worker_holds_when_it_comes_back() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 1), ("b", 1)]);
        let drain = InstanceChange { drained: Some(true), weight: Some(3) };
        assert_eq!(pool.change("a", drain, false, 0), Changed::Yes);
        pool.remove_link("a", 0, 1_000);
        assert!(pool.instances.len() == 1 && pool.aside.has("a", 1_000));
        assert!(pool.add_link("a", 9, 1, false, 2_000));
        pool.set_window("a", 8, 2_000);
        assert_eq!(pool.serving(), 1);
        assert!((0..9).all(|_| next(&mut pool, &mut rng, 1) == "b"));
        // It is undone while the worker is away, and its weight holds.
        pool.remove_link("a", 9, 3_000);
        let active = InstanceChange { drained: Some(false), weight: None };
        assert_eq!(pool.change("a", active, false, 3_000), Changed::Yes);
        assert!(pool.add_link("a", 9, 1, false, 4_000));
        pool.set_window("a", 8, 4_000);
        assert_eq!((pool.serving(), pool.weight()), (2, 4));
        // One that another shard knows is drained here from its first link on; of one that nobody knows nothing is
        // kept.
        assert_eq!(pool.change("c", drain, true, 5_000), Changed::Yes);
        assert_eq!(pool.change("d", drain, false, 5_000), Changed::Unknown);
        assert!(pool.add_link("c", 10, 1, false, 6_000) && pool.add_link("d", 11, 1, false, 6_000));
        assert_eq!(pool.serving(), 3);
        // It is forgotten in time.
        pool.remove_link("c", 10, 7_000);
        assert!(pool.add_link("c", 10, 1, false, 7_000 + super::super::aside::ASIDE_MS));
        assert_eq!(pool.serving(), 4);
    }

    #[test]
    fn something_is_kept_of_so_many_workers_and_an_operator_is_refused_a_further_one() {
        let (mut pool, _) = pool(Policy::RoundRobin, &[("a", 1), ("b", 1)]);
        let drain = |drained| InstanceChange { drained: Some(drained), weight: None };
        assert_eq!(pool.change("a", drain(true), false, 0), Changed::Yes);
        let more = (1..ASIDE_MAX).map(|at| pool.change(&format!("w{at}"), drain(true), true, 0));
        assert!(more.collect::<Vec<_>>().iter().all(|changed| *changed == Changed::Yes));
        assert_eq!(pool.change("b", drain(true), false, 0), Changed::Full);
        assert_eq!(pool.change("a", drain(true), false, 0), Changed::Yes, "it is one of them");
        assert_eq!(pool.change("w1", drain(false), false, 0), Changed::Yes);
        assert_eq!(pool.change("b", drain(true), false, 0), Changed::Yes);
    }

    #[test]
    fn what_was_said_of_a_server_that_is_dialed_holds_for_its_next_link() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("b", 1)]);
        let placing = |drained, weight| Placing {
            name: "a".into(),
            service: 7,
            weight: 1,
            backup: false,
            rules: Rules { max_fails: 3, fail_timeout_ms: 10_000, slow_start_ms: 0 },
            cap: 8,
            is_back: true,
            set: InstanceChange { drained, weight },
        };
        assert!(pool.add_server(1, &placing(Some(true), None), 0));
        pool.set_window("a", 8, 0);
        assert_eq!(pool.serving(), 1);
        assert!((0..9).all(|_| next(&mut pool, &mut rng, 1) == "b"));
        for (set, weight) in [(Some(3), 4), (Some(u32::MAX), 2), (None, 2)] {
            pool.remove_link("a", 1, 0);
            assert!(pool.add_server(1, &placing(Some(false), set), 0), "{set:?}");
            assert_eq!((pool.serving(), pool.weight()), (2, weight), "{set:?}");
        }
    }

    #[test]
    fn an_instance_that_fails_three_times_is_left_alone_for_ten_seconds() {
        let (mut pool, mut rng) = pool(Policy::RoundRobin, &[("a", 1), ("b", 1)]);
        let a = pool.instances[0].id.unwrap();
        (0..3).for_each(|_| pool.failed(a, 1_000));
        let picks = |pool: &mut Pool, rng: &mut SmallRng, now_ms| -> Vec<Room> {
            (0..6).map(|_| pool.pick(now_ms, 1.into(), rng, None, |_| true)).collect()
        };
        assert_eq!(picks(&mut pool, &mut rng, 10_999), [Room::At(1); 6]);
        let probed = picks(&mut pool, &mut rng, 11_000);
        assert_eq!(probed.iter().filter(|room| **room == Room::At(0)).count(), 1, "one call tries it: {probed:?}");
        pool.answered(a, 10, 11_001);
        assert!(picks(&mut pool, &mut rng, 11_001).contains(&Room::At(0)));
    }
}
