//! LOGIN, and the move of a logged-in connection to the home shard of its user.

use super::reading::Reading;
use super::shard::Shard;
use crate::auth::{Granted, Refusal};
use crate::conn::{Conn, ConnFlags, Phase};
use crate::directory::Home;
use crate::io::{ConnId, HandoverToken};
use crate::limits::CLASS_BYTES_MAX;
use crate::mailbox::Adoptee;
use crate::reason::CloseReason;
use crate::wish::Wish;
use trunkline_proto::prost::Message;
use trunkline_proto::{DEVICE_BYTES_MAX, Frame, Login, SERVICE_USERS, VERSION};
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::presence::{Entry, LoginOutcome, Presence};

/// What LOGIN_OK says of the inbox.
#[derive(Clone, Debug, Default)]
pub(crate) struct Welcome {
    /// Messages that wait for the device, or without a store for the user.
    pub(crate) pending: u64,
    pub(crate) resume: Vec<u8>,
    pub(crate) resumed: bool,
    pub(crate) floor: u64,
    pub(crate) last: u64,
    pub(crate) truncated: bool,
    /// How the device reads its inbox; `None` where there is no store.
    pub(crate) reading: Option<Reading>,
}

impl Shard {
    /// The first frame of a connection.
    pub(crate) fn login(&mut self, slot: u32, frame: &Frame<'_>) {
        let Ok(mut login) = Login::decode(frame.body) else {
            return self.close(slot, CloseReason::BadLogin);
        };
        let mut certified = None;
        if !self.links.slots.at(slot).wire.is_native() {
            certified = self.links.take_certified(slot);
            if let Some(token) = self.links.take_wrapped_token(slot)
                && login.token.is_empty()
            {
                login.token = token;
            }
        }
        if login.version != VERSION {
            return self.close(slot, CloseReason::UnsupportedVersion);
        }
        // Who it is may be for the hook to say.
        if (login.user == 0 && self.hook.is_none())
            || login.user >= SERVICE_USERS
            || login.device.len() > DEVICE_BYTES_MAX
            || login.device_class.len() > CLASS_BYTES_MAX
        {
            return self.close(slot, CloseReason::BadLogin);
        }
        let now_s = self.now.wall_ms / 1_000;
        let checked = match certified {
            Some((user, until_s)) => self.auth.get().check_certified(login.user, &login.token, now_s, user, until_s),
            None => self.auth.get().grant(login.user, &login.token, now_s),
        };
        let granted = match checked {
            Ok(granted) => granted,
            Err(refusal) => return self.refuse_login(slot, login.user, &login.token, refusal),
        };
        let limits = &self.links.limits;
        let heartbeat_secs = match login.heartbeat_secs {
            0 => limits.heartbeat_secs,
            wish => wish.clamp(limits.heartbeat_secs_min, limits.heartbeat_secs_max),
        };
        let wish = Wish::of(&mut login);
        let adoptee = Box::new(Adoptee {
            user: login.user,
            device: login.device,
            class: login.device_class,
            heartbeat_secs: heartbeat_secs as u16,
            wish,
            granted,
            began_us: self.now.mono_us,
            bytes: Vec::new(),
            wrapped: None,
            known: None,
            serve: None,
        });
        match self.hook.is_some() && self.drain.is_none() {
            true => self.ask_hook(slot, login.token, adoptee),
            false => self.let_in(slot, adoptee),
        }
    }

    /// A login that may go on: to the home shard of its user, unless that is this one, or another node's.
    pub(super) fn let_in(&mut self, slot: u32, adoptee: Box<Adoptee>) {
        if self.drain.is_some() {
            return self.dismiss(slot, adoptee.user);
        }
        if self.names_too_many(&adoptee.granted.send) {
            return self.refuse_login(slot, adoptee.user, "", Refusal::TooManyNamed);
        }
        if let Some(address) = self.home_elsewhere(adoptee.user) {
            return self.close_towards(slot, CloseReason::Moved, address);
        }
        let home = home_shard(adoptee.user, u32::from(self.shards)) as u16;
        if home == self.shard {
            return self.open_session(slot, &adoptee);
        }
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::HandingOver;
        conn.set_home_shard(home);
        // One that has waited for the hook may have a read under way; its time goes on until that has ended.
        if conn.outbox.is_none() && !conn.busy() {
            self.links.wheel.disarm(slot);
        }
        self.handovers.depart(slot, adoptee);
        self.links.mark_dirty(slot);
    }

    /// Where the client is to go, if this node sends guests away and the user's home is another one.
    fn home_elsewhere(&self, user: u64) -> Option<String> {
        if self.entrance.sends_guests_away() { self.other_home(user) } else { None }
    }

    /// The address of the user's home in the present view; `None` if that is this node, or nobody is.
    pub(crate) fn other_home(&self, user: u64) -> Option<String> {
        let routing = self.directory.routing.as_ref()?;
        match routing.home(user) {
            Home::There { node, .. } => routing.member(node).map(|home| home.advertise.clone().into()),
            Home::Here | Home::Nowhere => None,
        }
    }

    /// The particulars of a departing connection, with all that came behind its LOGIN.
    pub(crate) fn take_departing(&mut self, slot: u32) -> Option<(u16, Box<Adoptee>)> {
        let mut adoptee = self.handovers.take_departing(slot)?;
        if let Some(partial) = self.links.take_partial(slot) {
            adoptee.bytes = *partial;
        }
        // A mailbox that was full has given it back before.
        if adoptee.wrapped.is_none() {
            adoptee.wrapped = self.links.take_wrapped(slot);
        }
        adoptee.known = self.addresses.known(slot);
        Some((self.links.slots.at(slot).home_shard(), adoptee))
    }

    /// The other shard has the descriptor, or could not take it. Returns the token to withdraw.
    pub(crate) fn handed_over(&mut self, conn: ConnId, ok: bool) -> Option<(u16, HandoverToken)> {
        let known = self.links.slots.get(conn)?;
        let home = known.home_shard();
        let Conn { flags, phase, .. } = known;
        flags.clear(ConnFlags::OP_PENDING);
        if flags.has(ConnFlags::MESH) {
            *phase = Phase::Finishing;
            self.links.mark_dirty(conn.slot);
            self.links.stats.handover_errors.add(u64::from(!ok));
            return (!ok).then(|| (home, HandoverToken::new(self.shard, conn)));
        }
        if ok {
            *phase = Phase::Finishing;
            self.links.stats.moved_out.add(1);
            self.links.stats.open.sub(1);
            self.addresses.moved(conn.slot);
            self.links.mark_dirty(conn.slot);
            return None;
        }
        self.links.stats.handover_errors.add(1);
        self.close(conn.slot, CloseReason::Overloaded);
        Some((home, HandoverToken::new(self.shard, conn)))
    }

    /// A connection from another shard has arrived in a slot. Its particulars always come first; without them there is
    /// nobody to serve.
    pub(crate) fn adopted(&mut self, slot: u32, adoptee: Option<Box<Adoptee>>) {
        let Some(id) = self.links.slots.occupy(slot, Phase::Handshake) else {
            self.links.stats.ring_stale.add(1);
            return;
        };
        let Some(mut adoptee) = adoptee else {
            self.links.stats.ring_stale.add(1);
            self.links.slots.at(slot).phase = Phase::Finishing;
            return self.links.mark_dirty(slot);
        };
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::ClaimLost) {
            adoptee.granted.send = crate::auth::Whom::Nobody;
        }
        let stats = &self.links.stats;
        stats.moved_in.add(1);
        stats.open.add(1);
        self.addresses.adopt(slot, adoptee.known);
        self.links.mark_dirty(slot);
        if let Some(wrapped) = adoptee.wrapped.take() {
            self.links.put_wrapped(slot, *wrapped);
        }
        if self.drain.is_some() {
            return self.dismiss(slot, adoptee.user);
        }
        if self.links.stats.open.get() > u64::from(self.links.limits.connections_max) {
            self.links.stats.limit_connections.add(1);
            return self.close(slot, CloseReason::Overloaded);
        }
        let bytes = std::mem::take(&mut adoptee.bytes);
        match adoptee.serve.take() {
            Some(serve) => self.open_service_link(slot, &serve),
            None => self.open_session(slot, &adoptee),
        }
        match self.links.slots.get(id).map(|conn| conn.phase) {
            // They were counted when they came in.
            Some(Phase::Open) => {
                self.take_in(slot, &bytes);
                self.end_wrapped(slot);
            }
            Some(Phase::Registering) => self.keep(slot, &bytes),
            _ => {}
        }
    }

    /// Measures a login that has become a session; one that was refused has no time.
    pub(crate) fn login_done(&mut self, slot: u32, began_us: u64) {
        if self.links.slots.at(slot).phase == Phase::Open {
            self.links.stats.login_time.observe(self.now.mono_us.saturating_sub(began_us));
        }
    }

    /// Makes the connection a session of its user.
    pub(crate) fn open(
        &mut self,
        slot: u32,
        user: u64,
        entry: Entry,
        heartbeat_secs: u16,
        granted: Granted,
        welcome: Welcome,
    ) {
        if !self.has_room_to_send(slot, &granted.send) {
            return self.close(slot, CloseReason::Overloaded);
        }
        let session = entry.session;
        let first = self.presence.sessions(user).is_empty();
        let replaced = match self.presence_login(user, entry) {
            LoginOutcome::Added | LoginOutcome::Refreshed => None,
            LoginOutcome::Replaced(old) => Some(old),
            LoginOutcome::TooManyDevices => {
                self.links.stats.limit_devices.add(1);
                return self.close(slot, CloseReason::Overloaded);
            }
            LoginOutcome::Full => {
                self.links.stats.limit_users.add(1);
                return self.close(slot, CloseReason::Overloaded);
            }
            // Ids of this home go up; that of a guest was given by another home, and a newer one came first.
            LoginOutcome::Stale(_) => return self.close(slot, CloseReason::Replaced),
        };
        if let Some(log) = &mut self.presence_log
            && let Some(entry) = self.presence.sessions(user).iter().find(|entry| entry.session == session)
        {
            log.began(user, entry);
        }
        let (tick, now_ms, frames_per_sec) = (self.links.tick, self.now.mono_ms, self.links.limits.frames_per_sec);
        let conn = self.links.slots.at(slot);
        conn.begin_session(user, heartbeat_secs, tick, frames_per_sec, now_ms as u32);
        self.links.stats.logins.add(1);
        if first {
            self.tell_online(user);
        }
        self.tell_login(slot, user, session);
        if let Some(old) = &replaced {
            self.end_replaced(user, old);
        }
        self.begin_token(slot, granted);
        self.send_login_ok(slot, session, heartbeat_secs, &welcome);
        let mut carried = None;
        if let Some(old) = &replaced {
            carried = self.stop_reading(user, old.session);
            self.inboxes.replace(user, old.session, session);
        }
        if replaced.is_some() || first {
            // What the old session did not acknowledge may never have reached the device; and a former home may have
            // sent what waited there.
            let from_log = welcome.reading.is_some_and(|reading| !reading.ephemeral);
            self.redeliver_to(user, slot, session, first, from_log);
        }
        if let Some(mut reading) = welcome.reading {
            reading.carried = carried;
            self.begin_reading(slot, user, session, reading);
        }
        self.links.arm_session(slot, &mut self.inboxes);
    }
}
