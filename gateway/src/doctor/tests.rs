use super::sample::{LIMITS, config_on, healthy, limits};
use super::*;
use crate::host_tree::tests::Tree;

fn report(tree: &Tree, text: &str, goal: Goal) -> Report {
    let (host, config) = config_on(&tree.root(), text);
    examine(&tree.root(), &host, &config, goal)
}

#[test]
fn the_goal_is_what_was_said_and_else_what_the_configuration_allows() {
    let tree = healthy();
    let of = |profile, connections, text: &str| {
        let (_, config) = config_on(&tree.root(), text);
        let (profile, target) = resolve_goal(Goal { profile, connections }, &config);
        (profile.name(), target)
    };
    assert_eq!(of(None, None, "shards = 2\n"), ("100k", 39_872));
    assert_eq!(of(None, None, "shards = 8\n"), ("100k", 100_000));
    assert_eq!(of(None, Some(200_000), "shards = 1\n"), ("1m", 200_000));
    assert_eq!(of(Some(Profile::M10), None, "shards = 1\n"), ("10m", 10_000_000));
    assert_eq!(of(Some(Profile::M1), Some(5), "shards = 1\n"), ("1m", 5));
}

#[test]
fn the_verdict_names_count_shards_limit_and_the_next() {
    let tree = healthy();
    tree.file(LIMITS, &limits("5000", "unlimited"));
    let text = report(&tree, "shards = 2\n", Goal::default()).to_string();
    let end: Vec<&str> = text.lines().rev().take(2).collect();
    assert!(
        end[1].starts_with(
            "This host will hold about 9,872 connections with 2 shards; what binds first: the hard limit on open \
             files: 2 shards x (5,000"
        ),
        "{}",
        end[1]
    );
    assert!(end[1].contains("Next: memory_max, "), "{}", end[1]);
    assert_eq!(end[0], "Ready for 9,872 connections: 0 failed, 0 to improve.");
    let goal = Goal { connections: Some(10_000), ..Goal::default() };
    let text = report(&tree, "shards = 2\n", goal).to_string();
    assert!(text.ends_with("NOT READY for 10,000 connections: 1 failed, 0 to improve."), "{text}");
}

#[test]
fn the_json_has_stable_names() {
    let value = serde_json::to_value(report(&healthy(), "shards = 2\n", Goal::default())).unwrap();
    let names = |value: &serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut top = names(&value);
    top.sort();
    assert_eq!(
        top,
        [
            "applied",
            "checks",
            "connections_max",
            "memory_max",
            "prediction",
            "profile",
            "profile_diff",
            "ready",
            "shards",
            "target"
        ]
    );
    for (list, fields) in [
        (&value["checks"], vec!["found", "fix", "group", "name", "status", "wanted", "why"]),
        (&value["profile_diff"], vec!["found", "setting", "standing", "target", "wanted", "without"]),
        (&value["prediction"]["terms"], vec!["connections", "how", "limit", "raise"]),
    ] {
        let (mut found, mut fields) = (names(&list[0]), fields);
        found.sort();
        fields.sort();
        assert_eq!(found, fields);
    }
    assert_eq!((&value["ready"], &value["prediction"]["connections"]), (&true.into(), &39_872.into()));
    assert_eq!(value["checks"][0]["status"], "ok");
}
