#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use secrecy::SecretString;

use super::*;
use crate::admin::{
    pulse::STALE_AFTER,
    server::{Limits, serve},
    steering::{self, Steering},
    tests::{Ready, Unsteered, consuming},
};

pub(in crate::admin) struct Answer {
    pub(in crate::admin) status: u16,
    pub(in crate::admin) head: String,
    body: String,
}

impl Answer {
    pub(in crate::admin) fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What the routes answer to one request, by way of a real connection.
pub(in crate::admin) async fn ask(router: Router, request: &str) -> Answer {
    let patience = Duration::from_secs(30);
    let limits = Limits {
        read_timeout: patience,
        write_timeout: patience,
        idle_timeout: patience,
        max_connections: 1,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (_stop, stopped) = oneshot::channel();
    let server = tokio::spawn(serve(listener, router, limits, stopped));
    client
        .write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    tokio::time::timeout(patience, client.read_to_string(&mut text)).await.unwrap().unwrap();
    server.abort();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn routes(health: Arc<dyn Health>) -> Router {
    routes_with(health, Arc::new(Unsteered), None)
}

pub(in crate::admin) fn routes_with(
    health: Arc<dyn Health>,
    steering: Arc<dyn Steering>,
    token: Option<SecretString>,
) -> Router {
    let api = steering::routes(steering, token.as_ref());
    router(Recorder::install().unwrap(), health, Arc::new(Pulse::new(STALE_AFTER)), api)
}

async fn get(path: &str) -> Answer {
    ask(routes(consuming()), &format!("GET {path} HTTP/1.1")).await
}

#[tokio::test]
async fn a_worker_that_consumes_is_ready() {
    let answer = get("/health/ready").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), json!({"ready": true, "state": "consuming", "reasons": {}}));
}

#[tokio::test]
async fn a_worker_that_is_paused_is_not_ready_and_says_why_but_lives() {
    let paused = || {
        let detail = vec![("postgres".to_owned(), "cannot be reached".to_owned())];
        Arc::new(Ready(Readiness { ready: false, state: "paused".to_owned(), detail }))
    };
    let answer = ask(routes(paused()), "GET /health/ready HTTP/1.1").await;
    assert_eq!(answer.status, 503);
    let expected =
        json!({"ready": false, "state": "paused", "reasons": {"postgres": "cannot be reached"}});
    assert_eq!(answer.json(), expected);
    assert_eq!(ask(routes(paused()), "GET /health/live HTTP/1.1").await.status, 200);
}

#[tokio::test]
async fn metrics_are_what_prometheus_reads() {
    let answer = get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        answer.head
    );
    assert!(answer.body.contains("# TYPE longshore_build_info gauge"), "{}", answer.body);
    assert!(answer.body.contains("process_resident_memory_bytes "), "{}", answer.body);
}

#[tokio::test]
async fn the_root_lists_every_route() {
    let answer = get("/").await;
    assert_eq!(answer.status, 200);
    for path in ["/health/live", "/health/ready", "/metrics"] {
        assert!(answer.body.contains(path), "{path}");
    }
}

#[tokio::test]
async fn head_is_answered_without_a_body() {
    for path in ["/", "/health/live", "/health/ready", "/metrics"] {
        let answer = ask(routes(consuming()), &format!("HEAD {path} HTTP/1.1")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_json() {
    for (request, status, says) in [
        ("GET /api/requests HTTP/1.1", 404, "/api/requests"),
        ("GET /health HTTP/1.1", 404, "GET /"),
        ("POST /metrics HTTP/1.1", 405, "GET /"),
        ("DELETE / HTTP/1.1", 405, "GET /"),
    ] {
        let answer = ask(routes(consuming()), request).await;
        assert_eq!(answer.status, status, "{request}");
        assert!(
            answer.json()["error"].as_str().unwrap().contains(says),
            "{request}: {}",
            answer.body
        );
        assert!(answer.head.contains("cache-control: no-store"), "{}", answer.head);
    }
    let refused = ask(routes(consuming()), "POST /metrics HTTP/1.1").await;
    assert!(refused.head.contains("allow: get,head"), "{}", refused.head);
}

#[tokio::test]
async fn a_long_path_is_not_sent_back_whole() {
    let answer = get(&format!("/{}", "a".repeat(10_000))).await;
    assert_eq!((answer.status, answer.body.len() < 300), (404, true), "{}", answer.body);
}

#[tokio::test]
async fn a_request_with_a_body_is_refused_unread() {
    for size in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        let answer = ask(routes(consuming()), &format!("GET /metrics HTTP/1.1\r\n{size}")).await;
        assert_eq!(answer.status, 413, "{size}");
        assert!(
            answer.json()["error"].as_str().unwrap().contains("no request body"),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_about_is_given_up() {
    let stuck =
        Router::new().route("/", axum::routing::get(async || std::future::pending::<&str>().await));
    let answer = ask(guarded(stuck, Duration::from_millis(50)), "GET / HTTP/1.1").await;
    assert_eq!(answer.status, 503);
    assert!(answer.json()["error"].as_str().unwrap().contains("too long"), "{}", answer.body);
}
