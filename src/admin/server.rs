//! Connections: so many at once, each with a bounded patience, and an end.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::socket::Socket;

/// Room for a request's head; probes and scrapes need a few hundred bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// How long accepting rests when the system refuses (mostly: no file descriptors left).
const REST_AFTER_REFUSAL: Duration = Duration::from_millis(200);

/// What a client may cost.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) read_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections: usize,
}

/// Serves until `stop` says within what time to end, or its sender is dropped: then at once.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    mut stop: oneshot::Receiver<Duration>,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let ending = CancellationToken::new();
    let within = loop {
        tokio::select! {
            biased;
            within = &mut stop => break within.unwrap_or_default(),
            (socket, slot) = next(&listener, &slots) => {
                let connection = connection(socket, router.clone(), limits.clone(), ending.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
        }
    };
    drop(listener);
    ending.cancel();
    connections.close();
    // What has not finished by then is dropped with the runtime.
    let _in_time = timeout(within, connections.wait()).await.is_ok();
}

/// The next connection, and the right to serve it, taken first: what cannot be served is left in
/// the backlog of the system.
async fn next(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await.expect("nobody closes this semaphore");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                // Answers are small and end with their last write: waiting to fill a packet only
                // delays them.
                let _delayed = socket.set_nodelay(true).is_err();
                return (socket, slot);
            }
            Err(error) => {
                warn!(
                    event = "admin.accept_failed",
                    error = &error as &(dyn std::error::Error + 'static),
                    "a connection to the admin server could not be accepted"
                );
                sleep(REST_AFTER_REFUSAL).await;
            }
        }
    }
}

/// Serves one connection. How it ends is the client's affair, hence not logged.
pub(super) async fn connection(
    socket: impl AsyncRead + AsyncWrite,
    router: Router,
    limits: Limits,
    ending: CancellationToken,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper counts from the end of the last answer, so its own timeout is only the outer
        // bound; `Socket` keeps the closer ones.
        .header_read_timeout(limits.idle_timeout + limits.read_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(
            TokioIo::new(Socket::new(socket, &limits)),
            TowerToHyperService::new(router),
        );
    let mut connection = std::pin::pin!(connection);
    let _ended = tokio::select! {
        ended = connection.as_mut() => ended.is_ok(),
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await.is_ok()
        }
    };
}

#[cfg(test)]
mod tests;
