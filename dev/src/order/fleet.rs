//! The servers, the workers and the stub, private to one run.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use anyhow::Context as _;
use lapin::{Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable};
use rustix::process::Signal;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::{
    apart,
    place::Private,
    postgres::Postgres,
    process::Process,
    rabbit::Rabbit,
    server::Life,
    stub::Behaviour,
    worker::{Settings, Worker},
};

const DATABASE: &str = "longshore_order";
const ORDERED: &str = "longshore.ordered";
/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(30);
const STUB_STOP: Duration = Duration::from_secs(10);

/// Leases are short, for a killed worker's requests hold up their users until theirs have ended.
const SETTINGS: &str = r#"
[worker]
concurrency = 64
[ledger]
statement_timeout = "4s"
lease_margin = "4s"
[ledger.pool]
max_size = 10
[log]
requests = "problems"
[defaults.kind]
timeout = "4s"
initial_delay = "100ms"
max_delay = "1s"
max_attempts = 100
[dependencies.geocoder]
url = "http://127.0.0.1:9"
timeout = "2s"
[dependencies.mailer]
url = "http://127.0.0.1:9"
timeout = "2s"
[kinds."order.step"]
apply = "app.step"
ordered_by = "user_id"
[kinds."order.visit"]
apply = "app.visit"
ordered_by = "user_id"
[kinds."order.visit".call]
dependency = "mailer"
path = "/welcome"
"#;

/// Rows tell the order in which they were inserted. No unique key: it would hide a second one.
const SERVICE: &str = "\
create schema app;
create table app.steps (
    nth bigint generated always as identity primary key,
    user_id text not null, number bigint not null);
create function app.step(request jsonb) returns jsonb language sql volatile as $$
    insert into app.steps (user_id, number)
    values (request ->> 'user_id', (request #>> '{payload,number}')::bigint)
    returning null::jsonb
$$;
create function app.visit(request jsonb, response jsonb) returns jsonb language sql volatile as $$
    select app.step(request)
$$;";

/// What is there at the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) applied: i64,
    /// Applications that came after a later one of the same user.
    pub(super) inversions: i64,
    pub(super) twice: i64,
    pub(super) dead: i64,
    /// Attempts that ended as `retry`.
    pub(super) tried_again: i64,
    pub(super) ready: u32,
}

pub(super) struct Fleet {
    rabbit: Rabbit,
    _postgres: Postgres,
    settings: Settings,
    workers: VecDeque<Worker>,
    stub: Process,
    client: Client,
    // The last to be dropped: the servers live in it.
    _dir: Private,
}

impl Fleet {
    pub(super) async fn open(workers: usize) -> anyhow::Result<Self> {
        let dir = Private::new("order")?;
        let (rabbit, postgres) = tokio::try_join!(
            Rabbit::start(dir.path().join("rabbitmq"), "order"),
            Postgres::start(dir.path().join("postgres")),
        )?;
        let (stub, stub_url) = apart::start(&dir.path().join("stub.log"), Life::Private).await?;
        apart::behave(&stub_url, "mailer", &Behaviour::Fail { share: 0.05, seed: 7 }).await?;
        let config: PathBuf = dir.path().join("longshore.toml");
        tokio::fs::write(&config, SETTINGS).await?;
        let settings = Settings {
            config,
            amqp_url: rabbit.url(),
            pg_url: postgres.create_database(DATABASE, None).await?,
            stub_url,
            log: dir.path().join("worker.log"),
        };
        settings.command(&["migrate"]).await?;
        let client = longshore_drill::database::connect(&settings.pg_url).await?;
        client.batch_execute(SERVICE).await.context("the functions cannot be installed")?;
        let mut fleet = Self {
            rabbit,
            _postgres: postgres,
            settings,
            workers: VecDeque::new(),
            stub,
            client,
            _dir: dir,
        };
        for _ in 0..workers {
            fleet.start_one().await?;
        }
        Ok(fleet)
    }

    pub(super) fn amqp_url(&self) -> String {
        self.rabbit.url()
    }

    async fn start_one(&mut self) -> anyhow::Result<()> {
        self.workers.push_back(Worker::start(&self.settings).await?);
        Ok(())
    }

    /// Kills the oldest worker and starts another.
    pub(super) async fn kill_one(&mut self) -> anyhow::Result<()> {
        if let Some(mut worker) = self.workers.pop_front() {
            worker.kill().await?;
        }
        self.start_one().await
    }

    /// Stops the oldest worker in order and starts another.
    pub(super) async fn stop_one(&mut self) -> anyhow::Result<()> {
        if let Some(mut worker) = self.workers.pop_front() {
            worker.stop().await?;
        }
        self.start_one().await
    }

    async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let asked = timeout(ANSWER, self.client.query_one(sql, &[])).await;
        Ok(asked.context("Postgres does not answer")??.try_get(0)?)
    }

    /// Requests that are done or dead.
    pub(super) async fn ended(&self) -> anyhow::Result<i64> {
        self.number("select count(*) from longshore.requests where state in ('done', 'dead')").await
    }

    pub(super) async fn found(&self) -> anyhow::Result<Found> {
        let inversions = "select count(*) from (
            select number, max(number) over (partition by user_id order by nth
                                             rows between unbounded preceding and 1 preceding) as before
              from app.steps) s where number < before";
        let twice = "select count(*) from (
            select from app.steps group by user_id, number having count(*) > 1) t";
        let dead = "select count(*) from longshore.requests where state = 'dead'";
        let again = "select count(*) from longshore.attempts where outcome = 'retry'";
        Ok(Found {
            applied: self.number("select count(*) from app.steps").await?,
            inversions: self.number(inversions).await?,
            twice: self.number(twice).await?,
            dead: self.number(dead).await?,
            tried_again: self.number(again).await?,
            ready: self.ready().await?,
        })
    }

    async fn ready(&self) -> anyhow::Result<u32> {
        let url = self.rabbit.url();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared =
            channel.queue_declare(ORDERED.into(), passive, FieldTable::default()).await?;
        Ok(declared.message_count())
    }

    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        for mut worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        self.stub.ask(Signal::TERM, STUB_STOP).await;
        self.stub.kill().await;
        Ok(())
    }
}
