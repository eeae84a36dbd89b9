//! What can be seen and changed under `/api`, and who may change it.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tracing::warn;

use super::routes::error;
use crate::steer::Order;

/// The name that a client gives whoever acts through it.
const ACTOR: &str = "x-actor";

const LONGEST_ACTOR: usize = 128;

/// A dependency, seen from this worker.
#[derive(Debug, Clone, Serialize)]
pub struct DependencyStanding {
    /// Its name.
    pub name: String,
    /// `closed`, `open` or `half_open`; while it observes, what it would be.
    pub state: &'static str,
    /// Who decides about the breaker: `automatic`, `open`, `closed`, `observe`.
    pub mode: &'static str,
    /// Which of `breaker`, `limit` and `rate` an operator has steered away from the settings.
    pub steered: Vec<&'static str>,
    /// Calls in the breaker's window.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Those of them that were slow.
    pub slow: u64,
    /// `failed` of `calls`; none where there were no calls.
    pub failure_rate: Option<f64>,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// Times the breaker opened by its own rules since the start of the worker.
    pub opened: u64,
    /// How long it stays open yet.
    pub open_ms: Option<u64>,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that may be under way at once.
    pub max_in_flight: usize,
    /// Calls that may be begun a second, over all workers, where that is limited.
    pub rate: Option<f64>,
    /// Requests that wait for one of these limits, without a slot.
    pub waiting: usize,
    /// Requests parked on it, over all workers, when that was last counted.
    pub parked: u64,
    /// Requests parked on its limits.
    pub parked_on_limit: u64,
}

/// A kind.
#[derive(Debug, Clone, Serialize)]
pub struct KindStanding {
    /// Its name.
    pub name: String,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Which of `limit` and `rate` an operator has steered away from the settings.
    pub steered: Vec<&'static str>,
    /// Requests that it has let in, where it is limited.
    pub in_flight: Option<usize>,
    /// Requests that one worker may work at once, where that is limited.
    pub max_in_flight: Option<usize>,
    /// Requests that may be begun a second, over all workers, where that is limited.
    pub rate: Option<f64>,
    /// Requests that wait for one of these limits, without a slot.
    pub waiting: usize,
    /// Requests parked for that, over all workers, when that was last counted.
    pub parked: u64,
    /// Requests parked on its limits.
    pub parked_on_limit: u64,
}

/// How everything stands that can be steered.
#[derive(Debug, Clone)]
pub struct Standing {
    /// This worker's name.
    pub worker: String,
    /// Why it consumes nothing, if it does not.
    pub paused: Vec<String>,
    /// Each dependency.
    pub dependencies: Vec<DependencyStanding>,
    /// Each kind.
    pub kinds: Vec<KindStanding>,
}

/// What an act of steering did.
#[derive(Debug, Clone, Serialize)]
pub struct Steered {
    /// What was steered.
    pub target: String,
    /// The wish before; null: as the settings say.
    pub before: Option<String>,
    /// The wish now.
    pub after: Option<String>,
    /// Who did it, as the audit has it.
    pub who: String,
}

/// Why an act of steering was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is nothing of that name.
    Unknown(String),
    /// Not now: the worker is starting, or Postgres is away.
    NotNow(String),
    /// It could not be written.
    Failed(String),
}

/// Whoever can be steered.
pub trait Steering: Send + Sync + 'static {
    /// How things stand; nothing while the worker is starting. Must not wait for anything.
    fn standing(&self) -> Option<Standing>;

    /// Writes a wish down, for all workers, with its audit. Awaited on the admin server's thread,
    /// so what it does belongs on another.
    fn steer(&self, order: Order, who: String) -> BoxFuture<'_, Result<Steered, Refused>>;
}

struct Room {
    steering: Arc<dyn Steering>,
    /// What proves that a client may change something, as a digest of it.
    token: Option<[u8; 32]>,
}

pub(super) fn routes(steering: Arc<dyn Steering>, token: Option<&SecretString>) -> Router {
    let token = token.map(|token| digest(token.expose_secret()));
    Router::new()
        .route("/api/dependencies", get(dependencies))
        .route("/api/kinds", get(kinds))
        .route("/api/dependencies/{name}/breaker/{verb}", post(breaker))
        .route("/api/dependencies/{name}/limit/{limit}", post(limit))
        .route("/api/dependencies/{name}/rate/{rate}", post(rate))
        .route("/api/kinds/{kind}/limit/{limit}", post(kind_limit))
        .route("/api/kinds/{kind}/rate/{rate}", post(kind_rate))
        .route("/api/kinds/{kind}/pause", post(pause_kind))
        .route("/api/kinds/{kind}/resume", post(resume_kind))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .with_state(Arc::new(Room { steering, token }))
}

async fn dependencies(State(room): State<Arc<Room>>) -> Response {
    match room.steering.standing() {
        Some(Standing { worker, dependencies, .. }) => {
            Json(json!({"worker": worker, "dependencies": dependencies})).into_response()
        }
        None => starting(),
    }
}

async fn kinds(State(room): State<Arc<Room>>) -> Response {
    match room.steering.standing() {
        Some(Standing { worker, paused, kinds, .. }) => {
            Json(json!({"worker": worker, "paused": paused, "kinds": kinds})).into_response()
        }
        None => starting(),
    }
}

fn starting() -> Response {
    error(StatusCode::SERVICE_UNAVAILABLE, "the worker is starting; try again later")
}

async fn breaker(
    State(room): State<Arc<Room>>,
    Path((name, verb)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Order::breaker(&name, &verb)).await
}

async fn limit(
    State(room): State<Arc<Room>>,
    Path((name, limit)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Order::limit(&name, &limit)).await
}

async fn rate(
    State(room): State<Arc<Room>>,
    Path((name, rate)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Order::rate(&name, &rate)).await
}

async fn kind_limit(
    State(room): State<Arc<Room>>,
    Path((kind, limit)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Order::kind_limit(&kind, &limit)).await
}

async fn kind_rate(
    State(room): State<Arc<Room>>,
    Path((kind, rate)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Order::kind_rate(&kind, &rate)).await
}

async fn pause_kind(
    State(room): State<Arc<Room>>,
    Path(kind): Path<String>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Ok(Order::pause(Some(&kind)))).await
}

async fn resume_kind(
    State(room): State<Arc<Room>>,
    Path(kind): Path<String>,
    headers: HeaderMap,
) -> Response {
    room.act(&headers, || Ok(Order::resume(Some(&kind)))).await
}

async fn pause(State(room): State<Arc<Room>>, headers: HeaderMap) -> Response {
    room.act(&headers, || Ok(Order::pause(None))).await
}

async fn resume(State(room): State<Arc<Room>>, headers: HeaderMap) -> Response {
    room.act(&headers, || Ok(Order::resume(None))).await
}

impl Room {
    /// Carries an order out, if whoever gives it may.
    async fn act(
        &self,
        headers: &HeaderMap,
        order: impl FnOnce() -> Result<Order, String>,
    ) -> Response {
        let who = match self.who(headers) {
            Ok(who) => who,
            Err(refusal) => return *refusal,
        };
        let order = match order() {
            Ok(order) => order,
            Err(wrong) => return error(StatusCode::BAD_REQUEST, &wrong),
        };
        match self.steering.steer(order, who).await {
            Ok(steered) => Json(steered).into_response(),
            Err(Refused::Unknown(text)) => error(StatusCode::NOT_FOUND, &text),
            Err(Refused::NotNow(text)) => error(StatusCode::SERVICE_UNAVAILABLE, &text),
            Err(Refused::Failed(text)) => error(StatusCode::INTERNAL_SERVER_ERROR, &text),
        }
    }

    /// Who it is that acts, if they prove that they may.
    fn who(&self, headers: &HeaderMap) -> Result<String, Box<Response>> {
        let refused = |status, text| Err(Box::new(error(status, text)));
        let Some(token) = &self.token else {
            return refused(
                StatusCode::FORBIDDEN,
                "nothing can be changed here: set admin.token or admin.token_file, or use `longshore steer`",
            );
        };
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| digest(token.trim()));
        if !given.is_some_and(|given| bool::from(given.ct_eq(token))) {
            warn!(event = "admin.refused", "a change without the admin token was refused");
            let mut refusal = error(
                StatusCode::UNAUTHORIZED,
                "this changes something: send `authorization: Bearer <admin.token>`",
            );
            refusal
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(Box::new(refusal));
        }
        match headers.get(ACTOR).map(|actor| actor.to_str()) {
            None => Ok("admin".to_owned()),
            Some(Ok(actor)) if (1..=LONGEST_ACTOR).contains(&actor.len()) => {
                Ok(format!("admin:{actor}"))
            }
            Some(_) => refused(
                StatusCode::BAD_REQUEST,
                "x-actor must be 1 to 128 printable ASCII characters",
            ),
        }
    }
}

/// Of equal length whatever it is of, so that comparing two tells nothing about either.
fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests;
