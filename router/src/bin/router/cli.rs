//! The command line.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use trunkline_router::command::{refused_variable, without_empty_variables};
use trunkline_router::dispatch::Strategy;
use trunkline_router::log::{LogFormat, judge_filter};
use trunkline_router::membership::{ZONE_CHARS_MAX, is_zone};
use trunkline_router::redis::RedisUrl;

/// Tells clients which gateway to connect to, makes accounts, and answers questions about nodes and users over HTTP.
///
/// A router holds nothing: it reads the nodes from the Redis Cluster that the gateways share, once a second, and
/// computes the rest. So any number of routers may run side by side. While Redis does not answer it goes on with what
/// it knows. Each flag is also an environment variable; flags override the environment.
#[derive(Debug, Parser)]
#[command(name = "router", version, max_term_width = 100, after_help = SHORT_HELP_END, after_long_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Address of the HTTP API. One that is not loopback needs --api-keys-file.
    #[arg(
        long,
        value_name = "ADDR",
        env = "TRUNKLINE_ROUTER_HTTP",
        default_value = "127.0.0.1:7781",
        hide_env_values = true
    )]
    pub(crate) http: SocketAddr,
    /// File of the keys that may use the API; gateway api-key makes one and prints its line. With it, changes need a
    /// key, and from other hosts everything but /healthz and /readyz does. Without it the API is for this host alone.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_API_KEYS_FILE", hide_env_values = true)]
    pub(crate) api_keys_file: Option<PathBuf>,
    /// Allow an --http that is not loopback without keys: whoever reaches it may make accounts, end sessions and ask
    /// where users are.
    #[arg(long, env = "TRUNKLINE_ROUTER_HTTP_INSECURE_OPEN", num_args = 0..=1, default_missing_value = "true",
        default_value_t = false, require_equals = true, action = clap::ArgAction::Set, hide_env_values = true)]
    pub(crate) http_insecure_open: bool,
    /// File with a certificate (PEM) of this router and, behind it, those that signed it: with it the API speaks TLS.
    #[arg(
        long,
        value_name = "FILE",
        env = "TRUNKLINE_ROUTER_HTTP_TLS_CERT",
        requires = "http_tls_key",
        hide_env_values = true
    )]
    pub(crate) http_tls_cert: Option<PathBuf>,
    /// File with the key (PEM) of that certificate.
    #[arg(
        long,
        value_name = "FILE",
        env = "TRUNKLINE_ROUTER_HTTP_TLS_KEY",
        requires = "http_tls_cert",
        hide_env_values = true
    )]
    pub(crate) http_tls_key: Option<PathBuf>,
    /// File with the certificates (PEM) of those who sign for callers. A caller may then show one, and if it names a
    /// key (subjectAltName URI:urn:trunkline:key:ID) it has the scopes of that line of the keys file.
    #[arg(
        long,
        value_name = "FILE",
        env = "TRUNKLINE_ROUTER_HTTP_TLS_CLIENT_CA",
        requires = "http_tls_cert",
        hide_env_values = true
    )]
    pub(crate) http_tls_client_ca: Option<PathBuf>,
    /// File with the key that this router shows to nodes when it has them end sessions: one with the scope kick in
    /// their keys files.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_NODE_KEY_FILE", hide_env_values = true)]
    pub(crate) node_key_file: Option<PathBuf>,
    /// File with the certificates (PEM) of those who sign for nodes whose HTTP API speaks TLS. Without it, those that
    /// this system trusts.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_NODE_CA_FILE", hide_env_values = true)]
    pub(crate) node_ca_file: Option<PathBuf>,
    /// The Redis Cluster of the gateways: redis-cluster://[user:password@]host:port[,host:port…], or
    /// rediss-cluster://… for TLS. Some of its nodes are enough.
    #[arg(long, value_name = "URL", env = "TRUNKLINE_ROUTER_REDIS", hide_env_values = true, value_parser = redis_url)]
    pub(crate) redis: RedisUrl,
    /// File with the certificates (PEM) of those who sign for Redis, with rediss-cluster://. Without it, those that
    /// this system trusts.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_REDIS_CA_FILE", hide_env_values = true)]
    pub(crate) redis_ca_file: Option<PathBuf>,
    /// File with the certificate (PEM) to show to a Redis that asks for one, as it does by default.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_REDIS_CERT_FILE", hide_env_values = true)]
    pub(crate) redis_cert_file: Option<PathBuf>,
    /// File with the key (PEM) of that certificate.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_ROUTER_REDIS_KEY_FILE", hide_env_values = true)]
    pub(crate) redis_key_file: Option<PathBuf>,
    /// Lease time of the nodes, 1 to 3600 seconds. It has to be that of the gateways.
    #[arg(long, value_name = "SECS", env = "TRUNKLINE_ROUTER_LEASE_SECS", default_value_t = 5, hide_env_values = true,
        value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub(crate) lease_secs: u32,
    /// How a node is chosen for a login that does not say how: home, weighted-round-robin, least-conn or random-two.
    #[arg(long, value_name = "NAME", env = "TRUNKLINE_ROUTER_STRATEGY", default_value_t = Strategy::Home,
        hide_env_values = true)]
    pub(crate) strategy: Strategy,
    /// Zone of the clients of this router, such as a data centre: logins that do not name one go to nodes whose --zone
    /// is the same, as long as these have room.
    #[arg(long, value_name = "NAME", env = "TRUNKLINE_ROUTER_ZONE", default_value = "", hide_env_values = true,
        hide_default_value = true, value_parser = zone)]
    pub(crate) zone: String,
    /// For how long a node that comes gets less than its share, growing, 0 to 3600 seconds.
    #[arg(long, value_name = "SECS", env = "TRUNKLINE_ROUTER_SLOW_START_SECS", default_value_t = 30,
        hide_env_values = true, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) slow_start_secs: u32,
    /// What is logged on stderr: error, warn, info, debug or trace, or a filter such as info,trunkline_router=debug.
    #[arg(long, value_name = "FILTER", env = "TRUNKLINE_ROUTER_LOG", default_value = "info", hide_env_values = true,
        value_parser = log_filter)]
    pub(crate) log: String,
    /// How a line of the log looks.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "TRUNKLINE_ROUTER_LOG_FORMAT",
        default_value = "text",
        hide_env_values = true
    )]
    pub(crate) log_format: LogFormat,
}

fn zone(text: &str) -> Result<String, String> {
    let refused = || format!("a zone has at most {ZONE_CHARS_MAX} characters, none of them a control character");
    is_zone(text).then(|| text.to_owned()).ok_or_else(refused)
}

fn log_filter(text: &str) -> Result<String, String> {
    judge_filter(text).map(|()| text.to_owned())
}

/// Its form is judged by [`parse`], because clap would print it with its password.
fn redis_url(text: &str) -> Result<RedisUrl, String> {
    Ok(text.into())
}

/// Reads the command line and the environment. What is wrong, and help and version too, is for clap to print.
pub(crate) fn parse(words: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Cli, clap::Error> {
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let command = without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches_from(&words).map_err(|mut error| {
        if let Some((_, variable)) = refused_variable(&error, &command, &words) {
            let tip = StyledStr::from(format!("the value is that of the environment variable {variable}"));
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
        }
        error
    })?;
    let cli = Cli::from_arg_matches(&matches)?;
    if let Err(error) = cli.redis.config() {
        let message = format!("{} ({}): {error}", cli.redis, redis_source(&matches));
        return Err(command.clone().error(ErrorKind::ValueValidation, message));
    }
    Ok(cli)
}

/// Where the URL of Redis comes from.
fn redis_source(matches: &ArgMatches) -> &'static str {
    match matches.value_source("redis") {
        Some(ValueSource::EnvVariable) => "TRUNKLINE_ROUTER_REDIS",
        _ => "--redis",
    }
}

const SHORT_HELP_END: &str = "router --help says more, with examples.";

const EXAMPLES: &str = "\
Examples:
  router --redis redis-cluster://127.0.0.1:7000            the API on 127.0.0.1:7781
  router --redis redis-cluster://10.0.0.1:7000,10.0.0.2:7000 --http 10.0.0.9:7781 --api-keys-file keys.toml
                                                           reachable by others, who need a key
  gateway api-key shop --scope login                       makes a key, and prints its line for keys.toml
  TRUNKLINE_ROUTER_REDIS=redis-cluster://me:secret@10.0.0.1:7000 router
                                                           a password where ps does not show it

  curl http://127.0.0.1:7781/                              what can be asked
  curl http://127.0.0.1:7781/v1/nodes                      the nodes
  curl -H 'Accept: text/plain' http://127.0.0.1:7781/v1/cluster
                                                           the nodes as a table
  curl http://127.0.0.1:7781/v1/accounts --json '{\"name\":\"ada\"}'
  curl http://127.0.0.1:7781/v1/login --json '{\"user\":1}'
  curl -X POST http://127.0.0.1:7781/v1/users/1/kick       end the sessions of user 1, wherever they are
  curl 'http://127.0.0.1:7781/v1/explain/1?from=a'         the way of a message from node a to user 1
  curl http://127.0.0.1:7781/v1/ring/preview --json '{\"add\":[{\"name\":\"d\"}]}'
                                                           which users would move to a new node d

Strategies:
  home                  the node where the user belongs: messages to it need no hop between nodes
  weighted-round-robin  one node after the other, by weight
  least-conn            the fewest connections for each unit of weight
  random-two            the less loaded of two nodes drawn by weight
  A client that could not reach a node names it in \"failed\" of its next login and gets another.

Signals:
  SIGTERM or SIGINT: no new connections, the answers under way are finished, exit status 0. A second one: at once.
  SIGHUP: --api-keys-file, --http-tls-cert, --http-tls-key and --http-tls-client-ca are read again; files that
  cannot be used change nothing. All else needs a restart.
  SIGUSR1, SIGUSR2, SIGALRM and the like: nothing.

Log:
  A log that cannot be written costs lines and nothing else, counted by
  trunkline_log_lines_dropped_total. Each kind of message may write 100 lines at once and 5 a second.

Exit status:
  0 ended as asked; 1 the Redis is no cluster, a file cannot be used, the address is in use, or a bug (panic) has ended
  it; 2 a flag or a variable is refused. A Redis that is not there yet, or refuses the password, is waited for; /readyz
  is 503 and says so.";

#[cfg(test)]
#[path = "../../../tests/router/support/generated.rs"]
mod generated;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    /// The flags as they stand in docs/configuration.md.
    fn reference() -> String {
        let mut text = String::new();
        let command = Cli::command();
        for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
            let name = argument.get_long().expect("each has a long form");
            let variable = argument.get_env().and_then(|env| env.to_str()).expect("a name of ASCII");
            let value_name = argument.get_value_names().map_or_else(|| "BOOL".to_owned(), |names| names[0].to_string());
            let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            let default = match &default[..] {
                [] if argument.is_required_set() => "Required.".to_owned(),
                [] => "No default.".to_owned(),
                values => format!("Default: `{}`.", values.join(",")),
            };
            let _ = writeln!(text, "#### --{name}\n\n`--{name} {value_name}`, `{variable}`. {default}\n");
            let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
            // The library cuts off the last full stop.
            let _ = writeln!(text, "{}.\n", help.trim_end_matches('.'));
        }
        text
    }

    #[test]
    fn the_reference_of_flags_is_the_command_line() {
        generated::assert_documented("configuration.md", "router", &reference());
    }

    fn refusal(words: &[&str]) -> String {
        parse([&["router"], words].concat()).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_and_stands_in_the_help() {
        let help = refusal(&["--help"]);
        for argument in Cli::command().get_arguments().filter(|argument| argument.get_env().is_some()) {
            let name = argument.get_long().unwrap();
            let variable = format!("TRUNKLINE_ROUTER_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(variable.as_str()));
            assert!(help.contains(&format!("--{name}")) && help.contains(&variable), "{name}: {help}");
        }
        for strategy in Strategy::ALL {
            assert!(help.contains(strategy.name()), "{strategy}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        for url in ["redis://me:secret@h:1", "redis-cluster://me:secret@h", "me:secret@h:1"] {
            let text = refusal(&["--redis", url]);
            assert!(!text.contains("secret") && text.contains("--redis"), "{text}");
        }
        let cli = parse(["router", "--redis", "redis-cluster://me:secret@h:1"]).unwrap();
        assert!(!format!("{cli:?}").contains("secret"));
    }

    #[test]
    fn a_bad_value_is_named_with_its_correction() {
        let redis = "redis-cluster://127.0.0.1:7000";
        for (words, hint) in [
            (&["--redis", "redis://h:1"][..], "write redis-cluster://"),
            (&["--redis", redis, "--strategy", "fastest"], "least-conn"),
            (&["--redis", redis, "--lease-secs", "0"], "1..=3600"),
            (&["--redis", redis, "--http", "nowhere"], "--http"),
            (&["--redis", redis, "--log-format", "xml"], "json"),
            (&["--redis", redis, "--log", "verbose"], "debug"),
            (&["--redis", redis, "--no-such-flag"], "--no-such-flag"),
            (&[], "--redis <URL>"),
        ] {
            let text = refusal(words);
            assert!(text.contains(hint), "{words:?}: {text}");
        }
    }
}
