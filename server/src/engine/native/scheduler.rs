//! The engine's thread: who is admitted, and what is computed in which order.
//!
//! Between two steps of the sequences that answer, the thread looks at one tile of a picture and reads one piece of the
//! prompts that wait, so that a long prompt holds up nobody's tokens for long. Every row of a matrix product is computed for
//! itself: a neighbour, and what of a prompt was read before, change an answer's numbers by rounding only.
//!
//! Background work has a lane of its own, in which nothing is computed while a live answer is inside: it waits as it is, keys
//! and values kept. Only where a live answer needs their memory do some of it lose them, and read again later what they have
//! asked and said.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use reground_learner::model::{Adapters, KeyValues, Lora, Model, ModelError};
use tracing::error;

use super::awake::with_others_awake;
use super::features::FeatureCache;
use super::prefixes::PrefixCache;
use super::sequence::Sequence;
use crate::engine::{EngineError, Event, Vocabulary};

/// How much of the prompts that wait is read at once.
#[derive(Clone, Copy)]
struct Reading {
    /// Rows of one prompt.
    piece: usize,
    /// Rows of all of them.
    rows: usize,
}

/// For live answers.
const AHEAD: Reading = Reading { piece: 256, rows: 512 };
/// For background work: a live answer that comes meanwhile waits until they are read.
const BEHIND: Reading = Reading { piece: 64, rows: 64 };

/// Multiplications of a product for one row from which on threads share it.
const WIDE: usize = 1 << 18;

/// What computing takes.
pub(super) struct Work {
    pub(super) model: Arc<Model>,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) features: Arc<FeatureCache>,
    pub(super) prefixes: Arc<PrefixCache>,
}

/// What the thread works on.
pub(super) struct Scheduler {
    work: Work,
    arrivals: Receiver<Sequence>,
    live: Lane,
    background: Lane,
    bytes_per_token: usize,
    /// Bytes of keys and values that all sequences together may take.
    budget: usize,
    /// Sequences that each lane admits.
    max_parallel: usize,
}

/// Sequences that are computed together.
struct Lane {
    reads: Reading,
    /// Not admitted yet, first come first.
    waiting: VecDeque<Sequence>,
    /// Admitted, their prompts not read yet, first come first.
    reading: Vec<Sequence>,
    /// Those of one generation beside each other.
    answering: Vec<Sequence>,
}

impl Scheduler {
    pub(super) fn new(work: Work, arrivals: Receiver<Sequence>, budget: usize, max_parallel: usize) -> Self {
        let decoder = work.model.decoder();
        Self {
            bytes_per_token: KeyValues::bytes_per_token(decoder.config(), decoder.dtype()),
            work,
            arrivals,
            live: Lane::new(AHEAD),
            background: Lane::new(BEHIND),
            budget,
            max_parallel,
        }
    }

    /// Works until nobody can send any more.
    pub(super) fn run(mut self) {
        loop {
            if self.live.is_empty() && self.background.is_empty() {
                let Ok(sequence) = self.arrivals.recv() else { return };
                self.take_in(sequence);
            }
            while let Ok(sequence) = self.arrivals.try_recv() {
                self.take_in(sequence);
            }
            // What may fail is caught closer to its sequences; should anything else, they end and the engine goes on.
            if catch_unwind(AssertUnwindSafe(|| self.turn())).is_err() {
                for lane in [&mut self.live, &mut self.background] {
                    lane.drain().for_each(|sequence| sequence.fail(panicked()));
                }
            }
        }
    }

    fn take_in(&mut self, sequence: Sequence) {
        let lane = if sequence.is_behind() { &mut self.background } else { &mut self.live };
        lane.waiting.push_back(sequence);
    }

    fn turn(&mut self) {
        self.live.drop_cancelled();
        self.background.drop_cancelled();
        self.admit_live();
        let Self { work, live, .. } = self;
        if !live.is_empty() {
            live.look(work);
            live.read(work);
            live.answer(work);
            return;
        }
        self.admit_background();
        let Self { work, background, .. } = self;
        // One thing a turn: a live answer may come any moment.
        if !background.look(work) && !background.read(work) {
            background.answer(work);
        }
    }

    /// Whether a sequence has room beside those that hold so many tokens.
    fn fits(&self, sequence: &Sequence, held: usize) -> bool {
        (held + sequence.capacity()) * self.bytes_per_token <= self.budget
    }

    /// Tokens that all caches have room for.
    fn held(&self) -> usize {
        self.live.held() + self.background.held()
    }

    /// Lets in who fits, in the order of arrival: whoever needs much is not overtaken for ever.
    fn admit_live(&mut self) {
        while self.live.inside() < self.max_parallel {
            let Some(next) = self.live.waiting.pop_front() else { return };
            // What it would not help is not taken.
            if self.fits(&next, self.live.held()) {
                while !self.fits(&next, self.held()) && self.background.make_room() {}
            }
            if !self.fits(&next, self.held()) {
                self.live.waiting.push_front(next);
                return;
            }
            self.live.admit(next, &self.work);
        }
    }

    fn admit_background(&mut self) {
        while self.background.inside() < self.max_parallel {
            let Some(next) = self.background.waiting.pop_front() else { return };
            if !self.fits(&next, self.held()) {
                self.background.waiting.push_front(next);
                return;
            }
            self.background.admit(next, &self.work);
        }
    }
}

impl Lane {
    fn new(reads: Reading) -> Self {
        Self { reads, waiting: VecDeque::new(), reading: Vec::new(), answering: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.inside() == 0
    }

    fn inside(&self) -> usize {
        self.reading.len() + self.answering.len()
    }

    /// Tokens that its caches have room for.
    fn held(&self) -> usize {
        self.reading.iter().chain(&self.answering).map(Sequence::held).sum()
    }

    fn drain(&mut self) -> impl Iterator<Item = Sequence> {
        self.waiting.drain(..).chain(self.reading.drain(..)).chain(self.answering.drain(..))
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|sequence| !sequence.is_cancelled());
        self.reading.retain(|sequence| !sequence.is_cancelled());
        self.answering.retain(|sequence| !sequence.is_cancelled());
    }

    fn admit(&mut self, mut sequence: Sequence, work: &Work) {
        match sequence.admit(&work.model) {
            Ok(()) => self.reading.push(sequence),
            Err(error) => sequence.fail(EngineError::Failed(error.to_string())),
        }
    }

    /// Takes the cache of the sequence that loses the least by it, and is the first to be admitted again; false if none has
    /// any.
    fn make_room(&mut self) -> bool {
        let shortest = (0..self.answering.len()).min_by_key(|&at| self.answering[at].length());
        let Some(mut sequence) = self.reading.pop().or_else(|| shortest.map(|at| self.answering.remove(at))) else {
            return false;
        };
        sequence.give_up_cache();
        self.waiting.push_front(sequence);
        true
    }

    /// Looks at one tile; false if there is none.
    fn look(&mut self, work: &Work) -> bool {
        let Some(at) = self.reading.iter().position(Sequence::is_blind) else { return false };
        let sequence = &mut self.reading[at];
        if let Err(error) = guarded(|| sequence.look(&work.model, &work.features)) {
            self.reading.remove(at).fail(error);
        }
        true
    }

    /// Reads one piece of the prompts whose pictures were seen; false if there is nothing to read.
    fn read(&mut self, work: &Work) -> bool {
        let mut chosen = self.choose_readers(work);
        if chosen.is_empty() {
            return false;
        }
        let rows: Vec<usize> = chosen.iter().map(|sequence| sequence.next_piece(self.reads.piece)).collect();
        match guarded(|| work.together(|| read(&work.model, &mut chosen, &rows))) {
            Err(error) => chosen.into_iter().for_each(|sequence| sequence.fail(error.clone())),
            Ok(logits) => {
                let mut going_on = Vec::new();
                for (sequence, logits) in chosen.into_iter().zip(logits) {
                    let lane = if sequence.unread() > 0 { &mut going_on } else { &mut self.answering };
                    lane.extend(work.choose_all(sequence, &logits));
                }
                // Who came first stays first.
                going_on.append(&mut self.reading);
                self.reading = going_on;
                self.answering.sort_by_key(|sequence| sequence.adapter().map(Arc::as_ptr));
            }
        }
        true
    }

    /// Takes out those that read a piece in this turn: as many as fit, in their order. Whose prompt begins as that of one
    /// before it waits for that one, to copy it then.
    fn choose_readers(&mut self, work: &Work) -> Vec<Sequence> {
        let (mut chosen, mut rest) = (Vec::<Sequence>::new(), Vec::<Sequence>::new());
        let Reading { piece, rows } = self.reads;
        let mut total = 0;
        for mut sequence in self.reading.drain(..) {
            if sequence.is_blind() || chosen.iter().chain(&rest).any(|before| sequence.awaits(before, &work.prefixes)) {
                rest.push(sequence);
                continue;
            }
            if total > 0 && total + sequence.next_piece(piece) > rows {
                rest.push(sequence);
                continue;
            }
            sequence.recall(&work.prefixes);
            total += sequence.next_piece(piece);
            chosen.push(sequence);
        }
        self.reading = rest;
        chosen
    }

    /// One token of every sequence that answers.
    fn answer(&mut self, work: &Work) {
        if self.answering.is_empty() {
            return;
        }
        let mut sequences = std::mem::take(&mut self.answering);
        self.answering = work.together(|| match guarded(|| step(&work.model, &mut sequences)) {
            Err(error) => {
                sequences.into_iter().for_each(|sequence| sequence.fail(error.clone()));
                Vec::new()
            }
            Ok(logits) => {
                let chosen = sequences.into_par_iter().zip(logits);
                chosen.flat_map_iter(|(sequence, logits)| work.choose_all(sequence, &[logits])).collect()
            }
        });
    }
}

impl Work {
    /// Computes on all threads where the model's products are worth more than one. A GPU needs none of them.
    fn together<T>(&self, compute: impl FnOnce() -> T) -> T {
        let decoder = self.model.decoder();
        let is_wide = decoder.config().hidden_size * decoder.config().intermediate_size >= WIDE;
        if is_wide && decoder.device().is_cpu() { with_others_awake(compute) } else { compute() }
    }

    /// Chooses a token from each row of logits; `None` if the answer ended with one of them.
    fn choose_all(&self, mut sequence: Sequence, logits: &[Vec<f32>]) -> Option<Sequence> {
        for logits in logits {
            let is_first = sequence.start();
            let end = self.choose(&mut sequence, logits);
            // Its caller has the first token by now.
            if is_first {
                sequence.remember(&self.prefixes);
            }
            if let Some(event) = end {
                sequence.end(event);
                return None;
            }
        }
        Some(sequence)
    }

    /// Chooses a token, and says how the answer ended if it did.
    fn choose(&self, sequence: &mut Sequence, logits: &[f32]) -> Option<Event> {
        let ends_turn = |id| self.vocabulary.ends_turn(id);
        guarded(|| Ok(sequence.choose(logits, ends_turn))).unwrap_or_else(|error| Some(Event::Failed(error)))
    }
}

/// The next rows of these prompts. Gives each one's logits, `[vocabulary]`, of those rows that tokens of its answer follow from.
fn read(model: &Model, sequences: &mut [Sequence], rows: &[usize]) -> Result<Vec<Vec<Vec<f32>>>, ModelError> {
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
    let adapters = Adapters::by_owner(spans);
    let mut caches = Vec::with_capacity(rows.len());
    for sequence in sequences.iter_mut() {
        caches.push(sequence.cache()?);
    }
    let hidden = model.decoder().extend(&Tensor::cat(&embeddings, 0)?, rows, &adapters, &mut caches)?;
    let decided: Vec<usize> = sequences.iter().zip(rows).map(|(sequence, rows)| sequence.decided_by(*rows)).collect();
    let (mut end, mut deciding) = (0, Vec::new());
    for (rows, decided) in rows.iter().zip(&decided) {
        end += rows;
        deciding.extend((end - decided..end).map(|row| row as u32));
    }
    if deciding.is_empty() {
        return Ok(vec![Vec::new(); sequences.len()]);
    }
    let hidden = hidden.index_select(&Tensor::new(deciding.as_slice(), hidden.device())?, 0)?;
    let mut logits = rows_of(model, &hidden)?.into_iter();
    Ok(decided.into_iter().map(|count| logits.by_ref().take(count).collect()).collect())
}

/// One step of these sequences: the logits of each one's next token, `[vocabulary]`.
fn step(model: &Model, sequences: &mut [Sequence]) -> Result<Vec<Vec<f32>>, ModelError> {
    #[cfg(test)]
    assert!(!sequences.iter().any(Sequence::is_lethal), "killed on purpose");
    let ids: Vec<u32> = sequences.iter().map(Sequence::last).collect();
    let owned = adapters(sequences);
    let adapters =
        Adapters::by_owner(owned.iter().enumerate().map(|(row, adapter)| (row..row + 1, adapter.as_deref())));
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
