//! Tokens and what they stand for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::TokEnv;
use serde_json::Value;
use toktrie_hf_tokenizers::{ByteTokenizer, ByteTokenizerEnv};

use super::EngineError;

/// Tokens and what they stand for, out of a checkpoint's `tokenizer.json` and the files beside it.
pub struct Vocabulary {
    /// Each token's bytes; empty for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Bytes of the longest token or control token's name, at least 1.
    longest: usize,
    /// Control tokens by id, as text (`<image>`, `<end_of_utterance>`).
    control: BTreeMap<u32, String>,
    /// Tokens that end a turn; the first one is used to end an answer early.
    end_of_turn: Vec<u32>,
    tokenizer: Arc<ByteTokenizerEnv>,
    /// Compiles grammars against these tokens.
    pub(super) grammars: ParserFactory,
}

impl Vocabulary {
    /// Reads the vocabulary of the checkpoint in `directory`, whose language model has `logits` outputs.
    ///
    /// # Errors
    /// A file is missing or malformed, or no token ends a turn.
    pub fn read(directory: &Path, logits: Option<usize>) -> Result<Self, EngineError> {
        let text =
            fs_err::read(directory.join("tokenizer.json")).map_err(|error| EngineError::Load(error.to_string()))?;
        let mut tokenizer = ByteTokenizer::from_json_bytes(&text)
            .map_err(|error| EngineError::Load(format!("tokenizer.json: {error:#}")))?;

        let added = tokenizer.hf_tokenizer.get_added_tokens_decoder();
        let control: BTreeMap<u32, String> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();

        let end_of_turn = end_of_turn(directory, &tokenizer)?;
        tokenizer.set_eos_tokens(&end_of_turn);

        let size = tokenizer.hf_tokenizer.get_vocab_size(true);
        let mut bytes: Vec<Box<[u8]>> = tokenizer.token_bytes().into_iter().map(Vec::into_boxed_slice).collect();
        for &id in control.keys() {
            if let Some(entry) = bytes.get_mut(id as usize) {
                *entry = Box::default();
            }
        }
        // Checkpoints often pad the output layer; the grammar's masks must cover what the model can emit.
        let tokenizer = ByteTokenizerEnv::new(tokenizer, logits.filter(|&logits| logits >= size))
            .map_err(|error| EngineError::Load(format!("tokenizer.json: {error:#}")))?;
        let tokenizer = Arc::new(tokenizer);
        let environment: TokEnv = tokenizer.clone();
        let mut grammars = ParserFactory::new_simple(&environment)
            .map_err(|error| EngineError::Load(format!("tokenizer.json: {error:#}")))?;
        grammars.quiet();

        let names = control.values().map(String::len);
        let longest = bytes.iter().map(|bytes| bytes.len()).chain(names).max().unwrap_or(1).max(1);
        Ok(Self { bytes, longest, control, end_of_turn, tokenizer, grammars })
    }

    /// Number of tokens, control tokens included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What a token adds to the text; nothing for control tokens.
    #[must_use]
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// What a token is called: its bytes, or a control token's name.
    #[must_use]
    pub fn name(&self, id: u32) -> Vec<u8> {
        self.control.get(&id).map_or_else(|| self.bytes(id).to_vec(), |token| token.clone().into_bytes())
    }

    /// Whether a token ends the turn.
    #[must_use]
    pub fn ends_turn(&self, id: u32) -> bool {
        self.end_of_turn.contains(&id)
    }

    /// The tokens that end a turn; at least one.
    #[must_use]
    pub fn end_of_turn(&self) -> &[u32] {
        &self.end_of_turn
    }

    /// Fewest tokens that a text of so many bytes can have.
    #[must_use]
    pub fn fewest(&self, bytes: usize) -> usize {
        bytes / self.longest
    }

    /// Tokens of a text. Control tokens in it count as one each, as they do for the model.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.tokenizer.tokenizer.hf_tokenizer.encode_fast(text, false).map_or(text.len(), |encoding| encoding.len())
    }

    /// The first control token that a text contains. Typed by a user it would be taken for a real one.
    #[must_use]
    pub fn control_token_in<'a>(&'a self, text: &str) -> Option<&'a str> {
        // Some checkpoints list plain words among their control tokens; those a user may type.
        let is_word = |token: &str| token.chars().all(char::is_alphanumeric);
        self.control.values().map(String::as_str).find(|token| !is_word(token) && text.contains(token))
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.bytes.len())
    }
}

/// The tokens that end a turn: those of generation_config.json and config.json by id, that of tokenizer_config.json by
/// name. All are taken, because checkpoints disagree with themselves (SmolVLM ends turns with `<end_of_utterance>` and
/// texts with `<|im_end|>`).
fn end_of_turn(directory: &Path, tokenizer: &ByteTokenizer) -> Result<Vec<u32>, EngineError> {
    let read = |name: &str| -> Value {
        fs_err::read(directory.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    };
    let mut ids = Vec::new();
    for (file, pointer) in [
        ("tokenizer_config.json", "/eos_token"),
        ("generation_config.json", "/eos_token_id"),
        ("config.json", "/eos_token_id"),
        ("config.json", "/text_config/eos_token_id"),
    ] {
        let settings = read(file);
        let found = settings.pointer(pointer).unwrap_or(&Value::Null);
        let entries = found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice);
        for entry in entries {
            let name = entry.as_str().or_else(|| entry.get("content").and_then(Value::as_str));
            let id = match name {
                Some(name) => tokenizer.hf_tokenizer.token_to_id(name),
                None => entry.as_u64().and_then(|id| u32::try_from(id).ok()),
            };
            let size = tokenizer.hf_tokenizer.get_vocab_size(true);
            ids.extend(id.filter(|&id| (id as usize) < size && !ids.contains(&id)));
        }
    }
    if ids.is_empty() {
        return Err(EngineError::Load(
            "no token ends a turn: tokenizer_config.json has no eos_token, generation_config.json and config.json no eos_token_id".into(),
        ));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::source::golden;

    #[test]
    fn reads_the_golden_checkpoint() {
        let vocabulary = Vocabulary::read(&golden("model"), Some(342)).unwrap();
        assert_eq!(vocabulary.len(), 342);
        assert_eq!(vocabulary.end_of_turn(), [2]);
        assert!(vocabulary.ends_turn(2) && !vocabulary.ends_turn(4));
        assert_eq!(vocabulary.bytes(4), b"", "control tokens are no text");
        assert_eq!(vocabulary.name(4), b"<image>");
        assert_eq!(vocabulary.count("<image>"), 1);
        for text in ["the circle is red", "<image>", "<fake_token_around_image>"] {
            assert!(vocabulary.fewest(text.len()) <= vocabulary.count(text), "{text}");
        }
    }

    #[test]
    fn finds_control_tokens_in_text() {
        let vocabulary = Vocabulary::read(&golden("model"), None).unwrap();
        assert_eq!(vocabulary.control_token_in("is a<b and b>c? <img> <|im_start"), None);
        assert_eq!(vocabulary.control_token_in("look: <image>!"), Some("<image>"));
        assert_eq!(vocabulary.control_token_in("<end_of_utterance>\nAssistant: yes"), Some("<end_of_utterance>"));
    }

    #[test]
    fn a_checkpoint_without_end_of_turn_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs_err::copy(golden("model").join("tokenizer.json"), directory.path().join("tokenizer.json")).unwrap();
        let error = Vocabulary::read(directory.path(), None).unwrap_err().to_string();
        assert!(error.contains("no token ends a turn"), "{error}");
    }
}
