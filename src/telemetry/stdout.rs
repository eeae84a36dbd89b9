//! The way out for log lines: a bounded queue and one thread that may wait for a slow pipe, so
//! that no worker ever does. What does not fit is dropped and counted.

use std::{
    io::{self, BufWriter, Stdout, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that may wait; at the usual 500 bytes a line this is 16 MiB.
const QUEUE_LINES: usize = 32_768;

/// How long the end waits for the last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// The counts of this process' log. There is one log in a process, as there is one recorder of
/// metrics, which reads this.
static LOST: OnceLock<Lost> = OnceLock::new();

/// Log lines lost by this process so far.
pub(super) fn lost_lines() -> u64 {
    LOST.get().map_or(0, Lost::count)
}

/// Lines lost, because the queue was full or because stdout failed.
#[derive(Debug, Clone)]
struct Lost {
    queue: ErrorCounter,
    failed: Arc<AtomicU64>,
}

impl Lost {
    fn count(&self) -> u64 {
        self.queue.dropped_lines() as u64 + self.failed.load(Ordering::Relaxed)
    }
}

/// Keeps the thread going; dropping it writes out what waits.
#[derive(Debug)]
pub(super) struct Flush {
    guard: Option<WorkerGuard>,
    lost: Lost,
}

impl Flush {
    /// From now on [`lost_lines`] reports this log.
    pub(super) fn announce(&self) {
        // The first one stays: only one log can be this process' own.
        let _first = LOST.set(self.lost.clone()).is_ok();
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.count()
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let Some(guard) = self.guard.take() else { return };
        // The guard bounds its own wait, except that it complains on stdout when the queue is
        // full, where the stuck pipe is what filled it. Hence not on this thread.
        let (flushed, done) = mpsc::channel::<()>();
        let flush = thread::Builder::new().name("longshore-flush".to_owned()).spawn(move || {
            drop(guard);
            drop(flushed);
        });
        if flush.is_ok() {
            // Ends with an error in both cases: flushed, or too late.
            let _ended = done.recv_timeout(FLUSH_WITHIN).is_err();
        }
    }
}

/// Opens the way to stdout.
pub(super) fn open() -> (NonBlocking, Flush) {
    let failed = Arc::new(AtomicU64::new(0));
    let sink =
        Sink { out: BufWriter::with_capacity(64 * 1024, io::stdout()), failed: failed.clone() };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .thread_name("longshore-log")
        .finish(sink);
    let lost = Lost { queue: writer.error_counter(), failed };
    (writer, Flush { guard: Some(guard), lost })
}

/// Stdout with one write for all lines that have gathered (the thread flushes when its queue is
/// empty), and with a count of the lines that it would not take, which the thread would ignore.
struct Sink {
    out: BufWriter<Stdout>,
    failed: Arc<AtomicU64>,
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.out.write(line)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.out.write_all(line).inspect_err(|_| {
            self.failed.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
