//! The store's thread: takes mail, sends batches, gives answers. Nothing in here waits for one server while another
//! could go on.

use crate::journey::Road;
use crate::known::{Ends, Known};
use crate::lanes::{Batch, Lanes, Server, Subject, Waiting};
use crate::owed::Owed;
use crate::{Settings, group, script};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use trunkline_router::redis::{Batches, Call, Outcome, PlaneError, StoreSync, Value};
use trunkline_store::{Answer, GroupAsk, GroupReply, Opened, Refusal, Reply, Request, Source, Stats, StoreMail};

/// Requests and bytes taken out of the mailbox at a time.
const TAKE_REQUESTS_MAX: usize = 8_192;
const TAKE_BYTES_MAX: usize = 4 << 20;
/// Bytes that may wait for servers that take what waits for them; beyond it the mailbox fills, which tells senders.
/// What waits for others does not count: their lanes are bounded each for itself.
const WAITING_BYTES_MAX: usize = 24 << 20;
/// Joins, leaves and questions for the groups of a user that are under way or wait; further ones are refused. A part of
/// it is for the questions, so that many who join keep nobody from logging in.
const JOURNEYS_MAX: usize = 16_384;
const JOINS_MAX: usize = JOURNEYS_MAX / 4 * 3;
/// Of those that wait for one another, because they are about one user and one group.
const QUEUE_MAX: usize = 64;
/// How often a server that failed is tried, and what is owed to it is sent.
const PROBE: Duration = Duration::from_secs(1);
/// The key with the number of this store, so that what a client keeps of another one is not taken for this one's.
const EPOCH_KEY: &str = "tl:store";

/// What is wrong while Redis takes nothing more.
const NO_MEMORY: &str = "Redis has reached its maxmemory: what would be stored gets SENT 5";

/// Hands the answers for a source back.
pub(crate) type Answers = Box<dyn FnMut(Source, Vec<Answer>) + Send>;

/// What a batch has come to, and how long it took; with the task that it was.
type Done = Result<(Id, (Vec<Outcome>, Duration)), JoinError>;

/// Something about a group and a user that waits for the one before it about both.
struct Journey {
    source: Source,
    view: u64,
    group: u64,
    ask: Box<GroupAsk>,
    token: Option<u64>,
}

/// Whose one is that is under way, what it is about, and as what it was asked.
type Traveller = (Source, (u64, u64), Option<u64>);

/// The answer of one that is over, and what went wrong; with the task that it was.
type Arrived = Result<(Id, (Reply, Option<String>)), JoinError>;

/// What the thread works with.
pub(crate) struct Work {
    settings: Settings,
    mail: Arc<StoreMail>,
    stats: Arc<Stats>,
    answers: Answers,
    batches: Arc<Batches>,
    sync: StoreSync,
    /// Number of this store; 0 until Redis has said it.
    epoch: u64,
    lanes: Lanes,
    /// The view of each source.
    views: HashMap<Source, u64>,
    /// Batches under way. What they are is not in their tasks, so that each is answered even if a task fails.
    running: JoinSet<(Vec<Outcome>, Duration)>,
    under_way: HashMap<Id, (Server, Batch)>,
    road: Arc<Road>,
    /// Likewise, with whose each is, what it is about, and as what it was asked.
    travelling: JoinSet<(Reply, Option<String>)>,
    travellers: HashMap<Id, Traveller>,
    /// What waits for one that is under way, by group and user.
    journeys: HashMap<(u64, u64), VecDeque<Journey>>,
    journeys_waiting: usize,
    /// Servers that failed last, with one of their users, and what they said.
    failing: HashMap<Server, (Subject, String)>,
    /// What nobody is answered for, and Redis has not got.
    owed: Owed,
    /// Where logs of groups end.
    known: Known,
    next_probe: Instant,
    wake: Arc<Notify>,
}

impl Work {
    pub(crate) fn new(settings: Settings, mail: Arc<StoreMail>, stats: Arc<Stats>, answers: Answers) -> Self {
        let slow = settings.sync == Some(StoreSync::Aof);
        let batches = Arc::new(Batches::unconnected(&settings.redis, script::SOURCE, slow));
        let road = Arc::new(Road::new(batches.clone(), &settings));
        Work {
            sync: settings.sync.unwrap_or(StoreSync::Replica),
            settings,
            mail,
            stats,
            answers,
            batches,
            epoch: 0,
            lanes: Lanes::default(),
            views: HashMap::new(),
            running: JoinSet::new(),
            under_way: HashMap::new(),
            road,
            travelling: JoinSet::new(),
            travellers: HashMap::new(),
            journeys: HashMap::new(),
            journeys_waiting: 0,
            failing: HashMap::new(),
            owed: Owed::default(),
            known: Known::default(),
            next_probe: Instant::now() + PROBE,
            wake: Arc::new(Notify::new()),
        }
    }

    pub(crate) async fn run(mut self) {
        let wake = self.wake.clone();
        self.mail.set_reader(move || wake.notify_one());
        self.connect().await;
        let mut taken: Vec<(Source, Request)> = Vec::new();
        let mut is_last_try = false;
        loop {
            if self.lanes.moving_bytes() < WAITING_BYTES_MAX {
                self.mail.take(&mut taken, TAKE_REQUESTS_MAX, TAKE_BYTES_MAX);
            }
            let took = !taken.is_empty();
            for (source, request) in taken.drain(..) {
                self.accept(source, request);
            }
            self.launch();
            while let Some(done) = self.running.try_join_next_with_id() {
                self.finish(done);
                self.launch();
            }
            while let Some(arrived) = self.travelling.try_join_next_with_id() {
                self.arrive(arrived);
            }
            if self.next_probe <= Instant::now() {
                self.probe();
            }
            let rests = self.running.is_empty() && self.travelling.is_empty() && self.lanes.is_empty();
            if self.mail.is_closed() && !took && rests {
                if self.mail.is_drained() {
                    if self.owed.len() == 0 || std::mem::replace(&mut is_last_try, true) {
                        break;
                    }
                    self.probe();
                    continue;
                }
                // A sender is between counting its request and sending it.
                tokio::task::yield_now().await;
            }
            self.rest().await;
        }
        if self.owed.len() > 0 {
            tracing::warn!("{} positions, read marks and LOGOUTs are lost: Redis has not got them", self.owed.len());
        }
        self.stats.available.store(false, Ordering::Relaxed);
        self.batches.close();
    }

    /// Waits until there is something to do, or lets the connections work if there is already.
    async fn rest(&mut self) {
        let full = self.lanes.moving_bytes() >= WAITING_BYTES_MAX;
        let sleeps = full || self.mail.may_sleep();
        if !sleeps {
            return tokio::task::yield_now().await;
        }
        let (wake, probe) = (self.wake.clone(), tokio::time::Instant::from_std(self.next_probe));
        let (done, arrived) = tokio::select! {
            done = self.running.join_next_with_id(), if !self.running.is_empty() => (done, None),
            arrived = self.travelling.join_next_with_id(), if !self.travelling.is_empty() => (None, arrived),
            () = wake.notified(), if !full => (None, None),
            () = tokio::time::sleep_until(probe) => (None, None),
        };
        self.mail.awake();
        if let Some(done) = done {
            self.finish(done);
        }
        if let Some(arrived) = arrived {
            self.arrive(arrived);
        }
    }

    /// Connects, and learns the store's number. Whoever asks meanwhile is refused.
    async fn connect(&mut self) {
        let batches = self.batches.clone();
        let (stats, wanted) = (self.stats.clone(), self.settings.sync);
        let connecting = async move {
            loop {
                batches.connect(|error| stats.set_trouble(Some(error.to_string()))).await;
                let sync = wanted.unwrap_or(match batches.fewest_replicas() {
                    0 => StoreSync::Master,
                    _ => StoreSync::Replica,
                });
                match ready(&batches, sync).await {
                    Ok(epoch) => return (sync, epoch),
                    Err(why) => {
                        stats.set_trouble(Some(why));
                        tokio::time::sleep(PROBE).await;
                    }
                }
            }
        };
        let mut connecting = std::pin::pin!(connecting);
        let mut taken = Vec::new();
        loop {
            self.mail.take(&mut taken, TAKE_REQUESTS_MAX, TAKE_BYTES_MAX);
            for (source, request) in taken.drain(..) {
                self.turn_down(source, request);
            }
            if self.mail.is_closed() {
                return;
            }
            let (wake, sleeps) = (self.wake.clone(), self.mail.may_sleep());
            let mail_comes = async { if sleeps { wake.notified().await } else { tokio::task::yield_now().await } };
            let connected = tokio::select! {
                biased;
                connected = &mut connecting => Some(connected),
                () = mail_comes => None,
            };
            self.mail.awake();
            if let Some((sync, epoch)) = connected {
                self.epoch = epoch;
                self.set_sync(sync);
                self.stats.set_trouble(None);
                self.stats.available.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    fn set_sync(&mut self, sync: StoreSync) {
        self.sync = sync;
        let (number, is_makeshift) = match sync {
            StoreSync::Master => (1, self.settings.sync.is_none()),
            StoreSync::Replica => (2, false),
            StoreSync::Aof => (3, false),
        };
        Stats::set(&self.stats.sync, number);
        self.stats.sync_is_makeshift.store(is_makeshift, Ordering::Relaxed);
        tracing::info!("messages for users who are offline are kept in Redis: {}", promise(sync));
    }

    /// Where nobody has said what is to be promised: once all masters have a replica, messages wait for one. That is
    /// not given up when a replica is lost: a message is then refused, and not stored in one place only without a word.
    fn look_for_replicas(&mut self, fewest: u8) {
        if self.settings.sync.is_none() && self.sync == StoreSync::Master && self.epoch != 0 && fewest > 0 {
            self.set_sync(StoreSync::Replica);
        }
    }

    /// What came while there is no connection, or no room for it.
    fn turn_down(&mut self, source: Source, request: Request) {
        match request {
            Request::View { epoch } => drop(self.views.insert(source, epoch)),
            request if self.owed.keep(&request, &self.stats) => {}
            request => {
                let token = request.token();
                self.refuse(source, token, Refusal::Unavailable);
            }
        }
    }

    fn refuse(&mut self, source: Source, token: Option<u64>, refusal: Refusal) {
        self.stats.refuse(refusal);
        if let Some(token) = token {
            (self.answers)(source, vec![Answer { token, reply: Reply::Refused(refusal) }]);
        }
    }

    fn server_of(&self, subject: Subject) -> Server {
        match subject {
            Subject::User(user) => self.batches.server_of(&script::keys(user)[0]),
            Subject::Group(group) => self.batches.server_of(&group::keys(group)[0]),
        }
    }

    /// What is about a group and the list of a user's groups. It waits for what is under way about both.
    fn set_out(&mut self, journey: Journey) {
        let most = if matches!(*journey.ask, GroupAsk::Of { .. }) { JOURNEYS_MAX } else { JOINS_MAX };
        if self.journeys_waiting + self.travelling.len() >= most {
            return self.refuse(journey.source, journey.token, Refusal::Unavailable);
        }
        let user = match *journey.ask {
            GroupAsk::Join { user, .. } | GroupAsk::Leave { user } | GroupAsk::Of { user } => user,
            _ => 0,
        };
        let key = (journey.group, user);
        match self.journeys.get_mut(&key) {
            Some(waiting) if waiting.len() >= QUEUE_MAX => {
                self.refuse(journey.source, journey.token, Refusal::Unavailable);
            }
            Some(waiting) => {
                waiting.push_back(journey);
                self.journeys_waiting += 1;
            }
            None => {
                self.journeys.insert(key, VecDeque::new());
                self.travel(key, journey);
            }
        }
    }

    fn travel(&mut self, key: (u64, u64), journey: Journey) {
        let (road, sync) = (self.road.clone(), self.sync);
        let Journey { source, view, group, ask, token } = journey;
        let task = self.travelling.spawn(async move { road.travel(group, &ask, view, sync).await });
        self.travellers.insert(task.id(), (source, key, token));
    }

    /// Something about a group and a user is over: its answer goes back, and the next one about both begins.
    fn arrive(&mut self, arrived: Arrived) {
        let (task, (reply, trouble)) = arrived
            .unwrap_or_else(|error| (error.id(), (Reply::Refused(Refusal::Unavailable), Some(error.to_string()))));
        let Some((source, key, token)) = self.travellers.remove(&task) else { return };
        if trouble.is_some() {
            Stats::add(&self.stats.commit_failures, 1);
        }
        if let Reply::Refused(refusal) = &reply {
            self.stats.refuse(*refusal);
        }
        if let Some(token) = token {
            (self.answers)(source, vec![Answer { token, reply }]);
        }
        match self.journeys.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(next) => {
                self.journeys_waiting -= 1;
                self.travel(key, next);
            }
            None => drop(self.journeys.remove(&key)),
        }
    }

    fn accept(&mut self, source: Source, request: Request) {
        if let Request::View { epoch } = request {
            self.views.insert(source, epoch);
            return;
        }
        let view = self.views.get(&source).copied().unwrap_or(0);
        let payload = match &request {
            Request::Append { record, .. } => record.payload.len(),
            Request::Group { ask, .. } if let GroupAsk::Append { record, .. } = &**ask => record.payload.len(),
            _ => 0,
        };
        if payload > self.settings.limits.payload_bytes_max as usize {
            return self.refuse(source, request.token(), Refusal::TooLong);
        }
        let request = match request {
            Request::Group { group, ask, token }
                if matches!(*ask, GroupAsk::Join { .. } | GroupAsk::Leave { .. } | GroupAsk::Of { .. }) =>
            {
                return self.set_out(Journey { source, view, group, ask, token });
            }
            request => request,
        };
        let server = self.server_of(Subject::of(&request));
        if let Err(back) = self.lanes.put(server, Waiting { source, view, request }) {
            self.turn_down(source, back.request);
        }
    }

    /// The next batch for a server. Before each login is the LOGOUT of its device that Redis has not got, which may
    /// have been under way when the login came.
    fn next_batch(&mut self, server: &Server) -> Batch {
        let mut batch = self.lanes.take(server);
        for (_, requests) in &mut batch {
            let mut at = 0;
            while at < requests.len() {
                let log_out = match &requests[at].request {
                    Request::Open { user, device, .. } => self.owed.take_log_out(*user, device),
                    _ => None,
                };
                if let Some(request) = log_out {
                    requests.insert(at, Waiting { source: Source::MAX, view: 0, request });
                    at += 1;
                }
                at += 1;
            }
        }
        batch
    }

    /// Sends a batch to every server that has none under way.
    fn launch(&mut self) {
        for server in self.lanes.ready() {
            let batch = self.next_batch(&server);
            let limits = &self.settings.limits;
            let preamble = script::preamble(limits, self.settings.time_ms(), script::ttl_ms(limits));
            let call = |(subject, requests): &(Subject, Vec<Waiting>)| -> Call {
                let user = match subject {
                    Subject::User(user) => user,
                    Subject::Group(group) => return self.group_call(*group, requests),
                };
                let mut args: Vec<Value> = Vec::with_capacity(preamble.len() + 5 * requests.len());
                args.extend(preamble.iter().cloned());
                for waiting in requests {
                    script::put(&mut args, &waiting.request, waiting.view, limits);
                }
                let [log, meta] = script::keys(*user);
                self.batches.call([&log, &meta], args)
            };
            let calls: Vec<Call> = batch.iter().map(call).collect();
            let (batches, sync) = (self.batches.clone(), self.sync);
            let task = self.running.spawn(async move {
                let began = Instant::now();
                let outcomes = batches.run(&calls, sync).await;
                (outcomes, began.elapsed())
            });
            self.under_way.insert(task.id(), (server, batch));
        }
    }

    fn group_call(&self, group: u64, requests: &[Waiting]) -> Call {
        let mut words = Vec::with_capacity(3 + 6 * requests.len());
        if let Some(known) = self.known.of(group) {
            group::put_known(&mut words, known);
        }
        for waiting in requests {
            if let Request::Group { ask, .. } = &waiting.request {
                group::put(&mut words, ask, waiting.view, &self.settings.limits);
            }
        }
        self.road.words_call(group, words)
    }

    /// A batch is over: its answers go back.
    fn finish(&mut self, done: Done) {
        let (task, (outcomes, took), failed) = match done {
            Ok((task, done)) => (task, done, None),
            Err(error) => (error.id(), Default::default(), Some(error.to_string())),
        };
        let Some((server, batch)) = self.under_way.remove(&task) else { return };
        self.lanes.done(&server);
        let mut outcomes = outcomes.into_iter();
        let mut answers: BTreeMap<Source, Vec<Answer>> = BTreeMap::new();
        let mut trouble: Option<(Subject, String)> = None;
        for (subject, requests) in batch {
            // A call that nobody has said anything about is one whose end nobody knows.
            let unknown =
                || Err(PlaneError::Redis { detail: failed.clone().unwrap_or_else(|| "no answer".to_owned()) });
            let outcome = outcomes.next().unwrap_or_else(unknown);
            let why = self.settle(subject, requests, outcome, &mut answers);
            if let Some(why) = why {
                trouble.get_or_insert((subject, why));
            }
        }
        match trouble {
            Some(trouble) => {
                Stats::add(&self.stats.commit_failures, 1);
                self.failing.insert(server, trouble);
            }
            None => {
                self.stats.committed(took.as_micros() as u64);
                self.failing.remove(&server);
            }
        }
        self.tell_health();
        for (source, batch) in answers {
            (self.answers)(source, batch);
        }
    }

    /// Answers the requests of one call. Returns what went wrong with it.
    fn settle(
        &mut self,
        subject: Subject,
        requests: Vec<Waiting>,
        outcome: Outcome,
        answers: &mut BTreeMap<Source, Vec<Answer>>,
    ) -> Option<String> {
        let (answered, confirmed, why) = match outcome {
            Ok((value, confirmed)) => match self.read(subject, value, confirmed) {
                Some(answered) if answered.replies.len() == requests.len() => {
                    let unconfirmed = answered.wrote && !confirmed;
                    let why = unconfirmed.then(|| "too few replicas have what was written".to_owned());
                    (Some(answered), !unconfirmed, why)
                }
                _ => (None, false, Some("an answer that makes no sense".to_owned())),
            },
            Err(error) => (None, false, Some(error.to_string())),
        };
        // Redis refuses what needs memory before it has done anything.
        let is_full = why.as_ref().is_some_and(|why| why.contains("OOM command not allowed"));
        let refusal = if is_full { Refusal::StoreFull } else { Refusal::Unavailable };
        if let Some(answered) = &answered {
            let [acknowledged, expired, dropped, forgotten, stale] = answered.counts;
            Stats::add(&self.stats.acknowledged, acknowledged);
            Stats::add(&self.stats.expired, expired);
            Stats::add(&self.stats.dropped_oldest, dropped);
            Stats::add(&self.stats.devices_forgotten, forgotten);
            Stats::add(&self.stats.cursors_stale, stale);
        }
        let replies = answered.map(|answered| answered.replies).unwrap_or_default();
        let lacks_memory = replies.iter().any(|reply| matches!(reply, Some(Reply::Refused(Refusal::StoreFull))));
        let mut replies = replies.into_iter();
        for Waiting { source, request, .. } in requests {
            let reply = replies.next().flatten();
            if why.is_some() {
                self.owed.keep(&request, &self.stats);
            }
            let Some(token) = request.token() else { continue };
            let reply = self.judged(&request, reply, confirmed, refusal);
            answers.entry(source).or_default().push(Answer { token, reply });
        }
        // What was not to be added has been carried out.
        why.or_else(|| lacks_memory.then(|| NO_MEMORY.to_owned()))
    }

    /// Reads the answer to a call, and notes where the log of a group ends.
    fn read(&mut self, subject: Subject, value: Value, confirmed: bool) -> Option<script::Answered> {
        let group = match subject {
            Subject::User(_) => return script::read(value, self.epoch),
            Subject::Group(group) => group,
        };
        let group::Answered { wrote, counts: [expired, dropped], replies, passed } =
            group::read(value, group, (self.settings.clock)())?;
        let mut told = Ends { stored: 0, passed };
        for reply in replies.iter().flatten() {
            let Reply::Group(reply) = reply else { continue };
            match **reply {
                GroupReply::Stored { stamp, .. } | GroupReply::Claimed { last: stamp } if confirmed => {
                    told.stored = told.stored.max(stamp);
                }
                GroupReply::Deleted { .. } => {
                    told = Ends::default();
                    self.known.forget(group);
                }
                _ => {}
            }
        }
        self.known.note(group, told);
        Some(script::Answered { wrote, counts: [0, expired, dropped, 0, 0], replies })
    }

    /// What a request comes to, and its count.
    fn judged(&self, request: &Request, reply: Option<Reply>, confirmed: bool, refusal: Refusal) -> Reply {
        let stats = &self.stats;
        let claims = matches!(request, Request::Open { claims: true, .. } | Request::Inspect { claims: true, .. });
        let reply = match reply {
            // Another home may add to the log unseen until the claim holds: nobody knows where the log ends.
            Some(Reply::Inspected(_)) if claims && !confirmed => Reply::Refused(refusal),
            Some(Reply::Opened(opened)) if opened.known && claims => {
                Reply::Opened(Opened { unsure_claim: !confirmed, ..opened })
            }
            // What was only looked at needs no replica.
            Some(reply @ (Reply::Page(_) | Reply::Devices(_) | Reply::Inspected(_) | Reply::Refused(_))) => reply,
            Some(Reply::Opened(opened)) if opened.known => Reply::Opened(opened),
            Some(Reply::Group(reply)) if is_look(&reply) => Reply::Group(reply),
            Some(reply) if confirmed => reply,
            _ => Reply::Refused(refusal),
        };
        match (&reply, request) {
            (Reply::Stored { duplicate: true, .. }, _) => Stats::add(&stats.duplicates, 1),
            (Reply::Stored { .. }, Request::Append { record, .. }) => {
                Stats::add(&stats.appends, 1);
                Stats::add(&stats.append_bytes, record.payload.len() as u64);
            }
            (Reply::Page(page), _) => Stats::add(&stats.read, page.records.len() as u64),
            (Reply::Refused(refusal), _) => stats.refuse(*refusal),
            _ => {}
        }
        reply
    }

    fn tell_health(&self) {
        let trouble = self.failing.values().next().map(|(_, why)| why.clone());
        self.stats.available.store(trouble.is_none(), Ordering::Relaxed);
        self.stats.set_trouble(trouble);
    }

    /// Tries the servers that failed with something small, and asks again for what is owed.
    fn probe(&mut self) {
        self.next_probe = Instant::now() + PROBE;
        self.look_for_replicas(self.batches.fewest_replicas());
        let failing: Vec<(Server, Subject)> =
            self.failing.drain().map(|(server, (subject, _))| (server, subject)).collect();
        for (_, subject) in &failing {
            // A claim of no view writes what is there already, so that replicas are asked for it.
            let request = match *subject {
                Subject::User(user) => Request::Claim { user },
                Subject::Group(group) => Request::Group { group, ask: Box::new(GroupAsk::Claim), token: None },
            };
            let waiting = Waiting { source: Source::MAX, view: 0, request };
            // Where there is no room for it what waits is as good a look.
            let _ = self.lanes.put(self.server_of(*subject), waiting);
        }
        for request in self.owed.take() {
            let server = self.server_of(Subject::of(&request));
            let is_log_out = matches!(request, Request::LogOut { .. });
            let waiting = Waiting { source: Source::MAX, view: 0, request };
            // It was asked for before any login that waits.
            match is_log_out {
                true => self.lanes.put_first(server, waiting),
                false => {
                    if let Err(back) = self.lanes.put(server, waiting) {
                        self.owed.keep(&back.request, &self.stats);
                    }
                }
            }
        }
        self.launch();
        // Until the answer comes what was known holds.
        for (server, subject) in failing {
            let why = self.stats.trouble().unwrap_or_default();
            if !self.lanes.is_idle(&server) {
                self.failing.insert(server, (subject, why));
            }
        }
        if self.failing.is_empty() && self.running.is_empty() {
            self.tell_health();
        }
    }
}

/// Whether nothing was written for it, so that it needs no replica.
fn is_look(reply: &GroupReply) -> bool {
    matches!(
        reply,
        GroupReply::Admitted { .. }
            | GroupReply::Denied(_)
            | GroupReply::Info(_)
            | GroupReply::Members { .. }
            | GroupReply::Page { .. }
            | GroupReply::Reads { .. }
            | GroupReply::Of(_)
            | GroupReply::OfSome(_)
    )
}

/// Whether the cluster can do what is asked of it; then the number of the store.
async fn ready(batches: &Batches, sync: StoreSync) -> Result<u64, String> {
    if let Some(why) = batches.why_not(sync).await {
        return Err(why);
    }
    let of_command = |error: PlaneError| error.to_string();
    let drawn = rand::random_range(1..u64::MAX).to_string();
    let mut epoch = batches.command("GET", vec![EPOCH_KEY.into()]).await.map_err(of_command)?;
    if epoch.is_null() {
        // A Redis without memory takes none, and has it from before.
        let args = vec![EPOCH_KEY.into(), drawn.into(), "NX".into()];
        batches.command("SET", args).await.map_err(of_command)?;
        epoch = batches.command("GET", vec![EPOCH_KEY.into()]).await.map_err(of_command)?;
    }
    let epoch = epoch.as_string().and_then(|text| text.parse().ok());
    epoch.ok_or_else(|| format!("{EPOCH_KEY} in Redis holds no number"))
}

/// What is promised, and what is lost all the same.
fn promise(sync: StoreSync) -> &'static str {
    match sync {
        StoreSync::Master => {
            "SENT 1 once the master has it (store_sync = master). What is not replicated yet is LOST with a master that \
             ends; give each master a replica for store_sync = replica"
        }
        StoreSync::Replica => {
            "SENT 1 once a replica has it too, or two where there are two (store_sync = replica). It is lost if the \
             master and all of these end before one of them has written it to disk"
        }
        StoreSync::Aof => {
            "SENT 1 once it is in the append-only files of the master and of a replica, or two where there are two \
             (store_sync = aof). It is lost if all of these disks are"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use trunkline_router::redis::RedisConfig;
    use trunkline_store::{Limits, Record};

    /// A store that has never been connected, and the answers it gives.
    fn work() -> (Work, std::sync::mpsc::Receiver<(Source, Vec<Answer>)>) {
        let settings = Settings {
            redis: RedisConfig::parse("redis-cluster://127.0.0.1:1").unwrap(),
            sync: None,
            limits: Limits::default(),
            groups: crate::GroupBounds::default(),
            clock: Arc::new(|| 1_800_000_000_000),
            time: None,
        };
        let (sender, answers) = channel();
        let give = move |source, batch| drop(sender.send((source, batch)));
        let mail = StoreMail::new(StoreMail::BYTES_MAX);
        (Work::new(settings, mail, Arc::default(), Box::new(give)), answers)
    }

    fn append(token: u64) -> Request {
        let record = Record { stamp: 1, from: 1, id: token, flags: 0, payload: Arc::from([0; 8]) };
        Request::Append { user: 7, record, retry: None, token }
    }

    const REFUSED: Reply = Reply::Refused(Refusal::Unavailable);

    #[test]
    fn every_request_of_a_batch_has_one_answer_though_its_task_or_a_part_of_it_failed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut work, answers) = work();
            let device = Request::Cursor { user: 7, device: 1, device_epoch: 9, stamp: 5 };
            let log_out = Request::LogOut { user: 7, device: "p".into(), number: 6 };
            for request in [append(1), device.clone(), log_out.clone(), append(2)] {
                work.accept(3, request);
            }
            let batch = work.lanes.take(&None);
            let task = work.running.spawn(async { panic!("for the test") });
            work.under_way.insert(task.id(), (None, batch));
            let done = work.running.join_next_with_id().await.unwrap();
            assert!(done.is_err());
            work.finish(done);
            let told = |token| Answer { token, reply: REFUSED };
            assert_eq!(answers.try_recv(), Ok((3, vec![told(1), told(2)])));
            assert_eq!(work.owed.take(), [log_out, device], "they are told when Redis is back");
            assert!(work.lanes.is_idle(&None), "the server has its next batch");

            // The same if there are fewer answers than calls.
            work.accept(3, append(3));
            let batch = work.lanes.take(&None);
            let task = work.running.spawn(async { (Vec::new(), Duration::ZERO) });
            work.under_way.insert(task.id(), (None, batch));
            let done = work.running.join_next_with_id().await.unwrap();
            work.finish(done);
            assert_eq!(answers.try_recv(), Ok((3, vec![told(3)])));
            assert!(answers.try_recv().is_err() && work.under_way.is_empty());
        });
    }

    #[test]
    fn a_redis_without_memory_refuses_what_is_added_and_does_the_rest() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut work, answers) = work();
            let device = Request::Cursor { user: 7, device: 1, device_epoch: 9, stamp: 5 };
            let inspect = Request::Inspect { user: 7, claims: true, token: 2 };
            for request in [append(1), device, inspect] {
                work.accept(3, request);
            }
            let batch = work.lanes.take(&None);
            let words = |words: &[&str]| Value::Array(words.iter().map(|word| Value::from(*word)).collect());
            let replies = [words(&["oom"]), words(&["none"]), words(&["inspected", "0", "0", "5-0", "5-0", "1"])];
            let mut answer: Vec<Value> = [1, 4, 0, 0, 0, 0].map(Value::Integer).into();
            answer.push(Value::Array(replies.into()));
            let task = work.running.spawn(async { (vec![Ok((Value::Array(answer), true))], Duration::ZERO) });
            work.under_way.insert(task.id(), (None, batch));
            let done = work.running.join_next_with_id().await.unwrap();
            work.finish(done);
            let (source, told) = answers.try_recv().unwrap();
            assert_eq!((source, told.len()), (3, 2));
            assert_eq!(told[0].reply, Reply::Refused(Refusal::StoreFull));
            assert!(matches!(told[1].reply, Reply::Inspected(_)), "{told:?}");
            assert_eq!((work.owed.len(), work.stats.acknowledged.load(Ordering::Relaxed)), (0, 4));
            assert!(!work.stats.is_available() && work.stats.trouble().is_some_and(|why| why.contains("maxmemory")));
        });
    }

    #[test]
    fn a_logout_that_redis_has_not_got_comes_before_the_next_login_of_the_device() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut work, _answers) = work();
            let log_out = Request::LogOut { user: 7, device: "p".into(), number: 6 };
            work.turn_down(3, log_out.clone());
            let open = |token| Request::Open { user: 7, device: "p".into(), ephemeral: false, claims: false, token };
            for token in [1, 2] {
                work.accept(3, open(token));
            }
            let asked =
                |batch: &Batch| -> Vec<Request> { batch[0].1.iter().map(|waiting| waiting.request.clone()).collect() };
            let batch = work.next_batch(&None);
            assert_eq!(asked(&batch), [log_out.clone(), open(1), open(2)]);
            assert_eq!(work.owed.len(), 0);
            work.lanes.done(&None);

            // The login comes while the LOGOUT is under way, in a batch that fails.
            work.accept(3, log_out.clone());
            let batch = work.next_batch(&None);
            work.accept(3, open(3));
            let unknown = Err(PlaneError::Redis { detail: "no answer".to_owned() });
            let (subject, requests) = batch.into_iter().next().unwrap();
            assert!(work.settle(subject, requests, unknown, &mut BTreeMap::new()).is_some());
            work.lanes.done(&None);
            let batch = work.next_batch(&None);
            assert_eq!(asked(&batch), [log_out.clone(), open(3)]);
            work.lanes.done(&None);

            // So it is if what is owed is asked for again before the login that waits has its turn.
            work.accept(3, append(4));
            work.next_batch(&None);
            work.turn_down(3, log_out.clone());
            work.accept(3, open(5));
            work.probe();
            work.lanes.done(&None);
            let batch = work.next_batch(&None);
            assert_eq!(asked(&batch), [log_out, open(5)]);
            assert_eq!(work.owed.len(), 0);
        });
    }

    #[test]
    fn a_store_that_found_a_master_without_a_replica_asks_for_one_when_all_have_one_and_ever_after() {
        let (mut work, _answers) = work();
        let shown = |work: &Work| {
            let Stats { sync, sync_is_makeshift, .. } = &*work.stats;
            (sync.load(Ordering::Relaxed), sync_is_makeshift.load(Ordering::Relaxed))
        };
        (work.epoch, work.settings.sync) = (1, None);
        work.set_sync(StoreSync::Master);
        work.look_for_replicas(0);
        assert_eq!((work.sync, shown(&work)), (StoreSync::Master, (1, true)));
        work.look_for_replicas(1);
        work.look_for_replicas(0);
        assert_eq!((work.sync, shown(&work)), (StoreSync::Replica, (2, false)));
        // Who asks for the master alone gets that.
        work.settings.sync = Some(StoreSync::Master);
        work.set_sync(StoreSync::Master);
        work.look_for_replicas(1);
        assert_eq!((work.sync, shown(&work)), (StoreSync::Master, (1, false)));
    }

    #[test]
    fn one_group_of_one_user_takes_no_room_from_others_and_joins_none_from_logins() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut work, answers) = work();
            let leave = |group, user| (group, Box::new(GroupAsk::Leave { user }));
            let send = |work: &mut Work, (group, ask), token| {
                work.accept(3, Request::Group { group, ask, token: Some(token) });
            };
            let refused = || answers.try_iter().map(|(_, batch)| batch.len()).sum::<usize>();
            (0..100).for_each(|token| send(&mut work, leave(5, 7), token));
            assert_eq!((refused(), work.journeys_waiting), (100 - 1 - QUEUE_MAX, QUEUE_MAX));
            (0..JOURNEYS_MAX as u64).for_each(|user| send(&mut work, leave(6, user), user));
            assert_eq!(refused(), JOURNEYS_MAX - (JOINS_MAX - 1 - QUEUE_MAX));
            send(&mut work, (0, Box::new(GroupAsk::Of { user: 9 })), 1);
            assert_eq!(refused(), 0);
        });
    }

    #[test]
    fn what_finds_no_room_at_a_hung_server_is_refused_or_owed_and_others_are_served() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let (mut work, answers) = work();
        let record = |bytes| Record { stamp: 1, from: 1, id: 1, flags: 0, payload: Arc::from(vec![0; bytes]) };
        while work.lanes.bytes() < 7 << 20 {
            let record = record(work.settings.limits.payload_bytes_max as usize);
            work.accept(3, Request::Append { user: 7, record, retry: None, token: 1 });
        }
        assert_eq!(work.lanes.moving_bytes(), 0, "the mail of others is taken");
        let mut sent = 0;
        while answers.try_recv().is_err() {
            sent += 1;
            work.accept(3, Request::Devices { user: 7, token: 2 });
            assert!(sent < 1_000_000);
        }
        work.accept(3, Request::Cursor { user: 7, device: 1, device_epoch: 9, stamp: 5 });
        assert_eq!(work.owed.len(), 1);
        work.probe();
        assert_eq!(work.owed.len(), 1, "it is kept until there is room");
    }

    #[test]
    fn a_join_whose_task_failed_has_its_answer_and_the_next_one_begins() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut work, answers) = work();
            let task = work.travelling.spawn(async { panic!("for the test") });
            work.travellers.insert(task.id(), (3, (5, 7), Some(1)));
            work.journeys.insert((5, 7), VecDeque::new());
            let ask = Box::new(GroupAsk::Leave { user: 7 });
            work.accept(3, Request::Group { group: 5, ask, token: Some(2) });
            assert_eq!((work.journeys_waiting, work.travelling.len()), (1, 1));
            for token in [1, 2] {
                let arrived = work.travelling.join_next_with_id().await.unwrap();
                work.arrive(arrived);
                assert_eq!(answers.try_recv(), Ok((3, vec![Answer { token, reply: REFUSED }])));
            }
            assert!(work.journeys.is_empty() && work.travellers.is_empty() && work.journeys_waiting == 0);
        });
    }
}
