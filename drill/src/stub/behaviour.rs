//! The ways to behave.

use serde::{Deserialize, Serialize};

/// How a service behaves. As JSON, tagged: `{"behaviour": "status", "code": 503,
/// "retry_after_secs": 2}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "behaviour", rename_all = "snake_case", deny_unknown_fields)]
pub enum Behaviour {
    /// Does its work.
    Ok {
        /// After this many milliseconds.
        #[serde(default)]
        latency_ms: u64,
    },
    /// Does its work, and hinders itself: a call takes so long alone, and the longer the more are
    /// under way, by `1 + (calls / at_best)²`. It does most with `at_best` calls at once.
    Crowded {
        /// How long it takes alone, in milliseconds, as if there were no others at all.
        alone_ms: u64,
        /// With so many at once it does most.
        at_best: u32,
    },
    /// Answers this status without doing anything.
    Status {
        /// The status; what is none counts as 500.
        code: u16,
        /// The `Retry-After` header, in seconds.
        #[serde(default)]
        retry_after_secs: Option<u64>,
    },
    /// Takes the call and never answers.
    Hang,
    /// Answers 200 at once and then one byte of the body a second.
    Trickle,
    /// Answers 200 and a number with this many digits: valid JSON, if one reads to its end.
    Big {
        /// The size of the body.
        bytes: u64,
    },
    /// Answers 307 with this `Location`.
    Redirect {
        /// The URL to go to.
        to: String,
    },
    /// Resets the connection instead of answering.
    Reset,
    /// Answers 500 to a share of the calls and does its work for the others.
    Fail {
        /// From 0 to 1.
        share: f64,
        /// The same seed fails the same calls, by their order.
        seed: u64,
    },
    /// Answers 422: the service is well and does not want this request.
    Refused,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self::Ok { latency_ms: 0 }
    }
}
