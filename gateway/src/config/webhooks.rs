//! Webhooks: from the settings to who is told of what. In the file a webhook is a text or a table `[[webhook]]`; a
//! table becomes the text that `--webhook` takes, so that there is one way in which a webhook is judged and shown.

use super::resolve::{Judge, known};
use super::store::store_kind;
use super::tables::{AsText, texts};
use super::values::StoreKind;
use super::{Config, ConfigError, Settings};
use crate::events::{WEBHOOKS_MAX, WebhookSpec, shown};
use crate::limits::Limits;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess};
use serde::{Deserialize, Serialize, Serializer};
use std::path::PathBuf;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Bytes that may wait, by default at most, and at least.
pub(super) const WEBHOOK_BYTES: u64 = 64 * MIB;
pub(super) const WEBHOOK_BYTES_LEAST: u64 = MIB;

/// Who is told of what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhooksConfig {
    /// The webhooks, at least one.
    pub specs: Arc<[WebhookSpec]>,
    /// Where events are kept; `None` for memory alone.
    pub folder: Option<PathBuf>,
    /// They are kept in the Redis Cluster of the nodes, as messages are; not if there is a folder.
    pub in_redis: bool,
}

/// Judges them; `None` for a node without.
pub(super) fn webhooks(all: &Settings, judge: &Judge) -> Result<Option<WebhooksConfig>, ConfigError> {
    let texts = all.webhook.clone().unwrap_or_default();
    let mut specs: Vec<WebhookSpec> = Vec::new();
    for text in &texts {
        let named = || format!("{:?}", shown(text));
        let spec = match text.parse::<WebhookSpec>() {
            Ok(spec) => spec,
            Err(error) => return judge.refuse("webhook", named(), error),
        };
        if specs.iter().any(|other| other.target == spec.target) {
            return judge.refuse("webhook", named(), "this URL is there twice: put all its events into one webhook");
        }
        specs.push(spec);
    }
    if specs.len() > WEBHOOKS_MAX {
        return judge.refuse("webhook", specs.len(), format!("at most {WEBHOOKS_MAX}"));
    }
    let folder = all.events_dir.clone().or_else(|| all.data_dir.as_ref().map(|data_dir| data_dir.join("events")));
    if specs.is_empty() {
        return match &all.events_dir {
            Some(folder) => {
                let allowed = "there is no webhook, so nothing would be kept there: give --webhook, or leave it out";
                judge.refuse("events_dir", folder.display(), allowed)
            }
            None => Ok(None),
        };
    }
    let in_redis = folder.is_none() && store_kind(all) == StoreKind::Redis;
    Ok(Some(WebhooksConfig { specs: specs.into(), folder, in_redis }))
}

/// Judges the limit of what waits for webhooks; it stays 0 without any.
pub(super) fn webhook_limits(limits: &mut Limits, all: &Settings, judge: &Judge) -> Result<(), ConfigError> {
    let webhooks = all.webhook.as_ref().map_or(0, Vec::len) as u64;
    if webhooks > 0 {
        let least = WEBHOOK_BYTES_LEAST * webhooks.min(WEBHOOKS_MAX as u64);
        let bytes = judge.size("webhook_bytes_max", known(all.webhook_bytes_max), least..=64 * GIB)?;
        limits.webhook_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        limits.webhooks = webhooks as u32;
    }
    Ok(())
}

impl WebhooksConfig {
    /// Whether events outlive the process.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.folder.is_some() || self.in_redis
    }
}

impl Config {
    /// Reads the secrets of all webhooks.
    ///
    /// # Errors
    /// When one cannot be read or used; the message names the file.
    pub fn check_webhooks(&self) -> Result<(), ConfigError> {
        let specs = self.webhooks.iter().flat_map(|webhooks| webhooks.specs.iter());
        let faults = specs.filter_map(|spec| self.check_secrets("webhook", &spec.secret_file).err());
        ConfigError::unless_none(faults.collect())
    }
}

/// Writes webhooks as they may be shown.
pub(super) fn without_secrets<S: Serializer>(texts: &Option<Vec<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    let texts = texts.as_ref().map(|texts| texts.iter().map(|text| shown(text)).collect::<Vec<_>>());
    texts.serialize(serializer)
}

/// A list of webhooks, each of them a text or a table; one text may stand without its brackets.
pub(super) fn from_tables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    texts::<Table, D>(deserializer)
}

impl AsText for Table {
    const NAME: &'static str = "webhook";

    fn as_text<'de, A: MapAccess<'de>>(table: A) -> Result<String, A::Error> {
        let table = Table::deserialize(MapAccessDeserializer::new(table))?;
        let Table { url, secret_file, events, timeout_ms, batch_max, ca_file } = table;
        let mut text = url;
        let mut add = |key: &str, value: Option<String>| {
            let value = value.filter(|value| !value.is_empty())?;
            text.push_str(&format!(",{key}={value}"));
            value.contains(',').then(|| de::Error::custom(format!("{key} = {value:?}: no comma may stand in it")))
        };
        let faults = [
            add("secret_file", secret_file),
            add("events", Some(events.join(" "))),
            add("timeout_ms", timeout_ms.map(|number| number.to_string())),
            add("batch_max", batch_max.map(|number| number.to_string())),
            add("ca_file", ca_file),
        ];
        faults.into_iter().flatten().next().map_or(Ok(text), Err)
    }
}

/// A table `[[webhook]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    url: String,
    secret_file: Option<String>,
    #[serde(default)]
    events: Vec<String>,
    timeout_ms: Option<u64>,
    batch_max: Option<u64>,
    ca_file: Option<String>,
}

#[cfg(test)]
mod tests {
    use crate::config::testing::resolve;
    use std::path::Path;

    #[test]
    fn a_webhook_as_a_table_is_what_it_is_as_a_text() {
        let table = r#"
            data_dir = "d"
            [[webhook]]
            url = "https://app/hook?token=1"
            secret_file = "hook.key"
            events = ["user.*", "message.stored"]
            timeout_ms = 500
            [[webhook]]
            url = "http://other/"
            secret_file = "b.key"
            events = ["*"]
        "#;
        let config = resolve(table).expect("a configuration");
        let webhooks = config.webhooks.as_ref().expect("webhooks");
        let texts = [
            "https://app/hook?token=1,secret_file=hook.key,events=user.* message.stored,timeout_ms=500",
            "http://other/,secret_file=b.key,events=*",
        ];
        assert_eq!(*webhooks.specs, texts.map(|text| text.parse().expect(text)));
        assert_eq!(webhooks.folder.as_deref(), Some(Path::new("d/events")));
        assert_eq!((config.limits().webhook_bytes_max, config.limits().webhooks), (64 << 20, 2));
        let shown = toml::to_string(config.effective()).expect("TOML");
        assert!(shown.contains("https://app/hook?…,secret_file") && !shown.contains("token"), "{shown}");
        let error = config.check_webhooks().expect_err("no files").to_string();
        assert!(error.contains("hook.key") && error.contains("b.key") && error.contains("webhook"), "{error}");
        let one = resolve(&format!("webhook = \"{}\"\n", texts[1])).expect("a configuration");
        assert_eq!(one.webhooks.map(|webhooks| (webhooks.specs.len(), webhooks.folder)), Some((1, None)));
        let none = resolve("").expect("a configuration");
        assert_eq!((none.webhooks.is_none(), none.limits().webhook_bytes_max), (true, 0));
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let hook = "[[webhook]]\nurl = \"http://h/\"\nsecret_file = \"k\"\nevents = [\"*\"]\n";
        for (text, why) in [
            ("[webhook]\nurl = \"http://h/\"\n".to_owned(), "[[webhook]]"),
            (hook.replace("events", "event"), "unknown field `event`"),
            (hook.replace("url", "URL"), "unknown field `URL`"),
            (hook.replace("\"*\"", "\"users.*\""), "user.online"),
            (hook.replace("\"k\"", "\"k,l\""), "no comma"),
            (hook.replace("secret_file = \"k\"\n", ""), "secret_file=FILE"),
            (format!("{hook}{hook}"), "there twice"),
            (format!("webhook_bytes_max = \"1KiB\"\n{hook}"), "1MiB"),
            ("events_dir = \"e\"\n".to_owned(), "give --webhook"),
        ] {
            let error = resolve(&text).expect_err(&text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
