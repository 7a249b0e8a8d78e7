//! The threads of a load, each with clients of its own on rings of its own. Between two jobs each goes on turning its
//! rings, so that its clients' heartbeats and messages go on, while the one who gives the jobs measures.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{LOAD_CORE, SERVER_CORE, pin},
    backlog::Backlog,
    crowd::{Crowd, PATIENCE, Tally},
    failure::Failure,
    fleet::{Fleet, Targets},
    gateway::GatewayArgs,
    keeping::Plan,
    latency::Latencies,
    ledger::{Flow, Ledger, Route},
    process::CpuTime,
    progress::Phase,
    scenario::{Clients, Pace, Ramp, RampPart, run_number},
    users::Share,
};

/// How long a thread without work sleeps before it looks for a job.
const IDLE_PATIENCE: Duration = Duration::from_millis(20);
/// Between two looks at how far a job is.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Which cores the two ends of a connection are on.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(crate) struct CoresArgs {
    /// Run the gateway on the first N cores, and on each of them a thread of the load with the clients whose users live
    /// on that core: both ends of a connection share a core's caches, as where a network card steers a connection to
    /// the core that serves it [default: the gateway on one core, all of the load on another]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) shared_cores: Option<u32>,
}

impl CoresArgs {
    /// Gives a gateway on shared cores as many shards on each; checks that the machine has them.
    pub(crate) fn spread(self, clients: &mut Clients) -> Result<(), Failure> {
        let Some(cores) = self.shared_cores else { return Ok(()) };
        self.check()?;
        clients.gateway.spread_over(cores, clients.conns)
    }

    fn check(self) -> Result<(), Failure> {
        let there = core_affinity::get_core_ids().map_or(1, |cores| cores.len());
        match self.shared_cores.filter(|cores| *cores as usize > there) {
            None => Ok(()),
            Some(cores) => Err(Failure::Setup(format!(
                "--shared-cores {cores}: this process may use {there} cores; lower it, or allow more with taskset"
            ))),
        }
    }

    /// The clients of each thread of the load of a gateway that is not started yet, and is given shards for it.
    pub(crate) fn shares_of(self, gateway: &mut GatewayArgs, connections: u32) -> Result<Vec<Share>, Failure> {
        let Some(cores) = self.shared_cores else {
            return Ok(vec![Share::of_one((1..=u64::from(connections)).collect(), 0)]);
        };
        self.check()?;
        gateway.spread_over(cores, connections)?;
        Ok(Share::of_cores(connections, 0, gateway.shards_for(connections)?, cores as usize))
    }

    /// The clients of each thread of the load. `users` is whom they are when they need not be on a certain core.
    pub(crate) fn shares(self, clients: &Clients, users: Vec<u64>, control: u32) -> Result<Vec<Share>, Failure> {
        let Some(cores) = self.shared_cores else { return Ok(vec![Share::of_one(users, control)]) };
        let shards = clients.gateway.shards_for(clients.conns)?;
        Ok(Share::of_cores(clients.conns, control, shards, cores as usize))
    }

    /// The cores of the gateway.
    pub(crate) fn of_server(self) -> Vec<usize> {
        self.shared_cores.map_or(vec![SERVER_CORE], |cores| (0..cores as usize).collect())
    }

    /// The core of a thread of the load.
    pub(crate) fn of_load(self, thread: usize) -> usize {
        if self.shared_cores.is_some() { thread } else { LOAD_CORE }
    }
}

/// How far all clients together are; see [`Tally`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) inside: u64,
    pub(crate) logins: u64,
    pub(crate) lost: u64,
    pub(crate) pongs: u64,
    /// Messages.
    pub(crate) sent: u64,
    /// Due, and not sent yet.
    pub(crate) owed: u64,
    pub(crate) delivered: u64,
    /// Messages of backlogs that have come.
    pub(crate) caught_up: u64,
}

/// How far the clients of one thread are, for others to read.
#[derive(Debug, Default)]
struct Published {
    inside: AtomicU64,
    logins: AtomicU64,
    lost: AtomicU64,
    pongs: AtomicU64,
    sent: AtomicU64,
    owed: AtomicU64,
    delivered: AtomicU64,
    caught_up: AtomicU64,
    failed: AtomicBool,
}

impl Published {
    fn publish(&self, crowd: &Crowd) {
        let Tally { inside, logins, lost, pongs, .. } = crowd.tally;
        let figures = [
            (&self.inside, inside.into()),
            (&self.logins, logins),
            (&self.lost, lost),
            (&self.pongs, pongs),
            (&self.sent, crowd.ledger.sent()),
            (&self.owed, crowd.owed()),
            (&self.delivered, crowd.ledger.delivered()),
            (&self.caught_up, crowd.caught_up()),
        ];
        figures.into_iter().for_each(|(published, figure)| published.store(figure, Ordering::Relaxed));
    }

    fn read(&self) -> Totals {
        let figure = |published: &AtomicU64| published.load(Ordering::Relaxed);
        Totals {
            inside: figure(&self.inside),
            logins: figure(&self.logins),
            lost: figure(&self.lost),
            pongs: figure(&self.pongs),
            sent: figure(&self.sent),
            owed: figure(&self.owed),
            delivered: figure(&self.delivered),
            caught_up: figure(&self.caught_up),
        }
    }
}

/// One thread's clients and their rings.
pub(crate) struct Worker {
    pub(crate) crowd: Crowd,
    pub(crate) fleet: Fleet,
    published: Arc<Published>,
    /// What ended the work between two jobs; the next job tells it.
    failure: Option<Failure>,
}

impl Worker {
    /// Does something with the clients, and tells how far they are whenever that is asked for.
    pub(crate) fn with<R>(&mut self, work: impl FnOnce(&mut Crowd, &mut Fleet, &dyn Fn(&Crowd)) -> R) -> R {
        let result = work(&mut self.crowd, &mut self.fleet, &|crowd| self.published.publish(crowd));
        self.published.publish(&self.crowd);
        result
    }

    fn go_on(&mut self) {
        match self.with(|crowd, fleet, _| crowd.step(fleet, IDLE_PATIENCE)) {
            // A gateway on the same core answers now: both would have work for whole time slices otherwise, and
            // messages wait for those.
            Ok(_) => thread::yield_now(),
            Err(failure) => {
                self.failure = Some(failure);
                self.published.failed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The life of the thread.
    fn work(mut self, orders: &mpsc::Receiver<Order>) -> Result<Option<Crowd>, Failure> {
        loop {
            let order = match self.failure {
                // Nothing goes on any more, so there is nothing but orders to wait for.
                Some(_) => orders.recv().map_err(|_| TryRecvError::Disconnected),
                None => orders.try_recv(),
            };
            match order {
                Ok(Order::Do(job)) => job(&mut self),
                Ok(Order::Close) => {
                    if let Some(failure) = self.failure {
                        return Err(failure);
                    }
                    self.fleet.close()?;
                    return Ok(Some(self.crowd));
                }
                Err(TryRecvError::Empty) => self.go_on(),
                Err(TryRecvError::Disconnected) => return Ok(None),
            }
        }
    }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

enum Order {
    Do(Job),
    Close,
}

struct Member {
    orders: mpsc::Sender<Order>,
    published: Arc<Published>,
    thread: JoinHandle<Result<Option<Crowd>, Failure>>,
}

/// The threads of a load. Those of a team that is dropped and not closed end by themselves, and leave their connections
/// to the kernel.
pub(crate) struct Team {
    members: Vec<Member>,
}

impl Team {
    /// Starts a thread for each share of the clients; all connect to `targets`. None is connected yet.
    pub(crate) fn start(
        clients: &Clients,
        cores: CoresArgs,
        shares: Vec<Share>,
        targets: &Targets,
    ) -> Result<Team, Failure> {
        let run = run_number();
        let mut first = 0;
        let mut team = Team { members: Vec::new() };
        for (thread, share) in shares.into_iter().enumerate() {
            let (clients, targets, core, number) = (clients.clone(), targets.clone(), cores.of_load(thread), first);
            first += share.users.len() as u32;
            let published = Arc::new(Published::default());
            let (orders, received) = mpsc::channel();
            let told = Arc::clone(&published);
            let work = move || {
                pin(core)?;
                let Share { mut users, control, group, flows } = share;
                let connections = users.len() as u32;
                users.extend(group);
                let flows = flows.into_iter().map(|(from, to)| Flow::new(from, to)).collect();
                let route = Route::Deliver { ack: false };
                let ledger = Ledger::new(route, run, users, flows, clients.payload as usize);
                let crowd = Crowd::new(ledger, connections, control, clients.heartbeat);
                let fleet = clients.fleet_of(targets, connections.max(1))?.numbered_from(number);
                Worker { crowd, fleet, published: told, failure: None }.work(&received)
            };
            let thread = thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(work)
                .map_err(|error| Failure::system("starting a thread", error))?;
            team.members.push(Member { orders, published, thread });
        }
        // Their rings are there once they answer.
        team.each(|_| Ok(()), |_| ())?;
        Ok(team)
    }

    /// How far all clients together are.
    pub(crate) fn totals(&self) -> Totals {
        let each = self.members.iter().map(|member| member.published.read());
        each.fold(Totals::default(), |sum, part| Totals {
            inside: sum.inside + part.inside,
            logins: sum.logins + part.logins,
            lost: sum.lost + part.lost,
            pongs: sum.pongs + part.pongs,
            sent: sum.sent + part.sent,
            owed: sum.owed + part.owed,
            delivered: sum.delivered + part.delivered,
            caught_up: sum.caught_up + part.caught_up,
        })
    }

    /// Lets each thread do a job, and waits for all. `tick` is told how far they are meanwhile. Errors: the first
    /// thread that fails.
    pub(crate) fn each<R: Send + 'static>(
        &mut self,
        job: impl Fn(&mut Worker) -> Result<R, Failure> + Clone + Send + 'static,
        mut tick: impl FnMut(&Totals),
    ) -> Result<Vec<R>, Failure> {
        let (sender, results) = mpsc::channel();
        for (number, member) in self.members.iter().enumerate() {
            let (job, sender) = (job.clone(), sender.clone());
            let order = Order::Do(Box::new(move |worker| {
                let result = match worker.failure.take() {
                    Some(failure) => Err(failure),
                    None => job(worker),
                };
                worker.published.publish(&worker.crowd);
                // Nobody listens any more when another thread has failed.
                let _ = sender.send((number, result));
            }));
            // A thread that has ended without an order is found below, by its missing answer.
            let _ = member.orders.send(order);
        }
        drop(sender);
        let mut answers: Vec<Option<R>> = self.members.iter().map(|_| None).collect();
        loop {
            match results.recv_timeout(LOOK_INTERVAL) {
                Ok((number, result)) => answers[number] = Some(result?),
                Err(RecvTimeoutError::Timeout) => tick(&self.totals()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match answers.iter().position(Option::is_none) {
            None => Ok(answers.into_iter().flatten().collect()),
            Some(ended) => {
                let outcome = self.members.remove(ended).thread.join();
                let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Err(outcome.err().unwrap_or_else(|| unreachable!("a thread of the load ends when it is told to")))
            }
        }
    }

    /// Lets the clients go on for a while.
    pub(crate) fn run_for(&mut self, length: Duration, mut tick: impl FnMut(&Totals)) -> Result<(), Failure> {
        let end = Instant::now() + length;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::sleep(left.min(LOOK_INTERVAL));
            tick(&self.totals());
            if self.members.iter().any(|member| member.published.failed.load(Ordering::Relaxed)) {
                self.each(|_| Ok(()), |_| ())?;
            }
        }
        Ok(())
    }

    /// From now on each client that logs in sends a PING about an interval after that and after each PING.
    pub(crate) fn ping_every(&mut self, interval: Duration) -> Result<(), Failure> {
        let ping = move |worker: &mut Worker| {
            worker.crowd.ping_every(Some(interval));
            Ok(())
        };
        self.each(ping, |_| ()).map(drop)
    }

    /// Opens the sockets of all clients, so that connecting is all that is left to do.
    pub(crate) fn prepare(&mut self) -> Result<(), Failure> {
        let prepare = |worker: &mut Worker| worker.fleet.prepare(0, worker.crowd.connections());
        self.each(prepare, |_| ()).map(drop)
    }

    /// Logs in clients of each thread and tells how that went. `meanwhile` is called now and then.
    pub(crate) fn ramp(
        &mut self,
        clients: &Clients,
        who: Who,
        pids: &[u32],
        bar: &Phase,
        mut meanwhile: impl FnMut(),
    ) -> Result<Ramp, Failure> {
        let (cpu_before, began) = (CpuTime::of_all(pids)?, Instant::now());
        let mut pace = Pace::new(bar, self.totals().logins);
        let threads = self.members.len() as u32;
        let plan = clients.clone();
        let parts = self.each(
            move |worker| {
                let range = who.of(&worker.crowd);
                let opening = plan.opening_of(range.start, range.end, threads);
                worker.with(|crowd, fleet, publish| RampPart::of(crowd, fleet, opening, began, publish))
            },
            |totals| {
                pace.tell(totals.logins);
                meanwhile();
            },
        )?;
        let seconds = began.elapsed();
        // All have to have come within an interval for a spread over the whole of it.
        let spread = move |worker: &mut Worker| {
            if worker.crowd.heartbeat().is_some_and(|interval| seconds < interval) {
                worker.crowd.spread_heartbeats(who.of(&worker.crowd));
            }
            Ok(())
        };
        self.each(spread, |_| ())?;
        let (server_cpu, _) = CpuTime::of_all(pids)?.since(&cpu_before);
        Ok(Ramp::of(&parts, seconds, server_cpu))
    }

    /// The gateway keeps messages: so many of each of the plan's recipients are what it gets after its next login, and
    /// nothing of everybody else.
    pub(crate) fn expect(&mut self, plan: &Plan, each: u64) -> Result<(), Failure> {
        let numbers = plan.recipients.iter().copied().zip(0_u32..).collect::<HashMap<u64, u32>>();
        let (numbers, plan) = (Arc::new(numbers), Arc::new(plan.clone()));
        let expect = move |worker: &mut Worker| {
            let users = (0..worker.crowd.connections()).map(|connection| worker.crowd.ledger.user(connection));
            let users: Vec<u64> = users.collect();
            let backlog = Backlog::of_users(plan.as_ref().clone(), users, |user| numbers.get(&user).copied(), each);
            worker.crowd.expect(backlog);
            Ok(())
        };
        self.each(expect, |_| ()).map(drop)
    }

    /// Waits until each client has what was kept for it.
    pub(crate) fn catch_up(&mut self, bar: &Phase) -> Result<(), Failure> {
        self.each(
            |worker| worker.with(|crowd, fleet, publish| crowd.catch_up(fleet, |crowd| publish(crowd))),
            |totals| bar.set(totals.caught_up),
        )
        .map(drop)
    }

    /// Cuts connections off, as if their network were gone, and waits until their slots are free.
    pub(crate) fn cut(&mut self, who: Who) -> Result<(), Failure> {
        let cut = move |worker: &mut Worker| {
            let range = who.of(&worker.crowd);
            worker.crowd.cut(&mut worker.fleet, range.start, range.end)
        };
        self.each(cut, |_| ()).map(drop)
    }

    /// Kinds of failures with their counts, if something went wrong with any client so far.
    pub(crate) fn judge(&mut self) -> Result<(), Failure> {
        self.each(|worker| worker.crowd.judge(), |_| ()).map(drop)
    }

    /// From now on the control group sends so many messages per second together, or none.
    pub(crate) fn send_at(&mut self, rate: Option<f64>) -> Result<(), Failure> {
        let flows: usize = self.each(|worker| Ok(worker.crowd.own_flows()), |_| ())?.into_iter().sum();
        let each = rate.map(|rate| rate / flows.max(1) as f64);
        let send = move |worker: &mut Worker| {
            let own = worker.crowd.own_flows() as f64;
            worker.crowd.send_at(each.map(|each| each * own));
            Ok(())
        };
        self.each(send, |_| ()).map(drop)
    }

    /// What is to be sent from about now on belongs to a new stretch of time.
    pub(crate) fn begin_stretch(&mut self) -> Result<(), Failure> {
        let begin = |worker: &mut Worker| {
            worker.crowd.begin_stretch();
            Ok(())
        };
        self.each(begin, |_| ()).map(drop)
    }

    /// The latencies of each stretch so far, oldest first; to be called once the messages of all of them have
    /// [settled](Team::settle).
    pub(crate) fn take_stretches(&mut self) -> Result<Vec<Latencies>, Failure> {
        let taken = self.each(|worker| Ok(worker.crowd.stretches.take()), |_| ())?;
        // Each thread has begun the same ones.
        let mut all: Vec<Latencies> = Vec::new();
        for stretches in taken {
            for (at, stretch) in stretches.into_iter().enumerate() {
                match all.get_mut(at) {
                    Some(sum) => sum.add(&stretch),
                    None => all.push(stretch),
                }
            }
        }
        Ok(all)
    }

    /// Sends what is due, and no more, and waits until every message has been delivered, and a little longer in case
    /// one comes too many. What is missing then is in the ledgers.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        self.send_at(None)?;
        let mut last_progress = Instant::now();
        let mut delivered = self.totals().delivered;
        while delivered < self.totals().sent + self.totals().owed && last_progress.elapsed() < PATIENCE {
            self.run_for(LOOK_INTERVAL, |_| ())?;
            let now = self.totals().delivered;
            if now > delivered {
                (delivered, last_progress) = (now, Instant::now());
            }
        }
        self.run_for(Duration::from_millis(50), |_| ())
    }

    /// Asks every client for a last PONG. Those that do not answer are lost.
    pub(crate) fn roll_call(&mut self, bar: &Phase) -> Result<(), Failure> {
        let pongs = self.totals().pongs;
        self.each(
            |worker| worker.with(|crowd, fleet, publish| crowd.roll_call(fleet, |crowd| publish(crowd))),
            |totals| bar.set(totals.pongs - pongs),
        )?;
        Ok(())
    }

    /// Closes every connection with a reset and returns what has become of all clients. Errors: also messages that do
    /// not add up.
    pub(crate) fn close(self) -> Result<Crowd, Failure> {
        for member in &self.members {
            // A thread that has ended without an order says why below.
            let _ = member.orders.send(Order::Close);
        }
        let mut all: Option<Crowd> = None;
        for member in self.members {
            let crowd = member.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            match (&mut all, crowd) {
                (None, crowd) => all = crowd,
                (Some(all), Some(crowd)) => all.add(&crowd),
                (Some(_), None) => {}
            }
        }
        let all = all.unwrap_or_else(|| unreachable!("a load has a thread, which was told to close"));
        all.ledger.settled()?;
        Ok(all)
    }
}

/// Which clients of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    /// All.
    Everybody,
    /// Those who are not of the control group.
    Others,
}

impl Who {
    /// Their connections.
    pub(crate) fn of(self, crowd: &Crowd) -> std::ops::Range<u32> {
        match self {
            Who::Everybody => 0..crowd.connections(),
            Who::Others => crowd.attentive()..crowd.connections(),
        }
    }
}
