//! A worker and the versions of its servers: what is told of them, and what follows.

use longshore::queue::Broker;
use longshore_dev::{proxy::Proxy, services::Services};
use serde_json::{Value, json};

use crate::support::{Disguise, Place, Worker, through};

/// What the worker says its broker is.
async fn broker(worker: &Worker) -> Broker {
    let told = worker.until_event("queue.broker").await;
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    Broker { product: text("product"), version: text("version") }
}

fn count(worker: &Worker, event: &str) -> usize {
    worker.log().iter().filter(|line| line["event"] == event).count()
}

#[tokio::test]
async fn the_servers_are_told_once_and_not_again_at_each_connection() {
    let services = Services::shared().await.unwrap();
    let proxy = Proxy::start(services.rabbit.address()).await.unwrap();
    let url = through(&services.rabbit.url(), &proxy);
    let place = Place::on("told_once", &url, &services.postgres.admin_url()).await;
    let mut worker = place.worker().await;
    let broker = broker(&worker).await;
    let server = worker.until_event("ledger.server").await["version"].as_str().unwrap().to_owned();
    assert_eq!(place.database.texts("show server_version").await, [server.as_str()]);

    proxy.cut();
    let again = |line: &Value| line["event"] == "queue.connected" && line["epoch"] != json!(1);
    worker.until_line("is of another connection", again).await;
    assert_eq!((count(&worker, "queue.broker"), count(&worker, "ledger.server")), (1, 1));

    let check = place.cli(&["check"]).await;
    let said = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0), "{said}");
    for version in [format!("it is {broker}"), format!("it is Postgres {server}")] {
        assert!(said.contains(&version), "`{version}` is not in:\n{said}");
    }
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn servers_that_are_too_old_are_told_by_the_log_and_by_a_check() {
    let services = Services::shared().await.unwrap();
    let (rabbit, postgres) = (&services.rabbit, &services.postgres);
    let known = Place::new("known").await;
    let version = broker(&known.worker_unready(&[]).await).await.version;
    let server = known.database.texts("show server_version").await.remove(0);
    // Servers of these versions in all but the name.
    let old = format!("3.9.{}", "9".repeat(version.len() - 4));
    let older = format!("13{}", &server[2..]);
    let rabbit_as_old = Disguise::start(rabbit.address(), &version, &old).await;
    let postgres_as_old = Disguise::start(postgres.address(), &server, &older).await;
    let amqp = rabbit_as_old.of(&rabbit.url());
    let place = Place::on("too_old", &amqp, &postgres_as_old.of(&postgres.admin_url())).await;

    let worker = place.worker().await;
    for (event, words) in [
        ("queue.broker_unsupported", format!("RabbitMQ {old} is too old")),
        ("ledger.server_unsupported", format!("Postgres {older} is older than 14")),
    ] {
        let told = worker.until_event(event).await;
        let fault = told["fault"].as_str().unwrap();
        assert!(fault.starts_with(&words) && told["level"] == "WARN", "{told}");
    }
    // Told, and not refused: it does what it can.
    place.publish("r-1", "user.profile.update", "u", json!({})).await;
    place.until_state("r-1", "done").await;

    let check = place.cli(&["check"]).await;
    let said = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(1), "{said}");
    for words in [format!("{old} is too old"), format!("{older} is older")] {
        assert!(said.contains(&words), "`{words}` is not in:\n{said}");
    }
}

#[tokio::test]
async fn what_is_larger_than_the_broker_takes_is_told_before_and_when_it_is_published() {
    let mut place = Place::new("too_large").await;
    let most = (32 << 20).to_string();
    place.set_value("WORKER__MAX_MESSAGE_BYTES", &most).set_value("LEDGER__BATCH_BYTES", &most);
    let worker = place.worker().await;
    let broker = broker(&worker).await;
    let limited = broker.features().unwrap().max_message_bytes < 32 << 20;
    let check = place.cli(&["check"]).await;
    let said = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(0), "{said}");
    assert_eq!(said.contains("producers are refused what is larger"), limited, "{said}");

    let request = |id: &str, bytes: usize| {
        let payload = json!({"name": "x".repeat(bytes)});
        json!({"request_id": id, "kind": "user.profile.get", "user_id": "u", "payload": payload})
            .to_string()
    };
    let lines = [request("l-1", 10), request("l-2", 17 << 20), request("l-3", 10)].join("\n");
    let published = place.cli_with(&["publish", "-"], &[], &lines).await;
    let said = String::from_utf8(published.stderr).unwrap();
    assert_eq!(published.status.code(), Some(i32::from(limited)), "{said}");
    if limited {
        worker.until_event("worker.message_limit").await;
        let told = said.lines().find(|line| line.contains("line 2")).unwrap();
        assert!(told.contains("larger than the broker takes"), "{told}");
        assert!(told.contains("raise max_message_size in its rabbitmq.conf"), "{told}");
    } else {
        place.until_state("l-2", "done").await;
        assert_eq!(count(&worker, "worker.message_limit"), 0);
    }
    // Its neighbours are published all the same.
    for id in ["l-1", "l-3"] {
        place.until_state(id, "done").await;
    }
}
