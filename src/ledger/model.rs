//! The ledger as a plain value: what the statements of this room do to its tables, without Postgres.
//!
//! The simulation runs over it. That it is no fiction is shown by `tests`, which holds it against
//! the statements themselves, in Postgres.

mod line;
mod shares;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{
    Ask, Claim, Claimed, Counts, Due, Fence, Finish, Finished, Hold, Lease, Verdict,
    due::PROBES_OF, session,
};
use crate::{
    clock,
    outcome::StepError,
    request::{Message, Request},
};

/// When something goes on that waits until it is let go.
pub(crate) const NEVER: Duration = Duration::MAX;

/// What tables there are.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) rows: BTreeMap<String, Row>,
    /// How often each was seen, by digest.
    pub(crate) unreadable: BTreeMap<Vec<u8>, u32>,
    /// Attempts that did not go right: id, number, how they ended.
    pub(crate) history: Vec<(String, i32, &'static str)>,
    /// How often each request was applied and committed.
    pub(crate) effects: BTreeMap<String, u32>,
    /// What was applied and committed, in its order.
    pub(crate) applied: Vec<String>,
    /// The last place that was drawn.
    places: u64,
}

/// A row of `requests`; times count from an origin of the caller's.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) request: Arc<Request>,
    pub(crate) state: &'static str,
    pub(crate) attempt: i32,
    pub(crate) fence: i64,
    pub(crate) from_queue: bool,
    pub(crate) worker: String,
    pub(crate) due_at: Option<Duration>,
    pub(crate) parked_on: Option<String>,
    pub(crate) error_code: Option<&'static str>,
    pub(crate) result: Option<String>,
    pub(crate) crashes: i32,
    pub(crate) alone: bool,
    pub(crate) place: Option<u64>,
    received_at: OffsetDateTime,
}

impl Row {
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, "running" | "waiting" | "parked")
    }

    fn is_of(&self, request: &Request) -> bool {
        self.request.message.digest() == request.message.digest()
    }
}

/// What applies a request, or says why not.
pub(crate) type Apply<'a> = &'a mut dyn FnMut(&Finish) -> Result<Option<String>, StepError>;

impl Model {
    /// CLAIM and its LOOK.
    pub(crate) fn claim(&mut self, jobs: &[Claim], worker: &str, now: Duration) -> Vec<Claimed> {
        jobs.iter().map(|job| self.claim_one(job, worker, now)).collect()
    }

    fn claim_one(&mut self, job: &Claim, worker: &str, now: Duration) -> Claimed {
        let due_at = Some(now + job.lease);
        let Some(row) = self.rows.get_mut(&job.request.id) else {
            let row = Row {
                request: Arc::clone(&job.request),
                state: "running",
                attempt: 1,
                fence: job.fence.0,
                from_queue: true,
                worker: worker.to_owned(),
                due_at,
                parked_on: None,
                error_code: None,
                result: None,
                crashes: 0,
                alone: false,
                place: None,
                received_at: job.received_at,
            };
            self.rows.insert(job.request.id.clone(), row);
            return Claimed::Run { attempt: 1, crashes: 0 };
        };
        if !row.is_of(&job.request) {
            return Claimed::Reused;
        }
        let again = row.fence == job.fence.0;
        let take_over = row.from_queue && row.worker != worker && job.redelivered;
        if row.state != "running" || !(again || take_over) {
            return Claimed::Duplicate;
        }
        row.attempt += i32::from(row.alone && !again);
        row.crashes += i32::from(!again);
        row.alone &= again;
        row.fence = job.fence.0;
        worker.clone_into(&mut row.worker);
        row.due_at = due_at;
        Claimed::Run { attempt: row.attempt as u32, crashes: row.crashes as u32 }
    }

    /// LOCK, INSERT, UPDATE and LOOK, with their functions: all of it or nothing. Where it is `wary`
    /// a request that is refused fails nobody else.
    pub(crate) fn finish(
        &mut self,
        jobs: &[Finish],
        worker: &str,
        now: Duration,
        wary: bool,
        apply: Apply<'_>,
    ) -> Result<Vec<Result<Finished, StepError>>, StepError> {
        let mut answers = Vec::new();
        for job in jobs {
            let ours = match (self.rows.get(&job.request.id), job.hold) {
                (None, Hold::Fresh(_)) => true,
                (Some(row), Hold::Claimed(fence)) => row.fence == fence.0 && row.state == "running",
                _ => false,
            };
            answers.push(match (ours, job.verdict == Verdict::Done) {
                (false, _) => Ok(self.look(job)),
                (true, false) => Ok(Finished::Committed { result: None }),
                (true, true) => match apply(job) {
                    Ok(result) => Ok(Finished::Committed { result }),
                    Err(error @ StepError::Refused(_)) if wary => Err(error),
                    Err(error) => return Err(error),
                },
            });
        }
        for (job, answer) in jobs.iter().zip(&answers) {
            let open = self.rows.get(&job.request.id).is_none_or(|row| {
                row.state == "running" && job.hold == Hold::Claimed(Fence(row.fence))
            });
            if let (true, Ok(Finished::Committed { result })) = (open, answer) {
                self.write(job, result.clone(), worker, now);
            }
        }
        Ok(answers)
    }

    fn write(&mut self, job: &Finish, result: Option<String>, worker: &str, now: Duration) {
        let (state, due_in, parked_on, failure) = match &job.verdict {
            Verdict::Done => ("done", None, None, None),
            Verdict::Waiting { failure, due_in } => ("waiting", Some(*due_in), None, Some(failure)),
            Verdict::Parked { on, due_in } => ("parked", *due_in, Some(on.clone()), None),
            Verdict::Dead { failure } => ("dead", None, None, Some(failure)),
        };
        let let_go = (state == "parked").then(|| match job.request.time_left(clock::now()) {
            Some(left) => now + left + Duration::from_secs(1),
            None => NEVER,
        });
        let charged = i32::from(job.charged);
        let before = self.rows.get(&job.request.id);
        let row = Row {
            // What was filed first stays.
            request: before
                .map_or_else(|| Arc::clone(&job.request), |row| Arc::clone(&row.request)),
            state,
            attempt: before.map_or(charged, |row| row.attempt - 1 + charged),
            fence: job.hold.fence(),
            from_queue: before.is_none_or(|row| row.from_queue),
            worker: worker.to_owned(),
            due_at: due_in.map(|due_in| now + due_in).or(let_go),
            parked_on,
            error_code: failure.map(|failure| failure.code.name()),
            result,
            crashes: 0,
            alone: false,
            place: before.and_then(|row| row.place),
            received_at: before.map_or(job.received_at, |row| row.received_at),
        };
        let ended = match state {
            "waiting" => Some("retry"),
            "dead" => Some("dead"),
            _ => None,
        };
        self.history.extend(ended.map(|ended| (job.request.id.clone(), row.attempt, ended)));
        if state == "done" {
            *self.effects.entry(job.request.id.clone()).or_default() += 1;
            self.applied.push(job.request.id.clone());
        }
        self.rows.insert(job.request.id.clone(), row);
    }

    fn look(&self, job: &Finish) -> Finished {
        match (self.rows.get(&job.request.id), job.hold) {
            (None, _) => Finished::Gone,
            (Some(row), hold) if row.fence == hold.fence() && row.state != "running" => {
                Finished::Committed { result: row.result.clone() }
            }
            (Some(_), Hold::Claimed(_)) => Finished::Fenced,
            (Some(row), Hold::Fresh(_)) if row.is_of(&job.request) => Finished::Duplicate,
            (Some(_), Hold::Fresh(_)) => Finished::Reused,
        }
    }

    /// DUE; the fences come from chance there, and from the caller here.
    pub(crate) fn due(
        &mut self,
        ask: &Ask,
        worker: &str,
        now: Duration,
        mut fence: impl FnMut(&str) -> Fence,
    ) -> Vec<Due> {
        let mut taken: Vec<String> = Vec::new();
        for gate in &ask.gates {
            let parked =
                self.rows.iter().filter(|(_, row)| row.parked_on.as_ref() == Some(&gate.on));
            let mut oldest: Vec<_> =
                parked.map(|(id, row)| (row.received_at, row.attempt, id)).collect();
            oldest.sort();
            if gate.probes {
                oldest.truncate(gate.most.max(PROBES_OF));
                oldest.sort_by_key(|(received_at, attempt, _)| (*attempt, *received_at));
            }
            taken.extend(oldest.into_iter().take(gate.most).map(|(.., id)| id.clone()));
        }
        let mut due: Vec<(Duration, String)> = self
            .rows
            .iter()
            .filter(|(id, row)| row.is_open() && !taken.contains(id))
            .filter_map(|(id, row)| Some((row.due_at.filter(|at| *at <= now)?, id.clone())))
            .collect();
        due.sort();
        due.truncate(ask.limit.saturating_sub(taken.len()));
        taken.extend(due.into_iter().map(|(_, id)| id));
        self.bring_up(taken, ask.lease, worker, now, &mut fence)
    }

    fn bring_up(
        &mut self,
        ids: Vec<String>,
        lease: Duration,
        worker: &str,
        now: Duration,
        fence: &mut impl FnMut(&str) -> Fence,
    ) -> Vec<Due> {
        let claimed = ids.into_iter().filter_map(|id| {
            let row = self.rows.get_mut(&id)?;
            let parked_on = row.parked_on.take();
            let vanished = row.state == "running";
            row.attempt += i32::from(!vanished || row.alone);
            row.crashes = if vanished { row.crashes + 1 } else { 0 };
            row.alone = false;
            row.state = "running";
            row.from_queue = false;
            worker.clone_into(&mut row.worker);
            row.fence = fence(&id).0;
            row.due_at = Some(now + lease);
            Some(Due::revive(
                (Some(id), Some(row.request.kind.clone())),
                row.request.message.clone(),
                Fence(row.fence),
                (row.attempt, row.crashes, row.place.is_some()),
                row.received_at,
                parked_on,
            ))
        });
        claimed.collect()
    }

    fn held(&mut self, id: &str, fence: Fence) -> Option<&mut Row> {
        self.rows.get_mut(id).filter(|row| row.fence == fence.0 && row.state == "running")
    }

    /// RENEW.
    pub(crate) fn renew(&mut self, held: &[Lease], now: Duration) {
        for lease in held {
            if let Some(row) = self.held(&lease.id, lease.fence) {
                row.due_at = Some(now + lease.time);
            }
        }
    }

    /// SUSPECT.
    pub(crate) fn suspect(&mut self, id: &str, fence: Fence) -> bool {
        self.held(id, fence).map(|row| row.alone = true).is_some()
    }

    /// UNREADABLE.
    pub(crate) fn keep_unreadable(&mut self, message: &Message) {
        *self.unreadable.entry(digest(message)).or_default() += 1;
    }

    /// COUNTS.
    pub(crate) fn counts(&self) -> Counts {
        let count = |state| self.rows.values().filter(|row| row.state == state).count() as u64;
        let parked = self.rows.values().filter(|row| row.state == "parked");
        let on: BTreeSet<&str> =
            parked.clone().filter_map(|row| row.parked_on.as_deref()).collect();
        let parked = on.into_iter().map(|on| {
            let rows = parked.clone().filter(|row| row.parked_on.as_deref() == Some(on)).count();
            (on.to_owned(), rows as u64)
        });
        Counts {
            running: count("running"),
            waiting: count("waiting"),
            dead: count("dead"),
            parked: parked.collect(),
        }
    }
}

fn digest(message: &Message) -> Vec<u8> {
    let properties = session::json(&message.properties);
    Sha256::new().chain_update(&message.body).chain_update(&properties).finalize().to_vec()
}
