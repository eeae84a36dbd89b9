//! Whose broker and database it is, and how they are reached through a line that can be cut.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use tokio::{net::lookup_host, time::timeout};
use tokio_postgres::config::{Host, SslMode};

/// How long a name may take to be looked up.
const LOOK_UP: Duration = Duration::from_secs(10);

/// Where the operator's servers are, as their settings have it.
#[derive(Clone)]
pub struct Servers {
    /// `amqp://…`; of several, the first is used.
    pub amqp_url: String,
    /// Replaces the password in it.
    pub amqp_password: Option<String>,
    /// As libpq reads it.
    pub postgres_url: String,
    /// Replaces the password in it.
    pub postgres_password: Option<String>,
}

/// Both servers, found. `Display` shows no password.
#[derive(Clone)]
pub struct Target {
    pub(super) broker: SocketAddr,
    pub(super) postgres: SocketAddr,
    userinfo: String,
    path: String,
    database: tokio_postgres::Config,
    shown: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Why a drill cannot take place on these servers.
#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The settings lead to servers that a drill cannot work on.
    Settings(String),
    /// They cannot be found now.
    Away(String),
}

impl Target {
    /// Reads the settings and looks the names up.
    ///
    /// # Errors
    /// [`Unfit`]: what is in the way and what to do about it. No text holds a password.
    pub async fn find(servers: &Servers) -> Result<Self, Unfit> {
        let (userinfo, address, path) = amqp_parts(servers).map_err(Unfit::Settings)?;
        let (database, host, port) = postgres_parts(servers).map_err(Unfit::Settings)?;
        let broker = look_up("RabbitMQ", &address).await?;
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let postgres = look_up("Postgres", &authority).await?;
        let vhost = path.trim_start_matches('/');
        let name = database.get_dbname().or(database.get_user()).unwrap_or("its default database");
        let shown = format!("RabbitMQ {address}, vhost {vhost}, and Postgres {authority}, {name}");
        Ok(Self { broker, postgres, userinfo, path, database, shown })
    }

    /// Whether both are on this machine, as far as their addresses say.
    pub fn is_loopback(&self) -> bool {
        self.broker.ip().is_loopback() && self.postgres.ip().is_loopback()
    }

    /// The broker's URL by way of another address.
    pub(super) fn amqp_url(&self, by: SocketAddr) -> String {
        format!("amqp://{}@{by}{}", self.userinfo, self.path)
    }

    /// The database's by way of another address, in libpq's other notation: `key='value' …`.
    pub(super) fn postgres_url(&self, by: SocketAddr) -> String {
        let mut text = format!("host='{}' port='{}' sslmode='disable'", by.ip(), by.port());
        let password = self.database.get_password();
        let password = password.map(|password| String::from_utf8_lossy(password).into_owned());
        for (key, value) in [
            ("user", self.database.get_user()),
            ("password", password.as_deref()),
            ("dbname", self.database.get_dbname()),
            ("options", self.database.get_options()),
        ] {
            if let Some(value) = value {
                let value = value.replace('\\', "\\\\").replace('\'', "\\'");
                // Writing to a string cannot fail.
                let _written = write!(text, " {key}='{value}'").is_ok();
            }
        }
        text
    }
}

/// User and password, host and port, vhost: the first and the last as written in the URL.
fn amqp_parts(servers: &Servers) -> Result<(String, String, String), String> {
    let first = servers.amqp_url.split(',').next().unwrap_or_default().trim();
    if first.starts_with("amqps://") {
        return Err("queue.url is amqps://. A drill cuts connections in a proxy on this machine, \
             which TLS rightly takes for an attack; give it an amqp:// listener of the same broker"
            .to_owned());
    }
    let rest = first.strip_prefix("amqp://").ok_or("queue.url does not start with amqp://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (userinfo, address) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
    let userinfo = match &servers.amqp_password {
        Some(password) => {
            let user = userinfo.split(':').next().unwrap_or_default();
            format!("{user}:{}", percent_encoded(password))
        }
        None => userinfo.to_owned(),
    };
    let has_port = address.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let address = if has_port { address.to_owned() } else { format!("{address}:5672") };
    let path = if path.is_empty() { "/%2f".to_owned() } else { format!("/{path}") };
    Ok((userinfo, address, path))
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _written = write!(encoded, "%{byte:02X}").is_ok();
        }
        encoded
    })
}

fn postgres_parts(servers: &Servers) -> Result<(tokio_postgres::Config, String, u16), String> {
    let url = &servers.postgres_url;
    let tls = ["sslmode=verify-full", "sslmode=verify-ca"].iter().any(|mode| url.contains(mode));
    // The error's source may quote the URL, and with it the password.
    let config = if tls { Ok(None) } else { url.parse::<tokio_postgres::Config>().map(Some) };
    let config = config.map_err(|_| "ledger.url cannot be read, see `longshore check`")?;
    let config = config.filter(|config| config.get_ssl_mode() != SslMode::Require);
    let Some(mut config) = config else {
        return Err(
            "ledger.url asks for TLS. A drill cuts connections in a proxy on this machine, \
             which TLS rightly takes for an attack; give it sslmode=disable for a database that \
             allows it"
                .to_owned(),
        );
    };
    if let Some(password) = &servers.postgres_password {
        config.password(password);
    }
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(_)) => {
            return Err("ledger.url leads to a Unix socket, which no proxy can be put into; give \
                 the drill the server's TCP address"
                .to_owned());
        }
        None => return Err("ledger.url names no host".to_owned()),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    Ok((config, host, port))
}

async fn look_up(what: &str, address: &str) -> Result<SocketAddr, Unfit> {
    let away = |why: String| Unfit::Away(format!("{what} at {address}: {why}"));
    let found = timeout(LOOK_UP, lookup_host(address));
    let mut found = found
        .await
        .map_err(|_| away(format!("its name was not found within {LOOK_UP:?}")))?
        .map_err(|error| away(error.to_string()))?;
    found.next().ok_or_else(|| away("its name has no address".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn servers(amqp: &str, postgres: &str) -> Servers {
        Servers {
            amqp_url: amqp.to_owned(),
            amqp_password: None,
            postgres_url: postgres.to_owned(),
            postgres_password: None,
        }
    }

    const PLAIN: &str = "postgresql://me:it's@127.0.0.1:5433/app?options=-c%20a%3Db";

    #[tokio::test]
    async fn servers_are_reached_by_way_of_a_proxy_with_all_else_unchanged() {
        let by: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let servers = servers("amqp://u:p%40@127.0.0.1/orders, amqp://x", PLAIN);
        let target = Target::find(&servers).await.unwrap();
        assert_eq!((target.broker.port(), target.postgres.port()), (5672, 5433));
        assert!(target.is_loopback());
        assert_eq!(target.amqp_url(by), "amqp://u:p%40@127.0.0.1:9/orders");
        let config: tokio_postgres::Config = target.postgres_url(by).parse().unwrap();
        assert_eq!(config.get_ports(), [9]);
        assert_eq!(config.get_password(), Some(&b"it's"[..]));
        assert_eq!(config.get_options(), Some("-c a=b"));
        assert_eq!((config.get_user(), config.get_dbname()), (Some("me"), Some("app")));
        let text = format!("{target} {target:?}");
        assert!(!text.contains("it's") && text.contains("127.0.0.1:5433, app"), "{text}");
    }

    #[tokio::test]
    async fn passwords_of_the_settings_replace_those_of_the_urls() {
        let servers = Servers {
            amqp_password: Some("a/b@c".to_owned()),
            postgres_password: Some("n\\w".to_owned()),
            ..servers("amqp://u:old@[::1]:5673", PLAIN)
        };
        let target = Target::find(&servers).await.unwrap();
        let by: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(target.amqp_url(by), "amqp://u:a%2Fb%40c@127.0.0.1:9/%2f");
        let config: tokio_postgres::Config = target.postgres_url(by).parse().unwrap();
        assert_eq!(config.get_password(), Some(&b"n\\w"[..]));
    }

    #[tokio::test]
    async fn what_no_proxy_can_be_put_into_is_refused_without_its_password() {
        for (amqp, postgres, why) in [
            ("amqps://u:secret@host", PLAIN, "amqps://"),
            ("amqp://u:secret@127.0.0.1", "postgresql://u:secret@h/d?sslmode=require", "TLS"),
            ("amqp://u:secret@127.0.0.1", "postgresql://u:secret@h/d?sslmode=verify-full", "TLS"),
            ("amqp://u:secret@127.0.0.1", "host=/run/postgresql password=secret", "Unix socket"),
            ("amqp://u:secret@127.0.0.1", "user=u password=secret", "no host"),
        ] {
            let refused = Target::find(&servers(amqp, postgres)).await.unwrap_err();
            let Unfit::Settings(text) = refused else { panic!("{refused:?}") };
            assert!(text.contains(why) && !text.contains("secret"), "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_not_on_this_machine_is_known() {
        let target = Target::find(&servers("amqp://192.0.2.1", PLAIN)).await.unwrap();
        assert!(!target.is_loopback());
    }
}
