//! Connections: how they are made, how long they live, how long anybody waits for one.

use std::{fs, path::Path, str::FromStr as _, sync::Arc, time::Duration};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    Timeouts,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use tokio_postgres::{
    NoTls,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    settings::Settings,
    version::{Connector, Server},
};
use crate::telemetry::metrics;

/// Makes the pool. Nothing is connected yet.
///
/// # Errors
/// Words for the operator: a URL or a certificate file that cannot be used.
pub(super) fn build(settings: &Settings, server: &Server) -> Result<Pool, String> {
    let (config, tls) = connection_config(settings)?;
    let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let server = server.clone();
    let manager = if tls {
        let tls = MakeRustlsConnect::new(tls_config(settings.ca_file.as_deref())?);
        Manager::from_connect(config, Connector { tls, server }, manager_config)
    } else {
        Manager::from_connect(config, Connector { tls: NoTls, server }, manager_config)
    };
    let lifetime = settings.pool.max_lifetime;
    Pool::builder(manager)
        .max_size(settings.pool.max_size)
        // Last in, first out: what is not needed ages out instead of being kept warm in turn.
        .queue_mode(deadpool_postgres::QueueMode::Lifo)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(settings.pool.wait_timeout),
            create: Some(settings.pool.create_timeout),
            recycle: Some(settings.pool.recycle_timeout),
        })
        .pre_recycle(Hook::sync_fn(move |_, life| {
            // Up to a tenth less by chance, so that a fleet does not reconnect in step.
            if life.age() > lifetime.mul_f64(1.0 - fastrand::f64() / 10.0) {
                return Err(HookError::message("past max_lifetime"));
            }
            Ok(())
        }))
        .build()
        .map_err(|error| error.to_string())
}

/// A connection within one deadline: deadpool bounds each stage, but not their sum.
pub(super) async fn get(pool: &Pool, within: Duration) -> Result<Object, PoolError> {
    let started = Instant::now();
    let connection = tokio::time::timeout(within, pool.get())
        .await
        .unwrap_or(Err(PoolError::Timeout(deadpool_postgres::TimeoutType::Wait)))?;
    metrics::pool_wait(started.elapsed());
    Ok(connection)
}

/// The settings as tokio-postgres wants them, and whether to speak TLS.
///
/// deadpool's own `Config` is not used: it leaves out `target_session_attrs` and others silently.
pub(super) fn connection_config(
    settings: &Settings,
) -> Result<(tokio_postgres::Config, bool), String> {
    let (url, verify) = plain_sslmode(settings.url.expose_secret());
    let mut config = tokio_postgres::Config::from_str(&url).map_err(|error| {
        // The error's source may quote the URL, and with it the password.
        format!("is not a postgresql:// URL that can be read ({error}), write postgresql://user:password@host:5432/database")
    })?;
    if config.get_hosts().is_empty() {
        return Err("names no host, write postgresql://user:password@host:5432/database".to_owned());
    }
    if let Some(password) = &settings.password {
        config.password(password.expose_secret());
    }
    if verify {
        config.ssl_mode(SslMode::Require);
    }
    let tls = config.get_ssl_mode() == SslMode::Require;
    if !tls {
        // `prefer` would mean "whatever the network says": it is plain, or it is verified.
        config.ssl_mode(SslMode::Disable);
    }
    if config.get_application_name().is_none() {
        config.application_name("longshore");
    }
    let timeout = settings.statement_timeout.as_millis();
    let own = format!(
        "-c statement_timeout={timeout} -c lock_timeout={timeout} -c idle_in_transaction_session_timeout={}",
        2 * timeout
    );
    let options = config.get_options().map_or(own.clone(), |theirs| format!("{own} {theirs}"));
    config.options(options);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(settings.pool.create_timeout);
    }
    // A peer that vanished without a word is noticed within seconds, not after the kernel's hours.
    config.keepalives_idle(Duration::from_secs(30));
    config.keepalives_interval(Duration::from_secs(10));
    config.keepalives_retries(3);
    config.tcp_user_timeout(Duration::from_secs(10));
    Ok((config, tls))
}

/// Where the settings lead, without the password.
pub(super) fn endpoint(settings: &Settings) -> String {
    let Ok((config, _)) = connection_config(settings) else {
        return "an unreadable url".to_owned();
    };
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "?".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user().unwrap_or("the system's user");
    format!("{host}:{port}/{} as {user}", config.get_dbname().unwrap_or(user))
}

/// libpq's `verify-ca` and `verify-full`, which tokio-postgres does not know, become `require`:
/// our TLS always verifies the chain and the name. Returns whether either was asked for.
fn plain_sslmode(url: &str) -> (String, bool) {
    for mode in ["sslmode=verify-full", "sslmode=verify-ca"] {
        if url.contains(mode) {
            return (url.replace(mode, "sslmode=require"), true);
        }
    }
    (url.to_owned(), false)
}

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    // A certificate of the system that cannot be read is no reason not to start.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let pem = fs::read(path)
            .map_err(|error| format!("ca_file {} cannot be read: {error}", path.display()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate
                .map_err(|error| format!("ca_file {} is not PEM: {error}", path.display()))?;
            roots
                .add(certificate)
                .map_err(|error| format!("ca_file {}: {error}", path.display()))?;
        }
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
}

/// Closes connections that nobody has used for a while, down to `max_idle`, and tells the metrics.
pub(super) fn tidy(pool: &Pool, max_idle: usize) {
    let mut excess = pool.status().available.saturating_sub(max_idle);
    let calm = Duration::from_secs(10);
    if excess > 0 {
        pool.retain(|_, life| {
            let close = excess > 0 && life.last_used() > calm;
            excess -= usize::from(close);
            !close
        });
    }
    let status = pool.status();
    metrics::pool(status.max_size, status.size, status.available, status.waiting);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpqs_verifying_modes_are_understood() {
        assert_eq!(
            plain_sslmode("postgresql://h/d?sslmode=verify-full"),
            ("postgresql://h/d?sslmode=require".into(), true)
        );
        assert_eq!(
            plain_sslmode("postgresql://h/d?sslmode=require"),
            ("postgresql://h/d?sslmode=require".into(), false)
        );
    }
}
