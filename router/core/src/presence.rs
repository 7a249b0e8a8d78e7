//! Which sessions a user has: the authoritative directory of one shard.
//!
//! Logins and logouts of one user may arrive in another order than they happened, because they come over different
//! connections. Session ids decide: they grow with every login on this shard, a login never gives way to an older one
//! (compare-and-set), and a logout removes its own session or nothing (compare-and-delete).

use hashbrown::HashMap;
use hashbrown::hash_map;
use std::mem;

/// The device of a client that names none. `""` and this name are the same device.
pub const DEFAULT_DEVICE: &str = "default";

/// The most devices [`Embedded::new`] lets a user have; so a user's sessions are always searched one by one.
pub const DEVICES_PER_USER_LIMIT: usize = 64;

/// One live session of a user on this shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The session id. Never used twice on a shard, and greater than that of every earlier login.
    pub session: u64,
    /// Where the shard keeps the connection: an index into its table of connections.
    pub slot: u32,
    /// When the session began, in seconds since the Unix epoch.
    pub since_s: u32,
    label: Option<Box<Label>>,
}

// Together with the user id and the tag of `Sessions` this is what each user online costs; see `SLOT_BYTES`.
const _: () = assert!(size_of::<Entry>() == 24);

/// What a client says about its device. Most say nothing, and then there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The device's name, empty for the default device.
    pub device: Box<str>,
    /// The device's class, such as `phone`; may be empty.
    pub class: Box<str>,
}

impl Entry {
    /// A session on `device` (empty or [`DEFAULT_DEVICE`] for the default device) of a `class` (may be empty).
    ///
    /// The lengths of both texts are the caller's to bound; the protocol allows a device name of 64 bytes.
    #[must_use]
    pub fn new(session: u64, slot: u32, since_s: u32, device: &str, class: &str) -> Self {
        let device = if device == DEFAULT_DEVICE { "" } else { device };
        let label = (!device.is_empty() || !class.is_empty())
            .then(|| Box::new(Label { device: device.into(), class: class.into() }));
        Entry { session, slot, since_s, label }
    }

    /// The device's name, never empty.
    #[must_use]
    pub fn device(&self) -> &str {
        match &self.label {
            Some(label) if !label.device.is_empty() => &label.device,
            _ => DEFAULT_DEVICE,
        }
    }

    /// The device's class, empty if the client gave none.
    #[must_use]
    pub fn class(&self) -> &str {
        self.label.as_ref().map_or("", |label| &label.class)
    }

    fn label_bytes(&self) -> usize {
        self.label.as_ref().map_or(0, |label| size_of::<Label>() + label.device.len() + label.class.len())
    }
}

/// What became of a [`Presence::login`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum LoginOutcome {
    /// Registered; the device was not online before.
    Added,
    /// Registered in place of this older session of the same device.
    Replaced(Entry),
    /// This session was registered on this device already; its slot, time and class are now the new ones. So a
    /// registration may be repeated when it is not known whether it took effect.
    Refreshed,
    /// Not registered, and given back: the device has a newer session, or this session is that of another device.
    Stale(Entry),
    /// Not registered: the user has the most devices allowed, and this is not one of them.
    TooManyDevices,
    /// Not registered: the directory has the most users allowed, and this is not one of them.
    Full,
}

/// A directory of the sessions of users.
pub trait Presence {
    /// Compare-and-set: registers the session in `entry`. It replaces an older session of the same device and loses
    /// against a newer one. Unless the outcome is `Added`, `Replaced` or `Refreshed` nothing has changed.
    fn login(&mut self, user: u64, entry: Entry) -> LoginOutcome;

    /// Compare-and-delete: removes and returns the entry of `session` if it is still registered. A late logout never
    /// deletes a newer login.
    fn logout(&mut self, user: u64, session: u64) -> Option<Entry>;

    /// The sessions of `user`, one for each device, in the order in which the devices came online. Empty: offline.
    fn sessions(&self, user: u64) -> &[Entry];

    /// Users with at least one session.
    fn users(&self) -> usize;

    /// Sessions of all users.
    fn session_count(&self) -> usize;
}

/// The sessions of one user who is online. Nearly all have one, and it needs no memory of its own.
#[derive(Debug)]
enum Sessions {
    One(Entry),
    /// At least two, in a vector without spare room.
    Many(Vec<Entry>),
}

/// One bucket of the table, its control byte apart.
const SLOT_BYTES: usize = size_of::<(u64, Sessions)>();
const _: () = assert!(SLOT_BYTES == 40);

impl Sessions {
    #[inline]
    fn as_slice(&self) -> &[Entry] {
        match self {
            Sessions::One(entry) => std::slice::from_ref(entry),
            Sessions::Many(entries) => entries,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Entry] {
        match self {
            Sessions::One(entry) => std::slice::from_mut(entry),
            Sessions::Many(entries) => entries,
        }
    }

    fn push(&mut self, entry: Entry) {
        *self = match mem::replace(self, Sessions::Many(Vec::new())) {
            Sessions::One(first) => Sessions::Many(vec![first, entry]),
            Sessions::Many(mut entries) => {
                entries.reserve_exact(1);
                entries.push(entry);
                Sessions::Many(entries)
            }
        };
    }

    /// Takes the entry of `session` out, if it is there, and returns it with what is left.
    fn without(self, session: u64) -> (Option<Entry>, Option<Sessions>) {
        match self {
            Sessions::One(entry) if entry.session == session => (Some(entry), None),
            Sessions::One(entry) => (None, Some(Sessions::One(entry))),
            Sessions::Many(mut entries) => {
                let Some(at) = entries.iter().position(|entry| entry.session == session) else {
                    return (None, Some(Sessions::Many(entries)));
                };
                let gone = entries.remove(at);
                let rest = if entries.len() == 1 {
                    Sessions::One(entries.remove(0))
                } else {
                    entries.shrink_to_fit();
                    Sessions::Many(entries)
                };
                (Some(gone), Some(rest))
            }
        }
    }

    /// Memory outside the table, labels apart.
    fn spill_bytes(&self) -> usize {
        match self {
            Sessions::One(_) => 0,
            Sessions::Many(entries) => entries.capacity() * size_of::<Entry>(),
        }
    }
}

/// The directory in memory: complete for a node that works alone, and the default.
///
/// The table has room for all users from the start: growing would move every entry at once, in the middle of a login.
/// Its pages are touched as users come. Its hasher is seeded at random for each directory, so that user ids that
/// collide in it are not known from outside.
#[derive(Debug)]
pub struct Embedded {
    users: HashMap<u64, Sessions>,
    users_max: usize,
    devices_per_user_max: usize,
    session_count: usize,
    /// Labels and the vectors of users with several sessions.
    heap_bytes: usize,
}

impl Embedded {
    /// An empty directory for up to `users_max` users with up to `devices_per_user_max` (1 …
    /// [`DEVICES_PER_USER_LIMIT`]) devices each.
    ///
    /// # Panics
    /// If `devices_per_user_max` is out of range: the configuration has to be judged before.
    #[must_use]
    pub fn new(devices_per_user_max: usize, users_max: usize) -> Self {
        assert!(
            (1..=DEVICES_PER_USER_LIMIT).contains(&devices_per_user_max),
            "devices_per_user_max is {devices_per_user_max}, not within 1 to {DEVICES_PER_USER_LIMIT}"
        );
        Embedded {
            users: HashMap::with_capacity(users_max),
            users_max,
            devices_per_user_max,
            session_count: 0,
            heap_bytes: 0,
        }
    }

    /// Memory now held, in bytes as asked of the allocator.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.users.allocation_size() + self.heap_bytes
    }

    /// The most memory, in bytes as asked of the allocator, that a directory ever holds with up to `users_max` users,
    /// `sessions_max` sessions in all, and `text_bytes_max` bytes of device and class for each session. For the memory
    /// budget: every term is taken at its worst, so a directory in use stays far below. Saturates.
    #[must_use]
    pub const fn memory_bytes_max(users_max: usize, sessions_max: usize, text_bytes_max: usize) -> usize {
        // A table of n buckets takes up to n × 7/8 entries. When logouts have left too many marks behind in it, it may
        // double although it has room, as long as it is more than half full of users. Thus it is at most the table for
        // 2 × users_max entries; 16 is the least size with which this rule holds.
        let entries = users_max.saturating_mul(2);
        let buckets = match (entries.saturating_mul(8) / 7).checked_next_power_of_two() {
            Some(buckets) if buckets > 16 => buckets,
            Some(_) => 16,
            None => return usize::MAX,
        };
        // Each bucket has one control byte; 16 more (and as many for alignment) follow the last.
        let table = buckets.saturating_mul(SLOT_BYTES + 1).saturating_add(32);
        // While it doubles, the table of half the size is still there.
        let tables = table.saturating_add(table / 2).saturating_add(32);
        // A session beyond the user's first moves all of that user's to a vector, and a vector that grows or shrinks
        // may be there twice for a moment.
        let moving = 2 * DEVICES_PER_USER_LIMIT * size_of::<Entry>();
        let session = (size_of::<Entry>() + size_of::<Label>()).saturating_add(text_bytes_max);
        tables.saturating_add(sessions_max.saturating_mul(session)).saturating_add(moving)
    }
}

impl Presence for Embedded {
    fn login(&mut self, user: u64, entry: Entry) -> LoginOutcome {
        let full = self.users.len() >= self.users_max;
        let label_bytes = entry.label_bytes();
        let sessions = match self.users.entry(user) {
            hash_map::Entry::Vacant(_) if full => return LoginOutcome::Full,
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Sessions::One(entry));
                self.session_count += 1;
                self.heap_bytes += label_bytes;
                return LoginOutcome::Added;
            }
            hash_map::Entry::Occupied(occupied) => occupied.into_mut(),
        };

        let session_known = sessions.as_slice().iter().any(|known| known.session == entry.session);
        if let Some(known) = sessions.as_mut_slice().iter_mut().find(|known| known.device() == entry.device()) {
            let refresh = known.session == entry.session;
            if known.session > entry.session || (session_known && !refresh) {
                return LoginOutcome::Stale(entry);
            }
            let old = mem::replace(known, entry);
            self.heap_bytes = self.heap_bytes + label_bytes - old.label_bytes();
            return if refresh { LoginOutcome::Refreshed } else { LoginOutcome::Replaced(old) };
        }
        if session_known {
            return LoginOutcome::Stale(entry);
        }
        if sessions.as_slice().len() >= self.devices_per_user_max {
            return LoginOutcome::TooManyDevices;
        }
        let spill_before = sessions.spill_bytes();
        sessions.push(entry);
        self.session_count += 1;
        self.heap_bytes = self.heap_bytes + label_bytes + sessions.spill_bytes() - spill_before;
        LoginOutcome::Added
    }

    fn logout(&mut self, user: u64, session: u64) -> Option<Entry> {
        let hash_map::Entry::Occupied(occupied) = self.users.entry(user) else {
            return None;
        };
        let spill_before = occupied.get().spill_bytes();
        let mut spill_after = 0;
        let mut gone = None;
        occupied.replace_entry_with(|_, sessions| {
            let (entry, rest) = sessions.without(session);
            gone = entry;
            spill_after = rest.as_ref().map_or(0, Sessions::spill_bytes);
            rest
        });
        let gone = gone?;
        self.session_count -= 1;
        self.heap_bytes = self.heap_bytes + spill_after - spill_before - gone.label_bytes();
        Some(gone)
    }

    #[inline]
    fn sessions(&self, user: u64) -> &[Entry] {
        self.users.get(&user).map_or(&[], Sessions::as_slice)
    }

    fn users(&self) -> usize {
        self.users.len()
    }

    fn session_count(&self) -> usize {
        self.session_count
    }
}
