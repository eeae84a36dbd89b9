//! What a request must pass before it is begun: the share of its user, the limits of its kind and of
//! the dependency that it calls. Who finds one full waits in line for it without a slot, or is parked
//! on it and brought up when it has room.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use super::{Attempt, Handler, Slot};
use crate::{
    downstream::Dependency,
    kind::{Kind, Work},
    ledger::{Hold, Keeper, Verdict},
    limit::{Bounds, Crowd, LATELY, Parked, Place, Share, Shares, USER, WhenFull},
    outcome::{GiveBack, Outcome},
    pause::Reason,
    request::Request,
    telemetry::metrics,
};

/// Of those who may wait without a slot, so many at most wait for the same limit: a half, a quarter for
/// the shares of all users.
const FOR_ONE: usize = 2;

/// However slowly a line goes on, so many may wait in it.
const A_FEW: usize = 16;

/// So large a part of the slots may be held by the requests of one dependency that are before their
/// calls or in them, even if its limit is small, where calls are fast: claims take their time, too.
const A_QUARTER: usize = 4;

/// What is the same for all requests of a worker.
pub(crate) struct Lobby {
    shares: Option<Shares>,
    /// So many at most one dependency lets in whose limit is small, as long as their calls are not over.
    door: usize,
    pub(super) on_shares: Parked,
    /// All requests that come from the queue, limited or not.
    crowd: Crowd,
    /// Requests that wait without a slot.
    aside: Semaphore,
    most_aside: usize,
    /// Somebody has left what others may be parked on.
    room: Notify,
    /// The last user of whom something was brought up.
    pub(super) last_user: Mutex<String>,
}

impl Lobby {
    /// For so many slots, so many of them for one user, if that is bounded, and so many requests that
    /// wait without one.
    pub(crate) fn new(slots: usize, share: Option<usize>, aside: usize) -> Self {
        Self {
            shares: share.map(Shares::new),
            door: slots / A_QUARTER,
            on_shares: Parked::default(),
            crowd: Crowd::new(),
            aside: Semaphore::new(aside),
            most_aside: aside,
            room: Notify::new(),
            last_user: Mutex::default(),
        }
    }

    pub(super) fn shares(&self) -> Option<&Shares> {
        self.shares.as_ref()
    }

    /// Completes when there may be room for somebody who is parked on a limit.
    pub(crate) async fn room(&self) {
        self.room.notified().await;
    }

    /// A request comes from the queue.
    pub(super) fn comes(&self) {
        self.crowd.comes();
    }

    /// A place among those who wait without a slot, while the line is no longer than what gets in within
    /// half of the time that anybody waits: the parked ones join it, too, and who has waited in vain is
    /// parked all the same. Where nearly all that comes waits for the same and its line goes on fast,
    /// whoever else comes from the queue may join it for a while, for to wait costs less than to be
    /// parked: what is prefetched bounds it.
    fn aside(
        &self,
        full: &Full<'_>,
        user: &str,
        hold: Hold,
        patience: Duration,
    ) -> Option<Aside<'_>> {
        let (fits, brisk) = match full {
            Full::Share(shares) => {
                let all = self.most_aside - self.aside.available_permits();
                let half = self.most_aside / FOR_ONE;
                (all < half && shares.line(user) < shares.most(), false)
            }
            Full::Bounds(bounds) if bounds.when_full() == WhenFull::Park => (false, false),
            Full::Bounds(bounds) => {
                let most = bounds.within(patience / 2).max(A_FEW);
                let fits = bounds.waiting() < most.min(self.most_aside.div_ceil(FOR_ONE));
                let fresh = matches!(hold, Hold::Fresh(_));
                (fits, fresh && bounds.is_brisk(self.crowd.lately()))
            }
        };
        let place = if fits { self.aside.try_acquire().ok() } else { None };
        let most = if place.is_none() { Some(2 * LATELY) } else { None };
        (place.is_some() || brisk).then_some(Aside { _place: place, most })
    }
}

/// The right to wait without a slot.
struct Aside<'a> {
    _place: Option<SemaphorePermit<'a>>,
    /// For how long at most: a line that was fast may have come to a halt.
    most: Option<Duration>,
}

/// What a request has passed. Those who are parked on it get their turn when it is dropped.
#[derive(Default)]
pub(super) struct Pass<'a> {
    share: Option<Share<'a>>,
    places: [Option<Place<'a>>; 2],
    bounds: [Option<&'a Bounds>; 2],
    lobby: Option<&'a Lobby>,
}

impl Pass<'_> {
    /// Its call is over: the next one may come, while this one is written down.
    pub(super) fn called(&mut self) {
        let [_, dependency] = &mut self.places;
        if dependency.take().is_some()
            && let (Some(lobby), [_, Some(bounds)]) = (self.lobby, self.bounds)
            && bounds.parked.any()
        {
            lobby.room.notify_one();
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.places = [None, None];
        let shared = self.share.take().is_some();
        let Some(lobby) = self.lobby else { return };
        if self.bounds.iter().flatten().any(|bounds| bounds.parked.any())
            || shared && lobby.on_shares.any()
        {
            lobby.room.notify_one();
        }
    }
}

/// The same, where there was anything to pass. Boxed, for few have it and each future would have room
/// for it.
pub(super) type Passed<'a> = Option<Box<Pass<'a>>>;

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
    dependency: Option<&'a Dependency>,
}

impl<'a> Way<'a> {
    fn is_free(&self) -> bool {
        self.shares.is_none() && self.bounds.iter().all(Option::is_none)
    }

    /// All of it, or what is full.
    async fn enter(&self, user: &str, lobby: &'a Lobby) -> Result<Pass<'a>, Full<'a>> {
        let mut pass = Pass::default();
        if let Some(shares) = self.shares {
            pass.share = Some(shares.try_take(user).ok_or(Full::Share(shares))?);
        }
        for (place, bounds) in pass.places.iter_mut().zip(self.bounds) {
            if let Some(bounds) = bounds {
                *place = Some(bounds.enter(false).await.ok_or(Full::Bounds(bounds))?);
            }
        }
        (pass.bounds, pass.lobby) = (self.bounds, Some(lobby));
        Ok(pass)
    }

    /// The dependency, where others are parked on it already and what is full is its limit.
    fn behind(&self, full: &Full<'_>) -> Option<&'a Dependency> {
        self.dependency.filter(|it| it.is_waited_for() && it.bounds().on() == full.on())
    }

    /// All of it, one after the other, in the order of asking.
    async fn wait(&self, user: &str, has_room: bool, lobby: &'a Lobby) -> Pass<'a> {
        let mut pass = Pass::default();
        if let Some(shares) = self.shares {
            pass.share = shares.take(user).await;
        }
        for (place, bounds) in pass.places.iter_mut().zip(self.bounds) {
            if let Some(bounds) = bounds {
                let _in_line = bounds.in_line(has_room);
                *place = bounds.enter(true).await;
            }
        }
        (pass.bounds, pass.lobby) = (self.bounds, Some(lobby));
        pass
    }
}

impl<K: Keeper> Handler<K> {
    fn way<'a>(&'a self, kind: &'a Kind) -> Way<'a> {
        let dependency = match &kind.work {
            Work::Configured { call: Some(call) } => self.downstream.get(&call.dependency),
            Work::Configured { call: None } | Work::Rust(_) => None,
        };
        // What it does not let through is parked on its breaker, and pays nothing.
        let dependency = dependency.filter(|it| it.admits());
        Way {
            shares: self.lobby.shares(),
            bounds: [
                kind.bounds.is_active().then_some(&*kind.bounds),
                dependency.map(|it| it.door(self.lobby.door)),
            ],
            dependency,
        }
    }

    /// Whether a request of this kind has anything to pass.
    pub(super) fn is_limited(&self, kind: &Kind) -> bool {
        kind.bounds.is_active() || kind.has_call() || self.lobby.shares.is_some()
    }

    /// Lets a request in, at once or after a wait without its slot.
    ///
    /// # Errors
    /// The outcome where it is not begun: parked on what is full, or left off for a stop or a pause.
    pub(super) async fn let_in<'a>(
        &'a self,
        kind: &'a Kind,
        request: &Arc<Request>,
        hold: Hold,
        slot: &mut Slot,
        attempt: &mut Attempt,
    ) -> Result<Passed<'a>, Outcome> {
        let (way, user, lobby) = (self.way(kind), &*request.user_id, &self.lobby);
        if way.is_free() {
            return Ok(None);
        }
        if matches!(hold, Hold::Fresh(_)) {
            way.bounds.iter().flatten().for_each(|bounds| bounds.comes());
        }
        let changes = self.pauses.changes();
        let entered = tokio::select! {
            biased;
            entered = way.enter(user, lobby) => Some(entered),
            // A token takes a visit to the ledger, and that may be away.
            () = self.nothing_begins(hold) => None,
        };
        // The same may have been asked for meanwhile.
        let begins =
            self.pauses.changes() == changes || self.nothing_begins(hold).now_or_never().is_none();
        let full = match entered.filter(|_| begins) {
            Some(Ok(pass)) => return Ok(Some(Box::new(pass))),
            Some(Err(full)) => full,
            None => return Err(self.left_off(request, hold, attempt).await),
        };
        attempt.limited_by = Some(full.on().to_owned());
        // Who is parked begins a new life in which no worker has vanished over it: a suspect stays.
        let (has_room, suspect) = (attempt.has_room, attempt.crashes > 0);
        let behind = if attempt.is_let_go() { None } else { way.behind(&full) };
        let stays = has_room || suspect;
        let aside = if stays || behind.is_some() {
            None
        } else {
            lobby.aside(&full, user, hold, kind.timeout)
        };
        if aside.is_none() && !stays {
            metrics::limited(full.on(), "parked");
            // Others need it more while this is written.
            slot.put_back();
            behind.iter().for_each(|dependency| dependency.turned_away());
            let on = behind.map_or(full.on(), Dependency::name);
            return Err(self.park(request, on, None, hold, attempt).await);
        }
        metrics::limited(full.on(), "waited");
        let Some(slots) = slot.put_back() else {
            return Err(self.left_off(request, hold, attempt).await);
        };
        let most = aside.as_ref().and_then(|aside| aside.most);
        let patience = most.map_or(kind.timeout, |most| most.min(kind.timeout));
        let since = Instant::now();
        let line = async {
            let line = way.wait(user, has_room, lobby);
            let pass = match suspect {
                true => line.await,
                false => timeout(patience, line).await.ok()?,
            };
            slot.take_again(slots).await;
            Some(pass)
        };
        let waited = tokio::select! {
            biased;
            () = self.nothing_begins(hold) => None,
            pass = line => Some(pass),
        };
        attempt.limit = Some(attempt.limit.unwrap_or_default() + since.elapsed());
        match waited {
            Some(Some(pass)) => Ok(Some(Box::new(pass))),
            Some(None) => Err(self.park(request, full.on(), None, hold, attempt).await),
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
            Hold::Claimed(_) => {
                self.park(request, "stop", Some(Duration::ZERO), hold, attempt).await
            }
        }
    }

    async fn park(
        &self,
        request: &Arc<Request>,
        on: &str,
        due_in: Option<Duration>,
        hold: Hold,
        attempt: &mut Attempt,
    ) -> Outcome {
        let parked = Verdict::Parked { on: on.to_owned(), due_in };
        self.settle_unstarted(Arc::clone(request), parked, hold, attempt).await
    }
}

#[cfg(test)]
mod tests;
