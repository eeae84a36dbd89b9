//! What is called: it answers after a few milliseconds, remembers nothing, and takes as little of
//! the machine as it can, for it is measured along with who calls it: one thread, and no router.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, body::Bytes, body::Incoming, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{runtime, task::LocalSet, time::sleep};

use super::{super::way::LATENCY_MS, Tally};

pub(super) async fn work(tally: Arc<Tally>) -> anyhow::Result<()> {
    let listener = super::listen().await?.into_std()?;
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let serving = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)
            .and_then(|runtime| LocalSet::new().block_on(&runtime, serve(listener, tally)));
        // Nobody hears it any more when the process ends.
        end.send(serving).is_ok()
    });
    ended.await?
}

async fn serve(listener: std::net::TcpListener, tally: Arc<Tally>) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let tally = Arc::clone(&tally);
        tokio::task::spawn_local(async move {
            let answer = service_fn(|request| answer(request, &tally));
            // A caller that goes away is no fault.
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.is_ok()
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    tally: &Tally,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if *request.method() != Method::POST {
        // Readiness, a look whether there is anybody, and how many calls were made.
        return Ok(Response::new(Full::from(tally.metrics())));
    }
    // Read to its end, so that the connection can be used again.
    let _read = request.into_body().collect().await.is_ok();
    sleep(Duration::from_millis(LATENCY_MS)).await;
    tally.done(1);
    let mut response = Response::new(Full::from("{\"queued\":true}"));
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    Ok(response)
}
