#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::SocketAddr;

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::*;

const SOON: Duration = Duration::from_millis(300);
const LATE: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn patient() -> Limits {
    Limits { read_timeout: LATE, write_timeout: LATE, idle_timeout: LATE, max_connections: 8 }
}

struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<Duration>,
    ended: tokio::task::JoinHandle<()>,
}

async fn serve_with(limits: Limits, router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    Server { address, stop, ended: tokio::spawn(serve(listener, router, limits, stopped)) }
}

fn small() -> Router {
    Router::new().route("/", get(async || "small"))
}

/// Everything until the server closes the connection, which it must do long before [`LATE`].
async fn until_closed(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(LATE / 2, client.read_to_end(&mut answer))
        .await
        .expect("the server closes the connection");
    // A reset ends it as well as a proper close.
    let _how = read.is_ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads one answer of [`small`].
async fn answer(client: &mut TcpStream) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\nsmall") {
        let mut bytes = [0; 1024];
        let read =
            timeout(LATE / 2, client.read(&mut bytes)).await.expect("the server answers").unwrap();
        assert!(read > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    text
}

#[tokio::test]
async fn a_client_that_sends_half_a_header_is_cut_off() {
    let server = serve_with(Limits { read_timeout: SOON, ..patient() }, small()).await;
    for half in [&b""[..], b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let began = Instant::now();
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(half).await.unwrap();
        let said = until_closed(&mut client).await;
        let took = began.elapsed();
        assert!(!said.contains("200 OK") && took >= SOON, "{said:?} after {took:?}");
    }
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_and_may_rest_longer_than_a_header_may_take() {
    let limits = Limits { read_timeout: SOON, idle_timeout: SOON * 4, ..patient() };
    let server = serve_with(limits, small()).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let began = Instant::now();
    client.write_all(REQUEST).await.unwrap();
    answer(&mut client).await;
    let said = until_closed(&mut client).await;
    let took = began.elapsed();
    assert!(said.is_empty() && took >= SOON * 4, "{said:?} after {took:?}");
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    // More than all socket buffers on the way can hold.
    let huge = Router::new().route("/", get(async || vec![b'x'; 64 << 20]));
    let limits = Limits { write_timeout: SOON, max_connections: 1, ..patient() };
    let server = serve_with(limits, huge.route("/small", get(async || "small"))).await;
    let mut lazy = TcpStream::connect(server.address).await.unwrap();
    lazy.write_all(REQUEST).await.unwrap();
    // There is one slot: this is answered only when the lazy client's was taken away.
    let mut next = TcpStream::connect(server.address).await.unwrap();
    next.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    answer(&mut next).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_slot() {
    let server = serve_with(Limits { max_connections: 1, ..patient() }, small()).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(REQUEST).await.unwrap();
    answer(&mut first).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second.write_all(REQUEST).await.unwrap();
    // The first still has the slot: it is answered again while the second has got nothing.
    first.write_all(REQUEST).await.unwrap();
    answer(&mut first).await;
    let nothing = second.try_read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    answer(&mut second).await;
}

#[tokio::test]
async fn many_connections_at_once_are_all_answered() {
    let server = serve_with(Limits { max_connections: 3, ..patient() }, small()).await;
    let clients = (0..50).map(|_| async {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        until_closed(&mut client).await
    });
    for said in futures_util::future::join_all(clients).await {
        assert!(said.ends_with("small"), "{said:?}");
    }
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = serve_with(patient(), small()).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let endless =
        format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "a".repeat(2 * MAX_HEAD_BYTES));
    // It may well be cut off while it still sends.
    let _sent = client.write_all(endless.as_bytes()).await.is_ok();
    let said = until_closed(&mut client).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said:?}");
}

#[tokio::test]
async fn an_end_lets_what_is_under_way_finish_and_closes_what_rests() {
    let (started, mut under_way) = tokio::sync::mpsc::channel(1);
    let go_on = Arc::new(Semaphore::new(0));
    let wait = go_on.clone();
    let slow = Router::new().route("/", get(async || "small")).route(
        "/slow",
        get(async move || {
            started.send(()).await.unwrap();
            wait.acquire().await.unwrap().forget();
            "small"
        }),
    );
    let server = serve_with(patient(), slow).await;
    let mut resting = TcpStream::connect(server.address).await.unwrap();
    resting.write_all(REQUEST).await.unwrap();
    answer(&mut resting).await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    under_way.recv().await.unwrap();

    server.stop.send(LATE).unwrap();
    assert_eq!(until_closed(&mut resting).await, "");
    assert!(!server.ended.is_finished(), "one is still under way");
    go_on.add_permits(1);
    assert!(until_closed(&mut busy).await.ends_with("small"));
    server.ended.await.unwrap();
}

#[tokio::test]
async fn an_end_without_time_waits_for_nobody() {
    let stuck = Router::new().route("/", get(async || std::future::pending::<&str>().await));
    let server = serve_with(patient(), stuck).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(REQUEST).await.unwrap();
    drop(server.stop);
    timeout(LATE / 2, server.ended).await.expect("it ends at once").unwrap();
}
