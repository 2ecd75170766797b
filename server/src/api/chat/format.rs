//! `response_format`.

use serde_json::Value;

use crate::api::error::{ApiError, shown};
use crate::api::json::{self, Fields, Path};
use crate::engine::grammar::Grammar;

/// Reads `response_format`; `None` is plain text.
pub(super) fn parse(value: Value, at: &Path<'_>) -> Result<Option<Grammar>, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let kind = fields.required("type", json::string)?;
    let grammar = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Grammar::JsonObject),
        "json_schema" => Some(Grammar::JsonSchema(fields.required("json_schema", schema)?)),
        other => {
            let message = format!("`{at}.type` cannot be `{}`; allowed: text, json_object, json_schema", shown(other));
            return Err(ApiError::unsupported(at.key("type"), message));
        }
    };
    fields.finish()?;
    Ok(grammar)
}

fn schema(value: Value, at: &Path<'_>) -> Result<Value, ApiError> {
    let mut fields = Fields::of(value, at)?;
    fields.required("name", json::name)?;
    fields.optional("description", json::string)?;
    let schema = fields.required("schema", json::object)?;
    // The schema always binds: `strict` asks for what happens anyway, its absence only for less.
    fields.optional("strict", json::boolean)?;
    fields.finish()?;
    Ok(schema)
}
