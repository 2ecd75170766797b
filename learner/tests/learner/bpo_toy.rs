//! A model small enough to train in milliseconds: the next token from the last one, the prompt and the image, with one LoRA.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::bpo::TrainError;
use reground_learner::bpo::config::{Preset, RunConfig};
use reground_learner::bpo::examples::{Example, InMemory};
use reground_learner::bpo::history::{self, Line};
use reground_learner::bpo::policy::{Gradients, Group, Policy};
use reground_learner::bpo::progress::{Collected, Event, Progress};
use reground_learner::bpo::trainer::{Control, Inputs, Outcome, train};

pub(crate) const VOCABULARY: usize = 13;
pub(crate) const WIDTH: usize = 8;
const RANK: usize = 3;

pub(crate) struct Toy {
    pub(crate) embedding: Tensor,
    pub(crate) head: Tensor,
    pub(crate) dropout: f64,
    pub(crate) parameters: BTreeMap<String, Tensor>,
    /// Forward passes with a tape so far.
    pub(crate) forwards: Cell<usize>,
    /// Answers scored without a tape so far.
    pub(crate) scored: Cell<usize>,
    /// From this forward pass on every log-probability is NaN.
    pub(crate) poisoned_from: usize,
    /// Slows a forward pass down, so that a killer has time to aim.
    pub(crate) sleep: std::time::Duration,
}

fn random(rng: &mut ChaCha8Rng, shape: (usize, usize), scale: f32) -> Tensor {
    let values = (0..shape.0 * shape.1).map(|_| rng.random_range(-scale..scale)).collect::<Vec<f32>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Toy {
    pub(crate) fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(42);
        let embedding = random(&mut rng, (VOCABULARY, WIDTH), 1.0);
        let head = random(&mut rng, (VOCABULARY, WIDTH), 1.0);
        let parameters = BTreeMap::from([
            ("layer.lora_A".to_owned(), random(&mut rng, (RANK, WIDTH), 0.5)),
            ("layer.lora_B".to_owned(), Tensor::zeros((VOCABULARY, RANK), DType::F32, &Device::Cpu).unwrap()),
        ]);
        let sleep = std::time::Duration::ZERO;
        Self {
            embedding,
            head,
            dropout: 0.0,
            parameters,
            forwards: Cell::new(0),
            scored: Cell::new(0),
            poisoned_from: usize::MAX,
            sleep,
        }
    }

    fn logp(
        &self,
        group: &Group,
        answer: &[u32],
        lora: Option<(&Tensor, &Tensor)>,
        rng: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let device = &Device::Cpu;
        let prompt = self.embedding.index_select(&Tensor::new(&*group.prompt, device)?, 0)?.mean_keepdim(0)?;
        let mut before = vec![*group.prompt.last().unwrap()];
        before.extend(&answer[..answer.len() - 1]);
        let mut hidden = self.embedding.index_select(&Tensor::new(before, device)?, 0)?.broadcast_add(&prompt)?;
        if let Some(features) = &group.features {
            hidden = hidden.broadcast_add(&features.mean_keepdim(0)?)?;
        }
        let hidden = hidden.tanh()?;
        let mut logits = hidden.matmul(&self.head.t()?)?;
        if let Some((a, b)) = lora {
            let mut input = hidden;
            if let Some(rng) = rng.filter(|_| self.dropout > 0.0) {
                let keep = (1.0 / (1.0 - self.dropout)) as f32;
                let mask = (0..input.elem_count()).map(|_| if rng.random::<f64>() < self.dropout { 0.0 } else { keep });
                input = (&input * Tensor::from_vec(mask.collect::<Vec<_>>(), input.shape(), device)?)?;
            }
            logits = (logits + input.matmul(&a.t()?)?.matmul(&b.t()?)?)?;
        }
        let logps = candle_nn::ops::log_softmax(&logits, 1)?;
        logps.gather(&Tensor::new(answer, device)?.unsqueeze(1)?, 1)?.sum_all()
    }

    fn all(&self, groups: &[Group], lora: Option<(&Tensor, &Tensor)>, seed: Option<u64>) -> Result<Vec<Vec<Tensor>>> {
        let mut rng = seed.map(ChaCha8Rng::seed_from_u64);
        groups
            .iter()
            .map(|group| group.answers.iter().map(|answer| self.logp(group, answer, lora, rng.as_mut())).collect())
            .collect()
    }

    fn numbers(logps: &[Vec<Tensor>]) -> Result<Vec<Vec<f64>>> {
        logps.iter().map(|group| group.iter().map(|logp| Ok(f64::from(logp.to_scalar::<f32>()?))).collect()).collect()
    }
}

impl Policy for Toy {
    type Tape = (Vec<Group>, Option<u64>);

    fn forward(&self, groups: &[Group], seed: Option<u64>) -> Result<(Vec<Vec<f64>>, Self::Tape)> {
        std::thread::sleep(self.sleep);
        self.forwards.set(self.forwards.get() + 1);
        let lora = (&self.parameters["layer.lora_A"], &self.parameters["layer.lora_B"]);
        let mut logps = Self::numbers(&self.all(groups, Some(lora), seed)?)?;
        if self.forwards.get() >= self.poisoned_from {
            logps[0][0] = f64::NAN;
        }
        Ok((logps, (groups.to_vec(), seed)))
    }

    fn backward(&self, (groups, seed): Self::Tape, coefficients: &[Vec<f64>], gradients: &mut Gradients) -> Result<()> {
        let vars = self
            .parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let logps = self.all(&groups, Some((&vars["layer.lora_A"], &vars["layer.lora_B"])), seed)?;
        let mut sum = Tensor::new(0f32, &Device::Cpu)?;
        assert_eq!(logps.len(), coefficients.len());
        for (logps, coefficients) in logps.iter().zip(coefficients) {
            assert_eq!(logps.len(), coefficients.len());
            for (logp, coefficient) in logps.iter().zip(coefficients) {
                sum = (sum + (logp * *coefficient)?)?;
            }
        }
        let store = sum.backward()?;
        for (name, var) in vars {
            let gradient = store.get(&var).unwrap().clone();
            let total = match gradients.remove(&name) {
                Some(before) => (before + gradient)?,
                None => gradient,
            };
            gradients.insert(name, total);
        }
        Ok(())
    }

    fn score(&self, groups: &[Group], adapter: bool) -> Result<Vec<Vec<f64>>> {
        self.scored.set(self.scored.get() + groups.iter().map(|group| group.answers.len()).sum::<usize>());
        let lora = (&self.parameters["layer.lora_A"], &self.parameters["layer.lora_B"]);
        Self::numbers(&self.all(groups, adapter.then_some(lora), None)?)
    }

    fn parameters(&self) -> BTreeMap<String, Tensor> {
        self.parameters.clone()
    }

    fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        assert_eq!(parameters.keys().collect::<Vec<_>>(), self.parameters.keys().collect::<Vec<_>>());
        self.parameters = parameters.clone();
        Ok(())
    }
}

/// Pairs in which the chosen answer starts with the token that the image stands for, and the rejected with another.
pub(crate) fn examples(count: usize, seed: u64) -> InMemory {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let example = |_| {
        let image = rng.random_range(0..4u32);
        let mut feature = vec![0f32; WIDTH];
        feature[image as usize] = 2.0;
        let prompt: Arc<[u32]> = (0..rng.random_range(2..9)).map(|_| rng.random_range(0..VOCABULARY as u32)).collect();
        // Both answers go on alike, so that only the image tells which is right, and a held-out image does, too.
        let tail = (0..rng.random_range(1..6u32))
            .map(|_| rng.random_range(4..VOCABULARY as u32))
            .chain([12])
            .collect::<Vec<_>>();
        let answer = |first: u32| -> Arc<[u32]> { std::iter::once(first).chain(tail.iter().copied()).collect() };
        let (chosen, rejected) = (answer(image), answer((image + 1) % 4));
        let group = |features: Vec<f32>, answers| Group {
            prompt: Arc::clone(&prompt),
            features: Some(Tensor::from_vec(features, (1, WIDTH), &Device::Cpu).unwrap()),
            answers,
        };
        Example {
            clean: group(feature, vec![Arc::clone(&chosen), rejected]),
            distorted: Some(group(vec![0.0; WIDTH], vec![chosen])),
        }
    };
    InMemory((0..count).map(example).collect())
}

pub(crate) fn config(preset: Preset) -> RunConfig {
    let mut config = RunConfig::default();
    config.loss.preset = preset;
    config.optimizer.learning_rate = 2e-2;
    config.train.batch = 6;
    config.train.micro_batch = 4;
    config.train.epochs = 2.5;
    config.evaluation.every = 3;
    config.checkpoint.every = 2;
    config
}

pub(crate) fn run(
    dir: &Path,
    toy: &mut Toy,
    config: &RunConfig,
    control: &Control,
    progress: &mut dyn Progress,
) -> std::result::Result<Outcome, TrainError> {
    let (train_set, held_out) = (examples(22, 1), examples(9, 2));
    train(dir, toy, config, Inputs { train: &train_set, held_out: &held_out, identity: "toy" }, control, progress)
}

/// Runs from start to end in a fresh directory and returns the tensors as bits, and the metrics without their timings.
pub(crate) fn uninterrupted(config: &RunConfig, dropout: f64) -> (Vec<(String, Vec<u32>)>, Vec<Line>) {
    let dir = tempfile::tempdir().unwrap();
    let mut toy = Toy { dropout, ..Toy::new() };
    run(dir.path(), &mut toy, config, &Control::default(), &mut Collected::default()).unwrap();
    (bits(&toy.parameters()), timeless(dir.path()))
}

pub(crate) fn bits(parameters: &BTreeMap<String, Tensor>) -> Vec<(String, Vec<u32>)> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    parameters
        .iter()
        .map(|(name, tensor)| (name.clone(), values(tensor).into_iter().map(f32::to_bits).collect()))
        .collect()
}

/// The metrics file of a run, but for what depends on the clock and the machine.
pub(crate) fn timeless(dir: &Path) -> Vec<Line> {
    let mut lines = history::read(&dir.join("metrics.jsonl")).unwrap();
    for line in &mut lines {
        if let Line::Step(step) = line {
            (step.tokens_per_second, step.pairs_per_second, step.peak_memory_bytes) = (0.0, 0.0, None);
        }
    }
    lines
}

/// Asks for a pause after a step.
pub(crate) struct PauseAfter<'a> {
    pub(crate) step: u64,
    pub(crate) control: &'a Control,
}

impl Progress for PauseAfter<'_> {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Step(metrics) if metrics.step == self.step) {
            self.control.pause();
        }
    }
}
