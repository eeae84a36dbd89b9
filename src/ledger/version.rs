//! Which Postgres this is. It says so when a connection is made, so it costs nothing to know.

use std::sync::{Arc, Mutex, PoisonError};

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, Error, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};

/// The oldest that Longshore is for.
const OLDEST: u32 = 14;

/// What the server said last.
#[derive(Debug, Clone, Default)]
pub(super) struct Server(Arc<Mutex<Option<String>>>);

impl Server {
    /// Its version, once there was a connection.
    pub(super) fn version(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection was made; tells the log where it is another server than before.
    fn met(&self, version: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == Some(version) {
            return;
        }
        *known = Some(version.to_owned());
        drop(known);
        tracing::info!(event = "ledger.server", version, "connected to Postgres");
        if let Some(fault) = fault(version) {
            tracing::warn!(
                event = "ledger.server_unsupported",
                version,
                fault,
                "this may not work"
            );
        }
    }
}

/// Why Longshore is not for a server of this version, and what to do; `None` where it is.
pub(super) fn fault(version: &str) -> Option<String> {
    match major(version) {
        Some(major) if major < OLDEST => Some(format!(
            "Postgres {version} is older than {OLDEST}, and nobody mends it or tests Longshore with \
             it any more; upgrade the server to {OLDEST} or newer"
        )),
        Some(_) => None,
        None => Some(format!(
            "the server says that it is version `{version}`, which is not Postgres' way to say it; \
             Longshore is tested with Postgres only"
        )),
    }
}

/// The major version of e.g. `15.13 (Debian 15.13-0+deb12u1)` or `18beta1`.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

/// Connects as deadpool's own connector does, and listens to what the server says it is.
pub(super) struct Connector<T> {
    pub(super) tls: T,
    pub(super) server: Server,
}

impl<T> Connect for Connector<T>
where
    T: MakeTlsConnect<Socket> + Clone + Sync + Send + 'static,
    T::Stream: Sync + Send,
    T::TlsConnect: Sync + Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let (config, tls) = (config.clone(), self.tls.clone());
        Box::pin(async move {
            let (client, connection) = config.connect(tls).await?;
            if let Some(version) = connection.parameter("server_version") {
                // Of some peer, for logs: bounded.
                self.server.met(&version.chars().take(64).collect::<String>());
            }
            // Its error is that of whoever waits for an answer.
            Ok((client, tokio::spawn(async { drop(connection.await) })))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[test]
    fn the_major_version_is_what_counts() {
        for (version, expected) in [
            ("15.13 (Debian 15.13-0+deb12u1)", Some(15)),
            ("18beta1", Some(18)),
            ("9.6.24", Some(9)),
            ("14", Some(14)),
            ("v2.1 of something", None),
            ("", None),
        ] {
            assert_eq!(major(version), expected, "{version}");
        }
    }

    #[test]
    fn an_old_server_and_another_product_are_told() {
        assert_eq!(fault("14.0"), None);
        assert!(fault("13.22").unwrap().contains("upgrade the server to 14 or newer"));
        assert!(fault("fast").unwrap().contains("`fast`"));
    }
}
