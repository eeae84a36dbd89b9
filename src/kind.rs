//! Kinds: what is to be done for the requests of one name, and how patiently.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Deserialize;

use crate::{
    downstream::CallSettings,
    ledger::{Function, is_function_name},
    limit::{self, Bounds, PerSecond, WhenFull},
    retry::RetryPolicy,
    steer::MOST_IN_FLIGHT,
    steps::Steps,
    telemetry::metrics,
};

/// `[kinds."<name>"]`, over `[defaults.kind]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The SQL function that applies a request: `f(request jsonb[, response jsonb]) returns jsonb`.
    pub apply: Option<String>,
    /// A SQL function that applies many requests at once: `f(requests jsonb[]) returns jsonb[]`.
    pub apply_batch: Option<String>,
    /// Whose requests are applied in the order of the queue; left out: nobody's.
    pub ordered_by: Option<OrderedBy>,
    /// The HTTP request that goes before it.
    pub call: Option<CallSettings>,
    /// Whether the outcome is published to the request's `reply_to`.
    pub reply: bool,
    /// The longest an attempt may take.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Attempts in all.
    pub max_attempts: u32,
    /// The delay after the first failure, before jitter.
    #[serde(with = "humantime_serde")]
    pub initial_delay: Duration,
    /// No delay is longer.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// Each delay is this many times the one before.
    pub multiplier: f64,
    /// Requests worked at once by one worker; unset, as many as there are slots.
    pub max_in_flight: Option<usize>,
    /// Requests that may be begun a second, over all workers; unset, as many as there are.
    pub rate: Option<f64>,
    /// Requests that may be begun at once after a quiet time; what comes in a second unless it is set.
    pub burst: Option<f64>,
    /// What becomes of a request that finds one of these limits full.
    pub when_full: WhenFull,
    /// Requests of it that are parked, because it is paused or a limit of it is full, before the worker
    /// stops consuming.
    pub max_parked: u64,
}

/// What the requests that keep an order have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderedBy {
    /// The `user_id`.
    UserId,
}

impl Settings {
    /// Whether neither step is configured.
    pub fn does_nothing(&self) -> bool {
        self.apply.is_none() && self.call.is_none()
    }

    /// What is wrong with these settings: the key within the section, and the fault with its remedy.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut say = |key: &str, text: &str| problems.push((key.to_owned(), text.to_owned()));
        if let Some(apply) = &self.apply
            && !is_function_name(apply)
        {
            say("apply", &format!("`{apply}` is not a function's name such as app.update_profile"));
        }
        if let Some(batch) = &self.apply_batch {
            if !is_function_name(batch) {
                say(
                    "apply_batch",
                    &format!("`{batch}` is not a function's name such as app.update_profiles"),
                );
            }
            if self.apply.is_none() {
                say(
                    "apply_batch",
                    "needs `apply` beside it, for requests that are applied one by one",
                );
            }
            if self.call.is_some() {
                say("apply_batch", "is for kinds without a [call]; leave it out");
            }
            if self.ordered_by.is_some() {
                say(
                    "apply_batch",
                    "is not called for kinds with ordered_by, of which a user's next one waits for the end of the one before; leave it out",
                );
            }
        }
        if self.timeout < Duration::from_millis(10) {
            say("timeout", "must be at least 10ms");
        }
        if self.max_attempts == 0 {
            say("max_attempts", "must be at least 1: the first attempt counts");
        }
        if self.initial_delay < Duration::from_millis(1) {
            say("initial_delay", "must be at least 1ms");
        }
        if self.max_delay < self.initial_delay {
            say("max_delay", "is shorter than initial_delay");
        }
        if !(1.0..=100.0).contains(&self.multiplier) {
            say("multiplier", "must be between 1 and 100");
        }
        if self.max_in_flight.is_some_and(|most| !(1..=MOST_IN_FLIGHT).contains(&most)) {
            say("max_in_flight", "must be between 1 and 100000");
        }
        for (key, text) in limit::problems(self.rate, self.burst) {
            say(key, text);
        }
        if self.max_parked == 0 {
            say("max_parked", "must be at least 1");
        }
        for (key, text) in self.call.iter().flat_map(CallSettings::problems) {
            say(&format!("call.{key}"), &text);
        }
        problems
    }
}

/// A kind, ready to work.
#[derive(Clone)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// The longest an attempt may take.
    pub timeout: Duration,
    /// How often and how soon it is tried again.
    pub policy: RetryPolicy,
    /// Whether the outcome is published to `reply_to`.
    pub reply: bool,
    /// Whether the requests of a user are applied in the order of the queue.
    pub ordered: bool,
    /// Requests parked on its pause, or on its limits, before the worker stops consuming.
    pub max_parked: u64,
    /// How much of it at once, and how often. Shared by all copies.
    pub(crate) bounds: Arc<Bounds>,
    /// What is done.
    pub work: Work,
    /// What its attempts are counted in.
    pub(crate) meters: metrics::Meters,
    /// Shared by all copies.
    paused: Arc<AtomicBool>,
}

/// What is done for a request.
#[derive(Clone)]
pub enum Work {
    /// What the configuration says: a call, a SQL function, or both.
    Configured {
        /// The call, if there is one. The function is known to the ledger.
        call: Option<CallSettings>,
    },
    /// What a program that uses Longshore as a library says.
    Rust(Arc<dyn Steps>),
}

impl Kind {
    /// Whether a person has paused it: its requests are parked, not begun.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Relaxed)
    }

    /// Pauses it, or lets it go on; true when that changed anything.
    pub fn pause(&self, on: bool) -> bool {
        self.paused.swap(on, Relaxed) != on
    }

    /// What a request is parked on while it is paused.
    pub fn parked_on(&self) -> String {
        format!("kind:{}", self.name)
    }

    /// Whether anything leaves the house, so that the request must be claimed first.
    pub fn has_call(&self) -> bool {
        match &self.work {
            Work::Configured { call } => call.is_some(),
            Work::Rust(steps) => steps.has_call(),
        }
    }
}

/// All kinds, by name.
#[derive(Clone, Default)]
pub struct Kinds(BTreeMap<String, Kind>);

impl Kinds {
    /// The kinds of the configuration, and those written in Rust, which go before.
    pub fn new(
        settings: &BTreeMap<String, Settings>,
        rust: &BTreeMap<String, Arc<dyn Steps>>,
        default: &Settings,
    ) -> Self {
        let kind = |name: &String, settings: &Settings, work| {
            let kind = Kind {
                name: name.clone(),
                timeout: settings.timeout,
                policy: RetryPolicy {
                    max_attempts: settings.max_attempts,
                    initial_delay: settings.initial_delay,
                    max_delay: settings.max_delay,
                    multiplier: settings.multiplier,
                },
                reply: settings.reply,
                ordered: settings.ordered_by.is_some(),
                max_parked: settings.max_parked,
                bounds: Arc::new(Bounds::new(
                    &format!("kind:{name}"),
                    settings.max_in_flight,
                    PerSecond::of(settings.rate, settings.burst),
                    settings.when_full,
                )),
                work,
                meters: metrics::Meters::of(name),
                paused: Arc::default(),
            };
            (name.clone(), kind)
        };
        let configured = settings.iter().map(|(name, settings)| {
            kind(name, settings, Work::Configured { call: settings.call.clone() })
        });
        let rust = rust.iter().map(|(name, steps)| {
            kind(name, settings.get(name).unwrap_or(default), Work::Rust(Arc::clone(steps)))
        });
        Self(configured.chain(rust).collect())
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.0.get(name)
    }

    /// Every kind.
    pub fn iter(&self) -> impl Iterator<Item = &Kind> {
        self.0.values()
    }

    /// The longest timeout of any kind.
    pub fn longest_timeout(&self) -> Duration {
        self.iter().map(|kind| kind.timeout).max().unwrap_or_default()
    }
}

/// The SQL functions of the configured kinds, for the ledger.
pub fn functions(settings: &BTreeMap<String, Settings>) -> BTreeMap<String, Function> {
    settings
        .iter()
        .filter_map(|(kind, settings)| {
            let function = Function {
                name: settings.apply.clone()?,
                takes_response: settings.call.is_some(),
                batch: settings.apply_batch.clone(),
            };
            Some((kind.clone(), function))
        })
        .collect()
}
