//! Who is online: what this client watches, over all connections, and what it is told of it.

use std::collections::BTreeSet;

use trunkline_proto::UserState;

use crate::Error;

/// Users watched at once, at most: as many as a gateway can be set to allow.
pub(crate) const WATCHED_MAX: usize = 10_000;

/// Whether a user is online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Online {
    /// At least one device is connected, or was until some seconds ago.
    Yes,
    /// No device is connected. So does a user look whom this one may not watch.
    No,
    /// The gateway cannot say at the moment, and tells as soon as it can.
    Unknown,
}

/// What is so of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserPresence {
    /// The user.
    pub user: u64,
    /// Whether the user is online.
    pub online: Online,
    /// The class of each device that tells one, such as `phone`.
    pub device_classes: Vec<String>,
    /// Since when it has been so, in milliseconds since the epoch by the gateway's clock; 0 where that is not known.
    pub since_ms: u64,
}

impl From<UserState> for UserPresence {
    fn from(state: UserState) -> Self {
        let online = match (state.online, state.unknown) {
            (_, true) => Online::Unknown,
            (true, false) => Online::Yes,
            (false, false) => Online::No,
        };
        let UserState { user, device_classes, since_ms, .. } = state;
        Self { user, online, device_classes, since_ms }
    }
}

/// Somebody wants to watch, or no more.
#[derive(Debug)]
pub(crate) enum WatchAsk {
    Follow(Vec<u64>),
    Once(Vec<u64>),
    /// No user means all.
    Stop(Vec<u64>),
}

/// Users who are watched until that is ended, over all connections.
#[derive(Debug, Default)]
pub(crate) struct Watched(BTreeSet<u64>);

impl Watched {
    /// The users, in order.
    pub(crate) fn users(&self) -> Vec<u64> {
        self.0.iter().copied().collect()
    }

    /// Notes what is asked for. What is beyond the bound is asked for on this connection only.
    pub(crate) fn note(&mut self, ask: &WatchAsk) {
        match ask {
            WatchAsk::Follow(users) => {
                for user in users {
                    if self.0.len() < WATCHED_MAX {
                        self.0.insert(*user);
                    }
                }
            }
            WatchAsk::Once(_) => {}
            WatchAsk::Stop(users) if users.is_empty() => self.0.clear(),
            WatchAsk::Stop(users) => self.0.retain(|user| !users.contains(user)),
        }
    }
}

/// Checks users that an application names.
pub(crate) fn checked(users: impl IntoIterator<Item = u64>) -> Result<Vec<u64>, Error> {
    let users: Vec<u64> = users.into_iter().collect();
    if users.contains(&0) { Err(Error::NoSuchUser) } else { Ok(users) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_is_noted_until_it_is_not_and_is_bounded() {
        let mut watched = Watched::default();
        watched.note(&WatchAsk::Follow(vec![3, 1, 2]));
        watched.note(&WatchAsk::Once(vec![9]));
        watched.note(&WatchAsk::Stop(vec![2, 7]));
        assert_eq!(watched.0.iter().copied().collect::<Vec<_>>(), [1, 3]);
        watched.note(&WatchAsk::Stop(vec![]));
        assert!(watched.0.is_empty());
        watched.note(&WatchAsk::Follow((1..=2 * WATCHED_MAX as u64).collect()));
        assert_eq!(watched.0.len(), WATCHED_MAX);
    }
}
