//! Two links on a simulated TCP that splits, delays and cuts, against a model that knows what was queued.
//!
//! Records carry numbers that rise in each direction. What has to hold: they arrive in order and at most once; at the
//! end each has arrived or was given back; both only if it may have arrived unconfirmed; and the bytes held stay within
//! the bound.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const LIMITS: LinkLimits = LinkLimits { bytes_max: 6_000, reserve_bytes: 1_000 };

#[derive(Clone, Debug)]
enum Op {
    /// Queues a message of that size, or an answer.
    Queue {
        side: usize,
        payload: Option<u16>,
    },
    /// Takes a send.
    Take {
        side: usize,
    },
    /// The kernel takes at most so many bytes of it.
    Complete {
        side: usize,
        bytes: usize,
    },
    /// So many bytes arrive at the side.
    Deliver {
        side: usize,
        bytes: usize,
    },
    /// The side sees its connection end.
    Cut {
        side: usize,
    },
    /// A new connection; so many bytes of the one before arrive after the acceptor has told its place.
    Connect {
        late: usize,
    },
    /// As `Connect`, but the acceptor's last word is lost.
    ConnectHalf,
    /// The process of that side starts anew.
    Restart {
        side: usize,
    },
    /// The side ends the stream by itself.
    EndStream {
        side: usize,
    },
    /// The side takes back what was not confirmed.
    TakeBack {
        side: usize,
    },
    Wait {
        ms: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let side = || 0..2_usize;
    let (short, long) = ((0..300_u16).prop_map(Some), (300..3_000_u16).prop_map(Some));
    prop_oneof![
        30 => (side(), prop_oneof![3 => short, 1 => long, 2 => Just(None)])
            .prop_map(|(side, payload)| Op::Queue { side, payload }),
        20 => side().prop_map(|side| Op::Take { side }),
        20 => (side(), prop_oneof![1..80_usize, Just(usize::MAX)])
            .prop_map(|(side, bytes)| Op::Complete { side, bytes }),
        20 => (side(), prop_oneof![1..120_usize, Just(usize::MAX)])
            .prop_map(|(side, bytes)| Op::Deliver { side, bytes }),
        3 => side().prop_map(|side| Op::Cut { side }),
        8 => (0..400_usize).prop_map(|late| Op::Connect { late }),
        1 => Just(Op::ConnectHalf),
        1 => side().prop_map(|side| Op::Restart { side }),
        1 => side().prop_map(|side| Op::EndStream { side }),
        2 => side().prop_map(|side| Op::TakeBack { side }),
        6 => (0..200_u64).prop_map(|ms| Op::Wait { ms }),
    ]
}

/// What became of a record.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    received: bool,
    /// Given back; and whether the peer may have had it.
    back: Option<bool>,
    /// Its node was started anew.
    forgotten: bool,
}

struct Side {
    link: Link,
    /// The buffer the ring has, and the connection it is for.
    lent: Option<(Outgoing, u64)>,
    /// What is on the way to this side.
    wire: VecDeque<u8>,
    /// The connection this side has, 0 for none.
    connection: u64,
    /// Records queued at this side.
    fates: BTreeMap<u64, Fate>,
    latest_received: u64,
}

struct World {
    sides: [Side; 2],
    now_ms: u64,
    connections: u64,
    next_id: u64,
}

fn payload(id: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (id as usize * 31 + at) as u8).collect()
}

impl World {
    fn new() -> Self {
        let side = || Side {
            link: Link::new(LIMITS),
            lent: None,
            wire: VecDeque::new(),
            connection: 0,
            fates: BTreeMap::new(),
            latest_received: 0,
        };
        World { sides: [side(), side()], now_ms: 1_000, connections: 0, next_id: 1 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Queue { side, payload } => self.queue(side, payload),
            Op::Take { side } => self.take(side),
            Op::Complete { side, bytes } => self.complete(side, bytes),
            Op::Deliver { side, bytes } => self.deliver(side, bytes),
            Op::Cut { side } => self.cut(side),
            Op::Connect { late } => self.connect(late, true),
            Op::ConnectHalf => self.connect(0, false),
            Op::Restart { side } => self.restart(side),
            Op::EndStream { side } => {
                self.sides[side].link.end_stream();
                self.sides[side].connection = 0;
                self.sides[side].wire.clear();
            }
            Op::TakeBack { side } => self.take_back(side),
            Op::Wait { ms } => self.now_ms += ms,
        }
        for side in &self.sides {
            let held = side.link.stats().unconfirmed_bytes;
            assert!(held <= (LIMITS.bytes_max + LIMITS.reserve_bytes) as u64, "{held} bytes held");
        }
    }

    fn queue(&mut self, side: usize, len: Option<u16>) {
        let id = self.next_id;
        self.next_id += 1;
        let side = &mut self.sides[side];
        let bytes = payload(id, len.unwrap_or(0).into());
        let record = if len.is_some() { message(id, &bytes) } else { gone(id) };
        let before = side.link.stats();
        match side.link.queue(&record) {
            Ok(()) => {
                side.fates.insert(id, Fate::default());
            }
            Err(full) => {
                assert_eq!(full, LinkFull::Bytes);
                assert_eq!(side.link.stats().unconfirmed_bytes, before.unconfirmed_bytes);
            }
        }
        if len.is_some() && side.link.stats().records_out > before.records_out {
            assert!(side.link.stats().unconfirmed_bytes <= LIMITS.bytes_max as u64);
        }
    }

    fn take(&mut self, side: usize) {
        let now_ms = self.now_ms;
        let side = &mut self.sides[side];
        if let Some(outgoing) = side.link.take_send(now_ms) {
            assert!(side.lent.is_none(), "a second buffer is lent");
            side.lent = Some((outgoing, side.connection));
        }
    }

    fn complete(&mut self, side: usize, bytes: usize) {
        let connection = self.connection_of_both();
        let Some((Outgoing { buf, offset }, of)) = self.sides[side].lent.take() else { return };
        let own = self.sides[side].connection;
        // The kernel takes bytes for a peer that is gone, too.
        let taken = if of == own { bytes.min(buf.len() - offset) } else { 0 };
        if connection == Some(of) {
            self.sides[1 - side].wire.extend(&buf[offset..offset + taken]);
        }
        self.sides[side].link.sent(buf, taken);
    }

    fn connection_of_both(&self) -> Option<u64> {
        let [a, b] = &self.sides;
        (a.connection == b.connection && a.connection != 0).then_some(a.connection)
    }

    fn deliver(&mut self, side: usize, bytes: usize) {
        let World { sides: [a, b], now_ms, .. } = self;
        let (side, peer) = if side == 0 { (a, b) } else { (b, a) };
        let len = bytes.min(side.wire.len());
        let bytes: Vec<u8> = side.wire.drain(..len).collect();
        let (latest, fates) = (&mut side.latest_received, &mut peer.fates);
        side.link
            .received(&bytes, *now_ms, |record| {
                let id = match record {
                    Record::Message { id, payload: bytes, .. } => {
                        assert_eq!(bytes, payload(id, bytes.len()));
                        id
                    }
                    Record::Gone { user, .. } => user,
                    other => panic!("{other:?} was never queued"),
                };
                assert!(id > *latest, "record {id} came after {latest}");
                *latest = id;
                let fate = fates.get_mut(&id).expect("only what was queued arrives");
                assert!(!fate.received, "record {id} came twice");
                assert_ne!(fate.back, Some(false), "record {id} was given back as never sent");
                fate.received = true;
            })
            .expect("an honest peer");
    }

    fn cut(&mut self, side: usize) {
        // What was on the way to the other side may still arrive there.
        let side = &mut self.sides[side];
        side.link.disconnected();
        side.wire.clear();
        side.connection = 0;
    }

    /// Side 0 dials, once it has seen its former connection end.
    fn connect(&mut self, late: usize, accept_arrives: bool) {
        self.cut(0);
        let claim = self.sides[0].link.resume_state();
        self.connections += 1;
        let answer = self.sides[1].link.answer(claim, 1_000 + self.connections);
        self.deliver(1, late);
        self.cut(1);
        let expected = if answer.stream == claim.stream { claim.expected } else { 0 };
        let resume = ResumeState { stream: answer.stream, expected };
        self.sides[1].link.connected(self.now_ms, resume).expect("an honest peer");
        self.sides[1].connection = self.connections;
        if accept_arrives {
            self.sides[0].link.connected(self.now_ms, answer).expect("an honest peer");
            self.sides[0].connection = self.connections;
        }
    }

    fn restart(&mut self, side: usize) {
        self.cut(side);
        let side = &mut self.sides[side];
        for fate in side.fates.values_mut().filter(|fate| fate.back.is_none()) {
            fate.forgotten = true;
        }
        side.link = Link::new(LIMITS);
        side.lent = None;
    }

    fn take_back(&mut self, side: usize) {
        let side = &mut self.sides[side];
        for (id, sent) in given_back(&mut side.link) {
            let fate = side.fates.get_mut(&id).expect("only what was queued comes back");
            assert_eq!(fate.back, None, "record {id} was given back twice");
            assert!(sent || !fate.received, "record {id} arrived and was given back as never sent");
            fate.back = Some(sent);
        }
    }

    /// Lets everything arrive, and checks that nothing is missing.
    fn settle(&mut self) {
        (0..2).for_each(|side| self.complete(side, usize::MAX));
        self.connect(usize::MAX, true);
        for _ in 0..2_000 {
            for side in 0..2 {
                self.complete(side, usize::MAX);
                self.take(side);
                self.complete(side, usize::MAX);
                self.deliver(1 - side, usize::MAX);
            }
            self.now_ms += 50;
            let busy = |side: &Side| side.link.stats().unconfirmed_bytes > 0 || side.lent.is_some();
            (0..2).for_each(|side| self.take_back(side));
            if !self.sides.iter().any(busy) {
                break;
            }
        }
        for side in &self.sides {
            assert_eq!(side.link.stats().unconfirmed_bytes, 0);
            for (id, fate) in &side.fates {
                assert!(fate.received || fate.back.is_some() || fate.forgotten, "record {id} is lost: {fate:?}");
            }
        }
    }
}

/// Runs a history; returns how many records came again and how many were given back, so that a test can see that these
/// happen.
fn run(ops: &[Op]) -> (u64, u64) {
    let mut world = World::new();
    ops.iter().for_each(|op| world.apply(op));
    world.settle();
    let stats = world.sides.map(|side| side.link.stats());
    (stats.iter().map(|stats| stats.duplicates).sum(), stats.iter().map(|stats| stats.given_back).sum())
}

/// While the stream stays, nothing is given back: each record arrives.
fn stays(op: &Op) -> bool {
    !matches!(op, Op::Restart { .. } | Op::EndStream { .. } | Op::ConnectHalf)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_record_arrives_once_and_in_order_or_comes_back(ops in vec(op(), 0..400)) {
        run(&ops);
    }

    #[test]
    fn nothing_comes_back_while_the_stream_stays(ops in vec(op().prop_filter("ends a stream", stays), 0..400)) {
        let mut world = World::new();
        world.connect(0, true);
        ops.iter().for_each(|op| world.apply(op));
        world.settle();
        for side in &world.sides {
            assert_eq!(side.link.stats().given_back, 0);
            assert!(side.fates.values().all(|fate| fate.received));
        }
    }
}

/// A test whose histories never cut where it hurts would prove nothing.
#[test]
fn the_histories_have_duplicates_and_records_given_back() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let histories = vec(op(), 400);
    let (mut duplicates, mut back) = (0, 0);
    for _ in 0..100 {
        let ops = histories.new_tree(&mut runner).expect("a history").current();
        let (more_duplicates, more_back) = run(&ops);
        duplicates += more_duplicates;
        back += more_back;
    }
    assert!(duplicates > 20 && back > 100, "{duplicates} duplicates, {back} given back");
}
