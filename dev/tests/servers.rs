//! The servers for real: they keep what they were given over a kill, and nobody stays behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::{Duration, Instant};

use lapin::{
    BasicProperties, Confirmation, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use longshore_dev::{
    place::Private, postgres::Postgres, process::Process, rabbit::Rabbit, services::Services,
};
use tokio_postgres::NoTls;

#[tokio::test]
async fn a_broker_keeps_its_ports_and_its_messages_over_a_kill_and_a_stop() {
    let dir = Private::new("rabbit").unwrap();
    let mut rabbit = Rabbit::start(dir.path().join("node"), "Test 1").await.unwrap();
    let url = rabbit.url();
    {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel
            .queue_declare("kept".into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = channel.basic_publish(
            "".into(),
            "kept".into(),
            BasicPublishOptions::default(),
            b"cargo",
            properties,
        );
        assert!(matches!(confirm.await.unwrap().await.unwrap(), Confirmation::Ack(None)));
    }
    let first = rabbit.pid().unwrap();
    // Stopped first and killed then: a 3.10.8 that is killed right after a quorum queue was declared
    // comes back knowing 0 registered servers (its log says so), and the queue never elects.
    rabbit.stop().await.unwrap();
    assert_eq!(rabbit.pid(), None);
    rabbit.start_again().await.unwrap();
    assert_eq!(get(&url, false).await, b"cargo");
    rabbit.kill().await;
    rabbit.start_again().await.unwrap();
    assert_eq!(rabbit.url(), url);
    assert_ne!(rabbit.pid().unwrap(), first);

    assert_eq!(get(&url, true).await, b"cargo");
    let listed = rabbit.ctl(&["list_queues", "name", "--quiet"]).await.unwrap();
    assert!(listed.contains("kept"), "{listed}");
    let error = rabbit.ctl(&["no_such_verb"]).await.unwrap_err().to_string();
    assert!(error.contains("rabbitmqctl no_such_verb failed"), "{error}");

    let server = Process::of(rabbit.pid().unwrap()).unwrap();
    let family = server.descendants();
    drop(rabbit);
    assert!(!server.is_alive() && !family.iter().any(Process::is_alive), "nobody stays behind");
}

#[tokio::test]
async fn a_database_keeps_its_port_and_its_rows_over_a_kill_and_a_stop() {
    let dir = Private::new("postgres").unwrap();
    let mut postgres = Postgres::start(dir.path().join("server")).await.unwrap();
    let url = postgres.create_database("template one", None).await.unwrap();
    query(&url, "CREATE TABLE kept AS SELECT 42 AS cargo").await.unwrap();
    let copy = postgres.create_database("copy", Some("template one")).await.unwrap();
    let server = Process::of(postgres.pid().unwrap()).unwrap();
    let family = server.descendants();
    assert!(!family.is_empty());
    postgres.kill().await;
    assert!(!family.iter().any(Process::is_alive), "its sessions die with it");
    postgres.start_again().await.unwrap();
    postgres.stop().await.unwrap();
    postgres.start_again().await.unwrap();
    query(&copy, "SELECT cargo FROM kept").await.unwrap();
    postgres.drop_database("copy").await.unwrap();
    postgres.drop_database("copy").await.unwrap();
    assert!(query(&copy, "SELECT 1").await.is_err());
    let nobody = url.replace("postgres:", "postgres:x");
    assert!(query(&nobody, "SELECT 1").await.is_err(), "the password is asked for");
    let server = Process::of(postgres.pid().unwrap()).unwrap();
    drop(postgres);
    assert!(!server.is_alive());
}

#[tokio::test]
async fn a_start_that_fails_shows_the_log_and_a_broken_folder_is_made_anew() {
    let dir = Private::new("broken").unwrap();
    let home = dir.path().join("server");
    let mut postgres = Postgres::start(&home).await.unwrap();
    postgres.stop().await.unwrap();
    let control = std::fs::read_dir(home.join("home")).map_or_else(
        |_| panic!("this test needs a checkout that the user postgres can reach"),
        |_| home.join("home/data/global/pg_control"),
    );
    std::fs::remove_file(&control).unwrap();
    let error = postgres.start_again().await.unwrap_err().to_string();
    assert!(error.contains("ended while it started") && error.contains("pg_control"), "{error}");
    drop(postgres);
    let postgres = Postgres::start(&home).await.unwrap();
    query(&postgres.url(), "SELECT 1").await.unwrap();
}

#[tokio::test]
async fn everybody_who_asks_for_the_shared_pair_gets_the_same_one() {
    let (one, two) = tokio::try_join!(Services::shared(), Services::shared()).unwrap();
    assert_eq!(one.rabbit.pid().unwrap(), two.rabbit.pid().unwrap());
    assert_eq!(one.env(), two.env());
    drop(one);
    assert!(Services::running().await.unwrap().is_some(), "they outlive their users");
}

/// The message at the head, taken or only looked at.
async fn get(url: &str, take: bool) -> Vec<u8> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    // A queue that has just come back may be empty for as long as it recovers.
    let give_up = Instant::now() + Duration::from_secs(20);
    let message = loop {
        let options = BasicGetOptions { no_ack: take };
        match channel.basic_get("kept".into(), options).await.unwrap() {
            Some(message) => break message,
            None => assert!(Instant::now() < give_up, "the message is lost"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    channel.close(200, "bye".into()).await.unwrap();
    connection.close(200, "bye".into()).await.unwrap();
    message.delivery.data
}

async fn query(url: &str, statement: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let connection = tokio::spawn(connection);
    let answer = client.batch_execute(statement).await;
    drop(client);
    // A template must not be in use when it is copied.
    connection.await.unwrap().ok();
    answer
}
