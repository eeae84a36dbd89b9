//! Deadlines: nothing is started when its time is over, and no slot is held much longer than that.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{account::Account, field::Field, load::NEEDS};
use crate::stub::{Behaviour, calls_at};

/// How many of each sort.
const REQUESTS: usize = 100;
/// The budget, and what a slot may be held at most.
const BUDGET: Duration = Duration::from_secs(1);
const HELD_MS: f64 = 1_200.0;

pub(super) async fn run(field: &Field) -> anyhow::Result<Account> {
    let publisher = field.publisher().await?;
    let ids = |sort: &'static str| (0..REQUESTS).map(move |number| format!("{sort}-{number:04}"));
    let in_time = |time: Duration| (OffsetDateTime::now_utc() + time).format(&Rfc3339);

    field.behave(&Behaviour::Ok { latency_ms: 10_000 }).await?;
    publisher.burst(ids("over"), NEEDS, Some(&in_time(Duration::ZERO)?)).await?;
    publisher.burst(ids("short"), NEEDS, Some(&in_time(BUDGET)?)).await?;
    field.until_filed(2 * REQUESTS).await?;
    field.until_quiet().await?;
    field.stage.steer(&["breaker", "geocoder", "open"]).await?;
    field.until_steered("breaker:geocoder").await?;
    publisher.burst(ids("parked"), NEEDS, Some(&in_time(BUDGET)?)).await?;
    field.until_filed(3 * REQUESTS).await?;
    field.until_quiet().await?;

    let mut account = Account::default();
    let dead = "select count(*) from longshore.requests
                 where state = 'dead' and error_code = 'deadline' and request_id like 'SORT-%'";
    let calls = calls_at(field.stub_url()).await?;
    for (sort, called) in [("over", false), ("short", true), ("parked", false)] {
        let dead = field.stage.number(&dead.replace("SORT", sort)).await?;
        let calls = calls.keys().filter(|id| id.starts_with(&format!("{sort}-"))).count();
        account.check(
            dead == REQUESTS as i64 && (called || calls == 0),
            format!("{sort}: {dead} of {REQUESTS} are dead of their deadline, {calls} were called"),
        );
    }
    let held = field.held().await?;
    let longest = held.iter().copied().fold(0.0, f64::max);
    account.check(
        longest <= HELD_MS && !held.is_empty(),
        format!("no slot was held longer than {longest:.0} ms, at most {HELD_MS:.0}"),
    );
    Ok(account)
}
