//! The HTTP client alone: calls as `user.welcome.send` makes them, without anything around them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tokio::task::JoinSet;

use super::{super::way::CALLS, Tally};

const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn work(tally: Arc<Tally>, requests: usize) -> anyhow::Result<()> {
    let stub = super::told("STUB_URL")?;
    // A second time it is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .pool_max_idle_per_host(CALLS)
        .build()?;
    tally.serve().await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CALLS {
        let (client, stub) = (client.clone(), stub.clone());
        let (next, tally) = (Arc::clone(&next), Arc::clone(&tally));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= requests {
                    return anyhow::Ok(());
                }
                let user = number % 1_000;
                let payload =
                    json!({"email": format!("user{user}@example.com"), "name": "n".repeat(100)});
                let answer = client
                    .post(format!("{stub}/mailer/welcome/{user}"))
                    .header("accept", "application/json")
                    .header("content-type", "application/json")
                    .header("idempotency-key", format!("\"bench-{number:08}\""))
                    .body(payload.to_string())
                    .send()
                    .await?
                    .error_for_status()?;
                answer.bytes().await?;
                tally.done(1);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    // What was done is asked for once more.
    std::future::pending().await
}
