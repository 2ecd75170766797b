//! The body of a request: declared as JSON, within the size limit, there in time.

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use tokio::time::timeout_at;

use super::App;
use super::auth::Caller;
use super::error::{ApiError, code, shown};
use super::observe::Arrival;
use crate::room::Share;

/// Bodies from this size on are parsed off the async threads: a data URL of 20 MB takes tens of milliseconds, and the
/// streams of other callers would stand still meanwhile.
const LARGE: usize = 256 * 1024;

/// The bytes of a JSON body. They may be none (`curl -X POST` without data); most routes then say that it is no JSON.
pub(super) struct JsonBody {
    bytes: web::Bytes,
    /// Of what all bodies may take, until it is parsed.
    _share: Share,
}

impl JsonBody {
    /// Parses the body, off the async threads if it is large.
    ///
    /// # Errors
    /// Those of `parse`.
    pub(super) async fn parse<T: Send + 'static>(
        self,
        parse: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.bytes.len() < LARGE {
            return parse(&self.bytes);
        }
        web::block(move || parse(&self.bytes))
            .await
            .map_err(|_| ApiError::internal("the thread that parsed the body is gone"))?
    }
}

impl FromRequest for JsonBody {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, mut payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let app =
                request.app_data::<web::Data<App>>().ok_or_else(|| ApiError::internal("the server has no state"))?;
            let limit = app.config.server.body_limit;
            check_headers(&request, limit)?;
            let Arrival(arrival) = Arrival::extract(&request).await?;
            let caller = Caller::extract(&request).await?;
            let mut share = app.bodies.share(&caller.name);
            let bytes = timeout_at(arrival + app.deadline(), read(&mut payload, limit, &mut share))
                .await
                .map_err(|_| ApiError::body_timeout())??;
            if request.content_type().is_empty() && !bytes.is_empty() {
                return Err(ApiError::media_type("no Content-Type given; it must be application/json"));
            }
            Ok(Self { bytes, _share: share })
        })
    }
}

/// What can be refused before a byte of the body is read.
fn check_headers(request: &HttpRequest, limit: usize) -> Result<(), ApiError> {
    let given = request.content_type();
    // What declares nothing may be empty; that shows when it is read.
    let json = given.is_empty()
        || given.eq_ignore_ascii_case("application/json")
        || (given.starts_with("application/") && given.to_ascii_lowercase().ends_with("+json"));
    if !json {
        return Err(ApiError::media_type(format!("Content-Type must be application/json, not {}", shown(given))));
    }
    if let Some(encoding) = request.headers().get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::media_type("a compressed body (Content-Encoding) is not taken; send it as it is"));
    }
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()).and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    Ok(())
}

async fn read(payload: &mut Payload, limit: usize, share: &mut Share) -> Result<web::Bytes, ApiError> {
    let mut body = web::BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| ApiError::bad_request(code::INVALID_JSON, "the body ends early"))?;
        if body.len() + chunk.len() > limit {
            return Err(ApiError::too_large(limit));
        }
        share.grow(chunk.len() as u64).map_err(ApiError::no_room)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
