//! What is known of an attempt while it runs: for its log line, and for whoever interrupts it.

use std::{sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Handler, holding::Held};
use crate::{
    clock,
    downstream::Coming,
    kind::Kind,
    ledger::{Due, Fence, Finish, Hold, Keeper, Verdict},
    outcome::Outcome,
    request::{Malformed, Message, Request},
    telemetry::{RequestLine, metrics},
};

/// What an attempt begins with.
pub(crate) enum Started {
    /// A message from the queue. Boxed, for it is handed on a few times.
    Delivered { message: Box<Message>, redelivered: bool },
    /// A row of the ledger, claimed already.
    Due {
        /// The row.
        due: Due,
        /// Where it was let go for its dependency.
        coming: Option<Coming>,
        /// Where it was let go for a dependency, a limit or a share that has room for it.
        has_room: bool,
    },
}

/// An attempt under way.
pub(crate) struct Attempt {
    started: Instant,
    pub(super) received_at: OffsetDateTime,
    pub(super) fence: Fence,
    /// From 1.
    pub(super) number: u32,
    pub(super) max: Option<u32>,
    source: &'static str,
    let_go: bool,
    pub(super) redelivered: bool,
    /// Workers that vanished over it since an attempt last came to its end.
    pub(super) crashes: u32,
    /// Others of its user wait for its end.
    in_line: bool,
    /// The request that has a running row under our fence, or may have one.
    held: Option<(Arc<Request>, Option<Held>)>,
    request: Option<Arc<Request>>,
    malformed: Option<(Option<String>, Option<String>, Option<String>)>,
    /// It was parked, and let go because there was room: it waits for the rest of it.
    pub(super) has_room: bool,
    /// The limit that it found full, and how long it waited for it.
    pub(super) limited_by: Option<String>,
    pub(super) limit: Option<Duration>,
    pub(super) claim: Option<Duration>,
    pub(super) call: Option<Duration>,
    pub(super) finish: Option<Duration>,
}

impl Attempt {
    pub(crate) fn new(started: &Started, handler: &Handler<impl Keeper>) -> Self {
        let attempt = Self::fresh();
        match started {
            Started::Delivered { redelivered, .. } => Self { redelivered: *redelivered, ..attempt },
            Started::Due { due, coming, has_room } => Self {
                let_go: coming.is_some(),
                has_room: *has_room,
                received_at: due.received_at,
                fence: due.fence,
                number: due.attempt,
                source: "due",
                crashes: due.crashes,
                in_line: due.in_line,
                held: due.request.as_ref().ok().map(|request| {
                    let lease = handler.lease(&request.kind);
                    let held = handler.holding.hold(&request.id, due.fence, lease);
                    (Arc::clone(request), Some(held))
                }),
                ..attempt
            },
        }
    }

    /// A request that is only to be put down.
    pub(crate) fn arrived(request: &Arc<Request>, redelivered: bool) -> Self {
        Self { redelivered, request: Some(Arc::clone(request)), ..Self::fresh() }
    }

    fn fresh() -> Self {
        Self {
            started: Instant::now(),
            received_at: clock::now(),
            fence: Fence::new(),
            number: 1,
            max: None,
            source: "queue",
            let_go: false,
            redelivered: false,
            crashes: 0,
            in_line: false,
            held: None,
            request: None,
            malformed: None,
            has_room: false,
            limited_by: None,
            limit: None,
            claim: None,
            call: None,
            finish: None,
        }
    }

    /// The user whose line it stands in, if it does.
    pub(super) fn in_line_of(&self) -> Option<&str> {
        let request = self.held.as_ref().map(|(request, _)| request).or(self.request.as_ref());
        request.filter(|_| self.in_line).map(|request| request.user_id.as_str())
    }

    pub(super) fn is_of(&mut self, request: &Arc<Request>) {
        self.request = Some(Arc::clone(request));
    }

    pub(super) fn is_malformed(&mut self, malformed: &Malformed) {
        self.malformed =
            Some((malformed.id.clone(), malformed.kind.clone(), malformed.user_id.clone()));
    }

    /// Whether its dependency has let it go.
    pub(super) fn is_let_go(&self) -> bool {
        self.let_go
    }

    /// From here on the ledger may hold a running row for it.
    pub(super) fn claiming(&mut self, request: &Arc<Request>, held: Held) {
        self.held = Some((Arc::clone(request), Some(held)));
    }

    /// Its lease is not renewed any more: should this attempt not end, others may take it over.
    pub(super) fn let_lease_run(&mut self) {
        if let Some((_, held)) = &mut self.held {
            *held = None;
        }
    }

    pub(super) fn claimed(&mut self, number: u32, crashes: u32) {
        self.number = number;
        self.crashes = crashes;
    }

    pub(super) fn held(&self) -> Option<Arc<Request>> {
        self.held.as_ref().map(|(request, _)| Arc::clone(request))
    }

    pub(super) fn finish(&self, request: &Arc<Request>, verdict: Verdict, charged: bool) -> Finish {
        Finish {
            request: Arc::clone(request),
            hold: if self.held.is_some() {
                Hold::Claimed(self.fence)
            } else {
                Hold::Fresh(self.fence)
            },
            verdict,
            charged,
            response: None,
            wants_result: false,
            steps: None,
            // Bounded by the ledger's own statement timeout.
            ends: None,
            received_at: self.received_at,
        }
    }

    /// Tells metrics and log what became of it.
    pub(crate) fn ended(&self, outcome: &Outcome, known: Option<&Kind>) {
        let took = self.started.elapsed();
        let request = self.request.as_deref();
        let (id, kind, user) = match (&self.malformed, request) {
            (_, Some(request)) => (
                Some(request.id.as_str()),
                Some(request.kind.as_str()),
                Some(request.user_id.as_str()),
            ),
            (Some((id, kind, user)), None) => (id.as_deref(), kind.as_deref(), user.as_deref()),
            (None, None) => (None, None, None),
        };
        let failure = outcome.failure();
        let since = request.and_then(Request::published_at).unwrap_or(self.received_at);
        let age = Duration::try_from(clock::now() - since).unwrap_or_default();
        match known {
            Some(kind) if *outcome == Outcome::Done => kind.meters.done(took, age),
            // Kinds that are not configured come from messages: they would be labels without end.
            _ => metrics::request_finished(
                known.map_or("unknown", |kind| &kind.name),
                outcome.name(),
                failure.map(|failure| failure.code.name()),
                took,
            ),
        }
        let (due_in, parked_on) = match outcome {
            Outcome::Retry { due_in, .. } => (Some(*due_in), None),
            Outcome::Parked { on, due_in } => (*due_in, Some(on.as_str())),
            _ => (None, None),
        };
        let millis = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        RequestLine {
            request_id: id,
            user_id: user,
            kind,
            outcome: outcome.name(),
            attempt: Some(self.number),
            max_attempts: self.max,
            error_code: failure.map(|failure| failure.code.name()),
            error: failure.map(|failure| failure.error.as_str()),
            trace_id: request.and_then(|request| request.message.properties.trace_id()),
            app_id: request.and_then(|request| request.message.properties.app_id.as_deref()),
            redelivered: self.redelivered,
            taken_over: (self.crashes > 0).then_some(true),
            source: self.source,
            age_ms: u64::try_from(age.as_millis()).ok(),
            duration_ms: millis(took),
            limited_by: self.limited_by.as_deref(),
            limit_ms: self.limit.map(millis),
            claim_ms: self.claim.map(millis),
            call_ms: self.call.map(millis),
            finish_ms: self.finish.map(millis),
            due_in_ms: due_in.and_then(|due_in| u64::try_from(due_in.as_millis()).ok()),
            parked_on,
        }
        .emit();
    }

    /// The kind it is known by, for the lookup that bounds the labels.
    pub(crate) fn kind(&self) -> Option<&str> {
        match (&self.request, &self.malformed) {
            (Some(request), _) => Some(&request.kind),
            (None, Some((_, kind, _))) => kind.as_deref(),
            (None, None) => None,
        }
    }
}
