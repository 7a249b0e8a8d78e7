//! Colours, and the time before a line.

use std::env;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Furthest that the gateway's clock is believed to be off, before or behind: a stamp from further away is not a time.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(400 * 24 * 3_600);

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set (no-color.org) or TERM is dumb
    #[default]
    Auto,
    Always,
    Never,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// A message, beginning with its sender in brackets.
    Message,
    /// A message of one's own has arrived, or is kept.
    Good,
    /// It has not.
    Bad,
    /// Anything that was asked for.
    Plain,
    /// About the program itself.
    Status,
}

/// How lines look.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    colours: bool,
    /// Lines begin with their time, in this zone.
    zone: Option<TimeZone>,
}

impl Style {
    /// For a person in front of a terminal, or for a pipe, where lines are what they are and no more.
    pub(crate) fn new(colour: When, interactive: bool) -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colours = match colour {
            When::Auto => interactive && !is_set("NO_COLOR") && !is_dumb,
            When::Always => true,
            When::Never => false,
        };
        Self { colours, zone: interactive.then(TimeZone::system) }
    }

    /// The line as it is printed; `sent_ms` is when it was sent, in milliseconds since the epoch, where that is known.
    pub(crate) fn line(&self, tone: Tone, text: &str, sent_ms: Option<u64>) -> String {
        let time = self.zone.as_ref().map_or(String::new(), |zone| {
            let now = SystemTime::now();
            self.paint("2", &time(sent_ms.and_then(|ms| believable(ms, now)).unwrap_or(now), now, zone)) + " "
        });
        let painted = match tone {
            Tone::Message => match text.split_once(']') {
                Some((sender, rest)) => self.paint("1;36", &format!("{sender}]")) + rest,
                None => text.to_owned(),
            },
            Tone::Good => self.paint("32", text),
            Tone::Bad => self.paint("31", text),
            Tone::Plain => text.to_owned(),
            Tone::Status => self.paint("33", text),
        };
        time + &painted
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The time of a stamp, unless its clock cannot be right.
fn believable(ms: u64, now: SystemTime) -> Option<SystemTime> {
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
    let off = now.duration_since(at).unwrap_or_else(|later| later.duration());
    (off <= CLOCK_OFF_MAX).then_some(at)
}

/// Hours and minutes, and the day if it is not that of `now`.
fn time(at: SystemTime, now: SystemTime, zone: &TimeZone) -> String {
    let local = |at| Timestamp::try_from(at).map(|at| zone.to_datetime(at));
    match (local(at), local(now)) {
        (Ok(at), Ok(now)) if at.date() == now.date() => at.strftime("%H:%M").to_string(),
        (Ok(at), _) => at.strftime("%Y-%m-%d %H:%M").to_string(),
        // Beyond the calendar.
        (Err(_), _) => "--:--".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(colours: bool) -> Style {
        Style { colours, zone: None }
    }

    #[test]
    fn without_colours_and_zone_a_line_is_its_text() {
        for tone in [Tone::Message, Tone::Good, Tone::Bad, Tone::Plain, Tone::Status] {
            assert_eq!(style(false).line(tone, "[2] hello", Some(0)), "[2] hello");
        }
    }

    #[test]
    fn colours_end_where_they_began_and_leave_the_words_of_others_alone() {
        assert_eq!(style(true).line(Tone::Message, "[2] a ] b", None), "\x1b[1;36m[2]\x1b[0m a ] b");
        assert_eq!(style(true).line(Tone::Bad, "offline", None), "\x1b[31moffline\x1b[0m");
    }

    #[test]
    fn times_are_short_today_and_have_their_day_otherwise() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        let now = at(1_700_000_000);
        assert_eq!(time(now, now, &zone), "00:13");
        assert_eq!(time(at(1_700_000_000 - 14 * 60), now, &zone), "2023-11-14 23:59");
    }

    #[test]
    fn a_stamp_that_is_no_time_is_not_shown_as_one() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(believable(1_700_000_000_000, now), Some(now));
        for ms in [0, 1, u64::MAX, u64::MAX >> 20] {
            assert_eq!(believable(ms, now), None, "{ms}");
        }
    }
}
