//! The account against real servers: what is observed is what is there, and looking changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use longshore_dev::{
    account::{Account, ID_HEADER, Sources, Verdict, observe, until_empty},
    services::Services,
    stub::Stub,
};

const SCHEMA: &str = r#"
    CREATE SCHEMA ledger;
    CREATE SCHEMA app;
    CREATE TABLE ledger.requests (request_id text, kind text, user_id text, state text, attempt integer, error_code text, received_at timestamptz, finished_at timestamptz);
    CREATE TABLE ledger.attempts (request_id text, attempt integer, ended_at timestamptz, worker text, outcome text, error_code text);
    CREATE TABLE ledger.effects (request_id text, at timestamptz);
    CREATE TABLE ledger.unreadable (id bigint, request_id text, error_code text, properties json);
    CREATE TABLE app.users (version bigint);
    INSERT INTO app.users VALUES (1), (0);
    INSERT INTO ledger.requests VALUES ('u1', 'user.profile.update', '42', 'done', 1, NULL, now(), now());
    INSERT INTO ledger.attempts VALUES ('u1', 1, now(), 'w', 'retry', 'call_failed');
    INSERT INTO ledger.effects VALUES ('u1', now());
    INSERT INTO ledger.unreadable VALUES
        (1, NULL, 'malformed_json', '{"headers": {"x-account-id": "g1"}, "message_id": "other"}'),
        (2, NULL, 'malformed_json', '{"message_id": "g2"}'),
        (3, NULL, 'malformed_json', '{}');
"#;

async fn publish(channel: &Channel, queue: &str, body: &[u8], properties: BasicProperties) {
    let sent = channel.basic_publish(
        "".into(),
        queue.into(),
        BasicPublishOptions::default(),
        body,
        properties,
    );
    sent.await.unwrap().await.unwrap();
}

#[tokio::test]
async fn what_is_observed_is_what_is_there() {
    let services = Services::shared().await.unwrap();
    let name = format!("account_{}", std::process::id());
    services.postgres.drop_database(&name).await.unwrap();
    let pg_url = services.postgres.create_database(&name, None).await.unwrap();
    let (client, connection) =
        tokio_postgres::connect(&pg_url, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(SCHEMA).await.unwrap();

    let (queue, dead) = (name.clone(), format!("{name}.dead"));
    let amqp =
        Connection::connect(&services.rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = amqp.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for queue in [&queue, &dead] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
    }
    let mut headers = FieldTable::default();
    headers.insert(ID_HEADER.into(), AMQPValue::LongString(LongString::from("d1")));
    publish(&channel, &dead, b"{", BasicProperties::default().with_headers(headers)).await;
    publish(&channel, &dead, b"{", BasicProperties::default().with_message_id("d2".into())).await;
    publish(&channel, &dead, br#"{"request_id": "d3"}"#, BasicProperties::default()).await;
    publish(&channel, &dead, b"{", BasicProperties::default()).await;

    let stub = Stub::start("127.0.0.1:0").await.unwrap();
    let schema = "ledger".to_owned();
    let sources = Sources {
        pg_url,
        amqp_url: services.rabbit.url(),
        queues: vec![queue.clone()],
        dead_queue: dead.clone(),
        schema: schema.clone(),
        effects: Some(format!("{schema}.effects")),
        users: Some("app.users".to_owned()),
        stub_url: Some(stub.url.clone()),
    };
    let mut account = Account::new();
    account.published("u1", "user.profile.update", Verdict::Confirmed);
    for id in ["g1", "g2", "d1", "d2", "d3"] {
        account.published(id, "garbage", Verdict::Confirmed);
    }
    for _look in 0..2 {
        let observed = observe(&sources).await.unwrap();
        let report = account.check(&observed);
        assert!(report.passed(), "{report}");
        assert_eq!(
            (observed.dead.len(), observed.unreadable.len(), observed.versions),
            (4, 3, Some(1))
        );
        assert_eq!((observed.attempts.len(), observed.effects.map(|all| all.len())), (1, Some(1)));
    }

    until_empty(&sources.amqp_url, &queue, Duration::from_secs(30)).await.unwrap();
    publish(&channel, &queue, b"{}", BasicProperties::default()).await;
    let error =
        until_empty(&sources.amqp_url, &queue, Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("was not empty within 0ns"), "{error}");

    let gone = Sources { dead_queue: "nobody.declared.this".to_owned(), ..sources };
    assert!(observe(&gone).await.is_err(), "a queue that is not there is not an empty one");
    for queue in [queue, dead] {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    amqp.close(200, "bye".into()).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    services.postgres.drop_database(&name).await.unwrap();
}
