//! Counts and times, and their text for Prometheus.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use ::metrics::{describe_counter, describe_gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tracing::{error, warn};

use super::{Error, metrics, stdout, version};

/// How often samples of histograms are put into their buckets. Until then each is kept whole, so
/// without this the memory of a process that nobody scrapes would grow without end.
/// <https://github.com/metrics-rs/metrics/issues/467>
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The one recorder of this process, once there is one.
static INSTALLED: Mutex<Option<Recorder>> = Mutex::new(None);

/// What records this process' metrics. Clones are the same recorder.
#[derive(Debug, Clone)]
pub struct Recorder {
    prometheus: PrometheusHandle,
    process: Collector,
}

impl Recorder {
    /// Makes this process record. Best done first: what is counted earlier goes nowhere. A second
    /// call returns the same recorder.
    ///
    /// # Errors
    /// [`Error::RecorderSet`] where another recorder was installed by other means,
    /// [`Error::Thread`] where the upkeep cannot be started.
    pub fn install() -> Result<Self, Error> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &*installed {
            return Ok(recorder.clone());
        }
        let prometheus = builder().install_recorder().map_err(|_| Error::RecorderSet)?;
        let recorder = Self { prometheus, process: Collector::default() };
        // Kept before anything else can fail: the process has it now.
        *installed = Some(recorder.clone());

        metrics::describe();
        describe_process();
        metrics::build_info(version::NUMBER, version::COMMIT);
        metrics::log_lines_dropped(0);
        let for_upkeep = recorder.clone();
        // A thread and not a task: it outlives every runtime of the process, as the recorder does.
        thread::Builder::new()
            .name("longshore-upkeep".to_owned())
            .spawn(move || for_upkeep.keep_up())
            .map_err(Error::Thread)?;
        Ok(recorder)
    }

    /// All metrics in the text format of Prometheus, version 0.0.4.
    ///
    /// Done on a thread for blocking work, since it copies every histogram.
    ///
    /// # Errors
    /// [`Error::Render`] where that panicked or the runtime is ending.
    pub async fn render(&self) -> Result<String, Error> {
        let recorder = self.clone();
        tokio::task::spawn_blocking(move || recorder.render_now()).await.map_err(Error::Render)
    }

    fn render_now(&self) -> String {
        self.process.collect();
        metrics::log_lines_dropped(stdout::lost_lines());
        self.prometheus.render()
    }

    /// Never returns. A panic in one round does not end the rounds, for nothing but growing memory
    /// would tell.
    fn keep_up(&self) {
        let mut told = 0;
        loop {
            thread::sleep(UPKEEP_EVERY);
            if catch_unwind(AssertUnwindSafe(|| self.prometheus.run_upkeep())).is_err() {
                error!(
                    event = "metrics.upkeep_panicked",
                    "the upkeep of the metrics panicked and goes on"
                );
            }
            let lost = stdout::lost_lines();
            metrics::log_lines_dropped(lost);
            if lost > told {
                warn!(
                    event = "log.lines_dropped",
                    lines = lost - told,
                    "log lines were dropped because stdout was too slow or failed"
                );
                told = lost;
            }
        }
    }
}

fn builder() -> PrometheusBuilder {
    let suffixes = [("_seconds", metrics::SECONDS_BUCKETS), ("_rows", metrics::ROWS_BUCKETS)];
    suffixes.into_iter().fold(PrometheusBuilder::new(), |builder, (suffix, buckets)| {
        builder
            .set_buckets_for_metric(Matcher::Suffix(suffix.to_owned()), buckets)
            .expect("fails for empty buckets only, and these are constants")
    })
}

/// Help for the metrics of `metrics-process`, from our own page, so that the page is right.
#[expect(clippy::disallowed_macros, reason = "the names come from the page")]
fn describe_process() {
    for described in metrics::PROCESS {
        match described.kind {
            "counter" => describe_counter!(described.name, described.help),
            _ => describe_gauge!(described.name, described.help),
        }
    }
}

#[cfg(test)]
mod tests;
