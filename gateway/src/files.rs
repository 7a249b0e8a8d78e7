//! Files that somebody names, read within a bound.

use crate::size::Size;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Reads a file that may turn out to be a device without an end. A pipe within the bound is fine.
///
/// # Errors
/// When it cannot be read, or is longer than `bytes_max`, which `what` never is: the message says so and does not name
/// the file.
pub(crate) fn read_bounded(path: &Path, bytes_max: u64, what: &str) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it is longer than {}, which {what} never is", Size(bytes_max)));
    }
    Ok(bytes)
}
