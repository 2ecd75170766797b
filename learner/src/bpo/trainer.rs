//! A run: reference once, then step after step to the end, a pause, or a reason why not.
//!
//! ```text
//! DIR/reference.safetensors, reference-held-out.safetensors    log π_ref, computed once
//! DIR/metrics.jsonl                                            every step and evaluation
//! DIR/checkpoints/step-<n>/                                    see [`super::checkpoint`]
//! ```
//!
//! A run that was killed, paused or crashed goes on from its newest whole checkpoint when it is started again, and ends with
//! the bits that it would have had without the interruption.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fs_err as fs;

use super::adamw::{AdamW, clip_global_norm};
use super::checkpoint::{Checkpoint, CheckpointError, State, Tensors};
use super::config::RunConfig;
pub use super::control::{Control, Inputs, Outcome};
use super::early_stop::EarlyStop;
use super::error::TrainError;
use super::evaluate::evaluate;
use super::files;
use super::guard::Guard;
use super::history::{History, Line};
use super::loss::Loss;
use super::metrics::{StepMetrics, peak_memory_bytes};
use super::order::Order;
use super::policy::Policy;
use super::progress::{Event, Progress};
use super::reference::Reference;
use super::resume::{key, newest, references};
use super::step::{Context, accumulate};

/// Trains `policy`, which holds the starting adapter, in run directory `dir`; goes on from a checkpoint if there is one.
/// [`super::run::train`] does this and everything around it.
///
/// # Errors
/// Any reason why the run has no adapter to give; it is also sent to `progress`.
pub fn train<P: Policy>(
    dir: &Path,
    policy: &mut P,
    config: &RunConfig,
    inputs: Inputs<'_>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Outcome, TrainError> {
    let outcome = execute(dir, policy, config, inputs, control, progress);
    announce(&outcome, progress);
    outcome
}

/// [`train`] without the event that says how it ended.
pub(super) fn execute<P: Policy>(
    dir: &Path,
    policy: &mut P,
    config: &RunConfig,
    inputs: Inputs<'_>,
    control: &Control,
    progress: &mut dyn Progress,
) -> Result<Outcome, TrainError> {
    match Run::start(dir, policy, config, inputs, control, progress)? {
        Start::Ready(run) => run.go(),
        Start::Paused { step } => Ok(Outcome::Paused { step }),
    }
}

/// Says how a run ended.
pub(super) fn announce(outcome: &Result<Outcome, TrainError>, progress: &mut dyn Progress) {
    progress.event(&match outcome {
        Ok(Outcome::Paused { step }) => Event::Paused { step: *step },
        Ok(Outcome::Finished { step, adapter_step, stopped_early }) => {
            Event::Finished { step: *step, stopped_early: *stopped_early, adapter_step: *adapter_step }
        }
        Err(error) => Event::Failed { reason: error.to_string() },
    });
}

struct Run<'a, P: Policy> {
    policy: &'a mut P,
    config: &'a RunConfig,
    inputs: Inputs<'a>,
    control: &'a Control,
    progress: &'a mut dyn Progress,
    checkpoints: PathBuf,
    loss: Loss,
    order: Order,
    total: u64,
    reference: Reference,
    held_out_reference: Reference,
    optimizer: AdamW,
    history: History,
    best: Option<Tensors>,
    state: State,
    /// Step of the newest checkpoint on disk.
    saved: Option<u64>,
}

enum Start<'a, P: Policy> {
    Ready(Box<Run<'a, P>>),
    /// A pause was asked for while reference log-probabilities were computed.
    Paused {
        /// Optimiser steps taken by the checkpoint that was found.
        step: u64,
    },
}

impl<'a, P: Policy> Run<'a, P> {
    fn start(
        dir: &Path,
        policy: &'a mut P,
        config: &'a RunConfig,
        inputs: Inputs<'a>,
        control: &'a Control,
        progress: &'a mut dyn Progress,
    ) -> Result<Start<'a, P>, TrainError> {
        config.validate()?;
        if inputs.train.is_empty() {
            return Err(TrainError::NoExamples("the training set is empty".to_owned()));
        }
        config.early_stop.check_held_out(inputs.held_out)?;
        let start = policy.parameters();
        let device = start.values().next().ok_or(TrainError::NoParameters)?.device().clone();
        let key = key(config, inputs.identity, &start)?;

        let checkpoints = dir.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(TrainError::io("cannot make the run's directories"))?;
        for swept in [dir, &checkpoints] {
            files::remove_unfinished(swept).map_err(TrainError::io("cannot remove what a killed run left"))?;
        }
        let resumed = newest(&checkpoints, &device, &key, progress)?;

        let lengths = (0..inputs.train.len()).map(|index| inputs.train.tokens(index)).collect();
        let order = Order::new(config.seed, lengths, config.train.batch, config.train.bucket_batches);
        let total = order.total_steps(config.train.epochs, config.train.max_steps);
        progress.event(&Event::Started {
            step: resumed.as_ref().map_or(0, |resumed| resumed.state.step),
            total_steps: total,
            examples: inputs.train.len(),
            held_out: inputs.held_out.len(),
            parameters: start.values().map(|tensor| tensor.elem_count()).sum(),
        });

        // The policy still has the tensors that the run starts from, so this is π_ref, also in a resumed run.
        let loss = config.loss.resolve();
        let Some(reference) = references(dir, &key, policy, config, &loss, inputs, control, progress)? else {
            return Ok(Start::Paused { step: resumed.as_ref().map_or(0, |resumed| resumed.state.step) });
        };
        let (reference, held_out_reference) = reference;

        let step = resumed.as_ref().map_or(0, |resumed| resumed.state.step);
        let metrics = dir.join("metrics.jsonl");
        let history = History::open(&metrics, step).map_err(TrainError::io("cannot open metrics.jsonl"))?;
        let adam = config.optimizer.clone();
        let (optimizer, best, state) = match resumed {
            None => {
                let (guard, early_stop) = (Guard::default(), EarlyStop::default());
                let state = State { step: 0, key, guard, early_stop, stopped_early: false };
                (AdamW::new(adam, &start)?, None, state)
            }
            Some(Checkpoint { parameters, first, second, best, state }) => {
                policy.set_parameters(&parameters)?;
                (AdamW::resume(adam, &parameters, state.step, first, second)?, best, state)
            }
        };
        let saved = (state.step > 0).then_some(state.step);
        Ok(Start::Ready(Box::new(Self {
            policy,
            config,
            inputs,
            control,
            progress,
            checkpoints,
            loss,
            order,
            total,
            reference,
            held_out_reference,
            optimizer,
            history,
            best,
            state,
            saved,
        })))
    }

    fn go(mut self) -> Result<Outcome, TrainError> {
        while self.state.step < self.total && !self.state.stopped_early {
            if self.control.pausing() {
                self.save()?;
                return Ok(Outcome::Paused { step: self.state.step });
            }
            self.step()?;
            let last = self.state.step == self.total;
            let due = |every: u64| last || (every > 0 && self.state.step.is_multiple_of(every));
            let (evaluate, save) = (due(self.config.evaluation.every), due(self.config.checkpoint.every));
            // Evaluation first: what it changes belongs to this step's checkpoint.
            if evaluate && !self.inputs.held_out.is_empty() {
                self.evaluate()?;
            }
            if save || self.state.stopped_early {
                self.save()?;
            }
        }
        let State { step, stopped_early, .. } = self.state;
        let mut adapter_step = step;
        if let (true, Some(best), Some(best_step)) =
            (self.config.early_stop.keep_best, &self.best, self.state.early_stop.best_step)
        {
            self.policy.set_parameters(best)?;
            adapter_step = best_step;
        }
        Ok(Outcome::Finished { step, adapter_step, stopped_early })
    }

    /// One optimiser step.
    fn step(&mut self) -> Result<(), TrainError> {
        let began = Instant::now();
        let step = self.state.step;
        let batch = self.order.batch(step).to_vec();
        let context = Context { loss: &self.loss, train: &self.config.train, seed: self.config.seed, step };
        let mut out = accumulate(&*self.policy, self.inputs.train, &self.reference, &batch, context)?;

        let grad_norm = clip_global_norm(&mut out.gradients, self.config.optimizer.max_grad_norm)?;
        let mut metrics = StepMetrics { step: step + 1, grad_norm, ..out.sums.into_step() };
        self.state.guard.check(&self.config.guard, &metrics)?;

        let learning_rate = self.config.schedule.learning_rate(self.config.optimizer.learning_rate, step, self.total);
        let updated = self.optimizer.step(&self.policy.parameters(), &out.gradients, learning_rate)?;
        self.policy.set_parameters(&updated)?;
        self.state.step = step + 1;

        let seconds = began.elapsed().as_secs_f64().max(1e-9);
        metrics = StepMetrics {
            epoch: (step + 1) as f64 / self.order.steps_per_epoch().max(1) as f64,
            learning_rate,
            tokens_per_second: out.tokens as f64 / seconds,
            pairs_per_second: batch.len() as f64 / seconds,
            peak_memory_bytes: peak_memory_bytes(),
            ..metrics
        };
        self.record(Line::Step(metrics.clone()))?;
        self.progress.event(&Event::Step(metrics));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<(), TrainError> {
        let (examples, step) = (self.inputs.held_out, self.state.step);
        let evaluation = evaluate(&*self.policy, examples, &self.held_out_reference, &self.loss, self.config, step)?;
        let verdict = self.state.early_stop.observe(&self.config.early_stop, step, &evaluation);
        if verdict.improved && self.config.early_stop.keep_best {
            self.best = Some(self.policy.parameters());
        }
        self.state.stopped_early = verdict.stop;
        self.record(Line::Evaluated(evaluation.clone()))?;
        self.progress.event(&Event::Evaluated(evaluation));
        Ok(())
    }

    fn record(&mut self, line: Line) -> Result<(), TrainError> {
        self.history.push(line).map_err(TrainError::io("cannot write metrics.jsonl"))
    }

    fn save(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        if self.saved == Some(step) || step == 0 {
            return Ok(());
        }
        self.history.flush().map_err(TrainError::io("cannot flush metrics.jsonl"))?;
        let (first, second) = self.optimizer.moments();
        let checkpoint = Checkpoint {
            parameters: self.policy.parameters(),
            first: first.clone(),
            second: second.clone(),
            best: self.best.clone(),
            state: self.state.clone(),
        };
        let path = checkpoint.save(&self.checkpoints, self.config.checkpoint.keep).map_err(checkpoint_failed)?;
        self.saved = Some(step);
        self.progress.event(&Event::Checkpoint { step, path });
        Ok(())
    }
}

fn checkpoint_failed(error: CheckpointError) -> TrainError {
    TrainError::Io { what: "cannot save a checkpoint".to_owned(), source: std::io::Error::other(error) }
}
