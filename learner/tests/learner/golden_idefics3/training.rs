//! The DPO loss, every LoRA gradient, the 20-step curve and where it ends.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use reground_learner::adapter::{AdapterConfig, PeftAdapter, TargetModules};
use reground_learner::bpo::policy::{Gradients, Group, Policy};
use reground_learner::model::{ALL_LINEAR, Lora, LoraPolicy, Model, PolicyOptions};

use super::fixture::{FORMATS, Fixture, golden, relative};

const BETA: f64 = 0.1;

fn policy(adapter: &str, options: PolicyOptions) -> (Fixture, LoraPolicy, Vec<Group>) {
    policy_in(DType::F32, adapter, options)
}

fn policy_in(format: DType, adapter: &str, options: PolicyOptions) -> (Fixture, LoraPolicy, Vec<Group>) {
    let fixture = Fixture::with(format);
    let lora = fixture.lora(adapter);
    let groups = fixture.groups();
    let Fixture { model, expected, tensors } = fixture;
    let model = Arc::new(model);
    let policy = LoraPolicy::new(model, lora, options).unwrap();
    (Fixture { model: Fixture::load().model, expected, tensors }, policy, groups)
}

/// Mean DPO loss, and its derivative with respect to each log-probability.
fn dpo(policy: &[Vec<f64>], reference: &[Vec<f64>]) -> (f64, Vec<Vec<f64>>) {
    let count = policy.len() as f64;
    let mut loss = 0.0;
    let mut coefficients = Vec::new();
    for (policy, reference) in policy.iter().zip(reference) {
        let margin = BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1]));
        loss += (-margin).exp().ln_1p() / count;
        let slope = -BETA / (1.0 + margin.exp()) / count;
        coefficients.push(vec![slope, -slope]);
    }
    (loss, coefficients)
}

fn options(threads: usize, rows_at_once: usize, activation_bytes: usize) -> PolicyOptions {
    PolicyOptions { threads, rows_at_once, activation_bytes }
}

#[test]
fn dpo_loss_and_every_gradient() {
    // All activations kept in one batch; recomputed in batches of one group on two threads; some layers of each.
    let ways = [options(1, 4096, usize::MAX), options(2, 1, 0), options(1, 80, 200_000)];
    for (format, options) in FORMATS.into_iter().flat_map(|format| ways.map(|way| (format, way))) {
        let (fixture, policy, groups) = policy_in(format, "adapter", options);
        let reference = policy.score(&groups, false).unwrap();
        let (log_probs, tape) = policy.forward(&groups, None).unwrap();
        assert_eq!(policy.score(&groups, true).unwrap().len(), 4);
        let (loss, coefficients) = dpo(&log_probs, &reference);
        let expected = fixture.expected["dpo_at_adapter"]["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < 1e-5, "loss {loss}, expected {expected}");
        let mut gradients = Gradients::new();
        policy.backward(tape, &coefficients, &mut gradients).unwrap();
        assert_eq!(gradients.len(), 42);
        for (name, gradient) in &gradients {
            let error = relative(gradient, &fixture.tensors[&format!("grad.{name}")]);
            assert!(error < 1e-3, "{name}: relative error {error} with {format:?}, {options:?}");
        }
    }
}

#[test]
fn gradients_add_up_and_empty_answers_count_nothing() {
    let (_, policy, mut groups) = policy("adapter", options(2, 64, 0));
    groups[1].answers[0] = Arc::from([]);
    groups[2].answers.clear();
    let coefficients = [vec![0.3, -0.2], vec![0.5, 0.1], vec![], vec![-0.4, 0.7]];
    let (sums, tape) = policy.forward(&groups, None).unwrap();
    assert_eq!(sums[1][0], 0.0);
    assert_eq!(sums[2].len(), 0);
    let mut whole = Gradients::new();
    policy.backward(tape, &coefficients, &mut whole).unwrap();
    let mut added = Gradients::new();
    for (group, coefficients) in groups.iter().zip(&coefficients) {
        let (_, tape) = policy.forward(std::slice::from_ref(group), None).unwrap();
        policy.backward(tape, std::slice::from_ref(coefficients), &mut added).unwrap();
    }
    for (name, gradient) in &whole {
        assert!(relative(&added[name], gradient) < 1e-4, "{name}");
    }
}

#[test]
fn twenty_steps_of_adamw() {
    FORMATS.into_iter().for_each(twenty_steps);
}

fn twenty_steps(format: DType) {
    let (fixture, mut policy, groups) = policy_in(format, "train_start", PolicyOptions::default());
    let reference = policy.score(&groups, false).unwrap();
    let (rate, beta1, beta2, epsilon) = (2e-3, 0.9_f64, 0.999_f64, 1e-8);
    let mut moments: BTreeMap<String, (Tensor, Tensor)> = BTreeMap::new();
    for (step, expected) in fixture.expected["train"]["steps"].as_array().unwrap().iter().enumerate() {
        let (log_probs, tape) = policy.forward(&groups, None).unwrap();
        let (loss, coefficients) = dpo(&log_probs, &reference);
        let target = expected["loss"].as_f64().unwrap();
        assert!((loss - target).abs() < 1e-3, "step {step}: loss {loss}, expected {target}");
        if step == 0 {
            assert!((loss - 2.0_f64.ln()).abs() < 1e-6, "an adapter whose B is zero changes nothing");
        }
        let mut gradients = Gradients::new();
        policy.backward(tape, &coefficients, &mut gradients).unwrap();
        let square: f64 = gradients
            .values()
            .map(|gradient| f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()))
            .sum();
        let norm = expected["grad_norm"].as_f64().unwrap();
        assert!(
            (square.sqrt() - norm).abs() < 1e-2 * norm,
            "step {step}: gradient norm {}, expected {norm}",
            square.sqrt()
        );
        if step == 2 {
            for (name, gradient) in &gradients {
                let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(largest > 0.0, "{name} has no gradient after two steps");
            }
        }
        let mut parameters = policy.parameters();
        let time = step as i32 + 1;
        for (name, parameter) in &mut parameters {
            let gradient = &gradients[name];
            let zeros = || gradient.zeros_like().unwrap();
            let (m, v) = moments.entry(name.clone()).or_insert_with(|| (zeros(), zeros()));
            *m = ((&*m * beta1).unwrap() + (gradient * (1.0 - beta1)).unwrap()).unwrap();
            *v = ((&*v * beta2).unwrap() + (gradient.sqr().unwrap() * (1.0 - beta2)).unwrap()).unwrap();
            let m = (&*m / (1.0 - beta1.powi(time))).unwrap();
            let v = (&*v / (1.0 - beta2.powi(time))).unwrap();
            let change = (m / (v.sqrt().unwrap() + epsilon).unwrap()).unwrap();
            *parameter = (&*parameter - (change * rate).unwrap()).unwrap();
        }
        policy.set_parameters(&parameters).unwrap();
    }
    let end = PeftAdapter::read(&golden("train_end")).unwrap().tensors();
    for (name, parameter) in policy.parameters() {
        let error = relative(&parameter, &end[&name]);
        assert!(error < 1e-2, "{name} ends at a relative distance of {error}");
    }
}

#[test]
fn a_new_adapter_is_seeded_and_starts_as_the_base() {
    let fixture = Fixture::load();
    let config = || AdapterConfig {
        target_modules: TargetModules::List(ALL_LINEAR.map(str::to_owned).to_vec()),
        lora_dropout: 0.1,
        use_rslora: true,
        ..AdapterConfig::uniform(4, 8.0)
    };
    let decoder = fixture.model.decoder();
    let lora = Lora::init(decoder, config(), 5).unwrap();
    let values = |lora: &Lora| -> Vec<Vec<f32>> {
        lora.parameters().values().map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    assert_eq!(values(&lora), values(&Lora::init(decoder, config(), 5).unwrap()));
    assert_ne!(values(&lora), values(&Lora::init(decoder, config(), 6).unwrap()));
    for (name, tensor) in lora.parameters() {
        let largest = tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let bound = 1.0 / (tensor.dim(1).unwrap() as f32).sqrt();
        assert!(if name.contains("lora_B") { largest == 0.0 } else { largest > 0.9 * bound && largest <= bound });
    }
    let groups = fixture.groups();
    let mut policy = LoraPolicy::new(Arc::new(fixture.model), lora, PolicyOptions::default()).unwrap();
    // B is zero, so the adapter adds exact zeros: the base bit for bit.
    let base = policy.score(&groups, false).unwrap();
    assert_eq!(policy.score(&groups, true).unwrap(), base);

    // With B away from zero, dropout changes the numbers, the same way for the same seed.
    let mut parameters = policy.parameters();
    for (name, tensor) in &mut parameters {
        if name.contains("lora_B") {
            *tensor = Tensor::full(0.05_f32, tensor.shape(), &Device::Cpu).unwrap();
        }
    }
    policy.set_parameters(&parameters).unwrap();
    let run = |seed| policy.forward(&groups, seed).unwrap().0;
    assert_eq!(run(Some(1)), run(Some(1)));
    assert_ne!(run(Some(1)), run(Some(2)));
    assert_ne!(run(Some(1)), run(None));
    parameters.pop_first();
    assert!(policy.set_parameters(&parameters).is_err());
}

/// With dropout the backward pass must apply the same masks: checked by differences of the log-probabilities.
#[test]
fn gradients_under_dropout_agree_with_differences() {
    FORMATS.into_iter().for_each(differences_under_dropout);
}

fn differences_under_dropout(format: DType) {
    let (fixture, _, groups) = policy_in(format, "adapter", PolicyOptions::default());
    let mut adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    adapter.config.lora_dropout = 0.2;
    let lora = Lora::load(fixture.model.decoder(), &adapter).unwrap();
    for activation_bytes in [0, usize::MAX] {
        let model = Arc::new(Fixture::with(format).model);
        let mut policy = LoraPolicy::new(model, lora.clone(), options(1, 4096, activation_bytes)).unwrap();
        let coefficients = vec![vec![1.0, -0.5]; groups.len()];
        let value = |policy: &LoraPolicy| -> f64 {
            let sums = policy.forward(&groups, Some(11)).unwrap().0;
            sums.iter().zip(&coefficients).flat_map(|(s, c)| s.iter().zip(c)).map(|(s, c)| s * c).sum()
        };
        let (_, tape) = policy.forward(&groups, Some(11)).unwrap();
        let mut gradients = Gradients::new();
        policy.backward(tape, &coefficients, &mut gradients).unwrap();
        let start = policy.parameters();
        for (name, gradient) in gradients.iter().step_by(5) {
            // Along its own gradient the derivative is the gradient's norm.
            let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let step = 2e-3;
            let direction = (gradient / f64::from(norm)).unwrap();
            let mut shifted = |sign: f64| {
                let mut moved = start.clone();
                moved.insert(name.clone(), (&start[name] + (&direction * (sign * step)).unwrap()).unwrap());
                policy.set_parameters(&moved).unwrap();
                value(&policy)
            };
            let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * step);
            let error = (difference - f64::from(norm)).abs() / f64::from(norm);
            assert!(error < 2e-2, "{name}: norm {norm}, difference {difference}");
        }
    }
}

/// On a GPU every operation is composed of candle's own, and the base is in half precision. f16 on the CPU takes the same
/// paths: the kernels of this crate are f32 only.
#[test]
fn a_half_precision_base_takes_the_composed_paths() {
    let model = Model::load(&golden("model"), DType::F16, &Device::Cpu).unwrap();
    let fixture = Fixture::load();
    let image_and_answers = |model: &Model, pair: usize| {
        let name = fixture.pairs()[pair]["image"].as_str().unwrap();
        let image = model.preprocess(&image::open(golden(name)).unwrap()).unwrap();
        let text = |key: &str| fixture.pairs()[pair][key].as_str().unwrap().trim_start();
        let answers = [text("chosen"), text("rejected")];
        model.group(&fixture.messages(pair), &[image], &answers).unwrap()
    };
    let groups: Vec<Group> = (0..4).map(|pair| image_and_answers(&model, pair)).collect();
    let lora = fixture.lora("adapter");
    let policy = LoraPolicy::new(Arc::new(model), lora, options(1, 80, 0)).unwrap();
    let reference = policy.score(&groups, false).unwrap();
    let (log_probs, tape) = policy.forward(&groups, None).unwrap();
    let (loss, coefficients) = dpo(&log_probs, &reference);
    let expected = fixture.expected["dpo_at_adapter"]["loss"].as_f64().unwrap();
    assert!((loss - expected).abs() < 1e-2, "loss {loss}, expected {expected}");
    // f16 flushes gradients under 6e-8 to zero; scaled coefficients stay clear of that, as loss scaling does.
    let scaled: Vec<Vec<f64>> = coefficients.iter().map(|c| c.iter().map(|c| c * 64.0).collect()).collect();
    let mut gradients = Gradients::new();
    policy.backward(tape, &scaled, &mut gradients).unwrap();
    assert_eq!(gradients.len(), 42);
    for (name, gradient) in &gradients {
        assert_eq!(gradient.dtype(), DType::F32, "gradients of the f32 LoRA are f32");
        let gradient = (gradient / 64.0).unwrap();
        let error = relative(&gradient, &fixture.tensors[&format!("grad.{name}")]);
        assert!(error < 3e-2, "{name}: relative error {error}");
    }
}
