//! All masters of the cluster: each command goes to the one that serves its slot.
//!
//! One task keeps the map of slots. While a master is missing it asks the others ten times a second who serves what, so
//! a replica is used within a fraction of a second of its promotion. Otherwise it waits for a MOVED.

use super::super::config::RedisConfig;
use super::super::error::PlaneError;
use super::connect;
use super::link::{Command, Connection, Link, Running};
use super::slots::{Address, NOBODY, Redirection, SLOTS, SlotsAnswer, most_agreed};
use fred::error::Error as FredError;
use fred::types::Value;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The pause between two looks at the map of slots: while somebody is missing, while all is well, and at least.
const LOOK_WHILE_BROKEN: Duration = Duration::from_millis(100);
const LOOK_WHILE_WELL: Duration = Duration::from_secs(5);
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(20);

/// How long masters may take to say who serves what. Those that are silent must not delay what the others say.
const LOOK_TIME_MAX: Duration = Duration::from_millis(300);

/// How often one command follows MOVED or ASK. During a failover or a resharding one or two are the rule; more is a
/// cluster whose servers disagree, and then a pause is better than a loop.
const REDIRECTIONS_MAX: usize = 3;

/// The pause before a command that was not executed is sent again.
const AGAIN: Duration = Duration::from_millis(25);

mod batch;

pub(in super::super) use batch::Confirm;

/// A command for one slot.
#[derive(Debug, Clone)]
pub(in super::super) struct Request {
    pub(in super::super) slot: u16,
    pub(in super::super) name: &'static str,
    pub(in super::super) args: Vec<Value>,
    /// The source of the script that it calls, for a server that does not know it.
    pub(in super::super) source: Option<&'static str>,
}

/// A connection to each master. Clones share them.
#[derive(Clone)]
pub(in super::super) struct Cluster {
    shared: Arc<Shared>,
    looking: Arc<OnceLock<Running<()>>>,
}

struct Shared {
    config: Arc<RedisConfig>,
    routes: RwLock<Routes>,
    /// Something may have changed: a link, or a slot.
    changed: Arc<Notify>,
}

struct Routes {
    /// For each slot the place of its master in `links`, or [`NOBODY`].
    owners: Vec<u16>,
    links: Vec<Arc<Link>>,
    replicas: Vec<Address>,
    /// Replicas of each of `links`, as last heard.
    followers: Vec<u8>,
    closed: bool,
}

/// Why a request has no answer.
enum Missed {
    /// It was not executed, and may succeed in a moment.
    Later(PlaneError),
    /// Redis refused it, or nobody knows what became of it.
    Failed(PlaneError),
}

impl Missed {
    fn into_error(self) -> PlaneError {
        match self {
            Missed::Later(error) | Missed::Failed(error) => error,
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared.read(|routes| routes.links.clone())).finish()
    }
}

impl Cluster {
    /// Without a connection yet; every request fails until [`Cluster::connect`] has worked.
    pub(in super::super) fn unconnected(config: Arc<RedisConfig>) -> Self {
        let routes = Routes {
            owners: vec![NOBODY; SLOTS],
            links: Vec::new(),
            replicas: Vec::new(),
            followers: Vec::new(),
            closed: false,
        };
        let shared = Arc::new(Shared { config, routes: RwLock::new(routes), changed: Arc::new(Notify::new()) });
        Cluster { shared, looking: Arc::new(OnceLock::new()) }
    }

    /// Learns who serves what, and connects to all of them. May be tried again after an error.
    pub(super) async fn connect(&self) -> Result<(), PlaneError> {
        let shared = &self.shared;
        shared.look().await;
        let links = shared.read(|routes| routes.links.clone());
        let mut failed = PlaneError::ClusterDown { detail: "nobody says who serves what".into() };
        let mut up = false;
        for link in links {
            match link.connection().await {
                Ok(_) => up = true,
                Err(error) => failed = error,
            }
        }
        if !up {
            return Err(failed);
        }
        self.looking.get_or_init(|| Running(tokio::spawn(keep_looking(Arc::clone(shared)))));
        Ok(())
    }

    /// Closes all connections. What is on its way fails.
    pub(in super::super) fn close(&self) {
        if let Some(looking) = self.looking.get() {
            looking.0.abort();
        }
        self.shared.write(|routes| {
            routes.closed = true;
            routes.owners.fill(NOBODY);
            routes.links.clear();
        });
    }

    /// The answer to one request. What was not executed, because a master is away, is tried again until
    /// `command_timeout` is over; so a caller that asks once a second is never without a request on its way.
    pub(in super::super) async fn request(&self, request: Request) -> Result<Value, PlaneError> {
        let after = self.shared.config.command_timeout;
        let deadline = Instant::now() + after;
        let mut last = PlaneError::TimedOut { after };
        loop {
            match timeout_at(deadline, self.shared.attempt(&request, None)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(Missed::Failed(error))) => return Err(error),
                Ok(Err(Missed::Later(error))) => last = error,
                Err(_) => return Err(last),
            }
            if Instant::now() + AGAIN >= deadline {
                return Err(last);
            }
            sleep(AGAIN).await;
        }
    }

    /// The answer of each master to one command that is about no key.
    pub(in super::super) async fn ask_masters(
        &self,
        name: &'static str,
        args: Vec<Value>,
    ) -> Vec<(Address, Result<Value, PlaneError>)> {
        let links = self.shared.read(|routes| routes.links.clone());
        let after = self.shared.config.command_timeout;
        let asked = links.into_iter().map(|link| {
            let args = args.clone();
            async move {
                let answer = async {
                    let connection = link.connection().await?;
                    let answer = connection.send(vec![(name, args)]).await.pop();
                    answer
                        .ok_or_else(|| PlaneError::answer(name))?
                        .map_err(|error| PlaneError::from_fred(&error, after))
                };
                let answer = timeout(after, answer).await.unwrap_or(Err(PlaneError::TimedOut { after }));
                (link.address().clone(), answer)
            }
        });
        join_all(asked).await
    }

    /// The answer of one server to a command that is about no key.
    pub(in super::super) async fn ask_server(
        &self,
        address: &Address,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Value, PlaneError> {
        let after = self.shared.config.command_timeout;
        let link = self.shared.link_to(address.clone()).ok_or_else(|| nobody(0))?;
        let answer = async {
            let answer = link.connection().await?.send(vec![(name, args)]).await.pop();
            answer.ok_or_else(|| PlaneError::answer(name))?.map_err(|error| PlaneError::from_fred(&error, after))
        };
        timeout(after, answer).await.unwrap_or(Err(PlaneError::TimedOut { after }))
    }

    /// The answers to many requests: one pipeline for each master. What fails is not tried again.
    pub(super) async fn requests(&self, requests: Vec<Request>) -> Vec<Result<Value, PlaneError>> {
        let mut results: Vec<Option<Result<Value, PlaneError>>> = vec![None; requests.len()];
        let mut groups: BTreeMap<u16, (Option<Arc<Link>>, Vec<usize>)> = BTreeMap::new();
        self.shared.read(|routes| {
            for (index, request) in requests.iter().enumerate() {
                let owner = routes.owner(request.slot);
                let group =
                    groups.entry(owner).or_insert_with(|| (routes.links.get(usize::from(owner)).cloned(), vec![]));
                group.1.push(index);
            }
        });
        let after = self.shared.config.command_timeout;
        let deadline = Instant::now() + after;
        let groups = groups.into_values().map(|(link, indices)| {
            let requests = &requests;
            async move {
                let group: Vec<&Request> = indices.iter().map(|&index| &requests[index]).collect();
                let answers = timeout_at(deadline, self.shared.pipeline(link, &group)).await;
                let answers = answers.unwrap_or_else(|_| vec![Err(PlaneError::TimedOut { after }); indices.len()]);
                indices.into_iter().zip(answers)
            }
        });
        for (index, result) in join_all(groups).await.into_iter().flatten() {
            results[index] = Some(result);
        }
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(nobody(0)))).collect()
    }
}

impl Shared {
    fn read<T>(&self, act: impl FnOnce(&Routes) -> T) -> T {
        act(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, act: impl FnOnce(&mut Routes) -> T) -> T {
        act(&mut self.routes.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends one request, to `first` or to the master of its slot, and follows redirections.
    async fn attempt(&self, request: &Request, first: Option<Arc<Link>>) -> Result<Value, Missed> {
        let mut link = match first.or_else(|| self.read(|routes| routes.link_of(request.slot))) {
            Some(link) => link,
            None => return Err(Missed::Later(nobody(request.slot))),
        };
        let (mut ask, mut load) = (false, false);
        // One more for a script that is not known there.
        for _ in 0..=REDIRECTIONS_MAX + 1 {
            let connection = link.connection().await.map_err(Missed::Later)?;
            let mut commands: Vec<Command> = Vec::with_capacity(3);
            if let Some(source) = request.source.filter(|_| load) {
                commands.push(load_command(source));
            }
            if ask {
                commands.push(("ASKING", vec![]));
            }
            commands.push((request.name, request.args.clone()));
            let Some(result) = connection.send(commands).await.pop() else {
                return Err(Missed::Failed(PlaneError::answer(request.name)));
            };
            let error = match result {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if request.source.is_some() && is_unknown_script(&error) && !load {
                load = true;
                continue;
            }
            match Redirection::parse(error.details(), &link.address().0) {
                Some(Redirection::Moved { slot, to }) => {
                    (ask, load) = (false, false);
                    link = self.moved(slot, to).ok_or_else(|| Missed::Failed(nobody(slot)))?;
                }
                Some(Redirection::Ask { to }) => {
                    (ask, load) = (true, false);
                    link = self.link_to(to).ok_or_else(|| Missed::Failed(nobody(request.slot)))?;
                }
                None => return Err(self.missed(&error)),
            }
        }
        Err(Missed::Later(PlaneError::Redis {
            detail: "its servers send each other's commands around in a circle".into(),
        }))
    }

    /// Sends all of a group to the master that serves them. Redirected ones follow one by one.
    async fn pipeline(&self, link: Option<Arc<Link>>, group: &[&Request]) -> Vec<Result<Value, PlaneError>> {
        let Some(link) = link else {
            return group.iter().map(|request| Err(nobody(request.slot))).collect();
        };
        let connection = match link.connection().await {
            Ok(connection) => connection,
            Err(error) => return vec![Err(error); group.len()],
        };
        let mut results = send_all(&connection, group.iter().copied(), &[]).await;
        let unknown: Vec<usize> = (0..results.len())
            .filter(|&index| matches!(&results[index], Err(error) if is_unknown_script(error)))
            .collect();
        if !unknown.is_empty() {
            let mut sources: Vec<&'static str> = unknown.iter().filter_map(|&index| group[index].source).collect();
            sources.sort_unstable();
            sources.dedup();
            let again = send_all(&connection, unknown.iter().map(|&index| group[index]), &sources).await;
            for (index, result) in unknown.into_iter().zip(again) {
                results[index] = result;
            }
        }
        let link = &link;
        join_all(results.into_iter().zip(group).map(|(result, request)| async move {
            match result {
                Ok(value) => Ok(value),
                Err(error) if Redirection::parse(error.details(), &link.address().0).is_some() => {
                    self.attempt(request, Some(Arc::clone(link))).await.map_err(Missed::into_error)
                }
                Err(error) => Err(self.missed(&error).into_error()),
            }
        }))
        .await
    }

    fn missed(&self, error: &FredError) -> Missed {
        let text = error.details();
        let later = ["CLUSTERDOWN", "TRYAGAIN", "LOADING", "MASTERDOWN"].iter().any(|kind| text.starts_with(kind));
        let error = PlaneError::from_fred(error, self.config.command_timeout);
        if later { Missed::Later(error) } else { Missed::Failed(error) }
    }

    /// The slot has another master than we believed; there may be more of them.
    fn moved(&self, slot: u16, to: Address) -> Option<Arc<Link>> {
        let link = self.link_to(to)?;
        self.write(|routes| {
            let place = routes.links.iter().position(|known| Arc::ptr_eq(known, &link));
            if let (Some(place), Some(owner)) = (place, routes.owners.get_mut(usize::from(slot))) {
                *owner = place as u16;
            }
        });
        self.changed.notify_one();
        Some(link)
    }

    /// The link to a server that Redis named. `None` after closing.
    fn link_to(&self, to: Address) -> Option<Arc<Link>> {
        self.write(|routes| {
            if routes.closed || routes.links.len() >= usize::from(NOBODY) {
                return None;
            }
            if let Some(link) = routes.links.iter().find(|link| *link.address() == to) {
                return Some(Arc::clone(link));
            }
            let link = Arc::new(Link::start(&self.config, to, &self.changed));
            routes.links.push(Arc::clone(&link));
            Some(link)
        })
    }

    /// Asks who serves what, and acts on it.
    async fn look(&self) {
        let links = self.read(|routes| routes.links.clone());
        let up = links.iter().filter_map(|link| Some((link.address().0.clone(), link.up()?)));
        let asked = up.map(|(host, connection)| async move {
            let answer =
                timeout(LOOK_TIME_MAX, connection.send(vec![connect::slots_command()])).await.ok()?.pop()?.ok()?;
            SlotsAnswer::parse(answer, &host)
        });
        let answers: Vec<SlotsAnswer> = join_all(asked).await.into_iter().flatten().collect();
        let answer = match most_agreed(answers) {
            Some(answer) => Some(answer),
            None => self.look_afar(&links).await,
        };
        if let Some(answer) = answer {
            self.apply(answer);
        }
    }

    /// Asks everybody ever heard of, since no connection is left. The first answer counts.
    async fn look_afar(&self, links: &[Arc<Link>]) -> Option<SlotsAnswer> {
        let mut addresses = self.config.hosts.clone();
        let replicas = self.read(|routes| routes.replicas.clone());
        addresses.extend(links.iter().map(|link| link.address().clone()).chain(replicas));
        addresses.sort_unstable();
        addresses.dedup();
        let mut asked = JoinSet::new();
        for address in addresses {
            let config = Arc::clone(&self.config);
            asked.spawn(async move {
                let answer = connect::ask_slots(&config, &address).await?;
                SlotsAnswer::parse(answer, &address.0)
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(answer)) = answer {
                return Some(answer);
            }
        }
        None
    }

    fn apply(&self, answer: SlotsAnswer) {
        self.write(|routes| {
            if routes.closed {
                return;
            }
            let links = answer.map.masters.into_iter().map(|address| {
                let known = routes.links.iter().find(|link| *link.address() == address);
                known.map_or_else(|| Arc::new(Link::start(&self.config, address, &self.changed)), Arc::clone)
            });
            routes.links = links.collect();
            routes.owners = answer.map.owners;
            routes.replicas = answer.replicas;
            routes.followers = answer.followers;
        });
    }

    /// Whether all slots have a master that is connected.
    fn is_well(&self) -> bool {
        self.read(|routes| !routes.owners.contains(&NOBODY) && routes.links.iter().all(|link| link.up().is_some()))
    }
}

impl Routes {
    fn owner(&self, slot: u16) -> u16 {
        self.owners.get(usize::from(slot)).copied().unwrap_or(NOBODY)
    }

    fn link_of(&self, slot: u16) -> Option<Arc<Link>> {
        self.links.get(usize::from(self.owner(slot))).cloned()
    }
}

async fn keep_looking(shared: Arc<Shared>) {
    loop {
        let pause = if shared.is_well() { LOOK_WHILE_WELL } else { LOOK_WHILE_BROKEN };
        // Either way it is time to look.
        let _ = timeout(pause, shared.changed.notified()).await;
        sleep(LOOK_PAUSE_MIN).await;
        shared.look().await;
    }
}

async fn send_all<'a>(
    connection: &Arc<Connection>,
    requests: impl Iterator<Item = &'a Request>,
    sources: &[&'static str],
) -> Vec<Result<Value, FredError>> {
    let mut commands: Vec<Command> = sources.iter().copied().map(load_command).collect();
    commands.extend(requests.map(|request| (request.name, request.args.clone())));
    connection.send(commands).await.split_off(sources.len())
}

fn load_command(source: &'static str) -> Command {
    ("SCRIPT", vec!["LOAD".into(), source.into()])
}

fn is_unknown_script(error: &FredError) -> bool {
    error.details().starts_with("NOSCRIPT")
}

fn nobody(slot: u16) -> PlaneError {
    PlaneError::ClusterDown { detail: format!("nobody serves slot {slot}") }
}
