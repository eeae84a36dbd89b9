//! A broker in distress, or out of patience: a node of these tests' own, for its settings are
//! everybody's.

use std::{collections::BTreeSet, time::Duration};

use longshore::queue::{Broker, Ends};
use longshore_dev::{account, place::Private, rabbit::Rabbit, services::Services, stub::Behaviour};
use serde_json::json;
use tokio::{
    sync::{Mutex, MutexGuard, OnceCell},
    time::timeout,
};

use crate::support::{Load, PATIENCE, Place, envelope, until};

/// The node: started once, used by one test at a time, and ended with this process.
async fn node() -> MutexGuard<'static, (Rabbit, Private)> {
    static NODE: OnceCell<Mutex<(Rabbit, Private)>> = OnceCell::const_new();
    let start = async || {
        let dir = Private::new("node").unwrap();
        let rabbit = Rabbit::start(dir.path().join("node"), "distress").await.unwrap();
        Mutex::new((rabbit, dir))
    };
    NODE.get_or_init(start).await.lock().await
}

/// Has the node run a line of Erlang; what it answers.
async fn eval(rabbit: &Rabbit, line: &str) -> String {
    rabbit.ctl(&["eval", line]).await.unwrap().trim().to_owned()
}

/// How long channels that are opened from now on wait for an acknowledgement, and how often they
/// look, in milliseconds. The setting in the file is not taken for less than a minute.
async fn patience(rabbit: &Rabbit, timeout: u32, look: u32) {
    for (name, value) in [("consumer_timeout", timeout), ("channel_tick_interval", look)] {
        eval(rabbit, &format!("application:set_env(rabbit, {name}, {value}).")).await;
    }
}

/// Raises or clears the memory alarm, and waits until it is so.
async fn alarm(rabbit: &Rabbit, raised: bool) {
    let watermark = if raised { "0.00001" } else { "0.6" };
    rabbit.ctl(&["set_vm_memory_high_watermark", watermark]).await.unwrap();
    until("the node has followed", async || {
        let alarms = eval(rabbit, "rabbit_alarm:get_alarms().").await;
        (alarms.contains("memory") == raised).then_some(())
    })
    .await;
}

/// Waits until the broker holds nothing in this queue, delivered messages included.
async fn until_settled(rabbit: &Rabbit, queue: &str) {
    until("everything is acknowledged", async || {
        let listed = rabbit.ctl(&["--silent", "list_queues", "name", "messages"]).await.unwrap();
        let row = listed.lines().find(|row| row.starts_with(queue))?;
        row.ends_with("\t0").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_memory_alarm_stops_publishers_and_not_the_work() {
    let node = node().await;
    let rabbit = &node.0;
    let postgres = Services::shared().await.unwrap().postgres;
    let mut place = Place::on("alarm", &rabbit.url(), &postgres.admin_url()).await;
    place.set_value("QUEUE__OPERATION_TIMEOUT", "1s");
    // 64 calls at once: long enough at work for an alarm to be raised meanwhile.
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 400 });
    let mut worker = place.worker().await;
    let answers = format!("{}.answers", place.name);
    place.broker.declare(&answers).await;
    let question = |id: &str| {
        envelope(id, json!({"kind": "user.profile.get"}))
            .with(|p| p.with_reply_to(answers.as_str().into()))
    };
    let mut load = Load::default();
    let ask = async |load: &mut Load, id: &str| {
        place.broker.publish(question(id)).await;
        load.add(id, None);
    };

    // From here on the worker publishes, too, and so can be blocked.
    ask(&mut load, "before").await;
    place.broker.take(&answers).await;
    place.publish_load(&mut load, 3_000, 2).await;
    ask(&mut load, "meanwhile").await;
    alarm(rabbit, true).await;
    assert!(worker.done() < load.ids.len(), "all was done before the alarm");

    // Consuming: requests come, are done and are acknowledged all the same.
    worker.until_done(load.ids.len()).await;
    until_settled(rabbit, &place.broker.queue).await;
    let (status, body) = worker.get("/health/ready").await.unwrap();
    assert!(status == 200 && body.contains("\"consuming\""), "{status} {body}");
    // Publishing: the answer is given up in time, and the command says what is known.
    worker.until_event("reply.failed").await;
    let publish = ["publish", "--kind", "user.profile.update", "--user", "p", "--id", "p-1"];
    let blocked = place.cli(&publish).await;
    let said = String::from_utf8_lossy(&blocked.stderr).into_owned();
    assert_eq!(blocked.status.code(), Some(1), "{said}");
    assert!(said.contains("not known whether it was published"), "{said}");
    let log = worker.log();
    assert!(!log.iter().any(|line| line["event"] == "queue.disconnected"), "the line was kept");

    alarm(rabbit, false).await;
    // What the contract asks of a producer that does not know: the same again.
    let again = place.cli(&publish).await;
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    load.add("p-1", Some("p"));
    place.until_state("p-1", "done").await;
    place.broker.reconnect().await;
    // Answers are sent again, each at most once. One that meets the last of the outage is lost, as any
    // may be: so it is asked until one comes.
    let mut answered = Vec::new();
    for number in 1..=20 {
        let id = format!("after-{number}");
        place.broker.publish(question(&id)).await;
        load.add(&id, None);
        let answer = timeout(Duration::from_secs(3), place.broker.take(&answers));
        if let Ok(found) = answer.await {
            answered.push(found.properties.message_id().as_ref().unwrap().as_str().to_owned());
        }
        if answered.last().is_some_and(|id| id.starts_with("after-")) {
            break;
        }
    }
    assert!(answered.last().is_some_and(|id| id.starts_with("after-")), "{answered:?}");
    let once: BTreeSet<&String> = answered.iter().collect();
    assert_eq!(once.len(), answered.len(), "{answered:?}");
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}

#[tokio::test]
async fn a_request_worked_past_the_consumer_timeout_ends_the_subscription_and_is_done_once() {
    let node = node().await;
    let rabbit = &node.0;
    patience(rabbit, 1_500, 500).await;
    let postgres = Services::shared().await.unwrap().postgres;
    let mut place = Place::on("consumer_timeout", &rabbit.url(), &postgres.admin_url()).await;
    place.patient_dependencies("10s").set_value("DEFAULTS__KIND__TIMEOUT", "10s");
    place.stub.behave("mailer", Behaviour::Ok { latency_ms: 4_000 });
    let mut worker = place.worker().await;
    let mut load = Load::default();
    let slow = json!({"kind": "user.welcome.send", "user_id": "slow"});
    place.broker.publish(envelope("slow", slow)).await;
    load.add("slow", None);
    place.stub.until_arrivals("mailer", 1).await;
    place.publish_load(&mut load, 200, 4).await;

    let closed = worker.until_event("queue.disconnected").await;
    let why = closed["error"].as_str().unwrap();
    let told = worker.until_event("queue.broker").await;
    let text = |key: &str| told[key].as_str().unwrap().to_owned();
    let broker = Broker { product: text("product"), version: text("version") };
    match broker.features().unwrap().timeout_ends {
        Ends::Subscription => {
            assert_eq!(closed["cause"], "cancelled", "{closed}");
            assert!(why.contains("consumer timeout"), "{why}");
        }
        Ends::Channel => {
            assert_eq!(closed["cause"], "closed", "{closed}");
            assert!(why.contains("PRECONDITION_FAILED") && why.contains("timed out"), "{why}");
        }
    }
    // It comes again over the new line, to the worker that is at it.
    let again = worker.until_outcome("slow", "duplicate").await;
    assert_eq!(again["redelivered"], json!(true));
    place.until_state("slow", "done").await;
    assert_eq!(place.stub.calls()["slow"].calls, 1);
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
    account::until_empty(&rabbit.url(), &place.broker.queue, PATIENCE).await.unwrap();

    // As it comes.
    patience(rabbit, 1_800_000, 60_000).await;
}
