//! The golden checkpoint: what PyTorch computed on it, and how to make the server say those tokens.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::server::golden_root;

/// Which of the two golden generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The checkpoint alone.
    Base,
    /// The checkpoint with `adapter/`.
    Adapter,
}

impl Which {
    /// As `expected.json` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Adapter => "adapter",
        }
    }
}

/// What PyTorch, transformers and PEFT computed on the golden checkpoint.
pub struct Golden {
    /// The four images with their questions.
    pub pairs: Vec<Pair>,
    /// Every token, by its id.
    tokens: BTreeMap<u32, Token>,
}

/// One token of the vocabulary.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its bytes; a control token's are its name (`<pad>`).
    pub name: Vec<u8>,
    /// Whether it is a control token, which log-probabilities name and texts leave out.
    pub control: bool,
}

/// One image, its question, and what was computed on them.
pub struct Pair {
    /// The PNG file's bytes.
    pub image: Vec<u8>,
    /// What is asked.
    pub question: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Token ids of the annotated answer, the end-of-turn token left out.
    pub chosen: Vec<u32>,
    expected: Value,
    /// For each token of the annotated answer: the logits it was drawn from.
    logits: [Vec<Vec<f32>>; 2],
}

impl Golden {
    /// Reads the golden files.
    ///
    /// # Errors
    /// One is missing or not as expected.
    pub fn load() -> Result<Self> {
        let root = golden_root();
        let expected: Value = serde_json::from_slice(&std::fs::read(root.join("expected.json"))?)?;
        let bytes = std::fs::read(root.join("expected.safetensors"))?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let mut pairs = Vec::new();
        for (k, pair) in expected["pairs"].as_array().context("no pairs")?.iter().enumerate() {
            let prompt_tokens = ids(&pair["prompt_ids"]).len();
            let mut chosen = ids(&pair["chosen_ids"]);
            chosen.pop();
            let rows = |name: String| -> Result<Vec<Vec<f32>>> {
                let tensor = tensors.tensor(&name)?;
                let width = *tensor.shape().last().context("a shape")?;
                let values: Vec<f32> =
                    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                // The logits for the answer's first token are those of the prompt's last one.
                Ok(values.chunks(width).skip(prompt_tokens - 1).take(chosen.len()).map(<[f32]>::to_vec).collect())
            };
            let logits = [rows(format!("logits_chosen_{k}"))?, rows(format!("adapter_logits_chosen_{k}"))?];
            pairs.push(Pair {
                image: std::fs::read(root.join(pair["image"].as_str().context("no image")?))?,
                question: pair["question"].as_str().context("no question")?.into(),
                prompt_tokens,
                chosen,
                expected: pair.clone(),
                logits,
            });
        }
        let tokenizer: Value = serde_json::from_slice(&std::fs::read(root.join("model/tokenizer.json"))?)?;
        Ok(Self { pairs, tokens: vocabulary(&tokenizer)? })
    }

    /// Tokens by their ids.
    ///
    /// # Errors
    /// One is not in the vocabulary.
    pub fn tokens(&self, ids: &[u32]) -> Result<Vec<&Token>> {
        ids.iter().map(|id| self.tokens.get(id).with_context(|| format!("no token {id}"))).collect()
    }

    /// The control tokens as text.
    ///
    /// # Errors
    /// The tokenizer's file cannot be read.
    pub fn control_tokens() -> Result<Vec<String>> {
        let tokenizer: Value = serde_json::from_slice(&std::fs::read(golden_root().join("model/tokenizer.json"))?)?;
        let added = tokenizer["added_tokens"].as_array().context("no added tokens")?;
        Ok(added.iter().filter_map(|token| token["content"].as_str()).map(str::to_owned).collect())
    }
}

impl Pair {
    /// A greedy question about the image: 16 tokens with their log-probabilities.
    #[must_use]
    pub fn greedy(&self, model: &str) -> Value {
        json!({
            "model": model,
            "temperature": 0,
            "max_tokens": 16,
            "logprobs": true,
            "top_logprobs": 20,
            "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": data_url("image/png", &self.image)}},
                {"type": "text", "text": self.question},
            ]}],
        })
    }

    /// The tokens that a greedy answer has.
    #[must_use]
    pub fn greedy_ids(&self, which: Which) -> Vec<u32> {
        ids(&self.expected[format!("{}_greedy_ids", which.name())])
    }

    /// The natural-log probabilities of the annotated answer's tokens.
    #[must_use]
    pub fn logprobs(&self, which: Which) -> Vec<f64> {
        let values = self.expected[format!("{}_logp_chosen", which.name())].as_array();
        values.into_iter().flatten().filter_map(Value::as_f64).take(self.chosen.len()).collect()
    }

    /// The natural-log probabilities of the whole vocabulary at each token of the annotated answer.
    #[must_use]
    pub fn distributions(&self, which: Which) -> Vec<Vec<f64>> {
        self.logits(which).iter().map(|row| log_softmax(row)).collect()
    }

    /// Makes a greedy answer say the annotated one, token by token, as far as that can be done.
    ///
    /// A caller can only set one bias a token and one penalty for all, for the whole answer. So the bias of each wanted
    /// token has to be such that at every step the wanted one wins, knowing its logits and that tokens said already lost
    /// 4 (both penalties at 2) and 2 more for each repetition. Those are difference constraints, `b(x) - b(c) <= w`, which
    /// Bellman and Ford's algorithm solves or proves impossible. Reported log-probabilities are the model's own, before bias
    /// and penalties, so they can be compared with PyTorch's.
    ///
    /// Returns the request's additions and the number of tokens that it forces.
    #[must_use]
    pub fn forcing(&self, which: Which) -> Option<(Value, usize)> {
        (1..=self.chosen.len()).rev().find_map(|steps| {
            let bias = self.biases(which, steps)?;
            let lowest = bias.values().copied().fold(f64::INFINITY, f64::min);
            // All biases sit at the upper end, so that no other token can win: theirs is 0.
            let highest = bias.values().copied().fold(f64::NEG_INFINITY, f64::max);
            if highest - lowest > 50.0 {
                return None;
            }
            let map: serde_json::Map<String, Value> =
                bias.iter().map(|(id, bias)| (id.to_string(), json!(bias - highest + 100.0))).collect();
            let request =
                json!({"logit_bias": map, "frequency_penalty": 2, "presence_penalty": 2, "max_tokens": steps});
            Some((request, steps))
        })
    }

    fn biases(&self, which: Which, steps: usize) -> Option<BTreeMap<u32, f64>> {
        /// The wanted token wins by at least this much, far more than two implementations differ.
        const MARGIN: f64 = 0.05;
        let wanted = &self.chosen[..steps];
        let mut constraints = Vec::new();
        for (step, &token) in wanted.iter().enumerate() {
            let score = |id: u32| {
                let said = wanted[..step].iter().filter(|&&other| other == id).count() as f64;
                let penalty = if said > 0.0 { 2.0 + 2.0 * said } else { 0.0 };
                f64::from(self.logits(which)[step][id as usize]) - penalty
            };
            constraints.extend(
                wanted
                    .iter()
                    .filter(|&&other| other != token)
                    .map(|&other| (token, other, score(token) - score(other) - MARGIN)),
            );
        }
        let mut bias: BTreeMap<u32, f64> = wanted.iter().map(|&id| (id, 0.0)).collect();
        for _ in 0..=bias.len() {
            let mut changed = false;
            for (token, other, most) in &constraints {
                let limit = bias[token] + most;
                if limit < bias[other] - 1e-9 {
                    bias.insert(*other, limit);
                    changed = true;
                }
            }
            if !changed {
                return Some(bias);
            }
        }
        None
    }

    fn logits(&self, which: Which) -> &[Vec<f32>] {
        match which {
            Which::Base => &self.logits[0],
            Which::Adapter => &self.logits[1],
        }
    }
}

/// `data:image/png;base64,…`.
#[must_use]
pub(crate) fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - highest - sum.ln()).collect()
}

/// A byte-level vocabulary writes every byte as a printable character (GPT-2's table); this undoes it.
fn vocabulary(tokenizer: &Value) -> Result<BTreeMap<u32, Token>> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut byte_of = BTreeMap::new();
    for byte in (0..256).filter(printable) {
        byte_of.insert(char::from_u32(byte).context("a character")?, u8::try_from(byte)?);
    }
    for (place, byte) in (0..256).filter(|byte| !printable(byte)).enumerate() {
        byte_of.insert(char::from_u32(256 + u32::try_from(place)?).context("a character")?, u8::try_from(byte)?);
    }
    let mut tokens = BTreeMap::new();
    for (text, id) in tokenizer["model"]["vocab"].as_object().context("no vocabulary")? {
        let name = text.chars().filter_map(|character| byte_of.get(&character).copied()).collect();
        tokens.insert(u32::try_from(id.as_u64().context("an id")?)?, Token { name, control: false });
    }
    for token in tokenizer["added_tokens"].as_array().context("no added tokens")? {
        let name = token["content"].as_str().context("a name")?.as_bytes().to_vec();
        tokens.insert(u32::try_from(token["id"].as_u64().context("an id")?)?, Token { name, control: true });
    }
    ensure!(tokens.len() > 256, "a vocabulary of {} tokens", tokens.len());
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_give_the_log_probabilities_beside_them() -> Result<()> {
        for pair in Golden::load()?.pairs {
            for which in [Which::Base, Which::Adapter] {
                for ((row, id), expected) in
                    pair.distributions(which).iter().zip(&pair.chosen).zip(pair.logprobs(which))
                {
                    assert!((row[*id as usize] - expected).abs() < 1e-4);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn forcing_wins_every_step() -> Result<()> {
        for pair in Golden::load()?.pairs {
            for which in [Which::Base, Which::Adapter] {
                let (request, steps) = pair.forcing(which).context("nothing can be forced")?;
                let bias = |id: usize| request["logit_bias"][id.to_string()].as_f64().unwrap_or(0.0);
                for step in 0..steps {
                    let said =
                        |id: usize| pair.chosen[..step].iter().filter(|&&other| other as usize == id).count() as f64;
                    let score = |id: usize, logit: f32| {
                        let penalty = if said(id) > 0.0 { 2.0 + 2.0 * said(id) } else { 0.0 };
                        f64::from(logit) + bias(id) - penalty
                    };
                    let scores = pair.logits(which)[step].iter().enumerate().map(|(id, &logit)| (id, score(id, logit)));
                    let best = scores.max_by(|a, b| a.1.total_cmp(&b.1)).context("a best token")?;
                    assert_eq!(best.0, pair.chosen[step] as usize);
                }
            }
        }
        Ok(())
    }
}
