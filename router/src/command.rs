//! What the commands of this project do alike: signals, variables, and words about the addresses they listen on. Their
//! log is [`crate::log`].

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Command, Id};
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end a process unless it takes them over, and that say nothing to this one. `kill -USR1`, the end of an
/// alarm, or a file that has reached its limit (SIGXFSZ, from writing the log) must not cost it its clients. SIGQUIT
/// stays: it asks for a core dump. SIGPIPE is ignored by Rust's runtime already.
const IGNORED: [i32; 8] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXFSZ, SIGPWR];
/// Linux has the same numbers on every architecture this project runs on: x86-64 and 64-bit ARM.
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGALRM: i32 = 14;
const SIGXFSZ: i32 = 25;
const SIGVTALRM: i32 = 26;
const SIGPROF: i32 = 27;
const SIGIO: i32 = 29;
const SIGPWR: i32 = 30;
/// Real-time signals; the C library keeps the two before them for itself.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signals that end a process in an orderly way.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes them over: from now on they end nothing by themselves, and neither does a signal that means nothing here.
    /// SIGHUP is taken over by
    /// [`Hangups`]. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        for number in IGNORED.into_iter().chain(REAL_TIME) {
            // The handler stays when what it is told to is dropped.
            drop(signal(SignalKind::from_raw(number))?);
        }
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one; returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// SIGHUP, which asks a process to read its configuration again.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Takes it over. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> io::Result<Self> {
        Ok(Hangups(signal(SignalKind::hangup())?))
    }

    /// Waits for the next one. Those that come before this is called again count as one.
    pub async fn next(&mut self) {
        // It ends only with the runtime, and then this is not polled any more.
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// A command line in which an environment variable that is set to nothing is not set: in files of variables, that is
/// how one says so.
#[must_use]
pub fn without_empty_variables(mut command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let ids: Vec<_> = command.get_arguments().filter(|argument| argument.get_env().is_some_and(is_empty)).collect();
    let ids: Vec<_> = ids.into_iter().map(|argument| argument.get_id().clone()).collect();
    for id in ids {
        command = command.mut_arg(id, |argument| argument.env(Resettable::Reset));
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, without_empty_variables);
    }
    command
}

/// The argument of `command` whose value `error` refuses, and its environment variable, if that is where the value
/// comes from: it is set, and none of `words` is the flag.
#[must_use]
pub fn refused_variable(error: &clap::Error, command: &Command, words: &[OsString]) -> Option<(Id, String)> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    // An argument shows itself once its command is built.
    let mut command = command.clone();
    command.build();
    let of_subcommands = command.get_subcommands().flat_map(Command::get_arguments);
    let argument = command.get_arguments().chain(of_subcommands).find(|argument| argument.to_string() == *shown)?;
    let variable = argument.get_env()?;
    let flag = format!("--{}", argument.get_long()?);
    let given = words.iter().any(|word| {
        let word = word.to_string_lossy();
        word.strip_prefix(flag.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    });
    let is_set = std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    (is_set && !given).then(|| (argument.get_id().clone(), variable.to_string_lossy().into_owned()))
}

/// Where somebody on this machine reaches what listens on `address`: loopback, for one that listens everywhere.
#[must_use]
pub fn near(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Why `address` cannot be listened on, and what to do. `flags` are those that choose it.
#[must_use]
pub fn listen_error(address: SocketAddr, error: &io::Error, flags: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} is already in use: stop what listens there (ss -ltnp shows it), or choose another port with \
             {flags}"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "listening on {address} is not permitted: choose a port from 1024, or give the capability \
             CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine: choose one that ip addr shows, or 0.0.0.0 for all")
        }
        _ => format!("listening on {address} failed ({error}): check the address given with {flags}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_near_on_loopback() {
        let near = |address: &str| near(address.parse().unwrap()).to_string();
        assert_eq!(near("0.0.0.0:7781"), "127.0.0.1:7781");
        assert_eq!(near("[::]:7781"), "[::1]:7781");
        assert_eq!(near("10.0.0.9:7781"), "10.0.0.9:7781");
    }

    fn some_command() -> Command {
        // PATH is a variable that every test has.
        let argument = clap::Arg::new("n").long("number").env("PATH").value_parser(clap::value_parser!(u8));
        Command::new("some").arg(argument)
    }

    #[test]
    fn a_refused_value_is_traced_to_its_variable() {
        let refused = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let error = some_command().try_get_matches_from(&words).unwrap_err();
            refused_variable(&error, &some_command(), &words).map(|(_, variable)| variable)
        };
        assert_eq!(refused(&["some"]), Some("PATH".to_owned()));
        assert_eq!(refused(&["some", "--number", "many"]), None);
        assert_eq!(refused(&["some", "--number=many"]), None);
        assert_eq!(refused(&["some", "--what"]), None);
    }

    #[test]
    fn a_variable_with_something_in_it_stays() {
        let command = without_empty_variables(some_command());
        assert!(command.get_arguments().any(|argument| argument.get_env().is_some()));
    }

    #[tokio::test]
    async fn signals_that_mean_nothing_here_end_nothing() {
        let mut signals = Signals::new().unwrap();
        let mut hangups = Hangups::new().unwrap();
        let this = rustix::process::getpid();
        for signal in [
            rustix::process::Signal::USR1,
            rustix::process::Signal::USR2,
            rustix::process::Signal::ALARM,
            rustix::process::Signal::VTALARM,
            rustix::process::Signal::PROF,
            rustix::process::Signal::XFSZ,
            rustix::process::Signal::HUP,
            rustix::process::Signal::TERM,
        ] {
            rustix::process::kill_process(this, signal).unwrap();
        }
        assert_eq!(signals.next().await, "SIGTERM");
        hangups.next().await;
    }

    #[test]
    fn addresses_that_cannot_be_listened_on_are_explained() {
        let address = "127.0.0.1:7781".parse().unwrap();
        for (kind, hint) in [
            (io::ErrorKind::AddrInUse, "another port with --http"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "ip addr"),
            (io::ErrorKind::OutOfMemory, "--http"),
        ] {
            let text = listen_error(address, &kind.into(), "--http");
            assert!(text.contains(hint) && text.contains("127.0.0.1:7781"), "{text}");
        }
    }
}
