//! The pairs of one record that pass the filters.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use reground_learner::bootstrap::distort::Distortion;
use reground_learner::bootstrap::filter::{PairFilter, Rejection};
use reground_learner::bpo::pair::{NegativeKind, PreferencePair};
use reground_learner::store::id;
use reground_learner::store::rows::{Made, Pair, PairState, Record, word};

use super::case::{candidate, images, question};
use super::choose::Choice;
use super::counters;

/// A rejected answer.
pub(super) struct Negative {
    pub(super) text: String,
    pub(super) kind: NegativeKind,
    pub(super) distortion: Option<Distortion>,
    pub(super) made: Option<Made>,
    /// It ended because it became too long.
    pub(super) cut_off: bool,
}

impl Negative {
    /// An answer that nobody had to make.
    pub(super) fn given(text: String) -> Self {
        Self { text, kind: NegativeKind::Given, distortion: None, made: None, cut_off: false }
    }
}

/// The pairs of one record that pass the filters.
pub(super) struct Kept<'a> {
    record: &'a Record,
    choice: &'a Choice,
    measured: BTreeMap<String, f64>,
    filter: &'a mut PairFilter,
    pairs: Vec<Pair>,
}

impl<'a> Kept<'a> {
    /// None yet; `measured` is what was found out about the chosen answer.
    pub(super) fn new(
        record: &'a Record,
        choice: &'a Choice,
        measured: BTreeMap<String, f64>,
        filter: &'a mut PairFilter,
    ) -> Self {
        Self { record, choice, measured, filter, pairs: Vec::new() }
    }

    /// Keeps the pair with this negative, or counts why not. `Break`: no other draw is wanted, or none would help.
    pub(super) fn take(&mut self, negative: Negative) -> ControlFlow<()> {
        let kind = negative.kind;
        let pair = self.pair(negative);
        let (images, question) = (images(&pair.data), question(&pair.data.conversation));
        match self.filter.admit(&candidate(&pair, &images, &question)) {
            Ok(()) => {
                self.pairs.push(pair);
                ControlFlow::Break(())
            }
            Err(reason) => {
                counters::rejection(kind, &word(reason));
                match reason {
                    Rejection::SourceCap | Rejection::KeyCap | Rejection::TemplateCap => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            }
        }
    }

    pub(super) fn into_pairs(self) -> Vec<Pair> {
        self.pairs
    }

    fn pair(&self, negative: Negative) -> Pair {
        let Self { record, choice, .. } = self;
        Pair {
            data: PreferencePair {
                id: id::new("pair"),
                images: record.images.clone(),
                conversation: choice.conversation.clone(),
                chosen: choice.text.clone(),
                rejected: Some(negative.text),
                distortion: negative.distortion,
                source: choice.source,
                negative: Some(negative.kind),
            },
            created_ms: id::now_ms(),
            record: Some(record.id.clone()),
            generation: Some(record.generation.clone()),
            feedback: choice.feedback.clone(),
            key: Some(choice.key.clone()),
            filters: self.measured.clone(),
            made: negative.made,
            state: if choice.review.is_some() { PairState::Review } else { PairState::New },
            reason: choice.review.map(str::to_owned),
            reviews: Vec::new(),
            runs: Vec::new(),
        }
    }
}
