//! The ways that are not Longshore, as processes of their own, measured as Longshore is: they say
//! where they listen, count what they have done at `/metrics`, and end at SIGTERM.

mod client;
mod raw;
mod stub;
mod usual;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use axum::{Router, routing::get};
use lapin::{
    Channel, Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    process::Command,
    signal::unix::{SignalKind, signal},
};

use super::load::QUEUE;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Consume and acknowledge many at a time.
    Raw,
    /// Consume and acknowledge one by one.
    RawSingle,
    /// One transaction a message.
    Usual,
    /// The HTTP client.
    Client,
    /// What it calls.
    Stub,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::RawSingle => "raw-single",
            Self::Usual => "usual",
            Self::Client => "client",
            Self::Stub => "stub",
        }
    }

    /// How it is started.
    pub(super) fn command(self, requests: usize) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-part", self.name(), "--requests", &requests.to_string()]);
        Ok(command)
    }
}

/// Works until SIGTERM. The servers are told in `AMQP_URL`, `DATABASE_URL` and `STUB_URL`.
///
/// # Errors
/// Whatever goes wrong: a part knows no second try.
pub async fn run(part: Part, requests: usize) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let tally = Arc::new(Tally::default());
    let work = async {
        match part {
            Part::Raw => raw::work(tally, raw::TOGETHER).await,
            Part::RawSingle => raw::work(tally, 1).await,
            Part::Usual => usual::work(tally).await,
            Part::Client => client::work(tally, requests).await,
            Part::Stub => stub::work(tally).await,
        }
    };
    tokio::select! {
        worked = work => worked,
        _ = terminate.recv() => Ok(()),
    }
}

/// What was done, and when the first and the last of it.
#[derive(Debug, Default)]
struct Tally {
    done: AtomicU64,
    /// In microseconds since 1970.
    first: AtomicU64,
    last: AtomicU64,
}

impl Tally {
    fn done(&self, requests: u64) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        if self.first.load(Relaxed) == 0 {
            // Whoever was first has been.
            let _first = self.first.compare_exchange(0, now, Relaxed, Relaxed).is_ok();
        }
        self.last.fetch_max(now, Relaxed);
        self.done.fetch_add(requests, Relaxed);
    }

    fn metrics(&self) -> String {
        let seconds = |instant: &AtomicU64| instant.load(Relaxed) as f64 / 1e6;
        format!(
            "longshore_requests_total{{outcome=\"done\"}} {}\nbench_first_done_seconds {:.6}\nbench_last_done_seconds {:.6}\n",
            self.done.load(Relaxed),
            seconds(&self.first),
            seconds(&self.last),
        )
    }

    /// Answers from now on.
    async fn serve(self: &Arc<Self>) -> anyhow::Result<()> {
        let listener = listen().await?;
        let tally = Arc::clone(self);
        let router = Router::new()
            .route("/health/ready", get(async || "ready"))
            .route("/metrics", get(async move || tally.metrics()));
        tokio::spawn(async move { axum::serve(listener, router).await.is_ok() });
        Ok(())
    }
}

/// Listens somewhere, and says where, as the worker's log does.
async fn listen() -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    println!("{}", json!({"event": "admin.listening", "address": address}));
    Ok(listener)
}

fn told(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set, `bench` sets it"))
}

/// Subscribed to the queue. All three must be held, or the subscription ends.
async fn consume(prefetch: u16) -> anyhow::Result<(Connection, Channel, Consumer)> {
    let connection =
        Connection::connect(&told("AMQP_URL")?, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let consumer = channel
        .basic_consume(
            QUEUE.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    Ok((connection, channel, consumer))
}
