//! Batched generation with cached keys and values.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::adapters::Adapters;
use super::decoder::{KeyValues, Packed};
use super::error::ModelError;
use super::lora::Lora;
use super::multimodal::Model;
use super::sampler::{Sampler, Sampling};
use super::workers::Workers;
use crate::bpo::policy::Group;

/// Prompt rows that are run at once before generation.
const PREFILL_ROWS: usize = 2048;

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Prompt token ids, image placeholders expanded.
    pub prompt: Arc<[u32]>,
    /// Features of the prompt's images, `[image tokens, hidden]`.
    pub features: Option<Tensor>,
    /// The adapter that answers; `None` for the base.
    pub adapter: Option<&'a Lora>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most new tokens, the end-of-turn token included.
    pub max_tokens: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// `max_tokens`, or the model's last position.
    Length,
}

/// A generated answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// New token ids; the last one is the end-of-turn token if the model ended its turn.
    pub ids: Vec<u32>,
    /// `log π` (natural log) of each under the model that answered, before temperature and `top_p`.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

struct Running<'a> {
    index: usize,
    adapter: Option<&'a Lora>,
    sampler: Sampler,
    cache: KeyValues,
    left: usize,
    completion: Completion,
}

impl Model {
    /// Answers of all requests, in their order. Prompts of any lengths and adapters share the batch; an answer does not
    /// depend on what else is in it, except for rounding.
    ///
    /// # Errors
    /// A prompt longer than the model's positions, an empty prompt, sampling settings out of range.
    pub fn generate(&self, requests: &[Request<'_>], workers: &Workers) -> Result<Vec<Completion>, ModelError> {
        let weights: Vec<usize> =
            requests.iter().map(|request| request.prompt.len() + 4 * request.max_tokens).collect();
        let parts = workers.share(&weights);
        let results = workers.map(parts.clone(), |part| {
            let requests: Vec<&Request<'_>> = part.iter().map(|index| &requests[*index]).collect();
            self.generate_part(&requests)
        });
        let mut completions: Vec<Option<Completion>> = vec![None; requests.len()];
        for (part, of_part) in parts.into_iter().zip(results) {
            for (index, completion) in part.into_iter().zip(of_part?) {
                completions[index] = Some(completion);
            }
        }
        Ok(completions.into_iter().flatten().collect())
    }

    fn generate_part(&self, requests: &[&Request<'_>]) -> Result<Vec<Completion>, ModelError> {
        let mut running: Vec<Running<'_>> = Vec::with_capacity(requests.len());
        let mut done: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut start = 0;
        while start < requests.len() {
            let mut end = start;
            let mut rows = 0;
            while end < requests.len() && (end == start || rows + requests[end].prompt.len() <= PREFILL_ROWS) {
                rows += requests[end].prompt.len();
                end += 1;
            }
            running.extend(self.start(requests, start..end)?);
            start = end;
        }
        loop {
            let (ended, going): (Vec<_>, Vec<_>) = running.into_iter().partition(|sequence| sequence.left == 0);
            for sequence in ended {
                done[sequence.index] = Some(sequence.completion);
            }
            running = going;
            if running.is_empty() {
                return Ok(done.into_iter().flatten().collect());
            }
            let ids: Vec<u32> =
                running.iter().map(|sequence| sequence.completion.ids.last().copied().unwrap_or(0)).collect();
            let owners: Vec<_> = running.iter().enumerate().map(|(row, s)| (row..row + 1, s.adapter)).collect();
            let hidden = {
                let mut caches: Vec<&mut KeyValues> = running.iter_mut().map(|s| &mut s.cache).collect();
                self.decoder().step(&ids, &Adapters::by_owner(owners), &mut caches)?
            };
            self.choose(&hidden, &mut running)?;
        }
    }

    /// Runs the prompts of some requests and chooses their first tokens.
    fn start<'a>(&self, requests: &[&Request<'a>], range: Range<usize>) -> Result<Vec<Running<'a>>, ModelError> {
        let decoder = self.decoder();
        let limit = decoder.config().max_positions;
        let mut groups = Vec::with_capacity(range.len());
        let mut running = Vec::with_capacity(range.len());
        for index in range {
            let request = requests[index];
            request.sampling.validate()?;
            let length = request.prompt.len();
            if length >= limit {
                return Err(ModelError::TooLong { length: length + 1, limit });
            }
            let left = request.max_tokens.min(limit - length);
            groups.push(Group {
                prompt: request.prompt.clone(),
                features: request.features.clone(),
                answers: Vec::new(),
            });
            running.push(Running {
                index,
                adapter: request.adapter,
                sampler: Sampler::new(request.sampling),
                cache: KeyValues::new(decoder.config(), length + left, decoder.dtype(), decoder.device())?,
                left,
                completion: Completion { ids: Vec::new(), log_probs: Vec::new(), finish: Finish::Length },
            });
        }
        let packed = Packed::new(&groups)?;
        let embeddings = self.embed(&packed)?;
        let owners = packed.spans.iter().zip(&running).map(|(span, s)| (span.queries.clone(), s.adapter));
        let adapters = Adapters::by_owner(owners);
        let hidden = {
            let mut caches: Vec<&mut KeyValues> = running.iter_mut().map(|s| &mut s.cache).collect();
            decoder.prefill(&embeddings, &packed, &adapters, &mut caches)?
        };
        // Asked for no tokens, a sequence gets none.
        self.choose(&hidden, &mut running)?;
        Ok(running)
    }

    /// The next token of each sequence from the hidden state that predicts it.
    fn choose(&self, hidden: &Tensor, running: &mut [Running<'_>]) -> Result<(), ModelError> {
        let logits = self.decoder().logits(hidden)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let stops = self.tokenizer().stops();
        for (sequence, logits) in running.iter_mut().zip(&logits) {
            if sequence.left == 0 {
                continue;
            }
            let (token, log_prob) = sequence.sampler.choose(logits);
            sequence.completion.ids.push(token);
            sequence.completion.log_probs.push(log_prob);
            sequence.left -= 1;
            if stops.contains(&token) {
                sequence.completion.finish = Finish::Stop;
                sequence.left = 0;
            }
        }
        Ok(())
    }
}
