//! Groups, as an application's backend manages them: settings, members, messages, and who has read how far.

use super::Node;
use super::inbox::no_store;
use crate::control::Control;
use crate::groups::{ROOMS_FROM, group_home};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_channel::oneshot;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use trunkline_proto::{HEADER_LONG, SERVICE_USERS};
use trunkline_router::hash::home_shard;
use trunkline_router::http::{AuditNote, JsonBody, Needs, Parameters, Problem, Routes, Scope, UserInPath};
use trunkline_store::{
    GroupAsk, GroupDenial, GroupInfo, GroupReply, GroupSettings, JoinRule, Member, MemberChange, MemberInfo, Payload,
    Record, Refusal, Reply, Role, stamp_ms,
};

/// How long store and shard may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Members that one request adds at most.
const ADDED_MAX: usize = 1_000;
/// Of those, so many are asked for at a time: less than the queue of a shard holds.
const ADDED_AT_A_TIME: usize = 64;
/// Bytes of the sender's id in a GROUP_DELIVER.
const SENDER_BYTES: usize = 8;
/// Messages of a page where nothing is said, and bytes of their payloads.
const PAGE: u32 = 100;
const PAGE_BYTES: u32 = 4 << 20;

/// Adds the routes of groups.
pub(super) fn add(routes: Routes<Node>) -> Routes<Node> {
    let (reads, changes) = (Needs::Read(Scope::UsersRead), Needs::Change(Scope::AccountsWrite));
    routes
        .get("/v1/groups/{group}", reads, show)
        .put("/v1/groups/{group}", changes, put)
        .delete("/v1/groups/{group}", changes, delete)
        .get("/v1/groups/{group}/members", reads, members)
        .post_long("/v1/groups/{group}/members", changes, add_members)
        .put("/v1/groups/{group}/members/{user}", changes, change_member)
        .delete("/v1/groups/{group}/members/{user}", changes, remove_member)
        .get("/v1/groups/{group}/messages", reads, messages)
        .post_long("/v1/groups/{group}/messages", Needs::Change(Scope::PushGroup), post_message)
        .get("/v1/groups/{group}/reads", reads, read_by)
        .get("/v1/users/{user}/groups", reads, groups_of_user)
}

/// A group whose messages are kept.
fn group_id(text: &str) -> Result<u64, Problem> {
    let group = text.parse().ok().filter(|group| *group != 0 && !text.starts_with('+'));
    let group = group.ok_or_else(|| Problem::bad_request("a group is a number from 1 to 18446744073709551615"))?;
    // Of a live room nothing is kept that could be shown or changed here.
    let is_kept = group < ROOMS_FROM;
    is_kept
        .then_some(group)
        .ok_or_else(|| Problem::not_found("groups have ids up to 9223372036854775807: this is a room"))
}

fn user_id(text: &str) -> Result<u64, Problem> {
    // Ids from there on are services', which need not be members to send and are not limited as members are.
    let user = text.parse().ok().filter(|user| (1..SERVICE_USERS).contains(user) && !text.starts_with('+'));
    user.ok_or_else(|| Problem::bad_request(format!("a user is a number from 1 to {}", SERVICE_USERS - 1)))
}

/// A place of a log, as a string in JSON and in queries; 0 if it is not given.
fn stamp(text: Option<&str>) -> Result<u64, Problem> {
    let Some(text) = text else { return Ok(0) };
    // As it would be written here: without a sign, and without zeros in front.
    let parsed = text.parse().ok().filter(|stamp: &u64| stamp.to_string() == text);
    parsed.ok_or_else(|| Problem::bad_request("a stamp is a number from 0 to 18446744073709551615"))
}

/// Asks a shard; the answer comes later.
fn begin(node: &Node, shard: u32, group: u64, ask: GroupAsk) -> Result<oneshot::Receiver<Reply>, Problem> {
    if node.store.get().is_none() {
        return Err(no_store());
    }
    let shards =
        node.shards.get().ok_or_else(|| Problem::unavailable("the node is starting; try again in a moment"))?;
    let (answer, receiver) = oneshot::channel();
    if shards.ports[shard as usize].send(Control::Group { group, ask: Box::new(ask), answer }).is_err() {
        let detail = format!("shard {shard} has too many requests waiting; try again in a moment");
        return Err(Problem::unavailable(detail));
    }
    Ok(receiver)
}

async fn end(receiver: oneshot::Receiver<Reply>) -> Result<GroupReply, Problem> {
    end_by(receiver, Instant::now() + ANSWER_TIMEOUT).await
}

async fn end_by(receiver: oneshot::Receiver<Reply>, by: Instant) -> Result<GroupReply, Problem> {
    match tokio::time::timeout_at(by, receiver).await {
        Ok(Ok(Reply::Group(reply))) => Ok(*reply),
        Ok(Ok(Reply::Refused(refusal))) => {
            Err(Problem::unavailable(format!("the store refuses it: {}", Refusal::label(refusal))))
        }
        Ok(Ok(_)) => Err(Problem::unavailable("the store answered something else; try again in a moment")),
        Ok(Err(_)) => Err(Problem::unavailable("the shard has ended")),
        Err(_) => {
            let detail = format!("there was no answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, detail))
        }
    }
}

/// Asks about a group, through its home.
async fn ask(node: &Node, group: u64, ask: GroupAsk) -> Result<GroupReply, Problem> {
    let shards = node.shards.get().map_or(1, |shards| shards.ports.len() as u16);
    end(begin(node, group_home(group, shards).into(), group, ask)?).await
}

fn denied(reply: GroupReply) -> Problem {
    let GroupReply::Denied(denial) = reply else {
        return Problem::unavailable("the store answered something else; try again in a moment");
    };
    match denial {
        GroupDenial::NoGroup => Problem::not_found("there is no such group: PUT it first"),
        GroupDenial::NotAMember => Problem::not_found("the user is no member of the group"),
        GroupDenial::RateLimited => {
            let detail = "the group or the member has had its messages of this second; try again in the next";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, detail)
        }
        denial => Problem::new(StatusCode::CONFLICT, word(denial)),
    }
}

fn word(denial: GroupDenial) -> &'static str {
    match denial {
        GroupDenial::NoGroup => "no_group",
        GroupDenial::NotAMember => "not_a_member",
        GroupDenial::Muted => "muted",
        GroupDenial::NotOpen => "not_open",
        GroupDenial::Full => "group_full",
        GroupDenial::TooManyGroups => "too_many_groups",
        GroupDenial::NodeFull => "node_full",
        GroupDenial::RateLimited => "rate_limited",
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum JoinWord {
    Open,
    Api,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum RoleWord {
    Member,
    Admin,
    Owner,
}

impl From<Role> for RoleWord {
    fn from(role: Role) -> Self {
        match role {
            Role::Member => RoleWord::Member,
            Role::Admin => RoleWord::Admin,
            Role::Owner => RoleWord::Owner,
        }
    }
}

impl From<RoleWord> for Role {
    fn from(role: RoleWord) -> Self {
        match role {
            RoleWord::Member => Role::Member,
            RoleWord::Admin => Role::Admin,
            RoleWord::Owner => Role::Owner,
        }
    }
}

/// A whole number, however JSON writes it: `171.0` is one too.
pub(super) fn whole<'de, D: serde::Deserializer<'de>>(number: D) -> Result<Option<u32>, D::Error> {
    let Some(number) = Option::<f64>::deserialize(number)? else { return Ok(None) };
    if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) {
        return Ok(Some(number as u32));
    }
    Err(serde::de::Error::custom(format!("{number} is no whole number from 0 to {}", u32::MAX)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    join: Option<JoinWord>,
    #[serde(default, deserialize_with = "whole")]
    max: Option<u32>,
    muted: Option<bool>,
    #[serde(default, deserialize_with = "whole")]
    ttl: Option<u32>,
}

#[derive(Serialize)]
struct GroupDescription {
    group: String,
    join: JoinWord,
    /// 0 is as many as the node lets be.
    max: u32,
    muted: bool,
    /// Seconds; 0 is as long as the log keeps them.
    ttl: u32,
    members: u32,
    last: String,
}

fn describe(group: u64, info: GroupInfo) -> GroupDescription {
    let GroupInfo { settings: GroupSettings { join, members_max, muted, ttl_s }, members, last } = info;
    let join = match join {
        JoinRule::Open => JoinWord::Open,
        JoinRule::Api => JoinWord::Api,
    };
    GroupDescription {
        group: group.to_string(),
        join,
        max: members_max,
        muted,
        ttl: ttl_s,
        members,
        last: last.to_string(),
    }
}

async fn show(State(node): State<Arc<Node>>, Path(group): Path<String>) -> Result<Json<GroupDescription>, Problem> {
    let group = group_id(&group)?;
    match ask(&node, group, GroupAsk::Get).await? {
        GroupReply::Info(info) => Ok(Json(describe(group, info))),
        reply => Err(denied(reply)),
    }
}

async fn put(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    JsonBody(Settings { join, max, muted, ttl }): JsonBody<Settings>,
) -> Result<Response, Problem> {
    let group = group_id(&group)?;
    let join = match join.unwrap_or(JoinWord::Open) {
        JoinWord::Open => JoinRule::Open,
        JoinWord::Api => JoinRule::Api,
    };
    let (members_max, muted, ttl_s) = (max.unwrap_or(0), muted.unwrap_or(false), ttl.unwrap_or(0));
    let settings = GroupSettings { join, members_max, muted, ttl_s };
    match ask(&node, group, GroupAsk::Put { settings }).await? {
        GroupReply::Put { created, info } => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let note = AuditNote(format!("group {group}: {settings:?}"));
            Ok((status, Extension(note), Json(describe(group, info))).into_response())
        }
        reply => Err(denied(reply)),
    }
}

#[derive(Serialize)]
struct DeletedGroup {
    members: u32,
}

async fn delete(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
) -> Result<(Extension<AuditNote>, Json<DeletedGroup>), Problem> {
    let group = group_id(&group)?;
    match ask(&node, group, GroupAsk::Delete).await? {
        GroupReply::Deleted { news: true, members } => {
            Ok((Extension(AuditNote(format!("group {group}, {members} members"))), Json(DeletedGroup { members })))
        }
        GroupReply::Deleted { news: false, .. } => Err(denied(GroupReply::Denied(GroupDenial::NoGroup))),
        reply => Err(denied(reply)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersQuery {
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct MemberDescription {
    user: String,
    role: RoleWord,
    /// Seconds since the Unix epoch; 0 for not muted.
    muted_until: u32,
    notify: bool,
    read: String,
}

#[derive(Serialize)]
struct MembersPage {
    members: Vec<MemberDescription>,
    /// `after` of the next page; absent when this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

fn describe_member(user: u64, member: Member, read: u64) -> MemberDescription {
    let Member { muted_until_s: muted_until, role, notify } = member;
    MemberDescription { user: user.to_string(), role: role.into(), muted_until, notify, read: read.to_string() }
}

async fn members(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    Parameters(MembersQuery { after, limit }): Parameters<MembersQuery>,
) -> Result<Json<MembersPage>, Problem> {
    let group = group_id(&group)?;
    let after = stamp(after.as_deref()).map_err(|_| Problem::bad_request("after is the id of a user, or 0"))?;
    let limit = limit.unwrap_or(GroupAsk::MEMBERS_MAX);
    match ask(&node, group, GroupAsk::Members { after, limit }).await? {
        GroupReply::Members { members, more } => {
            let next = members.last().filter(|_| more).map(|last| last.user.to_string());
            let described =
                members.into_iter().map(|MemberInfo { user, member, read }| describe_member(user, member, read));
            Ok(Json(MembersPage { members: described.collect(), next }))
        }
        reply => Err(denied(reply)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Added {
    users: Vec<String>,
    role: Option<RoleWord>,
}

#[derive(Serialize)]
struct AddResult {
    user: String,
    /// `joined`, `member` for one that was one before, or why not; `unavailable` is to be asked for again.
    result: &'static str,
}

#[derive(Serialize)]
struct AddResults {
    results: Vec<AddResult>,
}

async fn add_members(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    JsonBody(Added { users, role }): JsonBody<Added>,
) -> Result<(Extension<AuditNote>, Json<AddResults>), Problem> {
    let group = group_id(&group)?;
    if users.len() > ADDED_MAX {
        return Err(Problem::bad_request(format!("one request adds {ADDED_MAX} members at most")));
    }
    let users = users.iter().map(|user| user_id(user)).collect::<Result<Vec<u64>, Problem>>()?;
    let member = Member { role: role.unwrap_or(RoleWord::Member).into(), ..Member::default() };
    let shards = node.shards.get().map_or(1, |shards| shards.ports.len() as u16);
    let home = u32::from(group_home(group, shards));
    let mut trouble = None;
    let mut results = Vec::with_capacity(users.len());
    let mut joined = 0;
    let mut answers = true;
    for users in users.chunks(ADDED_AT_A_TIME) {
        let ask = |user| GroupAsk::Join { user, member, added: true, create: false };
        // Where of so many none has got an answer, the others would only wait as long for theirs.
        let asked = users.iter().map(|user| answers.then(|| begin(&node, home, group, ask(*user))));
        let asked: Vec<_> = asked.collect();
        let by = Instant::now() + ANSWER_TIMEOUT;
        answers = false;
        for (user, asked) in users.iter().zip(asked) {
            let reply = match asked {
                Some(Ok(receiver)) => Some(end_by(receiver, by).await),
                Some(Err(problem)) => Some(Err(problem)),
                None => None,
            };
            answers |= matches!(reply, Some(Ok(_)));
            let result = match reply {
                Some(Ok(GroupReply::Joined { news: true, .. })) => "joined",
                Some(Ok(GroupReply::Joined { news: false, .. })) => "member",
                Some(Ok(GroupReply::Denied(GroupDenial::NoGroup))) => {
                    return Err(denied(GroupReply::Denied(GroupDenial::NoGroup)));
                }
                Some(Ok(GroupReply::Denied(denial))) => word(denial),
                // It may be a member by now, and is told so when it is asked for again.
                Some(Err(problem)) => {
                    trouble.get_or_insert(problem);
                    "unavailable"
                }
                Some(Ok(_)) | None => "unavailable",
            };
            joined += u32::from(result == "joined");
            results.push(AddResult { user: user.to_string(), result });
        }
    }
    match trouble {
        // Nothing was done, as far as is known.
        Some(problem) if results.iter().all(|result| result.result == "unavailable") => Err(problem),
        _ => Ok((Extension(AuditNote(format!("group {group}: {joined} members"))), Json(AddResults { results }))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    role: Option<RoleWord>,
    #[serde(default, deserialize_with = "whole")]
    muted_until: Option<u32>,
    notify: Option<bool>,
}

async fn change_member(
    State(node): State<Arc<Node>>,
    Path((group, user)): Path<(String, String)>,
    JsonBody(Change { role, muted_until, notify }): JsonBody<Change>,
) -> Result<(Extension<AuditNote>, Json<ChangedMember>), Problem> {
    let (group, user) = (group_id(&group)?, user_id(&user)?);
    let change = MemberChange { role: role.map(Role::from), muted_until_s: muted_until, notify };
    match ask(&node, group, GroupAsk::Change { user, change }).await? {
        GroupReply::Member(member) => {
            let note = AuditNote(format!("group {group}, user {user}: {member:?}"));
            let Member { muted_until_s: muted_until, role, notify } = member;
            let changed = ChangedMember { user: user.to_string(), role: role.into(), muted_until, notify };
            Ok((Extension(note), Json(changed)))
        }
        reply => Err(denied(reply)),
    }
}

#[derive(Serialize)]
struct ChangedMember {
    user: String,
    role: RoleWord,
    muted_until: u32,
    notify: bool,
}

#[derive(Serialize)]
struct Removed {
    user: String,
}

async fn remove_member(
    State(node): State<Arc<Node>>,
    Path((group, user)): Path<(String, String)>,
) -> Result<(Extension<AuditNote>, Json<Removed>), Problem> {
    let (group, user) = (group_id(&group)?, user_id(&user)?);
    match ask(&node, group, GroupAsk::Leave { user }).await? {
        GroupReply::Left { news: true, .. } => {
            Ok((Extension(AuditNote(format!("group {group}, user {user}"))), Json(Removed { user: user.to_string() })))
        }
        GroupReply::Left { news: false, .. } => Err(denied(GroupReply::Denied(GroupDenial::NotAMember))),
        reply => Err(denied(reply)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessagesQuery {
    after: Option<String>,
    since_ms: Option<u64>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct MessageDescription {
    stamp: String,
    from: String,
    id: String,
    /// Milliseconds since the Unix epoch.
    time_ms: u64,
    /// Base64.
    payload: String,
}

#[derive(Serialize)]
struct MessagesPage {
    messages: Vec<MessageDescription>,
    /// `after` of the next page.
    next: String,
    complete: bool,
    truncated: bool,
    floor: String,
    last: String,
}

async fn messages(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    Parameters(MessagesQuery { after, since_ms, limit }): Parameters<MessagesQuery>,
) -> Result<Json<MessagesPage>, Problem> {
    let group = group_id(&group)?;
    let after = stamp(after.as_deref())?;
    let (since_ms, limit) = (since_ms.unwrap_or(0), limit.unwrap_or(PAGE));
    match ask(&node, group, GroupAsk::Read { user: None, after, since_ms, limit, bytes_max: PAGE_BYTES }).await? {
        GroupReply::Page { page, next } => {
            let described = page.records.into_iter().map(|record| MessageDescription {
                stamp: record.stamp.to_string(),
                from: record.from.to_string(),
                id: record.id.to_string(),
                time_ms: stamp_ms(record.stamp),
                payload: STANDARD.encode(&record.payload),
            });
            Ok(Json(MessagesPage {
                messages: described.collect(),
                next: next.max(after).to_string(),
                complete: page.complete,
                truncated: page.truncated,
                floor: page.floor.to_string(),
                last: page.last.to_string(),
            }))
        }
        reply => Err(denied(reply)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    from: String,
    id: String,
    /// Base64.
    payload: String,
    retry: Option<bool>,
}

#[derive(Serialize)]
struct Posted {
    stamp: String,
    duplicate: bool,
}

/// A message of a member, as if one of its devices had sent it.
async fn post_message(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    JsonBody(Message { from, id, payload, retry }): JsonBody<Message>,
) -> Result<Json<Posted>, Problem> {
    let (group, from) = (group_id(&group)?, user_id(&from)?);
    let id = id.parse().ok().filter(|id| *id != 0);
    let id = id.ok_or_else(|| Problem::bad_request("id is the sender's number for the message, 1 or more"))?;
    let payload = STANDARD.decode(&payload).map_err(|_| Problem::bad_request("payload is not base64"))?;
    // What no client could send, none has to take: each gets it with the sender's id in front.
    let most = node.limits().frame_bytes_max as usize - HEADER_LONG - SENDER_BYTES;
    if payload.len() > most {
        let detail = format!("the payload has {} bytes: a frame (--frame-bytes-max) takes {most}", payload.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let record = Record { stamp: 0, from, id, flags: 0, payload: Payload::from(payload) };
    let retry = retry.unwrap_or(false).then_some(0);
    match ask(&node, group, GroupAsk::Append { record, retry }).await? {
        GroupReply::Stored { stamp, duplicate, .. } => Ok(Json(Posted { stamp: stamp.to_string(), duplicate })),
        reply => Err(denied(reply)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadsQuery {
    stamp: String,
}

#[derive(Serialize)]
struct Reads {
    read: u32,
    members: u32,
}

async fn read_by(
    State(node): State<Arc<Node>>,
    Path(group): Path<String>,
    Parameters(ReadsQuery { stamp: upto }): Parameters<ReadsQuery>,
) -> Result<Json<Reads>, Problem> {
    let group = group_id(&group)?;
    let stamp = stamp(Some(&upto))?;
    match ask(&node, group, GroupAsk::Reads { stamp }).await? {
        GroupReply::Reads { read, members } => Ok(Json(Reads { read, members })),
        reply => Err(denied(reply)),
    }
}

#[derive(Serialize)]
struct MembershipDescription {
    group: String,
    role: RoleWord,
    muted_until: u32,
    notify: bool,
    last: String,
    read: String,
}

#[derive(Serialize)]
struct MembershipsDescription {
    groups: Vec<MembershipDescription>,
}

async fn groups_of_user(
    State(node): State<Arc<Node>>,
    UserInPath(user): UserInPath,
) -> Result<Json<MembershipsDescription>, Problem> {
    let shards = node.shards.get().map_or(1, |shards| shards.ports.len() as u32);
    let reply = end(begin(&node, home_shard(user, shards), 0, GroupAsk::Of { user })?).await?;
    let GroupReply::Of(memberships) = reply else { return Err(denied(reply)) };
    let described = memberships.into_iter().map(|membership| MembershipDescription {
        group: membership.group.to_string(),
        role: membership.member.role.into(),
        muted_until: membership.member.muted_until_s,
        notify: membership.member.notify,
        last: membership.last.to_string(),
        read: membership.read.to_string(),
    });
    Ok(Json(MembershipsDescription { groups: described.collect() }))
}
