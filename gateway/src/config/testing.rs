//! What tests of the configuration share.

use super::{Config, ConfigError, ConfigFile, Host, Sources};
use std::path::Path;

/// A host of two cores with 16 GiB.
pub(crate) fn host() -> Host {
    Host { cores: 2, nofile_hard: 20_000, memory_available: 16 << 30, name: "h".to_owned() }
}

/// The configuration that a file with this text alone makes on [`host`].
pub(crate) fn resolve(text: &str) -> Result<Config, ConfigError> {
    let file = ConfigFile::parse(Path::new("some.toml"), text)?;
    Config::resolve(Sources { file: Some(file), ..Sources::default() }, &host())
}
