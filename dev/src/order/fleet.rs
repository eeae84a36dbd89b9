//! The servers, the workers and the stub, private to one run.

use std::{collections::VecDeque, time::Duration};

use anyhow::Context as _;
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use longshore_drill::broker;
use tokio::time::timeout;

use crate::{stage::Stage, stub::Behaviour, worker::Worker};

const ORDERED: &str = "longshore.ordered";
/// How long RabbitMQ may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

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
    workers: VecDeque<Worker>,
    stage: Stage,
}

impl Fleet {
    pub(super) async fn open(workers: usize) -> anyhow::Result<Self> {
        let stage = Stage::open("order", SETTINGS, SERVICE).await?;
        stage.behave("mailer", &Behaviour::Fail { share: 0.05, seed: 7 }).await?;
        let mut fleet = Self { workers: VecDeque::new(), stage };
        for _ in 0..workers {
            fleet.start_one().await?;
        }
        Ok(fleet)
    }

    pub(super) fn amqp_url(&self) -> String {
        self.stage.rabbit.url()
    }

    async fn start_one(&mut self) -> anyhow::Result<()> {
        self.workers.push_back(Worker::start(&self.stage.settings).await?);
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

    /// Requests that are done or dead.
    pub(super) async fn ended(&self) -> anyhow::Result<i64> {
        self.stage
            .number("select count(*) from longshore.requests where state in ('done', 'dead')")
            .await
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
            applied: self.stage.number("select count(*) from app.steps").await?,
            inversions: self.stage.number(inversions).await?,
            twice: self.stage.number(twice).await?,
            dead: self.stage.number(dead).await?,
            tried_again: self.stage.number(again).await?,
            ready: self.ready().await?,
        })
    }

    async fn ready(&self) -> anyhow::Result<u32> {
        let url = self.stage.rabbit.url();
        let asked = async {
            let connection = broker::connect(&url).await?;
            let channel = connection.create_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(ORDERED.into(), passive, FieldTable::default());
            Ok::<_, anyhow::Error>(declared.await?)
        };
        let declared = timeout(ANSWER, asked).await.context("RabbitMQ does not answer")??;
        Ok(declared.message_count())
    }

    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        for mut worker in self.workers.drain(..) {
            worker.stop().await?;
        }
        self.stage.close().await;
        Ok(())
    }
}
