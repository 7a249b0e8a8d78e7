use super::super::PresenceEntry;
use super::*;
use proptest::prelude::*;
use std::sync::Arc;

fn entry(session: u64) -> PresenceEntry {
    PresenceEntry {
        device: "d".into(),
        node: "n".into(),
        incarnation: 1,
        shard: 0,
        session,
        since_ms: 0,
        class: "".into(),
        // Any order that is not that of the sessions.
        version: session ^ 2,
    }
}

fn login(user: u64, session: u64) -> PresenceWrite {
    PresenceWrite::Login { user, entry: entry(session) }
}

fn logout(user: u64, session: u64) -> PresenceWrite {
    PresenceWrite::logout_of(user, &entry(session))
}

/// What the scripts do to one field, marks apart.
fn execute(stored: &mut Option<(u64, u64)>, write: &PresenceWrite) {
    let (_, session, _) = write.identity();
    if write.is_login() {
        if stored.is_none_or(|(version, held)| version < write.version() || held == session) {
            *stored = Some((write.version(), session));
        }
    } else if stored.is_some_and(|(_, held)| held == session) {
        *stored = None;
    }
}

fn queue() -> WriteQueue {
    WriteQueue::new(1_000, BYTES_MAX)
}

fn drain(queue: &mut WriteQueue) -> Vec<PresenceWrite> {
    let mut drained = Vec::new();
    while let Some(write) = queue.take(1).pop() {
        queue.done(0, &write);
        drained.push(write);
    }
    drained
}

#[test]
fn a_logout_then_a_newer_login_is_the_login_alone() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 4)) && queue.push(0, logout(1, 4)) && queue.push(0, login(1, 5)));
    assert_eq!(queue.len(), 1);
    assert_eq!(drain(&mut queue), [login(1, 5)]);
    assert!(queue.is_empty() && queue.bytes() == 0);
}

#[test]
fn a_login_and_its_logout_are_both_written() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 4)) && queue.push(0, logout(1, 4)));
    assert_eq!(drain(&mut queue), [login(1, 4), logout(1, 4)]);
}

#[test]
fn a_late_logout_of_an_older_session_does_not_remove_the_newer_login() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 5)) && queue.push(0, logout(1, 4)));
    let mut stored = Some((4 ^ 2, 4));
    drain(&mut queue).iter().for_each(|write| execute(&mut stored, write));
    assert_eq!(stored, Some((5 ^ 2, 5)));
}

#[test]
fn one_write_of_a_device_is_on_its_way_at_a_time() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 4)) && queue.push(0, logout(1, 4)) && queue.push(0, login(2, 4)));
    let taken = queue.take(10);
    assert_eq!(taken, [login(1, 4), login(2, 4)]);
    assert!(queue.take(10).is_empty());
    queue.done(0, &taken[0]);
    assert_eq!(queue.take(10), [logout(1, 4)]);
}

#[test]
fn after_a_failed_login_the_logout_leaves_a_mark() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 4)));
    let taken = queue.take(1).remove(0);
    assert!(queue.push(0, logout(1, 4)));
    assert!(queue.failed(0, taken));
    assert_eq!(queue.len(), 2);
    let again = queue.take(1).remove(0);
    assert_eq!(again, login(1, 4));
    queue.done(0, &again);
    assert!(matches!(queue.take(1)[..], [PresenceWrite::Logout { fence: true, .. }]));
}

#[test]
fn a_full_queue_refuses_and_says_so_until_the_resync() {
    let mut queue = WriteQueue::new(2, BYTES_MAX);
    assert!(queue.push(0, login(1, 4)) && queue.push(0, login(2, 4)) && !queue.overflowed());
    assert!(!queue.push(0, login(3, 4)) && queue.overflowed());
    assert!(queue.push(0, login(2, 5)), "what takes another's place needs no room");
    let taken = queue.take(1).remove(0);
    queue.resync_began();
    assert!(!queue.overflowed());
    assert_eq!(queue.len(), 1, "what is on its way is still counted");
    assert!(!queue.failed(0, taken), "what was given up is not written again");
    assert!(queue.is_empty() && queue.bytes() == 0 && !queue.is_ready());
    let mut small = WriteQueue::new(100, 2 * WRITE_BYTES);
    assert!(small.push(0, login(1, 4)) && !small.push(0, login(2, 4)) && small.overflowed());
}

#[test]
fn a_resync_while_a_write_is_on_its_way_keeps_its_order() {
    let mut queue = queue();
    assert!(queue.push(0, login(1, 4)));
    let old = queue.take(1).remove(0);
    queue.resync_began();
    assert!(queue.push(0, login(1, 5)));
    assert!(queue.take(1).is_empty());
    assert!(!queue.failed(0, old));
    assert_eq!(queue.take(1), [login(1, 5)]);
}

#[test]
fn the_age_is_that_of_the_longest_waiting() {
    let mut queue = queue();
    assert_eq!(queue.oldest_age_ms(50), 0);
    assert!(queue.push(10, login(1, 4)) && queue.push(20, login(2, 4)));
    assert_eq!(queue.oldest_age_ms(50), 40);
    let taken = queue.take(1).remove(0);
    assert_eq!(queue.oldest_age_ms(50), 30);
    assert!(queue.failed(50, taken));
    assert_eq!(queue.oldest_age_ms(60), 50);
    drain(&mut queue);
    assert_eq!(queue.oldest_age_ms(60), 0);
}

/// What an owner and the drain do with the queue.
#[derive(Debug, Clone)]
enum Step {
    Push(u64, u64, bool),
    Take(usize),
    Done(usize),
    /// Failed; executed or not.
    Failed(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u64, 0..6_u64, any::<bool>()).prop_map(|(user, session, login)| Step::Push(user, session, login)),
        2 => (1..4_usize).prop_map(Step::Take),
        2 => (0..4_usize).prop_map(Step::Done),
        1 => (0..4_usize, any::<bool>()).prop_map(|(at, executed)| Step::Failed(at, executed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the store held before, it ends as if every write had been executed in the order of the pushes.
    #[test]
    fn coalescing_changes_no_outcome(
        steps in prop::collection::vec(step(), 0..40),
        before in prop::collection::vec(prop::option::of(0..6_u64), 3),
    ) {
        let before: Vec<Option<(u64, u64)>> =
            before.into_iter().map(|session| session.map(|session| (session ^ 2, session))).collect();
        let (mut expected, mut stored) = (before.clone(), before);
        let mut queue = queue();
        let mut on_their_way: Vec<PresenceWrite> = Vec::new();
        for step in steps {
            match step {
                Step::Push(user, session, is_login) => {
                    let write = if is_login { login(user, session) } else { logout(user, session) };
                    if queue.push(0, write.clone()) {
                        execute(&mut expected[user as usize], &write);
                    }
                }
                Step::Take(count) => on_their_way.extend(queue.take(count)),
                Step::Done(at) if at < on_their_way.len() => {
                    let write = on_their_way.remove(at);
                    execute(&mut stored[write.user() as usize], &write);
                    queue.done(0, &write);
                }
                Step::Failed(at, executed) if at < on_their_way.len() => {
                    let write = on_their_way.remove(at);
                    if executed {
                        execute(&mut stored[write.user() as usize], &write);
                    }
                    prop_assert!(queue.failed(0, write));
                }
                Step::Done(_) | Step::Failed(..) => {}
            }
            let mut keys: Vec<_> = on_their_way.iter().map(PresenceWrite::user).collect();
            keys.dedup();
            prop_assert_eq!(keys.len(), on_their_way.len());
        }
        for write in on_their_way {
            execute(&mut stored[write.user() as usize], &write);
            queue.done(0, &write);
        }
        for write in drain(&mut queue) {
            execute(&mut stored[write.user() as usize], &write);
        }
        prop_assert_eq!(stored, expected);
        prop_assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }
}

#[test]
fn writes_share_the_name_of_their_node() {
    let node: Arc<str> = "n".into();
    let shared = PresenceEntry { node: Arc::clone(&node), ..entry(1) };
    let write = PresenceWrite::logout_of(1, &shared);
    assert_eq!(Arc::strong_count(&node), 3, "{write:?}");
}
