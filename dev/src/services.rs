//! The pair of servers that all tests of a checkout share: found again, or started.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    place,
    postgres::Postgres,
    rabbit::Rabbit,
    server::{self, Life},
};

/// How long to wait for another process that is starting or stopping the servers.
const TURN: Duration = Duration::from_secs(300);
/// How often to ask whether it has finished.
const ASK: Duration = Duration::from_millis(50);

/// The shared servers. They go on running when this is dropped, until [`Services::down`].
#[derive(Debug)]
pub struct Services {
    /// The broker.
    pub rabbit: Rabbit,
    /// The database server.
    pub postgres: Postgres,
}

/// What `target/dev/services.json` says, for people and scripts.
#[derive(Debug, Serialize)]
struct Card {
    amqp_url: String,
    database_url: String,
    rabbitmq_pid: Option<u32>,
    rabbitmq_log: PathBuf,
    postgres_pid: Option<u32>,
    postgres_log: PathBuf,
}

impl Services {
    /// The servers of this checkout; what does not run is started, on the data and ports of last
    /// time where possible. Any number of processes may ask at once: one starts, the others wait.
    ///
    /// # Errors
    /// When a server is not installed or does not start.
    pub async fn shared() -> anyhow::Result<Self> {
        let _turn = turn().await?;
        let (rabbit, postgres) = tokio::try_join!(
            async {
                let dir = rabbit_dir();
                match Rabbit::running(&dir).await {
                    Some(rabbit) => Ok(rabbit),
                    None => Rabbit::start_for(&dir, "shared", Life::Shared).await,
                }
            },
            async {
                let dir = postgres_dir();
                match Postgres::running(&dir).await {
                    Some(postgres) => Ok(postgres),
                    None => Postgres::start_for(&dir, Life::Shared, &[]).await,
                }
            },
        )?;
        let services = Self { rabbit, postgres };
        server::write_json(&card(), &services.card())?;
        Ok(services)
    }

    /// The servers of this checkout if both are up; nothing is started.
    ///
    /// # Errors
    /// When another process is busy with them for too long.
    pub async fn running() -> anyhow::Result<Option<Self>> {
        let _turn = turn().await?;
        let (rabbit, postgres) =
            tokio::join!(async { Rabbit::running(&rabbit_dir()).await }, async {
                Postgres::running(&postgres_dir()).await
            });
        Ok(rabbit.zip(postgres).map(|(rabbit, postgres)| Self { rabbit, postgres }))
    }

    /// Stops the servers of this checkout and keeps their data; the names of those that ran.
    ///
    /// # Errors
    /// When another process is busy with them for too long.
    pub async fn down() -> anyhow::Result<Vec<&'static str>> {
        let _turn = turn().await?;
        let (rabbit_dir, postgres_dir) = (rabbit_dir(), postgres_dir());
        let (rabbit, postgres) =
            tokio::join!(Rabbit::end(&rabbit_dir), Postgres::end(&postgres_dir));
        match fs::remove_file(card()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        Ok([("RabbitMQ", rabbit), ("Postgres", postgres)]
            .into_iter()
            .filter_map(|(name, ran)| ran.then_some(name))
            .collect())
    }

    /// `export AMQP_URL=… DATABASE_URL=…`, for `eval`.
    pub fn env(&self) -> String {
        format!("export AMQP_URL='{}' DATABASE_URL='{}'", self.rabbit.url(), self.postgres.url())
    }

    fn card(&self) -> Card {
        Card {
            amqp_url: self.rabbit.url(),
            database_url: self.postgres.url(),
            rabbitmq_pid: self.rabbit.pid(),
            rabbitmq_log: self.rabbit.log(),
            postgres_pid: self.postgres.pid(),
            postgres_log: self.postgres.log(),
        }
    }
}

fn rabbit_dir() -> PathBuf {
    place::root().join("rabbitmq")
}

fn postgres_dir() -> PathBuf {
    place::root().join("postgres")
}

fn card() -> PathBuf {
    place::root().join("services.json")
}

/// The right to start and stop the servers; given back when dropped, or when the process dies.
async fn turn() -> anyhow::Result<fs::File> {
    let path = place::root().join("services.lock");
    fs::create_dir_all(place::root())
        .with_context(|| format!("cannot create {}", place::root().display()))?;
    let file = fs::File::options().create(true).append(true).open(&path)?;
    let until = Instant::now() + TURN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= until => {
                bail!(
                    "another process has been busy with the servers for {TURN:?}, see who holds {}",
                    path.display()
                );
            }
            Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(ASK).await,
        }
    }
}
