//! Downstream services over HTTP: the call step, behind a breaker for each dependency.
//!
//! The only room that knows `reqwest`. A call takes a place under the dependency's limit, asks
//! its breaker ([`breaker`]), is sent under a deadline ([`Dependency::guard`]), and its answer is
//! judged twice: for the request, and for the breaker. A call is sent once; trying again belongs
//! to the ledger.

pub mod breaker;
mod call;
mod classify;
mod client;
mod dependency;
pub mod release;
mod settings;
mod standing;
mod tell;
mod tls;
mod turn;

use std::{collections::BTreeMap, time::Duration};

use rustls::RootCertStore;

pub use self::{
    breaker::Verdict,
    call::CallSettings,
    dependency::{Dependency, Judged},
    settings::Settings,
    standing::Standing,
};
use crate::{
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
};
pub(crate) use turn::{Coming, let_go};

/// All dependencies.
#[derive(Debug)]
pub struct Downstream {
    dependencies: BTreeMap<String, Dependency>,
}

/// A dependency cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
#[error("dependencies.{dependency}: {what}")]
pub struct BuildError {
    /// Its name.
    pub dependency: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Downstream {
    /// Sets up every dependency; connects to none of them.
    ///
    /// # Errors
    /// [`BuildError`] for the first that cannot be set up: a setting is wrong, or its
    /// certificates cannot be read.
    pub fn new(settings: &BTreeMap<String, Settings>) -> Result<Self, BuildError> {
        let uses_tls = settings.values().any(Settings::uses_tls);
        let roots = if uses_tls { tls::machine_roots() } else { RootCertStore::empty() };
        let mut dependencies = BTreeMap::new();
        for (name, settings) in settings {
            let wrong = |what| BuildError { dependency: name.clone(), what };
            let problems = settings.problems().into_iter();
            let problems: Vec<String> =
                problems.map(|(setting, wrong)| format!("{setting} {wrong}")).collect();
            if !problems.is_empty() {
                return Err(wrong(problems.join("; ")));
            }
            let dependency = Dependency::new(name, settings, roots.clone()).map_err(wrong)?;
            dependencies.insert(name.clone(), dependency);
        }
        Ok(Self { dependencies })
    }

    /// Makes one call for a request, within `budget` or the dependency's timeout, whichever is
    /// less. Returns the answer as JSON text, `None` for an empty body. The `last` attempt of a
    /// request is no probe while others are there to be one.
    ///
    /// It may be dropped at any await: the dependency may then have worked the call or not, which
    /// is why every call of a request carries the same `Idempotency-Key`.
    ///
    /// # Errors
    /// `Refused` when it would be answered the same way again, `Transient` when it may pass,
    /// `NotAdmitted` when nothing was sent because of the breaker or the limit.
    pub async fn call(
        &self,
        call: &CallSettings,
        request: &Request,
        last: bool,
        budget: Duration,
    ) -> Result<Option<String>, StepError> {
        match self.dependencies.get(&call.dependency) {
            Some(dependency) => dependency.call(call, request, last, budget).await,
            None => Err(StepError::Refused(Failure::new(
                ErrorCode::CallRefused,
                format!("no dependency `{}` is configured", call.dependency),
            ))),
        }
    }

    /// The dependencies whose breaker lets nothing through right now.
    pub fn not_admitting(&self) -> Vec<String> {
        self.dependencies
            .values()
            .filter(|it| !it.admits())
            .map(|it| it.name().to_owned())
            .collect()
    }

    /// Every dependency, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Dependency> {
        self.dependencies.values()
    }

    /// Whether a dependency can be reached: any answer in HTTP counts. Asks past the breaker, by
    /// `HEAD` on the base URL and with the dependency's headers.
    ///
    /// # Errors
    /// What came of it and what to look at, in plain words.
    pub async fn reach(&self, name: &str) -> Result<(), String> {
        match self.dependencies.get(name) {
            Some(dependency) => dependency.reach().await,
            None => Err(format!("no dependency `{name}` is configured, add [dependencies.{name}]")),
        }
    }

    /// One dependency, for handlers written in Rust.
    pub fn get(&self, name: &str) -> Option<&Dependency> {
        self.dependencies.get(name)
    }
}

#[cfg(test)]
mod tests;
