//! How long a server that refused a connection wants to be left alone.

use std::io;
use std::time::Duration;

/// After how long a server that refused a connection wants to be asked again, if it has said so.
#[cfg(feature = "ws")]
pub(crate) fn retry_after(error: &io::Error) -> Option<Duration> {
    error.get_ref()?.downcast_ref::<crate::UpgradeRefused>()?.retry_after
}

/// Without HTTP nobody says so.
#[cfg(not(feature = "ws"))]
pub(crate) fn retry_after(_error: &io::Error) -> Option<Duration> {
    None
}
