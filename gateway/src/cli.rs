//! The command line: what may be said, and what it comes to together with environment and file.

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use trunkline_gateway::config::{
    Config, ConfigError, ConfigFile, DefaultValue, Host, Origin, SETTINGS, Setting, Settings, Sources,
};
use trunkline_gateway::doctor::{Goal, Profile};
use trunkline_gateway::host_tree::Root;
use trunkline_router::command::{refused_variable, without_empty_variables};
use trunkline_router::http::Scope;

/// Carries messages between the clients connected to it.
///
/// Clients connect by TCP and speak the Trunkline protocol; the command chat is one. Everything below has a default, so
/// gateway alone starts a node on this machine. Each flag is also a key of the configuration file (with _ for -) and an
/// environment variable; flags override the environment, which overrides the file.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(after_help = SHORT_HELP_END, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
}

const SHORT_HELP_END: &str = "gateway --help says more, with examples.";

const EXAMPLES: &str = "\
Examples:
  gateway                                      a node on 127.0.0.1:7700, its HTTP API on 127.0.0.1:7780
  chat --user 1                                talk through it; in another terminal: chat --user 2
  gateway --shards 2 --heartbeat-secs 60       two shards, fewer heartbeats
  gateway --listen 0.0.0.0:7700 --auth jwt --jwt-hs256-secret-file /etc/trunkline/secret
                                               reachable by others, who need a token
  gateway --node a --redis redis-cluster://10.0.0.1:7000 --cluster-secret-file /etc/trunkline/cluster
                                               one of several nodes, each with a name and addresses of its own
  gateway api-key ops --scope kick,drain       makes a key for the HTTP API, and prints its line for the keys file
  gateway default-config > gateway.toml        the configuration with every setting explained
  gateway check-config gateway.toml            what it comes to, and the memory it may need
  gateway --config gateway.toml
  curl http://127.0.0.1:7780/v1/node           what runs; also /metrics, /readyz, /v1/users/1, /v1/openapi.json
  curl -X POST http://127.0.0.1:7780/v1/node/drain
                                               send all clients to other nodes and stay up; -X DELETE calls it off

Units:
  Sizes take KiB, MiB, GiB or TiB (64KiB is 65536). Times are whole seconds.

Limits:
  What happens when a limit is hit stands with each flag. Every hit is counted in the metric trunkline_limit_hits_total,
  and the value of every limit is shown by trunkline_limit. BYE ends a connection; ERROR and SENT do not.

Log:
  A log that cannot be written costs lines and nothing else, counted by
  trunkline_log_lines_dropped_total. Each kind of message may write 100 lines at once and 5 a second.

Signals:
  SIGTERM or SIGINT: out of the ring, no new connections, BYE 12 to all over --drain-secs, exit status 0. A second one:
  at once.
  SIGHUP: the configuration and the files of keys are read again. What is called reloadable above is
  taken, and the log says what was and what needs a restart. One that is refused changes nothing.
  SIGUSR1, SIGUSR2, SIGALRM and the like: nothing.

Exit status:
  0 ended as asked; 1 the machine lacks something, an address or a node name is in use, Redis does not work, or a bug
  (panic) has ended it, after a drain; 2 the configuration is refused.";

/// A subcommand.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node; this is also what happens without a command.
    Run(Flags),
    /// Print the default configuration, every setting explained.
    DefaultConfig,
    /// Check a configuration file and print what it comes to, with the memory it may need.
    CheckConfig {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        settings: Settings,
    },
    /// Make a key for the HTTP API: print it, and its line for the keys file (--api-keys-file of gateway and router).
    ///
    /// The key is shown this once; the file has its SHA-256 only. Its holder sends it as Authorization: Bearer KEY.
    #[command(after_help = API_KEY_EXAMPLES)]
    ApiKey {
        /// Name of the key, for the audit log: 1 to 32 letters, digits, '-' or '.'.
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do; may be given several times.
        #[arg(long, value_name = "SCOPE", value_delimiter = ',', required = true)]
        scope: Vec<Scope>,
    },
    /// Make a certificate nobody has signed, to try TLS with: writes dev-cert.pem and dev-key.pem.
    ///
    /// Clients have to be told to trust it. For the world a certificate comes from an authority, such as by ACME.
    #[command(after_help = DEV_CERT_EXAMPLES)]
    DevCert {
        /// Names and addresses it is for.
        #[arg(value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
        names: Vec<String>,
        /// Folder to write to.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Check whether this host is ready, and say how many connections it will hold.
    ///
    /// Looks at what a node with this configuration needs, compares the kernel's settings with a profile, and names the
    /// limit that binds first. It looks from where it runs: run it with the user, the limits and the control group the
    /// gateway will have. What runs now keeps what it has, a gateway included. Nothing is changed without --apply.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorFlags),
    /// Check the store of a node that does not run, or copy all that is in it.
    ///
    /// The node must not run: one process has a store at a time.
    #[command(after_help = STORE_EXAMPLES)]
    Store {
        /// What to do.
        #[arg(value_name = "ACTION")]
        action: StoreAction,
        #[command(flatten)]
        flags: Flags,
    },
}

const API_KEY_EXAMPLES: &str = "\
Scopes:
  users:read kick drain reload metrics:read nodes:read accounts:write login push:user push:group serve:<number>
  services:write
  and, for what is to come: push:all call items:read items:write

Examples:
  gateway api-key prometheus --scope metrics:read
  gateway api-key ops --scope kick,drain,users:read,nodes:read
  gateway api-key shop --scope push:user";

const STORE_EXAMPLES: &str = "\
Examples:
  gateway store check --data-dir /var/lib/trunkline
  gateway store export --data-dir /var/lib/trunkline > inboxes.jsonl
  gateway store import --data-dir /srv/trunkline < inboxes.jsonl

Exit status:
  0 done, and a check found nothing wrong; 1 damage was found, or the store cannot be used; 2 the configuration is
  refused.";

/// What is done to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreAction {
    /// Read everything there is, and say how much that is and whether it is whole.
    Check,
    /// Write everything to stdout: a line of JSON for each user and message.
    Export,
    /// Read from stdin what export has written. What is there already stays.
    Import,
}

const DEV_CERT_EXAMPLES: &str = "\
Examples:
  gateway dev-cert && gateway --tls-cert dev-cert.pem --tls-key dev-key.pem
  gateway dev-cert chat.example.com --out /tmp";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  gateway doctor                               ready for what this configuration allows, up to 100,000?
  gateway doctor --conns 250k --shards 4       ready for 250,000 connections with 4 shards?
  gateway doctor --profile 1m                  for 1,000,000, and how the kernel's settings differ
  gateway doctor --profile 1m --apply          write them, for now and for good; remember what was there
  gateway doctor --rollback                    restore what was there
  gateway doctor --json | jq .prediction       for programs
  systemd-run --pipe --wait -p LimitNOFILE=1048576 -p MemoryMax=8G gateway doctor
                                               as it will be under systemd

Exit status:
  0 ready, with or without warnings; 1 not ready, or something could not be written; 2 the configuration is refused.";

#[derive(Debug, Args)]
struct DoctorFlags {
    /// Profile to compare with: sysctl settings for 100,000, 1,000,000 or 10,000,000 connections. [default: the
    /// smallest that covers --conns]
    #[arg(long)]
    profile: Option<Profile>,
    /// Connections this host should hold: 250000, 250_000, 250k or 1m. [default: those of the profile]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    conns: Option<u64>,
    /// Write what the kernel lacks of the profile, for now (/proc/sys) and for good (/etc/sysctl.d/90-trunkline.conf).
    /// What was there is remembered in /var/lib/trunkline. A setting that is better already stays. Limits of processes,
    /// huge pages and the governor are not touched: their fix is printed.
    #[arg(long)]
    apply: bool,
    /// Restore what was there before the first --apply.
    #[arg(long, conflicts_with_all = ["apply", "profile", "conns"])]
    rollback: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Folder to look at instead of /; also for a host that is mounted elsewhere.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
    #[command(flatten)]
    flags: Flags,
}

/// A number of connections.
fn parse_count(text: &str) -> Result<u64, String> {
    let digits = text.replace('_', "").to_ascii_lowercase();
    let (digits, factor) = match (digits.strip_suffix('k'), digits.strip_suffix('m')) {
        (Some(digits), _) => (digits, 1_000),
        (None, Some(digits)) => (digits, 1_000_000),
        (None, None) => (digits.as_str(), 1),
    };
    let count = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
    match count.and_then(|count| count.checked_mul(factor)) {
        Some(count @ 1..=CONNS_MAX) => Ok(count),
        _ => Err("it must be a number from 1 to 1000000000, such as 250000, 250k or 1m".to_owned()),
    }
}

/// More than 1,024 shards hold, so that sums cannot overflow.
const CONNS_MAX: u64 = 1_000_000_000;

#[derive(Debug, Args)]
struct Flags {
    /// Configuration file.
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run a node.
    Run(Box<Config>),
    /// Print the default configuration.
    DefaultConfig,
    /// Print the configuration in force.
    CheckConfig(Box<Config>),
    /// Make a key of this name with these scopes.
    ApiKey(String, Vec<Scope>),
    /// Make a certificate for these names, in this folder.
    DevCert(Vec<String>, PathBuf),
    /// Check the machine.
    Doctor(Box<Doctor>),
    /// Do something to the store of a node that does not run.
    Store(StoreAction, Box<Config>),
}

/// What the doctor is asked for.
#[derive(Debug)]
pub(crate) struct Doctor {
    pub(crate) root: Root,
    pub(crate) host: Host,
    pub(crate) config: Config,
    pub(crate) goal: Goal,
    pub(crate) action: Action,
    pub(crate) json: bool,
}

/// What the doctor may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Look,
    Apply,
    Rollback,
}

/// A command line that cannot be followed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// For clap to print; help and version are among these.
    Usage(clap::Error),
    /// The configuration is refused.
    Config(ConfigError),
}

impl From<clap::Error> for CliError {
    fn from(error: clap::Error) -> Self {
        CliError::Usage(error)
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        CliError::Config(error)
    }
}

/// Reads the command line, the environment, and the file they name.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
    host: &Host,
) -> Result<Command, CliError> {
    let words: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let (matches, faults) = matches(&words)?;
    let Cli { command, flags } = Cli::from_arg_matches(&matches)?;
    let inner = matches.subcommand().map_or(&matches, |(_, inner)| inner);
    let config_on = |host: &Host, file: Option<&Path>, settings: Settings| -> Result<Box<Config>, ConfigError> {
        let mut faults = faults.clone();
        let file = match file.map(ConfigFile::read).transpose() {
            Ok(file) => file,
            Err(error) => {
                faults.push(error);
                return Err(ConfigError::unless_none(faults).expect_err("one was put in"));
            }
        };
        let from_environment = from_environment(inner);
        let sources = Sources { command: settings, from_environment, file, faults, origins: None };
        Ok(Box::new(Config::resolve(sources, host)?))
    };
    let config = |file: Option<&Path>, settings: Settings| config_on(host, file, settings);
    Ok(match command {
        None => Command::Run(config(flags.config.as_deref(), flags.settings)?),
        Some(Verb::Run(flags)) => Command::Run(config(flags.config.as_deref(), flags.settings)?),
        Some(Verb::DefaultConfig) => Command::DefaultConfig,
        Some(Verb::ApiKey { name, scope }) => Command::ApiKey(name, scope),
        Some(Verb::Store { action, flags }) => Command::Store(action, config(flags.config.as_deref(), flags.settings)?),
        Some(Verb::DevCert { names, out }) => Command::DevCert(names, out),
        Some(Verb::CheckConfig { file, settings }) => Command::CheckConfig(config(Some(&file), settings)?),
        Some(Verb::Doctor(doctor)) => {
            let root = Root::at(doctor.root);
            let host = if root.is_system() { host.clone() } else { Host::below(&root) };
            let config = config_on(&host, doctor.flags.config.as_deref(), doctor.flags.settings)?;
            let action = match (doctor.apply, doctor.rollback) {
                (true, _) => Action::Apply,
                (_, true) => Action::Rollback,
                _ => Action::Look,
            };
            let goal = Goal { profile: doctor.profile, connections: doctor.conns };
            Command::Doctor(Box::new(Doctor { root, host, config: *config, goal, action, json: doctor.json }))
        }
    })
}

/// What the command line and the environment say, and what of the environment is refused. A flag that is refused is an
/// error.
fn matches(words: &[OsString]) -> Result<(ArgMatches, Vec<ConfigError>), clap::Error> {
    let mut command = without_empty_variables(command());
    let mut faults = Vec::new();
    loop {
        let error = match command.clone().try_get_matches_from(words) {
            Ok(matches) => return Ok((matches, faults)),
            Err(error) => error,
        };
        let variable = refused_variable(&error, &command, words);
        let setting = variable.and_then(|(id, _)| SETTINGS.iter().find(|setting| id == setting.key));
        let Some(setting) = setting else { return Err(error) };
        faults.push(refused_value(setting, &error));
        // Look on without it.
        command = without_variable(command, setting.key);
    }
}

/// clap's error about the value of a variable, in the words of a configuration.
fn refused_value(setting: &Setting, error: &clap::Error) -> ConfigError {
    let value = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.clone(),
        _ => String::new(),
    };
    let allowed = match (error.get(ContextKind::ValidValue), error.source()) {
        (Some(ContextValue::Strings(values)), _) if !values.is_empty() => format!("it must be {}", values.join(" or ")),
        (_, Some(why)) => why.to_string(),
        _ => "it is no value of this setting".to_owned(),
    };
    ConfigError::Value { key: setting.key, value, origin: Origin::Environment(setting.env), allowed }
}

fn without_variable(mut command: clap::Command, key: &'static str) -> clap::Command {
    if command.get_arguments().any(|argument| argument.get_id() == key) {
        command = command.mut_arg(key, |argument| argument.env(Resettable::Reset));
    }
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| without_variable(sub, key));
    }
    command
}

/// Keys whose value comes from the environment.
fn from_environment(matches: &ArgMatches) -> Vec<&'static str> {
    let keys = SETTINGS.iter().map(|setting| setting.key);
    keys.filter(|key| {
        matches!(matches.try_contains_id(key), Ok(true)) && matches.value_source(key) == Some(ValueSource::EnvVariable)
    })
    .collect()
}

/// The command with the defaults of the settings in its help. They cannot be clap's own, because the file stands
/// between flags and defaults.
fn command() -> clap::Command {
    let mut command = with_defaults(Cli::command());
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, with_defaults);
    }
    command
}

fn with_defaults(mut command: clap::Command) -> clap::Command {
    for setting in SETTINGS {
        if !command.get_arguments().any(|argument| argument.get_id() == setting.key) {
            continue;
        }
        let default = match setting.default {
            DefaultValue::Fixed(value) => format!(" [default: {}]", value.trim_matches(['[', ']', '"'])),
            DefaultValue::Computed(how) => format!(" [default: {how}]"),
            DefaultValue::Unset(_) => String::new(),
        };
        let reloadable = if setting.reloadable { " [reloadable]" } else { "" };
        command = command.mut_arg(setting.key, |argument| {
            let extend = |help: Option<&StyledStr>| {
                format!("{}{default}{reloadable}", help.map(ToString::to_string).unwrap_or_default())
            };
            let help = extend(argument.get_help());
            // "-1" is a bad value of the flag before it and no flag of its own.
            argument.help(help.clone()).long_help(help).allow_hyphen_values(false).allow_negative_numbers(true)
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_gateway::config::{Endpoint, StorePlace};

    fn host() -> Host {
        Host { cores: 4, nofile_hard: 20_000, memory_available: 16 << 30, name: "host-1".to_owned() }
    }

    fn parse_words(words: &str) -> Result<Command, CliError> {
        parse(words.split(' '), &host())
    }

    fn config(words: &str) -> Config {
        match parse_words(words) {
            Ok(Command::Run(config) | Command::CheckConfig(config)) => *config,
            Ok(Command::Doctor(doctor)) => doctor.config,
            other => panic!("{words}: {other:?}"),
        }
    }

    fn usage_error(words: &str) -> String {
        match parse_words(words) {
            Err(CliError::Usage(error)) => error.to_string(),
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_key_has_a_name_and_scopes() {
        match parse_words("gateway api-key ops --scope kick,drain --scope serve:7") {
            Ok(Command::ApiKey(name, scopes)) => {
                assert_eq!((name.as_str(), &*scopes), ("ops", &[Scope::Kick, Scope::Drain, Scope::Serve(7)][..]));
            }
            other => panic!("{other:?}"),
        }
        assert!(usage_error("gateway api-key ops").contains("--scope"));
        assert!(usage_error("gateway api-key ops --scope fly").contains("users:read"));
    }

    #[test]
    fn run_is_what_happens_without_a_command() {
        assert!(matches!(parse_words("gateway"), Ok(Command::Run(_))));
        assert!(matches!(parse_words("gateway run"), Ok(Command::Run(_))));
        assert!(matches!(parse_words("gateway doctor"), Ok(Command::Doctor(_))));
        assert!(matches!(parse_words("gateway default-config"), Ok(Command::DefaultConfig)));
        assert_eq!(config("gateway --shards 3").shards, 3);
        assert_eq!(config("gateway run --shards 3").shards, 3);
        assert_eq!(config("gateway doctor --shards 3").shards, 3);
    }

    #[test]
    fn a_store_has_three_actions_and_the_settings_of_its_node() {
        for (word, action) in
            [("check", StoreAction::Check), ("export", StoreAction::Export), ("import", StoreAction::Import)]
        {
            match parse_words(&format!("gateway store {word} --data-dir /d")) {
                Ok(Command::Store(parsed, config)) => {
                    assert_eq!(parsed, action);
                    let place = config.store.map(|store| store.place);
                    assert_eq!(place, Some(StorePlace::Folder(PathBuf::from("/d"))));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(usage_error("gateway store burn").contains("export"));
    }

    #[test]
    fn the_doctor_takes_a_goal_and_one_action() {
        let doctor = |words: &str| match parse_words(&format!("gateway doctor {words}")) {
            Ok(Command::Doctor(doctor)) => doctor,
            other => panic!("{words}: {other:?}"),
        };
        let asked = doctor("--profile 1m --conns 250k --apply --json --shards 3");
        assert_eq!((asked.goal.profile, asked.goal.connections), (Some(Profile::M1), Some(250_000)));
        assert_eq!((asked.action, asked.json, asked.config.shards), (Action::Apply, true, 3));
        assert_eq!(doctor("--rollback").action, Action::Rollback);
        assert_eq!(doctor("--json").action, Action::Look);
        for words in
            ["--apply --rollback", "--rollback --profile 1m", "--rollback --conns 5", "--profile 2m", "--conns 0"]
        {
            assert!(usage_error(&format!("gateway doctor {words}")).contains("--"), "{words}");
        }
    }

    #[test]
    fn counts_take_suffixes_and_underscores() {
        for (text, count) in [("1", 1), ("250_000", 250_000), ("250k", 250_000), ("1m", 1_000_000), ("10M", 10_000_000)]
        {
            assert_eq!(parse_count(text), Ok(count), "{text}");
        }
        for text in
            ["", "k", "0", "0k", "-1", "+5", "1.5m", "1g", "99999999999999999999", "99999999999999999m", "1001m"]
        {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_setting_is_a_flag_of_the_same_name() {
        let command = command();
        for setting in SETTINGS {
            let argument =
                command.get_arguments().find(|argument| argument.get_id() == setting.key).expect(setting.key);
            assert_eq!(argument.get_long().map(|long| format!("--{long}")), Some(setting.flag()));
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(setting.env));
            assert_eq!(setting.env, format!("TRUNKLINE_{}", setting.key.to_uppercase()));
        }
    }

    #[test]
    fn flags_of_every_form_are_taken() {
        let config = config(
            "gateway --listen 127.0.0.1:1 --listen 127.0.0.1:2,[::1]:3 --http 127.0.0.1:4 --frame-bytes-max 32KiB \
             --read-mode hot --node n --log-format json --insecure-open --heartbeat-secs=45",
        );
        let addresses: Vec<String> =
            config.listen.iter().flat_map(Endpoint::addresses).map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"]);
        assert_eq!((config.limits().frame_bytes_max, config.limits().heartbeat_secs), (32_768, 45));
        assert_eq!(config.effective().insecure_open, Some(true));
        assert_eq!(config.origin("heartbeat_secs"), Origin::Flag("--heartbeat-secs".to_owned()));
        assert_eq!(config.origin("shards"), Origin::Default);
    }

    #[test]
    fn a_bad_value_is_named_with_its_flag() {
        for words in [
            "--shards many",
            "--shards -1",
            "--shards 1.5",
            "--auth maybe",
            "--frame-bytes-max x",
            "--memory-max 1KB",
            "--listen nowhere",
            "--http 127.0.0.1:99999",
            "--insecure-open=perhaps",
        ] {
            let message = usage_error(&format!("gateway {words}"));
            let (flag, value) = words.split_once([' ', '=']).unwrap();
            assert!(message.contains(flag) && message.contains(value), "{message}");
        }
        match parse_words("gateway --shards 0") {
            Err(CliError::Config(error)) => {
                assert_eq!(error.to_string(), "shards = 0 (--shards): it must be 1 to 1024")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert!(usage_error("gateway --no-such-flag").contains("--no-such-flag"));
        assert!(usage_error("gateway no-such-command").contains("no-such-command"));
        assert!(usage_error("gateway check-config").contains("FILE"));
    }

    #[test]
    fn help_explains_every_flag_with_its_default() {
        let help = usage_error("gateway --help");
        for setting in SETTINGS {
            assert!(help.contains(&setting.flag()), "no {} in {help}", setting.flag());
            assert!(help.contains(setting.env), "no {} in {help}", setting.env);
        }
        // Wherever a line is broken.
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "[default: 64KiB]",
            "[default: 127.0.0.1:7700]",
            "[default: one for each core, as far as memory_max holds what they need]",
            "[default: 30] [reloadable]",
            "Examples:",
            "default-config",
            "check-config",
            "doctor",
        ] {
            assert!(words.contains(part), "no {part:?} in {help}");
        }
    }
}
