//! The rules, each as a sentence, what it is checked on and which ids break it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Account, Published, Verdict,
    observe::{Observed, Row},
    report::{Finding, Report, SHOWN},
};

impl Account {
    /// Compares with what was found.
    pub fn check(&self, observed: &Observed) -> Report {
        let mut findings = Vec::new();
        let places = observed.places();
        let rows: HashMap<&str, &Row> =
            observed.rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let mut finding = |rule: &str, checked: usize, broken: BTreeSet<&str>| {
            let shown = broken.iter().take(SHOWN);
            let histories = shown.map(|id| self.history(id, observed)).collect();
            findings.push(Finding {
                rule: rule.to_owned(),
                checked,
                broken: broken.len(),
                histories,
            });
        };

        // Together with the rule that no row is left open: done, dead, unreadable, or in the
        // broker's dead queue.
        let confirmed: Vec<&str> = self.ids(Published::is_confirmed);
        let lost = confirmed.iter().copied().filter(|id| !places.contains_key(id)).collect();
        finding("every confirmed request is found", confirmed.len(), lost);
        let twice = places.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        finding("every request is found in one place only", places.len(), twice);
        let open = observed.rows.iter().filter(|row| !row.is_final());
        let open = open.map(|row| row.id.as_str()).collect();
        finding("no request is left running, waiting or parked", rows.len(), open);
        let found: BTreeSet<&str> = places
            .keys()
            .copied()
            .chain(observed.keys())
            .chain(observed.effect_ids())
            .chain(self.ids(|sent| !sent.replies.is_empty()))
            .collect();
        let checked = found.len();
        let was_sent = |id: &str| self.published.get(id).is_some_and(|sent| !sent.sent.is_empty());
        let strangers = found.into_iter().filter(|id| !was_sent(id)).collect();
        finding("nothing is found that was not published", checked, strangers);
        if self.terms.all_done {
            let good = self.ids(|sent| sent.is_confirmed() && self.is_good(self.kind_of(sent)));
            let spoilt = good.iter().copied().filter(|id| {
                places.contains_key(id)
                    && rows.get(id).is_none_or(|row| row.is_final() && row.state != "done")
            });
            finding("no fault has cost a request its life", good.len(), spoilt.collect());
        }

        self.check_effects(observed, &rows, &mut finding);
        self.check_calls(observed, &mut finding);
        let replied = self.ids(|sent| !sent.replies.is_empty());
        let answered = self.ids(|sent| sent.replies.len() > 1).into_iter().collect();
        finding("a request is answered once at most", replied.len(), answered);

        findings.extend(self.versions(observed));
        let full = observed.queues.iter().filter(|(_, depth)| **depth > 0);
        let full: Vec<String> = full.map(|(name, depth)| format!("{name} holds {depth}")).collect();
        findings.push(Finding {
            rule: "every queue is empty".to_owned(),
            checked: observed.queues.len(),
            broken: full.len(),
            histories: full,
        });
        Report { counts: self.counts(observed), findings }
    }

    fn check_effects<'a>(
        &'a self,
        observed: &'a Observed,
        rows: &HashMap<&str, &Row>,
        finding: &mut impl FnMut(&str, usize, BTreeSet<&'a str>),
    ) {
        let Some(effects) = &observed.effects else { return };
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for effect in effects {
            *counts.entry(&effect.id).or_default() += 1;
        }
        let doubled = counts.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        finding("an effect happens once at most", counts.len(), doubled);
        let applying = |kind: &str| self.terms.applying.iter().any(|name| name == kind);
        let is_done = |id: &str| rows.get(id).is_some_and(|row| row.state == "done");
        let done = observed.rows.iter().filter(|row| row.state == "done" && applying(&row.kind));
        let done: Vec<&str> = done.map(|row| row.id.as_str()).collect();
        let without = done.iter().copied().filter(|id| !counts.contains_key(id));
        // What nobody published is told of by its own rule.
        let for_nothing = counts.keys().copied().filter(|id| {
            !is_done(id) && self.published.get(*id).is_some_and(|sent| !sent.sent.is_empty())
        });
        finding(
            "what is done has its effect, and nothing else has one",
            done.len(),
            without.chain(for_nothing).collect(),
        );
    }

    fn check_calls<'a>(
        &'a self,
        observed: &'a Observed,
        finding: &mut impl FnMut(&str, usize, BTreeSet<&'a str>),
    ) {
        let Some(calls) = &observed.calls else { return };
        let calling = |kind: &str| self.terms.calling.iter().any(|name| name == kind);
        let doubled = calls.iter().filter(|(key, calls)| !key.is_empty() && calls.effects > 1);
        let doubled = doubled.map(|(key, _)| key.as_str()).collect();
        finding("a call takes effect once at most", calls.len(), doubled);
        // A key that is the id of a request without a call was used for another request.
        let astray = |key: &str| {
            self.published
                .get(key)
                .is_some_and(|sent| !sent.sent.is_empty() && !calling(self.kind_of(sent)))
        };
        let careless = calls
            .iter()
            .filter(|(key, calls)| key.is_empty() || calls.bodies_differ || astray(key));
        let careless = careless.map(|(key, _)| key.as_str()).collect();
        finding("all calls of a request share one key and one body", calls.len(), careless);
        let done = observed.rows.iter().filter(|row| row.state == "done" && calling(&row.kind));
        let done: Vec<&Row> = done.collect();
        let missed =
            done.iter().filter(|row| calls.get(&row.id).is_none_or(|calls| calls.effects == 0));
        let missed = missed.map(|row| row.id.as_str()).collect();
        finding("a call that was done took effect", done.len(), missed);
    }

    /// The versions of the example's users against the updates that are done.
    fn versions(&self, observed: &Observed) -> Option<Finding> {
        let (versions, counted) = (observed.versions?, self.terms.counted.as_ref()?);
        let done = observed.rows.iter().filter(|row| row.state == "done" && row.kind == *counted);
        let done = done.count();
        let differ = i64::try_from(done).map_or(u64::MAX, |done| done.abs_diff(versions));
        let histories = (differ > 0)
            .then(|| format!("sum(version) is {versions}, but {done} updates are done"))
            .into_iter();
        Some(Finding {
            rule: "every profile update was applied exactly once".to_owned(),
            checked: done,
            broken: usize::try_from(differ).unwrap_or(usize::MAX),
            histories: histories.collect(),
        })
    }

    fn is_good(&self, kind: &str) -> bool {
        self.terms.applying.iter().chain(&self.terms.calling).any(|name| name == kind)
    }

    fn ids(&self, which: impl Fn(&Published) -> bool) -> Vec<&str> {
        self.published.iter().filter(|(_, sent)| which(sent)).map(|(id, _)| id.as_str()).collect()
    }

    fn counts(&self, observed: &Observed) -> Vec<(String, u64)> {
        let sum = |verdict| self.published.values().map(|sent| sent.count(verdict)).sum::<u64>();
        let mut counts = vec![
            ("ids published".to_owned(), self.published.len() as u64),
            ("publishes confirmed".to_owned(), sum(Verdict::Confirmed)),
            ("publishes refused".to_owned(), sum(Verdict::Refused)),
            ("publishes unknown".to_owned(), sum(Verdict::Unknown)),
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
        if let Some(effects) = &observed.effects {
            counts.push(("effects".to_owned(), effects.len() as u64));
        }
        if let Some(calls) = &observed.calls {
            counts.push(("calls".to_owned(), calls.values().map(|calls| calls.calls).sum()));
            counts.push((
                "calls that took effect".to_owned(),
                calls.values().map(|calls| calls.effects).sum(),
            ));
        }
        let replies = self.published.values().map(|sent| sent.replies.len() as u64).sum();
        counts.push(("replies".to_owned(), replies));
        counts
    }
}
