//! `[dependencies.<name>]`: where a service is, and how much it may take of us.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{breaker, call::header_problem, release};
use crate::{
    limit::{self, WhenFull},
    steer::MOST_IN_FLIGHT,
};

/// No call takes longer: an hour.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// A response is held in memory and goes into the ledger: 64 MiB.
const LARGEST_RESPONSE: usize = 64 * 1024 * 1024;

/// `[dependencies.<name>]`: one downstream service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The base URL, `http` or `https`, without credentials, query or fragment; the paths of the
    /// calls are appended to it.
    pub url: String,
    /// How long one call may take in all, from admission to the last byte of the answer.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long a new connection may take of that, name look-up and TLS included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// The largest response body, in bytes; a larger one is not read to its end.
    pub max_response_bytes: usize,
    /// Calls under way at once from one worker.
    pub max_in_flight: usize,
    /// Whether the limit learns from how long calls take, between `min_in_flight` and
    /// `max_in_flight`.
    pub adaptive: bool,
    /// A limit that learns is never lower, but for the moments in which it tries out half of itself.
    pub min_in_flight: usize,
    /// Calls that may be begun a second, over all workers; unset, as many as there are.
    pub rate: Option<f64>,
    /// Calls that may be begun at once after a quiet time; what comes in a second unless it is set.
    pub burst: Option<f64>,
    /// What becomes of a request that finds one of these limits full.
    pub when_full: WhenFull,
    /// Requests parked on this dependency before the worker stops consuming.
    pub max_parked: u64,
    /// How what is parked goes on once the dependency has recovered.
    pub release: release::Settings,
    /// The header that tells a call how many milliseconds it has; empty for none.
    pub budget_header: String,
    /// Headers sent with every call, such as `authorization`.
    pub headers: BTreeMap<String, SecretString>,
    /// Certificate authorities in PEM form that are trusted besides the machine's own.
    pub ca_file: Option<PathBuf>,
    /// When calls are stopped, and for how long.
    pub breaker: breaker::Settings,
}

impl Settings {
    pub(super) fn uses_tls(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| url.scheme() == "https")
    }

    /// Every mistake, as (setting, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut check = |right: bool, setting: &str, wrong: &str| {
            if !right {
                problems.push((setting.to_owned(), wrong.to_owned()));
            }
        };
        match Url::parse(&self.url) {
            Ok(url) => {
                check(
                    matches!(url.scheme(), "http" | "https"),
                    "url",
                    "must begin with http:// or https://",
                );
                check(
                    url.username().is_empty() && url.password().is_none(),
                    "url",
                    "holds credentials, which would show in logs: send them as headers.authorization",
                );
                check(
                    url.query().is_none() && url.fragment().is_none(),
                    "url",
                    "has a query or fragment, which belong into the path of a call",
                );
            }
            // The text itself is not shown, for it may hold a password.
            Err(error) => check(
                false,
                "url",
                &format!("is not a url ({error}), e.g. https://geocoder.example"),
            ),
        }
        for (setting, time) in
            [("timeout", self.timeout), ("connect_timeout", self.connect_timeout)]
        {
            let right = time >= Duration::from_millis(1) && time <= LONGEST;
            check(right, setting, "must be between 1ms and 1h");
        }
        check(
            self.connect_timeout <= self.timeout,
            "connect_timeout",
            "must not be longer than timeout",
        );
        let right = (1..=LARGEST_RESPONSE).contains(&self.max_response_bytes);
        check(right, "max_response_bytes", "must be between 1 and 67108864 (64 MiB)");
        let right = (1..=MOST_IN_FLIGHT).contains(&self.max_in_flight);
        check(right, "max_in_flight", "must be between 1 and 100000");
        let right = (1..=self.max_in_flight.max(1)).contains(&self.min_in_flight);
        check(right, "min_in_flight", "must be at least 1 and not more than max_in_flight");
        for (setting, wrong) in limit::problems(self.rate, self.burst) {
            check(false, setting, wrong);
        }
        check(self.max_parked > 0, "max_parked", "is 0, must be at least 1");
        if !self.budget_header.is_empty()
            && let Some(wrong) = header_problem(&self.budget_header, "1")
        {
            check(false, "budget_header", wrong);
        }
        for (name, value) in &self.headers {
            if let Some(wrong) = header_problem(name, value.expose_secret()) {
                check(false, &format!("headers.{name}"), wrong);
            }
        }
        // Otherwise a probe that hangs would make room for another, and another.
        check(
            self.breaker.probe_timeout >= self.timeout,
            "breaker.probe_timeout",
            "must be at least as long as the dependency's timeout",
        );
        for (section, found) in
            [("breaker", self.breaker.problems()), ("release", self.release.problems())]
        {
            let found = found.into_iter();
            problems.extend(found.map(|(setting, wrong)| (format!("{section}.{setting}"), wrong)));
        }
        problems
    }
}
