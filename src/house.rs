//! Opens the rooms in order, runs the corridor, and closes them in order.

mod helm;
pub(crate) mod parked;
mod upkeep;

use std::{collections::BTreeMap, panic::resume_unwind, process, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use self::{helm::Helm, upkeep::House};
use crate::{
    admin::{self, Admin},
    config::Config,
    downstream::Downstream,
    handler::{Handler, Holding, Line, Lobby, Suspects},
    kind::{self, Kinds},
    ledger::{Ledger, LedgerError, Schema},
    pause::{Pauses, Reason},
    queue::{self, Identity, Queue},
    stack,
    steps::Steps,
    stop::Stop,
    telemetry::{self, Recorder, metrics, version},
    worker::{Drained, Worker},
};

/// The longest that telling the broker the last of it may take.
const CLOSE_QUEUE: Duration = Duration::from_secs(5);
/// The longest that the admin server waits for an answer under way.
const CLOSE_ADMIN: Duration = Duration::from_secs(2);

/// A worker, ready to run.
pub struct Longshore {
    config: Config,
    steps: BTreeMap<String, Arc<dyn Steps>>,
}

/// Why a worker could not run. What passes by itself (broker or database away) is not among it.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A room refused its settings.
    #[error("{0}")]
    Settings(String),
    /// The ledger's tables are not those of this version.
    #[error("{0}")]
    Schema(String),
    /// The admin server could not start.
    #[error("admin server: {0}")]
    Admin(#[from] admin::Error),
    /// Telemetry could not start.
    #[error("telemetry: {0}")]
    Telemetry(#[from] telemetry::Error),
}

impl Longshore {
    /// A worker that does what the configuration says.
    pub fn new(config: Config) -> Self {
        Self { config, steps: BTreeMap::new() }
    }

    /// Has the requests of one kind worked in Rust. Timeouts and attempts are those of
    /// `[kinds."<name>"]` if there is such a section ([`Config::load_with_steps`]), of
    /// `[defaults.kind]` otherwise.
    #[must_use]
    pub fn kind(mut self, name: &str, steps: impl Steps) -> Self {
        self.steps.insert(name.to_owned(), Arc::new(steps));
        self
    }

    /// Works until `stop` is asked for, and drains.
    ///
    /// # Errors
    /// [`RunError`]: it never began.
    pub async fn run(self, stop: Stop) -> Result<Drained, RunError> {
        let Self { config, steps } = self;
        let recorder = Recorder::install()?;
        metrics::build_info(version::NUMBER, version::COMMIT);
        let identity = identity();
        info!(event = "worker.starting", version = version::VERSION, worker = identity, "starting");
        if !stack::is_large_enough() {
            warn!(
                event = "worker.small_stack",
                "RUST_MIN_STACK is below 67108864: a message with deeply nested headers can abort this process; set it, or call longshore::stack::ensure first in main"
            );
        }
        let pauses = Pauses::default();
        let house = Arc::new(House::new(pauses.clone(), stop.clone()));
        let admin = match config.admin.enabled {
            true => {
                let settings = config.admin.clone();
                Some(admin::start(settings, recorder, house.clone(), house.clone()).await?)
            }
            false => None,
        };
        let drained = work(config, &steps, identity, &house).await;
        if let Some(admin) = admin {
            Admin::stop(admin, CLOSE_ADMIN).await;
        }
        drained
    }
}

async fn work(
    config: Config,
    steps: &BTreeMap<String, Arc<dyn Steps>>,
    identity: String,
    house: &Arc<House>,
) -> Result<Drained, RunError> {
    let (pauses, stop) = (house.pauses.clone(), house.stop.clone());
    for (name, kind) in &config.kinds {
        if kind.does_nothing() != steps.contains_key(name) {
            let error = format!(
                "kinds.{name}: a kind is either configured (`apply`, a [call]) or written in Rust"
            );
            return Err(RunError::Settings(error));
        }
    }
    let kinds = Kinds::new(&config.kinds, steps, &config.default_kind);
    let downstream = Arc::new(
        Downstream::new(&config.dependencies)
            .map_err(|error| RunError::Settings(error.to_string()))?,
    );
    let ledger = Ledger::open(
        config.ledger.clone(),
        &kind::functions(&config.kinds),
        &identity,
        pauses.clone(),
    )
    .map_err(|error| RunError::Settings(format!("ledger: {error}")))?;
    let wishes = match migrated(&ledger, &config, &stop, &pauses).await? {
        true => helm::first_wishes(&ledger, &pauses, &stop).await,
        false => None,
    };
    let Some(wishes) = wishes else {
        ledger.close();
        let drained = Drained::unstarted();
        tell(&drained);
        return Ok(drained);
    };
    ledger.start();
    for finding in ledger.functions(&kind::functions(&config.kinds)).await {
        // Not a reason to stay away: the other kinds can be worked.
        error!(event = "worker.function_unusable", finding, "requests of a kind will fail");
    }
    let settings = config.queue.clone();
    let (queue, inbox) =
        queue::start(settings, pauses.clone(), stop.clone(), Identity { name: identity.clone() })
            .map_err(|error| RunError::Settings(format!("queue: {error}")))?;
    house.opened(queue.follow());
    let ordered = match config.kinds.values().any(|kind| kind.ordered_by.is_some()) {
        true => {
            let name = format!("{identity} (in order)");
            let started = queue::start(
                config.queue.ordered(),
                pauses.clone(),
                stop.clone(),
                Identity { name },
            );
            Some(started.map_err(|error| RunError::Settings(format!("queue: {error}")))?)
        }
        false => None,
    };
    let (ordered, in_order) = ordered.unzip();
    let handler = Arc::new(Handler {
        ledger: ledger.clone(),
        downstream,
        kinds,
        replies: queue.replies(),
        pauses: pauses.clone(),
        holding: Holding::default(),
        suspects: Suspects::default(),
        line: Line::default(),
        lobby: Lobby::new(
            config.worker.concurrency,
            config.worker.slots(config.worker.user_share),
            config.may_wait(),
        ),
        max_message_bytes: config.worker.max_message_bytes,
    });
    let worker = Worker::new(handler.clone(), config.worker.clone(), pauses, stop.clone());
    let helm = Arc::new(Helm::new(handler.clone(), identity, &wishes));
    house.manned(helm.clone());
    let upkeep = upkeep::start(house.clone(), handler, helm, &config, worker.slots.clone());
    let lost_before = async {
        stop.asked().await;
        queue.lost() + ordered.as_ref().map_or(0, Queue::lost)
    };
    // On a thread of the runtime, where the tasks it begins need not be handed over to another.
    let worker = AbortOnDropHandle::new(tokio::spawn(worker.run(inbox, in_order)));
    let worked = async { worker.await.unwrap_or_else(|error| resume_unwind(error.into_panic())) };
    let (mut drained, lost_before) = tokio::join!(worked, lost_before);
    let (mut closed, in_order) = tokio::join!(queue.close(CLOSE_QUEUE), async {
        match ordered {
            Some(ordered) => Some(ordered.close(CLOSE_QUEUE).await),
            None => None,
        }
    });
    if let Some(in_order) = in_order {
        closed.lost += in_order.lost;
        closed.unbegun += in_order.unbegun;
        closed.unsettled += in_order.unsettled;
    }
    drop(upkeep);
    ledger.close();
    // What was lost in earlier outages has long been delivered again.
    drained.lost = closed.lost.saturating_sub(lost_before);
    drained.given_back += closed.unbegun + closed.unsettled;
    tell(&drained);
    Ok(drained)
}

/// The one line at the end, however far the start had come.
fn tell(drained: &Drained) {
    info!(
        event = "worker.drained",
        finished = drained.finished,
        given_back = drained.given_back,
        interrupted = drained.interrupted,
        lost = drained.lost,
        seconds = drained.took.as_secs_f64(),
        forced = drained.forced,
        "drained"
    );
}

/// Waits for Postgres and looks at the ledger's tables; false when a stop came first.
async fn migrated(
    ledger: &Ledger,
    config: &Config,
    stop: &Stop,
    pauses: &Pauses,
) -> Result<bool, RunError> {
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.asked() => return Ok(false),
            looked = ledger.schema() => looked,
        };
        match looked {
            Ok(Schema::Current) => {
                if pauses.remove(&Reason::Postgres) {
                    metrics::paused(&Reason::Postgres.to_string(), false);
                }
                return Ok(true);
            }
            Ok(schema) => return Err(RunError::Schema(schema.remedy(&config.ledger.schema))),
            Err(LedgerError::Away(error)) => {
                if ledger.is_news(&error) {
                    warn!(
                        event = "ledger.away",
                        error,
                        endpoint = ledger.endpoint(),
                        "postgres is away, nothing is consumed until it is there"
                    );
                    metrics::paused(&Reason::Postgres.to_string(), true);
                    pauses.add(Reason::Postgres);
                }
            }
            Err(LedgerError::Step(error)) => return Err(RunError::Schema(format!("{error:?}"))),
        }
        tokio::select! {
            () = stop.asked() => return Ok(false),
            () = sleep(config.ledger.probe_interval) => {}
        }
    }
}

/// How this worker is known to the broker, to Postgres and in the ledger.
fn identity() -> String {
    let host = gethostname::gethostname();
    format!("longshore@{}:{}:{:04x}", host.to_string_lossy(), process::id(), fastrand::u16(..))
}
