//! Making POPE questions from annotated images.
//!
//! For each image as many absent objects are asked for as present ones. Which absent ones is what the three kinds differ
//! in: any (random), the most frequent of the set (popular), those most often seen together with what is there
//! (adversarial). Frequencies come from a *reference* set, the world that the model's habits come from.

use std::collections::{BTreeMap, BTreeSet};

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::pope::{PopeItem, Verdict};

/// How absent objects are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Absent {
    /// Any.
    Random,
    /// The most frequent ones.
    Popular,
    /// Those most often seen together with what is there.
    Adversarial,
}

impl Absent {
    /// All kinds, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Random, Self::Popular, Self::Adversarial];

    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Popular => "popular",
            Self::Adversarial => "adversarial",
        }
    }
}

/// How often objects, and pairs of objects, are seen in a set of images.
#[derive(Clone, Debug, Default)]
pub struct Frequencies {
    single: BTreeMap<String, usize>,
    together: BTreeMap<(String, String), usize>,
}

impl Frequencies {
    /// Counts images by the objects in them.
    pub fn count<'a>(images: impl IntoIterator<Item = &'a BTreeSet<String>>) -> Self {
        let mut frequencies = Self::default();
        for objects in images {
            for object in objects {
                *frequencies.single.entry(object.clone()).or_default() += 1;
                for other in objects.iter().filter(|&other| other != object) {
                    *frequencies.together.entry((object.clone(), other.clone())).or_default() += 1;
                }
            }
        }
        frequencies
    }

    /// How often `object` is seen with any of `present`, relative to how often those are seen: the sum of the conditional
    /// frequencies, so that a rare pair of rare objects counts.
    fn companionship(&self, object: &str, present: &BTreeSet<String>) -> f64 {
        present
            .iter()
            .map(|there| {
                let pair = self.together.get(&(there.clone(), object.to_owned())).copied().unwrap_or(0);
                pair as f64 / self.single.get(there).copied().unwrap_or(0).max(1) as f64
            })
            .sum()
    }

    fn absent(&self, kind: Absent, present: &BTreeSet<String>, random: &mut ChaCha8Rng) -> Vec<String> {
        let mut absent: Vec<String> = self.single.keys().filter(|&object| !present.contains(object)).cloned().collect();
        // Shuffled first, so that ties fall at random under the stable sorts below.
        absent.shuffle(random);
        match kind {
            Absent::Random => {}
            Absent::Popular => absent.sort_by_key(|object| std::cmp::Reverse(self.single.get(object).copied())),
            Absent::Adversarial => {
                absent.sort_by(|a, b| self.companionship(b, present).total_cmp(&self.companionship(a, present)))
            }
        }
        absent
    }
}

/// Questions about `images` (name and objects of each): up to `per_image` present objects of each image, and as many
/// absent ones. `ask` words the question for an object.
pub fn questions(
    images: &[(String, BTreeSet<String>)],
    reference: &Frequencies,
    kind: Absent,
    per_image: usize,
    seed: u64,
    ask: impl Fn(&str) -> String,
) -> Vec<PopeItem> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut items = Vec::new();
    for (image, objects) in images {
        let mut present: Vec<&String> = objects.iter().collect();
        present.shuffle(&mut random);
        let absent = reference.absent(kind, objects, &mut random);
        for (present, absent) in present.into_iter().zip(&absent).take(per_image) {
            for (object, label) in [(present, Verdict::Yes), (absent, Verdict::No)] {
                let question_id = items.len() as u64 + 1;
                items.push(PopeItem { question_id, image: image.clone(), text: ask(object), label });
            }
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(objects: &[&str]) -> BTreeSet<String> {
        objects.iter().map(|&object| object.to_owned()).collect()
    }

    fn first_absent(kind: Absent, image: &[&str]) -> String {
        let reference = [
            set(&["cat", "hat"]),
            set(&["cat", "hat"]),
            set(&["car"]),
            set(&["car"]),
            set(&["car"]),
            set(&["dog", "car"]),
        ];
        let frequencies = Frequencies::count(&reference);
        let images = [("1.png".to_owned(), set(image))];
        let items = questions(&images, &frequencies, kind, 1, 0, |object| format!("Is there a {object} in the image?"));
        assert_eq!(items.len(), 2);
        assert_eq!((items[0].label, items[1].label), (Verdict::Yes, Verdict::No));
        items[1].text.clone()
    }

    #[test]
    fn popular_is_frequent_and_adversarial_is_a_companion() {
        assert_eq!(first_absent(Absent::Popular, &["cat"]), "Is there a car in the image?");
        assert_eq!(first_absent(Absent::Adversarial, &["cat"]), "Is there a hat in the image?");
        assert_eq!(first_absent(Absent::Adversarial, &["dog"]), "Is there a car in the image?");
    }

    proptest! {
        #[test]
        fn questions_are_balanced_and_rightly_labelled(seed in any::<u64>(), picks in prop::collection::vec(prop::collection::btree_set(0usize..8, 1..4), 1..20)) {
            let name = |index: &usize| format!("object{index}");
            let images: Vec<(String, BTreeSet<String>)> = picks
                .iter()
                .enumerate()
                .map(|(index, objects)| (index.to_string(), objects.iter().map(name).collect()))
                .collect();
            let frequencies = Frequencies::count(images.iter().map(|(_, objects)| objects));
            for kind in Absent::ALL {
                let items = questions(&images, &frequencies, kind, 3, seed, str::to_owned);
                prop_assert_eq!(&items, &questions(&images, &frequencies, kind, 3, seed, str::to_owned));
                let yes = items.iter().filter(|item| item.label == Verdict::Yes).count();
                prop_assert_eq!(yes * 2, items.len());
                for item in &items {
                    let (_, objects) = images.iter().find(|(image, _)| *image == item.image).unwrap();
                    prop_assert_eq!(objects.contains(&item.text), item.label == Verdict::Yes);
                }
            }
        }
    }
}
