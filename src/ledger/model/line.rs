//! What the statements of `line` do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Model, Row};
use crate::ledger::{Entered, Entry, ORDER, Whose};

/// When who stands behind another in a line is due.
pub(crate) const NEVER: Duration = Duration::MAX;

impl Model {
    /// ENTER and its look.
    pub(crate) fn enter(&mut self, entries: &[Entry]) -> Vec<Entered> {
        let enter = |entry: &Entry| {
            if let Some(row) = self.rows.get(&entry.request.id) {
                return match row.is_of(&entry.request) {
                    _ if row.fence == entry.fence.0 => Entered::Stands,
                    true => Entered::Duplicate,
                    false => Entered::Reused,
                };
            }
            self.places += 1;
            let row = Row {
                request: Arc::clone(&entry.request),
                state: "parked",
                attempt: 0,
                fence: entry.fence.0,
                from_queue: false,
                worker: String::new(),
                due_at: Some(NEVER),
                parked_on: Some(ORDER.to_owned()),
                error_code: None,
                result: None,
                crashes: 0,
                alone: false,
                place: Some(self.places),
                received_at: entry.received_at,
            };
            self.rows.insert(entry.request.id.clone(), row);
            Entered::Stands
        };
        entries.iter().map(enter).collect()
    }

    /// ADVANCE.
    pub(crate) fn advance(&mut self, whose: &Whose, now: Duration) -> u64 {
        let mut firsts: BTreeMap<String, (u64, String)> = BTreeMap::new();
        for (id, row) in self.rows.iter().filter(|(_, row)| row.is_open()) {
            let Some(place) = row.place else { continue };
            let this = (place, id.clone());
            let first = firsts.entry(row.request.user_id.clone()).or_insert_with(|| this.clone());
            *first = this.min(first.clone());
        }
        let mut advanced = 0;
        for (user, (_, id)) in firsts {
            let asked = match whose {
                Whose::Theirs(users) => users.contains(&user),
                Whose::Everybodys => true,
            };
            if let Some(row) = self.rows.get_mut(&id)
                && asked
                && row.parked_on.as_deref() == Some(ORDER)
                && row.due_at == Some(NEVER)
            {
                row.due_at = Some(now);
                advanced += 1;
            }
        }
        advanced
    }

    /// IN_LINE.
    pub(crate) fn in_line(&self, at_most: u64) -> u64 {
        let open = self.rows.values().filter(|row| row.is_open() && row.place.is_some()).count();
        at_most.min(open as u64)
    }
}
