//! The configuration file: TOML with the keys of [`super::settings::SETTINGS`] and no others.

use super::ConfigError;
use super::settings::Settings;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// A configuration file is a few kilobytes; a larger one is a mistake, such as the name of another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Its name as it was given.
    pub path: PathBuf,
    /// The settings in it.
    pub settings: Settings,
    /// The line of each key, from 1.
    pub lines: HashMap<String, usize>,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, has an unknown key or a value of the wrong type. The message names the file, and the line where
    /// there is one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error: String| ConfigError::File { path: path.to_owned(), error };
        let meta = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
        if meta.len() > FILE_BYTES_MAX {
            return Err(unreadable(format!(
                "it has {} bytes; a configuration has {FILE_BYTES_MAX} at most",
                meta.len()
            )));
        }
        let bytes = fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let text =
            String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8 text, so it is no TOML".to_owned()))?;
        Self::parse(path, &text)
    }

    /// Reads the text of a file called `path`.
    ///
    /// # Errors
    /// As [`ConfigFile::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let fault = |error: toml::de::Error| ConfigError::Line {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_at(text, &span)),
            text: error.span().map_or("", |span| line_text(text, &span)).to_owned(),
            error: error.message().to_owned(),
        };
        let settings = toml::from_str(text).map_err(fault)?;
        let table = DeTable::parse(text).map_err(fault)?;
        let lines = table.get_ref().keys().map(|key| (key.get_ref().to_string(), line_at(text, &key.span())));
        Ok(ConfigFile { path: path.to_owned(), settings, lines: lines.collect() })
    }
}

fn line_at(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn line_text<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
    text.lines().nth(line_at(text, span) - 1).unwrap_or("").trim()
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
