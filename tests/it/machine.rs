//! A machine that runs out of something.

use longshore_dev::proxy::Proxy;

use crate::support::{Load, Place, address, through};

#[tokio::test]
async fn a_worker_without_file_descriptors_waits_for_them() {
    let place = Place::new("no_files").await;
    let line = Proxy::start(address(&place.broker.url)).await.unwrap();
    let far = through(&place.broker.url, &line);
    let log = ("LONGSHORE__LOG__LEVEL", "info,longshore::queue=debug");
    let mut worker = place.worker_with(&[("AMQP_URL", &far), log]).await;
    let mut load = Load::default();
    place.publish_load(&mut load, 100, 3).await;
    worker.until_done(100).await;
    // What is open stays open; nothing can be opened any more.
    worker.limit_files("3:");
    line.cut();
    worker
        .until_line("it says what it lacks", |line| {
            line["event"] == "queue.still_disconnected"
                && line["error"].as_str().is_some_and(|error| error.contains("open files"))
        })
        .await;
    place.publish_load(&mut load, 100, 3).await;
    worker.limit_files("1024:");
    place.until_accounted(&load).await;
    // The end of a connection is noticed as before: nothing in the library was left broken.
    line.cut();
    place.publish_load(&mut load, 100, 3).await;
    place.until_accounted(&load).await;
    place.assert_no_attempt_was_burnt().await;
    assert_eq!(worker.drain().await.0, Some(0));
}
