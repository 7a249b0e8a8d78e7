//! The gateway's API against its own document, with made-up requests of all kinds.

use crate::push_http::{WITH_PUSHES, push_address};
use crate::support::client::Client;
use crate::support::gateway::with_gateway;
use crate::support::schemathesis::assert_conforms;
use crate::support::scratch::ScratchFolder;

#[test]
fn the_gateway_is_as_its_document_says() {
    let folder = ScratchFolder::new("schemathesis");
    // With a store, so that groups and inboxes are there, and with services.
    let flags = ["--data-dir", folder.path(), "--services-listen", "127.0.0.1:0", "--service", "7:orders"];
    with_gateway(2, &flags, |gateway| {
        // Somebody is there to be found and to be kicked, and a group with members and a message.
        let _clients: Vec<Client> = (1..=3).map(|user| Client::login(gateway, user)).collect();
        for (method, path, body) in [
            ("PUT", "/v1/groups/1", r#"{"join": "api"}"#),
            ("POST", "/v1/groups/1/members", r#"{"users": ["1", "2"]}"#),
            ("POST", "/v1/groups/1/messages", r#"{"from": "1", "id": "1", "payload": "aGk="}"#),
        ] {
            let answer = gateway.request_json(method, path, body);
            assert!(matches!(answer.status, 200 | 201), "{path}: {}", answer.body);
        }
        // A node that drains is not ready, and says so with 503.
        assert_conforms(gateway.http_address(), &["--exclude-path", "/v1/node/drain"]);
        assert_conforms(gateway.http_address(), &["--include-path", "/v1/node/drain"]);
        assert_eq!(gateway.request("DELETE", "/v1/node/drain").status, 200);
    });
}

#[test]
fn the_push_api_is_as_its_document_says() {
    let rates = [["--pushes-per-user-per-sec", "0"], ["--pushes-per-key-per-sec", "0"]];
    with_gateway(2, &[WITH_PUSHES, rates[0], rates[1]].concat(), |gateway| {
        // It does not make lines of JSON, nor frames.
        assert_conforms(
            push_address(gateway),
            &["--exclude-path", "/v1/push/batch", "--exclude-path", "/v1/push/frames"],
        );
    });
}
