//! Lines about groups: joins, leaves, members and what was said.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trunkline_client::{Client, Error, GroupMessage, History, is_live_room};

use crate::text;

/// Groups remembered for completion.
const KNOWN_MAX: usize = 1_000;

/// Messages of a group's history that are shown at most, the last ones, and their bytes.
const HISTORY_LEN_MAX: usize = 1_000;
const HISTORY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Groups that were seen or named, for whoever completes a line.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownGroups(Arc<Mutex<BTreeSet<u64>>>);

impl KnownGroups {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, group: u64) {
        let mut known = self.lock();
        if known.len() < KNOWN_MAX {
            known.insert(group);
        }
    }

    pub(crate) fn remove(&self, group: u64) {
        self.lock().remove(&group);
    }

    /// Those whose number begins with `digits`.
    pub(crate) fn beginning_with(&self, digits: &str) -> Vec<String> {
        self.lock().iter().map(u64::to_string).filter(|group| group.starts_with(digits)).collect()
    }
}

/// Joins; the answer as a line, or the sentence that says why not.
pub(crate) async fn join(client: &Client, group: u64) -> Result<String, String> {
    match client.join_group(group).await {
        Ok(_stamp) => Ok(format!("you are in {}; `/g {group} hello` says hello there", text::group(group))),
        Err(error) => Err(format!("not joined: {}", sentence(&error))),
    }
}

/// Leaves.
pub(crate) async fn leave(client: &Client, group: u64) -> Result<String, String> {
    match client.leave_group(group).await {
        Ok(()) => Ok(format!("you are not in {} any more", text::group(group))),
        Err(error) => Err(format!("not left: {}", sentence(&error))),
    }
}

/// The last messages of a group that the gateway keeps.
pub(crate) async fn history(client: &Client, group: u64) -> Result<Vec<GroupMessage>, String> {
    if is_live_room(group) {
        return Err("nothing is kept of a live room".into());
    }
    let (mut last, mut bytes, mut request) = (VecDeque::<GroupMessage>::new(), 0, History::all());
    loop {
        let page = client.group_history(group, request).await.map_err(|error| sentence(&error))?;
        for message in page.messages {
            bytes += message.body.len();
            last.push_back(message);
            while last.len() > HISTORY_LEN_MAX || bytes > HISTORY_BYTES_MAX {
                bytes -= last.pop_front().map_or(0, |first| first.body.len());
            }
        }
        if page.complete {
            return Ok(last.into());
        }
        request = History::after(page.next);
    }
}

fn sentence(error: &Error) -> String {
    text::printable(error.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_groups_are_bounded_and_found_by_their_first_digits() {
        let known = KnownGroups::default();
        (1..10_000).for_each(|group| known.add(group));
        assert_eq!(known.lock().len(), KNOWN_MAX);
        assert_eq!(
            known.beginning_with("99"),
            ["99", "990", "991", "992", "993", "994", "995", "996", "997", "998", "999"]
        );
        known.remove(99);
        assert!(!known.beginning_with("99").contains(&"99".into()) && known.beginning_with("x").is_empty());
    }
}
