//! The account of every request: what was published against what is found afterwards.
//!
//! In the manner of Jepsen's total-queue checker
//! (<https://github.com/jepsen-io/jepsen/blob/main/jepsen/src/jepsen/checker.clj>): producers note
//! each attempt to publish and what the broker said to it; when all is quiet, [`observe()`] gathers
//! what became of them; [`Account::check`] compares. Nothing may be lost that was confirmed,
//! nothing may happen twice, and nothing may be found that nobody sent.

mod history;
mod observe;
mod report;
mod rules;

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

pub use self::{
    observe::{AttemptRow, Effect, Observed, Row, Sources, Unreadable, observe, until_empty},
    report::{Finding, Report},
};

/// The header in which a message that cannot be read as a request carries the id it has in the
/// account.
pub const ID_HEADER: &str = "x-account-id";
/// Filed a second time under its id because its body was another one: not a second place.
const ID_REUSED: &str = "id_reused";

/// What the broker said to an attempt to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It has it: from now on nobody may lose it.
    Confirmed,
    /// It has not (nacked, returned, or never sent).
    Refused,
    /// Nothing, before the connection ended or the time was up: both are possible.
    Unknown,
}

/// What the kinds of requests do, as far as it can be counted.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// The kinds whose function writes one row into the table of effects.
    pub applying: Vec<String>,
    /// The kinds that call the stub.
    pub calling: Vec<String>,
    /// The kind that raises the version of a user by one.
    pub counted: Option<String>,
    /// Whether every confirmed request of the kinds above must have been done, whatever happened
    /// on its way.
    pub all_done: bool,
}

impl Terms {
    /// Those of `config/user-service`.
    pub fn of_the_example() -> Self {
        Self {
            applying: Vec::new(),
            calling: vec!["user.address.verify".to_owned(), "user.welcome.send".to_owned()],
            counted: Some("user.profile.update".to_owned()),
            all_done: false,
        }
    }
}

/// What is known of one id from the producers' side. Times are milliseconds since 1970.
#[derive(Debug, Clone, Default)]
struct Published {
    /// Which of [`Account::kinds`].
    kind: usize,
    sent: Vec<(i64, Verdict)>,
    replies: Vec<i64>,
}

impl Published {
    fn count(&self, verdict: Verdict) -> u64 {
        self.sent.iter().filter(|(_, said)| *said == verdict).count() as u64
    }

    fn is_confirmed(&self) -> bool {
        self.sent.iter().any(|(_, said)| *said == Verdict::Confirmed)
    }
}

/// The producers' side. It grows with the number of ids, by some 200 bytes each.
#[derive(Debug, Clone, Default)]
pub struct Account {
    terms: Terms,
    kinds: Vec<String>,
    published: HashMap<String, Published>,
}

impl Account {
    /// An account of nothing, of the kinds of the example service.
    pub fn new() -> Self {
        Self::on(Terms::of_the_example())
    }

    /// An account of nothing, of other kinds.
    pub fn on(terms: Terms) -> Self {
        Self { terms, ..Self::default() }
    }

    /// Notes one attempt to publish; several for the same id are several lines of one story.
    pub fn published(&mut self, id: &str, kind: &str, verdict: Verdict) {
        let known = self.kinds.iter().position(|name| name == kind);
        let kind = known.unwrap_or_else(|| {
            self.kinds.push(kind.to_owned());
            self.kinds.len() - 1
        });
        let published = self.published.entry(id.to_owned()).or_default();
        published.kind = kind;
        published.sent.push((now(), verdict));
    }

    /// Notes that a reply to this request arrived.
    pub fn replied(&mut self, id: &str) {
        self.published.entry(id.to_owned()).or_default().replies.push(now());
    }

    /// How many ids were published at all.
    pub fn len(&self) -> usize {
        self.published.len()
    }

    /// Whether nothing was published.
    pub fn is_empty(&self) -> bool {
        self.published.is_empty()
    }

    fn kind_of(&self, published: &Published) -> &str {
        self.kinds.get(published.kind).map_or("", String::as_str)
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
