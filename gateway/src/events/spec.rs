//! What the configuration says of a webhook.

use crate::services::Target;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use trunkline_core::events::{EventKind, Wants};

/// Longest time for one request, milliseconds.
const TIMEOUT_MS_MAX: u64 = 120_000;
/// Most events of one request, and how many there are by default.
const BATCH_MAX: u64 = 1_000;
const BATCH: usize = 100;

/// One webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookSpec {
    /// Where events are posted to.
    pub target: Target,
    /// File of one or two secrets; both sign.
    pub secret_file: PathBuf,
    /// The types it wants.
    pub wants: Wants,
    /// Time for one request, connecting included, milliseconds.
    pub timeout_ms: u64,
    /// Events of one request at most.
    pub batch_max: usize,
    /// Who signs for the receiver over TLS; without it those whom this system trusts.
    pub ca_file: Option<PathBuf>,
}

impl FromStr for WebhookSpec {
    type Err = String;

    /// `https://app.example.com/hook,secret_file=hook.key,events=user.* message.stored`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (target, options) = receiver(text, "the receiver's URL")?;
        let (mut secret_file, mut wants, mut ca_file) = (None, None, None);
        let (mut timeout_ms, mut batch_max) = (10_000, BATCH);
        for (key, value) in options {
            match key {
                "secret_file" if !value.is_empty() => secret_file = Some(value.into()),
                "events" => {
                    for pattern in value.split_ascii_whitespace() {
                        let of = Wants::of(pattern).ok_or_else(|| {
                            let known: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.text()).collect();
                            format!("events={pattern}: there are {}, and user.* or * for several", known.join(", "))
                        })?;
                        wants = Some(of.or(wants.unwrap_or_default()));
                    }
                }
                "timeout_ms" => timeout_ms = number(key, value, 100, TIMEOUT_MS_MAX)?,
                "batch_max" => batch_max = number(key, value, 1, BATCH_MAX)? as usize,
                "ca_file" if !value.is_empty() => ca_file = Some(value.into()),
                _ => {
                    let known = "secret_file, events, timeout_ms, batch_max, ca_file";
                    return Err(format!("{key:?} is nothing that can be said of a webhook; there are {known}"));
                }
            }
        }
        let secret_file = secret_file.ok_or(
            "a webhook without secret_file=FILE: its receiver could not tell who it hears from; \
             (echo whsec_$(openssl rand -base64 32)) > FILE makes one",
        )?;
        let wants = wants.ok_or("a webhook without events: add events=user.* message.stored, or events=* for all")?;
        judge_ca_file(&target, ca_file.as_ref())?;
        // It is told what it misses, whatever it wants.
        let wants = wants.or(Wants::of(EventKind::Gap.text()).unwrap_or_default());
        Ok(WebhookSpec { target, secret_file, wants, timeout_ms, batch_max, ca_file })
    }
}

/// Reads what is said of a receiver, up to the keys that it may have: its URL, and each key and value behind that.
/// `begins` names the URL in the words of the setting.
pub(crate) fn receiver<'a>(
    text: &'a str,
    begins: &str,
) -> Result<(Target, impl Iterator<Item = (&'a str, &'a str)>), String> {
    let mut parts = text.split(',');
    let url = parts.next().unwrap_or("");
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(format!("it must begin with {begins}: https://HOST[:PORT]/PATH"));
    }
    let target: Target = url.parse().map_err(|error: String| error.replace("server=", "url="))?;
    Ok((target, parts.map(|part| part.split_once('=').unwrap_or((part, "")))))
}

/// Refuses a file of those who sign for a receiver that shows no certificate.
pub(crate) fn judge_ca_file(target: &Target, ca_file: Option<&PathBuf>) -> Result<(), String> {
    match ca_file {
        Some(_) if !target.tls => Err("ca_file= means something for https:// only: leave it out".to_owned()),
        _ => Ok(()),
    }
}

/// A whole number of a range, or what is wrong with it.
pub(crate) fn number(key: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{key}={value}: it must be {least} to {most}")),
    }
}

/// A webhook's text as it may be shown: what stands behind the path of its URL may be a secret, and a login is one.
pub(crate) fn shown(text: &str) -> String {
    let (url, rest) = text.split_once(',').map_or((text, None), |(url, rest)| (url, Some(rest)));
    let url = match url.split_once('?') {
        Some((path, _)) => format!("{path}?…"),
        None => url.to_owned(),
    };
    let (scheme, place) = url.split_once("://").unwrap_or(("", &url));
    let host_end = place.find('/').unwrap_or(place.len());
    let url = match place[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://…@{}", &place[at + 1..]),
        None => url,
    };
    rest.map_or(url.clone(), |rest| format!("{url},{rest}"))
}

impl fmt::Display for WebhookSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.target.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_its_url_its_secret_and_what_it_wants() {
        let text = "https://App.example.com/hook?t=1,secret_file=a.key,events=user.* message.stored,timeout_ms=500";
        let spec: WebhookSpec = text.parse().expect("a webhook");
        assert_eq!((spec.timeout_ms, spec.batch_max, &spec.ca_file), (500, 100, &None));
        assert_eq!(spec.target.to_string(), "https://app.example.com/hook?t=1");
        assert_eq!(spec.to_string(), "https://app.example.com/hook?…");
        assert!(spec.wants.has(EventKind::MessageStored) && spec.wants.has(EventKind::Gap));
        assert!(!spec.wants.has(EventKind::MessageSent));
        assert_eq!(shown(text), text.replace("?t=1", "?…"));
        assert_eq!(shown("http://h/p"), "http://h/p");
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        for (bad, why) in [
            ("app:80/hook", "must begin with the receiver's URL"),
            ("https://me:pw@h/hook,secret_file=k,events=*", "leave it out"),
            ("https://h/hook,events=*", "secret_file=FILE"),
            ("https://h/hook,secret_file=k", "add events="),
            ("https://h/hook,secret_file=k,events=users.*", "user.online"),
            ("https://h/hook,secret_file=k,events=*,timeout_ms=5", "100 to 120000"),
            ("http://h/hook,secret_file=k,events=*,ca_file=x", "https:// only"),
            ("https://h/hook,secret=k", "nothing that can be said of a webhook"),
        ] {
            let error = bad.parse::<WebhookSpec>().expect_err(bad);
            assert!(error.contains(why) && !error.contains("pw@"), "{bad}: {error}");
        }
        for (text, told) in [
            ("https://me:p@w@h/hook?token=x,events=*", "https://…@h/hook?…,events=*"),
            ("https://h/a@b,events=*", "https://h/a@b,events=*"),
        ] {
            assert_eq!(shown(text), told);
        }
    }
}
