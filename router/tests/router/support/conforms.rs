//! An answer of the HTTP API against its OpenAPI document, as far as the documents of this project go.

use serde_json::Value;

/// Fails unless `value` is as the schema says and has no field that is not in it.
pub(crate) fn assert_conforms(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return assert_conforms(document, &document["components"]["schemas"][name], value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let chosen = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null()).expect(at);
        return assert_conforms(document, chosen, value, at);
    }
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: type {other}"),
    };
    let fits = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        other => panic!("{at}: {other}"),
    };
    assert!(fits, "{at}: {value} is not of type {}", schema["type"]);
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value} is not one of {allowed:?}");
    }
    if let (Some(number), Some(maximum)) = (value.as_f64(), schema["maximum"].as_f64()) {
        assert!(number <= maximum, "{at}: {value} is above {maximum}");
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        assert_conforms(document, &schema["items"], value, &format!("{at}[{index}]"));
    }
    if let Some(fields) = value.as_object() {
        for (name, value) in fields {
            let described = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
            assert!(described.is_object(), "{at}.{name} is not in the document");
            assert_conforms(document, described, value, &format!("{at}.{name}"));
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at} lacks {name}");
        }
    }
}
