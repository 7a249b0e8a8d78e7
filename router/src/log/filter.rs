//! What may be written for a log filter.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Judges a log filter: a level, or `TARGET=LEVEL`, or several of these with commas between.
///
/// The library takes a lone word that is no level for the name of a target and logs nothing else; here that is refused,
/// because it is a misspelt level nearly always. `TARGET=trace` says the same.
///
/// # Errors
/// What is wrong, and what to write instead.
pub fn judge_filter(filter: &str) -> Result<(), String> {
    let allowed = "write error, warn, info, debug, trace or off, or a filter such as info,trunkline_gateway=debug";
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    if filter.trim().is_empty() {
        return Err(format!("it is empty: {allowed}"));
    }
    // A comma within the brackets of a span's fields does not part directives.
    if !filter.contains('[') {
        for directive in filter.split(',').map(str::trim) {
            let word = match directive.rsplit_once('=') {
                Some((_, level)) => level.trim(),
                None => directive,
            };
            if is_level(word) {
                continue;
            }
            let nearest = LEVELS.iter().map(|level| (strsim::jaro_winkler(&word.to_lowercase(), level), level));
            return Err(match nearest.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((likeness, level)) if likeness > 0.75 => {
                    format!("{word:?} is no level, did you mean {level}? {allowed}")
                }
                _ => format!("{word:?} is no level: {allowed}"),
            });
        }
    }
    EnvFilter::builder().parse(filter).map(drop).map_err(|error| format!("{error}: {allowed}"))
}

/// The filter with what it says of a program said of the program's core too: `trunkline_gateway=debug` is for all of
/// the gateway, though most of it is the crate `trunkline_core`. Who names the core has his own way with it.
pub(super) fn of_whole_programs(filter: &str) -> String {
    const PROGRAM: &str = "trunkline_gateway";
    const CORE: &str = "trunkline_core";
    if filter.contains(CORE) || filter.contains('[') {
        return filter.to_owned();
    }
    let of_core = filter.split(',').map(str::trim).filter(|directive| directive.starts_with(PROGRAM));
    let of_core: String = of_core.map(|directive| format!(",{}", directive.replacen(PROGRAM, CORE, 1))).collect();
    format!("{filter}{of_core}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_gateway_is_said_of_its_core() {
        for (filter, whole) in [
            ("info", "info"),
            ("info,trunkline_gateway=debug", "info,trunkline_gateway=debug,trunkline_core=debug"),
            ("trunkline_gateway::mesh=trace", "trunkline_gateway::mesh=trace,trunkline_core::mesh=trace"),
            ("warn,trunkline_gateway=info,trunkline_core=off", "warn,trunkline_gateway=info,trunkline_core=off"),
            ("trunkline_router=debug", "trunkline_router=debug"),
        ] {
            assert_eq!(of_whole_programs(filter), whole);
            assert_eq!(judge_filter(whole), Ok(()));
        }
    }

    #[test]
    fn levels_and_filters_are_taken() {
        for filter in [
            "info",
            "off",
            "TRACE",
            "info,trunkline_gateway=debug",
            "warn,hyper=off",
            "trunkline_router::http=trace",
            "[span{a=1}]=info",
        ] {
            assert_eq!(judge_filter(filter), Ok(()), "{filter}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_what_to_write() {
        for (filter, parts) in [
            ("verbose", &["\"verbose\"", "debug"][..]),
            ("waring", &["did you mean warn?"]),
            ("inf", &["did you mean info?"]),
            ("info,trunkline_gateway", &["\"trunkline_gateway\"", "trunkline_gateway=debug"]),
            ("info,trunkline_gateway=loud", &["\"loud\""]),
            ("info,", &["\"\""]),
            ("", &["empty"]),
            ("=", &["write"]),
        ] {
            let refusal = judge_filter(filter).expect_err(filter);
            assert!(parts.iter().all(|part| refusal.contains(part)), "{filter}: {refusal}");
        }
    }
}
