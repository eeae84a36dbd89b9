//! A backlog is the broker's and the ledger's to hold, not the worker's.

#![expect(clippy::print_stdout, reason = "what was measured is for people to read")]

use std::time::Duration;

use serde_json::json;

use crate::support::{Place, Worker, until_within};

/// The most that a worker may ever hold in memory, in its debug build.
const BOUND: u64 = 96 << 20;
/// How long a backlog may take, on a machine that has other things to do.
const BACKLOG: Duration = Duration::from_secs(180);

/// Waits until all of it is done, looking at the memory by the way, and tells the peak in MiB.
async fn until_worked(place: &Place, worker: &Worker, wanted: i64) -> u64 {
    until_within(BACKLOG, &format!("{wanted} requests are done"), async || {
        assert!(worker.resident() < BOUND, "{} MiB", worker.resident() >> 20);
        // Looked at in this order, for counting all that is done is not free.
        let open = "select count(*) from (select 1 from longshore.requests
            where state in ('running', 'waiting', 'parked') limit 1) open";
        if place.broker.ready(&place.broker.queue).await > 0
            || place.database.number(open).await > 0
        {
            return None;
        }
        (place.database.count("done").await == wanted).then_some(())
    })
    .await;
    let peak = worker.peak_resident();
    assert!(peak < BOUND, "{} MiB at its peak", peak >> 20);
    peak >> 20
}

#[tokio::test]
async fn a_hundred_thousand_waiting_messages_do_not_fill_the_memory() {
    let mut place = Place::new("memory_queue").await;
    place.set("[log]\nrequests = \"problems\"");
    // The queue is there once a worker has been.
    place.worker().await.kill().await;
    for round in 0..100 {
        let bodies: Vec<Vec<u8>> = (0..1_000)
            .map(|number| {
                let id = format!("m-{round}-{number}");
                let body = json!({"request_id": id, "kind": "user.profile.update",
                    "user_id": number.to_string(), "payload": {"name": "Ada"}});
                serde_json::to_vec(&body).unwrap()
            })
            .collect();
        place.broker.publish_all(&bodies).await;
    }
    let started = std::time::Instant::now();
    let worker = place.worker().await;
    let peak = until_worked(&place, &worker, 100_000).await;
    assert_eq!(place.database.number("select sum(version)::bigint from app.users").await, 100_000);
    println!("100,000 messages: {peak} MiB at the peak, {:?}", started.elapsed());
}

#[tokio::test]
async fn twenty_thousand_rows_that_are_due_do_not_fill_the_memory() {
    let mut place = Place::new("memory_due").await;
    place.set("[log]\nrequests = \"problems\"");
    place
        .database
        .execute(
            "insert into longshore.requests (request_id, kind, user_id, state, attempt, fence,
                 from_queue, due_at, parked_on, digest, body, properties, received_at)
             select 'm-' || n, 'user.profile.update', n % 1000, 'parked', 0, 0, true, now(), 'mailer',
                    sha256(body), body, '{}', now()
               from generate_series(1, 20000) n,
                    lateral (select convert_to(format('{\"request_id\": \"m-%s\", \"kind\": \"user.profile.update\",
                        \"user_id\": \"%s\", \"payload\": {\"name\": \"Ada\"}}', n, n % 1000), 'UTF8')) as b(body)",
        )
        .await;
    let worker = place.worker().await;
    let peak = until_worked(&place, &worker, 20_000).await;
    assert_eq!(place.database.number("select sum(version)::bigint from app.users").await, 20_000);
    println!("20,000 due rows: {peak} MiB at the peak");
}
