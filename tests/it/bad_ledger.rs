//! A ledger that somebody else holds locked for longer than a statement may take, or that is not where it
//! was.

use longshore_dev::stub::Behaviour;
use serde_json::json;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_postgres::NoTls;

use crate::support::{Place, envelope};

#[tokio::test]
async fn a_request_that_cannot_be_written_for_a_while_is_given_back_and_done_later() {
    let place = Place::new("locked").await;
    let worker = place.worker_unready(&[("LONGSHORE__LEDGER__STATEMENT_TIMEOUT", "300ms")]).await;
    worker.until_ready().await;
    let (client, connection) = tokio_postgres::connect(&place.database.url, NoTls).await.unwrap();
    tokio::spawn(connection);
    // As `vacuum full` or a migration does.
    client.batch_execute("begin; lock table longshore.requests").await.unwrap();
    let soon = (OffsetDateTime::now_utc() + Duration::seconds(60)).format(&Rfc3339).unwrap();
    place.broker.publish(envelope("w-1", json!({}))).await;
    place.broker.publish(envelope("w-2", json!({"not_before": soon}))).await;
    place.broker.publish(envelope("w-3", json!({"kind": "user.welcome.send"}))).await;
    for id in ["w-1", "w-2", "w-3"] {
        worker.until_outcome(id, "given_back").await;
    }
    client.batch_execute("commit").await.unwrap();
    for (id, state) in [("w-1", "done"), ("w-2", "parked"), ("w-3", "done")] {
        place.until_state(id, state).await;
        worker.until_outcome(id, state).await;
    }
    assert_eq!(place.database.version("1").await, 1);
    assert_eq!(place.stub.calls()["w-3"].effects, 1);
    place.goes_on(worker).await;
}

#[tokio::test]
async fn a_call_that_was_made_is_kept_while_the_ledger_is_not_where_it_was() {
    let mut place = Place::new("renamed").await;
    // Nothing else reads the table meanwhile, so it is the finish that finds it away.
    place.set_value("LEDGER__DUE_POLL", "60s").set_value("WORKER__COUNTS_INTERVAL", "60s");
    let worker = place.worker().await;
    place.stub.behave("geocoder", Behaviour::Ok { latency_ms: 400 });
    let changes = json!({"kind": "user.address.verify", "payload": {"address": "Elm"}});
    place.broker.publish(envelope("v-1", changes)).await;
    place.stub.until_arrivals("geocoder", 1).await;
    place.database.execute("alter table longshore.requests rename to elsewhere").await;
    worker.until_event("ledger.away").await;
    place.database.execute("alter table longshore.elsewhere rename to requests").await;
    worker.until_outcome("v-1", "done").await;
    let row = place.until_state("v-1", "done").await;
    assert_eq!((row.attempt, place.stub.calls()["v-1"].effects), (1, 1));
    assert_eq!(place.stub.arrivals("geocoder"), 1, "it was called once");
}
