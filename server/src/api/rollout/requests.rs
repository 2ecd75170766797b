//! What is asked.

use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::api::json::{self, Fields, Path};
use crate::engine::GenerationId;

/// Which adapter to take in.
#[derive(Debug, ToSchema)]
pub(in crate::api) struct ImportAdapter {
    /// A directory in PEFT format, below `model.adapter_root`, or relative to it.
    pub path: String,
}

/// What a change is based on.
#[derive(Debug, ToSchema)]
pub(in crate::api) struct ChangeRequest {
    /// What the caller takes for live. If another generation is, the change is refused with 409.
    #[schema(value_type = Option<String>)]
    pub expected_generation: Option<GenerationId>,
}

/// How large a share is.
#[derive(Debug, ToSchema)]
pub(in crate::api) struct ShareRequest {
    /// Share of the callers (canary, 0 to 99 percent) or of the queries (shadow, 0 to 100 percent); 0 ends the trial.
    pub percent: u8,
    /// What the caller takes for live.
    #[schema(value_type = Option<String>)]
    pub expected_generation: Option<GenerationId>,
}

/// Whether something is pinned.
#[derive(Debug, ToSchema)]
pub(in crate::api) struct PinRequest {
    /// `false` ends it.
    #[schema(default = true)]
    pub pinned: bool,
    /// What the caller takes for live.
    #[schema(value_type = Option<String>)]
    pub expected_generation: Option<GenerationId>,
}

impl ImportAdapter {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let path = fields.required("path", json::string)?;
        fields.finish()?;
        Ok(Self { path })
    }
}

impl ChangeRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(or_empty(body))?, &Path::Root)?;
        let expected_generation = expected(&mut fields)?;
        fields.finish()?;
        Ok(Self { expected_generation })
    }
}

impl ShareRequest {
    pub(super) fn parse(body: &[u8], most: u8) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let percent = fields.required("percent", |v, at| json::integer(v, at, 0..=i64::from(most)))?;
        let expected_generation = expected(&mut fields)?;
        fields.finish()?;
        let refused = |_| ApiError::invalid("percent", format!("`percent` must be 0 to {most}"));
        Ok(Self { percent: u8::try_from(percent).map_err(refused)?, expected_generation })
    }
}

impl PinRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(or_empty(body))?, &Path::Root)?;
        let pinned = fields.optional("pinned", json::boolean)?.unwrap_or(true);
        let expected_generation = expected(&mut fields)?;
        fields.finish()?;
        Ok(Self { pinned, expected_generation })
    }
}

/// An empty body is `{}`.
fn or_empty(body: &[u8]) -> &[u8] {
    if body.is_empty() { b"{}" } else { body }
}

fn expected(fields: &mut Fields<'_>) -> Result<Option<GenerationId>, ApiError> {
    let id = fields.optional("expected_generation", |v, at| json::short_string(v, at, 128))?;
    Ok(id.as_deref().map(GenerationId::from))
}
