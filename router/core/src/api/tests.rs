//! The answers for made-up views.

use super::*;
use crate::membership::Membership;
use crate::ring::{Node, Ring};
use serde_json::json;

fn record(name: &str, state: NodeState) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation: 7,
        state,
        weight: 1,
        shards: 4,
        mesh: "127.0.0.1:7790".into(),
        advertise: format!("{name}.example:7700"),
        http: String::new(),
        protocol: 1,
        connections: 10,
        users: 8,
        started_ms: 1,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}

fn picture(records: Vec<NodeRecord>) -> Picture {
    let mut membership = Membership::new(None, 5_000);
    membership.polled(0, records);
    Picture { view: membership.view(), age_ms: 12, degraded: false }
}

fn three() -> Picture {
    picture(["a", "b", "c"].map(|name| record(name, NodeState::Active)).to_vec())
}

fn entry(device: &str, node: &str, incarnation: u64, shard: u32) -> PresenceEntry {
    PresenceEntry {
        device: device.into(),
        node: node.into(),
        incarnation,
        shard,
        session: u64::MAX,
        since_ms: 1_700_000_000_999,
        class: "phone".into(),
        version: 1,
    }
}

/// A user whose home is `node`.
fn user_at(picture: &Picture, node: &str) -> u64 {
    (1..).find(|&user| home(&picture.view, user).unwrap().0.name == node).unwrap()
}

#[test]
fn nodes_show_their_records_and_their_part_of_the_ring() {
    let mut records = three().view.members.clone();
    records.push(record("d", NodeState::Draining));
    let answer = nodes(&picture(records), |name| (name == "b").then_some(true));
    assert_eq!((answer.epoch, answer.points, answer.age_ms), (1, 480, 12));
    let names: Vec<&str> = answer.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    let sum: f64 = answer.nodes.iter().map(|node| node.share).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    assert!(answer.nodes[..3].iter().all(|node| node.in_ring && (0.2..0.5).contains(&node.share)));
    assert!(!answer.nodes[3].in_ring && answer.nodes[3].share == 0.0);
    assert_eq!(answer.nodes.iter().map(|node| node.reachable).collect::<Vec<_>>(), [None, Some(true), None, None]);
    let json = serde_json::to_value(&answer).unwrap();
    assert_eq!(json["digest"].as_str().map(str::len), Some(16));
    assert_eq!(
        (&json["nodes"][0]["lease"], &json["nodes"][0]["advertise"]),
        (&json!("live"), &json!("a.example:7700"))
    );
}

#[test]
fn without_redis_leases_are_assumed() {
    let degraded = Picture { degraded: true, ..three() };
    let answer = nodes(&degraded, |_| None);
    assert!(answer.degraded && answer.nodes.iter().all(|node| node.lease == LeaseState::Assumed));
    assert!(online(&degraded).degraded);
}

#[test]
fn online_is_the_sum_over_the_nodes_and_never_overflows() {
    let answer = online(&three());
    assert_eq!((answer.users, answer.connections, answer.nodes.len()), (24, 30, 3));
    let liars = ["a", "b"].map(|name| NodeRecord { users: u64::MAX, ..record(name, NodeState::Active) });
    assert_eq!(online(&picture(liars.to_vec())).users, u64::MAX);
}

#[test]
fn a_cluster_of_nobody_has_answers_too() {
    let nobody = picture(Vec::new());
    assert_eq!((nodes(&nobody, |_| None).points, online(&nobody).users), (0, 0));
    let answer = user(&nobody, 5, Vec::new());
    assert_eq!((answer.home, answer.shard, answer.online, answer.presence), (None, None, false, Known::Unknown));
    let answer = explain(&nobody, 5, Some(Vec::new()), None).unwrap();
    assert!(answer.path.is_empty() && answer.why.is_none());
    assert!(answer.sentences[0].contains("No node is active"), "{:?}", answer.sentences);
    assert!(explain(&nobody, 5, None, Some("a")).unwrap_err().contains("there are none"));
}

#[test]
fn entries_of_dead_incarnations_do_not_count() {
    let entries = vec![entry("tablet", "a", 7, 1), entry("desk", "b", 6, 1), entry("phone", "gone", 7, 1)];
    let answer = user(&three(), u64::MAX, entries);
    assert!(answer.online);
    assert_eq!(answer.devices.len(), 1);
    let json = serde_json::to_string(&answer).unwrap();
    assert!(
        json.contains("\"user\":\"18446744073709551615\"") && json.contains("\"session\":\"18446744073709551615\""),
        "{json}"
    );
    assert!(json.contains("\"since\":1700000000,") || json.contains("\"since\":1700000000}"), "{json}");
    let answer = user(&three(), 5, vec![entry("desk", "b", 6, 1)]);
    assert_eq!((answer.online, answer.presence), (false, Known::Offline));
}

#[test]
fn users_are_read_with_all_their_digits() {
    let read = |json: &str| serde_json::from_str::<UserId>(json).map(|user| user.0);
    assert_eq!(read("18446744073709551615").unwrap(), u64::MAX);
    assert_eq!(read("\"18446744073709551615\"").unwrap(), u64::MAX);
    assert_eq!(read("9007199254740993").unwrap(), 9_007_199_254_740_993);
    // Whole numbers to JSON Schema, and as exact as a double is up to here.
    for (whole, user) in [("1.0", 1), ("1e3", 1_000), ("9007199254740992.0", 1 << 53)] {
        assert_eq!(read(whole).unwrap(), user);
    }
    for bad in [
        "0",
        "0.0",
        "-1",
        "1.5",
        "9007199254740994.0",
        "1e19",
        "\"\"",
        "\"+5\"",
        "\" 5\"",
        "18446744073709551616",
        "null",
        "true",
        "[1]",
    ] {
        let error = read(bad).unwrap_err().to_string();
        assert!(error.contains("a user is a number from 1 to 18446744073709551615"), "{bad}: {error}");
    }
}

#[test]
fn the_explanation_is_that_of_the_ring() {
    let picture = three();
    let ring = picture.view.ring.as_ref().unwrap();
    let points: Vec<(u32, String)> = ring.points().map(|(point, node)| (point, node.name().to_owned())).collect();
    let mut wrapped = 0;
    for user in 1..2_000 {
        let why = explain(&picture, user, None, None).unwrap().why.unwrap();
        assert_eq!(why.crc32, crc32fast::hash(user.to_string().as_bytes()));
        let owner = points.iter().find(|(point, _)| *point >= why.crc32);
        wrapped += u32::from(owner.is_none());
        assert_eq!(owner.is_none(), why.wraps);
        assert_eq!(owner.unwrap_or(&points[0]), &(why.point, why.node.clone()));
        assert_eq!((why.node.as_str(), why.shard), (ring.owner(user).name(), home_shard(user, 4)));
    }
    assert!(wrapped > 0, "the end of the ring was met");
}

#[test]
fn the_path_leads_over_the_home_to_every_shard_with_sessions() {
    let picture = three();
    let user = user_at(&picture, "a");
    let home_shard = home_shard(user, 4);
    let entries = vec![
        entry("one", "a", 7, home_shard),
        entry("two", "b", 7, 2),
        entry("three", "b", 7, 2),
        entry("dead", "c", 1, 0),
    ];
    let answer = explain(&picture, user, Some(entries), Some("c")).unwrap();
    let hops: Vec<_> = answer.path.iter().map(|hop| (hop.kind, hop.node.as_str(), hop.shard, hop.via)).collect();
    assert_eq!(
        hops,
        [
            (HopKind::Origin, "c", None, None),
            (HopKind::Home, "a", Some(home_shard), Some(Via::Mesh)),
            (HopKind::Delivery, "a", Some(home_shard), Some(Via::Here)),
            (HopKind::Delivery, "b", Some(2), Some(Via::Mesh)),
        ]
    );
    let served: Vec<&str> = answer.path[3].deliveries.iter().map(|delivery| delivery.device.as_str()).collect();
    assert_eq!(served, ["three", "two"]);
    let text = answer.sentences.join("\n");
    for part in ["CRC-32", "home shard of user", "is online", "enters at node c", "over the mesh to the home: node a"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_message_from_the_home_node_needs_no_mesh_and_one_from_nowhere_begins_at_the_home() {
    let picture = three();
    let user = user_at(&picture, "b");
    let from_home = explain(&picture, user, Some(Vec::new()), Some("b")).unwrap();
    assert_eq!(from_home.path.iter().map(|hop| hop.via).collect::<Vec<_>>(), [None, Some(Via::Mailbox)]);
    assert!(from_home.sentences.iter().any(|sentence| sentence.contains("is offline")), "{:?}", from_home.sentences);
    let from_nowhere = explain(&picture, user, None, None).unwrap();
    assert_eq!(from_nowhere.path.iter().map(|hop| (hop.kind, hop.via)).collect::<Vec<_>>(), [(HopKind::Home, None)]);
    assert!(from_nowhere.sentences.iter().any(|sentence| sentence.contains("does not answer")));
    let error = explain(&picture, user, None, Some("x")).unwrap_err();
    assert!(error.contains("from=x") && error.contains("a, b, c"), "{error}");
}

fn request(json: serde_json::Value) -> PreviewRequest {
    serde_json::from_value(json).unwrap()
}

fn refusal(json: serde_json::Value) -> String {
    preview(&three().view, false, &request(json), u32::MAX).unwrap_err().to_string()
}

#[test]
fn a_preview_moves_about_what_the_weights_ask_for() {
    let view = three().view;
    for (change, ideal) in [
        (json!({"add": [{"name": "d"}]}), 0.25),
        (json!({"add": [{"name": "d", "weight": 3}]}), 0.5),
        (json!({"remove": ["a"]}), 1.0 / 3.0),
        (json!({"weights": {"a": 4}}), 4.0 / 6.0 - 1.0 / 3.0),
        (json!({}), 0.0),
    ] {
        let answer = preview(&view, false, &request(change.clone()), u32::MAX).unwrap();
        assert!((answer.ideal_share - ideal).abs() < 1e-9, "{change}: {}", answer.ideal_share);
        // 160 points for each unit of weight: a node's part is exact to about 1 / sqrt(160).
        assert!((answer.moved_share - ideal).abs() <= ideal * 0.3, "{change}: {answer:?}");
        for share in [|node: &PreviewNode| node.share_before, |node: &PreviewNode| node.share_after] {
            assert!((answer.nodes.iter().map(share).sum::<f64>() - 1.0).abs() < 1e-9, "{change}");
        }
    }
}

#[test]
fn a_node_in_the_place_of_another_moves_more_than_its_part() {
    let answer =
        preview(&three().view, false, &request(json!({"add": [{"name": "d"}], "remove": ["a"]})), u32::MAX).unwrap();
    assert!((answer.ideal_share - 1.0 / 3.0).abs() < 1e-9, "{answer:?}");
    // Of all points, old and new, those of two nodes in four are not in both rings.
    assert!((answer.moved_share - 0.5).abs() < 0.1, "{answer:?}");
}

#[test]
fn a_preview_counts_as_the_ring_does() {
    let view = three().view;
    let answer =
        preview(&view, true, &request(json!({"add": [{"name": "d"}], "remove": ["b"], "sample": 5_000})), u32::MAX)
            .unwrap();
    let next = Ring::new(["a", "c", "d"].map(|name| Node::new(name, 1).unwrap()).to_vec()).unwrap();
    assert_eq!(answer.moved_share, view.ring.as_ref().unwrap().preview(&next, 5_000));
    assert!(answer.degraded && answer.sample == 5_000);
    let weights: Vec<_> =
        answer.nodes.iter().map(|node| (node.name.as_str(), node.weight_before, node.weight_after)).collect();
    let expected = [("a", Some(1), Some(1)), ("b", Some(1), None), ("c", Some(1), Some(1)), ("d", None, Some(1))];
    assert_eq!(weights, expected);
}

#[test]
fn from_no_ring_everybody_moves() {
    let answer =
        preview(&picture(Vec::new()).view, false, &request(json!({"add": [{"name": "a"}]})), u32::MAX).unwrap();
    assert_eq!((answer.moved_share, answer.ideal_share), (1.0, 1.0));
}

#[test]
fn a_preview_that_makes_no_sense_says_what_to_correct() {
    for (change, hint) in [
        (json!({"remove": ["x"]}), "not in the ring; those that are: a, b, c"),
        (json!({"weights": {"x": 1}}), "not in the ring"),
        (json!({"add": [{"name": "a"}]}), "in the ring already"),
        (json!({"add": [{"name": "d"}, {"name": "d"}]}), "named twice"),
        (json!({"remove": ["a", "a"]}), "named twice"),
        (json!({"remove": ["a"], "weights": {"a": 2}}), "named twice"),
        (json!({"add": [{"name": "d{e}"}]}), "brace"),
        (json!({"add": [{"name": ""}]}), "not usable"),
        (json!({"add": [{"name": "d", "weight": 0}]}), "weight 0"),
        (json!({"weights": {"a": 65_536}}), "weight 65536"),
        (json!({"weights": {"a": 65_535}}), "scale them down"),
        (json!({"remove": ["a", "b", "c"]}), "keep a node"),
        (json!({"sample": 0}), "within 1 to 1000000"),
        (json!({"sample": 1_000_001}), "within 1 to 1000000"),
    ] {
        let text = refusal(change.clone());
        assert!(text.contains(hint), "{change}: {text}");
    }
}

#[test]
fn who_is_not_found_is_offline_only_where_everybody_could_be_found() {
    let mending = NodeRecord { mending: true, ..record("c", NodeState::Active) };
    let whole = || three().view.members.clone();
    let degraded = Picture { degraded: true, ..three() };
    let half = picture([whole(), vec![NodeRecord { name: "d".into(), ..mending }]].concat());
    for (seen, known) in [
        (three(), Known::Offline),
        (degraded, Known::Unknown),
        (half, Known::Unknown),
        (picture(Vec::new()), Known::Unknown),
    ] {
        assert_eq!(user(&seen, 5, Vec::new()).presence, known);
        let explained = explain(&seen, 5, Some(Vec::new()), None).unwrap();
        let says = explained.sentences.iter().any(|sentence| sentence.contains("is not known"));
        assert_eq!(says, known == Known::Unknown && seen.view.ring.is_some(), "{:?}", explained.sentences);
        // Who is found is online whatever else is missing.
        let found = user(&seen, 5, vec![entry("desk", "a", 7, 1)]);
        assert_eq!(found.presence == Known::Online, !seen.view.members.is_empty());
    }
}

#[test]
fn the_overview_names_what_is_wrong_and_is_a_table_for_people() {
    assert_eq!(overview(&three(), |_| Some(true), None).troubles, Vec::<String>::new());
    let mut records = three().view.members.clone();
    records[0].mending = true;
    records[1].zone = "östlich".into();
    (records[1].protocol_oldest, records[1].protocol) = (1, 2);
    records.push(serde_json::from_value(json!({
        "name": "d", "incarnation": 1, "state": "frozen", "weight": 5, "shards": 1, "mesh": "d:1", "advertise": "d:2",
        "protocol": 1, "connections": 0, "users": 0, "started_ms": 1,
    })).unwrap());
    let seen = Picture { degraded: true, age_ms: 2_340, ..picture(records) };
    let answer = overview(&seen, |name| Some(name != "c"), None);
    assert_eq!((answer.active, answer.users, answer.connections), (3, 24, 30));
    let troubles = answer.troubles.join("\n");
    for part in ["2.3 s ago", "node a is writing", "no link to node c", "node d is frozen"] {
        assert!(troubles.contains(part), "no {part} in {troubles}");
    }
    let page = answer.page();
    let lines: Vec<&str> = page.lines().collect();
    assert!(lines[0].contains("3 of 4 nodes active, 24 users, 30 connections"), "{page}");
    let head = lines.iter().position(|line| line.starts_with("NODE")).unwrap();
    assert_eq!((lines.len() - head, lines[head + 1].starts_with("a     active+mending")), (5, true), "{page}");
    // All columns begin or end at one place, whatever stands in them.
    let end_of_weight = lines[head].find("WEIGHT").unwrap() + "WEIGHT".len();
    for line in &lines[head + 1..] {
        let cells: Vec<char> = line.chars().collect();
        assert!(cells[end_of_weight - 1].is_ascii_digit() && cells[end_of_weight] == ' ', "{page}");
    }
    assert!(page.contains("1-2") && page.contains("östlich"), "{page}");
    assert!(overview(&picture(Vec::new()), |_| None, None).troubles[0].contains("no node is active"));
}
