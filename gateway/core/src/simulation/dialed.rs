//! Servers that the node of `services` dials: they come and go, refuse, say nothing, or say something else than they
//! should; one that serves is a worker like any other, whose links never have more than was configured.

use super::World;
use super::node::Node;
use crate::io::sim::Rng;
use crate::metrics::ShardStats;
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_proto::prost::Message;
use trunkline_proto::{Frame, Header, Invite, Kind, Offer, Serve, VERSION, encode, encode_message};

const SERVICE: u16 = 7;
/// What the node shows to servers.
const KEY: &str = "the gateway's key";
/// Calls that the first server has at once.
const CALLS_MAX: u32 = 6;
const ADDRESSES: [&str; 3] = ["10.9.0.1:9000", "10.9.0.2:9000", "10.9.0.3:9000"];

/// The servers.
pub(super) struct Dialed {
    shards: u16,
    /// In every other run there is none.
    are_used: bool,
    rng: Rng,
    listens: [bool; ADDRESSES.len()],
    invited: u64,
    lied: u64,
}

impl Dialed {
    pub(super) fn new(shards: u16, seed: u64) -> Self {
        let rng = Rng::new(seed ^ 0xD1A1);
        Dialed { shards, are_used: seed % 2 == 1, rng, listens: [false; ADDRESSES.len()], invited: 0, lied: 0 }
    }

    /// What is said of them, behind what is said of the service.
    pub(super) fn spec(&self) -> String {
        if !self.are_used {
            return String::new();
        }
        let [first, second, third] = ADDRESSES;
        format!(
            ",server={first} weight=2 max_conns={CALLS_MAX} max_fails=2 fail_timeout_secs=1 slow_start_secs=1,\
             server={second},server={third} backup"
        )
    }

    pub(super) fn key(&self) -> Arc<str> {
        KEY.into()
    }

    pub(super) fn place_of(&self, address: SocketAddr) -> Option<usize> {
        ADDRESSES.iter().position(|place| *place == address.to_string())
    }

    /// Some begin to listen, some end.
    pub(super) fn come_and_go(&mut self, world: &mut World) {
        if !self.are_used {
            return;
        }
        for (at, address) in ADDRESSES.iter().enumerate() {
            if self.rng.chance(if self.listens[at] { 10 } else { 100 }) {
                self.listens[at] = !self.listens[at];
                world.listen_outside(address.parse().expect("an address"), self.listens[at]);
            }
        }
    }

    /// What a server says to an INVITE, and how many calls it may have from then on.
    pub(super) fn answer(&mut self, at: usize, frame: &Frame<'_>, token: &str, rng: &mut Rng) -> (Vec<u8>, usize) {
        let invite = Invite::decode(frame.body).expect("an INVITE");
        assert_eq!((invite.version, invite.service, invite.token.as_str()), (VERSION, SERVICE.into(), KEY));
        assert!((1..=u32::from(self.shards)).contains(&invite.link) && invite.links == u32::from(self.shards));
        self.invited += 1;
        let (mut window, mut bytes) = (rng.within(1, 4) as u32, Vec::new());
        let offer = |service: u32| Offer { service, weight: 60_000, backup: true };
        let mut serve = Serve {
            version: VERSION,
            name: "any".to_owned(),
            token: token.to_owned(),
            offers: vec![offer(SERVICE.into())],
            shard: rng.within(0, self.shards.into()) as u32,
            window,
            heads: rng.chance(300),
        };
        if rng.chance(300) {
            self.lied += 1;
            match rng.below(8) {
                0 => return (bytes, 0),
                1 => serve.offers = vec![offer(8)],
                2 => serve.offers.push(offer(8)),
                3 => serve.token = "some key".to_owned(),
                4 => serve.version = 2,
                5 => {
                    encode_message(&mut bytes, Kind::Bye, 6, &trunkline_proto::Bye::default());
                    return (bytes, 0);
                }
                6 => {
                    let header = Header { kind: Kind::Answer, flags: 0, aux: 0, id: 1, peer: 0, stamp: 0 };
                    encode(&mut bytes, &header, b"what was asked?");
                    return (bytes, 0);
                }
                _ => return (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), 0),
            }
        }
        encode_message(&mut bytes, Kind::Serve, 0, &serve);
        if at == 0 {
            let (links, link) = (invite.links, invite.link - 1);
            window = window.min(CALLS_MAX / links + u32::from(link < CALLS_MAX % links));
        }
        (bytes, window as usize)
    }

    /// Every server that was dialed has served or failed, and each failure was counted.
    pub(super) fn check(&self, node: &Node) {
        let sum = |of: fn(&ShardStats) -> u64| node.stats().map(of).sum::<u64>();
        let dials = sum(|stats| stats.service_dials.get());
        assert_eq!(self.are_used, dials > 0);
        let failures = sum(|stats| {
            let of_tries = stats.server_refused.get() + stats.server_unanswered.get() + stats.server_unreachable.get();
            let of_openings = stats.server_silent.get() + stats.server_strange.get() + stats.server_key.get();
            let of_ends = stats.server_turned_away.get() + stats.server_closed.get() + stats.server_no_room.get();
            of_tries + of_openings + of_ends + stats.server_logged_out.get() + stats.server_lost.get()
        });
        // When the node ended there may have been dials under way, one to each server from each shard at most.
        let under_way = u64::from(self.shards) * ADDRESSES.len() as u64;
        // Where there is no room for a server it is not even dialed.
        let undialed = sum(|stats| stats.server_no_room.get());
        let is_sum = failures <= dials + undialed && dials <= failures + under_way;
        assert!(is_sum, "{dials} dials, and {failures} ends of them");
        assert!(self.lied <= self.invited);
    }
}
