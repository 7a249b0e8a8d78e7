//! Watching who is online: what is asked, what is told at once, and what is refused. When changes are told is a matter
//! of the simulator.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::scratch::ScratchFile;
use crate::support::signing::encode;
use crate::support::wire::{self, Frame, Login, code, kind};
use crate::support::{ONE_AND_MANY, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use trunkline_proto::prost::Message;
use trunkline_proto::{Presence, UserState, Watch};

const SECRET: &[u8] = b"a secret of the tests, long enough for HS256";

fn watch(kind: u8, users: &[u64], follow: bool) -> Frame {
    Frame { kind, body: Watch { users: users.to_vec(), follow }.encode_to_vec(), ..Frame::default() }
}

/// Reads PRESENCE until all of these users have been told of.
fn told(client: &mut Client, users: &[u64]) -> BTreeMap<u64, UserState> {
    let mut told = BTreeMap::new();
    while !users.iter().all(|user| told.contains_key(user)) {
        let frame = client.recv_kind(kind::PRESENCE);
        let presence = Presence::decode(&frame.body[..]).expect("a PRESENCE");
        told.extend(presence.users.into_iter().map(|state| (state.user, state)));
    }
    told
}

fn online(told: &BTreeMap<u64, UserState>) -> Vec<bool> {
    assert!(told.values().all(|state| !state.unknown), "a node that is alone knows: {told:?}");
    told.values().map(|state| state.online).collect()
}

#[test]
fn a_watcher_is_told_what_is_so_and_then_who_comes_and_nothing_of_who_is_back_soon() {
    with_each_gateway(ONE_AND_MANY, &[], |gateway| {
        let mut here: Vec<Client> = [2, 4].iter().map(|user| Client::login(gateway, *user)).collect();
        let mut watcher = Client::login(gateway, 1);
        watcher.write(&watch(kind::WATCH, &[2, 3, 4, 5, 3], true));
        let states = told(&mut watcher, &[2, 3, 4, 5]);
        assert_eq!(online(&states), [true, false, true, false]);
        assert!(states[&2].since_ms > 0 && states[&3].since_ms == 0, "{states:?}");
        // One comes; another one goes, and is back.
        let phone = Login { device_class: "phone".to_owned(), ..Login::of(3) };
        let (_phone, _) = Client::login_with(gateway, &phone);
        let mut gone = here.pop().expect("user 4");
        gone.write(&wire::logout());
        gone.expect_closed();
        let states = told(&mut watcher, &[3]);
        assert_eq!((states.len(), states[&3].online), (1, true), "{states:?}");
        assert_eq!(states[&3].device_classes, ["phone"]);
        let _back = Client::login(gateway, 4);
        // Asked once, by somebody else; and of who has gone just now nothing is said yet.
        let mut other = Client::login(gateway, 7);
        here[0].write(&wire::logout());
        here[0].expect_closed();
        other.write(&watch(kind::WATCH, &[2, 3, 4, 5, 1], false));
        assert_eq!(online(&told(&mut other, &[1, 2, 3, 4, 5])), [true, true, true, true, false]);
        let gauge = |name: &str| gateway.metrics().sum(name, &[]);
        wait_for("questions for one answer end with it", || (gauge("trunkline_watches") == 4).then_some(()));
        // Of nobody any more.
        watcher.write(&watch(kind::UNWATCH, &[], false));
        let left = || gauge("trunkline_watches") + gauge("trunkline_watched_users");
        wait_for("nobody is watched", || (left() == 0).then_some(()));
        let _fifth = Client::login(gateway, 5);
        watcher.ping();
    });
}

#[test]
fn what_cannot_be_watched_is_refused_as_a_whole() {
    with_gateway(2, &["--watches-per-session-max", "5"], |gateway| {
        let mut client = Client::login(gateway, 1);
        client.write(&watch(kind::WATCH, &[2, 0], true));
        client.expect_error(code::BAD_REQUEST, 0, 0);
        client.write(&Frame { kind: kind::WATCH, body: vec![0xff], ..Frame::default() });
        client.expect_error(code::BAD_REQUEST, 0, 0);
        for too_many in [&[2, 3, 4, 5, 6, 7][..], &[u64::MAX; 1_000]] {
            client.write(&watch(kind::WATCH, too_many, true));
            client.expect_error(code::LIMIT_REACHED, 0, 0);
        }
        assert_eq!(gateway.metrics().limit_hits("watches_per_session"), 2);
        client.write(&watch(kind::WATCH, &[2, 3, 4, 5, 6], true));
        assert_eq!(told(&mut client, &[2, 3, 4, 5, 6]).len(), 5);
    });
    with_gateway(1, &["--watch", "off"], |gateway| {
        let mut client = Client::login(gateway, 1);
        for kind in [kind::WATCH, kind::UNWATCH] {
            client.write(&watch(kind, &[2], true));
            client.expect_error(code::UNSUPPORTED, 0, 0);
        }
        client.ping();
    });
}

#[test]
fn with_tokens_the_claim_says_who_may_be_watched_and_others_look_offline() {
    let secret = ScratchFile::new("hs256", SECRET);
    let token = |user: u64, watch: Value| {
        let mut claims = json!({"sub": user.to_string(), "exp": get_current_timestamp() + 3_600});
        if !watch.is_null() {
            claims["watch"] = watch;
        }
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET))
    };
    let login =
        |gateway: &Gateway, user, watch| Client::login_with(gateway, &Login::of(user).token(&token(user, watch))).0;
    with_gateway(3, &["--auth", "jwt", "--jwt-hs256-secret-file", secret.path()], |gateway| {
        let _here = [2, 3].map(|user| login(gateway, user, Value::Null));
        for (claim, expected) in [
            (json!("all"), [true, true, false]),
            (json!([2]), [true, false, false]),
            (json!(["3", 9]), [false, true, false]),
            (json!("some"), [false, false, false]),
            (Value::Null, [false, false, false]),
        ] {
            let mut client = login(gateway, 1, claim.clone());
            client.write(&watch(kind::WATCH, &[2, 3, 4], true));
            assert_eq!(online(&told(&mut client, &[2, 3, 4])), expected, "{claim}");
            if claim == json!([2]) {
                // Another token is another claim.
                client.write(&Login::of(1).token(&token(1, json!(["3"]))).renew_frame());
                client.expect_login_ok();
                assert_eq!(online(&told(&mut client, &[2, 3])), [false, true]);
            }
        }
    });
}
