//! What became of bad input: in the ledger, in the log, in the broker, and in the worker.

use serde_json::{Value, json};

use super::{Place, Publish, Row, Unreadable, Worker, until};

impl Place {
    /// Publishes a message without a usable id, and sees it kept with body and headers whole.
    pub(crate) async fn until_unreadable(
        &self,
        worker: &Worker,
        message: Publish,
        code: &str,
    ) -> Unreadable {
        let body = message.body.clone();
        self.broker.publish(message.header("origin", "a producer")).await;
        let kept = until("the message is kept as unreadable", async || {
            self.database.unreadable().await.into_iter().find(|kept| kept.body == body)
        })
        .await;
        assert_eq!((kept.error_code.as_str(), kept.seen), (code, 1), "{}", kept.error);
        assert_eq!(kept.properties["headers"]["origin"], "a producer");
        worker
            .until_line(&format!("tells of {code}: {}", kept.error), |line| {
                line["event"] == "request.finished"
                    && line["outcome"] == "dead"
                    && line["error_code"] == code
                    && line["error"] == kept.error.as_str()
            })
            .await;
        kept
    }

    /// Waits until a request is dead with this code, in the ledger and in the log, its body kept.
    pub(crate) async fn until_dead(&self, worker: &Worker, id: &str, code: &str) -> Row {
        let row = self.until_state(id, "dead").await;
        assert_eq!(row.error_code.as_deref(), Some(code), "{:?}", row.error);
        assert!(row.body.is_some());
        let line = worker.until_outcome(id, "dead").await;
        assert_eq!((&line["error_code"], &line["level"]), (&json!(code), &json!("ERROR")));
        row
    }

    /// The worker does the next request, stops cleanly, and leaves nothing in the broker.
    pub(crate) async fn goes_on(&self, mut worker: Worker) {
        self.publish("goes-on", "user.profile.update", "goes-on", json!({"name": "Ada"})).await;
        self.until_state("goes-on", "done").await;
        assert_eq!(self.database.version("goes-on").await, 1);
        self.broker.until_empty().await;
        let (code, drained) = worker.drain().await;
        assert_eq!((code, &drained["given_back"]), (Some(0), &json!(0)), "{drained}");
        for queue in [&self.broker.queue, &self.broker.dead] {
            assert_eq!(self.broker.ready(queue).await, 0, "{queue} is empty at the end");
        }
    }
}

/// A request of the contract as a producer would write it.
pub(crate) fn request(id: &str, kind: &str, user: &str, payload: &str) -> String {
    format!(r#"{{"request_id":"{id}","kind":"{kind}","user_id":"{user}","payload":{payload}}}"#)
}

/// The same request with fields set, replaced or (by null) left out.
pub(crate) fn envelope(id: &str, changes: Value) -> Publish {
    let mut body = json!({"request_id": id, "kind": "user.profile.update", "user_id": "1",
        "payload": {"name": "Ada"}});
    for (field, value) in changes.as_object().unwrap() {
        body[field] = value.clone();
    }
    Publish::json(&body)
}
