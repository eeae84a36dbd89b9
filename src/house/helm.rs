//! Follows what operators wish: reads it from the ledger, sees that this worker does it, and writes
//! down what comes in through the admin server.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{runtime::Handle, sync::Notify, time::sleep};
use tracing::{error, info};

use super::upkeep::House;
use crate::{
    admin::{DependencyStanding, KindStanding, Refused, Standing, Steered, Steering},
    downstream::Dependency,
    handler::Handler,
    kind::Kind,
    ledger::{self, Counts, Ledger, LedgerError},
    outcome::StepError,
    pause::{Pauses, Reason},
    steer::{Order, Target, Wishes},
    stop::Stop,
    telemetry::metrics,
};

/// What steers one worker.
pub(super) struct Helm {
    handler: Arc<Handler>,
    worker: String,
    runtime: Handle,
    /// Something was just written.
    written: Notify,
    wishes: Mutex<Wishes>,
    counts: Mutex<Counts>,
}

/// Reads what is wished before anything is begun; nothing when a stop comes first.
pub(super) async fn first_wishes(ledger: &Ledger, pauses: &Pauses, stop: &Stop) -> Option<Wishes> {
    loop {
        let read = tokio::select! {
            biased;
            () = stop.asked() => return None,
            read = ledger.wishes() => read,
        };
        match read {
            Ok(wishes) => {
                if wishes.pauses_work() {
                    pauses.add(Reason::Operator);
                }
                return Some(wishes);
            }
            Err(LedgerError::Away(_)) => tokio::select! {
                () = stop.asked() => return None,
                () = sleep(ledger.probe_interval()) => {}
            },
            Err(LedgerError::Step(error)) => {
                unreadable(&error);
                return Some(Wishes::default());
            }
        }
    }
}

impl Helm {
    /// To be called on the main runtime.
    pub(super) fn new(handler: Arc<Handler>, worker: String, first: &Wishes) -> Self {
        let helm = Self {
            handler,
            worker,
            runtime: Handle::current(),
            written: Notify::new(),
            wishes: Mutex::default(),
            counts: Mutex::default(),
        };
        helm.apply(first);
        helm
    }

    /// Reads again and again what is wished, and does it.
    pub(super) async fn follow(self: Arc<Self>, every: Duration) {
        let mut readable = true;
        loop {
            tokio::select! {
                () = sleep(every) => {}
                () = self.written.notified() => {}
            }
            self.handler.pauses.until_without(&Reason::Postgres).await;
            match self.handler.ledger.wishes().await {
                Ok(wishes) => {
                    readable = true;
                    self.apply(&wishes);
                }
                // What was wished last goes on to hold.
                Err(LedgerError::Away(_)) => {}
                Err(LedgerError::Step(error)) => {
                    if readable {
                        unreadable(&error);
                    }
                    readable = false;
                }
            }
        }
    }

    /// What is in the ledger, when it was last counted.
    pub(super) fn counted(&self, counts: &Counts) {
        self.counts().clone_from(counts);
    }

    /// Does what is wished.
    fn apply(&self, wishes: &Wishes) {
        for dependency in self.handler.downstream.iter() {
            let name = dependency.name();
            let (mode, limit, rate) = (wishes.mode(name), wishes.limit(name), wishes.rate(name));
            for (what, now) in dependency.steer(mode, limit, rate) {
                tell(&format!("{what}:{name}"), &now);
            }
        }
        for kind in self.handler.kinds.iter() {
            let paused = wishes.pauses_kind(&kind.name);
            if kind.pause(paused) {
                metrics::kind_paused(&kind.name, paused);
                tell(&kind.parked_on(), if paused { "paused" } else { "resumed" });
            }
        }
        for kind in self.handler.kinds.iter() {
            let name = &kind.name;
            let (limit, rate) = kind.bounds.steer(wishes.kind_limit(name), wishes.kind_rate(name));
            let standing = kind.bounds.standing();
            if limit {
                let now = standing.most.map_or("none".to_owned(), |most| most.to_string());
                tell(&format!("kind-limit:{name}"), &now);
            }
            if rate {
                let now = standing.per.map_or("none".to_owned(), |per| per.rate.to_string());
                tell(&format!("kind-rate:{name}"), &now);
            }
        }
        // Whoever waits for its end is told by the reasons themselves.
        let pauses = &self.handler.pauses;
        if wishes.pauses_work() {
            pauses.add(Reason::Operator);
        } else {
            pauses.remove(&Reason::Operator);
        }
        self.wishes().clone_from(wishes);
    }

    fn standing(&self) -> Standing {
        let counts = self.counts().clone();
        let wishes = self.wishes().clone();
        let parked = |on: &str| {
            counts.parked.iter().find(|(waits_on, _)| waits_on == on).map_or(0, |(_, rows)| *rows)
        };
        let dependencies = self.handler.downstream.iter().map(|dependency| {
            let (name, standing) = (dependency.name(), dependency.standing());
            let breaker = wishes.mode(name).map(|_| "breaker");
            let limit = wishes.limit(name).map(|_| "limit");
            let rate = wishes.rate(name).map(|_| "rate");
            DependencyStanding {
                name: name.to_owned(),
                state: standing.state,
                mode: standing.mode.name(),
                steered: breaker.into_iter().chain(limit).chain(rate).collect(),
                calls: standing.calls,
                failed: standing.failed,
                slow: standing.slow,
                failure_rate: (standing.calls > 0)
                    .then(|| standing.failed as f64 / standing.calls as f64),
                consecutive_failures: standing.consecutive,
                opened: standing.opened,
                open_ms: standing
                    .open_for
                    .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
                in_flight: standing.in_flight,
                max_in_flight: standing.max_in_flight,
                rate: standing.rate,
                waiting: standing.waiting,
                parked: parked(name),
                parked_on_limit: parked(dependency.bounds().on()),
            }
        });
        let kinds = self.handler.kinds.iter().map(|kind| {
            let standing = kind.bounds.standing();
            let limit = wishes.kind_limit(&kind.name).map(|_| "limit");
            let rate = wishes.kind_rate(&kind.name).map(|_| "rate");
            KindStanding {
                name: kind.name.clone(),
                paused: kind.is_paused(),
                steered: limit.into_iter().chain(rate).collect(),
                in_flight: kind.bounds.is_active().then_some(standing.in_flight),
                max_in_flight: standing.most,
                rate: standing.per.map(|per| per.rate),
                waiting: standing.waiting,
                parked: parked(&kind.parked_on()),
                parked_on_limit: parked(kind.bounds.on()),
            }
        });
        Standing {
            worker: self.worker.clone(),
            paused: self.handler.pauses.reasons(),
            dependencies: dependencies.collect(),
            kinds: kinds.collect(),
        }
    }

    /// Whether there is what is to be steered.
    fn known(&self, target: &Target) -> Result<(), Refused> {
        let names = |names: BTreeSet<&str>| match names.len() {
            0 => "none is configured".to_owned(),
            _ => format!("there are {}", names.into_iter().collect::<Vec<_>>().join(", ")),
        };
        let Handler { downstream, kinds, .. } = &*self.handler;
        match target {
            Target::Breaker(name) | Target::Limit(name) | Target::Rate(name)
                if downstream.get(name).is_none() =>
            {
                let known = names(downstream.iter().map(Dependency::name).collect());
                Err(Refused::Unknown(format!("there is no dependency `{name}`: {known}")))
            }
            Target::Kind(name) | Target::KindLimit(name) | Target::KindRate(name)
                if kinds.get(name).is_none() =>
            {
                let known = names(kinds.iter().map(|it: &Kind| it.name.as_str()).collect());
                Err(Refused::Unknown(format!("there is no kind `{name}`: {known}")))
            }
            _ => Ok(()),
        }
    }

    async fn steer(&self, order: &Order, who: String) -> Result<Steered, Refused> {
        self.known(&order.target)?;
        let target = order.target.to_string();
        let ledger::Steered { before, after } =
            self.handler.ledger.steer(order, &who).await.map_err(|error| match error {
                LedgerError::Away(error) => Refused::NotNow(format!(
                    "postgres is away: {error}; nothing is known to be changed"
                )),
                LedgerError::Step(error) => {
                    Refused::Failed(format!("nothing was changed: {}", describe(&error)))
                }
            })?;
        info!(
            event = "steer.written",
            subject = target,
            action = order.action(),
            before,
            after,
            who,
            "an operator steers"
        );
        self.written.notify_one();
        Ok(Steered { target, before, after, who })
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steering for House {
    fn standing(&self) -> Option<Standing> {
        self.helm().map(|helm| helm.standing())
    }

    fn steer(&self, order: Order, who: String) -> BoxFuture<'_, Result<Steered, Refused>> {
        let helm = self.helm().map(Arc::clone);
        async move {
            let Some(helm) = helm else {
                return Err(Refused::NotNow("the worker is starting; try again later".to_owned()));
            };
            // The ledger's connections belong to the main runtime.
            let runtime = helm.runtime.clone();
            let steered = runtime.spawn(async move { helm.steer(&order, who).await }).await;
            steered.unwrap_or_else(|_| Err(Refused::Failed("it was interrupted".to_owned())))
        }
        .boxed()
    }
}

fn tell(target: &str, now: &str) {
    info!(
        event = "steer.applied",
        subject = target,
        now,
        "this worker does what an operator wishes"
    );
}

fn unreadable(step: &StepError) {
    error!(
        event = "steer.unreadable",
        error = describe(step),
        "what operators wish cannot be read, and what was wished last holds; `longshore check` says what is missing"
    );
}

fn describe(error: &StepError) -> String {
    match error {
        StepError::Refused(failure) | StepError::Transient { failure, .. } => failure.error.clone(),
        StepError::NotAdmitted { on, .. } => format!("not admitted by {on}"),
    }
}
