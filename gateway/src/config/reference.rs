//! The reference of all settings in `docs/configuration.md`, made from the table of the settings.

#[path = "../../../router/tests/router/support/generated.rs"]
mod generated;

use super::{DefaultValue, SETTINGS, Setting, Settings};
use clap::{Arg, Args, Command};
use std::fmt::Write;

fn reference() -> String {
    let command = Settings::augment_args(Command::new("gateway"));
    let mut text = String::new();
    let mut section = "";
    for setting in SETTINGS {
        if section != setting.section {
            section = setting.section;
            let _ = write!(text, "### {section}\n\n");
        }
        let argument = command.get_arguments().find(|argument| argument.get_id() == setting.key);
        describe(&mut text, setting, argument.expect("each setting is a flag"));
    }
    text
}

fn describe(text: &mut String, setting: &Setting, argument: &Arg) {
    let value_name = argument.get_value_names().map_or_else(String::new, |names| format!(" {}", names[0]));
    let reload = if setting.reloadable { "; a reload takes it" } else { "" };
    let _ = writeln!(text, "#### {}\n", setting.key);
    let _ = writeln!(text, "`{}{value_name}`, `{}`{reload}. {}\n", setting.flag(), setting.env, default(setting));
    let help: Vec<&str> = setting.help.iter().map(|line| line.trim()).collect();
    let _ = writeln!(text, "{}", help.join(" "));
    let values = argument.get_possible_values();
    // Those of a yes or no say nothing.
    if values.iter().any(|value| value.get_help().is_some()) {
        text.push('\n');
        for value in values {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "- `{}`: {help}", value.get_name());
        }
    }
    text.push('\n');
}

fn default(setting: &Setting) -> String {
    match setting.default {
        DefaultValue::Fixed(value) => format!("Default: `{value}`."),
        DefaultValue::Computed(how) => format!("Default: {how}."),
        DefaultValue::Unset(example) => format!("No default; for example `{example}`."),
    }
}

#[test]
fn the_reference_of_settings_is_the_table_of_settings() {
    generated::assert_documented("configuration.md", "settings", &reference());
}
