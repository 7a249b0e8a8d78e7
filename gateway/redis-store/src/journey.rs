//! What is done to a group and to the list of a user's groups, which are in two hash slots: joins, leaves, and the
//! groups of a user.
//!
//! The group says who is a member; the list is an index of it that may have too much and never has too little. A join
//! writes the entry first and once more when the group has the member, since a leave that was under way may have
//! taken it out. A leave takes out the entry that it found before the group forgot the member, and none that was
//! written since. What a crash or a lost answer leaves in the list too much is taken out when the user logs in, unless
//! it is so young that a join may be under way.

use crate::{GroupBounds, Settings, group};
use std::sync::Arc;
use trunkline_router::redis::{Batches, Call, Outcome, Program, StoreSync, Value};
use trunkline_store::{Clock, GroupAsk, GroupDenial, GroupReply, Limits, Membership, Refusal, Reply};

/// An entry without a membership is taken out when it is so old. A join that takes longer is given up: two calls
/// take a few seconds at most.
const ORPHAN_MS: u64 = 60_000;

/// What calls are made with.
pub(crate) struct Road {
    pub(crate) batches: Arc<Batches>,
    pub(crate) of_group: Program,
    pub(crate) of_user: Program,
    pub(crate) limits: Limits,
    pub(crate) bounds: GroupBounds,
    pub(crate) clock: Clock,
    pub(crate) time: Option<Clock>,
}

/// Why it ended early.
enum Stop {
    /// Redis failed, or too few replicas have what was written.
    Failed(String),
    Refused(Refusal),
    Denied(GroupDenial),
}

impl std::fmt::Debug for Road {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Road").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Road {
    /// A way by those connections.
    pub(crate) fn new(batches: Arc<Batches>, settings: &Settings) -> Self {
        Road {
            batches,
            of_group: Program::new(group::SOURCE),
            of_user: Program::new(group::OF_USER_SOURCE),
            limits: settings.limits.clone(),
            bounds: settings.groups,
            clock: settings.clock.clone(),
            time: settings.time.clone(),
        }
    }

    /// The time as scripts are told it: 0 if they are to look themselves.
    fn time_ms(&self) -> u64 {
        self.time.as_ref().map_or(0, |time| time())
    }

    /// A call about a group: each request with the view of who asks.
    pub(crate) fn group_call<'a>(&self, group: u64, asks: impl Iterator<Item = (u64, &'a GroupAsk)>) -> Call {
        let mut args = group::preamble(&self.limits, &self.bounds, self.time_ms());
        asks.for_each(|(view, ask)| group::put(&mut args, ask, view, &self.limits));
        let keys = group::keys(group);
        self.batches.call_of(&self.of_group, keys.each_ref().map(String::as_str), args)
    }

    /// A call about a group with requests that are words already.
    pub(crate) fn words_call(&self, group: u64, words: Vec<Value>) -> Call {
        let mut args = group::preamble(&self.limits, &self.bounds, self.time_ms());
        args.extend(words);
        let keys = group::keys(group);
        self.batches.call_of(&self.of_group, keys.each_ref().map(String::as_str), args)
    }

    fn user_call(&self, user: u64, words: &[&str]) -> Call {
        let args = words.iter().map(|word| Value::from(*word)).collect();
        self.batches.call_of(&self.of_user, [&group::key_of_user(user)], args)
    }

    async fn run(&self, call: Call, sync: StoreSync) -> Result<(Value, bool), Stop> {
        match self.batches.run(&[call], sync).await.pop() {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(Stop::Failed(error.to_string())),
            None => Err(Stop::Failed("no answer".to_owned())),
        }
    }

    /// One step on the list of a user.
    async fn user_step(&self, user: u64, words: &[&str], sync: StoreSync) -> Result<Value, Stop> {
        let (value, confirmed) = self.run(self.user_call(user, words), sync).await?;
        let (wrote, rest) = group::of_user(value).ok_or_else(garbage)?;
        if wrote && !confirmed { Err(unconfirmed()) } else { Ok(rest) }
    }

    /// One step on a group.
    async fn group_step(&self, group: u64, view: u64, ask: &GroupAsk, sync: StoreSync) -> Result<GroupReply, Stop> {
        let call = self.group_call(group, std::iter::once((view, ask)));
        let (value, confirmed) = self.run(call, sync).await?;
        let answered = group::read(value, group, (self.clock)()).ok_or_else(garbage)?;
        match answered.replies.into_iter().next().flatten() {
            Some(Reply::Refused(refusal)) => Err(Stop::Refused(refusal)),
            _ if answered.wrote && !confirmed => Err(unconfirmed()),
            Some(Reply::Group(reply)) => Ok(*reply),
            _ => Err(garbage()),
        }
    }

    /// A user becomes a member of a group.
    async fn join(
        &self,
        group: u64,
        user: u64,
        view: u64,
        ask: &GroupAsk,
        sync: StoreSync,
    ) -> Result<GroupReply, Stop> {
        let (name, most) = (group.to_string(), self.bounds.groups_per_user_max.to_string());
        let version = new_version();
        let begun_ms = (self.clock)();
        let mut entered = self.user_step(user, &["enter", &name, &version, &most], sync).await?;
        if entered.as_string().is_some_and(|word| word == "full") {
            // What is left of groups that have ended counts until somebody looks.
            self.groups_of(user, sync).await?;
            entered = self.user_step(user, &["enter", &name, &version, &most], sync).await?;
            if entered.as_string().is_some_and(|word| word == "full") {
                return Err(Stop::Denied(GroupDenial::TooManyGroups));
            }
        }
        if (self.clock)().saturating_sub(begun_ms) > ORPHAN_MS / 2 {
            return Err(Stop::Failed("a join took too long".to_owned()));
        }
        let is_new = entered.as_u64() == Some(1);
        match self.group_step(group, view, ask, sync).await {
            Ok(reply @ GroupReply::Joined { .. }) => {
                self.user_step(user, &["enter", &name, &new_version(), &u64::MAX.to_string()], sync).await?;
                Ok(reply)
            }
            Ok(GroupReply::Denied(denial)) if is_new => {
                // If that fails it is taken out later.
                let _ = self.user_step(user, &["drop", &name, &version, "0"], sync).await;
                Err(Stop::Denied(denial))
            }
            other => other,
        }
    }

    /// A member leaves a group.
    async fn leave(
        &self,
        group: u64,
        user: u64,
        view: u64,
        ask: &GroupAsk,
        sync: StoreSync,
    ) -> Result<GroupReply, Stop> {
        let name = group.to_string();
        let version = self.user_step(user, &["version", &name], sync).await?.as_string().unwrap_or_default();
        let reply = self.group_step(group, view, ask, sync).await?;
        if !version.is_empty() {
            // The user is out; an entry that stays is taken out later.
            let _ = self.user_step(user, &["drop", &name, &version, "0"], sync).await;
        }
        Ok(reply)
    }

    /// The groups of a user, as the groups say; entries of others are taken out. With what went wrong if some could not
    /// be asked: the others are on other servers, and are no worse for it.
    async fn groups_of(&self, user: u64, sync: StoreSync) -> Result<(Vec<Membership>, Option<String>), Stop> {
        let rest = self.user_step(user, &["list"], sync).await?;
        let entries = group::entries(rest).ok_or_else(garbage)?;
        let look = GroupAsk::Of { user };
        let call = |(group, _): &(u64, String)| self.group_call(*group, std::iter::once((0, &look)));
        let calls: Vec<Call> = entries.iter().map(call).collect();
        let outcomes = self.batches.run(&calls, StoreSync::Master).await;
        let mut memberships = Vec::with_capacity(entries.len());
        // One without an outcome was not asked.
        let mut trouble = (outcomes.len() < entries.len()).then(|| "no answer".to_owned());
        for ((group, version), outcome) in entries.into_iter().zip(outcomes) {
            match looked_at(outcome, group, (self.clock)()) {
                Err(why) => trouble = Some(why),
                Ok(Some(of)) => memberships.extend(of),
                Ok(None) => {
                    let age = ORPHAN_MS.to_string();
                    // If that fails the next login tries it again.
                    let _ = self.user_step(user, &["drop", &group.to_string(), &version, &age], sync).await;
                }
            }
        }
        memberships.sort_unstable_by_key(|membership| membership.group);
        Ok((memberships, trouble))
    }

    /// Carries out what concerns a group and a user. Returns the answer, and what went wrong.
    pub(crate) async fn travel(
        &self,
        group: u64,
        ask: &GroupAsk,
        view: u64,
        sync: StoreSync,
    ) -> (Reply, Option<String>) {
        let mut trouble = None;
        let reply = match *ask {
            GroupAsk::Join { user, .. } => self.join(group, user, view, ask, sync).await,
            GroupAsk::Leave { user } => self.leave(group, user, view, ask, sync).await,
            GroupAsk::Of { user } => self.groups_of(user, sync).await.map(|(memberships, why)| {
                let is_whole = why.is_none();
                trouble = why;
                if is_whole { GroupReply::Of(memberships) } else { GroupReply::OfSome(memberships) }
            }),
            _ => self.group_step(group, view, ask, sync).await,
        };
        match reply {
            Ok(reply) => (Reply::Group(Box::new(reply)), trouble),
            Err(Stop::Denied(denial)) => (Reply::Group(Box::new(GroupReply::Denied(denial))), None),
            Err(Stop::Refused(refusal)) => (Reply::Refused(refusal), None),
            Err(Stop::Failed(why)) => (Reply::Refused(Refusal::Unavailable), Some(why)),
        }
    }
}

/// What a group says of a user's membership; `None` if there is none.
fn looked_at(outcome: Outcome, group: u64, now_ms: u64) -> Result<Option<Vec<Membership>>, String> {
    let (value, _) = outcome.map_err(|error| error.to_string())?;
    let answered = group::read(value, group, now_ms).ok_or(GARBAGE)?;
    match answered.replies.into_iter().next() {
        Some(Some(Reply::Group(reply))) => match *reply {
            GroupReply::Of(of) => Ok(Some(of)),
            _ => Err(GARBAGE.to_owned()),
        },
        Some(None) => Ok(None),
        _ => Err(GARBAGE.to_owned()),
    }
}

const GARBAGE: &str = "an answer that makes no sense";

fn garbage() -> Stop {
    Stop::Failed(GARBAGE.to_owned())
}

fn unconfirmed() -> Stop {
    Stop::Failed("too few replicas have what was written".to_owned())
}

fn new_version() -> String {
    rand::random_range(1..u64::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_router::redis::PlaneError;

    fn answer(of: Vec<Value>) -> Outcome {
        let counts = [0, 0, 0].into_iter().map(Value::Integer);
        let answers = [Value::Array(vec![Value::Array(of)]), "0-0".into()];
        Ok((Value::Array(counts.chain(answers).collect()), true))
    }

    #[test]
    fn a_group_that_cannot_be_asked_is_neither_one_of_the_users_nor_none() {
        let is_member = answer(["membership", "0", "1", "0", "0-0", "5-1"].map(Value::from).to_vec());
        let of = looked_at(is_member, 7, 0).unwrap().expect("a membership");
        assert_eq!((of.len(), of[0].group, of[0].last), (1, 7, 5 << 20 | 1));
        assert_eq!(looked_at(answer(vec!["none".into()]), 7, 0), Ok(None));
        assert!(looked_at(answer(["left", "0", "0-0"].map(Value::from).to_vec()), 7, 0).is_err());
        assert!(looked_at(Err(PlaneError::Redis { detail: "a master is down".to_owned() }), 7, 0).is_err());
    }
}
