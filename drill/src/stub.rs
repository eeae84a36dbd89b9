//! The downstream services of the examples, as well-behaved or as bad as they are told to be.
//!
//! `POST /geocoder/verify` answers `{"address": …, "verified": true}`, `POST /mailer/welcome`
//! answers `{"queued": true}`, any other path `{"ok": true}`. How a service behaves is set for the
//! first part of its path, in process ([`Stub::behave`]) or from outside:
//! `PUT /_control/geocoder` with `{"behaviour": "hang"}`. `GET /_calls` is what it remembers, and
//! `GET /_busiest/geocoder` the most calls that it had at once since this was last asked.

mod behaviour;
mod line;
mod memory;

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};

pub use self::{behaviour::Behaviour, memory::Calls};
use self::{
    line::{Line, Lines},
    memory::Memory,
};

/// How long a call hangs or trickles at most.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// How many services may be told how to behave.
const MAX_SERVICES: usize = 1_000;
/// The most that one piece of a big answer holds, in bytes.
const PIECE: u64 = 64 * 1024;

#[derive(Debug, Default)]
struct Inner {
    services: Mutex<HashMap<String, Service>>,
    memory: Mutex<Memory>,
    /// Calls that came in, by service, whatever became of them.
    arrivals: watch::Sender<BTreeMap<String, u64>>,
    /// Calls under way to services that hinder themselves.
    crowds: Mutex<HashMap<String, u32>>,
    /// Calls that are under way, by service, and the most since somebody asked.
    busy: Mutex<HashMap<String, (u64, u64)>>,
}

/// A call under way; one whose caller has gone ends as well.
struct Busy<'a>(&'a Inner, String);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy().entry(std::mem::take(&mut self.1)).or_default().0 -= 1;
    }
}

#[derive(Debug, Default)]
struct Service {
    behaviour: Behaviour,
    chance: Option<fastrand::Rng>,
}

/// A running stub. Dropped, it stops answering.
#[derive(Debug)]
pub struct Stub {
    /// Where it is reached, without a slash at the end: `http://127.0.0.1:PORT`.
    pub url: String,
    inner: Arc<Inner>,
    serving: AbortHandle,
}

impl Stub {
    /// Listens on `bind`, e.g. `127.0.0.1:0` for any free port.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn start(bind: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(bind)
            .await
            .with_context(|| format!("cannot listen on {bind}, choose another address"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(Inner::default());
        let router = Router::new()
            .route("/_control/{service}", put(control))
            .route("/_calls", get(calls))
            .route("/_busiest/{service}", get(busiest))
            .fallback(answer)
            .with_state(Arc::clone(&inner))
            .into_make_service_with_connect_info::<Line>();
        let serving =
            tokio::spawn(async move { axum::serve(Lines(listener), router).await.is_ok() })
                .abort_handle();
        Ok(Self { url, inner, serving })
    }

    /// How the service under `/{service}/…` behaves from now on.
    pub fn behave(&self, service: &str, behaviour: Behaviour) {
        self.inner.behave(service, behaviour);
    }

    /// What it remembers, by `Idempotency-Key` (without its quotes). Calls without a key are
    /// under the empty key.
    pub fn calls(&self) -> HashMap<String, Calls> {
        self.inner.memory().calls()
    }

    /// How many calls reached a service, whatever became of them.
    pub fn arrivals(&self, service: &str) -> u64 {
        self.inner.arrivals.borrow().get(service).copied().unwrap_or_default()
    }

    /// Completes when at least this many calls have reached the service.
    pub async fn until_arrivals(&self, service: &str, calls: u64) {
        let reached = |arrivals: &BTreeMap<String, u64>| {
            arrivals.get(service).is_some_and(|count| *count >= calls)
        };
        // The sender lives in `self`, so this cannot fail.
        let _reached = self.inner.arrivals.subscribe().wait_for(reached).await.is_ok();
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// An HTTP client for the stub and for probes: no proxy, and a deadline for everything.
pub fn client() -> anyhow::Result<reqwest::Client> {
    // A second call finds it installed.
    let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
    Ok(reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?)
}

/// What a stub in another process remembers: `GET /_calls`.
///
/// # Errors
/// When it does not answer within ten seconds.
pub async fn calls_at(url: &str) -> anyhow::Result<HashMap<String, Calls>> {
    // Says "already installed" the second time, which is as good.
    let _installed = rustls::crypto::ring::default_provider().install_default().is_ok();
    let client = client()?;
    let answer =
        client.get(format!("{url}/_calls")).send().await?.error_for_status()?.bytes().await?;
    Ok(serde_json::from_slice(&answer)?)
}

/// The most calls at once that a service of a stub in another process had since this was last asked.
///
/// # Errors
/// When it does not answer within ten seconds.
pub async fn busiest_at(url: &str, service: &str) -> anyhow::Result<u64> {
    let asked = client()?.get(format!("{url}/_busiest/{service}")).send().await?;
    Ok(asked.error_for_status()?.text().await?.parse()?)
}

impl Inner {
    fn behave(&self, service: &str, behaviour: Behaviour) -> bool {
        let chance = match &behaviour {
            Behaviour::Fail { seed, .. } => Some(fastrand::Rng::with_seed(*seed)),
            _ => None,
        };
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let known = services.len() < MAX_SERVICES || services.contains_key(service);
        if known {
            services.insert(service.to_owned(), Service { behaviour, chance });
        }
        known
    }

    /// How this call is treated: chance is drawn here, so that `Fail` is settled.
    fn treatment(&self, service: &str) -> Behaviour {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(service) = services.get_mut(service) else { return Behaviour::default() };
        match (&service.behaviour, &mut service.chance) {
            (Behaviour::Fail { share, .. }, Some(chance)) => {
                let fails = chance.f64() < *share;
                if fails {
                    Behaviour::Status { code: 500, retry_after_secs: None }
                } else {
                    Behaviour::default()
                }
            }
            (behaviour, _) => behaviour.clone(),
        }
    }

    /// The answer of a service that does its work.
    fn did(&self, service: &str, key: &str, asked: u64, body: &[u8]) -> Response {
        match work(service, body) {
            Ok(answer) => {
                let answer = self.memory().effect(key, asked, answer);
                ([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
            }
            Err(why) => {
                (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": why }))).into_response()
            }
        }
    }

    fn crowds(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.crowds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call comes in.
    fn begins(&self, service: &str) -> Busy<'_> {
        let mut busy = self.busy();
        let (now, most) = busy.entry(service.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Busy(self, service.to_owned())
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<String, (u64, u64)>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way to a service that hinders itself, for as long as it lives.
struct Crowd<'a> {
    inner: &'a Inner,
    service: &'a str,
    /// How many there were when it came, it included.
    calls: u32,
}

impl<'a> Crowd<'a> {
    fn join(inner: &'a Inner, service: &'a str) -> Self {
        let mut crowds = inner.crowds();
        let calls = crowds.entry(service.to_owned()).or_default();
        *calls += 1;
        Self { inner, service, calls: *calls }
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        let mut crowds = self.inner.crowds();
        if let Some(calls) = crowds.get_mut(self.service) {
            *calls -= 1;
            if *calls == 0 {
                crowds.remove(self.service);
            }
        }
    }
}

async fn control(
    State(inner): State<Arc<Inner>>,
    Path(service): Path<String>,
    behaviour: Result<Json<Behaviour>, axum::extract::rejection::JsonRejection>,
) -> Response {
    match behaviour {
        Ok(Json(behaviour)) if inner.behave(&service, behaviour.clone()) => {
            Json(behaviour).into_response()
        }
        Ok(_) => (StatusCode::INSUFFICIENT_STORAGE, "too many services, restart the stub")
            .into_response(),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, error.body_text()).into_response(),
    }
}

async fn calls(State(inner): State<Arc<Inner>>) -> Json<HashMap<String, Calls>> {
    Json(inner.memory().calls())
}

/// The most calls at once since this was last asked.
async fn busiest(State(inner): State<Arc<Inner>>, Path(service): Path<String>) -> Json<u64> {
    Json(inner.busy().get_mut(&service).map_or(0, |(now, most)| std::mem::replace(most, *now)))
}

async fn answer(
    State(inner): State<Arc<Inner>>,
    ConnectInfo(line): ConnectInfo<Line>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let service =
        uri.path().trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok())
        .map(|key| key.trim().trim_matches('"'));
    if key.is_some_and(|key| key.len() > memory::MAX_KEY) || service.len() > memory::MAX_KEY {
        return (StatusCode::BAD_REQUEST, "the key is too long").into_response();
    }
    if method == Method::HEAD {
        // Somebody looks whether there is anybody; nothing is asked for.
        return StatusCode::OK.into_response();
    }
    let treatment = inner.treatment(&service);
    let _busy = inner.begins(&service);
    let asked = memory::asked(method.as_str(), uri.path(), &body);
    inner.memory().called(key.unwrap_or_default(), asked);
    inner.arrivals.send_modify(|arrivals| {
        if arrivals.len() < MAX_SERVICES || arrivals.contains_key(&service) {
            *arrivals.entry(service.clone()).or_default() += 1;
        }
    });
    let done = |wait: u64| async move {
        tokio::time::sleep(Duration::from_millis(wait)).await;
    };
    match treatment {
        Behaviour::Ok { latency_ms } => {
            done(latency_ms).await;
            inner.did(&service, key.unwrap_or_default(), asked, &body)
        }
        Behaviour::Crowded { alone_ms, at_best } => {
            let crowd = Crowd::join(&inner, &service);
            let crowded = f64::from(crowd.calls) / f64::from(at_best.max(1));
            done((alone_ms as f64 * (1.0 + crowded * crowded)) as u64).await;
            inner.did(&service, key.unwrap_or_default(), asked, &body)
        }
        Behaviour::Status { code, retry_after_secs } => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, Json(json!({ "error": "as told" }))).into_response();
            if let Some(seconds) = retry_after_secs {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
        Behaviour::Refused => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": "as told" }))).into_response()
        }
        Behaviour::Hang => {
            tokio::time::sleep(PATIENCE).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        Behaviour::Trickle => {
            let bytes = stream::unfold(PATIENCE.as_secs(), |left| async move {
                let left = left.checked_sub(1)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), left))
            });
            Response::new(Body::from_stream(bytes))
        }
        Behaviour::Big { bytes } => {
            let pieces = stream::unfold(bytes, |left| async move {
                let piece = left.min(PIECE);
                let text = vec![b'0'; usize::try_from(piece).ok()?];
                (piece > 0).then(|| (Ok::<_, Infallible>(Bytes::from(text)), left - piece))
            });
            Response::new(Body::from_stream(pieces))
        }
        Behaviour::Redirect { to } => match HeaderValue::from_str(&to) {
            Ok(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
            Err(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "the redirect's target is not a header value")
                    .into_response()
            }
        },
        Behaviour::Reset => {
            line.reset();
            // The connection, and with it this task, ends before anything could be answered.
            std::future::pending().await
        }
        // Settled in `treatment`.
        Behaviour::Fail { .. } => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// What the service is there for.
fn work(service: &str, body: &[u8]) -> Result<Value, &'static str> {
    match service {
        "geocoder" => {
            let payload: Value =
                serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
            let address = payload
                .get("address")
                .and_then(Value::as_str)
                .ok_or("`address` is missing or not a string")?;
            let words: Vec<_> = address.split_whitespace().collect();
            Ok(json!({ "address": words.join(" ").to_uppercase(), "verified": true }))
        }
        "mailer" => Ok(json!({ "queued": true })),
        _ => Ok(json!({ "ok": true })),
    }
}

#[cfg(test)]
mod tests;
