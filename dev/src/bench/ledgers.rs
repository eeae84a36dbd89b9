//! How speed depends on how many requests the ledger remembers.

use anyhow::Context as _;

use super::{
    field::Field,
    load::{Ids, Load},
    run::{self, Run},
    way::Way,
};

/// How many rows are written at once.
const PIECE: usize = 1_000_000;

/// A ledger that was filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filled {
    pub(super) rows: usize,
    /// Bytes on disk for a row, with its indexes.
    pub(super) bytes_a_row: f64,
}

/// Done requests of one to three days ago, as `update` leaves them. Their ids are spread evenly over
/// all that can be, in ascending order: an index that is built so is as dense as one can be, and
/// scattered ids then hit it everywhere.
const FILL: &str = "
insert into longshore.requests
       (request_id, kind, user_id, state, attempt, fence, from_queue, worker, result, digest,
        received_at, finished_at)
select lpad(to_hex(number * (4503599627370495 / $3::bigint)), 13, '0')
           || substr(md5(number::text), 1, 19),
       'user.profile.update', (number % 1000)::text, 'done', 1, number, true, null,
       jsonb_build_object('version', number), sha256(number::text::bytea),
       at, at
  from (select number,
               now() - interval '3 days' + interval '2 days' * (number::float8 / $3::bigint) as at
          from generate_series($1::bigint, $2::bigint) as number) as made";

/// Measures `update` on a ledger of so many rows, which is filled when it is needed first. Ids are
/// scattered, other ones in each round.
pub(super) async fn measure(
    field: &mut Field,
    rows: usize,
    requests: usize,
    round: usize,
) -> anyhow::Result<(Run, Option<Filled>)> {
    let mut filled = None;
    if rows == 0 {
        field.clear().await?;
    } else if field.keep(&database(rows)).await? {
        filled = Some(fill(field, rows).await.context("the ledger cannot be filled")?);
    }
    let load = way().load().map(|load| Load { ids: Ids::Scattered(7 + round as u64), ..load });
    let run = Box::pin(run::measure_here(field, way(), load, requests)).await?;
    Ok((run, filled))
}

/// Gives its place on the disk back.
pub(super) async fn drop(field: &mut Field, rows: usize) -> anyhow::Result<()> {
    field.clear().await?;
    field.postgres.drop_database(&database(rows)).await
}

fn way() -> Way {
    Way::Update
}

fn database(rows: usize) -> String {
    format!("longshore_bench_{rows}")
}

async fn fill(field: &Field, rows: usize) -> anyhow::Result<Filled> {
    for first in (1..=rows).step_by(PIECE) {
        let last = (first + PIECE - 1).min(rows);
        let of = |number: usize| i64::try_from(number);
        field.client.execute(FILL, &[&of(first)?, &of(last)?, &of(rows)?]).await?;
    }
    // Each by itself: several in one string would be a transaction, which vacuum refuses.
    field.client.batch_execute("vacuum (freeze, analyze) longshore.requests").await?;
    field.client.batch_execute("checkpoint").await?;
    let bytes = "select pg_total_relation_size('longshore.requests')::float8";
    let bytes: f64 = field.client.query_one(bytes, &[]).await?.get(0);
    Ok(Filled { rows, bytes_a_row: bytes / rows as f64 })
}
