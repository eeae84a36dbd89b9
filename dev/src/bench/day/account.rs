//! Whether each request was done, and its effect took place once.

use anyhow::ensure;

use super::super::field::Field;

/// What the ledger and the tables behind it hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) rows: i64,
    pub(super) done: i64,
    /// The first and the last id, where there is one.
    pub(super) ids: (Option<String>, Option<String>),
    /// Requests applied: each raises a version by one.
    pub(super) versions: i64,
    /// Attempts that went wrong, and messages that could not be filed.
    pub(super) troubles: i64,
    /// Bytes of the database on disk.
    pub(super) bytes: i64,
}

pub(super) async fn take(field: &Field) -> anyhow::Result<Account> {
    let row = field
        .client
        .query_one(
            "select count(*), count(*) filter (where state = 'done'),
                    min(request_id), max(request_id),
                    (select coalesce(sum(version), 0)::bigint from app.users),
                    (select count(*) from longshore.attempts)
                        + (select count(*) from longshore.unreadable),
                    pg_database_size(current_database())
               from longshore.requests",
            &[],
        )
        .await?;
    Ok(Account {
        rows: row.get(0),
        done: row.get(1),
        ids: (row.get(2), row.get(3)),
        versions: row.get(4),
        troubles: row.get(5),
        bytes: row.get(6),
    })
}

impl Account {
    /// Ids are unique in the ledger and come in order, so that as many rows as requests between the
    /// first id and the last are the requests that were published.
    ///
    /// # Errors
    /// When something was lost, done twice, or went wrong.
    pub(super) fn check(&self, requests: usize) -> anyhow::Result<()> {
        let count = i64::try_from(requests)?;
        let first = super::super::load::ordered(0);
        let last = super::super::load::ordered(requests.saturating_sub(1));
        ensure!(
            self.rows == count
                && self.done == count
                && self.versions == count
                && self.troubles == 0
                && self.ids == (Some(first), Some(last)),
            "of {requests} requests this is the account: {self:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_done_twice_is_found_out() {
        let id = |number| Some(super::super::super::load::ordered(number));
        let clean =
            Account { rows: 3, done: 3, ids: (id(0), id(2)), versions: 3, troubles: 0, bytes: 1 };
        assert!(clean.check(3).is_ok());
        assert!(clean.check(4).is_err());
        assert!(Account { versions: 4, ..clean.clone() }.check(3).is_err());
        assert!(Account { troubles: 1, ..clean.clone() }.check(3).is_err());
        assert!(Account { ids: (id(0), id(3)), ..clean }.check(3).is_err());
    }
}
