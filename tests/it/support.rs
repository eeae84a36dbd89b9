//! A place for one test: queues and a database of its own on the shared servers, a stub downstream,
//! and workers.

mod broker;
mod clock;
mod disguise;
pub(crate) mod document;
mod echo;
mod ledger;
mod load;
mod raw_amqp;
mod verdict;
mod worker;

use std::{future::Future, path::PathBuf, process::Stdio, time::Duration};

use longshore_dev::{services::Services, stub::Stub};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, interval, timeout},
};

pub(crate) use self::{
    broker::{Broker, Publish},
    clock::Clock,
    disguise::Disguise,
    echo::Echo,
    ledger::{Database, Row, Unreadable},
    load::{Load, address, by_way_of, through},
    raw_amqp::{RawAmqp, nested_header, text_header},
    verdict::{envelope, request},
    worker::Worker,
};

/// How long a test waits for a fact before it says that it did not come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A place for one test.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    pub(crate) stub: Stub,
    settings: String,
    variables: Vec<(String, String)>,
    dir: tempfile::TempDir,
}

impl Place {
    /// A place on the shared servers, with the ledger migrated and the example service installed.
    pub(crate) async fn new(test: &str) -> Self {
        let services = Services::shared().await.unwrap();
        Self::on(test, &services.rabbit.url(), &services.postgres.admin_url()).await
    }

    /// A place on servers of the test's own.
    pub(crate) async fn on(test: &str, amqp_url: &str, postgres_url: &str) -> Self {
        // For this process' own HTTP client; a second test in the same process finds it installed.
        let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
        let name = format!("{test}_{:08x}", fastrand::u32(..)).replace('-', "_");
        let broker = Broker::connect(amqp_url, &name).await;
        let database = Database::create(postgres_url, &name).await;
        let stub = Stub::start("127.0.0.1:0").await.unwrap();
        let place = Self {
            settings: settings(&name, &stub.url),
            variables: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
            name,
            broker,
            database,
            stub,
        };
        let migrated = place.cli(&["migrate"]).await;
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        place.database.execute(include_str!("../../config/user-service/service.sql")).await;
        place
    }

    /// Adds to the settings of workers that start from now on.
    pub(crate) fn set(&mut self, toml: &str) -> &mut Self {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// Sets a single value for workers that start from now on, by its variable.
    pub(crate) fn set_value(&mut self, variable: &str, value: &str) -> &mut Self {
        self.variables.push((format!("LONGSHORE__{variable}"), value.to_owned()));
        self
    }

    /// Lets calls take this long, from now on.
    pub(crate) fn patient_dependencies(&mut self, timeout: &str) -> &mut Self {
        self.set_value("DEFAULTS__DEPENDENCY__TIMEOUT", timeout)
            .set_value("DEFAULTS__DEPENDENCY__BREAKER__PROBE_TIMEOUT", timeout)
    }

    /// Writes the settings down, for the binary.
    pub(crate) fn settings_file(&self) -> PathBuf {
        let path = self.dir.path().join("longshore.toml");
        std::fs::write(&path, &self.settings).unwrap();
        path
    }

    /// The environment of the binary here.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut environment = vec![
            ("AMQP_URL".to_owned(), self.broker.url.clone()),
            ("DATABASE_URL".to_owned(), self.database.url.clone()),
        ];
        environment.extend(self.variables.iter().cloned());
        environment
    }

    /// Runs a command of the binary to its end.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> std::process::Output {
        self.cli_with(arguments, &[], "").await
    }

    /// The same with further variables, and with something on standard input.
    pub(crate) async fn cli_with(
        &self,
        arguments: &[&str],
        variables: &[(&str, &str)],
        input: &str,
    ) -> std::process::Output {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_longshore"));
        command
            .arg("--config")
            .arg(self.settings_file())
            .args(arguments)
            .envs(self.environment())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let ended = async {
            // A command that does not read its input may end before it is written.
            let _written = stdin.write_all(input.as_bytes()).await.is_ok();
            drop(stdin);
            child.wait_with_output().await
        };
        timeout(PATIENCE, ended).await.expect("the command ends in time").unwrap()
    }

    /// Starts a worker and waits until it consumes.
    pub(crate) async fn worker(&self) -> Worker {
        let worker = self.worker_unready(&[]).await;
        worker.until_ready().await;
        worker
    }

    /// Starts a worker with further variables and waits until it consumes.
    pub(crate) async fn worker_with(&self, variables: &[(&str, &str)]) -> Worker {
        let worker = self.worker_unready(variables).await;
        worker.until_ready().await;
        worker
    }

    /// Starts a worker with further variables and does not wait.
    pub(crate) async fn worker_unready(&self, variables: &[(&str, &str)]) -> Worker {
        let mut environment = self.environment();
        environment.extend(
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        Worker::start(&self.settings_file(), environment).await
    }

    /// Publishes a request of the contract and waits for the confirmation.
    pub(crate) async fn publish(&self, id: &str, kind: &str, user: &str, payload: Value) {
        let body = json!({"request_id": id, "kind": kind, "user_id": user, "payload": payload});
        self.broker.publish(Publish::json(&body)).await;
    }

    /// Waits until the request is in this state, and returns its row.
    pub(crate) async fn until_state(&self, id: &str, state: &str) -> Row {
        let wanted = format!("request {id} becomes {state}");
        until(&wanted, async || {
            let row = self.database.row(id).await?;
            (row.state == state).then_some(row)
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Queues and databases are cheap, but thousands of them would slow the servers down.
        self.broker.forget();
        self.database.forget();
    }
}

/// Asks again and again until there is an answer, and fails the test when none comes.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    until_within(PATIENCE, what, &mut ask).await
}

/// The same with another patience.
pub(crate) async fn until_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let give_up = Instant::now() + patience;
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < give_up, "in {patience:?} it did not come about that {what}");
    }
}

/// The example service's kinds on queues of this test's own, with delays that suit tests.
fn settings(name: &str, stub: &str) -> String {
    format!(
        r#"
[worker]
concurrency = 32
grace = "10s"
counts_interval = "200ms"
[queue]
name = "{name}.requests"
exchange = "{name}"
ordered_name = "{name}.ordered"
ordered_exchange = "{name}.ordered"
dead_queue = "{name}.dead"
dead_exchange = "{name}.dead"
prefetch = 64
reconnect_initial = "50ms"
reconnect_max = "500ms"
poll_interval = "500ms"
[ledger]
due_poll = "50ms"
probe_interval = "100ms"
statement_timeout = "2s"
[ledger.pool]
max_size = 10
[admin]
bind = "127.0.0.1:0"
[defaults.kind]
initial_delay = "100ms"
max_delay = "2s"
timeout = "5s"
max_attempts = 3
[defaults.dependency]
timeout = "1s"
connect_timeout = "1s"
[defaults.dependency.breaker]
open_for = "500ms"
open_max = "2s"
slow_call = "1s"
probe_timeout = "2s"
[dependencies.geocoder]
url = "{stub}/geocoder"
[dependencies.mailer]
url = "{stub}/mailer"
[kinds."user.profile.update"]
apply = "app.update_profile"
[kinds."user.profile.get"]
apply = "app.get_profile"
reply = true
[kinds."user.address.verify"]
apply = "app.verify_address"
[kinds."user.address.verify".call]
dependency = "geocoder"
path = "/verify"
[kinds."user.welcome.send".call]
dependency = "mailer"
path = "/welcome/{{user_id}}"
"#
    )
}
