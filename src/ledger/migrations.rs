//! The ledger's tables: made by `longshore migrate`, only looked at by the worker.

use sha2::{Digest as _, Sha256};

use super::{
    Ledger,
    error::{BatchError, LedgerError},
    session, sql,
};

const MIGRATIONS: &[(i32, &str, &str)] = &[
    (1, "ledger", include_str!("migrations/0001_ledger.sql")),
    (2, "suspects", include_str!("migrations/0002_suspects.sql")),
    (3, "try_apply", include_str!("migrations/0003_try_apply.sql")),
    (4, "steering", include_str!("migrations/0004_steering.sql")),
    (5, "release", include_str!("migrations/0005_release.sql")),
    (6, "limits", include_str!("migrations/0006_limits.sql")),
    (7, "lines", include_str!("migrations/0007_lines.sql")),
    (8, "gone", include_str!("migrations/0008_gone.sql")),
];

/// Any number will do as long as nobody else in the database uses it: "longshor" in ASCII.
const LOCK: i64 = 0x6c6f_6e67_7368_6f72;

/// How the tables stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schema {
    /// As this version needs them.
    Current,
    /// This many migrations are missing.
    Behind(usize),
    /// A newer Longshore made them: its version number.
    Ahead(i32),
    /// A migration was applied with another text than this version has: its version number.
    Altered(i32),
}

impl Ledger {
    /// Applies what is missing, in one transaction under an advisory lock, so that replicas that
    /// start together do it once. Returns the names applied.
    ///
    /// # Errors
    /// Words for the operator.
    pub async fn migrate(&self) -> Result<Vec<String>, String> {
        let mut client = super::pool::get(&self.pool, self.patience())
            .await
            .map_err(|e| super::error::describe_pool(&e))?;
        let schema = &self.settings.schema;
        let work = async {
            let transaction = client.transaction().await?;
            // A big ledger takes its time to migrate, and others wait for the lock meanwhile.
            transaction
                .batch_execute("set local statement_timeout = 0; set local lock_timeout = 0")
                .await?;
            transaction.execute("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
            // A plain identifier by the rules of the settings.
            transaction.batch_execute(&format!("create schema if not exists {schema}")).await?;
            transaction
                .batch_execute(&sql::in_schema(
                    "create table if not exists longshore.migrations (
                         version integer primary key, name text not null, digest bytea not null,
                         applied_at timestamptz not null default now());
                     comment on table longshore.migrations is 'Which migrations of the ledger have been applied';",
                    schema,
                ))
                .await?;
            let select = sql::in_schema("select version from longshore.migrations", schema);
            let applied: Vec<i32> =
                transaction.query(&select, &[]).await?.iter().map(|row| row.get(0)).collect();
            let mut names = Vec::new();
            for (version, name, text) in
                MIGRATIONS.iter().filter(|(version, ..)| !applied.contains(version))
            {
                transaction.batch_execute(&sql::in_schema(text, schema)).await?;
                let insert = sql::in_schema(
                    "insert into longshore.migrations (version, name, digest) values ($1, $2, $3)",
                    schema,
                );
                transaction.execute(&insert, &[version, name, &digest(text)]).await?;
                names.push(format!("{version:04} {name}"));
            }
            transaction.commit().await?;
            Ok::<_, tokio_postgres::Error>(names)
        };
        work.await.map_err(|error| {
            let hint = if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) {
                format!("; grant the right to create the schema {schema}, or migrate as a user that has it")
            } else {
                String::new()
            };
            format!("{}{hint}", super::error::describe(&error))
        })
    }

    /// Looks at how the tables stand.
    ///
    /// # Errors
    /// [`LedgerError::Away`].
    pub async fn schema(&self) -> Result<Schema, LedgerError> {
        let select = sql::in_schema(
            "select version, digest from longshore.migrations order by version",
            &self.settings.schema,
        );
        let schema = session::with(&self.pool, self.patience(), async |client| {
            let there = client
                .query_one(
                    "select to_regclass($1) is not null",
                    &[&format!("{}.migrations", self.settings.schema)],
                )
                .await?;
            if !there.get::<_, bool>(0) {
                return Ok(Schema::Behind(MIGRATIONS.len()));
            }
            let applied: Vec<(i32, Vec<u8>)> = client
                .query(&select, &[])
                .await?
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            Ok::<_, BatchError>(compare(&applied))
        })
        .await;
        schema.map_err(LedgerError::from)
    }
}

fn compare(applied: &[(i32, Vec<u8>)]) -> Schema {
    for (version, found) in applied {
        match MIGRATIONS.iter().find(|(known, ..)| known == version) {
            None => return Schema::Ahead(*version),
            Some((.., text)) if digest(text) != *found => return Schema::Altered(*version),
            Some(_) => {}
        }
    }
    match MIGRATIONS.len() - applied.len() {
        0 => Schema::Current,
        missing => Schema::Behind(missing),
    }
}

fn digest(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_told_apart_from_an_older_a_newer_and_an_altered_one() {
        let ours: Vec<(i32, Vec<u8>)> =
            MIGRATIONS.iter().map(|(version, _, text)| (*version, digest(text))).collect();
        assert_eq!(compare(&ours), Schema::Current);
        assert_eq!(compare(&[]), Schema::Behind(MIGRATIONS.len()));
        assert_eq!(compare(&[(999, vec![])]), Schema::Ahead(999));
        assert_eq!(compare(&[(1, vec![0])]), Schema::Altered(1));
    }
}
