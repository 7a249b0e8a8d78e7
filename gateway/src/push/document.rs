//! The OpenAPI document of the API of pushes.

/// The document.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

#[cfg(test)]
mod tests {
    use super::super::api::{BODY_BYTES_MAX, LINES_MAX, routes};
    use super::super::broadcasts::ENDED_MAX;
    use super::super::frames::MEDIA_TYPE;
    use super::super::request::{TIMEOUT_MS_DEFAULT, TIMEOUT_MS_MAX, TTL_SECS_MAX, USERS_MAX};
    use super::*;
    use crate::broadcast::CLASSES_MAX;
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
        let schemas = &document["components"]["schemas"];
        for kind in ["Users", "Device", "Group", "Sessions"] {
            let push = &schemas[format!("PushTo{kind}")]["properties"];
            assert_eq!(push["timeout_ms"]["maximum"], TIMEOUT_MS_MAX);
            assert_eq!(push.get("ttl_secs").is_some(), ["Users", "Device"].contains(&kind));
        }
        assert_eq!(schemas["PushToUsers"]["properties"]["ttl_secs"]["maximum"], TTL_SECS_MAX);
        let condition = &schemas["ToWhere"]["properties"]["where"]["properties"];
        assert_eq!(condition["class"]["maxItems"], CLASSES_MAX);
        let unknown = document["paths"]["/v1/pushes/{id}"]["get"]["responses"]["404"]["description"].as_str().unwrap();
        assert!(unknown.contains(&format!("and {ENDED_MAX} others after it")), "{unknown}");
        let users = &document["components"]["schemas"]["ToUsers"]["properties"]["users"];
        assert_eq!(users["maxItems"], USERS_MAX);
        let batch = document["paths"]["/v1/push/batch"]["post"]["description"].as_str().unwrap();
        let told = format!("At most {LINES_MAX} lines and {BODY_BYTES_MAX} bytes");
        assert!(batch.contains(&told), "{batch}");
        let of_frames = &document["paths"]["/v1/push/frames"]["post"];
        let frames = of_frames["description"].as_str().unwrap();
        assert!(frames.contains(&format!("At most {LINES_MAX} frames and {BODY_BYTES_MAX} bytes")), "{frames}");
        let timeout_ms = &of_frames["parameters"][1]["schema"];
        assert_eq!(
            (&timeout_ms["default"], &timeout_ms["maximum"]),
            (&TIMEOUT_MS_DEFAULT.into(), &TIMEOUT_MS_MAX.into())
        );
        assert!(of_frames["requestBody"]["content"][MEDIA_TYPE].is_object());
    }
}
