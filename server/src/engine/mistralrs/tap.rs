//! Where tokens are chosen and reported.
//!
//! mistralrs calls a logits processor with the logits of each step. This one chooses the token itself, reports it, and
//! gives back logits that leave mistralrs no choice. So seeds, penalties and grammars are ours, log-probabilities are
//! natural ones of the model itself, and the engine never waits for a reader. An answer that must end before the model
//! ends it (cancelled, no room left, failed) is ended by handing over the end-of-turn token.
//!
//! The turn is passed on with the last token: the next request reaches the engine while it still puts this one away. Should
//! mistralrs not end the sequence there, the next one waits inside it, because a running sequence does count for its limit.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};
use mistralrs::CustomLogitsProcessor;
use tokio::sync::OwnedSemaphorePermit;

#[cfg(test)]
use crate::engine::sampler::LETHAL_SEED;
use crate::engine::sampler::Sampler;
use crate::engine::{EngineError, Event, EventSender, Finish, Vocabulary};

/// Most tokens that a chat template is expected to add around the messages.
const TEMPLATE_TOKENS: usize = 256;

/// Chooses and reports the tokens of one answer.
pub(super) struct Tap {
    vocabulary: Arc<Vocabulary>,
    /// Most tokens of prompt and answer.
    max_len: usize,
    /// Tokens of the prompt as counted before, without the template's own.
    counted: usize,
    max_tokens: usize,
    progress: Mutex<Progress>,
    /// Whether this answer kills its engine.
    #[cfg(test)]
    lethal: bool,
}

struct Progress {
    sampler: Sampler,
    events: EventSender,
    prompt_tokens: Option<usize>,
    tokens: usize,
    outcome: Outcome,
    /// Held from the request's way into the engine to its last token.
    turn: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Running,
    EndOfTurn,
    NoRoom,
    Failed,
}

impl Tap {
    pub(super) fn new(
        sampler: Sampler,
        events: EventSender,
        vocabulary: Arc<Vocabulary>,
        max_len: usize,
        counted: usize,
        max_tokens: Option<usize>,
    ) -> Self {
        let progress =
            Progress { sampler, events, prompt_tokens: None, tokens: 0, outcome: Outcome::Running, turn: None };
        Self {
            vocabulary,
            max_len,
            counted,
            max_tokens: max_tokens.unwrap_or(usize::MAX),
            #[cfg(test)]
            lethal: progress.sampler.seed() == LETHAL_SEED,
            progress: Mutex::new(progress),
        }
    }

    /// It is this answer's turn.
    pub(super) fn hold(&self, turn: OwnedSemaphorePermit) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).turn = Some(turn);
    }

    /// Reports the end, once the sequence has left the engine: with `error` if the engine gave one.
    pub(super) fn finish(&self, error: Option<EngineError>) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.turn = None;
        let event = match (progress.outcome, error) {
            (Outcome::Failed, _) => return,
            // A forward pass over a prompt beyond the last position fails without saying why.
            (Outcome::Running, Some(EngineError::Failed(_)))
                if progress.prompt_tokens.is_none() && self.counted + TEMPLATE_TOKENS >= self.max_len =>
            {
                Event::Failed(EngineError::TooLong { prompt: self.max_len.max(self.counted), max_len: self.max_len })
            }
            (_, Some(error)) => Event::Failed(error),
            (Outcome::EndOfTurn, None) => Event::Finished(Finish::Stop),
            // Still running when the engine ended it: mistralrs counted to max_tokens before we did.
            (Outcome::NoRoom | Outcome::Running, None) => Event::Finished(Finish::Length),
        };
        progress.events.send(event);
    }

    /// The token for this step; `None` ends the answer.
    fn next(&self, logits: &[f32], length: usize) -> Option<u32> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let token = self.choose(&mut progress, logits, length);
        if token.is_none() || progress.outcome != Outcome::Running || progress.tokens == self.max_tokens {
            progress.turn = None;
        }
        token
    }

    fn choose(&self, progress: &mut Progress, logits: &[f32], length: usize) -> Option<u32> {
        if progress.outcome != Outcome::Running || progress.events.is_cancelled() {
            return None;
        }
        if progress.prompt_tokens.is_none() {
            progress.prompt_tokens = Some(length);
            if length >= self.max_len {
                progress.outcome = Outcome::Failed;
                progress.events.send(Event::Failed(EngineError::TooLong { prompt: length, max_len: self.max_len }));
                return None;
            }
            progress.events.send(Event::Started { prompt_tokens: length });
        }
        if progress.tokens >= self.max_tokens || length >= self.max_len {
            progress.outcome = Outcome::NoRoom;
            return None;
        }
        match progress.sampler.next(logits) {
            Ok(token) => {
                let id = token.id;
                progress.tokens += 1;
                if self.vocabulary.ends_turn(id) {
                    progress.outcome = Outcome::EndOfTurn;
                }
                progress.events.send(Event::Token(token));
                Some(id)
            }
            Err(error) => {
                progress.outcome = Outcome::Failed;
                progress.events.send(Event::Failed(error));
                None
            }
        }
    }
}

impl CustomLogitsProcessor for Tap {
    fn apply(&self, logits: &Tensor, context: &[u32]) -> candle_core::Result<Tensor> {
        #[cfg(test)]
        assert!(!self.lethal, "killed on purpose");
        let logits = logits.to_vec1::<f32>()?;
        let chosen = self.next(&logits, context.len()).unwrap_or(self.vocabulary.end_of_turn()[0]);
        let mut certain = vec![f32::NEG_INFINITY; logits.len()];
        if let Some(logit) = certain.get_mut(chosen as usize) {
            *logit = 0.0;
        }
        Tensor::from_vec(certain, logits.len(), &Device::Cpu)
    }
}
