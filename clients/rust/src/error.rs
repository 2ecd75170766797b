//! Why a call failed.

use serde_json::Value;
use thiserror::Error;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The server refused the request or failed.
    #[error(transparent)]
    Api(ApiError),
    /// There was no complete answer.
    #[error(transparent)]
    Transport(#[from] reqwest::Error),
    /// The answer is not what a Reground server sends.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message} (status {status}, {code})")]
pub struct ApiError {
    /// The HTTP status; 200 when a stream that had begun broke off.
    pub status: u16,
    /// What is wrong and what is allowed.
    pub message: String,
    /// The error's name: `invalid_value`, `rate_limit_exceeded`, …
    pub code: String,
    /// The parameter at fault, as a path into the request.
    pub param: Option<String>,
    /// Seconds to wait before the next try.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// Reads the error envelope; `None` if the body is none.
    pub(crate) fn of(status: u16, retry_after_s: Option<u64>, body: &Value) -> Option<Self> {
        let error = body.get("error")?;
        Some(Self {
            status,
            message: error["message"].as_str()?.to_owned(),
            code: error["code"].as_str().unwrap_or_default().to_owned(),
            param: error["param"].as_str().map(str::to_owned),
            retry_after_s,
        })
    }
}
