//! What services do when they are not well.

use std::{future, time::Instant};

use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::*;

/// Long enough to connect on a busy machine, short enough to wait out.
const SHORT: Duration = Duration::from_millis(400);

fn hasty(url: &str) -> Downstream {
    downstream(Settings { timeout: SHORT, connect_timeout: SHORT, ..settings(url) })
}

#[tokio::test]
async fn a_service_that_refuses_connections_opens_its_breaker() {
    let downstream = downstream(settings(&closed_port().await));
    for _ in 0..3 {
        assert!(downstream.not_admitting().is_empty());
        let (error, retry_in) = transient(call(&downstream).await.unwrap_err());
        assert!(
            error.starts_with("POST to geocoder could not connect: Connection refused"),
            "{error}"
        );
        assert_eq!(retry_in, None);
    }
    assert_eq!(downstream.not_admitting(), ["geocoder"]);
    assert_eq!(downstream.get("geocoder").unwrap().state(), "open");
    let StepError::NotAdmitted { on, retry_in } = call(&downstream).await.unwrap_err() else {
        panic!("let through")
    };
    assert_eq!(on, "geocoder");
    assert!(retry_in > SECOND && retry_in < 20 * SECOND, "{retry_in:?}");
}

#[tokio::test]
async fn a_service_that_hangs_is_left_at_the_timeout_and_its_breaker_knows() {
    let server = Server::with(|stream| async move {
        future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let downstream = hasty(&server.url);
    for _ in 0..3 {
        let (error, _) = transient(call(&downstream).await.unwrap_err());
        assert_eq!(error, "POST to geocoder did not end within 400ms (its timeout)");
    }
    assert_eq!(downstream.not_admitting(), ["geocoder"]);
}

#[tokio::test]
async fn a_service_that_trickles_is_left_at_the_timeout_though_bytes_keep_coming() {
    let server = Server::with(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while stream.write_all(b"1").await.is_ok() {
            ticks.tick().await;
        }
    })
    .await;
    let begun = Instant::now();
    let (error, _) = transient(call(&hasty(&server.url)).await.unwrap_err());
    assert!(error.contains("did not end within 400ms"), "{error}");
    assert!(begun.elapsed() < 10 * SECOND, "a thousand ticks are twenty seconds");
}

#[tokio::test]
async fn of_fifty_megabytes_only_the_limit_is_read() {
    for head in ["content-length: 52428800", "connection: close"] {
        let (tell, mut written) = mpsc::unbounded_channel();
        let server = Server::with(move |mut stream| {
            let tell = tell.clone();
            async move {
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                let piece = vec![b'1'; 1024 * 1024];
                let mut pieces = 0;
                while pieces < 50 && stream.write_all(&piece).await.is_ok() {
                    pieces += 1;
                }
                tell.send(pieces).unwrap();
            }
        })
        .await;
        let downstream = downstream(settings(&server.url));
        let (error, _) = transient(call(&downstream).await.unwrap_err());
        assert_eq!(error, "POST to geocoder answered more than 1024 bytes, see max_response_bytes");
        assert!(written.recv().await.unwrap() < 50, "the connection was dropped ({head})");
    }
}

#[tokio::test]
async fn a_redirect_is_refused_and_its_target_never_asked() {
    let mut target = Server::answering(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let answer =
            format!("HTTP/1.1 {status}\r\nlocation: {}/\r\ncontent-length: 0\r\n\r\n", target.url);
        let server = Server::answering(&[&answer]).await;
        let StepError::Refused(failure) =
            call(&downstream(settings(&server.url))).await.unwrap_err()
        else {
            panic!("not refused")
        };
        assert!(
            failure.error.ends_with("redirects are not followed, set the final url"),
            "{failure}"
        );
    }
    assert!(!target.was_asked());
}

#[tokio::test]
async fn a_429_with_a_time_is_passed_on_and_holds_the_next_call() {
    let mut server =
        Server::answering(&["HTTP/1.1 429 X\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n"])
            .await;
    let downstream = downstream(settings(&server.url));
    let (error, retry_in) = transient(call(&downstream).await.unwrap_err());
    assert_eq!(error, "POST to geocoder answered 429 Too Many Requests");
    assert_eq!(retry_in, Some(30 * SECOND));
    server.seen().await;
    let StepError::NotAdmitted { retry_in, .. } = call(&downstream).await.unwrap_err() else {
        panic!("let through")
    };
    assert!(retry_in > 20 * SECOND, "{retry_in:?}");
    assert!(!server.was_asked());
}

#[tokio::test]
async fn a_503_says_when_to_come_back() {
    let server =
        Server::answering(&["HTTP/1.1 503 X\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n"]).await;
    let (_, retry_in) = transient(call(&downstream(settings(&server.url))).await.unwrap_err());
    assert_eq!(retry_in, Some(9 * SECOND));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure_of_the_service() {
    let server =
        Server::answering(&["HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":"]).await;
    let downstream = downstream(settings(&server.url));
    for _ in 0..3 {
        let (error, _) = transient(call(&downstream).await.unwrap_err());
        assert!(error.starts_with("POST to geocoder broke off its answer: "), "{error}");
    }
    assert_eq!(downstream.not_admitting(), ["geocoder"]);
}

#[tokio::test]
async fn a_connection_reset_amid_the_answer_is_a_failure_of_the_service() {
    let server = Server::with(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
        stream.set_zero_linger().unwrap();
    })
    .await;
    let downstream = downstream(settings(&server.url));
    for _ in 0..3 {
        // A reset may overtake what was sent before it.
        let (error, _) = transient(call(&downstream).await.unwrap_err());
        assert!(
            error.contains("broke off its answer: ") || error.contains("got no answer: "),
            "{error}"
        );
    }
    assert_eq!(downstream.not_admitting(), ["geocoder"]);
}

#[tokio::test]
async fn a_connection_that_closes_without_an_answer_is_a_failure_of_the_service() {
    let server = Server::with(|stream| async move { drop(stream) }).await;
    let downstream = downstream(settings(&server.url));
    let (error, _) = transient(call(&downstream).await.unwrap_err());
    assert!(error.starts_with("POST to geocoder got no answer: "), "{error}");
}

#[tokio::test]
async fn bytes_that_are_not_text_may_be_text_the_next_time() {
    let server = Server::with(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xfe").await.unwrap();
    })
    .await;
    let downstream = downstream(settings(&server.url));
    for _ in 0..10 {
        let (error, _) = transient(call(&downstream).await.unwrap_err());
        assert_eq!(error, "POST to geocoder answered bytes that are not text");
    }
    assert!(downstream.not_admitting().is_empty(), "the service is well");
}

#[tokio::test]
async fn a_dropped_call_gives_its_place_back_and_counts_neither_way() {
    let mut server = Server::with(|stream| async move {
        future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let downstream = downstream(Settings { max_in_flight: 1, ..settings(&server.url) });
    for _ in 0..5 {
        let mut first = Box::pin(call(&downstream));
        tokio::select! {
            _ = &mut first => panic!("it hangs"),
            _ = server.seen() => {}
        }
        let StepError::NotAdmitted { on, .. } = call(&downstream).await.unwrap_err() else {
            panic!("there was one place")
        };
        assert_eq!(on, "limit:dependency:geocoder", "a full limit is no outage");
        drop(first);
    }
    assert!(downstream.not_admitting().is_empty(), "five cancelled calls are no failures");
}
