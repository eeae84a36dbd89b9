//! `longshore run`.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::Exit;
use crate::{config::Config, house::Longshore, stop::Stop, telemetry};

pub(super) async fn run(config: Config) -> Exit {
    // Before anything else can take time: until then a SIGTERM would kill.
    let (terminate, interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("longshore: signals cannot be caught: {error}");
                return Exit::Failed;
            }
        };
    // Held to the end: dropping it writes out what is still queued.
    let _telemetry = match telemetry::start(&config.log) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("longshore: logging cannot start: {error}");
            return Exit::Failed;
        }
    };
    if config.kinds.is_empty() {
        warn!(
            event = "worker.no_kinds",
            "no kind is configured: every request will be refused as unknown_kind"
        );
    }
    let stop = Stop::new();
    let signals = tokio::spawn(listen(terminate, interrupt, stop.clone()));
    let ran = Longshore::new(config).run(stop).await;
    signals.abort();
    match ran {
        Ok(drained) if drained.forced => Exit::Forced,
        Ok(_) => Exit::Clean,
        Err(error) => {
            error!(event = "worker.failed", %error, "the worker cannot run");
            Exit::Failed
        }
    }
}

/// SIGTERM is what orchestrators send, SIGINT what a terminal sends; they mean the same.
async fn listen(mut terminate: Signal, mut interrupt: Signal, stop: Stop) {
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        if stop.is_asked() {
            warn!(event = "worker.forced", signal = name, "second signal, stopping at once");
            stop.force();
        } else {
            info!(event = "worker.draining", signal = name, "draining");
            stop.ask();
        }
    }
}
