//! The `gateway` command: reads the configuration, checks the machine, starts the shards and serves HTTP until a signal
//! ends it.

mod cli;
mod run;

use cli::{Action, CliError, Command, Doctor, StoreAction};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use trunkline_gateway::budget::Budget;
use trunkline_gateway::config::{
    Config, ConfigError, Host, StoreConfig, StorePlace, StoreSyncKind, default_config, strange_variables,
};
use trunkline_gateway::dev_cert;
use trunkline_gateway::doctor::{self, Outcome, Status, apply, resolve_goal, rollback};
use trunkline_gateway::startup::StartupError;
use trunkline_gateway::store::{Tool, ToolError, has_groups, open, open_groups, redis_settings, store_limits};
use trunkline_router::http::{NewKey, Scope};
use trunkline_router::log;
use trunkline_store::{Imported, Store};

/// Shards allocate and free small buffers all the time, and each only its own: what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status when the configuration is refused; a failure of any other kind is 1.
const EXIT_CONFIG: u8 = 2;

/// Why the command failed.
enum Failure {
    Config(ConfigError),
    Startup(StartupError),
    /// In operation, or while printing.
    Other(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Config(error)
    }
}

impl From<StartupError> for Failure {
    fn from(error: StartupError) -> Self {
        Failure::Startup(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Other(format!("writing the output: {error}"))
    }
}

fn main() -> ExitCode {
    // A connection's state is some hundred bytes here and there: with huge pages each of those would make two megabytes
    // resident. Where the kernel knows no such setting there are no huge pages either.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let host = Host::read();
    let outcome = match cli::parse(std::env::args_os(), &host) {
        Ok(command) => follow(command, &host),
        Err(CliError::Usage(error)) => error.exit(),
        Err(CliError::Config(error)) => Err(error.into()),
    };
    let failure = match outcome {
        Ok(()) => None,
        Err(Failure::Config(error)) => Some((error.to_string(), EXIT_CONFIG)),
        Err(Failure::Startup(error)) => Some((error.to_string(), 1)),
        Err(Failure::Other(error)) => Some((error, 1)),
    };
    let status = failure.map_or(0, |(message, status)| {
        log::fail("gateway", &message);
        status
    });
    log::flush();
    ExitCode::from(status)
}

fn follow(command: Command, host: &Host) -> Result<(), Failure> {
    match command {
        Command::DefaultConfig => print(&default_config(host)),
        Command::CheckConfig(config) => check_config(&config),
        Command::ApiKey(name, scopes) => api_key(&name, &scopes),
        Command::DevCert(names, folder) => dev_certificate(&folder, &names),
        Command::Doctor(asked) => doctor(&asked),
        Command::Store(action, config) => store(action, &config),
        Command::Run(config) => {
            let facts = host.clone();
            // With the facts of the start: a default computed from the memory that is free now would be another one
            // each time.
            let read = move || match cli::parse(std::env::args_os(), &facts) {
                Ok(Command::Run(config)) => Ok(*config),
                Err(CliError::Config(error)) => Err(error),
                other => Err(ConfigError::Conflict(format!("the command line means something else now: {other:?}"))),
            };
            run::run(*config, host.clone(), Box::new(read))
        }
    }
}

/// Names of the environment's variables. One that is no text is that of no setting.
fn variable_names() -> impl Iterator<Item = String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())
}

/// Writes to stdout; a closed pipe is a [`Failure::Other`] and no panic.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// The output is the configuration in force as a file, with the memory budget as comments.
fn check_config(config: &Config) -> Result<(), Failure> {
    let budget = Budget::of(config);
    let mut comments: String = budget.to_string().lines().map(|line| format!("# {line}\n")).collect();
    comments.extend(strange_variables(variable_names()).iter().map(|word| format!("# warning: {word}\n")));
    print(&format!("{}\n{comments}", config.effective_text()))?;
    // What would keep a node from starting is refused here too, as a fault of the configuration.
    let mut faults: Vec<ConfigError> = Vec::new();
    faults.extend(config.load_auth().err());
    faults.extend(config.load_access().err());
    faults.extend(config.check_webhooks().err());
    faults.extend(config.load_server_keys().err());
    faults.extend(config.load_secret().err());
    faults.extend(config.load_cluster().err());
    faults.extend(config.load_tls().err());
    faults.extend(config.load_http_tls().err());
    faults.extend(budget.check().err().map(|error| ConfigError::Conflict(error.to_string())));
    Ok(ConfigError::unless_none(faults)?)
}

/// A store that no node has open: checked, written out or read in.
fn store(action: StoreAction, config: &Config) -> Result<(), Failure> {
    let Some(of_store) = &config.store else {
        let needed = "the place of the store is needed: give --data-dir DIR, --store redis and --redis URL, or the \
                      configuration of its node";
        return Err(ConfigError::Conflict(needed.to_owned()).into());
    };
    let folder = match &of_store.place {
        StorePlace::Folder(folder) => folder,
        StorePlace::Redis(sync) => return store_in_redis(action, config, of_store, *sync),
    };
    let limits = store_limits(of_store, config.limits());
    // An export of a store without groups does not make any.
    let with_groups = action == StoreAction::Import || (action == StoreAction::Export && has_groups(folder));
    let open_groups = || open_groups(folder, of_store, config.limits());
    let of_store = |error: io::Error| Failure::Other(format!("the store in {}: {error}", folder.display()));
    if action != StoreAction::Import && !folder.is_dir() {
        // To open it would make an empty one.
        return Err(of_store(io::ErrorKind::NotFound.into()));
    }
    let mut store = open(folder, limits)?;
    let mut groups = with_groups.then(open_groups).transpose()?;
    let mut imported = Imported::default();
    match action {
        StoreAction::Check => {
            let checked = store.check().map_err(of_store)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&checked).map_err(io::Error::from)?))?;
            if !checked.is_sound() {
                return Err(Failure::Other("the store is damaged; devices are told what may be gone".to_owned()));
            }
        }
        StoreAction::Export => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            store.export(&mut out).map_err(of_store)?;
            if let Some(groups) = &mut groups {
                groups.export(&mut out).map_err(of_store)?;
            }
            out.flush()?;
        }
        StoreAction::Import => {
            imported = store.import_with(groups.as_mut(), &mut io::stdin().lock()).map_err(of_store)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&imported).map_err(io::Error::from)?))?;
        }
    }
    store.close();
    if let Some(groups) = groups {
        groups.into_logs().close();
    }
    all_taken(&imported)
}

/// # Errors
/// Where messages of an import found no room.
fn all_taken(imported: &Imported) -> Result<(), Failure> {
    match imported.refused {
        0 => Ok(()),
        refused => Err(Failure::Other(format!(
            "{refused} messages were not taken, for want of room in their inboxes or groups: raise the limits \
             (--inbox-messages-max, --inbox-bytes-max, --group-messages-max) and import the same once more"
        ))),
    }
}

/// The store that the nodes of a cluster share, which they may go on using.
fn store_in_redis(
    action: StoreAction,
    config: &Config,
    store: &StoreConfig,
    sync: Option<StoreSyncKind>,
) -> Result<(), Failure> {
    let Some(cluster) = config.load_cluster()? else {
        return Err(ConfigError::Conflict("store = redis needs --redis".to_owned()).into());
    };
    let failed = |error: ToolError| Failure::Other(format!("the store in Redis: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tool = Tool::connect(redis_settings(store, sync, config.limits(), &cluster)).await.map_err(failed)?;
        match action {
            StoreAction::Check => {
                let checked = tool.check().await.map_err(failed)?;
                print(&format!("{}\n", serde_json::to_string_pretty(&checked).map_err(io::Error::from)?))?;
                if !checked.is_sound() {
                    return Err(Failure::Other("what Redis has is not what it counts".to_owned()));
                }
            }
            StoreAction::Export => {
                let mut out = io::BufWriter::new(io::stdout());
                tool.export(&mut out).await.map_err(failed)?;
                out.flush()?;
            }
            StoreAction::Import => {
                let imported = tool.import(&mut io::stdin().lock()).await.map_err(failed)?;
                print(&format!("{}\n", serde_json::to_string_pretty(&imported).map_err(io::Error::from)?))?;
                all_taken(&imported)?;
            }
        }
        Ok(())
    })
}

/// The key is shown here and nowhere else.
fn api_key(name: &str, scopes: &[Scope]) -> Result<(), Failure> {
    let NewKey { key, line } = NewKey::make(name, scopes).map_err(Failure::Other)?;
    print(&format!("key, shown this once:\n{key}\n\nline for the keys file:\n{line}\n"))
}

/// What to do with it is said too.
fn dev_certificate(folder: &Path, names: &[String]) -> Result<(), Failure> {
    let files = dev_cert::write(folder, names).map_err(Failure::Other)?;
    let (cert, key) = (files.cert.display(), files.key.display());
    print(&format!(
        "written: {cert}, {key} (for {})\nnext: gateway --tls-cert {cert} --tls-key {key}\n\
         try it: openssl s_client -connect 127.0.0.1:7700 -CAfile {cert} -alpn trunkline/1\n",
        names.join(", ")
    ))
}

/// Looks at the host, or changes it when asked to. An apply is followed by another look.
fn doctor(asked: &Doctor) -> Result<(), Failure> {
    if asked.action == Action::Rollback {
        let outcome = rollback(&asked.root).map_err(Failure::Other)?;
        print_as(asked.json, &outcome)?;
        return unless_failed(&outcome, "restored");
    }
    asked.config.load_auth()?;
    asked.config.load_tls()?;
    asked.config.load_http_tls()?;
    let examine = || doctor::examine(&asked.root, &asked.host, &asked.config, asked.goal);
    let mut report = examine();
    if asked.action == Action::Apply {
        let (profile, _) = resolve_goal(asked.goal, &asked.config);
        let outcome = apply(&asked.root, profile).map_err(Failure::Other)?;
        report = examine();
        report.applied = Some(outcome);
    }
    // On a made-up root there is nobody to connect to.
    let cluster = if asked.root.is_system() { asked.config.load_cluster()? } else { None };
    if let Some(cluster) = cluster {
        report.add(doctor::check_redis(&cluster.redis));
        if let Some(StorePlace::Redis(sync)) = asked.config.store.as_ref().map(|store| &store.place) {
            report.add(doctor::check_redis_store(&cluster.redis, *sync));
        }
    }
    print_as(asked.json, &report)?;
    if let Some(outcome) = &report.applied {
        unless_failed(outcome, "written")?;
    }
    let failed = report.checks.iter().filter(|check| check.status == Status::Fail).count();
    match failed {
        0 => Ok(()),
        1 => Err(Failure::Other("not ready: 1 check failed".to_owned())),
        _ => Err(Failure::Other(format!("not ready: {failed} checks failed"))),
    }
}

fn print_as(json: bool, what: &(impl Serialize + Display)) -> Result<(), Failure> {
    let text = if json { serde_json::to_string_pretty(what).map_err(io::Error::from)? } else { what.to_string() };
    print(&format!("{text}\n"))
}

fn unless_failed(outcome: &Outcome, done: &str) -> Result<(), Failure> {
    let names: Vec<&str> = outcome.failed.iter().map(|refusal| refusal.what.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(Failure::Other(format!("not everything could be {done} (root is needed): {}", names.join(", "))))
}
