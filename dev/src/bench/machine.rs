//! Where it was measured.

use std::{fmt, fs};

use super::field::Field;
use crate::programs;

/// What the numbers depend on.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    cores: usize,
    processor: String,
    memory: String,
    kernel: String,
    rabbit: String,
    postgres: String,
    rustc: String,
    profile: &'static str,
    /// Settings of Longshore that the environment changes.
    settings: Vec<String>,
    /// The load averages when it began, and when it had ended.
    loads: Vec<String>,
}

impl Machine {
    pub(super) async fn look(field: &Field) -> anyhow::Result<Self> {
        let fact = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':'));
            line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let memory = fact("/proc/meminfo", "MemTotal");
        let kib = memory.trim_end_matches(" kB").parse::<f64>();
        let mut settings: Vec<String> = std::env::vars()
            .filter(|(name, _)| name.starts_with("LONGSHORE__") && is_harmless(name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        settings.sort();
        let version = field.client.query_one("show server_version", &[]).await?;
        Ok(Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: fact("/proc/cpuinfo", "model name"),
            memory: kib.map_or(memory, |kib| format!("{:.1} GiB", kib / f64::from(1 << 20))),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
            rabbit: field.rabbit.ctl(&["version"]).await?.trim().to_owned(),
            postgres: version.get(0),
            rustc: programs::output("rustc", &["--version"])
                .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            settings,
            loads: vec![load()],
        })
    }

    /// The same machine, later.
    pub(super) fn again(mut self) -> Self {
        self.loads.push(load());
        self
    }

    /// Every fact with its name.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let settings = if self.settings.is_empty() {
            "the defaults".to_owned()
        } else {
            self.settings.join(" ")
        };
        vec![
            ("processor", format!("{}, {} cores", self.processor, self.cores)),
            ("memory", self.memory.clone()),
            ("kernel", format!("Linux {}", self.kernel)),
            ("RabbitMQ", format!("{}, as installed, on the same machine", self.rabbit)),
            ("Postgres", format!("{}, settings as told below, on the same machine", self.postgres)),
            ("compiler", format!("{}, {} build", self.rustc, self.profile)),
            (
                "Longshore",
                format!(
                    "{}, settings of the example service, else {settings}",
                    env!("CARGO_PKG_VERSION")
                ),
            ),
            (
                "load average",
                self.loads.join(" before, ") + if self.loads.len() > 1 { " after" } else { "" },
            ),
        ]
    }
}

/// What would show a password is not shown.
fn is_harmless(name: &str) -> bool {
    !["URL", "PASSWORD", "HEADERS"].iter().any(|secret| name.to_ascii_uppercase().contains(secret))
}

/// The load average of the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or("unknown").to_owned()
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, fact) in self.facts() {
            writeln!(f, "  {name:<13} {fact}")?;
        }
        Ok(())
    }
}
