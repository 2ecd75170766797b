//! The engine's thread: who is admitted, and what is computed in which order.
//!
//! Between two steps of the sequences that answer, the thread looks at one tile of a picture and reads one piece of the
//! prompts that wait, so that a long prompt holds up nobody's tokens for long. Where a prompt is cut does not depend on what
//! else runs, and every row of a matrix product is computed for itself: a neighbour changes an answer's numbers by
//! rounding only.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use candle_core::{DType, Tensor};
use reground_learner::model::{Adapters, KeyValues, Lora, Model, ModelError};
use tracing::error;

use super::features::FeatureCache;
use super::sequence::Sequence;
use crate::engine::{EngineError, Event, Vocabulary};

/// Rows of one prompt that are read at once.
const PIECE: usize = 256;
/// Rows of all prompts that are read at once.
const ROWS: usize = 512;

/// What the thread works on.
pub(super) struct Scheduler {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
    features: Arc<FeatureCache>,
    arrivals: Receiver<Sequence>,
    /// Not admitted yet, first come first.
    waiting: VecDeque<Sequence>,
    /// Admitted, their prompts not read yet, first come first.
    reading: Vec<Sequence>,
    /// Those of one generation beside each other.
    answering: Vec<Sequence>,
    bytes_per_token: usize,
    /// Bytes of keys and values that all sequences together may take.
    budget: usize,
    max_parallel: usize,
}

impl Scheduler {
    pub(super) fn new(
        model: Arc<Model>,
        vocabulary: Arc<Vocabulary>,
        features: Arc<FeatureCache>,
        arrivals: Receiver<Sequence>,
        budget: usize,
        max_parallel: usize,
    ) -> Self {
        Self {
            bytes_per_token: KeyValues::bytes_per_token(model.decoder().config(), model.decoder().dtype()),
            model,
            vocabulary,
            features,
            arrivals,
            waiting: VecDeque::new(),
            reading: Vec::new(),
            answering: Vec::new(),
            budget,
            max_parallel,
        }
    }

    /// Works until nobody can send any more.
    pub(super) fn run(mut self) {
        loop {
            if self.waiting.is_empty() && self.reading.is_empty() && self.answering.is_empty() {
                let Ok(sequence) = self.arrivals.recv() else { return };
                self.waiting.push_back(sequence);
            }
            while let Ok(sequence) = self.arrivals.try_recv() {
                self.waiting.push_back(sequence);
            }
            // What may fail is caught closer to its sequences; should anything else, they end and the engine goes on.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                let all = self.waiting.drain(..).chain(self.reading.drain(..)).chain(self.answering.drain(..));
                all.for_each(|sequence| sequence.fail(panicked()));
            }
        }
    }

    fn turn(&mut self) {
        self.waiting.retain(|sequence| !sequence.is_cancelled());
        self.reading.retain(|sequence| !sequence.is_cancelled());
        self.answering.retain(|sequence| !sequence.is_cancelled());
        self.admit();
        self.look();
        self.read();
        self.answer();
    }

    /// Lets in who fits, in the order of arrival: whoever needs much is not overtaken for ever.
    fn admit(&mut self) {
        let mut held: usize = self.reading.iter().chain(&self.answering).map(Sequence::held).sum();
        while self.reading.len() + self.answering.len() < self.max_parallel {
            let Some(next) = self.waiting.front() else { return };
            if (held + next.capacity()) * self.bytes_per_token > self.budget {
                return;
            }
            let Some(mut next) = self.waiting.pop_front() else { return };
            match next.admit(&self.model) {
                Ok(()) => {
                    held += next.held();
                    self.reading.push(next);
                }
                Err(error) => next.fail(EngineError::Failed(error.to_string())),
            }
        }
    }

    /// Looks at one tile.
    fn look(&mut self) {
        let Some(at) = self.reading.iter().position(Sequence::is_blind) else { return };
        let (model, features) = (&self.model, &self.features);
        let sequence = &mut self.reading[at];
        if let Err(error) = guarded(|| sequence.look(model, features)) {
            self.reading.remove(at).fail(error);
        }
    }

    /// Reads one piece of the prompts whose pictures were seen.
    fn read(&mut self) {
        let (mut chosen, mut rest, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let mut total = 0;
        for sequence in self.reading.drain(..) {
            let piece = sequence.unread().min(PIECE);
            if sequence.is_blind() || (total > 0 && total + piece > ROWS) {
                rest.push(sequence);
            } else {
                total += piece;
                rows.push(piece);
                chosen.push(sequence);
            }
        }
        self.reading = rest;
        if chosen.is_empty() {
            return;
        }
        let model = &self.model;
        match guarded(|| read(model, &mut chosen, &rows)) {
            Err(error) => chosen.into_iter().for_each(|sequence| sequence.fail(error.clone())),
            Ok(logits) => {
                let mut going_on = Vec::new();
                for (mut sequence, logits) in chosen.into_iter().zip(logits) {
                    match logits {
                        None => going_on.push(sequence),
                        Some(logits) => {
                            sequence.start();
                            if let Some(sequence) = self.choose(sequence, &logits) {
                                self.answering.push(sequence);
                            }
                        }
                    }
                }
                // Who came first stays first.
                going_on.append(&mut self.reading);
                self.reading = going_on;
                self.answering.sort_by_key(|sequence| sequence.adapter().map(Arc::as_ptr));
            }
        }
    }

    /// One token of every sequence that answers.
    fn answer(&mut self) {
        if self.answering.is_empty() {
            return;
        }
        let mut sequences = std::mem::take(&mut self.answering);
        let model = &self.model;
        match guarded(|| step(model, &mut sequences)) {
            Err(error) => sequences.into_iter().for_each(|sequence| sequence.fail(error.clone())),
            Ok(logits) => {
                for (sequence, logits) in sequences.into_iter().zip(logits) {
                    let going_on = self.choose(sequence, &logits);
                    self.answering.extend(going_on);
                }
            }
        }
    }

    /// Chooses a token; `None` if the answer ended with it.
    fn choose(&self, mut sequence: Sequence, logits: &[f32]) -> Option<Sequence> {
        let ends_turn = |id| self.vocabulary.ends_turn(id);
        let end = guarded(|| Ok(sequence.choose(logits, ends_turn))).unwrap_or_else(|error| Some(Event::Failed(error)));
        match end {
            Some(event) => {
                sequence.end(event);
                None
            }
            None => Some(sequence),
        }
    }
}

/// The next rows of these prompts. Gives the logits, `[vocabulary]`, of those that are complete with them.
fn read(model: &Model, sequences: &mut [Sequence], rows: &[usize]) -> Result<Vec<Option<Vec<f32>>>, ModelError> {
    let mut embeddings = Vec::with_capacity(rows.len());
    for (sequence, rows) in sequences.iter_mut().zip(rows) {
        embeddings.push(sequence.next_rows(model, *rows)?);
    }
    let owned = adapters(sequences);
    let mut start = 0;
    let spans = owned.iter().zip(rows).map(|(adapter, rows)| {
        start += rows;
        (start - rows..start, adapter.as_deref())
    });
    let adapters = by_rows(spans);
    let mut caches = Vec::with_capacity(rows.len());
    for sequence in sequences.iter_mut() {
        caches.push(sequence.cache()?);
    }
    let hidden = model.decoder().extend(&Tensor::cat(&embeddings, 0)?, rows, &adapters, &mut caches)?;
    let complete: Vec<u32> =
        (0_u32..).zip(sequences.iter()).filter(|(_, sequence)| sequence.unread() == 0).map(|(at, _)| at).collect();
    let mut logits = vec![None; sequences.len()];
    if !complete.is_empty() {
        let hidden = hidden.index_select(&Tensor::new(complete.as_slice(), hidden.device())?, 0)?;
        for (at, row) in complete.into_iter().zip(rows_of(model, &hidden)?) {
            logits[at as usize] = Some(row);
        }
    }
    Ok(logits)
}

/// One step of these sequences: the logits of each one's next token, `[vocabulary]`.
fn step(model: &Model, sequences: &mut [Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
    #[cfg(test)]
    assert!(!sequences.iter().any(Sequence::is_lethal), "killed on purpose");
    let ids: Vec<u32> = sequences.iter().map(Sequence::last).collect();
    let owned = adapters(sequences);
    let adapters = by_rows(owned.iter().enumerate().map(|(row, adapter)| (row..row + 1, adapter.as_deref())));
    let mut caches = Vec::with_capacity(ids.len());
    for sequence in sequences.iter_mut() {
        caches.push(sequence.cache()?);
    }
    rows_of(model, &model.decoder().step(&ids, &adapters, &mut caches)?)
}

fn rows_of(model: &Model, hidden: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    Ok(model.decoder().logits(hidden)?.to_dtype(DType::F32)?.to_vec2()?)
}

fn adapters(sequences: &[Sequence]) -> Vec<Option<Arc<Lora>>> {
    sequences.iter().map(|sequence| sequence.adapter().cloned()).collect()
}

/// Neighbouring rows of the same adapter as one span, so that its products are done once.
fn by_rows<'a>(owners: impl Iterator<Item = (Range<usize>, Option<&'a Lora>)>) -> Adapters<'a> {
    let mut spans: Vec<(Range<usize>, &Lora)> = Vec::new();
    for (rows, adapter) in owners {
        let Some(adapter) = adapter else { continue };
        match spans.last_mut() {
            Some((span, same)) if span.end == rows.start && std::ptr::eq(*same, adapter) => span.end = rows.end,
            _ => spans.push((rows, adapter)),
        }
    }
    Adapters::by_rows(spans)
}

/// Runs a part of a turn; a panic in it is an error of the sequences that it was for, not the end of the engine.
fn guarded<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failure)) => {
            error!(error = %failure, "A step of the engine failed; its answers end with an error.");
            Err(EngineError::Failed(failure.to_string()))
        }
        Err(_) => {
            error!("A step of the engine panicked; its answers end with an error, the engine goes on.");
            Err(panicked())
        }
    }
}

fn panicked() -> EngineError {
    EngineError::Failed("a step panicked; the engine goes on".into())
}
