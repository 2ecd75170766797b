//! The crate's Idefics3 as a function of variables, with the losses of both stages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use super::course::{Conversation, Sight};
use super::error::BuildError;
use super::initial::SIGHT_HEADS;
use super::lesson::{Branch, Encoder};
use super::optimiser::Gradients;
use crate::bpo::policy::Group;
use crate::model::ops::{linear, log_prob};
use crate::model::{Adapters, Model, Packed, Source, Weights};
use crate::pocket::hub::Shape;
use crate::pocket::world::{Kind, SIDE};

/// How much an empty patch counts beside one with an object: most patches are empty, and emptiness is easy.
const EMPTY: f32 = 0.3;

/// Where the vision tower's weights are.
const TOWER: &str = "model.vision_model";

/// The model with every weight trainable: the vision tower in the sight stage, everything else in the speech stage.
///
/// The tower is frozen once it can see. Where colour tells most of the kind, a tower that goes on learning on typical
/// pictures unlearns shapes within a few hundred steps, and the model is then not misled by habit but blind.
pub struct Network {
    /// Everything is a variable.
    model: Model,
    /// The same weights, the vision tower's as constants.
    speaker: Model,
    variables: BTreeMap<String, Var>,
    heads: BTreeMap<String, Var>,
}

/// What one worker found in its share of a step.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Mean loss.
    pub loss: f32,
    /// Share of right greedy predictions: of the kind behind a patch, or of an answer's next token.
    pub accuracy: f32,
    /// Gradients of the mean loss by variable.
    pub gradients: Gradients,
}

impl Network {
    /// A network of these weights and sight heads.
    ///
    /// # Errors
    /// Weights that do not fit the shape.
    pub fn new(
        shape: &Shape,
        weights: BTreeMap<String, Tensor>,
        heads: &BTreeMap<String, Tensor>,
    ) -> Result<Self, BuildError> {
        let variables = Weights::new(weights).to_variables()?;
        let model = Model::build(&source(shape)?, &Weights::from_variables(&variables))?;
        // A detached tensor shares its memory with the variable, so it follows what the sight stage does to it.
        let frozen = variables.iter().map(|(name, variable)| {
            let tensor = variable.as_tensor();
            (name.clone(), if name.starts_with(TOWER) { tensor.detach() } else { tensor.clone() })
        });
        let speaker = Model::build(&source(shape)?, &Weights::new(frozen.collect()))?;
        let heads = heads
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)))
            .collect::<Result<_, candle_core::Error>>()?;
        Ok(Self { model, speaker, variables, heads })
    }

    /// The model's weights by name.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// The model's weights and the sight heads.
    pub fn with_heads(&self) -> BTreeMap<String, Var> {
        self.variables.iter().chain(&self.heads).map(|(name, variable)| (name.clone(), variable.clone())).collect()
    }

    /// Cross-entropy of the kind behind every patch plus that of the colour behind every patch that has one.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn sight(&self, items: &[Sight]) -> Result<Outcome, BuildError> {
        let seen = self.model.family().patches(&pixels(items.iter().map(|item| item.pixels.as_slice()))?)?;
        let patches: Vec<_> = items.iter().flat_map(|item| &item.patches).collect();
        let kinds: Vec<u32> =
            patches.iter().map(|patch| patch.map_or(Kind::ALL.len(), |(kind, _)| kind.index()) as u32).collect();
        let weights: Vec<f32> = patches.iter().map(|patch| if patch.is_some() { 1.0 } else { EMPTY }).collect();
        let filled: Vec<u32> = (0..).zip(&patches).filter(|(_, patch)| patch.is_some()).map(|(row, _)| row).collect();
        let colours: Vec<u32> =
            patches.iter().filter_map(|patch| patch.map(|(_, colour)| colour.index() as u32)).collect();

        let [(kind_head, _), (colour_head, _)] = SIGHT_HEADS;
        let logits = linear(&seen, self.head(kind_head)?, None)?;
        let total: f32 = weights.iter().sum();
        let weights = Tensor::from_vec(weights, patches.len(), &Device::Cpu)?;
        let kind_loss = ((log_prob::log_prob(&logits, &kinds)? * weights)?.sum_all()? * f64::from(-1.0 / total))?;

        let filled = Tensor::new(filled.as_slice(), &Device::Cpu)?;
        let colour_logits = linear(&seen.index_select(&filled, 0)?, self.head(colour_head)?, None)?;
        let colour_loss = log_prob::log_prob(&colour_logits, &colours)?.mean_all()?.neg()?;

        let right = right_predictions(&logits, &kinds)?;
        let (hits, all) = right
            .iter()
            .zip(&patches)
            .filter(|(_, patch)| patch.is_some())
            .fold((0, 0), |(hits, all), (right, _)| (hits + usize::from(*right), all + 1));
        let loss = (kind_loss + colour_loss)?;
        self.outcome(&loss, hits as f32 / (all as f32).max(1.0))
    }

    /// Mean negative log-probability of the answers' tokens, with a frozen vision tower.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn speech(&self, conversations: &[Conversation], encoder: &mut Encoder) -> Result<Outcome, BuildError> {
        let mut groups = Vec::new();
        let mut learnt = Vec::new();
        let (with, without): (Vec<_>, Vec<_>) = conversations.iter().partition(|item| item.pixels.is_some());
        for conversation in &with {
            let branches = branches(encoder, std::slice::from_ref(conversation), true)?;
            groups.push(group(encoder.prompt(true)?, &branches));
            learnt.push(branches.iter().map(|branch| branch.learnt).collect::<Vec<_>>());
        }
        if !without.is_empty() {
            let branches = branches(encoder, &without, false)?;
            groups.push(group(encoder.prompt(false)?, &branches));
            learnt.push(branches.iter().map(|branch| branch.learnt).collect());
        }
        let mut packed = Packed::new(&groups)?;
        if !with.is_empty() {
            let pixels = pixels(with.iter().filter_map(|item| item.pixels.as_deref()))?;
            packed.features = vec![self.speaker.family().encode(&pixels)?];
        }
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for ((answers, learnt), group) in packed.answers.iter().zip(&learnt).zip(&groups) {
            for ((answer, &learnt), tokens) in answers.iter().zip(learnt).zip(&group.answers) {
                let asked = tokens.len() - learnt;
                rows.extend(answer.predicting().skip(asked).map(|row| row as u32));
                targets.extend_from_slice(&tokens[asked..]);
            }
        }
        let hidden = self.speaker.hidden(&packed, &Adapters::none())?;
        let rows = Tensor::new(rows.as_slice(), &Device::Cpu)?;
        let logits = self.speaker.decoder().logits(&hidden.index_select(&rows, 0)?)?;
        let loss = log_prob::log_prob(&logits, &targets)?.mean_all()?.neg()?;
        let right = right_predictions(&logits, &targets)?;
        let hits = right.iter().filter(|right| **right).count();
        self.outcome(&loss, hits as f32 / targets.len() as f32)
    }

    fn head(&self, name: &str) -> Result<&Tensor, BuildError> {
        let head = self.heads.get(name).map(Var::as_tensor);
        head.ok_or_else(|| candle_core::Error::Msg(format!("the sight stage needs {name}")).into())
    }

    fn outcome(&self, loss: &Tensor, accuracy: f32) -> Result<Outcome, BuildError> {
        let store = loss.backward()?;
        let mut gradients = Gradients::new();
        for (name, variable) in self.variables.iter().chain(&self.heads) {
            if let Some(gradient) = store.get(variable) {
                gradients.insert(name.clone(), gradient.flatten_all()?.to_vec1()?);
            }
        }
        Ok(Outcome { loss: loss.to_scalar()?, accuracy, gradients })
    }

    /// Names of the variables that a loss must reach in each stage: a cut in the graph would be silent.
    pub fn reached_by_sight(&self) -> BTreeSet<String> {
        let vision = self.variables.keys().filter(|name| name.starts_with(TOWER)).cloned();
        vision.chain(self.heads.keys().cloned()).collect()
    }

    /// As [`Network::reached_by_sight`], for the speech stage.
    pub fn reached_by_speech(&self) -> BTreeSet<String> {
        self.variables.keys().filter(|name| !name.starts_with(TOWER)).cloned().collect()
    }
}

/// The files that the model is built from, in memory.
fn source(shape: &Shape) -> Result<Source, BuildError> {
    let files = shape.files().into_iter().map(|(name, content)| {
        let bytes = serde_json::to_vec(&content).map_err(std::io::Error::from)?;
        Ok((name.to_owned(), bytes.into()))
    });
    Ok(Source::Memory(files.collect::<Result<_, BuildError>>()?))
}

fn branches(encoder: &mut Encoder, conversations: &[&Conversation], picture: bool) -> Result<Vec<Branch>, BuildError> {
    conversations.iter().flat_map(|item| &item.turns).map(|turn| encoder.branch(turn, picture)).collect()
}

fn group(prompt: Arc<[u32]>, branches: &[Branch]) -> Group {
    Group { prompt, features: None, answers: branches.iter().map(|branch| Arc::clone(&branch.tokens)).collect() }
}

/// `[pictures, 3, side, side]`.
fn pixels<'a>(pictures: impl Iterator<Item = &'a [f32]>) -> Result<Tensor, BuildError> {
    let mut values = Vec::new();
    pictures.for_each(|picture| values.extend_from_slice(picture));
    let count = values.len() / (3 * SIDE * SIDE);
    Ok(Tensor::from_vec(values, (count, 3, SIDE, SIDE), &Device::Cpu)?)
}

fn right_predictions(logits: &Tensor, targets: &[u32]) -> Result<Vec<bool>, BuildError> {
    let greedy: Vec<u32> = logits.detach().argmax(D::Minus1)?.to_vec1()?;
    Ok(greedy.iter().zip(targets).map(|(greedy, target)| greedy == target).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pocket::builder::{course, initial};

    fn network() -> Network {
        let shape = Shape::default();
        let heads = initial::sight_heads(&shape, 0).unwrap();
        Network::new(&shape, initial::weights(&shape, 0).unwrap(), &heads).unwrap()
    }

    #[test]
    fn losses_begin_at_chance_and_reach_every_weight_they_should() {
        let network = network();
        let items: Vec<Sight> = (0..2).map(|item| course::sight(0, 0, item, 8)).collect();
        let outcome = network.sight(&items).unwrap();
        let chance = 13f32.ln() + 8f32.ln();
        assert!((outcome.loss - chance).abs() < 2.0, "{} against {chance}", outcome.loss);
        let reached: BTreeSet<String> = outcome.gradients.keys().cloned().collect();
        assert_eq!(reached, network.reached_by_sight());

        let mut encoder = Encoder::new(&Shape::default()).unwrap();
        let conversations = [course::conversation(0, 0, 0, 3), course::text(0, 0, 0), course::conversation(0, 0, 1, 3)];
        let outcome = network.speech(&conversations, &mut encoder).unwrap();
        let chance = (crate::pocket::tokenizer::vocabulary().len() as f32).ln();
        assert!((outcome.loss - chance).abs() < 0.5, "{} against {chance}", outcome.loss);
        let reached: BTreeSet<String> = outcome.gradients.keys().cloned().collect();
        assert_eq!(reached, network.reached_by_speech());
        for (name, gradient) in &outcome.gradients {
            // A shift of all keys does not change attention.
            let blind = name.ends_with("k_proj.bias");
            assert!(blind || gradient.iter().any(|value| *value != 0.0), "{name} has a zero gradient");
        }
    }

    #[test]
    fn turns_about_one_picture_do_not_see_each_other() {
        let network = network();
        let mut encoder = Encoder::new(&Shape::default()).unwrap();
        let whole = course::conversation(0, 0, 0, 3);
        let tokens = |conversation: &Conversation, encoder: &mut Encoder| -> f32 {
            conversation.turns.iter().map(|turn| encoder.branch(turn, true).unwrap().learnt as f32).sum()
        };
        let together =
            network.speech(std::slice::from_ref(&whole), &mut encoder).unwrap().loss * tokens(&whole, &mut encoder);
        let mut apart = 0.0;
        for turn in &whole.turns {
            let alone = Conversation { pixels: whole.pixels.clone(), turns: vec![turn.clone()] };
            apart +=
                network.speech(std::slice::from_ref(&alone), &mut encoder).unwrap().loss * tokens(&alone, &mut encoder);
        }
        assert!((together - apart).abs() < 1e-3 * apart, "{together} against {apart}");
    }
}
