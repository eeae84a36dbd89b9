//! One connection to the broker. Everything here has a deadline, for lapin has none: not for
//! reaching a broker, not for the handshake, not for closing.

use std::{
    fmt,
    net::{Shutdown, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_rs::{Runtime, Tokio};
use lapin::{
    Channel, Connection, ConnectionProperties,
    tcp::{AsyncTcpStream, OwnedTLSConfig},
    types::{LongString, ShortString},
};
use secrecy::ExposeSecret;
use tokio::{net::lookup_host, time::timeout};

use super::{
    Settings,
    endpoint::{self, Endpoint},
    greeting::{self, Greeting, Overheard},
    trouble::{Cause, Trouble},
    version::Broker,
};

/// An open connection and where it leads. Dropped, it is cut off.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
    /// What is there, if it said so.
    pub(super) broker: Option<Broker>,
    _cutter: Cutter,
}

/// A second handle to the socket below lapin's connection. lapin waits without limit for a peer
/// that does not answer, a thread and a socket each time; cutting the socket ends both.
#[derive(Clone, Default)]
struct Lifeline(Arc<Mutex<Line>>);

#[derive(Default)]
struct Line {
    socket: Option<std::net::TcpStream>,
    cut: bool,
}

impl Lifeline {
    /// Takes a second handle; refuses where the line was cut before there was a socket.
    fn hold(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if line.cut {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        line.socket = Some(socket.into());
        Ok(())
    }

    fn cut(&self) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.cut = true;
        if let Some(socket) = line.socket.take() {
            // Fails where the peer was quicker, which is as good.
            let _cut = socket.shutdown(Shutdown::Both).is_ok();
        }
    }
}

/// Cuts the line when dropped.
struct Cutter(Lifeline);

impl Drop for Cutter {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// Opens connections: knows the nodes, and which is to be tried first.
pub(super) struct Dialer {
    endpoints: Vec<Endpoint>,
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
        Ok(Self { endpoints, first: 0, name: name.into() })
    }

    /// Connects to the first node that lets us, starting after the one that was used last.
    pub(super) async fn dial(&mut self, settings: &Settings) -> Result<Link, Trouble> {
        let mut troubles: Vec<Trouble> = Vec::new();
        for turn in 0..self.endpoints.len() {
            let n = (self.first + turn) % self.endpoints.len();
            match self.dial_one(n, settings).await {
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

    /// Connects to one node.
    pub(super) async fn dial_one(&self, n: usize, settings: &Settings) -> Result<Link, Trouble> {
        let endpoint = self.endpoints[n].clone();
        let doing = format!("connecting to {endpoint}");
        let tls = OwnedTLSConfig { identity: None, cert_chain: certificates(settings)? };
        let lifeline = Lifeline::default();
        let cutter = Cutter(lifeline.clone());
        let greeting = Greeting::default();
        let shake_hands =
            handshake(&endpoint, &self.name, settings, tls, lifeline, greeting.clone());
        match timeout(settings.connect_timeout, shake_hands).await {
            Ok(Ok(connection)) => {
                Ok(Link { connection, endpoint, broker: greeting.broker(), _cutter: cutter })
            }
            Ok(Err(error)) => Err(unreached(&doing, &error, &endpoint)),
            Err(_late) => Err(Trouble::new(
                Cause::Unreachable,
                format!(
                    "{doing}: no answer within {:?}, check that a broker is behind this address",
                    settings.connect_timeout
                ),
            )),
        }
    }

    /// The nodes, for `check`.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

async fn handshake(
    endpoint: &Endpoint,
    name: &str,
    settings: &Settings,
    tls: OwnedTLSConfig,
    lifeline: Lifeline,
    greeting: Greeting,
) -> lapin::Result<Connection> {
    let addresses: Vec<SocketAddr> =
        lookup_host((endpoint.host.as_str(), endpoint.port)).await?.collect();
    let properties = ConnectionProperties::default()
        .with_connection_name(LongString::from(name))
        .with_client_property(ShortString::from("product"), LongString::from("longshore"))
        .with_client_property(
            ShortString::from("version"),
            LongString::from(env!("CARGO_PKG_VERSION")),
        );
    let heartbeat = u16::try_from(settings.heartbeat.as_secs()).unwrap_or(u16::MAX);
    let (secure, host, within) = (endpoint.tls, endpoint.host.clone(), settings.connect_timeout);
    let own = Runtime::new(Tokio::current());
    let connect = async move |_uri, _runtime| {
        // Polled by a thread of lapin's, which the deadline of our caller does not reach.
        let reached = timeout(within, async {
            let stream = AsyncTcpStream::connect(&own, addresses.clone()).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                lifeline.hold(plain.get_ref())?;
            }
            if secure { stream.into_tls(&host, tls.as_ref()).await } else { Ok(stream) }
        });
        let line = reached.await.map_err(std::io::Error::from)??;
        // Plain as lapin sees it: what is secure about it lies below.
        Ok(AsyncTcpStream::Plain(Overheard::new(line, greeting.clone())))
    };
    Connection::connector(endpoint.uri(heartbeat), greeting::runtime(), connect, properties).await
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

/// Why a node was not reached, and what to look at.
fn unreached(doing: &str, error: &lapin::Error, endpoint: &Endpoint) -> Trouble {
    let Endpoint { user, vhost, tls, .. } = endpoint;
    let scheme = if *tls { "amqps" } else { "amqp" };
    if matches!(error.kind(), lapin::ErrorKind::ParsingError(_)) {
        return Trouble::new(
            Cause::Unreachable,
            format!(
                "{doing}: what answers there does not speak {scheme}, check the address and whether it wants TLS"
            ),
        );
    }
    let Trouble { cause, text } = Trouble::of(doing, error);
    let remedy = if cause == Cause::Refused {
        format!("check the user `{user}`, its password, and its permissions on the vhost `{vhost}`")
    } else if text.contains("peer certificate") {
        "check the host's name, and set queue.ca_file if the certificate is from an authority of your own".to_owned()
    } else {
        format!("check that the broker runs there and speaks {scheme}")
    };
    let cause = if cause == Cause::Refused { cause } else { Cause::Unreachable };
    Trouble::new(cause, format!("{text}; {remedy}"))
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
