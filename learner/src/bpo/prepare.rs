//! From stored pairs to examples: tokens once at the start, image features when they are needed and then kept.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use candle_core::Tensor;
use image::DynamicImage;

use super::config::RunConfig;
use super::data::OnError;
use super::data::blobs::Blobs;
use super::error::TrainError;
use super::examples::{Example, ExampleError, Examples};
use super::pair::{Message, PreferencePair};
use super::policy::Group;
use super::seed::{self, Purpose};
use crate::bootstrap::distort::{Distortion, Normalisation};
use crate::images;

/// The parts of a model that turn a pair into numbers. All of it is frozen during a run.
pub trait Encoder {
    /// An image as the vision tower takes it.
    type Image;

    /// Pixel values of an image.
    ///
    /// # Errors
    /// The model cannot take it.
    fn preprocess(&self, image: &DynamicImage) -> Result<Self::Image, ExampleError>;

    /// What vision tower and connector make of it, `[image tokens, hidden]`.
    ///
    /// # Errors
    /// The model fails.
    fn features(&self, image: &Self::Image) -> Result<Tensor, ExampleError>;

    /// The features of several images, bit for bit those of one after the other.
    ///
    /// # Errors
    /// The model fails.
    fn all_features(&self, images: &[Self::Image]) -> Result<Vec<Tensor>, ExampleError> {
        images.iter().map(|image| self.features(image)).collect()
    }

    /// How many images [`Encoder::all_features`] does well to get at once. Default 1.
    fn at_once(&self) -> usize {
        1
    }

    /// Token ids of the conversation up to the answer, placeholders of `images` expanded.
    ///
    /// # Errors
    /// The template or the tokenizer refuses it.
    fn prompt(&self, conversation: &[Message], images: &[Self::Image]) -> Result<Vec<u32>, ExampleError>;

    /// Token ids of an answer, end-of-turn token included.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    fn answer(&self, text: &str) -> Result<Vec<u32>, ExampleError>;

    /// Most tokens of a prompt and its answer together. Default no limit.
    fn max_positions(&self) -> usize {
        usize::MAX
    }

    /// How the model normalises pixels, for diffusion noise. Default 0.5 and 0.5.
    fn normalisation(&self) -> Normalisation {
        Normalisation::default()
    }
}

/// Image features by image and distortion. It fills up and then keeps what it has: a run walks through its data again and
/// again in ever new orders, and throwing the oldest out would throw out what comes next as often as not.
#[derive(Debug, Default)]
pub struct FeatureCache {
    limit: usize,
    bytes: usize,
    features: HashMap<String, Tensor>,
    /// What the current forward pass needs and the limit leaves no room for.
    passing: HashMap<String, Tensor>,
}

impl FeatureCache {
    /// An empty cache of at most `limit` bytes.
    pub fn new(limit: usize) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { limit, ..Self::default() }))
    }

    fn get(&self, key: &str) -> Option<&Tensor> {
        self.features.get(key).or_else(|| self.passing.get(key))
    }

    fn insert(&mut self, key: String, tensor: Tensor) {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        if self.bytes + bytes <= self.limit {
            self.bytes += bytes;
            self.features.insert(key, tensor);
        } else {
            self.passing.insert(key, tensor);
        }
    }
}

/// Why pairs were left out, and how many.
pub type Dropped = BTreeMap<String, usize>;

struct Item {
    id: String,
    prompt: Arc<[u32]>,
    answers: Vec<Arc<[u32]>>,
    images: Vec<String>,
    distortion: Option<Distortion>,
}

/// Pairs with their tokens, and their images on call.
pub struct Prepared<'a, E: Encoder> {
    encoder: &'a E,
    blobs: &'a dyn Blobs,
    edge: u32,
    items: Vec<Item>,
    cache: Rc<RefCell<FeatureCache>>,
}

impl<'a, E: Encoder> Prepared<'a, E> {
    /// Tokenises `pairs` and drops those that the limits of the configuration or of the model rule out.
    ///
    /// # Errors
    /// A pair that cannot be prepared, where `data.on_error` is `fail`; otherwise it is dropped with its reason.
    pub fn new(
        encoder: &'a E,
        blobs: &'a dyn Blobs,
        config: &RunConfig,
        pairs: &[PreferencePair],
        cache: &Rc<RefCell<FeatureCache>>,
    ) -> Result<(Self, Dropped), TrainError> {
        let edge = config.data.distortion_edge;
        let mut prepared =
            Self { encoder, blobs, edge, items: Vec::with_capacity(pairs.len()), cache: Rc::clone(cache) };
        let mut dropped = Dropped::new();
        let mut images = (Vec::new(), Vec::new());
        for pair in pairs {
            let limits = |item| limits(&item, config, encoder.max_positions()).map(|()| item);
            let item = prepared.item(pair, config, &mut images).and_then(limits);
            match item {
                Ok(item) => prepared.items.push(item),
                Err(Refused::Limit(reason)) => *dropped.entry(reason.to_owned()).or_default() += 1,
                Err(Refused::Error(source)) if config.data.on_error == OnError::Fail => {
                    return Err(TrainError::Example { what: pair.id.clone(), source });
                }
                Err(Refused::Error(source)) => {
                    tracing::warn!(pair.id = %pair.id, error = %source, "a pair cannot be prepared and is left out");
                    *dropped.entry("cannot be prepared".to_owned()).or_default() += 1;
                }
            }
        }
        Ok((prepared, dropped))
    }

    /// The id of the pair that became example `index`.
    ///
    /// # Panics
    /// There is no such example.
    pub fn id(&self, index: usize) -> &str {
        &self.items[index].id
    }

    /// `last`: the images of the pair before, since pairs of one image mostly follow each other.
    fn item(
        &self,
        pair: &PreferencePair,
        config: &RunConfig,
        last: &mut (Vec<String>, Vec<E::Image>),
    ) -> Result<Item, Refused> {
        let digests = pair.images.iter().map(|image| image.digest.clone()).collect::<Vec<_>>();
        if last.0 != digests {
            let load = |digest: &String| self.encoder.preprocess(&self.image(digest, None)?);
            last.1 = digests.iter().map(load).collect::<Result<_, _>>()?;
            last.0.clone_from(&digests);
        }
        let prompt = self.encoder.prompt(&pair.conversation, &last.1)?;
        let texts = std::iter::once(&pair.chosen).chain(&pair.rejected);
        let answers =
            texts.map(|text| Ok(Arc::from(self.encoder.answer(text)?))).collect::<Result<_, ExampleError>>()?;
        let own = || Distortion {
            seed: seed::derive(config.seed, Purpose::Distortion, &[config.data.distortion.seed], &pair.id),
            ..config.data.distortion
        };
        let distortion = (!digests.is_empty()).then(|| pair.distortion.unwrap_or_else(own));
        Ok(Item { id: pair.id.clone(), prompt: Arc::from(prompt), answers, images: digests, distortion })
    }

    fn image(&self, digest: &str, distortion: Option<&Distortion>) -> Result<DynamicImage, ExampleError> {
        let bytes = self.blobs.get(digest).map_err(|error| format!("image {digest}: {error}"))?;
        let image = images::decode(&bytes).map_err(|error| format!("image {digest}: {error}"))?;
        let image = DynamicImage::ImageRgb8(image);
        let Some(distortion) = distortion else {
            return Ok(image);
        };
        Ok(distortion.apply_within(&image, self.edge, &self.encoder.normalisation())?)
    }

    /// Features of all images of an item, `[image tokens, hidden]`.
    fn features(&self, item: &Item, distortion: Option<&Distortion>) -> Result<Option<Tensor>, ExampleError> {
        let mut all = Vec::new();
        for digest in &item.images {
            let known = self.cache.borrow().get(&key(digest, distortion)).cloned();
            all.push(match known {
                Some(known) => known,
                None => self.encoder.features(&self.encoder.preprocess(&self.image(digest, distortion)?)?)?,
            });
        }
        Ok(match all.len() {
            0 => None,
            1 => all.pop(),
            _ => Some(Tensor::cat(&all, 0)?),
        })
    }
}

/// An image and what was done to it.
fn key(digest: &str, distortion: Option<&Distortion>) -> String {
    match distortion {
        None => digest.to_owned(),
        Some(Distortion { kind, strength, seed }) => format!("{digest} {kind:?} {strength} {seed}"),
    }
}

enum Refused {
    /// One of the limits of the configuration or of the model.
    Limit(&'static str),
    Error(ExampleError),
}

impl<E: Into<ExampleError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn limits(item: &Item, config: &RunConfig, max_positions: usize) -> Result<(), Refused> {
    let lengths = item.answers.iter().map(|answer| answer.len()).collect::<Vec<_>>();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let shortest = lengths.iter().copied().min().unwrap_or(0).max(1);
    let ratio = config.loss.length_ratio();
    if item.prompt.len() > config.data.max_prompt_tokens {
        return Err(Refused::Limit("prompt over data.max_prompt_tokens"));
    }
    if longest > config.data.max_answer_tokens {
        return Err(Refused::Limit("answer over data.max_answer_tokens"));
    }
    if item.prompt.len() + longest > max_positions {
        return Err(Refused::Limit("prompt and answer together over the model's positions"));
    }
    if ratio > 0.0 && longest as f64 / shortest as f64 > ratio {
        return Err(Refused::Limit("answers' lengths differ by more than loss.max_length_ratio"));
    }
    Ok(())
}

impl<E: Encoder> Examples for Prepared<'_, E> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn tokens(&self, index: usize) -> usize {
        let item = &self.items[index];
        item.prompt.len() + item.answers.iter().map(|answer| answer.len()).sum::<usize>()
    }

    fn has_rejected(&self, index: usize) -> bool {
        self.items[index].answers.len() > 1
    }

    fn prepare(&self, indices: &[usize], distorted: bool) -> Result<(), ExampleError> {
        self.cache.borrow_mut().passing.clear();
        let mut missing: Vec<(String, &Item, &String, Option<&Distortion>)> = Vec::new();
        for item in indices.iter().filter_map(|index| self.items.get(*index)) {
            let distortion = item.distortion.as_ref().filter(|_| distorted);
            for distortion in std::iter::once(None).chain(distortion.map(Some)) {
                for digest in &item.images {
                    let key = key(digest, distortion);
                    let known = self.cache.borrow().get(&key).is_some();
                    if !known && missing.iter().all(|(other, ..)| *other != key) {
                        missing.push((key, item, digest, distortion));
                    }
                }
            }
        }
        // In small parts: pixels take far more memory than features.
        for part in missing.chunks(self.encoder.at_once().max(1)) {
            let see = |(_, item, digest, distortion): &(_, &Item, &String, Option<&Distortion>)| {
                let image = self.image(digest, *distortion).and_then(|image| self.encoder.preprocess(&image));
                image.map_err(|error| format!("{}: {error}", item.id))
            };
            let images = part.iter().map(see).collect::<Result<Vec<_>, _>>()?;
            for ((key, ..), features) in part.iter().zip(self.encoder.all_features(&images)?) {
                self.cache.borrow_mut().insert(key.clone(), features);
            }
        }
        Ok(())
    }

    fn example(&self, index: usize, distorted: bool) -> Result<Example, ExampleError> {
        let item = self.items.get(index).ok_or_else(|| format!("there is no example {index}"))?;
        let with_id = |error: ExampleError| format!("{}: {error}", item.id);
        let prompt = || Arc::clone(&item.prompt);
        let features = self.features(item, None).map_err(with_id)?;
        let clean = Group { prompt: prompt(), features, answers: item.answers.clone() };
        let distorted = match item.distortion.filter(|_| distorted) {
            None => None,
            Some(distortion) => {
                let features = self.features(item, Some(&distortion)).map_err(with_id)?;
                let rows = |features: &Option<Tensor>| features.as_ref().and_then(|tensor| tensor.dim(0).ok());
                if rows(&features) != rows(&clean.features) {
                    // The prompt was expanded for the clean image; one of another size would not fit its places.
                    return Err(format!(
                        "{}: its distorted image has another number of tokens than the clean one",
                        item.id
                    )
                    .into());
                }
                Some(Group { prompt: prompt(), features, answers: item.answers[..1].to_vec() })
            }
        };
        Ok(Example { clean, distorted })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::{DType, Device};

    use super::super::data::blobs::BlobDir;
    use super::super::pair::{ImageRef, Part, Role, Source};
    use super::*;
    use crate::images::tests::{glass, photograph};

    /// Keeps the size and the first pixel of what it was shown last.
    #[derive(Default)]
    struct Eye {
        saw: Cell<Option<(u32, u32, [u8; 3])>>,
        max_positions: usize,
    }

    fn pair(digest: String) -> PreferencePair {
        PreferencePair {
            id: "pair-1".into(),
            images: vec![ImageRef { digest, width: 1, height: 1 }],
            conversation: vec![Message { role: Role::User, content: vec![Part::Image { index: 0 }] }],
            chosen: "A circle.".into(),
            rejected: None,
            distortion: None,
            source: Source::Annotation,
            negative: None,
        }
    }

    impl Encoder for Eye {
        type Image = ();

        fn preprocess(&self, image: &DynamicImage) -> Result<(), ExampleError> {
            self.saw.set(Some((image.width(), image.height(), image.to_rgb8().get_pixel(0, 0).0)));
            Ok(())
        }

        fn features(&self, (): &()) -> Result<Tensor, ExampleError> {
            Ok(Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?)
        }

        fn prompt(&self, _: &[Message], _: &[()]) -> Result<Vec<u32>, ExampleError> {
            Ok(vec![1])
        }

        fn answer(&self, _: &str) -> Result<Vec<u32>, ExampleError> {
            Ok(vec![1])
        }

        fn max_positions(&self) -> usize {
            self.max_positions
        }
    }

    #[test]
    fn training_sees_the_pixels_that_serving_sees() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path());
        let eye = Eye { max_positions: 2, ..Eye::default() };
        let saw = |bytes: &[u8]| {
            let pair = pair(blobs.put(bytes).unwrap());
            let (prepared, _) =
                Prepared::new(&eye, &blobs, &RunConfig::default(), &[pair], &FeatureCache::new(0)).unwrap();
            let first = eye.saw.take().unwrap();
            prepared.example(0, false).unwrap();
            assert_eq!(eye.saw.take().unwrap(), first, "features are of another image than the prompt");
            first
        };
        let (width, height, pixel) = saw(&photograph());
        assert_eq!((width, height), (32, 48));
        assert!(pixel[0] > 200 && pixel[2] < 50, "{pixel:?}");
        assert_eq!(saw(&glass()), (3, 2, [255; 3]));
    }

    #[test]
    fn a_pair_that_is_too_long_for_the_model_does_not_end_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobDir::new(dir.path());
        let pairs = [pair(blobs.put(&photograph()).unwrap())];
        for (max_positions, kept) in [(2, 1), (1, 0)] {
            let eye = Eye { max_positions, ..Eye::default() };
            let (prepared, dropped) =
                Prepared::new(&eye, &blobs, &RunConfig::default(), &pairs, &FeatureCache::new(0)).unwrap();
            assert_eq!((prepared.len(), dropped.values().sum::<usize>()), (kept, 1 - kept), "{dropped:?}");
        }
    }
}
