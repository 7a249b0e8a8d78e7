//! Pushes to all sessions at the node that was asked for them: which are under way, and how far all shards are. No I/O
//! and no clock.

use crate::broadcast::{BROADCAST_BYTES_MAX, BROADCASTS_MAX, End, News, Part, Tally};
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Ended ones whose numbers are remembered; beyond it the oldest is forgotten.
pub(super) const ENDED_MAX: usize = 256;

/// How far one is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) id: u64,
    /// Whose push it is.
    pub(super) service: u16,
    pub(super) tally: Tally,
    /// Shards that were asked, of all nodes; it rises while the nodes are being asked.
    pub(super) shards: u32,
    /// Those of them that have met all their sessions, or have stopped.
    pub(super) done: u32,
    /// Those of which it is not known.
    pub(super) lost: u32,
    /// Somebody has stopped it.
    pub(super) stopped: bool,
    pub(super) over: bool,
}

/// Why one is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotBegun {
    /// As many are under way as may be, or as many bytes of them.
    Full,
    /// Another one had this id.
    OtherPush,
}

/// What became of a request for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It has this number now.
    New(u32),
    /// It was begun before.
    Known(Progress),
}

#[derive(Debug)]
struct Broadcast {
    token: u32,
    /// What it said.
    said: [u8; 16],
    bytes: usize,
    /// How far each shard is. Empty once it is over.
    parts: HashMap<Part, (Tally, Option<End>)>,
    /// The other nodes have been asked.
    asked: bool,
    progress: Progress,
}

impl Broadcast {
    fn told(&mut self, part: Part, tally: Tally, end: Option<End>) {
        let (known, ended) = self.parts.entry(part).or_default();
        if ended.is_some() {
            return;
        }
        // Of one that is lost what it has said last holds.
        if end != Some(End::Lost) {
            *known = tally;
        }
        *ended = end;
        self.add_up();
    }

    fn add_up(&mut self) {
        let Broadcast { parts, progress, asked, .. } = self;
        progress.tally = Tally::default();
        (progress.done, progress.lost) = (0, 0);
        for (tally, end) in parts.values() {
            // What other nodes say may be anything.
            progress.tally.delivered = progress.tally.delivered.saturating_add(tally.delivered);
            progress.tally.overloaded = progress.tally.overloaded.saturating_add(tally.overloaded);
            progress.done += u32::from(matches!(end, Some(End::Done | End::Stopped)));
            progress.lost += u32::from(matches!(end, Some(End::Lost)));
        }
        progress.over = *asked && progress.done + progress.lost >= progress.shards;
    }
}

/// Those of a node.
#[derive(Debug, Default)]
pub(super) struct Broadcasts {
    by_id: HashMap<u64, Broadcast>,
    /// Ids of those under way, by number.
    running: HashMap<u32, u64>,
    bytes: usize,
    /// Ids of ended ones, the oldest first.
    ended: VecDeque<u64>,
    last_token: u32,
}

impl Broadcasts {
    /// Begins one of a service with so long a payload, for a node with so many shards.
    pub(super) fn begin(
        &mut self,
        id: u64,
        service: u16,
        said: [u8; 16],
        bytes: usize,
        shards: u32,
    ) -> Result<Begun, NotBegun> {
        match self.by_id.get(&id) {
            Some(known) if known.said == said => return Ok(Begun::Known(known.progress)),
            Some(_) => return Err(NotBegun::OtherPush),
            None => {}
        }
        let is_full = self.running.len() >= BROADCASTS_MAX;
        if is_full || (!self.running.is_empty() && self.bytes + bytes > BROADCAST_BYTES_MAX) {
            return Err(NotBegun::Full);
        }
        self.last_token = self.last_token.wrapping_add(1);
        let token = self.last_token;
        let progress = Progress { id, service, shards, ..Progress::default() };
        let parts = (0..shards).map(|shard| (Part { node: 0, shard: shard as u16 }, Default::default())).collect();
        self.bytes += bytes;
        self.running.insert(token, id);
        self.by_id.insert(id, Broadcast { token, said, bytes, parts, asked: false, progress });
        Ok(Begun::New(token))
    }

    /// A shard has said something. Returns where the push stands if it is over with that.
    pub(super) fn hear(&mut self, news: News) -> Option<Progress> {
        let token = match news {
            News::Asked { token, .. } | News::Told { token, .. } => token,
        };
        let id = *self.running.get(&token)?;
        let broadcast = self.by_id.get_mut(&id)?;
        match news {
            News::Asked { parts, .. } => {
                broadcast.progress.shards += parts;
                broadcast.asked = true;
                broadcast.add_up();
            }
            News::Told { part, tally, end, .. } => broadcast.told(part, tally, end),
        }
        let progress = broadcast.progress;
        if !progress.over {
            return None;
        }
        broadcast.parts = HashMap::new();
        self.bytes -= broadcast.bytes;
        self.running.remove(&token);
        self.ended.push_back(id);
        if self.ended.len() > ENDED_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        Some(progress)
    }

    /// How far one is; `None` if nobody knows of it.
    pub(super) fn progress(&self, id: u64) -> Option<Progress> {
        self.by_id.get(&id).map(|broadcast| broadcast.progress)
    }

    /// Somebody stops one. Returns how far it is, and its number if the shards are to be told.
    pub(super) fn stop(&mut self, id: u64) -> Option<(Progress, Option<u32>)> {
        let broadcast = self.by_id.get_mut(&id)?;
        // Each time anew: what other nodes were told before may not have got there.
        let news = !broadcast.progress.over;
        broadcast.progress.stopped |= news;
        Some((broadcast.progress, news.then_some(broadcast.token)))
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(node: u64, shard: u16) -> Part {
        Part { node, shard }
    }

    fn new(broadcasts: &mut Broadcasts, id: u64) -> u32 {
        match broadcasts.begin(id, 7, [1; 16], 10, 2) {
            Ok(Begun::New(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn told(token: u32, part: Part, delivered: u64, overloaded: u64, end: Option<End>) -> News {
        News::Told { token, part, tally: Tally { delivered, overloaded }, end }
    }

    #[test]
    fn one_is_over_when_all_shards_of_all_nodes_have_ended_and_its_numbers_are_their_sums() {
        let mut broadcasts = Broadcasts::default();
        let token = new(&mut broadcasts, 5);
        assert_eq!(broadcasts.hear(told(token, part(0, 0), 10, 1, None)), None);
        assert_eq!(broadcasts.hear(told(token, part(0, 0), 20, 1, Some(End::Done))), None);
        assert_eq!(broadcasts.hear(told(token, part(0, 1), 5, 0, Some(End::Done))), None, "others are to be asked");
        // A node may answer before all have been asked.
        assert_eq!(broadcasts.hear(told(token, part(9, 0), 100, 0, Some(End::Done))), None);
        assert_eq!(broadcasts.hear(News::Asked { token, parts: 2 }), None);
        let progress = broadcasts.progress(5).unwrap();
        assert_eq!((progress.shards, progress.done, progress.lost, progress.over), (4, 3, 0, false));
        assert_eq!(progress.tally, Tally { delivered: 125, overloaded: 1 });
        // What an ended shard says again is no matter, and what of nobody.
        assert_eq!(broadcasts.hear(told(token, part(9, 0), 999, 0, Some(End::Done))), None);
        assert_eq!(broadcasts.hear(told(token + 1, part(9, 1), 999, 0, Some(End::Done))), None);
        let over = broadcasts.hear(told(token, part(9, 1), 0, 0, Some(End::Lost))).expect("that was the last");
        assert_eq!((over.done, over.lost, over.over, over.stopped), (3, 1, true, false));
        assert_eq!(over.tally, Tally { delivered: 125, overloaded: 1 });
        assert_eq!((broadcasts.progress(5), broadcasts.len()), (Some(over), 0));
        assert_eq!(broadcasts.stop(5), Some((over, None)), "it is over");
    }

    #[test]
    fn a_stop_is_told_once_and_counts_what_was_given_before() {
        let mut broadcasts = Broadcasts::default();
        let token = new(&mut broadcasts, 5);
        broadcasts.hear(News::Asked { token, parts: 0 });
        assert_eq!(broadcasts.stop(6), None);
        assert_eq!(broadcasts.stop(5).unwrap().1, Some(token));
        assert_eq!(broadcasts.stop(5).unwrap().1, Some(token), "it may not have got there");
        broadcasts.hear(told(token, part(0, 0), 3, 0, Some(End::Stopped)));
        let over = broadcasts.hear(told(token, part(0, 1), 4, 0, Some(End::Done))).unwrap();
        assert_eq!((over.tally.delivered, over.stopped, over.done), (7, true, 2));
    }

    #[test]
    fn the_same_id_names_the_same_push_and_there_are_so_many_at_a_time() {
        let mut broadcasts = Broadcasts::default();
        for id in 1..=BROADCASTS_MAX as u64 {
            new(&mut broadcasts, id);
        }
        assert!(matches!(broadcasts.begin(1, 7, [1; 16], 10, 2), Ok(Begun::Known(_))));
        assert_eq!(broadcasts.begin(1, 7, [2; 16], 10, 2), Err(NotBegun::OtherPush));
        assert_eq!(broadcasts.begin(99, 7, [1; 16], 10, 2), Err(NotBegun::Full));
        let mut long = Broadcasts::default();
        assert!(matches!(long.begin(1, 7, [1; 16], 2 * BROADCAST_BYTES_MAX, 1), Ok(Begun::New(_))), "one always may");
        assert_eq!(long.begin(2, 7, [1; 16], 1, 1), Err(NotBegun::Full));
    }

    #[test]
    fn the_oldest_that_have_ended_are_forgotten() {
        let mut broadcasts = Broadcasts::default();
        for id in 1..=2 * ENDED_MAX as u64 {
            let token = new(&mut broadcasts, id);
            broadcasts.hear(News::Asked { token, parts: 0 });
            for shard in 0..2 {
                broadcasts.hear(told(token, part(0, shard), 0, 0, Some(End::Done)));
            }
        }
        assert_eq!((broadcasts.by_id.len(), broadcasts.len(), broadcasts.bytes), (ENDED_MAX, 0, 0));
        assert_eq!(broadcasts.progress(1), None);
    }
}
