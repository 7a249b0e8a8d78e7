//! Groups and live rooms: who is in gets each message once and in order, and what is told as stored is there after a
//! kill.

use crate::support::ONE_AND_MANY;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, gateway_command, with_each_gateway};
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::wire::{self, Frame, Head, Login, SyncOk, code, flag, kind, outcome};
use std::time::Duration;

const GROUP: u64 = 77;
/// The first id of live rooms, and some more.
const ROOM: u64 = (1 << 63) + 5;

/// Runs `body` against gateways with a store, and balances the books afterwards.
fn with_store(shard_counts: &[u32], flags: &[&str], body: impl Fn(&Gateway)) {
    for &shards in shard_counts {
        let folder = ScratchFolder::new("groups");
        let gateway = start(shards, &folder, flags);
        body(&gateway);
        gateway.audit();
        gateway.finish();
    }
}

fn start(shards: u32, folder: &ScratchFolder, flags: &[&str]) -> Gateway {
    let often = ["--group-member-sends-per-sec", "0", "--group-sends-per-sec", "0"];
    let often = if flags.contains(&often[0]) { &often[..0] } else { &often[..] };
    Gateway::start(shards, &[&["--data-dir", folder.path()], often, flags].concat())
}

/// Logs in and takes the end of the backlog.
fn login(gateway: &Gateway, login: &Login) -> Client {
    let (mut client, _) = Client::login_with(gateway, login);
    client.recv_kind(kind::SYNC_OK);
    client
}

fn user(gateway: &Gateway, user: u64) -> Client {
    login(gateway, &Login::of(user))
}

fn frame(frame_kind: u8, group: u64, id: u64) -> Frame {
    Frame { kind: frame_kind, id, peer: group, ..Frame::default() }
}

fn group_send(client: &mut Client, group: u64, id: u64, flags: u8, body: &[u8]) {
    client.write(&Frame { flags, body: body.to_vec(), ..frame(kind::GROUP_SEND, group, id) });
}

/// Joins, and returns the position up to which the group was.
fn join(client: &mut Client, group: u64) -> u64 {
    client.write(&frame(kind::GROUP_JOIN, group, 900));
    expect_ok(client, group, 900)
}

fn leave(client: &mut Client, group: u64) {
    client.write(&frame(kind::GROUP_LEAVE, group, 901));
    expect_ok(client, group, 901);
}

fn expect_ok(client: &mut Client, group: u64, id: u64) -> u64 {
    let ok = client.recv_kind(kind::GROUP_OK);
    assert_eq!((ok.id, ok.peer, ok.body.len()), (id, group, 0), "{ok:?}");
    ok.stamp
}

/// The next frame, which must be a message to a group: sender and text.
fn recv_group(client: &mut Client, group: u64) -> (Frame, u64, String) {
    let frame = client.recv_kind(kind::GROUP_DELIVER);
    let (from, text) = frame.body.split_first_chunk::<8>().expect("a sender stands before the payload");
    assert_eq!((frame.peer, frame.flags & flag::ACK), (group, 0), "{frame:?}");
    let text = String::from_utf8(text.to_vec()).expect("a text");
    (frame.clone(), u64::from_be_bytes(*from), text)
}

/// Asks for a page of a group: texts and SYNC_OK.
fn sync(client: &mut Client, group: u64, after: u64, limit: u32) -> (Vec<(Frame, String)>, SyncOk) {
    client.write(&wire::sync_group(9, group, after, limit));
    let mut frames = Vec::new();
    loop {
        let frame = client.recv();
        if frame.kind == kind::SYNC_OK {
            let sync_ok = SyncOk::parse(&frame);
            assert_eq!((sync_ok.aux, sync_ok.group), (9, group));
            return (frames, sync_ok);
        }
        assert_eq!((frame.kind, frame.aux, frame.flags & flag::REPLAY), (kind::GROUP_DELIVER, 0, flag::REPLAY));
        let text = String::from_utf8(frame.body[8..].to_vec()).expect("a text");
        frames.push((frame, text));
    }
}

fn texts(frames: &[(Frame, String)]) -> Vec<&str> {
    frames.iter().map(|(_, text)| text.as_str()).collect()
}

#[test]
fn members_on_all_shards_get_each_message_once_in_order_and_numbered() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut members: Vec<Client> = (1..=9).map(|id| user(gateway, id)).collect();
        let mut stranger = user(gateway, 50);
        members.iter_mut().for_each(|member| {
            join(member, GROUP);
        });
        let mut last = 0;
        for round in 0..20u64 {
            let sender = (round % 9) as usize;
            let text = format!("message {round}");
            group_send(&mut members[sender], GROUP, round + 1, flag::ACK, text.as_bytes());
            let sent = members[sender].recv_kind(kind::SENT);
            assert_eq!((sent.id, sent.peer, sent.aux), (round + 1, GROUP, outcome::STORED));
            assert!(sent.stamp > last, "positions rise");
            last = sent.stamp;
            for (at, member) in members.iter_mut().enumerate().filter(|(at, _)| *at != sender) {
                let (frame, from, got) = recv_group(member, GROUP);
                assert_eq!((from, got.as_str()), (sender as u64 + 1, text.as_str()), "member {at}");
                assert_eq!((frame.id, frame.stamp, frame.flags), (round + 1, sent.stamp, 0));
                assert_eq!(u64::from(frame.aux), round + 1, "numbers follow each other");
            }
        }
        members.iter_mut().for_each(Client::ping);
        stranger.ping();
        let metrics = gateway.metrics();
        assert_eq!(metrics.sum("trunkline_group_deliveries_total", &[]), 20 * 8);
        let shards = metrics.sum("trunkline_group_parts", &[]);
        let encoded = metrics.sum("trunkline_group_messages_encoded_total", &[]);
        assert_eq!(encoded, 20 * shards, "encoded once for each shard with members");
    });
}

#[test]
fn the_senders_other_devices_get_it_as_its_own_and_the_sending_session_does_not() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut phone = login(gateway, &Login::of(1).device("phone"));
        let mut desk = login(gateway, &Login::of(1).device("desk"));
        let mut other = user(gateway, 2);
        join(&mut phone, GROUP);
        join(&mut other, GROUP);
        group_send(&mut phone, GROUP, 5, 0, b"mine");
        let (frame, from, text) = recv_group(&mut desk, GROUP);
        assert_eq!((frame.flags, from, text.as_str()), (flag::SELF, 1, "mine"));
        let (frame, ..) = recv_group(&mut other, GROUP);
        assert_eq!(frame.flags, 0);
        phone.ping();
        // A device that comes later is in what its user is in.
        let mut tablet =
            login(gateway, &Login { last_stamp: frame.stamp + (20_000 << 20), ..Login::of(1).device("tablet") });
        gateway.wait_for_metrics("all are in", |metrics| metrics.sum("trunkline_group_sessions", &[]) == 4);
        group_send(&mut other, GROUP, 6, 0, b"to all");
        for client in [&mut phone, &mut desk, &mut tablet] {
            assert_eq!(recv_group(client, GROUP).2, "to all");
        }
    });
}

#[test]
fn who_is_no_member_can_neither_send_nor_read_and_who_has_left_gets_nothing() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let (mut member, mut other) = (user(gateway, 1), user(gateway, 2));
        join(&mut member, GROUP);
        group_send(&mut other, GROUP, 1, flag::ACK, b"let me in");
        other.expect_sent(1, GROUP, outcome::DENIED);
        group_send(&mut other, GROUP, 2, 0, b"let me in");
        other.expect_error(code::NOT_A_MEMBER, 2, GROUP);
        other.write(&wire::sync_group(1, GROUP, 0, 0));
        other.expect_error(code::NOT_A_MEMBER, 0, GROUP);
        join(&mut other, GROUP);
        join(&mut other, GROUP);
        group_send(&mut other, GROUP, 3, flag::ACK, b"hello");
        other.expect_sent(3, GROUP, outcome::STORED);
        assert_eq!(recv_group(&mut member, GROUP).2, "hello");
        leave(&mut other, GROUP);
        leave(&mut other, GROUP);
        group_send(&mut member, GROUP, 4, flag::ACK, b"gone?");
        member.expect_sent(4, GROUP, outcome::STORED);
        group_send(&mut other, GROUP, 5, flag::ACK, b"still here");
        other.expect_sent(5, GROUP, outcome::DENIED);
        other.ping();
        member.ping();
        for (bad, id) in [(0, 6), (GROUP, 0)] {
            group_send(&mut member, bad, id, flag::ACK, b"");
            member.expect_error(code::BAD_REQUEST, id, bad);
        }
        // What is delivered is eight bytes longer than what was sent.
        let longest = wire::FRAME_BYTES_MAX - wire::HEADER_LONG - 8;
        group_send(&mut member, GROUP, 7, flag::ACK, &vec![b'x'; longest + 1]);
        member.expect_error(code::BAD_REQUEST, 7, GROUP);
        group_send(&mut member, GROUP, 8, flag::ACK, &vec![b'x'; longest]);
        member.expect_sent(8, GROUP, outcome::STORED);
    });
}

#[test]
fn a_group_is_read_by_pages_and_what_is_not_stored_is_not_there() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let (mut member, mut other) = (user(gateway, 1), user(gateway, 2));
        let begin = join(&mut member, GROUP);
        join(&mut other, GROUP);
        for id in 1..=5u64 {
            let no_store = if id == 3 { flag::NO_STORE } else { 0 };
            group_send(&mut member, GROUP, id, flag::ACK | no_store, format!("{id}").as_bytes());
            member.expect_sent(id, GROUP, if id == 3 { outcome::ACCEPTED } else { outcome::STORED });
            let (frame, ..) = recv_group(&mut other, GROUP);
            assert_eq!(u64::from(frame.aux), id, "what is not stored is numbered too");
        }
        let (first, sync_ok) = sync(&mut other, GROUP, begin, 3);
        assert_eq!((texts(&first), sync_ok.complete, sync_ok.truncated), (vec!["1", "2", "4"], false, false));
        let (rest, sync_ok) = sync(&mut other, GROUP, sync_ok.next_stamp, 3);
        assert_eq!((texts(&rest), sync_ok.complete), (vec!["5"], true));
        assert_eq!((sync_ok.next_stamp, sync_ok.last), (rest[0].0.stamp, rest[0].0.stamp));
        let (own, _) = sync(&mut member, GROUP, 0, 0);
        assert!(own.iter().all(|(frame, _)| frame.flags == flag::REPLAY | flag::SELF));
        // A message that is sent again is found, and not given to anybody twice.
        group_send(&mut member, GROUP, 5, flag::ACK | flag::RETRY, b"5");
        let sent = member.recv_kind(kind::SENT);
        assert_eq!((sent.aux, sent.stamp), (outcome::STORED, rest[0].0.stamp));
        other.ping();
    });
}

#[test]
fn what_counts_as_stored_and_who_is_a_member_survive_a_kill() {
    let folder = ScratchFolder::new("groups");
    let gateway = start(2, &folder, &[]);
    let (mut member, mut other, mut gone) = (user(&gateway, 1), user(&gateway, 2), user(&gateway, 3));
    for client in [&mut member, &mut other, &mut gone] {
        join(client, GROUP);
    }
    leave(&mut gone, GROUP);
    for id in 1..=3 {
        group_send(&mut member, GROUP, id, flag::ACK, format!("{id}").as_bytes());
        member.expect_sent(id, GROUP, outcome::STORED);
    }
    let seen = recv_group(&mut other, GROUP).0.stamp;
    gateway.kill();

    let gateway = start(2, &folder, &[]);
    // Of what is newer than ten seconds before the last stamp a device is told, and it asks.
    let mut other = login(&gateway, &Login { last_stamp: seen, ..Login::of(2) });
    let heads = wire::heads(&other.recv_kind(kind::HEADS));
    let (missed, sync_ok) = sync(&mut other, GROUP, seen, 0);
    assert_eq!((texts(&missed), sync_ok.truncated), (vec!["2", "3"], false));
    assert_eq!(heads, [Head { group: GROUP, stamp: sync_ok.last, read: 0, seq: 0 }]);
    let mut member = user(&gateway, 1);
    member.recv_kind(kind::HEADS);
    group_send(&mut member, GROUP, 3, flag::ACK | flag::RETRY, b"3");
    member.expect_sent(3, GROUP, outcome::STORED);
    group_send(&mut member, GROUP, 4, flag::ACK, b"4");
    let sent = member.recv_kind(kind::SENT);
    assert!(sent.aux == outcome::STORED && sent.stamp > sync_ok.last, "positions go on behind those of before");
    assert_eq!(recv_group(&mut other, GROUP).2, "4");
    let mut gone = user(&gateway, 3);
    group_send(&mut gone, GROUP, 1, flag::ACK, b"?");
    gone.expect_sent(1, GROUP, outcome::DENIED);
    drop((member, other, gone));
    gateway.audit();
    gateway.finish();
}

#[test]
fn a_member_that_does_not_read_is_told_what_it_missed_and_gets_it() {
    let flags = ["--outbox-bytes-max", "64KiB", "--outbox-burst-bytes-max", "64KiB", "--unsent-bytes-max", "4KiB"];
    with_store(&[2], &flags, |gateway| {
        let (mut sender, mut slow, mut quick) = (user(gateway, 1), user(gateway, 2), user(gateway, 3));
        for client in [&mut sender, &mut slow, &mut quick] {
            join(client, GROUP);
        }
        let mut sent = 0;
        let body = vec![b'm'; 30_000];
        // Until what the kernel holds for it and its outbox are full.
        loop {
            sent += 1;
            assert!(sent < 2_000, "nothing was dropped");
            group_send(&mut sender, GROUP, sent, flag::ACK, &body);
            sender.expect_sent(sent, GROUP, outcome::STORED);
            recv_group(&mut quick, GROUP);
            if gateway.metrics().sum("trunkline_group_copies_dropped_total", &[]) > 2 {
                break;
            }
        }
        let mut live = 0;
        let mut last = 0;
        let head = loop {
            let frame = slow.recv();
            if frame.kind == kind::HEADS {
                break wire::heads(&frame)[0];
            }
            live += 1;
            last = frame.stamp;
        };
        assert!(live < sent && head.group == GROUP && head.stamp > last && head.seq == sent);
        let mut missed = 0;
        loop {
            let (page, sync_ok) = sync(&mut slow, GROUP, last, 0);
            missed += page.len() as u64;
            last = sync_ok.next_stamp;
            if sync_ok.complete {
                break;
            }
        }
        assert_eq!((live + missed, last), (sent, head.stamp), "each message once");
    });
}

#[test]
fn a_live_room_is_its_sessions_and_keeps_nothing() {
    with_each_gateway(ONE_AND_MANY, &["--group-member-sends-per-sec", "0"], |gateway| {
        let mut members: Vec<Client> = (1..=6).map(|id| Client::login(gateway, id)).collect();
        members.iter_mut().for_each(|member| {
            join(member, ROOM);
        });
        let mut second = Client::login_with(gateway, &Login::of(1).device("second")).0;
        group_send(&mut second, ROOM, 1, flag::ACK, b"not in");
        second.expect_sent(1, ROOM, outcome::DENIED);
        for id in 1..=10 {
            group_send(&mut members[0], ROOM, id, flag::ACK, b"goal!");
            members[0].expect_sent(id, ROOM, outcome::ACCEPTED);
        }
        for member in &mut members[1..] {
            for number in 1..=10 {
                let (frame, from, text) = recv_group(member, ROOM);
                assert_eq!((frame.aux, from, text.as_str()), (number, 1, "goal!"));
            }
        }
        second.ping();
        second.write(&wire::sync_group(1, ROOM, 0, 0));
        second.expect_error(code::UNSUPPORTED, 0, ROOM);
        leave(&mut members[1], ROOM);
        group_send(&mut members[0], ROOM, 11, 0, b"again");
        recv_group(&mut members[2], ROOM);
        members[1].ping();
        drop(members);
        gateway.wait_for_metrics("the room has ended", |metrics| {
            metrics.sum("trunkline_group_sessions", &[]) + metrics.sum("trunkline_group_homes", &[]) == 0
        });
    });
}

#[test]
fn rates_and_numbers_of_groups_are_bound() {
    let flags = ["--group-sends-per-sec", "4", "--group-member-sends-per-sec", "2", "--group-members-max", "3"];
    with_store(&[2], &[&flags[..], &["--groups-per-user-max", "2"]].concat(), |gateway| {
        let mut members: Vec<Client> = (1..=4).map(|id| user(gateway, id)).collect();
        members[..3].iter_mut().for_each(|member| {
            join(member, GROUP);
        });
        members[3].write(&frame(kind::GROUP_JOIN, GROUP, 5));
        members[3].expect_error(code::LIMIT_REACHED, 5, GROUP);
        join(&mut members[0], GROUP + 1);
        members[0].write(&frame(kind::GROUP_JOIN, GROUP + 2, 6));
        members[0].expect_error(code::LIMIT_REACHED, 6, GROUP + 2);
        // Those that are on their way to another shard count as well.
        let rooms: Vec<Frame> = (0..6).map(|at| frame(kind::GROUP_JOIN, ROOM + at, 7 + at)).collect();
        assert_eq!(joined(&mut user(gateway, 9), &rooms), 2);
        // More in a moment than both rates let pass, whenever the second begins.
        let mut answers = [0; 2];
        for id in 1..=9 {
            group_send(&mut members[0], GROUP, id, flag::ACK, b"!");
            let answer = members[0].recv();
            answers[usize::from(answer.kind == kind::ERROR)] += 1;
            assert!(answer.kind == kind::SENT || answer.aux == code::RATE_LIMITED, "{answer:?}");
        }
        assert!(answers[1] >= 1, "{answers:?}");
        for id in 10..=30 {
            for member in &mut members[1..3] {
                group_send(member, GROUP, id, flag::ACK, b"!");
            }
        }
        let is_refused = |frame: &Frame| match frame.kind {
            kind::SENT => frame.aux == outcome::OVERLOADED,
            _ => frame.kind == kind::ERROR && frame.aux == code::RATE_LIMITED,
        };
        // The answers come from the home of the group, and nothing that this shard says is behind them.
        for member in &mut members[1..3] {
            let answers = std::iter::repeat_with(|| member.recv()).filter(|frame| frame.kind != kind::GROUP_DELIVER);
            let refused = answers.take(21).filter(|frame| is_refused(frame)).count();
            assert!(refused > 0, "all 21 went through");
        }
        let metrics = gateway.metrics();
        for limit in ["group_sends_per_sec", "group_member_sends_per_sec", "group_members"] {
            assert!(metrics.sum("trunkline_limit_hits_total", &[("limit", limit)]) > 0, "{limit}");
        }
    });
}

/// Asks for all of these joins at once. Returns how many were answered with GROUP_OK; the others have to be refused for
/// a limit.
fn joined(client: &mut Client, joins: &[Frame]) -> usize {
    client.write_bytes(&joins.iter().flat_map(Frame::encode).collect::<Vec<u8>>());
    let answers = joins.iter().map(|_| client.recv()).map(|answer| match answer.kind {
        kind::GROUP_OK => true,
        _ => {
            assert_eq!((answer.kind, answer.aux), (kind::ERROR, code::LIMIT_REACHED), "{answer:?}");
            false
        }
    });
    answers.filter(|is_in| *is_in).count()
}

#[test]
fn no_session_is_told_that_it_has_joined_when_its_shard_has_no_place_for_it() {
    let flags = ["--group-memberships-max", "1000", "--groups-per-user-max", "2000", "--frames-per-sec", "0"];
    with_store(&[2], &flags, |gateway| {
        let mut member = user(gateway, 1);
        let joins: Vec<Frame> = (0..1_010).map(|at| frame(kind::GROUP_JOIN, ROOM + at, 1 + at)).collect();
        assert_eq!(joined(&mut member, &joins), 1_000);
        // Of a durable group too, and who leaves a room makes place for it.
        assert_eq!(joined(&mut member, &[frame(kind::GROUP_JOIN, GROUP, 5_000)]), 0);
        let first = joins.iter().map(|join| join.peer).min().expect("there are some");
        leave(&mut member, first);
        assert_eq!(joined(&mut member, &[frame(kind::GROUP_JOIN, GROUP, 5_001)]), 1);
    });
}

#[test]
fn one_group_with_many_members_does_not_hold_up_the_others() {
    with_store(&[2], &[], |gateway| {
        let mut members: Vec<Client> = (1..=60).map(|id| user(gateway, id)).collect();
        members.iter_mut().for_each(|member| {
            join(member, GROUP);
        });
        for id in 1..=50 {
            group_send(&mut members[0], GROUP, id, 0, b"to sixty");
        }
        for member in &mut members[1..] {
            for number in 1..=50 {
                assert_eq!(recv_group(member, GROUP).0.aux, number);
            }
        }
        // A session that has gone is in nothing, and its user still is.
        let left = members.pop().expect("sixty");
        drop(left);
        gateway.wait_for_metrics("it is gone", |metrics| metrics.sum("trunkline_group_sessions", &[]) == 59);
        let mut again = login(gateway, &Login { last_stamp: u64::MAX, ..Login::of(60) });
        gateway.wait_for_metrics("it is back", |metrics| metrics.sum("trunkline_group_sessions", &[]) == 60);
        group_send(&mut members[0], GROUP, 51, 0, b"all");
        assert_eq!(recv_group(&mut again, GROUP).2, "all");
        assert_eq!(again.read_event(Duration::from_millis(1)), Event::TimedOut);
    });
}

#[test]
fn a_large_group_is_told_by_heads_but_to_those_who_pay_attention() {
    with_store(&[2], &["--group-passive-above", "2"], |gateway| {
        let [mut sender, mut attentive, mut passive] = [1, 2, 3].map(|id| user(gateway, id));
        for client in [&mut sender, &mut attentive, &mut passive] {
            join(client, GROUP);
        }
        // HEADS may come before the answer.
        let ask = |client: &mut Client, frame_kind, aux| {
            client.write(&Frame { aux, ..frame(frame_kind, GROUP, 902) });
            let ok = std::iter::repeat_with(|| client.recv()).find(|frame| frame.kind != kind::HEADS).expect("one");
            assert_eq!((ok.kind, ok.id, ok.peer), (kind::GROUP_OK, 902, GROUP), "{ok:?}");
            ok.stamp
        };
        for client in [&mut sender, &mut attentive] {
            assert_eq!(ask(client, kind::GROUP_JOIN, 1), 0, "there is nothing yet");
        }
        passive.write(&Frame { aux: 1, ..frame(kind::GROUP_JOIN, GROUP + 1, 903) });
        passive.expect_error(code::NOT_A_MEMBER, 903, GROUP + 1);
        let mut send = |id: u64| {
            group_send(&mut sender, GROUP, id, flag::ACK, format!("message {id}").as_bytes());
            sender.recv_kind(kind::SENT).stamp
        };
        let stamps = [1, 2, 3].map(&mut send);
        for (at, stamp) in stamps.iter().enumerate() {
            let (frame, _, text) = recv_group(&mut attentive, GROUP);
            assert_eq!((frame.stamp, text), (*stamp, format!("message {}", at + 1)));
        }
        // It may be told before the last one was sent, and is told again then.
        let mut heads = std::iter::repeat_with(|| wire::heads(&passive.recv_kind(kind::HEADS))[0]);
        let head = heads.find(|head| head.stamp == stamps[2]).expect("it is told the last state");
        assert_eq!((head.group, head.seq), (GROUP, 3));
        assert_eq!(texts(&sync(&mut passive, GROUP, 0, 0).0), ["message 1", "message 2", "message 3"]);
        // What comes from now on is given to it, and to the other one no more.
        assert_eq!(ask(&mut passive, kind::GROUP_JOIN, 1), stamps[2]);
        assert_eq!(ask(&mut attentive, kind::GROUP_LEAVE, 1), stamps[2]);
        let last = send(4);
        let (frame, _, text) = recv_group(&mut passive, GROUP);
        assert_eq!((frame.stamp, frame.aux, text.as_str()), (last, 4, "message 4"));
        let metrics = gateway.metrics();
        assert!(metrics.sum("trunkline_group_passive_heads_total", &[]) >= 1);
        assert_eq!(metrics.sum("trunkline_group_copies_spared_total", &[]), 3 + 1);
        // Two members are not so many.
        ask(&mut passive, kind::GROUP_LEAVE, 1);
        ask(&mut attentive, kind::GROUP_LEAVE, 0);
        let last = send(5);
        assert_eq!(recv_group(&mut passive, GROUP).0.stamp, last);
    });
}

#[test]
fn what_is_said_right_behind_a_join_is_in_the_group() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        // Users of their own, who are told of no other group.
        for (group, first) in [(GROUP, 1), (ROOM, 3)] {
            let (mut hearer, mut sayer) = (user(gateway, first), user(gateway, first + 1));
            join(&mut hearer, group);
            sayer.write(&frame(kind::GROUP_JOIN, group, 900));
            group_send(&mut sayer, group, 1, flag::ACK, b"hello");
            assert_eq!(recv_group(&mut hearer, group).2, "hello");
            let fate = if group == ROOM { outcome::ACCEPTED } else { outcome::STORED };
            let mut answers = [0; 2].map(|_| sayer.recv()).map(|frame| (frame.kind, frame.id, frame.aux));
            answers.sort_unstable();
            assert_eq!(answers, [(kind::SENT, 1, fate), (kind::GROUP_OK, 900, 0)]);
        }
    });
}

/// Runs `gateway store ACTION` on a folder. What it writes.
fn store_command(action: &str, folder: &ScratchFolder, input: Option<&ScratchFile>) -> String {
    let mut command = gateway_command();
    command.args(["store", action, "--data-dir", folder.path()]);
    if let Some(input) = input {
        command.stdin(std::fs::File::open(input.path()).expect("open what was exported"));
    }
    let output = command.output().expect("run gateway store");
    assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it writes text")
}

#[test]
fn a_group_that_is_exported_and_imported_goes_on_at_another_node() {
    let folder = ScratchFolder::new("groups");
    let gateway = start(1, &folder, &[]);
    let (mut member, mut gone) = (user(&gateway, 1), user(&gateway, 2));
    join(&mut member, GROUP);
    join(&mut gone, GROUP);
    for id in 1..=3 {
        group_send(&mut gone, GROUP, id, flag::ACK, format!("{id}").as_bytes());
        gone.expect_sent(id, GROUP, outcome::STORED);
    }
    leave(&mut gone, GROUP);
    drop((member, gone));
    gateway.finish();
    let exported = store_command("export", &folder, None);
    let (other, exported) = (ScratchFolder::new("other"), ScratchFile::new("groups.jsonl", exported));
    for groups in [1, 0] {
        let said = store_command("import", &other, Some(&exported));
        assert!(said.contains(&format!("\"groups\": {groups}")), "{said}");
    }
    let gateway = start(2, &other, &[]);
    let mut member = user(&gateway, 1);
    member.recv_kind(kind::HEADS);
    let (missed, sync_ok) = sync(&mut member, GROUP, 0, 0);
    assert_eq!(texts(&missed), ["1", "2", "3"]);
    group_send(&mut member, GROUP, 4, flag::ACK, b"4");
    let sent = member.recv_kind(kind::SENT);
    assert!(sent.aux == outcome::STORED && sent.stamp > sync_ok.last);
    let mut gone = user(&gateway, 2);
    group_send(&mut gone, GROUP, 1, flag::ACK, b"?");
    gone.expect_sent(1, GROUP, outcome::DENIED);
    drop((member, gone));
    gateway.audit();
    gateway.finish();
}
