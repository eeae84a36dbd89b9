//! What operators wish, kept where every worker finds it, and the audit of it.

use super::{
    Ledger,
    error::{BatchError, LedgerError},
    session, sql,
};
use crate::steer::{Order, Wishes};

/// What a change of a wish has made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steered {
    /// What was wished before; `None`: as the settings say.
    pub before: Option<String>,
    /// What is wished now.
    pub after: Option<String>,
}

impl Ledger {
    /// Reads all wishes.
    ///
    /// # Errors
    /// [`LedgerError::Away`], or [`LedgerError::Step`] where they may not be read.
    pub async fn wishes(&self) -> Result<Wishes, LedgerError> {
        let select =
            sql::in_schema("select target, wish from longshore.steering", &self.settings.schema);
        let read = session::with(&self.pool, self.patience(), async |client| {
            let rows = client.query(&client.prepare_cached(&select).await?, &[]).await?;
            Ok::<_, BatchError>(Wishes::read(rows.iter().map(|row| (row.get(0), row.get(1)))))
        })
        .await;
        read.map_err(LedgerError::from)
    }

    /// Writes a wish, or takes it back, together with its row in the audit: neither is without the
    /// other. One at a time, so that the audit tells the order in which they hold.
    ///
    /// # Errors
    /// [`LedgerError::Away`]: whether it was written is unknown; the same again does no harm.
    /// [`LedgerError::Step`]: it was not written.
    pub async fn steer(&self, order: &Order, who: &str) -> Result<Steered, LedgerError> {
        let text = |text: &str| sql::in_schema(text, &self.settings.schema);
        let target = order.target.to_string();
        let after = order.wish.map(|wish| wish.to_string());
        let steered = session::with(&self.pool, self.patience(), async |client| {
            let transaction = client.transaction().await?;
            // Those who only read are not held up by it.
            transaction
                .batch_execute(&text("lock table longshore.steering in share row exclusive mode"))
                .await?;
            let select = text("select wish from longshore.steering where target = $1");
            let before = transaction.query_opt(&select, &[&target]).await?.map(|row| row.get(0));
            if let Some(wish) = &after {
                let upsert = text(
                    "insert into longshore.steering (target, wish, who) values ($1, $2, $3)
                     on conflict (target) do update
                        set wish = excluded.wish, who = excluded.who, at = now()",
                );
                transaction.execute(&upsert, &[&target, wish, &who]).await?;
            } else {
                let delete = text("delete from longshore.steering where target = $1");
                transaction.execute(&delete, &[&target]).await?;
            }
            let audit = text(
                "insert into longshore.audit (worker, who, action, target, before, after)
                 values ($1, $2, $3, $4, $5, $6)",
            );
            transaction
                .execute(&audit, &[&self.worker, &who, &order.action(), &target, &before, &after])
                .await?;
            transaction.commit().await?;
            Ok::<_, BatchError>(Steered { before, after: after.clone() })
        })
        .await;
        steered.map_err(LedgerError::from)
    }
}
