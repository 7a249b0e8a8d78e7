//! Groups on a store: what was answered is there after a crash, and the books say what they should whatever was cut.

use crate::support::{BEGIN_MS, Dice, Hands, ask, open};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use trunkline_store::{
    Embedded, Fault, GroupAsk, GroupDenial, GroupLimits, GroupReply, GroupSettings, Groups, JoinRule, Limits, Member,
    MemberChange, Memory, Payload, Record, Refusal, Reply, Request, Role, SimDisk, Store, WithGroups,
    group_store_limits, stamp_at,
};

type Both = WithGroups<Memory, Embedded>;

fn limits() -> Limits {
    group_store_limits(&Limits { log_bytes_max: 256 << 10, ..Limits::default() }, 50, 3_600_000)
}

/// Groups on a simulated disk, beside inboxes of no concern.
fn begin(disk: &SimDisk, hands: &Hands, of_members: GroupLimits) -> Both {
    let groups = Groups::open(open(disk, &limits(), hands), of_members, hands.clock()).expect("the books are read");
    WithGroups::new(Memory::new(Limits::default(), hands.clock(), 1), Some(groups))
}

fn group(store: &mut Both, group: u64, what: GroupAsk) -> GroupReply {
    match ask(store, Request::Group { group, ask: Box::new(what), token: Some(1) }) {
        Some(Reply::Group(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

fn join(store: &mut Both, id: u64, user: u64) -> GroupReply {
    group(store, id, GroupAsk::Join { user, member: Member::default(), added: false, create: true })
}

fn append(from: u64, id: u64, retry: bool) -> GroupAsk {
    let retry = retry.then_some(0);
    let payload = Payload::from(format!("{id}").into_bytes());
    GroupAsk::Append { record: Record { stamp: stamp_at(BEGIN_MS), from, id, flags: 0, payload }, retry }
}

fn read(store: &mut Both, id: u64) -> Vec<u64> {
    match group(store, id, GroupAsk::Read { user: None, after: 0, since_ms: 0, limit: 1_000, bytes_max: 1 << 20 }) {
        GroupReply::Page { page, .. } => page.records.iter().map(|record| record.id).collect(),
        GroupReply::Denied(GroupDenial::NoGroup) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn members(store: &mut Both, id: u64) -> Vec<u64> {
    match group(store, id, GroupAsk::Members { after: 0, limit: 1_000 }) {
        GroupReply::Members { members, .. } => members.iter().map(|member| member.user).collect(),
        GroupReply::Denied(GroupDenial::NoGroup) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_send_read_and_mark_and_nobody_else_does() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = begin(&disk, &hands, GroupLimits { members_max: 2, ..GroupLimits::default() });
    let denied = |denial| GroupReply::Denied(denial);
    assert_eq!(group(&mut store, 7, append(1, 1, false)), denied(GroupDenial::NotAMember));
    // Users from there on are services, which need no membership; but there has to be a group.
    let service = u64::MAX - 0xFFFF + 7;
    assert_eq!(group(&mut store, 7, append(service, 1, false)), denied(GroupDenial::NotAMember));
    assert_eq!(group(&mut store, 7, GroupAsk::Admit { from: service, stamp: 0 }), denied(GroupDenial::NotAMember));
    let join_only = GroupAsk::Join { user: 1, member: Member::default(), added: false, create: false };
    assert_eq!(group(&mut store, 7, join_only.clone()), denied(GroupDenial::NoGroup));
    assert!(matches!(join(&mut store, 7, 1), GroupReply::Joined { news: true, .. }));
    assert!(matches!(join(&mut store, 7, 1), GroupReply::Joined { news: false, .. }));
    assert!(matches!(join(&mut store, 7, 2), GroupReply::Joined { news: true, .. }));
    assert_eq!(join(&mut store, 7, 3), denied(GroupDenial::Full));
    let stored = group(&mut store, 7, append(1, 1, false));
    let GroupReply::Stored { stamp, duplicate: false, members: 2, before: 0 } = stored else { panic!() };
    let again = GroupReply::Stored { stamp, duplicate: true, members: 2, before: 0 };
    assert_eq!(group(&mut store, 7, append(1, 1, true)), again);
    assert_eq!(group(&mut store, 7, GroupAsk::Admit { from: 2, stamp: 0 }), GroupReply::Admitted { members: 2 });
    assert_eq!(group(&mut store, 7, GroupAsk::Admit { from: service, stamp: 0 }), GroupReply::Admitted { members: 2 });
    assert_eq!(group(&mut store, 7, GroupAsk::Admit { from: service - 8, stamp: 0 }), denied(GroupDenial::NotAMember));

    assert_eq!(ask(&mut store, mark(7, 2, u64::MAX)), None);
    assert_eq!(ask(&mut store, mark(7, 9, u64::MAX)), None, "of one who is no member nothing is kept");
    assert_eq!(group(&mut store, 7, GroupAsk::Reads { stamp }), GroupReply::Reads { read: 1, members: 2 });
    let GroupReply::Of(of) = group(&mut store, 0, GroupAsk::Of { user: 2 }) else { panic!() };
    assert_eq!((of.len(), of[0].group, of[0].last, of[0].read), (1, 7, stamp, stamp));

    let change = MemberChange { muted_until_s: Some(u32::MAX), ..MemberChange::default() };
    group(&mut store, 7, GroupAsk::Change { user: 2, change });
    assert_eq!(group(&mut store, 7, append(2, 1, false)), denied(GroupDenial::Muted));
    let settings = GroupSettings { muted: true, join: JoinRule::Api, ..GroupSettings::default() };
    assert!(matches!(group(&mut store, 7, GroupAsk::Put { settings }), GroupReply::Put { created: false, .. }));
    assert_eq!(group(&mut store, 7, append(1, 2, false)), denied(GroupDenial::Muted));
    let change = MemberChange { role: Some(Role::Admin), ..MemberChange::default() };
    group(&mut store, 7, GroupAsk::Change { user: 1, change });
    let next = group(&mut store, 7, append(1, 2, false));
    assert!(matches!(next, GroupReply::Stored { before, .. } if before == stamp), "{next:?} behind {stamp}");
    group(&mut store, 7, GroupAsk::Leave { user: 2 });
    assert_eq!(
        group(&mut store, 7, GroupAsk::Join { user: 2, member: Member::default(), added: false, create: true }),
        denied(GroupDenial::NotOpen)
    );
    assert_eq!(group(&mut store, 7, GroupAsk::Delete), GroupReply::Deleted { news: true, members: 1 });
    assert_eq!((members(&mut store, 7), read(&mut store, 7)), (vec![], vec![]));
}

fn mark(group: u64, user: u64, stamp: u64) -> Request {
    Request::Group { group, ask: Box::new(GroupAsk::Mark { user, stamp }), token: None }
}

#[test]
fn a_full_log_lets_the_oldest_go_and_members_stay_however_old_their_book_is() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = begin(&disk, &hands, GroupLimits::default());
    for user in 1..=100 {
        join(&mut store, 7, user);
    }
    for id in 1..=120 {
        assert!(matches!(group(&mut store, 7, append(1, id, false)), GroupReply::Stored { .. }));
    }
    let left = read(&mut store, 7);
    assert!(left.len() <= 50 && left.last() == Some(&120), "{left:?}");
    hands.pass(4_000_000);
    assert_eq!((read(&mut store, 7), members(&mut store, 7).len()), (vec![], 100));
    store.close();
    drop(store);
    let mut store = begin(&disk, &hands, GroupLimits::default());
    assert_eq!(members(&mut store, 7).len(), 100);
}

#[test]
fn marks_are_there_after_a_while_and_books_that_are_long_are_begun_anew() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = begin(&disk, &hands, GroupLimits::default());
    join(&mut store, 7, 1);
    let GroupReply::Stored { stamp, .. } = group(&mut store, 7, append(1, 1, false)) else { panic!() };
    ask(&mut store, mark(7, 1, stamp));
    // Far more joins and leaves than members.
    for round in 0..1_500 {
        join(&mut store, 7, 2 + round % 3);
        group(&mut store, 7, GroupAsk::Leave { user: 2 + round % 3 });
        hands.pass(10);
        store.tick();
    }
    let begun = store.groups().expect("groups").stats().books_begun.load(Ordering::Relaxed);
    assert!(begun >= 2, "{begun}");
    drop(store);
    let mut store = begin(&disk, &hands, GroupLimits::default());
    assert_eq!(members(&mut store, 7), [1]);
    assert_eq!(group(&mut store, 7, GroupAsk::Reads { stamp }), GroupReply::Reads { read: 1, members: 1 });
}

#[test]
fn what_was_answered_is_there_after_a_crash_and_what_was_refused_never_happened() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let (disk, hands) = (SimDisk::new(), Hands::new());
        let mut store = begin(&disk, &hands, GroupLimits::default());
        let mut model: BTreeMap<u64, (BTreeSet<u64>, Vec<u64>)> = BTreeMap::new();
        let mut id = 0;
        // A batch that failed may be on disk all the same, until a later one takes it back: a crash may bring it to
        // light.
        let mut doubtful = false;
        for _ in 0..120 {
            let (of, user) = (1 + dice.below(3), 1 + dice.below(5));
            if dice.below(12) == 0 {
                disk.set_fault(Some(Fault::Full));
            }
            // Several in one batch: what comes behind sees what came before.
            let mut batch = Vec::new();
            let mut asked = Vec::new();
            for token in 0..=dice.below(3) {
                let what = match dice.below(10) {
                    0..4 => GroupAsk::Join { user, member: Member::default(), added: false, create: true },
                    4 | 5 => GroupAsk::Leave { user },
                    6 => GroupAsk::Delete,
                    _ => {
                        id += 1;
                        append(user, id, false)
                    }
                };
                asked.push(what.clone());
                batch.push((3, Request::Group { group: of, ask: Box::new(what), token: Some(token) }));
            }
            let mut answers = Vec::new();
            store.apply(&mut batch, &mut |_, answer| answers.push(answer.reply));
            for (what, reply) in asked.into_iter().zip(answers) {
                let Reply::Group(reply) = reply else {
                    assert!(matches!(reply, Reply::Refused(Refusal::Unavailable)), "seed {seed}: {reply:?}");
                    doubtful = true;
                    continue;
                };
                let is_written = matches!(
                    *reply,
                    GroupReply::Joined { news: true, .. }
                        | GroupReply::Left { news: true, .. }
                        | GroupReply::Stored { .. }
                        | GroupReply::Deleted { news: true, .. }
                );
                doubtful &= !is_written;
                match (what, *reply) {
                    (GroupAsk::Join { user, .. }, GroupReply::Joined { .. }) => {
                        model.entry(of).or_default().0.insert(user);
                    }
                    (GroupAsk::Leave { user }, GroupReply::Left { .. }) => {
                        model.entry(of).or_default().0.remove(&user);
                    }
                    (GroupAsk::Append { record, .. }, GroupReply::Stored { .. }) => {
                        model.entry(of).or_default().1.push(record.id);
                    }
                    (GroupAsk::Delete, GroupReply::Deleted { .. }) => drop(model.remove(&of)),
                    (_, GroupReply::Denied(_)) => {}
                    (what, reply) => panic!("seed {seed}: {what:?} {reply:?}"),
                }
            }
            disk.set_fault(None);
            hands.pass(200);
            store.tick();
            if dice.below(15) == 0 && !doubtful {
                drop(store);
                disk.crash(dice.roll());
                store = begin(&disk, &hands, GroupLimits::default());
            }
            for group in 1..=3 {
                let (its_members, messages) = model.get(&group).cloned().unwrap_or_default();
                assert_eq!(members(&mut store, group), Vec::from_iter(its_members), "seed {seed}, group {group}");
                let kept = read(&mut store, group);
                assert!(messages.ends_with(&kept), "seed {seed}, group {group}: {kept:?} of {messages:?}");
                assert!(kept.len() >= messages.len().min(40), "seed {seed}, group {group}");
            }
        }
    }
}

#[test]
fn groups_that_are_exported_and_imported_are_the_same() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = begin(&disk, &hands, GroupLimits::default());
    let settings = GroupSettings { join: JoinRule::Api, members_max: 9, muted: false, ttl_s: 0 };
    group(&mut store, 7, GroupAsk::Put { settings });
    let roles = [Role::Member, Role::Admin, Role::Owner];
    for (user, role) in (1..=3).zip(roles) {
        let member = Member { role, muted_until_s: u32::from(user == 2), notify: user != 3 };
        group(&mut store, 7, GroupAsk::Join { user, member, added: true, create: false });
    }
    // More than the log keeps, so that there is a floor; and the sender of some has left.
    let stamps: Vec<u64> = (0..80)
        .map(|id| match group(&mut store, 7, append(1 + id % 3, id, false)) {
            GroupReply::Stored { stamp, .. } => stamp,
            other => panic!("{other:?}"),
        })
        .collect();
    store.apply(&mut vec![(0, mark(7, 1, stamps[70])), (0, mark(7, 2, stamps[79]))], &mut |_, _| {});
    group(&mut store, 7, GroupAsk::Leave { user: 3 });
    join(&mut store, 8, 5);
    group(&mut store, 9, GroupAsk::Put { settings: GroupSettings::default() });

    let export = |store: &mut Both| {
        let mut lines = Vec::new();
        store.groups().expect("some").export(&mut lines).expect("they are written");
        lines
    };
    let lines = export(&mut store);
    let other = SimDisk::new();
    let mut inboxes = open(&SimDisk::new(), &limits(), &hands);
    let mut copy = begin(&other, &hands, GroupLimits::default());
    let imported = inboxes.import_with(copy.groups(), &mut &lines[..]).expect("they are read");
    assert_eq!((imported.groups, imported.members, imported.refused), (3, 3, 0));
    assert_eq!(imported.group_messages, read(&mut store, 7).len() as u64);
    // Once more, and after a crash: what is there stays.
    drop(copy);
    for _ in 0..2 {
        let mut copy = begin(&other, &hands, GroupLimits::default());
        let again = inboxes.import_with(copy.groups(), &mut &lines[..]).expect("they are read");
        assert_eq!((again.groups, again.members, again.group_messages), (0, 0, 0));
        assert_eq!(again.duplicates, imported.group_messages);
        assert_eq!(export(&mut copy), lines);
    }
    let mut copy = begin(&other, &hands, GroupLimits::default());
    let page = |store: &mut Both| {
        group(store, 7, GroupAsk::Read { user: Some(1), after: 1, since_ms: 0, limit: 1_000, bytes_max: 1 << 20 })
    };
    assert_eq!(page(&mut copy), page(&mut store), "floor and end of the log are the same");
    assert_eq!(group(&mut copy, 7, GroupAsk::Reads { stamp: stamps[75] }), GroupReply::Reads { read: 1, members: 2 });
    // The next message has a later position.
    let GroupReply::Stored { stamp, .. } = group(&mut copy, 7, append(1, 100, false)) else { panic!("it is stored") };
    assert!(stamp > stamps[79]);
    let refused = inboxes.import(&mut &lines[..]).expect_err("there are no groups to take them");
    assert!(refused.to_string().starts_with("line 1: "), "{refused}");
    let room = "{\"group\":\"9223372036854775808\",\"members\":[]}\n";
    let refused = inboxes.import_with(copy.groups(), &mut room.as_bytes()).expect_err("nothing is kept of a room");
    assert!(refused.to_string().contains("is not a group"), "{refused}");
}

#[test]
fn an_import_holds_the_limits_of_members_and_groups() {
    let (disk, hands) = (SimDisk::new(), Hands::new());
    let mut store = begin(&disk, &hands, GroupLimits::default());
    for user in 1..=5 {
        join(&mut store, 7, user);
        join(&mut store, 8, user);
    }
    group(&mut store, 8, append(1, 1, false));
    let mut lines = Vec::new();
    store.groups().expect("some").export(&mut lines).expect("they are written");
    let mut inboxes = open(&SimDisk::new(), &limits(), &hands);
    let most = GroupLimits { members_max: 3, groups_max: 1, ..GroupLimits::default() };
    let mut copy = begin(&SimDisk::new(), &hands, most);
    let imported = inboxes.import_with(copy.groups(), &mut &lines[..]).expect("they are read");
    assert_eq!((imported.groups, imported.members), (1, 3));
    assert_eq!(imported.refused, 2 + 1 + 1 + 5, "two members; a group with a message and five members");
    assert_eq!((members(&mut copy, 7), members(&mut copy, 8)), (vec![1, 2, 3], vec![]));
}
