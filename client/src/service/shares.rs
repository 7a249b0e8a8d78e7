//! How a worker that listens shares out what it works on at a time: each gateway has all of it, over the links that it
//! has made for all the services of the worker.
//!
//! A gateway dials each service by itself, so a worker learns how many there are as links come and go. Those that are
//! there already get another part then, which the gateway is told by WINDOW.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;

use tokio::sync::watch;

/// What gateways have dialed, by the names of their nodes. There are no more than links.
#[derive(Debug, Default)]
pub(super) struct Shares {
    nodes: HashMap<String, Node>,
}

#[derive(Debug)]
struct Node {
    /// Links of each service.
    services: BTreeMap<u16, usize>,
    count: watch::Sender<u32>,
}

/// The part of one link.
#[derive(Debug)]
pub(super) struct Share {
    /// What all links of the gateway have together.
    whole: u32,
    /// Links that it makes for each service.
    links: u32,
    services: watch::Receiver<u32>,
}

impl Shares {
    /// A link of a gateway, which makes so many for each service. The whole is what the worker works on at a time.
    pub(super) fn join(&mut self, node: &str, service: u16, links: u32, whole: u32) -> Share {
        let of_node = self
            .nodes
            .entry(node.to_owned())
            .or_insert_with(|| Node { services: BTreeMap::new(), count: watch::channel(0).0 });
        *of_node.services.entry(service).or_default() += 1;
        of_node.tell();
        Share { whole, links: links.max(1), services: of_node.count.subscribe() }
    }

    /// Such a link has ended.
    pub(super) fn leave(&mut self, node: &str, service: u16) {
        let Some(of_node) = self.nodes.get_mut(node) else { return };
        if let Some(links) = of_node.services.get_mut(&service) {
            *links -= 1;
            if *links == 0 {
                of_node.services.remove(&service);
            }
        }
        if of_node.services.is_empty() {
            self.nodes.remove(node);
        } else {
            of_node.tell();
        }
    }
}

impl Node {
    fn tell(&self) {
        let now = self.services.len() as u32;
        self.count.send_if_modified(|count| std::mem::replace(count, now) != now);
    }
}

impl Share {
    /// Requests that the link takes at once.
    pub(super) fn window(&mut self) -> u16 {
        let services = (*self.services.borrow_and_update()).max(1);
        let part = self.whole.div_ceil(self.links.saturating_mul(services));
        part.clamp(1, u16::MAX.into()) as u16
    }

    /// Waits until the link has another part, and returns it.
    pub(super) async fn changed(&mut self) -> u16 {
        if self.services.changed().await.is_err() {
            // The gateway has no link any more, so this one is about to end.
            pending::<()>().await;
        }
        self.window()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gateway_has_the_whole_window_however_many_services_it_dials() {
        let mut shares = Shares::default();
        let mut of_seven: Vec<Share> = (0..4).map(|_| shares.join("n1", 7, 4, 256)).collect();
        assert!(of_seven.iter_mut().all(|share| share.window() == 64));
        let mut of_eight: Vec<Share> = (0..4).map(|_| shares.join("n1", 8, 4, 256)).collect();
        assert!(of_eight.iter_mut().all(|share| share.window() == 32));
        for share in &mut of_seven {
            assert_eq!(share.changed().await, 32, "it is told");
        }
        let mut other = shares.join("n2", 7, 1, 256);
        assert_eq!(other.window(), 256, "another gateway has as much");
        (0..3).for_each(|_| shares.leave("n1", 8));
        assert!(!of_seven[0].services.has_changed().expect("the node is there"));
        shares.leave("n1", 8);
        assert_eq!(of_seven[0].changed().await, 64);
        (0..4).for_each(|_| shares.leave("n1", 7));
        shares.leave("n2", 7);
        assert!(shares.nodes.is_empty());
        shares.leave("n2", 7);
    }

    #[test]
    fn every_link_takes_one_request_at_least() {
        let mut shares = Shares::default();
        let mut parts: Vec<Share> = (1..=20).map(|service| shares.join("n1", service, 16, 100)).collect();
        assert!(parts.iter_mut().all(|share| share.window() == 1));
        assert_eq!(shares.join("n2", 1, 0, 1 << 20).window(), u16::MAX);
    }
}
