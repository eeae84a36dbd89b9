//! What `longshore check` asks of Postgres.

use std::collections::BTreeMap;

use super::{Function, Ledger, Schema, error::LedgerError, session, version};

impl Ledger {
    /// Looks whether a worker with these functions could work, and says what is in the way.
    pub async fn findings(&self, functions: &BTreeMap<String, Function>) -> Vec<String> {
        let endpoint = self.endpoint();
        if let Err(error) = self.reach().await {
            return vec![format!(
                "{endpoint}: {}; see that it runs, that the user may log in, and that ledger.url names it",
                plain(&error)
            )];
        }
        let version = self.server.version();
        let mut findings: Vec<String> =
            version.as_deref().and_then(version::fault).into_iter().collect();
        match self.schema().await {
            Ok(Schema::Current) => findings.extend(self.privileges().await),
            Ok(schema) => findings.push(schema.remedy(&self.settings.schema)),
            Err(error) => findings.push(plain(&error)),
        }
        findings.extend(self.functions(functions).await);
        findings
    }

    /// Looks whether the functions of the kinds are there and may be called, and says what is not.
    pub async fn functions(&self, functions: &BTreeMap<String, Function>) -> Vec<String> {
        let mut findings = Vec::new();
        for (kind, function) in functions {
            findings.extend(self.function(kind, &function.signature(), "jsonb").await);
            if let Some(batch) = &function.batch {
                findings.extend(self.function(kind, &format!("{batch}(jsonb[])"), "jsonb[]").await);
            }
        }
        findings
    }

    async fn privileges(&self) -> Vec<String> {
        let schema = self.settings.schema.clone();
        let asked = session::with(&self.pool, self.patience(), async |client| {
            let mut findings = Vec::new();
            const ALL: &[&str] = &["select", "insert", "update", "delete"];
            for (table, rights) in [
                ("requests", ALL),
                ("attempts", ALL),
                ("unreadable", ALL),
                ("steering", ALL),
                ("audit", &["select", "insert"]),
                ("buckets", &["select", "insert", "update"]),
            ] {
                let name = format!("{schema}.{table}");
                let row = client
                    .query_one(
                        "select bool_and(has_table_privilege($1, p)), current_user::text
                           from unnest($2::text[]) p",
                        &[&name, &rights],
                    )
                    .await?;
                if !row.get::<_, bool>(0) {
                    let (user, rights): (String, _) = (row.get(1), rights.join(", "));
                    findings.push(format!(
                        "user {user} may not work on {name}; grant {rights} on {name} to {user}"
                    ));
                }
            }
            // For requests of ordered kinds.
            let name = format!("{schema}.places");
            let row = client
                .query_one(
                    "select has_sequence_privilege($1, 'usage'), current_user::text",
                    &[&name],
                )
                .await?;
            if !row.get::<_, bool>(0) {
                let user: String = row.get(1);
                findings.push(format!(
                    "user {user} may not use {name}; grant usage on sequence {name} to {user}"
                ));
            }
            // Everybody may, unless that was revoked.
            let closed = client
                .query(
                    "select p.oid::regprocedure::text, current_user::text
                       from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                      where n.nspname = $1 and p.proname = any($2)
                        and not has_function_privilege(p.oid, 'execute')
                      order by 1",
                    &[&schema, &["gone", "take_tokens", "try_apply"].as_slice()],
                )
                .await?;
            for row in closed {
                let (function, user): (String, String) = (row.get(0), row.get(1));
                findings.push(format!(
                    "user {user} may not call {function}; grant execute on function {function} to {user}"
                ));
            }
            Ok(findings)
        })
        .await;
        asked.unwrap_or_else(|error| vec![plain(&LedgerError::from(error))])
    }

    async fn function(&self, kind: &str, signature: &str, returns: &str) -> Option<String> {
        let asked = session::with(&self.pool, self.patience(), async |client| {
            let row = client
                .query_one(
                    "select p.oid is not null, p.prorettype = to_regtype($2), p.provolatile = 'v',
                            coalesce(has_function_privilege(p.oid, 'execute'), false), current_user::text
                       from (select to_regprocedure($1) as oid) f left join pg_proc p on p.oid = f.oid",
                    &[&signature, &returns],
                )
                .await?;
            let user: String = row.get(4);
            Ok(if !row.get::<_, bool>(0) {
                Some(format!("kind {kind}: there is no function {signature}; create it, or correct `apply` or `apply_batch`"))
            } else if row.get::<_, Option<bool>>(1) != Some(true) {
                Some(format!("kind {kind}: the function {signature} does not return {returns}; let it return {returns}, null if it has nothing to say"))
            } else if row.get::<_, Option<bool>>(2) != Some(true) {
                Some(format!("kind {kind}: the function {signature} is declared stable or immutable, so Postgres may leave calls out; declare it volatile"))
            } else if !row.get::<_, bool>(3) {
                Some(format!("kind {kind}: user {user} may not call {signature}; grant execute on function {signature} to {user}"))
            } else {
                None
            })
        })
        .await;
        asked.unwrap_or_else(|error| {
            Some(format!("kind {kind}: {}", plain(&LedgerError::from(error))))
        })
    }
}

fn plain(error: &LedgerError) -> String {
    error.to_string()
}
