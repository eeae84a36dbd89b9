//! What became of an attempt, and what the broker is told: the whole policy on one page.

use std::{fmt, time::Duration};

use crate::retry::RetryPolicy;

/// What became of one attempt. Every delivery ends in exactly one of these.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The effects are committed.
    Done,
    /// The same request was taken in before; nothing was done again.
    Duplicate,
    /// A transient failure with attempts left: the ledger brings it back.
    Retry {
        /// What failed.
        failure: Failure,
        /// How long until the next attempt.
        due_in: Duration,
    },
    /// Not started, or not counted as started: the ledger keeps it until a dependency or the
    /// producer's `not_before` lets it go on. Costs no attempt.
    Parked {
        /// What it waits for: a dependency's name, or `not_before`.
        on: String,
        /// How long until it goes on. `None`: until it is let go.
        due_in: Option<Duration>,
    },
    /// Given up for good and kept for a person to see.
    Dead {
        /// Why.
        failure: Failure,
    },
    /// Returned to the queue unworked. Costs no attempt.
    GivenBack {
        /// Why, in a word from a closed set.
        why: GiveBack,
    },
    /// Cannot be stored at all: it goes to the broker's own dead-letter queue, whole.
    Rejected {
        /// Why.
        failure: Failure,
    },
}

impl Outcome {
    /// The name in metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Duplicate => "duplicate",
            Self::Retry { .. } => "retry",
            Self::Parked { .. } => "parked",
            Self::Dead { .. } => "dead",
            Self::GivenBack { .. } => "given_back",
            Self::Rejected { .. } => "rejected",
        }
    }

    /// What failed, where something did.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Retry { failure, .. } | Self::Dead { failure } | Self::Rejected { failure } => {
                Some(failure)
            }
            Self::Done | Self::Duplicate | Self::Parked { .. } | Self::GivenBack { .. } => None,
        }
    }

    /// What the broker is told. Nothing is acknowledged before the ledger has committed: the
    /// handler names an acknowledged outcome only after that.
    pub fn settlement(&self) -> Settlement {
        match self {
            Self::Done
            | Self::Duplicate
            | Self::Retry { .. }
            | Self::Parked { .. }
            | Self::Dead { .. } => Settlement::Ack,
            Self::GivenBack { .. } => Settlement::GiveBack,
            Self::Rejected { .. } => Settlement::Reject,
        }
    }
}

/// What the broker is told about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// `basic.ack`: it is the ledger's now.
    Ack,
    /// `basic.nack` with requeue: somebody else, or later.
    GiveBack,
    /// `basic.reject` without requeue: to the dead-letter queue.
    Reject,
}

impl Settlement {
    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::GiveBack => "give_back",
            Self::Reject => "reject",
        }
    }
}

/// Why a request was given back to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveBack {
    /// The worker is stopping.
    Stop,
    /// Postgres is away, and nothing of the request is in the ledger yet.
    Postgres,
    /// Nothing more is to be begun while it waited for a limit.
    Pause,
}

impl GiveBack {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Postgres => "postgres",
            Self::Pause => "pause",
        }
    }
}

/// A failure as the ledger, the log and the producer see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// From the closed list.
    pub code: ErrorCode,
    /// What happened, in words; no payload and no secret.
    pub error: String,
}

impl Failure {
    /// Puts a code and its words together.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self { code, error: error.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.error)
    }
}

/// How a step (`call` or `apply`) did not succeed, in the terms that decide what comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepError {
    /// It would fail the same way again.
    Refused(Failure),
    /// It may well succeed later.
    Transient {
        /// What failed.
        failure: Failure,
        /// When the far side asked us to come back, if it did.
        retry_in: Option<Duration>,
    },
    /// It was not tried: the dependency's breaker or limit did not let it through.
    NotAdmitted {
        /// The dependency.
        on: String,
        /// When it may be let through.
        retry_in: Duration,
    },
}

/// What follows from a step that did not succeed.
///
/// `attempt` counts from 1 and includes the one that failed; `chance` in `0.0..1.0` spreads the
/// delays.
pub fn after_failure(error: StepError, attempt: u32, policy: &RetryPolicy, chance: f64) -> Outcome {
    match error {
        StepError::Refused(failure) => Outcome::Dead { failure },
        StepError::NotAdmitted { on, retry_in } => Outcome::Parked { on, due_in: Some(retry_in) },
        StepError::Transient { failure, .. } if attempt >= policy.max_attempts => Outcome::Dead {
            failure: Failure::new(
                ErrorCode::Attempts,
                format!("attempt {attempt} of {} failed: {failure}", policy.max_attempts),
            ),
        },
        StepError::Transient { failure, retry_in } => {
            // Who says when to come back is believed, within the longest delay that is configured.
            let own = policy.delay(attempt, chance);
            let due_in = retry_in
                .map_or(own, |asked| asked.clamp(own.min(policy.max_delay), policy.max_delay));
            Outcome::Retry { failure, due_in }
        }
    }
}

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a request was refused or given up: a closed list, and an API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[doc = $doc])+ $variant,)+ }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in the ledger, in metrics and in logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means for the producer.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

error_codes! {
    /// The body is not UTF-8 JSON, or nested too deep.
    MalformedJson = "malformed_json",
    /// The body is JSON but not the envelope of the contract; the error names each field.
    InvalidEnvelope = "invalid_envelope",
    /// No kind of this name is configured.
    UnknownKind = "unknown_kind",
    /// The `request_id` was used before with another body; the first one counts.
    IdReused = "id_reused",
    /// The deadline had passed before the request could be started.
    Deadline = "deadline",
    /// The downstream service refused the request (a 4xx other than 408, 425, 429).
    CallRefused = "call_refused",
    /// The downstream service failed or could not be reached in time.
    CallFailed = "call_failed",
    /// The SQL function refused the request: it raised, or its data did not fit.
    ApplyRefused = "apply_refused",
    /// The SQL function failed for a reason that may pass: a lock, a timeout, a restart.
    ApplyFailed = "apply_failed",
    /// The attempt ran longer than the kind's timeout.
    Timeout = "timeout",
    /// Every attempt failed; the error tells the last one.
    Attempts = "attempts",
    /// The worker died each time it worked this request.
    CrashLoop = "crash_loop",
    /// A handler panicked.
    Panic = "panic",
    /// The body is larger than `worker.max_message_bytes`.
    TooLarge = "too_large",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
