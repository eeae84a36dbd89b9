//! The HTTP client of one dependency: what is sent, and how much of an answer is read.

use std::{error::Error, time::Duration};

use reqwest::{
    Response, Url,
    header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use rustls::RootCertStore;
use secrecy::ExposeSecret;
use time::OffsetDateTime;

use super::{
    CallSettings, Judged, Settings, Verdict,
    call::{self, Prepared},
    classify::{self, Meaning},
    tls,
};
use crate::request::Request;

const USER_AGENT: &str = concat!("longshore/", env!("CARGO_PKG_VERSION"));

/// A connection that has been idle longer is not used again: most servers close theirs after a
/// minute or more, and a call that meets such a close fails for no fault of anybody.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

/// How often, and for how long, an HTTP/2 connection is asked whether it is still there. Without
/// this one dead connection would take every call until the kernel gives it up, after minutes.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// At most this many idle connections are kept, however many calls may be under way.
const MOST_IDLE: usize = 128;

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    headers: HeaderMap,
    /// Tells how much time a call has.
    budget_header: Option<HeaderName>,
    max_response_bytes: usize,
}

impl Client {
    /// The settings must have no [`Settings::problems`].
    pub(super) fn new(settings: &Settings, mut roots: RootCertStore) -> Result<Self, String> {
        let base =
            Url::parse(&settings.url).map_err(|error| format!("url is not valid: {error}"))?;
        if let Some(file) = &settings.ca_file {
            tls::add_file(&mut roots, file)?;
        }
        if settings.uses_tls() && roots.is_empty() {
            return Err(
                "no root certificates were found, install the ca-certificates or set ca_file"
                    .to_owned(),
            );
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(roots)?)
            .user_agent(USER_AGENT)
            // A redirect could lead anywhere, with our headers.
            .redirect(redirect::Policy::none())
            // What is called is what is configured, whatever the environment says.
            .no_proxy()
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(settings.max_in_flight.min(MOST_IDLE))
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build()
            .map_err(|error| {
                format!("the HTTP client could not be built: {}", innermost(&error))
            })?;

        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in &settings.headers {
            let header: HeaderName =
                name.parse().map_err(|_| format!("headers.{name} is not valid"))?;
            let mut value = HeaderValue::from_str(value.expose_secret())
                .map_err(|_| format!("headers.{name} has a value that is not valid"))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let budget_header = match settings.budget_header.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|_| "budget_header is not valid".to_owned())?),
        };
        let max_response_bytes = settings.max_response_bytes;
        Ok(Self { http, base, headers, budget_header, max_response_bytes })
    }

    /// See [`call::prepare`].
    pub(super) fn prepare(
        &self,
        call: &CallSettings,
        request: &Request,
    ) -> Result<Prepared, String> {
        call::prepare(call, &self.base, &self.headers, request)
    }

    /// Sends a call and reads its answer, without a deadline of its own: `time` is what it is told to
    /// have. `what` is the method and the dependency, for errors.
    pub(super) async fn send(
        &self,
        what: &str,
        mut call: Prepared,
        time: Duration,
    ) -> Judged<Option<String>> {
        let failed = Verdict::Failure { retry_after: None };
        if let Some(name) = &self.budget_header {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            call.headers.insert(name.clone(), HeaderValue::from(millis));
        }
        let mut sent = self.http.request(call.method, call.url).headers(call.headers);
        if let Some(body) = call.body {
            sent = sent.body(body);
        }
        let response = match sent.send().await {
            Ok(response) => response,
            Err(error) => {
                let stage = if error.is_connect() { "could not connect" } else { "got no answer" };
                let error = format!("{what} {stage}: {}", innermost(&error));
                return Judged { result: Err(classify::transient(error, None)), verdict: failed };
            }
        };
        let retry_after = retry_after(&response);
        let status = response.status();
        let (meaning, verdict) = classify::status(status, retry_after);
        if meaning != Meaning::Answered {
            // The body stays unread: it may hold anything, and the status has said enough.
            return Judged {
                result: Err(classify::status_error(what, status, meaning, retry_after)),
                verdict,
            };
        }
        // A text that we cannot use is the fault of this one answer; the service is well.
        let (error, verdict) = match self.read(response).await {
            Ok(body) => match classify::json_text(body) {
                Ok(text) => return Judged { result: Ok(text), verdict },
                Err(error) => (format!("{what} {error}"), verdict),
            },
            Err(Unread::TooLarge) => {
                let most = self.max_response_bytes;
                (format!("{what} answered more than {most} bytes, see max_response_bytes"), verdict)
            }
            Err(Unread::Cut(why)) => (format!("{what} broke off its answer: {why}"), failed),
        };
        Judged { result: Err(classify::transient(error, None)), verdict }
    }

    /// The body, piece by piece, so that no more than the limit is ever held. Leaving early drops
    /// the connection.
    async fn read(&self, mut response: Response) -> Result<Vec<u8>, Unread> {
        let most = self.max_response_bytes;
        let announced = response.content_length().unwrap_or(0);
        if announced > most as u64 {
            return Err(Unread::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| Unread::Cut(innermost(&error)))?
        {
            if body.len() + piece.len() > most {
                return Err(Unread::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Asks for the headers of the base URL; whatever is answered, it was reached.
    ///
    /// # Errors
    /// Where it came to an end, and what to look at.
    pub(super) async fn reach(&self, timeout: Duration) -> Result<(), String> {
        let place = self.base.origin().ascii_serialization();
        let asked = self.http.head(self.base.clone()).headers(self.headers.clone()).send();
        match tokio::time::timeout(timeout, asked).await {
            Ok(Ok(_answer)) => Ok(()),
            Ok(Err(error)) if error.is_connect() => Err(format!(
                "could not connect to {place} ({}), check that the service runs and that url and ca_file are right",
                innermost(&error)
            )),
            Ok(Err(error)) => Err(format!(
                "{place} did not answer in HTTP ({}), check scheme and port of url",
                innermost(&error)
            )),
            Err(_elapsed) => Err(format!(
                "{place} did not answer within {}, check that the service is well and that url is right",
                humantime::format_duration(timeout)
            )),
        }
    }
}

enum Unread {
    TooLarge,
    Cut(String),
}

fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    classify::retry_after(value, OffsetDateTime::now_utc())
}

/// What is at the root of an error: the layers above only say that a request failed, and the
/// topmost may name the whole URL, with the ids in its path.
fn innermost(error: &reqwest::Error) -> String {
    let Some(mut source) = error.source() else {
        return "the request could not be built".to_owned();
    };
    while let Some(deeper) = source.source() {
        source = deeper;
    }
    // Parts of it may be the peer's own words.
    source.to_string().chars().filter(|c| !c.is_control()).take(200).collect()
}
