//! What the admin server answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::HttpBody,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Map, Value, json};

use super::{Health, Readiness, pulse::Pulse};
use crate::telemetry::Recorder;

/// How long an answer may take to come about.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Characters of a path that nobody knows, in the answer that says so.
const SHOWN: usize = 200;

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
const PROMETHEUS_TEXT: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

const INDEX: &str = "\
longshore admin server

GET /health/live   200 while the process runs, 503 when its main runtime does not
GET /health/ready  200 while it takes requests, 503 and the reasons when it does not
GET /metrics       metrics in the text format of Prometheus

GET /api/dependencies  each dependency: its breaker, its limit, what is parked on it
GET /api/kinds         each kind, what is parked for it, and why nothing is consumed

With `authorization: Bearer <admin.token>`, for all workers of the ledger:
POST /api/dependencies/{name}/breaker/{open|close|observe|auto}
POST /api/dependencies/{name}/limit/{number|auto}
POST /api/pause, /api/resume, /api/kinds/{kind}/pause, /api/kinds/{kind}/resume
";

struct Room {
    recorder: Recorder,
    health: Arc<dyn Health>,
    pulse: Arc<Pulse>,
}

/// The routes. None of them takes a body.
pub(super) fn router(
    recorder: Recorder,
    health: Arc<dyn Health>,
    pulse: Arc<Pulse>,
    api: Router,
) -> Router {
    let routes = Router::new()
        .route("/", get(async || INDEX))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Room { recorder, health, pulse }))
        .merge(api);
    guarded(routes, ANSWER_WITHIN)
}

/// What holds for every route: errors are JSON, bodies are refused, answers are bounded in time
/// and never kept by anybody on the way.
fn guarded(routes: Router, answer_within: Duration) -> Router {
    routes
        .fallback(async |uri: Uri| {
            let path: String = uri.path().chars().take(SHOWN).collect();
            error(StatusCode::NOT_FOUND, &format!("no route {path}; GET / lists them"))
        })
        .method_not_allowed_fallback(async || {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this route does not answer that; GET / lists what does",
            )
        })
        .layer(middleware::from_fn(move |request: Request, next: Next| async move {
            let mut response = if request.body().is_end_stream() {
                tokio::time::timeout(answer_within, next.run(request)).await.unwrap_or_else(|_| {
                    error(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the answer took too long; try again later",
                    )
                })
            } else {
                // Nothing here reads a body, so the connection is closed instead of draining it.
                let mut refusal =
                    error(StatusCode::PAYLOAD_TOO_LARGE, "this server takes no request body");
                refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                refusal
            };
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }))
}

async fn live(State(room): State<Arc<Room>>) -> Response {
    match room.pulse.stale(Instant::now()) {
        None => Json(json!({"live": true})).into_response(),
        Some(silent) => {
            let text = format!(
                "the main runtime has run nothing for {} s; restart the process",
                silent.as_secs()
            );
            error(StatusCode::SERVICE_UNAVAILABLE, &text)
        }
    }
}

async fn ready(State(room): State<Arc<Room>>) -> Response {
    let readiness = match room.pulse.stale(Instant::now()) {
        None => room.health.ready(),
        // Who does not run cannot be asked: its locks may be held for ever.
        Some(silent) => Readiness {
            ready: false,
            state: "stalled".to_owned(),
            detail: vec![(
                "runtime".to_owned(),
                format!("has run nothing for {} s", silent.as_secs()),
            )],
        },
    };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let reasons: Map<String, Value> =
        readiness.detail.into_iter().map(|(name, text)| (name, text.into())).collect();
    let body = json!({"ready": readiness.ready, "state": readiness.state, "reasons": reasons});
    (status, Json(body)).into_response()
}

async fn metrics(State(room): State<Arc<Room>>) -> Response {
    match room.recorder.render().await {
        Ok(text) => ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response(),
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, &failed.to_string()),
    }
}

pub(super) fn error(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "error": text }))).into_response()
}

#[cfg(test)]
pub(super) mod tests;
