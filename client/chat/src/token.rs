//! A token in a file, which somebody else keeps fresh.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use trunkline_client::Token;

/// Longest file read; gateways look at tokens of up to 4 KiB.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Reads the token from `file` whenever one is needed.
pub(crate) fn from_file(file: PathBuf) -> Token {
    Token::provider(move || {
        let file = file.clone();
        async move {
            let shown = file.display().to_string();
            let read = tokio::task::spawn_blocking(move || read(&file)).await;
            read.unwrap_or_else(|error| Err(error.to_string())).map_err(|error| format!("{shown}: {error}"))
        }
    })
}

/// The text of a file, without the white space around it.
fn read(file: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(file).map_err(|error| error.to_string())?;
    // Opening a pipe could wait for ever, and it could be read once only.
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut text = String::new();
    let opened = File::open(file).map_err(|error| error.to_string())?;
    opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    let token = text.trim();
    if token.is_empty() { Err("it is empty".into()) } else { Ok(token.to_owned()) }
}
