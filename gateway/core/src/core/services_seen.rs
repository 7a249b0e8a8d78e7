//! What an operator asks of services, and says of workers.

use super::shard::Shard;
use crate::services::{
    Changed, InstanceChange, InstanceSeen, Pool, ServiceSeen, ServiceSpec, Services, is_node_name_char,
};
use std::collections::BTreeMap;

impl Shard {
    /// The services that this shard knows, by number; `None` where there are none.
    pub(super) fn services_seen(&self) -> Option<Vec<ServiceSeen>> {
        let services = self.services.as_ref()?;
        let mut seen: BTreeMap<u16, ServiceSeen> = BTreeMap::new();
        for pool in services.pools.values() {
            let spec = &pool.spec;
            let of_pool = ServiceSeen {
                service: spec.service,
                name: spec.name.clone(),
                policy: spec.policy,
                is_http: services.is_upstream(spec.service),
                waiting: pool.waiting,
                instances: self.instances_seen(services, pool),
                servers: services.dials.seen(spec.service),
                nodes: self.nodes_seen(services, spec.service),
            };
            seen.insert(spec.service, of_pool);
        }
        for spec in services.config.specs.iter().filter(|spec| spec.http.is_some()) {
            let of_spec = seen.entry(spec.service).or_insert_with(|| ServiceSeen {
                service: spec.service,
                name: String::new(),
                policy: spec.policy,
                is_http: true,
                waiting: 0,
                instances: Vec::new(),
                servers: Vec::new(),
                nodes: Vec::new(),
            });
            (of_spec.name, of_spec.policy) = (spec.name.clone(), spec.policy);
        }
        for service in services.nodes.services() {
            let spec = ServiceSpec::of(service);
            seen.entry(service).or_insert_with(|| ServiceSeen {
                service,
                name: spec.name,
                policy: spec.policy,
                is_http: false,
                waiting: 0,
                instances: Vec::new(),
                servers: Vec::new(),
                nodes: self.nodes_seen(services, service),
            });
        }
        Some(seen.into_values().collect())
    }

    fn instances_seen(&self, services: &Services, pool: &Pool) -> Vec<InstanceSeen> {
        let seen = |instance: &crate::services::Instance| {
            let links = instance.links.iter().filter_map(|slot| services.links.get(slot));
            InstanceSeen {
                name: instance.name.to_string(),
                weight: instance.weight(),
                backup: instance.backup,
                links: instance.links.len(),
                window: links.map(|link| link.window).sum(),
                calls: pool.calls_of(instance, self.now.mono_ms),
                drained: instance.drained,
                failed: pool.has_failed(instance, self.now.mono_ms),
            }
        };
        let mut all: Vec<InstanceSeen> = pool.instances.iter().map(seen).collect();
        // So does what was said of a worker.
        all.extend(pool.aside.all(self.now.mono_ms).map(|(name, set)| InstanceSeen {
            name: name.to_owned(),
            weight: set.weight.unwrap_or(1),
            backup: false,
            links: 0,
            window: 0,
            calls: 0,
            drained: set.drained == Some(true),
            failed: true,
        }));
        // What was said of a server that is dialed holds while it is away.
        all.extend(services.dials.set_aside(pool.spec.service).map(|(name, set, server)| InstanceSeen {
            name: name.to_owned(),
            weight: set.weight.unwrap_or(server.weight),
            backup: server.backup,
            links: 0,
            window: 0,
            calls: 0,
            drained: set.drained == Some(true),
            failed: true,
        }));
        all
    }

    fn nodes_seen(&self, services: &Services, service: u16) -> Vec<(String, u64)> {
        let mut weights: BTreeMap<String, u64> = BTreeMap::new();
        for (node, weight) in services.nodes.weights(service) {
            let member = self.directory.routing.as_ref().and_then(|routing| routing.member(node));
            if let Some(member) = member {
                *weights.entry(member.name.to_string()).or_default() += u64::from(weight);
            }
        }
        weights.into_iter().collect()
    }

    /// An operator says something of a worker: one that this shard has a link to or dials, or of which something was
    /// said before; or any, if another shard knows it.
    pub(super) fn change_instance(
        &mut self,
        service: u16,
        name: &str,
        change: InstanceChange,
        is_known: bool,
    ) -> Changed {
        let now_ms = self.now.mono_ms;
        let Some(services) = &mut self.services else { return Changed::Unknown };
        let Services { pools, dials, .. } = &mut **services;
        let has_link = |pool: &Pool| pool.instances.iter().any(|instance| *instance.name == *name);
        if !pools.get(&service).is_some_and(has_link) {
            // What is dialed is kept by its address, whether it has a link or not.
            if dials.change(service, name, change) {
                return Changed::Yes;
            }
            // An address is the name of no worker.
            if !name.chars().all(is_node_name_char) {
                return Changed::Unknown;
            }
        }
        if is_known {
            pools.entry(service).or_insert_with(|| Pool::new(ServiceSpec::of(service)));
        }
        let Some(pool) = pools.get_mut(&service) else { return Changed::Unknown };
        let changed = pool.change(name, change, is_known, now_ms);
        if changed == Changed::Yes {
            dials.change(service, name, change);
            self.tell_serving(service);
            self.drain_queue(service);
        }
        changed
    }
}
