//! The moment at which a server answers again, seen from outside and in its own protocol.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// How often it is tried: as exact as the moment is known.
const TRY: Duration = Duration::from_millis(5);
/// How long one try may take.
const ANSWER: Duration = Duration::from_millis(500);
/// How long a server may take to come back.
const COME_BACK: Duration = Duration::from_secs(60);
/// What a client of AMQP 0-9-1 says first; a broker that is ready answers by `connection.start`.
const HELLO: &[u8] = b"AMQP\x00\x00\x09\x01";

/// When the broker first answered a client's hello, in seconds since 1970.
pub(super) async fn broker(address: SocketAddr) -> anyhow::Result<f64> {
    first(|| async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(HELLO).await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        Ok(())
    })
    .await
    .context("RabbitMQ did not come back")
}

/// When Postgres first answered a query.
pub(super) async fn postgres(url: String) -> anyhow::Result<f64> {
    first(|| async {
        let client = longshore_drill::database::connect(&url).await?;
        client.simple_query("select 1").await?;
        Ok(())
    })
    .await
    .context("Postgres did not come back")
}

async fn first<F>(mut ask: impl FnMut() -> F) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>>,
{
    timeout(COME_BACK, async {
        while !matches!(timeout(ANSWER, ask()).await, Ok(Ok(()))) {
            sleep(TRY).await;
        }
    })
    .await
    .with_context(|| format!("no answer within {COME_BACK:?}"))?;
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_broker_that_only_takes_connections_is_not_back_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            for _ in 0..3 {
                drop(listener.accept().await.unwrap());
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 8];
            stream.read_exact(&mut hello).await.unwrap();
            assert_eq!(hello, HELLO);
            let answered = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            stream.write_all(&[1]).await.unwrap();
            (answered, stream)
        };
        let (back, (answered, _stream)) = tokio::join!(broker(address), server);
        assert!(back.unwrap() >= answered);
    }
}
