//! One connection to the broker. Everything here has a deadline, for lapin has none: not for
//! reaching a broker, not for the handshake, not for closing.

use std::{fmt, time::Duration};

use lapin::{
    Channel, Connection, ConnectionProperties, runtime,
    tcp::OwnedTLSConfig,
    types::{LongString, ShortString},
};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    Settings,
    endpoint::{self, Endpoint},
    trouble::{Cause, Trouble},
};

/// An open connection and where it leads.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
}

/// Opens connections: knows the nodes, and which of them did not answer the last time.
pub(super) struct Dialer {
    endpoints: Vec<Endpoint>,
    /// Per endpoint: the last handshake got no answer.
    silent: Vec<bool>,
    /// Which endpoint is tried first.
    first: usize,
    /// What the connection is called in the broker's listings.
    name: String,
}

impl Dialer {
    pub(super) fn new(settings: &Settings, name: impl Into<String>) -> Result<Self, Trouble> {
        let endpoints =
            endpoint::parse(settings.url.expose_secret(), settings.password.as_ref())
                .map_err(|fault| Trouble::new(Cause::Unreachable, format!("queue.url: {fault}")))?;
        Ok(Self { silent: vec![false; endpoints.len()], endpoints, first: 0, name: name.into() })
    }

    /// Connects to the first node that lets us, starting after the one that was used last.
    pub(super) async fn dial(&mut self, settings: &Settings) -> Result<Link, Trouble> {
        let mut troubles: Vec<Trouble> = Vec::new();
        for turn in 0..self.endpoints.len() {
            let n = (self.first + turn) % self.endpoints.len();
            match self.reach(n, settings).await {
                Ok(link) => {
                    self.first = (n + 1) % self.endpoints.len();
                    return Ok(link);
                }
                Err(trouble) => troubles.push(trouble),
            }
        }
        let cause = troubles.first().map_or(Cause::Unreachable, |trouble| trouble.cause);
        let texts: Vec<String> = troubles.into_iter().map(|trouble| trouble.text).collect();
        Err(Trouble::new(cause, texts.join("; ")))
    }

    async fn reach(&mut self, n: usize, settings: &Settings) -> Result<Link, Trouble> {
        let endpoint = self.endpoints[n].clone();
        let doing = format!("connecting to {endpoint}");
        // A peer that accepts and then says nothing keeps lapin's thread for ever; one such
        // thread is enough, so from then on we knock by ourselves first.
        if self.silent[n] {
            let answers = timeout(settings.connect_timeout, knock(&endpoint)).await;
            if !matches!(answers, Ok(Ok(_))) {
                return Err(Trouble::new(
                    Cause::Unreachable,
                    format!("{doing}: no answer, check that a broker is behind this address"),
                ));
            }
        }
        let tls = OwnedTLSConfig { identity: None, cert_chain: certificates(settings)? };
        let heartbeat = u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX);
        let properties = ConnectionProperties::default()
            .with_connection_name(LongString::from(self.name.as_str()))
            .with_client_property(ShortString::from("product"), LongString::from("longshore"))
            .with_client_property(
                ShortString::from("version"),
                LongString::from(env!("CARGO_PKG_VERSION")),
            );
        let runtime = runtime::default_runtime().map_err(|error| Trouble::of(&doing, &error))?;
        let dial =
            Connection::connect_uri_with_config(endpoint.uri(heartbeat), properties, tls, runtime);
        let dialled = timeout(settings.connect_timeout, dial).await;
        self.silent[n] = dialled.is_err();
        match dialled {
            Ok(Ok(connection)) => Ok(Link { connection, endpoint }),
            Ok(Err(error)) => Err(match Trouble::of(&doing, &error) {
                Trouble { cause: Cause::Refused, text } => Trouble::new(
                    Cause::Refused,
                    format!(
                        "{text}; check the user `{}`, its password, and its permissions on the vhost `{}`",
                        endpoint.user, endpoint.vhost
                    ),
                ),
                Trouble { text, .. } => Trouble::new(
                    Cause::Unreachable,
                    format!(
                        "{text}; check that the broker runs there and speaks {}",
                        endpoint.uri(0).scheme
                    ),
                ),
            }),
            Err(_late) => Err(Trouble::new(
                Cause::Unreachable,
                format!(
                    "{doing}: no answer within {:?}, check the address",
                    settings.connect_timeout
                ),
            )),
        }
    }

    /// The nodes, for `check`.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Connects to one node, for `check`.
    pub(super) async fn dial_one(
        &mut self,
        n: usize,
        settings: &Settings,
    ) -> Result<Link, Trouble> {
        self.reach(n, settings).await
    }
}

impl Link {
    /// Opens a channel.
    pub(super) async fn channel(&self, settings: &Settings) -> Result<Channel, Trouble> {
        within(settings.operation_timeout, "opening a channel", self.connection.create_channel())
            .await
    }

    /// Closes; true when the broker agreed in time. Never longer than `at_most`.
    pub(super) async fn close(self, at_most: Duration) -> bool {
        let bye = self.connection.close(200, ShortString::from("bye"));
        matches!(timeout(at_most, bye).await, Ok(Ok(())))
    }
}

/// Closes a channel; true when the broker agreed in time.
pub(super) async fn close_channel(channel: &Channel, at_most: Duration) -> bool {
    channel.status().connected()
        && matches!(
            timeout(at_most, channel.close(200, ShortString::from("bye"))).await,
            Ok(Ok(()))
        )
}

/// The answer to a call, or what went wrong while `doing` it.
pub(super) async fn within<T>(
    deadline: Duration,
    doing: impl fmt::Display,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Trouble> {
    match timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Trouble::of(doing, &error)),
        Err(_late) => Err(Trouble::timeout(doing)),
    }
}

/// An AMQP short string of any text; `ShortString::from` would panic over 255 bytes.
pub(super) fn short(text: &str) -> Result<ShortString, Trouble> {
    ShortString::try_new(text).map_err(|_| {
        Trouble::new(
            Cause::Topology,
            format!("a name has {} bytes, AMQP allows 255, use a shorter one", text.len()),
        )
    })
}

/// Read anew at each connection, so that a renewed file needs no restart.
fn certificates(settings: &Settings) -> Result<Option<String>, Trouble> {
    let Some(path) = &settings.ca_file else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(pem) => Ok(Some(pem)),
        Err(error) => Err(Trouble::new(
            Cause::Unreachable,
            format!("queue.ca_file {} cannot be read: {error}", path.display()),
        )),
    }
}

/// Says hello in AMQP and waits for any answer, even a refusal: somebody is there. The answer's
/// beginning is returned, at most 4 KiB of it.
pub(super) async fn knock(endpoint: &Endpoint) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await?;
    answer.truncate(read);
    Ok(answer)
}
