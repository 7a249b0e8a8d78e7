//! The router's API against its own document, with made-up requests of all kinds.

use crate::http_support::{Nodes, Router, record};
use crate::support::redis_cluster::RedisCluster;
use crate::support::schemathesis::assert_conforms;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use trunkline_router::membership::NodeRecord;

/// A node as far as a router asks it: it ends one session of everybody. Serves until the end of the test's process.
fn node() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let head =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).count();
            assert!(head > 0);
            let body = "{\"kicked\":1}";
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
            // A router that does not wait any more is none of its business.
            let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    address
}

#[test]
fn the_router_is_as_its_document_says() {
    let cluster = RedisCluster::start();
    let nodes = Nodes::new(&cluster);
    nodes.join(&NodeRecord { http: node(), ..record("a") });
    nodes.join(&record("b"));
    let router = Router::start(&cluster.url(), &[]);
    // The preview of a ring with any weight takes seconds where the machine is busy; that of a gateway, of the same
    // code, is bounded.
    // What is passed on is answered by a node, and a gateway is held against the same document.
    let passed_on = "^/v1/(groups/|users/[^/]+/(groups|inbox|devices/))";
    assert_conforms(router.address(), &["--exclude-path", "/v1/ring/preview", "--exclude-path-regex", passed_on]);
    router.finish();
}
