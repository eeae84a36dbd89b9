//! The batches that the lanes are given, run by the model.

use super::*;

pub(super) struct Claims(pub(super) Arc<World>, pub(super) Arc<Process>);

impl Batch for Claims {
    type Job = Claim;
    type Answer = Claimed;
    const NAME: &'static str = "claim";

    fn id(job: &Claim) -> &str {
        &job.request.id
    }

    fn weight(job: &Claim) -> usize {
        job.request.message.body.len()
    }

    fn alone(_: &Claim) -> bool {
        false
    }

    async fn run(&self, jobs: &[Claim]) -> Result<Vec<Claimed>, BatchError> {
        let what = || format!("claims {}", ids(jobs.iter().map(|job| &*job.request.id)));
        let (theirs, worker) = (jobs.to_vec(), self.1.name.clone());
        let work = move |state: &mut State, now| Ok(state.model.claim(&theirs, &worker, now));
        let claimed = self.0.visit(&self.1, what, work).await;
        self.0.tell(&self.1.name, || format!("{}: {claimed:?}", what()));
        claimed
    }
}

pub(super) struct Finishing(pub(super) Arc<World>, pub(super) Arc<Process>);

impl Finishing {
    async fn visit(
        &self,
        jobs: &[Finish],
        wary: bool,
    ) -> Result<Vec<Result<Finished, StepError>>, BatchError> {
        let what = || {
            let ids = ids(jobs.iter().map(|job| &*job.request.id));
            let verdicts: Vec<_> = jobs.iter().map(|job| word(&job.verdict)).collect();
            format!("finishes {ids} as {}", verdicts.join(", "))
        };
        let (theirs, worker) = (jobs.to_vec(), self.1.name.clone());
        let alone = jobs.len() == 1;
        let work = move |state: &mut State, now| {
            let State { model, natures, .. } = state;
            let mut apply = |job: &Finish| apply(natures, job, alone || wary);
            model.finish(&theirs, &worker, now, wary, &mut apply).map_err(|error| {
                let slow = |id| natures.get(id).is_some_and(|nature| nature.slow);
                match theirs.iter().any(|job| slow(&*job.request.id)) {
                    true if matches!(error, StepError::Transient { .. }) => {
                        BatchError::TimedOut(error)
                    }
                    _ => BatchError::Failed(error),
                }
            })
        };
        let finished = self.0.visit(&self.1, what, work).await;
        self.0.tell(&self.1.name, || format!("{}: {finished:?}", what()));
        finished
    }
}

impl Batch for Finishing {
    type Job = Finish;
    type Answer = Result<Finished, StepError>;
    const NAME: &'static str = "finish";

    fn id(job: &Finish) -> &str {
        &job.request.id
    }

    fn weight(job: &Finish) -> usize {
        job.request.message.body.len()
    }

    fn alone(job: &Finish) -> bool {
        job.steps.is_some()
    }

    async fn run(&self, jobs: &[Finish]) -> Result<Vec<Self::Answer>, BatchError> {
        let done = jobs.iter().filter(|job| job.verdict == Verdict::Done);
        let killer = done
            .map(|job| &job.request.id)
            .find(|id| self.0.state().natures.get(*id).is_some_and(|nature| nature.killer));
        if let Some(killer) = killer {
            self.0.step(&self.1, 5).await;
            *self.0.state().kills.entry(killer.clone()).or_default() += 1;
            self.0.kill(&self.1, &format!("is brought down by {killer}"));
            self.0.is_there(&self.1).await;
        }
        if self.0.strikes(0.01) {
            return Err(BatchError::Raced);
        }
        match self.visit(jobs, false).await {
            // Whether a batch is called with care when somebody is refused is no matter of rules.
            Err(BatchError::Failed(StepError::Refused(_)))
                if jobs.len() > 1 && self.0.state().chance.bool() =>
            {
                self.visit(jobs, true).await
            }
            other => other,
        }
    }
}

/// What the functions do.
fn apply(
    natures: &mut BTreeMap<String, Nature>,
    job: &Finish,
    counts: bool,
) -> Result<Option<String>, StepError> {
    let Some(nature) = natures.get_mut(&job.request.id) else { return Ok(None) };
    if nature.refused {
        let failure = Failure::new(ErrorCode::ApplyRefused, "it is not wanted");
        return Err(StepError::Refused(failure));
    }
    if nature.failures > 0 {
        nature.failures -= u32::from(counts);
        let failure = Failure::new(ErrorCode::ApplyFailed, "a lock");
        return Err(StepError::Transient { failure, retry_in: None });
    }
    Ok(Some(format!("\"{}\"", job.request.id)))
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "done",
        Verdict::Waiting { .. } => "waiting",
        Verdict::Parked { .. } => "parked",
        Verdict::Dead { .. } => "dead",
    }
}

pub(super) fn ids<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.collect::<Vec<_>>().join(" ")
}
