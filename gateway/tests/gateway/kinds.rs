//! Every frame kind but the delivery of messages: PING, the kinds this gateway does not serve, and the kinds nobody
//! knows.

use crate::support::ONE_AND_MANY;
use crate::support::client::Client;
use crate::support::gateway::{with_each_gateway, with_gateway};
use crate::support::wire::{self, Frame, Login, code, kind};

#[test]
fn pong_echoes_aux() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let numbers = [0, 1, 0xff, 0x100, 0x1234, u16::MAX];
        for aux in numbers {
            client.write(&wire::ping(aux));
            let expected = Frame { kind: kind::PONG, aux, ..Frame::default() };
            assert_eq!(client.recv(), expected);
        }
        let segment: Vec<u8> = numbers.iter().flat_map(|aux| wire::ping(*aux).encode()).collect();
        client.write_bytes(&segment);
        for aux in numbers {
            assert_eq!(client.recv_kind(kind::PONG).aux, aux);
        }
    });
}

#[test]
fn kinds_that_are_not_served_say_so_and_the_connection_goes_on() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut peer = Client::login(gateway, 2);
        // Groups that are kept need a store.
        let long = [kind::GROUP_SEND, kind::CALL, kind::GROUP_JOIN, kind::GROUP_LEAVE, kind::CLAIM, kind::MARK];
        for (id, other) in (50..).zip(long) {
            let body = b"a body".to_vec();
            client.write(&Frame { kind: other, id, peer: 77, aux: 3, body, ..Frame::default() });
            client.expect_error(code::UNSUPPORTED, id, 77);
        }
        client.write(&Frame { kind: kind::SYNC, body: vec![0x08, 1], ..Frame::default() });
        client.expect_error(code::UNSUPPORTED, 0, 0);
        client.exchange(&mut peer, 2, b"the connection goes on");
    });
}

#[test]
fn with_open_authentication_a_renewal_is_confirmed_and_changes_nothing() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let (mut client, login_ok) = Client::login_with(gateway, &Login::of(1).heartbeat_secs(60));
        assert_eq!(login_ok.expires_ms, 0);
        for token in ["", "whatever"] {
            client.write(&Login::of(1).token(token).renew_frame());
            let renewed = client.expect_login_ok();
            assert_eq!(
                (renewed.session, renewed.shard, renewed.heartbeat_secs, renewed.expires_ms),
                (login_ok.session, login_ok.shard, 60, 0)
            );
        }
        client.write(&Login::of(2).renew_frame());
        assert_eq!(client.recv_error_text(code::BAD_CREDENTIALS), "the token is another user's");
        for body in [vec![0xff], Login { version: 2, ..Login::of(1) }.body()] {
            client.write(&Frame { kind: kind::RENEW, body, ..Frame::default() });
            client.expect_error(code::BAD_REQUEST, 0, 0);
        }
        client.ping();
        // Before LOGIN it is no way in.
        let mut stranger = Client::connect(gateway);
        stranger.write(&Login::of(1).renew_frame());
        stranger.expect_bye(code::NOT_LOGGED_IN);
    });
}

#[test]
fn unknown_kinds_are_skipped_as_a_whole_with_an_error() {
    with_gateway(2, &[], |gateway| {
        let mut client = Client::login(gateway, 1);
        let mut peer = Client::login(gateway, 2);
        let from_clients = kind::LOGIN..=kind::LOGOUT;
        let known = |other: &u8| from_clients.contains(other);
        let unknown = (0..=u8::MAX).filter(|other| !known(other));
        for other in unknown {
            // A body that is itself a PING: it must not be read as a frame.
            let body = wire::ping(666).encode();
            let mut bytes = Frame { kind: kind::SEND, body, ..Frame::default() }.encode();
            bytes[4] = other;
            client.write_bytes(&bytes);
            client.expect_error(code::UNKNOWN_KIND, 0, 0);
        }
        // Of a kind nobody knows, the header is only the 8 bytes all kinds share.
        client.write_bytes(&[0, 0, 0, 8, 0x70, 0, 0, 0]);
        client.expect_error(code::UNKNOWN_KIND, 0, 0);
        client.exchange(&mut peer, 2, b"the connection goes on");
    });
}
