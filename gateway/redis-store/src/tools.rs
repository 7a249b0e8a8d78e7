//! What an operator does with the store: a copy of everything, and its way back.

use crate::journey::Road;
use crate::script;
use crate::{GroupBounds, Settings};
use std::fmt;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use trunkline_router::redis::{Batches, Call, PlaneError, StoreSync, Value};
use trunkline_store::{Checked, CopyLine, GroupCopy, Imported, Limits, Page, Record, Reply, Request, UserCopy};

/// Messages that are read or written at a time.
const PAGE: usize = 256;

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
    /// What is read or written cannot be.
    Io(io::Error),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::Redis(error) => write!(f, "{error}"),
            ToolError::Garbage(user) => write!(f, "what Redis has of user {user} makes no sense"),
            ToolError::Group(group) => write!(f, "what Redis has of group {group} makes no sense"),
            ToolError::Io(error) => write!(f, "{error}"),
            ToolError::Unconfirmed => write!(f, "too few replicas have what was written: try again when they are well"),
        }
    }
}

impl std::error::Error for ToolError {}

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

    /// Takes in what an export wrote. What is there already stays, and messages that are there already are not stored
    /// again, as long as they are among the last of their log.
    ///
    /// # Errors
    /// For a line that makes no sense, and when Redis does not work. What came before is stored.
    pub async fn import(&self, input: &mut dyn BufRead) -> Result<Imported, ToolError> {
        let mut imported = Imported::default();
        let mut batch: Vec<Request> = Vec::new();
        let mut of = 0;
        // Messages of one group, as those of one user.
        let (mut records, mut of_group) = (Vec::new(), 0);
        for (at, line) in input.lines().enumerate() {
            let line = CopyLine::read(&line?, at + 1)?;
            let user = match &line {
                CopyLine::User(copy) => copy.user,
                CopyLine::Message(user, _) => *user,
                CopyLine::Group(..) => 0,
            };
            if user != of || batch.len() >= PAGE {
                self.import_batch(of, &mut batch, &mut imported).await?;
                of = user;
            }
            let group = match &line {
                CopyLine::Group(group, GroupCopy::Message(_)) => *group,
                _ => 0,
            };
            if group != of_group || records.len() >= PAGE {
                self.import_of_group(of_group, &records, &mut imported).await?;
                records.clear();
                of_group = group;
            }
            match line {
                CopyLine::Group(_, GroupCopy::Message(record)) => records.push(record),
                CopyLine::Group(group, copy) => self.import_group(group, copy, &mut imported).await?,
                CopyLine::User(copy) => imported.users += u64::from(self.adopt(&copy).await?),
                CopyLine::Message(user, record) => {
                    batch.push(Request::Append { user, record, retry: Some(0), token: 0 });
                }
            }
        }
        self.import_batch(of, &mut batch, &mut imported).await?;
        self.import_of_group(of_group, &records, &mut imported).await?;
        Ok(imported)
    }

    async fn import_batch(
        &self,
        user: u64,
        batch: &mut Vec<Request>,
        imported: &mut Imported,
    ) -> Result<(), ToolError> {
        if batch.is_empty() {
            return Ok(());
        }
        for reply in self.ask(user, batch).await? {
            match reply {
                Reply::Stored { duplicate: false, .. } => imported.messages += 1,
                Reply::Stored { duplicate: true, .. } => imported.duplicates += 1,
                _ => imported.refused += 1,
            }
        }
        batch.clear();
        Ok(())
    }

    /// Connects.
    ///
    /// # Errors
    /// When Redis is not there.
    pub async fn connect(settings: Settings) -> Result<Self, ToolError> {
        let slow = settings.sync == Some(StoreSync::Aof);
        let batches = Arc::new(Batches::unconnected(&settings.redis, script::SOURCE, slow));
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

    async fn call(&self, user: u64, args: Vec<Value>) -> Result<Vec<Value>, ToolError> {
        let mut all = script::preamble(&self.settings.limits, self.settings.time_ms(), self.ttl_ms);
        all.extend(args);
        let [log, meta] = script::keys(user);
        let calls: [Call; 1] = [self.batches.call([&log, &meta], all)];
        let outcome = self.batches.run(&calls, self.sync).await.pop();
        let (value, confirmed) = outcome.ok_or(ToolError::Garbage(user))??;
        let Value::Array(mut parts) = value else { return Err(ToolError::Garbage(user)) };
        let wrote = parts.first().and_then(Value::as_u64) == Some(1);
        if wrote && !confirmed {
            return Err(ToolError::Unconfirmed);
        }
        match parts.pop() {
            Some(Value::Array(answers)) => Ok(answers),
            _ => Err(ToolError::Garbage(user)),
        }
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
        let mut args = Vec::new();
        requests.iter().for_each(|request| script::put(&mut args, request, u64::from(u32::MAX), &self.settings.limits));
        let answers = self.call(user, args).await?;
        let whole = Value::Array(vec![
            Value::Integer(0),
            Value::Integer(0),
            Value::Integer(0),
            Value::Integer(0),
            Value::Integer(0),
            Value::Integer(0),
            Value::Array(answers),
        ]);
        let answered = script::read(whole, 0).ok_or(ToolError::Garbage(user))?;
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
