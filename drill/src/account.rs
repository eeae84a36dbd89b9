//! The account of every request: what was published against what is found afterwards.
//!
//! In the manner of Jepsen's total-queue checker
//! (<https://github.com/jepsen-io/jepsen/blob/main/jepsen/src/jepsen/checker.clj>): producers note
//! each attempt to publish and what the broker said to it; when all is quiet, [`observe()`] gathers
//! what became of them; [`Account::check`] compares. Nothing may be lost that was confirmed,
//! nothing may happen twice, and nothing may be found that nobody sent.

mod observe;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use self::{
    observe::{Observed, Row, Sources, Unreadable, observe, until_empty},
    report::{Finding, Report},
};

/// The header in which a message that cannot be read as a request carries the id it has in the
/// account.
pub const ID_HEADER: &str = "x-account-id";
/// The kind that raises `app.users.version` by one.
const COUNTED_KIND: &str = "user.profile.update";
/// The kinds that call the stub.
const CALLING_KINDS: [&str; 2] = ["user.address.verify", "user.welcome.send"];
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

#[derive(Debug, Clone, Default)]
struct Published {
    kind: String,
    confirmed: u64,
    refused: u64,
    unknown: u64,
    replies: u64,
}

/// The producers' side. It grows with the number of ids and lives as long as one test.
#[derive(Debug, Clone, Default)]
pub struct Account {
    published: HashMap<String, Published>,
}

impl Account {
    /// An account of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes one attempt to publish; several for the same id are several lines of one story.
    pub fn published(&mut self, id: &str, kind: &str, verdict: Verdict) {
        let published = self.published.entry(id.to_owned()).or_default();
        published.kind = kind.to_owned();
        *match verdict {
            Verdict::Confirmed => &mut published.confirmed,
            Verdict::Refused => &mut published.refused,
            Verdict::Unknown => &mut published.unknown,
        } += 1;
    }

    /// Notes that a reply to this request arrived.
    pub fn replied(&mut self, id: &str) {
        self.published.entry(id.to_owned()).or_default().replies += 1;
    }

    /// How many ids were published at all.
    pub fn len(&self) -> usize {
        self.published.len()
    }

    /// Whether nothing was published.
    pub fn is_empty(&self) -> bool {
        self.published.is_empty()
    }

    /// Compares with what was found.
    pub fn check(&self, observed: &Observed) -> Report {
        let places = observed.places();
        let rows: HashMap<&str, &Row> =
            observed.rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let was_sent = |id: &str| {
            self.published
                .get(id)
                .is_some_and(|sent| sent.confirmed + sent.unknown + sent.refused > 0)
        };
        let mut findings = Vec::new();
        let mut finding = |rule: &str, checked: usize, broken: BTreeSet<&str>| {
            let histories =
                broken.iter().take(report::SHOWN).map(|id| self.history(id, observed)).collect();
            findings.push(Finding {
                rule: rule.to_owned(),
                checked,
                broken: broken.len(),
                histories,
            });
        };

        let confirmed: Vec<&str> = self.ids(|sent| sent.confirmed > 0);
        let lost = confirmed.iter().copied().filter(|id| !places.contains_key(id)).collect();
        finding("every confirmed request is found", confirmed.len(), lost);
        let twice = places.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        finding("every request is found in one place only", places.len(), twice);
        let open =
            observed.rows.iter().filter(|row| !row.is_final()).map(|row| row.id.as_str()).collect();
        finding("no request is left running, waiting or parked", rows.len(), open);
        let strangers = places
            .keys()
            .chain(observed.keys().iter())
            .copied()
            .filter(|id| !was_sent(id))
            .collect();
        finding("nothing is found that was not published", places.len(), strangers);

        if let Some(calls) = &observed.calls {
            let keyed = || calls.iter().filter(|(key, _)| !key.is_empty());
            let doubled = keyed()
                .filter(|(_, calls)| calls.effects > 1)
                .map(|(key, _)| key.as_str())
                .collect();
            finding("a call takes effect once at most", calls.len(), doubled);
            let careless =
                calls.iter().filter(|(key, calls)| key.is_empty() || calls.bodies_differ);
            let careless = careless.map(|(key, _)| key.as_str()).collect();
            finding("all calls of a request share one key and one body", calls.len(), careless);
            let done: Vec<&Row> = observed
                .rows
                .iter()
                .filter(|row| row.state == "done" && CALLING_KINDS.contains(&row.kind.as_str()))
                .collect();
            let missed =
                done.iter().filter(|row| calls.get(&row.id).is_none_or(|calls| calls.effects == 0));
            finding(
                "a call that was done took effect",
                done.len(),
                missed.map(|row| row.id.as_str()).collect(),
            );
        }
        let replied = self.ids(|sent| sent.replies > 0);
        finding(
            "a request is answered once at most",
            replied.len(),
            self.ids(|sent| sent.replies > 1).into_iter().collect(),
        );

        if let Some(versions) = observed.versions {
            let done = observed
                .rows
                .iter()
                .filter(|row| row.state == "done" && row.kind == COUNTED_KIND)
                .count();
            let differ = i64::try_from(done).map_or(u64::MAX, |done| done.abs_diff(versions));
            let histories = (differ > 0)
                .then(|| format!("sum(version) is {versions}, but {done} updates are done"))
                .into_iter();
            findings.push(Finding {
                rule: "every profile update was applied exactly once".to_owned(),
                checked: done,
                broken: usize::try_from(differ).unwrap_or(usize::MAX),
                histories: histories.collect(),
            });
        }
        let full: Vec<String> = observed
            .queues
            .iter()
            .filter(|(_, depth)| **depth > 0)
            .map(|(name, depth)| format!("{name} holds {depth}"))
            .collect();
        findings.push(Finding {
            rule: "the queue is empty".to_owned(),
            checked: observed.queues.len(),
            broken: full.len(),
            histories: full,
        });
        Report { counts: self.counts(observed), findings }
    }

    fn ids(&self, which: impl Fn(&Published) -> bool) -> Vec<&str> {
        self.published.iter().filter(|(_, sent)| which(sent)).map(|(id, _)| id.as_str()).collect()
    }

    fn counts(&self, observed: &Observed) -> Vec<(String, u64)> {
        let sum = |of: fn(&Published) -> u64| self.published.values().map(of).sum();
        let mut counts = vec![
            ("ids published".to_owned(), self.published.len() as u64),
            ("publishes confirmed".to_owned(), sum(|sent| sent.confirmed)),
            ("publishes refused".to_owned(), sum(|sent| sent.refused)),
            ("publishes unknown".to_owned(), sum(|sent| sent.unknown)),
        ];
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for row in &observed.rows {
            *states.entry(&row.state).or_default() += 1;
        }
        counts.extend(states.into_iter().map(|(state, count)| (format!("ledger: {state}"), count)));
        counts.push(("ledger: unreadable".to_owned(), observed.unreadable.len() as u64));
        counts.push(("broker's dead queue".to_owned(), observed.dead.len() as u64));
        if observed.dead_unread > 0 {
            counts.push(("broker's dead queue, not readable".to_owned(), observed.dead_unread));
        }
        if let Some(calls) = &observed.calls {
            counts.push(("calls".to_owned(), calls.values().map(|calls| calls.calls).sum()));
            counts.push((
                "calls that took effect".to_owned(),
                calls.values().map(|calls| calls.effects).sum(),
            ));
        }
        counts.push(("replies".to_owned(), sum(|sent| sent.replies)));
        counts
    }

    /// All that is known of one id, on one line.
    fn history(&self, id: &str, observed: &Observed) -> String {
        let mut story = vec![match self.published.get(id) {
            Some(sent) => format!(
                "published as {:?} ({} confirmed, {} refused, {} unknown), {} replies",
                sent.kind, sent.confirmed, sent.refused, sent.unknown, sent.replies
            ),
            None => "never published".to_owned(),
        }];
        story.extend(observed.rows.iter().filter(|row| row.id == id).map(|row| {
            let code =
                row.error_code.as_deref().map(|code| format!(", {code}")).unwrap_or_default();
            format!(
                "row: {} {} of user {} at attempt {}{code}",
                row.kind, row.state, row.user_id, row.attempt
            )
        }));
        let unreadable =
            observed.unreadable.iter().filter(|message| message.id.as_deref() == Some(id));
        story.extend(
            unreadable
                .map(|message| format!("unreadable {}: {}", message.number, message.error_code)),
        );
        let dead = observed.dead.iter().filter(|dead| dead.as_deref() == Some(id)).count();
        if dead > 0 {
            story.push(format!("{dead} in the broker's dead queue"));
        }
        if let Some(calls) = observed.calls.as_ref().and_then(|calls| calls.get(id)) {
            let differ = if calls.bodies_differ { ", bodies differ" } else { "" };
            story.push(format!("{} calls, {} effects{differ}", calls.calls, calls.effects));
        }
        format!("{id:?}: {}", story.join("; "))
    }
}

#[cfg(test)]
mod tests;
