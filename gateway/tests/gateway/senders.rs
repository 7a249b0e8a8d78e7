//! Who may write to whom: the claim `send` of tokens, what it refuses, and what too many or too long claims end in.

use crate::support::client::Client;
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::scratch::ScratchFile;
use crate::support::signing::encode;
use crate::support::wire::{Login, code, flag, outcome};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret of the tests, long enough for HS256";

fn token(user: u64, send: &Value) -> String {
    let mut claims = json!({"sub": user.to_string(), "exp": get_current_timestamp() + 3_600});
    if !send.is_null() {
        claims["send"] = send.clone();
    }
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET))
}

fn login(gateway: &Gateway, user: u64, send: &Value) -> Client {
    Client::login_with(gateway, &Login::of(user).token(&token(user, send))).0
}

#[test]
fn with_tokens_the_claim_says_to_whom_a_session_may_write_and_the_rest_is_refused() {
    let secret = ScratchFile::new("hs256", SECRET);
    let flags = ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path(), "--send", "claim", "--send-users-max", "3"];
    with_gateway(3, &flags, |gateway| {
        let [mut second, mut third] = [2, 3].map(|user| login(gateway, user, &Value::Null));
        let mut refused = 0;
        for (claim, expected) in [
            (json!("*"), [true, true]),
            (json!([2]), [true, false]),
            (json!(["3", 9, 9, 9]), [false, true]),
            (json!("some"), [false, false]),
            (Value::Null, [false, false]),
        ] {
            let mut client = login(gateway, 1, &claim);
            let mut check = |client: &mut Client, expected: [bool; 2]| {
                for ((other, user), may) in [(&mut second, 2), (&mut third, 3)].into_iter().zip(expected) {
                    let id = client.send(user, flag::ACK, b"with ACK");
                    let unacked = client.send(user, 0, b"without");
                    if may {
                        let delivered = other.recv_deliver();
                        assert_eq!((delivered.id, other.recv_deliver().id), (id, unacked), "{claim}");
                        other.ack(&delivered);
                        client.expect_sent(id, user, outcome::DELIVERED);
                    } else {
                        client.expect_sent(id, user, outcome::DENIED);
                        client.expect_error(code::NOT_ALLOWED, unacked, user);
                        other.ping();
                        refused += 2;
                    }
                }
            };
            check(&mut client, expected);
            let mut device = Client::login_with(gateway, &Login::of(1).device("b").token(&token(1, &claim))).0;
            client.exchange(&mut device, 1, b"to another device of one's own");
            // Another token is another claim, and one that is refused leaves what was.
            let other = if claim == json!([2]) { json!(["3"]) } else { json!([2, 3, 4, 5]) };
            client.write(&Login::of(1).token(&token(1, &other)).renew_frame());
            if claim == json!([2]) {
                client.expect_login_ok();
                check(&mut client, [false, true]);
            } else {
                assert!(client.recv_error_text(code::BAD_CREDENTIALS).contains("more users"));
                check(&mut client, expected);
            }
        }
        let mut client = Client::connect(gateway);
        client.write(&Login::of(1).token(&token(1, &json!([2, 3, 4, 5]))).frame());
        assert!(client.recv_bye_text(code::BAD_CREDENTIALS).contains("more users"));
        gateway.wait_for_metrics("what was refused is counted", |metrics| {
            metrics.sum("trunkline_messages_total", &[("outcome", "denied_refused")]) == refused
                && metrics.limit_hits("send_users") == 5
                && metrics.sum("trunkline_tokens_refused_total", &[("reason", "too_many_named")]) == 5
        });
    });
}

#[test]
fn a_claim_for_which_there_is_no_room_is_refused_and_sessions_go_on() {
    let secret = ScratchFile::new("hs256", SECRET);
    let flags =
        ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path(), "--send", "claim", "--send-bytes-max", "128KiB"];
    with_gateway(1, &flags, |gateway| {
        let users = |count: u64| json!((1..=count).collect::<Vec<_>>());
        let long = users(600);
        let room_for = (128 << 10) / (32 + 600 * 8);
        let mut clients: Vec<Client> = (0..room_for).map(|number| login(gateway, 1_000 + number, &long)).collect();
        let mut refused = Client::connect(gateway);
        refused.write(&Login::of(7).token(&token(7, &long)).frame());
        refused.expect_bye(code::OVERLOADED);
        // What needs no room is let in, and what needs more is not had by RENEW either.
        let mut everybody = login(gateway, 7, &json!("*"));
        everybody.write(&Login::of(7).token(&token(7, &long)).renew_frame());
        everybody.expect_error(code::OVERLOADED, 0, 0);
        everybody.send_barrier(&mut clients[0], 1_000);
        clients[0].write(&Login::of(1_000).token(&token(1_000, &users(2))).renew_frame());
        clients[0].expect_login_ok();
        drop(login(gateway, 8, &long));
        assert_eq!(gateway.metrics().limit_hits("send_bytes"), 2);
        drop((clients, everybody));
        gateway.wait_for_metrics("nothing is kept", |metrics| metrics.sum("trunkline_send_claim_bytes", &[]) == 0);
    });
}
