//! A connection to Postgres.

use tokio_postgres::{Client, NoTls};

/// A connection; its other half runs until the client is dropped.
///
/// # Errors
/// Those of the server, or of the way there.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // What ends the connection is told to the client's next query.
    tokio::spawn(async move { connection.await.is_ok() });
    Ok(client)
}

/// A name as SQL takes it, whatever is in it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
