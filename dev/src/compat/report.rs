//! What the tests said, and the table of it.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use super::system::System;

/// How one suite did on one system.
#[derive(Debug)]
pub(super) struct Report {
    passed: usize,
    failed: Vec<String>,
    /// It came to its end and found nothing wrong, by its own word.
    clean: bool,
    took: Duration,
    log: PathBuf,
}

impl Report {
    /// Reads what the test program printed.
    pub(super) fn read(text: &str, clean: bool, took: Duration, log: PathBuf) -> Self {
        let ended = |how: &'static str| {
            text.lines().filter_map(move |line| {
                let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
                (result == how).then(|| name.to_owned())
            })
        };
        Self { passed: ended("ok").count(), failed: ended("FAILED").collect(), clean, took, log }
    }

    fn passed(&self) -> bool {
        self.clean && self.failed.is_empty() && self.passed > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed", self.passed)?;
        if !self.failed.is_empty() {
            write!(f, ", {} FAILED", self.failed.len())?;
        } else if !self.passed() {
            write!(f, ", NOT to its end")?;
        }
        write!(f, " in {} s", self.took.as_secs())
    }
}

/// One system.
#[derive(Debug)]
pub(super) struct Row {
    name: &'static str,
    rabbit: String,
    postgres: String,
    pub(super) reports: Vec<Report>,
}

impl Row {
    pub(super) fn of(system: &System) -> anyhow::Result<Self> {
        let (rabbit, postgres) = system.versions()?;
        Ok(Self { name: system.name, rabbit, postgres, reports: Vec::new() })
    }

    pub(super) fn passed(&self) -> bool {
        self.reports.iter().all(Report::passed)
    }
}

/// Prints the table, and below it what failed and where to read on.
pub(super) fn print(suites: &[&str], rows: &[Row]) {
    print!("\n{:<10} {:<9} {:<9}", "Debian", "RabbitMQ", "Postgres");
    for suite in suites {
        print!(" {suite:<30}");
    }
    println!(" result");
    for row in rows {
        print!("{:<10} {:<9} {:<9}", row.name, row.rabbit, row.postgres);
        for report in &row.reports {
            print!(" {:<30}", report.to_string());
        }
        println!(" {}", if row.passed() { "PASS" } else { "FAIL" });
    }
    for row in rows {
        for report in row.reports.iter().filter(|report| !report.passed()) {
            println!("\n{}: see {}", row.name, report.log.display());
            for name in &report.failed {
                println!("  {name}");
            }
        }
    }
}

/// Where the program of a suite is, if this line of cargo's says so.
pub(super) fn program(line: &str, suite: &str) -> Option<PathBuf> {
    let told: Value = serde_json::from_str(line).ok()?;
    let target = &told["target"];
    (told["reason"] == "compiler-artifact"
        && target["kind"][0] == "test"
        && target["name"] == *suite)
        .then(|| told["executable"].as_str().map(|path| Path::new(path).to_path_buf()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest d ... ok\n\n\
                        test result: FAILED. 2 passed; 1 failed; 0 ignored\n";

    fn read(text: &str, clean: bool) -> Report {
        Report::read(text, clean, Duration::from_secs(7), PathBuf::new())
    }

    #[test]
    fn a_report_has_what_the_tests_said() {
        let report = read(TEXT, false);
        assert_eq!((report.passed, report.failed.as_slice()), (2, &["a::c".to_owned()][..]));
        assert_eq!(report.to_string(), "2 passed, 1 FAILED in 7 s");
        assert!(!report.passed());
    }

    #[test]
    fn what_did_not_come_to_its_end_or_ran_nothing_has_not_passed() {
        assert!(read("test a ... ok\n", true).passed());
        assert!(!read("test a ... ok\n", false).passed(), "it crashed");
        assert!(!read("running 0 tests\n", true).passed(), "a filter that meets nothing");
    }

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"it"},"executable":"/t/it-1"}"#;
        assert_eq!(program(line, "it"), Some(PathBuf::from("/t/it-1")));
        assert_eq!(program(line, "queue"), None);
        assert_eq!(program("not json", "it"), None);
    }
}
