//! A panic of any thread or task is a line of the log, a count, and the reason for an orderly end.

use super::{LOG, Stream};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;
use tracing::Level;

/// How long a panicking thread waits for its last words to be written: where a second panic follows, the process is
/// gone at once.
const LAST_WORDS: Duration = Duration::from_millis(100);

static PANICS: AtomicU64 = AtomicU64::new(0);
static PANICKED: Notify = Notify::const_new();

/// Panics since the start.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Acquire)
}

/// Waits for a panic; returns at once when there was one. For one waiter.
pub async fn panicked() {
    while panics() == 0 {
        PANICKED.notified().await;
    }
}

pub(super) fn install() {
    std::panic::set_hook(Box::new(report));
}

/// Runs in the thread that panics, in whatever state that is: it takes no lock of this project, calls nothing of the
/// log's library, and nothing in here panics.
fn report(info: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::AcqRel);
    let thread = thread::current();
    let mut text = format!("thread '{}' panicked", thread.name().unwrap_or("without a name"));
    if let Some(location) = info.location() {
        text.push_str(&format!(" at {location}"));
    }
    text.push_str(": ");
    text.push_str(info.payload_as_str().unwrap_or("no message"));
    // Only with RUST_BACKTRACE=1, as everywhere.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text.push_str(&format!("\n{trace}"));
    }
    match LOG.get() {
        Some(log) => {
            log.stderr.put(&log.format.line(Level::ERROR, "panic", &text));
            log.stderr.flush(LAST_WORDS);
        }
        None => drop(Stream::Stderr.write_all(format!("{text}\n").as_bytes())),
    }
    PANICKED.notify_one();
}
