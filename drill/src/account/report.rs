//! What the comparison found, for people.

use std::fmt;

use serde::Serialize;

/// How many histories are shown for a broken rule.
pub(super) const SHOWN: usize = 10;

/// One rule and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule, as a sentence.
    pub rule: String,
    /// How many things it was checked on.
    pub checked: usize,
    /// How many of them break it.
    pub broken: usize,
    /// What is known of the first ten of these.
    pub histories: Vec<String>,
}

/// The whole comparison. Its `Display` is an aligned table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was counted, in words and numbers.
    pub counts: Vec<(String, u64)>,
    /// Every rule.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether every rule holds.
    pub fn passed(&self) -> bool {
        self.findings.iter().all(|finding| finding.broken == 0)
    }

    /// The rules that do not hold.
    pub fn broken(&self) -> Vec<&str> {
        self.findings
            .iter()
            .filter(|finding| finding.broken > 0)
            .map(|finding| finding.rule.as_str())
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .counts
            .iter()
            .map(|(name, _)| name)
            .chain(self.findings.iter().map(|finding| &finding.rule));
        let width = names.map(|name| name.chars().count()).max().unwrap_or_default();
        for (name, count) in &self.counts {
            writeln!(f, "{name:width$}  {count:>10}")?;
        }
        for finding in &self.findings {
            let result = if finding.broken == 0 {
                "PASS".to_owned()
            } else {
                format!("FAIL ({})", finding.broken)
            };
            writeln!(f, "{:width$}  {:>10}  {result}", finding.rule, finding.checked)?;
            for history in &finding.histories {
                writeln!(f, "    {history}")?;
            }
            if finding.broken > finding.histories.len() && !finding.histories.is_empty() {
                writeln!(f, "    and {} more", finding.broken - finding.histories.len())?;
            }
        }
        Ok(())
    }
}
