use super::super::log::{begun, recover};
use super::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const WALL_MS: u64 = 1_800_000_000_000;
const KEYS: [u64; 2] = [11, 22];

fn encoded(kind: EventKind, time_ms: u64, user: u64, id: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Event { id, device: "phone", ..Event::new(kind, time_ms, user) }.encode(&mut bytes);
    bytes
}

fn hub(bytes_max: usize, has_log: bool) -> Hub {
    let wants = |pattern| Wants::of(pattern).expect(pattern);
    Hub::new(&[(KEYS[0], wants("user.*"), 7), (KEYS[1], wants("*"), 100)], bytes_max, 5, has_log)
}

/// All that waits for the second webhook, of the lane of user 1.
fn one_lane(count: u64) -> (Hub, usize) {
    let mut hub = hub(1 << 20, false);
    (1..=count).for_each(|id| hub.admit(&encoded(EventKind::MessageSent, WALL_MS, 1, id)));
    hub.keep_until(hub.last_seq());
    (hub, trunkline_core::events::lane_of(1))
}

fn seqs(request: &Request) -> Vec<u64> {
    request.items.iter().map(|item| item.seq).collect()
}

#[test]
fn a_request_that_failed_is_the_same_when_it_is_sent_again_and_not_too_soon() {
    let (mut hub, lane) = one_lane(3);
    let (mut now_ms, mut waited) = (0, Vec::new());
    for _ in 0..12 {
        let request = hub.next(now_ms).expect("a request");
        assert_eq!((request.hook, request.lane, seqs(&request)), (1, lane, vec![1, 2, 3]));
        assert!(hub.next(now_ms).is_none(), "one at a time");
        // It is not put into a request that has its id already.
        hub.admit(&encoded(EventKind::MessageSent, WALL_MS, 1, 9));
        hub.keep_until(hub.last_seq());
        hub.ended(1, lane, End::Failed { after_ms: None }, now_ms, WALL_MS);
        let begun = now_ms;
        while hub.next(now_ms).is_none() {
            now_ms += 100;
        }
        hub.hooks[1].lanes[lane].under_way = 0;
        waited.push(now_ms - begun);
    }
    assert!((500..=1_100).contains(&waited[0]) && (1_000..=2_100).contains(&waited[1]), "{waited:?}");
    assert!(waited.iter().all(|wait| *wait <= BACKOFF_MS_MAX + 100) && waited[11] >= BACKOFF_MS_MAX / 2, "{waited:?}");
    assert_eq!(hub.counts().retries, 12);
    hub.next(now_ms).expect("a request");
    hub.ended(1, lane, End::Delivered, now_ms, WALL_MS);
    hub.next(now_ms).expect("the rest");
    hub.ended(1, lane, End::Failed { after_ms: Some(60_000) }, now_ms, WALL_MS);
    assert!(hub.next(now_ms + 59_999).is_none(), "the receiver says when");
    assert!(hub.next(now_ms + 60_000 + BACKOFF_MS_MAX).is_some(), "and others who were told so come at other times");
}

#[test]
fn what_is_refused_for_good_takes_nothing_along() {
    let (mut hub, lane) = one_lane(5);
    let mut taken = Vec::new();
    while let Some(request) = hub.next(0) {
        let seqs = seqs(&request);
        let gap = request.items.iter().any(|item| matches!(item.body, Body::Gap(_)));
        let end = if seqs.contains(&3) { End::of_status(422, None) } else { End::of_status(204, None) };
        taken.extend((end == End::Delivered).then_some((seqs, gap)));
        hub.ended(1, lane, end, 0, WALL_MS);
        hub.keep_until(hub.last_seq());
    }
    assert_eq!(taken.iter().flat_map(|(seqs, _)| seqs).copied().collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    assert!(taken.last().is_some_and(|(_, gap)| *gap), "it is told that one is missing");
    assert_eq!((hub.counts().delivered, hub.counts().given_up, hub.waiting(), hub.bytes()), (5, 1, 0, 0));
}

#[test]
fn a_gap_that_is_refused_is_not_told_again_and_again() {
    let (mut hub, lane) = one_lane(2);
    let mut requests = 0;
    while hub.next(0).is_some() {
        requests += 1;
        hub.ended(1, lane, End::Refused, 0, WALL_MS);
        hub.keep_until(hub.last_seq());
    }
    // What was sent once stays as it was, so each of the two has a gap of its own.
    assert_eq!((requests, hub.counts().given_up, hub.waiting()), (7, 4, 0));
}

#[test]
fn what_is_a_day_old_is_given_up_and_counted_in_a_gap() {
    let (mut hub, lane) = one_lane(2);
    hub.admit(&encoded(EventKind::MessageSent, WALL_MS + AGE_MS_MAX, 1, 3));
    hub.keep_until(hub.last_seq());
    hub.next(0).expect("a request");
    hub.ended(1, lane, End::Failed { after_ms: None }, 0, WALL_MS + AGE_MS_MAX);
    hub.keep_until(hub.last_seq());
    assert!(hub.next(0).is_none(), "the receiver is left alone all the same");
    let request = hub.next(BACKOFF_MS_MAX).expect("the rest");
    let gap = Gap { kind: EventKind::MessageSent, count: 2, from_ms: WALL_MS, to_ms: WALL_MS };
    let bodies: Vec<bool> = request.items.iter().map(|item| item.body == Body::Gap(gap)).collect();
    assert_eq!((bodies, hub.counts().old), (vec![false, true], 2));
    // The gap is as old by now as what it counts, and is told all the same.
    hub.ended(1, lane, End::Failed { after_ms: None }, BACKOFF_MS_MAX, WALL_MS + 2 * AGE_MS_MAX);
    hub.keep_until(hub.last_seq());
    let request = hub.next(2 * BACKOFF_MS_MAX).expect("the gaps");
    assert_eq!((request.items.len(), hub.counts().old), (2, 3));
    assert_eq!(request.items[0].body, Body::Gap(gap));
}

#[test]
fn a_receiver_that_is_gone_gets_nothing_more_and_holds_nobody_up() {
    let (mut hub, lane) = one_lane(3);
    hub.admit(&encoded(EventKind::UserOnline, WALL_MS, 1, 4));
    hub.keep_until(hub.last_seq());
    let request = hub.next(0).expect("a request");
    hub.ended(request.hook, lane, End::of_status(410, None), 0, WALL_MS);
    let other = hub.next(0).expect("the other's");
    assert!(hub.is_gone(request.hook) && other.hook != request.hook);
    hub.ended(other.hook, lane, End::Delivered, 0, WALL_MS);
    hub.admit(&encoded(EventKind::UserOnline, WALL_MS, 2, 5));
    hub.keep_until(hub.last_seq());
    assert_eq!(hub.next(0).map(|next| next.hook), Some(other.hook));
}

#[test]
fn other_statuses_are_tried_again() {
    for status in [301, 401, 403, 404, 408, 425, 429, 500, 503] {
        assert_eq!(End::of_status(status, Some(7)), End::Failed { after_ms: Some(7_000) }, "{status}");
    }
}

/// What one receiver has got.
#[derive(Debug, Default)]
struct Receiver {
    /// Ids it has seen, as a receiver knows what comes twice.
    seen: BTreeSet<u64>,
    /// Ids of events by user, in the order in which they came first.
    events: HashMap<u64, Vec<u64>>,
    /// Missing ones, by gap.
    missing: BTreeMap<u64, u64>,
}

/// What is being written: until when, the records, the last event of them, and users and ids of all.
type Writing = (u64, Vec<u8>, u64, Vec<(u64, u64)>);

/// A hub whose receivers are down, slow, or lose answers, and whose process is killed.
struct World {
    rng: u64,
    hub: Hub,
    bytes_max: usize,
    has_log: bool,
    now_ms: u64,
    receivers: [Receiver; 2],
    /// The file as it is on disk, and what is being written behind it.
    disk: Vec<u8>,
    writing: Option<Writing>,
    under_way: Vec<(u64, Request)>,
    down_until_ms: [u64; 2],
    /// The last id of each user's events.
    ids: HashMap<u64, u64>,
    /// Events (user, id) that count as kept, and those that were lost with the process before that.
    kept: Vec<(u64, u64)>,
    pending: Vec<(u64, u64)>,
    /// Events of batches that were not written when the process ended.
    unwritten: u64,
}

impl World {
    fn new(seed: u64, has_log: bool) -> Self {
        let bytes_max = [4_000, 20_000, 1 << 20][(seed % 3) as usize];
        let hub = hub(bytes_max, has_log);
        World {
            rng: seed,
            disk: begun(&hub.snapshot()),
            hub,
            bytes_max,
            has_log,
            now_ms: 0,
            receivers: Default::default(),
            writing: None,
            under_way: Vec::new(),
            down_until_ms: [0; 2],
            ids: HashMap::new(),
            kept: Vec::new(),
            pending: Vec::new(),
            unwritten: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng = user_hash(self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15));
        self.rng % bound
    }

    fn step(&mut self, is_calm: bool) {
        self.now_ms += 50;
        if !is_calm {
            self.tell();
            for hook in 0..2 {
                if self.below(100) == 0 {
                    self.down_until_ms[hook] = self.now_ms + self.below(20_000);
                }
            }
            if self.has_log && self.below(150) == 0 {
                self.kill();
            }
        }
        self.write();
        while let Some(request) = self.hub.next(self.now_ms) {
            let done_ms = self.now_ms + self.below(400);
            self.under_way.push((done_ms, request));
        }
        let now_ms = self.now_ms;
        let (done, rest) = std::mem::take(&mut self.under_way).into_iter().partition(|(done_ms, _)| *done_ms <= now_ms);
        self.under_way = rest;
        let done: Vec<(u64, Request)> = done;
        for (_, request) in done {
            let dice = if is_calm { 99 } else { self.below(100) };
            let is_down = !is_calm && self.down_until_ms[request.hook] > self.now_ms;
            let end = match dice {
                _ if is_down => End::Failed { after_ms: None },
                0..10 => End::of_status(500, None),
                10..15 => End::of_status(429, Some(2)),
                // The answer is lost.
                15..20 => {
                    self.take(&request);
                    End::Failed { after_ms: None }
                }
                _ => {
                    self.take(&request);
                    End::Delivered
                }
            };
            self.hub.ended(request.hook, request.lane, end, self.now_ms, WALL_MS + self.now_ms);
        }
    }

    fn tell(&mut self) {
        for _ in 0..self.below(12) {
            let user = self.below(30);
            let id = self.ids.entry(user).or_default();
            *id += 1;
            let id = *id;
            self.pending.push((user, id));
        }
    }

    /// As the driver: nothing is taken in while something is being written.
    fn write(&mut self) {
        if self.writing.as_ref().is_some_and(|(done_ms, ..)| *done_ms <= self.now_ms)
            && let Some((_, bytes, seq, events)) = self.writing.take()
        {
            self.disk.extend_from_slice(&bytes);
            self.hub.keep_until(seq);
            self.kept.extend(events);
        }
        if self.writing.is_some() {
            return;
        }
        let events = std::mem::take(&mut self.pending);
        for (user, id) in &events {
            self.hub.admit(&encoded(EventKind::UserOnline, WALL_MS + self.now_ms, *user, *id));
        }
        let (bytes, seq) = (self.hub.take_log(), self.hub.last_seq());
        let takes_ms = if self.has_log { self.below(200) } else { 0 };
        self.writing = Some((self.now_ms + takes_ms, bytes, seq, events));
    }

    fn take(&mut self, request: &Request) {
        let receiver = &mut self.receivers[request.hook];
        for item in &request.items {
            let event = item.event(request.lane).expect("an event");
            if !receiver.seen.insert(item.seq) {
                continue;
            }
            match event.kind {
                EventKind::Gap => drop(receiver.missing.insert(item.seq, event.id)),
                _ => receiver.events.entry(event.user).or_default().push(event.id),
            }
        }
    }

    /// The process ends; of what was being written, a part has got to the disk.
    fn kill(&mut self) {
        if let Some((_, bytes, _, events)) = self.writing.take() {
            let part = self.below(bytes.len() as u64 + 1) as usize;
            self.disk.extend_from_slice(&bytes[..part]);
            self.unwritten += events.len() as u64;
        }
        self.under_way.clear();
        let recovered = recover(&[std::mem::take(&mut self.disk)], &KEYS);
        self.hub = hub(self.bytes_max, true);
        self.hub.go_on_at(recovered.last_seq);
        recovered.waiting.into_iter().for_each(|(hook, lane, item)| self.hub.restore(hook, lane, item));
        let waiting = self.hub.rewritten();
        self.disk = begun(&self.hub.snapshot());
        self.disk.extend_from_slice(&waiting);
    }
}

#[test]
fn events_of_a_user_arrive_in_order_and_none_is_missing_but_those_that_a_gap_counts() {
    let (mut gaps, mut kills) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed, seed % 4 != 0);
        (0..1_500).for_each(|_| world.step(false));
        for _ in 0..20_000 {
            world.step(true);
            if world.hub.waiting() == 0 && world.pending.is_empty() && world.under_way.is_empty() {
                break;
            }
        }
        assert_eq!((world.hub.waiting(), world.hub.bytes()), (0, 0), "seed {seed}: all is told in the end");
        world.kept.extend(world.writing.take().into_iter().flat_map(|(.., events)| events));
        kills += world.unwritten;
        for (hook, receiver) in world.receivers.iter().enumerate() {
            for (user, ids) in &receiver.events {
                assert!(ids.is_sorted_by(|a, b| a < b), "seed {seed}, webhook {hook}, user {user}: {ids:?}");
            }
            let got = |user: &u64, id: &u64| receiver.events.get(user).is_some_and(|ids| ids.binary_search(id).is_ok());
            let absent = world.kept.iter().filter(|(user, id)| !got(user, id)).count() as u64;
            let counted: u64 = receiver.missing.values().sum();
            // What was not written when the process ended may have been counted, or not.
            let most = absent + world.unwritten;
            assert!(
                (absent..=most).contains(&counted),
                "seed {seed}, webhook {hook}: {absent} missing, {counted} told"
            );
            gaps += counted;
        }
    }
    assert!(gaps > 0 && kills > 0, "the seeds have neither gaps nor kills any more");
}
