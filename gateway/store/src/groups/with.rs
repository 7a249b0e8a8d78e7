//! Inboxes and groups as one store, on one thread: a batch is one commit for each of both that it concerns.

use super::Groups;
use crate::{Answer, Refusal, Reply, Request, Source, Stats, Store};
use std::sync::Arc;
use std::time::Duration;

/// A store of inboxes, and one of groups if there is one; else requests about groups are refused.
#[derive(Debug)]
pub struct WithGroups<I, G> {
    inboxes: I,
    groups: Option<Groups<G>>,
}

impl<I: Store, G: Store> WithGroups<I, G> {
    /// Both as one.
    pub fn new(inboxes: I, groups: Option<Groups<G>>) -> Self {
        WithGroups { inboxes, groups }
    }

    /// The inboxes.
    pub fn inboxes(&mut self) -> &mut I {
        &mut self.inboxes
    }

    /// The groups, which are none of it any more.
    pub fn take_groups(&mut self) -> Option<Groups<G>> {
        self.groups.take()
    }

    /// Other groups, or the same ones read anew.
    pub fn set_groups(&mut self, groups: Groups<G>) {
        self.groups = Some(groups);
    }

    /// The groups.
    pub fn groups(&mut self) -> Option<&mut Groups<G>> {
        self.groups.as_mut()
    }
}

impl<I: Store, G: Store> Store for WithGroups<I, G> {
    fn apply(&mut self, batch: &mut Vec<(Source, Request)>, out: &mut dyn FnMut(Source, Answer)) {
        let mut of_groups = Vec::new();
        let is_of_group = |(_, request): &mut (Source, Request)| matches!(request, Request::Group { .. });
        for (source, request) in batch.extract_if(.., is_of_group) {
            if let Request::Group { group, ask, token } = request {
                of_groups.push((source, group, *ask, token));
            }
        }
        if !batch.is_empty() {
            self.inboxes.apply(batch, out);
        }
        if of_groups.is_empty() {
            return;
        }
        match &mut self.groups {
            Some(groups) => groups.apply(of_groups, out),
            None => {
                for (source, _, _, token) in of_groups {
                    if let Some(token) = token {
                        out(source, Answer { token, reply: Reply::Refused(Refusal::Unavailable) });
                    }
                }
            }
        }
    }

    fn tick(&mut self) -> Option<Duration> {
        let groups = self.groups.as_mut().and_then(Groups::tick);
        [self.inboxes.tick(), groups].into_iter().flatten().min()
    }

    fn close(&mut self) {
        self.inboxes.close();
        if let Some(groups) = &mut self.groups {
            groups.close();
        }
    }

    fn stats(&self) -> &Arc<Stats> {
        self.inboxes.stats()
    }
}
