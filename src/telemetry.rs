//! Telemetry: logs and metrics.
//!
//! [`start`] makes this process log lines on stdout, [`Recorder::install`] makes it count. The two
//! are apart because a program that embeds the worker may have a subscriber or a recorder of its
//! own. What is logged for each request is a [`RequestLine`]; what is counted is in [`metrics`].

mod escape;
mod filter;
mod format;
mod line;
pub mod metrics;
mod recorder;
mod stdout;
#[cfg(test)]
mod testing;
pub mod version;

use serde::Deserialize;
use tracing::{Subscriber, warn};
use tracing_subscriber::{
    EnvFilter,
    filter::filter_fn,
    fmt::MakeWriter,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

pub use line::RequestLine;
pub use recorder::Recorder;
pub use version::VERSION;

/// The section `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or a list of levels for single
    /// targets, e.g. `info,longshore::queue=debug`. Some crates stay quieter than this, for what
    /// they say at a higher level would put payloads into the log.
    pub level: String,
    /// How a line looks.
    pub format: Format,
    /// Which finished attempts get a line.
    pub requests: RequestLines,
}

/// What a panic said, without where.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a text"))
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One flat JSON object.
    Json,
    /// Text for a terminal.
    Text,
}

/// Which finished attempts get a line. Metrics count them all in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestLines {
    /// Each of them.
    All,
    /// Those that are not `done` or `duplicate`: at many thousand requests a second their lines
    /// cost more than they tell.
    Problems,
}

impl Settings {
    /// What is wrong with these settings, each mistake with its key.
    pub fn problems(&self) -> Vec<(String, String)> {
        filter::level(&self.level)
            .err()
            .map(|fault| ("level".to_owned(), fault))
            .into_iter()
            .collect()
    }
}

/// Why telemetry could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings are wrong; [`Settings::problems`] would have said so.
    #[error("log.level: {0}")]
    Level(String),
    /// This process logs elsewhere already.
    #[error(
        "this process has a subscriber for `tracing` already; call telemetry::start before it is set, or keep it and do \
         not call telemetry::start"
    )]
    SubscriberSet,
    /// This process counts elsewhere already.
    #[error(
        "this process has a recorder for `metrics` already; call Recorder::install before it is set, or keep it and do \
         not serve /metrics from here"
    )]
    RecorderSet,
    /// The metrics could not be written out.
    #[error("rendering the metrics panicked, or the process is ending")]
    Render(#[source] tokio::task::JoinError),
    /// A thread could not be started.
    #[error(
        "cannot start a thread for telemetry; look at the limits on threads and memory of this process"
    )]
    Thread(#[source] std::io::Error),
}

/// The log of this process. Dropping it writes out what still waits, which is why it is kept to
/// the end of `main`.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub struct Telemetry {
    flush: stdout::Flush,
}

impl Telemetry {
    /// Lines that were dropped so far because stdout was too slow or failed.
    pub fn dropped_lines(&self) -> u64 {
        self.flush.lost()
    }
}

/// Starts the log: from here on events of this process, also those of the `log` crate, are lines
/// on stdout. Once in a process.
///
/// # Errors
/// [`Error::Level`] for a level that cannot be read, [`Error::SubscriberSet`] where the process has
/// a subscriber already.
pub fn start(settings: &Settings) -> Result<Telemetry, Error> {
    let level = filter::level(&settings.level).map_err(Error::Level)?;
    if tracing::dispatcher::has_been_set() {
        return Err(Error::SubscriberSet);
    }
    let (writer, flush) = stdout::open();
    let subscriber = subscriber(level, settings.requests, settings.format, writer);
    if let Err(error) = subscriber.try_init() {
        if !is_log_facade(&error) {
            return Err(Error::SubscriberSet);
        }
        warn!(event = "log.facade_taken", "what crates say through the crate `log` goes elsewhere");
    }
    flush.announce();
    Ok(Telemetry { flush })
}

/// The subscriber is set by then, and only the bridge from the `log` crate is not.
fn is_log_facade(error: &TryInitError) -> bool {
    std::error::Error::source(error).is_some_and(|source| {
        source.downcast_ref::<tracing::subscriber::SetGlobalDefaultError>().is_none()
    })
}

/// The filters, and the writer behind them.
fn subscriber<W>(
    level: EnvFilter,
    requests: RequestLines,
    format: Format,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // One `with` after another, and plain filters that give no hint of their own: so the hint of
    // the level reaches the outside, and events beyond it cost one comparison. (Layers joined by
    // `and_then` lose it.)
    tracing_subscriber::registry()
        .with(level)
        .with(filter_fn(filter::below_ceiling))
        .with(filter_fn(move |metadata| filter::wanted(requests, metadata)))
        .with(format::Lines::new(format, writer))
}

#[cfg(test)]
mod tests;
