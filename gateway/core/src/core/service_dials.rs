//! Servers of services that this shard dials: the connection, INVITE, and what becomes of their links. When each is
//! dialed is said in [`dials`](crate::services).
//!
//! From its SERVE on such a link is a worker's like any other, see `service_links`; only what was said of the server
//! beforehand stands above what it says of itself.

use super::Core;
use super::shard::Shard;
use crate::conn::ConnFlags;
use crate::io::{Io, OpResult};
use crate::reason::CloseReason;
use crate::services::{Admitted, Greeting, LINKS_PER_SERVER_MAX, ServerFailure};
use trunkline_proto::{Invite, Kind, Offer, Serve, VERSION, encode_message};

/// A number that nobody can guess, for the pauses between dials.
fn word(random: [u8; 32]) -> u64 {
    u64::from_ne_bytes(random[..8].try_into().expect("eight of 32"))
}

impl<I: Io> Core<I> {
    /// What time brings: servers to be dialed, and links whose address is no more.
    pub(super) fn tick_dials(&mut self) {
        let now_ms = self.shard.now.mono_ms;
        let drains = self.shard.drain.is_some();
        let links = &self.shard.links;
        let most = u64::from(links.limits.connections_max).saturating_sub(links.stats.open.get());
        let slots = links.limits.slots().saturating_sub(links.slots.in_use());
        let Some(services) = &mut self.shard.services else { return };
        let leaving = services.dials.look(now_ms);
        let returned = services.dials.take_returned();
        links.stats.limit_service_servers.set(services.dials.left_out);
        if !drains {
            let room = most.min(slots.into()) as usize;
            let due = services.dials.due(now_ms, room);
            let is_full = due.len() == room;
            for (token, address) in due {
                links.stats.service_dials.add(1);
                self.io.dial(token, address);
            }
            if is_full {
                let io = &mut self.io;
                links.stats.server_no_room.add(services.dials.put_off(now_ms, || word(io.random())));
            }
        }
        let standings = services.dials.standings();
        links.stats.service_servers_serving.set(standings.serving);
        links.stats.service_servers_opening.set(standings.opening);
        links.stats.service_servers_dialing.set(standings.dialing);
        links.stats.service_servers_down.set(standings.down);
        self.shard.let_servers_go(&leaving);
        self.shard.take_servers_back(&returned);
    }

    /// A dial of a server has ended.
    pub(super) fn on_server_dialed(&mut self, token: u32, result: OpResult<u32>) {
        let (now_ms, random) = (self.shard.now.mono_ms, word(self.io.random()));
        match result {
            Ok(slot) => {
                self.shard.accepted(slot, None);
                self.shard.greet_server(slot, token);
            }
            Err(errno) => {
                let Some(services) = &mut self.shard.services else { return };
                if let Some(failure) = services.dials.not_connected(token, errno, now_ms, random) {
                    self.shard.count_server_failure(failure);
                }
            }
        }
    }
}

impl Shard {
    /// The first word on a connection that was made to a server.
    fn greet_server(&mut self, slot: u32, token: u32) {
        let conn = self.links.slots.at(slot);
        conn.flags.set(ConnFlags::SERVICE | ConnFlags::DIALED);
        let (link, links) = (u32::from(self.shard) + 1, u32::from(self.shards));
        let greeting = self.services.as_mut().and_then(|services| services.dials.connected(token, slot));
        let Some(Greeting { service, key }) = greeting else {
            // Its address is no more.
            return self.close(slot, CloseReason::Draining);
        };
        let invite = Invite {
            version: VERSION,
            service: service.into(),
            token: (*key).to_owned(),
            node: self.node.clone(),
            link,
            links: links.min(LINKS_PER_SERVER_MAX.into()),
        };
        self.links.reply(slot, |out| encode_message(out, Kind::Invite, 0, &invite));
    }

    /// SERVE of a server that was dialed: for the service that it was dialed for, and with what was said of it.
    pub(super) fn serve_dialed(&mut self, slot: u32, serve: Serve) {
        let placing = self.services.as_ref().and_then(|services| services.dials.placing(slot));
        let Some(placing) = placing.filter(|placing| match &serve.offers[..] {
            [offer] => offer.service == u32::from(placing.service),
            _ => false,
        }) else {
            let text = "a server that is dialed offers the service of the INVITE, and no other";
            return self.close_with(slot, CloseReason::BadLogin, String::new(), text);
        };
        let pushes_to_groups = match self.may_serve(slot, &serve) {
            Ok(pushes_to_groups) => pushes_to_groups,
            Err(why) => return self.close_with(slot, CloseReason::BadCredentials, String::new(), why),
        };
        if self.drain.is_some() {
            return self.close(slot, CloseReason::Draining);
        }
        let offers = vec![Offer { service: placing.service.into(), weight: placing.weight, backup: placing.backup }];
        let serve = Serve { token: String::new(), name: (*placing.name).to_owned(), offers, ..serve };
        self.open_service_link(slot, &Admitted { serve, pushes_to_groups, placing: Some(placing) });
    }

    /// A connection to a server is about to end.
    pub(super) fn dialed_ends(&mut self, slot: u32, reason: CloseReason) {
        let now = self.now;
        let Some(services) = &mut self.services else { return };
        // Pauses are spread so that shards and nodes do not dial in step; nobody gains by guessing them.
        let random =
            trunkline_router_core::hash::user_hash(now.mono_us ^ u64::from(self.shard) << 48 ^ u64::from(slot));
        if let Some(failure) = services.dials.ended(slot, reason, now.mono_ms, random) {
            self.count_server_failure(failure);
        }
    }

    /// Servers whose address is no more get no more calls, and end when they have none.
    fn let_servers_go(&mut self, leaving: &[u32]) {
        for slot in leaving {
            if let Some(link) = self.services.as_mut().and_then(|services| services.links.get_mut(slot)) {
                (link.cap, link.window) = (0, 0);
            }
            self.window_changed(*slot);
        }
        let Some(services) = &self.services else { return };
        let over = services.dials.leaving().filter(|slot| {
            let link = services.links.get(slot);
            link.is_none_or(|link| link.in_flight == 0)
        });
        for slot in over.collect::<Vec<u32>>() {
            self.close(slot, CloseReason::Draining);
        }
    }

    /// Servers whose address is there again before their calls have ended get calls as before.
    fn take_servers_back(&mut self, returned: &[(u32, u32)]) {
        for (slot, cap) in returned {
            if let Some(link) = self.services.as_mut().and_then(|services| services.links.get_mut(slot)) {
                (link.cap, link.window) = (*cap, link.wants.min(*cap));
            }
            self.window_changed(*slot);
        }
    }

    fn count_server_failure(&self, failure: ServerFailure) {
        let stats = &self.links.stats;
        let stat = match failure {
            ServerFailure::Refused => &stats.server_refused,
            ServerFailure::Unanswered => &stats.server_unanswered,
            ServerFailure::Unreachable => &stats.server_unreachable,
            ServerFailure::Silent => &stats.server_silent,
            ServerFailure::Strange => &stats.server_strange,
            ServerFailure::Key => &stats.server_key,
            ServerFailure::TurnedAway => &stats.server_turned_away,
            ServerFailure::Closed => &stats.server_closed,
            ServerFailure::NoRoom => &stats.server_no_room,
            ServerFailure::LoggedOut => &stats.server_logged_out,
            ServerFailure::Lost => &stats.server_lost,
        };
        stat.add(1);
    }
}
