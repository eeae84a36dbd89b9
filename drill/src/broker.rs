//! A connection to RabbitMQ, and the removal of what was declared there.

use std::time::Duration;

use anyhow::{Context as _, bail};
use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions},
    types::FieldTable,
};
use tokio::time::{Instant, sleep, timeout};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(15);
/// How long one question about a queue may take, and how long until the next.
const ASK: Duration = Duration::from_secs(10);
const BETWEEN: Duration = Duration::from_millis(250);
/// The broker's word for a queue that is not there.
const NOT_FOUND: u16 = 404;

/// Connects; lapin itself waits without limit.
///
/// # Errors
/// Those of the broker, or of the way there.
pub async fn connect(url: &str) -> anyhow::Result<Connection> {
    let connecting = timeout(CONNECT, Connection::connect(url, ConnectionProperties::default()));
    Ok(connecting
        .await
        .with_context(|| format!("RabbitMQ does not answer within {CONNECT:?}"))??)
}

/// Ends a connection in order, for as long as that does not take long.
pub async fn close(connection: Connection) {
    // It ends with this process at the latest.
    let _closed = timeout(ASK, connection.close(200, "bye".into())).await.is_ok();
}

/// Whether there is a queue of this name.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn has_queue(url: &str, queue: &str) -> anyhow::Result<bool> {
    let asked = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    };
    timeout(ASK + CONNECT, asked).await.context("RabbitMQ does not answer")?
}

/// Deletes a queue once its leader is known. Right after its start RabbitMQ 3.10 has quorum queues
/// without one; deleted then and declared again, such a queue answers INTERNAL_ERROR for ever. A
/// purge is answered by the leader itself.
///
/// # Errors
/// When it could not be deleted within that time.
pub async fn delete_queue(url: &str, queue: &str, within: Duration) -> anyhow::Result<()> {
    let give_up = Instant::now() + within;
    loop {
        let why = match timeout(ASK, purge_and_delete(url, queue)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {ASK:?}"),
        };
        if Instant::now() >= give_up {
            bail!("queue {queue} cannot be deleted: {why}");
        }
        sleep(BETWEEN).await;
    }
}

/// On a connection of its own, for INTERNAL_ERROR ends more than the channel.
async fn purge_and_delete(url: &str, queue: &str) -> anyhow::Result<()> {
    let connection = connect(url).await?;
    let channel = connection.create_channel().await?;
    match channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await {
        Ok(_) => {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error.into()),
    }
    close(connection).await;
    Ok(())
}

/// Deletes exchanges; one that is not there is as good.
///
/// # Errors
/// Those of the broker, or of the way there.
pub async fn delete_exchanges(url: &str, exchanges: &[&str]) -> anyhow::Result<()> {
    let deleted = async {
        let connection = connect(url).await?;
        let channel = connection.create_channel().await?;
        for exchange in exchanges {
            channel.exchange_delete((*exchange).into(), ExchangeDeleteOptions::default()).await?;
        }
        close(connection).await;
        Ok(())
    };
    timeout(ASK + CONNECT, deleted).await.context("RabbitMQ does not answer")?
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}
