//! Which requests become WebSockets: from the settings to the rules.

use super::addresses::forwarding;
use super::resolve::Judge;
use super::{ConfigError, Settings};
use crate::transport::upgrade::Rules;

/// Judges `ws_origin` and `ws_cookie`, and whose word on a client's address is taken.
pub(super) fn upgrade(all: &Settings, judge: &Judge) -> Result<Rules, ConfigError> {
    let origins = all.ws_origin.clone().unwrap_or_default();
    if let Some(origin) = origins.iter().find(|origin| !is_origin(origin)) {
        let allowed = "it must be *, null, or a scheme, a host and no path: https://example.com, http://localhost:8080";
        return judge.refuse("ws_origin", format!("{origin:?}"), allowed);
    }
    let cookie = all.ws_cookie.clone();
    if let Some(name) = &cookie {
        if !is_cookie_name(name) {
            let allowed = "it must be the name of a cookie: letters, digits and !#$%&'*+-.^_`|~";
            return judge.refuse("ws_cookie", format!("{name:?}"), allowed);
        }
        // A page makes its origin null by a frame of its own, so null too is any page.
        if origins.iter().any(|origin| matches!(origin.as_str(), "*" | "null")) {
            let allowed = "with ws_origin * or null any page could act as the user whose cookie the browser sends: \
                           name the origins";
            return judge.refuse("ws_cookie", format!("{name:?}"), allowed);
        }
    }
    Ok(Rules { origins, cookie, forwarding: forwarding(all, judge)?, ..Rules::default() })
}

/// Whether the text is as browsers send it (RFC 6454, section 6.2), or stands for all.
fn is_origin(text: &str) -> bool {
    let host = |rest: &str| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && !"/?#@,".contains(c));
    matches!(text, "*" | "null") || text.split_once("://").is_some_and(|(scheme, rest)| is_scheme(scheme) && host(rest))
}

fn is_scheme(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// A token of RFC 9110, section 5.6.2.
fn is_cookie_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_a_host_and_no_path() {
        for origin in ["*", "null", "https://example.com", "http://localhost:8080", "http://[::1]:1", "capacitor://app"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for text in
            ["", "example.com", "https://", "https://example.com/", "https://a b", "://a", "https://a,https://b"]
        {
            assert!(!is_origin(text), "{text}");
        }
    }

    #[test]
    fn a_cookie_has_a_name_of_tokens() {
        assert!(is_cookie_name("session") && is_cookie_name("__Host-id"));
        for text in ["", "a b", "a=b", "a;b", "ä"] {
            assert!(!is_cookie_name(text), "{text}");
        }
    }
}
