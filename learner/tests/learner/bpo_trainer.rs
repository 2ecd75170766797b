//! The trainer on a model of a few hundred numbers: it learns, it resumes to the bit, and it ends with a reason.

use std::fs;

use reground_learner::bpo::TrainError;
use reground_learner::bpo::config::{Preset, RunConfig};
use reground_learner::bpo::early_stop::Criterion;
use reground_learner::bpo::examples::InMemory;
use reground_learner::bpo::guard::GuardError;
use reground_learner::bpo::history::Line;
use reground_learner::bpo::metrics::StepMetrics;
use reground_learner::bpo::policy::Policy;
use reground_learner::bpo::progress::{Collected, Event, Silent};
use reground_learner::bpo::schedule::{Decay, Schedule};
use reground_learner::bpo::trainer::{Control, Inputs, Outcome, train};

use super::bpo_toy::{PauseAfter, Toy, VOCABULARY, bits, config, examples, run, timeless, uninterrupted};

const STEPS: u64 = 10;

fn steps(lines: &[Line]) -> Vec<StepMetrics> {
    lines.iter().filter_map(|line| if let Line::Step(step) = line { Some(step.clone()) } else { None }).collect()
}

#[test]
fn the_paper_loss_starts_at_ln_2_and_learns_the_preference() {
    let mut config = config(Preset::Paper);
    // The plain loss makes the chosen answers of this tiny model less likely, too: what the guard is for.
    (config.train.epochs, config.guard.chosen_drop) = (40.0, 0.0);
    let (_, lines) = uninterrupted(&config, 0.0);
    let steps = steps(&lines);
    assert_eq!(steps.len(), 160);
    let (first, last) = (&steps[0], &steps[159]);
    assert!((first.loss - std::f64::consts::LN_2).abs() < 1e-6, "{}", first.loss);
    assert_eq!((first.rewards_margins, first.rewards_accuracies), (Some(0.0), Some(0.0)));
    assert!(first.grad_norm > 0.0 && first.chosen_drop.abs() < 1e-6);
    assert!(last.loss < 0.5 && last.rewards_margins.unwrap() > 0.5, "{last:?}");
    let accuracy = steps[144..].iter().map(|step| step.rewards_accuracies.unwrap()).sum::<f64>() / 16.0;
    assert!(accuracy > 0.9, "{accuracy}");
    let held_out =
        lines.iter().rev().find_map(|line| if let Line::Evaluated(one) = line { Some(one) } else { None }).unwrap();
    assert!(held_out.margin > 0.1 && held_out.loss < std::f64::consts::LN_2 && held_out.examples == 9, "{held_out:?}");
    assert!(held_out.image_conditional_accuracy.is_some());
    let warmup = steps[..5].iter().map(|step| step.learning_rate / 2e-2).collect::<Vec<_>>();
    for (got, want) in warmup.iter().zip([0.2, 0.4, 0.6, 0.8, 1.0]) {
        assert!((got - want).abs() < 1e-9, "3 % of 160 steps are five: {warmup:?}");
    }
}

#[test]
fn every_term_learns_through_the_trainer() {
    let set = |change: fn(&mut RunConfig)| {
        let mut config = config(Preset::Paper);
        config.train.epochs = 8.0;
        change(&mut config);
        config
    };
    let cases = [
        set(|config| config.loss.preset = Preset::Anchored),
        set(|config| config.loss.preset = Preset::Sft),
        set(|config| config.loss.conditional = Some(1.0)),
        set(|config| config.loss.anchor = Some(1.0)),
        set(|config| (config.loss.label_smoothing, config.loss.length_normalised) = (Some(0.1), Some(true))),
    ];
    for config in cases {
        let steps = steps(&uninterrupted(&config, 0.0).1);
        assert!(steps[31].loss < steps[0].loss - 0.02, "{:?}: {} {}", config.loss, steps[0].loss, steps[31].loss);
        let conditional = config.loss.resolve().needs_distorted();
        assert_eq!(steps[0].image_conditional_accuracy.is_some(), conditional);
        if conditional {
            assert!((steps[0].loss_conditional.unwrap() - std::f64::consts::LN_2).abs() < 1e-6);
        }
    }
}

#[test]
fn sft_never_scores_a_rejected_answer_of_the_training_set() {
    let mut config = config(Preset::Sft);
    config.evaluation.conditional = false;
    let dir = tempfile::tempdir().unwrap();
    let mut toy = Toy::new();
    let train_set = examples(22, 1);
    let inputs = Inputs { train: &train_set, held_out: &InMemory::default(), identity: "toy" };
    train(dir.path(), &mut toy, &config, inputs, &Control::default(), &mut Silent).unwrap();
    assert_eq!(toy.scored.get(), 22);
    assert!(
        steps(&timeless(dir.path())).iter().all(|step| step.rewards_rejected.is_none() && step.loss == step.loss_sft)
    );
}

#[test]
fn micro_batches_change_rounding_and_nothing_else() {
    let mut config = config(Preset::Anchored);
    config.loss.conditional = Some(0.5);
    let values = |micro_batch: usize, micro_tokens: usize| {
        let mut config = config.clone();
        (config.train.micro_batch, config.train.micro_tokens) = (micro_batch, micro_tokens);
        let (parameters, _) = uninterrupted(&config, 0.0);
        parameters.into_iter().flat_map(|(_, bits)| bits.into_iter().map(f32::from_bits)).collect::<Vec<_>>()
    };
    let whole = values(6, 0);
    for other in [values(1, 0), values(4, 0), values(6, 30)] {
        for (a, b) in whole.iter().zip(other) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn seeds_decide_everything() {
    let config = config(Preset::Anchored);
    assert_eq!(uninterrupted(&config, 0.2), uninterrupted(&config, 0.2));
    let other = RunConfig { seed: 1, ..config.clone() };
    assert_ne!(uninterrupted(&config, 0.2).0, uninterrupted(&other, 0.2).0);
}

#[test]
fn paused_after_any_step_and_resumed_is_the_same_to_the_bit() {
    let mut config = config(Preset::Anchored);
    config.loss.conditional = Some(0.5);
    config.early_stop.keep_best = true;
    for dropout in [0.0, 0.3] {
        let whole = uninterrupted(&config, dropout);
        for step in 1..STEPS {
            let dir = tempfile::tempdir().unwrap();
            let control = Control::default();
            let mut toy = Toy { dropout, ..Toy::new() };
            let paused =
                run(dir.path(), &mut toy, &config, &control, &mut PauseAfter { step, control: &control }).unwrap();
            assert_eq!(paused, Outcome::Paused { step });
            let mut toy = Toy { dropout, ..Toy::new() };
            let outcome = run(dir.path(), &mut toy, &config, &Control::default(), &mut Silent).unwrap();
            assert!(matches!(outcome, Outcome::Finished { step: STEPS, .. }), "{outcome:?}");
            assert_eq!((bits(&toy.parameters()), timeless(dir.path())), whole, "paused after step {step}");
            assert_eq!(
                toy.scored.get(),
                9 * 3 * (whole.1.len() - steps(&whole.1).len() - evaluations_by(step)),
                "the reference is not scored again"
            );
        }
    }
}

/// Evaluations that a run with one every 3 steps has made by `step`.
fn evaluations_by(step: u64) -> usize {
    (step / 3) as usize
}

#[test]
fn a_crash_between_checkpoints_repeats_the_lost_steps_to_the_bit() {
    let mut config = config(Preset::Paper);
    config.checkpoint.every = 4;
    let whole = uninterrupted(&config, 0.1);
    for crash in 1..=STEPS as usize {
        let dir = tempfile::tempdir().unwrap();
        // Two forward passes a step (6 pairs, 4 at a time), but one for the last batch of an epoch (4 pairs).
        let mut toy = Toy { dropout: 0.1, poisoned_from: 2 * crash - 1 - (crash - 1) / 4, ..Toy::new() };
        let error = run(dir.path(), &mut toy, &config, &Control::default(), &mut Silent).unwrap_err();
        assert!(
            matches!(error, TrainError::Guard(GuardError::NotFinite { step, .. }) if step == crash as u64),
            "{crash}: {error}"
        );
        let mut toy = Toy { dropout: 0.1, ..Toy::new() };
        let mut events = Collected::default();
        run(dir.path(), &mut toy, &config, &Control::default(), &mut events).unwrap();
        let Event::Started { step, .. } = events.0[0] else { panic!("{:?}", events.0[0]) };
        assert_eq!(step, (crash as u64 - 1) / 4 * 4, "it resumes from the last checkpoint");
        assert_eq!((bits(&toy.parameters()), timeless(dir.path())), whole, "crashed in step {crash}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken() {
    let config = config(Preset::Anchored);
    let whole = uninterrupted(&config, 0.0);
    let dir = tempfile::tempdir().unwrap();
    let control = Control::default();
    run(dir.path(), &mut Toy::new(), &config, &control, &mut PauseAfter { step: 7, control: &control }).unwrap();
    let newest = dir.path().join("checkpoints/step-00000007/optimizer.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    bytes.truncate(bytes.len() - 1);
    fs::write(&newest, bytes).unwrap();

    let mut toy = Toy::new();
    let mut events = Collected::default();
    run(dir.path(), &mut toy, &config, &Control::default(), &mut events).unwrap();
    assert!(
        matches!(&events.0[0], Event::Warning { message } if message.contains("step-00000007") && message.contains("damaged")),
        "{:?}",
        events.0[0]
    );
    assert!(matches!(events.0[1], Event::Started { step: 6, .. }), "{:?}", events.0[1]);
    assert_eq!((bits(&toy.parameters()), timeless(dir.path())), whole);
}

#[test]
fn a_finished_run_started_again_gives_the_same_adapter_without_a_step() {
    let config = config(Preset::Anchored);
    let dir = tempfile::tempdir().unwrap();
    let mut toy = Toy::new();
    let outcome = run(dir.path(), &mut toy, &config, &Control::default(), &mut Silent).unwrap();
    let mut again = Toy::new();
    assert_eq!(run(dir.path(), &mut again, &config, &Control::default(), &mut Silent).unwrap(), outcome);
    assert_eq!(again.forwards.get(), 0);
    assert_eq!(bits(&again.parameters()), bits(&toy.parameters()));
}

#[test]
fn another_configuration_data_or_start_does_not_resume() {
    let config = config(Preset::Anchored);
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &mut Toy::new(), &config, &Control::default(), &mut Silent).unwrap();
    let refused = |toy: &mut Toy, config: &RunConfig, identity: &str| {
        let train_set = examples(22, 1);
        let inputs = Inputs { train: &train_set, held_out: &InMemory::default(), identity };
        let error = train(dir.path(), toy, config, inputs, &Control::default(), &mut Silent).unwrap_err();
        assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
    };
    refused(&mut Toy::new(), &RunConfig { seed: 9, ..config.clone() }, "toy");
    refused(&mut Toy::new(), &config, "another base");
    let mut moved = Toy::new();
    let other = moved.parameters().into_iter().map(|(name, tensor)| (name, (tensor + 0.5).unwrap())).collect();
    moved.set_parameters(&other).unwrap();
    refused(&mut moved, &config, "toy");
}

#[test]
fn divergence_and_unlearning_end_with_a_reason_and_keep_no_adapter_step() {
    let mut broken = config(Preset::Paper);
    broken.schedule = Schedule { decay: Decay::Constant, warmup: 0.0, floor: 0.0 };
    (broken.train.epochs, broken.guard.window, broken.optimizer.learning_rate) = (30.0, 2, 20.0);
    broken.guard.chosen_drop = 0.5;
    let dir = tempfile::tempdir().unwrap();
    let mut events = Collected::default();
    let error = run(dir.path(), &mut Toy::new(), &broken, &Control::default(), &mut events).unwrap_err();
    assert!(
        matches!(error, TrainError::Guard(GuardError::ChosenDropped { .. } | GuardError::Diverged { .. })),
        "{error}"
    );
    assert!(matches!(events.0.last().unwrap(), Event::Failed { reason } if *reason == error.to_string()));
}

#[test]
fn patience_stops_early_and_the_best_adapter_is_given() {
    let mut config = config(Preset::Paper);
    (config.train.epochs, config.evaluation.every) = (200.0, 1);
    (config.optimizer.learning_rate, config.guard.chosen_drop, config.guard.loss_ratio) = (0.3, 0.0, 0.0);
    (config.early_stop.patience, config.early_stop.keep_best, config.early_stop.criterion) = (4, true, Criterion::Loss);
    let dir = tempfile::tempdir().unwrap();
    let mut toy = Toy::new();
    let outcome = run(dir.path(), &mut toy, &config, &Control::default(), &mut Silent).unwrap();
    let Outcome::Finished { step, adapter_step, stopped_early: true } = outcome else { panic!("{outcome:?}") };
    assert_eq!(step, adapter_step + 4);
    let losses = timeless(dir.path())
        .iter()
        .filter_map(|line| if let Line::Evaluated(one) = line { Some(one.loss) } else { None })
        .collect::<Vec<_>>();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(losses[adapter_step as usize - 1], best);

    let mut again = Toy::new();
    assert_eq!(run(dir.path(), &mut again, &config, &Control::default(), &mut Silent).unwrap(), outcome);
    assert_eq!(bits(&again.parameters()), bits(&toy.parameters()), "the best tensors come back with the checkpoint");
}

#[test]
fn a_criterion_without_rejected_answers_is_refused_before_anything_is_scored() {
    let train_set = examples(22, 1);
    let mut annotations = examples(9, 2);
    for example in &mut annotations.0 {
        example.clean.answers.truncate(1);
    }
    let mut one_pair = annotations.clone();
    one_pair.0.extend(examples(1, 3).0);
    let outcome = |criterion: Criterion, patience: usize, held_out: &InMemory| {
        let mut config = config(Preset::Anchored);
        (config.early_stop.criterion, config.early_stop.patience) = (criterion, patience);
        let dir = tempfile::tempdir().unwrap();
        let mut toy = Toy::new();
        let inputs = Inputs { train: &train_set, held_out, identity: "toy" };
        let outcome = train(dir.path(), &mut toy, &config, inputs, &Control::default(), &mut Silent);
        outcome.map_err(|error| (error.to_string(), toy.scored.get()))
    };
    for (criterion, name) in [(Criterion::Accuracy, "accuracy"), (Criterion::Margin, "margin")] {
        let (error, scored) = outcome(criterion, 1, &annotations).unwrap_err();
        assert!(error.contains(&format!("early_stop.criterion is {name}, it must be loss")), "{error}");
        assert_eq!(scored, 0);
        outcome(criterion, 1, &one_pair).unwrap();
        outcome(criterion, 1, &InMemory::default()).unwrap();
        // Nothing hangs on it.
        outcome(criterion, 0, &annotations).unwrap();
    }
    outcome(Criterion::Loss, 1, &annotations).unwrap();
}

#[test]
fn a_pause_before_the_first_step_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let control = Control::default();
    control.pause();
    let config = config(Preset::Anchored);
    assert_eq!(run(dir.path(), &mut Toy::new(), &config, &control, &mut Silent).unwrap(), Outcome::Paused { step: 0 });
    let mut toy = Toy::new();
    run(dir.path(), &mut toy, &config, &Control::default(), &mut Silent).unwrap();
    assert_eq!(bits(&toy.parameters()), uninterrupted(&config, 0.0).0);
}

#[test]
fn nothing_to_train_on_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = Inputs { train: &InMemory::default(), held_out: &InMemory::default(), identity: "" };
    let error = train(dir.path(), &mut Toy::new(), &RunConfig::default(), inputs, &Control::default(), &mut Silent)
        .unwrap_err();
    assert!(error.to_string().contains("no pair is left"), "{error}");

    let mut empty = examples(3, 1);
    empty.0[1].clean.answers[1] = std::sync::Arc::from([]);
    let inputs = Inputs { train: &empty, held_out: &InMemory::default(), identity: "" };
    let error = train(dir.path(), &mut Toy::new(), &config(Preset::Paper), inputs, &Control::default(), &mut Silent)
        .unwrap_err();
    assert!(error.to_string().contains("example 1: it has an answer without tokens"), "{error}");
    assert!(
        examples(50, 4).0.iter().all(|example| { example.clean.prompt.iter().all(|id| (*id as usize) < VOCABULARY) })
    );
}
