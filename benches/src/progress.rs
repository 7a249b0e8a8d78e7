//! Progress bars on standard error, hidden when that is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Draws the phases of a bench, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    title: String,
}

/// The bar of one phase; it disappears when this is dropped.
#[derive(Debug)]
pub(crate) struct Phase {
    bar: ProgressBar,
}

impl Progress {
    /// `title` says what the phases belong to, for example `gateway, round 2 of 3`.
    pub(crate) fn new(title: String) -> Progress {
        Progress { title }
    }

    /// Starts a phase of `length` steps.
    pub(crate) fn phase(&self, name: &'static str, length: u64) -> Phase {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {human_pos}/{human_len} {msg}")
            .expect("the template is constant")
            .progress_chars("=> ");
        let bar = ProgressBar::new(length).with_style(style).with_prefix(self.title.clone()).with_message(name);
        Phase { bar }
    }
}

impl Phase {
    /// Moves the bar.
    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
