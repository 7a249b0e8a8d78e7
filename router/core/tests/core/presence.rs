//! The embedded directory: every outcome by itself, then random histories against a model that is plain to see.

use proptest::prelude::*;
use std::collections::HashSet;
use trunkline_router_core::presence::{DEFAULT_DEVICE, DEVICES_PER_USER_LIMIT};
use trunkline_router_core::{Embedded, Entry, LoginOutcome, Presence};

fn entry(session: u64, device: &str) -> Entry {
    Entry::new(session, session as u32 + 1_000, 1_700_000_000, device, "")
}

fn sessions_of(directory: &Embedded, user: u64) -> Vec<u64> {
    directory.sessions(user).iter().map(|entry| entry.session).collect()
}

#[test]
fn an_entry_tells_what_it_was_made_of() {
    let made = Entry::new(7, 8, 9, "tablet", "large");
    assert_eq!((made.session, made.slot, made.since_s), (7, 8, 9));
    assert_eq!((made.device(), made.class()), ("tablet", "large"));
    let plain = Entry::new(7, 8, 9, "", "");
    assert_eq!((plain.device(), plain.class()), (DEFAULT_DEVICE, ""));
    let classed = Entry::new(7, 8, 9, "", "phone");
    assert_eq!((classed.device(), classed.class()), (DEFAULT_DEVICE, "phone"));
}

#[test]
fn the_unnamed_device_is_the_default_device() {
    assert_eq!(Entry::new(1, 2, 3, "", ""), Entry::new(1, 2, 3, DEFAULT_DEVICE, ""));
    assert_eq!(Entry::new(1, 2, 3, "", "phone"), Entry::new(1, 2, 3, DEFAULT_DEVICE, "phone"));
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(1, "")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(2, DEFAULT_DEVICE)), LoginOutcome::Replaced(entry(1, "")));
    assert_eq!(directory.session_count(), 1);
}

#[test]
fn a_newer_session_replaces_the_one_of_the_same_device_only() {
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(10, "a")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(11, "b")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(12, "a")), LoginOutcome::Replaced(entry(10, "a")));
    assert_eq!(sessions_of(&directory, 1), [12, 11]);
    assert_eq!((directory.users(), directory.session_count()), (1, 2));
}

#[test]
fn an_older_session_loses_and_is_given_back() {
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(10, "a")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(9, "a")), LoginOutcome::Stale(entry(9, "a")));
    assert_eq!(directory.sessions(1), [entry(10, "a")]);
}

#[test]
fn a_repeated_login_of_a_session_refreshes_it() {
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(10, "a")), LoginOutcome::Added);
    let elsewhere = Entry::new(10, 77, 1_700_000_001, "a", "phone");
    assert_eq!(directory.login(1, elsewhere.clone()), LoginOutcome::Refreshed);
    assert_eq!(directory.sessions(1), [elsewhere]);
    assert_eq!(directory.session_count(), 1);
}

#[test]
fn a_session_cannot_be_on_two_devices() {
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(10, "a")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(10, "b")), LoginOutcome::Stale(entry(10, "b")));
    assert_eq!(directory.login(1, entry(8, "b")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(10, "b")), LoginOutcome::Stale(entry(10, "b")));
    assert_eq!(sessions_of(&directory, 1), [10, 8]);
}

#[test]
fn a_late_logout_leaves_the_newer_login() {
    let mut directory = Embedded::new(4, 4);
    assert_eq!(directory.login(1, entry(10, "a")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(11, "a")), LoginOutcome::Replaced(entry(10, "a")));
    assert_eq!(directory.logout(1, 10), None);
    assert_eq!(sessions_of(&directory, 1), [11]);
    assert_eq!(directory.logout(2, 11), None);
    assert_eq!(directory.logout(1, 11), Some(entry(11, "a")));
    assert_eq!(directory.logout(1, 11), None);
    assert_eq!((directory.users(), directory.session_count()), (0, 0));
    assert_eq!(directory.sessions(1), []);
}

#[test]
fn one_device_too_many_is_refused_and_a_known_one_is_not() {
    let mut directory = Embedded::new(2, 4);
    assert_eq!(directory.login(1, entry(1, "a")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(2, "b")), LoginOutcome::Added);
    assert_eq!(directory.login(1, entry(3, "c")), LoginOutcome::TooManyDevices);
    assert_eq!(directory.login(1, entry(4, "b")), LoginOutcome::Replaced(entry(2, "b")));
    assert_eq!(directory.logout(1, 1), Some(entry(1, "a")));
    assert_eq!(directory.login(1, entry(5, "c")), LoginOutcome::Added);
    assert_eq!(sessions_of(&directory, 1), [4, 5]);
}

#[test]
fn one_user_too_many_is_refused_and_a_known_one_is_not() {
    let mut directory = Embedded::new(2, 2);
    assert_eq!(directory.login(1, entry(1, "")), LoginOutcome::Added);
    assert_eq!(directory.login(2, entry(2, "")), LoginOutcome::Added);
    assert_eq!(directory.login(3, entry(3, "")), LoginOutcome::Full);
    assert_eq!(directory.login(2, entry(4, "b")), LoginOutcome::Added);
    assert_eq!(directory.login(2, entry(5, "")), LoginOutcome::Replaced(entry(2, "")));
    assert_eq!(directory.sessions(3), []);
    assert_eq!(directory.logout(1, 1), Some(entry(1, "")));
    assert_eq!(directory.login(3, entry(6, "")), LoginOutcome::Added);
    let mut closed = Embedded::new(1, 0);
    assert_eq!(closed.login(1, entry(1, "")), LoginOutcome::Full);
    assert_eq!(closed.memory_bytes(), 0);
}

#[test]
fn every_device_up_to_the_limit_has_its_own_session() {
    let mut directory = Embedded::new(DEVICES_PER_USER_LIMIT, 1);
    for session in 1..=DEVICES_PER_USER_LIMIT as u64 {
        assert_eq!(directory.login(1, entry(session, &format!("d{session}"))), LoginOutcome::Added);
    }
    assert_eq!(directory.login(1, entry(1_000, "more")), LoginOutcome::TooManyDevices);
    assert_eq!(directory.sessions(1).len(), DEVICES_PER_USER_LIMIT);
    for session in 1..=DEVICES_PER_USER_LIMIT as u64 {
        assert_eq!(directory.logout(1, session), Some(entry(session, &format!("d{session}"))));
    }
    assert_eq!(directory.users(), 0);
}

#[test]
#[should_panic(expected = "devices_per_user_max is 65")]
fn a_limit_of_devices_out_of_range_is_a_mistake_of_the_caller() {
    let _ = Embedded::new(DEVICES_PER_USER_LIMIT + 1, 1);
}

#[test]
fn a_full_table_costs_41_bytes_a_bucket_and_never_grows() {
    // 14,336 is 7/8 of 16,384 buckets.
    let mut directory = Embedded::new(4, 14_336);
    let table = directory.memory_bytes();
    for user in 1..=14_336_u64 {
        assert_eq!(directory.login(user, entry(user, "")), LoginOutcome::Added);
    }
    assert_eq!(directory.memory_bytes(), table);
    let per_bucket = table as f64 / 16_384.0;
    assert!((40.9..41.1).contains(&per_bucket), "{per_bucket} bytes");
}

#[test]
fn devices_and_labels_give_their_memory_back() {
    let mut directory = Embedded::new(8, 8);
    assert_eq!(directory.login(1, entry(1, "")), LoginOutcome::Added);
    let table = directory.memory_bytes();
    let label = |text: usize| 32 + text;
    assert_eq!(directory.login(1, Entry::new(2, 0, 0, "laptop", "desktop")), LoginOutcome::Added);
    assert_eq!(directory.memory_bytes(), table + 2 * 24 + label(13));
    assert_eq!(directory.login(1, Entry::new(3, 0, 0, "tv", "")), LoginOutcome::Added);
    assert_eq!(directory.memory_bytes(), table + 3 * 24 + label(13) + label(2));
    assert!(matches!(directory.login(1, Entry::new(4, 0, 0, "laptop", "")), LoginOutcome::Replaced(_)));
    assert_eq!(directory.memory_bytes(), table + 3 * 24 + label(6) + label(2));
    assert!(directory.logout(1, 3).is_some());
    assert_eq!(directory.memory_bytes(), table + 2 * 24 + label(6));
    assert!(directory.logout(1, 1).is_some());
    assert_eq!(directory.memory_bytes(), table + label(6));
    assert!(directory.logout(1, 4).is_some());
    assert_eq!(directory.memory_bytes(), table);
}

/// Users come and go at the limit for a long time, which is what fills a table with marks of removed entries.
#[test]
fn the_memory_bound_holds_under_churn_at_the_limit() {
    for users_max in [1, 3, 7, 14, 15, 100, 449, 500, 896, 897, 1_000] {
        // Sessions without a label, one for each user, take no memory outside the table.
        let bound = Embedded::memory_bytes_max(users_max, 0, 0);
        let mut directory = Embedded::new(1, users_max);
        for user in 1..=20_000_u64 {
            if directory.users() == users_max {
                let gone = user - users_max as u64;
                assert!(directory.logout(gone, gone).is_some());
            }
            assert_eq!(directory.login(user, entry(user, "")), LoginOutcome::Added);
            assert!(directory.memory_bytes() <= bound, "{} of {bound} bytes", directory.memory_bytes());
        }
        assert_eq!(directory.users(), users_max);
    }
}

#[test]
fn the_memory_bound_saturates_instead_of_overflowing() {
    assert_eq!(Embedded::memory_bytes_max(usize::MAX, usize::MAX, usize::MAX), usize::MAX);
    assert_eq!(Embedded::memory_bytes_max(1, usize::MAX, usize::MAX), usize::MAX);
    assert_eq!(Embedded::memory_bytes_max(usize::MAX / 64, 1, 1), usize::MAX);
}

#[derive(Debug, Clone)]
enum Step {
    Login { user: u64, session: u64, device: &'static str, class: &'static str },
    Logout { user: u64, session: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    // Few users, devices and session ids, so that histories meet often.
    let user = || 1..8_u64;
    let session = || 1..24_u64;
    let device = prop::sample::select(vec!["", DEFAULT_DEVICE, "a", "b", "long name of a device", "c"]);
    let class = prop::sample::select(vec!["", "phone", "desktop"]);
    prop_oneof![
        3 => (user(), session(), device, class)
            .prop_map(|(user, session, device, class)| Step::Login { user, session, device, class }),
        2 => (user(), session()).prop_map(|(user, session)| Step::Logout { user, session }),
    ]
}

/// A list of (user, entry), searched from end to end for every question.
struct Model {
    online: Vec<(u64, Entry)>,
    devices_per_user_max: usize,
    users_max: usize,
}

impl Model {
    fn users(&self) -> usize {
        self.online.iter().map(|(user, _)| user).collect::<HashSet<_>>().len()
    }

    fn of(&self, user: u64) -> Vec<Entry> {
        self.online.iter().filter(|(owner, _)| *owner == user).map(|(_, entry)| entry.clone()).collect()
    }

    fn login(&mut self, user: u64, new: Entry) -> LoginOutcome {
        let of_user = self.of(user);
        let same_device = of_user.iter().find(|old| old.device() == new.device());
        let on_other_device = of_user.iter().any(|old| old.session == new.session && old.device() != new.device());
        if on_other_device || same_device.is_some_and(|old| old.session > new.session) {
            return LoginOutcome::Stale(new);
        }
        if let Some(old) = same_device.cloned() {
            let place = self.online.iter_mut().find(|(owner, known)| *owner == user && *known == old);
            place.expect("it was found above").1 = new.clone();
            return if old.session == new.session { LoginOutcome::Refreshed } else { LoginOutcome::Replaced(old) };
        }
        if of_user.is_empty() && self.users() == self.users_max {
            return LoginOutcome::Full;
        }
        if of_user.len() == self.devices_per_user_max {
            return LoginOutcome::TooManyDevices;
        }
        self.online.push((user, new));
        LoginOutcome::Added
    }

    fn logout(&mut self, user: u64, session: u64) -> Option<Entry> {
        let at = self.online.iter().position(|(owner, entry)| *owner == user && entry.session == session)?;
        Some(self.online.remove(at).1)
    }

    /// Labels, and the vectors of users with several sessions.
    fn heap_bytes(&self) -> usize {
        let labels = self.online.iter().map(|(_, entry)| {
            let device = if entry.device() == DEFAULT_DEVICE { "" } else { entry.device() };
            let text = device.len() + entry.class().len();
            if text == 0 { 0 } else { 32 + text }
        });
        let vectors = (0..8).map(|user| self.of(user).len()).filter(|&sessions| sessions > 1).map(|n| n * 24);
        labels.sum::<usize>() + vectors.sum::<usize>()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_in_the_model(
        steps in prop::collection::vec(step(), 0..300),
        devices_per_user_max in 1..=5_usize,
        users_max in 1..=8_usize,
    ) {
        let mut model = Model { online: Vec::new(), devices_per_user_max, users_max };
        let mut directory = Embedded::new(devices_per_user_max, users_max);
        let bound = Embedded::memory_bytes_max(users_max, users_max * devices_per_user_max, 64);
        for (slot, step) in (0_u32..).zip(steps) {
            match step {
                Step::Login { user, session, device, class } => {
                    let new = Entry::new(session, slot, slot / 10, device, class);
                    prop_assert_eq!(directory.login(user, new.clone()), model.login(user, new));
                }
                Step::Logout { user, session } => {
                    prop_assert_eq!(directory.logout(user, session), model.logout(user, session));
                }
            }
            for user in 0..=8 {
                prop_assert_eq!(directory.sessions(user), model.of(user));
            }
            prop_assert_eq!(directory.users(), model.users());
            prop_assert_eq!(directory.session_count(), model.online.len());
            prop_assert!(directory.memory_bytes() <= bound);
        }
        let table_and_heap = directory.memory_bytes();
        let heap = model.heap_bytes();
        for (user, entry) in std::mem::take(&mut model.online) {
            prop_assert_eq!(directory.logout(user, entry.session), Some(entry));
        }
        prop_assert_eq!(directory.users(), 0);
        prop_assert_eq!(table_and_heap - directory.memory_bytes(), heap);
    }
}
