//! The databases of a server of ours.

use std::time::Duration;

use anyhow::Context as _;
use longshore_drill::database::quoted;

use super::Postgres;
use crate::server;

/// How long one statement of ours may take; creating a database copies files.
const STATEMENT: Duration = Duration::from_secs(60);

impl Postgres {
    /// Creates a database, a copy of `template` where one is named (nobody may be connected to
    /// it), and returns its URL.
    ///
    /// # Errors
    /// When there is one of that name, or the template is in use.
    pub async fn create_database(
        &self,
        name: &str,
        template: Option<&str>,
    ) -> anyhow::Result<String> {
        let template =
            template.map(|template| format!(" TEMPLATE {}", quoted(template))).unwrap_or_default();
        self.administer(&format!("CREATE DATABASE {}{template}", quoted(name))).await?;
        Ok(self.url_of(name))
    }

    /// Drops a database, ending its sessions; one that is not there is fine.
    ///
    /// # Errors
    /// When it cannot be dropped.
    pub async fn drop_database(&self, name: &str) -> anyhow::Result<()> {
        self.administer(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
    }

    async fn administer(&self, statement: &str) -> anyhow::Result<()> {
        let client = tokio::time::timeout(
            server::TALK,
            longshore_drill::database::connect(&self.admin_url()),
        )
        .await
        .context("Postgres does not answer")??;
        tokio::time::timeout(STATEMENT, client.batch_execute(statement))
            .await
            .with_context(|| format!("`{statement}` took longer than {STATEMENT:?}"))?
            .with_context(|| format!("`{statement}` failed"))
    }
}
