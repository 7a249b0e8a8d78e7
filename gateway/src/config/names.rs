//! Names that are nearly those of settings.

use super::SETTINGS;

/// How alike a name must be to a key to be taken for it misspelt (Jaro and Winkler's measure, 0 to 1).
const LIKENESS_MIN: f64 = 0.85;
/// What the variables of settings begin with.
const PREFIX: &str = "TRUNKLINE_";
/// What other programs of the project read, and the gateway besides its settings.
const OTHERS: [&str; 8] = [
    "TRUNKLINE_CLUSTER_SEED",
    "TRUNKLINE_CONFIG",
    "TRUNKLINE_DEBUG_",
    "TRUNKLINE_ROUTER_",
    "TRUNKLINE_SIM_",
    "TRUNKLINE_TOKEN",
    "TRUNKLINE_TROUBLE_",
    "TRUNKLINE_WRITE_",
];

/// The key that a name was probably meant to be.
pub(super) fn nearest_key(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase().replace('-', "_");
    let nearest = SETTINGS.iter().map(|setting| (strsim::jaro_winkler(&name, setting.key), setting.key));
    let (likeness, key) = nearest.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (likeness >= LIKENESS_MIN).then_some(key)
}

/// What to say of variables that look like those of settings and are none: whoever set one believes that it counts.
/// They are no error, because other programs may have some of that kind, and a newer version a setting that this one
/// lacks.
pub fn strange_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let is_strange = |name: &String| {
        name.starts_with(PREFIX)
            && SETTINGS.iter().all(|setting| setting.env != name)
            && !OTHERS.iter().any(|other| name.starts_with(other))
    };
    let mut said: Vec<String> = names
        .filter(is_strange)
        .map(|name| {
            let meant = match nearest_key(&name[PREFIX.len()..]) {
                Some(key) => format!("; did you mean {PREFIX}{}?", key.to_uppercase()),
                None => String::new(),
            };
            format!("the variable {name} is that of no setting{meant}")
        })
        .collect();
    said.sort();
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(names: &[&str]) -> Vec<String> {
        strange_variables(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn a_misspelt_variable_is_told_with_what_was_meant() {
        assert_eq!(
            said(&["TRUNKLINE_SHARD", "PATH", "TRUNKLINE_COFFEE"]),
            [
                "the variable TRUNKLINE_COFFEE is that of no setting",
                "the variable TRUNKLINE_SHARD is that of no setting; did you mean TRUNKLINE_SHARDS?",
            ]
        );
    }

    #[test]
    fn variables_of_settings_and_of_other_programs_are_nothing_strange() {
        for setting in SETTINGS {
            assert!(said(&[setting.env]).is_empty(), "{}", setting.env);
        }
        assert!(said(&["TRUNKLINE_CONFIG", "TRUNKLINE_TOKEN_FILE", "TRUNKLINE_ROUTER_HTTP", "LANG"]).is_empty());
    }
}
