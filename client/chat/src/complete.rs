//! What Tab makes of a line: commands, and the groups that are known.

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use crate::groups::KnownGroups;

/// Commands that Tab completes, each with what is typed behind it.
const COMMANDS: [&str; 13] = [
    "/g ",
    "/help",
    "/history ",
    "/join ",
    "/leave ",
    "/members ",
    "/ping",
    "/quit",
    "/to ",
    "/unwatch ",
    "/watch ",
    "/who ",
    "//",
];

/// Commands that a group stands behind.
const OF_GROUPS: [&str; 5] = ["/g", "/history", "/join", "/leave", "/members"];

/// Completes lines.
#[derive(Debug)]
pub(crate) struct Completion(pub(crate) KnownGroups);

impl Completion {
    /// Where the word begins that is completed, and what it may become.
    fn candidates(&self, typed: &str) -> (usize, Vec<String>) {
        let Some((command, word)) = typed.split_once(' ') else {
            let matching = COMMANDS.into_iter().filter(|command| !typed.is_empty() && command.starts_with(typed));
            return (0, matching.map(str::to_owned).collect());
        };
        if !OF_GROUPS.contains(&command) || word.contains(char::is_whitespace) {
            return (typed.len(), Vec::new());
        }
        let mut groups = self.0.beginning_with(word);
        if command == "/g" {
            groups.iter_mut().for_each(|group| group.push(' '));
        }
        (typed.len() - word.len(), groups)
    }
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _context: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(line.get(..pos).unwrap_or_default()))
    }
}

impl Hinter for Completion {
    type Hint = String;
}

impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_known_groups_are_completed_and_nothing_else_is() {
        let known = KnownGroups::default();
        [7, 77, 8].into_iter().for_each(|group| known.add(group));
        let completion = Completion(known);
        for (typed, at, candidates) in [
            ("/h", 0, &["/help", "/history "][..]),
            ("/g", 0, &["/g "]),
            ("/w", 0, &["/watch ", "/who "]),
            ("/join 7", 6, &["7", "77"]),
            ("/g 7", 3, &["7 ", "77 "]),
            ("/members ", 9, &["7", "8", "77"]),
            ("/who 7", 6, &[]),
            ("/g 77 7", 7, &[]),
            ("hello", 0, &[]),
            ("", 0, &[]),
        ] {
            assert_eq!(
                completion.candidates(typed),
                (at, candidates.iter().map(|it| (*it).to_owned()).collect()),
                "{typed}"
            );
        }
    }
}
