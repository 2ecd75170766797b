//! Rejected answers for a chosen one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use image::DynamicImage;
use reground_learner::bootstrap::distort::Distortion;
use reground_learner::bootstrap::filter::PairFilter;
use reground_learner::bootstrap::ground::{Grounded, Grounding, OwnAnswer, ground};
use reground_learner::bootstrap::inject::{self, Injection};
use reground_learner::bootstrap::instruction::{Task, Wording};
use reground_learner::bootstrap::weaken::{self, Weakening};
use reground_learner::bpo::pair::{NegativeKind, Source};
use reground_learner::generator::{GeneratorError, Question, Turn};
use reground_learner::store::rows::{Instruction, Made, Pair, Record, word};

use super::choose::{Choice, Skip};
use super::counters;
use super::kept::{Kept, Negative};
use super::models::Models;
use crate::config::BootstrapConfig;
use crate::recorder::replay::{text, turns};

/// Why there are no pairs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// There will never be any.
    Skip(Skip),
    /// The generation that was to answer is not loaded.
    NotLoaded,
    /// Another try may succeed.
    Failed(String),
}

impl From<GeneratorError> for Trouble {
    fn from(error: GeneratorError) -> Self {
        match error {
            GeneratorError::Invalid(_) | GeneratorError::Incomplete(_) => Self::Skip(Skip::Impossible),
            GeneratorError::NotLoaded(_) => Self::NotLoaded,
            GeneratorError::Failed(why) => Self::Failed(why),
        }
    }
}

/// A record, its chosen answer, and what both are asked about.
pub(super) struct Subject<'a> {
    pub(super) record: &'a Record,
    pub(super) choice: &'a Choice,
    /// Decoded, in the order of the record's images.
    pub(super) images: &'a [Arc<DynamicImage>],
    /// Who is asked; `None`: the live generation.
    pub(super) generation: Option<&'a str>,
}

/// Makes pairs.
pub(super) struct Maker {
    models: Models,
    config: BootstrapConfig,
}

impl Maker {
    pub(super) fn new(models: Models, config: BootstrapConfig) -> Self {
        Self { models, config }
    }

    /// All pairs that the filter keeps, which knows them from then on.
    pub(super) async fn pairs(&self, subject: &Subject<'_>, filter: &mut PairFilter) -> Result<Vec<Pair>, Trouble> {
        let turns = turns(&subject.choice.conversation, subject.images);
        let mut measured = BTreeMap::new();
        if subject.choice.source == Source::OwnAnswer {
            let grounded = self.ground(subject, &turns).await?;
            if !grounded.passes {
                return Err(Trouble::Skip(Skip::NotGrounded));
            }
            measured.insert("grounding_margin".to_owned(), grounded.margin);
            measured.insert("grounding_agreeing".to_owned(), grounded.agreeing as f64);
        }
        let mut kept = Kept::new(subject.record, subject.choice, measured, filter);
        if let Some(text) = &subject.choice.corrected {
            // Kept or not: there is no other one to try.
            let _ = self.take(Negative::given(text.clone()), &mut kept);
        }
        let weakened = if subject.images.is_empty() { 0 } else { self.config.weakened };
        for (kind, wanted) in [(NegativeKind::ImageWeakened, weakened), (NegativeKind::Injected, self.config.injected)]
        {
            for number in 0..wanted {
                self.draw(kind, number, subject, &turns, &mut kept).await?;
            }
        }
        let pairs = kept.into_pairs();
        if pairs.is_empty() { Err(Trouble::Skip(Skip::NothingKept)) } else { Ok(pairs) }
    }

    /// Draws the `number`-th negative of a kind until one is kept, or none can be.
    async fn draw(
        &self,
        kind: NegativeKind,
        number: usize,
        subject: &Subject<'_>,
        turns: &[Turn],
        kept: &mut Kept<'_>,
    ) -> Result<(), Trouble> {
        for attempt in 0..self.config.attempts {
            let seed = seed(&subject.record.id, kind, number * self.config.attempts + attempt);
            let drawn = match kind {
                NegativeKind::ImageWeakened => self.weakened(subject, turns, seed).await,
                _ => self.injected(subject, seed).await,
            };
            match drawn {
                Ok(negative) if negative.cut_off => counters::rejection(kind, "cut_off"),
                Ok(negative) => {
                    if self.take(negative, kept).is_break() {
                        return Ok(());
                    }
                }
                Err(GeneratorError::Incomplete(_)) => counters::rejection(kind, "cut_off"),
                // Another draw would be no more possible.
                Err(GeneratorError::Invalid(_)) => {
                    counters::rejection(kind, "impossible");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// As [`Kept::take`], unless the negative says what must not be written down: what models read off pictures or make
    /// up has met no rule yet, and what was recorded may have met other ones.
    fn take(&self, negative: Negative, kept: &mut Kept<'_>) -> ControlFlow<()> {
        if self.models.rules.text(&mut negative.text.clone()) > 0 {
            counters::rejection(negative.kind, "redacted");
            return ControlFlow::Continue(());
        }
        kept.take(negative)
    }

    async fn ground(&self, subject: &Subject<'_>, turns: &[Turn]) -> Result<Grounded, Trouble> {
        let seed = seed(&subject.record.id, NegativeKind::Given, 0);
        let distortion = Distortion { kind: self.config.self_distortion, strength: self.config.self_strength, seed };
        let (clean, edge, normalisation) = (turns.to_vec(), self.config.distortion_edge, self.models.normalisation);
        let blurred = heavy(move || weaken::distorted(&clean, &distortion, edge, &normalisation)).await?;
        let blurred = blurred.map_err(|_| Trouble::Skip(Skip::Impossible))?;
        let tokens = subject.record.answers.first().map(|answer| &answer.token_ids[..]).unwrap_or_default();
        let grounding = Grounding {
            threshold: self.config.self_margin,
            samples: self.config.self_samples,
            agree: self.config.self_agree,
            temperature: self.config.self_temperature,
            max_tokens: self.room(&subject.choice.text),
            seed,
        };
        let answer = OwnAnswer { text: &subject.choice.text, tokens };
        Ok(ground(&*self.models.served, subject.generation, turns, &blurred, answer, &grounding).await?)
    }

    async fn weakened(&self, subject: &Subject<'_>, turns: &[Turn], seed: u64) -> Result<Negative, GeneratorError> {
        let weakening = Weakening {
            distortion: self.distortion(seed),
            edge: self.config.distortion_edge,
            normalisation: self.models.normalisation,
            temperature: self.config.weaken_temperature,
            max_tokens: self.room(&subject.choice.text),
        };
        let clean = turns.to_vec();
        let asked = heavy(move || weaken::question(&clean, &weakening)).await;
        let asked =
            asked.map_err(|_| GeneratorError::Failed("the thread that distorted an image is gone".to_owned()))?;
        let mut asked = asked.map_err(|error| GeneratorError::Invalid(error.to_string()))?;
        asked.generation = subject.generation.map(str::to_owned);
        let made = Draws::of(&asked);
        let generated = self.models.served.generate(asked).await?;
        Ok(Negative {
            text: generated.text.trim().to_owned(),
            kind: NegativeKind::ImageWeakened,
            distortion: Some(weakening.distortion),
            cut_off: generated.tokens.len() >= weakening.max_tokens,
            made: Some(made.by(generated.generation, Some(weakening.edge), None)),
        })
    }

    async fn injected(&self, subject: &Subject<'_>, seed: u64) -> Result<Negative, GeneratorError> {
        let injection = Injection {
            wording: self.models.wording,
            temperature: self.config.inject_temperature,
            top_p: self.config.inject_top_p,
            max_tokens: self.room(&subject.choice.text),
        };
        let said = subject.choice.conversation.last().map(text).unwrap_or_default();
        let mut asked = inject::question(&said, &subject.choice.text, &injection, seed);
        let prompt: String = asked.turns.iter().map(Turn::text).collect();
        let instruction = Instruction {
            injector: self.models.injector.as_ref().map_or("self", |(name, _)| name).to_owned(),
            wording: match injection.wording {
                Wording::Instructed => "instructed",
                Wording::Pocket => "pocket",
            }
            .to_owned(),
            task: match Task::of(&said) {
                Task::Description => "description",
                Task::Answer => "answer",
            }
            .to_owned(),
            digest: blake3::hash(prompt.as_bytes()).to_hex().to_string(),
        };
        let generator = match &self.models.injector {
            Some((_, injector)) => injector,
            None => {
                asked.generation = subject.generation.map(str::to_owned);
                &self.models.served
            }
        };
        let made = Draws::of(&asked);
        let generated = generator.generate(asked).await?;
        Ok(Negative {
            text: inject::cleaned(&generated.text),
            kind: NegativeKind::Injected,
            distortion: None,
            cut_off: generated.tokens.len() >= injection.max_tokens,
            made: Some(made.by(generated.generation, None, Some(instruction))),
        })
    }

    fn distortion(&self, seed: u64) -> Distortion {
        Distortion { kind: self.config.distortion, strength: self.config.strength, seed }
    }

    /// Tokens for an answer in the place of `chosen`. The length filter refuses what is much longer, and a token has two bytes
    /// or more, but for the shortest answers.
    fn room(&self, chosen: &str) -> usize {
        const SHORTEST: usize = 32;
        let longest = chosen.len() as f64 * self.config.max_length_ratio / 2.0;
        (longest as usize + SHORTEST).min(self.config.max_tokens)
    }
}

/// What of a question belongs to a negative's provenance.
struct Draws {
    temperature: f64,
    top_p: f64,
    seed: u64,
    max_tokens: usize,
}

impl Draws {
    fn of(question: &Question) -> Self {
        let Question { temperature, top_p, seed, max_tokens, .. } = *question;
        Self { temperature, top_p, seed, max_tokens }
    }

    fn by(self, by: String, edge: Option<u32>, instruction: Option<Instruction>) -> Made {
        let Self { temperature, top_p, seed, max_tokens } = self;
        Made { by, edge, instruction, temperature, top_p, seed, max_tokens }
    }
}

/// Where the draws of a record's `number`-th negative come from: the same whenever it is made. 53 bits, which every reader of
/// JSON keeps.
fn seed(record: &str, kind: NegativeKind, number: usize) -> u64 {
    let digest = blake3::hash(format!("{record} {} {number}", word(kind)).as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first) >> 11
}

/// Runs what takes long off the async threads.
async fn heavy<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Trouble::Failed("a thread panicked".to_owned()))
}
