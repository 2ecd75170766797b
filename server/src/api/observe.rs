//! Around every request: its id, the access log, the metrics, and errors of the HTTP library in our shape.

use std::future::{Ready, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, ResponseError, web};
use futures::FutureExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::auth::Caller;
use super::error::ApiError;
use super::{metrics, routes};

/// The header that carries a request's id, in and out.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the log and the metrics say when the client left before the answer was complete, as nginx writes it.
const CLIENT_LEFT: u16 = 499;

/// When the head of the request was there. Deadlines count from here.
#[derive(Clone, Copy)]
pub(super) struct Arrival(pub(super) Instant);

impl FromRequest for Arrival {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(request.extensions().get::<Self>().copied().unwrap_or_else(|| Self(Instant::now()))))
    }
}

/// Middleware, the outermost.
pub(super) async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Observed>, Error> {
    let id = request_id(request.headers());
    let arrival = Arrival(Instant::now());
    request.extensions_mut().insert(arrival);
    let mut exchange = Exchange::new(id.clone(), request.method().clone(), arrival.0);
    let response = next.call(request).await?.map_into_boxed_body();
    let mut response = render_foreign(response);
    response.headers_mut().insert(REQUEST_ID, id);
    exchange.answered(&response);
    Ok(response.map_body(|_, body| Observed { body, exchange }))
}

/// Middleware around one resource: a handler that panics is a 500, and the connection goes on.
pub(super) async fn catch_panic(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    // Only here, behind the router: a request that is cloned before it is routed panics itself.
    let kept = request.request().clone();
    match AssertUnwindSafe(next.call(request)).catch_unwind().await {
        Ok(response) => Ok(response?.map_into_boxed_body()),
        Err(_) => Ok(ServiceResponse::from_err(ApiError::internal("the server failed; the log says more"), kept)),
    }
}

/// The caller's id if it is a sensible one, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let well_formed = |id: &&HeaderValue| {
        (1..=128).contains(&id.len())
            && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
    };
    let given = headers.get(REQUEST_ID).filter(well_formed).cloned();
    given.unwrap_or_else(|| {
        HeaderValue::from_str(&format!("req-{}", Uuid::now_v7())).unwrap_or(HeaderValue::from_static("req-"))
    })
}

/// Errors that did not come from us (a path that is no UTF-8, a refused CORS preflight) get our body.
fn render_foreign(response: ServiceResponse) -> ServiceResponse {
    let status = response.status();
    let ours = response.response().error().is_some_and(|error| error.as_error::<ApiError>().is_some());
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (request, _) = response.into_parts();
    ServiceResponse::new(request, ApiError::from_status(status).error_response())
}

/// A response's body that reports when the last of it was sent, or the client left.
pub(super) struct Observed {
    body: BoxBody,
    exchange: Exchange,
}

impl MessageBody for Observed {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<web::Bytes, Self::Error>>> {
        let this = self.get_mut();
        let next = this.body.as_pin_mut().poll_next(cx);
        if matches!(next, Poll::Ready(None)) {
            this.exchange.complete = true;
        }
        next
    }
}

/// One request and its answer, logged and counted when it goes.
struct Exchange {
    id: HeaderValue,
    method: Method,
    route: String,
    key: Option<Arc<str>>,
    started: Instant,
    status: Option<StatusCode>,
    failure: Option<String>,
    /// Whether all of the body was sent.
    complete: bool,
}

impl Exchange {
    fn new(id: HeaderValue, method: Method, started: Instant) -> Self {
        let route = routes::UNMATCHED.to_owned();
        Self { id, method, route, key: None, started, status: None, failure: None, complete: false }
    }

    fn answered(&mut self, response: &ServiceResponse) {
        self.status = Some(response.status());
        // A body of known size is one buffer: no one leaves in the middle of it.
        self.complete = !matches!(response.response().body().size(), BodySize::Stream);
        self.route = routes::of(response.request());
        self.key = response.request().extensions().get::<Caller>().map(|caller| caller.name.clone());
        if response.status().is_server_error() {
            self.failure = response.response().error().map(ToString::to_string);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let status = match self.status {
            Some(status) if self.complete => status.as_u16(),
            _ => CLIENT_LEFT,
        };
        let duration = self.started.elapsed();
        metrics::request(&self.route, status, duration);
        let id = self.id.to_str().unwrap_or_default();
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let key = self.key.as_deref().unwrap_or("-");
        let (method, route) = (&self.method, &self.route);
        match &self.failure {
            Some(error) => tracing::error!(
                request.id = id, key.name = key, http.method = %method, http.route = route, http.status = status,
                duration_ms, error, "A request failed"
            ),
            None => tracing::info!(
                request.id = id, key.name = key, http.method = %method, http.route = route, http.status = status,
                duration_ms, "Answered a request"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_kept_only_if_it_is_harmless() {
        let id = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(given).unwrap());
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(id("abc-1.2:3_4"), "abc-1.2:3_4");
        for hostile in ["", "a b", "<script>", "a\"b", &"x".repeat(129)] {
            assert!(id(hostile).starts_with("req-"), "{hostile}");
        }
        assert!(request_id(&HeaderMap::new()).to_str().unwrap().len() > 36);
    }
}
