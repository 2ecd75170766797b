//! Held-out pictures of the pocket world, and everything that a model can be asked about them.
//!
//! # Layout
//! - [`Size`], [`Example`], [`examples`], [`caption_items`], [`pope_items`], [`write()`]: the pictures and the questions, also as files.
//! - [`PocketReader`]: from a caption to its mentions (`reader`).
//! - [`evaluate`]: asks everything and measures; [`habits`]: only what a change is judged by (`evaluation`).

mod evaluation;
mod reader;

pub use evaluation::{evaluate, habits};
pub use reader::PocketReader;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use super::random::stream;
use super::text::{Detail, Question};
use super::world::{Kind, Picture, Scene, Statistics};
use crate::eval::chair::Truth;
use crate::eval::error::EvalError;
use crate::eval::pope::PopeItem;
use crate::eval::pope_sampling::{Absent, Frequencies, questions};
use crate::eval::set::{CaptionItem, write_jsonl};

/// Typical scenes that POPE's frequencies are counted on.
const REFERENCE_SCENES: u64 = 4000;

/// Which questions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pictures of each kind of statistics.
    pub images: usize,
    /// Present objects that POPE asks for per picture, and as many absent ones.
    pub pope_per_image: usize,
    /// Decides pictures and questions. Whatever it is, the pictures are none of those that a build is trained on: those
    /// come from streams of other purposes.
    pub seed: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { images: 400, pope_per_image: 2, seed: 0 }
    }
}

/// A held-out picture with what it shows.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its name, which is also its file name.
    pub name: String,
    /// What it shows.
    pub scene: Scene,
    /// The picture.
    pub image: Arc<RgbImage>,
}

/// The first `count` held-out pictures under `statistics`.
pub fn examples(statistics: Statistics, count: usize, seed: u64) -> Vec<Example> {
    let purpose = format!("held out {}", statistics.name());
    (0..count)
        .map(|index| {
            let mut random = stream(seed, &purpose, index as u64);
            let scene = Scene::sample(statistics, &mut random);
            let image = Arc::new(Picture::draw(&scene, &mut random).image());
            Example { name: format!("{}_{index:05}.png", statistics.name()), scene, image }
        })
        .collect()
}

/// What captions of `scene` are held against.
pub fn truth(scene: &Scene) -> Vec<Truth> {
    scene
        .groups
        .iter()
        .map(|group| Truth {
            object: group.kind.word().to_owned(),
            colour: Some(group.colour.word().to_owned()),
            count: Some(u32::from(group.count())),
            places: group.places.iter().map(|place| place.word().to_owned()).collect(),
        })
        .collect()
}

/// The caption set of `examples`.
pub fn caption_items(examples: &[Example]) -> Vec<CaptionItem> {
    examples
        .iter()
        .map(|example| CaptionItem {
            image: example.name.clone(),
            objects: truth(&example.scene),
            question: Detail::Full.requests()[0].to_owned(),
        })
        .collect()
}

/// POPE questions about `examples`, with the frequencies of typical scenes: adversarial questions ask for what a model
/// expects from habit.
pub fn pope_items(examples: &[Example], absent: Absent, size: Size) -> Vec<PopeItem> {
    let objects =
        |scene: &Scene| -> BTreeSet<String> { scene.groups.iter().map(|group| group.kind.word().to_owned()).collect() };
    let reference: Vec<BTreeSet<String>> = (0..REFERENCE_SCENES)
        .map(|index| objects(&Scene::sample(Statistics::typical(), &mut stream(size.seed, "pope reference", index))))
        .collect();
    let images: Vec<(String, BTreeSet<String>)> =
        examples.iter().map(|example| (example.name.clone(), objects(&example.scene))).collect();
    let nowhere = Scene { groups: Vec::new() };
    questions(&images, &Frequencies::count(&reference), absent, size.pope_per_image, size.seed, |object| {
        // Every object of the reference is a kind of the world.
        Kind::from_word(object).map_or_else(String::new, |kind| Question::existence(&nowhere, kind).text)
    })
}

/// Writes the held-out pictures and questions as files: `images/*.png`, `captions_<statistics>.jsonl`,
/// `pope_<kind>_<statistics>.jsonl`.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &Path, size: Size) -> Result<(), EvalError> {
    let images = directory.join("images");
    fs_err::create_dir_all(&images)?;
    for statistics in [Statistics::typical(), Statistics::Balanced] {
        let examples = examples(statistics, size.images, size.seed);
        for example in &examples {
            let path = images.join(&example.name);
            example.image.save(&path).map_err(|error| EvalError::Image { path, reason: error.to_string() })?;
        }
        write_jsonl(&directory.join(format!("captions_{}.jsonl", statistics.name())), &caption_items(&examples))?;
        for absent in Absent::ALL {
            let file = format!("pope_{}_{}.jsonl", absent.name(), statistics.name());
            write_jsonl(&directory.join(file), &pope_items(&examples, absent, size))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::set::{image_in, read_jsonl};

    #[test]
    fn written_sets_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let size = Size { images: 3, ..Size::default() };
        write(directory.path(), size).unwrap();
        let captions: Vec<CaptionItem> = read_jsonl(&directory.path().join("captions_balanced.jsonl")).unwrap();
        let examples = examples(Statistics::Balanced, 3, 0);
        for (item, example) in captions.iter().zip(&examples) {
            assert_eq!(item.objects, truth(&example.scene));
            let image = image_in(&directory.path().join("images"), &item.image).unwrap().load().unwrap();
            assert_eq!(image, example.image);
        }
        let pope: Vec<PopeItem> = read_jsonl(&directory.path().join("pope_adversarial_typical.jsonl")).unwrap();
        assert!(!pope.is_empty() && pope.len().is_multiple_of(2));
    }
}
