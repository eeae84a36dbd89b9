//! All that is known of one id, in the order in which it happened.

use super::{Account, Verdict, observe::Observed};

/// More of one sort is not told singly.
const MOST: usize = 50;

impl Account {
    /// Lines `+seconds what`, counted from the first thing known; what has no time comes last. The
    /// times are those of the producer's clock and of the database's, and differ as these do.
    pub(super) fn history(&self, id: &str, observed: &Observed) -> String {
        let mut story: Vec<(Option<i64>, String)> = Vec::new();
        let mut says = |at: Option<i64>, what: String| story.push((at, what));
        match self.published.get(id).filter(|sent| !sent.sent.is_empty()) {
            None => says(None, "never published".to_owned()),
            Some(sent) => {
                let kind = self.kind_of(sent);
                for (at, verdict) in sent.sent.iter().take(MOST) {
                    let said = match verdict {
                        Verdict::Confirmed => "confirmed",
                        Verdict::Refused => "refused",
                        Verdict::Unknown => "unknown",
                    };
                    says(Some(*at), format!("published as {kind:?}: {said}"));
                }
            }
        }
        for at in self.published.get(id).iter().flat_map(|sent| &sent.replies).take(MOST) {
            says(Some(*at), "reply arrived".to_owned());
        }
        for row in observed.rows.iter().filter(|row| row.id == id) {
            let what = format!("row: {} of user {} received", row.kind, row.user_id);
            says(row.received_ms, what);
            let code = row.error_code.as_deref();
            let code = code.map(|code| format!(", {code}")).unwrap_or_default();
            let what = format!("row: {} at attempt {}{code}", row.state, row.attempt);
            says(row.finished_ms, what);
        }
        for attempt in observed.attempts.iter().filter(|attempt| attempt.id == id).take(MOST) {
            let code = attempt.error_code.as_deref().unwrap_or("no error");
            let worker = attempt.worker.as_deref().unwrap_or("nobody");
            says(
                attempt.ended_ms,
                format!(
                    "attempt {} of {worker} ended as {}, {code}",
                    attempt.number, attempt.outcome
                ),
            );
        }
        for effect in observed.effects.iter().flatten().filter(|effect| effect.id == id).take(MOST)
        {
            says(effect.at_ms, "effect".to_owned());
        }
        for message in
            observed.unreadable.iter().filter(|message| message.id.as_deref() == Some(id))
        {
            says(None, format!("unreadable {}: {}", message.number, message.error_code));
        }
        let dead = observed.dead.iter().filter(|dead| dead.as_deref() == Some(id)).count();
        if dead > 0 {
            says(None, format!("{dead} in the broker's dead queue"));
        }
        if let Some(calls) = observed.calls.as_ref().and_then(|calls| calls.get(id)) {
            let differ = if calls.bodies_differ { ", bodies differ" } else { "" };
            says(None, format!("{} calls, {} effects{differ}", calls.calls, calls.effects));
        }
        tell(id, story)
    }
}

fn tell(id: &str, mut story: Vec<(Option<i64>, String)>) -> String {
    story.sort_by_key(|(at, _)| at.unwrap_or(i64::MAX));
    let began = story.iter().find_map(|(at, _)| *at).unwrap_or_default();
    let lines = story.into_iter().map(|(at, what)| match at {
        Some(at) => format!("+{:.3}s {what}", at.saturating_sub(began) as f64 / 1_000.0),
        None => what,
    });
    format!("{id:?}: {}", lines.collect::<Vec<_>>().join("; "))
}
