//! The statements of a finish, and which of them a batch takes.

use std::collections::BTreeMap;

use super::{Finish, Verdict, columns, lean::Lean};
use crate::ledger::sql::{self, Function};

/// All statements, for one schema and one set of functions.
pub(super) struct Statements {
    /// With the functions of all kinds, for batches of several.
    all: Applying,
    /// With the function of one kind: Postgres refuses a statement for any function in it that is
    /// not there or not to be called, and that must not be the fault of other kinds.
    only: BTreeMap<String, Applying>,
    /// Without functions, for what is not applied.
    none: Applying,
    /// With the functions of all kinds, called so that one that refuses fails nobody else. They are
    /// called by name, so that here too a missing one is the fault of its own kind only.
    pub(super) wary: Applying,
    pub(super) lock: String,
    pub(super) look: String,
    pub(super) result: String,
}

/// The statements that apply functions.
pub(super) struct Applying {
    pub(super) insert: String,
    pub(super) update: String,
    pub(super) lean: Lean,
}

impl Statements {
    pub(super) fn new(schema: &str, functions: &BTreeMap<String, Function>) -> Self {
        let statement = |text: &str| sql::in_schema(text, schema);
        let written = |apply: &str, parts: &Parts, functions: &BTreeMap<String, Function>| {
            let text = |text: &str| {
                let text = text.replace("{result}", parts.result).replace("{due_at}", DUE_AT);
                let text = text.replace("{kept}", parts.kept).replace("{refused}", parts.refused);
                statement(&text.replace("{input}", columns::INPUT)).replace("{apply}", apply)
            };
            let lean = Lean::new(schema, functions);
            Applying { insert: text(INSERT), update: text(UPDATE), lean }
        };
        let applying = |functions: &BTreeMap<String, Function>| {
            written(&sql::apply_expression(functions), &PLAIN, functions)
        };
        let only = functions.iter().map(|(kind, function)| {
            (kind.clone(), applying(&BTreeMap::from([(kind.clone(), function.clone())])))
        });
        Self {
            all: applying(functions),
            only: only.collect(),
            none: applying(&BTreeMap::new()),
            wary: match functions.is_empty() {
                true => applying(functions),
                false => written(&sql::try_apply_expression(schema, functions), &WARY, functions),
            },
            lock: statement(LOCK),
            look: statement(LOOK),
            result: statement(RESULT),
        }
    }

    /// These jobs, with the lean statements for them: all together, or kind by kind where one of
    /// the kinds has a set-wise function.
    pub(super) fn apart<'a, 'b>(&'a self, jobs: &[&'b Finish]) -> Vec<(&'a Lean, Vec<&'b Finish>)> {
        let set_wise = |job: &&Finish| {
            self.only.get(&job.request.kind).is_some_and(|only| only.lean.is_set_wise)
        };
        if !jobs.iter().any(set_wise) {
            return vec![(&self.applying(jobs).lean, jobs.to_vec())];
        }
        let mut kinds: BTreeMap<&str, Vec<&Finish>> = BTreeMap::new();
        for job in jobs {
            kinds.entry(&job.request.kind).or_default().push(job);
        }
        kinds.into_values().map(|jobs| (&self.applying(&jobs).lean, jobs)).collect()
    }

    /// The statements with the functions that these jobs apply and, where they can be had so, with
    /// no others. What fails in company is split, and so meets its own alone in the end.
    pub(super) fn applying(&self, jobs: &[&Finish]) -> &Applying {
        let mut kinds =
            jobs.iter().filter(|job| job.verdict == Verdict::Done).map(|job| &job.request.kind);
        match kinds.next() {
            None => &self.none,
            Some(first) if kinds.all(|kind| kind == first) => {
                self.only.get(first).unwrap_or(&self.none)
            }
            Some(_) => &self.all,
        }
    }
}

/// What differs between statements that fail with their functions and those that tell instead.
struct Parts {
    /// The function's value.
    result: &'static str,
    /// Which rows are written.
    kept: &'static str,
    /// The rows that are told of because they are not.
    refused: &'static str,
}

const PLAIN: Parts = Parts { result: "t.applied", kept: "true", refused: "" };

const WARY: Parts = Parts {
    result: "(t.applied).result",
    kept: "(t.applied).state is null",
    refused: "
 union all
select null, t.id, null, (t.applied).state, (t.applied).message, (t.applied).raised
  from todo t
 where (t.applied).state is not null",
};

/// When a row goes on. Who is parked until he is let go is looked at once more when his deadline is
/// over; a moment later, for the clock of the worker that looks may be behind.
const DUE_AT: &str = "\
case when t.state <> 'parked' or t.due_in is not null then now() + make_interval(secs => t.due_in)
     when t.deadline is null then 'infinity'
     else greatest(t.deadline, now()) + interval '1 second' end";

/// Inserts the rows that are not there yet and applies their functions, in the order of the rows
/// (`by_user`). The functions are volatile, so Postgres evaluates them after the sort.
const INSERT: &str = "\
with input as (select * from {input}),
todo as materialized (
    select i.*, case when i.state = 'done' then {apply} end as applied
      from input i
     where not exists (select from longshore.requests r where r.request_id = i.id)
     order by i.ord
), inserted as (
    insert into longshore.requests
        (request_id, kind, user_id, state, attempt, fence, from_queue, worker, due_at, parked_on,
         error_code, error, result, digest, body, properties, deadline, published_at, received_at,
         finished_at)
    select id, kind, user_id, state, charged, fence, true, $1, {due_at},
           parked_on, error_code, error, {result}, digest, body, properties::json, deadline,
           published_at, received_at, case when state in ('done', 'dead') then clock_timestamp() end
      from todo t
     where {kept}
     order by ord
        on conflict (request_id) do nothing
    returning request_id, result
), history as (
    insert into longshore.attempts (request_id, attempt, worker, outcome, error_code, error)
    select id, charged, $1, outcome, error_code, error from todo where outcome is not null
)
select todo.count, inserted.request_id, inserted.result::text, null::text, null::text, null::bool
  from (select count(*) from todo t where {kept}) todo left join inserted on true{refused}";

const LOCK: &str = "\
select 1 from longshore.requests where request_id = any($1) order by request_id for update";

/// Finishes claimed rows that still carry our fence. See `update` for why they are locked already.
const UPDATE: &str = "\
with input as (select * from {input}),
todo as materialized (
    select i.*, r.attempt - 1 + i.charged as attempt, case when i.state = 'done' then {apply} end as applied
      from input i
      join longshore.requests r on r.request_id = i.id and r.fence = i.fence and r.state = 'running'
     order by i.ord
), history as (
    insert into longshore.attempts (request_id, attempt, worker, outcome, error_code, error)
    select id, attempt, $1, outcome, error_code, error from todo where outcome is not null
), updated as (
    update longshore.requests r
       set state = t.state, attempt = t.attempt, worker = $1,
           due_at = {due_at}, parked_on = t.parked_on,
           crashes = 0, alone = false,
           error_code = t.error_code, error = t.error, result = {result},
           body = case when t.state <> 'done' then r.body end,
           properties = case when t.state <> 'done' then r.properties end,
           finished_at = case when t.state in ('done', 'dead') then clock_timestamp() end
      from todo t
     where r.request_id = t.id and {kept}
    returning r.request_id, r.result::text as result
)
select null::bigint, request_id, result, null::text, null::text, null::bool from updated{refused}";

const LOOK: &str = "\
select request_id, fence, digest, result::text, state <> 'running'
  from longshore.requests where request_id = any($1)";

const RESULT: &str = "update longshore.requests set result = $2::text::jsonb where request_id = $1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_settings_stay_as_they_are_whatever_the_schema_is_called() {
        let function =
            Function { name: "longshore.f".to_owned(), takes_response: true, batch: None };
        let functions = BTreeMap::from([("a.longshore.b".to_owned(), function)]);
        let statements = Statements::new("inbox", &functions);
        let all = &statements.all;
        for (what, text) in [
            ("insert", &all.insert),
            ("update", &all.update),
            ("wary", &statements.wary.insert),
            ("lock", &statements.lock),
        ] {
            assert_eq!(text.contains("E'a.longshore.b'"), what != "lock", "{text}");
            let rest = text.replace("a.longshore.b", "").replace("longshore.f", "");
            assert!(rest.contains("inbox.requests") && !rest.contains("longshore."), "{text}");
        }
        assert!(statements.wary.insert.contains("inbox.try_apply(E'longshore.f'"));
    }
}
