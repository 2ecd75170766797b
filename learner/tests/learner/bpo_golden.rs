//! The trainer on the golden Idefics3: PyTorch's 20 steps number by number, and a whole run directory that survives kill -9.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use image::ImageReader;
use reground_learner::adapter::PeftAdapter;
use reground_learner::bpo::config::{Preset, RunConfig};
use reground_learner::bpo::data::blobs::BlobDir;
use reground_learner::bpo::data::{self, ReadOptions};
use reground_learner::bpo::dataset;
use reground_learner::bpo::examples::{Example, InMemory};
use reground_learner::bpo::launch;
use reground_learner::bpo::policy::Policy;
use reground_learner::bpo::progress::{Collected, Event, JsonLines, Silent};
use reground_learner::bpo::schedule::{Decay, Schedule};
use reground_learner::bpo::trainer::{Control, Inputs, Outcome, train};
use reground_learner::model::{DeviceChoice, Lora, LoraPolicy, Message, Model, PolicyOptions, Source};
use serde_json::{Value, json};

use super::killed::{self, Kills};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3")
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden().join("expected.json")).unwrap()).unwrap()
}

#[test]
fn the_trainer_walks_pytorchs_twenty_steps() {
    let expected = expected();
    let model = Arc::new(Model::load(&golden().join("model"), DType::F32, &Device::Cpu).unwrap());
    let example = |pair: &Value| {
        let text = |key: &str| pair[key].as_str().unwrap().to_owned();
        let image = ImageReader::open(golden().join(text("image"))).unwrap().decode().unwrap();
        let image = model.preprocess(&image).unwrap();
        // The golden answers keep the space that the template would put before them.
        let (chosen, rejected) = (text("chosen"), text("rejected"));
        let group =
            model.group(&[Message::user(text("question"), 1)], &[image], &[chosen.trim(), rejected.trim()]).unwrap();
        let ids =
            |key: &str| pair[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
        assert_eq!(
            (group.prompt.to_vec(), group.answers[0].to_vec(), group.answers[1].to_vec()),
            (ids("prompt_ids"), ids("chosen_ids"), ids("rejected_ids"))
        );
        Example { clean: group, distorted: None }
    };
    let examples = InMemory(expected["pairs"].as_array().unwrap().iter().map(example).collect());

    let mut config = RunConfig::default();
    config.loss.preset = Preset::Paper;
    (config.optimizer.learning_rate, config.optimizer.max_grad_norm) = (2e-3, 0.0);
    config.schedule = Schedule { decay: Decay::Constant, warmup: 0.0, floor: 0.0 };
    (config.train.batch, config.train.micro_batch, config.train.epochs) = (4, 3, 20.0);
    let adapter = PeftAdapter::read(&golden().join("train_start")).unwrap();
    let lora = Lora::load(model.decoder(), &adapter).unwrap();
    let mut policy = LoraPolicy::new(Arc::clone(&model), lora, PolicyOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut events = Collected::default();
    let inputs = Inputs { train: &examples, held_out: &InMemory::default(), identity: "golden" };
    let outcome = train(dir.path(), &mut policy, &config, inputs, &Control::default(), &mut events).unwrap();
    assert_eq!(outcome, Outcome::Finished { step: 20, adapter_step: 20, stopped_early: false });

    let steps = events
        .0
        .iter()
        .filter_map(|event| if let Event::Step(step) = event { Some(step) } else { None })
        .collect::<Vec<_>>();
    assert!((steps[0].loss - std::f64::consts::LN_2).abs() < 1e-6);
    for (step, want) in steps.iter().zip(expected["train"]["steps"].as_array().unwrap()) {
        let near = |name: &str, got: f64, tolerance: f64| {
            let want = want[name].as_f64().unwrap();
            assert!((got - want).abs() <= tolerance, "step {}: {name} is {got}, PyTorch has {want}", step.step);
        };
        near("loss", step.loss, 1e-3);
        near("rewards_chosen", step.rewards_chosen, 1e-3);
        near("rewards_rejected", step.rewards_rejected.unwrap(), 1e-3);
        near("rewards_margins", step.rewards_margins.unwrap(), 2e-3);
        near("logps_chosen", step.logps_chosen, 1e-2);
        near("logps_rejected", step.logps_rejected.unwrap(), 1e-2);
        near("grad_norm", step.grad_norm, 2e-3);
        if step.step > 1 {
            // At step 0 every margin is rounding, and its sign a coin's.
            near("rewards_accuracies", step.rewards_accuracies.unwrap(), 0.0);
        }
    }
    let end =
        Lora::load(model.decoder(), &PeftAdapter::read(&golden().join("train_end")).unwrap()).unwrap().parameters();
    for (name, got) in policy.parameters() {
        let difference = (got - &end[&name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 2e-3, "{name} is off by {difference}");
    }
}

/// More than twenty lives can get through.
const STEPS: u64 = 150;

/// A run directory of the golden pictures, as `train --run` finds one.
fn prepare(dir: &Path, change: impl Fn(&mut RunConfig)) {
    let rows = expected()["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|pair| {
            let answer = |key: &str| json!([{"role": "assistant", "content": pair[key].as_str().unwrap().trim()}]);
            let row = |question: &str| {
                json!({
            "input": {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": pair["image"]}}, {"type": "text", "text": question}]}]},
            "preferred_output": answer("chosen"), "non_preferred_output": answer("rejected")})
            };
            [row(pair["question"].as_str().unwrap()), row("what do you see?"), row("and now?")]
                .map(|row| format!("{row}\n"))
        })
        .collect::<String>();
    fs::write(dir.join("rows.jsonl"), rows).unwrap();
    let options = ReadOptions { image_root: Some(golden()), ..ReadOptions::default() };
    let mut pairs = Vec::new();
    let report =
        data::read(&dir.join("rows.jsonl"), &options, &BlobDir::new(dir.join("blobs")), &mut |pair| pairs.push(pair))
            .unwrap();
    assert_eq!((report.pairs, report.faults), (12, 0));
    let (digest, _) = dataset::freeze(&dir.join("dataset.jsonl"), &pairs).unwrap();

    let mut config = RunConfig { seed: 3, ..RunConfig::default() };
    config.model.base = golden().join("model").to_string_lossy().into_owned();
    (config.lora.rank, config.lora.alpha, config.lora.dropout) = (4, 8.0, 0.1);
    config.loss.conditional = Some(0.5);
    (config.optimizer.learning_rate, config.train.batch, config.train.micro_batch) = (2e-3, 4, 2);
    // Whatever the seed holds out, the step limit decides when it ends.
    (config.train.epochs, config.train.max_steps, config.train.threads) = (1000.0, STEPS, 2);
    (config.data.blobs, config.data.digest, config.data.held_out) = (PathBuf::from("blobs"), digest, 0.3);
    (config.evaluation.every, config.checkpoint.every) = (7, 3);
    config.early_stop.keep_best = true;
    change(&mut config);
    fs::write(dir.join("run.toml"), toml::to_string(&config).unwrap()).unwrap();
}

fn no_pocket() -> Option<Source> {
    None
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Some(dir) = killed::directory() else {
        return;
    };
    let mut progress = JsonLines(std::io::stderr());
    launch::train(dir.as_ref(), DeviceChoice::Cpu, &no_pocket, &Control::default(), &mut progress).unwrap();
}

#[test]
fn killed_at_twenty_random_steps_the_adapter_is_the_same_to_the_byte() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&whole, &killed] {
        prepare(dir.path(), |_| ());
    }
    let outcome = launch::train(whole.path(), DeviceChoice::Cpu, &no_pocket, &Control::default(), &mut Silent).unwrap();
    assert!(matches!(outcome, Outcome::Finished { step: STEPS, .. }), "{outcome:?}");

    Kills { child: "bpo_golden::child", number: 20, seed: 21, steps: 0..5, delay: 0..20_000 }
        .inflict(killed.path(), STEPS);
    let resumed =
        launch::train(killed.path(), DeviceChoice::Cpu, &no_pocket, &Control::default(), &mut Silent).unwrap();
    assert_eq!(resumed, outcome);
    for file in ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"] {
        assert_eq!(fs::read(killed.path().join(file)).unwrap(), fs::read(whole.path().join(file)).unwrap(), "{file}");
    }
    let adapter = PeftAdapter::read(&killed.path().join("adapter")).unwrap();
    assert!(adapter.modules.values().all(|weights| weights.r == 4));
    let page = fs::read_to_string(killed.path().join("report.html")).unwrap();
    assert!(page.contains("Finished after step 150") && page.contains("rewards/margins"));
}

#[test]
fn a_base_or_starting_adapter_that_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let failed = |change: &dyn Fn(&mut RunConfig)| {
        prepare(dir.path(), change);
        let error = launch::train(dir.path(), DeviceChoice::Cpu, &no_pocket, &Control::default(), &mut Silent)
            .unwrap_err()
            .to_string();
        let result: Value = serde_json::from_slice(&fs::read(dir.path().join("result.json")).unwrap()).unwrap();
        assert_eq!(result["reason"], error);
        error
    };
    let error = failed(&|config| config.model.base = "pocket".to_owned());
    assert!(error.contains("no pocket model inside"), "{error}");
    let error = failed(&|config| config.model.base = "nowhere".to_owned());
    assert!(error.contains("cannot load nowhere") && error.contains("is no directory"), "{error}");
    let error = failed(&|config| config.lora.targets = vec!["conv1".to_owned()]);
    assert!(error.contains("the starting adapter") && error.contains("target_modules"), "{error}");

    // An adapter of a wider base: every matrix has four columns too many.
    let adapter = PeftAdapter::read(&golden().join("adapter")).unwrap();
    let mut other = adapter.clone();
    for weights in other.modules.values_mut() {
        weights.a = weights.a.pad_with_zeros(1, 0, 4).unwrap();
    }
    other.write(&dir.path().join("other"), reground_learner::adapter::Naming::Checkpoint).unwrap();
    let error = failed(&|config| config.model.adapter = PathBuf::from("other"));
    assert!(error.contains("the starting adapter") && error.contains("lora_A"), "{error}");
    fs::write(dir.path().join("other/adapter_model.safetensors"), "short").unwrap();
    let error = failed(&|config| config.model.adapter = PathBuf::from("other"));
    assert!(error.contains("the starting adapter"), "{error}");
}

#[test]
fn a_continued_adapter_is_its_own_reference() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path(), |config| {
        config.model.adapter = golden().join("adapter");
        config.train.max_steps = 2;
    });
    let mut events = Collected::default();
    launch::train(dir.path(), DeviceChoice::Cpu, &no_pocket, &Control::default(), &mut events).unwrap();
    let first =
        events.0.iter().find_map(|event| if let Event::Step(step) = event { Some(step) } else { None }).unwrap();
    assert!((first.loss_bpo.unwrap() - std::f64::consts::LN_2).abs() < 1e-6, "{first:?}");
    assert!(first.rewards_chosen.abs() < 1e-5 && first.grad_norm > 0.0);
}
