//! The ways between the shards of a node and its services thread: for each shard a lane of batches in each direction.
//!
//! Whoever has something gathers it and hands it over at once; then a shard rings the bell of the thread, and the
//! thread wakes the core of the shard. Neither side waits for the other. What is under way is counted, so that who
//! gathers can refuse what there is no room for: the bounds are those of the portals made of this, for pushes
//! ([`portal`](crate::portal)), calls ([`services`](crate::services)), events ([`events`](crate::events)) and logins
//! ([`hook`](crate::hook)).

use crate::bell::Bell;
use crate::waker::Waker;
use crossbeam_queue::SegQueue;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What goes over at once. The default is empty.
pub trait Batch: Default {
    /// How much it is: bytes, or items that are none. An empty batch does not go over.
    fn load(&self) -> usize;
}

impl<T> Batch for Vec<T> {
    fn load(&self) -> usize {
        self.len()
    }
}

/// Batches on their way in one direction.
#[derive(Debug, Default)]
struct Lane<B> {
    batches: SegQueue<B>,
    /// The load of all of them.
    load: AtomicUsize,
}

impl<B: Batch> Lane<B> {
    fn push(&self, batch: B) {
        self.load.fetch_add(batch.load(), Ordering::Relaxed);
        self.batches.push(batch);
    }

    fn pop(&self) -> Option<B> {
        let batch = self.batches.pop()?;
        self.load.fetch_sub(batch.load(), Ordering::Relaxed);
        Some(batch)
    }

    fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }
}

/// What lies between one shard and the services thread.
#[derive(Debug, Default)]
struct Pair<In, Out> {
    to_shard: Lane<In>,
    to_thread: Lane<Out>,
    waker: OnceLock<Arc<Waker>>,
}

/// The lanes of a node: `In` goes to shards, `Out` to the services thread, and `Own` is what else a portal has for both
/// sides to see.
#[derive(Debug)]
pub struct Lanes<In, Out, Own = ()> {
    by_shard: Arc<[Pair<In, Out>]>,
    bell: Arc<Bell>,
    pub(crate) own: Arc<Own>,
}

impl<In, Out, Own> Clone for Lanes<In, Out, Own> {
    fn clone(&self) -> Self {
        Lanes { by_shard: self.by_shard.clone(), bell: self.bell.clone(), own: self.own.clone() }
    }
}

impl<In: Batch, Out: Batch, Own> Lanes<In, Out, Own> {
    pub(crate) fn with(shards: u16, own: Own) -> Self {
        Lanes { by_shard: (0..shards).map(|_| Pair::default()).collect(), bell: Arc::default(), own: Arc::new(own) }
    }

    /// How a shard is woken.
    pub fn set_waker(&self, shard: u16, waker: Arc<Waker>) {
        if let Some(pair) = self.by_shard.get(usize::from(shard)) {
            // A shard has one core for as long as it lives.
            let _ = pair.waker.set(waker);
        }
    }

    /// What tells the services thread that there is something to do.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    pub(crate) fn shard_end(&self, shard: u16) -> ShardEnd<In, Out, Own> {
        ShardEnd { shard: usize::from(shard), lanes: self.clone(), gathered: Out::default() }
    }

    pub(crate) fn thread_end(&self) -> ThreadEnd<In, Out, Own> {
        ThreadEnd { gathered: self.by_shard.iter().map(|_| In::default()).collect(), lanes: self.clone() }
    }

    pub(crate) fn wake(&self, shard: usize) {
        if let Some(waker) = self.by_shard.get(shard).and_then(|pair| pair.waker.get()) {
            waker.wake();
        }
    }

    /// The load on its way to all shards.
    pub(crate) fn load_to_shards(&self) -> usize {
        self.by_shard.iter().map(|pair| pair.to_shard.load()).sum()
    }

    /// The next batch of any shard, with the shard.
    pub fn take(&self) -> Option<(u16, Out)> {
        (0..).zip(self.by_shard.iter()).find_map(|(shard, pair)| Some((shard, pair.to_thread.pop()?)))
    }

    /// Whether nothing is on its way to the services thread.
    pub fn is_empty(&self) -> bool {
        self.by_shard.iter().all(|pair| pair.to_thread.batches.is_empty())
    }
}

/// A shard's end.
#[derive(Debug)]
pub struct ShardEnd<In, Out, Own = ()> {
    pub(crate) shard: usize,
    pub(crate) lanes: Lanes<In, Out, Own>,
    /// What this turn has for the services thread.
    pub(crate) gathered: Out,
}

impl<In: Batch, Out: Batch, Own> ShardEnd<In, Out, Own> {
    fn pair(&self) -> &Pair<In, Out> {
        &self.lanes.by_shard[self.shard]
    }

    /// What is gathered and what is on its way to the services thread.
    pub(crate) fn load(&self) -> usize {
        self.pair().to_thread.load() + self.gathered.load()
    }

    /// Whether a batch has come.
    pub(crate) fn has_any(&self) -> bool {
        !self.pair().to_shard.batches.is_empty()
    }

    /// The next batch that has come.
    pub(crate) fn take(&self) -> Option<In> {
        self.pair().to_shard.pop()
    }

    /// Hands over what was gathered in this turn.
    pub(crate) fn post(&mut self) {
        if self.gathered.load() > 0 {
            let gathered = mem::take(&mut self.gathered);
            self.pair().to_thread.push(gathered);
            self.lanes.bell.ring();
        }
    }
}

/// The services thread's end of all lanes.
#[derive(Debug)]
pub struct ThreadEnd<In, Out, Own = ()> {
    pub(crate) lanes: Lanes<In, Out, Own>,
    /// What is to be handed over next, by shard.
    gathered: Vec<In>,
}

impl<In: Batch, Out: Batch, Own> ThreadEnd<In, Out, Own> {
    /// Shards there are.
    pub fn shards(&self) -> u32 {
        self.gathered.len() as u32
    }

    /// Where what is for a shard is gathered.
    pub(crate) fn gathered(&mut self, shard: usize) -> Option<&mut In> {
        self.gathered.get_mut(shard)
    }

    /// What is gathered and what is on its way to a shard.
    pub(crate) fn load(&self, shard: usize) -> usize {
        self.lanes.by_shard[shard].to_shard.load() + self.gathered[shard].load()
    }

    /// The next batch of any shard, with the shard.
    pub fn take(&self) -> Option<(u16, Out)> {
        self.lanes.take()
    }

    /// Hands over what was gathered, and wakes those it is for, each once.
    pub fn post(&mut self) {
        for (shard, gathered) in self.gathered.iter_mut().enumerate() {
            if gathered.load() > 0 {
                self.lanes.by_shard[shard].to_shard.push(mem::take(gathered));
                self.lanes.wake(shard);
            }
        }
    }
}
