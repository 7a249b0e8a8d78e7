//! Configurations as text: the commented default, and the one in force. Both are TOML that is accepted as it stands,
//! but for the login of Redis, which is shown to nobody.

use super::{Config, DefaultValue, Host, Origin, SETTINGS, Settings, Sources};
use std::fmt::Write;
use trunkline_router::redis::RedisUrl;

/// Widest line of comments.
const WIDTH: usize = 100;

/// The default configuration with every setting explained. What is computed or has no default is commented out, with
/// this host's value.
pub fn default_config(host: &Host) -> String {
    let here = Config::resolve(Sources::default(), host).map(|config| config.effective).unwrap_or_default();
    let here = to_table(&here);
    let mut text = String::from("# Configuration of the Trunkline gateway: gateway --config FILE\n");
    text.push_str("# Flags and TRUNKLINE_ environment variables of the same names override it.\n");
    text.push_str("# A change of a setting that is not called reloadable needs a restart, and SIGHUP says so.\n");
    let mut section = "";
    for setting in SETTINGS {
        if section != setting.section {
            section = setting.section;
            let _ = write!(text, "\n# ---- {section} ----\n");
        }
        text.push('\n');
        for line in setting.help {
            wrap(&mut text, line.trim());
        }
        if setting.reloadable {
            wrap(&mut text, "Reloadable: SIGHUP applies a change to a running node.");
        }
        let _ = match setting.default {
            DefaultValue::Fixed(value) => writeln!(text, "{} = {value}", setting.key),
            DefaultValue::Computed(how) => {
                wrap(&mut text, &format!("Default: {how}. On this machine:"));
                let value = here.get(setting.key).map_or_else(|| "…".to_owned(), ToString::to_string);
                writeln!(text, "# {} = {value}", setting.key)
            }
            DefaultValue::Unset(example) => writeln!(text, "# {} = {example}", setting.key),
        };
    }
    text
}

impl Config {
    /// Every setting with the value in force and where it comes from.
    pub fn effective_text(&self) -> String {
        let table = to_table(&self.effective);
        let mut text = String::new();
        for setting in SETTINGS {
            let Some(value) = table.get(setting.key) else { continue };
            let mut line = format!("{} = {value}", setting.key);
            if setting.key == "redis" && self.effective.redis.as_ref().is_some_and(RedisUrl::has_login) {
                line.push_str(" # without user and password, which are not shown");
            }
            // Writing to a String cannot fail.
            let _ = match self.origin(setting.key) {
                Origin::Default => writeln!(text, "{line}"),
                origin => writeln!(text, "{line:<48} # {origin}"),
            };
        }
        text
    }
}

pub(crate) fn to_table(settings: &Settings) -> toml::Table {
    toml::Table::try_from(settings).expect("settings are numbers, texts and lists, all of which TOML has")
}

fn wrap(text: &mut String, paragraph: &str) {
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        if column + 1 + word.len() > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            text.push('#');
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.len();
    }
    text.push('\n');
}
