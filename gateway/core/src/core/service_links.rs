//! Workers' links: the services' port, SERVE, WINDOW, pushes, and the end of a link. What becomes of calls is in
//! `calls`.
//!
//! A link is a connection like a client's, with the same clocks, bounds and ends, but with a role of its own: it is no
//! session, its frames are those of the services' port, and it may have more queued.

use super::Core;
use super::decode::Flow;
use super::route::Routed;
use super::shard::Shard;
use crate::auth::Granted;
use crate::conn::{ConnFlags, Phase};
use crate::io::{HandoverToken, Io, Peer, errno};
use crate::mailbox::{Adoptee, Record};
use crate::push::push_to::has_head;
use crate::reason::CloseReason;
use crate::services::{
    Admitted, LINKS_MAX, OFFERS_MAX, Pool, ServiceLink, ServiceRecord, ServiceSpec, WINDOW_DEFAULT, is_node_name_char,
};
use crate::wish::Wish;
use std::collections::HashSet;
use trunkline_proto::prost::Message;
use trunkline_proto::{
    Code, Frame, Header, Kind, Outcome, SERVICE_USERS, Serve, ServeOk, VERSION, encode, encode_message, flags,
};

/// Accepts of workers armed at a time. A multishot accept would not tell who connects.
const SERVICE_ACCEPTS_MAX: u32 = 4;
/// Longest name of an instance.
const NAME_BYTES_MAX: usize = 64;

impl<I: Io> Core<I> {
    /// A worker has connected to the services' port.
    pub(super) fn on_service_accept(&mut self, result: Result<u32, i32>, peer: Option<Peer>) {
        self.service_accepts -= 1;
        match result {
            Ok(slot) => {
                self.shard.accepted(slot, None);
                let is_local = match peer {
                    Some(Peer::Address(address)) => address.ip().to_canonical().is_loopback(),
                    Some(Peer::Unix) => true,
                    None => false,
                };
                let tls_required = self.shard.services.as_ref().is_some_and(|services| services.config.tls_required);
                let flags = &mut self.shard.links.slots.at(slot).flags;
                flags.set(ConnFlags::SERVICE);
                if tls_required {
                    flags.set(ConnFlags::TLS_ONLY);
                }
                if is_local {
                    flags.set(ConnFlags::LOCAL);
                }
                self.arm_service_accepts();
            }
            Err(errno::ECANCELED) => {}
            // The next tick tries again.
            Err(_) => self.shard.links.stats.accept_errors.add(1),
        }
    }

    /// Sees to it that as many accepts of workers are armed as are to be.
    pub(super) fn arm_service_accepts(&mut self) {
        let Some(listener) = self.services_listener.filter(|_| !self.shard.ends()) else { return };
        while self.service_accepts < SERVICE_ACCEPTS_MAX {
            self.service_accepts += 1;
            self.io.accept_with_peer(listener);
        }
    }

    /// The shard is about to end: takes no more workers.
    pub(super) fn stop_service_accepts(&mut self) {
        if let Some(listener) = self.services_listener {
            self.io.accept_cancel(listener);
            self.io.stop_listening(listener);
        }
    }
}

/// Whether what a worker says of itself can be so.
fn is_valid(serve: &Serve, shards: u16) -> bool {
    let mut seen = HashSet::new();
    let offers = serve.offers.iter().all(|offer| {
        (1..=u32::from(u16::MAX)).contains(&offer.service)
            && offer.weight <= u32::from(u16::MAX)
            && seen.insert(offer.service)
    });
    let name = (1..=NAME_BYTES_MAX).contains(&serve.name.len()) && serve.name.chars().all(is_node_name_char);
    let count = (1..=OFFERS_MAX).contains(&serve.offers.len());
    name && count && offers && serve.window <= u32::from(u16::MAX) && serve.shard <= u32::from(shards)
}

impl Shard {
    /// The first frame of a worker.
    pub(super) fn serve(&mut self, slot: u32, frame: &Frame<'_>) {
        let is_dialed = self.links.slots.at(slot).flags.has(ConnFlags::DIALED);
        let Ok(serve) = Serve::decode(frame.body) else { return self.close(slot, CloseReason::BadLogin) };
        if serve.version != VERSION {
            return self.close(slot, CloseReason::UnsupportedVersion);
        }
        // Whoever was dialed is on the shard that has dialed, and goes by its address.
        let serve = if is_dialed { Serve { shard: 0, name: "dialed".to_owned(), ..serve } } else { serve };
        if !is_valid(&serve, self.shards) {
            return self.close(slot, CloseReason::BadLogin);
        }
        if is_dialed {
            return self.serve_dialed(slot, serve);
        }
        let pushes_to_groups = match self.may_serve(slot, &serve) {
            Ok(pushes_to_groups) => pushes_to_groups,
            Err(why) => return self.close_with(slot, CloseReason::BadCredentials, String::new(), why),
        };
        // It has been judged here, and travels no further than it must.
        let admitted = Admitted { serve: Serve { token: String::new(), ..serve }, pushes_to_groups, placing: None };
        let serve = &admitted.serve;
        if self.drain.is_some() {
            return self.close(slot, CloseReason::Draining);
        }
        let home = match (serve.shard, &mut self.services) {
            (0, Some(services)) => services.next_shard(self.shards),
            (asked, _) => asked.saturating_sub(1) as u16,
        };
        if home == self.shard {
            return self.open_service_link(slot, &admitted);
        }
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::HandingOver;
        conn.set_home_shard(home);
        if conn.outbox.is_none() {
            self.links.wheel.disarm(slot);
        }
        let adoptee = Adoptee {
            user: 0,
            device: String::new(),
            class: String::new(),
            heartbeat_secs: 0,
            wish: Wish::default(),
            granted: Granted::default(),
            began_us: self.now.mono_us,
            bytes: Vec::new(),
            wrapped: None,
            known: None,
            serve: Some(Box::new(admitted)),
        };
        self.handovers.depart(slot, Box::new(adoptee));
        self.links.mark_dirty(slot);
    }

    /// Who may serve: whoever has a key with the scope of each service; without a keys file, everybody on this host and
    /// nobody else. Returns whether it may also push to groups.
    pub(super) fn may_serve(&mut self, slot: u32, serve: &Serve) -> Result<bool, &'static str> {
        // A server that was dialed is where the configuration has it.
        let flags = self.links.slots.at(slot).flags;
        let is_local = flags.has(ConnFlags::LOCAL) || flags.has(ConnFlags::DIALED);
        let Some(services) = &self.services else { return Err("there are no services here") };
        let may = match (services.config.keys.are_needed(), serve.token.is_empty()) {
            (false, _) if is_local => return Ok(true),
            (false, _) => return Err("from another host this needs a key, and there is no keys file"),
            (true, true) => return Err("this needs a key with the scope serve:<service> of each service"),
            (true, false) => {
                let mut offered = serve.offers.iter().map(|offer| offer.service);
                services.config.keys.may_serve(&serve.token, &mut offered)
            }
        };
        match may {
            Some(true) => Ok(services.config.keys.may_push_to_groups(&serve.token)),
            Some(false) => Err("this key does not have the scope serve:<service> of each service"),
            None => Err("this key is not in the keys file"),
        }
    }

    /// A worker that was let in becomes a link of this shard.
    pub(super) fn open_service_link(&mut self, slot: u32, admitted: &Admitted) {
        let Admitted { serve, pushes_to_groups, placing } = admitted;
        let (now_ms, tick) = (self.now.mono_ms, self.links.tick);
        let heartbeat_secs = self.links.limits.heartbeat_secs_min;
        let id = self.links.slots.id(slot);
        let conn = self.links.slots.at(slot);
        conn.flags.set(ConnFlags::SERVICE);
        let Some(services) = &mut self.services else { return self.close(slot, CloseReason::BadLogin) };
        if services.links.len() >= LINKS_MAX {
            self.links.stats.limit_service_links.add(1);
            return self.close(slot, CloseReason::Overloaded);
        }
        let mut added = Vec::new();
        for offer in &serve.offers {
            let service = offer.service as u16;
            let pool = services.pools.entry(service).or_insert_with(|| Pool::new(ServiceSpec::of(service)));
            let taken = match placing {
                Some(placing) => pool.add_server(slot, placing, now_ms),
                None => pool.add_link(&serve.name, slot, offer.weight.max(1), offer.backup, now_ms),
            };
            if !taken {
                break;
            }
            added.push(service);
        }
        if added.len() < serve.offers.len() {
            // Too many instances, or their weights add up to more than a ring holds.
            for service in added {
                if let Some(pool) = services.pools.get_mut(&service) {
                    pool.remove_link(&serve.name, slot, now_ms);
                }
            }
            self.links.stats.limit_service_links.add(1);
            return self.close(slot, CloseReason::Overloaded);
        }
        let window = if serve.window == 0 { WINDOW_DEFAULT } else { serve.window };
        let cap = placing.as_ref().map_or(u32::MAX, |placing| placing.cap);
        let link = ServiceLink {
            name: serve.name.as_str().into(),
            services: added.into(),
            window: window.min(cap),
            wants: window,
            cap,
            in_flight: 0,
            heads: serve.heads,
            pushes_to_groups: *pushes_to_groups,
        };
        services.links.insert(slot, link);
        if placing.is_some() {
            services.dials.serves(slot, now_ms);
        }
        services.heads += usize::from(serve.heads);
        self.links.slots.at(slot).begin_link(heartbeat_secs as u16, tick);
        self.links.stats.service_links_opened.add(1);
        // Whoever had the slot before may have had a token.
        self.begin_token(slot, Granted::default());
        let nodes = self.names_of_nodes_that_hand_calls_on();
        let ok = ServeOk {
            link: HandoverToken::new(self.shard, id).0,
            node: self.node.clone(),
            shard: self.shard.into(),
            shards: self.shards.into(),
            heartbeat_secs,
            max_frame: self.links.limits.frame_bytes_max,
            nodes,
            time_ms: self.now.wall_ms,
        };
        self.links.reply(slot, |out| encode_message(out, Kind::ServeOk, 0, &ok));
        self.links.arm_session(slot, &mut self.inboxes);
        self.window_changed(slot);
    }

    /// The window of a link is another one: its services may have more room, or none.
    pub(super) fn window_changed(&mut self, slot: u32) {
        let now_ms = self.now.mono_ms;
        let Some(services) = &mut self.services else { return };
        let Some(link) = services.links.get(&slot) else { return };
        let (name, of_link) = (link.name.clone(), link.services.clone());
        for service in &of_link {
            let Some(pool) = services.pools.get_mut(service) else { continue };
            let slots = pool.instances.iter().find(|instance| instance.name == name).map(|instance| &instance.links);
            let windows = slots.into_iter().flatten().filter_map(|slot| services.links.get(slot));
            let window = windows.map(|link| link.window).sum();
            pool.set_window(&name, window, now_ms);
        }
        for service in of_link {
            self.tell_serving(service);
            self.drain_queue(service);
        }
    }

    /// Tells the other shards how many instances take calls of a service here, if that has changed.
    pub(super) fn tell_serving(&mut self, service: u16) {
        let Some(services) = &mut self.services else { return };
        services.nodes.note_news();
        let Some(pool) = services.pools.get_mut(&service) else { return };
        let Some(instances) = pool.take_news() else { return };
        let record = Record::Service(ServiceRecord::Serves { service, instances });
        for shard in (0..self.shards).filter(|shard| *shard != self.shard) {
            self.outgoing.put(shard, &record);
        }
    }

    /// A frame of a worker's link.
    pub(super) fn service_frame(&mut self, slot: u32, kind: Option<Kind>, frame: &Frame<'_>) -> Flow {
        match kind {
            Some(Kind::Answer) => self.answer(slot, frame),
            Some(Kind::PushTo) => return self.push_to(slot, frame),
            Some(Kind::Window) => {
                if let Some(link) = self.services.as_mut().and_then(|services| services.links.get_mut(&slot)) {
                    link.wants = frame.aux.into();
                    link.window = link.wants.min(link.cap);
                }
                self.window_changed(slot);
            }
            Some(Kind::Ping) => {
                let pong = Header { kind: Kind::Pong, flags: 0, aux: frame.aux, id: 0, peer: 0, stamp: 0 };
                self.links.reply(slot, |out| encode(out, &pong, &[]));
            }
            Some(Kind::Logout) => self.close(slot, CloseReason::Logout),
            Some(Kind::Serve) => self.links.error(slot, Code::AlreadyLoggedIn, 0, 0),
            _ => self.links.error(slot, Code::UnknownKind, frame.id, frame.peer),
        }
        Flow::On
    }

    /// PUSH_TO: a message of a service for a user. It goes the way of a message of a client.
    fn push_to(&mut self, slot: u32, frame: &Frame<'_>) -> Flow {
        let Frame { id, peer, aux: service, .. } = *frame;
        let acked = frame.flags & flags::ACK != 0;
        if has_head(frame) {
            self.push_with_head(slot, frame);
            return Flow::On;
        }
        if id == 0 || peer == 0 || peer >= SERVICE_USERS {
            self.links.error(slot, Code::BadRequest, id, peer);
            return Flow::On;
        }
        let link = self.services.as_ref().and_then(|services| services.links.get(&slot));
        if !link.is_some_and(|link| link.services.contains(&service)) {
            self.links.stats.pushes_denied.add(1);
            if acked {
                let aux = Outcome::Denied.as_u16();
                let header = Header { kind: Kind::Pushed, flags: 0, aux, id, peer, stamp: 0 };
                self.links.reply(slot, |out| encode(out, &header, &[]));
            } else {
                self.links.error(slot, Code::NotAllowed, id, peer);
            }
            return Flow::On;
        }
        let message = Routed {
            origin: self.origin(slot),
            from: SERVICE_USERS + u64::from(service),
            to: peer,
            id,
            acked,
            extra: frame.flags & flags::NO_STORE,
            payload: frame.body,
        };
        let flow = self.dispatch(&message);
        self.links.stats.pushes_in.add(u64::from(flow == Flow::On));
        flow
    }

    /// A worker's link is about to end. What it was to get and no byte of which the kernel has goes to another worker,
    /// whatever it is; of the rest what may be carried out twice.
    pub(super) fn worker_ends(&mut self, slot: u32) {
        let now_ms = self.now.mono_ms;
        let Some(services) = &mut self.services else { return };
        let Some(link) = services.links.remove(&slot) else { return };
        services.heads -= usize::from(link.heads);
        for service in &link.services {
            if let Some(pool) = services.pools.get_mut(service) {
                pool.remove_link(&link.name, slot, now_ms);
                let slots = pool.instances.iter().find(|instance| instance.name == link.name);
                let windows = slots.into_iter().flat_map(|instance| &instance.links);
                let windows = windows.filter_map(|slot| services.links.get(slot)).map(|link| link.window);
                let window = windows.sum();
                pool.set_window(&link.name, window, now_ms);
            }
        }
        let pending = self.links.take_pending(slot);
        for service in &link.services {
            self.tell_serving(*service);
        }
        self.calls_of_link_end(slot, &link, &pending);
        for service in &link.services {
            self.drain_queue(*service);
        }
    }

    /// All sessions of a draining node have been told to go: so are its workers now.
    pub(super) fn dismiss_workers(&mut self) {
        let links = self.services.as_ref().map(|services| services.links.keys().copied().collect::<Vec<u32>>());
        for slot in links.unwrap_or_default() {
            self.close(slot, CloseReason::Draining);
        }
    }
}
