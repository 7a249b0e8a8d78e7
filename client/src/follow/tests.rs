use bytes::Bytes;
use trunkline_proto::flags;

use super::*;

const GROUP: u64 = 77;
const ROOM: u64 = (1 << 63) + 5;
const ME: u64 = 1;

fn message(group: u64, number: u16, stamp: u64) -> GroupMessage {
    GroupMessage { group, from: 2, id: stamp, stamp, number, body: Bytes::from_static(b"text"), flags: 0 }
}

fn live(follows: &mut Follows, group: u64, number: u16, stamp: u64) -> Vec<Event> {
    let mut out = Vec::new();
    follows.delivered(message(group, number, stamp), &mut out);
    out
}

fn stamps(events: &[Event]) -> Vec<u64> {
    let stamp = |event: &Event| if let Event::GroupMessage(message) = event { message.stamp } else { 0 };
    events.iter().map(stamp).collect()
}

fn joined(follows: &mut Follows, group: u64, stamp: u64) {
    let mut out = Vec::new();
    follows.joined(group, stamp, false, &mut out);
    assert_eq!(out, []);
}

fn heads(follows: &mut Follows, group: u64, stamp: u64, seq: u64) -> Vec<Event> {
    let mut out = Vec::new();
    follows.heads(&[Head { group, stamp, read: 3, seq, unread: 0 }], &mut out);
    out
}

/// The position that a page is asked for from, if one is.
fn asked(follows: &mut Follows) -> Option<(u64, u64)> {
    follows.next_page(1_000).map(|sync| (sync.group, sync.after_stamp))
}

/// The page on its way comes: these positions, its end, and whether nothing is behind it.
fn page(follows: &mut Follows, page: &[u64], next: u64, complete: bool) -> Vec<Event> {
    let group = follows.running.as_ref().expect("a page is on its way").group;
    for &stamp in page {
        let flags = flags::REPLAY;
        assert!(follows.replayed(GroupMessage { flags, ..message(group, 0, stamp) }));
    }
    let mut out = Vec::new();
    let sync_ok = SyncOk { next_stamp: next, complete, group, ..SyncOk::default() };
    follows.page_over(&sync_ok, &mut out);
    out
}

fn gap(group: u64, missed: u64) -> Event {
    Event::GroupGap { group, missed }
}

#[tokio::test]
async fn numbers_that_follow_each_other_are_told_at_once_over_their_wrap() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    for (number, stamp) in [(65_534, 11), (65_535, 12), (1, 13), (2, 14)] {
        assert_eq!(stamps(&live(&mut follows, GROUP, number, stamp)), [stamp]);
    }
    assert_eq!(live(&mut follows, GROUP, 2, 14), [], "the same once more");
    assert_eq!(asked(&mut follows), None);
}

#[tokio::test]
async fn what_is_behind_a_gap_waits_until_the_gap_is_filled() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    assert_eq!(live(&mut follows, GROUP, 4, 14), [gap(GROUP, 2)]);
    assert_eq!(live(&mut follows, GROUP, 5, 15), []);
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    assert_eq!(asked(&mut follows), None, "one at a time");
    assert_eq!(stamps(&page(&mut follows, &[11, 12], 12, false)), [12]);
    assert_eq!(asked(&mut follows), Some((GROUP, 12)));
    // 15 is in the log, too, and 16 comes after the page was read.
    assert_eq!(live(&mut follows, GROUP, 6, 16), []);
    assert_eq!(stamps(&page(&mut follows, &[13, 14, 15], 15, true)), [13, 14, 15, 16]);
    assert_eq!(stamps(&live(&mut follows, GROUP, 7, 17)), [17]);
    assert_eq!((asked(&mut follows), follows.held_len, follows.held_bytes), (None, 0, 0));
}

#[tokio::test]
async fn a_second_gap_while_a_page_is_on_its_way_is_filled_as_well() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    live(&mut follows, GROUP, 3, 13);
    asked(&mut follows);
    assert_eq!(live(&mut follows, GROUP, 5, 15), [gap(GROUP, 1)]);
    // It was read before 14 was stored.
    assert_eq!(stamps(&page(&mut follows, &[12, 13], 13, true)), [12, 13]);
    assert_eq!(asked(&mut follows), Some((GROUP, 13)));
    assert_eq!(stamps(&page(&mut follows, &[14, 15], 15, true)), [14, 15]);
}

#[tokio::test]
async fn own_messages_are_no_gap_and_do_not_come_back_with_a_page() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    for (id, stamp) in [(101, 12), (102, 14)] {
        follows.sending(GROUP, id, true, false);
        follows.sent(GROUP, id, stamp);
    }
    assert_eq!(stamps(&live(&mut follows, GROUP, 3, 13)), [13]);
    assert_eq!(stamps(&live(&mut follows, GROUP, 5, 15)), [15]);
    // One that is refused has no number, and of one without ACK it is not known.
    follows.sending(GROUP, 103, true, false);
    follows.sent(GROUP, 103, 0);
    assert_eq!(stamps(&live(&mut follows, GROUP, 6, 16)), [16]);
    follows.sending(GROUP, 104, false, false);
    assert_eq!(live(&mut follows, GROUP, 8, 18), [], "it may be the own one");
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    let own = GroupMessage { from: ME, id: 104, flags: flags::REPLAY | flags::SELF, ..message(GROUP, 0, 17) };
    assert!(follows.replayed(own));
    assert_eq!(stamps(&page(&mut follows, &[11, 13, 15, 16, 18], 18, true)), [18]);
}

#[tokio::test]
async fn heads_are_followed_from_the_last_whole_position() {
    let mut follows = Follows::new(&[(GROUP, 10)]);
    follows.connected();
    assert_eq!(heads(&mut follows, GROUP, 10, 4), [], "nothing has come meanwhile");
    assert_eq!(asked(&mut follows), None);
    assert_eq!(stamps(&live(&mut follows, GROUP, 5, 11)), [11]);
    follows.connected();
    assert_eq!(heads(&mut follows, GROUP, 20, 9), [], "what came while it was away is no gap");
    assert_eq!(asked(&mut follows), Some((GROUP, 11)));
    assert_eq!(stamps(&page(&mut follows, &[15, 20], 20, true)), [15, 20]);
    // And in the middle of a connection it is one.
    assert_eq!(heads(&mut follows, GROUP, 22, 11), [gap(GROUP, 2)]);
    assert_eq!(asked(&mut follows), Some((GROUP, 20)));
    assert_eq!(stamps(&page(&mut follows, &[21, 22], 22, true)), [21, 22]);
    assert_eq!(stamps(&live(&mut follows, GROUP, 12, 23)), [23]);
}

#[tokio::test]
async fn a_group_without_a_position_is_told_and_followed_from_where_it_is() {
    let mut follows = Follows::default();
    let told = heads(&mut follows, GROUP, 20, 9);
    assert_eq!(told, [Event::GroupHeads(vec![GroupHead { group: GROUP, stamp: 20, read: 3 }])]);
    assert_eq!(stamps(&live(&mut follows, GROUP, 10, 21)), [21]);
    assert_eq!(live(&mut follows, GROUP, 12, 23), [gap(GROUP, 1)]);
    assert_eq!(asked(&mut follows), Some((GROUP, 21)));
    page(&mut follows, &[22, 23], 23, true);
    // From an earlier position: what was told is not told again.
    assert!(follows.follow(GROUP, 5));
    assert_eq!(asked(&mut follows), Some((GROUP, 5)));
    assert_eq!(stamps(&page(&mut follows, &[6, 21, 22, 23], 23, true)), [6]);
    assert!(!follows.follow(ROOM, 5));
}

#[tokio::test]
async fn the_first_message_of_a_connection_may_have_had_others_before_it() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    // 11 found no room in the outbox, 12 did; HEADS says so behind it.
    assert_eq!(stamps(&live(&mut follows, GROUP, 2, 12)), [12]);
    assert_eq!(heads(&mut follows, GROUP, 12, 2), []);
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    assert_eq!(stamps(&page(&mut follows, &[11, 12], 12, true)), [11]);
    assert_eq!(heads(&mut follows, GROUP, 12, 2), []);
    assert_eq!(asked(&mut follows), None);
}

#[tokio::test]
async fn a_message_the_application_was_too_slow_for_is_fetched_again_in_its_place() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    live(&mut follows, GROUP, 2, 12);
    follows.dropped(&message(GROUP, 2, 12));
    assert_eq!(live(&mut follows, GROUP, 3, 13), []);
    assert_eq!(follows.next_page(0), None, "there is no room yet");
    assert!(follows.pull_due().is_some());
    follows.not_before = None;
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    let told = page(&mut follows, &[12, 13], 13, true);
    assert_eq!(stamps(&told), [12, 13]);
    // All of a page may be dropped.
    for stamp in [12, 13] {
        follows.dropped(&message(GROUP, 0, stamp));
    }
    assert_eq!(asked(&mut follows), Some((GROUP, 11)));
    assert_eq!(stamps(&page(&mut follows, &[12, 13], 13, true)), [12, 13]);
}

#[tokio::test]
async fn what_is_held_is_bounded_and_the_rest_is_fetched() {
    let mut follows = Follows::default();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    live(&mut follows, GROUP, 3, 13);
    asked(&mut follows);
    let last = 13 + 2 * HELD_LEN_MAX as u64;
    for stamp in 14..=last {
        assert_eq!(live(&mut follows, GROUP, (stamp - 10) as u16, stamp), []);
    }
    assert_eq!(follows.held_len, HELD_LEN_MAX);
    let mut got = stamps(&page(&mut follows, &[12, 13], 13, true));
    while let Some((_, after)) = asked(&mut follows) {
        let next = (after + 100).min(last);
        got.extend(stamps(&page(&mut follows, &(after + 1..=next).collect::<Vec<_>>(), next, next == last)));
    }
    assert_eq!(got, (12..=last).collect::<Vec<_>>());
    assert_eq!((follows.held_len, follows.held_bytes), (0, 0));
}

#[tokio::test]
async fn a_refusal_is_final_or_asked_about_again() {
    let mut follows = Follows::default();
    let mut out = Vec::new();
    joined(&mut follows, GROUP, 10);
    live(&mut follows, GROUP, 1, 11);
    live(&mut follows, GROUP, 3, 13);
    asked(&mut follows);
    assert_eq!(follows.refused(Code::Overloaded.as_u16(), String::new(), &mut out), None);
    assert_eq!((asked(&mut follows), out.is_empty()), (None, true));
    follows.not_before = None;
    // A page of the connection before does not come.
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    follows.connected();
    assert_eq!(asked(&mut follows), Some((GROUP, 10)));
    assert_eq!(follows.refused(Code::NotAMember.as_u16(), "no".into(), &mut out), Some(GROUP));
    assert_eq!(stamps(&out[..1]), [13], "what has come is told");
    assert_eq!(out[1], Event::GroupLost { group: GROUP, code: 19, text: "no".into() });
    assert_eq!((asked(&mut follows), follows.held_len), (None, 0));
}

#[tokio::test]
async fn of_a_live_room_the_number_of_missed_messages_is_told() {
    let mut follows = Follows::default();
    assert_eq!(live(&mut follows, ROOM, 1, 10), [], "nobody has joined it");
    joined(&mut follows, ROOM, 10);
    live(&mut follows, ROOM, 1, 11);
    let told = live(&mut follows, ROOM, 5, 15);
    assert_eq!((&told[..1], stamps(&told)[1]), (&[gap(ROOM, 3)][..], 15));
    assert_eq!(heads(&mut follows, ROOM, 17, 7), [gap(ROOM, 2)]);
    assert_eq!(asked(&mut follows), None);
    // After a reconnect, what came meanwhile cannot be counted.
    follows.connected();
    assert_eq!(follows.rooms(), [ROOM]);
    let mut out = Vec::new();
    follows.joined(ROOM, 30, true, &mut out);
    assert_eq!(out, [gap(ROOM, 0)]);
    assert_eq!(stamps(&live(&mut follows, ROOM, 3, 31)), [31]);
    follows.left(ROOM);
    assert_eq!((follows.rooms(), live(&mut follows, ROOM, 4, 32)), (vec![], vec![]));
}

/// A group with its log, a connection that loses what it likes and tells of it later, and an application that is too
/// slow now and then.
#[tokio::test]
async fn whatever_is_lost_each_message_is_told_once_and_in_order() {
    for seed in 1..=300_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut follows = Follows::default();
        joined(&mut follows, GROUP, 10);
        let (mut log, mut told) = (Vec::new(), Vec::new());
        let (mut last, mut seq, mut owes_heads, mut is_first) = (10, 0, false, true);
        // The first message of a connection that is lost comes late: see `Doubt`.
        let keeps_first = seed % 2 == 0;
        let mut tell = |events: Vec<Event>, follows: &mut Follows, slow: bool| {
            for event in events {
                match event {
                    Event::GroupMessage(message) if slow => follows.dropped(&message),
                    Event::GroupMessage(message) => told.push(message.stamp),
                    _ => {}
                }
            }
        };
        for step in 0..300 {
            let is_end = step >= 290;
            let slow = !is_end && random(20) == 0;
            match random(8) {
                0..=2 if !is_end => {
                    (last, seq) = (last + 1 + random(2), seq + 1);
                    log.push(last);
                    let is_lost = random(4) == 0 && !(is_first && keeps_first);
                    is_first = false;
                    owes_heads |= is_lost;
                    if !is_lost {
                        let events = live(&mut follows, GROUP, number_of(seq), last);
                        tell(events, &mut follows, slow);
                    }
                }
                3 if !is_end => {
                    follows.connected();
                    // The gateway has kept count, or begins anew.
                    seq = if random(2) == 0 { 0 } else { seq };
                    (owes_heads, is_first) = (false, true);
                    let events = heads(&mut follows, GROUP, last, seq);
                    tell(events, &mut follows, slow);
                }
                _ if owes_heads && (is_end || random(3) == 0) => {
                    owes_heads = false;
                    let events = heads(&mut follows, GROUP, last, seq);
                    tell(events, &mut follows, slow);
                }
                _ => {}
            }
            follows.not_before = None;
            while follows.running.is_some() || follows.next_page(1).is_some() {
                if !is_end && random(3) == 0 {
                    break;
                }
                let after = follows.tracks[&GROUP].cursor;
                let behind: Vec<u64> = log.iter().copied().filter(|stamp| *stamp > after).collect();
                let content = &behind[..behind.len().min(3)];
                let next = content.last().copied().unwrap_or(after);
                let events = page(&mut follows, content, next, behind.len() <= 3);
                tell(events, &mut follows, slow);
                follows.not_before = None;
            }
        }
        if !keeps_first {
            told.sort_unstable();
        }
        assert_eq!(told, log, "seed {seed}");
        assert_eq!((follows.held_len, follows.held_bytes), (0, 0), "seed {seed}");
    }
}
