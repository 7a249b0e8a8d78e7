//! The store: what was acknowledged to a sender reaches the recipient's devices, whatever becomes of connections and
//! the process meanwhile.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, gateway_command};
use crate::support::names::limit_label;
use crate::support::scratch::{ScratchFile, ScratchFolder};
use crate::support::wire::{self, Frame, Login, LoginOk, SyncOk, code, flag, kind, outcome};
use crate::support::{ONE_AND_MANY, wait_for};

const STORED_LABEL: &str = "stored";

/// Runs `body` against gateways with a store, and balances the books afterwards.
fn with_store(shard_counts: &[u32], flags: &[&str], body: impl Fn(&Gateway)) {
    for &shards in shard_counts {
        let folder = ScratchFolder::new("store");
        let gateway = start(shards, &folder, flags);
        body(&gateway);
        gateway.audit();
        gateway.finish();
    }
}

fn start(shards: u32, folder: &ScratchFolder, flags: &[&str]) -> Gateway {
    Gateway::start(shards, &[&["--data-dir", folder.path(), "--store-after-ms", "300"], flags].concat())
}

fn login(gateway: &Gateway, user: u64, device: &str) -> (Client, LoginOk) {
    Client::login_with(gateway, &Login::of(user).device(device))
}

/// Everything up to the SYNC_OK with this number, which is the second value.
fn until_sync_ok(client: &mut Client, aux: u16) -> (Vec<Frame>, SyncOk) {
    let mut frames = Vec::new();
    loop {
        let frame = client.recv();
        if frame.kind == kind::SYNC_OK {
            let sync_ok = SyncOk::parse(&frame);
            assert_eq!((sync_ok.aux, sync_ok.group), (aux, 0), "the inbox is no group");
            return (frames, sync_ok);
        }
        assert_eq!(frame.kind, kind::DELIVER, "{frame:?}");
        frames.push(frame);
    }
}

/// The backlog of a device that has just logged in.
fn backlog(client: &mut Client) -> Vec<Frame> {
    until_sync_ok(client, 0).0
}

fn bodies(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| std::str::from_utf8(&frame.body).expect("a text")).collect()
}

/// Sends messages to a user who is offline; their ids.
fn send_stored(sender: &mut Client, user: u64, texts: &[&str]) -> Vec<u64> {
    let ids: Vec<u64> = texts.iter().map(|text| sender.send(user, flag::ACK, text.as_bytes())).collect();
    ids.iter().for_each(|id| sender.expect_sent(*id, user, outcome::STORED));
    ids
}

#[test]
fn a_message_to_a_user_who_is_offline_is_stored_and_comes_after_login_in_order() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        for user in 11..=14 {
            let mut sender = Client::login(gateway, user + 100);
            assert_eq!(backlog(&mut sender), []);
            let ids = send_stored(&mut sender, user, &["one", "two", "three"]);
            let (mut recipient, login_ok) = login(gateway, user, "");
            assert_eq!((login_ok.pending, login_ok.resumed, login_ok.truncated), (3, 0, 0));
            let frames = backlog(&mut recipient);
            assert_eq!(bodies(&frames), ["one", "two", "three"]);
            for (frame, id) in frames.iter().zip(&ids) {
                assert_eq!((frame.id, frame.peer, frame.flags), (*id, user + 100, flag::ACK | flag::REPLAY));
                recipient.ack(frame);
            }
            assert!(frames.is_sorted_by_key(|frame| frame.stamp) && login_ok.last == frames[2].stamp);
            // What comes now comes as ever.
            sender.exchange(&mut recipient, user, b"live");
            recipient.ping();
            drop(recipient);
            gateway.wait_for_presence(user, false);
            let again = Login { resume: login_ok.resume, ..Login::of(user) };
            let (mut recipient, login_ok) = Client::login_with(gateway, &again);
            assert_eq!((login_ok.pending, login_ok.resumed), (0, 1));
            assert_eq!(backlog(&mut recipient), [], "what was acknowledged does not come again");
            sender.ping();
        }
        assert_eq!(gateway.metrics().outcome(STORED_LABEL), 12);
    });
}

#[test]
fn a_session_that_has_logged_out_is_not_resumed_and_its_inbox_is_kept() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let (mut phone, first) = login(gateway, 2, "phone");
        backlog(&mut phone);
        phone.write(&Frame { kind: kind::LOGOUT, ..Frame::default() });
        phone.expect_closed();
        gateway.wait_for_presence(2, false);
        send_stored(&mut sender, 2, &["meanwhile"]);
        let with = |resume: &[u8]| Login { resume: resume.to_vec(), ..Login::of(2).device("phone") };
        let (mut phone, second) = Client::login_with(gateway, &with(&first.resume));
        assert_eq!((second.resumed, second.pending, second.truncated), (0, 1, 0));
        let frames = backlog(&mut phone);
        assert_eq!(bodies(&frames), ["meanwhile"]);
        phone.ack(&frames[0]);
        phone.ping();
        drop(phone);
        gateway.wait_for_presence(2, false);
        // What it was given with that LOGIN is good, and what it was given before stays over.
        let (_, third) = Client::login_with(gateway, &with(&second.resume));
        gateway.wait_for_presence(2, false);
        let (_, fourth) = Client::login_with(gateway, &with(&first.resume));
        assert_eq!((third.resumed, fourth.resumed), (1, 0));
    });
}

#[test]
fn what_counts_as_stored_survives_a_kill() {
    let folder = ScratchFolder::new("store");
    let gateway = start(2, &folder, &[]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let (mut phone, phone_ok) = login(&gateway, 2, "phone");
    backlog(&mut phone);
    drop(phone);
    gateway.wait_for_presence(2, false);
    send_stored(&mut sender, 2, &["before", "the", "crash"]);
    gateway.kill();

    let gateway = start(2, &folder, &[]);
    let again = Login { resume: phone_ok.resume, ..Login::of(2).device("phone") };
    let (mut phone, login_ok) = Client::login_with(&gateway, &again);
    assert_eq!((login_ok.resumed, login_ok.pending, login_ok.truncated), (1, 3, 0));
    let frames = backlog(&mut phone);
    assert_eq!(bodies(&frames), ["before", "the", "crash"]);
    phone.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&frames[2]) });
    phone.ping();
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let id = sender.send(2, flag::ACK, b"after");
    let deliver = phone.recv_deliver();
    assert!(deliver.stamp > frames[2].stamp, "positions go on behind those of before");
    phone.ack(&deliver);
    sender.expect_sent(id, 2, outcome::DELIVERED);
    drop(phone);
    gateway.wait_for_presence(2, false);
    // The cursor is as old as 200 ms at most; a drain tells the store all of it.
    gateway.finish();
    let gateway = start(2, &folder, &[]);
    let (mut phone, _) = login(&gateway, 2, "phone");
    assert_eq!(backlog(&mut phone), []);
    drop((phone, sender));
    gateway.audit();
    gateway.finish();
}

#[test]
fn each_registered_device_gets_a_message_once_whoever_acknowledges_it() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let (mut phone, _) = login(gateway, 2, "phone");
        let (mut desk, _) = login(gateway, 2, "desk");
        backlog(&mut phone);
        backlog(&mut desk);
        drop(desk);
        gateway.wait_for_metrics("the desk is gone", |metrics| metrics.sum("trunkline_sessions", &[]) == 2);
        let id = sender.send(2, flag::ACK, b"to both");
        let deliver = phone.recv_deliver();
        phone.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        // It is stored for the desk although the phone has it, and its sender is told once.
        gateway.wait_for_metrics("it is stored", |metrics| metrics.sum("trunkline_stored_total", &[]) == 1);
        sender.ping();
        let (mut desk, login_ok) = login(gateway, 2, "desk");
        assert_eq!(login_ok.pending, 1);
        let frames = backlog(&mut desk);
        assert_eq!((bodies(&frames), frames[0].id, frames[0].stamp), (vec!["to both"], id, deliver.stamp));
        desk.ack(&frames[0]);
        desk.ping();
        phone.ping();
        let (mut phone_again, login_ok) = login(gateway, 2, "phone");
        phone.expect_bye(code::REPLACED);
        assert_eq!((login_ok.pending, backlog(&mut phone_again).len()), (0, 0));
        // With all having it, nothing is left.
        wait_for("the inbox is empty", || (gateway.get("/v1/users/2/inbox").json()["messages"] == 0).then_some(()));
    });
}

#[test]
fn a_message_nobody_acknowledges_in_time_is_stored_and_the_ack_still_counts() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let (mut recipient, _) = login(gateway, 2, "");
        backlog(&mut recipient);
        let first = sender.send(2, flag::ACK, b"first");
        let second = sender.send(2, flag::ACK, b"second");
        let delivers = [recipient.recv_deliver(), recipient.recv_deliver()];
        sender.expect_sent(first, 2, outcome::STORED);
        sender.expect_sent(second, 2, outcome::STORED);
        recipient.ack(&delivers[0]);
        recipient.ping();
        let (mut again, _) = login(gateway, 2, "");
        recipient.expect_bye(code::REPLACED);
        let frames = backlog(&mut again);
        assert_eq!(bodies(&frames), ["second"]);
        again.ack(&frames[0]);
        again.ping();
        sender.ping();
    });
}

#[test]
fn a_cumulative_ack_is_for_all_before_it() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let (mut recipient, _) = login(gateway, 2, "");
        backlog(&mut recipient);
        let ids: Vec<u64> = (0..5).map(|_| sender.send(2, flag::ACK, b"x")).collect();
        let delivers: Vec<Frame> = ids.iter().map(|_| recipient.recv_deliver()).collect();
        recipient.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&delivers[3]) });
        ids[..4].iter().for_each(|id| sender.expect_sent(*id, 2, outcome::DELIVERED));
        recipient.ack(&delivers[4]);
        sender.expect_sent(ids[4], 2, outcome::DELIVERED);
        sender.ping();
    });
}

#[test]
fn no_more_of_a_backlog_is_unacknowledged_than_the_window_and_live_messages_come_beside() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        send_stored(&mut sender, 2, &["1", "2", "3", "4", "5", "6", "7"]);
        let (mut recipient, _) = Client::login_with(gateway, &Login { window: 3, ..Login::of(2) });
        let first: Vec<Frame> = (0..3).map(|_| recipient.recv_deliver()).collect();
        assert_eq!(bodies(&first), ["1", "2", "3"]);
        recipient.ping();
        let id = sender.send(2, flag::ACK, b"live");
        let live = recipient.recv_deliver();
        assert_eq!((live.body.as_slice(), live.flags), (&b"live"[..], flag::ACK));
        recipient.ack(&live);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        let mut got = first;
        while got.len() < 7 {
            recipient.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&got[got.len() - 1]) });
            let next = recipient.recv_deliver();
            assert_eq!(next.flags, flag::ACK | flag::REPLAY);
            got.push(next);
        }
        assert_eq!(bodies(&got), ["1", "2", "3", "4", "5", "6", "7"]);
        recipient.write(&Frame { flags: flag::CUMULATIVE, ..wire::ack(&got[6]) });
        assert_eq!(until_sync_ok(&mut recipient, 0).0, []);
    });
}

#[test]
fn sync_gives_pages_from_a_position_and_from_a_time() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        send_stored(&mut sender, 2, &["1", "2", "3", "4", "5"]);
        let (mut recipient, _) = login(gateway, 2, "");
        let all = backlog(&mut recipient);
        recipient.write(&wire::sync(7, 0, 0, 2));
        let (page, sync_ok) = until_sync_ok(&mut recipient, 7);
        assert_eq!((bodies(&page), sync_ok.complete), (vec!["1", "2"], false));
        let owed = Frame { flags: all[0].flags & !flag::ACK, ..all[0].clone() };
        assert_eq!(page[0], owed, "the same as in the backlog, whose copy is the one to acknowledge");
        recipient.write(&wire::sync(8, sync_ok.next_stamp, 0, 2));
        let (page, sync_ok) = until_sync_ok(&mut recipient, 8);
        assert_eq!((bodies(&page), sync_ok.complete), (vec!["3", "4"], false));
        recipient.write(&wire::sync(9, sync_ok.next_stamp, 0, 2));
        let (page, sync_ok) = until_sync_ok(&mut recipient, 9);
        assert_eq!((bodies(&page), sync_ok.complete, sync_ok.truncated), (vec!["5"], true, false));
        assert_eq!(sync_ok.last, all[4].stamp);
        // The later of position and time counts.
        recipient.write(&wire::sync(10, 0, (all[4].stamp >> 20) + 1, 0));
        assert_eq!(until_sync_ok(&mut recipient, 10).0, []);
        recipient.write(&wire::sync(11, all[2].stamp, 1, 0));
        assert_eq!(bodies(&until_sync_ok(&mut recipient, 11).0), ["4", "5"]);
        recipient.write(&Frame { kind: kind::SYNC, body: vec![0xff], ..Frame::default() });
        recipient.expect_error(code::BAD_REQUEST, 0, 0);
    });
}

#[test]
fn a_full_inbox_is_told_and_others_are_not_touched() {
    with_store(ONE_AND_MANY, &["--inbox-messages-max", "3"], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        send_stored(&mut sender, 2, &["1", "2", "3"]);
        let id = sender.send(2, flag::ACK, b"4");
        sender.expect_sent(id, 2, outcome::INBOX_FULL);
        send_stored(&mut sender, 3, &["to another"]);
        let (mut recipient, _) = login(gateway, 2, "");
        let frames = backlog(&mut recipient);
        assert_eq!(bodies(&frames), ["1", "2", "3"]);
        frames.iter().for_each(|frame| recipient.ack(frame));
        recipient.ping();
        drop(recipient);
        gateway.wait_for_presence(2, false);
        send_stored(&mut sender, 2, &["5"]);
        assert_eq!(gateway.metrics().limit_hits(limit_label::INBOX), 1);
    });
}

#[test]
fn the_oldest_give_way_if_that_is_wanted_and_the_device_is_told() {
    with_store(&[1], &["--inbox-messages-max", "3", "--inbox-full", "drop-oldest"], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let (mut recipient, _) = login(gateway, 2, "");
        backlog(&mut recipient);
        drop(recipient);
        gateway.wait_for_presence(2, false);
        send_stored(&mut sender, 2, &["1", "2", "3", "4", "5"]);
        let (mut recipient, login_ok) = login(gateway, 2, "");
        assert_eq!((login_ok.truncated, login_ok.pending), (1, 3));
        let (frames, sync_ok) = until_sync_ok(&mut recipient, 0);
        assert_eq!(bodies(&frames), ["3", "4", "5"]);
        assert!(sync_ok.truncated && sync_ok.floor == login_ok.floor && sync_ok.floor < frames[0].stamp);
    });
}

#[test]
fn a_message_that_must_not_be_stored_is_not() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        let id = sender.send(2, flag::ACK | flag::NO_STORE, b"now or never");
        sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
        sender.send(2, 0, b"without ACK");
        let (mut recipient, login_ok) = login(gateway, 2, "");
        assert_eq!((login_ok.pending, backlog(&mut recipient).len()), (0, 0));
        let id = sender.send(2, flag::ACK | flag::NO_STORE, b"you are there");
        let deliver = recipient.recv_deliver();
        recipient.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
    });
}

#[test]
fn an_ephemeral_device_is_not_registered() {
    with_store(&[1], &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        send_stored(&mut sender, 2, &["early"]);
        let guest = Login { ephemeral: true, ..Login::of(2).device("guest") };
        let (mut ephemeral, login_ok) = Client::login_with(gateway, &guest);
        assert!(login_ok.resume.is_empty() && login_ok.pending == 0, "{login_ok:?}");
        sender.exchange(&mut ephemeral, 2, b"live");
        let devices = gateway.get("/v1/users/2/inbox").json()["devices"].as_array().expect("a list").len();
        assert_eq!(devices, 0);
        // The first device that is registered begins where the inbox does.
        let (mut first, _) = login(gateway, 2, "");
        assert_eq!(bodies(&backlog(&mut first)), ["early"]);
    });
}

#[test]
fn a_message_sent_again_is_taken_once() {
    let folder = ScratchFolder::new("store");
    let gateway = start(2, &folder, &[]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let send = |sender: &mut Client, flags: u8| sender.write(&wire::send(900, 2, flag::ACK | flags, b"once"));
    send(&mut sender, 0);
    sender.expect_sent(900, 2, outcome::STORED);
    send(&mut sender, flag::RETRY);
    sender.expect_sent(900, 2, outcome::STORED);
    gateway.kill();
    // What the process remembered is gone; the log is looked at.
    let gateway = start(2, &folder, &[]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    send(&mut sender, flag::RETRY);
    sender.expect_sent(900, 2, outcome::STORED);
    let (mut recipient, _) = login(&gateway, 2, "");
    assert_eq!(bodies(&backlog(&mut recipient)), ["once"]);
    // And one that waits for its ACK is taken over by the newer session.
    sender.write(&wire::send(901, 2, flag::ACK, b"open"));
    let deliver = recipient.recv_deliver();
    let mut newer = Client::login(&gateway, 1);
    backlog(&mut newer);
    newer.write(&wire::send(901, 2, flag::ACK | flag::RETRY, b"open"));
    newer.ping();
    recipient.ack(&deliver);
    newer.expect_sent(901, 2, outcome::DELIVERED);
    recipient.ping();
    drop((sender, newer, recipient));
    gateway.audit();
    gateway.finish();
}

#[test]
fn a_store_that_cannot_write_costs_what_is_to_be_stored_and_nothing_else() {
    let folder = ScratchFolder::new("store");
    let gateway = start(2, &folder, &[]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let (mut online, _) = login(&gateway, 2, "");
    backlog(&mut online);
    send_stored(&mut sender, 3, &["before"]);
    gateway.limit_files(1);
    let id = sender.send(3, flag::ACK, b"lost");
    sender.expect_sent(id, 3, outcome::OVERLOADED);
    sender.exchange(&mut online, 2, b"unharmed");
    let degraded = || gateway.get("/readyz").json()["degraded"].as_array().map_or(0, Vec::len);
    wait_for("/readyz says so", || (degraded() == 1).then_some(()));
    assert_eq!(gateway.get("/readyz").status, 200, "it serves");
    // A device that is known logs in; what was stored before is there.
    let (mut again, _) = login(&gateway, 2, "");
    online.expect_bye(code::REPLACED);
    assert_eq!(backlog(&mut again), []);
    // A new one cannot be registered, and logs in all the same.
    let (mut other, login_ok) = login(&gateway, 2, "other");
    assert!(login_ok.resume.is_empty());
    other.ping();
    gateway.limit_files(u64::MAX);
    wait_for("it writes again", || {
        let id = sender.send(3, flag::ACK, b"after");
        let sent = sender.recv_kind(kind::SENT);
        assert_eq!(sent.id, id);
        (sent.aux == outcome::STORED).then_some(())
    });
    wait_for("/readyz says nothing more", || (degraded() == 0).then_some(()));
    // The backlog of the device that could not be registered ends when it is.
    assert_eq!(backlog(&mut other), []);
    drop((sender, again, other));
    gateway.audit();
    gateway.finish();
}

#[test]
fn a_store_that_has_its_size_refuses_with_its_own_outcome_and_says_so_until_there_is_room() {
    let folder = ScratchFolder::new("store");
    let gateway = start(2, &folder, &["--store-bytes-max", "64MiB"]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let (mut online, _) = login(&gateway, 2, "");
    backlog(&mut online);
    let long = vec![b'x'; 60_000];
    let mut sent = 0;
    let full = std::iter::repeat_with(|| {
        sent += 1;
        let to = 10 + sent % 8;
        let id = sender.send(to, flag::ACK, &long);
        let answer = sender.recv_kind(kind::SENT);
        assert_eq!((answer.id, answer.peer), (id, to));
        answer.aux
    })
    .find(|outcome| *outcome != outcome::STORED);
    assert_eq!(full, Some(outcome::INBOX_FULL));
    assert!(gateway.metrics().limit_hits(limit_label::STORE_BYTES) >= 1);
    let degraded = || gateway.get("/readyz").json()["degraded"][0].as_str().map(str::to_owned);
    assert!(degraded().is_some_and(|degraded| degraded.contains("store is full")), "{:?}", degraded());
    sender.exchange(&mut online, 2, b"unharmed");
    for user in 10..18 {
        assert_eq!(gateway.request("DELETE", &format!("/v1/users/{user}/inbox")).status, 200);
    }
    // The next one that is refused lets the store look for what it can drop.
    wait_for("there is room again", || {
        let id = sender.send(10, flag::ACK, b"small");
        let answer = sender.recv_kind(kind::SENT);
        assert_eq!(answer.id, id);
        (answer.aux == outcome::STORED && degraded().is_none()).then_some(())
    });
    drop((sender, online));
    gateway.audit();
    gateway.finish();
}

#[test]
fn an_operator_sees_inboxes_empties_them_and_forgets_devices() {
    with_store(ONE_AND_MANY, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        backlog(&mut sender);
        for device in ["phone", "desk"] {
            let (mut client, _) = login(gateway, 2, device);
            backlog(&mut client);
        }
        gateway.wait_for_presence(2, false);
        send_stored(&mut sender, 2, &["1", "2"]);
        let inbox = gateway.get("/v1/users/2/inbox");
        assert_eq!(inbox.status, 200, "{}", inbox.body);
        let inbox = inbox.json();
        assert_eq!((&inbox["user"], &inbox["messages"]), (&"2".into(), &2.into()));
        let names: Vec<&str> =
            inbox["devices"].as_array().expect("a list").iter().filter_map(|it| it["device"].as_str()).collect();
        assert_eq!(names, ["phone", "desk"]);
        assert_eq!(gateway.request("DELETE", "/v1/users/2/devices/desk").status, 200);
        assert_eq!(gateway.request("DELETE", "/v1/users/2/devices/desk").status, 404);
        let emptied = gateway.request("DELETE", "/v1/users/2/inbox");
        assert_eq!((emptied.status, emptied.json()["messages"].as_u64()), (200, Some(2)));
        assert_eq!(gateway.get("/v1/users/2/inbox").json()["messages"], 0);
        let (mut phone, login_ok) = login(gateway, 2, "phone");
        assert_eq!((login_ok.pending, backlog(&mut phone).len()), (0, 0));
    });
}

#[test]
fn without_a_folder_there_is_no_store_and_the_api_says_what_to_do() {
    let gateway = Gateway::start(1, &[]);
    let mut sender = Client::login(&gateway, 1);
    let id = sender.send(2, flag::ACK, b"nobody keeps it");
    sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
    sender.write(&wire::sync(1, 0, 0, 0));
    sender.expect_error(code::UNSUPPORTED, 0, 0);
    let refused = gateway.get("/v1/users/2/inbox");
    assert!(refused.status == 409 && refused.body.contains("--data-dir"), "{}", refused.body);
    drop(sender);
    gateway.audit();
    gateway.finish();
}

/// Runs `gateway store ACTION` on a folder; its status, stdout and stderr.
fn store_command(action: &str, folder: &ScratchFolder, input: Option<&ScratchFile>) -> (Option<i32>, String, String) {
    let mut command = gateway_command();
    command.args(["store", action, "--data-dir", folder.path()]);
    if let Some(input) = input {
        command.stdin(std::fs::File::open(input.path()).expect("open what was exported"));
    }
    let output = command.output().expect("run gateway store");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_exported_and_imported_is_what_devices_get_from_another_node() {
    let folder = ScratchFolder::new("store");
    let gateway = start(2, &folder, &[]);
    let mut sender = Client::login(&gateway, 1);
    backlog(&mut sender);
    let (mut phone, _) = login(&gateway, 2, "phone");
    backlog(&mut phone);
    drop(phone);
    gateway.wait_for_presence(2, false);
    send_stored(&mut sender, 2, &["one", "two"]);
    send_stored(&mut sender, 3, &["three"]);
    let (status, _, said) = store_command("check", &folder, None);
    assert!(status == Some(1) && said.contains(folder.path()), "while a node has it: {status:?} {said}");
    drop(sender);
    gateway.finish();
    let (status, checked, said) = store_command("check", &folder, None);
    assert_eq!((status, checked.contains("messages")), (Some(0), true), "{checked}{said}");
    let (status, exported, said) = store_command("export", &folder, None);
    assert_eq!(status, Some(0), "{said}");
    let (other, exported) = (ScratchFolder::new("other"), ScratchFile::new("inboxes.jsonl", exported));
    let (status, _, said) = store_command("check", &other, None);
    assert!(status == Some(1) && said.contains(other.path()), "nothing is made by a check: {status:?} {said}");
    for _ in 0..2 {
        // What is there already stays as it is.
        let (status, _, said) = store_command("import", &other, Some(&exported));
        assert_eq!(status, Some(0), "{said}");
    }
    let gateway = start(2, &other, &[]);
    let (mut phone, login_ok) = login(&gateway, 2, "phone");
    assert_eq!((login_ok.pending, login_ok.resumed), (2, 0));
    assert_eq!(bodies(&backlog(&mut phone)), ["one", "two"]);
    let (mut third, _) = login(&gateway, 3, "");
    assert_eq!(bodies(&backlog(&mut third)), ["three"]);
    drop((phone, third));
    gateway.audit();
    gateway.finish();
}

#[test]
fn one_folder_is_one_process_s() {
    let folder = ScratchFolder::new("store");
    let gateway = start(1, &folder, &[]);
    let mut second = gateway_command();
    second.args(["--shards", "1", "--data-dir", folder.path(), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let output = second.output().expect("run the second gateway");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(folder.path()) && said.contains("data_dir"), "{said}");
    gateway.finish();
}
