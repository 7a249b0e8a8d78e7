//! Parts of `docs/` that are made from the tables of the code. They stand between `<!-- made: NAME -->` and `<!-- end:
//! NAME -->`.
//!
//! Only the standard library, so that other crates can include this file with `#[path]`.

#![allow(dead_code, reason = "each crate uses a part of it")]

use std::fs;
use std::path::Path;

/// `make docs` sets it: the parts are written, not compared.
const WRITE: &str = "TRUNKLINE_WRITE_DOCS";

/// Fails when the part `name` of `docs/{file}` is not `text`.
pub(crate) fn assert_documented(file: &str, name: &str, text: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the workspace");
    let path = root.join("docs").join(file);
    let document = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (begin, end) = (format!("<!-- made: {name} -->\n"), format!("<!-- end: {name} -->\n"));
    let (before, rest) = document.split_once(&begin).unwrap_or_else(|| panic!("{file} has no {begin}"));
    let (part, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{file} has no {end}"));
    let made = format!("\n{}\n\n", text.trim());
    if part == made {
        return;
    }
    assert!(std::env::var_os(WRITE).is_some(), "the part {name} of docs/{file} is not current: run `make docs`");
    fs::write(&path, [before, &begin, &made, &end, after].concat()).expect("write the document");
}

/// Labels whose values are those of the host, the cluster or what was asked, not of the code.
const OPEN_LABELS: [&str; 7] = ["shard", "le", "version", "node", "route", "status", "digest"];

/// A table of what Prometheus's text format says: each name with its type, its labels and their values, and its help.
pub(crate) fn metrics_table(exposition: &str) -> String {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and its help");
            families.push(Family { name, help, kind: "", labels: Vec::new() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = families.last_mut().expect("HELP stands before TYPE");
            family.kind = rest.split_once(' ').expect("a name and its type").1;
        } else if let Some((_, rest)) = line.split_once('{') {
            let labels = rest.rsplit_once('}').expect("labels end").0;
            families.last_mut().expect("HELP stands before the series").add_labels(labels);
        }
    }
    let mut text = String::from("| metric | type | labels | what |\n|---|---|---|---|\n");
    for Family { name, help, kind, labels } in families {
        let labels: Vec<String> = labels.iter().map(|(label, values)| label_text(label, values)).collect();
        text += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join("; "), help.replace('|', "\\|"));
    }
    text
}

/// All series of one name.
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    labels: Vec<(&'a str, Vec<&'a str>)>,
}

impl<'a> Family<'a> {
    /// Adds what stands between the braces of one series. No value of a label of the code has a comma or a quote in it.
    fn add_labels(&mut self, labels: &'a str) {
        for pair in labels.split("\",") {
            let (label, value) = pair.split_once("=\"").expect("a label and its value");
            let value = value.trim_end_matches('"');
            let at = self.labels.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
                self.labels.push((label, Vec::new()));
                self.labels.len() - 1
            });
            let values = &mut self.labels[at].1;
            if !OPEN_LABELS.contains(&label) && !values.contains(&value) {
                values.push(value);
            }
        }
    }
}

fn label_text(label: &str, values: &[&str]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
    let colon = if values.is_empty() { "" } else { ": " };
    format!("`{label}`{colon}{}", values.join(", "))
}
