//! LOGIN, and the move of a logged-in connection to the home shard of its user.

use super::shard::Shard;
use crate::config::Placement;
use crate::conn::{Conn, ConnFlags, Phase};
use crate::io::{ConnId, HandoverToken};
use crate::limits::CLASS_BYTES_MAX;
use crate::mailbox::Adoptee;
use crate::reason::CloseReason;
use trunkline_proto::prost::Message;
use trunkline_proto::{DEVICE_BYTES_MAX, Frame, Kind, Login, LoginOk, VERSION, encode_message};
use trunkline_router::hash::home_shard;
use trunkline_router::presence::{Entry, LoginOutcome, Presence};

impl Shard {
    /// The first frame of a connection.
    pub(crate) fn login(&mut self, slot: u32, frame: &Frame<'_>) {
        let Ok(login) = Login::decode(frame.body) else {
            return self.close(slot, CloseReason::BadLogin);
        };
        if login.version != VERSION {
            return self.close(slot, CloseReason::UnsupportedVersion);
        }
        if login.user == 0 || login.device.len() > DEVICE_BYTES_MAX || login.device_class.len() > CLASS_BYTES_MAX {
            return self.close(slot, CloseReason::BadLogin);
        }
        if let Err(error) = self.auth.check(login.user, &login.token, self.now.wall_ms / 1_000) {
            tracing::debug!(user = login.user, %error, "login refused");
            return self.close(slot, CloseReason::BadCredentials);
        }
        if self.drain.is_some() {
            return self.send_away(slot, login.user);
        }
        if let Some(address) = self.home_elsewhere(login.user) {
            return self.close_towards(slot, CloseReason::Moved, address);
        }
        let limits = &self.links.limits;
        let heartbeat_secs = match login.heartbeat_secs {
            0 => limits.heartbeat_secs,
            wish => wish.clamp(limits.heartbeat_secs_min, limits.heartbeat_secs_max),
        };
        let home = home_shard(login.user, u32::from(self.shards)) as u16;
        let adoptee = Adoptee {
            token: HandoverToken::new(self.shard, self.links.slots.id(slot)),
            user: login.user,
            device: login.device,
            class: login.device_class,
            heartbeat_secs: heartbeat_secs as u16,
            bytes: Vec::new(),
        };
        if home == self.shard {
            return self.open_session(slot, &adoptee);
        }
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::HandingOver;
        conn.home_shard = home;
        self.links.wheel.disarm(slot);
        self.departing.insert(slot, Box::new(adoptee));
        self.links.mark_dirty(slot);
    }

    /// Where the client is to go, if this node sends guests away and the user's home is another one.
    fn home_elsewhere(&self, user: u64) -> Option<String> {
        if self.placement == Placement::Accept {
            return None;
        }
        self.other_home(user)
    }

    /// The address of the user's home in the present view; `None` if that is this node, or nobody is.
    pub(crate) fn other_home(&self, user: u64) -> Option<String> {
        let view = self.view.as_ref()?;
        let home = view.ring.as_ref()?.owner(user).name();
        if home == self.node {
            return None;
        }
        view.member(home).map(|home| home.advertise.clone())
    }

    /// The particulars of a departing connection, with all that came behind its LOGIN.
    pub(crate) fn take_departing(&mut self, slot: u32) -> Option<(u16, Box<Adoptee>)> {
        let mut adoptee = self.departing.remove(&slot)?;
        if let Some(partial) = self.links.take_partial(slot) {
            adoptee.bytes = *partial;
        }
        Some((self.links.slots.at(slot).home_shard, adoptee))
    }

    /// The other shard has the descriptor, or could not take it. Returns the token to withdraw.
    pub(crate) fn handed_over(&mut self, conn: ConnId, ok: bool) -> Option<(u16, HandoverToken)> {
        let Conn { flags, phase, home_shard, .. } = self.links.slots.get(conn)?;
        let home = *home_shard;
        flags.clear(ConnFlags::OP_PENDING);
        if ok {
            *phase = Phase::Finishing;
            self.links.stats.moved_out.add(1);
            self.links.stats.open.sub(1);
            self.links.mark_dirty(conn.slot);
            return None;
        }
        self.links.stats.handover_errors.add(1);
        self.close(conn.slot, CloseReason::Overloaded);
        Some((home, HandoverToken::new(self.shard, conn)))
    }

    /// A connection from another shard has arrived in a slot.
    pub(crate) fn adopted(&mut self, token: HandoverToken, slot: u32) {
        let Some(id) = self.links.slots.occupy(slot, Phase::Handshake) else {
            self.links.stats.ring_stale.add(1);
            return;
        };
        let Some(adoptee) = self.arriving.remove(&token) else {
            // Its particulars always come first; without them there is nobody to serve.
            self.links.stats.ring_stale.add(1);
            self.links.slots.at(slot).phase = Phase::Finishing;
            return self.links.mark_dirty(slot);
        };
        let stats = &self.links.stats;
        stats.moved_in.add(1);
        stats.open.add(1);
        self.links.mark_dirty(slot);
        if self.drain.is_some() {
            return self.send_away(slot, adoptee.user);
        }
        if self.links.stats.open.get() > u64::from(self.links.limits.connections_max) {
            self.links.stats.limit_connections.add(1);
            return self.close(slot, CloseReason::Overloaded);
        }
        self.open_session(slot, &adoptee);
        if self.links.slots.get(id).is_some_and(|conn| conn.phase == Phase::Open) {
            // They were counted when they came in.
            self.links.stats.bytes_in.sub(adoptee.bytes.len() as u64);
            self.received(slot, &adoptee.bytes);
        }
    }

    /// Makes the connection a session of its user.
    fn open_session(&mut self, slot: u32, adoptee: &Adoptee) {
        let session = self.next_session();
        let since_s = (self.now.wall_ms / 1_000) as u32;
        let entry = Entry::new(session, slot, since_s, &adoptee.device, &adoptee.class);
        let replaced = match self.presence.login(adoptee.user, entry) {
            LoginOutcome::Added => None,
            LoginOutcome::Replaced(old) => Some(old.slot),
            LoginOutcome::TooManyDevices => {
                self.links.stats.limit_devices.add(1);
                return self.close(slot, CloseReason::Overloaded);
            }
            LoginOutcome::Full => return self.close(slot, CloseReason::Overloaded),
            // Session ids only go up, so a session of this shard is never older than one that is registered.
            LoginOutcome::Refreshed | LoginOutcome::Stale(_) => unreachable!("a new session has the highest id"),
        };
        if let Some(log) = &mut self.presence_log
            && let Some(entry) = self.presence.sessions(adoptee.user).iter().find(|entry| entry.session == session)
        {
            log.began(self.now.wall_ms, adoptee.user, entry);
        }
        let tick = self.links.tick;
        let rate_milliframes = self.links.limits.frames_per_sec * 1_000;
        let rate_ms = self.now.mono_ms as u32;
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::Open;
        conn.user = adoptee.user;
        conn.heartbeat_secs = adoptee.heartbeat_secs;
        conn.alive_tick = tick;
        conn.rate_milliframes = rate_milliframes;
        conn.rate_ms = rate_ms;
        self.links.stats.logins.add(1);
        if let Some(old) = replaced {
            self.close(old, CloseReason::Replaced);
        }
        let login_ok = LoginOk {
            session,
            node: self.node.clone(),
            shard: u32::from(self.shard),
            heartbeat_secs: u32::from(adoptee.heartbeat_secs),
            time_ms: self.now.wall_ms,
            max_frame: self.links.limits.frame_bytes_max,
            pending: self.inboxes.len(adoptee.user) as u64,
            ..LoginOk::default()
        };
        self.links.reply(slot, |out| encode_message(out, Kind::LoginOk, 0, &login_ok));
        if replaced.is_some() {
            // What the old session did not acknowledge may never have reached the device.
            self.redeliver_to(adoptee.user, slot);
        }
        self.links.arm_session(slot, &mut self.inboxes);
    }
}
