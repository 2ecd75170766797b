//! Annotated pictures with their negatives, and the pairs that a row of the table makes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::DynamicImage;
use reground_learner::bootstrap::distort::Distortion;
use reground_learner::bootstrap::filter::Rejection;
use reground_learner::bpo::pair::{ImageRef, Message, NegativeKind, Part, PreferencePair, Role, Source};
use reground_learner::pocket::world::SIDE;
use serde_json::{Value, json};

use super::row::{Negatives, Row};

/// One annotated picture.
#[derive(Clone, Debug)]
pub(super) struct Annotation {
    pub(super) index: u64,
    pub(super) image: Arc<DynamicImage>,
    pub(super) digest: String,
    pub(super) question: String,
    pub(super) chosen: String,
    pub(super) weakened: Option<(String, Distortion)>,
    pub(super) injected: Option<String>,
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
            Some((chosen.as_str(), weakened.as_ref()?.0.as_str(), injected.as_deref()?))
        };
        self.all.iter().filter_map(first)
    }

    /// Their pairs with one kind of negative, a JSON line each, as `reground eval` reads them; images are named by their path
    /// among the blobs.
    pub(crate) fn preference_data(&self, kind: NegativeKind) -> String {
        let line = |one: &Annotation| {
            let rejected = match kind {
                NegativeKind::ImageWeakened => &one.weakened.as_ref()?.0,
                _ => one.injected.as_ref()?,
            };
            let image =
                json!({"type": "image_url", "image_url": {"url": format!("{}/{}", &one.digest[..2], one.digest)}});
            let content = json!([image, {"type": "text", "text": one.question}]);
            let said = |text: &str| -> Value { json!([{"role": "assistant", "content": text}]) };
            let input = json!({"messages": [{"role": "user", "content": content}]});
            let preferred = (said(&one.chosen), said(rejected));
            Some(
                json!({"input": input, "preferred_output": preferred.0, "non_preferred_output": preferred.1})
                    .to_string()
                    + "\n",
            )
        };
        self.all.iter().filter_map(line).collect()
    }

    /// `count` pairs of `row`: the annotations in turn, again and again; where there are both kinds of negatives they take
    /// turns. So the rows of a block see the same chosen answers equally often.
    pub(crate) fn pairs(&self, row: Row, count: usize) -> Vec<PreferencePair> {
        let Negatives { weakened, injected } = row.negatives();
        let both = weakened && injected;
        (0..count)
            .map(|number| {
                let (nth, round) = (number % self.all.len(), number / self.all.len());
                let one = &self.all[nth];
                let use_weakened = weakened && (!both || (nth + round).is_multiple_of(2));
                let misled = one.weakened.as_ref();
                let (rejected, negative) = match (use_weakened, injected) {
                    (true, _) => (misled.map(|(text, _)| text.clone()), Some(NegativeKind::ImageWeakened)),
                    (false, true) => (one.injected.clone(), Some(NegativeKind::Injected)),
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
                    distortion: misled.map(|(_, distortion)| *distortion),
                    source: Source::Annotation,
                    negative,
                }
            })
            .collect()
    }
}
