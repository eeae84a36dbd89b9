//! `[worker]`.

use std::time::Duration;

use serde::Deserialize;

/// How much is worked at once, and how the worker stops.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Requests worked at once.
    pub concurrency: usize,
    /// The part of the slots that the requests of one user may hold, from above 0 to 1.
    pub user_share: f64,
    /// The part of the slots that the requests of one kind may hold, from above 0 to 1.
    pub kind_share: f64,
    /// The part of the slots that due work may hold, and gets where it has as much to do.
    pub due_share: f64,
    /// Requests parked on the share of their user before the worker stops consuming.
    pub max_parked: u64,
    /// Larger bodies go to the broker's dead-letter queue unread.
    pub max_message_bytes: usize,
    /// Requests of ordered kinds in the ledger that have not ended, before no further ones are taken.
    pub max_in_line: u64,
    /// How long a stop waits for what is begun.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How often the counts of waiting, parked and dead requests are exported.
    #[serde(with = "humantime_serde")]
    pub counts_interval: Duration,
    /// How often it is looked up what operators wish.
    #[serde(with = "humantime_serde")]
    pub steering_interval: Duration,
}

impl Settings {
    /// What is wrong with these settings: the key within the section, and the fault with its remedy.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut say = |key: &str, text: &str| problems.push((key.to_owned(), text.to_owned()));
        if !(1..=10_000).contains(&self.concurrency) {
            say("concurrency", "must be between 1 and 10000");
        }
        for (key, share) in [
            ("user_share", self.user_share),
            ("kind_share", self.kind_share),
            ("due_share", self.due_share),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                say(key, "must be above 0 and at most 1, which is all of the slots");
            }
        }
        if self.max_parked == 0 {
            say("max_parked", "must be at least 1");
        }
        if !(64..=128 * 1024 * 1024).contains(&self.max_message_bytes) {
            say(
                "max_message_bytes",
                "must be between 64 and 134217728, the most any RabbitMQ takes",
            );
        }
        if self.max_in_line == 0 {
            say("max_in_line", "must be at least 1");
        }
        if self.grace < Duration::from_millis(100) {
            say("grace", "must be at least 100ms");
        }
        if self.counts_interval < Duration::from_millis(100) {
            say("counts_interval", "must be at least 100ms");
        }
        if self.steering_interval < Duration::from_millis(100) {
            say("steering_interval", "must be at least 100ms");
        }
        problems
    }

    /// How many slots a part of them is; nothing where it is all of them.
    pub(crate) fn slots(&self, share: f64) -> Option<usize> {
        (share < 1.0).then(|| ((self.concurrency as f64 * share).round() as usize).max(1))
    }

    /// As many as due work may hold.
    pub(crate) fn due_slots(&self) -> usize {
        self.slots(self.due_share).unwrap_or(self.concurrency)
    }
}
