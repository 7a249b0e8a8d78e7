//! What a typed line means.

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Nothing was typed, or the line only changed the recipient.
    Nothing,
    Send {
        to: u64,
        text: String,
    },
    Who {
        user: u64,
    },
    Join {
        group: u64,
    },
    Leave {
        group: u64,
    },
    /// A message to a group.
    Say {
        group: u64,
        text: String,
    },
    Members {
        group: u64,
    },
    History {
        group: u64,
    },
    /// Tell whether these users are online, now and when it changes.
    Watch {
        users: Vec<u64>,
    },
    /// Tell of these users no more; of nobody if there are none.
    Unwatch {
        users: Vec<u64>,
    },
    Ping,
    Help,
    Quit,
    /// Not understood; the sentence says what would be.
    Wrong(String),
}

/// The lines so far, as far as they matter: who the next plain line goes to.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    recipient: Option<u64>,
}

impl Conversation {
    /// Who writes to whom, for the prompt of user `me`.
    pub(crate) fn who(&self, me: u64) -> String {
        match self.recipient {
            Some(recipient) => format!("{me} to {recipient}"),
            None => me.to_string(),
        }
    }

    /// Understands one line.
    pub(crate) fn read(&mut self, line: &str) -> Command {
        let line = line.trim();
        if line.is_empty() {
            return Command::Nothing;
        }
        if let Some(escaped) = line.strip_prefix("//") {
            return self.say(&format!("/{escaped}"));
        }
        if let Some(command) = line.strip_prefix('/') {
            return self.command(command);
        }
        if let Some((to, text)) = line.split_once(";;")
            && is_number(to.trim())
        {
            return match user(to) {
                Ok(to) => message(to, text),
                Err(wrong) => Command::Wrong(wrong),
            };
        }
        self.say(line)
    }

    fn say(&self, text: &str) -> Command {
        match self.recipient {
            Some(to) => message(to, text),
            None => Command::Wrong("to whom? Try `/to 2` first, or `2;;hello`".into()),
        }
    }

    fn command(&mut self, command: &str) -> Command {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("to", "") => Command::Wrong("/to needs a user number, for example `/to 2`".into()),
            ("to", to) => match user(to) {
                Ok(to) => {
                    self.recipient = Some(to);
                    Command::Nothing
                }
                Err(wrong) => Command::Wrong(wrong),
            },
            ("who", "") => match self.recipient {
                Some(user) => Command::Who { user },
                None => Command::Wrong("/who needs a user number, for example `/who 2`".into()),
            },
            ("who", who) => match user(who) {
                Ok(user) => Command::Who { user },
                Err(wrong) => Command::Wrong(wrong),
            },
            ("g", say) => {
                let (which, text) = say.split_once(char::is_whitespace).unwrap_or((say, ""));
                match (group(name, which), text.trim()) {
                    (Err(wrong), _) => Command::Wrong(wrong),
                    (Ok(_), "") => Command::Wrong("/g needs a group and a text, for example `/g 77 hello`".into()),
                    (Ok(group), text) => Command::Say { group, text: text.to_owned() },
                }
            }
            ("join" | "leave" | "members" | "history", which) => match (name, group(name, which)) {
                (_, Err(wrong)) => Command::Wrong(wrong),
                ("join", Ok(group)) => Command::Join { group },
                ("leave", Ok(group)) => Command::Leave { group },
                ("members", Ok(group)) => Command::Members { group },
                (_, Ok(group)) => Command::History { group },
            },
            ("watch", "") => match self.recipient {
                Some(user) => Command::Watch { users: vec![user] },
                None => Command::Wrong("/watch needs user numbers, for example `/watch 2 3`".into()),
            },
            ("watch" | "unwatch", which) => {
                let users = which.split_whitespace().map(user).collect::<Result<Vec<u64>, String>>();
                match (name, users) {
                    (_, Err(wrong)) => Command::Wrong(wrong),
                    ("watch", Ok(users)) => Command::Watch { users },
                    (_, Ok(users)) => Command::Unwatch { users },
                }
            }
            ("ping", "") => Command::Ping,
            ("help" | "?", "") => Command::Help,
            ("quit" | "exit", "") => Command::Quit,
            ("ping" | "help" | "?" | "quit" | "exit", _) => Command::Wrong(format!("/{name} takes nothing behind it")),
            _ => Command::Wrong(format!("/{name} is unknown; /help lists what there is")),
        }
    }
}

fn message(to: u64, text: &str) -> Command {
    let text = text.trim();
    if text.is_empty() {
        return Command::Wrong("there is nothing to send".into());
    }
    let text = text.to_owned();
    Command::Send { to, text }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number of a group behind the command `name`.
fn group(name: &str, text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Err(format!("/{name} needs the number of a group, for example `/{name} 77`"));
    }
    if !is_number(text) {
        return Err(format!("`{text}` is not a group number"));
    }
    match text.parse() {
        Ok(0) => Err("group 0 does not exist".into()),
        Ok(group) => Ok(group),
        Err(_too_large) => Err(format!("{text} is too large for a group number")),
    }
}

fn user(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if !is_number(text) {
        return Err(format!("`{text}` is not a user number"));
    }
    match text.parse() {
        Ok(0) => Err("user 0 does not exist".into()),
        Ok(user) => Ok(user),
        Err(_too_large) => Err(format!("{text} is too large for a user number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(to: u64, text: &str) -> Command {
        let text = text.into();
        Command::Send { to, text }
    }

    fn is_wrong(command: &Command) -> bool {
        matches!(command, Command::Wrong(_))
    }

    #[test]
    fn a_numbered_line_goes_to_that_user_and_leaves_the_recipient_alone() {
        let mut talk = Conversation::default();
        assert_eq!(talk.read("2;;hello"), send(2, "hello"));
        assert_eq!(talk.read(" 2 ;; hello ;; again "), send(2, "hello ;; again"));
        assert!(is_wrong(&talk.read("and now?")));
        assert_eq!(talk.read("/to 3"), Command::Nothing);
        assert_eq!(talk.read("4;;you"), send(4, "you"));
        assert_eq!(talk.read("back to three"), send(3, "back to three"));
    }

    #[test]
    fn the_prompt_shows_the_recipient() {
        let mut talk = Conversation::default();
        assert_eq!(talk.who(1), "1");
        talk.read("/to 2");
        assert_eq!(talk.who(1), "1 to 2");
    }

    #[test]
    fn semicolons_in_plain_text_are_plain_text() {
        let mut talk = Conversation::default();
        talk.read("/to 2");
        for text in ["a;;b", ";;x", "-1;;x", "1.5;;x"] {
            assert_eq!(talk.read(text), send(2, text));
        }
    }

    #[test]
    fn a_double_slash_sends_a_line_that_begins_with_one() {
        let mut talk = Conversation::default();
        talk.read("/to 2");
        assert_eq!(talk.read("//etc"), send(2, "/etc"));
    }

    #[test]
    fn users_out_of_range_are_named_not_wrapped() {
        let mut talk = Conversation::default();
        assert_eq!(talk.read("18446744073709551615;;x"), send(u64::MAX, "x"));
        for line in ["0;;x", "18446744073709551616;;x", "/to 0", "/to two", "/to", "/who x", "2;;", "2;;  "] {
            assert!(is_wrong(&talk.read(line)), "{line}");
        }
        assert_eq!(talk.who(1), "1");
    }

    #[test]
    fn commands_are_known_and_unknown_ones_are_not_sent() {
        let mut talk = Conversation::default();
        assert!(is_wrong(&talk.read("/who")));
        assert_eq!(talk.read("/who 2"), Command::Who { user: 2 });
        talk.read("/to 5");
        assert_eq!(talk.read("/who"), Command::Who { user: 5 });
        assert_eq!(talk.read("/join 77"), Command::Join { group: 77 });
        assert_eq!(talk.read("/leave 77"), Command::Leave { group: 77 });
        assert_eq!(talk.read("/members  77 "), Command::Members { group: 77 });
        assert_eq!(talk.read("/history 18446744073709551615"), Command::History { group: u64::MAX });
        assert_eq!(talk.read("/g 77  to all "), Command::Say { group: 77, text: "to all".into() });
        let groups = [
            "/join",
            "/join 77 78",
            "/leave x",
            "/history 0",
            "/members 18446744073709551616",
            "/g",
            "/g 77",
            "/g x y",
        ];
        for line in groups {
            assert!(is_wrong(&talk.read(line)), "{line}");
        }
        assert_eq!(talk.read("/watch 2  3"), Command::Watch { users: vec![2, 3] });
        assert_eq!(talk.read("/watch"), Command::Watch { users: vec![5] });
        assert_eq!(talk.read("/unwatch 2"), Command::Unwatch { users: vec![2] });
        assert_eq!(talk.read("/unwatch"), Command::Unwatch { users: vec![] });
        assert!(is_wrong(&talk.read("/watch 2 x")) && is_wrong(&talk.read("/unwatch 0")));
        assert_eq!(talk.read("/ping"), Command::Ping);
        assert_eq!(talk.read("/help"), Command::Help);
        assert_eq!(talk.read("/quit"), Command::Quit);
        assert_eq!(talk.read("   "), Command::Nothing);
        for line in ["/", "/halp", "/quit now", "/ping 2"] {
            assert!(is_wrong(&talk.read(line)), "{line}");
        }
    }
}
