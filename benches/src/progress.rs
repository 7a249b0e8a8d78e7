//! Progress on standard error: a bar on a terminal, else a line now and then.

use std::{
    cell::{Cell, RefCell},
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Draws the phases of a bench, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    title: String,
    silent: bool,
}

/// The bar of one phase; it disappears when this is dropped.
#[derive(Debug)]
pub(crate) struct Phase {
    bar: ProgressBar,
    name: &'static str,
    title: String,
    figures: RefCell<String>,
    /// Where there is no terminal: when the last line was written.
    line: Option<Cell<Instant>>,
}

impl Progress {
    /// `title` says what the phases belong to, for example `gateway, round 2 of 3`.
    pub(crate) fn new(title: String) -> Progress {
        Progress { title, silent: false }
    }

    /// Draws nothing: for a thread beside one that does.
    pub(crate) fn silent() -> Progress {
        Progress { title: String::new(), silent: true }
    }

    /// Starts a phase of `length` steps.
    pub(crate) fn phase(&self, name: &'static str, length: u64) -> Phase {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {human_pos}/{human_len} {msg}")
            .expect("the template is constant")
            .progress_chars("=> ");
        let bar = ProgressBar::new(length).with_style(style).with_prefix(self.title.clone()).with_message(name);
        if self.silent {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let line = (!self.silent && !stderr().is_terminal()).then(|| Cell::new(Instant::now()));
        Phase { bar, name, title: self.title.clone(), figures: RefCell::default(), line }
    }
}

impl Phase {
    /// Moves the bar.
    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
        if let Some(last) = &self.line
            && last.get().elapsed() >= LINE_INTERVAL
        {
            last.set(Instant::now());
            let length = self.bar.length().unwrap_or(0);
            eprintln!("{}: {position}/{length} {} {}", self.title, self.name, self.figures.borrow());
        }
    }

    /// Shows live figures beside the bar.
    pub(crate) fn say(&self, figures: String) {
        if self.line.is_none() {
            self.bar.set_message(format!("{}, {figures}", self.name));
        }
        self.figures.replace(figures);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
