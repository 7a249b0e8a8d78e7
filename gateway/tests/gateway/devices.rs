//! Several devices of one user: who gets a message, whose ACK counts, and what happens when a device logs in again.

use crate::support::bystanders::Bystanders;
use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::{limit_label, metric, reason_label};
use crate::support::wire::{self, Frame, Login, LoginOk, code, flag, outcome};
use crate::support::{ONE_AND_MANY, SHARD_COUNTS, wait_for};

fn login_device(gateway: &Gateway, user: u64, device: &str) -> Client {
    Client::login_with(gateway, &Login::of(user).device(device)).0
}

#[test]
fn every_device_gets_every_message_and_the_first_ack_decides() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        for user in 11..=14 {
            let mut sender = Client::login(gateway, user + 100);
            let mut devices = ["phone", "tablet", "desk"].map(|name| login_device(gateway, user, name));
            sender.send(user, 0, b"no ACK");
            let id = sender.send(user, flag::ACK, b"with ACK");
            let copies = devices.each_mut().map(|device| {
                assert_eq!(device.recv_deliver().body, b"no ACK");
                device.recv_deliver()
            });
            for copy in &copies {
                assert_eq!((copy.id, copy.peer, copy.flags), (id, user + 100, flag::ACK));
                assert_eq!(copy.stamp, copies[0].stamp, "one message has one stamp");
            }
            let [phone, tablet, desk] = &mut devices;
            tablet.ack(&copies[1]);
            sender.expect_sent(id, user, outcome::DELIVERED);
            phone.ack(&copies[0]);
            desk.ack(&copies[2]);
            for device in [phone, desk, tablet] {
                device.ping();
                device.send_barrier(&mut sender, user + 100);
            }
            sender.ping();
        }
    });
}

#[test]
fn sent_goes_to_the_session_that_sent() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut phone = login_device(gateway, 1, "phone");
        let mut desk = login_device(gateway, 1, "desk");
        let mut recipient = Client::login(gateway, 2);
        phone.exchange(&mut recipient, 2, b"from the phone");
        desk.ping();
        desk.exchange(&mut recipient, 2, b"from the desk");
        phone.ping();
        let id = phone.send(3, flag::ACK, b"to nobody");
        phone.expect_sent(id, 3, outcome::OFFLINE_NOT_STORED);
        desk.ping();
    });
}

#[test]
fn a_device_that_leaves_does_not_decide_for_the_others() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut sender = Client::login(gateway, 1);
        let mut phone = login_device(gateway, 2, "phone");
        let mut desk = login_device(gateway, 2, "desk");
        let id = sender.send(2, flag::ACK, b"to both");
        phone.recv_deliver();
        let deliver = desk.recv_deliver();
        phone.write(&wire::logout());
        phone.expect_closed();
        gateway.wait_for_metrics("the phone is gone", |metrics| metrics.closed(reason_label::LOGOUT) == 1);
        desk.send_barrier(&mut sender, 1);
        sender.ping();
        desk.ack(&deliver);
        sender.expect_sent(id, 2, outcome::DELIVERED);
        // And when the last one leaves, that decides.
        let id = sender.send(2, flag::ACK, b"to the last");
        desk.recv_deliver();
        drop(desk);
        sender.expect_sent(id, 2, outcome::OFFLINE_NOT_STORED);
    });
}

#[test]
fn a_message_to_oneself_reaches_the_other_devices_only() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut devices = ["phone", "tablet", "desk"].map(|name| login_device(gateway, 7, name));
        let [phone, tablet, desk] = &mut devices;
        let id = phone.send(7, 0, b"note to self");
        for other in [&mut *tablet, &mut *desk] {
            let deliver = other.recv_deliver();
            assert_eq!((deliver.id, deliver.peer, deliver.flags), (id, 7, flag::SELF));
            assert_eq!(deliver.body, b"note to self");
        }
        phone.ping();
        let id = tablet.send(7, flag::ACK, b"with ACK");
        let at_phone = phone.recv_deliver();
        let at_desk = desk.recv_deliver();
        assert_eq!((at_phone.id, at_phone.peer, at_phone.flags), (id, 7, flag::ACK | flag::SELF));
        assert_eq!(at_phone, at_desk);
        tablet.ping();
        desk.ack(&at_desk);
        tablet.expect_sent(id, 7, outcome::DELIVERED);
        phone.ack(&at_phone);
        phone.ping();
        tablet.ping();
    });
}

#[test]
fn a_message_to_oneself_without_another_device_reaches_nobody() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut only = Client::login(gateway, 7);
        only.send(7, 0, b"dropped");
        only.ping();
        let id = only.send(7, flag::ACK, b"refused");
        only.expect_sent(id, 7, outcome::OFFLINE_NOT_STORED);
        only.ping();
    });
}

#[test]
fn an_own_message_waits_for_another_device_not_for_the_sender() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut phone = login_device(gateway, 7, "phone");
        let mut desk = login_device(gateway, 7, "desk");
        let id = phone.send(7, flag::ACK, b"to the desk");
        desk.recv_deliver();
        drop(desk);
        // Only the sender is left, and it is no recipient.
        phone.expect_sent(id, 7, outcome::OFFLINE_NOT_STORED);
        phone.ping();
    });
}

#[test]
fn a_newer_login_of_a_device_replaces_the_older() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        for user in 11..=14 {
            let mut sender = Client::login(gateway, user + 100);
            let mut bystander = login_device(gateway, user, "another");
            let mut older = login_device(gateway, user, "phone");
            let mut newer = login_device(gateway, user, "phone");
            older.expect_bye(code::REPLACED);
            sender.send(user, 0, b"to the newer");
            assert_eq!(newer.recv_deliver().body, b"to the newer");
            newer.ping();
            assert_eq!(bystander.recv_deliver().body, b"to the newer");
            bystander.ping();
        }
        gateway.wait_for_metrics("four replaced connections", |metrics| metrics.closed(reason_label::REPLACED) == 4);
    });
}

#[test]
fn what_the_older_login_did_not_acknowledge_goes_to_the_newer() {
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        for user in 11..=14 {
            let mut sender = Client::login(gateway, user + 100);
            let mut older = Client::login(gateway, user);
            sender.send(user, 0, b"without ACK");
            older.recv_deliver();
            let first = sender.send(user, flag::ACK, b"first");
            let second = sender.send(user, flag::ACK, b"second");
            let third = sender.send(user, flag::ACK, b"third");
            let [first_deliver, second_deliver, third_deliver] = [0; 3].map(|_| older.recv_deliver());
            older.ack(&second_deliver);
            sender.expect_sent(second, user, outcome::DELIVERED);

            let (mut newer, login_ok) = Client::login_with(gateway, &Login::of(user));
            assert_eq!(login_ok.pending, 2);
            older.expect_bye(code::REPLACED);
            for old in [first_deliver, third_deliver] {
                let again = newer.recv_deliver();
                assert_eq!(again, Frame { flags: flag::ACK | flag::AGAIN, ..old });
                newer.ack(&again);
            }
            sender.expect_sent(first, user, outcome::DELIVERED);
            sender.expect_sent(third, user, outcome::DELIVERED);
            newer.send_barrier(&mut sender, user + 100);
            sender.ping();
            newer.ping();
        }
    });
}

#[test]
fn no_name_and_default_are_the_same_device() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut unnamed = login_device(gateway, 1, "");
        let mut default = login_device(gateway, 1, "default");
        unnamed.expect_bye(code::REPLACED);
        let mut unnamed = login_device(gateway, 1, "");
        default.expect_bye(code::REPLACED);
        unnamed.ping();
    });
}

#[test]
fn the_same_device_name_of_two_users_are_two_devices() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut first = login_device(gateway, 1, "phone");
        let mut second = login_device(gateway, 2, "phone");
        let mut other_case = login_device(gateway, 1, "Phone");
        for client in [&mut first, &mut second, &mut other_case] {
            client.ping();
        }
    });
}

#[test]
fn a_device_that_logs_in_over_and_over_leaves_one_session() {
    const LOGINS: usize = 50;
    with_each_gateway(SHARD_COUNTS, &[], |gateway| {
        let mut clients: Vec<Client> = (0..LOGINS).map(|_| Client::connect(gateway)).collect();
        for client in &mut clients {
            client.write(&Login::of(5).frame());
        }
        // Which of them is the last one is the server's to say: it is the one that stays.
        let mut replaced = 0;
        let mut survivors = Vec::new();
        let mut marker = Client::login(gateway, 6);
        for client in &mut clients {
            LoginOk::parse(&client.recv());
        }
        gateway.wait_for_metrics("all but one replaced", |metrics| {
            metrics.closed(reason_label::REPLACED) == LOGINS as u64 - 1
        });
        marker.send(5, 0, b"who is left?");
        for mut client in clients {
            let next = client.recv();
            if next.kind == wire::kind::BYE {
                assert_eq!(next.aux, code::REPLACED);
                client.expect_closed();
                replaced += 1;
            } else {
                assert_eq!(next.body, b"who is left?");
                survivors.push(client);
            }
        }
        assert_eq!((replaced, survivors.len()), (LOGINS - 1, 1));
        survivors[0].ping();
    });
}

#[test]
fn a_user_may_have_only_so_many_devices() {
    with_each_gateway(ONE_AND_MANY, &["--devices-max", "2"], |gateway| {
        let mut bystanders = Bystanders::new(gateway);
        let mut phone = login_device(gateway, 1, "phone");
        let mut desk = login_device(gateway, 1, "desk");
        let mut third = Client::connect(gateway);
        third.write(&Login::of(1).device("tablet").frame());
        third.expect_bye(code::OVERLOADED);
        phone.ping();
        desk.ping();
        gateway.wait_for_metrics("one hit of the limit", |metrics| {
            metrics.limit_hits(limit_label::DEVICES) == 1 && metrics.closed(reason_label::OVERLOADED) == 1
        });
        // A device that is there already takes no further place.
        let mut phone_again = login_device(gateway, 1, "phone");
        phone.expect_bye(code::REPLACED);
        phone_again.ping();
        // A place that is left is free again.
        desk.write(&wire::logout());
        desk.expect_closed();
        gateway.wait_for_metrics("the desk is gone", |metrics| metrics.closed(reason_label::LOGOUT) == 1);
        let mut tablet = login_device(gateway, 1, "tablet");
        tablet.ping();
        bystanders.talk();
    });
}

#[test]
fn the_api_lists_the_devices_that_are_left() {
    with_gateway(2, &[], |gateway| {
        let _phone = login_device(gateway, 1, "phone");
        let desk = login_device(gateway, 1, "desk");
        let devices = || {
            let user = gateway.get("/v1/users/1").json();
            let sessions = user[crate::support::names::json::DEVICES].as_array().expect("a list").clone();
            let names = sessions
                .iter()
                .map(|session| session[crate::support::names::json::DEVICE].as_str().expect("a name").to_owned());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        assert_eq!(devices(), ["desk", "phone"]);
        drop(desk);
        wait_for("one device", || (devices() == ["phone"]).then_some(()));
        gateway.wait_for_metrics("one connection", |metrics| metrics.sum(metric::OPEN, &[]) == 1);
    });
}
