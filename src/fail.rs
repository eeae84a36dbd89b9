//! Fail points: where tests end this process, at a named step of the way.
//!
//! With the feature `fail-points`, `LONGSHORE_FAIL=STEP:ACTION@WHICH` in the environment ends the
//! process at a step: by `kill` (SIGKILL) or `abort`; at the n-th request to come by where WHICH is
//! a number, whenever that request comes by where it is an id. Without the feature nothing of it is
//! compiled.

#[cfg(all(feature = "fail-points", not(debug_assertions)))]
compile_error!("`fail-points` is for tests: build without that feature for release");

#[cfg(not(feature = "fail-points"))]
pub(crate) use self::without::{answer, at};

#[cfg(feature = "fail-points")]
pub(crate) use self::with::{answer, at};

#[cfg(not(feature = "fail-points"))]
mod without {
    /// These requests have come to this step.
    #[inline(always)]
    pub(crate) fn at<'a>(_: &str, _: impl IntoIterator<Item = &'a str>) {}

    /// What has been asked of a server about these requests, at this step.
    #[inline(always)]
    pub(crate) async fn answer<'a, T>(
        _: &str,
        _: impl IntoIterator<Item = &'a str>,
        asked: impl Future<Output = T>,
    ) -> T {
        asked.await
    }
}

#[cfg(feature = "fail-points")]
mod with {
    use std::{
        pin::pin,
        process::{Command, abort, id},
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        thread::sleep,
        time::Duration,
    };

    use futures_util::poll;

    struct Plan {
        step: String,
        abort: bool,
        /// An id, or the how-manieth.
        which: String,
        come: AtomicU64,
    }

    impl Plan {
        fn read() -> Option<Self> {
            let text = std::env::var("LONGSHORE_FAIL").ok()?;
            let (step, rest) = text.split_once(':')?;
            let (action, which) = rest.split_once('@')?;
            let (step, which) = (step.to_owned(), which.to_owned());
            Some(Self { step, abort: action == "abort", which, come: AtomicU64::new(0) })
        }

        fn meets<'a>(&self, step: &str, ids: impl IntoIterator<Item = &'a str>) -> bool {
            let mut ids = ids.into_iter();
            self.step == step
                && match self.which.parse::<u64>() {
                    Ok(number) => ids.any(|_| self.come.fetch_add(1, Relaxed) + 1 == number),
                    Err(_) => ids.any(|id| id == self.which),
                }
        }

        fn end(&self) -> ! {
            if !self.abort {
                let killed = Command::new("kill").args(["-KILL", &id().to_string()]).status();
                drop(killed);
            }
            abort()
        }
    }

    fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(Plan::read).as_ref()
    }

    pub(crate) fn at<'a>(step: &str, ids: impl IntoIterator<Item = &'a str>) {
        if let Some(plan) = plan().filter(|plan| plan.meets(step, ids)) {
            plan.end();
        }
    }

    /// Ends the process when the server has had the time to act, and before its answer is read.
    pub(crate) async fn answer<'a, T>(
        step: &str,
        ids: impl IntoIterator<Item = &'a str>,
        asked: impl Future<Output = T>,
    ) -> T {
        let mut asked = pin!(asked);
        if let Some(plan) = plan().filter(|plan| plan.meets(step, ids)) {
            drop(poll!(asked.as_mut()));
            // This thread only: another one writes what was asked to the socket.
            sleep(Duration::from_millis(300));
            plan.end();
        }
        asked.await
    }
}
