//! Annotated pictures with their negatives, and the pairs that a row of the table makes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::DynamicImage;
use reground_learner::bootstrap::distort::Distortion;
use reground_learner::bootstrap::filter::Rejection;
use reground_learner::bpo::pair::{ImageRef, Message, NegativeKind, Part, PreferencePair, Role, Source};
use reground_learner::pocket::world::SIDE;

use super::row::{Negatives, Row};

/// One annotated picture.
#[derive(Clone, Debug)]
pub(super) struct Annotation {
    pub(super) index: u64,
    pub(super) image: Arc<DynamicImage>,
    pub(super) digest: String,
    pub(super) question: String,
    pub(super) chosen: String,
    pub(super) weakened: Vec<(String, Distortion)>,
    pub(super) injected: Vec<String>,
}

/// Annotations that all have both negatives, and what was rejected on the way.
pub(crate) struct Annotations {
    pub(super) all: Vec<Annotation>,
    pub(crate) rejections: BTreeMap<Rejection, u64>,
    pub(crate) given_up: usize,
}

impl Annotations {
    /// Chosen answer, first image-weakened and first injected negative, for the log.
    pub(crate) fn examples(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let first = |one| {
            let Annotation { chosen, weakened, injected, .. }: &Annotation = one;
            Some((chosen.as_str(), weakened.first()?.0.as_str(), injected.first()?.as_str()))
        };
        self.all.iter().filter_map(first)
    }

    /// `count` pairs of `row`: the annotations in turn, again and again, each time with the next of their negatives. Where
    /// there are both kinds they take turns, too. So the rows of a block see the same chosen answers equally often.
    pub(crate) fn pairs(&self, row: Row, count: usize) -> Vec<PreferencePair> {
        let Negatives { weakened, injected, each } = row.negatives();
        let both = weakened && injected;
        (0..count)
            .map(|number| {
                let (nth, round) = (number % self.all.len(), number / self.all.len());
                let one = &self.all[nth];
                let use_weakened = weakened && (!both || (nth + round).is_multiple_of(2));
                let turn = if both { round / 2 } else { round };
                let of = |made: usize| turn % made.min(each);
                let noisy = &one.weakened[of(one.weakened.len())];
                let (rejected, negative) = match (use_weakened, injected) {
                    (true, _) => (Some(noisy.0.clone()), Some(NegativeKind::ImageWeakened)),
                    (false, true) => (Some(one.injected[of(one.injected.len())].clone()), Some(NegativeKind::Injected)),
                    (false, false) => (None, None),
                };
                PreferencePair {
                    id: format!("pair-{}-{round}", one.index),
                    images: vec![ImageRef { digest: one.digest.clone(), width: SIDE as u32, height: SIDE as u32 }],
                    conversation: vec![Message {
                        role: Role::User,
                        content: vec![Part::Image { index: 0 }, Part::Text { text: one.question.clone() }],
                    }],
                    chosen: one.chosen.clone(),
                    rejected,
                    distortion: Some(noisy.1),
                    source: Source::Annotation,
                    negative,
                }
            })
            .collect()
    }
}
