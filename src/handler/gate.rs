//! What a request must pass before it is begun: the share of its user, the limits of its kind and of
//! the dependency that it calls. Who finds one full waits in line for it without a slot, or is parked
//! on it and brought up when it has room.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::{Attempt, Handler};
use crate::{
    kind::{Kind, Work},
    ledger::{Hold, Keeper, Verdict},
    limit::{AT_THE_LATEST, Bounds, Parked, Place, Share, Shares, USER, WhenFull},
    outcome::{GiveBack, Outcome},
    pause::Reason,
    request::Request,
    telemetry::metrics,
};

/// Of those who may wait without a slot, so many at most wait for the same limit: a half, a quarter for
/// the shares of all users.
const FOR_ONE: usize = 2;

/// So large a part of the slots may be held by the requests of one dependency that are before their
/// calls or in them, even if its limit is small: claims take their time, too.
const A_QUARTER: usize = 4;

/// What is the same for all requests of a worker.
pub(crate) struct Gate {
    shares: Option<Shares>,
    /// So many at least one dependency lets in, as long as their calls are not over.
    door: usize,
    pub(super) on_shares: Parked,
    /// Requests that wait without a slot.
    aside: Semaphore,
    most_aside: usize,
    /// Somebody has left what others may be parked on.
    room: Notify,
    pub(super) looking: super::pull::Looking,
}

impl Gate {
    /// For so many slots, so many of them for one user, if that is bounded, and so many requests that
    /// wait without one.
    pub(crate) fn new(slots: usize, share: Option<usize>, aside: usize) -> Self {
        Self {
            shares: share.map(Shares::new),
            door: slots / A_QUARTER,
            on_shares: Parked::default(),
            aside: Semaphore::new(aside),
            most_aside: aside,
            room: Notify::new(),
            looking: super::pull::Looking::default(),
        }
    }

    pub(super) fn shares(&self) -> Option<&Shares> {
        self.shares.as_ref()
    }

    /// Completes when there may be room for somebody who is parked on a limit.
    pub(crate) async fn room(&self) {
        self.room.notified().await;
    }

    /// A place among those who wait without a slot.
    fn aside(&self, full: &Full<'_>, user: &str) -> Option<SemaphorePermit<'_>> {
        let fits = match full {
            Full::Share(shares) => {
                let all = self.most_aside - self.aside.available_permits();
                all < self.most_aside / FOR_ONE && shares.line(user) < shares.most()
            }
            Full::Bounds(bounds) => {
                bounds.when_full() == WhenFull::Wait
                    && bounds.waiting() < self.most_aside.div_ceil(FOR_ONE)
            }
        };
        if fits { self.aside.try_acquire().ok() } else { None }
    }
}

/// The right to work one request.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    /// Due work holds one of its share as well.
    due: Option<OwnedSemaphorePermit>,
}

/// Where a slot comes from.
struct Slots {
    slots: Arc<Semaphore>,
    due: Option<Arc<Semaphore>>,
}

impl Slot {
    pub(crate) fn new(permit: OwnedSemaphorePermit, due: Option<OwnedSemaphorePermit>) -> Self {
        Self { permit: Some(permit), due }
    }

    fn put_back(&mut self) -> Option<Slots> {
        let slots = Arc::clone(self.permit.take()?.semaphore());
        let due = self.due.take().map(|permit| Arc::clone(permit.semaphore()));
        Some(Slots { slots, due })
    }

    async fn take_again(&mut self, from: Slots) {
        if let Some(due) = from.due {
            self.due = due.acquire_owned().await.ok();
        }
        self.permit = from.slots.acquire_owned().await.ok();
    }
}

/// What a request has passed. Those who are parked on it get their turn when it is dropped.
#[derive(Default)]
pub(super) struct Entry<'a> {
    share: Option<Share<'a>>,
    places: [Option<Place<'a>>; 2],
    bounds: [Option<&'a Bounds>; 2],
    gate: Option<&'a Gate>,
}

impl Entry<'_> {
    /// Its call is over: the next one may come, while this one is written down.
    pub(super) fn called(&mut self) {
        let [_, dependency] = &mut self.places;
        if dependency.take().is_some()
            && let (Some(gate), [_, Some(bounds)]) = (self.gate, self.bounds)
            && bounds.parked.any().is_some()
        {
            gate.room.notify_one();
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.places = [None, None];
        let shared = self.share.take().is_some();
        let Some(gate) = self.gate else { return };
        let waits = |parked: &Parked| parked.any().is_some();
        if self.bounds.iter().flatten().any(|bounds| waits(&bounds.parked))
            || shared && waits(&gate.on_shares)
        {
            gate.room.notify_one();
        }
    }
}

/// The same, where there was anything to pass. Boxed, for few have it and each future would have room
/// for it.
pub(super) type Passed<'a> = Option<Box<Entry<'a>>>;

/// What was full.
enum Full<'a> {
    Share(&'a Shares),
    Bounds(&'a Bounds),
}

impl Full<'_> {
    fn on(&self) -> &str {
        match self {
            Self::Share(_) => USER,
            Self::Bounds(bounds) => bounds.on(),
        }
    }
}

/// What one request must pass, in this order: who waits for a share of their own holds up nobody, who
/// waits for a place holds only their own share.
struct Way<'a> {
    shares: Option<&'a Shares>,
    bounds: [Option<&'a Bounds>; 2],
}

impl<'a> Way<'a> {
    fn is_free(&self) -> bool {
        self.shares.is_none() && self.bounds.iter().all(Option::is_none)
    }

    /// All of it, or what is full.
    async fn enter(&self, user: &str, gate: &'a Gate) -> Result<Entry<'a>, Full<'a>> {
        let mut entry = Entry::default();
        if let Some(shares) = self.shares {
            entry.share = Some(shares.try_take(user).ok_or(Full::Share(shares))?);
        }
        for (place, bounds) in entry.places.iter_mut().zip(self.bounds) {
            if let Some(bounds) = bounds {
                *place = Some(bounds.enter(false).await.ok_or(Full::Bounds(bounds))?);
            }
        }
        (entry.bounds, entry.gate) = (self.bounds, Some(gate));
        Ok(entry)
    }

    /// All of it, one after the other, in the order of asking.
    async fn wait(&self, user: &str, pulled: bool, gate: &'a Gate) -> Entry<'a> {
        let mut entry = Entry::default();
        if let Some(shares) = self.shares {
            entry.share = shares.take(user).await;
        }
        for (place, bounds) in entry.places.iter_mut().zip(self.bounds) {
            if let Some(bounds) = bounds {
                let _in_line = bounds.in_line(pulled);
                *place = bounds.enter(true).await;
            }
        }
        (entry.bounds, entry.gate) = (self.bounds, Some(gate));
        entry
    }
}

impl<K: Keeper> Handler<K> {
    fn way<'a>(&'a self, kind: &'a Kind) -> Way<'a> {
        let dependency = match &kind.work {
            Work::Configured { call: Some(call) } => self.downstream.get(&call.dependency),
            Work::Configured { call: None } | Work::Rust(_) => None,
        };
        Way {
            shares: self.gate.shares(),
            bounds: [
                kind.bounds.is_active().then_some(&*kind.bounds),
                // What it does not let through is parked on its breaker, and pays nothing.
                dependency.filter(|it| it.admits()).map(|it| it.door(self.gate.door)),
            ],
        }
    }

    /// Whether a request of this kind has anything to pass.
    pub(super) fn is_limited(&self, kind: &Kind) -> bool {
        kind.bounds.is_active() || kind.has_call() || self.gate.shares.is_some()
    }

    /// Lets a request in, at once or after a wait without its slot.
    ///
    /// # Errors
    /// The outcome where it is not begun: parked on what is full, or left off for a stop or a pause.
    pub(super) async fn enter<'a>(
        &'a self,
        kind: &'a Kind,
        request: &Arc<Request>,
        hold: Hold,
        slot: &mut Slot,
        attempt: &mut Attempt,
    ) -> Result<Passed<'a>, Outcome> {
        let (way, user, gate) = (self.way(kind), &*request.user_id, &self.gate);
        if way.is_free() {
            return Ok(None);
        }
        let changes = self.pauses.changes();
        let entered = way.enter(user, gate).await;
        // It may have taken a visit to the ledger, and a stop may have been asked for meanwhile.
        if self.pauses.changes() != changes && self.nothing_begins(hold).now_or_never().is_some() {
            return Err(self.left_off(request, hold, attempt).await);
        }
        let full = match entered {
            Ok(entry) => return Ok(Some(Box::new(entry))),
            Err(full) => full,
        };
        // Who is parked begins a new life in which no worker has vanished over it: a suspect stays.
        let (pulled, suspect) = (attempt.pulled, attempt.crashes > 0);
        let aside = if pulled || suspect { None } else { self.gate.aside(&full, user) };
        attempt.limited_by = Some(full.on().to_owned());
        if aside.is_none() && !pulled && !suspect {
            metrics::limited(full.on(), "parked");
            // Others need it more while this is written.
            slot.put_back();
            return Err(self.park(request, full.on(), AT_THE_LATEST, hold, attempt).await);
        }
        metrics::limited(full.on(), "waited");
        let Some(slots) = slot.put_back() else {
            return Err(self.left_off(request, hold, attempt).await);
        };
        let since = Instant::now();
        let line = async {
            let line = way.wait(user, pulled, gate);
            let entry = match suspect {
                true => line.await,
                false => timeout(kind.timeout, line).await.ok()?,
            };
            slot.take_again(slots).await;
            Some(entry)
        };
        let waited = tokio::select! {
            biased;
            () = self.nothing_begins(hold) => None,
            entry = line => Some(entry),
        };
        attempt.limit = Some(attempt.limit.unwrap_or_default() + since.elapsed());
        match waited {
            Some(Some(entry)) => Ok(Some(Box::new(entry))),
            Some(None) => Err(self.park(request, full.on(), AT_THE_LATEST, hold, attempt).await),
            None => Err(self.left_off(request, hold, attempt).await),
        }
    }

    /// Completes when a request that waits is to wait no longer: for a stop, and for any pause where it
    /// is not the ledger's yet. Due work goes on, or what is parked would never become less.
    async fn nothing_begins(&self, hold: Hold) {
        match hold {
            Hold::Fresh(_) => self.pauses.until_paused().await,
            Hold::Claimed(_) => self.pauses.until_with(&Reason::Drain).await,
        }
    }

    async fn left_off(&self, request: &Arc<Request>, hold: Hold, attempt: &mut Attempt) -> Outcome {
        match hold {
            Hold::Fresh(_) => {
                let stops = self.pauses.contains(&Reason::Drain);
                let why = if stops { GiveBack::Stop } else { GiveBack::Pause };
                Outcome::GivenBack { why }
            }
            Hold::Claimed(_) => self.park(request, "stop", Duration::ZERO, hold, attempt).await,
        }
    }

    async fn park(
        &self,
        request: &Arc<Request>,
        on: &str,
        due_in: Duration,
        hold: Hold,
        attempt: &mut Attempt,
    ) -> Outcome {
        let parked = Verdict::Parked { on: on.to_owned(), due_in };
        self.settle_unstarted(Arc::clone(request), parked, hold, attempt).await
    }
}
