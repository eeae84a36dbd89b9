//! The account: what must be true when all is quiet.

use std::collections::BTreeMap;

use super::{
    broker::Message,
    plan::{Nature, Publish},
    services::MAX_ATTEMPTS,
    world::{State, World},
};

/// So often a request may bring its worker down before it is given up (decision 0011).
const MOST_KILLS: u32 = MAX_ATTEMPTS + 3;

impl World {
    /// Adds to what was seen that must never be.
    pub(super) fn draw_up(&self) {
        let state = self.state();
        let mut broken = Vec::new();
        let faults = self.plan.faults.any();
        for (serial, publish) in self.plan.publishes.iter().enumerate() {
            let message = Message::new(serial, publish.body.clone(), publish.message_id.clone());
            if publish.confirmed && !state.knows(&publish.id, &message) {
                broken.push(format!("{} was confirmed, and is lost", publish.id));
            }
        }
        for id in state.model.effects.keys().chain(state.calls.keys()) {
            let published = |arrived: &Publish| arrived.arrives && arrived.id == *id;
            if !self.plan.publishes.iter().any(published) {
                broken.push(format!("{id} was worked, and never published"));
            }
        }
        for (id, count) in state.model.effects.iter().filter(|(_, count)| **count > 1) {
            broken.push(format!("{id} took effect {count} times"));
        }
        for (id, count) in state.replies.iter().filter(|(_, count)| **count > 1) {
            broken.push(format!("{id} was answered {count} times"));
        }
        for (id, count) in &state.calls {
            // A copy that the broker delivers again cannot be told from what another worker has in hand.
            let copies = self.plan.publishes.iter().filter(|it| it.arrives && it.id == *id).count();
            let again = if faults {
                u32::try_from(copies).unwrap_or(u32::MAX).saturating_sub(1)
            } else {
                0
            };
            if *count > MAX_ATTEMPTS + state.vanished + state.interrupted + again {
                broken.push(format!("{id} was called {count} times"));
            }
        }
        for (id, count) in &state.kills {
            let most = if faults { MOST_KILLS + state.vanished } else { MOST_KILLS };
            if *count > most {
                broken.push(format!("{id} brought {count} workers down"));
            }
        }
        for (id, row) in &state.model.rows {
            let nature = state.natures.get(id).cloned().unwrap_or_default();
            if row.is_open() {
                broken.push(format!("{id} is left {}", row.state));
            }
            if row.attempt > MAX_ATTEMPTS as i32 {
                broken.push(format!("{id} had {} attempts", row.attempt));
            }
            let done = state.model.effects.contains_key(id);
            if done != (row.state == "done") {
                broken.push(format!("{id} is {}, with effect: {done}", row.state));
            }
            if row.state == "dead"
                && let Some(code) = row.error_code
                && !self.may_die(&state, id, &nature, code)
            {
                broken.push(format!("{id} is dead for {code}, which is none of its faults"));
            }
            if row.state == "done" && !faults && !self.plan.faults.dependencies {
                // What is left of its failures in `natures` is not what it was to have.
                let planned = self.plan.natures.iter().find(|(name, _)| name == id);
                let failures = planned.map_or(0, |(_, nature)| nature.failures);
                if row.attempt as u32 > 1 + failures {
                    broken.push(format!(
                        "{id} was charged for a neighbour: {} attempts",
                        row.attempt
                    ));
                }
            }
        }
        for queue in [&state.broker, &state.ordered] {
            let left = queue.waiting();
            let out: usize = queue.lines.values().map(|line| line.unacked.len()).sum();
            if left + out > 0 {
                broken.push(format!("a queue holds {left} messages, and {out} are out"));
            }
        }
        broken.extend(inversions(&state));
        drop(state);
        broken.into_iter().for_each(|what| self.broke(what));
    }

    fn may_die(&self, state: &State, id: &str, nature: &Nature, code: &str) -> bool {
        let faults = &self.plan.faults;
        match code {
            "apply_refused" => nature.refused,
            "call_refused" => nature.call_refused,
            // One that vanished workers are charged to may have them all.
            "crash_loop" => nature.killer || faults.any() && state.vanished >= 2 + MAX_ATTEMPTS,
            "attempts" => {
                let called = matches!(nature.kind, "pay" | "mail" | "visit");
                (called && faults.dependencies)
                    || self.plan.natures.iter().any(|(name, it)| it.failures > 0 && name == id)
                    || faults.any()
            }
            "deadline" => nature.deadline,
            "unknown_kind" | "malformed_json" | "invalid_envelope" => nature.bad,
            _ => false,
        }
    }
}

/// Requests that took effect after one of their user that stood behind them in the queue in order.
fn inversions(state: &State) -> Vec<String> {
    let place = |id: &String| state.arrivals.iter().position(|arrived| arrived == id);
    let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    let mut broken = Vec::new();
    for id in &state.model.applied {
        let (Some(place), Some(row)) = (place(id), state.model.rows.get(id)) else { continue };
        let before = last.entry(&row.request.user_id).or_insert((place, id));
        if before.0 > place {
            broken.push(format!("{id} took effect after {}, which stood behind it", before.1));
        } else {
            *before = (place, id);
        }
    }
    broken
}
