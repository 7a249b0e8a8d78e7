//! One connection: its slot, the states it goes through, and the table of all slots of a shard.

use crate::io::{ConnId, GENERATION_BITS, ReadOp};
use crate::outbox::Outbox;
use crate::reason::CloseReason;
use crate::wheel::ticks;

/// Where a connection stands. It only ever moves down this list, then back to `Free`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The slot holds no connection.
    Free,
    /// Accepted; LOGIN has not come.
    Handshake,
    /// Logged in, on its way to its home shard; nothing is under way on it here but the hand-over.
    HandingOver,
    /// Logged in at a node that is not its user's home, which has been asked for the session; nothing is read
    /// meanwhile.
    Registering,
    /// A session.
    Open,
    /// A connection to another node; see `core/trunk.rs`.
    Mesh,
    /// Its end is decided and counted: what is queued is still sent, what comes in is dropped.
    Closing,
    /// Whatever is under way is being cancelled.
    Finishing,
    /// The close has been submitted; the slot is free when it completes.
    Closed,
}

/// What lies between the bytes of a connection and its frames, and small facts about that. What has to be remembered of
/// it besides is in
/// [`Wrappings`](crate::core::wrap::Wrappings), which native connections have no part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wire(u8);

impl Wire {
    /// Nothing: the bytes are frames, or it is not known yet what they are.
    pub(crate) const NATIVE: Wire = Wire(0);
    /// An HTTP request, of which the head is being read or that was answered.
    pub(crate) const HTTP: Wire = Wire(1);
    /// Messages of a WebSocket.
    pub(crate) const WEBSOCKET: Wire = Wire(2);
    /// A PROXY header has to come first; what follows it is not known yet. Never with [`Wire::TLS`], which comes behind
    /// it.
    pub(crate) const PROXIED: Wire = Wire(3);
    /// A handshake of TLS; what lies above it is not known yet. Always with [`Wire::TLS`].
    pub(crate) const SHAKING: Wire = Wire(3 | Wire::TLS);
    const KIND: u8 = 3;

    /// The outbox holds bytes to be sent as they are, see [`seal`](crate::transport::outbound::seal).
    pub(crate) const RAW: u8 = 4;
    /// There is an entry among the wrappings.
    pub(crate) const REMEMBERED: u8 = 8;
    /// A Ping was sent, and nothing has come since.
    pub(crate) const PINGED: u8 = 16;
    /// There is no room for it: its first bytes say only in which language it is told.
    pub(crate) const TURNED_AWAY: u8 = 32;
    /// Below all that are records of TLS.
    pub(crate) const TLS: u8 = 64;
    /// The outbox holds what stands between records, see [`put_layer`](crate::transport::outbound::put_layer).
    pub(crate) const LAYERED: u8 = 128;

    /// What the frames are in, whatever lies below that.
    pub(crate) fn kind(self) -> Wire {
        Wire(self.0 & Self::KIND)
    }
    /// That and what lies below it, without what may change by the turn.
    pub(crate) fn layers(self) -> Wire {
        Wire(self.0 & (Self::KIND | Self::TLS))
    }
    /// Whether a PROXY header has to come first.
    pub(crate) fn awaits_header(self) -> bool {
        self.layers() == Wire::PROXIED
    }
    /// The handshake of TLS has not come to its end.
    pub(crate) fn is_shaking(self) -> bool {
        self.layers() == Wire::SHAKING
    }
    /// Puts the frames into something else. What lies below stays.
    pub(crate) fn change_kind(&mut self, kind: Wire) {
        self.0 = self.0 & !Self::KIND | kind.0 & Self::KIND;
    }
    /// Whether bytes and frames are the same.
    #[inline]
    pub(crate) fn is_native(self) -> bool {
        self.0 == 0
    }
    /// The transport with a flag.
    pub(crate) const fn and(self, flag: u8) -> Wire {
        Wire(self.0 | flag)
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }
    pub(crate) fn set(&mut self, flag: u8) {
        self.0 |= flag;
    }
    pub(crate) fn clear(&mut self, flag: u8) {
        self.0 &= !flag;
    }
}

/// Thousandths of a frame, in which the limit on frames counts.
const MILLIFRAMES: u32 = 1_000;

/// A connection slot. Idle connections are what a gateway holds by the million, so everything a quiet one does not need
/// is behind a pointer that is then empty.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) user: u64,
    /// What waits to be sent; present only while there is something.
    pub(crate) outbox: Option<Box<Outbox>>,
    /// The beginning of a frame whose rest has not come. Boxed twice so that an idle slot pays 8 bytes for it, not 24.
    #[allow(clippy::box_collection)]
    pub(crate) partial: Option<Box<Vec<u8>>>,
    pub(crate) generation: u32,
    /// Tick of the last frame, of whatever kind: a sign of life.
    pub(crate) alive_tick: u32,
    /// Tick of the last frame other than a heartbeat.
    traffic_tick: u32,
    /// Token bucket for frames: thousandths of a frame, and the millisecond they were last counted.
    rate_milliframes: u32,
    rate_ms: u32,
    heartbeat_secs: u16,
    /// The home shard while the connection is handed over; of a session, what it has brought in this turn, see
    /// [`Conn::spend`].
    home_or_spent: u16,
    pub(crate) phase: Phase,
    pub(crate) read: ReadOp,
    pub(crate) reason: Option<CloseReason>,
    pub(crate) flags: ConnFlags,
    pub(crate) wire: Wire,
}

const _: () = assert!(size_of::<Conn>() == 56);

/// Bytes a connection slot takes.
pub const CONN_BYTES: usize = size_of::<Conn>();

/// Small facts about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnFlags(u32);

impl ConnFlags {
    /// It is in the list of connections to flush at the end of the turn.
    pub(crate) const DIRTY: u32 = 1;
    /// Its read is being cancelled.
    pub(crate) const READ_CANCELLED: u32 = 2;
    /// It is not read until its outbox has drained.
    pub(crate) const PAUSED: u32 = 4;
    /// It had traffic lately, so it is to be read by a multishot receive.
    pub(crate) const HOT: u32 = 8;
    /// There is something to read: receive instead of polling again.
    pub(crate) const READABLE: u32 = 16;
    /// The write side is being shut, or is.
    pub(crate) const SHUT_ASKED: u32 = 32;
    /// The shutdown, or the hand-over, has not completed.
    pub(crate) const OP_PENDING: u32 = 64;
    /// Its send is being cancelled.
    pub(crate) const SEND_CANCELLED: u32 = 128;
    /// The peer has closed its side; nothing more will come.
    pub(crate) const EOF: u32 = 256;
    /// It leads to another node, or did until it began to be closed.
    pub(crate) const MESH: u32 = 512;
    /// Whole frames wait in `partial` for a later turn; it is not read meanwhile.
    pub(crate) const BEHIND: u32 = 1_024;
    /// It has brought more than a turn's budget since it became hot.
    pub(crate) const FLOODS: u32 = 2_048;
    /// Its end does not wait for what the peer has not taken.
    pub(crate) const RESET: u32 = 4_096;
    /// It came from a listener where everything has to begin with TLS.
    pub(crate) const TLS_ONLY: u32 = 8_192;
    /// It came to the services' port: a worker's link, or about to become one. It is nobody's session.
    pub(crate) const SERVICE: u32 = 16_384;
    /// It comes from this host.
    pub(crate) const LOCAL: u32 = 32_768;
    /// The end of its backlog was told; once in a session, whatever becomes of its home.
    pub(crate) const BACKLOG_TOLD: u32 = 65_536;
    /// The gateway has made it, to a server of a service. It is a worker's link or about to become one.
    pub(crate) const DIALED: u32 = 131_072;
    /// The read into large buffers that is armed, or was last, has brought something.
    pub(crate) const READ_BROUGHT: u32 = 262_144;

    pub(crate) fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
    pub(crate) fn set(&mut self, flag: u32) {
        self.0 |= flag;
    }
    pub(crate) fn clear(&mut self, flag: u32) {
        self.0 &= !flag;
    }
}

impl Conn {
    fn free() -> Self {
        Conn {
            user: 0,
            outbox: None,
            partial: None,
            generation: 0,
            alive_tick: 0,
            traffic_tick: 0,
            rate_milliframes: 0,
            rate_ms: 0,
            heartbeat_secs: 0,
            home_or_spent: 0,
            phase: Phase::Free,
            read: ReadOp::None,
            reason: None,
            flags: ConnFlags::default(),
            wire: Wire::NATIVE,
        }
    }

    /// The connection becomes a session of this user at that tick. Its bucket holds what a second allows,
    /// `frames_per_sec` frames; 0 where they are not limited.
    pub(crate) fn begin_session(
        &mut self,
        user: u64,
        heartbeat_secs: u16,
        tick: u32,
        frames_per_sec: u32,
        now_ms: u32,
    ) {
        self.user = user;
        self.rate_milliframes = frames_per_sec * MILLIFRAMES;
        self.rate_ms = now_ms;
        self.begin_link(heartbeat_secs, tick);
    }

    /// The connection becomes a worker's link at that tick.
    pub(crate) fn begin_link(&mut self, heartbeat_secs: u16, tick: u32) {
        self.phase = Phase::Open;
        self.heartbeat_secs = heartbeat_secs;
        self.alive_tick = tick;
    }

    /// How often the other end is to give a sign of life, seconds.
    pub(crate) fn heartbeat_secs(&self) -> u16 {
        self.heartbeat_secs
    }

    /// Tick at which a session over a WebSocket that has been silent for one and a half heartbeats gets a Ping, unless
    /// it got one: a browser answers it without the page, whose timers may run once a minute only.
    pub(crate) fn ping_tick(&self) -> Option<u32> {
        let asked = self.wire.has(Wire::PINGED);
        let websocket = self.wire.kind() == Wire::WEBSOCKET;
        (websocket && !asked).then(|| self.alive_tick + ticks(1_500 * u64::from(self.heartbeat_secs)))
    }

    /// A frame other than a heartbeat has come, which makes a session hot. Whether it was cold.
    pub(crate) fn note_traffic(&mut self, tick: u32) -> bool {
        self.traffic_tick = tick;
        let was_cold = !self.flags.has(ConnFlags::HOT);
        self.flags.set(ConnFlags::HOT);
        was_cold
    }

    /// Tick at which a hot session is cold again, if nothing but heartbeats comes for so many.
    pub(crate) fn cold_tick(&self, hot_ticks: u32) -> u32 {
        self.traffic_tick + hot_ticks
    }

    /// Lets a session send one frame more than its limit on frames allows.
    pub(crate) fn grant_frame(&mut self) {
        self.rate_milliframes = self.rate_milliframes.saturating_add(MILLIFRAMES);
    }

    /// Takes one frame out of the token bucket, which holds what one second allows, and what was put in besides by
    /// [`Conn::grant_frame`]. False if there is none.
    #[inline]
    pub(crate) fn take_frame(&mut self, frames_per_sec: u32, now_ms: u32) -> bool {
        let earned = u64::from(now_ms.wrapping_sub(self.rate_ms)) * u64::from(frames_per_sec);
        let full = u64::from(frames_per_sec) * u64::from(MILLIFRAMES);
        let now = u64::from(self.rate_milliframes);
        // What deliveries put in beyond a second's worth stays.
        self.rate_milliframes = now.max((now + earned).min(full)) as u32;
        self.rate_ms = now_ms;
        let allowed = self.rate_milliframes >= MILLIFRAMES;
        if allowed {
            self.rate_milliframes -= MILLIFRAMES;
        }
        allowed
    }

    /// The shard the connection is handed over to.
    pub(crate) fn home_shard(&self) -> u16 {
        self.home_or_spent
    }

    /// Notes the shard the connection is handed over to. It brings nothing more from then on.
    pub(crate) fn set_home_shard(&mut self, shard: u16) {
        self.home_or_spent = shard;
    }

    /// Units of the turn's budget that the session has used up.
    pub(crate) fn spent(&self) -> u16 {
        self.home_or_spent
    }

    /// Uses up some of the turn's budget.
    pub(crate) fn spend(&mut self, units: u16) {
        self.home_or_spent = self.home_or_spent.saturating_add(units);
    }

    /// A new turn begins for the session.
    pub(crate) fn forget_spent(&mut self) {
        self.home_or_spent = 0;
    }

    /// Whether it has to begin with TLS. `of_clients`: whether every client has to, which does not bind workers.
    #[inline]
    pub(crate) fn needs_tls(&self, of_clients: bool) -> bool {
        self.flags.has(ConnFlags::TLS_ONLY) || (of_clients && !self.flags.has(ConnFlags::SERVICE))
    }

    /// Bytes queued for this connection, those under way included.
    pub(crate) fn outbox_bytes(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    /// Whether an operation of this connection may still complete.
    pub(crate) fn busy(&self) -> bool {
        self.read != ReadOp::None
            || self.flags.has(ConnFlags::OP_PENDING)
            || self.outbox.as_ref().is_some_and(|outbox| outbox.is_sending())
    }
}

/// The slots of a shard, numbered like the ring's descriptor table.
#[derive(Debug)]
pub(crate) struct Slots {
    conns: Vec<Conn>,
    slots_max: u32,
    in_use: u32,
}

impl Slots {
    /// Room for `slots_max` connections. Memory for a slot is touched when it is first used.
    pub(crate) fn new(slots_max: u32) -> Self {
        Slots { conns: Vec::with_capacity(slots_max as usize), slots_max, in_use: 0 }
    }

    /// Takes a slot into use. `None` when the number is out of range or the slot is taken, which the ring rules out.
    pub(crate) fn occupy(&mut self, slot: u32, phase: Phase) -> Option<ConnId> {
        if slot >= self.slots_max {
            return None;
        }
        if self.conns.len() <= slot as usize {
            self.conns.resize_with(slot as usize + 1, Conn::free);
        }
        let conn = &mut self.conns[slot as usize];
        if conn.phase != Phase::Free {
            return None;
        }
        let generation = (conn.generation + 1) & ((1 << GENERATION_BITS) - 1);
        *conn = Conn { generation, phase, ..Conn::free() };
        self.in_use += 1;
        Some(ConnId { slot, generation })
    }

    /// Frees a slot whose connection has closed.
    pub(crate) fn vacate(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        debug_assert_ne!(conn.phase, Phase::Free, "slot {slot} is vacated twice");
        *conn = Conn { generation: conn.generation, ..Conn::free() };
        self.in_use -= 1;
    }

    /// The connection, if the slot still holds it.
    #[inline]
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.slot as usize)?;
        let same = conn.generation == id.generation;
        #[cfg(test)]
        let same = same || crate::simulation::planted(crate::simulation::Bug::GenerationIgnored);
        (same && conn.phase != Phase::Free).then_some(conn)
    }

    /// The connection in a slot that is known to be in use.
    #[inline]
    pub(crate) fn at(&mut self, slot: u32) -> &mut Conn {
        &mut self.conns[slot as usize]
    }

    /// Identity of the connection in a slot.
    #[inline]
    pub(crate) fn id(&self, slot: u32) -> ConnId {
        ConnId { slot, generation: self.conns[slot as usize].generation }
    }

    /// Slots that hold a connection.
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// One more than the highest slot ever used.
    pub(crate) fn high_water(&self) -> u32 {
        self.conns.len() as u32
    }
}
