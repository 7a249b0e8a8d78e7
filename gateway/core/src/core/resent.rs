//! Messages to durable groups that are sent again: what the home of the group takes for the same one.
//!
//! A store looks for such a message among the last ones of the log only, and a busy group has more of them in a second
//! than a reconnect takes. So the home remembers what it has taken lately, as homes of users do, and which of it came
//! with RETRY: the message that it repeats may have waited on a link that was cut, and comes behind it. Where another
//! node was the home a moment ago, which may have taken the RETRY, the store looks for what comes without it, too.

use super::shard::Shard;
use crate::desk::Known;
use crate::groups::PLACE;
use crate::limits::DUPLICATES_MS;
use trunkline_store::stamp_at;

/// For so many messages of a new home the store looks for those that do not say that they were sent again. By then the
/// end of the log, as far as a store looks, is this home's own.
const LOOKS_MAX: u32 = 256;

/// What became of a message to a group before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// It is in the log at this position.
    Stored(u64),
    /// It may be in the log above this position, and the store is to look for it; `None` if it was never taken.
    Unknown(Option<u64>),
}

impl Shard {
    /// What became of a message to a group whose home this is, if it was sent before. Some that do not say so were.
    pub(super) fn sent_to_group_before(&mut self, group: u64, from: u64, id: u64, retry: bool) -> Before {
        let place = group ^ PLACE;
        let Some(desk) = &self.desk else { return Before::Unknown(None) };
        let known = match retry {
            true => desk.duplicates.find(from, id, place),
            false => desk.duplicates.find_retried(from, id, place),
        };
        #[cfg(test)]
        let known = known.filter(|_| retry || !crate::simulation::planted(crate::simulation::Bug::LateTakenAnew));
        self.links.stats.overtaken.add(u64::from(!retry && known.is_some()));
        match known {
            Some((stamp, Known::Stored)) => Before::Stored(stamp),
            // The store has not said so, or could not.
            Some(_) => Before::Unknown(Some(0)),
            None if retry => Before::Unknown(Some(0)),
            None => {
                // What was stored long ago is another message, whose sender has begun to count anew.
                let lately_ms = self.now.wall_ms.saturating_sub(2 * DUPLICATES_MS);
                let looks = !self.alone
                    && self.groups.homes.get(group).is_none_or(|home| home.added < LOOKS_MAX)
                    && self.directory.had_other_home(place, self.links.tick);
                Before::Unknown(looks.then(|| stamp_at(lately_ms)))
            }
        }
    }

    /// A message goes to the log of a group.
    pub(super) fn note_sent_to_group(&mut self, group: u64, from: u64, id: u64, stamp: u64, retry: bool) {
        let Some(desk) = &mut self.desk else { return };
        self.links.stats.limit_duplicates.add(u64::from(desk.duplicates.turn_over(self.links.tick)));
        desk.duplicates.note_new(from, id, group ^ PLACE, stamp, retry);
    }

    /// A message is in the log of a group. What is not stays known as one that may be: then the store looks for it.
    pub(super) fn note_stored_in_group(&mut self, group: u64, from: u64, id: u64, stamp: u64) {
        if let Some(desk) = &mut self.desk {
            desk.duplicates.note(from, id, group ^ PLACE, stamp, Known::Stored);
        }
        // What was refused is not in the log, and puts nothing between its end and what the former home stored.
        let home = self.groups.homes.at(group);
        home.added = home.added.saturating_add(1);
    }
}
