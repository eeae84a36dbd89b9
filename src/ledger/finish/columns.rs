//! The jobs of a batch, column by column, as `unnest` takes them.

use std::borrow::Cow;

use time::OffsetDateTime;
use tokio_postgres::types::ToSql;

use super::{Finish, Verdict, session};
use crate::request::Request;

/// The rows behind the parameters, `$1` being the worker. `request` is built where it is used, so
/// that nothing parses the payload of a request that is not applied.
pub(super) const INPUT: &str = "\
unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int[], $9::bigint[],
       $10::float8[], $11::text[], $12::text[], $13::text[], $14::bytea[], $15::bytea[], $16::text[],
       $17::timestamptz[], $18::timestamptz[], $19::timestamptz[], $20::text[])
       with ordinality
    as i(id, kind, user_id, state, payload, response, charged, fence, due_in, parked_on, error_code,
         error, digest, body, properties, deadline, published_at, received_at, outcome, ord)";

pub(super) struct Columns<'a> {
    ids: Vec<&'a str>,
    kinds: Vec<&'a str>,
    users: Vec<&'a str>,
    states: Vec<&'static str>,
    payloads: Vec<Option<&'a str>>,
    responses: Vec<Option<&'a str>>,
    charged: Vec<i32>,
    fences: Vec<i64>,
    due_in: Vec<Option<f64>>,
    parked_on: Vec<Option<&'a str>>,
    codes: Vec<Option<&'static str>>,
    errors: Vec<Option<Cow<'a, str>>>,
    digests: Vec<Vec<u8>>,
    bodies: Vec<Option<&'a [u8]>>,
    properties: Vec<Option<String>>,
    deadlines: Vec<Option<OffsetDateTime>>,
    published: Vec<Option<OffsetDateTime>>,
    received: Vec<OffsetDateTime>,
    outcomes: Vec<Option<&'static str>>,
}

impl<'a> Columns<'a> {
    pub(super) fn of(jobs: &[&'a Finish]) -> Self {
        fn column<'a, T>(jobs: &[&'a Finish], value: impl Fn(&'a Finish) -> T) -> Vec<T> {
            jobs.iter().map(|job| value(job)).collect()
        }
        let done = |job: &Finish| job.verdict == Verdict::Done;
        Self {
            ids: column(jobs, |job| job.request.id.as_str()),
            kinds: column(jobs, |job| job.request.kind.as_str()),
            users: column(jobs, |job| job.request.user_id.as_str()),
            states: column(jobs, |job| match job.verdict {
                Verdict::Done => "done",
                Verdict::Waiting { .. } => "waiting",
                Verdict::Parked { .. } => "parked",
                Verdict::Dead { .. } => "dead",
            }),
            payloads: column(jobs, |job| done(job).then_some(job.request.payload.as_str())),
            responses: column(jobs, |job| job.response.as_deref().filter(|_| done(job))),
            charged: column(jobs, |job| i32::from(job.charged)),
            fences: column(jobs, |job| job.hold.fence()),
            due_in: column(jobs, |job| match &job.verdict {
                Verdict::Waiting { due_in, .. } => Some(due_in.as_secs_f64()),
                Verdict::Parked { due_in, .. } => due_in.map(|due_in| due_in.as_secs_f64()),
                Verdict::Done | Verdict::Dead { .. } => None,
            }),
            parked_on: column(jobs, |job| match &job.verdict {
                Verdict::Parked { on, .. } => Some(on.as_str()),
                _ => None,
            }),
            codes: column(jobs, |job| failure(job).map(|failure| failure.code.name())),
            errors: column(jobs, |job| failure(job).map(|failure| storable(&failure.error))),
            digests: column(jobs, |job| job.request.message.digest().to_vec()),
            bodies: column(jobs, |job| (!done(job)).then_some(&*job.request.message.body)),
            properties: column(jobs, |job| {
                (!done(job)).then(|| session::json(&job.request.message.properties))
            }),
            deadlines: column(jobs, |job| job.request.deadline),
            published: column(jobs, |job| Request::published_at(&job.request)),
            received: column(jobs, |job| job.received_at),
            // What the history keeps: how attempts ended that did not go right.
            outcomes: column(jobs, |job| match job.verdict {
                Verdict::Done => None,
                Verdict::Waiting { .. } => Some("retry"),
                Verdict::Parked { .. } => None,
                Verdict::Dead { .. } => Some("dead"),
            }),
        }
    }

    pub(super) fn parameters<'b>(&'b self, worker: &'b String) -> [&'b (dyn ToSql + Sync); 20] {
        [
            worker,
            &self.ids,
            &self.kinds,
            &self.users,
            &self.states,
            &self.payloads,
            &self.responses,
            &self.charged,
            &self.fences,
            &self.due_in,
            &self.parked_on,
            &self.codes,
            &self.errors,
            &self.digests,
            &self.bodies,
            &self.properties,
            &self.deadlines,
            &self.published,
            &self.received,
            &self.outcomes,
        ]
    }
}

fn failure(job: &Finish) -> Option<&crate::outcome::Failure> {
    match &job.verdict {
        Verdict::Waiting { failure, .. } | Verdict::Dead { failure } => Some(failure),
        Verdict::Done | Verdict::Parked { .. } => None,
    }
}

/// Text without NUL, which Postgres has no place for.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "")) } else { Cow::Borrowed(text) }
}
