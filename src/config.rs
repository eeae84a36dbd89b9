//! Settings: gathers those of each room, checks them against one another, and reports every
//! mistake at once with its source and its remedy.
//!
//! `config/longshore.toml` is documentation and default in one; it is embedded in the binary. Over
//! it go a file, `AMQP_URL` and `DATABASE_URL`, and variables `LONGSHORE__SECTION__KEY`.

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod layers;
mod rules;

use std::{collections::BTreeMap, fmt, path::Path};

use crate::{admin, downstream, kind, ledger, queue, telemetry, worker};

/// The default of every setting, with its explanation.
pub const DEFAULTS: &str = include_str!("../config/longshore.toml");

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[worker]`
    pub worker: worker::Settings,
    /// `[queue]`
    pub queue: queue::Settings,
    /// `[ledger]`
    pub ledger: ledger::Settings,
    /// `[admin]`
    pub admin: admin::Settings,
    /// `[log]`
    pub log: telemetry::Settings,
    /// `[defaults.kind]`: what a kind written in Rust has that has no section of its own.
    pub default_kind: kind::Settings,
    /// `[dependencies.<name>]`
    pub dependencies: BTreeMap<String, downstream::Settings>,
    /// `[kinds."<name>"]`
    pub kinds: BTreeMap<String, kind::Settings>,
}

/// One mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key, e.g. `queue.prefetch`.
    pub key: String,
    /// Where its value comes from, e.g. a file or an environment variable.
    pub source: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.key, self.text, self.source)
    }
}

/// Every mistake in the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mistake(s) in the settings", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

impl Config {
    /// Reads the defaults, the file if there is one, and the environment variables given.
    ///
    /// # Errors
    /// [`Mistakes`], all of them.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        Self::load_with_steps(file, environment, &[])
    }

    /// The same for a program that gives some kinds an implementation of
    /// [`Steps`](crate::steps::Steps): their sections, where they have one, say how patiently they
    /// are worked and nothing else.
    ///
    /// # Errors
    /// [`Mistakes`], all of them.
    pub fn load_with_steps(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        in_rust: &[&str],
    ) -> Result<Self, Mistakes> {
        let file = file.map(layers::File::read).transpose().map_err(Mistakes)?;
        Self::of(file.as_ref(), environment, in_rust)
    }

    fn of(
        file: Option<&layers::File>,
        environment: impl IntoIterator<Item = (String, String)>,
        in_rust: &[&str],
    ) -> Result<Self, Mistakes> {
        let mut layers = layers::Layers::read(file, environment).map_err(Mistakes)?;
        layers.read_secret_files();
        let worker = layers.section("worker");
        let queue = layers.section("queue");
        let ledger = layers.section("ledger");
        let admin = layers.section("admin");
        let log = layers.section("log");
        let default_kind = layers.shared("kind", &[]);
        // Their mistakes are told even while no section shares them.
        let _: Option<downstream::Settings> =
            layers.shared("dependency", &[("url", "http://localhost")]);
        let _: Option<downstream::CallSettings> =
            layers.shared("call", &[("dependency", "any"), ("path", "/")]);
        let dependencies = layers.named_sections("dependencies", "dependency");
        let kinds = layers.named_sections("kinds", "kind");
        layers.refuse_unknown_sections(&[
            "worker",
            "queue",
            "ledger",
            "admin",
            "log",
            "defaults",
            "dependencies",
            "kinds",
        ]);
        let mut config = match (worker, queue, ledger, admin, log, default_kind) {
            (
                Some(worker),
                Some(queue),
                Some(ledger),
                Some(admin),
                Some(log),
                Some(default_kind),
            ) => Self { worker, queue, ledger, admin, log, default_kind, dependencies, kinds },
            _ => return Err(layers.into_mistakes()),
        };
        // Half as many more, so that the next messages are here when slots become free. Where nearly all
        // of them wait for one limit, each waits for as long as those before it take: not many more.
        let slots = config.worker.concurrency;
        let prefetch = u16::try_from(slots.saturating_add((slots / 2).max(1))).unwrap_or(u16::MAX);
        let prefetch = *config.queue.prefetch.get_or_insert(prefetch);
        let ahead = usize::from(prefetch).saturating_sub(slots);
        config.queue.ahead = u16::try_from(ahead).unwrap_or(u16::MAX);
        if let Some(most) = config.worker.slots(config.worker.kind_share) {
            for kind in config.kinds.values_mut().chain([&mut config.default_kind]) {
                kind.max_in_flight = Some(kind.max_in_flight.map_or(most, |own| own.min(most)));
            }
        }
        for (key, text) in rules::problems(&config, in_rust) {
            layers.add(&key, text);
        }
        if layers.has_mistakes() { Err(layers.into_mistakes()) } else { Ok(config) }
    }

    /// How many deliveries may wait for a limit without a slot: a half of what is prefetched beyond the
    /// slots. The other half keeps the slots busy.
    pub(crate) fn may_wait(&self) -> usize {
        usize::from(self.queue.ahead) / 2
    }
}

#[cfg(test)]
mod tests;
