//! The prompt, which says whether there is a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::Prompt;

/// Whether there is a connection; shared by the program and the prompt.
#[derive(Clone, Debug)]
pub(crate) struct Connected(Arc<AtomicBool>);

impl Connected {
    /// For a program that has just logged in.
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    pub(crate) fn set(&self, connected: bool) {
        self.0.store(connected, Ordering::SeqCst);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The prompt of one line. The editor measures it once, so what it says may change under the user's hands, but not how
/// wide it is: a connection that is lost turns `1> ` into `1! `, and the next prompt says `1 (disconnected)> `.
#[derive(Debug)]
pub(crate) struct LivePrompt {
    connected: Connected,
    with: String,
    without: String,
}

impl LivePrompt {
    /// The prompt of the next line, after `talk`: who writes to whom.
    pub(crate) fn new(talk: &str, connected: &Connected) -> Self {
        let connected = connected.clone();
        let (with, without) = if connected.get() {
            (format!("{talk}> "), format!("{talk}! "))
        } else {
            (format!("{talk} (connected)>    "), format!("{talk} (disconnected)> "))
        };
        Self { connected, with, without }
    }
}

impl Prompt for LivePrompt {
    fn raw(&self) -> &str {
        if self.connected.get() { &self.with } else { &self.without }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_tells_the_state_at_any_time_and_keeps_its_width() {
        let connected = Connected::new();
        let early = LivePrompt::new("1 to 2", &connected);
        assert_eq!(early.raw(), "1 to 2> ");
        connected.set(false);
        let late = LivePrompt::new("1 to 2", &connected);
        assert_eq!((early.raw(), late.raw()), ("1 to 2! ", "1 to 2 (disconnected)> "));
        connected.set(true);
        assert_eq!((early.raw(), late.raw()), ("1 to 2> ", "1 to 2 (connected)>    "));
        for prompt in [early, late] {
            assert_eq!(prompt.with.len(), prompt.without.len());
        }
    }
}
