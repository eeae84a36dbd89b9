//! One operation by chance, on both.

use super::*;

impl Pair {
    fn time(&mut self) -> Duration {
        self.number += 1;
        Duration::from_secs(100 + 10 * self.number)
    }

    /// No two are the same to Postgres.
    fn moment(&mut self) -> OffsetDateTime {
        self.number += 1;
        OffsetDateTime::UNIX_EPOCH + Duration::from_secs(self.number)
    }

    /// A request of one of few ids, with one of few bodies.
    pub(super) fn request(&mut self) -> Arc<Request> {
        let number = self.chance.u8(..6);
        let what = ["go", "go", "go", "go", "refuse", "fail"][self.chance.usize(..6)];
        let user = if number < 4 { "u" } else { "v" };
        let body = format!(
            r#"{{"request_id":"r-{number}","kind":"k","user_id":"{user}","payload":{{"do":"{what}"}}}}"#
        );
        // Mostly the body that is filed, or nothing would ever be the same request.
        let filed = self.model.rows.get(&format!("r-{number}")).filter(|_| self.chance.u8(..5) > 0);
        match filed {
            Some(row) => Arc::clone(&row.request),
            None => {
                let message =
                    Message { body: Bytes::from(body), properties: Properties::default() };
                Arc::new(decode(message).unwrap())
            }
        }
    }

    /// Several, each id once.
    fn requests(&mut self) -> Vec<Arc<Request>> {
        let mut requests: Vec<Arc<Request>> = Vec::new();
        for _ in 0..self.chance.usize(1..=3) {
            let request = self.request();
            if requests.iter().all(|other| other.id != request.id) {
                requests.push(request);
            }
        }
        requests
    }

    /// Mostly the fence of the row.
    fn fence(&mut self, id: &str) -> Fence {
        let known = self.fences.entry(id.to_owned()).or_default();
        let row = self.model.rows.get(id).map(|row| row.fence);
        let fence = match (self.chance.u8(..8), row) {
            (0, _) | (_, None) => self.chance.i64(1..1 << 50),
            (1 | 2, _) if !known.is_empty() => known[self.chance.usize(..known.len())],
            (_, Some(fence)) => fence,
        };
        known.push(fence);
        Fence(fence)
    }

    /// At least so many that the last one is not chosen among several that are due at one instant:
    /// which of them comes first is nobody's promise.
    fn untied(&self, limit: usize) -> usize {
        let mut due: Vec<_> = self.model.rows.values().filter_map(|row| row.due_at).collect();
        due.sort();
        (limit..due.len()).find(|at| due[at - 1] != due[*at]).unwrap_or(due.len().max(limit))
    }

    pub(super) async fn operate(&mut self) -> String {
        let who = self.chance.usize(..2);
        let (ledger, worker) = (Arc::clone(&self.ledgers[who]), WORKERS[who]);
        let now = self.now();
        match self.chance.u8(..26) {
            0..=5 => {
                let mut claims = Vec::new();
                for request in self.requests() {
                    let fresh = self.chance.u8(..3) > 0;
                    let fence = if fresh { Fence::new() } else { self.fence(&request.id) };
                    let (redelivered, lease) = (self.chance.bool(), self.time());
                    let received_at = self.moment();
                    claims.push(Claim { request, fence, redelivered, lease, received_at });
                }
                let theirs = join_all(claims.iter().map(|claim| ledger.claim(claim.clone()))).await;
                let theirs: Vec<Claimed> = theirs.into_iter().map(Result::unwrap).collect();
                assert_eq!(theirs, self.model.claim(&claims, worker, now), "{worker}: {claims:?}");
                format!("{worker} claims {}: {theirs:?}", claims.len())
            }
            6..=12 => {
                let mut finishes = Vec::new();
                for request in self.requests() {
                    finishes.push(self.finish_of(request));
                }
                let theirs =
                    join_all(finishes.iter().map(|finish| ledger.finish(finish.clone()))).await;
                for (finish, theirs) in finishes.iter().zip(&theirs) {
                    let heard = |answer: Result<Finished, LedgerError>| match answer {
                        // Whoever did not ask for a result may be told it or not.
                        Ok(Finished::Committed { .. }) if !finish.wants_result => {
                            Ok(Finished::Committed { result: None })
                        }
                        answer => answer,
                    };
                    let ours = self.finish(finish, worker, now);
                    assert_eq!(
                        heard(ours),
                        heard(theirs.clone()),
                        "{worker}: {:?} as {:?}",
                        finish.hold,
                        finish.verdict
                    );
                }
                format!("{worker} finishes {}: {theirs:?}", finishes.len())
            }
            13 | 14 => {
                let gates: Vec<Gate> = match self.chance.u8(..3) {
                    0 => Vec::new(),
                    some => {
                        let (most, probes) = (self.chance.usize(0..=2), some == 1);
                        vec![Gate { on: "bank".to_owned(), most, probes }]
                    }
                };
                let parked = |gate: &Gate| {
                    let rows = self.model.rows.values();
                    rows.filter(|row| row.parked_on.as_ref() == Some(&gate.on)).count()
                };
                let limit = match gates.first() {
                    None => {
                        let limit = self.chance.usize(1..=4);
                        self.untied(limit)
                    }
                    // Nothing is left for what is due.
                    Some(gate) if parked(gate) >= gate.most => gate.most,
                    Some(_) => 1_000,
                };
                let ask = Ask { limit, gates, lease: self.time() };
                let theirs = ledger.due(&ask).await.unwrap();
                let theirs = said(&theirs);
                let fence = |id: &str| Fence(theirs.get(id).map_or(0, |(fence, _)| *fence));
                let ours = self.model.due(&ask, worker, now, fence);
                assert_eq!(said(&ours), theirs);
                format!("{worker} takes due {theirs:?}")
            }
            24 => {
                let wanted = OfUsers {
                    after: ["", "u"][self.chance.usize(..2)].to_owned(),
                    each: self.chance.usize(1..=2),
                    most: self.chance.usize(1..=3),
                    not_of: [vec![], vec!["u".to_owned()]][self.chance.usize(..2)].clone(),
                };
                let lease = self.time();
                let theirs = said(&ledger.of_users(&wanted, lease).await.unwrap());
                let fence = |id: &str| Fence(theirs.get(id).map_or(0, |(fence, _)| *fence));
                let ours = self.model.of_users(&wanted, lease, worker, now, fence);
                assert_eq!(said(&ours), theirs, "{wanted:?}");
                format!("{worker} takes of users {theirs:?}")
            }
            15 | 16 => {
                let id = self.request().id.clone();
                let (fence, time) = (self.fence(&id), self.time());
                let held = [Lease { id, fence, time }];
                ledger.renew(&held).await.unwrap();
                self.model.renew(&held, now);
                format!("{worker} renews {held:?}")
            }
            17 => {
                let id = self.request().id.clone();
                let fence = self.fence(&id);
                let theirs = ledger.suspect(&id, fence).await.unwrap();
                assert_eq!(theirs, self.model.suspect(&id, fence));
                format!("{worker} suspects {id}: {theirs}")
            }
            18 => {
                let ahead = [505, 1_005, 3_005][self.chance.usize(..3)];
                self.ahead += Duration::from_secs(ahead);
                let passes = format!(
                    "update longshore.requests set due_at = due_at - make_interval(secs => {ahead})"
                );
                self.client.batch_execute(&passes).await.unwrap();
                format!("{ahead} s pass")
            }
            19..=21 => {
                let mut entries = Vec::new();
                for request in [self.requests(), self.requests()].concat() {
                    let fresh = self.chance.u8(..3) > 0;
                    let fence = if fresh { Fence::new() } else { self.fence(&request.id) };
                    let received_at = OffsetDateTime::now_utc();
                    entries.push(Entry { request, fence, received_at });
                }
                let theirs = ledger.enter(&entries).await.unwrap();
                assert_eq!(theirs, self.model.enter(&entries), "{entries:?}");
                format!("{} enter: {theirs:?}", entries.len())
            }
            22 | 23 => {
                let user = ["u", "v"][self.chance.usize(..2)].to_owned();
                let whose =
                    [Whose::Everybodys, Whose::Theirs(vec![user])][self.chance.usize(..2)].clone();
                let theirs = ledger.advance(&whose).await.unwrap();
                assert_eq!(theirs, self.model.advance(&whose, now), "{whose:?}");
                assert_eq!(ledger.in_line(4).await.unwrap(), self.model.in_line(4));
                format!("{theirs} advance of {whose:?}")
            }
            _ => {
                // A failover that lost it.
                let id = self.request().id.clone();
                let lost = "delete from longshore.requests where request_id = $1";
                self.client.execute(lost, &[&id]).await.unwrap();
                self.model.rows.remove(&id);
                format!("the row of {id} is lost")
            }
        }
    }

    fn finish_of(&mut self, request: Arc<Request>) -> Finish {
        let fence = self.fence(&request.id);
        let failure = Failure::new(ErrorCode::CallFailed, "it failed");
        let (due_in, received_at) = (self.time(), self.moment());
        let verdict = match self.chance.u8(..7) {
            0..=2 => Verdict::Done,
            3 => Verdict::Waiting { failure, due_in },
            4 | 5 => match self.chance.u8(..4) {
                0 => Verdict::Parked { on: "bank".to_owned(), due_in: None },
                1 => Verdict::Parked { on: USER.to_owned(), due_in: None },
                _ => Verdict::Parked { on: "stop".to_owned(), due_in: Some(due_in) },
            },
            _ => Verdict::Dead { failure },
        };
        let hold = if self.chance.u8(..3) == 0 { Hold::Fresh(fence) } else { Hold::Claimed(fence) };
        Finish {
            request,
            hold,
            verdict,
            charged: self.chance.bool(),
            response: None,
            wants_result: self.chance.bool(),
            steps: None,
            ends: None,
            received_at,
        }
    }

    /// As [`crate::ledger::file`] does it, with the model.
    pub(super) fn finish(
        &mut self,
        finish: &Finish,
        worker: &str,
        now: Duration,
    ) -> Result<Finished, LedgerError> {
        let mut apply = |job: &Finish| {
            let text = |what: &str| job.request.payload.contains(what);
            let failed = |code, error: &str| Failure::new(code, error);
            match () {
                () if text("refuse") => {
                    Err(StepError::Refused(failed(ErrorCode::ApplyRefused, "no (SQLSTATE P0001)")))
                }
                () if text("fail") => Err(StepError::Transient {
                    failure: failed(ErrorCode::ApplyFailed, "later (SQLSTATE 40001)"),
                    retry_in: None,
                }),
                () => Ok(Some(format!("\"{}\"", job.request.id))),
            }
        };
        let mut finish = finish.clone();
        loop {
            let jobs = std::slice::from_ref(&finish);
            let answers = self.model.finish(jobs, worker, now, false, &mut apply);
            match (answers.map(|mut answers| answers.remove(0)), finish.hold) {
                (Ok(Ok(Finished::Gone)), Hold::Claimed(fence)) => finish.hold = Hold::Fresh(fence),
                (Ok(answer), _) => return answer.map_err(LedgerError::Step),
                (Err(error), _) => return Err(LedgerError::Step(error)),
            }
        }
    }
}

/// What is told of each, by id: the fence comes from chance.
fn said(due: &[Due]) -> BTreeMap<String, (i64, String)> {
    let each = due.iter().map(|due| {
        let Due { attempt, crashes, in_line, parked_on, .. } = due;
        let told = format!("{attempt} {crashes} {in_line} {parked_on:?}");
        (due.request.as_ref().unwrap().id.clone(), (due.fence.0, told))
    });
    each.collect()
}
