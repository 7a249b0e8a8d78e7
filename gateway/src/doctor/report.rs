//! The report as text for people. As JSON it is what its types are.

use super::checks::{Check, START, Status};
use super::profile::Standing;
use super::{Outcome, Report};
use std::fmt;

/// A number with commas.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "target: {} connections, {} shards of up to {} each; profile {}",
            grouped(self.target),
            self.shards,
            grouped(self.connections_max),
            self.profile
        )?;
        self.write_checks(f)?;
        self.write_profile(f)?;
        self.write_prediction(f)?;
        writeln!(f, "\n{}", self.budget_text)?;
        if let Some(outcome) = &self.applied {
            writeln!(f, "\n{outcome}")?;
            writeln!(
                f,
                "limits of processes, huge pages, governor and interrupts are not touched: their fix stands with each"
            )?;
        }
        write!(f, "\n{}", self.verdict())
    }
}

impl Report {
    fn write_checks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut group = "";
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            if check.group != group {
                group = check.group;
                writeln!(f, "\n{group}")?;
            }
            write_check(f, check, width)?;
        }
        Ok(())
    }

    fn write_profile(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nprofile {}", self.profile)?;
        let width = self.profile_diff.iter().map(|one| one.setting.len()).max().unwrap_or(0);
        for one in &self.profile_diff {
            let (mark, found) = match one.standing {
                Standing::Satisfied => ("ok  ", one.found.as_str()),
                Standing::Differs => ("warn", one.found.as_str()),
                Standing::NotPresent => ("  - ", "not present"),
                Standing::Unreadable => ("warn", "cannot be read"),
            };
            writeln!(f, "  {mark}  {:<width$}  {found}  (wanted {})", one.setting, one.wanted)?;
            if one.standing == Standing::Differs {
                writeln!(f, "        {:<width$}  {}", "", one.without)?;
            }
        }
        if self.profile_diff.iter().any(|one| one.standing == Standing::Differs) {
            writeln!(f, "  fix: gateway doctor --profile {} --apply, as root", self.profile)?;
        }
        Ok(())
    }

    fn write_prediction(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nconnections each limit allows, the first binds")?;
        for term in &self.prediction.terms {
            writeln!(f, "  {:>15}  {:<34} {}", grouped(term.connections), term.limit, term.how)?;
        }
        Ok(())
    }

    /// The last line: what this host will hold, and whether that will do.
    pub fn verdict(&self) -> String {
        let first = &self.prediction.terms[0];
        let starting = |check: &&Check| check.group == START && check.status == Status::Fail;
        let stops: Vec<&str> = self.checks.iter().filter(starting).map(|check| check.name).collect();
        let mut text = String::new();
        if !stops.is_empty() {
            text = format!("As it is the gateway does not start: {}. Apart from that:\n", stops.join(", "));
        }
        text += &format!(
            "This host will hold about {} connections with {} shards; what binds first: {}: {}.",
            grouped(first.connections),
            self.shards,
            first.limit,
            first.how
        );
        if let Some(next) = self.prediction.terms.get(1) {
            text.push_str(&format!(" Next: {}, {}.", next.limit, grouped(next.connections)));
        }
        let failed = self.checks.iter().filter(|check| check.status == Status::Fail).count();
        let warned = self.checks.iter().filter(|check| check.status == Status::Warn).count();
        let warned = warned + self.profile_diff.iter().filter(|one| one.is_warning()).count();
        let what = if self.ready { "Ready" } else { "NOT READY" };
        text.push_str(&format!(
            "\n{what} for {} connections: {failed} failed, {warned} to improve.",
            grouped(self.target)
        ));
        text
    }
}

fn write_check(f: &mut fmt::Formatter<'_>, check: &Check, width: usize) -> fmt::Result {
    let mark = match check.status {
        Status::Ok => "ok  ",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    write!(f, "  {mark}  {:<width$}  {}", check.name, check.found)?;
    if check.status == Status::Ok {
        return writeln!(f);
    }
    if !check.wanted.is_empty() {
        write!(f, "  (wanted {})", check.wanted)?;
    }
    writeln!(f)?;
    for (name, text) in [("why", &check.why), ("fix", &check.fix)] {
        if !text.is_empty() {
            writeln!(f, "        {:<width$}  {name}: {text}", "")?;
        }
    }
    Ok(())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changed.is_empty() && self.failed.is_empty() {
            return write!(f, "nothing had to be changed");
        }
        let mut lines = Vec::new();
        for change in &self.changed {
            lines.push(format!("changed  {}: {} -> {}", change.what, change.from, change.to));
        }
        for refusal in &self.failed {
            lines.push(format!("FAILED   {}: {}", refusal.what, refusal.error));
        }
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (19_936, "19,936"), (1_048_512, "1,048,512")] {
            assert_eq!(grouped(number), text);
        }
    }
}
