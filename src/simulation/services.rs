//! The kinds of the simulation and the services that they call, behind the real breaker.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    process::Process,
    world::{Mood, World},
};
use crate::{
    downstream::{Downstream, Judged, Settings, Verdict, breaker},
    kind::{self, Kinds, OrderedBy},
    outcome::{ErrorCode, Failure, StepError},
    request::Request,
    steps::{StepFuture, Steps},
};

/// Attempts of each request.
pub(super) const MAX_ATTEMPTS: u32 = 4;
/// The kinds with a call, and what they call.
pub(super) const CALLING: [(&str, &str); 3] =
    [("pay", "bank"), ("mail", "mailer"), ("visit", "bank")];

const TIMEOUT: Duration = Duration::from_secs(6);

pub(super) fn downstream(world: &World) -> Arc<Downstream> {
    let settings = |max_in_flight| Settings {
        url: "http://127.0.0.1:9".to_owned(),
        timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(1),
        max_response_bytes: 1_024,
        max_in_flight,
        adaptive: false,
        min_in_flight: 1,
        rate: None,
        burst: None,
        when_full: world.plan.limits.when_full,
        max_parked: world.plan.max_parked,
        release: crate::downstream::release::Settings { rate: 5.0, growth: 2.0, most: 50.0 },
        budget_header: String::new(),
        headers: BTreeMap::new(),
        ca_file: None,
        breaker: breaker::Settings {
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            minimum_calls: 4,
            consecutive_failures: 3,
            slow_call: Duration::from_secs(2),
            slow_call_rate: 1.0,
            open_for: Duration::from_secs(2),
            open_max: Duration::from_secs(20),
            probes: 1,
            successes: 1,
            probe_timeout: Duration::from_secs(3),
            retry_after_max: Duration::from_secs(20),
            mode: crate::steer::Mode::Automatic,
        },
    };
    let dependencies =
        CALLING.map(|(_, name)| (name.to_owned(), settings(world.plan.max_in_flight)));
    let built = Downstream::new(&BTreeMap::from(dependencies));
    Arc::new(built.expect("the settings are right"))
}

pub(super) fn kinds(
    world: &Arc<World>,
    process: &Arc<Process>,
    downstream: &Arc<Downstream>,
) -> Kinds {
    let settings = kind::Settings {
        apply: Some("app.note".to_owned()),
        apply_batch: None,
        ordered_by: None,
        call: None,
        reply: true,
        max_in_flight: world.plan.limits.of_kind,
        rate: world.plan.limits.rate,
        burst: None,
        when_full: world.plan.limits.when_full,
        max_parked: u64::MAX,
        timeout: TIMEOUT,
        max_attempts: MAX_ATTEMPTS,
        initial_delay: Duration::from_millis(500),
        max_delay: Duration::from_secs(8),
        multiplier: 2.0,
    };
    let steps = CALLING.map(|(kind, dependency)| {
        let steps = Calling {
            world: Arc::clone(world),
            process: Arc::clone(process),
            downstream: Arc::clone(downstream),
            dependency,
        };
        (kind.to_owned(), Arc::new(steps) as Arc<dyn Steps>)
    });
    let ordered = kind::Settings { ordered_by: Some(OrderedBy::UserId), ..settings.clone() };
    let configured = BTreeMap::from([
        ("note".to_owned(), settings.clone()),
        ("step".to_owned(), ordered.clone()),
        ("visit".to_owned(), ordered),
    ]);
    Kinds::new(&configured, &BTreeMap::from(steps), &settings)
}

/// A kind with a call. Its function is the model's.
struct Calling {
    world: Arc<World>,
    process: Arc<Process>,
    downstream: Arc<Downstream>,
    dependency: &'static str,
}

impl Steps for Calling {
    fn has_call(&self) -> bool {
        true
    }

    fn call<'a>(&'a self, request: &'a Request, time_left: Duration) -> StepFuture<'a> {
        Box::pin(async move {
            let dependency = self.downstream.get(self.dependency).expect("it is configured");
            dependency.guard(time_left, self.ask(request)).await
        })
    }
}

impl Calling {
    async fn ask(&self, request: &Request) -> Judged<Option<String>> {
        let (world, id) = (&self.world, &request.id);
        world.step(&self.process, 30).await;
        world.tell(&self.process.name, || format!("calls {} for {id}", self.dependency));
        let (mood, refused, claimed) = {
            let mut state = world.state();
            *state.calls.entry(id.clone()).or_default() += 1;
            let mood = state.moods.get(self.dependency).copied().unwrap_or(Mood::Well);
            let refused = state.natures.get(id).is_some_and(|nature| nature.call_refused);
            (mood, refused, state.model.rows.contains_key(id))
        };
        if !claimed {
            world.broke(format!("{id} was called before it was claimed"));
        }
        let failure = |text: &str| Failure::new(ErrorCode::CallFailed, text);
        if mood == Mood::Slow {
            sleep(Duration::from_secs(20)).await;
        }
        world.step(&self.process, 200).await;
        match mood {
            Mood::Failing => Judged {
                result: Err(StepError::Transient { failure: failure("500"), retry_in: None }),
                verdict: Verdict::Failure { retry_after: None },
            },
            Mood::Throttling => {
                let after = Some(Duration::from_secs(2));
                let transient = StepError::Transient { failure: failure("429"), retry_in: after };
                Judged {
                    result: Err(transient),
                    verdict: Verdict::Throttled { retry_after: after },
                }
            }
            Mood::Well | Mood::Slow if refused => {
                let failure = Failure::new(ErrorCode::CallRefused, "422");
                Err(StepError::Refused(failure)).into()
            }
            Mood::Well | Mood::Slow => Ok(Some("{}".to_owned())).into(),
        }
    }
}
