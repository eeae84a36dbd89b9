//! A worker process: its log as JSON, its probes, its end.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, interval, timeout},
};

use super::PATIENCE;

pub(crate) struct Worker {
    child: Child,
    pub(crate) pid: u32,
    lines: Arc<Mutex<Vec<Value>>>,
    count: watch::Receiver<usize>,
}

impl Worker {
    pub(crate) async fn start(settings: &Path, environment: Vec<(String, String)>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_longshore"))
            .arg("--config")
            .arg(settings)
            .arg("run")
            .envs(environment)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (told, count) = watch::channel(0);
        let kept = Arc::clone(&lines);
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                let line = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("{line} is not JSON: {error}"));
                kept.lock().unwrap().push(line);
                told.send_modify(|count| *count += 1);
            }
        });
        Self { child, pid, lines, count }
    }

    /// Every line logged so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line, those included that were logged before.
    pub(crate) async fn until_line(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        self.follow(what, |line| {
            found = matches(line).then(|| line.clone());
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Waits until this many attempts have ended as `done`.
    pub(crate) async fn until_done(&self, wanted: usize) {
        let mut done = 0;
        self.follow(&format!("tells of the {wanted}th request done"), |line| {
            done += usize::from(line["event"] == "request.finished" && line["outcome"] == "done");
            done >= wanted
        })
        .await;
    }

    /// How many attempts have ended as `done` so far.
    pub(crate) fn done(&self) -> usize {
        let lines = self.lines.lock().unwrap();
        let done = |line: &&Value| line["event"] == "request.finished" && line["outcome"] == "done";
        lines.iter().filter(done).count()
    }

    /// Shows each line once, from the first on, until `enough` says so.
    async fn follow(&self, what: &str, mut enough: impl FnMut(&Value) -> bool) {
        let mut count = self.count.clone();
        let mut seen = 0;
        let search = async {
            loop {
                count.borrow_and_update();
                // Copied, for whoever looks at a line may look at the whole log.
                let fresh = self.lines.lock().unwrap()[seen..].to_vec();
                if fresh.iter().any(&mut enough) {
                    return;
                }
                seen += fresh.len();
                if count.changed().await.is_err() {
                    panic!("the worker ended without a line that {what}: {:#?}", self.last());
                }
            }
        };
        let found = timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| {
            panic!("no line came that {what}; the last ones: {:#?}", self.last())
        });
    }

    fn last(&self) -> Vec<Value> {
        self.lines.lock().unwrap().iter().rev().take(20).cloned().collect()
    }

    /// Waits for an event.
    pub(crate) async fn until_event(&self, event: &str) -> Value {
        self.until_line(&format!("is the event {event}"), |line| line["event"] == event).await
    }

    /// Waits for the line of a request with this outcome.
    pub(crate) async fn until_outcome(&self, id: &str, outcome: &str) -> Value {
        self.until_line(&format!("tells {outcome} of {id}"), |line| {
            line["event"] == "request.finished"
                && line["request_id"] == id
                && line["outcome"] == outcome
        })
        .await
    }

    /// The lines of finished attempts, of one request.
    pub(crate) fn story(&self, id: &str) -> Vec<Value> {
        self.log()
            .into_iter()
            .filter(|line| line["event"] == "request.finished" && line["request_id"] == id)
            .collect()
    }

    /// Waits until it consumes.
    pub(crate) async fn until_ready(&self) {
        let give_up = Instant::now() + PATIENCE;
        let mut ticks = interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            let ready = self.get("/health/ready").await;
            if ready
                .as_ref()
                .is_some_and(|(status, body)| *status == 200 && body.contains("consuming"))
            {
                return;
            }
            let late = Instant::now() > give_up;
            assert!(
                !late,
                "the worker does not consume, it says {ready:?}; its log: {:#?}",
                self.log()
            );
        }
    }

    /// Asks the admin server; nothing while it cannot be reached.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let address = {
            let lines = self.lines.lock().unwrap();
            let listening = lines.iter().find(|line| line["event"] == "admin.listening")?;
            listening["address"].as_str()?.to_owned()
        };
        let answer = client().get(format!("http://{address}{path}")).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Orders something of the admin server, and reads its answer.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let address = self.until_event("admin.listening").await["address"].clone();
        let url = format!("http://{}{path}", address.as_str().unwrap());
        let order = headers
            .iter()
            .fold(client().post(url), |order, (name, value)| order.header(*name, *value));
        let answer = order.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    /// The value of a metric, given with its labels as `/metrics` shows them.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Sends a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid.to_string())
            .status()
            .unwrap();
        assert!(sent.success());
    }

    /// Sets how many files it may have open, as `prlimit` takes it.
    pub(crate) fn limit_files(&self, limit: &str) {
        let set = std::process::Command::new("prlimit")
            .args(["--pid", &self.pid.to_string(), &format!("--nofile={limit}")])
            .status()
            .unwrap();
        assert!(set.success());
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        timeout(Duration::from_secs(60), self.child.wait())
            .await
            .expect("the worker ends in time")
            .unwrap()
    }

    /// SIGTERM, and its exit code and `worker.drained` line.
    pub(crate) async fn drain(&mut self) -> (Option<i32>, Value) {
        self.signal("TERM");
        let code = self.ended().await.code();
        (code, self.until_event("worker.drained").await)
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it ever had, in bytes, as the kernel has kept it.
    pub(crate) fn peak_resident(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// One for all questions: making one reads the certificates of the system.
fn client() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .pool_max_idle_per_host(0)
            .build()
            .unwrap()
    })
}
