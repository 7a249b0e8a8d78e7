//! How things are said on the screen.

use std::time::Duration;

use trunkline_client::{Error, GroupMessage, Message, Outcome, is_live_room, sentence};

use crate::deliver;
use crate::style::Tone;

/// Characters of a message repeated in the report of its fate.
const EXCERPT_CHARS_MAX: usize = 40;

/// What `/help` prints.
pub(crate) const HELP: &str = "\
2;;hello     send hello to user 2
/to 2        send the lines that follow to user 2
hello        send hello to the user of the last /to
//hello      send /hello
/who 2       is user 2 online, and where (without a number: the user of the last /to)
/watch 2 3   say whether users 2 and 3 are online, now and whenever it changes
/unwatch 2   say it no more (without a number: of nobody)
/join 77     join group 77, and make it if need be; from 9223372036854775808 on it is
             a live room, of which nothing is kept
/leave 77    leave it
/g 77 hello  send hello to group 77
/members 77  who is in group 77
/history 77  what was said in group 77
/ping        time of a round trip to the gateway
/help        this list
/quit        leave (or Ctrl-D, or Ctrl-C)";

/// A peer's bytes made safe to print: no control character reaches the terminal, where it could move the cursor, change
/// the title or fake another line, and no invisible character that turns the direction of text.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        let turns_direction = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character == '\t' {
            safe.push(' ');
        } else if character.is_control() || turns_direction {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// One line for a message that has arrived.
pub(crate) fn incoming(message: &Message) -> String {
    let text = printable(&message.body);
    if !message.is_own() {
        return format!("[{}] {text}", message.from);
    }
    match deliver::read_copy(&message.body) {
        Some((to, text)) => format!("[{} to {to}, from another device] {}", message.from, printable(text.as_bytes())),
        None => format!("[{}, from another device] {text}", message.from),
    }
}

/// A group by its name.
pub(crate) fn group(group: u64) -> String {
    let what = if is_live_room(group) { "live room" } else { "group" };
    format!("{what} {group}")
}

/// One line for a message to a group.
pub(crate) fn of_group(message: &GroupMessage) -> String {
    // One from the log may have been sent from here.
    let own = if message.is_own() && !message.is_replay() { ", from another device" } else { "" };
    format!("[{} in {}{own}] {}", message.from, message.group, printable(&message.body))
}

/// One line for the fate of a message to a group.
pub(crate) fn group_fate(to: u64, text: &str, fate: &Result<Outcome, Error>) -> (Tone, String) {
    let (excerpt, to) = (excerpt(text), group(to));
    match fate {
        Ok(Outcome::Stored) => (Tone::Good, format!("stored in {to}: {excerpt}")),
        Ok(Outcome::Accepted) => (Tone::Good, format!("passed on to {to}: {excerpt}")),
        Ok(Outcome::Denied) => (Tone::Bad, format!("denied: you are not in {to}, or muted: {excerpt}")),
        Ok(_) => (Tone::Bad, format!("overloaded: {to} did not get, try again: {excerpt}")),
        Err(error) => {
            let error = printable(error.to_string().as_bytes());
            (Tone::Bad, format!("failed: {to} may not have got: {excerpt} ({error})"))
        }
    }
}

/// Some groups by number, not all of them if they are many.
pub(crate) fn groups(groups: &[u64]) -> String {
    const SHOWN_MAX: usize = 8;
    let mut shown: Vec<String> = groups.iter().take(SHOWN_MAX).map(u64::to_string).collect();
    if groups.len() > SHOWN_MAX {
        shown.push(format!("and {} more", groups.len() - SHOWN_MAX));
    }
    shown.join(", ")
}

/// The beginning of a message, for what is said about it.
pub(crate) fn excerpt(text: &str) -> String {
    let mut excerpt: String = text.chars().take(EXCERPT_CHARS_MAX).collect();
    if excerpt.len() < text.len() {
        excerpt.push('…');
    }
    printable(excerpt.as_bytes())
}

/// One line for the fate of a message that user `me` sent.
pub(crate) fn fate(me: u64, to: u64, text: &str, fate: &Result<Outcome, Error>) -> (Tone, String) {
    let excerpt = excerpt(text);
    match fate {
        Ok(Outcome::Delivered) => (Tone::Good, format!("delivered to {to}: {excerpt}")),
        Ok(Outcome::Stored) => (Tone::Good, format!("stored for {to}, who has not got it yet: {excerpt}")),
        Ok(Outcome::OfflineNotStored) if me == to => {
            // To oneself means to the other devices.
            (Tone::Bad, format!("you have no other device online that could get: {excerpt}"))
        }
        Ok(Outcome::OfflineNotStored) => (Tone::Bad, format!("offline: {to} did not get: {excerpt}")),
        Ok(Outcome::Overloaded) => (Tone::Bad, format!("overloaded: {to} did not get, try again: {excerpt}")),
        Ok(Outcome::InboxFull) => (Tone::Bad, format!("inbox full: {to} did not get: {excerpt}")),
        Ok(Outcome::Expired) => (Tone::Bad, format!("expired: {to} did not get in time: {excerpt}")),
        Ok(Outcome::Accepted) => (Tone::Good, format!("passed on to {to}: {excerpt}")),
        Ok(Outcome::Denied) => (Tone::Bad, format!("denied: you may not write to {to}: {excerpt}")),
        Ok(other) => (Tone::Bad, format!("{other}: {to} may not have got: {excerpt}")),
        Err(error) => {
            let error = printable(error.to_string().as_bytes());
            (Tone::Bad, format!("failed: {to} may not have got: {excerpt} ({error})"))
        }
    }
}

/// One line for an ERROR of the gateway.
pub(crate) fn server_error(code: u16, text: &str, peer: u64) -> String {
    let about = if peer == 0 { String::new() } else { format!(" about a message to {peer}") };
    let words = printable(sentence(code, text).as_bytes());
    format!("the gateway reports an error{about}: {words}")
}

/// A time span in its two largest units.
pub(crate) fn span(span: Duration) -> String {
    let secs = span.as_secs();
    match secs {
        0..60 => format!("{secs} s"),
        60..3_600 => format!("{} min {} s", secs / 60, secs % 60),
        3_600..86_400 => format!("{} h {} min", secs / 3_600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86_400, secs / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_peer_sends_can_control_the_terminal() {
        let hostile = "a\x1b[2J\r\n\x07\u{9b}31m\u{202e}\x7fb\tc\u{0}";
        let safe = printable(hostile.as_bytes());
        assert!(!safe.chars().any(char::is_control), "{safe:?}");
        assert!(!safe.contains('\u{202e}'), "{safe:?}");
        assert!(safe.starts_with('a') && safe.contains("b c"));
        assert_eq!(printable(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(printable("Grüße 👋".as_bytes()), "Grüße 👋");
    }

    #[test]
    fn a_long_message_is_cut_in_its_report_at_a_character() {
        let (_tone, report) = fate(1, 2, &"ü".repeat(41), &Ok(Outcome::Delivered));
        assert_eq!(report, format!("delivered to 2: {}…", "ü".repeat(40)));
    }

    #[test]
    fn many_groups_are_counted_and_not_listed() {
        assert_eq!(groups(&[7, 77]), "7, 77");
        assert_eq!(groups(&(1..=10).collect::<Vec<_>>()), "1, 2, 3, 4, 5, 6, 7, 8, and 2 more");
    }

    #[test]
    fn a_message_to_oneself_that_reaches_no_device_does_not_call_its_sender_offline() {
        let (tone, report) = fate(1, 1, "myself", &Ok(Outcome::OfflineNotStored));
        assert_eq!((tone, report.contains("offline")), (Tone::Bad, false), "{report}");
    }

    #[test]
    fn whoever_may_not_write_to_somebody_is_told_so() {
        let (tone, report) = fate(1, 2, "hello", &Ok(Outcome::Denied));
        assert_eq!((tone, report.as_str()), (Tone::Bad, "denied: you may not write to 2: hello"));
        let report = server_error(26, "You are not allowed to do this.", 2);
        assert!(report.contains("a message to 2") && report.contains("not allowed"), "{report}");
    }

    #[test]
    fn time_spans_use_their_two_largest_units() {
        let secs = |secs| span(Duration::from_secs(secs));
        assert_eq!(secs(59), "59 s");
        assert_eq!(secs(61), "1 min 1 s");
        assert_eq!(secs(7_260), "2 h 1 min");
        assert_eq!(secs(90_000), "1 d 1 h");
    }
}
