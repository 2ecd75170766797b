//! What weights in 8 and 4 bits change: the shipped model's answers, and the golden numbers of transformers and PEFT.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::DynamicImage;
use reground_learner::adapter::PeftAdapter;
use reground_learner::bpo::policy::{Group, Policy};
use reground_learner::model::{
    Adapters, Lora, LoraPolicy, Message, Model, Packed, PolicyOptions, Quantisation, Request, Sampling, Source, Workers,
};
use reground_learner::pocket::world::Statistics;
use reground_learner::pocket::{held_out, shipped};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3").join(name)
}

/// Log-probabilities of a group's answers.
fn scored(model: &Model, group: &Group, adapter: Option<&Lora>) -> Vec<f32> {
    let packed = Packed::new([group]).unwrap();
    let hidden = model.hidden(&packed, &Adapters::all(adapter, packed.len())).unwrap();
    let mut scored = Vec::new();
    for (answer, rows) in group.answers.iter().zip(&packed.answers[0]) {
        let rows: Vec<u32> = rows.predicting().map(|row| row as u32).collect();
        let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        scored.extend(model.decoder().log_probs(&rows, answer).unwrap());
    }
    scored
}

/// Mean and largest of |a − b|.
fn apart(pairs: impl Iterator<Item = (f32, f32)>) -> (f32, f32) {
    let (mut sum, mut most, mut count) = (0.0, 0.0_f32, 0);
    for (a, b) in pairs {
        sum += (a - b).abs();
        most = most.max((a - b).abs());
        count += 1;
    }
    (sum / count as f32, most)
}

/// The shipped model's greedy descriptions of forty pictures, half of them of each world: what their tokens are worth to the
/// rounded model, and how many it gives itself. 8 bits are hardly seen; 4 bits, in blocks of Q4_0 mostly, are.
#[test]
fn eight_bits_answer_as_thirty_two_and_four_nearly() {
    let source = shipped::source();
    let model = Model::build(&source, &source.weights(DType::F32, &Device::Cpu).unwrap()).unwrap();
    let workers = Workers::new(0).unwrap();
    let pictures = [Statistics::typical(), Statistics::Balanced].map(|world| held_out::examples(world, 20, 0));
    let asked: Vec<Group> = pictures
        .iter()
        .flatten()
        .map(|example| {
            let seen = model.preprocess(&DynamicImage::from(example.image.as_ref().clone())).unwrap();
            model.group(&[Message::user("Describe the image.", 1)], &[seen], &[]).unwrap()
        })
        .collect();
    let answers = |model: &Model| {
        let requests = asked.iter().map(|Group { prompt, features, .. }| Request {
            prompt: prompt.clone(),
            features: features.clone(),
            adapter: None,
            sampling: Sampling::greedy(),
            max_tokens: 48,
        });
        model.generate(&requests.collect::<Vec<_>>(), &workers).unwrap()
    };
    let exact = answers(&model);
    for (quantisation, mean_bound, bound, fewest) in
        [(Quantisation::Q8, 0.002, 0.05, 36), (Quantisation::Q4, 0.025, 0.8, 30)]
    {
        let quantised = Model::quantised(&source, quantisation).unwrap();
        assert!(quantised.decoder().is_quantised() && !model.decoder().is_quantised());
        let same = answers(&quantised).iter().zip(&exact).filter(|(ours, exact)| ours.ids == exact.ids).count();
        let pairs = asked.iter().zip(&exact).flat_map(|(group, exact)| {
            let group = Group { answers: vec![exact.ids.as_slice().into()], ..group.clone() };
            scored(&quantised, &group, None).into_iter().zip(exact.log_probs.clone())
        });
        let (mean, most) = apart(pairs);
        assert!(
            mean > 0.0 && mean < mean_bound && most < bound && same >= fewest,
            "{quantisation}: mean {mean}, most {most}, {same} of 40 the same"
        );
    }
}

/// The adapter's numbers are those of PEFT on the f32 base, within what rounding the base costs.
#[test]
fn the_golden_adapter_on_rounded_weights() {
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("expected.json")).unwrap()).unwrap();
    let adapter = PeftAdapter::read(&golden("adapter")).unwrap();
    for (quantisation, bound) in [(Quantisation::Q8, 0.1), (Quantisation::Q4, 1.5)] {
        let model = Model::quantised(&Source::directory(golden("model")), quantisation).unwrap();
        let lora = Lora::load(model.decoder(), &adapter).unwrap();
        for (name, adapter) in [("base", None), ("adapter", Some(&lora))] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for pair in expected["pairs"].as_array().unwrap() {
                let text = |key: &str| pair[key].as_str().unwrap();
                let seen = model.preprocess(&image::open(golden(text("image"))).unwrap()).unwrap();
                let answers = ["chosen", "rejected"].map(|side| text(side).trim_start());
                let group = model.group(&[Message::user(text("question"), 1)], &[seen], &answers).unwrap();
                ours.extend(scored(&model, &group, adapter));
                for side in ["chosen", "rejected"] {
                    let wanted = pair[format!("{name}_logp_{side}")].as_array().unwrap();
                    theirs.extend(wanted.iter().map(|value| value.as_f64().unwrap() as f32));
                }
            }
            assert_eq!(ours.len(), theirs.len());
            let (mean, most) = apart(ours.into_iter().zip(theirs));
            assert!(mean > 0.0 && most < bound, "{quantisation}, {name}: mean {mean}, most {most}");
        }
    }
}

#[test]
fn a_quantised_base_scores_and_refuses_to_be_trained_on() {
    let model = Arc::new(Model::quantised(&Source::directory(golden("model")), Quantisation::Q8).unwrap());
    let lora = Lora::load(model.decoder(), &PeftAdapter::read(&golden("adapter")).unwrap()).unwrap();
    let group = model.group(&[Message::user("what is it?", 0)], &[], &["red", "blue"]).unwrap();
    let policy = LoraPolicy::new(model, lora, PolicyOptions { threads: 1, ..PolicyOptions::default() }).unwrap();
    let sums = policy.score(std::slice::from_ref(&group), true).unwrap();
    assert!(sums[0].len() == 2 && sums[0].iter().all(|sum| sum.is_finite()), "{sums:?}");
    let error = policy.forward(&[group], None).err().unwrap().to_string();
    assert!(error.contains("trained on a base in full precision"), "{error}");
}
