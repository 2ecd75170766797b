//! What an answer must look like: any JSON object, or JSON after a schema.
//!
//! The work is done by `llguidance`, which turns a schema into the set of tokens that may come next.

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::{EngineError, Vocabulary};

/// A constraint on the answer's text.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object (`response_format: json_object`).
    JsonObject,
    /// JSON that a schema describes (`response_format: json_schema`, forced tool calls).
    JsonSchema(Value),
}

impl Grammar {
    /// Compiles the grammar for one answer.
    ///
    /// # Errors
    /// The schema is malformed, or uses a keyword that cannot be enforced.
    pub fn matcher(&self, vocabulary: &Vocabulary) -> Result<Matcher, EngineError> {
        let mut schema = match self {
            Self::JsonObject => json!({"type": "object"}),
            Self::JsonSchema(schema) => schema.clone(),
        };
        // Where any white space is allowed, a weak model writes nothing else until its tokens are used up.
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-guidance".into(), json!({"whitespace_flexible": false}));
        }
        let invalid = |error| EngineError::Invalid(format!("the JSON schema cannot be enforced: {error:#}"));
        let parser = vocabulary.grammars.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(invalid)?;
        Ok(Matcher::new(Ok(parser)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::source::golden;

    #[test]
    fn a_schema_allows_what_it_describes_and_nothing_else() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
        let mut matcher = Grammar::JsonSchema(schema).matcher(&vocabulary).unwrap();
        let mask = matcher.compute_mask_or_eos().unwrap();
        for id in 0..342 {
            let starts_object = vocabulary.bytes(id).first() == Some(&b'{');
            assert!(!mask.is_allowed(id) || starts_object, "{:?}", String::from_utf8_lossy(vocabulary.bytes(id)));
        }
        assert!((0..342).any(|id| mask.is_allowed(id)));
    }

    #[test]
    fn white_space_cannot_go_on_for_ever() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        for grammar in [Grammar::JsonObject, Grammar::JsonSchema(json!({"type": "object"}))] {
            let mask = grammar.matcher(&vocabulary).unwrap().compute_mask_or_eos().unwrap();
            assert!((0..342).all(|id| !mask.is_allowed(id) || !vocabulary.bytes(id).starts_with(b" ")));
        }
    }

    #[test]
    fn a_malformed_schema_is_the_callers_fault() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        for schema in [
            json!({"type": "nothing"}),
            json!({"type": 3}),
            json!({"$ref": "#/nowhere"}),
            json!({"pattern": "(", "type": "string"}),
        ] {
            let error = Grammar::JsonSchema(schema.clone()).matcher(&vocabulary).err();
            assert!(matches!(error, Some(EngineError::Invalid(_))), "{schema}: {error:?}");
        }
    }
}
