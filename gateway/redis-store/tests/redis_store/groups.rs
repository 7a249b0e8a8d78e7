//! Groups in a real Redis Cluster: they answer like the embedded ones, and what spans a group and a user agrees.

use super::{Running, cluster, limits, record, settings as settings_of};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use trunkline_redis_store::{GroupBounds, Tool};
use trunkline_store::{
    Answer, GroupAsk, GroupDenial, GroupLimits, GroupReply, GroupSettings, Groups, JoinRule, Member, MemberChange,
    Memory, Refusal, Reply, Request, Role, Store, WithGroups, group_store_limits, stamp_at,
};

pub(super) fn bounds() -> GroupBounds {
    GroupBounds { messages_max: 20, age_ms_max: 600_000, members_max: 5, groups_per_user_max: 6 }
}

fn ask_of(dice: &mut SmallRng, now_ms: u64, stamps: &[u64]) -> GroupAsk {
    let user = dice.random_range(1..8);
    let stamp = match stamps.len() {
        0 => 0,
        len => stamps[len - 1 - dice.random_range(0..len.min(40))] + dice.random_range(0..3) - 1,
    };
    let role = [Role::Member, Role::Admin, Role::Owner][dice.random_range(0..3)];
    let muted_until_s = if dice.random_range(0..6) == 0 { (now_ms / 1_000) as u32 + 30 } else { 0 };
    let notify = dice.random_range(0..2) == 0;
    // Services send too, and are members of nothing.
    let sender = if dice.random_range(0..8) == 0 { u64::MAX - 0xFFFF * dice.random_range(0..2) } else { user };
    match dice.random_range(0..100) {
        0..45 => {
            let proposed = match dice.random_range(0..20) {
                0 => stamp,
                1 => 0,
                2 => stamp_at(now_ms + 30 * 3_600_000) + 5,
                _ => stamp_at(now_ms) + dice.random_range(0..1_000),
            };
            let (id, bytes) = (dice.random_range(0..200), dice.random_range(0..600));
            let record = trunkline_store::Record { from: sender, ..record(proposed, id, bytes) };
            let retry = match dice.random_range(0..5) {
                0 => Some(0),
                1 => Some(stamp),
                _ => None,
            };
            GroupAsk::Append { record, retry }
        }
        45..48 => GroupAsk::Admit { from: sender, stamp },
        48..62 => {
            let member = Member { role, muted_until_s, notify };
            GroupAsk::Join { user, member, added: notify, create: dice.random_range(0..2) == 0 }
        }
        62..66 => GroupAsk::Leave { user },
        66..70 => {
            let may = |dice: &mut SmallRng| dice.random_range(0..2) == 0;
            let change = MemberChange {
                role: may(dice).then_some(role),
                muted_until_s: may(dice).then_some(muted_until_s),
                notify: may(dice).then_some(notify),
            };
            GroupAsk::Change { user, change }
        }
        70..74 => {
            let join = if notify { JoinRule::Open } else { JoinRule::Api };
            let (muted, ttl_s) = (dice.random_range(0..6) == 0, if dice.random_range(0..4) == 0 { 60 } else { 0 });
            GroupAsk::Put { settings: GroupSettings { join, members_max: dice.random_range(0..8), muted, ttl_s } }
        }
        74 => GroupAsk::Delete,
        75..77 => GroupAsk::Get,
        77..80 => GroupAsk::Members { after: dice.random_range(0..6), limit: dice.random_range(0..5) },
        80..90 => GroupAsk::Read {
            user: (dice.random_range(0..3) > 0).then_some(user),
            after: if dice.random_range(0..3) == 0 { 0 } else { stamp },
            since_ms: if dice.random_range(0..4) == 0 { now_ms - dice.random_range(0..100_000) } else { 0 },
            limit: dice.random_range(0..30),
            bytes_max: 1 << dice.random_range(0..14),
        },
        90..94 => GroupAsk::Mark { user, stamp },
        94..97 => GroupAsk::Reads { stamp },
        97 => GroupAsk::Claim,
        _ => GroupAsk::Of { user },
    }
}

#[test]
fn redis_and_the_embedded_store_answer_alike_about_groups() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    for seed in 1..=3 {
        let limits = limits();
        let running = Running::start(&redis, limits.clone(), None);
        let time = running.clock_ms.clone();
        let clock: trunkline_store::Clock = std::sync::Arc::new(move || time.load(Ordering::Relaxed));
        let of_logs = group_store_limits(&limits, bounds().messages_max, bounds().age_ms_max);
        let of_members = GroupLimits {
            members_max: bounds().members_max,
            groups_per_user_max: bounds().groups_per_user_max,
            ..GroupLimits::default()
        };
        let groups = Groups::open(Memory::new(of_logs, clock.clone(), 7).shared(), of_members, clock.clone()).unwrap();
        let mut model = WithGroups::new(Memory::new(limits, clock.clone(), 7).shared(), Some(groups));
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut stamps = Vec::new();
        for step in 0..900 {
            let passed = match dice.random_range(0..80) {
                0 => 400_000,
                1 => 30_000,
                _ => dice.random_range(0..40),
            };
            let now_ms = running.clock_ms.fetch_add(passed, Ordering::Relaxed) + passed;
            let ask = ask_of(&mut dice, now_ms, &stamps);
            let id = match ask {
                GroupAsk::Of { .. } => 0,
                _ => 100_000 * seed + dice.random_range(1..4_u64),
            };
            // Users of each seed are others, so that what an earlier one left is not seen.
            let ask = shifted(ask, 1_000 * seed);
            let has_answer = !matches!(ask, GroupAsk::Mark { .. });
            let asks = if has_answer { vec![ask] } else { vec![ask, GroupAsk::Get] };
            for ask in asks {
                let token = (!matches!(ask, GroupAsk::Mark { .. })).then_some(step);
                let request = Request::Group { group: id, ask: Box::new(ask.clone()), token };
                let mut expected = None;
                let mut give = |_, answer: Answer| expected = Some(answer.reply);
                model.apply(&mut vec![(0, request.clone())], &mut give);
                if token.is_none() {
                    running.send(0, request);
                    continue;
                }
                let given = running.ask(0, request);
                if let Reply::Group(reply) = &given
                    && let GroupReply::Stored { stamp, .. } = **reply
                {
                    stamps.push(stamp);
                }
                let (given, expected) = (comparable(&ask, given), expected.map(|reply| comparable(&ask, reply)));
                assert_eq!(Some(given), expected, "seed {seed}, step {step}: group {id}: {ask:?}");
            }
        }
        assert!(running.store.unwrap().stop());
    }
}

/// An answer without what only a store says that may lose what it has written.
fn comparable(ask: &GroupAsk, mut reply: Reply) -> Reply {
    if let GroupAsk::Read { after, .. } = ask
        && let Reply::Group(reply) = &mut reply
        && let GroupReply::Page { page, .. } = &mut **reply
        && *after > page.last
    {
        page.truncated = false;
    }
    reply
}

/// The same for other users; services stay services.
fn shifted(ask: GroupAsk, by: u64) -> GroupAsk {
    let sender = |from: u64| from.checked_add(by).unwrap_or(from);
    match ask {
        GroupAsk::Append { record, retry } => {
            let record = trunkline_store::Record { from: sender(record.from), ..record };
            GroupAsk::Append { record, retry }
        }
        GroupAsk::Admit { from, stamp } => GroupAsk::Admit { from: sender(from), stamp },
        GroupAsk::Join { user, member, added, create } => GroupAsk::Join { user: user + by, member, added, create },
        GroupAsk::Leave { user } => GroupAsk::Leave { user: user + by },
        GroupAsk::Change { user, change } => GroupAsk::Change { user: user + by, change },
        GroupAsk::Members { after, limit } => GroupAsk::Members { after: after + by, limit },
        GroupAsk::Read { user, after, since_ms, limit, bytes_max } => {
            GroupAsk::Read { user: user.map(|user| user + by), after, since_ms, limit, bytes_max }
        }
        GroupAsk::Mark { user, stamp } => GroupAsk::Mark { user: user + by, stamp },
        GroupAsk::Of { user } => GroupAsk::Of { user: user + by },
        other => other,
    }
}

impl Running {
    pub(super) fn group(&self, source: u16, group: u64, ask: GroupAsk) -> Reply {
        self.ask(source, Request::Group { group, ask: Box::new(ask), token: Some(1) })
    }

    pub(super) fn join(&self, source: u16, group: u64, user: u64) -> Reply {
        let (member, added, create) = (Member::default(), false, true);
        self.group(source, group, GroupAsk::Join { user, member, added, create })
    }

    pub(super) fn say(&self, source: u16, group: u64, from: u64, id: u64) -> Reply {
        let record = record(stamp_at(self.clock_ms.load(Ordering::Relaxed)), id, 10);
        let record = trunkline_store::Record { from, ..record };
        self.group(source, group, GroupAsk::Append { record, retry: None })
    }

    fn groups_of(&self, user: u64) -> Vec<u64> {
        let reply = self.ask(0, Request::Group { group: 0, ask: Box::new(GroupAsk::Of { user }), token: Some(1) });
        let Reply::Group(reply) = reply else { panic!("{reply:?}") };
        let GroupReply::Of(of) = *reply else { panic!("{reply:?}") };
        of.iter().map(|membership| membership.group).collect()
    }
}

#[test]
fn a_home_of_an_earlier_view_changes_nothing_in_a_group_once_a_later_one_has_claimed() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let (old, new) = (1, 2);
    running.send(old, Request::View { epoch: 5 });
    running.send(new, Request::View { epoch: 6 });
    assert!(matches!(running.join(old, 900_001, 9_001), Reply::Group(_)));
    let Reply::Group(stored) = running.say(old, 900_001, 9_001, 1) else { panic!("not stored") };
    let GroupReply::Stored { stamp, .. } = *stored else { panic!("{stored:?}") };
    let claimed = Reply::Group(Box::new(GroupReply::Claimed { last: stamp }));
    assert_eq!(running.group(new, 900_001, GroupAsk::Claim), claimed);
    let stale = Reply::Refused(Refusal::Stale);
    assert_eq!(running.say(old, 900_001, 9_001, 2), stale);
    assert_eq!(running.join(old, 900_001, 9_002), stale);
    assert_eq!(running.group(old, 900_001, GroupAsk::Leave { user: 9_001 }), stale);
    assert_eq!(running.group(old, 900_001, GroupAsk::Claim), stale);
    assert!(matches!(running.say(new, 900_001, 9_001, 3), Reply::Group(_)));
    assert_eq!(running.groups_of(9_001), [900_001]);
    assert_eq!(running.groups_of(9_002), [0; 0]);
    // Who claims what never was a group leaves little behind; of one that has ended it is known where its log was.
    let kept_ms = |group: u64| -> i64 {
        let key = format!("tl:g:{{{group}}}");
        redis.ask(redis.master_of_slot(redis.slot_of(&key)), &["PTTL", &key]).unwrap().trim().parse().unwrap()
    };
    assert!(matches!(running.group(new, 900_002, GroupAsk::Claim), Reply::Group(_)));
    assert!((1..=60_000).contains(&kept_ms(900_002)), "{}", kept_ms(900_002));
    assert!(matches!(running.group(new, 900_001, GroupAsk::Delete), Reply::Group(_)));
    assert!(matches!(running.group(new, 900_001, GroupAsk::Claim), Reply::Group(_)));
    assert!(kept_ms(900_001) > 24 * 3_600_000);
}

#[test]
fn who_has_seen_more_than_the_log_has_ever_had_is_told_of_a_gap() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let (group, user) = (920_001, 9_200);
    assert!(matches!(running.join(0, group, user), Reply::Group(_)));
    let say = |id| match running.say(0, group, user, id) {
        Reply::Group(reply) => match *reply {
            GroupReply::Stored { stamp, .. } => stamp,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    let is_truncated = |running: &Running, after, since_ms| {
        let ask = GroupAsk::Read { user: Some(user), after, since_ms, limit: 10, bytes_max: 9_999 };
        match running.group(0, group, ask) {
            Reply::Group(reply) => match *reply {
                GroupReply::Page { page, next } => {
                    assert!(next >= page.floor || !page.truncated || page.floor == 0, "it is told once: {page:?}");
                    page.truncated
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let (first, last) = (say(1), say(2));
    let now_ms = running.clock_ms.load(Ordering::Relaxed);
    assert_eq!([0, first, last].map(|after| is_truncated(&running, after, 0)), [false; 3]);
    assert!(!is_truncated(&running, 0, now_ms + 60_000), "nobody has seen what comes later");
    // What is not stored has a position, too, and one behind the last where its home's clock is late.
    for stamp in [last + 100, 1] {
        let admitted = running.group(0, group, GroupAsk::Admit { from: user, stamp });
        assert_eq!(admitted, Reply::Group(Box::new(GroupReply::Admitted { members: 1 })));
    }
    let passed = last + 101;
    assert_eq!([100, 101, 102].map(|behind| is_truncated(&running, last + behind, 0)), [false, false, true]);
    // A replica that had not got the last message has taken over.
    let key = format!("tl:g:{{{group}}}");
    let master = redis.master_of_slot(redis.slot_of(&key));
    let back = format!("{}-{}", first >> 20, first & 0xF_FFFF);
    redis.ask(master, &["HSET", &key, "last", &back, "u", &back]).unwrap();
    redis.ask(master, &["DEL", &format!("tl:gl:{{{group}}}")]).unwrap();
    // A node that has not been told of it knows what who asks says; the one that has stored it knows better, and says
    // so with whatever it asks.
    let stranger = Running::start(&redis, limits(), None);
    let all = |running| [first, last, passed].map(|after| is_truncated(running, after, 0));
    assert_eq!(all(&stranger), [false, true, true]);
    assert_eq!((all(&running), all(&stranger)), ([true, false, false], [true, false, false]));
    // Who has not got what is lost is told that, whatever comes behind it.
    assert!(say(3) > last);
    assert_eq!(all(&stranger), [true, false, false]);

    // A group of an earlier version, which noted nothing of what it has passed on: its settings change.
    let now_ms = running.clock_ms.fetch_add(1_000, Ordering::Relaxed) + 1_000;
    redis.ask(master, &["HDEL", &key, "u"]).unwrap();
    let put = running.group(0, group, GroupAsk::Put { settings: GroupSettings::default() });
    assert!(matches!(put, Reply::Group(_)));
    assert!(!is_truncated(&stranger, stamp_at(now_ms) - 1, 0));
    assert!(stranger.store.unwrap().stop());
    assert!(running.store.unwrap().stop());
}

#[test]
fn groups_that_have_ended_do_not_count_for_their_members() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let (user, first) = (9_100, 910_000);
    let most = u64::from(bounds().groups_per_user_max);
    for group in first..first + most {
        assert!(matches!(running.join(0, group, user), Reply::Group(_)));
    }
    let many = Reply::Group(Box::new(GroupReply::Denied(GroupDenial::TooManyGroups)));
    assert_eq!(running.join(0, first + most, user), many);
    let deleted = Reply::Group(Box::new(GroupReply::Deleted { news: true, members: 1 }));
    assert_eq!(running.group(0, first, GroupAsk::Delete), deleted);
    let left = Reply::Group(Box::new(GroupReply::Left { news: true, last: 0 }));
    assert_eq!(running.group(0, first + 1, GroupAsk::Leave { user }), left);
    let joined = Reply::Group(Box::new(GroupReply::Joined { news: true, last: 0 }));
    assert_eq!(running.join(0, first + most, user), joined);
    assert_eq!(running.groups_of(user), (first + 2..=first + most).collect::<Vec<_>>());
    // A join and a leave that are asked for at once take effect in their order.
    for _ in 0..20 {
        let leave = Request::Group { group: first + 2, ask: Box::new(GroupAsk::Leave { user }), token: Some(8) };
        running.send(0, leave);
        let (member, added, create) = (Member::default(), false, true);
        let join = Box::new(GroupAsk::Join { user, member, added, create });
        running.send(0, Request::Group { group: first + 2, ask: join, token: Some(9) });
        for token in [8, 9] {
            let (_, answers) = running.answers.recv_timeout(super::PATIENCE).expect("an answer");
            assert_eq!(answers[0].token, token);
        }
        assert_eq!(running.groups_of(user).len() as u64, most - 1);
    }
}

#[test]
fn groups_are_exported_and_imported_with_what_those_have_said_who_have_left() {
    let redis = cluster().lock().unwrap_or_else(PoisonError::into_inner);
    let running = Running::start(&redis, limits(), None);
    let (group, copy) = (970_001, 970_002);
    let settings = GroupSettings { join: JoinRule::Api, members_max: 4, muted: false, ttl_s: 0 };
    running.group(0, group, GroupAsk::Put { settings });
    for (user, role) in [(97_001, Role::Member), (97_002, Role::Admin), (97_003, Role::Owner)] {
        let member = Member { role, muted_until_s: 0, notify: user == 97_001 };
        running.group(0, group, GroupAsk::Join { user, member, added: true, create: false });
    }
    // More than the log keeps.
    (0..30).for_each(|id| drop(running.say(0, group, 97_001 + id % 3, id)));
    running.group(0, group, GroupAsk::Leave { user: 97_003 });
    let read = |running: &Running, group| {
        let ask = GroupAsk::Read { user: None, after: 1, since_ms: 0, limit: 1_000, bytes_max: u32::MAX };
        match running.group(0, group, ask) {
            Reply::Group(reply) => match *reply {
                GroupReply::Page { page, .. } => page,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    };
    let last = read(&running, group).last;
    let mark = Request::Group { group, ask: Box::new(GroupAsk::Mark { user: 97_002, stamp: last }), token: None };
    running.send(0, mark);
    assert_eq!(read(&running, group).last, last, "the mark was before it");

    let of_tool = settings_of(&redis, limits(), None, &running.clock_ms);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tool = Tool::connect(of_tool).await.unwrap();
        let lines = async |group: u64| {
            let mut out = Vec::new();
            tool.export(&mut out).await.unwrap();
            let (text, of_group) = (String::from_utf8(out).unwrap(), format!("{{\"group\":\"{group}\","));
            text.lines().filter(|line| line.starts_with(&of_group)).map(|line| format!("{line}\n")).collect::<String>()
        };
        let exported = lines(group).await;
        let renamed = exported.replace("\"970001\"", "\"970002\"");
        let imported = tool.import(&mut renamed.as_bytes()).await.unwrap();
        let counts = (imported.groups, imported.members, imported.group_messages, imported.duplicates);
        let messages = read(&running, group).records.len() as u64;
        assert_eq!((counts, imported.refused), ((1, 2, messages, 0), 0));
        assert_eq!(lines(copy).await, renamed);
        assert_eq!(read(&running, copy), read(&running, group), "floor and end of the log are the same");
        let imported = tool.import(&mut renamed.as_bytes()).await.unwrap();
        assert_eq!((imported.groups, imported.members), (0, 0), "what is there stays");
        // More than are looked through for one that is sent again.
        assert_eq!((imported.group_messages, imported.duplicates), (0, messages));
        assert_eq!(read(&running, copy), read(&running, group));
    });
    assert!(running.groups_of(97_001).contains(&copy) && !running.groups_of(97_003).contains(&copy));
}
