//! What a seed decides: how the workers are set up, what is published, and which faults there are.

use std::time::Duration;

use fastrand::Rng;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::limit::WhenFull;

/// What is known of a request beforehand.
#[derive(Debug, Clone, Default)]
pub(super) struct Nature {
    pub(super) kind: &'static str,
    /// Its function refuses it.
    pub(super) refused: bool,
    /// So often its function fails before it succeeds.
    pub(super) failures: u32,
    /// It fails by running out of time.
    pub(super) slow: bool,
    /// It ends its process each time that it is applied.
    pub(super) killer: bool,
    /// The dependency refuses it.
    pub(super) call_refused: bool,
    /// It may become dead by the clock.
    pub(super) deadline: bool,
    /// It is no request that can be done.
    pub(super) bad: bool,
    /// Published with several bodies.
    pub(super) reused: bool,
}

/// One publish.
#[derive(Debug, Clone)]
pub(super) struct Publish {
    pub(super) at: Duration,
    pub(super) id: String,
    pub(super) body: Vec<u8>,
    pub(super) message_id: Option<String>,
    pub(super) confirmed: bool,
    /// Whether it came to the queue.
    pub(super) arrives: bool,
    /// Whether that is the queue of ordered kinds.
    pub(super) in_order: bool,
}

/// Which faults there are in this seed.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) kills: bool,
    pub(super) cuts: bool,
    pub(super) broker_away: bool,
    pub(super) postgres_away: bool,
    pub(super) freezes: bool,
    pub(super) stops: bool,
    pub(super) dependencies: bool,
    pub(super) clocks: bool,
    /// The chance of a process to vanish at each step.
    pub(super) death: f64,
    /// The chance of a visit to Postgres to lose its line on the way there, on the way back, or to be
    /// committed after it was given up.
    pub(super) lost: f64,
}

impl Faults {
    /// Whether processes vanish, or seem to, for other reasons than a request.
    pub(super) fn any(&self) -> bool {
        self.kills
            || self.cuts
            || self.broker_away
            || self.postgres_away
            || self.freezes
            || self.stops
            || self.clocks
            || self.death > 0.0
            || self.lost > 0.0
    }
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) workers: usize,
    pub(super) concurrency: usize,
    pub(super) prefetch: usize,
    pub(super) lanes: usize,
    pub(super) batch_rows: usize,
    pub(super) grace: Duration,
    pub(super) max_parked: u64,
    pub(super) max_in_line: u64,
    pub(super) max_in_flight: usize,
    pub(super) limits: Limits,
    pub(super) natures: Vec<(String, Nature)>,
    pub(super) publishes: Vec<Publish>,
    pub(super) faults: Faults,
    /// How long there are faults.
    pub(super) trouble: Duration,
}

/// What is limited beside the calls.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Requests of each kind at once.
    pub(super) of_kind: Option<usize>,
    /// Requests of each kind a second.
    pub(super) rate: Option<f64>,
    /// Requests of each user at once.
    pub(super) of_user: Option<usize>,
    /// Requests that wait without a slot.
    pub(super) aside: usize,
    pub(super) when_full: WhenFull,
}

impl Limits {
    /// None in every other seed.
    fn of(chance: &mut Rng) -> Self {
        let limited = chance.bool();
        let mut some = || limited && chance.bool();
        let (kind, rate, user) = (some(), some(), some());
        Self {
            of_kind: kind.then(|| chance.usize(1..=3)),
            rate: rate.then(|| [0.5, 2.0, 20.0][chance.usize(..3)]),
            of_user: user.then(|| chance.usize(1..=2)),
            aside: chance.usize(..4),
            when_full: [WhenFull::Wait, WhenFull::Park][chance.usize(..2)],
        }
    }
}

/// What the clock on the wall shows when a simulation begins.
pub(super) fn origin() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000)
}

impl Plan {
    pub(super) fn of(chance: &mut Rng) -> Self {
        let trouble = Duration::from_secs(chance.u64(5..40));
        let faults = faults(chance);
        let mut plan = Self {
            workers: chance.usize(1..=3),
            concurrency: chance.usize(1..=8),
            prefetch: chance.usize(1..=12),
            lanes: chance.usize(1..=3),
            batch_rows: [1, 2, 3, 100][chance.usize(..4)],
            grace: Duration::from_millis(chance.u64(200..12_000)),
            max_parked: [2, 1_000][chance.usize(..2)],
            max_in_line: [2, 1_000][chance.usize(..2)],
            max_in_flight: chance.usize(1..=4),
            limits: Limits::of(&mut Rng::with_seed(chance.clone().u64(..))),
            natures: Vec::new(),
            publishes: Vec::new(),
            faults,
            trouble,
        };
        let killers = if chance.u8(..4) == 0 { 1 } else { 0 };
        for number in 0..chance.usize(3..=24) {
            plan.request(number, number < killers, chance);
        }
        plan.publishes.sort_by_key(|publish| publish.at);
        plan
    }

    fn request(&mut self, number: usize, killer: bool, chance: &mut Rng) {
        let id = format!("r-{number}");
        let one_in = |chance: &mut Rng, n: u32| chance.u32(..n) == 0;
        let kinds = ["note", "note", "note", "pay", "pay", "mail", "step", "step", "step", "visit"];
        let kind = kinds[chance.usize(..kinds.len())];
        // Some of an ordered kind come the other way.
        let in_order = matches!(kind, "step" | "visit") && !one_in(chance, 10);
        let mut nature = Nature { kind, killer, ..Nature::default() };
        let mut further = String::new();
        let mut message_id = None;
        let user = chance.u8(..4);
        let mut body = None;
        if !killer {
            nature.refused = one_in(chance, 15);
            nature.call_refused = one_in(chance, 15);
            nature.failures = if one_in(chance, 6) { chance.u32(1..=5) } else { 0 };
            nature.slow = one_in(chance, 3);
            match chance.u8(..40) {
                0 => {
                    nature.bad = true;
                    nature.kind = "unheard";
                }
                1 => {
                    nature.bad = true;
                    message_id = Some(id.clone());
                    body = Some(format!("{{ not json {number}").into_bytes());
                }
                2 => {
                    nature.bad = true;
                    body = Some(format!("[{number}]").into_bytes());
                }
                3 => {
                    nature.bad = true;
                    body = Some(vec![b'x'; super::MOST_BYTES + 1 + number]);
                }
                4 | 5 => {
                    nature.deadline = true;
                    further = field("deadline", chance.i64(-1_000..40_000));
                }
                6 | 7 => further = field("not_before", chance.i64(0..40_000)),
                _ => {}
            }
        }
        let kind = nature.kind;
        let text = move |version: u8| {
            let payload = format!(r#""payload":{{"n":{number},"v":{version}}}"#);
            let head = format!(r#""request_id":"r-{number}","kind":"{kind}","user_id":"u{user}""#);
            format!("{{{head},{payload}{further}}}").into_bytes()
        };
        nature.reused = body.is_none() && !killer && one_in(chance, 20);
        let times = if killer { 1 } else { [1, 1, 1, 2, 3][chance.usize(..5)] };
        for _ in 0..times.max(1 + usize::from(nature.reused)) {
            let version = if nature.reused { chance.u8(..2) } else { 0 };
            let arrives = !one_in(chance, 12);
            self.publishes.push(Publish {
                at: self.trouble.mul_f64(chance.f64()),
                id: id.clone(),
                body: body.clone().unwrap_or_else(|| text(version)),
                message_id: message_id.clone(),
                confirmed: arrives && !one_in(chance, 12),
                arrives,
                in_order,
            });
        }
        self.natures.push((id, nature));
    }
}

fn field(name: &str, millis: i64) -> String {
    let at = origin() + time::Duration::milliseconds(millis);
    format!(r#","{name}":"{}""#, at.format(&Rfc3339).unwrap_or_default())
}

fn faults(chance: &mut Rng) -> Faults {
    match chance.u8(..10) {
        // Nothing but what the requests bring.
        0 | 1 => Faults::default(),
        // One sort at a time: a story that can be read.
        2..=4 => {
            let mut faults = Faults::default();
            match chance.u8(..10) {
                0 => faults.kills = true,
                1 => faults.cuts = true,
                2 => faults.broker_away = true,
                3 => faults.postgres_away = true,
                4 => faults.freezes = true,
                5 => faults.stops = true,
                6 => faults.dependencies = true,
                7 => faults.clocks = true,
                8 => faults.death = 0.01,
                _ => faults.lost = 0.1,
            }
            faults
        }
        _ => {
            let mut some = || chance.bool();
            Faults {
                kills: some(),
                cuts: some(),
                broker_away: some(),
                postgres_away: some(),
                freezes: some(),
                stops: some(),
                dependencies: some(),
                clocks: some(),
                death: if some() { 0.005 } else { 0.0 },
                lost: if some() { 0.05 } else { 0.0 },
            }
        }
    }
}
