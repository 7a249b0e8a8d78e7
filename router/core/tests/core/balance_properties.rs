//! Random histories of all policies against a model of who is available that is plain to see.

use crate::balance_support::{Group, server};
use proptest::prelude::*;
use trunkline_router_core::balance::{Health, Unavailable};
use trunkline_router_core::{Policy, ServerOptions};

/// A server as the documentation tells it. All failures are kept.
#[derive(Debug, Clone)]
struct Model {
    name: String,
    options: ServerOptions,
    conns: u32,
    failures: Vec<u64>,
    until_ms: Option<u64>,
    is_probed: bool,
}

impl Model {
    fn new((name, options): (String, ServerOptions)) -> Self {
        Model { name, options, conns: 0, failures: Vec::new(), until_ms: None, is_probed: false }
    }

    fn suspended(&self, now_ms: u64) -> bool {
        self.until_ms.is_some_and(|until_ms| now_ms < until_ms)
    }

    fn full(&self) -> bool {
        self.options.max_conns > 0 && self.conns >= self.options.max_conns
    }

    fn open_if_bound(&self, now_ms: u64) -> bool {
        !self.options.down && !self.suspended(now_ms) && !self.full()
    }

    fn open(&self, now_ms: u64) -> bool {
        self.open_if_bound(now_ms) && !self.options.drain
    }

    fn fails(&self, now_ms: u64) -> usize {
        self.failures.iter().filter(|at_ms| now_ms - **at_ms < self.options.fail_timeout_ms).count()
    }

    fn failed(&mut self, now_ms: u64) {
        if self.options.max_fails == 0 {
            return;
        }
        self.failures.push(now_ms);
        if self.until_ms.is_some() || self.fails(now_ms) >= self.options.max_fails as usize {
            self.until_ms = Some(now_ms + self.options.fail_timeout_ms);
            self.is_probed = false;
        }
    }

    fn succeeded(&mut self) {
        if self.is_probed {
            (self.failures, self.until_ms, self.is_probed) = (Vec::new(), None, false);
        }
    }

    fn picked(&mut self, now_ms: u64) {
        if self.until_ms.is_some() {
            self.until_ms = Some(now_ms + self.options.fail_timeout_ms);
            self.is_probed = true;
        }
    }

    fn health(&self) -> Health {
        match self.until_ms {
            None => Health::Up,
            Some(until_ms) if self.is_probed => Health::Probing { until_ms },
            Some(until_ms) => Health::Failed { until_ms },
        }
    }
}

/// Why none is open, told one reason after the other.
fn reason(models: &[Model], now_ms: u64) -> Unavailable {
    let left: Vec<&Model> = models.iter().filter(|model| !model.options.down).collect();
    if models.is_empty() {
        return Unavailable::NoServers;
    }
    if left.is_empty() {
        return Unavailable::AllDown;
    }
    let left: Vec<&Model> = left.into_iter().filter(|model| !model.options.drain).collect();
    if left.is_empty() {
        return Unavailable::AllDraining;
    }
    if left.iter().any(|model| !model.suspended(now_ms)) {
        return Unavailable::AllFull;
    }
    let until_ms = left.iter().filter_map(|model| model.until_ms).min().expect("all are suspended");
    Unavailable::AllFailed { until_ms }
}

#[derive(Debug, Clone)]
enum Step {
    Pick { key: Option<u64> },
    PickBound(usize),
    Connected(usize),
    Released(usize),
    Succeeded(usize),
    Failed(usize),
    Wait(u64),
    Update(Vec<(String, ServerOptions)>),
}

fn options() -> impl Strategy<Value = ServerOptions> {
    let flag = || prop::bool::weighted(0.2);
    (1..6_u32, 0..4_u32, 0..4_u32, 1..60_u64, 0..60_u64, flag(), flag(), flag()).prop_map(
        |(weight, max_conns, max_fails, fail_timeout_ms, slow_start_ms, backup, down, drain)| ServerOptions {
            weight,
            max_conns,
            max_fails,
            fail_timeout_ms,
            slow_start_ms,
            backup,
            down,
            drain,
        },
    )
}

/// Never one server alone, for which other rules hold.
fn set() -> impl Strategy<Value = Vec<(String, ServerOptions)>> {
    prop::collection::hash_map("[a-h]", options(), 2..7).prop_map(|set| set.into_iter().collect())
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..8_usize;
    prop_oneof![
        10 => prop::option::of(any::<u64>()).prop_map(|key| Step::Pick { key }),
        3 => index().prop_map(Step::PickBound),
        4 => index().prop_map(Step::Connected),
        3 => index().prop_map(Step::Released),
        3 => index().prop_map(Step::Succeeded),
        4 => index().prop_map(Step::Failed),
        4 => (1..40_u64).prop_map(Step::Wait),
        1 => set().prop_map(Step::Update),
    ]
}

fn servers(set: &[(String, ServerOptions)]) -> Vec<trunkline_router_core::Server> {
    set.iter().map(|(name, options)| server(name, options.clone())).collect()
}

fn updated(models: &[Model], now_ms: u64, set: Vec<(String, ServerOptions)>) -> Vec<Model> {
    let next = |(name, options): (String, ServerOptions)| {
        let Some(model) = models.iter().find(|model| model.name == name) else { return Model::new((name, options)) };
        let old = &model.options;
        let mut model = Model { options, ..model.clone() };
        model.failures.retain(|at_ms| now_ms - at_ms < old.fail_timeout_ms);
        if model.options.max_fails == 0 {
            (model.failures, model.until_ms, model.is_probed) = (Vec::new(), None, false);
        }
        // Of more failures than count the newest are known.
        let surplus = model.failures.len().saturating_sub(model.options.max_fails.min(old.max_fails) as usize);
        model.failures.drain(..surplus);
        model
    };
    set.into_iter().map(next).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never one that is down, full, suspended or draining; no backup while another can serve; always one if there
    /// is one; and else the right reason.
    #[test]
    fn only_available_servers_are_picked_and_one_is_whenever_there_is_one(
        policy in prop::sample::select(&Policy::ALL[..]),
        set in set(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut group = Group::new(policy, servers(&set));
        let mut models: Vec<Model> = set.into_iter().map(Model::new).collect();
        let mut now_ms = 0;
        for step in steps {
            let at = |index: usize| index % models.len();
            match step {
                Step::Pick { key } => {
                    let picked = match key {
                        Some(key) => group.pick_key(now_ms, key),
                        None => group.pick(now_ms),
                    };
                    prop_assert_eq!(check_pick(&mut models, now_ms, picked), Ok(()));
                }
                Step::PickBound(index) => {
                    let bound = at(index);
                    let picked = group.pick_bound(&models[bound].name, now_ms);
                    if models[bound].open_if_bound(now_ms) {
                        prop_assert_eq!(picked, Ok(models[bound].name.clone()));
                        models[bound].picked(now_ms);
                    } else {
                        prop_assert_eq!(check_pick(&mut models, now_ms, picked), Ok(()));
                    }
                }
                Step::Connected(index) => {
                    let index = at(index);
                    group.balancer.connected(group.id(&models[index].name));
                    models[index].conns += 1;
                }
                Step::Released(index) => {
                    let index = at(index);
                    group.balancer.released(group.id(&models[index].name));
                    models[index].conns = models[index].conns.saturating_sub(1);
                }
                Step::Succeeded(index) => {
                    let index = at(index);
                    group.succeeded(&models[index].name, now_ms);
                    models[index].succeeded();
                }
                Step::Failed(index) => {
                    let index = at(index);
                    group.failed(&models[index].name, now_ms);
                    models[index].failed(now_ms);
                }
                Step::Wait(ms) => now_ms += ms,
                Step::Update(set) => {
                    group.update(now_ms, servers(&set));
                    models = updated(&models, now_ms, set);
                }
            }
            for (state, model) in group.balancer.servers(now_ms).zip(&models) {
                let fails = model.fails(now_ms).min(model.options.max_fails as usize);
                prop_assert_eq!(state.server.name(), &model.name);
                let found = (state.conns, state.health, state.fails as usize);
                prop_assert_eq!(found, (model.conns, model.health(), fails));
                prop_assert!((0.0..=f64::from(model.options.weight)).contains(&state.effective_weight));
            }
        }
    }
}

fn check_pick(models: &mut [Model], now_ms: u64, picked: Result<String, Unavailable>) -> Result<(), String> {
    let has_primary = models.iter().any(|model| model.open(now_ms) && !model.options.backup);
    let has_any = models.iter().any(|model| model.open(now_ms));
    match picked {
        Ok(name) => {
            let model = models.iter_mut().find(|model| model.name == name).ok_or("a server that is not there")?;
            if !model.open(now_ms) || (model.options.backup && has_primary) {
                return Err(format!("{name} must not be picked"));
            }
            model.picked(now_ms);
            Ok(())
        }
        Err(_) if has_any => Err("nobody was picked though there is one".into()),
        Err(why) if why == reason(models, now_ms) => Ok(()),
        Err(why) => Err(format!("{why:?} instead of {:?}", reason(models, now_ms))),
    }
}
