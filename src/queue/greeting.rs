//! The broker's greeting, overheard. lapin keeps to itself what the broker says there about itself;
//! so lapin is given a line that listens along until the greeting is over. That costs no connection
//! of its own, and what is heard is of the very node that we talk to.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::{
    AsyncTcpStream,
    protocol::{AMQPClass, connection::AMQPMethod, parse_class},
    types::{AMQPValue, FieldTable},
};

use super::version::Broker;

/// The longest greeting that is listened to, in bytes. RabbitMQ's has about 500.
const LONGEST: usize = 16 << 10;

/// What lapin runs on: tokio, with lines that listen along.
pub(super) type Listening = RuntimeParts<Tokio, Ears>;

/// To be called within a runtime of tokio's, which it then uses.
pub(super) fn runtime() -> Runtime<Listening> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Ears(Tokio::current())))
}

/// tokio's reactor, but for the type of its lines.
#[derive(Debug, Clone)]
pub(super) struct Ears(Tokio);

impl Reactor for Ears {
    type TcpStream = Overheard<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    // Nobody calls it: we connect ourselves, and hand lapin the line.
    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async { Ok(Overheard::new(AsyncTcpStream::Plain(connecting.await?), Greeting::default())) }
    }
}

/// What was heard, once it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeting(Arc<OnceLock<Broker>>);

impl Greeting {
    /// What the broker said it is, if it did.
    pub(super) fn broker(&self) -> Option<Broker> {
        self.0.get().cloned()
    }
}

/// A line, and what has come over it until the greeting is over.
pub(super) struct Overheard<S> {
    line: S,
    ear: Option<(Vec<u8>, Greeting)>,
}

impl<S> Overheard<S> {
    pub(super) fn new(line: S, greeting: Greeting) -> Self {
        Self { line, ear: Some((Vec::new(), greeting)) }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let Some((heard, greeting)) = &mut self.ear else { return };
        heard.extend_from_slice(bytes);
        match understand(heard) {
            Heard::Partly => {}
            Heard::Nothing => self.ear = None,
            Heard::All(broker) => {
                // A second one would be for a second attempt, and of the same node.
                let _first = greeting.0.set(broker).is_ok();
                self.ear = None;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.line).poll_read(cx, into))?;
        self.hear(&into[..read]);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.ear.is_none() {
            return Pin::new(&mut self.line).poll_read_vectored(cx, into);
        }
        match into.iter_mut().find(|slice| !slice.is_empty()) {
            Some(slice) => self.poll_read(cx, slice),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.line).poll_write(cx, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.line).poll_write_vectored(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.line).poll_close(cx)
    }
}

#[derive(Debug, PartialEq)]
enum Heard {
    Partly,
    /// It is no greeting, or does not say what greets.
    Nothing,
    All(Broker),
}

/// A frame has a type (1 is a method), a channel in two bytes, the payload's size in four, the
/// payload, and an end. <https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf> §2.3.5
fn understand(heard: &[u8]) -> Heard {
    let Some((head, rest)) = heard.split_at_checked(7) else { return Heard::Partly };
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if head[0] != 1 || size > LONGEST {
        return Heard::Nothing;
    }
    let Some(payload) = rest.get(..size) else { return Heard::Partly };
    let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parse_class(payload) else {
        return Heard::Nothing;
    };
    let text = |key: &str| text(&start.server_properties, key);
    match (text("product"), text("version")) {
        (Some(product), Some(version)) => Heard::All(Broker { product, version }),
        _ => Heard::Nothing,
    }
}

/// A text of some peer, for logs: bounded.
fn text(table: &FieldTable, key: &str) -> Option<String> {
    match table.inner().get(key)? {
        AMQPValue::LongString(text) => {
            Some(String::from_utf8_lossy(text.as_bytes()).chars().take(64).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use futures_util::{AsyncReadExt as _, FutureExt as _, io::Cursor};

    use super::*;

    /// `connection.start` with these entries of long strings in its table.
    fn start(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (key, value) in entries {
            table.push(u8::try_from(key.len()).unwrap());
            table.extend_from_slice(key.as_bytes());
            table.push(b'S');
            table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            table.extend_from_slice(value.as_bytes());
        }
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
        payload.extend(table);
        payload.extend_from_slice(b"\0\0\0\x05PLAIN\0\0\0\x05en_US");
        let mut frame = vec![1, 0, 0];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    #[test]
    fn a_greeting_says_what_greets_however_it_comes_in_pieces() {
        let greeting = start(&[("product", "RabbitMQ"), ("version", "3.10.8")]);
        let broker = Broker { product: "RabbitMQ".to_owned(), version: "3.10.8".to_owned() };
        for piece in [1, 7, 100, 4096] {
            let heard = Greeting::default();
            let line = Cursor::new([&greeting[..], b"what comes after"].concat());
            let mut line = Overheard::new(line, heard.clone());
            let mut read = Vec::new();
            let mut buffer = vec![0; piece];
            loop {
                match line.read(&mut buffer).now_or_never().unwrap().unwrap() {
                    0 => break,
                    n => read.extend_from_slice(&buffer[..n]),
                }
            }
            assert!(read.starts_with(&greeting) && read.ends_with(b"after"), "all is handed on");
            assert_eq!(heard.broker(), Some(broker.clone()), "in pieces of {piece}");
            assert!(line.ear.is_none(), "nobody listens any more");
        }
    }

    #[test]
    fn what_is_no_greeting_is_not_listened_to() {
        for other in
            [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request", &[1, 0, 0, 255, 0, 0, 0]]
        {
            assert_eq!(understand(other), Heard::Nothing, "{other:?}");
        }
        assert_eq!(understand(&start(&[("product", "RabbitMQ")])), Heard::Nothing);
        assert_eq!(understand(&start(&[])[..20]), Heard::Partly);
    }
}
