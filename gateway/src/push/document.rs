//! The OpenAPI document of the API of pushes.

/// The document.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::super::api::{BODY_BYTES_MAX, LINES_MAX, routes};
    use super::super::request::{TIMEOUT_MS_MAX, USERS_MAX};
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<(&str, &str)> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| (&**path, &**method)))
            .collect();
        let routes = routes();
        let served: BTreeSet<(&str, &str)> = routes.listed().iter().map(|route| (route.path, route.method)).collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn the_document_tells_the_limits_that_hold() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let push = &document["components"]["schemas"]["Push"]["properties"];
        assert_eq!(push["timeout_ms"]["maximum"], TIMEOUT_MS_MAX);
        let users = &document["components"]["schemas"]["ToUsers"]["properties"]["users"];
        assert_eq!(users["maxItems"], USERS_MAX);
        let batch = document["paths"]["/v1/push/batch"]["post"]["description"].as_str().unwrap();
        let told = format!("At most {LINES_MAX} lines and {BODY_BYTES_MAX} bytes");
        assert!(batch.contains(&told), "{batch}");
    }
}
