//! The `router` command: reads the command line, connects to Redis and serves the route API until a signal ends it.

#![forbid(unsafe_code)]

mod cli;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use trunkline_router::log;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // Printed by clap: to stderr with exit status 2, help and version to stdout with 0.
        Err(error) => error.exit(),
    };
    // Nothing of what unwound is looked at again.
    let outcome = catch_unwind(AssertUnwindSafe(|| run::run(&cli)))
        .unwrap_or_else(|_| Err("a bug has ended it; the line of the log that says panicked has more".to_owned()));
    let status = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log::fail("router", &message);
            ExitCode::FAILURE
        }
    };
    log::flush();
    status
}
