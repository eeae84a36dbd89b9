#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
// Time is paused: it jumps to the next timer only when every socket is quiet, and on the loopback
// interface what was written is there at once. "Nothing came for an hour" takes no time.

use std::io::ErrorKind;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

/// A proxy before a server, with one connection through it.
struct Line {
    proxy: Proxy,
    client: TcpStream,
    server: TcpStream,
    listener: TcpListener,
}

async fn line() -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    let client = TcpStream::connect(proxy.addr).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    Line { proxy, client, server, listener }
}

async fn hear(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    bytes
}

async fn silent(stream: &mut TcpStream) -> bool {
    timeout(HOUR, stream.read_u8()).await.is_err()
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    stream.read_u8().await.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test(start_paused = true)]
async fn a_sound_line_carries_both_ways_and_the_ends() {
    let mut line = line().await;
    line.client.write_all(b"ping").await.unwrap();
    assert_eq!(hear(&mut line.server, 4).await, b"ping");
    line.client.shutdown().await.unwrap();
    assert_eq!(
        line.server.read(&mut [0]).await.unwrap(),
        0,
        "a half-closed line is half-closed behind it"
    );
    line.server.write_all(b"pong!").await.unwrap();
    drop(line.server);
    assert_eq!(hear(&mut line.client, 5).await, b"pong!");
    assert_eq!(line.client.read(&mut [0]).await.unwrap(), 0);
    let counters = line.proxy.counters();
    assert_eq!(
        (counters.accepted, counters.from_client, counters.from_upstream, counters.cut),
        (1, 4, 5, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_resets_what_is_there_and_not_what_comes() {
    let mut line = line().await;
    line.proxy.cut();
    assert!(is_reset(&mut line.client).await);
    assert!(is_reset(&mut line.server).await);
    let mut next = TcpStream::connect(line.proxy.addr).await.unwrap();
    let (mut server, _) = line.listener.accept().await.unwrap();
    next.write_all(b"again").await.unwrap();
    assert_eq!(hear(&mut server, 5).await, b"again");
    assert_eq!((line.proxy.counters().cut, line.proxy.counters().open), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn refusing_resets_what_comes_and_not_what_is_there() {
    let mut line = line().await;
    line.proxy.refuse();
    let mut next = TcpStream::connect(line.proxy.addr).await.unwrap();
    assert!(is_reset(&mut next).await);
    line.client.write_all(b"still").await.unwrap();
    assert_eq!(hear(&mut line.server, 5).await, b"still");
    line.proxy.pass();
    let _accepted = TcpStream::connect(line.proxy.addr).await.unwrap();
    line.listener.accept().await.unwrap();
    assert_eq!(line.proxy.counters().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_keeps_what_it_swallows_until_the_line_heals() {
    let mut line = line().await;
    line.proxy.black_hole();
    line.client.write_all(b"there").await.unwrap();
    line.server.write_all(b"back").await.unwrap();
    assert!(silent(&mut line.server).await && silent(&mut line.client).await);
    let mut late = TcpStream::connect(line.proxy.addr).await.unwrap();
    late.write_all(b"late").await.unwrap();
    assert!(timeout(HOUR, line.listener.accept()).await.is_err(), "nothing is connected behind it");
    assert_eq!((line.proxy.counters().from_client, line.proxy.counters().from_upstream), (0, 0));
    line.proxy.pass();
    assert_eq!(hear(&mut line.server, 5).await, b"there");
    assert_eq!(hear(&mut line.client, 4).await, b"back");
    let (mut server, _) = line.listener.accept().await.unwrap();
    assert_eq!(hear(&mut server, 4).await, b"late");
}

#[tokio::test(start_paused = true)]
async fn a_half_open_line_is_deaf_in_one_ear() {
    let mut line = line().await;
    line.proxy.half_open();
    line.client.write_all(b"unheard").await.unwrap();
    assert!(silent(&mut line.server).await);
    line.server.write_all(b"heard").await.unwrap();
    assert_eq!(hear(&mut line.client, 5).await, b"heard");
    // Whoever goes on sending fills every buffer on the way and then waits.
    let block = vec![0; 1 << 20];
    let flood = async {
        loop {
            line.client.write_all(&block).await.unwrap();
        }
    };
    let flooded: Result<(), _> = timeout(HOUR, flood).await;
    assert!(flooded.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_mute_server_still_hears_and_is_heard_again_when_the_line_heals() {
    let mut line = line().await;
    line.proxy.mute();
    line.server.write_all(b"unheard").await.unwrap();
    assert!(silent(&mut line.client).await);
    line.client.write_all(b"heard").await.unwrap();
    assert_eq!(hear(&mut line.server, 5).await, b"heard");
    line.proxy.pass();
    assert_eq!(hear(&mut line.client, 7).await, b"unheard");
}

#[tokio::test(start_paused = true)]
async fn a_delay_moves_everything_and_slows_nothing() {
    let mut line = line().await;
    line.proxy.delay(Duration::from_secs(5));
    let start = Instant::now();
    for _ in 0..20 {
        line.client.write_all(&[1; 1_000]).await.unwrap();
        tokio::task::yield_now().await;
    }
    hear(&mut line.server, 20_000).await;
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_takes_its_time() {
    let mut line = line().await;
    line.proxy.limit_bytes_per_second(100);
    let start = Instant::now();
    line.client.write_all(&[1; 1_000]).await.unwrap();
    hear(&mut line.server, 1_000).await;
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(9_900) && took <= Duration::from_millis(10_200),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_after_some_bytes_lets_exactly_those_through() {
    let mut line = line().await;
    line.proxy.cut_after_bytes(7, Direction::FromUpstream);
    line.client.write_all(b"the other way does not count").await.unwrap();
    hear(&mut line.server, 28).await;
    line.server.write_all(b"1234").await.unwrap();
    assert_eq!(hear(&mut line.client, 4).await, b"1234");
    line.server.write_all(b"567890").await.unwrap();
    assert_eq!(hear(&mut line.client, 3).await, b"567");
    assert!(is_reset(&mut line.client).await);
    assert_eq!((line.proxy.counters().cut, line.proxy.counters().from_upstream), (1, 7));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_away_is_a_reset_for_the_client() {
    let line = line().await;
    drop(line.listener);
    let mut next = TcpStream::connect(line.proxy.addr).await.unwrap();
    assert!(is_reset(&mut next).await);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_proxy_leaves_nothing_open() {
    let mut line = line().await;
    let addr = line.proxy.addr;
    line.client.write_all(b"x").await.unwrap();
    hear(&mut line.server, 1).await;
    drop(line.proxy);
    assert!(is_reset(&mut line.client).await && is_reset(&mut line.server).await);
    assert!(TcpStream::connect(addr).await.is_err());
}
