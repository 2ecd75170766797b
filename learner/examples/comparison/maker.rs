//! Makes annotations and both negatives of every one.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use image::DynamicImage;
use rand::Rng;
use rand::seq::IndexedRandom;
use reground_learner::bootstrap::distort::{Distortion, DistortionKind, Normalisation};
use reground_learner::bootstrap::filter::{Candidate, Limits, PairFilter, Standing};
use reground_learner::bootstrap::inject::{self, Injection};
use reground_learner::bootstrap::instruction::Wording;
use reground_learner::bootstrap::weaken::{self, Weakening};
use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::pair::Source;
use reground_learner::generator::{Question as Asked, Turn};
use reground_learner::model::{self, LoraPolicy, Request, Sampling};
use reground_learner::pocket::random::stream;
use reground_learner::pocket::text::{Caption, Detail, Question, read_caption};
use reground_learner::pocket::world::{Picture, SIDE, Scene, Statistics};

use super::annotations::{Annotation, Annotations};
use super::block::{Block, Kind};
use super::own;

/// Deviation of the blur, pixels, from and up to: at 2 the base still writes fluent captions of the same length, and its CHAIR_i
/// is twice that on clean pictures. Noise garbles before it misleads: up to t = 200 it changes next to nothing.
const BLUR: Range<f64> = 1.5..2.5;
/// More for each try after the first, when the answer was still right.
const MORE_BLUR: f64 = 1.0;
/// Tries for each negative.
const TRIES: u64 = 4;
/// Pictures that are worked on at once.
const BLOCK: u64 = 64;
/// Longer than any answer of the pocket.
pub(super) const MAX_TOKENS: usize = 64;
/// Share of the annotations that describe the whole picture; the others answer a question.
const DESCRIPTIONS: f64 = 0.75;

/// What generates the negatives.
pub(crate) struct Maker<'a> {
    pub(crate) policy: &'a LoraPolicy,
    pub(crate) blobs: &'a dyn Blobs,
    pub(crate) seed: u64,
}

impl Maker<'_> {
    /// The annotations of `block`; asking for more of them gives the same ones and more.
    pub(crate) fn make(&self, block: Block) -> Result<Annotations> {
        let Block { annotations: count, kind } = block;
        let mut filter = PairFilter::new(Limits::default());
        let (mut all, mut given_up) = (Vec::new(), 0);
        let mut start = 0;
        while all.len() < count {
            let mut block = (start..start + BLOCK).map(|index| self.draw(index, kind)).collect::<Result<Vec<_>>>()?;
            start += BLOCK;
            let drawn = block.len();
            if kind == Kind::Own {
                block = own::answered(self, block)?;
            }
            for trial in 0..TRIES {
                self.weaken(&mut block, trial, &mut filter)?;
                self.inject(&mut block, trial, &mut filter)?;
            }
            block.retain(|one| one.weakened.is_some() && one.injected.is_some());
            given_up += drawn - block.len();
            all.append(&mut block);
        }
        all.truncate(count);
        Ok(Annotations { all, rejections: filter.rejections().clone(), given_up })
    }

    fn draw(&self, index: u64, kind: Kind) -> Result<Annotation> {
        let mut random = stream(self.seed, "comparison annotation", index);
        let statistics = if kind == Kind::Typical { Statistics::typical() } else { Statistics::Balanced };
        let scene = Scene::sample(statistics, &mut random);
        let image = DynamicImage::from(Picture::draw(&scene, &mut random).image());
        let (question, chosen) = if random.random_bool(DESCRIPTIONS) {
            let request = Detail::Full.requests().choose(&mut random).context("no request")?;
            ((*request).to_owned(), Caption::of(&described(&scene, kind), Detail::Full, &mut random).to_string())
        } else {
            let question = Question::sample(&scene, &mut random);
            (question.text.clone(), question.answer())
        };
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, image::ImageFormat::Png)?;
        let digest = self.blobs.put(png.get_ref())?;
        Ok(Annotation { index, image: Arc::new(image), digest, question, chosen, weakened: None, injected: None })
    }

    fn distortion(&self, one: &Annotation, trial: u64) -> Distortion {
        let mut random = stream(self.seed, "comparison blur", attempt(one, trial));
        let strength = random.random_range(BLUR) + MORE_BLUR * trial as f64;
        Distortion { kind: DistortionKind::Blur, strength, seed: random.random() }
    }

    fn weaken(&self, block: &mut [Annotation], trial: u64, filter: &mut PairFilter) -> Result<()> {
        let mut missing: Vec<&mut Annotation> = block.iter_mut().filter(|one| one.weakened.is_none()).collect();
        let weakening = |one: &Annotation| Weakening {
            distortion: self.distortion(one, trial),
            edge: SIDE as u32,
            normalisation: Normalisation::default(),
            temperature: weaken::TEMPERATURE,
            max_tokens: MAX_TOKENS,
        };
        let asked = missing
            .iter()
            .map(|one| {
                let turns = [Turn::user([Arc::clone(&one.image)], one.question.as_str())];
                Ok(weaken::question(&turns, &weakening(one))?)
            })
            .collect::<Result<Vec<_>>>()?;
        for (one, answer) in missing.iter_mut().zip(self.answers(&asked)?) {
            if admitted(filter, one, &answer) {
                let distortion = self.distortion(one, trial);
                one.weakened = Some((answer, distortion));
            }
        }
        Ok(())
    }

    fn inject(&self, block: &mut [Annotation], trial: u64, filter: &mut PairFilter) -> Result<()> {
        let mut missing: Vec<&mut Annotation> = block.iter_mut().filter(|one| one.injected.is_none()).collect();
        let injection = Injection { wording: Wording::Pocket, max_tokens: MAX_TOKENS, ..Injection::default() };
        let seed = |one: &Annotation| stream(self.seed, "comparison injection", attempt(one, trial)).random();
        let asked: Vec<_> =
            missing.iter().map(|one| inject::question(&one.question, &one.chosen, &injection, seed(one))).collect();
        for (one, answer) in missing.iter_mut().zip(self.answers(&asked)?) {
            let answer = inject::cleaned(&answer);
            if admitted(filter, one, &answer) {
                one.injected = Some(answer);
            }
        }
        Ok(())
    }

    /// The base's answers, all at once: the pocket in this process needs no queue.
    pub(super) fn answers(&self, asked: &[Asked]) -> Result<Vec<String>> {
        let model = self.policy.model();
        let requests = asked
            .iter()
            .map(|asked| {
                let turn = asked.turns.last().context("no turn")?;
                let images = turn.images().map(|image| model.preprocess(image)).collect::<Result<Vec<_>, _>>()?;
                let message = model::Message::user(turn.text(), images.len());
                let group = model.group(&[message], &images, &[])?;
                Ok(Request {
                    prompt: group.prompt,
                    features: group.features,
                    adapter: None,
                    sampling: Sampling { temperature: asked.temperature, top_p: asked.top_p, seed: asked.seed },
                    max_tokens: asked.max_tokens,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let completions = model.generate(&requests, self.policy.workers())?;
        let text = |ids: &[u32]| Ok(model.tokenizer().decode(ids)?.trim().to_owned());
        completions.iter().map(|completion| text(&completion.ids)).collect()
    }
}

/// A number that no other try for any annotation has.
fn attempt(one: &Annotation, trial: u64) -> u64 {
    const MOST: u64 = 1024;
    one.index * MOST + trial
}

/// What the annotator describes of `scene`, whose groups stand in no order.
fn described(scene: &Scene, kind: Kind) -> Scene {
    let groups = match kind {
        Kind::Balanced | Kind::Own | Kind::Typical => scene.groups.clone(),
        Kind::OneObject => scene.groups.iter().take(1).cloned().collect(),
    };
    Scene { groups }
}

/// Whether both are captions that claim the same in another order or wording: some answers to
/// distorted pictures are right, and a right answer must not be trained away. Only a drawn world can tell.
fn says_the_same(chosen: &str, rejected: &str) -> bool {
    let (chosen, rejected) = (read_caption(chosen), read_caption(rejected));
    let well_formed = chosen.malformed.is_none() && rejected.malformed.is_none();
    let same_number = chosen.claims.len() == rejected.claims.len();
    well_formed && same_number && chosen.claims.iter().all(|claim| rejected.claims.contains(claim))
}

fn admitted(filter: &mut PairFilter, one: &Annotation, rejected: &str) -> bool {
    if says_the_same(&one.chosen, rejected) {
        return false;
    }
    let candidate = Candidate {
        images: &one.digest,
        question: &one.question,
        chosen: &one.chosen,
        rejected,
        source: Source::Annotation,
        key: None,
        standing: Standing::Chosen,
    };
    filter.admit(&candidate).is_ok()
}
