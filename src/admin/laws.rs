//! What holds for whatever comes on a connection to the admin server. Input: the bytes that a
//! client sends, after which it says nothing more and reads.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_util::sync::CancellationToken;

use super::{
    Health, Readiness, Refused, Standing, Steered, Steering,
    pulse::{Pulse, STALE_AFTER},
    routes, server, steering,
};
use crate::{steer::Order, telemetry::Recorder};

/// What is answered here, by the routes or by hyper.
const STATUS: [u16; 10] = [200, 400, 401, 404, 405, 413, 414, 431, 500, 503];
/// The longest text of an error, in bytes: part of it is the client's own.
const LONGEST_ERROR: usize = 1_024;

struct Consuming;

impl Health for Consuming {
    fn ready(&self) -> Readiness {
        Readiness { ready: true, state: "consuming".to_owned(), detail: Vec::new() }
    }
}

/// Nothing that a stranger sends gets as far as steering.
impl Steering for Consuming {
    fn standing(&self) -> Option<Standing> {
        let (dependencies, kinds) = (Vec::new(), Vec::new());
        Some(Standing { worker: "w".to_owned(), paused: Vec::new(), dependencies, kinds })
    }

    fn steer(&self, order: Order, _: String) -> BoxFuture<'_, Result<Steered, Refused>> {
        panic!("{order:?} came without a token that nobody knows");
    }
}

/// Panics where a law is broken.
pub fn hold(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("there is a runtime").block_on(async {
        // A client that is waited for in vain costs no time.
        tokio::time::pause();
        let recorder = Recorder::install().expect("this process records");
        let pulse = Arc::new(Pulse::new(STALE_AFTER));
        let token = SecretString::from(format!("{:032x}", fastrand::u128(..)));
        let api = steering::routes(Arc::new(Consuming), Some(&token));
        let router = routes::router(recorder, Arc::new(Consuming), pulse, api);
        let said = converse(router.clone(), input).await;
        answers(&said);
        let next = converse(router, b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(next.starts_with(b"HTTP/1.1 200 OK\r\n"), "the next client finds it well");
    });
}

/// All that is answered until the connection ends.
async fn converse(router: axum::Router, input: &[u8]) -> Vec<u8> {
    let patience = Duration::from_secs(5);
    let limits = server::Limits {
        read_timeout: patience,
        write_timeout: patience,
        idle_timeout: patience,
        max_connections: 1,
    };
    let (mut near, far) = duplex(64 * 1024);
    let serving = server::connection(far, router, limits, CancellationToken::new());
    let client = async {
        let (mut from, mut to) = tokio::io::split(&mut near);
        let mut said = Vec::new();
        // Who is refused is not read to the end.
        let send = async { to.write_all(input).await.is_ok() };
        let read = from.read_to_end(&mut said);
        let (_sent, read) = tokio::join!(send, read);
        read.expect("the answer ends well");
        said
    };
    let bound = tokio::time::timeout(patience * 1_000, async { tokio::join!(serving, client).1 });
    bound.await.expect("every connection ends")
}

/// Each answer is whole, is of the known ones, and says why where it refuses.
fn answers(said: &[u8]) {
    let mut rest = said;
    while !rest.is_empty() {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("a head is whole");
        let head = std::str::from_utf8(&rest[..end]).expect("a head is text").to_ascii_lowercase();
        rest = &rest[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("http/1.")?.get(2..5));
        let status: u16 = status.and_then(|status| status.parse().ok()).expect("a status");
        assert!(STATUS.contains(&status), "{head}");
        let field = |name: &str| {
            head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let length: usize =
            field("content-length").map_or(0, |length| length.parse().expect("a length"));
        // To HEAD the length is told, and nothing follows.
        let bodiless = rest.is_empty() || rest.starts_with(b"HTTP/1.");
        let body = if bodiless { &rest[..0] } else { rest.get(..length).expect("a body is whole") };
        rest = &rest[body.len()..];
        let ours = field("cache-control") == Some("no-store");
        assert!(ours || matches!(status, 400 | 414 | 431), "anybody may keep it: {head}");
        if ours && !matches!(status, 200 | 503) && !body.is_empty() {
            let body: Value = serde_json::from_slice(body).expect("an error is JSON");
            let error = body["error"].as_str().expect("an error says why");
            assert!(!error.is_empty() && error.len() <= LONGEST_ERROR, "{} bytes", error.len());
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_laws_hold_for_every_input_that_is_kept() {
        crate::laws::replay("admin", super::hold);
    }
}
