//! The one error of the API, and the one place where it is rendered.
//!
//! Whatever goes wrong, the body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`. The official SDKs pick
//! the exception by status; `type` follows from the status too, `code` is from a closed set ([`code`]).

use std::borrow::Cow;
use std::fmt;

use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpResponse, ResponseError};
use reground_learner::store::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::answer::AnswerError;
use crate::engine::EngineError;
use crate::rollout::LoadError;
use crate::room::NoRoom;

/// The values of `error.code`.
pub mod code {
    /// A value has the wrong JSON type.
    pub const INVALID_TYPE: &str = "invalid_type";
    /// A value is out of range or badly formed.
    pub const INVALID_VALUE: &str = "invalid_value";
    /// A parameter that must be there is not.
    pub const MISSING: &str = "missing_required_parameter";
    /// A parameter that this server does not know or does not support.
    pub const UNSUPPORTED_PARAMETER: &str = "unsupported_parameter";
    /// A known parameter with a value that this server does not support.
    pub const UNSUPPORTED_VALUE: &str = "unsupported_value";
    /// The body is no JSON, or nests too deeply.
    pub const INVALID_JSON: &str = "invalid_json";
    /// The body is too large.
    pub const BODY_TOO_LARGE: &str = "body_too_large";
    /// The body is not declared as JSON.
    pub const MEDIA_TYPE: &str = "unsupported_media_type";
    /// A text holds one of the model's control tokens.
    pub const CONTROL_TOKEN: &str = "control_token";
    /// Prompt and answer do not fit.
    pub const CONTEXT_LENGTH: &str = "context_length_exceeded";
    /// No such model, or no such generation of it.
    pub const MODEL_NOT_FOUND: &str = "model_not_found";
    /// No key, or one that is not known.
    pub const INVALID_KEY: &str = "invalid_api_key";
    /// The key does not open this route.
    pub const FORBIDDEN: &str = "insufficient_permissions";
    /// No such route.
    pub const UNKNOWN_ROUTE: &str = "unknown_url";
    /// The route does not know the method.
    pub const METHOD: &str = "method_not_allowed";
    /// The queue is full.
    pub const RATE_LIMIT: &str = "rate_limit_exceeded";
    /// The body did not arrive in time.
    pub const BODY_TIMEOUT: &str = "request_timeout";
    /// The answer was not ready in time.
    pub const DEADLINE: &str = "deadline_exceeded";
    /// The server is going down.
    pub const SHUTTING_DOWN: &str = "shutting_down";
    /// The engine is being rebuilt.
    pub const UNAVAILABLE: &str = "engine_unavailable";
    /// The engine or the server failed.
    pub const INTERNAL: &str = "internal_error";
    /// An adapter cannot be loaded.
    pub const INVALID_ADAPTER: &str = "invalid_adapter";
    /// The files of an adapter are not those that were taken in.
    pub const ADAPTER_CHANGED: &str = "adapter_changed";
    /// An adapter belongs to another model.
    pub const ADAPTER_BASE: &str = "adapter_base_mismatch";
    /// What must last cannot be written or read.
    pub const STORAGE: &str = "storage_unavailable";
    /// An adapter is not loaded, or is not where it was looked for.
    pub const ADAPTER_NOT_FOUND: &str = "adapter_not_found";
    /// No such fine-tuning job.
    pub const JOB_NOT_FOUND: &str = "fine_tuning_job_not_found";
    /// No such uploaded file.
    pub const FILE_NOT_FOUND: &str = "file_not_found";
    /// A line of an uploaded file cannot be used.
    pub const INVALID_FILE: &str = "invalid_file";
    /// There is nothing to train on.
    pub const NO_DATA: &str = "no_training_data";
    /// No such recorded completion, or not one of this key.
    pub const COMPLETION_NOT_FOUND: &str = "completion_not_found";
    /// No such pair.
    pub const PAIR_NOT_FOUND: &str = "pair_not_found";
    /// The store cannot be written now.
    pub const STORE_UNAVAILABLE: &str = "store_unavailable";
    /// The state does not allow it: the id is taken, or the generation is live.
    pub const CONFLICT: &str = "conflict";
}

/// What a caller is told when a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// One of [`code`].
    pub code: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The parameter at fault, as a path into the body: `messages[1].content[0].image_url.url`.
    pub param: Option<String>,
    hint: Hint,
}

/// What the headers tell a client to do about the error.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hint {
    None,
    /// `Retry-After`, in seconds.
    RetryAfter(u64),
    /// `x-should-retry: false`, which the official SDKs obey.
    DoNotRetry,
    /// `Allow`.
    Allow(String),
    /// `WWW-Authenticate: Bearer`.
    Authenticate,
}

/// The body of every error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody<'a> {
    /// The error.
    #[schema(inline)]
    pub error: ErrorDetail<'a>,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorDetail<'a> {
    /// What is wrong and what is allowed.
    pub message: &'a str,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    pub r#type: &'static str,
    /// The parameter at fault, as a path into the body.
    pub param: Option<&'a str>,
    /// A word for programs.
    pub code: &'static str,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, hint: Hint::None }
    }

    /// 400 with a code of its own.
    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: a parameter is out of range or badly formed.
    pub(super) fn invalid(param: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::bad_request(code::INVALID_VALUE, message).at(param)
    }

    /// 400: a value that this server does not support.
    pub(super) fn unsupported(param: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::bad_request(code::UNSUPPORTED_VALUE, message).at(param)
    }

    /// 400: control tokens are the model's own punctuation. Typed by somebody, they would be taken for real ones.
    pub(super) fn control_token(token: &str, param: &dyn fmt::Display) -> Self {
        let message =
            format!("`{param}` contains `{token}`, which is a control token of this model and not allowed in text");
        Self::bad_request(code::CONTROL_TOKEN, message).at(param)
    }

    /// 404 for something that the path or body names.
    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409: the state does not allow it.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code::CONFLICT, message)
    }

    /// 404: no such route.
    pub(super) fn unknown_route(method: &Method, path: &str) -> Self {
        let message = format!("no route {method} {}; GET /openapi.json lists what there is", shown(path));
        Self::not_found(code::UNKNOWN_ROUTE, message)
    }

    /// 405, with the methods that the route knows.
    pub(super) fn method_not_allowed(method: &Method, allowed: &str) -> Self {
        let message = format!("{} is not allowed here; allowed: {allowed}", shown(method.as_str()));
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD, message);
        Self { hint: Hint::Allow(allowed.to_owned()), ..error }
    }

    /// 401: no key, or an unknown one. The message never repeats the key.
    pub(super) fn unauthorized(message: &str) -> Self {
        let error = Self::new(StatusCode::UNAUTHORIZED, code::INVALID_KEY, message);
        Self { hint: Hint::Authenticate, ..error }
    }

    /// 403: the key does not open this.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code::FORBIDDEN, message)
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes, which is the limit");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code::BODY_TOO_LARGE, message)
    }

    /// 415.
    pub(super) fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code::MEDIA_TYPE, message)
    }

    /// 408: the body did not arrive in time.
    pub(super) fn body_timeout() -> Self {
        let message = "the body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, code::BODY_TIMEOUT, message)
    }

    /// 429, to be tried again.
    pub(super) fn too_many(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, code, message);
        Self { hint: Hint::RetryAfter(retry_after_s), ..error }
    }

    /// 429: the bodies of requests under way take what they may.
    pub(super) fn no_room(NoRoom { limit, whose }: NoRoom) -> Self {
        let message = format!(
            "the bodies of requests under way, of {whose}, take nearly {limit} bytes, which is the limit; try again in a moment"
        );
        Self::too_many(code::RATE_LIMIT, message, 5)
    }

    /// 503, to be tried again.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>, retry_after_s: u64) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message);
        Self { hint: Hint::RetryAfter(retry_after_s), ..error }
    }

    /// 500.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::INTERNAL, message)
    }

    /// An error of the HTTP library, which brought a status and nothing that callers should see.
    pub(super) fn from_status(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("the request failed");
        let code = if status.is_server_error() { code::INTERNAL } else { code::INVALID_VALUE };
        Self::new(status, code, reason)
    }

    /// Names the parameter at fault.
    #[must_use]
    pub(super) fn at(mut self, param: impl fmt::Display) -> Self {
        self.param = Some(param.to_string());
        self
    }

    /// The body, for a response or the last event of a stream.
    #[must_use]
    pub fn body(&self) -> ErrorBody<'_> {
        let r#type = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ErrorBody {
            error: ErrorDetail { message: &self.message, r#type, param: self.param.as_deref(), code: self.code },
        }
    }
}

/// What a message repeats of a caller's text: enough to recognise it, no more.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        match &self.hint {
            Hint::None => {}
            Hint::RetryAfter(seconds) => {
                response.insert_header((header::RETRY_AFTER, seconds.to_string()));
            }
            Hint::DoNotRetry => {
                response.insert_header((HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false")));
            }
            Hint::Allow(methods) => {
                response.insert_header((header::ALLOW, methods.as_str()));
            }
            Hint::Authenticate => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
        }
        response.json(self.body())
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        let message = error.to_string();
        match error {
            AnswerError::UnknownGeneration { .. } => Self::not_found(code::MODEL_NOT_FOUND, message).at("model"),
            AnswerError::QueueFull { retry_after, .. } => {
                Self::too_many(code::RATE_LIMIT, message, retry_after.as_secs().max(1))
            }
            // The SDKs retry 5xx by themselves; what took too long once would only take the time again.
            AnswerError::Deadline { .. } => {
                let error = Self::new(StatusCode::GATEWAY_TIMEOUT, code::DEADLINE, message);
                Self { hint: Hint::DoNotRetry, ..error }
            }
            AnswerError::ShuttingDown => Self::unavailable(code::SHUTTING_DOWN, message, 5),
            AnswerError::Engine(error) => error.into(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Invalid(_) => Self::bad_request(code::INVALID_VALUE, message),
            EngineError::TooLong { .. } => Self::bad_request(code::CONTEXT_LENGTH, message).at("messages"),
            EngineError::Unavailable(_) => Self::unavailable(code::UNAVAILABLE, message, 1),
            EngineError::Failed(_) => Self::internal(message),
            EngineError::Load(_) => Self::bad_request(code::INVALID_ADAPTER, message),
            EngineError::TooManyLoads(_) => Self::conflict(message),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            error if error.is_failure() => Self::unavailable(code::STORE_UNAVAILABLE, message, 5),
            StoreError::Exists { .. } | StoreError::Stale { .. } | StoreError::FeedbackLimit { .. } => {
                Self::conflict(message)
            }
            StoreError::Missing { .. } => Self::not_found(code::COMPLETION_NOT_FOUND, message),
            _ => Self::bad_request(code::INVALID_VALUE, message),
        }
    }
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        let message = error.to_string();
        match error {
            LoadError::Exists(_) | LoadError::Live(_) => Self::conflict(message).at("lora_name"),
            LoadError::BadId(_) => Self::invalid("lora_name", message),
            LoadError::Unknown(_) => Self::not_found(code::ADAPTER_NOT_FOUND, message).at("lora_name"),
            LoadError::Engine(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::GenerationId;

    #[test]
    fn every_error_of_the_layers_below_has_its_status_and_headers() {
        let header = |response: &HttpResponse, name: &str| {
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let full = AnswerError::QueueFull { waiting: 3, retry_after: Duration::from_millis(20) };
        let cases: Vec<(ApiError, u16, &str, &str)> = vec![
            (full.into(), 429, code::RATE_LIMIT, "rate_limit_error"),
            (AnswerError::Deadline { after: Duration::from_secs(1) }.into(), 504, code::DEADLINE, "server_error"),
            (AnswerError::ShuttingDown.into(), 503, code::SHUTTING_DOWN, "server_error"),
            (EngineError::Invalid("no".into()).into(), 400, code::INVALID_VALUE, "invalid_request_error"),
            (EngineError::TooLong { prompt: 9, max_len: 8 }.into(), 400, code::CONTEXT_LENGTH, "invalid_request_error"),
            (EngineError::Unavailable(GenerationId::base()).into(), 503, code::UNAVAILABLE, "server_error"),
            (EngineError::Failed("died".into()).into(), 500, code::INTERNAL, "server_error"),
            (LoadError::Live(GenerationId::base()).into(), 409, code::CONFLICT, "invalid_request_error"),
            (LoadError::BadId("a b".into()).into(), 400, code::INVALID_VALUE, "invalid_request_error"),
            (LoadError::Unknown("x".into()).into(), 404, code::ADAPTER_NOT_FOUND, "invalid_request_error"),
            (ApiError::unauthorized("no key"), 401, code::INVALID_KEY, "authentication_error"),
            (ApiError::forbidden("no"), 403, code::FORBIDDEN, "permission_error"),
        ];
        for (error, status, code, kind) in cases {
            let response = error.error_response();
            assert_eq!(response.status().as_u16(), status, "{error}");
            assert_eq!((error.body().error.code, error.body().error.r#type), (code, kind), "{error}");
            assert_eq!(header(&response, "retry-after").is_some(), matches!(status, 429 | 503), "{error}");
            assert_eq!(header(&response, "x-should-retry").is_some(), status == 504, "{error}");
            assert_eq!(header(&response, "www-authenticate").is_some(), status == 401, "{error}");
        }
        let wrong_method = ApiError::method_not_allowed(&Method::DELETE, "GET, POST").error_response();
        assert_eq!(header(&wrong_method, "allow").as_deref(), Some("GET, POST"));
    }

    #[test]
    fn a_long_text_is_not_repeated_whole() {
        assert_eq!(shown("abc"), "abc");
        assert_eq!(shown(&"ä".repeat(1000)).chars().count(), 81);
    }
}
