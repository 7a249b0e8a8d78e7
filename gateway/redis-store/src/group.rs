//! The script of a group: what it is asked, and what it answers.

use crate::GroupBounds;
use crate::known::Ends;
use crate::script::{bit, id, list, message, record, stamp};
use trunkline_router::redis::Value;
use trunkline_store::{
    GroupAsk, GroupDenial, GroupInfo, GroupReply, GroupSettings, JoinRule, Limits, Member, MemberInfo, Membership,
    Page, Record, Refusal, Reply, Role, stamp_at, stamp_ms,
};

/// Source of what is done to a group.
pub(crate) const SOURCE: &str = include_str!("group.lua");
/// Source of what is done to the list of a user's groups.
pub(crate) const OF_USER_SOURCE: &str = include_str!("of_user.lua");

/// How long the positions of a group that has ended are remembered, for one of the same id: longer than a client that
/// was in it may go on without asking.
const GONE_MS: u64 = 30 * 24 * 3_600 * 1_000;

/// Redis takes no time that is far beyond its own.
const GONE_MS_MAX: u64 = 100 * 365 * 24 * 3_600 * 1_000;

/// The keys of a group: one hash slot.
pub(crate) fn keys(group: u64) -> [String; 5] {
    ["g", "gl", "gm", "gi", "gr"].map(|kind| format!("tl:{kind}:{{{group}}}"))
}

/// The key of the list of a user's groups.
pub(crate) fn key_of_user(user: u64) -> String {
    format!("tl:ug:{{{user}}}")
}

/// A user, in the order of ids.
fn digits(user: u64) -> Value {
    format!("{user:016x}").into()
}

fn number(number: impl Into<u64>) -> Value {
    let number: u64 = number.into();
    number.to_string().into()
}

fn role_number(role: Role) -> u64 {
    match role {
        Role::Member => 0,
        Role::Admin => 1,
        Role::Owner => 2,
    }
}

/// What every call begins with. `now_ms`: 0 for the time of the server.
pub(crate) fn preamble(limits: &Limits, bounds: &GroupBounds, now_ms: u64) -> Vec<Value> {
    let (messages_max, members_max) = (bounds.messages_max.max(1), bounds.members_max);
    let words = [
        now_ms,
        messages_max.into(),
        bounds.age_ms_max,
        members_max.into(),
        limits.retry_window.into(),
        // A tool has messages of any age.
        GONE_MS.max(bounds.age_ms_max).min(GONE_MS_MAX),
    ];
    words.map(|word| word.to_string().into()).into()
}

/// Adds a request about a group, of an asker in that view.
pub(crate) fn put(args: &mut Vec<Value>, ask: &GroupAsk, view: u64, limits: &Limits) {
    let view = || number(view);
    match ask {
        GroupAsk::Append { record, retry } => {
            let retry = retry.map_or_else(String::new, id);
            args.extend(["append".into(), view(), id(record.stamp).into(), retry.into(), digits(record.from)]);
            args.push(message(record)[..].into());
        }
        GroupAsk::Admit { from, stamp } => args.extend(["admit".into(), digits(*from), id(*stamp).into()]),
        GroupAsk::Join { user, member, added, create } => {
            let words = format!("{} {} {}", role_number(member.role), u8::from(member.notify), member.muted_until_s);
            args.extend(["join".into(), view(), digits(*user), words.into(), bit(*added), bit(*create)]);
        }
        GroupAsk::Leave { user } => args.extend(["leave".into(), view(), digits(*user)]),
        GroupAsk::Change { user, change } => {
            let or_stays = |word: Option<u64>| word.map_or("".into(), number);
            let role = or_stays(change.role.map(role_number));
            let (muted, notify) =
                (or_stays(change.muted_until_s.map(u64::from)), or_stays(change.notify.map(u64::from)));
            args.extend(["change".into(), digits(*user), role, muted, notify]);
        }
        GroupAsk::Put { settings } => {
            let GroupSettings { join, members_max, muted, ttl_s } = *settings;
            let join = u8::from(join == JoinRule::Api);
            let words = format!("{join} {members_max} {} {ttl_s}", u8::from(muted));
            args.extend(["put".into(), words.into()]);
        }
        GroupAsk::Delete => args.extend(["delete".into(), view()]),
        GroupAsk::Get => args.push("get".into()),
        GroupAsk::Claim => args.extend(["claim".into(), view()]),
        GroupAsk::Members { after, limit } => {
            let limit = (*limit).clamp(1, GroupAsk::MEMBERS_MAX);
            args.extend(["members".into(), digits(*after), number(limit)]);
        }
        GroupAsk::Read { user, after, since_ms, limit, bytes_max } => {
            let from = (*after).max(stamp_at(*since_ms).saturating_sub(1));
            let user = user.map_or("".into(), digits);
            let limit = (*limit).clamp(1, limits.page_max.max(1_000));
            args.extend(["read".into(), user, id(from).into(), number(limit), number(*bytes_max)]);
            // Up to where whoever asks has something. A time says nothing of that.
            args.push(id(*after).into());
        }
        GroupAsk::Mark { user, stamp } => args.extend(["mark".into(), digits(*user), id(*stamp).into()]),
        GroupAsk::Reads { stamp } => args.extend(["reads".into(), id(*stamp).into()]),
        // What one user is in the group.
        GroupAsk::Of { user } => args.extend(["look".into(), digits(*user)]),
    }
}

/// Adds a message of another store, whose sender need not be a member any more.
pub(crate) fn put_import(args: &mut Vec<Value>, of_store: &Record) {
    args.extend(["import".into(), id(of_store.stamp).into(), message(of_store)[..].into()]);
}

/// Adds what this node has been told of the group, before its requests. It has no answer.
pub(crate) fn put_known(args: &mut Vec<Value>, known: Ends) {
    args.extend(["known".into(), id(known.stored).into(), id(known.passed).into()]);
}

/// What a call came to.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// Something was written.
    pub(crate) wrote: bool,
    /// Messages expired and dropped.
    pub(crate) counts: [u64; 2],
    /// One for each request; `None` where there is no answer.
    pub(crate) replies: Vec<Option<Reply>>,
    /// The last position that was given to what is not stored; 0 if none was.
    pub(crate) passed: u64,
}

/// Reads the answer to a call about a group; `None` if it makes no sense.
pub(crate) fn read(answer: Value, group: u64, now_ms: u64) -> Option<Answered> {
    let mut parts = list(answer)?.into_iter();
    let wrote = parts.next()?.as_u64()? == 1;
    let counts = [parts.next()?.as_u64()?, parts.next()?.as_u64()?];
    let replies = list(parts.next()?)?.into_iter().map(|answer| reply(answer, group, now_ms));
    let replies = replies.collect::<Option<_>>()?;
    Some(Answered { wrote, counts, replies, passed: position(parts.next()?)? })
}

fn denial(word: &str) -> Option<GroupDenial> {
    Some(match word {
        "no_group" => GroupDenial::NoGroup,
        "not_a_member" => GroupDenial::NotAMember,
        "muted" => GroupDenial::Muted,
        "not_open" => GroupDenial::NotOpen,
        "full" => GroupDenial::Full,
        _ => return None,
    })
}

/// A number, which scripts give as such or as text.
fn word(value: Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_string()?.parse().ok())
}

fn small(value: Value) -> Option<u32> {
    u32::try_from(word(value)?).ok()
}

fn position(value: Value) -> Option<u64> {
    value.as_string().map(|id| stamp(&id))
}

/// The next three: role, whether to notify, until when muted.
fn member(next: &mut dyn FnMut() -> Option<Value>) -> Option<Member> {
    let role = match word(next()?)? {
        0 => Role::Member,
        1 => Role::Admin,
        2 => Role::Owner,
        _ => return None,
    };
    Some(Member { role, notify: word(next()?)? != 0, muted_until_s: small(next()?)? })
}

/// The next three: settings, members, the last stamp.
fn info(next: &mut dyn FnMut() -> Option<Value>) -> Option<GroupInfo> {
    let words = next()?.as_string()?;
    let mut words = words.split(' ').map(|word| word.parse::<u32>().ok());
    let mut number = || words.next().flatten();
    let join = if number()? == 0 { JoinRule::Open } else { JoinRule::Api };
    let settings = GroupSettings { join, members_max: number()?, muted: number()? != 0, ttl_s: number()? };
    Some(GroupInfo { settings, members: small(next()?)?, last: position(next()?)? })
}

/// One answer, in an outer `None` if it makes no sense.
fn reply(answer: Value, group: u64, now_ms: u64) -> Option<Option<Reply>> {
    let mut parts = list(answer)?.into_iter();
    let kind = parts.next()?.as_string()?;
    let mut next = || parts.next();
    let reply = match kind.as_str() {
        "none" => return Some(None),
        "stale" => return Some(Some(Reply::Refused(Refusal::Stale))),
        "oom" => return Some(Some(Reply::Refused(Refusal::StoreFull))),
        "denied" => GroupReply::Denied(denial(&next()?.as_string()?)?),
        "stored" => {
            let (stamp, duplicate, members) = (position(next()?)?, word(next()?)? == 1, small(next()?)?);
            GroupReply::Stored { stamp, duplicate, members, before: position(next()?)? }
        }
        "admitted" => GroupReply::Admitted { members: small(next()?)? },
        "joined" => GroupReply::Joined { news: word(next()?)? == 1, last: position(next()?)? },
        "left" => GroupReply::Left { news: word(next()?)? == 1, last: position(next()?)? },
        "member" => GroupReply::Member(member(&mut next)?),
        "put" => GroupReply::Put { created: word(next()?)? == 1, info: info(&mut next)? },
        "info" => {
            next()?;
            GroupReply::Info(info(&mut next)?)
        }
        "deleted" => GroupReply::Deleted { news: word(next()?)? == 1, members: small(next()?)? },
        "claimed" => GroupReply::Claimed { last: position(next()?)? },
        "members" => {
            let more = word(next()?)? == 1;
            let members = list(next()?)?.into_iter().map(|entry| {
                let mut parts = list(entry)?.into_iter();
                let mut next = || parts.next();
                let user = u64::from_str_radix(&next()?.as_string()?, 16).ok()?;
                Some(MemberInfo { user, member: member(&mut next)?, read: position(next()?)? })
            });
            GroupReply::Members { members: members.collect::<Option<_>>()?, more }
        }
        "page" => {
            let ttl_s = word(next()?)?;
            let (floor, last) = (position(next()?)?, position(next()?)?);
            let (complete, truncated) = (word(next()?)? == 1, word(next()?)? == 1);
            let records = list(next()?)?.into_iter().map(|entry| {
                let [at, bytes] = <[Value; 2]>::try_from(list(entry)?).ok()?;
                record(position(at)?, bytes.as_bytes()?)
            });
            let records = records.collect::<Option<_>>()?;
            let gap = position(next()?)?;
            without_old(Page { records, floor, last, complete, truncated }, ttl_s, now_ms, gap)
        }
        "reads" => GroupReply::Reads { read: small(next()?)?, members: small(next()?)? },
        "membership" => {
            let (member, read, last) = (member(&mut next)?, position(next()?)?, position(next()?)?);
            GroupReply::Of(vec![Membership { group, member, last, read }])
        }
        _ => return None,
    };
    Some(Some(Reply::Group(Box::new(reply))))
}

/// Leaves out what is too old for the group. `gap`: up to there something is lost, which is told with the last page.
fn without_old(mut page: Page, ttl_s: u64, now_ms: u64, gap: u64) -> GroupReply {
    // Behind a page that is whole nothing is left of what was before the floor, either.
    let end = if page.complete { gap.max(page.floor) } else { 0 };
    let next = page.records.last().map_or(0, |record| record.stamp).max(end);
    if ttl_s > 0 {
        let oldest_ms = now_ms.saturating_sub(ttl_s * 1_000);
        let before = page.records.len();
        page.records.retain(|record| stamp_ms(record.stamp) >= oldest_ms);
        page.truncated |= page.records.len() < before;
    }
    GroupReply::Page { page, next }
}

/// What the list of a user's groups answers: whether it was written, and the rest.
pub(crate) fn of_user(answer: Value) -> Option<(bool, Value)> {
    let [wrote, rest] = <[Value; 2]>::try_from(list(answer)?).ok()?;
    Some((wrote.as_u64()? == 1, rest))
}

/// The groups of a user and the versions of their entries.
pub(crate) fn entries(rest: Value) -> Option<Vec<(u64, String)>> {
    let words = list(rest)?;
    let pairs = words.chunks_exact(2).map(|pair| Some((pair[0].as_string()?.parse().ok()?, pair[1].as_string()?)));
    pairs.collect()
}
