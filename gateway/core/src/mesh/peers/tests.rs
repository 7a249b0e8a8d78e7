//! Two nodes' links to each other, on connections in memory.

use super::*;
use crate::directory::Routing;
use crate::directory::test_views::{key_of, view};
use crate::mesh::handshake::MeshEncryption;
use crate::mesh::seal::Forged;
use crate::mesh::wire::{Record, SETTLED_SET_SINCE, Unit};
use crate::mesh_news::LinkWord;
use trunkline_router_core::NodeState::Active;

/// A slot of a node's table, and what is on the way to it.
type Slot = u32;

struct Side {
    mesh: Mesh,
    /// Records received, by their user.
    got: Vec<u64>,
}

fn mesh(node: &str, shard: u16, shards: u16) -> Mesh {
    mesh_with(MeshEncryption::On, node, shard, shards)
}

fn mesh_with(encryption: MeshEncryption, node: &str, shard: u16, shards: u16) -> Mesh {
    Mesh::new(MeshConfig {
        node: node.into(),
        secrets: Secrets::new([&[7; 32][..]].into_iter()).unwrap().with_encryption(encryption),
        shard,
        shards,
        links_max: 0,
        link: LinkLimits { bytes_max: 20_000, reserve_bytes: 2_000 },
        bytes_max: 60_000,
        lease_ms: 5_000,
    })
}

fn routing(own: &str, life: u64, nodes: &[(&str, u64)]) -> Routing {
    let nodes: Vec<_> = nodes.iter().map(|(name, life)| (*name, *life, Active)).collect();
    Routing::new(key_of(own, life), &view(&nodes), key_of)
}

fn side(node: &str, life: u64, nodes: &[(&str, u64)]) -> Side {
    side_with(MeshEncryption::On, node, life, nodes)
}

fn side_with(encryption: MeshEncryption, node: &str, life: u64, nodes: &[(&str, u64)]) -> Side {
    // Four shards in each view; this is the first of them.
    let mut mesh = mesh_with(encryption, node, 0, 4);
    mesh.set_view(life, &routing(node, life, nodes), 0);
    Side { mesh, got: Vec::new() }
}

impl Side {
    /// Takes bytes that came to a slot.
    fn take(&mut self, slot: Slot, mut bytes: &[u8], now_ms: u64) {
        if self.mesh.link_of(slot).is_none() {
            match self.mesh.shake(slot, bytes, now_ms, [3; 32]) {
                Step::Up { consumed } => bytes = &bytes[consumed..],
                _ => return,
            }
        }
        let Some(id) = self.mesh.link_of(slot) else { return };
        let mut heard = Vec::new();
        if let Some(mut sealing) = self.mesh.take_sealing(slot) {
            let opened = sealing.open(&mut bytes.to_vec(), |data| {
                heard.extend_from_slice(data);
                Ok::<(), Forged>(())
            });
            self.mesh.put_sealing(slot, sealing);
            if opened.is_err() {
                self.mesh.note_forged();
                return self.mesh.broken(slot, now_ms, 0);
            }
        } else {
            heard.extend_from_slice(bytes);
        }
        let mut inbound = self.mesh.link(id).unwrap().1.begin_receive(now_ms).unwrap();
        let result = inbound.feed(&heard, |unit: Unit<'_>| {
            if let Some(Record::Gone { user, .. }) = self.mesh.link(id).unwrap().1.accept(unit, now_ms)? {
                self.got.push(user);
            }
            Ok(())
        });
        self.mesh.end_receive(slot, id, inbound, result);
    }

    /// What the slot has to send.
    fn send(&mut self, slot: Slot, now_ms: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(Outgoing { buf, offset }) = self.mesh.take_send(slot, now_ms) {
            bytes.extend_from_slice(&buf[offset..]);
            let taken = buf.len() - offset;
            self.mesh.sent(slot, buf, offset, taken);
        }
        bytes
    }

    fn queue(&mut self, node: (&str, u64), user: u64) -> Result<Placed, FarError> {
        self.mesh.queue(key_of(node.0, node.1), 0, &Record::Gone { user, session: 1 })
    }
}

/// Lets both talk until neither has anything to say.
fn talk(a: &mut Side, a_slot: Slot, b: &mut Side, b_slot: Slot, now_ms: u64) {
    loop {
        let (to_b, to_a) = (a.send(a_slot, now_ms), b.send(b_slot, now_ms));
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        if !to_b.is_empty() {
            b.take(b_slot, &to_b, now_ms);
        }
        if !to_a.is_empty() {
            a.take(a_slot, &to_a, now_ms);
        }
    }
}

/// Connects a's link to b, on new slots.
fn connect(a: &mut Side, a_slot: Slot, b: &mut Side, b_slot: Slot, now_ms: u64) {
    let dials = a.mesh.take_due_dials(now_ms);
    let (token, _) = dials[0];
    assert!(a.mesh.dialed(token, Ok(a_slot), now_ms, [1; 32]));
    assert!(b.mesh.accepted(b_slot, MEMBER, now_ms, [2; 32]));
    talk(a, a_slot, b, b_slot, now_ms);
}

/// Where the meshes of all nodes of these views listen.
const MEMBER: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

/// What the control thread is told of the nodes.
fn words(side: &mut Side, now_ms: u64) -> Vec<(String, LinkWord)> {
    side.mesh.news(now_ms).1.iter().map(|link| (link.node.to_string(), link.word)).collect()
}

const BOTH: &[(&str, u64)] = &[("a", 1), ("b", 1)];

#[test]
fn the_node_whose_name_sorts_first_dials_and_both_come_up() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    assert!(b.mesh.take_due_dials(0).is_empty());
    a.queue(("b", 1), 5).unwrap();
    connect(&mut a, 10, &mut b, 20, 0);
    assert_eq!((a.mesh.link_counts(), b.mesh.link_counts()), ((1, 1), (1, 1)));
    assert_eq!(a.queue(("b", 1), 6), Ok(Placed::Wired(10)));
    assert_eq!(b.queue(("a", 1), 7), Ok(Placed::Wired(20)));
    talk(&mut a, 10, &mut b, 20, 1);
    assert_eq!((&b.got[..], &a.got[..]), (&[5, 6][..], &[7][..]));
    assert_eq!(a.queue(("c", 1), 8), Err(FarError::Unknown));
    assert_eq!(words(&mut a, 1_000), [("b".to_owned(), LinkWord::Heard)]);
}

#[test]
fn a_link_goes_on_over_a_new_connection_and_the_old_one_is_closed() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    connect(&mut a, 10, &mut b, 20, 0);
    a.queue(("b", 1), 5).unwrap();
    // What a sends is lost with the connection; b has not noticed that yet.
    a.send(10, 1);
    a.mesh.broken(10, 1, 0);
    a.mesh.closed(10);
    assert_eq!(words(&mut a, 1), [("b".to_owned(), LinkWord::Lost)]);
    assert!(a.mesh.take_due_dials(1).is_empty(), "not at once");
    connect(&mut a, 11, &mut b, 21, 5_000);
    assert_eq!(b.mesh.take_closing(), [20]);
    assert_eq!(b.got, [5], "once, in spite of two connections");
    assert!(!a.mesh.has_ended() && a.mesh.take_restarted().is_empty());
}

#[test]
fn what_a_lost_node_never_confirmed_is_given_back() {
    // In clear, where the ring has the very buffer that is given back.
    let [mut a, mut b] = ["a", "b"].map(|name| side_with(MeshEncryption::Off, name, 1, BOTH));
    connect(&mut a, 10, &mut b, 20, 0);
    a.queue(("b", 1), 5).unwrap();
    let lent = a.mesh.take_send(10, 1).unwrap();
    a.queue(("b", 1), 6).unwrap();
    assert!(a.mesh.bytes() > 0);
    a.mesh.set_view(1, &routing("a", 1, &[("a", 1)]), 2);
    assert_eq!(a.mesh.take_closing(), [10]);
    assert!(a.mesh.take_given_back(usize::MAX).is_empty(), "the ring has its buffer");
    let Outgoing { buf, offset } = lent;
    a.mesh.sent(10, buf, offset, 0);
    let back: Vec<_> = a.mesh.take_given_back(usize::MAX).into_iter().map(|back| back.maybe_received).collect();
    assert_eq!(back, [true, false]);
    assert_eq!((a.mesh.bytes(), a.mesh.link_counts()), (0, (0, 0)));
    assert_eq!(a.queue(("b", 1), 7), Err(FarError::Unknown));
}

#[test]
fn what_is_sealed_is_given_back_though_the_ring_has_its_copy() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    connect(&mut a, 10, &mut b, 20, 0);
    a.queue(("b", 1), 5).unwrap();
    let Outgoing { buf, offset } = a.mesh.take_send(10, 1).unwrap();
    assert!(!buf.windows(8).any(|bytes| bytes == 5_u64.to_be_bytes()), "nobody reads it on the way");
    a.mesh.set_view(1, &routing("a", 1, &[("a", 1)]), 2);
    let back: Vec<_> = a.mesh.take_given_back(usize::MAX).into_iter().map(|back| back.maybe_received).collect();
    assert_eq!((back, a.mesh.bytes()), (vec![true], 0));
    a.mesh.sent(10, buf, offset, 0);
    assert!(!a.mesh.has_ended());
}

#[test]
fn what_is_changed_on_the_way_costs_the_connection_and_not_the_stream() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    connect(&mut a, 10, &mut b, 20, 0);
    a.queue(("b", 1), 5).unwrap();
    let mut bytes = a.send(10, 1);
    *bytes.last_mut().unwrap() ^= 1;
    b.take(20, &bytes, 1);
    assert_eq!((&b.got[..], b.mesh.failures(), b.mesh.link_counts()), (&[][..], 1, (1, 0)));
    b.mesh.closed(20);
    a.mesh.broken(10, 2, 0);
    a.mesh.closed(10);
    connect(&mut a, 11, &mut b, 21, 5_000);
    assert_eq!(b.got, [5], "it is sent again");
    assert!(a.mesh.take_restarted().is_empty() && b.mesh.take_restarted().is_empty());
}

#[test]
fn encryption_is_agreed_on_or_refused() {
    use MeshEncryption::{Off, On, Required};
    for (one, other, clear) in [
        (On, On, Some(0)),
        (On, Required, Some(0)),
        (Required, Required, Some(0)),
        (On, Off, Some(1)),
        (Off, Off, Some(1)),
        (Required, Off, None),
        (Off, Required, None),
    ] {
        let (mut a, mut b) = (side_with(one, "a", 1, BOTH), side_with(other, "b", 1, BOTH));
        a.queue(("b", 1), 5).unwrap();
        connect(&mut a, 10, &mut b, 20, 0);
        let up = u64::from(clear.is_some());
        assert_eq!((a.mesh.link_counts(), b.mesh.link_counts()), ((1, up), (1, up)), "{one:?} and {other:?}");
        assert_eq!(b.got.len() as u64, up);
        let clear = clear.unwrap_or(0);
        assert_eq!((a.mesh.links_in_clear(), b.mesh.links_in_clear()), (clear, clear), "{one:?} and {other:?}");
    }
}

#[test]
fn strangers_and_those_of_another_life_are_refused() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, &[("b", 1)]));
    connect(&mut a, 10, &mut b, 20, 0);
    assert_eq!((a.mesh.link_counts(), b.mesh.failures()), ((1, 0), 1));
    assert!(b.mesh.is_over(20) && a.mesh.is_over(10));
    assert!(a.mesh.take_due_dials(0).is_empty(), "one that was refused is not dialed again at once");
    // b has come back since a's view was made.
    let mut b = side("b", 2, &[("a", 1), ("b", 2)]);
    a.mesh.closed(10);
    let now_ms = 10_000;
    connect(&mut a, 11, &mut b, 21, now_ms);
    assert_eq!(a.mesh.link_counts(), (1, 0), "a link is for one life");
    a.mesh.set_view(1, &routing("a", 1, &[("a", 1), ("b", 2)]), now_ms);
    b.mesh.broken(21, now_ms, 0);
    b.mesh.closed(21);
    connect(&mut a, 12, &mut b, 22, now_ms + 10_000);
    assert_eq!((a.mesh.link_counts(), b.mesh.link_counts()), ((1, 1), (1, 1)));
}

#[test]
fn a_connection_for_a_link_of_another_shard_goes_there() {
    let mut a = Side { mesh: mesh("a", 1, 4), got: Vec::new() };
    a.mesh.set_view(1, &routing("a", 1, BOTH), 0);
    let mut b = side("b", 1, BOTH);
    connect(&mut a, 10, &mut b, 20, 0);
    assert_eq!(b.mesh.claimed(20), Some(1), "link 1 is shard 1's");
    let acceptor = b.mesh.take_claimed(20).unwrap();
    let mut home = Side { mesh: mesh("b", 1, 4), got: Vec::new() };
    home.mesh.set_view(1, &routing("b", 1, BOTH), 0);
    assert!(matches!(home.mesh.adopted(30, acceptor, 0, [4; 32]), Step::Up { .. }));
    talk(&mut a, 10, &mut home, 30, 0);
    assert_eq!((a.mesh.link_counts(), home.mesh.link_counts()), ((1, 1), (1, 1)));
}

#[test]
fn a_link_that_is_down_for_long_refuses_messages_and_its_bytes_are_bounded() {
    let mut a = side("a", 1, BOTH);
    let payload = [0; 500];
    let address = crate::mesh::wire::Address {
        node: 1,
        seat: crate::mesh::wire::Seat { shard: 0, conn: crate::io::ConnId { slot: 1, generation: 1 } },
    };
    let message = Record::Message { origin: address, from: 1, to: 2, id: 3, hops: 0, flags: 0, payload: &payload };
    let node = key_of("b", 1);
    let mut queued = 0;
    while a.mesh.queue(node, 0, &message).is_ok() {
        queued += 1;
    }
    assert!((20..40).contains(&queued), "{queued}");
    assert_eq!(a.mesh.queue(node, 0, &message), Err(FarError::Full));
    assert!(a.mesh.bytes() <= 20_000 && !a.mesh.is_easy(node));
    a.mesh.news(2_999);
    assert!(!a.mesh.is_unreachable(node, 0));
    a.mesh.news(3_000);
    assert!(a.mesh.is_unreachable(node, 0));
    assert_eq!(a.mesh.queue(node, 0, &message), Err(FarError::Unreachable));
    assert!(a.queue(("b", 1), 1).is_ok(), "answers pass");
}

#[test]
fn the_control_thread_is_told_of_all_nodes_twice_a_second_and_of_changes_at_once() {
    let nodes = &[("a", 1), ("b", 1), ("c", 1)];
    let (mut a, mut b) = (side("a", 1, nodes), side("b", 1, nodes));
    let told = |words: &[(&str, LinkWord)]| -> Vec<(String, LinkWord)> {
        words.iter().map(|(node, word)| ((*node).to_owned(), *word)).collect()
    };
    assert_eq!(words(&mut a, 500), told(&[("b", LinkWord::Silent), ("c", LinkWord::Silent)]));
    assert_eq!(words(&mut a, 600), []);
    connect(&mut a, 10, &mut b, 20, 700);
    assert_eq!(words(&mut a, 700), told(&[("b", LinkWord::Heard)]));
    assert_eq!(words(&mut a, 800), []);
    assert_eq!(words(&mut a, 1_000), told(&[("b", LinkWord::Heard), ("c", LinkWord::Silent)]));
    a.mesh.broken(10, 1_100, 0);
    assert_eq!(words(&mut a, 1_100), told(&[("b", LinkWord::Lost)]));
    let (_, news) = a.mesh.news(1_500);
    let b = &news[0];
    assert_eq!((b.links, b.up, b.word, b.down_since_ms), (1, 0, LinkWord::Silent, Some(1_100)));
}

#[test]
fn each_shard_of_a_node_is_in_the_set_of_one_link() {
    for (own_shards, shards) in [(4, 4), (2, 4), (4, 3), (1, 4), (3, 4)] {
        for shard in 0..own_shards {
            let mut a = mesh("a", shard, own_shards);
            let nodes = [("a", 1, Active), ("b", 1, Active)];
            let mut view = trunkline_router_core::View::clone(&view(&nodes));
            view.members[1].shards = shards;
            a.set_view(1, &Routing::new(key_of("a", 1), &view, key_of), 0);
            let sets = a.shard_sets(key_of("b", 1));
            let mut all: Vec<u16> = sets.iter().flat_map(|set| crate::mesh::wire::shards_of(set)).collect();
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..shards as u16), "{own_shards} to {shards}: {all:?}");
            assert_eq!(sets.len() as u64, a.link_counts().0);
        }
    }
}

#[test]
fn silence_ends_handshakes_and_links() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    assert!(b.mesh.accepted(19, None, 0, [9; 32]));
    connect(&mut a, 10, &mut b, 20, 0);
    assert!(b.mesh.expired(1_999).is_empty());
    assert_eq!(b.mesh.expired(2_000), [19], "who says nothing has two seconds");
    assert!(b.mesh.expired(2_999).is_empty());
    assert_eq!(b.mesh.expired(3_000), [20], "a link is dead after three seconds");
}

/// Lets connections come that say nothing, on slots from `slot` on. Returns how many found a place.
fn squat(side: &mut Side, slots: std::ops::Range<Slot>, from: Option<IpAddr>) -> usize {
    slots.filter(|slot| side.mesh.accepted(*slot, from, 0, [9; 32])).count()
}

/// Closes those that are to be closed. Returns them.
fn close(side: &mut Side) -> Vec<Slot> {
    let closing = side.mesh.take_closing();
    closing.iter().for_each(|slot| side.mesh.closed(*slot));
    closing
}

fn elsewhere(host: u8) -> Option<IpAddr> {
    Some(IpAddr::from([192, 0, 2, host]))
}

#[test]
fn strangers_of_one_address_have_a_quarter_of_the_places() {
    let mut b = side("b", 1, BOTH);
    let places = STRANGERS_PER_ADDRESS_MAX as u32;
    assert_eq!(squat(&mut b, 100..100 + places + 3, elsewhere(1)), places as usize + 3);
    assert_eq!(close(&mut b), [100, 101, 102], "the oldest of that address made room");
    assert_eq!(squat(&mut b, 200..203, elsewhere(2)), 3);
    assert_eq!((close(&mut b).len(), b.mesh.given_way()), (0, GivenWay { to_all: 0, to_address: 3 }));
}

#[test]
fn strangers_keep_no_member_out() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    for host in 0..4 {
        squat(&mut b, 100 * u32::from(host)..100 * u32::from(host) + 40, elsewhere(host));
    }
    // Some from the member's own address, too, such as that of a host with many.
    squat(&mut b, 1_000..1_100, MEMBER);
    let gone = close(&mut b);
    assert_eq!(b.mesh.connections() as usize, STRANGERS_MAX);
    assert!(gone.iter().filter(|slot| **slot < 1_000).count() >= 4 * 40 - 1, "strangers from elsewhere went first");
    assert_eq!(squat(&mut b, 2_000..2_001, elsewhere(9)), 0, "and take no place from a member's address");
    connect(&mut a, 10, &mut b, 20, 0);
    assert_eq!((a.mesh.link_counts(), b.mesh.link_counts()), ((1, 1), (1, 1)));
    assert_eq!(close(&mut b).len(), 1, "the oldest");
}

#[test]
fn who_has_said_hello_gives_way_after_those_who_said_nothing() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    let (token, _) = a.mesh.take_due_dials(0)[0];
    assert!(a.mesh.dialed(token, Ok(10), 0, [1; 32]));
    assert!(b.mesh.accepted(20, MEMBER, 0, [2; 32]));
    let hello = a.send(10, 0);
    b.take(20, &hello, 0);
    assert_eq!(squat(&mut b, 100..300, MEMBER), 200);
    assert!(!close(&mut b).contains(&20));
    talk(&mut a, 10, &mut b, 20, 0);
    assert_eq!(b.mesh.link_counts(), (1, 1));
}

#[test]
fn nodes_beyond_the_places_for_links_are_left_out_and_told_of_all_when_there_is_room() {
    let names: Vec<String> = (0..LINKS_MAX + 2).map(|at| format!("n{at:03}")).collect();
    let keys = |name: &str, life| {
        NodeKey(u64::from(name.as_bytes()[0]) << 32 | name[1..].parse::<u64>().unwrap_or(0) << 8 | life)
    };
    let routing = |count: usize| {
        let nodes = names[..count].iter().map(|name| (&**name, 1, Active));
        Routing::new(keys("b", 1), &view(&nodes.chain([("b", 1, Active)]).collect::<Vec<_>>()), keys)
    };
    let mut b = Side { mesh: mesh("b", 0, 4), got: Vec::new() };
    b.mesh.set_view(1, &routing(LINKS_MAX + 2), 0);
    assert_eq!((b.mesh.link_counts().0, b.mesh.links_missing()), (LINKS_MAX as u64, 2));
    let last = keys(&names[LINKS_MAX + 1], 1);
    assert!(b.mesh.is_unreachable(last, 0) && b.mesh.is_silent(last), "walks pass over it");
    b.mesh.set_view(1, &routing(LINKS_MAX), 1);
    assert_eq!(b.mesh.links_missing(), 0);
}

/// Shard `shard` of node a, one of four, which keeps one link to b.
fn sharer(shard: u16) -> Mesh {
    let mut a = mesh("a", shard, 4);
    a.config.links_max = 1;
    a.set_view(1, &few(), 0);
    a
}

fn few() -> Routing {
    let mut view = trunkline_router_core::View::clone(&view(&[("a", 1, Active), ("b", 1, Active)]));
    view.members.iter_mut().for_each(|member| member.mesh_links = 1);
    Routing::new(key_of("a", 1), &view, key_of)
}

#[test]
fn a_shard_without_a_link_holds_what_it_has_until_the_one_with_it_is_heard() {
    let b = key_of("b", 1);
    let carrier = (0..4).find(|shard| sharer(*shard).link_counts().0 == 1).unwrap();
    let other = (carrier + 1) % 4;
    let (mut with, mut without) = (sharer(carrier), sharer(other));
    assert_eq!((with.carrier_of(b), without.carrier_of(b)), (None, Some(carrier)));
    assert_eq!(without.shard_sets(b), with.shard_sets(b), "one link for all shards");
    assert_eq!(without.take_asks(), [(carrier, b)]);
    let gone = Record::Gone { user: 5, session: 1 };
    assert_eq!(without.queue(b, 3, &gone), Ok(Placed::Waits), "it may not know b yet");
    assert_eq!(without.queue(b, 4, &gone), Err(FarError::Unknown), "no such shard");
    assert_eq!(without.bytes(), gone.encoded_len(), "what waits counts");
    assert_eq!(with.word_on(b), None, "what was never told is told to all");
    assert_eq!(with.take_words(), [(b, word::EASY)]);
    assert_eq!((with.take_words(), with.word_on(b)), (vec![], Some(word::EASY)));
    without.take_word((other + 1) % 4, b, word::UP);
    assert!(!without.has_waiting(), "not its carrier");
    let mut encoded = Vec::new();
    gone.encode(&mut encoded);
    without.take_word(carrier, b, word::EASY);
    assert_eq!(handed_on(&mut without, 9), [(carrier, b, encoded)]);
    assert_eq!((without.bytes(), without.has_waiting()), (0, false));
    assert_eq!(without.queue(b, 3, &gone), Ok(Placed::Carried(carrier)));
    assert_eq!((without.shard_in_touch(b), without.is_unreachable(b, 0), without.is_silent(b)), (None, false, false));
    // Down for long.
    with.news(3_000);
    assert_eq!(with.take_words(), [(b, word::EASY | word::UNREACHABLE)]);
    without.take_word(carrier, b, word::EASY | word::UNREACHABLE);
    let conn = crate::io::ConnId { slot: 1, generation: 1 };
    let origin = crate::mesh::wire::Address { node: 1, seat: crate::mesh::wire::Seat { shard: 0, conn } };
    let message = Record::Message { origin, from: 1, to: 2, id: 3, hops: 0, flags: 0, payload: b"" };
    assert_eq!(without.queue(b, 0, &message), Err(FarError::Unreachable));
    assert_eq!(without.queue(b, 0, &gone), Ok(Placed::Carried(carrier)), "answers pass");
    assert!(without.is_silent(b) && without.is_unreachable(b, 2));
    // A walk has passed over it, so it is told all when the link is up.
    without.pass_over(b);
    without.take_word(carrier, b, word::EASY | word::UP);
    assert_eq!((without.take_restarted(), without.shard_in_touch(b)), (vec![b], Some(0)));
    without.take_word(carrier, b, word::EASY | word::UP);
    assert_eq!(without.take_restarted(), [], "once");
    without.take_word(carrier, b, word::EASY | word::UP | word::ANEW);
    assert_eq!(without.take_restarted(), [b], "b has lost the stream");
    without.take_word(carrier, b, word::NO_PLACE);
    assert_eq!(without.queue(b, 0, &gone), Err(FarError::Unknown));
    assert!(without.news(9_000).1.is_empty(), "the control thread hears it from the shard with the link");
}

/// What a shard hands on of what waits, while there is room for so many records.
fn handed_on(mesh: &mut Mesh, room: usize) -> Vec<(u16, NodeKey, Vec<u8>)> {
    let mut handed = Vec::new();
    mesh.hand_on_waiting(|carrier, node, record| {
        let has_room = handed.len() < room;
        if has_room {
            handed.push((carrier, node, record.to_vec()));
        }
        has_room
    });
    handed
}

#[test]
fn what_finds_no_room_at_the_shard_with_the_link_waits_in_its_order_within_a_bound() {
    let b = key_of("b", 1);
    let without = |shard: &u16| sharer(*shard).carrier_of(b).is_some();
    let mut without = sharer((0..4).find(without).unwrap());
    let carrier = without.carrier_of(b).unwrap();
    without.take_word(carrier, b, word::EASY | word::UP);
    assert!(without.is_easy(b));
    let conn = crate::io::ConnId { slot: 1, generation: 1 };
    let origin = crate::mesh::wire::Address { node: 1, seat: crate::mesh::wire::Seat { shard: 0, conn } };
    let message = |id| Record::Message { origin, from: 1, to: 2, id, hops: 0, flags: 0, payload: &[7; 400] };
    let gone = |user| Record::Gone { user, session: 1 };
    // The first one found the mailbox full; there is room for the others, which do not overtake it.
    assert_eq!(without.wait_for_room(b, &message(1)), Ok(Placed::Waits));
    assert!(!without.is_easy(b) && without.has_waiting_for(b));
    assert_eq!(without.queue(b, 0, &gone(2)), Ok(Placed::Waits));
    let (mut sent, mut bytes) = (2, message(1).encoded_len() + gone(2).encoded_len());
    let refused = loop {
        match without.queue(b, 0, &message(sent + 1)) {
            Ok(Placed::Waits) => (sent, bytes) = (sent + 1, bytes + message(1).encoded_len()),
            other => break other,
        }
    };
    assert_eq!(refused, Err(FarError::Full));
    assert!(bytes <= 2_000 && bytes + message(1).encoded_len() > 2_000, "{bytes} bytes");
    while without.queue(b, 0, &gone(sent + 1)).is_ok() {
        (sent, bytes) = (sent + 1, bytes + gone(1).encoded_len());
    }
    assert!(bytes <= 4_000 && bytes + gone(1).encoded_len() > 4_000, "what answers has as much again: {bytes}");
    assert_eq!((without.bytes(), without.carry_waits()), (bytes, sent));
    let mut ids = Vec::new();
    while without.has_waiting() {
        for (to, node, record) in handed_on(&mut without, 3) {
            assert_eq!((to, node), (carrier, b));
            match Record::decode(&record) {
                Ok(Some(Record::Message { id, .. })) => ids.push(id),
                Ok(Some(Record::Gone { user, .. })) => ids.push(user),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(ids, (1..=sent).collect::<Vec<_>>());
    assert_eq!((without.bytes(), without.is_easy(b)), (0, true));
    assert_eq!(without.queue(b, 0, &gone(1)), Ok(Placed::Carried(carrier)));
    // What still waits when the node leaves is given back.
    assert_eq!(without.wait_for_room(b, &message(9)), Ok(Placed::Waits));
    without.set_view(1, &routing("a", 1, &[("a", 1)]), 1);
    assert_eq!(without.take_given_back(usize::MAX).len(), 1);
    assert_eq!(handed_on(&mut without, 9), []);
    assert!(!without.has_waiting());
}

#[test]
fn what_waits_for_word_of_a_node_that_leaves_is_given_back() {
    let b = key_of("b", 1);
    let without = |shard: &u16| sharer(*shard).carrier_of(b).is_some();
    let mut without = sharer((0..4).find(without).unwrap());
    (1..4).for_each(|user| assert!(without.queue(b, 0, &Record::Gone { user, session: 1 }).is_ok()));
    without.set_view(1, &routing("a", 1, &[("a", 1)]), 1);
    assert!(without.has_ended());
    let back: Vec<u64> = without
        .take_given_back(usize::MAX)
        .iter()
        .map(|back| {
            assert!(!back.maybe_received);
            match Record::decode(&back.bytes) {
                Ok(Some(Record::Gone { user, .. })) => user,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(back, [1, 2, 3]);
}

#[test]
fn those_with_links_may_hold_what_the_others_do_not_need() {
    let budgets: usize = (0..4).map(|shard| sharer(shard).budget).sum();
    assert_eq!(budgets, 4 * (60_000 - 2 * 2_000), "but for what may wait at shards without links");
    assert_eq!(mesh("a", 0, 4).budget, 60_000);
}

/// The shard of node a, of four that share one link to b, which has it; b knows the record for several shards.
fn gathering() -> (Mesh, NodeKey) {
    let mut view = trunkline_router_core::View::clone(&view(&[("a", 1, Active), ("b", 1, Active)]));
    view.members.iter_mut().for_each(|member| (member.mesh_links, member.protocol) = (1, SETTLED_SET_SINCE));
    let routing = Routing::new(key_of("a", 1), &view, key_of);
    let mut meshes = (0..4).map(|shard| {
        let mut a = mesh("a", shard, 4);
        a.config.links_max = 1;
        a.set_view(1, &routing, 0);
        a
    });
    let carrier = meshes.find(|mesh: &Mesh| mesh.link_counts().0 == 1).unwrap();
    assert!(carrier.gathers(key_of("b", 1)));
    (carrier, key_of("b", 1))
}

fn settled(from: u16, digest: u64) -> Record<'static> {
    Record::SettledShards { from, digest, shards: &[0x0F] }
}

fn register(shard: u16) -> Record<'static> {
    let seat = crate::mesh::wire::Seat { shard, conn: crate::io::ConnId { slot: 1, generation: 1 } };
    Record::Register { user: 5, seat, session: 6, since_s: 0, device: "", class: "", hops: 0, wish: 0 }
}

/// What was queued on the link, in order: the set of a word, 0 for another record.
fn queued(mut mesh: Mesh) -> Vec<(u64, u8)> {
    mesh.set_view(1, &routing("a", 1, &[("a", 1)]), 1);
    let back = mesh.take_given_back(usize::MAX);
    let records = back.iter().map(|back| match Record::decode(&back.bytes) {
        Ok(Some(Record::SettledSet { digest, from: [set] })) => (digest, *set),
        Ok(Some(Record::Register { .. })) => (0, 0),
        other => panic!("{other:?}"),
    });
    records.collect()
}

#[test]
fn shards_that_share_a_link_say_once_that_all_is_told() {
    let (mut mesh, b) = gathering();
    for from in [2, 0, 3] {
        assert_eq!(mesh.queue(b, from, &settled(from, 7)), Ok(Placed::Waits));
        assert_eq!((mesh.bytes(), mesh.settled_sets()), (0, 0), "others have not said so");
    }
    assert_eq!(mesh.queue(b, 0, &settled(3, 7)), Ok(Placed::Waits), "said twice");
    assert_eq!(mesh.queue(b, 0, &settled(1, 7)), Ok(Placed::Waits));
    assert_eq!(mesh.settled_sets(), 1);
    // One that is told all again says it again, and nobody else will.
    assert_eq!(mesh.queue(b, 0, &settled(2, 7)), Ok(Placed::Waits));
    assert_eq!(queued(mesh), [(7, 0b1111), (7, 0b0100)]);
}

#[test]
fn a_word_comes_before_what_its_shard_tells_later() {
    let (mut mesh, b) = gathering();
    mesh.queue(b, 0, &settled(2, 7)).unwrap();
    mesh.queue(b, 0, &register(1)).unwrap();
    mesh.queue(b, 0, &settled(1, 7)).unwrap();
    // Of shard 2, which has said that all is told: this may be for the view behind.
    mesh.queue(b, 0, &register(2)).unwrap();
    mesh.queue(b, 0, &settled(3, 7)).unwrap();
    mesh.queue(b, 0, &settled(2, 8)).unwrap();
    mesh.queue(b, 0, &register(3)).unwrap();
    let expected = [(0, 0), (7, 0b0110), (0, 0), (7, 0b1000), (0, 0)];
    assert_eq!(queued(mesh), expected, "the word for view 8 waits for that of others");
}

#[test]
fn a_word_waits_for_those_who_are_late_no_longer_than_half_a_second() {
    let (mut mesh, b) = gathering();
    mesh.queue(b, 0, &settled(2, 7)).unwrap();
    (1..gather::GATHER_TICKS).for_each(|_| mesh.say_late());
    assert_eq!(mesh.settled_sets(), 0);
    mesh.queue(b, 0, &settled(1, 7)).unwrap();
    mesh.say_late();
    assert_eq!(mesh.settled_sets(), 1);
    mesh.queue(b, 0, &settled(0, 7)).unwrap();
    mesh.queue(b, 0, &settled(3, 7)).unwrap();
    assert_eq!(mesh.settled_sets(), 2, "the last of all waits for nobody");
    assert_eq!(queued(mesh), [(7, 0b0110), (7, 0b1001)]);
}

#[test]
fn words_that_wait_for_a_link_that_is_not_reached_go_back() {
    let (mut mesh, b) = gathering();
    mesh.queue(b, 0, &settled(2, 7)).unwrap();
    assert!(!mesh.has_ended());
    mesh.news(UNREACHABLE_MS);
    let back = mesh.take_given_back(usize::MAX);
    let [GivenBack { bytes, .. }] = &back[..] else { panic!("{back:?}") };
    assert_eq!(Record::decode(bytes), Ok(Some(Record::SettledSet { digest: 7, from: &[0b0100] })));
}

/// The reserve alone: a word that finds no room was not said.
#[test]
fn a_word_that_a_full_link_refuses_is_said_again() {
    let (mut mesh, b) = gathering();
    while mesh.queue(b, 0, &register(9)).is_ok() {}
    // Shorter than any word.
    while mesh.queue(b, 0, &Record::BroadcastStop { to: 0, from: 0, token: 0 }).is_ok() {}
    for from in 0..4 {
        let refused = Err(FarError::Full);
        assert_eq!(mesh.queue(b, 0, &settled(from, 7)), refused, "what it speaks of may have been refused as well");
    }
    assert_eq!(mesh.queue(b, 0, &register(1)), Err(FarError::Full));
    assert_eq!(mesh.settled_sets(), 0);
}

#[test]
fn what_a_link_gives_back_waits_for_room_and_counts_until_then() {
    let mut a = side("a", 1, &[("a", 1), ("b", 1)]);
    let b = key_of("b", 1);
    (0..500).for_each(|user| assert!(a.mesh.queue(b, 0, &Record::Gone { user, session: 1 }).is_ok()));
    let held = a.mesh.bytes();
    a.mesh.set_view(1, &routing("a", 1, &[("a", 1)]), 1);
    assert!(a.mesh.take_given_back(0).is_empty() && a.mesh.gives_on());
    assert_eq!((a.mesh.bytes(), a.mesh.ended_bytes()), (held, held), "nothing has gone anywhere");
    let mut users = Vec::new();
    let mut takes = 0;
    while a.mesh.gives_on() {
        let back = a.mesh.take_given_back(1_000);
        let bytes: usize = back.iter().map(|back| back.bytes.len()).sum();
        assert!((1..1_000 + 24).contains(&bytes), "{bytes}");
        users.extend(back.iter().map(|back| match Record::decode(&back.bytes) {
            Ok(Some(Record::Gone { user, .. })) => user,
            other => panic!("{other:?}"),
        }));
        takes += 1;
    }
    assert!(takes >= 12, "{takes}");
    assert_eq!(users, (0..500).collect::<Vec<_>>(), "each once and in order");
    assert_eq!((a.mesh.bytes(), a.mesh.ended_bytes(), a.mesh.has_ended()), (0, 0, false));
}

#[test]
fn those_who_share_a_link_are_told_when_it_holds_much_and_when_it_holds_little() {
    let (mut mesh, b) = gathering();
    assert_eq!(mesh.take_words(), [(b, word::EASY)]);
    let id = mesh.peer(b).unwrap().links[0];
    let hold = |mesh: &mut Mesh, bytes: usize| {
        while mesh.links[id as usize].as_ref().unwrap().link.bytes() <= bytes {
            mesh.queue(b, 0, &Record::Gone { user: 1, session: 1 }).unwrap();
        }
        mesh.take_words()
    };
    let drop_all = |mesh: &mut Mesh| {
        mesh.links[id as usize].as_mut().unwrap().link.end_stream();
        mesh.ended.push_back(id);
        mesh.take_given_back(usize::MAX);
    };
    // Half of what four shards may have on it.
    assert_eq!(hold(&mut mesh, 39_000), [], "less than half");
    assert_eq!(hold(&mut mesh, 40_000), [(b, 0)]);
    for _ in 0..5 {
        drop_all(&mut mesh);
        assert_eq!(hold(&mut mesh, 30_000), [(b, word::EASY)], "it held nothing in between");
        assert_eq!(hold(&mut mesh, 40_100), [(b, 0)]);
    }
}

#[test]
fn as_many_links_are_read_into_large_buffers_as_there_are_enough_for() {
    let (mut a, mut b) = (side("a", 1, BOTH), side("b", 1, BOTH));
    connect(&mut a, 10, &mut b, 20, 0);
    assert!(!a.mesh.takes_bulk(10, 0), "there are none");
    assert!(!a.mesh.takes_bulk(99, 1), "there is no such connection");
    assert!(a.mesh.takes_bulk(10, 1));
    assert!(a.mesh.takes_bulk(10, 1), "it has its place already");
    // Its place is free again with its connection's end.
    a.mesh.broken(10, 1, 0);
    a.mesh.closed(10);
    connect(&mut a, 11, &mut b, 21, 5_000);
    assert!(a.mesh.takes_bulk(11, 1));
}
