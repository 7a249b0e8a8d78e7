//! Why a bench ends with exit status 1.

use std::{fmt, io, time::Duration};

use crate::discrepancy::Discrepancy;

/// A run that could not be done, or whose messages did not add up. Displays as one sentence for a person.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The machine or the arguments do not allow the run; the sentence says what to change.
    Setup(String),
    /// A system call failed.
    System {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The server could not be reached.
    Connect {
        /// Its address.
        target: String,
        /// Why.
        error: io::Error,
    },
    /// The server refused a login.
    LoginRefused {
        /// Who wanted to log in.
        user: u64,
        /// The reason's number.
        code: u16,
        /// What the server says about it.
        text: String,
    },
    /// The server ended a connection, or its process ended.
    ServerGone(String),
    /// Nothing happened for too long.
    Stalled {
        /// What was awaited, and how far it got.
        waiting_for: String,
        /// For how long.
        after: Duration,
    },
    /// Some clients were refused or lost their connection.
    ClientsLost {
        /// What went wrong, with counts.
        complaints: String,
        /// How many clients there were.
        clients: u32,
    },
    /// Bench and gateway count differently.
    Accounts(String),
    /// A message was lost, doubled, reordered, altered or delivered to somebody else.
    Miscounted(Discrepancy),
}

impl Failure {
    /// A failed system call.
    pub(crate) fn system(doing: &str, error: io::Error) -> Failure {
        Failure::System { doing: doing.to_owned(), error }
    }
}

impl From<Discrepancy> for Failure {
    fn from(discrepancy: Discrepancy) -> Failure {
        Failure::Miscounted(discrepancy)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Setup(sentence) | Failure::ServerGone(sentence) | Failure::Accounts(sentence) => {
                f.write_str(sentence)
            }
            Failure::ClientsLost { complaints, clients } => {
                write!(f, "not all of {clients} clients were served: {complaints}")
            }
            Failure::System { doing, error } => write!(f, "{doing} failed: {error}"),
            Failure::Connect { target, error } => {
                write!(f, "cannot connect to {target}: {error}; is a server running there?")
            }
            Failure::LoginRefused { user, code, text } => {
                write!(f, "the login of user {user} was refused with reason {code} ({text})")
            }
            Failure::Stalled { waiting_for, after } => {
                write!(f, "nothing happened for {} s while waiting for {waiting_for}", after.as_secs_f32())
            }
            Failure::Miscounted(discrepancy) => write!(f, "the messages do not add up: {discrepancy}"),
        }
    }
}

impl std::error::Error for Failure {}
