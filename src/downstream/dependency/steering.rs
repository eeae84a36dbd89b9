//! How a dependency stands, and changing that at run time.

use tokio::time::Instant;

use super::Dependency;
use crate::{
    downstream::{standing::Standing, tell},
    steer::Mode,
    telemetry::metrics,
};

impl Dependency {
    /// How it stands now.
    pub fn standing(&self) -> Standing {
        let numbers = self.breaker().numbers(Instant::now());
        Standing::new(numbers, self.limit.taken(), self.limit.wanted(), self.bounds.standing())
    }

    /// Steers it: who decides about its breaker, how many calls may be under way at once, and how many
    /// may be begun a second. `None` is what the settings say. Returns what was changed, name and new
    /// value.
    pub fn steer(
        &self,
        mode: Option<Mode>,
        limit: Option<usize>,
        rate: Option<f64>,
    ) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        let (mode, limit) = (mode.unwrap_or(self.configured.0), limit.unwrap_or(self.configured.1));
        let (before, transition) = {
            let mut breaker = self.breaker();
            (breaker.mode(), breaker.set_mode(mode, Instant::now()))
        };
        if mode != before {
            metrics::breaker_mode(&self.name, mode.name());
            changed.push(("breaker", mode.name().to_owned()));
        }
        tell::transition(&self.name, transition);
        if self.limit.most() != limit {
            self.limit.set(limit);
            self.adjust_door();
            changed.push(("limit", limit.to_string()));
        }
        if self.bounds.steer(self.bounds.most(), rate).1 {
            let now = self.bounds.rate().per();
            changed.push(("rate", now.map_or("none".to_owned(), |per| per.rate.to_string())));
        }
        changed
    }

    /// Exports what changes without a call.
    pub fn export(&self) {
        let standing = self.standing();
        metrics::breaker_state(&self.name, standing.state);
        metrics::calls_in_flight(&self.name, standing.in_flight, standing.max_in_flight);
    }
}
