//! Batches in which a function refuses somebody: what is told of each row, and when to expect it.
//!
//! A function that raises an error fails the statement, and with it the whole batch. To call each
//! behind a net of its own (`try_apply`) costs more, so it is done only while refusals are met.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio_postgres::Row;

use super::Finished;
use crate::{ledger::error, outcome::StepError};

/// How many batches without what is feared end the caution that one with it began.
const CAUTION: u32 = 16;

/// Whether the next batch is better run with care, for what costs little where it is not needed and
/// much where it is left out. Shared by the lanes, for what is published badly is spread over them.
#[derive(Debug, Default)]
pub(super) struct Caution(AtomicU32);

impl Caution {
    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// A batch has met what is feared; or it was run with care, and has not.
    pub(super) fn ran(&self, met: bool) {
        let left = if met { CAUTION } else { self.0.load(Ordering::Relaxed).saturating_sub(1) };
        // Lanes that do this at once may lose a step; it is a guess either way.
        self.0.store(left, Ordering::Relaxed);
    }
}

/// What a statement says of one request.
#[derive(Debug)]
pub(super) enum Written {
    /// What the ledger knows of it now.
    Known(Finished),
    /// Its function refused it; nothing of it was written.
    Refused(StepError),
    /// Its function refused it, in words that may quote a value: it must be tried alone, where the
    /// error itself tells them apart.
    Unsaid,
}

/// The id and the fate in a row of INSERT or UPDATE. No id, no fate: nothing was inserted.
pub(super) fn read(row: &Row) -> Option<(String, Written)> {
    let id: String = row.get::<_, Option<String>>(1)?;
    let Some(state) = row.get::<_, Option<&str>>(3) else {
        return Some((id, Written::Known(Finished::Committed { result: row.get(2) })));
    };
    let message = row.get::<_, Option<&str>>(4).unwrap_or_default();
    let raised = row.get::<_, Option<bool>>(5).unwrap_or_default();
    let refused = error::refusal(state, message, raised);
    Some((id, refused.map_or(Written::Unsaid, Written::Refused)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caution_ends_after_a_number_of_batches_without_what_is_feared() {
        let wary = Caution::default();
        assert!(!wary.is_on());
        wary.ran(true);
        (1..CAUTION).for_each(|_| wary.ran(false));
        assert!(wary.is_on());
        wary.ran(false);
        assert!(!wary.is_on());
    }
}
