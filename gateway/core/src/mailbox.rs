//! Mailboxes between the shards of a node.
//!
//! What one shard has for another during a turn is gathered in one batch of bytes, pushed once at the end of the turn,
//! and wakes the other shard at most once until it looks. So a message across shards costs two copies of its bytes and
//! a share of one push.
//!
//! Bounds: the bytes a shard has under way to another are counted. `mailbox_bytes_max` is for each two shards, but half
//! of it is in a pool of all that write to the same shard: while the others need little, one of many shards may have
//! far more under way than its part, and the sum is the same. A message that finds no room waits with its
//! sender, who is not read meanwhile; it is refused when the other shard has taken nothing for
//! [`MAILBOX_WAIT_MS`](crate::limits::MAILBOX_WAIT_MS). Records that answer a message (its fate) are never refused:
//! each answers a record that was let in. A full queue keeps the batch with its sender until the next turn.
//!
//! What comes back to a shard that has handed it on ([`Record::Back`]) is counted from when it is put until it is
//! taken, and a shard may hand on no more than there would be room for if all of it came back.

use crate::addresses::Known;
use crate::auth::Granted;
use crate::groups::mail::{GroupMail, HEAD_BYTES as GROUP_MAIL_BYTES};
use crate::ids::NodeKey;
use crate::io::{ConnId, HandoverToken};
use crate::limits::MAILBOX_WAIT_MS;
use crate::mesh::handshake::Acceptor;
use crate::mesh::wire::{MESSAGE_BYTES as FAR_MESSAGE_BYTES, Record as FarRecord, record_len};
use crate::services::{Admitted, ServiceRecord};
use crate::watch::mail::WatchMail;
use crate::wheel::ticks;
use crate::wish::Wish;
use crate::wrappings::Wrapped;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use trunkline_proto::Outcome;

const MAILBOX_WAIT_TICKS: u32 = ticks(MAILBOX_WAIT_MS);
/// Letters a shard's mailbox holds for each shard that writes to it: some batches, and connections on their way.
const LETTERS_PER_SENDER: usize = 64;
/// Empty batch buffers kept for reuse, and the largest kept: 256 KiB in all.
const SPARES_MAX: usize = 16;
const SPARE_BYTES_MAX: usize = 16 << 10;
/// A batch that has grown to this is pushed before the turn's end, so that the other shard's turn is not bound to take
/// more at once.
const BATCH_BYTES_MAX: usize = 128 << 10;
/// Bit of `Mailbox::adoptees` that says no more are taken.
const CLOSED: u32 = 1 << 31;

/// What travels between shards.
#[derive(Debug)]
pub(crate) enum Letter {
    /// Records, see [`Record`], of a shard that worked for that life of the node.
    Batch { from: u16, life: u64, bytes: Vec<u8>, share: Share },
    /// A connection for this shard; its descriptor follows through the ring.
    Adopt(HandoverToken, Arrival),
    /// The descriptor will not follow.
    AdoptFailed(HandoverToken),
}

/// What a batch has a part in beside the bytes of its pair; given back when it is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Bytes of the receiving shard's pool.
    pooled: usize,
    /// Bytes of records that come back.
    backs: usize,
}

/// What a connection is that comes from another shard.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A client that logged in there.
    Client(Box<Adoptee>),
    /// Another node, which has proved itself there and asks for a link of this shard.
    Node(Box<Acceptor>),
}

/// All a home shard has to know about a client it takes over.
#[derive(Debug)]
pub struct Adoptee {
    pub(crate) user: u64,
    pub(crate) device: String,
    pub(crate) class: String,
    pub(crate) heartbeat_secs: u16,
    /// What LOGIN says of the inbox.
    pub(crate) wish: Wish,
    /// When the session ends with its token.
    pub(crate) granted: Granted,
    /// When LOGIN came, microseconds of the monotonic clock, to measure with.
    pub(crate) began_us: u64,
    /// What came behind LOGIN, as frames.
    pub(crate) bytes: Vec<u8>,
    /// What lies between the connection's bytes and its frames; `None` where nothing does.
    pub(crate) wrapped: Option<Box<Wrapped>>,
    /// Where the client is, if that is known.
    pub(crate) known: Option<Known>,
    /// It is no client but a worker, which asks to serve.
    pub(crate) serve: Option<Box<Admitted>>,
}

/// Why a connection was not taken by its home shard.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The mailbox is full: try again.
    Full(Arrival),
    /// The shard was drained and has stopped.
    Stopped,
}

/// One entry of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A SEND for a user whose home is the receiving shard.
    Message { origin: ConnId, from: u64, to: u64, id: u64, acked: bool, extra: u8, payload: &'a [u8] },
    /// The fate of a message with ACK, for its sender.
    Fate { origin: ConnId, id: u64, peer: u64, outcome: Outcome, stamp: u64 },
    /// What another node sent for the receiving shard over a link of the sending one.
    Far { from: NodeKey, record: FarRecord<'a> },
    /// A word about a group.
    Group(GroupMail<'a>),
    /// A word about a user who is watched.
    Watch(WatchMail<'a>),
    /// Of calls to services.
    Service(ServiceRecord<'a>),
    /// What the sending shard has for another node, to which the receiving one has the link.
    Carry { to: NodeKey, record: FarRecord<'a> },
    /// A record that the sending shard was to carry, or has carried, and that will not arrive, or may not have.
    /// `refused`: it was never on a link.
    Back { node: NodeKey, record: FarRecord<'a>, refused: bool, maybe_received: bool },
    /// Of the link to a node that one of the two shards has and the other shares, see
    /// [`word`](crate::mesh::peers::word).
    LinkWord { node: NodeKey, bits: u8 },
}

const MESSAGE: u8 = 1;
const MESSAGE_ACKED: u8 = 2;
const FATE: u8 = 3;
const FAR: u8 = 4;
const GROUP: u8 = 5;
const WATCH: u8 = 6;
const SERVICE: u8 = 9;
const CARRY: u8 = 10;
const BACK: u8 = 11;
const LINK_WORD: u8 = 12;
const MESSAGE_HEADER_BYTES: usize = 40;
/// A payload's length shares eight bytes with the further flags of its message.
const LENGTH_BITS: u32 = 56;
const FATE_BYTES: usize = 40;
const FAR_HEADER_BYTES: usize = 16;
/// What a message for another node takes beside its payload on its way to the shard that has the link.
pub(crate) const MESSAGE_CARRY_BYTES: usize = FAR_HEADER_BYTES + FAR_MESSAGE_BYTES;
const GROUP_HEADER_BYTES: usize = 8;
const WATCH_HEADER_BYTES: usize = 8;
const SERVICE_HEADER_BYTES: usize = 8;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The head of what is about another node.
fn far_header(kind: u8, bits: u8, node: NodeKey) -> [u8; FAR_HEADER_BYTES] {
    let mut header = [0; FAR_HEADER_BYTES];
    header[0..4].copy_from_slice(&(u32::from(kind) << 24).to_ne_bytes());
    header[4..8].copy_from_slice(&u32::from(bits).to_ne_bytes());
    header[8..16].copy_from_slice(&node.0.to_ne_bytes());
    header
}

impl Record<'_> {
    /// Bytes the record takes in a batch.
    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Record::Message { payload, .. } => MESSAGE_HEADER_BYTES + payload.len(),
            Record::Fate { .. } => FATE_BYTES,
            Record::Far { record, .. } | Record::Carry { record, .. } | Record::Back { record, .. } => {
                FAR_HEADER_BYTES + record.encoded_len()
            }
            Record::LinkWord { .. } => FAR_HEADER_BYTES,
            Record::Group(mail) => GROUP_HEADER_BYTES + mail.encoded_len(),
            Record::Watch(mail) => WATCH_HEADER_BYTES + mail.encoded_len(),
            Record::Service(record) => SERVICE_HEADER_BYTES + record.encoded_len(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let head = |kind: u8, generation: u32| (u32::from(kind) << 24 | generation).to_ne_bytes();
        match *self {
            Record::Message { origin, from, to, id, acked, extra, payload } => {
                let mut header = [0; MESSAGE_HEADER_BYTES];
                header[0..4].copy_from_slice(&head(if acked { MESSAGE_ACKED } else { MESSAGE }, origin.generation));
                header[4..8].copy_from_slice(&origin.slot.to_ne_bytes());
                header[8..16].copy_from_slice(&from.to_ne_bytes());
                header[16..24].copy_from_slice(&to.to_ne_bytes());
                header[24..32].copy_from_slice(&id.to_ne_bytes());
                header[32..40].copy_from_slice(&(payload.len() as u64 | u64::from(extra) << LENGTH_BITS).to_ne_bytes());
                out.extend_from_slice(&header);
                out.extend_from_slice(payload);
            }
            Record::Fate { origin, id, peer, outcome, stamp } => {
                let mut record = [0; FATE_BYTES];
                record[0..4].copy_from_slice(&head(FATE, origin.generation));
                record[4..8].copy_from_slice(&origin.slot.to_ne_bytes());
                record[8..16].copy_from_slice(&id.to_ne_bytes());
                record[16..24].copy_from_slice(&peer.to_ne_bytes());
                record[24..32].copy_from_slice(&stamp.to_ne_bytes());
                record[32..40].copy_from_slice(&u64::from(outcome.as_u16()).to_ne_bytes());
                out.extend_from_slice(&record);
            }
            Record::Far { from, ref record } => {
                out.extend_from_slice(&far_header(FAR, 0, from));
                record.encode(out);
            }
            Record::Carry { to, ref record } => {
                out.extend_from_slice(&far_header(CARRY, 0, to));
                record.encode(out);
            }
            Record::Back { node, ref record, refused, maybe_received } => {
                let bits = u8::from(maybe_received) | u8::from(refused) << 1;
                out.extend_from_slice(&far_header(BACK, bits, node));
                record.encode(out);
            }
            Record::LinkWord { node, bits } => out.extend_from_slice(&far_header(LINK_WORD, bits, node)),
            Record::Service(ref record) => {
                let mut header = [0; SERVICE_HEADER_BYTES];
                header[0..4].copy_from_slice(&head(SERVICE, 0));
                out.extend_from_slice(&header);
                record.encode(out);
            }
            Record::Group(ref mail) => {
                out.extend_from_slice(&head(GROUP, 0));
                out.extend_from_slice(&(mail.payload().len() as u32).to_ne_bytes());
                mail.encode(out);
            }
            Record::Watch(ref mail) => {
                out.extend_from_slice(&head(WATCH, 0));
                out.extend_from_slice(&(mail.encoded_len() as u32).to_ne_bytes());
                mail.encode(out);
            }
        }
    }
}

/// The records of a batch, in order. The bytes are this process's own, so a record is whole or the program is wrong.
pub(crate) struct Records<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let bytes = self.0;
        if bytes.is_empty() {
            return None;
        }
        let head = half(bytes, 0);
        let origin = ConnId { slot: half(bytes, 4), generation: head & 0x00FF_FFFF };
        match (head >> 24) as u8 {
            kind @ (MESSAGE | MESSAGE_ACKED) => {
                let length = word(bytes, 32);
                let len = MESSAGE_HEADER_BYTES + (length & ((1 << LENGTH_BITS) - 1)) as usize;
                self.0 = &bytes[len..];
                Some(Record::Message {
                    origin,
                    from: word(bytes, 8),
                    to: word(bytes, 16),
                    id: word(bytes, 24),
                    acked: kind == MESSAGE_ACKED,
                    extra: (length >> LENGTH_BITS) as u8,
                    payload: &bytes[MESSAGE_HEADER_BYTES..len],
                })
            }
            FATE => {
                self.0 = &bytes[FATE_BYTES..];
                Some(Record::Fate {
                    origin,
                    id: word(bytes, 8),
                    peer: word(bytes, 16),
                    stamp: word(bytes, 24),
                    outcome: Outcome::from_u16(word(bytes, 32) as u16).expect("written by encode"),
                })
            }
            kind @ (FAR | CARRY | BACK) => {
                let len = FAR_HEADER_BYTES + record_len(&bytes[FAR_HEADER_BYTES..]);
                self.0 = &bytes[len..];
                let record = FarRecord::decode(&bytes[FAR_HEADER_BYTES..len]).ok().flatten();
                let (node, record) = (NodeKey(word(bytes, 8)), record.expect("written by encode"));
                Some(match kind {
                    FAR => Record::Far { from: node, record },
                    CARRY => Record::Carry { to: node, record },
                    _ => {
                        let bits = half(bytes, 4);
                        Record::Back { node, record, refused: bits & 2 != 0, maybe_received: bits & 1 != 0 }
                    }
                })
            }
            LINK_WORD => {
                self.0 = &bytes[FAR_HEADER_BYTES..];
                Some(Record::LinkWord { node: NodeKey(word(bytes, 8)), bits: half(bytes, 4) as u8 })
            }
            SERVICE => {
                let (record, len) = ServiceRecord::decode(&bytes[SERVICE_HEADER_BYTES..]).expect("written by encode");
                self.0 = &bytes[SERVICE_HEADER_BYTES + len..];
                Some(Record::Service(record))
            }
            GROUP => {
                let len = GROUP_HEADER_BYTES + GROUP_MAIL_BYTES + half(bytes, 4) as usize;
                self.0 = &bytes[len..];
                let mail = GroupMail::decode(&bytes[GROUP_HEADER_BYTES..len]);
                Some(Record::Group(mail.expect("written by encode")))
            }
            WATCH => {
                let len = WATCH_HEADER_BYTES + half(bytes, 4) as usize;
                self.0 = &bytes[len..];
                let mail = WatchMail::decode(&bytes[WATCH_HEADER_BYTES..len]);
                Some(Record::Watch(mail.expect("written by encode")))
            }
            kind => unreachable!("record kind {kind} is never written"),
        }
    }
}

/// The mailbox of one shard, shared by all.
#[derive(Debug)]
pub struct Mailbox {
    letters: ArrayQueue<Letter>,
    /// The shard looks at its mailbox before it waits for anything: it is awake, or has been woken.
    woken: AtomicBool,
    /// Bytes in the queue, by sending shard.
    bytes_from: Box<[AtomicUsize]>,
    /// Bytes of the pool that are taken, by sending shard and in all.
    pooled_from: Box<[AtomicUsize]>,
    pooled: AtomicUsize,
    /// Bytes of records that come back to the owner, put and not taken yet, by sending shard.
    backs_from: Box<[AtomicUsize]>,
    /// Connections in the queue, and [`CLOSED`]: the shard that stops sees the last of them, and whoever comes later
    /// sees that it has stopped.
    adoptees: AtomicU32,
    /// The owner has nothing more to do for itself.
    drained: AtomicBool,
    /// Batches for the owner with something that it is to carry to another node, or that comes back, until it has
    /// placed that.
    carries: AtomicUsize,
    /// Bytes that the owner's links to other nodes held when it looked last.
    mesh_bytes: AtomicUsize,
}

impl Mailbox {
    /// A mailbox that `shards` shards write to.
    pub(crate) fn new(shards: u16) -> Self {
        let counts = || (0..shards).map(|_| AtomicUsize::new(0)).collect();
        Mailbox {
            letters: ArrayQueue::new(LETTERS_PER_SENDER * usize::from(shards)),
            woken: AtomicBool::new(false),
            bytes_from: counts(),
            pooled_from: counts(),
            pooled: AtomicUsize::new(0),
            backs_from: counts(),
            adoptees: AtomicU32::new(0),
            drained: AtomicBool::new(false),
            carries: AtomicUsize::new(0),
            mesh_bytes: AtomicUsize::new(0),
        }
    }

    /// Letters waiting.
    pub(crate) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Called by the owner before it waits for anything: whoever pushes from now on wakes it. Returns whether it may
    /// wait, because there are no letters.
    pub(crate) fn may_wait(&self) -> bool {
        self.woken.store(false, Ordering::SeqCst);
        self.letters.is_empty()
    }

    /// Called by the owner that waits no more: nobody has to wake it until [`Mailbox::may_wait`].
    pub(crate) fn awake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }

    /// The next letter, for the owner.
    pub(crate) fn take(&self) -> Option<Letter> {
        let letter = self.letters.pop()?;
        match &letter {
            Letter::Batch { from, bytes, share: Share { pooled, backs }, .. } => {
                let from = usize::from(*from);
                if *pooled > 0 {
                    // Before the bytes, so that no sender sees room in a part of the pool that others may have by now.
                    self.pooled_from[from].fetch_sub(*pooled, Ordering::Release);
                    self.pooled.fetch_sub(*pooled, Ordering::Relaxed);
                }
                if *backs > 0 {
                    self.backs_from[from].fetch_sub(*backs, Ordering::Relaxed);
                }
                self.bytes_from[from].fetch_sub(bytes.len(), Ordering::Release);
            }
            Letter::Adopt(..) => {
                self.adoptees.fetch_sub(1, Ordering::Relaxed);
            }
            Letter::AdoptFailed(_) => {}
        }
        Some(letter)
    }

    /// Called by the owner that is about to stop: takes no more connections from now on, unless one is in the queue.
    pub(crate) fn close_to_adoptees(&self) -> bool {
        let closed = self.adoptees.compare_exchange(0, CLOSED, Ordering::Relaxed, Ordering::Relaxed);
        matches!(closed, Ok(_) | Err(CLOSED))
    }
}

/// All mailboxes of a node, by shard.
pub type Mailboxes = Arc<Vec<Mailbox>>;

/// Makes the mailboxes of a node.
pub fn mailboxes(shards: u16) -> Mailboxes {
    Arc::new((0..shards).map(|_| Mailbox::new(shards)).collect())
}

/// What one shard has for another in this turn.
#[derive(Debug, Default)]
struct Batch {
    /// The life of the node in which the first of it arose.
    life: u64,
    bytes: Vec<u8>,
    /// It is on the list of those to be pushed at the end of the turn.
    touched: bool,
    /// It is counted in `Mailbox::carries`.
    carries: bool,
    share: Share,
    /// Tick since which the mailbox has had no room for a message, and what was under way then.
    full_since: Option<(u32, usize)>,
}

/// Whether a message may be put into another shard's mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// There will be room when the other shard has had its turn.
    Wait,
    /// The other shard has taken nothing for a long time, or the message is longer than all its mailbox holds.
    No,
}

/// What one shard has for the others in this turn.
#[derive(Debug)]
pub(crate) struct Outgoing {
    shard: u16,
    mailboxes: Mailboxes,
    /// The life of the node in which what is put now arose, see [`Outgoing::set_life`].
    life: u64,
    batches: Vec<Batch>,
    /// Shards with a batch to push.
    touched: Vec<u16>,
    spares: Vec<Vec<u8>>,
    bytes_max: usize,
}

impl Outgoing {
    pub(crate) fn new(shard: u16, mailboxes: Mailboxes, bytes_max: usize) -> Self {
        Outgoing {
            shard,
            batches: mailboxes.iter().map(|_| Batch::default()).collect(),
            mailboxes,
            life: 0,
            touched: Vec::new(),
            spares: Vec::new(),
            bytes_max,
        }
    }

    /// The shard's own mailbox.
    pub(crate) fn own(&self) -> &Mailbox {
        &self.mailboxes[usize::from(self.shard)]
    }

    /// Says which life of the node the shard works for in this turn: a shard that is in another one by the time it
    /// reads what is put now refuses it.
    pub(crate) fn set_life(&mut self, life: u64) {
        self.life = life;
    }

    /// Says that this shard has nothing more to do for itself, and tells whether that is true of all, and what they
    /// have handed to each other for other nodes is confirmed.
    pub(crate) fn all_drained(&self) -> bool {
        self.own().drained.store(true, Ordering::Relaxed);
        let none = |count: fn(&Mailbox) -> &AtomicUsize| {
            self.mailboxes.iter().all(|mailbox| count(mailbox).load(Ordering::SeqCst) == 0)
        };
        // What is carried is counted on a link before it leaves the count of batches, and what comes back the other way
        // round: so the batches are looked at twice.
        self.mailboxes.iter().all(|mailbox| mailbox.drained.load(Ordering::Relaxed))
            && none(|mailbox| &mailbox.carries)
            && none(|mailbox| &mailbox.mesh_bytes)
            && none(|mailbox| &mailbox.carries)
    }

    /// Says how much this shard's links to other nodes hold.
    pub(crate) fn set_mesh_bytes(&self, bytes: usize) {
        self.own().mesh_bytes.store(bytes, Ordering::SeqCst);
    }

    /// This shard has placed all that was to be carried, or came back, in a batch; its links hold so much now.
    pub(crate) fn has_carried(&self, bytes: usize) {
        self.set_mesh_bytes(bytes);
        self.own().carries.fetch_sub(1, Ordering::SeqCst);
    }

    /// What each two shards have for themselves; the rest of what they may have is in the pool.
    fn floor(&self) -> usize {
        self.bytes_max.div_ceil(2)
    }

    /// What all shards that write to one may have beyond their floors.
    fn pool_max(&self) -> usize {
        self.mailboxes.len().saturating_sub(1) * (self.bytes_max - self.floor())
    }

    /// Bytes gathered and under way to a shard, and how many there may be without more of the pool.
    fn load(&self, to: u16) -> (usize, usize) {
        let (mailbox, own) = (&self.mailboxes[usize::from(to)], usize::from(self.shard));
        let under_way = mailbox.bytes_from[own].load(Ordering::Acquire);
        let pooled = mailbox.pooled_from[own].load(Ordering::Relaxed);
        (under_way + self.batches[usize::from(to)].bytes.len(), self.floor() + pooled)
    }

    /// Whether `bytes` more may be under way to a shard. They are to be put then: what they need of the pool is taken.
    #[inline]
    pub(crate) fn has_room(&mut self, to: u16, bytes: usize) -> bool {
        let (load, allowed) = self.load(to);
        // Of a pair that has nothing under way one message is let in, if the others have all of the pool.
        let alone = load == 0 && bytes <= self.bytes_max;
        load + bytes <= allowed || self.take_of_pool(to, load + bytes - allowed) || alone
    }

    fn take_of_pool(&mut self, to: u16, bytes: usize) -> bool {
        let (mailbox, pool_max) = (&self.mailboxes[usize::from(to)], self.pool_max());
        if mailbox.pooled.fetch_add(bytes, Ordering::Relaxed) + bytes > pool_max {
            mailbox.pooled.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        mailbox.pooled_from[usize::from(self.shard)].fetch_add(bytes, Ordering::Relaxed);
        self.batches[usize::from(to)].share.pooled += bytes;
        true
    }

    /// Whether `bytes` more of what answers may be under way to a shard: it may take as much again as messages may.
    pub(crate) fn has_reserve(&self, to: u16, bytes: usize) -> bool {
        let (load, allowed) = self.load(to);
        load + bytes <= allowed.max(self.bytes_max) + self.bytes_max
    }

    /// Whether a record of so many bytes finds no room however little is under way.
    pub(crate) fn is_too_long(&self, bytes: usize) -> bool {
        bytes > self.bytes_max
    }

    /// Whether less than half of what the two shards have for themselves is under way to a shard, with what may come
    /// back from it: what goes at this pace finds room whatever the others have of the pool.
    pub(crate) fn is_easy(&self, to: u16) -> bool {
        self.load(to).0 + self.backs(to) <= self.floor() / 2
    }

    /// Bytes that a shard has given back and this one has not taken.
    pub(crate) fn backs(&self, from: u16) -> usize {
        self.own().backs_from[usize::from(from)].load(Ordering::Relaxed)
    }

    /// How much more may be given back to whichever shard has taken the least of what was.
    pub(crate) fn room_for_backs(&self) -> usize {
        let own = usize::from(self.shard);
        let waits = |mailbox: &Mailbox| mailbox.backs_from[own].load(Ordering::Relaxed);
        let most = self.mailboxes.iter().map(waits).max().unwrap_or(0);
        (2 * self.bytes_max).saturating_sub(most)
    }

    /// Bytes this shard gives back to others that they have not taken.
    pub(crate) fn backs_pending(&self) -> usize {
        let own = usize::from(self.shard);
        self.mailboxes.iter().map(|mailbox| mailbox.backs_from[own].load(Ordering::Relaxed)).sum()
    }

    /// Whether the shard has said before that it has nothing more to do for itself.
    pub(crate) fn has_drained(&self) -> bool {
        self.own().drained.load(Ordering::Relaxed)
    }

    /// Whether a message of so many bytes may be put, or its sender waits, or it is refused.
    pub(crate) fn room(&mut self, to: u16, bytes: usize, tick: u32) -> Room {
        if self.has_room(to, bytes) {
            self.batches[usize::from(to)].full_since = None;
            return Room::Yes;
        }
        let fits = bytes <= self.bytes_max;
        let under_way = self.mailboxes[usize::from(to)].bytes_from[usize::from(self.shard)].load(Ordering::Relaxed);
        let batch = &mut self.batches[usize::from(to)];
        let (since, bytes_then) = *batch.full_since.get_or_insert((tick, under_way));
        if under_way < bytes_then {
            // It takes some: the wait begins anew.
            batch.full_since = Some((tick, under_way));
            return if fits { Room::Wait } else { Room::No };
        }
        let waits = fits && tick - since < MAILBOX_WAIT_TICKS;
        if waits { Room::Wait } else { Room::No }
    }

    /// Adds a record to the batch for a shard. Messages are to be let in by `room` or `has_room` first.
    pub(crate) fn put(&mut self, to: u16, record: &Record<'_>) {
        let batch = &mut self.batches[usize::from(to)];
        if !std::mem::replace(&mut batch.touched, true) {
            self.touched.push(to);
        }
        if batch.bytes.is_empty() {
            batch.life = self.life;
            if batch.bytes.capacity() == 0 {
                batch.bytes = self.spares.pop().unwrap_or_default();
            }
        }
        let before = batch.bytes.len();
        record.encode(&mut batch.bytes);
        if matches!(record, Record::Back { .. }) {
            let bytes = batch.bytes.len() - before;
            batch.share.backs += bytes;
            self.mailboxes[usize::from(to)].backs_from[usize::from(self.shard)].fetch_add(bytes, Ordering::Relaxed);
        }
        let carries = matches!(record, Record::Carry { .. } | Record::Back { .. });
        if carries && !std::mem::replace(&mut batch.carries, true) {
            self.mailboxes[usize::from(to)].carries.fetch_add(1, Ordering::SeqCst);
        }
        if batch.bytes.len() >= BATCH_BYTES_MAX {
            // Whoever has to be woken for it is woken at the end of the turn, by `post`.
            self.push_batch(to);
        }
    }

    /// Pushes the batch for a shard; it stays if the mailbox has no place for a letter.
    fn push_batch(&mut self, to: u16) -> bool {
        let mailbox = &self.mailboxes[usize::from(to)];
        let batch = &mut self.batches[usize::from(to)];
        let (life, bytes, share) = (batch.life, std::mem::take(&mut batch.bytes), std::mem::take(&mut batch.share));
        let len = bytes.len();
        let under_way = &mailbox.bytes_from[usize::from(self.shard)];
        under_way.fetch_add(len, Ordering::Relaxed);
        match mailbox.letters.push(Letter::Batch { from: self.shard, life, bytes, share }) {
            Ok(()) => {
                batch.carries = false;
                true
            }
            Err(letter) => {
                under_way.fetch_sub(len, Ordering::Relaxed);
                if let Letter::Batch { bytes, share, .. } = letter {
                    (batch.bytes, batch.share) = (bytes, share);
                }
                false
            }
        }
    }

    /// Pushes a connection's particulars.
    pub(crate) fn put_arrival(&mut self, to: u16, token: HandoverToken, arrival: Arrival) -> Result<(), NotTaken> {
        let Mailbox { adoptees, letters, .. } = &self.mailboxes[usize::from(to)];
        if adoptees.fetch_add(1, Ordering::Relaxed) & CLOSED != 0 {
            adoptees.fetch_sub(1, Ordering::Relaxed);
            return Err(NotTaken::Stopped);
        }
        match letters.push(Letter::Adopt(token, arrival)) {
            Ok(()) => Ok(()),
            Err(Letter::Adopt(_, arrival)) => {
                adoptees.fetch_sub(1, Ordering::Relaxed);
                Err(NotTaken::Full(arrival))
            }
            Err(_) => unreachable!("push gives back what it was given"),
        }
    }

    /// Tells a shard that a descriptor will not follow. False when the mailbox is full.
    pub(crate) fn put_adopt_failed(&mut self, to: u16, token: HandoverToken) -> bool {
        self.mailboxes[usize::from(to)].letters.push(Letter::AdoptFailed(token)).is_ok()
    }

    /// Keeps an emptied batch buffer for reuse.
    pub(crate) fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && bytes.capacity() <= SPARE_BYTES_MAX {
            bytes.clear();
            self.spares.push(bytes);
        }
    }

    /// Pushes the batches of this turn. Calls `wake` for each shard that has to be woken. A batch that finds its
    /// mailbox full stays, and true is returned: come again soon.
    pub(crate) fn post(&mut self, mut wake: impl FnMut(u16)) -> bool {
        let mut kept = 0;
        for at in 0..self.touched.len() {
            let to = self.touched[at];
            let batch = &mut self.batches[usize::from(to)];
            // One that was pushed early is empty now, and its shard is to be woken all the same.
            if !batch.bytes.is_empty() && !self.push_batch(to) {
                self.touched[kept] = to;
                kept += 1;
            }
            let batch = &mut self.batches[usize::from(to)];
            batch.touched = !batch.bytes.is_empty();
            if self.mailboxes[usize::from(to)].must_wake() {
                wake(to);
            }
        }
        self.touched.truncate(kept);
        kept > 0
    }

    /// Whether the shard that was just written to outside a batch has to be woken.
    pub(crate) fn must_wake(&self, to: u16) -> bool {
        self.mailboxes[usize::from(to)].must_wake()
    }

    /// Bytes gathered or under way to all other shards.
    pub(crate) fn pending_bytes(&self) -> usize {
        let gathered: usize = self.batches.iter().map(|batch| batch.bytes.len()).sum();
        let under_way: usize = self
            .mailboxes
            .iter()
            .map(|mailbox| mailbox.bytes_from[usize::from(self.shard)].load(Ordering::Relaxed))
            .sum();
        gathered + under_way
    }
}

impl Mailbox {
    /// The queue's push and this swap are sequentially consistent with the store and the look at the queue in the
    /// owner's `may_wait`: either the owner sees the letter, or this sees `woken` cleared.
    fn must_wake(&self) -> bool {
        !self.woken.swap(true, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::wire::Seat;

    fn conn(slot: u32) -> ConnId {
        ConnId { slot, generation: 0x00FF_FFFE }
    }

    #[test]
    fn records_come_out_of_a_batch_as_they_went_in() {
        let records = [
            Record::Message { origin: conn(7), from: 1, to: u64::MAX, id: 3, acked: true, extra: 6, payload: b"hello" },
            Record::Fate { origin: conn(9), id: 3, peer: 2, outcome: Outcome::OfflineNotStored, stamp: 77 },
            Record::Message { origin: conn(0), from: 5, to: 6, id: 8, acked: false, extra: 0, payload: b"" },
            Record::Far { from: NodeKey(u64::MAX), record: FarRecord::Gone { user: 5, session: 6 } },
            Record::Far {
                from: NodeKey(7),
                record: FarRecord::Deliver {
                    seat: Seat { shard: 3, conn: conn(9) },
                    user: 1,
                    session: 2,
                    id: 3,
                    from: 4,
                    stamp: 5,
                    flags: 1,
                    payload: b"far",
                },
            },
            Record::Carry { to: NodeKey(8), record: FarRecord::Memo { body: b"carried" } },
            Record::Back {
                node: NodeKey(9),
                record: FarRecord::Gone { user: 5, session: 6 },
                refused: true,
                maybe_received: false,
            },
            Record::LinkWord { node: NodeKey(u64::MAX), bits: 0x95 },
        ];
        let mut bytes = Vec::new();
        for record in &records {
            let before = bytes.len();
            record.encode(&mut bytes);
            assert_eq!(bytes.len() - before, record.encoded_len());
        }
        assert!(Records(&bytes).eq(records));
    }

    #[test]
    fn a_full_mailbox_keeps_the_batch_with_its_sender_and_loses_nothing() {
        let mailboxes = mailboxes(2);
        let mut outgoing = Outgoing::new(0, mailboxes.clone(), 1 << 20);
        let total = 3 * LETTERS_PER_SENDER * 2;
        let mut blocked = false;
        for id in 0..total as u64 {
            outgoing.put(1, &Record::Fate { origin: conn(1), id, peer: 2, outcome: Outcome::Delivered, stamp: 0 });
            blocked |= outgoing.post(|_| {});
        }
        assert!(blocked, "the mailbox never filled");
        let mut ids = Vec::new();
        while ids.len() < total {
            while let Some(Letter::Batch { bytes, .. }) = mailboxes[1].take() {
                ids.extend(Records(&bytes).map(|record| match record {
                    Record::Fate { id, .. } => id,
                    Record::Message { .. }
                    | Record::Far { .. }
                    | Record::Group(_)
                    | Record::Watch(_)
                    | Record::Service(_)
                    | Record::Carry { .. }
                    | Record::Back { .. }
                    | Record::LinkWord { .. } => {
                        panic!("only fates were put")
                    }
                }));
            }
            outgoing.post(|_| {});
        }
        assert_eq!(ids, (0..total as u64).collect::<Vec<_>>());
        assert_eq!(outgoing.pending_bytes(), 0);
    }

    #[test]
    fn a_batch_tells_of_the_life_in_which_the_first_of_it_was_put() {
        let mailboxes = mailboxes(2);
        let mut outgoing = Outgoing::new(0, mailboxes.clone(), 1 << 20);
        let record = Record::Fate { origin: conn(1), id: 1, peer: 2, outcome: Outcome::Delivered, stamp: 0 };
        outgoing.set_life(5);
        outgoing.put(1, &record);
        outgoing.set_life(6);
        outgoing.put(1, &record);
        outgoing.post(|_| {});
        outgoing.put(1, &record);
        outgoing.post(|_| {});
        let lives = std::iter::from_fn(|| match mailboxes[1].take()? {
            Letter::Batch { life, .. } => Some(life),
            Letter::Adopt(..) | Letter::AdoptFailed(_) => panic!("only batches were posted"),
        });
        assert!(lives.eq([5, 6]));
    }

    #[test]
    fn room_counts_what_is_gathered_and_what_is_under_way() {
        let mailboxes = mailboxes(2);
        let mut outgoing = Outgoing::new(0, mailboxes.clone(), 100);
        let message =
            Record::Message { origin: conn(1), from: 1, to: 2, id: 3, acked: false, extra: 0, payload: &[0; 20] };
        assert!(outgoing.has_room(1, message.encoded_len()));
        outgoing.put(1, &message);
        assert!(!outgoing.has_room(1, message.encoded_len()));
        outgoing.post(|_| {});
        assert!(!outgoing.has_room(1, message.encoded_len()));
        assert!(mailboxes[1].take().is_some());
        assert!(outgoing.has_room(1, message.encoded_len()));
    }

    fn message(payload: &[u8]) -> Record<'_> {
        Record::Message { origin: conn(1), from: 1, to: 2, id: 3, acked: false, extra: 0, payload }
    }

    /// Sixteen shards; one of them has a burst for another, while the others have little.
    #[test]
    fn a_burst_of_one_of_many_shards_has_the_room_that_others_do_not_need() {
        let mailboxes = mailboxes(16);
        let mut outgoing: Vec<Outgoing> = (0..16).map(|shard| Outgoing::new(shard, mailboxes.clone(), 1_000)).collect();
        let bytes = message(&[0; 60]).encoded_len();
        assert_eq!(bytes, 100);
        let mut fill = |from: usize| {
            let mut put = 0;
            while outgoing[from].has_room(0, bytes) {
                outgoing[from].put(0, &message(&[0; 60]));
                put += 1;
                if put % 7 == 0 {
                    outgoing[from].post(|_| {});
                }
            }
            outgoing[from].post(|_| {});
            put
        };
        // Half of its own part, and the other half of all fifteen.
        assert_eq!(fill(1), 5 + 15 * 5);
        // Nobody has taken what is theirs alone.
        assert_eq!((2..16).map(&mut fill).collect::<Vec<_>>(), [5; 14]);
        assert_eq!(fill(1), 0);
        let under_way: usize = mailboxes[0].bytes_from.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum();
        assert_eq!(under_way, 15 * 1_000, "what all pairs together may have");
        // Whoever comes first has the pool then, and in the end nothing of it is taken.
        while mailboxes[0].take().is_some() {}
        let mut fill = |from: usize| {
            let room = outgoing[from].has_room(0, 7_000);
            outgoing[from].put(0, &message(&[0; 6_960]));
            outgoing[from].post(|_| {});
            room
        };
        assert_eq!([fill(9), fill(3)], [true, false]);
        while mailboxes[0].take().is_some() {}
        let counts = mailboxes[0].pooled_from.iter().chain(&mailboxes[0].bytes_from).chain([&mailboxes[0].pooled]);
        assert!(counts.into_iter().all(|count| count.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_pair_with_nothing_under_way_gets_one_message_in_whatever_the_others_hold() {
        let mailboxes = mailboxes(3);
        let mut outgoing: Vec<Outgoing> = (0..3).map(|shard| Outgoing::new(shard, mailboxes.clone(), 1_000)).collect();
        while outgoing[1].has_room(0, 100) {
            outgoing[1].put(0, &message(&[0; 60]));
        }
        outgoing[1].post(|_| {});
        assert!(!outgoing[2].has_room(0, 1_001), "longer than any");
        assert!(outgoing[2].has_room(0, 1_000));
        outgoing[2].put(0, &message(&[0; 960]));
        assert!(!outgoing[2].has_room(0, 100));
    }

    #[test]
    fn what_comes_back_is_counted_until_it_is_taken() {
        let mailboxes = mailboxes(2);
        let mut carrier = Outgoing::new(1, mailboxes.clone(), 1_000);
        let sharer = Outgoing::new(0, mailboxes.clone(), 1_000);
        let back = Record::Back {
            node: NodeKey(9),
            record: FarRecord::Gone { user: 5, session: 6 },
            refused: true,
            maybe_received: false,
        };
        let bytes = back.encoded_len();
        carrier.put(0, &back);
        assert_eq!((sharer.backs(1), carrier.backs_pending()), (bytes, bytes), "it is not posted yet");
        assert_eq!(carrier.room_for_backs(), 2_000 - bytes);
        carrier.post(|_| {});
        assert_eq!(sharer.backs(1), bytes);
        assert!(mailboxes[0].take().is_some());
        assert_eq!((sharer.backs(1), carrier.room_for_backs()), (0, 2_000));
    }

    #[test]
    fn what_answers_has_as_much_room_again() {
        let mut outgoing = Outgoing::new(0, mailboxes(2), 100);
        assert_eq!([100, 101].map(|bytes| outgoing.has_room(1, bytes)), [true, false]);
        assert_eq!([100, 200, 201].map(|bytes| outgoing.has_reserve(1, bytes)), [true, true, false]);
    }

    #[test]
    fn a_shard_ends_when_what_was_carried_for_it_is_confirmed() {
        let mailboxes = mailboxes(2);
        let mut sharer = Outgoing::new(0, mailboxes.clone(), 1 << 20);
        let carrier = Outgoing::new(1, mailboxes.clone(), 1 << 20);
        assert!(!carrier.all_drained() && sharer.all_drained());
        sharer.put(1, &Record::Carry { to: NodeKey(8), record: FarRecord::Gone { user: 5, session: 6 } });
        assert!(!sharer.all_drained(), "gathered");
        sharer.post(|_| {});
        assert!(!sharer.all_drained(), "under way");
        assert!(mailboxes[1].take().is_some());
        assert!(!sharer.all_drained(), "taken, and not placed yet");
        carrier.has_carried(40);
        assert!(!sharer.all_drained() && !carrier.all_drained(), "on the link");
        carrier.set_mesh_bytes(0);
        assert!(sharer.all_drained() && carrier.all_drained());
    }

    #[test]
    fn a_mailbox_closes_to_connections_when_none_is_in_it() {
        let mailboxes = mailboxes(2);
        let mut outgoing = Outgoing::new(0, mailboxes.clone(), 0);
        let client = || {
            let (device, class) = (String::new(), String::new());
            let granted = Granted::default();
            Arrival::Client(Box::new(Adoptee {
                user: 1,
                device,
                class,
                heartbeat_secs: 1,
                wish: Wish::default(),
                granted,
                began_us: 0,
                bytes: Vec::new(),
                wrapped: None,
                known: None,
                serve: None,
            }))
        };
        let token = HandoverToken(1);
        assert!(outgoing.put_arrival(1, token, client()).is_ok());
        assert!(!mailboxes[1].close_to_adoptees());
        assert!(matches!(mailboxes[1].take(), Some(Letter::Adopt(..))));
        assert!(mailboxes[1].close_to_adoptees());
        assert!(matches!(outgoing.put_arrival(1, token, client()), Err(NotTaken::Stopped)));
        assert!(mailboxes[1].close_to_adoptees(), "it stays closed");
    }

    #[test]
    fn a_shard_is_woken_once_before_it_waits_and_never_while_it_is_awake() {
        let mailboxes = mailboxes(2);
        let mut outgoing = Outgoing::new(0, mailboxes.clone(), 1 << 20);
        let mut wakes = 0;
        for _ in 0..3 {
            outgoing.put(1, &Record::Fate { origin: conn(1), id: 1, peer: 2, outcome: Outcome::Delivered, stamp: 0 });
            outgoing.post(|_| wakes += 1);
        }
        assert_eq!(wakes, 1);
        mailboxes[1].awake();
        outgoing.put(1, &Record::Fate { origin: conn(1), id: 1, peer: 2, outcome: Outcome::Delivered, stamp: 0 });
        outgoing.post(|_| wakes += 1);
        assert_eq!(wakes, 1);
        assert!(!mailboxes[1].may_wait(), "it has letters");
        while mailboxes[1].take().is_some() {}
        assert!(mailboxes[1].may_wait());
        outgoing.put(1, &Record::Fate { origin: conn(1), id: 1, peer: 2, outcome: Outcome::Delivered, stamp: 0 });
        outgoing.post(|_| wakes += 1);
        assert_eq!(wakes, 2);
    }
}
