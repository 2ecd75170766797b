//! Which pairs a run trains on, and which it holds out.
//!
//! The split goes by *image*: seed and digest alone decide on which side one is, so that it stays there as a dataset grows and
//! from run to run. A pair is on the side of its images; where they are on both, it is on neither, or one of them would be
//! trained on and held out. A pair without images goes by its conversation.

use std::collections::HashSet;

use super::pair::PreferencePair;
use super::prepare::Dropped;
use super::seed::{self, Purpose};
use crate::bootstrap::filter::answer_digest;

/// Why a pair is on neither side.
const REJECTED_IS_CHOSEN: &str = "the rejected answer is another pair's chosen one";
const ON_BOTH_SIDES: &str = "some of its images are held out, others are not";

/// The pairs of a dataset by side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Split {
    /// Pairs to train on, in the order of the dataset.
    pub train: Vec<PreferencePair>,
    /// Pairs to evaluate, in the order of the dataset.
    pub held_out: Vec<PreferencePair>,
    /// Why pairs are on neither side, and how many.
    pub dropped: Dropped,
}

impl Split {
    /// Holds out a share of the images, 0 to below 1. A pair whose rejected answer is the chosen one of another pair on the same
    /// images and conversation is dropped: together they teach nothing but noise.
    pub fn new(pairs: Vec<PreferencePair>, share: f64, seed: u64) -> Self {
        let is_held_out = |subject: &String| {
            let bits = seed::derive(seed, Purpose::Split, &[], subject);
            (bits as f64 / u64::MAX as f64) < share
        };
        let says =
            |pair: &PreferencePair, answer: &str| answer_digest(&pair.subjects().join("+"), &pair.question(), answer);
        let chosen: HashSet<_> = pairs.iter().map(|pair| says(pair, &pair.chosen)).collect();
        let mut split = Self::default();
        for pair in pairs {
            let subjects = pair.subjects();
            let held_out = subjects.iter().filter(|subject| is_held_out(subject)).count();
            if pair.rejected.as_ref().is_some_and(|rejected| chosen.contains(&says(&pair, rejected))) {
                split.leave_out(REJECTED_IS_CHOSEN);
            } else if held_out == 0 {
                split.train.push(pair);
            } else if held_out == subjects.len() {
                split.held_out.push(pair);
            } else {
                split.leave_out(ON_BOTH_SIDES);
            }
        }
        split
    }

    fn leave_out(&mut self, reason: &str) {
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpo::pair::{ImageRef, Message, Part, Role, Source};

    fn pair(id: &str, images: &[usize], question: &str, answers: [&str; 2]) -> PreferencePair {
        let image = |number: &usize| ImageRef { digest: format!("{number:064x}"), width: 4, height: 4 };
        let [chosen, rejected] = answers.map(str::to_owned);
        let mut content: Vec<Part> = (0..images.len()).map(|index| Part::Image { index }).collect();
        content.push(Part::Text { text: question.to_owned() });
        PreferencePair {
            id: id.to_owned(),
            images: images.iter().map(image).collect(),
            conversation: vec![Message { role: Role::User, content }],
            chosen,
            rejected: Some(rejected),
            distortion: None,
            source: Source::Annotation,
            negative: None,
        }
    }

    fn of_images(number: usize, images: &[usize]) -> PreferencePair {
        pair(&format!("pair-{number}-{images:?}"), images, "What?", ["Yes.", "No."])
    }

    #[test]
    fn the_split_keeps_images_together_and_does_not_move() {
        let single = |count: usize| (0..count).map(|number| of_images(number, &[number / 2])).collect::<Vec<_>>();
        let Split { train, held_out, dropped } = Split::new(single(400), 0.2, 3);
        assert!((60..100).contains(&held_out.len()), "{}", held_out.len());
        assert!(train.iter().all(|one| held_out.iter().all(|other| one.images != other.images)));
        assert!(dropped.is_empty());
        let fewer = Split::new(single(200), 0.2, 3).held_out;
        assert!(fewer.iter().all(|pair| held_out.contains(pair)));
        assert!(Split::new(single(9), 0.0, 3).held_out.is_empty());
    }

    #[test]
    fn no_image_is_on_both_sides_of_pairs_with_several() {
        let single: Vec<_> = (0..200).map(|number| of_images(number, &[number])).collect();
        let several = (0..200).map(|number| of_images(number, &[number, (number + 1) % 200]));
        let all = single.iter().cloned().chain(several).collect::<Vec<_>>();
        let split = Split::new(all.clone(), 0.3, 3);
        let images = |pairs: &[PreferencePair]| pairs.iter().flat_map(PreferencePair::subjects).collect::<HashSet<_>>();
        assert!(images(&split.train).is_disjoint(&images(&split.held_out)));
        assert!(split.held_out.iter().any(|pair| pair.images.len() == 2));
        let dropped = split.dropped[ON_BOTH_SIDES];
        assert_eq!(split.train.len() + split.held_out.len() + dropped, all.len());
        // What a run without such pairs holds out is not trained on by one with them.
        assert!(images(&Split::new(single, 0.3, 3).held_out).is_disjoint(&images(&split.train)));
    }

    #[test]
    fn a_conversation_without_images_is_on_one_side() {
        let of = |number: usize, rejected| {
            pair(&format!("{number}{rejected}"), &[], &format!("Who is {number}?"), ["Nobody.", rejected])
        };
        let pairs = (0..200).flat_map(|number| [of(number, "Ann."), of(number, "Bob.")]).collect();
        let Split { train, held_out, .. } = Split::new(pairs, 0.3, 3);
        assert!(held_out.len() > 60);
        assert!(train.iter().all(|one| held_out.iter().all(|other| one.conversation != other.conversation)));
    }

    #[test]
    fn what_another_pair_chooses_is_not_rejected() {
        let pairs = vec![
            pair("1", &[1], "What?", ["A dog.", "A cat."]),
            pair("2", &[1], "What?", ["a cat", "A cow."]),
            // Another question, and another image.
            pair("3", &[1], "Where?", ["A dog.", "A cat."]),
            pair("4", &[2], "What?", ["A dog.", "A cat."]),
        ];
        let Split { train, dropped, .. } = Split::new(pairs, 0.0, 3);
        assert_eq!(train.iter().map(|pair| pair.id.as_str()).collect::<Vec<_>>(), ["2", "3", "4"]);
        assert_eq!(dropped[REJECTED_IS_CHOSEN], 1);
    }
}
