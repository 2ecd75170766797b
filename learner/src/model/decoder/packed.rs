//! Sequences side by side in one matrix: no padding, and each group's prompt once for all its answers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::bpo::policy::Group;
use crate::model::ops::attention::Span;

/// Rows of one answer in a packed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRows {
    /// Row of the last prompt token: it predicts the first token of the answer.
    pub before: usize,
    /// Rows of the answer's own tokens. The last one predicts nothing that is scored.
    pub rows: Range<usize>,
}

impl AnswerRows {
    /// The rows whose logits predict the answer's tokens, in the order of the tokens.
    pub fn predicting(&self) -> impl Iterator<Item = usize> + use<> {
        let (before, start, length) = (self.before, self.rows.start, self.rows.len());
        (0..length).map(move |index| {
            if index == 0 {
                before
            } else {
                start + index - 1
            }
        })
    }
}

/// A batch of groups as rows: for each group its prompt, then its answers one after the other. Every answer's positions
/// go on from the end of the prompt, and each sees the prompt and itself.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Token of each row.
    pub ids: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// What each row sees.
    pub spans: Arc<[Span]>,
    /// Rows of each answer of each group.
    pub answers: Vec<Vec<AnswerRows>>,
    /// Image features of the groups that have an image, in the order of the rows.
    pub features: Vec<Tensor>,
}

impl Packed {
    /// Packs groups. Prompts must not be empty.
    ///
    /// # Errors
    /// An empty prompt: nothing would predict the first token of its answers.
    pub fn new<'a>(groups: impl IntoIterator<Item = &'a Group>) -> Result<Self> {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut spans, mut answers, mut features) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            if group.prompt.is_empty() {
                candle_core::bail!("a group has an empty prompt");
            }
            let prompt = ids.len()..ids.len() + group.prompt.len();
            ids.extend_from_slice(&group.prompt);
            positions.extend(0..group.prompt.len() as u32);
            spans.push(Span::causal(prompt.clone(), prompt.end..prompt.end));
            let mut rows_of_answers = Vec::with_capacity(group.answers.len());
            for answer in &group.answers {
                let rows = ids.len()..ids.len() + answer.len();
                ids.extend_from_slice(answer);
                positions
                    .extend((0..answer.len()).map(|index| (group.prompt.len() + index) as u32));
                if !rows.is_empty() {
                    spans.push(Span::causal(rows.clone(), prompt.clone()));
                }
                rows_of_answers.push(AnswerRows {
                    before: prompt.end - 1,
                    rows,
                });
            }
            answers.push(rows_of_answers);
            features.extend(group.features.clone());
        }
        Ok(Self {
            ids,
            positions,
            spans: spans.into(),
            answers,
            features,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_two_answers() {
        let group = |prompt: &[u32], answers: &[&[u32]]| Group {
            prompt: prompt.into(),
            features: None,
            answers: answers.iter().map(|answer| Arc::from(*answer)).collect(),
        };
        let packed =
            Packed::new(&[group(&[1, 2, 3], &[&[4, 5], &[6]]), group(&[7], &[&[]])]).unwrap();
        assert_eq!(packed.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(packed.positions, [0, 1, 2, 3, 4, 3, 0]);
        assert_eq!(packed.spans.len(), 4);
        assert_eq!(packed.spans[2], Span::causal(5..6, 0..3));
        assert_eq!(
            packed.answers[0][0].predicting().collect::<Vec<_>>(),
            [2, 3]
        );
        assert_eq!(packed.answers[0][1].predicting().collect::<Vec<_>>(), [2]);
        assert_eq!(packed.answers[1][0].predicting().count(), 0);
        assert!(Packed::new(&[group(&[], &[])]).is_err());
    }
}
