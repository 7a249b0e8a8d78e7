//! The configuration file: TOML with the keys of [`super::settings::SETTINGS`] and no others.

use super::names::nearest_key;
use super::settings::Settings;
use super::{ConfigError, SETTINGS, read_bounded};
use serde::Deserialize;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};
use trunkline_router::redis::without_login;

/// A configuration file is a few kilobytes; a larger one is a mistake, such as the name of another file or of a device.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Its name as it was given.
    pub path: PathBuf,
    /// The settings in it; those that cannot be read are left out.
    pub settings: Settings,
    /// The line of each key, from 1.
    pub lines: HashMap<String, usize>,
    /// What is wrong with it, by line.
    pub faults: Vec<ConfigError>,
    /// Whether it is TOML at all. If not, `settings` lacks what stands after the first mistake.
    pub is_toml: bool,
}

impl ConfigFile {
    /// Reads a file. What is wrong with its text stands in [`ConfigFile::faults`].
    ///
    /// # Errors
    /// When it cannot be read; the message names it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes = read_bounded(path, FILE_BYTES_MAX, "a configuration")?;
        let text = String::from_utf8(bytes).map_err(|_| ConfigError::File {
            path: path.to_owned(),
            error: "it is not UTF-8 text, so it is no TOML".to_owned(),
        })?;
        Ok(Self::look_at(path, &text))
    }

    /// Reads the text of a file called `path`.
    ///
    /// # Errors
    /// When it is no TOML, has an unknown key or a value of the wrong type: all of these. Messages name the file and
    /// the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut file = Self::look_at(path, text);
        let faults = std::mem::take(&mut file.faults);
        ConfigError::unless_none(faults).map(|()| file)
    }

    fn look_at(path: &Path, text: &str) -> Self {
        let fault = |line: usize, error: String| ConfigError::Line {
            path: path.to_owned(),
            line,
            text: shown(line_text(text, line)),
            error: shown(&error),
        };
        let (table, mistakes) = DeTable::parse_recoverable(text);
        let mut faults: Vec<(usize, ConfigError)> = Vec::new();
        let mut add = |line: usize, error: String| {
            // One for a line: what follows from the first says nothing more.
            if faults.iter().all(|(other, _)| *other != line) {
                faults.push((line, fault(line, error)));
            }
        };
        for mistake in &mistakes {
            let line = mistake.span().map_or(1, |span| line_at(text, &span));
            add(line, mistake.message().to_owned());
        }
        let (mut settings, mut lines) = (Settings::default(), HashMap::new());
        let span = table.span();
        for (key, value) in table.into_inner() {
            let (name, line) = (key.get_ref().to_string(), line_at(text, &key.span()));
            lines.insert(name.clone(), line);
            if !SETTINGS.iter().any(|setting| setting.key == name) {
                add(line, unknown(&name, value.get_ref()));
                continue;
            }
            let mut one = DeTable::new();
            one.insert(key, value);
            match Settings::deserialize(Deserializer::from(Spanned::new(span.clone(), one))) {
                Ok(one) => settings = settings.or(one),
                Err(error) => {
                    let line = error.span().map_or(line, |span| line_at(text, &span));
                    add(line, error.message().to_owned());
                }
            }
        }
        faults.sort_by_key(|(line, _)| *line);
        ConfigFile {
            path: path.to_owned(),
            settings,
            lines,
            faults: faults.into_iter().map(|(_, fault)| fault).collect(),
            is_toml: mistakes.is_empty(),
        }
    }
}

fn unknown(name: &str, value: &DeValue<'_>) -> String {
    if matches!(value, DeValue::Table(_)) {
        return format!("there is no section {name}: all settings stand at the top, so leave its line out");
    }
    match nearest_key(name) {
        Some(key) => format!("unknown key `{name}`; did you mean `{key}`?"),
        None => {
            let keys: Vec<String> = SETTINGS.iter().map(|setting| format!("`{}`", setting.key)).collect();
            format!("unknown key `{name}`; the keys are {}", keys.join(", "))
        }
    }
}

/// A text of the file as an error may show it: without the login of Redis.
fn shown(text: &str) -> String {
    let may_hold_login = text.contains("://") || text.trim_start().starts_with("redis");
    if may_hold_login { without_login(text).into_owned() } else { text.to_owned() }
}

fn line_at(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn line_text(text: &str, line: usize) -> &str {
    text.lines().nth(line - 1).unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        ConfigFile::parse(Path::new("some.toml"), text).expect_err(text).to_string()
    }

    fn assert_names(message: &str, parts: &[&str]) {
        for part in parts {
            assert!(message.contains(part), "no {part:?} in: {message}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
        let message = refusal("# one\n\nshards = 2\nno_such_key = 1\n");
        assert_names(&message, &["some.toml", "line 4", "no_such_key", "`shards`", "`listen`", "`mailbox_bytes_max`"]);
    }

    #[test]
    fn every_fault_is_told_with_its_line_and_a_misspelt_key_with_what_was_meant() {
        let message =
            refusal("shard = 2\nhartbeat_secs = 5\nhttp = 1\nLISTEN = []\nshards = \"x\"\nlog-format = \"json\"\n");
        let lines = [
            ("line 1", "did you mean `shards`?"),
            ("line 2", "did you mean `heartbeat_secs`?"),
            ("line 3", "http"),
            ("line 4", "did you mean `listen`?"),
            ("line 5", "u64"),
            ("line 6", "did you mean `log_format`?"),
        ];
        let told: Vec<&str> = message.lines().skip(1).collect();
        assert_eq!(told.len(), lines.len(), "{message}");
        for (line, (at, says)) in told.iter().zip(lines) {
            assert_names(line, &["some.toml", at, says]);
        }
    }

    #[test]
    fn a_login_of_redis_is_not_told() {
        for text in [
            "redis = \"redis-cluster://me:secret@h:1\n",
            "redis = redis-cluster://me:secret@h:1\n",
            "redis = me:secret@h\n",
            "redis = [\"redis-cluster://me:secret@h:1\"]\n",
            "shards = \"redis-cluster://me:secret@h:1\"\n",
            "reddis = \"redis-cluster://me:secret@h:1\"\n",
        ] {
            let message = refusal(text);
            assert!(!message.contains("secret"), "{message}");
            assert_names(&message, &["some.toml", "line 1"]);
        }
    }

    #[test]
    fn every_mistake_of_a_broken_file_is_told() {
        assert_names(&refusal("shards = = 4\nhttp = 5\nnode = \"x\n"), &["line 1", "line 3"]);
    }

    #[test]
    fn a_file_without_an_end_is_refused() {
        let message = ConfigFile::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert_names(&message, &["/dev/zero", "longer than 1MiB"]);
    }

    #[test]
    fn a_section_is_an_unknown_key() {
        assert_names(&refusal("shards = 2\n[limits]\n"), &["some.toml", "line 2", "limits"]);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_key_and_line() {
        for (value, expected) in [
            ("shards = \"many\"", "u64"),
            ("shards = -1", "-1"),
            ("listen = \"127.0.0.1:1\"", "sequence"),
            ("listen = [\"nowhere\"]", "nowhere"),
            ("auth = \"maybe\"", "jwt"),
            ("jwt_hs256_secret_file = \"a=\"", "KID=FILE"),
            ("jwt_issuer = 5", "a list of texts"),
            ("frame_bytes_max = \"a lot\"", "KiB"),
            ("frame_bytes_max = -5", "KiB"),
            ("insecure_open = 1", "bool"),
        ] {
            let key = value.split(' ').next().unwrap();
            assert_names(&refusal(&format!("# one\n{value}\n")), &["some.toml", "line 2", key, expected]);
        }
    }

    #[test]
    fn broken_toml_is_refused_with_its_line() {
        assert_names(&refusal("shards = 1\nshards = = 4\n"), &["some.toml", "line 2"]);
        assert_names(&refusal("shards = 1\nshards = 2\n"), &["some.toml", "line 2", "duplicate"]);
    }

    #[test]
    fn the_line_of_each_key_is_known() {
        let file =
            ConfigFile::parse(Path::new("x"), "# comment\nnode = \"\"\"\nhttp = 1\n\"\"\"\n\"shards\" = 3\n").unwrap();
        assert_eq!(file.lines, HashMap::from([("node".to_owned(), 2), ("shards".to_owned(), 5)]));
        assert_eq!(file.settings.shards, Some(3));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let message = ConfigFile::read(Path::new("/no/such/file")).unwrap_err().to_string();
        assert_names(&message, &["/no/such/file", "No such file"]);
        assert_names(&ConfigFile::read(Path::new("/")).unwrap_err().to_string(), &["/: ", "directory"]);
    }
}
