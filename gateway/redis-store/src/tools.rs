//! What an operator does with the store: a copy of everything, and its way back.

use crate::journey::Road;
use crate::lanes::Subject;
use crate::part::Part;
use crate::script;
use crate::{GroupBounds, Settings};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trunkline_router::redis::{Batches, Call, PlaneError, StoreSync, Value};
use trunkline_store::{Checked, CopyLine, GroupCopy, Imported, Limits, Page, Record, Reply, Request, UserCopy};

/// Messages that are read at a time.
const PAGE: usize = 256;
/// What a call may take: on a machine that is busy more than a node could wait.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// For how long what Redis did not do is asked for again, and the pause before that.
const TRIED_FOR: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// Who asks is no home. A view would be claimed, and homes of earlier ones could write no more.
const NOBODYS_VIEW: u64 = 0;

/// The store, for those who do not serve.
#[derive(Debug)]
pub struct Tool {
    pub(crate) batches: Arc<Batches>,
    pub(crate) settings: Settings,
    pub(crate) sync: StoreSync,
    /// What is asked of groups.
    pub(crate) road: Road,
    /// After which time keys end that this has written.
    ttl_ms: u64,
}

/// Why it did not work.
#[derive(Debug)]
pub enum ToolError {
    /// Redis did not do it.
    Redis(PlaneError),
    /// An answer, or something that is stored, makes no sense.
    Garbage(u64),
    /// The same of a group.
    Group(u64),
    /// Too few replicas have what was written.
    Unconfirmed,
    /// What takes several calls did not come to its end, for that reason.
    Undone(String),
    /// What is read or written cannot be.
    Io(io::Error),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::Redis(error) => write!(f, "{error}"),
            ToolError::Garbage(user) => write!(f, "what Redis has of user {user} makes no sense"),
            ToolError::Group(group) => write!(f, "what Redis has of group {group} makes no sense"),
            ToolError::Undone(why) => write!(f, "{why}"),
            ToolError::Io(error) => write!(f, "{error}"),
            ToolError::Unconfirmed => write!(f, "too few replicas have what was written: try again when they are well"),
        }
    }
}

impl std::error::Error for ToolError {}

impl ToolError {
    /// Whether it passes by itself: a server that is late, a master that is replaced, replicas that are behind.
    fn may_pass(&self) -> bool {
        let replaced = ["LOADING", "READONLY", "TRYAGAIN", "MASTERDOWN", "BUSY "];
        match self {
            ToolError::Redis(PlaneError::Redis { detail }) => replaced.iter().any(|word| detail.starts_with(word)),
            ToolError::Redis(error) => matches!(
                error,
                PlaneError::TimedOut { .. }
                    | PlaneError::Unreachable { .. }
                    | PlaneError::ClusterDown { .. }
                    | PlaneError::Busy
            ),
            ToolError::Unconfirmed | ToolError::Undone(_) => true,
            ToolError::Garbage(_) | ToolError::Group(_) | ToolError::Io(_) => false,
        }
    }
}

/// What is asked for again until it is done.
#[derive(Debug)]
pub(crate) struct Tries(Instant);

impl Tries {
    pub(crate) fn begin() -> Self {
        Tries(Instant::now() + TRIED_FOR)
    }

    /// Waits for the time of the next try.
    ///
    /// # Errors
    /// The one that the last try ended with, where it does not pass or there were enough.
    pub(crate) async fn next(&self, error: ToolError) -> Result<(), ToolError> {
        if !error.may_pass() || Instant::now() >= self.0 {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

impl From<PlaneError> for ToolError {
    fn from(error: PlaneError) -> Self {
        ToolError::Redis(error)
    }
}

impl From<io::Error> for ToolError {
    fn from(error: io::Error) -> Self {
        ToolError::Io(error)
    }
}

impl Tool {
    /// Reads everything there is, and compares. What changes meanwhile may look wrong.
    ///
    /// # Errors
    /// When Redis does not work.
    pub async fn check(&self) -> Result<Checked, ToolError> {
        let mut checked = Checked::default();
        for user in self.users().await? {
            let Some(Reply::Inspected(inbox)) =
                self.ask(user, &[Request::Inspect { user, claims: false, token: 0 }]).await?.pop()
            else {
                return Err(ToolError::Garbage(user));
            };
            let (mut messages, mut bytes) = (0, 0);
            self.each(user, |record| {
                messages += 1;
                bytes += record.bytes() as u64;
                Ok(())
            })
            .await?;
            checked.users += 1;
            checked.messages += messages;
            checked.bytes += bytes;
            checked.devices += u64::from(inbox.devices);
            checked.miscounted += u64::from((messages, bytes) != (inbox.messages, inbox.bytes));
        }
        Ok(checked)
    }

    /// Writes everything as lines of JSON: for each user one with floor and devices, then its messages; then for each
    /// group one with its settings, its messages and its members.
    ///
    /// # Errors
    /// When Redis does not work, and those of `out`.
    pub async fn export(&self, out: &mut dyn Write) -> Result<(), ToolError> {
        for user in self.users().await? {
            CopyLine::User(self.state(user).await?).write(out)?;
            self.each(user, |record| Ok(CopyLine::Message(user, record).write(out)?)).await?;
        }
        self.export_groups(|line| Ok(line.write(out)?)).await?;
        Ok(out.flush()?)
    }

    /// Hands out a user's messages, page by page.
    async fn each(&self, user: u64, mut take: impl FnMut(Record) -> Result<(), ToolError>) -> Result<(), ToolError> {
        let mut after = 0;
        loop {
            let Page { records, complete, .. } = self.page(user, after).await?;
            let last = records.last().map(|record| record.stamp);
            records.into_iter().try_for_each(&mut take)?;
            match last {
                Some(last) if !complete => after = last,
                _ => return Ok(()),
            }
        }
    }

    /// Takes in what an export wrote. What is there already stays, and messages that are there already, or came with
    /// the same export before, are not stored again; so it may be put in again after an error.
    ///
    /// # Errors
    /// For a line that makes no sense, and when Redis has not worked for a minute. What came before is stored.
    pub async fn import(&self, input: &mut dyn BufRead) -> Result<Imported, ToolError> {
        let mut imported = Imported::default();
        let (mut of, mut part) = (Subject::User(0), Part::new(""));
        for (at, line) in input.lines().enumerate() {
            let line = line?;
            let (whose, record) = match CopyLine::read(&line, at + 1)? {
                CopyLine::Message(user, record) => (Subject::User(user), record),
                CopyLine::Group(group, GroupCopy::Message(record)) => (Subject::Group(group), record),
                CopyLine::User(copy) => {
                    self.import_part(of, &mut part, &mut imported).await?;
                    (of, part) = (Subject::User(copy.user), Part::new(&line));
                    imported.users += u64::from(self.adopt(&copy).await?);
                    continue;
                }
                CopyLine::Group(group, copy) => {
                    self.import_part(of, &mut part, &mut imported).await?;
                    (of, part) = (Subject::Group(group), Part::new(&line));
                    self.import_group(group, copy, &mut imported).await?;
                    continue;
                }
            };
            if whose != of {
                self.import_part(of, &mut part, &mut imported).await?;
                (of, part) = (whose, Part::new(""));
            }
            part.hold(record, &line);
            if part.is_full() {
                self.import_part(of, &mut part, &mut imported).await?;
            }
        }
        self.import_part(of, &mut part, &mut imported).await?;
        Ok(imported)
    }

    /// Stores the messages that are held of a part.
    async fn import_part(&self, of: Subject, part: &mut Part, imported: &mut Imported) -> Result<(), ToolError> {
        let records = part.take();
        if records.is_empty() {
            return Ok(());
        }
        let refused = imported.refused;
        match of {
            Subject::User(user) => self.import_of_user(user, part, records, imported).await?,
            Subject::Group(group) => self.import_of_group(group, part, &records, imported).await?,
        }
        // There may be room for it when the export is put in again.
        if imported.refused > refused {
            part.give_up();
        }
        Ok(())
    }

    async fn import_of_user(
        &self,
        user: u64,
        part: &Part,
        records: Vec<Record>,
        imported: &mut Imported,
    ) -> Result<(), ToolError> {
        let mut words = Vec::new();
        part.put(&mut words);
        for record in records {
            let request = Request::Append { user, record, retry: Some(0), token: 0 };
            script::put(&mut words, &request, NOBODYS_VIEW, &self.settings.limits);
        }
        for reply in self.asked(user, words).await? {
            match reply {
                Reply::Stored { duplicate: false, .. } => imported.messages += 1,
                Reply::Stored { duplicate: true, .. } => imported.duplicates += 1,
                _ => imported.refused += 1,
            }
        }
        Ok(())
    }

    /// Connects.
    ///
    /// # Errors
    /// When Redis is not there.
    pub async fn connect(settings: Settings) -> Result<Self, ToolError> {
        let batches = Arc::new(Batches::unconnected_within(&settings.redis, script::SOURCE, ANSWER_MAX));
        batches.try_connect().await?;
        let least = if batches.fewest_replicas() == 0 { StoreSync::Master } else { StoreSync::Replica };
        let ttl_ms = script::ttl_ms(&settings.limits);
        // How long the nodes keep what there is nobody has said here: a look lets nothing go, and forgets nobody.
        let limits = Limits { message_age_ms_max: u64::MAX, device_unseen_ms_max: u64::MAX, ..settings.limits };
        let groups = GroupBounds { age_ms_max: u64::MAX, ..settings.groups };
        let settings = Settings { limits, groups, ..settings };
        let road = Road::new(batches.clone(), &settings);
        Ok(Tool { sync: settings.sync.unwrap_or(least), settings, batches, road, ttl_ms })
    }

    /// Users of whom anything is known, in the order of their ids.
    ///
    /// # Errors
    /// If a master does not answer.
    pub async fn users(&self) -> Result<Vec<u64>, ToolError> {
        let mut users = Vec::new();
        let user = |key: &String| key.strip_prefix("tl:inbox:{")?.strip_suffix("}:m")?.parse::<u64>().ok();
        self.batches.scan("tl:inbox:{*}:m", |keys| users.extend(keys.iter().filter_map(user))).await?;
        users.sort_unstable();
        users.dedup();
        Ok(users)
    }

    /// Makes a call until Redis has done it and so many replicas have it as the settings ask for. What is asked for may
    /// be done several times, so that it has to come to the same.
    pub(crate) async fn run(&self, call: Call) -> Result<Value, ToolError> {
        let (calls, tries) = ([call], Tries::begin());
        loop {
            let error = match self.batches.run(&calls, self.sync).await.pop() {
                Some(Ok((value, confirmed))) if confirmed || !has_written(&value) => return Ok(value),
                Some(Ok(_)) => ToolError::Unconfirmed,
                Some(Err(error)) => error.into(),
                None => ToolError::Unconfirmed,
            };
            tries.next(error).await?;
        }
    }

    async fn call(&self, user: u64, args: Vec<Value>) -> Result<Vec<Value>, ToolError> {
        let mut all = script::preamble(&self.settings.limits, self.settings.time_ms(), self.ttl_ms);
        all.extend(args);
        let [log, meta] = script::keys(user);
        let value = self.run(self.batches.call([&log, &meta], all)).await?;
        let answers = script::list(value).and_then(|mut parts| parts.pop()).and_then(script::list);
        answers.ok_or(ToolError::Garbage(user))
    }

    /// Floor and devices of a user.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn state(&self, user: u64) -> Result<UserCopy, ToolError> {
        let answers = self.call(user, vec!["devices".into(), "inspect".into(), "".into()]).await?;
        let read = || {
            let [Value::Array(devices), Value::Array(inspected)] = &answers[..] else { return None };
            let floor = script::stamp(&inspected.get(3)?.as_string()?);
            let Some(Value::Array(devices)) = devices.get(1) else { return None };
            let device = |device: &Value| {
                let Value::Array(parts) = device else { return None };
                let word = |at: usize| parts.get(at)?.as_string();
                Some((
                    word(0)?.parse().ok()?,
                    word(4)?.parse().ok()?,
                    word(1)?,
                    script::stamp(&word(2)?),
                    word(3)?.parse().ok()?,
                ))
            };
            Some(UserCopy { user, floor, devices: devices.iter().map(device).collect::<Option<_>>()? })
        };
        read().ok_or(ToolError::Garbage(user))
    }

    /// A page of a user's messages after a position; whether it is the last one.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn page(&self, user: u64, after: u64) -> Result<Page, ToolError> {
        let request = Request::Read {
            user,
            device: 0,
            device_epoch: 0,
            after,
            since_ms: 0,
            limit: PAGE as u32,
            bytes_max: 4 << 20,
            token: 0,
        };
        match self.ask(user, &[request]).await?.pop() {
            Some(Reply::Page(page)) => Ok(page),
            _ => Err(ToolError::Garbage(user)),
        }
    }

    /// Carries out requests about one user.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn ask(&self, user: u64, requests: &[Request]) -> Result<Vec<Reply>, ToolError> {
        let mut words = Vec::new();
        for request in requests {
            script::put(&mut words, request, NOBODYS_VIEW, &self.settings.limits);
        }
        self.asked(user, words).await
    }

    /// The answers to requests that are words already.
    async fn asked(&self, user: u64, words: Vec<Value>) -> Result<Vec<Reply>, ToolError> {
        let answers = self.call(user, words).await?;
        let mut whole = vec![Value::Integer(0); 6];
        whole.push(Value::Array(answers));
        let answered = script::read(Value::Array(whole), 0).ok_or(ToolError::Garbage(user))?;
        Ok(answered.replies.into_iter().flatten().collect())
    }

    /// Gives a user without devices the floor and devices of another store. Whether it did.
    ///
    /// # Errors
    /// If Redis did not work.
    pub async fn adopt(&self, copy: &UserCopy) -> Result<bool, ToolError> {
        let number = |number: u64| Value::from(number.to_string());
        let mut args = vec!["adopt".into(), script::id(copy.floor).into(), number(copy.devices.len() as u64)];
        for (device, epoch, name, cursor, seen_ms) in &copy.devices {
            args.push(script::device_name(name).into());
            args.extend([number((*device).into()), number((*epoch).into())]);
            args.extend([script::id(*cursor).into(), number(*seen_ms)]);
        }
        let answers = self.call(copy.user, args).await?;
        let adopted = |answer: &Value| match answer {
            Value::Array(parts) => parts.first().and_then(Value::as_string).as_deref() == Some("done"),
            _ => false,
        };
        Ok(answers.first().is_some_and(adopted))
    }
}

/// Whether a script says that it has written.
fn has_written(answer: &Value) -> bool {
    match answer {
        Value::Array(parts) => parts.first().and_then(Value::as_u64) == Some(1),
        _ => false,
    }
}
