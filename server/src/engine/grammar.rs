//! What an answer must look like: any JSON object, or JSON after a schema.

use serde_json::Value;

/// A constraint on the answer's text.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object (`response_format: json_object`).
    JsonObject,
    /// JSON that a schema describes (`response_format: json_schema`, forced tool calls).
    JsonSchema(Value),
}
