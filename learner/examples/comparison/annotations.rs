//! Annotated pictures of the balanced world, with both negatives of every one.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use image::DynamicImage;
use rand::Rng;
use rand::seq::IndexedRandom;
use reground_learner::bootstrap::distort::{Distortion, DistortionKind, Normalisation};
use reground_learner::bootstrap::filter::{Candidate, Limits, PairFilter, Rejection};
use reground_learner::bootstrap::inject::{self, Injection};
use reground_learner::bootstrap::instruction::Wording;
use reground_learner::bootstrap::weaken::{self, Weakening};
use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::pair::{ImageRef, Message, NegativeKind, Part, PreferencePair, Role, Source};
use reground_learner::generator::{Question as Asked, Speaker, Turn};
use reground_learner::model::{self, Model, Request, Sampling, Workers};
use reground_learner::pocket::random::stream;
use reground_learner::pocket::text::{Caption, Detail, Question};
use reground_learner::pocket::world::{Picture, SIDE, Scene, Statistics};

use super::row::Row;

/// t of the first try: the paper's 900 leaves nothing of a picture of 64 pixels.
const NOISE: f64 = 80.0;
/// More for each try after the first, when the answer was still right.
const MORE_NOISE: f64 = 40.0;
/// Tries for each kind of negative before an annotation is given up.
const TRIES: u64 = 4;
/// Pictures that are worked on at once.
const BLOCK: u64 = 64;
/// Longer than any answer of the pocket.
const MAX_TOKENS: usize = 64;
/// Share of the annotations that describe the whole picture; the others answer a question.
const DESCRIPTIONS: f64 = 0.75;

/// One annotated picture.
#[derive(Clone, Debug)]
struct Annotation {
    index: u64,
    image: Arc<DynamicImage>,
    digest: String,
    question: String,
    chosen: String,
    weakened: Option<(String, Distortion)>,
    injected: Option<String>,
}

/// Annotations that all have both negatives, and what was rejected on the way.
pub(crate) struct Annotations {
    all: Vec<Annotation>,
    pub(crate) rejections: BTreeMap<Rejection, u64>,
    pub(crate) given_up: usize,
}

/// What generates the negatives.
pub(crate) struct Maker<'a> {
    pub(crate) model: &'a Model,
    pub(crate) workers: &'a Workers,
    pub(crate) blobs: &'a dyn Blobs,
    pub(crate) seed: u64,
}

impl Maker<'_> {
    /// The first `count` annotations of the seed; asking for more gives the same ones and more.
    pub(crate) fn make(&self, count: usize) -> Result<Annotations> {
        let mut filter = PairFilter::new(Limits::default());
        let (mut all, mut given_up) = (Vec::new(), 0);
        let mut start = 0;
        while all.len() < count {
            let mut block = (start..start + BLOCK).map(|index| self.draw(index)).collect::<Result<Vec<_>>>()?;
            start += BLOCK;
            for trial in 0..TRIES {
                self.weaken(&mut block, trial, &mut filter)?;
                self.inject(&mut block, trial, &mut filter)?;
            }
            let whole = |one: &Annotation| one.weakened.is_some() && one.injected.is_some();
            given_up += block.iter().filter(|one| !whole(one)).count();
            all.extend(block.into_iter().filter(whole));
        }
        all.truncate(count);
        Ok(Annotations { all, rejections: filter.rejections().clone(), given_up })
    }

    fn draw(&self, index: u64) -> Result<Annotation> {
        let mut random = stream(self.seed, "comparison annotation", index);
        let scene = Scene::sample(Statistics::Balanced, &mut random);
        let image = DynamicImage::from(Picture::draw(&scene, &mut random).image());
        let (question, chosen) = if random.random_bool(DESCRIPTIONS) {
            let request = Detail::Full.requests().choose(&mut random).context("no request")?;
            ((*request).to_owned(), Caption::of(&scene, Detail::Full, &mut random).to_string())
        } else {
            let question = Question::sample(&scene, &mut random);
            (question.text.clone(), question.answer())
        };
        let mut png = std::io::Cursor::new(Vec::new());
        image.write_to(&mut png, image::ImageFormat::Png)?;
        let digest = self.blobs.put(png.get_ref())?;
        Ok(Annotation { index, image: Arc::new(image), digest, question, chosen, weakened: None, injected: None })
    }

    fn weaken(&self, block: &mut [Annotation], trial: u64, filter: &mut PairFilter) -> Result<()> {
        let mut missing: Vec<&mut Annotation> = block.iter_mut().filter(|one| one.weakened.is_none()).collect();
        let weakening = |one: &Annotation| Weakening {
            distortion: Distortion {
                kind: DistortionKind::Noise,
                strength: NOISE + MORE_NOISE * trial as f64,
                seed: stream(self.seed, "comparison noise", one.index * TRIES + trial).random(),
            },
            edge: SIDE as u32,
            normalisation: Normalisation::default(),
            temperature: weaken::TEMPERATURE,
            max_tokens: MAX_TOKENS,
        };
        let asked = missing
            .iter()
            .map(|one| {
                let images = vec![Arc::clone(&one.image)];
                let turns = [Turn { speaker: Speaker::User, images, text: one.question.clone() }];
                Ok(weaken::question(&turns, &weakening(one))?)
            })
            .collect::<Result<Vec<_>>>()?;
        for (one, answer) in missing.iter_mut().zip(self.answers(&asked)?) {
            if admitted(filter, one, &answer) {
                one.weakened = Some((answer, weakening(one).distortion));
            }
        }
        Ok(())
    }

    fn inject(&self, block: &mut [Annotation], trial: u64, filter: &mut PairFilter) -> Result<()> {
        let mut missing: Vec<&mut Annotation> = block.iter_mut().filter(|one| one.injected.is_none()).collect();
        let injection = Injection { wording: Wording::Pocket, max_tokens: MAX_TOKENS, ..Injection::default() };
        let seed = |one: &Annotation| stream(self.seed, "comparison injection", one.index * TRIES + trial).random();
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
    fn answers(&self, asked: &[Asked]) -> Result<Vec<String>> {
        let requests = asked
            .iter()
            .map(|asked| {
                let turn = asked.turns.last().context("no turn")?;
                let images =
                    turn.images.iter().map(|image| self.model.preprocess(image)).collect::<Result<Vec<_>, _>>()?;
                let message = model::Message::user(turn.text.as_str(), images.len());
                let group = self.model.group(&[message], &images, &[])?;
                Ok(Request {
                    prompt: group.prompt,
                    features: group.features,
                    adapter: None,
                    sampling: Sampling { temperature: asked.temperature, top_p: asked.top_p, seed: asked.seed },
                    max_tokens: asked.max_tokens,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let completions = self.model.generate(&requests, self.workers)?;
        let text = |ids: &[u32]| Ok(self.model.tokenizer().decode(ids)?.trim().to_owned());
        completions.iter().map(|completion| text(&completion.ids)).collect()
    }
}

fn admitted(filter: &mut PairFilter, one: &Annotation, rejected: &str) -> bool {
    let candidate = Candidate {
        images: &one.digest,
        question: &one.question,
        chosen: &one.chosen,
        rejected,
        source: Source::Annotation,
        key: None,
    };
    filter.admit(&candidate).is_ok()
}

impl Annotations {
    /// How many of the image-weakened and of the injected negatives, for the log.
    pub(crate) fn examples(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.all
            .iter()
            .filter_map(|one| Some((one.chosen.as_str(), one.weakened.as_ref()?.0.as_str(), one.injected.as_deref()?)))
    }

    /// The pairs of `row` about the first `count` annotations.
    pub(crate) fn pairs(&self, row: Row, count: usize) -> Vec<PreferencePair> {
        let (weakened, injected) = row.negatives();
        let mut pairs = Vec::new();
        for one in self.all.iter().take(count) {
            let distortion = one.weakened.as_ref().map(|(_, distortion)| *distortion);
            let pair = |kind: &str, rejected: Option<&str>, negative| PreferencePair {
                id: format!("pair-{}-{kind}", one.index),
                images: vec![ImageRef { digest: one.digest.clone(), width: SIDE as u32, height: SIDE as u32 }],
                conversation: vec![Message {
                    role: Role::User,
                    content: vec![Part::Image { index: 0 }, Part::Text { text: one.question.clone() }],
                }],
                chosen: one.chosen.clone(),
                rejected: rejected.map(str::to_owned),
                distortion,
                source: Source::Annotation,
                negative,
            };
            if weakened {
                let rejected = one.weakened.as_ref().map(|(text, _)| text.as_str());
                pairs.push(pair("weakened", rejected, Some(NegativeKind::ImageWeakened)));
            }
            if injected {
                pairs.push(pair("injected", one.injected.as_deref(), Some(NegativeKind::Injected)));
            }
            if !weakened && !injected {
                pairs.push(pair("annotation", None, None));
            }
        }
        pairs
    }
}
