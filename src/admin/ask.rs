//! Asking the admin server of a worker, for the command line.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// No answer is longer.
const LONGEST: usize = 4 * 1024 * 1024;

/// The answer to a `GET` of a path at an admin server's address, `host:port`.
///
/// # Errors
/// Why there was none, or what the server said instead.
pub async fn ask(address: &str, path: &str) -> Result<String, String> {
    let asked = async {
        let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| error.to_string())?;
        // It ends with the answer; what is wrong with it is told there.
        let connection = tokio::spawn(async move { connection.await.is_ok() });
        let request = Request::get(path)
            .header(header::HOST, address)
            .header(header::CONNECTION, "close")
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = to_bytes(Body::new(answer.into_body()), LONGEST)
            .await
            .map_err(|error| error.to_string())?;
        connection.abort();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
    };
    timeout(WITHIN, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())))
}
