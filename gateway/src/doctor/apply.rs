//! `--apply` and `--rollback`: writes a profile to the kernel and to /etc, and undoes it.
//!
//! The record of what was there is on disk before anything is changed, and an entry in it is never replaced: whatever
//! happens in between, a rollback leads to the state before the first apply.

use super::profile::{Difference, Profile, Standing, compare, fields, sysctl_file};
use crate::host_tree::{Found, Root};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Where the settings are written for good.
pub const SYSCTL_FILE: &str = "/etc/sysctl.d/90-trunkline.conf";
/// Where it is remembered what was there.
pub const RECORD_FILE: &str = "/var/lib/trunkline/doctor-rollback.json";
const RECORD_VERSION: u32 = 1;

/// What was there before the first apply.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Values of the kernel, by name.
    sysctls: BTreeMap<String, String>,
    /// Text of [`SYSCTL_FILE`]; none when there was no such file.
    sysctl_file: Option<String>,
}

/// One value or file that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Name of the sysctl, or of the file.
    pub what: String,
    /// What was there.
    pub from: String,
    /// What is there now.
    pub to: String,
}

/// One value or file that could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Name of the sysctl, or of the file.
    pub what: String,
    /// Why.
    pub error: String,
}

/// What an apply or a rollback did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What was changed, in this order.
    pub changed: Vec<Change>,
    /// What could not be changed.
    pub failed: Vec<Refusal>,
}

impl Outcome {
    fn note(&mut self, what: &str, from: &str, to: &str, done: Result<(), String>) {
        let what = what.to_owned();
        match done {
            Ok(()) => self.changed.push(Change { what, from: from.to_owned(), to: to.to_owned() }),
            Err(error) => self.failed.push(Refusal { what, error }),
        }
    }
}

/// Writes what the host lacks of a profile. A setting that is better than the profile stays.
///
/// # Errors
/// When the record cannot be read or written; then nothing was changed. A single write that fails is part of the
/// outcome.
pub fn apply(root: &Root, profile: Profile) -> Result<Outcome, String> {
    let differences = compare(root, profile);
    let lacking: Vec<&Difference> = differences.iter().filter(|one| one.standing == Standing::Differs).collect();
    let file = file_text(&differences, profile);
    let file_before = read_file(root)?;
    let mut outcome = Outcome::default();
    if lacking.is_empty() && file_before.as_deref() == Some(&file) {
        return Ok(outcome);
    }

    let mut record = match read_record(root)? {
        Some(record) => record,
        None => Record { version: RECORD_VERSION, sysctls: BTreeMap::new(), sysctl_file: file_before.clone() },
    };
    for one in &lacking {
        record.sysctls.entry(one.setting.clone()).or_insert_with(|| one.found.clone());
    }
    let text = serde_json::to_string_pretty(&record).expect("texts in maps are JSON");
    write_whole(&root.path(RECORD_FILE), &text).map_err(|error| {
        format!("{RECORD_FILE} cannot be written ({error}), so nothing was changed: run it as root")
    })?;

    for one in lacking {
        let done = write_sysctl(root, &one.setting, &one.target);
        outcome.note(&one.setting, &one.found, &one.target, done);
    }
    if file_before.as_deref() != Some(&file) {
        let done = write_whole(&root.path(SYSCTL_FILE), &file).map_err(|error| error.to_string());
        let from = if file_before.is_some() { "another text" } else { "no file" };
        outcome.note(SYSCTL_FILE, from, "written", done);
    }
    Ok(outcome)
}

/// Restores what the record says and removes it.
///
/// # Errors
/// When there is no record, or it cannot be read. A single write that fails is part of the outcome, and then the record
/// stays.
pub fn rollback(root: &Root) -> Result<Outcome, String> {
    let Some(record) = read_record(root)? else {
        return Err(format!("there is nothing to roll back: {RECORD_FILE} is not there, so --apply changed nothing"));
    };
    let mut outcome = Outcome::default();
    for (key, before) in &record.sysctls {
        // A module that has been unloaded took its settings along.
        let Found::Text(found) = root.look(&sysctl_file(key)) else { continue };
        let found = fields(&found);
        if found != *before {
            let done = write_sysctl(root, key, before);
            outcome.note(key, &found, before, done);
        }
    }
    if read_file(root)? != record.sysctl_file {
        let path = root.path(SYSCTL_FILE);
        let (to, done) = match &record.sysctl_file {
            Some(text) => ("as before", write_whole(&path, text)),
            None => ("removed", fs::remove_file(&path)),
        };
        outcome.note(SYSCTL_FILE, "written", to, done.map_err(|error| error.to_string()));
    }
    if outcome.failed.is_empty()
        && let Err(error) = fs::remove_file(root.path(RECORD_FILE))
    {
        outcome.failed.push(Refusal { what: RECORD_FILE.to_owned(), error: error.to_string() });
    }
    Ok(outcome)
}

/// The settings in force as a file for /etc/sysctl.d: no value of the host that is better is lowered at the next start.
fn file_text(differences: &[Difference], profile: Profile) -> String {
    let mut text = format!(
        "# Written by gateway doctor --profile {} --apply; gateway doctor --rollback restores what was here before.\n",
        profile.name()
    );
    for one in differences {
        let sign = if one.optional { "-" } else { "" };
        text.push_str(&format!("{sign}{} = {}\n", one.setting, one.target));
    }
    text
}

fn read_file(root: &Root) -> Result<Option<String>, String> {
    match fs::read_to_string(root.path(SYSCTL_FILE)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{SYSCTL_FILE} cannot be read ({error}), so nothing was changed: run it as root")),
    }
}

fn read_record(root: &Root) -> Result<Option<Record>, String> {
    let text = match fs::read_to_string(root.path(RECORD_FILE)) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("{RECORD_FILE} cannot be read ({error}): run it as root")),
    };
    let refuse =
        |why: String| format!("{RECORD_FILE} is no record of this version ({why}): move it away to go on without it");
    let record: Record = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    if record.version != RECORD_VERSION {
        return Err(refuse(format!("version {}", record.version)));
    }
    // The names become paths.
    match record.sysctls.keys().find(|key| key.contains("..") || key.contains('/')) {
        Some(key) => Err(refuse(format!("{key} is no sysctl"))),
        None => Ok(Some(record)),
    }
}

/// Writes a value and reads it back, because the kernel takes some values and makes others of them.
fn write_sysctl(root: &Root, key: &str, value: &str) -> Result<(), String> {
    let name = sysctl_file(key);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).truncate(true).open(root.path(&name))?;
        // One write: the kernel takes each as a whole value.
        file.write_all(format!("{value}\n").as_bytes())
    };
    write().map_err(|error| error.to_string())?;
    match root.text(&name).map(|found| fields(&found)) {
        Some(found) if found == value => Ok(()),
        Some(found) => Err(format!("the kernel made {found} of {value}")),
        None => Err("it was written and cannot be read back".to_owned()),
    }
}

/// Replaces a file as a whole or not at all.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No reader of sysctl.d takes a file of this name: it ends in neither .conf nor .json.
    let temporary = folder.join(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The name must be on disk too before what it records is changed.
        File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests;
