//! The OpenAPI document: what is this node's own stands in `openapi.json`, and what a router answers too in that of the
//! router.

use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::sync::LazyLock;
use trunkline_router::http::{OPENAPI, RELAYED, Routes};

use super::Node;

/// What is not in the document of the router, or differs.
const OWN: &str = include_str!("openapi.json");
const SCHEMAS: &str = "#/components/schemas/";

/// The document.
pub(super) static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

pub(super) fn document() -> Value {
    let parse = |text: &str| -> Value { serde_json::from_str(text).expect("it was compiled in, and a test reads it") };
    let (mut document, shared) = (parse(OWN), parse(OPENAPI));
    for route in Routes::<Node>::new().reads().listed().iter().chain(&RELAYED) {
        document["paths"][route.path] = shared["paths"][route.path].clone();
    }
    // What a schema of the router refers to is of the router too.
    loop {
        let mut missing = BTreeSet::new();
        references(&document, &mut missing);
        let schemas = as_map(&mut document["components"]["schemas"]);
        missing.retain(|name| !schemas.contains_key(name));
        if missing.is_empty() {
            return document;
        }
        for name in missing {
            let schema = shared["components"]["schemas"][&name].clone();
            schemas.insert(name, schema);
        }
    }
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("a test reads it")
}

/// The names of the schemas that are referred to.
pub(super) fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix(SCHEMAS));
            found.extend(reference.map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}
