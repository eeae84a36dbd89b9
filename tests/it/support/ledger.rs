//! The test's own database.

use serde_json::Value;
use tokio_postgres::{Client, NoTls, types::ToSql};

pub(crate) struct Database {
    pub(crate) url: String,
    admin_url: String,
    name: String,
    client: Client,
}

/// A row of `longshore.requests`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) state: String,
    pub(crate) attempt: i32,
    pub(crate) parked_on: Option<String>,
    pub(crate) error_code: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) result: Option<Value>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) properties: Option<Value>,
}

/// A row of `longshore.unreadable`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unreadable {
    pub(crate) request_id: Option<String>,
    pub(crate) error_code: String,
    pub(crate) error: String,
    pub(crate) body: Vec<u8>,
    pub(crate) properties: Value,
    pub(crate) seen: i32,
}

impl Database {
    pub(crate) async fn create(admin_url: &str, name: &str) -> Self {
        let admin = connect(admin_url).await;
        admin.batch_execute(&format!("create database {name}")).await.unwrap();
        let (server, _) = admin_url.rsplit_once('/').unwrap();
        let url = format!("{server}/{name}");
        let client = connect(&url).await;
        Self { url, admin_url: admin_url.to_owned(), name: name.to_owned(), client }
    }

    /// Connects anew, after the server was restarted.
    pub(crate) async fn reconnect(&mut self) {
        self.client = connect(&self.url).await;
    }

    /// A session of its own, for what must hold something while others work.
    pub(crate) async fn session(&self) -> Client {
        connect(&self.url).await
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// The one number that a query returns.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get::<_, Option<i64>>(0).unwrap_or_default()
    }

    /// The first column of each row, where it has a value.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().filter_map(|row| row.get(0)).collect()
    }

    pub(crate) async fn row(&self, id: &str) -> Option<Row> {
        let rows = self
            .query(
                "select state, attempt, parked_on, error_code, error, result, body, properties
                   from longshore.requests where request_id = $1",
                &[&id],
            )
            .await;
        rows.first().map(|row| Row {
            state: row.get(0),
            attempt: row.get(1),
            parked_on: row.get(2),
            error_code: row.get(3),
            error: row.get(4),
            result: row.get(5),
            body: row.get(6),
            properties: row.get(7),
        })
    }

    pub(crate) async fn unreadable(&self) -> Vec<Unreadable> {
        let rows = self
            .query("select request_id, error_code, error, body, properties, seen from longshore.unreadable order by id", &[])
            .await;
        rows.iter()
            .map(|row| Unreadable {
                request_id: row.get(0),
                error_code: row.get(1),
                error: row.get(2),
                body: row.get(3),
                properties: row.get(4),
                seen: row.get(5),
            })
            .collect()
    }

    /// How many requests are in this state.
    pub(crate) async fn count(&self, state: &str) -> i64 {
        self.number(&format!("select count(*) from longshore.requests where state = '{state}'"))
            .await
    }

    /// The version of a user's profile: how many updates were applied.
    pub(crate) async fn version(&self, user: &str) -> i64 {
        self.number(&format!("select max(version) from app.users where user_id = '{user}'")).await
    }

    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Vec<tokio_postgres::Row> {
        self.client.query(sql, parameters).await.unwrap()
    }

    /// Drops the database, in the background.
    pub(crate) fn forget(&self) {
        let (url, name) = (self.admin_url.clone(), self.name.clone());
        std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            else {
                return;
            };
            runtime.block_on(async {
                if let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await {
                    tokio::spawn(connection);
                    // The server may be gone with the test; then so is the database.
                    drop(
                        client
                            .batch_execute(&format!("drop database if exists {name} with (force)"))
                            .await,
                    );
                }
            });
        });
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
