//! A TCP line with faults: everything that a network does to a connection, on demand.
//!
//! The proxy runs in the process that started it. Verbs act at once and on existing connections
//! too; what is held back is kept, not lost, as on a line that heals.

mod pump;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// How long a connection to the upstream may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How many connections are carried at once; more are reset.
const MAX_OPEN: usize = 2_000;

/// One of the two ways through the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the proxy.
    FromClient,
    /// From the server behind it.
    FromUpstream,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken in.
    pub accepted: u64,
    /// Connections reset on arrival, by [`Proxy::refuse`].
    pub refused: u64,
    /// Connections reset by [`Proxy::cut`] or [`Proxy::cut_after_bytes`].
    pub cut: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes handed on to the server.
    pub from_client: u64,
    /// Bytes handed on to the clients.
    pub from_upstream: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    refuse: bool,
    hold_client: bool,
    hold_upstream: bool,
    delay: Duration,
    /// Bytes a second, each way of each connection.
    rate: Option<u32>,
    /// Counts the cuts: a connection ends when this is not what it was born under.
    cuts: u64,
}

impl Rules {
    fn holds(&self, direction: Direction) -> bool {
        match direction {
            Direction::FromClient => self.hold_client,
            Direction::FromUpstream => self.hold_upstream,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    open: AtomicU64,
    from_client: AtomicU64,
    from_upstream: AtomicU64,
    /// The bytes left until [`Proxy::cut_after_bytes`] strikes.
    fuse: Mutex<Option<(Direction, u64)>>,
}

/// A running proxy. Dropped, it resets its connections and stops listening.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead of to the upstream.
    pub addr: SocketAddr,
    rules: watch::Sender<Rules>,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `upstream`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.context("no free port for the proxy")?;
        let addr = listener.local_addr()?;
        let rules = watch::Sender::new(Rules::default());
        let shared = Arc::new(Shared::default());
        let accepting =
            tokio::spawn(accept(listener, upstream, rules.subscribe(), Arc::clone(&shared)))
                .abort_handle();
        Ok(Self { addr, rules, shared, accepting })
    }

    /// A sound line again: all faults below are taken back, and what was held back goes on.
    pub fn pass(&self) {
        *self.fuse() = None;
        self.rules.send_modify(|rules| *rules = Rules { cuts: rules.cuts, ..Rules::default() });
    }

    /// New connections are reset; existing ones go on.
    pub fn refuse(&self) {
        self.rules.send_modify(|rules| rules.refuse = true);
    }

    /// Resets all connections of this moment, once. What was under way may be lost.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Nothing goes through in either way, and nobody is told: connections are kept and new ones
    /// accepted.
    pub fn black_hole(&self) {
        self.rules.send_modify(|rules| (rules.hold_client, rules.hold_upstream) = (true, true));
    }

    /// Stops reading what clients send: they fill their buffers and then hang. The server's
    /// words still reach them.
    pub fn half_open(&self) {
        self.rules.send_modify(|rules| rules.hold_client = true);
    }

    /// Nothing that the server says goes through any more, and nobody is told. The clients' words
    /// still reach it.
    pub fn mute(&self) {
        self.rules.send_modify(|rules| rules.hold_upstream = true);
    }

    /// Everything arrives this much later, in both ways; throughput stays.
    pub fn delay(&self, delay: Duration) {
        self.rules.send_modify(|rules| rules.delay = delay);
    }

    /// No more than this many bytes a second (at least 1) in each way of each connection.
    pub fn limit_bytes_per_second(&self, rate: u32) {
        self.rules.send_modify(|rules| rules.rate = Some(rate.max(1)));
    }

    /// Hands on `bytes` more in this direction, counted over all connections, and resets the
    /// connection that carries the next one. Strikes once. The receiver gets all of those bytes
    /// before it sees the reset, as long as it reads.
    pub fn cut_after_bytes(&self, bytes: u64, direction: Direction) {
        *self.fuse() = Some((direction, bytes));
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counters {
            accepted: read(&self.shared.accepted),
            refused: read(&self.shared.refused),
            cut: read(&self.shared.cut),
            open: read(&self.shared.open),
            from_client: read(&self.shared.from_client),
            from_upstream: read(&self.shared.from_upstream),
        }
    }

    fn fuse(&self) -> std::sync::MutexGuard<'_, Option<(Direction, u64)>> {
        self.shared.fuse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections live in the accepting task's set and go with it.
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    rules: watch::Receiver<Rules>,
    shared: Arc<Shared>,
) {
    let mut lines = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = lines.join_next() => continue,
        };
        // A client that has gone again, or a shortage of descriptors: the next one may do better.
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        if rules.borrow().refuse || lines.len() >= MAX_OPEN {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            reset(&client);
            continue;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        lines.spawn(carry(client, upstream, rules.clone(), Arc::clone(&shared)));
    }
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A socket that is reset, not closed, when it is dropped, unless it came to a proper end.
struct Socket {
    stream: TcpStream,
    ended_well: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.ended_well {
            reset(&self.stream);
        }
    }
}

fn reset(stream: &TcpStream) {
    // Fails only where the peer was quicker.
    let _reset = stream.set_zero_linger().is_ok();
}

async fn carry(
    client: TcpStream,
    upstream: SocketAddr,
    rules: watch::Receiver<Rules>,
    shared: Arc<Shared>,
) {
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(Arc::clone(&shared));
    let mut client = Socket { stream: client, ended_well: false };
    let born = rules.borrow().cuts;
    let (mut cuts, mut held) = (rules.clone(), rules.clone());
    // Into a black hole nothing is connected either.
    let may_connect = tokio::select! {
        biased;
        _ = cuts.wait_for(|rules| rules.cuts != born) => Err(pump::End::Cut),
        open = held.wait_for(|rules| !(rules.hold_client && rules.hold_upstream)) => open.map(|_| ()).map_err(|_| pump::End::Broken),
    };
    let end = match may_connect {
        Ok(()) => join(&mut client, upstream, born, &rules, &shared).await,
        Err(end) => Err(end),
    };
    match end {
        Ok(()) => client.ended_well = true,
        Err(pump::End::Broken) => {}
        Err(pump::End::Cut) => {
            shared.cut.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Connects the client with the server and carries until one of them or a cut ends it.
async fn join(
    client: &mut Socket,
    upstream: SocketAddr,
    born: u64,
    rules: &watch::Receiver<Rules>,
    shared: &Shared,
) -> Result<(), pump::End> {
    // Not given up for a cut: a half-made connection would be closed, not reset.
    let connected = timeout(CONNECT, TcpStream::connect(upstream)).await;
    let Ok(Ok(stream)) = connected else { return Err(pump::End::Broken) };
    // A proxy is no place for small pieces to wait for an acknowledgement: where one end waits for the
    // other's answer that is 40 ms each time. A socket that refuses is as broken as it looks.
    for socket in [&client.stream, &stream] {
        socket.set_nodelay(true).map_err(|_| pump::End::Broken)?;
    }
    let mut server = Socket { stream, ended_well: false };
    let (client_in, client_out) = client.stream.split();
    let (server_in, server_out) = server.stream.split();
    let there = pump::run(Direction::FromClient, client_in, server_out, rules, shared);
    let back = pump::run(Direction::FromUpstream, server_in, client_out, rules, shared);
    let mut cuts = rules.clone();
    tokio::select! {
        biased;
        _ = cuts.wait_for(|rules| rules.cuts != born) => return Err(pump::End::Cut),
        end = async { tokio::try_join!(there, back) } => end?,
    };
    server.ended_well = true;
    Ok(())
}

#[cfg(test)]
mod tests;
