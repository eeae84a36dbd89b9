//! What a drill makes for itself, by name, and its removal.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::timeout;

use super::plan::{CALLING, KINDS, MAX_BODY};
use crate::{broker, database};

/// How long a queue may resist its deletion, and how long a statement may take.
const DELETE: Duration = Duration::from_secs(60);
const STATEMENT: Duration = Duration::from_secs(60);
/// How long a worker may be silent before the broker takes it for dead: twice this.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);

/// The names of one drill. Nothing else is ever touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// `longshore-drill-1a2b3c4d`: the exchange, and the beginning of the queues' names.
    pub prefix: String,
    /// `longshore_drill_1a2b3c4d`: the schema.
    pub schema: String,
}

impl Scratch {
    /// Names that nobody has.
    pub(super) fn new() -> Self {
        Self::of(&format!("{:08x}", fastrand::u32(..)))
    }

    fn of(random: &str) -> Self {
        Self {
            prefix: format!("longshore-drill-{random}"),
            schema: format!("longshore_drill_{random}"),
        }
    }

    /// The names of an earlier drill, from its prefix.
    ///
    /// # Errors
    /// When that is not the name of a drill: nothing else is to be removed by mistake.
    pub fn named(prefix: &str) -> Result<Self, String> {
        let random = prefix.strip_prefix("longshore-drill-").unwrap_or_default();
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if random.len() != 8 || !random.chars().all(is_hex) {
            return Err(format!(
                "{prefix:?} is not a drill's name such as longshore-drill-1a2b3c4d"
            ));
        }
        Ok(Self::of(random))
    }

    pub(super) fn queue(&self) -> String {
        format!("{}.requests", self.prefix)
    }

    pub(super) fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    pub(super) fn replies(&self) -> String {
        format!("{}.replies", self.prefix)
    }

    pub(super) fn effects(&self) -> String {
        format!("{}.effects", self.schema)
    }

    /// Makes sure that none of it is there: what a drill has not made it does not touch.
    pub(super) async fn check_absent(&self, amqp: &str, postgres: &str) -> anyhow::Result<()> {
        let client = database::connect(postgres).await.context("Postgres")?;
        let sql = "SELECT to_regnamespace($1) IS NOT NULL";
        let there = timeout(STATEMENT, client.query_one(sql, &[&self.schema])).await;
        let there: bool = there.context("Postgres does not answer")??.try_get(0)?;
        if there || broker::has_queue(amqp, &self.queue()).await.context("RabbitMQ")? {
            bail!("{} is taken, try again", self.prefix);
        }
        Ok(())
    }

    /// Adds the table of effects and the functions to the schema, once the ledger is in it.
    pub(super) async fn install(&self, postgres: &str) -> anyhow::Result<()> {
        let client = database::connect(postgres).await?;
        let sql = include_str!("scratch.sql").replace("scratch.", &format!("{}.", self.schema));
        timeout(STATEMENT, client.batch_execute(&sql))
            .await
            .context("Postgres does not answer")?
            .context("the functions of the drill cannot be made")
    }

    /// Removes everything. What is not there is as good.
    ///
    /// # Errors
    /// What could not be removed, all of it.
    pub(super) async fn remove(&self, amqp: &str, postgres: &str) -> Result<(), String> {
        let mut left = Vec::new();
        if let Err(error) = self.drop_schema(postgres).await {
            left.push(format!("schema {}: {error:#}", self.schema));
        }
        for queue in [self.queue(), self.dead()] {
            if let Err(error) = broker::delete_queue(amqp, &queue, DELETE).await {
                left.push(format!("{error:#}"));
            }
        }
        let (exchange, dead) = (self.prefix.as_str(), self.dead());
        if let Err(error) = broker::delete_exchanges(amqp, &[exchange, &dead]).await {
            left.push(format!("exchanges {exchange} and {dead}: {error:#}"));
        }
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }

    async fn drop_schema(&self, postgres: &str) -> anyhow::Result<()> {
        let client =
            timeout(STATEMENT, database::connect(postgres)).await.context("no answer")??;
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        timeout(STATEMENT, client.batch_execute(&sql)).await.context("no answer")??;
        Ok(())
    }

    /// The settings of the drill's workers. No secret is in them: the URLs come by environment.
    pub(super) fn settings(&self, stub: &str, faults: usize) -> String {
        let (prefix, schema) = (&self.prefix, &self.schema);
        let kinds = KINDS.map(|kind| {
            let function = if CALLING.contains(&kind) { "write_answer" } else { "write" };
            let reply = kind == "drill.answer";
            let mut text =
                format!("[kinds.\"{kind}\"]\napply = \"{schema}.{function}\"\nreply = {reply}\n");
            if let Some(name) = kind.strip_prefix("drill.").filter(|_| CALLING.contains(&kind)) {
                text.push_str(&format!(
                    "[kinds.\"{kind}\".call]\ndependency = \"{name}\"\npath = \"/{{request_id}}\"\n"
                ));
            }
            text
        });
        // Each fault may bring every message back once; none is to die of that.
        let limit = 200 + 4 * faults;
        let heartbeat = HEARTBEAT.as_secs();
        format!(
            r#"[worker]
max_message_bytes = {MAX_BODY}
grace = "15s"
[queue]
name = "{prefix}.requests"
exchange = "{prefix}"
dead_queue = "{prefix}.dead"
dead_exchange = "{prefix}.dead"
delivery_limit = {limit}
heartbeat = "{heartbeat}s"
reconnect_initial = "100ms"
reconnect_max = "2s"
[ledger]
schema = "{schema}"
statement_timeout = "3s"
lease_margin = "3s"
due_poll = "100ms"
probe_interval = "200ms"
[ledger.pool]
max_size = 8
[admin]
enabled = false
[log]
level = "info,longshore::queue::supervisor=debug"
[defaults.kind]
timeout = "4s"
max_attempts = 1000
initial_delay = "200ms"
max_delay = "2s"
[defaults.dependency]
timeout = "3s"
[defaults.dependency.breaker]
slow_call = "3s"
open_for = "500ms"
open_max = "2s"
[dependencies.call]
url = "{stub}/call"
[dependencies.flaky]
url = "{stub}/flaky"
{}"#,
            kinds.concat()
        )
    }
}

/// A folder of this user alone for the settings file; removed when dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(scratch: &Scratch) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(&scratch.prefix);
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot create {}, set TMPDIR to a folder that can be written", path.display())
        })?;
        Ok(Self(path))
    }

    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A settings file without secrets that stays behind harms nobody.
        let _removed = fs::remove_dir_all(&self.0).is_ok();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    #[test]
    fn only_a_drills_name_is_taken_for_one() {
        let scratch = Scratch::new();
        assert_eq!(Scratch::named(&scratch.prefix), Ok(scratch));
        for name in [
            "",
            "longshore",
            "longshore-drill-",
            "longshore-drill-1A2B3C4D",
            "longshore-drill-1a2b3c4d5",
            "longshore-drill-1a2b3c4;",
        ] {
            assert!(Scratch::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_folder_goes_with_its_owner() {
        let folder = Folder::new(&Scratch::new()).unwrap();
        let path = folder.write("a.toml", "x").unwrap();
        assert!(path.exists());
        drop(folder);
        assert!(!path.exists() && path.parent().is_some_and(|dir| !dir.exists()));
    }
}
