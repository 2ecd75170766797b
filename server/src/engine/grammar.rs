//! What an answer must look like: any JSON object, or JSON after a schema.
//!
//! The work is done by `llguidance`, which turns a schema into the set of tokens that may come next.

use std::thread;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, TokenParser};
use serde_json::{Value, json};
use tracing::warn;

use super::{EngineError, Vocabulary, schema_limits};

/// Stack of the compiler, which also calls itself for each property; what is not used of it costs nothing.
const STACK: usize = 256 << 20;
/// Most characters of why a schema is refused that its sender is told.
const MAX_WHY: usize = 500;

/// A constraint on the answer's text.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object (`response_format: json_object`).
    JsonObject,
    /// JSON that a schema describes (`response_format: json_schema`, forced tool calls).
    JsonSchema(Value),
}

impl Grammar {
    /// Compiles the grammar for one answer, in a thread of its own: see [`STACK`].
    ///
    /// # Errors
    /// The schema is malformed or too large, or uses a keyword that cannot be enforced.
    pub fn matcher(&self, vocabulary: &Vocabulary) -> Result<Matcher, EngineError> {
        self.check_size()?;
        let parser = thread::scope(|scope| {
            let compile = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
            let compiling = compile.spawn_scoped(scope, || self.compile(vocabulary));
            let compiling =
                compiling.map_err(|error| EngineError::Failed(format!("no thread for a schema: {error}")))?;
            compiling.join().unwrap_or_else(|_| Err(EngineError::Invalid(MALFORMED.to_owned())))
        })?;
        Ok(Matcher::new(Ok(parser)))
    }

    fn compile(&self, vocabulary: &Vocabulary) -> Result<TokenParser, EngineError> {
        let mut schema = match self {
            Self::JsonObject => json!({"type": "object"}),
            Self::JsonSchema(schema) => schema.clone(),
        };
        schema_limits::check_work(&schema)?;
        // Where any white space is allowed, a weak model writes nothing else until its tokens are used up.
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("x-guidance".into(), json!({"whitespace_flexible": false}));
        }
        let parser = vocabulary.grammars.create_parser(TopLevelGrammar::from_json_schema(schema));
        parser.map_err(|error| refusal(&format!("{error:#}")))
    }

    /// Whether compiling it is little work, as far as its size tells.
    ///
    /// # Errors
    /// The schema is too large; by what is said.
    pub fn check_size(&self) -> Result<(), EngineError> {
        match self {
            Self::JsonObject => Ok(()),
            Self::JsonSchema(schema) => schema_limits::check_size(schema),
        }
    }
}

const MALFORMED: &str = "the JSON schema cannot be enforced: it is malformed";

/// Why a schema is refused, for its sender.
fn refusal(why: &str) -> EngineError {
    // A panic of the compiler comes with its backtrace.
    let (why, backtrace) = why.split_once("\n<backtrace>").unwrap_or((why, ""));
    if !backtrace.is_empty() || why.contains("panic: ") {
        warn!(why, "A malformed JSON schema was refused.");
        return EngineError::Invalid(MALFORMED.to_owned());
    }
    let why: String = why.chars().take(MAX_WHY).collect();
    EngineError::Invalid(format!("the JSON schema cannot be enforced: {why}"))
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

    #[test]
    fn a_compiler_that_panics_tells_nobody_its_backtrace() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        let schema = json!({"type": "number", "minimum": "é".repeat(60)});
        let error = Grammar::JsonSchema(schema).matcher(&vocabulary).err().unwrap().to_string();
        assert!(error.len() < 2 * MAX_WHY && !error.contains("backtrace"), "{error}");
        assert!(matches!(refusal("panic: x\n<backtrace>\n 0: y"), EngineError::Invalid(why) if why == MALFORMED));
    }
}
