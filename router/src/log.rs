//! What a process says, on stderr (the log) and on stdout: never in the way of what it does.
//!
//! | part | what it is |
//! |---|---|
//! | [`Sink`] | a bounded queue before a descriptor, and the thread that writes it; lines are dropped and counted, nobody waits |
//! | `rate.rs` | a bound on the lines of each kind of message, whoever causes them |
//! | `panics.rs` | a panic of any thread or task: a line of the log, a count, and the reason for an orderly end |
//! | `filter.rs` | what may be written for a log filter |
//!
//! Architecture Invariant: a disk that is full, a pipe that is closed and a reader that has stopped cost lines of the
//! log and nothing else. No thread but those of the sinks writes to stdout or stderr once [`init`] was called.

mod filter;
mod panics;
mod rate;
mod sink;

pub use filter::judge_filter;
pub use panics::{panicked, panics};
pub use rate::{BURST, PER_SEC, SUMMARY_PERIOD};
pub use sink::{BYTES_MAX, LINES_MAX, Sink, Stream};

use clap::ValueEnum;
use rate::RateLimit;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// How long an ending process waits for its last lines to be written.
const FLUSH_MAX: Duration = Duration::from_millis(300);
/// The target of what the log says about itself.
const TARGET: &str = "log";
/// The target of lines about changes, see [`crate::http`].
const AUDIT: &str = "audit";

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people, in colour on a terminal.
    Text,
    /// Like text without time and colour, for a log that adds the time itself, such as the journal.
    Plain,
    /// One JSON object for each line.
    Json,
}

/// The log of this process.
struct Log {
    stderr: Sink,
    stdout: Sink,
    format: LogFormat,
    rate: Arc<RateLimit>,
    filter: reload::Handle<EnvFilter, Registry>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Sends the log of this process to stderr and what it says otherwise to stdout, each through a [`Sink`], and reports
/// panics there. What of `filter` cannot be read is left out, so it should have been judged before, see
/// [`judge_filter`].
///
/// # Errors
/// When the system gives no thread.
///
/// # Panics
/// When it is called twice in a process.
pub fn init(filter: &str, format: LogFormat) -> io::Result<()> {
    let rate = Arc::new(RateLimit::new());
    let stderr = Sink::start("log", Stream::Stderr, keeper(rate.clone(), format))?;
    let stdout = Sink::start("stdout", Stream::Stdout, |_| None)?;
    let (filter, handle) = reload::Layer::new(EnvFilter::builder().parse_lossy(filter::of_whole_programs(filter)));
    // The writer takes every line; whatever else fails in there must not be printed by the library, which panics when
    // that fails.
    let lines = tracing_subscriber::fmt::layer().with_writer(LogLines(stderr.clone())).log_internal_errors(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Plain => lines.with_ansi(false).without_time().boxed(),
        LogFormat::Json => lines.json().with_ansi(false).boxed(),
    };
    let log = Log { stderr, stdout, format, rate: rate.clone(), filter: handle };
    assert!(LOG.set(log).is_ok(), "a process has one log");
    panics::install();
    tracing_subscriber::registry().with(filter).with(Limited(rate)).with(lines).init();
    Ok(())
}

/// Logs what this filter lets through from now on.
///
/// # Errors
/// What is wrong with the filter; the log goes on with the one before.
pub fn set_filter(filter: &str) -> Result<(), String> {
    judge_filter(filter)?;
    let Some(log) = LOG.get() else { return Ok(()) };
    log.filter
        .reload(EnvFilter::builder().parse_lossy(filter::of_whole_programs(filter)))
        .map_err(|error| error.to_string())
}

/// Writes to stdout, as far as somebody takes it.
pub fn say(text: &str) {
    match LOG.get() {
        Some(log) => log.stdout.put(text.as_bytes()),
        None => drop(Stream::Stdout.write_all(text.as_bytes())),
    }
}

/// Writes the sentence with which a command fails to stderr, as far as somebody takes it.
pub fn fail(command: &str, message: &str) {
    let text = format!("{command}: {message}\n");
    match LOG.get() {
        Some(log) => log.stderr.put(text.as_bytes()),
        None => drop(Stream::Stderr.write_all(text.as_bytes())),
    }
}

/// Has the last lines written, as far as that goes within a moment. To be called when the process is about to end.
pub fn flush() {
    if let Some(log) = LOG.get() {
        for summary in log.rate.take_summaries(true) {
            log.stderr.put(&log.format.line(summary.level, summary.target, &summary.to_string()));
        }
        log.stdout.flush(FLUSH_MAX / 3);
        log.stderr.flush(FLUSH_MAX);
    }
}

/// A counter of the log, for `/metrics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCounter {
    /// Name of the metric.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// The label `reason`, where the metric has one.
    pub reason: Option<&'static str>,
    /// Its value.
    pub value: u64,
}

/// Every counter of the log; those of a name follow each other.
#[must_use]
pub fn counters() -> [LogCounter; 4] {
    let (mut rate, mut full, mut failed) = (0, 0, 0);
    if let Some(log) = LOG.get() {
        rate = log.rate.suppressed();
        full = log.stderr.full() + log.stdout.full();
        failed = log.stderr.failed() + log.stdout.failed();
    }
    let dropped = |reason, value| LogCounter {
        name: "trunkline_log_lines_dropped_total",
        help: "Lines of stderr and stdout that were not written: rate (too many of one kind), full (nobody took them \
               in time), error (the write failed).",
        reason: Some(reason),
        value,
    };
    [
        dropped("rate", rate),
        dropped("full", full),
        dropped("error", failed),
        LogCounter {
            name: "trunkline_panics_total",
            help: "Panics of any thread or task. Each ends the process in an orderly way, with status 1.",
            reason: None,
            value: panics(),
        },
    ]
}

/// What the thread of the log does when it has written everything: it tells of lines that were left out or lost.
fn keeper(rate: Arc<RateLimit>, format: LogFormat) -> impl FnMut(&Sink) -> Option<Duration> + Send + 'static {
    let mut told = 0;
    move |sink| {
        for summary in rate.take_summaries(false) {
            sink.put(&format.line(summary.level, summary.target, &summary.to_string()));
        }
        let lost = sink.full() + sink.failed();
        // While nothing can be written this would be one more line lost, for ever.
        if lost > told && sink.works() {
            let text =
                format!("{} lines before this one were lost: they could not be written in time or at all", lost - told);
            told = lost;
            sink.put(&format.line(Level::WARN, TARGET, &text));
        }
        rate.has_untold().then_some(SUMMARY_PERIOD)
    }
}

impl fmt::Display for rate::Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} more lines of one kind were left out, the first of them: {}", self.lines, self.example)
    }
}

impl LogFormat {
    /// A line of the log that does not come from an event.
    fn line(self, level: Level, target: &str, message: &str) -> Vec<u8> {
        let mut time = String::new();
        // Writing to a String cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let line = match self {
            LogFormat::Text => format!("{time} {level:>5} {target}: {message}\n"),
            LogFormat::Plain => format!("{level:>5} {target}: {message}\n"),
            LogFormat::Json => {
                let fields = serde_json::json!({ "message": message });
                let line = serde_json::json!({
                    "timestamp": time, "level": level.as_str(), "fields": fields, "target": target
                });
                format!("{line}\n")
            }
        };
        line.into_bytes()
    }
}

/// The filter of [`RateLimit`].
struct Limited(Arc<RateLimit>);

impl<S: Subscriber> Layer<S> for Limited {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // Each change that somebody asked for with the right to do so has its line. Strangers cause warnings there.
        let is_audit = event.metadata().target() == AUDIT && *event.metadata().level() == Level::INFO;
        let allowed = is_audit || self.0.allows(event);
        if !allowed && let Some(log) = LOG.get() {
            // So that it looks at the clock again, and tells of this line when it is time.
            log.stderr.wake();
        }
        allowed
    }
}

/// Takes each event as one line.
struct LogLines(Sink);

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine(&self.0)
    }
}

struct LogLine<'a>(&'a Sink);

impl Write for LogLine<'_> {
    /// The library hands over an event as a whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(&one_line(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a stranger has made up must not look like a line of its own.
fn one_line(line: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let (body, end) = match line.strip_suffix(b"\n") {
        Some(body) => (body, "\n"),
        None => (line, ""),
    };
    if !body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return line.into();
    }
    let mut escaped = Vec::with_capacity(line.len() + 16);
    for byte in body {
        match byte {
            b'\n' => escaped.extend_from_slice(b"\\n"),
            b'\r' => escaped.extend_from_slice(b"\\r"),
            byte => escaped.push(*byte),
        }
    }
    escaped.extend_from_slice(end.as_bytes());
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        assert_eq!(&*one_line(b"plain\n"), b"plain\n");
        assert_eq!(&*one_line(b"a\nWARN forged\r\n"), b"a\\nWARN forged\\r\n");
        assert_eq!(&*one_line(b""), b"");
    }

    #[test]
    fn a_line_of_its_own_has_the_form_of_the_others() {
        let text = |format: LogFormat| String::from_utf8(format.line(Level::WARN, "log", "two \"words\"")).unwrap();
        assert_eq!(text(LogFormat::Plain), " WARN log: two \"words\"\n");
        assert!(text(LogFormat::Text).ends_with("Z  WARN log: two \"words\"\n"));
        let json: serde_json::Value = serde_json::from_str(&text(LogFormat::Json)).unwrap();
        assert_eq!((&json["level"], &json["fields"]["message"]), (&"WARN".into(), &"two \"words\"".into()));
    }

    #[test]
    fn counters_of_one_name_follow_each_other() {
        let names = counters().map(|counter| counter.name);
        let mut distinct = names.to_vec();
        distinct.dedup();
        assert_eq!(distinct.len(), 2, "{names:?}");
    }
}
