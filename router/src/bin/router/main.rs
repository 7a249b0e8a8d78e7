//! The `router` command: reads the command line, connects to Redis and serves the route API until a signal ends it.

#![forbid(unsafe_code)]

mod cli;
mod run;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What is wrong with the command line is printed by clap, with exit status 2.
    let cli = cli::Cli::parse();
    match run::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("router: {message}");
            ExitCode::FAILURE
        }
    }
}
