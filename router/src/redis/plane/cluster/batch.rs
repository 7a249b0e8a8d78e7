//! Many requests at once, and what has to hold before their answers count: so many replicas have what was written.
//!
//! The command that asks the replicas, WAIT or WAITAOF, is about what its own connection has written. So it goes out
//! behind the requests on the same connection, also where a request has to follow a slot to another master.

use super::super::super::error::PlaneError;
use super::super::link::{Command, Link};
use super::super::slots::{Address, Redirection};
use super::{Cluster, NOBODY, REDIRECTIONS_MAX, Request, Shared, is_unknown_script, load_command, nobody};
use fred::types::Value;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Replicas that are waited for at the least and at the most: one copy besides the master's is what makes a
/// difference, and a third one survives a replica that ends with it.
const COPIES: std::ops::RangeInclusive<u8> = 1..=2;

/// What has to hold before what was written counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super::super) enum Confirm {
    /// Nothing besides the master's answer.
    Nothing,
    /// One or two replicas, as many as the master has, have it in memory within that time.
    Copies(Duration),
    /// Likewise, and it is in the append-only files of all of them.
    Files(Duration),
}

/// An answer, and whether what [`Confirm`] asks for holds for it.
pub(in super::super::super) type Confirmed = Result<(Value, bool), PlaneError>;

/// Requests that go to one server, by their places in the batch.
#[derive(Default)]
struct Group {
    link: Option<Arc<Link>>,
    places: Vec<usize>,
    /// The server has to be told that it is asked for what it is about to get.
    ask: bool,
    /// The server does not know a script.
    load: bool,
}

impl Cluster {
    /// The server that serves a slot now; who is asked there waits for what was asked there before.
    pub(in super::super::super) fn server_of(&self, slot: u16) -> Option<Address> {
        self.shared.read(|routes| routes.link_of(slot).map(|link| link.address().clone()))
    }

    /// The least number of replicas that a master has, as last heard.
    pub(in super::super::super) fn fewest_replicas(&self) -> u8 {
        self.shared.read(|routes| routes.followers.iter().copied().min().unwrap_or(0))
    }

    /// The answers to many requests: one pipeline for each master, with what confirms it behind. What fails is not
    /// tried again, except where it was not executed because its slot has another master.
    pub(in super::super::super) async fn batch(&self, requests: &[Request], confirm: Confirm) -> Vec<Confirmed> {
        let after = self.shared.config.command_timeout;
        let deadline = Instant::now() + after;
        let mut results: Vec<Option<Confirmed>> = vec![None; requests.len()];
        let mut groups = self.shared.grouped(requests);
        for _ in 0..=REDIRECTIONS_MAX + 1 {
            if groups.is_empty() {
                break;
            }
            let sent = groups.into_iter().map(|group| async move {
                let answers = timeout_at(deadline, self.shared.send_group(&group, requests, confirm)).await;
                let late = || vec![Err(Stop::Failed(PlaneError::TimedOut { after })); group.places.len()];
                (answers.unwrap_or_else(|_| late()), group)
            });
            let mut next: BTreeMap<(Address, bool, bool), Group> = BTreeMap::new();
            for (answers, group) in join_all(sent).await {
                for (place, answer) in group.places.into_iter().zip(answers) {
                    let (link, ask, load) = match answer {
                        Ok(answer) => {
                            results[place] = Some(Ok(answer));
                            continue;
                        }
                        Err(Stop::Failed(error)) => {
                            results[place] = Some(Err(error));
                            continue;
                        }
                        Err(Stop::Unknown) => (group.link.clone(), group.ask, true),
                        Err(Stop::Moved(Redirection::Moved { slot, to })) => {
                            (self.shared.moved(slot, to), false, false)
                        }
                        Err(Stop::Moved(Redirection::Ask { to })) => (self.shared.link_to(to), true, false),
                    };
                    let Some(link) = link else {
                        results[place] = Some(Err(nobody(requests[place].slot)));
                        continue;
                    };
                    let group = next.entry((link.address().clone(), ask, load)).or_default();
                    group.link = Some(link);
                    (group.ask, group.load) = (ask, load);
                    group.places.push(place);
                }
            }
            groups = next.into_values().collect();
        }
        let circle =
            || PlaneError::Redis { detail: "its servers send each other's commands around in a circle".into() };
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(circle()))).collect()
    }
}

/// Why a request has no answer yet, or none.
#[derive(Clone)]
enum Stop {
    Failed(PlaneError),
    /// The server does not know the script.
    Unknown,
    /// Another server has the slot.
    Moved(Redirection),
}

impl Shared {
    fn grouped(&self, requests: &[Request]) -> Vec<Group> {
        self.read(|routes| {
            let mut groups: BTreeMap<u16, Group> = BTreeMap::new();
            for (place, request) in requests.iter().enumerate() {
                let owner = routes.owner(request.slot);
                let group = groups.entry(owner).or_default();
                if owner != NOBODY {
                    group.link = routes.links.get(usize::from(owner)).cloned();
                }
                group.places.push(place);
            }
            groups.into_values().collect()
        })
    }

    /// Replicas that have to have what is written to a server.
    fn copies_of(&self, address: &Address) -> u8 {
        let known = self.read(|routes| {
            let at = routes.links.iter().position(|link| link.address() == address)?;
            routes.followers.get(at).copied()
        });
        known.unwrap_or(0).clamp(*COPIES.start(), *COPIES.end())
    }

    async fn send_group(
        &self,
        group: &Group,
        requests: &[Request],
        confirm: Confirm,
    ) -> Vec<Result<(Value, bool), Stop>> {
        let all = |stop: Stop| vec![Err(stop); group.places.len()];
        let Some(link) = &group.link else {
            return group.places.iter().map(|&place| Err(Stop::Failed(nobody(requests[place].slot)))).collect();
        };
        let connection = match link.connection().await {
            Ok(connection) => connection,
            Err(error) => return all(Stop::Failed(error)),
        };
        let copies = self.copies_of(link.address());
        let mut commands: Vec<Command> = Vec::with_capacity(group.places.len() + 2);
        let mut sources: Vec<&'static str> = Vec::new();
        if group.load {
            sources.extend(group.places.iter().filter_map(|&place| requests[place].source));
            sources.sort_unstable();
            sources.dedup();
        }
        commands.extend(sources.iter().copied().map(load_command));
        for &place in &group.places {
            if group.ask {
                commands.push(("ASKING", vec![]));
            }
            commands.push((requests[place].name, requests[place].args.clone()));
        }
        let number = |number: u128| Value::from(number.to_string());
        match confirm {
            Confirm::Nothing => {}
            Confirm::Copies(within) => {
                commands.push(("WAIT", vec![number(copies.into()), number(within.as_millis())]));
            }
            Confirm::Files(within) => {
                commands.push(("WAITAOF", vec![number(1), number(copies.into()), number(within.as_millis())]));
            }
        }
        let mut answers = connection.send(commands).await;
        let confirmed = match confirm {
            Confirm::Nothing => true,
            Confirm::Copies(_) => {
                let have = answers.pop().and_then(Result::ok).and_then(|have| have.as_u64());
                have.is_some_and(|have| have >= u64::from(copies))
            }
            Confirm::Files(_) => match answers.pop() {
                Some(Ok(Value::Array(have))) => {
                    let have: Vec<u64> = have.iter().filter_map(Value::as_u64).collect();
                    matches!(have[..], [own, others] if own >= 1 && others >= u64::from(copies))
                }
                _ => false,
            },
        };
        let step = if group.ask { 2 } else { 1 };
        let of_requests = answers.into_iter().skip(sources.len()).skip(step - 1).step_by(step);
        let judged = of_requests.map(|answer| match answer {
            Ok(value) => Ok((value, confirmed)),
            Err(error) if is_unknown_script(&error) && !group.load => Err(Stop::Unknown),
            Err(error) => match Redirection::parse(error.details(), &link.address().0) {
                Some(redirection) => Err(Stop::Moved(redirection)),
                None => {
                    // A master that has become a replica, or has lost its slots: who serves them is asked for.
                    self.changed.notify_one();
                    Err(Stop::Failed(PlaneError::from_fred(&error, self.config.command_timeout)))
                }
            },
        });
        let mut judged: Vec<_> = judged.collect();
        judged.resize_with(group.places.len(), || Err(Stop::Failed(PlaneError::answer("a batch"))));
        judged
    }
}
