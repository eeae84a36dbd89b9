//! The admin server: health, metrics and steering over HTTP, for orchestrators, Prometheus and people.
//!
//! It has a thread and a runtime of its own, so that it answers while every worker is busy, and it
//! is stopped last, so that a drain can be watched to its end. The only room that knows axum.

mod ask;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod pulse;
mod routes;
mod server;
mod socket;
mod steering;

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tracing::info;

pub use self::{
    ask::ask,
    steering::{DependencyStanding, KindStanding, Refused, Standing, Steered, Steering},
};
use crate::telemetry::Recorder;
use pulse::Pulse;

/// How long looking up and binding the address may take.
const BIND_WITHIN: Duration = Duration::from_secs(10);

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// The section `[admin]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Whether there is an admin server; where not, [`start`] is not to be called.
    pub enabled: bool,
    /// Where it listens: `host:port`; port 0 takes a free one. Whoever can reach it can read it,
    /// so leave it on the loopback address unless a network policy guards it.
    pub bind: String,
    /// Whoever has it may change something; without one nobody may, here.
    pub token: Option<SecretString>,
    /// How long a client may take to send a request, from its first byte to its last (a new
    /// connection: from being accepted).
    #[serde(with = "humantime_serde")]
    pub read_timeout: Duration,
    /// How long a client may take none of an answer that waits for it.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How long a connection may stay open between two requests.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Connections served at once; others wait until one of these ends.
    pub max_connections: usize,
}

impl Settings {
    /// What is wrong with these settings, each mistake with its key.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        if !self.enabled {
            return problems;
        }
        let port = self.bind.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            let text = format!("`{}` is not <host>:<port>, e.g. 127.0.0.1:9600", self.bind);
            problems.push(("bind".to_owned(), text));
        }
        let token = self.token.as_ref().map(SecretString::expose_secret);
        if token.is_some_and(|token| token.len() < SHORTEST_TOKEN) {
            let text = "is shorter than 16 characters; `openssl rand -hex 32` makes a good one";
            problems.push(("token".to_owned(), text.to_owned()));
        } else if token.is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let text = "has characters that a header cannot carry; use printable ASCII";
            problems.push(("token".to_owned(), text.to_owned()));
        }
        for (key, value) in [
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            if value.is_zero() || value > Duration::from_secs(3600) {
                problems.push((key.to_owned(), "must be more than 0s and at most 1h".to_owned()));
            }
        }
        if !(1..=10_000).contains(&self.max_connections) {
            problems.push(("max_connections".to_owned(), "must be between 1 and 10000".to_owned()));
        }
        problems
    }
}

/// Why the admin server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error(
        "cannot listen on {bind}: {source}; set admin.bind to a free address of this host, or admin.enabled = false"
    )]
    Bind {
        /// The address of the settings.
        bind: String,
        /// What the system says.
        source: io::Error,
    },
    /// Its thread or runtime could not be started.
    #[error(
        "cannot start the admin server's thread; look at the limits on threads and files of this process"
    )]
    Thread(#[source] io::Error),
}

/// Tells whether work can be done now.
pub trait Health: Send + Sync + 'static {
    /// Called for each `GET /health/ready`, on the admin server's own thread: must not wait for
    /// anything, nor lock what others hold for long.
    fn ready(&self) -> Readiness;
}

/// Whether work can be done now, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether requests are being taken, or would be if there were any.
    pub ready: bool,
    /// In a word: `starting`, `consuming`, `paused`, `reconnecting`, `draining`.
    pub state: String,
    /// More about it, name and text, shown as `reasons`. No secrets: anybody who reaches the
    /// server reads this.
    pub detail: Vec<(String, String)>,
}

/// The running admin server. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    /// Sending, or dropping it, stops the server.
    stop: Option<oneshot::Sender<Duration>>,
    /// Closed when the thread has ended.
    ended: oneshot::Receiver<()>,
    beat: JoinHandle<()>,
}

/// Starts the server. To be called on the main runtime, which it watches from then on:
/// `/health/live` says 503 when that has not got to run a task for 30 seconds.
///
/// # Errors
/// [`Error::Bind`] where the address cannot be had, [`Error::Thread`] where the system gives no
/// thread.
pub async fn start(
    settings: Settings,
    recorder: Recorder,
    health: Arc<dyn Health>,
    steering: Arc<dyn Steering>,
) -> Result<Admin, Error> {
    start_watching(settings, recorder, health, steering, pulse::STALE_AFTER).await
}

async fn start_watching(
    settings: Settings,
    recorder: Recorder,
    health: Arc<dyn Health>,
    steering: Arc<dyn Steering>,
    stale_after: Duration,
) -> Result<Admin, Error> {
    let pulse = Arc::new(Pulse::new(stale_after));
    let api = steering::routes(steering, settings.token.as_ref());
    let router = routes::router(recorder, health, pulse.clone(), api);
    let limits = server::Limits {
        read_timeout: settings.read_timeout,
        write_timeout: settings.write_timeout,
        idle_timeout: settings.idle_timeout,
        max_connections: settings.max_connections,
    };
    let bind = settings.bind;
    let (tell, told) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For rendering the metrics and looking up the address.
        .max_blocking_threads(2)
        .thread_name("longshore-admin-blocking")
        .build()
        .map_err(Error::Thread)?;
    thread::Builder::new()
        .name("longshore-admin".to_owned())
        .spawn(move || {
            let _end = end;
            runtime.block_on(async {
                let listener = timeout(BIND_WITHIN, TcpListener::bind(&bind))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                match listener.and_then(|listener| Ok((listener.local_addr()?, listener))) {
                    Ok((address, listener)) => {
                        if tell.send(Ok(address)).is_ok() {
                            server::serve(listener, router, limits, stopped).await;
                        }
                    }
                    Err(source) => {
                        // Nobody listens when the caller gave up, and then there is nobody to tell.
                        let _told = tell.send(Err(Error::Bind { bind, source })).is_ok();
                    }
                }
            });
            // What is left was given its time; a render under way is not waited for.
            runtime.shutdown_background();
        })
        .map_err(Error::Thread)?;

    let address = told.await.unwrap_or_else(|_| {
        Err(Error::Thread(io::Error::other("the thread panicked while binding the address")))
    })?;
    info!(event = "admin.listening", %address, "the admin server answers at http://{address}");
    let beat = tokio::spawn(async move { pulse.beat_for_ever().await });
    Ok(Admin { address, stop: Some(stop), ended, beat })
}

impl Admin {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, lets requests under way finish for at most `within`, and ends the thread.
    pub async fn stop(mut self, within: Duration) {
        if let Some(stop) = self.stop.take()
            && stop.send(within).is_ok()
        {
            // The thread keeps to `within` itself; this bounds the wait for it. The channel only
            // ever closes, so there is no value to look at.
            let _ended = timeout(within + Duration::from_secs(1), &mut self.ended).await.is_ok();
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

#[cfg(test)]
mod tests;
