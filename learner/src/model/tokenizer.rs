//! Text to token ids and back.

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::error::ModelError;
use super::source::Source;
use super::template::token_text;

/// A checkpoint's tokenizer and the tokens that end an answer.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    special: Vec<String>,
    stops: Vec<u32>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, and the end-of-turn tokens from `tokenizer_config.json` and `generation_config.json`.
    ///
    /// # Errors
    /// A missing or damaged file; no end-of-turn token.
    pub fn load(source: &Source) -> Result<Self, ModelError> {
        let mut inner = Tokenizer::from_bytes(source.require("tokenizer.json")?).map_err(failed)?;
        // A tokenizer that was saved with truncation or padding on would cut prompts without a word.
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let mut special: Vec<String> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        special.sort();

        let settings: Json = source.json("tokenizer_config.json")?.unwrap_or(Json::Null);
        let generation: Json = source.json("generation_config.json")?.unwrap_or(Json::Null);
        let mut stops = Vec::new();
        if let Some(text) = token_text(settings.get("eos_token")) {
            stops.extend(inner.token_to_id(&text));
        }
        match generation.get("eos_token_id") {
            Some(Json::Array(ids)) => {
                stops.extend(ids.iter().filter_map(Json::as_u64).map(|id| id as u32))
            }
            Some(id) => stops.extend(id.as_u64().map(|id| id as u32)),
            None => {}
        }
        let mut seen = Vec::new();
        stops.retain(|id| {
            !seen.contains(id) && {
                seen.push(*id);
                true
            }
        });
        if stops.is_empty() {
            return Err(ModelError::Tokenizer(
                "no end-of-turn token in tokenizer_config.json or generation_config.json"
                    .to_owned(),
            ));
        }
        Ok(Self {
            inner,
            special,
            stops,
        })
    }

    /// Token ids of a text in which special tokens count as such. Nothing is added around it.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(self
            .inner
            .encode_fast(text, false)
            .map_err(failed)?
            .get_ids()
            .to_vec())
    }

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner.decode(ids, true).map_err(failed)
    }

    /// Tokens that end an answer; the first is the one that a trained answer ends with.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// A special token that stands in the text, if any: only the template may write those.
    pub fn special_in(&self, text: &str) -> Option<&str> {
        self.special
            .iter()
            .map(String::as_str)
            .find(|token| !token.is_empty() && text.contains(token))
    }

    /// The underlying tokenizer.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }
}

fn failed(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}
