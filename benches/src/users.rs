//! Which users a bench logs in.

use std::collections::VecDeque;

use serde::Serialize;
use trunkline_router::hash::home_shard;

/// Where the two users of a pair live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Placement {
    /// Wherever their ids put them.
    Any,
    /// On the same shard.
    Within,
    /// On different shards.
    Across,
}

/// Users for `connections` connections, of which numbers 2k and 2k + 1 are a pair. `connections` is even, and `shards` at
/// least 2 for [`Placement::Across`].
pub(crate) fn pairs(connections: u32, shards: u32, placement: Placement) -> Vec<u64> {
    if placement == Placement::Any {
        return (1..=u64::from(connections)).collect();
    }
    let mut waiting = vec![VecDeque::new(); shards as usize];
    let mut users = Vec::with_capacity(connections as usize);
    for user in 1.. {
        if users.len() == connections as usize {
            break;
        }
        let home = home_shard(user, shards) as usize;
        let partner = match placement {
            Placement::Across => {
                let other = (0..waiting.len()).filter(|&shard| shard != home).max_by_key(|&shard| waiting[shard].len());
                other.and_then(|shard| waiting[shard].pop_front())
            }
            _ => waiting[home].pop_front(),
        };
        match partner {
            Some(partner) => users.extend([partner, user]),
            None => waiting[home].push_back(user),
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_live_where_they_were_asked_to() {
        for shards in [2, 3, 8] {
            for (placement, same) in [(Placement::Within, true), (Placement::Across, false)] {
                let users = pairs(1_000, shards, placement);
                assert_eq!(users.len(), 1_000);
                for pair in users.chunks(2) {
                    assert_eq!(home_shard(pair[0], shards) == home_shard(pair[1], shards), same, "{pair:?}");
                }
                let mut distinct = users.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), users.len());
            }
        }
    }
}
