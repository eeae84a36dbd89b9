//! What the statements of `shares` do.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use super::Model;
use crate::{
    ledger::{Due, Fence, OfUsers},
    limit::USER,
};

impl Model {
    /// OF_USERS, for fewer users than it takes at a time.
    pub(crate) fn of_users(
        &mut self,
        wanted: &OfUsers,
        lease: Duration,
        worker: &str,
        now: Duration,
        mut fence: impl FnMut(&str) -> Fence,
    ) -> Vec<Due> {
        let mut theirs: BTreeMap<&str, Vec<(OffsetDateTime, &String)>> = BTreeMap::new();
        for (id, row) in &self.rows {
            let user = row.request.user_id.as_str();
            if row.parked_on.as_deref() == Some(USER)
                && user > wanted.after.as_str()
                && !wanted.not_of.iter().any(|other| other == user)
            {
                theirs.entry(user).or_default().push((row.received_at, id));
            }
        }
        let some = theirs.into_values().flat_map(|mut rows| {
            rows.sort();
            rows.into_iter().take(wanted.each).map(|(_, id)| id.clone())
        });
        let ids = some.take(wanted.most).collect();
        self.bring_up(ids, lease, worker, now, &mut fence)
    }
}
