//! What the shards that share a link say after a change of the view, that all of it has been told, gathered into one
//! record.
//!
//! A shard that has told of its sessions for a view says so to each other node, and nobody there can begin before all
//! have. So the word of one waits at the shard that has the link for that of the others who share it, and goes with
//! the last of them.
//!
//! Order: the word of a shard says that what came before it on the link belongs to that view, and a session that the
//! shard tells of later may be for a view that the other side does not have. So a Register of a shard whose word still
//! waits lets the words go first. They also go after [`GATHER_TICKS`], whoever is late, and before those for another
//! view.

use super::{FarError, GivenBack, LinkState, Mesh, PeerLink, Placed};
use crate::mesh::link::LinkFull;
use crate::mesh::spread::Spread;
use crate::mesh::wire::{Record, SETTLED_SET_SINCE};

/// Ticks that the word of some shards waits for that of the others at most.
pub(super) const GATHER_TICKS: u8 = 5;

/// The shards that have said so for one view.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    digest: u64,
    /// All of them, and those whose word has not been queued yet; bits as in [`Record::SettledSet`].
    said: Vec<u8>,
    waiting: Vec<u8>,
    /// Ticks since the first of those that wait.
    ticks: u8,
}

impl Gathered {
    fn new(digest: u64, shards: u16) -> Self {
        let bytes = usize::from(shards).div_ceil(8);
        Gathered { digest, said: vec![0; bytes], waiting: vec![0; bytes], ticks: 0 }
    }

    fn waits(&self) -> bool {
        self.waiting.iter().any(|byte| *byte != 0)
    }

    fn has_waiting(&self, shard: u16) -> bool {
        let byte = self.waiting.get(usize::from(shard / 8));
        byte.is_some_and(|byte| byte >> (shard % 8) & 1 == 1)
    }

    fn say(&mut self, shard: u16) {
        let (at, bit) = (usize::from(shard / 8), 1 << (shard % 8));
        for set in [&mut self.said, &mut self.waiting] {
            if let Some(byte) = set.get_mut(at) {
                *byte |= bit;
            }
        }
    }

    /// The word of a shard could not be queued, and it will say it again.
    fn unsay(&mut self, shard: u16) {
        let (at, bit) = (usize::from(shard / 8), 1 << (shard % 8));
        for set in [&mut self.said, &mut self.waiting] {
            if let Some(byte) = set.get_mut(at) {
                *byte &= !bit;
            }
        }
    }

    fn is_whole(&self, sharers: u16) -> bool {
        self.said.iter().map(|byte| byte.count_ones()).sum::<u32>() >= u32::from(sharers)
    }
}

impl PeerLink {
    /// Queues the words that wait, if there are some.
    fn say_gathered(&mut self) -> Result<bool, LinkFull> {
        let Some(gathered) = self.gathered.as_mut().filter(|gathered| gathered.waits()) else { return Ok(false) };
        self.link.queue(&Record::SettledSet { digest: gathered.digest, from: &gathered.waiting })?;
        gathered.waiting.fill(0);
        gathered.ticks = 0;
        Ok(true)
    }
}

impl Mesh {
    /// Whether the words of the shards that share the links to a node go together: they share one, and the node knows
    /// such a record.
    pub(crate) fn gathers(&self, node: crate::ids::NodeKey) -> bool {
        self.peer(node).is_some_and(super::Peer::gathers)
    }

    /// Takes the word of shard `from`, which shares the link.
    ///
    /// # Errors
    /// The link has no room for what has to go now. The shard has said nothing then.
    pub(super) fn gather(&mut self, id: u32, from: u16, digest: u64) -> Result<Placed, FarError> {
        let shards = self.config.shards;
        self.let_gathered_go(id, |gathered, _| gathered.digest != digest)?;
        let Some(link) = self.links[id as usize].as_mut() else { return Err(FarError::Unknown) };
        // Where the word would find no room now, what was to come before it has found none either, and it would not be
        // true: the shard goes through its sessions again.
        let word = Record::SettledSet { digest, from: &vec![0; usize::from(shards).div_ceil(8)] };
        if !link.link.has_room_for(&word) {
            return Err(FarError::Full);
        }
        let gathered = match &mut link.gathered {
            Some(gathered) if gathered.digest == digest => gathered,
            other => other.insert(Gathered::new(digest, shards)),
        };
        gathered.say(from);
        if let Err(error) = self.let_gathered_go(id, Gathered::is_whole) {
            if let Some(gathered) = self.links[id as usize].as_mut().and_then(|link| link.gathered.as_mut()) {
                gathered.unsay(from);
            }
            return Err(error);
        }
        Ok(self.placed_on(id))
    }

    /// What shard `shard` tells of now must not come before its word that all has been told.
    ///
    /// # Errors
    /// The link has no room for that word, so there is none for what follows it.
    #[inline]
    pub(super) fn say_before(&mut self, id: u32, shard: u16) -> Result<(), FarError> {
        self.let_gathered_go(id, |gathered, _| gathered.has_waiting(shard))
    }

    fn let_gathered_go(&mut self, id: u32, goes: impl FnOnce(&Gathered, u16) -> bool) -> Result<(), FarError> {
        let Some(link) = self.links[id as usize].as_mut() else { return Ok(()) };
        if !link.gathered.as_ref().is_some_and(|gathered| goes(gathered, link.sharers)) {
            return Ok(());
        }
        let said = link.say_gathered().map_err(|full| match full {
            LinkFull::Bytes => FarError::Full,
            LinkFull::RecordTooLong => FarError::TooLong,
        })?;
        self.settled_sets += u64::from(said);
        self.recount(id);
        Ok(())
    }

    fn placed_on(&self, id: u32) -> Placed {
        match self.links[id as usize].as_ref().map(|link| link.state) {
            Some(LinkState::Wired { slot }) => Placed::Wired(slot),
            _ => Placed::Waits,
        }
    }

    /// Lets time pass: words that have waited long enough go without the others. One for which a link has no room
    /// goes with the next tick.
    pub(crate) fn say_late(&mut self) {
        if !self.carries {
            return;
        }
        for id in 0..self.links.len() as u32 {
            let Some(gathered) = self.links[id as usize].as_mut().and_then(|link| link.gathered.as_mut()) else {
                continue;
            };
            if !gathered.waits() {
                continue;
            }
            gathered.ticks = gathered.ticks.saturating_add(1);
            // What does not fit waits on.
            _ = self.let_gathered_go(id, |gathered, _| gathered.ticks >= GATHER_TICKS);
        }
    }

    /// Records that told so of all shards that share a link, or of some of them.
    pub(crate) fn settled_sets(&self) -> u64 {
        self.settled_sets
    }
}

impl PeerLink {
    /// The link is given up for now: what waits to be said on it goes back to the shards that have said it.
    pub(super) fn give_gathered_back(&mut self, back: &mut Vec<GivenBack>) {
        let Some(gathered) = self.gathered.take().filter(Gathered::waits) else { return };
        let record = Record::SettledSet { digest: gathered.digest, from: &gathered.waiting };
        let mut bytes = Vec::with_capacity(record.encoded_len());
        record.encode(&mut bytes);
        back.push(GivenBack { node: self.peer, maybe_received: false, bytes });
    }
}

impl super::Peer {
    pub(super) fn gathers(&self) -> bool {
        matches!(self.spread, Spread::Few { .. }) && self.protocol >= SETTLED_SET_SINCE
    }
}
